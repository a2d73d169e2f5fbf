# SPDX-License-Identifier: Apache-2.0
"""The holder's life: events, supervision, what survives what."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.holder_rig import PATIENCE, Qemu, down, reap, same_file, until

from pipeline.errors import AlreadyRunning, HolderError
from pipeline.host import holder_client, processes
from pipeline.host.holder_client import HolderClient


def test_second_holder_is_refused(holder: HolderClient, run_dir: Path) -> None:
    with pytest.raises(AlreadyRunning):
        holder_client.start(run_dir)
    assert holder.hello().pid


def test_new_holder_after_a_killed_one(holder: HolderClient, run_dir: Path) -> None:
    old = holder.hello().pid
    holder.instance_add(1).close()
    os.kill(old, signal.SIGKILL)
    reap(old)
    with pytest.raises(HolderError):
        holder.hello()
    new = holder_client.start(run_dir)
    assert holder.hello().pid == new                       # the client connects again
    assert holder.instance_list() == []
    holder.shutdown()
    reap(new)


def test_holder_that_cannot_start(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises((HolderError, FileExistsError)):
        holder_client.start(blocked)


def test_shutdown_leaves_its_notes_for_down(run_dir: Path) -> None:
    pid = holder_client.start(run_dir)
    with HolderClient(run_dir) as client:
        client.instance_add(1).close()
        client.blob_put("x", 1)
        client.shutdown()
    reap(pid)
    assert sorted(path.name for path in run_dir.iterdir()) == ["holder.log", "ivshmem", "lock", "state.json"]
    assert list((run_dir / "ivshmem").iterdir()) == []


def events_of(holder: HolderClient, nb: int, cause: Callable[[], object], kind: str = "") -> list[dict[str, Any]]:
    """The first so many events of a kind after cause()."""

    async def gather() -> list[dict[str, Any]]:
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        stop = holder.subscribe(queue.put_nowait)
        got: list[dict[str, Any]] = []
        try:
            cause()
            async with asyncio.timeout(PATIENCE):
                while len(got) < nb:
                    event = await queue.get()
                    got += [event] if event["event"].startswith(kind) else []
        finally:
            stop()
        return got

    return asyncio.run(gather())


def test_events_of_instances(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    def come_and_go() -> None:
        connect(5).close()

    came, went = events_of(holder, 2, come_and_go)
    assert came == {"event": "instance.connected", "vm_id": 5, "why": ""}
    assert went["event"] == "instance.gone"
    assert went["vm_id"] == 5


def test_event_of_the_holders_own_death(holder: HolderClient) -> None:
    pid = holder.hello().pid
    assert events_of(holder, 1, lambda: os.kill(pid, signal.SIGKILL)) == [{"event": "holder.gone"}]


def test_killed_manager_is_started_again_and_finds_everything(holder: HolderClient, run_dir: Path,
                                                              connect: Callable[[int], Qemu]) -> None:
    qemu = connect(3)
    qemu.greeting()
    before = holder.instance_get(3)
    first = holder.manager_start(["/bin/sleep", "1000"], run_dir / "manager.log")
    (died,) = events_of(holder, 1, lambda: os.kill(first, signal.SIGKILL))
    assert died == {"event": "manager.exited", "pid": first, "status": -9, "state": "waiting"}
    until(lambda: holder.hello().manager.state == "running")
    manager = holder.hello().manager
    assert (manager.starts, manager.pid != first) == (2, True)
    after = holder.instance_get(3)
    assert after.facts.connected
    assert all(same_file(a, b) for a, b in ((before.control, after.control), (before.doorbell, after.doorbell),
                                            (before.manager, after.manager)))
    assert qemu.silent()                                   # the instance noticed nothing
    with pytest.raises(HolderError, match="already"):
        holder.manager_start(["/bin/true"], run_dir / "manager.log")
    holder.manager_stop()
    until(lambda: holder.hello().manager.state == "ended")
    before.close()
    after.close()


@pytest.mark.parametrize(("program", "state", "starts"), [("/bin/false", "failed", 5), ("/bin/true", "ended", 1)])
def test_manager_that_will_not_live(holder: HolderClient, run_dir: Path, program: str, state: str,
                                    starts: int) -> None:
    holder.manager_start([program], run_dir / "manager.log")
    until(lambda: holder.hello().manager.state == state)
    assert holder.hello().manager.starts == starts


def test_manager_does_not_inherit_descriptors(holder: HolderClient, run_dir: Path) -> None:
    holder.instance_add(1).close()
    log = run_dir / "manager.log"
    holder.manager_start(["/bin/ls", "/proc/self/fd"], log)
    until(lambda: holder.hello().manager.state == "ended")
    assert log.read_text().split() == ["0", "1", "2", "3"]      # 3 is ls's own


def test_orphans_are_reaped_and_remembered(holder: HolderClient, run_dir: Path) -> None:
    """What a manager leaves behind becomes the holder's: nobody stays a zombie, and how it ended is known."""
    argv = ["/bin/sh", "-c", "(sh -c 'exit 7' &); exec sleep 1000"]
    (event,) = events_of(holder, 1, lambda: holder.manager_start(argv, run_dir / "manager.log"), "process.exited")
    assert event["status"] == 7
    assert holder.process_exit(event["pid"]) == 7
    assert holder.process_exit(1) is None


def test_kill_of_everything_then_cleaning_up(run_dir: Path) -> None:
    """SIGKILL of the holder, with a manager and an orphan alive: the folder's name in argv is enough to find them."""
    pid = holder_client.start(run_dir)
    word = processes.run_dir_argument(run_dir)
    child = f"import time; print(1, flush=True); time.sleep(1000)  # {word}"
    with HolderClient(run_dir) as client:
        script = f"{sys.executable} -c '{child}' {word} & exec sleep 1000"
        client.manager_start(["/bin/sh", "-c", script, word], run_dir / "manager.log")
        client.blob_put("nr_hugepages", 5)
        until(lambda: (run_dir / "manager.log").read_text())
        client.instance_add(1).close()
        os.kill(pid, signal.SIGKILL)
        reap(pid)
        assert json.loads((run_dir / "state.json").read_text()) == {"nr_hugepages": 5}
        found = processes.find(run_dir)
        assert found
        killed = down(run_dir)
    assert {process.pid for process in found} <= {process.pid for process in killed}
    assert processes.find(run_dir) == []


def test_killing_everything_is_final(run_dir: Path) -> None:
    """The holder would start the manager again: it must die first."""
    pid = holder_client.start(run_dir)
    with HolderClient(run_dir) as client:
        word = processes.run_dir_argument(run_dir)
        client.manager_start(["/bin/sh", "-c", "while :; do sleep 1; done", word], run_dir / "manager.log")
    assert down(run_dir)[0].pid == pid
    reap(pid)
    assert processes.find(run_dir) == []


def test_imports_are_light() -> None:
    """The holder starts in some 40 ms because it imports nothing but the standard library's small parts."""
    code = "import sys, pipeline.host.holder; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    heavy = {"asyncio", "subprocess", "logging", "typing_extensions", "cffi", "pydantic", "pyroute2", "argparse",
             "pipeline._native", "pipeline.policy"}
    assert heavy & set(done.stdout.split()) == set()
