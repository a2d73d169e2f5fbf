# SPDX-License-Identifier: Apache-2.0
"""The edge: entries, payload, waking, chains. Two processes on cores 0 and 1, one region in hugepages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bench import testpmd
from bench.harness import Bench, Group, Pair, PeerMissing, pairs
from bench.native import built, hugepages_reserved, measure

_TIME = 0.3
"""Seconds of one measurement."""
_SMALL, _BIG = 1500, 16384
_FRAME = 1500
"""testpmd moves the same bytes as frames of this length."""


def _peer_program(name: str) -> Callable[..., float] | None:
    try:
        program = built(name)
    except PeerMissing:
        return None
    return lambda *args: measure(program, *args)


@contextmanager
def _opened() -> Iterator[Sequence[Bench]]:
    program = built("bench-edge")
    rte = _peer_program("bench-rte-ring")

    def ours(verb: str, *args: object) -> Callable[[], float]:
        return lambda: measure(program, verb, _TIME, *args)

    with hugepages_reserved(64):
        yield (
            Bench("edge.ring", "entries/s", pairs(ours("ring"), rte and (lambda: rte(_TIME))),
                  "DPDK rte_ring SP/SC, 32-byte elements" if rte else "DPDK missing", nb=21, target=1.0),
            # how often the round trip may cost what a line costs is the target: 1/4
            Bench("edge.rtt", "ns", pairs(ours("rtt"), ours("line")), "one cache line, core to core",
                  more_is_better=False, nb=9, target=0.25),
            # what of it the layout costs by itself: a line that only goes one way, each way
            Bench("edge.rtt.layout", "ns", pairs(ours("rtt"), ours("layout")), "one bare line and a fence each way",
                  more_is_better=False, nb=9),
            Bench("edge.wakeup", "ns", pairs(ours("wakeup"), ours("eventfd")), "bare eventfd",
                  more_is_better=False, nb=15, target=1 / 1.3),
            Bench("edge.chain", "ns of CPU per hop of 8", _chain(ours), "per hop of 4",
                  more_is_better=False, nb=7, target=1 / 1.1),
        )


def _chain(ours: Callable[..., Callable[[], float]]) -> Callable[[], Iterator[Pair]]:
    """Two cores cannot run nine instances at once, so what counts is the CPU time that all of them spend on an
    entry of 64 bytes, which each copies from edge to edge. Flat: a hop of a long chain costs what one of a
    shorter chain does."""
    four, eight = ours("chain", 4), ours("chain", 8)
    return pairs(lambda: eight() / 8, lambda: four() / 4)


@contextmanager
def _hops_opened() -> Iterator[Sequence[Bench]]:
    program = built("bench-edge")

    def ours(verb: str, length: int, scale: float = 1) -> Callable[[], float]:
        return lambda: measure(program, verb, _TIME, length) * scale

    with hugepages_reserved(64):
        frames, frames64 = testpmd.peer(_FRAME), testpmd.peer(64)
        bytes_of = (lambda: frames() * _FRAME) if frames else None
        name = "testpmd virtio_user to vhost" if frames else "dpdk-testpmd missing"
        as_frames = f"{name}, as frames of {_FRAME} B" if frames else name
        yield (
            Bench("edge.hop.64", "entries/s", pairs(ours("hop", 64), frames64), name, nb=3),
            Bench("edge.hop.1500", "entries/s", pairs(ours("hop", _SMALL), frames), name, nb=3, target=3),
            Bench("edge.hop.16k", "bytes/s", pairs(ours("hop", _BIG, _BIG), bytes_of), as_frames, nb=3, target=20),
            Bench("edge.whole.1500", "bytes/s", pairs(ours("whole", _SMALL, _SMALL), bytes_of), name, nb=3,
                  target=1.3),
            Bench("edge.whole.16k", "bytes/s", pairs(ours("whole", _BIG, _BIG), bytes_of), as_frames, nb=3,
                  target=1.3),
            Bench("edge.copy.1500", "bytes/s", pairs(ours("whole", _SMALL, _SMALL), ours("copy", _SMALL)),
                  "the same blocks without an edge", nb=5),
            Bench("edge.copy.16k", "bytes/s", pairs(ours("whole", _BIG, _BIG), ours("copy", _BIG)),
                  "the same blocks without an edge", nb=5),
        )


@contextmanager
def _route_opened() -> Iterator[Sequence[Bench]]:
    program = built("bench-edge")

    def ours(receivers: int) -> Callable[[], float]:
        return lambda: measure(program, "select", 0.05, receivers)

    with hugepages_reserved(192):
        yield [Bench(f"route.select{suffix}", "ns", pairs(ours(receivers), ours(2)), "2 receivers",
                     more_is_better=False) for receivers, suffix in ((64, ""), (8, ".8"))]


GROUPS = (
    Group(("edge.ring", "edge.rtt", "edge.wakeup", "edge.chain"), _opened),
    Group(("edge.hop", "edge.whole", "edge.copy"), _hops_opened),
    Group(("route.select",), _route_opened),
)
