# SPDX-License-Identifier: Apache-2.0
"""Who answers a machine's QEMU in the router's place, until the guest uses the interface."""

import asyncio
import os
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

from pipeline._native import lib

from pipeline.host.vhost import SOCKET, folder_make, stand_in

GET_FEATURES, GET_VRING_BASE, SET_VRING_KICK, ADD_MEM_REG, GET_QUEUE_NUM = 1, 11, 12, 37, 17
VERSION, REPLY, NEED_REPLY = 1, 4, 8
VM_ID = 7


class FrontEnd:
    """What QEMU says, and hears."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def say(self, request: int, payload: bytes = b"", flags: int = 0, length: int | None = None) -> None:
        size = len(payload) if length is None else length
        self._writer.write(struct.pack("<III", request, VERSION | flags, size) + payload)

    async def ask(self, request: int, payload: bytes = b"", flags: int = 0) -> bytes:
        self.say(request, payload, flags)
        echoed, answer_flags, size = struct.unpack("<III", await self._reader.readexactly(12))
        assert (echoed, answer_flags) == (request, VERSION | REPLY)
        return await self._reader.readexactly(size)

    async def hung_up(self) -> bool:
        return await self._reader.read(1) == b""

    def close(self) -> None:
        self._writer.close()


def played(run_dir: Path, play: Callable[[FrontEnd, asyncio.Event], Awaitable[None]]) -> bool:
    """With a stand-in connected to it. Whether it has hung up in the end."""
    async def run() -> bool:
        came: asyncio.Future[FrontEnd] = asyncio.get_running_loop().create_future()
        folder = folder_make(run_dir, VM_ID, os.getuid())
        server = await asyncio.start_unix_server(lambda *ends: came.set_result(FrontEnd(*ends)), folder / SOCKET)
        async with server, asyncio.timeout(10):
            async with stand_in(run_dir, VM_ID) as used:
                front = await came
                await play(front, used)
            gone = await front.hung_up()
            front.close()
        return gone

    return asyncio.run(run())


def test_it_answers_as_the_router_does(tmp_path: Path) -> None:
    async def play(front: FrontEnd, used: asyncio.Event) -> None:
        assert await front.ask(GET_FEATURES) == struct.pack("<Q", lib.sl_vhost_features())
        assert await front.ask(GET_QUEUE_NUM) == struct.pack("<Q", lib.SL_VHOST_PAIRS_MAX)
        assert await front.ask(ADD_MEM_REG, bytes(40), NEED_REPLY) == bytes(8)
        assert await front.ask(GET_VRING_BASE, struct.pack("<II", 1, 9)) == struct.pack("<II", 1, 0)

    assert played(tmp_path, play)


def test_it_tells_when_both_rings_are_used(tmp_path: Path) -> None:
    async def play(front: FrontEnd, used: asyncio.Event) -> None:
        front.say(SET_VRING_KICK, struct.pack("<Q", 0))
        await front.ask(GET_FEATURES)
        assert not used.is_set()
        front.say(SET_VRING_KICK, struct.pack("<Q", 1))
        await used.wait()

    assert played(tmp_path, play)


def test_it_hangs_up_at_nonsense(tmp_path: Path) -> None:
    async def play(front: FrontEnd, used: asyncio.Event) -> None:
        front.say(GET_FEATURES, length=1 << 30)
        assert await front.hung_up() and not used.is_set()

    assert played(tmp_path, play)
