"""The cache of a judge's scores: nothing is paid for twice, no failure is remembered, no key is kept."""

import json

import pytest
from judging import NO_FAULTS, FakeJudge, ask, counts, fair, item, judge_at, running

from rl.judging.cache import ScoreCache


def ask_anew(url: str, cache, *items, **changes) -> tuple[list[float | None], dict]:
    """The scores that a new judge with this cache gives, and its counts."""
    with judge_at(url, cache=ScoreCache(cache), **changes) as judge:
        return ask(judge, *items), counts(judge)


def test_the_same_item_in_flight_is_asked_once():
    """Bug guarded: a group of equal answers paid for one by one."""
    with running(FakeJudge(fair, latency=0.05)) as server, judge_at(server.url) as judge:
        assert len(set(ask(judge, *[item(3)] * 9, item(4)))) == 2
        assert counts(judge) == NO_FAULTS | {"calls": 2, "cache_hits": 8}
        assert len(server.asked) == 2


def test_a_second_run_asks_nothing(tmp_path):
    """Bug guarded: a resumed run that pays again, or is judged differently; another judge's scores taken for ours."""
    cache, items = tmp_path / "cache" / "judge.jsonl", [item(n) for n in range(20)]
    with running(FakeJudge(fair)) as server:
        first, _ = ask_anew(server.url, cache, *items)
        assert ask_anew(server.url, cache, *items) == (first, NO_FAULTS | {"calls": 0, "cache_hits": 20})
        assert len(server.asked) == 20
        ask_anew(server.url, cache, *items, extra_body={"top_k": 1})
        with judge_at(server.url, "another", cache=ScoreCache(cache)) as judge:
            ask(judge, *items)
        assert len(server.asked) == 60


def test_a_cut_off_cache_loses_its_last_line_only(tmp_path):
    """Bug guarded: a kill while writing that makes the cache unreadable, or glues the next row to the torn one."""
    cache, items = tmp_path / "judge.jsonl", [item(n) for n in range(4)]
    with running(FakeJudge(fair)) as server:
        first, _ = ask_anew(server.url, cache, *items)
        cache.write_bytes(cache.read_bytes()[:-3])
        for calls in (1, 0):
            assert ask_anew(server.url, cache, *items) == (first, NO_FAULTS | {"calls": calls, "cache_hits": 4 - calls})


def test_failures_are_not_cached(tmp_path):
    """Bug guarded: an outage that is remembered for ever."""
    cache, replies = tmp_path / "judge.jsonl", iter(["no idea", "0.25", (500, ""), "0.75"])
    server = FakeJudge(lambda prompt: next(replies))
    with running(server), judge_at(server.url, cache=ScoreCache(cache), max_retries=0) as judge:
        assert [ask(judge, item(n)) for n in (0, 0, 1, 1)] == [[None], [0.25], [None], [0.75]]
    assert [json.loads(line)["score"] for line in cache.read_text().splitlines()] == [0.25, 0.75]


def test_a_full_disk_is_an_error(tmp_path):
    """Bug guarded: an exception in a thread that nobody hears of."""
    with running(FakeJudge(fair)) as server, judge_at(server.url, cache=ScoreCache(tmp_path / "cache")) as judge:
        (tmp_path / "cache").unlink()
        (tmp_path / "cache").mkdir()
        future = judge.submit(item(0))
        with pytest.raises(IsADirectoryError):
            judge.finish()
        assert future.result() is None
