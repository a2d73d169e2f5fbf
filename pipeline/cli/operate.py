# SPDX-License-Identifier: Apache-2.0
"""Commands that change a running swarm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import preflight
from pipeline.cli.client import call
from pipeline.cli.options import RUN_DIR, Json, RunDir, print_json
from pipeline.errors import ApiError


def scale(layers: Annotated[list[str], typer.Argument(metavar="LAYER=N...", help="for example app=4 tls=3")],
          run_dir: RunDir = RUN_DIR, as_json: Json = False) -> None:
    """Set the number of instances of a layer.

    New ones get flows when they are ready; those that go finish theirs first.

    Example: swarmline scale app=4
    """
    done = []
    for word in layers:
        layer, _, number = word.partition("=")
        if not number.isdigit():
            raise ApiError(f"{word!r} is not LAYER=N", hint="for example `swarmline scale app=4`")
        done += call(run_dir, "POST", "/v1/scale", {"layer": layer, "instances": int(number)})["plan"]
    _print_plan(done, as_json)


def drain(vm_id: Annotated[int, typer.Argument(metavar="VMID", help="as in `swarmline status`")],
          force: Annotated[bool, typer.Option("--force", help="Even if its layer then has too few instances.")] = False,
          run_dir: RunDir = RUN_DIR, as_json: Json = False) -> None:
    """Let an instance finish its flows, then end it. Another takes its place.

    Example: swarmline drain 7
    """
    _print_plan(call(run_dir, "POST", "/v1/drain", {"vm_id": vm_id, "force": force})["plan"], as_json)


def assign(vm_id: Annotated[int, typer.Argument(metavar="VMID", help="as in `swarmline status`; also a warm one")],
           layer: Annotated[str, typer.Argument(metavar="LAYER", help="what it is to become")],
           force: Annotated[bool, typer.Option("--force", help="Even if its layer then has too few.")] = False,
           run_dir: RunDir = RUN_DIR, as_json: Json = False) -> None:
    """Give a running instance another layer: it finishes its flows, detaches its edges and attaches the others.

    The number of instances that its old layer should have goes down by one, that of the new one up.
    What broke into an instance comes along: do not move one that you do not trust towards the keys (tls).

    Example: swarmline assign 7 http
    """
    body = {"vm_id": vm_id, "layer": layer, "force": force}
    _print_plan(call(run_dir, "POST", "/v1/assign", body)["plan"], as_json)


def reload(file: Annotated[Path | None, typer.Argument(help="Config file; default: the one used last.")] = None,
           dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")] = False,
           run_dir: RunDir = RUN_DIR, as_json: Json = False) -> None:
    """Apply a changed config file. It is checked first; instances are replaced without disturbing a request.

    Example: swarmline reload --dry-run
    """
    if file is not None:
        preflight.config(file)
    body = {"file": str(file.absolute()) if file else None, "dry_run": dry_run}
    _print_plan(call(run_dir, "POST", "/v1/reload", body)["plan"], as_json)


def _print_plan(actions: list[str], as_json: bool) -> None:
    if as_json:
        print_json({"plan": actions})
    else:
        print("\n".join(actions) or "nothing to do")


def register(cli: typer.Typer) -> None:
    cli.command()(scale)
    cli.command()(drain)
    cli.command()(assign)
    cli.command()(reload)
