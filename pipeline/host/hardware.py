# SPDX-License-Identifier: Apache-2.0
"""The inventory: a Machine read from a sysfs and a procfs, of this machine or of a recorded one.

Whatever is missing there is missing in the result; a machine without NUMA has one node.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pipeline.errors import HardwareError
from pipeline.host.hugepages import POOL
from pipeline.policy.hardware import Cache, Cpu, Function, Machine, Node, Table

SYSFS, PROCFS = Path("/sys"), Path("/proc")
DEVICES = "bus/pci/devices"
ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


@functools.cache
def accelerator_table() -> Table:
    """The data file of the package."""
    return Table((Path(__file__).resolve().parents[1] / "policy/accelerators.toml").read_text())


def inventory(sysfs: Path = SYSFS, procfs: Path = PROCFS) -> Machine:
    """All that can be seen. Raises HardwareError if there is no sysfs."""
    if not (sysfs / "devices/system/cpu").is_dir():
        raise HardwareError(f"{sysfs} is not a sysfs: it has no devices/system/cpu",
                            hint="give the folder that holds bus, class and devices")
    nodes = _nodes(sysfs, procfs)
    model, flags = _cpuinfo(procfs)
    return replace(
        pci_inventory(sysfs, procfs), cpu_model=model, flags=flags, cpus=_cpus(sysfs, nodes), caches=_caches(sysfs),
        nodes=nodes, isolated_cpus=cpu_list(text(sysfs / "devices/system/cpu/isolated")))


def pci_inventory(sysfs: Path = SYSFS, procfs: Path = PROCFS) -> Machine:
    """As much of it as changes while the machine runs, and is read again and again: functions and routes."""
    return Machine(functions=_functions(sysfs, accelerator_table()), default_routes=_default_routes(procfs),
                   vfio=(sysfs / "bus/pci/drivers/vfio-pci").is_dir())


# ---- PCI

def _functions(sysfs: Path, table: Table) -> tuple[Function, ...]:
    folder = sysfs / DEVICES
    found = [function(path, table) for path in sorted(folder.iterdir())] if folder.is_dir() else []
    return tuple(f for f in found if f)


def function(path: Path, table: Table) -> Function | None:
    """One PCI function by its folder; None if it is none, or has gone."""
    vendor, device = _number(path / "vendor", 16), _number(path / "device", 16)
    if not ADDRESS.fullmatch(path.name) or vendor is None or device is None:
        return None
    node, group = _number(path / "numa_node"), _link(path / "iommu_group")
    numbers = f"{vendor:04x}", f"{device:04x}"
    return Function(
        path.name, *numbers, _number(path / "class", 16) or 0, _link(path / "driver"),
        None if node is None or node < 0 else node, int(group) if group.isdecimal() else None,
        table.model(*numbers), tuple(folder.name for folder in interfaces(path)), _link(path / "physfn"),
        _number(path / "sriov_totalvfs") or 0, _vfs(path), _resets(path))


def interfaces(path: Path) -> list[Path]:
    """The folders of a function's network interfaces. Those of virtio lie one deeper."""
    return sorted([*path.glob("net/*"), *path.glob("virtio*/net/*")])


def _vfs(path: Path) -> tuple[str, ...]:
    links = sorted(path.glob("virtfn*"), key=lambda link: int(link.name.removeprefix("virtfn") or 0))
    return tuple(filter(None, map(_link, links)))


def _resets(path: Path) -> tuple[str, ...]:
    """reset_method came with Linux 5.15; the file reset is there if any way works."""
    methods = tuple(text(path / "reset_method").split())
    return methods or (("reset",) if (path / "reset").exists() else ())


# ---- CPUs and memory

def _cpuinfo(procfs: Path) -> tuple[str, frozenset[str]]:
    """The model, and the flags that every CPU has."""
    content = text(procfs / "cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", content, re.MULTILINE)
    sets = [frozenset(line.split()) for line in re.findall(r"^(?:flags|Features)\s*: (.*)$", content, re.MULTILINE)]
    return model[1].strip() if model else "", frozenset.intersection(*sets) if sets else frozenset()


def _cpus(sysfs: Path, nodes: Iterable[Node]) -> tuple[Cpu, ...]:
    folder = sysfs / "devices/system/cpu"
    home = {cpu: node.number for node in nodes for cpu in node.cpus}
    cpus = []
    for number in _online(sysfs):
        topology = folder / f"cpu{number}/topology"
        siblings = cpu_list(text(topology / "core_cpus_list") or text(topology / "thread_siblings_list"))
        cpus.append(Cpu(number, home.get(number, 0), _number(topology / "physical_package_id") or 0,
                        _number(topology / "core_id") or 0, siblings or (number,)))
    return tuple(cpus)


def _online(sysfs: Path) -> tuple[int, ...]:
    folder = sysfs / "devices/system/cpu"
    listed = cpu_list(text(folder / "online"))
    return listed or tuple(sorted(int(path.name[3:]) for path in folder.glob("cpu[0-9]*")))


def _caches(sysfs: Path) -> tuple[Cache, ...]:
    """Each once, although every CPU that shares it shows it."""
    found: dict[tuple[int, str, tuple[int, ...]], Cache] = {}
    for index in sorted((sysfs / "devices/system/cpu").glob("cpu[0-9]*/cache/index[0-9]*")):
        size = re.fullmatch(r"(\d+)([KM]?)", text(index / "size"))
        level, kind = _number(index / "level"), text(index / "type")
        cpus = cpu_list(text(index / "shared_cpu_list"))
        if size and level:
            length = int(size[1]) << {"": 0, "K": 10, "M": 20}[size[2]]
            found.setdefault((level, kind, cpus), Cache(level, kind, length, cpus))
    return tuple(found[key] for key in sorted(found))


def _nodes(sysfs: Path, procfs: Path) -> tuple[Node, ...]:
    folder = sysfs / "devices/system/node"
    numbers = sorted(int(path.name[4:]) for path in folder.glob("node[0-9]*"))
    if not numbers:
        pool = sysfs / "kernel/mm" / POOL
        meminfo = text(procfs / "meminfo")
        return (Node(0, _online(sysfs), _kib(meminfo, "MemTotal"), _count(pool, "nr"), _count(pool, "free"), {0: 10},
                     _free(meminfo)),)
    nodes = []
    for number in numbers:
        own = folder / f"node{number}"
        distances = [int(word) for word in text(own / "distance").split() if word.isdecimal()]
        meminfo = text(own / "meminfo")
        nodes.append(Node(number, cpu_list(text(own / "cpulist")), _kib(meminfo, "MemTotal"),
                          _count(own / POOL, "nr"), _count(own / POOL, "free"),
                          dict(zip(numbers, distances, strict=False)), _free(meminfo)))
    return tuple(nodes)


def _count(pool: Path, what: str) -> int:
    return _number(pool / f"{what}_hugepages") or 0


def _free(meminfo: str) -> int:
    """The kernel drops cached files when it makes hugepages."""
    return sum(_kib(meminfo, name) for name in ("MemFree", "Active(file)", "Inactive(file)"))


def _kib(meminfo: str, name: str) -> int:
    found = re.search(rf"\b{re.escape(name)}:\s+(\d+) kB", meminfo)
    return int(found[1]) << 10 if found else 0


def _default_routes(procfs: Path) -> tuple[str, ...]:
    """Interfaces by which the host reaches the world: 0.0.0.0/0 and ::/0, not those to lo."""
    four = [fields[0] for line in text(procfs / "net/route").splitlines()[1:]
            if len(fields := line.split()) > 7 and fields[1] == fields[7] == "00000000"]
    six = [fields[9] for line in text(procfs / "net/ipv6_route").splitlines()
           if len(fields := line.split()) > 9 and not int(fields[0], 16) and fields[1] == "00"]
    return tuple(sorted({*four, *six} - {"lo"}))


# ---- files of a sysfs

def cpu_list(listed: str) -> tuple[int, ...]:
    """0-3,8 as numbers."""
    cpus: list[int] = []
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", listed):
        cpus += range(int(first), int(last or first) + 1)
    return tuple(cpus)


def text(path: Path) -> str:
    """The file without white space around; empty if it can not be read, for whatever reason."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path, base: int = 10) -> int | None:
    try:
        return int(text(path), base)
    except ValueError:
        return None


def _link(path: Path) -> str:
    """Name of what a symbolic link points to; empty if there is none."""
    return path.readlink().name if path.is_symlink() else ""

