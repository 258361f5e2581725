"""A tiny model that can read any text, and a sampler that answers by script: makings of the evaluation tests."""

import json
from pathlib import Path

from conftest import make_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.prompts import PromptRenderer, Prompts
from model import save_model
from rl.evaluation.asking import LoadedModel
from rl.evaluation.methods import Answerer, Decoding
from rl.records import Completion

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def reader_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
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


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class ScriptedSampler:
    """Stands in for `Sampler`: `script(prompt, sample)` is the response; None stops there, as a kill would."""

    script = staticmethod(lambda prompt, sample: "")
    calls: list[list] = []
    tokenizer = reader_tokenizer()

    def __init__(self, model, *, stop_ids, max_slots, max_len) -> None:
        self.max_len = max_len

    def generate(self, requests, *, on_finish=None):
        type(self).calls.append(requests)
        for r, request in enumerate(requests):
            prompt = self.tokenizer.decode(request.prompt_ids)
            for i in range(request.num_samples):
                text = type(self).script(prompt, i)
                if text is None:
                    raise KeyboardInterrupt
                ids = [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]
                cut = len(ids) > request.max_new_tokens
                ids = ids[: request.max_new_tokens]
                on_finish(r, i, Completion(ids, [0.0] * len(ids), "length" if cut else "stop"))


def scripted(patch, script) -> list[list]:
    """Let `script` answer; returns the list that calls of the sampler are noted in."""
    patch.setattr(ScriptedSampler, "script", staticmethod(script))
    patch.setattr(ScriptedSampler, "calls", [])
    patch.setattr("rl.evaluation.asking.Sampler", ScriptedSampler)
    return ScriptedSampler.calls


def make_answerer(template: str = TEMPLATE, context: int = 100_000, **decoding) -> Answerer:
    renderer = PromptRenderer(reader_tokenizer(template), Prompts(refine="REFINE", plain="PLAIN"))
    return Answerer(LoadedModel(None, renderer.tokenizer, renderer, [0], None, context), Decoding(**decoding))
