"""The judge behind HTTP: every fault counted, no score lost, invented or swapped, and the key kept to itself."""

import logging
import threading
import time

import pytest
from judging import NO_FAULTS, FakeJudge, ask, counts, fair, item, judge_at, planned, prompt_of, running, share_of, some_fail

from rewards.judge import JudgeRefusedError
from rl.judging.cache import ScoreCache

KEY = "sk-very-secret"


def test_scores_are_the_servers():
    """Bug guarded: scores that go to another answer, a wrong address, a request with sampling, statistics that pile up."""
    items = [item(n) for n in range(100)]
    with running(FakeJudge(fair)) as server, judge_at(server.url + "/", extra_body={"top_k": 1, "max_tokens": None}) as judge:
        assert ask(judge, *items) == [float(fair(prompt_of(i))) for i in items]
        assert counts(judge) == NO_FAULTS | {"calls": 100}
        assert counts(judge) == NO_FAULTS | {"calls": 0}
    assert sorted(server.asked) == sorted(map(prompt_of, items))
    assert server.paths == {"/v1/chat/completions"}
    message = {"role": "user", "content": server.asked[0]}
    assert server.bodies[0] == {"model": "a-judge", "messages": [message], "temperature": 0, "top_k": 1}
    assert "Authorization" not in server.headers


def test_every_fault_is_survived_and_counted():
    """Bug guarded: a lost, invented or swapped score, or an uncounted retry, when a third of all calls fail in every way."""
    items = [item(n) for n in range(120)]
    prompts, plan = [prompt_of(i) for i in items], some_fail(failing=0.3, slow=0.1)
    faults, lost = planned(plan, prompts, max_retries=5)
    assert lost == 0
    assert len(faults) == 6, "every kind of fault occurs"
    with running(FakeJudge(fair, plan)) as server, judge_at(server.url, concurrency=24, timeout=1.0) as judge:
        assert ask(judge, *items) == [float(fair(prompt)) for prompt in prompts]
        assert counts(judge) == NO_FAULTS | {"calls": 120, "retries": faults.total()}
        assert {fault: n for fault, n in server.done.items() if fault not in ("", "slow")} == faults
        assert len(server.asked) == 120, "a call that succeeded is not repeated"


def test_a_reply_that_trickles_ends_at_the_time_out():
    """Bug guarded: a time-out of each read alone, so that a server which sends a byte now and then is waited for for ever."""
    server = FakeJudge(fair, lambda prompt, attempt: "" if attempt else "trickle")
    with running(server), judge_at(server.url, timeout=0.3) as judge:
        begin = time.perf_counter()
        assert ask(judge, item(0)) == [float(fair(prompt_of(item(0))))]
        assert time.perf_counter() - begin < 5, "all of it would take ten seconds"
        assert counts(judge) == NO_FAULTS | {"calls": 1, "retries": 1}


def test_what_fails_to_the_end_is_none_and_counted():
    """Bug guarded: a judge that is down scored 0, or the run ended by it; a refused connection that raises or hangs."""
    items = [item(n) for n in range(60)]
    prompts = [prompt_of(i) for i in items]

    def plan(prompt: str, attempt: int) -> str:
        return ("500", "429", "reset", "garbage", "half")[attempt] if share_of("down", prompt) < 0.4 else ""

    faults, lost = planned(plan, prompts, max_retries=2)
    assert 0 < lost < 60
    with running(FakeJudge(fair, plan)) as server, judge_at(server.url, max_retries=2) as judge:
        scores = ask(judge, *items)
        assert scores == [None if plan(prompt, 0) else float(fair(prompt)) for prompt in prompts]
        assert scores.count(None) == lost
        assert counts(judge) == NO_FAULTS | {"calls": 60, "failed": lost, "retries": 2 * lost}
        assert judge.last_failure
        assert faults.total() == 3 * lost
    with judge_at(server.url, max_retries=1) as judge:
        assert ask(judge, item(0), item(1)) == [None, None]
        assert counts(judge) == NO_FAULTS | {"calls": 2, "failed": 2, "retries": 2}
        assert judge.last_failure == "ConnectError"


@pytest.mark.parametrize("reply", ["8/10", "The score is 1", "1.5", "nan", "", None, "0.5 0.7"])
def test_a_reply_that_is_no_score_is_none_and_not_asked_again(reply):
    """Bug guarded: a number taken out of a sentence; a deterministic judge asked six times, or for an essay each time."""
    with running(FakeJudge(lambda prompt: reply)) as server, judge_at(server.url) as judge:
        assert ask(judge, item(0)) == [None]
        assert counts(judge) == NO_FAULTS | {"calls": 1, "parse_failed": 1}
        assert [body["max_tokens"] for body in server.bodies] == [8]


def test_concurrency_is_bounded_and_used():
    """Bug guarded: a server flooded with a whole rollout at once, or asked one call after another."""
    with running(FakeJudge(fair, latency=0.03)) as server, judge_at(server.url, concurrency=5) as judge:
        ask(judge, *[item(n) for n in range(40)])
    assert server.most == 5


def test_submitting_does_not_wait():
    """Bug guarded: sampling that stands still while the judge thinks."""
    blocked = threading.Event()
    with running(FakeJudge(lambda prompt: "1" if blocked.wait(20) else "0")) as server, judge_at(server.url) as judge:
        futures = [judge.submit(item(n)) for n in range(40)]
        assert not any(future.done() for future in futures)
        blocked.set()
        judge.finish()
        assert [future.result() for future in futures] == [1.0] * 40


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_a_wrong_model_name_or_key_is_an_error_at_once(status):
    """Bug guarded: a spelling mistake retried for minutes and trained on as missing scores; a thousand such calls."""
    server = FakeJudge(lambda prompt: (status, "no such model"), latency=0.1)
    with running(server), judge_at(server.url, concurrency=2) as judge:
        futures = [judge.submit(item(n)) for n in range(20)]
        with pytest.raises(ValueError, match=f"'a-judge': HTTP {status}: no such model"):
            judge.finish()
        with pytest.raises(JudgeRefusedError):
            judge.submit(item(20))
        assert [future.result() for future in futures] == [None] * 20
        assert len(server.asked) <= 4
        assert counts(judge) == NO_FAULTS | {"calls": len(server.asked)}


def test_one_refused_prompt_is_none_but_all_refused_is_an_error():
    """Bug guarded: a run ended by one answer too long for the judge; a wrong field in every request seen as bad luck."""
    answers = {prompt_of(item(0)): "0.5"}
    with running(FakeJudge(lambda prompt: answers.get(prompt, (400, "prompt too long")))) as server:
        with judge_at(server.url) as judge:
            assert ask(judge, item(1), item(0)) == [None, 0.5]
            assert counts(judge) == NO_FAULTS | {"calls": 2, "failed": 1}
            assert "prompt too long" in judge.last_failure
        with judge_at(server.url) as judge:
            judge.submit(item(1))
            with pytest.raises(JudgeRefusedError, match="HTTP 400: prompt too long"):
                judge.finish()


@pytest.mark.parametrize(("value", "least"), [("0.4", 0.4), ("12 parsecs", 0.0), ("nan", 0.0)])
def test_retry_after_is_honoured(value, least):
    """Bug guarded: a server that asks for a pause hammered on; an unreadable header that ends the call."""
    server = FakeJudge(fair, lambda prompt, attempt: "" if attempt else "429", retry_after=value)
    with running(server), judge_at(server.url) as judge:
        begin = time.perf_counter()
        assert ask(judge, item(0)) == [float(fair(prompt_of(item(0))))]
        assert time.perf_counter() - begin >= least
        assert counts(judge) == NO_FAULTS | {"calls": 1, "retries": 1}


def test_closing_does_not_wait_for_pauses():
    """Bug guarded: Ctrl-C that takes minutes, because calls sit out their back-off."""
    server = FakeJudge(lambda prompt: (503, ""))
    with running(server):
        with judge_at(server.url, concurrency=2, backoff=60.0) as judge:
            futures = [judge.submit(item(n)) for n in range(6)]
            while len(server.asked) < 2:
                time.sleep(0.01)
            begin = time.perf_counter()
        assert time.perf_counter() - begin < 20
        assert [future.result() for future in futures] == [None] * 6


def test_the_key_is_sent_and_nowhere_else(tmp_path, caplog):
    """Bug guarded: a key in a cache, a log, a message or a traceback that is pasted into an issue."""
    caplog.set_level(logging.DEBUG)
    cache = tmp_path / "judge.jsonl"
    with running(FakeJudge(fair)) as server, judge_at(server.url, api_key=KEY, cache=ScoreCache(cache)) as judge:
        ask(judge, item(0))
        assert server.headers["Authorization"] == f"Bearer {KEY}"
        assert KEY not in repr(judge) + cache.read_text() + server.asked[0]
    echo = FakeJudge(lambda prompt: (401, f"Incorrect API key provided: {KEY}"))
    with running(echo), judge_at(echo.url, api_key=KEY) as judge:
        judge.submit(item(0))
        with pytest.raises(JudgeRefusedError, match=r"Incorrect API key provided: \*\*\*") as caught:
            judge.finish()
        assert KEY not in str(caught.value) + repr(caught.value) + judge.last_failure
    assert KEY not in caplog.text
    with pytest.raises(ValueError, match="no HTTP header") as caught, judge_at("http://localhost/v1", api_key=f"{KEY}\nX"):
        pass
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "changes", "message"),
    [
        ("localhost:8000/v1", {}, "must look like"), ("http://me:secret@localhost/v1", {}, "leave name and password out"),
        ("http://localhost/v1/chat/completions", {}, "must look like"), ("http://[::1/v1", {}, "cannot be read"),
        ("http://localhost/v1", {"concurrency": 0}, "concurrency"),
        ("http://localhost/v1", {"prompt_template": "{answer}"}, "question"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(url, changes, message):
    """Bug guarded: a setting that fails at the first answer, after minutes of loading and sampling."""
    with pytest.raises(ValueError, match=message) as caught, judge_at(url, **changes):
        pass
    assert "secret" not in str(caught.value)
