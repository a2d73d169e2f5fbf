# SPDX-License-Identifier: Apache-2.0
"""The command line of a virtual machine. Pure: files and sockets are numbers of descriptors that QEMU inherits.

QEMU runs without any right, as a user that owns nothing, so it is given all that it needs open: it could not reach the
run-time folder. Edges come later, by QMP.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.host.ivshmem import BELLS
from pipeline.host.processes import run_dir_argument

PROGRAM = "qemu-system-x86_64"
# What the guest's kernel need not try, as it is known. `quiet`: the console is slow, and holds what went wrong.
KERNEL_ARGUMENTS = "console=ttyS0 quiet panic=-1 cryptomgr.notests no_timer_check"


class Accelerator(StrEnum):
    """What runs the guest's instructions."""

    KVM = "kvm"        # the CPU
    TCG = "tcg"        # QEMU translates them: works everywhere, many times slower


# `pc` for both: it boots as fast as any, and takes devices into any slot while the guest runs. q35 wants a root port
# for each, microvm takes none at all. TCG guests need no defence against speculation: what runs is QEMU's code.
_MACHINE = "pc,usb=off,vmport=off,memory-backend=ram"
_ACCEL = {Accelerator.KVM: "kvm", Accelerator.TCG: "tcg,tb-size=64"}     # MiB of translated code; else up to a GiB
_CPU = {Accelerator.KVM: "host", Accelerator.TCG: "max"}
_KERNEL_MORE = {Accelerator.KVM: "", Accelerator.TCG: " mitigations=off"}
# Edges lie above 4 GiB, where the firmware leaves memory cached: a window for the largest that there can be.
_WINDOW = "i440FX-pcihost.pci-hole64-size=32G"
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# a state that was saved in a machine of one shape is good for no other
SHAPE = " ".join((_MACHINE, *_CPU.values(), *_ACCEL.values(), _WINDOW, KERNEL_ARGUMENTS, *_KERNEL_MORE.values()))


@dataclass(frozen=True)
class Machine:
    """One virtual machine. ``memory`` is in bytes; the names that end with ``fd`` are descriptors."""

    vm_id: int
    run_dir: Path
    accelerator: Accelerator
    memory: int
    memory_fd: int
    kernel_fd: int
    initramfs_fd: int
    monitor_fd: int              # listens
    ivshmem_fd: int | None = None    # connected to the holder; None: the doorbell device comes later
    incoming: bool = False       # goes on from a saved state, which comes by its monitor

    @property
    def fds(self) -> tuple[int, ...]:
        """Those that QEMU must inherit."""
        doorbell = () if self.ivshmem_fd is None else (self.ivshmem_fd,)
        return self.memory_fd, self.kernel_fd, self.initramfs_fd, self.monitor_fd, *doorbell


def qemu_argv(program: Path, machine: Machine) -> list[str]:
    """Its console is its standard output."""
    m = machine
    return [
        str(program), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", _SANDBOX,
        "-name", f"swarmline-{m.vm_id},debug-threads=on",
        # where it would look for its firmware first: two folders that do not exist, by which `processes` knows it
        "-L", run_dir_argument(m.run_dir), "-L", f"--vm-id={m.vm_id}",
        "-machine", _MACHINE, "-accel", _ACCEL[m.accelerator], "-cpu", _CPU[m.accelerator], "-global", _WINDOW,
        "-m", str(m.memory >> 20), "-object", memory_object(m.memory, m.memory_fd),
        "-kernel", path_of(m.kernel_fd), "-initrd", path_of(m.initramfs_fd),
        "-append", KERNEL_ARGUMENTS + _KERNEL_MORE[m.accelerator],
        "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
        "-chardev", f"socket,id=monitor,fd={m.monitor_fd},server=on,wait=off", "-mon", "chardev=monitor,mode=control",
        *(() if m.ivshmem_fd is None else ("-chardev", f"socket,id=holder,fd={m.ivshmem_fd}",
                                           "-device", f"ivshmem-doorbell,id=doorbell,chardev=holder,vectors={BELLS}")),
        *(("-incoming", "defer") if m.incoming else ()),
    ]


def interface_options(accelerator: Accelerator) -> dict[str, object]:
    """Of its interface, which is plugged in when it is given a layer that needs one. TCG: QEMU 7.2 dies of a vhost-user
    device with MSI-X.
    """
    return {"disable-legacy": "on", **({"vectors": 0} if accelerator is Accelerator.TCG else {})}


def memory_object(length: int, fd: int) -> str:
    """The guest's RAM. Shared, as the router reads and writes the frames in it."""
    return f"memory-backend-file,id=ram,size={length},mem-path={path_of(fd)},share=on"


def path_of(fd: int) -> str:
    """How QEMU opens what it has inherited: a memfd has no other path."""
    return f"/proc/self/fd/{fd}"
