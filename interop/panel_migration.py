"""Starts the server on a directory as the original's installer and panel leave it.

The directory is made with the original's openssl commands: version 1
certificates, bundles with the old encryption, RSA-4096 keys, files with the
original's modes and owner. Nobody may need a new certificate: the admin, the
agents and an agent on another's word get in as before, the revoked do not. The
server rewrites nothing that it need not, and keeps what it does not know. Then
on copies: every operation, ca.key in the older form, no agents directory.

    python panel_migration.py --server ../target/release/api-server
"""

import concurrent.futures
import datetime
import functools
import json
import os
import pathlib
import secrets
import shutil
import ssl
import subprocess
import tempfile
import time

import expect
from panel_server import (
    ADMIN_ONLY,
    REVOKED,
    Panel,
    answers,
    csr_of,
    ec_key,
    end_of,
    from_p12,
    keep,
    mode_of,
    openssl,
    pem_of,
    sections,
    serial_of,
)
from server import arguments

DAYS = 730
LEGACY = "-keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-3DES -macalg sha1".split()
# Somebody else than root, as `portlama` is; without root's rights, whoever runs this.
OWNER = (os.geteuid(), os.getegid())
AGENT_ROUTES = ("/api/onboarding/status", "/api/tunnels/agent-config")
TOKENS = {kind: secrets.token_hex(32) for kind in ("pending", "expired", "used", "delegated")}


def main():
    options = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="adit-migration-") as work:
        work = pathlib.Path(work)
        # The server works as root for the owner of the directory, who must get there.
        work.chmod(0o755)
        original = Original(work)
        print(f"a directory of the original, made in {original.took:.1f} s")

        def on(name, section, change=lambda root: None):
            """A section with a server on a copy of the directory, which `change` may change before."""

            def run(report):
                root = original.copy(name)
                change(root)
                before = snapshot(root)
                with panel_on(options.server, root) as panel:
                    panel.before = before
                    section(report, panel, original)

            return name, run

        sections(
            on("as it was", taken_over),
            on("changes", changed),
            on("the admin", admin_changes),
            on("ca.key of PKCS #1", signs, older_key),
            on("as installed, without agents", signs, without_agents),
        )


# --- the original's directory -------------------------------------------------


def now(minutes=0, days=0):
    """As JavaScript's toISOString."""
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes, days=days)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def dump(path, value, mode):
    path.write_text(json.dumps(value, indent=2) + "\n")
    path.chmod(mode)


class Original:
    """What the installer of the original and its panel have made: /etc/portlama."""

    def __init__(self, work):
        began = time.monotonic()
        self.work = work
        self.root = work / "portlama"
        self.pki = self.root / "pki"
        self.pki.mkdir(parents=True)
        self.pki.chmod(0o700)
        self.identities = {}
        keys = ["ca.key", "client.key", "agent.key"]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(self._genrsa, keys))
        self.agent_key = (self.pki / "agent.key").rename(work / "agent.key")
        self._installer()
        self._panel()
        self._lists()
        for path in [self.root, *self.root.rglob("*")]:
            os.chown(path, *OWNER)
        self.took = time.monotonic() - began

    def _genrsa(self, name):
        openssl("genrsa", "-out", self.pki / name, "4096")
        (self.pki / name).chmod(0o600)

    def _installer(self):
        pki, subject = self.pki, "/CN=Portlama CA/O=Portlama"
        openssl(
            *("req", "-new", "-x509", "-key", pki / "ca.key", "-out", pki / "ca.crt"),
            *("-days", "3650", "-sha256", "-subj", subject),
        )
        self._sign("admin", pki / "client.key", pki / "client.crt")
        self.password = secrets.token_urlsafe(24)
        self._bundle(pki / "client.key", pki / "client.crt", pki / "client.p12", self.password)
        (pki / ".p12-password").write_text(self.password)
        (pki / ".p12-password").chmod(0o600)
        openssl(
            *"req -x509 -newkey rsa:2048 -nodes -sha256 -days 3650 -subj /CN=127.0.0.1/O=Portlama".split(),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", pki / "self-signed-key.pem", "-out", pki / "self-signed.pem"),
        )
        (pki / "self-signed-key.pem").chmod(0o600)
        config = {
            "ip": "127.0.0.1",
            "domain": "example.com",
            "email": "admin@example.com",
            "dataDir": "/etc/portlama",
            "staticDir": None,
            "maxSiteSize": 524288000,
            "serverId": "b7f2c1de-3b0a-4e7c-8a43-5c1df3a0b6d1",
            "adminAuthMode": "p12",
            "onboarding": {"status": "COMPLETED"},
            "panel2fa": {"enabled": False, "secret": None, "setupComplete": False},
            "sessionSecret": secrets.token_hex(32),
        }
        del config["staticDir"]
        dump(self.root / "panel.json", config, 0o640)

    def _sign(self, name, key, cert, serial=()):
        """`x509 -req` without extensions: version 1, with the next serial number of ca.srl."""
        csr = self.work / "request.csr"
        subject = f"/CN={name}/O=Portlama"
        openssl("req", "-new", "-key", key, "-out", csr, "-subj", subject)
        ca = ("-CA", self.pki / "ca.crt", "-CAkey", self.pki / "ca.key")
        openssl("x509", "-req", "-in", csr, *ca, "-CAcreateserial", "-out", cert, "-days", DAYS, "-sha256")
        cert.chmod(0o644)
        version = openssl("x509", "-in", cert, "-noout", "-text").splitlines()[2].strip()
        expect.equal("openssl x509 -req makes version 1", version, "Version: 1 (0x0)")

    def _bundle(self, key, cert, bundle, password):
        files = ("-out", bundle, "-inkey", key, "-in", cert, "-certfile", self.pki / "ca.crt")
        openssl("pkcs12", "-export", *LEGACY, *files, "-passout", "stdin", input=password)
        bundle.chmod(0o600)

    def _panel(self):
        """Agents, as the panel makes them."""
        agents = self.pki / "agents"
        agents.mkdir()
        agents.chmod(0o755)
        for label in ("macbook-pro", "old-nas", "gone"):
            place = agents / label
            place.mkdir()
            place.chmod(0o755)
            shutil.copy(self.agent_key, place / "client.key")
            self._sign(f"agent:{label}", place / "client.key", place / "client.crt")
            self._bundle(place / "client.key", place / "client.crt", place / "client.p12", secrets.token_hex(16))
            self._known(label, place / "client.crt", place / "client.key")
        # A revoked agent's directory is removed; its label was given again.
        shutil.rmtree(agents / "gone")
        for label, name in (
            ("phone", "agent:phone"),
            ("gone-again", "agent:gone"),
            ("lost", "agent:lost"),
            ("plugin", "plugin-agent:macbook-pro:sync"),
            ("forged", "agent:macbook-pro"),
            ("nobody", "agent:nobody"),
        ):
            key, cert = self.work / f"{label}.key", self.work / f"{label}.crt"
            key.write_text(pem_of(ec_key()))
            self._sign(name, key, cert)
            self._known(label, cert, key)

    def _known(self, label, cert, key):
        self.identities[label] = keep(self.work, cert.read_bytes(), key.read_bytes())

    def serial(self, label):
        return self.identities[label].serial

    def _lists(self):
        def agent(of, label=None, **more):
            entry = {"label": label or of, "serial": self.serial(of)}
            entry |= {"capabilities": ["tunnels:read"], "allowedSites": [], "enrollmentMethod": "p12"}
            entry |= {"createdAt": now(days=-3), "expiresAt": end_of(self.identities[of].cert), "revoked": False}
            return entry | more

        short = agent("old-nas")
        for name in ("capabilities", "allowedSites", "enrollmentMethod"):
            del short[name]
        hardware = {"enrollmentMethod": "hardware-bound"}
        gone = {"revoked": True, "revokedAt": now(days=-1)}
        plugin = {"label": "plugin-agent:macbook-pro:sync", "capabilities": ["sync:connect"]}
        plugin |= {"enrollmentMethod": "delegated", "delegatedBy": "macbook-pro"}
        phone = {"capabilities": ["tunnels:read", "sites:write", "panel:expose"], "allowedSites": ["blog", "wiki"]}
        self.agents = [
            agent("macbook-pro", certType="agent", seen={"at": now(), "from": ["192.0.2.1", None]}),
            agent("gone", **gone),
            short,
            agent("phone", **hardware, **phone),
            agent("plugin", **plugin, certType="plugin-agent", pluginId=7),
            agent("lost", **hardware, **gone),
            agent("gone-again", "gone", **hardware),
        ]
        # A list of revocations leaves octets of 0 at the front out.
        anything = f"4{secrets.token_hex(20)[1:]}".upper()
        self.revoked = [
            {"serial": anything, "label": LOST_ADMIN, "revokedAt": now(days=-2), "by": "cli"},
            {"serial": self.serial("gone"), "label": "agent:gone", "revokedAt": now(days=-1)},
            {"serial": self.serial("lost"), "label": "agent:lost", "revokedAt": now(days=-1)},
        ]

        def token(text, label, minutes, **more):
            entry = {"token": text, "label": label, "capabilities": ["tunnels:read"], "allowedSites": []}
            dates = {"createdAt": now(minutes=minutes - 10), "expiresAt": now(minutes=minutes), "used": False}
            return entry | dates | more

        self.tokens = [
            token(TOKENS["pending"], "tablet", 9, allowedSites=["blog"], issuedBy={"ip": "192.0.2.7"}),
            token(TOKENS["expired"], "late", -20),
            token(TOKENS["used"], "phone", 5, used=True, usedAt=now()),
            token(TOKENS["delegated"], "x", 9, type="delegated", delegatedBy="macbook-pro", scope="sync:connect"),
        ]
        # The original's modes: those of its umask, where it sets none.
        dump(self.pki / "agents" / "registry.json", {"agents": self.agents, "version": 2}, 0o640)
        dump(self.pki / "revoked.json", {"revoked": self.revoked, "version": 1}, 0o644)
        dump(self.pki / "enrollment-tokens.json", {"tokens": self.tokens}, 0o600)

    def copy(self, name):
        root = self.work / name.replace(" ", "-")
        subprocess.run(["cp", "-a", self.root, root], check=True)
        return root


def panel_on(binary, root):
    # Somewhere without certificates of certbot's, which would be asked otherwise.
    live = root.parent / "letsencrypt" / "live"
    live.mkdir(parents=True, exist_ok=True)
    places = {"pki_dir": root / "pki", "panel_config": root / "panel.json", "panel_letsencrypt_dir": live.parent}
    return Panel(binary, **places)


# --- as it was ----------------------------------------------------------------


def taken_over(report, panel, original):
    admin = panel.admin()

    def curl_gets_in():
        """As the original's cheat sheet has it."""
        words = ["-sk", "--cert-type", "P12", "--cert", f"{panel.pki / 'client.p12'}:{original.password}"]
        done = subprocess.run(["curl", *words, f"{panel.panel_url}/api/certs"], capture_output=True, timeout=30)
        certs = json.loads(done.stdout)["certs"]
        listed = [(each["type"], each["domain"], each["path"], each["expiresAt"]) for each in certs]
        wanted = [
            (f"mtls-{kind}", None, str(panel.pki / name), end_of(panel.pki / name))
            for kind, name in (("client", "client.crt"), ("ca", "ca.crt"))
        ]
        expect.equal("the certificates", listed, wanted)

    def keeps_the_server_certificate():
        shown = ssl.get_server_certificate(("127.0.0.1", panel.panel_port))
        expect.equal("the certificate of the port", shown, (panel.pki / "self-signed.pem").read_text())

    def agents_get_in():
        for label in ("macbook-pro", "old-nas", "phone", "gone-again"):
            for path in AGENT_ROUTES:
                expect.status(f"{label} at {path}", panel.call(original.identities[label], "GET", path), 200)
            wanted = {"required": ["admin"], "current": "agent"}
            answer = panel.call(original.identities[label], "GET", ADMIN_ONLY)
            answers(label, answer, 403, {"error": "Insufficient certificate scope", "details": wanted})

    def plugin_gets_in():
        plugin = original.identities["plugin"]
        expect.status("it is known", panel.call(plugin, "GET", AGENT_ROUTES[0]), 200)
        answer = panel.call(plugin, "GET", AGENT_ROUTES[1])
        expect.equal("it may not read tunnels", (answer.status, answer.json["error"]), (403, NO_CAPABILITY))

    def others_do_not():
        for label in ("gone", "lost"):
            answers(label, panel.call(original.identities[label], "GET", AGENT_ROUTES[0]), 403, REVOKED)
        for label in ("forged", "nobody"):
            expect.status(label, panel.call(original.identities[label], "GET", AGENT_ROUTES[0]), 403)

    def lists_agents():
        listed = panel.done(admin, "GET", "/api/certs/agent")["agents"]
        expect.equal("labels in order", [each["label"] for each in listed], [each["label"] for each in original.agents])
        for came, entry in zip(listed, original.agents, strict=True):
            status = "revoked" if entry["revoked"] else "active"
            wanted = {**DEFAULTS, **entry, "expiringSoon": False, "status": status}
            shown = {name: came.get(name) for name in wanted if name in SHOWN}
            expect.equal(f"the entry of {came['label']}", shown, {name: wanted[name] for name in shown})

    def gives_bundles():
        for label, wanted in {"macbook-pro": 200, "old-nas": 200, "phone": 404, "gone": 404, "lost": 404}.items():
            answer = panel.call(admin, "GET", f"/api/certs/agent/{label}/download")
            expect.status(f"the bundle of {label}", answer, wanted)
            if wanted == 200:
                expect.equal("it", answer.body, (panel.pki / "agents" / label / "client.p12").read_bytes())
        answer = panel.call(admin, "GET", "/api/certs/mtls/download")
        expect.equal("the admin's", answer.body, (panel.pki / "client.p12").read_bytes())

    def rewrites_nothing():
        for when in ("after all that", "after another start"):
            after = snapshot(panel.config.parent)
            differing = [name for name, was in panel.before.items() if after.get(name) != was]
            expect.equal(f"{when} nothing differs", differing, [])
            expect.equal("new are", sorted(after.keys() - panel.before.keys()), ["pki/.lock", "pki/crl.pem"])
            expect.equal("which are the owner's", owners(panel), {OWNER})
            panel.kill9()
            panel.start()
        expect.equal("crl.pem", set(panel.crl_serials()), {each["serial"] for each in original.revoked})

    report(
        [
            ("the admin gets in with the bundle of version 1, by curl", curl_gets_in),
            ("3.3 agents get in, and no further", agents_get_in),
            ("3.3 an agent on another's word gets in, with its own rights", plugin_gets_in),
            ("3.3 those who were revoked do not, nor other serial numbers or labels", others_do_not),
            ("7.7 the list", lists_agents),
            ("7.8 bundles", gives_bundles),
            ("1 the port has its certificate", keeps_the_server_certificate),
            ("5 nothing was rewritten", rewrites_nothing),
        ]
    )


def snapshot(root):
    """All that could differ of each file: its content, number, times, mode and owner."""

    def state(path):
        info = path.lstat()
        # A directory's time changes with what is put into it.
        content = (path.read_bytes(), info.st_ino, info.st_mtime_ns) if path.is_file() else (None, None, None)
        return *content, oct(info.st_mode), info.st_uid, info.st_gid

    return {str(path.relative_to(root)): state(path) for path in root.rglob("*")}


def owners(panel):
    return {(path.stat().st_uid, path.stat().st_gid) for path in panel.config.parent.rglob("*")}


LOST_ADMIN = "admin (reset from hardware-bound)"
NO_CAPABILITY = "Insufficient certificate capability"
DEFAULTS = {"capabilities": ["tunnels:read"], "allowedSites": [], "enrollmentMethod": "p12"}
SHOWN = {*DEFAULTS, *"label serial createdAt expiresAt revoked revokedAt delegatedBy expiringSoon status".split()}


# --- changes ------------------------------------------------------------------


def changed(report, panel, original):
    admin = panel.admin()
    registry = functools.partial(panel.json_of, "agents/registry.json")

    def entry(label):
        [found] = [each for each in registry()["agents"] if each["label"] == label and not each["revoked"]]
        return found

    def others_are_kept(*labels):
        """The entries of all other labels are as they were, and so is the order."""
        document = registry()
        expect.equal("what is beside the list", {**document, "agents": None}, {"agents": None, "version": 2})
        for came, was in zip(document["agents"], original.agents, strict=False):
            expect.equal("the order", (came["label"], came["serial"]), (was["label"], was["serial"]))
            if came["label"] not in labels:
                kept = {name: came.get(name) for name in was}
                expect.equal(f"the entry of {was['label']}", kept, was)

    def patches():
        path, wanted = "/api/certs/agent/macbook-pro/capabilities", ["tunnels:read", "system:read"]
        panel.done(admin, "PATCH", path, {"capabilities": wanted})
        expect.equal("the entry", entry("macbook-pro"), {**original.agents[0], "capabilities": wanted})
        panel.done(admin, "PATCH", "/api/certs/agent/old-nas/allowed-sites", {"allowedSites": ["wiki"]})
        expect.equal("the entry", {**entry("old-nas"), **original.agents[2]}, entry("old-nas"))
        expect.equal("the sites", entry("old-nas")["allowedSites"], ["wiki"])
        others_are_kept("macbook-pro", "old-nas")
        after = snapshot(panel.config.parent)
        contents = [name for name, was in panel.before.items() if after[name][0] != was[0]]
        expect.equal("no other file has another content", contents, ["pki/agents/registry.json"])

    def uses_tokens():
        key = ec_key()
        answer = panel.enrol(TOKENS["pending"], csr_of(key))
        expect.status("the token that lies there in clear", answer, 200)
        tablet = keep(panel.work, answer.json["cert"], pem_of(key))
        for path in AGENT_ROUTES:
            expect.status(f"the agent at {path}", panel.call(tablet, "GET", path), 200)
        expect.equal("its sites", entry("tablet")["allowedSites"], ["blog"])
        for kind, error in {
            "pending": "Enrollment token has already been used",
            "used": "Enrollment token has already been used",
            "expired": "Enrollment token has expired",
            "delegated": "Invalid enrollment token",
        }.items():
            answers(kind, panel.enrol(TOKENS[kind], csr_of(ec_key())), 401, {"error": error})
        came = {each["label"]: each for each in panel.json_of("enrollment-tokens.json")["tokens"]}
        expect.equal("what the token says beside", came["tablet"]["issuedBy"], {"ip": "192.0.2.7"})
        expect.equal("it is used", came["tablet"]["used"], True)
        expect.equal("the delegated one is kept", came["x"], original.tokens[3])
        others_are_kept("macbook-pro", "old-nas")

    def revokes():
        panel.done(admin, "DELETE", "/api/certs/agent/macbook-pro")
        for label in ("macbook-pro", "plugin"):
            answers(label, panel.call(original.identities[label], "GET", AGENT_ROUTES[0]), 403, REVOKED)
        entries = {each["serial"]: each for each in registry()["agents"]}
        for at, label in ((0, "macbook-pro"), (4, "plugin")):
            came = entries[original.serial(label)]
            expect.that("it says when", came["revoked"] and came["revokedAt"].endswith("Z"), came)
            for name in ("certType", "seen", "pluginId", "delegatedBy"):
                expect.equal(f"{label}: {name}", came.get(name), original.agents[at].get(name))
        others_are_kept("macbook-pro", "old-nas", "plugin-agent:macbook-pro:sync")
        document = panel.json_of("revoked.json")
        expect.equal("the list of before", document["revoked"][:3], original.revoked)
        expect.equal("what is beside it", document["version"], 1)
        new = [(each["serial"], each["label"]) for each in document["revoked"][3:]]
        wanted = [
            (original.serial("macbook-pro"), "agent:macbook-pro"),
            (original.serial("plugin"), "agent:plugin-agent:macbook-pro:sync"),
        ]
        expect.equal("new in it", new, wanted)
        expect.equal("crl.pem", set(panel.crl_serials()), set(panel.revoked_serials()))
        directories = sorted(each.name for each in (panel.pki / "agents").iterdir())
        expect.equal("its directory is gone", directories, ["old-nas", "registry.json"])

    def revokes_the_second():
        """Of a label that had two certificates the second is revoked; the others stay."""
        panel.done(admin, "DELETE", "/api/certs/agent/gone")
        answers("gone", panel.call(original.identities["gone-again"], "GET", AGENT_ROUTES[0]), 403, REVOKED)
        for label in ("phone", "old-nas"):
            expect.status(label, panel.call(original.identities[label], "GET", AGENT_ROUTES[0]), 200)
        expect.equal("the first entry", registry()["agents"][1], original.agents[1])

    def is_secret():
        expect.equal("everything is the owner's", owners(panel), {OWNER})
        names = ("revoked.json", "enrollment-tokens.json", "agents/registry.json")
        expect.equal("modes", {oct(mode_of(panel.pki / name)) for name in names}, {"0o600"})
        text = (panel.pki / "enrollment-tokens.json").read_text()
        made = panel.token(admin, "another")
        expect.that("a new token is not kept in clear", made not in text and len(made) == 64)

    report(
        [
            ("7.9, 7.10 changes keep what they do not concern", patches),
            ("5.3 tokens of before", uses_tokens),
            ("7.11, 8.3 to revoke an agent revokes those on its word", revokes),
            ("7.11 of two certificates of a label the active one is revoked", revokes_the_second),
            ("5 what was rewritten is the owner's, and nobody else's to read", is_secret),
        ]
    )


def admin_changes(report, panel, original):
    config = json.loads(panel.config.read_text())
    bound = None

    def rotates():
        expect.equal("what is there", panel.one_generation(), serial_of(original.pki / "client.crt"))
        admin = panel.admin()
        made = panel.done(admin, "POST", "/api/certs/mtls/rotate")
        expect.equal("its password is kept", (panel.pki / ".p12-password").read_text(), made["p12Password"])
        bundle = panel.call(admin, "GET", "/api/certs/mtls/download")
        expect.status("the old certificate fetches the new bundle", bundle, 200)
        new = from_p12(panel.work, bundle.body, made["p12Password"])
        expect.status("which gets in", panel.call(new, "GET", ADMIN_ONLY), 200)
        answers("the old one does not", panel.call(admin, "GET", ADMIN_ONLY), 403, REVOKED)
        for name in ("client.key", "client.crt", "client.p12"):
            expect.equal(name, (panel.pki / f"{name}.bak").read_bytes(), (original.pki / name).read_bytes())
        panel.one_generation()
        verified(panel, panel.pki / "client.crt")

    def resets(before=None):
        before = before or panel.admin()
        done = panel.reset_admin()
        expect.equal("reset-admin", (done.returncode, done.stderr), (0, ""))
        panel.one_generation()
        answers("who was the admin", panel.call(before, "GET", ADMIN_ONLY), 403, REVOKED)
        expect.equal("all that was revoked still is", panel.json_of("revoked.json")["revoked"][:3], original.revoked)
        expect.equal("its label", panel.json_of("revoked.json")["revoked"][-1]["label"], LOST_ADMIN)

    def upgrades():
        """With a request as the original's client makes it."""
        nonlocal bound
        before, key, csr = panel.admin(), original.agent_key, panel.work / "admin.csr"
        openssl("req", "-new", "-key", key, "-out", csr, "-subj", "/CN=admin/O=Portlama")
        path = "/api/certs/admin/upgrade-to-hardware-bound"
        made = panel.done(before, "POST", path, {"csr": csr.read_text()})
        expect.equal("ca.crt is told to the letter", made["caCert"], (original.pki / "ca.crt").read_text())
        bound = keep(panel.work, made["cert"], key.read_bytes())
        expect.status("the new one gets in", panel.call(bound, "GET", ADMIN_ONLY), 200)
        answers("the old one does not", panel.call(before, "GET", ADMIN_ONLY), 403, REVOKED)
        left = sorted(each.name for each in panel.pki.iterdir() if each.name.startswith(("client.", ".p12")))
        expect.equal("no key of an admin is left", left, ["client.crt"])
        wanted = {**config, "adminAuthMode": "hardware-bound"}
        expect.equal("panel.json", json.loads(panel.config.read_text()), wanted)
        expect.equal("its fields in their order", list(json.loads(panel.config.read_text())), list(config))
        expect.status("no more rotations", panel.call(bound, "POST", "/api/certs/mtls/rotate"), 410)

    def is_back():
        resets(bound)
        expect.equal("panel.json", json.loads(panel.config.read_text()), config)
        expect.equal("its mode", oct(mode_of(panel.config)), "0o640")
        expect.equal("everything is the owner's", owners(panel), {OWNER})
        kept = ("ca.key", "ca.crt", "ca.srl", "self-signed.pem", "self-signed-key.pem")
        for name in kept:
            expect.equal(f"{name} is kept", (panel.pki / name).read_bytes(), (original.pki / name).read_bytes())

    report(
        [
            ("10.3 rotation", rotates),
            ("11 reset-admin", resets),
            ("7.15 upgrade", upgrades),
            ("11 reset-admin after an upgrade", is_back),
        ]
    )


def verified(panel, cert):
    done = openssl("verify", "-CAfile", panel.pki / "ca.crt", cert)
    expect.that("openssl verifies it", done.strip().endswith("OK"), done)


# --- other directories --------------------------------------------------------


def older_key(root):
    key = root / "pki" / "ca.key"
    older = openssl("rsa", "-in", key, "-traditional")
    expect.that("it is of PKCS #1", older.startswith("-----BEGIN RSA PRIVATE KEY-----"), older[:40])
    key.write_text(older)


def without_agents(root):
    """Right after the installation: no agents, no lists, no ca.srl."""
    pki = root / "pki"
    shutil.rmtree(pki / "agents")
    for name in ("revoked.json", "enrollment-tokens.json", "ca.srl"):
        (pki / name).unlink()


def signs(report, panel, original):
    """All that needs ca.key or a list."""
    admin = panel.admin()

    def bundles():
        agent, made = panel.agent(admin, "new")
        expect.status("it gets in", panel.call(agent, "GET", AGENT_ROUTES[0]), 200)
        verified(panel, agent.cert)
        listed = panel.done(admin, "GET", "/api/certs/agent")["agents"][-1]
        expect.equal("it is listed", (listed["label"], listed["serial"]), ("new", made["serial"]))
        expect.equal("its directory's mode", oct(mode_of(panel.pki / "agents" / "new")), "0o700")

    def enrolments():
        agent, _ = panel.enrolled(admin, "newer")
        expect.status("it gets in", panel.call(agent, "GET", AGENT_ROUTES[0]), 200)
        verified(panel, agent.cert)

    def revocations():
        agent, made = panel.agent(admin, "short")
        panel.done(admin, "DELETE", "/api/certs/agent/short")
        answers("it is refused", panel.call(agent, "GET", AGENT_ROUTES[0]), 403, REVOKED)
        expect.that("it is in crl.pem", made["serial"] in panel.crl_serials())

    def admins():
        panel.done(admin, "POST", "/api/certs/mtls/rotate")
        panel.one_generation()
        done = panel.reset_admin()
        expect.equal("reset-admin", (done.returncode, done.stderr), (0, ""))
        panel.one_generation()
        expect.equal("everything is the owner's", owners(panel), {OWNER})

    def starts_again():
        panel.kill9()
        panel.start()
        panel.one_generation()

    report(
        [
            ("7.6 a bundle", bundles),
            ("7.14 an enrolment", enrolments),
            ("7.11 a revocation", revocations),
            ("10.3, 11 a rotation and reset-admin", admins),
            ("it starts again", starts_again),
        ]
    )


if __name__ == "__main__":
    expect.run(main)
