"""What clients ask besides certificates."""

import json
import re

import expect
from panel_sections.rig import Checks
from panel_server import MTLS_REQUIRED, NOT_FOUND, answers, keys_in_order, replace_file


def helpers(report, rig):
    with rig.panel() as panel:
        admin = panel.admin()
        agent, _ = panel.agent(admin, "helped", capabilities=["tunnels:read", "sites:read"])
        plain, _ = panel.agent(admin, "plain")
        config = json.loads(panel.config.read_text())
        replace_file(panel.config, json.dumps({**config, "domain": "example.com", "ip": "203.0.113.42"}))
        server = "https://tunnel.example.com:443"
        chisel = {
            "domain": "example.com",
            "chiselServerUrl": server,
            "chiselArgs": ["client", "--tls-skip-verify", server],
            "tunnels": [],
        }
        over = {"error": "Onboarding already completed"}
        denied = {
            "error": "Insufficient certificate capability",
            "details": {"required": "sites:read", "granted": ["tunnels:read"]},
        }
        setup = {"status": "COMPLETED", "domain": "example.com", "ip": "203.0.113.42"}
        steps = ("domain", "verify-dns", "provision")
        checks = Checks()
        checks.table(
            "§9",
            panel.call,
            [
                ("the state of the setup", (admin, "GET", "/api/onboarding/status"), 200, setup),
                ("the same for an agent", (plain, "GET", "/api/onboarding/status"), 200, setup),
                ("no certificate", (None, "GET", "/api/onboarding/status"), 403, MTLS_REQUIRED),
                *(
                    (f"setup: {step}", (admin, "POST", f"/api/onboarding/{step}", {"domain": "x.y"}), 410, over)
                    for step in steps
                ),
                *((f"setup, no body: {step}", (admin, "POST", f"/api/onboarding/{step}"), 410, over) for step in steps),
                ("the agent's configuration", (plain, "GET", "/api/tunnels/agent-config"), 200, chisel),
                ("the same for an admin", (admin, "GET", "/api/tunnels/agent-config"), 200, chisel),
                ("tunnels", (plain, "GET", "/api/tunnels"), 200, {"tunnels": []}),
                ("tunnels of an admin", (admin, "GET", "/api/tunnels"), 200, {"tunnels": []}),
                (
                    "the second factor",
                    (admin, "GET", "/api/settings/2fa"),
                    200,
                    {"enabled": False, "setupComplete": False},
                ),
                ("plugins", (admin, "GET", "/api/plugins"), 200, {"plugins": []}),
                ("sites", (admin, "GET", "/api/sites"), 200, {"sites": []}),
                ("sites of an agent that may", (agent, "GET", "/api/sites"), 200, {"sites": []}),
                ("sites of one that may not", (plain, "GET", "/api/sites"), 403, denied),
                ("an agent's delegates", (agent, "POST", "/api/certs/agent/enroll-delegated", {}), 404, NOT_FOUND),
            ],
        )

        @checks("§9 health, for everybody")
        def _():
            for identity in (None, admin, agent):
                answer = panel.call(identity, "GET", "/api/health")
                expect.status("health", answer, 200)
                keys_in_order("its fields", answer.json, "status", "version")
                expect.equal("status", answer.json["status"], "ok")
                expect.that("version", re.fullmatch(r"\d+\.\d+\.\d+", answer.json["version"]), answer)

        @checks("§9 the page, and paths that are not of the API")
        def _():
            for path in ("/", "/certificates", "/agents/x"):
                answer = panel.call(admin, "GET", path)
                expect.status(path, answer, 200)
                expect.equal("type", answer.headers["content-type"].split(";")[0], "text/html")
                for part in (b"<!doctype html>", b'<div id="root">'):
                    expect.that(f"{part}", part in answer.body.lower(), answer)
                answers(f"{path} for nobody", panel.call(None, "GET", path), 403, MTLS_REQUIRED)
                expect.status(f"DELETE {path}", panel.call(admin, "DELETE", path), 404)

        @checks("§9, 3.3 capabilities count from the next request, and only those that are valid")
        def _():
            with panel.caller(plain, keep_alive=True) as caller:
                for granted, wanted in ((["tunnels:read", "sites:read"], 200), (["tunnels:read"], 403)):
                    panel.done(admin, "PATCH", "/api/certs/agent/plain/capabilities", {"capabilities": granted})
                    expect.status(f"{granted}", caller.ask("GET", "/api/sites"), wanted)
                path = panel.pki / "agents" / "registry.json"
                text = path.read_text()
                registry = json.loads(text)
                registry["agents"][-1]["capabilities"] = ["system:read", "bogus:read"]
                replace_file(path, json.dumps(registry))
                try:
                    details = {"required": "tunnels:read", "granted": ["system:read"]}
                    listed = panel.done(admin, "GET", "/api/certs/agent")["agents"][-1]["capabilities"]
                    expect.equal("the list is not filtered", listed, ["system:read", "bogus:read"])
                    for where in ("/api/tunnels/agent-config", "/api/tunnels"):
                        answers(where, caller.ask("GET", where), 403, {"error": denied["error"], "details": details})
                finally:
                    replace_file(path, text)

        @checks("§9 a panel without a domain")
        def _():
            replace_file(panel.config, json.dumps({**config, "domain": None, "ip": "203.0.113.42"}))
            answers("the setup", panel.call(admin, "GET", "/api/onboarding/status"), 200, {**setup, "domain": None})
            answer = panel.call(admin, "GET", "/api/tunnels/agent-config")
            for word in answer.json["chiselArgs"][2:3]:
                expect.that("a URL that the agent accepts", re.fullmatch(r"https://[a-z0-9._-]+:\d+", word), word)

        @checks("§9 a panel that is not set up")
        def _():
            replace_file(panel.config, json.dumps({**config, "onboarding": {"status": "DOMAIN_SET"}}))
            try:
                got = panel.call(admin, "GET", "/api/onboarding/status")
                expect.equal("its state", (got.status, got.json["status"]), (200, "DOMAIN_SET"))
                expect.status("health", panel.call(None, "GET", "/api/health"), 200)
            finally:
                replace_file(panel.config, json.dumps(config))

        report(checks)
