# SPDX-License-Identifier: Apache-2.0
"""hardware_affinity: what an instance's CPUs and devices are good at, and what that is worth to a layer.

The bits (enum sl_hardware of c/abi/control.h) travel in VMStatus and are shown by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntFlag

from pipeline.policy.model import LayerId

PLAIN = 100   # worth, in percent, of an instance without anything special


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
