"""Starts, asks, stops and kills an api-server. Used by the scripts beside this file.

with Server("target/release/api-server", signings_per_day=4) as server:
    print(server.ask("GET", "/api/v1/tunnels/").json)
    server.kill9()
    server.start()      # the same data directory
"""

import argparse
import http.client
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass

ZONE = "adit.localhost"
ADMIN_KEY = "interop-admin-key-0123456789abcdef"
READY_WITHIN = 30.0
STOPS_WITHIN = 60.0


class StartError(Exception):
    """The server ended, or stayed silent, instead of becoming ready."""

    def __init__(self, exit_status, output):
        super().__init__(f"api-server did not become ready, exit status {exit_status}:\n{output}")
        self.exit_status = exit_status
        self.output = output


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.body[:600]!r}"


class Client:
    """Talks JSON over HTTP/1.1. Never repeats a request, so a lost answer stays a lost answer."""

    def __init__(self, port, key, keep_alive=False, timeout=30.0):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        self._key = key
        self._keep_alive = keep_alive

    def ask(self, method, path, body=None, headers=None):
        """`body` is sent as JSON, or as it is when it is bytes."""
        sent = {"Accept": "application/json"}
        if self._key is not None:
            sent["X-API-Key"] = self._key
        if body is not None:
            sent["Content-Type"] = "application/json"
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent.update(headers or {})
        try:
            self._connection.request(method, path, body, sent)
            response = self._connection.getresponse()
            answer = Answer(response.status, response.headers, response.read())
        except BaseException:
            self._connection.close()
            raise
        if not self._keep_alive:
            self._connection.close()
        return answer


class Server:
    def __init__(self, binary, data_dir=None, key=ADMIN_KEY, edge_port=None, edge_socket=None, **settings):
        """Does not start yet: `with` or `start` does.

        Without `data_dir` a temporary one is made and removed again. With
        `key=None` the server makes its own admin key. Each of `settings` is a
        flag, `signings_per_day=4` for `--signings-per-day 4`, or several of a list. The edge has a free
        port unless `edge_port` names one; or it takes `edge_socket`, a listening
        socket that stays open over restarts, as from systemd.
        """
        self._binary = pathlib.Path(binary).resolve()
        self._place = pathlib.Path(tempfile.mkdtemp(prefix="adit-interop-"))
        self.data_dir = pathlib.Path(data_dir) if data_dir else self._place / "data"
        self.log = self._place / "server.log"
        self.key = key
        self._edge_port = edge_port
        self._edge_socket = edge_socket
        self._own_key = key is None
        self.clock = None  # what the machine's clock shows, as faketime(1) takes it
        self.environment = {}  # more of it, such as secrets
        self.settings = {
            "zone": ZONE,
            "creates_per_day": 1_000_000,
            "signings_per_day": 1_000_000,
            "restore_window": "24h",
            "sweep_interval": "60s",
            **settings,
        }
        self._process = None

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, error_class, error, _traceback):
        if self.running:
            self.kill9()
        if error_class is not None:
            print(f"--- the end of the server's log ---\n{self.output()}\n---", file=sys.stderr)
        self._remove()

    def start(self):
        """Starts on the data directory and waits until `/readyz` answers 200."""
        self.launch()
        self._wait_for("/readyz")
        if self._own_key:
            self.key = (self.data_dir / "admin-api-key").read_text().strip()

    def start_not_ready(self):
        """Starts on the data directory and waits until it serves, whatever `/readyz` answers."""
        self.launch()
        self._wait_for("/healthz")

    def launch(self):
        """Starts on the data directory and does not wait."""
        self.port, self._metrics_port, edge_port = free_ports(3)
        self.edge_port = self._edge_port or edge_port
        command = ["faketime", "-m", "-f", self.clock] if self.clock else []
        command += [self._binary, "serve", "--data-dir", self.data_dir]
        command += ["--api-listen", f"127.0.0.1:{self.port}", "--metrics-listen", f"127.0.0.1:{self._metrics_port}"]
        command += ["--edge-listen", f"127.0.0.1:{self.edge_port}"]
        # Its keys take time to make, and its port is one for all.
        for name, value in {"panel_listen": "none", **self.settings}.items():
            for each in value if isinstance(value, list) else [value]:
                command += [f"--{name.replace('_', '-')}", str(each)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ADIT_")}
        if not self._own_key:
            environment["ADIT_BOOTSTRAP_API_KEY"] = self.key
        if self.clock:
            environment["DONT_FAKE_MONOTONIC"] = "1"
        environment |= self.environment
        stdin = subprocess.DEVNULL
        if self._edge_socket is not None:
            # The first inherited socket is descriptor 3, for the process that LISTEN_PID names.
            passed_on = 'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 3<&0 </dev/null'
            command, stdin = ["sh", "-c", passed_on, "sh", *command], self._edge_socket
            self.edge_port = self._edge_socket.getsockname()[1]
        with open(self.log, "ab") as log:
            # faketime stays as the server's parent: what ends it has to end both.
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self._place,
                start_new_session=self.clock is not None,
            )
            self._is_group = self.clock is not None

    def _wait_for(self, path):
        deadline = time.monotonic() + READY_WITHIN
        probe = Client(self._metrics_port, None, timeout=2.0)
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise StartError(self._process.returncode, self.output())
            try:
                if probe.ask("GET", path).status == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.01)
        self.kill9()
        raise StartError(None, self.output())

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self):
        return self._process.pid

    @property
    def running(self):
        return self._process is not None and self._process.poll() is None

    @property
    def root_certificate(self):
        return self.data_dir / "ca" / "root.crt"

    def client(self, key=None, keep_alive=False, timeout=30.0):
        return Client(self.port, key or self.key, keep_alive, timeout)

    def ask(self, method, path, body=None, headers=None):
        """One request with the admin key on a connection of its own."""
        return self.client().ask(method, path, body, headers)

    def ready(self):
        """What `/readyz` says."""
        return Client(self._metrics_port, None).ask("GET", "/readyz")

    def kill9(self):
        """SIGKILL: no last words."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        if self._is_group:
            # faketime(1) has gone; the server is its child, for which nobody waits.
            time.sleep(0.5)

    def stop(self):
        """SIGTERM. Returns the exit status, or None when the server had to be killed."""
        self._signal(signal.SIGTERM)
        try:
            return self._process.wait(STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            self.kill9()
            return None

    def _signal(self, number):
        if self._is_group:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)

    def output(self):
        """The last lines of what the server printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])

    def _remove(self):
        shutil.rmtree(self._place, ignore_errors=True)


def arguments(docstring):
    """A parser that knows `--server PATH`, which most scripts take."""
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, metavar="PATH", help="the api-server binary")
    return parser


# Below those that the system gives to whoever dials: one of thousands of visitors would take a port between its
# choice and its server's start.
_PORTS = range(25_000, 32_000)
_taken, _choosing = set(), threading.Lock()


def free_ports(count):
    """Ports that nobody has, and that no other server of this script was given."""
    ports = []
    with _choosing:
        while len(ports) < count:
            port = random.choice(_PORTS)
            if port in _taken:
                continue
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            _taken.add(port)
            ports.append(port)
    return ports
