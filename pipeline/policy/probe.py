# SPDX-License-Identifier: Apache-2.0
"""Whether a ready instance may get flows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.policy.model import Instance, RoutingTable, Swarm, VmState


def linked(swarm: Swarm, instance: Instance, named: int, seen: Mapping[int, Sequence[int]]) -> bool:
    """The probe of a ready instance through its edges: it has set up its rings to those across, and on each edge one of
    these at least its rings to it (one that does not, because it is hostile or stuck, shall not hold it up).

    ``named``: epoch of the first table that names it, 0: none does yet. ``seen``: of each instance, the latest epoch
    that it has carried out on each of its edges (routes_seen).
    """
    def done(who: Instance, edge: str) -> bool:
        epochs = [epoch for slot, epoch in zip(who.slots, seen.get(who.vm_id, ()), strict=False) if slot.edge == edge]
        return bool(named) and any(epoch >= named for epoch in epochs)

    active = [i for i in swarm.instances if i.state is VmState.ACTIVE and i.vm_id != instance.vm_id]
    for slot in instance.slots:
        across = [i for i in active for s in i.slots if s.edge == slot.edge and s.side is slot.side.other]
        if across and not (done(instance, slot.edge) and any(done(peer, slot.edge) for peer in across)):
            return False
    return True


def can_activate(instance: Instance) -> bool:
    """It is ready, answers, and is found through its edges."""
    return instance.state is VmState.READY and instance.has_heartbeat and instance.linked


@dataclass
class Probes:
    """Of one swarm. Remembers of each incarnation the epoch of the first table that names it."""

    _named: dict[int, int] = field(default_factory=dict)

    def note(self, swarm: Swarm, table: RoutingTable) -> None:
        """This table counts from now on."""
        members = {route.vm_id for routes in table.routes.values() for route in routes}
        known = {i.incarnation: table.epoch for i in swarm.instances if i.vm_id in members}
        self._named = {**known, **{k: epoch for k, epoch in self._named.items() if k in known}}

    def probed(self, swarm: Swarm, instance: Instance, seen: Mapping[int, Sequence[int]]) -> Instance:
        """The same instance; if it is ready it says whether it can be reached through its edges."""
        if instance.state is not VmState.READY:
            return instance
        return replace(instance, linked=linked(swarm, instance, self._named.get(instance.incarnation, 0), seen))
