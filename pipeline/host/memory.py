# SPDX-License-Identifier: Apache-2.0
"""Memory that processes share by its descriptor: memfds, of hugepages where the machine has enough of them."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

HUGE_PAGE_LEN = 2 << 20
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def power_of_two(length: int) -> int:
    """The next one that is not less."""
    return 1 << (length - 1).bit_length()


def sealed_memfd(name: str, length: int, flags: int = 0) -> int:
    """Zeroed shared memory that nobody can resize."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    try:
        os.ftruncate(fd, length)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def shared_memfd(name: str, length: int, room: int = 0) -> tuple[int, bool]:
    """Sealed memory of 2 MiB pages, with ``length`` bytes reserved, or of small pages if too few are free; and whether
    it is huge. ``room``: how long the memfd shall be if that is more; what lies behind ``length`` costs nothing.
    """
    huge = _huge_memfd(name, length, max(length, room))
    return (sealed_memfd(name, max(length, room)), False) if huge is None else (huge, True)


def _huge_memfd(name: str, length: int, room: int) -> int | None:
    if length % HUGE_PAGE_LEN or room % HUGE_PAGE_LEN:
        return None
    try:
        fd = sealed_memfd(name, room, os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    except OSError:
        return None
    try:
        # A mapping reserves the pages, and the reservation stays with the memfd: no later page fault can find
        # none left.
        mmap.mmap(fd, length).close()
    except OSError as error:
        os.close(fd)
        if error.errno != errno.ENOMEM:
            raise
        return None
    return fd
