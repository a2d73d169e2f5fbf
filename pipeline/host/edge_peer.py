# SPDX-License-Identifier: Apache-2.0
"""A peer on an edge, written in Python: the same library as every instance, for tests and tools."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from pipeline._native import ffi, lib
from pipeline.host.assignment import EdgeSeat
from pipeline.host.control import RouteEntry

DATA_CAP: int = lib.SL_BIG_LEN


@dataclass(frozen=True)
class Packet:
    """A RequestPacket and the private copy of its data."""

    op: int
    flags: int
    status: int
    flow_id: int
    request_id: int
    data: bytes = b""
    length: int = 0            # of a WINDOW: the credit


class EdgePeer:
    """Sits in one place of an edge. ``fd``: the region's memfd, which may be closed afterwards."""

    def __init__(self, fd: int, seat: EdgeSeat, layer: int, vm_id: int) -> None:
        """Takes the seat. Raises OSError as c/edge/peer.h says."""
        raw = ffi.new("struct sl_edge_seat *", [seat.edge_id, seat.incarnation, seat.slot, seat.side, seat.peer_layer])
        peer = ffi.new("struct sl_edge_peer **")
        error = lib.sl_edge_peer_open(fd, raw, layer, vm_id, peer)
        if error:
            raise OSError(-error, os.strerror(-error), "edge")
        self._peer: Any = peer[0]
        self._packet = ffi.new("struct sl_request_packet *")
        self._data = ffi.new("__u8[]", DATA_CAP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves. What was sent and not completed is lost."""
        lib.sl_edge_peer_close(self._peer)
        self._peer = ffi.NULL

    def routes(self, epoch: int, routes: Sequence[RouteEntry], doorbells: Sequence[int] = ()) -> None:
        """Who is across; ``doorbells``: their eventfds, in the same order, -1 where there is none."""
        page = ffi.new("struct sl_route_page *", {"seq": 2, "epoch": epoch, "nb_routes": len(routes)})
        for entry, route in zip(page.routes, routes, strict=False):
            entry.incarnation, entry.vm_id, entry.slot = route.incarnation, route.vm_id, route.slot
            entry.weight, entry.state = route.weight, route.state
        lib.sl_edge_peer_routes(self._peer, page, [*doorbells, *([-1] * (len(routes) - len(doorbells)))])

    def send(self, packet: Packet, to: int = 0) -> int:
        """Puts it into the ring towards ``to`` (0: whoever select_best_vm names). Returns the receiver's VMID.

        Raises BlockingIOError when there is no room now, OSError (ENETUNREACH) when there is nobody.
        """
        head = ffi.new("struct sl_request_packet *", {
            "op": packet.op, "flags": packet.flags, "status": packet.status, "flow_id": packet.flow_id,
            "request_id": packet.request_id})
        result: int = lib.sl_edge_peer_send(self._peer, to, head, packet.data, len(packet.data))
        if result < 0:
            raise OSError(-result, os.strerror(-result), "send")
        return result

    def signal(self) -> int:
        """Publishes what was sent and completed. Returns how many doorbells were rung."""
        return int(lib.sl_edge_peer_signal(self._peer))

    def receive(self, status: int = lib.SL_COMPLETED) -> Packet | None:
        """The next packet, which is completed with this status; None: there is none."""
        p = self._packet
        if not lib.sl_edge_peer_recv(self._peer, status, p, self._data, DATA_CAP):
            return None
        has_data = p.op in (lib.SL_OP_OPEN, lib.SL_OP_DATA)
        data = bytes(ffi.buffer(self._data, min(p.length, DATA_CAP))) if has_data else b""
        return Packet(p.op, p.flags, p.status, p.flow_id, p.request_id, data, p.length)

    def sleep(self, asleep: bool) -> bool:
        """Announces sleep. True: something came meanwhile, so do not."""
        return bool(lib.sl_edge_peer_sleep(self._peer, asleep))

    @property
    def outstanding(self) -> int:
        """Packets sent and not completed."""
        return int(lib.sl_edge_peer_outstanding(self._peer))

    def counter(self, number: int) -> int:
        """How often something was turned away for this reason (enum sl_counter)."""
        return int(lib.sl_edge_peer_counter(self._peer, number))
