# SPDX-License-Identifier: Apache-2.0
"""Established TLS 1.3 connections outlive their tls instance, whether it drains or is killed, and lose no byte."""

import hashlib
import os
import random
import ssl
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from support.lab import Lab, in_netns
from system.clients import Connection, Load, dial_tls, run_client
from system.swarm_rig import INDEX, Swarm, eventually, kill, swarm_made

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

BODY = random.Random(7).randbytes(24 << 20)
DIGEST = hashlib.sha256(BODY).digest()
CHUNK = 65536


@pytest.fixture(scope="module")
def module_swarm(module_lab: Lab) -> Iterator[Swarm]:
    with swarm_made(module_lab, {"swarm": {"drain_timeout": "5s"}, "layer.tls": {"instances": 2}}) as made:
        (made.site / "body").write_bytes(BODY)
        yield made


@pytest.fixture
def swarm(module_swarm: Swarm) -> Swarm:
    """With two active tls instances."""
    module_swarm.eventually_active("tls", 2)
    return module_swarm


def ask(sock: ssl.SSLSocket) -> None:
    """A request and its right answer."""
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    data = b""
    while not data.endswith(INDEX):
        piece = sock.recv(65536)
        assert piece, f"the connection ended after {data!r}"
        data += piece


def end(swarm: Swarm, how: str) -> dict[str, Any]:
    """One tls instance that has connections is killed, or drained until it is gone. Returns it as it was."""
    swarm.published()
    victim = max(swarm.instances("tls"), key=lambda i: i["active_flows"])
    if how == "kill":
        kill(victim["pid"])
    else:
        swarm.command("drain", str(victim["vm_id"]))
        eventually(lambda: victim["vm_id"] not in swarm.pids(), f"instance {victim['vm_id']} is gone")
    return victim


HOW = pytest.mark.parametrize("how", ["kill", "drain"])


@HOW
def test_idle_connections_stay(swarm: Swarm, how: str) -> None:
    with ExitStack() as stack:
        socks = [stack.enter_context(dial_tls(swarm.lab)) for _ in range(20)]
        for sock in socks:
            assert sock.version() == "TLSv1.3"
            ask(sock)
        for _ in range(2):   # and again, from the second instance to a third
            assert end(swarm, how)["active_flows"]
            for sock in socks:
                ask(sock)
            swarm.eventually_active("tls", 2)


@HOW
def test_no_request_fails(swarm: Swarm, how: str) -> None:
    with Load(swarm.lab, connections=12) as load:
        for _ in range(3):
            end(swarm, how)
            load.goes_on()
            swarm.eventually_active("tls", 2)
    assert not load.failures
    assert load.reopened == load.connections, "one was ended politely instead of moved"


@contextmanager
def transfer(lab: Lab, up: bool) -> Iterator[list[int]]:
    """A long body in both directions, or only down, beside the block. Yields what is updated: bytes that have come.

    One thread does both: OpenSSL's connections are not made for two.
    """
    progress, digest = [0], hashlib.sha256()
    line, length = ("POST /echo", f"Content-Length: {len(BODY)}\r\n") if up else ("GET /body", "")
    head = f"{line} HTTP/1.1\r\nHost: a\r\n{length}\r\n"

    async def exchange() -> None:
        connection = await Connection.open(lab.vip4, 443)
        connection.writer.write(head.encode() + (BODY if up else b""))
        await connection.reader.readuntil(b"\r\n\r\n")
        while progress[0] < len(BODY) and (data := await connection.reader.read(CHUNK)):
            digest.update(data)
            progress[0] += len(data)
        await connection.close()

    with ThreadPoolExecutor() as pool:
        exchanged = pool.submit(run_client, lab.client, exchange, 60)
        yield progress
        exchanged.result()
    assert digest.digest() == DIGEST, f"{progress[0]} of {len(BODY)} bytes"


@HOW
@pytest.mark.parametrize("up", [False, True], ids=["download", "echo"])
def test_long_bodies_are_whole(swarm: Swarm, how: str, up: bool) -> None:
    with transfer(swarm.lab, up) as progress:
        eventually(lambda: progress[0] > len(BODY) // 8, "some of the body")
        end(swarm, how)


@contextmanager
def s_client(lab: Lab) -> Iterator[Callable[[str, bytes], None]]:
    """openssl s_client on a connection. Yields a function that gives it a line and waits for what it says."""
    where = ["-crlf", "-connect", f"{lab.vip4}:443", "-servername", "swarmline.test", "-tls1_3", "-msg"]
    argv = in_netns(lab.client, "openssl", "s_client", *where)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdin and process.stdout
        stdin, said = process.stdin, process.stdout
        os.set_blocking(said.fileno(), False)
        seen = b""

        def say(line: str, awaited: bytes) -> None:
            nonlocal seen
            stdin.write(line.encode())
            stdin.flush()

            def came() -> bool:
                nonlocal seen
                seen += said.read() or b""
                return awaited in seen

            eventually(came, f"{awaited!r} after {line!r}")
            seen = b""

        try:
            yield say
        finally:
            process.kill()


@HOW
def test_key_updates_both_ways(swarm: Swarm, how: str) -> None:
    """The client's keys alone, then both: each generation is taken over by another instance."""
    ask_it = "GET / HTTP/1.1\nHost: a\n\n"
    with s_client(swarm.lab) as say:
        say("", b"New, TLSv1.3")
        say(ask_it, INDEX)
        for command, message in (("k\n", b">>> TLS 1.3, Handshake [length 0005], KeyUpdate"),
                                 ("K\n", b"<<< TLS 1.3, Handshake [length 0005], KeyUpdate")):
            say(command, message)
            end(swarm, how)
            say(ask_it, INDEX)
            swarm.eventually_active("tls", 2)
