"""Judges the data plane by agents of the published, unmodified Inkbox SDK for Python.

Starts servers and agents, calls the agents' public hosts with curl, Python's
ssl and a WebSocket client, and expects what an application behind a tunnel and
its visitors may expect. Runs with 0.4.6, the oldest published version, and with
0.7.20; what came later than 0.4.6 is asked of 0.7.20 only.

These agents dial port 443 of their zone, so the script runs itself again in a
network namespace of its own, which needs root and `ip`.

    new/bin/python sdk_agent.py --server ../target/release/api-server
"""

import asyncio
import concurrent.futures
import contextlib
import gzip
import importlib.metadata
import json
import logging
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial

import inkbox
from inkbox.tunnels.client import connect

import expect
import netns
from application import MIB, PLAIN, Application, filler, sha256
from expect import until
from server import Server, arguments
from visitor import NO_ANSWER, PING, PONG, TEXT, Calls, Ended, WebSocket, curl, dial, ends, fetch, raw, trust

VERSION = tuple(int(part) for part in importlib.metadata.version("inkbox").split("."))
HANDS_OVER = VERSION >= (0, 4, 8)
KNOWS_TAKEOVER = VERSION >= (0, 4, 18)

ZONE, RESTARTED_ZONE = "tun.test", "again.test"
ADDRESS, RESTARTED_ADDRESS = "127.0.0.1", "127.0.0.2"
NAMES = ("callable", "url", "pass", "offline", "stopped", "killed", "deleted", "revoked", "taken", "named", "renamed")
HOSTS = {
    ADDRESS: [ZONE, *(f"{name}-agent.{ZONE}" for name in NAMES)],
    RESTARTED_ADDRESS: [RESTARTED_ZONE, f"callable-agent.{RESTARTED_ZONE}"],
}
VISITOR_ADDRESS = "127.0.0.7"


def main():
    options = arguments(__doc__).parse_args()
    netns.enter(HOSTS)
    print(f"inkbox {'.'.join(map(str, VERSION))}", flush=True)
    with contextlib.ExitStack() as stack:
        beside = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        place = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adit-interop-")))
        scene = stack.enter_context(Scene(options.server, place, ZONE, ADDRESS))
        again = stack.enter_context(Scene(options.server, place, RESTARTED_ZONE, RESTARTED_ADDRESS))
        upstream = stack.enter_context(Application())
        agent = stack.enter_context(scene.agent("callable"))
        # Takes half a minute, so it runs beside the others.
        stalled = beside.submit(stalls, scene)
        checks = [
            ("requests", partial(requests, scene)),
            ("bodies", partial(bodies, scene)),
            ("headers", partial(headers, scene, agent)),
            ("many requests at once", partial(many_at_once, scene)),
            ("WebSocket messages", partial(websocket_messages, scene)),
            ("WebSocket closes", partial(websocket_closes, scene)),
            ("WebSocket messages too large", partial(websocket_too_large, scene, agent)),
            ("no agent", partial(nobody_there, scene)),
            ("REST tells who is connected", partial(rest_tells, scene)),
            ("an agent is killed", partial(agent_killed, scene)),
            ("an upstream at a URL", partial(url_upstream, scene, upstream)),
            ("passthrough", partial(passthrough, scene, upstream)),
            ("an identity is renamed", partial(identity_renamed, scene)),
            ("an identity is deleted", partial(identity_deleted, scene)),
            ("a key is revoked", partial(key_revoked, scene)),
            ("the server restarts", partial(server_restarts, again)),
            ("the server is killed", partial(server_killed, again)),
            ("an app that stalls", stalled.result),
            ("all that left the first agent connected", partial(still_connected, agent)),
        ]
        if KNOWS_TAKEOVER:
            checks.insert(0, ("a second client takes over", partial(taken_over, scene)))
        expect.each(checks)


def requests(scene):
    host = scene.host("callable")
    for version in ("--http1.1", "--http2"):
        wanted = {"--http1.1": "1.1", "--http2": "2"}[version]
        page = scene.curl("callable", "/seen", version)
        expect.equal(f"{version}: GET is answered", page.status, 200)
        expect.equal(f"{version}: in that version", page.http_version, wanted)
        expect.equal(f"{version}: the app sees the method", seen(page)["method"], "GET")
        expect.equal(f"{version}: the app sees the public host", seen_headers(page, "host"), [host])

        page = scene.curl("callable", "/echo", version, "--data-binary", "sent to here")
        expect.equal(
            f"{version}: POST is answered with what was sent", (page.status, page.body), (200, b"sent to here")
        )
        expect.equal(f"{version}: the reply has its length", page.all("content-length"), ["12"])

        # curl's output for `--head` is the head.
        page = scene.curl("callable", "/seen", version, "--head")
        expect.equal(f"{version}: HEAD is answered", page.status, 200)
        expect.equal(f"{version}: nobody knows the length of what HEAD left out", page.all("content-length"), [])

        page = scene.curl("callable", "/nothing", version)
        expect.equal(f"{version}: 204 has no body", (page.status, page.body), (204, b""))
        expect.equal(f"{version}: and no length", page.all("content-length") + page.all("transfer-encoding"), [])

        for path in ("/seen/%7Euser/a%20b?a=%2f%20b+c&d=%C3%BC&&e=1;f=?/&g=", "/seen?", "/seen"):
            page = scene.curl("callable", path, version)
            expect.equal(f"{version}: the path and the query are verbatim", seen(page)["target"], path.rstrip("?"))
        for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"):
            page = scene.curl("callable", "/seen", version, "--request", method)
            expect.equal(f"{version}: {method} reaches the app", seen(page)["method"], method)
        page = scene.curl("callable", "/status/418", version)
        expect.equal(f"{version}: the app's status is the visitor's", page.status, 418)
    page = raw(scene.trust, host, b"HEAD /seen HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host.encode())
    expect.equal("nothing follows the head that answers HEAD", (page.status, page.body), (200, b""))


def bodies(scene):
    up, above = scene.file("up", 8 * MIB), scene.file("above", 33 * MIB)
    for version in ("--http1.1", "--http2"):
        for chunked in ([], ["--header", "transfer-encoding: chunked"] if version == "--http1.1" else []):
            page = scene.curl("callable", "/seen", version, "--data-binary", f"@{up}", *chunked)
            expect.equal(f"{version} {chunked}: 8 MiB reach the app", seen(page)["length"], 8 * MIB)
            expect.equal(f"{version} {chunked}: as they were sent", seen(page)["sha256"], sha256(up.read_bytes()))
        page = scene.curl("callable", f"/large/{20 * MIB}", version)
        expect.equal(f"{version}: 20 MiB reach the visitor", len(page.body), 20 * MIB)
        expect.equal(f"{version}: as the app sent them", sha256(page.body), sha256(filler(20 * MIB)))
        # With `expect:` curl asks before it sends, without it sends on and must still read the answer.
        for asks in ([], ["--header", "expect:"]):
            page = scene.curl("callable", "/seen", version, "--data-binary", f"@{above}", *asks)
            expect.equal(f"{version} {asks}: 33 MiB are too many", page.status, 413)
    page = scene.curl(
        "callable", "/seen", "--http1.1", "--data-binary", f"@{above}", "--header", "transfer-encoding: chunked"
    )
    expect.equal("33 MiB are too many without a length, too", page.status, 413)
    page = scene.curl("callable", f"/large/{33 * MIB}")
    expect.equal("so are 33 MiB from the app", page.status, 502)


def headers(scene, agent):
    host = scene.host("callable")
    for version in ("--http1.1", "--http2"):
        page = scene.curl("callable", "/cookies", version)
        expect.equal(f"{version}: two Set-Cookie stay two", page.all("set-cookie"), ["a=1; Path=/", "b=2; Path=/"])

        forged = ["--header", "x-forwarded-for: 6.6.6.6", "--header", "forwarded: for=6.6.6.6"]
        forged += ["--header", "inkbox-forwarded-for: 6.6.6.6", "--header", "inkbox-request-id: forged"]
        page = scene.curl("callable", "/seen", version, "--interface", VISITOR_ADDRESS, *forged)
        expect.equal(f"{version}: one X-Forwarded-For", seen_headers(page, "x-forwarded-for"), [VISITOR_ADDRESS])
        expect.equal(f"{version}: one Forwarded", seen_headers(page, "forwarded"), [f"for={VISITOR_ADDRESS}"])
        expect.equal(f"{version}: the app's client is the visitor", seen(page)["client"], VISITOR_ADDRESS)

        many = header_options(100)
        page = scene.curl("callable", "/seen", version, *many)
        expect.equal(f"{version}: 100 header fields pass", page.status, 200)
        got = [seen_headers(page, f"x-{number}") for number in range(100)]
        expect.equal(f"{version}: each with its value", got, [[str(number)] for number in range(100)])
        page = scene.curl("callable", "/seen", version, *header_options(125))
        expect.equal(f"{version}: 125 are too many", page.status, 431)
        served_as_before(scene, agent, f"{version}, 125 header fields")

    crumbs = ["--header", "cookie: a=1", "--header", "cookie: b=2", "--header", "cookie: c=3"]
    page = scene.curl("callable", "/seen", "--http2", *crumbs)
    expect.equal("several Cookie fields become one", seen_headers(page, "cookie"), ["a=1; b=2; c=3"])
    twice = ["--header", "x-twice: 1", "--header", "x-twice: 2"]
    page = scene.curl("callable", "/seen", "--http1.1", *twice)
    expect.equal("other repeats stay, in order", seen_headers(page, "x-twice"), ["1", "2"])

    for value in (b"caf\xe9", b"\xff\xfe", b"\xc3\xbc", b"\ttab\tand blank ", b""):
        request = b"GET /seen HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nX-Odd: %s\r\n\r\n" % (host.encode(), value)
        page = raw(scene.trust, host, request)
        expect.one_of(f"the header value {value} is taken or refused", page.status, 200, 400)
        served_as_before(scene, agent, f"the header value {value}")


def header_options(count):
    return [word for number in range(count) for word in ("--header", f"x-{number}: {number}")]


def many_at_once(scene):
    def echo(number):
        sent = filler(10_000 + number)
        page = fetch(scene.trust, scene.host("callable"), "POST", "/echo", sent)
        return page.status, page.body == sent

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(echo, range(50)))
    expect.equal("50 connections at once are answered with what each sent", answers, [(200, True)] * 50)

    urls = [f"https://{scene.host('callable')}/status/{200 + number}" for number in range(50)]
    command = ["curl", "--silent", "--http2", "--parallel", "--parallel-max", "50", "--max-time", "20"]
    command += ["--cacert", scene.root, "--write-out", "%{http_code} %{num_connects}\n"]
    command += [word for url in urls for word in ("--output", "/dev/null", url)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.split() for line in done.stdout.splitlines()]
    codes = sorted(int(code) for code, _ in lines)
    expect.equal("50 HTTP/2 requests at once are answered, each with its own", codes, list(range(200, 250)))
    expect.that("over few connections", sum(int(connects) for _, connects in lines) <= 5, done.stdout)


def websocket_messages(scene):
    with scene.websocket("callable", "/echo", ("first", "second")) as websocket:
        expect.equal("the WebSocket opens", websocket.status, 101)
        expect.equal("the app chooses the subprotocol", websocket.subprotocol, "second")
        expect.equal("the app's headers come along", websocket.headers.get("x-app"), "1")
        expect.equal("no extension is agreed on", websocket.headers.get("sec-websocket-extensions"), None)
        for message in ("text", "", "grüße ✓ \U0001f600", '"\\\n\x00', b"\x00\xff\x80 binary", b""):
            websocket.send(message)
            expect.equal(f"{message!r} comes back", websocket.receive(), message)

        text = "grüße".encode()
        websocket.send_frame(TEXT, text[:3], final=False)
        websocket.send_frame(PING, b"between")
        websocket.send_frame(0, text[3:4], final=False)
        websocket.send_frame(0, text[4:], final=True)
        expect.equal("a ping between fragments is answered", websocket.receive(), (PONG, b"between"))
        expect.equal("fragments come back as one message", websocket.receive(), "grüße")

        # What fits an agent's window in any case, as text and as base64.
        for message in ("t" * 24 * 1024, "t" * 32_730, filler(24_540)):
            websocket.send(message)
            got = websocket.receive()
            expect.that(f"{len(message)} octets of {type(message).__name__} come back", got == message, got)
        # Two on their way at any time, so that windows run dry and fill again.
        messages = [filler(24_000 - number) for number in range(60)]
        websocket.send(messages[0])
        for each, following in zip(messages, [*messages[1:], b"last"], strict=True):
            websocket.send(following)
            expect.that("message after message comes back", websocket.receive() == each)
        expect.equal("the last one, too", websocket.receive(), b"last")
        websocket.send("large")
        expect.equal("the app may send 1 MiB", len(websocket.receive()), MIB)
        websocket.send_close(1000)
        expect.equal("the Close is answered", websocket.closed()[0], 1000)

    with scene.websocket("callable", "/echo?b=%20c") as websocket:
        expect.equal("none is chosen where none was offered", websocket.subprotocol, None)
        websocket.send("seen")
        view = json.loads(websocket.receive())
        expect.equal("the app sees path and query", view["target"], "/echo?b=%20c")
        expect.equal("the app sees the visitor's address", view["client"], ADDRESS)

    with contextlib.ExitStack() as stack:
        websockets = [stack.enter_context(scene.websocket("callable", "/echo")) for _ in range(20)]
        for number, each in enumerate(websockets):
            each.send(f"number {number}")
        got = [each.receive() for each in websockets]
        expect.equal("20 at once do not mix", got, [f"number {number}" for number in range(20)])


def websocket_closes(scene):
    for code, reason in ((4321, "the visitor is done"), (1000, ""), (3000, "x" * 123)):
        marker = f"/echo?{random.random()}"
        with scene.websocket("callable", marker) as websocket:
            websocket.send_close(code, reason)
            expect.equal(f"the visitor's Close {code} is answered", websocket.closed()[0], code)
            expect.raises("nothing follows", Ended, websocket.receive)
        # The SDK tells the app the code only.
        until(f"the app hears {code}", 5, lambda marker=marker, code=code: heard(scene, marker) == [code])

    marker = f"/echo?{random.random()}"
    with scene.websocket("callable", marker):
        pass
    until("the app hears that a visitor is lost", 5, lambda: heard(scene, marker) not in ([], None))

    for code, reason in ((4001, "the app is done"), (1000, ""), (1011, "grüße")):
        with scene.websocket("callable", "/close") as websocket:
            websocket.send(json.dumps([code, reason]))
            expect.equal(f"the app's Close {code} reaches the visitor", websocket.closed(), (code, reason))
            websocket.send_close(code)
            expect.raises("nothing follows", Ended, websocket.receive)

    with scene.websocket("callable", "/fail") as websocket:
        websocket.send("fail")
        expect.that("an app that fails ends the WebSocket", ends(websocket) is not None)
    with scene.websocket("callable", "/refuse") as websocket:
        expect.equal("the app may refuse", websocket.status, 403)
    page = scene.fetch("callable", path="/seen")
    expect.equal("requests are served as before", page.status, 200)


def websocket_too_large(scene, agent):
    for what, send in {
        "100 KiB": lambda each: each.send("t" * 100 * 1024),
        "1 MiB": lambda each: each.send(filler(MIB)),
        "100 KiB in fragments": in_fragments,
        "a little too much for an agent's window": lambda each: each.send("t" * 65_500),
    }.items():
        with scene.websocket("callable", "/echo") as websocket:
            with contextlib.suppress(OSError):
                # The answer may come, and the connection end, before all is sent.
                send(websocket)
            expect.equal(f"{what} are too large", websocket.closed()[0], 1009)
            expect.raises("nothing follows", Ended, websocket.receive)
        served_as_before(scene, agent, what)
    with scene.websocket("callable", "/echo") as websocket:
        websocket.send("still here")
        expect.equal("WebSockets are served as before", websocket.receive(), "still here")


def in_fragments(websocket):
    for number in range(100):
        websocket.send_frame(TEXT if number == 0 else 0, b"t" * 1024, final=number == 99)


def nobody_there(scene):
    scene.create("offline")
    page = scene.fetch("offline")
    expect.equal("without an agent there is no service", page.status, 503)
    expect.equal("and a reason", page.first("inkbox-reason"), "agent-offline")
    tunnel = scene.tunnel("offline")
    expect.equal("nobody is connected", tunnel["currently_connected"], False)
    expect.equal("nobody ever was", (tunnel["last_connected_at"], tunnel["last_connected_ip_addr"]), (None, None))


def rest_tells(scene):
    before = datetime.now(UTC)
    with scene.agent("stopped") as agent:
        tunnel = scene.tunnel("stopped")
        expect.equal("the agent is connected", tunnel["currently_connected"], True)
        # The record is written beside the greeting, not before it.
        until("REST tells since when", 5, lambda: scene.tunnel("stopped")["last_connected_at"])
        tunnel = scene.tunnel("stopped")
        connected_at = datetime.fromisoformat(tunnel["last_connected_at"])
        second = timedelta(seconds=1)
        expect.that("since now", before - second <= connected_at <= datetime.now(UTC) + second, connected_at)
        expect.equal("from its address", tunnel["last_connected_ip_addr"], ADDRESS)
        expect.equal("it never disconnected", tunnel["last_disconnected_at"], None)
        expect.equal("it serves", scene.fetch("stopped").status, 200)
        agent.stop()
        until("REST tells that it left", 5, lambda: not scene.tunnel("stopped")["currently_connected"])
        until("and since when", 5, lambda: scene.tunnel("stopped")["last_disconnected_at"])
        tunnel = scene.tunnel("stopped")
        left_at = datetime.fromisoformat(tunnel["last_disconnected_at"])
        expect.that("it left now", connected_at <= left_at <= datetime.now(UTC) + second, tunnel)
        expect.equal("it was connected when it was", datetime.fromisoformat(tunnel["last_connected_at"]), connected_at)
        page = scene.fetch("stopped")
        expect.equal("nobody serves", (page.status, page.first("inkbox-reason")), (503, "agent-offline"))


def agent_killed(scene):
    with scene.agent("killed") as agent, scene.websocket("killed", "/echo") as websocket:
        websocket.send("here")
        expect.equal("the WebSocket is open", websocket.receive(), "here")
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(scene.fetch, "killed", path="/slow/20")
            time.sleep(0.3)
            killed_at = time.monotonic()
            agent.kill9()
            end = ends(websocket)
            expect.that("the WebSocket ends at once", time.monotonic() - killed_at < 5, end)
            expect.one_of("as lost", end, 1011, 1012, "lost")
            page = waiting.result()
            # Some agents bring their replies when they come back: the server gives them 5 s.
            expect.that("so does a request in flight, soon", time.monotonic() - killed_at < 8, page)
            expect.one_of("with an error", page.status, 502, 503, 504)
        expect.equal("nobody serves", scene.fetch("killed").status, 503)
    with scene.agent("killed", create=False):
        expect.equal("a new agent does", scene.fetch("killed").status, 200)


def url_upstream(scene, upstream):
    with scene.agent("url", upstream.url) as agent:
        for version in ("--http1.1", "--http2"):
            page = scene.curl("url", "/seen?a=1", version, "--interface", VISITOR_ADDRESS)
            expect.equal(f"{version}: GET reaches the upstream", seen(page)["target"], "/seen?a=1")
            forwarded = [seen_headers(page, name) for name in ("x-forwarded-host", "x-forwarded-for")]
            expect.equal(f"{version}: which hears of the visitor", forwarded, [[scene.host("url")], [VISITOR_ADDRESS]])
            page = scene.curl("url", "/echo", version, "--data-binary", "posted")
            expect.equal(f"{version}: POST reaches the upstream", (page.status, page.body), (200, b"posted"))
            for path in ("/gzip-if-asked", "/gzip-always"):
                page = scene.curl("url", path, version, "--compressed")
                expect.equal(f"{version}: {path} is readable to who unpacks", (page.status, page.body), (200, PLAIN))
                page = scene.curl("url", path, version, "--header", "accept-encoding: gzip")
                packed = page.first("content-encoding") == "gzip"
                body = gzip.decompress(page.body) if packed else page.body
                expect.equal(f"{version}: {path} is what its content-encoding says", body, PLAIN)
            page = scene.curl("url", "/gzip-if-asked", version)
            expect.equal(f"{version}: nothing is packed unasked", (page.status, page.body), (200, PLAIN))
        page = scene.curl("url", "/missing")
        expect.equal("the upstream's status is the visitor's", page.status, 404)
        for message in ("grüße", filler(24_000)):
            with scene.websocket("url", "/websocket?a=1", ("first", "second")) as websocket:
                expect.equal("the upstream chooses the subprotocol", websocket.subprotocol, "first")
                websocket.send(message)
                expect.that("the upstream's WebSocket echoes", websocket.receive() == message)
                websocket.send_close(4123, "the visitor is done")
                expect.equal("the visitor's Close is answered", websocket.closed()[0], 4123)
        until("the upstream hears of it", 5, lambda: [code for _, code, _ in upstream.closes] == [4123, 4123])
        for asked, wanted in (("close 4002 as asked", (4002,)), ("end", (1011, 1012))):
            with scene.websocket("url", "/websocket") as websocket:
                websocket.send(asked)
                expect.one_of(f"an upstream's {asked} reaches the visitor", ends(websocket), *wanted)
        with scene.websocket("url", "/missing") as websocket:
            expect.that("an upstream may refuse", websocket.status in (404, 502), websocket.status)
        served_as_before(scene, agent, "an upstream at a URL")


def passthrough(scene, upstream):
    tunnel = scene.create("pass", tls_mode="passthrough")
    expect.equal("the tunnel waits for its certificate", tunnel["status"], "awaiting_cert")
    try:
        page = scene.fetch("pass")
    except NO_ANSWER:
        page = None
    expect.that("until then nobody is let in", page is None, page)
    with scene.agent("pass", upstream.url, create=False) as agent:
        tunnel = scene.tunnel("pass")
        expect.equal("the agent gets one", tunnel["status"], "active")
        expect.equal("the agent is connected", tunnel["currently_connected"], True)
        with dial(scene.trust, scene.host("pass")) as connection:
            served = sha256(connection.getpeercert(binary_form=True))
        told = tunnel["cert_fingerprint_sha256"].replace(":", "").lower()
        expect.equal("the agent serves the certificate that was signed", served, told)
        for version in ("--http1.1", "--http2"):
            page = scene.curl("pass", "/seen?a=1", version)
            expect.equal(f"{version}: GET reaches the upstream", seen(page)["target"], "/seen?a=1")
            page = scene.curl("pass", "/echo", version, "--data-binary", "posted")
            expect.equal(f"{version}: POST reaches the upstream", (page.status, page.body), (200, b"posted"))
            page = scene.curl("pass", f"/large/{5 * MIB}", version)
            expect.equal(f"{version}: 5 MiB arrive", len(page.body), 5 * MIB)
            expect.equal(f"{version}: as they were sent", sha256(page.body), sha256(filler(5 * MIB)))
        up = scene.file("up", 8 * MIB)
        page = scene.curl("pass", "/echo", "--http1.1", "--data-binary", f"@{up}")
        expect.equal("8 MiB go there and back", sha256(page.body), sha256(up.read_bytes()))
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            pages = list(pool.map(lambda number: scene.fetch("pass", path=f"/large/{1000 + number}"), range(20)))
        answers = [(each.status, each.body == filler(1000 + number)) for number, each in enumerate(pages)]
        expect.equal("20 connections at once are served", answers, [(200, True)] * 20)
        served_as_before(scene, agent, "passthrough")


def identity_renamed(scene):
    """What tells our own agent that its tunnel has changed is nothing to these."""
    with scene.agent("named") as agent:
        expect.equal("the agent serves", scene.fetch("named").status, 200)
        renamed = {"agent_handle": "renamed-agent"}
        answer = scene.server.ask("PATCH", "/api/v1/identities/named-agent", renamed)
        expect.status("the identity is renamed", answer, 200)
        for _ in range(20):
            expect.equal("the agent serves under the new name", scene.fetch("renamed").status, 200)
        still_connected(agent)


def identity_deleted(scene):
    with scene.agent("deleted") as agent:
        expect.equal("the agent serves", scene.fetch("deleted").status, 200)
        answer = scene.server.ask("DELETE", "/api/v1/identities/deleted-agent")
        expect.status("the identity is deleted", answer, 204)
        until("visitors get an error", 1, lambda: failure(scene, "deleted"))
        agent.ends_for_good("its identity is gone")


def key_revoked(scene):
    identity = scene.create_identity("revoked")
    admin = inkbox.Inkbox(api_key=scene.server.key, base_url=scene.server.url)
    created = admin.api_keys.create(label="agent", scoped_identity_id=identity["id"])
    with scene.agent("revoked", create=False, key=created.api_key) as agent:
        expect.equal("the agent serves with a key of its own", scene.fetch("revoked").status, 200)
        answer = scene.server.ask("DELETE", f"/api/v1/api-keys/{created.record.id}")
        expect.status("the key is revoked", answer, 200)
        until("visitors get an error", 1, lambda: failure(scene, "revoked"))
        agent.ends_for_good("its key is revoked")
    with scene.agent("revoked", create=False):
        expect.equal("another key serves", scene.fetch("revoked").status, 200)


def taken_over(scene):
    with scene.agent("taken", label="first") as first, Calls(partial(scene.fetch, "taken", path="/label")) as calls:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            in_flight = pool.submit(scene.fetch, "taken", path="/slow/2")
            with scene.agent("taken", create=False, label="second") as second:
                first.ended(10)
                expect.equal("the first client ends as superseded", first.statuses[-1], "superseded")
                expect.equal("after it has answered what it had begun", in_flight.result().status, 200)
                time.sleep(1.5)
                expect.equal("the second stays", (second.running, second.statuses[-1]), (True, "connected"))
                expect.equal("REST tells of it", scene.tunnel("taken")["currently_connected"], True)
                outcomes = calls.end()
    failed = [each for each in outcomes if each not in ((200, b"first"), (200, b"second"))]
    expect.equal(f"none of {len(outcomes)} requests failed over the takeover", failed, [])
    labels = [body.decode() for _, body in outcomes]
    expect.equal("the first served, then the second", sorted(labels), labels)
    expect.equal("both did", set(labels), {"first", "second"})


def server_restarts(scene):
    with scene.agent("callable") as agent, Calls(partial(scene.fetch, "callable", path="/label")) as calls:
        with scene.websocket("callable", "/echo") as websocket, concurrent.futures.ThreadPoolExecutor(2) as pool:
            websocket.send("here")
            expect.equal("the WebSocket is open", websocket.receive(), "here")
            in_flight = pool.submit(scene.fetch, "callable", path="/slow/1.5")
            end = pool.submit(ends, websocket)
            time.sleep(0.5)
            before = len(calls.outcomes)
            expect.equal("SIGTERM ends the server with 0", scene.server.stop(), 0)
            scene.server.start()
            expect.equal("the request in flight is answered", in_flight.result().status, 200)
            expect.one_of("the WebSocket ended with a Close", end.result(), 1001, 1012)
        until("requests are answered again", 8, lambda: len(calls.outcomes) > before + 5)
        time.sleep(1)
        outcomes = calls.end()
        failed = [each for each in outcomes if each != (200, b"agent")]
        expect.equal(f"none of {len(outcomes)} requests failed over the restart", failed, [])
        if HANDS_OVER:
            # Before 0.4.8 an agent lets go first and comes back a second later.
            expect.equal("the agent was connected all the time", agent.statuses, ["connecting", "connected"])
        connected = scene.tunnel("callable")["currently_connected"]
        expect.equal("REST tells that the agent is connected", connected, True)


def server_killed(scene):
    with scene.agent("callable", create=False):
        expect.equal("the agent serves", scene.fetch("callable").status, 200)
        scene.server.kill9()
        scene.server.start()
        until("the agent comes back by itself", 10, lambda: not failure(scene, "callable"))
        connected = scene.tunnel("callable")["currently_connected"]
        expect.equal("REST tells that the agent is connected", connected, True)


def stalls(scene):
    begun = time.monotonic()
    page = scene.fetch("callable", path="/slow/60", timeout=60)
    expect.that("an app that stalls is an error", page.status >= 500, page)
    took = time.monotonic() - begun
    expect.that("within 45 s", took < 45, took)


def still_connected(agent):
    expect.equal("it was connected all the time", agent.statuses, ["connecting", "connected"])


def served_as_before(scene, agent, what):
    """The agent serves, on the connection that it had from the beginning."""
    expect.equal(f"after {what} requests are served", scene.fetch(agent.short_name).status, 200)
    expect.equal(f"{what} leave the agent connected", agent.statuses, ["connecting", "connected"])


def failure(scene, name):
    """What a visitor meets, or None when all is well."""
    try:
        page = scene.fetch(name, timeout=5)
    except NO_ANSWER as error:
        return error
    return None if page.status < 400 else page


def heard(scene, marker):
    """The codes that the app was told at the end of the WebSockets with this path."""
    ended = json.loads(scene.fetch("callable", path="/ended").body)
    return [code for target, code in ended if target == marker]


def seen(page):
    """What the app or the upstream wrote about the request that it got."""
    expect.equal("the request is answered", page.status, 200)
    return json.loads(page.body)


def seen_headers(page, name):
    return [value for each, value in seen(page)["headers"] if each == name]


class Scene:
    """A server for one zone, its visitors and its agents."""

    def __init__(self, binary, place, zone, address):
        # The socket outlives the servers that take it, so visitors wait while there is none.
        self._socket = socket.create_server((address, 443), backlog=1024)
        self.server = Server(binary, edge_socket=self._socket, zone=zone)
        self.place = place
        self.zone = zone

    def __enter__(self):
        self.server.__enter__()
        self.root = str(self.server.root_certificate)
        self.trust = trust(self.root)
        return self

    def __exit__(self, *error):
        self.server.__exit__(*error)
        self._socket.close()

    def host(self, name):
        return f"{name}-agent.{self.zone}"

    def create_identity(self, name, tls_mode="edge"):
        asked = {"agent_handle": f"{name}-agent", "tunnel": {"tls_mode": tls_mode}}
        answer = self.server.ask("POST", "/api/v1/identities/", asked)
        expect.status(f"the identity {name}-agent is made", answer, 201)
        return answer.json

    def create(self, name, tls_mode="edge"):
        return self.create_identity(name, tls_mode)["tunnel"]

    def tunnel(self, name):
        listed = self.server.ask("GET", "/api/v1/tunnels/").json
        listed = listed if isinstance(listed, list) else listed["tunnels"]
        (tunnel,) = [each for each in listed if each["tunnel_name"] == f"{name}-agent"]
        return tunnel

    @contextlib.contextmanager
    def agent(self, name, forward_to="app", create=True, key=None, label="agent"):
        """A connected agent, with an identity made for it unless that is there already."""
        if create:
            self.create(name)
        with Agent(self, name, forward_to, key or self.server.key, label) as agent:
            agent.reaches("connected", 15)
            yield agent

    def curl(self, name, path, *options):
        return curl(self.root, f"https://{self.host(name)}{path}", *options)

    def fetch(self, name, method="GET", path="/seen", **more):
        return fetch(self.trust, self.host(name), method, path, **more)

    def websocket(self, name, path, subprotocols=()):
        return WebSocket(self.trust, self.host(name), path, subprotocols)

    def file(self, name, length):
        path = self.place / name
        if not path.exists():
            path.write_bytes(filler(length))
        return path


class Agent:
    """A process that runs `serve` below, seen from outside."""

    def __init__(self, scene, name, forward_to, key, label):
        self.short_name = name
        self.statuses = []
        self.end = None
        self._log = scene.place / f"{scene.zone}-{name}-{label}-{time.monotonic_ns()}.log"
        asked = {
            "name": f"{name}-agent",
            "forward_to": forward_to,
            "key": key,
            "url": scene.server.url,
            "state_dir": str(scene.place / f"{scene.zone}-{name}-{label}"),
            "label": label,
        }
        environment = {**os.environ, "SSL_CERT_FILE": scene.root, "HOME": str(scene.place)}
        with open(self._log, "wb") as log:
            command = [sys.executable, __file__, "--agent", json.dumps(asked)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, error_class, *_error):
        if self.running:
            self.kill9()
        if error_class is not None:
            lines = self._log.read_text(errors="replace").splitlines()[-30:]
            print(f"--- {self.short_name}: {self.statuses}, {self.end}", *lines, "---", sep="\n", file=sys.stderr)

    def _read(self):
        for line in self._process.stdout:
            kind, _, value = line.strip().partition(" ")
            if kind == "status":
                self.statuses.append(value)
            elif kind == "ended":
                self.end = value

    @property
    def running(self):
        return self._process.poll() is None

    def reaches(self, status, within):
        until(f"the agent {self.short_name} is {status}", within, lambda: status in self.statuses)

    def ended(self, within):
        until(f"the process of {self.short_name} ends", within, lambda: not self.running)
        self._reader.join(5)

    def ends_for_good(self, why):
        self.ended(10)
        expect.equal(f"an agent ends when {why}", self.statuses[-1], "closed")
        expect.that(f"as refused, when {why}", self.end is not None and "AuthError" in self.end, self.end)

    def stop(self):
        self._process.send_signal(signal.SIGTERM)
        self.ended(15)

    def kill9(self):
        self._process.kill()
        self._process.wait()


def serve(asked):
    """The agent's process: tells on its standard output what the SDK tells it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    client = inkbox.Inkbox(api_key=asked["key"], base_url=asked["url"])
    app = App(asked["label"]) if asked["forward_to"] == "app" else asked["forward_to"]
    listener = connect(
        client,
        name=asked["name"],
        forward_to=app,
        state_dir=asked["state_dir"],
        on_status=lambda status: print("status", status, flush=True),
    )
    try:
        listener.wait()
    except Exception as error:
        print("ended", type(error).__name__, error, flush=True)
        raise


class App:
    """The application behind the tunnel, called by the SDK in its own process."""

    def __init__(self, label):
        self._label = label.encode()
        # Path and code of each WebSocket that ended.
        self._ended = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
            return
        body, more = b"", True
        while more:
            part = await receive()
            body, more = body + part.get("body", b""), part.get("more_body", False)
        status, headers, answer = await self._answer(scope, body)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _answer(self, scope, body):
        plain = [(b"content-type", b"text/plain")]
        match scope["path"].split("/")[1:]:
            case ["seen", *_]:
                return 200, [(b"content-type", b"application/json")], view(scope, body)
            case ["echo"]:
                return 200, plain, body
            case ["label"]:
                return 200, plain, self._label
            case ["ended"]:
                return 200, plain, json.dumps(self._ended).encode()
            case ["nothing"]:
                return 204, [], b""
            case ["cookies"]:
                return 200, [(b"set-cookie", b"a=1; Path=/"), (b"set-cookie", b"b=2; Path=/")], b"two"
            case ["large", length]:
                return 200, plain, filler(int(length))
            case ["status", status]:
                return int(status), plain, b"as asked"
            case ["slow", seconds]:
                await asyncio.sleep(float(seconds))
                return 200, plain, b"at last"
        return 404, plain, b"no such path"

    async def _websocket(self, scope, receive, send):
        await receive()
        if scope["path"] == "/refuse":
            await send({"type": "websocket.close", "code": 4403})
            return
        chosen = "second" if "second" in scope["subprotocols"] else None
        await send({"type": "websocket.accept", "subprotocol": chosen, "headers": [(b"x-app", b"1")]})
        while True:
            event = await receive()
            if event["type"] == "websocket.disconnect":
                self._ended.append((target(scope), event["code"]))
                return
            if scope["path"] == "/close":
                code, reason = json.loads(event["text"])
                await send({"type": "websocket.close", "code": code, "reason": reason})
                return
            if scope["path"] == "/fail":
                raise ValueError("as asked")
            if event.get("text") == "seen":
                await send({"type": "websocket.send", "text": view(scope, b"").decode()})
            elif event.get("text") == "large":
                await send({"type": "websocket.send", "text": "t" * MIB})
            elif event.get("text") is not None:
                await send({"type": "websocket.send", "text": event["text"]})
            else:
                await send({"type": "websocket.send", "bytes": event["bytes"]})


def view(scope, body):
    """What an application sees of a request, as JSON."""
    return json.dumps(
        {
            "method": scope.get("method", "GET"),
            "target": target(scope),
            "headers": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
            "client": scope["client"][0],
            "length": len(body),
            "sha256": sha256(body),
        }
    ).encode()


def target(scope):
    query = scope["query_string"].decode("latin-1")
    return scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--agent"]:
        serve(json.loads(sys.argv[2]))
    else:
        expect.run(main)
