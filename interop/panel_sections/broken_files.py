"""State files that are broken, of the wrong shape, or changed by other programs."""

import contextlib
import json
import re

import expect
from panel_sections.judging import snapshot
from panel_sections.rig import Checks
from panel_sections.texts import CAPABILITIES
from panel_server import REVOKED, an_error, answers, csr_of, ec_key, replace_file
from server import StartError

BROKEN = {
    "revoked.json": [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"revoked":{}}',
        b'{"revoked":[1]}',
        b'{"revoked":[{"serial":1}]}',
        b'{"revoked":[{"label":"x"}]}',
    ],
    "agents/registry.json": [
        b"",
        b'{"agents":[{"la',
        b"[]",
        b"{}",
        b'{"agents":{}}',
        b'{"agents":[1]}',
        b'{"agents":[{"label":1,"serial":"00"}]}',
        b'{"agents":[{"label":"x"}]}',
    ],
    "enrollment-tokens.json": [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"tokens":{}}',
        b'{"tokens":["x"]}',
        b'{"tokens":[{"token":1}]}',
    ],
    "panel.json": [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"COMPLETED"',
        b'{"onboarding":"COMPLETED"}',
        b'{"onboarding":{"status":1}}',
        b"{}",
        b'{"ip":"127.0.0.1","onboarding":{"status":"COMPLETED"},"adminAuthMode":"none"}',
        b'{"ip":"127.0.0.1","onboarding":{"status":"COMPLETED"},"adminAuthMode":1}',
    ],
}
INTERNAL = {"error": "Internal server error"}


def state(report, rig):
    with rig.panel() as panel:
        admin = panel.admin()
        agent, _ = panel.enrolled(admin, "stays")
        gone, _ = panel.enrolled(admin, "went")
        panel.done(admin, "DELETE", "/api/certs/agent/went")
        now = {"token": panel.token(admin, "waits")}
        panel.enrolled(admin, "numbered")
        files = {name: panel.config if name == "panel.json" else panel.pki / name for name in BROKEN}
        checks = Checks()
        csr = csr_of(ec_key())

        def everything():
            """All requests, those that change something among them; with the ones that a file has no part in."""
            yield "list", admin, "GET", "/api/certs", None
            yield "mode", admin, "GET", "/api/certs/admin/auth-mode", None
            yield "agents", admin, "GET", "/api/certs/agent", None
            yield "create", admin, "POST", "/api/certs/agent", {"label": "fresh"}
            yield "revoke", admin, "DELETE", "/api/certs/agent/stays", None
            yield "sites", admin, "PATCH", "/api/certs/agent/stays/allowed-sites", {"allowedSites": ["x"]}
            yield "capabilities", admin, "PATCH", "/api/certs/agent/stays/capabilities", {"capabilities": CAPABILITIES}
            yield "new token", admin, "POST", "/api/certs/agent/enroll", {"label": "fresh"}
            yield "no token", admin, "DELETE", "/api/certs/agent/enroll/waits", None
            yield "rotate", admin, "POST", "/api/certs/mtls/rotate", None
            yield "upgrade", admin, "POST", "/api/certs/admin/upgrade-to-hardware-bound", {"csr": csr}
            yield "agent", agent, "GET", "/api/tunnels", None
            yield "agent upgrade", agent, "POST", "/api/certs/agent/upgrade-cert", {"csr": csr}
            yield "revoked", gone, "GET", "/api/tunnels", None
            yield "enroll", None, "POST", "/api/enroll", {"token": now["token"], "csr": csr}

        # What may go on, because the file has no part in it.
        unaffected = {
            # An enrolment has a check of its own below.
            "revoked.json": {"enroll"},
            "agents/registry.json": {"list", "mode", "rotate", "upgrade", "revoked", "no token"},
            "enrollment-tokens.json": {
                "list",
                "mode",
                "agents",
                "rotate",
                "upgrade",
                "agent",
                "revoked",
                "sites",
                "capabilities",
                "create",
                "revoke",
                "agent upgrade",
            },
            "panel.json": {"agent", "revoked"},
        }
        texts = {
            "rotate": "mTLS rotation failed",
            "create": "Agent certificate generation failed",
            "upgrade": "Admin upgrade failed",
        }
        texts |= {
            "enroll": "Enrollment failed",
            "agent upgrade": "Agent certificate upgrade failed",
            "capabilities": "Failed to update capabilities",
        }

        def closed(name, content):
            def run():
                path, text = files[name], files[name].read_bytes()
                kept = snapshot(panel)
                replace_file(path, content)
                broken = snapshot(panel)
                try:
                    for what, identity, method, where, body in everything():
                        if what in unaffected[name] and what not in ("list", "mode", "agent", "agents"):
                            if what == "revoked":
                                answers(what, panel.call(identity, method, where, body), 403, REVOKED)
                            continue
                        answer = panel.call(identity, method, where, body)
                        if what in unaffected[name]:
                            if name != "panel.json":
                                expect.status(f"{what} goes on", answer, 200)
                            continue
                        # A panel.json without a status is that of a panel which is not set up.
                        an_error(f"{what}", answer, *((500, 503) if name == "panel.json" else (500,)))
                        error = answer.json["error"]
                        wanted = (INTERNAL["error"], "Onboarding not complete", texts.get(what, "Failed to "))
                        expect.that(f"{what}: the text", error.startswith(wanted), error)
                        expect.that(
                            "nothing of the file or the parser",
                            not re.search("column|expected|json|/pki", error),
                            error,
                        )
                    expect.equal("health", panel.call(None, "GET", "/api/health").status, 200)
                    expect.equal("nothing is changed", changes(broken, snapshot(panel)), [])
                finally:
                    replace_file(path, text)
                expect.equal("mended: nothing is lost", changes(kept, snapshot(panel)), [])
                expect.status("mended: the list, without a restart", panel.call(admin, "GET", "/api/certs/agent"), 200)
                answers("mended: an agent", panel.call(agent, "GET", "/api/tunnels"), 200, {"tunnels": []})
                answers("mended: a revoked one", panel.call(gone, "GET", "/api/tunnels"), 403, REVOKED)
                answers(
                    "mended: the mode",
                    panel.call(admin, "GET", "/api/certs/admin/auth-mode"),
                    200,
                    {"adminAuthMode": "p12"},
                )

            return f"11 {name} with {content.decode()!r}", run

        for name, contents in BROKEN.items():
            checks.extend(closed(name, content) for content in contents)

        for name in BROKEN:

            def unreadable(name=name):
                path = files[name]
                hidden = path.with_name("hidden")
                path.rename(hidden)
                path.mkdir()
                try:
                    what = "enroll" if name == "enrollment-tokens.json" else "create"
                    identity, method, where, body = next(each[1:] for each in everything() if each[0] == what)
                    an_error(what, panel.call(identity, method, where, body), 500)
                finally:
                    path.rmdir()
                    hidden.rename(path)
                expect.status("mended", panel.call(admin, "GET", "/api/certs/agent"), 200)

            checks.append((f"11 {name} cannot be read", unreadable))

        for name in BROKEN:

            def restarts(name=name):
                path, text = files[name], files[name].read_bytes()
                panel.stop()
                kept = changes({}, snapshot(panel))
                try:
                    for content in (BROKEN[name][1], BROKEN[name][5]):
                        replace_file(path, content)
                        with contextlib.suppress(StartError):
                            panel.start_not_ready()
                            expect.that(
                                "an admin gets no agent",
                                panel.call(admin, "POST", "/api/certs/agent", {"label": "fresh"}).status != 200
                                or name == "enrollment-tokens.json",
                            )
                            if panel.running:
                                panel.stop()
                        expect.equal("the file is as it was", path.read_bytes(), content)
                finally:
                    replace_file(path, text)
                    if not panel.running:
                        panel.start()
                expect.equal(
                    "no file is missing", [each for each in kept if each not in changes({}, snapshot(panel))], []
                )
                answers("mended: an agent", panel.call(agent, "GET", "/api/tunnels"), 200, {"tunnels": []})
                answers("mended: a revoked one", panel.call(gone, "GET", "/api/tunnels"), 403, REVOKED)

            checks.append((f"11 {name} is broken at the start", restarts))

        @checks("11 5.1, 6.2 nothing is signed while the revoked serials are not known")
        def _():
            token, path = panel.token(admin, "too-early"), files["revoked.json"]
            text = path.read_bytes()
            replace_file(path, b"{")
            try:
                answers("enrol", panel.enrol(token, csr_of(ec_key())), 500, {"error": "Enrollment failed"})
            finally:
                replace_file(path, text)
            expect.status("mended", panel.enrol(token, csr_of(ec_key())), 200)

        @checks("11 mended at last: the token that waited is good, unknown members of the files stay")
        def _():
            for path in files.values():
                document = json.loads(path.read_text())
                replace_file(path, json.dumps({**document, "comment": "by hand"}))
            expect.status("enrol", panel.enrol(now["token"], csr), 200)
            panel.done(admin, "DELETE", "/api/certs/agent/waits")
            panel.done(admin, "PATCH", "/api/certs/agent/stays/allowed-sites", {"allowedSites": ["x"]})
            upgraded = panel.call(
                admin, "POST", "/api/certs/admin/upgrade-to-hardware-bound", {"csr": csr_of(ec_key())}
            )
            expect.status("upgrade", upgraded, 200)
            for name, path in files.items():
                document = json.loads(path.read_text())
                expect.equal(f"{name}: a comment", document.get("comment"), "by hand")
                expect.equal(
                    f"{name}: pretty, with a newline",
                    path.read_text(),
                    json.dumps(document, indent=2, ensure_ascii=False) + "\n",
                )

        report(checks)


def changes(before, after):
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
