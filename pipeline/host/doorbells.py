# SPDX-License-Identifier: Apache-2.0
"""Doorbells between the manager and the instances: eventfds, as the holder hands them out.

A doorbell is a hint: it may be lost or doubled without harm, as both sides also look on their own.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable


class Doorbells:
    """Calls back when an instance rings the manager.

    The eventfds are shared with instances, which could empty them, fill them or make them blocking between
    any two system calls of ours. So they are never read: an edge-triggered epoll tells of each write,
    whatever the count is.
    """

    def __init__(self, callback: Callable[[int], None]) -> None:
        self._epoll = select.epoll()
        self._callback = callback
        self._vm_ids: dict[int, int] = {}

    def fileno(self) -> int:
        """For ``loop.add_reader(doorbells, doorbells.ready)``."""
        return self._epoll.fileno()

    def add(self, vm_id: int, eventfd: int) -> None:
        """Listens to the manager's eventfd of an instance. The caller keeps it open until ``remove``."""
        self._epoll.register(eventfd, select.EPOLLIN | select.EPOLLET)
        self._vm_ids[eventfd] = vm_id

    def remove(self, eventfd: int) -> None:
        if self._vm_ids.pop(eventfd, None) is not None:
            self._epoll.unregister(eventfd)

    def ready(self) -> None:
        for fd, _ in self._epoll.poll(0):
            if fd in self._vm_ids:
                self._callback(self._vm_ids[fd])

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
