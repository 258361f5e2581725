"""--eval-benchmarks and --keep-best: a fixed evaluation while training, held-out questions, the best checkpoint kept."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest import STEPS, flags, lines_of
from evaluation import write_rows

import train
from data.benchmarks import BENCHMARKS, BenchmarkItem
from data.division import load_split
from data.examples import Example, load_examples
from data.prompts import PromptRenderer, load_prompts, load_tokenizer
from rewards.judge import JudgeUnavailable
from rl.config import PRESETS, Config
from rl.demo import Evaluation
from rl.evaluation.training import BestStep, TrainingEvaluation
from rl.records import Completion
from rl.run.checkpoint import complete_checkpoints


def own(place, count: int = 5) -> str:
    rows = [{"question": e.question, "answer": e.reference} for e in load_split(held_out=True)[3 : 3 + count]]
    return f"own={write_rows(place / 'own.jsonl', rows)}:number"


def evaluated(place, run: str, *more: str) -> list[str]:
    return flags(place, run, "--eval-benchmarks", own(place), "--eval-every", "3", *more)


def make(place, longest_prompt: int = 1024, **changes) -> TrainingEvaluation:
    folder = place / "model"
    config = Config(**{**PRESETS["default"], "eval_benchmarks": own(place), "model": str(folder), **changes})
    return TrainingEvaluation(config, PromptRenderer(load_tokenizer(folder), load_prompts(None, folder)), longest_prompt)


def pretend(patch, values: dict[int, float]) -> None:
    """Replace the accuracy of the refine prompt by what `values` says of each evaluation in turn."""
    evaluate = TrainingEvaluation.run

    def run(self, sampler, file):
        metrics = evaluate(self, sampler, file)
        return metrics | {"eval/own/pasr/accuracy": values[int(file.stem.removeprefix("step_"))]}

    patch.setattr(TrainingEvaluation, "run", run)


@pytest.mark.usefixtures("reward_for_length", "no_report")
def test_evaluated_at_step_zero_in_between_and_at_the_end(place, capsys):
    """Bug guarded: no figure of the untrained model, an evaluation that changes the training, questions trained on."""
    assert train.main(evaluated(place, "with")) == 0
    shown = capsys.readouterr().out
    assert "held out: 4 of 7 training questions" in shown
    assert "step 0: accuracy with plain / refine prompt: own" in shown
    rows = lines_of(place / "runs" / "with" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert [row["step"] for row in rows if "eval/own/pasr/accuracy" in row] == [0, 3, 6, 8]
    wanted = {f"eval/{b}/{m}/{n}" for b in ("own", "average") for m in ("vanilla", "pasr") for n in ("accuracy", "tokens")}
    assert wanted | {"eval/own/pasr/wellformed"} <= set(rows[3])
    answers = lines_of(place / "runs" / "with" / "eval" / "step_000006.jsonl")
    assert len(answers) == 5 * 2
    assert {answer["method"] for answer in answers} == {"vanilla", "pasr"}

    held = {answer["question"] for answer in answers}
    rest = [e for e in load_examples(place / "data.jsonl") if e.question not in held]
    write_rows(place / "rest.jsonl", [{"question": e.question, "answer": e.reference, "id": e.id} for e in rest])
    assert train.main(flags(place, "without", "--data", str(place / "rest.jsonl"))) == 0
    one, two = (place / "runs" / run / "checkpoints" / "step_000008" / "model.safetensors" for run in ("with", "without"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.usefixtures("reward_for_length", "no_report")
def test_step_zero_is_evaluated_once(place, monkeypatch, capsys):
    """Bug guarded: a second line for step 0 after a resume from the checkpoint of step 0, where a judge was away at once."""
    with monkeypatch.context() as patch:
        patch.setattr("rl.rollout.Rollout.collect", Mock(side_effect=JudgeUnavailable("away")))
        with pytest.raises(SystemExit):
            train.main(evaluated(place, "zero"))
    assert "stopped after step 0: away" in capsys.readouterr().out
    assert train.main(evaluated(place, "zero", "--resume", "auto")) == 0
    assert [row["step"] for row in lines_of(place / "runs" / "zero" / "metrics.jsonl")] == list(range(STEPS + 1))


@pytest.mark.usefixtures("reward_for_length", "no_report")
def test_the_best_checkpoint_is_kept_and_survives_resuming(place, monkeypatch):
    """Bug guarded: the best checkpoint pruned, forgotten when resumed, or never saved because no save was due."""
    pretend(monkeypatch, {0: 0.1, 3: 0.9, 6: 0.4, 8: 0.5, 9: 0.95, 10: 0.7})
    best = ("--keep", "1", "--save-every", "4", "--keep-best", "eval/own/pasr/accuracy")
    assert train.main(evaluated(place, "best", *best)) == 0
    run = place / "runs" / "best"
    assert [folder.name for folder in complete_checkpoints(run)] == ["step_000003", "step_000008"]
    wanted = {"metric": "eval/own/pasr/accuracy", "step": 3, "value": 0.9, "checkpoint": "checkpoints/step_000003"}
    assert json.loads((run / "best.json").read_text()) == wanted
    assert json.loads((run / "summary.json").read_text())["best"]["step"] == 3
    more = evaluated(place, "best", *best, "--resume", "auto", "--resume-with-changes", "--steps", "10")
    assert train.main(more) == 0
    assert [folder.name for folder in complete_checkpoints(run)] == ["step_000009", "step_000010"], (
        "a new best replaces the old one"
    )
    assert json.loads((run / "best.json").read_text())["step"] == 9


def test_best_step():
    """Bug guarded: the last of equals (a better step thrown away), a null taken for a number, metrics of steps cut back."""
    best = BestStep("m", [{"step": 0, "m": 0.5}, {"step": 1}, {"step": 2, "m": None}, {"step": 3, "m": 0.5}])
    assert (best.step, best.value) == (0, 0.5)
    assert best.update(4, {"m": 0.6})
    assert not best.update(5, {"m": 0.6})
    assert best.step == 4
    assert not BestStep(None).update(1, {"m": 1.0})


def test_held_out_by_question(place):
    """Bug guarded: a question trained on for its white space, or because a benchmark asks it with an instruction behind it."""
    evaluation, gsm8k = make(place), BENCHMARKS["gsm8k"]
    question = evaluation.items[0][1].question
    evaluation.items.append((gsm8k, BenchmarkItem("gsm8k-0", f"How many?\n\n{gsm8k.instruction}", ("1",))))
    examples = [Example("a", f"  {question} ", "1"), Example("b", "How many?", "1"), Example("c", "How much?", "10")]
    assert [example.id for example in evaluation.hold_out(examples)] == ["c"]
    with pytest.raises(ValueError, match="every training question"):
        evaluation.hold_out(examples[:2])


class KeepsRequests:
    """A sampler of meaningless answers, as long as the place of their request in the call."""

    def generate(self, requests):
        self.requests = requests
        return [[Completion([5] * place, [0.0] * place, "stop")] for place, _ in enumerate(requests)]


def test_two_benchmarks_with_two_prompts(place):
    """Bug guarded: plain and refine prompt drawn with the same uniforms; an average that is a sum, or of one benchmark."""
    other = write_rows(place / "other.jsonl", [{"question": "12/5", "answer": 2}, {"question": "99/8", "answer": 12}])
    sampler, evaluation = KeepsRequests(), make(place, eval_benchmarks=f"{own(place)},other={other}:number")
    metrics = evaluation.metrics(evaluation.records(evaluation.answer(sampler)))
    assert len({request.seed_key for request in sampler.requests}) == 2 * (5 + 2)
    tokens = {name: metrics[f"eval/{name}/tokens"] for name in ("own/vanilla", "other/vanilla", "own/pasr", "other/pasr")}
    assert list(tokens.values()) == [2, 5.5, 9, 12.5]
    assert (metrics["eval/average/vanilla/tokens"], metrics["eval/average/pasr/tokens"]) == (3.75, 10.75)


def test_what_cannot_be_asked_is_said(place, monkeypatch, capsys):
    """Bug guarded: a question that fits with the plain prompt, and is longer than allowed with the refine prompt."""
    mixed = write_rows(place / "mixed.jsonl", [{"question": "12/5", "answer": 2}, {"question": "twelve?", "answer": 2}])
    assert len(make(place, eval_benchmarks=f"mixed={mixed}:number").items) == 1
    assert "1 of 2 questions of mixed" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--keep-best loss is no metric.*eval/own/pasr/accuracy"):
        make(place, keep_best="loss")
    monkeypatch.setattr(PromptRenderer, "ids", lambda self, question, mode: [1] * (9 if mode == "refine" else 5))
    assert make(place, longest_prompt=9).items
    with pytest.raises(ValueError, match="no question of own can be asked"):
        make(place, longest_prompt=8)


def test_an_evaluation_is_on_disk_whole_or_not_at_all(tmp_path, monkeypatch):
    """Bug guarded: half a file after a kill, which the resumed run would read, and fail, for good."""
    monkeypatch.setattr(Path, "replace", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Evaluation({"a": 1.0}, {}).save(tmp_path / "eval" / "step_000000.json")
    assert not list(tmp_path.rglob("*.json"))
