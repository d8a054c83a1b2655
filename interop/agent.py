"""Judges the data plane and the command line by our own agent, `tunnel-agent`.

Starts servers, agents and applications, calls the public hosts with curl, Python's
ssl and a WebSocket client, and expects what an application behind a tunnel and its
visitors may expect: what `sdk_agent.py` asks of the agents of the SDK, and what
these cannot do.

    python agent.py --server ../target/release/api-server --agent ../target/release/tunnel-agent
"""

import concurrent.futures
import contextlib
import gzip
import http.client
import http.server
import json
import os
import pathlib
import signal
import socket
import ssl
import stat
import subprocess
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

import expect
from application import MIB, PLAIN, Application, filler, sha256
from csr import new_csr, new_key
from expect import until
from server import ZONE, Server, arguments
from visitor import (
    NO_ANSWER,
    PING,
    PONG,
    TEXT,
    Calls,
    Ended,
    Unanswered,
    WebSocket,
    curl,
    dial,
    ends,
    fetch,
    raw,
    trust,
)

VISITOR_ADDRESS = "127.0.0.7"
VERSIONS = {"--http1.1": "1.1", "--http2": "2"}
SUPERSEDED, REFUSED = 3, 4


def main():
    parser = arguments(__doc__)
    parser.add_argument("--agent", required=True, metavar="PATH", help="the tunnel-agent binary")
    parser.add_argument("--only", default="", metavar="WORD", help="run the checks that have it in their name")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        place = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adit-interop-")))
        new_scene = partial(Scene, options, place)
        scene = stack.enter_context(new_scene())
        app = stack.enter_context(Application())
        plain = stack.enter_context(scene.agent("plain", app))
        through = stack.enter_context(scene.agent("through", app, tls_mode="passthrough"))
        checks = [
            ("an application that stalls", partial(stalls, new_scene, app)),
            ("signals", partial(signals, scene, app)),
            ("requests", partial(requests, scene, app)),
            ("headers", partial(headers, scene)),
            ("bodies", partial(bodies, scene)),
            ("gzip", partial(packed, scene)),
            ("many requests at once", partial(many_at_once, scene)),
            ("odd applications", partial(odd_applications, scene)),
            ("an application that is not there", partial(not_there, scene)),
            ("an application that drops SYNs", partial(drops_syns, scene)),
            ("an application on the other loopback", partial(other_loopback, scene)),
            ("WebSocket messages", partial(websocket_messages, scene, "plain")),
            ("WebSocket closes", partial(websocket_closes, scene, app, "plain")),
            ("WebSockets that are refused", partial(websocket_refused, scene, "plain")),
            ("passthrough: certificate", partial(through_certificate, scene)),
            ("passthrough: requests", partial(through_requests, scene, app)),
            ("passthrough: answers piece by piece", partial(through_events, scene, app)),
            ("passthrough: requests piece by piece", partial(through_uploads, scene, app)),
            ("passthrough: bodies", partial(through_bodies, scene)),
            ("passthrough: last answers", partial(through_last_answers, scene)),
            ("passthrough: WebSocket messages", partial(websocket_messages, scene, "through")),
            ("passthrough: WebSocket closes", partial(websocket_closes, scene, app, "through")),
            ("passthrough: WebSockets that are refused", partial(websocket_refused, scene, "through")),
            ("key and certificate are kept", partial(kept, scene, app)),
            ("the certificate is renewed in time", partial(renewed, scene, app)),
            ("connect secrets", partial(secrets, scene, app)),
            ("a key is revoked", partial(key_revoked, scene, app)),
            ("a tunnel is deleted", partial(tunnel_deleted, scene, app)),
            ("agents that are refused from the start", partial(refused_at_start, scene, app)),
            ("a second agent takes over", partial(taken_over, scene, "edge")),
            ("passthrough: a second agent takes over", partial(taken_over, scene, "passthrough")),
            ("the server restarts", partial(server_restarts, new_scene, app, "edge")),
            ("passthrough: the server restarts", partial(server_restarts, new_scene, app, "passthrough")),
            ("the server is killed", partial(server_killed, new_scene, app)),
            ("JSON lines", partial(json_lines, scene, app)),
            ("nobody reads what is told", partial(unread, scene, app)),
            ("proxies", partial(through_proxies, scene, app)),
            ("wrong flags", partial(wrong_flags, scene)),
            ("the commands of `tunnels`", partial(commands, scene)),
            ("REST at the edge", partial(rest_at_the_edge, scene, app)),
        ]
        expect.each([check for check in checks if options.only in check[0]], at_once=2)
        still_connected(plain, through)


def requests(scene, app):
    host = scene.host("plain")
    for version, wanted in VERSIONS.items():
        page = scene.curl("plain", "/seen", version)
        expect.equal(f"{version}: GET is answered in that version", (page.status, page.http_version), (200, wanted))
        expect.equal(f"{version}: the app sees the method", seen(page)["method"], "GET")
        expect.equal(f"{version}: the app is called by its own name", seen_headers(page, "host"), [authority(app)])

        page = scene.curl("plain", "/echo", version, "--data-binary", "sent to here")
        expect.equal(f"{version}: POST is answered", (page.status, page.body), (200, b"sent to here"))
        expect.equal(f"{version}: the reply has its length", page.all("content-length"), ["12"])

        # curl's output for `--head` is the head.
        page = scene.curl("plain", "/seen", version, "--head")
        expect.equal(f"{version}: HEAD is answered", page.status, 200)
        expect.equal(f"{version}: the app knows the length of what HEAD left out", len(page.all("content-length")), 1)

        page = scene.curl("plain", "/nothing", version)
        expect.equal(f"{version}: 204 has no body", (page.status, page.body), (204, b""))
        expect.equal(f"{version}: and no length", page.all("content-length") + page.all("transfer-encoding"), [])

        paths_are_verbatim(scene, "plain", version)
        for path in ("/seen/a%2Fb", "/seen/a%5cb", "/seen/a%252fb", "/seen/../seen", "/seen/%2e%2e/seen"):
            page = scene.curl("plain", path, version, "--path-as-is")
            expect.equal(f"{version}: {path} is for the app to understand", seen(page)["target"], path)
        methods_and_statuses(scene, "plain", version)
    page = scene.raw("plain", b"HEAD /seen HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host.encode())
    expect.equal("nothing follows the head that answers HEAD", (page.status, page.body), (200, b""))


def paths_are_verbatim(scene, name, version):
    long = "/seen/%7Euser/a%20b?a=%2f%20b+c&d=%C3%BC&&e=1;f=?/&g="
    for path in (long, "/seen?", "/seen", "/seen//a/", "/seen/a;b=c"):
        page = scene.curl(name, path, version)
        target = seen(page)["target"]
        expect.equal(f"{version}: the path and the query are verbatim", target.rstrip("?"), path.rstrip("?"))


def methods_and_statuses(scene, name, version):
    for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"):
        page = scene.curl(name, "/seen", version, "--request", method)
        expect.equal(f"{version}: {method} reaches the app", seen(page)["method"], method)
    for status in (201, 418, 500, 503):
        page = scene.curl(name, f"/status/{status}", version)
        expect.equal(f"{version}: the app's {status} is the visitor's", (page.status, page.body), (status, b"as asked"))


def headers(scene):
    host = scene.host("plain")
    for version in VERSIONS:
        page = scene.curl("plain", "/cookies", version)
        expect.equal(f"{version}: two Set-Cookie stay two", page.all("set-cookie"), ["a=1; Path=/", "b=2; Path=/"])

        page = scene.curl("plain", "/seen", version, "--interface", VISITOR_ADDRESS, *forged())
        for name, value in {
            "x-forwarded-for": VISITOR_ADDRESS,
            "forwarded": f"for={VISITOR_ADDRESS}",
            "x-forwarded-host": f"{host}:{scene.port}",
            "x-forwarded-proto": "https",
        }.items():
            expect.equal(f"{version}: one {name}, which tells of the visitor", seen_headers(page, name), [value])
        claims = [name for name, value in seen(page)["headers"] if "6.6.6.6" in value]
        expect.equal(f"{version}: the app sees nothing that the visitor claims of itself", claims, [])
        ours = [name for name, _ in seen(page)["headers"] if name.startswith("inkbox-")]
        expect.equal(f"{version}: the app sees nothing of the envelope", ours, [])

        page = scene.curl("plain", "/seen", version, *header_options(100))
        got = [seen_headers(page, f"x-{number}") for number in range(100)]
        expect.equal(f"{version}: 100 header fields pass", got, [[str(number)] for number in range(100)])
        page = scene.curl("plain", "/seen", version, *header_options(210))
        expect.equal(f"{version}: 210 are too many", page.status, 431)
    crumbs_and_repeats(scene, "plain")


def forged():
    fields = ["x-forwarded-for: 6.6.6.6", "forwarded: for=6.6.6.6", "x-forwarded-host: forged.test"]
    names = ("x-real-ip", "x_forwarded_for", "x.forwarded-port", "x-forwarded-user", "x-original-url", "true-client-ip")
    fields += [f"{name}: 6.6.6.6" for name in names]
    fields += ["x-forwarded-proto: http", "inkbox-forwarded-for: 6.6.6.6", "inkbox-request-id: forged"]
    return header_options_of(fields)


def header_options(count):
    return header_options_of(f"x-{number}: {number}" for number in range(count))


def header_options_of(fields):
    return [word for field in fields for word in ("--header", field)]


def crumbs_and_repeats(scene, name):
    crumbs = header_options_of(["cookie: a=1", "cookie: b=2", "cookie: c=3"])
    page = scene.curl(name, "/seen", "--http2", *crumbs)
    expect.equal("several Cookie fields become one", seen_headers(page, "cookie"), ["a=1; b=2; c=3"])
    page = scene.curl(name, "/seen", "--http1.1", *header_options_of(["x-twice: 1", "x-twice: 2"]))
    expect.equal("other repeats stay, in order", seen_headers(page, "x-twice"), ["1", "2"])
    page = scene.curl(name, "/seen", "--http1.1", *header_options_of(["connection: x-hop", "x-hop: 1", "te: trailers"]))
    expect.equal("what is of the visitor's connection stays there", seen_headers(page, "x-hop"), [])


def bodies(scene):
    up, above = scene.file(8 * MIB), scene.file(40 * MIB)
    for version in VERSIONS:
        for chunked in ([], ["--header", "transfer-encoding: chunked"] if version == "--http1.1" else []):
            page = scene.curl("plain", "/seen", version, "--data-binary", f"@{up}", *chunked)
            got = (seen(page)["length"], seen(page)["sha256"])
            expect.equal(f"{version} {chunked}: 8 MiB reach the app as sent", got, (8 * MIB, sha256(up.read_bytes())))
        # With `expect:` curl sends before it is asked to, and must still read the answer.
        for asks in ([], ["--header", "expect:"]):
            page = scene.curl("plain", "/seen", version, "--data-binary", f"@{above}", *asks)
            got = (seen(page)["length"], seen(page)["sha256"])
            expect.equal(f"{version} {asks}: 40 MiB, too", got, (40 * MIB, sha256(above.read_bytes())))
        page = scene.curl("plain", f"/large/{20 * MIB}", version)
        expect.equal(f"{version}: 20 MiB reach the visitor as sent", sha256(page.body), sha256(filler(20 * MIB)))
    page = scene.curl("plain", "/echo", "--data-binary", f"@{above}")
    expect.equal("40 MiB go there and back", (page.status, sha256(page.body)), (200, sha256(above.read_bytes())))


def packed(scene):
    for version in VERSIONS:
        for path in ("/gzip-if-asked", "/gzip-always"):
            page = scene.curl("plain", path, version, "--header", "accept-encoding: br, gzip")
            expect.equal(f"{version}: {path} is packed for who asks", page.all("content-encoding"), ["gzip"])
            expect.that(f"{version}: {path} passes as the app packed it", len(page.body) < len(PLAIN) / 10, page)
            expect.equal(f"{version}: {path} has its length", page.all("content-length"), [str(len(page.body))])
            expect.equal(f"{version}: {path} unpacks", gzip.decompress(page.body), PLAIN)
            page = scene.curl("plain", path, version, "--compressed")
            expect.equal(f"{version}: curl unpacks {path}", page.body, PLAIN)
        for options in ([], ["--header", "accept-encoding: identity"]):
            page = scene.curl("plain", "/gzip-if-asked", version, *options)
            expect.equal(f"{version} {options}: nothing is packed unasked", page.body, PLAIN)
            expect.equal(f"{version} {options}: nor said to be", page.all("content-encoding"), [])
        page = scene.curl("plain", "/gzip-always", version)
        expect.equal(f"{version}: an app that packs unasked says so", page.all("content-encoding"), ["gzip"])
        expect.equal(f"{version}: and its body is that", gzip.decompress(page.body), PLAIN)


def many_at_once(scene):
    def echo(number):
        sent = filler(10_000 + number)
        page = scene.fetch("plain", "POST", "/echo", body=sent)
        return page.status, page.body == sent

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(echo, range(50)))
        expect.equal("50 connections at once are answered with what each sent", answers, [(200, True)] * 50)
        begun = time.monotonic()
        slow = list(pool.map(lambda _: scene.fetch("plain", path="/slow/1").status, range(50)))
        took = time.monotonic() - begun
        expect.equal("50 requests to a slow app are answered", slow, [200] * 50)
        expect.that("at the same time", took < 5, took)

    urls = [f"{scene.url('plain')}/status/{200 + number}" for number in range(50)]
    command = ["curl", "--silent", "--http2", "--parallel", "--parallel-max", "50", "--max-time", "20"]
    command += ["--cacert", scene.root, "--write-out", "%{http_code} %{num_connects}\n", *scene.resolve("plain")]
    command += [word for url in urls for word in ("--output", "/dev/null", url)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.split() for line in done.stdout.splitlines()]
    codes = sorted(int(code) for code, _ in lines)
    # 204 and 205 have no body, which is no matter here.
    expect.equal("50 HTTP/2 requests at once are answered, each with its own", codes, list(range(200, 250)))
    expect.that("over few connections", sum(int(connects) for _, connects in lines) <= 5, done.stdout)


def odd_applications(scene):
    for name in ("plain", "through"):
        page = scene.curl(name, "/until-the-end")
        expect.equal(f"{name}: a body that ends with its connection arrives", (page.status, page.body), (200, PLAIN))
        for _ in range(20):
            # The agent must not use again what the app has closed.
            scene.curl(name, "/until-the-end")
            expect.equal(f"{name}: the next request is served", scene.fetch(name).status, 200)
        page = scene.curl(name, "/hangs-up")
        expect.equal(f"{name}: an app that hangs up is an error", page.status, 502)
    for name in ("plain", "through"):
        expect.raises(f"{name}: half an answer does not look whole", Unanswered, scene.curl, name, "/breaks-off")


def not_there(scene):
    for tls_mode in ("edge", "passthrough"):
        name = f"gone-{tls_mode}"
        with Application() as app:
            port = int(app.url.rpartition(":")[2])
        # Nobody listens any more.
        with scene.agent(name, app, tls_mode=tls_mode) as agent:
            for version in VERSIONS:
                page = scene.curl(name, "/seen", version)
                expect.equal(f"{tls_mode}, {version}: without the app there is an error", page.status, 502)
            with scene.websocket(name, "/websocket") as websocket:
                expect.equal(f"{tls_mode}: for WebSockets, too", websocket.status, 502)
            expect.that(f"{tls_mode}: the agent says so", "upstream-failed" in agent.names, agent.names)
            with Application(port=port):
                expect.equal(f"{tls_mode}: with the app there is an answer", scene.fetch(name).status, 200)


class Elsewhere:
    """What agents are told to forward to."""

    def __init__(self, url):
        self.url = url


def drops_syns(scene):
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        # Linux drops what comes when nobody accepts and the queue is full.
        for _ in range(4):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(address)
        time.sleep(0.2)
        for tls_mode in ("edge", "passthrough"):
            with scene.agent(f"syns-{tls_mode}", Elsewhere(f"http://127.0.0.1:{address[1]}"), tls_mode=tls_mode):
                page, took = timed(scene.curl, f"syns-{tls_mode}", "/")
                expect.equal(f"{tls_mode}: an app that nobody reaches is an error", page.status, 502)
                expect.that(f"{tls_mode}: within 10 s", 5 < took < 10, took)


def other_loopback(scene):
    class Six(Answering):
        address_family = socket.AF_INET6

    with contextlib.closing(Six(("::1", 0), Ok)) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        for number, host in enumerate(("localhost", "[::1]")):
            name = f"loopback-{number}"
            with scene.agent(name, Elsewhere(f"http://{host}:{server.server_port}")):
                page = scene.fetch(name)
                expect.equal(f"{host}: an app on ::1 is reached", (page.status, page.body), (200, b"six"))
        server.shutdown()


class Answering(http.server.ThreadingHTTPServer):
    def close(self):
        self.server_close()


class Ok(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"six")

    def log_message(self, *_words):
        pass


def stalls(new_scene, app):
    with new_scene(response_deadline="3s") as scene:
        with scene.agent("stalls", app):
            for version in VERSIONS:
                page, took = timed(scene.curl, "stalls", "/slow/10", version)
                told = page.status, page.first("inkbox-reason")
                expect.equal(f"{version}: an app that stalls is an error", told, (504, "agent-timeout"))
                expect.that(f"{version}: after 3 s", 2.5 < took < 4.5, took)
            websocket, took = timed(scene.websocket, "stalls", "/slow/10")
            with websocket:
                expect.equal("a WebSocket that the app does not accept is one, too", websocket.status, 504)
            expect.that("after 3 s", 2.5 < took < 4.5, took)
            page = scene.curl("stalls", "/slow/2")
            expect.equal("an app that takes its time is none", (page.status, page.body), (200, b"at last"))
        with scene.agent("takes-time", app, tls_mode="passthrough"):
            page = scene.curl("takes-time", "/slow/5")
            expect.equal("passthrough has no such deadline", (page.status, page.body), (200, b"at last"))


def timed(call, *values):
    begun = time.monotonic()
    return call(*values), time.monotonic() - begun


def websocket_messages(scene, name):
    with scene.websocket(name, "/websocket?b=%20c", ("first", "second")) as websocket:
        expect.equal("the WebSocket opens", websocket.status, 101)
        expect.equal("the app chooses the subprotocol", websocket.subprotocol, "first")
        expect.equal("the app's headers come along", websocket.headers.get("x-app"), "1")
        expect.equal("no extension is agreed on", websocket.headers.get("sec-websocket-extensions"), None)
        websocket.send("seen")
        view = json.loads(websocket.receive())
        expect.equal("the app sees path and query", view["target"], "/websocket?b=%20c")
        told = [value for each, value in view["headers"] if each == "x-forwarded-host"]
        told = [value.partition(":")[0] for value in told]
        expect.equal("the app sees the public host", told, [scene.host(name)])

        for message in ("text", "", "grüße ✓ \U0001f600", '"\\\n\x00', b"\x00\xff\x80 binary", b""):
            websocket.send(message)
            expect.equal(f"{message!r} comes back", websocket.receive(), message)
        text = "grüße".encode()
        websocket.send_frame(TEXT, text[:3], final=False)
        websocket.send_frame(PING, b"between")
        websocket.send_frame(0, text[3:4], final=False)
        websocket.send_frame(0, text[4:], final=True)
        # The app itself answers, after what it has received.
        came = [websocket.receive(), websocket.receive()]
        expect.that("fragments come back as one message", "grüße" in came, came)
        expect.that("a ping between fragments is answered", (PONG, b"between") in came, came)
        websocket.send("fragments")
        message = websocket.receive()
        expect.equal("the app's ping reaches the visitor", message, (PING, b"between"))
        websocket.send_frame(PONG, b"between")
        message = websocket.receive()
        expect.equal("the app's fragments arrive as one message", message, "in pieces")
        expect.equal("the app's ping is answered", websocket.receive(), "answered")

        for message in ("t" * 65_500, "ü" * 50_000, "t" * MIB, filler(MIB)):
            websocket.send(message)
            got = websocket.receive()
            expect.that(f"{len(message)} of {type(message).__name__} come back", got == message, got)
        messages = [filler(24_000 - number) for number in range(60)]
        for each in messages:
            websocket.send(each)
        expect.that("messages keep their order", [websocket.receive() for _ in messages] == messages)
        websocket.send("large")
        expect.equal("the app may send 1 MiB", websocket.receive(), "t" * MIB)
        websocket.send_close(1000)
        expect.equal("the Close is answered", websocket.closed()[0], 1000)

    with scene.websocket(name, "/websocket") as websocket:
        expect.equal("none is chosen where none was offered", websocket.subprotocol, None)
        websocket.send(filler(3 * MIB))
        expect.that("3 MiB come back", websocket.receive() == filler(3 * MIB))
    with contextlib.ExitStack() as stack:
        websockets = [stack.enter_context(scene.websocket(name, "/websocket")) for _ in range(20)]
        for number, each in enumerate(websockets):
            each.send(f"number {number}")
        got = [each.receive() for each in websockets]
        expect.equal("20 at once do not mix", got, [f"number {number}" for number in range(20)])


def websocket_closes(scene, app, name):
    for code, reason in ((4321, "the visitor is done"), (1000, ""), (3000, "x" * 123)):
        path = f"/websocket?{name}={code}"
        with scene.websocket(name, path) as websocket:
            websocket.send_close(code, reason)
            expect.equal(f"the visitor's Close {code} is answered", websocket.closed()[0], code)
            expect.raises("nothing follows", Ended, websocket.receive)
        until(f"the app hears {code}", 5, lambda path=path, code=code: heard(app, path) == [code])
    for code, reason in ((4001, "the app is done"), (1000, ""), (1011, "grüße")):
        with scene.websocket(name, "/websocket") as websocket:
            websocket.send(f"close {code} {reason}")
            expect.equal(f"the app's Close {code} reaches the visitor", websocket.closed(), (code, reason))
            websocket.send_close(code)
            expect.raises("nothing follows", Ended, websocket.receive)
    if name == "plain":
        path = f"/websocket?{name}=lost"
        with scene.websocket(name, path):
            pass
        until("the app hears that a visitor is lost", 5, lambda: heard(app, path) == [1006])
    # Nobody but the app could say a code.
    for how in ("end", "reset"):
        with scene.websocket(name, "/websocket") as websocket:
            websocket.send(how)
            expect.equal(f"an app that dies ({how}) ends it", ends(websocket), "lost")
    expect.equal("requests are served as before", scene.fetch(name).status, 200)


def heard(app, path):
    """The codes with which the WebSockets of this path were closed."""
    return [code for target, code, _ in app.closes if target == path]


def websocket_refused(scene, name):
    for status in (403, 404, 500):
        with scene.websocket(name, f"/refuse/{status}") as websocket:
            expect.equal(f"the app's {status} is the visitor's", websocket.status, status)
            expect.equal("with its headers", websocket.headers.get("x-app"), "1")
            expect.equal("and its body", websocket.body(), b"not for you")
    with scene.websocket(name, "/refuse/200") as websocket:
        expect.that("200 is no WebSocket", websocket.status != 101, websocket.status)


def through_certificate(scene):
    tunnel = scene.tunnel("through")
    expect.equal("the agent has got a certificate", tunnel["status"], "active")
    expect.equal("the agent is connected", tunnel["currently_connected"], True)
    # `served` verifies the chain and the name.
    expect.equal("visitors see what was signed", scene.served("through"), tunnel["cert_fingerprint_sha256"])
    versions = set()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = trust(scene.root)
        context.minimum_version = context.maximum_version = version
        with dial(context, scene.host("through"), port=scene.port) as connection:
            versions.add(connection.version())
    expect.equal("TLS 1.2 and 1.3 are spoken", versions, {"TLSv1.2", "TLSv1.3"})


def through_requests(scene, app):
    for version, wanted in VERSIONS.items():
        page = scene.curl("through", "/seen?a=1", version)
        expect.equal(f"{version}: GET is answered in that version", (page.status, page.http_version), (200, wanted))
        expect.equal(f"{version}: the app is called by its own name", seen_headers(page, "host"), [authority(app)])
        page = scene.curl("through", "/echo", version, "--data-binary", "posted")
        expect.equal(f"{version}: POST is answered", (page.status, page.body), (200, b"posted"))
        page = scene.curl("through", "/large/1234", version, "--head")
        expect.equal(f"{version}: HEAD tells the length", (page.status, page.all("content-length")), (200, ["1234"]))
        page = scene.curl("through", "/nothing", version)
        expect.equal(f"{version}: 204 has no body", (page.status, page.body), (204, b""))
        page = scene.curl("through", "/cookies", version)
        expect.equal(f"{version}: two Set-Cookie stay two", page.all("set-cookie"), ["a=1; Path=/", "b=2; Path=/"])
        page = scene.curl("through", "/seen", version, "--interface", VISITOR_ADDRESS, *forged())
        told = {name: seen_headers(page, name) for name in ("x-forwarded-host", "x-forwarded-proto")}
        expect.equal(
            f"{version}: the app hears what was asked for",
            told,
            {"x-forwarded-host": [f"{scene.host('through')}:{scene.port}"], "x-forwarded-proto": ["https"]},
        )
        # The agent knows the visitor's address from the edge, and believes nobody else about it.
        said = [seen_headers(page, name) for name in ("x-forwarded-for", "forwarded", "inkbox-forwarded-for")]
        wanted = [[VISITOR_ADDRESS], [f"for={VISITOR_ADDRESS}"], []]
        expect.equal(f"{version}: and nothing that the visitor made up", said, wanted)
        page = scene.curl("through", "/gzip-if-asked", version, "--header", "accept-encoding: gzip")
        expect.equal(f"{version}: gzip is the app's and the visitor's", gzip.decompress(page.body), PLAIN)
        paths_are_verbatim(scene, "through", version)
        methods_and_statuses(scene, "through", version)
    crumbs_and_repeats(scene, "through")
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        pages = list(pool.map(lambda number: scene.fetch("through", path=f"/large/{1000 + number}"), range(20)))
    answers = [(each.status, each.body == filler(1000 + number)) for number, each in enumerate(pages)]
    expect.equal("20 connections at once are served", answers, [(200, True)] * 20)
    connection = scene.connection("through")
    with contextlib.closing(connection):
        answers = []
        for number in range(10):
            connection.request("POST", "/echo", filler(number))
            answers.append(connection.getresponse().read() == filler(number))
    expect.equal("one connection serves many requests", answers, [True] * 10)


def through_events(scene, app):
    for version in VERSIONS:
        path = f"/events/{version}"
        begun = time.monotonic()
        with scene.curl_process("through", path, version, "--no-buffer") as events:
            first = events.stdout.readline()
            took = time.monotonic() - begun
            expect.equal(f"{version}: the first event comes", first, b"data: first\n")
            expect.that(f"{version}: while the app goes on", took < 5, took)
            app.gates[path].set()
            rest = events.stdout.read()
            expect.equal(f"{version}: then the second", rest, b"\ndata: second\n\n")
            expect.equal(f"{version}: and the end", events.wait(), 0)


def through_uploads(scene, app):
    pieces = [b"first, ", b"second, ", b"third"]
    for version in VERSIONS:
        path = f"/upload/{version}"
        with scene.curl_process("through", path, version, "--upload-file", ".", stdin=subprocess.PIPE) as upload:
            for number, piece in enumerate(pieces):
                upload.stdin.write(piece)
                upload.stdin.flush()
                sent = b"".join(pieces[: number + 1])
                until(f"{version}: {piece} reaches the app", 5, lambda sent=sent, path=path: so_far(app, path) == sent)
            upload.stdin.close()
            expect.equal(f"{version}: the app has the whole", upload.stdout.read(), b"".join(pieces))
    with scene.dial("through") as connection:
        head = f"POST /upload/sized HTTP/1.1\r\nHost: {scene.host('through')}\r\nContent-Length: 10\r\n\r\n"
        connection.sendall(head.encode() + b"first")
        until("half of a sized body reaches the app", 5, lambda: so_far(app, "/upload/sized") == b"first")
        connection.sendall(b"-half")
        expect.equal("the whole is answered", connection.recv(15), b"HTTP/1.1 200 OK")


def so_far(app, path):
    return b"".join(app.pieces[path])


def through_bodies(scene):
    up = scene.file(33 * MIB)
    for version in VERSIONS:
        page = scene.curl("through", "/seen", version, "--data-binary", f"@{up}")
        expect.equal(f"{version}: 33 MiB reach the app as sent", seen(page)["sha256"], sha256(up.read_bytes()))
    page = scene.curl("through", f"/large/{100 * MIB}", timeout=40)
    expect.equal("100 MiB reach the visitor as sent", sha256(page.body), sha256(filler(100 * MIB)))


def through_last_answers(scene):
    for size in (0, 1, 1000, 16_384, 65_537, MIB, 10 * MIB):
        for options in (["--http1.0"], ["--http1.1", "--header", "connection: close"], ["--http2"]):
            page = scene.curl("through", f"/large/{size}", *options)
            came = page.status, page.body == filler(size)
            expect.equal(f"{options}: {size} octets come though the connection ends with them", came, (200, True))
        up = scene.file(size)
        for version in VERSIONS:
            page = scene.curl("through", "/early", version, "--data-binary", f"@{up}", "--header", "expect:")
            expect.equal(f"{version}: who sends {size} octets in vain is told so", page.status, 413)
        request = f"GET /large/{size} HTTP/1.0\r\nHost: {scene.host('through')}\r\n\r\n"
        page = scene.raw("through", request.encode())
        expect.equal(f"Python: {size} octets come", (page.status, page.body == filler(size)), (200, True))


def kept(scene, app):
    scene.create("kept", "passthrough")
    state = scene.state("kept")
    key, certificate = state / "key.pem", state / "cert.pem"

    def start():
        # One that is due is served until the next one is there.
        with scene.agent("kept", app, create=False):
            is_signed = lambda: scene.served("kept") == scene.tunnel("kept")["cert_fingerprint_sha256"]
            expect.until("visitors see what was signed", 10, is_signed)
            return scene.served("kept")

    first = start()
    expect.equal("only the owner reads the key", stat.S_IMODE(key.stat().st_mode), 0o600)
    expect.equal("and looks into its directory", stat.S_IMODE(state.stat().st_mode), 0o700)
    before = key.read_bytes(), certificate.read_bytes()
    expect.equal("the next start serves the same certificate", start(), first)
    expect.equal("and leaves the files alone", (key.read_bytes(), certificate.read_bytes()), before)

    fingerprints = {first}
    other = new_key().private_bytes(*PEM).decode()
    for what, spoil in {
        "the certificate is gone": certificate.unlink,
        "the key is gone": key.unlink,
        "the certificate is rubbish": lambda: certificate.write_text("rubbish"),
        "the certificate is empty": lambda: certificate.write_text(""),
        "the key is another one": lambda: key.write_text(other),
        "two thirds of the certificate's life are over": lambda: scene.short_lived("kept", -70, 30),
        "the certificate has expired": lambda: scene.short_lived("kept", -70, -10),
        "the certificate is another host's": lambda: scene.short_lived("through", 0, 3600, into="kept"),
    }.items():
        spoil()
        fingerprint = start()
        expect.that(f"{what}: a new one is signed", fingerprint not in fingerprints, fingerprint)
        expect.equal(f"{what}: only the owner reads the key", stat.S_IMODE(key.stat().st_mode), 0o600)
        fingerprints.add(fingerprint)

    tunnel = scene.tunnel("kept")
    expect.status("the tunnel is deleted", scene.ask("DELETE", f"/api/v1/tunnels/{tunnel['id']}"), 200)
    expect.status("for good", scene.ask("DELETE", f"/api/v1/tunnels/{tunnel['id']}/force"), 200, 204)
    scene.create("kept", "passthrough")
    expect.that("a new tunnel of this name gets a new certificate", start() not in fingerprints)

    (scene.place / "file").write_text("")
    done = scene.run("connect", "kept", "--forward-to", app.url, "--state-dir", scene.place / "file" / "state")
    expect.equal("a state directory that cannot be is an error", done.returncode, 1)
    expect.that("which names it", "cannot use" in done.stderr and "file/state" in done.stderr, done.stderr)


PEM = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()


def renewed(scene, app):
    scene.create("renewed", "passthrough")
    with scene.agent("renewed", app, create=False):
        pass
    # Two thirds are over in four seconds.
    short = scene.short_lived("renewed", -60, 36)
    with scene.agent("renewed", app, create=False) as agent, Calls(partial(scene.fetch, "renewed")) as calls:
        expect.equal("the agent serves what is stored", scene.served("renewed"), short)
        connection = scene.connection("renewed")
        with contextlib.closing(connection), scene.websocket("renewed", "/websocket") as websocket:
            connection.request("GET", "/label")
            expect.equal("a connection is served", connection.getresponse().read(), b"app")
            agent.reaches("certificate-renewed", 10)
            fingerprint = scene.served("renewed")
            expect.that("new connections see a new certificate", fingerprint != short, fingerprint)
            tunnel = scene.tunnel("renewed")
            expect.equal("the one that was signed", fingerprint, tunnel["cert_fingerprint_sha256"])
            told = datetime.fromisoformat(agent.event("certificate-renewed")["not_after"])
            expires = datetime.fromisoformat(tunnel["cert_expires_at"])
            expect.that("the agent tells its end", abs(told - expires) < timedelta(seconds=2), (told, expires))
            connection.request("GET", "/label")
            expect.equal("the connection is served as before", connection.getresponse().read(), b"app")
            websocket.send("still here")
            expect.equal("the WebSocket is open as before", websocket.receive(), "still here")
        outcomes = calls.end()
        failed = [each for each in outcomes if each[0] != 200]
        expect.equal(f"none of {len(outcomes)} requests failed over the renewal", failed, [])
        expect.equal("the agent was connected all the time", agent.names.count("connected"), 1)


def secrets(scene, app):
    for tls_mode in ("edge", "passthrough"):
        name = f"secret-{tls_mode}"
        secret = scene.create(name, tls_mode)["connect_secret"]
        with scene.agent(name, app, f"--connect-secret={secret}", create=False):
            expect.equal(f"{tls_mode}: the connect secret serves", scene.fetch(name).status, 200)
            with scene.websocket(name, "/websocket") as websocket:
                websocket.send("here")
                expect.equal(f"{tls_mode}: WebSockets, too", websocket.receive(), "here")
        # A secret may begin like a flag: it is base64url.
        for wrong in (f"{secret}x", f"-{secret}"):
            with scene.start(name, app, "--connect-secret", wrong) as agent:
                agent.ends(REFUSED, f"the secret is {wrong[:1]}..{wrong[-1:]}, which is wrong")


def key_revoked(scene, app):
    created = scoped_key(scene, "revoked-agent")
    with scene.agent("revoked-agent", app, create=False, key=created["api_key"]) as agent:
        expect.equal("the agent serves with a key of its own", scene.fetch("revoked-agent").status, 200)
        done = scene.run("tunnels", "list", "--json", key=created["api_key"])
        names = [each["tunnel_name"] for each in json.loads(done.stdout)]
        expect.equal("the key sees its own tunnel only", names, ["revoked-agent"])
        revoke(scene, created)
        until("visitors get an error", 1, lambda: failure(scene, "revoked-agent"))
        agent.ends(REFUSED, "its key is revoked")


def scoped_key(scene, name):
    """A key for a new identity, whose tunnel has this name."""
    asked = {"agent_handle": name, "tunnel": {"tls_mode": "edge"}}
    answer = scene.ask("POST", "/api/v1/identities", asked)
    expect.status("the identity is made", answer, 201)
    asked = {"label": "agent", "scoped_identity_id": answer.json["id"]}
    answer = scene.ask("POST", "/api/v1/api-keys", asked)
    expect.status("a key for it is made", answer, 200, 201)
    return answer.json


def revoke(scene, created):
    answer = scene.ask("DELETE", f"/api/v1/api-keys/{created['record']['id']}")
    expect.status("the key is revoked", answer, 200)


def tunnel_deleted(scene, app):
    for tls_mode in ("edge", "passthrough"):
        name = f"deleted-{tls_mode}"
        with scene.agent(name, app, tls_mode=tls_mode) as agent:
            expect.equal("the agent serves", scene.fetch(name).status, 200)
            expect.equal("the tunnel is deleted", scene.run("tunnels", "delete", name).returncode, 0)
            until("visitors get an error", 1, lambda name=name: failure(scene, name))
            agent.ends(REFUSED, "its tunnel is deleted")


def refused_at_start(scene, app):
    created = scoped_key(scene, "early-agent")
    revoke(scene, created)
    for tls_mode in ("edge", "passthrough"):
        scene.create(f"early-{tls_mode}", tls_mode)
        expect.equal("the tunnel is deleted", scene.run("tunnels", "delete", f"early-{tls_mode}").returncode, 0)
    came = {}
    for what, name, key in (
        ("a revoked key", "early-agent", created["api_key"]),
        ("a wrong key", "early-agent", "no-such-key"),
        ("a deleted edge tunnel", "early-edge", None),
        ("a deleted passthrough tunnel", "early-passthrough", None),
        ("no such tunnel", "early-nobody", None),
    ):
        with scene.start(name, app, key=key) as agent:
            until(f"{what}: the agent ends", 10, lambda agent=agent: not agent.running)
            expect.that(f"{what}: it says why", agent.words.startswith("tunnel-agent: error: "), agent.words)
            came[what] = agent.status
    wanted = dict.fromkeys(came, REFUSED) | {"no such tunnel": 1}
    expect.equal("the exit statuses tell a refusal from a failure", came, wanted)


def taken_over(scene, tls_mode):
    name = f"taken-{tls_mode}"
    scene.create(name, tls_mode)
    call = partial(scene.fetch, name, path="/label")
    with contextlib.ExitStack() as stack:
        apps = [stack.enter_context(Application(label)) for label in ("first", "second")]
        first = stack.enter_context(scene.agent(name, apps[0], create=False))
        calls = stack.enter_context(Calls(call))
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        in_flight = pool.submit(scene.fetch, name, path="/slow/1")
        time.sleep(0.3)
        second = stack.enter_context(scene.agent(name, apps[1], create=False))
        first.ends(SUPERSEDED, "another agent has taken over")
        came = outcome(in_flight)
        time.sleep(1)
        expect.equal("the second stays", (second.running, second.names.count("connected")), (True, 1))
        expect.equal("REST tells of it", scene.tunnel(name)["currently_connected"], True)
        outcomes = calls.end()
    failed = [each for each in outcomes if each not in ((200, b"first"), (200, b"second"))]
    expect.equal(f"none of {len(outcomes)} requests failed over the takeover", failed, [])
    labels = [body.decode() for _, body in outcomes]
    expect.equal("the first served, then the second", sorted(labels), labels)
    expect.equal("both did", set(labels), {"first", "second"})
    expect.equal("the request in flight was answered", came, (200, b"at last"))


def outcome(future):
    """What a request came to: status and body, or its error."""
    try:
        page = future.result()
    except NO_ANSWER as error:
        return f"{type(error).__name__}: {error}"
    return page.status, page.body


def signals(scene, app):
    scene.create("signals")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        with scene.agent("signals", app, create=False) as agent:
            agent.signal(number)
            agent.ends(0, number.name)
        until("REST tells that it left", 5, lambda: not scene.tunnel("signals")["currently_connected"])
        page = scene.fetch("signals")
        expect.equal("nobody serves", (page.status, page.first("inkbox-reason")), (503, "agent-offline"))


    with scene.agent("signals", app, create=False) as agent, concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow = pool.submit(scene.fetch, "signals", path="/slow/8")
        time.sleep(0.5)
        agent.signal(signal.SIGINT)
        time.sleep(0.5)
        expect.that("what is in progress is waited for", agent.running)
        begun = time.monotonic()
        agent.signal(signal.SIGINT)
        until("unless the signal comes twice", 2, lambda: not agent.running)
        expect.equal("which the exit status tells", agent.status, 130)
        expect.that("and at once", time.monotonic() - begun < 2)
        expect.that("the request is lost", outcome(slow)[0] != 200)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        # Whoever connects waits for a handshake that does not come.
        with scene.start("signals", app, "--edge", f"127.0.0.1:{port}", at=["--server", scene.server.url]) as agent:
            agent.reaches("connecting", 5)
            time.sleep(0.3)
            agent.signal(signal.SIGINT)
            until("a signal is heard while the edge is dialled", 1, lambda: not agent.running)
            expect.equal("which is no failure", agent.status, 0)


def unread(scene, app):
    scene.create("unread")
    words = ["connect", "unread", "--forward-to", app.url, "--server", scene.server.url]
    words += ["--edge", f"127.0.0.1:{scene.port}", "--ca", scene.root]
    for flags in (["--json"], []):
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = scene.environment(scene.server.key)
        with subprocess.Popen([scene.binary, *words, *flags], env=environment, cwd=scene.place, **pipe) as process:
            until("it is connected", 10, lambda: scene.tunnel("unread")["currently_connected"])
            time.sleep(0.2)
            connection = scene.connection("unread")
            statuses = set()
            with contextlib.closing(connection):
                for _ in range(3000):
                    connection.request("GET", "/label")
                    answer = connection.getresponse()
                    answer.read()
                    statuses.add(answer.status)
            expect.equal(f"{flags}: an agent whose words nobody reads serves on", statuses, {200})
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=10)
            expect.equal(f"{flags}: and ends when it is told", process.returncode, 0)
            lines = (out or err).decode().splitlines()
            counted = [each for each in lines if "not-shown" in each or "not shown" in each]
            expect.that(f"{flags}: what did not fit is counted", counted, lines[-3:])
        until("it has left", 5, lambda: not scene.tunnel("unread")["currently_connected"])


class Proxy:
    """An HTTP proxy that joins whoever asks with one port of this machine."""

    def __init__(self, port):
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://user:pass%20word@127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            near, _ = self._listener.accept()
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += near.recv(1)
            self.asked.append(head.decode())
            target = head.split()[1].rpartition(b":")[2]
            far = socket.create_connection(("127.0.0.1", int(target)))
            near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=pair, daemon=True).start()

    @staticmethod
    def _copy(source, target):
        with contextlib.suppress(OSError):
            while octets := source.recv(65536):
                target.sendall(octets)
            target.shutdown(socket.SHUT_WR)


def through_proxies(scene, app):
    proxy = Proxy(scene.port)
    with scene.agent("proxied", app, "--proxy", proxy.url):
        expect.equal("an agent serves through a proxy", scene.fetch("proxied").status, 200)
    ports = [each.split()[1].rpartition(":")[2] for each in proxy.asked]
    expect.that("edge and API were dialled through it", str(scene.port) in ports and len(set(ports)) == 2, ports)
    expect.that("with user and password", all("Basic dXNlcjpwYXNzIHdvcmQ=" in each for each in proxy.asked))
    proxy.asked.clear()
    os.environ["HTTPS_PROXY"] = proxy.url
    try:
        with scene.agent("proxied", app, create=False):
            expect.equal("this machine is dialled directly", (scene.fetch("proxied").status, proxy.asked), (200, []))
    finally:
        del os.environ["HTTPS_PROXY"]
    done = scene.run("tunnels", "list", "--proxy", "https://127.0.0.1:1")
    expect.that("a proxy of another kind is an error", done.returncode == 1 and "socks5" in done.stderr, done.stderr)


def json_lines(scene, app):
    with scene.agent("lines", app) as agent:
        expect.equal("it connects, then is connected", agent.names, ["connecting", "connected"])
        expected = {
            "event": "connected",
            "url": f"{scene.url('lines')}/",
            "tls_mode": "edge",
            "forward_to": f"{app.url}/",
        }
        expect.equal("it tells what visitors call", agent.event("connected"), expected)
        expect.equal("they do", fetch_url(scene, agent.event("connected")["url"]).status, 404)
        agent.reaches("served", 5)
        served = agent.event("served")
        told = served["method"], served["path"], served["status"]
        expect.equal("it tells of each request", told, ("GET", "/", 404))
        scene.fetch("lines", path="/label?code=OAUTHCODE")
        until("of the next one, too", 5, lambda: agent.names.count("served") == 2)
        expect.equal("but not of its query", agent.events[-1]["path"], "/label")
        expect.that("and how long it took", 0 < served["micros"] < 5_000_000, served)
    with scene.agent("lines", app, "--quiet", create=False) as agent:
        scene.fetch("lines")
        time.sleep(0.2)
        expect.equal("unless it is to be quiet", agent.names, ["connecting", "connected"])
    with scene.agent("lines", app, "--queries", create=False) as agent:
        scene.fetch("lines", path="/label?code=OAUTHCODE")
        agent.reaches("served", 5)
        expect.equal("unless it is asked to", agent.event("served")["path"], "/label?code=OAUTHCODE")
    done = scene.run("connect", "nobody", "--forward-to", app.url, "--json")
    told = json.loads(done.stdout)
    expect.equal("an error is a line, too", (done.returncode, told["event"]), (1, "error"))
    expect.that("with its words", "nobody" in told["error"], told)
    wrong = {line for each in scene.agents for line in each.other_lines}
    expect.equal(f"each line of {len(scene.agents)} agents is an object with an event", wrong, set())
    words = {each.words for each in scene.agents if each.status == 0}
    expect.equal("agents that did not fail say nothing else", words, {""})


def fetch_url(scene, url):
    return curl(scene.root, url)


def wrong_flags(scene):
    for words, status, told in (
        (["connect", "plain"], 2, "--forward-to"),
        (["connect", "plain", "--forward-to", "http://127.0.0.1:1/path"], 1, "without a path"),
        (["connect", "plain", "--forward-to", "ftp://127.0.0.1:1"], 1, "forward to a URL"),
        (["connect", "plain", "--forward-to", "http://127.0.0.1:1", "--edge", "here"], 2, "HOST:PORT"),
        (["connect", "plain", "--forward-to", "http://127.0.0.1:1", "--edge", "https://h:1"], 2, "without a scheme"),
        (["connect", "plain", "--forward-to", "http://127.0.0.1:1", "--edge", "::1:1"], 2, "[::1]:4443"),
        (["connect", "plain", "--forward-to", "http://127.0.0.1:1", "--connections", "17"], 2, "1..=16"),
        (["tunnels", "list", "--ca", "no-such-file"], 1, "no-such-file"),
        (["tunnels", "list", "--server", "http://tunnels.example"], 1, "use https"),
        (["tunnels", "list", "--server", "http://127.0.0.1:1"], 1, "cannot connect"),
        (["tunnels"], 2, "Usage"),
    ):
        done = scene.run(*words)
        expect.equal(f"{words}: the exit status", done.returncode, status)
        expect.that(f"{words}: {told!r} is said on stderr only", told in done.stderr and not done.stdout, done)
    done = scene.run("tunnels", "list", key=None)
    expect.equal("no key: the exit status", done.returncode, 1)
    expect.that("no key: which to set is said", "ADIT_API_KEY" in done.stderr, done)
    words = ["connect", "plain", "--forward-to", "http://127.0.0.1:1", "--connect-secret", "secret"]
    done = scene.run(*words, key=None)
    expect.that("a secret alone: why it is not enough is said", "opens the edge only" in done.stderr, done)
    environment = scene.environment(scene.server.key)
    del environment["HOME"]
    environment.pop("XDG_STATE_HOME", None)
    command = [scene.binary, "connect", "through", "--forward-to", "http://127.0.0.1:1", "--server", scene.server.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=15)
    expect.that("no HOME: what to say instead is said", done.returncode == 1 and "--state-dir" in done.stderr, done)


def commands(scene):
    done = scene.run("tunnels", "create", "made", "--description", "grüße")
    expect.equal("create", done.returncode, 0)
    expect.that("create shows where it is", f"https://{scene.host('made')}/" in done.stdout, done.stdout)
    secret = done.stdout.strip().rpartition(" ")[2]
    expect.that("create shows the secret", "connect secret" in done.stdout and len(secret) > 30, done.stdout)
    created = scene.json("tunnels", "create", "through-made", "--tls-mode", "passthrough")
    expect.equal("create --json", sorted(created), ["connect_secret", "tunnel"])
    expect.equal("is what REST shows", created["tunnel"], scene.tunnel("through-made"))

    expect.equal("show --json is what REST shows", scene.json("tunnels", "show", "made"), scene.tunnel("made"))
    expect.equal("with the description", scene.tunnel("made")["description"], "grüße")
    by_id = scene.json("tunnels", "show", created["tunnel"]["id"])
    expect.equal("an id is as good as a name", by_id, scene.tunnel("through-made"))
    listed = scene.json("tunnels", "list")
    wanted = scene.ask("GET", "/api/v1/tunnels").json["tunnels"]
    expect.equal("list --json is what REST lists", [t["id"] for t in listed], [t["id"] for t in wanted[: len(listed)]])
    lines = scene.run("tunnels", "list").stdout.splitlines()
    # Other checks make tunnels meanwhile.
    names = [line.split()[0] for line in lines]
    expect.equal("list has a line for each", [t["tunnel_name"] for t in listed], names[: len(listed)])
    (line,) = [line for line in lines if line.startswith("plain ")]
    expect.equal("a line", line.split(), ["plain", "edge", "active", "online", f"https://{scene.host('plain')}/"])

    updated = scene.json("tunnels", "update", "made", "--description", "new words")
    expect.equal("update --json", updated["description"], "new words")
    expect.equal("update", scene.run("tunnels", "update", "made", "--description", "").returncode, 0)
    expect.equal("clears the description", scene.tunnel("made")["description"], None)

    expect.equal("delete --json", scene.json("tunnels", "delete", "made")["status"], "delete_pending")
    expect.equal("restore --json", scene.json("tunnels", "restore", "made")["status"], "active")
    for command, status in (("delete", "delete_pending"), ("restore", "active"), ("show", "active")):
        done = scene.run("tunnels", command, "made")
        expect.equal(command, (done.returncode, done.stdout.split()[:3]), (0, ["made", "edge", status]))

    request = new_csr(new_key(), scene.host("through-made"))
    path = scene.place / "request.pem"
    path.write_text(request)
    for what, file in (("a file", path), ("standard input", "-")):
        done = scene.run("tunnels", "sign-csr", "through-made", file, stdin=request)
        chain = x509.load_pem_x509_certificates(done.stdout.encode())
        expect.equal(f"sign-csr of {what} prints leaf and chain", (done.returncode, len(chain)), (0, 2))
        fingerprint = chain[0].fingerprint(hashes.SHA256()).hex()
        expect.equal("the one that REST tells of", fingerprint, scene.tunnel("through-made")["cert_fingerprint_sha256"])
        chain[0].verify_directly_issued_by(chain[1])

    for words, told in {
        ("show", "nobody"): '"nobody"',
        ("update", "nobody", "--description", "x"): '"nobody"',
        ("delete", "nobody"): '"nobody"',
        ("restore", "nobody"): '"nobody"',
        ("sign-csr", "nobody", str(path)): '"nobody"',
        ("sign-csr", "made", str(path)): "passthrough",
        ("sign-csr", "through-made", "no-such-file"): "no-such-file",
        ("create", "made"): "taken",
        ("create", "Not_A_Name"): "lower-case",
        ("restore", "made"): "delete it first",
    }.items():
        for options in ([], ["--json"]):
            done = scene.run("tunnels", *words, *options)
            expect.equal(f"{words} {options}: the exit status", (done.returncode, done.stdout), (1, ""))
            expect.that(f"{words} {options}: {told} is said", told in done.stderr, done.stderr)
    done = scene.run("tunnels", "list", key="wrong")
    expect.that("a wrong key is refused", done.returncode != 0 and "401" in done.stderr, done)


def rest_at_the_edge(scene, app):
    url = f"https://{ZONE}:{scene.port}"
    done = scene.run("tunnels", "list", "--json", "--server", url, "--ca", scene.root)
    expect.equal("the edge answers REST", done.returncode, 0)
    # Other tunnels come and go meanwhile.
    tunnels = (json.loads(done.stdout), scene.ask("GET", "/api/v1/tunnels").json["tunnels"])
    here, there = ([each for each in listed if each["tunnel_name"] in ("plain", "through")] for listed in tunnels)
    expect.equal("as the plain port does", here, there)
    done = scene.run("tunnels", "list", "--server", url)
    expect.equal("who does not know the root does not trust", done.returncode, 1)
    expect.that("and says why", "certificate" in done.stderr, done.stderr)
    # No `--edge`: it is where REST is.
    for tls_mode in ("edge", "passthrough"):
        with scene.agent(f"one-{tls_mode}", app, tls_mode=tls_mode, at=["--server", url]):
            expect.equal(f"{tls_mode}: one address does for all", scene.fetch(f"one-{tls_mode}").status, 200)


def server_restarts(new_scene, app, tls_mode):
    with contextlib.ExitStack() as stack:
        scene = stack.enter_context(new_scene())
        agent = stack.enter_context(scene.agent("again", app, tls_mode=tls_mode))
        calls = stack.enter_context(Calls(partial(scene.fetch, "again", path="/label")))
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        if tls_mode == "edge":
            websocket = stack.enter_context(scene.websocket("again", "/websocket"))
        # Three times, for what does not happen every time.
        for _ in range(3):
            in_flight = pool.submit(scene.fetch, "again", path="/slow/1")
            time.sleep(0.3)
            before = len(calls.outcomes)
            expect.equal("SIGTERM ends the server with 0", scene.server.stop(), 0)
            scene.server.start()
            expect.equal("the request in flight is answered", outcome(in_flight), (200, b"at last"))
            until("requests are answered again", 8, lambda before=before: len(calls.outcomes) > before + 5)
        time.sleep(1)
        outcomes = calls.end()
        failed = [each for each in outcomes if each != (200, b"app")]
        expect.equal(f"none of {len(outcomes)} requests failed over the restarts", failed, [])
        if tls_mode == "edge":
            expect.one_of("a WebSocket ends with a Close", ends(websocket), 1001, 1012)
        expect.equal("REST tells that the agent is connected", scene.tunnel("again")["currently_connected"], True)
        told = [event for event in agent.names if event != "served"]
        wanted = ["connecting", "connected", *["draining", "connected"] * 3]
        expect.equal("the agent handed over each time", told, wanted)


def server_killed(new_scene, app):
    with contextlib.ExitStack() as stack:
        scene = stack.enter_context(new_scene())
        agents = [stack.enter_context(scene.agent(mode, app, tls_mode=mode)) for mode in ("edge", "passthrough")]
        scene.server.kill9()
        scene.server.start()
        for name, agent in zip(("edge", "passthrough"), agents, strict=True):
            until("the agent comes back by itself", 10, lambda name=name: not failure(scene, name))
            expect.equal("REST tells that it is connected", scene.tunnel(name)["currently_connected"], True)
            expect.that("it says so", "reconnecting" in agent.names, agent.names)


def still_connected(*agents):
    for agent in agents:
        told = [name for name in agent.names if name not in ("served", "upstream-failed")]
        expect.equal("it was connected all the time", told, ["connecting", "connected"])


def failure(scene, name):
    """What a visitor meets, or None when all is well."""
    try:
        page = scene.fetch(name, timeout=5)
    except NO_ANSWER as error:
        return error
    return None if page.status < 400 else page


def seen(page):
    """What the app wrote about the request that it got."""
    expect.equal("the request is answered", page.status, 200)
    return json.loads(page.body)


def seen_headers(page, name):
    return [value for each, value in seen(page)["headers"] if each == name]


def authority(app):
    return app.url.removeprefix("http://")


class Scene:
    """A server, its visitors and its agents."""

    def __init__(self, options, place, listener=None, **settings):
        self.place = pathlib.Path(tempfile.mkdtemp(dir=place))
        self.zone = settings.get("zone", ZONE)
        # The socket outlives the servers that take it, so visitors wait while there is none.
        self._socket = listener or socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self._socket.getsockname()[1]
        self.server = Server(options.server, edge_socket=self._socket, **settings)
        self.binary = pathlib.Path(options.agent).resolve()
        self.agents = []

    def __enter__(self):
        self.server.__enter__()
        self.root = str(self.server.root_certificate)
        self._trust = trust(self.root)
        return self

    def __exit__(self, *error):
        self.server.__exit__(*error)
        self._socket.close()

    def ask(self, *request):
        return self.server.ask(*request)

    def host(self, name):
        return f"{name}.{self.zone}"

    def url(self, name):
        return f"https://{self.host(name)}:{self.port}"

    def create(self, name, tls_mode="edge"):
        answer = self.ask("POST", "/api/v1/tunnels", {"tunnel_name": name, "tls_mode": tls_mode})
        expect.status(f"the tunnel {name} is made", answer, 201)
        return answer.json

    def tunnel(self, name):
        listed = self.ask("GET", "/api/v1/tunnels").json["tunnels"]
        (tunnel,) = [each for each in listed if each["tunnel_name"] == name]
        return tunnel

    @contextlib.contextmanager
    def agent(self, name, app, *flags, create=True, tls_mode="edge", **more):
        """A connected agent, with a tunnel made for it unless that is there already."""
        if create:
            self.create(name, tls_mode)
        with self.start(name, app, *flags, **more) as agent:
            agent.reaches("connected", 15)
            yield agent
            if agent.running:
                agent.signal(signal.SIGTERM)
                agent.ends(0, "it is asked to")

    def start(self, name, app, *flags, key=None, at=None, ca=None, variables=None):
        """An agent that may get anywhere."""
        at = at or ["--server", self.server.url, "--edge", f"127.0.0.1:{self.port}"]
        words = ["connect", name, "--forward-to", app.url, *at, "--ca", ca or self.root, "--json"]
        words += ["--state-dir", self.state(name), *flags]
        environment = {**self.environment(key or self.server.key), **(variables or {})}
        agent = Agent([self.binary, *words], environment, self.place, name)
        self.agents.append(agent)
        return agent

    def run(self, *words, key="", stdin=None):
        """A command that ends by itself."""
        command = [self.binary, *words]
        if "--server" not in words:
            command += ["--server", self.server.url]
        key = self.server.key if key == "" else key
        return subprocess.run(
            command,
            input=stdin or "",
            capture_output=True,
            text=True,
            check=False,
            env=self.environment(key),
            cwd=self.place,
            timeout=15,
        )

    def json(self, *words):
        done = self.run(*words, "--json")
        expect.equal(f"{words} --json succeeds", (done.returncode, done.stderr), (0, ""))
        return json.loads(done.stdout)

    def environment(self, key):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ADIT_")}
        return {**inherited, "HOME": str(self.place), **({"ADIT_API_KEY": key} if key else {})}

    def state(self, name):
        return self.place / f"state-{name}"

    def short_lived(self, name, begins, ends, into=None):
        """Stores a certificate that is good from and until so many seconds from now; its fingerprint."""
        authority = self.server.data_dir / "ca"
        issuer = x509.load_pem_x509_certificate((authority / "issuing.crt").read_bytes())
        signer = serialization.load_pem_private_key((authority / "issuing.key").read_bytes(), None)
        key, now = new_key(), datetime.now(UTC)
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(seconds=begins))
            .not_valid_after(now + timedelta(seconds=ends))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(self.host(name))]), critical=True)
            .sign(signer, hashes.SHA256())
        )
        state = self.state(into or name)
        state.joinpath("key.pem").write_bytes(key.private_bytes(*PEM))
        chain = [each.public_bytes(serialization.Encoding.PEM) for each in (leaf, issuer)]
        state.joinpath("cert.pem").write_bytes(b"".join(chain))
        return leaf.fingerprint(hashes.SHA256()).hex()

    def served(self, name):
        """The fingerprint of the certificate that a visitor meets, once it is verified."""
        with self.dial(name) as connection:
            return sha256(connection.getpeercert(binary_form=True))

    def dial(self, name):
        return dial(self._trust, self.host(name), port=self.port)

    def connection(self, name):
        connection = http.client.HTTPSConnection(self.host(name), self.port, context=self._trust)
        connection.sock = self.dial(name)
        return connection

    def resolve(self, name):
        return ["--resolve", f"{self.host(name)}:{self.port}:127.0.0.1"]

    def curl(self, name, path, *options, **more):
        return curl(self.root, f"{self.url(name)}{path}", *self.resolve(name), *options, **more)

    def curl_process(self, name, path, *options, stdin=subprocess.DEVNULL):
        command = [
            "curl",
            "--silent",
            "--no-progress-meter",
            "--max-time",
            "20",
            "--cacert",
            self.root,
            *self.resolve(name),
        ]
        return subprocess.Popen([*command, *options, f"{self.url(name)}{path}"], stdin=stdin, stdout=subprocess.PIPE)

    def fetch(self, name, method="GET", path="/seen", **more):
        return fetch(self._trust, self.host(name), method, path, port=self.port, **more)

    def raw(self, name, request):
        return raw(self._trust, self.host(name), request, self.port)

    def websocket(self, name, path, subprotocols=()):
        return WebSocket(self._trust, self.host(name), path, subprotocols, port=self.port)

    def file(self, length):
        path = self.place / f"{length}-octets"
        if not path.exists():
            path.write_bytes(filler(length))
        return path


class Agent:
    """A process of the agent, seen from outside."""

    def __init__(self, command, environment, place, name):
        self.events = []
        # What stands on its standard output and should not.
        self.other_lines = []
        self._name = name
        self._log = place / f"{name}-{time.monotonic_ns()}.log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=place,
                text=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, error_class, *_error):
        if self.running:
            self._process.kill()
            self._process.wait()
        if error_class is not None:
            told = [event for event in self.events if event["event"] != "served"][-30:]
            print(f"--- {self._name}: exit status {self.status}", *told, self.words, "---", sep="\n", flush=True)

    def _read(self):
        for line in self._process.stdout:
            try:
                event = json.loads(line)
                event["event"].upper()
                self.events.append(event)
            except (ValueError, TypeError, KeyError, AttributeError):
                self.other_lines.append(line)

    @property
    def names(self):
        return [event["event"] for event in self.events]

    def event(self, name):
        return next(event for event in self.events if event["event"] == name)

    @property
    def pid(self):
        return self._process.pid

    @property
    def running(self):
        return self._process.poll() is None

    @property
    def status(self):
        return self._process.returncode

    @property
    def words(self):
        return self._log.read_text(errors="replace")

    def reaches(self, name, within):
        until(f"the agent of {self._name} is {name}, or ends", within, lambda: name in self.names or not self.running)
        expect.that(f"the agent of {self._name} is {name}", name in self.names, self.words)

    def signal(self, number):
        self._process.send_signal(number)

    def ends(self, status, why):
        until(f"the agent of {self._name} ends when {why}", 10, lambda: not self.running)
        self._reader.join(5)
        expect.equal(f"its exit status when {why}", self.status, status)
        if status:
            expect.that("it says why", self.words.startswith("tunnel-agent: error: "), self.words)


if __name__ == "__main__":
    expect.run(main)
