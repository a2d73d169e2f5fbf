# SPDX-License-Identifier: Apache-2.0
"""Who should exist: the swarm to aim at now, from the one that runs and what the operator wants."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from pipeline.errors import PlanError
from pipeline.policy.intent import Intent, keep_indices
from pipeline.policy.model import (
    Driver,
    Edge,
    Instance,
    Layer,
    LayerId,
    RoutingTable,
    Service,
    Swarm,
    VmState,
    VMStatus,
)
from pipeline.policy.places import allocate_vm_id, assign_slots, taken_slots
from pipeline.policy.probe import can_activate
from pipeline.policy.routing import REFRESH, next_routing, routing_table

PATIENCE = 5.0          # seconds for which a new service waits until those of its chain know each other


def desired(actual: Swarm, intent: Intent, now: float) -> Swarm:
    """The swarm to aim at now (CLOCK_MONOTONIC seconds). Raises PlanError for what cannot be reached."""
    services = keep_indices(actual.services, intent.services)
    wanted = replace(actual, layers=intent.layers, edges=_edges(actual, services, intent.layers), router=True,
                     instances=_survivors(actual.instances, now))
    deadline = now + intent.drain_timeout
    wanted = _changes(actual, wanted, intent, now)
    for layer in intent.layers:
        wanted = _pool(actual, wanted, layer, intent, now)
    for instance in wanted.instances:
        if instance.layers and not any(layer.id in instance.layers for layer in intent.layers):
            wanted = _let_go(wanted, instance, deadline)
    wanted = _warm(actual, wanted, intent, now)
    routing = _routing(actual, wanted, now)
    known = {service.name for service in actual.services}
    served = tuple(s for s in services if s.name in known or (
        all(map(routing.active, s.chain.layers)) and _reachable(actual, s, now)))
    interface = intent.interface if served else actual.classifier
    used = {slot.edge for i in actual.instances for slot in i.slots}
    left = tuple(e for e in actual.edges if e.name in used and e not in wanted.edges)
    return replace(wanted, edges=wanted.edges + left, routing=routing, services=served, classifier=interface)


def _reachable(swarm: Swarm, service: Service, now: float) -> bool:
    """Whether a client that came now would be served: the table that counts has an active instance for each layer, and
    each that sends to another has carried it out. Who never does so is waited for as long as PATIENCE.
    """
    table, layers = swarm.routing, service.chain.layers
    senders = {vm_id for layer in layers[:-1] for vm_id, _ in table.active(layer)}
    told = all(i.routes_epoch >= table.epoch for i in swarm.instances if i.vm_id in senders)
    return all(map(table.active, layers)) and (told or now >= table.made_at + PATIENCE)


def _survivors(instances: Iterable[Instance], now: float) -> tuple[Instance, ...]:
    """Instances that are not at their end."""
    return tuple(i for i in instances if i.live and (i.becomes or not _drained(i, now)))


def _drained(instance: Instance, now: float) -> bool:
    """It has finished, or had its time."""
    over = instance.drained or (instance.deadline is not None and instance.deadline <= now)
    return instance.state is VmState.DRAINING and over


def _edges(actual: Swarm, services: Iterable[Service], layers: Sequence[Layer]) -> tuple[Edge, ...]:
    """An edge for each adjacent pair of layers."""
    caps = {layer.id: layer.max for layer in layers}
    pairs = sorted({pair for service in services for pair in service.chain.pairs()})
    edges = tuple(Edge(front, back, caps[front], caps[back]) for front, back in pairs)
    names = {edge.name for edge in edges}
    if changed := [edge for edge in actual.edges if edge.name in names and edge not in edges]:
        raise PlanError(f"edge {changed[0].name} has {changed[0].front_cap} × {changed[0].back_cap} places: "
                        "max of a layer cannot change in a running swarm",
                        hint="`swarmline down`, then `swarmline up`")
    return edges


def _pool(actual: Swarm, wanted: Swarm, layer: Layer, intent: Intent, now: float) -> Swarm:
    """``wanted`` with this layer's instances as they should be: so many, of the right revision, on the right
    edges. Those that are not are replaced: neither their settings nor their edges change under them.
    """
    def fits(instance: Instance) -> bool:
        edges = {edge.name for edge in wanted.edges if edge.side(instance.layers) is not None}
        return instance.revision == layer.revision and edges == {slot.edge for slot in instance.slots}

    deadline = now + intent.drain_timeout
    pool = [i for i in wanted.pool(layer.id) if i.state is not VmState.DRAINING]
    others = [i for i in wanted.instances if i.becomes is layer.id]     # that drain, to come
    fit = [i for i in pool if i.vm_id not in intent.drain and fits(i)]
    fit.sort(key=lambda i: (-i.state, i.vm_id))     # the furthest on, then the oldest, may stay
    keep = fit[:layer.instances]
    rest = [i for i in pool if i not in keep]
    at_once = [i for i in rest if i.vm_id in intent.drain or i.state is not VmState.ACTIVE or intent.force]
    later = [i for i in rest if i not in at_once]
    unneeded = others[max(layer.instances - len(keep), 0):]
    wanted = _without(wanted, {i.vm_id for i in unneeded if _drained(i, now)})
    for instance in at_once:
        wanted = _let_go(wanted, instance, deadline)
    for instance in (i for i in keep if i.state is not VmState.ACTIVE):
        wanted = wanted.with_instance(replace(instance, state=VmState.ACTIVE))

    missing = 0 if layer.id in intent.held else layer.instances - len(keep) - len(others)
    room = layer.max - len(wanted.pool(layer.id)) - len(others)
    wanted = _start(actual, wanted, layer, min(missing, room))
    # Replacements come first. Where there is no room for them, one at a time makes room, down to `min`.
    floor = layer.instances if room >= missing else max(layer.min, layer.instances - 1)
    spare = sum(i.state is VmState.ACTIVE for i in (*keep, *later)) - floor
    for instance in later[:max(spare, 0)]:
        wanted = _let_go(wanted, instance, deadline)
    if len(later) >= layer.max and spare <= 0:
        raise PlanError(f"layer {layer.id.label} has no room for replacements: min and max are {layer.max}",
                        hint="lower min, or use --force, which interrupts the layer")
    return wanted


def _start(actual: Swarm, wanted: Swarm, layer: Layer, count: int) -> Swarm:
    """``wanted`` with so many new instances, warm ones first, or as many as there are free places for."""
    for _ in range(count):
        warm = next((i for i in wanted.instances if i.warm and i.driver is layer.driver), None)
        try:
            wanted = _give(actual, wanted, warm or _new(actual, wanted, layer.driver), layer, VmState.ACTIVE)
        except PlanError:
            break       # the places of those that left are not free yet; the next call tries again
    return wanted


def _new(actual: Swarm, wanted: Swarm, driver: Driver) -> Instance:
    """One that does not run yet, without a layer."""
    vm_id = allocate_vm_id({i.vm_id for i in (*actual.instances, *wanted.instances)}, wanted.last_vm_id)
    return Instance(vm_id, (), driver, VmState.READY, incarnation=wanted.last_incarnation + 1)


def _with(wanted: Swarm, instance: Instance) -> Swarm:
    """``wanted`` with this instance, in the place of the one with its VMID or beside the others."""
    if wanted.instance(instance.vm_id):
        wanted = wanted.with_instance(instance)
    else:
        wanted = replace(wanted, instances=(*wanted.instances, instance), last_vm_id=instance.vm_id)
    return replace(wanted, last_incarnation=max(instance.incarnation, wanted.last_incarnation))


def _give(actual: Swarm, wanted: Swarm, instance: Instance, layer: Layer, state: VmState) -> Swarm:
    """``wanted`` in which this instance has that layer, and places of it. Raises PlanError if there are none."""
    slots = assign_slots((layer.id,), wanted.edges, taken_slots(actual) | taken_slots(wanted))
    return _with(wanted, replace(
        instance, layers=(layer.id,), state=state, slots=slots, revision=layer.revision,
        incarnation=wanted.last_incarnation + 1, deadline=None, becomes=None, status=None))


def _changes(actual: Swarm, wanted: Swarm, intent: Intent, now: float) -> Swarm:
    """``wanted`` with the first or next step of each instance that is to have another layer: it drains, then
    changes. One that has nothing to drain changes at once.
    """
    layers = {layer.id: layer for layer in intent.layers}
    for instance in wanted.instances:
        layer = layers.get(intent.change.get(instance.vm_id) or instance.becomes or LayerId.NONE)
        if layer is None or layer.id in instance.layers:
            wanted = wanted.with_instance(replace(instance, becomes=None)) if instance.becomes else wanted
        elif instance.state is VmState.ACTIVE:
            wanted = wanted.with_instance(replace(instance.to(VmState.DRAINING), deadline=now + intent.drain_timeout,
                                                  becomes=layer.id))
        elif instance.state is VmState.READY or _drained(instance, now):
            with suppress(PlanError):      # no place is free yet
                wanted = _give(actual, wanted, instance, layer, VmState.BOOTING)     # the layer decides who is to stay
    return replace(wanted, instances=tuple(i for i in wanted.instances if i.becomes or not _drained(i, now)))


def _warm(actual: Swarm, wanted: Swarm, intent: Intent, now: float) -> Swarm:
    """``wanted`` with as many instances without a layer as are to be kept ready. They are always new ones: one that
    has served a layer might carry a guest along that broke into it. None is started while a layer waits for an
    instance, or has just got one, which needs the CPUs more.
    """
    active = {i.incarnation for i in actual.instances if i.state is VmState.ACTIVE}
    waits = any(i.state is VmState.ACTIVE and i.incarnation not in active for i in wanted.instances)
    waits = waits or now < actual.routing.made_at + REFRESH
    for driver, count in intent.warm.items():
        pool = [i for i in wanted.instances if not i.layers and i.driver is driver]
        if not waits and LayerId.NONE not in intent.held:
            for _ in range(count - len(pool)):
                wanted = _with(wanted, _new(actual, wanted, driver))
        wanted = _without(wanted, {i.vm_id for i in pool[count:]})
    return wanted


def _let_go(wanted: Swarm, instance: Instance, deadline: float) -> Swarm:
    """An active instance drains; one that never was active has nothing to finish and goes at once."""
    if instance.state is VmState.DRAINING:
        return wanted
    if instance.state is VmState.ACTIVE:
        return wanted.with_instance(replace(instance.to(VmState.DRAINING), deadline=deadline))
    return _without(wanted, {instance.vm_id})


def _without(wanted: Swarm, vm_ids: Collection[int]) -> Swarm:
    return replace(wanted, instances=tuple(i for i in wanted.instances if i.vm_id not in vm_ids))


def _routing(actual: Swarm, wanted: Swarm, now: float) -> RoutingTable:
    """The table of those that are to stay, as they will be after this plan; the old one if it is as good."""
    statuses = []
    for old in actual.instances:
        new = wanted.instance(old.vm_id)
        if new is None or new.incarnation != old.incarnation:
            continue
        state = VmState.ACTIVE if can_activate(old) else old.state
        status = old.status or VMStatus(old.vm_id, old.layers, state)
        state = VmState.DRAINING if new.state is VmState.DRAINING else state
        if status.state < VmState.ACTIVE:      # so it says that it has no capacity
            status = replace(status, available_capacity=1000 - status.load)
        statuses.append(replace(status, vm_id=old.vm_id, protocol_layers=old.layers, state=state))
    return next_routing(actual.routing, routing_table(statuses, actual.routing.epoch + 1), now)
