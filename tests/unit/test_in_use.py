# SPDX-License-Identifier: Apache-2.0
"""Devices that the host itself uses, and for what."""

import pytest
from support.fake_kernel import FakeKernel
from unit.vfio_rig import DISK, EMPTY_PF, NIC, vfio_of

from pipeline import errors
from pipeline.host.in_use import uses


def test_disks_with_mounts_and_swap_are_in_use(kernel: FakeKernel) -> None:
    vfio = vfio_of(kernel, DISK)
    disk = kernel.device(DISK) / "nvme/nvme0/nvme0n1"
    (disk / "nvme0n1p2").mkdir(parents=True)
    mapped = kernel.sysfs / "devices/virtual/block/dm-0"
    (mapped / "slaves").mkdir(parents=True)
    (mapped / "slaves/nvme0n1p2").symlink_to(disk / "nvme0n1p2")
    for folder, name, target in (("dev/block", "253:0", mapped), ("class/block", "dm-0", mapped),
                                 ("class/block", "nvme0n1p2", disk / "nvme0n1p2")):
        (kernel.sysfs / folder).mkdir(parents=True, exist_ok=True)
        (kernel.sysfs / folder / name).symlink_to(target)
    (kernel.procfs / "self").mkdir()
    mounts = kernel.procfs / "self/mountinfo"
    mounts.write_text("22 1 253:0 / / rw - ext4 /dev/mapper/root rw\n")
    with pytest.raises(errors.DeviceInUse, match=r": / is mounted from it"):
        vfio.take(DISK)
    mounts.write_text("22 1 0:31 /@ /srv/a\\040b rw shared:1 - btrfs /dev/nvme0n1p2 rw\n")
    with pytest.raises(errors.DeviceInUse, match="/srv/a b is mounted from it"):
        vfio.take(DISK)
    mounts.write_text("")
    (kernel.procfs / "swaps").write_text("Filename Type\n/dev/dm-0 partition 1 0 -2\n")
    with pytest.raises(errors.DeviceInUse, match="swaps to it"):
        vfio.take(DISK)
    (kernel.procfs / "swaps").write_text("Filename Type\n/dev/nvme0n9p1 partition 1 0 -2\n")
    subsystem = kernel.sysfs / "devices/virtual/nvme-subsystem/nvme-subsys0"     # as Linux shows NVMe with multipath
    (subsystem / "nvme0n9/nvme0n9p1").mkdir(parents=True)
    (subsystem / "nvme0n9/nvme0n9p1/partition").write_text("1\n")
    (subsystem / "nvme0").symlink_to(kernel.device(DISK) / "nvme/nvme0")
    (kernel.sysfs / "class/block/nvme0n9p1").symlink_to(subsystem / "nvme0n9/nvme0n9p1")
    with pytest.raises(errors.DeviceInUse, match="swaps to it"):
        vfio.take(DISK)
    (kernel.procfs / "swaps").unlink()
    vfio.take(DISK)


def test_network_interfaces_are_in_use(kernel: FakeKernel) -> None:
    def reasons() -> str:
        machine = vfio_of(kernel).machine()
        nic = machine.function(NIC)
        assert nic
        return "; ".join(uses(machine, nic, kernel.sysfs, kernel.procfs))

    own = kernel.device(NIC) / "net/eno1"
    assert "default route goes through eno1" in reasons()
    (kernel.procfs / "net/route").write_text("")
    assert reasons() == ""
    (own / "flags").write_text("0x1003")
    assert reasons() == "interface eno1 is up"
    (own / "flags").write_text("0x1002")
    (own / "master").symlink_to("../../../../bond0")
    assert reasons() == "interface eno1 belongs to bond0"
    for path in (own / "master", own / "flags", own / "ifindex"):
        path.unlink()
    own.rmdir()
    assert "another network namespace" in reasons()


def test_the_last_nic_stays(kernel: FakeKernel) -> None:
    (kernel.procfs / "net/route").write_text("")
    other = kernel.device("0000:18:00.1")
    (other / "net/eno2/ifindex").unlink()
    (other / "net/eno2").rmdir()
    with pytest.raises(errors.DeviceInUse, match="eno1 is the host's only NIC"):
        vfio_of(kernel, NIC).take(NIC)


def test_a_program_has_it(kernel: FakeKernel) -> None:
    link = kernel.device(EMPTY_PF) / "driver"
    link.unlink()
    link.symlink_to("../../drivers/uio_pci_generic")
    with pytest.raises(errors.DeviceInUse, match="uio_pci_generic gives it to a program"):
        vfio_of(kernel, EMPTY_PF).take(EMPTY_PF)
