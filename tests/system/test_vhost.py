# SPDX-License-Identifier: Apache-2.0
"""The router's vhost-user port against another implementation of the front-end: DPDK's net_virtio_user.

``tests/c/test_vhost_peer.c`` is the port as a program. dpdk-testpmd reads frames from a pcap file, sends them into the
device, and writes what comes back to another file. No root, no huge pages.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import statistics
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("dpdk-testpmd"), reason="dpdk-testpmd is not installed")

KILLS = int(os.environ.get("SWARMLINE_VHOST_KILLS", "20"))
LINK_BACK_S = 1.0
PCAP_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
US, PEER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers")


def until(done: Callable[[], bool], seconds: float, what: str) -> float:
    """Waits for it; returns how long that took."""
    start = time.monotonic()
    while not done():
        if time.monotonic() - start > seconds:
            raise AssertionError(f"no {what} within {seconds} s")
        time.sleep(0.005)
    return time.monotonic() - start


def frames_made(nb: int, seed: int) -> list[bytes]:
    rand = random.Random(seed)
    sizes = (60, 64, 65, 128, 590, 1514)
    return [
        PEER
        + US
        + b"\x88\xb5"
        + struct.pack(">II", seed, number)
        + rand.randbytes((rand.choice(sizes) if number % 2 else rand.randint(60, 1514)) - 22)
        for number in range(nb)
    ]


def pcap_write(path: Path, frames: list[bytes]) -> None:
    records = (struct.pack("<IIII", 0, number, len(frame), len(frame)) + frame for number, frame in enumerate(frames))
    path.write_bytes(PCAP_HEADER + b"".join(records))


def pcap_read(path: Path) -> list[bytes]:
    data, at, frames = path.read_bytes(), len(PCAP_HEADER), []
    while at + 16 <= len(data):
        length = int.from_bytes(data[at + 8 : at + 12], "little")
        frames.append(data[at + 16 : at + 16 + length])
        at += 16 + length
    return frames


def exchanged(frame: bytes) -> bytes:
    """As the echo sends it back."""
    return frame[6:12] + frame[:6] + frame[12:]


class Peer:
    """Our side: the port as a program."""

    def __init__(self, program: Path, mode: str, *sockets: str) -> None:
        self.process = subprocess.Popen(
            [program, mode, *sockets], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def counters(self) -> dict[str, int]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        pairs = (pair.split("=") for pair in self.process.stdout.readline().split())
        return {name: int(value) for name, value in pairs}

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self, how: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


class Testpmd:
    """Their side: a virtual machine's driver and its memory, without the machine."""

    __test__ = False

    def __init__(self, folder: Path, name: str, *options: str, vdevs: tuple[str, ...]) -> None:
        self.log = folder / f"{name}.log"
        argv = [
            "stdbuf",
            "-oL",
            "dpdk-testpmd",
            "--lcores=0@0,1@0-1",
            "--no-huge",
            "-m",
            "128",
            "--no-pci",
            "--no-telemetry",
            "--no-shconf",
            f"--file-prefix=slv-{os.getpid()}-{name}",
            *(f"--vdev={vdev}" for vdev in vdevs),
            "--",
            "-i",
            "--no-mlockall",
            "--total-num-mbufs=4096",
            "--disable-link-check",
            "--no-flush-rx",
            *options,
        ]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=out, stderr=out, cwd=folder)

    def said(self, text: str) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"dpdk-testpmd ended:\n{self.log.read_text(errors='replace')[-2000:]}")
        return text in self.log.read_text(errors="replace")

    def tell(self, *commands: str) -> None:
        assert self.process.stdin
        self.process.stdin.write("".join(f"{command}\n" for command in commands).encode())
        self.process.stdin.flush()

    def written(self, port: int) -> int:
        """Frames that this port has sent, as it said to the question before this one."""
        self.tell(f"show port stats {port}")
        found = re.findall(
            rf"statistics for port {port} .*?TX-packets: (\d+)", self.log.read_text(errors="replace"), re.DOTALL
        )
        return int(found[-1]) if found else 0

    def end(self, how: int = signal.SIGKILL) -> None:
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait()
        assert self.process.stdin
        self.process.stdin.close()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vhost") / "peer"
    sources = (ROOT / "tests/c/test_vhost_peer.c", ROOT / "c/router/ports/vhost.c", *(ROOT / "c/vhost").glob("*.c"))
    subprocess.run(["cc", *FLAGS, f"-I{ROOT / 'c'}", *sources, "-o", path], check=True)
    return path


@pytest.fixture
def ended() -> Iterator[Callable[[Peer | Testpmd], None]]:
    """Programs given to it are ended after the test."""
    running: list[Peer | Testpmd] = []
    yield running.append
    for one in reversed(running):
        one.end(signal.SIGKILL)


KINDS = {
    "split": "mrg_rxbuf=0,in_order=0",
    "split-inorder": "mrg_rxbuf=0,in_order=1",
    "split-mergeable": "mrg_rxbuf=1,in_order=0",
    "split-mergeable-inorder": "mrg_rxbuf=1,in_order=1",
    "packed": "packed_vq=1,mrg_rxbuf=0,in_order=0",
    "packed-mergeable": "packed_vq=1,mrg_rxbuf=1,in_order=0",
    "packed-mergeable-inorder": "packed_vq=1,mrg_rxbuf=1,in_order=1",
    "packed-odd-size": "packed_vq=1,mrg_rxbuf=1,in_order=0,queue_size=192",
}


def through(
    folder: Path, program: Path, kind: str, ended: Callable[[Peer | Testpmd], None], queues: int, mode: str = "client"
) -> None:
    nb = 3000
    sent = [frames_made(nb, queue) for queue in range(queues)]
    for queue in range(queues):
        pcap_write(folder / f"in{queue}.pcap", sent[queue])
    ours, theirs = ("", ",server=1") if mode == "client" else (",server", "")
    files = ",".join(f"rx_pcap=in{queue}.pcap,tx_pcap=out{queue}.pcap" for queue in range(queues))
    peer = Peer(program, "echo", f"{folder / 'vu'},pairs={queues}{ours}")
    ended(peer)
    if mode == "server":
        until(lambda: (folder / "vu").exists(), 5, "socket")
    virtio = f"net_virtio_user0,path={folder / 'vu'},queues={queues}{theirs},{KINDS[kind]}"
    testpmd = Testpmd(folder, "pmd", f"--rxq={queues}", f"--txq={queues}", vdevs=(virtio, f"net_pcap0,{files}"))
    ended(testpmd)
    until(lambda: testpmd.said("testpmd> "), 20, "testpmd")
    until(lambda: peer.counters()["0.link_up"] == 1, 5, "link")
    testpmd.tell("set fwd io retry", "set burst tx delay 10 retry 2000", "start")
    until(lambda: peer.counters()["0.from_frames"] == nb * queues, 20, "frames from testpmd")
    counters = peer.counters()
    until(lambda: testpmd.written(1) >= counters["0.to_frames"], 10, "frames back in testpmd")
    testpmd.tell("stop", "quit")
    testpmd.process.wait(20)
    back = [frame for queue in range(queues) for frame in pcap_read(folder / f"out{queue}.pcap")]
    expected = [exchanged(frame) for frames in sent for frame in frames]
    bad = {name: value for name, value in counters.items() if "ring_" in name or "msg_" in name if value}
    assert not bad
    dropped = counters["0.to_drop_full"]
    assert counters["0.to_frames"] + dropped == len(expected)
    assert len(back) == counters["0.to_frames"]
    if queues > 1:  # flows choose the queue: no order among them
        assert set(back) <= set(expected)
    else:  # in order, none twice
        whole = iter(expected)
        assert all(frame in whole for frame in back)
    assert dropped <= len(expected) // 10


@pytest.mark.parametrize("kind", KINDS)
def test_frames_come_back(tmp_path: Path, program: Path, kind: str, ended: Callable[[Peer | Testpmd], None]) -> None:
    through(tmp_path, program, kind, ended, 1)


@pytest.mark.parametrize("kind", ["split-mergeable-inorder", "packed-mergeable-inorder"])
def test_several_queues(tmp_path: Path, program: Path, kind: str, ended: Callable[[Peer | Testpmd], None]) -> None:
    through(tmp_path, program, kind, ended, 2)


def test_we_listen(tmp_path: Path, program: Path, ended: Callable[[Peer | Testpmd], None]) -> None:
    through(tmp_path, program, "split-mergeable-inorder", ended, 1, mode="server")


@pytest.mark.parametrize("kinds", [("split", "packed-mergeable"), ("packed", "split-mergeable-inorder")])
def test_guest_to_guest(
    tmp_path: Path, program: Path, kinds: tuple[str, str], ended: Callable[[Peer | Testpmd], None]
) -> None:
    """Two devices; what one sends the other gets, both ways, each byte copied once."""
    nb = 2000
    sent = [frames_made(nb, number) for number in range(2)]
    vdevs: list[str] = []
    for number, kind in enumerate(kinds):
        pcap_write(tmp_path / f"in{number}.pcap", sent[number])
        vdevs.append(f"net_virtio_user{number},path={tmp_path / f'vu{number}'},server=1,{KINDS[kind]}")
        vdevs.append(f"net_pcap{number},rx_pcap=in{number}.pcap,tx_pcap=out{number}.pcap")
    peer = Peer(program, "pass", str(tmp_path / "vu0"), str(tmp_path / "vu1"))
    ended(peer)
    testpmd = Testpmd(tmp_path, "pmd", "--port-topology=paired", vdevs=tuple(vdevs[i] for i in (0, 2, 1, 3)))
    ended(testpmd)
    until(lambda: testpmd.said("testpmd> "), 20, "testpmd")
    # ports 0 and 1 are the devices, 2 and 3 the files: forwarded between 0 and 2, 1 and 3
    testpmd.tell("set portlist 0,2,1,3", "set fwd io retry", "set burst tx delay 10 retry 2000", "start")
    until(lambda: all(peer.counters()[f"{i}.from_frames"] == nb for i in range(2)), 20, "frames from testpmd")
    counters = peer.counters()
    until(lambda: all(testpmd.written(2 + i) >= counters[f"{i}.to_frames"] for i in range(2)), 10, "frames")
    testpmd.tell("stop", "quit")
    testpmd.process.wait(20)
    for number in range(2):
        back, whole = pcap_read(tmp_path / f"out{number}.pcap"), iter(sent[1 - number])
        assert len(back) == counters[f"{number}.to_frames"] == nb - counters[f"{number}.to_drop_full"]
        assert len(back) > nb // 2
        assert all(frame in whole for frame in back)


def flows(folder: Path, kind: str, number: int) -> Testpmd:
    """Sends without end, as the server of the socket."""
    (folder / "vu").unlink(missing_ok=True)
    virtio = f"net_virtio_user0,path={folder / 'vu'},server=1,{KINDS[kind]}"
    return Testpmd(folder, f"flow{number}", "--forward-mode=flowgen", vdevs=(virtio,))


def both_ways(peer: Peer) -> Callable[[], bool]:
    """Whether frames flow in both directions since now."""
    first = peer.counters()

    def flowing() -> bool:
        now = peer.counters()
        return all(now[name] > first[name] for name in ("0.from_frames", "0.to_frames"))

    return flowing


@pytest.mark.parametrize("kind", ["split-mergeable-inorder", "packed-mergeable-inorder"])
def test_our_side_is_killed(tmp_path: Path, program: Path, kind: str, ended: Callable[[Peer | Testpmd], None]) -> None:
    testpmd = flows(tmp_path, kind, 0)
    ended(testpmd)
    peer = Peer(program, "echo", str(tmp_path / "vu"))
    ended(peer)
    until(lambda: testpmd.said("testpmd> "), 20, "testpmd")
    testpmd.tell("start")
    took = []
    for number in range(KILLS // 2 + 1):
        took.append(until(both_ways(peer), 20, f"traffic after kill {number}"))
        time.sleep(random.Random(number).random() / 20)  # somewhere under traffic
        if number < KILLS // 2:
            peer.end(signal.SIGKILL)
            peer = Peer(program, "echo", str(tmp_path / "vu"))
            ended(peer)
    assert statistics.median(took) < LINK_BACK_S  # a busy machine may delay some
    assert peer.counters()["0.link_up"] == 1


@pytest.mark.parametrize("kind", ["split-mergeable-inorder", "packed-mergeable-inorder"])
def test_their_side_is_killed(
    tmp_path: Path, program: Path, kind: str, ended: Callable[[Peer | Testpmd], None]
) -> None:
    peer = Peer(program, "echo", str(tmp_path / "vu"))
    ended(peer)
    took = []
    fds = 0
    for number in range(KILLS // 2):
        testpmd = flows(tmp_path, kind, number)
        ended(testpmd)
        until(lambda pmd=testpmd: pmd.said("testpmd> "), 20, "testpmd")  # type: ignore[misc]
        flowing = both_ways(peer)
        testpmd.tell("start")
        took.append(until(flowing, 20, f"traffic after kill {number}"))
        time.sleep(random.Random(number).random() / 20)
        open_fds = len(os.listdir(f"/proc/{peer.process.pid}/fd"))
        fds = fds or open_fds
        assert open_fds == fds
        testpmd.end(signal.SIGKILL)
    assert statistics.median(took) < LINK_BACK_S  # a busy machine may delay some
    until(lambda: peer.counters()["0.link_lost"] == KILLS // 2, 5, "end of the last link")
    assert not [name for name, value in peer.counters().items() if "msg_" in name and value]


def test_idle_costs_nothing(tmp_path: Path, program: Path, ended: Callable[[Peer | Testpmd], None]) -> None:
    peer = Peer(program, "echo", str(tmp_path / "vu"))
    ended(peer)
    testpmd = flows(tmp_path, "split-mergeable-inorder", 0)
    ended(testpmd)
    until(lambda: testpmd.said("testpmd> "), 20, "testpmd")
    until(lambda: peer.counters()["0.link_up"] == 1, 5, "link")
    testpmd.tell("start")
    until(both_ways(peer), 5, "traffic")
    testpmd.tell("stop")
    until(lambda: testpmd.said("Done."), 5, "end of traffic")
    before = peer.cpu_s()
    time.sleep(1)  # the measurement
    assert peer.cpu_s() - before <= 0.02
    testpmd.tell("start")
    until(both_ways(peer), 5, "traffic after sleep")
