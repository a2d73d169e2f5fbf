# SPDX-License-Identifier: Apache-2.0
"""The plan, whatever happens in whatever order."""

from dataclasses import replace

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from unit.plan_world import HTTPS, LAYERS, PLAIN, World

from pipeline.errors import PlanError
from pipeline.policy.model import (
    Driver,
    Layer,
    Service,
    VmState,
)


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


# To make a failing example small takes minutes: only `make verify` does it, which tries more of them, too.
STEADY = settings.default.derandomize
AnyOrder.TestCase.settings = settings(
    max_examples=60 if STEADY else settings.default.max_examples, stateful_step_count=30,
    phases=(Phase.generate,) if STEADY else tuple(Phase))
TestAnyOrder = AnyOrder.TestCase
