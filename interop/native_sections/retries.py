"""Requests that an agent has not begun with go to another session; others are not done twice."""

import contextlib
import time

import expect
from native_peer import (
    NO_ERROR,
    REFUSED_STREAM,
    VISITORS,
    VisitorOne,
    VisitorTwo,
    attach,
    instance,
    is_connected,
    says,
    tunnel_of,
)

SOON = 3.0
KIB = 1024
# An agent may be on its way, and visitors wait for it a little.
OFFLINE_WITHIN = 7.0


def checks(long):
    some = [
        ("refused streams go to another session", refused),
        ("refused everywhere", refused_everywhere),
        ("GOAWAY: what came after the last stream", goaway),
        ("GOAWAY: what is open may finish", goes_away),
        ("a link that is cut", cut),
        ("a link that is cut behind the head", cut_later),
        ("a link that is cut behind the head of an upload", cut_upload),
        ("bodies that cannot be sent again", bodies),
        ("an error of HTTP/2 from the agent", broken),
    ]
    return some + [("links that fall silent", silent)] * long


class Pair:
    """Two sessions of one instance."""

    def __init__(self, tunnel, first=None, second=None):
        self._tunnel, self._handlers, self._peers = tunnel, (first, second), []

    def __enter__(self):
        changes = {"Adit-Instance": instance()}
        self._peers = [attach(self._tunnel, handler, changes=changes) for handler in self._handlers]
        return self._peers

    def __exit__(self, *_error):
        for peer in self._peers:
            peer.close()


def started(visitor, method="GET", body=b"", path="/"):
    """Sends a request and does not wait for its answer; answers the way to take it."""
    if isinstance(visitor, VisitorOne):
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        visitor.send(f"{method} {path} HTTP/1.1\r\nHost: {visitor._tunnel.host}\r\n{length}\r\n".encode() + body)
        return visitor.visited
    stream = visitor.open(path, method=method, body=body)
    return lambda timeout=20.0: visitor.visited(stream, timeout)


def which(*peers, timeout=SOON):
    """The one that has been asked, its request, and the others."""
    expect.until("one is asked", timeout, lambda: any(not each.asked.empty() for each in peers))
    (asked,) = [each for each in peers if not each.asked.empty()]
    return asked, asked.next(), [each for each in peers if each is not asked]


def refused(rig):
    tunnel = tunnel_of(rig.server, "refused")
    for kind in VISITORS:
        for method, body in (
            ("GET", b""),
            ("POST", b""),
            ("POST", b"x" * 60 * KIB),
            ("PUT", b"y"),
            ("DELETE", b""),
            ("PATCH", b"z"),
        ):
            with Pair(tunnel) as peers, contextlib.closing(kind(tunnel)) as visitor:
                answer = started(visitor, method, body, "/a?b")
                one, asked, (other,) = which(*peers)
                asked.refuse()
                again = other.next(SOON)
                expect.equal(
                    f"{kind.version}: {method} {len(body)}: the other one is asked the same",
                    again.headers,
                    asked.headers,
                )
                expect.equal("with the body", again.whole(), body)
                again.answer(b"done")
                came = answer(SOON)
                expect.equal("and answers", (came.status, came.body), (200, b"done"))
                expect.that("the first lives", one.ping())


def refused_everywhere(rig):
    tunnel = tunnel_of(rig.server, "nowhere")
    seen = []

    def handler(asked):
        seen.append(asked)
        asked.refuse(REFUSED_STREAM)

    for kind in VISITORS:
        for sessions in (1, 2):
            seen.clear()
            with contextlib.ExitStack() as stack:
                changes = {"Adit-Instance": instance()}
                for _ in range(sessions):
                    stack.enter_context(attach(tunnel, handler, changes=changes))
                visitor = stack.enter_context(contextlib.closing(kind(tunnel)))
                began = time.monotonic()
                came = visitor.ask()
                took = time.monotonic() - began
                expect.that(f"{kind.version}: refused by all {sessions}", came.status in (502, 503), came)
                expect.that("at once", took < SOON, took)
                expect.that("without asking for ever", len(seen) <= 8, len(seen))
                print(f"        {kind.version}: {came.status}, asked {len(seen)} times")


def goaway(rig):
    tunnel = tunnel_of(rig.server, "goaway")
    for kind in VISITORS:
        for method in ("GET", "POST"):
            with Pair(tunnel) as peers:
                with contextlib.closing(kind(tunnel)) as visitor, contextlib.closing(kind(tunnel)) as second:
                    answers = [started(visitor, method), started(second, method)]
                    expect.until("both are asked", SOON, lambda: sum(not each.asked.empty() for each in peers) == 2)
                    going, staying = peers
                    lost, kept = going.next(), staying.next()
                    going.goes_away(lost.number - 2 if lost.number > 1 else 0)
                    again = staying.next(SOON)
                    expect.equal(
                        f"{kind.version}: {method}: what the agent has not begun with goes to the other",
                        again.headers,
                        lost.headers,
                    )
                    for each in (kept, again):
                        each.answer(b"done")
                    came = [each(SOON) for each in answers]
                    expect.equal("both are answered", [(each.status, each.body) for each in came], [(200, b"done")] * 2)
                    expect.that("the link ends", going.has_ended(5), going.frames)
                    expect.equal("the tunnel is connected", is_connected(tunnel), True)


def goes_away(rig):
    tunnel = tunnel_of(rig.server, "goes-away")
    for kind in VISITORS:
        with attach(tunnel, changes={"Adit-Instance": "b" * 32}) as going, contextlib.closing(kind(tunnel)) as visitor:
            answer = started(visitor)
            asked = going.next()
            going.goes_away(asked.number, NO_ERROR)
            with attach(tunnel, says("next"), changes={"Adit-Instance": "b" * 32}):
                for _ in range(5):
                    with contextlib.closing(kind(tunnel)) as other:
                        expect.equal(f"{kind.version}: nothing new is sent there", other.ask().body, b"next")
                asked.head(200)
                for _ in range(5):
                    asked.send(b"going ")
                    time.sleep(0.1)
                expect.that("the link waits for what is open", not going.ended_at)
                asked.end()
                came = answer(SOON)
                expect.equal("which finishes", (came.status, came.body, came.whole), (200, b"going " * 5, True))
                expect.that("then the server closes", going.has_ended(5), going.frames)
    # The last one, and nothing is open.
    with attach(tunnel) as going:
        going.goes_away(0)
        expect.that("with nothing open it closes at once", going.has_ended(3), going.frames)
        expect.until("the tunnel is offline", 3, lambda: not is_connected(tunnel))


def cut(rig):
    tunnel = tunnel_of(rig.server, "cut")
    for kind in VISITORS:
        for method, body, again in (
            ("GET", b"", True),
            ("HEAD", b"", True),
            ("PUT", b"x" * 1000, True),
            ("DELETE", b"", True),
            ("POST", b"", False),
            ("POST", b"x", False),
            ("PATCH", b"x", False),
        ):
            with Pair(tunnel) as peers, contextlib.closing(kind(tunnel)) as visitor:
                answer, began = started(visitor, method, body), time.monotonic()
                one, asked, (other,) = which(*peers)
                asked.whole()
                one.leave()
                what = f"{kind.version}: {method} when the link is cut"
                if again:
                    retried = other.next(SOON)
                    expect.equal(f"{what} is done by the other", retried.whole(), body)
                    retried.answer(b"" if method == "HEAD" else b"done")
                    came = visitor.visited(SOON, method == "HEAD") if kind is VisitorOne else answer(SOON)
                    expect.equal("and answered", came.status, 200)
                else:
                    came = answer(SOON)
                    expect.equal(f"{what} is 502", came.status, 502)
                    expect.that("is not done twice", other.asked.empty())
                expect.that("at once", time.monotonic() - began < SOON)
        # Nobody is left.
        with contextlib.closing(kind(tunnel)) as visitor, attach(tunnel) as peer:
            answer, began = started(visitor), time.monotonic()
            peer.next()
            peer.leave()
            came = answer(10)
            expect.that(f"{kind.version}: nobody is left", came.status in (502, 503), came)
            expect.that("soon", time.monotonic() - began < OFFLINE_WITHIN, time.monotonic() - began)


def cut_later(rig):
    tunnel = tunnel_of(rig.server, "cut-later")
    for kind in VISITORS:
        with Pair(tunnel) as peers, contextlib.closing(kind(tunnel)) as visitor:
            answer = started(visitor)
            one, asked, (other,) = which(*peers)
            asked.head(200)
            asked.send(b"begun")
            time.sleep(0.1)
            one.leave()
            came = answer(SOON)
            expect.equal(
                f"{kind.version}: an answer that had begun breaks off", (came.status, came.whole), (200, False)
            )
            expect.that("it is not asked for again", other.asked.empty())


def cut_upload(rig):
    """The body is let go of with the head: sent again, the request would be another one."""
    tunnel = tunnel_of(rig.server, "cut-upload")
    body = b"x" * KIB
    for kind in VISITORS:
        for _ in range(10):
            with Pair(tunnel) as peers, contextlib.closing(kind(tunnel)) as visitor:
                answer = started(visitor, "PUT", body)
                peer, asked, (other,) = which(*peers)
                expect.equal(f"{kind.version}: the upload is whole", asked.whole(), body)
                asked.head(200)
                peer.leave()
                with contextlib.suppress(Exception):
                    answer(SOON)
                again = None if other.asked.empty() else other.next().whole()
                expect.that(f"{kind.version}: it is not sent again without its body", again in (None, body), again)


def bodies(rig):
    tunnel = tunnel_of(rig.server, "retry-bodies")
    for kind in VISITORS:
        # More than is kept: refused streams of it are 502, or asked for again from the start; never in part.
        size = 4 << 20
        with Pair(tunnel) as peers, contextlib.closing(kind(tunnel)) as visitor:
            answer = started(visitor, "POST", bytes(size))
            one, asked, (other,) = which(*peers)
            asked.holds(500 * KIB, SOON)
            asked.refuse()
            came = answer(5)
            expect.that(f"{kind.version}: what was consumed is not sent in part", came.status in (502, 503), came)
            expect.that("nor asked of the other", other.asked.empty(), other.streams)
    # While it is still on its way from the visitor.
    with Pair(tunnel) as peers, contextlib.closing(VisitorTwo(tunnel)) as visitor:
        stream = visitor.open("/", method="POST", body=b"first ", end=False)
        one, asked, (other,) = which(*peers)
        asked.holds(b"first ")
        asked.refuse()
        again = other.next(SOON)
        visitor.h2.send(stream, b"second", end=True)
        expect.equal("the rest follows to the other", again.whole(SOON), b"first second")
        again.answer(b"done")
        expect.equal("it is answered", visitor.visited(stream).body, b"done")


def broken(rig):
    tunnel = tunnel_of(rig.server, "broken-link")
    for kind in VISITORS:
        with Pair(tunnel) as peers, contextlib.closing(kind(tunnel)) as visitor:
            answer = started(visitor)
            one, asked, (other,) = which(*peers)
            one.goes_away(asked.number, 1)
            one.leave()
            other.next(SOON).answer(b"done")
            came = answer(SOON)
            expect.equal(f"{kind.version}: a GET goes on elsewhere", (came.status, came.body), (200, b"done"))


def silent(rig):
    """No octet comes any more, and the connection stands: the PING finds it out."""
    tunnel = tunnel_of(rig.server, "silent")
    for kind in VISITORS:
        with attach(tunnel, answers_pings=True) as peer, contextlib.closing(kind(tunnel)) as visitor:
            expect.that("alive", peer.ping())
            peer.answers_pings = False
            answer, began = started(visitor, "POST"), time.monotonic()
            peer.next()
            came = answer(60)
            took = time.monotonic() - began
            expect.that(f"{kind.version}: a silent link is an error", came.status in (502, 504), came)
            expect.that("within 36 s", took < 36, took)
            expect.that("it is given up", peer.has_ended(36 - took + 1), peer.frames)
            expect.until("the tunnel is offline", 2, lambda: not is_connected(tunnel))
            print(f"        {kind.version}: {came.status} after {took:.1f} s")
