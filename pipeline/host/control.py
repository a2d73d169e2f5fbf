# SPDX-License-Identifier: Apache-2.0
"""The control region of one instance, seen from the manager: assignment, routes and commands out, VMStatus
and traces in.

The layout is c/abi/control.h. The instance can write every byte of it, so nothing that is read here is
believed: offsets are this module's own constants, retries are bounded, and see report.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from pipeline._native import ffi, lib
from pipeline.host.assignment import Assignment, assignment_struct, conf_bytes
from pipeline.host.clock import Clock
from pipeline.host.report import Report, TraceEvent, report_of, trace_event_of
from pipeline.policy.model import EDGES_MAX, VmState

PAGE = 4096
ASSIGNMENT_OFF = PAGE
ROUTES_OFF = 2 * PAGE
STATUS_OFF = 5 * PAGE
TRACE_OFF = 6 * PAGE
CONF_OFF: int = lib.SL_CONTROL_LEN - lib.SL_CONF_LEN
READ_TRIES = 16          # a writer that is always in the middle of writing is a liar or a corpse
U32 = 0xFFFF_FFFF

# what must not overlap
assert ASSIGNMENT_OFF + ffi.sizeof("struct sl_assignment") <= ROUTES_OFF
assert ROUTES_OFF + EDGES_MAX * ffi.sizeof("struct sl_route_page") <= STATUS_OFF
assert STATUS_OFF + ffi.sizeof("struct sl_vm_status") <= TRACE_OFF
assert TRACE_OFF + ffi.sizeof("struct sl_trace") <= CONF_OFF


@dataclass(frozen=True)
class RouteEntry:
    """A peer across an edge. ``weight`` 0: no new flow."""

    vm_id: int
    incarnation: int
    slot: int
    weight: int
    state: VmState


class Command(IntEnum):
    """enum sl_cmd."""

    RUN = lib.SL_CMD_RUN          # READY -> ACTIVE
    DRAIN = lib.SL_CMD_DRAIN      # ACTIVE -> DRAINING
    STOP = lib.SL_CMD_STOP        # end; what is open is reset


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
        data = conf_bytes(conf)
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
                return report_of(self.vm_id, private)
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
        return [event for raw in events if (event := trace_event_of(self.vm_id, raw, self._clock.behind))]

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
