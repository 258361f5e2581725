"""Additions in words, easy and hard: questions, held-out questions, and written traces for a warm start of a small model.

    python -m data.word_problems OUT

An easy question adds two one-digit numbers, which a small model does at once. A hard one adds two two-digit numbers, at which
it often fails unless it adds tens and ones apart, as the refinements of the traces do. So a model can learn from Eq. 6 where a
refinement pays: at hard questions it beats the plain answers, at easy ones it costs tokens and changes nothing.

The files of OUT are JSONL: train.jsonl (as many easy as hard questions), easy.jsonl and hard.jsonl (held out) with `question`
and `answer`, traces.jsonl with `question`, `response` and `mode`, for `python -m rl.sft --data`. prompts.json holds the prompts
for both. No pair of numbers is both trained on and held out.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.examples import stable_seed

NAMES = ("Ada", "Ben", "Carla", "Dev", "Ella", "Finn", "Gita", "Hugo", "Iris", "Jack", "Kira", "Liam", "Maya", "Noah", "Olga")
THINGS = ("apples", "beads", "books", "buttons", "cards", "coins", "eggs", "marbles", "pencils", "shells", "stamps")
PROMPTS = {  # short, because a warm start teaches the format
    "refine": "Think between <think> and </think>. Check or correct between <refine> and </refine>. "
    "Give the number between <answer> and </answer>.",
    "plain": "You are a helpful assistant.",
}
TEMPLATES = (
    "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
    "There are {a} {things} in one box and {b} in another. How many {things} are there in both?",
    "{name} found {a} {things} yesterday and {b} today. How many {things} is that together?",
    "A shop sold {a} {things} in the morning and {b} in the afternoon. How many {things} did it sell that day?",
)
RANGES = {"easy": (2, 9), "hard": (11, 59)}  # both numbers, inclusive
FIRST_WORDS = {"easy": "Both numbers are small", "hard": "Both numbers have two digits"}
HELD_OUT = 5  # one pair of numbers in so many
SLIPS = (-10, -2, -1, 1, 2, 10)  # what a wrong first sum of a trace is off by


@dataclass(frozen=True)
class Addition:
    """One question: a + b, in words."""

    kind: str  # a key of RANGES
    a: int
    b: int
    question: str

    @property
    def is_held_out(self) -> bool:
        return stable_seed("word problems", self.a, self.b) % HELD_OUT == 0

    def row(self) -> dict[str, str]:
        return {"question": self.question, "answer": str(self.a + self.b), "kind": self.kind}


def additions(kinds: tuple[str, ...], seed: int, *, held_out: bool) -> Iterator[Addition]:
    """Yield different questions of the kinds in turn, for ever, from the held-out pairs of numbers or from the others."""
    rng, seen = random.Random(seed), set()
    while True:
        kind = kinds[len(seen) % len(kinds)]
        a, b = (rng.randint(*RANGES[kind]) for _ in range(2))
        words = {"name": rng.choice(NAMES), "things": rng.choice(THINGS), "a": a, "b": b}
        addition = Addition(kind, a, b, rng.choice(TEMPLATES).format(**words))
        if addition.is_held_out is held_out and addition.question not in seen:
            seen.add(addition.question)
            yield addition


def trace(addition: Addition, mode: str, rng: random.Random) -> dict[str, str]:
    """Return a written response; plain ones are right. In the refine mode, three first sums in ten of hard questions are wrong.

    A thought says how hard the sum is before it can be refined. Refinements follow wrong first sums a little more often than
    right ones, and as often on easy questions as on hard ones: where they pay is left for RL to find out.
    """
    total = addition.a + addition.b
    is_wrong = mode == "refine" and addition.kind == "hard" and rng.random() < 0.3
    first = total + rng.choice(SLIPS) if is_wrong else total
    sum_ = f"{addition.a} + {addition.b} = {first}."
    thought = f"{FIRST_WORDS[addition.kind]}: {sum_}"
    if mode == "plain":
        response = f"{sum_} The answer is {first}."
    elif rng.random() < (0.8 if is_wrong else 0.6):
        response = f"<think> {thought} <refine> {check(addition)} </refine> </think>\n<answer> {total} </answer>"
    else:
        response = f"<think> {thought} </think>\n<answer> {first} </answer>"
    return {"question": addition.question, "response": response, "mode": mode}


def check(addition: Addition) -> str:
    """Return the text of a refinement: the other way round, or tens and ones apart."""
    a, b, total = addition.a, addition.b, addition.a + addition.b
    if addition.kind == "easy":
        return f"I check it: {b} + {a} = {total}."
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    apart = f"{a // 10 * 10} + {b // 10 * 10} = {tens}, {a % 10} + {b % 10} = {ones}"
    return f"I check it: {apart}, {tens} + {ones} = {total}."


def write_files(out: Path, *, train: int, held_out: int, traces: int, seed: int) -> None:
    """Write four files of rows, and the prompts that go with them; two traces in three are of the refine mode."""
    out.mkdir(parents=True, exist_ok=True)
    source, rng = additions(tuple(RANGES), seed, held_out=False), random.Random(seed)
    files = {"train": [next(source).row() for _ in range(train)]}
    files["traces"] = [trace(next(source), "plain" if i % 3 == 2 else "refine", rng) for i in range(traces)]
    for kind in RANGES:
        unseen = additions((kind,), seed, held_out=True)
        files[kind] = [next(unseen).row() for _ in range(held_out)]
    (out / "prompts.json").write_text(json.dumps(PROMPTS, indent=2) + "\n", encoding="utf-8")
    for name, rows in files.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{out / name}.jsonl: {len(rows)} rows")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.word_problems", description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the files")
    parser.add_argument("--train", type=int, default=600, help="questions to train on (600)")
    parser.add_argument("--held-out", type=int, default=100, help="held-out questions of each kind (100)")
    parser.add_argument("--traces", type=int, default=600, help="traces for the warm start (600)")
    parser.add_argument("--seed", type=int, default=0, help="seed of questions and traces (0)")
    flags = parser.parse_args(argv)
    write_files(flags.out, train=flags.train, held_out=flags.held_out, traces=flags.traces, seed=flags.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
