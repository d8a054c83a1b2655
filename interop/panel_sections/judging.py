"""What several sections ask: is it revoked everywhere, does it fit together, what is in a certificate."""

import datetime
import email
import hashlib
import json
import pathlib
import random
import re
import subprocess

from cryptography import x509
from cryptography.hazmat.primitives import serialization

import expect
from panel_sections.texts import NO_CSR
from panel_server import NOT_FOUND, REVOKED, Caller, answers, from_p12, openssl, try_openssl
from server import Answer


def iso(moment):
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def kinds_of(panel, admin):
    return [each["type"] for each in panel.done(admin, "GET", "/api/certs")["certs"]]


def profile(panel, cert, name):
    """Section 6.2, of a certificate that the server has made."""
    authority = panel.pki / "ca.crt"
    openssl("verify", *panel.strictly, "-purpose", "sslclient", "-CAfile", authority, cert)
    text = openssl("x509", "-in", cert, "-noout", "-text", "-nameopt", "RFC2253,-dn_rev,show_type")
    shown = " ".join(text.split())
    for part in (
        "Version: 3 (0x2)",
        f"Subject: CN=UTF8STRING:{name},O=UTF8STRING:Portlama",
        "X509v3 Basic Constraints: critical CA:FALSE",
        "X509v3 Key Usage: critical Digital Signature X509v3",
        "X509v3 Extended Key Usage: TLS Web Client Authentication",
        "X509v3 Subject Key Identifier:",
        "X509v3 Authority Key Identifier:",
    ):
        expect.that(f"{cert}: {part}", part in f"{shown} X509v3", text)
    expect.that(f"{cert}: for clients only", "Client Authentication," not in text, text)
    expect.equal(f"{cert}: no other extensions", text.count("X509v3 ") - text.count("X509v3 extensions"), 5)
    expect.that(f"{cert}: SHA-256", re.search("Algorithm: (ecdsa-with-SHA256|sha256WithRSAEncryption)", text), text)
    made = x509.load_pem_x509_certificate(pathlib.Path(cert).read_bytes())
    now, days = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=730)
    early = now - made.not_valid_before_utc
    left = made.not_valid_after_utc - now
    expect.that(f"{cert}: begins at most 5 minutes ago", -2 <= early.total_seconds() <= 330, made.not_valid_before_utc)
    expect.that(f"{cert}: ends in 730 days", -30 <= (left - days).total_seconds() <= 1, made.not_valid_after_utc)


def spaced(digits):
    return " ".join(digits[at : at + 2] for at in range(0, len(digits), 2))


def public(holder):
    return holder.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def curl(panel, method, path, body=None, bundle=None, password=None, identity=None, options=()):
    """The commands of the original's documentation. What is secret goes in by stdin: `-K -`."""
    out, head = (panel.work / f"curl-{random.getrandbits(40):x}.{kind}" for kind in ("out", "head"))
    lines = [f'url = "{panel.panel_url}{path}"']
    if bundle:
        lines += ['cert-type = "P12"', f'cert = "{bundle}:{password}"']
    if identity:
        lines += [f'cert = "{identity.cert}"', f'key = "{identity.key}"']
    if body is not None:
        text = (body if isinstance(body, str) else json.dumps(body)).replace("\\", "\\\\").replace('"', '\\"')
        lines += ['header = "Content-Type: application/json"', f'data = "{text}"']
    if method != ("GET" if body is None else "POST"):
        lines += [f'request = "{method}"']
    command = [
        "curl",
        "-s",
        "-S",
        "-k",
        "--max-time",
        "30",
        "-o",
        out,
        "-D",
        head,
        "-w",
        "%{http_code}",
        *options,
        "-K",
        "-",
    ]
    done = subprocess.run([*map(str, command)], input="\n".join(lines), capture_output=True, text=True, timeout=60)
    expect.equal(f"curl {method} {path} gets an answer", (done.returncode, done.stderr), (0, ""))
    headers = email.message_from_string(head.read_text().partition("\n")[2])
    answer = Answer(int(done.stdout), headers, out.read_bytes() if out.exists() else b"")
    Caller.heard.append((method, path, answer))
    return answer


def refused_as_revoked(panel, identity, but_download=False):
    """Every path refuses the certificate, except health, and the download while a rotation's grace lasts."""
    for method, path, body in (
        ("GET", "/api/certs", None),
        ("GET", "/api/certs/agent", None),
        ("GET", "/api/certs/admin/auth-mode", None),
        ("GET", "/api/certs/mtls/download?x", None) if not but_download else ("GET", "/api/tunnels", None),
        ("POST", "/api/certs/mtls/rotate", None),
        ("POST", "/api/certs/agent", {"label": "never"}),
        ("POST", "/api/certs/agent/enroll", {"label": "never"}),
        ("DELETE", "/api/certs/agent/never", None),
        ("POST", "/api/certs/admin/upgrade-to-hardware-bound", {"csr": NO_CSR}),
        ("GET", "/api/onboarding/status", None),
        ("GET", "/api/tunnels", None),
        ("GET", "/api/settings/2fa", None),
    ):
        answers(f"{method} {path}", panel.call(identity, method, path, body), 403, REVOKED)
    answers("POST to the download", panel.call(identity, "POST", "/api/certs/mtls/download"), 404, NOT_FOUND)
    expect.status("health", panel.call(identity, "GET", "/api/health"), 200)
    page = panel.call(identity, "GET", "/")
    expect.status("the page", page, 403)
    download = panel.call(identity, "GET", "/api/certs/mtls/download")
    if but_download:
        expect.equal("the download", (download.status, download.body), (200, (panel.pki / "client.p12").read_bytes()))
    else:
        answers("the download", download, 403, REVOKED)


def is_listed(panel, serial, label=None, pem=None):
    """In revoked.json once, in crl.pem once, and for `openssl verify -crl_check`."""
    entries = [each for each in panel.json_of("revoked.json")["revoked"] if each["serial"] == serial]
    expect.equal(f"revoked.json has {serial} once", len(entries), 1)
    expect.equal(f"crl.pem has {serial} once", panel.crl_serials().count(serial), 1)
    if label:
        expect.equal("its label", entries[0]["label"], label)
    if pem:
        done = crl_check(panel, pem)
        expect.that(f"openssl verify -crl_check finds {serial} revoked", "certificate revoked" in done.stderr, done)


def is_not_listed(panel, identity):
    done = crl_check(panel, identity.cert)
    expect.equal("openssl verify -crl_check finds no fault", (done.returncode, done.stderr), (0, ""))


def crl_check(panel, cert):
    words = ("-crl_check", "-CAfile", panel.pki / "ca.crt", "-CRLfile", panel.pki / "crl.pem")
    return try_openssl("verify", *panel.strictly, *words, cert)


def snapshot(panel):
    """The content of every file that counts."""
    files = [each for each in (panel.config, *panel.pki.rglob("*")) if each.is_file() and each.name != ".lock"]
    return {str(each): hashlib.sha256(each.read_bytes()).hexdigest() for each in files}


def together(panel):
    """client.crt, client.key, client.p12 and .p12-password are of one generation, and let in."""
    password = (panel.pki / ".p12-password").read_text()
    panel._rig.secrets.add(".p12-password", password)
    inside = from_p12(panel.work, (panel.pki / "client.p12").read_bytes(), password)
    admin = panel.admin()
    expect.equal(
        "the bundle's certificate",
        inside.cert.read_text()[inside.cert.read_text().index("-----") :],
        admin.cert.read_text(),
    )
    keys = [serialization.load_pem_private_key(each.key.read_bytes(), None) for each in (inside, admin)]
    certificate = x509.load_pem_x509_certificate(admin.cert.read_bytes())
    expect.that("the key is the certificate's", public(keys[0]) == public(keys[1]) == public(certificate))
    expect.status("it is let in", panel.call(inside, "GET", "/api/certs"), 200)
    return admin
