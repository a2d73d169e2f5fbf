# SPDX-License-Identifier: Apache-2.0
"""The router, the addresses that it answers for, and the ports of a first layer's instances."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

from pipeline.actor.held import Held, Member
from pipeline.host.classifier import pin_root
from pipeline.host.nic import Gateway
from pipeline.host.router import Router, RouterSpec
from pipeline.host.router_link import RouterFacts
from pipeline.policy.model import Instance, IPAddress, LayerId, Service

AT_ONCE = 64        # clients told before the manager looks at something else


class Front:
    """``on_end`` is called when the router has ended."""

    def __init__(self, held: Held, on_end: Callable[[], None]) -> None:
        self._held = held
        self._on_end = on_end
        self._watcher: asyncio.Task[None] | None = None

    # ---- the router's life

    async def start(self) -> None:
        """A router that was there before is told everything again, and binds the same queues."""
        held = self._held
        router = held.router = held.router or self._new()
        facts = await router.start()
        self._know_nic(facts)
        held.placer.router(facts.pid)
        self._tell(held.config.services)
        self._watch()

    async def adopt(self, services: Iterable[Service]) -> None:
        """Takes a former manager's router over, which knows these services; starts one if it is gone."""
        held = self._held
        router = held.router = self._new()
        self._tell(services)
        self._ports_restore(held.config.services)
        self._know_nic(router.adopt() or await router.start())
        self._watch()

    async def stop(self) -> None:
        if self._watcher:
            self._watcher.cancel()
        if self._held.router:
            await self._held.router.stop()

    def close(self) -> None:
        """Lets go of it; the router goes on."""
        if self._watcher:
            self._watcher.cancel()
        if self._held.router:
            self._held.router.close()

    def _new(self) -> Router:
        held = self._held
        return Router(RouterSpec(held.run_dir, held.config.nic, held.queues, pin_root(held.run_dir)), held.holder)

    def _know_nic(self, facts: RouterFacts) -> None:
        """A NIC that DPDK drives is known to the router alone."""
        self._held.nic = replace(self._held.nic, mac=facts.mac, mtu=facts.mtu)

    def _watch(self) -> None:
        router = self._held.router
        assert router

        async def watch() -> None:
            await router.wait()
            self._on_end()

        self._watcher = asyncio.create_task(watch())

    # ---- addresses and routes

    def set_services(self, services: Iterable[Service]) -> None:
        """Of a router that is there: other addresses, and instances that may send from them."""
        if self._held.router:
            self._tell(services)
            self._ports_restore(services)

    def _tell(self, services: Iterable[Service]) -> None:
        assert self._held.router
        self._held.router.nets_set(self._routes())
        self._held.router.vips_set(dict(enumerate(_addresses(services))))

    def _routes(self) -> tuple[Gateway, ...]:
        """As configured, else as the kernel has them on the interface."""
        nic = self._held.config.nic
        if not nic.networks:
            return self._held.nic.routes
        direct = tuple(Gateway(network, None) for network in nic.networks)
        return direct + tuple(Gateway(_everything(g), g) for g in nic.gateways)

    # ---- ports

    def port_announce(self, member: Member) -> None:
        """Of an instance whose driver has the router connect to it: as soon as that listens."""
        if LayerId.TCP in member.instance.layers and member.driver.vhost:
            assert self._held.router
            self._held.router.port_add_vhost(member.instance.vm_id, _vips(self._held.config.services))

    def port_add(self, member: Member) -> None:
        """Of an instance whose driver made a tap: once it is plugged."""
        assert member.running
        tap = member.running.take_tap()
        if tap is not None:
            assert self._held.router
            try:
                self._held.router.port_add(member.instance.vm_id, tap, _vips(self._held.config.services))
            finally:
                os.close(tap)

    async def connections_end(self, instance: Instance) -> None:
        """Tells the clients of a machine that its connections are over: its kernel, which would, has died with it."""
        router, classifier = self._held.router, self._held.classifier
        assert router and classifier
        slots = {address: slot for slot, address in enumerate(_addresses(self._held.config.services))}
        for number, flow in enumerate(await asyncio.to_thread(classifier.connections_of, instance)):
            if flow.address in slots:
                router.reset_send(slots[flow.address], flow.client, flow.client_port, flow.port, flow.ack)
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)

    def port_remove(self, instance: Instance) -> None:
        if self._held.router and LayerId.TCP in instance.layers:
            self._held.router.port_remove(instance.vm_id)

    def _ports_restore(self, services: Iterable[Service]) -> None:
        """Of the instances that have one: with other addresses, or after another manager. One that is starting or being
        plugged gets its port when that is done.
        """
        router = self._held.router
        assert router
        taps = router.taps()
        for vm_id, member in self._held.members.items():
            if not member.running or LayerId.TCP not in member.instance.layers:
                continue
            if member.driver.vhost:
                router.port_add_vhost(vm_id, _vips(services))
            elif vm_id in taps:
                router.port_restore(vm_id, _vips(services))


def _vips(services: Iterable[Service]) -> tuple[int, ...]:
    return tuple(range(len(_addresses(services))))


def _addresses(services: Iterable[Service]) -> list[IPAddress]:
    """All virtual IPs, each once, in an order that does not depend on who asks."""
    return sorted({a for s in services for a in s.addresses}, key=lambda a: (a.version, int(a)))


def _everything(gateway: IPAddress) -> IPv4Network | IPv6Network:
    return IPv4Network("0.0.0.0/0") if gateway.version == 4 else IPv6Network("::/0")
