# SPDX-License-Identifier: Apache-2.0
"""Machines that go on from a template: the driver makes it once, and all that follow are warm soon."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from vm.guest_rig import Measured

from pipeline.host.clock import GuestClock
from pipeline.host.control import ControlRegion
from pipeline.host.holder_client import HolderClient, InstanceFds
from pipeline.host.images import Image
from pipeline.instances.driver import InstanceSpec
from pipeline.instances.qemu import QemuDriver, QemuRunning
from pipeline.policy.model import VmState

pytestmark = pytest.mark.qemu

MEMORY = 96 << 20


class Place:
    """What the manager prepares for a machine."""

    def __init__(self, holder: HolderClient, run_dir: Path, vm_id: int, stack: ExitStack) -> None:
        self.fds: InstanceFds = holder.instance_add(vm_id)
        stack.callback(holder.instance_remove, vm_id)
        stack.callback(self.fds.close)
        self.control = ControlRegion(self.fds.control, vm_id, clock=GuestClock())
        stack.callback(self.control.close)
        self.control.format()
        self.spec = InstanceSpec(vm_id, run_dir, self.fds.facts.socket, memory=MEMORY)

    async def warm(self) -> None:
        deadline = time.monotonic() + 30
        while (report := self.control.report()) is None or report.status.state is not VmState.READY:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.002)

    @property
    def seeded(self) -> bool:
        """It has taken its seed, and left none for anybody else."""
        return not any(self.control._header.entropy)


@pytest.fixture
def place(holder: HolderClient, vm_dir: Path) -> Iterator[Callable[[int], Place]]:
    with ExitStack() as stack:
        yield lambda vm_id: Place(holder, vm_dir, vm_id, stack)


def test_template_is_made_once(image: Image, place: Callable[[int], Place], measured: Measured) -> None:
    """And what is started goes on from it."""
    for old in image.folder.glob("template-*"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    driver = QemuDriver(image.folder.parent)
    places = [place(21), place(22), place(23)]

    async def started(one: Place) -> tuple[QemuRunning, float]:
        begun = time.monotonic()
        running = await driver.start(one.spec)
        await one.warm()
        return running, time.monotonic() - begun

    async def run() -> None:
        both = await asyncio.gather(*map(started, places[:2]))           # one makes it, the other waits for that
        (template,) = image.folder.glob("template-*")
        made = template.stat().st_ino
        third, seconds = await started(places[2])
        measured("start_to_warm_ms", round(seconds * 1000))
        assert template.stat().st_ino == made
        assert all(one.seeded for one in places)
        for running in (third, *(running for running, _ in both)):
            assert "-incoming" in running.process.argv
            await driver.stop(running)

    asyncio.run(run())


def test_template_that_is_broken_is_booted_instead(image: Image, place: Callable[[int], Place]) -> None:
    driver = QemuDriver(image.folder.parent)
    (template,) = image.folder.glob("template-*")
    (template / "state").write_bytes(b"no state of a machine")
    one = place(24)

    async def run() -> None:
        running = await driver.start(one.spec)
        try:
            assert "-incoming" not in running.process.argv
            await one.warm()
        finally:
            await driver.stop(running)

    asyncio.run(run())
    assert not template.exists()
