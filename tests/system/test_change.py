# SPDX-License-Identifier: Apache-2.0
"""Instances that get another layer while they run, and warm ones that wait for their first."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from support.lab import Lab
from system.clients import Load, curl
from system.swarm_rig import Swarm, eventually, swarm_made
from system.test_isolation import EDGES, memfds_mapped

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

LAYERS = ("tcp", "tls", "http", "app")


@pytest.fixture(scope="module")
def swarm(module_lab: Lab) -> Iterator[Swarm]:
    with swarm_made(module_lab, {
        "swarm": {"drain_timeout": "3s"},
        "pool": {"processes": 1},
        "layer.tcp": {"instances": 2},
    }) as made:
        yield made


def warm(swarm: Swarm) -> list[dict[str, Any]]:
    return [i for i in swarm.instances(state="ready") if not i["layers"]]


def settled(swarm: Swarm, **counts: int) -> None:
    """Two active instances of each layer, or as many as said, and a full pool."""
    for layer in LAYERS:
        swarm.eventually_active(layer, counts.get(layer, 2))
    eventually(lambda: len(warm(swarm)) == 1, "a warm instance")


def changed(swarm: Swarm, vm_id: int, layer: str) -> dict[str, Any]:
    """Gives an instance another layer and waits until it serves that."""
    swarm.command("assign", str(vm_id), layer)
    return eventually(
        lambda: next((i for i in swarm.instances(layer) if i["vm_id"] == vm_id), None), f"{vm_id} is {layer}"
    )


# a walk that has each layer as the former and as the next one; it ends where it began
WALK = ("tls", "http", "app", "tcp", "app", "http", "tls")


def test_layer_changed_under_load(swarm: Swarm) -> None:
    """It is one of three everywhere, and takes its place in the numbers along."""
    settled(swarm)
    swarm.command("scale", f"{WALK[0]}=3")
    walker = swarm.eventually_active(WALK[0], 3)[0]["vm_id"]
    before = swarm.pids()
    with Load(swarm.lab) as load:
        for old, new in pairwise(WALK):
            now = changed(swarm, walker, new)
            assert now["pid"] == before[walker], "it is the same process"
            assert memfds_mapped(now["pid"]) == {f"sl-edge-{e}" for e in EDGES[new]} | {f"sl-control-{walker}"}
            swarm.eventually_active(old, 2)
            swarm.eventually_active(new, 3)
            load.goes_on(100)
            eventually(lambda: served(swarm, walker), f"instance {walker} serves {new}")
        swarm.command("scale", f"{WALK[-1]}=2")
        settled(swarm)
    assert not load.failures


def served(swarm: Swarm, vm_id: int) -> bool:
    """Whether it did anything for its present layer. New connections, of which it gets its share."""
    for scheme in ("https", "http"):
        curl(swarm.lab.client, f"{scheme}://10.77.0.10/")
    return any(i["requests"] for i in swarm.instances() if i["vm_id"] == vm_id)
