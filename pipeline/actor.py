# SPDX-License-Identifier: Apache-2.0
"""The one module that acts: each Action of the plan is one method here, and nothing else changes the machine.

An Actor owns what the running swarm is made of (holder connection, edges, instances, router, classifier). It
decides nothing: the manager calls ``perform`` with actions that the plan gave it. Everything that must survive the
manager lies in the holder or in pinned maps, so ``adopt`` can take a swarm over that another manager started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from pipeline.errors import HolderError, LaunchError, SwarmlineError
from pipeline.host import keys, namespaces, processes
from pipeline.host.certs import POOL_KEY_LEN, KeyPair, TicketKey, self_signed
from pipeline.host.classifier import Classifier, mount_pins, pin_root
from pipeline.host.control import (
    Assignment,
    Command,
    ControlRegion,
    EdgeSeat,
    GuestClock,
    Report,
    RouteEntry,
    ServiceSeat,
)
from pipeline.host.doorbells import Doorbells, ring
from pipeline.host.edges import EdgeMemory
from pipeline.host.holder_client import HolderClient, InstanceFds
from pipeline.host.memory import sealed_memfd
from pipeline.host.nic import Gateway, NicFacts, facts_of
from pipeline.host.pins import MAGLEV_SIZE
from pipeline.host.placer import Placer
from pipeline.host.router import Router, RouterFacts, RouterSpec
from pipeline.host.tap import TapSpec
from pipeline.instances.conf import ConfItem, Secrets, conf_items
from pipeline.instances.driver import Driver, EdgeGrant, InstanceSpec, Outfit, Running
from pipeline.instances.process import ProcessDriver
from pipeline.instances.qemu import QemuDriver
from pipeline.policy import plan
from pipeline.policy.config import Config
from pipeline.policy.model import Driver as DriverName
from pipeline.policy.model import Edge, Instance, IPAddress, Layer, LayerId, RoutingTable, Service, Slot, Swarm, VmState
from pipeline.policy.routing import maglev_table, next_table

FAREWELL = 0.05          # seconds for the last frames of a tcp instance
STOP_TIMEOUT = 1.0       # seconds for an instance to end by itself once told so
LET_GO_TIMEOUT = 3.0     # seconds for an instance to let go of a layer
LOOK = 0.001             # seconds between two looks whether it has


@dataclass
class Member:
    """A started instance, with all that the manager holds of it."""

    instance: Instance
    fds: InstanceFds
    control: ControlRegion
    seats: tuple[Slot, ...] = ()     # its edges, in the order of its assignment
    running: Running | None = None
    watcher: asyncio.Task[None] | None = None
    plugging: asyncio.Task[None] | None = None


class Actor:
    """``on_news`` is called when an instance rings or ends, ``on_end(vm_id)`` when its process has ended."""

    def __init__(self, run_dir: Path, config: Config, on_news: Callable[[], None], on_end: Callable[[int], None],
                 on_router_end: Callable[[], None]) -> None:
        self.run_dir = run_dir
        self.config = config
        self.holder = HolderClient(run_dir)
        self.nic: NicFacts = facts_of(config.nic)
        self.members: dict[int, Member] = {}
        self.edges: dict[str, EdgeMemory] = {}
        self.classifier: Classifier | None = None
        self.router: Router | None = None
        self._router_watcher: asyncio.Task[None] | None = None
        self._drivers: dict[DriverName, Driver] = {DriverName.PROCESS: ProcessDriver(), DriverName.QEMU: QemuDriver()}
        self._doorbells = Doorbells(self._rung)
        self._on_news, self._on_end, self._on_router_end = on_news, on_end, on_router_end
        self._secrets = Secrets()
        self._routing = RoutingTable()
        self._tables: dict[int, tuple[tuple[int, int], ...]] = {}
        self._trace_every = 0
        self._placer = Placer(config)

    # ---- life

    def open(self) -> str:
        """Before the first action: doorbells, the classifier's maps, secrets. Returns what ``configure`` does."""
        asyncio.get_running_loop().add_reader(self._doorbells, self._doorbells.ready)
        self.classifier = Classifier.load(mount_pins(self.run_dir))
        self.classifier.set_queues(self.queues)
        return self.configure(self.config)

    async def prepare(self) -> list[str]:
        """Before the first instance of a swarm: what the operator should know."""
        remarks = []
        for name, driver in self._drivers.items():
            if layers := [layer for layer in self.config.layers if layer.driver is name]:
                remarks.append(await driver.prepare(layers, self.config.app.root))
        return list(filter(None, remarks))

    def configure(self, config: Config) -> str:
        """Takes over another configuration: it counts for what is started from now on. Returns a digest of the keys and
        certificates, by which the plan tells instances that have older ones. Raises SwarmlineError, with nothing
        changed, if a file cannot be read.
        """
        self._secrets = self._load_secrets(config)
        self.config = config
        self._placer.configure(config)
        return sha256(b"".join(pair.cert + pair.key for pair in self._secrets.key_pairs)).hexdigest()[:12]

    @property
    def queues(self) -> int:
        return self.config.nic.queues or self.nic.rx_queues

    @property
    def mtu(self) -> int:
        return self.config.nic.mtu or self.nic.mtu

    def close(self) -> None:
        """Lets go of everything; the swarm goes on."""
        asyncio.get_running_loop().remove_reader(self._doorbells)
        for member in self.members.values():
            for task in (member.watcher, member.plugging):
                if task:
                    task.cancel()
            if member.running:
                member.running.close()
        if self._router_watcher:
            self._router_watcher.cancel()
        if self.router:
            self.router.close()
        if self.classifier:
            self.classifier.close()
        self.holder.close()

    def remember(self, swarm: Swarm) -> None:
        """Leaves the plan's state with the holder, for a manager that comes after this one."""
        self._keep(keys.SWARM, pickle.dumps(swarm))

    def recall(self) -> Swarm | None:
        """What a former manager left; None: there was none."""
        if keys.SWARM not in self.holder.fd_list():
            return None
        swarm = pickle.loads(_memfd_read(self.holder.fd_get(keys.SWARM)[0]))  # written by remember() alone
        assert isinstance(swarm, Swarm)
        return swarm

    async def adopt(self, swarm: Swarm) -> None:
        """Takes over the edges, instances, router and maps of a former manager. Instances that are gone are reported as
        ended.
        """
        self._routing = swarm.routing
        for edge in swarm.edges:
            self.edges[edge.name] = EdgeMemory.adopt(self.holder, edge)
        for instance in swarm.instances:
            await self._adopt_instance(instance)
        if swarm.router:
            self.router = self._new_router()
            self._router_tell(swarm.services)
            for member in self.members.values():
                self._port_restore(member, self.config.services)
            self._know_nic(self.router.adopt() or await self.router.start())
            self._watch_router()

    async def _adopt_instance(self, instance: Instance) -> None:
        try:
            fds = self.holder.instance_get(instance.vm_id)
        except HolderError:
            self._on_end(instance.vm_id)
            return
        member = Member(instance, fds, self._control(instance, fds), instance.slots)
        self.members[instance.vm_id] = member
        self._doorbells.add(instance.vm_id, fds.manager)
        pid = instance.pid or self._pid_of(instance.vm_id)
        key = keys.GRANTS.format(instance.vm_id)
        grants = self.holder.fd_get(key)[0] if key in self.holder.fd_list() else -1
        member.running = await self._driver(instance).adopt(self._spec(member, instance), pid, grants) if pid else None
        if member.running and instance.layers:
            self._placer.instance(instance.vm_id, instance.layers[0], member.running.pid)
        if member.running and instance.state is not VmState.BOOTING:      # a start that was cut off is not gone on with
            member.watcher = asyncio.create_task(self._watch(member))
        else:
            self._on_end(instance.vm_id)

    def _driver(self, instance: Instance) -> Driver:
        return self._drivers[instance.driver]

    def _control(self, instance: Instance, fds: InstanceFds) -> ControlRegion:
        clock = GuestClock() if instance.driver is DriverName.QEMU else None
        return ControlRegion(fds.control, instance.vm_id, clock=clock)

    def _rung(self, vm_id: int) -> None:
        member = self.members.get(vm_id)
        if member and member.running and not member.running.booted.is_set() and member.control.report():
            member.running.booted.set()
        self._on_news()

    def _pid_of(self, vm_id: int) -> int | None:
        """Of an instance whose start the former manager did not live to note."""
        return next((p.pid for p in processes.find(self.run_dir) if f"--vm-id={vm_id}" in p.argv), None)

    # ---- actions

    async def perform(self, action: plan.Action, wanted: Swarm) -> None:
        """Does it, or raises SwarmlineError. ``wanted`` is the swarm that the plan aims at."""
        match action:
            case plan.CreateEdge(edge):
                self.edges[edge.name] = memory = EdgeMemory.create(self.holder, edge)
                self._placer.edge(edge.name, memory.fd, memory.length)
            case plan.RemoveEdge(edge):
                self.edges.pop(edge.name).close()
                self.holder.edge_remove(edge.id)
            case plan.StartRouter():
                await self._start_router()
            case plan.StopRouter():
                await self._stop_router()
            case plan.StartInstance(instance):
                await self._start_instance(instance)
            case plan.AssignInstance(instance, _):
                await self._assign_instance(instance)
            case plan.ActivateInstance(instance):
                self.command(instance.vm_id, Command.RUN)
            case plan.DrainInstance(instance, _):
                self.command(instance.vm_id, Command.DRAIN)
            case plan.StopInstance(instance):
                await self._stop_instance(instance)
            case plan.SetRoutes(table):
                self._set_routes(table, wanted)
            case plan.SetServices(services):
                self._set_services(services)
            case plan.AttachClassifier() | plan.DetachClassifier() if self.config.nic.devargs:
                pass        # the router classifies: it looks into the same maps
            case plan.AttachClassifier(interface):
                assert self.classifier
                classifier = self.classifier
                namespaces.run_in(self.config.nic.netns, lambda: classifier.attach(interface))
            case plan.DetachClassifier():
                assert self.classifier
                self.classifier.detach()

    def command(self, vm_id: int, command: Command) -> None:
        """Gives an instance a command and rings it."""
        member = self.members[vm_id]
        member.control.command(command)
        ring(member.fds.doorbell)

    def runnable(self, vm_id: int) -> bool:
        """Whether the instance only lacks a CPU."""
        member = self.members.get(vm_id)
        return member is not None and member.running is not None and member.running.process.runnable

    def reports(self) -> dict[int, Report]:
        """What each instance says of itself now."""
        found = {}
        for vm_id, member in self.members.items():
            if (report := member.control.report()) is not None:
                found[vm_id] = report
                if member.running:
                    member.running.booted.set()
        return found

    def last_words(self, vm_id: int) -> str:
        """What is known of an instance's end besides its own report."""
        member = self.members.get(vm_id)
        return member.running.why if member and member.running else ""

    def trace_every_set(self, every: int) -> None:
        """The first layers trace one request in so many; 0: none."""
        self._trace_every = every
        for member in self.members.values():
            member.control.trace_every_set(every)
            ring(member.fds.doorbell)

    # ---- instances

    async def _start_instance(self, instance: Instance) -> None:
        vm_id = instance.vm_id
        fds = self.holder.instance_add(vm_id)
        control = self._control(instance, fds)
        control.format(trace_every=self._trace_every, spin_us=0)
        member = Member(replace(instance, layers=(), slots=()), fds, control)
        self.members[vm_id] = member
        self._doorbells.add(vm_id, fds.manager)
        try:
            member.running = await self._driver(instance).start(self._spec(member, instance))
        except LaunchError:
            self._forget(vm_id)
            raise
        if member.running.grants >= 0:
            self.holder.fd_put(keys.GRANTS.format(vm_id), [member.running.grants])
        member.watcher = asyncio.create_task(self._watch(member))
        if instance.layers:
            self._give(member, instance)

    async def _assign_instance(self, instance: Instance) -> None:
        member = self.members[instance.vm_id]
        if member.instance.layers:
            await self._take_away(member)
        self._give(member, instance)

    def _give(self, member: Member, instance: Instance) -> None:
        """The assignment, then what it needs: the instance takes it when it has both."""
        member.instance, member.seats = instance, instance.slots
        if member.running:
            self._placer.instance(instance.vm_id, instance.layers[0], member.running.pid)
        assignment = self._assignment(instance)
        number = member.control.assign(assignment, self._conf(instance))
        self._write_routes(member, self._routing)
        self._announce()
        self._vhost_add(member)
        ring(member.fds.doorbell)
        member.plugging = asyncio.create_task(self._plug(member, self._outfit(instance, number, assignment)))

    def _outfit(self, instance: Instance, number: int, assignment: Assignment) -> Outfit:
        grants = tuple(EdgeGrant(self.edges[s.edge].edge_id, self.edges[s.edge].fd) for s in instance.slots)
        tap = TapSpec(self.nic.mac, self.mtu) if LayerId.TCP in instance.layers else None
        root = self.config.app.root if LayerId.APP in instance.layers else None
        return Outfit(number, assignment, grants, tap, self.config.tcp.backlog, root)

    async def _plug(self, member: Member, outfit: Outfit) -> None:
        assert member.running
        try:
            await self._driver(member.instance).plug(member.running, outfit)
            self._tap_take(member)
        except SwarmlineError as error:
            member.running.why = error.explain()
            member.running.kill()

    def _tap_take(self, member: Member) -> None:
        assert member.running
        tap = member.running.take_tap()
        if tap is not None:
            assert self.router
            try:
                self.router.port_add(member.instance.vm_id, tap, self._vips(self.config.services))
            finally:
                os.close(tap)

    async def _take_away(self, member: Member) -> None:
        """The instance lets go of its layer, and nobody counts on it any more."""
        assert member.running
        if member.plugging:
            await member.plugging
        former, member.seats = member.instance, ()
        nothing = Assignment(LayerId.NONE, ())
        number = member.control.assign(nothing, [])
        ring(member.fds.doorbell)
        try:
            async with asyncio.timeout(LET_GO_TIMEOUT):
                while (report := member.control.report()) is None or report.assignment_seen != number:
                    if not member.running.alive:
                        raise TimeoutError
                    await asyncio.sleep(LOOK)
        except TimeoutError:
            raise LaunchError(f"{former} does not let go of its layer", argv=(), vm_id=former.vm_id) from None
        await self._farewell(former)
        await self._driver(former).unplug(member.running, self._outfit(former, number, nothing))
        self._announce()

    async def _farewell(self, instance: Instance) -> None:
        """The kernel of a first layer's instance has just told every client that its connection is over: the router
        shall carry that out before the port is gone.
        """
        if LayerId.TCP in instance.layers:
            await asyncio.sleep(FAREWELL)
            self._port_remove(instance)

    async def _watch(self, member: Member) -> None:
        assert member.running
        await member.running.wait()
        self._on_end(member.instance.vm_id)

    async def _stop_instance(self, instance: Instance) -> None:
        vm_id = instance.vm_id
        member = self.members.get(vm_id)
        if member is None:
            return
        if member.plugging:
            member.plugging.cancel()
        if member.watcher:
            member.watcher.cancel()
            await asyncio.wait([member.watcher])       # as it ends it lets go of the pidfd that is waited for below
        if member.running:
            if instance.state is not VmState.FAILED:       # one that failed would not hear it
                self.command(vm_id, Command.STOP)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(STOP_TIMEOUT):
                        await member.running.wait()
            await self._driver(member.instance).stop(member.running)
        await self._farewell(member.instance)
        self._forget(vm_id)

    def _vhost_add(self, member: Member) -> None:
        if LayerId.TCP in member.instance.layers and self._driver(member.instance).vhost:
            assert self.router
            self.router.port_add_vhost(member.instance.vm_id, self._vips(self.config.services))

    def _port_restore(self, member: Member, services: Iterable[Service]) -> None:
        """Of an instance that is there: with other addresses, or after another manager."""
        assert self.router
        if LayerId.TCP in member.instance.layers:
            vhost = self._driver(member.instance).vhost
            declare = self.router.port_add_vhost if vhost else self.router.port_restore
            declare(member.instance.vm_id, self._vips(services))

    def _port_remove(self, instance: Instance) -> None:
        if self.router and LayerId.TCP in instance.layers:
            self.router.port_remove(instance.vm_id)

    def _forget(self, vm_id: int) -> None:
        member = self.members.pop(vm_id)
        self._placer.gone(vm_id)
        self._doorbells.remove(member.fds.manager)
        self.holder.instance_remove(vm_id)
        if (key := keys.GRANTS.format(vm_id)) in self.holder.fd_list():
            self.holder.fd_remove(key)
        member.control.close()
        member.fds.close()
        self._announce()

    def _spec(self, member: Member, instance: Instance) -> InstanceSpec:
        """``instance``: what it is to become."""
        app = self.config.app.root if self._in_vm(LayerId.APP) else None
        mine = instance.layers
        pools = [p for p in self.config.layers if p.driver is instance.driver and (p.id in mine or not mine)]
        return InstanceSpec(
            instance.vm_id, self.run_dir, member.fds.facts.socket, Path(app) if app else None,
            max((p.memory for p in pools), default=Layer.memory), pools[0].cpus if mine and pools else ())

    def _in_vm(self, layer: LayerId) -> bool:
        return any(p.id is layer and p.driver is DriverName.QEMU for p in self.config.layers)

    def _conf(self, instance: Instance) -> list[ConfItem]:
        """The layer's configuration, with paths as the instance sees them."""
        root = self.config.app.root
        app = replace(self.config.app, root=self._driver(instance).place(root) if root else None)
        return conf_items(replace(self.config, app=app), instance.layers[0], self._secrets_for(instance))

    def _assignment(self, instance: Instance) -> Assignment:
        layer = instance.layers[0]
        seats = tuple(EdgeSeat(memory.edge_id, instance.incarnation, slot.index, slot.side, _across(memory.edge, layer))
                      for slot in instance.slots if (memory := self.edges[slot.edge]))
        count = max((s.index for s in self.config.services), default=-1) + 1
        services: list[ServiceSeat | None] = [None] * count
        for service in self.config.services:
            if layer in service.chain.layers:
                services[service.index] = ServiceSeat(
                    service.name, service.addresses, service.port, service.protocol,
                    _next_edge(service, layer, instance.slots))
        return Assignment(layer, seats, tuple(services), self.nic.mac, self.mtu)

    # ---- routes

    def _set_routes(self, table: RoutingTable, wanted: Swarm) -> None:
        self._routing = table
        self._announce()
        for member in self.members.values():
            self._write_routes(member, table)
            ring(member.fds.doorbell)
        assert self.classifier
        self.classifier.set_vms((m.instance for m in self._with_states(wanted)), table)
        for service in self.config.services:
            self._set_table(service.index, table.active(service.chain.layers[0]))

    def _with_states(self, wanted: Swarm) -> Iterable[Member]:
        """Members with the state that they will have after this plan."""
        for member in self.members.values():
            instance = wanted.instance(member.instance.vm_id)
            if instance is not None and instance.incarnation == member.instance.incarnation:
                member.instance = instance
                if instance.layers:
                    yield member

    def _set_table(self, service: int, entries: Sequence[tuple[int, int]]) -> None:
        """Another table, made from the one that counts now (a former manager's, perhaps), so that as few new flows as
        possible get another instance.
        """
        key = tuple(sorted(entries))
        if self._tables.get(service) == key:
            return
        assert self.classifier
        old = self.classifier.table(service)
        known = old is not None and any(old)
        tell = self.router.table_set if self.router and self.config.nic.devargs else None
        table = next_table(old, key) if old and known else maglev_table(key, MAGLEV_SIZE)
        self.classifier.set_table(service, table, tell)
        self._tables[service] = key

    def _write_routes(self, member: Member, table: RoutingTable) -> None:
        for index, seat in enumerate(member.seats):
            edge = self.edges[seat.edge].edge
            across = _across(edge, member.instance.layers[0])
            entries = [RouteEntry(route.vm_id, peer.instance.incarnation, slot.index, route.weight, route.state)
                       for route in table.of(across)
                       if (peer := self.members.get(route.vm_id)) is not None
                       for slot in peer.seats if slot.edge == seat.edge]
            member.control.routes_set(index, table.epoch, entries)

    def _announce(self) -> None:
        """Each instance may ring those across its edges, and nobody else."""
        for vm_id, member in self.members.items():
            edges = {slot.edge: slot.side for slot in member.seats}
            peers = [other for other, m in self.members.items()
                     if any(slot.edge in edges and slot.side is not edges[slot.edge] for slot in m.seats)]
            self.holder.instance_peers(vm_id, peers)

    # ---- router and services

    def _new_router(self) -> Router:
        return Router(RouterSpec(self.run_dir, self.config.nic, self.queues, pin_root(self.run_dir)), self.holder)

    def _know_nic(self, facts: RouterFacts) -> None:
        """A NIC that DPDK drives is known to the router alone."""
        self.nic = replace(self.nic, mac=facts.mac, mtu=facts.mtu)

    async def _start_router(self) -> None:
        self.router = self.router or self._new_router()
        facts = await self.router.start()
        self._know_nic(facts)
        self._placer.router(facts.pid)
        self._router_tell(self.config.services)
        self._watch_router()

    def _watch_router(self) -> None:
        router = self.router
        assert router

        async def watch() -> None:
            await router.wait()
            self._on_router_end()

        self._router_watcher = asyncio.create_task(watch())

    async def _stop_router(self) -> None:
        if self._router_watcher:
            self._router_watcher.cancel()
        if self.router:
            await self.router.stop()

    async def restart_router(self) -> None:
        """After its death. It binds the same queues and is told everything again; connections live on."""
        await self._start_router()

    def _router_tell(self, services: Iterable[Service]) -> None:
        assert self.router
        self.router.nets_set(self._routes())
        self.router.vips_set(dict(enumerate(_addresses(services))))

    def _routes(self) -> tuple[Gateway, ...]:
        """As configured, else as the kernel has them on the interface."""
        nic = self.config.nic
        if not nic.networks:
            return self.nic.routes
        direct = tuple(Gateway(network, None) for network in nic.networks)
        return direct + tuple(Gateway(_everything(g), g) for g in nic.gateways)

    def _vips(self, services: Iterable[Service]) -> tuple[int, ...]:
        return tuple(range(len(_addresses(services))))

    def _set_services(self, services: Sequence[Service]) -> None:
        if self.router and services:
            self._router_tell(services)
            for member in self.members.values():
                self._port_restore(member, services)
        assert self.classifier
        self.classifier.set_services(services)

    # ---- secrets

    def _secrets_for(self, instance: Instance) -> Secrets:
        return self._secrets if LayerId.TLS in instance.layers else Secrets()

    def _load_secrets(self, config: Config) -> Secrets:
        """Keys: files are read anew each time; what was made for this swarm is in the holder's memory, never on a
        disk.
        """
        pairs = [KeyPair(_file(c.cert, "certificate"), _file(c.key, "key")) for c in config.tls.certificates]
        known = keys.TLS_SECRETS in self.holder.fd_list()
        made: tuple[dict[str, KeyPair], list[TicketKey], bytes] = ({}, [TicketKey.fresh()], os.urandom(POOL_KEY_LEN))
        if known:
            made = pickle.loads(_memfd_read(self.holder.fd_get(keys.TLS_SECRETS)[0]))   # written below
        missing = [name for name in config.tls.self_signed if name not in made[0]]
        made[0].update({name: self_signed([name]) for name in missing})
        if missing or not known:
            self._keep(keys.TLS_SECRETS, pickle.dumps(made))
        return Secrets((*pairs, *(made[0][name] for name in config.tls.self_signed)), made[1], made[2])

    def _keep(self, key: str, memory: bytes) -> None:
        """Bytes that must survive the manager and must not be written to a disk."""
        fd = sealed_memfd(f"sl-{key}", max(len(memory), 1))
        try:
            os.pwrite(fd, memory, 0)
            self.holder.fd_put(key, [fd])      # at once in the place of the former one
        finally:
            os.close(fd)


def _file(path: object, what: str) -> bytes:
    try:
        return Path(str(path)).read_bytes()
    except OSError as error:
        raise SwarmlineError(f"cannot read the {what} {path}: {error.strerror}",
                             hint="see `certificates` in [layer.tls]") from error


def _memfd_read(fd: int) -> bytes:
    try:
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _across(edge: Edge, layer: LayerId) -> LayerId:
    return edge.back if edge.front == layer else edge.front


def _next_edge(service: Service, layer: LayerId, slots: Sequence[Slot]) -> int:
    """Index of the seat on which the service's flows go on behind this layer; -1: it is the last."""
    names: Mapping[str, int] = {slot.edge: n for n, slot in enumerate(slots)}
    for front, back in service.chain.pairs():
        if front is layer:
            return names[f"{front.label}-{back.label}"]
    return -1


def _addresses(services: Iterable[Service]) -> list[IPAddress]:
    """All virtual IPs, each once, in an order that does not depend on who asks."""
    return sorted({a for s in services for a in s.addresses}, key=lambda a: (a.version, int(a)))


def _everything(gateway: IPAddress) -> IPv4Network | IPv6Network:
    return IPv4Network("0.0.0.0/0") if gateway.version == 4 else IPv6Network("::/0")
