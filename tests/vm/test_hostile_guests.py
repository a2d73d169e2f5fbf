# SPDX-License-Identifier: Apache-2.0
"""A guest that has been broken into, in a swarm that works, with load beside it. It costs nobody a request."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline._native import lib
from support.lab import Lab
from system.clients import Load
from system.flooder import eventfds, flooding
from system.swarm_rig import Swarm, eventually, swarm_made
from vm.fakes import fake_of, switch

from pipeline.host import processes
from pipeline.host.images import Image

pytestmark = [pytest.mark.netns, pytest.mark.bpf, pytest.mark.qemu, pytest.mark.timeout(240)]

PATIENCE = 60.0
ELSE = 300         # other wakes in a second: heartbeats, the manager, requests
FLOOD = Path(__file__).with_name("flood.c")


@pytest.fixture(scope="module")
def swarm(module_lab: Lab, images: Path) -> Iterator[Swarm]:
    few: dict[str, Any] = {f"layer.{layer}": {"instances": 1} for layer in ("tcp", "tls")}
    machine = {"driver": "qemu", "instances": 1}
    with swarm_made(module_lab, {**few, "layer.http": machine, "layer.app": machine}) as made:
        yield made


def test_registers_and_doorbells(swarm: Swarm, image: Image, images: Path, tmp_path: Path) -> None:
    """It has the seat of an app instance. It writes wild values into its registers, of every device and of every width,
    and rings all peers that there can be as fast as it can: the manager, the http instance, and who does not exist.
    Both say who it is. As the http instance is a virtual machine, too, QEMU forgets its doorbell.
    """
    (http,) = swarm.instances("http")
    switch(images, fake_of(image, tmp_path / "flood", FLOOD.read_text()))
    (good,) = swarm.eventually_active("app", 1, PATIENCE)
    try:
        with Load(swarm.lab, connections=4) as load:
            swarm.command("scale", "app=2")
            bad = eventually(lambda: booting(swarm), "it boots", PATIENCE)
            log = swarm.run_dir / "log" / f"instance-{bad}.log"
            eventually(lambda: log.exists() and "registers of " in log.read_text(), "it writes", PATIENCE)
            flooded(swarm, bad, "the manager")
            load.goes_on(100, PATIENCE)
        assert not load.failures
        flooded(swarm, bad, f"instance {http['vm_id']}")
        eventually(lambda: len(shared(swarm, http["vm_id"], bad)) == 1, "it can not ring http any more", PATIENCE)
        with Load(swarm.lab, connections=4) as load:
            swarm.command("scale", "app=1")
            eventually(lambda: bad not in swarm.pids(), "it is ended", PATIENCE)
            load.goes_on(20, PATIENCE)
    finally:
        switch(images, image.folder)
    assert not load.failures
    assert len(swarm.events("doorbell-flood")) == 2
    assert [i["vm_id"] for i in swarm.instances("app")] == [good["vm_id"]]


def test_a_guest_is_rung_without_end(swarm: Swarm) -> None:
    """By the tls instance, a process. The guest masks that interrupt and serves on."""
    (bad,), (good,) = swarm.instances("tls"), swarm.instances("http")
    before = len(swarm.events("doorbell-flood"))

    def numbers() -> tuple[int, int]:
        """How often it was woken, and how often it did not want to listen any more."""
        (found,) = (i["counters"] for i in swarm.instances("http"))
        return found["wakeups"], found["doorbell_floods"]

    with flooding(bad["pid"], good["pid"]) as rings:
        flooded(swarm, bad["vm_id"], f"instance {good['vm_id']}")
        with Load(swarm.lab, connections=4) as load:
            load.goes_on(50, PATIENCE)
        swarm.published()
        rung, (wakes, muted) = rings(), numbers()
        now = eventually(lambda: (now := numbers())[1] >= muted + 2 and now, "it goes on being a flood", PATIENCE)
        assert rings() - rung > 10 * (now[0] - wakes), "there was no flood"
    assert now[0] - wakes <= (now[1] - muted + 1) * (lib.SL_BELL_RINGS_MAX + ELSE)
    assert not load.failures
    assert len(swarm.events("doorbell-flood")) == before + 1
    with Load(swarm.lab, connections=2, method="GET") as load:
        load.goes_on(20, PATIENCE)
    assert not load.failures


def flooded(swarm: Swarm, bad: int, whom: str) -> None:
    """Waits until it is told."""
    words = f"instance {bad} rings {whom} without end"
    eventually(lambda: any(text.startswith(words) for text in swarm.events("doorbell-flood")), words, PATIENCE)


def shared(swarm: Swarm, one: int, other: int) -> set[int]:
    """Doorbells that both machines have: that of either for the other."""
    first, second = ({number for process in processes.of_instance(swarm.run_dir, vm_id)
                      for number in eventfds(process.pid)} for vm_id in (one, other))
    return first & second


def booting(swarm: Swarm) -> int | None:
    return next((int(i["vm_id"]) for i in swarm.instances("app", "booting")), None)
