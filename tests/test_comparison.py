"""Runs side by side: which runs are one arm, and what is shown of them."""

import csv
import io
import json

import pytest
from test_report import response

from rl.report.__main__ import main
from rl.report.comparison import comparison_table, default_metrics, ends, group_runs, over_seeds, steps_as_csv


def write_run(path, *, seed=0, reward="compare", accuracy=(0.5, 0.75), refined=(0.4, 0.0)):
    """A run folder with two evaluations of one benchmark and a step between them."""
    (path / "rollouts").mkdir(parents=True)
    config = {"model": "m", "seed": seed, "run": path.name, "refine_reward": reward, "steps": 2}
    (path / "config.json").write_text(json.dumps({"config": config}))
    rows = [
        {"step": step, "reward": 1.0 + step, "eval/sums/pasr/accuracy": a, "eval/sums/pasr/refined": r}
        for step, a, r in zip((0, 2), accuracy, refined, strict=True)
    ]
    rows.insert(1, {"step": 1, "reward": 9.5})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "rollouts" / "step_000001.jsonl").write_text(json.dumps(response(reward=-0.5)) + "\n")
    return str(path)


@pytest.fixture
def folders(tmp_path):
    return [
        write_run(tmp_path / "a0"),
        write_run(tmp_path / "a1", seed=1, accuracy=(0.5, 0.85)),
        write_run(tmp_path / "none", reward="none", accuracy=(0.5, 0.6)),
    ]


def test_runs_that_differ_in_seed_alone_are_one_arm(folders):
    """Bug guarded: an arm for every seed, or runs of different rewards averaged."""
    arms = group_runs(folders)
    assert {label: len(runs) for label, runs in arms.items()} == {"--refine-reward compare": 2, "--refine-reward none": 1}
    assert list(group_runs(folders[:2])) == ["all runs"]


def test_table_shows_before_and_mean_and_range_after(folders):
    """Bug guarded: the last step's training metric in place of the evaluation, a mean over arms, a range that is one seed's."""
    arms = group_runs(folders)
    assert default_metrics(arms) == ["eval/sums/pasr/accuracy", "eval/sums/pasr/refined"]
    table = comparison_table(arms, ["eval/sums/pasr/accuracy", "reward", "absent"], width=500)
    head, _, accuracy, reward, absent = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert head == ["metric", "before", "--refine-reward compare, 2 seeds", "--refine-reward none, 1 seed"]
    assert accuracy == ["eval/sums/pasr/accuracy", "0.50 (0.50-0.50)", "0.80 (0.75-0.85)", "0.60"]
    assert reward[1:] == ["1.00 (1.00-1.00)", "3.00 (3.00-3.00)", "3.00"]
    assert set(absent[1:]) == {"-"}


def test_steps_come_as_csv(folders):
    """Bug guarded: steps of several runs that cannot be told apart."""
    rows = list(csv.DictReader(io.StringIO(steps_as_csv(group_runs(folders)))))
    assert [(row["run"], row["seed"], row["step"]) for row in rows][:4] == [("a0", "0", s) for s in "012"] + [("a1", "1", "0")]
    assert rows[2]["eval/sums/pasr/accuracy"] == "0.75"
    assert rows[1]["eval/sums/pasr/accuracy"] == ""
    assert rows[1]["reward"] == "9.5"


def test_small_things(folders):
    """Bug guarded: a crash where a metric was never measured."""
    run = group_runs(folders)["--refine-reward none"][0]
    assert ends(run, "reward") == (1.0, 3.0)
    assert over_seeds([float("nan")]) == "-"
    assert over_seeds([12.34]) == "12.3"


def test_command_writes_a_folder_of_results(folders, tmp_path, capsys):
    """Bug guarded: a table that only the terminal sees; a folder that is no run taken silently."""
    out = tmp_path / "results"
    assert main(["--table", *folders, "--out", str(out)]) == 0
    assert "--refine-reward compare, 2 seeds" in capsys.readouterr().out
    page = (out / "README.md").read_text()
    assert "0.80 (0.75-0.85)" in page
    assert "reward -0.5" in page
    assert (out / "curves.svg").read_text().startswith("<?xml")
    assert (out / "metrics.csv").exists()
    assert main(["--table", str(tmp_path)]) == 2
    assert "no run folder" in capsys.readouterr().err
