# SPDX-License-Identifier: Apache-2.0
"""What host_swarm.py runs on the machine of ``host_rig``: a swarm that gets, uses and loses an accelerator."""

import json
from typing import Any

from support.lab import lab_made
from system.clients import Load, curl
from system.swarm_rig import INDEX, Swarm, eventually, swarm_prepared
from vm.cards import kind_of, weights_follow
from vm.host_side import CRYPTO, RUN_DIR, now, of

from pipeline.host import images
from pipeline.host.hardware import pci_inventory
from pipeline.host.vfio import RECORD
from pipeline.instances import kvm

PATIENCE = 60.0
SLOW = 290           # seconds: half of them are usual
ALL = (("tcp", 1), ("tls", 2), ("http", 1), ("app", 1))


def accelerator() -> list[str]:
    """What runs virtual machines here, and why not something better. A swarm would ask with less patience."""
    RUN_DIR.mkdir(parents=True, exist_ok=True)
    kvm.PATIENCE = PATIENCE
    choice = kvm.accelerator(images.load(images.default_folder(), images.CRYPTO))
    return [choice.accelerator.value, choice.why]


def closed_loop() -> dict[str, Any]:
    """The whole of it. What the swarm said is in the error, if there is one."""
    (card,) = (f.address for f in of(pci_inventory(), CRYPTO))
    with lab_made() as lab, swarm_prepared(lab, _changes(card)) as swarm:
        try:
            return _loop(swarm, card)
        except Exception as error:
            raise AssertionError(f"{error}{_said(swarm)}") from error


def _said(swarm: Swarm) -> str:
    """The ends of all logs, also of a swarm that did not come up."""
    files = sorted(file for place in ("run/log", "run.failed") for file in (swarm.folder / place).glob("*.log"))
    return "".join(f"\n--- {file.name}\n{file.read_text(errors='replace')[-2000:]}" for file in files)


def _changes(*allow: str) -> dict[str, Any]:
    layers: dict[str, Any] = {f"layer.{name}": {"instances": number} for name, number in ALL}
    layers["layer.tls"] |= {"driver": "qemu", "wants": "crypto"}
    return layers | {"hardware": {"allow": list(allow)}}


def _loop(swarm: Swarm, card: str) -> dict[str, Any]:
    found: dict[str, Any] = {"before": now(card).driver}
    swarm.up()
    print("up", flush=True)            # on the console, for whoever waits in vain
    _given_and_used(swarm, card, found)
    print(found, flush=True)
    _taken_away_under_load(swarm, card, found)
    print(found, flush=True)
    swarm.command("down")
    return found | {"left": swarm.left(), "after": now(card).driver, "record after": (swarm.run_dir / RECORD).exists()}


def _given_and_used(swarm: Swarm, card: str, found: dict[str, Any]) -> None:
    has = eventually(lambda: [i["vm_id"] for i in swarm.instances("tls") if i["crypto"]["kind"] == "device"],
                     "one has the card", PATIENCE)
    found["has"], found["bound"] = has, now(card).driver
    (found["noted"],) = json.loads((swarm.run_dir / RECORD).read_text())
    swarm.eventually_active("tls", 2, PATIENCE)
    found["weights with"] = _rows(swarm, weights_follow(swarm, PATIENCE), has[0])
    found["served"] = curl(swarm.lab.client, f"https://{swarm.lab.vip4}/") == INDEX


def _taken_away_under_load(swarm: Swarm, card: str, found: dict[str, Any]) -> None:
    (has,) = found["has"]
    with Load(swarm.lab, connections=4, method="GET") as load:
        load.goes_on(20, PATIENCE)
        swarm.configure(_changes())
        swarm.command("reload")
        without = kind_of(swarm, has, "software", PATIENCE)
        found["figures without"] = without.seal_mbps
        found["driver without"] = eventually(lambda: now(card).driver != "vfio-pci" and now(card).driver,
                                           "the host has it again", PATIENCE)
        load.goes_on(20, PATIENCE)
        swarm.configure(_changes(card))
        swarm.command("reload")
        again = eventually(lambda: [i["vm_id"] for i in swarm.instances("tls") if i["crypto"]["kind"] == "device"],
                           "one has the card again", PATIENCE)
        load.goes_on(20, PATIENCE)
    found["again"] = again
    found["answers"], found["failures"] = load.answers, load.failures
    found["reopened"] = load.reopened - load.connections
    found["events"] = swarm.events("accelerator")
    found["weights again"] = _rows(swarm, weights_follow(swarm, PATIENCE), again[0])


def _rows(swarm: Swarm, table: dict[int, int], has: int) -> dict[str, Any]:
    """Weights and figures of the one with the card, and of the other."""
    crypto = {i["vm_id"]: i["crypto"] for i in swarm.instances("tls")}
    (other,) = set(table) - {has}
    return {"card": table[has], "other": table[other], "card figures": crypto[has], "other figures": crypto[other]}
