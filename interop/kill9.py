"""Kills the server with SIGKILL under load, again and again on one data directory.

Eight threads create, sign, update, delete and restore; at a random moment the
server dies, is started again, and must show every change it had acknowledged.
A change whose answer was lost may be done or not done, but not half. Signing
quotas still count, names are held or free as they were.

Then a number of births: the server is killed during its very first start and
must come up on what that left behind.

    python kill9.py --server ../target/release/api-server --rounds 50
"""

import http.client
import random
import threading
import time
from dataclasses import dataclass, field, replace

from cryptography import x509

import expect
from csr import new_csr, new_key, spki_of
from server import ZONE, Server, arguments
from state import read_whole

THREADS = 8
LIVE_THINGS = 12  # of one thread; keeps the lists short
SIGNINGS = 3  # a day and tunnel
KEYS = {spki_of(key): key for key in (new_key() for _ in range(64))}
PROBES = 3  # names and quotas of each kind asked for after a kill


@dataclass(frozen=True)
class State:
    """What the server shows of a thing."""

    status: str = "gone"
    metadata: int = 0
    spki: str | None = None  # whose key is in the certificate on file
    fingerprint: str | None = None  # of that certificate; None when its answer was lost

    def is_seen_as(self, seen):
        return self == (seen if self.fingerprint else replace(seen, fingerprint=None))


GONE = State()


@dataclass
class Thing:
    """A tunnel, alone or with its identity, and what is known of it."""

    kind: str
    name: str
    tls_mode: str
    id: str | None = None
    # One state, or two while an answer is outstanding: before and after.
    states: list = field(default_factory=lambda: [GONE])
    # How many signings the server may have counted, at least and at most.
    signings: tuple = (0, 0)
    forced: bool = False

    @property
    def state(self):
        return self.states[0]


def main():
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--births", type=int, default=10)
    parser.add_argument("--seed", type=int, default=20)
    options = parser.parse_args()
    print(f"seed {options.seed}")
    with Server(options.server, signings_per_day=SIGNINGS, sweep_interval="200ms") as server:
        reuse = reuse_after_identity_deletion(server)
        workers = [Worker(index) for index in range(THREADS)]
        for number in range(1, options.rounds + 1):
            kill_once(server, workers, number, random.Random(f"{options.seed}/{number}"), reuse)
        expect.equal("SIGTERM ends the server with 0", server.stop(), 0)
    births(options.server, options.births, random.Random(options.seed))


def reuse_after_identity_deletion(server):
    """Whether the handle of a deleted identity is free at once (201) or held for a while (409) is up to the server."""
    expect.status("an identity", server.ask("POST", "/api/v1/identities/", {"agent_handle": "reuse"}), 200, 201)
    expect.status("its deletion", server.ask("DELETE", "/api/v1/identities/reuse"), 204)
    again = server.ask("POST", "/api/v1/identities/", {"agent_handle": "reuse"})
    expect.status("its handle once more", again, 200, 201, 409)
    if again.status != 409:
        expect.status("its deletion", server.ask("DELETE", "/api/v1/identities/reuse"), 204)
    return again.status


def kill_once(server, workers, number, chance, reuse):
    killed = threading.Event()
    for worker in workers:
        worker.begin(server, number, killed, random.Random(chance.random()))
    delay = chance.uniform(0.05, 0.6)
    time.sleep(delay)
    killed.set()
    server.kill9()
    for worker in workers:
        worker.join()
    server.start()

    things = [thing for worker in workers for thing in worker.things]
    in_doubt = [thing for thing in things if len(thing.states) == 2]
    done = compare(server, things)
    asks_for_names(server, things, reuse)
    asks_for_quotas(server, things)
    for worker in workers:
        worker.things = [thing for thing in worker.things if thing.state != GONE]
    acknowledged = sum(worker.acknowledged for worker in workers)
    print(
        f"round {number}: killed after {delay:.2f} s, {acknowledged} acknowledged,"
        f" {len(in_doubt)} in flight of which {done} done, {sum(thing.state != GONE for thing in things)} live",
        flush=True,
    )


class Worker:
    """One thread's things; no other thread touches them, so each has one history."""

    def __init__(self, index):
        self.index = index
        self.things = []

    def begin(self, server, number, killed, chance):
        self.number, self.killed, self.chance = number, killed, chance
        self.client = server.client(keep_alive=True)
        self.acknowledged = 0
        self.names = 0
        self.failure = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def join(self):
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self):
        try:
            if self.index == 0:
                # In every round one tunnel's quota is used up just before the kill.
                thing = self._create("tunnel", "passthrough")
                for _ in range(SIGNINGS):
                    self._sign(thing)
            while True:
                self._step()
        except (OSError, http.client.HTTPException) as error:
            if not self.killed.is_set():
                self.failure = error
        except Exception as failure:
            self.failure = failure

    def _step(self):
        live = [thing for thing in self.things if thing.state != GONE]
        if not live or (len(live) < LIVE_THINGS and self.chance.random() < 0.4):
            self._create(self.chance.choice(["tunnel", "identity"]), self.chance.choice(["edge", "passthrough"]))
            return
        thing = self.chance.choice(live)
        if thing.state.status == "delete_pending":
            self.chance.choice([self._restore, self._force])(thing)
        elif thing.tls_mode == "passthrough":
            self.chance.choice([self._sign, self._sign, self._update, self._delete])(thing)
        else:
            self.chance.choice([self._update, self._delete])(thing)

    def _create(self, kind, tls_mode):
        self.names += 1
        thing = Thing(kind, f"r{self.number}-t{self.index}-n{self.names}", tls_mode)
        self.things.append(thing)
        after = State("active" if tls_mode == "edge" else "awaiting_cert")
        if kind == "tunnel":
            answer = self._change(thing, after, "POST", "/tunnels/", {"tunnel_name": thing.name, "tls_mode": tls_mode})
            thing.id = answer.json["tunnel"]["id"]
        else:
            body = {"agent_handle": thing.name, "tunnel": {"tls_mode": tls_mode}}
            answer = self._change(thing, after, "POST", "/identities/", body)
            thing.id = answer.json["tunnel"]["id"]
        return thing

    def _sign(self, thing):
        spki = self.chance.choice([spki for spki in KEYS if spki != thing.state.spki])
        after = State("active", thing.state.metadata, spki)
        least, most = thing.signings
        thing.signings = (least, min(most + 1, SIGNINGS))
        body = {"csr_pem": new_csr(KEYS[spki], f"{thing.name}.{ZONE}")}
        answer = self._change(thing, after, "POST", f"/tunnels/{thing.id}/sign-csr", body, may_refuse=429)
        if answer.status == 429:
            expect.equal(f"{thing.name} is refused at its quota, not before", most, SIGNINGS)
            thing.signings = (SIGNINGS, SIGNINGS)
            return
        expect.that(f"{thing.name} is not signed for above its quota", least < SIGNINGS, thing)
        thing.signings = (least + 1, thing.signings[1])
        thing.states = [replace(after, fingerprint=answer.json["cert_fingerprint_sha256"])]

    def _update(self, thing):
        metadata = thing.state.metadata + 1
        self._change(
            thing,
            replace(thing.state, metadata=metadata),
            "PATCH",
            f"/tunnels/{thing.id}",
            {"metadata": {"n": metadata}},
        )

    def _delete(self, thing):
        if thing.kind == "identity":
            self._change(thing, GONE, "DELETE", f"/identities/{thing.name}")
        else:
            self._change(thing, replace(thing.state, status="delete_pending"), "DELETE", f"/tunnels/{thing.id}")

    def _restore(self, thing):
        status = "awaiting_cert" if thing.tls_mode == "passthrough" and thing.state.spki is None else "active"
        self._change(thing, replace(thing.state, status=status), "POST", f"/tunnels/{thing.id}/restore")

    def _force(self, thing):
        self._change(thing, GONE, "DELETE", f"/tunnels/{thing.id}/force")
        thing.forced = True

    def _change(self, thing, after, method, path, body=None, may_refuse=None):
        """Asks for the change; until its answer is here the thing is in one of two states."""
        before = thing.state
        thing.states = [before, after]
        answer = self.client.ask(method, f"/api/v1{path}", body)
        if answer.status == may_refuse:
            thing.states = [before]
            return answer
        expect.status(f"{method} {path}", answer, 200, 201, 204)
        thing.states = [after]
        self.acknowledged += 1
        return answer


def compare(server, things):
    """Every thing is in its state, or in one of its two. Returns how many of those in doubt were done."""
    tunnels, identities = read_whole(server)
    unknown = set(tunnels) - {thing.name for thing in things}
    expect.equal("nothing appeared that nobody asked for", unknown, set())
    done = 0
    for thing in things:
        tunnel = tunnels.get(thing.name)
        seen = seen_of(tunnel)
        what = f"{thing.kind} {thing.name} shows what was acknowledged, or one of two when the answer was lost"
        expect.that(f"{what}\n  expected: {thing.states}", any(state.is_seen_as(seen) for state in thing.states), seen)
        if thing.id is not None and tunnel is not None:
            expect.equal(f"{thing.name} has the id it was given", tunnel["id"], thing.id)
        if thing.kind == "identity":
            expect.equal(
                f"{thing.name} is an identity as long as a tunnel", thing.name in identities, tunnel is not None
            )
        if len(thing.states) == 2 and not thing.state.is_seen_as(seen):
            done += 1
            if seen.spki != thing.state.spki and seen.spki is not None:
                thing.signings = (thing.signings[0] + 1, thing.signings[1])
        thing.id = tunnel["id"] if tunnel else thing.id
        thing.states = [seen]
    for thing in [thing for thing in things if thing.state == GONE and thing.id][:PROBES]:
        expect.problem(f"{thing.name} is gone", server.ask("GET", f"/api/v1/tunnels/{thing.id}"), 404)
    return done


def seen_of(tunnel):
    if tunnel is None:
        return GONE
    spki = None
    if tunnel["cert_pem"] is not None:
        spki = spki_of(x509.load_pem_x509_certificate(tunnel["cert_pem"].encode()))
    metadata = (tunnel["metadata"] or {}).get("n", 0)
    return State(tunnel["status"], metadata, spki, tunnel["cert_fingerprint_sha256"])


def asks_for_names(server, things, reuse):
    gone = [thing for thing in things if thing.state == GONE]
    never_made = [thing for thing in gone if thing.id is None]
    forced = [thing for thing in gone if thing.forced]
    deleted = [thing for thing in gone if thing.kind == "identity" and thing.id is not None]
    held = [thing for thing in things if thing.state.status == "delete_pending"]
    live = [thing for thing in things if thing.state.status in ("active", "awaiting_cert")]
    for what, some, wanted in (
        ("the name of a tunnel that was never made", never_made, 201),
        ("the name of a tunnel deleted by force", forced, 201),
        ("the handle of a deleted identity", deleted, reuse),
        ("the name of a tunnel that can be restored", held, 409),
        ("the name of a tunnel that lives", live, 409),
    ):
        for thing in some[-PROBES:]:
            answer = server.ask("POST", "/api/v1/identities/", {"agent_handle": thing.name})
            expect.equal(
                f"{what} ({thing.name}) is {'held' if wanted == 409 else 'free'}", answer.status == 409, wanted == 409
            )
            if answer.status != 409:
                expect.status(f"an identity named {thing.name}", answer, 200, 201)
                expect.status("its deletion", server.ask("DELETE", f"/api/v1/identities/{thing.name}"), 204)


def asks_for_quotas(server, things):
    full = [thing for thing in things if thing.signings[0] == SIGNINGS and thing.state.status == "active"]
    for thing in full[-PROBES:]:
        body = {"csr_pem": new_csr(KEYS[thing.state.spki], f"{thing.name}.{ZONE}")}
        answer = server.ask("POST", f"/api/v1/tunnels/{thing.id}/sign-csr", body)
        expect.problem(f"{thing.name} has used up its {SIGNINGS} signings", answer, 429)


def births(binary, count, chance):
    """A first start makes keys, certificates and a database; killed anywhere in it, the second must do."""
    began = time.monotonic()
    with Server(binary):
        took = time.monotonic() - began
    for number in range(1, count + 1):
        server = Server(binary)
        delay = chance.uniform(0, took)
        server.launch()
        time.sleep(delay)
        server.kill9()
        with server:
            expect.status("after a killed first start the key works", server.ask("GET", "/api/v1/tunnels/"), 200)
            root = server.root_certificate.read_bytes()
            server.kill9()
            server.start()
            expect.equal("the root certificate stays", server.root_certificate.read_bytes(), root)
        print(f"birth {number}: killed after {delay * 1000:.0f} of {took * 1000:.0f} ms", flush=True)


if __name__ == "__main__":
    expect.run(main)
