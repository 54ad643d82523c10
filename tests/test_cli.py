"""The command line: dispatch, exit statuses, one-line errors, what is imported, and the `cost` command."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import mobilenet_ext
from mobilenet_ext.cli import COMMANDS, main

PACKAGE = Path(mobilenet_ext.__file__).parent
SMALL = ["cost", "--model", "v1", "--alpha", "0.25", "--beta", "1/7"]


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False, **options
    )


@pytest.fixture
def fake(monkeypatch):
    """Puts a stand-in for the command `demo` in place; its run() executes the given statements."""

    def install(body, filename=PACKAGE / "commands" / "demo.py"):
        source = "def run(args):\n" + "".join(f"    {line}\n" for line in body.splitlines())
        module = ModuleType("mobilenet_ext.commands.demo")
        exec(compile(source, str(filename), "exec"), vars(module))
        module.add_parser = lambda subparsers: subparsers.add_parser("demo").set_defaults(run=module.run)
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_module_with_help(name, capsys):
    module = importlib.import_module(f"mobilenet_ext.commands.{name}")
    assert callable(module.run)
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: mobilenet-ext {name} ")


def test_main_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert [name for name in COMMANDS if not re.search(rf"^ +{name} ", out, re.MULTILINE)] == []


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["cost", "--model", "v3"], ["cost", "--alpha", "0"], ["cost", "--beta", "1/0"]]
)
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "mobilenet-ext" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 1])
def test_the_command_sets_the_status(fake, status):
    fake(f"return {status}")
    assert main(["demo"]) == status


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("raise ValueError('size is -1; allowed: from 1 up\\nsecond line')", "size is -1; allowed: from 1 up"),
        ("raise RuntimeError('the slot has no entry')", "the slot has no entry"),
        ("open('/nonexistent/photo.jpg')", "[Errno 2] No such file or directory: '/nonexistent/photo.jpg'"),
        (
            "import no_such_package.part",
            "the package 'no_such_package' is not installed; pip install 'mobilenet_ext[demo]' brings it",
        ),
    ],
)
def test_expected_errors_are_one_line(fake, capsys, body, line):
    fake(body)
    assert main(["demo"]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"mobilenet-ext demo: {line}\n"
    assert captured.out == ""


def test_traceback_flag_shows_where_from(fake):
    fake("raise ValueError('no')")
    with pytest.raises(ValueError, match=r"^no$"):
        main(["--traceback", "demo"])


def test_bugs_keep_their_traceback(fake):
    fake("raise ValueError('deep inside another library')", filename="/elsewhere/library.py")
    with pytest.raises(ValueError, match="deep inside"):
        main(["demo"])
    fake("return {}['missing']")
    with pytest.raises(KeyError):
        main(["demo"])
    fake("import mobilenet_ext.no_such_module")
    with pytest.raises(ModuleNotFoundError):
        main(["demo"])


def test_interrupt_is_status_130(fake):
    fake("raise KeyboardInterrupt")
    assert main(["demo"]) == 130


def test_cost_imports_neither_timm_nor_torchvision(tmp_path):
    code = "import sys; from mobilenet_ext.cli import main; assert main(sys.argv[1:]) == 0; "
    code += "print(*sys.modules, file=sys.stderr)"
    done = python("-c", code, *SMALL, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert "torch" in loaded
    assert not loaded & {"timm", "torchvision", "sklearn", "PIL", "matplotlib"}
    assert "mobilenet_ext.commands.verify" not in done.stderr.split()


def test_module_runs_as_the_command_and_survives_a_closed_pipe(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        command = [sys.executable, "-m", "mobilenet_ext", *SMALL, "--json"]
        done = subprocess.run(
            command, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=120, cwd=tmp_path, check=False
        )
    assert (done.returncode, done.stderr) == (1, "")


def test_cost_json(capsys):
    assert main(["cost", "--alpha", "0.5", "1", "--beta", "1/7", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["v1", "v2"]
    for result in document.values():
        assert [(row["alpha"], row["input_size"]) for row in result["grid"]] == [(0.5, 32), (1.0, 32)]
        assert result["layers"]["alpha"] == 0.5
        assert result["layers"]["multiply_adds"] == result["grid"][0]["multiply_adds"]
        assert all(pair["ratio"] == pytest.approx(pair["law"]) for pair in result["separable"])


def test_cost_tables_fit_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["cost", "--alpha", "1", "--beta", "1", "--layers"]) == 0
    out = capsys.readouterr().out
    for figures in (
        "568.74 +569 +4.232 +4.2",
        "300.77 +300 +3.505 +3.4",
        "features.13 +1024 +1024 +3x3 +7x7 +51.83 +462.42 +0.1121 +0.1121",
    ):
        assert re.search(figures, out)
    assert re.search(r"features\.13\.pointwise\.0 +pointwise +1024 +1024 +1x1 +7x7 +51\.38 +1048576", out)
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_cost_of_a_beta_without_pixels(capsys):
    assert main(["cost", "--beta", "0.001"]) == 2
    assert capsys.readouterr().err.startswith("mobilenet-ext cost: beta is 0.001; allowed: ")
