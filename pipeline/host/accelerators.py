# SPDX-License-Identifier: Apache-2.0
"""Who has which accelerator, in a running swarm.

An instance works without one as well. So nothing in here is raised: what goes wrong is told in words, and the instance
goes on in software. The steps of all devices are taken one after another, as they share one record of how to undo
them; none is cut off half way, whoever asked for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from pipeline.errors import HardwareError
from pipeline.host import passthrough
from pipeline.host.passthrough import Qmp
from pipeline.host.vfio import Vfio

RETRY = 5.0      # seconds until what did not work is tried again


@dataclass(frozen=True)
class Guest:
    """A virtual machine, as `passthrough` needs it."""

    qmp: Qmp
    pid: int
    uid: int


class Accelerators:
    """``tell`` is called with what became of a device, or with what went wrong, for people."""

    def __init__(self, vfio: Vfio, tell: Callable[[str], None]) -> None:
        self._vfio, self._tell = vfio, tell
        self._has: dict[int, str] = {}       # vm_id -> address
        self._asked: dict[int, str] = {}     # vm_id -> what it was told to get, and has or is about to get
        self._again: dict[int, float] = {}   # vm_id -> when it may be tried again
        self._complaint: dict[int, str] = {}     # vm_id -> the last one
        self._watchers: dict[int, asyncio.Task[None]] = {}
        self._one = asyncio.Lock()
        self._steps: set[asyncio.Task[None]] = set()
        self._vfs = 0

    def configure(self, allow: tuple[str, ...], vfs: int) -> None:
        """``vfs``: so many are made of a card that has none."""
        self._vfio.allow(allow)
        self._vfs = vfs

    def device(self, vm_id: int) -> str:
        """Address of what this instance has; empty: nothing."""
        return self._has.get(vm_id, "")

    def equip(self, vm_id: int, wanted: str, guest: Guest) -> None:
        """To be called again and again: settles it if that is news, or did not work some seconds ago."""
        if self._asked.get(vm_id, "") != wanted and time.monotonic() >= self._again.get(vm_id, 0.0):
            self.settle(vm_id, wanted, guest)

    def settle(self, vm_id: int, wanted: str, guest: Guest) -> asyncio.Task[None]:
        """Has the instance get this one, in the place of what it has, or nothing. ``wanted``: as in
        ``policy.placement.Seat``.
        """
        self._asked[vm_id] = wanted
        return self._step(self._settle(vm_id, wanted, guest))

    async def without(self, vm_id: int, guest: Guest) -> None:
        """Returns when it has none, or can not be made to give it up."""
        if self.device(vm_id) or self._asked.get(vm_id):
            await asyncio.shield(self.settle(vm_id, "", guest))

    def gone(self, vm_id: int) -> asyncio.Task[None]:
        """The machine has ended: what it had goes back to the host. Nobody needs to wait for that: who gets it next
        does."""
        for known in (self._asked, self._again, self._complaint):
            known.pop(vm_id, None)
        return self._step(self._gone(vm_id))

    async def adopt(self, guests: dict[int, Guest]) -> None:
        """After another manager: these have what they have, and what nobody has goes back to the host."""
        for vm_id, guest in guests.items():
            try:
                for address in await passthrough.attached(guest.qmp):
                    self._note(vm_id, address, guest)
            except HardwareError as error:
                self._tell(f"instance {vm_id}: {_words(error)}")
        await asyncio.shield(self._step(self._others_back()))

    async def restore(self) -> None:
        """Before the first instance: what a dead swarm in this folder had changed is undone."""
        for problem in await asyncio.to_thread(self._vfio.restore):
            self._tell(problem.explain())

    async def settled(self) -> None:
        """Returns when all that was asked for is done."""
        while self._steps:
            await asyncio.wait(set(self._steps))

    # ---- below

    def _step(self, what: Coroutine[None, None, None]) -> asyncio.Task[None]:
        async def step() -> None:
            async with self._one:
                await what

        task = asyncio.create_task(step())
        self._steps.add(task)
        task.add_done_callback(self._steps.discard)
        return task

    async def _settle(self, vm_id: int, wanted: str, guest: Guest) -> None:
        try:
            address = await asyncio.to_thread(self._real, wanted) if wanted else ""
            if self.device(vm_id) not in ("", address):
                await self._take_away(vm_id, guest)
            if address and not self.device(vm_id):
                await self._give(vm_id, address, guest)
        except (HardwareError, OSError) as error:
            self._later(vm_id)
            self._complain(vm_id, f"instance {vm_id} goes on {self._how(vm_id)}: {_words(error)}")

    async def _give(self, vm_id: int, address: str, guest: Guest) -> None:
        if address in self._has.values():
            self._later(vm_id)
            return
        await asyncio.to_thread(self._vfio.take, address)
        self._has[vm_id] = address           # from here on the end of the instance gives it back
        try:
            await passthrough.attach(guest.qmp, self._vfio, address, pid=guest.pid, uid=guest.uid)
        except BaseException:
            await self._give_back(vm_id)
            raise
        self._note(vm_id, address, guest)
        self._complaint.pop(vm_id, None)
        self._tell(f"instance {vm_id} has {address}")

    def _note(self, vm_id: int, address: str, guest: Guest) -> None:
        self._has[vm_id] = address
        self._watchers[vm_id] = asyncio.create_task(self._watch(vm_id, address, guest))

    async def _watch(self, vm_id: int, address: str, guest: Guest) -> None:
        """A card that is pulled out, or whose bus has failed, leaves the guest without a word of ours."""
        await passthrough.deleted(guest.qmp, address)
        self._step(self._lost(vm_id, address, asyncio.current_task()))

    async def _lost(self, vm_id: int, address: str, watcher: asyncio.Task[None] | None) -> None:
        if self._watchers.get(vm_id) is watcher:     # else it went as it should
            self._later(vm_id)
            await self._give_back(vm_id)
            self._tell(f"instance {vm_id} has lost {address}: it goes on in software")

    def _later(self, vm_id: int) -> None:
        self._asked.pop(vm_id, None)
        self._again[vm_id] = time.monotonic() + RETRY

    async def _take_away(self, vm_id: int, guest: Guest) -> None:
        address = self._has[vm_id]
        await passthrough.detach(guest.qmp, self._vfio, address)
        await self._give_back(vm_id)
        self._tell(f"instance {vm_id} has {address} no more")

    async def _gone(self, vm_id: int) -> None:
        if vm_id in self._has:
            await self._give_back(vm_id)

    async def _give_back(self, vm_id: int) -> None:
        """What can not be given back stays in the record, for the next time that the swarm starts or goes down."""
        address = self._has.pop(vm_id)
        if watcher := self._watchers.pop(vm_id, None):
            watcher.cancel()
        try:
            await asyncio.to_thread(self._vfio.give_back, address)
        except (HardwareError, OSError) as error:
            self._tell(f"{address} stays with the swarm: {_words(error)}")

    async def _others_back(self) -> None:
        taken = await asyncio.to_thread(self._vfio.taken)
        machine = await asyncio.to_thread(self._vfio.machine)
        groups = {f.group for address in self._has.values() if (f := machine.function(address))}
        for address in taken:
            function = machine.function(address)
            if function is None or function.group not in groups:
                with contextlib.suppress(HardwareError, OSError):
                    await asyncio.to_thread(self._vfio.give_back, address)

    def _real(self, wanted: str) -> str:
        """The VF of that number is made, if it is not there."""
        card, _, number = wanted.partition(" VF ")
        return self._vfio.make_vfs(card, max(self._vfs, int(number) + 1))[int(number)] if number else card

    def _complain(self, vm_id: int, text: str) -> None:
        """Once: the same will be met again and again."""
        if self._complaint.get(vm_id) != text:
            self._complaint[vm_id] = text
            self._tell(text)

    def _how(self, vm_id: int) -> str:
        return f"with {self.device(vm_id)}" if self.device(vm_id) else "in software"


def _words(error: HardwareError | OSError) -> str:
    return error.explain() if isinstance(error, HardwareError) else str(error)
