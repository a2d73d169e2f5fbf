# SPDX-License-Identifier: Apache-2.0
"""Reads a history and says what was wrong, and whose fault it may be. Pure: no clock, no file, no swarm.

A busy machine can stop everything for a while. The clients note when they themselves did not get to run; whatever has
a time limit is given so much more time.

Each request belongs to the last event that had begun when it was over. What an event may cost is a ``Rule``:

    STRICT       scale, drain, reload; death or stall of the manager, death of the router: nothing at all
    REQUEST      death or stall of an app instance: a request whose answer had begun is cut off; one that may
                 not be repeated gets 502
    HANDSHAKE    death or stall of a tls instance: connections on which nothing was answered yet are cut off at once
    CONNECTION   death or stall of a tcp or http instance: connections that it held are cut off at once
    FREE         a peer's worker: counted, not judged
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from bench.disruption.history import NOISE, Event, Record

MS = 1_000_000
AT_ONCE = 1000 * MS  # a connection whose state died is over so soon after its instance was given up
TAIL = 1000 * MS  # of an event: what happens so soon after its end is looked at for blocked time
CUT = frozenset({"reset", "eof", "tls"})
BACK_LIMIT = 2000  # ms until the capacity is back after the death of an instance


class Rule(Enum):
    STRICT = "strict"
    REQUEST = "request"
    HANDSHAKE = "handshake"
    CONNECTION = "connection"
    FREE = "free"


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("baseline", "scale", "drain", "reload", "kill-manager", "stall-manager", "dead-manager", "kill-router"),
        Rule.STRICT,
    ),
    **dict.fromkeys(("kill-app", "stall-app"), Rule.REQUEST),
    **dict.fromkeys(("kill-tls", "stall-tls"), Rule.HANDSHAKE),
    **{f"{how}-{layer}": Rule.CONNECTION for how in ("kill", "stall") for layer in ("http", "tcp")},
}


@dataclass
class Tally:
    """What one kind of event cost."""

    kind: str
    events: int = 0
    requests: int = 0
    failed: int = 0  # a definite error: 5xx, a cut or refused connection
    excused: int = 0  # of those: allowed by the rule
    lost: int = 0  # neither an answer nor an error
    duplicated: int = 0  # answers that nobody asked for, or two for one request
    foreign: int = 0  # the answer to another request
    corrupt: int = 0  # nobody's answer, or a short one with a clean end
    retried: int = 0  # on an idle connection that was closed under the request; RFC 9112 section 9.3.1
    resets: int = 0  # connections that ended with a reset, also idle ones
    excused_resets: int = 0
    late: int = 0  # right, but more than `late_ms` above the p99 of before
    worst_ms: float = 0.0  # of requests that were answered; downloads apart
    blocked_ms: list[float] = field(default_factory=list)  # for each event: the longest time without any right answer
    back_ms: list[float] = field(default_factory=list)  # for each event: until the system said that it was whole again
    slow_back: int = 0
    noise_ms: float = 0.0  # of all events: time in which the clients did not get to run, mostly in `blocked_ms` too
    moved: int = 0  # known flows that the classifier gave to another instance
    remapped: list[float] = field(default_factory=list)  # for each event: share of new flows with another instance
    not_whole: int = 0  # events after which the system did not become whole at all
    kinds: dict[str, int] = field(default_factory=dict)  # words for failures -> number
    samples: list[str] = field(default_factory=list)

    @property
    def unexcused(self) -> int:
        return self.failed - self.excused + self.lost + self.duplicated + self.foreign + self.corrupt

    @property
    def good(self) -> bool:
        """Whether the rule is kept. Late requests, and resets of idle connections, are shown but not judged."""
        return RULES.get(self.kind, Rule.FREE) is Rule.FREE or not (self.unexcused or self.not_whole)


@dataclass(frozen=True)
class Limits:
    """What to call late, and how soon a dead or stalled instance must have been noticed."""

    late_ms: float = 500.0
    death_seen_ms: float = 250.0
    stall_seen_ms: float = 750.0  # a heartbeat's 500 ms, and the time to tell all


def check(
    records: Iterable[Record],
    events: Sequence[Event],
    started: Mapping[str, int] | None = None,
    limits: Limits = Limits(),
) -> dict[str, Tally]:
    """Judges a history. ``records`` in the order of their ends; ``events`` in the order of their starts, the first
    one of kind
    "baseline": nothing was disturbed then. ``started``: requests that each client began."""
    return _Check(events, limits).run(records, started or {})


class _Check:
    def __init__(self, events: Sequence[Event], limits: Limits) -> None:
        self.events, self.limits = events, limits
        self.starts = [event.start for event in events]
        self.tallies: dict[str, Tally] = {}
        self.blocked = [0.0] * len(events)
        self.usual: dict[str, list[float]] = {}  # of the baseline: durations for each kind of client
        self.p99: dict[str, float] = {}
        self.seen: dict[str, set[int]] = {}
        self.noise = [0] * len(events)  # nanoseconds
        self.last_right = events[0].start
        self.shut: set[int] = set()  # connections whose reset is counted

    def run(self, records: Iterable[Record], started: Mapping[str, int]) -> dict[str, Tally]:
        for event in self.events:
            self._event(event)
        for record in records:
            n = max(bisect.bisect_right(self.starts, record.end) - 1, 0)
            if record.client == NOISE:
                self.noise[n] += record.end - record.start
                self._tally(self.events[n].kind).noise_ms += (record.end - record.start) / MS
            else:
                self._record(record, n)
        self._gap(self.events[-1].end, len(self.events) - 1)
        for n, event in enumerate(self.events):
            self.tallies[event.kind].blocked_ms.append(self.blocked[n])
        for client, number in started.items():
            self._missing(client, number)
        return self.tallies

    def _tally(self, kind: str) -> Tally:
        return self.tallies.setdefault(kind, Tally(kind))

    def _event(self, event: Event) -> None:
        tally = self._tally(event.kind)
        tally.events += 1
        if event.kind == "baseline":
            return
        back = (event.end - event.start) / MS
        tally.back_ms.append(event.fields.get("back_ms", back))
        tally.moved += event.fields.get("moved", 0)
        if "remapped" in event.fields:
            tally.remapped.append(event.fields["remapped"])
        tally.slow_back += event.kind.startswith("kill-") and tally.back_ms[-1] > BACK_LIMIT
        tally.not_whole += bool(event.fields.get("not_whole"))

    def _missing(self, client: str, number: int) -> None:
        missing = number - len(self.seen.get(client, ()))
        if missing > 0:
            tally = self._tally(self.events[-1].kind)
            tally.lost += missing
            _note(tally, "never over", f"{client}: {missing} requests have no end")

    # ---- one request

    def _record(self, r: Record, n: int) -> None:
        event, tally = self.events[n], self._tally(self.events[n].kind)
        tally.requests += r.error != "extra"
        seen = self.seen.setdefault(r.client, set())
        if r.error == "extra" or r.request in seen:
            tally.duplicated += 1
            _note(tally, "answered twice", _words(r, event))
        elif r.ok:
            self._right(r, n, tally)
        else:
            self._wrong(r, n, tally)
        if r.error != "extra":
            seen.add(r.request)
        tally.retried += r.before.startswith("retry-")
        if r.before.endswith("-reset"):
            tally.resets += 1
        if r.error == "reset" and r.conn not in self.shut:
            self.shut.add(r.conn)
            tally.resets += 1

    def _right(self, r: Record, n: int, tally: Tally) -> None:
        took = (r.end - r.start) / MS
        if r.kind == "download":
            took = (r.first - r.start) / MS  # how long the rest takes is the client's own pace
        if self.events[n].kind == "baseline":
            self.usual.setdefault(r.kind, []).append(took)
        elif took > self._p99(r.kind) + self.limits.late_ms:
            tally.late += 1
        tally.worst_ms = max(tally.worst_ms, took)
        if r.kind != "download":
            self._gap(r.end, n)

    def _gap(self, now: int, n: int) -> None:
        """Time without a right answer belongs to the latest event that lies in it."""
        event = self.events[n]
        if self.last_right < event.end + TAIL:
            self.blocked[n] = max(self.blocked[n], (now - max(self.last_right, self.events[0].start)) / MS)
        self.last_right = max(self.last_right, now)

    def _p99(self, kind: str) -> float:
        if kind not in self.p99:
            usual = sorted(self.usual.get(kind, [0.0]))
            self.p99[kind] = usual[min(len(usual) * 99 // 100, len(usual) - 1)]
        return self.p99[kind]

    def _wrong(self, r: Record, n: int, tally: Tally) -> None:
        event = self.events[n]
        if r.body == "foreign":
            tally.foreign += 1
            _note(tally, "foreign answer", _words(r, event))
        elif r.error == "timeout":
            tally.lost += 1
            _note(tally, f"{r.kind}: no answer", _words(r, event))
        elif not r.error and r.status == 200:
            tally.corrupt += 1
            _note(tally, f"{r.kind}: {r.body} body", _words(r, event))
        else:
            tally.failed += 1
            excused = self._excused(r, event, self.noise[n])
            tally.excused += excused
            name = (
                str(r.status)
                if r.status >= 300
                else ("cut off by " if r.first else "") + (r.error or f"status {r.status}")
            )
            _note(tally, f"{r.kind}: {name}{' (allowed)' if excused else ''}", "" if excused else _words(r, event))

    def _excused(self, r: Record, event: Event, noise: int) -> bool:
        rule = RULES.get(event.kind, Rule.FREE)
        stall = event.kind.startswith("stall-")
        seen = event.start + int((self.limits.stall_seen_ms if stall else self.limits.death_seen_ms) * MS) + noise
        if rule in (Rule.STRICT, Rule.FREE) or r.end > seen + AT_ONCE:
            return False
        if rule is Rule.REQUEST:
            cut = r.first > 0 and r.error in CUT
            return r.start <= seen and (cut or (r.status == 502 and not r.idempotent))
        begun = rule is Rule.CONNECTION or (r.nth == 0 and not r.first)
        return begun and r.conn_start <= seen and r.error in CUT


def _note(tally: Tally, name: str, sample: str) -> None:
    tally.kinds[name] = tally.kinds.get(name, 0) + 1
    if sample and len(tally.samples) < 20:
        tally.samples.append(sample)


def _words(r: Record, event: Event) -> str:
    """A failure for people, with its times relative to the event."""

    def at(t: int) -> str:
        return f"{(t - event.start) / MS:+.0f}" if t else "never"

    return (
        f"{event.what or event.kind}: {r.client} request {r.request} {r.method}: status {r.status}, body {r.body}, "
        f"{r.error or 'no error'}{f' ({r.before})' if r.before else ''}; "
        f"connection {r.conn} begun {at(r.conn_start)}, its request {r.nth}; "
        f"sent {at(r.start)}, head {at(r.first)}, over {at(r.end)} ms after the event"
    )
