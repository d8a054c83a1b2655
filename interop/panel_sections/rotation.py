"""Revocations and rotations, and the time in which an old certificate fetches its successor."""

import datetime
import json
import threading
import time

import expect
from panel_sections.judging import is_listed, is_not_listed, iso, refused_as_revoked, spaced
from panel_sections.rig import Checks
from panel_server import REVOKED, answers, end_of, from_p12, keep, openssl, replace_file, sign_by_hand


def revocation(report, rig):
    with rig.panel() as panel:
        admin = panel.admin()
        checks = Checks()

        @checks("10 crl.pem is there from the start and has nothing in it; 12 it judges everything that is issued")
        def _():
            expect.equal("serials", panel.crl_serials(), [])
            is_not_listed(panel, admin)
            agent, _ = panel.agent(admin, "listed")
            key, _ = panel.enrolled(admin, "listed-too")
            for identity in (agent, key):
                is_not_listed(panel, identity)
            text = openssl("crl", "-in", panel.pki / "crl.pem", "-noout", "-text")
            expect.that(
                "it has a number and an authority", "CRL Number" in text and "Authority Key Identifier" in text, text
            )

        @checks("10 the list has the serial as soon as the revocation is answered")
        def _():
            for number in range(3):
                agent, made = panel.agent(admin, f"gone-{number}")
                expect.status("it works", panel.call(agent, "GET", "/api/tunnels"), 200)
                panel.done(admin, "DELETE", f"/api/certs/agent/gone-{number}")
                is_listed(panel, made["serial"], f"agent:gone-{number}", agent.cert)
                answers("it is refused", panel.call(agent, "GET", "/api/tunnels"), 403, REVOKED)
            expect.equal("all of them are listed", len(panel.crl_serials()), 3)

        for tls in ("1.2", "1.3"):

            def kept_alive(tls=tls):
                label = f"alive-{tls.replace('.', '-')}"
                agent, _ = panel.enrolled(admin, label)
                with (
                    panel.caller(agent, tls=tls, keep_alive=True) as caller,
                    panel.caller(admin, keep_alive=True) as other,
                ):
                    for _ in range(3):
                        answers("before", caller.ask("GET", "/api/tunnels"), 200, {"tunnels": []})
                    tcp = caller.connection.sock.getsockname()
                    began = time.monotonic()
                    expect.status("revoked", other.ask("DELETE", f"/api/certs/agent/{label}"), 200)
                    said = time.monotonic()
                    answers("after", caller.ask("GET", "/api/tunnels"), 403, REVOKED)
                    over = time.monotonic()
                    expect.equal("on the same connection", caller.connection.sock.getsockname(), tcp)
                print(
                    f"        TLS {tls}: refused {1000 * (over - said):.1f} ms after the revocation was answered,"
                    f" {1000 * (over - began):.1f} ms after it was asked for"
                )

            checks.append((f"10 a revocation counts for the next request of an open connection, TLS {tls}", kept_alive))

        @checks("10 requests that never pause: none gets 200 after the revocation was answered")
        def _():
            agent, _ = panel.enrolled(admin, "busy")
            came, over = [], threading.Event()

            def ask():
                with panel.caller(agent, keep_alive=True) as caller:
                    while not over.is_set():
                        sent = time.monotonic()
                        came.append((sent, caller.ask("GET", "/api/tunnels").status))

            thread = threading.Thread(target=ask)
            thread.start()
            try:
                time.sleep(0.1)
                began = time.monotonic()
                panel.done(admin, "DELETE", "/api/certs/agent/busy")
                said = time.monotonic()
                time.sleep(0.05)
            finally:
                over.set()
                thread.join()
            expect.equal("sent after the answer", {status for sent, status in came if sent > said}, {403})
            first = min(sent for sent, status in came if status == 403)
            print(
                f"        {len(came)} requests;"
                f" the first that was refused was sent {1000 * (first - began):.1f} ms after the DELETE"
            )

        @checks("10 5.1 the file is believed when somebody else changes it, without a restart")
        def _():
            agent, made = panel.agent(admin, "edited")
            path = panel.pki / "revoked.json"
            text = path.read_text()
            for serial in (made["serial"], made["serial"].lower(), spaced(made["serial"]).replace(" ", ":")):
                listed = json.loads(text)
                listed["revoked"].append(
                    {"serial": serial, "label": "by hand", "revokedAt": iso(datetime.datetime.now(datetime.UTC))}
                )
                replace_file(path, json.dumps(listed))
                answers(f"listed as {serial}", panel.call(agent, "GET", "/api/tunnels"), 403, REVOKED)
                path.write_text(text)
                expect.status("not listed", panel.call(agent, "GET", "/api/tunnels"), 200)
            replace_file(path, json.dumps({"revoked": []}))
            panel.done(admin, "GET", "/api/certs")
            path.unlink()
            panel.done(admin, "GET", "/api/certs")
            replace_file(path, text)
            path.chmod(0o600)

        @checks("10 a serial is listed once, and a revoked one that is listed stays listed over a restart")
        def _():
            before = panel.revoked_serials()
            panel.stop()
            panel.start()
            expect.equal("the list", panel.revoked_serials(), before)
            expect.equal("crl.pem", sorted(panel.crl_serials()), sorted(before))
            expect.equal("no serial twice", len(set(before)), len(before))

        report(checks)


def rotation(report, rig):
    with rig.panel() as panel:
        checks = Checks()
        now = {"first": panel.admin()}

        @checks("9 after a rotation: the old certificate downloads and does nothing else")
        def _():
            old = now["first"]
            made = panel.done(old, "POST", "/api/certs/mtls/rotate")
            now["password"] = made["p12Password"]
            is_listed(panel, old.serial, pem=old.cert)
            refused_as_revoked(panel, old, but_download=True)
            bundle = panel.call(old, "GET", "/api/certs/mtls/download").body
            now["second"] = from_p12(panel.work, bundle, made["p12Password"])
            files = (panel.admin().serial, end_of(panel.pki / "client.crt"))
            expect.equal("it is client.crt", (now["second"].serial, made["expiresAt"]), files)
            expect.that("another serial", now["second"].serial != old.serial)
            is_not_listed(panel, now["second"])

        @checks("9 the grace is over with the first request of the new certificate")
        def _():
            expect.status("still", panel.call(now["first"], "GET", "/api/certs/mtls/download"), 200)
            expect.status(
                "a restart does not end the old's exclusion", panel.call(now["first"], "GET", "/api/certs"), 403
            )
            panel.done(now["second"], "GET", "/api/certs/admin/auth-mode")
            refused_as_revoked(panel, now["first"])

        @checks("9 the next rotation ends the grace of the one before; files are kept for one generation")
        def _():
            third = panel.done(now["second"], "POST", "/api/certs/mtls/rotate")
            expect.status("the second's grace", panel.call(now["second"], "GET", "/api/certs/mtls/download"), 200)
            identity = panel.admin()
            panel.done(identity, "POST", "/api/certs/mtls/rotate")
            for each in (now["first"], now["second"]):
                answers("an older one", panel.call(each, "GET", "/api/certs/mtls/download"), 403, REVOKED)
            refused_as_revoked(panel, identity, but_download=True)
            backup = panel.pki / "client.crt.bak"
            if backup.exists():
                expect.equal("the backup", backup.read_text(), identity.cert.read_text())
                key = panel.pki / "client.key.bak"
                again = keep(rig.work, backup.read_bytes(), key.read_bytes()) if key.exists() else identity
                answers("it does not authenticate", panel.call(again, "GET", "/api/certs"), 403, REVOKED)
            rig.secrets.add("p12Password", third["p12Password"])
            now["last"] = panel.admin()

        @checks("9 a rotation that a hand-made certificate asks for: the file's serial is refused afterwards")
        def _():
            helper = sign_by_hand(rig.work, panel.pki, "/CN=Portlama Client/O=Portlama")
            old = panel.admin()
            panel.done(helper, "POST", "/api/certs/mtls/rotate")
            answers("the file's", panel.call(old, "GET", "/api/certs"), 403, REVOKED)
            is_listed(panel, old.serial)
            expect.status("the new", panel.call(panel.admin(), "GET", "/api/certs"), 200)
            now["last"] = panel.admin()

        @checks("9 the grace outlives a restart, and so does its end")
        def _():
            old = now["last"]
            panel.done(old, "POST", "/api/certs/mtls/rotate")
            panel.stop()
            panel.start()
            expect.status("the old one's download", panel.call(old, "GET", "/api/certs/mtls/download"), 200)
            answers("and nothing else", panel.call(old, "GET", "/api/certs"), 403, REVOKED)
            panel.done(panel.admin(), "GET", "/api/certs")
            panel.stop()
            panel.start()
            answers("its end", panel.call(old, "GET", "/api/certs/mtls/download"), 403, REVOKED)

        report(checks)
