# SPDX-License-Identifier: Apache-2.0
"""What `up` says when the kernel has too few hugepages: edges get theirs before the memory of virtual machines."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest

from pipeline.cli import life
from pipeline.errors import HugepageError


@pytest.mark.parametrize(("there", "without"), [
    (100, []), (20, ["virtual machines"]), (5, ["virtual machines", "edges"])])
def test_what_gets_small_pages_is_said(there: int, without: list[str], tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    def reserve(pages: int, note: Callable[[int], None]) -> None:
        if pages > there:
            raise HugepageError(f"the kernel found {there}, {pages} are needed", hint="reserve them at boot")

    said: list[str] = []
    monkeypatch.setattr(life, "HolderClient", lambda _: nullcontext(Mock()))
    monkeypatch.setattr(life.hugepages, "reserve", reserve)
    life._reserve(tmp_path, 10, 64, said.append)
    assert [line.rpartition("; ")[2] for line in said] == [f"{what} get 4 KiB pages" for what in without]
    assert all("reserve them at boot" in line for line in said)
