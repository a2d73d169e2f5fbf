# SPDX-License-Identifier: Apache-2.0
"""A folder that somebody else may look into, and into nothing above it.

The descriptor is that of a mount of its own (open_tree(2)): its root is the folder, so ".." leads nowhere, and it
cannot be written through, whatever the holder tries.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import PurePath

from pipeline.errors import HostError

# of <linux/mount.h> and <asm-generic/unistd.h>; the same on all architectures
SYS_OPEN_TREE, SYS_MOUNT_SETATTR = 428, 442
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE = 1
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8


def folder_open(path: PurePath) -> int:
    """The descriptor (O_PATH), the caller's."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(SYS_OPEN_TREE, AT_FDCWD, os.fsencode(path),
                           OPEN_TREE_CLONE | os.O_CLOEXEC | AT_RECURSIVE)
    if fd < 0:
        raise HostError(f"cannot open the folder {path}: {os.strerror(ctypes.get_errno())}",
                        hint="see `root` in [layer.app]")
    attributes = struct.pack("=QQQQ", RDONLY | NOSUID | NODEV | NOEXEC, 0, 0, 0)
    if libc.syscall(SYS_MOUNT_SETATTR, fd, b"", AT_EMPTY_PATH | AT_RECURSIVE, attributes, len(attributes)):
        error = os.strerror(ctypes.get_errno())
        os.close(fd)
        raise HostError(f"cannot make the folder {path} read-only: {error}")
    return fd
