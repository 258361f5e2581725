"""Additions in words: what is held out stays held out, and the written traces are what they claim to be."""

import json
import re

from conftest import lines_of

from data.examples import load_examples
from data.prompts import load_prompts
from data.word_problems import RANGES, main
from rewards.accuracy import score_by_rule
from rewards.format import answer_body, format_reward, parse_response


def numbers(row: dict) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", row["question"])))


def test_files_hold_what_the_recipe_needs(tmp_path, capsys):
    """Bug guarded: a pair of numbers both trained on and held out, wrong references, traces that teach a malformed response, or
    that refine on hard questions alone and so give away where a refinement pays."""
    assert main([str(tmp_path), "--train", "200", "--held-out", "30", "--traces", "300"]) == 0
    rows = {name: lines_of(tmp_path / f"{name}.jsonl") for name in ("train", "traces", *RANGES)}
    assert "traces.jsonl: 300 rows" in capsys.readouterr().out

    # questions and references
    seen = {numbers(row) for row in rows["train"] + rows["traces"]}
    for kind, (lowest, highest) in RANGES.items():
        assert not seen & {numbers(row) for row in rows[kind]}
        assert all(lowest <= number <= highest for row in rows[kind] for number in numbers(row))
    assert all(sum(numbers(row)) == int(row["answer"]) for name in ("train", *RANGES) for row in rows[name])
    assert len(load_examples(tmp_path / "train.jsonl")) == len({row["question"] for row in rows["train"]}) == 200

    # traces
    refine = [row for row in rows["traces"] if row["mode"] == "refine"]
    assert len(refine) == 200
    assert all(format_reward(row["response"]) == 1.0 for row in refine)
    plain = [row for row in rows["traces"] if row["mode"] == "plain"]
    assert all(score_by_rule(row["response"], str(sum(numbers(row)))) == 1.0 for row in plain)
    refined = [row for row in refine if parse_response(row["response"]).refinements]
    assert all(score_by_rule(answer_body(row["response"]), str(sum(numbers(row)))) == 1.0 for row in refined)
    shares = [[row in refined for row in refine if (max(numbers(row)) < 10) is easy] for easy in (True, False)]
    assert all(0.4 < sum(share) / len(share) < 0.85 for share in shares)
    assert (
        json.loads((tmp_path / "prompts.json").read_text())["refine"]
        == load_prompts(tmp_path / "prompts.json", tmp_path).refine
    )
