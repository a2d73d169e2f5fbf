# SPDX-License-Identifier: Apache-2.0
"""What happened, and why: for people, the log and `swarmline events`."""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import structlog

EVENTS_KEPT = 1000

log = structlog.get_logger()


@dataclass(frozen=True)
class Event:
    number: int
    time: float            # seconds since the epoch
    kind: str
    text: str
    fields: dict[str, Any] = field(default_factory=dict)


class Events:
    """The latest of one manager's life. ``counts``: how many of each kind there ever were."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._kept: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._numbers = itertools.count(1)

    def note(self, kind: str, text: str, **fields: Any) -> None:
        """Logs an event and keeps it."""
        self.counts[kind] += 1
        self._kept.append(Event(next(self._numbers), time.time(), kind, text, fields))
        log.info(text, kind=kind, **fields)

    def since(self, number: int) -> list[Event]:
        """Those after the one with this number, oldest first."""
        return [event for event in self._kept if event.number > number]
