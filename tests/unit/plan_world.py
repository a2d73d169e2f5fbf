# SPDX-License-Identifier: Apache-2.0
"""A swarm for tests of the plan, and all that may happen to it."""

from dataclasses import replace
from ipaddress import ip_address

from pipeline.policy.actions import (
    Action,
    AssignInstance,
    AttachClassifier,
    DrainInstance,
    RemoveEdge,
    SetRoutes,
    SetServices,
    StartInstance,
    StopInstance,
    StopRouter,
    advance,
)
from pipeline.policy.desired import desired
from pipeline.policy.intent import Intent, scale
from pipeline.policy.model import (
    Chain,
    Instance,
    Layer,
    LayerId,
    Service,
    Swarm,
    VmState,
    VMStatus,
)
from pipeline.policy.places import acknowledge, taken_slots
from pipeline.policy.plan import diff
from pipeline.policy.routing import REFRESH

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
        """All that is under way comes to its end, and nothing more happens for a while."""
        self.now += REFRESH
        for instance in self.actual.instances:
            if instance.state is VmState.BOOTING:
                self.become(instance, VmState.READY)
            elif instance.state is VmState.DRAINING:
                self.become(instance, VmState.DRAINING)
        for instance in self.actual.instances:
            self.reads(instance)

    def reads(self, instance: Instance) -> None:
        """It carries out the table that counts, on all its edges."""
        epoch = self.actual.routing.epoch
        self.actual = self.actual.with_instance(replace(instance, routes_epoch=epoch))
        for slot in instance.slots:
            self.actual = acknowledge(self.actual, slot.edge, instance.vm_id, epoch)

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


def kinds(actions: tuple[Action, ...] | list[Action]) -> list[type]:
    return list(dict.fromkeys(type(action) for action in actions))
