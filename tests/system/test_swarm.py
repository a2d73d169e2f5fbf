# SPDX-License-Identifier: Apache-2.0
"""The main job with real clients: right answers over every way in, and counts that add up."""

import asyncio
import hashlib
import random
import re
import socket
import subprocess
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path

import pytest
from support.lab import in_netns, lab_made
from support.needs import require
from system.clients import Answer, Connection, curl, dial, run_client
from system.swarm_rig import INDEX, Swarm, swarm_made, unharmed

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

WAYS = [("https", "10.77.0.10"), ("https", "[fd77::10]"), ("http", "10.77.0.10"), ("http", "[fd77::10]")]
PORTS = pytest.mark.parametrize("port", [443, 80], ids=["https", "http"])
HUGE = 100_000_000


@pytest.fixture(autouse=True)
def same_processes(swarm: Swarm) -> Iterator[None]:
    with unharmed(swarm):
        yield


@pytest.fixture(scope="module")
def huge(swarm: Swarm) -> Path:
    """A file of 100 MB among the swarm's static files."""
    path = swarm.site / "huge.bin"
    path.write_bytes(random.Random(1).randbytes(HUGE))
    return path


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.parametrize(("scheme", "host"), WAYS)
def test_curl(swarm: Swarm, scheme: str, host: str) -> None:
    assert curl(swarm.lab.client, f"{scheme}://{host}/") == INDEX
    assert curl(swarm.lab.client, f"{scheme}://{host}/echo", "--data", "hello") == b"hello"


def test_tls_instances_say_how_fast_they_are(swarm: Swarm) -> None:
    """Measured by each at its start; the other layers have nothing to say."""
    figures = [i["crypto"] for i in swarm.instances("tls")]
    assert len(figures) == 2
    for f in figures:
        assert f["kind"] in ("software", "multi_buffer") and f["fallbacks"] == 0
        if find_library("IPSec_MB") and " vaes " in Path("/proc/cpuinfo").read_text():
            assert f["kind"] == "multi_buffer"      # several times as fast there, at every size
        assert len(f["seal_mbps"]) == 3 and all(n > 0 for n in f["seal_mbps"]) and f["handshakes"] > 0
    assert all("crypto" not in i for layer in ("tcp", "http", "app") for i in swarm.instances(layer))


def test_ten_thousand_requests(swarm: Swarm) -> None:
    """50 connections, every body checked by hash, and every request counted once at each layer."""
    connections, each = 50, 200
    swarm.published()
    before = {layer: swarm.total(layer) for layer in ("tcp", "tls", "http", "app")}

    async def one(number: int) -> int:
        dice, right = random.Random(number), 0
        connection = await Connection.open(swarm.lab.vip4 if number % 2 else swarm.lab.vip6, 443)
        for _ in range(each):
            body = dice.randbytes(int(10 ** dice.uniform(0, 4)))
            answer = await connection.ask("POST", "/echo", body)
            right += answer.status == 200 and hashlib.sha256(answer.body).digest() == hashlib.sha256(body).digest()
        await connection.close()
        return right

    async def everybody() -> list[int]:
        return await asyncio.gather(*map(one, range(connections)))

    assert run_client(swarm.lab.client, everybody) == [each] * connections
    swarm.published()
    counted = {layer: swarm.total(layer) - before[layer] for layer in before}
    assert counted == {"tcp": connections, "tls": connections, "http": connections * each, "app": connections * each}
    assert all(i["requests"] for i in swarm.instances()), "an instance got nothing"


@PORTS
@pytest.mark.parametrize("size", [1, 16383, 16384, 16385, 131071, 131072, 131073, 1_000_000])
def test_body_up_and_down(swarm: Swarm, port: int, size: int) -> None:
    """Around the sizes of a TLS record and of a flow's window."""
    body = random.Random(size).randbytes(size)

    async def echoed() -> Answer:
        connection = await Connection.open(swarm.lab.vip4, port)
        answer = await connection.ask("POST", "/echo", body)
        await connection.close()
        return answer

    assert run_client(swarm.lab.client, echoed).body == body


@PORTS
def test_huge_body_up_and_down(swarm: Swarm, port: int, huge: Path, tmp_path: Path) -> None:
    scheme, came = {443: "https", 80: "http"}[port], tmp_path / "came.bin"
    curl(
        swarm.lab.client, f"{scheme}://10.77.0.10/echo", "-H", "Expect:", "--data-binary", f"@{huge}", "-o", str(came)
    )
    assert digest(came) == digest(huge)


@PORTS
def test_huge_file(swarm: Swarm, port: int, huge: Path, tmp_path: Path) -> None:
    came = tmp_path / "came.bin"
    curl(swarm.lab.client, f"{ {443: 'https', 80: 'http'}[port] }://10.77.0.10/huge.bin", "-o", str(came))
    assert digest(came) == digest(huge)


@PORTS
def test_chunked_body(swarm: Swarm, port: int) -> None:
    """Chunks of all sizes with extensions and a trailer, over a connection that goes on afterwards."""
    dice = random.Random(port)
    parts = [dice.randbytes(size) for size in (1, 2, 15, 16, 17, 4096, 65536, 100_000, 1)]

    async def echoed() -> tuple[Answer, Answer]:
        connection = await Connection.open(swarm.lab.vip4, port)
        connection.writer.write(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in parts:
            connection.writer.write(b"%x;ext=1\r\n%b\r\n" % (len(part), part))
            await connection.writer.drain()
        connection.writer.write(b"0\r\nx-trailer: 1\r\n\r\n")
        first = await connection.answer()
        second = await connection.ask("GET", "/")
        await connection.close()
        return first, second

    first, second = run_client(swarm.lab.client, echoed)
    assert first.body == b"".join(parts)
    assert second.body == INDEX


def test_expect_continue(swarm: Swarm) -> None:
    with dial(swarm.lab) as sock, sock.makefile("rb") as file:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert [file.readline(), file.readline()] == [b"HTTP/1.1 100 Continue\r\n", b"\r\n"]
        sock.sendall(b"hello")
        assert file.readline() == b"HTTP/1.1 200 OK\r\n"


def ask(swarm: Swarm, method: str, path: str, *headers: str) -> Answer:
    async def asked() -> Answer:
        connection = await Connection.open(swarm.lab.vip4, 80)
        answer = await connection.ask(method, path, headers=headers)
        await connection.close()
        return answer

    return run_client(swarm.lab.client, asked)


def test_head(swarm: Swarm) -> None:
    """The same fields as GET, no body, and the connection goes on."""

    async def both() -> tuple[Answer, Answer]:
        connection = await Connection.open(swarm.lab.vip4, 80)
        answers = await connection.ask("HEAD", "/"), await connection.ask("GET", "/")
        await connection.close()
        return answers

    head, get = run_client(swarm.lab.client, both)
    head.headers.pop("date"), get.headers.pop("date")
    assert head.headers == get.headers
    assert (head.body, get.body) == (b"", INDEX)


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("0-0", 0, 0),
        ("10-19", 10, 19),
        ("900-", 900, len(INDEX) - 1),
        ("-7", len(INDEX) - 7, len(INDEX) - 1),
        ("5-99999999", 5, len(INDEX) - 1),
    ],
)
def test_range(swarm: Swarm, asked: str, first: int, last: int) -> None:
    answer = ask(swarm, "GET", "/", f"Range: bytes={asked}")
    assert answer.status == 206
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(INDEX)}"
    assert answer.body == INDEX[first : last + 1]


def test_range_that_can_not_be(swarm: Swarm) -> None:
    answer = ask(swarm, "GET", "/", f"Range: bytes={len(INDEX)}-")
    assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{len(INDEX)}")


def test_conditional(swarm: Swarm) -> None:
    facts = ask(swarm, "GET", "/").headers
    etag, modified = facts["etag"], facts["last-modified"]
    assert ask(swarm, "GET", "/", f"If-None-Match: {etag}").status == 304
    assert ask(swarm, "GET", "/", 'If-None-Match: "other"').status == 200
    assert ask(swarm, "GET", "/", f"If-Modified-Since: {modified}").status == 304
    assert ask(swarm, "GET", "/", 'If-Match: "other"').status == 412
    assert ask(swarm, "GET", "/", f"If-Range: {etag}", "Range: bytes=0-3").status == 206
    assert ask(swarm, "GET", "/", 'If-Range: "other"', "Range: bytes=0-3").status == 200


@pytest.mark.parametrize("path", ["/nothing.html", "/../swarm.toml", "/%2e%2e/swarm.toml", "/site/../../etc/passwd"])
def test_what_is_not_in_the_root(swarm: Swarm, path: str) -> None:
    answer = ask(swarm, "GET", path)
    assert answer.status in (400, 404)
    assert b"layer" not in answer.body


@PORTS
def test_pipelining(swarm: Swarm, port: int) -> None:
    """Sixty requests at once, spread over all app instances, answered in their order."""
    bodies = [b"%d" % n * (n * 37 % 500 + 1) for n in range(60)]

    async def pipelined() -> list[bytes]:
        connection = await Connection.open(swarm.lab.vip6, port)
        connection.writer.write(
            b"".join(
                b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
                for body in bodies
            )
        )
        answers = [(await connection.answer()).body for _ in bodies]
        await connection.close()
        return answers

    assert run_client(swarm.lab.client, pipelined) == bodies


def test_http_1_0_and_close(swarm: Swarm) -> None:
    for request in (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"):
        with dial(swarm.lab) as sock:
            sock.sendall(request)
            data = b"".join(iter(lambda: sock.recv(65536), b""))
        assert data.endswith(INDEX)
        assert b"connection: close\r\n" in data


@PORTS
def test_h2load(swarm: Swarm, port: int) -> None:
    url = f"{ {443: 'https', 80: 'http'}[port] }://10.77.0.10/"
    argv = in_netns(swarm.lab.client, "h2load", "--h1", "-n", "5000", "-c", "50", "-m", "4", url)
    swarm.published()
    before = swarm.total("http")
    shown = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout
    assert "5000 done, 5000 succeeded, 0 failed, 0 errored, 0 timeout" in shown, shown
    swarm.published()
    assert swarm.total("http") == before + 5000


def test_wrk(swarm: Swarm) -> None:
    argv = in_netns(swarm.lab.client, "wrk", "-t1", "-c50", "-d1", "https://10.77.0.10/")
    shown = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout
    assert int(re.findall(r"(\d+) requests in", shown)[0]) > 100
    assert "Socket errors" not in shown and "Non-2xx" not in shown, shown


# ---- other networks


def test_client_behind_a_gateway() -> None:
    require("netns", "bpf")
    with lab_made(far=True) as lab, swarm_made(lab) as swarm:
        body = random.Random(2).randbytes(3_000_000)
        (swarm.folder / "body").write_bytes(body)
        for scheme, host in WAYS:
            assert curl(lab.far, f"{scheme}://{host}/") == INDEX
            assert curl(lab.far, f"{scheme}://{host}/echo", "--data-binary", f"@{swarm.folder}/body") == body
            assert curl(lab.client, f"{scheme}://{host}/") == INDEX


def test_large_frames() -> None:
    """MTU 9000: the connection's segments are as large as the link allows, both ways."""
    require("netns", "bpf")
    with lab_made(mtu=9000) as lab, swarm_made(lab) as swarm:
        body = random.Random(3).randbytes(3_000_000)
        (swarm.folder / "body").write_bytes(body)
        for scheme, host in WAYS:
            assert curl(lab.client, f"{scheme}://{host}/echo", "--data-binary", f"@{swarm.folder}/body") == body
        with dial(lab) as sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == 9000 - 20 - 20 - 12
        counters = swarm.status()["router"]["counters"]
        assert not {name: n for name, n in counters.items() if "oversize" in name or "too_big" in name}, counters
