# SPDX-License-Identifier: Apache-2.0
"""Who is silent, and how soon a layer whose instances keep dying gets another. Pure: the clock is a parameter, in
seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf

from pipeline.policy.model import LayerId

SILENCE = 0.45       # an instance publishes ten times a second; after this it is taken for dead
STARVED = 3.0        # the same for one that could run if there were a CPU for it: late is not dead
OWN_PAUSE = 0.3      # a longer pause between two looks is the looker's own,
BLINK = 0.04         # and counts as so much: who is always late finds the silent too, only later
SHORT_LIFE = 3.0     # an instance that dies younger than this is a sign of a crash loop
FIRST_DELAY = 0.2
LONGEST_DELAY = 30.0


@dataclass
class Heartbeats:
    """Finds instances that went silent, and does not blame them for a machine that stood still as a whole: time counts
    as far as the looker has been there.
    """

    look_in: float = SILENCE     # seconds from the last look until somebody who says nothing more would be silent
    _last_look: float = -inf
    _watched: float = 0.0
    _heard: dict[int, tuple[float, float]] = field(default_factory=dict)     # vm_id -> last heartbeat, _watched then

    def silent(self, beats: Iterable[tuple[int, float]], now: float,
               runnable: Callable[[int], bool] = lambda _vm_id: False) -> set[int]:
        """``beats``: (vm_id, time of the last heartbeat). Who of them gave none for too long. ``runnable`` is asked
        of those who are late: one that waits for a CPU is given more time.
        """
        gap = now - self._last_look
        watched = gap if gap <= OWN_PAUSE else BLINK
        self._watched += watched
        self._last_look = now
        former, self._heard = self._heard, {}
        for vm_id, beat in beats:
            known = former.get(vm_id)
            new = (beat, self._watched - min(now - beat, watched))
            self._heard[vm_id] = known if known and known[0] == beat else new
        ages = {vm_id: self._watched - heard for vm_id, (_, heard) in self._heard.items()}
        self.look_in = min((SILENCE - age for age in ages.values() if age < SILENCE), default=SILENCE)
        late = {vm_id: age for vm_id, age in ages.items() if age > SILENCE}
        return {vm_id for vm_id, age in late.items() if age > STARVED or not runnable(vm_id)}


@dataclass
class CrashLoops:
    """Delays the replacement of instances that die young: doubled each time, forgotten when one lives that was started
    after the first of these deaths.
    """

    _short_lives: dict[LayerId, int] = field(default_factory=dict)
    _began: dict[LayerId, float] = field(default_factory=dict)     # when the first of them died
    _not_before: dict[LayerId, float] = field(default_factory=dict)

    def died(self, layer: LayerId, age: float, now: float) -> float:
        """Notes a death. Returns how long the next start of this layer has to wait."""
        count = self._short_lives.get(layer, 0) + 1 if age < SHORT_LIFE else 0
        self._short_lives[layer] = count
        if count == 1:
            self._began[layer] = now
        # the first early death may be bad luck
        delay = min(FIRST_DELAY * 2.0 ** (count - 2), LONGEST_DELAY) if count > 1 else 0.0
        self._not_before[layer] = now + delay
        return delay

    def lives(self, layer: LayerId, age: float, now: float) -> None:
        """Notes that an instance of this layer lives, and how long it has done so."""
        if age >= SHORT_LIFE and now - age > self._began.get(layer, inf):
            self._short_lives[layer] = 0
            del self._began[layer]

    def held(self, now: float) -> frozenset[LayerId]:
        """Layers that get no new instance yet."""
        return frozenset(layer for layer, time in self._not_before.items() if now < time)
