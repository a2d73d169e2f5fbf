# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

RUN_DIR = Path("/run/swarmline")

RunDir = Annotated[Path, typer.Option("--run-dir", readable=False, envvar="SWARMLINE_RUN_DIR",
                                      help="Run-time folder of the swarm.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(value: Any) -> None:
    """For machines."""
    print(json.dumps(value, indent=2))
