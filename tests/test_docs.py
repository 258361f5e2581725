"""The documentation tells the truth: every flag, file, function and link in README.md and docs/ exists."""

import re
from dataclasses import fields
from functools import cache

import pytest
from conftest import ROOT

from evaluate import EvalConfig
from rl.config import Config
from rl.judging.judge import JudgeOptions
from rl.sft import Recipe

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
README = PAGES[0].read_text(encoding="utf-8")
OF_TORCHRUN = {
    "--standalone", "--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--rdzv-conf",
    "--local-addr", "--max-restarts", "--shutdown-timeout",
}  # fmt: skip
OF_OTHERS = {
    "--nodes", "--ntasks-per-node", "--gpus-per-node", "--gpus-per-task", "--signal", "--requeue",  # SLURM
    "--check",  # ruff
}  # fmt: skip
SUFFIXES = "py|md|svg|txt|toml"

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@cache
def known_flags() -> set[str]:
    """The flags of every command, from the configurations and from the calls that add one."""
    flags = {"--" + field.name.replace("_", "-") for kind in (Config, EvalConfig, Recipe) for field in fields(kind)} | {
        "--help"
    }
    flags -= {"--" + field.name.replace("_", "-") for field in fields(Config) if not field.metadata["flag"]}
    sources = [ROOT / "evaluate.py", *(f for folder in ("rl", "data", "benchmarks") for f in (ROOT / folder).rglob("*.py"))]
    for file in sources:
        flags |= set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', file.read_text(encoding="utf-8")))
    return flags | OF_TORCHRUN | OF_OTHERS


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


@cache
def anchors(page) -> set[str]:
    """The anchors that GitHub makes of a page's headings: lower case, signs dropped, spaces as dashes."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text(encoding="utf-8")), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page) -> list[tuple[str, str, str]]:
    """(text, target, anchor) of every link that stays in the repository."""
    found = re.findall(r"\[([^\]]+)\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8"))
    return [link for link in found if not link[1].startswith("http")]


@each_page
def test_every_flag_exists(page):
    """Bug guarded: documentation of a flag that is no longer, or not yet, there."""
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text(encoding="utf-8")))
    assert not named - known_flags()


@each_page
def test_every_link_leads_somewhere(page):
    """Bug guarded: a link to a file that has moved, or to a heading that has been renamed."""
    for text, target, anchor in links(page):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"[{text}] leads to {target}"
        if anchor:
            assert anchor in anchors(file), f"[{text}] leads to #{anchor} of {file.name}"


@each_page
def test_every_named_file_exists(page):
    """Bug guarded: a path in a command or a sentence that is gone from the repository."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(rf"(?<![\w/.-])((?:data|model|rewards|rl|tests|benchmarks|docs)/[\w/]*\w\.(?:{SUFFIXES}))\b", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"(?<![\w/.-])python (\w[\w/]*\.py)", text):
        assert (ROOT / name).exists(), name
    for module in re.findall(r"python -m ((?:rl|data)\.[\w.]+)", text):
        file = ROOT / module.replace(".", "/")
        assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), module


@each_page
def test_every_linked_function_exists(page):
    """Bug guarded: an equation whose link leads to a file without the function."""
    for symbol, target, _ in links(page):
        if re.fullmatch(r"`\w+`", symbol) and target.endswith(".py"):
            source = (page.parent / target).read_text(encoding="utf-8")
            assert re.search(rf"\b(def|class) {symbol[1:-1]}\b", source), f"{target} has no {symbol}"


def test_the_algorithm_names_every_equation_once():
    """Bug guarded: an equation that is missing from the table, or that has two places."""
    section = README.split("## The algorithm")[1].split("\n## ")[0]
    assert re.findall(r"^\| (\d) \|", section, flags=re.M) == list("1234567")


def test_the_readme_is_a_front_page():
    """Bug guarded: a README that grows until nobody reads it, or a page of docs/ that nobody finds."""
    assert len(README.splitlines()) <= 200
    reached = {(ROOT / target).resolve() for _, target, _ in links(PAGES[0])}
    assert set(DOCS) <= reached, "a page of docs/ without a link from the README"
    for page in DOCS:
        assert "](../README.md" in page.read_text(encoding="utf-8"), f"{page.name} does not lead back"


def test_the_readme_gives_the_two_commands():
    """Bug guarded: a first command that does not install what it runs."""
    for command in ("python train.py", "python -m pytest"):
        assert f"pip install -r requirements.txt && {command}" in README


def test_the_options_of_a_judge_are_listed_with_their_defaults():
    """Bug guarded: a table of docs/judges.md that lacks an option, or names another default."""
    text = (ROOT / "docs" / "judges.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\w.]+) \|", text, flags=re.M))
    assert rows.keys() == {field.name for field in fields(JudgeOptions)}
    for field in fields(JudgeOptions):
        assert rows[field.name] == "none" if field.default is None else float(rows[field.name]) == field.default
