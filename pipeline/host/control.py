# SPDX-License-Identifier: Apache-2.0
"""The control region of one instance, seen from the manager: assignment, routes and commands out, VMStatus
and traces in.

The layout is c/abi/control.h. The instance can write every byte of it, so nothing that is read here is
believed: offsets are this module's own constants, numbers are clamped, text is decoded with replacement,
retries are bounded.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Any

from pipeline._native import ffi, lib
from pipeline.policy.model import EDGES_MAX, SERVICE_MAX, Crypto, IPAddress, LayerId, Side, VmState, VMStatus

PAGE = 4096
ASSIGNMENT_OFF = PAGE
ROUTES_OFF = 2 * PAGE
STATUS_OFF = 5 * PAGE
TRACE_OFF = 6 * PAGE
CONF_OFF: int = lib.SL_CONTROL_LEN - lib.SL_CONF_LEN
READ_TRIES = 16          # a writer that is always in the middle of writing is a liar or a corpse
U32 = 0xFFFF_FFFF
CLOCK_WINDOW_NS = 10_000_000_000

# what must not overlap
assert ASSIGNMENT_OFF + ffi.sizeof("struct sl_assignment") <= ROUTES_OFF
assert ROUTES_OFF + EDGES_MAX * ffi.sizeof("struct sl_route_page") <= STATUS_OFF
assert STATUS_OFF + ffi.sizeof("struct sl_vm_status") <= TRACE_OFF
assert TRACE_OFF + ffi.sizeof("struct sl_trace") <= CONF_OFF


def _names(enum: str, prefix: str) -> Mapping[int, str]:
    """Number -> name in lower case, without the prefix and without the limit at the end of the enum."""
    return MappingProxyType({number: name.removeprefix(prefix).lower()
                             for number, name in ffi.typeof(f"enum {enum}").elements.items()
                             if name != f"{prefix}MAX"})


COUNTERS = _names("sl_counter", "SL_CNT_")
TRACE_POINTS = _names("sl_trace_point", "SL_TRACE_")
CRYPTO_KINDS = _names("sl_crypto_kind", "SL_CRYPTO_")


class Command(IntEnum):
    """enum sl_cmd."""

    RUN = lib.SL_CMD_RUN          # READY -> ACTIVE
    DRAIN = lib.SL_CMD_DRAIN      # ACTIVE -> DRAINING
    STOP = lib.SL_CMD_STOP        # end; what is open is reset


@dataclass(frozen=True)
class EdgeSeat:
    """One edge as the instance sees it. ``incarnation`` is unique for each owner that the slot ever has."""

    edge_id: int
    incarnation: int
    slot: int
    side: Side
    peer_layer: LayerId


@dataclass(frozen=True)
class ServiceSeat:
    """One service. ``next_edge``: index of the edge on which its flows go on; -1: this layer is the last."""

    name: str
    addresses: tuple[IPAddress, ...]
    port: int
    protocol: int
    next_edge: int


@dataclass(frozen=True)
class Assignment:
    """What the instance shall be. The place of a service in ``services`` is its number; None: no such
    service."""

    layer: LayerId
    edges: tuple[EdgeSeat, ...]
    services: tuple[ServiceSeat | None, ...] = ()
    nic_mac: bytes = bytes(6)
    mtu: int = 0


@dataclass(frozen=True)
class RouteEntry:
    """A peer across an edge. ``weight`` 0: no new flow."""

    vm_id: int
    incarnation: int
    slot: int
    weight: int
    state: VmState


@dataclass(frozen=True)
class Report:
    """All that the instance says about itself: VMStatus and what stands beside it. Hearsay."""

    status: VMStatus
    cmd_seen: int = 0
    assignment_seen: int = 0
    routes_seen: tuple[int, ...] = ()
    error: int = 0                                  # errno of what ended it
    busy_ns: int = 0
    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)
    latency: tuple[int, ...] = ()                   # how many answers took 2^n to 2^(n + 1) µs
    text: str = ""                                  # its last error in words


@dataclass(frozen=True)
class TraceEvent:
    """One step of a traced request."""

    request_id: int
    parent_id: int
    time_ns: int
    vm_id: int
    layer: LayerId
    point: str
    peer_vm: int


def struct_bytes(name: str, **fields: Any) -> bytes:
    """A struct of c/abi as bytes, for the data of a conf item: ``struct_bytes("sl_tcp_conf", backlog=1024,
    ...)``.

    Text of a fixed array is given as bytes, and must leave room for the terminating zero.
    """
    value = ffi.new(f"struct {name} *")
    for key, content in fields.items():
        if isinstance(content, bytes):
            array = getattr(value, key)
            if len(content) >= len(array):
                raise ValueError(f"{name}.{key} holds {len(array) - 1} bytes, not {len(content)}")
            ffi.memmove(array, content, len(content))
        else:
            setattr(value, key, content)
    return bytes(ffi.buffer(value))


class Clock:
    """An instance's clock, as its control region shows it: that of this machine."""

    behind = 0         # nanoseconds by which it is behind this machine's CLOCK_MONOTONIC

    def heard(self, beat_ns: int, now_ns: int) -> int:
        """A heartbeat is read, perhaps once more: its time by the clock of this machine."""
        return beat_ns


class GuestClock(Clock):
    """Began when the guest booted, and need not run as fast as ours. So a heartbeat's time is when it was first seen.
    For traces the distance of the clocks is the smallest lag seen lately: it holds the least delay.
    """

    def __init__(self) -> None:
        self._beat, self._seen = 0, 0
        self._lags = (0, 0)               # smallest of this window, and of the one before
        self._window_ends = 0

    def heard(self, beat_ns: int, now_ns: int) -> int:
        if beat_ns and beat_ns != self._beat:
            self._beat, self._seen = beat_ns, now_ns
            self._learn(now_ns - beat_ns, now_ns)
        return self._seen

    def _learn(self, lag: int, now_ns: int) -> None:
        if now_ns >= self._window_ends:
            self._lags = (lag, self._lags[0] if self._window_ends else lag)
            self._window_ends = now_ns + CLOCK_WINDOW_NS
        self._lags = (min(lag, self._lags[0]), self._lags[1])
        self.behind = min(self._lags)


class ControlRegion:
    """One instance's region, mapped. There is one writer: the manager that owns this object."""

    def __init__(self, fd: int, vm_id: int, *, clock: Clock | None = None) -> None:
        """Maps the region. ``fd`` may be closed afterwards. For a new instance call ``format`` next. ``clock``: the
        instance's, if that is not this machine's.
        """
        self.vm_id = vm_id
        self._clock = clock or Clock()
        self._map = mmap.mmap(fd, lib.SL_CONTROL_LEN)
        self._buffer = ffi.from_buffer(self._map, require_writable=True)
        self._base = ffi.cast("__u8 *", self._buffer)
        self._header = ffi.cast("struct sl_control *", self._base)
        self._trace_next = 0
        self._last_trace: Any = ffi.new("struct sl_trace *")

    def close(self) -> None:
        """Unmaps it."""
        self._header = self._base = None
        ffi.release(self._buffer)
        self._map.close()

    # ---- manager -> instance

    def format(self, *, trace_every: int = 0, spin_us: int = 20) -> None:
        """Writes the header of a new region, the magic last."""
        h = self._header
        h.abi_version, h.vm_id, h.region_len = lib.SL_ABI_VERSION, self.vm_id, lib.SL_CONTROL_LEN
        h.assignment_off, h.routes_off = ASSIGNMENT_OFF, ROUTES_OFF
        h.status_off, h.trace_off, h.conf_off = STATUS_OFF, TRACE_OFF, CONF_OFF
        h.trace_every, h.spin_us = trace_every, spin_us
        self.entropy_renew()
        self._store(self._u32(0), lib.SL_CONTROL_MAGIC)

    @property
    def formatted(self) -> bool:
        return bool(lib.sl_load_acquire_u32(self._u32(0)) == lib.SL_CONTROL_MAGIC)

    def entropy_renew(self) -> None:
        """Fresh random bytes, for a start or a restored snapshot."""
        ffi.memmove(self._header.entropy, os.urandom(64), 64)
        self._bump(ffi.addressof(self._header, "entropy_seq"))

    def trace_every_set(self, every: int) -> None:
        """The first layer traces one request in so many; 0: none."""
        self._store(ffi.addressof(self._header, "trace_every"), every)

    def command(self, command: Command) -> int:
        """Gives a command. Returns its number, which comes back as ``Report.cmd_seen``."""
        self._header.cmd = command
        return self._bump(ffi.addressof(self._header, "cmd_seq"))

    def assign(self, assignment: Assignment, conf: Sequence[tuple[int, bytes]]) -> int:
        """Writes assignment and layer configuration: (enum sl_conf_type, data) in order.

        Returns its number, which comes back as ``Report.assignment_seen``. Raises ValueError if it does not
        fit.
        """
        data = _conf_bytes(conf)
        private = assignment_struct(assignment)

        def write() -> None:
            used = min(self._header.conf_len, lib.SL_CONF_LEN)
            ffi.memmove(self._base + CONF_OFF, data.ljust(used, b"\0"), max(len(data), used))
            self._header.conf_len = len(data)
            self._copy_behind_seq(ASSIGNMENT_OFF, private)

        return self._publish(ASSIGNMENT_OFF, write)

    @property
    def assigned(self) -> int:
        """The number of the assignment that stands there; 0: none was given."""
        return int(self._u32(ASSIGNMENT_OFF)[0])

    def routes_set(self, edge: int, epoch: int, routes: Sequence[RouteEntry]) -> None:
        """Writes the route page of the present assignment's edge with this index: all peers across, best first."""
        if not 0 <= edge < EDGES_MAX or len(routes) > lib.SL_SIDE_MAX:
            raise ValueError(f"no route page: edge {edge} with {len(routes)} routes")
        private = ffi.new("struct sl_route_page *", {"epoch": epoch & U32, "nb_routes": len(routes),
                                                     "assignment": self.assigned})
        for entry, route in zip(private.routes, routes, strict=False):
            entry.incarnation, entry.vm_id, entry.slot = route.incarnation, route.vm_id, route.slot
            entry.weight, entry.state = route.weight, route.state
        off = ROUTES_OFF + edge * ffi.sizeof("struct sl_route_page")
        self._publish(off, lambda: self._copy_behind_seq(off, private))

    # ---- instance -> manager

    def report(self) -> Report | None:
        """What the instance says now. None: it has not spoken yet, or would not stop writing while this
        read."""
        private = ffi.new("struct sl_vm_status *")
        seq = self._u32(STATUS_OFF)
        for _ in range(READ_TRIES):
            before = lib.sl_load_acquire_u32(seq)
            if before == 0:
                return None
            ffi.memmove(private, self._base + STATUS_OFF, ffi.sizeof(private[0]))
            lib.sl_fence()
            if not before & 1 and lib.sl_load_acquire_u32(seq) == before:
                private.heartbeat_ns = self._clock.heard(private.heartbeat_ns, time.monotonic_ns())
                return _report(self.vm_id, private)
        return None

    def trace_events(self) -> list[TraceEvent]:
        """The events since the last call that were not overwritten meanwhile, oldest first."""
        next_ptr = self._u32(TRACE_OFF)
        end = lib.sl_load_acquire_u32(next_ptr)
        new = (end - self._trace_next) & U32
        if new == 0:
            return []
        private = self._last_trace
        ffi.memmove(private, self._base + TRACE_OFF, ffi.sizeof(private[0]))
        lib.sl_fence()
        # What was written while this copied lies in the places of the oldest events, and so does the one
        # being written.
        lost = (lib.sl_load_acquire_u32(next_ptr) - end) & U32
        keep = max(0, min(new, lib.SL_TRACE_CAP - 1 - lost)) if lost < lib.SL_TRACE_CAP else 0
        self._trace_next = end
        events = (private.events[n & (lib.SL_TRACE_CAP - 1)] for n in range(end - keep, end))
        return [event for raw in events if (event := _trace_event(self.vm_id, raw, self._clock.behind))]

    # ---- below

    def _u32(self, off: int) -> Any:
        return ffi.cast("__u32 *", self._base + off)

    @staticmethod
    def _store(pointer: Any, value: int) -> None:
        lib.sl_store_release_u32(pointer, value & U32)

    def _bump(self, pointer: Any) -> int:
        value: int = (pointer[0] + 1) & U32
        self._store(pointer, value)
        return value

    def _publish(self, off: int, write: Callable[[], None]) -> int:
        """Seqlock, writer's side. A seq that a former manager left odd is overtaken."""
        pointer = self._u32(off)
        odd = (lib.sl_load_acquire_u32(pointer) + 1) | 1
        self._store(pointer, odd)
        lib.sl_fence()
        write()
        even: int = (odd + 1) & U32
        self._store(pointer, even)
        return even

    def _copy_behind_seq(self, off: int, private: Any) -> None:
        """All but the first field, which is the seq."""
        size = ffi.sizeof(private[0])
        ffi.memmove(self._base + off + 4, ffi.buffer(private)[4:size], size - 4)


def _conf_bytes(conf: Sequence[tuple[int, bytes]]) -> bytes:
    out = bytearray()
    for kind, data in conf:
        out += struct_bytes("sl_conf_item", type=kind, length=len(data))
        out += data.ljust((len(data) + 7) & ~7, b"\0")
    out += struct_bytes("sl_conf_item", type=lib.SL_CONF_END)
    if len(out) > lib.SL_CONF_LEN:
        raise ValueError(f"the layer's configuration is {len(out)} bytes long, {lib.SL_CONF_LEN} fit")
    return bytes(out)


def assignment_struct(assignment: Assignment) -> Any:
    """As it lies in the control region (struct sl_assignment), without its seq."""
    if len(assignment.edges) > EDGES_MAX or len(assignment.services) > SERVICE_MAX:
        raise ValueError(f"{len(assignment.edges)} edges and {len(assignment.services)} services do not fit")
    private = ffi.new("struct sl_assignment *", {
        "layer": assignment.layer, "nb_edges": len(assignment.edges), "nb_services": len(assignment.services),
        "nic_mac": list(assignment.nic_mac), "mtu": assignment.mtu})
    for seat, edge in zip(private.edges, assignment.edges, strict=False):
        seat.edge_id, seat.incarnation, seat.slot = edge.edge_id, edge.incarnation, edge.slot
        seat.side = lib.SL_FRONT if edge.side is Side.FRONT else lib.SL_BACK
        seat.peer_layer = edge.peer_layer
    for seat, service in zip(private.services, assignment.services, strict=False):
        if service is not None:
            _service_fill(seat, service)
    return private


def _service_fill(seat: Any, service: ServiceSeat) -> None:
    name = service.name.encode()
    if len(service.addresses) > len(seat.addr) or len(name) >= lib.SL_NAME_LEN:
        raise ValueError(f"service {service.name}: {len(service.addresses)} addresses or its name do not fit")
    for place, address in zip(seat.addr, service.addresses, strict=False):
        ffi.memmove(place, mapped(address), 16)
    ffi.memmove(seat.name, name, len(name))
    ffi.memmove(ffi.addressof(seat, "port"), service.port.to_bytes(2, "big"), 2)
    seat.proto, seat.next_edge = service.protocol, service.next_edge


def mapped(address: IPAddress) -> bytes:
    """16 bytes in network order; IPv4 as ::ffff:a.b.c.d."""
    return b"\0" * 10 + b"\xff\xff" + address.packed if isinstance(address, IPv4Address) else address.packed


def _report(vm_id: int, raw: Any) -> Report:
    state = VmState(raw.state) if raw.state in VmState._value2member_map_ else VmState.FAILED
    status = VMStatus(
        vm_id=vm_id, protocol_layers=_layers(raw), state=state, load=min(raw.load, 1000),
        available_capacity=min(raw.available_capacity, 1000), hardware_affinity=raw.hardware_affinity,
        active_flows=raw.active_flows, queue_depth=raw.queue_depth, oldest_ns=raw.oldest_ns,
        heartbeat_ns=min(raw.heartbeat_ns, time.monotonic_ns()), crypto=_crypto(raw.crypto))
    text = bytes(ffi.buffer(raw.text)).split(b"\0", 1)[0].decode(errors="replace")
    return Report(
        status=status, cmd_seen=raw.cmd_seen, assignment_seen=raw.assignment_seen,
        routes_seen=tuple(raw.routes_seen), error=raw.error, busy_ns=raw.busy_ns, requests=raw.requests,
        bytes_in=raw.bytes_in, bytes_out=raw.bytes_out,
        counters={name: raw.counters[number] for number, name in COUNTERS.items()}, latency=tuple(raw.latency),
        text="".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def _crypto(raw: Any) -> Crypto | None:
    if raw.kind == lib.SL_CRYPTO_NONE or raw.kind not in CRYPTO_KINDS:
        return None
    return Crypto(CRYPTO_KINDS[raw.kind], tuple(raw.seal_mbps), raw.handshakes, raw.fallbacks)


def _layers(raw: Any) -> tuple[LayerId, ...]:
    numbers = raw.protocol_layers[0:min(raw.nb_layers, len(raw.protocol_layers))]
    return tuple(LayerId(n) for n in numbers if n in LayerId._value2member_map_)


def _trace_event(vm_id: int, raw: Any, behind: int) -> TraceEvent | None:
    if raw.point not in TRACE_POINTS or raw.layer not in LayerId._value2member_map_ or not raw.request_id:
        return None
    return TraceEvent(raw.request_id, raw.parent_id, raw.time_ns + behind, vm_id, LayerId(raw.layer),
                      TRACE_POINTS[raw.point], raw.peer_vm)
