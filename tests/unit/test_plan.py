# SPDX-License-Identifier: Apache-2.0
"""desired, diff and advance, against a world in which instances boot, drain, fail and acknowledge."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

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
    advance,
)
from pipeline.policy.desired import desired
from pipeline.policy.intent import Intent, scale
from pipeline.policy.model import (
    VM_MAX,
    Chain,
    Driver,
    Edge,
    Instance,
    Layer,
    LayerId,
    RetiredSlot,
    Service,
    Side,
    Slot,
    Swarm,
    VmState,
    VMStatus,
)
from pipeline.policy.places import acknowledge, allocate_vm_id, assign_slots, taken_slots
from pipeline.policy.plan import diff, layer_order

TCP, TLS, HTTP, APP = LayerId.TCP, LayerId.TLS, LayerId.HTTP, LayerId.APP
HTTPS = Service("https", (ip_address("10.0.0.1"),), 443, Chain((TCP, TLS, HTTP, APP)))
PLAIN = Service("http", (ip_address("10.0.0.1"),), 80, Chain((TCP, HTTP, APP)), index=1)
LAYERS = (Layer(TCP, 1, max=4), Layer(TLS, 2, max=4), Layer(HTTP, 2, max=4), Layer(APP, 2, max=4))
INTENT = Intent((HTTPS, PLAIN), LAYERS, "nic0", drain_timeout=30)


class World:
    """A swarm and what happens to it. Every action is checked against the rules before it is done."""

    def __init__(self, intent: Intent = INTENT) -> None:
        self.intent = intent
        self.actual = Swarm()
        self.now = 1000.0
        self.incarnations: set[int] = set()

    def plan(self) -> tuple[Action, ...]:
        wanted = desired(self.actual, self.intent, self.now)
        assert diff(wanted, wanted) == ()
        assert diff(self.actual, self.actual) == ()
        return diff(self.actual, wanted, force=self.intent.force)

    def act(self) -> tuple[Action, ...]:
        actions = self.plan()
        self.do(actions)
        return actions

    def do(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            assert str(action)
            assert "\n" not in str(action)
            self.check(action)
            self.actual = advance(self.actual, action)
            if isinstance(action, AssignInstance | StopInstance):
                left = {k: v for k, v in self.intent.change.items() if k != action.instance.vm_id}
                self.intent = replace(self.intent, change=left)

    def check(self, action: Action) -> None:
        actual = self.actual
        match action:
            case StartInstance(instance):
                edges = {edge.name for edge in actual.edges}
                assert {slot.edge for slot in instance.slots} <= edges, "edges come before instances"
                assert not set(instance.slots) & taken_slots(actual), "a place belongs to one instance"
                assert actual.router
                assert actual.instance(instance.vm_id) is None
                assert instance.incarnation not in self.incarnations, "a start is told from all others"
                self.incarnations.add(instance.incarnation)
            case AssignInstance(instance, former):
                found = actual.instance(instance.vm_id)
                assert found is not None and found.layers == former
                assert instance.vm_id not in self.routed()
                assert found.state in (VmState.READY, VmState.DRAINING)
                if found.state is VmState.DRAINING:
                    assert found.deadline is not None
                    assert found.drained or found.deadline <= self.now
                assert not set(instance.slots) & taken_slots(actual), "its former places are not free yet"
                assert instance.incarnation not in self.incarnations
                self.incarnations.add(instance.incarnation)
            case DrainInstance(instance):
                assert instance.vm_id not in self.routed(), "routes change before a drain"
                if not self.intent.force:
                    for layer in self.intent.layers:
                        pool = actual.pool(layer.id, VmState.ACTIVE)
                        assert instance not in pool or len(pool) > max(layer.min, 1)
            case StopInstance(instance):
                assert instance.vm_id not in self.routed()
                found = actual.instance(instance.vm_id)
                assert found is not None
                if not self.intent.force:
                    assert found.state is not VmState.ACTIVE
                if found.state is VmState.DRAINING and not self.intent.force:
                    assert found.deadline is not None
                    assert found.drained or found.deadline <= self.now
            case RemoveEdge(edge):
                assert not [i for i in actual.instances for slot in i.slots if slot.edge == edge.name]
            case SetServices(services):
                for service in services:
                    new = service.name not in {s.name for s in actual.services}
                    assert not new or all(actual.routing.active(layer) for layer in service.chain.layers)
            case SetRoutes(table):
                assert table.epoch > actual.routing.epoch
            case AttachClassifier():
                assert actual.services
            case StopRouter():
                assert not actual.instances

    def routed(self) -> set[int]:
        return {vm_id for layer in LayerId for vm_id, _ in self.actual.routing.active(layer)}

    def become(self, instance: Instance, state: VmState, flows: int = 0) -> None:
        status = VMStatus(
            instance.vm_id,
            instance.layers,
            state,
            active_flows=flows,
            available_capacity=1000,
            heartbeat_ns=1,
        )
        if state is not instance.state:
            instance = instance.to(state)
        self.actual = self.actual.with_instance(replace(instance, status=status))

    def happen(self) -> None:
        """All that is under way comes to its end."""
        for instance in self.actual.instances:
            if instance.state is VmState.BOOTING:
                self.become(instance, VmState.READY)
            elif instance.state is VmState.DRAINING:
                self.become(instance, VmState.DRAINING)
        for instance in self.actual.instances:
            for slot in instance.slots:
                self.actual = acknowledge(self.actual, slot.edge, instance.vm_id, self.actual.routing.epoch)

    def settle(self) -> None:
        for _ in range(40):
            if not self.act() and not self.actual.retired and self.all_as_wanted():
                return
            self.happen()
        raise AssertionError(f"does not come to rest: {self.actual}")

    def all_as_wanted(self) -> bool:
        wanted = sum(layer.instances for layer in self.intent.layers)
        warm = [i for i in self.actual.instances if not i.layers]
        ready = len(warm) == sum(self.intent.warm.values()) and all(i.warm for i in warm)
        return ready and len(self.actual.instances) - len(warm) == wanted and all(
            len(pool) == layer.instances
            and all(i.state is VmState.ACTIVE and i.revision == layer.revision for i in pool)
            for layer in self.intent.layers
            for pool in [self.actual.pool(layer.id)]
        )

    def scale(self, layer: LayerId, count: int) -> None:
        self.intent = replace(self.intent, layers=scale(self.intent.layers, layer, count))

    def change(self, vm_id: int, to: LayerId, **more: bool) -> None:
        """As the manager does it: its former layer wants one less, the other one more."""
        (old,) = self.actual.instance(vm_id).layers  # type: ignore[union-attr]
        counts = {layer.id: layer for layer in self.intent.layers}
        self.scale(to, counts[to].instances + 1)
        self.scale(old, max(counts[old].instances - 1, counts[old].min))
        self.intent = replace(self.intent, change={**self.intent.change, vm_id: to}, **more)

    def pool(self, layer: LayerId, *states: VmState) -> tuple[Instance, ...]:
        return self.actual.pool(layer, *states)

    def flowing(self, layer: LayerId) -> set[int]:
        return {vm_id for vm_id, _ in self.actual.routing.active(layer)}


@pytest.fixture
def world() -> World:
    made = World()
    made.settle()
    return made


def kinds(actions: tuple[Action, ...] | list[Action]) -> list[type]:
    return list(dict.fromkeys(type(action) for action in actions))


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
    assert kinds(last) == [ActivateInstance, SetRoutes, SetServices, AttachClassifier]
    assert [a.instance.layers[0] for a in last if isinstance(a, ActivateInstance)] == [
        HTTP,
        HTTP,
        TLS,
        TLS,
        TCP,
    ]
    assert world.act() == ()
    assert [s.name for s in world.actual.services] == ["https", "http"]


def test_a_service_starts_as_soon_as_its_chain_is_whole() -> None:
    world = World()
    world.act()
    for layer in (TCP, HTTP, APP):
        for instance in world.pool(layer):
            world.become(instance, VmState.READY)
    world.act()
    assert [(s.name, s.index) for s in world.actual.services] == [("http", 1)]


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


# ---- warm instances, and those that get another layer

WARM = replace(INTENT, warm={Driver.PROCESS: 2})


def warm_of(world: World) -> list[Instance]:
    return [i for i in world.actual.instances if not i.layers]


def test_a_layer_that_grows_takes_a_warm_one_and_the_pool_is_filled_again() -> None:
    world = World(WARM)
    world.settle()
    ready = warm_of(world)
    assert len(ready) == 2
    world.scale(TLS, 3)
    actions = world.act()
    assert kinds(actions) == [AssignInstance, StartInstance]
    (taken,) = (a.instance for a in actions if isinstance(a, AssignInstance))
    assert taken.vm_id in {i.vm_id for i in ready} and taken.layers == (TLS,)
    (filled,) = (a.instance for a in actions if isinstance(a, StartInstance))
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


def test_a_warm_one_that_is_named_is_the_one() -> None:
    world = World(WARM)
    world.settle()
    named = warm_of(world)[1]
    world.scale(APP, 3)
    world.intent = replace(world.intent, change={named.vm_id: APP})
    actions = world.act()
    assert [a.instance.vm_id for a in actions if isinstance(a, AssignInstance)] == [named.vm_id]
    world.settle()


# ---- scaling and draining


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
    assert kinds(actions) == [StartInstance, SetRoutes, DrainInstance]
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
    assert kinds(world.act()) == [StartInstance, SetRoutes, DrainInstance]


def test_min_holds(world: World) -> None:
    layers = tuple(replace(layer, min=2) if layer.id is TLS else layer for layer in LAYERS)
    world.intent = replace(INTENT, layers=layers, drain=frozenset({world.pool(TLS)[0].vm_id}))
    with pytest.raises(PlanError, match="tls would have 1 active instances, allowed: at least 2"):
        world.plan()


# ---- failures


def test_a_dead_instance_is_replaced_at_another_place(world: World) -> None:
    dead = world.pool(TLS)[0]
    world.actual = world.actual.with_instance(dead.to(VmState.FAILED))
    actions = world.act()
    assert kinds(actions) == [StartInstance, SetRoutes, StopInstance]
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
    assert kinds(world.act()) == [StartInstance, SetRoutes, SetServices, DrainInstance]
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


# ---- numbers and places


def test_vm_ids() -> None:
    assert allocate_vm_id((), 0) == 1
    assert allocate_vm_id({2, 3}, 1) == 4
    assert allocate_vm_id({1}, VM_MAX - 1) == 2
    assert allocate_vm_id((), VM_MAX - 2) == VM_MAX - 1
    assert allocate_vm_id(set(range(1, VM_MAX)) - {7}, 7) == 7
    with pytest.raises(PlanError, match="all 1023 VMIDs"):
        allocate_vm_id(set(range(1, VM_MAX)), 5)


def test_slots() -> None:
    edges = (Edge(TCP, TLS, 2, 2), Edge(TLS, HTTP, 2, 2), Edge(HTTP, APP, 2, 2))
    first = assign_slots((TLS,), edges, set())
    assert first == (Slot("tcp-tls", Side.BACK, 0), Slot("tls-http", Side.FRONT, 0))
    assert [s.index for s in assign_slots((TLS,), edges, {first[1]})] == [0, 1]
    assert assign_slots((TLS, HTTP), edges, set()) == (
        Slot("tcp-tls", Side.BACK, 0),
        Slot("http-app", Side.FRONT, 0),
    ), "the edge between its own layers is inside it"
    with pytest.raises(PlanError, match="edge tls-http has no free place at its front"):
        assign_slots((TLS,), edges, {first[1], replace(first[1], index=1)})


def test_layer_order() -> None:
    assert layer_order([Edge(HTTP, APP), Edge(TCP, HTTP), Edge(TLS, HTTP), Edge(TCP, TLS)]) == (
        TCP,
        TLS,
        HTTP,
        APP,
    )
    assert layer_order([]) == ()


# ---- whatever happens


class AnyOrder(RuleBasedStateMachine):
    """Scaling, drains, failures, new settings and services, delays, in any order: every action keeps the
    rules (World.check), VMIDs and places belong to one instance each, and in the end the swarm is as it
    should be.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.revision = 0

    @rule(layer=st.sampled_from(LAYERS), count=st.integers(1, 4))
    def scale(self, layer: Layer, count: int) -> None:
        if layer.id in {p.id for p in self.world.intent.layers}:
            self.world.scale(layer.id, count)

    @rule(pick=st.randoms(use_true_random=False))
    @precondition(lambda self: self.world.actual.instances)
    def drain(self, pick: object) -> None:
        victim = pick.choice(self.world.actual.instances).vm_id  # type: ignore[attr-defined]
        before = self.world.intent
        self.world.intent = replace(before, drain=frozenset({victim}))
        try:
            self.world.act()
        except PlanError:
            self.world.intent = before

    @rule(pick=st.randoms(use_true_random=False))
    @precondition(lambda self: any(i.live for i in self.world.actual.instances))
    def fail(self, pick: object) -> None:
        live = [i for i in self.world.actual.instances if i.live]
        victim = pick.choice(live)  # type: ignore[attr-defined]
        self.world.actual = self.world.actual.with_instance(victim.to(VmState.FAILED))

    @rule(layer=st.sampled_from(LAYERS))
    def reload(self, layer: Layer) -> None:
        self.revision += 1
        layers = tuple(
            replace(p, revision=str(self.revision)) if p.id is layer.id else p
            for p in self.world.intent.layers
        )
        before = self.world.intent
        self.world.intent = replace(before, layers=layers)
        try:
            self.world.plan()
        except PlanError:
            self.world.intent = before

    @rule(pick=st.randoms(use_true_random=False))
    @precondition(lambda self: self.world.actual.instances)
    def one_moves(self, pick: object) -> None:
        instance = pick.choice(self.world.actual.instances)  # type: ignore[attr-defined]
        if instance.state is VmState.BOOTING:
            self.world.become(instance, VmState.READY)
        elif instance.state is VmState.DRAINING:
            self.world.become(instance, VmState.DRAINING, flows=pick.randrange(2))  # type: ignore[attr-defined]

    @rule(count=st.integers(0, 2))
    def warm(self, count: int) -> None:
        self.world.intent = replace(self.world.intent, warm={Driver.PROCESS: count})

    @rule(pick=st.randoms(use_true_random=False), to=st.sampled_from(LAYERS))
    def change(self, pick: object, to: Layer) -> None:
        layers = {p.id: p for p in self.world.intent.layers}
        live = [i for layer in layers for i in self.world.pool(layer, VmState.ACTIVE) if layer is not to.id]
        if not live or to.id not in layers or layers[to.id].instances == to.max:
            return
        before = self.world.intent
        self.world.change(pick.choice(live).vm_id, to.id)  # type: ignore[attr-defined]
        try:
            self.world.act()
        except PlanError:
            self.world.intent = before

    @rule(services=st.sampled_from([(HTTPS,), (PLAIN,), (HTTPS, PLAIN)]))
    def serve(self, services: tuple[Service, ...]) -> None:
        used = {layer for service in services for layer in service.chain.layers}
        had = {p.id: p for p in LAYERS} | {p.id: p for p in self.world.intent.layers}
        layers = tuple(p for p in had.values() if p.id in used)
        self.world.intent = replace(self.world.intent, services=services, layers=layers)

    @rule()
    def act(self) -> None:
        self.world.act()

    @rule()
    def wait(self) -> None:
        self.world.now += 20

    @rule()
    def settle(self) -> None:
        self.world.settle()

    @invariant()
    def one_owner_each(self) -> None:
        actual = self.world.actual
        vm_ids = [i.vm_id for i in actual.instances]
        slots = [slot for i in actual.instances for slot in i.slots] + [r.slot for r in actual.retired]
        assert len(vm_ids) == len(set(vm_ids))
        assert len(slots) == len(set(slots))
        caps = {edge.name: edge.front_cap for edge in actual.edges}
        assert all(slot.index < caps[slot.edge] for slot in slots)

    def teardown(self) -> None:
        self.world.settle()


AnyOrder.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestAnyOrder = AnyOrder.TestCase
