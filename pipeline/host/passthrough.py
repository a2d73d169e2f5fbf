# SPDX-License-Identifier: Apache-2.0
"""A taken PCI function in and out of a running virtual machine, by its QMP connection.

``qmp`` is a connected qemu.qmp.QMPClient, or whatever has these two of its methods. The function was taken by
``Vfio.take`` before, and is given back by ``Vfio.give_back`` afterwards.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from pipeline.errors import HardwareError, NotReleased
from pipeline.host.vfio import Vfio

RELEASE_TIMEOUT = 5.0        # seconds for a guest to let go: a tenth of one is usual
DEVICE_MEMORY = 64 << 20     # bytes of devices' own memory that are mapped for DMA as well


class Qmp(Protocol):
    """What is used of qemu.qmp.QMPClient."""

    async def execute(self, cmd: str, arguments: dict[str, object] | None = None) -> Any: ...

    def listener(self, names: Any = (), event_filter: Any = None) -> AbstractContextManager[
        AsyncIterator[Mapping[str, Any]]]: ...


def device_name(address: str) -> str:
    """Of the function in QEMU: 0000:3d:01.0 is pci-0000-3d-01-0."""
    return "pci-" + address.replace(":", "-").replace(".", "-")


async def attached(qmp: Qmp) -> tuple[str, ...]:
    """Addresses of the functions that this machine has. Raises HardwareError if QEMU does not say."""
    try:
        devices = await qmp.execute("qom-list", {"path": "/machine/peripheral"})
    except Exception as error:       # of qemu.qmp, which has a tree of its own
        raise HardwareError(f"QEMU does not say what devices it has: {error}") from error
    parts = (device["name"].split("-") for device in devices)
    return tuple(f"{p[1]}:{p[2]}:{p[3]}.{p[4]}" for p in parts if p[0] == "pci" and len(p) == 5)


async def deleted(qmp: Qmp, address: str) -> None:
    """Returns when the machine has the function no more, for whatever reason."""
    with qmp.listener(("DEVICE_DELETED",)) as events:
        async for event in events:
            if event["data"].get("device") == device_name(address):
                return


async def attach(qmp: Qmp, vfio: Vfio, address: str, *, pid: int, uid: int, bus: str = "") -> None:
    """Resets the function, lets QEMU (this process, as this user) open it, and plugs it into the guest, whose kernel is
    told by the hot-plug itself. ``bus``: a root port of q35; ``pc`` needs none. Raises HardwareError; the function is
    nobody's then.
    """
    await asyncio.to_thread(vfio.hand_over, address)
    await asyncio.to_thread(vfio.grant, address, uid)
    arguments: dict[str, object] = {"driver": "vfio-pci", "host": address, "id": device_name(address)}
    try:
        allow_pinning(pid, await reachable(qmp))
        await qmp.execute("device_add", arguments | ({"bus": bus} if bus else {}))
    except Exception as error:       # of qemu.qmp, which has a tree of its own
        await asyncio.to_thread(vfio.grant, address, 0)
        raise HardwareError(f"QEMU does not take {address}: {error}", address=address) from error


async def reachable(qmp: Qmp) -> int:
    """Bytes of the guest's memory and of what is plugged in beside it, such as edges: all of it can be the target of
    DMA, so it is pinned.
    """
    return sum(int(backend["size"]) for backend in await qmp.execute("query-memdev"))


def allow_pinning(pid: int, memory: int) -> None:
    """QEMU has no rights: it may pin as much as its limit says. Raises OSError."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_MEMLOCK)
    needed = memory + DEVICE_MEMORY
    if soft != resource.RLIM_INFINITY and soft < needed:
        hard = hard if hard == resource.RLIM_INFINITY else max(hard, needed)
        resource.prlimit(pid, resource.RLIMIT_MEMLOCK, (needed, hard))


async def detach(qmp: Qmp, vfio: Vfio, address: str, *, tell: Callable[[], Awaitable[None]] | None = None,
                 patience: float = RELEASE_TIMEOUT) -> None:
    """Takes the function out of the guest. ``tell`` asks the layer first to do without it, and returns when it does.

    Raises NotReleased if either takes too long: then the guest still has it, and must be ended before anybody else is
    given the function.
    """
    name = device_name(address)
    refused = NotReleased(f"the guest does not let go of {address} within {patience:g} s", address=address,
                          hint="end the instance; its device is free then")
    try:
        async with asyncio.timeout(patience):
            if tell:
                await tell()
            with qmp.listener(("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")) as events:
                await qmp.execute("device_del", {"id": name})
                async for event in events:
                    if event["data"].get("device") != name:
                        continue
                    if event["event"] == "DEVICE_UNPLUG_GUEST_ERROR":
                        raise refused
                    break
    except TimeoutError:
        raise refused from None
    except HardwareError:
        raise
    except Exception as error:
        raise HardwareError(f"QEMU does not take {address} away: {error}", address=address) from error
    await asyncio.to_thread(vfio.grant, address, 0)
