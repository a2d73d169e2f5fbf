# SPDX-License-Identifier: Apache-2.0
"""An instance that has been broken into rings a peer as fast as it can. The peer serves on, is woken no more often
than its rule allows, and says who it was. Ordinary traffic never looks like that.
"""

from collections.abc import Iterator

import pytest
from pipeline._native import lib
from support.lab import Lab
from system.clients import Load
from system.flooder import flooding, listened
from system.swarm_rig import Swarm, eventually, swarm_made

from pipeline.host.ivshmem import BELLS

pytestmark = [pytest.mark.netns, pytest.mark.bpf, pytest.mark.timeout(60)]

PERIODS = 3
ELSE = 200          # other wakes in a period: heartbeats, the manager


@pytest.fixture(scope="module")
def swarm(module_lab: Lab) -> Iterator[Swarm]:
    one = {f"layer.{layer}": {"instances": 1} for layer in ("tcp", "tls", "http")}
    with swarm_made(module_lab, {**one, "layer.app": {"instances": 2}}) as made:
        yield made


def numbers(swarm: Swarm, vm_id: int) -> tuple[int, int]:
    """How often it was woken, and how often it did not want to listen any more."""
    (found,) = (i["counters"] for i in swarm.instances() if i["vm_id"] == vm_id)
    return found["wakeups"], found["doorbell_floods"]


def floods(swarm: Swarm) -> int:
    return sum(i["counters"].get("doorbell_floods", 0) for i in swarm.instances())


def test_ordinary_traffic_is_no_flood(swarm: Swarm) -> None:
    """Single requests, which find everybody asleep, and more clients than there are processors."""
    for connections, answers in ((1, 300), (32, 3000)):
        with Load(swarm.lab, connections=connections, method="GET") as load:
            load.goes_on(answers, 30)
        assert not load.failures
    swarm.published()
    assert sum(i["counters"]["doorbells"] for i in swarm.instances()) > 1000
    assert floods(swarm) == 0
    assert not swarm.events("doorbell-flood")


@pytest.mark.parametrize(("ringer", "rung"), [("app", "http"), ("http", "app")])
def test_a_flood(swarm: Swarm, ringer: str, rung: str) -> None:
    """Seen from either side of an edge. Who was told of once is not told of again; when it ends, it is forgiven."""
    bad, good = swarm.instances(ringer)[0], swarm.instances(rung)[0]
    vm_id = good["vm_id"]
    words = f"instance {bad['vm_id']} rings instance {vm_id} without end"
    told = len(swarm.events("doorbell-flood"))
    with flooding(bad["pid"], good["pid"]) as rings:
        eventually(lambda: len(swarm.events("doorbell-flood")) > told, "the flood is noticed")
        with Load(swarm.lab, connections=4) as load:
            load.goes_on(100)
        assert not load.failures
        swarm.published()
        rung_before, (wakes, muted) = rings(), numbers(swarm, vm_id)
        now = eventually(lambda: (n := numbers(swarm, vm_id))[1] >= muted + PERIODS and n, "it goes on being a flood")
        assert rings() - rung_before > 10 * (now[0] - wakes), "there was no flood"
    assert now[0] - wakes <= (now[1] - muted + 1) * (lib.SL_BELL_RINGS_MAX + ELSE)
    assert [text.startswith(words) for text in swarm.events("doorbell-flood")[told:]] == [True]
    with Load(swarm.lab, connections=4, method="GET") as load:
        load.goes_on(100)
    assert not load.failures
    eventually(lambda: len(listened(good["pid"])) == BELLS, "it is forgiven")
    assert {bad["vm_id"]: bad["pid"], vm_id: good["pid"]}.items() <= swarm.pids().items()
