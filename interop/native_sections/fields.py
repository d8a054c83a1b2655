"""What the agent sees of a visitor's header, and the visitor of the application's."""

import contextlib
import json

import expect
from native_peer import VISITORS, VisitorOne, VisitorTwo, attach, echo, tunnel_of

VISITOR = "127.0.0.7"
# What proxies say about visitors, and names that CGI, WSGI and PHP take for them.
FORGED = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-user",
    "x-forwarded-anything",
    "x-original-url",
    "x-original-host",
    "x-original-anything",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
    "x-rewrite-url",
    "X_Forwarded_For",
    "X.Forwarded.For",
    "x-forwarded_for",
    "x_real_ip",
    "X-REAL-IP",
    "true_client_ip",
    "x~forwarded~host",
    "x'real'ip",
    "adit-visitor",
    "ADIT-VISITOR",
    "adit_visitor",
]
KEPT = [
    "x-client-info",
    "x-clients-ip",
    "x-forward",
    "xforwarded-for",
    "x-real-ips",
    "x-origin",
    "x-originals-url",
    "accept",
    "user-agent",
    "authorization",
    "x-request-id",
    "traceparent",
    "via",
    "sec-fetch-mode",
    "priority",
    "range",
    "if-none-match",
    "x-http-method-override",
]


def checks(long):
    return [
        ("pseudo fields", pseudo),
        ("the visitor's address", address),
        ("what visitors say about themselves", forged),
        ("what is of the visitor's connection", hops),
        ("cookies and repeats", repeats),
        ("octets in values", values),
        ("the host", hosts),
        ("how many, how long", limits),
        ("what the agent may say", replies),
        ("what only the link may say", of_the_link),
    ]


def seen(came):
    expect.equal("the request is answered", came.status, 200)
    return came.json


def of(document, name):
    return [value for each, value in document["fields"] if each == name]


def pseudo(rig):
    tunnel = tunnel_of(rig.server, "pseudo")
    with attach(tunnel, echo):
        for kind in VISITORS:
            with contextlib.closing(kind(tunnel)) as visitor:
                for method in (
                    "GET",
                    "POST",
                    "PUT",
                    "DELETE",
                    "PATCH",
                    "OPTIONS",
                    "PROPFIND",
                    "get",
                    "X-Y_Z!",
                    "A" * 40,
                ):
                    document = seen(visitor.ask("/a?b", method=method))
                    wanted = {":method": method, ":scheme": "https", ":authority": tunnel.host, ":path": "/a?b"}
                    expect.equal(f"{kind.version}: {method}", dict(document["pseudo"]), wanted)
                    expect.equal("each once", len(document["pseudo"]), 4)
                    expect.equal("no Host beside them", of(document, "host"), [])


def address(rig):
    tunnel = tunnel_of(rig.server, "address")
    with attach(tunnel, echo):
        for kind in VISITORS:
            with contextlib.closing(kind(tunnel)) as visitor:
                expect.equal(
                    f"{kind.version}: the visitor's address", of(seen(visitor.ask()), "adit-visitor"), ["127.0.0.1"]
                )

        visitor = VisitorOne(tunnel, source=VISITOR)
        expect.equal("another one's", of(seen(visitor.ask()), "adit-visitor"), [VISITOR])
        visitor.close()


def forged(rig):
    tunnel = tunnel_of(rig.server, "forged")
    with attach(tunnel, echo):
        for kind in VISITORS:
            with contextlib.closing(kind(tunnel)) as visitor:
                names = FORGED if kind is VisitorOne else [name.lower() for name in FORGED]
                for name in names:
                    document = seen(visitor.ask("/", (name, "6.6.6.6")))
                    told = [each for each in document["fields"] if "6.6.6.6" in each[1]]
                    expect.equal(f"{kind.version}: {name} does not pass", told, [])
                for name in KEPT:
                    document = seen(visitor.ask("/", (name, "6.6.6.6")))
                    expect.equal(f"{kind.version}: {name} passes", of(document, name), ["6.6.6.6"])
                everything = seen(visitor.ask("/", *[(name, "6.6.6.6") for name in names]))
                expect.that(f"{kind.version}: all at once", "6.6.6.6" not in json.dumps(everything), everything)


def hops(rig):
    tunnel = tunnel_of(rig.server, "hops")
    with attach(tunnel, echo), contextlib.closing(VisitorOne(tunnel)) as visitor:
        document = seen(
            visitor.ask(
                "/", ("Connection", "keep-alive, X-Hop"), ("X-Hop", "1"), ("Keep-Alive", "5"), ("Proxy-Connection", "x")
            )
        )
        for name in ("connection", "x-hop", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"):
            expect.equal(f"{name} stays", of(document, name), [])
        document = seen(visitor.ask("/", ("Connection", "TE"), ("TE", "gzip;q=0.5, trailers")))
        expect.equal("of TE only trailers", of(document, "te"), ["trailers"])
        document = seen(visitor.ask("/", ("Connection", "TE"), ("TE", "gzip")))
        expect.equal("or nothing", of(document, "te"), [])
        document = seen(visitor.ask("/", method="POST", body=[b"a", b"b"]))
        expect.equal(
            "chunks are of the connection", of(document, "transfer-encoding") + of(document, "content-length"), []
        )
        document = seen(visitor.ask("/", ("Trailer", "x-sum"), method="POST", body=[b"a"]))
        expect.equal(
            "a body is announced by its length",
            of(seen(visitor.ask("/", method="POST", body=b"abc")), "content-length"),
            ["3"],
        )
        # What an upgrade would ask for is a request without it.
        for token in ("h2c", "adit-h2", "TLS/1.2", "HTTP/2.0"):
            came = visitor.ask(
                "/", ("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", token), ("HTTP2-Settings", "AAMAAABk")
            )
            document = seen(came)
            expect.equal(f"Upgrade: {token} stays", of(document, "upgrade") + of(document, "http2-settings"), [])
    with attach(tunnel, echo), contextlib.closing(VisitorTwo(tunnel)) as visitor:
        document = seen(visitor.ask("/", ("te", "trailers")))
        expect.equal("HTTP/2: te: trailers", of(document, "te"), ["trailers"])
    # A hop that names what matters.
    with attach(tunnel, echo), contextlib.closing(VisitorOne(tunnel)) as visitor:
        for name in ("Host", "Content-Length", "Cookie", "Adit-Visitor", "Authorization"):
            came = visitor.ask(
                "/", ("Connection", name), ("Cookie", "a=1"), ("Authorization", "x"), method="POST", body=b"abc"
            )
            if came.status == 200:
                document = seen(came)
                expect.equal(
                    f"Connection: {name}: the visitor's address stays", of(document, "adit-visitor"), ["127.0.0.1"]
                )
                expect.equal("and the body", document["body"], "abc")
            else:
                expect.equal(f"Connection: {name} is refused", came.status, 400)
                break


def repeats(rig):
    tunnel = tunnel_of(rig.server, "repeats")
    with attach(tunnel, echo):
        for kind in VISITORS:
            with contextlib.closing(kind(tunnel)) as visitor:
                cookies = [("cookie", "a=1"), ("cookie", "b=2; c=3"), ("cookie", 'd="4"')]
                document = seen(visitor.ask("/", *cookies))
                expect.equal(f"{kind.version}: one Cookie", of(document, "cookie"), ['a=1; b=2; c=3; d="4"'])
                document = seen(
                    visitor.ask("/", ("x-a", "1"), ("x-b", "2"), ("x-a", "3"), ("x-a", "1"), ("accept", "b, a"))
                )
                expect.equal(f"{kind.version}: repeats stay, in their order", of(document, "x-a"), ["1", "3", "1"])
                expect.equal("lists stay as they are", of(document, "accept"), ["b, a"])
                document = seen(
                    visitor.ask("/", ("x-empty", ""), ("x-Mixed" if kind is VisitorOne else "x-mixed", "1"))
                )
                expect.equal(
                    f"{kind.version}: an empty one, and a name in small letters",
                    [of(document, "x-empty"), of(document, "x-mixed")],
                    [[""], ["1"]],
                )


def values(rig):
    tunnel = tunnel_of(rig.server, "values")
    with attach(tunnel, echo):
        for kind in VISITORS:
            with contextlib.closing(kind(tunnel)) as visitor:
                value = bytes(octet for octet in range(0x20, 0x100) if octet != 0x7F)
                document = seen(visitor.ask("/", ("x-octets", b"." + value + b".")))
                expect.equal(
                    f"{kind.version}: octets of a value",
                    of(document, "x-octets"),
                    ["." + value.decode("latin-1") + "."],
                )
                document = seen(visitor.ask("/", ("x-tab", "a\tb")))
                expect.equal(f"{kind.version}: a tab within", of(document, "x-tab"), ["a\tb"])
            for octet in (0x00, 0x01, 0x0A, 0x0D, 0x1F, 0x7F):
                with contextlib.closing(kind(tunnel)) as visitor:
                    came = visitor.ask("/", ("x-odd", b"a" + bytes([octet]) + b"b"))
                    passes = came.status == 200 and any("b" in value for value in of(came.json, "x-odd"))
                    expect.that(f"{kind.version}: octet {octet:02x} of a value does not pass", not passes, came)
            for name in (
                ("x y", "x:y", "x(y", "x\xe9", "") if kind is VisitorOne else ("x y", "X-Upper", "x:y", "x\xe9", "")
            ):
                with contextlib.closing(kind(tunnel)) as visitor:
                    came = visitor.ask("/", (name, "odd-value"))
                    expect.that(
                        f"{kind.version}: a field called {name!r}",
                        came.status != 200 or "odd-value" not in str(of(came.json, name)),
                        came,
                    )


def hosts(rig):
    tunnel, other = tunnel_of(rig.server, "hosts"), tunnel_of(rig.server, "hosts")
    with attach(tunnel, echo), attach(other, echo) as away:
        for kind in VISITORS:
            with contextlib.closing(kind(tunnel)) as visitor:
                for host in (
                    tunnel.host,
                    f"{tunnel.host}:443",
                    f"{tunnel.host}:{rig.server.edge_port}",
                    tunnel.host.upper(),
                ):
                    document = seen(visitor.ask(host=host))
                    expect.equal(
                        f"{kind.version}: called {host}", dict(document["pseudo"])[":authority"].lower(), host.lower()
                    )
            for host in (
                other.host,
                "other.test",
                f"{tunnel.host}.",
                "_system",
                "",
                f"x@{tunnel.host}",
                f"{tunnel.host}:x",
            ):
                with contextlib.closing(kind(tunnel)) as visitor:
                    came = visitor.ask(host=host)
                    # Whoever leaves it empty has said the name in the ClientHello.
                    same = (
                        host in ("", f"{tunnel.host}.")
                        and came.status == 200
                        and tunnel.host in str(came.json["pseudo"])
                    )
                    expect.that(f"{kind.version}: called {host!r}", same or came.status in (400, 404, 421, None), came)
        with contextlib.closing(VisitorTwo(tunnel)) as visitor:
            came = visitor.ask("/", ("host", other.host))
            if came.status == 200:
                expect.equal(
                    "a Host beside :authority is nothing", dict(came.json["pseudo"])[":authority"], tunnel.host
                )
                expect.equal("and does not pass", of(came.json, "host"), [])
        expect.equal("nobody else is asked", [each for each in away.streams.values()], [])


def limits(rig):
    tunnel = tunnel_of(rig.server, "limits")
    with attach(tunnel, echo):
        for kind in VISITORS:
            for count, wanted in ((150, (200,)), (190, (200,)), (250, (431, 400, None)), (1000, (431, 400, None))):
                with contextlib.closing(kind(tunnel)) as visitor:
                    came = visitor.ask("/", *[(f"x-{number}", "1") for number in range(count)])
                    expect.that(f"{kind.version}: {count} fields", came.status in wanted, came)
            for size, wanted in (
                (20_000, (200,)),
                (30_000, (200,)),
                (40_000, (431, 400, None)),
                (200_000, (431, 400, None)),
            ):
                with contextlib.closing(kind(tunnel)) as visitor:
                    came = visitor.ask("/", *[(f"x-{number}", "v" * 1000) for number in range(size // 1000)])
                    expect.that(f"{kind.version}: {size} octets of fields", came.status in wanted, came)
                    with contextlib.closing(kind(tunnel)) as visitor:
                        came = visitor.ask("/", ("x-large", "v" * size))
                        expect.that(f"{kind.version}: {size} octets in one", came.status in wanted, came)


def replies(rig):
    tunnel = tunnel_of(rig.server, "replies")

    def handler(asked):
        asked.answer(
            b"told",
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("x-octets", b"\xe9\xff"),
            ("x-empty", ""),
            ("vary", "a, b"),
            ("server", "mine"),
            ("date", "Tue, 15 Nov 1994 08:12:31 GMT"),
            ("location", "//x/../y#z"),
            ("alt-svc", 'h3=":1"'),
            ("content-type", "text/plain"),
            ("etag", 'W/"x"'),
            ("x-forwarded-for", "1"),
        )

    with attach(tunnel, handler):
        for kind in VISITORS:
            with contextlib.closing(kind(tunnel)) as visitor:
                came = visitor.ask()
                expect.equal(f"{kind.version}: Set-Cookie stays two", came.all("set-cookie"), ["a=1", "b=2"])
                for name, value in {
                    "x-octets": "\xe9\xff",
                    "x-empty": "",
                    "vary": "a, b",
                    "server": "mine",
                    "location": "//x/../y#z",
                    "date": "Tue, 15 Nov 1994 08:12:31 GMT",
                    "content-type": "text/plain",
                    "etag": 'W/"x"',
                    "content-length": "4",
                }.items():
                    expect.equal(f"{kind.version}: {name}", came.all(name), [value])
                expect.equal(
                    "nothing is added", sorted(set(dict(came.headers)) & {"adit-visitor", "adit-session", "via"}), []
                )


def of_the_link(rig):
    """A visitor cannot say what only the server says, nor an agent's head what ends a connection."""
    tunnel = tunnel_of(rig.server, "of-link")
    with attach(tunnel, echo) as peer:
        for kind in VISITORS:
            with contextlib.closing(kind(tunnel)) as visitor:
                for path in ("/drain", "/superseded", "/renamed", "/revoked"):
                    expect.equal(
                        f"{kind.version}: {path} is the application's",
                        dict(seen(visitor.ask(path, method="POST"))["pseudo"])[":authority"],
                        tunnel.host,
                    )
        expect.equal("the agent has not been told anything", peer.told, [])
