# SPDX-License-Identifier: Apache-2.0
"""What is written down while things are disturbed: one line for each request, one for each event. Times:
CLOCK_MONOTONIC, nanoseconds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import IO, Any

IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"})  # RFC 9110 section 9.2.2
NOISE = (
    "noise"  # a client of this name made no request: its time is one in which the clients themselves did not get to run
)


@dataclass(frozen=True, slots=True)
class Record:
    """One request, written when it is over.

    A client numbers its requests 0, 1, 2 ...: a number that is missing is a lost request.
    """

    client: str  # "keep-3": kind of client and its number
    request: int
    method: str
    start: int  # just before the first try's connection was made, or its first byte was sent
    first: int  # the answer's head was complete; 0: it never was
    end: int
    status: int  # 0: no answer
    body: str  # ok, short, corrupt (nobody's), foreign (that of another request), none (not looked at)
    error: str  # "", reset, eof, refused, unreachable, timeout, tls, framing, extra (bytes that nobody asked for)
    conn: int  # connection of the last try
    conn_start: int  # when that connection was begun
    nth: int  # requests that this connection had served before
    before: str = ""  # how the former connection ended unasked: idle-eof, idle-reset, retry-eof, retry-reset

    @property
    def kind(self) -> str:
        return self.client.partition("-")[0]

    @property
    def ok(self) -> bool:
        return self.status == 200 and self.body == "ok" and not self.error

    @property
    def idempotent(self) -> bool:
        return self.method in IDEMPOTENT


@dataclass(frozen=True)
class Event:
    """One disturbance. ``end``: the system said that it is whole again. ``fields``: numbers and words about it."""

    kind: str
    start: int
    end: int
    what: str = ""
    fields: dict[str, Any] = field(default_factory=dict)


def record_line(record: Record) -> str:
    return json.dumps(astuple(record), separators=(",", ":")) + "\n"


def records_read(path: Path) -> Iterator[Record]:
    """In the order of their ends. A last line that was cut off is left out: its request then counts as lost."""
    with path.open() as lines:
        for line in lines:
            if line.endswith("\n"):
                yield Record(*json.loads(line))


def events_write(file: IO[str], events: Iterable[Event]) -> None:
    for event in events:
        file.write(json.dumps(asdict(event)) + "\n")
