# SPDX-License-Identifier: Apache-2.0
"""Runs the benchmarks, prints a table, writes bench.json."""

from __future__ import annotations

import json
import os
import sys
import time

from rich.console import Console
from rich.markup import escape
from support import ROOT

from bench import classifier, crypto, edge, idle, scale, unequal, vhost, web
from bench.harness import Bench, Row, run
from bench.native import BUILD

_BUSY = 0.7   # load average from which on other work is in the way
GROUPS = (*edge.GROUPS, *vhost.GROUPS, *classifier.GROUPS, *crypto.GROUPS, *web.GROUPS, *unequal.GROUPS, *scale.GROUPS,
          *idle.GROUPS)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):.4g} {suffix}"
    return f"{value:.4g}"


def main() -> int:
    """Exit status 0: everything that was asked for was measured."""
    prefixes = [part for arg in [*sys.argv[1:], os.environ.get("ONLY", "")] for part in arg.replace(",", " ").split()]
    console, begin, missing = Console(highlight=False), time.monotonic(), []
    if os.geteuid():
        console.print("tools/bench: the superuser is needed (namespaces, hugepages, priorities)")
        return 1
    if os.getloadavg()[0] > _BUSY:
        console.print(f"the machine is not idle (load {os.getloadavg()[0]:.1f}): expect wrong numbers", style="yellow")
    line = "{:20} {:>10} {:>10} {:>7} {:>7} {:>7} {:>3}  {}"
    head = line.format("id", "ours", "peer", "ratio", "target", "spread", "n", "unit; peer")
    console.print(head, style="bold", soft_wrap=True)

    def report(row: Row, bench: Bench) -> None:
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        target = "-" if bench.target is None else f"{bench.target:.2f}"
        note = f" ({bench.note()})" if bench.note() else ""
        console.print(escape(line.format(
            row.id, _number(row.ours), _number(row.peer), ratio, target, f"{row.spread:.0%}", row.n,
            row.unit + (f"; {row.peer_name}" if row.peer_name else "") + note)), soft_wrap=True)

    def complain(ident: str, reason: str) -> None:
        missing.append(ident)
        console.print(f"{escape(ident)}: not measured: {escape(reason)}", style="red", soft_wrap=True)

    rows = run(GROUPS, prefixes, report, complain)
    target = (BUILD if BUILD.is_absolute() else ROOT / BUILD) / "bench.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n")
    console.print(f"{len(rows)} rows in {time.monotonic() - begin:.0f} s; ratio > 1: ours is better; {target}")
    return 1 if missing or not rows else 0
