"""Judges behind HTTP for tests: a server on the loopback that answers by a pure function or breaks calls on purpose, and the
client that asks it.

What the server does to a call is a pure function of the prompt and of how often it was seen, so that a test can say beforehand
how many calls fail, and how.
"""

import hashlib
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rewards.http_judge import HttpJudge
from rewards.judge import Judgement
from rewards.judge_prompts import JUDGE_PROMPT, build_judge_prompt

NO_FAULTS = {"failed": 0, "parse_failed": 0, "retries": 0, "cache_hits": 0}
FAULTS = ("500", "429", "reset", "timeout", "garbage", "half")
Plan = Callable[[str, int], str]  # (text of the prompt, tries before this one) -> a fault, "slow" or ""


def share_of(*parts) -> float:
    """A number in [0, 1) made from texts and numbers: the same on every run."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def some_fail(failing: float = 0.3, slow: float = 0.1) -> Plan:
    """A plan in which a share of calls fails, in every way, and another share is slow."""

    def plan(prompt: str, attempt: int) -> str:
        draw = share_of("fault", prompt, attempt)
        if draw < failing:
            return FAULTS[int(draw / failing * len(FAULTS))]
        return "slow" if draw < failing + slow else ""

    return plan


def completion(text: str | None) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: 40 ms a call without it

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.owner.handle(self, content)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, keep: int | None = None) -> None:
        """Send a reply; with `keep`, only that many bytes of a body announced as whole, and hang up."""
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:keep])
        self.close_connection = self.close_connection or keep is not None

    def log_message(self, *_) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address) -> None:
        pass  # a client that hung up after its time-out


class FakeJudge:
    """A server in threads of this process that replies `answer(prompt)`: a text, None (a message without text), or (status,
    body), but for calls that the plan breaks.

    Attributes:
        asked: every prompt that was answered, in order.
        headers: those of the last call.
        bodies: every request that was answered, parsed.
        most: the largest number of calls under way at once.
        done: how often each fault, "slow" or "" was applied.
    """

    def __init__(
        self, answer: Callable[[str], str | tuple[int, str] | None], plan: Plan = lambda prompt, attempt: "", *,
        latency: float = 0.0, slow: float = 0.1, hold: float = 30.0, retry_after: str = "0",
    ) -> None:  # fmt: skip
        self.answer, self.plan, self.retry_after = answer, plan, retry_after
        self.latency, self.slow, self.hold = latency, slow, hold
        self.asked, self.bodies, self.headers, self.paths = [], [], {}, set()
        self.done, self.seen = Counter(), Counter()
        self.active = self.most = 0
        self.lock, self.released = threading.Lock(), threading.Event()
        self.http = Server(("127.0.0.1", 0), Handler)
        self.http.owner = self
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def handle(self, handler: Handler, content: bytes) -> None:
        body = json.loads(content)
        prompt = body["messages"][-1]["content"]
        with self.lock:
            fault = self.plan(prompt, self.seen[prompt])
            self.seen[prompt] += 1
            self.done[fault] += 1
        if fault in ("", "slow"):
            self._answer(handler, body, prompt, self.slow if fault else self.latency)
        elif fault == "500":
            handler.reply(500, b'{"error": "broken on purpose"}')
        elif fault == "429":
            handler.reply(429, b"{}", {"Retry-After": self.retry_after})
        elif fault == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()  # with nothing to linger for: the peer gets a reset
            handler.close_connection = True
        elif fault == "timeout":
            self.released.wait(self.hold)
            handler.close_connection = True
        elif fault == "trickle":
            handler.reply(200, b"", {"Content-Length": "200"})
            while not self.released.wait(0.05):
                handler.wfile.write(b" ")
        elif fault == "garbage":
            handler.reply(200, b"<html><body>0.9</body></html>")
        elif fault == "half":
            handler.reply(200, completion("0.5"), keep=len(completion("0.5")) // 2)

    def _answer(self, handler: Handler, body: dict, prompt: str, pause: float) -> None:
        with self.lock:
            self.asked.append(prompt)
            self.bodies.append(body)
            self.headers = dict(handler.headers)
            self.paths.add(handler.path)
            self.active += 1
            self.most = max(self.most, self.active)
        self.released.wait(pause)
        with self.lock:
            self.active -= 1
        answer = self.answer(prompt)
        status, reply = (answer[0], answer[1].encode()) if isinstance(answer, tuple) else (200, completion(answer))
        handler.reply(status, reply)

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def planned(plan: Plan, prompts: list[str], max_retries: int) -> tuple[Counter[str], int]:
    """What a plan does to these prompts: faults that are met, and prompts that fail to the end."""
    faults, lost = Counter(), 0
    for prompt in prompts:
        tries = [plan(prompt, attempt) for attempt in range(max_retries + 1)]
        good = next((n for n, fault in enumerate(tries) if fault in ("", "slow")), None)
        lost += good is None
        faults.update(fault for fault in tries[:good] if fault not in ("", "slow"))
    return faults, lost


running = closing  # a server runs until its test ends


def item(n: int, answer: str = "") -> Judgement:
    return Judgement(f"question {n % 7}", f"reference {n % 7}", answer or f"answer {n}")


def prompt_of(judgement: Judgement) -> str:
    return build_judge_prompt(JUDGE_PROMPT, judgement)


def fair(prompt: str) -> str:
    """The reply of a judge that scores by the prompt alone."""
    return f"{share_of('score', prompt):.3f}"


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
