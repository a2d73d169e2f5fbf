# SPDX-License-Identifier: Apache-2.0
"""A whole swarm and an nginx, each in its own lab, both with the same certificate and files, both on core 0."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import ROOT

from bench.harness import CannotMeasure, until
from pipeline.host import processes

SERVER_CORE, CLIENT_CORE = "0", "1"
FILE, FILE_LEN = "1k.bin", 1024

_SWARM = """
[swarm]
name = "bench"
[nic]
interface = "sl-nic0"
netns = "{prefix}-host"
[[service]]
name = "https"
address = ["10.77.0.10"]
port = 443
chain = ["tcp", "tls", "http", "app"]
[[service]]
name = "http"
address = ["10.77.0.10"]
port = 80
chain = ["tcp", "http", "app"]
[layer.tcp]
instances = 1
[layer.tls]
instances = 1
certificates = [{{cert = "{folder}/cert.pem", key = "{folder}/key.pem"}}]
[layer.http]
instances = 1
[layer.app]
instances = {apps}
root = "{folder}/site"
"""

_NGINX = """
worker_processes 1;
worker_cpu_affinity 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 60s;
  sendfile on;
  tcp_nopush on;
  open_file_cache max=100;
  ssl_session_tickets on;
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_certificate {folder}/cert.pem;
  ssl_certificate_key {folder}/key.pem;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 10.77.0.1:80;
    listen 10.77.0.1:443 ssl;
    root {folder}/site;
  }}
}}
"""


@dataclass(frozen=True)
class Server:
    """Where a client finds one of the two."""

    netns: str
    addr: str
    run_dir: Path | None = None

    def client(self, *argv: str) -> list[str]:
        """The command, run by the client of this server."""
        return ["nsenter", f"--net=/run/netns/{self.netns}", "--", "taskset", "-c", CLIENT_CORE, *argv]

    def url(self, scheme: str = "https") -> str:
        return f"{scheme}://{self.addr}/{FILE}"


def _do(*argv: str, timeout: float = 60, environ: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout,
                          env={**os.environ, **(environ or {})})
    if done.returncode:
        raise CannotMeasure(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@contextmanager
def lab_made(prefix: str) -> Iterator[None]:
    tool = str(ROOT / "tools/lab")
    try:
        _do(tool, "up", f"--prefix={prefix}")
        yield
    finally:
        subprocess.run([tool, "down", f"--prefix={prefix}"], check=False, capture_output=True)


@contextmanager
def site_made() -> Iterator[Path]:
    """A folder that everybody may read with a certificate (ECDSA P-256) and the file."""
    with tempfile.TemporaryDirectory(prefix="slb-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "site").mkdir()
        (folder / "site" / FILE).write_bytes(os.urandom(FILE_LEN))
        _do("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", "/CN=swarmline.test", "-addext", "subjectAltName=DNS:swarmline.test",
            "-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem")
        yield folder


@contextmanager
def swarm_up(
    folder: Path, prefix: str, pinned: bool = True, apps: int = 1, environ: Mapping[str, str] | None = None,
    more: str = "", machine: str = "",
) -> Iterator[Server]:
    """One instance of each layer (and so many of app), all of it on core 0 if pinned. ``more``: of the config, behind
    [layer.app]. ``machine``: the layer that is a virtual machine; the others are processes.
    """
    config, run_dir = folder / "swarm.toml", folder / "run"
    text = _SWARM.format(prefix=prefix, folder=folder, apps=apps) + more
    head = f"[layer.{machine}]\n"
    config.write_text(text.replace(head, f'{head}driver = "qemu"\n'))
    program = str(Path(sys.executable).parent / "swarmline")
    with lab_made(prefix):
        try:
            pin = ["taskset", "-c", SERVER_CORE] if pinned else []
            _do(*pin, program, "up", str(config), "--detach", f"--run-dir={run_dir}", environ=environ)
            if pinned:
                _check_pinned(run_dir)
            yield Server(f"{prefix}-client", "10.77.0.10", run_dir)
        finally:
            subprocess.run([program, "down", f"--run-dir={run_dir}"], check=False, capture_output=True, timeout=60)


def _check_pinned(run_dir: Path) -> None:
    """A server that uses the client's core too would be compared unfairly."""
    for process in processes.find(run_dir):
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            if os.sched_getaffinity(int(task.name)) != {int(SERVER_CORE)}:
                raise CannotMeasure(f"{' '.join(process.argv[:2])} is not on core {SERVER_CORE} alone")


@contextmanager
def nginx_up(folder: Path, prefix: str) -> Iterator[Server | None]:
    """nginx with one worker on core 0, behind a plain veth. None: not installed."""
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        yield None
        return
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder))
    with lab_made(prefix):
        server = Server(f"{prefix}-client", "10.77.0.1")
        with (folder / "nginx.out").open("wb") as out:
            process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{prefix}-host", "--", "taskset", "-c", SERVER_CORE, program,
                 "-c", str(config), "-p", str(folder)], stdout=out, stderr=out)
        try:
            until(lambda: _answers(server) or process.poll() is not None, 10, "nginx's first answer")
            if process.poll() is not None:
                raise CannotMeasure(f"nginx: {(folder / 'nginx.out').read_text(errors='replace').strip()}")
            yield server
        finally:
            process.terminate()
            process.wait()


def _answers(server: Server) -> bool:
    argv = server.client("curl", "-sk", "-o", "/dev/null", "--max-time", "1", "--fail", server.url())
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0


@contextmanager
def both_up() -> Iterator[tuple[Server, Server | None]]:
    """The swarm and its peer."""
    prefix = f"slb{os.getpid()}"
    with ExitStack() as stack:
        folder = stack.enter_context(site_made())
        peer = stack.enter_context(nginx_up(folder, f"{prefix}n"))
        swarm = stack.enter_context(swarm_up(folder, prefix))
        until(lambda: _answers(swarm), 10, "the swarm's first answer")
        yield swarm, peer
