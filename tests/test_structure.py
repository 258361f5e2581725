"""The structure that lets a reader see a step: who imports whom, and how much there is to read."""

import ast
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

import rl
from rl.config import Config

FOLDERS = ("data", "model", "rewards", "rl")
STEP = ("train.py", "rl/records.py", "rl/rollout.py", "rl/advantages.py", "rl/logprobs.py", "rl/loss.py", "rewards/format.py",
        "rewards/refine.py")  # fmt: skip
ROOMS = ("weights", "judging", "run", "evaluation", "report")
ABOVE_THE_STEP = {"session", "sft", "demo", "refinement_paths"}  # files at the top of rl/ that may enter rooms
MOST_LINES, MOST_FILES, MOST_FLAGS, LONGEST_CHAIN = 12_618, 78, 62, 11
MOST_WITHOUT_COMMENT = 25  # lines of a function without a comment
SMALL = 40  # lines of a file that is too small to have only one importer


def product_files() -> list[Path]:
    return [ROOT / "train.py", ROOT / "evaluate.py", *(f for folder in FOLDERS for f in sorted((ROOT / folder).rglob("*.py")))]


def lines_of(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def module_name(file: Path) -> str:
    return str(file.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")


@cache
def import_graph() -> dict[str, set[str]]:
    """The modules of the project that each one imports."""
    files = {module_name(file): file for file in product_files()}
    graph = {}
    for name, file in files.items():
        found = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in files:
                found |= {f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in files else node.module for a in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names if alias.name in files}
        graph[name] = found - {name}
    return graph


@cache
def chain_from(module: str) -> tuple[str, ...]:
    """The longest chain of imports that begins with a module."""
    return (module, *max((chain_from(name) for name in import_graph()[module]), key=len, default=()))


def test_a_step_can_be_read():
    """Bug guarded: a step that grows out of the eight files in which a reader sees what it computes."""
    assert lines_of(ROOT / "train.py") <= 280
    assert sum(lines_of(ROOT / name) for name in STEP) < 1000


@pytest.mark.parametrize("entry", ["train", "evaluate", "rl.sft"])
def test_chains_of_imports_are_short(entry):
    """Bug guarded: files that are stacked on each other, or that import each other in a circle."""
    chain = chain_from(entry)
    assert len(chain) <= LONGEST_CHAIN, " -> ".join(chain)


def test_the_step_enters_no_room():
    """Bug guarded: an arrow from the step up to what serves it."""
    for name, imported in import_graph().items():
        parts = name.split(".")
        if parts[0] == "rl" and len(parts) == 2 and parts[1] not in (*ROOMS, *ABOVE_THE_STEP):
            rooms = {other for other in imported if other.split(".")[1:2] and other.split(".")[1] in ROOMS}
            assert not rooms, f"{name} imports {rooms}"
    assert not import_graph()["rl.config"]


def test_the_product_stays_small():
    """Bug guarded: code that nobody weighs any more."""
    files = product_files()
    assert len(files) <= MOST_FILES
    assert sum(map(lines_of, files)) <= MOST_LINES
    assert sum(spec.metadata["flag"] for spec in fields(Config)) <= MOST_FLAGS


def test_no_small_file_serves_a_single_other():
    """Bug guarded: a thought that is a file of its own although only one other file needs it."""
    for file in (file for file in product_files() if file.name != "__init__.py"):
        name = module_name(file)
        importers = [other for other, imported in import_graph().items() if name in imported]
        assert len(importers) != 1 or lines_of(file) >= SMALL, f"{name} belongs into {importers[0]}"


def test_the_map_of_rl_names_every_file():
    """Bug guarded: a reader's map with a file that is gone, or without one that has come."""
    entries = [line.split("  ")[0] for line in rl.__doc__.splitlines()[4:] if "  " in line]
    named = {name for entry in entries for name in entry.split(", ")}
    files = {file.stem for file in (ROOT / "rl").glob("*.py")} - {"__init__"}
    assert named == files | {f"{folder.name}/" for folder in (ROOT / "rl").iterdir() if list(folder.glob("*.py"))}


def test_docstrings_begin_with_the_thing_or_a_verb():
    """Bug guarded: a sentence that has to be finished by the name above it."""
    for file in product_files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                name = getattr(node, "name", "the file")
                assert text.split()[0] not in ("Of", "Whether", "Where", "What", "How", "Who"), f"{file}: {name}"


def test_long_functions_name_their_stages():
    """Bug guarded: a page of code without a word on what its parts do."""
    for file in product_files():
        lines = file.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef):
                documented = ast.get_docstring(node) is not None
                body = lines[node.body[0].end_lineno if documented else node.lineno : node.end_lineno]
                comments = [line for line in body if line.strip().startswith("#")]
                assert len(body) <= MOST_WITHOUT_COMMENT or comments, f"{file}: {node.name} has {len(body)} lines"
