"""The demo behind `python train.py`: makes the tiny model that RL starts from, and says in words what RL changed.

The model is written as a Hugging Face folder with its own tokenizer and chat template, and from then on treated like any other.
"""

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from data.division import END, Corpus, build_tokenizer, load_split
from data.prompts import PromptRenderer, Prompts, load_prompts, load_tokenizer
from model import ModelConfig, Transformer, load_model, save_model
from rl.config import Config
from rl.evaluation.division import Evaluation
from rl.optim import Muon, adamw, matrices_and_rest
from rl.supervised import Pair, train_supervised

MIN_CHECK_ACCURACY = 0.92
MIN_REFINE_CONTRAST = 2.0
MIN_REFINE_RATE = 0.05


@dataclass(frozen=True)
class WarmStart:
    """The recipe of the supervised warm start. Muon on the matrices is what makes it minutes instead of an hour."""

    hidden_size: int = 64
    intermediate_size: int = 128
    layers: int = 3
    heads: int = 4
    batch_size: int = 64
    matrix_lr: float = 0.012  # Muon
    other_lr: float = 8e-3  # AdamW, on embedding and norms
    warmup_steps: int = 30
    decay_share: float = 0.97
    max_grad_norm: float = 1.0
    corpus: Corpus = field(default_factory=Corpus)

    def model_config(self, vocab_size: int) -> ModelConfig:
        return ModelConfig(
            model_type="qwen3",
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            head_dim=self.hidden_size // self.heads,
            rope_theta=10_000.0,
            tie_word_embeddings=True,
            max_position_embeddings=256,
        )


def warm_started_model(config: Config) -> Path:
    """The folder of the warm-started model, made on first use and shared by all runs of the same recipe."""
    recipe, prompts = WarmStart(), Prompts.load(config.prompts) if config.prompts else Prompts()
    told = [prompts.refine, prompts.plain]  # they are tokens of the model's vocabulary
    identity = asdict(recipe) | {"steps": config.sft_steps, "seed": config.sft_seed, "prompts": told}
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8).hexdigest()
    folder = Path(config.runs_dir) / "warm_start" / digest
    if folder.is_dir():
        print(f"warm start: {folder} (made before by the same recipe)")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    print("warm start: a tiny model learns from written traces, in which an error is mended one time in three")
    part = Path(tempfile.mkdtemp(prefix=f".{digest}-", dir=folder.parent))
    try:
        _write_untrained(recipe, prompts, config.sft_seed, part)
        _train(recipe, config, part)
        if not folder.is_dir():  # another process may have made the same one meanwhile
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _write_untrained(recipe: WarmStart, prompts: Prompts, seed: int, folder: Path) -> None:
    tokenizer = build_tokenizer(prompts)
    model = Transformer(recipe.model_config(len(tokenizer)))
    model.init_weights(torch.Generator().manual_seed(seed))
    save_model(model, tokenizer, folder)
    prompts.save(folder)


def _train(recipe: WarmStart, config: Config, folder: Path) -> None:
    """Supervised training of the model in `folder` on the corpus, in place."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    renderer = PromptRenderer(tokenizer, load_prompts(None, folder))
    questions = load_split(held_out=False)

    def batch_at(step: int) -> list[Pair]:
        rows = recipe.corpus.batch(questions, recipe.batch_size, config.sft_seed, step)
        responses = tokenizer([text + END for _, _, text in rows], add_special_tokens=False)["input_ids"]
        return [(renderer.ids(e.question, mode), ids) for (e, mode, _), ids in zip(rows, responses, strict=True)]

    matrices, rest = matrices_and_rest(model)
    train_supervised(
        model,
        batch_at,
        [
            (Muon(matrices, lr=recipe.matrix_lr), recipe.matrix_lr),
            (adamw(rest, lr=recipe.other_lr, betas=(0.9, 0.95)), recipe.other_lr),
        ],
        steps=config.sft_steps,
        warmup_steps=recipe.warmup_steps,
        schedule="linear",
        decay_share=recipe.decay_share,
        max_grad_norm=recipe.max_grad_norm,
        title="warm start",
    )
    save_model(model, tokenizer, folder)


def warm_start_problems(before: dict[str, float]) -> list[str]:
    """What about the warm-started model makes it likely that refinement dies out in RL instead of being learnt."""
    problems = []
    if before["sampled/check_accuracy"] < MIN_CHECK_ACCURACY:
        problems.append(
            f"only {before['sampled/check_accuracy']:.0%} of its comparison signs are right "
            f"({MIN_CHECK_ACCURACY:.0%} are needed): it cannot see its errors. Warm up longer (--sft-steps)"
        )
    if before["sampled/p_refine_too_big"] < MIN_REFINE_CONTRAST * before["sampled/p_refine_fits"]:
        problems.append(
            f"it refines after a product that is too big with {before['sampled/p_refine_too_big']:.2f}, after one that fits "
            f"with {before['sampled/p_refine_fits']:.2f}: refining does not pay, and may be unlearnt within 30 steps"
        )
    return problems


def end_problems(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """The two ways in which the demo can fail: refinement collapsed, or the plain baseline was sandbagged."""
    problems = []
    if after["sampled/refine_rate"] < MIN_REFINE_RATE:
        problems.append(f"refinement collapsed: only {after['sampled/refine_rate']:.0%} of the sampled answers refine")
    if after["sampled/plain_wellformed"] < 0.9:
        problems.append(
            f"the plain mode drifted: {after['sampled/plain_wellformed']:.0%} of its answers are well formed, "
            f"{after['sampled/plain_leak']:.0%} refine (accuracy {after['sampled/plain_accuracy']:.2f})"
        )
    if after["sampled/plain_accuracy"] < before["sampled/plain_accuracy"] - 0.1:
        problems.append(f"plain accuracy fell to {after['sampled/plain_accuracy']:.2f}: was the baseline sandbagged?")
    return problems


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
    """What changed, for a reader who has seen none of the names."""
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
    """The greedy refine-prompt answers to the first questions that were answered wrong before and right after."""
    pairs = list(zip(before.answers["greedy/refine"], after.answers["greedy/refine"], strict=True))
    mended = [pair for pair in pairs if pair[0]["accuracy"] == 0.0 and pair[1]["accuracy"] == 1.0]
    lines = []
    for old, new in (mended or pairs)[:count]:
        lines += [old["question"], f"  before  {old['text']}", f"  after   {new['text']}"]
    return "\n".join(lines)
