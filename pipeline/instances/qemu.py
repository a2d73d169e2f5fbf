# SPDX-License-Identifier: Apache-2.0
"""Driver ``qemu``: an instance is a virtual machine, with the program swarmline-instance as its first and only one.

::

    manager                                        QEMU, user UID_BASE + VMID                  guest
    spawn, all that it needs open        ───▶      doorbell device, connected to the holder    boots
    QMP: running                         ◀───
                                                                              BOOTING   ◀───   takes its seed, is warm
    QMP: one ivshmem-plain device        ───▶      hot-plugs it                         ───▶   attaches, READY
    for each edge, and eth0 for tcp,                                                          as that layer
    if it was not restored with one

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
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

import structlog

from pipeline.errors import HostError, InstanceError, LaunchError
from pipeline.host import cgroups, images, namespaces, processes, vhost
from pipeline.host.accelerators import Guest
from pipeline.host.cpus import prefer_node
from pipeline.host.images import Image
from pipeline.host.memory import sealed_memfd, shared_memfd
from pipeline.host.processes import Process
from pipeline.instances.driver import Driver, InstanceSpec, Outfit, Running
from pipeline.instances.guests import FILES, check, initramfs
from pipeline.instances.kvm import accelerator
from pipeline.instances.monitor import Monitor
from pipeline.instances.process import UID_BASE
from pipeline.instances.qemu_argv import PROGRAM, SHAPE, Accelerator, Machine, interface_options, qemu_argv
from pipeline.instances.template import Template
from pipeline.policy.model import Driver as DriverName
from pipeline.policy.model import Layer

BOOTED = '"event":"booted"'      # what the guest says then
MONITOR_TIMEOUT = 10.0        # seconds until QEMU has made the machine
log = structlog.get_logger()

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
    crypto: bool = False         # its image can use one
    interface: bool = False      # it has one, to which somebody may be connected

    @property
    def guest(self) -> Guest | None:
        return Guest(self.monitor.qmp, self.pid, UID_BASE + self.vm_id) if self.crypto else None

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
        self._making = asyncio.Lock()

    def place(self, folder: PurePath) -> PurePath:
        return FILES

    async def prepare(self, layers: Sequence[Layer], files: PurePath | None) -> str:
        found = await asyncio.to_thread(check, layers, files, self._image_folder)
        return found.remark if found else ""

    async def start(self, spec: InstanceSpec) -> QemuRunning:
        """Under TCG, where booting takes seconds, from a template, which the first machine of its kind makes."""
        try:
            image = self._image(spec)
            chosen = (await asyncio.to_thread(accelerator, image)).accelerator
            restored = await self._from_template(spec, image) if chosen is Accelerator.TCG else None
        except (HostError, OSError) as error:
            raise _failure(spec, error) from error
        return restored or await self.boot(spec)

    def _image(self, spec: InstanceSpec) -> Image:
        return images.load(self._image_folder, images.CRYPTO if spec.crypto else images.GUEST)

    async def boot(self, spec: InstanceSpec) -> QemuRunning:
        """Without a template."""
        try:
            image = self._image(spec)
            chosen = (await asyncio.to_thread(accelerator, image)).accelerator
            with ExitStack() as stack:
                launch = _Launch(spec, image, chosen, stack)
                await _to_its_end(launch.settle)
                launch.spawn(doorbell=True)
                return await launch.running()
        except (HostError, OSError) as error:
            raise _failure(spec, error) from error

    async def _from_template(self, spec: InstanceSpec, image: Image) -> QemuRunning | None:
        """None: that did not work, so it is to be booted."""
        template = await asyncio.to_thread(_template_of, spec, image)
        try:
            async with self._making:
                if not template.there:
                    await self._make(template, spec, image)
            return await self._restore(template, spec, image)
        except LaunchError:
            raise                  # it would be no better without
        except (InstanceError, OSError, TimeoutError) as error:
            log.warning("a machine is booted, as its template is of no use", vm_id=spec.vm_id, why=str(error))
            template.remove()
            return None

    async def _make(self, template: Template, spec: InstanceSpec, image: Image) -> None:
        with ExitStack() as ours, ExitStack() as stack:
            launch = _Launch(spec, image, Accelerator.TCG, stack, huge=False)
            state = os.memfd_create("sl-template", os.MFD_CLOEXEC)
            memory = os.dup(launch.memory_fd)
            for fd in (state, memory):
                ours.callback(os.close, fd)
            launch.spawn()
            running = await launch.running()
            try:
                booted = await _booted(running)
                if booted:
                    await running.monitor.save(state)
            finally:
                await self.stop(running)
            if not booted:
                raise LaunchError(f"its guest ended: {running.why}", argv=(), vm_id=spec.vm_id,
                                  log_lines=processes.log_tail(spec.log_path))
            await _to_its_end(template.keep, memory, spec.memory, state)

    async def _restore(self, template: Template, spec: InstanceSpec, image: Image) -> QemuRunning:
        with ExitStack() as ours, ExitStack() as stack:
            state = os.open(template.state, os.O_RDONLY | os.O_CLOEXEC)
            ours.callback(os.close, state)
            launch = _Launch(spec, image, Accelerator.TCG, stack)
            await _to_its_end(launch.settle)
            await _to_its_end(template.pour, launch.memory_fd, spec.memory)
            launch.spawn(incoming=True)
            running = await launch.running()
            try:
                await running.monitor.restore(state)
                if spec.tap:      # what takes longest about it is that the guest finds the device
                    stand_in = vhost.stand_in(spec.run_dir, spec.vm_id)
                    await running.monitor.plug_idle_interface(vhost.SOCKET, spec.tap.mac, stand_in,
                                                              **interface_options(running.accelerator))
                    running.interface = True
                # not before: the holder takes one connection, and a machine that must be booted instead needs it
                holder = ours.enter_context(launch.holder())
                await running.monitor.plug_doorbell(holder.fileno())
            except BaseException:
                await self.stop(running)
                raise
            return running

    async def adopt(self, spec: InstanceSpec, pid: int, grants: int) -> Running | None:
        process = Process.of(pid)
        words = {processes.run_dir_argument(spec.run_dir), f"--vm-id={spec.vm_id}"}
        pidfd = process.open() if process and words <= set(process.argv) else None
        if process is None or pidfd is None:
            return None
        kind = Accelerator.KVM if Accelerator.KVM in process.argv else Accelerator.TCG
        running = QemuRunning(spec.vm_id, process, pidfd, spec.log_path, monitor=Monitor(f"instance {spec.vm_id}"),
                              accelerator=kind, socket_path=_monitor_path(spec), crypto=spec.crypto)
        try:
            await running.monitor.connect(running.socket_path, MONITOR_TIMEOUT)
            running.interface = await running.monitor.has_interface()
        except InstanceError:              # of no use to anybody any more
            await self.stop(running)
            return None
        return running

    async def plug(self, running: Running, outfit: Outfit) -> None:
        """Waits until the guest has booted: a device that comes while the firmware or the kernel looks for devices may
        be overlooked by both, or lie where memory is not cached.
        """
        assert isinstance(running, QemuRunning)
        await running.booted.wait()
        if outfit.tap:
            if running.interface:
                outfit.listening()
            else:
                await running.monitor.plug_interface(vhost.SOCKET, outfit.tap.mac, outfit.listening,
                                                     **interface_options(running.accelerator))
                running.interface = True
        for grant in outfit.edges:
            await running.monitor.plug(_device(grant.edge_id), grant.memfd)

    async def unplug(self, running: Running, outfit: Outfit) -> None:
        assert isinstance(running, QemuRunning)
        for grant in outfit.edges:
            await running.monitor.unplug(_device(grant.edge_id))
        if outfit.tap:
            await running.monitor.unplug_interface()
            running.interface = False

    async def abandon(self, spec: InstanceSpec) -> None:
        await super().abandon(spec)
        _clean_up(_monitor_path(spec), spec.vm_id)

    async def stop(self, running: Running) -> None:
        assert isinstance(running, QemuRunning)
        await super().stop(running)
        _clean_up(running.socket_path, running.vm_id)


class _Launch:
    """One attempt to start a virtual machine. What it opens is closed at the end: QEMU has its own."""

    def __init__(self, spec: InstanceSpec, image: Image, chosen: Accelerator, stack: ExitStack, *,
                 huge: bool = True) -> None:
        self._spec = spec
        self._stack = stack
        self._name = f"instance {spec.vm_id}"
        self._path = _monitor_path(spec)
        self._monitor = Monitor(self._name)
        self._child: subprocess.Popen[bytes] | None = None
        self._argv: list[str] = []
        listener = stack.enter_context(_socket())
        self._path.unlink(missing_ok=True)
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        listener.bind(str(self._path))
        listener.listen(1)
        name = f"sl-guest-{spec.vm_id}"
        self.memory_fd = self._own(shared_memfd(name, spec.memory)[0] if huge else sealed_memfd(name, spec.memory))
        self._machine = Machine(
            spec.vm_id, spec.run_dir, chosen, spec.memory, memory_fd=self.memory_fd,
            kernel_fd=self._own(os.open(image.kernel, os.O_RDONLY | os.O_CLOEXEC)),
            initramfs_fd=self._own(initramfs(image, spec)), monitor_fd=listener.fileno())

    def settle(self) -> None:
        """Its memory is on the node where it is to run, if there is one. Takes a while when it is large."""
        if self._spec.node is not None:
            prefer_node(self.memory_fd, self._spec.memory, self._spec.node)

    def holder(self) -> socket.socket:
        """Connected to the holder, once for the machine's life."""
        holder = _socket()
        holder.connect(str(self._spec.ivshmem_socket))
        return holder

    def spawn(self, *, doorbell: bool = False, incoming: bool = False) -> None:
        """With its doorbell device, or without."""
        holder = self._stack.enter_context(self.holder()) if doorbell else None
        machine = replace(self._machine, ivshmem_fd=holder.fileno() if holder else None, incoming=incoming)
        self._argv = qemu_argv(processes.program(PROGRAM), machine)
        user = UID_BASE + self._spec.vm_id
        groups = [grp.getgrnam("kvm").gr_gid] if machine.accelerator is Accelerator.KVM else []
        self._spec.log_path.parent.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC    # of this start alone
        output = self._own(os.open(self._spec.log_path, flags, 0o600))
        # where its interface is, if it gets one
        folder = vhost.folder_make(self._spec.run_dir, self._spec.vm_id, user)
        # restore_signals: a full log must be no reason to die
        self._child = namespaces.spawn_alone(
            [*LIMITS, *self._argv], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, umask=0,
            pass_fds=machine.fds, user=user, group=user, extra_groups=groups, start_new_session=True,
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
                           accelerator=self._machine.accelerator, socket_path=self._path, child=self._child,
                           crypto=self._spec.crypto)

    def _pin(self, pid: int) -> None:
        for thread in os.listdir(f"/proc/{pid}/task") if self._spec.cpus else ():
            os.sched_setaffinity(int(thread), self._spec.cpus)

    def _own(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd


def _failure(spec: InstanceSpec, error: HostError | OSError) -> LaunchError:
    hint = error.hint if isinstance(error, HostError) else ""
    return LaunchError(f"instance {spec.vm_id} did not start: {error}", argv=(), vm_id=spec.vm_id, hint=hint)


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


async def _booted(running: QemuRunning) -> bool:
    """Returns when the machine waits for its doorbell device, and has done all that it can do before that; False: when
    it has ended. How long that may take, whoever wants the machine decides.
    """
    while BOOTED not in running.log_path.read_text(errors="replace"):
        if not running.alive:
            return False
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.05)
    return True


async def _to_its_end(step: Callable[..., object], *args: object) -> None:
    """In a thread, and not left before it has ended, also when cancelled: the thread uses what is closed then."""
    task = asyncio.create_task(asyncio.to_thread(step, *args))
    try:
        await asyncio.shield(task)
    finally:
        await asyncio.wait([task])


def _template_of(spec: InstanceSpec, image: Image) -> Template:
    fd = initramfs(image, spec)
    try:
        files = os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
    program = processes.program(PROGRAM).resolve().stat()
    shape = f"{SHAPE} {spec.memory} {program.st_size} {program.st_mtime_ns}"
    return Template.of(image.folder, image.digest.encode(), files, shape.encode())


def _clean_up(monitor_path: Path, vm_id: int) -> None:
    """What is left of a machine that has ended."""
    monitor_path.unlink(missing_ok=True)
    run_dir = monitor_path.parents[1]
    cgroups.leave(run_dir, vm_id)
    vhost.folder_remove(run_dir, vm_id)


def _monitor_path(spec: InstanceSpec) -> Path:
    return spec.run_dir / "instances" / f"{spec.vm_id}.qmp"


def _device(edge_id: int) -> str:
    return f"edge-{edge_id:#x}"
