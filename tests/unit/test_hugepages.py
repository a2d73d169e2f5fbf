# SPDX-License-Identifier: Apache-2.0
"""Pools of hugepages enlarged and restored, of all nodes and of one."""

from pathlib import Path

import pytest
from support.pools import Kernel

from pipeline.errors import HugepageError
from pipeline.host import hugepages


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


def test_enlarged_and_restored(kernel: Kernel) -> None:
    kernel.write(10)
    kernel.use(7)
    assert hugepages.pool(kernel.root).available == 3
    assert hugepages.shortage(3, kernel.root) == ""
    assert "sysctl vm.nr_hugepages=14" in hugepages.shortage(7, kernel.root)
    assert hugepages.reserve(3, kernel.root) == 0
    assert hugepages.reserve(7, kernel.root) == 4
    kernel.write(20)
    hugepages.restore(4, kernel.root)
    assert kernel.total == 16, "what others added since stays"


def test_what_is_added_is_noted_first(kernel: Kernel) -> None:
    seen: list[tuple[int, int]] = []
    hugepages.reserve(5, kernel.root, lambda added: seen.append((added, kernel.total)))
    assert seen == [(5, 0)]


def test_nothing_changes_when_the_kernel_has_too_few(kernel: Kernel) -> None:
    noted: list[int] = []
    kernel.most = [3]
    with pytest.raises(HugepageError, match="found 3 free"):
        hugepages.reserve(7, kernel.root, noted.append)
    assert kernel.total == 0 and noted == [7, 0]


def test_two_swarms_one_after_the_other_ends_slowly(kernel: Kernel) -> None:
    """The second starts when the first is down but its last process still holds the pages."""
    first = hugepages.reserve(8, kernel.root)
    kernel.use(8)
    hugepages.restore(first, kernel.root)
    second = hugepages.reserve(8, kernel.root)
    kernel.use(-8)
    hugepages.restore(second, kernel.root)
    assert kernel.total == 0


def test_two_swarms_side_by_side_end_together(kernel: Kernel) -> None:
    """Both go down before the pages of either are free."""
    first = hugepages.reserve(8, kernel.root)
    kernel.use(8)
    second = hugepages.reserve(8, kernel.root)
    kernel.use(8)
    hugepages.restore(first, kernel.root)
    hugepages.restore(second, kernel.root)
    kernel.use(-16)
    assert kernel.total == 0


def test_a_kernel_without_hugepages(tmp_path: Path) -> None:
    with pytest.raises(HugepageError, match="cannot set"):
        hugepages.reserve(1, tmp_path)


# ---- one node

@pytest.fixture(params=[False, True], ids=["new", "old"])
def nodes(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch, 2, old=request.param)


def reserve_on(kernel: Kernel, node: int, pages: int, noted: list[int] | None = None) -> tuple[int, int]:
    note = (noted if noted is not None else []).append
    return hugepages.reserve_on(node, pages, note, nodes=kernel.nodes, root=kernel.root)


def restore_on(kernel: Kernel, node: int, added: int) -> int:
    return hugepages.restore_on(node, added, nodes=kernel.nodes, root=kernel.root)


def test_a_node_is_enlarged_and_restored(nodes: Kernel) -> None:
    nodes.write(4, 1)
    noted: list[int] = []
    assert reserve_on(nodes, 1, 10, noted) == (6, 0) and noted == [6]
    assert (nodes.on(0), nodes.on(1)) == (0, 10)
    assert reserve_on(nodes, 1, 10, noted) == (0, 0) and noted == [6]
    restore_on(nodes, 1, 6)
    assert (nodes.on(0), nodes.on(1)) == (0, 4)


def test_a_node_gives_what_it_has(nodes: Kernel) -> None:
    nodes.most[1] = 7
    noted: list[int] = []
    assert reserve_on(nodes, 1, 10, noted) == (7, 3) and noted == [10, 7]
    assert restore_on(nodes, 1, 7) == 0 and nodes.total == 0


def test_what_was_moved_to_another_node_is_told(nodes: Kernel) -> None:
    reserve_on(nodes, 1, 10)
    nodes.write(6, 1)
    nodes.write(4, 0)
    assert restore_on(nodes, 1, 10) == 4 and nodes.total == 4


def test_promised_pages_may_be_any_node_s(nodes: Kernel) -> None:
    nodes.write(10)
    nodes.promised = 2
    nodes.show()
    assert reserve_on(nodes, 0, 5) == (2, 0) and (nodes.on(0), nodes.on(1)) == (7, 5)


def test_surplus_elsewhere_is_not_this_node_s(nodes: Kernel) -> None:
    """Another swarm is down, and its last process still holds pages of the other node."""
    nodes.write(3, 0)
    nodes.use(3, 0)
    nodes.write(0, 0)
    assert nodes.surplus == [3, 0]
    assert reserve_on(nodes, 1, 5) == (5, 0) and nodes.on(1) == 5
    nodes.use(5, 1)
    restore_on(nodes, 1, 2)
    nodes.use(-3, 0)
    restore_on(nodes, 1, 3)
    nodes.use(-5, 1)
    assert nodes.total == 0


def test_a_kernel_without_numa(tmp_path: Path) -> None:
    assert hugepages.reserve_on(0, 5, nodes=tmp_path, root=tmp_path) == (0, 0)
