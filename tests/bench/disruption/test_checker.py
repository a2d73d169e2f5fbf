# SPDX-License-Identifier: Apache-2.0
"""The checker must find what is wrong: each test seeds one wrong thing into a history that is right."""

from dataclasses import replace

import pytest

from bench.disruption.checker import MS, Limits, Tally, check
from bench.disruption.history import NOISE, Event, Record

SECOND = 1000 * MS


def right(n: int, client: str = "keep-0", *, at: int, took: int = 5 * MS) -> Record:
    """Request n, sent at ``at`` on the client's one connection and answered as it should be."""
    method = "POST" if client.startswith("echo") else "GET"
    return Record(client, n, method, at, at + took - MS, at + took, 200, "ok", "", 1, 0, n)


def history(kind: str = "scale") -> tuple[list[Record], list[Event]]:
    """Two seconds of one client, a request each 10 ms: one second undisturbed, then an event."""
    records = [right(n, at=n * 10 * MS) for n in range(200)]
    return records, [Event("baseline", 0, SECOND), Event(kind, SECOND, SECOND + 500 * MS)]


def tally_of(kind: str, change: dict[int, Record], started: int | None = 200) -> Tally:
    records, events = history(kind)
    records = [change.get(r.request, r) for r in records]
    records.sort(key=lambda r: r.end)
    return check(records, events, {"keep-0": started} if started else {})[kind]


def failed(n: int, *, took: int = 5 * MS, **fields: object) -> Record:
    return replace(right(n, at=n * 10 * MS, took=took), **{"first": 0, "status": 0, "body": "none", **fields})  # type: ignore[arg-type]


def test_a_right_history_is_good() -> None:
    tally = tally_of("scale", {})
    assert tally.good and tally.requests == 100 and not tally.kinds
    assert tally.blocked_ms == [pytest.approx(10)]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (failed(120, error="reset"), "failed"),
        (failed(120, status=502), "failed"),
        (failed(120, error="timeout"), "lost"),
        (replace(right(120, at=120 * 10 * MS), body="foreign"), "foreign"),
        (replace(right(120, at=120 * 10 * MS), body="corrupt"), "corrupt"),
        (replace(right(120, at=120 * 10 * MS), body="short"), "corrupt"),
        (replace(right(120, at=120 * 10 * MS), request=119), "duplicated"),
    ],
)
def test_each_wrong_thing_is_found(wrong: Record, field: str) -> None:
    tally = tally_of("scale", {120: wrong}, started=None)
    assert not tally.good
    assert getattr(tally, field) == 1
    assert tally.unexcused == 1


def test_bytes_that_nobody_asked_for() -> None:
    records, events = history()
    records.insert(150, replace(records[149], error="extra"))
    tally = check(records, events)["scale"]
    assert tally.duplicated == 1 and not tally.good


def test_a_request_without_an_end_is_lost() -> None:
    records, events = history()
    del records[150]
    tally = check(records, events, {"keep-0": 200})["scale"]
    assert tally.lost == 1 and not tally.good


def test_a_failure_belongs_to_the_event_in_which_it_ended() -> None:
    records, events = history()
    records[99] = failed(99, error="reset", took=300 * MS)  # sent before the event, over after its start
    records.sort(key=lambda r: r.end)
    tallies = check(records, events)
    assert tallies["scale"].failed == 1 and tallies["baseline"].failed == 0


def test_late_and_blocked() -> None:
    records, events = history()
    records = [r for r in records if not 110 <= r.request < 180]
    records.append(right(110, at=1100 * MS, took=699 * MS))
    records.sort(key=lambda r: r.end)
    tally = check(records, events, limits=Limits(late_ms=100))["scale"]
    assert tally.late == 1
    assert tally.worst_ms == pytest.approx(699)
    assert tally.blocked_ms == [pytest.approx(704)]
    assert tally.good, "late alone is no failure"


def test_retries_and_resets_are_counted_apart() -> None:
    tally = tally_of(
        "drain",
        {
            120: replace(right(120, at=1200 * MS), before="retry-reset"),
            130: replace(right(130, at=1300 * MS), before="idle-eof"),
        },
    )
    assert (tally.retried, tally.resets, tally.good) == (1, 1, True)


# ---- what the death of an instance may cost


def test_kill_app_may_cut_an_answer_that_had_begun() -> None:
    cut = failed(102, first=1025 * MS, status=200, body="short", error="reset")
    assert tally_of("kill-app", {102: cut}).good
    assert not tally_of("kill-app", {150: replace(cut, request=150, start=1500 * MS, end=1505 * MS)}).good, (
        "too late for that"
    )
    assert not tally_of("kill-router", {102: cut}).good


def test_kill_app_502_only_for_what_may_not_be_repeated() -> None:
    assert tally_of("kill-app", {102: failed(102, status=502, method="POST")}).good
    assert not tally_of("kill-app", {102: failed(102, status=502)}).good
    assert not tally_of("kill-app", {102: failed(102, error="reset")}).good, "http lived: no connection dies"


@pytest.mark.parametrize("kind", ["kill-http", "kill-tcp"])
def test_only_connections_of_before_may_die_and_at_once(kind: str) -> None:
    cut = failed(102, error="reset")
    assert tally_of(kind, {102: cut}).good
    assert tally_of(kind, {102: cut}).excused == 1
    assert not tally_of(kind, {150: failed(150, error="reset", conn_start=1490 * MS)}).good, "a connection of after"
    assert not tally_of(kind, {102: failed(102, error="reset", took=2 * SECOND)}).good, "not at once"
    assert not tally_of(kind, {102: failed(102, error="timeout", took=10 * SECOND)}).good
    assert not tally_of(kind, {102: failed(102, status=502)}).good


def test_kill_tls_may_cut_handshakes_only() -> None:
    cut = failed(102, error="reset", nth=0)
    assert tally_of("kill-tls", {102: cut}).good
    assert not tally_of("kill-tls", {102: failed(102, error="reset")}).good, "an established connection"
    assert not tally_of("kill-tls", {102: replace(cut, first=1022 * MS)}).good, "its answer had begun"
    assert not tally_of("kill-tls", {150: failed(150, error="reset", nth=0, conn_start=1490 * MS)}).good


def test_a_stall_may_take_until_it_is_noticed() -> None:
    cut = failed(101, error="reset", took=700 * MS)
    assert tally_of("stall-http", {101: cut}).good
    assert not tally_of("stall-http", {101: failed(101, error="reset", took=3 * SECOND)}).good


def test_a_machine_that_stood_still_is_given_time() -> None:
    cut = failed(102, error="reset", took=2 * SECOND)
    noise = Record(NOISE, 0, "", 1200 * MS, 0, 2100 * MS, 0, "none", "", 0, 0, 0)
    records, events = history("kill-http")
    records = [cut if r.request == 102 else r for r in records]
    records = sorted([*records, noise], key=lambda r: r.end)
    tally = check(records, events, {"keep-0": 200})["kill-http"]
    assert tally.good and tally.noise_ms == pytest.approx(900)


def test_an_event_that_never_ends_is_bad() -> None:
    records, events = history("kill-app")
    events[1] = replace(events[1], fields={"not_whole": True})
    assert not check(records, events)["kill-app"].good


def test_slow_recovery_is_counted() -> None:
    records, events = history("kill-app")
    events[1] = replace(events[1], fields={"back_ms": 2500.0})
    assert check(records, events)["kill-app"].slow_back == 1
