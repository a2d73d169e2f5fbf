# SPDX-License-Identifier: Apache-2.0
"""What the running swarm is made of, as the actor holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from pipeline.host.accelerators import Accelerators
from pipeline.host.classifier import Classifier
from pipeline.host.control import ControlRegion
from pipeline.host.edges import EdgeMemory
from pipeline.host.holder_client import HolderClient, InstanceFds
from pipeline.host.nic import NicFacts, facts_of
from pipeline.host.placer import Placer
from pipeline.host.report import Report
from pipeline.host.router import Router
from pipeline.host.vfio import Vfio
from pipeline.instances.driver import Driver, Running
from pipeline.policy.config import Config
from pipeline.policy.model import Instance, Slot


@dataclass
class Member:
    """An instance from when its start begins, with all that the manager holds of it. ``instance`` says what it has been
    given, not what it is to be given: while it starts it has no layer, no seats and no port, and is not ``running``.
    """

    instance: Instance
    driver: Driver
    fds: InstanceFds
    control: ControlRegion
    seats: tuple[Slot, ...] = ()     # its edges, in the order of its assignment
    starting: asyncio.Task[None] | None = None
    running: Running | None = None
    watcher: asyncio.Task[None] | None = None
    plugging: asyncio.Task[None] | None = None
    heard: Report | None = None      # what it said last
    flooders: set[int] = field(default_factory=set)     # those of whose doorbell floods it has complained
    allowance: float = 1.0           # as in VMStatus, when last looked at
    allowance_at: float = -inf
    why: str = ""                    # it is not running

    @property
    def equipable(self) -> bool:
        """It runs, and has all else that its layer needs."""
        return (self.running is not None and self.running.alive and self.running.booted.is_set()
                and (self.plugging is None or self.plugging.done()))


class Held:
    """Of one swarm. What must survive the manager lies in the holder or in pinned maps; this is the way to it.
    ``tell`` is called with what became of an accelerator.
    """

    def __init__(self, run_dir: Path, config: Config, tell: Callable[[str], None]) -> None:
        self.run_dir = run_dir
        self.config = config
        self.holder = HolderClient(run_dir)
        self.nic: NicFacts = facts_of(config.nic)
        self.members: dict[int, Member] = {}
        self.edges: dict[str, EdgeMemory] = {}
        self.classifier: Classifier | None = None
        self.router: Router | None = None
        self.placer = Placer(config, run_dir=run_dir)
        self.accelerators = Accelerators(Vfio(run_dir), tell)

    @property
    def queues(self) -> int:
        return self.config.nic.queues or self.nic.rx_queues

    @property
    def mtu(self) -> int:
        return self.config.nic.mtu or self.nic.mtu
