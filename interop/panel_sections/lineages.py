"""The host's certificates: listed and renewed, with a certbot that stands in for the real one."""

import datetime
import random

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

import expect
from panel_sections.judging import iso, kinds_of
from panel_server import an_error, answers, ec_key, end_of, issues, keys_in_order

LINEAGE = "app.example.com"
FAILING = "fails.example.com"


def renewals(rig):
    """Settings for stand-ins of certbot and systemctl, and the directory that they are about."""
    place = rig.work / f"letsencrypt-{random.getrandbits(32):x}"
    for name in (LINEAGE, FAILING):
        (place / "live" / name).mkdir(parents=True)
        (place / "renewal").mkdir(exist_ok=True)
        (place / "renewal" / f"{name}.conf").write_text("version = 2.1.0\n")
        write_certificate(place / "live" / name / "fullchain.pem", name, days=60 if name == LINEAGE else 20)
    certbot, systemctl = place / "certbot", place / "systemctl"
    write_certificate(place / "next.pem", LINEAGE, days=90)
    script(
        certbot,
        f"""
        echo "$*" >> {place}/calls
        case "$*" in
        renew*{FAILING}*) printf 'Saving debug log\\nThe ACME server \\033[1msaid\\033[0m no\\n' >&2; exit 1 ;;
        renew*{LINEAGE}*) cp {place}/next.pem {place}/live/{LINEAGE}/fullchain.pem; exit 0 ;;
        renew*) echo "No certificate found with name x (expected /etc/letsencrypt/renewal/x.conf)." >&2; exit 1 ;;
        *) echo "No certificates found."; exit 0 ;;
        esac
        """,
    )
    script(
        systemctl,
        """
        case "$*" in
        *is-active*) echo active; exit 0 ;;
        *unix*) next=@1795834800 last=@1795791845 ;;
        *) next="Sat 2026-11-28 03:00:00 UTC" last="Fri 2026-11-27 15:04:05 UTC" ;;
        esac
        printf 'ActiveState=active\\nNextElapseUSecRealtime=%s\\nLastTriggerUSec=%s\\n' "$next" "$last"
        """,
    )
    return {
        "panel_letsencrypt_dir": place,
        "panel_certbot": certbot,
        "panel_systemctl": systemctl,
        "panel_renewal_timeout": "10s",
    }


def script(path, text):
    path.write_text("#!/bin/sh\n" + "\n".join(line.strip() for line in text.strip().splitlines()) + "\n")
    path.chmod(0o755)


def write_certificate(path, name, days, seconds=0):
    """A certificate of nobody in particular that ends so many days and seconds from now."""
    key, now = ec_key(), datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=100))
    end = now + datetime.timedelta(days=days, seconds=seconds)
    made = builder.not_valid_after(end).sign(key, hashes.SHA256())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return iso(end)


def listing(checks, panel, admin, live):
    @checks("3 7.1 all certificates: the soonest first, the fields in their order, 30 days are soon")
    def _():
        ends = {
            "expired.example.com": write_certificate(live / "expired.example.com" / "fullchain.pem", "x", -2, -3600),
            "a.example.com": write_certificate(live / "a.example.com" / "fullchain.pem", "x", 30, 3600),
            "b.example.com-0001": write_certificate(live / "b.example.com-0001" / "fullchain.pem", "x", 31, 3600),
            "like.example.com": write_certificate(live / "like.example.com" / "fullchain.pem", "x", 729, 3600),
        }
        days = {"expired.example.com": -3, "a.example.com": 30, "b.example.com-0001": 31, "like.example.com": 729}
        for name, length in ((LINEAGE, 60), (FAILING, 20)):
            ends[name], days[name] = end_of(live / name / "fullchain.pem"), length
            ends[name] = write_certificate(live / name / "fullchain.pem", name, length, 3600)
        (live / "README").write_text("a file of certbot\n")
        wanted = [
            entry("letsencrypt", name, ends[name], days[name], live / name / "fullchain.pem")
            for name in sorted(ends, key=lambda name: days[name])
        ]
        wanted.append(entry("mtls-client", None, end_of(panel.pki / "client.crt"), 729, panel.pki / "client.crt"))
        wanted.append(entry("mtls-ca", None, end_of(panel.pki / "ca.crt"), 3649, panel.pki / "ca.crt"))
        answers("the list", panel.call(admin, "GET", "/api/certs"), 200, {"certs": wanted})

    @checks("3 7.1 a source that cannot be read is left out, the others are listed")
    def _():
        for name in ("client.crt", "ca.crt"):
            path = panel.pki / name
            hidden = path.with_name(f"{name}.hidden")
            path.rename(hidden)
            try:
                kinds = kinds_of(panel, admin)
                left = {"client.crt": "mtls-ca", "ca.crt": "mtls-client"}[name]
                expect.equal(f"without {name}", [kind for kind in kinds if kind != "letsencrypt"], [left])
                expect.equal("certbot's", kinds.count("letsencrypt"), 6)
            finally:
                hidden.rename(path)
        (live / "a.example.com" / "fullchain.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n")
        kinds = kinds_of(panel, admin)
        expect.equal("ours beside a broken one of certbot's", kinds[-2:], ["mtls-client", "mtls-ca"])
        expect.that("the others of certbot's", kinds.count("letsencrypt") >= 5, kinds)
        hidden = live.with_name("hidden")
        live.rename(hidden)
        try:
            expect.equal("without certbot's", kinds_of(panel, admin), ["mtls-client", "mtls-ca"])
        finally:
            hidden.rename(live)

    @checks("3 7.2 the timer")
    def _():
        answers(
            "the timer",
            panel.call(admin, "GET", "/api/certs/auto-renew-status"),
            200,
            {"active": True, "nextRun": "2026-11-28T03:00:00.000Z", "lastRun": "2026-11-27T15:04:05.000Z"},
        )


def entry(kind, domain, end, days, path):
    return {
        "type": kind,
        "domain": domain,
        "expiresAt": end,
        "daysUntilExpiry": days,
        "path": str(path),
        "expiringSoon": days <= 30,
    }


def renewing(checks, panel, admin, settings):
    place = settings["panel_letsencrypt_dir"]
    invalid = issues((["domain"], "Invalid domain name"))
    refused = [
        "localhost",
        "App.example.com",
        "a..b",
        "..",
        "...",
        "-a.example.com",
        "a-.example.com",
        "a.example.com.",
        ".example.com",
        "a_b.example.com",
        "x;y.com",
        "evil.com;inject",
        "a%20b.com",
        "a%2Fb.com",
        "%2e%2e%2fx.com",
        "a.com%0A",
        "a.com%00",
        "*.example.com",
        "--help.com-",
        "caf%C3%A9.com",
        "a" * 64 + ".com",
        ".".join(["a" * 62] * 4) + ".com",
    ]
    for domain in refused:

        def refuses(domain=domain):
            answers(domain, panel.call(admin, "POST", f"/api/certs/{domain}/renew"), 400, invalid)

        # `..` is taken out of the path by some parsers; then there is no such path.
        if domain not in ("..", "..."):
            checks.append((f"3 7.3 no domain: {domain[:40]}", refuses))

    @checks("3 7.3 a renewal")
    def _():
        (place / "calls").unlink(missing_ok=True)
        wanted = {"ok": True, "domain": LINEAGE, "newExpiry": end_of(place / "next.pem")}
        answers("renew", panel.call(admin, "POST", f"/api/certs/{LINEAGE}/renew"), 200, wanted)
        calls = (place / "calls").read_text().splitlines()
        expect.equal(
            "how certbot was called",
            calls,
            [f"renew --cert-name {LINEAGE} --force-renewal --no-random-sleep-on-renew --non-interactive"],
        )

    @checks("3 7.3 no such certificate")
    def _():
        for domain in ("unknown.example.com", "a.b", "xn--caf-dma.com", ".".join(["a" * 61] * 4) + ".com"):
            answers(
                domain, panel.call(admin, "POST", f"/api/certs/{domain}/renew"), 404, {"error": "Certificate not found"}
            )

    @checks("3 7.3 certbot fails: details are one line of text, of at most 500 characters")
    def _():
        answer = panel.call(admin, "POST", f"/api/certs/{FAILING}/renew")
        an_error("renew", answer, 500)
        keys_in_order("the body", answer.json, "error", "details")
        expect.equal("error", answer.json["error"], "Certificate renewal failed")
        details = answer.json["details"]
        expect.that(
            "details tell what certbot said", isinstance(details, str) and "The ACME server" in details, details
        )
        expect.that("one line, without control characters", details.isprintable() and len(details) <= 500, details)
