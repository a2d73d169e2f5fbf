# SPDX-License-Identifier: Apache-2.0
"""What the manager needs of every kind of instance. Nothing above this interface asks which kind it is."""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from pipeline.host.processes import Process, readable
from pipeline.host.tap import TapSpec
from pipeline.policy.model import Driver as DriverName


@dataclass(frozen=True)
class EdgeGrant:
    """The memory of one edge, given to an instance. The mapping is the permission."""

    edge_id: int
    memfd: int


@dataclass(frozen=True)
class InstanceSpec:
    """All that a driver needs to start an instance.

    The control region must be formatted and hold the assignment: the instance reads it first. ``edges`` are
    those of the assignment, in its order. ``tap``: the instance's interface, for the layers that need one.
    """

    vm_id: int
    run_dir: Path
    ivshmem_socket: Path
    edges: tuple[EdgeGrant, ...] = ()
    tap: TapSpec | None = None

    @property
    def log_path(self) -> Path:
        return self.run_dir / "log" / f"instance-{self.vm_id}.log"


@dataclass
class Running:
    """A started instance. Owns its pidfd and, until ``take_tap``, the tap."""

    vm_id: int
    process: Process
    pidfd: int
    log_path: Path
    tap_fd: int | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.alive

    async def wait(self) -> None:
        """Returns when it has ended. How it ended, the holder knows (``process_exit``)."""
        await readable(self.pidfd)

    def take_tap(self) -> int | None:
        """The tap's descriptor, from now on the caller's: for the router and the holder."""
        tap, self.tap_fd = self.tap_fd, None
        return tap

    def kill(self) -> None:
        """SIGKILL. No harm if it is dead already."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """Gives the descriptors back; the instance goes on."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        tap = self.take_tap()
        if tap is not None:
            os.close(tap)


class Driver(ABC):
    """Starts instances of one kind, and adopts those that a former manager started."""

    name: DriverName

    @abstractmethod
    async def start(self, spec: InstanceSpec) -> Running:
        """Starts an instance. It is BOOTING when this returns; READY comes by its VMStatus.

        Raises LaunchError; nothing of the instance is left then.
        """

    @abstractmethod
    def adopt(self, spec: InstanceSpec, pid: int) -> Running | None:
        """The instance that runs as process ``pid`` since before this manager; None if it is gone."""

    async def stop(self, running: Running) -> None:
        """Ends an instance for good: kills it and waits. A polite end goes before, by SL_CMD_DRAIN and
        SL_CMD_STOP."""
        running.kill()
        await running.wait()
        running.close()
