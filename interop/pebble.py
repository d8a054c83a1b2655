"""A public authority of one's own: Debian's Pebble, and the name server that it asks. Used by the scripts beside this file.

with Pebble(work, https=edge_port) as pebble:
    Server(binary, issuer="acme", acme_directory=pebble.directory, acme_ca=pebble.trusted, acme_agree_terms="true")

`https` and `http` are the ports that stand for 443 and 80 where names are proved. Every name leads to 127.0.0.1,
unless `dns` names another resolver.
"""

import contextlib
import json
import os
import pathlib
import ssl
import subprocess
import urllib.request

import expect
from server import free_ports

STARTS_WITHIN = 15.0


class Pebble:
    def __init__(self, work, https, http=None, dns=None, nonces=True, environment=None, **settings):
        self.work = pathlib.Path(work)
        self.work.mkdir(parents=True, exist_ok=True)
        self._directory, self._management, self._names, self._names_management, spare = free_ports(5)
        self.http = http or spare
        self.https = https
        self._dns = dns
        self._settings = settings
        self._environment = {
            "PEBBLE_VA_NOSLEEP": "1",
            "PEBBLE_VA_ALWAYS_VALID": "0",
            "PEBBLE_WFE_NONCEREJECT": "20" if nonces else "0",
            **(environment or {}),
        }
        self._running = contextlib.ExitStack()
        # Whom the server trusts: the directory's own certificate, and the roots, which are new at each start.
        self.trusted = self.work / "trusted.pem"
        self.root = self.work / "root.pem"

    @property
    def directory(self):
        return f"https://localhost:{self._directory}/dir"

    def __enter__(self):
        certificate, key = self.work / "pebble.crt", self.work / "pebble.key"
        if not certificate.exists():
            subprocess.run(
                [
                    *"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split(),
                    *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
                    *("-addext", "extendedKeyUsage=serverAuth", "-addext", "basicConstraints=critical,CA:false"),
                    *("-keyout", key, "-out", certificate),
                ],
                check=True,
                capture_output=True,
            )
        self.start()
        return self

    def start(self):
        """Begins, with new keys and without memory: Pebble has none."""
        configuration = {
            "listenAddress": f"127.0.0.1:{self._directory}",
            "managementListenAddress": f"127.0.0.1:{self._management}",
            "certificate": str(self.work / "pebble.crt"),
            "privateKey": str(self.work / "pebble.key"),
            "httpPort": self.http,
            "tlsPort": self.https,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": False,
            **self._settings,
        }
        (self.work / "pebble.json").write_text(json.dumps({"pebble": configuration}))
        running = contextlib.ExitStack()
        dns = self._dns
        if dns is None:
            dns = f"127.0.0.1:{self._names}"
            names = ["pebble-challtestsrv", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-dns01", dns]
            names += ["-management", f"127.0.0.1:{self._names_management}"]
            names += ["-http01", "", "-https01", "", "-tlsalpn01", ""]
            running.enter_context(self._background(names, self._names_management))
        command = ["pebble", "-config", self.work / "pebble.json", "-dnsserver", dns]
        running.enter_context(self._background(command, self._directory))
        self._running = running
        root = self._ask("roots/0")
        self.root.write_bytes(root)
        self.trusted.write_bytes((self.work / "pebble.crt").read_bytes() + b"\n" + root)

    def stop(self):
        self._running.close()

    def __exit__(self, *_):
        self.stop()

    def tell_names(self, path, **body):
        """Tells the name server something, such as `set-txt`."""
        url = f"http://127.0.0.1:{self._names_management}/{path}"
        urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=5).read()

    def status_of(self, serial):
        """What Pebble says of a certificate: `Valid` or `Revoked`."""
        return json.loads(self._ask(f"cert-status-by-serial/{serial}"))["Status"]

    def _ask(self, path):
        context = ssl.create_default_context(cafile=self.work / "pebble.crt")
        url = f"https://localhost:{self._management}/{path}"
        return urllib.request.urlopen(url, timeout=5, context=context).read()

    @contextlib.contextmanager
    def _background(self, command, port):
        log = self.work / f"{command[0]}.log"
        with open(log, "ab") as output:
            process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self._environment},
                cwd=self.work,
            )
        try:
            expect.until(f"{command[0]} listens", STARTS_WITHIN, lambda: _listens(port) or process.poll() is not None)
            expect.that(f"{command[0]} runs", process.poll() is None, log.read_text(errors="replace")[-2000:])
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _listens(port):
    import socket

    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
