# SPDX-License-Identifier: Apache-2.0
"""The classifier in user space gives the verdicts of the classifier in the kernel: ``equal.c`` compares them."""

import os
import shlex
import struct
import subprocess
from pathlib import Path

import pytest
from bpf.bench import Bench
from bpf.packets import ROWS
from pipeline._native import ffi
from support import ROOT

pytestmark = pytest.mark.bpf

MUTATIONS = int(os.environ.get("SWARMLINE_MUTATIONS", "1000000"))
SEED = 20
SOURCES = ("tests/bpf/equal.c", "c/classifier/maps.c", "c/classifier/program.c", "ebpf/loader.c")
FLAGS = shlex.split("-std=c11 -D_GNU_SOURCE -O2 -g -Wall -Wextra -Werror -Wno-missing-field-initializers")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the comparing program, once as it is and once with sanitizers, and the frames of the table."""
    folder = tmp_path_factory.mktemp("equal")
    for name, options in (("equal", ()), ("sanitized", SANITIZED)):
        command = ["gcc", *FLAGS, *options, f"-I{ROOT}/c", f"-I{ROOT}", "-o", str(folder / name)]
        subprocess.run([*command, *(str(ROOT / source) for source in SOURCES), "-lbpf"], check=True)
    frames = b"".join(struct.pack("=I", len(row.frame)) + row.frame for row in ROWS)
    (folder / "frames").write_bytes(frames)
    return folder


@pytest.mark.parametrize(("program", "mutations"), [("equal", MUTATIONS // 5), ("sanitized", MUTATIONS)])
def test_same_verdicts_in_user_space(bench: Bench, compared: Path, program: str, mutations: int) -> None:
    """Each frame of the table, then mutated ones; under the sanitizers each ends where its memory does."""
    prog = bench.classifier._prog_fd
    command = [str(compared / program), str(bench.classifier.root), str(prog), str(compared / "frames")]
    done = subprocess.run(
        [*command, str(mutations), str(SEED)], capture_output=True, text=True, pass_fds=(prog,), check=False
    )
    bench.recount()
    assert done.returncode == 0, f"seed {SEED}: {done.stdout}{done.stderr[-4000:]}"
    names = [name for name, _ in ffi.typeof("struct sl_counters").fields]
    verdicts = dict(zip(names, map(int, done.stdout.split()), strict=True))
    assert sum(verdicts.values()) == mutations + 2 * len(ROWS)
    seldom = {name for name, count in verdicts.items() if count < 100}
    assert seldom <= {"drop_no_socket", "drop_no_headroom"}, verdicts
