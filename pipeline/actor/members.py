# SPDX-License-Identifier: Apache-2.0
"""Instances: started, given a layer, made to let go of it, stopped, watched."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from pipeline.actor import fitting
from pipeline.actor.front import Front
from pipeline.actor.held import Held, Member
from pipeline.actor.routes import Routes
from pipeline.errors import HolderError, LaunchError, SwarmlineError
from pipeline.host import keys, processes
from pipeline.host.assignment import Assignment
from pipeline.host.clock import GuestClock
from pipeline.host.control import Command, ControlRegion
from pipeline.host.doorbells import Doorbells, ring
from pipeline.host.holder_client import InstanceFds
from pipeline.instances.conf import Secrets
from pipeline.instances.driver import Driver, Outfit
from pipeline.instances.process import ProcessDriver
from pipeline.instances.qemu import QemuDriver
from pipeline.policy.model import Driver as DriverName
from pipeline.policy.model import Instance, LayerId, VmState

FAREWELL = 0.05          # seconds for the last frames of a tcp instance
STOP_TIMEOUT = 1.0       # seconds for an instance to end by itself once told so
LET_GO_TIMEOUT = 3.0     # seconds for an instance to let go of a layer
LOOK = 0.001             # seconds between two looks whether it has


class Members:
    """``on_news`` is called when an instance rings, ``on_end(vm_id)`` when its process has ended, ``note(kind, text)``
    when something else happens that people should know.
    """

    def __init__(self, held: Held, routes: Routes, front: Front, on_news: Callable[[], None],
                 on_end: Callable[[int], None], note: Callable[[str, str], None]) -> None:
        self._held, self._routes, self._front = held, routes, front
        self._on_news, self._on_end = on_news, on_end
        self._drivers: dict[DriverName, Driver] = {DriverName.PROCESS: ProcessDriver(), DriverName.QEMU: QemuDriver()}
        self._note = note
        self._doorbells = Doorbells(self._rung, self._flooded)
        self._trace_every = 0
        self.secrets = Secrets()

    # ---- life

    def open(self) -> None:
        asyncio.get_running_loop().add_reader(self._doorbells, self._doorbells.ready)

    async def prepare(self) -> list[str]:
        """Before the first instance of a swarm: what the operator should know."""
        remarks = []
        config = self._held.config
        for name, driver in self._drivers.items():
            if layers := [layer for layer in config.layers if layer.driver is name]:
                remarks.append(await driver.prepare(layers, config.app.root))
        return list(filter(None, remarks))

    def close(self) -> None:
        """Lets go of all; they go on."""
        asyncio.get_running_loop().remove_reader(self._doorbells)
        for member in self._held.members.values():
            for task in (member.starting, member.watcher, member.plugging):
                if task:
                    task.cancel()
            if member.running:
                member.running.close()

    async def adopt(self, instance: Instance) -> None:
        """Takes over an instance of a former manager, or reports that it has ended."""
        held = self._held
        try:
            fds = held.holder.instance_get(instance.vm_id)
        except HolderError:
            self._on_end(instance.vm_id)
            return
        member = self._add(instance, fds)
        member.seats = instance.slots
        spec = fitting.spec(held, member, instance)
        if instance.state is VmState.BOOTING:
            member.why = "a former manager did not live to start it"       # and nobody goes on with that
        elif instance.pid:
            key = keys.GRANTS.format(instance.vm_id)
            grants = held.holder.fd_get(key)[0] if key in held.holder.fd_list() else -1
            member.running = await member.driver.adopt(spec, instance.pid, grants)
        if member.running:
            member.watcher = asyncio.create_task(self._watch(member))
        else:
            await member.driver.abandon(spec)
            self._on_end(instance.vm_id)

    async def adopt_accelerators(self) -> None:
        """Once all instances are adopted: they have what they have, and a place each."""
        held = self._held
        running = {vm_id: member.running for vm_id, member in held.members.items() if member.running}
        await held.accelerators.adopt({vm_id: one.guest for vm_id, one in running.items() if one.guest})
        for vm_id, one in running.items():
            if layers := held.members[vm_id].instance.layers:
                held.placer.instance(vm_id, layers[0], one.pid, held.accelerators.device(vm_id))

    def runnable(self, vm_id: int) -> bool:
        """Whether the instance only lacks a CPU."""
        member = self._held.members.get(vm_id)
        if member is None:
            return False
        if member.running:
            return member.running.process.runnable
        starting = processes.of_instance(self._held.run_dir, vm_id)
        return not starting or any(p.runnable for p in starting)     # none yet: it waits for what others prepare

    def _rung(self, vm_id: int) -> None:
        member = self._held.members.get(vm_id)
        if member and member.running and not member.running.booted.is_set() and member.control.report():
            member.running.booted.set()
        self._on_news()

    def flooded(self, member: Member, bell: int) -> None:
        """An instance says that one of its doorbells rings without end: who rings it is told, once. Between virtual
        machines that doorbell is taken away for good, as QEMU would go on to listen to it.
        """
        vm_id = member.instance.vm_id
        facts = next(facts for facts in self._held.holder.instance_list() if facts.vm_id == vm_id)
        who = {peer for peer, its in facts.bells.items() if its == bell} - member.flooders
        member.flooders |= who
        if len(who) == 1 and member.instance.driver is DriverName.QEMU:
            self._held.holder.instance_silence(min(who), vm_id)
        if who:
            names = " or ".join(map(str, sorted(who)))
            self._note("doorbell-flood",
                       f"instance {names} rings instance {vm_id} without end: it is listened to once a second")

    def _flooded(self, vm_id: int) -> None:
        self._note("doorbell-flood", f"instance {vm_id} rings the manager without end: it is listened to once a second")

    # ---- commands

    def command(self, vm_id: int, command: Command) -> None:
        """Gives an instance a command and rings it."""
        member = self._held.members[vm_id]
        member.control.command(command)
        ring(member.fds.doorbell)

    def trace_every_set(self, every: int) -> None:
        """The first layers trace one request in so many; 0: none."""
        self._trace_every = every
        for member in self._held.members.values():
            member.control.trace_every_set(every)
            ring(member.fds.doorbell)

    # ---- start

    async def start(self, instance: Instance) -> None:
        held, vm_id = self._held, instance.vm_id
        retracts = instance.driver is not DriverName.QEMU
        member = self._add(replace(instance, layers=(), slots=()), held.holder.instance_add(vm_id, retracts=retracts))
        member.control.format(trace_every=self._trace_every, spin_us=0)
        member.starting = asyncio.create_task(self._launch(member, instance))

    async def _launch(self, member: Member, instance: Instance) -> None:
        """Nobody waits for it: a machine may take long to boot, or never do it, and others may need the manager."""
        held, vm_id = self._held, instance.vm_id
        try:
            node = held.placer.node(vm_id, instance.layers[0]) if instance.layers else None
            spec = replace(fitting.spec(held, member, instance), node=node)
            member.running = await member.driver.start(spec)
            if member.running.grants >= 0:
                held.holder.fd_put(keys.GRANTS.format(vm_id), [member.running.grants])
            member.watcher = asyncio.create_task(self._watch(member))
            if instance.layers:
                self._give(member, instance)
        except Exception as error:       # whatever it is: nobody else would tell that it does not come
            member.why = error.explain() if isinstance(error, SwarmlineError) else repr(error)
            self._on_end(vm_id)

    def _add(self, instance: Instance, fds: InstanceFds) -> Member:
        clock = GuestClock() if instance.driver is DriverName.QEMU else None
        control = ControlRegion(fds.control, instance.vm_id, clock=clock)
        member = Member(instance, self._drivers[instance.driver], fds, control)
        self._held.members[instance.vm_id] = member
        self._doorbells.add(instance.vm_id, fds.manager)
        return member

    async def _watch(self, member: Member) -> None:
        assert member.running
        await member.running.wait()
        self._on_end(member.instance.vm_id)

    # ---- layers

    async def assign(self, instance: Instance) -> None:
        """Another layer, or a first one."""
        member = self._held.members[instance.vm_id]
        if member.starting:
            await asyncio.wait([member.starting])        # a warm one may say that it is ready before its start is done
        if member.running is None:
            raise LaunchError(f"{instance} did not start", argv=(), vm_id=instance.vm_id)
        if member.instance.layers:
            await self._take_away(member)
        self._give(member, instance)

    def _give(self, member: Member, instance: Instance) -> None:
        """The assignment, then what it needs: the instance takes it when it has both."""
        held = self._held
        member.instance, member.seats = instance, instance.slots
        if member.running:
            held.placer.instance(instance.vm_id, instance.layers[0], member.running.pid)
        assignment = fitting.assignment(held, instance)
        number = member.control.assign(assignment, fitting.conf(held, member, instance, self.secrets))
        self._routes.write(member)
        self._routes.announce()
        ring(member.fds.doorbell)
        outfit = replace(fitting.outfit(held, instance, number, assignment),
                         listening=partial(self._front.port_announce, member))
        member.plugging = asyncio.create_task(self._plug(member, outfit))

    async def _plug(self, member: Member, outfit: Outfit) -> None:
        assert member.running
        try:
            await member.driver.plug(member.running, outfit)
            self._front.port_add(member)
        except SwarmlineError as error:
            member.running.why = error.explain()
            member.running.kill()

    async def _take_away(self, member: Member) -> None:
        """The instance lets go of its layer, and nobody counts on it any more."""
        assert member.running
        if member.plugging:
            await member.plugging
        former, member.seats = member.instance, ()
        if member.running.guest:
            await self._held.accelerators.without(former.vm_id, member.running.guest)
        nothing = Assignment(LayerId.NONE, ())
        number = member.control.assign(nothing, [])
        ring(member.fds.doorbell)
        await self._let_go(member, number)
        await self._farewell(former)
        await member.driver.unplug(member.running, fitting.outfit(self._held, former, number, nothing))
        self._routes.announce()

    async def _let_go(self, member: Member, number: int) -> None:
        """Returns when the instance has seen that assignment."""
        assert member.running
        former = member.instance
        try:
            async with asyncio.timeout(LET_GO_TIMEOUT):
                while (report := member.control.report()) is None or report.assignment_seen != number:
                    if not member.running.alive:
                        raise TimeoutError
                    await asyncio.sleep(LOOK)
        except TimeoutError:
            raise LaunchError(f"{former} does not let go of its layer", argv=(), vm_id=former.vm_id) from None

    async def _farewell(self, instance: Instance) -> None:
        """The kernel of a first layer's instance has just told every client that its connection is over: the router
        shall carry that out before the port is gone.
        """
        if LayerId.TCP in instance.layers:
            await asyncio.sleep(FAREWELL)
            self._front.port_remove(instance)

    # ---- accelerators

    def equip(self) -> None:
        """Each instance gets the accelerator that it is to have as the configuration is now, or loses what it has."""
        held = self._held
        for vm_id, member in held.members.items():
            guest = member.running.guest if member.running and member.equipable else None
            if guest:
                held.accelerators.equip(vm_id, held.placer.accelerator(vm_id), guest)

    # ---- stop

    async def stop(self, instance: Instance) -> None:
        vm_id = instance.vm_id
        member = self._held.members.get(vm_id)
        if member is None:
            return
        if member.plugging:
            member.plugging.cancel()
        for task in (member.starting, member.watcher):
            if task:
                task.cancel()
                await asyncio.wait([task])       # as it ends it lets go of the pidfd that is waited for below
        if member.running:
            if instance.state is not VmState.FAILED:       # one that failed would not hear it
                self.command(vm_id, Command.STOP)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(STOP_TIMEOUT):
                        await member.running.wait()
            await member.driver.stop(member.running)
            self._held.accelerators.gone(vm_id)
        if instance.state is VmState.FAILED and LayerId.TCP in member.instance.layers and member.driver.vhost:
            await self._front.connections_end(member.instance)
        await self._farewell(member.instance)
        self._forget(vm_id)

    def _forget(self, vm_id: int) -> None:
        held = self._held
        member = held.members.pop(vm_id)
        held.placer.gone(vm_id)
        self._doorbells.remove(member.fds.manager)
        held.holder.instance_remove(vm_id)
        if (key := keys.GRANTS.format(vm_id)) in held.holder.fd_list():
            held.holder.fd_remove(key)
        member.control.close()
        member.fds.close()
        self._routes.announce()
