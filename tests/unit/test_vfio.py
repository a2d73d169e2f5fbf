# SPDX-License-Identifier: Apache-2.0
"""Taking functions and giving them back: the ways in which it fails, and a death at each step.

The kernel is a fake one here: no emulated hardware refuses an unbind or vanishes. tests/hw does it for real.
"""

import asyncio
import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fake_kernel import FakeKernel, contents
from support.fake_qmp import FakeQmp
from support.machines import grow

from pipeline import errors
from pipeline.host import passthrough
from pipeline.host.in_use import group_users, uses
from pipeline.host.vfio import RECORD, Vfio

MACHINES = Path(__file__).parent / "machines"
CARD, FREE_VF, EMPTY_PF, TAKEN_VF = "0000:3d:00.0", "0000:3d:01.0", "0000:3f:00.0", "0000:da:01.0"
NIC, BRIDGE, DISK = "0000:18:00.0", "0000:17:00.0", "0000:5e:00.0"
SHARED_CARD, SHARED_NIC = "0000:01:00.0", "0000:02:00.0"


@pytest.fixture
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> FakeKernel:
    """Of the machine with two sockets, or of the one that the test names."""
    grow(MACHINES / f"{getattr(request, 'param', 'xeon-qat')}.txt", tmp_path)
    for device in (tmp_path / "sys/bus/pci/devices").iterdir():
        (device / "driver_override").write_text("(null)\n")
        (device / "reset").write_text("")
        if (device / "sriov_totalvfs").exists():
            (device / "sriov_drivers_autoprobe").write_text("1\n")
        if (device / "driver").is_symlink():
            (tmp_path / "sys/bus/pci/drivers" / (device / "driver").readlink().name).mkdir(parents=True, exist_ok=True)
    return FakeKernel(tmp_path)


@pytest.fixture
def unchanged(kernel: FakeKernel, tmp_path: Path) -> Iterator[None]:
    """In the end the machine is as it was in the beginning, and there is no record."""
    before = contents(kernel.sysfs)
    yield
    assert contents(kernel.sysfs) == before
    assert not (tmp_path / RECORD).exists()


def vfio_of(kernel: FakeKernel, *allow: str, patience: float = 5.0) -> Vfio:
    return Vfio(kernel.sysfs.parent, allow, kernel, patience)


def on(machine: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kernel", [machine], indirect=True)


def refuse(number: int) -> Callable[[str], None]:
    def answer(_value: str) -> None:
        raise OSError(number, os.strerror(number))
    return answer


# ---- what should happen

@pytest.mark.usefixtures("unchanged")
def test_vfs_are_made_taken_reset_and_removed(kernel: FakeKernel) -> None:
    vfio = vfio_of(kernel, EMPTY_PF)
    made = vfio.make_vfs(EMPTY_PF, 4)
    assert made == tuple(f"0000:3f:01.{n}" for n in range(4))
    machine = vfio.machine()
    assert all(f and f.driver == "" and f.physical == EMPTY_PF for f in map(machine.function, made))
    assert vfio.make_vfs(EMPTY_PF, 2) == made[:2]         # they are there
    taken = vfio.take(made[0])
    assert taken.driver == "" and vfio.taken() == made[:1]
    now = vfio.machine().function(made[0])
    assert now and now.driver == "vfio-pci"
    vfio.hand_over(made[0])
    assert kernel.writes[-1] == ("reset", "1")
    vfio.give_back(made[0])
    assert vfio.taken() == ()
    vfio.take(made[1])
    assert vfio_of(kernel).restore() == []                # another process's object, after a crash of this one


@pytest.mark.usefixtures("unchanged")
def test_a_driver_comes_back(kernel: FakeKernel) -> None:
    vfio = vfio_of(kernel, NIC)
    (kernel.device(NIC) / "net/eno1/flags").write_text("0x1002")
    (kernel.procfs / "net/route").write_text("")
    assert vfio.take(NIC).driver == "i40e"
    record = json.loads((kernel.sysfs.parent / RECORD).read_text())
    assert record == [{"address": NIC, "driver": "i40e", "override": "", "vfs": None, "autoprobe": "1"}]
    assert (kernel.device(NIC) / "driver").readlink().name == "vfio-pci"
    vfio.give_back(NIC)
    assert (kernel.device(NIC) / "driver").readlink().name == "i40e"
    assert ("reset", "1") in kernel.writes                # the host does not trust what a guest left
    (kernel.device(NIC) / "net/eno1/flags").unlink()
    (kernel.procfs / "net/route").unlink()


@pytest.mark.usefixtures("unchanged")
def test_what_had_vfio_pci_already_keeps_it(kernel: FakeKernel) -> None:
    vfio = vfio_of(kernel, "0000:da:00.0")                # the PF is named: its VFs are meant too
    vfio.take(TAKEN_VF)
    assert kernel.writes == [] and vfio.taken() == ()


@pytest.mark.usefixtures("unchanged")
@on("shared-group")
def test_a_whole_group_goes_if_all_of_it_is_allowed(kernel: FakeKernel) -> None:
    card, disk = kernel.device(SHARED_CARD), "0000:00:17.0"
    (kernel.device(SHARED_NIC) / "net/enp2s0/ifindex").unlink()
    (kernel.device(SHARED_NIC) / "net/enp2s0").rmdir()
    (kernel.device(SHARED_NIC) / "class").write_text("0x0c0330")       # something that the host can do without
    vfio = vfio_of(kernel, SHARED_CARD, SHARED_NIC, disk)
    vfio.take(SHARED_CARD)
    assert set(vfio.taken()) == {SHARED_CARD, SHARED_NIC} and (card / "driver").readlink().name == "vfio-pci"
    vfio.give_back(SHARED_CARD)
    assert (card / "driver").readlink().name == "dh895xcc"
    (kernel.device(SHARED_NIC) / "class").write_text("0x020000")
    (kernel.device(SHARED_NIC) / "net/enp2s0").mkdir()
    (kernel.device(SHARED_NIC) / "net/enp2s0/ifindex").write_text("2\n")


# ---- refusals: nothing is touched

@pytest.mark.usefixtures("unchanged")
def test_not_allowed(kernel: FakeKernel) -> None:
    vfio = vfio_of(kernel, EMPTY_PF)
    with pytest.raises(errors.NotAllowed, match=FREE_VF) as caught:
        vfio.take(FREE_VF)
    assert caught.value.address == FREE_VF and "allow" in caught.value.hint
    for attempt in (lambda: vfio.make_vfs(CARD, 2), lambda: vfio.hand_over(FREE_VF)):
        with pytest.raises(errors.NotAllowed):
            attempt()
    assert kernel.writes == []


@pytest.mark.usefixtures("unchanged")
@on("epyc-no-iommu")
def test_no_iommu(kernel: FakeKernel) -> None:
    with pytest.raises(errors.NoIommu, match="no IOMMU group"):
        vfio_of(kernel, "0000:63:00.1").take("0000:63:00.1")
    assert kernel.writes == []


@pytest.mark.usefixtures("unchanged")
def test_no_interrupt_remapping(kernel: FakeKernel) -> None:
    kernel.group_error = errno.EPERM
    with pytest.raises(errors.NoIommu, match="interrupts"):
        vfio_of(kernel, FREE_VF).take(FREE_VF)


@pytest.mark.usefixtures("unchanged")
@on("shared-group")
def test_a_shared_group_names_the_others(kernel: FakeKernel) -> None:
    with pytest.raises(errors.NotIsolable, match=rf"group 1 with {SHARED_NIC} .*ixgbe") as caught:
        vfio_of(kernel, SHARED_CARD).take(SHARED_CARD)
    assert caught.value.others == (SHARED_NIC,)
    with pytest.raises(errors.DeviceInUse, match=r"default route goes through enp2s0.*only NIC"):
        vfio_of(kernel, SHARED_CARD, SHARED_NIC).take(SHARED_CARD)
    assert kernel.writes == []


@pytest.mark.usefixtures("unchanged")
def test_a_bridge_stays(kernel: FakeKernel) -> None:
    with pytest.raises(errors.NotIsolable, match="bridge"):
        vfio_of(kernel, BRIDGE).take(BRIDGE)


@pytest.mark.usefixtures("unchanged")
def test_a_card_with_vfs_is_in_use(kernel: FakeKernel) -> None:
    with pytest.raises(errors.DeviceInUse, match="16 VFs exist"):
        vfio_of(kernel, CARD).take(CARD)


@pytest.mark.usefixtures("unchanged")
def test_nothing_is_there(kernel: FakeKernel) -> None:
    with pytest.raises(errors.DeviceVanished, match=r"0000:99:00\.0"):
        vfio_of(kernel, "0000:99:00.0").take("0000:99:00.0")


@pytest.mark.usefixtures("unchanged")
def test_a_group_that_a_process_holds(kernel: FakeKernel) -> None:
    kernel.busy.add(120)
    node = kernel.group_node(120)
    own = kernel.procfs / "4711/fd"          # proc is not compared in the end
    own.mkdir(parents=True)
    (own / "9").symlink_to(node)
    with pytest.raises(errors.GroupBusy, match="held by process 4711"):
        vfio_of(kernel, FREE_VF).take(FREE_VF)
    assert group_users(node, kernel.procfs) == [4711]


@pytest.mark.usefixtures("unchanged")
def test_a_group_that_is_not_viable(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "try_group", lambda group: False)
    with pytest.raises(errors.NotIsolable, match="not viable"):
        vfio_of(kernel, FREE_VF).take(FREE_VF)


# ---- the kernel refuses half way: what was done is undone

@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("number", [errno.EBUSY, errno.EPERM])
def test_a_driver_refuses_to_unbind(kernel: FakeKernel, number: int) -> None:
    kernel.answers["unbind"] = refuse(number)
    with pytest.raises(errors.UnbindRefused, match=f"c6xx does not let {EMPTY_PF} go: {os.strerror(number)}"):
        vfio_of(kernel, EMPTY_PF).take(EMPTY_PF)


@pytest.mark.usefixtures("unchanged")
def test_a_driver_says_yes_and_stays(kernel: FakeKernel) -> None:
    kernel.answers["unbind"] = lambda value: None
    with pytest.raises(errors.UnbindRefused):
        vfio_of(kernel, EMPTY_PF).take(EMPTY_PF)


def test_a_driver_never_answers(kernel: FakeKernel) -> None:
    """The record stays: the driver may still let go, and then it must get its device back."""
    before = contents(kernel.sysfs)
    reader, writer = os.pipe()
    kernel.answers["unbind"] = lambda value: (os.read(reader, 1), kernel._write(unbind, value))[1]
    unbind = kernel.device(EMPTY_PF) / "driver/unbind"
    vfio = vfio_of(kernel, EMPTY_PF, patience=0.05)
    with pytest.raises(errors.UnbindRefused, match=r"no answer within 0\.05 s"):
        vfio.take(EMPTY_PF)
    del kernel.answers["unbind"]
    os.close(writer)                                      # now it does
    deadline = time.monotonic() + 5
    while (kernel.device(EMPTY_PF) / "driver").is_symlink():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.close(reader)
    assert vfio_of(kernel).restore() == []
    assert contents(kernel.sysfs) == before


@pytest.mark.usefixtures("unchanged")
def test_vfio_pci_does_not_take_it(kernel: FakeKernel) -> None:
    kernel.answers["drivers_probe"] = lambda value: None
    with pytest.raises(errors.BindRefused, match=f"vfio-pci does not take {EMPTY_PF}") as caught:
        vfio_of(kernel, EMPTY_PF).take(EMPTY_PF)
    assert "disable_denylist" in caught.value.hint        # of this generation


@pytest.mark.parametrize("where", ["driver_override", "unbind", "drivers_probe"])
def test_it_vanishes_half_way(kernel: FakeKernel, where: str) -> None:
    device = kernel.device(EMPTY_PF)

    def vanish(_value: str) -> None:
        device.rename(kernel.sysfs / "gone")
        if where != "drivers_probe":                      # that file is not the device's: the write succeeds
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    kernel.answers[where] = vanish
    with pytest.raises(errors.DeviceVanished, match=EMPTY_PF):
        vfio_of(kernel, EMPTY_PF).take(EMPTY_PF)
    assert not (kernel.sysfs.parent / RECORD).exists()    # there is nothing to give back


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("number", [errno.EBUSY, errno.EINVAL, errno.ENOMEM])
def test_a_number_of_vfs_is_refused(kernel: FakeKernel, number: int) -> None:
    kernel.answers["sriov_numvfs"] = refuse(number)
    with pytest.raises(errors.VfCountRefused, match=os.strerror(number)):
        vfio_of(kernel, EMPTY_PF).make_vfs(EMPTY_PF, 4)


@pytest.mark.usefixtures("unchanged")
def test_a_number_of_vfs_is_not_met(kernel: FakeKernel) -> None:
    vfio = vfio_of(kernel, EMPTY_PF, "0000:da:00.0", NIC)
    with pytest.raises(errors.VfCountRefused, match="can have 16 VFs"):
        vfio.make_vfs(EMPTY_PF, 17)
    with pytest.raises(errors.VfCountRefused, match="4 VFs that others made"):
        vfio.make_vfs("0000:da:00.0", 5)
    real = kernel._vfs_set
    kernel.answers["sriov_numvfs"] = lambda value: real(kernel.device(EMPTY_PF), int(value) // 2)
    with pytest.raises(errors.VfCountRefused, match="made 2 of 4"):
        vfio.make_vfs(EMPTY_PF, 4)


@pytest.mark.usefixtures("unchanged")
def test_no_reset(kernel: FakeKernel) -> None:
    vfio = vfio_of(kernel, FREE_VF)
    kernel.answers["reset"] = refuse(errno.ENOTTY)
    with pytest.raises(errors.ResetUnsupported, match="did not reset"):
        vfio.hand_over(FREE_VF)
    (kernel.device(FREE_VF) / "reset").unlink()
    with pytest.raises(errors.ResetUnsupported, match="can not be reset"):
        vfio.hand_over(FREE_VF)


def test_a_driver_does_not_come_back(kernel: FakeKernel) -> None:
    """The record keeps what is still to be done, and the next one does it."""
    before = contents(kernel.sysfs)
    vfio = vfio_of(kernel, EMPTY_PF)
    vfio.take(EMPTY_PF)
    kernel.answers["bind"] = refuse(errno.ENODEV)
    (problem,) = vfio_of(kernel).restore()
    assert isinstance(problem, errors.BindRefused) and "c6xx does not take" in str(problem)
    assert (kernel.sysfs.parent / RECORD).exists()
    del kernel.answers["bind"]
    assert vfio_of(kernel).restore() == []
    assert contents(kernel.sysfs) == before and not (kernel.sysfs.parent / RECORD).exists()


def test_vfs_stay_while_one_is_held(kernel: FakeKernel) -> None:
    before = contents(kernel.sysfs)
    vfio = vfio_of(kernel, EMPTY_PF, patience=0.05)
    first, second = vfio.make_vfs(EMPTY_PF, 2)
    vfio.take(first)
    vfio.take(second)
    kernel.busy.add(300)
    (problem,) = vfio_of(kernel, patience=0.05).restore()
    assert isinstance(problem, errors.GroupBusy) and problem.address == first
    assert kernel.device(second).exists() and not (kernel.device(second) / "driver").is_symlink()
    kernel.busy.clear()
    assert vfio_of(kernel).restore() == []
    assert contents(kernel.sysfs) == before


def test_a_damaged_record_is_not_guessed_at(kernel: FakeKernel) -> None:
    (kernel.sysfs.parent / RECORD).write_text('[{"adress": 1}]')
    with pytest.raises(errors.HardwareError, match="damaged"):
        vfio_of(kernel).restore()


# ---- killed at every step

@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_death_at_any_step_is_undone(kernel: FakeKernel, after: bool) -> None:
    """A process makes VFs, takes one and a whole card, and is killed at one of its writes; another one restores."""
    vfio = vfio_of(kernel, EMPTY_PF, NIC)
    (kernel.device(NIC) / "net/eno1/flags").write_text("0x1002")
    (kernel.procfs / "net/route").write_text("")
    before = contents(kernel.sysfs)
    steps = 0
    while True:
        kernel.writes.clear()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                kernel.die_at, kernel.die_after = steps, after
                vfio.take(vfio.make_vfs(EMPTY_PF, 2)[1])
                vfio.take(NIC)
                vfio.give_back(NIC)
                os._exit(0)
            os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert vfio_of(kernel).restore() == []
        assert contents(kernel.sysfs) == before, f"killed at write {steps}"
        assert not (kernel.sysfs.parent / RECORD).exists()
        if status == 0:
            break
        assert status == 9
        steps += 1
    assert steps >= 10


# ---- who uses what

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


# ---- in and out of a running machine

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
                  {"event": "DEVICE_DELETED", "data": {"device": name}})

    async def tell() -> None:
        told.append(len(qmp.commands))

    async def life() -> None:
        await passthrough.attach(qmp, vfio, TAKEN_VF, pid=os.getpid(), uid=700_001, memory=128 << 20)
        assert kernel.group_node(200).stat().st_uid == 700_001
        await passthrough.detach(qmp, vfio, TAKEN_VF, tell=tell)

    asyncio.run(life())
    assert qmp.commands == [("device_add", {"driver": "vfio-pci", "host": TAKEN_VF, "id": name}),
                            ("device_del", {"id": name})]
    assert pinned == [(os.getpid(), 128 << 20)]
    assert told == [1]                                    # before it was taken away
    assert kernel.writes == [("reset", "1")] and kernel.group_node(200).stat().st_uid == 0


@pytest.mark.root
@pytest.mark.usefixtures("pinned")
def test_attach_is_refused(kernel: FakeKernel) -> None:
    vfio = plugged(kernel)
    with pytest.raises(errors.HardwareError, match=r"does not take .*: no such thing"):
        asyncio.run(passthrough.attach(FakeQmp(refuse="no such thing"), vfio, TAKEN_VF, pid=os.getpid(), uid=700_001,
                                       memory=128 << 20))
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
