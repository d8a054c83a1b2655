"""Raw connections of passthrough tunnels: the ClientHello in the first flight, octets, ends and resets as they are."""

import concurrent.futures
import contextlib
import hashlib
import os
import socket
import ssl
import struct
import time

import expect
from native_peer import CANCEL, MIB, REFUSED_STREAM, Site, attach, is_connected, raw_tunnel
from scripted_agent import END_HEADERS, Ended, Tls, client_context, frame

SOON = 3.0


def checks(long):
    return [
        ("the CONNECT and its first flight", first_flight),
        ("TLS to the agent", site),
        ("octets both ways", octets_pass),
        ("half-closed by the visitor", visitor_ends),
        ("half-closed by the agent", agent_ends),
        ("resets", resets),
        ("refused", refused),
        ("an early answer, and early octets", early),
        ("agents that do not read", unread),
        ("visitors who leave early", left),
        ("agents that do not answer", silent),
    ]


class Raw:
    """A visitor's connection, with TLS's first message sent."""

    def __init__(self, tunnel, hello=None, **options):
        self.tls = Tls(tunnel.server.edge_port, client_context(tunnel.server), tunnel.host, **options)
        self.hello = self.tls.hello() if hello is None else hello
        self.tls.socket.sendall(self.hello)
        self.socket = self.tls.socket

    def has(self, wanted, timeout=SOON):
        self.socket.settimeout(timeout)
        came = b""
        while len(came) < len(wanted) and (octets := self.socket.recv(1 << 18)):
            came += octets
        return came

    def ends(self, timeout=SOON):
        """b"" at an end, "reset" at a reset, or what came."""
        self.socket.settimeout(timeout)
        try:
            return self.socket.recv(1 << 16)
        except ConnectionError:
            return "reset"

    def close(self):
        self.socket.close()

    def reset(self):
        """Without a FIN before it."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def opened(tunnel, peer, **options):
    raw = Raw(tunnel, **options)
    asked = peer.next(SOON)
    expect.that("the hello is there", asked.holds(raw.hello, SOON), asked)
    asked.head(200)
    return raw, asked


def first_flight(rig):
    tunnel, _ = raw_tunnel(rig.server, "flight")
    with attach(tunnel) as peer:
        raw = Raw(tunnel)
        asked = peer.next(SOON)
        pseudo = {name: value for name, value in asked.headers if name.startswith(":")}
        expect.equal("a CONNECT of RFC 9113", pseudo, {":method": "CONNECT", ":authority": f"{tunnel.host}:443"})
        expect.equal("and nothing else but the visitor", asked.fields, [("adit-visitor", "127.0.0.1")])
        expect.that("the hello comes before the answer", asked.holds(raw.hello, SOON), asked)
        reads = {each.read for each in peer.frames if each.stream == asked.number}
        print(f"        CONNECT and hello came with {len(reads)} read(s)")
        expect.that("it is no end", not asked.ended)
        raw.close()
        # Of any size, in any number of pieces.
        hello = _hello(tunnel)
        raw = Raw(tunnel, hello=b"")
        for octet in hello[:40]:
            raw.socket.sendall(bytes([octet]))
            time.sleep(0.002)
        raw.socket.sendall(hello[40:])
        asked = peer.next(SOON)
        expect.that("a hello in pieces comes whole", asked.holds(hello, SOON), asked)
        raw.close()
        raw = Raw(tunnel, source="127.0.0.9")
        expect.equal("another visitor", peer.next(SOON).all("adit-visitor"), ["127.0.0.9"])
        raw.close()


def _hello(tunnel):
    outgoing = ssl.MemoryBIO()
    tls = client_context(tunnel.server).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=tunnel.host)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def site(rig):
    tunnel, context = raw_tunnel(rig.server, "site")

    def handler(asked):
        asked.head(200)
        ends = Site(asked, context)
        ends.handshake()
        while octets := ends.read():
            ends.write(octets.upper())
        with contextlib.suppress(ssl.SSLError, Ended):
            ends.tls.unwrap()
        asked.end()

    with attach(tunnel, handler) as peer:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            client = client_context(rig.server, "http/1.1")
            client.minimum_version = client.maximum_version = version
            tls = Tls(rig.server.edge_port, client, tunnel.host).handshake()
            for word in (b"one", b"two", os.urandom(5).hex().encode() * 4000):
                tls.send(word)
                came = b""
                while len(came) < len(word):
                    came += tls.receive(SOON)
                expect.equal(f"{version.name}: the site answers", came, word.upper())
            tls.close()
        expect.equal("nothing failed", peer.failures, [])
        expect.equal("the tunnel is connected", is_connected(tunnel), True)


def octets_pass(rig):
    tunnel, _ = raw_tunnel(rig.server, "octets")
    with attach(tunnel) as peer:
        raw, asked = opened(tunnel, peer)
        for size in (1, 100, 20_000, 300_000):
            piece = os.urandom(size)
            before = len(asked.body)
            raw.socket.sendall(piece)
            expect.that(
                f"{size} octets reach the agent",
                asked.holds(before + size, SOON) and bytes(asked.body[before:]) == piece,
            )
            asked.send(piece)
            expect.that(f"{size} octets reach the visitor", raw.has(piece) == piece)
        sent = os.urandom(MIB) * 20
        before = len(asked.body)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            raw.socket.settimeout(30)
            up, down = pool.submit(raw.socket.sendall, sent), pool.submit(asked.send, sent)
            came = bytearray()
            while len(came) < len(sent):
                came += raw.socket.recv(1 << 18)
            up.result(30), down.result(30)
        expect.that("20 MiB at once, both ways", asked.holds(before + len(sent), 20))
        same = (
            hashlib.sha256(asked.body[before:]).digest()
            == hashlib.sha256(sent).digest()
            == hashlib.sha256(came).digest()
        )
        expect.that("as they are", same)
        raw.close()


def visitor_ends(rig):
    tunnel, _ = raw_tunnel(rig.server, "visitor-ends")
    with attach(tunnel) as peer:
        raw, asked = opened(tunnel, peer)
        raw.socket.sendall(b"last words")
        raw.socket.shutdown(socket.SHUT_WR)
        expect.equal("an end is an end", asked.whole(SOON), raw.hello + b"last words")
        asked.send(b"still there")
        expect.equal("the other direction goes on", raw.has(b"still there"), b"still there")
        time.sleep(0.3)
        asked.send(b"and now")
        expect.equal("as long as it likes", raw.has(b"and now"), b"and now")
        asked.end()
        expect.equal("then it ends, too", raw.ends(), b"")
        expect.equal("nothing was reset", asked.reset, None)
        raw.close()
        # With the hello already.
        raw = Raw(tunnel)
        raw.socket.shutdown(socket.SHUT_WR)
        asked = peer.next(SOON)
        asked.head(200)
        expect.equal("an end right behind the hello", asked.whole(SOON), raw.hello)
        asked.send(b"answer", end=True)
        expect.equal("is answered", raw.has(b"answer!"), b"answer")
        raw.close()


def agent_ends(rig):
    tunnel, _ = raw_tunnel(rig.server, "agent-ends")
    with attach(tunnel) as peer:
        raw, asked = opened(tunnel, peer)
        asked.send(b"last words", end=True)
        expect.equal("the last words come", raw.has(b"last words!"), b"last words")
        raw.socket.sendall(b"still there")
        expect.that("the other direction goes on", asked.holds(raw.hello + b"still there", SOON), asked)
        time.sleep(0.3)
        raw.socket.sendall(b"!")
        expect.that("as long as it likes", asked.holds(raw.hello + b"still there!", SOON), asked)
        raw.socket.shutdown(socket.SHUT_WR)
        expect.equal("then it ends, too", asked.whole(SOON), raw.hello + b"still there!")
        raw.close()
        raw, asked = opened(tunnel, peer)
        asked.end()
        expect.equal("an end without a word", raw.ends(), b"")
        raw.close()


def resets(rig):
    tunnel, _ = raw_tunnel(rig.server, "raw-resets")
    with attach(tunnel) as peer:
        for code in (CANCEL, 2, 10):
            raw, asked = opened(tunnel, peer)
            asked.send(b"words")
            expect.equal("words", raw.has(b"words"), b"words")
            asked.refuse(code)
            expect.equal(f"a reset {code} is no end to the visitor", raw.ends(), "reset")
            raw.close()
        raw, asked = opened(tunnel, peer)
        raw.socket.sendall(b"words")
        expect.that("words", asked.holds(raw.hello + b"words", SOON))
        raw.reset()
        expect.that("a visitor's reset is none to the agent", asked.is_left(SOON) is not None, asked)
        expect.that("and no end", not asked.ended, asked)
        raw, asked = opened(tunnel, peer)
        raw.close()
        expect.that("a visitor who closes is told", peer.until(lambda: asked.is_over, SOON), asked)
        raw, asked = opened(tunnel, peer)
        peer.leave()
        expect.equal("a link that is cut is no end", raw.ends(), "reset")


def refused(rig):
    tunnel, _ = raw_tunnel(rig.server, "raw-refused")
    with attach(tunnel) as peer:
        for status in (404, 501, 502, 503, 302):
            raw = Raw(tunnel)
            with contextlib.suppress(Ended):
                peer.next(SOON).answer(b"no", ("adit-reason", "x"), status=status)
            came = raw.ends(8)
            expect.that(f"{status} ends the connection", came in (b"", "reset") or came[:1] == b"\x15", came)
            raw.close()
        raw = Raw(tunnel)
        peer.next(SOON).refuse(2)
        came = raw.ends(8)
        expect.that("so does a reset before the answer", came in (b"", "reset") or came[:1] == b"\x15", came)
        raw.close()
        expect.that("the link lives", peer.ping())
        # Refused before it began: another session may have it, with the hello.
        with (
            attach(tunnel, changes={"Adit-Instance": "a" * 32}) as first,
            attach(tunnel, changes={"Adit-Instance": "a" * 32}) as second,
        ):
            raw = Raw(tunnel)
            expect.until("one is asked", SOON, lambda: not first.asked.empty() or not second.asked.empty())
            one, other = (first, second) if not first.asked.empty() else (second, first)
            one.next().refuse(REFUSED_STREAM)
            asked = other.next(SOON)
            expect.that("the other one has the hello", asked.holds(raw.hello, SOON), asked)
            asked.head(200)
            asked.send(b"here")
            expect.equal("and serves", raw.has(b"here"), b"here")
            raw.close()


def early(rig):
    tunnel, _ = raw_tunnel(rig.server, "raw-early")
    with attach(tunnel) as peer:
        # The answer, octets and the end in one write.
        raw = Raw(tunnel)
        asked = peer.next(SOON)
        block = peer._encoder.encode([(":status", "200")])
        peer.write(frame(1, END_HEADERS, asked.number, block) + frame(0, 1, asked.number, b"all at once"))
        expect.equal("all at once", raw.has(b"all at once!"), b"all at once")
        raw.close()
        # Visitors do not wait for the answer, either.
        raw = Raw(tunnel)
        raw.socket.sendall(b"early data")
        asked = peer.next(SOON)
        time.sleep(0.3)
        asked.head(200)
        expect.that("what came before the answer is not lost", asked.holds(raw.hello + b"early data", SOON), asked)
        raw.close()
        raw = Raw(tunnel)
        asked = peer.next(SOON)
        asked.head(103)
        asked.head(200, ("content-length", "5"), ("x-other", "1"))
        asked.send(b"more than five")
        with contextlib.suppress(ConnectionResetError):
            came = raw.has(b"more than five")
            expect.that("fields that have no place in it do no harm", came in (b"more than five", b"more ", b""), came)
        raw.close()


def unread(rig):
    tunnel, _ = raw_tunnel(rig.server, "raw-unread")
    with attach(tunnel, credits=False, settings=((3, 100), (4, 65_535), (8, 1))) as peer:
        raw, asked = opened(tunnel, peer)
        raw.socket.settimeout(1.0)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 200 * MIB:
                sent += raw.socket.send(bytes(MIB))
        expect.that("the visitor is held up", sent < 32 * MIB, sent)
        other, second = opened(tunnel, peer)
        second.send(b"there")
        expect.equal("others are not", other.has(b"there"), b"there")
        for each in (raw, other):
            each.close()


def left(rig):
    tunnel, _ = raw_tunnel(rig.server, "raw-left")
    with attach(tunnel) as peer:
        raw = Raw(tunnel)
        asked = peer.next(SOON)
        raw.reset()
        # Octets of an impatient visitor wait for the answer, and so does the news of its end.
        expect.that("who leaves before the answer is told", peer.until(lambda: asked.is_over, 12), asked)
        for _ in range(20):
            Raw(tunnel).close()
        time.sleep(0.3)
        expect.that("the link lives", peer.ping())
        while not peer.asked.empty():
            asked = peer.next()
            expect.that("each is over", peer.until(lambda asked=asked: asked.is_over, 12), asked)


def silent(rig):
    tunnel, _ = raw_tunnel(rig.server, "raw-silent")
    with attach(tunnel) as peer:
        raw, began = Raw(tunnel), time.monotonic()
        asked = peer.next(SOON)
        came = raw.ends(40)
        took = time.monotonic() - began
        expect.that("an agent that says nothing ends it", came in (b"", "reset") or came[:1] == b"\x15", came)
        expect.that("in time", took < 36, took)
        expect.that("and is told", asked.is_left(SOON) is not None, asked)
        print(f"        after {took:.1f} s")
        raw.close()
