# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several unit tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fake_kernel import FakeKernel, contents
from unit.holder_rig import Qemu, down, reap
from unit.plan_world import World
from unit.vfio_rig import kernel_of

from pipeline.host import holder_client
from pipeline.host.holder_client import HolderClient
from pipeline.host.vfio import RECORD


@pytest.fixture
def world() -> World:
    """A swarm that is up and at rest."""
    made = World()
    made.settle()
    return made


@pytest.fixture
def holder(run_dir: Path) -> Iterator[HolderClient]:
    """A client of a running holder."""
    pid = holder_client.start(run_dir)
    with HolderClient(run_dir) as client:
        yield client
    down(run_dir)
    reap(pid)


@pytest.fixture
def connect(holder: HolderClient) -> Iterator[Callable[[int], Qemu]]:
    """Adds an instance and connects to its socket, without reading."""
    made: list[Qemu] = []

    def connected(vm_id: int) -> Qemu:
        added = holder.instance_add(vm_id)
        added.close()
        made.append(Qemu(added.facts.socket))
        return made[-1]

    yield connected
    for qemu in made:
        qemu.close()


@pytest.fixture
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> FakeKernel:
    """Of the machine with two sockets, or of the one that the test names."""
    return kernel_of(getattr(request, "param", "xeon-qat"), tmp_path)


@pytest.fixture
def unchanged(kernel: FakeKernel, tmp_path: Path) -> Iterator[None]:
    """In the end the machine is as it was in the beginning, and there is no record."""
    before = contents(kernel.sysfs)
    yield
    assert contents(kernel.sysfs) == before
    assert not (tmp_path / RECORD).exists()
