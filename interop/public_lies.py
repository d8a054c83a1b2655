"""A public authority that lies, and the server that believes none of it.

Against `acme_directory.py`, which is honest until it is told to lie: renewal information, profiles, external
accounts, dns-persist-01, and every answer that no honest authority gives. Each lie costs a clear answer or a line in
the log, never a crash, a flood, or something half on record; and other tunnels get their certificates meanwhile.

    judges/bin/python public_lies.py --server ../target/release/api-server --agent ../target/release/tunnel-agent
"""

import collections
import contextlib
import datetime
import email.utils
import json
import pathlib
import re
import secrets
import socket
import ssl
import subprocess
import tempfile
import threading
import time

from cryptography import x509

import acme_directory
import expect
from acme_directory import Answer, Directory, certificate_id, encoded, status
from csr import new_csr, new_key, spki_of
from scripted_agent import new_tunnel
from server import ZONE, Server, arguments, free_ports

ISSUED_WITHIN = 20.0
HOUR = 3600
# The server looks at all that it has in hand once a minute.
LOOKED_WITHIN = 75.0


def main():
    parser = arguments(__doc__)
    parser.add_argument("--agent", required=True, help="the tunnel-agent binary")
    parser.add_argument("--only", help="the checks with this word in their name")
    options = parser.parse_args()
    options.server, options.agent = (str(pathlib.Path(path).resolve()) for path in (options.server, options.agent))
    # Those that wait for a minute to pass come first.
    checks = [
        ("the edge renews inside the window, and no handshake fails", renewed_at_the_edge),
        ("a window that is always now", always_now),
        ("who may issue, by CAA", named_in_caa),
        ("a passthrough tunnel is renewed inside its window", renewed_by_an_agent),
        ("tunnel-agent renews when it is told", renewed_by_tunnel_agent),
        ("tunnel-agent serves what it has", lambda world: renewed_by_tunnel_agent(world, fails=True)),
        ("a renewal that fails takes nothing away", renewal_fails),
        ("windows that make no sense", senseless_windows),
        ("another authority from one start to the next", another_authority),
        ("from one's own authority to a public one", from_private),
        ("answers that make no sense", nonsense),
        ("an authority that says later", later),
        ("an authority that refuses", refusals),
        ("wrong certificates", wrong_certificates),
        ("orders that never end", endless),
        ("a name that is not proved", not_proved),
        ("a clock three days off", wrong_clock),
        ("profiles", profiles),
        ("external accounts", external_accounts),
        ("terms that nobody agreed to", terms),
        ("a record that stands for good", standing_record),
        ("the account and the orders are forgotten", forgotten),
        ("another key while an order runs", another_key),
        ("a stop while an order runs", stopped),
    ]
    chosen = [(name, call) for name, call in checks if not options.only or options.only in name]
    with tempfile.TemporaryDirectory(prefix="adit-interop-lies-") as place:
        named = [
            (name, lambda number=number, call=call: call(World(options, pathlib.Path(place) / str(number))))
            for number, (name, call) in enumerate(chosen)
        ]
        expect.each(named, at_once=len(named))


class World:
    """Makes servers whose authority is a `Directory`, which sees them on ports of its own."""

    def __init__(self, options, work):
        self.options, self.work = options, work

    @contextlib.contextmanager
    def __call__(self, authority=None, clock=None, environment=None, before=None, **settings):
        edge_port, http_port = free_ports(2)
        work = self.work / secrets.token_hex(4)
        places = {"http_port": http_port, "tls_port": edge_port}
        with Directory(work / "directory", **places, **(authority or {})) as liar:
            if before is not None:
                before(liar)
            settings = {
                "issuer": "acme",
                "acme_directory": liar.url,
                "acme_ca": liar.ca_file,
                "acme_agree_terms": "true",
                "acme_contact": "operator@example.org",
                **settings,
            }
            server = Server(self.options.server, data_dir=work / "data", edge_port=edge_port, **settings)
            server.clock, server.environment = clock, environment or {}
            with server:
                yield server, liar
                expect.equal("it is ready at the end", server.ready().status, 200)
                expect.that("nothing of it panicked", "panicked" not in log(server), log(server)[-3000:])


def sign(server, tunnel, key, csr=None):
    """By a new request each time, as clients make it."""
    csr = csr or new_csr(key, tunnel.host)
    return server.client(timeout=200).ask("POST", f"/api/v1/tunnels/{tunnel.id}/sign-csr", {"csr_pem": csr})


def signed(what, server, tunnel, key):
    answer = sign(server, tunnel, key)
    expect.status(what, answer, 200)
    leaf = x509.load_pem_x509_certificate(answer.json["cert_pem"].encode())
    expect.equal(f"{what}: for its key", spki_of(leaf), spki_of(key))
    return leaf


def records(server, **query):
    answer = server.ask("GET", "/api/v1/certificates?" + "&".join(f"{name}={value}" for name, value in query.items()))
    expect.status("the certificates on record", answer, 200)
    return answer.json["certificates"]


def zone_is_served(server):
    expect.until("the zone has its certificate", ISSUED_WITHIN, lambda: records(server, host=ZONE))


def orders(liar, host):
    """What was ordered for a host, as the directory was asked."""
    asked = [payload for resource, payload in list(liar.asked) if resource == "new-order"]
    return [payload for payload in asked if any(each["value"] == host for each in payload["identifiers"])]


def log(server):
    return re.sub(r"\x1b\[[0-9;]*m", "", server.log.read_text(errors="replace"))


def shown(server, liar, host):
    """The certificate that a stranger is shown and believes; the error if there is none."""
    context = ssl.create_default_context(cafile=str(liar.ca_file))
    try:
        plain = socket.create_connection(("127.0.0.1", server.edge_port), timeout=10)
        with plain, context.wrap_socket(plain, server_hostname=host) as tls:
            return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True))
    except (OSError, ssl.SSLError) as error:
        return error


def is_served(server, liar, host):
    return isinstance(shown(server, liar, host), x509.Certificate)


def window(start, end):
    """Renewal information with these, as hours from now."""

    def told(_certificate):
        now = datetime.datetime.now(datetime.UTC)
        return now + datetime.timedelta(hours=start), now + datetime.timedelta(hours=end)

    return told


def others_are_served(server, liar, name):
    """A tunnel that has nothing to do with the lie gets its certificate."""
    tunnel = new_tunnel(server, name, "passthrough")
    begun = time.monotonic()
    signed(f"{name} gets a certificate", server, tunnel, new_key())
    expect.that(f"{name} gets it soon", time.monotonic() - begun < 15, time.monotonic() - begun)


def is_bounded(what, server, mark, lines):
    """No more lines than this in the log since `mark`, and none that is long."""
    said = log(server)[mark:].splitlines()
    expect.that(f"{what}: at most {lines} lines in the log", len(said) <= lines, "\n".join(said))
    expect.that(f"{what}: none of them long", all(len(line) < 1500 for line in said), max(said, key=len, default=""))


# --- renewal information ------------------------------------------------------


def renewed_at_the_edge(world):
    """Visitors all the while; the window opens, and the next certificate comes and is shown."""
    with world() as (server, liar):
        expect.until("the zone is served", ISSUED_WITHIN, lambda: is_served(server, liar, ZONE))
        first = shown(server, liar, ZONE)
        host = new_tunnel(server, "at-the-edge").host
        expect.until("so is a host", ISSUED_WITHIN, lambda: is_served(server, liar, host))
        windows = {certificate_id(each) for each in list(liar.certificates.values())}
        past, usual = window(-2, -1), liar.renewal
        # Only those that there are: their successors have all their time.
        liar.renewal = lambda each: past(each) if certificate_id(each) in windows else usual(each)
        liar.renewal_retry_after = 60
        server.kill9()
        server.start()
        expect.until("it serves again", ISSUED_WITHIN, lambda: is_served(server, liar, ZONE))
        done, failures, handshakes = threading.Event(), [], []

        def visit():
            while not done.is_set():
                for name in (ZONE, host):
                    came = shown(server, liar, name)
                    handshakes.append(1)
                    if not isinstance(came, x509.Certificate):
                        failures.append(came)
                done.wait(0.02)

        visitors = [threading.Thread(target=visit) for _ in range(2)]
        for visitor in visitors:
            visitor.start()
        try:
            for name in (ZONE, host):
                expect.until(f"{name} is ordered again", LOOKED_WITHIN, lambda name=name: len(orders(liar, name)) > 1)
                told = {each.get("replaces") for each in orders(liar, name)} - {None}
                expect.that(f"{name}: the order says what it replaces", told and told <= windows, told)
            expect.until(
                "and the new one is shown",
                LOOKED_WITHIN,
                lambda: getattr(shown(server, liar, ZONE), "serial_number", 0) not in (0, first.serial_number),
            )
        finally:
            done.set()
            for visitor in visitors:
                visitor.join()
        expect.equal(f"no handshake of {len(handshakes)} failed", failures, [])
        expect.equal("once each", (len(orders(liar, ZONE)), len(orders(liar, host))), (2, 2))


def always_now(world):
    """Whatever is issued, the authority says that its window is past."""
    with world() as (server, liar):
        zone_is_served(server)
        liar.renewal, liar.renewal_retry_after = window(-2, -1), 1
        server.kill9()
        server.start()
        mark = len(log(server))
        time.sleep(65)
        came = len(orders(liar, ZONE))
        expect.that("two looks make one order more, or none", came <= 2, came)
        expect.that("the zone is served", is_served(server, liar, ZONE))
        is_bounded("a window that is always now", server, mark, 20)


def renewed_by_an_agent(world):
    with world() as (server, liar):
        zone_is_served(server)
        tunnel, key = new_tunnel(server, "my-agent", "passthrough"), new_key()
        first = signed("a certificate", server, tunnel, key)
        again = signed("the same key", server, tunnel, key)
        expect.equal("before the window it is the same one", again.serial_number, first.serial_number)
        at, until = window(-1, -0.5)(first)
        liar.renewal = window(-1, -0.5)
        server.kill9()
        server.start()

        def renewal():
            when = server.ask("GET", f"/api/v1/tunnels/{tunnel.id}").json["renew_after"]
            return datetime.datetime.fromisoformat(when)

        margin = datetime.timedelta(minutes=2)
        expect.until("the tunnel says so", ISSUED_WITHIN, lambda: at - margin <= renewal() <= until + margin)
        expect.equal("nobody renews for the agent", len(orders(liar, tunnel.host)), 1)
        second = signed("inside the window", server, tunnel, key)
        expect.that("it is a new one", second.serial_number != first.serial_number, second)
        replaced = [each.get("replaces") for each in orders(liar, tunnel.host)]
        expect.equal("the order says what it replaces", replaced, [None, certificate_id(first)])
        expect.equal("both are on record", len(records(server, tunnel_id=tunnel.id)), 2)
        expect.that("neither is revoked", not any(each["revoked_at"] for each in records(server, tunnel_id=tunnel.id)))


def renewed_by_tunnel_agent(world, fails=False):
    """An agent that starts inside the window gets the next certificate, or serves what it has."""
    with world(acme_wait="5s") as (server, liar):
        zone_is_served(server)
        tunnel = new_tunnel(server, "my-agent", "passthrough")
        with tunnel_agent(world, server, liar):
            expect.until("the agent serves", ISSUED_WITHIN, lambda: is_served(server, liar, tunnel.host))
            first = shown(server, liar, tunnel.host)
        liar.renewal = window(-2, -1)
        server.kill9()
        server.start()
        past = datetime.datetime.now(datetime.UTC).isoformat()

        def is_told():
            return server.ask("GET", f"/api/v1/tunnels/{tunnel.id}").json["renew_after"] < past

        def is_another():
            return (
                getattr(shown(server, liar, tunnel.host), "serial_number", first.serial_number) != first.serial_number
            )

        expect.until("the window is told", ISSUED_WITHIN, is_told)
        if fails:
            liar.validates = "fails"
        with tunnel_agent(world, server, liar):
            expect.until("the agent serves again", ISSUED_WITHIN, lambda: is_served(server, liar, tunnel.host))
            if fails:
                expect.until("it has asked", ISSUED_WITHIN, lambda: len(orders(liar, tunnel.host)) > 1)
                expect.that("and serves what it has", is_served(server, liar, tunnel.host) and not is_another())
            else:
                expect.until("by the next certificate", ISSUED_WITHIN, is_another)
        replaced = [each.get("replaces") for each in orders(liar, tunnel.host)]
        expect.equal("the order says what it replaces", replaced, [None, certificate_id(first)])


@contextlib.contextmanager
def tunnel_agent(world, server, liar):
    world.work.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as nobody, open(world.work / "agent.log", "ab") as output:
        agent = subprocess.Popen(
            [
                *(world.options.agent, "connect", "my-agent"),
                *("--forward-to", f"http://127.0.0.1:{nobody.getsockname()[1]}", "--server", server.url),
                *("--edge", f"127.0.0.1:{server.edge_port}", "--ca", liar.ca_file),
                *("--state-dir", world.work / "state"),
            ],
            env={"ADIT_API_KEY": server.key, "PATH": "/usr/bin", "HOME": str(world.work)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            yield
        except expect.Failed as failure:
            said = (world.work / "agent.log").read_text(errors="replace")[-1500:]
            raise expect.Failed(f"{failure}\n  the agent: {said}") from None
        finally:
            agent.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                agent.wait(20)
            agent.kill()
            agent.wait()


def renewal_fails(world):
    """Renewals fail, and the server and the agent start anew: what there is goes on."""
    with world(acme_wait="5s") as (server, liar):
        expect.until("the zone is served", ISSUED_WITHIN, lambda: is_served(server, liar, ZONE))
        first = shown(server, liar, ZONE)
        tunnel, key = new_tunnel(server, "my-agent", "passthrough"), new_key()
        leaf = signed("a certificate", server, tunnel, key)
        liar.renewal, liar.validates = window(-2, -1), "fails"
        server.kill9()
        server.start()
        failed = "an order has failed"
        expect.until("the edge's renewal fails", ISSUED_WITHIN, lambda: failed in log(server))
        kept = signed("the same key has what is still good", server, tunnel, key)
        expect.equal("the very same", kept.serial_number, leaf.serial_number)
        server.kill9()
        server.start()
        expect.until("after a start it is served still", 5, lambda: is_served(server, liar, ZONE))
        expect.equal("the one from before", shown(server, liar, ZONE).serial_number, first.serial_number)
        kept = signed("and the same key has it", server, tunnel, key)
        expect.equal("the one that it had", kept.serial_number, leaf.serial_number)
        # Whoever starts it anew may have mended what was wrong.
        for name in (ZONE, tunnel.host):
            count = len(orders(liar, name))
            expect.that(f"{name}: a failing order is repeated once a start at most", count <= 3, count)
        kept = signed("and again", server, tunnel, key)
        expect.equal("by no order", (kept.serial_number, len(orders(liar, tunnel.host))), (leaf.serial_number, count))


def senseless_windows(world):
    """None of them makes anybody renew too late, or again and again."""

    def told(start, end):
        body = json.dumps({"suggestedWindow": {"start": start, "end": end}}).encode()
        return lambda *_: Answer(200, {"Content-Type": "application/json"}, body)

    cases = [
        ("backwards", told("2027-02-01T00:00:00Z", "2027-01-01T00:00:00Z")),
        ("after the end", told("2199-01-01T00:00:00Z", "2199-01-02T00:00:00Z")),
        ("at the end of time", told("9999-01-01T00:00:00Z", "9999-12-31T23:59:59Z")),
        ("no window", acme_directory.rubbish(b"{}")),
        ("a huge one", acme_directory.huge()),
        ("unknown", status(404, "malformed")),
    ]
    for what, lie in cases:
        # One for each: an answer is kept for hours.
        with world(before=lambda liar, lie=lie: liar.lies.update(renewal=lie)) as (server, liar):
            zone_is_served(server)
            tunnel = new_tunnel(server, "my-agent", "passthrough")
            leaf = signed("a certificate", server, tunnel, new_key())
            server.kill9()
            server.start()
            asked = lambda liar=liar: any(resource == "renewal" for resource, _ in list(liar.asked))
            expect.until(f"{what}: the directory is asked", ISSUED_WITHIN, asked)
            time.sleep(1)
            when = server.ask("GET", f"/api/v1/tunnels/{tunnel.id}").json["renew_after"]
            when = datetime.datetime.fromisoformat(when)
            early = leaf.not_valid_after_utc - datetime.timedelta(days=3)
            expect.that(f"{what}: it is renewed while it is good", leaf.not_valid_before_utc < when < early, when)
            expect.equal(f"{what}: not at once", (len(orders(liar, ZONE)), len(orders(liar, tunnel.host))), (1, 1))
            expect.that(f"{what}: the zone is served", is_served(server, liar, ZONE))


def another_authority(world):
    """The staging directory first, then the real one: what the first has issued is worth nothing now."""
    with world() as (server, staging):
        zone_is_served(server)
        tunnel, key = new_tunnel(server, "my-agent", "passthrough"), new_key()
        host = new_tunnel(server, "at-the-edge").host
        first = signed("by the first", server, tunnel, key)
        expect.until("a host of the edge has one", ISSUED_WITHIN, lambda: is_served(server, staging, host))
        with Directory(world.work / "production", tls_port=server.edge_port) as production:
            server.kill9()
            server.settings |= {"acme_directory": production.url, "acme_ca": production.ca_file}
            server.start()
            for name in (ZONE, host):
                expect.until(
                    f"{name} has one of the second",
                    ISSUED_WITHIN,
                    lambda name=name: is_served(server, production, name),
                )
            when = server.ask("GET", f"/api/v1/tunnels/{tunnel.id}").json["renew_after"]
            now = datetime.datetime.now(datetime.UTC)
            expect.that("the agent is told", datetime.datetime.fromisoformat(when) <= now, when)
            second = signed("the same key has another", server, tunnel, key)
            expect.that("by the second", second.serial_number != first.serial_number, second)
            replaced = [each.get("replaces") for each in orders(production, tunnel.host)]
            expect.equal("which replaces nothing that it knows", replaced, [None])


def from_private(world):
    """A deployment that has had an authority of its own: agents are told to come for another certificate."""
    with world(issuer="private") as (server, liar):
        tunnel, key = new_tunnel(server, "my-agent", "passthrough"), new_key()
        signed("by the deployment's own authority", server, tunnel, key)
        server.kill9()
        server.settings["issuer"] = "acme"
        server.start()
        expect.until("the zone has a public one", ISSUED_WITHIN, lambda: is_served(server, liar, ZONE))
        when = server.ask("GET", f"/api/v1/tunnels/{tunnel.id}").json["renew_after"]
        now = datetime.datetime.now(datetime.UTC)
        expect.that("the agent is told", datetime.datetime.fromisoformat(when) <= now, when)
        signed("the same key has another", server, tunnel, key)
        expect.equal(
            "which is public", {each["issuer"] for each in records(server, tunnel_id=tunnel.id)}, {"private", "acme"}
        )


# --- lies ---------------------------------------------------------------------


def one_by_one(server, liar, cases, judge, wait):
    """Each lie is told to a tunnel of its own. Answers the tunnels, to ask again when all is well."""
    tunnels = {}
    for number, (what, lies) in enumerate(cases):
        tunnel, key, mark = new_tunnel(server, f"agent-{number}", "passthrough"), new_key(), len(log(server))
        lies = lies(liar) if callable(lies) else lies
        liar.lies.update(lies)
        begun = time.monotonic()
        answer = sign(server, tunnel, key)
        took = time.monotonic() - begun
        expect.that(f"{what}: answered in time", took < wait + 2, took)
        expect.problem(what, answer, 503)
        expect.that(f"{what}: the answer is short", len(answer.body) < 2000, answer)
        judge(what, tunnel, answer, log(server)[mark:])
        is_bounded(what, server, mark, 8 + 3 * number)
        liar.lies.clear()
        expect.equal(f"{what}: nothing is on record", records(server, tunnel_id=tunnel.id), [])
        tunnel_shown = server.ask("GET", f"/api/v1/tunnels/{tunnel.id}").json
        expect.equal(f"{what}: the tunnel waits", tunnel_shown["status"], "awaiting_cert")
        tunnels[what] = (tunnel, key)
    return tunnels


def without(*names):
    """The answer without these headers."""

    def lie(_directory, _handler, answer):
        return Answer(
            answer.status, {name: value for name, value in answer.headers.items() if name not in names}, answer.body
        )

    return lie


def nonsense(world):
    members, rubbish = acme_directory.members, acme_directory.rubbish
    cases = [
        ("another content type", {"new-order": acme_directory.content_type("text/html")}),
        ("a certificate of another content type", {"certificate": acme_directory.content_type("text/html")}),
        ("64 MiB", {"new-order": acme_directory.huge()}),
        ("a certificate of 64 MiB", {"certificate": acme_directory.huge()}),
        ("a redirect", lambda liar: {"new-order": acme_directory.redirect(liar.at("new-order"))}),
        ("no URL of the order", {"new-order": without("Location")}),
        ("finalize without TLS", {name: members(finalize="http://127.0.0.1:1/") for name in ("new-order", "order")}),
        ("too much to prove", {"order": members(authorizations=["https://localhost:1/a"] * 1000)}),
        ("octets for a certificate", {"certificate": rubbish(bytes(range(256)) * 10)}),
        ("no JSON", {"new-order": rubbish(b"{")}),
        ("JSON of another kind", {"new-order": rubbish(b"[[[]]]")}),
    ]
    with world(acme_wait="2s") as (server, liar):
        zone_is_served(server)

        def judge(what, tunnel, answer, said):
            expect.equal(f"{what}: it goes on", answer.json["type"], "urn:adit:problem:certificate-pending")
            expect.that(f"{what}: when to ask again", 1 <= int(answer.headers["retry-after"]) <= 120, answer.headers)
            line = next((each for each in said.splitlines() if tunnel.host in each and "makes no sense" in each), None)
            expect.that(f"{what}: the log says what is wrong", line is not None, said)

        tunnels = one_by_one(server, liar, cases, judge, 2)
        others_are_served(server, liar, "other-agent")
        for what, (tunnel, key) in tunnels.items():
            expect.until(
                f"{what}: it is issued when the lies end",
                60,
                lambda tunnel=tunnel, key=key: sign(server, tunnel, key).status == 200,
            )
            # A URL that is not told cannot be known.
            expect.that(f"{what}: on record once", len(records(server, tunnel_id=tunnel.id)) == 1)


def later(world):
    date = email.utils.formatdate(time.time() + HOUR, usegmt=True)
    cases = [
        ("429, in seconds", {"new-order": status(429, "rateLimited", {"Retry-After": str(HOUR)})}),
        ("429, by a date", {"new-order": status(429, "rateLimited", {"Retry-After": date})}),
        ("429, in ages", {"new-order": status(429, "rateLimited", {"Retry-After": "18446744073709551615"})}),
        ("429 at the end", {"finalize": status(429, "rateLimited", {"Retry-After": str(HOUR)})}),
        ("503 and when", {"new-order": status(503, body=b"<html>", headers={"Retry-After": str(HOUR)})}),
    ]
    with world(acme_wait="2s") as (server, liar):
        zone_is_served(server)

        def judge(what, tunnel, answer, said):
            expect.that(f"{what}: the log says it", "takes no more for now" in said and tunnel.host in said, said)
            count = len(orders(liar, tunnel.host))
            expect.status(f"{what}: asked again", sign(server, tunnel, new_key()), 503)
            expect.equal(f"{what}: it is not ordered again", len(orders(liar, tunnel.host)), count)

        one_by_one(server, liar, cases, judge, 2)
        others_are_served(server, liar, "other-agent")


def refusals(world):
    evil = "x\n2026-01-01T00:00:00Z ERROR fake\x1b[31m line" + "A" * 100_000
    cases = [
        ("200 with a problem", {"new-order": acme_directory.problem_in_200()}, "with the wrong status"),
        ("403", {"new-order": status(403, "unauthorized")}, "as it was told to"),
        ("a name that is refused", {"new-order": status(400, "rejectedIdentifier")}, "does not issue for these names"),
        ("CAA", {"finalize": status(403, "caa")}, "CAA record"),
        ("new terms", {"new-order": status(403, "userActionRequired")}, "new terms"),
        ("a storm of nonces", {"new-order": status(400, "badNonce")}, "badNonce"),
        (
            "a long and evil detail",
            {"new-order": lambda *_: acme_directory.problem(403, "unauthorized", evil)},
            "refuses",
        ),
        ("no chain", {"certificate": acme_directory.rubbish()}, "no chain of certificates"),
        ("an empty chain", {"certificate": acme_directory.rubbish(b"")}, "no chain of certificates"),
        ("no such order", {"order": status(404, "malformed")}, "does not know this order"),
    ]
    words = {what: said for what, _, said in cases}
    with world(acme_wait="10s") as (server, liar):
        zone_is_served(server)

        def judge(what, tunnel, answer, said):
            expect.equal(f"{what}: it has failed", answer.json["type"], "urn:adit:problem:authority-failed")
            expect.that(f"{what}: the answer says why", words[what] in answer.json["detail"], answer)
            expect.that(f"{what}: so does the log", words[what] in said and tunnel.host in said, said)
            expect.that(f"{what}: in its own lines", "\n2026-01-01" not in said and "\x1b" not in answer.json["detail"])
            wait = int(answer.headers["retry-after"])
            expect.that(f"{what}: when to try again", 30 <= wait <= 90, wait)
            count = len(liar.asked)
            expect.status(f"{what}: asked at once again", sign(server, tunnel, new_key()), 503)
            expect.equal(f"{what}: nobody is asked", len(liar.asked), count)

        one_by_one(server, liar, [case[:2] for case in cases], judge, 10)
        others_are_served(server, liar, "other-agent")


def wrong_certificates(world):
    cases = [
        ("other key", "another key"),
        ("other name", "other.example"),
        ("one more name", "other.example"),
        ("for clients", "not for servers"),
        ("other root", "its chain does not hold"),
    ]
    with world(acme_wait="10s") as (server, liar):
        zone_is_served(server)
        for number, (what, words) in enumerate(cases):
            tunnel, key, known = new_tunnel(server, f"agent-{number}", "passthrough"), new_key(), set(liar.certificates)
            liar.issues = what
            answer = sign(server, tunnel, key)
            expect.problem(what, answer, 503)
            expect.that(f"{what}: the answer says what is wrong", words in answer.json["detail"], answer)
            # It is begun anew once: the authority may have had the key of an earlier request.
            serials, found = set(liar.certificates) - known, records(server, tunnel_id=tunnel.id)
            expect.that(f"{what}: two at most", 1 <= len(serials) <= 2, serials)
            expect.equal(f"{what}: they are on record", {int(each["serial"], 16) for each in found}, serials)
            expect.that(f"{what}: as revoked", all(each["revoked_at"] for each in found), found)
            expect.that(f"{what}: at the authority, too", serials <= set(liar.revoked), liar.revoked)
            for each in found:
                own = spki_of(liar.certificates[int(each["serial"], 16)])
                expect.one_of(f"{what}: the record tells no other key than its own", each["key_sha256"], own, None)
            tunnel_shown = server.ask("GET", f"/api/v1/tunnels/{tunnel.id}").json
            expect.equal(f"{what}: nobody has it", tunnel_shown["status"], "awaiting_cert")
            liar.issues = None
        for what in ("expired", "future"):
            tunnel, key, known = new_tunnel(server, f"agent-{what}", "passthrough"), new_key(), set(liar.certificates)
            liar.issues, mark = what, len(log(server))
            answer = server.client(timeout=30).ask(
                "POST", f"/api/v1/tunnels/{tunnel.id}/sign-csr", {"csr_pem": new_csr(key, tunnel.host)}
            )
            liar.issues = None
            expect.problem(what, answer, 503)
            expect.that(f"{what}: the log asks for the clock", "is the clock right" in log(server)[mark:])
            expect.equal(f"{what}: it is on record", len(records(server, tunnel_id=tunnel.id)), 1)
        others_are_served(server, liar, "other-agent")
        liar.issues, liar.lies["revoke"] = "other key", status(500)
        tunnel, mark = new_tunnel(server, "not-revoked", "passthrough"), len(log(server))
        expect.problem("and one that cannot be revoked", sign(server, tunnel, new_key()), 503)
        record, *_ = records(server, tunnel_id=tunnel.id)
        said = log(server)[mark:]
        expect.that("is on record as good", record["revoked_at"] is None, record)
        line = next((line for line in said.splitlines() if "not revoked" in line), "")
        expect.that("the log says which", record["serial"] in line or tunnel.host in line, said)


def endless(world):
    """Nothing comes of it, and nothing is asked twice; what was lied about goes on when it ends."""
    with world(acme_wait="2s") as (server, liar):
        zone_is_served(server)
        proving = new_tunnel(server, "proving", "passthrough"), new_key()
        liar.validates = "never"
        for _ in range(2):
            expect.problem("a challenge that stays pending", sign(server, *proving), 503)
        expect.equal("is one order", len(orders(liar, proving[0].host)), 1)
        liar.validates = "truly"
        processing = new_tunnel(server, "processing", "passthrough"), new_key()
        liar.lies.update(dict.fromkeys(("finalize", "order"), acme_directory.members(status="processing")))
        for _ in range(2):
            expect.problem("an order that stays processing", sign(server, *processing), 503)
        liar.lies.clear()
        away = new_tunnel(server, "away-awhile", "passthrough"), new_key()
        liar.lies.update(dict.fromkeys(("new-order", "order", "finalize"), status(500)))
        expect.problem("errors for a while", sign(server, *away), 503)
        liar.lies.clear()
        slow = new_tunnel(server, "slow-one", "passthrough"), new_key()
        liar.lies["authorization"] = acme_directory.slow(3)
        expect.problem("slow answers", sign(server, *slow), 503)
        liar.lies.clear()
        asked = collections.Counter(resource for resource, _ in list(liar.asked))
        expect.that("it is asked with measure", asked["order"] < 60, asked)
        others_are_served(server, liar, "other-agent")
        for name, (tunnel, key) in {"processing": processing, "errors": away, "slow answers": slow}.items():
            expect.until(
                f"{name}: it goes on",
                60,
                lambda tunnel=tunnel, key=key: sign(server, tunnel, key).status == 200,
            )
            expect.equal(f"{name}: by one certificate", len(records(server, tunnel_id=tunnel.id)), 1)


def not_proved(world):
    """Nothing answers the challenge; clients ask, and visitors come."""
    with world(acme_wait="10s") as (server, liar):
        zone_is_served(server)
        liar.validates = "fails"
        tunnel, key = new_tunnel(server, "my-agent", "passthrough"), new_key()
        first = sign(server, tunnel, key)
        expect.problem("it is refused", first, 503)
        expect.that("by the host's name", tunnel.host in first.json["detail"], first)
        wait = int(first.headers["retry-after"])
        expect.that("with a time to wait", 30 <= wait <= 90, wait)
        mark = len(log(server))
        for each in (key, key, new_key(), new_key()):
            again = sign(server, tunnel, each)
            expect.problem("meanwhile, too", again, 503)
            expect.that("for as long as it is", wait - 20 <= int(again.headers["retry-after"]) <= wait, again.headers)
        expect.equal("and is ordered once", len(orders(liar, tunnel.host)), 1)
        is_bounded("asked four times", server, mark, 8)
        host = new_tunnel(server, "at-the-edge").host
        expect.until("a host of the edge is ordered", ISSUED_WITHIN, lambda: orders(liar, host))
        mark = len(log(server))
        begun, count = time.monotonic(), 0
        while time.monotonic() - begun < 12:
            came = shown(server, liar, host)
            expect.that("its visitors are sent away", isinstance(came, Exception), came)
            count += 1
        expect.equal(f"{count} visitors order nothing", len(orders(liar, host)), 1)
        is_bounded(f"{count} visitors", server, mark, 30)
        expect.that("the zone is served all the while", is_served(server, liar, ZONE))


def wrong_clock(world):
    with world(clock="-3d", acme_wait="4s") as (server, _):
        tunnel, key = new_tunnel(server, "my-agent", "passthrough"), new_key()
        expect.problem("three days behind, nothing is issued", sign(server, tunnel, key), 503)
        expect.that("the log speaks of time", "not valid yet" in log(server), log(server)[-2000:])
        is_bounded("three days behind", server, 0, 30)
        server.kill9()
        server.clock = None
        server.start()
        expect.until("with the right clock it is", 40, lambda: sign(server, tunnel, key).status == 200)
    with world(before=lambda liar: setattr(liar, "shift", datetime.timedelta(days=3)), acme_wait="4s") as (
        server,
        _,
    ):
        tunnel, key = new_tunnel(server, "my-agent", "passthrough"), new_key()
        expect.problem("an authority three days ahead", sign(server, tunnel, key), 503)
        expect.that("the log asks for the clock", "is the clock right" in log(server), log(server)[-2000:])
        found = records(server, tunnel_id=tunnel.id)
        expect.that("what is issued is on record", len(found) == 1 and not found[0]["revoked_at"], found)
    with world(acme_wait="4s") as (server, liar):
        # What a clock that was ahead has written down is not the latest for three days.
        zone_is_served(server)
        server.kill9()
        server.clock, liar.validates = "+3d", "fails"
        server.start()
        tunnel, key = new_tunnel(server, "my-agent", "passthrough"), new_key()
        expect.problem("three days ahead, it fails", sign(server, tunnel, key), 503)
        server.kill9()
        server.clock, liar.validates = None, "never"
        server.start()
        for each in (key, key, new_key(), key):
            answer = sign(server, tunnel, each)
            expect.problem("with the right clock, it goes on", answer, 503)
            expect.equal("as one that is not done", answer.json["type"], "urn:adit:problem:certificate-pending")
        expect.equal("and is ordered once", len(orders(liar, tunnel.host)), 2)
        liar.validates = "truly"
        expect.until("until it is done", 60, lambda: sign(server, tunnel, key).status == 200)
        expect.equal("by one certificate", len(records(server, tunnel_id=tunnel.id)), 1)


# --- settings -----------------------------------------------------------------


def profiles(world):
    offered = {"classic": "as ever", "tlsserver": "shorter"}
    with world(authority={"profiles": offered}, acme_profile="tlsserver") as (server, liar):
        tunnel = new_tunnel(server, "my-agent", "passthrough")
        signed("of a profile", server, tunnel, new_key())
        expect.equal("which was asked for", [each.get("profile") for each in orders(liar, tunnel.host)], ["tlsserver"])
        expect.equal(
            "and is on record", [each["profile"] for each in records(server, tunnel_id=tunnel.id)], ["tlsserver"]
        )
    for authority, known in (({"profiles": offered}, "classic"), ({}, "none")):
        with world(authority=authority, acme_profile="nosuch") as (server, liar):
            tunnel = new_tunnel(server, "my-agent", "passthrough")
            answer = sign(server, tunnel, new_key())
            expect.problem("an unknown profile", answer, 503)
            expect.that("is named", '"nosuch"' in answer.json["detail"], answer)
            expect.that("with those that there are", known in answer.json["detail"], answer)
            expect.that("in the log, too", '"nosuch"' in log(server) or "nosuch" in log(server), log(server)[-2000:])
            expect.equal("nothing is ordered", len(liar.orders), 0)


def external_accounts(world):
    key = secrets.token_bytes(32)
    accounts = {"authority": {"external_accounts": {"kid-1": key}}}
    secret = encoded(key)
    for text in (secret, secret + "=" * (-len(secret) % 4), secret.replace("-", "+").replace("_", "/")):
        with world(**accounts, acme_eab_key_id="kid-1", environment={"ADIT_ACME_EAB_KEY": text}) as (server, _):
            signed("bound to an account", server, new_tunnel(server, "my-agent", "passthrough"), new_key())
            expect.that("whose key is told to nobody", text not in log(server) and secret not in log(server))
    other = encoded(secrets.token_bytes(32))
    cases = [
        ("without one", {}),
        ("with another key", {"acme_eab_key_id": "kid-1", "environment": {"ADIT_ACME_EAB_KEY": other}}),
        ("with an unknown id", {"acme_eab_key_id": "kid-9", "environment": {"ADIT_ACME_EAB_KEY": secret}}),
    ]
    for what, settings in cases:
        with world(**accounts, **settings) as (server, liar):
            answer = sign(server, new_tunnel(server, "my-agent", "passthrough"), new_key())
            expect.problem(f"{what} there is no account", answer, 503)
            expect.that(f"{what}: it says so", "external account" in answer.json["detail"], answer)
            expect.that(f"{what}: in the log", "external account" in log(server), log(server)[-2000:])
            expect.that(f"{what}: no key", secret not in log(server) and other not in log(server))
            expect.equal(f"{what}: nothing is ordered", len(liar.orders), 0)


def terms(world):
    with world(acme_agree_terms="false") as (server, liar):
        answer = sign(server, new_tunnel(server, "my-agent", "passthrough"), new_key())
        expect.problem("nothing is issued", answer, 503)
        expect.that("the answer says where they are", "https://ca.example/terms" in answer.json["detail"], answer)
        expect.that("and the log", "https://ca.example/terms" in log(server), log(server)[-2000:])
        expect.equal("there is no account", len(liar.accounts), 0)


def dig(port, kind, name):
    command = ["dig", "+short", "+norec", "@127.0.0.1", "-p", str(port), name, kind]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def named_in_caa(world):
    """The account is not to be had at first, then it is, then it is another."""
    for policy in ("account", "authority"):
        (port,) = free_ports(1)
        settings = {"dns_listen": f"127.0.0.1:{port}", "public_address": "127.0.0.1", "acme_caa": policy}
        with world(
            authority={"dns": ("127.0.0.1", port)},
            before=lambda liar: liar.lies.update(account=status(500)),
            **settings,
        ) as (server, liar):
            nobody = dig(port, "CAA", ZONE)
            expect.equal(f"{policy}: nobody before the account is known", nobody, '0 issue ";"' * (policy == "account"))
            liar.lies.clear()
            expect.until(
                f"{policy}: it is said soon", LOOKED_WITHIN, lambda port=port: "ca.example" in dig(port, "CAA", ZONE)
            )
            said = dig(port, "CAA", ZONE)
            if policy == "authority":
                expect.equal("the authority, for everybody", said, '0 issue "ca.example"')
                continue
            expect.that("the account", f"accounturi={list(liar.accounts)[-1]}" in said, said)
            expect.that("and how", "validationmethods=dns-01" in said, said)
            expect.until(
                "the zone is served", ISSUED_WITHIN, lambda server=server, liar=liar: is_served(server, liar, ZONE)
            )
            liar.accounts.clear()
            others_are_served(server, liar, "other-agent")
            another = f"accounturi={next(iter(liar.accounts))}"
            expect.until("it is named, too", 10, lambda port=port, another=another: another in dig(port, "CAA", ZONE))


def standing_record(world):
    """dns-persist-01: which record to set is said; it is never set by anybody else."""
    (port,) = free_ports(1)
    with world(authority={"dns": ("127.0.0.1", port)}, acme_challenge="dns-persist-01") as (server, liar):
        tunnel = new_tunnel(server, "my-agent", "passthrough")
        answer = sign(server, tunnel, new_key())
        expect.problem("without the record nothing is issued", answer, 503)
        wanted = (f"_validation-persist.{tunnel.host}", "ca.example", f"accounturi={next(iter(liar.accounts))}")
        said = log(server) + answer.json["detail"]
        expect.that("which record to set is said", all(each in said for each in wanted), said[-3000:])
    (port,) = free_ports(1)
    with world(authority={"dns": ("127.0.0.1", port)}, acme_challenge="dns-persist-01") as (server, liar):
        liar._has_record = lambda _name, _is_right: None
        tunnel = new_tunnel(server, "my-agent", "passthrough")
        signed("with it a certificate is", server, tunnel, new_key())


# --- what changes meanwhile ---------------------------------------------------


def forgotten(world):
    with world(acme_wait="10s") as (server, liar):
        zone_is_served(server)
        first = set(liar.accounts)
        liar.accounts.clear()
        tunnel, key = new_tunnel(server, "my-agent", "passthrough"), new_key()
        signed("an account that is gone is made again", server, tunnel, key)
        expect.equal("once", (len(liar.accounts), len(set(liar.accounts) - first)), (1, 1))
        tunnel, key = new_tunnel(server, "gone-order", "passthrough"), new_key()
        gone = []

        def once(directory, handler, answer):
            if gone:
                return answer
            gone.append(handler.path)
            return status(404, "malformed")(directory, handler, answer)

        liar.lies["order"] = once
        signed("an order that is gone is begun again", server, tunnel, key)
        expect.equal("once, too", len(orders(liar, tunnel.host)), 2)
        # Whoever says so each time gets no account for each question.
        liar.lies.clear()
        liar.lies["new-order"] = status(400, "accountDoesNotExist")
        count = sum(resource == "account" for resource, _ in liar.asked)
        for number in range(3):
            tunnel = new_tunnel(server, f"never-{number}", "passthrough")
            expect.problem("an account that is never there", sign(server, tunnel, new_key()), 503)
        asked = sum(resource == "account" for resource, _ in liar.asked) - count
        expect.that("is not made for each who asks", asked <= 2, asked)


def another_key(world):
    """The newest request wins, and whoever asked before is not told that it has something."""
    with world(acme_wait="15s") as (server, liar):
        zone_is_served(server)
        tunnel, first, second = new_tunnel(server, "my-agent", "passthrough"), new_key(), new_key()
        liar.lies["finalize"] = acme_directory.slow(3)
        known, answers = len(liar.certificates), []
        before = threading.Thread(target=lambda: answers.append(sign(server, tunnel, first)))
        before.start()
        expect.until("the first is being signed", ISSUED_WITHIN, lambda: len(liar.certificates) > known)
        signed("the second gets its own", server, tunnel, second)
        before.join()
        expect.one_of("the first gets its own, or is told to ask again", answers[0].status, 200, 503)
        keys = {each["key_sha256"]: each["revoked_at"] for each in records(server, tunnel_id=tunnel.id)}
        expect.that("the second's is good", keys.get(spki_of(second), "none") is None, keys)
        issued = {spki_of(each) for each in list(liar.certificates.values())[known:]}
        expect.equal("whatever was issued is on record", issued, set(keys))


def stopped(world):
    """SIGTERM while somebody waits: an answer, an end, and the order goes on."""
    with world(acme_wait="20s") as (server, liar):
        zone_is_served(server)
        tunnel, key = new_tunnel(server, "my-agent", "passthrough"), new_key()
        liar.validates, answers = "never", []
        waiting = threading.Thread(target=lambda: answers.append(sign(server, tunnel, key)), daemon=True)
        waiting.start()
        expect.until("it is ordered", ISSUED_WITHIN, lambda: orders(liar, tunnel.host))
        time.sleep(0.5)
        begun = time.monotonic()
        expect.equal("it stops", server.stop(), 0)
        took = time.monotonic() - begun
        waiting.join(5)
        expect.that("soon", took < 15, took)
        expect.that("whoever waits is answered", answers and answers[0].status == 503, answers)
        liar.validates = "truly"
        server.start()
        expect.until("the order goes on", 60, lambda: sign(server, tunnel, key).status == 200)
        expect.that("at most one is lost", len(orders(liar, tunnel.host)) <= 2, orders(liar, tunnel.host))
        expect.equal("one certificate", len(records(server, tunnel_id=tunnel.id)), 1)


if __name__ == "__main__":
    expect.run(main)
