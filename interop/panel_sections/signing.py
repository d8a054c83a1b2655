"""Requests that are signed, requests that must not be, and what is in the certificates."""

import re
import ssl

from cryptography.hazmat.primitives import serialization

import expect
from panel_sections.judging import profile
from panel_sections.rig import Checks
from panel_sections.texts import CSR_TOO_LARGE, EMPTY_CSR, INVALID_CSR, NO_CSR, SCOPE, TOKEN_USED
from panel_server import answers, csr_of, ec_key, issues, keep, new_key, openssl


def requests(report, rig):
    with rig.panel() as panel:
        admin = panel.admin()
        other, _ = panel.enrolled(admin, "other")
        bad = bad_requests(panel, other)
        large = csr_of(ec_key())
        large += "\n" * (8193 - len(large))
        checks = Checks()
        token = panel.token(admin, "patient")

        for name, csr in bad.items():

            def refuses(csr=csr):
                answers("enrol", panel.enrol(token, csr), 400, INVALID_CSR)

            checks.append((f"8 6.3 refused: {name}", refuses))
        checks.table(
            "8 6.3",
            panel.enrol,
            [
                ("8193 octets", (token, large), 400, CSR_TOO_LARGE),
                ("8193 octets of rubbish", (token, (NO_CSR + "x" * 8193)[:8193]), 400, CSR_TOO_LARGE),
                (
                    "NEW CERTIFICATE REQUEST",
                    (token, large[:900].replace("CERT", "NEW CERT")),
                    400,
                    issues(EMPTY_CSR[1]),
                ),
            ],
        )

        @checks("8 6.3 the same for the upgrades of an agent and of the admin, who stay what they are")
        def _():
            agent, _ = panel.enrolled(admin, "upgrading")
            for who, path in (
                (agent, "/api/certs/agent/upgrade-cert"),
                (admin, "/api/certs/admin/upgrade-to-hardware-bound"),
            ):
                for name, csr in bad.items():
                    answers(f"{name}: {path}", panel.call(who, "POST", path, {"csr": csr}), 400, INVALID_CSR)
                answers(f"8193 octets: {path}", panel.call(who, "POST", path, {"csr": large}), 400, CSR_TOO_LARGE)
            answers("the admin", panel.call(admin, "GET", "/api/certs/admin/auth-mode"), 200, {"adminAuthMode": "p12"})
            expect.status("the agent", panel.call(agent, "GET", "/api/tunnels"), 200)

        @checks("8, 12 the token is as good as new after all of them; what the request asked for is not there")
        def _():
            key, csr = hostile_request(rig.work)
            answer = panel.enrol(token, csr)
            expect.status("enrol", answer, 200)
            answers("replay", panel.enrol(token, csr), 401, TOKEN_USED)
            answers("another request", panel.enrol(token, csr_of(ec_key())), 401, TOKEN_USED)
            made = keep(rig.work, answer.json["cert"], key.read_text())
            profile(panel, made.cert, "agent:patient")
            text = openssl("x509", "-in", made.cert, "-noout", "-text")
            for word in (
                "evil",
                "admin",
                "DNS:",
                "Subject Alternative",
                "CA:TRUE",
                "Certificate Sign",
                "CRL Sign",
                "1.2.3.4",
            ):
                expect.that(f"nothing of {word}", word.lower() not in text.lower(), text)
            answers("an agent it is", panel.call(made, "GET", "/api/certs"), 403, SCOPE)
            answers("with its tunnels", panel.call(made, "GET", "/api/tunnels"), 200, {"tunnels": []})

        @checks("12 a request that insists on an extension that nobody knows is refused; its token stays good")
        def _():
            token = panel.token(admin, "strange")
            _, csr = hostile_request(rig.work, "critical,")
            answers("critical", panel.enrol(token, csr), 400, INVALID_CSR)
            expect.status("again", panel.enrol(token, hostile_request(rig.work, "")[1]), 200)

        @checks("12 good requests of every accepted kind, as clients make them")
        def _():
            options = ("req", "-new", "-subj", "/CN=agent:pending/O=Portlama")
            for kind in ("p256", "p384", "rsa2048", "ed25519"):
                key = new_key(rig.work, kind)
                csr = openssl(*options, "-key", key)
                if kind == "p384":
                    csr = "\n\n  " + csr.replace("\n", "\r\n") + "\r\n "
                if kind == "rsa2048":
                    csr += "\n" * (8192 - len(csr))
                answer = panel.enrol(panel.token(admin, f"good-{kind}"), csr)
                expect.status(kind, answer, 200)
                made = keep(rig.work, answer.json["cert"], key.read_text())
                profile(panel, made.cert, f"agent:good-{kind}")
                expect.status("tunnels", panel.call(made, "GET", "/api/tunnels"), 200)

        @checks("12 every certificate that there is: openssl verify, profile, serials")
        def _():
            panel.agent(admin, "bundled")
            profile(panel, panel.pki / "client.crt", "admin")
            profile(panel, panel.pki / "agents" / "bundled" / "client.crt", "agent:bundled")
            text = openssl("x509", "-in", panel.pki / "ca.crt", "-noout", "-text", "-nameopt", "RFC2253,-dn_rev")
            expect.that("the CA is named", "Subject: CN=Adit Panel CA,O=Adit" in text, text)
            expect.that("and is one", "CA:TRUE" in text and "Version: 3 " in text, text)
            serials = [each["serial"] for each in panel.done(admin, "GET", "/api/certs/agent")["agents"]] + [
                admin.serial
            ]
            expect.equal("no serial twice", len(set(serials)), len(serials))
            for serial in serials:
                expect.that("16 to 20 octets", re.fullmatch("([0-9A-F]{2}){16,20}", serial), serial)

        @checks("8 6.3 a key is free again when its certificate is revoked")
        def _():
            csr = csr_of(serialization.load_pem_private_key(other.key.read_bytes(), None))
            token = panel.token(admin, "heir")
            answers("while it lives", panel.enrol(token, csr), 400, INVALID_CSR)
            panel.done(admin, "DELETE", "/api/certs/agent/other")
            expect.status("afterwards", panel.enrol(token, csr), 200)

        report(checks)


def bad_requests(panel, other):
    """Requests for which nothing may be signed, by what is wrong with them."""
    work, subject = panel.work, ("-subj", "/CN=agent:pending/O=Portlama")
    key = new_key(work)

    def request(key, *more):
        return openssl("req", "-new", "-key", key, *subject, *more)

    good = request(key)
    der = openssl("req", "-outform", "DER", input=good.encode(), text=False)
    tampered = bytearray(der)
    tampered[-3] ^= 1
    renamed = der.replace(b"agent:pending", b"agent:penguin")
    third = work / "exponent-3.pem"
    openssl(
        *"genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_keygen_pubexp:3 -quiet -out".split(), third
    )
    koblitz, explicit, edwards = (work / f"{name}.pem" for name in ("koblitz", "explicit", "edwards"))
    curve = "genpkey -algorithm EC -quiet -pkeyopt ec_paramgen_curve:"
    openssl(*f"{curve}secp256k1 -pkeyopt ec_param_enc:named_curve -out".split(), koblitz)
    openssl(*f"{curve}P-256 -pkeyopt ec_param_enc:explicit -out".split(), explicit)
    openssl(*"genpkey -algorithm ED448 -quiet -out".split(), edwards)
    base64 = good.splitlines()[1]
    return {
        "RSA-1024": request(new_key(work, "rsa1024")),
        "RSA with the exponent 3": request(third),
        "secp256k1": request(koblitz),
        "P-256 with explicit parameters": request(explicit),
        "Ed448": request(edwards),
        "signed with SHA-1": request(key, "-sha1"),
        "RSA signed with SHA-1": request(new_key(work, "rsa2048"), "-sha1"),
        "RSA signed with MD5": request(new_key(work, "rsa2048"), "-md5"),
        "a tampered signature": request_pem(tampered),
        "a tampered subject": request_pem(renamed),
        "trailing data": request_pem(der + b"\0"),
        "trailing data inside of the block": request_pem(
            bytes([0x30, 0x82, *(len(der) - 2).to_bytes(2, "big")]) + der[4:] + b"\5\0"
        ),
        "cut short": request_pem(der[:-1]),
        "no DER": NO_CSR,
        "nothing": "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n",
        "no end": good.replace("-----END CERTIFICATE REQUEST-----", ""),
        "two requests": good + good,
        "a certificate behind it": good + other.cert.read_text(),
        "a key in front of it": key.read_text() + good,
        "broken base64": good.replace(base64, base64[:-4] + "!!!!"),
        "a zero octet": good.replace(base64, base64 + "\0"),
        "the word alone": "BEGIN CERTIFICATE REQUEST",
        "a certificate by that name": request_pem(ssl.PEM_cert_to_DER_cert(other.cert.read_text())),
        "the CA's own key": request(panel.pki / "ca.key"),
        "the key of another active agent": request(other.key),
    }


def request_pem(der):
    return ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")


def hostile_request(work, strange=""):
    """A request for everything that an agent must not have."""
    key, config = new_key(work), work / "hostile.cnf"
    config.write_text(
        "[req]\ndistinguished_name=dn\nreq_extensions=ext\nattributes=more\nprompt=no\nstring_mask=utf8only\n"
        "[more]\nchallengePassword=evil-challenge\nunstructuredName=evil\n"
        "[dn]\n0.CN=admin\n1.CN=agent:evil\nO=Evil\nemailAddress=evil@example.com\n"
        "[ext]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n"
        "extendedKeyUsage=serverAuth,anyExtendedKeyUsage\nsubjectAltName=DNS:evil.example.com,DNS:admin,IP:127.0.0.1\n"
        "subjectKeyIdentifier=hash\n"
        f"1.2.3.4={strange}ASN1:UTF8String:evil\n"
    )
    return key, openssl("req", "-new", "-key", key, "-config", config)
