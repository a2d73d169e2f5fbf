# SPDX-License-Identifier: Apache-2.0
"""The shared memory between two layers: how long it is, who makes it, who sits in it.

The manager maps the first page of a region only: header and peer table. It cannot see a payload.
"""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass
from typing import Any

from pipeline._native import ffi, lib
from pipeline.errors import HugepageError
from pipeline.host.holder_client import EdgeMemfd, HolderClient
from pipeline.policy.model import Edge, Side, VmState

HUGE_PAGE_LEN = 2 << 20


@dataclass(frozen=True)
class Sizes:
    """Of rings and payload slots; 0: the default of c/abi/edge.h."""

    ring_cap: int = 0
    nb_small: int = 0
    nb_big: int = 0


DEFAULT_SIZES = Sizes()


@dataclass(frozen=True)
class Peer:
    """A row of the peer table, as the peer itself wrote it: hearsay, clamped."""

    side: Side
    slot: int
    vm_id: int
    incarnation: int
    state: VmState
    load: int              # 0 ... 1000
    depth: int             # open flows and queued entries
    heartbeat_ns: int      # CLOCK_MONOTONIC
    sleeping: bool


def edge_id(edge: Edge) -> int:
    """The number that stands for the pair of layers."""
    return edge.front << 8 | edge.back


def plan(edge: Edge, sizes: Sizes = DEFAULT_SIZES, epoch: int = 1) -> Any:
    """The header (struct sl_region) of a region with places for as many instances as the edge has. In whole
    hugepages."""
    g = ffi.new("struct sl_region *", {
        "edge_id": edge_id(edge), "epoch": epoch, "nb_front": edge.front_cap, "nb_back": edge.back_cap,
        "front_layer": edge.front, "back_layer": edge.back,
        "ring_cap": sizes.ring_cap, "nb_small": sizes.nb_small, "nb_big": sizes.nb_big})
    error = lib.sl_region_plan(g, HUGE_PAGE_LEN)
    if error:
        raise HugepageError(f"edge {edge.name} cannot have {edge.front_cap} and {edge.back_cap} places: "
                            f"{os.strerror(-error)}", hint="lower `max` of these layers")
    return g


def pages_needed(edge: Edge, sizes: Sizes = DEFAULT_SIZES) -> int:
    """How many hugepages the region takes."""
    return int(plan(edge, sizes).region_len) // HUGE_PAGE_LEN


class EdgeMemory:
    """One edge's region. ``fd`` is this object's own copy of the memfd, to be passed to instances."""

    def __init__(self, edge: Edge, memfd: EdgeMemfd, sizes: Sizes = DEFAULT_SIZES) -> None:
        self.edge = edge
        self.edge_id = edge_id(edge)
        self.fd = memfd.fd
        self.length = memfd.len
        self.huge = memfd.huge
        self._plan = plan(edge, sizes)
        self._map = mmap.mmap(memfd.fd, min(memfd.len, HUGE_PAGE_LEN))
        self._buffer = ffi.from_buffer(self._map, require_writable=True)

    @classmethod
    def create(cls, holder: HolderClient, edge: Edge, sizes: Sizes = DEFAULT_SIZES,
               epoch: int = 1) -> EdgeMemory:
        """Makes the region. ``huge`` of the result tells whether the machine had hugepages for it."""
        header = plan(edge, sizes, epoch)
        memory = cls(edge, holder.edge_create(edge.name, edge_id(edge), header.region_len), sizes)
        lib.sl_region_format(ffi.cast("void *", memory._buffer), header)
        return memory

    @classmethod
    def adopt(cls, holder: HolderClient, edge: Edge, sizes: Sizes = DEFAULT_SIZES) -> EdgeMemory:
        """Takes over a region that a former manager made."""
        return cls(edge, holder.edge_get(edge_id(edge)), sizes)

    def intact(self) -> bool:
        """The header is still what it was. It is shared with every instance on the edge, any of which could
        break it;
        those attached do not notice, as they keep a copy, but nobody else can attach."""
        got = ffi.new("struct sl_region *")
        if lib.sl_region_check(ffi.cast("void *", self._buffer), self.length, got):
            return False
        got.epoch = self._plan.epoch
        return bytes(ffi.buffer(got)) == bytes(ffi.buffer(self._plan))

    def peers(self) -> list[Peer]:
        """Who sits in the region: front side first, empty places left out."""
        nb_front, nb_back = self._plan.nb_front, self._plan.nb_back
        rows = ffi.new("struct sl_peer[]", nb_front + nb_back)
        table = ffi.cast("__u8 *", self._buffer) + self._plan.peers_off
        ffi.memmove(rows, table, ffi.sizeof(rows))
        now = time.monotonic_ns()
        places = [(side, slot) for side, nb in ((Side.FRONT, nb_front), (Side.BACK, nb_back))
                  for slot in range(nb)]
        return [Peer(side=side, slot=slot, vm_id=row.vm_id, incarnation=row.incarnation,
                     state=VmState(row.state) if row.state in VmState._value2member_map_ else VmState.FAILED,
                     load=min(row.load, 1000), depth=row.depth,
                     heartbeat_ns=min(row.heartbeat_ns, now), sleeping=bool(row.sleeping))
                for (side, slot), row in zip(places, rows, strict=True) if row.incarnation]

    def close(self) -> None:
        """Unmaps and closes; the holder keeps the memory."""
        ffi.release(self._buffer)
        self._map.close()
        os.close(self.fd)
