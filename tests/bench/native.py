# SPDX-License-Identifier: Apache-2.0
"""Builds and runs the measuring programs of tests/bench/c."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import ROOT

from bench.harness import CannotMeasure, PeerMissing
from pipeline.errors import HugepageError
from pipeline.host import hugepages

BUILD = Path(os.environ.get("BUILD", "build"))
PROGRAMS = "tests/bench/c"
PRIORITY = 10
"""Measuring programs run before everything else on their core (round robin), or what runs beside is measured too."""


def build_dir() -> Path:
    return (BUILD if BUILD.is_absolute() else ROOT / BUILD) / "meson"


def built(program: str) -> Path:
    """The program, up to date."""
    folder = build_dir()
    if not (folder / "build.ninja").exists():
        raise CannotMeasure(f"{folder} is not a build folder; run `make bench`")
    target = f"{PROGRAMS}/{program}"
    done = subprocess.run(["ninja", "-C", str(folder), target], capture_output=True, text=True, check=False)
    if "unknown target" in done.stdout + done.stderr:
        raise PeerMissing(f"{program} was not built")
    if done.returncode:
        raise CannotMeasure(f"{program} does not build:\n{done.stdout}{done.stderr}")
    return folder / target


def first(argv: list[str]) -> list[str]:
    """The command before all other work of the machine, where that is allowed."""
    if os.geteuid() or not shutil.which("chrt"):
        return argv
    return ["chrt", "--rr", str(PRIORITY), *argv]


def measure(program: Path, *args: object) -> float:
    """The one number that the program prints."""
    if len(os.sched_getaffinity(0)) < 2:
        raise CannotMeasure("two cores are needed")
    argv = first([str(program), *map(str, args)])
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    try:
        return float(done.stdout.split()[0])
    except (IndexError, ValueError):
        raise CannotMeasure(f"{' '.join(argv)}: {done.stderr.strip() or 'no result'}") from None


@contextmanager
def hugepages_reserved(pages: int) -> Iterator[None]:
    """So many free hugepages; given back at the end. Where there are none, the programs warn and go on."""
    try:
        added = hugepages.reserve(pages)
    except (HugepageError, OSError):
        added = 0
    try:
        yield
    finally:
        hugepages.restore(added)
