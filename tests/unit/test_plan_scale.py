# SPDX-License-Identifier: Apache-2.0
"""Scaling and draining."""

from dataclasses import replace

import pytest
from unit.plan_world import APP, INTENT, LAYERS, TCP, TLS, World, kinds

from pipeline.errors import PlanError
from pipeline.policy.actions import (
    DrainInstance,
    SetRoutes,
    StartInstance,
    StopInstance,
)
from pipeline.policy.intent import scale
from pipeline.policy.model import (
    VM_MAX,
    LayerId,
    Side,
    Slot,
    VmState,
)
from pipeline.policy.plan import diff


def test_scale_out(world: World) -> None:
    world.scale(TLS, 4)
    actions = world.act()
    assert kinds(actions) == [StartInstance]
    assert {slot for i in world.pool(TLS) for slot in i.slots if slot.edge == "tcp-tls"} == {
        Slot("tcp-tls", Side.BACK, n) for n in range(4)
    }
    world.settle()
    assert len(world.flowing(TLS)) == 4


def test_scale_in_waits_for_flows(world: World) -> None:
    world.scale(TLS, 1)
    actions = world.act()
    assert kinds(actions) == [SetRoutes, DrainInstance]
    (draining,) = world.pool(TLS, VmState.DRAINING)
    assert draining.deadline == world.now + 30
    assert draining.vm_id in {r.vm_id for r in world.actual.routing.of(TLS)}, "its peers still know it"
    world.become(draining, VmState.DRAINING, flows=3)
    assert world.act() == ()
    world.become(world.pool(TLS, VmState.DRAINING)[0], VmState.DRAINING, flows=0)
    assert kinds(world.act()) == [SetRoutes, StopInstance]


def test_a_deadline_ends_a_drain(world: World) -> None:
    world.scale(TLS, 1)
    world.act()
    world.become(world.pool(TLS, VmState.DRAINING)[0], VmState.DRAINING, flows=3)
    world.now += 29.9
    assert world.act() == ()
    world.now += 0.2
    assert StopInstance in kinds(world.act())
    assert len(world.pool(TLS)) == 1


def test_silence_does_not_end_a_drain(world: World) -> None:
    """A manager that restarts in the middle of a drain has not read any status yet."""
    world.scale(TLS, 1)
    world.act()
    draining = world.pool(TLS, VmState.DRAINING)[0]
    world.actual = world.actual.with_instance(replace(draining, status=None))
    assert world.act() == ()


def test_the_active_ones_stay_whatever_their_vm_ids() -> None:
    world = World()
    world.actual = replace(world.actual, last_vm_id=VM_MAX - 4)
    world.settle()
    active = world.flowing(TLS)
    world.scale(TLS, 3)
    world.act()
    assert min(i.vm_id for i in world.pool(TLS)) == world.pool(TLS, VmState.BOOTING)[0].vm_id
    world.scale(TLS, 2)
    world.settle()
    assert world.flowing(TLS) == active


def test_an_edge_in_use_is_not_removed(world: World) -> None:
    assert diff(world.actual, replace(world.actual, edges=())) == ()


def test_scale_in_prefers_those_that_never_were_active(world: World) -> None:
    world.scale(TLS, 3)
    world.act()
    world.scale(TLS, 2)
    actions = world.act()
    assert kinds(actions) == [StopInstance]
    assert len(world.flowing(TLS)) == 2


@pytest.mark.parametrize(
    ("layer", "count", "word"),
    [(TLS, 0, "0 instances"), (TLS, 5, "5 instances"), (LayerId.DNS, 1, "no service uses")],
)
def test_scale_has_bounds(layer: LayerId, count: int, word: str) -> None:
    with pytest.raises(PlanError, match=word):
        scale(LAYERS, layer, count)


def test_drain_is_replaced(world: World) -> None:
    gone = world.pool(TLS)[0].vm_id
    world.intent = replace(world.intent, drain=frozenset({gone}))
    actions = world.act()
    assert kinds(actions) == [SetRoutes, StartInstance, DrainInstance]
    world.settle()
    assert gone not in {i.vm_id for i in world.actual.instances}
    assert len(world.flowing(TLS)) == 2


def test_the_last_active_one_is_not_drained(world: World) -> None:
    last = world.pool(TCP)[0].vm_id
    world.intent = replace(world.intent, drain=frozenset({last}))
    with pytest.raises(PlanError, match="tcp would have 0 active instances, allowed: at least 1") as caught:
        world.plan()
    assert "scale tcp=2" in caught.value.hint
    world.intent = replace(world.intent, force=True)
    assert kinds(world.act()) == [SetRoutes, StartInstance, DrainInstance]


def test_min_holds(world: World) -> None:
    layers = tuple(replace(layer, min=2) if layer.id is TLS else layer for layer in LAYERS)
    world.intent = replace(INTENT, layers=layers, drain=frozenset({world.pool(TLS)[0].vm_id}))
    with pytest.raises(PlanError, match="tls would have 1 active instances, allowed: at least 2"):
        world.plan()


def test_a_layer_whose_instances_keep_dying_gets_none_for_a_while(world: World) -> None:
    dead = world.pool(TLS)[0]
    world.actual = world.actual.with_instance(dead.to(VmState.FAILED))
    world.intent = replace(world.intent, held=frozenset({TLS}))
    assert kinds(world.act()) == [SetRoutes, StopInstance]
    world.scale(TLS, 3)
    world.scale(APP, 3)
    (start,) = (a for a in world.act() if isinstance(a, StartInstance))
    assert start.instance.layers == (APP,), "the others do not wait with it"
    world.intent = replace(world.intent, held=frozenset())
    world.settle()
    assert len(world.flowing(TLS)) == 3
