# SPDX-License-Identifier: Apache-2.0
"""What a client may do wrong: it gets the protocol's own error, it is counted, and nobody else notices."""

import errno
import random
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest
from support.lab import Lab, in_netns
from system.bad_requests import BAD, post
from system.clients import dial, dial_tls, received, tls_context
from system.frames import frames_of
from system.swarm_rig import INDEX, Swarm, eventually, swarm_made, unharmed

from pipeline.host.namespaces import run_in

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
PATIENCE = 1.0  # seconds: the timeouts in this swarm's config
VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])


@pytest.fixture(scope="module")
def swarm(module_lab: Lab) -> Iterator[Swarm]:
    short = f"{PATIENCE}s"
    with swarm_made(
        module_lab,
        {
            "layer.tls": {"handshake_timeout": short},
            "layer.http": {
                "header_timeout": short,
                "body_timeout": short,
                "max_header_bytes": "4KiB",
                "max_headers": 20,
                "max_uri_bytes": "1KiB",
                "max_body_bytes": "1MiB",
            },
        },
    ) as made:
        yield made


def get(sock: socket.socket) -> None:
    """A request and its right answer on a connection that goes on."""
    sock.sendall(GET)
    with sock.makefile("rb") as file:
        head = b"".join(iter(file.readline, b"\r\n"))
        assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"connection: close" not in head
        assert file.read(len(INDEX)) == INDEX


@pytest.fixture(autouse=True)
def others_go_on(swarm: Swarm) -> Iterator[None]:
    """Around each test: connections of other clients, plain and TLS, go on; so does every process of the swarm."""
    with unharmed(swarm), dial(swarm.lab) as plain, dial_tls(swarm.lab) as secure:
        get(plain)
        get(secure)
        yield
        get(plain)
        get(secure)


# ---- TLS


def s_client(swarm: Swarm, *words: str, address: str = "10.77.0.10:443") -> str:
    """What openssl s_client prints for one request."""
    argv = in_netns(swarm.lab.client, "openssl", "s_client", "-connect", address, "-ign_eof", *words)
    ask = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    return subprocess.run(argv, input=ask, capture_output=True, text=True, timeout=20, check=False).stdout


@pytest.mark.parametrize("version", ["1_2", "1_3"])
@pytest.mark.parametrize("address", ["10.77.0.10:443", "[fd77::10]:443"])
def test_s_client(swarm: Swarm, version: str, address: str) -> None:
    shown = s_client(swarm, f"-tls{version}", "-alpn", "http/1.1", address=address)
    assert f"New, TLSv{version.replace('_', '.')}" in shown
    assert "ALPN protocol: http/1.1" in shown
    assert "HTTP/1.1 200 OK" in shown and INDEX.decode() in shown


def test_old_tls_is_refused(swarm: Swarm) -> None:
    argv = in_netns(
        swarm.lab.client, "openssl", "s_client", "-connect", "10.77.0.10:443", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"
    )
    done = subprocess.run(argv, input="", capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode != 0
    assert "alert protocol version" in done.stderr


@VERSIONS
@pytest.mark.parametrize(
    ("name", "common"),
    [
        ("swarmline.test", "swarmline.test"),
        ("www.swarmline.test", "www.swarmline.test"),
        ("WWW.swarmline.TEST", "www.swarmline.test"),
        ("unknown.test", "swarmline.test"),
        ("", "swarmline.test"),
    ],
)
def test_server_name_picks_the_certificate(swarm: Swarm, version: ssl.TLSVersion, name: str, common: str) -> None:
    flag = "-tls1_2" if version is ssl.TLSVersion.TLSv1_2 else "-tls1_3"
    shown = s_client(swarm, flag, *(["-servername", name] if name else ["-noservername"]))
    assert f"subject=CN = {common}\n" in shown


@VERSIONS
def test_alpn(swarm: Swarm, version: ssl.TLSVersion) -> None:
    with dial_tls(swarm.lab, tls_context(version, ["h2", "http/1.1"])) as sock:
        assert sock.selected_alpn_protocol() == "http/1.1"
        get(sock)
    with dial_tls(swarm.lab, tls_context(version, [])) as sock:
        assert sock.selected_alpn_protocol() is None
        get(sock)
    swarm.published()
    before = swarm.total("tls", "client_error")
    with pytest.raises(ssl.SSLError, match="alert no application protocol"):
        dial_tls(swarm.lab, tls_context(version, ["h2", "spdy/3"]))
    swarm.published()
    assert swarm.total("tls", "client_error") == before + 1


@VERSIONS
def test_session_resumes_on_every_instance(swarm: Swarm, version: ssl.TLSVersion) -> None:
    """Tickets are made with a key that the pool shares: each tls instance resumes the same session."""
    context = tls_context(version)
    with dial_tls(swarm.lab, context) as sock:
        get(sock)
        session = sock.session
    assert session and session.has_ticket

    def resumed() -> dict[int, int]:
        swarm.published()
        return {i["vm_id"]: i["counters"].get("resumed", 0) for i in swarm.instances("tls")}

    before, sessions = resumed(), 0
    grown = dict.fromkeys(before, 0)
    while not all(grown.values()) and sessions < 480:      # who is busier than the other gets few
        for _ in range(24):
            with dial_tls(swarm.lab, context, session=session) as sock:
                assert sock.session_reused
                get(sock)
        sessions += 24
        grown = {vm_id: count - before[vm_id] for vm_id, count in resumed().items()}
        assert sum(grown.values()) == sessions
    assert len(grown) == 2 and all(grown.values()), grown


def alert_of(data: bytes) -> tuple[int, int]:
    """Level and description of the plain alert record at the end of what a TLS server sent."""
    content, length, level, description = data[-7], data[-4:-2], data[-2], data[-1]
    assert (content, length) == (21, b"\0\2"), data
    return level, description


UNEXPECTED_MESSAGE, RECORD_OVERFLOW, DECODE_ERROR = 10, 22, 50


@pytest.mark.parametrize(
    ("garbage", "descriptions"),
    [
        (b"\x16\x03\x01\xff\xff" + bytes(70000), {RECORD_OVERFLOW}),
        (b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03", {DECODE_ERROR}),
        (b"\x17\x03\x03\x00\x05hello", {UNEXPECTED_MESSAGE}),
    ],
    ids=["long record", "short hello", "data first"],
)
def test_tls_garbage_gets_an_alert(swarm: Swarm, garbage: bytes, descriptions: set[int]) -> None:
    swarm.published()
    before = swarm.total("tls", "client_error")
    with dial(swarm.lab, 443) as sock:
        sock.sendall(garbage)
        data, _ = received(sock)
    level, description = alert_of(data)
    assert level == 2 and description in descriptions, f"alert {description}"
    swarm.published()
    assert swarm.total("tls", "client_error") == before + 1


@pytest.mark.parametrize("noise", [GET, random.Random(1).randbytes(500)], ids=["plain HTTP", "noise"])
def test_what_is_not_tls_at_all_is_closed(swarm: Swarm, noise: bytes) -> None:
    """OpenSSL sends no alert to who does not speak TLS."""
    swarm.published()
    before = swarm.total("tls", "client_error")
    with dial(swarm.lab, 443) as sock:
        sock.sendall(noise)
        assert received(sock)[0] == b""
    swarm.published()
    assert swarm.total("tls", "client_error") == before + 1


def pump(tls: ssl.SSLObject, bio_in: ssl.MemoryBIO, bio_out: ssl.MemoryBIO, sock: socket.socket) -> None:
    """Handshake by hand, so that the test can touch each record."""
    while True:
        try:
            tls.do_handshake()
            sock.sendall(bio_out.read())
            return
        except ssl.SSLWantReadError:
            sock.sendall(bio_out.read())
            bio_in.write(sock.recv(65536))


@VERSIONS
def test_forged_record_gets_bad_record_mac(swarm: Swarm, version: ssl.TLSVersion) -> None:
    bio_in, bio_out = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = tls_context(version).wrap_bio(bio_in, bio_out, server_hostname="swarmline.test")
    with dial(swarm.lab, 443) as sock:
        pump(tls, bio_in, bio_out, sock)
        tls.write(GET)
        record = bio_out.read()
        sock.sendall(record[:-1] + bytes([record[-1] ^ 1]))
        data, _ = received(sock)
    bio_in.write(data)
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        tls.read()


def test_stalled_handshake_is_closed(swarm: Swarm) -> None:
    swarm.published()
    before, since = swarm.total("tls", "timeout"), time.monotonic()
    with dial(swarm.lab, 443) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert received(sock) == (b"", "reset")
    assert PATIENCE * 0.9 < time.monotonic() - since < PATIENCE + 2
    swarm.published()
    assert swarm.total("tls", "timeout") == before + 1


# ---- HTTP


@pytest.mark.parametrize("port", [80, 443], ids=["http", "https"])
@pytest.mark.parametrize("name", BAD)
def test_bad_request_gets_one_answer_and_close(swarm: Swarm, name: str, port: int) -> None:
    """The error's own status, the end of the connection, and what follows on it is never taken for a request."""
    status, request = BAD[name]
    with dial_tls(swarm.lab) if port == 443 else dial(swarm.lab) as sock:
        sock.sendall(request + SMUGGLED)
        data, end = received(sock)
    assert data.startswith(b"HTTP/1.1 %d " % status), data[:100]
    assert data.count(b"HTTP/1.1 ") == 1
    assert b"connection: close\r\n" in data
    assert end == "fin"


def test_bad_requests_are_counted(swarm: Swarm) -> None:
    swarm.published()
    before = swarm.total("http", "client_error")
    for status, request in BAD.values():
        with dial(swarm.lab) as sock:
            sock.sendall(request)
            assert received(sock)[0].startswith(b"HTTP/1.1 %d " % status)
    swarm.published()
    assert swarm.total("http", "client_error") == before + len(BAD)


def assert_cut_off(data: bytes) -> None:
    """/echo has begun its answer when its request turns out to be bad: it must not look like a whole one."""
    assert data.startswith((b"HTTP/1.1 408 ", b"HTTP/1.1 413 ")) or not data.endswith(b"0\r\n\r\n"), data[-100:]
    assert data.count(b"HTTP/1.1 ") <= 1


def test_body_over_the_limit_in_chunks(swarm: Swarm) -> None:
    swarm.published()
    before = swarm.total("http", "client_error")
    with dial(swarm.lab) as sock:
        sock.sendall(post(b"Transfer-Encoding: chunked"))
        for _ in range(17):
            sock.sendall(b"10000\r\n%b\r\n" % bytes(0x10000))
        assert_cut_off(received(sock)[0])
    swarm.published()
    assert swarm.total("http", "client_error") == before + 1


def trickle(sock: socket.socket, data: bytes, pause: float = 0.05) -> bytes:
    """Sends byte by byte, far too slowly, until the server says something. Returns all that it says."""
    sock.settimeout(pause)
    for byte in data:
        sock.sendall(bytes([byte]))
        try:
            first = sock.recv(65536)
        except TimeoutError:
            continue
        sock.settimeout(10)
        return first + received(sock)[0]
    pytest.fail("the server never lost its patience")


@pytest.mark.parametrize("port", [80, 443], ids=["http", "https"])
def test_slow_head(swarm: Swarm, port: int) -> None:
    swarm.published()
    before, since = swarm.total("http", "timeout"), time.monotonic()
    with dial_tls(swarm.lab) if port == 443 else dial(swarm.lab) as sock:
        data = trickle(sock, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 500)
    assert data.startswith(b"HTTP/1.1 408 ") and b"connection: close" in data
    assert PATIENCE * 0.9 < time.monotonic() - since < PATIENCE + 2
    swarm.published()
    assert swarm.total("http", "timeout") == before + 1


def test_stalled_body(swarm: Swarm) -> None:
    since = time.monotonic()
    with dial(swarm.lab) as sock:
        sock.sendall(post(b"Content-Length: 1000", body=b"not all of it"))
        data, _ = received(sock)
    assert_cut_off(data)
    assert PATIENCE * 0.9 < time.monotonic() - since < PATIENCE + 2


def test_half_closed_client_is_answered(swarm: Swarm) -> None:
    with dial(swarm.lab) as sock:
        sock.sendall(GET)
        sock.shutdown(socket.SHUT_WR)
        data, end = received(sock)
    assert data.endswith(INDEX) and end == "fin"


def test_clients_that_vanish_leave_nothing(swarm: Swarm) -> None:
    """Gone at every stage, with FIN and with RST: no instance keeps a flow."""
    stages = [
        b"",
        b"GE",
        GET[:-2],
        GET,
        post(b"Content-Length: 100000", body=bytes(50000)),
        post(b"Transfer-Encoding: chunked", body=b"5\r\nhel"),
        GET * 20,
    ]
    for stage in stages:
        for connect in (dial, dial_tls):
            for linger in (struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)):
                with connect(swarm.lab) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    sock.sendall(stage)
    with dial(swarm.lab, 443) as sock:
        sock.sendall(b"\x16\x03\x01")
    kept = {"tcp": 2, "tls": 1, "http": 2, "app": 0}  # the bystanders'
    eventually(lambda: {layer: swarm.total(layer, "active_flows") for layer in kept} == kept, f"flows are {kept}")


# ---- frames


def sent(wire: socket.socket, frame: bytes) -> None:
    """A veth whose other end is busy has no room for a moment."""
    while True:
        try:
            wire.send(frame)
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            time.sleep(0.001)


def test_malformed_packets_do_no_harm(swarm: Swarm) -> None:
    """Crafted ones, every truncation, and two thousand mutations. The fixture looks at the other clients."""
    frames, dice = frames_of(swarm.lab), random.Random(7)
    for _ in range(2000):
        mutant = bytearray(dice.choice(frames))
        for _ in range(dice.randint(1, 4)):
            mutant[dice.randrange(12, len(mutant))] = dice.randrange(256)
        frames.append(bytes(mutant))
    before = sum(swarm.status()["classifier"].values())
    wire = run_in(swarm.lab.client, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    with wire:
        wire.bind(("eth0", 0))
        for frame in frames:
            wire.send(frame)
    eventually(
        lambda: sum(swarm.status()["classifier"].values()) - before >= len(frames),
        f"{len(frames)} verdicts are counted",
    )
    for connect in (dial, dial_tls):
        with connect(swarm.lab) as sock:
            get(sock)
