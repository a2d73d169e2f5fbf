# SPDX-License-Identifier: Apache-2.0
"""What an instance is started with, and what it is given with a layer: worked out of configuration and swarm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.actor.held import Held, Member
from pipeline.host.assignment import Assignment, EdgeSeat, ServiceSeat
from pipeline.host.tap import TapSpec
from pipeline.instances.conf import ConfItem, Secrets, conf_items
from pipeline.instances.driver import EdgeGrant, InstanceSpec, Outfit
from pipeline.policy.config import Config
from pipeline.policy.model import Driver as DriverName
from pipeline.policy.model import Edge, Instance, Layer, LayerId, Service, Slot


def spec(held: Held, member: Member, instance: Instance) -> InstanceSpec:
    """``instance``: what the member is to become."""
    config = held.config
    app = config.app.root if _in_vm(config, LayerId.APP) else None
    mine = instance.layers
    pools = [p for p in config.layers if p.driver is instance.driver and (p.id in mine or not mine)]
    return InstanceSpec(
        instance.vm_id, held.run_dir, member.fds.facts.socket, Path(app) if app else None,
        max((p.memory for p in pools), default=Layer.memory), pools[0].cpus if mine and pools else (),
        crypto=any(p.wants for p in pools), tap=None if mine else _tap(held, (p.id for p in pools)))


def _in_vm(config: Config, layer: LayerId) -> bool:
    return any(p.id is layer and p.driver is DriverName.QEMU for p in config.layers)


def assignment(held: Held, instance: Instance) -> Assignment:
    layer, edges = instance.layers[0], held.edges
    seats = tuple(EdgeSeat(memory.edge_id, instance.incarnation, slot.index, slot.side, across(memory.edge, layer))
                  for slot in instance.slots if (memory := edges[slot.edge]))
    count = max((s.index for s in held.config.services), default=-1) + 1
    services: list[ServiceSeat | None] = [None] * count
    for service in held.config.services:
        if layer in service.chain.layers:
            services[service.index] = ServiceSeat(
                service.name, service.addresses, service.port, service.protocol,
                _next_edge(service, layer, instance.slots))
    return Assignment(layer, seats, tuple(services), held.nic.mac, held.mtu)


def conf(held: Held, member: Member, instance: Instance, secrets: Secrets) -> list[ConfItem]:
    """The layer's configuration, with paths as the instance sees them. Only tls is given secrets."""
    root = held.config.app.root
    app = replace(held.config.app, root=member.driver.place(root) if root else None)
    own = secrets if LayerId.TLS in instance.layers else Secrets()
    return conf_items(replace(held.config, app=app), instance.layers[0], own)


def outfit(held: Held, instance: Instance, number: int, given: Assignment) -> Outfit:
    grants = tuple(EdgeGrant(held.edges[s.edge].edge_id, held.edges[s.edge].fd) for s in instance.slots)
    tap = _tap(held, instance.layers)
    root = held.config.app.root if LayerId.APP in instance.layers else None
    return Outfit(number, given, grants, tap, held.config.tcp.backlog, root)


def _tap(held: Held, layers: Iterable[LayerId]) -> TapSpec | None:
    return TapSpec(held.nic.mac, held.mtu) if LayerId.TCP in layers else None


def across(edge: Edge, layer: LayerId) -> LayerId:
    return edge.back if edge.front == layer else edge.front


def _next_edge(service: Service, layer: LayerId, slots: Sequence[Slot]) -> int:
    """Index of the seat on which the service's flows go on behind this layer; -1: it is the last."""
    names: Mapping[str, int] = {slot.edge: n for n, slot in enumerate(slots)}
    for front, back in service.chain.pairs():
        if front is layer:
            return names[f"{front.label}-{back.label}"]
    return -1
