"""Rollouts: prompts, sampler and rewards together, with judges that fail."""

import json
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from conftest import make_model, write_task_folder
from samples import GOOD, rollout_config, sample

import rl.rollout
from data.division import build_tokenizer, load_split
from data.prompts import PromptRenderer, Prompts, load_tokenizer
from model import load_model
from rewards.judge import RuleScorer
from rl.advantages import select_samples
from rl.distributed import merge_stats
from rl.judging.cache import BaselineCache, ReferenceBaselines
from rl.judging.waiting import PendingScores
from rl.metrics import rollout_metrics
from rl.records import Group
from rl.rollout import Rollout, assign_rewards, judged_text
from rl.sampler import Sampler
from rl.weights.policy import make_sampler_model, sync_weights

QUESTIONS = load_split(held_out=True)[:3]


class ScriptedScorer:
    """A judge whose answers are written in advance; it remembers what it was asked, and gives its scores late."""

    def __init__(self, scores) -> None:
        self.scores, self.asked, self.futures = iter(scores), [], []

    def submit(self, item) -> Future:
        self.asked.append(item)
        self.futures.append(Future())
        return self.futures[-1]

    def finish(self) -> None:
        for future in self.futures:
            future.set_result(next(self.scores))
        self.futures = []

    def take_stats(self) -> dict[str, float]:
        return {"judge/calls": len(self.asked)}


def make_rollout(settings, renderer, sampler, scorer=None, *, max_failures: float = 0.05) -> Rollout:
    return Rollout(settings, renderer, sampler, PendingScores(scorer or RuleScorer(), max_failures, patience=0.0))


@pytest.fixture
def parts(tmp_path):
    folder = write_task_folder(tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    renderer = PromptRenderer(tokenizer, Prompts())
    sampler = Sampler(load_model(folder), stop_ids=[tokenizer.eos_token_id], max_slots=64, max_len=64)
    return renderer, sampler


def test_a_rollout_is_a_pure_function_of_its_step(parts):
    """Bug guarded: samples that depend on the run so far, so that a resumed run differs."""
    renderer, sampler = parts
    texts = []
    for step in (4, 4, 5):
        groups = make_rollout(rollout_config(), renderer, sampler).collect(QUESTIONS, step)
        texts.append([s.text for g in groups for s in g.refine_samples + g.plain_samples])
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == 3 * (4 + 3)


@pytest.mark.parametrize(
    ("mode", "num_plain", "plain"),
    [("compare", 3, 3), ("compare", None, 8), ("single", 3, 1), ("presence", None, 0), ("none", 3, 3)],
)
def test_plain_samples_are_drawn_only_where_needed(parts, mode, num_plain, plain):
    """Bug guarded: half of the sampling spent on answers that nobody reads."""
    renderer, sampler = parts
    settings = rollout_config(refine_reward=mode, num_plain=num_plain)
    groups = make_rollout(settings, renderer, sampler).collect(QUESTIONS, 0)
    assert all(len(group.plain_samples) == plain for group in groups)
    assign_rewards(groups, settings)
    assert all(not group.dropped and s.reward is not None for group in groups for s in group.refine_samples)


def test_failed_scores_are_excluded_everywhere():
    """Bug guarded: a failure counted as 0 in r̄, in the reward, in the advantage or in the metrics."""
    group = Group("id", "q", "8", baseline=0.5)
    group.refine_samples = [sample(GOOD, accuracy=a) for a in (1.0, None, 0.0, 1.0)]
    for s in group.refine_samples:
        s.format, s.refinements = 1.0, 1
    assign_rewards([group], rollout_config())
    assert [s.reward for s in group.refine_samples] == [3.0, None, 0.0, 3.0]
    chosen = select_samples([group], rollout_config())
    assert [s.accuracy for s in chosen] == [1.0, 0.0, 1.0]
    assert group.refine_samples[1].advantage == 0
    metrics = rollout_metrics([group], rollout_config())
    assert metrics["reward"] == pytest.approx(2.0)
    assert metrics["pasr/refined_accuracy"] == pytest.approx(2 / 3)
    assert metrics["pasr/win"] == pytest.approx(2 / 3)


def test_without_a_baseline_the_question_is_dropped():
    """Bug guarded: r̄ = 0 when every plain score failed, by which every refinement wins."""
    for mode, dropped in (("compare", "no baseline"), ("single", "no baseline"), ("presence", "")):
        group = Group("id", "q", "8", refine_samples=[sample(GOOD, accuracy=float(i % 2)) for i in range(4)])
        settings = rollout_config(refine_reward=mode)
        assign_rewards([group], settings)
        assert bool(select_samples([group], settings)) == (dropped == "")
        assert group.dropped == dropped


def test_a_judge_that_fails_now_and_then(parts):
    """Bug guarded: scores given to the wrong sample once one of them is missing, or when they come in another order."""
    renderer, sampler = parts
    scorer = ScriptedScorer([None, 1.0, 0.0] * 100)
    rollout = make_rollout(rollout_config(judge_sees="response"), renderer, sampler, scorer, max_failures=1.0)
    groups = rollout.collect(QUESTIONS, 0)
    drawn = [(g, s) for g in groups for s in g.refine_samples + g.plain_samples]
    assert len(drawn) == 3 * (4 + 3)
    expected = {}
    for item, score in zip(scorer.asked, [None, 1.0, 0.0] * 100, strict=False):
        expected.setdefault((item.question, item.answer), []).append(score)
    for group, s in drawn:
        text = judged_text(s, "response")
        assert s.accuracy in expected[group.question, text] if text else s.accuracy == 0.0
    assert rollout.judge_stats["judge/calls"] == len(scorer.asked) == sum(bool(judged_text(s, "response")) for _, s in drawn)
    assert rollout.judge_stats["judge/empty"] == len(drawn) - len(scorer.asked)


def test_empty_answers_score_zero_without_a_call(parts):
    """Bug guarded: a judge asked about nothing, which some call right."""
    renderer, sampler = parts
    scorer = ScriptedScorer([1.0] * 100)
    groups = make_rollout(rollout_config(plain_policy="current"), renderer, sampler, scorer).collect(QUESTIONS, 0)
    samples = [s for g in groups for s in g.refine_samples]
    empty = [s for s in samples if not judged_text(s, "answer")]
    assert empty
    assert all(s.accuracy == 0.0 for s in empty)
    assert all(item.answer for item in scorer.asked)


def test_what_is_judged():
    """Bug guarded: the judge paid for the thinking, or for Qwen3's native thinking before a plain answer."""
    assert judged_text(sample(GOOD), "answer") == "8"
    assert judged_text(sample(GOOD), "response") == GOOD
    assert judged_text(sample("<think>9</think>8", "plain"), "answer") == "8"


def test_reference_baselines_are_sampled_once_and_kept(parts, tmp_path):
    """Bug guarded: a baseline that drifts with the policy, or is paid for again in every epoch and run."""
    renderer, reference = parts
    model = make_model("qwen3", torch.float32, 5, vocab_size=len(build_tokenizer(Prompts())), num_hidden_layers=2)
    policy = Sampler(model, stop_ids=[1], max_slots=64, max_len=64)
    settings = rollout_config(plain_policy="reference")
    calls, stats = [], {}

    def collect(step, folder, questions=QUESTIONS, scorer=None):
        generate = reference.generate
        spy = Sampler(reference.model, stop_ids=[1], max_slots=64, max_len=64)
        spy.generate = lambda requests, on_finish: calls.append(len(requests)) or generate(requests, on_finish=on_finish)
        rollout = make_rollout(settings, renderer, policy, scorer)
        rollout.fill_baselines = ReferenceBaselines(BaselineCache(folder, {"n": 3}), spy, nullcontext())
        found = [group.baseline for group in rollout.collect(questions, step)]
        stats.update(rollout.judge_stats)
        return found

    first = collect(0, tmp_path / "a")
    assert calls == [3]
    assert collect(1, tmp_path / "a") == first
    assert calls == [3]
    renamed = [replace(question, id=f"another {question.id}") for question in QUESTIONS]
    collect(7, tmp_path / "b", renamed)
    kept = [next((tmp_path / name).glob("*.jsonl")).read_text() for name in "ab"]
    assert kept[0] == kept[1], "a function of question and reference alone"
    assert len({text for line in kept[0].splitlines() for text in json.loads(line)["texts"]}) > 3, "texts that differ"
    collect(0, tmp_path / "c", QUESTIONS[:1] * 2, ScriptedScorer([1.0] * 100))
    assert stats["baseline/sampled"] == calls[-1] == 1, "a question that comes twice is sampled once"
    assert stats["judge/calls"] == 0 < stats["baseline/judge_calls"], "all of the policy's answers are empty"
    assert BaselineCache(tmp_path / "a", {"n": 4}).get("", "") is None
    assert len(BaselineCache(tmp_path / "a", {"n": 4})) == 0, "another setting has other baselines"
    with next((tmp_path / "a").glob("*.jsonl")).open("a") as file:
        file.write('{"key": "cut o')
    assert collect(2, tmp_path / "a") == first
    cache = BaselineCache(tmp_path / "a", {"n": 3})
    cache.put("new", "1", [("a", 1.0)])
    cache.put("failed", "1", [("a", None), ("b", 1.0)])
    again = BaselineCache(tmp_path / "a", {"n": 3})
    assert again.get("new", "1") == [1.0], "written behind a line that was cut off"
    assert cache.get("failed", "1") is again.get("failed", "1") is None, "to be tried again"


def test_the_slowest_rank_is_waited_for(parts, monkeypatch):
    """Bug guarded: the wait of a rank that had no judging to do; latencies added up over ranks, or calls not."""
    stats = [{"judge/latency_p95": 1.0, "judge/calls": 2}, {"judge/latency_p95": 3.0, "judge/calls": 4}]
    assert merge_stats(stats) == {"judge/latency_p95": 3.0, "judge/calls": 6}
    monkeypatch.setattr(rl.rollout, "gather", lambda here: [(9.0, here[1]), here])
    rollout = make_rollout(rollout_config(), *parts)
    rollout.collect(QUESTIONS[:1], 0)
    assert rollout.metrics["time/judge_wait"] == 9.0


def test_seed_and_place_decide_the_samples(parts):
    """Bug guarded: every seed the same run; two visits to a question within a step that draw the same samples."""
    renderer, sampler = parts
    drawn = {}
    for seed in (0, 1):
        rollout = make_rollout(rollout_config(seed=seed), renderer, sampler)
        groups = rollout.collect([QUESTIONS[0], QUESTIONS[0]], 0)
        drawn[seed] = [[s.completion.ids for s in g.refine_samples] for g in groups]
    assert drawn[0] != drawn[1]
    assert drawn[0][0] != drawn[0][1]


def test_weights_reach_the_sampler():
    """Bug guarded: a bfloat16 copy that is never refreshed, or replaced by new tensors."""
    policy = make_model("qwen3", torch.float32)
    assert make_sampler_model(policy) is policy
    policy.compute_dtype = torch.bfloat16
    replica = make_sampler_model(policy)
    addresses = [p.data_ptr() for p in replica.parameters()]
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(1.0)
    sync_weights(policy, replica)
    assert [p.data_ptr() for p in replica.parameters()] == addresses
    for source, target in zip(policy.parameters(), replica.parameters(), strict=True):
        assert torch.equal(source.to(torch.bfloat16), target)
