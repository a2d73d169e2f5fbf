# SPDX-License-Identifier: Apache-2.0
"""A function in and out of a running machine, whose kernel and QEMU are fakes."""

import asyncio
import os

import pytest
from support.fake_kernel import FakeKernel
from support.fake_qmp import FakeQmp
from unit.vfio_rig import TAKEN_VF, vfio_of

from pipeline import errors
from pipeline.host import passthrough
from pipeline.host.vfio import Vfio


def plugged(kernel: FakeKernel) -> Vfio:
    vfio = vfio_of(kernel, "0000:da:00.0")
    kernel.group_node(200).write_text("")
    vfio.take(TAKEN_VF)
    return vfio


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Limits that were raised; for real it takes a right that a container may lack."""
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(passthrough, "allow_pinning", lambda pid, memory: raised.append((pid, memory)))
    return raised


@pytest.mark.root
def test_attach_and_detach(kernel: FakeKernel, pinned: list[tuple[int, int]]) -> None:
    vfio, told = plugged(kernel), []
    name = passthrough.device_name(TAKEN_VF)
    qmp = FakeQmp({"event": "DEVICE_DELETED", "data": {"path": "/machine/peripheral/x"}},
                  {"event": "DEVICE_DELETED", "data": {"device": name}},
                  memory=(128 << 20, 64 << 20))

    async def tell() -> None:
        told.append(len(qmp.commands))

    async def life() -> None:
        await passthrough.attach(qmp, vfio, TAKEN_VF, pid=os.getpid(), uid=700_001)
        assert kernel.group_node(200).stat().st_uid == 700_001
        await passthrough.detach(qmp, vfio, TAKEN_VF, tell=tell)

    asyncio.run(life())
    assert qmp.commands == [("device_add", {"driver": "vfio-pci", "host": TAKEN_VF, "id": name}),
                            ("device_del", {"id": name})]
    assert pinned == [(os.getpid(), 192 << 20)]     # edges as well
    assert told == [1]                                    # before it was taken away
    assert kernel.writes == [("reset", "1")] and kernel.group_node(200).stat().st_uid == 0


@pytest.mark.root
@pytest.mark.usefixtures("pinned")
def test_attach_is_refused(kernel: FakeKernel) -> None:
    vfio = plugged(kernel)
    with pytest.raises(errors.HardwareError, match=r"does not take .*: no such thing"):
        asyncio.run(passthrough.attach(FakeQmp(refuse="no such thing"), vfio, TAKEN_VF, pid=os.getpid(), uid=700_001))
    assert kernel.group_node(200).stat().st_uid == 0


@pytest.mark.parametrize("answer", ["nothing", "no"])
def test_a_guest_never_releases(kernel: FakeKernel, answer: str) -> None:
    vfio = plugged(kernel)
    events = [{"event": "DEVICE_UNPLUG_GUEST_ERROR", "data": {"device": passthrough.device_name(TAKEN_VF)}}]
    with pytest.raises(errors.NotReleased, match=TAKEN_VF) as caught:
        asyncio.run(passthrough.detach(FakeQmp(*(events if answer == "no" else [])), vfio, TAKEN_VF, patience=0.05))
    assert "end the instance" in caught.value.hint


def test_a_layer_that_goes_on_using_it(kernel: FakeKernel) -> None:
    qmp = FakeQmp()

    async def tell() -> None:
        await asyncio.Event().wait()

    with pytest.raises(errors.NotReleased):
        asyncio.run(passthrough.detach(qmp, plugged(kernel), TAKEN_VF, tell=tell, patience=0.05))
    assert qmp.commands == []
