"""Kills the panel with SIGKILL under load, again and again on one directory.

Threads make agents, enrol, change and revoke them and make tokens; one more
rotates the admin's certificate, binds it to hardware and takes it back with
reset-admin, which is killed, too. At a random moment the server dies, is
started again, and must know everything it had acknowledged. What was not
answered may be done or not done, but not half; nothing may be left lying about.

    python panel_kill9.py --server ../target/release/api-server --rounds 30
"""

import contextlib
import hashlib
import http.client
import json
import random
import subprocess
import threading
import time
from dataclasses import dataclass

from cryptography import x509

import expect
from panel_server import (
    ADMIN_ONLY,
    REVOKED,
    Panel,
    answers,
    csr_of,
    ec_key,
    keep,
    load_key,
    opened,
    pem_of,
    public_of,
    serial_text,
    sign_by_hand,
)
from server import arguments

THREADS = 5
LIVE_AGENTS = 10  # of one thread; keeps the lists short
PROBES = 4  # agents and tokens of each kind that are asked for after a kill
CAPABILITIES = ["tunnels:write", "services:read", "services:write", "system:read", "sites:read", "sites:write"]
USED = {"error": "Enrollment token has already been used"}
AGENT_ROUTE = "/api/onboarding/status"


def main():
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=20)
    options = parser.parse_args()
    print(f"seed {options.seed}")
    with Panel(options.server) as panel:
        workers = [Worker(panel, index) for index in range(THREADS)]
        admin = Admin(panel)
        for number in range(1, options.rounds + 1):
            kill_once(panel, workers, admin, number, random.Random(f"{options.seed}/{number}"))
        expect.equal("SIGTERM ends the server with 0", panel.stop(), 0)
        interrupted = panel.log.read_text(errors="replace").count("a change that was interrupted")
    print(f"{interrupted} changes were interrupted and finished at the next start, or by reset-admin")


def kill_once(panel, workers, admin, number, chance):
    began, killed = time.monotonic(), threading.Event()
    for worker in (*workers, admin):
        worker.begin(number, killed, random.Random(chance.random()))
    delay = chance.uniform(0.05, 0.5)
    time.sleep(delay)
    killed.set()
    panel.kill9()
    for worker in (*workers, admin):
        worker.join()
    panel.start()
    agents = [agent for worker in workers for agent in worker.agents]
    in_doubt = sum(len(agent.states) > 1 for agent in agents) + sum(token.is_sent for token in tokens_of(workers))
    judge(panel, workers, admin, chance)
    acknowledged = sum(worker.acknowledged for worker in (*workers, admin))
    print(
        f"round {number}: killed after {delay:.2f} s, {acknowledged} acknowledged, {in_doubt} in flight,"
        f" {sum(agent.state.is_active for agent in agents)} active agents, admin {admin.mode}"
        f" ({time.monotonic() - began:.1f} s)",
        flush=True,
    )
    for worker in workers:
        worker.forget()


def tokens_of(workers):
    return [token for worker in workers for token in worker.tokens]


# --- what is known ------------------------------------------------------------


@dataclass(frozen=True)
class State:
    is_active: bool
    capabilities: tuple = ("tunnels:read",)
    sites: tuple = ()


ABSENT = State(False)


@dataclass
class Agent:
    """A certificate and what is known of it."""

    label: str
    method: str
    # One state, or two while an answer is outstanding: before and after.
    states: list
    serial: str | None = None
    password: str | None = None
    key: object = None
    cert: str | None = None

    @property
    def state(self):
        return self.states[0]


@dataclass
class Token:
    text: str
    label: str
    is_sent: bool = False  # and no answer has come
    is_used: bool = False


# --- load ---------------------------------------------------------------------


class Lane:
    """A thread that works until the server is killed."""

    def __init__(self, panel):
        self.panel = panel
        self.acknowledged = 0

    def begin(self, number, killed, chance):
        self.number, self.killed, self.chance = number, killed, chance
        self.acknowledged, self.failure = 0, None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def join(self):
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self):
        try:
            with self.open():
                while True:
                    self.step()
        except (OSError, http.client.HTTPException) as error:
            if not self.killed.is_set():
                self.failure = error
        except Exception as failure:
            self.failure = failure

    def done(self, caller, method, path, body=None):
        answer = caller.ask(method, path, body)
        expect.status(f"{method} {path}", answer, 200)
        self.acknowledged += 1
        return answer.json


class Worker(Lane):
    """One thread's agents and tokens; no other thread touches them, so each has one history."""

    def __init__(self, panel, index):
        super().__init__(panel)
        self.index = index
        # An admin whom no rotation concerns.
        self._admin = sign_by_hand(panel.work, panel.pki, "/CN=Portlama Client/O=Portlama")
        self.agents, self.tokens, self.names = [], [], 0
        self.held = set()  # labels that may have a token which can be used

    @contextlib.contextmanager
    def open(self):
        with self.panel.caller(self._admin, keep_alive=True) as self.admin:
            with self.panel.caller(keep_alive=True) as self.stranger:
                yield

    def step(self):
        active = [agent for agent in self.agents if agent.state.is_active]
        if len(active) < 3 or (len(active) < LIVE_AGENTS and self.chance.random() < 0.4):
            self.chance.choice([self._create, self._enrol, self._enrol])()
        else:
            self.chance.choice([self._patch, self._patch, self._revoke, self._token])(self.chance.choice(active))

    def _label(self):
        """A new one, or that of a certificate that was revoked."""
        taken = {agent.label for agent in self.agents if agent.state.is_active}
        free = {agent.label for agent in self.agents} - taken
        if free and self.chance.random() < 0.3:
            return self.chance.choice(sorted(free))
        self.names += 1
        return f"t{self.index}-n{self.names}"

    def _grant(self):
        capabilities = ["tunnels:read", *self.chance.sample(CAPABILITIES, 2)]
        return {"capabilities": capabilities, "allowedSites": [f"site-{self.chance.randrange(100)}"]}

    def _create(self):
        label, grant = self._label(), self._grant()
        agent = Agent(label, "p12", [ABSENT, state_of(grant)])
        self.agents.append(agent)
        made = self.done(self.admin, "POST", "/api/certs/agent", {"label": label, **grant})
        agent.serial, agent.password, agent.states = made["serial"], made["p12Password"], [agent.states[1]]
        # Kept for when it is revoked: its directory will be gone then.
        place = self.panel.pki / "agents" / label
        agent.key, agent.cert = (place / "client.key").read_text(), (place / "client.crt").read_text()

    def _token(self, _agent=None):
        """One that may stay: the label of a new agent."""
        label, grant = self._label(), self._grant()
        if label in self.held:
            return None, None
        self.held.add(label)
        made = self.done(self.admin, "POST", "/api/certs/agent/enroll", {"label": label, **grant})
        token = Token(made["token"], label)
        self.tokens.append(token)
        return token, grant

    def _enrol(self):
        token, grant = self._token()
        if token is None:
            return
        key = ec_key()
        agent = Agent(token.label, "hardware-bound", [ABSENT, state_of(grant)], key=pem_of(key))
        self.agents.append(agent)
        token.is_sent = True
        made = self.done(self.stranger, "POST", "/api/enroll", {"token": token.text, "csr": csr_of(key)})
        token.is_sent, token.is_used = False, True
        self.held.remove(token.label)
        agent.serial, agent.cert, agent.states = made["serial"], made["cert"], [agent.states[1]]

    def _patch(self, agent):
        grant = self._grant()
        before = agent.state
        if self.chance.random() < 0.5:
            after, path = State(True, state_of(grant).capabilities, before.sites), "capabilities"
            body = {"capabilities": grant["capabilities"]}
        else:
            after, path = State(True, before.capabilities, state_of(grant).sites), "allowed-sites"
            body = {"allowedSites": grant["allowedSites"]}
        agent.states = [before, after]
        self.done(self.admin, "PATCH", f"/api/certs/agent/{agent.label}/{path}", body)
        agent.states = [after]

    def _revoke(self, agent):
        agent.states = [agent.state, ABSENT]
        self.done(self.admin, "DELETE", f"/api/certs/agent/{agent.label}")
        agent.states = [ABSENT]

    def forget(self):
        """Revoked agents and used tokens of long ago are asked for no more; the lists keep them."""
        revoked = [agent for agent in self.agents if not agent.state.is_active]
        self.agents = [agent for agent in self.agents if agent.state.is_active] + revoked[-2 * PROBES :]
        self.tokens = self.tokens[-4 * PROBES :]


def state_of(grant):
    return State(True, tuple(grant["capabilities"]), tuple(grant["allowedSites"]))


class Admin(Lane):
    """Rotates, now and then binds the admin to hardware and takes it back."""

    def __init__(self, panel):
        super().__init__(panel)
        self.mode = "p12"
        self.identity = panel.admin()
        # Another admin, whom no rotation concerns.
        self._other = sign_by_hand(panel.work, panel.pki, "/CN=Portlama Client/O=Portlama")
        self.gone = []  # identities that were superseded
        self.doubt = None  # what was asked for without an answer

    @contextlib.contextmanager
    def open(self):
        yield

    def step(self):
        time.sleep(self.chance.uniform(0, 0.02))
        if self.mode == "hardware-bound":
            self._reset()
        elif self.chance.random() < 0.15:
            self._upgrade()
        else:
            self._rotate()

    def _rotate(self):
        self.doubt = "rotate"
        with self.panel.caller(self.identity) as caller:
            made = self.done(caller, "POST", "/api/certs/mtls/rotate")
        self._supersede("p12", self.panel.admin())
        password = (self.panel.pki / ".p12-password").read_text()
        expect.equal("the password that was told is on file", made["p12Password"], password)

    def _upgrade(self):
        self.doubt, self._key = "upgrade", ec_key()
        with self.panel.caller(self.identity) as caller:
            body = {"csr": csr_of(self._key, "admin")}
            made = self.done(caller, "POST", "/api/certs/admin/upgrade-to-hardware-bound", body)
        self._supersede("hardware-bound", keep(self.panel.work, made["cert"], pem_of(self._key)))

    def _reset(self):
        self.doubt = "reset"
        process = subprocess.Popen(self.panel.reset_command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        dies_after = self.chance.uniform(0, 0.2) if self.chance.random() < 0.5 else 60
        try:
            output, _ = process.communicate(timeout=dies_after)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            # Whoever changes something first finishes what was promised.
            with self.panel.caller(self._other) as caller:
                self.done(caller, "DELETE", "/api/certs/agent/enroll/nobody")
            self.settle()
            return
        expect.equal(f"reset-admin ends well: {output}", process.returncode, 0)
        self.acknowledged += 1
        self._supersede("p12", self.panel.admin())

    def _supersede(self, mode, identity):
        self.gone.append(self.identity)
        self.mode, self.identity, self.doubt = mode, identity, None

    def settle(self):
        """What was asked for without an answer was done, or it was not."""
        doubt, self.doubt = self.doubt, None
        mode = json.loads(self.panel.config.read_text())["adminAuthMode"]
        if mode == "hardware-bound":
            if self.mode == "p12":
                expect.equal("only an upgrade binds the admin", doubt, "upgrade")
                cert = (self.panel.pki / "client.crt").read_text()
                self._supersede(mode, keep(self.panel.work, cert, pem_of(self._key)))
            return
        expect.that("only a reset takes the admin back", self.mode == "p12" or doubt == "reset", doubt)
        there = self.panel.admin()
        if there.cert.read_bytes() != self.identity.cert.read_bytes():
            expect.that("nobody else changes the admin", doubt is not None, self.mode)
            self._supersede(mode, there)


# --- after a start ------------------------------------------------------------


def judge(panel, workers, admin, chance):
    expect.equal("nothing of a change lies about", panel.left_over(), [])
    registry, revoked, tokens = lists(panel)
    admin.settle()
    admin_is_whole(panel, admin)

    crl = {serial_text(each.serial_number) for each in signed_crl(panel)}
    expect.equal("crl.pem has what revoked.json has", crl, revoked)
    for entry in registry:
        expect.equal(f"the lists agree on {entry['label']}", entry["revoked"], entry["serial"] in revoked)
    active = {entry["label"]: entry for entry in registry if not entry["revoked"]}
    expect.equal("a label is active once", len(active), sum(not entry["revoked"] for entry in registry))
    directories = {each.name for each in (panel.pki / "agents").iterdir() if each.is_dir()}
    bundles = {label for label, entry in active.items() if entry["enrollmentMethod"] == "p12"}
    expect.equal("directories are those of active bundles", directories, bundles)

    for worker in workers:
        for agent in worker.agents:
            settle_agent(panel, agent, registry, active)
        # What was never made may be made under the same name later.
        worker.agents = [agent for agent in worker.agents if agent.serial is not None]
        for token in worker.tokens:
            settle_token(token, tokens, active)
        probe(panel, worker, chance)


def lists(panel):
    """The state files are what they have to be: (entries, serials that are revoked, tokens by their hash)."""
    registry, revoked, tokens = (
        panel.json_of(name) for name in ("agents/registry.json", "revoked.json", "enrollment-tokens.json")
    )
    for document, name, fields in (
        (registry, "agents", {"label": str, "serial": str, "enrollmentMethod": str, "revoked": bool}),
        (revoked, "revoked", {"serial": str, "label": str, "revokedAt": str}),
        (tokens, "tokens", {"token": str, "label": str, "expiresAt": str, "used": bool}),
    ):
        expect.equal(f"the members of the list of {name}", list(document), [name])
        wrong = [
            entry
            for entry in document[name]
            if not all(isinstance(entry.get(field), kind) for field, kind in fields.items())
        ]
        expect.equal(f"entries of the wrong shape in {name}", wrong, [])
    serials = [entry["serial"] for entry in revoked["revoked"]]
    expect.equal("a serial is revoked once", len(set(serials)), len(serials))
    hashes = {entry["token"]: entry for entry in tokens["tokens"]}
    expect.that("tokens are kept as hashes", all(each.startswith("sha256:") for each in hashes), hashes)
    return registry["agents"], set(serials), hashes


def signed_crl(panel):
    crl = x509.load_pem_x509_crl((panel.pki / "crl.pem").read_bytes())
    ca = x509.load_pem_x509_certificate((panel.pki / "ca.crt").read_bytes())
    expect.that("crl.pem is signed by the authority", crl.is_signature_valid(ca.public_key()))
    return crl


def admin_is_whole(panel, admin):
    if admin.mode == "p12":
        panel.one_generation()
        # The backup is the admin's of before, if there was one with files.
        backup = [panel.pki / f"client.{kind}.bak" for kind in ("crt", "key")]
        if backup[1].exists():
            before = keep(panel.work, *(path.read_bytes() for path in backup))
            expect.equal("the backup fits together", public_of(load_key(before.key)), public_of(cert_of(before)))
            refused(panel, before)
    else:
        names = sorted(each.name for each in panel.pki.iterdir() if each.name.startswith(("client.", ".p12")))
        expect.equal("no key is left of the admin's", names, ["client.crt"])
        expect.equal("client.crt", (panel.pki / "client.crt").read_bytes(), admin.identity.cert.read_bytes())
        expect.status("the admin is let in", panel.call(admin.identity, "GET", ADMIN_ONLY), 200)
    for identity in admin.gone[-2:]:
        refused(panel, identity)
    admin.gone = admin.gone[-2:]


def cert_of(identity):
    return x509.load_pem_x509_certificate(identity.cert.read_bytes())


def refused(panel, identity):
    answers("a superseded admin", panel.call(identity, "GET", ADMIN_ONLY), 403, REVOKED)


def settle_agent(panel, agent, registry, active):
    """The agent is in its state, or in one of its two."""
    entry = active.get(agent.label)
    if agent.serial is None:
        # The answer was lost: what is active under the label, and was not before, is this one.
        seen = seen_of(entry)
        expect.that(f"{agent.label} is as it was asked for, or absent: {agent.states}", seen in agent.states, seen)
        if entry is not None:
            expect.equal(f"{agent.label}'s method", entry["enrollmentMethod"], agent.method)
            agent.serial = entry["serial"]
            if agent.method == "p12":
                place = panel.pki / "agents" / agent.label
                agent.key, agent.cert = (place / "client.key").read_text(), (place / "client.crt").read_text()
        agent.states = [seen]
        return
    # The entry of this certificate, which another one of the label may have followed.
    entries = [each for each in registry if each["serial"] == agent.serial]
    expect.equal(f"{agent.label} ({agent.serial}) is in the registry", len(entries), 1)
    [entry] = entries
    seen = ABSENT if entry["revoked"] else seen_of(entry)
    what = f"{agent.label} ({agent.serial}) is what was acknowledged, or one of two when the answer was lost"
    expect.that(f"{what}\n  expected: {agent.states}", seen in agent.states, seen)
    agent.states = [seen]


def seen_of(entry):
    if entry is None:
        return ABSENT
    return State(True, tuple(entry["capabilities"]), tuple(entry["allowedSites"]))


def settle_token(token, tokens, active):
    entry = tokens.get(f"sha256:{hashlib.sha256(token.text.encode()).hexdigest()}")
    expect.that(f"the token of {token.label} is on file", entry is not None)
    if token.is_sent:
        expect.equal(f"{token.label} is active if the token was used", token.label in active, entry["used"])
        token.is_sent, token.is_used = False, entry["used"]
    expect.equal(f"the token of {token.label} is used", entry["used"], token.is_used)


def probe(panel, worker, chance):
    """Some of each kind are asked for over TLS."""

    def some(agents):
        return chance.sample(agents, min(PROBES, len(agents)))

    have_keys = [agent for agent in worker.agents if agent.cert is not None]
    for agent in some([agent for agent in have_keys if agent.state.is_active]):
        identity = keep(panel.work, agent.cert, agent.key)
        expect.status(f"{agent.label} is let in", panel.call(identity, "GET", AGENT_ROUTE), 200)
        if agent.password is not None:
            place = panel.pki / "agents" / agent.label
            key, cert, _ = opened((place / "client.p12").read_bytes(), agent.password)
            expect.equal("its bundle's serial", serial_text(cert.serial_number), agent.serial)
            expect.equal("its bundle's key", public_of(key), public_of(load_key(place / "client.key")))
    for agent in some([agent for agent in have_keys if not agent.state.is_active]):
        identity = keep(panel.work, agent.cert, agent.key)
        answers(f"{agent.label}, revoked", panel.call(identity, "GET", AGENT_ROUTE), 403, REVOKED)
    for token in some([token for token in worker.tokens if token.is_used]):
        answers("a used token", panel.enrol(token.text, csr_of(ec_key())), 401, USED)


if __name__ == "__main__":
    expect.run(main)
