# SPDX-License-Identifier: Apache-2.0
"""nginx and HAProxy under the same clients: TLS, the same files, an echo; disturbed by reloads and by kill -9 of a
worker.

Both run in the namespace of the lab's host, on its kernel's address. nginx serves the files itself and hands /echo to
a small origin;
HAProxy hands the files to a second nginx, which is never disturbed, and /echo to the same origin.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.disruption.events import Skipped
from bench.disruption.history import Event

ADDRESS, PORT, FILES_PORT, ECHO_PORT = "10.77.0.1", 8443, 8081, 8082
TESTS = Path(__file__).resolve().parents[2]
WORKERS = 2
READY_TIMEOUT = 10.0

NGINX = """
daemon off; worker_processes {workers}; pid {dir}/{name}.pid; error_log {dir}/{name}.log; user root;
worker_shutdown_timeout 30s;
events {{ worker_connections 1024; }}
http {{
    access_log off; keepalive_timeout 60s; keepalive_requests 1000000; client_max_body_size 0;
    types {{ text/plain txt bin; }}
    client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/f; uwsgi_temp_path
    {dir}/u; scgi_temp_path {dir}/s;
    upstream echo {{ server 127.0.0.1:{echo}; keepalive 16; }}
    server {{
        listen {listen};
        root {site};
        location = /echo {{ proxy_pass http://echo; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
}}
"""
NGINX_TLS = (
    "{address}:{port} ssl; ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem; ssl_session_tickets on"
)

HAPROXY = """
global
    nbthread 2
    pidfile {dir}/haproxy.pid
    stats socket {dir}/haproxy.sock level admin expose-fd listeners
    hard-stop-after 30s
    maxconn 4000
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout http-keep-alive 60s
frontend tls
    bind {address}:{port} ssl crt {dir}/both.pem alpn http/1.1
    use_backend echo if {{ path /echo }}
    default_backend files
backend echo
    server origin 127.0.0.1:{echo}
backend files
    server origin 127.0.0.1:{files}
"""


class Peer:
    """A server of others. ``start`` is called in the host's namespace by ``nsenter``."""

    system = ""
    kinds: tuple[str, ...] = ("reload", "kill-worker")
    program = ""

    def __init__(self, netns: str, folder: Path, site: Path) -> None:
        self._netns, self._dir, self._site = netns, folder, site
        self._random = random.Random(1)
        self._started: list[subprocess.Popen[bytes]] = []
        self._main: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Peer:
        if shutil.which(self.program) is None:
            raise Skipped(f"{self.program} is not installed (make deps-bench)")
        self._certificate()
        self._started.append(self._run([sys.executable, "-P", "-m", "bench.disruption.peers", str(ECHO_PORT)]))
        try:
            self._prepare()
            self._main = self._launch()
            self._wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in [p for p in (self._main, *self._started) if p]:
            for pid in [process.pid, *_children(process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()

    def _prepare(self) -> None:
        pass

    def _launch(self) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def _run(self, argv: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self._netns}", "--", *argv],
            stdout=subprocess.DEVNULL,
            stderr=(self._dir / "peers.log").open("ab"),
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )

    def _certificate(self) -> None:
        cert, key = self._dir / "cert.pem", self._dir / "key.pem"
        if not cert.exists():
            subprocess.run(
                [
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                    "-nodes",
                    "-days",
                    "7",
                    "-subj",
                    "/CN=swarmline.test",
                    "-keyout",
                    key,
                    "-out",
                    cert,
                ],
                check=True,
                capture_output=True,
            )
            (self._dir / "both.pem").write_bytes(cert.read_bytes() + key.read_bytes())

    def _nginx(self, name: str, listen: str) -> list[str]:
        conf = self._dir / f"{name}.conf"
        conf.write_text(
            NGINX.format(workers=WORKERS, dir=self._dir, name=name, listen=listen, site=self._site, echo=ECHO_PORT)
        )
        return ["nginx", "-e", str(self._dir / f"{name}.log"), "-c", str(conf)]

    def _wait_ready(self) -> None:
        """Asks from its own namespace until it answers."""
        end = time.monotonic() + READY_TIMEOUT
        argv = [
            "nsenter",
            f"--net=/run/netns/{self._netns}",
            "--",
            "curl",
            "-skf",
            "-d",
            "x",
            f"https://{ADDRESS}:{PORT}/echo",
        ]
        while subprocess.run(argv, capture_output=True, check=False).returncode:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.system} does not answer; see {self._dir}/peers.log")
            time.sleep(0.1)

    def ready(self, _kind: str) -> None:
        """Both kinds are always to be had."""

    def whole(self) -> None:
        """It is, when an event ends."""

    def workers(self) -> list[int]:
        assert self._main
        return _children(self._main.pid)

    def one(self, kind: str) -> Event:
        """One event; over when new workers are there."""
        start, fields = time.monotonic_ns(), {}
        try:
            self._reload() if kind == "reload" else self._kill()
        except TimeoutError as error:
            fields = {"not_whole": True, "why": str(error)}
        return Event(kind, start, time.monotonic_ns(), kind, fields)

    def _reload(self) -> None:
        raise NotImplementedError

    def _kill(self) -> None:
        worker = self._random.choice(self.workers())
        os.kill(worker, signal.SIGKILL)
        self._until(lambda: worker not in (now := self.workers()) and len(now) >= 1)

    def _until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + READY_TIMEOUT
        while not done():
            if time.monotonic() > end:
                raise TimeoutError(f"{self.system} has no new workers")
            time.sleep(0.01)


class Nginx(Peer):
    system = program = "nginx"

    def _launch(self) -> subprocess.Popen[bytes]:
        return self._run(self._nginx("nginx", NGINX_TLS.format(address=ADDRESS, port=PORT, dir=self._dir)))

    def _reload(self) -> None:
        assert self._main
        before = set(self.workers())
        os.kill(self._main.pid, signal.SIGHUP)
        self._until(lambda: len(set(self.workers()) - before) >= WORKERS)
        time.sleep(0.5)  # the old ones go on with what they have


class Haproxy(Peer):
    """Its master gives up when a worker dies; as under systemd, it is started again."""

    system, program = "HAProxy", "haproxy"

    def _prepare(self) -> None:
        self._started.append(self._run(self._nginx("files", f"127.0.0.1:{FILES_PORT}")))
        (self._dir / "haproxy.cfg").write_text(
            HAPROXY.format(dir=self._dir, address=ADDRESS, port=PORT, echo=ECHO_PORT, files=FILES_PORT)
        )

    def _launch(self) -> subprocess.Popen[bytes]:
        return self._run(
            ["haproxy", "-Ws", "-f", str(self._dir / "haproxy.cfg")]
            if os.environ.get("NOTIFY_SOCKET")
            else ["haproxy", "-W", "-db", "-f", str(self._dir / "haproxy.cfg")]
        )

    def _reload(self) -> None:
        assert self._main
        before = set(self.workers())
        os.kill(self._main.pid, signal.SIGUSR2)
        self._until(lambda: bool(set(self.workers()) - before))
        time.sleep(0.5)

    def _kill(self) -> None:
        assert self._main
        worker = max(self.workers())
        os.kill(worker, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._main.wait(timeout=2)
            self._main = self._launch()
        self._until(lambda: any(pid != worker for pid in self.workers()))


PEERS: dict[str, type[Peer]] = {"nginx": Nginx, "haproxy": Haproxy}


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


# ---- the origin of /echo


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """HTTP/1.1 with Content-Length only: its callers are the peers."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0] or b"0")
            body = await reader.readexactly(length)
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (length, body)
            )
            await writer.drain()
    writer.close()


async def _origin(port: int) -> None:
    server = await asyncio.start_server(_echo, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_origin(int(sys.argv[1])))
