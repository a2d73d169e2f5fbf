# SPDX-License-Identifier: Apache-2.0
"""Connections that can not go to another tls instance end honestly when theirs drains: what has begun is answered as a
whole, and TLS says that this is the end (RFC 8446 section 6.1, RFC 5246 section 7.2.1).
"""

import select
import ssl
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.lab import Lab
from system.clients import dial_tls, tls_context
from system.swarm_rig import INDEX, Swarm, eventually, swarm_made

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

DRAIN_TIMEOUT = 20  # seconds
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"


@pytest.fixture(scope="module")
def module_swarm(module_lab: Lab) -> Iterator[Swarm]:
    changes = {"swarm": {"drain_timeout": f"{DRAIN_TIMEOUT}s"}, "layer.tls": {"instances": 2}}
    with swarm_made(module_lab, changes) as made:
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
