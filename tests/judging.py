"""An HTTP judge to be asked in tests, and what its server should say."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from fault_proxy import share_of

from rewards.http_judge import HttpJudge
from rewards.judge import Judgement
from rewards.judge_prompts import JUDGE_PROMPT, build_judge_prompt

NO_FAULTS = {"failed": 0, "parse_failed": 0, "retries": 0, "cache_hits": 0}


def item(n: int, answer: str = "") -> Judgement:
    return Judgement(f"question {n % 7}", f"reference {n % 7}", answer or f"answer {n}")


def prompt_of(judgement: Judgement) -> str:
    return build_judge_prompt(JUDGE_PROMPT, judgement)


def true_score(prompt: str) -> float:
    return round(share_of("score", prompt), 3)


def fair(prompt: str) -> str:
    return str(true_score(prompt))


@contextmanager
def judge_at(url: str, model: str = "a-judge", **changes) -> Iterator[HttpJudge]:
    settings = {"prompt_template": JUDGE_PROMPT, "concurrency": 16, "timeout": 20.0, "backoff": 0.001}
    with closing(HttpJudge(url, model, **{**settings, **changes})) as judge:
        yield judge


def ask(judge: HttpJudge, *items: Judgement) -> list[float | None]:
    futures = [judge.submit(i) for i in items]
    judge.finish()
    assert all(future.done() for future in futures)
    return [future.result() for future in futures]


def counts(judge: HttpJudge) -> dict[str, float]:
    stats = {name.removeprefix("judge/"): value for name, value in judge.take_stats().items()}
    assert 0 <= stats.pop("latency_p50") <= stats.pop("latency_p95")
    return stats
