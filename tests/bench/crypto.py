# SPDX-License-Identifier: Apache-2.0
"""Sealing of TLS records: what an instance would choose here, beside OpenSSL by EVP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Bench, Group, pairs
from bench.native import built, measure

_SIZES = {"256": 256, "1400": 1400, "16k": 16384}


@contextmanager
def _opened() -> Iterator[Sequence[Bench]]:
    program = built("bench-crypto")
    yield [Bench(f"crypto.seal.{name}", "GB/s", pairs(_run(program, "multi", size), _run(program, "openssl", size)),
                 "OpenSSL, AES-256-GCM", nb=5) for name, size in _SIZES.items()]


def _run(program: Path, engine: str, size: int) -> Callable[[], float]:
    return lambda: measure(program, engine, size)


GROUPS = (Group(("crypto.seal",), _opened),)
