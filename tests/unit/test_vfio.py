# SPDX-License-Identifier: Apache-2.0
"""Taking functions and giving them back: the ways in which it fails, and a death at each step.

The kernel is a fake one here: no emulated hardware refuses an unbind or vanishes. For real: tests/vm/test_host.py.
"""

import contextlib
import errno
import json
import os
import time

import pytest
from support.fake_kernel import FakeKernel, contents
from unit.vfio_rig import (
    BRIDGE,
    CARD,
    EMPTY_PF,
    FREE_VF,
    NIC,
    SHARED_CARD,
    SHARED_NIC,
    TAKEN_VF,
    on,
    refuse,
    vfio_of,
)

from pipeline import errors
from pipeline.host.in_use import group_users
from pipeline.host.vfio import RECORD

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
