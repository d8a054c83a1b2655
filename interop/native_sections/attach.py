"""Attaching: what is let in, and every way to be refused."""

import contextlib
import json
import time
import uuid

import expect
from native_peer import (
    WAYS,
    NotAttached,
    VisitorOne,
    asked,
    attach,
    dial,
    echo,
    fields_of,
    is_connected,
    raw_tunnel,
    tunnel_of,
)
from scripted_agent import (
    PING,
    PREFACE,
    SETTINGS,
    Ended,
    Http1,
    Tls,
    client_context,
    frame,
    request,
    settings_frame,
    visit_h2,
)
from server import ZONE

PROBLEM = "urn:adit:problem:"


def checks(long):
    return [
        ("what is let in", let_in),
        ("wrong requests", wrong_requests),
        ("values there twice", twice),
        ("versions", versions),
        ("credentials", credentials),
        ("tunnels", tunnels),
        ("methods and other paths", methods),
        ("too long", too_long),
        ("bodies and what stands behind", behind),
        ("ALPN at the zone", alpn),
        ("over HTTP/2", over_h2),
        ("a certificate of its own", own_certificate),
        ("the session begins with the acknowledgement", begins),
        ("links that never begin", never_begin),
        ("links that speak rubbish", rubbish),
        ("refused in the drain", draining),
    ]


def refused(what, tunnel, status, kind, way="zone", line=None, request_octets=None, **changes):
    """The request is refused so; answers the document."""
    connection = Http1(dial(tunnel.server, way))
    with contextlib.closing(connection):
        sent = request_octets or asked(fields_of(tunnel, **changes), *([line] if line else []))
        answer = connection.ask(sent)
    what = f"{way}: {what}"
    expect.that(f"{what} is {status} {kind}", answer.status == status, answer)
    expect.equal(f"{what}: a problem document", answer.get("content-type"), "application/problem+json")
    document = json.loads(answer.body)
    expect.equal(f"{what}: its type", document["type"], f"{PROBLEM}{kind}")
    expect.equal(f"{what}: its status", document["status"], status)
    expect.that(
        f"{what}: its detail says why", isinstance(document.get("detail"), str) and document["detail"], document
    )
    if status == 426:
        expect.equal(f"{what}: Upgrade", answer.get("upgrade"), "adit-h2")
        expect.equal(f"{what}: Adit-Version", answer.get("adit-version"), "1")
    if status == 401:
        expect.that(f"{what}: WWW-Authenticate", answer.get("www-authenticate"), answer)
    if status == 503:
        expect.that(f"{what}: Retry-After", int(answer.get("retry-after")) > 0, answer)
    return document


def accepted(what, tunnel, way="zone", **changes):
    try:
        with attach(tunnel, echo, way, changes) as peer:
            expect.that(f"{way}: {what} is let in", True)
            return peer.response
    except NotAttached as refusal:
        raise expect.Failed(f"{way}: {what} is let in\n  came: {refusal.response}") from None


def let_in(rig):
    tunnel = tunnel_of(rig.server, "let-in")
    sessions = set()
    for way in WAYS:
        answer = accepted("an agent", tunnel, way)
        expect.equal(f"{way}: Upgrade", answer.get("upgrade"), "adit-h2")
        expect.equal(f"{way}: Connection", answer.get("connection").lower(), "upgrade")
        expect.equal(f"{way}: Adit-Version", answer.get("adit-version"), "1")
        expect.equal(f"{way}: Adit-Tunnel", answer.get("adit-tunnel"), tunnel.id)
        expect.equal(f"{way}: nothing says how long it is", answer.all("content-length"), [])
        sessions.add(answer.get("adit-session"))
        accepted("a tunnel by its name", tunnel, way, Adit_Tunnel=tunnel.handle)
        accepted("Upgrade among others", tunnel, way, Upgrade="websocket, ADIT-H2")
        accepted("Connection among others", tunnel, way, Connection="keep-alive, upgrade")
        accepted("no Content-Length", tunnel, way, Content_Length=None)
        accepted("sharing", tunnel, way, Adit_Share="true")
        accepted("a deadline", tunnel, way, Adit_Response_Deadline="3600")
        accepted("digits in capitals", tunnel, way, Adit_Instance="ABCDEF" * 5 + "00")
        accepted("a field that nobody knows", tunnel, way, Adit_Something="1", User_Agent="x")
    expect.that("each session has its own word", len(sessions) == 2 and all(sessions), sessions)
    lines = asked(fields_of(tunnel, Host=f"{ZONE}:{rig.server.edge_port}"))
    with contextlib.closing(Http1(dial(rig.server))) as connection:
        expect.equal("a Host with a port", connection.ask(lines).status, 101)


def wrong_requests(rig):
    tunnel = tunnel_of(rig.server, "wrong")
    for way in WAYS:
        for name in ("Adit-Tunnel", "Adit-Instance", "Adit-Version"):
            refused(f"without {name}", tunnel, 400, "invalid-attach", way, **{name: None})
        for value in ("", "0" * 31, "0" * 33, "g" * 32, "+" + "0" * 31, str(uuid.uuid4()), "\xe9" * 32):
            refused(f"instance {value!r}", tunnel, 400, "invalid-attach", way, Adit_Instance=value)
        for value in ("yes", "TRUE", "1", "", "true, true"):
            refused(f"share {value!r}", tunnel, 400, "invalid-attach", way, Adit_Share=value)
            refused(f"own {value!r}", tunnel, 400, "invalid-attach", way, Adit_Own_Certificate=value)
        refused("an edge tunnel's own", tunnel, 400, "invalid-attach", way, Adit_Own_Certificate="true")
        accepted("no certificate of its own", tunnel, way, Adit_Own_Certificate="false")
        for value in ("0", "3601", "-1", "+5", "1.5", "x", "", "99999999999999999999999"):
            refused(f"deadline {value!r}", tunnel, 400, "invalid-attach", way, Adit_Response_Deadline=value)
    detail = refused("instance", tunnel, 400, "invalid-attach", Adit_Instance="x")["detail"]
    expect.that("the detail names the field", "Adit-Instance" in detail, detail)


def twice(rig):
    tunnel = tunnel_of(rig.server, "twice")
    doubled = {
        "X-API-Key": [rig.server.key] * 2,
        "Adit-Tunnel": [tunnel.id, tunnel.id],
        "Adit-Instance": ["0" * 32, "1" * 32],
        "Adit-Share": ["true", "true"],
        "Adit-Own-Certificate": ["true", "true"],
        "Adit-Response-Deadline": ["5", "6"],
    }
    for name, values in doubled.items():
        for way in WAYS:
            refused(f"{name} there twice", tunnel, 400, "invalid-attach", way, **{name: values})
    refused("two secrets", tunnel, 400, "invalid-attach", X_API_Key=None, X_Tunnel_Secret=["a", "b"])


def versions(rig):
    tunnel = tunnel_of(rig.server, "versions")
    for way in WAYS:
        for value in ("2", "x", "", "10", "1.0", "2, 3"):
            document = refused(f"version {value!r}", tunnel, 426, "unsupported-version", way, Adit_Version=value)
            expect.that("the detail says which there is", "1" in document["detail"], document)
        for value in ("1, 2", "2,1", " 1 ", ["2", "1"], ["1", "2"]):
            accepted(f"version {value!r}", tunnel, way, Adit_Version=value)
        for changes in ({"Upgrade": None}, {"Upgrade": "websocket"}, {"Upgrade": "h2c"}, {"Upgrade": "adit-h3"}):
            refused(f"{changes}", tunnel, 426, "unsupported-version", way, **changes)
        refused("no Connection", tunnel, 426, "unsupported-version", way, Connection=None)
        refused("another Connection", tunnel, 426, "unsupported-version", way, Connection="close")


def credentials(rig):
    ask = rig.server.ask
    tunnel, other = tunnel_of(rig.server, "mine"), tunnel_of(rig.server, "mine")
    made = ask("POST", "/api/v1/tunnels", {"tunnel_name": "with-secret", "tls_mode": "edge"}).json
    secret = made["connect_secret"]
    asks = {"label": "one", "scoped_identity_id": tunnel.identity}
    own = ask("POST", "/api/v1/api-keys", asks).json["api_key"]
    by_secret = {"X-API-Key": None, "X-Tunnel-Secret": secret}
    for way in WAYS:
        refused("no credential", tunnel, 401, "unauthorized", way, X_API_Key=None)
        for value in ("", "x", "adit_00000000_" + "0" * 40, rig.server.key + "x", rig.server.key[:-1]):
            refused(f"key {value!r}", tunnel, 401, "unauthorized", way, X_API_Key=value)
        refused("both", tunnel, 400, "invalid-attach", way, X_Tunnel_Secret=secret)
        accepted("the secret, by name", tunnel, way, **by_secret, Adit_Tunnel="with-secret")
        accepted("the secret, by id", tunnel, way, **by_secret, Adit_Tunnel=made["tunnel"]["id"])
        refused("a secret of another tunnel", tunnel, 401, "unauthorized", way, **by_secret)
        for value in (secret + "x", secret[:-1], "", "x"):
            refused(
                "a wrong secret",
                tunnel,
                401,
                "unauthorized",
                way,
                X_API_Key=None,
                X_Tunnel_Secret=value,
                Adit_Tunnel="with-secret",
            )
        accepted("a key for this tunnel", tunnel, way, X_API_Key=own)
        refused("a key for another tunnel", other, 403, "tunnel-forbidden", way, X_API_Key=own)
        refused("another tunnel by name", other, 403, "tunnel-forbidden", way, X_API_Key=own, Adit_Tunnel=other.handle)


def tunnels(rig):
    ask = rig.server.ask
    tunnel = tunnel_of(rig.server, "tunnels")
    for way in WAYS:
        for value in (str(uuid.uuid4()), "nobody", "No.Body", "", "-", "x" * 64, "../x", "\xe9"):
            kinds = (400, "invalid-attach") if value == "\xe9" else (403, "tunnel-forbidden")
            refused(f"tunnel {value!r}", tunnel, *kinds, way, Adit_Tunnel=value)
    waiting = tunnel_of(rig.server, "waiting", "passthrough")
    refused("a tunnel without a certificate", waiting, 403, "tunnel-not-active")
    signed, _ = raw_tunnel(rig.server, "signed")
    accepted("a tunnel with one", signed)
    # What has the form of an id is one, though it is a name, too.
    answer = ask("POST", "/api/v1/tunnels", {"tunnel_name": str(uuid.uuid4()), "tls_mode": "edge"})
    if answer.status == 201:
        refused("a name like an id", tunnel, 403, "tunnel-forbidden", Adit_Tunnel=answer.json["tunnel"]["tunnel_name"])
        accepted("and by its id", tunnel, Adit_Tunnel=answer.json["tunnel"]["id"])
    gone = ask("POST", "/api/v1/tunnels", {"tunnel_name": "gone", "tls_mode": "edge"}).json["tunnel"]
    expect.status("it is deleted", ask("DELETE", f"/api/v1/tunnels/{gone['id']}"), 200, 202, 204)
    refused("a deleted tunnel", tunnel, 403, "tunnel-not-active", Adit_Tunnel=gone["id"])
    expect.status("it is taken back", ask("POST", f"/api/v1/tunnels/{gone['id']}/restore"), 200)
    accepted("a tunnel that is back", tunnel, Adit_Tunnel=gone["id"])
    expect.status("it is deleted", ask("DELETE", f"/api/v1/tunnels/{gone['id']}"), 200, 202, 204)
    expect.status("for good", ask("DELETE", f"/api/v1/tunnels/{gone['id']}/force"), 200)
    refused("a tunnel that is no more", tunnel, 403, "tunnel-forbidden", Adit_Tunnel=gone["id"])


def methods(rig):
    tunnel = tunnel_of(rig.server, "methods")
    for way in WAYS:
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH"):
            refused(method, tunnel, 405, "method-not-allowed", way, f"{method} /_system/attach HTTP/1.1")
        for path in ("/_system/attached", "/_system/", "/_system", "/_system/attach/x", "/_SYSTEM/attach"):
            refused(path, tunnel, 404, "unknown-path", way, f"POST {path} HTTP/1.1")
        refused("HTTP/1.0", tunnel, 426, "unsupported-version", way, "POST /_system/attach HTTP/1.0")
    # A public host is no door.
    with attach(tunnel, echo):
        visitor = VisitorOne(tunnel)
        with contextlib.closing(visitor):
            pairs = [each for each in fields_of(tunnel) if each[0] not in ("Host", "Content-Length")]
            came = visitor.ask("/_system/attach", *pairs, method="POST")
            seen = dict(came.json["pseudo"])[":path"]
            expect.equal("the path at a tunnel's host is the tunnel's", (came.status, seen), (200, "/_system/attach"))


def too_long(rig):
    tunnel = tunnel_of(rig.server, "long")
    for way in WAYS:
        names = ["X-API-Key", "X-Tunnel-Secret", "X-Other"]
        for name in [*names, "Adit-Tunnel", "Adit-Instance", "Adit-Version", "Adit-Share"]:
            for length in (3000, 12_000, 40_000, 200_000):
                connection = Http1(dial(rig.server, way))
                changes = {name: "a" * length} | ({"X-API-Key": None} if name == "X-Tunnel-Secret" else {})
                with contextlib.closing(connection), contextlib.suppress(Ended, OSError):
                    began = time.monotonic()
                    answer = connection.ask(asked(fields_of(tunnel, **changes)), timeout=5)
                    small = name == "X-Other" and answer.status == 101
                    expect.that(
                        f"{way}: {name} of {length} is refused",
                        small or answer.status in (400, 401, 403, 426, 431),
                        answer,
                    )
                    expect.that("at once", time.monotonic() - began < 3)
        with contextlib.closing(Http1(dial(rig.server, way))) as connection:
            pairs = fields_of(tunnel) + [(f"x-{number}", "1") for number in range(300)]
            with contextlib.suppress(Ended, OSError):
                expect.that(f"{way}: 300 fields", connection.ask(asked(pairs)).status in (400, 431))


def behind(rig):
    tunnel = tunnel_of(rig.server, "behind")
    for way in WAYS:
        for changes in ({"Content_Length": "5"}, {"Content_Length": None, "Transfer_Encoding": "chunked"}):
            with contextlib.closing(Http1(dial(rig.server, way))) as connection:
                answer = connection.ask(asked(fields_of(tunnel, **changes)) + b"5\r\nhello\r\n0\r\n\r\n")
                expect.that(f"{way}: {changes}: a body is refused", answer.status == 400, answer)
        # One connection may ask again after a refusal.
        with contextlib.closing(Http1(dial(rig.server, way))) as connection:
            for _ in range(3):
                answer = connection.ask(asked(fields_of(tunnel, Adit_Version="7", Connection="Upgrade")))
                expect.equal(f"{way}: refused", answer.status, 426)
            answer = connection.ask(asked(fields_of(tunnel)))
            expect.equal(f"{way}: attached at the fourth time", answer.status, 101)
        # An agent in a hurry has sent its SETTINGS with the request: it is served, or refused; it does not hang.
        try:
            early = settings_frame(((4, 1 << 20), (8, 1)))
            with attach(tunnel, echo, way, behind=early) as peer:
                with contextlib.closing(VisitorOne(tunnel)) as visitor:
                    expect.equal(f"{way}: SETTINGS in the same flight are read", visitor.ask().status, 200)
                expect.that("no error", peer.goaway is None, peer.goaway)
        except NotAttached as refusal:
            expect.that(f"{way}: or refused", refusal.response.status in (400, 426), refusal.response)
        # A second request in the same flight is nobody's: it is not answered as if it had come alone.
        with contextlib.closing(Http1(dial(rig.server, way))) as connection:
            connection.send(asked(fields_of(tunnel)) + b"GET /api/v1/tunnels HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = connection.answer()
            if answer.status == 101:
                came = connection.rest + b"".join(iter(lambda c=connection: _rest(c), b""))
                expect.that(f"{way}: only HTTP/2 follows a 101", b"HTTP/1.1" not in came, came)
            else:
                expect.that(f"{way}: or it is refused", answer.status in (400, 426), answer)


def _rest(connection):
    try:
        return connection.tls.receive(5)
    except TimeoutError:
        return b""


def alpn(rig):
    for offered, wanted in ((["h2", "http/1.1"], "http/1.1"), (["http/1.1"], "http/1.1"), (["h2"], "h2"), ([], None)):
        tls = Tls(rig.server.edge_port, client_context(rig.server, *offered), ZONE).handshake()
        expect.equal(f"of {offered} the zone takes", tls.tls.selected_alpn_protocol(), wanted)
        tls.close()
    tunnel = tunnel_of(rig.server, "alpn")
    for offered in (["h2", "http/1.1"], []):
        tls = Tls(rig.server.edge_port, client_context(rig.server, *offered), ZONE).handshake()
        with contextlib.closing(Http1(tls)) as connection:
            expect.equal(f"{offered}: an agent is let in", connection.ask(asked(fields_of(tunnel))).status, 101)


def over_h2(rig):
    tunnel = tunnel_of(rig.server, "over-h2")
    fields = [(name.lower(), value) for name, value in fields_of(tunnel) if name.startswith(("Adit", "X-"))]
    connection = visit_h2(rig.server, ZONE)
    for path in ("/_system/attach", "/api/v1/tunnels"):
        stream = connection.answer(connection.open(request(ZONE, path, *fields, method="POST")))
        expect.that(f"{path} over HTTP/2 is refused", stream.status in (404, 405, 421, 426), stream)
    expect.equal("other paths are told where they are served", stream.status, 421)
    expect.that("in a problem document", stream.get("content-type") == "application/problem+json", stream)
    connection.close()


def own_certificate(rig):
    server = rig.server
    tunnel = tunnel_of(server, "own", "passthrough")

    def visit():
        tls = Tls(server.edge_port, client_context(server), tunnel.host)
        hello = tls.hello()
        tls.socket.sendall(hello)
        return tls.socket, hello

    for way in WAYS:
        refused("without it", tunnel, 403, "tunnel-not-active", way)
        visitor, _ = visit()
        with visitor:
            visitor.settimeout(8)
            # An alert, or an end.
            expect.that("visitors are turned away", visitor.recv(100)[:1] in (b"\x15", b""))
        with attach(tunnel, way=way, changes={"Adit-Own-Certificate": "true"}) as peer:
            visitor, hello = visit()
            with visitor:
                expect.that("visitors are routed to it", peer.next(3).holds(hello, 3))
            expect.equal("and it is there", is_connected(tunnel), True)
            refused("still not without it", tunnel, 403, "tunnel-not-active", way)


def begins(rig):
    tunnel = tunnel_of(rig.server, "begins")
    with attach(tunnel, echo, answers_pings=False) as peer:
        peer.until(lambda: peer.seen(PING), 5)
        first, *_ = peer.frames
        expect.equal("the server's SETTINGS come first", first.kind, SETTINGS)
        expect.that("and it asks", peer.seen(PING), list(peer.frames))
        with contextlib.closing(VisitorOne(tunnel)) as visitor:
            expect.that("before the answer nobody is sent there", visitor.ask().status in (502, 503, 504), peer.asked)
        expect.equal("nor is the tunnel said to be connected", is_connected(tunnel), False)
        ping = peer.seen(PING)[0]
        peer.write(frame(PING, 1, 0, ping.payload))
        expect.until("with it the tunnel is connected", 3, lambda: is_connected(tunnel))
        with contextlib.closing(VisitorOne(tunnel)) as visitor:
            expect.equal("and served", visitor.ask().status, 200)
        expect.that("the server does not push", peer.server_settings.get(2, 0) == 0, peer.server_settings)
    expect.until("without its agent it is not", 3, lambda: not is_connected(tunnel))


def never_begin(rig):
    """After the 101 nothing, SETTINGS only, or half of them: the server gives up, and others are not in the way."""
    tunnel = tunnel_of(rig.server, "never")
    began = time.monotonic()
    dumb = [
        attach(tunnel, is_dumb=True),
        attach(tunnel, answers_pings=False),
        attach(tunnel, is_dumb=True),
        attach(tunnel, is_dumb=True, way="api"),
    ]
    dumb[2].tls._tls.send(settings_frame(((4, 1 << 20),))[:7])
    with attach(tunnel, echo), contextlib.closing(VisitorOne(tunnel)) as visitor:
        expect.equal("another session serves", visitor.ask().status, 200)
        for number, peer in enumerate(dumb):
            expect.that(f"{number}: the server ends it", peer.has_ended(45 - (time.monotonic() - began)), peer.frames)
            print(f"        {number}: ended after {peer.ended_at - began:.1f} s")
        expect.equal("and serves still", visitor.ask().status, 200)
    with contextlib.suppress(OSError):
        for peer in dumb:
            peer.close()


def rubbish(rig):
    tunnel = tunnel_of(rig.server, "rubbish")
    with attach(tunnel, echo) as honest:
        for what, sent in {
            "HTTP/1.1": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "a preface": PREFACE,
            "zeros": bytes(4000),
            "a frame that is too long": b"\xff\xff\xff" + bytes(6) + bytes(70_000),
            "a HEADERS for no request": frame(1, 4, 1, b"\x88"),
            "an even stream": frame(1, 4, 2, b"\x88"),
            "SETTINGS for a stream": frame(4, 0, 1, b""),
            "a broken block": frame(1, 4, 1, b"\xff\xff\xff\xff\xff\xff"),
            "a window of 0": frame(8, 0, 0, bytes(4)),
            "too large a window": settings_frame(((4, (1 << 31)),)),
            "a PUSH_PROMISE": frame(5, 4, 1, b"\x00\x00\x00\x02\x82"),
            "a CONTINUATION alone": frame(9, 4, 1, b"\x88"),
        }.items():
            peer = attach(tunnel, is_dumb=True, changes={"Adit-Instance": "0" * 32})
            settings = b"" if what in ("HTTP/1.1", "a preface", "zeros") else settings_frame(())
            with contextlib.suppress(OSError):
                peer.tls._tls.send(settings + sent)
            expect.that(f"{what} ends the link", peer.has_ended(10), list(peer.frames))
            peer.close()
        expect.that("the honest session lives", honest.ping())
        with contextlib.closing(VisitorOne(tunnel)) as visitor:
            expect.equal("and serves", visitor.ask().status, 200)


def draining(rig):
    with rig.another(grace_period="6s") as server:
        tunnel = tunnel_of(server, "drain")
        held = Http1(dial(server))
        with attach(tunnel, lambda asked: asked.peer.until(lambda: False, 3) or asked.answer(b"late")) as peer:
            visitor = VisitorOne(tunnel)
            visitor.send(f"GET / HTTP/1.1\r\nHost: {tunnel.host}\r\n\r\n".encode())
            expect.until("a request is there", 5, lambda: peer.streams)
            server._process.terminate()
            expect.that("the agent is told", peer.hears("/drain"), peer.told)
            with contextlib.suppress(Ended, OSError):
                answer = held.ask(asked(fields_of(tunnel)))
                expect.that("who asks now is refused", answer.status == 503, answer)
                expect.that("and told when to come", int(answer.get("retry-after")) > 0, answer)
            came = visitor.visited()
            expect.equal("what was open is answered", (came.status, came.body), (200, b"late"))
        expect.equal("the server ends", server._process.wait(20), 0)
