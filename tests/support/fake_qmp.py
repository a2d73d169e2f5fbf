# SPDX-License-Identifier: Apache-2.0
"""A connection to QEMU, of which there is none."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any


class FakeQmp:
    """What qemu.qmp offers. ``events`` is what a guest says when a device is to be taken away."""

    def __init__(self, *events: Mapping[str, Any], refuse: str = "", answer: Any = None,
                 memory: tuple[int, ...] = ()) -> None:
        self.commands: list[tuple[str, dict[str, object]]] = []
        self._events, self._refuse, self._answer = events, refuse, answer or {}
        self._memory = [{"size": size} for size in memory]
        self._listeners: list[asyncio.Queue[Mapping[str, Any]]] = []

    async def execute(self, cmd: str, arguments: dict[str, object] | None = None) -> Any:
        if cmd == "query-memdev":      # changes nothing
            return self._memory
        self.commands.append((cmd, arguments or {}))
        if self._refuse:
            raise RuntimeError(self._refuse)
        for event in self._events if cmd == "device_del" else ():
            self.emit(event)
        return self._answer

    def emit(self, event: Mapping[str, Any]) -> None:
        for queue in self._listeners:
            queue.put_nowait(event)

    @contextlib.contextmanager
    def listener(self, names: Any = (), event_filter: Any = None) -> Iterator[AsyncIterator[Mapping[str, Any]]]:
        queue: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()

        async def events() -> AsyncIterator[Mapping[str, Any]]:
            while True:
                yield await queue.get()

        self._listeners.append(queue)
        try:
            yield events()
        finally:
            self._listeners.remove(queue)
