# SPDX-License-Identifier: Apache-2.0
"""Pools of hugepages, on a picture of /sys that behaves as the kernel's: the real ones belong to everybody."""

from pathlib import Path

import pytest

from pipeline.host import hugepages


class Kernel:
    """``write`` does what the kernel does when nr_hugepages is written: pages in use become surplus and back. What is
    written to all is spread over the nodes. ``old``: a node's pool grows by the surplus of the others, as it did.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, nodes: int = 1, *, old: bool = False) -> None:
        self.root, self.nodes = folder / "mm", folder / "node"
        self.lasting, self.used, self.surplus = ([0] * nodes for _ in range(3))
        self.most = [1000] * nodes
        self.promised = 0
        self._old = old
        monkeypatch.setattr(hugepages, "_write", self._written)
        for place in (self.root, *(self.nodes / f"node{n}" for n in range(nodes))):
            (place / hugepages.POOL).mkdir(parents=True)
        self.show()

    def write(self, total: int, node: int | None = None) -> None:
        if node is None:
            self._spread(total - sum(self.lasting))
        else:
            others = sum(self.surplus) - self.surplus[node]
            self._set(node, total + (others if self._old else 0))
        self.show()

    def use(self, pages: int, node: int = 0) -> None:
        """Somebody takes so many pages, or gives them back: those that are surplus vanish first."""
        self.used[node] += pages
        if pages < 0:
            self.surplus[node] = max(0, self.surplus[node] + pages)
        assert self.used[node] <= self.on(node)
        self.show()

    def on(self, node: int) -> int:
        return self.lasting[node] + self.surplus[node]

    @property
    def total(self) -> int:
        return hugepages.pool(self.root).total

    def show(self) -> None:
        for n in range(len(self.lasting)):
            self._show(self.nodes / f"node{n}", self.on(n), self.used[n], self.surplus[n])
        total = sum(self.lasting) + sum(self.surplus)
        self._show(self.root, total, sum(self.used), sum(self.surplus))
        (self.root / hugepages.POOL / "resv_hugepages").write_text(f"{self.promised}\n")

    def _written(self, place: Path, total: int) -> None:
        self.write(total, None if place == self.root else int(place.name.removeprefix("node")))

    def _spread(self, more: int) -> None:
        """One page after the other, each on the next node that has a free one or room for one."""
        step = 1 if more > 0 else -1
        for turn in range(abs(more)):
            order = sorted(range(len(self.lasting)), key=lambda n: (n - turn) % len(self.lasting))
            able = [n for n in order if (self.lasting[n] < self.most[n] if step > 0 else self.lasting[n])]
            free = [n for n in able if self.lasting[n] > self.used[n]] if step < 0 else able
            if able:
                node = (free or able)[0]
                self._set(node, self.lasting[node] + step)

    def _set(self, node: int, lasting: int) -> None:
        self.lasting[node] = min(lasting, self.most[node])
        self.surplus[node] = max(0, self.used[node] - self.lasting[node])

    def _show(self, place: Path, total: int, used: int, surplus: int) -> None:
        for name, value in (("nr", total), ("free", total - used), ("surplus", surplus)):
            (place / hugepages.POOL / f"{name}_hugepages").write_text(f"{value}\n")
