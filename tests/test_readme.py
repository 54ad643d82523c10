"""README and docs say what is there: their code runs, links lead somewhere, commands, variables and reasons exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from weight_edits import EDITS

from mobilenet_ext import cli
from mobilenet_ext.info import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [ROOT / "setup.py", *(ROOT / "build_backend").glob("*.py"), *(ROOT / "mobilenet_ext").rglob("*.py")]
COMMANDS_TO_COPY = ["pip install '.[demo]' && mobilenet-ext demo", "pip install '.[test]' && pytest"]

# `[text](target)`, where the text may hold escapes and code.
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def fences(document: Path, language: str) -> list[str]:
    return [body for _, found, body in FENCE.findall(document.read_text()) if found == language]


def prose(document: Path) -> str:
    return FENCE.sub("", document.read_text())


def table_cells(text: str, heading: str, column: int) -> list[str]:
    """The cells of one column of every table whose first line contains ``heading``."""
    cells, inside = [], False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
        elif not inside and heading in line:
            inside = True
        elif inside and not line.startswith("|---"):
            cells.append(line.strip("|").split(" | ")[column])
    assert cells, heading
    return cells


def anchors(document: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_two_commands_stand_on_lines_of_their_own():
    lines = README.read_text().splitlines()
    assert [command for command in COMMANDS_TO_COPY if command not in lines] == []


def test_readme_code_runs():
    pytest.importorskip("torchvision")
    blocks = fences(README, "python")
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        smaller = block.replace("224, 224", "64, 64").replace("56, 56", "14, 14")
        exec(compile(smaller, f"README.md, Python block {number}", "exec"), names)
    assert names["result"].fused > 0
    assert names["report"].counts["PyTorch"] == 0
    assert names["logits"].shape == names["expected"].shape == (1, 1000)
    assert type(names["plain"]) is type(names["model"])
    assert names["features"].shape == (1, 256, 7, 7)
    assert names["y"].shape == (1, 32, 14, 14)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(document: Path):
    broken = []
    for target in LINK.findall(prose(document)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or not file.is_relative_to(ROOT) or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_document_is_linked_from_the_readme():
    linked = {(ROOT / target).resolve() for target in LINK.findall(README.read_text()) if "://" not in target}
    assert [document.name for document in DOCUMENTS[1:] if document not in linked] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_subcommand_named_exists(document: Path):
    text = document.read_text()
    named = set(re.findall(r"mobilenet-ext ([a-z]+)", text))
    assert named <= set(cli.COMMANDS)
    if document == README:
        assert named == set(cli.COMMANDS)
    for block in fences(document, "bash"):
        for line in block.splitlines():
            words = shlex.split(line.rpartition("&& ")[2], comments=True)
            if words[:1] == ["mobilenet-ext"]:
                assert cli._parser(words[1:]).parse_args(words[1:]).command == words[1]


def test_environment_variables_are_those_that_the_code_reads():
    python = "\n".join(path.read_text() for path in SOURCES)
    native = "\n".join(path.read_text() for path in (ROOT / "csrc").rglob("*.cpp"))
    read = set(re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", python)) | set(re.findall(r"getenv\(\"(\w+)\"\)", native))
    listed = {cell.strip(" `") for cell in table_cells(README.read_text(), "| name | meaning | read |", 0)}
    ours = {name for name in read if name.startswith("MOBILENET_EXT_")}
    assert listed <= read
    assert {name for name in listed if name.startswith("MOBILENET_EXT_")} == ours == set(ENVIRONMENT)
    declared = re.findall(r"^(?:option|set)\((MOBILENET_EXT_\w+)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
    for document in DOCUMENTS:
        assert set(re.findall(r"MOBILENET_EXT_[A-Z_]+", document.read_text())) <= ours | set(declared), document.name


def test_reasons_in_the_conditions_tables_are_those_that_the_code_gives():
    given = [text for path in SOURCES for text in texts(ast.parse(path.read_text()))]
    missing = []
    for heading in ("| when `fuse` looks at the module |", "| at every call |"):
        for cell in table_cells(README.read_text(), heading, 1):
            for reason in re.findall(r"`([^`]+)`", cell):
                # What follows "allowed:" and "has" may be a value of the f-string: a text of its own.
                parts = [part for part in re.split(r"…|(?<=allowed: )|(?<= has )", reason) if len(part.strip()) > 3]
                if not all(any(part in text for text in given) for part in parts):
                    missing.append(reason)
    assert missing == []


def texts(tree: ast.AST) -> list[str]:
    """Every string of a module, f-strings with … for their values."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            found.append("".join(parts))
    return found


def test_the_freshness_matrix_lists_every_edit():
    text = (ROOT / "docs" / "freshness.md").read_text()
    listed = [cell.strip(" `") for cell in table_cells(text, "| edit | what it does |", 0)]
    assert listed == [edit.__name__ for edit in EDITS]


def test_every_test_named_exists():
    defined = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for document in DOCUMENTS:
        text = re.sub(LINK, "", document.read_text())
        named = set(re.findall(r"`(test_\w+)(?:\[[\w-]+\])?`", text))
        assert [name for name in named if f"def {name}(" not in defined] == [], document.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_lines_fit(document: Path):
    """Tables and links cannot be broken; everything else fits 120 columns."""
    lines = enumerate(document.read_text().splitlines(), 1)
    long = [number for number, line in lines if len(line) > 120 and "|" not in line and "](" not in line]
    assert long == []
