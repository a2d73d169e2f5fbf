# SPDX-License-Identifier: Apache-2.0
"""Machines that this one is not: the files of a sysfs and a procfs as a compact text, and the tree made of it.

::

    @ sys/bus/pci/devices/0000:3d:0{1-2}.{0-7}      a folder; of ranges, each combination, counted from 0
    vendor = 0x8086                                 a file in it; \\n in its text is a line's end
    physfn -> ../0000:3d:00.0                       a symbolic link
    iommu_group -> ../groups/{120+}                 120 plus the number of the combination
    virtfn{0-7} -> ../0000:3d:01.{0+}               ranges in a name are counted too

Ranges are decimal. ``kernel`` of sysfs links is left out: only the last word of a link's target counts.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

_RANGE = re.compile(r"\{(\d+)-(\d+)\}")
_COUNT = re.compile(r"\{(\d+)\+\}")


def grow(source: Path, root: Path) -> Path:
    """Makes the tree below ``root`` and returns its sysfs."""
    folder = ""
    for line in source.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("@ "):
            folder = line[2:].strip()
            for name in _expanded(folder):
                (root / name).mkdir(parents=True, exist_ok=True)
            continue
        found = re.fullmatch(r"(\S+) (=|->) ?(.*)", line)
        assert found, line
        for number, path in enumerate(_expanded(f"{folder}/{found[1]}")):
            _put(root / path, found[2], _counted(found[3], number))
    return root / "sys"


def _counted(value: str, number: int) -> str:
    return _COUNT.sub(lambda match: str(int(match[1]) + number), value)


def _put(path: Path, kind: str, value: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "->":
        path.symlink_to(value)
    else:
        path.write_text(value.replace("\\n", "\n") + "\n")


def _expanded(name: str) -> Iterator[str]:
    """Every combination of the ranges in it, the last one running fastest."""
    ranges = [range(int(a), int(b) + 1) for a, b in _RANGE.findall(name)]
    for numbers in itertools.product(*ranges):
        words = _RANGE.split(name)[::3]      # between the ranges
        yield "".join(f"{word}{number}" for word, number in zip(words, [*numbers, ""], strict=True))
