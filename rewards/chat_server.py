"""One call of an OpenAI-compatible server, and what can become of it.

200 with a chat completion               its text
time-out, reset, broken body, 429, 5xx   `TryAgainError`
400, 413, 422                            `PromptRefusedError`: this prompt (too long, say), or every prompt (a wrong field)
any other 4xx, 3xx                       `JudgeRefusedError`: a mistake in address, model or key
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from rewards.judge import JudgeRefusedError

RETRY_AFTER_CAP = 120.0  # seconds: a server that asks for more is taken to be down
IDLE_SECONDS = 3.0  # common servers close idle connections after 5: let go first
PER_PROMPT = (400, 413, 422)
TRANSIENT = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError, httpx.DecodingError)


class PromptRefusedError(Exception):
    """The server refuses one request; asking again would not help."""


class TryAgainError(Exception):
    """A call that may go better next time; `pause` is what the server asked for, in seconds."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class ChatServer:
    """Posts to `{base_url}/chat/completions`, over connections that are kept. Safe for threads.

    Args:
        base_url: address of the API, for example http://localhost:8000/v1.
        timeout: seconds for one call, from connecting to the last byte of the reply.
        connections: calls under way at once, at most.
        api_key: sent as a bearer token. It is in no message and no repr.

    Raises:
        ValueError: an address or key that cannot work.
    """

    def __init__(self, base_url: str, *, timeout: float, connections: int, api_key: str | None) -> None:
        self.url = _checked_url(base_url) + "/chat/completions"
        self._timeout, self._key = timeout, _checked_key(api_key)
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=timeout,
            limits=httpx.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=IDLE_SECONDS
            ),
        )

    def close(self) -> None:
        self._client.close()

    def ask(self, body: dict) -> str:
        """One try; the text of the reply, "" if the message has none (all spent on thinking).

        Raises:
            TryAgainError, PromptRefusedError, JudgeRefusedError: see the top of this file.
        """
        content, begin, reply = json.dumps(body).encode(), time.perf_counter(), bytearray()
        headers = {"Content-Type": "application/json"}
        with _network_errors(), self._client.stream("POST", self.url, content=content, headers=headers) as response:
            for chunk in response.iter_bytes():
                reply += chunk
                if time.perf_counter() - begin > self._timeout:  # httpx watches single reads: a trickle would never end
                    raise httpx.ReadTimeout("the reply took longer than the time-out")
        status = response.status_code
        if status == 429 or status >= 500:
            raise TryAgainError(f"HTTP {status}", _retry_after(response))
        if 200 <= status < 300:
            return _text_of(reply)
        said = " ".join(reply.decode("utf-8", "replace").split())
        if self._key:
            said = said.replace(self._key, "***")  # some servers quote it
        message = f"the judge at {self.url} refuses model {body['model']!r}: HTTP {status}: {said[:500]}"
        raise PromptRefusedError(message) if status in PER_PROMPT else JudgeRefusedError(message)


@contextmanager
def _network_errors() -> Iterator[None]:
    """Turns what a network does into `TryAgainError`. The message names the kind only."""
    try:
        yield
    except TRANSIENT as error:
        raise TryAgainError(type(error).__name__) from error


def _text_of(reply: bytes | bytearray) -> str:
    try:
        text = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise TryAgainError("a body that is no chat completion") from error
    return text if isinstance(text, str) else ""


def _retry_after(response: httpx.Response) -> float:
    """Seconds the server asks to wait, as a number or a date; 0 if it does not, or not readably."""
    value = response.headers.get("Retry-After", "").strip()
    try:
        seconds = float(value) if value[:1].isdigit() else _seconds_until(parsedate_to_datetime(value))
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_CAP)


def _seconds_until(date: datetime) -> float:
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()


def _checked_url(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"the judge's address {base_url!r} cannot be read: {error}") from error
    if url.userinfo:
        raise ValueError("leave name and password out of the judge's address: it is saved with the run. Use an API key")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.path.rstrip("/").endswith("/completions"):
        raise ValueError(f"the judge's address must look like http://localhost:8000/v1, not {base_url!r}")
    return str(url).rstrip("/")


def _checked_key(api_key: str | None) -> str:
    key = (api_key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError("the judge's API key has characters that no HTTP header can hold")
    return key
