# SPDX-License-Identifier: Apache-2.0
"""Who may open a socket of ours: its owner, and the members of a group if there is one."""

from __future__ import annotations

import grp
import os
from pathlib import Path

from pipeline.errors import HostError


def group_id(name: str) -> int:
    """Raises HostError if this machine has no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise HostError(f"there is no group {name!r}",
                        hint=f"`groupadd --system {name}`, or another `api_group`") from None


def group_name(gid: int) -> str:
    """Its name, or its number if it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def open_to_group(path: Path, name: str) -> None:
    """Its members may open the file, and for that pass through its folder, which they can not list."""
    gid = group_id(name)
    for place, mode in ((path, 0o660), (path.parent, 0o710)):
        os.chown(place, -1, gid)
        place.chmod(mode)
