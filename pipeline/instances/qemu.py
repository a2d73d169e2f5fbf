# SPDX-License-Identifier: Apache-2.0
"""Driver ``qemu``: an instance is a virtual machine, with the program swarmline-instance as its first and only one.

::

    manager                                        QEMU, user UID_BASE + VMID                  guest
    spawn, all that it needs open        ───▶      doorbell device, connected to the holder    boots
    QMP: running                         ◀───
                                                                              BOOTING   ◀───   takes its seed, is warm
    QMP: one ivshmem-plain device        ───▶      hot-plugs it                         ───▶   attaches, READY
    for each edge, and eth0 for tcp                                                           as that layer

QEMU is the manager's child while that lives, and then the holder's. A later manager finds it by the words on its
command line and connects to its monitor, RUN_DIR/instances/VMID.qmp.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from pipeline.errors import HostError, InstanceError, LaunchError
from pipeline.host import cgroups, cpio, images, namespaces, processes, vhost
from pipeline.host.images import Image
from pipeline.host.memory import sealed_memfd, shared_memfd
from pipeline.host.processes import Process
from pipeline.host.router import ROUTER_UID
from pipeline.instances.driver import Driver, InstanceSpec, Outfit, Running
from pipeline.instances.guests import check, files_fit
from pipeline.instances.kvm import accelerator
from pipeline.instances.monitor import Monitor
from pipeline.instances.process import UID_BASE
from pipeline.instances.qemu_argv import PROGRAM, Accelerator, Machine, interface_options, qemu_argv
from pipeline.policy.model import Driver as DriverName
from pipeline.policy.model import Layer

FILES = PurePath("/srv")      # where a guest has the folder that its layer serves
MONITOR_TIMEOUT = 10.0        # seconds until QEMU has made the machine
# As a process instance has them: no core dump, which would hold keys; the console log ends at 1 MiB, whatever the
# guest writes. And the threads that QEMU needs.
# It may take its memory, and this much besides: QEMU itself, translated code, and edges where there are no hugepages.
BESIDE = 1 << 30
THREADS = 64
LIMITS = ("prlimit", "--core=0", f"--fsize={1 << 20}", f"--nproc={THREADS}")


@dataclass
class QemuRunning(Running):
    """A virtual machine. ``child``: of this manager."""

    monitor: Monitor = field(default_factory=lambda: Monitor("a virtual machine"))
    accelerator: Accelerator = Accelerator.TCG
    socket_path: Path = Path()
    child: subprocess.Popen[bytes] | None = None

    @property
    def about(self) -> Mapping[str, str]:
        return {"accelerator": self.accelerator.value}

    async def wait(self) -> None:
        await super().wait()
        if self.child:
            self.child.wait()
        await self.monitor.close(ended=True)
        self.why = self.why or self.monitor.end

    def close(self) -> None:
        super().close()
        if self.child:
            self.child.returncode = 0      # it goes on; the holder reaps it


class QemuDriver(Driver):
    """Starts QEMU."""

    name = DriverName.QEMU
    vhost = True

    def __init__(self, image_folder: Path | None = None) -> None:
        self._image_folder = image_folder or images.default_folder()

    def place(self, folder: PurePath) -> PurePath:
        return FILES

    async def prepare(self, layers: Sequence[Layer], files: PurePath | None) -> str:
        found = await asyncio.to_thread(check, layers, files, self._image_folder)
        return found.remark if found else ""

    async def start(self, spec: InstanceSpec) -> QemuRunning:
        try:
            image = images.load(self._image_folder)
            chosen = (await asyncio.to_thread(accelerator, image)).accelerator
            with ExitStack() as stack:
                launch = _Launch(spec, image, chosen, stack)
                launch.spawn()
                return await launch.running()
        except (HostError, OSError) as error:
            hint = error.hint if isinstance(error, HostError) else ""
            raise LaunchError(f"instance {spec.vm_id} did not start: {error}", argv=(), vm_id=spec.vm_id,
                              hint=hint) from error

    async def adopt(self, spec: InstanceSpec, pid: int, grants: int) -> Running | None:
        process = Process.of(pid)
        words = {processes.run_dir_argument(spec.run_dir), f"--vm-id={spec.vm_id}"}
        pidfd = process.open() if process and words <= set(process.argv) else None
        if process is None or pidfd is None:
            return None
        kind = Accelerator.KVM if Accelerator.KVM in process.argv else Accelerator.TCG
        running = QemuRunning(spec.vm_id, process, pidfd, spec.log_path, monitor=Monitor(f"instance {spec.vm_id}"),
                              accelerator=kind, socket_path=_monitor_path(spec))
        try:
            await running.monitor.connect(running.socket_path, MONITOR_TIMEOUT)
        except InstanceError:              # of no use to anybody any more
            running.kill()
            running.close()
            return None
        return running

    async def plug(self, running: Running, outfit: Outfit) -> None:
        """Waits until the guest has booted: a device that comes while the firmware or the kernel looks for devices may
        be overlooked by both, or lie where memory is not cached.
        """
        assert isinstance(running, QemuRunning)
        await running.booted.wait()
        if outfit.tap:
            await running.monitor.plug_interface(vhost.SOCKET, outfit.tap.mac, **interface_options(running.accelerator))
        for grant in outfit.edges:
            await running.monitor.plug(_device(grant.edge_id), grant.memfd)

    async def unplug(self, running: Running, outfit: Outfit) -> None:
        assert isinstance(running, QemuRunning)
        for grant in outfit.edges:
            await running.monitor.unplug(_device(grant.edge_id))
        if outfit.tap:
            await running.monitor.unplug_interface()

    async def stop(self, running: Running) -> None:
        assert isinstance(running, QemuRunning)
        await super().stop(running)
        running.socket_path.unlink(missing_ok=True)
        run_dir = running.socket_path.parents[1]
        cgroups.leave(run_dir, running.vm_id)
        vhost.folder_remove(run_dir, running.vm_id)


class _Launch:
    """One attempt to start a virtual machine. What it opens is closed at the end: QEMU has its own."""

    def __init__(self, spec: InstanceSpec, image: Image, chosen: Accelerator, stack: ExitStack) -> None:
        self._spec = spec
        self._stack = stack
        self._name = f"instance {spec.vm_id}"
        self._path = _monitor_path(spec)
        self._monitor = Monitor(self._name)
        self._child: subprocess.Popen[bytes] | None = None
        listener = self._socket()
        self._path.unlink(missing_ok=True)
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        listener.bind(str(self._path))
        listener.listen(1)
        holder = self._socket()
        holder.connect(str(spec.ivshmem_socket))
        self._machine = Machine(
            spec.vm_id, spec.run_dir, chosen, spec.memory,
            memory_fd=self._own(shared_memfd(f"sl-guest-{spec.vm_id}", spec.memory)[0]),
            kernel_fd=self._own(os.open(image.kernel, os.O_RDONLY | os.O_CLOEXEC)),
            initramfs_fd=self._own(_initramfs(image, spec)), monitor_fd=listener.fileno(), ivshmem_fd=holder.fileno())
        self._argv = qemu_argv(processes.program(PROGRAM), self._machine)

    def spawn(self) -> None:
        user = UID_BASE + self._spec.vm_id
        groups = [grp.getgrnam("kvm").gr_gid] if self._machine.accelerator is Accelerator.KVM else []
        self._spec.log_path.parent.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC    # of this start alone
        log = self._own(os.open(self._spec.log_path, flags, 0o600))
        # where its interface is, if it gets one
        folder = vhost.folder_make(self._spec.run_dir, self._spec.vm_id, user, ROUTER_UID)
        # restore_signals: a full log must be no reason to die
        self._child = namespaces.spawn_alone(
            [*LIMITS, *self._argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, umask=0,
            pass_fds=self._machine.fds, user=user, group=user, extra_groups=groups, start_new_session=True,
            restore_signals=False, env=processes.environment())

    async def running(self) -> QemuRunning:
        """Waits until the machine runs. Raises LaunchError, and leaves nothing then."""
        assert self._child
        pidfd = os.pidfd_open(self._child.pid)
        try:
            process = Process.of(self._child.pid)
            self._stack.close()            # from now on only QEMU holds these, so its death closes them
            await self._monitor.connect(self._path, MONITOR_TIMEOUT)
            if process is None:
                raise InstanceError(f"QEMU of {self._name} ended at once")
            self._pin(process.pid)
            spec = self._spec
            cgroups.enter(spec.run_dir, spec.vm_id, process.pid, cgroups.Limits(spec.memory + BESIDE, THREADS))
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            status = self._child.wait()
            await self._monitor.close(ended=True)
            self._path.unlink(missing_ok=True)
            cgroups.leave(self._spec.run_dir, self._spec.vm_id)
            if not isinstance(error, InstanceError | OSError):
                raise
            raise LaunchError(
                f"{self._name} did not start: {error}", argv=self._argv, vm_id=self._spec.vm_id,
                exit_status=None if status == -signal.SIGKILL else status,
                log_lines=processes.log_tail(self._spec.log_path), hint=f"its log is {self._spec.log_path}") from error
        return QemuRunning(self._spec.vm_id, process, pidfd, self._spec.log_path, monitor=self._monitor,
                           accelerator=self._machine.accelerator, socket_path=self._path, child=self._child)

    def _pin(self, pid: int) -> None:
        for thread in os.listdir(f"/proc/{pid}/task") if self._spec.cpus else ():
            os.sched_setaffinity(int(thread), self._spec.cpus)

    def _socket(self) -> socket.socket:
        return self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))

    def _own(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd


def _initramfs(image: Image, spec: InstanceSpec) -> int:
    """The image's, with the files that the layer serves behind it, as they are now."""
    if spec.files is None:
        return os.open(image.initramfs, os.O_RDONLY | os.O_CLOEXEC)
    files_fit(spec.files, spec.memory)
    data = images.initramfs_with(image, cpio.tree(spec.files, FILES.name))
    fd = sealed_memfd(f"sl-initramfs-{spec.vm_id}", len(data))
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    return fd


def _monitor_path(spec: InstanceSpec) -> Path:
    return spec.run_dir / "instances" / f"{spec.vm_id}.qmp"


def _device(edge_id: int) -> str:
    return f"edge-{edge_id:#x}"
