# SPDX-License-Identifier: Apache-2.0
"""Where a virtual machine's QEMU and the router meet: a UNIX socket in a folder of their own (c/abi/router.h).

QEMU makes an interface only when somebody tells it what the back-end can do, and remembers what the guest's driver has
chosen of that only if somebody is still there. For a machine that may never get a first layer that is not the router,
which would be given the machine's memory: ``stand_in`` answers as the router would, and then leaves. Nobody is
connected to the interface until the router is to be.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

from pipeline._native import lib
from pipeline.errors import RouterError

SOCKET = "net"

# vhost-user (c/vhost/message.h): request, flags, bytes that follow
_HEADER = struct.Struct("<III")
_U64 = struct.Struct("<Q")
_REPLY = 1 | 1 << 2                  # version 1
_NEED_REPLY = 1 << 3
_PAYLOAD_MAX = 4096
_GET_FEATURES, _GET_PROTOCOL_FEATURES, _GET_QUEUE_NUM, _GET_MAX_MEM_SLOTS = 1, 15, 17, 36
_GET_VRING_BASE, _SET_VRING_KICK = 11, 12


def folder_make(run_dir: Path, vm_id: int, user: int) -> Path:
    """The folder where QEMU, which runs as ``user``, listens for the router, at ``net``.

    Nobody else comes near, nor does the router while it has no port there (``admit``): whoever connects is given the
    machine's memory. QEMU can not reach it by its path either: it is started in it (``path=net``) or inherits it
    (``path=/proc/self/fd/N/net``), with umask 0 and ``-chardev socket,id=ID,path=PATH,server=on,wait=off``. A listener
    that it inherits is refused by QEMU 7.2: "does not support FD passing".
    """
    folder = _parent(run_dir) / str(vm_id)
    try:
        folder.parent.mkdir(mode=0o711, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        os.chown(folder, user, -1)
    except OSError as error:
        raise RouterError(f"cannot make {folder}: {error.strerror or error}") from error
    return folder


def admit(run_dir: Path, vm_id: int, router_group: int) -> None:
    """From now on the router can connect there. Raises RouterError."""
    folder = _parent(run_dir) / str(vm_id)
    try:
        os.chown(folder, -1, router_group)
        folder.chmod(0o710)
    except OSError as error:
        raise RouterError(f"cannot open {folder} for the router: {error.strerror or error}") from error


def shut_out(run_dir: Path, vm_id: int) -> None:
    """The opposite, if there is such a folder."""
    with suppress(FileNotFoundError):
        (_parent(run_dir) / str(vm_id)).chmod(0o700)


def folder_remove(run_dir: Path, vm_id: int) -> None:
    """After QEMU's end. What is in the way, or was not there, is left so: it harms nobody."""
    folder = _parent(run_dir) / str(vm_id)
    with suppress(OSError):
        (folder / SOCKET).unlink()
    with suppress(OSError):
        folder.rmdir()


def folders(run_dir: Path) -> set[int]:
    """The VMIDs that have one."""
    return {int(path.name) for path in _parent(run_dir).glob("*") if path.name.isdecimal()}


@asynccontextmanager
async def stand_in(run_dir: Path, vm_id: int) -> AsyncIterator[asyncio.Event]:
    """Somebody is connected to the machine's QEMU, which listens there, and answers it as the router would. The event
    comes when the guest uses the device. Raises OSError.
    """
    reader, writer = await asyncio.open_unix_connection(_parent(run_dir) / str(vm_id) / SOCKET)
    used = asyncio.Event()
    answering = asyncio.create_task(_answer(reader, writer, used))
    try:
        yield used
    finally:
        answering.cancel()
        await asyncio.wait([answering])
        writer.close()                 # it may not even have begun
        with suppress(OSError):
            await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, used: asyncio.Event) -> None:
    """Hangs up at the first thing that is wrong. Descriptors that come, of the guest's memory too, are not taken."""
    answers = {_GET_FEATURES: lib.sl_vhost_features(), _GET_PROTOCOL_FEATURES: lib.sl_vhost_protocol_features(),
               _GET_QUEUE_NUM: lib.SL_VHOST_PAIRS_MAX, _GET_MAX_MEM_SLOTS: lib.SL_VHOST_REGIONS}
    with closing(writer), suppress(OSError, EOFError):
        while True:
            request, flags, length = _HEADER.unpack(await reader.readexactly(_HEADER.size))
            if length > _PAYLOAD_MAX:
                return
            payload = await reader.readexactly(length)
            if request == _SET_VRING_KICK and payload[:1] == b"\1":      # of the second ring: there are two
                used.set()
            if request in answers or flags & _NEED_REPLY:
                writer.write(_HEADER.pack(request, _REPLY, _U64.size) + _U64.pack(answers.get(request, 0)))
            if request == _GET_VRING_BASE:       # the number of the ring, and how far it was used
                writer.write(_HEADER.pack(request, _REPLY, _U64.size) + payload[:4] + bytes(4))


def _parent(run_dir: Path) -> Path:
    return run_dir / "vhost"
