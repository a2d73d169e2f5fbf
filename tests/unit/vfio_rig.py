# SPDX-License-Identifier: Apache-2.0
"""A machine for tests of VFIO: a recorded one, whose kernel is a folder that answers writes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fake_kernel import FakeKernel
from support.machines import grow

from pipeline.host.vfio import Vfio

MACHINES = Path(__file__).parent / "machines"
CARD, FREE_VF, EMPTY_PF, TAKEN_VF = "0000:3d:00.0", "0000:3d:01.0", "0000:3f:00.0", "0000:da:01.0"
NIC, BRIDGE, DISK = "0000:18:00.0", "0000:17:00.0", "0000:5e:00.0"
SHARED_CARD, SHARED_NIC = "0000:01:00.0", "0000:02:00.0"


def kernel_of(machine: str, root: Path) -> FakeKernel:
    """Of the machine of that name in machines/, made in this folder."""
    grow(MACHINES / f"{machine}.txt", root)
    for device in (root / "sys/bus/pci/devices").iterdir():
        (device / "driver_override").write_text("(null)\n")
        (device / "reset").write_text("")
        if (device / "sriov_totalvfs").exists():
            (device / "sriov_drivers_autoprobe").write_text("1\n")
        if (device / "driver").is_symlink():
            (root / "sys/bus/pci/drivers" / (device / "driver").readlink().name).mkdir(parents=True, exist_ok=True)
    return FakeKernel(root)


def vfio_of(kernel: FakeKernel, *allow: str, patience: float = 5.0) -> Vfio:
    return Vfio(kernel.sysfs.parent, allow, kernel, patience)


def on(machine: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kernel", [machine], indirect=True)


def refuse(number: int) -> Callable[[str], None]:
    """An answer of the kernel."""
    def answer(_value: str) -> None:
        raise OSError(number, os.strerror(number))
    return answer
