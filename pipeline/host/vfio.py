# SPDX-License-Identifier: Apache-2.0
"""PCI functions of the host for VMs: taken, reset between owners, and given back.

::

    vfio = Vfio(run_dir, allow=["0000:3d:00.0"])
    vfio.restore()                             at start and at the end: whatever a dead swarm had changed
    vfs = vfio.make_vfs("0000:3d:00.0", 4)     VFs that no driver of the host is bound to
    vfio.take(vfs[0])                          checked, bound to vfio-pci, its IOMMU group tried
    vfio.hand_over(vfs[0])                     before each new owner
    vfio.give_back(vfs[0])                     the driver that it had

Each change is written into RUN_DIR/hardware.json before it is made: the record says how to undo it, and undoing what
never happened does no harm. An error leaves the machine as it was.

All of it blocks, as sysfs does: call it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import (
    BindRefused,
    DeviceInUse,
    DeviceVanished,
    GroupBusy,
    HardwareError,
    NoIommu,
    NotAllowed,
    NotIsolable,
    ResetUnsupported,
    UnbindRefused,
    VfCountRefused,
)
from pipeline.host.hardware import DEVICES, pci_inventory, text
from pipeline.host.in_use import group_users, uses
from pipeline.host.kernel import Kernel
from pipeline.policy.hardware import VFIO_DRIVERS, Function, Kind, Machine, permitted

DRIVER = "vfio-pci"
RECORD = "hardware.json"
PATIENCE = 10.0             # seconds for a driver to let go, for a dead VM's group to come free

@dataclass(frozen=True)
class Change:
    """How one function was before it was touched. ``vfs`` None: its driver is meant, else its number of VFs."""

    address: str
    driver: str = ""
    override: str = ""
    vfs: int | None = None
    autoprobe: str = "1"


class Vfio:
    """Takes functions that the configuration allows. One object per run-time folder at a time."""

    def __init__(self, run_dir: Path, allow: Iterable[str] = (), kernel: Kernel | None = None,
                 patience: float = PATIENCE) -> None:
        self._allow = frozenset(allow)
        self._kernel = kernel or Kernel()
        self._record = run_dir / RECORD
        self._patience = patience
        self._hung: list[tuple[str, threading.Thread]] = []     # writes that the kernel has not answered yet

    def allow(self, addresses: Iterable[str]) -> None:
        """These, from now on. What is taken already can be given back in any case."""
        self._allow = frozenset(addresses)

    # ---- taking

    def machine(self) -> Machine:
        """Its PCI functions as they are now."""
        return pci_inventory(self._kernel.sysfs, self._kernel.procfs)

    def taken(self) -> tuple[str, ...]:
        """Functions that are bound to vfio-pci because of this object or a former one."""
        return tuple(change.address for change in self._changes() if change.vfs is None)

    def make_vfs(self, address: str, count: int) -> tuple[str, ...]:
        """The VFs of this PF, at least so many; made without a driver if there are none yet."""
        pf = self._function(self.machine(), address)
        self._check_allowed(pf)
        if len(pf.vfs) >= count:
            return pf.vfs[:count]
        if pf.vfs:
            raise VfCountRefused(f"{address} has {len(pf.vfs)} VFs that others made, {count} are wanted",
                                 address=address, hint="a number of VFs changes by way of 0: remove them first")
        if count > pf.total_vfs:
            raise VfCountRefused(f"{address} can have {pf.total_vfs} VFs, {count} are wanted", address=address,
                                 hint="enable SR-IOV in the firmware, or ask for fewer")
        folder = self._folder(address)
        with self._undone_on_error(Change(address, vfs=0, autoprobe=text(folder / "sriov_drivers_autoprobe") or "1")):
            self._set_vfs(address, count, autoprobe="0")
            made = self._function(self.machine(), address).vfs
            if len(made) < count:
                raise VfCountRefused(f"{address} made {len(made)} of {count} VFs", address=address)
        return made

    def take(self, address: str) -> Function:
        """Binds the function to vfio-pci, and those of its IOMMU group that must go with it. Returns it as it was."""
        machine = self.machine()
        function = self._function(machine, address)
        self._check(machine, function)
        members = [f for f in (function, *machine.companions(function))
                   if f is function or (f.driver and f.driver not in VFIO_DRIVERS)]
        for companion in members[1:]:
            self._check(machine, companion)
        self._check_group(machine, function, bound=False)
        with contextlib.ExitStack() as undo:
            for f in members:
                if f.driver != DRIVER:
                    override = text(self._folder(f.address) / "driver_override").removeprefix("(null)")
                    undo.enter_context(self._undone_on_error(Change(f.address, f.driver, override)))
                    self._bind(f)
            self._check_group(machine, function, bound=True)
        return function

    def hand_over(self, address: str) -> None:
        """Erases what the last owner left in it. To be done before each owner."""
        self._check_allowed(self._function(self.machine(), address))
        self._reset(address)

    # ---- giving back

    def give_back(self, address: str) -> None:
        """Undoes ``take``, for the function and those that went with it. Nothing happens if it was not taken."""
        machine = self.machine()
        function = machine.function(address)
        mine = {address, *(f.address for f in machine.companions(function))} if function else {address}
        for change in reversed(self._changes()):
            if change.address in mine and change.vfs is None:
                self._undo(change)

    def grant(self, address: str, uid: int) -> None:
        """Lets this user open the function's IOMMU group, which QEMU does as a user without rights; 0 takes it back."""
        function = self._function(self.machine(), address)
        if function.group is None or self._driver(address) != DRIVER:
            raise BindRefused(f"{address} is not bound to {DRIVER}", address=address, hint="take it first")
        node = self._kernel.group_node(function.group)
        os.chown(node, uid, 0)
        node.chmod(0o600)

    def restore(self) -> list[HardwareError]:
        """Undoes all that the record names, the latest change first. What could not be undone stays in the record
        and is returned.
        """
        problems: list[HardwareError] = []
        for change in reversed(self._changes()):
            held = {problem.address for problem in problems}
            if change.vfs is not None and held & {*self._vfs(change.address)}:
                continue                 # its VFs can not go while one of them is held
            try:
                self._undo(change)
            except HardwareError as error:
                problems.append(error)
        return problems

    def _undo(self, change: Change) -> None:
        if self._folder(change.address).exists():
            if change.vfs is not None:
                self._undo_vfs(change)
            else:
                self._undo_driver(change)
        if not any(change.address == address and thread.is_alive() for address, thread in self._hung):
            self._write_record([c for c in self._changes() if c != change])

    def _undo_vfs(self, change: Change) -> None:
        if change.vfs is not None and len(self._vfs(change.address)) != change.vfs:
            self._set_vfs(change.address, change.vfs, autoprobe=change.autoprobe)
        else:
            self._write_if_there(self._folder(change.address) / "sriov_drivers_autoprobe", change.autoprobe)

    def _undo_driver(self, change: Change) -> None:
        address, folder = change.address, self._folder(change.address)
        if self._driver(address) == DRIVER and change.driver != DRIVER:
            self._await_group(address)
            with contextlib.suppress(ResetUnsupported):
                self._reset(address)     # the host's driver must not trust what a guest left
            self._unbind(address)
        self._write(folder / "driver_override", change.override or "\n", address,
                    lambda why: BindRefused(f"{address} keeps its driver_override: {why}", address=address))
        if change.driver and self._driver(address) != change.driver:
            bind = self._kernel.sysfs / "bus/pci/drivers" / change.driver / "bind"
            self._write(bind, address, address, lambda why: BindRefused(
                f"{change.driver} does not take {address} back: {why}", address=address,
                hint=f"is the module of {change.driver} loaded? then: echo {address} > {bind}"))

    # ---- checks

    def _check_allowed(self, function: Function) -> None:
        if not permitted(function, self._allow):
            raise NotAllowed(f"the configuration does not allow to touch {function.address} ({function.what})",
                             address=function.address, hint="add it, or its PF, to `allow` of [hardware]")

    def _check(self, machine: Machine, function: Function) -> None:
        address = function.address
        self._check_allowed(function)
        if function.kind is Kind.BRIDGE:
            raise NotIsolable(f"{address} is a bridge: it stays with the host", address=address, others=())
        if function.group is None:
            raise NoIommu(f"{address} belongs to no IOMMU group: there is no IOMMU, or it is off", address=address,
                          hint="switch VT-d or AMD-Vi on in the firmware; kernel argument intel_iommu=on")
        if obstacles := machine.obstacles(function, self._allow):
            names = ", ".join(f"{f.address} ({f.what}, {f.driver})" for f in obstacles)
            raise NotIsolable(
                f"{address} shares IOMMU group {function.group} with {names}", address=address,
                others=[f.address for f in obstacles],
                hint="allow those as well if the host can do without them, or use a slot whose port has access control")
        if reasons := uses(machine, function, self._kernel.sysfs, self._kernel.procfs):
            raise DeviceInUse(f"{address} is in use: {'; '.join(reasons)}", address=address)

    def _check_group(self, machine: Machine, function: Function, *, bound: bool) -> None:
        """Before it is bound only one thing counts: that nobody has the group."""
        address, group = function.address, function.group
        assert group is not None
        try:
            viable = self._kernel.try_group(group)
        except OSError as error:
            if bound or error.errno == errno.EBUSY:
                raise self._group_error(address, group, error) from error
            return
        if bound and not viable:
            others = [f.address for f in machine.companions(function)]
            raise NotIsolable(f"IOMMU group {group} of {address} is not viable: a driver of the host uses a device in "
                              "it", address=address, others=others)

    def _group_error(self, address: str, group: int, error: OSError) -> HardwareError:
        if error.errno == errno.EBUSY:
            users = group_users(self._kernel.group_node(group), self._kernel.procfs)
            who = f"process {', '.join(map(str, users))}" if users else "somebody"
            return GroupBusy(f"IOMMU group {group} of {address} is held by {who}", address=address,
                             hint="an IOMMU group has one user at a time: end that one")
        if error.errno == errno.EPERM:
            return NoIommu(f"the IOMMU does not keep the interrupts of {address} apart (no interrupt remapping)",
                           address=address, hint="switch it on in the firmware: without it guests can forge interrupts")
        return BindRefused(f"IOMMU group {group} of {address} can not be used: {error.strerror}", address=address,
                           hint="load the modules vfio-pci and vfio_iommu_type1")

    def _await_group(self, address: str) -> None:
        """A driver is only taken off a device that nobody has open: the kernel would wait for that for ever."""
        function = self._function(self.machine(), address)
        deadline = time.monotonic() + self._patience
        while function.group is not None:
            try:
                self._kernel.try_group(function.group)
                return
            except OSError as error:
                if error.errno != errno.EBUSY:
                    return
                if time.monotonic() > deadline:
                    raise self._group_error(address, function.group, error) from error
            time.sleep(0.02)

    # ---- sysfs

    def _folder(self, address: str) -> Path:
        return self._kernel.sysfs / DEVICES / address

    def _function(self, machine: Machine, address: str) -> Function:
        found = machine.function(address)
        if found is None:
            raise DeviceVanished(f"there is no PCI device {address}", address=address,
                                 hint="`swarmline hardware --all` shows those that are there")
        return found

    def _driver(self, address: str) -> str:
        link = self._folder(address) / "driver"
        return link.readlink().name if link.is_symlink() else ""

    def _vfs(self, address: str) -> tuple[str, ...]:
        found = self.machine().function(address)
        return found.vfs if found else ()

    def _bind(self, f: Function) -> None:
        folder = self._folder(f.address)
        refused = BindRefused(f"{DRIVER} does not take {f.address}", address=f.address,
                              hint=f"load the module {DRIVER}; the kernel log says more"
                                   + (f"; {f.model.caution}" if f.model and f.model.caution else ""))
        self._write(folder / "driver_override", DRIVER, f.address, lambda _: refused)
        if f.driver:
            self._unbind(f.address)
        self._write(self._kernel.sysfs / "bus/pci/drivers_probe", f.address, f.address, lambda _: refused)
        if not folder.exists():
            raise DeviceVanished(f"{f.address} vanished while it was being taken", address=f.address)
        if self._driver(f.address) != DRIVER:
            raise refused

    def _unbind(self, address: str) -> None:
        driver = self._driver(address)
        self._write(self._folder(address) / "driver/unbind", address, address, lambda why: UnbindRefused(
            f"driver {driver} does not let {address} go: {why}", address=address, hint="end what uses it"))
        if self._driver(address) == driver:
            raise UnbindRefused(f"driver {driver} does not let {address} go", address=address, hint="end what uses it")

    def _set_vfs(self, address: str, count: int, autoprobe: str) -> None:
        folder = self._folder(address)
        self._write_if_there(folder / "sriov_drivers_autoprobe", autoprobe)
        self._write(folder / "sriov_numvfs", str(count), address, lambda why: VfCountRefused(
            f"{address} does not change to {count} VFs: {why}", address=address,
            hint="is its driver loaded and able to have VFs? the kernel log says more"))

    def _reset(self, address: str) -> None:
        if not (self._folder(address) / "reset").exists():
            raise ResetUnsupported(f"{address} can not be reset, so what one owner leaves in it the next could read",
                                   address=address, hint="behind a PCIe port of its own it could be")
        self._write(self._folder(address) / "reset", "1", address, lambda why: ResetUnsupported(
            f"{address} did not reset: {why}", address=address))

    def _write_if_there(self, path: Path, value: str) -> None:
        if path.exists():
            with contextlib.suppress(OSError):
                self._kernel.write(path, value)

    def _write(self, path: Path, value: str, address: str, refusal: Callable[[str], HardwareError]) -> None:
        """In a thread of its own: a driver's removal can take for ever, and this must not."""
        failed: list[OSError] = []

        def write() -> None:
            try:
                self._kernel.write(path, value)
            except OSError as error:
                failed.append(error)

        thread = threading.Thread(target=write, name=f"{path.name} {address}", daemon=True)
        thread.start()
        thread.join(self._patience)
        if thread.is_alive():
            self._hung.append((address, thread))      # it may still happen: its record stays
            raise refusal(f"no answer within {self._patience:g} s")
        if failed and not self._folder(address).exists():
            raise DeviceVanished(f"{address} vanished", address=address) from failed[0]
        if failed:
            raise refusal(failed[0].strerror or str(failed[0])) from failed[0]

    # ---- the record

    @contextlib.contextmanager
    def _undone_on_error(self, change: Change) -> Iterator[None]:
        """The change is in the record before the block begins, and undone if it fails."""
        self._write_record([*self._changes(), change])
        try:
            yield
        except BaseException:
            with contextlib.suppress(HardwareError):       # the first error counts; what stays, stays in the record
                self._undo(change)
            raise

    def _changes(self) -> list[Change]:
        try:
            return [Change(**entry) for entry in json.loads(self._record.read_text())]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError) as error:
            raise HardwareError(f"{self._record} is damaged: {error}",
                                hint="it says which devices to give back: mend it, or remove it and look at "
                                     "`swarmline hardware`") from None

    def _write_record(self, changes: list[Change]) -> None:
        """Whole or not at all, also if the machine loses power."""
        if not changes:
            self._record.unlink(missing_ok=True)
            return
        new = self._record.with_suffix(".new")
        with new.open("w") as file:
            json.dump([asdict(change) for change in changes], file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._record)
