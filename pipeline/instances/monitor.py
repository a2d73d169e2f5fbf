# SPDX-License-Identifier: Apache-2.0
"""QEMU's monitor (QMP) as a virtual machine's driver needs it: edges in and out, and why the machine ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from qemu.qmp import EventListener, QMPClient, QMPError, Runstate

from pipeline.errors import InstanceError
from pipeline.host.ivshmem import BELLS

ANSWER_TIMEOUT = 5.0       # seconds for one command, and for the guest to let go of a device
LAST_WORDS = 0.5           # seconds for what a dead QEMU had still written
LOOK = 0.005               # seconds between two looks at something that takes about as long
# reason of the event SHUTDOWN (ShutdownCause in QEMU's qapi) -> words
ENDS = {
    "guest-shutdown": "the guest switched itself off",
    "guest-reset": "the guest reset itself",
    "guest-panic": "the guest's kernel panicked",
    "host-signal": "somebody ended QEMU by a signal",
    "host-error": "QEMU met an error",
}

# somebody in the router's place, and when the guest uses the device: ``vhost.stand_in``
StandIn = AbstractAsyncContextManager[asyncio.Event]

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)     # what it would say is raised as well


class Monitor:
    """A connection to one QEMU. Only one can be open at a time; QEMU waits for the next when it ends."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._qmp = QMPClient(name)
        self._events = EventListener(names=("SHUTDOWN", "DEVICE_DELETED"))
        self._watcher: asyncio.Task[None] | None = None
        self._unplugged: dict[str, asyncio.Event] = {}
        self.end = ""              # why the machine ended, in words; empty: QEMU did not say

    async def connect(self, path: Path, patience: float) -> None:
        """Raises InstanceError if nobody answers there."""
        self._qmp.register_listener(self._events)
        try:
            async with asyncio.timeout(patience):
                await self._qmp.connect(str(path))
        except TimeoutError:
            raise InstanceError(f"QEMU of {self._name} does not answer within {patience:g} s") from None
        except (QMPError, OSError) as error:
            raise InstanceError(f"QEMU of {self._name} does not answer: {_cause(error)}") from error
        self._watcher = asyncio.create_task(self._watch())

    @property
    def qmp(self) -> QMPClient:
        """For what this class has no word for."""
        return self._qmp

    async def close(self, *, ended: bool = False) -> None:
        """Hangs up. ``ended``: QEMU has; what it said before is read then."""
        if ended and self._qmp.runstate is Runstate.RUNNING:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS):
                    await self._qmp.runstate_changed()
        if self._watcher:
            self._watcher.cancel()
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._qmp.disconnect()
        for event in self._events.clear():
            self._note(event["event"], event.get("data", {}))

    async def plug(self, name: str, memfd: int) -> None:
        """Gives the guest shared memory, as a device of that name. Raises InstanceError."""
        length = os.fstat(memfd).st_size
        try:
            self._qmp.send_fd_scm(memfd)
            added = await self._run("add-fd")
            path = f"/proc/self/fd/{added['fd']}"
            # reserve=off: the pages are reserved already, and what lies behind the region needs none
            await self._run("object-add", **{"qom-type": "memory-backend-file", "id": f"m-{name}", "share": True,
                                             "size": length, "mem-path": path, "reserve": False})
            await self._run("remove-fd", **{"fdset-id": added["fdset-id"]})
            await self._run("device_add", driver="ivshmem-plain", id=name, memdev=f"m-{name}")
        except (QMPError, OSError) as error:
            raise InstanceError(f"{self._name} did not take {name}: {_cause(error)}") from error

    async def plug_doorbell(self, ivshmem: int) -> None:
        """The device that a machine has for its life, connected to the holder. Raises InstanceError."""
        address = {"type": "fd", "data": {"str": "holder"}}
        try:
            self._qmp.send_fd_scm(ivshmem)
            await self._run("getfd", fdname="holder")
            await self._run("chardev-add", id="holder", backend={
                "type": "socket", "data": {"addr": address, "server": False}})
            await self._run("device_add", driver="ivshmem-doorbell", id="doorbell", chardev="holder",
                            vectors=BELLS)
        except (QMPError, OSError, TimeoutError) as error:
            raise InstanceError(f"{self._name} did not take its doorbell: {_cause(error)}") from error

    async def save(self, state: int) -> None:
        """Writes everything but the guest's memory, which is shared, to a file. It does not go on afterwards. Raises
        InstanceError.
        """
        await self._migrate("migrate", state)
        while (status := await self._asked("query-migrate", "saved")) != "completed":
            if status in ("failed", "cancelled"):
                raise InstanceError(f"{self._name} could not be saved: {status}")
            await asyncio.sleep(LOOK)

    async def restore(self, state: int) -> None:
        """Goes on from what ``save`` wrote, its memory being what it was then. Raises InstanceError."""
        await self._migrate("migrate-incoming", state)
        while (status := await self._asked("query-status", "restored")) != "running":
            if status not in ("inmigrate", "paused", "postmigrate", "prelaunch"):
                raise InstanceError(f"{self._name} could not be restored: {status}")
            await asyncio.sleep(LOOK)

    async def _migrate(self, command: str, state: int) -> None:
        ignore = [{"capability": "x-ignore-shared", "state": True}]
        try:
            self._qmp.send_fd_scm(state)
            await self._run("getfd", fdname="state")
            await self._run("migrate-set-capabilities", capabilities=ignore)
            await self._run(command, uri="fd:state")
        except (QMPError, OSError, TimeoutError) as error:
            raise InstanceError(f"{self._name}: {command} is refused: {_cause(error)}") from error

    async def _asked(self, command: str, what: str) -> object:
        try:
            answer: dict[str, object] = dict(await self._run(command))
        except (QMPError, OSError, TimeoutError) as error:
            raise InstanceError(f"{self._name} could not be {what}: {_cause(error)}") from error
        return answer.get("status")

    async def unplug(self, name: str) -> None:
        """Takes it away again, once the guest has let go of it. A guest that does not is lost."""
        await self._take(name, "object-del", f"m-{name}")

    async def has_interface(self) -> bool:
        """Whether the guest was given eth0. Raises InstanceError."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                devices = await self._qmp.execute("qom-list", {"path": "/machine/peripheral"})
        except (QMPError, OSError, TimeoutError) as error:
            raise InstanceError(f"{self._name} does not tell what it has: {_cause(error)}") from error
        assert isinstance(devices, list)
        return any(device["name"] == "eth0" for device in devices)

    async def plug_interface(self, path: str, mac: bytes, listening: Callable[[], None], **options: object) -> None:
        """Gives the guest eth0, to which the router connects at this path, seen from the folder in which QEMU was
        started. ``listening`` is called when it can: from then on QEMU, and the guest with it, waits until the router
        has. Raises InstanceError.
        """
        with self._refusing_interface():
            await self._listen(path)
            listening()
            await self._add_interface(mac, options)

    async def plug_idle_interface(self, path: str, mac: bytes, stand_in: StandIn, **options: object) -> None:
        """The same, with nobody at the other end: the router can connect there at any time. Raises InstanceError."""
        with self._refusing_interface():
            await self._listen(path)
            async with stand_in as used:
                await self._add_interface(mac, options)
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    await used.wait()
                await self._run("set_link", name="net", up=False)      # it stops the rings before it is left alone

    async def _listen(self, path: str) -> None:
        address = {"type": "unix", "data": {"path": path}}
        backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
        await self._run("chardev-add", id="router", backend=backend)

    async def _add_interface(self, mac: bytes, options: Mapping[str, object]) -> None:
        await self._run("netdev_add", type="vhost-user", id="net", chardev="router")
        device = {"driver": "virtio-net-pci", "id": "eth0", "netdev": "net", "mac": mac.hex(":"), "romfile": ""}
        await self._run("device_add", **device, **options)

    @contextlib.contextmanager
    def _refusing_interface(self) -> Iterator[None]:
        try:
            yield
        except (QMPError, OSError, TimeoutError) as error:
            raise InstanceError(f"{self._name} did not take its interface: {_cause(error)}") from error

    async def unplug_interface(self) -> None:
        await self._take("eth0", "netdev_del", "net")       # the chardev goes with it

    async def _take(self, name: str, remove: str, what: str) -> None:
        gone = self._unplugged[name] = asyncio.Event()
        try:
            await self._run("device_del", id=name)
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await gone.wait()
            await self._run(remove, id=what)
        except TimeoutError:
            raise InstanceError(f"{self._name} does not let go of {name}") from None
        except (QMPError, OSError) as error:
            raise InstanceError(f"{self._name} did not give {name} back: {_cause(error)}") from error
        finally:
            del self._unplugged[name]

    async def _run(self, command: str, **arguments: object) -> dict[str, int]:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            answer = await self._qmp.execute(command, arguments)
        assert isinstance(answer, dict)
        return answer

    async def _watch(self) -> None:
        async for event in self._events:
            self._note(event["event"], event.get("data", {}))

    def _note(self, kind: object, data: object) -> None:
        assert isinstance(data, dict)
        if kind == "SHUTDOWN":
            self.end = ENDS.get(data.get("reason", ""), "")
        if kind == "DEVICE_DELETED" and data.get("device") in self._unplugged:
            self._unplugged[data["device"]].set()


def _cause(error: BaseException) -> str:
    """The innermost reason: qemu.qmp wraps what happened."""
    inner: Callable[[BaseException], BaseException | None] = lambda e: e.__cause__ or getattr(e, "exc", None)  # noqa: E731
    while (cause := inner(error)) is not None:
        error = cause
    return str(error) or type(error).__name__
