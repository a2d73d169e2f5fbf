# SPDX-License-Identifier: Apache-2.0
"""An image whose guests take a device of QEMU's for an accelerator (guest_card.c), and what a swarm makes of one."""

import subprocess
from pathlib import Path

from support import ROOT
from system.swarm_rig import Swarm, eventually
from vm.fakes import fake_with, init_of

from pipeline.host import cpio
from pipeline.host.images import Image
from pipeline.policy.affinity import FASTEST, crypto_speed
from pipeline.policy.model import Crypto
from pipeline.policy.routing import CAPACITY_STEPS

EDU, VIRTIO = "0x1234", "0x1af4"       # vendors
# the guest's first program: AES-NI and PCLMULQDQ are taken away from OpenSSL
FIRST = """
#include <stdlib.h>
#include <unistd.h>
int main(void)
{
	setenv("OPENSSL_ia32cap", "~0x200000200000000", 1);
	setenv("LD_PRELOAD", "/card.so", 1);
	return execl("/instance", "/instance", NULL);
}
"""


def built(source: str | Path, to: Path, *words: str) -> bytes:
    """What gcc makes of C."""
    text = source if isinstance(source, str) else source.read_text()
    argv = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-x", "c", "-", "-x", "none", "-o", str(to)]
    subprocess.run([*argv, *words], input=text, text=True, check=True)
    return to.read_bytes()


def card_image(crypto_image: Image, folder: Path, vendor: str = EDU) -> Path:
    """Whatever is of this vendor is the card."""
    flags = subprocess.run(["pkg-config", "--cflags", "libdpdk"], capture_output=True, text=True, check=True).stdout
    card = built(ROOT / "tests/vm/guest_card.c", folder / "card.so", f'-DCARD_VENDOR="{vendor}"', "-shared", "-fPIC",
                 *flags.split(), "-l:librte_bus_vdev.so.23", "-l:libIPSec_MB.so.1")
    return fake_with(crypto_image, folder / "image", {
        "init": cpio.regular(built(FIRST, folder / "init", "-static"), 0o755),
        "instance": cpio.regular(init_of(crypto_image), 0o755), "card.so": cpio.regular(card, 0o755)})


def kind_of(swarm: Swarm, vm_id: int, kind: str, timeout: float = 10.0) -> Crypto:
    """What the instance has measured, once it works with that."""
    def told() -> Crypto | None:
        (found,) = (i["crypto"] for i in swarm.instances("tls") if i["vm_id"] == vm_id)
        return Crypto(**found) if found["kind"] == kind else None

    return eventually(told, f"instance {vm_id} works with {kind}", timeout)


def weights_follow(swarm: Swarm, timeout: float = 10.0) -> dict[int, int]:
    """The table's weights are those of what is measured, when the swarm is idle. A table stands until one of them is a
    quarter off, and a bit of load is an eighth.
    """
    def follow() -> dict[int, int] | None:
        measured = {i["vm_id"]: Crypto(**i["crypto"]) for i in swarm.instances("tls")}
        due = {one: FASTEST * CAPACITY_STEPS * crypto_speed(crypto, measured.values())
               for one, crypto in measured.items()}
        there = {row["vm_id"]: row["weight"] for row in swarm.status()["routing_table"]["layers"]["tls"]}
        return there if all(abs(there[one] - weight) <= 0.4 * weight for one, weight in due.items()) else None

    return eventually(follow, "weights as measured", timeout)
