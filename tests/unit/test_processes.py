# SPDX-License-Identifier: Apache-2.0
"""Finding and ending the processes of a run-time folder, and nothing else."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import HostError
from pipeline.host import processes
from pipeline.host.processes import Process

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that sleeps and has these words in its argv."""
    made = []

    def sleeper(*words: str, code: str = "") -> subprocess.Popen[bytes]:
        script = f"{code}\nprint('up', flush=True)\nimport time; time.sleep(1000)"
        process = subprocess.Popen([sys.executable, "-P", "-c", script, *words], stdout=subprocess.PIPE)
        made.append(process)
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        return process

    yield sleeper
    for process in made:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def test_identity(start: Start) -> None:
    child = start("one", "two words")
    process = Process.of(child.pid)
    assert process
    assert process.argv[-2:] == ("one", "two words")
    assert process.alive
    impostor = Process(child.pid, process.start_time + 1)
    assert not impostor.alive
    assert not impostor.kill()
    assert child.poll() is None
    assert process.kill()
    asyncio.run(asyncio.wait_for(process.wait(), 10))
    assert not process.alive                               # a zombie is no process
    assert Process.of(child.pid) is None
    child.wait()
    assert not process.kill()
    assert process.open() is None


def test_name_with_brackets(start: Start) -> None:
    """The second field of /proc/PID/stat is the program's own choice."""
    name = "import ctypes; ctypes.CDLL(None).prctl(15, b') R 1 1 (', 0, 0, 0)"
    plain, tricky = Process.of(start().pid), Process.of(start(code=name).pid)
    assert plain
    assert tricky
    assert 0 <= tricky.start_time - plain.start_time < 1000
    assert tricky.alive


def test_wait_is_woken(start: Start) -> None:
    child = start()

    async def run() -> None:
        process = Process.of(child.pid)
        assert process
        waiting = asyncio.create_task(process.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        process.kill(signal.SIGTERM)
        await asyncio.wait_for(waiting, 10)

    asyncio.run(run())
    assert child.wait() == -signal.SIGTERM


def test_find_wants_the_exact_word(start: Start, tmp_path: Path) -> None:
    word = f"--run-dir={tmp_path}"
    wanted = start(word)
    start(f"{word}2")
    start(f"{word}/below")
    start(str(tmp_path))
    start(f"x{word}")
    assert [p.pid for p in processes.find(tmp_path)] == [wanted.pid]
    assert [p.pid for p in processes.find(tmp_path / "x" / "..")] == [wanted.pid]


def test_killing_spares_the_caller_and_strangers(start: Start, tmp_path: Path) -> None:
    """``swarmline down --run-dir=DIR`` carries the word itself, as do shells and tools that it was called from."""
    word = f"--run-dir={tmp_path}"
    stranger, *members = start("--run-dir=/elsewhere"), start(word), start(word)
    script = ("import sys; from pathlib import Path; from pipeline.host import processes\n"
              f"print(len(processes.kill_all(Path({str(tmp_path)!r}))))")
    done = subprocess.run(["/bin/sh", "-c", '"$@"; exit $?', word, sys.executable, "-P", "-c", script, word],
                          capture_output=True, check=True, timeout=30)
    assert done.stdout == b"2\n"
    assert [member.wait() for member in members] == [-9, -9]
    assert stranger.poll() is None
    assert processes.kill_all(tmp_path) == []


def test_a_slow_look_is_not_a_refusal_to_die(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a starved machine it takes longer to find them than they may take to die."""
    member, look, times = start(f"--run-dir={tmp_path}"), processes.find, []

    def slow(run_dir: Path) -> list[Process]:
        if not times:
            time.sleep(1.1)
        times.append(time.monotonic())
        return look(run_dir)

    monkeypatch.setattr(processes, "find", slow)
    assert [process.pid for process in processes.kill_all(tmp_path, timeout=1)] == [member.pid]
    assert member.wait() == -9


def test_cleaning_up_removes_only_what_swarms_make(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "ivshmem").mkdir(parents=True)
    (run_dir / "ivshmem" / "1.sock").touch()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (run_dir / "log").symlink_to(tmp_path / "precious")
    for name in ("holder.sock", "manager.log", "state.json", "state.json.new", "lock", "letter.txt"):
        (run_dir / name).touch()
    processes.clean_up(run_dir)
    assert [path.name for path in run_dir.iterdir()] == ["letter.txt"]
    assert (tmp_path / "precious" / "file").exists()
    (run_dir / "letter.txt").unlink()
    processes.clean_up(run_dir)
    assert not run_dir.exists()
    processes.clean_up(run_dir)


@pytest.mark.root
def test_cleaning_up_unmounts(tmp_path: Path) -> None:
    run_dir = tmp_path / "run dir"
    place = run_dir / "bpf"
    place.mkdir(parents=True)
    for _ in range(2):                                     # one over the other, as after a crash
        subprocess.run(["mount", "-t", "tmpfs", "slt", str(place)], check=True)
    (place / "pin").touch()
    assert processes.unmount_below(tmp_path / "run") == []
    processes.clean_up(run_dir)
    assert not run_dir.exists()


def test_programs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "swarmline-test-tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    with pytest.raises(HostError, match="not installed"):
        processes.program(tool.name)
    monkeypatch.setenv("SWARMLINE_BIN", str(tmp_path))
    assert processes.program(tool.name) == tool


def test_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert processes.log_tail(log) == []
    log.write_bytes(b"x" * 100_000 + b"\nlast but one\n\xff\n\n\n")
    assert processes.log_tail(log, 2) == ["last but one", "\N{REPLACEMENT CHARACTER}"]


def test_no_process_of_a_pid_that_is_none() -> None:
    assert Process.of(4_194_304) is None                   # above the kernel's highest
    assert Process.of(os.getpid())
