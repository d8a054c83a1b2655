"""Keys that never leave a device, the admin's and an agent's, and the way back with reset-admin."""

import functools
import hashlib
import json
import os
import re
import subprocess

from cryptography.hazmat.primitives import serialization

import expect
from panel_sections.judging import (
    curl,
    is_listed,
    is_not_listed,
    kinds_of,
    profile,
    refused_as_revoked,
    snapshot,
    together,
)
from panel_sections.rig import Checks
from panel_sections.texts import (
    CSR_TOO_LARGE,
    DOWNLOAD_GONE,
    EMPTY_CSR,
    HARDWARE_BOUND,
    INVALID_CSR,
    NOBODY,
    NO_CSR,
    ROTATION_GONE,
    SCOPE,
)
from panel_server import (
    REVOKED,
    answers,
    at_once,
    csr_of,
    ec_key,
    end_of,
    from_p12,
    issues,
    keep,
    keys_in_order,
    pem_of,
    replace_file,
    sign_by_hand,
)


def upgrade(report, rig):
    with rig.panel() as panel:
        checks = Checks()
        path = "/api/certs/admin/upgrade-to-hardware-bound"
        file, caller = panel.admin(), sign_by_hand(rig.work, panel.pki, "/CN=Portlama Client/O=Portlama")
        bystander, _ = panel.agent(caller, "bystander")
        now, key = {}, ec_key()
        panel.done(file, "POST", "/api/certs/mtls/rotate")
        older, file = file, panel.admin()
        digests = [
            hashlib.sha256(each.read_bytes()).digest() for each in (panel.pki / "client.key", panel.pki / "client.p12")
        ]

        @checks("10 7.15 the answer, client.crt, and both old serials refused")
        def _():
            answer = panel.call(caller, "POST", path, {"csr": csr_of(key, "whoever")})
            expect.status("upgrade", answer, 200)
            made = answer.json
            keys_in_order("the answer", made, "ok", "cert", "caCert", "serial", "expiresAt")
            new = now["new"] = keep(rig.work, made["cert"], pem_of(key))
            expect.equal("serial and end", (made["serial"], made["expiresAt"]), (new.serial, end_of(new.cert)))
            expect.equal("the CA's certificate, as in the file", made["caCert"], (panel.pki / "ca.crt").read_text())
            profile(panel, new.cert, "admin")
            expect.equal("client.crt is replaced", (panel.pki / "client.crt").read_text(), made["cert"])
            is_listed(panel, file.serial, "admin (upgraded to hardware-bound)", file.cert)
            is_listed(panel, caller.serial, None, caller.cert)
            for old in (older, file, caller):
                refused_as_revoked(panel, old)
            answers(
                "the mode",
                panel.call(new, "GET", "/api/certs/admin/auth-mode"),
                200,
                {"adminAuthMode": "hardware-bound"},
            )
            is_not_listed(panel, new)

        @checks("10 nothing is left that could authenticate")
        def _():
            names = sorted(each.name for each in panel.pki.iterdir())
            for name in ("client.key", "client.p12", ".p12-password", "client.key.bak", "client.p12.bak"):
                expect.that(f"{name} is gone", name not in names, names)
            found = [
                each
                for each in panel.data_dir.rglob("*")
                if each.is_file() and hashlib.sha256(each.read_bytes()).digest() in digests
            ]
            expect.equal("nor by another name", found, [])

        def gone():
            new = now["new"]
            answers("rotate", panel.call(new, "POST", "/api/certs/mtls/rotate"), 410, {"error": ROTATION_GONE})
            answers("download", panel.call(new, "GET", "/api/certs/mtls/download"), 410, {"error": DOWNLOAD_GONE})
            answers("upgrade", panel.call(new, "POST", path, {"csr": csr_of(ec_key())}), 409, HARDWARE_BOUND)
            answers("upgrade, invalid", panel.call(new, "POST", path, {"csr": "x"}), 400, issues(EMPTY_CSR[1]))
            answers(
                "the mode",
                panel.call(new, "GET", "/api/certs/admin/auth-mode"),
                200,
                {"adminAuthMode": "hardware-bound"},
            )
            expect.equal("two certificates are listed", kinds_of(panel, new), ["mtls-client", "mtls-ca"])
            agent, _ = panel.agent(new, "later")
            for each in (bystander, agent):
                expect.status("agents go on", panel.call(each, "GET", "/api/tunnels"), 200)
            panel.done(new, "DELETE", "/api/certs/agent/later")
            for old in (older, file, caller):
                answers("the old ones stay out", panel.call(old, "GET", "/api/certs"), 403, REVOKED)

        @checks("10 7.4, 7.5, 7.15 410, 410, 409 with the new certificate; agents go on")
        def _():
            gone()

        @checks("10 the same after a restart")
        def _():
            panel.stop()
            panel.start()
            gone()

        report(checks)
        reset(report, rig, panel, now["new"], bystander)


def reset(report, rig, panel, hardware, agent):
    """Section 11, while the server runs, after an upgrade."""
    checks = Checks()
    before = set(panel.revoked_serials())

    def resets(old, label=None):
        done = panel.reset_admin()
        expect.equal("reset-admin succeeds", done.returncode, 0)
        password = (panel.pki / ".p12-password").read_text()
        rig.secrets.gather(panel.pki)
        said = done.stdout + done.stderr
        expect.that(
            "it tells where the bundle is, and not the password", "client.p12" in said and password not in said, said
        )
        expect.that("the password", re.fullmatch("[0-9a-f]{32}", password), "(the password)")
        new = from_p12(panel.work, (panel.pki / "client.p12").read_bytes(), password)
        expect.equal("client.crt", panel.admin().serial, new.serial)
        profile(panel, panel.pki / "client.crt", "admin")
        refused_as_revoked(panel, old)
        is_listed(panel, old.serial, label, old.cert)
        answers("the mode", panel.call(new, "GET", "/api/certs/admin/auth-mode"), 200, {"adminAuthMode": "p12"})
        expect.equal("the file", json.loads(panel.config.read_text())["adminAuthMode"], "p12")
        answers("an agent", panel.call(agent, "GET", "/api/tunnels"), 200, {"tunnels": []})
        expect.that("no revocation is lost", before <= set(panel.revoked_serials()), before)
        return new

    @checks("§11 reset-admin beside a running server: from hardware-bound back to P12")
    def _():
        new = resets(hardware, "admin (reset from hardware-bound)")
        expect.equal(
            "curl",
            curl(
                panel,
                "GET",
                "/api/certs",
                bundle=panel.pki / "client.p12",
                password=(panel.pki / ".p12-password").read_text(),
            ).status,
            200,
        )
        panel.done(new, "POST", "/api/certs/mtls/rotate")
        expect.status("download", panel.call(panel.admin(), "GET", "/api/certs/mtls/download"), 200)

    @checks("§11 and again, in P12 mode, on an open connection of the old admin; no grace for it")
    def _():
        old = panel.admin()
        with panel.caller(old, keep_alive=True) as caller:
            expect.status("before", caller.ask("GET", "/api/certs"), 200)
            new = resets(old)
            answers("after", caller.ask("GET", "/api/certs"), 403, REVOKED)
            answers("the download", caller.ask("GET", "/api/certs/mtls/download"), 403, REVOKED)
        panel.stop()
        panel.start()
        expect.status("after a restart", panel.call(new, "GET", "/api/certs"), 200)

    @checks("§11 without a running server; root leaves the files to the owner of the directory")
    def _():
        if os.geteuid() != 0:
            print("        left out: this is not root")
            return
        old = panel.admin()
        panel.stop()
        # The owner must get there, too.
        places = (panel.work, panel.data_dir, *panel.data_dir.rglob("*"))
        for path in places:
            os.chown(path, NOBODY, NOBODY)
        done = panel.reset_admin()
        expect.equal(f"reset-admin succeeds: {done.stderr}", done.returncode, 0)
        owners = {path.stat().st_uid for path in (panel.config, *panel.pki.rglob("*"))}
        refused = subprocess.run(panel.serve_command(), capture_output=True, text=True, timeout=30)
        expect.equal("root does not serve from somebody else's directory", refused.returncode, 1)
        expect.that("and says why", "run the server as that user" in refused.stderr + refused.stdout, refused)
        for path in (panel.work, panel.data_dir, *panel.data_dir.rglob("*")):
            os.chown(path, os.geteuid(), os.getegid())
        panel.start()
        expect.equal("the owners", owners, {NOBODY})
        answers("the old one", panel.call(old, "GET", "/api/certs"), 403, REVOKED)
        together(panel)

    @checks("a certificate for the port that cannot be read is told before a port is bound")
    def _():
        panel.stop()
        missing = ("--panel-tls-cert", panel.work / "none.pem", "--panel-tls-key", panel.work / "none.key")
        ended = subprocess.run([*panel.serve_command(), *missing], capture_output=True, text=True, timeout=30)
        said = ended.stderr + ended.stdout
        panel.start()
        expect.equal("it ends", ended.returncode, 1)
        expect.that("and names the setting", "panel_tls_cert" in said and "serving" not in said, said)

    @checks("§11 a broken list: refused, and nothing is changed")
    def _():
        for name in ("revoked.json", "agents/registry.json", "../panel.json"):
            path = panel.config if name.startswith("..") else panel.pki / name
            text = path.read_bytes()
            for content in (b"{", b"[]", b'{"revoked":{},"agents":{},"onboarding":1}'):
                replace_file(path, content)
                files = snapshot(panel)
                try:
                    done = panel.reset_admin()
                    if name != "agents/registry.json" or done.returncode:
                        expect.that(f"{name} with {content!r} is refused", done.returncode != 0, done)
                        expect.equal("nothing is changed", snapshot(panel), files)
                finally:
                    replace_file(path, text)
        expect.status("all is well", panel.call(panel.admin(), "GET", "/api/certs"), 200)

    @checks("§11 resets and rotations at once: the files stay together, one certificate is let in")
    def _():
        admin = panel.admin()
        helpers = [sign_by_hand(rig.work, panel.pki, "/CN=admin/O=Portlama") for _ in range(2)]
        done = at_once(
            [
                panel.reset_admin,
                *[functools.partial(panel.call, each, "POST", "/api/certs/mtls/rotate") for each in helpers],
            ]
        )
        expect.equal("reset-admin", done[0].returncode, 0)
        for answer in done[1:]:
            expect.status("rotate", answer, 200)
        together(panel)
        answers("the old one", panel.call(admin, "GET", "/api/certs"), 403, REVOKED)

    report(checks)


def agent_upgrade(report, rig):
    """Section 8.2."""
    with rig.panel() as panel:
        admin = panel.admin()
        path = "/api/certs/agent/upgrade-cert"
        checks = Checks()

        @checks("8.2 an agent with a bundle gets a certificate for a key of its own; the old one is refused")
        def _():
            more = {"capabilities": ["tunnels:read", "sites:read"], "allowedSites": ["blog"]}
            old, made = panel.agent(admin, "mac", **more)
            entry = panel.done(admin, "GET", "/api/certs/agent")["agents"][0]
            key = ec_key()
            with panel.caller(old, keep_alive=True) as caller:
                answer = caller.ask("POST", path, {"csr": csr_of(key)})
                expect.status("upgrade", answer, 200)
                answers("the open connection", caller.ask("GET", "/api/tunnels"), 403, REVOKED)
            keys_in_order("the answer", answer.json, "ok", "cert", "caCert", "serial", "expiresAt")
            new = keep(rig.work, answer.json["cert"], pem_of(key))
            profile(panel, new.cert, "agent:mac")
            expect.equal(
                "serial and end", (answer.json["serial"], answer.json["expiresAt"]), (new.serial, end_of(new.cert))
            )
            expect.equal("the CA's", answer.json["caCert"], (panel.pki / "ca.crt").read_text())
            is_listed(panel, made["serial"], "agent:mac (upgraded to hardware-bound)", old.cert)
            refused_as_revoked(panel, old)
            answers("the new one", panel.call(new, "GET", "/api/sites"), 200, {"sites": []})
            answers("is an agent", panel.call(new, "GET", "/api/certs"), 403, SCOPE)
            wanted = {
                **entry,
                "serial": new.serial,
                "expiresAt": answer.json["expiresAt"],
                "enrollmentMethod": "hardware-bound",
            }
            expect.equal("the list", panel.done(admin, "GET", "/api/certs/agent")["agents"], [wanted])
            expect.that("no key, no bundle", not list((panel.pki / "agents").glob("mac/*")))
            missing = {"error": 'Agent certificate "mac" not found'}
            answers("no download", panel.call(admin, "GET", "/api/certs/agent/mac/download"), 404, missing)

        @checks("8.2 again, from one own key to the next; the same key may stay")
        def _():
            old, _ = panel.enrolled(admin, "renews")
            key = serialization.load_pem_private_key(old.key.read_bytes(), None)
            answer = panel.call(old, "POST", path, {"csr": csr_of(key)})
            expect.status("upgrade", answer, 200)
            new = keep(rig.work, answer.json["cert"], pem_of(key))
            expect.status("new", panel.call(new, "GET", "/api/tunnels"), 200)
            answers("old", panel.call(old, "GET", "/api/tunnels"), 403, REVOKED)

        @checks("8.2 errors in their order: validation, 403 for an admin, the size, the request")
        def _():
            agent, _ = panel.agent(admin, "wrong")
            nobody = {"error": "Agent label not found in certificate"}
            large = {"csr": NO_CSR + "x" * 8192}
            answers("an admin, invalid", panel.call(admin, "POST", path, {}), 400, issues((["csr"], "Required")))
            answers("an admin, too large", panel.call(admin, "POST", path, large), 403, nobody)
            answers("an admin, bad", panel.call(admin, "POST", path, {"csr": NO_CSR}), 403, nobody)
            answers("an admin", panel.call(admin, "POST", path, {"csr": csr_of(ec_key())}), 403, nobody)
            answers("too large", panel.call(agent, "POST", path, large), 400, CSR_TOO_LARGE)
            answers("bad", panel.call(agent, "POST", path, {"csr": NO_CSR}), 400, INVALID_CSR)
            key = panel.pki / "ca.key"
            key.rename(panel.pki / "hidden")
            try:
                wanted = {"error": "Agent certificate upgrade failed"}
                answers("no key of the CA", panel.call(agent, "POST", path, {"csr": csr_of(ec_key())}), 500, wanted)
            finally:
                (panel.pki / "hidden").rename(key)
            expect.status("still there", panel.call(agent, "GET", "/api/tunnels"), 200)

        report(checks)
