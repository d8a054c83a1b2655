"""Starts an api-server with its panel port and talks to it. Used by the panel scripts beside this file.

with Panel("target/release/api-server") as panel:
    admin = panel.admin()                       # a copy of client.crt and client.key as they are now
    print(panel.call(admin, "GET", "/api/certs").json)
"""

import concurrent.futures
import contextlib
import http.client
import itertools
import json
import pathlib
import random
import re
import socket
import ssl
import subprocess
import sys
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID

import expect
from server import Answer, Server

PORTS = range(15_000, 25_000)
JSON_TYPE = "application/json; charset=utf-8"
VALIDATION = "Validation failed"
MTLS_REQUIRED = {
    "error": "mTLS certificate required",
    "details": {"hint": "Access to the Portlama panel requires a valid client certificate."},
}
REVOKED = {"error": "Certificate has been revoked"}
# An admin's request that asks no other program, as the list of certificates asks certbot.
ADMIN_ONLY = "/api/certs/admin/auth-mode"
NOT_FOUND = {"error": "Not found"}
_numbers = itertools.count()


@dataclass(frozen=True)
class Identity:
    """A client certificate and its key, as PEM files."""

    cert: pathlib.Path
    key: pathlib.Path

    @property
    def serial(self):
        """As the API, nginx and `openssl x509 -serial` write it."""
        return serial_of(self.cert)


class Panel(Server):
    """A server whose panel port is free at the start and stays the same over restarts."""

    def __init__(self, binary, data_dir=None, keys="p256", **settings):
        self.panel_port = free_port()
        defaults = {
            "panel_listen": f"127.0.0.1:{self.panel_port}",
            "panel_keys": keys,
            "panel_enrollments_per_minute": 0,
            "panel_nginx_test": "none",
        }
        super().__init__(binary, data_dir, **{**defaults, **settings})
        self.binary = self._binary
        self.work = self._place

    @property
    def pki(self):
        return pathlib.Path(self.settings.get("pki_dir", self.data_dir / "pki"))

    @property
    def config(self):
        return pathlib.Path(self.settings.get("panel_config", self.data_dir / "panel.json"))

    @property
    def panel_url(self):
        return f"https://127.0.0.1:{self.panel_port}"

    def admin(self):
        """The admin identity that lies in the directory now; later rotations do not change the copy."""
        return keep(self.work, (self.pki / "client.crt").read_bytes(), (self.pki / "client.key").read_bytes())

    def caller(self, identity=None, **named):
        return Caller(self.panel_port, identity, **named)

    def call(self, identity, method, path, body=None, headers=None, **named):
        """One request on a connection of its own."""
        with self.caller(identity, **named) as caller:
            return caller.ask(method, path, body, headers)

    def done(self, identity, method, path, body=None, headers=None):
        """The JSON of a request that must succeed."""
        answer = self.call(identity, method, path, body, headers)
        expect.status(f"{method} {path} is done", answer, 200)
        return answer.json

    def agent(self, admin, label, **more):
        """A new agent with a P12 made by the server: (its identity, the answer)."""
        made = self.done(admin, "POST", "/api/certs/agent", {"label": label, **more})
        bundle = self.call(admin, "GET", f"/api/certs/agent/{label}/download")
        expect.status(f"the bundle of {label}", bundle, 200)
        return from_p12(self.work, bundle.body, made["p12Password"]), made

    def token(self, admin, label, **more):
        return self.done(admin, "POST", "/api/certs/agent/enroll", {"label": label, **more})["token"]

    def enrol(self, token, csr):
        return self.call(None, "POST", "/api/enroll", {"token": token, "csr": csr})

    def enrolled(self, admin, label, **more):
        """A new agent with a key of its own: (its identity, the answer)."""
        key = ec_key()
        answer = self.enrol(self.token(admin, label, **more), csr_of(key))
        expect.status(f"{label} is enrolled", answer, 200)
        return keep(self.work, answer.json["cert"], pem_of(key)), answer.json

    def reset_command(self):
        """`api-server reset-admin` on this server's directories, with its settings."""
        command = [self.binary, "reset-admin", "--data-dir", self.data_dir]
        for name, value in self.settings.items():
            if name in ("pki_dir", "panel_config") or name.startswith("panel_"):
                command += [f"--{name.replace('_', '-')}", value]
        return [str(each) for each in command]

    def serve_command(self):
        """`api-server serve` on this server's directories and free ports, in the foreground."""
        words = [word for word in self.reset_command() if word != "reset-admin"]
        ports = [(f"--{name}-listen", "127.0.0.1:0") for name in ("api", "edge", "metrics")]
        return [*words, *itertools.chain.from_iterable(ports)]

    def reset_admin(self, **named):
        return subprocess.run(self.reset_command(), capture_output=True, text=True, timeout=60, **named)

    def json_of(self, name):
        """A state file of the pki directory, parsed."""
        return json.loads((self.pki / name).read_text())

    def one_generation(self):
        """client.key, client.crt, client.p12 and .p12-password are of one identity, and it is let in; its serial."""
        password = (self.pki / ".p12-password").read_text()
        bundle = (self.pki / "client.p12").read_bytes()
        expect.that(".p12-password opens client.p12", opens(bundle, password))
        key, cert, others = opened(bundle, password)
        expect.equal("client.crt is in client.p12", (self.pki / "client.crt").read_text(), pem_of_cert(cert))
        expect.equal("client.key is in client.p12", public_of(load_key(self.pki / "client.key")), public_of(key))
        expect.equal("client.key is of client.crt", public_of(key), public_of(cert))
        ca = [pem_of_cert(each) for each in others]
        expect.equal("ca.crt is in client.p12", ca, [(self.pki / "ca.crt").read_text()])
        expect.status("the admin of the directory is let in", self.call(self.admin(), "GET", ADMIN_ONLY), 200)
        return serial_text(cert.serial_number)

    def left_over(self):
        """Files of changes that were not finished."""
        places = [*self.pki.rglob("*"), *self.config.parent.glob(f"{self.config.name}.*")]
        return [str(each) for each in places if re.fullmatch(r"\.staging|\.intent|.*adit-new", each.name)]

    def revoked_serials(self):
        path = self.pki / "revoked.json"
        return [entry["serial"] for entry in json.loads(path.read_text())["revoked"]] if path.exists() else []

    def crl_serials(self):
        """The serials of crl.pem, which must be the CA's."""
        return crl_serials(self.pki / "crl.pem", self.pki / "ca.crt")


class Caller:
    """HTTP/1.1 over TLS, with a client certificate or none; looks at the server's as little as `curl -k`.

    Never repeats a request. `plain=True` leaves TLS out, for the port behind a proxy.
    """

    heard = []  # every answer of the whole run, for the search for secrets

    def __init__(
        self, port, identity=None, tls=None, keep_alive=False, timeout=30.0, headers=None, source=None, plain=False
    ):
        place = ("127.0.0.1", port)
        source = (source, 0) if source else None
        if plain:
            self.connection = http.client.HTTPConnection(*place, timeout=timeout, source_address=source)
        else:
            context = tls_context(identity, tls)
            self.connection = http.client.HTTPSConnection(
                *place, timeout=timeout, source_address=source, context=context
            )
        self._keep_alive = keep_alive
        self._headers = headers or {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def ask(self, method, path, body=None, headers=None):
        """`body` is sent as JSON, or as it is when it is bytes. A header with None is not sent."""
        sent = {"Accept": "application/json", **self._headers}
        if body is not None:
            sent["Content-Type"] = "application/json"
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent.update(headers or {})
        sent = {name: value for name, value in sent.items() if value is not None}
        try:
            self.connection.request(method, path, body, sent)
            response = self.connection.getresponse()
            answer = Answer(response.status, response.headers, response.read())
        except BaseException:
            self.connection.close()
            raise
        if not self._keep_alive:
            self.connection.close()
        Caller.heard.append((method, path, answer))
        return answer


def tls_context(identity=None, tls=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    # The scripts also hold certificates that nobody would make today.
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    if tls is not None:
        version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[tls]
        context.minimum_version = context.maximum_version = version
    if identity is not None:
        context.load_cert_chain(identity.cert, identity.key)
    return context


# --- expectations -------------------------------------------------------------


def answers(what, answer, status, body, headers=None):
    """Status and body are exactly these; the body compared byte by byte when it is written as the server must."""
    expect.status(what, answer, status)
    wanted = body if isinstance(body, bytes) else compact(body)
    expect.equal(f"{what}: the body", answer.body, wanted)
    expect.equal(f"{what}: the content type", answer.headers.get("content-type"), JSON_TYPE)


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def issues(*pairs):
    """The body of a validation failure: each pair is a path and a message."""
    listed = [{"path": list(path), "message": message} for path, message in pairs]
    return {"error": VALIDATION, "details": {"issues": listed}}


def an_error(what, answer, *statuses):
    """One of the statuses, with a JSON object whose `error` is a text."""
    expect.status(what, answer, *statuses)
    expect.equal(f"{what}: the content type", answer.headers.get("content-type"), JSON_TYPE)
    try:
        document = answer.json
    except ValueError:
        document = None
    holds = isinstance(document, dict) and isinstance(document.get("error"), str)
    expect.that(f"{what}: the body is an object with a text `error`", holds, answer)


def keys_in_order(what, answer, *names):
    expect.equal(f"{what}: its fields in their order", list(answer), list(names))


# --- openssl and keys ---------------------------------------------------------


def openssl(*words, **named):
    """Runs `openssl`, which must succeed; returns what it prints."""
    done = try_openssl(*words, **named)
    what = " ".join(["openssl", *map(str, words)])
    expect.that(f"{what} succeeds", done.returncode == 0, f"{done.stdout}{done.stderr}")
    return done.stdout


def try_openssl(*words, **named):
    named = {"text": True, **named}
    return subprocess.run(["openssl", *map(str, words)], capture_output=True, timeout=120, **named)


def serial_of(cert):
    return openssl("x509", "-in", cert, "-noout", "-serial").strip().partition("=")[2]


def serial_text(number):
    """Upper-case hex, two digits an octet."""
    return number.to_bytes(max(1, (number.bit_length() + 7) // 8)).hex().upper()


def end_of(cert):
    """notAfter as the API writes it: `2028-11-21T19:00:00.000Z`."""
    printed = openssl("x509", "-in", cert, "-noout", "-enddate", "-dateopt", "iso_8601").strip().partition("=")[2]
    return printed.replace(" ", "T").replace("Z", ".000Z")


def crl_serials(crl, ca):
    done = try_openssl("crl", "-in", crl, "-CAfile", ca, "-noout", "-verify")
    expect.that(f"{crl} is signed by {ca}", "verify OK" in done.stdout + done.stderr, done.stdout + done.stderr)
    text = openssl("crl", "-in", crl, "-noout", "-text")
    return [line.split(":", 1)[1].strip() for line in text.splitlines() if "Serial Number:" in line]


def keep(work, cert, key):
    """Writes a certificate and its key to files of their own."""
    stem = work / f"identity-{next(_numbers)}"
    paths = stem.with_suffix(".crt"), stem.with_suffix(".key")
    for path, pem in zip(paths, (cert, key), strict=True):
        path.write_bytes(pem if isinstance(pem, bytes) else pem.encode())
    return Identity(*paths)


def from_p12(work, bundle, password):
    """The leaf and the key of a bundle, by `openssl pkcs12` and without `-legacy`."""
    path = work / f"bundle-{next(_numbers)}.p12"
    path.write_bytes(bundle)
    words = ["pkcs12", "-in", path, "-passin", "stdin", "-nodes"]
    cert = openssl(*words, "-clcerts", "-nokeys", input=password)
    key = openssl(*words, "-nocerts", input=password)
    return keep(work, cert, key)


def opened(bundle, password):
    """Key, certificate and the other certificates of a bundle, by pyca/cryptography."""
    return pkcs12.load_key_and_certificates(bundle, password.encode())


def opens(bundle, password):
    try:
        return bool(opened(bundle, password))
    except ValueError:
        return False


def load_key(path):
    return serialization.load_pem_private_key(path.read_bytes(), None)


def public_of(holder):
    """The public key of a key or a certificate, comparable."""
    return holder.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def pem_of_cert(cert):
    return cert.public_bytes(serialization.Encoding.PEM).decode()


def ec_key():
    return ec.generate_private_key(ec.SECP256R1())


def pem_of(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def csr_of(key, common_name="agent:pending", digest=None, extensions=()):
    """A request as the agents make it. The digest is SHA-256; Ed25519 keys have none."""
    names = [(NameOID.COMMON_NAME, common_name), (NameOID.ORGANIZATION_NAME, "Portlama")]
    subject = x509.Name([x509.NameAttribute(oid, text) for oid, text in names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    digest = None if digest == "none" else digest or hashes.SHA256()
    return builder.sign(key, digest).public_bytes(serialization.Encoding.PEM).decode()


KEY_KINDS = {
    "p256": "-algorithm EC -pkeyopt ec_param_enc:named_curve -pkeyopt ec_paramgen_curve:P-256",
    "p384": "-algorithm EC -pkeyopt ec_param_enc:named_curve -pkeyopt ec_paramgen_curve:P-384",
    "rsa1024": "-algorithm RSA -pkeyopt rsa_keygen_bits:1024",
    "rsa2048": "-algorithm RSA -pkeyopt rsa_keygen_bits:2048",
    "rsa4096": "-algorithm RSA -pkeyopt rsa_keygen_bits:4096",
    "ed25519": "-algorithm ED25519",
}


def new_key(work, kind="p256"):
    path = work / f"key-{next(_numbers)}.pem"
    openssl("genpkey", *KEY_KINDS[kind].split(), "-quiet", "-out", path)
    return path


def sign_by_hand(work, pki, subject, kind="p256", version=1, serial=None, days=730, key=None, request_options=()):
    """A client certificate as the original's shell commands make it: `openssl x509 -req` on the directory's CA.

    OpenSSL 3.0 makes version 1 without an extension file and version 3 with one.
    """
    key = key or new_key(work, kind)
    stem = work / f"by-hand-{next(_numbers)}"
    csr, cert = stem.with_suffix(".csr"), stem.with_suffix(".crt")
    openssl("req", "-new", "-key", key, "-subj", subject, "-utf8", *request_options, "-out", csr)
    words = ["x509", "-req", "-in", csr, "-CA", pki / "ca.crt", "-CAkey", pki / "ca.key", "-sha256", "-out", cert]
    words += ["-set_serial", serial or f"0x{random.getrandbits(152) | 1 << 150:X}", "-days", days]
    if version == 3:
        extensions = stem.with_suffix(".ext")
        extensions.write_text("basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth\n")
        words += ["-extfile", extensions]
    openssl(*words)
    version_line = openssl("x509", "-in", cert, "-noout", "-text").splitlines()[2]
    expect.that(f"openssl made version {version}", f"Version: {version} " in version_line, version_line)
    return Identity(cert, key)


def another_ca(work):
    """A directory with a ca.key and ca.crt of the same name as the server's, but not its."""
    place = work / f"another-ca-{next(_numbers)}"
    place.mkdir()
    key = new_key(work)
    (place / "ca.key").write_bytes(key.read_bytes())
    openssl("req", "-x509", "-key", key, "-subj", "/CN=Adit Panel CA/O=Adit", "-days", 30, "-out", place / "ca.crt")
    return place


# --- ports, files, many at once -----------------------------------------------


def free_port():
    for port in random.SystemRandom().sample(PORTS, 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


def mode_of(path):
    return path.stat().st_mode & 0o777


def at_once(calls):
    """Calls all of them at the same time, each in a thread of its own; returns their results in order."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def replace_file(path, text):
    """Puts a new file in the place of the old one, as an editor or `jq … > tmp && mv` does; keeps the mode."""
    fresh = path.with_name(f"{path.name}.by-hand")
    fresh.write_bytes(text if isinstance(text, bytes) else text.encode())
    if path.exists():
        fresh.chmod(mode_of(path))
    fresh.replace(path)


def sections(*named):
    """Runs every (name, function), each of which gives a list of checks or none; fails at the end if one failed.

    A section that breaks off is a failure of its own, and the others go on.
    """
    failures = []
    for name, section in named:
        print(f"--- {name}", flush=True)
        try:
            section(lambda checks: failures.extend(filter(None, expect.together(checks, 1))))
        except Exception as error:
            kind = "" if isinstance(error, expect.Failed) else f"{type(error).__name__}: "
            print(f"FAILED  {name} broke off\n    {kind}{error}".replace("\n", "\n    "), flush=True)
            failures.append(f"{name} broke off")
            if not isinstance(error, expect.Failed):
                import traceback

                traceback.print_exc(file=sys.stdout)
    if failures:
        raise expect.Failed(f"{len(failures)} checks do not hold: {'; '.join(failures)}")
