# SPDX-License-Identifier: Apache-2.0
"""The RoutingTable: to the instances as route pages, to the classifier as a Maglev table for each service."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache

from pipeline.actor.fitting import across
from pipeline.actor.held import Held, Member
from pipeline.host.control import RouteEntry
from pipeline.host.doorbells import ring
from pipeline.host.pins import MAGLEV_SIZE
from pipeline.policy.model import RoutingTable, Swarm
from pipeline.policy.routing import lent_slots, maglev_table, next_table


class Routes:
    """The table that counts now."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self.table = RoutingTable()
        self._tables: dict[int, tuple[tuple[int, int], ...]] = {}      # service -> what its Maglev table is made of
        self._lent: dict[int, bytes] = {}      # which of that table's slots await the replacement of one that left

    def set(self, table: RoutingTable, wanted: Swarm) -> None:
        held = self._held
        self.table = table
        self.announce()
        for member in held.members.values():
            self.write(member)
            ring(member.fds.doorbell)
        assert held.classifier
        held.classifier.set_vms((m.instance for m in self._with_states(wanted)), table)
        self.set_tables()

    def set_tables(self) -> None:
        """A Maglev table for each service; before the classifier hears of the service."""
        for service in self._held.config.services:
            self._set_maglev(service.index, self.table.active(service.chain.layers[0]))

    def write(self, member: Member) -> None:
        """Its route pages: for each of its edges, who is across."""
        members, edges = self._held.members, self._held.edges
        for index, seat in enumerate(member.seats):
            there = across(edges[seat.edge].edge, member.instance.layers[0])
            entries = [RouteEntry(route.vm_id, peer.instance.incarnation, slot.index, route.weight, route.state)
                       for route in self.table.of(there)
                       if (peer := members.get(route.vm_id)) is not None
                       for slot in peer.seats if slot.edge == seat.edge]
            member.control.routes_set(index, self.table.epoch, entries)

    def announce(self) -> None:
        """Each instance may ring those across its edges, and nobody else."""
        members = self._held.members
        for vm_id, member in members.items():
            edges = {slot.edge: slot.side for slot in member.seats}
            peers = [other for other, m in members.items()
                     if any(slot.edge in edges and slot.side is not edges[slot.edge] for slot in m.seats)]
            self._held.holder.instance_peers(vm_id, peers)

    def _with_states(self, wanted: Swarm) -> Iterable[Member]:
        """Members that have a layer, with the state that they will have after this plan. One that is starting is given
        its layer later, whatever is wanted of it.
        """
        for member in self._held.members.values():
            instance = wanted.instance(member.instance.vm_id)
            if (instance is not None and member.instance.layers
                    and instance.incarnation == member.instance.incarnation):
                member.instance = instance
                yield member

    def _set_maglev(self, service: int, entries: Sequence[tuple[int, int]]) -> None:
        """Another table, made from the one that counts now (a former manager's, perhaps), so that as few new flows as
        possible get another instance.
        """
        key = tuple(sorted(entries))
        classifier, router = self._held.classifier, self._held.router
        assert classifier
        if self._tables.get(service) == key and classifier.has_table(service):
            return          # a service that was taken out of use has lost its own
        old = classifier.table(service)
        known = old is not None and any(old)
        tell = router.table_set if router and self._held.config.nic.devargs else None
        if old and known:
            table, self._lent[service] = _successor(old.tobytes(), key, self._lent.get(service, b""))
        else:
            table, self._lent[service] = maglev_table(key, MAGLEV_SIZE), b""
        classifier.set_table(service, table, tell)
        self._tables[service] = key


@lru_cache(maxsize=1)
def _successor(old: bytes, key: tuple[tuple[int, int], ...], lent: bytes) -> tuple[array[int], bytes]:
    """The table after that one, and what is lent in it. Services that begin alike have the same one after the other: it
    is made once, as new flows wait for it.
    """
    before = array("H", old)
    table = next_table(before, key, lent)
    return table, lent_slots(before, table, lent)
