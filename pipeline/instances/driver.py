# SPDX-License-Identifier: Apache-2.0
"""What the manager needs of every kind of instance. Nothing above this interface asks which kind it is."""

from __future__ import annotations

import asyncio
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from pipeline.host.accelerators import Guest
from pipeline.host.assignment import Assignment
from pipeline.host.processes import Process, of_instance, readable
from pipeline.host.tap import TapSpec
from pipeline.policy.model import Driver as DriverName
from pipeline.policy.model import Layer


@dataclass(frozen=True)
class EdgeGrant:
    """The memory of one edge, given to an instance. The mapping is the permission."""

    edge_id: int
    memfd: int


@dataclass(frozen=True)
class InstanceSpec:
    """All that a driver needs to start an instance, which has no layer then. Its control region must be formatted.

    What only virtual machines need: ``files`` is the folder that the layer app would serve, ``memory`` the machine's,
    in bytes, and ``node`` where that is to come from; None: anywhere. ``crypto``: it may be given an accelerator.
    ``cpus``: where it may run; none: anywhere. ``tap``: the interface of a layer that it may be given; what takes long
    about that may be done at once, as long as it reaches nobody.
    """

    vm_id: int
    run_dir: Path
    ivshmem_socket: Path
    files: Path | None = None
    memory: int = 0
    cpus: tuple[int, ...] = ()
    node: int | None = None
    crypto: bool = False
    tap: TapSpec | None = None

    @property
    def log_path(self) -> Path:
        return self.run_dir / "log" / f"instance-{self.vm_id}.log"


@dataclass(frozen=True)
class Outfit:
    """What an instance needs of the world outside for one assignment: the number that ``ControlRegion.assign`` gave,
    the memory of its edges, and by layer an interface of its own (``tap``, with a backlog for its listening sockets) or
    a folder (``root``). A driver whose interface the router connects to calls ``listening`` when it can.
    """

    number: int
    assignment: Assignment
    edges: tuple[EdgeGrant, ...] = ()
    tap: TapSpec | None = None
    backlog: int = 0
    root: PurePath | None = None
    listening: Callable[[], None] = lambda: None


@dataclass
class Running:
    """A started instance. Owns its pidfd, the manager's end of its grants socket (-1: its driver has none) and, until
    ``take_tap``, the tap.
    """

    vm_id: int
    process: Process
    pidfd: int
    log_path: Path
    grants: int = -1
    tap_fd: int | None = None
    booted: asyncio.Event = field(default_factory=asyncio.Event)     # whoever reads its VMStatus sets this
    why: str = ""                    # what the driver knows of its end

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

    @property
    def about(self) -> Mapping[str, str]:
        """What `status` shows of this kind of instance."""
        return {}

    @property
    def guest(self) -> Guest | None:
        """As what it can be given a device; None: it can not."""
        return None

    def close(self) -> None:
        """Gives the descriptors back; the instance goes on."""
        for fd in (self.pidfd, self.grants):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.grants = -1
        tap = self.take_tap()
        if tap is not None:
            os.close(tap)


class Driver(ABC):
    """Starts instances of one kind, and adopts those that a former manager started."""

    name: DriverName
    vhost = False              # the router connects to its interface, and is to know that before ``plug``

    def place(self, folder: PurePath) -> PurePath:
        """Where an instance sees the folder that it serves (``InstanceSpec.files``)."""
        return folder

    async def prepare(self, layers: Sequence[Layer], files: PurePath | None) -> str:
        """Before the first start of instances of these layers, one of which may serve ``files``. Returns what the
        operator should know, if anything. Raises HostError.
        """
        return ""

    @abstractmethod
    async def start(self, spec: InstanceSpec) -> Running:
        """Starts an instance without a layer. It is BOOTING when this returns; READY comes by its VMStatus.

        Raises LaunchError; nothing of the instance is left then.
        """

    @abstractmethod
    async def adopt(self, spec: InstanceSpec, pid: int, grants: int) -> Running | None:
        """The instance that runs as process ``pid`` since before this manager. None: it is gone, or of no use, and then
        nothing is left of it. ``grants``: its former ``Running.grants``, taken over.
        """

    @abstractmethod
    async def plug(self, running: Running, outfit: Outfit) -> None:
        """Gives an instance what the assignment in its control region needs, at any time of its life; READY comes by
        its VMStatus. Raises InstanceError, and then the instance is lost.
        """

    @abstractmethod
    async def unplug(self, running: Running, outfit: Outfit) -> None:
        """Takes away what ``plug`` gave for its former assignment. The instance has let go of it already
        (``Report.assignment_seen``). Raises InstanceError, and then the instance is lost.
        """

    async def abandon(self, spec: InstanceSpec) -> None:
        """Ends what there is of an instance that is not ``Running``: its start was not done, or it can not be adopted.
        Leaves nothing.
        """
        while left := of_instance(spec.run_dir, spec.vm_id):       # again: one may have started another meanwhile
            for process in left:
                process.kill()
                await process.wait()

    async def stop(self, running: Running) -> None:
        """Ends an instance for good: kills it and waits. A polite end goes before, by SL_CMD_DRAIN and
        SL_CMD_STOP."""
        running.kill()
        await running.wait()
        running.close()
