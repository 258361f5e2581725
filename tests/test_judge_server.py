"""The judge against a real OpenAI-compatible server, `transformers serve`, with a tiny model that this file makes.

It needs what `pip install "transformers[serving]"` brings, for the server's own process.
"""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2 as httpx
import pytest
import torch
from conftest import make_model
from judging import NO_FAULTS, ask, counts, judge_at, prompt_of
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from model import save_model
from rewards.judge import Judgement, JudgeRefusedError

NEEDED = ("fastapi", "uvicorn", "openai", "pydantic", "accelerate")
MISSING = " ".join(name for name in NEEDED if importlib.util.find_spec(name) is None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"`transformers serve` cannot run: pip install {MISSING}"),
]
ITEMS = [Judgement(f"question {n % 4}", f"reference {n % 4}", "word " * (n % 13) + "x" * n) for n in range(20)]
EXPECTED = [None if len(prompt_of(item)) % 2 else 0.5 for item in ITEMS]


@torch.no_grad()
def write_judge_folder(path: Path) -> Path:
    """A judge that says "0.5" about prompts of even length, and "words" about the others.

    The chat template ends with one of two tokens, by that length; the model is a table from the last token to the next.
    """
    end, replies = "<|im_end|>", ["0.5", "words"]
    kinds = [f"<kind{n}><|im_start|>assistant\n" for n in range(2)]  # behind it the server reads a Qwen model's reply
    vocabulary = {token: n for n, token in enumerate(["?", end, *kinds, *replies])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"<kind\d><\|im_start\|>assistant\n"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{{ '<kind' + (messages[-1].content | length % 2) | string + '><|im_start|>assistant\n' }}"
    )
    special = dict(unk_token="?", eos_token=end, pad_token=end)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **special)
    model = make_model("qwen3", torch.float32, vocab_size=len(vocabulary), num_hidden_layers=1)
    for name, weight in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            weight.zero_()  # so that the last token alone decides
        elif "norm" in name:
            weight.fill_(1)
    model.model.embed_tokens.weight.copy_(torch.eye(len(vocabulary), 64))
    model.lm_head.weight.zero_()
    for kind, reply in zip(kinds, replies, strict=True):
        model.lm_head.weight[vocabulary[reply], vocabulary[kind]] = 1
        model.lm_head.weight[vocabulary[end], vocabulary[reply]] = 1
    save_model(model, fast, path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address, model name) of a running server; its output is shown if it does not start."""
    folder = write_judge_folder(tmp_path_factory.mktemp("judge") / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = folder.parent / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(30)


def wait_until_healthy(url: str, process: subprocess.Popen, log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)  # not listening yet
    pytest.fail(f"the server did not start:\n{log.read_text()[-2000:]}")


def test_a_real_server_scores(server):
    """Bug guarded: requests that only our own fake understands; replies read off a field that real servers do not have."""
    with judge_at(*server, concurrency=4) as judge:
        assert ask(judge, *ITEMS) == EXPECTED
        assert counts(judge) == NO_FAULTS | {"calls": 20, "parse_failed": EXPECTED.count(None)}
        assert "'words" in judge.last_failure
    assert 0 < EXPECTED.count(None) < 20


def test_a_real_server_refuses_a_wrong_name_and_a_wrong_field(server):
    """Bug guarded: servers say 400 or 422 where OpenAI says 404; a run that goes on without any score."""
    url, model = server
    for name, extra, message in (("no-such-model", None, "no-such-model"), (model, {"no_such_field": 1}, "no_such_field")):
        with judge_at(url, name, extra_body=extra) as judge:
            judge.submit(ITEMS[0])
            with pytest.raises(JudgeRefusedError, match=re.escape(message)):
                judge.finish()
