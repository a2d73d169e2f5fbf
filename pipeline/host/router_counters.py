# SPDX-License-Identifier: Apache-2.0
"""What the router counts, by name (c/abi/router.h)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pipeline._native import ffi, lib

LEN: int = (ffi.sizeof("struct sl_rtr_counters") + 4095) & ~4095      # of the memfd


def _names(enum: str, prefix: str, nb: int) -> Mapping[int, str]:
    elements = ffi.typeof(f"enum {enum}").elements
    return MappingProxyType({n: name.removeprefix(prefix).lower() for n, name in elements.items() if n < nb})


COUNTERS = _names("sl_rtr_counter", "SL_RTR_", lib.SL_RTR_COUNTER_NB)
VIOLATIONS = _names("sl_rtr_violation", "SL_RTR_VIOLATION_", lib.SL_RTR_VIOLATION_NB)
LINKS = MappingProxyType({lib.SL_RTR_LINK_NONE: "", lib.SL_RTR_LINK_WAITING: "waiting", lib.SL_RTR_LINK_IS_UP: "up",
                          lib.SL_RTR_LINK_QUARANTINE: "quarantine"})


@dataclass(frozen=True)
class PortCounters:
    """Of one instance's port; "in" is from the NIC to the instance. Only a virtual machine has violations (and the name
    of the last one) and a link: waiting, up or quarantine."""

    in_packets: int
    in_bytes: int
    out_packets: int
    out_bytes: int
    in_dropped: int
    out_dropped: int
    violations: int
    violation: str
    link: str


def read(fd: int) -> tuple[dict[str, int], dict[int, PortCounters]]:
    """Totals by name, and the ports of which there is something to tell."""
    raw = ffi.new("struct sl_rtr_counters *")
    data = os.pread(fd, ffi.sizeof(raw[0]), 0)
    ffi.memmove(raw, data, len(data))
    ports = {vm_id: PortCounters(p.in_packets, p.in_bytes, p.out_packets, p.out_bytes, p.in_dropped, p.out_dropped,
                                 p.violations, VIOLATIONS.get(p.violation, "") if p.violation else "", LINKS[p.link])
             for vm_id, p in enumerate(raw.port)
             if p.in_packets or p.out_packets or p.in_dropped or p.out_dropped or p.violations or p.link}
    return {name: raw.total[number] for number, name in COUNTERS.items()}, ports
