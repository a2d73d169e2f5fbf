# SPDX-License-Identifier: Apache-2.0
"""Doorbells between the manager and the instances: eventfds, as the holder hands them out.

A doorbell is a hint: it may be lost or doubled without harm, as both sides also look on their own.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass

FLOOD = 200       # wakes by one instance in PERIOD; those that work ring some ten times when they change
PERIOD = 1.0      # seconds; for so long one that rings more often is not listened to


@dataclass
class _Bell:
    """``rings`` since ``begin``, at most FLOOD; ``told``: of its flood."""

    vm_id: int
    begin: float = 0.0
    rings: int = 0
    told: bool = False


class Doorbells:
    """Calls back when an instance rings the manager. One that rings without end costs the manager no more than a few
    wakes each second, and ``flooded(vm_id)`` is called, once.

    The eventfds are shared with instances, which could empty them, fill them or make them blocking between
    any two system calls of ours. So they are never read: an edge-triggered epoll tells of each write,
    whatever the count is.
    """

    def __init__(self, callback: Callable[[int], None], flooded: Callable[[int], None] = lambda _vm_id: None) -> None:
        self._epoll = select.epoll()
        self._callback, self._flooded = callback, flooded
        self._bells: dict[int, _Bell] = {}       # by eventfd

    def fileno(self) -> int:
        """For ``loop.add_reader(doorbells, doorbells.ready)``."""
        return self._epoll.fileno()

    def add(self, vm_id: int, eventfd: int) -> None:
        """Listens to the manager's eventfd of an instance. The caller keeps it open until ``remove``."""
        self._bells[eventfd] = _Bell(vm_id)
        self._epoll.register(eventfd, select.EPOLLIN | select.EPOLLET)

    def remove(self, eventfd: int) -> None:
        if self._bells.pop(eventfd, None) is not None:
            self._epoll.unregister(eventfd)

    def ready(self) -> None:
        """In the loop that listens."""
        now = time.monotonic()
        for fd, _ in self._epoll.poll(0):
            if bell := self._bells.get(fd):
                if now - bell.begin > PERIOD:
                    bell.begin, bell.rings = now, 0
                bell.rings += 1
                if bell.rings > FLOOD:
                    self._mute(fd, bell)
                self._callback(bell.vm_id)

    def _mute(self, fd: int, bell: _Bell) -> None:
        self._epoll.modify(fd, select.EPOLLET)
        asyncio.get_running_loop().call_later(PERIOD, self._listen, fd, bell)
        if not bell.told:
            bell.told = True
            self._flooded(bell.vm_id)

    def _listen(self, fd: int, bell: _Bell) -> None:
        if self._bells.get(fd) is bell and not self._epoll.closed:
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLET)       # what came meanwhile is told at once

    def close(self) -> None:
        self._epoll.close()


def ring(eventfd: int) -> None:
    """Rings an instance. A full counter means that it has not listened yet: then there is nothing to add."""
    poll = select.poll()
    poll.register(eventfd, select.POLLOUT)
    if poll.poll(0):
        try:
            os.eventfd_write(eventfd, 1)
        except BlockingIOError:
            return
