# SPDX-License-Identifier: Apache-2.0
"""Why a PCI function can not be taken from the host: what of the host depends on it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.host.hardware import DEVICES, interfaces, text
from pipeline.policy.hardware import VFIO_DRIVERS, Function, Kind, Machine

USER_SPACE_DRIVERS = ("uio_pci_generic", "igb_uio")
IFF_UP = 1


def uses(machine: Machine, function: Function, sysfs: Path, procfs: Path) -> list[str]:
    """Each use as a sentence for people; none: it can be taken."""
    if function.driver in VFIO_DRIVERS:
        return []                        # whether a VM has it, its IOMMU group tells
    found = [*_disk_uses(sysfs / DEVICES / function.address, sysfs, procfs)]
    if function.kind is Kind.NIC:
        found += _nic_uses(machine, function, sysfs)
    if function.vfs:
        found.append(f"{len(function.vfs)} VFs exist on it")
    if function.driver in USER_SPACE_DRIVERS:
        found.append(f"{function.driver} gives it to a program")
    return found


def group_users(node: Path, procfs: Path) -> list[int]:
    """Processes that hold this IOMMU group."""
    pids = []
    for folder in procfs.glob("[0-9]*/fd"):
        try:
            if any(os.readlink(link) == str(node) for link in folder.iterdir()):
                pids.append(int(folder.parent.name))
        except OSError:
            continue                     # ended, or not ours to see
    return pids


def _nic_uses(machine: Machine, function: Function, sysfs: Path) -> Iterator[str]:
    if not function.interfaces:
        if function.driver:
            yield f"its driver {function.driver} shows no interface here: it may be in another network namespace"
        return
    for own in interfaces(sysfs / DEVICES / function.address):
        if own.name in machine.default_routes:
            yield f"the host's default route goes through {own.name}"
        elif int(text(own / "flags") or "0", 16) & IFF_UP:
            yield f"interface {own.name} is up"
        if (own / "master").is_symlink():
            yield f"interface {own.name} belongs to {(own / 'master').readlink().name}"
    others = [f for f in machine.functions if f.kind is Kind.NIC and f.interfaces and f is not function]
    if not others:
        yield f"{', '.join(function.interfaces)} is the host's only NIC"


def _disk_uses(device: Path, sysfs: Path, procfs: Path) -> Iterator[str]:
    """Mounts and swap on a disk behind this function, also through device mapper and RAID."""
    try:
        home = device.resolve(strict=True)
    except OSError:
        return
    for what, block in _mounted(sysfs, procfs):
        if any(path.is_relative_to(home) for path in _layers(block)):
            yield what


def _mounted(sysfs: Path, procfs: Path) -> Iterator[tuple[str, Path]]:
    """(use, its block device in sysfs)."""
    for line in text(procfs / "self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, source = left.split(), right.split()
        if len(fields) < 5 or len(source) < 2:
            continue
        number = fields[2]               # of btrfs and the like an anonymous one: then its source tells
        block = sysfs / "dev/block" / number
        if number.startswith("0:") and source[1].startswith("/dev/"):
            block = sysfs / "class/block" / Path(source[1]).name
        yield f"{_unescaped(fields[4])} is mounted from it", block
    for line in text(procfs / "swaps").splitlines()[1:]:
        if line.startswith("/dev/"):
            yield "the host swaps to it", sysfs / "class/block" / Path(line.split()[0]).name


def _layers(block: Path) -> Iterator[Path]:
    """The block device and those that it is made of."""
    try:
        path = block.resolve(strict=True)
    except OSError:
        return
    yield path
    disk = path.parent if (path / "partition").exists() else path
    below = [*(path / "slaves").glob("*"), *(disk / "slaves").glob("*")]
    if disk.parent.name.startswith("nvme-subsys"):       # NVMe multipath: the controllers by which it is reached
        below += disk.parent.glob("nvme*")
    for link in below:
        if link.is_symlink():
            yield from _layers(link)


def _unescaped(word: str) -> str:
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), word)
