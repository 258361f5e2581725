"""The peers of the rollout benchmark, each given our weights, our prompts and our forced lengths.

A peer is a function without arguments that does one whole rollout; making it raises PeerMissing when it cannot run here.
"""

import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import fields
from io import StringIO
from types import SimpleNamespace

import torch

from benchmarks.workload import SAMPLES, TEMPERATURE, Case


class PeerMissing(Exception):
    """Why a peer is left out."""


def hugging_face_model(case: Case):
    """transformers' own Qwen2 or Qwen3 with the weights of the case."""
    try:
        import transformers
    except ImportError as error:
        raise PeerMissing("transformers is not installed") from error
    config = transformers.AutoConfig.for_model(**case.model.config.to_hf("float32"))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.load_state_dict(case.model.state_dict())
    return model


def hugging_face(case: Case) -> Callable[[], torch.Tensor]:
    """`generate` with its default (dynamic) cache and attention; a criterion per row ends each at its forced length."""
    model = hugging_face_model(case)
    rows = [prompt for prompt in case.prompts for _ in range(SAMPLES)]
    longest = max(map(len, rows))
    ids_BT = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask_BT = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    limits_B = torch.tensor(case.limits)
    options = dict(do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, pad_token_id=0, eos_token_id=None)

    def finished(ids_BT, scores, **_):
        return limits_B <= ids_BT.shape[1] - longest

    def rollout() -> torch.Tensor:
        out_BT = model.generate(
            ids_BT, attention_mask=mask_BT, max_new_tokens=max(case.limits), stopping_criteria=[finished], **options
        )
        assert out_BT.shape[1] == longest + max(case.limits)
        return out_BT

    return rollout


@torch.no_grad()
def hugging_face_greedy(case: Case, new_tokens: int) -> list[list[int]]:
    """Greedy continuations of each prompt alone, to check that both run the same model."""
    model, rows = hugging_face_model(case), []
    for prompt in case.prompts:
        ids = torch.tensor([prompt])
        options = dict(do_sample=False, pad_token_id=0, eos_token_id=None, max_new_tokens=new_tokens)
        rows.append(model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist())
    return rows


def grpo_zero(case: Case, path: str | None) -> Callable[[], None]:
    """GRPO-Zero's `rollout` with its own model; a length is forced by letting only the end token through at its position.

    It samples at temperature 1. Longer prompts are fed token by token from where the shortest ends.
    """
    if path is None:
        raise PeerMissing("no --grpo-zero PATH given")
    if case.model.config.model_type != "qwen2":
        raise PeerMissing("it knows Qwen2 only")
    sys.path.insert(0, path)
    try:
        from data_types import MiniBatch
        from grpo import rollout
        from qwen2_model import Qwen2Config, Transformer
    except ImportError as error:
        raise PeerMissing(f"its files cannot be imported: {error}") from error
    finally:
        sys.path.remove(path)
    known = {f.name for f in fields(Qwen2Config)}
    config = Qwen2Config(**{k: v for k, v in case.model.config.to_hf("float32").items() if k in known})
    model = Transformer(config, torch.device("cpu"))
    weights = {k.removeprefix("model."): v for k, v in case.model.state_dict().items() if k != "lm_head.weight"}
    model.load_state_dict(weights)
    pad, end = case.model.config.vocab_size - 2, case.model.config.vocab_size - 1  # neither may be in a prompt
    prompts = [[min(token, pad - 1) for token in prompt] for prompt in case.prompts]
    last_B = torch.tensor([len(prompts[row // SAMPLES]) + limit - 1 for row, limit in enumerate(case.limits)])
    inference = model.inference

    def forced(tokens_BT, start):
        logits = inference(tokens_BT, start)
        logits[..., [pad, end]] = -torch.inf
        ends_B = last_B == start + tokens_BT.shape[1]
        logits[ends_B] = -torch.inf
        logits[ends_B, :, end] = 0.0
        return logits

    model.inference = forced
    tokenizer = SimpleNamespace(eos_token="", eos_token_id=end, pad_token_id=pad, detokenize=lambda ids: "")
    blank = [[]] * len(prompts)
    batch = MiniBatch([str(i) for i in range(len(prompts))], blank, prompts, blank, blank)

    def run() -> None:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # autocast to float32 does nothing, and says so
            reward = lambda **_: {"reward": 0.0, "reward_info": {}}  # noqa: E731
            episodes = rollout(model, batch, tokenizer, max(case.limits), SAMPLES, reward, torch.device("cpu"), torch.float32)
        assert [len(e.generated_token_ids) for e in episodes] == case.limits

    return run
