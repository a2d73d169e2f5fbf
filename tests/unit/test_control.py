# SPDX-License-Identifier: Apache-2.0
"""The control region from the manager's side: what is written arrives whole, what is read is never believed."""

import asyncio
import mmap
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from pipeline._native import ffi, lib

from pipeline.host import doorbells, report
from pipeline.host.assignment import Assignment, EdgeSeat, ServiceSeat, struct_bytes
from pipeline.host.clock import GuestClock
from pipeline.host.control import Command, ControlRegion, RouteEntry
from pipeline.host.doorbells import Doorbells, ring
from pipeline.host.memory import sealed_memfd
from pipeline.policy.model import LayerId, Side, VmState

VM_ID = 9
STATUS_LEN = ffi.sizeof("struct sl_vm_status")


class Instance:
    """The other end: the region as the instance has it mapped, every byte of it writable."""

    def __init__(self, fd: int) -> None:
        self.map = mmap.mmap(fd, lib.SL_CONTROL_LEN)
        self.buffer = ffi.from_buffer(self.map, require_writable=True)
        self.base = ffi.cast("__u8 *", self.buffer)

    def at(self, struct: str, off: int) -> Any:
        return ffi.cast(f"struct {struct} *", self.base + off)

    @property
    def header(self) -> Any:
        return self.at("sl_control", 0)

    @property
    def status(self) -> Any:
        return self.at("sl_vm_status", self.header.status_off)

    @property
    def trace(self) -> Any:
        return self.at("sl_trace", self.header.trace_off)

    def trace_write(self, *request_ids: int) -> None:
        for request_id in request_ids:
            event = self.trace.events[self.trace.next % lib.SL_TRACE_CAP]
            event.request_id, event.layer, event.point = request_id, lib.SL_LAYER_TLS, lib.SL_TRACE_IN
            event.vm_id = 77             # a lie
            self.trace.next = (self.trace.next + 1) & 0xFFFF_FFFF

    def close(self) -> None:
        self.base = None
        ffi.release(self.buffer)
        self.map.close()


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = sealed_memfd("sl-control-9", lib.SL_CONTROL_LEN)
    yield fd
    os.close(fd)


@pytest.fixture
def region(memfd: int) -> Iterator[ControlRegion]:
    made = ControlRegion(memfd, VM_ID)
    made.format(trace_every=10, spin_us=5)
    yield made
    made.close()


@pytest.fixture
def instance(memfd: int) -> Iterator[Instance]:
    made = Instance(memfd)
    yield made
    made.close()


ASSIGNMENT = Assignment(
    layer=LayerId.TLS,
    edges=(EdgeSeat(0x102, 11, 3, Side.BACK, LayerId.TCP), EdgeSeat(0x203, 12, 1, Side.FRONT, LayerId.HTTP)),
    services=(None, ServiceSeat("https", (IPv4Address("10.77.0.10"), IPv6Address("fd77::10")), 443, 6, 1)),
    nic_mac=b"\x02\0\0\0\0\x07", mtu=1500)


# ---- manager -> instance


def test_header(region: ControlRegion, instance: Instance, memfd: int) -> None:
    h = instance.header
    assert (h.magic, h.abi_version, h.vm_id, h.region_len) == (lib.SL_CONTROL_MAGIC, lib.SL_ABI_VERSION, VM_ID, 1 << 20)
    assert (h.trace_every, h.spin_us, h.entropy_seq) == (10, 5, 1)
    first = bytes(ffi.buffer(h.entropy))
    assert first.count(0) < 32
    region.entropy_renew()
    assert bytes(ffi.buffer(h.entropy)) != first
    assert h.entropy_seq == 2
    assert region.formatted
    adopted = ControlRegion(memfd, VM_ID)
    assert adopted.formatted
    adopted.close()


def test_parts_do_not_overlap(region: ControlRegion, instance: Instance) -> None:
    h = instance.header
    parts = [(0, ffi.sizeof("struct sl_control")), (h.assignment_off, ffi.sizeof("struct sl_assignment")),
             (h.routes_off, lib.SL_EDGES_MAX * ffi.sizeof("struct sl_route_page")), (h.status_off, STATUS_LEN),
             (h.trace_off, ffi.sizeof("struct sl_trace")), (h.conf_off, lib.SL_CONF_LEN)]
    ends = [start + length for start, length in parts]
    assert all(end <= start for end, (start, _) in zip(ends, parts[1:], strict=False))
    assert ends[-1] == lib.SL_CONTROL_LEN
    assert all(start % 64 == 0 for start, _ in parts)


def test_assignment_arrives(region: ControlRegion, instance: Instance) -> None:
    number = region.assign(ASSIGNMENT, [])
    a = instance.at("sl_assignment", instance.header.assignment_off)
    assert (a.seq, number % 2, a.layer, a.nb_edges, a.nb_services, a.mtu) == (number, 0, lib.SL_LAYER_TLS, 2, 2, 1500)
    assert bytes(ffi.buffer(a.nic_mac)) == ASSIGNMENT.nic_mac
    seats = [(e.edge_id, e.incarnation, e.slot, e.side, e.peer_layer) for e in a.edges[0:3]]
    assert seats == [(0x102, 11, 3, lib.SL_BACK, lib.SL_LAYER_TCP), (0x203, 12, 1, lib.SL_FRONT, lib.SL_LAYER_HTTP),
                     (0, 0, 0, 0, 0)]
    assert a.services[0].proto == 0
    s = a.services[1]
    assert bytes(ffi.buffer(s.addr))[:32] == bytes(10) + b"\xff\xff\x0a\x4d\x00\x0a" + IPv6Address("fd77::10").packed
    assert (ffi.string(s.name), bytes(ffi.buffer(ffi.addressof(s, "port"), 2))) == (b"https", b"\x01\xbb")
    assert (s.proto, s.next_edge) == (6, 1)
    assert region.assign(ASSIGNMENT, []) == number + 2


def conf_of(instance: Instance) -> list[tuple[int, bytes]]:
    data = bytes(ffi.buffer(instance.base + instance.header.conf_off, instance.header.conf_len))
    items, off = [], 0
    while True:
        kind, length = (int.from_bytes(data[off + n:off + n + 4], "little") for n in (0, 4))
        if kind == lib.SL_CONF_END:
            assert off + 8 == len(data)
            return items
        items.append((kind, data[off + 8:off + 8 + length]))
        off += 8 + (length + 7) // 8 * 8


def test_configuration_arrives_and_the_old_one_is_wiped(region: ControlRegion, instance: Instance) -> None:
    tcp = struct_bytes("sl_tcp_conf", idle_timeout_ms=1, backlog=2, max_connections=3, user_timeout_ms=4)
    secret = [(lib.SL_CONF_TCP, tcp), (lib.SL_CONF_TLS_KEY, b"secret" * 100), (lib.SL_CONF_TLS_CERT, b"")]
    region.assign(ASSIGNMENT, secret)
    assert conf_of(instance) == secret
    region.assign(ASSIGNMENT, [(lib.SL_CONF_APP, struct_bytes("sl_app_conf", echo=1, root=b"/srv", index=b"i"))])
    ((kind, app),) = conf_of(instance)
    assert (kind, app[8:13]) == (lib.SL_CONF_APP, b"/srv\0")
    assert b"secret" not in bytes(ffi.buffer(instance.base + instance.header.conf_off, lib.SL_CONF_LEN))


def test_what_does_not_fit_is_refused(region: ControlRegion, instance: Instance) -> None:
    before = region.assign(ASSIGNMENT, [(1, b"x")])
    with pytest.raises(ValueError, match="fit"):
        region.assign(ASSIGNMENT, [(lib.SL_CONF_TLS_CERT, bytes(lib.SL_CONF_LEN - 8))])
    with pytest.raises(ValueError, match="fit"):
        region.assign(Assignment(LayerId.TLS, ASSIGNMENT.edges * 5), [])
    long_name = ServiceSeat("x" * 16, (), 80, 6, 0)
    with pytest.raises(ValueError, match="fit"):
        region.assign(Assignment(LayerId.TLS, (), (long_name,)), [])
    with pytest.raises(ValueError, match="holds 255 bytes"):
        struct_bytes("sl_app_conf", root=b"x" * 256)
    with pytest.raises(ValueError, match="no route page"):
        region.routes_set(8, 1, [])
    assert conf_of(instance) == [(1, b"x")]
    assert instance.at("sl_assignment", instance.header.assignment_off).seq == before


def test_routes_arrive(region: ControlRegion, instance: Instance) -> None:
    region.routes_set(2, 7, [RouteEntry(5, 50, 1, 900, VmState.ACTIVE), RouteEntry(6, 60, 0, 0, VmState.DRAINING)])
    page = instance.at("sl_route_page", instance.header.routes_off + 2 * ffi.sizeof("struct sl_route_page"))
    assert (page.seq, page.epoch, page.nb_routes) == (2, 7, 2)
    got = [(r.vm_id, r.incarnation, r.slot, r.weight, r.state) for r in page.routes[0:3]]
    assert got == [(5, 50, 1, 900, lib.SL_VM_ACTIVE), (6, 60, 0, 0, lib.SL_VM_DRAINING), (0, 0, 0, 0, 0)]
    region.routes_set(2, 8, [])
    assert (page.seq, page.epoch, page.nb_routes, page.routes[0].vm_id) == (4, 8, 0, 0)


def test_commands_are_numbered(region: ControlRegion, instance: Instance) -> None:
    numbers = [region.command(Command.RUN), region.command(Command.DRAIN), region.command(Command.DRAIN)]
    assert numbers == [1, 2, 3]
    assert (instance.header.cmd, instance.header.cmd_seq) == (lib.SL_CMD_DRAIN, 3)


def test_manager_that_died_while_writing_is_overtaken(region: ControlRegion, instance: Instance) -> None:
    a = instance.at("sl_assignment", instance.header.assignment_off)
    region.assign(ASSIGNMENT, [])
    a.seq = 7                                               # as it stood when the manager was killed
    assert region.assign(ASSIGNMENT, []) == 10
    a.seq = 0xFFFF_FFFF
    assert region.assign(ASSIGNMENT, []) % 2 == 0


# ---- instance -> manager


def speak(instance: Instance, **fields: Any) -> None:
    s = instance.status
    for name, value in fields.items():
        setattr(s, name, value)
    s.seq += 2


def test_report(region: ControlRegion, instance: Instance) -> None:
    assert region.report() is None
    now = time.monotonic_ns()
    instance.status.protocol_layers[0] = lib.SL_LAYER_TLS
    instance.status.counters[lib.SL_CNT_HANDSHAKES] = 12
    ffi.memmove(instance.status.text, b"a last word\0left over", 21)
    speak(instance, nb_layers=1, state=lib.SL_VM_ACTIVE, load=250, available_capacity=750, active_flows=4,
          heartbeat_ns=now, hardware_affinity=5, cmd_seen=3, requests=100, error=11, queue_depth=2, oldest_ns=7)
    report = region.report()
    assert report
    s = report.status
    assert (s.vm_id, s.protocol_layers, s.state) == (VM_ID, (LayerId.TLS,), VmState.ACTIVE)
    assert (s.load, s.available_capacity, s.active_flows, s.heartbeat_ns) == (250, 750, 4, now)
    assert (report.cmd_seen, report.requests, report.error, s.queue_depth, s.oldest_ns) == (3, 100, 11, 2, 7)
    assert (report.counters["handshakes"], report.counters["bad_index"], report.text) == (12, 0, "a last word")
    assert len(report.counters) == lib.SL_CNT_DOORBELL_FLOODS + 1


@pytest.mark.parametrize("seed", range(20))
def test_hostile_status_is_clamped(region: ControlRegion, instance: Instance, seed: int) -> None:
    noise = random.Random(seed).randbytes(STATUS_LEN) if seed else b"\xff" * STATUS_LEN
    ffi.memmove(instance.status, noise, STATUS_LEN)
    instance.status.seq = 2
    report = region.report()
    assert report
    s = report.status
    assert s.vm_id == VM_ID
    assert isinstance(s.state, VmState)
    assert 0 <= s.load <= 1000
    assert 0 <= s.available_capacity <= 1000
    assert s.heartbeat_ns <= time.monotonic_ns()
    assert len(s.protocol_layers) <= 8
    assert report.text.isprintable()
    assert len(report.text) <= lib.SL_TEXT_LEN


def test_hostile_header_moves_nothing(region: ControlRegion, instance: Instance) -> None:
    """Offsets in the header are for the instance. Whatever it writes there, the manager looks where it always does."""
    status_off = instance.header.status_off
    ffi.memmove(instance.base, b"\xff" * 128, 128)
    instance.at("sl_vm_status", status_off).seq = 2
    assert region.report()
    region.assign(ASSIGNMENT, [(1, b"x")])
    region.command(Command.STOP)
    assert region.trace_events() == []
    assert not region.formatted


def test_writer_that_never_ends(region: ControlRegion, instance: Instance) -> None:
    instance.status.seq = 5
    start = time.monotonic()
    assert region.report() is None
    assert time.monotonic() - start < 0.1


WRITER = """
import itertools, sys, mmap
from pipeline._native import ffi, lib
fd, off, size = map(int, sys.argv[1:])
view = ffi.from_buffer(mmap.mmap(fd, lib.SL_CONTROL_LEN), require_writable=True)
seq = ffi.cast("__u32 *", ffi.cast("char *", view) + off)
bodies = [bytes([value]) * (size - 4) for value in range(1, 251)]
print("ready", flush=True)
sys.stdin.readline()
for n in itertools.count():
    lib.sl_store_release_u32(seq, 2 * n + 1)
    lib.sl_fence()
    ffi.memmove(seq + 1, bodies[n % 250], size - 4)
    lib.sl_store_release_u32(seq, 2 * n + 2)
"""


def test_no_report_is_torn(region: ControlRegion, instance: Instance, memfd: int) -> None:
    """Another process writes all the time; each report is of one turn of its loop."""
    argv = [sys.executable, "-P", "-c", WRITER, str(memfd), str(instance.header.status_off), str(STATUS_LEN)]
    seen: set[int] = set()
    with subprocess.Popen(argv, pass_fds=(memfd,), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdin
        assert writer.stdout
        assert writer.stdout.readline() == b"ready\n"
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
        try:
            while len(seen) < 100:
                report = region.report()
                if report:
                    bodies = {report.busy_ns, report.requests, report.bytes_in, report.bytes_out,
                              *report.counters.values()}
                    assert len(bodies) == 1
                    seen |= bodies
        finally:
            writer.kill()


def test_trace(region: ControlRegion, instance: Instance) -> None:
    assert region.trace_events() == []
    instance.trace_write(1, 2, 3)
    events = region.trace_events()
    assert [e.request_id for e in events] == [1, 2, 3]
    assert {(e.vm_id, e.layer, e.point) for e in events} == {(VM_ID, LayerId.TLS, "in")}
    assert region.trace_events() == []
    instance.trace_write(*range(1, 3001))                   # more than there is room for: the newest remain
    assert [e.request_id for e in region.trace_events()] == list(range(3001 - 1023, 3001))
    instance.trace.next = 0xFFFF_FFFE
    region.trace_events()
    instance.trace_write(1, 2, 3, 4)                        # over the end of the numbers
    assert [e.request_id for e in region.trace_events()] == [1, 2, 3, 4]


def test_hostile_trace(region: ControlRegion, instance: Instance) -> None:
    ffi.memmove(instance.trace, b"\xff" * ffi.sizeof("struct sl_trace"), ffi.sizeof("struct sl_trace"))
    assert region.trace_events() == []
    for jump in (0, 5, 1 << 31, (1 << 32) - 1):
        instance.trace.next = jump
        assert len(region.trace_events()) < lib.SL_TRACE_CAP


def test_names_of_counters() -> None:
    assert report.COUNTERS[lib.SL_CNT_PEER_LOST] == "peer_lost"
    assert "max" not in report.COUNTERS.values()


# ---- doorbells


def doorbell() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def test_doorbells_tell_who_rang() -> None:
    async def run() -> list[int]:
        rung: asyncio.Queue[int] = asyncio.Queue()
        bells = Doorbells(rung.put_nowait)
        fds = {vm_id: doorbell() for vm_id in (1, 2)}
        for vm_id, fd in fds.items():
            bells.add(vm_id, fd)
        asyncio.get_running_loop().add_reader(bells, bells.ready)
        got = []
        async with asyncio.timeout(5):
            for vm_id in (2, 1, 2, 2):                      # each again, though nobody reads the counters
                os.eventfd_write(fds[vm_id], 1)
                got.append(await rung.get())
        bells.remove(fds[1])
        os.eventfd_write(fds[1], 1)
        bells.ready()
        assert rung.empty()
        asyncio.get_running_loop().remove_reader(bells)
        bells.close()
        for fd in fds.values():
            os.close(fd)
        return got

    assert asyncio.run(run()) == [2, 1, 2, 2]


def test_hostile_doorbell_blocks_nobody() -> None:
    """The eventfd's flags and count are shared with the instance: it makes them blocking, empties and fills the
    counter.
    """
    rung: list[int] = []
    bells, fd = Doorbells(rung.append), doorbell()
    bells.add(1, fd)
    os.set_blocking(fd, True)
    os.eventfd_write(fd, 1)
    os.eventfd_read(fd)
    bells.ready()
    os.eventfd_write(fd, (1 << 64) - 2)
    ring(fd)                                                # would wait for ever if it just wrote
    bells.ready()
    assert len(rung) <= 2
    bells.close()
    os.close(fd)


def test_one_that_rings_without_end_is_listened_to_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told once, the others are heard as ever, and what it rang for is not missed."""
    monkeypatch.setattr(doorbells, "PERIOD", 0.05)

    async def run() -> None:
        rung: asyncio.Queue[int] = asyncio.Queue()
        flooded: list[int] = []
        bells, bad, good = Doorbells(rung.put_nowait, flooded.append), doorbell(), doorbell()
        bells.add(1, bad)
        bells.add(2, good)
        for _ in range(3 * doorbells.FLOOD):
            os.eventfd_write(bad, 1)
            bells.ready()
        assert flooded == [1] and rung.qsize() <= 2 * doorbells.FLOOD
        os.eventfd_write(good, 1)
        bells.ready()
        while await rung.get() != 2:
            pass
        async with asyncio.timeout(5):
            while rung.empty():                         # it is listened to again
                await asyncio.sleep(0.01)
                bells.ready()
        assert rung.get_nowait() == 1 and flooded == [1]
        bells.close()
        await asyncio.sleep(0.06)                       # nothing that was to be done later goes wrong
        for fd in (bad, good):
            os.close(fd)

    asyncio.run(run())


def test_a_guests_clock_is_no_reason_to_call_it_silent() -> None:
    """Its clock began at 5 s of ours, runs a thousandth slower, and each beat is seen 1 to 20 ms late."""
    clock = GuestClock()
    second = 10**9
    for n in range(1, 3000):
        now = 5 * second + n * second // 10
        seen = now + (n % 20 + 1) * 10**6
        beat = (now - 5 * second) * 999 // 1000
        assert clock.heard(beat, seen) == seen
        assert clock.heard(beat, seen + second // 20) == seen        # read once more: no younger
        exact = now - beat
        assert abs(clock.behind - exact) < 25 * 10**6                # traces of mixed chains line up
    assert clock.heard(0, second) == seen                            # a beat that never was changes nothing
