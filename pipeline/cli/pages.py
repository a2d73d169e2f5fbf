# SPDX-License-Identifier: Apache-2.0
"""The hugepages of a swarm: `up` adds to the kernel's pool what is missing, `down` gives that back.

What was added is noted with the holder, and so in DIR/state.json, before the pool changes: whatever is killed, it is
known.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import HugepageError
from pipeline.host import hugepages, keys
from pipeline.host.holder_client import HolderClient
from pipeline.host.ops import NOTES
from pipeline.host.placer import this_machine
from pipeline.host.wishes import wishes
from pipeline.policy.config import Config
from pipeline.policy.placement import Memory, Seat, pages_by_node, place

ANY = "any"               # in the note beside the numbers of nodes: pages of whatever node


@dataclass(frozen=True)
class Need:
    """So many pages, of them so many of each node."""

    pages: int
    near: Mapping[int, int] = field(default_factory=dict)


def needs(run_dir: Path, config: Config, edges: int, guests: int) -> tuple[Need, Need]:
    """Of edges and guests together, and of the edges alone. With `pin` they have nodes."""
    if not config.hardware.pin:
        return Need(edges + guests), Need(edges)
    placement = place(this_machine(run_dir), wishes(config))
    memories: tuple[Memory | Seat, ...] = placement.memories
    return Need(edges + guests, pages_by_node(memories + placement.seats)), Need(edges, pages_by_node(memories))


def reserve(run_dir: Path, everything: Need, edges: Need, say: Callable[[str], None]) -> None:
    """Hugepages for edges and guests if the kernel has them, else for the edges; what gets none is made of small pages,
    which is slower.
    """
    with HolderClient(run_dir) as holder:
        notes = _Notes(holder, _kept(run_dir))
        for need, what in ((everything, "virtual machines"), (edges, "edges")):
            missing = {node: hugepages.reserve_on(node, pages, notes.of(str(node)))[1]
                       for node, pages in need.near.items()}
            try:
                hugepages.reserve(need.pages, note=notes.of(ANY))
            except HugepageError as error:
                notes.give_back()
                if everything.pages > edges.pages or what == "edges":
                    say(f"warning: {error.explain()}; {what} get 4 KiB pages")
                continue
            for node, pages in missing.items():
                if pages:
                    say(f"warning: node {node} has {need.near[node] - pages} of the {need.near[node]} hugepages that "
                        "are wanted there; the rest comes from any node")
            return


def give_back(run_dir: Path) -> None:
    """What `up` added. The holder is dead."""
    kept = _kept(run_dir)
    with suppress(FileNotFoundError):
        (run_dir / NOTES).unlink()         # of two that take it down at the same time, one gives them back
        _restore(kept)


class _Notes:
    """What was added where. Begins with what a swarm left that was killed with its holder: it is this one's now."""

    def __init__(self, holder: HolderClient, former: Mapping[str, int]) -> None:
        self._holder, self._former, self._added = holder, former, Counter[str]()
        self._put()

    def of(self, where: str) -> Callable[[int], None]:
        """Takes how many were added there."""
        def note(added: int) -> None:
            self._added[where] = added
            self._put()

        return note

    def give_back(self) -> None:
        """What was not there before."""
        _restore(self._added)
        self._added.clear()
        self._put()

    def _put(self) -> None:
        self._holder.blob_put(keys.HUGEPAGES, Counter(self._former) + self._added)


def _restore(added: Mapping[str, int]) -> None:
    """Those of nodes first: the rest is taken from where pages are free then."""
    rest = added.get(ANY, 0)
    with suppress(HugepageError):
        for node in added.keys() - {ANY}:
            rest += hugepages.restore_on(int(node), added[node])
        hugepages.restore(rest)


def _kept(run_dir: Path) -> dict[str, int]:
    """What was added where, by the notes of a holder that is dead now."""
    try:
        kept = json.loads((run_dir / NOTES).read_text()).get(keys.HUGEPAGES)
        return {where: int(added) for where, added in kept.items() if where == ANY or where.isdecimal()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
