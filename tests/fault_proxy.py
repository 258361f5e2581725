"""HTTP servers on the loopback for tests of judges: a judge that is a pure function, and a proxy that breaks calls on purpose.

What the proxy does to a call is a pure function of the request's content and of how often it was seen, so that a test can say
beforehand how many calls fail, and how.
"""

import hashlib
import http.client
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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


class Endpoint:
    """A server in threads of this process; subclasses handle the calls."""

    def __init__(self) -> None:
        self.lock, self.released = threading.Lock(), threading.Event()
        self.http = Server(("127.0.0.1", 0), Handler)
        self.http.owner = self
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def handle(self, handler: Handler, content: bytes) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


class FakeJudge(Endpoint):
    """Replies `answer(prompt)`: a text, None (a message without text), or (status, body).

    Attributes:
        asked: every prompt received, in order.
        headers: those of the last call.
        bodies: every request, parsed.
        most: the largest number of calls under way at once.
    """

    def __init__(self, answer: Callable[[str], str | tuple[int, str] | None], latency: float = 0.0) -> None:
        self.answer, self.latency = answer, latency
        self.asked, self.bodies, self.headers, self.paths = [], [], {}, set()
        self.active = self.most = 0
        super().__init__()

    def handle(self, handler: Handler, content: bytes) -> None:
        body = json.loads(content)
        prompt = body["messages"][-1]["content"]
        with self.lock:
            self.asked.append(prompt)
            self.bodies.append(body)
            self.headers = dict(handler.headers)
            self.paths.add(handler.path)
            self.active += 1
            self.most = max(self.most, self.active)
        self.released.wait(self.latency)
        with self.lock:
            self.active -= 1
        answer = self.answer(prompt)
        status, reply = (answer[0], answer[1].encode()) if isinstance(answer, tuple) else (200, completion(answer))
        handler.reply(status, reply)


class FaultProxy(Endpoint):
    """Passes calls on to another server, but for those that the plan breaks.

    Attributes:
        done: how often each fault, "slow" or "" was applied.
        seen: how often each prompt came.
    """

    def __init__(self, upstream: str, plan: Plan, *, slow: float = 0.1, hold: float = 30.0, retry_after: str = "0") -> None:
        self.upstream, self.plan, self.slow, self.hold, self.retry_after = upstream, plan, slow, hold, retry_after
        self.done: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        super().__init__()

    def handle(self, handler: Handler, content: bytes) -> None:
        prompt = json.loads(content)["messages"][-1]["content"]
        with self.lock:
            fault = self.plan(prompt, self.seen[prompt])
            self.seen[prompt] += 1
            self.done[fault] += 1
        if fault == "500":
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
            body = completion("0.5")
            handler.reply(200, body, keep=len(body) // 2)
        else:
            self.released.wait(self.slow if fault == "slow" else 0)
            handler.reply(*self._forward(handler.path, content))

    def _forward(self, path: str, content: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.upstream.split("/")[2], timeout=60)
        connection.request("POST", path, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, body


def planned(plan: Plan, prompts: list[str], max_retries: int) -> tuple[Counter[str], int]:
    """What a plan does to these prompts: faults that are met, and prompts that fail to the end."""
    faults, lost = Counter(), 0
    for prompt in prompts:
        tries = [plan(prompt, attempt) for attempt in range(max_retries + 1)]
        good = next((n for n, fault in enumerate(tries) if fault in ("", "slow")), None)
        lost += good is None
        faults.update(fault for fault in tries[:good] if fault not in ("", "slow"))
    return faults, lost


@contextmanager
def running(*endpoints: Endpoint):
    try:
        yield endpoints if len(endpoints) > 1 else endpoints[0]
    finally:
        for endpoint in endpoints:
            endpoint.close()
