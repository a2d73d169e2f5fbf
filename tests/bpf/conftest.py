# SPDX-License-Identifier: Apache-2.0
"""A loaded classifier for tests; loading takes 100 ms, so one serves a whole file."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bpf.bench import Bench
from support.needs import require

from pipeline.host.classifier import Classifier, mount_pins, umount_pins


@pytest.fixture(scope="module")
def loaded() -> Iterator[Bench]:
    require("bpf")
    with tempfile.TemporaryDirectory(prefix="slt-") as folder:
        run_dir = Path(folder)
        classifier = Classifier.load(mount_pins(run_dir))
        try:
            bench = Bench(classifier)
            yield bench
            bench.unplug()
        finally:
            classifier.unpin()
            classifier.close()
            umount_pins(run_dir)


@pytest.fixture
def bench(loaded: Bench) -> Bench:
    """A bench as after ``reset``."""
    loaded.reset()
    return loaded
