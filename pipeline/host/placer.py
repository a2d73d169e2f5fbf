# SPDX-License-Identifier: Apache-2.0
"""Puts what is started where policy.placement says, if the configuration asks for it ([hardware] pin), and says which
accelerator each instance is to have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.host.cpus import pin, prefer_node, taken
from pipeline.host.hardware import inventory
from pipeline.host.wishes import wishes
from pipeline.policy.config import Config
from pipeline.policy.hardware import Machine
from pipeline.policy.model import LayerId
from pipeline.policy.placement import Placement, Seat, Wishes, equip, place, seat, without


def this_machine(spared: Path | None = None) -> Machine:
    """With what swarms that run here have taken of it, without the one in this folder."""
    return replace(inventory(), taken=taken(spared))


class Placer:
    """Of the swarm in ``run_dir``. Without ``pin`` only the `cpus` of a layer count, and what it `wants`.

    ``look``: what the machine has now, if not this one.
    """

    def __init__(self, config: Config, run_dir: Path | None = None, look: Callable[[], Machine] | None = None) -> None:
        self._look = look or partial(this_machine, run_dir)
        self._layers = {layer.id: layer for layer in config.layers}
        self._seats: dict[int, Seat] = {}
        self._machine: Machine | None = None
        self._placement: Placement | None = None
        self._wishes = Wishes((), {})
        self._pins = config.hardware.pin
        self.configure(config)

    def configure(self, config: Config) -> None:
        """What a reload may change, what the machine has got since the last one included: cores count for instances
        that are placed from now on, accelerators when ``accelerator`` is asked the next time.
        """
        self._layers = {layer.id: layer for layer in config.layers}
        if not self._pins and not _wants(config) and self._placement is None:
            return
        self._machine = self._look()
        self._wishes = wishes(config)
        if self._placement is None:
            nobody = tuple(replace(layer, instances=0) for layer in config.layers)
            self._placement = place(self._machine, replace(self._wishes, layers=nobody))

    def edge(self, name: str, fd: int, length: int) -> int | None:
        """The node that the memory of this edge is to come from; None: any."""
        if not self._pins or self._placement is None:
            return None
        found = next((m.node for m in self._placement.memories if m.name == name), None)
        return found if found is not None and prefer_node(fd, length, found) else None

    def router(self, pid: int) -> tuple[int, ...]:
        """The CPUs that it has now; none: it may run anywhere."""
        return self._pin(pid, self._placement.router.cpus if self._pins and self._placement else ())

    def node(self, vm_id: int, layer: LayerId) -> int | None:
        """The node that the memory of this machine, which is to be started for the layer, is to come from; None: any.
        It has its place from now on.
        """
        if not self._pins:
            return None
        self._sit(vm_id, layer)
        mine = self._seats.get(vm_id)
        return mine.node if mine else None

    def instance(self, vm_id: int, layer: LayerId, pid: int, has: str = "") -> tuple[int, ...]:
        """The CPUs that it has now: one that it had for another layer is free for others. ``has``: the accelerator that
        it has since before this manager.
        """
        if (old := self._seats.get(vm_id)) is None or old.layer is not layer:
            self._sit(vm_id, layer)
        if has and vm_id in self._seats:
            self._exchange(vm_id, replace(self._seats[vm_id], accelerator=has))
        pool = self._layers.get(layer)
        mine = self._seats.get(vm_id) if self._pins else None
        return self._pin(pid, mine.cpus if mine else pool.cpus if pool else ())

    def accelerator(self, vm_id: int) -> str:
        """The one that this instance is to have as the configuration is now; empty: none."""
        mine = self._seats.get(vm_id)
        if mine is None or self._placement is None or self._machine is None or mine.layer not in self._layers:
            return ""
        layer = self._layers[mine.layer]
        self._exchange(vm_id, equip(self._machine, self._wishes, self._placement, mine, layer))
        return self._seats[vm_id].accelerator

    def gone(self, vm_id: int) -> None:
        """Its place is free."""
        left = self._seats.pop(vm_id, None)
        if left and self._placement:
            self._placement = without(self._placement, left)

    def _sit(self, vm_id: int, layer: LayerId) -> None:
        self.gone(vm_id)
        pool = self._layers.get(layer)
        if self._placement is not None and self._machine is not None and pool is not None:
            self._placement = seat(self._machine, self._wishes, self._placement, pool)
            self._seats[vm_id] = self._placement.seats[-1]

    def _exchange(self, vm_id: int, new: Seat) -> None:
        old, self._seats[vm_id] = self._seats[vm_id], new
        if self._placement and new is not old:
            kept = without(self._placement, old)
            self._placement = replace(kept, seats=(*kept.seats, new))

    def _pin(self, pid: int, cpus: tuple[int, ...]) -> tuple[int, ...]:
        return cpus if cpus and pin(pid, cpus) else ()


def _wants(config: Config) -> bool:
    return bool(config.hardware.allow) and any(layer.wants for layer in config.layers)
