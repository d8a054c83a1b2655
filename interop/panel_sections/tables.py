"""Every route with every answer that its table has."""

import datetime
import hashlib
import json
import re

import expect
from panel_sections.judging import iso
from panel_sections.lineages import LINEAGE, listing, renewals, renewing
from panel_sections.rig import Checks
from panel_sections.texts import CAPABILITIES, NOTICE, NO_CA_KEY, SCOPE, TOKEN_UNKNOWN, TOKEN_USED
from panel_server import (
    an_error,
    answers,
    csr_of,
    ec_key,
    end_of,
    issues,
    keep,
    keys_in_order,
    pem_of,
    replace_file,
    serial_of,
)


def tables(report, rig):
    """Section 7, every table; the upgrade has a section of its own."""
    settings = renewals(rig)
    with rig.panel(**settings) as panel:
        admin = panel.admin()
        checks = Checks()
        live = settings["panel_letsencrypt_dir"] / "live"

        def ask(method, path, body=None):
            return panel.call(admin, method, path, body)

        listing(checks, panel, admin, live)
        renewing(checks, panel, admin, settings)
        agents(checks, panel, admin, ask)
        downloads(checks, panel, admin, ask)
        tokens(checks, panel, admin, ask)
        failures(checks, panel, admin, ask)
        report(checks)
        nginx(report, panel, rig)


def agents(checks, panel, admin, ask):
    """7.6, 7.7, 7.9 to 7.11."""

    @checks("3 7.6 a new agent: the answer and the entry of the list, field by field")
    def _():
        began = datetime.datetime.now(datetime.UTC)
        body = {"label": "macbook-pro", "capabilities": CAPABILITIES, "allowedSites": ["blog", "docs"]}
        answer = ask("POST", "/api/certs/agent", body)
        expect.status("create", answer, 200)
        made = answer.json
        keys_in_order("the answer", made, "ok", "label", "p12Password", "serial", "expiresAt")
        expect.that("the password", re.fullmatch("[0-9a-f]{32}", made["p12Password"]), made)
        cert = panel.pki / "agents" / "macbook-pro" / "client.crt"
        expect.equal("the serial, as openssl writes it", made["serial"], serial_of(cert))
        expect.equal("the end, as openssl reads it", made["expiresAt"], end_of(cert))
        end = datetime.datetime.fromisoformat(made["expiresAt"])
        expect.that("730 days", abs((end - began).total_seconds() - 730 * 86400) < 5, made)
        entry = panel.done(admin, "GET", "/api/certs/agent")["agents"][0]
        created = entry.pop("createdAt")
        expect.that("createdAt has milliseconds", re.fullmatch(r"[0-9T:-]{19}\.[0-9]{3}Z", created), created)
        wanted = {
            "label": "macbook-pro",
            "serial": made["serial"],
            "capabilities": CAPABILITIES,
            "allowedSites": ["blog", "docs"],
            "enrollmentMethod": "p12",
            "expiresAt": made["expiresAt"],
            "revoked": False,
            "expiringSoon": False,
        }
        expect.equal("the entry", {name: entry[name] for name in entry if name != "status"}, wanted)
        expect.equal("its status", entry["status"], "active")
        keys_in_order("its fields", entry, *wanted, "status")

    @checks("3 7.6 what is not given")
    def _():
        panel.done(admin, "POST", "/api/certs/agent", {"label": "plain"})
        entry = panel.done(admin, "GET", "/api/certs/agent")["agents"][-1]
        expect.equal("defaults", (entry["capabilities"], entry["allowedSites"]), (["tunnels:read"], []))

    taken = {"error": 'Agent certificate with label "plain" already exists'}
    missing = {"error": 'Agent certificate "nobody" not found'}
    one, sites = "/api/certs/agent/plain/capabilities", "/api/certs/agent/plain/allowed-sites"
    wide = {"capabilities": ["tunnels:read", "tunnels:write", "system:read"]}
    checks.table(
        "3",
        ask,
        [
            ("7.6 a label that is taken", ("POST", "/api/certs/agent", {"label": "plain"}), 409, taken),
            ("7.12 a token for it", ("POST", "/api/certs/agent/enroll", {"label": "plain"}), 409, taken),
            ("7.9 capabilities", ("PATCH", one, wide), 200, {"ok": True, "label": "plain", **wide}),
            ("7.9 nobody", ("PATCH", "/api/certs/agent/nobody/capabilities", wide), 404, missing),
            (
                "7.10 sites",
                ("PATCH", sites, {"allowedSites": ["blog"]}),
                200,
                {"ok": True, "label": "plain", "allowedSites": ["blog"]},
            ),
            (
                "7.10 no sites",
                ("PATCH", sites, {"allowedSites": []}),
                200,
                {"ok": True, "label": "plain", "allowedSites": []},
            ),
            ("7.10 nobody", ("PATCH", "/api/certs/agent/nobody/allowed-sites", {"allowedSites": []}), 404, missing),
            ("7.11 nobody", ("DELETE", "/api/certs/agent/nobody"), 404, missing),
            ("7.8 nobody", ("GET", "/api/certs/agent/nobody/download"), 404, missing),
            ("7.11 revoked", ("DELETE", "/api/certs/agent/plain"), 200, {"ok": True, "label": "plain"}),
            (
                "7.11 revoked twice",
                ("DELETE", "/api/certs/agent/plain"),
                404,
                {"error": 'Agent certificate "plain" not found'},
            ),
            ("7.9 revoked", ("PATCH", one, wide), 404, {"error": 'Agent certificate "plain" not found'}),
            (
                "7.8 revoked",
                ("GET", "/api/certs/agent/plain/download"),
                404,
                {"error": 'Agent certificate "plain" not found'},
            ),
        ],
    )

    @checks("3 7.7, 7.11 a revoked entry stays, its directory does not, and the label is free again")
    def _():
        entry = panel.done(admin, "GET", "/api/certs/agent")["agents"][-1]
        expect.equal("what is left", (entry["label"], entry["revoked"], entry["expiringSoon"]), ("plain", True, False))
        expect.equal("its capabilities", entry["capabilities"], wide["capabilities"])
        expect.equal("status", entry["status"], "revoked")
        expect.that("revokedAt", re.fullmatch(r"[0-9T:-]{19}\.[0-9]{3}Z", entry["revokedAt"]), entry)
        expect.that("no directory", not (panel.pki / "agents" / "plain").exists())
        last = panel.json_of("revoked.json")["revoked"][-1]
        expect.equal("revoked.json", (last["serial"], last["label"]), (entry["serial"], "agent:plain"))
        keys_in_order("its fields", last, "serial", "label", "revokedAt")
        made = panel.done(admin, "POST", "/api/certs/agent", {"label": "plain"})
        expect.that("another serial", made["serial"] != entry["serial"])
        labels = [(each["label"], each["revoked"]) for each in panel.done(admin, "GET", "/api/certs/agent")["agents"]]
        expect.equal("the list", labels, [("macbook-pro", False), ("plain", True), ("plain", False)])

    @checks("3 14.14 labels of every allowed form are creatable, readable and revocable")
    def _():
        for label in ("-lead", "trail-", "-", "--", "0", "a" * 50, "enroll", "upgrade-cert", "download"):
            panel.done(admin, "POST", "/api/certs/agent", {"label": label})
            expect.status(label, ask("GET", f"/api/certs/agent/{label}/download"), 200)
            expect.status(
                label, ask("PATCH", f"/api/certs/agent/{label}/capabilities", {"capabilities": ["tunnels:read"]}), 200
            )
            answers(label, ask("DELETE", f"/api/certs/agent/{label}"), 200, {"ok": True, "label": label})

    @checks("3 3.3 the label of a plugin's agent may stand in a path")
    def _():
        label = "plugin-agent:macbook-pro:x"
        wanted = {"error": f'Agent certificate "{label}" not found'}
        for path in (label, label.replace(":", "%3A")):
            answers(path, ask("DELETE", f"/api/certs/agent/{path}"), 404, wanted)
            answers(path, ask("GET", f"/api/certs/agent/{path}/download"), 404, wanted)

    @checks("3 5.2 an entry without some fields gets them when it is read; soon is 30 days")
    def _():
        registry = panel.json_of("agents/registry.json")
        text = (panel.pki / "agents" / "registry.json").read_text()
        now = datetime.datetime.now(datetime.UTC)
        for label, days in (("old", 30), ("fresh", 31), ("over", -5)):
            end = iso(now + datetime.timedelta(days=days, hours=1))
            registry["agents"].append(
                {
                    "label": label,
                    "serial": f"0A{days & 255:02X}",
                    "createdAt": iso(now),
                    "expiresAt": end,
                    "revoked": False,
                }
            )
        replace_file(panel.pki / "agents" / "registry.json", json.dumps(registry))
        try:
            old, fresh, over = panel.done(admin, "GET", "/api/certs/agent")["agents"][-3:]
        finally:
            replace_file(panel.pki / "agents" / "registry.json", text)
        expect.equal("soon", [each["expiringSoon"] for each in (old, fresh, over)], [True, False, True])
        expect.equal("status", [each["status"] for each in (old, fresh)], ["expiring-soon", "active"])
        for name, value in (("capabilities", ["tunnels:read"]), ("allowedSites", []), ("enrollmentMethod", "p12")):
            expect.equal(name, old[name], value)


def downloads(checks, panel, admin, ask):
    @checks("3 7.5, 7.8 bundles: octets, type, name, and not to be stored")
    def _():
        for path, file, name in (
            ("/api/certs/mtls/download", "client.p12", "client.p12"),
            ("/api/certs/agent/macbook-pro/download", "agents/macbook-pro/client.p12", "macbook-pro.p12"),
        ):
            answer = ask("GET", path)
            expect.equal(path, (answer.status, answer.body), (200, (panel.pki / file).read_bytes()))
            wanted = {
                "content-type": "application/x-pkcs12",
                "content-disposition": f'attachment; filename="{name}"',
                "cache-control": "no-store",
                "content-length": str(len(answer.body)),
            }
            expect.equal("headers", {key: answer.headers.get(key) for key in wanted}, wanted)

    @checks("3 7.5, 7.8 no bundle: 404; one that cannot be read: 500")
    def _():
        for path, file, missing, unreadable in (
            ("/api/certs/mtls/download", "client.p12", "No client certificate found", "Failed to download certificate"),
            (
                "/api/certs/agent/macbook-pro/download",
                "agents/macbook-pro/client.p12",
                'Agent certificate "macbook-pro" not found',
                "Failed to download agent certificate",
            ),
        ):
            file = panel.pki / file
            hidden = file.with_suffix(".hidden")
            file.rename(hidden)
            try:
                answers(f"{path} without it", ask("GET", path), 404, {"error": missing})
                file.mkdir()
                answers(f"{path} of a directory", ask("GET", path), 500, {"error": unreadable})
                file.rmdir()
            finally:
                hidden.rename(file)

    @checks("3 7.8 an agent with a key of its own has no bundle")
    def _():
        panel.enrolled(admin, "own-key")
        wanted = {"error": 'Agent certificate "own-key" not found'}
        answers("download", ask("GET", "/api/certs/agent/own-key/download"), 404, wanted)

    @checks("3 7.13 the mode")
    def _():
        answers("the mode", ask("GET", "/api/certs/admin/auth-mode"), 200, {"adminAuthMode": "p12"})


def tokens(checks, panel, admin, ask):
    """7.12, 7.14, 8.1."""

    @checks("3 7.12 a token; only its hash is stored; a second one is refused")
    def _():
        body = {"label": "tokened", "capabilities": ["tunnels:read", "sites:read"], "allowedSites": ["blog"]}
        began = datetime.datetime.now(datetime.UTC)
        answer = ask("POST", "/api/certs/agent/enroll", body)
        expect.status("create", answer, 200)
        made = answer.json
        keys_in_order("the answer", made, "ok", "token", "label", "expiresAt")
        expect.that("the token", re.fullmatch("[0-9a-f]{64}", made["token"]), made)
        stored = panel.json_of("enrollment-tokens.json")["tokens"][-1]
        digest = hashlib.sha256(made["token"].encode()).hexdigest()
        expect.equal("what is stored", (stored["token"], stored["label"]), (f"sha256:{digest}", "tokened"))
        created, end = (datetime.datetime.fromisoformat(stored[name]) for name in ("createdAt", "expiresAt"))
        expect.equal("its life in ms", (end - created).total_seconds(), 600.0)
        expect.equal("expiresAt", stored["expiresAt"], made["expiresAt"])
        expect.that("created just now", abs((created - began).total_seconds()) < 5, stored)
        exists = {"error": 'An active enrollment token for label "tokened" already exists'}
        answers("a second one", ask("POST", "/api/certs/agent/enroll", body), 409, exists)

    @checks("3 7.14 an enrolment: the answer, and the entry has what the token had")
    def _():
        token = panel.token(admin, "enrolled", capabilities=["tunnels:read", "sites:read"], allowedSites=["blog"])
        key = ec_key()
        answer = panel.enrol(token, csr_of(key))
        expect.status("enrol", answer, 200)
        made = answer.json
        keys_in_order("the answer", made, "ok", "cert", "caCert", "label", "serial", "expiresAt")
        expect.equal("ok and label", (made["ok"], made["label"]), (True, "enrolled"))
        expect.equal("the CA's certificate, as in the file", made["caCert"], (panel.pki / "ca.crt").read_text())
        expect.that("PEM that ends its last line", made["cert"].endswith("-----END CERTIFICATE-----\n"), made["cert"])
        identity = keep(panel.work, made["cert"], pem_of(key))
        expect.equal("serial, end", (made["serial"], made["expiresAt"]), (identity.serial, end_of(identity.cert)))
        entry = panel.done(admin, "GET", "/api/certs/agent")["agents"][-1]
        expect.equal("how", entry["enrollmentMethod"], "hardware-bound")
        expect.equal("what", (entry["capabilities"], entry["allowedSites"]), (["tunnels:read", "sites:read"], ["blog"]))
        expect.that("no key is stored", not list((panel.pki / "agents").glob("enrolled/*")))
        answers("again", panel.enrol(token, csr_of(key)), 401, TOKEN_USED)
        taken = {"error": 'Agent certificate with label "enrolled" already exists'}
        answers("a token for it", ask("POST", "/api/certs/agent/enroll", {"label": "enrolled"}), 409, taken)

    @checks("3 8.1 a token is dropped")
    def _():
        path = "/api/certs/agent/enroll/dropped"
        token = panel.token(admin, "dropped")
        agent, _ = panel.enrolled(admin, "no-admin")
        answers("by an agent", panel.call(agent, "DELETE", path), 403, SCOPE)
        answers(
            "a wrong label",
            ask("DELETE", "/api/certs/agent/enroll/BAD"),
            400,
            issues((["label"], "Invalid agent label")),
        )
        answers("dropped", ask("DELETE", path), 200, {"ok": True, "revoked": True})
        answers("again", ask("DELETE", path), 200, {"ok": True, "revoked": False})
        answers("the token", panel.enrol(token, csr_of(ec_key())), 401, TOKEN_UNKNOWN)
        answers("of nobody", ask("DELETE", "/api/certs/agent/enroll/nobody"), 200, {"ok": True, "revoked": False})
        answers("a used one", ask("DELETE", "/api/certs/agent/enroll/enrolled"), 200, {"ok": True, "revoked": False})
        expect.that("another can be made", panel.token(admin, "dropped") != token)


def failures(checks, panel, admin, ask):
    """What answers 500, with nothing of the cause in it."""
    key = panel.pki / "ca.key"
    csr = csr_of(ec_key())

    def rows(token):
        return (
            ("POST", "/api/certs/mtls/rotate", None, "mTLS rotation failed: "),
            ("POST", "/api/certs/agent", {"label": "unmade"}, "Agent certificate generation failed: "),
            ("POST", "/api/enroll", {"token": token, "csr": csr}, "Enrollment failed"),
            ("POST", "/api/certs/admin/upgrade-to-hardware-bound", {"csr": csr}, "Admin upgrade failed"),
        )

    @checks("3 7.4, 7.6, 7.14, 7.15 no key of the CA, and one that is broken")
    def _():
        token = panel.token(admin, "keyless")
        hidden = panel.pki / "ca.key.hidden"
        key.rename(hidden)
        try:
            for method, path, body, text in rows(token):
                wanted = NO_CA_KEY if text.endswith(": ") else {"error": text}
                answers(f"{path} without ca.key", ask(method, path, body), 500, wanted)
            for content in (
                b"",
                b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                pem_of(ec_key()).encode(),
            ):
                key.write_bytes(content)
                key.chmod(0o600)
                for method, path, body, text in rows(token):
                    answer = ask(method, path, body)
                    an_error(f"{path} with {content[:30]!r}", answer, 500)
                    error = answer.json["error"]
                    if text.endswith(": "):
                        expect.that(
                            "its text", error.startswith(text) and error.endswith("see the server's log"), error
                        )
                    else:
                        expect.equal("its text", error, text)
                    expect.that("no path in it", "/" not in error and "ca.key" not in error, error)
        finally:
            hidden.replace(key)
        expect.that("nothing is left of them", not (panel.pki / "agents" / "unmade").exists())
        expect.equal("the mode", ask("GET", "/api/certs/admin/auth-mode").json, {"adminAuthMode": "p12"})
        expect.status("the token is as it was", panel.enrol(token, csr), 200)
        panel.done(admin, "POST", "/api/certs/agent", {"label": "unmade"})


def nginx(report, panel, rig):
    """What a rotation says when nginx is there, and is not well."""
    checks = Checks()
    for name, test, reload, note in (
        ("none", "none", "/bin/false", ""),
        ("well", "/bin/true", "/bin/true", ""),
        ("test", "/bin/false", "/bin/true", " Note: nginx config test failed — you may need to fix nginx manually."),
        ("reload", "/bin/true", "/bin/false", " Note: nginx reload failed — you may need to restart nginx manually."),
    ):

        def rotates(test=test, reload=reload, note=note):
            panel.stop()
            panel.settings.update(panel_nginx_test=test, panel_nginx_reload=reload)
            panel.start()
            answer = panel.call(panel.admin(), "POST", "/api/certs/mtls/rotate")
            expect.status("rotate", answer, 200)
            keys_in_order("the answer", answer.json, "ok", "p12Password", "expiresAt", "warning")
            password, end = answer.json["p12Password"], end_of(panel.pki / "client.crt")
            expect.that("the password", re.fullmatch("[0-9a-f]{32}", password), password)
            wanted = {"ok": True, "p12Password": password, "expiresAt": end, "warning": NOTICE + note}
            answers("rotate", answer, 200, wanted)
            if note:
                renewed = panel.done(panel.admin(), "POST", f"/api/certs/{LINEAGE}/renew")
                what = "config test" if "test" in note else "reload"
                expect.equal("a renewal", renewed["warning"], f"Certificate renewed but nginx {what} failed")

        checks.append((f"3 7.3, 7.4 the warnings, nginx: {name}", rotates))
    report(checks)
