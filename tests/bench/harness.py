# SPDX-License-Identifier: Apache-2.0
"""How two things are compared: in turns, in one run, by the median of the ratios of the turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field

Pair = tuple[float, float | None]
"""One round: ours, and the peer's (None: there is no peer)."""


class CannotMeasure(Exception):
    """Nothing can be measured here, and why."""


class PeerMissing(CannotMeasure):
    """The peer is not installed or does not run here; ours can be measured without it."""


@dataclass(frozen=True)
class Bench:
    """One row. ``rounds`` yields pairs for as long as it is asked, ours and the peer's taken right after each
    other. ``target`` is the ratio to reach, for the reader only."""

    id: str
    unit: str
    rounds: Callable[[], Iterator[Pair]]
    peer_name: str = ""
    more_is_better: bool = True
    nb: int = 9
    target: float | None = None
    note: Callable[[], str] = field(default=lambda: "")


@dataclass(frozen=True)
class Group:
    """Benchmarks that share a set-up, which is made only if one of them is selected. ``ids``: what it may give."""

    ids: tuple[str, ...]
    opened: Callable[[], AbstractContextManager[Sequence[Bench]]]


@dataclass(frozen=True)
class Row:
    """A result, as it stands in bench.json. ``ratio`` > 1: ours is better. ``spread``: distance of the
    quartiles of the ratio (without a peer: of ours) as a share of its median. ``n``: rounds."""

    id: str
    unit: str
    ours: float
    peer: float | None
    peer_name: str
    ratio: float | None
    spread: float
    n: int

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def spread(values: Sequence[float]) -> float:
    """Distance of the quartiles as a share of the median."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle if middle else 0.0


def row(bench: Bench, pairs: Sequence[Pair]) -> Row:
    """Medians of what was measured."""
    ours = [pair[0] for pair in pairs]
    both = [(mine, peer) for mine, peer in pairs if peer is not None]
    if not both:
        return Row(bench.id, bench.unit, statistics.median(ours), None, bench.peer_name, None, spread(ours), len(ours))
    ratios = [mine / peer if bench.more_is_better else peer / mine for mine, peer in both]
    return Row(bench.id, bench.unit, statistics.median(ours), statistics.median(peer for _, peer in both),
               bench.peer_name, statistics.median(ratios), spread(ratios), len(ours))


def selected(prefixes: Sequence[str], ident: str) -> bool:
    """Whether the user wants this id. A group's id that is a part of a wanted one counts."""
    return not prefixes or any(ident.startswith(p) or p.startswith(ident + ".") for p in prefixes)


def run(groups: Sequence[Group], prefixes: Sequence[str], report: Callable[[Row, Bench], None],
        complain: Callable[[str, str], None]) -> list[Row]:
    """Measures what is selected, group by group. A row that cannot be measured is absent, with a complaint."""
    rows = []
    for group in groups:
        if not any(selected(prefixes, ident) for ident in group.ids):
            continue
        with ExitStack() as stack:
            try:
                benches = stack.enter_context(group.opened())
            except CannotMeasure as reason:
                complain(", ".join(group.ids), str(reason))
                continue
            for bench in benches:
                if not selected(prefixes, bench.id):
                    continue
                try:
                    result = row(bench, _rounds(bench))
                except CannotMeasure as reason:
                    complain(bench.id, str(reason))
                    continue
                rows.append(result)
                report(result, bench)
    return rows


def _rounds(bench: Bench) -> list[Pair]:
    rounds = bench.rounds()
    return [next(rounds) for _ in range(bench.nb)]


def pairs(ours: Callable[[], float], peer: Callable[[], float] | None = None) -> Callable[[], Iterator[Pair]]:
    """Rounds of two functions in turns; who goes first changes, so that neither always meets a cooler machine."""
    def rounds() -> Iterator[Pair]:
        first = True
        while True:
            if peer is None:
                yield ours(), None
                continue
            if first:
                mine = ours()
                yield mine, peer()
            else:
                other = peer()
                yield ours(), other
            first = not first
    return rounds


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits for something of another process that gives no event. Raises CannotMeasure if it takes longer."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise CannotMeasure(f"{what} did not come within {seconds:g} s")
        time.sleep(0.02)
