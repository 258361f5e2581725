"""PASR(+IFT): supervised fine-tuning on the good refinement paths of a PASR run (paper, section 3).

    python -m rl.sft --from-rollouts runs/NAME                with the paper's settings, from the model that the run began with
    python -m rl.sft --from-rollouts runs/NAME --model PATH   from another one

Leaves a folder that evaluate.py and transformers load like any model, with the data (paths.jsonl), its manifest.json, and the
settings and losses (ift.json) in it.
"""

import argparse
import json
import math
import os
import random
import sys
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from data.examples import stable_seed
from data.prompts import PromptRenderer, check_vocabulary, load_prompts, load_tokenizer, stop_ids
from model import load_model, save_model
from model.checkpoint import read_json, stored_dtype
from rl.config import Config, Parser, option, to_flag
from rl.distributed import pick_device
from rl.optim import adamw
from rl.refinement_paths import Selection, collect_paths, describe_reasons, write_paths
from rl.run.checkpoint import model_folder, newest_model
from rl.run.console import one_line_errors, wrapped
from rl.session import find_source
from rl.supervised import Pair, train_supervised
from rl.weights.policy import compute_dtype


@dataclass(frozen=True)
class Recipe:
    """How the paths are trained on. The paper gives learning rate, schedule, warm-up and epochs."""

    lr: float = option(1e-5, "peak learning rate of AdamW, cosine decay to 0 (paper: 1e-5)")
    epochs: int = option(2, "passes over the paths (paper: 2)")
    warmup_share: float = option(0.1, "share of all steps with linear warm-up (paper: 0.1)")
    batch_size: int = option(16, "paths of an optimizer step")
    weight_decay: float = option(0.0, "AdamW")
    max_grad_norm: float = option(1.0, "gradient clipping")
    micro_batch_tokens: int = option(16_384, "padded tokens of one forward and backward")
    activation_checkpointing: bool = option(False, "recompute layers in backward: less memory, a third more time")
    seed: int = option(0, "of the order of the paths")
    device: str = option("auto", "auto, cpu or cuda")


SELECTION_HELP = {
    "min_accuracy": "score from which an answer counts as right",
    "zeta": "half width of the tie band of Eq. 6 (default: the run's)",
    "per_question": "paths kept for each question; 0: all that differ",
    "first_step": "first step whose rollouts are used",
    "last_step": "last step whose rollouts are used; 0: the newest",
}


def config_of(run: Path) -> Config:
    """The configuration of a run, as config.json has it; fields this version does not know are passed over.

    Raises:
        ValueError: no config.json, or not a run's.
    """
    saved = read_json(run / "config.json").get("config")
    if not isinstance(saved, dict):
        raise ValueError(f"{run / 'config.json'} is not the configuration of a run; give the folder of a training run")
    return Config(**{spec.name: saved[spec.name] for spec in fields(Config) if spec.name in saved})


def to_pairs(paths: list[dict], renderer: PromptRenderer, stops: dict[int, list[str]]) -> tuple[list[Pair], dict[str, int]]:
    """Each path as (refine prompt, response with its stop token), and how many were taken in which way.

    The ids are those that were sampled, wherever they are this tokenizer's, which shows in that they decode to the text.
    Otherwise (another model's, or rollouts without ids) the text is tokenised again and ended as the chat template ends a turn.
    A text that comes out changed is left out.
    """
    tokenizer, end = renderer.tokenizer, turn_end(stops)
    pairs, how = [], Counter({"as sampled": 0, "tokenised again": 0, "not in this vocabulary": 0})
    for path in paths:
        text, ids = path["response"], path["ids"]
        if ids and ids[-1] in stops and max(ids) < len(tokenizer) and renderer.decode(ids[:-1]) == text:
            how["as sampled"] += 1
        else:
            ids = tokenizer.encode(text, add_special_tokens=False)
            if renderer.decode(ids) != text:
                how["not in this vocabulary"] += 1
                continue
            ids = [*ids, end]
            how["tokenised again"] += 1
        pairs.append((renderer.ids(path["question"], "refine"), ids))
    return pairs, dict(how)


def turn_end(stops: dict[int, list[str]]) -> int:
    """Of the ids that end a completion the one that the chat template ends a turn with; without one the tokenizer's."""
    for origin in ("chat template", "tokenizer"):
        for token_id, origins in stops.items():
            if origin in origins:
                return token_id
    return next(iter(stops))


def fine_tune(source: Path, out: Path, renderer: PromptRenderer, pairs: list[Pair], recipe: Recipe) -> dict:
    """Train the model in `source` on the pairs and write it to `out`; returns what there is to tell about it."""
    device = pick_device(recipe.device)
    model = load_model(source, device=device)  # float32 masters
    model.compute_dtype = compute_dtype(device)
    model.activation_checkpointing = recipe.activation_checkpointing
    check_vocabulary(renderer.tokenizer, model.config.vocab_size)
    steps_per_epoch = math.ceil(len(pairs) / recipe.batch_size)
    steps = steps_per_epoch * recipe.epochs

    def batch_at(step: int) -> list[Pair]:
        epoch, place = divmod(step, steps_per_epoch)
        order = list(range(len(pairs)))
        random.Random(stable_seed("fine-tuning", recipe.seed, epoch)).shuffle(order)
        return [pairs[i] for i in order[place * recipe.batch_size : (place + 1) * recipe.batch_size]]

    optimizer = adamw(model.parameters(), lr=recipe.lr, betas=(0.9, 0.999), weight_decay=recipe.weight_decay)
    losses = train_supervised(
        model,
        batch_at,
        [(optimizer, recipe.lr)],
        steps=steps,
        warmup_steps=round(recipe.warmup_share * steps),
        schedule="cosine",
        decay_share=1.0,
        max_grad_norm=recipe.max_grad_norm,
        title="fine-tuning",
        micro_batch_tokens=recipe.micro_batch_tokens,
    )
    save_model(model, renderer.tokenizer, out, dtype=stored_dtype(source), source=source)
    renderer.prompts.save(out)
    return {"steps": steps, "pairs": len(pairs), "losses": losses}


def run_ift(run: Path, out: Path, model: str | None, selection: Selection, recipe: Recipe) -> dict:
    """Collect, fine-tune and export; what happened is in `out` and in the returned record.

    Raises:
        ValueError: no run, nothing good in it, or a folder that has a model already.
    """
    if (out / "config.json").exists():
        raise ValueError(f"{out} holds a model already; choose another --out")
    config = config_of(run)
    paths, dropped = collect_paths(run, selection)
    write_paths(paths, dropped, run, selection, out)
    print(wrapped(f"{len(paths)} good refinement paths in {out / 'paths.jsonl'}; left out: {describe_reasons(dropped)}"))
    source = model_folder(model) if model else find_source(config)
    newest = newest_model(run)
    prompts = load_prompts(None, newest) if newest != run else load_prompts(config.prompts, source)
    tokenizer = load_tokenizer(source)
    renderer = PromptRenderer(tokenizer, prompts)
    pairs, how = to_pairs(paths, renderer, stop_ids(source, tokenizer))
    print("their tokens: " + ", ".join(f"{count} {name}" for name, count in how.items() if count))
    if not pairs:
        raise ValueError(f"the tokenizer of {source} can write none of the {len(paths)} paths; choose another --model")
    print(f"fine-tuning {source} with the refine prompt on {sum(len(response) for _, response in pairs)} tokens")
    result = fine_tune(source, out, renderer, pairs, recipe)
    record = {"source": str(source), "tokens_from": how, "recipe": asdict(recipe)} | result
    (out / "ift.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m rl.sft", description="PASR(+IFT).", allow_abbrev=False)
    parser.add_argument("--from-rollouts", type=Path, required=True, metavar="RUN", help="run folder of train.py")
    parser.add_argument("--model", help="folder, run folder or hub id to fine-tune (default: what the run began with)")
    parser.add_argument("--out", type=Path, help="where model and data go (default: RUN/ift)")
    for spec in fields(Selection):
        default = None if spec.name == "zeta" else spec.default
        text = f"{SELECTION_HELP[spec.name]}" + ("" if default is None else f" (default: {default})")
        parser.add_argument(to_flag(spec.name), type=spec.type, default=default, help=text)
    for spec in fields(Recipe):
        text = f"{spec.metadata['help']} (default: {spec.default})"
        kind = {"action": "store_true"} if spec.type is bool else {"type": spec.type, "default": spec.default}
        parser.add_argument(to_flag(spec.name), help=text, **kind)
    given = parser.parse_args(argv)
    if given.epochs < 1 or given.batch_size < 1 or given.micro_batch_tokens < 1 or given.per_question < 0:
        parser.error("--epochs, --batch-size and --micro-batch-tokens must be at least 1, --per-question at least 0")
    return given


def main(argv: list[str] | None = None) -> int:
    given = parse_arguments(argv)
    with one_line_errors():
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("fine-tuning runs on one process: start it without torchrun")
        run = given.from_rollouts
        zeta = config_of(run).zeta if given.zeta is None else given.zeta
        selection = Selection(**{s.name: zeta if s.name == "zeta" else getattr(given, s.name) for s in fields(Selection)})
        recipe = Recipe(**{spec.name: getattr(given, spec.name) for spec in fields(Recipe)})
        out = given.out or run / "ift"
        record = run_ift(run, out, given.model, selection, recipe)
    first, last = record["losses"][0], record["losses"][-1]
    print(f"loss {first:.3f} -> {last:.3f} in {record['steps']} steps; ask the model: python evaluate.py --model {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
