# SPDX-License-Identifier: Apache-2.0
"""What `up` reserves and says: edges get their hugepages before the memory of virtual machines, with `pin` on their
nodes, and `down` gives back what was added.
"""

import json
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.pools import Kernel

from pipeline.cli import pages
from pipeline.cli.pages import Need
from pipeline.errors import HugepageError
from pipeline.host import hugepages
from pipeline.host.ops import NOTES


class Holder:
    """Keeps notes as the holder does, and forgets nothing. ``seen``: all that was put, in order."""

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / NOTES
        self.seen: list[Any] = []

    def blob_put(self, key: str, value: Any) -> None:
        self._file.write_text(json.dumps({key: value}))
        self.seen.append(json.loads(self._file.read_text())[key])


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Holder:
    made = Holder(tmp_path)

    @contextmanager
    def client(_run_dir: Path) -> Any:
        yield made

    monkeypatch.setattr(pages, "HolderClient", client)
    return made


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Two nodes; all functions use them instead of this machine's."""
    made = Kernel(tmp_path, monkeypatch, nodes=2)
    for name in ("reserve", "restore"):
        monkeypatch.setattr(hugepages, name, partial(getattr(hugepages, name), root=made.root))
    for name in ("reserve_on", "restore_on"):
        monkeypatch.setattr(hugepages, name, partial(getattr(hugepages, name), root=made.root, nodes=made.nodes))
    return made


@pytest.mark.parametrize(("there", "without"), [
    (100, []), (20, ["virtual machines"]), (5, ["virtual machines", "edges"])])
@pytest.mark.usefixtures("holder")
def test_what_gets_small_pages_is_said(there: int, without: list[str], tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    def reserve(pages: int, note: Callable[[int], None]) -> None:
        if pages > there:
            raise HugepageError(f"the kernel found {there}, {pages} are needed", hint="reserve them at boot")

    said: list[str] = []
    monkeypatch.setattr(pages.hugepages, "reserve", reserve)
    pages.reserve(tmp_path, Need(74), Need(10), said.append)
    assert [line.rpartition("; ")[2] for line in said] == [f"{what} get 4 KiB pages" for what in without]
    assert all("reserve them at boot" in line for line in said)


def test_pages_come_from_their_nodes_and_go_back_there(tmp_path: Path, kernel: Kernel, holder: Holder) -> None:
    kernel.write(3, 1)
    said: list[str] = []
    pages.reserve(tmp_path, Need(20, {0: 10, 1: 8}), Need(10, {0: 10}), said.append)
    assert (kernel.on(0), kernel.on(1)) == (11, 9), "two of a warm machine from anywhere"
    assert said == [] and holder.seen[-1] == {"0": 10, "1": 5, "any": 2}
    pages.give_back(tmp_path)
    assert (kernel.on(0), kernel.on(1)) == (0, 3)


def test_the_rest_comes_from_any_node(tmp_path: Path, kernel: Kernel, holder: Holder) -> None:
    kernel.most[0] = 6
    said: list[str] = []
    pages.reserve(tmp_path, Need(10, {0: 10}), Need(10, {0: 10}), said.append)
    assert said == ["warning: node 0 has 6 of the 10 hugepages that are wanted there; the rest comes from any node"]
    assert (kernel.on(0), kernel.on(1)) == (6, 4) and holder.seen[-1] == {"0": 6, "any": 4}
    pages.give_back(tmp_path)
    assert (kernel.on(0), kernel.on(1)) == (0, 0)


def test_guests_without_hugepages_leave_none(tmp_path: Path, kernel: Kernel, holder: Holder) -> None:
    kernel.most = [6, 6]
    said: list[str] = []
    pages.reserve(tmp_path, Need(20, {0: 4, 1: 16}), Need(4, {0: 4}), said.append)
    assert len(said) == 1 and said[0].endswith("virtual machines get 4 KiB pages")
    assert (kernel.on(0), kernel.on(1)) == (4, 0) and holder.seen[-1] == {"0": 4}


def test_a_successor_gives_back_what_the_dead_one_added(tmp_path: Path, kernel: Kernel, holder: Holder) -> None:
    """Whatever was killed, and whenever: notes come before pages."""
    need = Need(10, {0: 10})
    pages.reserve(tmp_path, need, need, print)
    assert {"0": 10} in holder.seen and kernel.on(0) == 10
    pages.reserve(tmp_path, need, need, print)
    assert kernel.on(0) == 10, "they are there already"
    pages.reserve(tmp_path, Need(12), Need(12), print)       # without pin now
    pages.give_back(tmp_path)
    assert (kernel.on(0), kernel.on(1)) == (0, 0)


def test_of_two_that_take_it_down_one_gives_back(tmp_path: Path, kernel: Kernel, holder: Holder) -> None:
    kernel.write(5, 0)
    pages.reserve(tmp_path, Need(8, {0: 8}), Need(8, {0: 8}), print)
    pages.give_back(tmp_path)
    pages.give_back(tmp_path)
    assert kernel.on(0) == 5
