# SPDX-License-Identifier: Apache-2.0
"""The memory of edges: hugepages, and what the manager sees in it."""

from collections.abc import Callable, Iterator

import pytest
from pipeline._native import ffi
from system.holder_rig import SMALL, TINY, Place

from pipeline.errors import HugepageError
from pipeline.host import hugepages
from pipeline.host.edges import EdgeMemory, pages_needed
from pipeline.host.holder_client import HolderClient
from pipeline.policy.model import Edge, LayerId, Side, VmState

pytestmark = [pytest.mark.root, pytest.mark.netns]


def test_manager_sees_who_sits_on_an_edge(place: Callable[..., Place], holder: HolderClient) -> None:
    edge = place().edge
    table = ffi.cast("__u8 *", edge._buffer) + 4096
    rows = ffi.cast("struct sl_peer *", table)
    rows[1].incarnation, rows[1].vm_id, rows[1].state, rows[1].load, rows[1].sleeping = 7, 11, 3, 100, 1
    ffi.memmove(rows + 2, b"\xff" * 128, 128)              # hostile
    front, back = edge.peers()
    assert (front.side, front.slot, front.vm_id, front.incarnation) == (Side.FRONT, 1, 11, 7)
    assert (front.state, front.load, front.sleeping) == (VmState.ACTIVE, 100, True)
    assert (back.side, back.slot, back.state, back.load) == (Side.BACK, 0, VmState.FAILED, 1000)
    adopted = EdgeMemory.adopt(holder, edge.edge, SMALL)
    assert adopted.intact()
    assert adopted.peers()[0] == front
    ffi.cast("struct sl_region *", edge._buffer).nb_front = 60
    assert not adopted.intact()
    adopted.close()


@pytest.fixture
def free_pages() -> Iterator[None]:
    """Enough free hugepages for the smallest edge; given back at the end."""
    try:
        added = hugepages.reserve(pages_needed(TINY, SMALL))
    except HugepageError as error:
        pytest.skip(f"no hugepages to be had: {error}")
    yield
    hugepages.restore(added)


@pytest.mark.usefixtures("free_pages")
def test_edge_of_hugepages(holder: HolderClient) -> None:
    before = hugepages.pool()
    memory = EdgeMemory.create(holder, TINY, SMALL)
    assert memory.huge
    assert memory.intact()
    assert hugepages.pool().available == before.available - pages_needed(TINY, SMALL)     # all of it is reserved
    huge = Edge(LayerId.TCP, LayerId.HTTP, 64, 64)
    if pages_needed(huge) > hugepages.pool().available:
        other = EdgeMemory.create(holder, huge)
        assert not other.huge                              # none of it, rather than a part
        other.close()
    memory.close()
    holder.edge_remove(memory.edge_id)
    assert hugepages.pool().available == before.available
