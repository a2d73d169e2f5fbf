# SPDX-License-Identifier: Apache-2.0
"""Clients for tests: sockets in the lab's client namespace, a small HTTP/1.1 client, and load.

The HTTP client is our own: it must also send what no library would send, and not repeat a request in silence.
"""

import asyncio
import hashlib
import random
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from support.lab import Lab, in_netns

from pipeline.host.namespaces import run_in

T = TypeVar("T")
TIMEOUT = 30.0  # seconds for anything that a client waits for
PAUSE = 0.001  # seconds between two requests of a Load's client: others need some of the processors too


def tls_context(version: ssl.TLSVersion | None = None, alpn: Sequence[str] = ("http/1.1",)) -> ssl.SSLContext:
    """For one version of TLS, or any. Throw-away certificates are not checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if version:
        context.minimum_version = context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def dial(lab: Lab, port: int = 80, address: str = "") -> socket.socket:
    """A connected socket of the lab's client."""
    where = (address or lab.vip4, port)
    return run_in(lab.client, lambda: socket.create_connection(where, timeout=TIMEOUT))


def dial_tls(
    lab: Lab,
    context: ssl.SSLContext | None = None,
    *,
    name: str = "swarmline.test",
    session: ssl.SSLSession | None = None,
) -> ssl.SSLSocket:
    """A TLS connection to port 443."""
    plain = dial(lab, 443)
    try:
        return (context or tls_context()).wrap_socket(plain, server_hostname=name, session=session)
    except BaseException:
        plain.close()
        raise


def received(sock: socket.socket) -> tuple[bytes, str]:
    """All bytes until the other side ends the connection, and how it ended it: "fin" or "reset"."""
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionResetError:
        return data, "reset"
    return data, "fin"


def curl(netns: str, *words: str, stdin: Any = None) -> bytes:
    """Output of curl in a namespace; fails on any error and on an HTTP status from 400."""
    argv = in_netns(netns, "curl", "-sSkf", "--max-time", "30", *words)
    done = subprocess.run(argv, capture_output=True, stdin=stdin, check=False)
    assert done.returncode == 0, f"curl {' '.join(words)}: {done.stderr.decode()}"
    return done.stdout


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, complete."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"


class Connection:
    """One HTTP/1.1 connection. Make and use it inside ``run_client``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, address: str, port: int) -> "Connection":
        """TLS on port 443, plain elsewhere."""
        tls = {"ssl": tls_context(), "server_hostname": "swarmline.test"} if port == 443 else {}
        return cls(*await asyncio.open_connection(address, port, limit=1 << 20, **tls))  # type: ignore[arg-type]

    async def ask(self, method: str, path: str, body: bytes = b"", headers: Iterable[str] = ()) -> Answer:
        """A request with a Content-Length, and its answer."""
        framing = [f"Content-Length: {len(body)}"] if body else []
        lines = [f"{method} {path} HTTP/1.1", "Host: swarmline.test", *framing, *headers, "", ""]
        self.writer.write("\r\n".join(lines).encode() + body)
        return await self.answer(method)

    async def answer(self, method: str = "GET") -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:-2])}
        status = int(head[0].split()[1])
        if method == "HEAD" or status in (204, 304):
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = await self._chunks()
        else:
            body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(status, headers, body)

    async def _chunks(self) -> bytes:
        parts = []
        while size := int(await self.reader.readline(), 16):
            parts.append((await self.reader.readexactly(size + 2))[:-2])
        assert await self.reader.readline() == b"\r\n"
        return b"".join(parts)

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):  # it may be broken already, that is what some tests do
            await self.writer.wait_closed()


def run_client(netns: str, main: Callable[[], Awaitable[T]], timeout: float = TIMEOUT) -> T:
    """Runs a coroutine inside a network namespace."""

    async def bounded() -> T:
        async with asyncio.timeout(timeout):
            return await main()

    return run_in(netns, lambda: asyncio.run(bounded()))


@dataclass
class Load:
    """Clients that ask again and again while the context lasts, each on a connection that it keeps open as long as
    the server does. Each answer's body is checked by hash. ``failures`` has the client and the reason for each
    request that was not answered rightly.

    A client opens its connection anew when the server has said that it closes it, and after a failure.
    """

    lab: Lab
    connections: int = 8
    port: int = 443
    method: str = "POST"
    answers: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)
    reopened: int = 0
    slowest: float = 0.0  # seconds that the slowest answer took

    def __enter__(self) -> "Load":
        self._stop = False
        self._tasks: list[asyncio.Task[None]] = []
        self._thread = threading.Thread(
            target=lambda: run_client(self.lab.client, self._all, timeout=120), name="load"
        )
        self._thread.start()
        try:
            self.goes_on(self.connections)
        except BaseException as error:
            self.__exit__(error)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stop = True  # each client ends after its request in flight
        if any(error):  # which may hang, and is not what failed
            self.give_up()
        self._thread.join()

    def give_up(self) -> None:
        """For when nobody is there to answer any more: ends in the middle of requests."""
        self._stop = True
        for task in self._tasks if self._thread.is_alive() else ():
            self._loop.call_soon_threadsafe(task.cancel)

    def goes_on(self, count: int = 200, timeout: float = 10.0) -> None:
        """Returns when so many more requests were answered."""
        wanted, deadline = self.answers + count, time.monotonic() + timeout
        while self.answers < wanted:
            assert self._thread.is_alive() and time.monotonic() < deadline, (
                f"{self.answers} of {wanted} answers after {timeout:g} s; {self.failures[:5]}"
            )
            time.sleep(0.005)

    async def _all(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self.connections)]
        await asyncio.wait(self._tasks)

    async def _client(self, number: int) -> None:
        dice = random.Random(number)
        while not self._stop:
            try:
                connection = await Connection.open(self.lab.vip4, self.port)
            except OSError as error:
                self.failures.append((number, f"no connection: {error!r}"))
                await asyncio.sleep(0.05)
                continue
            try:
                await self._ask_on(connection, dice)
                self.reopened += 1
            except (OSError, EOFError, ValueError) as error:
                self.failures.append((number, repr(error)))
            finally:
                connection.writer.transport.abort() if self._stop else await connection.close()

    async def _ask_on(self, connection: Connection, dice: random.Random) -> None:
        while not self._stop:
            body = dice.randbytes(dice.randint(1, 3000))
            since = time.monotonic()
            if self.method == "POST":
                answer = await connection.ask("POST", "/echo", body)
            else:
                answer = await connection.ask("GET", "/index.html")
            self.slowest = max(self.slowest, time.monotonic() - since)
            if answer.status != 200:
                raise ValueError(f"status {answer.status}: {answer.body!r}")
            if self.method == "POST" and hashlib.sha256(answer.body).digest() != hashlib.sha256(body).digest():
                raise ValueError(f"wrong body: {len(answer.body)} bytes for {len(body)}")
            self.answers += 1
            if answer.closes:
                return
            await asyncio.sleep(PAUSE)
