"""Supervised fine-tuning: PASR(+IFT) on the good refinement paths of a run (paper, section 3), or a warm start on responses.

    python -m rl.sft --from-rollouts runs/NAME                with the paper's settings, from the model that the run began with
    python -m rl.sft --from-rollouts runs/NAME --model PATH   from another one
    python -m rl.sft --data FILE --model PATH --out DIR       on rows of question, response and mode (refine or plain)

Leaves a folder that evaluate.py and transformers load like any model, with the settings and losses (sft.json) in it, and of a
run's paths the data (paths.jsonl) and its manifest.json.
"""

import json
import math
import os
import random
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from data.examples import read_rows, stable_seed
from data.prompts import MODES, PromptRenderer, Prompts, check_vocabulary, load_prompts, load_tokenizer, stop_ids
from model import save_model
from model.checkpoint import save_adapter
from model.folder import base_folder, is_adapter, read_json, text_folder
from rl.config import Config, Parser, add_flag, check_ranges, option
from rl.distributed import pick_device
from rl.optim import adamw
from rl.refinement_paths import collect_paths, describe_reasons, write_paths
from rl.run.checkpoint import model_folder, newest_model
from rl.run.console import one_line_errors, wrapped
from rl.run.processes import set_up_torch
from rl.session import find_source
from rl.supervised import Pair, train_supervised
from rl.weights.policy import load_policy


def as_in_training(name: str):
    """Make a field with default and help of the flag of train.py."""
    spec = Config.__dataclass_fields__[name]
    return field(default=spec.default, metadata=spec.metadata)


@dataclass(frozen=True)
class Recipe:
    """The flags. The paper gives learning rate, schedule, warm-up and epochs."""

    min_accuracy: float = option(0.9, "score from which an answer counts as right; a doubtful one is no example to learn from")
    per_question: int = option(1, "paths kept for each question; 0: all that differ", least=0)
    lr: float = option(1e-5, "peak learning rate of AdamW, cosine decay to 0 (paper: 1e-5); with --lora-rank 1e-4", least=0)
    epochs: int = option(2, "passes over the data (paper: 2)", least=1)
    warmup_share: float = option(0.1, "share of all steps with linear warm-up (paper: 0.1)", least=0)
    batch_size: int = option(16, "responses of an optimizer step", least=1)
    max_grad_norm: float = option(1.0, "gradient clipping", above=0)
    micro_batch_tokens: int = option(16_384, "tokens of one forward and backward, a shared prompt counted once", least=1)
    activation_checkpointing: bool = option(False, "recompute layers in backward: less memory, a third more time")
    seed: int = option(0, "seed of the order of the data")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: cuda if there is one")
    lora_rank: int = as_in_training("lora_rank")
    lora_alpha: float = as_in_training("lora_alpha")
    lora_targets: str = as_in_training("lora_targets")


def read_config(run: Path) -> Config:
    """Read the configuration of a run from its config.json; fields that this version does not have are ignored."""
    saved = read_json(run / "config.json").get("config")
    if not isinstance(saved, dict):
        raise ValueError(f"{run / 'config.json'} is not the configuration of a run; give the folder of a training run")
    return Config(**{spec.name: saved[spec.name] for spec in fields(Config) if spec.name in saved})


def read_responses(file: Path) -> list[dict]:
    """Read rows of `question`, `response` and `mode` ("refine", the default, or "plain") from JSON or JSONL.

    Raises:
        ValueError: a row that is none; it is named.
    """
    rows = []
    for where, row in read_rows(file):
        row = {"mode": "refine"} | row if isinstance(row, dict) else {}
        texts = [row.get("question"), row.get("response")]
        if row.get("mode") not in MODES or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"{file}, {where}: needs 'question' and 'response', and for 'mode' one of {', '.join(MODES)}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{file} holds no rows")
    return rows


def to_pairs(rows: list[dict], renderer: PromptRenderer, stops: dict[int, list[str]]) -> tuple[list[Pair], dict[str, int]]:
    """Return each row as (prompt, response with its stop token), and the number of rows by origin of their tokens.

    A row is {question, response}, with the `mode` of its prompt (default: refine) and the `ids` that were sampled, if any.
    These are taken if they decode to the response. Otherwise they are another tokenizer's, or missing: the text is tokenised
    again and ended as the chat template ends a turn. A text that comes out changed is left out.
    """
    tokenizer, end = renderer.tokenizer, turn_end(stops)
    pairs, origins = [], {"as sampled": 0, "tokenised again": 0, "not in this vocabulary": 0}
    for row in rows:
        text, ids, origin = row["response"], row.get("ids"), "as sampled"
        if not (ids and ids[-1] in stops and max(ids) < len(tokenizer) and renderer.decode(ids[:-1]) == text):
            ids, origin = [*tokenizer.encode(text, add_special_tokens=False), end], "tokenised again"
            if renderer.decode(ids[:-1]) != text:
                origin = "not in this vocabulary"
        origins[origin] += 1
        if origin != "not in this vocabulary":
            pairs.append((renderer.ids(row["question"], row.get("mode", "refine")), ids))
    return pairs, origins


def turn_end(stops: dict[int, list[str]]) -> int:
    """Return the id that the chat template ends a turn with; without one the tokenizer's, or the first of all."""
    return min(stops, key=lambda token_id: ("chat template" not in stops[token_id], "tokenizer" not in stops[token_id]))


def fine_tune(source: Path, out: Path, renderer: PromptRenderer, pairs: list[Pair], recipe: Recipe) -> dict:
    """Train the model in `source` on the pairs and write it to `out`. Return its steps, pairs and losses."""
    # the model, with float32 masters
    shared = ("seed", "activation_checkpointing", "lora_rank", "lora_alpha", "lora_targets")
    config = Config(memory="shard", **{name: getattr(recipe, name) for name in shared})
    model = load_policy(config, source, pick_device(recipe.device))
    check_vocabulary(renderer.tokenizer, model.config.vocab_size)

    # batches: each epoch in an order of its own
    steps_per_epoch = math.ceil(len(pairs) / recipe.batch_size)
    steps = steps_per_epoch * recipe.epochs

    def batch_at(step: int) -> list[Pair]:
        epoch, index = divmod(step, steps_per_epoch)
        order = list(range(len(pairs)))
        random.Random(stable_seed("fine-tuning", recipe.seed, epoch)).shuffle(order)
        return [pairs[i] for i in order[index * recipe.batch_size : (index + 1) * recipe.batch_size]]

    # train and export
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = adamw(trained, lr=recipe.lr, betas=(0.9, 0.999))
    losses = train_supervised(
        model, batch_at, [(optimizer, recipe.lr)], steps=steps, max_grad_norm=recipe.max_grad_norm, title="fine-tuning",
        micro_batch_tokens=recipe.micro_batch_tokens, warmup_steps=round(recipe.warmup_share * steps), schedule="cosine",
    )  # fmt: skip
    if recipe.lora_rank:
        save_adapter(model, out, source=source)
    else:
        save_model(model, renderer.tokenizer, out, source=source)
    renderer.prompts.save(out)
    return {"steps": steps, "pairs": len(pairs), "losses": losses}


def run_ift(run: Path, out: Path, model: str | None, recipe: Recipe) -> dict:
    """Fine-tune on the good refinement paths of a run. The returned record is also in `out`."""
    # the data
    config = read_config(run)
    selection = {"zeta": config.zeta, "min_accuracy": recipe.min_accuracy, "per_question": recipe.per_question}
    paths, left_out = collect_paths(run, **selection)
    write_paths(paths, left_out, run, out, **selection)
    print(wrapped(f"{len(paths)} good refinement paths in {out / 'paths.jsonl'}; left out: {describe_reasons(left_out)}"))

    # the model, and the prompts that the run trained with
    source, newest = model_folder(model) if model else find_source(config), newest_model(run)
    prompts = load_prompts(None, newest) if newest != run else load_prompts(config.prompts, source)
    return fine_tune_on(paths, source, out, prompts, recipe)


def fine_tune_on(rows: list[dict], source: Path, out: Path, prompts: Prompts, recipe: Recipe) -> dict:
    """Turn rows into tokens, fine-tune on them, and write the model. The returned record is also in `out`, as sft.json.

    Raises:
        ValueError: the tokenizer can write none of the rows.
    """
    tokenizer = load_tokenizer(text_folder(source))
    renderer = PromptRenderer(tokenizer, prompts)
    pairs, origins = to_pairs(rows, renderer, stop_ids(base_folder(source), tokenizer))
    print("their tokens: " + ", ".join(f"{count} {name}" for name, count in origins.items() if count))
    if not pairs:
        raise ValueError(f"the tokenizer of {source} can write none of the {len(rows)} responses; choose another --model")
    print(f"fine-tuning {source} on {len(pairs)} responses of {sum(len(response) for _, response in pairs)} tokens")
    result = fine_tune(source, out, renderer, pairs, recipe)
    record = {"source": str(source), "tokens_from": origins, "recipe": asdict(recipe)} | result
    (out / "sft.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def run_sft(recipe: Recipe, from_rollouts: Path | None, data: Path | None, model: str | None, out: Path | None,
            prompts: str | None) -> tuple[dict, Path]:  # fmt: skip
    """Check what was given, and fine-tune. Return the record and the folder of the model.

    Raises:
        ValueError: something that the user has to change.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("fine-tuning runs on one process: start it without torchrun")
    if (from_rollouts is None) == (data is None):
        raise ValueError("give --from-rollouts RUN, or --data FILE with --model and --out")
    if data is not None and (model is None or out is None):
        raise ValueError("--data needs --model, the model to begin with, and --out, a folder for the new one")
    if from_rollouts is not None and prompts is not None:
        raise ValueError("--prompts goes with --data; the paths of a run are learnt with the run's prompts")
    out = out or from_rollouts / "ift"
    if (out / "config.json").exists() or is_adapter(out):
        raise ValueError(f"{out} holds a model already; choose another --out")
    check_ranges(recipe)
    if from_rollouts is not None:
        return run_ift(from_rollouts, out, model, recipe), out
    rows, source = read_responses(data), model_folder(model)
    out.mkdir(parents=True, exist_ok=True)
    return fine_tune_on(rows, source, out, load_prompts(prompts, source), recipe), out


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        "python -m rl.sft", "Fine-tune a model: PASR(+IFT) on the good paths of a run, or a warm start on responses."
    )
    parser.add_argument("--from-rollouts", type=Path, default=None, metavar="RUN", help="run folder of train.py")
    parser.add_argument(
        "--data", type=Path, default=None, metavar="FILE", help="rows of question, response, mode (refine, plain)"
    )
    parser.add_argument("--model", default=None, help="folder or hub id of the model (of a run: its initial model)")
    parser.add_argument("--prompts", default=None, help="JSON file, or one-shot, as in train.py; saved with the model")
    parser.add_argument("--out", type=Path, default=None, help="folder of the new model (default of a run: RUN/ift)")
    for spec in fields(Recipe):
        add_flag(parser, spec, presets={})
    flags = vars(parser.parse_args(argv))
    if flags.get("lora_rank"):
        flags = {"lr": round(10 * Recipe.lr, 12)} | flags
    given = {name: flags.pop(name) for name in ("from_rollouts", "data", "model", "prompts", "out")}
    set_up_torch()
    with one_line_errors():
        record, out = run_sft(Recipe(**flags), **given)
    first, last = record["losses"][0], record["losses"][-1]
    print(f"loss {first:.3f} -> {last:.3f} in {record['steps']} steps")
    print(f"ask the model: python evaluate.py --model {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
