# SPDX-License-Identifier: Apache-2.0
"""What a change of the first layer's set costs, on the live maps: few new flows move, and no existing one."""

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest
from support.lab import Lab
from system.clients import Load, dial
from system.swarm_rig import Swarm, eventually, swarm_made

from pipeline.cli.client import call
from pipeline.host.classifier import Pins, pin_root
from pipeline.policy.routing import disruption

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

CONNECTIONS = 48
STEPS = (3, 4, 3, 2)
SERVICE = 1  # http, port 80
HALF = b"half of the body; "


@pytest.fixture(scope="module")
def swarm(module_lab: Lab) -> Iterator[Swarm]:
    with swarm_made(module_lab, {"layer.tcp": {"instances": 2}, "swarm": {"drain_timeout": "30s"}}) as made:
        yield made


@contextmanager
def requests_begun(lab: Lab) -> Iterator[list[socket.socket]]:
    """Connections with a request on its way, which can not end before ``finish``."""
    with ExitStack() as stack:
        socks = [stack.enter_context(dial(lab)) for _ in range(CONNECTIONS)]
        for sock in socks:
            sock.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (2 * len(HALF), HALF))
        yield socks


def finish(sock: socket.socket) -> bytes:
    """The rest of the request; the end of its answer."""
    sock.sendall(HALF)
    data = b""
    while not data.endswith(HALF + HALF):
        piece = sock.recv(65536)
        assert piece, f"the connection ended after {data!r}"
        data += piece
    return data


def places(pins: Pins, socks: Sequence[socket.socket]) -> dict[int, int]:
    """Client port -> instance, as the classifier remembers it."""
    ports = {sock.getsockname()[1] for sock in socks}
    return {flow.client_port: flow.vm_id for flow in pins.flows() if flow.client_port in ports and flow.port == 80}


def test_new_and_existing_flows_when_the_set_changes(swarm: Swarm) -> None:
    with Pins(pin_root(swarm.run_dir)) as pins, requests_begun(swarm.lab) as socks, Load(swarm.lab) as load:
        load.goes_on()
        before = places(pins, socks)
        assert len(before) == CONNECTIONS and len(set(before.values())) == 2
        now = 2
        for wanted in STEPS:
            table = pins.table(SERVICE)
            assert table
            swarm.command("scale", f"tcp={wanted}")
            last = table

            def changed() -> bool:
                nonlocal table, last
                last, table = table, pins.table(SERVICE)
                return set(table or ()) != set(last or ())

            eventually(changed, f"the table of {wanted} instances")
            assert table and last
            assert disruption(last, table) <= 1 / now + 0.01, f"{now} to {wanted}"
            eventually(lambda wanted=wanted: active(swarm) == wanted, f"{wanted} active instances")  # type: ignore[misc]
            assert places(pins, socks) == before
            load.goes_on()
            now = wanted
        for sock in socks:
            assert finish(sock).startswith(b"HTTP/1.1 200 ")
        assert places(pins, socks) == before
    assert not load.failures


def active(swarm: Swarm) -> int:
    return len(swarm.instances("tcp"))


def test_peers_know_an_instance_before_it_gets_flows(swarm: Swarm) -> None:
    """ready, then a table that names it without a share, and only then active."""
    swarm.command("scale", "app=3")
    newest = max(i["vm_id"] for i in swarm.eventually_active("app", 3))
    told = call(swarm.run_dir, "GET", "/v1/events")["events"]
    its_own = re.compile(rf"(activate )?app instance {newest}( is ready)?$|set routes.*app: [^;)]*\b{newest}\b")
    kinds = [event["kind"] for event in told if its_own.match(event["text"])]
    assert kinds[:3] == ["ready", "set-routes", "activate-instance"], kinds
    swarm.command("scale", "app=2")
    swarm.eventually_active("app", 2)
