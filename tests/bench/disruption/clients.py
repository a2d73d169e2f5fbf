# SPDX-License-Identifier: Apache-2.0
"""Closed-loop clients: each sends a request, waits for the answer, looks at every byte of it, writes it down, and
sends the next.

    python -m bench.disruption.clients '{"host": "10.77.0.10", "port": 443, "history": "/tmp/h", "site": [...], ...}'

One process in the client's namespace; SIGTERM ends it when all requests are over. Kinds of clients:

    keep      GET of a small file, HTTP/1.1 keep-alive
    new       the same with a new connection for each request
    download  GET of a long file, read slowly
    echo      POST of a body that begins with the request's own name and must come back unchanged, keep-alive

A fair client: it honours ``Connection: close``, and looks whether an idle connection was closed before it uses it. If
the server closes a
connection that had served a request before, and no byte of the answer came, an idempotent request is sent once more
on a
new connection (RFC 9112 section 9.3.1); that is written down. Nothing else is ever repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import random
import signal
import socket
import ssl
import sys
import time
from dataclasses import dataclass, field
from typing import IO, Any

from bench.disruption.history import IDEMPOTENT, NOISE, Record, record_line

TIMEOUT = 10.0  # seconds for one request with all its tries
PIECE = 65536
READ_AHEAD = 65536  # bytes that may wait for a download, in the kernel and in each of asyncio's two buffers
PULSE, PULSE_LATE = 0.02, 0.1  # seconds: how often the clients look at their own clock, and what is noted
HEAD_MAX = 65536
ECHO_SIZES = (64, 700, 5000, 40_000)


@dataclass(frozen=True)
class Target:
    """Where to, and what the files of the site are: (path, size, SHA-256 in hex)."""

    host: str
    port: int
    small: tuple[tuple[str, int, str], ...]
    long: tuple[tuple[str, int, str], ...]
    pause: float = 0.005  # seconds between an answer and the next request of a client
    pace: float = 2e6  # bytes/s of a download
    context: ssl.SSLContext = field(default_factory=ssl._create_unverified_context)


@dataclass
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    start: int
    served: int = 0


@dataclass
class Try:
    """What is known of the request under way."""

    number: int
    method: str
    path: str
    payload: bytes
    start: int
    first: int = 0
    end: int = 0
    status: int = 0
    body: str = "none"
    error: str = ""
    conn: int = -1
    conn_start: int = 0
    nth: int = 0
    keep: bool = False


class FramingError(Exception):
    """The answer is not HTTP, or longer than it said."""


class Client:
    """One closed loop."""

    numbers = itertools.count(1)  # of connections

    def __init__(self, name: str, target: Target, out: IO[str]) -> None:
        self.name, self.kind = name, name.partition("-")[0]
        self._target, self._out = target, out
        self._random = random.Random(name)
        self._conn: Connection | None = None
        self._known = {digest for _, _, digest in (*target.small, *target.long)}
        self.started = 0

    async def run(self, ended: asyncio.Event) -> None:
        while not ended.is_set():
            await self._request()
            await asyncio.sleep(self._target.pause * self._random.uniform(0.5, 1.5))
        self._drop()

    async def _request(self) -> None:
        t = self._next()
        before = self._former_end(t)
        try:
            async with asyncio.timeout(TIMEOUT):
                if await self._attempt(t) and t.method in IDEMPOTENT and t.nth and not t.first:
                    before = f"retry-{t.error}"
                    t = Try(t.number, t.method, t.path, t.payload, t.start)
                    await self._attempt(t)
        except TimeoutError:
            t.error = "timeout"
            self._drop(abort=True)
        t.end = time.monotonic_ns()
        self._write(t, before)

    def _next(self) -> Try:
        number, self.started = self.started, self.started + 1
        if self.kind == "echo":
            size = self._random.choice(ECHO_SIZES)
            name = f"{self.name}/{number}/".encode()
            return Try(
                number, "POST", "/echo", (name * (size // len(name) + 1))[: max(size, len(name))], time.monotonic_ns()
            )
        path = self._random.choice(self._target.long if self.kind == "download" else self._target.small)[0]
        return Try(number, "GET", path, b"", time.monotonic_ns())

    def _write(self, t: Try, before: str = "") -> None:
        self._out.write(
            record_line(
                Record(
                    self.name,
                    t.number,
                    t.method,
                    t.start,
                    t.first,
                    t.end,
                    t.status,
                    t.body,
                    t.error,
                    t.conn,
                    t.conn_start,
                    t.nth,
                    before,
                )
            )
        )

    # ---- connections

    def _former_end(self, t: Try) -> str:
        """Looks at the idle connection: "" if it is usable (or there is none), else how it ended."""
        c = self._conn
        if c is None:
            return ""
        if c.reader.exception() is not None:
            self._drop(abort=True)
            return "idle-reset"
        if c.reader._buffer:  # type: ignore[attr-defined]     # there is no other way to ask without waiting
            self._write(
                Try(
                    t.number,
                    t.method,
                    t.path,
                    b"",
                    t.start,
                    t.start,
                    t.start,
                    error="extra",
                    conn=c.number,
                    conn_start=c.start,
                    nth=c.served,
                )
            )
            self._drop(abort=True)
            return ""
        if c.reader.at_eof():
            self._drop()
            return "idle-eof"
        return ""

    def _drop(self, *, abort: bool = False) -> None:
        if self._conn:
            if abort:
                self._conn.writer.transport.abort()
            else:
                self._conn.writer.close()
        self._conn = None

    async def _connected(self, t: Try) -> Connection:
        c = self._conn
        if c is None:
            t.conn, t.conn_start = next(self.numbers), time.monotonic_ns()
            reader, writer = await self._open()
            c = self._conn = Connection(reader, writer, t.conn, t.conn_start)
        t.conn, t.conn_start, t.nth = c.number, c.start, c.served
        return c

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A download learns of its connection's end when it has read all that came before. What comes before is kept
        short, or the end would be the fault of an event that followed; and the server would be done long before.
        """
        slow = self.kind == "download"
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            if slow:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_AHEAD // 2)  # the kernel doubles it
            await asyncio.get_running_loop().sock_connect(sock, (self._target.host, self._target.port))
            reader, writer = await asyncio.open_connection(
                sock=sock, server_hostname=self._target.host, ssl=self._target.context, ssl_shutdown_timeout=1,
                limit=READ_AHEAD // 2 if slow else HEAD_MAX
            )
            stack.pop_all()
        if slow:
            writer.transport.set_read_buffer_limits(READ_AHEAD)  # type: ignore[attr-defined]
        return reader, writer

    # ---- one try

    async def _attempt(self, t: Try) -> bool:
        """Returns whether the connection broke."""
        try:
            c = await self._connected(t)
            await self._exchange(c, t)
        except (FramingError, ValueError, asyncio.LimitOverrunError):
            t.error = "framing"
        except asyncio.IncompleteReadError:
            t.error = "eof"
        except ConnectionRefusedError:
            t.error = "refused"
        except ssl.SSLError:
            t.error = "tls"
        except ConnectionError as error:
            t.error = "eof" if "closed" in str(error) or "lost" in str(error).lower() else "reset"
        except OSError:
            t.error = "unreachable"
        if t.error or not t.keep:
            self._drop(abort=bool(t.error))
        return t.error in ("eof", "reset", "tls")

    async def _exchange(self, c: Connection, t: Try) -> None:
        close = "Connection: close\r\n" if self.kind == "new" else ""
        length = f"Content-Length: {len(t.payload)}\r\nContent-Type: text/plain\r\n" if t.payload else ""
        lines = f"Host: swarmline.test\r\nX-Request: {self.name}/{t.number}\r\n{close}{length}"
        head = f"{t.method} {t.path} HTTP/1.1\r\n{lines}\r\n"
        c.writer.write(head.encode() + t.payload)
        try:
            answer = await c.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                t.first = time.monotonic_ns()
            raise
        t.first = time.monotonic_ns()
        c.served += 1
        t.status, fields = _head(answer)
        t.keep = self.kind != "new" and fields.get("connection", "").lower() != "close"
        t.body = "short"
        t.body = await self._body(c, t, int(fields["content-length"]))

    async def _body(self, c: Connection, t: Try, length: int) -> str:
        """Reads the body; returns what it is."""
        digest, left, start = hashlib.sha256(), length, time.monotonic()
        sample = b""
        while left:
            piece = await c.reader.read(min(left, PIECE))
            if not piece:
                raise asyncio.IncompleteReadError(b"", left)
            digest.update(piece)
            left -= len(piece)
            sample = sample or piece[:64]
            if self.kind == "download":
                ahead = (length - left) / self._target.pace - (time.monotonic() - start)
                await asyncio.sleep(max(ahead, 0))
        if t.status != 200:
            return "none"
        return self._judge(t, digest, sample)

    def _judge(self, t: Try, digest: Any, sample: bytes) -> str:
        got = digest.hexdigest()
        if t.payload:
            if got == hashlib.sha256(t.payload).hexdigest():
                return "ok"
            return (
                "foreign"
                if sample.startswith((b"echo-", b"file ")) and not sample.startswith(t.payload[:16])
                else "corrupt"
            )
        wanted = next(d for p, _, d in (*self._target.small, *self._target.long) if p == t.path)
        if got == wanted:
            return "ok"
        return "foreign" if got in self._known or sample.startswith(b"echo-") else "corrupt"


def _head(answer: bytes) -> tuple[int, dict[str, str]]:
    status, *lines = answer.decode("latin-1").split("\r\n")
    version, code, *_ = status.split(" ", 2)
    if version != "HTTP/1.1":
        raise FramingError(status)
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    if "content-length" not in fields:
        raise FramingError("no content-length")
    return int(code), fields


async def pulse(out: IO[str], ended: asyncio.Event) -> None:
    """Notes when this process itself did not get to run: what happened meanwhile is no one's fault."""
    while not ended.is_set():
        start = time.monotonic_ns()
        await asyncio.sleep(PULSE)
        end = time.monotonic_ns()
        if end - start > (PULSE + PULSE_LATE) * 1e9:
            out.write(record_line(Record(NOISE, 0, "", start, 0, end, 0, "none", "", 0, 0, 0)))


async def main(given: dict[str, Any]) -> None:
    """Runs all clients until SIGTERM; then prints how many requests each began."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.set_exception_handler(lambda _loop, _context: None)  # a broken transport is told by the reader already
    target = Target(given["host"], given["port"], tuple(map(tuple, given["small"])), tuple(map(tuple, given["long"])))
    with open(given["history"], "w", buffering=1 << 16) as out:  # noqa: ASYNC230 (before the first request)
        clients = [
            Client(f"{kind}-{n}", target, out) for kind, number in given["clients"].items() for n in range(number)
        ]
        tasks = [asyncio.create_task(client.run(ended)) for client in clients]
        tasks.append(asyncio.create_task(pulse(out, ended)))
        print("ready", flush=True)
        await asyncio.gather(*tasks)
    print(json.dumps({client.name: client.started for client in clients}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
