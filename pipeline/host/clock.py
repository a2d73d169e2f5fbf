# SPDX-License-Identifier: Apache-2.0
"""The clocks of instances: that of this machine, or a guest's."""

from __future__ import annotations

CLOCK_WINDOW_NS = 10_000_000_000


class Clock:
    """An instance's clock, as its control region shows it: that of this machine."""

    behind = 0         # nanoseconds by which it is behind this machine's CLOCK_MONOTONIC

    def heard(self, beat_ns: int, now_ns: int) -> int:
        """A heartbeat is read, perhaps once more: its time by the clock of this machine."""
        return beat_ns


class GuestClock(Clock):
    """Began when the guest booted, and need not run as fast as ours. So a heartbeat's time is when it was first seen.
    For traces the distance of the clocks is the smallest lag seen lately: it holds the least delay.
    """

    def __init__(self) -> None:
        self._beat, self._seen = 0, 0
        self._lags = (0, 0)               # smallest of this window, and of the one before
        self._window_ends = 0

    def heard(self, beat_ns: int, now_ns: int) -> int:
        if beat_ns and beat_ns != self._beat:
            self._beat, self._seen = beat_ns, now_ns
            self._learn(now_ns - beat_ns, now_ns)
        return self._seen

    def _learn(self, lag: int, now_ns: int) -> None:
        if now_ns >= self._window_ends:
            self._lags = (lag, self._lags[0] if self._window_ends else lag)
            self._window_ends = now_ns + CLOCK_WINDOW_NS
        self._lags = (min(lag, self._lags[0]), self._lags[1])
        self.behind = min(self._lags)
