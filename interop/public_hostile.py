"""Hostile visitors, agents and hooks around certificates of a public authority: they harm nobody but themselves.

The authority is `acme_directory.py`. Visitors of hosts that have no certificate, protocols and names that are not
pending, rubbish on port 80, agents that leave and come back, tunnels that are renamed and deleted while their order is
in flight, hooks that hang: each costs a bounded number of orders, lines of the log and seconds.

    judges/bin/python public_hostile.py --server ../target/release/api-server
"""

import collections
import concurrent.futures
import contextlib
import json
import os
import pathlib
import random
import socket
import ssl
import subprocess
import tempfile
import threading
import time

from cryptography import x509

import acme_directory
import expect
from csr import new_csr, new_key, spki_of
from public_lies import World, is_served, log, orders, records, sign, signed, zone_is_served
from scripted_agent import new_tunnel
from server import ZONE, arguments, free_ports

VISITORS = 1000
PROOF = "acme-tls/1"


def main():
    parser = arguments(__doc__)
    parser.add_argument("--only", help="the checks with this word in their name")
    options = parser.parse_args()
    options.server = str(pathlib.Path(options.server).resolve())
    checks = [
        ("visitors of a host without a certificate", visitors),
        ("proofs by tls-alpn-01 are for those who ask for one", protocols),
        ("port 80", plain_http),
        ("many on port 80", crowd),
        ("agents that hang up", hung_up),
        ("two agents in turns", in_turns),
        ("orders that wait keep nobody from theirs", waiting_orders),
        ("revocations that fail", failing_revocations),
        ("renamed and deleted while an order is in flight", taken_away),
        ("stopped at any moment", stopped),
        ("hooks", hooks),
        ("settings that cannot be right", settings),
    ]
    chosen = [(name, call) for name, call in checks if not options.only or options.only in name]
    with tempfile.TemporaryDirectory(prefix="adit-interop-hostile-") as place:
        named = [
            (name, lambda number=number, call=call: call(World(options, pathlib.Path(place) / str(number))))
            for number, (name, call) in enumerate(chosen)
        ]
        expect.each(named, at_once=4)


def hello(server, name, protocols=()):
    """What a handshake comes to: the protocol and whether a proof was shown, or the error."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(list(protocols))
    try:
        plain = socket.create_connection(("127.0.0.1", server.edge_port), timeout=15)
        with plain, context.wrap_socket(plain, server_hostname=name) as tls:
            shown = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True))
            identifiers = {each.oid for each in shown.extensions}
            return tls.selected_alpn_protocol(), acme_directory.ACME_IDENTIFIER in identifiers
    except OSError as error:
        return type(error).__name__


def visitors(world):
    def crowd(server, host):
        mark, begun, spent = len(log(server)), time.monotonic(), cpu_seconds(server)
        with concurrent.futures.ThreadPoolExecutor(100) as pool:
            came = collections.Counter(pool.map(lambda _: hello(server, host), range(VISITORS)))
        took, lines = time.monotonic() - begun, len(log(server)[mark:].splitlines())
        spent = cpu_seconds(server) - spent
        print(
            f"    {VISITORS} visitors: {took:.1f} s, {spent:.2f} s of CPU, {lines} lines of the log, {dict(came)}",
            flush=True,
        )
        expect.that("nobody is let in", all(isinstance(each, str) for each in came), came)
        expect.that("the log is not flooded", lines <= 20, log(server)[mark:][:2000])

    with world() as (server, liar):
        zone_is_served(server)
        liar.validates = "fails"
        host = new_tunnel(server, "failing").host
        expect.until("its order has failed", 20, lambda: f'names="{host}"' in log(server))
        crowd(server, host)
        expect.equal("visitors order nothing", len(orders(liar, host)), 1)
        liar.validates = "never"
        host = new_tunnel(server, "pending").host
        expect.until("another is ordered", 20, lambda: orders(liar, host))
        crowd(server, host)
        expect.equal("visitors order nothing more", len(orders(liar, host)), 1)
        count = len(liar.orders)
        with concurrent.futures.ThreadPoolExecutor(100) as pool:
            came = list(pool.map(lambda number: hello(server, f"nobody-{number}.{ZONE}"), range(VISITORS)))
        expect.that("names that there are not", all(isinstance(each, str) for each in came))
        expect.equal("order nothing", len(liar.orders), count)
        expect.that("the zone is served", is_served(server, liar, ZONE))
        liar.validates = "truly"
        expect.until("and so is the host, when it can be", 90, lambda: is_served(server, liar, host))


def cpu_seconds(server):
    fields = pathlib.Path(f"/proc/{server.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def protocols(world):
    with world(acme_wait="2s") as (server, liar):
        zone_is_served(server)
        liar.validates = "never"
        edge, passthrough = new_tunnel(server, "at-the-edge").host, new_tunnel(server, "my-agent", "passthrough")
        sign(server, passthrough, new_key())
        hosts = (edge, passthrough.host)
        for host in hosts:
            expect.until(f"{host} is being proved", 20, lambda host=host: hello(server, host, [PROOF]) == (PROOF, True))
            expect.equal(f"{host} in capitals", hello(server, host.upper(), [PROOF]), (PROOF, True))
        others = ([PROOF, "h2"], ["h2", PROOF], [PROOF, PROOF], ["acme-tls/2"], [PROOF.upper()], [])
        for host in (*hosts, ZONE, f"nobody.{ZONE}", f"a.{edge}", "elsewhere.example", None):
            for offered in others if host in hosts else (*others, [PROOF]):
                came = hello(server, host, offered)
                expect.that(f"{host} with {offered}: no proof", isinstance(came, str) or came[1] is False, came)
        expect.equal("the zone answers by what it speaks", hello(server, ZONE, [PROOF, "h2"]), ("h2", False))


def answered(port, octets, patience=5):
    """The first line of the answer, and the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        came = b""
        with contextlib.suppress(OSError):
            connection.sendall(octets)
            while chunk := connection.recv(65536):
                came += chunk
    head = came.split(b"\r\n", 1)[0].split()
    return int(head[1]) if len(head) > 1 else None, came


@contextlib.contextmanager
def proving_by_http(world, **settings):
    """A server, the port that stands for 80, a host and the path of its proof."""
    (port,) = free_ports(1)
    settings = {"acme_challenge": "http-01", "http_listen": f"127.0.0.1:{port}", "acme_wait": "2s", **settings}
    with world(before=lambda liar: liar.ports.update({"http-01": port}), **settings) as (server, liar):
        zone_is_served(server)
        liar.validates = "never"
        tunnel = new_tunnel(server, "my-agent", "passthrough")
        expect.problem("it is being proved", sign(server, tunnel, new_key()), 503)
        challenges = list(liar.authorizations.values())[-1]["document"]["challenges"]
        [token] = [each["token"] for each in challenges if each["type"] == "http-01"]
        yield server, port, tunnel.host, f"/.well-known/acme-challenge/{token}"


def plain_http(world):
    with proving_by_http(world) as (server, port, host, path):
        close = "Connection: close\r\n\r\n"
        way = f"location: https://{host}".encode()
        proof = path.rsplit("/", 1)[1].encode() + b"."
        proofs = [
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{close}",
            f"GET {path} HTTP/1.1\r\nHost: {host.upper()}:80\r\n{close}",
            f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n",
            f"GET http://{host}{path} HTTP/1.1\r\nHost: elsewhere.example\r\n{close}",
        ]
        for request in proofs:
            status, came = answered(port, request.encode())
            expect.that(f"the proof: {request[:70]!r}", status == 200 and proof in came, came)
        nothing = [
            f"GET {path} HTTP/1.1\r\nHost: elsewhere.example\r\n{close}",
            f"GET {path} HTTP/1.1\r\nHost: nobody.{ZONE}\r\n{close}",
            f"GET http://elsewhere.example{path} HTTP/1.1\r\nHost: {host}\r\n{close}",
            f"GET {path} HTTP/1.1\r\nHost: [{host}]\r\n{close}",
            f"GET {path} HTTP/1.1\r\nHost: user@{host}\r\n{close}",
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nHost: elsewhere.example\r\n{close}",
            f"GET {path} HTTP/1.1\r\n{close}",
            f"GET {path} HTTP/1.0\r\n\r\n",
            f"GET / HTTP/2.0\r\nHost: {host}\r\n{close}",
            f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n{close}",
            f"GET /{'a' * 200_000} HTTP/1.1\r\nHost: {host}\r\n{close}",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + "\0" * 200,
            "rubbish\r\n\r\n",
        ]
        for request in nothing:
            status, came = answered(port, request.encode("latin-1"))
            expect.that(f"refused: {request[:90]!r}", status is None or 400 <= status < 500, came[:200])
            expect.that(f"without a word: {request[:90]!r}", proof not in came and len(came) < 500, came[:500])
        for target in (
            "//elsewhere.example/",
            "/%2e%2e//x",
            "/x%0d%0aset-cookie:a=b",
            "/" + "a" * 6000,
            f"{path}/",
            f"{path}x",
        ):
            status, came = answered(port, f"GET {target} HTTP/1.1\r\nHost: {host}\r\n{close}".encode())
            location = next((line for line in came.split(b"\r\n") if line.lower().startswith(b"location:")), b"")
            expect.that(f"to https: {target[:40]}", status == 308 and location == way + target.encode(), came[:300])
        body = f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000000000\r\n{close}".encode() + b"x" * 100_000
        begun = time.monotonic()
        answered(port, body)
        expect.that("no body is waited for", time.monotonic() - begun < 3, time.monotonic() - begun)


def crowd(world):
    """More than there is room for on port 80, and slow ones."""
    with proving_by_http(world, max_connections=200) as (server, port, host, path):
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        with contextlib.ExitStack() as stack:
            # Some of them wait in the kernel, which has room for 128.
            for number in range(300):
                idle = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
                if number % 2:
                    idle.sendall(b"GET / HT")
            expect.equal("the API answers", server.ask("GET", "/api/v1/tunnels/").status, 200)
            expect.equal("the edge does", hello(server, ZONE), (None, False))
            expect.equal("it is ready", server.ready().status, 200)
            begun = time.monotonic()
            status, _ = answered(port, request, patience=30)
            expect.equal("and port 80, as soon as they are sent away", status, 200)
            expect.that("within the time for a head", time.monotonic() - begun < 20, time.monotonic() - begun)


def hung_up(world):
    """Each calls a few times and leaves at any moment, some in the middle of the request."""
    with world(acme_wait="20s") as (server, liar):
        zone_is_served(server)
        liar.lies["finalize"] = acme_directory.slow(0.5)
        agents = []

        def agent(number):
            tunnel, key = new_tunnel(server, f"agent-{number}", "passthrough"), new_key()
            agents.append((tunnel, key))
            for _ in range(4):
                body = json.dumps({"csr_pem": new_csr(key, tunnel.host)}).encode()
                head = f"POST /api/v1/tunnels/{tunnel.id}/sign-csr HTTP/1.1\r\nHost: x\r\nX-API-Key: {server.key}\r\n"
                head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                request = head.encode() + body
                with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
                    whole = random.random() < 0.7
                    connection.sendall(request if whole else request[: random.randrange(len(request))])
                    time.sleep(random.random() * 0.6)

        threads = [threading.Thread(target=agent, args=(number,)) for number in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for tunnel, key in agents:
            signed(f"{tunnel.host} has its certificate", server, tunnel, key)
            found = [each["key_sha256"] for each in records(server, tunnel_id=tunnel.id)]
            expect.equal(f"{tunnel.host}: one, for its key", found, [spki_of(key)])
            expect.equal(f"{tunnel.host}: by one order", len(orders(liar, tunnel.host)), 1)


def in_turns(world):
    """Two agents of one tunnel, with a key each, against a slow authority: it ends, and each keeps what it has."""
    with world(acme_wait="30s") as (server, liar):
        zone_is_served(server)
        liar.lies |= {"challenge": acme_directory.slow(0.5), "finalize": acme_directory.slow(1)}
        tunnel, keys = new_tunnel(server, "my-agent", "passthrough"), (new_key(), new_key())
        known, until = len(liar.certificates), time.monotonic() + 15
        answers = ([], [])

        def agent(number):
            while time.monotonic() < until:
                answer = sign(server, tunnel, keys[number])
                answers[number].append(answer.status)
                time.sleep(0.5 if answer.status == 200 else 2)

        threads = [threading.Thread(target=agent, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(2):
            expect.that("each is served", answers[number].count(200) >= 3, answers)
        issued = len(liar.certificates) - known
        expect.that("by few certificates", issued <= 4, issued)
        expect.equal("all of them on record", len(records(server, tunnel_id=tunnel.id)), issued)


def waiting_orders(world):
    """More than are worked on at once, and the authority looks at none of them."""
    with world(acme_wait="20s", acme_certificates_per_week=1000) as (server, liar):
        zone_is_served(server)
        validate = liar._validate

        def unless_stuck(account, authorization, challenge):
            if not authorization["document"]["identifier"]["value"].startswith("stuck-"):
                validate(account, authorization, challenge)

        liar._validate = unless_stuck
        for number in range(100):
            new_tunnel(server, f"stuck-{number}")
        time.sleep(5)
        begun = time.monotonic()
        signed("another has its own", server, new_tunnel(server, "my-agent", "passthrough"), new_key())
        expect.that("soon", time.monotonic() - begun < 15, time.monotonic() - begun)


def failing_revocations(world):
    """The authority knows nothing of what it has issued: that is asked a few times, not for ever."""
    with world(sweep_interval="1s") as (server, liar):
        zone_is_served(server)
        for number in range(10):
            signed("a certificate", server, new_tunnel(server, f"agent-{number}", "passthrough"), new_key())
        liar.lies["revoke"] = acme_directory.status(500)
        mark = len(log(server))
        for number in range(10):
            server.ask("DELETE", f"/api/v1/identities/agent-{number}")
        time.sleep(20)
        asked = sum(resource == "revoke" for resource, _ in list(liar.asked))
        expect.that("each is asked for", 1 <= asked <= 25, asked)
        lines = len(log(server)[mark:].splitlines())
        expect.that("the log is not flooded", lines <= 25, lines)
        expect.that("none is on record as revoked", not any(each["revoked_at"] for each in records(server, limit=100)))


def taken_away(world):
    """The certificate is issued while its tunnel goes: it is on record, revoked, and nobody's."""
    with world(acme_wait="20s", sweep_interval="1s") as (server, liar):
        zone_is_served(server)
        liar.lies["finalize"] = acme_directory.slow(2)
        changes = {
            "renamed": lambda name: server.ask("PATCH", f"/api/v1/identities/{name}", {"agent_handle": f"{name}-now"}),
            "deleted": lambda name: server.ask("DELETE", f"/api/v1/identities/{name}"),
        }
        for what, change in changes.items():
            tunnel, known, answers = new_tunnel(server, f"agent-{what}", "passthrough"), set(liar.certificates), []
            asked = threading.Thread(target=lambda t=tunnel, a=answers: a.append(sign(server, t, new_key())))
            asked.start()
            expect.until(f"{what}: it is being issued", 20, lambda known=known: set(liar.certificates) - known)
            expect.that(f"{what}: it is", change(f"agent-{what}").status in (200, 204))
            asked.join()
            expect.that(f"{what}: whoever asked is refused", answers[0].status in (404, 409, 503), answers)
            serials = set(liar.certificates) - known
            expect.until(f"{what}: it is revoked", 75, lambda serials=serials: serials <= set(liar.revoked))
            found = records(server, host=tunnel.host)
            expect.equal(f"{what}: on record", {int(each["serial"], 16) for each in found}, serials)
            expect.until(
                f"{what}: as revoked",
                10,
                lambda tunnel=tunnel: all(each["revoked_at"] for each in records(server, host=tunnel.host)),
            )
        again = new_tunnel(server, "agent-deleted", "passthrough")
        liar.lies.clear()
        signed("the name's next tunnel has a certificate of its own", server, again, new_key())


def stopped(world):
    with world(acme_wait="20s") as (server, liar):
        zone_is_served(server)
        agents, slowest = [], 0
        for number in range(10):
            tunnel, key = new_tunnel(server, f"agent-{number}", "passthrough"), new_key()
            agents.append((tunnel, key))
            answers = []
            asked = threading.Thread(target=lambda t=tunnel, k=key, a=answers: a.append(sign(server, t, k).status))
            asked.start()
            time.sleep(random.uniform(0.05, 1))
            begun = time.monotonic()
            expect.equal("it stops", server.stop(), 0)
            slowest = max(slowest, time.monotonic() - begun)
            asked.join()
            expect.that("whoever waits is answered", answers and answers[0] in (200, 503), answers)
            server.start()
        expect.that("each time soon", slowest < 5, slowest)
        for tunnel, key in agents:
            signed(f"{tunnel.host}: the order went on", server, tunnel, key)
            # One whose answer was on its way is lost, and begun again.
            begun = orders(liar, tunnel.host)
            expect.that(f"{tunnel.host}: two at most, for one stop", 1 <= len(begun) <= 2, begun)


def hooks(world):
    world.work.mkdir(parents=True)
    hook, left = world.work / "hook", world.work / "left"
    flood = "head -c 50000000 /dev/zero | tr '\\0' x >&2"
    cases = [
        ("fails", "echo sorry >&2; exit 3", "exit status: 3: sorry"),
        ("floods", f"{flood}; exit 1", "exit status: 1"),
        ("is killed", "kill -9 $$", "signal: 9"),
        ("is missing", None, "cannot be run"),
    ]
    for what, script, words in cases:
        hook.unlink(missing_ok=True)
        if script is not None:
            hook.write_text(f"#!/bin/sh\n{script}\n")
            hook.chmod(0o755)
        with world(acme_challenge="dns-01", acme_dns_hook=hook, acme_wait="10s") as (server, _):
            answer = sign(server, new_tunnel(server, "my-agent", "passthrough"), new_key())
            expect.problem(f"one that {what}", answer, 503)
            expect.that(f"{what}: the log says it", words in log(server), log(server)[-2000:])
            told = answer.json["detail"]
            expect.that(f"{what}: the answer says whose it is", "operator" in told and words not in told, told)
            expect.that(f"{what}: in a few words", len(answer.body) < 2000 and len(log(server)) < 20_000)
    hook.write_text(f"#!/bin/sh\necho $$ >> {left}\nexec sleep 1000\n")
    hook.chmod(0o755)
    with world(acme_challenge="dns-01", acme_dns_hook=hook, acme_wait="1s") as (server, _):
        answer = sign(server, new_tunnel(server, "my-agent", "passthrough"), new_key())
        expect.problem("one that hangs", answer, 503)
        begun = time.monotonic()
        expect.equal("keeps nobody from stopping", server.stop(), 0)
        expect.that("soon", time.monotonic() - begun < 5, time.monotonic() - begun)
        gone = lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in left.read_text().split())
        expect.until("and leaves no process behind", 10, gone)
        server.start()


def settings(world):
    """Refused at the start, with words that say what to do."""
    with acme_directory.Directory(world.work / "directory") as liar:
        right = {"issuer": "acme", "acme_directory": liar.url, "acme_ca": liar.ca_file, "acme_agree_terms": "true"}
        cases = [
            ({"acme_directory": "http://localhost:1/d"}, "https"),
            ({"acme_directory": "https://user:secret@localhost:1/d"}, "acme_directory"),
            ({"acme_ca": "/nonexistent"}, "acme_ca"),
            ({"acme_wait": "300s"}, "170s"),
            ({"acme_challenge": "tls-sni-01"}, "tls-alpn-01"),
            ({"acme_challenge": "http-01"}, "http_listen"),
            ({"acme_challenge": "dns-01"}, "acme_dns_hook"),
            ({"acme_challenge": "dns-01", "acme_dns_hook": "hook"}, "absolute"),
            ({"dns_listen": "127.0.0.1:1"}, "public_address"),
            ({"acme_caa": "account"}, "dns_listen"),
            ({"acme_contact": "no mail"}, "acme_contact"),
            ({"acme_certificates_per_week": "0"}, "acme_certificates_per_week"),
            ({"acme_eab_key_id": "kid"}, "ADIT_ACME_EAB_KEY"),
        ]
        for number, (wrong, words) in enumerate(cases):
            command = [world.options.server, "serve", "--data-dir", world.work / f"data-{number}"]
            for name, value in {**right, "panel_listen": "none", **wrong}.items():
                command += [f"--{name.replace('_', '-')}", str(value)]
            for name in ("api", "edge", "metrics"):
                command += [f"--{name}-listen", "127.0.0.1:0"]
            try:
                done = subprocess.run(
                    list(map(str, command)),
                    capture_output=True,
                    text=True,
                    timeout=5,
                    check=False,
                    env={"PATH": "/usr/bin"},
                )
                came = done.stderr + done.stdout
                refused = done.returncode != 0
            except subprocess.TimeoutExpired:
                refused, came = False, "it starts"
            expect.that(f"{wrong} is refused", refused, came[-500:])
            told = came.replace("-", "_")
            expect.that(f"{wrong}: by {words!r}", words.replace("-", "_") in told, came[-700:])
            expect.that(f"{wrong}: no secret is told", "secret@" not in came, came[-700:])


if __name__ == "__main__":
    expect.run(main)
