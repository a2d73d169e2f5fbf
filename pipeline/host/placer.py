# SPDX-License-Identifier: Apache-2.0
"""Puts what is started where policy.placement says, if the configuration asks for it ([hardware] pin)."""

from __future__ import annotations

from dataclasses import replace

from pipeline.host.cpus import pin, prefer_node
from pipeline.host.hardware import inventory
from pipeline.host.wishes import wishes
from pipeline.policy.config import Config
from pipeline.policy.model import LayerId
from pipeline.policy.placement import Placement, Seat, place, seat, without


class Placer:
    """Of one swarm. Without ``pin`` only the `cpus` of a layer count."""

    def __init__(self, config: Config) -> None:
        self._layers = {layer.id: layer for layer in config.layers}
        self._seats: dict[int, Seat] = {}
        self._placement: Placement | None = None
        if config.hardware.pin:
            self._machine, self._wishes = inventory(), wishes(config)
            nobody = tuple(replace(layer, instances=0) for layer in config.layers)
            self._placement = place(self._machine, replace(self._wishes, layers=nobody))

    def configure(self, config: Config) -> None:
        """What a reload may change: it counts for instances that are placed from now on."""
        self._layers = {layer.id: layer for layer in config.layers}

    def edge(self, name: str, fd: int, length: int) -> int | None:
        """The node that the memory of this edge is to come from; None: any."""
        found = next((m.node for m in self._placement.memories if m.name == name), None) if self._placement else None
        return found if found is not None and prefer_node(fd, length, found) else None

    def router(self, pid: int) -> tuple[int, ...]:
        """The CPUs that it has now; none: it may run anywhere."""
        return self._pin(pid, self._placement.router.cpus if self._placement else ())

    def instance(self, vm_id: int, layer: LayerId, pid: int) -> tuple[int, ...]:
        """The CPUs that it has now: one that it had is free for others."""
        self.gone(vm_id)
        pool = self._layers.get(layer)
        if self._placement is None or pool is None:
            return self._pin(pid, pool.cpus if pool else ())
        self._placement = seat(self._machine, self._wishes, self._placement, pool)
        self._seats[vm_id] = mine = self._placement.seats[-1]
        return self._pin(pid, mine.cpus)

    def gone(self, vm_id: int) -> None:
        """Its place is free."""
        left = self._seats.pop(vm_id, None)
        if left and self._placement:
            self._placement = without(self._placement, left)

    def _pin(self, pid: int, cpus: tuple[int, ...]) -> tuple[int, ...]:
        return cpus if cpus and pin(pid, cpus) else ()
