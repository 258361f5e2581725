"""Does another program read our checkpoints as we do? The same prompts through lm-eval's `hf` model and through our sampler.

    pip install lm-eval          best into an environment of its own: it brings many packages
    python benchmarks/interop.py --model runs/NAME                        held-out questions of the embedded task
    python benchmarks/interop.py --model PATH --data questions.jsonl      your own, with (question, answer)

A local lm-eval task is written from the questions, with the refine prompt as our PromptRenderer renders it. Both decode
greedily in float32. lm-eval scores by its own means: a regular expression takes the answer body out, `exact_match` compares it.
Printed are both scores, and how many completions and scores are the same; the exit code is 1 if any differs.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from data.division import load_split
from data.examples import Example, load_examples, shuffled
from data.prompts import PromptRenderer, load_prompts, load_tokenizer, stop_ids
from model import load_model
from rewards.accuracy import final_part, score_by_rule
from rewards.format import answer_body
from rl.records import Request
from rl.run.checkpoint import newest_model
from rl.sampler import Sampler

TASK = "pasr_interop"
ANSWER = r"(?s)<answer>\s*(.*?)\s*</answer>"


@dataclass(frozen=True)
class Answers:
    """What one program made of the prompts: texts without special tokens, a score each, and seconds of wall time."""

    texts: list[str]
    scores: list[float]
    seconds: float

    @property
    def score(self) -> float:
        return sum(self.scores) / len(self.scores)


def ask_ours(folder: Path, renderer: PromptRenderer, stops: list[int], examples: list[Example], args) -> Answers:
    """Our sampler, our rule."""
    model = load_model(folder)
    requests = [Request(renderer.ids(e.question, "refine"), 1, args.max_new_tokens, 0.0, e.id) for e in examples]
    longest = max(len(request.prompt_ids) for request in requests)
    begin = time.perf_counter()
    sampler = Sampler(model, stop_ids=stops, max_slots=64, max_len=longest + args.max_new_tokens)
    drawn = [completions[0] for completions in sampler.generate(requests)]
    seconds = time.perf_counter() - begin
    bodies = [answer_body(renderer.decode(c.text_ids)) for c in drawn]
    scores = [score_by_rule(body, e.reference) for body, e in zip(bodies, examples, strict=True)]
    return Answers([renderer.tokenizer.decode(c.text_ids, skip_special_tokens=True) for c in drawn], scores, seconds)


def write_task(folder: Path, renderer: PromptRenderer, stops: list[int], examples: list[Example], args) -> None:
    """A task of lm-eval's own format: prompts and answers as JSONL, and the YAML that says how to ask and to score."""
    rows = [{"prompt": renderer.text(e.question, "refine"), "target": final_part(e.reference)} for e in examples]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{target}}",
        "generation_kwargs": {
            "until": [renderer.decode([token_id]) for token_id in stops],
            "max_gen_toks": args.max_new_tokens,
            "do_sample": False,
        },
        "filter_list": [
            {
                "name": "answer",
                "filter": [
                    {"function": "regex", "regex_pattern": ANSWER, "fallback": ""},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / f"{TASK}.yaml").write_text(json.dumps(task, indent=2), encoding="utf-8")  # JSON is YAML


def ask_lm_eval(folder: Path, task_folder: Path, args) -> Answers:
    """lm-eval's `hf` model, its filter, its metric."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import lm_eval  # late: it is no requirement of the project
    from lm_eval.tasks import TaskManager

    begin = time.perf_counter()
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32"},
        tasks=[TASK],
        task_manager=TaskManager(include_path=str(task_folder), include_defaults=False),
        batch_size=args.batch_size,
        device="cpu",
        log_samples=True,
        bootstrap_iters=0,
    )
    seconds = time.perf_counter() - begin
    samples = sorted(found["samples"][TASK], key=lambda sample: sample["doc_id"])
    scores = [sample["exact_match"] for sample in samples]
    assert abs(found["results"][TASK]["exact_match,answer"] - sum(scores) / len(scores)) < 1e-9
    return Answers([sample["resps"][0][0] for sample in samples], scores, seconds)


def compare(args: argparse.Namespace) -> tuple[Answers, Answers]:
    """(ours, lm-eval's) answers to the same prompts."""
    folder = newest_model(Path(args.model))
    tokenizer = load_tokenizer(folder)
    renderer, stops = PromptRenderer(tokenizer, load_prompts(None, folder)), list(stop_ids(folder, tokenizer))
    examples = load_examples(args.data) if args.data else load_split(held_out=True)
    examples = shuffled(examples, seed=0, epoch=0)[: args.questions]
    ours = ask_ours(folder, renderer, stops, examples, args)
    with tempfile.TemporaryDirectory() as task_folder:
        write_task(Path(task_folder), renderer, stops, examples, args)
        return ours, ask_lm_eval(folder, Path(task_folder), args)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our sampler and score against lm-eval's.", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="run folder or checkpoint folder")
    parser.add_argument("--data", help="JSON or JSONL of questions; default: held-out questions of the embedded task")
    parser.add_argument("--questions", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--max-new-tokens", type=int, default=40, help="longest answer (default: 40)")
    parser.add_argument("--batch-size", type=int, default=16, help="of lm-eval (default: 16)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    if importlib.util.find_spec("lm_eval") is None:
        print("lm-eval is not installed (pip install lm-eval): nothing to compare with")
        return 0
    ours, theirs = compare(args)
    count = len(ours.texts)
    texts = sum(a == b for a, b in zip(ours.texts, theirs.texts, strict=True))
    scores = sum(a == b for a, b in zip(ours.scores, theirs.scores, strict=True))
    print(f"\n{'':22s}{'score':>8s}{'seconds':>9s}")
    for name, answers in (("rl.sampler, our rule", ours), ("lm-eval hf", theirs)):
        print(f"{name:22s}{answers.score:8.4f}{answers.seconds:9.1f}")
    print(f"{texts} of {count} completions and {scores} of {count} scores are the same")
    for a, b in [pair for pair in zip(ours.texts, theirs.texts, strict=True) if pair[0] != pair[1]][:3]:
        print(f"  ours    {a!r}\n  lm-eval {b!r}")
    return int(texts < count or scores < count)


if __name__ == "__main__":
    sys.exit(main())
