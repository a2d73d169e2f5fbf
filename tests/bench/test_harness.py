# SPDX-License-Identifier: Apache-2.0
"""What a row of bench.json says, from made-up measurements."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.harness import Bench, CannotMeasure, Group, Row, pairs, row, run, selected, spread


def made(ident: str, **options: object) -> Bench:
    return Bench(ident, "ns", pairs(lambda: 2.0, lambda: 4.0), "peer", nb=4, **options)  # type: ignore[arg-type]


def grouped(*benches: Bench) -> Group:
    @contextmanager
    def opened() -> Iterator[Sequence[Bench]]:
        yield benches

    return Group(tuple(bench.id for bench in benches), opened)


def measured(groups: Sequence[Group], *prefixes: str) -> tuple[list[Row], list[str]]:
    complaints: list[str] = []
    rows = run(groups, prefixes, lambda row, bench: None, lambda ident, reason: complaints.append(ident))
    return rows, complaints


def test_ratio_above_one_is_better_for_rates_and_for_times() -> None:
    assert row(made("a", more_is_better=False), [(2.0, 4.0)]).ratio == 2.0
    assert row(made("a"), [(2.0, 4.0)]).ratio == 0.5


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    result = row(made("a"), [(10.0, 10.0), (30.0, 10.0), (100.0, 50.0)])
    assert (result.ratio, result.ours, result.peer, result.n) == (2.0, 30.0, 10.0, 3)


def test_row_without_peer_has_no_ratio() -> None:
    result = row(made("a"), [(1.0, None), (2.0, None)])
    assert (result.peer, result.ratio, result.ours) == (None, None, 1.5)


def test_spread_is_the_distance_of_the_quartiles() -> None:
    assert spread([5.0]) == 0.0
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == 2 / 3


def test_prefix_selects_rows_and_the_groups_that_hold_them() -> None:
    assert selected((), "edge.ring")
    assert selected(("edge",), "edge.ring")
    assert selected(("edge.hop.64",), "edge.hop")
    assert not selected(("edge",), "route.select")
    rows, _ = measured([grouped(made("edge.ring"), made("edge.rtt")), grouped(made("route.select"))], "edge.ri")
    assert [r.id for r in rows] == ["edge.ring"]


def test_what_cannot_be_measured_is_absent_and_named() -> None:
    def fails() -> float:
        raise CannotMeasure("no such thing")

    rows, complaints = measured([grouped(Bench("a", "ns", pairs(fails)), made("b"))])
    assert [r.id for r in rows] == ["b"]
    assert complaints == ["a"]


def test_who_goes_first_changes() -> None:
    order: list[str] = []

    def ours() -> float:
        order.append("ours")
        return 1.0

    def peer() -> float:
        order.append("peer")
        return 1.0

    rounds = pairs(ours, peer)()
    next(rounds), next(rounds)
    assert order == ["ours", "peer", "peer", "ours"]
