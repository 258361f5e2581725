"""Eq. 5 by a language model behind any OpenAI-compatible server, asked while sampling goes on.

    a reply that is a number in [0, 1]         the score, cached (or whatever else `parse` makes a score of)
    any other reply                            None, judge/parse_failed; at temperature 0 asking again would not help
    time-out, reset, broken body, 5xx,         asked again after a pause; None, judge/failed, when the tries are used up
    408, 409, 429
    400, 413, 422                              None, judge/failed: this prompt is refused (too long, for example);
                                               `JudgeRefusedError` if the server has never answered any prompt
    any other status                           `JudgeRefusedError`: a mistake in address, model or key

Every other error (a full disk under the cache, a bug) is raised by finish() as it is.
"""

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event, Lock

from rewards.judge import Judgement, JudgeRefusedError, Scorer, parse_score
from rewards.judge_prompts import build_judge_prompt, check_template

MAX_TOKENS = 8  # a number; a judge that starts to explain is cut off
BACKOFF_CAP = 30.0  # seconds
RETRY_AFTER_CAP = 120.0  # seconds; a server that asks for more is taken to be down
IDLE_SECONDS = 3.0  # common servers close idle connections after 5 seconds, so they are closed here before
RESERVED = {"model", "messages", "stream"}  # fields of a request that an extra body must not replace
TRY_AGAIN, PROMPT_REFUSED = (408, 409, 429), (400, 413, 422)  # HTTP status


class _NoReplyError(Exception):
    """A call without a reply; `pause` is the seconds that the server asks to wait, None if asking again would not help."""

    def __init__(self, reason: str, pause: float | None = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class HttpJudge(Scorer):
    """A `Scorer` that posts each answer to `{base_url}/chat/completions`.

    Args:
        base_url: address of the API, for example http://localhost:8000/v1.
        model: the server's name of the judge model.
        prompt_template: see `build_judge_prompt`.
        parse: reads a reply: a score in [0, 1], or None for a reply that is none.
        concurrency: calls under way at once; others wait.
        timeout: seconds for one try, from connecting to the last byte of the reply.
        max_retries: further tries of a call that failed.
        backoff: seconds before the second try; doubled for each further one.
        extra_body: merged into every request, for example to switch a judge's thinking off; a value of None takes a field
            out ({"max_tokens": None, "max_completion_tokens": 8}).
        cache: scores by key; default: a dictionary of this judge.
        api_key: sent as a bearer token; it is in no message, file or repr.

    Attributes:
        last_failure: the last failure, for a message to the user; "" if nothing has failed.

    Raises:
        ValueError: an argument that cannot work.
    """

    may_recover = True

    def __init__(
        self, base_url: str, model: str, *, prompt_template: str, parse: Callable[[str], float | None] = parse_score,
        concurrency: int = 64, timeout: float = 60.0, max_retries: int = 5, backoff: float = 0.5,
        extra_body: dict | None = None, cache: MutableMapping[str, float] | None = None, api_key: str | None = None,
    ) -> None:  # fmt: skip
        # settings
        if concurrency < 1 or timeout <= 0 or max_retries < 0 or not model:
            raise ValueError("a judge needs a model name, a concurrency of at least 1, a time-out above 0, no negative retries")
        check_template(prompt_template)
        self._url, self._key = _checked_url(base_url) + "/chat/completions", (api_key or "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ValueError("the judge's API key has characters that no HTTP header can hold")
        self._model, self._template, self._parse, self._extra = model, prompt_template, parse, extra_body or {}
        self._timeout, self._max_retries, self._backoff = timeout, max_retries, backoff

        # connections and threads
        import httpx2 as httpx  # late here and below: a run without a judge's server does not need it

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency, keepalive_expiry=IDLE_SECONDS)
        self._client = httpx.Client(headers=headers, timeout=timeout, limits=limits)
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="judge")
        self._closing, self._lock = Event(), Lock()

        # scores, counts and failures so far
        self._cache = {} if cache is None else cache
        self._in_flight: dict[str, Future[float | None]] = {}
        self._counts, self._latencies = Counter(), []
        self._has_answered = False  # after a reply address, model and key are known to be right
        self._refused_prompt = self.last_failure = ""
        self._error: Exception | None = None
        self._random = random.Random()  # for pauses; the global generator is left alone

    def render(self, item: Judgement) -> str:
        """Return the user message about one answer."""
        return build_judge_prompt(self._template, item)

    def submit(self, item: Judgement) -> "Future[float | None]":
        """Take one answer and return at once. An item that was scored before, or is being scored, is not asked again.

        Raises:
            JudgeRefusedError: an earlier call has shown that no call can work.
        """
        self._raise_error()
        prompt = self.render(item)
        text = json.dumps([self._model, prompt, self._extra], sort_keys=True)  # everything that a score depends on
        key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        with self._lock:
            future, score = self._in_flight.get(key), self._cache.get(key)
            if score is None and (future is None or future.done()):
                self._in_flight[key] = self._pool.submit(self._score, key, prompt)
                return self._in_flight[key]
            self._counts["cache_hits"] += 1
        if score is not None:
            future = Future()
            future.set_result(score)
        return future

    def finish(self) -> None:
        """Wait until every future returned so far has its score.

        Raises:
            JudgeRefusedError: no call can work; the message is the server's.
        """
        with self._lock:
            pending = dict(self._in_flight)
        wait(pending.values())
        with self._lock:
            self._in_flight = {key: future for key, future in self._in_flight.items() if not future.done()}
        if self._refused_prompt and not self._has_answered:
            self._error = self._error or JudgeRefusedError(self._refused_prompt)
        self._raise_error()

    def take_stats(self) -> dict[str, float]:
        """Return `judge/*` since the last call.

        calls: answers sent to the server, however many tries each took, cache_hits not counted. failed: those without any
        reply after all tries; parse_failed: those whose reply is no score. retries: further tries. latency_p50,
        latency_p95: seconds of the tries that brought a reply; 0 if none did.
        """
        with self._lock:
            counts, self._counts = self._counts, Counter()
            latencies, self._latencies = sorted(self._latencies) or [0.0], []
        numbers = {name: counts[name] for name in ("calls", "failed", "parse_failed", "retries", "cache_hits")}
        numbers["latency_p50"] = latencies[len(latencies) // 2]
        numbers["latency_p95"] = latencies[int(0.95 * (len(latencies) - 1) + 0.5)]
        return {f"judge/{name}": value for name, value in numbers.items()}

    def close(self) -> None:
        """Free threads and connections. Waiting answers get None; tries under way end within their time-out."""
        self._closing.set()
        self._pool.shutdown()
        self._client.close()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    def _score(self, key: str, prompt: str) -> float | None:
        """Return one answer's score, in a thread of the pool. An error is kept for finish() to raise."""
        if self._error is not None or self._closing.is_set():
            return None
        self._count("calls")
        try:
            if (reply := self._ask(prompt)) is None:
                self._count("failed")
                return None
            if (score := self._parse(reply)) is None:
                self.last_failure = f"a reply that does not say what was asked: {reply[:80]!r}"
                self._count("parse_failed")
                return None
            self._cache[key] = score
            return score
        except Exception as error:
            self._error = self._error or error
            return None

    def _ask(self, prompt: str) -> str | None:
        """Return the judge's reply, after as many tries as it takes; None if there is none."""
        # the request
        message = {"role": "user", "content": prompt}
        body = {"model": self._model, "messages": [message], "temperature": 0, "max_tokens": MAX_TOKENS} | self._extra
        content = json.dumps({name: value for name, value in body.items() if value is not None}).encode()

        for attempt in range(self._max_retries + 1):
            # one try
            begin = time.perf_counter()
            try:
                reply = self._post(content)
            except _NoReplyError as error:
                self.last_failure, least = str(error), error.pause
            else:
                self._has_answered = True
                with self._lock:
                    self._latencies.append(time.perf_counter() - begin)
                return reply
            if least is None:
                self._refused_prompt = self.last_failure
                return None

            # a pause; its random part keeps calls that failed together from coming back together
            pause = min(BACKOFF_CAP, self._backoff * 2**attempt) * self._random.uniform(0.5, 1.0)
            if attempt == self._max_retries or self._closing.wait(max(least, pause)):
                return None
            self._count("retries")
        return None

    def _post(self, content: bytes) -> str:
        """Send a request once and return the text of the reply, "" if the message has none (all spent on thinking).

        Raises:
            _NoReplyError, JudgeRefusedError: see the top of this file.
        """
        import httpx2 as httpx

        # the whole reply; single reads are timed by the client, and a reply that trickles would never end
        passing = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError, httpx.DecodingError)
        begin, received = time.perf_counter(), bytearray()
        headers = {"Content-Type": "application/json"}
        try:
            with self._client.stream("POST", self._url, content=content, headers=headers) as response:
                for chunk in response.iter_bytes():
                    received += chunk
                    if time.perf_counter() - begin > self._timeout:
                        raise _NoReplyError("the reply took longer than the time-out")
        except passing as error:
            raise _NoReplyError(type(error).__name__) from error  # its message may hold more than a user should see

        # failures
        status = response.status_code
        if status in TRY_AGAIN or status >= 500:
            raise _NoReplyError(f"HTTP {status}", _retry_after(response.headers.get("Retry-After", "")))
        if not 200 <= status < 300:
            said = " ".join(received.decode("utf-8", "replace").split())
            said = said.replace(self._key, "***") if self._key else said  # some servers quote the key
            message = f"the judge at {self._url} refuses model {self._model!r}: HTTP {status}: {said[:500]}"
            raise _NoReplyError(message, pause=None) if status in PROMPT_REFUSED else JudgeRefusedError(message)

        # the text
        try:
            text = json.loads(received)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _NoReplyError("a body that is no chat completion") from error
        return text if isinstance(text, str) else ""


def _retry_after(value: str) -> float:
    """Return the seconds that a Retry-After header asks to wait; 0 for none that can be read (a date, say)."""
    try:
        return min(max(0.0, float(value)), RETRY_AFTER_CAP)
    except ValueError:
        return 0.0


def _checked_url(base_url: str) -> str:
    import httpx2 as httpx

    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"the judge's address {base_url!r} cannot be read: {error}") from error
    if url.userinfo:
        raise ValueError("leave name and password out of the judge's address: it is saved with the run. Use an API key")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.path.rstrip("/").endswith("/completions"):
        raise ValueError(f"the judge's address must look like http://localhost:8000/v1, not {base_url!r}")
    return str(url).rstrip("/")
