# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests, and the ladder of needs (markers; see support/needs.py)."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest
from support.evidence import EVIDENCE
from support.lab import PREFIX, Lab, lab_made, netns_made
from support.leftovers import hugepages, hugepages_left, leftovers, namespaces_of, other_swarms
from support.needs import NEEDS, require

PAGES_PATIENCE = 5.0  # seconds: somebody else's test may be about to use what it added, or to give it back

# "make test" tries the same examples each time and does not time them; "make verify" explores.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("explore", max_examples=2000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose needs this machine does not meet, before any of its fixtures is made."""
    require(*(need for need in NEEDS if item.get_closest_marker(need)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows what the processes of a swarm said last."""
    report = yield
    if report.failed:
        report.sections += [(title, said()) for title, said in EVIDENCE.items()]
    return report


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """The session fails if a namespace that it made is still there at its end."""
    yield
    left = namespaces_of(PREFIX)
    assert not left, f"the tests left network namespaces behind: {left}"


@pytest.fixture(scope="module", autouse=True)
def no_hugepages_left() -> Iterator[None]:
    """The last test of a module fails if the kernel's pool of hugepages is larger than before the module, by pages
    that nobody uses. While somebody else runs a swarm here nobody can tell whose they are.
    """
    before = hugepages()
    yield
    deadline = time.monotonic() + PAGES_PATIENCE
    while (left := hugepages_left(before, hugepages())) and not other_swarms() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left or other_swarms(), f"{left} hugepages were added to the pool and not given back"


@pytest.fixture
def netns() -> Iterator[Callable[[], str]]:
    """Makes empty network namespaces: ``name = netns()``. They are removed after the test."""
    require("netns")
    with ExitStack() as stack:
        yield lambda: stack.enter_context(netns_made())


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab of tools/lab with its own names. For another MTU or a far client use ``support.lab.lab_made``."""
    require("netns")
    with lab_made() as made:
        yield made


@pytest.fixture(scope="module")
def module_lab() -> Iterator[Lab]:
    """One lab for all tests of a module."""
    require("netns", "bpf")
    with lab_made() as made:
        yield made


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A run-time folder for a swarm (``--run-dir``). The test fails if anything of such a swarm is left.

    Not pytest's tmp_path: the path of a UNIX socket must be shorter than 108 bytes.
    """
    folder = Path(tempfile.mkdtemp(prefix="slt-", dir="/tmp"))
    yield folder
    left = leftovers(folder)
    if not any(line.startswith("mount ") for line in left):
        shutil.rmtree(folder)
    assert not left, "left behind:\n" + "\n".join(left)
