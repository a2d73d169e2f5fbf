# SPDX-License-Identifier: Apache-2.0
"""How many instances a layer should have, from its measured load. Pure: the clock is a parameter.

A layer's load is the mean, over its instances, of the share of time in which their loops were busy. The
wanted number is the one that brings it to ``target_load``. Three things keep it from swinging: a band around
the target in which nothing happens, a time after each change in which nothing happens either, and a longer one in
which what was wanted then is not given up: a load that comes and goes keeps what its peaks need.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil

from pipeline.policy.model import Layer, LayerId, Swarm, VmState

WINDOW = 10.0     # seconds of samples that count
CALM = 2.0        # cooldowns for which a peak is remembered
BAND = 0.15       # dead band on either side of the target, as a share of the target


@dataclass(frozen=True)
class Sample:
    """One measurement of an active instance: at that time its loop had been busy for this share (0 to 1) of a
    period.
    """

    at: float      # seconds
    vm_id: int
    load: int      # 0 ... 1000, as in VMStatus


@dataclass(frozen=True)
class Decision:
    """The number of instances to aim at, and why, for the log. ``target`` equals ``layer.instances`` for no
    change.
    """

    target: int
    reason: str
    want: int = 0    # what the load now asks for by itself; 0: not known


def mean_load(samples: Sequence[Sample], now: float) -> float | None:
    """Mean over the instances of each one's mean over the window, so that a chatty instance counts no more
    than another.

    None if nothing was measured in the window: no news is no reason to change anything.
    """
    loads: defaultdict[int, list[float]] = defaultdict(list)
    for sample in samples:
        if now - WINDOW <= sample.at <= now:
            loads[sample.vm_id].append(min(max(sample.load, 0), 1000) / 1000)
    if not loads:
        return None
    return sum(sum(values) / len(values) for values in loads.values()) / len(loads)


@dataclass
class Peaks:
    """The most that was wanted of late."""

    _wants: deque[tuple[float, int]] = field(default_factory=deque)

    def note(self, want: int, now: float) -> None:
        self._wants.append((now, want))

    def highest(self, layer: Layer, now: float) -> int:
        while self._wants and self._wants[0][0] < now - CALM * layer.cooldown:
            self._wants.popleft()
        return max((want for _, want in self._wants), default=0)


def decide(layer: Layer, samples: Sequence[Sample], now: float, last: float | None, peak: int = 0) -> Decision:
    """What ``layer.instances`` should become. ``last`` is when it last changed (None: never), ``peak`` the most that
    was wanted in the CALM time before; times in seconds.
    """
    have = layer.instances
    if not layer.autoscale:
        return Decision(have, "autoscale is off")
    load = mean_load(samples, now)
    if load is None:
        return Decision(have, "no load measured")
    want = min(max(ceil(have * load / layer.target_load - 1e-9), layer.min), layer.max)
    if abs(load - layer.target_load) <= layer.target_load * BAND:
        return Decision(have, f"load {load:.0%} is near the target of {layer.target_load:.0%}", have)
    if want == have:
        return Decision(have, f"load {load:.0%}, and {have} is the best of {layer.min} to {layer.max}", want)
    if want < have <= peak:
        return Decision(have, f"load {load:.0%} asks for {want}, but {peak} were needed a short while ago", want)
    if last is not None and now - last < layer.cooldown:
        return Decision(
            have, f"load {load:.0%} asks for {want}, but the last change was {now - last:.0f} s ago", want)
    target = max(want, min(peak, have))
    return Decision(target, f"load {load:.0%}, target {layer.target_load:.0%}: from {have} to {target}", want)


@dataclass
class Autoscaler:
    """Samples, peaks and changes of a swarm's layers. ``scaled`` counts the decisions by layer and direction."""

    scaled: Counter[tuple[LayerId, str]] = field(default_factory=Counter)
    _samples: deque[Sample] = field(default_factory=deque)
    _changed_at: dict[LayerId, float] = field(default_factory=dict)
    _peaks: dict[LayerId, Peaks] = field(default_factory=dict)

    def decide(self, layers: Iterable[Layer], swarm: Swarm, now: float) -> Iterator[tuple[Layer, Decision]]:
        """Measures the layers that ask for it; gives those that are to change, and counts these as changed."""
        while self._samples and self._samples[0].at < now - WINDOW:
            self._samples.popleft()
        for layer in layers:
            if not layer.autoscale:
                continue
            pool = swarm.pool(layer.id, VmState.ACTIVE)
            self._samples.extend(Sample(now, i.vm_id, i.status.load) for i in pool if i.status)
            mine = [s for s in self._samples if any(s.vm_id == i.vm_id for i in pool)]
            peaks = self._peaks.setdefault(layer.id, Peaks())
            decision = decide(layer, mine, now, self._changed_at.get(layer.id), peaks.highest(layer, now))
            peaks.note(decision.want, now)
            if decision.target != layer.instances:
                self._changed_at[layer.id] = now
                self.scaled[layer.id, "up" if decision.target > layer.instances else "down"] += 1
                yield layer, decision
