# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the system tests: a lab and a swarm for each module, and the swarm's logs when a test fails."""

from collections.abc import Generator, Iterator

import pytest
from support.lab import Lab, lab_made
from support.needs import require

pytest.register_assert_rewrite("system.swarm_rig", "system.clients")

from system import swarm_rig  # noqa: E402
from system.swarm_rig import Swarm, swarm_made  # noqa: E402


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows what the swarm's processes said last."""
    report = yield
    if report.failed:
        for swarm in swarm_rig.LIVE:
            report.sections.append((f"logs of {swarm.run_dir}", swarm.logs()))
    return report


@pytest.fixture(scope="module")
def module_lab() -> Iterator[Lab]:
    """One lab for all tests of a module."""
    require("netns", "bpf")
    with lab_made() as lab:
        yield lab


@pytest.fixture(scope="module")
def swarm(module_lab: Lab) -> Iterator[Swarm]:
    """One swarm for all tests of a module, as most need it. A module that needs another has its own."""
    with swarm_made(module_lab) as made:
        yield made
