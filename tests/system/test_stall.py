# SPDX-License-Identifier: Apache-2.0
"""An instance that stands still: found by its heartbeat, treated as dead, and harmless when it wakes up again."""

from collections.abc import Iterator

import pytest
from support.lab import Lab
from system.clients import Load
from system.swarm_rig import Swarm, stall_is_found, stalled, swarm_made

pytestmark = [pytest.mark.netns, pytest.mark.bpf]


@pytest.fixture(scope="module")
def stalling(module_lab: Lab) -> Iterator[Swarm]:
    with swarm_made(module_lab, {"layer.tcp": {"instances": 2}, "layer.tls": {"instances": 3}}) as made:
        yield made


@pytest.mark.parametrize(("layer", "count"), [("app", 2), ("tls", 3)])
def test_a_stalled_instance_is_found_and_replaced(stalling: Swarm, layer: str, count: int) -> None:
    """What it had begun is repeated, connections that it held go on in another one: nothing fails."""
    with Load(stalling.lab, method="GET") as load:
        load.goes_on(50)
        stall_is_found(stalling, layer, count)
        load.goes_on()
    assert not load.failures


@pytest.mark.parametrize("layer", ["http", "tcp"])
def test_connections_of_a_stalled_instance_end_at_once(stalling: Swarm, layer: str) -> None:
    """Its were their only state. None hangs, and those of the others go on."""
    with Load(stalling.lab, method="GET") as load:
        load.goes_on(50)
        stalled(stalling, layer, 2)
        load.goes_on()
    assert {why.partition("(")[0] for _, why in load.failures} <= {"ConnectionResetError", "IncompleteReadError"}
    clients = [number for number, _ in load.failures]
    assert len(clients) == len(set(clients)), f"a connection that came later failed too: {load.failures}"
