# SPDX-License-Identifier: Apache-2.0
"""The kernel as the life of a passed-through device needs it: files of sysfs, and VFIO groups."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path

_TYPE1V2 = 3                # linux/vfio.h
_GET_API_VERSION, _CHECK_EXTENSION, _SET_IOMMU, _GROUP_GET_STATUS, _GROUP_SET_CONTAINER = range(0x3B64, 0x3B69)
_VIABLE = 1


class Kernel:
    """The kernel's side: its files, and the two ways of talking to it. Tests put another one in its place."""

    def __init__(self, sysfs: Path = Path("/sys"), dev: Path = Path("/dev"), procfs: Path = Path("/proc")) -> None:
        self.sysfs, self.dev, self.procfs = sysfs, dev, procfs

    def write(self, path: Path, value: str) -> None:
        """Into a file that exists. Raises OSError as the kernel answers."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)

    def try_group(self, group: int) -> bool:
        """Opens the group, puts it into a container with an IOMMU and lets it go again, as QEMU will. False: some
        device in it has a driver of the host. OSError: EBUSY somebody has it, EPERM no interrupt remapping.
        """
        with contextlib.ExitStack() as stack:
            fd = os.open(self.group_node(group), os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            container = os.open(self.dev / "vfio/vfio", os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, container)
            status = bytearray(struct.pack("II", 8, 0))
            fcntl.ioctl(fd, _GROUP_GET_STATUS, status)
            if not struct.unpack("II", status)[1] & _VIABLE:
                return False
            if fcntl.ioctl(container, _GET_API_VERSION) or fcntl.ioctl(container, _CHECK_EXTENSION, _TYPE1V2) != 1:
                raise OSError(errno.ENOTSUP, "this kernel's vfio has no type 1 IOMMU")
            fcntl.ioctl(fd, _GROUP_SET_CONTAINER, struct.pack("i", container))
            fcntl.ioctl(container, _SET_IOMMU, _TYPE1V2)
            return True

    def group_node(self, group: int) -> Path:
        """What QEMU opens."""
        return self.dev / "vfio" / str(group)
