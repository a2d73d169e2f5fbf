# SPDX-License-Identifier: Apache-2.0
"""How many instances a layer should have."""

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.policy.model import Layer, LayerId
from pipeline.policy.scaling import BAND, CALM, WINDOW, Peaks, Sample, decide

POOL = Layer(LayerId.TLS, instances=4, min=2, max=8, autoscale=True, target_load=0.5, cooldown=30)


def samples(*loads: int, at: float = 100.0) -> list[Sample]:
    return [Sample(at, vm_id, load) for vm_id, load in enumerate(loads, 1)]


@pytest.mark.parametrize(
    ("loads", "target"),
    [
        ((500,) * 4, 4),  # on target
        ((500 + int(500 * BAND),) * 4, 4),
        ((800,) * 4, 7),  # 4 * 0.8 / 0.5 = 6.4
        ((1000,) * 4, 8),
        ((9000,) * 4, 8),  # a lie counts as all
        ((300,) * 4, 3),
        ((0,) * 4, 2),  # min
        ((1000, 1000, 0, 0), 4),  # mean
    ],
)
def test_scaling_aims_at_the_target(loads: tuple[int, ...], target: int) -> None:
    assert decide(POOL, samples(*loads), 100.0, None).target == target


def test_scaling_waits() -> None:
    assert decide(POOL, samples(1000), 100.0, 71.0).target == 4
    assert decide(POOL, samples(1000), 100.0, 70.0).target == 8


def test_scaling_needs_fresh_samples() -> None:
    assert decide(POOL, samples(1000, at=99.0 - WINDOW), 100.0, None).target == 4
    assert decide(POOL, samples(1000, at=101.0), 100.0, None).target == 4
    assert decide(POOL, [], 100.0, None).target == 4


def test_scaling_counts_each_instance_once() -> None:
    chatty = [Sample(95.0 + n / 100, 1, 1000) for n in range(300)]
    assert decide(POOL, [*chatty, Sample(99.0, 2, 0)], 100.0, None).target == 4


def test_scaling_can_be_off() -> None:
    assert decide(Layer(LayerId.TLS), samples(1000), 100.0, None).target == 2


def test_scaling_settles() -> None:
    """With a constant amount of work it comes to rest after one change, from wherever it starts."""
    for start in range(2, 9):
        work = 1900  # of instances that give 1000 each
        layer = Layer(LayerId.TLS, instances=start, min=2, max=8, autoscale=True, target_load=0.5)
        first = decide(layer, samples(*[work // start] * start), 100.0, None).target
        layer = Layer(LayerId.TLS, instances=first, min=2, max=8, autoscale=True, target_load=0.5)
        assert decide(layer, samples(*[work // first] * first), 200.0, 100.0).target == first


# ---- over a long time


def changes(work: Callable[[float], float], seconds: int) -> list[tuple[float, int]]:
    """(time, number of instances) of each change, when so much work, in instances, is there at each second."""
    layer, seen, last, peaks, found = POOL, deque[Sample](), None, Peaks(), []
    for now in map(float, range(seconds)):
        load = min(1000, int(1000 * work(now) / layer.instances))
        seen.extend(Sample(now, vm_id, load) for vm_id in range(1, layer.instances + 1))
        while seen[0].at < now - WINDOW:
            seen.popleft()
        mine = [sample for sample in seen if sample.vm_id <= layer.instances]
        decision = decide(layer, mine, now, last, peaks.highest(layer, now))
        peaks.note(decision.want, now)
        if decision.target != layer.instances:
            layer, last = replace(layer, instances=decision.target), now
            found.append((now, decision.target))
    return found


@pytest.mark.parametrize("period", [3, 10, 20, 31, 45])
def test_saw_tooth_does_not_flap(period: int) -> None:
    """The load climbs and falls for ever: the layer grows to what the peaks need, and stays."""
    found = changes(lambda now: 0.5 + 2.5 * (now % period) / period, 1000)
    assert all(at < 3 * CALM * POOL.cooldown for at, _ in found), found
    assert len(found) <= 3, found


def test_a_load_that_is_over_leaves_the_least() -> None:
    found = changes(lambda now: 3.5 if now < 200 else 0.0, 400)
    at, left = found[-1]
    assert left == POOL.min
    assert 200 + POOL.cooldown < at <= 200 + (CALM + 1) * POOL.cooldown + WINDOW
