# SPDX-License-Identifier: Apache-2.0
"""Warm instances, and those that get another layer."""

from dataclasses import replace

import pytest
from unit.plan_world import APP, HTTP, INTENT, LAYERS, TCP, TLS, World, kinds

from pipeline.errors import PlanError
from pipeline.policy.actions import (
    ActivateInstance,
    AssignInstance,
    DrainInstance,
    SetRoutes,
    StartInstance,
    StopInstance,
)
from pipeline.policy.model import (
    Driver,
    Instance,
    LayerId,
    VmState,
)
from pipeline.policy.routing import REFRESH

WARM = replace(INTENT, warm={Driver.PROCESS: 2})


def warm_of(world: World) -> list[Instance]:
    return [i for i in world.actual.instances if not i.layers]


def test_a_layer_that_grows_takes_a_warm_one_and_then_the_pool_is_filled_again() -> None:
    """Not before: what starts takes the CPUs from the one that is waited for, and from its first answers."""
    world = World(WARM)
    world.settle()
    ready = warm_of(world)
    assert len(ready) == 2
    world.scale(TLS, 3)
    (assign,) = world.act()
    assert isinstance(assign, AssignInstance)
    taken = assign.instance
    assert taken.vm_id in {i.vm_id for i in ready} and taken.layers == (TLS,)
    assert not world.act()
    world.happen()
    assert kinds(world.act()) == [ActivateInstance, SetRoutes]
    assert not world.act()
    world.now += REFRESH
    (filled,) = (a.instance for a in world.act() if isinstance(a, StartInstance))
    assert filled.layers == ()
    world.settle()
    assert taken.vm_id in world.flowing(TLS)


def test_those_of_another_driver_are_not_taken() -> None:
    layers = tuple(replace(layer, driver=Driver.QEMU) if layer.id is TLS else layer for layer in LAYERS)
    world = World(replace(WARM, layers=layers))
    world.settle()
    world.scale(TLS, 3)
    assert kinds(world.act()) == [StartInstance]


def test_a_warm_one_that_failed_is_replaced() -> None:
    world = World(WARM)
    world.settle()
    victim = warm_of(world)[0]
    world.actual = world.actual.with_instance(victim.to(VmState.FAILED))
    assert sorted(kinds(world.act()), key=str) == [StartInstance, StopInstance]
    world.settle()


def test_warm_ones_that_keep_dying_are_not_started_at_once() -> None:
    world = World(replace(WARM, held=frozenset({LayerId.NONE})))
    assert all(a.instance.layers for a in world.act() if isinstance(a, StartInstance))


def test_a_smaller_pool() -> None:
    world = World(WARM)
    world.settle()
    world.intent = replace(world.intent, warm={Driver.PROCESS: 1})
    assert kinds(world.act()) == [StopInstance]
    world.settle()


def test_change_of_a_layer_drains_first(world: World) -> None:
    walker = world.pool(TLS)[0]
    world.change(walker.vm_id, HTTP)
    actions = world.act()
    assert kinds(actions) == [SetRoutes, DrainInstance]
    assert world.act() == (), "it is counted where it goes, and nobody replaces it where it was"
    world.become(world.pool(TLS, VmState.DRAINING)[0], VmState.DRAINING, flows=1)
    assert world.act() == ()
    world.become(world.pool(TLS, VmState.DRAINING)[0], VmState.DRAINING)
    assert kinds(world.act()) == [SetRoutes, AssignInstance]
    now = world.actual.instance(walker.vm_id)
    assert now is not None
    assert (now.layers, now.state) == ((HTTP,), VmState.BOOTING)
    assert now.incarnation > walker.incarnation
    assert {s.edge for s in now.slots} == {"tcp-http", "tls-http", "http-app"}
    assert {r.slot for r in world.actual.retired} == set(walker.slots)
    world.settle()
    assert (len(world.flowing(TLS)), len(world.flowing(HTTP))) == (1, 3)


def test_change_that_a_manager_does_not_live_to_end(world: World) -> None:
    """The next one reads it in the instance."""
    walker = world.pool(TLS)[0]
    world.change(walker.vm_id, HTTP)
    world.act()
    world.intent = replace(world.intent, change={})
    world.settle()
    assert walker.vm_id in world.flowing(HTTP)


def test_change_of_the_last_one_needs_force(world: World) -> None:
    last = world.pool(TCP)[0]
    world.change(last.vm_id, APP)
    with pytest.raises(PlanError, match="layer tcp would have 0 active instances"):
        world.plan()
    world.intent = replace(world.intent, force=True)
    world.act()
    world.intent = replace(world.intent, force=False)
    world.settle()
    assert last.vm_id in world.flowing(APP)
    assert len(world.flowing(TCP)) == 1


def test_change_to_a_layer_that_wants_it_no_more(world: World) -> None:
    """The one that serves is not let go for it, though it came later."""
    world.scale(APP, 1)
    world.settle()
    walker, (serving,) = world.pool(TLS)[0], world.pool(APP)
    assert walker.vm_id < serving.vm_id
    world.change(walker.vm_id, APP)
    world.act()
    world.scale(APP, 1)
    world.settle()
    assert world.flowing(APP) == {serving.vm_id}
    assert world.actual.instance(walker.vm_id) is None


def test_change_to_a_layer_that_is_full(world: World) -> None:
    """It does not wait for ever for a place that nobody leaves."""
    world.scale(TLS, 4)
    world.settle()
    walker = world.pool(APP)[0]
    world.intent = replace(world.intent, change={walker.vm_id: TLS})
    world.settle()
    assert walker.vm_id not in world.flowing(TLS) and len(world.flowing(TLS)) == 4
    assert world.actual.instance(walker.vm_id) is None


def test_a_warm_one_that_is_named_is_the_one() -> None:
    world = World(WARM)
    world.settle()
    named = warm_of(world)[1]
    world.scale(APP, 3)
    world.intent = replace(world.intent, change={named.vm_id: APP})
    actions = world.act()
    assert [a.instance.vm_id for a in actions if isinstance(a, AssignInstance)] == [named.vm_id]
    world.settle()
