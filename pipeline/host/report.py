# SPDX-License-Identifier: Apache-2.0
"""What an instance says of itself, as it lies in its control region. Nothing of it is believed: numbers are clamped,
text is decoded with replacement.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pipeline._native import ffi, lib
from pipeline.policy.model import Crypto, LayerId, VmState, VMStatus


def _names(enum: str, prefix: str) -> Mapping[int, str]:
    """Number -> name in lower case, without the prefix and without the limit at the end of the enum."""
    return MappingProxyType({number: name.removeprefix(prefix).lower()
                             for number, name in ffi.typeof(f"enum {enum}").elements.items()
                             if name != f"{prefix}MAX"})


COUNTERS = _names("sl_counter", "SL_CNT_")
TRACE_POINTS = _names("sl_trace_point", "SL_TRACE_")
CRYPTO_KINDS = _names("sl_crypto_kind", "SL_CRYPTO_")
SHUT_OUT_TOLD = 100      # peers


@dataclass(frozen=True)
class ShutOut:
    """A peer that broke the contract of an edge, and how (a counter's name). ``count``: so many were shut out."""

    vm_id: int
    why: str
    count: int


@dataclass(frozen=True)
class Report:
    """All that the instance says about itself: VMStatus and what stands beside it. Hearsay."""

    status: VMStatus
    cmd_seen: int = 0
    assignment_seen: int = 0
    routes_seen: tuple[int, ...] = ()
    error: int = 0                                  # errno of what ended it
    busy_ns: int = 0
    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)
    latency: tuple[int, ...] = ()                   # how many answers took 2^n to 2^(n + 1) µs
    text: str = ""                                  # its last error in words
    shut_out: ShutOut | None = None                 # the last peer that it did not want to hear any more
    flooded: frozenset[int] = frozenset()           # doorbells of its own that ring without end

    def quarantine(self, before: Report | None) -> str:
        """In words, if it has shut a peer out since that report. One that lies is heard so often and no more."""
        last, known = self.shut_out, before.shut_out if before else None
        count = known.count if known else 0
        if last is None or not count < last.count <= SHUT_OUT_TOLD:
            return ""
        more = last.count - count - 1
        return f"instance {last.vm_id}: {last.why}" + (f", and {more} before it" if more else "")

    def floods(self, before: Report | None) -> frozenset[int]:
        """Doorbells that it has begun to complain of since that report."""
        return self.flooded - before.flooded if before else self.flooded


@dataclass(frozen=True)
class TraceEvent:
    """One step of a traced request."""

    request_id: int
    parent_id: int
    time_ns: int
    vm_id: int
    layer: LayerId
    point: str
    peer_vm: int


def report_of(vm_id: int, raw: Any) -> Report:
    state = VmState(raw.state) if raw.state in VmState._value2member_map_ else VmState.FAILED
    status = VMStatus(
        vm_id=vm_id, protocol_layers=_layers(raw), state=state, load=min(raw.load, 1000),
        available_capacity=min(raw.available_capacity, 1000), hardware_affinity=raw.hardware_affinity,
        active_flows=raw.active_flows, queue_depth=raw.queue_depth, oldest_ns=raw.oldest_ns,
        heartbeat_ns=min(raw.heartbeat_ns, time.monotonic_ns()), crypto=_crypto(raw.crypto))
    text = bytes(ffi.buffer(raw.text)).split(b"\0", 1)[0].decode(errors="replace")
    return Report(
        status=status, cmd_seen=raw.cmd_seen, assignment_seen=raw.assignment_seen,
        routes_seen=tuple(raw.routes_seen), error=raw.error, busy_ns=raw.busy_ns, requests=raw.requests,
        bytes_in=raw.bytes_in, bytes_out=raw.bytes_out,
        counters={name: raw.counters[number] for number, name in COUNTERS.items()}, latency=tuple(raw.latency),
        shut_out=_shut_out(raw.shut_out),
        flooded=frozenset(bell for bell in range(1, lib.SL_BELLS) if raw.flooded >> bell & 1),
        text="".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def _crypto(raw: Any) -> Crypto | None:
    if raw.kind == lib.SL_CRYPTO_NONE or raw.kind not in CRYPTO_KINDS:
        return None
    return Crypto(CRYPTO_KINDS[raw.kind], tuple(raw.seal_mbps), raw.handshakes, raw.fallbacks)


def _shut_out(raw: Any) -> ShutOut | None:
    return ShutOut(raw.vm_id, COUNTERS.get(raw.why, "unknown"), raw.count) if raw.count else None


def _layers(raw: Any) -> tuple[LayerId, ...]:
    numbers = raw.protocol_layers[0:min(raw.nb_layers, len(raw.protocol_layers))]
    return tuple(LayerId(n) for n in numbers if n in LayerId._value2member_map_)


def trace_event_of(vm_id: int, raw: Any, behind: int) -> TraceEvent | None:
    if raw.point not in TRACE_POINTS or raw.layer not in LayerId._value2member_map_ or not raw.request_id:
        return None
    return TraceEvent(raw.request_id, raw.parent_id, raw.time_ns + behind, vm_id, LayerId(raw.layer),
                      TRACE_POINTS[raw.point], raw.peer_vm)
