# SPDX-License-Identifier: Apache-2.0
"""Driver ``process``: an instance is a sandboxed process, the program swarmline-instance.

::

    manager                                            swarmline-instance
    connect to DIR/ivshmem/N.sock
    spawn with --ivshmem-fd --edges-fd --pid-fd  ───▶  first process: makes the namespaces
                                          pid    ◀───  and the instance in them, then exits
    tap eth0 in the instance's namespace         ───▶
    edge_id + memfd, for each edge               ───▶  attaches, READY in VMStatus

The first process is the manager's child; the instance itself becomes the holder's, which reaps it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import InstanceError, LaunchError, SwarmlineError
from pipeline.host import namespaces, processes
from pipeline.host.processes import Process, readable
from pipeline.host.tap import tap_create
from pipeline.instances.driver import Driver, EdgeGrant, InstanceSpec, Running
from pipeline.policy.model import Driver as DriverName

PROGRAM = "swarmline-instance"
UID_BASE = 700_000        # an instance is user and group UID_BASE + VMID, which no system has given out
START_TIMEOUT = 5.0       # seconds until the instance's pid must be known


@dataclass
class _Ends:
    """Descriptors of one launch. ``theirs`` go to the program; all are closed at the end of ``start``."""

    ivshmem: socket.socket
    edges: socket.socket
    their_edges: socket.socket
    pid_reader: int
    pid_writer: int

    @property
    def theirs(self) -> tuple[int, int, int]:
        return self.ivshmem.fileno(), self.their_edges.fileno(), self.pid_writer

    def close_theirs(self) -> None:
        """After the spawn: from now on only the instance holds these, so its death closes them."""
        self.ivshmem.close()
        self.their_edges.close()
        if self.pid_writer >= 0:
            os.close(self.pid_writer)
            self.pid_writer = -1

    def take_edges(self) -> socket.socket:
        """From now on the caller's."""
        edges = self.edges.dup()
        edges.setblocking(False)
        return edges

    def close(self) -> None:
        self.close_theirs()
        self.edges.close()
        os.close(self.pid_reader)


@dataclass
class ProcessRunning(Running):
    """``edges``: the socket in which it takes the memory of its edges; None if a former manager had it."""

    edges: socket.socket | None = None

    def close(self) -> None:
        super().close()
        if self.edges:
            self.edges.close()
            self.edges = None


class ProcessDriver(Driver):
    """Starts swarmline-instance."""

    name = DriverName.PROCESS

    def __init__(self, start_timeout: float = START_TIMEOUT) -> None:
        self._start_timeout = start_timeout

    async def start(self, spec: InstanceSpec) -> Running:
        ends = _open_ends(spec)
        launch = _Launch(spec)
        try:
            launch.spawn(ends)
            ends.close_theirs()
            running = await launch.instance(ends.pid_reader, self._start_timeout)
            try:
                if spec.tap:
                    running.tap_fd = launch.tap(running.pid)
                running.edges = ends.take_edges()
            except BaseException:
                running.kill()
                await asyncio.shield(running.wait())
                running.close()
                raise
            return running
        except BaseException:
            await asyncio.shield(launch.abandon())
            raise
        finally:
            ends.close()

    async def adopt(self, spec: InstanceSpec, pid: int) -> Running | None:
        process = Process.of(pid)
        if process is None or not _is_instance(process, spec):
            return None
        pidfd = process.open()
        return None if pidfd is None else ProcessRunning(spec.vm_id, process, pidfd, spec.log_path)

    async def plug(self, running: Running, grants: Sequence[EdgeGrant]) -> None:
        """One message for each edge; they wait in the socket until the instance reads them."""
        assert isinstance(running, ProcessRunning)
        if running.edges is None:
            raise InstanceError(f"instance {running.vm_id} was started by a former manager: it takes no more edges")
        try:
            for grant in grants:
                socket.send_fds(running.edges, [struct.pack("<I", grant.edge_id)], [grant.memfd])
        except OSError as error:
            raise InstanceError(f"instance {running.vm_id} did not take its edges: {error.strerror}") from error

    async def unplug(self, running: Running, edge_ids: Sequence[int]) -> None:
        """Nothing: what it has unmapped is gone."""


class _Launch:
    """One attempt to start an instance; knows what to say if it fails."""

    def __init__(self, spec: InstanceSpec) -> None:
        self._spec = spec
        self._name = f"instance {spec.vm_id}"
        self._argv: list[str] = []
        self._first: subprocess.Popen[bytes] | None = None

    def spawn(self, ends: _Ends) -> None:
        spec = self._spec
        ivshmem, edges, pid = ends.theirs
        user = UID_BASE + spec.vm_id
        self._argv = [str(processes.program(PROGRAM)), processes.run_dir_argument(spec.run_dir),
                      f"--vm-id={spec.vm_id}", f"--ivshmem-fd={ivshmem}", f"--edges-fd={edges}",
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

    async def instance(self, pid_reader: int, patience: float) -> ProcessRunning:
        """Waits for the end of the first process, at most so many seconds, and takes the pid that it left."""
        try:
            async with asyncio.timeout(patience):
                status = await self._first_exit()
        except TimeoutError:
            raise self._error(f"{self._name} did not say its pid within {patience:g} s") from None
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
        return ProcessRunning(self._spec.vm_id, process, pidfd, self._spec.log_path)

    def tap(self, pid: int) -> int:
        assert self._spec.tap
        try:
            if namespaces.identity(pid) == namespaces.identity(""):
                raise self._error(f"{self._name} has no network namespace of its own")
            return tap_create(pid, self._spec.tap)
        except LaunchError:
            raise
        except SwarmlineError as error:
            raise self._error(f"{self._name} gets no interface: {error}", hint=error.hint) from error

    async def abandon(self) -> None:
        """Leaves nothing: the first process, and any that it made and that still carry its argv."""
        first = self._first
        if first is None:
            return
        if first.poll() is None:
            first.kill()
        word = f"--vm-id={self._spec.vm_id}"
        for process in processes.find(self._spec.run_dir):
            if word in process.argv:
                process.kill(signal.SIGKILL)
                await process.wait()
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


def _read_text(fd: int) -> bytes:
    try:
        return os.read(fd, 32).strip()
    except BlockingIOError:
        return b""


def _is_instance(process: Process, spec: InstanceSpec) -> bool:
    return {processes.run_dir_argument(spec.run_dir), f"--vm-id={spec.vm_id}"} <= set(process.argv)
