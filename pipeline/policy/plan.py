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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from pipeline.errors import PlanError
from pipeline.policy.actions import (
    Action,
    ActivateInstance,
    AssignInstance,
    AttachClassifier,
    CreateEdge,
    DetachClassifier,
    DrainInstance,
    RemoveEdge,
    SetRoutes,
    SetServices,
    StartInstance,
    StartRouter,
    StopInstance,
    StopRouter,
)
from pipeline.policy.model import Edge, Instance, LayerId, Swarm, VmState
from pipeline.policy.probe import can_activate
from pipeline.policy.routing import is_news


def diff(actual: Swarm, wanted: Swarm, *, force: bool = False) -> tuple[Action, ...]:
    """The actions, in order, that can be done now to turn ``actual`` into ``wanted``. Pure; diff(x, x) == ().

    In: edges, router, routes, services, classifier, then instances from the back of the chain to its front.
    Out: the classifier first, routes before drains, instances from the front to the back, then edges, then
    the router.

    Raises PlanError if a layer that stays would be left with fewer than ``min`` active instances (or none),
    and for a change of state that does not exist; ``force`` allows the first, and lets active instances be
    stopped undrained.
    """
    if not force:
        _check_minimum(actual, wanted)
    moves = _moves(actual, wanted)
    _check_moves(moves, force=force)
    return (*_first(actual, wanted), *_ins(actual, wanted, moves), *_outs(actual, wanted, moves))


@dataclass(frozen=True)
class _Moves:
    """Instances that come, go, take another layer, or take a step in their life; pairs are (now, then)."""

    start: list[Instance]                         # from the back of the chain to its front
    stop: list[Instance]                          # the other way round, like the pairs
    assign: list[tuple[Instance, Instance]]
    steps: list[tuple[Instance, Instance]]


def _moves(actual: Swarm, wanted: Swarm) -> _Moves:
    before = {i.vm_id: i for i in actual.instances}
    after = {i.vm_id: i for i in wanted.instances}
    order = layer_order({*actual.edges, *wanted.edges})

    def depth(instance: Instance) -> int:
        return min((order.index(layer) for layer in instance.layers if layer in order), default=len(order))

    both = [(old, after[old.vm_id]) for old in sorted(before.values(), key=depth) if old.vm_id in after]
    return _Moves(
        start=sorted((i for i in after.values() if i.vm_id not in before), key=depth, reverse=True),
        stop=sorted((i for i in before.values() if i.vm_id not in after), key=depth),
        assign=[(old, new) for old, new in both if new.incarnation != old.incarnation],
        steps=[(old, new) for old, new in both if new.incarnation == old.incarnation])


def _check_moves(moves: _Moves, *, force: bool) -> None:
    for old, _ in moves.assign:
        old.to(VmState.BOOTING)
    for old, new in moves.steps:
        _check_step(old, new)
    if undrained := [i for i in moves.stop if i.state is VmState.ACTIVE and not force]:
        raise PlanError(f"{undrained[0]} is active: it must drain before it is stopped", hint="use --force")


def _first(actual: Swarm, wanted: Swarm) -> Iterator[Action]:
    if actual.classifier and actual.classifier != wanted.classifier:
        yield DetachClassifier(actual.classifier)


def _ins(actual: Swarm, wanted: Swarm, moves: _Moves) -> Iterator[Action]:
    yield from (CreateEdge(e) for e in wanted.edges if e not in actual.edges)
    if wanted.router and not actual.router:
        yield StartRouter()
    yield from (ActivateInstance(old) for old, new in reversed(moves.steps)
                if new.state is VmState.ACTIVE and can_activate(old))
    if is_news(actual.routing, wanted.routing):
        epoch = max(wanted.routing.epoch, actual.routing.epoch + 1)
        yield SetRoutes(replace(wanted.routing, epoch=epoch))
    if wanted.services != actual.services:
        yield SetServices(wanted.services)
    if wanted.classifier and wanted.classifier != actual.classifier:
        yield AttachClassifier(wanted.classifier)
    # last, as it takes its time: those around a dead one hear of it before another has started
    yield from (AssignInstance(new) for old, new in moves.assign if not old.layers)
    yield from (StartInstance(replace(i, state=VmState.DEFINED)) for i in moves.start)


def _outs(actual: Swarm, wanted: Swarm, moves: _Moves) -> Iterator[Action]:
    stay = {i.vm_id for i in wanted.instances}
    in_use = {slot.edge for i in actual.instances if i.vm_id in stay for slot in i.slots}
    yield from (DrainInstance(old, new.deadline, new.becomes) for old, new in moves.steps
                if new.state is VmState.DRAINING and old.state is VmState.ACTIVE)
    yield from (StopInstance(i) for i in moves.stop)
    yield from (AssignInstance(new, old.layers) for old, new in moves.assign if old.layers)
    yield from (RemoveEdge(e) for e in actual.edges if e not in wanted.edges and e.name not in in_use)
    if actual.router and not wanted.router:
        yield StopRouter()


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
        ready = [i for i in actual.pool(layer.id, VmState.READY) if i.vm_id in stay and can_activate(i)]
        least = max(layer.min, 1)
        if len(left) < len(active) and len(left) + len(ready) < least:
            label = layer.id.label
            count = len(left) + len(ready)
            raise PlanError(
                f"layer {label} would have {count} active instances, allowed: at least {least}",
                hint=f"`swarmline scale {label}={least + 1}` first, or --force")


def layer_order(edges: Iterable[Edge]) -> tuple[LayerId, ...]:
    """The layers that these edges join, those nearest to the NIC first."""
    pairs = [(edge.front, edge.back) for edge in edges]
    depth = {layer: 0 for pair in pairs for layer in pair}
    for _ in depth:     # a path has fewer steps than there are layers
        for front, back in pairs:
            depth[back] = max(depth[back], depth[front] + 1)
    return tuple(sorted(depth, key=lambda layer: (depth[layer], layer)))
