"""PKCS #12 bundles as OpenSSL and curl read them, and the commands of the original documentation."""

import contextlib
import hashlib
import random
import re
import shutil
import ssl
import time

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12

import expect
from panel_sections.judging import curl, profile, public, spaced
from panel_sections.lineages import LINEAGE, renewals
from panel_sections.rig import Checks
from panel_server import MTLS_REQUIRED, REVOKED, answers, csr_of, ec_key, keep, openssl, pem_of, try_openssl

LEGACY = """\
MAC: sha1, Iteration 2048
MAC length: 20, salt length: 8
PKCS7 Encrypted data: pbeWithSHA1And3-KeyTripleDES-CBC, Iteration 2048
Certificate bag
Certificate bag
PKCS7 Data
Shrouded Keybag: pbeWithSHA1And3-KeyTripleDES-CBC, Iteration 2048
"""
# SEQUENCE { OID pbeWithSHA1And3-KeyTripleDES-CBC, SEQUENCE { OCTET STRING of 8, INTEGER 2048 } }
LEGACY_CIPHER = re.compile(
    re.escape(bytes.fromhex("301c060a2a864886f70d010c0103300e0408")) + b".{8}" + re.escape(bytes.fromhex("02020800")),
    re.DOTALL,
)


def bundles(report, rig):
    checks = Checks()
    for form, kind in (("legacy", "p256"), ("aes256", "p256"), ("legacy", "rsa4096")):
        for kind_checks in bundle_checks(rig, form, kind):
            checks.append(kind_checks)
    report(checks)


def bundle_checks(rig, form, kind):
    """The first bundle of the admin, that of a rotation, and that of an agent."""
    stack, found = contextlib.ExitStack(), {}
    name = f"--panel-p12 {form}, --panel-keys {kind}"

    def starts():
        began = time.monotonic()
        # The settings that are the default are not given.
        named = {} if form == "legacy" else {"panel_p12": form}
        panel = found["panel"] = rig.panel(keys=kind, **named)
        if kind == "rsa4096":
            del panel.settings["panel_keys"]
        stack.enter_context(panel)
        print(f"        first start with {kind}: {time.monotonic() - began:.1f} s")
        text = openssl("x509", "-in", panel.pki / "ca.crt", "-noout", "-text")
        wanted = "Public-Key: (4096 bit)" if kind == "rsa4096" else "NIST CURVE: P-256"
        expect.that(f"the CA's key is {kind}", wanted in text, text)
        expect.equal("its end", (panel.pki / ".p12-password").read_text()[-1:].isspace(), False)
        bundle_is(
            panel,
            (panel.pki / "client.p12").read_bytes(),
            (panel.pki / ".p12-password").read_text(),
            "client",
            form,
            kind,
        )

    def rotates():
        panel, began = found["panel"], time.monotonic()
        admin = panel.admin()
        made = panel.done(admin, "POST", "/api/certs/mtls/rotate")
        print(f"        {kind}: rotated in {time.monotonic() - began:.1f} s")
        bundle = panel.call(admin, "GET", "/api/certs/mtls/download").body
        expect.equal("the file is what was downloaded", (panel.pki / "client.p12").read_bytes(), bundle)
        expect.equal("the password file keeps step", (panel.pki / ".p12-password").read_text(), made["p12Password"])
        bundle_is(panel, bundle, made["p12Password"], "client", form, kind)

    def creates():
        panel, began = found["panel"], time.monotonic()
        _, made = panel.agent(panel.admin(), "bundled")
        print(f"        {kind}: an agent made in {time.monotonic() - began:.1f} s")
        bundle = (panel.pki / "agents" / "bundled" / "client.p12").read_bytes()
        bundle_is(panel, bundle, made["p12Password"], "agents/bundled/client", form, kind)
        wrong = try_openssl("pkcs12", "-in", panel.pki / "client.p12", "-noout", "-passin", "stdin", input="wrong")
        expect.that("another password does not open it", "invalid password" in wrong.stderr, wrong.stderr)

    def ends():
        stack.close()

    return [
        (f"5 6.4 the admin's first bundle, {name}", starts),
        (f"5 6.4 the bundle of a rotation, {name}", rotates),
        (f"5 6.4 the bundle of an agent, {name}", creates),
        (f"5 the server ends, {name}", ends),
    ]


def bundle_is(panel, bundle, password, stem, form, kind):
    """A bundle opens everywhere, and has the leaf, the CA and the key of the directory in it."""
    leaf, key = panel.pki / f"{stem}.crt", panel.pki / f"{stem}.key"
    path = panel.work / f"look-{random.getrandbits(32):x}.p12"
    path.write_bytes(bundle)
    words = ("pkcs12", "-in", path, "-passin", "stdin")
    info = try_openssl(*words, "-info", "-noout", input=password)
    expect.equal("openssl pkcs12 -info opens it without -legacy", info.returncode, 0)
    if form == "legacy":
        expect.equal("its structure", info.stderr, LEGACY)
        expect.equal("both ciphers have 8 octets of salt, 2048 iterations", len(LEGACY_CIPHER.findall(bundle)), 2)
        salts = LEGACY_CIPHER.findall(bundle)
        expect.that("of their own", salts[0] != salts[1])
    else:
        expect.that(
            "AES-256 and no SHA-1", "AES-256-CBC" in info.stderr and "sha1" not in info.stderr.lower(), info.stderr
        )
        expect.that("MAC with SHA-256", info.stderr.startswith("MAC: sha256"), info.stderr)
    shown = openssl(*words, "-nokeys", input=password)
    expect.equal("two certificates, no names", (shown.count("BEGIN CERT"), "friendlyName" in shown), (2, False))
    first, second = shown.split("-----END CERTIFICATE-----")[:2]
    der = ssl.PEM_cert_to_DER_cert(leaf.read_text())
    print_of = hashlib.sha1(der).hexdigest().upper()
    expect.that("the leaf comes first, with the localKeyID", f"localKeyID: {spaced(print_of)}" in first, first)
    expect.that("the CA has no attributes", "localKeyID" not in second and "CN = Adit Panel CA" in second, second)
    keys = openssl(*words, "-nocerts", "-nodes", input=password)
    expect.that("the key has the same localKeyID", f"localKeyID: {spaced(print_of)}" in keys, "(the key)")
    expect.equal("the leaf is the file's", ssl.PEM_cert_to_DER_cert(pem_in(first + "-----END CERTIFICATE-----")), der)
    made, cert, others = pkcs12.load_key_and_certificates(bundle, password.encode())
    expect.equal("pyca: the leaf", cert.public_bytes(serialization.Encoding.DER), der)
    authority = ssl.PEM_cert_to_DER_cert((panel.pki / "ca.crt").read_text())
    expect.equal("pyca: the CA", [each.public_bytes(serialization.Encoding.DER) for each in others], [authority])
    stored = serialization.load_pem_private_key(key.read_bytes(), None)
    expect.that("pyca: the key is the file's, and the leaf's", public(made) == public(stored) == public(cert))
    expect.equal("its kind", made.key_size, 4096 if kind == "rsa4096" else 256)
    if kind == "rsa4096":
        expect.equal("its exponent", made.public_key().public_numbers().e, 65537)
    profile(panel, leaf, "admin" if stem == "client" else "agent:bundled")
    asked = "/api/certs/admin/auth-mode" if stem == "client" else "/api/tunnels"
    for tls in ("1.2", "1.3"):
        got = curl(panel, "GET", asked, bundle=path, password=password, options=("--tlsv1.2", "--tls-max", tls))
        expect.status(f"curl --cert-type P12, TLS {tls}", got, 200)


def pem_in(text):
    return text[text.index("-----BEGIN") :]


def cheat_sheet(report, rig):
    """The 14 commands of the documentation's cheat sheet, in an order in which each can succeed."""
    with rig.panel(**renewals(rig)) as panel:
        checks = Checks()
        now = {"bundle": rig.work / "client.p12", "password": (panel.pki / ".p12-password").read_text()}
        shutil.copy(panel.pki / "client.p12", now["bundle"])
        numbers = iter(range(1, 15))

        def run(name, method, path, holds, body=None, public=False):
            def command():
                answer = curl(panel, method, path, body() if callable(body) else body, **({} if public else now))
                expect.status(name, answer, 200)
                expect.that(f"{name}: the answer", holds(answer), answer)

            checks.append((f"5 curl {next(numbers)}: {name}", command))

        run("list all certificates", "GET", "/api/certs", lambda got: len(got.json["certs"]) == 4)
        run(
            "check the auto-renewal timer",
            "GET",
            "/api/certs/auto-renew-status",
            lambda got: got.json["active"] is True,
        )
        run("force-renew", "POST", f"/api/certs/{LINEAGE}/renew", lambda got: got.json["ok"] and got.json["newExpiry"])
        run("rotate", "POST", "/api/certs/mtls/rotate", lambda got: now.update(rotated=got.json["p12Password"]) is None)

        def download():
            password = now.pop("rotated")
            answer = curl(panel, "GET", "/api/certs/mtls/download", **now)
            expect.equal("content-type", (answer.status, answer.headers["content-type"]), (200, "application/x-pkcs12"))
            now.update(bundle=rig.work / "client-new.p12", password=password)
            now["bundle"].write_bytes(answer.body)

        checks.append((f"5 curl {next(numbers)}: download the client certificate, with the old one", download))
        label = "macbook-pro"
        create = {
            "label": label,
            "capabilities": ["tunnels:read", "sites:read", "sites:write"],
            "allowedSites": ["blog"],
        }
        run("generate an agent's", "POST", "/api/certs/agent", lambda got: got.json["label"] == label, create)
        run("list agents", "GET", "/api/certs/agent", lambda got: got.json["agents"][0]["allowedSites"] == ["blog"])
        wide, sites = ["tunnels:read", "services:read"], ["blog", "docs"]
        path = f"/api/certs/agent/{label}"
        run(
            "capabilities",
            "PATCH",
            f"{path}/capabilities",
            lambda got: got.json["capabilities"] == wide,
            {"capabilities": wide},
        )
        run(
            "sites",
            "PATCH",
            f"{path}/allowed-sites",
            lambda got: got.json["allowedSites"] == sites,
            {"allowedSites": sites},
        )
        run("revoke", "DELETE", path, lambda got: got.json == {"ok": True, "label": label})
        token = {"label": label, "capabilities": ["tunnels:read", "tunnels:write"]}
        run(
            "a token",
            "POST",
            f"{path.rpartition('/')[0]}/enroll",
            lambda got: now.update(token=got.json["token"]) is None,
            token,
        )
        csr = csr_of(ec_key())
        run(
            "enroll",
            "POST",
            "/api/enroll",
            lambda got: got.json["label"] == label,
            lambda: {"token": now.pop("token"), "csr": csr},
            True,
        )
        run("check the mode", "GET", "/api/certs/admin/auth-mode", lambda got: got.json == {"adminAuthMode": "p12"})
        key = ec_key()
        upgrade = {"csr": csr_of(key, "admin")}

        def upgraded(got):
            now["identity"] = keep(rig.work, got.json["cert"], pem_of(key))
            return got.json["caCert"] == (panel.pki / "ca.crt").read_text()

        run("upgrade", "POST", "/api/certs/admin/upgrade-to-hardware-bound", upgraded, upgrade)

        @checks("5 curl, afterwards: the mode with the new certificate; the old one is refused")
        def _():
            identity = now.pop("identity")
            answers(
                "new",
                curl(panel, "GET", "/api/certs/admin/auth-mode", identity=identity),
                200,
                {"adminAuthMode": "hardware-bound"},
            )
            answers("old", curl(panel, "GET", "/api/certs/admin/auth-mode", **now), 403, REVOKED)
            answers("none", curl(panel, "GET", "/api/certs/admin/auth-mode"), 403, MTLS_REQUIRED)

        report(checks)
