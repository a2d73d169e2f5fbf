# SPDX-License-Identifier: Apache-2.0
"""The Actor: it decides nothing; the manager calls ``perform`` with actions that the plan gave it.

Everything that must survive the manager lies in the holder or in pinned maps, so ``adopt`` can take a swarm over that
another manager started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.actor import kept, tls_secrets
from pipeline.actor.front import Front
from pipeline.actor.held import Held, Member
from pipeline.actor.members import Members
from pipeline.actor.routes import Routes
from pipeline.host import cgroups, namespaces
from pipeline.host.classifier import Classifier, mount_pins
from pipeline.host.control import Command
from pipeline.host.edges import EdgeMemory
from pipeline.host.report import Report
from pipeline.policy import actions
from pipeline.policy.config import Config
from pipeline.policy.model import Edge, Service, Swarm

ALLOWANCE_AGE = 1.0       # seconds for which a limit of CPU time counts as known


class Actor:
    """``on_news`` is called when an instance rings or ends, ``on_end(vm_id)`` when its process has ended,
    ``note(kind, text)`` when something else happens that people should know.
    """

    def __init__(self, run_dir: Path, config: Config, on_news: Callable[[], None], on_end: Callable[[int], None],
                 on_router_end: Callable[[], None], note: Callable[[str, str], None] = lambda kind, text: None) -> None:
        self.held = Held(run_dir, config, lambda text: note("accelerator", text))
        self._note = note
        self._routes = Routes(self.held)
        self._front = Front(self.held, on_router_end)
        self._members = Members(self.held, self._routes, self._front, on_news, on_end, note)

    # ---- life

    def open(self) -> str:
        """Before the first action: doorbells, the classifier's maps, secrets. Returns what ``configure`` does."""
        self._members.open()
        self.held.classifier = Classifier.load(mount_pins(self.held.run_dir))
        self.held.classifier.set_queues(self.held.queues)
        return self.configure(self.held.config)

    async def prepare(self) -> list[str]:
        """Before the first instance of a swarm: what the operator should know."""
        await self.held.accelerators.restore()
        return await self._members.prepare()

    def configure(self, config: Config) -> str:
        """Takes over another configuration: it counts for what is started from now on. Returns a digest of the keys and
        certificates, by which the plan tells instances that have older ones. Raises SwarmlineError, with nothing
        changed, if a file cannot be read.
        """
        self._members.secrets = secrets = tls_secrets.load(self.held.holder, config)
        self.held.config = config
        self.held.placer.configure(config)
        self.held.accelerators.configure(config.hardware.allow, config.hardware.vfs)
        return tls_secrets.digest(secrets)

    def close(self) -> None:
        """Lets go of everything; the swarm goes on."""
        self._members.close()
        self._front.close()
        if self.held.classifier:
            self.held.classifier.close()
        self.held.holder.close()

    def remember(self, swarm: Swarm) -> None:
        """Leaves the plan's state with the holder, for a manager that comes after this one."""
        kept.remember(self.held.holder, swarm)

    def recall(self) -> Swarm | None:
        """What a former manager left; None: there was none."""
        return kept.recall(self.held.holder)

    async def adopt(self, swarm: Swarm) -> None:
        """Takes over the edges, instances, router and maps of a former manager. Instances that are gone are reported as
        ended.
        """
        self._routes.table = swarm.routing
        for edge in swarm.edges:
            self.held.edges[edge.name] = EdgeMemory.adopt(self.held.holder, edge)
        for instance in swarm.instances:
            await self._members.adopt(instance)
        await self._members.adopt_accelerators()
        if swarm.router:
            await self._front.adopt(swarm.services)

    # ---- actions

    async def perform(self, action: actions.Action, wanted: Swarm) -> None:
        """Does it, or raises SwarmlineError. ``wanted`` is the swarm that the plan aims at."""
        match action:
            case actions.CreateEdge(edge):
                self._create_edge(edge)
            case actions.RemoveEdge(edge):
                self.held.edges.pop(edge.name).close()
                self.held.holder.edge_remove(edge.id)
            case actions.StartRouter():
                await self._front.start()
            case actions.StopRouter():
                await self._front.stop()
            case actions.StartInstance(instance):
                await self._members.start(instance)
            case actions.AssignInstance(instance, _):
                await self._members.assign(instance)
            case actions.ActivateInstance(instance):
                self._members.command(instance.vm_id, Command.RUN)
            case actions.DrainInstance(instance, _):
                self._members.command(instance.vm_id, Command.DRAIN)
            case actions.StopInstance(instance):
                await self._members.stop(instance)
            case actions.SetRoutes(table):
                self._routes.set(table, wanted)
            case actions.SetServices(services):
                self._set_services(services)
            case actions.AttachClassifier() | actions.DetachClassifier() if self.held.config.nic.devargs:
                pass        # the router classifies: it looks into the same maps
            case actions.AttachClassifier(interface):
                self._attach(interface)
            case actions.DetachClassifier():
                assert self.held.classifier
                self.held.classifier.detach()

    def _create_edge(self, edge: Edge) -> None:
        self.held.edges[edge.name] = memory = EdgeMemory.create(self.held.holder, edge)
        self.held.placer.edge(edge.name, memory.fd, memory.length)

    def _set_services(self, services: Sequence[Service]) -> None:
        if services:
            self._front.set_services(services)
        assert self.held.classifier
        self._routes.set_tables()
        self.held.classifier.set_services(services)

    def _attach(self, interface: str) -> None:
        classifier = self.held.classifier
        assert classifier
        namespaces.run_in(self.held.config.nic.netns, lambda: classifier.attach(interface))

    async def restart_router(self) -> None:
        """After its death. It binds the same queues and is told everything again; connections live on."""
        await self._front.start()

    def equip(self) -> None:
        """To be called again and again: each instance gets the accelerator that it is to have as the configuration and
        the machine are now, or loses what it has.
        """
        self._members.equip()

    def trace_every_set(self, every: int) -> None:
        """The first layers trace one request in so many; 0: none."""
        self._members.trace_every_set(every)

    # ---- what is known of instances

    def reports(self) -> dict[int, Report]:
        """What each instance says of itself now. Whom it has shut out, and whose doorbell it does not listen to, is
        told, and nothing is done about that: one that lies shall not bring others down.
        """
        found = {}
        for vm_id, member in self.held.members.items():
            if (report := member.control.report()) is not None:
                if who := report.quarantine(member.heard):
                    self._note("quarantine", f"instance {vm_id} has shut out {who}")
                for bell in report.floods(member.heard):
                    self._members.flooded(member, bell)
                member.heard = report
                status = replace(report.status, allowance=self._allowance(member))
                found[vm_id] = replace(report, status=status)
                if member.running:
                    member.running.booted.set()
        return found

    def _allowance(self, member: Member) -> float:
        """Limits change seldom, and files are slow."""
        now = time.monotonic()
        if member.running and now - member.allowance_at > ALLOWANCE_AGE:
            member.allowance, member.allowance_at = cgroups.cpu_share(member.running.pid), now
        return member.allowance

    def runnable(self, vm_id: int) -> bool:
        """Whether the instance only lacks a CPU."""
        return self._members.runnable(vm_id)

    def last_words(self, vm_id: int) -> str:
        """What is known of an instance's end besides its own report."""
        member = self.held.members.get(vm_id)
        if member is None:
            return ""
        return member.why or (member.running.why if member.running else "")
