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
from fault_proxy import FaultProxy, planned, running, some_fail
from judging import NO_FAULTS, ask, counts
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from model import save_model
from rewards.http_judge import HttpJudge
from rewards.judge import Judgement, JudgeRefusedError
from rewards.judge_prompts import JUDGE_PROMPT, build_judge_prompt
from rl.judging.cache import ScoreCache

NEEDED = ("fastapi", "uvicorn", "openai", "pydantic", "accelerate")
MISSING = " ".join(name for name in NEEDED if importlib.util.find_spec(name) is None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"`transformers serve` cannot run: pip install {MISSING}"),
]

GRADES = 9  # the tenth kind of prompt gets a reply that is no number
ITEMS = [Judgement(f"question {n % 4}", f"reference {n % 4}", "word " * (n % 13) + "x" * n) for n in range(40)]


@torch.no_grad()
def write_judge_folder(path: Path) -> Path:
    """A judge whose score is known beforehand: 0.0 to 0.8 by the length of the prompt modulo 10, and words for 9.

    The chat template ends with one of ten tokens, by that length; the model is a table from the last token to the next.
    """
    turn, end = "<|im_start|>assistant\n", "<|im_end|>"  # the server reads a Qwen model's reply from between these
    kinds, grades = [f"<kind{n}>{turn}" for n in range(10)], [f"0.{n}" for n in range(GRADES)] + ["words"]
    vocabulary = {token: n for n, token in enumerate(["?", end, *kinds, *grades])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"<kind\d><\|im_start\|>assistant\n"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{{ '<kind' + (messages[-1].content | length % 10) | string + '><|im_start|>assistant\n' }}"
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="?", eos_token=end, pad_token=end, chat_template=template
    )
    model = make_model("qwen3", torch.float32, vocab_size=len(vocabulary), num_hidden_layers=1)
    for name, weight in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            weight.zero_()  # so that the last token alone decides
        elif "norm" in name:
            weight.fill_(1)
    model.model.embed_tokens.weight.copy_(torch.eye(len(vocabulary), 64))
    model.lm_head.weight.zero_()
    for kind, grade in zip(kinds, grades, strict=True):
        model.lm_head.weight[vocabulary[grade], vocabulary[kind]] = 1
        model.lm_head.weight[vocabulary[end], vocabulary[grade]] = 1
    save_model(model, fast, path)
    return path


def true_score(prompt: str) -> float | None:
    kind = len(prompt) % 10
    return kind / 10 if kind < GRADES else None


PROMPTS = [build_judge_prompt(JUDGE_PROMPT, item) for item in ITEMS]
EXPECTED = [true_score(prompt) for prompt in PROMPTS]


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


def test_a_real_server_scores(server, tmp_path):
    """Bug guarded: requests that only our own fake understands; replies read off a field that real servers do not have."""
    url, model = server
    settings = {"prompt_template": JUDGE_PROMPT, "concurrency": 4}
    unparsable = EXPECTED.count(None)
    assert 0 < unparsable < 10
    with HttpJudge(url, model, **settings, cache=ScoreCache(tmp_path / "cache.jsonl")) as judge:
        assert ask(judge, *ITEMS) == EXPECTED
        assert counts(judge) == NO_FAULTS | {"calls": 40, "parse_failed": unparsable}
        assert "'words" in judge.last_failure
    with HttpJudge(url, model, **settings, cache=ScoreCache(tmp_path / "cache.jsonl")) as judge:
        assert ask(judge, *ITEMS) == EXPECTED
        assert counts(judge) == NO_FAULTS | {"calls": unparsable, "parse_failed": unparsable, "cache_hits": 40 - unparsable}


def test_a_real_server_behind_faults_gives_the_same_scores(server):
    """Bug guarded: scores that depend on which calls failed."""
    url, model = server
    plan = some_fail(failing=0.3, slow=0.1)
    faults, lost = planned(plan, PROMPTS, max_retries=5)
    assert lost == 0
    assert faults.total() > 8
    settings = {"prompt_template": JUDGE_PROMPT, "concurrency": 4, "timeout": 4.0, "backoff": 0.01}
    with running(FaultProxy(url, plan)) as proxy, HttpJudge(proxy.url, model, **settings) as judge:
        assert ask(judge, *ITEMS) == EXPECTED
        assert counts(judge) == NO_FAULTS | {"calls": 40, "parse_failed": EXPECTED.count(None), "retries": faults.total()}


def test_a_real_server_refuses_a_wrong_name_and_a_wrong_field(server):
    """Bug guarded: servers say 400 or 422 where OpenAI says 404; a run that goes on without any score."""
    url, model = server
    for name, extra, message in (("no-such-model", None, "no-such-model"), (model, {"no_such_field": 1}, "no_such_field")):
        with HttpJudge(url, name, prompt_template=JUDGE_PROMPT, extra_body=extra) as judge:
            judge.submit(ITEMS[0])
            with pytest.raises(JudgeRefusedError, match=re.escape(message)):
                judge.finish()
