# SPDX-License-Identifier: Apache-2.0
"""What an instance is told to be, and its layer's configuration, as they lie in its control region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from pipeline._native import ffi, lib
from pipeline.policy.model import EDGES_MAX, SERVICE_MAX, IPAddress, LayerId, Side


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


def conf_bytes(conf: Sequence[tuple[int, bytes]]) -> bytes:
    """All items behind each other, and their end. Raises ValueError if they do not fit."""
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
