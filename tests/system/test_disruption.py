# SPDX-License-Identifier: Apache-2.0
"""The disruption benchmark, short: one or two events of each kind under load, and the checker's verdict.

`make bench-disruption` does the same a hundred times, and to other servers too. Here an instance is killed young, so
that nobody waits.
"""

from pathlib import Path

import pytest
from bench.disruption.run import Options, Result, run
from support.lab import unique_name

COUNTS = {
    "scale": 6,
    "drain": 2,
    "reload": 1,
    "kill-manager": 1,
    "dead-manager": 1,
    "kill-router": 1,
    "kill-app": 2,
    "kill-http": 1,
    "kill-tls": 1,
    "kill-tcp": 1,
}


@pytest.mark.root
@pytest.mark.netns
@pytest.mark.bpf
@pytest.mark.timeout(240)
def test_nothing_is_lost_but_what_may_be(run_dir: Path) -> None:
    results: list[Result] = []
    run(
        Options(
            unique_name(),
            run_dir,
            COUNTS,
            seconds=0.5,
            peers=(),
            drain=5.0,
            age=0.0,
            clients={"keep": 4, "new": 2, "download": 2, "echo": 2},
        ),
        results.append,
    )
    run_dir.mkdir(exist_ok=True)  # `down` removed it; the fixture looks into it
    assert {r.kind for r in results} == set(COUNTS)
    for result in results:
        tally = result.tally
        assert tally is not None, result.why
        assert tally.events == COUNTS[result.kind]
        assert tally.requests > 0, f"{result.kind}: nothing was asked"
        whys = [e.fields["why"] for e in result.events if "why" in e.fields]
        assert tally.good, "\n".join([f"{result.kind}: {tally.kinds}", *tally.samples, *whys])
