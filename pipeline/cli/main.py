# SPDX-License-Identifier: Apache-2.0
"""`swarmline`: the command."""

from __future__ import annotations

import sys

import typer

from pipeline.cli import doctor, hardware, images, life, operate, place, show
from pipeline.errors import SwarmlineError

cli = typer.Typer(
    name="swarmline", no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    help="Runs a server's protocol stack as a swarm of VMs, one protocol layer per VM.")
for group in (life, show, operate, images, hardware, place, doctor):
    group.register(cli)


def app() -> None:
    """Runs a command. An error of ours is one line on standard error, and its exit status."""
    try:
        cli()
    except SwarmlineError as error:
        print(f"swarmline: {error.explain()}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
