"""What an operator does with a server that runs, and what it says.

SIGHUP reads certificates and the log's filter again, and what cannot be used
changes nothing. `/readyz` names what fails. The log is coloured for terminals
that want it.

    judges/bin/python operations.py --server ../target/release/api-server
"""

import contextlib
import datetime
import json
import os
import pathlib
import pty
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import expect
from scripted_agent import get, new_tunnel, visit
from server import ZONE, Server, StartError, arguments

WITHIN = 10.0
NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


def main():
    options = arguments(__doc__).parse_args()
    expect.each(
        [
            ("SIGHUP reads what may change again", lambda: hangup(options.server)),
            ("certificates are read again when their files change", lambda: changed(options.server)),
            ("a certificate that cannot be used is told by its cause", lambda: causes(options.server)),
            ("a relative data directory is as good as any", lambda: relative(options.server)),
            ("a clock that cannot be right is refused", lambda: wrong_clock(options.server)),
            ("an authority whose time is over is told", lambda: expired(options.server)),
            ("damage to the database is found at the start", lambda: damaged(options.server)),
            ("an unusable panel directory is told", lambda: unusable(options.server)),
            ("a second signal stops at once", lambda: told_twice(options.server)),
            ("the log has colours where they are wanted", lambda: colours(options.server)),
        ]
    )


class Pair:
    """A self-signed certificate and its key, in two files."""

    def __init__(self, work, since=-DAY, until=DAY):
        self.certificate, self.key = work / "server.crt", work / "server.key"
        self.renew(since, until)

    def renew(self, since=-DAY, until=DAY):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ZONE)])
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(NOW + since).not_valid_after(NOW + until)
        names = x509.SubjectAlternativeName([x509.DNSName(ZONE), x509.DNSName(f"*.{ZONE}")])
        made = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
        self.serial = made.serial_number
        self.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        self.write_key(key, serialization.NoEncryption())
        return self

    def files(self):
        return self.certificate.read_bytes(), self.key.read_bytes()

    def put(self, files):
        self.certificate.write_bytes(files[0])
        self.key.write_bytes(files[1])

    def write_key(self, key, encryption):
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        self.key.write_bytes(key.private_bytes(pem, pkcs8, encryption))

    def encrypt_key(self):
        key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        self.write_key(key, serialization.BestAvailableEncryption(b"a passphrase"))

    def add_mark(self):
        for path in (self.certificate, self.key):
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def served(port):
    """The serial number that a port presents."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), timeout=WITHIN) as plain:
        with context.wrap_socket(plain, server_hostname=ZONE) as stream:
            return x509.load_der_x509_certificate(stream.getpeercert(True)).serial_number


def eventually(what, holds):
    deadline = time.monotonic() + WITHIN
    while not holds():
        expect.that(what, time.monotonic() < deadline)
        time.sleep(0.02)


def hangup(binary):
    with tempfile.TemporaryDirectory(prefix="adit-operations-") as work:
        work = pathlib.Path(work)
        at_edge, at_panel = Pair(made(work / "edge")), Pair(made(work / "panel"))
        config = work / "adit.toml"
        config.write_text('log = "info"\n')
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            panel_port = free.getsockname()[1]
        settings = {
            "config": config,
            "edge_tls_cert": at_edge.certificate,
            "edge_tls_key": at_edge.key,
            "panel_listen": f"127.0.0.1:{panel_port}",
            "panel_keys": "p256",
            "panel_tls_cert": at_panel.certificate,
            "panel_tls_key": at_panel.key,
        }
        with Server(binary, **settings) as server:
            ports = [(server.edge_port, at_edge), (panel_port, at_panel)]
            for port, pair in ports:
                expect.equal("the first certificate", served(port), pair.serial)

            def reload():
                before = server.log.read_text().count("SIGHUP: ")
                os.kill(server.pid, signal.SIGHUP)
                eventually("all is told", lambda: server.log.read_text().count("SIGHUP: ") >= before + 3)
                expect.that("the server lives", server.running)
                return server.log.read_text().splitlines()[-3:]

            old = [pair.renew().serial for _, pair in ports]
            expect.equal("three things are read", [" INFO " in line for line in reload()], [True] * 3)
            expect.equal("the second certificates", [served(port) for port, _ in ports], old)
            for spoil, words in [
                (lambda pair: pair.renew(-2 * DAY, -DAY), "has expired: it ended at"),
                (lambda pair: pair.renew(DAY, 2 * DAY), "not yet valid: it begins at"),
                (lambda pair: pair.renew().encrypt_key(), "the key is encrypted"),
                (lambda pair: pair.certificate.write_text(""), "BEGIN CERTIFICATE"),
                (lambda pair: pair.certificate.unlink(), "No such file"),
                (lambda pair: [pair.certificate.write_bytes(Pair(made(work / "other")).certificate.read_bytes())], "belong together"),
            ]:
                kept = [pair.files() for _, pair in ports]
                for _, pair in ports:
                    spoil(pair)
                told = reload()
                expect.equal(f"the cause is told twice: {words}", sum(words in line for line in told), 2)
                expect.equal("the old ones are served", [served(port) for port, _ in ports], old)
                # Files that have changed are read without a signal, too.
                for (_, pair), files in zip(ports, kept, strict=True):
                    pair.put(files)

            config.write_text('log = "debug"\n')
            for _, pair in ports:
                pair.renew().add_mark()
            reload()
            expect.equal("with a mark", [served(port) for port, _ in ports], [pair.serial for _, pair in ports])
            server.ask("GET", "/api/whoami")
            eventually("requests are logged now", lambda: "DEBUG" in server.log.read_text())
            for broken, words in (('log = "a=b=c"\n', "the log's filter stays"), ("log = \n", "the configuration stays")):
                config.write_text(broken)
                os.kill(server.pid, signal.SIGHUP)
                eventually(words, lambda words=words: words in server.log.read_text())
            expect.status("the server goes on", server.ask("GET", "/api/whoami"), 200)
            for _ in range(50):
                os.kill(server.pid, signal.SIGHUP)
            expect.equal("it stops as told", server.stop(), 0)


def changed(binary):
    """Certificates are read again when their files change, and no handshake fails meanwhile."""
    with tempfile.TemporaryDirectory(prefix="adit-operations-") as work:
        pair = Pair(pathlib.Path(work))
        with Server(binary, edge_tls_cert=pair.certificate, edge_tls_key=pair.key) as server:
            first = pair.serial
            expect.that("an end that is near is told of", "ends soon" in server.log.read_text(), server.output())
            seen = {served(server.edge_port)}
            expect.equal("the first is served", seen, {first})
            other = Pair(made(pathlib.Path(work) / "other"))
            certificate, key = other.files()
            pair.certificate.write_bytes(certificate)
            time.sleep(0.5)
            pair.key.write_bytes(key)
            with handshakes(server.edge_port) as shown:
                deadline = time.monotonic() + 60
                while other.serial not in seen and time.monotonic() < deadline:
                    seen.add(served(server.edge_port))
                    time.sleep(0.05)
                time.sleep(0.5)
            expect.equal("then the second, and nothing between", seen, {first, other.serial})
            serials = set(shown.serials)
            expect.equal("every one of many handshakes is good", (shown.failures, serials), ([], {first, other.serial}))
            print(f"    {shown.count} handshakes, {shown.count / shown.seconds:.0f} a second", file=sys.stderr)
            expect.equal("it was read once", server.log.read_text().count("its files have changed: read"), 1)
            pair.certificate.write_text("rubbish")
            until = time.monotonic() + 60
            while "its files have changed: the edge's certificate stays" not in server.log.read_text():
                expect.that("what cannot be used is told of", time.monotonic() < until)
                time.sleep(0.1)
            expect.equal("and is not used", served(server.edge_port), other.serial)


class Shown:
    def __init__(self):
        self.count, self.seconds, self.serials, self.failures = 0, 0.0, set(), []


@contextlib.contextmanager
def handshakes(port, workers=4):
    """As many handshakes as the machine has room for, until the block ends: what they showed."""
    shown, stop, lock = Shown(), threading.Event(), threading.Lock()

    def shake():
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        count, serials, failures = 0, set(), []
        while not stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
                    with context.wrap_socket(plain, server_hostname=ZONE) as tls:
                        serials.add(tls.getpeercert(binary_form=True))
                count += 1
            except OSError as error:
                failures.append(repr(error))
        with lock:
            shown.count += count
            shown.serials |= {x509.load_der_x509_certificate(der).serial_number for der in serials}
            shown.failures += failures[:3]

    begun = time.monotonic()
    threads = [threading.Thread(target=shake) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        yield shown
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        shown.seconds = time.monotonic() - begun


def made(directory):
    directory.mkdir(exist_ok=True)
    return directory


def causes(binary):
    with tempfile.TemporaryDirectory(prefix="adit-operations-") as work:
        pair = Pair(pathlib.Path(work))
        settings = {"edge_tls_cert": pair.certificate, "edge_tls_key": pair.key}
        pair.encrypt_key()
        try:
            with Server(binary, **settings):
                expect.that("it does not start with an encrypted key", False)
        except StartError as error:
            expect.that("the cause is told", "the key is encrypted" in error.output, error.output)
        for since, until, words in [(-2 * DAY, -DAY, "has expired"), (DAY, 2 * DAY, "not yet valid")]:
            pair.renew(since, until)
            with Server(binary, **settings) as server:
                expect.that("the cause is told", words in server.log.read_text(), server.output())
                expect.status("the rest is served", server.ask("GET", "/api/whoami"), 200)


def relative(binary):
    """What is written down for a change of files must not depend on where a program was started."""
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        flags = ["--data-dir", "adit-data", "--panel-keys", "p256", "--panel-nginx-test", "none"]
        run = lambda command: subprocess.run(  # noqa: E731
            [pathlib.Path(binary).resolve(), command, *flags], cwd=place, capture_output=True, text=True, timeout=60
        )
        done = run("init")
        expect.equal(f"init: {done.stderr}", done.returncode, 0)
        config = place / "adit-data" / "panel.json"
        document = json.loads(config.read_text())
        config.write_text(json.dumps({**document, "adminAuthMode": "hardware-bound"}))
        done = run("reset-admin")
        expect.equal(f"the admin is reset: {done.stderr}", done.returncode, 0)
        expect.equal("the mode is written where it is read", json.loads(config.read_text())["adminAuthMode"], "p12")
        expect.that("and nowhere else", not (place / "adit-data" / "pki" / "adit-data").exists())


def wrong_clock(binary):
    """No battery, no network yet: 1970. What was made then would be of the past."""
    for directory in ("new", "made before"):
        server = Server(binary)
        if directory == "made before":
            server.start()
            server.stop()
        server.clock = "1970-01-02 00:00:00"
        try:
            with server:
                expect.that("it starts", False)
        except StartError as error:
            expect.equal(f"{directory}: the status", error.exit_status, 1)
            expect.that(f"{directory}: what to do", "before this program was written: set it first" in error.output, error)


def expired(binary):
    with Server(binary) as server:
        server.stop()
        server.clock = "+11y"
        server.start_not_ready()
        answer = server.ready()
        expect.status("it is not ready", answer, 503)
        expect.that("why not", b"the certificate authority has expired" in answer.body, answer)
        expect.that("the log names the file and the day", "issuing.crt expired on 203" in server.output(), server.output())
        expect.status("what is there is served", server.ask("GET", "/api/v1/tunnels/"), 200)


def damaged(binary):
    with Server(binary) as server:
        server.ask("POST", "/api/v1/tunnels", {"tunnel_name": "my-agent"})
        expect.equal("it is ready", (server.ready().status, server.ready().body), (200, b"ready\n"))
        expect.equal("it stops", server.stop(), 0)
        database = server.data_dir / "adit.db"
        with sqlite3.connect(database) as connection:
            (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'tunnels'").fetchone()
            (size,) = connection.execute("PRAGMA page_size").fetchone()
            connection.execute("PRAGMA journal_mode = DELETE")
        connection.close()
        with open(database, "r+b") as file:
            file.seek((root - 1) * size)
            file.write(bytes(size))
        server.start_not_ready()
        expect.equal("it says what fails", server.ready().body, b"not ready: the database is damaged\n")
        expect.equal("and that it is not ready", server.ready().status, 503)
        expect.that("the log says more", "the database is damaged: restore a backup" in server.log.read_text())
        expect.status("lists fail", server.ask("GET", "/api/v1/tunnels"), 500)
        expect.status("the rest goes on", server.ask("GET", "/api/whoami"), 200)


def unusable(binary):
    with Server(binary, panel_listen="127.0.0.1:0", panel_keys="p256") as server:
        pki = server.data_dir / "pki"
        for spoil, mend in [
            (lambda: (pki / "revoked.json").write_text("["), lambda: (pki / "revoked.json").unlink()),
            (lambda: pki.rename(pki.with_name("gone")), lambda: pki.with_name("gone").rename(pki)),
        ]:
            spoil()
            expect.equal(
                "it says what fails",
                server.ready().body,
                b"not ready: the panel's directory cannot be read or written\n",
            )
            mend()
            expect.status("it is ready again", server.ready(), 200)


def told_twice(binary):
    """What is in flight is waited for, unless somebody asks again."""
    with Server(binary, grace_period="30s") as server:
        tunnel = new_tunnel(server, "patient")
        taken = threading.Event()
        tunnel.agent(lambda _agent, _envelope: taken.set())
        visitor = visit(server, tunnel.host)
        visitor.send(get(tunnel.host))
        expect.that("the request is in flight", taken.wait(5.0))
        process = server._process
        process.send_signal(signal.SIGTERM)
        time.sleep(1.0)
        expect.that("it is waited for", server.running)
        process.send_signal(signal.SIGINT)
        expect.equal("the exit status at the second signal", process.wait(2.0), 1)


def colours(binary):
    def first_words(**environment):
        data = tempfile.mkdtemp(prefix="adit-operations-")
        ours, theirs = pty.openpty()
        command = [binary, "init", "--data-dir", data, "--panel-listen", "none"]
        environment = {"PATH": os.environ["PATH"], "TERM": "xterm", **environment}
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment, check=True)
        os.close(theirs)
        shutil.rmtree(data)
        said = os.read(ours, 10_000)
        os.close(ours)
        return said

    expect.that("a terminal", b"\x1b[" in first_words())
    expect.that("NO_COLOR that is empty", b"\x1b[" in first_words(NO_COLOR=""))
    expect.that("NO_COLOR", b"\x1b[" not in first_words(NO_COLOR="1"))
    expect.that("TERM=dumb", b"\x1b[" not in first_words(TERM="dumb"))


if __name__ == "__main__":
    expect.run(main)
