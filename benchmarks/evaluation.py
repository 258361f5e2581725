"""How fast an evaluation generates, against Hugging Face `generate`: same weights, same prompts, same greedy tokens, one run.

    python benchmarks/evaluation.py                      # a random model of the embedded task's size, on this machine
    python benchmarks/evaluation.py --model Qwen/Qwen2.5-7B-Instruct --benchmark gsm8k --limit 64 --max-new-tokens 512

`generate` gets left-padded batches of --max-slots prompts in the order of the file, as most scripts do; ours refills
its slots as answers end. Both are timed with tokenizing and decoding, and take turns. Answers that differ are counted: in
float32 none should; in bfloat16 near-ties may fall either way.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.judge import random_model
from data.benchmarks import BenchmarkItem, load_benchmark, parse_benchmarks
from data.division import load_split
from evaluate import EvalConfig, load
from rl.evaluation.methods import METHODS, Answerer


def ours(answerer: Answerer, items: list[BenchmarkItem], args: argparse.Namespace) -> list[str]:
    """Greedy answers through what `evaluate.py` runs on."""
    answers, mode = {}, METHODS[args.method].mode
    answerer.first_turns(items, mode, lambda item, _, turns: answers.update({item.id: turns[0]["response"]}))
    return [answers[item.id] for item in items]


@torch.no_grad()
def peers(model, answerer: Answerer, items: list[BenchmarkItem], args: argparse.Namespace) -> tuple[list[str], int]:
    """Greedy answers of `generate`, and how many tokens they have (the stop token included)."""
    mode, renderer, stops = METHODS[args.method].mode, answerer.renderer, answerer.sampler.stop_ids.tolist()
    pad = stops[0]
    prompts = [renderer.encode(renderer.text(item.question, mode), item.question) for item in items]
    answers, tokens = [], 0
    for start in range(0, len(prompts), args.max_slots):
        batch = prompts[start : start + args.max_slots]
        longest = max(map(len, batch))
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in batch], device=model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch], device=model.device)
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=args.max_new_tokens, do_sample=False,
            eos_token_id=stops, pad_token_id=pad,
        )  # fmt: skip
        for row in out[:, longest:].tolist():
            end = next((i for i, id in enumerate(row) if id in stops), len(row))
            answers.append(renderer.decode(row[:end]))
            tokens += min(end + 1, len(row))
    return answers, tokens


def measure(folder: Path, answerer: Answerer, items: list[BenchmarkItem], args: argparse.Namespace) -> None:
    model = answerer.sampler.model
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=model.activation_dtype).to(model.device).eval()
    ways = {"generate": lambda: peers(peer, answerer, items, args)[0], "evaluate.py": lambda: ours(answerer, items, args)}
    tokens = peers(peer, answerer, items, args)[1]  # warms up, too
    times: dict[str, list[float]] = {name: [] for name in ways}
    answers = {}
    for _ in range(args.repeats):
        for name, way in ways.items():
            begin = time.perf_counter()
            answers[name] = way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - begin)
    same = sum(a == b for a, b in zip(*answers.values(), strict=True))
    print(f"{len(items)} questions, {tokens} tokens, {args.max_slots} at once; answers that are the same: {same}")
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:12s} {median:8.2f} s  {tokens / median:9.0f} tokens/s")
    pairs = [a / b for a, b in zip(times["generate"], times["evaluate.py"], strict=True)]
    print(f"ratio        {statistics.median(pairs):8.2f} x  ({min(pairs):.2f} to {max(pairs):.2f}, {len(pairs)} pairs)")


def division_items(count: int) -> list[BenchmarkItem]:
    return [BenchmarkItem(e.id, e.question, (e.reference,)) for e in load_split(held_out=True)[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder or hub id; none: a random model of the demo's size")
    parser.add_argument("--benchmark", default="gsm8k", help="with --model: one, or name=FILE:KIND (default: gsm8k)")
    parser.add_argument("--data-dir", help="folder of the benchmarks' files; none: from the hub")
    parser.add_argument("--method", default="vanilla", choices=("vanilla", "pasr"), help="plain or refine prompt")
    parser.add_argument("--limit", type=int, default=64, help="questions (default: 64)")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--max-slots", type=int, default=16, help="sequences at once, for both (default: 16)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = args.model or str(random_model(Path(folder), length=args.max_new_tokens // 3))
        flags = {"max_slots": args.max_slots, "max_new_tokens": args.max_new_tokens, "benchmarks": args.benchmark}
        path, answerer = load(EvalConfig(model=source, device=args.device, **flags))
        if args.model:
            items = load_benchmark(parse_benchmarks(args.benchmark)[0], args.data_dir, limit=args.limit)
        else:
            items = division_items(args.limit)
        measure(path, answerer, items, args)


if __name__ == "__main__":
    main()
