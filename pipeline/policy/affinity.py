# SPDX-License-Identifier: Apache-2.0
"""hardware_affinity: what an instance's CPUs and devices are good at, and what that is worth to a layer.

The bits (enum sl_hardware of c/abi/control.h) travel in VMStatus and are shown by name. What a tls instance has
measured counts in their place: cards are known that lose to vector instructions.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntFlag
from math import sqrt
from typing import TypeGuard

from pipeline.policy.model import Crypto, LayerId, VMStatus

PLAIN = 100   # worth, in percent, of an instance without anything special
FASTEST = 400   # worth of the fastest of those that have measured
ALIKE = 0.75    # so much of the fastest one's speed counts as all of it: measurements differ by as much
SLOWEST = 0.125   # no less is believed: what one says of itself must not take everything from the others
SEALED = (256, 1400, 16384)   # bytes of the records that Crypto.seal_mbps is of


class Hardware(IntFlag):
    """Bits of ``hardware_affinity`` (enum sl_hardware)."""

    NONE = 0
    AES_NI = 1 << 0      # x86 AES instructions
    VAES = 1 << 1        # their vector form
    SHA_NI = 1 << 2      # x86 SHA instructions
    AVX512 = 1 << 3
    ARM_CE = 1 << 4      # ARMv8 crypto extensions
    GFNI = 1 << 5        # x86 Galois field instructions
    QAT = 1 << 16        # Intel QuickAssist function
    CRYPTO = 1 << 17     # another crypto accelerator, by virtio-crypto or vfio
    NIC_VF = 1 << 18     # an own virtual function of the NIC


ACCELERATORS = Hardware.QAT | Hardware.CRYPTO     # what a layer gets by wanting "crypto"

_NAMES = {
    Hardware.AES_NI: "aes-ni", Hardware.VAES: "vaes", Hardware.SHA_NI: "sha-ni", Hardware.AVX512: "avx512",
    Hardware.ARM_CE: "arm-ce", Hardware.GFNI: "gfni", Hardware.QAT: "qat", Hardware.CRYPTO: "crypto",
    Hardware.NIC_VF: "nic-vf",
}
_BITS = {name: bit for bit, name in _NAMES.items()}

# Worth of one piece of hardware to a layer, in percent. These order the instances of a layer (an accelerator
# before vector code before scalar code before none); they are not measured speed-ups.
_WORTH: dict[LayerId, dict[Hardware, int]] = {
    LayerId.TLS: {Hardware.QAT: 400, Hardware.CRYPTO: 400, Hardware.VAES: 300, Hardware.AES_NI: 200,
                  Hardware.ARM_CE: 200},
    LayerId.TCP: {Hardware.NIC_VF: 150},
}


def names(hardware: int) -> tuple[str, ...]:
    """Names of the bits that are set, lowest bit first; a bit nobody knows is shown as ``bit-N``."""
    bits = (1 << n for n in range(hardware.bit_length()) if hardware >> n & 1)
    return tuple(_NAMES.get(Hardware(bit), f"bit-{bit.bit_length() - 1}") for bit in bits)


def from_names(words: Iterable[str]) -> Hardware:
    """The bits of these names. Raises KeyError for a word that is none."""
    bits = Hardware.NONE
    for word in words:
        bits |= _BITS[word]
    return bits


def affinity_weight(layer: LayerId, hardware: int) -> int:
    """How well this hardware suits the layer, in percent, at least PLAIN. Only the best piece counts."""
    worth = _WORTH.get(layer, {})
    return max((percent for bit, percent in worth.items() if hardware & bit), default=PLAIN)


def worth(layer: LayerId, status: VMStatus, pool: Iterable[VMStatus]) -> int:
    """What this instance is worth to the layer, in percent: by what it has measured, beside those of the pool; by its
    hardware if it has not measured.
    """
    if layer is not LayerId.TLS or not _measured(status.crypto):
        return affinity_weight(layer, status.hardware_affinity)
    return round(FASTEST * crypto_speed(status.crypto, [s.crypto for s in pool if _measured(s.crypto)]))


def crypto_speed(own: Crypto, pool: Iterable[Crypto]) -> float:
    """How fast this is, 1 being the fastest of the pool. Handshakes and records count the same (the mean is the
    geometric one), as nobody knows what clients will want; of records, the time that one of each size takes.
    """
    everybody = (own, *pool)
    handshakes = own.handshakes / max(c.handshakes for c in everybody)
    records = min(_records_ns(c) for c in everybody) / _records_ns(own)
    speed = sqrt(handshakes * records)
    return 1.0 if speed >= ALIKE else max(speed, SLOWEST)


def _measured(crypto: Crypto | None) -> TypeGuard[Crypto]:
    return crypto is not None and crypto.handshakes > 0 and len(crypto.seal_mbps) == len(SEALED) and all(
        crypto.seal_mbps)


def _records_ns(crypto: Crypto) -> float:
    return sum(size * 1000 / mbps for size, mbps in zip(SEALED, crypto.seal_mbps, strict=True))
