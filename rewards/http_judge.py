"""Eq. 5 by an LLM behind any OpenAI-compatible server: asked while sampling goes on, patient, and never guessing.

What becomes of an answer:

    a reply that is a number in [0, 1]      the score, cached (or whatever else `parse` makes a score of)
    any other reply                         None, judge/parse_failed; at temperature 0 asking again would not help
    a call that may go better next time     asked again after a pause; None, judge/failed, when the retries are used up
    a prompt that the server refuses        None, judge/failed; but `JudgeRefusedError` if it has never answered any
    a server that refuses every prompt      `JudgeRefusedError` from finish() or submit(): a mistake in address, model or key

Everything else (a full disk under the cache, a bug) is raised by finish() as it is.
"""

import hashlib
import json
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any

from rewards.chat_server import ChatServer, JudgeRefusedError, PromptRefusedError, TryAgainError
from rewards.judge import Judgement, parse_score
from rewards.judge_prompts import build_judge_prompt, check_template

MAX_TOKENS = 8  # a number; a judge that starts to explain is cut off
BACKOFF_CAP = 30.0  # seconds


def cache_key(model: str, prompt: str, extra_body: dict) -> str:
    """A digest of everything a score depends on."""
    text = json.dumps([model, prompt, extra_body], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _Memory(dict):
    """Scores by key, for the life of a judge."""

    def put(self, key: str, score: float) -> None:
        self[key] = score


@dataclass
class _Counts:
    """What `take_stats` reports."""

    calls: int = 0
    failed: int = 0
    parse_failed: int = 0
    retries: int = 0
    cache_hits: int = 0
    latencies: list[float] = field(default_factory=list)


class HttpJudge:
    """A `Scorer` that posts each answer to `{base_url}/chat/completions`.

    Args:
        base_url: address of the API, for example http://localhost:8000/v1.
        model: name of the judge model, as the server knows it.
        prompt_template: see `build_judge_prompt`.
        parse: reads a reply: a score in [0, 1], or None for a reply that is none.
        concurrency: calls under way at once; others wait.
        timeout: seconds for one call, from connecting to the last byte of the reply.
        max_retries: further tries of a call that failed.
        extra_body: merged into every request, for example to switch a judge's thinking off; a value of None takes a field
            out ({"max_tokens": None, "max_completion_tokens": 8}).
        cache: of scores, by key (`get`, `put`); default: a plain memory.
        api_key: sent as a bearer token; the caller takes it from the environment. It is in no message, file or repr.
        backoff: seconds before the first retry; doubled for each further one.

    Attributes:
        last_failure: what went wrong last, for a message to the user; "" if nothing has.
        may_recover: a server that fails may come back.

    Raises:
        ValueError: an argument that cannot work.
    """

    may_recover = True

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        prompt_template: str,
        parse: Callable[[str], float | None] = parse_score,
        concurrency: int = 64,
        timeout: float = 60.0,
        max_retries: int = 5,
        extra_body: dict | None = None,
        cache: Any = None,
        api_key: str | None = None,
        backoff: float = 0.5,
    ) -> None:
        if concurrency < 1 or timeout <= 0 or max_retries < 0:
            raise ValueError("a judge needs a concurrency of at least 1, a time-out above 0 and no negative retries")
        if not model:
            raise ValueError("name the judge's model, as its server knows it")
        check_template(prompt_template)
        self.last_failure = ""
        self._model, self._template, self._parse = model, prompt_template, parse
        self._extra = _checked_extra(extra_body)
        self._max_retries, self._backoff = max_retries, backoff
        self._server = ChatServer(base_url, timeout=timeout, connections=concurrency, api_key=api_key)
        self._cache = cache if cache is not None else _Memory()
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="judge")
        self._random = random.Random()  # of pauses; the global generator is left alone
        self._lock = Lock()
        self._counts = _Counts()
        self._in_flight: dict[str, Future[float | None]] = {}
        self._answered = False  # the server has given some reply, so its address, model and key are right
        self._refused_prompt = ""
        self._error: BaseException | None = None
        self._closing = Event()

    def render(self, item: Judgement) -> str:
        """The user message about one answer."""
        return build_judge_prompt(self._template, item)

    def submit(self, item: Judgement) -> "Future[float | None]":
        """Take one answer; returns at once. An item that was scored before, or is being scored, is not asked again.

        Raises:
            JudgeRefusedError: an earlier call has shown that no call can work.
        """
        self._raise_error()
        prompt = self.render(item)
        key = cache_key(self._model, prompt, self._extra)
        with self._lock:
            known = self._in_flight.get(key)
            if known is None and (score := self._cache.get(key)) is not None:
                known = Future()
                known.set_result(score)
            if known is not None:
                self._counts.cache_hits += 1
                return known
            future = self._in_flight[key] = Future()
            future.set_running_or_notify_cancel()  # others may share it: nobody can cancel it
        work = self._pool.submit(self._score, key, prompt)
        work.add_done_callback(lambda done: self._settle(key, future, done))
        return future

    def finish(self) -> None:
        """Wait until every future handed out so far has its score.

        Raises:
            JudgeRefusedError: no call can work; the message is the server's.
        """
        with self._lock:
            pending = list(self._in_flight.values())
        wait(pending)
        if self._refused_prompt and not self._answered:
            self._error = self._error or JudgeRefusedError(self._refused_prompt)
        self._raise_error()

    def take_stats(self) -> dict[str, float]:
        """`judge/*` since the last call.

        calls: answers put to the server, however many tries each took; cache_hits were not. failed: those without any reply
        after all retries; parse_failed: those whose reply is no score. retries: further tries. latency_p50, latency_p95:
        seconds of the tries that brought a reply; 0 if none did.
        """
        with self._lock:
            counts, self._counts = self._counts, _Counts()
        latencies = sorted(counts.latencies) or [0.0]
        numbers = {name: getattr(counts, name) for name in ("calls", "failed", "parse_failed", "retries", "cache_hits")}
        numbers["latency_p50"] = latencies[len(latencies) // 2]
        numbers["latency_p95"] = latencies[int(0.95 * (len(latencies) - 1) + 0.5)]
        return {f"judge/{name}": value for name, value in numbers.items()}

    def close(self) -> None:
        """Free threads and connections. What still waits gets None; tries under way end within their time-out."""
        self._closing.set()
        self._pool.shutdown(cancel_futures=True)
        self._server.close()

    def __enter__(self) -> "HttpJudge":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _settle(self, key: str, future: "Future[float | None]", work: "Future[float | None]") -> None:
        """Hand the outcome of a call on: a score or None to whoever asked, anything else to finish()."""
        error = None if work.cancelled() else work.exception()
        if error is not None:
            self._error = self._error or error
        future.set_result(None if work.cancelled() or error is not None else work.result())
        with self._lock:
            del self._in_flight[key]

    def _score(self, key: str, prompt: str) -> float | None:
        """One answer's score, in a thread of the pool."""
        if self._error is not None or self._closing.is_set():
            return None
        self._count(calls=1)
        reply = self._ask(prompt)
        if reply is None:
            self._count(failed=1)
            return None
        score = self._parse(reply)
        if score is None:
            self.last_failure = f"a reply that does not say what was asked: {reply[:80]!r}"
            self._count(parse_failed=1)
            return None
        self._cache.put(key, score)
        return score

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, value in more.items():
                setattr(self._counts, name, getattr(self._counts, name) + value)

    def _ask(self, prompt: str) -> str | None:
        """The judge's reply, after as many tries as it takes; None if there is none."""
        fields = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        } | self._extra
        body = {name: value for name, value in fields.items() if value is not None}
        for attempt in range(self._max_retries + 1):
            begin = time.perf_counter()
            try:
                reply = self._server.ask(body)
            except TryAgainError as error:
                self.last_failure, asked_pause = str(error), error.pause
            except PromptRefusedError as error:
                self.last_failure = self._refused_prompt = str(error)
                return None
            else:
                self._answered = True
                with self._lock:
                    self._counts.latencies.append(time.perf_counter() - begin)
                return reply
            if attempt == self._max_retries or self._closing.wait(max(asked_pause, self._pause(attempt))):
                return None
            self._count(retries=1)
        return None

    def _pause(self, attempt: int) -> float:
        """Seconds before the next try. Jitter keeps calls that failed together from coming back together."""
        return min(BACKOFF_CAP, self._backoff * 2**attempt) * self._random.uniform(0.5, 1.0)


def _checked_extra(extra_body: dict | None) -> dict:
    extra = dict(extra_body or {})
    if taken := {"model", "messages", "stream"} & extra.keys():
        raise ValueError(f"a judge's extra body cannot replace {sorted(taken)}")
    return extra
