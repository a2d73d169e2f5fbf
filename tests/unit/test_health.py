# SPDX-License-Identifier: Apache-2.0
"""Silent instances and crash loops."""

import pytest

from pipeline.policy.health import FIRST_DELAY, LONGEST_DELAY, SHORT_LIFE, SILENCE, STARVED, CrashLoops, Heartbeats
from pipeline.policy.model import LayerId


def looks(until: float, beats: dict[int, float]) -> set[int]:
    """What a manager that looks five times a second finds at the end."""
    heart, now, found = Heartbeats(), 100.0, set[int]()
    while now <= until:
        found = heart.silent(beats.items(), now)
        now += 0.2
    return found


def test_silence_is_found_in_time() -> None:
    assert looks(101.05, {1: 101.0, 2: 100.4}) == {2}
    assert looks(101.05, {1: 101.0, 2: 101.05 - SILENCE + 0.05}) == set()


@pytest.mark.parametrize("last_beat", [100.0 + n * 0.013 for n in range(16)])
def test_a_look_comes_when_somebody_becomes_silent(last_beat: float) -> None:
    """However the looks lie: five each second, and the one that ``look_in`` asks for."""
    heart, now, looks = Heartbeats(), 99.0, 0
    while not heart.silent([(1, min(now, last_beat)), (2, now)], now):
        now += min(0.2, heart.look_in)
        looks += 1
    assert 0 < now - last_beat - SILENCE < 0.002
    assert looks < 20, "and no others"


def test_nobody_is_blamed_for_a_pause_of_the_manager_itself() -> None:
    heart = Heartbeats()
    for step in range(10):
        assert heart.silent([(1, 100.0 + step * 0.2)], 100.0 + step * 0.2) == set()
    assert heart.silent([(1, 101.8)], 110.0) == set()           # both stood still for 8 s
    assert heart.silent([(1, 101.8)], 110.2) == set()
    assert heart.silent([(1, 101.8)], 110.4) == set()
    assert heart.silent([(1, 101.8)], 110.6) == {1}             # the manager lives again, the instance does not


def test_a_manager_that_is_always_late_finds_the_silent_too() -> None:
    heart = Heartbeats()
    for step in range(20):
        now = 100.0 + step * 0.5
        found = heart.silent([(1, 100.0), (2, now - 0.1)], now)
        assert found == ({1} if step >= 12 else set()), step


def test_who_waits_for_a_cpu_is_late_and_not_dead() -> None:
    heart = Heartbeats()
    for step in range(30):
        now = 100.0 + step * 0.2
        found = heart.silent([(1, 100.0), (2, 100.0)], now, lambda vm_id: vm_id == 1)
        assert found == ({1, 2} if now - 100.0 > STARVED else {2} if now >= 100.0 + SILENCE else set()), now


def test_the_first_early_death_is_replaced_at_once_and_a_loop_ever_later() -> None:
    loops, now = CrashLoops(), 0.0
    delays = [loops.died(LayerId.APP, 0.1, now) for _ in range(12)]
    assert delays[:3] == [0.0, FIRST_DELAY, FIRST_DELAY * 2]
    assert delays[-1] == LONGEST_DELAY
    assert loops.held(now + LONGEST_DELAY - 1) == {LayerId.APP}
    assert loops.held(now + LONGEST_DELAY + 1) == frozenset()


def test_a_long_life_forgives() -> None:
    loops = CrashLoops()
    for _ in range(5):
        loops.died(LayerId.APP, 0.1, 0.0)
    assert loops.died(LayerId.APP, SHORT_LIFE + 1, 100.0) == 0.0
    assert loops.held(100.0) == frozenset()


def test_so_does_one_that_lives_on() -> None:
    loops = CrashLoops()
    delays = []
    for now in range(3):
        delays.append(loops.died(LayerId.APP, 0.1, float(now)))
        loops.lives(LayerId.APP, 0.9, now + 0.95)   # young
        loops.lives(LayerId.APP, 99.0, now + 1.0)   # of a time when all was well
        loops.lives(LayerId.HTTP, 99.0, now + 1.0)   # another layer
    assert delays == [0.0, FIRST_DELAY, FIRST_DELAY * 2]
    loops.lives(LayerId.APP, SHORT_LIFE, 10.0)
    assert loops.died(LayerId.APP, 0.1, 11.0) == 0.0
    assert loops.died(LayerId.APP, 0.1, 12.0) == FIRST_DELAY
