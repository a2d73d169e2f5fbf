# SPDX-License-Identifier: Apache-2.0
"""The kernel's pool of 2 MiB pages: what edges are made of."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import HugepageError

PAGE_LEN = 2 << 20
POOL = "hugepages/hugepages-2048kB"
ALL_NODES = Path("/sys/kernel/mm")
NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True)
class Pool:
    """The pages of one NUMA node, or of all (``node`` is None then)."""

    node: int | None
    total: int
    free: int        # not in use; reserved ones among them
    available: int   # free and promised to nobody


def pool(root: Path = ALL_NODES) -> Pool:
    """The pool of all nodes together. A kernel without hugepages has an empty one."""
    free = _read(root / POOL / "free_hugepages")
    return Pool(None, _read(root / POOL / "nr_hugepages"), free,
                max(0, free - _read(root / POOL / "resv_hugepages")))


def reserve(pages: int, root: Path = ALL_NODES, note: Callable[[int], None] = lambda added: None) -> int:
    """Enlarges the pool until so many pages are available. Returns by how many; 0: they were there already.

    The caller gives this number to ``restore`` in the end. ``note`` is told it before the pool changes, so that it is
    not lost with a caller that is killed meanwhile, and 0 if nothing came of it. Raises HugepageError, with the pool
    as it was.
    """
    with _alone(root):
        now = pool(root)
        missing = pages - now.available
        if missing <= 0:
            return 0
        # Pages that somebody still uses although the pool was made smaller count as surplus. A larger pool makes them
        # its own, and they stay when he lets them go: so they belong to what is given back in the end.
        lasting = _lasting(root)
        added = now.total + missing - lasting
        note(added)
        try:
            _write(root, now.total + missing)
            found = pool(root).available
            if found < pages:
                _write(root, lasting)
                raise HugepageError(f"the kernel found {found} free 2 MiB pages, {pages} are needed",
                                    hint="memory is scarce or fragmented: reserve them at boot (kernel command line: "
                                         "hugepages=N), lower `max` of the layers, or do without hugepages")
        except HugepageError:
            note(0)
            raise
        return added


def restore(added: int, root: Path = ALL_NODES) -> None:
    """Takes back what ``reserve`` added, and nothing that others changed since."""
    if added:
        with _alone(root):
            _write(root, max(0, _lasting(root) - added))


def reserve_on(node: int, pages: int, note: Callable[[int], None] = lambda added: None, *, nodes: Path = NODES,
               root: Path = ALL_NODES) -> tuple[int, int]:
    """Enlarges the pool of one node until so many pages are available there, or as far as the kernel finds some.
    Returns by how many, for ``restore_on``, and how many are missing still. ``note`` is told as ``reserve`` tells it,
    and again if others came. On a kernel without NUMA nothing happens.
    """
    own = nodes / f"node{node}"
    if not (own / POOL).is_dir():
        return 0, 0
    with _alone(root):
        missing = pages - _available_on(own, root)
        if missing <= 0:
            return 0, 0
        lasting, wanted = _lasting(own), _read(own / POOL / "nr_hugepages") + missing
        note(wanted - lasting)
        with suppress(HugepageError):      # who is not allowed to hears it when all pages together are reserved
            _resize(own, wanted)
        added = max(0, _lasting(own) - lasting)
        if added != wanted - lasting:
            note(added)
        return added, max(0, pages - _available_on(own, root))


def restore_on(node: int, added: int, *, nodes: Path = NODES, root: Path = ALL_NODES) -> int:
    """Takes back what ``reserve_on`` added. Returns how many the node has not any more: whoever made the pool of all
    nodes smaller and larger again has moved them, and ``restore`` takes them back.
    """
    own = nodes / f"node{node}"
    if not added or not (own / POOL).is_dir():
        return added
    with _alone(root):
        before = _lasting(own)
        _resize(own, max(0, before - added))
        return max(0, added - (before - _lasting(own)))


def _available_on(own: Path, root: Path) -> int:
    """On which nodes the promised pages will be taken, nobody knows: all of them may be this one's."""
    return max(0, _read(own / POOL / "free_hugepages") - _read(root / POOL / "resv_hugepages"))


def _resize(own: Path, lasting: int) -> None:
    """The pool of one node. Older kernels count the surplus of the other nodes as pages that this one is to have, and
    make too many.
    """
    _write(own, lasting)
    if (over := _lasting(own) - lasting) > 0:
        _write(own, max(0, lasting - over))


def shortage(pages: int, root: Path = ALL_NODES) -> str:
    """One line for the user if so many pages are not available; empty if they are."""
    now = pool(root)
    if now.available >= pages:
        return ""
    enough = now.total + pages - now.available
    return (f"edges use 4 KiB pages, which costs speed: {pages} hugepages of 2 MiB are needed, "
            f"{now.available} available; mend it with: sysctl vm.nr_hugepages={enough}")


def _lasting(root: Path) -> int:
    """The size that was asked for: without the surplus, which goes when its users let go of it."""
    return max(0, _read(root / POOL / "nr_hugepages") - _read(root / POOL / "surplus_hugepages"))


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Reading and writing the size are two steps: one swarm at a time."""
    try:
        file = (root / POOL / "nr_hugepages").open("rb")
    except OSError as error:
        raise _cannot_set(root, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _write(root: Path, total: int) -> None:
    path = root / POOL / "nr_hugepages"
    try:
        path.write_text(f"{total}\n")
    except OSError as error:
        raise _cannot_set(root, error) from error


def _cannot_set(root: Path, error: OSError) -> HugepageError:
    return HugepageError(f"cannot set {root / POOL / 'nr_hugepages'}: {error.strerror}",
                         hint="run it as root, on a kernel with CONFIG_HUGETLBFS, or do without hugepages")
