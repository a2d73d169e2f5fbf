# SPDX-License-Identifier: Apache-2.0
"""Driver ``process``: an instance is a sandboxed process, the program swarmline-instance.

::

    manager                                            swarmline-instance
    connect to DIR/ivshmem/N.sock
    spawn with --ivshmem-fd --grants-fd --pid-fd ───▶  first process: makes the namespaces
                                          pid    ◀───  and the instance in them, then exits
                                                       closes its walls; READY without a layer in VMStatus
    assignment in the control region             ───▶  lets go of what it had
    eth0 with its addresses in its namespace
    edges, listening sockets, folder             ───▶  attaches, READY as that layer

The first process is the manager's child; the instance itself becomes the holder's, which reaps it. The instance can
open nothing itself: what an assignment needs comes as descriptors (struct sl_grants), as often as it gets another one.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline._native import lib
from pipeline.errors import InstanceError, LaunchError, NamespaceError, SwarmlineError
from pipeline.host import namespaces, processes, wire
from pipeline.host.folder import folder_open
from pipeline.host.processes import Process, readable
from pipeline.host.tap import TapSpec, net_setup, tap_create
from pipeline.instances.driver import Driver, InstanceSpec, Outfit, Running
from pipeline.policy.model import Driver as DriverName

PROGRAM = "swarmline-instance"
UID_BASE = 700_000        # an instance is user and group UID_BASE + VMID, which no system has given out


@dataclass
class _Ends:
    """Descriptors of one launch. ``theirs`` go to the program; all are closed at the end of ``start``."""

    ivshmem: socket.socket
    grants: socket.socket
    their_grants: socket.socket
    pid_reader: int
    pid_writer: int

    @property
    def theirs(self) -> tuple[int, int, int]:
        return self.ivshmem.fileno(), self.their_grants.fileno(), self.pid_writer

    def close_theirs(self) -> None:
        """After the spawn: from now on only the instance holds these, so its death closes them."""
        self.ivshmem.close()
        self.their_grants.close()
        if self.pid_writer >= 0:
            os.close(self.pid_writer)
            self.pid_writer = -1

    def close(self) -> None:
        self.close_theirs()
        self.grants.close()
        os.close(self.pid_reader)


class ProcessDriver(Driver):
    """Starts swarmline-instance."""

    name = DriverName.PROCESS

    async def start(self, spec: InstanceSpec) -> Running:
        ends = _open_ends(spec)
        launch = _Launch(spec)
        try:
            launch.spawn(ends)
            ends.close_theirs()
            running = await launch.instance(ends.pid_reader)
            running.grants = ends.grants.detach()
            return running
        except BaseException:
            await asyncio.shield(self._abandon(spec, launch))
            raise
        finally:
            ends.close()

    async def _abandon(self, spec: InstanceSpec, launch: _Launch) -> None:
        await self.abandon(spec)
        await launch.reap()

    async def adopt(self, spec: InstanceSpec, pid: int, grants: int) -> Running | None:
        process = Process.of(pid)
        pidfd = process.open() if process and _is_instance(process, spec) else None
        if process is None or pidfd is None:
            if grants >= 0:
                os.close(grants)
            return None
        return Running(spec.vm_id, process, pidfd, spec.log_path, grants)

    async def plug(self, running: Running, outfit: Outfit) -> None:
        granted = [(lib.SL_GRANT_EDGE, edge.edge_id, edge.memfd) for edge in outfit.edges]
        own: list[int] = []
        try:
            if outfit.tap:
                running.tap_fd = _tap(running, outfit.tap)
                for service, fd in net_setup(running.pid, outfit.assignment, outfit.backlog):
                    own.append(fd)
                    granted.append((lib.SL_GRANT_LISTENER, service, fd))
            if outfit.root is not None:
                own.append(folder_open(outfit.root))
                granted.append((lib.SL_GRANT_ROOT, 0, own[-1]))
            _grant(running.grants, outfit.number, granted)
        except (SwarmlineError, OSError) as error:
            hint = error.hint if isinstance(error, SwarmlineError) else ""
            text = f"it does not get what its layer needs: {error}"
            raise InstanceError(text, vm_id=running.vm_id, hint=hint) from error
        finally:
            wire.close_all(own)

    async def unplug(self, running: Running, outfit: Outfit) -> None:
        """Nothing: it has unmapped them, and what it was granted was its own."""


class _Launch:
    """One attempt to start an instance; knows what to say if it fails."""

    def __init__(self, spec: InstanceSpec) -> None:
        self._spec = spec
        self._name = f"instance {spec.vm_id}"
        self._argv: list[str] = []
        self._first: subprocess.Popen[bytes] | None = None

    def spawn(self, ends: _Ends) -> None:
        spec = self._spec
        ivshmem, grants, pid = ends.theirs
        user = UID_BASE + spec.vm_id
        self._argv = [str(processes.program(PROGRAM)), processes.run_dir_argument(spec.run_dir),
                      f"--vm-id={spec.vm_id}", f"--ivshmem-fd={ivshmem}", f"--grants-fd={grants}",
                      f"--pid-fd={pid}", f"--uid={user}", f"--gid={user}"]
        spec.log_path.parent.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC    # of this start alone
        try:
            with open(os.open(spec.log_path, flags, 0o600), "ab") as log:
                self._first = subprocess.Popen(
                    self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                    pass_fds=ends.theirs, start_new_session=True, env=processes.environment())
        except OSError as error:
            raise self._error(f"cannot run {self._argv[0]}: {error.strerror}") from error

    async def instance(self, pid_reader: int) -> Running:
        """Waits for the end of the first process and takes the pid that it left."""
        status = await self._first_exit()
        text = _read_text(pid_reader)       # complete: its writer has ended
        pid = int(text) if text.isdigit() and len(text) <= 10 else 0
        if status or not pid:
            raise self._error(f"{self._name} did not start", status)
        process = Process.of(pid)
        pidfd = process.open() if process else None
        if process is None or pidfd is None:
            raise self._error(f"{self._name} ended at once")
        if not _is_instance(process, self._spec):
            os.close(pidfd)
            raise self._error(f"process {pid} is not {self._name}, though it was named as that")
        return Running(self._spec.vm_id, process, pidfd, self._spec.log_path)

    async def reap(self) -> None:
        """Of an attempt that failed, the first process, whatever it is doing."""
        if self._first:
            self._first.kill()
            await self._first_exit()

    async def _first_exit(self) -> int:
        assert self._first
        if self._first.poll() is None:
            pidfd = os.pidfd_open(self._first.pid)     # our child, not reaped: the pid is its
            try:
                await readable(pidfd)
            finally:
                os.close(pidfd)
        return self._first.wait()

    def _error(self, message: str, status: int | None = None, hint: str = "") -> LaunchError:
        if status is None and self._first is not None:
            status = self._first.poll() or None
        return LaunchError(message, argv=self._argv, exit_status=status, vm_id=self._spec.vm_id,
                           log_lines=processes.log_tail(self._spec.log_path),
                           hint=hint or f"its log is {self._spec.log_path}")


def _open_ends(spec: InstanceSpec) -> _Ends:
    ivshmem = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        ivshmem.connect(str(spec.ivshmem_socket))
    except OSError as error:
        ivshmem.close()
        raise LaunchError(f"instance {spec.vm_id} cannot be connected to the holder: {error.strerror}",
                          argv=(), vm_id=spec.vm_id) from error
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(writer, True)
    return _Ends(ivshmem, ours, theirs, reader, writer)


def _tap(running: Running, spec: TapSpec) -> int:
    if namespaces.identity(running.pid) == namespaces.identity(""):
        raise NamespaceError(f"instance {running.vm_id} has no network namespace of its own")
    return tap_create(running.pid, spec)


def _grant(sock: int, number: int, granted: Sequence[tuple[int, int, int]]) -> None:
    """One message (struct sl_grants). It waits in the socket until the instance reads it."""
    data = struct.pack("<II", number, len(granted)) + b"".join(struct.pack("<II", kind, n) for kind, n, _ in granted)
    with socket.socket(fileno=os.dup(sock)) as ours:
        ours.setblocking(False)
        socket.send_fds(ours, [data], [fd for _, _, fd in granted])


def _read_text(fd: int) -> bytes:
    try:
        return os.read(fd, 32).strip()
    except BlockingIOError:
        return b""


def _is_instance(process: Process, spec: InstanceSpec) -> bool:
    return {processes.run_dir_argument(spec.run_dir), f"--vm-id={spec.vm_id}"} <= set(process.argv)
