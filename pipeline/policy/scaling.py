# SPDX-License-Identifier: Apache-2.0
"""How many instances a layer should have, from its measured load. Pure: the clock is a parameter.

A layer's load is the mean, over its instances, of the share of time in which their loops were busy. The
wanted number is the one that brings it to ``target_load``. Two things keep it from swinging: a band around
the target in which nothing happens, and a time after each change in which nothing happens either.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from pipeline.policy.model import Layer

WINDOW = 10.0     # seconds of samples that count
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


def decide(layer: Layer, samples: Sequence[Sample], now: float, last: float | None) -> Decision:
    """What ``layer.instances`` should become. ``last`` is when it last changed (None: never); times in
    seconds.
    """
    have = layer.instances
    if not layer.autoscale:
        return Decision(have, "autoscale is off")
    load = mean_load(samples, now)
    if load is None:
        return Decision(have, "no load measured")
    if abs(load - layer.target_load) <= layer.target_load * BAND:
        return Decision(have, f"load {load:.0%} is near the target of {layer.target_load:.0%}")
    want = min(max(ceil(have * load / layer.target_load - 1e-9), layer.min), layer.max)
    if want == have:
        return Decision(have, f"load {load:.0%}, and {have} is the best of {layer.min} to {layer.max}")
    if last is not None and now - last < layer.cooldown:
        return Decision(
            have, f"load {load:.0%} asks for {want}, but the last change was {now - last:.0f} s ago")
    return Decision(want, f"load {load:.0%}, target {layer.target_load:.0%}: from {have} to {want}")
