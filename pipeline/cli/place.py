# SPDX-License-Identifier: Apache-2.0
"""`swarmline place`: where a swarm would go on a machine, and why."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import preflight
from pipeline.cli.hardware import Sysfs, machine_at
from pipeline.cli.options import Json, print_json
from pipeline.host.hardware import SYSFS
from pipeline.host.placer import this_machine
from pipeline.host.wishes import wishes
from pipeline.policy.placement import place as placed

ConfigFile = Annotated[Path, typer.Argument(help="Config file, for example examples/https.toml.")]


def place(file: ConfigFile, sysfs: Sysfs = SYSFS, as_json: Json = False,
          explain: Annotated[bool, typer.Option("--explain", help="Say why.")] = False) -> None:
    """Show the cores, NUMA nodes and accelerators that the parts of a swarm would get. Nothing is changed.

    Example: swarmline place --explain examples/https.toml
    """
    machine = this_machine() if sysfs == SYSFS else machine_at(sysfs)
    placement = placed(machine, wishes(preflight.config(file)))
    if as_json:
        print_json(asdict(placement))
        return
    for line in placement.lines(explain=explain):
        print(line)


def register(cli: typer.Typer) -> None:
    cli.command()(place)
