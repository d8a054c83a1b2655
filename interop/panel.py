"""Judges the certificates API of the panel from outside, by curl, openssl and Python's TLS.

Every section belongs to an item of the conformance checklist of the API's
specification, and every check says to which: the order of the checks, what a
proxy may say and a stranger may not, the bodies octet by octet, all kinds of
client certificates, requests that must not be signed, PKCS #12 bundles,
revocation, rotation, the upgrade to hardware-bound keys, reset-admin beside a
running server, broken state files, and that no secret is seen anywhere. Needs
`openssl` 3, `curl` and requirements.txt; as root it checks a little more.

    python panel.py --server ../target/release/api-server
    python panel.py --server ../target/release/api-server --only requests,bundles
"""

import contextlib
import datetime
import email
import functools
import hashlib
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import expect
from panel_server import (
    MTLS_REQUIRED,
    NOT_FOUND,
    REVOKED,
    Caller,
    Identity,
    Panel,
    an_error,
    another_ca,
    answers,
    at_once,
    csr_of,
    ec_key,
    end_of,
    from_p12,
    issues,
    keep,
    keys_in_order,
    mode_of,
    new_key,
    openssl,
    pem_of,
    replace_file,
    sections,
    serial_of,
    sign_by_hand,
    try_openssl,
)
from server import Answer, StartError, arguments

SCOPE = {"error": "Insufficient certificate scope", "details": {"required": ["admin"], "current": "agent"}}
INVALID_CSR = {"error": "Invalid CSR: structure or signature verification failed"}
CSR_TOO_LARGE = {"error": "CSR too large"}
TOO_LARGE = {"error": "Request body is too large"}
TOKEN_UNKNOWN = {"error": "Invalid enrollment token"}
TOKEN_USED = {"error": "Enrollment token has already been used"}
TOKEN_EXPIRED = {"error": "Enrollment token has expired"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
EMPTY_JSON = {"Content-Type": "application/json"}
NOTICE = (
    "Your current browser certificate is now invalid. Download and import the new certificate before closing this page."
)
ROTATION_GONE = (
    "P12 certificate rotation is disabled. Admin uses hardware-bound authentication."
    " Use portlama-reset-admin on the server to revert."
)
DOWNLOAD_GONE = ROTATION_GONE.replace("rotation", "download")
NO_CA_KEY = {"error": "CA key not found — cannot sign new certificate"}
CAPABILITIES = "tunnels:read tunnels:write services:read services:write system:read sites:read sites:write".split()
NO_SUCH_TOKEN = "0" * 64
NOBODY = 65534


def main():
    parser = arguments(__doc__)
    parser.add_argument("--only", metavar="NAME,NAME", help="the names of sections, from: " + ", ".join(SECTIONS))
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else SECTIONS
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="adit-panel-") as work, Arguments() as seen:
        rig = Rig(options.server, pathlib.Path(work), seen)
        named = []
        for name in chosen:
            title, section = SECTIONS[name]
            named.append((f"{name}: {title}", functools.partial(timed, section, rig)))
        try:
            sections(*named)
        finally:
            print(f"{time.monotonic() - began:.1f} s in all")


def timed(section, rig, report):
    began = time.monotonic()
    section(report, rig)
    print(f"        {time.monotonic() - began:.1f} s", flush=True)


class Rig:
    """What the sections share: the binary, a directory, and all that is searched for secrets at the end."""

    def __init__(self, binary, work, seen):
        self.binary, self.work, self.seen = binary, work, seen
        self.secrets = Secrets()
        self.logs = []  # of servers that are gone
        self.readable = {}  # files that others than the owner may read, with their content

    def panel(self, **settings):
        return Watched(self, **settings)


class Watched(Panel):
    """A panel whose log and files are kept for the search for secrets."""

    strictly = ("-x509_strict",)  # how `openssl verify` judges what it issues

    def __init__(self, rig, **settings):
        # Certbot's directory is empty, so that the machine's own certbot is not asked.
        nowhere = rig.work / "no-letsencrypt"
        (nowhere / "live").mkdir(parents=True, exist_ok=True)
        defaults = {"log": "debug", "panel_letsencrypt_dir": nowhere, "panel_certbot": "/bin/false"}
        super().__init__(rig.binary, **{**defaults, **settings})
        self._rig = rig

    def start(self):
        super().start()
        self._rig.secrets.gather(self.pki)

    def look(self):
        """Remembers the secrets and the readable files that are there now."""
        self._rig.secrets.gather(self.pki)
        for path in self.data_dir.rglob("*"):
            if path.is_file() and mode_of(path) & 0o077:
                self._rig.readable[path] = path.read_bytes()

    def __exit__(self, *error):
        with contextlib.suppress(OSError):
            self.look()
            self._rig.logs.append(self.log.read_text(errors="replace"))
        super().__exit__(*error)


class Secrets:
    """Texts that may be nowhere but in the one answer that gives them away, with what they are."""

    def __init__(self):
        self.known = {}

    def add(self, what, text):
        if text:
            self.known[text] = what

    def gather(self, pki):
        """Passwords and keys that lie in the directory."""
        with contextlib.suppress(OSError):
            self.add(".p12-password", (pki / ".p12-password").read_text().strip())
        for path in [*pki.glob("*key*"), *pki.glob("agents/*/client.key")]:
            with contextlib.suppress(OSError):
                lines = [line for line in path.read_text().splitlines() if not line.startswith("-----")]
                # A line in which there is a part of the private key and not of the public one alone.
                if len(lines) > 2:
                    self.add(f"{path.name} of {pki}", lines[1] if len(lines) < 6 else lines[-3])

    def listen(self):
        """Tokens and passwords in all answers so far: (text, how many answers had it)."""
        for _, _, answer in Caller.heard:
            with contextlib.suppress(ValueError, AttributeError):
                for name in ("token", "p12Password"):
                    self.add(name, answer.json.get(name))

    def found_in(self, content):
        content = content if isinstance(content, bytes) else content.encode()
        return sorted({what for text, what in self.known.items() if text.encode() in content})


class Arguments:
    """Notes the arguments of every process that runs meanwhile."""

    def __enter__(self):
        self.all, self._over = set(), threading.Event()
        self._thread = threading.Thread(target=self._note, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _note(self):
        while not self._over.wait(0.02):
            for name in os.listdir("/proc"):
                if name.isdigit():
                    with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                        self.all.add(file.read())


class Checks(list):
    """The checks of a section.

    @checks("1 the name of the check")
    def _(): …
    """

    def __call__(self, name):
        return lambda function: self.append((name, function))

    def table(self, prefix, ask, rows):
        """Rows of (name, request, status, body): `ask(*request)` gets exactly this answer."""
        for name, request, status, body in rows:
            self.append((f"{prefix} {name}", functools.partial(self._row, name, ask, request, status, body)))

    @staticmethod
    def _row(name, ask, request, status, body):
        answers(name, ask(*request), status, body)


# --- 1: the order of the checks -----------------------------------------------


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
EMPTY_CSR = ((["csr"], "CSR is required"), (["csr"], "CSR must be PEM-encoded"))
NO_CSR = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
HARDWARE_BOUND = {"error": "Admin is already using hardware-bound authentication"}


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


def iso(moment):
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


# --- 2: headers -----------------------------------------------------------------


def headers(report, rig):
    with rig.panel() as panel:
        admin = panel.admin()
        agent, made = panel.agent(admin, "speaker")
        checks = Checks()
        spoofed = said("SUCCESS", "CN=admin,O=Portlama", admin.serial)

        @checks("2 3.1 headers of strangers are ignored under TLS")
        def _():
            for headers in (spoofed, {**spoofed, "X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1"}):
                answers("no certificate", panel.call(None, "GET", "/api/certs", headers=headers), 403, MTLS_REQUIRED)
                answers("an agent", panel.call(agent, "GET", "/api/certs", headers=headers), 403, SCOPE)
            for headers in (said("NONE", "", ""), said("SUCCESS", "CN=agent:x", "00")):
                expect.status("an admin", panel.call(admin, "GET", "/api/certs", headers=headers), 200)

        @checks("2 3.1 the names of headers in other letters are no way in either")
        def _():
            for spelled in (str.lower, str.upper, lambda name: name.replace("-", "_")):
                headers = {spelled(name): value for name, value in spoofed.items()}
                answers("no certificate", panel.call(None, "GET", "/api/certs", headers=headers), 403, MTLS_REQUIRED)

        @checks("2 3.4 health needs no certificate, and every other path needs one")
        def _():
            expect.status("health", panel.call(None, "GET", "/api/health"), 200)
            for path in ("/", "/api/certs", "/api/tunnels", "/api/onboarding/status", "/api/health/", "/x.css"):
                expect.that(f"GET {path}", panel.call(None, "GET", path).status in (403, 404), path)

        origins(checks, panel, admin)
        report(checks)
    with rig.panel(panel_proxy="127.0.0.1", panel_enrollments_per_minute=6) as panel:
        behind_a_proxy(report, rig, panel)


def said(verify, subject, serial):
    named = {"X-SSL-Client-Verify": verify, "X-SSL-Client-DN": subject, "X-SSL-Client-Serial": serial}
    return {name: value for name, value in named.items() if value is not None}


def origins(checks, panel, admin):
    token = {"label": "csrf"}
    own = f"https://127.0.0.1:{panel.panel_port}"

    @checks("2 a page of another origin changes nothing")
    def _():
        for origin in ("https://evil.example", "http://127.0.0.1", f"http://127.0.0.1:{panel.panel_port}", "null", ""):
            for method, path, body in (
                ("POST", "/api/certs/agent/enroll", token),
                ("POST", "/api/certs/mtls/rotate", None),
                ("DELETE", "/api/certs/agent/speaker", None),
                ("PATCH", "/api/certs/agent/speaker/allowed-sites", {"allowedSites": []}),
            ):
                answer = panel.call(admin, method, path, body, {"Origin": origin})
                an_error(f"{method} {path} from {origin!r}", answer, 403)
        listed = panel.done(admin, "GET", "/api/certs/agent")["agents"]
        expect.equal(
            "the agent is still there", [(each["label"], each["revoked"]) for each in listed], [("speaker", False)]
        )

    @checks("2 the panel's own pages may")
    def _():
        answer = panel.call(admin, "POST", "/api/certs/agent/enroll", token, {"Origin": own})
        expect.status("a token", answer, 200)
        expect.status(
            "reading", panel.call(admin, "GET", "/api/certs", headers={"Origin": "https://evil.example"}), 200
        )

    @checks("2 2.1 every answer varies by origin, and none allows another one to read it")
    def _():
        for origin in ("https://evil.example", own):
            answer = panel.call(admin, "GET", "/api/certs", headers={"Origin": origin})
            expect.equal("vary", answer.headers.get("vary", "").lower(), "origin")
            allowed = answer.headers.get("access-control-allow-origin")
            expect.that(f"access-control-allow-origin for {origin}", allowed in (None, own), allowed)


def behind_a_proxy(report, rig, panel):
    admin = panel.admin()
    as_admin = said("SUCCESS", "O=Portlama,CN=admin", admin.serial)

    def ask(method, path, headers=None, body=None, **named):
        with panel.caller(plain=True, **named) as caller:
            return caller.ask(method, path, body, headers)

    expect.status("the proxy is believed", ask("GET", "/api/certs", as_admin), 200)
    made = ask("POST", "/api/certs/agent", as_admin, {"label": "foo"}).json
    serial = made["serial"]
    checks = Checks()

    def tunnels(verify, subject, number, *statuses):
        def run():
            answer = ask("GET", "/api/tunnels", said(verify, subject, number))
            expect.status(f"{verify} {subject} {number}", answer, *statuses)
            if 200 not in statuses:
                an_error("it is refused", answer, *statuses)
            return answer

        return run

    def becomes_agent(subject, number=serial):
        def run():
            headers = said("SUCCESS", subject, number)
            answers("the tunnels", ask("GET", "/api/tunnels", headers), 200, {"tunnels": []})
            answers("an admin's path", ask("GET", "/api/certs", headers), 403, SCOPE)

        return run

    for verify in ("NONE", "FAILED:certificate has expired", "FAILED", "success", "Success", "SUCCESSFUL", "", None):

        def required(verify=verify):
            answers(
                "refused",
                ask("GET", "/api/certs", said(verify, "CN=admin,O=Portlama", admin.serial)),
                403,
                MTLS_REQUIRED,
            )

        checks.append((f"2 3.1 verify {verify!r} is refused", required))
    for subject in (
        "O=Portlama,CN=agent:foo",
        "CN=agent:foo,O=Portlama",
        "CN=agent:foo",
        "/CN=agent:foo/O=Portlama",
        "/O=Portlama/CN=agent:foo",
        "O=Port\\,CN=admin,CN=agent:foo",
        "O=Port\\, lama\\, Inc.,CN=agent:foo",
        "O=caf\\C3\\A9,CN=agent:foo",
    ):
        checks.append((f"2 3.1 an agent by {subject}", becomes_agent(subject)))
    for subject in (
        "O=Portlama,CN=admin\\,x",
        "O=Portlama,CN=admin\\2Cx",
        "O=Portlama,CN=x\\,CN=admin",
        "CN=admin,CN=agent:foo",
        "CN=agent:foo,CN=admin",
        "CN=admin+CN=agent:foo,O=Portlama",
        "/CN=admin/CN=agent:foo",
        "O=CN\\=admin",
        "O=Portlama",
        "CN=Admin",
        "CN=whatever,O=Portlama",
        "CN=agent:nobody,O=Portlama",
        "CN=plugin-agent:foo:x,O=Portlama",
        "emailAddress=admin",
        "CN=",
        "admin",
        "",
        None,
    ):
        checks.append((f"2 3.3 refused: {subject}", tunnels("SUCCESS", subject, serial, 403)))
    pairs = [serial[at : at + 2] for at in range(0, len(serial), 2)]
    for name, number in {
        "lower case": serial.lower(),
        "colons": ":".join(pairs),
        "blanks": " ".join(pairs),
        "0x": f"0x{serial}",
        "a padding octet": f"00{serial}",
        "no leading zero": serial.lstrip("0"),
    }.items():
        checks.append((f"2 3.2 the serial with {name}", becomes_agent("CN=agent:foo", number)))
    for number in (None, "", "00", "0", "xyz", serial[:-2], serial + "00", f"-{serial}", admin.serial):
        checks.append((f"2 3.2 refused: the serial {number!r}", tunnels("SUCCESS", "CN=agent:foo", number, 403)))

    @checks("2 3.2 an admin without a serial is refused")
    def _():
        for number in (None, "", "zz"):
            an_error("no serial", ask("GET", "/api/certs", said("SUCCESS", "CN=admin,O=Portlama", number)), 403)

    @checks("2 3.1 a header that comes twice is refused")
    def _():
        for name in as_admin:
            with socket.create_connection(("127.0.0.1", panel.panel_port), 10) as raw:
                lines = [*(f"{each}: {value}" for each, value in as_admin.items()), f"{name}: {as_admin[name]}x"]
                raw.sendall(
                    "\r\n".join(["GET /api/certs HTTP/1.1", "Host: x", "Connection: close", *lines, "", ""]).encode()
                )
                came = b"".join(iter(lambda: raw.recv(65536), b""))
            expect.that(f"two {name}", b" 403 " in came.splitlines()[0], came)

    @checks("2 3.2 a revoked serial in every spelling, and 2 before 3 of section 4")
    def _():
        gone = ask("POST", "/api/certs/agent", as_admin, {"label": "gone"}).json["serial"]
        ask("DELETE", "/api/certs/agent/gone", as_admin)
        for number in (gone, gone.lower(), f"00{gone}", f"0x{gone}"):
            answers(number, ask("GET", "/api/tunnels", said("SUCCESS", "CN=agent:gone", number)), 403, REVOKED)
        answers("NONE", ask("GET", "/api/tunnels", said("NONE", "CN=agent:gone", gone)), 403, MTLS_REQUIRED)
        answers("as an admin", ask("GET", "/api/certs", said("SUCCESS", "CN=admin", gone)), 403, REVOKED)

    @checks("2 3.1 no other address is believed")
    def _():
        for plain in (True, False):
            try:
                with panel.caller(source="127.0.0.2", plain=plain) as caller:
                    answer = caller.ask("GET", "/api/certs", headers=as_admin)
            except (OSError, http.client.HTTPException):
                continue
            expect.status(f"no admin from 127.0.0.2, plain: {plain}", answer, 400, 403)

    @checks("2 2.4 enrolments are counted for the address that the proxy names; over the limit 429 comes first")
    def _():
        def enrol(address, body):
            return ask("POST", "/api/enroll", {"X-Real-IP": address}, body)

        good = {"token": NO_SUCH_TOKEN, "csr": csr_of(ec_key())}
        for number in range(6):
            answers(f"number {number + 1}", enrol("198.51.100.1", good), 401, TOKEN_UNKNOWN)
        for body in (good, b"{", {}):
            over = enrol("198.51.100.1", body)
            an_error(f"one too many: {body}", over, 429)
            after = over.headers.get("retry-after", "")
            expect.that("Retry-After is a number of seconds", after.isdigit() and 1 <= int(after) <= 60, after)
        answers("another address", enrol("198.51.100.2", good), 401, TOKEN_UNKNOWN)
        answers("an address of IPv6", enrol("2001:db8::1", good), 401, TOKEN_UNKNOWN)

    report(checks)


# --- 3: the tables ----------------------------------------------------------------


def bodies(report, rig):
    """Section 2: methods, paths and bodies."""
    with rig.panel(**renewals(rig)) as panel:
        admin = panel.admin()
        checks = Checks()
        create, rotate = ("POST", "/api/certs/agent"), ("POST", "/api/certs/mtls/rotate")
        writes = (
            create,
            ("POST", "/api/certs/agent/enroll"),
            ("PATCH", "/api/certs/agent/x/capabilities"),
            ("PATCH", "/api/certs/agent/x/allowed-sites"),
            ("POST", "/api/certs/admin/upgrade-to-hardware-bound"),
            ("POST", "/api/certs/agent/upgrade-cert"),
            ("POST", "/api/enroll"),
        )

        def everywhere(name, status, body, sent, sent_headers=None):
            def run():
                for method, path in writes:
                    answer = panel.call(admin, method, path, sent, sent_headers)
                    if callable(body):
                        body(f"{method} {path}", answer)
                    else:
                        answers(f"{method} {path}", answer, status, body)

            checks.append((f"3 2.2 {name}", run))

        def object_expected(received):
            return issues(([], f"Expected object, received {received}"))

        nothing = {"Content-Type": None}
        everywhere("no body", 400, issues(([], "Required")), None)
        everywhere("no octets and no type", 400, issues(([], "Required")), b"", nothing)
        for sent in ("null", "[]", '"text"', "1", "1.5", "true", "[{}]"):
            kind = {"n": "null", "[": "array", '"': "string", "1": "number", "t": "boolean"}[sent[0]]
            everywhere(f"JSON that is {sent}", 400, object_expected(kind), sent.encode())
        everywhere("a form", 415, {"error": "Unsupported Media Type"}, b"label=x", FORM)
        everywhere("70,000 octets", 413, TOO_LARGE, b'{"x":"' + b"x" * 70_000 + b'"}')

        @checks("3 2.2 more than 1 MiB: the answer is not lost because nobody listens any more")
        def _():
            large = b'{"x":"' + b"x" * 1_048_576 + b'"}'
            for method, path in writes:
                for identity in (admin, None) if path == "/api/enroll" else (admin,):
                    try:
                        answer = panel.call(identity, method, path, large)
                    except OSError as error:
                        raise expect.Failed(f"{method} {path}: no answer, but {error!r}") from error
                    answers(f"{method} {path}", answer, 413, TOO_LARGE)

        everywhere(
            "text",
            None,
            lambda what, got: an_error(what, got, 400, 415),
            b'{"label":"x"}',
            {"Content-Type": "text/plain"},
        )
        everywhere("empty JSON", None, lambda what, got: an_error(what, got, 400), b"", EMPTY_JSON)
        for sent in (b"{", b'{"label":"x"', b"{'label':'x'}", b'{"label":"\xff"}', b"\x00", b'{"label":"x"} x', b"NaN"):
            everywhere(f"broken JSON: {sent!r}", None, lambda what, got: an_error(what, got, 400), sent)

        @checks("3 2.2 JSON that is very deep does no harm")
        def _():
            for sent in (b"[" * 30_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000):
                an_error("deep", panel.call(admin, *create, sent), 400)

        @checks("3 2.2 unknown fields, a charset and a twin are no harm")
        def _():
            for number, kind in enumerate(
                ("application/json; charset=utf-8", "application/json;charset=UTF-8", "Application/JSON")
            ):
                body = {"label": f"plain-{number}", "admin": True, "serial": "00", "revoked": True, "x": [{}]}
                made = panel.call(admin, *create, body, {"Content-Type": kind})
                expect.status(kind, made, 200)
            listed = panel.done(admin, "GET", "/api/certs/agent")["agents"]
            names = {name for agent in listed for name in agent}
            expect.that("nothing of it is stored", "admin" not in names and "x" not in names, names)

        @checks("3 2.2 paths that take no body accept an empty one of JSON, as the web page sends it")
        def _():
            for number, (sent, kind) in enumerate(((b"", EMPTY_JSON), (b"{}", None), (None, None), (b"", nothing))):
                caller = panel.admin()
                for method, path in (
                    rotate,
                    ("POST", f"/api/certs/{LINEAGE}/renew"),
                    ("DELETE", f"/api/certs/agent/gone-{number}"),
                ):
                    panel.done(caller, *create, {"label": f"gone-{number}"}) if method == "DELETE" else None
                    expect.status(
                        f"{method} {path} with {sent!r}, {kind}", panel.call(caller, method, path, sent, kind), 200
                    )
                    caller = panel.admin()

        checks.extend(paths(panel))
        report(checks)


def paths(panel):
    checks = Checks()
    for method, path in (
        *((method, "/api/certs") for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS")),
        ("GET", "/api/certs/"),
        ("GET", "/api//certs"),
        ("GET", "/api/certs/agent/"),
        ("GET", "/api/certs/mtls/download/"),
        ("GET", "/api/certs/mtls/rotate"),
        ("GET", "/api/Certs"),
        ("GET", "/api"),
        ("GET", "/api/"),
        ("GET", "/api/enroll"),
        ("PUT", "/api/enroll"),
        ("POST", "/api/enroll/"),
        ("DELETE", "/api/certs/agent/"),
        ("DELETE", "/api/certs/agent/x/"),
        ("DELETE", "/api/certs/agent/x/y"),
        ("GET", "/api/certs/agent/x"),
        ("PATCH", "/api/certs/agent/x"),
        ("POST", "/api/certs/a.b/renew/"),
        ("GET", "/api/certs/a.b/renew"),
        ("POST", "/api/certs/agent/enroll-delegated"),
        ("GET", "/api/certs/../certs"),
        ("GET", "/api/nothing"),
    ):

        def unknown(method=method, path=path):
            admin = panel.admin()
            for identity in (None, admin):
                answers(f"{method} {path}", panel.call(identity, method, path), 404, NOT_FOUND)

        checks.append((f"3 2.1 unknown: {method} {path}", unknown))

    @checks("3 2.1 HEAD is GET without the body")
    def _():
        admin = panel.admin()
        for path in (
            "/api/certs",
            "/api/certs/agent",
            "/api/certs/mtls/download",
            "/api/certs/admin/auth-mode",
            "/api/health",
        ):
            get, head = (panel.call(admin, method, path) for method in ("GET", "HEAD"))
            expect.equal(f"HEAD {path}", (head.status, head.body), (200, b""))
            expect.equal("its type", head.headers.get("content-type"), get.headers.get("content-type"))
        an_error("GET of a wrong label", panel.call(admin, "GET", "/api/certs/agent/X/download"), 400)
        expect.status("HEAD of a wrong label", panel.call(admin, "HEAD", "/api/certs/agent/X/download"), 400)

    @checks("3 2.1 percent-encoding is undone first, and a query changes nothing")
    def _():
        admin = panel.admin()
        bad = issues((["label"], "Invalid agent label"))
        for path in ("%2e%2e", "a%2Fb", "a%00b", "%41", "a%20b", "caf%C3%A9", "a;b", "..", "%FF"):
            got = panel.call(admin, "DELETE", f"/api/certs/agent/{path}")
            if path in ("%FF", ".."):
                an_error(path, got, 400, 404)
            else:
                answers(path, got, 400, bad)
        missing = {"error": 'Agent certificate "nobody" not found'}
        answers("%6eobody", panel.call(admin, "DELETE", "/api/certs/agent/%6eobody?x=y"), 404, missing)
        expect.status("a query", panel.call(admin, "GET", "/api/certs?x=/api/health"), 200)
        answers("a query for nobody", panel.call(None, "GET", "/api/certs?/api/health"), 403, MTLS_REQUIRED)

    return checks


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


def kinds_of(panel, admin):
    return [each["type"] for each in panel.done(admin, "GET", "/api/certs")["certs"]]


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


def catalogue(report, rig):
    """Section 13: requests, and the issues that they must get."""
    with rig.panel(panel_capabilities="identity:read,panel:expose") as panel:
        admin = panel.admin()
        checks = Checks()
        create, capabilities, sites = (
            "/api/certs/agent",
            "/api/certs/agent/x/capabilities",
            "/api/certs/agent/x/allowed-sites",
        )
        token, upgrade = "/api/certs/agent/enroll", "/api/certs/admin/upgrade-to-hardware-bound"

        def least(length):
            return f"String must contain at least {length} character(s)"

        def most(length):
            return f"String must contain at most {length} character(s)"

        charset = "Label must contain only lowercase letters, numbers, and hyphens"
        in_path, site = "Invalid agent label", "Site name must contain only lowercase letters, numbers, and hyphens"
        mandatory = "tunnels:read is mandatory and cannot be removed"
        kinds = {"null": None, "number": 1.5, "boolean": True, "array": [], "object": {}, "string": "x"}

        def wrong(type_, received):
            return f"Expected {type_}, received {received}"

        rows = []

        def row(path, body, *found):
            rows.append((path, body, found))

        for path in (create, token):
            row(path, {}, (["label"], "Required"))
            row(path, {"label": ""}, (["label"], least(1)), (["label"], charset))
            row(path, {"label": "a" * 51}, (["label"], most(50)))
            row(path, {"label": "A" * 51}, (["label"], most(50)), (["label"], charset))
            for label in ("A", "a b", "a_b", "a.b", "a/b", "ä", "a\n", "\n", "a\u0000", "😀", "plugin-agent:a:b"):
                row(path, {"label": label}, (["label"], charset))
            for kind in ("null", "number", "boolean", "array", "object"):
                row(path, {"label": kinds[kind]}, (["label"], wrong("string", kind)))
            for kind in ("null", "number", "boolean", "string", "object"):
                row(path, {"label": "x", "capabilities": kinds[kind]}, (["capabilities"], wrong("array", kind)))
                row(path, {"label": "x", "allowedSites": kinds[kind]}, (["allowedSites"], wrong("array", kind)))
            row(path, {"label": "x", "capabilities": []}, (["capabilities"], mandatory))
            row(path, {"label": "x", "capabilities": ["sites:read"]}, (["capabilities"], mandatory))
            row(
                path,
                {
                    "label": "B",
                    "capabilities": ["bogus", "sites:read", "Tunnels:read"],
                    "allowedSites": ["ok", "", "-x"],
                },
                (["label"], charset),
                (["capabilities"], mandatory),
                (["capabilities"], "Invalid capability: bogus"),
                (["capabilities"], "Invalid capability: Tunnels:read"),
                (["allowedSites", 1], least(1)),
                (["allowedSites", 1], site),
                (["allowedSites", 2], site),
            )
            row(
                path,
                {"capabilities": 1, "allowedSites": False},
                (["label"], "Required"),
                (["capabilities"], wrong("array", "number")),
                (["allowedSites"], wrong("array", "boolean")),
            )
        for path, more in ((create, {"label": "x"}), (capabilities, {})):
            row(
                path,
                {**more, "capabilities": ["bogus", 1, None, {}]},
                (["capabilities", 1], wrong("string", "number")),
                (["capabilities", 2], wrong("string", "null")),
                (["capabilities", 3], wrong("string", "object")),
            )
            row(path, {**more, "capabilities": ["tunnels:read", ""]}, (["capabilities"], "Invalid capability: "))
            row(
                path,
                {**more, "capabilities": ["tunnels:read", "a", "b", "a"]},
                *[(["capabilities"], f"Invalid capability: {name}") for name in "aba"],
            )
        for path, more in ((create, {"label": "x"}), (sites, {})):
            row(path, {**more, "allowedSites": ["a" * 100, "a" * 101]}, (["allowedSites", 1], most(100)))
            row(
                path,
                {**more, "allowedSites": ["A" * 101]},
                (["allowedSites", 0], most(100)),
                (["allowedSites", 0], site),
            )
            for name in ("A", "a-", "-", "a.b", "a b", "a/b", "..", "ä", "a\n"):
                row(path, {**more, "allowedSites": [name]}, (["allowedSites", 0], site))
            row(
                path,
                {**more, "allowedSites": [1, "ok", None, [], "A"]},
                (["allowedSites", 0], wrong("string", "number")),
                (["allowedSites", 2], wrong("string", "null")),
                (["allowedSites", 3], wrong("string", "array")),
                (["allowedSites", 4], site),
            )
        row(capabilities, {}, (["capabilities"], "Required"))
        row(capabilities, {"capabilities": []}, (["capabilities"], mandatory))
        row(capabilities, {"capabilities": None}, (["capabilities"], wrong("array", "null")))
        row(sites, {}, (["allowedSites"], "Required"))
        row(sites, {"allowedSites": "blog"}, (["allowedSites"], wrong("array", "string")))
        for path in (upgrade, "/api/enroll", "/api/certs/agent/upgrade-cert"):
            more = {"token": "t"} if path == "/api/enroll" else {}
            row(path, more, (["csr"], "Required"))
            row(path, {**more, "csr": ""}, *EMPTY_CSR)
            row(path, {**more, "csr": "x"}, EMPTY_CSR[1])
            row(path, {**more, "csr": NO_CSR.replace("CERT", "NEW CERT")}, EMPTY_CSR[1])
            for kind in ("null", "number", "boolean", "array", "object"):
                row(path, {**more, "csr": kinds[kind]}, (["csr"], wrong("string", kind)))
        enroll = "/api/enroll"
        row(enroll, {}, (["token"], "Required"), (["csr"], "Required"))
        row(enroll, {"token": "", "csr": NO_CSR}, (["token"], "Enrollment token is required"))
        row(enroll, {"token": 7, "csr": ""}, (["token"], wrong("string", "number")), *EMPTY_CSR)
        for label, *messages in (
            ("A", in_path),
            ("a_b", in_path),
            ("a" * 51, most(50)),
            ("A" * 51, most(50), in_path),
        ):
            of_label, found = f"/api/certs/agent/{label}", [(["label"], message) for message in messages]
            for method, path, body in (
                ("DELETE", of_label, None),
                ("GET", f"{of_label}/download", None),
                ("PATCH", f"{of_label}/capabilities", {"capabilities": []}),
                ("PATCH", f"{of_label}/allowed-sites", {}),
                ("DELETE", f"/api/certs/agent/enroll/{label}", None),
            ):
                rows.append(((method, path), body, found))

        def all_rows():
            failed = []
            with panel.caller(admin, keep_alive=True) as caller:
                for path, body, found in rows:
                    method, path = path if isinstance(path, tuple) else ("PATCH" if "/x/" in path else "POST", path)
                    answer = caller.ask(method, path, body)
                    try:
                        answers(f"{method} {path} {body}", answer, 400, issues(*found))
                    except expect.Failed as failure:
                        failed.append(str(failure))
            expect.that(f"all of {len(rows)} requests get their issues", not failed, "\n".join(failed))
            print(f"        {len(rows)} requests")

        checks.append(("3 §13 the catalogue", all_rows))

        @checks("3 §13 what is at the edge of valid")
        def _():
            for body in (
                {"label": "a" * 50, "allowedSites": ["a" * 100, "a", "0", "a-b", "a--b"]},
                {"label": "more", "capabilities": ["identity:read", "tunnels:read", "panel:expose"]},
                {"label": "twice", "capabilities": ["tunnels:read", "tunnels:read"], "allowedSites": ["a", "a"]},
            ):
                panel.done(admin, "POST", create, body)
                panel.done(admin, "DELETE", f"{create}/{body['label']}")

        report(checks)


# --- 4: all kinds of client certificates --------------------------------------------


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


# --- 8, 12: requests to be signed ---------------------------------------------------


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


def profile(panel, cert, name):
    """Section 6.2, of a certificate that the server has made."""
    authority = panel.pki / "ca.crt"
    openssl("verify", *panel.strictly, "-purpose", "sslclient", "-CAfile", authority, cert)
    text = openssl("x509", "-in", cert, "-noout", "-text", "-nameopt", "RFC2253,-dn_rev,show_type")
    shown = " ".join(text.split())
    for part in (
        "Version: 3 (0x2)",
        f"Subject: CN=UTF8STRING:{name},O=UTF8STRING:Portlama",
        "X509v3 Basic Constraints: critical CA:FALSE",
        "X509v3 Key Usage: critical Digital Signature X509v3",
        "X509v3 Extended Key Usage: TLS Web Client Authentication",
        "X509v3 Subject Key Identifier:",
        "X509v3 Authority Key Identifier:",
    ):
        expect.that(f"{cert}: {part}", part in f"{shown} X509v3", text)
    expect.that(f"{cert}: for clients only", "Client Authentication," not in text, text)
    expect.equal(f"{cert}: no other extensions", text.count("X509v3 ") - text.count("X509v3 extensions"), 5)
    expect.that(f"{cert}: SHA-256", re.search("Algorithm: (ecdsa-with-SHA256|sha256WithRSAEncryption)", text), text)
    made = x509.load_pem_x509_certificate(pathlib.Path(cert).read_bytes())
    now, days = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=730)
    early = now - made.not_valid_before_utc
    left = made.not_valid_after_utc - now
    expect.that(f"{cert}: begins at most 5 minutes ago", -2 <= early.total_seconds() <= 330, made.not_valid_before_utc)
    expect.that(f"{cert}: ends in 730 days", -30 <= (left - days).total_seconds() <= 1, made.not_valid_after_utc)


# --- 5: bundles, and curl -------------------------------------------------------------


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


def spaced(digits):
    return " ".join(digits[at : at + 2] for at in range(0, len(digits), 2))


def pem_in(text):
    return text[text.index("-----BEGIN") :]


def public(holder):
    return holder.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def curl(panel, method, path, body=None, bundle=None, password=None, identity=None, options=()):
    """The commands of the original's documentation. What is secret goes in by stdin: `-K -`."""
    out, head = (panel.work / f"curl-{random.getrandbits(40):x}.{kind}" for kind in ("out", "head"))
    lines = [f'url = "{panel.panel_url}{path}"']
    if bundle:
        lines += ['cert-type = "P12"', f'cert = "{bundle}:{password}"']
    if identity:
        lines += [f'cert = "{identity.cert}"', f'key = "{identity.key}"']
    if body is not None:
        text = (body if isinstance(body, str) else json.dumps(body)).replace("\\", "\\\\").replace('"', '\\"')
        lines += ['header = "Content-Type: application/json"', f'data = "{text}"']
    if method != ("GET" if body is None else "POST"):
        lines += [f'request = "{method}"']
    command = [
        "curl",
        "-s",
        "-S",
        "-k",
        "--max-time",
        "30",
        "-o",
        out,
        "-D",
        head,
        "-w",
        "%{http_code}",
        *options,
        "-K",
        "-",
    ]
    done = subprocess.run([*map(str, command)], input="\n".join(lines), capture_output=True, text=True, timeout=60)
    expect.equal(f"curl {method} {path} gets an answer", (done.returncode, done.stderr), (0, ""))
    headers = email.message_from_string(head.read_text().partition("\n")[2])
    answer = Answer(int(done.stdout), headers, out.read_bytes() if out.exists() else b"")
    Caller.heard.append((method, path, answer))
    return answer


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


# --- 9, 10: revocation, rotation, upgrades, reset-admin ---------------------------------


def refused_as_revoked(panel, identity, but_download=False):
    """Every path refuses the certificate, except health, and the download while a rotation's grace lasts."""
    for method, path, body in (
        ("GET", "/api/certs", None),
        ("GET", "/api/certs/agent", None),
        ("GET", "/api/certs/admin/auth-mode", None),
        ("GET", "/api/certs/mtls/download?x", None) if not but_download else ("GET", "/api/tunnels", None),
        ("POST", "/api/certs/mtls/rotate", None),
        ("POST", "/api/certs/agent", {"label": "never"}),
        ("POST", "/api/certs/agent/enroll", {"label": "never"}),
        ("DELETE", "/api/certs/agent/never", None),
        ("POST", "/api/certs/admin/upgrade-to-hardware-bound", {"csr": NO_CSR}),
        ("GET", "/api/onboarding/status", None),
        ("GET", "/api/tunnels", None),
        ("GET", "/api/settings/2fa", None),
    ):
        answers(f"{method} {path}", panel.call(identity, method, path, body), 403, REVOKED)
    answers("POST to the download", panel.call(identity, "POST", "/api/certs/mtls/download"), 404, NOT_FOUND)
    expect.status("health", panel.call(identity, "GET", "/api/health"), 200)
    page = panel.call(identity, "GET", "/")
    expect.status("the page", page, 403)
    download = panel.call(identity, "GET", "/api/certs/mtls/download")
    if but_download:
        expect.equal("the download", (download.status, download.body), (200, (panel.pki / "client.p12").read_bytes()))
    else:
        answers("the download", download, 403, REVOKED)


def is_listed(panel, serial, label=None, pem=None):
    """In revoked.json once, in crl.pem once, and for `openssl verify -crl_check`."""
    entries = [each for each in panel.json_of("revoked.json")["revoked"] if each["serial"] == serial]
    expect.equal(f"revoked.json has {serial} once", len(entries), 1)
    expect.equal(f"crl.pem has {serial} once", panel.crl_serials().count(serial), 1)
    if label:
        expect.equal("its label", entries[0]["label"], label)
    if pem:
        done = crl_check(panel, pem)
        expect.that(f"openssl verify -crl_check finds {serial} revoked", "certificate revoked" in done.stderr, done)


def is_not_listed(panel, identity):
    done = crl_check(panel, identity.cert)
    expect.equal("openssl verify -crl_check finds no fault", (done.returncode, done.stderr), (0, ""))


def crl_check(panel, cert):
    words = ("-crl_check", "-CAfile", panel.pki / "ca.crt", "-CRLfile", panel.pki / "crl.pem")
    return try_openssl("verify", *panel.strictly, *words, cert)


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


def snapshot(panel):
    """The content of every file that counts."""
    files = [each for each in (panel.config, *panel.pki.rglob("*")) if each.is_file() and each.name != ".lock"]
    return {str(each): hashlib.sha256(each.read_bytes()).hexdigest() for each in files}


def together(panel):
    """client.crt, client.key, client.p12 and .p12-password are of one generation, and let in."""
    password = (panel.pki / ".p12-password").read_text()
    panel._rig.secrets.add(".p12-password", password)
    inside = from_p12(panel.work, (panel.pki / "client.p12").read_bytes(), password)
    admin = panel.admin()
    expect.equal(
        "the bundle's certificate",
        inside.cert.read_text()[inside.cert.read_text().index("-----") :],
        admin.cert.read_text(),
    )
    keys = [serialization.load_pem_private_key(each.key.read_bytes(), None) for each in (inside, admin)]
    certificate = x509.load_pem_x509_certificate(admin.cert.read_bytes())
    expect.that("the key is the certificate's", public(keys[0]) == public(keys[1]) == public(certificate))
    expect.status("it is let in", panel.call(inside, "GET", "/api/certs"), 200)
    return admin


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


# --- 11: broken files -------------------------------------------------------------------


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


# --- section 9: what other clients ask -----------------------------------------------------


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


# --- 7: many at once, and kill -9 ----------------------------------------------------------


def many(report, rig):
    with rig.panel() as panel:
        checks = Checks()

        def enrolments(name, requests, turns=12):
            def run():
                admin, wrong = panel.admin(), []
                for turn in range(turns):
                    label = f"{name}-{turn}"
                    token = panel.token(admin, label)
                    came = at_once([functools.partial(panel.enrol, token, csr) for csr in requests()])
                    entries = [
                        each for each in panel.json_of("agents/registry.json")["agents"] if each["label"] == label
                    ]
                    expect.equal("one entry", len(entries), 1)
                    expect.equal("one is done", [answer.status for answer in came].count(200), 1)
                    used = [answer for answer in came if (answer.status, answer.json) == (401, TOKEN_USED)]
                    wrong += [answer for answer in came if answer.status != 200 and answer not in used]
                expect.that(f"all the others, of {turns * 8}, hear that it is used", not wrong, wrong)

            return run

        several, one = "7 N enrolments with one token at once, {}: one is done, the others hear that it is used", csr_of
        checks.append(
            (several.format("each with its own key"), enrolments("own", lambda: [one(ec_key()) for _ in range(8)]))
        )
        checks.append((several.format("the same request"), enrolments("same", lambda: [one(ec_key())] * 8)))

        @checks("7 N creations of one label at once: one is done, the others are told that it exists")
        def _():
            call = functools.partial(panel.call, panel.admin(), "POST", "/api/certs/agent", {"label": "popular"})
            expect.equal("statuses", sorted(answer.status for answer in at_once([call] * 6)), [200] + [409] * 5)
            call = functools.partial(panel.call, panel.admin(), "POST", "/api/certs/agent/enroll", {"label": "wanted"})
            expect.equal("tokens", sorted(answer.status for answer in at_once([call] * 6)), [200] + [409] * 5)

        @checks("7 N creations of different labels at once: nothing is lost")
        def _():
            admin = panel.admin()
            calls = [
                functools.partial(panel.call, admin, "POST", "/api/certs/agent", {"label": f"n-{number}"})
                for number in range(8)
            ]
            expect.equal("statuses", {answer.status for answer in at_once(calls)}, {200})
            calls = [
                functools.partial(panel.call, admin, "DELETE", f"/api/certs/agent/n-{number}") for number in range(8)
            ]
            expect.equal("statuses", {answer.status for answer in at_once(calls)}, {200})
            listed = {
                each["serial"] for each in panel.done(admin, "GET", "/api/certs/agent")["agents"] if each["revoked"]
            }
            expect.that("all are revoked", listed <= set(panel.revoked_serials()) and len(listed) == 8, listed)
            expect.equal("crl.pem has them", set(panel.crl_serials()), set(panel.revoked_serials()))

        @checks("7 N rotations at once: every one is done, and the files are of one generation")
        def _():
            helpers = [sign_by_hand(rig.work, panel.pki, "/CN=Portlama Client/O=Portlama") for _ in range(5)]
            came = at_once([functools.partial(panel.call, each, "POST", "/api/certs/mtls/rotate") for each in helpers])
            expect.equal("statuses", [answer.status for answer in came], [200] * 5)
            together(panel)
            password = (panel.pki / ".p12-password").read_text()
            expect.equal("one of the passwords", [answer.json["p12Password"] for answer in came].count(password), 1)

        @checks("7 N rotations of one admin at once: the files are of one generation, the last is let in")
        def _():
            admin = panel.admin()
            came = at_once([functools.partial(panel.call, admin, "POST", "/api/certs/mtls/rotate") for _ in range(5)])
            expect.that("200, or 403 after the first", {answer.status for answer in came} <= {200, 403}, came)
            expect.that("at least one", any(answer.status == 200 for answer in came), came)
            together(panel)

        @checks("7 kill -9 while it rotates, makes agents and revokes: all is of one piece afterwards")
        def _():
            killed(rig, panel)

        @checks("7, 10 N upgrades at once: one is done, the others get 409 or are refused")
        def _():
            helpers = [sign_by_hand(rig.work, panel.pki, "/CN=Portlama Client/O=Portlama") for _ in range(4)]
            path, requests = "/api/certs/admin/upgrade-to-hardware-bound", [csr_of(ec_key()) for _ in range(4)]
            calls = [
                functools.partial(panel.call, each, "POST", path, {"csr": csr})
                for each, csr in zip(helpers, requests, strict=True)
            ]
            came = at_once(calls)
            expect.equal("statuses", sorted(answer.status for answer in came), [200, 409, 409, 409])
            for answer in came:
                if answer.status == 409:
                    answers("the others", answer, 409, HARDWARE_BOUND)
                else:
                    expect.equal("client.crt", (panel.pki / "client.crt").read_text(), answer.json["cert"])

        report(checks)


def killed(rig, panel, rounds=8):
    """Kills the server in the midst of work; `kill9.py` does that to the other API, for longer."""
    answered = 0
    for number in range(rounds):
        admin, done, over = panel.admin(), [], threading.Event()
        helper = sign_by_hand(rig.work, panel.pki, "/CN=admin/O=Portlama")

        def work(method, path, body=None, helper=helper, done=done):
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer = panel.call(helper, method, path, body, timeout=5)
                done.append((method, path, answer))

        def agents(number=number, over=over, work=work):
            for turn in range(100):
                if over.is_set():
                    return
                label = f"k-{number}-{turn}"
                work("POST", "/api/certs/agent", {"label": label})
                work("DELETE", f"/api/certs/agent/{label}")

        def rotations(over=over, work=work):
            while not over.is_set():
                work("POST", "/api/certs/mtls/rotate")

        threads = [threading.Thread(target=target) for target in (agents, rotations)]
        for thread in threads:
            thread.start()
        time.sleep(random.uniform(0.005, 0.08))
        panel.kill9()
        over.set()
        for thread in threads:
            thread.join()
        panel.start()
        now = together(panel)
        listed = {each["serial"]: each for each in panel.done(now, "GET", "/api/certs/agent")["agents"]}
        revoked = set(panel.revoked_serials())
        expect.equal("crl.pem and revoked.json agree", set(panel.crl_serials()), revoked)
        for method, path, answer in done:
            if method == "POST" and path.endswith("agent") and answer.status == 200:
                expect.that("an agent that was promised is there", answer.json["serial"] in listed, answer)
            if method == "DELETE" and answer.status == 200:
                entries = [each for each in listed.values() if each["label"] == answer.json["label"]]
                expect.that(
                    "a revocation that was promised is done",
                    entries and all(each["revoked"] and each["serial"] in revoked for each in entries),
                    entries,
                )
        for each in listed.values():
            expect.equal(f"{each['label']}: the lists agree", each["revoked"], each["serial"] in revoked)
            if not each["revoked"]:
                bundle = panel.pki / "agents" / each["label"]
                if each["enrollmentMethod"] == "p12":
                    expect.equal(
                        "its files",
                        sorted(file.name for file in bundle.iterdir()),
                        ["client.crt", "client.key", "client.p12"],
                    )
                    expect.equal("its certificate", serial_of(bundle / "client.crt"), each["serial"])
            else:
                expect.that("no files of the revoked", not (panel.pki / "agents" / each["label"]).exists(), each)
        expect.that(
            "rotated and answered means that the old one is refused",
            admin.serial == now.serial or panel.call(admin, "GET", "/api/certs").status == 403,
        )
        left = [str(file) for file in panel.pki.rglob("*") if re.search(r"\.(new|tmp)|adit-new|staging/.", str(file))]
        expect.equal("nothing is left over", left, [])
        answered += len(done)
    print(f"        {rounds} kills, {answered} requests that were answered before")


# --- 2.4, section 5, 13 --------------------------------------------------------------------


def limits(report, rig):
    with rig.panel(panel_enrollments_per_minute=6) as panel:
        checks = Checks()

        @checks("2 2.4 six enrolments at once may be; the next gets 429, whatever it says of its address")
        def _():
            body = {"token": NO_SUCH_TOKEN, "csr": csr_of(ec_key())}
            admin = panel.admin()
            came = at_once([functools.partial(panel.call, None, "POST", "/api/enroll", body)] * 6)
            expect.equal("statuses", [answer.status for answer in came], [401] * 6)
            for name, identity, headers in (
                ("no certificate", None, {}),
                ("an admin", admin, {}),
                ("X-Real-IP", None, {"X-Real-IP": "198.51.100.7"}),
                ("X-Forwarded-For", None, {"X-Forwarded-For": "198.51.100.7", "Forwarded": "for=198.51.100.7"}),
            ):
                answer = panel.call(identity, "POST", "/api/enroll", body, headers)
                an_error(name, answer, 429)
                after = answer.headers.get("retry-after", "")
                expect.that("Retry-After is a number of seconds", after.isdigit() and 1 <= int(after) <= 60, after)
            with panel.caller(source="127.0.0.9") as caller:
                expect.status("another address", caller.ask("POST", "/api/enroll", body), 401)
            expect.status("other paths have no limit", panel.call(admin, "GET", "/api/certs"), 200)
            expect.status("tokens neither", panel.call(admin, "POST", "/api/certs/agent/enroll", {"label": "x"}), 200)

        @checks("2 2.4 150 requests of one admin are no harm: there is no limit for all")
        def _():
            with panel.caller(panel.admin(), keep_alive=True) as caller:
                for _ in range(150):
                    expect.status("the mode", caller.ask("GET", "/api/certs/admin/auth-mode"), 200)

        report(checks)
    with rig.panel() as panel:
        checks = Checks()
        del panel.settings["panel_enrollments_per_minute"]

        @checks("2 2.4 thirty in a minute, if nothing else is said")
        def _():
            panel.stop()
            panel.start()
            with panel.caller(keep_alive=True) as caller:
                came = [caller.ask("POST", "/api/enroll", {}).status for _ in range(31)]
            expect.equal("statuses", came, [400] * 30 + [429])

        report(checks)


PRIVATE = (
    "ca.key",
    "client.key",
    "client.p12",
    ".p12-password",
    "client.key.bak",
    "client.p12.bak",
    "self-signed-key.pem",
)
LISTS = ("revoked.json", "enrollment-tokens.json", "agents/registry.json")


def modes(report, rig):
    """Section 5, the column that is ours, after everything that writes."""
    old = os.umask(0)
    try:
        with rig.panel() as panel:
            checks = Checks()

            def are(when):
                found = {each.relative_to(panel.pki): mode_of(each) for each in (panel.pki, *panel.pki.rglob("*"))}
                for path, mode in found.items():
                    name = str(path)
                    if (panel.pki / path).is_dir():
                        wanted = {0o700}
                    elif name.endswith((".crt", ".crt.bak")) or name in ("self-signed.pem", "crl.pem"):
                        wanted = {0o644}
                    else:
                        wanted = {0o600}
                    expect.that(f"{when}: {name} has mode {mode:o}", mode in wanted, oct(mode))
                wanted = [*LISTS, "ca.key", "ca.crt", "crl.pem", "client.crt", "self-signed.pem", "self-signed-key.pem"]
                names = [str(path) for path in found]
                expect.equal(f"{when}: all are there", [name for name in wanted if name not in names], [])
                expect.that(f"{when}: panel.json", mode_of(panel.config) in (0o600, 0o640), oct(mode_of(panel.config)))
                expect.that(f"{when}: no ca.srl", "ca.srl" not in names, names)
                return names

            @checks("§5 modes after everything that writes, with a umask of 0")
            def _():
                admin = panel.admin()
                panel.agent(admin, "filed")
                panel.agent(admin, "gone")
                panel.enrolled(admin, "own")
                panel.done(admin, "DELETE", "/api/certs/agent/gone")
                panel.token(admin, "waiting")
                are("after a while")
                panel.done(admin, "POST", "/api/certs/mtls/rotate")
                names = are("after a rotation")
                expect.that("the bundle", {*PRIVATE[:4]} <= {*names}, names)
                panel.look()
                expect.equal("reset", panel.reset_admin().returncode, 0)
                are("after a reset")
                upgraded = panel.call(
                    panel.admin(), "POST", "/api/certs/admin/upgrade-to-hardware-bound", {"csr": csr_of(ec_key())}
                )
                expect.status("upgrade", upgraded, 200)
                are("after an upgrade")

            report(checks)
    finally:
        os.umask(old)


def secrets(report, rig):
    """What all the sections have left, searched for every token, password and key there was."""
    checks = Checks()
    rig.secrets.listen()
    known = rig.secrets.known

    @checks("13 there are secrets to look for, and what holds some is found out")
    def _():
        kinds = {what.split(" of ")[0] for what in known.values()}
        print(f"        {len(known)} secrets: {', '.join(sorted(kinds))}")
        some = next(iter(known))
        expect.equal("one in a text", rig.secrets.found_in(f"x{some}x"), [known[some]])

    @checks("13 no secret in a log, at the level debug")
    def _():
        lines = sum(log.count("\n") for log in rig.logs)
        print(f"        {len(rig.logs)} logs of {lines} lines")
        for log in rig.logs:
            found = [line for line in log.splitlines() if rig.secrets.found_in(line)]
            expect.equal("lines with secrets", found, [])
            expect.equal("no PEM of keys", [line for line in log.splitlines() if "PRIVATE KEY-----" in line], [])

    @checks("13 no secret is an argument of any process")
    def _():
        print(f"        {len(rig.seen.all)} command lines")
        found = [line for line in rig.seen.all if rig.secrets.found_in(line)]
        expect.equal("command lines with secrets", found, [])

    @checks("13 no secret in an error, and each in the one answer that gives it")
    def _():
        errors = [each for each in Caller.heard if each[2].status >= 400]
        print(f"        {len(errors)} errors of {len(Caller.heard)} answers")
        for method, path, answer in errors:
            expect.equal(f"{method} {path}", rig.secrets.found_in(answer.body), [])
        bodies = [answer.body for _, _, answer in Caller.heard]
        for text, what in known.items():
            count = sum(text.encode() in body for body in bodies)
            expect.that(f"a {what} is in at most one answer", count <= 1, count)

    @checks("13 no secret in a file that others may read")
    def _():
        print(f"        {len(rig.readable)} files: {', '.join(sorted({path.name for path in rig.readable}))}")
        for path, content in rig.readable.items():
            expect.equal(str(path), rig.secrets.found_in(content), [])
            expect.that(f"{path} has no key", b"PRIVATE KEY" not in content)

    report(checks)


# --- a directory that the original has made -------------------------------------------------


def adopt(report, rig):
    """The shell commands of section 12.5, the files of section 5; then what its end-to-end tests do by hand."""
    panel, now = rig.panel(), {}
    # The original's CA has no key usage, which the strict ones want.
    panel.strictly = ()
    pki = panel.pki
    (pki / "agents" / "old").mkdir(parents=True)
    pki.chmod(0o700)
    subject = "/CN=Portlama CA/O=Portlama"
    openssl("genrsa", "-out", pki / "ca.key", 2048)
    openssl(
        "req",
        "-x509",
        "-new",
        "-sha256",
        "-key",
        pki / "ca.key",
        "-subj",
        subject,
        "-days",
        3650,
        "-out",
        pki / "ca.crt",
    )

    def by_shell(stem, name, password):
        key, csr, cert, bundle = (stem.with_suffix(f".{kind}") for kind in ("key", "csr", "crt", "p12"))
        openssl("genrsa", "-out", key, 2048)
        openssl("req", "-new", "-key", key, "-out", csr, "-subj", f"/CN={name}/O=Portlama")
        signer = ("-CA", pki / "ca.crt", "-CAkey", pki / "ca.key", "-CAcreateserial")
        openssl("x509", "-req", "-in", csr, *signer, "-out", cert, "-days", 730, "-sha256")
        legacy = ("-keypbe", "PBE-SHA1-3DES", "-certpbe", "PBE-SHA1-3DES", "-macalg", "sha1")
        files = ("-out", bundle, "-inkey", key, "-in", cert, "-certfile", pki / "ca.crt")
        openssl("pkcs12", "-export", *legacy, *files, "-passout", "stdin", input=password)
        csr.unlink()
        for path in (key, bundle):
            path.chmod(0o600)
        return keep(rig.work, cert.read_bytes(), key.read_bytes())

    first = by_shell(pki / "client", "admin", "first-Password_of-the-installer0")
    (pki / ".p12-password").write_text("first-Password_of-the-installer0")
    agent = by_shell(pki / "agents" / "old" / "client", "agent:old", "0" * 32)
    gone = sign_by_hand(rig.work, pki, "/CN=agent:gone/O=Portlama", "rsa2048")
    moment = iso(datetime.datetime.now(datetime.UTC))
    more = {"createdAt": moment, "expiresAt": end_of(agent.cert)}
    registry = [
        {"label": "gone", "serial": gone.serial, **more, "revoked": True, "revokedAt": moment},
        {"label": "old", "serial": agent.serial, "capabilities": ["tunnels:read"], **more, "revoked": False},
    ]
    revoked = [{"serial": gone.serial, "label": "agent:gone", "revokedAt": moment}]
    setup = {
        "ip": "203.0.113.42",
        "domain": None,
        "email": None,
        "dataDir": str(rig.work),
        "onboarding": {"status": "COMPLETED"},
    }
    panel.config.write_text(json.dumps({**setup, "adminAuthMode": "p12", "maxSiteSize": 500}, indent=2) + "\n")
    panel.config.chmod(0o640)
    for path, document in (
        (pki / "agents" / "registry.json", {"agents": registry}),
        (pki / "revoked.json", {"revoked": revoked}),
    ):
        path.write_text(json.dumps(document, indent=2) + "\n")
    text = openssl("x509", "-in", first.cert, "-noout", "-text")
    expect.that("the original's certificates are of version 1", "Version: 1 " in text or "Version: 3 " in text, text)
    before = snapshot(panel)
    checks = Checks()
    with panel:

        @checks("§5 a directory of the original's is taken as it is")
        def _():
            after = snapshot(panel)
            expect.equal("no file is changed", [name for name in before if after.get(name) != before[name]], [])
            panel.done(first, "GET", "/api/certs")
            got = curl(
                panel, "GET", "/api/certs", bundle=pki / "client.p12", password="first-Password_of-the-installer0"
            )
            expect.equal("curl with its bundle", got.status, 200)
            answers("its agent", panel.call(agent, "GET", "/api/tunnels"), 200, {"tunnels": []})
            answers("its revoked agent", panel.call(gone, "GET", "/api/tunnels"), 403, REVOKED)
            bundle = panel.call(first, "GET", "/api/certs/agent/old/download")
            expect.equal("the agent's bundle", bundle.body, (pki / "agents" / "old" / "client.p12").read_bytes())
            expect.equal("crl.pem", panel.crl_serials(), [gone.serial])
            expect.equal("the mode of panel.json", mode_of(panel.config), 0o640)

        @checks("§5 and goes on: rotation, revocation, new agents, beside the old ones")
        def _():
            made = panel.done(first, "POST", "/api/certs/mtls/rotate")
            bundle = panel.call(first, "GET", "/api/certs/mtls/download").body
            now["admin"] = admin = from_p12(panel.work, bundle, made["p12Password"])
            profile(panel, admin.cert, "admin")
            panel.done(admin, "GET", "/api/certs")
            refused_as_revoked(panel, first)
            fresh, _ = panel.agent(admin, "fresh")
            panel.done(admin, "DELETE", "/api/certs/agent/old")
            is_listed(panel, agent.serial, "agent:old", agent.cert)
            answers("the old agent", panel.call(agent, "GET", "/api/tunnels"), 403, REVOKED)
            answers("the fresh one", panel.call(fresh, "GET", "/api/tunnels"), 200, {"tunnels": []})
            expect.equal("what panel.json had beside", json.loads(panel.config.read_text())["maxSiteSize"], 500)

        @checks("§5 what operators do by hand after an upgrade: files, an empty list, jq, a restart")
        def _():
            upgraded = panel.call(
                now["admin"], "POST", "/api/certs/admin/upgrade-to-hardware-bound", {"csr": csr_of(ec_key())}
            )
            expect.status("upgrade", upgraded, 200)
            made = sign_by_hand(rig.work, pki, "/CN=Portlama Client/O=Portlama", "rsa2048")
            shutil.copy(made.cert, pki / "client.crt")
            shutil.copy(made.key, pki / "client.key")
            (pki / "revoked.json").write_text('{"revoked":[]}')
            config = json.loads(panel.config.read_text())
            replace_file(panel.config, json.dumps({**config, "adminAuthMode": "p12"}, indent=2))
            for again in (False, True):
                if again:
                    panel.stop()
                    panel.start()
                answers(
                    "the mode", panel.call(made, "GET", "/api/certs/admin/auth-mode"), 200, {"adminAuthMode": "p12"}
                )
                answers(
                    "no bundle",
                    panel.call(made, "GET", "/api/certs/mtls/download"),
                    404,
                    {"error": "No client certificate found"},
                )
            panel.done(made, "POST", "/api/certs/mtls/rotate")
            together(panel)

        report(checks)


SECTIONS = {
    "order": ("1, order of the checks; 2, names that are refused", order),
    "headers": ("2, headers", headers),
    "limits": ("2, the rate of enrolments", limits),
    "bodies": ("3, methods, paths, bodies", bodies),
    "tables": ("3, the tables of section 7", tables),
    "catalogue": ("3, messages of validation", catalogue),
    "helpers": ("§9, what other clients ask", helpers),
    "certificates": ("4, client certificates", certificates),
    "bundles": ("5, 6, PKCS #12", bundles),
    "curl": ("5, the commands of the documentation", cheat_sheet),
    "many": ("7, many at once, kill -9", many),
    "requests": ("8, 12, certificate requests", requests),
    "rotation": ("9, rotation and its grace", rotation),
    "revocation": ("10, revocation", revocation),
    "upgrade": ("10, the admin's own key, and reset-admin", upgrade),
    "agent-upgrade": ("10, an agent's own key", agent_upgrade),
    "state": ("11, broken files", state),
    "adopt": ("§5, a directory of the original's", adopt),
    "modes": ("§5, modes of files", modes),
    "secrets": ("13, secrets", secrets),
}

if __name__ == "__main__":
    expect.run(main)
