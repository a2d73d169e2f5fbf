# SPDX-License-Identifier: Apache-2.0
"""A swarm whose parts have places: the CPUs of each, also of what comes later, and what they say of their hardware."""

import os
import subprocess
from collections.abc import Iterator

import pytest
from support.lab import Lab
from system.swarm_rig import SWARMLINE, Swarm, eventually, kill, swarm_made

from pipeline.host.hardware import inventory
from pipeline.policy.affinity import affinity_weight
from pipeline.policy.model import LayerId

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

FIRST = min(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def swarm(module_lab: Lab) -> Iterator[Swarm]:
    with swarm_made(module_lab, {"hardware": {"pin": True}, "layer.app": {"cpus": [FIRST]}}) as made:
        yield made


def test_each_part_has_its_cpus(swarm: Swarm) -> None:
    status = swarm.status()
    pinned = {i["vm_id"]: os.sched_getaffinity(i["pid"]) for i in status["instances"]}
    assert all(len(cpus) == 1 for cpus in pinned.values()), pinned
    assert len(os.sched_getaffinity(status["router"]["pid"])) == 1
    assert {frozenset(pinned[i["vm_id"]]) for i in swarm.instances("app")} == {frozenset({FIRST})}
    cores = {cpu.siblings for cpu in inventory().cpus}
    used = {cpu for cpus in pinned.values() for cpu in cpus} | os.sched_getaffinity(status["router"]["pid"])
    assert len(used) == min(len(cores), len(pinned) + 1), "cores are given out before any is shared"


def test_what_comes_later_gets_its_place_too(swarm: Swarm) -> None:
    before = swarm.pids()
    kill(next(i["pid"] for i in swarm.instances("http")))
    eventually(lambda: set(swarm.pids()) - set(before), "a new instance")
    pool = swarm.eventually_active("http", 2)
    assert all(len(os.sched_getaffinity(i["pid"])) == 1 for i in pool)


def test_instances_say_what_their_cpus_can_do(swarm: Swarm) -> None:
    expected = inventory().cpu_affinity
    assert {i["hardware_affinity"] for i in swarm.instances()} == {int(expected)}
    routes = swarm.status()["routing_table"]["layers"]["tls"]
    assert len({r["weight"] for r in routes}) == 1, "equal hardware, equal weight"
    assert affinity_weight(LayerId.TLS, expected) >= 100


def test_doctor_names_what_does_not_fit(swarm: Swarm) -> None:
    said = subprocess.run([SWARMLINE, "doctor", swarm.config], capture_output=True, text=True, check=False).stdout
    line = next(line for line in said.splitlines() if " placement " in line)
    cores = len({cpu.siblings for cpu in inventory().cpus})
    assert ("8 loops for" in line) == (cores < 8), line
    assert f"core of CPU {FIRST}: " in line          # both app instances are configured to be there


