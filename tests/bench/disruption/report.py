# SPDX-License-Identifier: Apache-2.0
"""The results as a table for people."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from rich.box import SIMPLE
from rich.table import Table

from bench.disruption.checker import RULES, Rule
from bench.disruption.run import Result

COLUMNS = (
    "system",
    "event",
    "n",
    "requests",
    "failed",
    "allowed",
    "lost",
    "dupl.",
    "foreign",
    "corrupt",
    "retried",
    "resets",
    "late",
    "worst ms",
    "blocked ms",
    "back ms",
    "moved",
    "remapped %",
    "noise ms",
    "verdict",
)


def table(results: Iterable[Result]) -> Table:
    """Numbers with two values are the median and the worst of all events."""
    shown = Table(
        box=SIMPLE,
        pad_edge=False,
        caption=(
            "failed: a definite error; allowed: those of them that the death of an instance may cost; "
            "retried: on an idle connection that the "
            "server closed; blocked: longest time without any right answer, median / worst event; "
            "back: until the capacity is there again (of a kill or stall: from it until the layer has as many active "
            "instances as before); moved: known flows that the classifier gave to another "
            "instance; remapped: share of new flows that an event gives to another instance than before (a dead or "
            "drained one of n first-layer instances had 1/n of them: its replacement gets these); noise: time "
            "in which the machine did not even let the clients run"
        ),
    )
    for name in COLUMNS:
        shown.add_column(name, justify="left" if name in ("system", "event", "verdict") else "right", no_wrap=True)
    for r in results:
        if r.tally is None:
            shown.add_row(r.system, r.kind, *[""] * (len(COLUMNS) - 3), f"skipped: {r.why}")
            continue
        t = r.tally
        shown.add_row(
            r.system,
            r.kind,
            str(t.events),
            str(t.requests),
            str(t.failed),
            str(t.excused),
            str(t.lost),
            str(t.duplicated),
            str(t.foreign),
            str(t.corrupt),
            str(t.retried),
            str(t.resets),
            str(t.late),
            f"{t.worst_ms:.0f}",
            _two(t.blocked_ms),
            _two(t.back_ms),
            str(t.moved) if t.remapped else "",
            _two([100 * share for share in t.remapped]),
            f"{t.noise_ms:.0f}",
            verdict(r),
        )
    return shown


def verdict(result: Result) -> str:
    """In a word or two."""
    t = result.tally
    assert t
    if RULES.get(t.kind, Rule.FREE) is Rule.FREE:
        return "not judged"
    parts = [f"{t.unexcused} wrong"] if t.unexcused else []
    if t.not_whole:
        parts.append(f"{t.not_whole} not whole")
    if not parts:
        parts.append("kept")
    if t.slow_back:
        parts.append(f"{t.slow_back} slow")
    return ", ".join(parts)


def _two(values: list[float]) -> str:
    return f"{median(values):.0f} / {max(values):.0f}" if values else ""
