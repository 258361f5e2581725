"""The house rules: one way of importing, short files, nothing that runs a stranger's code."""

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import ROOT

from rl.config import Config

FILES = sorted(p for p in ROOT.rglob("*.py") if not {".venv", "venv", "runs"} & set(p.relative_to(ROOT).parts))
FOLDERS = {"data", "model", "rewards", "rl"}
ENTRY_POINTS = {"train", "evaluate"}


def imports_of(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_imports_go_one_way():
    """Bug guarded: a model that knows of RL, rewards that need torch, a circle."""
    for file in FILES:
        folder, imported = file.relative_to(ROOT).parts[0], imports_of(file)
        project = imported & (FOLDERS | ENTRY_POINTS)
        if folder in {"data", "model", "rewards"}:
            assert project <= {folder}, f"{file} imports {project}"
        if folder in FOLDERS:
            assert not project & ENTRY_POINTS, f"{file} imports an entry point"
        if folder == "rewards":
            assert "torch" not in imported, f"{file} imports torch"


def test_no_trainer_or_inference_framework():
    banned = {"trl", "verl", "vllm", "sglang", "deepspeed", "accelerate", "peft", "lightning"}
    ours = [f for f in FILES if f.relative_to(ROOT).parts[0] != "benchmarks"]  # peers are imported to be measured against
    assert not {(f.name, name) for f in ours for name in imports_of(f) & banned}


def test_only_tokenizers_and_templates_come_from_transformers():
    """Bug guarded: somebody else's model in the middle of ours."""
    for file in FILES:
        if file.relative_to(ROOT).parts[0] in FOLDERS:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module == "transformers":
                    assert all("Tokenizer" in alias.name for alias in node.names), file


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_and_functions_stay_short(file):
    source = file.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            head = node.body[0]
            docstring = head.end_lineno - head.lineno + 1 if ast.get_docstring(node) is not None else 0
            assert node.end_lineno - node.lineno + 1 - docstring < 60, f"{node.name} is too long"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "bare except"


UNPICKLERS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
REVIEWED = {  # what runs code or could, and why it does not run a stranger's
    "benchmarks/update.py": {"exec"},  # of a file that its own command line names
}


OTHER_NAMES = {"pyyaml": "yaml"}  # of packages that are imported under another name than the one they are installed by
OPTIONAL = {"lm_eval", "trl", "datasets"}  # of scripts in benchmarks/ that say how to install them
OF_PEERS = {"data_types", "grpo", "qwen2_model"}  # modules of code that benchmarks/peers.py measures against


def test_requirements_are_what_is_imported():
    """Bug guarded: a package that a fresh installation lacks, one that is named twice, or that nobody needs."""
    lines = (ROOT / "requirements.txt").read_text().split()
    names = [re.split("[<>=]", line)[0].lower() for line in lines]
    assert len(set(names)) == len(names)
    required = {OTHER_NAMES.get(name, name.replace("-", "_")) for name in names}
    beside_each_other = {file.stem for file in FILES if file.parent in (ROOT, ROOT / "tests")}
    local = beside_each_other | {file.relative_to(ROOT).parts[0] for file in FILES}
    imported = set().union(*map(imports_of, FILES)) - sys.stdlib_module_names - local - OPTIONAL - OF_PEERS
    assert imported == required - {"ruff", "sentencepiece"}  # transformers reads some vocabularies by it


def called(node: ast.Call) -> str:
    """The called function as it is written: `torch.load`, `eval`."""
    return ast.unparse(node.func)


def test_loading_runs_no_code():
    """Bug guarded: a downloaded file that is executed: by pickle, by torch.load in full, by a tokenizer's own code, by eval."""
    for file in (f for f in FILES if f.relative_to(ROOT).parts[0] != "tests"):  # tests read back what they wrote
        name, nodes = str(file.relative_to(ROOT)), list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        found = {ast.unparse(n) for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n.value) in UNPICKLERS}
        found |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module in UNPICKLERS}
        for node in (n for n in nodes if isinstance(n, ast.Call)):
            place, options = f"{name}:{node.lineno}", {option.arg: ast.unparse(option.value) for option in node.keywords}
            found |= {called(node)} & {"eval", "exec", "__import__"}
            assert options.get("trust_remote_code", "False") == "False", place
            assert options.get("allow_pickle", "False") == "False", place
            if called(node).endswith("torch.load"):
                found.add("torch.load")
                assert options.get("weights_only") == "True", place
        assert found <= REVIEWED.get(name, set()), f"{name}: {found}"


def test_every_flag_has_help():
    assert all(field.metadata["help"].strip() for field in fields(Config))


def test_no_machine_paths():
    """Bug guarded: a path of one machine, or a registry's address, in what everybody clones."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in tracked or [str(f.relative_to(ROOT)) for f in FILES]:
        text = (ROOT / name).read_text(encoding="utf-8") if (ROOT / name).exists() else ""
        assert not re.search("/" + r"(home|root|tmp|work|Users)/\w", text), name
