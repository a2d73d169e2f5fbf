# SPDX-License-Identifier: Apache-2.0
"""Archives for the kernel's initramfs: cpio, format newc (Documentation/driver-api/early-userspace/buffer-format.rst).

Written here and not by cpio(1), so that device nodes need no rights, and equal contents give equal bytes: sorted,
owned by root, no times but those that are given, inode numbers counted.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One file of the archive. ``mode`` is as in stat(2), the kind of file included."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)
    mtime: int = 0             # seconds since the epoch


def directory(mode: int = 0o755) -> Entry:
    return Entry(stat.S_IFDIR | mode)


def regular(data: bytes, mode: int = 0o644) -> Entry:
    return Entry(stat.S_IFREG | mode, data)


def symlink(target: str) -> Entry:
    return Entry(stat.S_IFLNK | 0o777, target.encode())


def character_device(major: int, minor: int, mode: int = 0o600) -> Entry:
    return Entry(stat.S_IFCHR | mode, device=(major, minor))


def archive(entries: dict[str, Entry]) -> bytes:
    """The archive of these files by path without a leading slash. Folders that are missing are added."""
    whole = dict(entries)
    for path in entries:
        for parent in Path(path).parents:
            if parent.name:
                whole.setdefault(str(parent), directory())
    out = bytearray()
    for inode, path in enumerate(sorted(whole), start=1):
        _append(out, path, inode, whole[path])
    _append(out, "TRAILER!!!", 0, Entry(0))
    return bytes(out.ljust((len(out) + 511) & ~511, b"\0"))


def tree(folder: Path, at: str) -> dict[str, Entry]:
    """The regular files below a folder, by the path that they shall have below ``at``. Symbolic links are
    followed if they stay inside; whatever else lies there is left out."""
    found = {}
    root = folder.resolve()
    for place, _, names in os.walk(root):
        for name in names:
            path = Path(place, name)
            target = path.resolve()
            if target.is_relative_to(root) and target.is_file():
                found[f"{at}/{path.relative_to(root)}"] = Entry(
                    stat.S_IFREG | 0o644, target.read_bytes(), mtime=int(target.stat().st_mtime))
    return found


def _append(out: bytearray, path: str, inode: int, entry: Entry) -> None:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, entry.mtime, len(entry.data), 0, 0, *entry.device, len(name), 0)
    out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
    out += bytes(-len(out) % 4) + entry.data
    out += bytes(-len(out) % 4)
