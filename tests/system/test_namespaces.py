# SPDX-License-Identifier: Apache-2.0
"""Network namespaces, interfaces and taps."""

import os
import socket
import subprocess
from collections.abc import Callable
from ipaddress import IPv4Address, ip_network

import pytest
from system.holder_rig import MAC

from pipeline.errors import NamespaceError
from pipeline.host import namespaces
from pipeline.host.nic import Gateway, nic_facts
from pipeline.host.tap import TapSpec, tap_create

pytestmark = [pytest.mark.root, pytest.mark.netns]


def test_function_runs_inside_the_namespace(netns: Callable[[], str]) -> None:
    name = netns()
    assert [link for _, link in namespaces.run_in(name, socket.if_nameindex)] == ["lo"]
    assert namespaces.identity(name) != namespaces.identity("")
    assert namespaces.identity(os.getpid()) == namespaces.identity("")
    assert name in namespaces.names()
    with pytest.raises(ZeroDivisionError):
        namespaces.run_in(name, lambda: 1 // 0)


@pytest.mark.parametrize("name", ["slt-none", "../x", "."])
def test_namespace_that_is_none(name: str) -> None:
    with pytest.raises(NamespaceError, match=r"no network namespace|no name"):
        namespaces.run_in(name, lambda: None)


def test_facts_of_an_interface(netns: Callable[[], str]) -> None:
    name = netns()
    script = """
        link add sl-nic0 mtu 9000 address 02:00:00:00:00:11 numrxqueues 4 type veth peer name other
        link set sl-nic0 up
        link set other up
        addr add 10.77.0.1/24 dev sl-nic0
        addr add fd77::1/64 dev sl-nic0 nodad
        route add 10.78.0.0/16 via 10.77.0.2
        route add default via 10.77.0.3
        """
    subprocess.run(["ip", "-n", name, "-b", "-"], input=script, text=True, check=True)
    facts = nic_facts(name, "sl-nic0")
    assert (facts.mac, facts.mtu, facts.kind, facts.up) == (bytes.fromhex("020000000011"), 9000, "veth", True)
    assert facts.rx_queues == 4
    assert facts.routes == (
        Gateway(ip_network("10.77.0.0/24"), None), Gateway(ip_network("10.78.0.0/16"), IPv4Address("10.77.0.2")),
        Gateway(ip_network("0.0.0.0/0"), IPv4Address("10.77.0.3")), Gateway(ip_network("fd77::/64"), None))
    assert facts.networks == (ip_network("10.77.0.0/24"), ip_network("fd77::/64"))
    assert facts.native_xdp in (True, None)
    with pytest.raises(NamespaceError, match=r"no interface 'eth7'.*there are: other, sl-nic0"):
        nic_facts(name, "eth7")
    with pytest.raises(NamespaceError, match="no Ethernet"):
        nic_facts(name, "lo")


def test_taps_that_cannot_be(netns: Callable[[], str]) -> None:
    name = netns()
    tap = tap_create(name, TapSpec(MAC, 9000))
    with pytest.raises(NamespaceError, match="cannot make the tap eth0"):
        tap_create(name, TapSpec(MAC, 1500))               # the name is taken
    with pytest.raises(NamespaceError, match="MTU 1000000"):
        tap_create(name, TapSpec(MAC, 1_000_000, "eth1"))
    os.close(tap)
    assert [link for _, link in namespaces.run_in(name, socket.if_nameindex)] == ["lo"]
