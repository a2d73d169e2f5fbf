# SPDX-License-Identifier: Apache-2.0
"""Commands that begin and end a swarm."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import pages, preflight
from pipeline.cli.client import call
from pipeline.cli.options import RUN_DIR, Json, RunDir, print_json
from pipeline.errors import ApiError, ClassifierError, HolderError, NotRunning, SwarmlineError
from pipeline.host import cgroups, holder_client, keys, processes
from pipeline.host.classifier import Pins, pin_root, umount_pins
from pipeline.host.holder_client import HolderClient
from pipeline.host.vfio import Vfio

UP_TIMEOUT = 120.0


def up(file: Annotated[Path, typer.Argument(help="Config file, for example examples/https.toml.")],
       detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when every layer is active.")] = False,
       run_dir: RunDir = RUN_DIR, as_json: Json = False) -> None:
    """Start a swarm, and end it again with Ctrl-C unless detached. What is left of one that was killed is ended first.

    The logs of one that did not come up are kept beside RUN_DIR, in RUN_DIR.failed, until the next `up`.

    Example: swarmline up examples/https.toml --detach
    """
    config = preflight.config(file)
    preflight.rights()
    edges = preflight.machine(config)
    say: Callable[[str], None] = (lambda text: None) if as_json else (lambda text: print(text, flush=True))
    guests = preflight.guests(config)
    _clear_away(run_dir)
    needs = pages.needs(run_dir, config, edges, guests.pages if guests else 0)
    holder_client.start(run_dir)       # raises AlreadyRunning before anything is changed
    kept = run_dir.with_name(f"{run_dir.name}.failed")
    shutil.rmtree(kept, ignore_errors=True)
    try:
        _restore_hardware(run_dir)
        pages.reserve(run_dir, *needs, say)
        _start_manager(run_dir, file)
        _wait_until_up(run_dir, say)
    except BaseException as error:
        with suppress(OSError):
            (run_dir / "log").rename(kept)         # `down` would remove what explains the failure
        _take_down(run_dir)
        if isinstance(error, ApiError):
            text, hint = (words.replace(f"{run_dir}/log/", f"{kept}/") for words in (str(error), error.hint))
            raise ApiError(text, hint=hint, exit_code=error.exit_code) from None
        raise
    if as_json:
        print_json(call(run_dir, "GET", "/v1/status"))
    if not detach:
        _stay(run_dir, say)


def _clear_away(run_dir: Path) -> None:
    """What is left of a swarm that was killed here: processes that were spared or just being started, and the
    classifier, whose maps would be taken for the next swarm's.
    """
    if not run_dir.exists() and not processes.find(run_dir):
        return
    with holder_client.vacant(run_dir) as free:
        if not free:
            return
        processes.kill_all(run_dir)
        with suppress(ClassifierError), Pins(pin_root(run_dir)) as pins:
            pins.detach()       # done when it returns; a link whose pin goes is freed later
        umount_pins(run_dir)


def _start_manager(run_dir: Path, file: Path) -> None:
    (run_dir / "log").mkdir(mode=0o700, exist_ok=True)
    argv = [sys.executable, "-P", "-m", "pipeline.daemon", f"--run-dir={run_dir}", f"--config={file.absolute()}"]
    with HolderClient(run_dir) as holder:
        holder.manager_start(argv, run_dir / "log" / "manager.log")


def _wait_until_up(run_dir: Path, say: Callable[[str], None]) -> None:
    """Shows progress. Raises what the manager gave up with."""
    shown, deadline = 0, time.monotonic() + UP_TIMEOUT
    with HolderClient(run_dir) as holder:
        while time.monotonic() < deadline:
            state = holder.hello().manager.state    # asked first: what it gave up with is there before it ends
            if (failure := holder.blob_get(keys.MANAGER_ERROR)) is not None:
                raise ApiError(failure["error"], hint=failure["hint"], exit_code=failure["exit_code"])
            if state not in ("running", "waiting"):
                raise ApiError("the manager ended", hint=f"its log is {run_dir}/log/manager.log")
            try:
                for event in call(run_dir, "GET", f"/v1/events?since={shown}")["events"]:
                    shown = event["number"]
                    say(f"  {event['text']}")
                    if event["kind"] == "up":
                        return
            except (NotRunning, ApiError):
                pass        # its socket comes a moment after the process, and goes a moment before it
            time.sleep(0.02)
    raise ApiError(f"the swarm is not up after {UP_TIMEOUT:g} s", hint=f"its log is {run_dir}/log/manager.log")


def _stay(run_dir: Path, say: Callable[[str], None]) -> None:
    say("running; Ctrl-C ends it")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while processes.find(run_dir):
            time.sleep(0.5)
    except KeyboardInterrupt:
        say("going down")
        _take_down(run_dir)


def down(run_dir: RunDir = RUN_DIR, as_json: Json = False) -> None:
    """End the swarm and leave nothing behind, also after a crash of any part of it.

    Example: swarmline down
    """
    preflight.rights()
    there = run_dir.exists() or bool(processes.find(run_dir))
    killed = _take_down(run_dir)
    if not there:
        raise NotRunning(f"no swarm runs in {run_dir}")
    if as_json:
        print_json({"killed": killed})
    else:
        print("down")


def _take_down(run_dir: Path) -> list[int]:
    """First as the manager would, then whatever is left by force."""
    with suppress(SwarmlineError):      # no manager, or it failed at it: the rest does it all
        call(run_dir, "POST", "/v1/down", {})
    with suppress(HolderError), HolderClient(run_dir) as holder:
        holder.shutdown()
    killed = [process.pid for process in processes.kill_all(run_dir)]
    umount_pins(run_dir)
    pages.give_back(run_dir)
    _restore_hardware(run_dir)
    processes.clean_up(run_dir)
    cgroups.clean_up(run_dir)
    return killed


def _restore_hardware(run_dir: Path) -> None:
    """Devices that a swarm in this folder took from the host and never gave back: nobody holds them now."""
    for problem in Vfio(run_dir).restore():
        print(f"warning: {problem.explain()}; it is tried again at the next `up` or `down`", file=sys.stderr)


def register(cli: typer.Typer) -> None:
    cli.command()(up)
    cli.command()(down)


