"""Which judge --judge makes, what it is given, and what its scores are told apart by."""

from pathlib import Path
from types import SimpleNamespace

import torch
from conftest import make_model, write_task_folder
from fault_proxy import FakeJudge, running
from test_local_judge import character_tokenizer

import rl.judging.judge
from data.prompts import Prompts
from rewards.accuracy import rules_version
from rewards.judge import parse_score
from rl.config import Config
from rl.judging.judge import CASES, JudgePrompt, judge_identity, make_scorers, training_prompt
from rl.judging.local_judge import GRADE_PROMPT

FIELDS = " {question} {reference} {answer}"
ASKED = {"first": JudgePrompt("server one" + FIELDS, "local one" + FIELDS),
         "second": JudgePrompt("server two" + FIELDS, "local two" + FIELDS, parse=lambda reply: 0.5)}  # fmt: skip
BOTH, CPU = tuple(ASKED.values()), torch.device("cpu")


def test_the_prompt_with_known_answers_is_tried(tmp_path, capsys):
    """Bug guarded: a judge found unable because it was tried by a prompt whose right answers nobody knows."""

    def reply(prompt: str) -> str:
        return str(float("= 43" in prompt or prompt.count("Tokyo") == 2 or "lower density" in prompt))

    with running(FakeJudge(reply)) as server:
        config = Config(judge=server.url, judge_model="m", runs_dir=str(tmp_path))
        for tried, able in (("first", True), ("second", False)):  # the second reads one half whatever the reply
            server.asked.clear()
            for scorer in make_scorers(config, ASKED, None, CPU, tried=tried).values():
                scorer.close()
            assert len(server.asked) == len(CASES)
            assert all(prompt.startswith(ASKED[tried].server.split(" {")[0]) for prompt in server.asked)
            assert ("WARNING" not in capsys.readouterr().out) == able


def test_a_server_is_given_every_flag(tmp_path, monkeypatch):
    """Bug guarded: a flag that changes nothing; the key of another service sent to this one."""
    made = []
    monkeypatch.setattr(rl.judges, "HttpJudge", lambda url, model, **given: made.append({"url": url, "model": model} | given))
    monkeypatch.setattr(rl.judges, "preflight", lambda scorer: SimpleNamespace(is_unreachable=False, is_able=True))
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    monkeypatch.setenv("PASR_JUDGE_API_KEY", "ours")
    config = Config(
        judge="http://localhost:1/v1", judge_model="m", judge_concurrency=3, judge_timeout=7.0,
        judge_extra_body='{"top_k": 1}', runs_dir=str(tmp_path),
    )  # fmt: skip
    make_scorers(config, ASKED, None, CPU, tried="first")
    monkeypatch.delenv("PASR_JUDGE_API_KEY")
    make_scorers(config, {"first": ASKED["first"]}, None, CPU, tried="first")
    assert made[0] == {
        "url": "http://localhost:1/v1", "model": "m", "prompt_template": ASKED["first"].server, "parse": parse_score,
        "concurrency": 3, "timeout": 7.0, "extra_body": {"top_k": 1}, "cache_file": tmp_path / "judge_cache.jsonl",
        "api_key": "ours",
    }  # fmt: skip
    assert (made[1]["prompt_template"], made[1]["parse"]) == (ASKED["second"].server, ASKED["second"].parse)
    assert made[2]["api_key"] == "another"


def test_a_model_is_given_the_prompt_for_models():
    """Bug guarded: a model that is read by its next token asked to write a number."""
    tokenizer = character_tokenizer()
    own = (make_model("qwen3", vocab_size=len(tokenizer), num_hidden_layers=1).float(), tokenizer)
    scorers = make_scorers(Config(judge="self"), ASKED, own, CPU, tried="second")
    for name, (_, item) in zip(ASKED, CASES, strict=False):
        assert scorers[name].render(item).count(ASKED[name].local.split(" {")[0]) == 1


def test_training_asks_with_the_users_prompts():
    """Bug guarded: --prompts with a judge's instruction that is read and not used."""
    assert training_prompt(Prompts(judge="J", grade="G")) == JudgePrompt("J", "G")
    assert training_prompt(Prompts()).local == GRADE_PROMPT


def test_scores_of_judges_that_differ_do_not_mix(tmp_path):
    """Bug guarded: baselines or records of another model, prompt, request or rule taken for this judge's."""
    mine, other = (write_task_folder(tmp_path / name, seed=seed) for seed, name in enumerate(("mine", "other")))

    def identity(asked=BOTH, source: Path = mine, **judge) -> str:
        return repr(judge_identity(Config(**judge), source, asked))

    server = {"judge": "http://localhost:1/v1", "judge_model": "m"}
    one, two = BOTH
    found = [
        identity(judge="rules"), identity(**server), identity(**server | {"judge_model": "n"}),
        identity(**server, judge_extra_body='{"top_k": 1}'), identity((one,), **server),
        identity((JudgePrompt(one.server + "!", one.local), two), **server),
        identity((JudgePrompt("ab", "l"), JudgePrompt("c", "l")), **server),
        identity((JudgePrompt("a", "l"), JudgePrompt("bc", "l")), **server), identity(judge="self"),
        identity(judge="self", source=other), identity((JudgePrompt(one.server, one.local + "!"), two), judge="self"),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert judge_identity(Config(judge="rules"), mine, ()) == ["rules", rules_version()]
    assert identity(judge=str(other)) == identity(judge="self", source=other), "by its weights, whatever it is called"
    assert identity(**server | {"judge": "http://elsewhere:2/v1"}) == identity(**server), "a server may move"
    assert identity((JudgePrompt(one.server, "not used"), two), **server) == identity(**server)
