# SPDX-License-Identifier: Apache-2.0
"""Whether a ready instance may get flows, and whether a draining one gets no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.policy.model import Instance, LayerId, RoutingTable, Side, Swarm, VmState

DRAIN_GRACE = 0.5          # seconds in which entries that were under way to a draining instance may still open flows
HANDSHAKE_GRACE = 2.0      # the same for handshakes with clients far away, whose last segment is still to come


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


def relieved(swarm: Swarm, instance: Instance, since: int, seen: Mapping[int, Sequence[int]]) -> bool:
    """Whether nobody in front of a draining instance opens flows to it any more.

    ``since``: epoch of the first table that says that it drains. ``seen``: as above. One that never
    carries the table out holds up the drain to its deadline, which it could as well by a flow that does not end.
    """
    places = {slot.edge for slot in instance.slots if slot.side is Side.BACK}
    senders = [i for i in swarm.instances if i.state in (VmState.ACTIVE, VmState.DRAINING)]
    epochs = [epoch for i in senders for slot, epoch in zip(i.slots, seen.get(i.vm_id, ()), strict=False)
              if slot.edge in places and slot.side is Side.FRONT]
    return all(epoch >= since for epoch in epochs)


def grace(instance: Instance) -> float:
    """Seconds for which a draining instance may still get flows that began before."""
    return HANDSHAKE_GRACE if LayerId.TCP in instance.layers else DRAIN_GRACE


def can_activate(instance: Instance) -> bool:
    """It is ready, answers, and is found through its edges."""
    return instance.state is VmState.READY and instance.has_heartbeat and instance.linked


@dataclass
class Probes:
    """Of one swarm. Remembers of each incarnation the epochs of the first table that names it, and of the first one
    that says that it drains.
    """

    _named: dict[int, int] = field(default_factory=dict)
    _draining: dict[int, int] = field(default_factory=dict)

    def note(self, swarm: Swarm, table: RoutingTable) -> None:
        """This table counts from now on."""
        states = {route.vm_id: route.state for routes in table.routes.values() for route in routes}
        named = {i.incarnation for i in swarm.instances if i.vm_id in states}
        draining = {i.incarnation for i in swarm.instances if states.get(i.vm_id) is VmState.DRAINING}
        self._named = {k: self._named.get(k, table.epoch) for k in named}
        self._draining = {k: self._draining.get(k, table.epoch) for k in draining}

    def probed(self, swarm: Swarm, instance: Instance, seen: Mapping[int, Sequence[int]]) -> Instance:
        """The same instance; if it is ready it says whether it can be reached through its edges."""
        if instance.state is not VmState.READY:
            return instance
        return replace(instance, linked=linked(swarm, instance, self._named.get(instance.incarnation, 0), seen))

    def relieved(self, swarm: Swarm, instance: Instance, seen: Mapping[int, Sequence[int]]) -> bool:
        """Whether a draining one gets no more flows from those in front of it."""
        return relieved(swarm, instance, self._draining.get(instance.incarnation, 0), seen)
