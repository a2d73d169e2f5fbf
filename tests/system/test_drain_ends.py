# SPDX-License-Identifier: Apache-2.0
"""Connections that can not go to another tls instance end honestly when theirs drains: what has begun is answered as a
whole, and TLS says that this is the end (RFC 8446 section 6.1, RFC 5246 section 7.2.1). And nobody loses the rest of an
answer that only the kernel of his tcp instance still has.
"""

import select
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.lab import Lab
from system.clients import dial, dial_tls, received, tls_context
from system.swarm_rig import INDEX, Swarm, eventually, kill, swarm_made

from pipeline.host.namespaces import run_in

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

DRAIN_TIMEOUT = 20  # seconds
TWO = {"instances": 2}
CHANGES = {"swarm": {"drain_timeout": f"{DRAIN_TIMEOUT}s"}, "layer.tcp": TWO, "layer.tls": TWO}
BODY = bytes(range(256)) * 600  # more than a slow client's window, less than the kernel keeps for it
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"


@pytest.fixture(scope="module")
def module_swarm(module_lab: Lab) -> Iterator[Swarm]:
    with swarm_made(module_lab, CHANGES) as made:
        (made.site / "body").write_bytes(BODY)
        yield made


@pytest.fixture
def swarm(module_swarm: Swarm) -> Swarm:
    module_swarm.eventually_active("tls", 2)
    return module_swarm


def connected(stack: ExitStack, swarm: Swarm, version: ssl.TLSVersion) -> ssl.SSLSocket:
    sock = stack.enter_context(dial_tls(swarm.lab, tls_context(version)))
    sock.suppress_ragged_eofs = False  # an end without close_notify is an error
    sock.sendall(GET)
    assert answer(sock, INDEX)
    return sock


def answer(sock: ssl.SSLSocket, body: bytes) -> bool:
    """Reads a right answer. Whether the connection stays; if it does not, its end is a clean one, and we leave too."""
    data = b""
    while not data.endswith(body):
        piece = sock.recv(65536)
        assert piece, f"the connection ended after {data!r}"
        data += piece
    assert data.startswith(b"HTTP/1.1 200 ")
    if b"\r\nconnection: close\r\n" not in data:
        return True
    assert sock.recv(1) == b""
    sock.close()
    return False


def gone(swarm: Swarm, vm_id: int, idle: list[ssl.SSLSocket]) -> None:
    """Returns when the instance is gone, before its deadline. Takes those out that have ended, and cleanly."""

    def look() -> bool:
        for sock in select.select(idle, [], [], 0)[0]:
            assert sock.recv(1) == b""
            sock.close()
            idle.remove(sock)
        return vm_id not in swarm.pids()

    eventually(look, f"tls instance {vm_id} is gone", timeout=DRAIN_TIMEOUT - 1)


def test_tls_12(swarm: Swarm) -> None:
    """Some in the middle of a request, some idle; those of the other instance do not notice."""
    with ExitStack() as stack:
        socks = [connected(stack, swarm, ssl.TLSVersion.TLSv1_2) for _ in range(16)]
        busy, idle = socks[:8], socks[8:]
        for sock in busy:
            sock.sendall(POST + b"0123")
        swarm.published()
        leaver = max(swarm.instances("tls"), key=lambda i: i["active_flows"])
        swarm.command("drain", str(leaver["vm_id"]))
        eventually(lambda: not [i for i in swarm.instances("tls") if i["vm_id"] == leaver["vm_id"]], "it drains")
        for sock in busy:
            sock.sendall(b"456789")
        stay = idle + [sock for sock in busy if answer(sock, b"0123456789")]
        gone(swarm, leaver["vm_id"], stay)
        assert len(stay) == len(socks) - leaver["active_flows"]
        for sock in stay:
            sock.sendall(GET)
            assert answer(sock, INDEX)


def test_the_last_tls_instance(swarm: Swarm) -> None:
    """TLS 1.3 connections go to the one that replaces it if that comes soon, and end politely if not."""
    swarm.command("scale", "tls=1")
    (last,) = swarm.eventually_active("tls", 1)
    with ExitStack() as stack:
        socks = [connected(stack, swarm, ssl.TLSVersion.TLSv1_3) for _ in range(8)]
        for sock in socks[:4]:
            sock.sendall(POST + b"0123")
        swarm.command("drain", str(last["vm_id"]), "--force")
        eventually(lambda: [i for i in swarm.instances("tls") if i["vm_id"] != last["vm_id"]], "another one")
        for sock in socks[:4]:
            sock.sendall(b"456789")
        stay = socks[4:] + [sock for sock in socks[:4] if answer(sock, b"0123456789")]
        gone(swarm, last["vm_id"], stay)
        for sock in stay:
            sock.sendall(GET)
            answer(sock, INDEX)
    swarm.command("scale", "tls=2")


class SlowHandshake:
    """A client that waits before its last flight."""

    def __init__(self, sock: socket.socket, version: ssl.TLSVersion) -> None:
        self._sock, self._came, self._goes = sock, ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls_context(version).wrap_bio(self._came, self._goes, server_hostname="swarmline.test")
        self._step(self._tls.do_handshake)
        self._send()
        while not self._goes.pending:
            self._hear()
            self._step(self._tls.do_handshake)

    def ask(self) -> bytes:
        """Goes on, and returns the answer to a request."""
        self._until(self._tls.do_handshake)
        self._tls.write(GET)
        data = b""
        while not data.endswith(INDEX):
            data += self._until(lambda: self._tls.read(65536))
        return data

    def _until(self, step: Callable[[], Any]) -> Any:
        while (done := self._step(step)) is ...:
            self._send()
            self._hear()
        self._send()
        return done

    def _step(self, step: Callable[[], Any]) -> Any:
        """What it returns; ... if it waits for the server."""
        try:
            return step()
        except ssl.SSLWantReadError:
            return ...

    def _send(self) -> None:
        self._sock.sendall(self._goes.read())

    def _hear(self) -> None:
        piece = self._sock.recv(65536)
        assert piece, "the server ended it"
        self._came.write(piece)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_handshake_that_ends_late(swarm: Swarm, version: ssl.TLSVersion) -> None:
    """It is waited for, and what is asked then is answered."""
    with dial(swarm.lab, 443) as sock:
        client = SlowHandshake(sock, version)
        swarm.published()
        (leaver,) = (i for i in swarm.instances("tls") if i["active_flows"])
        swarm.command("drain", str(leaver["vm_id"]))
        idle = max(i["vm_id"] for i in swarm.instances("app"))
        swarm.command("drain", str(idle))
        eventually(lambda: idle not in swarm.pids(), "who has nothing left is gone")
        assert leaver["vm_id"] in swarm.pids(), "it has a client"
        assert client.ask().startswith(b"HTTP/1.1 200 ")
        eventually(lambda: leaver["vm_id"] not in swarm.pids(), "it goes")


def slow_client(lab: Lab, *, last: bool = True) -> socket.socket:
    """It has asked for everything, said that this was all if it was the ``last``, and takes nothing yet."""

    def connect() -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        sock.settimeout(10)
        sock.connect((lab.vip4, 80))
        return sock

    sock = run_in(lab.client, connect)
    sock.sendall(b"GET /body HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    if last:
        sock.shutdown(socket.SHUT_WR)
    return sock


def test_the_rest_of_an_answer(swarm: Swarm) -> None:
    """All layers are done with it; so might be the tcp instance, if it did not look at what its kernel still has."""
    before = sum(i["requests"] for i in swarm.instances("app"))
    with slow_client(swarm.lab) as sock:

        def done() -> bool:
            swarm.published()
            served = sum(i["requests"] for i in swarm.instances("app")) > before
            return served and not any(i["active_flows"] for i in swarm.instances("http"))

        eventually(done, "http has said all")
        leaver = max(swarm.instances("tcp"), key=lambda i: i["active_flows"])
        assert leaver["active_flows"] == 1
        swarm.command("drain", str(leaver["vm_id"]))
        idle = swarm.instances("app")[0]["vm_id"]
        swarm.command("drain", str(idle))
        eventually(lambda: idle not in swarm.pids(), "who has nothing left is gone")
        assert leaver["vm_id"] in swarm.pids(), "it has something left"
        data = b""
        while piece := sock.recv(65536):
            data += piece
    assert data.endswith(BODY)
    eventually(lambda: leaver["vm_id"] not in swarm.pids(), "it goes")


def test_what_was_said_outlives_who_said_it(swarm: Swarm) -> None:
    """The rest of an answer is tcp's alone, though the client might still say something to http."""
    before = swarm.total("tcp", "bytes_out")
    with slow_client(swarm.lab, last=False) as sock:
        eventually(lambda: swarm.total("tcp", "bytes_out") > before + len(BODY), "the kernel has all")
        swarm.published()
        (speaker,) = (i for i in swarm.instances("http") if i["active_flows"])
        kill(speaker["pid"])
        eventually(lambda: swarm.failed(speaker["vm_id"]), "it is found")
        data, how = received(sock)
    assert how == "fin" and data.endswith(BODY)


def said_all(sock: socket.socket) -> None:
    """The client says first that this was all."""
    sock.sendall(GET)
    sock.shutdown(socket.SHUT_WR)
    assert received(sock)[1] == "fin"


def heard_all(sock: socket.socket) -> None:
    """The server does."""
    sock.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert received(sock)[1] == "fin"


def said_nothing(sock: socket.socket) -> None:
    """There is nothing but the two ends."""


def went(sock: socket.socket) -> None:
    """The client goes with what it was given unread: a reset meets an answer that is still on its way."""
    sock.sendall(GET.replace(b" / ", b" /body "))
    sock.shutdown(socket.SHUT_WR)
    sock.recv(1)


@pytest.mark.parametrize("way", [said_all, heard_all, said_nothing, went])
def test_nobody_lingers(swarm: Swarm, way: Callable[[socket.socket], None]) -> None:
    """With its last byte acknowledged, or its client gone, a connection is over."""
    for _ in range(50):
        with dial(swarm.lab) as sock:
            way(sock)
    swarm.published()
    eventually(lambda: not swarm.total("tcp", "active_flows"), "no connection is left")


def test_who_hears_that_this_is_the_end_and_stays(swarm: Swarm) -> None:
    """Such a client has all, and holds nobody up (RFC 9112 section 9.6): the drain is over before its time. One that
    has not all is waited for.
    """
    with ExitStack() as stack:
        slow = stack.enter_context(slow_client(swarm.lab, last=False))
        eventually(lambda: swarm.total("http", "active_flows"), "it is served")
        (other,) = (i["vm_id"] for i in swarm.instances("http") if i["active_flows"])
        socks = [stack.enter_context(make(swarm.lab)) for make in (dial, dial_tls) for _ in range(5)]
        for sock in socks:
            sock.sendall(GET)
            assert sock.recv(65536)
        swarm.published()
        (leaver,) = (i for i in swarm.instances("http") if i["vm_id"] != other)
        swarm.command("drain", str(leaver["vm_id"]))
        eventually(lambda: leaver["vm_id"] not in swarm.pids(), "it is gone", timeout=2 * DRAIN_TIMEOUT)
        assert not [text for text in swarm.events("drain-deadline") if f"http instance {leaver['vm_id']} " in text]
        ended = [sock for sock in select.select(socks, [], [], 0)[0] if not sock.recv(65536)]
        assert leaver["active_flows"] == len(ended) > 0
        data, how = received(slow)
        assert how == "fin" and data.endswith(BODY)
    swarm.eventually_active("http", 2)


def reloaded(swarm: Swarm, changes: dict[str, Any]) -> None:
    swarm.configure({**CHANGES, **changes})
    swarm.command("reload")
    swarm.eventually_active("tcp", 2, DRAIN_TIMEOUT)


def test_who_takes_nothing_is_idle(swarm: Swarm) -> None:
    """A connection that waits for its client is one like any other."""
    reloaded(swarm, {"layer.tcp": {**TWO, "idle_timeout": "1s"}})
    with slow_client(swarm.lab) as sock:
        eventually(lambda: swarm.total("tcp", "timeout"), "its time is over")
        data, how = received(sock)
    assert how == "reset" and len(data) < len(BODY)


def test_a_deadline_tells_what_it_cuts(swarm: Swarm) -> None:
    """Who has not got all learns it, and so does who asks for events; nobody else is harmed."""
    reloaded(swarm, {"swarm": {"drain_timeout": "1s"}})
    with ExitStack() as stack:
        clients = [stack.enter_context(slow_client(swarm.lab)) for _ in range(20)]
        eventually(lambda: swarm.total("tcp", "active_flows") == len(clients), "all are there")
        leaver = swarm.instances("tcp")[0]
        swarm.command("drain", str(leaver["vm_id"]))
        eventually(lambda: leaver["vm_id"] not in swarm.pids(), "its time is over")
        ends = [received(client) for client in clients]
    cut = [data for data, how in ends if how == "reset"]
    assert len(cut) == leaver["active_flows"] and not any(data.endswith(BODY) for data in cut)
    assert all(data.endswith(BODY) for data, how in ends if how == "fin")
    words = f"tcp instance {leaver['vm_id']} had its time to drain; flows left: {len(cut)}"
    assert swarm.events("drain-deadline") == [words]


def test_a_handshake_that_never_ends(swarm: Swarm) -> None:
    """Its client learns at the deadline that nobody waits any more."""
    reloaded(swarm, {"swarm": {"drain_timeout": "1s"}})
    with dial(swarm.lab, 443) as sock:
        SlowHandshake(sock, ssl.TLSVersion.TLSv1_3)
        swarm.published()
        (leaver,) = (i for i in swarm.instances("tls") if i["active_flows"])
        swarm.command("drain", str(leaver["vm_id"]))
        assert received(sock)[1] == "reset"
    words = f"tls instance {leaver['vm_id']} had its time to drain; flows left: 1"
    eventually(lambda: words in swarm.events("drain-deadline"), "it is told")
