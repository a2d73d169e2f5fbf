# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the QEMU of a first layer's machine, again and again, under traffic. `make verify` does it a hundred
times.
"""

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from support.lab import Lab
from system.clients import Load
from system.swarm_rig import Swarm, eventually, kill, swarm_made
from vm.guest_rig import Measured

KILLS = int(os.environ.get("SWARMLINE_VM_KILLS", "2"))
pytestmark = [pytest.mark.netns, pytest.mark.bpf, pytest.mark.qemu, pytest.mark.timeout(180 + 15 * KILLS)]

PATIENCE = 60.0
CONNECTIONS = 6


@pytest.fixture
def swarm(module_lab: Lab, images: Path) -> Iterator[Swarm]:
    one: dict[str, Any] = {f"layer.{layer}": {"instances": 1} for layer in ("tls", "http", "app")}
    with swarm_made(module_lab, {**one, "layer.tcp": {"driver": "qemu", "instances": 2}}) as made:
        yield made


def test_a_first_layers_machine_is_killed(swarm: Swarm, measured: Measured) -> None:
    """Its connections end with it, and their clients are told; the others go on. Each client asks again at once, so it
    loses one request at most. Nothing of a dead one is left.
    """
    router, answers, lost, back = swarm.status()["router"]["pid"], 0, 0, list[float]()
    for number in range(KILLS):
        victim = swarm.eventually_active("tcp", 2, PATIENCE)[number % 2]
        with Load(swarm.lab, connections=CONNECTIONS, method="GET") as load:
            kill(victim["pid"])
            killed = time.monotonic()
            eventually(partial(gone, swarm, victim["vm_id"]), "it is taken away", PATIENCE)
            swarm.eventually_active("tcp", 2, PATIENCE)
            back.append(time.monotonic() - killed)
            load.goes_on(10 * CONNECTIONS, PATIENCE)
        clients = [client for client, _ in load.failures]
        assert len(clients) == len(set(clients)), f"kill {number}: {load.failures}"
        answers, lost = answers + load.answers, lost + len(clients)
    assert swarm.status()["router"]["pid"] == router
    assert not swarm.events("failed")
    assert {int(path.name) for path in (swarm.run_dir / "vhost").iterdir()} == {
        i["vm_id"] for i in swarm.instances("tcp")}
    measured("requests lost per kill", lost / KILLS)
    measured("requests answered", answers)
    measured("s until another machine serves, median", median(back))
    measured("s until another machine serves, worst", max(back))


def gone(swarm: Swarm, vm_id: int) -> bool:
    return vm_id not in swarm.pids()
