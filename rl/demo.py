"""The demo behind `python train.py`: the tiny model that RL starts from, its evaluation, and what RL changed, in words.

The model is a Hugging Face folder with its own tokenizer and chat template, and everything else treats it like any other.
"""

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from data.division import END, Corpus, build_tokenizer, load_split, read_trials
from data.examples import Example
from data.prompts import PromptRenderer, Prompts
from model import ModelConfig, Transformer, save_model
from rewards.accuracy import score_by_rule
from rewards.format import parse_response
from rl.config import Config
from rl.distributed import gather_split, split_over_ranks
from rl.files import write_whole
from rl.metrics import is_plain_wellformed, mean
from rl.optim import Muon, adamw, matrices_and_rest
from rl.records import Group, Request, Sample
from rl.rollout import judged_text
from rl.sampler import Sampler
from rl.supervised import Pair, train_supervised

MIN_CHECK_ACCURACY, MIN_REFINE_CONTRAST = 0.92, 2.0  # of the model that RL starts from
MIN_REFINE_RATE, MIN_WELLFORMED, MAX_PLAIN_LOSS = 0.05, 0.9, 0.1  # at the end


# the recipe of the supervised warm start, which takes minutes instead of an hour because the matrices use Muon
BATCH_SIZE, MATRIX_LR, OTHER_LR = 64, 0.012, 8e-3
SCHEDULE = {"schedule": "linear", "warmup_steps": 30, "decay_share": 0.97, "max_grad_norm": 1.0}
MODEL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
    "head_dim": 16, "rope_theta": 10_000.0, "tie_word_embeddings": True, "max_position_embeddings": 256,
}  # fmt: skip


def warm_started_model(config: Config) -> Path:
    """Return the folder of the warm-started model, made on first use and shared by all runs of the same recipe."""
    # the recipe names the folder; the system prompts belong to it because they are tokens of the model's vocabulary
    prompts = Prompts.load(config.prompts) if config.prompts else Prompts()
    texts, setting = [prompts.refine, prompts.plain], {"steps": config.sft_steps, "seed": config.sft_seed}
    identity = json.dumps([BATCH_SIZE, MATRIX_LR, OTHER_LR, SCHEDULE, MODEL, asdict(Corpus()), texts, setting], sort_keys=True)
    digest = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
    folder = Path(config.runs_dir) / "warm_start" / digest
    if folder.is_dir():
        print(f"warm start: {folder} (made before by the same recipe)")
        return folder

    # train in a temporary folder, which gets its name when it is complete
    folder.parent.mkdir(parents=True, exist_ok=True)
    print("warm start: a tiny model learns from written traces, in which one error in three is refined")
    part = Path(tempfile.mkdtemp(prefix=f".{digest}-", dir=folder.parent))
    try:
        _train(prompts, config, part)
        if not folder.is_dir():  # another process may have made the same one meanwhile
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _train(prompts: Prompts, config: Config, folder: Path) -> None:
    """Train a new model on the corpus, and save it with tokenizer and prompts."""
    # the untrained model
    tokenizer = build_tokenizer(prompts)
    model = Transformer(ModelConfig("qwen3", vocab_size=len(tokenizer), **MODEL))
    model.init_weights(torch.Generator().manual_seed(config.sft_seed))

    # batches of written traces
    renderer, questions = PromptRenderer(tokenizer, prompts), load_split(held_out=False)

    def batch_at(step: int) -> list[Pair]:
        rows = Corpus().batch(questions, BATCH_SIZE, config.sft_seed, step)
        responses = tokenizer([text + END for _, _, text in rows], add_special_tokens=False)["input_ids"]
        return [(renderer.ids(e.question, mode), ids) for (e, mode, _), ids in zip(rows, responses, strict=True)]

    # train and save
    matrices, rest = matrices_and_rest(model)
    muon, adam = Muon(matrices, lr=MATRIX_LR), adamw(rest, lr=OTHER_LR, betas=(0.9, 0.95))
    optimizers = [(muon, MATRIX_LR), (adam, OTHER_LR)]
    train_supervised(model, batch_at, optimizers, steps=config.sft_steps, title="warm start", **SCHEDULE)
    save_model(model, tokenizer, folder)
    prompts.save(folder)


def mean_or_zero(values: list) -> float:
    """Return the mean, and 0 for no values: a share of no answers."""
    return sum(values) / len(values) if values else 0.0


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one evaluation, and the answers behind them by "decoding/mode", each {question, text, accuracy, tokens}."""

    metrics: dict[str, float]
    answers: dict[str, list[dict]]

    def save(self, file: Path) -> None:
        file.parent.mkdir(exist_ok=True)
        write_whole(file, json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, file: Path) -> "Evaluation":
        return cls(**json.loads(file.read_text(encoding="utf-8")))


def evaluate_division(sampler: Sampler, renderer: PromptRenderer, examples: list[Example], max_new_tokens: int) -> Evaluation:
    """Answer every question with both prompts, greedily and at T = 1. Several ranks share the questions."""
    metrics: dict[str, float] = {}
    answers: dict[str, list[dict]] = {}
    for decoding, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        samples: dict[str, list[Sample]] = {}
        for mode in ("plain", "refine"):
            # one response to each question
            requests = [
                Request(renderer.ids(e.question, mode), 1, max_new_tokens, temperature, ("evaluation", mode, e.id))
                for e in examples
            ]
            drawn = gather_split([completions[0] for completions in sampler.generate(split_over_ranks(requests))])

            # scored, and kept for the examples at the end of a run
            samples[mode], answers[f"{decoding}/{mode}"] = [], []
            for example, request, completion in zip(examples, requests, drawn, strict=True):
                sample = Sample(request.prompt_ids, completion, renderer.decode(completion.text_ids), mode)
                sample.accuracy = score_by_rule(judged_text(sample, "answer"), example.reference)
                answer = {"question": example.question, "text": sample.text, "accuracy": sample.accuracy}
                samples[mode].append(sample)
                answers[f"{decoding}/{mode}"].append(answer | {"tokens": len(completion.ids)})
        metrics |= answer_metrics(decoding, samples["plain"], samples["refine"])
        metrics |= behaviour(decoding, examples, samples["refine"])
    return Evaluation(metrics, answers)


def answer_metrics(decoding: str, plain: list[Sample], refine: list[Sample]) -> dict[str, float]:
    """Return accuracy, form and length of the answers to both prompts."""
    parsed = [parse_response(sample.text) for sample in refine]
    values = {
        "plain_accuracy": [sample.accuracy for sample in plain],
        "refined_accuracy": [sample.accuracy for sample in refine],
        "refine_rate": [response is not None and response.refinements != () for response in parsed],
        "wellformed": [response is not None for response in parsed],
        "tokens": [len(sample.completion.ids) for sample in refine],
        "plain_tokens": [len(sample.completion.ids) for sample in plain],
        "plain_wellformed": [is_plain_wellformed(sample.text) for sample in plain],
        "plain_leak": ["<refine>" in sample.text for sample in plain],
    }
    return {f"{decoding}/{name}": mean_or_zero(found) for name, found in values.items()}


def behaviour(decoding: str, examples: list[Example], samples: list[Sample]) -> dict[str, float]:
    """Return when the model refines, and to what effect.

    p_refine_wrong, p_refine_right: P(a refinement follows | the trial just written is wrong / right), over all trials.
    p_refine_too_big, p_refine_fits: the same by what the trial's product says, for the check before RL.
    fix, harm, useless share: share of the refining answers that went from a wrong first trial to a right answer, from right
        to wrong, or neither.
    check_accuracy: share of trials whose comparison sign is right.
    """
    # trials, and (first trial is right, answer is right) of the answers that refine
    responses = [read_trials(e.question, s.text) for e, s in zip(examples, samples, strict=True)]
    trials = [trial for response in responses for trial in response]
    refined = [
        (response[0].is_right, sample.accuracy == 1.0)
        for response, sample in zip(responses, samples, strict=True)
        if any(trial.refined for trial in response)
    ]

    # their rates
    values = {
        "p_refine_wrong": [trial.refined for trial in trials if not trial.is_right],
        "p_refine_right": [trial.refined for trial in trials if trial.is_right],
        "p_refine_too_big": [trial.refined for trial in trials if trial.too_big],
        "p_refine_fits": [trial.refined for trial in trials if not trial.too_big],
        "fix_share": [not before and after for before, after in refined],
        "harm_share": [before and not after for before, after in refined],
        "useless_share": [before == after for before, after in refined],
        "check_accuracy": [trial.check_is_right for trial in trials],
    }
    return {f"{decoding}/{name}": mean_or_zero(found) for name, found in values.items()}


def trial_metrics(groups: list[Group]) -> dict[str, float]:
    """Return p_refine_wrong and p_refine_right of a rollout batch of the embedded task."""
    trials = [t for group in groups for sample in group.refine_samples for t in read_trials(group.question, sample.text)]
    return {
        "pasr/p_refine_wrong": mean(trial.refined for trial in trials if not trial.is_right),
        "pasr/p_refine_right": mean(trial.refined for trial in trials if trial.is_right),
    }


def warm_start_problems(before: dict[str, float]) -> list[str]:
    """Return the reasons for which refinement would probably die out in RL instead of being learnt."""
    signs, too_big, fits = (before[f"sampled/{name}"] for name in ("check_accuracy", "p_refine_too_big", "p_refine_fits"))
    problems = [
        (signs < MIN_CHECK_ACCURACY,
         f"only {signs:.0%} of its comparison signs are right ({MIN_CHECK_ACCURACY:.0%} are needed): it cannot see its errors. "
         "Warm up longer (--sft-steps)"),
        (too_big < MIN_REFINE_CONTRAST * fits,
         f"it refines after a product that is too big with {too_big:.2f}, after one that fits with {fits:.2f}: refining does "
         "not pay, and may be unlearnt within 30 steps"),
    ]  # fmt: skip
    return [text for is_so, text in problems if is_so]


def end_problems(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Return the signs of the two ways in which the demo can fail: refinement collapses, or plain answers get worse."""
    refining, plain = after["sampled/refine_rate"], after["sampled/plain_accuracy"]
    wellformed, leak = after["sampled/plain_wellformed"], after["sampled/plain_leak"]
    problems = [
        (refining < MIN_REFINE_RATE, f"refinement collapsed: only {refining:.0%} of the sampled answers refine"),
        (wellformed < MIN_WELLFORMED,
         f"the plain mode drifted: {wellformed:.0%} of its answers are well formed, {leak:.0%} refine (accuracy {plain:.2f})"),
        (plain < before["sampled/plain_accuracy"] - MAX_PLAIN_LOSS,
         f"plain accuracy fell to {plain:.2f}: was the baseline sandbagged?"),
    ]  # fmt: skip
    return [text for is_so, text in problems if is_so]


ROWS = (
    ("accuracy, plain prompt", "greedy/plain_accuracy"),
    ("accuracy, refine prompt", "greedy/refined_accuracy"),
    ("answers that refine", "greedy/refine_rate"),
    ("tokens per answer", "greedy/tokens"),
    ("accuracy, plain prompt, T = 1", "sampled/plain_accuracy"),
    ("accuracy, refine prompt, T = 1", "sampled/refined_accuracy"),
    ("P(refine | trial is wrong), T = 1", "sampled/p_refine_wrong"),
    ("P(refine | trial is right), T = 1", "sampled/p_refine_right"),
    ("of refined answers: fixed, T = 1", "sampled/fix_share"),
    ("of refined answers: harmed, T = 1", "sampled/harm_share"),
    ("of refined answers: no change, T = 1", "sampled/useless_share"),
    ("tokens per answer, T = 1", "sampled/tokens"),
)


def result_table(before: dict[str, float], after: dict[str, float]) -> str:
    """Return the table of changes, for a reader who has seen none of the names."""
    lines = [f"{'held-out questions, greedy or T = 1':36s}{'before':>9s}{'after':>9s}", "-" * 54]
    for label, name in ROWS:
        digits = 1 if name.endswith("tokens") else 3
        lines.append(f"{label:36s}{before[name]:9.{digits}f}{after[name]:9.{digits}f}")
    return "\n".join(lines)


def one_line(metrics: dict[str, float]) -> str:
    return (
        f"held-out accuracy {metrics['greedy/refined_accuracy']:.3f} (plain {metrics['greedy/plain_accuracy']:.3f}), "
        f"P(refine | wrong) {metrics['sampled/p_refine_wrong']:.2f}, P(refine | right) {metrics['sampled/p_refine_right']:.2f}"
    )


def example_answers(before: Evaluation, after: Evaluation, count: int = 3) -> str:
    """Return the greedy refine-prompt answers to the first questions that were wrong before and right after."""
    pairs = list(zip(before.answers["greedy/refine"], after.answers["greedy/refine"], strict=True))
    mended = [pair for pair in pairs if pair[0]["accuracy"] == 0.0 and pair[1]["accuracy"] == 1.0]
    lines = []
    for old, new in (mended or pairs)[:count]:
        lines += [old["question"], f"  before  {old['text']}", f"  after   {new['text']}"]
    return "\n".join(lines)
