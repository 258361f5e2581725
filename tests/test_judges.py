"""Which judge --judge makes, what it is given, and what its scores are told apart by."""

import json
from pathlib import Path

import pytest
from conftest import make_model, write_task_folder
from judging import FakeJudge, running
from samples import character_tokenizer

import rl.judging.judge
from data.prompts import Prompts
from rewards.accuracy import rules_version
from rewards.judge import parse_score
from rewards.judge_prompts import GRADE_PROMPT
from rl.config import Config
from rl.judging.judge import CASES, JudgePrompt, JudgeSpec, judge_identity, make_scorers, training_prompt

FIELDS = " {question} {reference} {answer}"
PROMPTS = {"first": JudgePrompt("server one" + FIELDS, "local one" + FIELDS),
           "second": JudgePrompt("server two" + FIELDS, "local two" + FIELDS, parse=lambda reply: 0.5)}  # fmt: skip
BOTH = tuple(PROMPTS.values())
SERVER = {"judge": "http://localhost:1/v1", "judge_model": "m"}


def spec_of(folder: Path = Path(), **judge) -> JudgeSpec:
    return JudgeSpec.of(Config(device="cpu", **judge), folder)


def test_the_prompt_with_known_answers_is_tried(tmp_path, capsys):
    """Bug guarded: a judge found unable because it was tried by a prompt whose right answers nobody knows."""

    def reply(prompt: str) -> str:
        return str(float("= 43" in prompt or prompt.count("Tokyo") == 2 or "lower density" in prompt))

    with running(FakeJudge(reply)) as server:
        spec = spec_of(tmp_path, judge=server.url, judge_model="m")
        for tried, able in (("first", True), ("second", False)):  # the second reads one half whatever the reply
            server.asked.clear()
            for scorer in make_scorers(spec, PROMPTS, None, tried=tried).values():
                scorer.close()
            assert len(server.asked) == len(CASES)
            assert all(prompt.startswith(PROMPTS[tried].server.split(" {")[0]) for prompt in server.asked)
            assert ("WARNING" not in capsys.readouterr().out) == able


def test_a_server_is_given_every_flag(tmp_path, monkeypatch):
    """Bug guarded: a flag that changes nothing; the key of another service sent to this one."""
    made = []
    monkeypatch.setattr(
        rl.judging.judge, "HttpJudge", lambda url, model, **more: made.append(dict(url=url, model=model, **more))
    )
    monkeypatch.setattr(rl.judging.judge, "preflight", lambda scorer: [float(kind == "right") for kind, _ in CASES])
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    monkeypatch.setenv("PASR_JUDGE_API_KEY", "ours")
    spec = spec_of(tmp_path, **SERVER, judge_options='{"concurrency": 3, "timeout": 7.0, "extra_body": {"top_k": 1}}')
    make_scorers(spec, PROMPTS, None, tried="first")
    monkeypatch.delenv("PASR_JUDGE_API_KEY")
    make_scorers(spec, {"first": PROMPTS["first"]}, None, tried="first")
    assert made[0].pop("cache")._file == tmp_path / "judge_cache.jsonl"
    assert made[0] == {
        "url": SERVER["judge"], "model": "m", "prompt_template": PROMPTS["first"].server, "parse": parse_score,
        "concurrency": 3, "timeout": 7.0, "extra_body": {"top_k": 1}, "api_key": "ours",
    }  # fmt: skip
    assert (made[1]["prompt_template"], made[1]["parse"]) == (PROMPTS["second"].server, PROMPTS["second"].parse)
    assert made[2]["api_key"] == "another"


def test_a_model_is_given_the_prompt_for_models():
    """Bug guarded: a model that is read by its next token asked to write a number."""
    tokenizer = character_tokenizer()
    own = (make_model("qwen3", vocab_size=len(tokenizer), num_hidden_layers=1).float(), tokenizer)
    scorers = make_scorers(spec_of(judge="self"), PROMPTS, own, tried="second")
    for name, (_, item) in zip(PROMPTS, CASES, strict=False):
        assert scorers[name].render(item).count(PROMPTS[name].local.split(" {")[0]) == 1


def test_training_asks_with_the_users_prompts():
    """Bug guarded: --prompts with a judge's instruction that is read and not used."""
    assert training_prompt(Prompts(judge="J", grade="G")) == JudgePrompt("J", "G")
    assert training_prompt(Prompts()).local == GRADE_PROMPT


def test_scores_of_judges_that_differ_do_not_mix(tmp_path):
    """Bug guarded: baselines or records of another model, prompt, request or rule taken for this judge's."""
    mine, other = (write_task_folder(tmp_path / name, seed=seed) for seed, name in enumerate(("mine", "other")))

    def identity(prompts=BOTH, source: Path = mine, **judge) -> str:
        return repr(judge_identity(spec_of(**judge), source, prompts))

    one, two = BOTH
    found = [
        identity(judge="rules"), identity(**SERVER), identity(**SERVER | {"judge_model": "n"}),
        identity(**SERVER, judge_options='{"extra_body": {"top_k": 1}}'), identity((one,), **SERVER),
        identity((JudgePrompt(one.server + "!", one.local), two), **SERVER),
        identity((JudgePrompt("ab", "l"), JudgePrompt("c", "l")), **SERVER),
        identity((JudgePrompt("a", "l"), JudgePrompt("bc", "l")), **SERVER), identity(judge="self"),
        identity(judge="self", source=other), identity((JudgePrompt(one.server, one.local + "!"), two), judge="self"),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert judge_identity(spec_of(judge="rules"), mine, ()) == ["rules", rules_version()]
    assert judge_identity(spec_of(**SERVER), mine, ())[-1] is None, "as earlier evaluations and baselines have it"
    same = [identity(**SERVER, judge_options=json.dumps({"extra_body": body})) for body in ({"a": 1, "b": 2}, {"b": 2, "a": 1})]
    assert same[0] == same[1], "the order of its fields changes no score"
    assert identity(judge=str(other)) == identity(judge="self", source=other), "by its weights, whatever it is called"
    assert identity(**SERVER | {"judge": "http://elsewhere:2/v1"}) == identity(**SERVER), "a server may move"
    assert identity((JudgePrompt(one.server, "not used"), two), **SERVER) == identity(**SERVER)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('{"patience": 7200}', "patience must be below 7200"), ('{"concurrency": 2.5}', r"concurrency is 2\.5"),
        ('{"timeout": 0}', "timeout is 0"), ('{"extra_body": []}', "must be a JSON object"), ("[]", "JSON object with any of"),
        ('{"extra_body": {"model": "another"}}', "cannot replace any of"), ("{", "not valid JSON"),
        ('{"a": 1}', "any of concurrency"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused(options, message):
    """Bug guarded: a rank that waits for its judge longer than the others wait for it; half a call at a time; another model
    in the body of each request, found out when everything is loaded."""
    with pytest.raises(ValueError, match=message):
        spec_of(**SERVER, judge_options=options)
