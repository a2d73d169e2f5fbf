# SPDX-License-Identifier: Apache-2.0
"""The Front-End Router: starts swarmline-router, tells it what it must know, reads its counters.

A router that was started again knows nothing, and says so by its start time. So this side keeps what the
router should know, and repeats it whenever that time changes. The taps that belong to it lie in the holder
(key ``tap-VMID``): a manager that was started again has them too. To a virtual machine the router connects by
itself, at ``vhost/VMID/net`` in the run folder.
"""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from pipeline._native import lib
from pipeline.errors import HolderError, NoRouter, RouterError, RouterLost
from pipeline.host import namespaces, processes, router_counters, vhost
from pipeline.host.assignment import mapped
from pipeline.host.holder_client import HolderClient
from pipeline.host.memory import sealed_memfd
from pipeline.host.nic import Gateway
from pipeline.host.processes import Process
from pipeline.host.router_counters import PortCounters
from pipeline.host.router_link import RouterFacts, RouterLink
from pipeline.policy.model import IPAddress
from pipeline.policy.settings import Nic

PROGRAM = "swarmline-router"
PROGRAM_DPDK = "swarmline-router-dpdk"
ROUTER_UID = 699_999           # user and group; those of instances begin above
START_TIMEOUT = 10.0           # seconds until a new router answers
RETRY = 0.01
COUNTERS_KEY = "router-counters"
TAP_KEY = "tap-"               # and the VMID


@dataclass(frozen=True)
class RouterSpec:
    """What the program is started with. ``pins``: the folder of the classifier's."""

    run_dir: Path
    nic: Nic
    queues: int
    pins: Path

    @property
    def argv(self) -> list[str]:
        """The program for this kind of NIC, and what it must know of it."""
        if not self.nic.devargs:
            return [str(processes.program(PROGRAM)), f"--ifname={self.nic.interface}", f"--queues={self.queues}",
                    f"--xskmap={self.pins / 'xsks'}"]
        mtu = [f"--mtu={self.nic.mtu}"] if self.nic.mtu else []
        return [str(processes.program(PROGRAM_DPDK)), f"--device={self.nic.devargs}", f"--pins={self.pins}",
                *mtu, *(f"--eal={word}" for word in self.nic.eal)]

    @property
    def log_path(self) -> Path:
        return self.run_dir / "log" / "router.log"

    @property
    def socket_path(self) -> Path:
        return self.run_dir / "router.sock"


@dataclass(frozen=True)
class _Port:
    """What the router is told of an instance's port. ``vips``: mask of the slots that it may send from."""

    vips: int
    is_vhost: bool


class Router:
    """One router and what it should know. Calls are short and block: an answer takes some 10 µs.

    What is declared while there is no router is told to the next one.
    """

    def __init__(self, spec: RouterSpec, holder: HolderClient) -> None:
        self._spec = spec
        self._holder = holder
        self._link = RouterLink(spec.socket_path)
        self._known_start = 0                          # start_ns of the router that knows what is below
        self._vips: dict[int, IPAddress] = {}          # slot -> address
        self._nets: tuple[Gateway, ...] = ()
        self._removed: set[int] = set()                # ports that a living router may still have
        self._ports: dict[int, _Port] = {}             # by vm_id
        self.process: Process | None = None

    # ---- life

    async def start(self) -> RouterFacts:
        """Starts the program in the NIC's namespace and waits until it answers; then repeats what it should
        know.

        Raises RouterError with the router's last words.
        """
        self.close()
        counters = self._counters_fd()
        argv = [*self._spec.argv, processes.run_dir_argument(self._spec.run_dir), f"--counters-fd={counters}",
                f"--uid={ROUTER_UID}", f"--gid={ROUTER_UID}"]
        self._spec.log_path.parent.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            log = os.open(self._spec.log_path, flags, 0o600)
            try:
                child = namespaces.spawn_in(
                    self._spec.nic.netns, argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                    pass_fds=(counters,), start_new_session=True, env=processes.environment())
            finally:
                os.close(log)
        except OSError as error:
            raise RouterError(f"cannot run {argv[0]}: {error.strerror}") from error
        finally:
            os.close(counters)
        facts = await self._answer_of(child)
        self.process = Process.of(child.pid)
        child.returncode = 0        # watched by pidfd, reaped by `reap`: not Popen's to warn about
        return facts

    def adopt(self) -> RouterFacts | None:
        """Connects to the router of a former manager; None if there is none that answers.

        It is told all anew, so the caller declares first what it should know; ports of instances that are
        gone are closed.
        """
        self.close()
        try:
            facts = self.ping()
        except RouterError:
            return None
        self.process = Process.of(facts.pid)
        for vm_id in (self.taps() | vhost.folders(self._spec.run_dir)) - set(self._ports):
            self.port_remove(vm_id)
        return facts

    async def wait(self) -> None:
        """Returns when the router has ended."""
        if self.process:
            await self.process.wait()
            self.reap()

    def reap(self) -> None:
        """Takes the exit status of an ended router that this process started."""
        if self.process:
            try:
                os.waitpid(self.process.pid, os.WNOHANG)
            except ChildProcessError:
                return          # a former manager's child: the holder reaps it

    async def stop(self) -> None:
        """Ends the router; frames are lost, connections are not."""
        self.close()
        if self.process:
            self.process.kill()
            await self.wait()
            self.process = None
        self._spec.socket_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Hangs up; the router goes on."""
        self._link.close()

    # ---- what it should know

    def ping(self) -> RouterFacts:
        """Facts. If the router is a new one, it is told everything again."""
        return self._request(lib.SL_RTR_PING)

    def vips_set(self, vips: Mapping[int, IPAddress]) -> None:
        """Slot -> virtual IP; slots that are not named become empty."""
        old, self._vips = self._vips, dict(vips)
        with suppress(NoRouter):
            for slot, address in old.items():
                if vips.get(slot) != address:      # first: no address may be in two slots
                    self._request(lib.SL_RTR_VIP_DEL, tolerate=errno.ENOENT, slot=slot)
            for slot, address in vips.items():
                self._vip_add(slot, address)

    def nets_set(self, nets: Iterable[Gateway]) -> None:
        """All routes of the interface. Neighbours are learnt anew if one was removed."""
        old, self._nets = self._nets, tuple(nets)
        with suppress(NoRouter):
            if set(old) - set(self._nets):
                self._request(lib.SL_RTR_NET_CLEAR)
            for net in self._nets:
                self._net_add(net)

    def port_add(self, vm_id: int, tap: int, slots: Iterable[int]) -> None:
        """Gives the router an instance's tap and the slots of the addresses that the instance may send from.

        The holder keeps a copy of the tap; the caller may close its own.
        """
        self._holder.fd_put(f"{TAP_KEY}{vm_id}", [tap])
        self._port_put(vm_id, _Port(_mask(slots), is_vhost=False), tap)

    def port_add_vhost(self, vm_id: int, slots: Iterable[int]) -> None:
        """Gives the router a virtual machine's virtio-net device; see ``vhost.folder_make``.

        For instances that a former manager started, too: the router keeps the link that it has.
        """
        vhost.admit(self._spec.run_dir, vm_id, ROUTER_UID)
        self._port_put(vm_id, _Port(_mask(slots), is_vhost=True))

    def port_restore(self, vm_id: int, slots: Iterable[int]) -> None:
        """As port_add, with the tap that the holder has: for instances that a former manager started.

        Before ``adopt`` or ``start`` it only notes the port.
        """
        self._ports[vm_id] = _Port(_mask(slots), is_vhost=False)
        if self._link.up:
            self._port_restore(vm_id)

    def taps(self) -> set[int]:
        """The VMIDs of instances whose tap is there. One that is starting has none yet."""
        keys = (key.removeprefix(TAP_KEY) for key in self._holder.fd_list() if key.startswith(TAP_KEY))
        return {int(vm_id) for vm_id in keys}

    def port_remove(self, vm_id: int) -> None:
        """Forgets the instance's port, here, in the router and in the holder. A tap is gone then; the folder of a
        virtual machine, which may get another port, stays as long as that, closed to the router.
        """
        self._ports.pop(vm_id, None)
        self._removed.add(vm_id)
        self._holder.fd_remove(f"{TAP_KEY}{vm_id}")
        vhost.shut_out(self._spec.run_dir, vm_id)
        with suppress(NoRouter):
            self._ports_del()

    def reset_send(self, slot: int, client: IPAddress, client_port: int, service_port: int, tcp_seq: int) -> None:
        """Ends a connection of an instance that can not tell its client any more, from the address in this slot, if
        there is a router that can reach the client.
        """
        with suppress(RouterError):
            self._request(lib.SL_RTR_RESET, slot=slot, addr=list(mapped(client)), client_port=client_port,
                          service_port=service_port, tcp_seq=tcp_seq)

    def table_set(self, service: int, table: int) -> None:
        """Gives a router that classifies by itself another table. A router that is started reads them itself."""
        with suppress(NoRouter):
            self._request(lib.SL_RTR_TABLE_SET, table, slot=service)

    # ---- counters

    def counters(self) -> tuple[dict[str, int], dict[int, PortCounters]]:
        """Totals by name, and the ports of which there is something to tell. Works without a living router."""
        fd = self._counters_fd()
        try:
            return router_counters.read(fd)
        finally:
            os.close(fd)

    def _counters_fd(self) -> int:
        if COUNTERS_KEY in self._holder.fd_list():
            return self._holder.fd_get(COUNTERS_KEY)[0]
        fd = sealed_memfd("sl-router-counters", router_counters.LEN)
        self._holder.fd_put(COUNTERS_KEY, [fd])
        return fd

    # ---- one request

    async def _answer_of(self, child: subprocess.Popen[bytes]) -> RouterFacts:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while child.poll() is None:
                    try:
                        facts = self.ping()
                    except RouterError:
                        self.close()
                        await asyncio.sleep(RETRY)
                        continue
                    if facts.pid == child.pid:
                        return facts
                    self.close()
                    raise self._error(f"another router (process {facts.pid}) serves {self._spec.socket_path}")
        except BaseException as error:
            child.kill()
            child.wait()
            if isinstance(error, TimeoutError):
                raise self._error(f"the router did not answer within {START_TIMEOUT:g} s") from None
            raise
        raise self._error(f"the router did not start (exit status {child.returncode})")

    def _error(self, message: str) -> RouterError:
        last = processes.log_tail(self._spec.log_path, 1)
        return RouterError(f"{message}{': ' if last else ''}{''.join(last)}",
                           hint=f"its log is {self._spec.log_path}")

    def _request(self, kind: int, fd: int | None = None, tolerate: int = 0, **fields: Any) -> RouterFacts:
        """One exchange. A router that is not the one of the last exchange is told everything first."""
        try:
            if not self._link.up:
                self._link.open()
                self._greet()
            return self._link.exchange(kind, fd, tolerate, **fields)
        except RouterLost:
            self._known_start = 0      # what was asked may or may not have been carried out
            raise

    def _greet(self) -> None:
        facts = self._link.exchange(lib.SL_RTR_PING)
        if facts.start_ns == self._known_start:
            return
        self._ports_del()
        for slot, address in self._vips.items():
            self._vip_add(slot, address)
        for net in self._nets:
            self._net_add(net)
        for vm_id in list(self._ports):
            try:
                self._port_restore(vm_id)
            except NoRouter:
                raise
            except (HolderError, RouterError):
                del self._ports[vm_id]      # its tap is gone, so the instance is
        self._known_start = facts.start_ns

    def _vip_add(self, slot: int, address: IPAddress) -> None:
        self._request(lib.SL_RTR_VIP_ADD, slot=slot, addr=list(mapped(address)))

    def _net_add(self, net: Gateway) -> None:
        prefix, length = _prefix(net.network)
        via = mapped(net.via) if net.via else bytes(16)
        self._request(lib.SL_RTR_NET_ADD, prefix_len=length, addr=list(prefix), gateway=list(via))

    def _port_put(self, vm_id: int, port: _Port, tap: int | None = None) -> None:
        self._ports[vm_id] = port
        self._removed.discard(vm_id)
        with suppress(NoRouter):
            self._port_add(vm_id, tap)

    def _port_add(self, vm_id: int, tap: int | None = None) -> None:
        port = self._ports[vm_id]
        kind = lib.SL_RTR_PORT_ADD_VHOST if port.is_vhost else lib.SL_RTR_PORT_ADD
        self._request(kind, tap, vm_id=vm_id, vips=port.vips)

    def _port_restore(self, vm_id: int) -> None:
        if self._ports[vm_id].is_vhost:
            self._port_add(vm_id)
            return
        tap = self._holder.fd_get(f"{TAP_KEY}{vm_id}")[0]
        try:
            self._port_add(vm_id, tap)
        finally:
            os.close(tap)

    def _ports_del(self) -> None:
        for vm_id in list(self._removed):
            self._request(lib.SL_RTR_PORT_DEL, tolerate=errno.ENOENT, vm_id=vm_id)
            self._removed.discard(vm_id)


def _mask(slots: Iterable[int]) -> int:
    mask = 0
    for slot in slots:
        mask |= 1 << slot
    return mask


def _prefix(network: IPv4Network | IPv6Network) -> tuple[bytes, int]:
    return mapped(network.network_address), network.prefixlen + (96 if network.version == 4 else 0)
