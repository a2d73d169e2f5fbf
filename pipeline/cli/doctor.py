# SPDX-License-Identifier: Apache-2.0
"""`swarmline doctor`: can this machine run a swarm, and how well?"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import preflight
from pipeline.cli.options import Json, print_json
from pipeline.errors import HostError, SwarmlineError
from pipeline.host import hugepages, processes
from pipeline.host.hardware import inventory
from pipeline.host.placer import this_machine
from pipeline.host.wishes import wishes
from pipeline.instances.guests import check
from pipeline.instances.qemu_argv import Accelerator
from pipeline.policy.affinity import ACCELERATORS
from pipeline.policy.model import Driver, Layer, LayerId
from pipeline.policy.placement import place


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``level``: ok, warning (works, less well) or error (does not work)."""

    name: str
    level: str
    text: str


def doctor(file: Annotated[Path | None, typer.Argument(help="Also check this config file against the machine.")] = None,
           as_json: Json = False) -> None:
    """Check this machine, and a config file, before a swarm is started.

    Example: swarmline doctor examples/https.toml
    """
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("rights", _rights), ("kernel", _kernel), ("programs", _programs), ("tun", _tun), ("hugepages", _hugepages),
        ("cpus", _cpus), ("hardware", _hardware), ("virtual machines", _guests)]
    findings = [_try(name, check) for name, check in checks]
    if file is not None:
        findings.append(_try("config file", lambda: _config(file)))
        findings.append(_try("placement", lambda: _placement(file)))
    if as_json:
        print_json([asdict(f) for f in findings])
    else:
        for f in findings:
            print(f"{f.level:8} {f.name:16} {f.text}")
    if any(f.level == "error" for f in findings):
        sys.exit(1)


def _try(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except (SwarmlineError, OSError) as error:
        return Finding(name, "error", error.explain() if isinstance(error, SwarmlineError) else str(error))


def _rights() -> Finding:
    preflight.rights()
    return Finding("rights", "ok", "root")


def _kernel() -> Finding:
    release = os.uname().release
    number = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    if number < (5, 18):
        return Finding("kernel", "error", f"{release}: native XDP with fragments came with 5.18; Debian 12 has 6.1")
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return Finding("kernel", "error", f"{release} has no BTF: CONFIG_DEBUG_INFO_BTF is needed")
    if number < (6, 6):
        return Finding("kernel", "warning", f"{release}: MTU above 3,818 needs AF_XDP with fragments, from 6.6")
    return Finding("kernel", "ok", release)


def _programs() -> Finding:
    found = [str(processes.program(name)) for name in ("swarmline-instance", "swarmline-router")]
    return Finding("programs", "ok", ", ".join(found))


def _tun() -> Finding:
    if not preflight.TUN.exists():
        return Finding("tun", "error", f"{preflight.TUN} is missing: `modprobe tun`")
    return Finding("tun", "ok", str(preflight.TUN))


def _hugepages() -> Finding:
    pool = hugepages.pool()
    text = (f"{pool.available} of {pool.total} 2 MiB pages available; "
            "`swarmline up` reserves what it needs and gives it back")
    return Finding("hugepages", "ok", text)


def _cpus() -> Finding:
    number = os.cpu_count() or 1
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    crypto = [f for f in ("aes", "vaes", "vpclmulqdq", "sha_ni", "gfni", "avx512f") if f in flags]
    level = "ok" if number >= 4 else "warning"
    return Finding("cpus", level, f"{number} CPUs, {' '.join(crypto) or 'no AES instructions'}"
                   + ("" if number >= 4 else "; layers share them, so expect more latency"))


def _guests() -> Finding:
    try:
        found = check([Layer(LayerId.APP, instances=1, driver=Driver.QEMU)], None)
    except HostError as error:
        return Finding("virtual machines", "warning", f"{error.explain()}; sandboxed processes work without")
    assert found
    level = "ok" if found.choice.accelerator is Accelerator.KVM else "warning"
    return Finding("virtual machines", level, found.remark)


def _config(file: Path) -> Finding:
    config = preflight.config(file)
    pages, guests = preflight.machine(config), preflight.guests(config)
    more = f", virtual machines of {guests.pages}" if guests else ""
    return Finding("config file", "ok", f"{file}: {len(config.services)} services, edges of {pages} hugepages{more}")


def _hardware() -> Finding:
    machine = inventory()
    usable = [f for f in machine.functions if f.affinity & ACCELERATORS]
    words = ", ".join(sorted({f.what for f in usable})) or "no accelerators"
    if usable and not machine.iommu:
        return Finding("hardware", "warning", f"{words}, but no IOMMU: they can not be given to a VM")
    return Finding("hardware", "ok", f"{len(machine.nodes)} NUMA nodes, {words}; `swarmline hardware` tells more")


def _placement(file: Path) -> Finding:
    """Conflicts and oversubscription."""
    config = preflight.config(file)
    problems = place(this_machine(), wishes(config)).problems
    if not problems:
        return Finding("placement", "ok", "everything has a core and memory of its own, on the NIC's node")
    return Finding("placement", "warning", "; ".join(problems))


def register(cli: typer.Typer) -> None:
    cli.command()(doctor)
