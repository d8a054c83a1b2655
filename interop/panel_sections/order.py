"""The order of the checks on the way to a handler, and names in certificates that are refused."""

import datetime
import json

import expect
from panel_sections.judging import iso
from panel_sections.rig import Checks
from panel_sections.texts import (
    CSR_TOO_LARGE,
    DOWNLOAD_GONE,
    EMPTY_CSR,
    EMPTY_JSON,
    FORM,
    HARDWARE_BOUND,
    NO_CSR,
    NO_SUCH_TOKEN,
    ROTATION_GONE,
    SCOPE,
    TOKEN_EXPIRED,
    TOKEN_UNKNOWN,
    TOKEN_USED,
)
from panel_server import (
    MTLS_REQUIRED,
    NOT_FOUND,
    REVOKED,
    an_error,
    another_ca,
    answers,
    csr_of,
    ec_key,
    issues,
    replace_file,
    serial_of,
    sign_by_hand,
)


def order(report, rig):
    with rig.panel() as panel:
        admin = panel.admin()
        agent, _ = panel.agent(admin, "orderly")
        gone, _ = panel.agent(admin, "gone")
        panel.done(admin, "DELETE", "/api/certs/agent/gone")
        stranger = sign_by_hand(rig.work, another_ca(rig.work), "/CN=admin/O=Portlama", version=3)
        double = sign_by_hand(rig.work, another_ca(rig.work), "/CN=admin/O=Portlama", serial=f"0x{gone.serial}")
        checks = Checks()
        paths = "/api/certs/agent/BAD/capabilities", "/api/certs/agent"
        broken, large = b'{"label":', json.dumps({"label": "x" * 70_000}).encode()
        unwanted = {"capabilities": ["x"]}
        checks.table(
            "1 §4",
            panel.call,
            [
                ("1 before 2: an unknown path, no certificate", (None, "GET", "/api/nothing"), 404, NOT_FOUND),
                ("1 before 2: a wrong method, no certificate", (None, "PUT", "/api/certs"), 404, NOT_FOUND),
                ("1 before 2: an unknown path, another CA", (stranger, "GET", "/api/nothing"), 404, NOT_FOUND),
                ("1 before 3: an unknown path, revoked", (gone, "GET", "/api/certs/"), 404, NOT_FOUND),
                ("2: no certificate", (None, "GET", "/api/certs"), 403, MTLS_REQUIRED),
                ("2: another CA", (stranger, "GET", "/api/certs"), 403, MTLS_REQUIRED),
                ("2 before 3: another CA, a revoked serial", (double, "GET", "/api/certs"), 403, MTLS_REQUIRED),
                ("2 before 7: no certificate, broken JSON", (None, "POST", paths[1], broken), 403, MTLS_REQUIRED),
                ("3: revoked", (gone, "GET", "/api/certs"), 403, REVOKED),
                ("3 before 7: revoked, broken JSON", (gone, "POST", paths[1], broken), 403, REVOKED),
                ("3 before 8: revoked, not an admin's path", (gone, "GET", "/api/certs/agent"), 403, REVOKED),
                ("3 before 9: revoked, a bad label", (gone, "PATCH", paths[0], unwanted), 403, REVOKED),
                ("8 before 9: an agent, a bad label", (agent, "PATCH", paths[0], unwanted), 403, SCOPE),
                ("8 before 9: an agent, a bad body", (agent, "POST", paths[1], {"label": "BAD"}), 403, SCOPE),
                ("8 before 9: an agent, JSON that is no object", (agent, "POST", paths[1], b"[]"), 403, SCOPE),
                ("8 before 9: an agent, no body", (agent, "POST", paths[1]), 403, SCOPE),
                ("8 before 10: an agent, an unknown label", (agent, "DELETE", "/api/certs/agent/none"), 403, SCOPE),
                (
                    "9: the path before the body",
                    (admin, "PATCH", paths[0], unwanted),
                    400,
                    issues((["label"], "Invalid agent label")),
                ),
                (
                    "9 before 10: an unknown label, a bad body",
                    (admin, "PATCH", "/api/certs/agent/none/allowed-sites", {}),
                    400,
                    issues((["allowedSites"], "Required")),
                ),
                (
                    "9 before 10: a taken label, a bad list",
                    (admin, "POST", paths[1], {"label": "orderly", "allowedSites": 1}),
                    400,
                    issues((["allowedSites"], "Expected array, received number")),
                ),
            ],
        )

        @checks("1 §4 7 before 8: an agent's broken, large or strange body")
        def _():
            answer = panel.call(agent, "POST", paths[1], broken)
            an_error("broken JSON", answer, 400)
            expect.that("it is not about the role", answer.json != SCOPE)
            an_error("a large body", panel.call(agent, "POST", paths[1], large), 413)
            an_error("a form", panel.call(agent, "POST", paths[1], b"label=x", FORM), 415)
            an_error("an empty body", panel.call(agent, "POST", paths[1], b"", EMPTY_JSON), 400)

        def unset(step, *calls):
            text = panel.config.read_text()
            for status in ("FRESH", "DOMAIN_SET", "DNS_READY", "PROVISIONING"):
                config = json.loads(text)
                config["onboarding"]["status"] = status
                replace_file(panel.config, json.dumps(config))
                wanted = {"error": "Onboarding not complete", "onboardingStatus": status}
                try:
                    for identity, method, path, body, first in calls:
                        answers(
                            f"{step}: {method} {path}",
                            panel.call(identity, method, path, body),
                            *first or (503, wanted),
                        )
                finally:
                    replace_file(panel.config, text)

        @checks("1 §4 2 and 3 before 5: no or a revoked certificate, a panel that is not set up")
        def _():
            unset(
                "2, 3",
                (None, "GET", "/api/certs", None, (403, MTLS_REQUIRED)),
                (gone, "GET", "/api/certs", None, (403, REVOKED)),
                (None, "GET", "/api/nothing", None, (404, NOT_FOUND)),
            )

        @checks("1 §4 5 before 7, 8, 9: a panel that is not set up, and everything else wrong")
        def _():
            unset(
                "5",
                (admin, "GET", "/api/certs", None, None),
                (admin, "GET", "/api/certs/mtls/download", None, None),
                (admin, "POST", "/api/certs/mtls/rotate", None, None),
                (admin, "POST", paths[1], broken, None),
                (agent, "POST", paths[1], broken, None),
                (agent, "POST", paths[1], {"label": "BAD"}, None),
                (admin, "PATCH", paths[0], unwanted, None),
                (None, "POST", "/api/enroll", {"token": NO_SUCH_TOKEN, "csr": "x"}, None),
                (admin, "POST", "/api/certs/agent/upgrade-cert", {}, None),
            )
            expect.equal("all is well again", panel.call(admin, "GET", "/api/certs").status, 200)

        @checks("1 §4 9 before 10 before the rest: rotate, download and upgrade of a hardware-bound admin")
        def _():
            text = panel.config.read_text()
            replace_file(panel.config, json.dumps({**json.loads(text), "adminAuthMode": "hardware-bound"}))
            key, hidden = panel.pki / "ca.key", panel.pki / "ca.key.hidden"
            key.rename(hidden)
            upgrade = "/api/certs/admin/upgrade-to-hardware-bound"
            try:
                for method, path, body, status, wanted in (
                    ("POST", "/api/certs/mtls/rotate", None, 410, {"error": ROTATION_GONE}),
                    ("GET", "/api/certs/mtls/download", None, 410, {"error": DOWNLOAD_GONE}),
                    ("POST", upgrade, {"csr": ""}, 400, issues(*EMPTY_CSR)),
                    ("POST", upgrade, {"csr": NO_CSR}, 409, HARDWARE_BOUND),
                ):
                    answers(f"{method} {path}", panel.call(admin, method, path, body), status, wanted)
            finally:
                hidden.rename(key)
                replace_file(panel.config, text)

        @checks("1 §3.5 every endpoint but the enrolment is an admin's")
        def _():
            for method, path, body in ADMINS:
                answers(f"an agent: {method} {path}", panel.call(agent, method, path, body), 403, SCOPE)
                answers(f"nobody: {method} {path}", panel.call(None, method, path, body), 403, MTLS_REQUIRED)
                answers(f"revoked: {method} {path}", panel.call(gone, method, path, body), 403, REVOKED)
            answers(
                "the enrolment",
                panel.call(None, "POST", "/api/enroll", {"token": NO_SUCH_TOKEN, "csr": NO_CSR}),
                401,
                TOKEN_UNKNOWN,
            )

        enrolment_order(checks, panel, admin)
        report(checks)
        refused_names(report, rig, panel)


ADMINS = (
    ("GET", "/api/certs", None),
    ("GET", "/api/certs/auto-renew-status", None),
    ("POST", "/api/certs/app.example.com/renew", None),
    ("POST", "/api/certs/mtls/rotate", None),
    ("GET", "/api/certs/mtls/download", None),
    ("POST", "/api/certs/agent", {"label": "x"}),
    ("GET", "/api/certs/agent", None),
    ("GET", "/api/certs/agent/orderly/download", None),
    ("PATCH", "/api/certs/agent/orderly/capabilities", {"capabilities": ["tunnels:read"]}),
    ("PATCH", "/api/certs/agent/orderly/allowed-sites", {"allowedSites": []}),
    ("DELETE", "/api/certs/agent/orderly", None),
    ("POST", "/api/certs/agent/enroll", {"label": "x"}),
    ("DELETE", "/api/certs/agent/enroll/x", None),
    ("POST", "/api/certs/admin/upgrade-to-hardware-bound", {"csr": "x"}),
    ("GET", "/api/certs/admin/auth-mode", None),
    ("GET", "/api/settings/2fa", None),
)


def enrolment_order(checks, panel, admin):
    """Section 4's second list, and 7.14: the rows of errors in their order."""
    good = csr_of(ec_key())
    oversize = good + "\n" * (8193 - len(good))
    used = panel.token(admin, "used-token")
    expect.status("the token is used", panel.enrol(used, good), 200)
    expired = panel.token(admin, "expired-token")
    tokens = panel.json_of("enrollment-tokens.json")
    old = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=20)
    for token in tokens["tokens"]:
        token["createdAt"] = iso(old)
        token["expiresAt"] = iso(old + datetime.timedelta(minutes=10))
    replace_file(panel.pki / "enrollment-tokens.json", json.dumps(tokens, indent=2))
    taken = panel.token(admin, "taken")
    panel.agent(admin, "taken")
    exists = {"error": 'Agent certificate with label "taken" already exists'}

    def ask(body, headers=None):
        return panel.call(None, "POST", "/api/enroll", body, headers)

    def both(token, csr):
        return ({"token": token, "csr": csr},)

    checks.table(
        "1 §4, 7.14",
        ask,
        [
            (
                "validation before the token",
                both("", ""),
                400,
                issues((["token"], "Enrollment token is required"), *EMPTY_CSR),
            ),
            ("validation before an unknown token", both(NO_SUCH_TOKEN, "x"), 400, issues(EMPTY_CSR[1])),
            ("an unknown token before a large CSR", both(NO_SUCH_TOKEN, oversize), 401, TOKEN_UNKNOWN),
            ("an unknown token before a bad CSR", both(NO_SUCH_TOKEN, NO_CSR), 401, TOKEN_UNKNOWN),
            ("a strange token", both("ä" * 70, good), 401, TOKEN_UNKNOWN),
            ("used before expired (this is both)", both(used, good), 401, TOKEN_USED),
            ("a used token before a large CSR", both(used, oversize), 401, TOKEN_USED),
            ("an expired token", both(expired, good), 401, TOKEN_EXPIRED),
            ("an expired token before a bad CSR", both(expired, NO_CSR), 401, TOKEN_EXPIRED),
            ("a large CSR before a taken label", both(taken, oversize), 400, CSR_TOO_LARGE),
            ("a taken label before a bad CSR", both(taken, NO_CSR), 409, exists),
            ("a taken label", both(taken, good), 409, exists),
        ],
    )

    @checks("1 §4 the body before validation, and a certificate is ignored")
    def _():
        for name, identity in (("nobody", None), ("an admin", admin)):
            broken = panel.call(identity, "POST", "/api/enroll", b"{")
            an_error(f"broken JSON of {name}", broken, 400)
            expect.that("it is not a failed validation", "details" not in broken.json, broken)
            answers(
                f"an unknown token of {name}",
                panel.call(identity, "POST", "/api/enroll", *both(NO_SUCH_TOKEN, good)),
                401,
                TOKEN_UNKNOWN,
            )
        answers("GET", panel.call(None, "GET", "/api/enroll"), 404, NOT_FOUND)

    @checks("1 7.12 an expired token is in nobody's way, a used one neither once the agent is gone")
    def _():
        expect.that("after it expired", panel.token(admin, "expired-token") != expired)
        answers("the old one", ask(*both(expired, good)), 401, TOKEN_EXPIRED)
        panel.done(admin, "DELETE", "/api/certs/agent/used-token")
        expect.that("after it was used", panel.token(admin, "used-token") != used)
        answers("the old one", ask(*both(used, good)), 401, TOKEN_USED)

    @checks("1 5.3 a token of an hour ago is dropped by the next operation, so that it is unknown")
    def _():
        tokens = panel.json_of("enrollment-tokens.json")
        ancient = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=61)
        for token in tokens["tokens"]:
            token["createdAt"] = iso(ancient)
        replace_file(panel.pki / "enrollment-tokens.json", json.dumps(tokens, indent=2))
        panel.token(admin, "another")
        answers("the old one", ask(*both(used, good)), 401, TOKEN_UNKNOWN)
        labels = [token["label"] for token in panel.json_of("enrollment-tokens.json")["tokens"]]
        expect.equal("only the new one is left", labels, ["another"])


def refused_names(report, rig, panel):
    """Certificates of our own CA that are nobody's (section 3.3)."""
    admin = panel.admin()
    checks = Checks()
    place = rig.work
    kept, _ = panel.enrolled(admin, "known")
    listed = serial_of(kept.cert)
    subjects = {
        "two common names, admin first": "/CN=admin/CN=agent:known/O=Portlama",
        "two common names, admin last": "/CN=agent:known/CN=admin/O=Portlama",
        "two common names in one part": "/CN=admin+CN=agent:known/O=Portlama",
        "two equal common names": "/CN=admin/CN=admin/O=Portlama",
        "no common name": "/O=Portlama",
        "another name": "/CN=whatever/O=Portlama",
        "Admin": "/CN=Admin/O=Portlama",
        "admin and a blank": "/CN=admin /O=Portlama",
        "Agent:known": "/CN=Agent:known/O=Portlama",
        "agent: and nothing": "/CN=agent:/O=Portlama",
        "an agent that is unknown": "/CN=agent:unknown/O=Portlama",
        "an agent with another serial": "/CN=agent:known/O=Portlama",
        "a plugin's agent that is unknown": "/CN=plugin-agent:known:x/O=Portlama",
        "admin in the organization": "/O=admin/CN=x",
    }
    for name, subject in subjects.items():
        options = ("-multivalue-rdn",) if "+" in subject else ()

        def refuses(subject=subject, options=options):
            for version in (1, 3):
                made = sign_by_hand(place, panel.pki, subject, version=version, request_options=options)
                for path in ("/api/certs", "/api/tunnels", "/api/onboarding/status", "/api/certs/mtls/download"):
                    an_error(f"{subject}: GET {path}", panel.call(made, "GET", path), 403)

        checks.append((f"2 3.3 refused: {name}", refuses))

    @checks("2 3.3 an agent's name with the serial of another agent is refused")
    def _():
        made = sign_by_hand(place, panel.pki, "/CN=agent:orderly/O=Portlama", serial=f"0x{listed}")
        an_error("the tunnels", panel.call(made, "GET", "/api/tunnels"), 403)
        expect.status("the real one", panel.call(kept, "GET", "/api/tunnels"), 200)

    report(checks)
