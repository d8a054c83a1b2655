"""What a bad agent answers: too much, too little, too late, nothing, or no HTTP at all."""

import contextlib
import threading
import time

import expect
from native_peer import CANCEL, INTERNAL_ERROR, VISITORS, VisitorOne, VisitorTwo, attach, says, tunnel_of
from scripted_agent import DATA, END_HEADERS, END_STREAM, HEADERS, frame

SOON = 3.0
ANOTHER = b"another agent"


class Successor:
    """Where an agent breaks HTTP/2 itself, the link may be cut. It attaches again, and whoever waits is answered."""

    def __init__(self, tunnel, peer):
        self._tunnel, self._peer, self._is_over, self._agent = tunnel, peer, False, None
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_error):
        with self._peer.changed:
            self._is_over = True
            self._peer.changed.notify_all()
        self._thread.join()
        if self._agent:
            self._agent.close()

    def _watch(self):
        self._peer.until(lambda: self._peer.ended_at or self._is_over, 60)
        if self._peer.ended_at and not self._is_over:
            self._agent = attach(self._tunnel, says(ANOTHER))

    def was_needed(self, came):
        return bool(self._peer.ended_at) and (came.body == ANOTHER or came.status in (502, 503))


def checks(long):
    return [
        ("interim answers are dropped", interim),
        ("large heads", large_heads),
        ("malformed heads", malformed),
        ("wrong lengths", wrong_lengths),
        ("resets before and after the head", resets),
        ("frames that nobody expects", unexpected),
        ("an agent that takes its time", deadline),
        ("an agent that wished for more time", wished),
        ("an agent's own reasons", reasons),
        ("every status", statuses),
    ]


def interim(rig):
    tunnel = tunnel_of(rig.server, "interim")

    def handler(asked):
        asked.whole()
        for status in (100, 102, 103, 103, 199):
            asked.head(status, ("link", "</style.css>; rel=preload"))
        asked.answer(b"last", ("x-last", "1"))

    with attach(tunnel, handler):
        for kind in VISITORS:
            with contextlib.closing(kind(tunnel)) as visitor:
                for method in ("GET", "POST"):
                    came = visitor.ask("/", method=method, body=b"x" if method == "POST" else b"")
                    if came.status == 100 and kind is VisitorOne:
                        came = visitor.visited()
                    expect.equal(
                        f"{kind.version}: the last answer comes",
                        (came.status, came.body, came.get("link")),
                        (200, b"last", None),
                    )


def large_heads(rig):
    tunnel = tunnel_of(rig.server, "heads")
    heads = {
        "60 KiB in many": ([(f"x-{number}", "v" * 1000) for number in range(58)], 200),
        "60 KiB in one": ([("x-large", "v" * 60_000)], 200),
        "90 KiB in many": ([(f"x-{number}", "v" * 1000) for number in range(90)], 502),
        "90 KiB in one": ([("x-large", "v" * 90_000)], 502),
        "200 KiB": ([(f"x-{number}", "v" * 1000) for number in range(200)], 502),
        "2 MiB": ([(f"x-{number}", "v" * 10_000) for number in range(200)], 502),
        "190 fields": ([(f"x-{number}", "1") for number in range(190)], 200),
        "210 fields": ([(f"x-{number}", "1") for number in range(210)], 502),
        "1000 fields": ([(f"x-{number}", "1") for number in range(1000)], 502),
        "1000 of one name": ([("x-one", "1")] * 1000, 502),
    }

    def handler(asked):
        asked.answer(b"ok", *heads[asked.path[1:].replace("_", " ")][0])

    for what, (fields, status) in heads.items():
        for kind in VISITORS:
            with (
                attach(tunnel, handler) as peer,
                Successor(tunnel, peer) as successor,
                contextlib.closing(kind(tunnel)) as visitor,
            ):
                began = time.monotonic()
                came = visitor.ask("/" + what.replace(" ", "_"))
                cut = what == "2 MiB" and successor.was_needed(came)
                expect.that(f"{kind.version}: {what} is {status}", cut or came.status == status, came)
                # Packing 2 MiB takes the script a while.
                took, within = time.monotonic() - began, 3 * SOON if what == "2 MiB" else SOON
                expect.that("at once", took < within, took)
                if status == 200:
                    got = [each for each in came.headers if each[0].startswith("x-")]
                    expect.equal("whole", (got, came.body), (fields, b"ok"))


# May be dropped alone, since nothing of it passes.
DROPPED = ("connection", "transfer-encoding", "keep-alive", "upgrade", "request-pseudo")


def malformed(rig):
    tunnel = tunnel_of(rig.server, "malformed")
    heads = {
        "no-status": [("x-a", "1")],
        "status-0": [(":status", "0")],
        "status-99": [(":status", "99")],
        "status-1000": [(":status", "1000")],
        "status-x": [(":status", "abc")],
        "status-101": [(":status", "101")],
        "status-empty": [(":status", "")],
        "two-statuses": [(":status", "200"), (":status", "404")],
        "status-late": [("x-a", "1"), (":status", "200")],
        "request-pseudo": [(":status", "200"), (":path", "/")],
        "unknown-pseudo": [(":status", "200"), (":other", "x")],
        "connection": [(":status", "200"), ("connection", "close")],
        "transfer-encoding": [(":status", "200"), ("transfer-encoding", "chunked")],
        "keep-alive": [(":status", "200"), ("keep-alive", "5")],
        "upgrade": [(":status", "200"), ("upgrade", "h2c")],
        "upper-case": [(":status", "200"), ("X-Upper", "1")],
        "name-with-space": [(":status", "200"), ("x y", "1")],
        "empty-name": [(":status", "200"), ("", "1")],
        "value-with-line-feed": [(":status", "200"), ("x-a", b"1\nx-b: 2")],
        "value-with-return": [(":status", "200"), ("x-a", b"1\r\nx-b: 2")],
        "value-with-zero": [(":status", "200"), ("x-a", b"1\x002")],
        "two-lengths": [(":status", "200"), ("content-length", "1"), ("content-length", "2")],
        "length-x": [(":status", "200"), ("content-length", "x")],
        "length-minus": [(":status", "200"), ("content-length", "-1")],
        "length-plus": [(":status", "200"), ("content-length", "+1")],
        "length-list": [(":status", "200"), ("content-length", "1, 1")],
    }

    def handler(asked):
        asked.peer.headers_out(asked, heads[asked.path[1:]], True)

    cost = []
    for what in heads:
        for kind in VISITORS:
            with (
                attach(tunnel, handler) as peer,
                Successor(tunnel, peer) as successor,
                contextlib.closing(kind(tunnel)) as visitor,
            ):
                began = time.monotonic()
                came = visitor.ask(f"/{what}")
                if came.status == 200 and what in DROPPED:
                    names = ("keep-alive", "upgrade", "path", ":path")
                    expect.equal(f"{kind.version}: {what} stays", [came.all(name) for name in names], [[]] * 4)
                elif successor.was_needed(came):
                    cost.append(what)
                else:
                    expect.equal(f"{kind.version}: {what}", came.status, 502)
                expect.equal("nothing of it passes", came.all("x-a") + came.all("x-b"), [])
                expect.that("at once", time.monotonic() - began < SOON, time.monotonic() - began)
    print(f"        these cost the link: {', '.join(dict.fromkeys(cost))}")
    with attach(tunnel, lambda asked: asked.answer(b"ok")), contextlib.closing(VisitorOne(tunnel)) as visitor:
        expect.equal("the next agent serves", visitor.ask().status, 200)


def wrong_lengths(rig):
    tunnel = tunnel_of(rig.server, "lengths-down")

    def handler(asked):
        said, sent = map(int, asked.path[1:].split("-"))
        asked.head(200, ("content-length", str(said)))
        asked.send(b"x" * sent, end=True)

    with attach(tunnel, handler) as peer:
        for kind in VISITORS:
            for path in ("/10-5", "/5-10", "/0-5", "/10-0"):
                with contextlib.closing(kind(tunnel)) as visitor:
                    came = visitor.ask(path, timeout=5)
                    broken = came.status == 502 or not came.whole
                    # Over HTTP/1.1 what is too much cannot be told from the next answer; it must not be sent.
                    short = path in ("/5-10", "/0-5") and len(came.body) <= int(path[1:].split("-")[0])
                    expect.that(
                        f"{kind.version}: {path} is no whole answer", broken or (short and kind is VisitorOne), came
                    )
                    if kind is VisitorOne and short:
                        visitor.tls.socket.settimeout(1)
                        more = b""
                        with contextlib.suppress(TimeoutError):
                            more = visitor.tls.receive(1)
                        expect.equal(f"{path}: nothing stands behind it", visitor.rest + more, b"")
        expect.that("the link lives", peer.ping())


def resets(rig):
    tunnel = tunnel_of(rig.server, "resets")

    def handler(asked):
        when, code = asked.path[1:].split("-")
        if when == "after":
            asked.head(200)
            asked.send(b"begun")
            time.sleep(0.1)
        if when == "sized":
            asked.head(200, ("content-length", "100"))
            asked.send(b"begun")
            time.sleep(0.1)
        asked.refuse(int(code))

    with attach(tunnel, handler) as peer:
        for kind in VISITORS:
            for code in (1, INTERNAL_ERROR, CANCEL, 11, 0):
                with contextlib.closing(kind(tunnel)) as visitor:
                    began = time.monotonic()
                    came = visitor.ask(f"/before-{code}")
                    expect.equal(f"{kind.version}: {code} before the head", came.status, 502)
                    expect.that("at once", time.monotonic() - began < SOON)
                for when in ("after", "sized"):
                    with contextlib.closing(kind(tunnel)) as visitor:
                        came = visitor.ask(f"/{when}-{code}")
                        expect.equal(
                            f"{kind.version}: {code} after the head ({when})", (came.status, came.whole), (200, False)
                        )
        with contextlib.closing(VisitorTwo(tunnel)) as visitor:
            for _ in range(3):
                visitor.ask("/after-2")
            expect.that("HTTP/2: a visitor's connection lives", visitor.h2.ping())
        expect.that("and the link", peer.ping())


CUTTING = ("/data-first", "/other-stream", "/window-overflow")


def unexpected(rig):
    tunnel = tunnel_of(rig.server, "unexpected")

    def handler(asked):
        number = asked.number
        match asked.path:
            case "/data-first":
                asked.peer.write(frame(DATA, END_STREAM, number, b"body"))
            case "/head-twice":
                asked.head(200)
                asked.head(404)
                asked.end()
            case "/pseudo-in-trailers":
                asked.head(200)
                asked.peer.headers_out(asked, [(":status", "200"), ("x-a", "1")], True)
            case "/data-after-end":
                asked.answer(b"ok")
                asked.peer.write(frame(DATA, END_STREAM, number, b"more"))
            case "/head-after-end":
                asked.answer(b"ok")
                asked.head(200, end=True)
            case "/interim-end":
                asked.head(103, end=True)
            case "/empty-data":
                asked.head(200)
                asked.peer.write(
                    b"".join(frame(DATA, 0, number) for _ in range(50)) + frame(DATA, END_STREAM, number, b"ok")
                )
            case "/padded":
                asked.head(200)
                asked.peer.write(frame(DATA, 0x8 | END_STREAM, number, b"\x05ok" + bytes(5)))
            case "/other-stream":
                asked.peer.write(
                    frame(
                        HEADERS,
                        END_HEADERS | END_STREAM,
                        number + 1000,
                        asked.peer._encoder.encode([(":status", "200")]),
                    )
                )
            case "/window-overflow":
                # Nothing is left to be sent within it.
                asked.peer.write(frame(8, 0, number, b"\x7f\xff\xff\xff") * 2)
                asked.answer(b"ok")

    for path, wanted in {
        "/data-first": (502,),
        "/head-twice": (200, 502),
        "/pseudo-in-trailers": (200, 502),
        "/data-after-end": (200,),
        "/head-after-end": (200,),
        "/interim-end": (502,),
        "/empty-data": (200,),
        "/padded": (200,),
        "/other-stream": (502,),
        "/window-overflow": (200, 502),
    }.items():
        for kind in VISITORS:
            with (
                attach(tunnel, handler) as peer,
                Successor(tunnel, peer) as successor,
                contextlib.closing(kind(tunnel)) as visitor,
            ):
                began = time.monotonic()
                came = visitor.ask(path)
                cut = path in CUTTING and successor.was_needed(came)
                expect.that(f"{kind.version}: {path} is {wanted}", cut or came.status in wanted, came)
                if cut:
                    expect.equal("the link was cut", bool(peer.ended_at), True)
                elif came.status == 200 and path in (
                    "/window-overflow",
                    "/empty-data",
                    "/padded",
                    "/data-after-end",
                    "/head-after-end",
                ):
                    expect.that(f"{kind.version}: {path}: the body", came.body == b"ok" or not came.whole, came)
                elif path == "/pseudo-in-trailers":
                    expect.that("the pseudo field stays", ":status" not in dict(came.trailers), came)
                elif came.status == 200:
                    expect.equal(f"{kind.version}: {path} is no whole answer", came.whole, False)
                expect.that("at once", time.monotonic() - began < SOON, time.monotonic() - began)
    with attach(tunnel, lambda asked: asked.answer(b"ok")), contextlib.closing(VisitorOne(tunnel)) as visitor:
        expect.equal("the next agent serves", visitor.ask().status, 200)


def deadline(rig):
    with rig.another(response_deadline="2s") as server:
        tunnel = tunnel_of(server, "deadline")
        with attach(tunnel) as peer:
            for kind in VISITORS:
                with contextlib.closing(kind(tunnel)) as visitor:
                    began = time.monotonic()
                    came = visitor.ask()
                    took = time.monotonic() - began
                    expect.equal(f"{kind.version}: an agent that says nothing is 504", came.status, 504)
                    expect.that("after 2 s", 1.8 < took < 3.5, took)
                    expect.equal("the agent is told", peer.next().is_left(2), CANCEL)
            # An interim answer is no answer, and a body may take as long as it likes.
            with contextlib.closing(VisitorTwo(tunnel)) as visitor:
                stream = visitor.open()
                asked = peer.next()
                asked.head(200)
                asked.send(b"a")
                time.sleep(3)
                asked.send(b"b", end=True)
                expect.equal("a body is no answer that is late", visitor.visited(stream).body, b"ab")
                # An upload may take longer than the deadline, which begins when the request has been sent.
                stream = visitor.open("/", method="POST", end=False)
                asked = peer.next()
                for _ in range(4):
                    visitor.h2.send(stream, b"x")
                    time.sleep(0.8)
                visitor.h2.send(stream, b"y", end=True)
                asked.whole()
                asked.answer(b"ok")
                came = visitor.visited(stream)
                expect.equal("an upload may take longer", (came.status, came.body), (200, b"ok"))


def wished(rig):
    with rig.another(response_deadline="1s") as server:
        tunnel = tunnel_of(server, "wished")

        def slow(asked):
            time.sleep(2.5)
            asked.answer(b"late")

        with attach(tunnel, slow, changes={"Adit-Response-Deadline": "5"}):
            for kind in VISITORS:
                with contextlib.closing(kind(tunnel)) as visitor:
                    came = visitor.ask()
                    expect.equal(
                        f"{kind.version}: who asked for 5 s has them", (came.status, came.body), (200, b"late")
                    )
        with attach(tunnel, lambda _asked: None, changes={"Adit-Response-Deadline": "1"}):
            with contextlib.closing(VisitorOne(tunnel)) as visitor:
                expect.equal("and no more", visitor.ask().status, 504)


def reasons(rig):
    tunnel = tunnel_of(rig.server, "reasons")
    with attach(tunnel, lambda asked: asked.answer(b"", ("adit-reason", "upstream-unreachable"), status=502)):
        for kind in VISITORS:
            with contextlib.closing(kind(tunnel)) as visitor:
                came = visitor.ask()
                expect.equal(f"{kind.version}: an agent's own 502", came.status, 502)
                print(f"        {kind.version}: {came}")
    for kind in VISITORS:
        with contextlib.closing(kind(tunnel)) as visitor:
            came = visitor.ask()
            expect.that(f"{kind.version}: without an agent", came.status in (502, 503), came)
            print(f"        {kind.version}: {came}")


def statuses(rig):
    tunnel = tunnel_of(rig.server, "statuses")
    with attach(tunnel, lambda asked: asked.answer(b"", status=int(asked.path[1:]))):
        for kind in VISITORS:
            with contextlib.closing(kind(tunnel)) as visitor:
                for status in [*range(200, 600, 7), 421, 429, 502, 503, 504, 511, 599, 600, 799, 999]:
                    came = visitor.ask(f"/{status}")
                    expect.that(
                        f"{kind.version}: {status} passes",
                        came.status == status or (status > 599 and came.status == 502),
                        came,
                    )
