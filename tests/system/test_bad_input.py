# SPDX-License-Identifier: Apache-2.0
"""What an operator may get wrong: one clear line, an exit status of its own, and nothing half-started."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest
from support.lab import Lab, in_netns
from system.clients import curl, dial
from system.swarm_rig import INDEX, Swarm, certificate_made, swarm_made, swarm_prepared, unharmed

from pipeline.host.namespaces import run_in

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

CONFIG, HOST, API, RUNNING, NOT_RUNNING = 3, 5, 7, 8, 9  # exit statuses, as in pipeline.errors
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.fixture
def swarm(module_lab: Lab) -> Iterator[Swarm]:
    """Not started."""
    with swarm_prepared(module_lab) as made:
        yield made


def refused(swarm: Swarm, status: int, *words: str, lines: int = 1) -> None:
    """`up` ends with this exit status and one line for each problem; these hold all words. Nothing is there then."""
    done = swarm.command("up", str(swarm.config), "--detach", ok=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert swarm.left() == []
    assert done.stderr.count("\n") == lines and done.stderr.startswith("swarmline: "), done.stderr
    assert not [word for word in words if word not in done.stderr], done.stderr


# ---- the config file

# what stands in the right file, what in the wrong one, then: problems, the place, help
WRONG = {
    "unknown key": ("port = 443", "port = 443\nprot = 1", 1, "service[0].prot: unknown key", 'did you mean "port"?'),
    "no such table": ("[layer.tcp]", "[layer.tpc]", 1, "layer.tpc: unknown key", 'did you mean "tcp"?'),
    "missing key": ("port = 443", "", 1, "service[0].port: is missing", "1 to 65535"),
    "wrong type": ("port = 443", 'port = "https"', 1, "service[0].port", "1 to 65535"),
    "out of range": ("port = 443", "port = 70000", 1, "service[0].port", "1 to 65535"),
    "too many instances": ("[layer.app]", "[layer.app]\ninstances = 99", 1, "layer.app.instances", "1 to 64"),
    "no address": ('"10.77.0.10"', '"10.77.0.300"', 1, "service[0].address", "an IPv4 or IPv6 address"),
    "unknown layer": ('"tls", "http"', '"ssl", "http"', 1, "service[0].chain", "ssl"),
    "port given twice": ("port = 80", "port = 443", 2, "service[1].address", 'belongs to service "https" already'),
    "strange duration": ('"10s"', '"10 fortnights"', 1, "swarm.drain_timeout", '"500ms"'),
    "no interface": ('interface = "sl-nic0"\n', "", 1, "nic.interface: is missing", ""),
    "no certificate": ('self_signed = ["swarmline.test", "www.swarmline.test"]', "", 1, "layer.tls", "self_signed"),
    "not TOML": ("port = 443", "port = ", 1, "not valid TOML", ""),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_config(swarm: Swarm, name: str) -> None:
    right, wrong, lines, place, hint = WRONG[name]
    text = swarm.config.read_text()
    assert right in text
    swarm.config.write_text(text.replace(right, wrong, 1))
    refused(swarm, CONFIG, str(swarm.config), place, hint, lines=lines)


def test_wrong_config_names_the_line(swarm: Swarm) -> None:
    text = swarm.config.read_text().replace("port = 80", "port = 0")
    swarm.config.write_text(text)
    line = text[: text.index("port = 0")].count("\n") + 1
    refused(swarm, CONFIG, f"{swarm.config}:{line}: service[1].port: ")


def test_every_problem_is_told_at_once(swarm: Swarm) -> None:
    swarm.config.write_text(swarm.config.read_text().replace("port = ", "prot = ").replace('"app"]', '"apple"]'))
    done = swarm.command("up", str(swarm.config), "--detach", ok=False)
    assert done.returncode == CONFIG
    assert done.stderr.count(f"{swarm.config}:") == 6, done.stderr  # three for each service
    assert swarm.left() == []


def test_no_config_file(swarm: Swarm) -> None:
    swarm.config.unlink()
    refused(swarm, CONFIG, str(swarm.config), "No such file or directory")


def test_no_root_folder(swarm: Swarm) -> None:
    swarm.configure({"layer.app": {"root": "nowhere"}})
    refused(swarm, CONFIG, "layer.app.root", f"{swarm.folder}/nowhere is not a folder")


# ---- certificates


def with_certificate(swarm: Swarm, cert: str, key: str) -> None:
    certificate_made(swarm.folder, "a")
    certificate_made(swarm.folder, "b")
    (swarm.folder / "garbage").write_bytes(b"-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
    (swarm.folder / "empty").touch()
    swarm.configure({"layer.tls": {"self_signed": None, "certificates": [{"cert": cert, "key": key}]}})


@pytest.mark.parametrize("cert", ["nothing", "site"])
def test_certificate_that_can_not_be_read(swarm: Swarm, cert: str) -> None:
    with_certificate(swarm, cert, "a.key")
    refused(swarm, CONFIG, f"{swarm.config}: layer.tls.certificates: cannot read {swarm.folder}/{cert}")


@pytest.mark.parametrize(
    ("cert", "key"), [("garbage", "a.key"), ("empty", "a.key"), ("a.pem", "garbage"), ("a.pem", "b.key")]
)
def test_certificate_that_is_none(swarm: Swarm, cert: str, key: str) -> None:
    with_certificate(swarm, cert, key)
    refused(
        swarm, CONFIG, f"{swarm.config}: layer.tls.certificates: ", f"{swarm.folder}/{cert}", f"{swarm.folder}/{key}"
    )


# ---- the machine


def test_no_such_interface(swarm: Swarm) -> None:
    swarm.configure({"nic": {"interface": "sl-nic9"}})
    refused(swarm, HOST, "sl-nic9", swarm.lab.nic)


def test_no_such_namespace(swarm: Swarm) -> None:
    swarm.configure({"nic": {"netns": "nowhere"}})
    refused(swarm, HOST, "no network namespace 'nowhere'", "ip netns add")


def test_interface_is_down(swarm: Swarm) -> None:
    def link(state: str) -> None:
        subprocess.run(["ip", "-n", swarm.lab.host, "link", "set", "dev", swarm.lab.nic, state], check=True)

    link("down")
    try:
        refused(swarm, HOST, f"interface {swarm.lab.nic} is down", f"ip link set {swarm.lab.nic} up")
    finally:
        link("up")
        subprocess.run(
            ["ip", "-n", swarm.lab.host, "-6", "addr", "replace", "fd77::1/64", "dev", swarm.lab.nic, "nodad"],
            check=True,
        )


def test_interface_without_native_xdp(swarm: Swarm) -> None:
    def link(*words: str) -> None:
        subprocess.run(["ip", "-n", swarm.lab.host, "link", *words], check=True)

    link("add", "other0", "type", "bridge")
    try:
        link("set", "dev", "other0", "up")
        swarm.configure({"nic": {"interface": "other0"}})
        refused(swarm, HOST, "other0", "no native XDP")
    finally:
        link("del", "dev", "other0")


def test_port_in_use(swarm: Swarm) -> None:
    address = ["10.77.0.10/32", "dev", "lo"]
    subprocess.run(["ip", "-n", swarm.lab.host, "addr", "add", *address], check=True)
    try:
        with run_in(swarm.lab.host, lambda: socket.create_server(("", 443))):
            refused(swarm, HOST, "port 443 of 10.77.0.10 (service https) is in use")
    finally:
        subprocess.run(["ip", "-n", swarm.lab.host, "addr", "del", *address], check=True)


@pytest.mark.parametrize("command", ["up", "down"])
def test_without_rights(swarm: Swarm, command: str) -> None:
    words = [str(swarm.config)] if command == "up" else []
    done = subprocess.run(
        [*NOBODY, *swarm.argv(command, *words)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (HOST, "swarmline: this needs root: run it with sudo\n")
    assert swarm.left() == []


def test_status_of_nothing(swarm: Swarm) -> None:
    for words in (["status"], ["events"], ["scale", "app=2"], ["drain", "1"]):
        done = swarm.command(*words, ok=False)
        assert (done.returncode, done.stderr) == (
            NOT_RUNNING,
            f"swarmline: no swarm runs in {swarm.run_dir}: start one with `swarmline up FILE`\n",
        )


# ---- what is there already


@pytest.mark.timeout(120)
def test_beside_a_running_swarm(module_lab: Lab) -> None:
    """A second `up` in the same folder, another swarm on its interface, and a stranger who asks: the first goes on."""
    with swarm_made(module_lab) as first, dial(module_lab) as sock, sock.makefile("rb") as file, unharmed(first):
        second = first.command("up", str(first.config), "--detach", ok=False)
        assert (second.returncode, second.stderr.count("\n")) == (RUNNING, 1)
        assert "running already" in second.stderr and "swarmline down" in second.stderr

        with swarm_prepared(module_lab, alone=False) as other:
            done = other.command("up", str(other.config), "--detach", ok=False)
            assert done.returncode == HOST, done.stderr
            assert done.stderr.count("\n") == 1 and module_lab.nic in done.stderr
            assert other.left() == [] and first.xdp()
            done = subprocess.run(
                [*NOBODY, *first.argv("status")], capture_output=True, text=True, timeout=30, check=False
            )
            assert (done.returncode, done.stdout) == (API, "")
            assert "run it as root" in done.stderr
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert file.readline() == b"HTTP/1.1 200 OK\r\n"
            assert curl(module_lab.client, "https://10.77.0.10/") == INDEX


def test_without_hugepages(swarm: Swarm) -> None:
    """A warning, and everything works: in a mount namespace where the kernel's pool can not be seen or enlarged."""
    hide = "mount -t tmpfs -o ro none /sys/kernel/mm/hugepages && echo hidden && exec cat"
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", hide],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as keeper:
        assert keeper.stdout and keeper.stdout.readline() == "hidden\n"

        def inside(*words: str) -> str:
            argv = ["nsenter", f"--mount=/proc/{keeper.pid}/ns/mnt", *swarm.argv(*words)]
            return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout

        try:
            said = inside("up", str(swarm.config), "--detach")
            assert [
                line
                for line in said.splitlines()
                if "warning" in line and "hugepages" in line and "4 KiB pages" in line
            ]
            for scheme in ("https", "http"):
                assert curl(swarm.lab.client, f"{scheme}://10.77.0.10/") == INDEX
            assert json.loads(inside("status", "--json"))["edges"]
        finally:
            inside("down")
            keeper.communicate()
    assert swarm.left() == []


def test_doctor(swarm: Swarm) -> None:
    """Says the same before anything is started."""
    done = subprocess.run(
        [*swarm.argv()[:1], "doctor", str(swarm.config), "--json"], capture_output=True, text=True, check=True
    )
    findings = {finding["name"]: finding["level"] for finding in json.loads(done.stdout)}
    assert findings["rights"] == findings["programs"] == findings["config file"] == "ok"
    swarm.configure({"nic": {"interface": "sl-nic9"}})
    done = subprocess.run(
        [*swarm.argv()[:1], "doctor", str(swarm.config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "sl-nic9" in done.stdout


def test_lab_is_as_before(module_lab: Lab) -> None:
    """The namespace that all these swarms were not started in."""
    shown = subprocess.run(
        in_netns(module_lab.host, "ip", "-br", "link"), capture_output=True, text=True, check=True
    ).stdout
    assert sorted(line.split()[0].partition("@")[0] for line in shown.splitlines()) == ["lo", module_lab.nic]
    assert os.path.exists(f"/run/netns/{module_lab.host}")
