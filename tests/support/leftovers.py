# SPDX-License-Identifier: Apache-2.0
"""What a swarm left behind. After ``down``, also a ``down`` that follows a crash, there must be nothing."""

import stat
from pathlib import Path

NETNS_DIR = Path("/run/netns")


def processes_of(run_dir: Path) -> dict[int, str]:
    """Processes that carry the run-time folder in their arguments, with their command lines."""
    found = {}
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = cmdline.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it ended meanwhile
        front_end = any(Path(word).name == "swarmline" for word in argv[:2])     # somebody's terminal, not the swarm
        if f"--run-dir={run_dir}" in argv and not front_end:
            found[int(cmdline.parent.name)] = " ".join(argv).strip()
    return found


def namespaces_of(prefix: str) -> list[str]:
    """Names of network namespaces that begin with prefix."""
    return sorted(path.name for path in NETNS_DIR.glob(f"{prefix}*")) if NETNS_DIR.is_dir() else []


def hugepages() -> tuple[int, int]:
    """The machine's hugepages: all that were asked for, and those of them that nobody uses."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    numbers = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("HugePages_")}
    total, free, promised, surplus = (numbers.get(f"HugePages_{name}", 0) for name in ("Total", "Free", "Rsvd", "Surp"))
    return total - surplus, free - promised


def hugepages_left(before: tuple[int, int], now: tuple[int, int]) -> int:
    """How many were added between two looks and are used by nobody; those of a swarm that runs beside are in use."""
    return max(0, min(now[0] - before[0], now[1] - before[1]))


def other_swarms(run_dir: Path = Path("/")) -> bool:
    """Whether somebody else on this machine runs one, and so changes the pool of hugepages."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(word.startswith("--run-dir=") and word != f"--run-dir={run_dir}" for word in argv):
            return True
    return False


def _mounts_below(folder: Path) -> list[str]:
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [point for point in points if Path(point).is_relative_to(folder)]


def _listening_below(folder: Path) -> list[str]:
    sockets = (line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines())
    return [fields[7] for fields in sockets if len(fields) == 8 and fields[7].startswith(f"{folder}/")]


def leftovers(run_dir: Path, netns_prefix: str = "") -> list[str]:
    """One line per process, namespace, mount, pin or socket that a swarm of ``run_dir`` left.

    ``netns_prefix`` names the namespaces that belong to it (empty: look for none).
    """
    found = [f"process {pid}: {argv}" for pid, argv in processes_of(run_dir).items()]
    if netns_prefix:
        found += [f"network namespace {name}" for name in namespaces_of(netns_prefix)]
    found += [f"mount {point}" for point in _mounts_below(run_dir)]
    found += [f"socket {path}, open" for path in _listening_below(run_dir)]
    if run_dir.is_dir():
        for path in sorted(run_dir.rglob("*")):
            if stat.S_ISSOCK(path.lstat().st_mode):
                found.append(f"socket {path}")
            elif (run_dir / "bpf") in path.parents and path.is_file():
                found.append(f"pin {path}")
    return found
