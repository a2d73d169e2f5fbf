# SPDX-License-Identifier: Apache-2.0
"""Keeps the manager running: starts it when asked, and again if it dies unexpectedly.

::

    state      next       when
    idle       running    start
    running    waiting    it died: by a signal, or with an exit status other than 0
    waiting    running    the back-off is over
    running    ended      it exited with 0, or after stop: it meant to
    running    failed     it died too often too quickly and never lived longer
    any        running    start again (refused while running or waiting)
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

BACKOFF_FIRST = 0.1     # seconds before the first restart; doubled each time
BACKOFF_MAX = 5.0
QUICK = 2.0             # a life shorter than this, in seconds, is a quick death: it could not even start
QUICK_MAX = 5           # quick deaths in a row after which nobody tries again, unless it has lived before


class Supervisor:
    """One supervised process. Driven from outside: ``exited`` when a child was reaped, ``tick`` when
    ``deadline`` has come."""

    def __init__(self, log: Callable[..., None]) -> None:
        self._log = log
        self._argv: list[str] = []
        self._log_path = Path(os.devnull)
        self._started = 0.0
        self._stopping = False
        self.state = "idle"
        self.pid = 0
        self.starts = 0
        self.quick_deaths = 0
        self.proved = False                       # it has lived long enough to be worth trying for ever
        self.status: int | None = None            # last exit status; negative: the signal
        self.deadline: float | None = None        # CLOCK_MONOTONIC seconds of the next start

    def start(self, argv: Sequence[str], log_path: Path) -> None:
        """Starts it for the first time. Its output is appended to log_path. Raises ValueError, OSError."""
        if self.state in ("running", "waiting"):
            raise ValueError(f"the manager is {self.state} already (process {self.pid})")
        self._argv, self._log_path = list(argv), log_path
        self.quick_deaths, self._stopping = 0, False
        self._spawn()

    def stop(self) -> None:
        """Asks it to end (SIGTERM) and will not start it again."""
        self._stopping = True
        if self.state == "running":
            os.kill(self.pid, signal.SIGTERM)     # our child, not reaped yet: the pid can not be another's
        elif self.state == "waiting":
            self.state, self.deadline = "ended", None

    def exited(self, pid: int, status: int) -> bool:
        """Hears of a reaped child; true if it was this one."""
        if self.state != "running" or pid != self.pid:
            return False
        now = time.monotonic()
        self.pid, self.status = 0, status
        self.proved |= now - self._started >= QUICK
        self.quick_deaths = self.quick_deaths + 1 if now - self._started < QUICK else 1
        if status == 0 or self._stopping:
            self.state = "ended"
        elif self.quick_deaths >= QUICK_MAX and not self.proved:
            self.state = "failed"
        else:
            self._wait(now)
        lived = round(now - self._started, 3)
        self._log("manager.exited", pid=pid, status=status, lived=lived, then=self.state)
        return True

    def tick(self) -> None:
        """Starts it again if the time has come."""
        if self.deadline is None or time.monotonic() < self.deadline:
            return
        self.deadline = None
        try:
            self._spawn()
        except OSError as error:
            self.quick_deaths += 1
            self._log("manager.no_start", error=str(error))
            if self.quick_deaths >= QUICK_MAX:
                self.state = "failed"
            else:
                self._wait(time.monotonic())

    def _wait(self, now: float) -> None:
        self.state = "waiting"
        self.deadline = now + min(BACKOFF_FIRST * 2 ** min(self.quick_deaths - 1, 10), BACKOFF_MAX)

    def _spawn(self) -> None:
        output = (os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.pid = os.posix_spawn(
            self._argv[0], self._argv, os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                          (os.POSIX_SPAWN_OPEN, 1, str(self._log_path), *output),
                          (os.POSIX_SPAWN_DUP2, 1, 2)],
            setsid=True, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ], setsigmask=[])
        self._started = time.monotonic()
        self.state, self.starts = "running", self.starts + 1
        self._log("manager.started", pid=self.pid, starts=self.starts)
