# SPDX-License-Identifier: Apache-2.0
"""An edge between two real processes, both of them in Python, and one of them hostile."""

import errno
import fcntl
import hashlib
import mmap
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from typing import Any

import pytest
from pipeline._native import ffi, lib

from pipeline.host.assignment import EdgeSeat
from pipeline.host.control import RouteEntry
from pipeline.host.edge_peer import EdgePeer, Packet
from pipeline.policy.model import LayerId, Side, VmState

FRONT, BACK = 1, 2                 # VMIDs; the incarnations are ten times that
EDGE_ID = LayerId.TCP << 8 | LayerId.TLS
PACKETS = 10_000
PATIENCE = 20.0
FORK = get_context("fork")


@dataclass(frozen=True)
class Region:
    """An edge's memory, and the eventfds of its two peers."""

    fd: int
    layout: Any
    doorbells: dict[int, int]


@pytest.fixture
def region() -> Iterator[Region]:
    g = ffi.new("struct sl_region *", {"edge_id": EDGE_ID, "epoch": 1, "nb_front": 2, "nb_back": 2,
                                       "front_layer": LayerId.TCP, "back_layer": LayerId.TLS})
    assert lib.sl_region_plan(g, 4096) == 0
    fd = os.memfd_create("sl-edge-tcp-tls", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, g.region_len)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    with mmap.mmap(fd, g.region_len) as memory:
        view = ffi.from_buffer(memory)
        lib.sl_region_format(ffi.cast("void *", view), g)
        ffi.release(view)
    bells = {vm_id: os.eventfd(0, os.EFD_NONBLOCK) for vm_id in (FRONT, BACK)}
    yield Region(fd, g, bells)
    for descriptor in (fd, *bells.values()):
        os.close(descriptor)


def peer(region: Region, side: Side) -> EdgePeer:
    """Takes place 0 of that side and links up with place 0 across."""
    own, other = (FRONT, BACK) if side is Side.FRONT else (BACK, FRONT)
    layers = (LayerId.TCP, LayerId.TLS)
    made = EdgePeer(region.fd, EdgeSeat(EDGE_ID, own * 10, 0, side, layers[1 - side]), layers[side], own)
    made.routes(1, [RouteEntry(other, other * 10, 0, 100, VmState.ACTIVE)], [region.doorbells[other]])
    return made


def child(work: Callable[[], None]) -> ForkProcess:
    """A process that ends with 0 if ``work`` returned."""
    process = FORK.Process(target=work, daemon=True)
    process.start()
    return process


def wait(own: EdgePeer, doorbell: int) -> None:
    """Sleeps until somebody rings; never longer than a test may take."""
    if not own.sleep(True):
        assert select.select([doorbell], [], [], PATIENCE)[0], "nobody rang"
        os.eventfd_read(doorbell)
    own.sleep(False)


def receive(own: EdgePeer, doorbell: int) -> Packet:
    while (packet := own.receive()) is None:
        own.signal()
        wait(own, doorbell)
    return packet


def payload(number: int) -> bytes:
    return random.Random(number).randbytes(number * 7919 % (lib.SL_BIG_LEN + 1))


def digest_of(number: int) -> bytes:
    return hashlib.sha256(payload(number)).digest()


def test_packets_cross_in_order_and_unchanged(region: Region) -> None:
    """The back answers each with the hash of what it got."""
    def back() -> None:
        with peer(region, Side.BACK) as own:
            for number in range(PACKETS // 10):
                packet = receive(own, region.doorbells[BACK])
                assert packet.request_id == number + 1
                answer = Packet(lib.SL_OP_DATA, 0, 0, packet.flow_id, packet.request_id,
                                hashlib.sha256(packet.data).digest())
                while True:
                    try:
                        own.send(answer)
                        break
                    except BlockingIOError:
                        own.signal()
                        time.sleep(0)       # the front takes answers whenever it finds no room itself
                own.signal()
            while own.outstanding:          # completions of the last answers
                time.sleep(0.001)

    process = child(back)
    with peer(region, Side.FRONT) as own:
        answers: list[Packet] = []
        for number in range(PACKETS // 10):
            packet = Packet(lib.SL_OP_DATA, 0, 0, number, number + 1, payload(number))
            while True:
                try:
                    assert own.send(packet) == BACK
                    break
                except BlockingIOError:
                    own.signal()
                    answers.append(receive(own, region.doorbells[FRONT]))
            own.signal()
        while len(answers) < PACKETS // 10:
            answers.append(receive(own, region.doorbells[FRONT]))
        own.signal()
        assert [a.request_id for a in answers] == list(range(1, PACKETS // 10 + 1))
        assert all(a.data == digest_of(a.flow_id) for a in answers)
        process.join(PATIENCE)
        assert process.exitcode == 0
        assert own.outstanding == 0


def test_small_packets_in_bursts(region: Region) -> None:
    def back() -> None:
        with peer(region, Side.BACK) as own:
            for number in range(PACKETS):
                assert receive(own, region.doorbells[BACK]).request_id == number + 1
            own.signal()

    process = child(back)
    with peer(region, Side.FRONT) as own:
        for number in range(PACKETS):
            while True:
                try:
                    own.send(Packet(lib.SL_OP_DATA, 0, 0, 1, number + 1, struct.pack("<Q", number)))
                    break
                except BlockingIOError:
                    own.signal()
                    time.sleep(0)
            if number % 32 == 31:
                own.signal()
        own.signal()
        process.join(PATIENCE)
        assert process.exitcode == 0
        assert own.outstanding == 0


def test_nobody_across(region: Region) -> None:
    seat = EdgeSeat(EDGE_ID, 10, 0, Side.FRONT, LayerId.TLS)
    with EdgePeer(region.fd, seat, LayerId.TCP, FRONT) as own:
        with pytest.raises(OSError, match="unreachable") as error:
            own.send(Packet(lib.SL_OP_DATA, 0, 0, 1, 1, b"x"))
        assert error.value.errno == errno.ENETUNREACH
    with pytest.raises(OSError, match="Invalid argument"):
        EdgePeer(region.fd, seat, LayerId.HTTP, FRONT)


def entry(offset: int = 0, length: int = 0, to: int = BACK, epoch: int = FRONT * 10, lap: int = 1, flags: int = 0,
          layer: int = LayerId.TLS, op: int = lib.SL_OP_DATA) -> bytes:
    """A struct sl_request_packet as the front would write it, but for what is given."""
    return struct.pack("<QIIIHHIBBBB", 1, offset, length, 1, to, 0, epoch, lap, flags, layer, op)


def hostile_write(region: Region, entries: bytes, prod: int) -> None:
    """From a process of its own, with nothing but the memory: the front's ring towards the back."""
    g = region.layout
    script = ("import mmap, sys; m = mmap.mmap(int(sys.argv[1]), int(sys.argv[2])); o = int(sys.argv[3]); "
              "e = bytes.fromhex(sys.argv[4]); m[o + 128:o + 128 + len(e)] = e; "
              "m[o:o + 4] = bytes.fromhex(sys.argv[5])")
    numbers = (region.fd, g.region_len, g.rings_off)
    argv = [sys.executable, "-P", "-c", script, *map(str, numbers), entries.hex(), struct.pack("<I", prod).hex()]
    subprocess.run(argv, pass_fds=[region.fd], check=True)


@pytest.mark.parametrize(("bad", "counter"), [
    (entry(offset=0xFFFFFF00, length=0x1000), lib.SL_CNT_BAD_OFFSET),
    (entry(offset=4096, length=64), lib.SL_CNT_BAD_OFFSET),
    (entry(op=77), lib.SL_CNT_BAD_OP),
    (entry(flags=0xF0), lib.SL_CNT_BAD_OP),
    (entry(layer=LayerId.APP), lib.SL_CNT_BAD_LAYER),
    (entry(to=99), lib.SL_CNT_BAD_LAYER),
    (entry(epoch=4711), lib.SL_CNT_STALE_EPOCH),
    (entry(lap=3), lib.SL_CNT_BAD_INDEX),
])
def test_hostile_entry_is_counted_and_its_sender_shut_out(region: Region, bad: bytes, counter: int) -> None:
    front = peer(region, Side.FRONT)
    with peer(region, Side.BACK) as own:
        assert own.receive() is None
        hostile_write(region, bad, 1)
        assert own.receive() is None
        assert own.counter(counter) == 1
        assert own.counter(lib.SL_CNT_QUARANTINED) == 1
        hostile_write(region, entry() * 3, 3)       # and is not listened to any more
        assert own.receive() is None
        assert own.counter(lib.SL_CNT_QUARANTINED) == 1
    front.close()


@pytest.mark.parametrize("prod", [257, 0x80000000])
def test_a_lie_about_the_number_of_entries_is_nothing(region: Region, prod: int) -> None:
    front = peer(region, Side.FRONT)
    with peer(region, Side.BACK) as own:
        hostile_write(region, b"", prod)
        assert own.receive() is None
        hostile_write(region, entry(lap=2), prod)   # of the lap after this one
        assert own.receive() is None
        assert own.counter(lib.SL_CNT_QUARANTINED) == 0
        hostile_write(region, entry(), prod)
        packet = own.receive()
        assert packet is not None and packet.request_id == 1
    front.close()
