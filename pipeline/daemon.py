# SPDX-License-Identifier: Apache-2.0
"""The manager as a process: `python -m pipeline.daemon`, started and supervised by the holder."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

import structlog

from pipeline.api import read_config, reload_file, serve_api
from pipeline.errors import SwarmlineError
from pipeline.host import keys
from pipeline.host.holder_client import HolderClient
from pipeline.manager import Manager
from pipeline.policy.config import Config, parse_config

log = structlog.get_logger()


async def serve(run_dir: Path, config: Config) -> None:
    """A manager with its API, until it is told to end. SIGHUP: reload; SIGTERM: end, and the swarm goes on without
    it.
    """
    manager = Manager(run_dir, config)
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        try:
            await reload_file(manager, Path(manager.config.file))
        except SwarmlineError as error:
            manager.events.note("reload-failed", error.explain())

    def hangup() -> None:
        task = asyncio.create_task(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGTERM, manager.ended.set)
    loop.add_signal_handler(signal.SIGHUP, hangup)
    async with serve_api(manager, run_dir / "api.sock"):
        await manager.run()


def configure_log() -> None:
    """One JSON object a line on standard error."""
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True),
                    structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr))


def _config(run_dir: Path, file: Path) -> Config:
    """The configuration that counts: the one a former manager applied last, whatever the file says now; else the
    file's.
    """
    with HolderClient(run_dir) as holder:
        note = holder.blob_get(keys.CONFIG)
        if note is None:
            note = {"file": str(file), "text": read_config(file)}
            holder.blob_put(keys.CONFIG, note)
    return parse_config(note["text"], note["file"])


def main() -> int:
    """Exit status 0 means that it ended on purpose: the holder does not start it again."""
    parser = argparse.ArgumentParser(description="The Swarm Manager of one swarm; see `swarmline up`.")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    configure_log()
    try:
        asyncio.run(serve(arguments.run_dir, _config(arguments.run_dir, arguments.config)))
    except SwarmlineError as error:
        log.error(error.explain())
        with HolderClient(arguments.run_dir) as holder:
            holder.blob_put(keys.MANAGER_ERROR, {"error": str(error), "hint": error.hint, "exit_code": error.exit_code})
    return 0


if __name__ == "__main__":
    sys.exit(main())
