# SPDX-License-Identifier: Apache-2.0
"""The router's vhost-user back-end against DPDK's, with the same guests: one that sends, and two that send each other
what they get."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench import testpmd
from bench.harness import Bench, Group, PeerMissing, pairs
from bench.native import built, first

_KINDS = {"": testpmd.SPLIT, ".packed": testpmd.PACKED}
_TARGETS = {"vhost.hop.64": 1.0, "vhost.g2g.1500": 1.5}


def _ours(program: Path, sockets: list[str]) -> list[str]:
    mode = "pass" if len(sockets) > 1 else "take"
    return ["taskset", "-c", "1", *first([str(program), mode, *(f"{path},poll" for path in sockets)])]


@contextmanager
def _opened() -> Iterator[Sequence[Bench]]:
    if not shutil.which("dpdk-testpmd"):
        raise PeerMissing("dpdk-testpmd, whose drivers are the guests, is not installed")
    back_end = partial(_ours, built("bench-vhost"))
    yield [_bench(f"{name}.{frame_len}{suffix}", partial(how, frame_len, kind), back_end)
           for name, how, lengths in (("vhost.hop", testpmd.hop, (64, 1500)), ("vhost.g2g", testpmd.circle, (1500,)))
           for frame_len in lengths for suffix, kind in _KINDS.items()]


def _bench(ident: str, how: Callable[..., float], back_end: testpmd.BackEnd) -> Bench:
    return Bench(ident, "frames/s", pairs(partial(how, back_end), how), "testpmd net_vhost", nb=3,
                 target=_TARGETS.get(ident.removesuffix(".packed")))


GROUPS = (Group(("vhost.hop", "vhost.g2g"), _opened),)
