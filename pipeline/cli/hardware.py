# SPDX-License-Identifier: Apache-2.0
"""`swarmline hardware`: what this machine has that a layer may want."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from pipeline.cli.options import Json, print_json
from pipeline.cli.show import size
from pipeline.host.hardware import PROCFS, SYSFS, inventory
from pipeline.policy import affinity
from pipeline.policy.hardware import Function, Kind, Machine

Sysfs = Annotated[Path, typer.Option("--sysfs", help="A recorded machine's sysfs; its procfs is looked for beside it.")]


Everything = Annotated[bool, typer.Option("--all", help="Bridges and other functions too.")]


def hardware(sysfs: Sysfs = SYSFS, as_json: Json = False, everything: Everything = False) -> None:
    """Show accelerators, NICs, IOMMU groups, CPUs, NUMA nodes and hugepages.

    Example: swarmline hardware --json
    """
    machine = machine_at(sysfs)
    if as_json:
        print_json(facts(machine))
        return
    console = Console() if sys.stdout.isatty() else Console(width=160)
    for table in (cpu_table(machine), node_table(machine), function_table(machine, everything=everything)):
        console.print(table)
    for caution in cautions(machine):
        console.print(caution, markup=False, highlight=False)


def machine_at(sysfs: Path) -> Machine:
    """The machine of this sysfs."""
    return inventory(sysfs, PROCFS if sysfs == SYSFS else sysfs.parent / "proc")


def facts(machine: Machine) -> dict[str, Any]:
    """A machine for machines: all that was read, and what follows from it."""
    def one(f: Function) -> dict[str, Any]:
        model = None if f.model is None else asdict(f.model) | {"affinity": affinity.names(f.model.affinity)}
        return asdict(f) | {
            "model": model, "kind": f.kind, "what": f.what, "hardware_affinity": affinity.names(f.affinity),
            "class_code": f"{f.class_code:06x}", "isolable": isolable(machine, f), "isolation": machine.isolation(f),
            "group_members": [c.address for c in machine.companions(f)]}

    return asdict(machine) | {
        "flags": sorted(machine.flags), "crypto": affinity.names(machine.cpu_affinity), "iommu": machine.iommu,
        "functions": [one(f) for f in machine.functions]}


def isolable(machine: Machine, function: Function) -> bool:
    """Whether it can be given to a VM without taking anything else from the host."""
    return function.kind is not Kind.BRIDGE and function.group is not None and not machine.obstacles(function)


def cpu_table(machine: Machine) -> Table:
    """Sockets, cores, threads, caches, instructions."""
    packages = {cpu.package for cpu in machine.cpus}
    cores = {cpu.siblings for cpu in machine.cpus}
    table = _table("CPUs")
    for name in ("model", "sockets", "cores", "threads", "caches", "crypto"):
        table.add_column(name)
    table.add_row(machine.cpu_model or "unknown", str(len(packages)), str(len(cores)), str(len(machine.cpus)),
                  _caches(machine), " ".join(affinity.names(machine.cpu_affinity)) or "none")
    return table


def _caches(machine: Machine) -> str:
    """The data caches: how many, how large."""
    words = []
    for level in sorted({c.level for c in machine.caches}):
        same = [c for c in machine.caches if c.level == level and c.kind != "Instruction"]
        if same:
            words.append(f"L{level} {len(same)} × {size(same[0].length)}")
    return ", ".join(words) or "unknown"


def node_table(machine: Machine) -> Table:
    """NUMA nodes with their CPUs, memory, hugepages, distances."""
    table = _table("NUMA nodes")
    for name in ("node", "cpus", "memory", "2 MiB pages", "distances"):
        table.add_column(name)
    for node in machine.nodes:
        table.add_row(str(node.number), ranges(node.cpus), size(node.memory),
                      f"{node.free_hugepages} free of {node.hugepages}",
                      "  ".join(f"{other}: {far}" for other, far in node.distances.items()))
    return table


def function_table(machine: Machine, *, everything: bool = False) -> Table:
    """Accelerators, NICs and disks; of VFs that are alike, one row."""
    table = _table("PCI functions" if machine.iommu else "PCI functions (no IOMMU: none of them can be given to a VM)")
    for name in ("address", "what", "interface", "driver", "node", "group", "to a VM", "VFs", "reset"):
        table.add_column(name, overflow="fold")
    wanted = (Kind.ACCELERATOR, Kind.NIC, Kind.STORAGE)
    for group in _alike(f for f in machine.functions if everything or f.kind in wanted):
        f, more = group[0], len(group) - 1
        table.add_row(
            f.address + (f" and {more} more" if more else ""), f.what, " ".join(f.interfaces), f.driver or "none",
            "" if f.node is None else str(f.node), "" if f.group is None else str(f.group) + ("…" if more else ""),
            machine.isolation(f), f"{len(f.vfs)} of {f.total_vfs}" if f.total_vfs else "", " ".join(f.resets))
    return table


def _alike(functions: Iterable[Function]) -> list[list[Function]]:
    """VFs of one PF with the same driver, together."""
    groups: dict[object, list[Function]] = {}
    for f in functions:
        groups.setdefault((f.physical, f.device, f.driver) if f.physical else f.address, []).append(f)
    return list(groups.values())


def cautions(machine: Machine) -> list[str]:
    """What must be known of the accelerators that are there."""
    models = dict.fromkeys(f.model for f in machine.functions if f.model and f.model.caution)
    return [f"{model.family} {model.name}: {model.caution}" for model in models if model]


def ranges(numbers: Iterable[int]) -> str:
    """0-3,8 of numbers in order."""
    out: list[list[int]] = []
    for number in numbers:
        if out and number == out[-1][-1] + 1:
            out[-1] = [out[-1][0], number]
        else:
            out.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in out) or "none"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)


def register(cli: typer.Typer) -> None:
    cli.command()(hardware)
