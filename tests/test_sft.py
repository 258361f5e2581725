"""PASR(+IFT): which rollouts are learnt from, token by token, and a model at the end that loads like any other."""

import json
import random
from dataclasses import asdict, replace

import pytest
import torch
from conftest import ROOT, flags, lines_of, make_model, random_prompts, run_here, write_questions, write_task_folder
from samples import character_tokenizer
from transformers import AutoModelForCausalLM

import train
from data.division import Corpus, load_split, parse_question
from data.prompts import MODES, PromptRenderer, Prompts, load_prompts, load_tokenizer
from model import load_model
from rl import sft
from rl.config import Config
from rl.optim import adamw
from rl.refinement_paths import collect_paths, find_fault
from rl.supervised import split_pairs, supervised_loss, train_supervised

GOOD = {
    "id": "7/2", "question": "7/2", "reference": "3", "mode": "refine", "tokens": 9, "finish_reason": "stop", "ids": None,
    "text": "<think>4:008><refine>3:006<</refine></think><answer>3</answer>", "format": 1.0, "accuracy": 1.0, "refine": 1.0,
    "reward": 3.0, "baseline": 0.25, "policy_version": 5,
}  # fmt: skip
SELECTION = {"zeta": 0.05, "min_accuracy": 0.9, "per_question": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"refine": -0.5}, None),  # as under another reward: Eq. 6 is taken anew
        ({"text": GOOD["text"].replace("</refine>", "")}, "malformed"),
        ({"text": "<think>3:006<</think><answer>3</answer>"}, "no refinement"),
        ({"finish_reason": "length"}, "cut off before its end"),
        ({"accuracy": None}, "no score"),
        ({"accuracy": 0.8}, "not right"),
        ({"baseline": None}, "no baseline to win against"),
        ({"baseline": 0.95, "refine": 1.0}, "refinement did not win"),  # paid by presence
        ({"text": "<think>3:006<<refine>3:006<</refine></think><answer>3</answer>"}, "refinement only repeats"),
    ],
)
def test_what_is_a_good_path(change, reason):
    """Bug guarded: refinements learnt from that were wrong, cut off, unrewarded by Eq. 6, or only written for the reward."""
    assert find_fault(GOOD | change, zeta=0.05, min_accuracy=0.9) == reason


def write_run(folder, rows_by_step: dict[int, list[dict]], **config):
    (folder / "rollouts").mkdir(parents=True)
    for step, rows in rows_by_step.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "rollouts" / f"step_{step:06d}.jsonl").write_text(text)
    (folder / "config.json").write_text(json.dumps({"config": asdict(Config(**config))}))
    return folder


def test_paths_are_chosen_and_everything_is_accounted_for(tmp_path):
    """Bug guarded: duplicates trained on twice, the worse of two paths kept, a response that is lost without a reason."""
    longer = GOOD["text"].replace("<refine>", "<refine>2:004<")
    other = {"id": "9/2", "question": "9/2", "reference": "4"}
    run = write_run(
        tmp_path / "run",
        {
            3: [GOOD, GOOD, GOOD | {"mode": "plain"}, GOOD | {"text": longer, "tokens": 12}, GOOD | {"accuracy": 0.0}],
            4: [GOOD, GOOD | other | {"text": longer, "accuracy": 0.95}, GOOD | other | {"accuracy": 0.9, "tokens": 2}],
        },
    )
    paths, dropped = collect_paths(run, **SELECTION)
    assert [(p["question"], p["response"], p["step"]) for p in paths] == [("7/2", GOOD["text"], 4), ("9/2", longer, 4)]
    assert paths[0]["run"] == "run"
    assert {name: n for name, n in dropped.items() if n} == {
        "plain answer": 1, "not right": 1, "duplicate": 2, "more than enough of its question": 2,
    }  # fmt: skip
    assert len(paths) + sum(dropped.values()) == 8
    assert len(collect_paths(run, **SELECTION | {"per_question": 0})[0]) == 4
    for folder, change, problem in (
        (run, {"zeta": 0.9}, "no good refinement path.*6 refinement did not win, 1 plain answer, 1 not right.*--min-accuracy"),
        (tmp_path, {}, "no rollouts in"),
    ):
        with pytest.raises(ValueError, match=problem):
            collect_paths(folder, **SELECTION | change)
    (run / "rollouts" / "step_000004.jsonl").write_text('{"mode": "refine"}\n')
    with pytest.raises(ValueError, match=r"step_000004\.jsonl, line 1: not a rollout"):
        collect_paths(run, **SELECTION)


def test_sampled_ids_are_trained_on():
    """Bug guarded: text tokenised again where the sampler wrote it otherwise; a response without its stop token."""
    tokenizer = character_tokenizer(pieces=("ab",))
    renderer = PromptRenderer(tokenizer, Prompts(refine="think", plain="say"))
    a, b, ab, stop, turn = tokenizer.convert_tokens_to_ids(["a", "b", "ab", "~", "|"])
    stops = {stop: ["config.json", "tokenizer"], turn: ["chat template"]}
    sampled = [[a, b, stop], [a, b, a], None, [a, stop], [a, b], [10**6, stop]]
    paths = [{"question": "q", "response": "ab", "ids": ids} for ids in sampled]
    more = [{"question": "q", "response": "é"}, {"question": "q", "response": "ab", "mode": "plain"}]
    pairs, how = sft.to_pairs([*paths, *more], renderer, stops)
    assert [response for _, response in pairs] == [[a, b, stop]] + 6 * [[ab, turn]]
    assert how == {"as sampled": 1, "tokenised again": 6, "not in this vocabulary": 1}
    assert [prompt for prompt, _ in pairs] == 6 * [renderer.ids("q", "refine")] + [renderer.ids("q", "plain")]
    assert sft.turn_end({stop: ["config.json", "tokenizer"], turn: ["config.json"]}) == stop
    assert sft.turn_end({turn: ["config.json"], stop: ["generation_config.json"]}) == turn


def test_micro_batches_change_nothing(family):
    """Bug guarded: a mean of means; a gradient lost or counted twice between micro-batches; a model of NaN as the result."""
    prompts, responses = random_prompts([3, 9, 5, 7, 4]), random_prompts([4, 1, 12, 6, 3], seed=2)
    pairs = list(zip(prompts, responses, strict=True))
    assert sorted(map(len, split_pairs(pairs, 30))) == [2, 3]
    assert sorted(pair for part in split_pairs(pairs, 1) for pair in part) == sorted(pairs)
    results = []

    def train_on(model, budget) -> list[float]:
        optimizers = [(adamw(model.parameters(), lr=1e-2, betas=(0.9, 0.99)), 1e-2)]
        settings = dict(steps=3, warmup_steps=1, schedule="cosine", max_grad_norm=1.0, title="test")
        return train_supervised(model, lambda step: pairs, optimizers, **settings, micro_batch_tokens=budget)

    for budget in (None, 30, 1):
        model = make_model(family)
        results.append((train_on(model, budget), model))
    assert results[0][0][-1] < results[0][0][0]
    for losses, model in results[1:]:
        assert losses == pytest.approx(results[0][0], abs=1e-9)
        for name, weight in results[0][1].named_parameters():
            torch.testing.assert_close(dict(model.named_parameters())[name], weight, atol=1e-8, rtol=0)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.inf
    with pytest.raises(RuntimeError, match="non-finite"):
        train_on(model, None)


def corpus_rollouts(tokenizer, count: int) -> list[dict]:
    """Rollouts as a policy that always mends one error would write them."""
    rng, rows = random.Random(0), []
    mend = replace(Corpus(), refine_wrong=1.0, refine_right=0.0, refine_again=0.0, step_towards=1.0)
    for example in load_split(held_out=False):
        text = mend.trace(rng, *parse_question(example.question), "refine")
        if "<refine>" in text and f"<answer>{example.reference}<" in text:
            ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
            head = {"id": example.id, "question": example.question, "reference": example.reference}
            rows.append(GOOD | head | {"text": text, "ids": ids, "tokens": len(ids)})
    return rows[:count]


def test_from_rollouts_to_a_model_that_loads_anywhere(tmp_path, family, capsys):
    """Bug guarded: an export without tokenizer or prompts, weights that were not trained, another run's zeta."""
    source = write_task_folder(tmp_path / "model", family)
    prompts = Prompts(**{**asdict(load_prompts(None, source)), "judge": "{question}{reference}{answer}"})
    prompts.save(source)
    tokenizer = load_tokenizer(source)
    run = write_run(tmp_path / "run", {1: corpus_rollouts(tokenizer, 40)}, model=str(source), zeta=0.3)
    out = tmp_path / "ift"
    command = ["--from-rollouts", str(run), "--out", str(out), "--lr", "3e-3", "--epochs", "6"]
    assert sft.main([*command, "--batch-size", "8", "--micro-batch-tokens", "100"]) == 0
    assert "40 as sampled" in capsys.readouterr().out
    record, manifest = (json.loads((out / name).read_text()) for name in ("sft.json", "manifest.json"))
    assert (record["steps"], len(record["losses"]), manifest["paths"], manifest["selection"]["zeta"]) == (30, 30, 40, 0.3)
    assert record["losses"][-1] < 0.5 * record["losses"][0]
    assert len(lines_of(out / "paths.jsonl")) == 40
    assert load_prompts(None, out) == prompts
    _, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report

    renderer = PromptRenderer(load_tokenizer(out), prompts)
    pairs = [(renderer.ids(path["question"], "refine"), path["ids"]) for path in lines_of(out / "paths.jsonl")]
    with torch.no_grad():
        before, after = (supervised_loss(load_model(folder), pairs).item() for folder in (source, out))
    assert after < 0.5 * before
    with pytest.raises(SystemExit):
        sft.main(command)
    assert "holds a model already" in capsys.readouterr().out


def test_a_real_run_keeps_ids_and_says_why_nothing_is_good(tmp_path, capsys, no_report):
    """Bug guarded: rollouts whose ids are not those that were sampled; an empty data set that is trained on."""
    write_task_folder(tmp_path / "model")
    write_questions(tmp_path / "data.jsonl", 7)
    assert train.main(flags(tmp_path, "run", "--steps", "2")) == 0
    run = tmp_path / "runs" / "run"
    tokenizer = load_tokenizer(tmp_path / "model")
    for row in lines_of(run / "rollouts" / "step_000002.jsonl"):
        if row["mode"] == "plain":
            assert row["ids"] is None
            continue
        assert len(row["ids"]) == row["tokens"]
        ids = row["ids"][:-1] if row["finish_reason"] == "stop" else row["ids"]
        assert tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) == row["text"]
    done = run_here("-m", "rl.sft", "--from-rollouts", str(run))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "16 malformed" in done.stdout
    assert not (run / "ift").exists()
    for folder in (ROOT, tmp_path):
        with pytest.raises(SystemExit):
            sft.main(["--from-rollouts", str(folder)])
        assert "config.json does not exist" in capsys.readouterr().out


def test_a_warm_start_on_written_responses(tmp_path, capsys):
    """Bug guarded: a row learnt after the other mode's prompt, prompts of the warm start that its model does not keep."""
    source = write_task_folder(tmp_path / "model")
    rows = [{"question": f"{n}/31", "response": "<think>3:93<</think><answer>3</answer>"} for n in range(100, 120)]
    rows += [{"question": f"{n}/31", "response": "7", "mode": "plain"} for n in range(100, 120)]
    data, prompts, out = tmp_path / "rows.jsonl", tmp_path / "prompts.json", tmp_path / "warm"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts.write_text('{"judge": "{question}{reference}{answer}"}')
    command = ["--data", str(data), "--model", str(source), "--prompts", str(prompts), "--lr", "1e-2", "--epochs", "8"]
    assert sft.main([*command, "--out", str(out)]) == 0
    assert "40 tokenised again" in capsys.readouterr().out
    assert load_prompts(None, out).judge == "{question}{reference}{answer}"
    model, renderer = load_model(out), PromptRenderer(load_tokenizer(out), Prompts())
    with torch.no_grad():
        best = {mode: int(model.logits(model(torch.tensor([renderer.ids("105/31", mode)])))[0, -1].argmax()) for mode in MODES}
    assert {mode: renderer.decode([token]) for mode, token in best.items()} == {"refine": "<think>", "plain": "7"}


@pytest.mark.parametrize(
    ("row", "more", "message"),
    [
        ({"question": "1/2", "response": " "}, ["--model", "m", "--out", "o"], "line 1: needs 'question' and 'response'"),
        ({"question": "1/2", "response": "3", "mode": "think"}, ["--model", "m", "--out", "o"], "one of refine, plain"),
        ({}, ["--model", "m"], "--data needs --model"),
        ({}, ["--model", "m", "--out", "o", "--from-rollouts", "r"], "--from-rollouts RUN, or --data FILE"),
    ],
)
def test_what_cannot_be_learnt_is_said(tmp_path, capsys, row, more, message):
    """Bug guarded: an empty response or a misspelt mode trained on, a flag that is ignored."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(SystemExit):
        sft.main(["--data", str(tmp_path / "rows.jsonl"), *more])
    assert message in " ".join(capsys.readouterr().out.split())
