# SPDX-License-Identifier: Apache-2.0
"""A guest that has been broken into, in a swarm that works, with load beside it. It costs nobody a request."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.lab import Lab
from system.clients import Load
from system.swarm_rig import Swarm, eventually, swarm_made
from vm.fakes import fake_of, switch

from pipeline.host.images import Image

pytestmark = [pytest.mark.netns, pytest.mark.bpf, pytest.mark.qemu, pytest.mark.timeout(240)]

PATIENCE = 60.0
FLOOD = Path(__file__).with_name("flood.c")


@pytest.fixture(scope="module")
def swarm(module_lab: Lab, images: Path) -> Iterator[Swarm]:
    few: dict[str, Any] = {f"layer.{layer}": {"instances": 1} for layer in ("tcp", "tls", "http")}
    with swarm_made(module_lab, {**few, "layer.app": {"driver": "qemu", "instances": 1}}) as made:
        yield made


def test_registers_and_doorbells(swarm: Swarm, image: Image, images: Path, tmp_path: Path) -> None:
    """It has the seat of an app instance. It writes wild values into its registers, of every device and of every width,
    and rings all peers that there can be as fast as it can: the manager, the http instance, and who does not exist.
    """
    switch(images, fake_of(image, tmp_path / "flood", FLOOD.read_text()))
    (good,) = swarm.eventually_active("app", 1, PATIENCE)
    try:
        with Load(swarm.lab, connections=4) as load:
            swarm.command("scale", "app=2")
            bad = eventually(lambda: booting(swarm), "it boots", PATIENCE)
            log = swarm.run_dir / "log" / f"instance-{bad}.log"
            eventually(lambda: log.exists() and "registers of " in log.read_text(), "it writes", PATIENCE)
            flooded = eventually(lambda: swarm.events("doorbell-flood"), "the flood is noticed", PATIENCE)
            load.goes_on(100, PATIENCE)
            swarm.command("scale", "app=1")
            eventually(lambda: bad not in swarm.pids(), "it is ended", PATIENCE)
            load.goes_on(20)
    finally:
        switch(images, image.folder)
    assert not load.failures
    assert [f"instance {bad} " in text for text in flooded] == [True]
    assert [i["vm_id"] for i in swarm.instances("app")] == [good["vm_id"]]


def booting(swarm: Swarm) -> int | None:
    return next((int(i["vm_id"]) for i in swarm.instances("app", "booting")), None)
