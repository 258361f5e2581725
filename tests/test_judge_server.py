"""The judge against a real OpenAI-compatible server, `transformers serve`, with a tiny model that this file makes.

It needs what `pip install "transformers[serving]"` brings, or less: fastapi, uvicorn, openai.
"""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch
from conftest import make_model
from fault_proxy import FaultProxy, planned, running, some_fail
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from model import save_model
from rewards.chat_server import JudgeRefusedError
from rewards.http_judge import HttpJudge
from rewards.judge import Judgement
from rewards.judge_prompt import JUDGE_PROMPT, build_judge_prompt

MISSING = [name for name in ("fastapi", "uvicorn", "openai", "pydantic") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"`transformers serve` needs {', '.join(MISSING)}: pip install {' '.join(MISSING)}"),
]

GRADES = 9  # the tenth kind of prompt gets a reply that is no number
ITEMS = [Judgement(f"question {n % 4}", f"reference {n % 4}", "word " * (n % 13) + "x" * n) for n in range(40)]


@torch.no_grad()
def write_judge_folder(path: Path) -> Path:
    """A judge whose score can be told beforehand: it replies 0.0 to 0.8, by the length of the prompt modulo 10, and words for 9.

    The chat template ends with one of ten tokens, by that length; the model is a table from the last token to the next.
    """
    grades = [f"0.{n}" for n in range(GRADES)] + ["words"]
    vocabulary = {token: n for n, token in enumerate(["?", "<end>", *(f"<kind{n}>" for n in range(10)), *grades])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"<kind\d>"), behavior="isolated")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}<kind{{ messages[-1].content | length % 10 }}>"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="?", eos_token="<end>", pad_token="<end>", chat_template=template
    )
    model = make_model("qwen2", torch.float32, vocab_size=len(vocabulary), num_hidden_layers=1)
    for name, weight in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            weight.zero_()  # so that the last token alone decides
        elif "norm" in name:
            weight.fill_(1)
    model.model.embed_tokens.weight.copy_(torch.eye(len(vocabulary), 64))
    model.lm_head.weight.zero_()
    for n, grade in enumerate(grades):
        model.lm_head.weight[vocabulary[grade], vocabulary[f"<kind{n}>"]] = 1
        model.lm_head.weight[vocabulary["<end>"], vocabulary[grade]] = 1
    save_model(model, fast, path)
    return path
