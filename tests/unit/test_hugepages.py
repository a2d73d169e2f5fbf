# SPDX-License-Identifier: Apache-2.0
"""The pool of hugepages, on a picture of /sys that behaves as the kernel's: the real one belongs to everybody."""

from pathlib import Path

import pytest

from pipeline.errors import HugepageError
from pipeline.host import hugepages


class Kernel:
    """``write`` does what the kernel does when nr_hugepages is written: pages in use become surplus and back."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.folder = root, root / hugepages.POOL
        self.folder.mkdir(parents=True)
        self.lasting = self.used = self.surplus = 0
        self.most = 1000
        monkeypatch.setattr(hugepages, "_write", lambda _root, total: self.write(total))
        self._show()

    def write(self, total: int) -> None:
        self.lasting = min(total, self.most)
        self.surplus = max(0, self.used - self.lasting)
        self._show()

    def use(self, pages: int) -> None:
        """Somebody takes so many pages, or gives them back: those that are surplus vanish first."""
        self.used += pages
        if pages < 0:
            self.surplus = max(0, self.surplus + pages)
        assert self.used <= self.lasting + self.surplus
        self._show()

    def _show(self) -> None:
        total = self.lasting + self.surplus
        for name, value in (("nr", total), ("free", total - self.used), ("resv", 0), ("surplus", self.surplus)):
            (self.folder / f"{name}_hugepages").write_text(f"{value}\n")

    @property
    def total(self) -> int:
        return hugepages.pool(self.root).total


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
    kernel.most = 3
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
