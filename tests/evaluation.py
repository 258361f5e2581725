"""Makings of the evaluation tests: a tiny model that reads any text, a sampler that answers by script, records."""

import json
from dataclasses import asdict
from pathlib import Path

from conftest import make_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.benchmarks import Benchmark, load_benchmark, own_benchmark
from data.prompts import PromptRenderer, Prompts
from model import save_model
from rl.evaluation.methods import METHODS, Answerer, Decoding, Turn
from rl.evaluation.records import AnswerRecord, OutputFolder
from rl.evaluation.run import BenchmarkRun
from rl.records import Completion

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
SETTINGS = {
    "model": "m", "temperature": 0.0, "samples": 1, "max_new_tokens": 8, "limit": None, "seed": 0, "paper_decoding": False,
    "benchmarks": {"sums": "number"}, "data": {"sums": "x"}, "judge": None,
}  # fmt: skip


def reader_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token for each byte, and chat markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=template)
    fast.add_special_tokens({"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"]})
    return fast


def write_reader_folder(path: Path, **changes) -> Path:
    tokenizer = reader_tokenizer()
    model = make_model("qwen3", vocab_size=len(tokenizer), num_hidden_layers=1, **changes).float()
    save_model(model, tokenizer, path)
    return path


class ScriptedSampler:
    """Stands in for `Sampler`: `script(prompt, sample)` is the response; None stops there, as a kill would."""

    script = staticmethod(lambda prompt, sample: "")
    calls: list[list] = []
    tokenizer = reader_tokenizer()

    def __init__(self, max_len: int) -> None:
        self.max_len = max_len

    def generate(self, requests, *, on_finish=None):
        type(self).calls += [requests] if requests else []
        for r, request in enumerate(requests):
            prompt = self.tokenizer.decode(request.prompt_ids)
            for i in range(request.num_samples):
                text = type(self).script(prompt, i)
                if text is None:
                    raise KeyboardInterrupt
                ids = [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]
                reason = "length" if len(ids) > request.max_new_tokens else "stop"
                ids = ids[: request.max_new_tokens]
                on_finish(r, i, Completion(ids, [0.0] * len(ids), reason))


def scripted(patch, script) -> list[list]:
    """Let `script` answer; returns the list that calls of the sampler are noted in."""
    patch.setattr(ScriptedSampler, "script", staticmethod(script))
    patch.setattr(ScriptedSampler, "calls", [])
    return ScriptedSampler.calls


def make_answerer(context: int = 100_000, **decoding) -> Answerer:
    renderer = PromptRenderer(ScriptedSampler.tokenizer, Prompts(refine="REFINE", plain="PLAIN"))
    return Answerer(renderer, ScriptedSampler(context), Decoding(**decoding))


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_sums(folder: Path, count: int = 6) -> Benchmark:
    """0 + 1 to 5 + 1, as a benchmark of numbers."""
    file = write_rows(folder / "sums.jsonl", [{"question": f"{i} + 1?", "answer": i + 1} for i in range(count)])
    return own_benchmark(f"sums={file}:number")


def run(benchmark, folder, method="vanilla", judges=None, **options) -> list[AnswerRecord]:
    """Answer a benchmark in an output folder, with the options of `make_answerer`."""
    out = OutputFolder(folder, SETTINGS)
    try:
        items = load_benchmark(benchmark, None)
        return BenchmarkRun(make_answerer(**options), benchmark, items, METHODS[method], out.path).run(judges or {})
    finally:
        out.close()


def arguments(folder: Path, *more: str) -> list[str]:
    return ["--model", str(folder / "m"), "--max-new-tokens", "8", "--out", str(folder / "out"), *more]


def response(think: str, answer: str = "7") -> str:
    return f"<think>{think}</think><answer>{answer}</answer>"


def record(
    id: str, score: float | None, sample=0, answer="5", tokens=10, method="vanilla", benchmark="gsm8k",
    text="<think>a<refine>b</refine></think><answer>5</answer>", judge=None, **more,
) -> AnswerRecord:  # fmt: skip
    turn = Turn(prompt="p", response=text, tokens=tokens, finish_reason="stop")
    scores = {"rule": score, "judge": judge}
    return AnswerRecord(benchmark, method, id, sample, f"question {id}", "5", [turn], answer, 0, tokens, scores, **more)


def unreadable(id: str, method="vanilla", benchmark="gsm8k") -> AnswerRecord:
    return AnswerRecord(benchmark, method, id, 0, "q", "r", [], None, 0, 0, {"rule": 0.0}, "why")


def write_evaluation(folder: Path, records: list[AnswerRecord], **settings) -> Path:
    (folder / "records").mkdir(parents=True)
    kinds = {r.benchmark: "number" for r in records}
    (folder / "settings.json").write_text(json.dumps(SETTINGS | {"benchmarks": kinds, "data": {}} | settings))
    for r in records:
        with (folder / "records" / f"{r.benchmark}.{r.method}.jsonl").open("a") as file:
            file.write(json.dumps(asdict(r)) + "\n")
    return folder
