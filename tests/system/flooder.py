# SPDX-License-Identifier: Apache-2.0
"""A process that rings a peer as fast as it can, by the very doorbell that an instance has of it."""

import ctypes
import mmap
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from system.swarm_rig import eventually

from pipeline.host.ivshmem import BELLS

SYS_PIDFD_GETFD = 438
FLOOD = """
import mmap, os, struct, sys
bell, numbers = int(sys.argv[1]), mmap.mmap(int(sys.argv[2]), 8)
rings = 0
while True:
    os.eventfd_write(bell, 1)
    rings += 1
    struct.pack_into("<Q", numbers, 0, rings)
"""


def eventfds(pid: int) -> dict[int, int]:
    """Number of each eventfd in the kernel -> the process's descriptor."""
    found = {}
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):           # closed just now
            if number := re.search(r"^eventfd-id:\s*(\d+)", path.read_text(), re.MULTILINE):
                found[int(number[1])] = int(path.name)
    return found


def listened(pid: int) -> set[int]:
    """Doorbells of its own to which the process listens."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/fdinfo").iterdir()]
    waited = {int(fd) for text in texts for fd in re.findall(r"^tfd:\s*(\d+)", text, re.MULTILINE)}
    return waited & {*eventfds(pid).values()}


def doorbell(ringer: int, rung: int) -> int:
    """The doorbell of the process ``rung`` that the process ``ringer`` has: both have it, and the ringer does not
    listen to it.
    """
    eventually(lambda: len(listened(ringer)) == BELLS, "it listens to all that it has")
    own = listened(ringer)
    theirs = eventfds(rung)
    (fd,) = {fd for number, fd in eventfds(ringer).items() if number in theirs and fd not in own}
    return stolen(ringer, fd)


def stolen(pid: int, fd: int) -> int:
    """A copy of another process's descriptor."""
    pidfd = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if (got := libc.syscall(SYS_PIDFD_GETFD, pidfd, fd, 0)) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "pidfd_getfd")
        return int(got)
    finally:
        os.close(pidfd)


@contextmanager
def flooding(ringer: int, rung: int) -> Iterator[Callable[[], int]]:
    """While the block runs. What it gives tells how often it has rung."""
    bell, counted = doorbell(ringer, rung), os.memfd_create("rings")
    os.ftruncate(counted, 8)
    argv = [sys.executable, "-P", "-c", FLOOD, str(bell), str(counted)]
    try:
        with mmap.mmap(counted, 8) as rings, subprocess.Popen(argv, pass_fds=[bell, counted]) as process:
            try:
                yield lambda: int(struct.unpack("<Q", rings[:8])[0])
            finally:
                process.kill()
    finally:
        os.close(bell)
        os.close(counted)
