# SPDX-License-Identifier: Apache-2.0
"""What a configuration asks of a machine, in the units of policy.placement."""

from __future__ import annotations

from pipeline.host.edges import pages_needed
from pipeline.policy.config import Config
from pipeline.policy.model import Edge
from pipeline.policy.placement import Wishes


def edges_of(config: Config) -> tuple[Edge, ...]:
    """An edge for each adjacent pair of layers, those nearest to the NIC first."""
    caps = {layer.id: layer.max for layer in config.layers}
    pairs = sorted({pair for service in config.services for pair in service.chain.pairs()})
    return tuple(Edge(front, back, caps[front], caps[back]) for front, back in pairs)


def wishes(config: Config) -> Wishes:
    """``interface`` is the NIC's, or its PCI address if DPDK drives it."""
    nic = config.nic.interface or config.nic.devargs.partition(",")[0]
    return Wishes(config.layers, {(edge.front, edge.back): pages_needed(edge) for edge in edges_of(config)}, nic,
                  config.hardware.allow, config.hardware.vfs)
