# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the QEMU of a first layer's machine, again and again, under traffic. `make verify` does it a hundred
times.
"""

import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from support.lab import Lab
from system.clients import Load, dial, received
from system.swarm_rig import INDEX, Swarm, eventually, kill, swarm_made
from vm.guest_rig import Measured

from pipeline.host.classifier import pin_root
from pipeline.host.pins import Pins

KILLS = int(os.environ.get("SWARMLINE_VM_KILLS", "2"))
pytestmark = [pytest.mark.netns, pytest.mark.bpf, pytest.mark.qemu, pytest.mark.timeout(180 + 15 * KILLS)]

PATIENCE = 60.0
CONNECTIONS = 6
SILENT = 8
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def swarm(module_lab: Lab, images: Path) -> Iterator[Swarm]:
    one: dict[str, Any] = {f"layer.{layer}": {"instances": 1} for layer in ("tls", "http", "app")}
    with swarm_made(module_lab, {**one, "layer.tcp": {"driver": "qemu", "instances": 2}}) as made:
        yield made


def test_a_first_layers_machine_is_killed(swarm: Swarm, measured: Measured) -> None:
    """Its connections end with it, and clients are told, also those who say nothing; the others go on. Each client asks
    again at once, so it loses one request at most. Nothing of a dead one is left.
    """
    router, answers, lost, told, back = swarm.status()["router"]["pid"], 0, 0, 0, list[float]()
    for number in range(KILLS):
        victim = swarm.eventually_active("tcp", 2, PATIENCE)[number % 2]
        with Load(swarm.lab, connections=CONNECTIONS, method="GET") as load, silent_ones(swarm) as silent:
            kill(victim["pid"])
            killed = time.monotonic()
            eventually(partial(gone, swarm, victim["vm_id"]), "it is taken away", PATIENCE)
            swarm.eventually_active("tcp", 2, PATIENCE)
            back.append(time.monotonic() - killed)
            told += len(silent.get(victim["vm_id"], ()))
            for vm_id, socks in silent.items():
                for sock in socks:
                    if vm_id == victim["vm_id"]:
                        assert received(sock) == (b"", "reset")
                    else:
                        ask(sock)
            load.goes_on(10 * CONNECTIONS, PATIENCE)
        clients = [client for client, _ in load.failures]
        assert len(clients) == len(set(clients)), f"kill {number}: {load.failures}"
        answers, lost = answers + load.answers, lost + len(clients)
    assert told
    assert swarm.status()["router"]["pid"] == router
    assert not swarm.events("failed")
    assert {int(path.name) for path in (swarm.run_dir / "vhost").iterdir()} == {
        i["vm_id"] for i in swarm.instances("tcp")}
    measured("silent clients told per kill", told / KILLS)
    measured("requests lost per kill", lost / KILLS)
    measured("requests answered", answers)
    measured("s until another machine serves, median", median(back))
    measured("s until another machine serves, worst", max(back))


@contextmanager
def silent_ones(swarm: Swarm) -> Iterator[dict[int, list[socket.socket]]]:
    """Connections that have had an answer and wait, by the VMID of their tcp instance."""
    with ExitStack() as stack, Pins(pin_root(swarm.run_dir)) as pins:
        socks = [stack.enter_context(dial(swarm.lab)) for _ in range(SILENT)]
        for sock in socks:
            ask(sock)
        instance_of = {flow.client_port: flow.vm_id for flow in pins.flows()}
        found = defaultdict[int, list[socket.socket]](list)
        for sock in socks:
            found[instance_of[sock.getsockname()[1]]].append(sock)
        yield found


def ask(sock: socket.socket) -> None:
    sock.sendall(GET)
    data = b""
    while not data.endswith(INDEX):
        piece = sock.recv(65536)
        assert piece, "the connection is over"
        data += piece


def gone(swarm: Swarm, vm_id: int) -> bool:
    return vm_id not in swarm.pids()
