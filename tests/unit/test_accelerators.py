# SPDX-License-Identifier: Apache-2.0
"""Who gets which accelerator while a swarm runs, and what becomes of it when something goes wrong.

Kernel and QEMU are fakes here, as in test_vfio: what is tried is the order of things.
"""

import asyncio
import errno
import os
import shutil
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import ROOT
from support.fake_kernel import contents
from support.fake_qmp import FakeQmp
from unit.vfio_rig import kernel_of, refuse

from pipeline.host import accelerators, passthrough
from pipeline.host.accelerators import Accelerators, Guest
from pipeline.host.hardware import inventory
from pipeline.host.passthrough import device_name
from pipeline.host.placer import Placer
from pipeline.host.vfio import RECORD, Vfio
from pipeline.policy.config import Config, parse_config
from pipeline.policy.model import LayerId

pytestmark = pytest.mark.root        # a group's file changes its owner
CARD, SECOND = "0000:3f:00.0", "0000:3f:01.1"     # a card without VFs, and the second that it gets
UID = 700_000


class Host:
    """The machine with two sockets and a swarm on it."""

    def __init__(self, root: Path) -> None:
        self.kernel = kernel_of("xeon-qat", root)
        self.root = root
        for group in range(300, 304):                 # of the VFs to come
            self.kernel.group_node(group).write_text("")
        self.before = contents(self.kernel.sysfs)
        self.told: list[str] = []
        self.vfio = Vfio(root, (), self.kernel, 5.0)
        self.accelerators = Accelerators(self.vfio, self.told.append)
        self.accelerators.configure((CARD,), 4)

    def driver(self, address: str) -> str:
        link = self.kernel.device(address) / "driver"
        return link.readlink().name if link.is_symlink() else ""

    def owner(self, group: int) -> int:
        return self.kernel.group_node(group).stat().st_uid

    def untouched(self) -> bool:
        return contents(self.kernel.sysfs) == self.before and not (self.root / RECORD).exists()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(passthrough, "allow_pinning", lambda pid, memory: None)
    return Host(tmp_path)


def guest(vm_id: int, qmp: FakeQmp) -> Guest:
    return Guest(qmp, os.getpid(), UID + vm_id)


def deleted(address: str) -> dict[str, Any]:
    return {"event": "DEVICE_DELETED", "data": {"device": device_name(address)}}


def run(what: Callable[[], Awaitable[None]]) -> None:
    async def life() -> None:
        async with asyncio.timeout(20):
            await what()

    asyncio.run(life())


def test_given_taken_away_and_given_to_another(host: Host) -> None:
    first, other = FakeQmp(deleted(SECOND)), FakeQmp()
    add = {"driver": "vfio-pci", "host": SECOND, "id": device_name(SECOND)}

    async def life() -> None:
        await host.accelerators.settle(1, f"{CARD} VF 1", guest(1, first))
        assert host.accelerators.device(1) == SECOND and host.driver(SECOND) == "vfio-pci"
        assert host.owner(301) == UID + 1
        await host.accelerators.settle(1, f"{CARD} VF 1", guest(1, first))     # it has it
        assert first.commands == [("device_add", add)]
        await host.accelerators.settle(1, "", guest(1, first))
        assert first.commands[1:] == [("device_del", {"id": device_name(SECOND)})]
        assert host.accelerators.device(1) == "" and host.driver(SECOND) == "" and host.owner(301) == 0
        resets = host.kernel.writes.count(("reset", "1"))
        await host.accelerators.settle(2, f"{CARD} VF 1", guest(2, other))
        assert host.kernel.writes.count(("reset", "1")) == resets + 1, "the next owner finds nothing"
        assert host.accelerators.device(2) == SECOND and host.owner(301) == UID + 2
        await host.accelerators.gone(2)
        assert host.driver(SECOND) == ""
        await host.accelerators.restore()
        assert host.untouched()

    run(life)
    assert host.told == [f"instance 1 has {SECOND}", f"instance 1 has {SECOND} no more", f"instance 2 has {SECOND}"]


FIRST = "0000:3f:01.0"


def test_one_that_vanishes_while_it_is_taken(host: Host) -> None:
    host.kernel.answers["drivers_probe"] = lambda _value: shutil.rmtree(host.kernel.device(FIRST))

    async def life() -> None:
        await host.accelerators.settle(1, f"{CARD} VF 0", guest(1, FakeQmp()))
        assert host.accelerators.device(1) == ""
        host.kernel.answers.clear()
        (host.kernel.device(CARD) / "virtfn0").unlink()
        await host.accelerators.restore()
        assert host.untouched()

    run(life)
    (told,) = host.told
    assert told.startswith("instance 1 goes on in software: ") and "vanished" in told


def test_a_group_that_somebody_holds(host: Host) -> None:
    host.kernel.busy.add(300)

    async def life() -> None:
        await host.accelerators.settle(1, f"{CARD} VF 0", guest(1, FakeQmp()))
        assert host.accelerators.device(1) == "" and host.driver(FIRST) == ""
        await host.accelerators.restore()
        assert host.untouched()

    run(life)
    assert "goes on in software: IOMMU group 300" in host.told[0] and "is held by" in host.told[0]


def test_a_driver_that_does_not_let_go(host: Host) -> None:
    """The host's driver has the card itself."""
    host.kernel.answers["unbind"] = refuse(errno.EBUSY)
    host.accelerators.configure((CARD,), 0)

    async def life() -> None:
        await host.accelerators.settle(1, CARD, guest(1, FakeQmp()))
        assert host.accelerators.device(1) == "" and host.untouched()

    run(life)
    (told,) = host.told
    assert told.startswith("instance 1 goes on in software: driver c6xx does not let") and "end what uses it" in told


def test_a_kernel_that_does_not_answer_holds_nobody_up(host: Host) -> None:
    """The manager goes on with all else while a device hangs in the kernel."""
    answer, asked = threading.Event(), threading.Event()

    def hang(_value: str) -> None:
        asked.set()
        answer.wait(10)

    host.kernel.answers["reset"] = hang

    async def life() -> None:
        for _ in range(3):
            host.accelerators.equip(1, f"{CARD} VF 0", guest(1, FakeQmp()))
        await asyncio.to_thread(asked.wait, 10)
        host.accelerators.equip(2, f"{CARD} VF 1", guest(2, FakeQmp()))
        await host.accelerators.without(3, guest(3, FakeQmp()))     # has none, so need not wait
        gone = host.accelerators.gone(1)
        assert not gone.done() and not answer.is_set()
        answer.set()
        await host.accelerators.settled()
        assert host.accelerators.device(1) == "" and host.accelerators.device(2) == SECOND
        host.accelerators.gone(2)
        await host.accelerators.settled()
        await host.accelerators.restore()
        assert host.untouched()

    run(life)


@pytest.mark.parametrize(("file", "number", "words"), [
    ("drivers_probe", errno.ENODEV, "does not take"), ("reset", errno.ENOTTY, "did not reset"),
    ("sriov_numvfs", errno.EBUSY, "does not change to 4 VFs"), ("", 0, "QEMU does not take")])
def test_what_fails_is_told_and_undone(host: Host, file: str, number: int, words: str) -> None:
    if file:
        host.kernel.answers[file] = refuse(number)
    qmp = FakeQmp(refuse="" if file else "no such bus")

    async def life() -> None:
        await host.accelerators.settle(1, f"{CARD} VF 0", guest(1, qmp))
        assert host.accelerators.device(1) == ""
        host.kernel.answers.clear()
        await host.accelerators.restore()
        assert host.untouched()

    run(life)
    (told,) = host.told
    assert told.startswith("instance 1 goes on in software: ") and words in told


def test_a_guest_that_does_not_let_go_keeps_it_until_its_end(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    real, first = passthrough.detach, "0000:3f:01.0"

    async def impatient(*args: Any, **more: Any) -> None:
        await real(*args, **more, patience=0.05)

    monkeypatch.setattr(passthrough, "detach", impatient)
    qmp, other = FakeQmp(), FakeQmp()

    async def life() -> None:
        await host.accelerators.settle(1, f"{CARD} VF 0", guest(1, qmp))
        await host.accelerators.settle(1, "", guest(1, qmp))
        assert host.accelerators.device(1) == first
        assert f"instance 1 goes on with {first}" in host.told[-1] and "does not let go" in host.told[-1]
        await host.accelerators.settle(2, f"{CARD} VF 0", guest(2, other))
        assert other.commands == [] and host.accelerators.device(2) == "", "nobody is given what another has"
        await host.accelerators.gone(1)
        assert host.driver(first) == ""
        await host.accelerators.restore()
        assert host.untouched()

    run(life)


def test_nobody_cuts_it_off_half_way(host: Host) -> None:
    """The instance ends, and whoever waits is cancelled, while its device is on the way to it."""
    async def life() -> None:
        qmp = FakeQmp()
        settling = host.accelerators.settle(1, f"{CARD} VF 0", guest(1, qmp))
        end = asyncio.create_task(host.accelerators.without(1, guest(1, qmp)))
        await asyncio.sleep(0)
        end.cancel()
        host.accelerators.gone(1)
        await asyncio.wait([end, settling])
        await host.accelerators.settled()
        assert host.accelerators.device(1) == "" and host.driver("0000:3f:01.0") == ""
        await host.accelerators.restore()
        assert host.untouched()

    run(life)


def test_another_manager_finds_who_has_what(host: Host) -> None:
    async def life() -> None:
        for vm_id, number in ((1, 0), (2, 1)):
            await host.accelerators.settle(vm_id, f"{CARD} VF {number}", guest(vm_id, FakeQmp()))
        later = Accelerators(Vfio(host.root, (CARD,), host.kernel, 5.0), host.told.append)
        qmp = FakeQmp(deleted(SECOND), answer=[{"name": "eth0"}, {"name": device_name(SECOND)}, {"name": "edge-0x1"}])
        await later.adopt({2: guest(2, qmp)})            # the other one died meanwhile
        assert later.device(2) == SECOND and host.driver(SECOND) == "vfio-pci"
        assert host.driver("0000:3f:01.0") == "" and later.device(1) == ""
        await later.settle(2, "", guest(2, qmp))
        await later.restore()
        assert host.untouched()

    run(life)


def test_one_that_vanishes_is_missed_and_comes_back(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that is pulled out leaves the guest; it is asked for again, and the words about it come once."""
    monkeypatch.setattr(accelerators, "RETRY", 0.01)
    first, qmp = "0000:3f:01.0", FakeQmp()

    async def life() -> None:
        async def asked(times: int) -> None:
            for _ in range(times):
                host.accelerators.equip(1, f"{CARD} VF 0", guest(1, qmp))
                await host.accelerators.settled()
                await asyncio.sleep(0.02)

        await asked(3)
        assert host.accelerators.device(1) == first and len(qmp.commands) == 1
        host.kernel.answers["drivers_probe"] = refuse(errno.ENODEV)
        qmp.emit(deleted(first))
        await asyncio.sleep(0.02)
        await asked(3)
        assert host.accelerators.device(1) == ""
        host.kernel.answers.clear()
        await asked(1)
        assert host.accelerators.device(1) == first and len(qmp.commands) == 2
        host.accelerators.gone(1)
        await host.accelerators.settled()
        await host.accelerators.restore()
        assert host.untouched()

    run(life)
    assert [words for text in host.told for words in ("has lost", "goes on in software:", "has " + first)
            if words in text] == ["has " + first, "has lost", "goes on in software:", "has " + first]


# ---- which

def config(hardware: str, tls: str) -> Config:
    text = (ROOT / "examples/https.toml").read_text().replace("[layer.tls]", f"[layer.tls]\n{tls}")
    return parse_config(f"[hardware]\n{hardware}\n{text}", "f")


def test_the_placer_follows_the_configuration(host: Host) -> None:
    machine = inventory(host.root / "sys", host.root / "proc")
    wants = 'driver = "qemu"\nwants = "crypto"'
    allowed = config(f'allow = ["{CARD}"]\nvfs = 2', wants)
    placer, pid = Placer(config("", wants), look=lambda: machine), 2**22 - 1
    for vm_id in (1, 2, 3):
        assert placer.instance(vm_id, LayerId.TLS, pid) == () and placer.accelerator(vm_id) == ""
    placer = Placer(allowed, look=lambda: machine)
    for vm_id, layer in ((1, LayerId.TLS), (2, LayerId.TLS), (3, LayerId.TLS), (4, LayerId.APP)):
        placer.instance(vm_id, layer, pid)
    assert [placer.accelerator(n) for n in range(1, 6)] == [f"{CARD} VF 0", f"{CARD} VF 1", "", "", ""]
    placer.gone(1)
    assert placer.accelerator(3) == f"{CARD} VF 0", "what one leaves, another gets"
    placer.configure(replace(allowed, hardware=replace(allowed.hardware, allow=())))
    assert [placer.accelerator(n) for n in (2, 3)] == ["", ""]
    placer.configure(allowed)
    assert {placer.accelerator(n) for n in (2, 3)} == {f"{CARD} VF 0", f"{CARD} VF 1"}
    placer.instance(3, LayerId.TLS, pid, has=f"{CARD} VF 1")
    assert placer.accelerator(3) == f"{CARD} VF 1"


def test_a_reload_finds_what_was_built_in(host: Host) -> None:
    machine = inventory(host.root / "sys", host.root / "proc")
    before = replace(machine, functions=tuple(f for f in machine.functions if not f.address.startswith(CARD[:-1])))
    machines = iter((before, machine))
    allowed = config(f'allow = ["{CARD}"]\nvfs = 2', 'driver = "qemu"\nwants = "crypto"')
    placer = Placer(allowed, look=lambda: next(machines))
    placer.instance(1, LayerId.TLS, 2**22 - 1)
    assert placer.accelerator(1) == ""
    placer.configure(allowed)
    assert placer.accelerator(1) == f"{CARD} VF 0"
