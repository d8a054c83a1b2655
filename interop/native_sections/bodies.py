"""Bodies as they come, both ways: pieces, trailers, early answers, no body at all, and much."""

import contextlib
import gzip
import hashlib
import threading
import time

import expect
from native_peer import MIB, NO_ERROR, VISITORS, VisitorOne, VisitorTwo, attach, resident, tunnel_of
from scripted_agent import END_HEADERS, END_STREAM, HEADERS, Ended, frame

PIECES = [b"first, ", b"second, ", b"x" * 20_000, b"last"]
SOON = 2.0


def checks(long):
    return [
        ("a request piece by piece", up_in_pieces),
        ("an answer piece by piece", down_in_pieces),
        ("both at once", both_at_once),
        ("an answer before the request has ended", early),
        ("trailers of requests", trailers_up),
        ("trailers of answers", trailers_down),
        ("HEAD", head),
        ("answers without a body", bodiless),
        ("parts and packed bodies", partial_content),
        ("Expect: 100-continue", expects),
        ("lengths of requests", lengths),
        ("40 MiB both ways", large),
        ("an agent that does not read", unread),
        ("a visitor who leaves", left),
        ("a visitor who breaks off", broken_off),
        ("HTTP/1.0, and requests in a row", old_ways),
    ]


def up_in_pieces(rig):
    tunnel = tunnel_of(rig.server, "up")
    with attach(tunnel) as peer:
        with contextlib.closing(VisitorOne(tunnel)) as visitor:
            visitor.send(f"POST /up HTTP/1.1\r\nHost: {tunnel.host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            asked, sent = peer.next(SOON), b""
            for piece in PIECES:
                visitor.send(b"%x\r\n%s\r\n" % (len(piece), piece))
                sent += piece
                expect.that(f"{piece[:10]} comes when it is sent", asked.holds(sent, SOON), asked)
            expect.that("and is not the end", not asked.ended)
            visitor.send(b"0\r\n\r\n")
            expect.equal("the end comes", asked.whole(SOON), sent)
            asked.answer(b"thanks")
            expect.equal("it is answered", visitor.visited().body, b"thanks")
            # With a length.
            visitor.send(f"POST /up HTTP/1.1\r\nHost: {tunnel.host}\r\nContent-Length: 10\r\n\r\nhalf-".encode())
            asked = peer.next(SOON)
            expect.that("half of a sized one comes", asked.holds(b"half-", SOON), asked)
            visitor.send(b"whole")
            expect.equal("and the rest", asked.whole(SOON), b"half-whole")
            asked.answer(b"thanks")
            expect.equal("it is answered", visitor.visited().body, b"thanks")
        with contextlib.closing(VisitorTwo(tunnel)) as visitor:
            stream = visitor.open("/up", method="POST", end=False)
            asked, sent = peer.next(SOON), b""
            for piece in PIECES:
                visitor.h2.send(stream, piece)
                sent += piece
                expect.that(f"HTTP/2: {piece[:10]} comes when it is sent", asked.holds(sent, SOON), asked)
            visitor.h2.send(stream, b"", end=True)
            expect.equal("HTTP/2: the end comes", asked.whole(SOON), sent)
            asked.answer(b"thanks")
            expect.equal("HTTP/2: it is answered", visitor.visited(stream).body, b"thanks")


def down_in_pieces(rig):
    tunnel = tunnel_of(rig.server, "down")
    with attach(tunnel) as peer:
        with contextlib.closing(VisitorOne(tunnel)) as visitor:
            visitor.send(f"GET /down HTTP/1.1\r\nHost: {tunnel.host}\r\n\r\n".encode())
            asked = peer.next(SOON)
            asked.head(200, ("content-type", "text/event-stream"))
            head = visitor.head(SOON)
            expect.equal(
                "the head comes before the body", (head.status, head.get("transfer-encoding")), (200, "chunked")
            )
            for piece in PIECES:
                asked.send(piece)
                came = b""
                while len(came) < len(piece):
                    came += visitor.exactly(int(visitor._until(b"\r\n", SOON), 16) + 2, SOON)[:-2]
                expect.equal(f"{piece[:10]} comes when it is sent", came, piece)
            asked.end()
            expect.equal("and the end", visitor.exactly(5, SOON), b"0\r\n\r\n")
        with contextlib.closing(VisitorTwo(tunnel)) as visitor:
            stream = visitor.open("/down")
            asked, sent = peer.next(SOON), b""
            asked.head(200)
            expect.that("HTTP/2: the head comes before the body", visitor.h2.until(lambda: stream.headers, SOON))
            for piece in PIECES:
                asked.send(piece)
                sent += piece
                expect.that(
                    f"HTTP/2: {piece[:10]}",
                    visitor.h2.until(lambda sent=sent: bytes(stream.body) == sent, SOON),
                    stream,
                )
            asked.end()
            expect.equal("HTTP/2: and the end", visitor.visited(stream, SOON).whole, True)


def both_at_once(rig):
    tunnel = tunnel_of(rig.server, "both")
    with attach(tunnel) as peer, contextlib.closing(VisitorTwo(tunnel)) as visitor:
        stream = visitor.open("/both", method="POST", end=False)
        asked = peer.next(SOON)
        asked.head(200)
        expect.that("the answer begins", visitor.h2.until(lambda: stream.headers, SOON), stream)
        said = b""
        for number in range(50):
            visitor.h2.send(stream, b"question %d;" % number)
            said += b"question %d;" % number
            expect.that("a question comes", asked.holds(said, SOON), asked)
            asked.send(b"answer %d;" % number)
            wanted = b"".join(b"answer %d;" % each for each in range(number + 1))
            expect.that(
                "an answer comes", visitor.h2.until(lambda wanted=wanted: bytes(stream.body) == wanted, SOON), stream
            )
        asked.end()
        expect.that("the answer may end first", visitor.h2.until(lambda: stream.ended, SOON), stream)


def early(rig):
    tunnel = tunnel_of(rig.server, "early")

    def whole_answer(code):
        def handler(asked):
            asked.answer(b"too much", status=413)
            if code is not None:
                asked.refuse(code)

        return handler

    # RFC 9113 section 8.1: a server that has answered may ask for no more with NO_ERROR.
    for code in (None, NO_ERROR):
        with attach(tunnel, whole_answer(code)):
            for kind in VISITORS:
                with contextlib.closing(kind(tunnel)) as visitor:
                    began = time.monotonic()
                    came = visitor.ask("/early", method="POST", body=b"x" * (4 * MIB))
                    expect.equal(
                        f"{kind.version}, {code}: the early answer comes", (came.status, came.body), (413, b"too much")
                    )
                    expect.that("soon", time.monotonic() - began < 8, time.monotonic() - began)
            with contextlib.closing(VisitorOne(tunnel)) as visitor:
                visitor.send(f"POST / HTTP/1.1\r\nHost: {tunnel.host}\r\nContent-Length: 1000\r\n\r\nbegun".encode())
                came = visitor.visited(5)
                expect.equal(
                    f"{code}: before a slow request has ended, too", (came.status, came.body), (413, b"too much")
                )
            with contextlib.closing(VisitorTwo(tunnel)) as visitor:
                stream = visitor.open("/", method="POST", body=b"begun", end=False)
                expect.that(
                    f"HTTP/2, {code}: the same",
                    visitor.h2.until(lambda stream=stream: bytes(stream.body) == b"too much", 5),
                    stream,
                )
                expect.equal("HTTP/2: the connection lives", visitor.ask().status, 413)


def trailers_up(rig):
    tunnel = tunnel_of(rig.server, "trailers-up")

    def handler(asked):
        body = asked.whole()
        asked.answer(repr((body, asked.trailers)).encode())

    wanted = repr((b"body", [("x-sum", "1"), ("x-more", "2")])).encode()
    with attach(tunnel, handler):
        with contextlib.closing(VisitorOne(tunnel)) as visitor:
            head = f"POST / HTTP/1.1\r\nHost: {tunnel.host}\r\nTrailer: x-sum, x-more\r\n"
            head += "Transfer-Encoding: chunked\r\n\r\n"
            visitor.send(head.encode() + b"4\r\nbody\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n")
            expect.equal("trailers come", visitor.visited().body, wanted)
            forged = "Adit-Visitor: 6.6.6.6\r\nX-Forwarded-For: 6.6.6.6\r\n"
            forged += "Content-Length: 3\r\nTransfer-Encoding: x\r\nX-Sum: 1\r\n\r\n"
            visitor.send(head.encode() + b"4\r\nbody\r\n0\r\n" + forged.encode())
            came = visitor.visited()
            expect.that(
                "what would be forged or of the framing does not",
                came.status in (200, 400) and b"6.6.6.6" not in came.body and b"length" not in came.body,
                came,
            )
        with contextlib.closing(VisitorTwo(tunnel)) as visitor:
            for trailers in (
                [("x-sum", "1"), ("x-more", "2")],
                [("x-sum", "1"), ("adit-visitor", "6.6.6.6"), ("x-forwarded-for", "6.6.6.6")],
            ):
                stream = visitor.open("/", method="POST", body=b"body", end=False)
                block = visitor.h2._encoder.encode(trailers)
                visitor.h2.write(frame(HEADERS, END_HEADERS | END_STREAM, stream.number, block))
                came = visitor.visited(stream)
                if len(trailers) == 2:
                    expect.equal("HTTP/2: trailers come", came.body, wanted)
                else:
                    expect.that(
                        "HTTP/2: forged ones do not", b"6.6.6.6" not in came.body and b"x-sum" in came.body, came
                    )


def trailers_down(rig):
    tunnel = tunnel_of(rig.server, "trailers-down")

    def handler(asked):
        announced = [("trailer", "x-sum, x-more")] if asked.path != "/unannounced" else []
        asked.head(200, *announced)
        if asked.path != "/no-body":
            asked.send(b"body")
        asked.end(("x-sum", "1"), ("x-more", "2"))

    wanted = [("x-sum", "1"), ("x-more", "2")]
    with attach(tunnel, handler):
        with contextlib.closing(VisitorOne(tunnel)) as visitor:
            for path in ("/", "/no-body"):
                came = visitor.ask(path, ("TE", "trailers"), ("Connection", "TE"))
                body = b"body" if path == "/" else b""
                expect.equal(
                    f"{path}: trailers come to who takes them",
                    (came.body, sorted(came.trailers)),
                    (body, sorted(wanted)),
                )
                came = visitor.ask(path)
                expect.equal("to nobody else", (came.body, came.trailers, came.whole), (body, [], True))
            came = visitor.ask("/unannounced", ("TE", "trailers"), ("Connection", "TE"))
            expect.equal("unannounced ones end the body all the same", (came.body, came.whole), (b"body", True))
        with contextlib.closing(VisitorTwo(tunnel)) as visitor:
            for path, body in (("/", b"body"), ("/no-body", b""), ("/unannounced", b"body")):
                came = visitor.ask(path)
                expect.equal(
                    f"HTTP/2: {path}: trailers come", (came.body, came.trailers, came.whole), (body, wanted, True)
                )
    # gRPC's errors: a head that is the end.
    with (
        attach(
            tunnel, lambda asked: asked.head(200, ("content-type", "application/grpc"), ("grpc-status", "5"), end=True)
        ),
        contextlib.closing(VisitorTwo(tunnel)) as visitor,
    ):
        came = visitor.ask("/x.Y/Z", ("te", "trailers"), method="POST", body=b"\0\0\0\0\0")
        expect.equal(
            "trailers only", (came.status, came.get("grpc-status"), came.body, came.whole), (200, "5", b"", True)
        )


def head(rig):
    tunnel = tunnel_of(rig.server, "head")

    def handler(asked):
        fields = {"/sized": [("content-length", "1234")], "/zero": [("content-length", "0")], "/plain": []}[asked.path]
        asked.head(200, ("x-method", asked.method), *fields, end=True)

    with attach(tunnel, handler):
        for kind in VISITORS:
            with contextlib.closing(kind(tunnel)) as visitor:
                for path, wanted in (("/sized", ["1234"]), ("/zero", ["0"]), ("/plain", [])):
                    came = visitor.ask(path, method="HEAD")
                    expect.equal(
                        f"{kind.version}: HEAD {path}",
                        (came.status, came.body, came.all("content-length")),
                        (200, b"", wanted),
                    )
                    expect.equal("is HEAD to the agent", came.get("x-method"), "HEAD")
                came = visitor.ask("/zero")
                expect.equal(
                    f"{kind.version}: GET of nothing",
                    (came.status, came.body, came.all("content-length")),
                    (200, b"", ["0"]),
                )
                expect.equal("the connection goes on", visitor.ask("/zero").status, 200)


def bodiless(rig):
    tunnel = tunnel_of(rig.server, "bodiless")

    def handler(asked):
        status = int(asked.path[1:4])
        fields = [("etag", '"x"'), ("content-length", "1234")] if asked.path.endswith("sized") else [("etag", '"x"')]
        asked.head(status, *fields, end=True)

    with attach(tunnel, handler):
        for kind in VISITORS:
            with contextlib.closing(kind(tunnel)) as visitor:
                for path in ("/204", "/304", "/205", "/304-sized", "/200", "/302", "/404", "/204"):
                    came = visitor.ask(path)
                    expect.equal(
                        f"{kind.version}: {path}",
                        (came.status, came.body, came.whole, came.get("etag")),
                        (int(path[1:4]), b"", True, '"x"'),
                    )
                    if path.startswith("/204"):
                        expect.equal(
                            "204 has no length", came.all("content-length") + came.all("transfer-encoding"), []
                        )
                    if path == "/304-sized":
                        expect.that("304 may tell one", came.get("content-length") in (None, "1234"), came)


def partial_content(rig):
    tunnel = tunnel_of(rig.server, "partial")
    packed = gzip.compress(b"packed " * 1000)

    def handler(asked):
        fields = [("content-encoding", "gzip"), ("content-type", "text/plain"), ("vary", "accept-encoding")]
        if asked.get("range"):
            part = packed[5:15]
            asked.answer(
                part,
                *fields,
                ("content-range", f"bytes 5-14/{len(packed)}"),
                ("x-range", asked.get("range")),
                status=206,
            )
        else:
            asked.answer(
                packed, *fields, ("accept-ranges", "bytes"), ("x-accepts", asked.get("accept-encoding") or "nothing")
            )

    with attach(tunnel, handler):
        for kind in VISITORS:
            with contextlib.closing(kind(tunnel)) as visitor:
                came = visitor.ask("/", ("range", "bytes=5-14"))
                expect.equal(f"{kind.version}: 206", (came.status, came.body), (206, packed[5:15]))
                for name, wanted in {
                    "content-encoding": "gzip",
                    "content-range": f"bytes 5-14/{len(packed)}",
                    "content-length": "10",
                    "x-range": "bytes=5-14",
                }.items():
                    expect.equal(f"{kind.version}: its {name}", came.all(name), [wanted])
                for accepts in ([], [("accept-encoding", "gzip, br")], [("accept-encoding", "identity")]):
                    came = visitor.ask("/", *accepts)
                    expect.equal(
                        f"{kind.version}: {accepts}: nothing is unpacked",
                        (came.body, came.get("content-encoding")),
                        (packed, "gzip"),
                    )
                    expect.equal(
                        "Accept-Encoding is the visitor's",
                        came.get("x-accepts"),
                        dict(accepts).get("accept-encoding", "nothing"),
                    )


def expects(rig):
    tunnel = tunnel_of(rig.server, "expects")
    with attach(tunnel) as peer, contextlib.closing(VisitorOne(tunnel)) as visitor:
        head = f"POST / HTTP/1.1\r\nHost: {tunnel.host}\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n".encode()
        visitor.send(head)
        expect.equal("who asks first is told to go on", visitor.head(SOON).status, 100)
        visitor.send(b"body")
        asked = peer.next(SOON)
        expect.equal("the agent has the body", asked.whole(SOON), b"body")
        expect.equal("and no Expect", asked.all("expect"), [])
        asked.answer(b"thanks")
        came = visitor.visited()
        expect.equal("it is answered", (came.status, came.body), (200, b"thanks"))
        visitor.send(head)
        asked = peer.next(SOON)
        asked.answer(b"no", status=417)
        came = visitor.visited()
        came = visitor.visited() if came.status == 100 else came
        expect.equal("an application may say no before", (came.status, came.body), (417, b"no"))
    with attach(tunnel) as peer, contextlib.closing(VisitorTwo(tunnel)) as visitor:
        stream = visitor.open("/", ("expect", "100-continue"), ("content-length", "4"), method="POST", end=False)
        asked = peer.next(SOON)
        expect.equal("HTTP/2: no Expect", asked.all("expect"), [])
        visitor.h2.send(stream, b"body", end=True)
        expect.equal("HTTP/2: the body", asked.whole(SOON), b"body")
        asked.answer(b"thanks")
        expect.equal("HTTP/2: it is answered", visitor.visited(stream).body, b"thanks")


def lengths(rig):
    """What could be understood differently behind us is refused, and a body that is not as long as it said is none."""
    tunnel = tunnel_of(rig.server, "lengths")
    with attach(tunnel) as peer:
        for fields in (
            "Content-Length: 4\r\nContent-Length: 5",
            "Content-Length: 4, 5",
            "Content-Length: +4",
            "Content-Length: -4",
            "Content-Length: 4\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ):
            with contextlib.closing(VisitorOne(tunnel)) as visitor:
                visitor.send(
                    f"POST / HTTP/1.1\r\nHost: {tunnel.host}\r\n{fields}\r\n\r\n4\r\nbody\r\n0\r\n\r\n".encode()
                )
                came = visitor.visited(5)
                expect.that(f"{fields!r} is refused", came.status in (400, 411, 501, None), came)
        expect.that("the agent has not seen them", peer.asked.empty())
        with contextlib.closing(VisitorTwo(tunnel)) as visitor:
            for length, body in (("3", b"body"), ("5", b"body")):
                stream = visitor.open("/", ("content-length", length), method="POST", body=body)
                with contextlib.suppress(Exception):
                    asked = peer.next(SOON)
                    with contextlib.suppress(Ended):
                        asked.whole(SOON)
                    expect.that(f"HTTP/2: {length} for 4 is no whole request", not asked.ended, asked)
                    asked.refuse(8)
                came = visitor.visited(stream)
                expect.that(f"HTTP/2: {length} for 4 is refused", came.status in (400, 502, None), came)


def large(rig):
    size, piece = 40 * MIB, bytes(range(256)) * 256
    wanted = hashlib.sha256(piece * (size // len(piece))).hexdigest()

    def handler(asked):
        if asked.method == "POST":
            asked.answer(hashlib.sha256(asked.whole(60)).hexdigest().encode())
        else:
            asked.head(200, ("content-length", str(size)))
            for _ in range(size // len(piece)):
                asked.send(piece, timeout=60)
            asked.end()

    with rig.another() as server:
        tunnel = tunnel_of(server, "large")
        with attach(tunnel, handler, answers_pings=True):
            with contextlib.closing(VisitorOne(tunnel)) as visitor:
                visitor.ask("/", method="POST", body=b"warm")
            before, _ = resident(server.pid)
            most, over = [before], threading.Event()

            def watch():
                while not over.wait(0.05):
                    most.append(resident(server.pid)[0])

            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                for kind in VISITORS:
                    with contextlib.closing(kind(tunnel)) as visitor:
                        began = time.monotonic()
                        came = visitor.ask("/", method="POST", body=piece * (size // len(piece)), timeout=60)
                        expect.equal(f"{kind.version}: 40 MiB reach the agent", came.body.decode(), wanted)
                        up = time.monotonic() - began
                        came = visitor.ask("/", timeout=60)
                        expect.equal(f"{kind.version}: and the visitor", hashlib.sha256(came.body).hexdigest(), wanted)
                        expect.equal("with their length", came.all("content-length"), [str(size)])
                        print(f"        {kind.version}: up {up:.1f} s, down {time.monotonic() - began - up:.1f} s")
            finally:
                over.set()
                watcher.join()
            print(f"        server: {before:.0f} MiB before, {max(most):.0f} MiB at most")
            expect.that("the server holds little of it", max(most) - before < 32, max(most) - before)


def unread(rig):
    """An application that does not read holds the visitor up, and not the server's memory."""
    with rig.another() as server:
        tunnel = tunnel_of(server, "unread")
        with attach(tunnel, None, credits=False, settings=((3, 100), (4, 65_535), (8, 1))) as peer:
            with contextlib.closing(VisitorOne(tunnel)) as visitor:
                before, _ = resident(server.pid)
                visitor.send(f"POST / HTTP/1.1\r\nHost: {tunnel.host}\r\nContent-Length: {200 * MIB}\r\n\r\n".encode())
                visitor.tls.socket.settimeout(1.5)
                sent, piece = 0, bytes(MIB)
                with contextlib.suppress(TimeoutError):
                    while sent < 200 * MIB:
                        visitor.send(piece)
                        sent += MIB
                asked = peer.next(SOON)
                expect.that("the visitor is held up", sent < 32 * MIB, sent)
                expect.that("the agent has what it asked for", 0 < len(asked.body) <= 65_535, len(asked.body))
                expect.that("the server holds little", resident(server.pid)[0] - before < 24, resident(server.pid))
                with contextlib.closing(VisitorTwo(tunnel)) as other:
                    stream = other.open("/other")
                    peer.next(SOON).answer(b"ok")
                    expect.equal("others are served", other.visited(stream).body, b"ok")


def left(rig):
    tunnel = tunnel_of(rig.server, "left")
    with attach(tunnel) as peer:
        for when in ("before the head", "after the head", "in the request"):
            for kind in VISITORS:
                visitor, body = kind(tunnel), when == "in the request"
                if kind is VisitorOne:
                    length = "Content-Length: 100\r\n" if body else ""
                    visitor.send(
                        f"POST / HTTP/1.1\r\nHost: {tunnel.host}\r\n{length}\r\n{'begun' if body else ''}".encode()
                    )
                else:
                    stream = visitor.open("/", method="POST", body=b"begun" if body else b"", end=not body)
                asked = peer.next(SOON)
                if when == "after the head":
                    asked.head(200)
                    asked.send(b"begun")
                    time.sleep(0.1)
                if kind is VisitorTwo:
                    visitor.h2.reset(stream)
                    expect.equal(f"{when}: a reset of {kind.version} is CANCEL", asked.is_left(SOON), 8)
                    stream = visitor.open("/again")
                    peer.next(SOON).answer(b"ok")
                    expect.equal("its connection goes on", visitor.visited(stream).body, b"ok")
                    stream = visitor.open("/", method="POST", body=b"begun" if body else b"", end=not body)
                    asked = peer.next(SOON)
                    if when == "after the head":
                        asked.head(200)
                visitor.close()
                if when == "after the head":
                    with contextlib.suppress(Ended):
                        for _ in range(20):
                            asked.send(b"more")
                            time.sleep(0.02)
                expect.equal(f"{when}: the end of {kind.version} is CANCEL", asked.is_left(5), 8)
        expect.that("the link lives", peer.ping())


def broken_off(rig):
    """A chunked request that ends in the middle is no end to the agent."""
    tunnel = tunnel_of(rig.server, "broken")
    with attach(tunnel) as peer:
        for rest in (
            b"5\r\nhal",
            b"5\r\nhello\r\n",
            b"5\r\nhello\r\nzz\r\n",
            b"5\r\nhelloXX0\r\n\r\n",
            b"5\r\nhello\r\n0\r\nbad trailer\r\n\r\n",
        ):
            with contextlib.closing(VisitorOne(tunnel)) as visitor:
                visitor.send(
                    f"POST / HTTP/1.1\r\nHost: {tunnel.host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + rest
                )
                try:
                    asked = peer.next(SOON)
                except Exception:
                    continue
                if rest in (b"5\r\nhal", b"5\r\nhello\r\n"):
                    visitor.close()
                expect.that(f"{rest}: the agent is told that it is broken", asked.is_left(5) is not None, asked)
                expect.that("and not that it ended", not asked.ended, asked)


def old_ways(rig):
    tunnel = tunnel_of(rig.server, "old-ways")

    def handler(asked):
        asked.whole()
        asked.head(200, ("x-path", asked.path))
        for _ in range(3):
            asked.send(b"piece ")
        asked.end(("x-sum", "1"))

    with attach(tunnel, handler):
        with contextlib.closing(VisitorOne(tunnel)) as visitor:
            visitor.send(f"GET /old HTTP/1.0\r\nHost: {tunnel.host}\r\n\r\n".encode())
            came = visitor.visited()
            expect.equal("HTTP/1.0 knows no chunks", (came.all("transfer-encoding"), came.body), ([], b"piece " * 3))
        with contextlib.closing(VisitorOne(tunnel)) as visitor:
            one = f"GET /%d HTTP/1.1\r\nHost: {tunnel.host}\r\n\r\n"
            visitor.send("".join(one % number for number in range(10)).encode())
            came = [visitor.visited() for _ in range(10)]
            expect.equal(
                "ten in one flight", [each.get("x-path") for each in came], [f"/{number}" for number in range(10)]
            )
            expect.equal("each whole", {(each.body, each.whole) for each in came}, {(b"piece " * 3, True)})
            came = visitor.ask("/", ("Connection", "close"))
            expect.equal("the last one", (came.body, came.get("connection")), (b"piece " * 3, "close"))
            expect.equal("and the end", visitor.tls.receive(SOON), b"")
