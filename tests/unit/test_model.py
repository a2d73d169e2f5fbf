# SPDX-License-Identifier: Apache-2.0
"""The nouns (their numbers are compared with the headers that C reads), errors and affinity."""

import re
from dataclasses import fields
from itertools import product

import pytest
from support import ROOT

from pipeline.errors import ConfigError, InstanceError, LaunchError, PlanError, SwarmlineError
from pipeline.policy import affinity, model
from pipeline.policy.affinity import Hardware, affinity_weight
from pipeline.policy.model import (
    TRANSITIONS,
    Chain,
    Edge,
    Instance,
    LayerId,
    Side,
    Swarm,
    VmState,
    VMStatus,
)


def text_of(header: str) -> str:
    """A header of c/abi without its comments."""
    return re.sub(r"/\*.*?\*/", "", (ROOT / "c" / "abi" / header).read_text(), flags=re.DOTALL)


def constants(header: str, enum: str = "") -> dict[str, int]:
    """Name → value of an enum of a header; no name: of all its enums."""
    name = enum or r"\w*"
    bodies = re.findall(rf"\benum\s*{name}\s*\{{(.*?)\}}", text_of(header), re.DOTALL)
    assert bodies, f"no enum {enum} in {header}"
    return {
        name: int(value, 0) for body in bodies for name, value in re.findall(r"\b(SL_\w+)\s*=\s*(\w+)", body)
    }


def test_layers_are_those_of_the_abi() -> None:
    numbers = constants("base.h", "sl_layer_id")
    ours = {f"SL_LAYER_{layer.name}": layer.value for layer in LayerId}
    ours |= {"SL_LAYER_USER": model.LAYER_USER, "SL_LAYER_MAX": model.LAYER_MAX}
    assert ours == numbers


def test_states_are_those_of_the_abi() -> None:
    assert {f"SL_VM_{state.name}": state.value for state in VmState} == constants("base.h", "sl_vm_state")


def test_hardware_is_that_of_the_abi() -> None:
    ours = {f"SL_HARDWARE_{bit.name}": bit.value for bit in Hardware if bit}
    assert ours == constants("control.h", "sl_hardware")


def test_sides_are_those_of_the_abi() -> None:
    assert {f"SL_{side.name}": side.value for side in Side} == constants("edge.h", "sl_side")


@pytest.mark.parametrize(
    ("ours", "header", "name"),
    [
        ("VM_MAX", "base.h", "SL_VM_MAX"),
        ("VM_MANAGER", "base.h", "SL_VM_MANAGER"),
        ("SERVICE_MAX", "base.h", "SL_SERVICE_MAX"),
        ("EDGES_MAX", "base.h", "SL_EDGES_MAX"),
        ("NAME_LEN", "base.h", "SL_NAME_LEN"),
        ("SIDE_MAX", "edge.h", "SL_SIDE_MAX"),
        ("HEADERS_MAX", "http.h", "SL_HTTP_FIELDS_MAX"),
    ],
)
def test_limits_are_those_of_the_abi(ours: str, header: str, name: str) -> None:
    assert getattr(model, ours) == constants(header)[name]


def test_addresses_of_a_service_fit_its_seat() -> None:
    assert f"addr[{model.ADDRESSES_MAX}][16]" in text_of("control.h")


def test_vm_status_is_that_of_the_abi() -> None:
    struct = re.search(r"struct sl_vm_status \{(.*?)\n\};", text_of("control.h"), re.DOTALL)
    assert struct
    added = {"allowance"}       # by the manager
    assert {field.name for field in fields(VMStatus)} - added <= set(re.findall(r"(\w+)(?:\[\w+\])?;", struct[1]))


@pytest.mark.parametrize(("old", "new"), list(product(VmState, VmState)))
def test_life_cycle(old: VmState, new: VmState) -> None:
    """As c/abi/base.h draws it: one step ahead up to GONE, FAILED from any, nothing out of GONE or FAILED, and back to
    BOOTING for another layer.
    """
    again = new is VmState.BOOTING and old in (VmState.READY, VmState.DRAINING)
    legal = again or (old < VmState.GONE and (new == old + 1 or new is VmState.FAILED))
    assert (new in TRANSITIONS[old]) == legal
    instance = Instance(7, (LayerId.TLS,), state=old)
    if legal:
        assert instance.to(new).state is new
    else:
        with pytest.raises(PlanError, match="tls instance 7 cannot become"):
            instance.to(new)


def test_drained_needs_its_own_word() -> None:
    instance = Instance(7, (LayerId.TLS,), state=VmState.DRAINING)
    assert not instance.drained
    old_news = VMStatus(7, (LayerId.TLS,), VmState.ACTIVE)
    assert not Instance(7, (LayerId.TLS,), status=old_news).drained
    busy = VMStatus(7, (LayerId.TLS,), VmState.DRAINING, active_flows=1)
    assert not Instance(7, (LayerId.TLS,), status=busy).drained
    assert Instance(7, (LayerId.TLS,), status=VMStatus(7, (LayerId.TLS,), VmState.DRAINING)).drained


def test_unfinished_is_who_drains_with_flows() -> None:
    status = VMStatus(7, (LayerId.TLS,), VmState.DRAINING, active_flows=3)
    assert Instance(7, (LayerId.TLS,), state=VmState.DRAINING, status=status).unfinished == 3
    assert Instance(7, (LayerId.TLS,), state=VmState.ACTIVE, status=status).unfinished == 0
    assert Instance(7, (LayerId.TLS,), state=VmState.DRAINING).unfinished == 0


def test_edge() -> None:
    edge = Edge(LayerId.TCP, LayerId.TLS, 2, 3)
    assert (edge.name, edge.id) == ("tcp-tls", 0x102)
    assert edge.side((LayerId.TCP,)) is Side.FRONT
    assert edge.side((LayerId.TLS, LayerId.HTTP)) is Side.BACK
    assert edge.side((LayerId.TCP, LayerId.TLS)) is None
    assert edge.side((LayerId.APP,)) is None
    assert (edge.cap(Side.FRONT), edge.cap(Side.BACK)) == (2, 3)


def test_chain() -> None:
    chain = Chain((LayerId.TCP, LayerId.TLS, LayerId.HTTP, LayerId.APP))
    assert str(chain) == "tcp → tls → http → app"
    assert chain.pairs()[0] == (LayerId.TCP, LayerId.TLS)
    assert chain.problem() == ""
    assert Chain(()).problem() == "ends with nothing, allowed: app"
    assert "quic cannot stand first" in Chain((LayerId.QUIC, LayerId.APP)).problem()


def test_swarm_finds() -> None:
    swarm = Swarm(instances=(Instance(1, (LayerId.TCP,)), Instance(2, (LayerId.TLS,), state=VmState.ACTIVE)))
    assert swarm.instance(2) == swarm.instances[1]
    assert swarm.instance(3) is None
    assert swarm.pool(LayerId.TLS, VmState.READY) == ()
    assert swarm.pool(LayerId.TLS) == swarm.instances[1:]


# ---- affinity


def test_hardware_has_names() -> None:
    assert affinity.names(Hardware.AES_NI | Hardware.QAT | 1 << 40) == ("aes-ni", "qat", "bit-40")
    assert affinity.from_names(("vaes", "qat")) == Hardware.VAES | Hardware.QAT
    assert affinity.from_names(affinity.names(sum(Hardware))) == sum(Hardware)


def test_crypto_is_worth_something_to_tls_only() -> None:
    weights = [affinity_weight(LayerId.TLS, h) for h in (0, Hardware.AES_NI, Hardware.VAES, Hardware.QAT)]
    assert weights == sorted(set(weights))
    assert weights[0] == affinity.PLAIN
    assert affinity_weight(LayerId.TLS, Hardware.QAT | Hardware.AES_NI) == weights[-1]
    assert affinity_weight(LayerId.APP, Hardware.QAT) == affinity.PLAIN


# ---- errors


def test_errors_say_one_line() -> None:
    error = LaunchError(
        "tls instance 3 did not start",
        argv=["/bin/x", "a b"],
        exit_status=-9,
        vm_id=3,
        log_lines=["first", "no memory\n"],
        hint="free some",
    )
    assert str(error) == "tls instance 3 did not start (signal 9); it said last: no memory"
    assert error.explain().endswith(": free some")
    assert error.details().splitlines()[0] == "$ /bin/x 'a b'"
    assert isinstance(error, InstanceError)
    assert str(SwarmlineError("two\nlines")) == "two lines"
    assert ConfigError("is wrong", file="f", line=3, key="a.b").explain() == "f:3: a.b: is wrong"


def subclasses(cls: type[SwarmlineError]) -> set[type[SwarmlineError]]:
    return {cls}.union(*(subclasses(sub) for sub in cls.__subclasses__()))


def test_error_tree_is_as_drawn() -> None:
    drawing = (ROOT / "pipeline" / "errors.py").read_text().split('"""')[1]
    drawn = dict(re.findall(r"([A-Z]\w+) +(?:exit )?(\d+)?", drawing.split("``str")[0].split("::", 1)[1]))
    for cls in subclasses(SwarmlineError):
        if cls.__name__.startswith("_"):
            continue        # a module's own, never seen outside of it
        assert cls.__name__ in drawn
        number = next(drawn[c.__name__] for c in cls.__mro__ if drawn[c.__name__])
        assert int(number) == cls.exit_code
