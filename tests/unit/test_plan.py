# SPDX-License-Identifier: Apache-2.0
"""desired, diff and advance, against a world in which instances boot, drain, fail and acknowledge."""

from dataclasses import replace

import pytest
from unit.plan_world import APP, HTTP, HTTPS, INTENT, LAYERS, PLAIN, TCP, TLS, World, kinds

from pipeline.errors import PlanError
from pipeline.policy.actions import (
    ActivateInstance,
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
    advance,
)
from pipeline.policy.desired import PATIENCE, desired
from pipeline.policy.model import (
    Layer,
    LayerId,
    RetiredSlot,
    Side,
    Slot,
    Swarm,
    VmState,
)
from pipeline.policy.places import acknowledge, taken_slots
from pipeline.policy.plan import diff

# ---- the first start, and the end


def test_start() -> None:
    world = World()
    first = world.act()
    assert kinds(first) == [CreateEdge, StartRouter, StartInstance]
    assert [a.edge.name for a in first if isinstance(a, CreateEdge)] == [
        "tcp-tls",
        "tcp-http",
        "tls-http",
        "http-app",
    ]
    started = [a.instance for a in first if isinstance(a, StartInstance)]
    assert [i.layers[0] for i in started] == [APP, APP, HTTP, HTTP, TLS, TLS, TCP]
    assert sorted(i.vm_id for i in started) == [1, 2, 3, 4, 5, 6, 7]
    assert world.act() == (), "nothing to do until somebody is ready"

    for instance in world.pool(APP):
        world.become(instance, VmState.READY)
    assert kinds(world.act()) == [ActivateInstance, SetRoutes]
    assert world.act() == ()
    world.happen()
    last = world.act()
    assert kinds(last) == [ActivateInstance, SetRoutes]
    assert [a.instance.layers[0] for a in last if isinstance(a, ActivateInstance)] == [
        HTTP,
        HTTP,
        TLS,
        TLS,
        TCP,
    ]
    assert world.act() == (), "nobody knows yet whom to send to"
    world.happen()
    assert kinds(world.act()) == [SetServices, AttachClassifier]
    assert world.act() == ()
    assert [s.name for s in world.actual.services] == ["https", "http"]


@pytest.fixture
def half() -> World:
    """All but tls is active, and has not read the table that says so."""
    world = World()
    world.act()
    for layer in (TCP, HTTP, APP):
        for instance in world.pool(layer):
            world.become(instance, VmState.READY)
    world.act()
    return world


def test_a_service_starts_as_soon_as_its_chain_is_whole(half: World) -> None:
    for instance in (*half.pool(TCP), *half.pool(HTTP)):
        assert half.act() == () and half.actual.services == ()
        half.reads(instance)
    half.act()
    assert [(s.name, s.index) for s in half.actual.services] == [("http", 1)], "app sends to nobody"


def test_who_reads_no_table_holds_no_service_up_for_ever(half: World) -> None:
    half.now += PATIENCE
    half.act()
    assert [s.name for s in half.actual.services] == ["http"]


def test_a_service_that_is_there_stays(world: World) -> None:
    """Also while a new table is on its way to those that serve it."""
    world.become(world.pool(TLS)[0], VmState.FAILED)
    assert SetRoutes in kinds(world.act())
    assert SetServices not in kinds(world.act())
    assert [s.name for s in world.actual.services] == ["https", "http"]


def test_ready_without_a_heartbeat_is_not_activated() -> None:
    world = World()
    world.act()
    for instance in world.actual.instances:
        world.actual = world.actual.with_instance(instance.to(VmState.READY))
    assert ActivateInstance not in kinds(world.act())


def test_down(world: World) -> None:
    world.intent = replace(world.intent, force=True)
    with pytest.raises(PlanError, match="must drain before it is stopped"):
        diff(world.actual, Swarm())
    actions = diff(world.actual, Swarm(), force=True)
    world.do(actions)
    assert kinds(actions) == [DetachClassifier, SetRoutes, SetServices, StopInstance, RemoveEdge, StopRouter]
    stopped = [a.instance.layers[0] for a in actions if isinstance(a, StopInstance)]
    assert stopped == sorted(stopped), "front first"
    assert (world.actual.instances, world.actual.edges, world.actual.retired) == ((), (), ())


def test_an_adopted_swarm_needs_nothing(world: World) -> None:
    """A manager that restarts finds the instances, and has not read any status yet."""
    found = replace(world.actual, instances=tuple(replace(i, status=None) for i in world.actual.instances))
    assert diff(found, desired(found, INTENT, world.now)) == ()


# ---- failures


def test_a_dead_instance_is_replaced_at_another_place(world: World) -> None:
    dead = world.pool(TLS)[0]
    world.actual = world.actual.with_instance(dead.to(VmState.FAILED))
    actions = world.act()
    assert kinds(actions) == [SetRoutes, StartInstance, StopInstance]
    assert dead.vm_id not in world.routed()
    (new,) = world.pool(TLS, VmState.BOOTING)
    assert new.vm_id == 8
    assert not set(new.slots) & set(dead.slots)
    tcp = world.pool(TCP)[0].vm_id
    waiting = {r.slot.edge: r.waiting for r in world.actual.retired}
    assert waiting["tcp-tls"] == {tcp}
    assert waiting["tls-http"] == {i.vm_id for i in world.pool(HTTP)}
    world.settle()


def test_a_place_is_free_again_when_all_peers_have_seen_the_table_without_it() -> None:
    slot = Slot("tcp-tls", Side.BACK, 0)
    swarm = Swarm(retired=(RetiredSlot(slot, 7, frozenset({1, 2})),))
    assert acknowledge(swarm, "tcp-tls", 1, 6) == swarm
    assert acknowledge(swarm, "tls-http", 1, 7) == swarm
    swarm = acknowledge(swarm, "tcp-tls", 1, 7)
    assert slot in taken_slots(swarm)
    assert slot not in taken_slots(acknowledge(swarm, "tcp-tls", 2, 9))


def test_a_full_edge_waits_for_acknowledgement(world: World) -> None:
    world.scale(TLS, 4)
    world.settle()
    dead = world.pool(TLS)[0]
    world.actual = world.actual.with_instance(dead.to(VmState.FAILED))
    assert StartInstance not in kinds(world.act())
    assert world.act() == ()
    world.happen()
    started = [a.instance for a in world.act() if isinstance(a, StartInstance)]
    assert [set(i.slots) for i in started] == [set(dead.slots)]


def test_peers_that_die_are_not_waited_for(world: World) -> None:
    dead = {world.pool(layer)[0].vm_id for layer in (TLS, HTTP)}
    for vm_id in dead:
        world.become(world.actual.instance(vm_id) or world.pool(TLS)[0], VmState.FAILED)
    world.act()
    assert world.actual.retired
    assert not any(retired.waiting & dead for retired in world.actual.retired)
    survivor = world.pool(TLS, VmState.ACTIVE)[0]
    world.become(survivor, VmState.FAILED)
    world.act()
    assert not any(retired.waiting & {survivor.vm_id} for retired in world.actual.retired)


def test_news_that_overtakes_an_action_stands(world: World) -> None:
    world.scale(TLS, 1)
    (drain,) = [a for a in world.plan() if isinstance(a, DrainInstance)]
    failed = world.actual.with_instance(drain.instance.to(VmState.FAILED))
    assert advance(failed, drain) == failed


# ---- another config


def revised(layer_id: LayerId, **changes: object) -> tuple[Layer, ...]:
    return tuple(replace(p, **changes) if p.id is layer_id else p for p in LAYERS)  # type: ignore[arg-type]


def test_new_settings_replace_instances(world: World) -> None:
    world.intent = replace(INTENT, layers=revised(TLS, revision="new"))
    assert kinds(world.act()) == [StartInstance], "the old ones stay until the new ones are active"
    world.happen()
    assert kinds(world.act()) == [ActivateInstance, SetRoutes]
    assert kinds(world.act()) == [SetRoutes, DrainInstance]
    world.settle()


def test_new_settings_without_room(world: World) -> None:
    world.scale(TLS, 4)
    world.settle()
    world.intent = replace(INTENT, layers=revised(TLS, revision="new", instances=4, min=3))
    assert kinds(world.act()) == [SetRoutes, DrainInstance]
    assert len(world.flowing(TLS)) == 3
    world.settle()

    world.intent = replace(INTENT, layers=revised(TLS, revision="newer", instances=4, min=4))
    with pytest.raises(PlanError, match="no room for replacements"):
        world.plan()


def test_max_is_fixed(world: World) -> None:
    world.intent = replace(INTENT, layers=revised(TLS, max=5))
    with pytest.raises(PlanError, match="max of a layer cannot change"):
        world.plan()


def test_a_service_keeps_its_index(world: World) -> None:
    other = replace(HTTPS, name="other", port=8443, index=0)
    world.intent = replace(INTENT, services=(other, replace(PLAIN, index=1)))
    world.settle()
    assert {s.name: s.index for s in world.actual.services} == {"other": 0, "http": 1}
    world.intent = replace(INTENT, services=(HTTPS, PLAIN, other))
    world.settle()
    assert {s.name: s.index for s in world.actual.services} == {"https": 2, "http": 1, "other": 0}


def test_a_layer_that_nobody_needs_drains_and_takes_its_edges_along(world: World) -> None:
    world.intent = replace(INTENT, services=(PLAIN,), layers=tuple(p for p in LAYERS if p.id is not TLS))
    assert kinds(world.act()) == [SetRoutes, SetServices, StartInstance, DrainInstance]
    assert {i.layers[0] for i in world.actual.instances if i.state is VmState.DRAINING} == {TLS}
    assert {e.name for e in world.actual.edges} == {"tcp-tls", "tls-http", "tcp-http", "http-app"}
    world.settle()
    assert {e.name for e in world.actual.edges} == {"tcp-http", "http-app"}
    assert world.pool(TLS) == ()


def test_a_new_service_brings_its_edges_to_new_instances() -> None:
    world = World(replace(INTENT, services=(PLAIN,), layers=tuple(p for p in LAYERS if p.id is not TLS)))
    world.settle()
    old = {i.vm_id for i in world.actual.instances}
    apps = {i.vm_id for i in world.pool(APP)}
    world.intent = INTENT
    world.settle()
    assert {i.vm_id for i in world.actual.instances} & old == apps, "the edges of app are the same"
    assert {slot.edge for slot in world.pool(TCP)[0].slots} == {"tcp-tls", "tcp-http"}
    assert [s.name for s in world.actual.services] == ["https", "http"]


def test_illegal_wishes(world: World) -> None:
    instance = world.pool(TLS)[0]
    for state in (VmState.BOOTING, VmState.GONE, VmState.READY):
        with pytest.raises(PlanError, match="cannot become"):
            diff(world.actual, world.actual.with_instance(replace(instance, state=state)), force=True)
    draining = world.actual.with_instance(instance.to(VmState.DRAINING))
    with pytest.raises(PlanError, match="cannot become active"):
        diff(draining, world.actual)
