# SPDX-License-Identifier: Apache-2.0
"""The Swarm Manager: observes, plans, acts, and is never in a request's way.

One loop: read what the instances report, note it in the actual swarm, let the plan say what is to be done now, have
the actor do it. The first start, scaling, draining, a crash and the adoption of a running swarm are all this one loop.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.actor.actor import Actor
from pipeline.errors import InstanceError, LaunchError, PlanError, SwarmlineError
from pipeline.events import Events
from pipeline.host.processes import log_tail
from pipeline.host.report import Report, TraceEvent
from pipeline.policy.actions import (
    Action,
    AssignInstance,
    DrainInstance,
    SetRoutes,
    StartInstance,
    StopInstance,
    advance,
    kind_of,
    together_with,
)
from pipeline.policy.config import Config
from pipeline.policy.desired import desired
from pipeline.policy.health import CrashLoops, Heartbeats
from pipeline.policy.intent import Intent, change_layer, intent_of, keep_indices, scale, scaled_as, without
from pipeline.policy.model import Instance, LayerId, Swarm, VmState
from pipeline.policy.places import acknowledge
from pipeline.policy.plan import diff
from pipeline.policy.probe import Probes, grace
from pipeline.policy.scaling import Autoscaler

TURN = 0.2                 # seconds between two looks if nothing rings
PROBE_TURN = 0.02          # the same while an instance waits for its peers
RETRY = 1.0                # seconds after an action failed
BOOT_STARVED = 4           # times as long may an instance boot that only lacks a CPU
TRACES_KEPT = 8192


class Manager:
    """The control plane of one swarm."""

    def __init__(self, run_dir: Path, config: Config) -> None:
        self.run_dir = run_dir
        self.config = config
        self.intent = intent_of(config)
        self.actual = Swarm()
        self.reports: dict[int, Report] = {}
        self.events = Events()
        self.autoscaler = Autoscaler()
        self.traces: deque[TraceEvent] = deque(maxlen=TRACES_KEPT)
        self.complete = False              # every layer was active once: from now on failures are lived with
        self.ended = asyncio.Event()
        self._wake = asyncio.Event()
        self._dead: set[int] = set()
        self._drained_at: dict[int, float] = {}
        self._started_at: dict[int, float] = {}
        self._heartbeats = Heartbeats()
        self._crash_loops = CrashLoops()
        self._probes = Probes()
        self._silent: set[int] = set()
        self._former: tuple[Config, Intent] | None = None     # before the last reload
        self._router_died = False
        self._retry_at = 0.0
        self._lock = asyncio.Lock()        # one plan is carried out at a time
        self.actor = Actor(run_dir, config, self._wake.set, self._instance_ended, self._router_ended, self.events.note)

    # ---- the loop

    async def run(self) -> None:
        """Until ``ended`` is set. Raises SwarmlineError if the swarm can not be brought up."""
        self.intent = intent_of(self.config, self.actor.open())
        try:
            if (former := self.actor.recall()) is not None:
                await self._adopt(former)
            else:
                for remark in await self.actor.prepare():
                    self.events.note("driver", remark)
            while not self.ended.is_set():
                self._wake.clear()         # first: what is rung for during the turn is looked at in the next one
                await self._turn()
                await self._sleep()
        finally:
            self.actor.close()

    async def _adopt(self, former: Swarm) -> None:
        self.events.note("adopted", f"took over {len(former.instances)} instances of a former manager")
        self.actual, self.complete = former, True
        self._probes.note(former, former.routing)
        self.intent = replace(self.intent, layers=scaled_as(self.intent.layers, former.layers))
        await self.actor.adopt(former)

    async def _sleep(self) -> None:
        waits = [asyncio.create_task(self._wake.wait()), asyncio.create_task(self.ended.wait())]
        soon = any(i.state is VmState.READY and not i.linked for i in self.actual.instances)
        turn = min(PROBE_TURN if soon else TURN, self._heartbeats.look_in)
        await asyncio.wait(waits, timeout=turn, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()

    async def _turn(self) -> None:
        async with self._lock:
            if self.ended.is_set():
                return
            await self._revive_router()
            self._observe()
            self._autoscale(time.monotonic())
            if time.monotonic() >= self._retry_at:
                await self._reconcile()
            self.actor.equip()
        self._check_complete()

    async def _reconcile(self) -> None:
        try:
            now = time.monotonic()
            intent = replace(self.intent, held=self._crash_loops.held(now))
            wanted = desired(self.actual, intent, now)
            actions = diff(self.actual, wanted, force=self.intent.force)
            if not actions:
                return
            await self._perform(actions, wanted)
            self.intent = replace(self.intent, force=False)
        except SwarmlineError as error:
            if not self.complete:
                raise
            self.events.note("failed", error.explain())
            self._retry_at = time.monotonic() + RETRY
        self._remember()

    def _remember(self) -> None:
        """What is, and how many instances were asked for since the configuration was read."""
        self.actor.remember(replace(self.actual, layers=self.intent.layers))

    async def _perform(self, actions: Sequence[Action], wanted: Swarm) -> None:
        """In order; instances that start or stop next to each other do so at the same time."""
        for together, group in itertools.groupby(actions, key=together_with):
            if together is None:
                for action in group:
                    await self._do(action, wanted)
            else:
                await _all(self._do(action, wanted) for action in group)

    async def _do(self, action: Action, wanted: Swarm) -> None:
        if isinstance(action, StopInstance | AssignInstance):
            self._note_unfinished(action.instance.vm_id)
        self.events.note(kind_of(action), str(action))
        if isinstance(action, StartInstance | AssignInstance):
            # a place is taken before the instance is there, so that nobody else is given it meanwhile
            self.actual = advance(self.actual, action)
            self._remember()       # first: a manager that comes after this one must know what it may find
            self._started_at[action.instance.vm_id] = time.monotonic()
            self._drained_at.pop(action.instance.vm_id, None)
            self.intent = replace(self.intent, change=without(self.intent.change, action.instance.vm_id))
            try:
                await self.actor.perform(action, wanted)
            except LaunchError:
                self._fail(action.instance.vm_id)
                raise
            return
        await self.actor.perform(action, wanted)
        self.actual = advance(self.actual, action)
        if isinstance(action, DrainInstance):
            self._drained_at[action.instance.vm_id] = time.monotonic()
        if isinstance(action, SetRoutes):
            self._probes.note(self.actual, action.table)
            self._remember()       # a manager that comes after this one must not use the epoch again
        if isinstance(action, StopInstance):
            self._forget(action.instance.vm_id)

    def _note_unfinished(self, vm_id: int) -> None:
        instance = self.actual.instance(vm_id)
        if instance and (flows := instance.unfinished):
            self.events.note("drain-deadline", f"{instance} had its time to drain; flows left: {flows}", vm_id=vm_id)

    def _forget(self, vm_id: int) -> None:
        self._drained_at.pop(vm_id, None)
        self._started_at.pop(vm_id, None)
        self._dead.discard(vm_id)
        self.reports.pop(vm_id, None)
        change = without(self.intent.change, vm_id)
        self.intent = replace(self.intent, drain=self.intent.drain - {vm_id}, change=change)

    # ---- what is

    def _observe(self) -> None:
        self.reports.update(self.actor.reports())
        beats = [(vm_id, report.status.heartbeat_ns / 1e9) for vm_id, report in self.reports.items()]
        self._silent = self._heartbeats.silent(beats, time.monotonic(), self.actor.runnable)
        for instance in self.actual.instances:
            self._observe_instance(instance, self.reports.get(instance.vm_id))
        for member in self.actor.held.members.values():
            self.traces.extend(member.control.trace_events())

    def _observe_instance(self, instance: Instance, report: Report | None) -> None:
        if not instance.live:
            return
        member = self.actor.held.members.get(instance.vm_id)
        pid = member.running.pid if member and member.running else instance.pid
        if report and member and report.assignment_seen != member.control.assigned:
            # what it says is of what it was before
            instance = replace(instance, pid=pid, status=None)
            self.actual = self.actual.with_instance(instance)
            report = report if report.status.state is VmState.FAILED else None
        elif report is not None:
            epoch = min(report.routes_seen[:len(instance.slots)], default=0)
            status = self._settled(instance, report).status
            instance = self._probed(replace(instance, pid=pid, status=status, routes_epoch=epoch))
            self.actual = self.actual.with_instance(instance)
            for slot, epoch in zip(instance.slots, report.routes_seen, strict=False):
                self.actual = acknowledge(self.actual, slot.edge, instance.vm_id, epoch)
        if instance.vm_id in self._dead or (report and report.status.state is VmState.FAILED):
            self._instance_failed(instance, report, "ended" if member and member.running else "failed")
        elif (report and instance.state is VmState.BOOTING and report.status.state is VmState.READY
              and report.status.protocol_layers == instance.layers):
            self.actual = self.actual.with_instance(self._probed(instance.to(VmState.READY)))
            self.events.note("ready", f"{instance} is ready", vm_id=instance.vm_id)
            self._remember()       # nobody goes on with a start that was not done
        elif instance.state is VmState.BOOTING:
            age = time.monotonic() - self._started_at.get(instance.vm_id, 0.0)
            late = age / self.config.boot_timeout
            if late > BOOT_STARVED or (late > 1 and not self.actor.runnable(instance.vm_id)):
                self._instance_failed(instance, report, f"was not ready within {age:.0f} s")
        elif instance.vm_id in self._silent:
            self._instance_failed(instance, report, "gave no heartbeat")
        elif instance.state is VmState.ACTIVE:
            now = time.monotonic()
            self._crash_loops.lives(instance.layers[0], now - self._started_at.get(instance.vm_id, 0.0), now)

    def _probed(self, instance: Instance) -> Instance:
        """Notes of a ready one whether it can be reached through its edges."""
        return self._probes.probed(self.actual, instance, self._seen())

    def _seen(self) -> dict[int, Sequence[int]]:
        return {vm_id: report.routes_seen for vm_id, report in self.reports.items()}

    def _settled(self, instance: Instance, report: Report) -> Report:
        """A draining instance counts as drained only after what was under way to it has arrived."""
        young = time.monotonic() - self._drained_at.get(instance.vm_id, 0.0) < grace(instance)
        if instance.state is VmState.DRAINING and (
                young or not self._probes.relieved(self.actual, instance, self._seen())):
            return replace(report, status=replace(report.status, state=VmState.ACTIVE))
        return report

    def _instance_failed(self, instance: Instance, report: Report | None, how: str) -> None:
        self._fail(instance.vm_id)
        known = filter(None, (report.text if report else "", self.actor.last_words(instance.vm_id)))
        words = "; ".join(known) or "; ".join(log_tail(self.run_dir / "log" / f"instance-{instance.vm_id}.log", 1))
        self.events.note("instance-failed", f"{instance} {how}{': ' if words else ''}{words}", vm_id=instance.vm_id)
        if not self.complete:
            hint = "" if "its log is" in words else f"its log is {self.run_dir}/log/instance-{instance.vm_id}.log"
            raise InstanceError(f"{instance} {how} while the swarm was coming up{': ' if words else ''}{words}",
                                vm_id=instance.vm_id, hint=hint)

    def _fail(self, vm_id: int) -> None:
        instance = self.actual.instance(vm_id)
        if instance is None or not instance.live:
            return
        self._roll_back(instance)
        self.actual = self.actual.with_instance(instance.to(VmState.FAILED))
        now = time.monotonic()
        # one that never was ready has not lived, however long it took
        age = 0.0 if instance.state is VmState.BOOTING else now - self._started_at.get(vm_id, 0.0)
        layer = instance.layers[0] if instance.layers else LayerId.NONE
        delay = self._crash_loops.died(layer, age, now)
        if delay:
            self.events.note("crash-loop", f"{layer.label if layer else 'warm'} instances keep dying young; "
                                    f"the next is started in {delay:.1f} s", vm_id=vm_id)

    def _autoscale(self, now: float) -> None:
        """Layers that ask for it get as many instances as their measured load wants."""
        if not self.complete:
            return
        for layer, decision in self.autoscaler.decide(self.intent.layers, self.actual, now):
            self.intent = replace(self.intent, layers=scale(self.intent.layers, layer.id, decision.target))
            self.events.note("autoscale", f"{layer.id.label}: {decision.reason}")

    def _instance_ended(self, vm_id: int) -> None:
        self._dead.add(vm_id)
        self._wake.set()

    def _router_ended(self) -> None:
        self._router_died = True
        self._wake.set()

    async def _revive_router(self) -> None:
        if not self._router_died or time.monotonic() < self._retry_at:
            return
        self.events.note("router-failed", "the router ended; it is started again")
        try:
            await self.actor.restart_router()
            self._router_died = False
        except SwarmlineError as error:
            if not self.complete:
                raise
            self.events.note("failed", error.explain())
            self._retry_at = time.monotonic() + RETRY

    def _check_complete(self) -> None:
        if self.complete:
            return
        pools = [self.actual.pool(layer.id, VmState.ACTIVE) for layer in self.intent.layers]
        full = all(len(pool) >= layer.instances for pool, layer in zip(pools, self.intent.layers, strict=True))
        served = len(self.actual.services) == len(self.intent.services)
        if self.actual.classifier and full and served:
            self.complete = True
            self.events.note("up", f"swarm {self.config.name} is up: {len(self.actual.instances)} instances")

    # ---- what the operator wants

    async def reload(self, config: Config, *, dry_run: bool = False) -> list[str]:
        """Another configuration, applied by the same plan as everything else. Returns what is done first; with
        ``dry_run`` nothing is. If an instance with the new settings does not come up, the former one is taken back.
        """
        for what, new, old in (("[nic]", config.nic, self.config.nic),
                               ("api_group", config.api_group, self.config.api_group),
                               ("metrics", config.metrics, self.config.metrics)):
            if new != old:
                raise PlanError(f"{what} cannot change in a running swarm",
                                hint="`swarmline down`, then `swarmline up`")
        config = replace(config, services=keep_indices(self.actual.services, config.services))
        async with self._lock:
            former = (self.config, self.intent)
            intent = replace(intent_of(config, self.actor.configure(config)), drain=self.intent.drain,
                             change=self.intent.change)
            try:
                actions = diff(self.actual, desired(self.actual, intent, time.monotonic()))
            except SwarmlineError:
                self.actor.configure(self.config)
                raise
            if dry_run:
                self.actor.configure(self.config)
                return [str(action) for action in actions]
            self._former, self.config, self.intent = former, config, intent
            self.events.note("reload", f"{config.file}: {len(actions)} things to do at once")
        self._wake.set()
        return [str(action) for action in actions]

    def _roll_back(self, instance: Instance) -> None:
        """An instance failed before it was ready: if it had new settings, these are taken back."""
        if self._former is None or instance.state is not VmState.BOOTING:
            return
        old = {layer.id: layer.revision for layer in self._former[1].layers}
        if not instance.layers or old.get(instance.layers[0]) == instance.revision:
            return
        (self.config, self.intent), self._former = self._former, None
        self.actor.configure(self.config)
        words = f"{instance} did not come up with the new configuration: the former one counts again"
        self.events.note("rolled-back", words)

    async def scale(self, layer: LayerId, instances: int) -> list[str]:
        """Another number of instances. Returns what is done now; the rest follows by itself."""
        return await self._want(replace(self.intent, layers=scale(self.intent.layers, layer, instances)),
                                f"scale {layer.label} to {instances}")

    async def drain(self, vm_id: int, *, force: bool = False) -> list[str]:
        """One instance finishes its flows and goes; another takes its place."""
        instance = self._known(vm_id)
        intent = replace(self.intent, drain=self.intent.drain | {vm_id}, force=force)
        return await self._want(intent, f"drain {instance}")

    async def assign(self, vm_id: int, layer: LayerId, *, force: bool = False) -> list[str]:
        """Another layer for a running instance: it finishes its flows, lets go of its edges and attaches the other
        layer's. Its former layer then wants one instance less, but not fewer than ``min``, and the other one more.
        """
        instance = self._known(vm_id)
        intent = replace(change_layer(self.intent, instance, layer), force=force)
        return await self._want(intent, f"assign {instance} to {layer.label}")

    def _known(self, vm_id: int) -> Instance:
        instance = self.actual.instance(vm_id)
        if instance is None or not instance.live:
            known = ", ".join(str(i.vm_id) for i in self.actual.instances) or "none"
            raise PlanError(f"there is no instance {vm_id}", hint=f"instances are: {known}")
        return instance

    async def _want(self, intent: Intent, why: str) -> list[str]:
        """Takes the intent over if it can be planned from where the swarm is."""
        async with self._lock:
            now = time.monotonic()
            actions = diff(self.actual, desired(self.actual, intent, now), force=intent.force)
            self.events.note("asked", why)
            self.intent = intent
            self._remember()
        self._wake.set()
        return [str(action) for action in actions]

    async def down(self) -> None:
        """Ends all that runs: the classifier first, then instances from the front, the router, the edges."""
        async with self._lock:
            self.events.note("down", "the swarm is taken down")
            empty = Swarm(routing=self.actual.routing)
            actions = diff(self.actual, empty, force=True)
            try:
                await self._perform(actions, empty)
            finally:
                self.ended.set()

    def trace(self, every: int) -> None:
        """Has one request in so many traced; 0: none. Forgets former traces."""
        self.traces.clear()
        self.actor.trace_every_set(every)


async def _all(steps: Any) -> None:
    """Every step is taken to its end; then the first failure, if any, is raised."""
    results = await asyncio.gather(*steps, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
