# SPDX-License-Identifier: Apache-2.0
"""The manager's side of the router: what it is told, when, and what is told again."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import pytest
from pipeline._native import lib
from system.holder_rig import MAC

from pipeline.errors import RouterError
from pipeline.host import namespaces
from pipeline.host.holder_client import HolderClient
from pipeline.host.nic import Gateway
from pipeline.host.router import Router, RouterSpec
from pipeline.host.tap import TapSpec, tap_create
from pipeline.policy.settings import Nic

pytestmark = [pytest.mark.root, pytest.mark.netns]


@pytest.fixture
def router(holder: HolderClient, run_dir: Path, netns: Callable[[], str],
           monkeypatch: pytest.MonkeyPatch) -> Iterator[Router]:
    made = Router(RouterSpec(run_dir, Nic("sl-nic0", netns()), 2, Path("/nonexistent")), holder)
    monkeypatch.setattr("pipeline.host.router_link.ANSWER_TIMEOUT", 0.2)
    yield made
    made.close()


def requests_of(router: Router) -> list[list[str]]:
    """What the stand-in was asked, since the last call."""
    path = router._spec.log_path
    lines = [line.split() for line in path.read_text().splitlines()]
    path.write_text("")
    return lines


@pytest.mark.usefixtures("programs")
def test_router_learns_and_learns_again(router: Router, holder: HolderClient, netns: Callable[[], str]) -> None:
    """After a restart it is told everything, without anybody asking for it; the holder keeps the taps meanwhile."""
    tap = tap_create(netns(), TapSpec(MAC, 1500))

    async def run() -> None:
        facts = await router.start()
        assert router.process
        assert (facts.queues, facts.mtu, facts.pid) == (2, 1500, router.process.pid)
        assert namespaces.identity(facts.pid) == namespaces.identity(router._spec.nic.netns)
        router.vips_set({0: IPv4Address("10.77.0.10"), 3: IPv6Address("fd77::10")})
        router.nets_set([Gateway(ip_network("10.77.0.0/24"), None),
                         Gateway(ip_network("0.0.0.0/0"), IPv4Address("10.77.0.1"))])
        router.port_add(5, tap, [0, 3])
        os.close(tap)
        facts = router.ping()
        assert (facts.ports, facts.vips, facts.nets) == (1, 2, 2)
        told = {tuple(words[:-1]) for words in requests_of(router) if words[0] not in "17"}
        assert ("2", "5", "0", "0", "9", "00" * 16, "00" * 16, "1") in told
        assert ("6", "0", "0", "120", "0", "00" * 10 + "ffff0a4d0000", "00" * 16, "0") in told
        router.process.kill()
        await asyncio.wait_for(router.wait(), 10)
        with pytest.raises(RouterError):
            router.ping()
        facts = await router.start()
        assert (facts.ports, facts.vips, facts.nets) == (1, 2, 2)
        assert {tuple(words[:-1]) for words in requests_of(router) if words[0] not in "17"} == told
        router.vips_set({0: IPv4Address("10.77.0.10")})
        assert router.ping().vips == 1
        router.port_remove(5)
        assert (router.ping().ports, holder.fd_list()) == (0, ["router-counters"])
        totals, ports = router.counters()
        assert totals["in"] > 0
        assert ports == {}
        await router.stop()

    asyncio.run(run())


@pytest.mark.usefixtures("programs")
def test_what_is_declared_without_a_router_waits(router: Router, netns: Callable[[], str]) -> None:
    a, b = IPv4Address("10.77.0.10"), IPv4Address("10.77.0.11")
    taps = [tap_create(netns(), TapSpec(MAC, 1500)) for _ in range(2)]

    async def run() -> None:
        router.vips_set({0: a, 1: b})
        router.port_add(5, taps[0], [0])
        with pytest.raises(RouterError, match="no router at"):
            router.ping()
        facts = await router.start()
        assert (facts.ports, facts.vips) == (1, 2)
        router.vips_set({0: b, 1: a})                      # no address may be in two slots meanwhile
        assert router.process
        os.kill(router.process.pid, signal.SIGSTOP)        # alive, but it does not answer in time
        router.port_add(6, taps[1], [0])
        router.port_remove(5)
        os.kill(router.process.pid, signal.SIGCONT)
        router.nets_set([Gateway(ip_network("10.77.0.0/24"), None)])
        facts = router.ping()
        assert (facts.ports, facts.vips, facts.nets) == (1, 2, 1)
        await router.stop()

    asyncio.run(run())
    for tap in taps:
        os.close(tap)


@pytest.mark.usefixtures("programs")
def test_router_is_adopted_by_the_next_manager(router: Router, holder: HolderClient,
                                               netns: Callable[[], str]) -> None:
    async def run() -> None:
        await router.start()
        for vm_id in (5, 6):
            tap = tap_create(netns(), TapSpec(MAC, 1500))
            router.port_add(vm_id, tap, [0])
            os.close(tap)
        router.close()
        after = Router(router._spec, holder)
        after.port_restore(5, [0])                         # 6 died meanwhile
        adopted = after.adopt()
        assert adopted
        assert router.process
        assert adopted.pid == router.process.pid
        assert after.ping().ports == 1
        assert holder.fd_list() == ["router-counters", "tap-5"]
        await after.stop()
        assert after.adopt() is None

    asyncio.run(run())


@pytest.mark.usefixtures("programs")
def test_router_that_does_not_start(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARMLINE_FAKE", "exits")
    with pytest.raises(RouterError, match=r"exit status 3\).*load the classifier first"):
        asyncio.run(router.start())
    assert lib.SL_RTR_COUNTER_NB > 0
