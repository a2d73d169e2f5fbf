# SPDX-License-Identifier: Apache-2.0
"""From what runs to what should: ``desired`` decides who should exist, ``diff`` turns that into actions.

::

    wanted = desired(actual, intent, now)
    for action in diff(actual, wanted):
        ...                                  # do it
        actual = advance(actual, action)     # and note it

``diff`` gives what can be done *now*. Whatever has to be waited for (an instance becomes ready, a flow ends,
a peer acknowledges) comes with the next call, after the manager has noted the event in ``actual``. So the
first start, scaling, draining, a crash, a reload and the adoption of a running swarm are one code path, and
diff(x, x) == ().
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from pipeline.errors import PlanError
from pipeline.policy.model import (
    VM_MAX,
    Driver,
    Edge,
    Instance,
    Layer,
    LayerId,
    RetiredSlot,
    RoutingTable,
    Service,
    Slot,
    Swarm,
    VmState,
    VMStatus,
)
from pipeline.policy.routing import former_weights, is_news, routing_table


@dataclass(frozen=True)
class CreateEdge:
    edge: Edge

    def __str__(self) -> str:
        return f"create edge {self.edge.name} ({self.edge.front_cap} × {self.edge.back_cap} places)"


@dataclass(frozen=True)
class RemoveEdge:
    edge: Edge

    def __str__(self) -> str:
        return f"remove edge {self.edge.name}"


@dataclass(frozen=True)
class StartRouter:
    def __str__(self) -> str:
        return "start the router"


@dataclass(frozen=True)
class StopRouter:
    def __str__(self) -> str:
        return "stop the router"


@dataclass(frozen=True)
class StartInstance:
    """Start it and give it its edges. It becomes BOOTING, and READY by itself."""

    instance: Instance

    def __str__(self) -> str:
        at = f" at {', '.join(map(str, self.instance.slots)) or 'no edge'}" if self.instance.layers else ""
        return f"start {self.instance} ({self.instance.driver}){at}"


@dataclass(frozen=True)
class AssignInstance:
    """Give a running instance this layer and these places; it lets go of what it had. It becomes BOOTING, and READY by
    itself.
    """

    instance: Instance
    former: tuple[LayerId, ...] = ()

    def __str__(self) -> str:
        was = "+".join(layer.label for layer in self.former) or "warm"
        return f"assign {self.instance}, was {was}, at {', '.join(map(str, self.instance.slots))}"


@dataclass(frozen=True)
class ActivateInstance:
    """Command a ready instance to run. It gets flows with the SetRoutes that follows."""

    instance: Instance

    def __str__(self) -> str:
        return f"activate {self.instance}"


@dataclass(frozen=True)
class SetRoutes:
    """Render this table into the classifier's maps and the route pages."""

    table: RoutingTable

    def __str__(self) -> str:
        pools = (f"{layer.label}: {', '.join(str(r.vm_id) for r in routes)}"
                 for layer, routes in sorted(self.table.routes.items()))
        return f"set routes, epoch {self.table.epoch} ({'; '.join(pools) or 'none'})"


@dataclass(frozen=True)
class SetServices:
    """Tell the first layer's instances, the router, and then the classifier, which services there are."""

    services: tuple[Service, ...]

    def __str__(self) -> str:
        return f"set services {', '.join(s.name for s in self.services) or 'to none'}"


@dataclass(frozen=True)
class AttachClassifier:
    interface: str

    def __str__(self) -> str:
        return f"attach the classifier to {self.interface}"


@dataclass(frozen=True)
class DetachClassifier:
    interface: str

    def __str__(self) -> str:
        return f"detach the classifier from {self.interface}"


@dataclass(frozen=True)
class DrainInstance:
    """Command it to finish its flows; what is left at the deadline (CLOCK_MONOTONIC seconds) is closed."""

    instance: Instance
    deadline: float | None
    becomes: LayerId | None = None

    def __str__(self) -> str:
        until = "" if self.deadline is None else f" until {self.deadline:.1f} s"
        return f"drain {self.instance}{until}" + (f", then it becomes {self.becomes.label}" if self.becomes else "")


@dataclass(frozen=True)
class StopInstance:
    """End it, whatever it does, and take its places out of the edges."""

    instance: Instance

    def __str__(self) -> str:
        return f"stop {self.instance} ({self.instance.state.name.lower()})"


Action = (CreateEdge | RemoveEdge | StartRouter | StopRouter | StartInstance | AssignInstance | ActivateInstance
          | SetRoutes | SetServices | AttachClassifier | DetachClassifier | DrainInstance | StopInstance)


# ---- places and numbers

def allocate_vm_id(used: Collection[int], last: int) -> int:
    """The lowest free VMID above ``last``, the latest one given out, starting over after VM_MAX - 1: a VMID
    comes back only when all the others have had their turn, so late news of a dead instance meets nobody.
    """
    for step in range(1, VM_MAX):
        vm_id = (max(last, 0) + step - 1) % (VM_MAX - 1) + 1
        if vm_id not in used:
            return vm_id
    raise PlanError(f"all {VM_MAX - 1} VMIDs are in use", hint="drain instances first")


def assign_slots(layers: tuple[LayerId, ...], edges: Iterable[Edge],
                 taken: Collection[Slot]) -> tuple[Slot, ...]:
    """The lowest free place on every edge of these layers. ``taken`` are the places of instances and the
    retired ones. Raises PlanError if an edge has none left.
    """
    slots = []
    for edge in edges:
        side = edge.side(layers)
        if side is None:
            continue
        places = (Slot(edge.name, side, n) for n in range(edge.cap(side)))
        free = (slot for slot in places if slot not in taken)
        found = next(free, None)
        if found is None:
            raise PlanError(f"edge {edge.name} has no free place at its {side.label}",
                            hint="wait until draining instances are gone, or raise max of the layer")
        slots.append(found)
    return tuple(slots)


def taken_slots(swarm: Swarm) -> set[Slot]:
    """Places that nobody may be given: held by an instance, or left by one that a peer still has rings to."""
    return {slot for i in swarm.instances for slot in i.slots} | {retired.slot for retired in swarm.retired}


def retire_slots(swarm: Swarm, instance: Instance) -> tuple[RetiredSlot, ...]:
    """The swarm's retired slots once this instance is gone: it waits for nobody any more, and its own places
    wait for its peers.
    """
    others = [i for i in swarm.instances if i.vm_id != instance.vm_id]
    left = [RetiredSlot(slot, swarm.routing.epoch, frozenset(
        i.vm_id for i in others for s in i.slots if s.edge == slot.edge and s.side is slot.side.other))
        for slot in instance.slots]
    kept = [replace(r, waiting=r.waiting - {instance.vm_id}) for r in swarm.retired]
    return tuple(r for r in (*kept, *left) if r.waiting)


def acknowledge(swarm: Swarm, edge: str, vm_id: int, epoch: int) -> Swarm:
    """The same swarm after this peer has reported that epoch as the latest that it saw on that edge
    (routes_seen): it waits for none of the places that were retired by then.
    """
    retired = (replace(r, waiting=r.waiting - {vm_id}) if r.slot.edge == edge and r.epoch <= epoch else r
               for r in swarm.retired)
    return replace(swarm, retired=tuple(r for r in retired if r.waiting))


def layer_order(edges: Iterable[Edge]) -> tuple[LayerId, ...]:
    """The layers that these edges join, those nearest to the NIC first."""
    pairs = [(edge.front, edge.back) for edge in edges]
    depth = {layer: 0 for pair in pairs for layer in pair}
    for _ in depth:     # a path has fewer steps than there are layers
        for front, back in pairs:
            depth[back] = max(depth[back], depth[front] + 1)
    return tuple(sorted(depth, key=lambda layer: (depth[layer], layer)))


def scale(layers: Sequence[Layer], layer_id: LayerId, instances: int) -> tuple[Layer, ...]:
    """The same layers, one of them with another number of instances."""
    layer = next((layer for layer in layers if layer.id is layer_id), None)
    if layer is None:
        raise PlanError(f"no service uses the layer {layer_id.label}",
                        hint=f"layers are: {', '.join(layer.id.label for layer in layers)}")
    if not layer.min <= instances <= layer.max:
        raise PlanError(f"layer {layer_id.label} cannot have {instances} instances",
                        hint=f"the config file allows {layer.min} to {layer.max}")
    return tuple(replace(other, instances=instances) if other is layer else other for other in layers)


# ---- what should be

@dataclass(frozen=True)
class Intent:
    """What the operator wants: the config file, and what was scaled and drained since."""

    services: tuple[Service, ...]
    layers: tuple[Layer, ...]             # those that the chains use
    interface: str
    drain_timeout: float = 30.0           # seconds
    drain: frozenset[int] = frozenset()   # VMIDs of instances that are to go, or have gone
    change: Mapping[int, LayerId] = field(default_factory=dict)   # VMIDs of instances that are to have another layer
    warm: Mapping[Driver, int] = field(default_factory=dict)      # instances without a layer to keep ready
    held: frozenset[LayerId] = frozenset()   # layers that get no new instance now: theirs keep dying
    force: bool = False                   # a layer may be left with fewer than `min` active instances


def desired(actual: Swarm, intent: Intent, now: float) -> Swarm:
    """The swarm to aim at now (CLOCK_MONOTONIC seconds). Raises PlanError for what cannot be reached."""
    services = keep_indices(actual.services, intent.services)
    wanted = replace(actual, layers=intent.layers, edges=_edges(actual, services, intent.layers), router=True,
                     instances=_survivors(actual.instances, now))
    deadline = now + intent.drain_timeout
    wanted = _changes(actual, wanted, intent, now)
    for layer in intent.layers:
        wanted = _pool(actual, wanted, layer, intent, deadline)
    for instance in wanted.instances:
        if instance.layers and not any(layer.id in instance.layers for layer in intent.layers):
            wanted = _let_go(wanted, instance, deadline)
    wanted = _warm(actual, wanted, intent)
    routing = _routing(actual, wanted)
    known = {service.name for service in actual.services}
    served = tuple(s for s in services if s.name in known or all(map(routing.active, s.chain.layers)))
    interface = intent.interface if served else actual.classifier
    used = {slot.edge for i in actual.instances for slot in i.slots}
    left = tuple(e for e in actual.edges if e.name in used and e not in wanted.edges)
    return replace(wanted, edges=wanted.edges + left, routing=routing, services=served, classifier=interface)


def _survivors(instances: Iterable[Instance], now: float) -> tuple[Instance, ...]:
    """Instances that are not at their end."""
    return tuple(i for i in instances if i.live and (i.becomes or not _drained(i, now)))


def _drained(instance: Instance, now: float) -> bool:
    """It has finished, or had its time."""
    over = instance.drained or (instance.deadline is not None and instance.deadline <= now)
    return instance.state is VmState.DRAINING and over


def keep_indices(old: Iterable[Service], new: Sequence[Service]) -> tuple[Service, ...]:
    """A service that exists keeps its index; the others get those that are free."""
    held = {s.name: s.index for s in old}
    kept = {held[s.name] for s in new if s.name in held}
    free = iter(n for n in range(len(new) + len(kept)) if n not in kept)
    return tuple(replace(s, index=held[s.name] if s.name in held else next(free)) for s in new)


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


def _pool(actual: Swarm, wanted: Swarm, layer: Layer, intent: Intent, deadline: float) -> Swarm:
    """``wanted`` with this layer's instances as they should be: so many, of the right revision, on the right
    edges. Those that are not are replaced: neither their settings nor their edges change under them.
    """
    def fits(instance: Instance) -> bool:
        edges = {edge.name for edge in wanted.edges if edge.side(instance.layers) is not None}
        return instance.revision == layer.revision and edges == {slot.edge for slot in instance.slots}

    pool = [i for i in wanted.pool(layer.id) if i.state is not VmState.DRAINING]
    coming = sum(i.becomes is layer.id for i in wanted.instances)
    fit = [i for i in pool if i.vm_id not in intent.drain and fits(i)]
    fit.sort(key=lambda i: (-i.state, i.vm_id))     # the furthest on, then the oldest, may stay
    keep = fit[:layer.instances]
    rest = [i for i in pool if i not in keep]
    now = [i for i in rest if i.vm_id in intent.drain or i.state is not VmState.ACTIVE or intent.force]
    later = [i for i in rest if i not in now]
    for instance in now:
        wanted = _let_go(wanted, instance, deadline)
    for instance in keep:
        wanted = wanted.with_instance(replace(instance, state=VmState.ACTIVE))

    missing = layer.instances - len(keep) - coming
    room = layer.max - len(wanted.pool(layer.id)) - coming
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
            wanted = _give(actual, wanted, warm or _new(actual, wanted, layer.driver), layer)
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


def _give(actual: Swarm, wanted: Swarm, instance: Instance, layer: Layer) -> Swarm:
    """``wanted`` in which this instance has that layer, and places of it. Raises PlanError if there are none."""
    slots = assign_slots((layer.id,), wanted.edges, taken_slots(actual) | taken_slots(wanted))
    return _with(wanted, replace(
        instance, layers=(layer.id,), state=VmState.ACTIVE, slots=slots, revision=layer.revision,
        incarnation=wanted.last_incarnation + 1, deadline=None, becomes=None, status=None))


def _changes(actual: Swarm, wanted: Swarm, intent: Intent, now: float) -> Swarm:
    """``wanted`` with the first or next step of each instance that is to have another layer: it drains, then
    changes. One that has nothing to drain changes at once.
    """
    layers = {layer.id: layer for layer in intent.layers}
    for instance in wanted.instances:
        layer = layers.get(intent.change.get(instance.vm_id) or instance.becomes or LayerId.NONE)
        if layer is None or layer.id in instance.layers:
            wanted = wanted.with_instance(replace(instance, becomes=None))
        elif instance.state is VmState.ACTIVE:
            wanted = wanted.with_instance(replace(instance.to(VmState.DRAINING), deadline=now + intent.drain_timeout,
                                                  becomes=layer.id))
        elif instance.state is VmState.READY or _drained(instance, now):
            with suppress(PlanError):      # no place is free yet
                wanted = _give(actual, wanted, instance, layer)
    return replace(wanted, instances=tuple(i for i in wanted.instances if i.becomes or not _drained(i, now)))


def _warm(actual: Swarm, wanted: Swarm, intent: Intent) -> Swarm:
    """``wanted`` with as many instances without a layer as are to be kept ready. They are always new ones: one that
    has served a layer might carry a guest along that broke into it.
    """
    for driver, count in intent.warm.items():
        pool = [i for i in wanted.instances if not i.layers and i.driver is driver]
        if LayerId.NONE not in intent.held:
            for _ in range(count - len(pool)):
                wanted = _with(wanted, _new(actual, wanted, driver))
        gone = {i.vm_id for i in pool[count:]}
        wanted = replace(wanted, instances=tuple(i for i in wanted.instances if i.vm_id not in gone))
    return wanted


def _let_go(wanted: Swarm, instance: Instance, deadline: float) -> Swarm:
    """An active instance drains; one that never was active has nothing to finish and goes at once."""
    if instance.state is VmState.DRAINING:
        return wanted
    if instance.state is VmState.ACTIVE:
        return wanted.with_instance(replace(instance.to(VmState.DRAINING), deadline=deadline))
    return replace(wanted, instances=tuple(i for i in wanted.instances if i.vm_id != instance.vm_id))


def _routing(actual: Swarm, wanted: Swarm) -> RoutingTable:
    """The table of those that are to stay, as they will be after this plan; the old one if it is as good."""
    statuses = []
    for old in actual.instances:
        new = wanted.instance(old.vm_id)
        if new is None or new.incarnation != old.incarnation:
            continue
        state = VmState.ACTIVE if _can_activate(old) else old.state
        status = old.status or VMStatus(old.vm_id, old.layers, state)
        state = VmState.DRAINING if new.state is VmState.DRAINING else state
        statuses.append(replace(status, vm_id=old.vm_id, protocol_layers=old.layers, state=state))
    table = routing_table(statuses, actual.routing.epoch + 1)
    return former_weights(actual.routing, table) if is_news(actual.routing, table) else actual.routing


# ---- what to do

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


def _can_activate(instance: Instance) -> bool:
    return instance.state is VmState.READY and instance.has_heartbeat and instance.linked


def diff(actual: Swarm, wanted: Swarm, *, force: bool = False) -> tuple[Action, ...]:
    """The actions, in order, that can be done now to turn ``actual`` into ``wanted``. Pure; diff(x, x) == ().

    In: edges, router, instances from the back of the chain to its front, then routes, services, classifier.
    Out: the classifier first, routes before drains, instances from the front to the back, then edges, then
    the router.

    Raises PlanError if a layer that stays would be left with fewer than ``min`` active instances (or none),
    and for a change of state that does not exist; ``force`` allows the first, and lets active instances be
    stopped undrained.
    """
    if not force:
        _check_minimum(actual, wanted)
    before = {i.vm_id: i for i in actual.instances}
    after = {i.vm_id: i for i in wanted.instances}
    order = layer_order({*actual.edges, *wanted.edges})

    def depth(instance: Instance) -> int:
        return min((order.index(layer) for layer in instance.layers if layer in order), default=len(order))

    start = sorted((i for i in after.values() if i.vm_id not in before), key=depth, reverse=True)
    stop = sorted((i for i in before.values() if i.vm_id not in after), key=depth)
    both = [(old, after[old.vm_id]) for old in sorted(before.values(), key=depth) if old.vm_id in after]
    assign = [(old, new) for old, new in both if new.incarnation != old.incarnation]
    steps = [(old, new) for old, new in both if new.incarnation == old.incarnation]
    for old, _ in assign:
        old.to(VmState.BOOTING)
    for old, new in steps:
        _check_step(old, new)
    if undrained := [i for i in stop if i.state is VmState.ACTIVE and not force]:
        raise PlanError(f"{undrained[0]} is active: it must drain before it is stopped", hint="use --force")
    in_use = {slot.edge for i in actual.instances if i.vm_id in after for slot in i.slots}

    actions: list[Action] = []
    if actual.classifier and actual.classifier != wanted.classifier:
        actions.append(DetachClassifier(actual.classifier))
    actions += [CreateEdge(e) for e in wanted.edges if e not in actual.edges]
    if wanted.router and not actual.router:
        actions.append(StartRouter())
    actions += [AssignInstance(new) for old, new in assign if not old.layers]
    actions += [StartInstance(replace(i, state=VmState.DEFINED)) for i in start]
    actions += [ActivateInstance(old) for old, new in reversed(steps)
                if new.state is VmState.ACTIVE and _can_activate(old)]
    if is_news(actual.routing, wanted.routing):
        epoch = max(wanted.routing.epoch, actual.routing.epoch + 1)
        actions.append(SetRoutes(replace(wanted.routing, epoch=epoch)))
    if wanted.services != actual.services:
        actions.append(SetServices(wanted.services))
    if wanted.classifier and wanted.classifier != actual.classifier:
        actions.append(AttachClassifier(wanted.classifier))
    actions += [DrainInstance(old, new.deadline, new.becomes) for old, new in steps
                if new.state is VmState.DRAINING and old.state is VmState.ACTIVE]
    actions += [StopInstance(i) for i in stop]
    actions += [AssignInstance(new, old.layers) for old, new in assign if old.layers]
    actions += [RemoveEdge(e) for e in actual.edges if e not in wanted.edges and e.name not in in_use]
    if actual.router and not wanted.router:
        actions.append(StopRouter())
    return tuple(actions)


def _check_step(old: Instance, new: Instance) -> None:
    """A wanted state must be ahead: the same, ACTIVE for one on its way there, or one legal step."""
    on_its_way = new.state is VmState.ACTIVE and old.state < VmState.ACTIVE
    if new.state is not old.state and not on_its_way:
        old.to(new.state)


def _check_minimum(actual: Swarm, wanted: Swarm) -> None:
    for layer in wanted.layers:
        active = actual.pool(layer.id, VmState.ACTIVE)
        stay = {i.vm_id for i in wanted.pool(layer.id, VmState.ACTIVE)}
        left = [i for i in active if i.vm_id in stay]
        ready = [i for i in actual.pool(layer.id, VmState.READY) if i.vm_id in stay and _can_activate(i)]
        least = max(layer.min, 1)
        if len(left) < len(active) and len(left) + len(ready) < least:
            label = layer.id.label
            count = len(left) + len(ready)
            raise PlanError(
                f"layer {label} would have {count} active instances, allowed: at least {least}",
                hint=f"`swarmline scale {label}={least + 1}` first, or --force")


def advance(swarm: Swarm, action: Action) -> Swarm:
    """The swarm after this action was done. News that came in the meantime stand: what has failed stays
    so.
    """
    match action:
        case CreateEdge(edge):
            return replace(swarm, edges=(*swarm.edges, edge))
        case RemoveEdge(edge):
            return replace(swarm, edges=tuple(e for e in swarm.edges if e != edge),
                           retired=tuple(r for r in swarm.retired if r.slot.edge != edge.name))
        case StartRouter() | StopRouter():
            return replace(swarm, router=isinstance(action, StartRouter))
        case StartInstance(instance):
            latest = max((swarm.last_incarnation, swarm.last_vm_id), (instance.incarnation, instance.vm_id))
            return replace(swarm, instances=(*swarm.instances, instance.to(VmState.BOOTING)),
                           last_incarnation=latest[0], last_vm_id=latest[1])
        case AssignInstance(instance, _):
            old = swarm.instance(instance.vm_id)
            if old is None or not old.live:
                return swarm
            return replace(swarm.with_instance(replace(instance, state=old.to(VmState.BOOTING).state)),
                           retired=retire_slots(swarm, old),
                           last_incarnation=max(swarm.last_incarnation, instance.incarnation))
        case ActivateInstance(instance):
            return _step(swarm, instance.vm_id, VmState.ACTIVE)
        case DrainInstance(instance, deadline, becomes):
            return _step(swarm, instance.vm_id, VmState.DRAINING, deadline, becomes)
        case StopInstance(instance):
            left = tuple(i for i in swarm.instances if i.vm_id != instance.vm_id)
            return replace(swarm, instances=left, retired=retire_slots(swarm, instance))
        case SetRoutes(table):
            return replace(swarm, routing=table)
        case SetServices(services):
            return replace(swarm, services=services)
        case AttachClassifier(interface):
            return replace(swarm, classifier=interface)
        case DetachClassifier():
            return replace(swarm, classifier="")


def _step(swarm: Swarm, vm_id: int, state: VmState, deadline: float | None = None,
          becomes: LayerId | None = None) -> Swarm:
    instance = swarm.instance(vm_id)
    if instance is None or not instance.live:
        return swarm
    return swarm.with_instance(replace(instance.to(state), deadline=deadline, becomes=becomes))
