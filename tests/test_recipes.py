"""The README's recipes, followed to the letter in a copy of the code, and trained with."""

import ast
import shutil
import subprocess

import pytest
from conftest import ROOT, lines_of, run_command, write_questions, write_task_folder

MARGIN = '''def margin_reward(accuracy: float, baseline: float, *, refined: bool) -> float:
    """r_refine = r_acc - r̄ of a refined response."""
    return accuracy - baseline if refined else 0.0
'''
JUDGE = """class LengthJudge:
    last_failure, may_recover = "", False

    def submit(self, item):
        future = Future()
        future.set_result(min(1.0, len(item.answer) / 20))
        return future

    def finish(self):
        pass

    def take_stats(self):
        return {"judge/calls": 0, "judge/failed": 0}

    def render(self, item):
        return ""

    def close(self):
        pass
"""
EDITS = {  # file -> (what is there, what a reader makes of it)
    "rl/config.py": [
        ('Literal["compare", "single", "presence", "none"]', 'Literal["compare", "single", "presence", "none", "margin"]'),
        ('in ("compare", "single")', 'in ("compare", "single", "margin")'),
        ('Literal["group", "batch", "none"]', 'Literal["group", "batch", "none", "range"]'),
        ('Literal["seq", "token", "const"]', 'Literal["seq", "token", "const", "sum"]'),
    ],
    "rewards/refine.py": [
        ("    assert baseline is not None", "    if mode == 'margin':\n"
         "        return margin_reward(accuracy, baseline, refined=refined)\n    assert baseline is not None"),
        ("def refinement_reward", MARGIN + "\n\ndef refinement_reward"),
    ],
    "rl/rollout.py": [
        ("total_reward(sample.format, sample.accuracy, sample.refine)",
         "total_reward(sample.format, sample.accuracy, sample.refine) - 0.01 * len(sample.completion.ids)"),
    ],
    "rl/advantages.py": [('    elif norm == "batch":', '    elif norm == "range":\n        scale = 2.0\n'
                          '    elif norm == "batch":')],
    "rl/loss.py": [('not in ("seq", "token", "const")', 'not in ("seq", "token", "const", "sum")')],
    "rl/batch.py": [('    if config.aggregation == "const":', '    if config.aggregation == "sum":\n        return 1\n'
                     '    if config.aggregation == "const":')],
    "rewards/judge.py": [
        ('NAMED_JUDGES = {"rules": RuleScorer}', JUDGE + '\n\nNAMED_JUDGES = {"rules": RuleScorer, "length": LengthJudge}'),
    ],
}  # fmt: skip


README = (ROOT / "README.md").read_text(encoding="utf-8")


def edited(name: str) -> str:
    """A file as a reader of the recipes leaves it."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for old, new in EDITS[name]:
        assert text.count(old) == 1, (name, old)
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("name", EDITS)
def test_the_recipes_name_the_file_and_what_is_in_it(name):
    """Bug guarded: a recipe for code that has moved."""
    assert f"({name})" in README.split("## Change it")[1].split("\n## ")[0]
    ast.parse(edited(name))
    assert MARGIN in README, "this test follows the README"


@pytest.mark.slow
def test_a_reward_an_advantage_a_loss_and_a_judge_of_ones_own(tmp_path):
    """Bug guarded: a recipe that names half of the places where something has to be added."""
    code = tmp_path / "code"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in (n for n in listed.stdout.split() if not n.startswith("tests/")):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, code / name)
    for name in EDITS:
        (code / name).write_text(edited(name), encoding="utf-8")
    folder, data = write_task_folder(tmp_path / "model"), write_questions(tmp_path / "data.jsonl")
    done = run_command(
        str(code / "train.py"), "--model", str(folder), "--data", str(data), "--judge", "length", "--judge-sees", "response",
        "--refine-reward", "margin", "--adv-norm", "range", "--aggregation", "sum", "--plain-policy", "reference",
        "--steps", "2", "--questions-per-step", "2", "--max-new-tokens", "12", "--wandb", "off",
        "--runs-dir", str(tmp_path / "runs"), "--run", "own", cwd=code,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = lines_of(tmp_path / "runs" / "own" / "metrics.jsonl")
    assert all(0.0 < row["rewards/accuracy/mean"] < 1.0 and row["groups/trained"] for row in rows)
    for row in rows:
        parts = sum(row[f"rewards/{part}/mean"] for part in ("format", "accuracy", "refine"))
        assert row["reward"] == pytest.approx(parts - 0.01 * row["completions/mean_length"])
