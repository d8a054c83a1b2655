"""What visitors ask for is what the agent is asked for, octet by octet; or it is 400. It is never another resource."""

import contextlib

import expect
from native_peer import NOTHING, VISITORS, VisitorOne, VisitorTwo, attach, octets, tunnel_of

# Of RFC 3986: what stands for itself in a path, and what is escaped.
PLAIN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=:@/"


def checks(long):
    return [
        ("every octet in the path", every_octet_of("path")),
        ("fragments over HTTP/2", fragments),
        ("every octet in the query", every_octet_of("query")),
        ("paths that others rewrite", rewritten),
        ("an agent of the SDKs", by_an_sdk),
        ("forms of the target", forms),
        ("long targets", long_targets),
    ]


class Asker:
    """Asks on a connection that is made again when the server has ended it."""

    def __init__(self, kind, tunnel):
        self._kind, self._tunnel, self._visitor = kind, tunnel, None

    def ask(self, path, **named):
        for _ in range(2):
            fresh = self._visitor is None
            self._visitor = self._visitor or self._kind(self._tunnel)
            try:
                came = self._visitor.ask(path, **named)
            except Exception:
                came = NOTHING
            if came.status is None or came.status == 400:
                self._visitor.close()
                self._visitor = None
            if came.status is not None or fresh:
                return came
        return came

    def close(self):
        if self._visitor:
            self._visitor.close()


def tells(asked):
    asked.whole()
    asked.answer(asked.path.encode("latin-1"), ("x-method", asked.method), ("x-authority", asked.authority))


def escaped(path):
    return b"".join(bytes([each]) if each < 0x80 else b"%%%02X" % each for each in octets(path))


def is_odd(path):
    """May be refused: what RFC 3986 has no place for, and what is no UTF-8."""
    try:
        octets(path).decode()
    except UnicodeDecodeError:
        return True
    return bool(set(path) & set('"<>\\^`{|}') or "%" in path)


def every_octet_of(where):
    def check(rig):
        tunnel = tunnel_of(rig.server, f"octets-{where}")
        with attach(tunnel, tells):
            for kind in VISITORS:
                refused = bytearray()
                with contextlib.closing(Asker(kind, tunnel)) as asker:
                    for octet in range(256):
                        if kind is VisitorTwo and octet in b"#":
                            continue  # `fragments`
                        path = (b"/a%sb" if where == "path" else b"/a?b%sc") % bytes([octet])
                        came = asker.ask(path)
                        what = f"{kind.version}: {path}"
                        if came.status == 200:
                            expect.equal(f"{what} is what the agent is asked for", came.body, escaped(path))
                        else:
                            expect.that(f"{what} is asked for or refused", came.status in (400, None), came)
                            refused.append(octet)
                        if octet in PLAIN or (where == "query" and octet in b"?%"):
                            expect.equal(f"{what} passes", came.status, 200)
                        if octet <= 0x20 or octet == 0x7F or octet in b"#":
                            expect.that(f"{what} does not", came.status != 200, came)
                print(f"        {kind.version}, {where}: refused {bytes(each for each in refused if each > 32)!r}")

    return check


PATHS = r"""/ // /// //a /a// /a//b/ /. /.. /./ /../ /a/. /a/.. /a/./b /a/../b /../../etc/passwd /... /%2e%2e/ /%2E%2E/a
/a%2Fb /a%2fb /%2F /%2f%2f /a%5Cb /a%5cb /a\b /\ /..\a /a%00b /a%0d%0ab /a%20b /a+b /%7Euser /~user /%61 /%c3%bc
/a;b=c /a;/b /a%3fb /a%23b /a? /? /?? /a?b?c /a?b=/../c /a?b=//c /a?b=%2F /a?&&= /a%zz /a% /% /a?%
/a:b /a@b /@ /: /a|b /a^b /a`b /a"b /a<b> /{a} /[a] /* /http://other.test/ /a?http://other.test/
/_system/attach /_system/drain /drain /api/v1/tunnels /index.html /a/b/c/d/e/f/g/h/i/j""".split()
# UTF-8 in a path and in a query, and what is none.
PATHS += ["/\xc3\xbc", "/a?\xc3\xbc", "/\xff\xfe"]
REFUSED = ("/a#b", "/#", "/a?b#c", "/#/../b", "/a%20#")


def rewritten(rig):
    tunnel = tunnel_of(rig.server, "rewritten")
    with attach(tunnel, tells):
        for kind in VISITORS:
            with contextlib.closing(Asker(kind, tunnel)) as asker:
                for path in PATHS:
                    came = asker.ask(path)
                    if came.status == 200:
                        expect.equal(f"{kind.version}: {path} is what the agent is asked for", came.body, escaped(path))
                    else:
                        expect.that(
                            f"{kind.version}: {path} is exact", is_odd(path) and came.status in (400, None), came
                        )
                for path in ("/a%2Fb", "/%2e%2e/", "//a", "/a/../b", "/a%5Cb", "/a?", "/a%00b", "/\xc3\xbc"):
                    came = asker.ask(path)
                    expect.equal(f"{kind.version}: {path} passes", (came.status, came.body), (200, escaped(path)))
                for path in REFUSED if kind is VisitorOne else ():
                    came = asker.ask(path)
                    expect.that(f"{kind.version}: {path} is refused", came.status in (400, None), came)


def by_an_sdk(rig):
    """The other wire: exact or 400, too. Its agents refuse themselves what applications may take for another path."""
    tunnel = tunnel_of(rig.server, "by-sdk")
    agent = tunnel.agent(lambda agent, envelope: agent.reply(envelope.id, envelope.path.encode("latin-1")))
    for kind in VISITORS:
        with contextlib.closing(Asker(kind, tunnel)) as asker:
            octet_by_octet = [f"/a{chr(octet)}b" for octet in range(0x21, 0x100) if octet not in b"#"]
            for path in [*PATHS, *octet_by_octet, *(REFUSED if kind is VisitorOne else ())]:
                came = asker.ask(path)
                if came.status == 200:
                    # An empty query is none to the SDKs.
                    expect.equal(f"{kind.version}: {path!r}", came.body.rstrip(b"?"), escaped(path).rstrip(b"?"))
                else:
                    expect.that(f"{kind.version}: {path!r} is refused", came.status in (400, None), came)
            for path in ("/a", "//a", "/a?b=%2F", "/~user", "/a;b=c"):
                expect.equal(f"{kind.version}: {path} passes", asker.ask(path).status, 200)
    agent.close()


def forms(rig):
    tunnel = tunnel_of(rig.server, "forms")
    host = tunnel.host
    with attach(tunnel, tells):
        with contextlib.closing(Asker(VisitorOne, tunnel)) as asker:
            for target, wanted in {
                f"https://{host}/a?b": "/a?b",
                f"https://{host}/a//../b": "/a//../b",
                f"https://{host}/": "/",
                f"HTTPS://{host.upper()}/a": "/a",
                f"https://{host}?a": "/?a",
                f"http://{host}/a": "/a",
                "https://other.test/a": None,
                f"https://user@{host}/a": None,
                f"https://{host}:1/a": "/a",
                f"https://{host}/a#b": None,
                "a": None,
                "?a": None,
                "": None,
                "*": None,
                f"{host}:443": None,
                f"//{host}": f"//{host}",
                "ftp://other.test/": None,
            }.items():
                came = asker.ask(target)
                if came.status == 200:
                    expect.equal(f"{target!r} is asked for as", came.body.decode(), wanted)
                else:
                    expect.that(f"{target!r} is refused", came.status in (400, 421, None), came)
            came = asker.ask("*", method="OPTIONS")
            # It is about the server as a whole, which may answer it itself (RFC 9110 section 9.3.7).
            expect.that("OPTIONS * is no other resource", came.status in (204, 400) or came.body == b"*", came)
            came = asker.ask(f"{host}:443", method="CONNECT")
            expect.that("CONNECT is refused", came.status in (400, 404, 405, 501), came)
        with contextlib.closing(Asker(VisitorTwo, tunnel)) as asker:
            for target in ("a", "", "*", "?a", f"https://{host}/a", "//", "\\"):
                came = asker.ask(target)
                if came.status == 200:
                    # `https://HOST?a` and `https://HOST/?a` are one (RFC 9110 section 4.2.3).
                    wanted = "/?a" if target == "?a" else target
                    expect.equal(f"HTTP/2: {target!r} is asked for as it is", came.body.decode(), wanted)
                else:
                    expect.that(f"HTTP/2: {target!r} is refused", came.status in (400, None), came)
            came = asker.ask("*", method="OPTIONS")
            expect.that("HTTP/2: OPTIONS * is no other", came.status in (204, 400, None) or came.body == b"*", came)


def fragments(rig):
    """No part of a request, whoever sends one. Over HTTP/2 the visitor's library cuts there before anybody can see it."""
    tunnel = tunnel_of(rig.server, "fragments")
    with attach(tunnel, tells), contextlib.closing(Asker(VisitorTwo, tunnel)) as asker:
        for path in REFUSED:
            came = asker.ask(path)
            is_cut = came.status == 200 and came.body == path.partition("#")[0].encode()
            expect.that(f"HTTP/2: {path} is refused, or what stands before it", came.status in (400, None) or is_cut, came)


def long_targets(rig):
    tunnel = tunnel_of(rig.server, "long-targets")
    with attach(tunnel, tells):
        for kind in VISITORS:
            with contextlib.closing(Asker(kind, tunnel)) as asker:
                for length in (1000, 8000, 14_000, 30_000, 65_000, 200_000):
                    path = "/" + "a" * (length - 1)
                    came = asker.ask(path)
                    if length < 8001 or came.status == 200:
                        expect.that(f"{kind.version}: {length} octets pass whole", came.body == path.encode(), came)
                    else:
                        expect.that(f"{kind.version}: {length} octets", came.status in (400, 414, 431, None), came)
