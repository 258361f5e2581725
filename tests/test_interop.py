"""A checkpoint that training exports is the same model in other people's programs."""

import argparse
import importlib.util

import pytest
import torch
import yaml
from conftest import ROOT, flags, lines_of, run_command, write_questions, write_task_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

import benchmarks.interop as interop
import train
from data.examples import load_examples
from data.prompts import PromptRenderer, load_prompts, load_tokenizer, stop_ids
from model import load_model
from rl.records import Request
from rl.run.checkpoint import newest_model
from rl.sampler import Sampler

NEW_TOKENS = 60


@pytest.fixture
def trained(tmp_path, family, reward_for_length, no_report):
    """The run folder of a short training run, which moved the weights."""
    write_task_folder(tmp_path / "model", family)
    write_questions(tmp_path / "data.jsonl", 7)
    assert train.main(flags(tmp_path, "run", "--steps", "3")) == 0
    return tmp_path / "runs" / "run"


@torch.no_grad()
def test_greedy_text_equals_transformers_generate(trained, tmp_path):
    """Bug guarded: a name, bias, norm or RoPE base that survives our own round trip and is another model elsewhere.

    Prompts as transformers' own tokenizer reads them from the folder, stop ids as its own configuration names them.
    """
    folder = newest_model(trained)
    assert folder != trained
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    start = load_model(tmp_path / "model")
    assert not torch.equal(model.lm_head.weight, start.lm_head.weight), "the run must have trained something"
    renderer = PromptRenderer(tokenizer, load_prompts(None, folder))
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    peer_tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = load_examples(tmp_path / "data.jsonl")
    prompts = [(e.id, mode, renderer.text(e.question, mode)) for e in examples for mode in ("refine", "plain")]
    requests = [Request(renderer.ids(e.question, m), 1, NEW_TOKENS, 0.0, e.id) for e in examples for m in ("refine", "plain")]
    sampler = Sampler(model, stop_ids=list(stop_ids(folder, tokenizer)), max_slots=5, max_len=NEW_TOKENS + 40)
    ours = [completions[0].ids for completions in sampler.generate(requests)]
    for ids, (_, _, prompt) in zip(ours, prompts, strict=True):
        given = peer_tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        theirs = peer.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)[0, given["input_ids"].shape[1] :]
        assert ids == theirs.tolist()
    assert len({tuple(ids) for ids in ours}) > 5, "degenerate text proves nothing"
    assert max(map(len, ours)) > 20
    assert any(len(set(ids)) > 5 for ids in ours)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (pip install lm-eval)")
def test_lm_eval_gives_the_same_completions_and_score(trained, tmp_path):
    """Bug guarded: prompts, stops or scores that only our own evaluation understands."""
    data = ["--data", str(tmp_path / "data.jsonl"), "--questions", "7"]
    done = run_command(str(ROOT / "benchmarks" / "interop.py"), "--model", str(trained), *data)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 of 7 completions and 7 of 7 scores are the same" in done.stdout


def test_interop_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert interop.main(["--model", "nowhere"]) == 0
    assert "pip install lm-eval" in capsys.readouterr().out


def test_task_file_is_what_lm_eval_documents(tmp_path):
    """Bug guarded: a prompt that is rendered twice, a reference with its working, a stop token that is left out."""
    folder = write_task_folder(tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    renderer = PromptRenderer(tokenizer, load_prompts(None, folder))
    (tmp_path / "data.jsonl").write_text('{"question": "274/39", "answer": "39 * 7 = 273\\n#### 7"}\n')
    examples = load_examples(tmp_path / "data.jsonl")
    given = argparse.Namespace(max_new_tokens=9)
    interop.write_task(tmp_path, renderer, list(stop_ids(folder, tokenizer)), examples, given)
    task = yaml.safe_load((tmp_path / "pasr_interop.yaml").read_text())
    assert task["generation_kwargs"] == {"until": ["<|end|>"], "max_gen_toks": 9, "do_sample": False}
    row = lines_of(tmp_path / "questions.jsonl")[0]
    assert row == {"prompt": renderer.text("274/39", "refine"), "target": "7"}
