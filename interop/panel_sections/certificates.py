"""Client certificates of every kind, and who is let in with them."""

import datetime
import json
import random
import shutil
import socket
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import expect
from panel_sections.judging import iso
from panel_sections.rig import Checks
from panel_sections.texts import SCOPE
from panel_server import (
    MTLS_REQUIRED,
    Identity,
    an_error,
    another_ca,
    answers,
    ec_key,
    issues,
    keep,
    new_key,
    openssl,
    pem_of,
    replace_file,
    sign_by_hand,
    try_openssl,
)


def certificates(report, rig):
    with rig.panel() as panel:
        admin = panel.admin()
        agent, _ = panel.agent(admin, "hand")
        checks = Checks()
        for name in ("admin", "Portlama Client"):
            for version in (1, 3):
                for kind in ("p256", "rsa2048"):

                    def enters(name=name, version=version, kind=kind):
                        made = sign_by_hand(rig.work, panel.pki, f"/CN={name}/O=Portlama", kind, version)
                        for tls in ("1.2", "1.3"):
                            answer = panel.call(made, "GET", "/api/certs", tls=tls)
                            expect.status(f"TLS {tls}", answer, 200)
                            answers(
                                f"TLS {tls}",
                                panel.call(made, "GET", "/api/certs/admin/auth-mode", tls=tls),
                                200,
                                {"adminAuthMode": "p12"},
                            )

                    checks.append((f"4 {name}, version {version}, {kind}, TLS 1.2 and 1.3", enters))

        @checks("4 ours: TLS 1.2 and 1.3; 2 no certificate gets an answer, not an alert")
        def _():
            for tls in ("1.2", "1.3"):
                expect.status(f"an admin, TLS {tls}", panel.call(admin, "GET", "/api/certs", tls=tls), 200)
                answers(f"an agent, TLS {tls}", panel.call(agent, "GET", "/api/tunnels", tls=tls), 200, {"tunnels": []})
                answers(f"nobody, TLS {tls}", panel.call(None, "GET", "/api/certs", tls=tls), 403, MTLS_REQUIRED)

        @checks("4 an agent's certificate of version 1, as the original makes it, with the serial of the registry")
        def _():
            for kind in ("p256", "rsa2048"):
                made = sign_by_hand(rig.work, panel.pki, "/CN=agent:old/O=Portlama", kind)
                an_error("not registered", panel.call(made, "GET", "/api/tunnels"), 403)
                registry = panel.json_of("agents/registry.json")
                registry["agents"] = [each for each in registry["agents"] if each["label"] != "old"]
                now = datetime.datetime.now(datetime.UTC)
                end = iso(now + datetime.timedelta(days=700))
                more = {"serial": made.serial, "createdAt": iso(now), "expiresAt": end, "revoked": False}
                registry["agents"].append({"label": "old", **more})
                replace_file(panel.pki / "agents" / "registry.json", json.dumps(registry))
                answers("registered", panel.call(made, "GET", "/api/tunnels"), 200, {"tunnels": []})
                answers("not an admin", panel.call(made, "GET", "/api/certs"), 403, SCOPE)

        @checks("4 P-384 and Ed25519 keys, version 1")
        def _():
            for kind in ("p384", "ed25519"):
                made = sign_by_hand(rig.work, panel.pki, "/CN=admin/O=Portlama", kind)
                expect.status(kind, panel.call(made, "GET", "/api/certs"), 200)

        def required(name, make):
            def run():
                identity = make()
                for tls in ("1.2", "1.3"):
                    for path in ("/api/certs", "/api/tunnels", "/api/certs/mtls/download"):
                        got = panel.call(identity, "GET", path, tls=tls)
                        answers(f"GET {path}, TLS {tls}", got, 403, MTLS_REQUIRED)
                    expect.status("health", panel.call(identity, "GET", "/api/health", tls=tls), 200)
                answers(
                    "enrolling goes on",
                    panel.call(identity, "POST", "/api/enroll", {}),
                    400,
                    issues((["token"], "Required"), (["csr"], "Required")),
                )

            checks.append((f"2, 4 not let in: {name}", run))

        foreign = another_ca(rig.work)
        for version in (1, 3):
            required(
                f"another CA of the same name, version {version}",
                lambda version=version: sign_by_hand(rig.work, foreign, "/CN=admin/O=Portlama", version=version),
            )
        days = datetime.timedelta(days=1)
        required("expired", lambda: signed(rig, panel.pki, start=-3 * days, end=-1 * days))
        required("expired, by another CA", lambda: signed(rig, foreign, start=-3 * days, end=-1 * days))
        required("not yet valid", lambda: signed(rig, panel.pki, start=1 * days, end=3 * days))
        required("self-signed", lambda: self_signed(rig))
        required(
            "issued by an agent, chain presented",
            lambda: issued_by(rig, sign_by_hand(rig.work, panel.pki, "/CN=Adit Panel CA/O=Adit")),
        )
        required("issued by an agent of ours, chain presented", lambda: issued_by(rig, agent))
        required("for servers only", lambda: signed(rig, panel.pki, usage=ExtendedKeyUsageOID.SERVER_AUTH))
        required(
            "the certificate of the port itself",
            lambda: Identity(panel.pki / "self-signed.pem", panel.pki / "self-signed-key.pem"),
        )

        @checks("2, 4 expired within a connection that stays open")
        def _():
            made = signed(rig, panel.pki, start=-days, end=datetime.timedelta(seconds=2))
            with panel.caller(made, keep_alive=True) as caller:
                expect.status("at first", caller.ask("GET", "/api/certs"), 200)
                expect.until("it ends", 6, lambda: caller.ask("GET", "/api/certs").status == 403)
                answers("then", caller.ask("GET", "/api/certs"), 403, MTLS_REQUIRED)

        @checks("4 the key must be that of the certificate")
        def _():
            other = Identity(admin.cert, new_key(rig.work))
            expect.raises("Python refuses to mix them", ssl.SSLError, panel.call, other, "GET", "/api/certs")

        @checks("1 the port's own certificate: self-signed, of no CA of ours, ten years")
        def _():
            # Not the CA's, so that nothing that the CA signs can be taken for the panel.
            text = openssl("x509", "-in", panel.pki / "self-signed.pem", "-noout", "-text", "-ext", "subjectAltName")
            expect.that("an address", "IP Address:" in text, text)
            with socket.create_connection(("127.0.0.1", panel.panel_port), 5) as raw:
                context = ssl._create_unverified_context()
                with context.wrap_socket(raw) as tls:
                    served = tls.getpeercert(True)
            wanted = ssl.PEM_cert_to_DER_cert((panel.pki / "self-signed.pem").read_text())
            expect.equal("what is served", served, wanted)
            done = try_openssl("verify", "-CAfile", panel.pki / "ca.crt", panel.pki / "self-signed.pem")
            expect.that("the CA did not sign it", done.returncode != 0, done.stdout)

        report(checks)


def signed(rig, place, start=None, end=None, usage=None, name="admin"):
    """A certificate of version 3 by the CA in `place`, with dates that openssl would not write."""
    authority = x509.load_pem_x509_certificate((place / "ca.crt").read_bytes())
    signer = serialization.load_pem_private_key((place / "ca.key").read_bytes(), None)
    key, now = ec_key(), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(authority.subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now + (start or -datetime.timedelta(days=1)))
    builder = builder.not_valid_after(now + (end or datetime.timedelta(days=1)))
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
    made = builder.sign(signer, hashes.SHA256())
    return keep(rig.work, made.public_bytes(serialization.Encoding.PEM), pem_of(key))


def self_signed(rig):
    key = new_key(rig.work)
    cert = key.with_suffix(".crt")
    openssl("req", "-x509", "-key", key, "-subj", "/CN=admin/O=Portlama", "-days", 3, "-out", cert)
    return Identity(cert, key)


def issued_by(rig, issuer):
    """An admin's certificate that a leaf has signed, with that leaf behind it."""
    place = rig.work / f"leaf-{random.getrandbits(32):x}"
    place.mkdir()
    shutil.copy(issuer.cert, place / "ca.crt")
    shutil.copy(issuer.key, place / "ca.key")
    made = sign_by_hand(rig.work, place, "/CN=admin/O=Portlama", version=3)
    return keep(rig.work, made.cert.read_text() + issuer.cert.read_text(), made.key.read_text())
