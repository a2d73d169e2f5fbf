# SPDX-License-Identifier: Apache-2.0
"""Where a virtual machine's QEMU and the router meet: a UNIX socket in a folder of their own (c/abi/router.h)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pipeline.errors import RouterError

SOCKET = "net"


def folder_make(run_dir: Path, vm_id: int, user: int, router_group: int) -> Path:
    """The folder where QEMU, which runs as ``user``, listens for the router, at ``net``.

    Nobody else comes near. QEMU can not reach it by its path either: it is started in it (``path=net``) or inherits it
    (``path=/proc/self/fd/N/net``), with umask 0 and ``-chardev socket,id=ID,path=PATH,server=on,wait=off``. A listener
    that it inherits is refused by QEMU 7.2: "does not support FD passing".
    """
    folder = _parent(run_dir) / str(vm_id)
    try:
        folder.parent.mkdir(mode=0o711, exist_ok=True)
        folder.mkdir(mode=0o710, exist_ok=True)
        os.chown(folder, user, router_group)
    except OSError as error:
        raise RouterError(f"cannot make {folder}: {error.strerror or error}") from error
    return folder


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


def _parent(run_dir: Path) -> Path:
    return run_dir / "vhost"
