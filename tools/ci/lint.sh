# Formatters, linters and the type checker, at the versions that the extra `dev` pins.
# shellcheck shell=bash

stage_lint() {
  if [[ ! -x $VENV/bin/pytest ]]; then # when `install` did not run before
    new_venv "$VENV"
    "$VENV/bin/pip" install -q '.[test]'
  fi
  "$VENV/bin/python" tools/ci/extra.py dev | xargs -d '\n' "$VENV/bin/pip" install -q
  "$VENV/bin/ruff" check .
  "$VENV/bin/ruff" format --check .
  "$VENV/bin/mypy"
  git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.inl' | xargs -r "$VENV/bin/clang-format" --dry-run --Werror
}
