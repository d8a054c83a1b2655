"""WebSockets: the handshake is the server's, every octet behind it the visitor's and the application's."""

import concurrent.futures
import contextlib
import os
import time
from functools import partial

import expect
from native_peer import SETTINGS_OF_AN_AGENT, VisitorOne, VisitorTwo, attach, tunnel_of
from scripted_agent import WebSocket, ws_frame
from visitor import accept

SOON = 3.0
OFFER = "permessage-deflate; client_max_window_bits"


def checks(long):
    return [
        ("the handshake", handshake),
        ("octets as they are", octets_pass),
        ("a visitor who reads late", read_late),
        ("extensions", extensions),
        ("refusals", refusals),
        ("Close, ends and resets", ends),
        ("over HTTP/2", over_h2),
        ("handshakes that are none", no_handshakes),
        ("agents that take none", not_enabled),
        ("many at once", many),
        ("the server stops", draining),
    ]


def opened(rig, tunnel, peer, *fields, status=200, path="/ws", lines=()):
    """A WebSocket and its stream at the agent."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(WebSocket, rig.server, tunnel.host, path, lines)
        asked = peer.next(SOON)
        asked.head(status, *fields)
        return future.result(SOON), asked


def handshake(rig):
    tunnel = tunnel_of(rig.server, "handshake")
    with attach(tunnel) as peer:
        lines = (
            "Sec-WebSocket-Protocol: one, two",
            "Cookie: a=1",
            "Origin: https://x.test",
            "X-Forwarded-For: 6.6.6.6",
        )
        websocket, asked = opened(
            rig,
            tunnel,
            peer,
            ("sec-websocket-protocol", "two"),
            ("x-app", "1"),
            ("set-cookie", "b=2"),
            path="/ws?a=b",
            lines=lines,
        )
        wanted = {
            ":method": "CONNECT",
            ":protocol": "websocket",
            ":scheme": "https",
            ":authority": tunnel.host,
            ":path": "/ws?a=b",
        }
        pseudo = {name: value for name, value in asked.headers if name.startswith(":")}
        expect.equal("an extended CONNECT", pseudo, wanted)
        for name, value in {
            "sec-websocket-version": ["13"],
            "sec-websocket-protocol": ["one, two"],
            "sec-websocket-key": [],
            "upgrade": [],
            "connection": [],
            "cookie": ["a=1"],
            "origin": ["https://x.test"],
            "adit-visitor": ["127.0.0.1"],
            "x-forwarded-for": [],
            "sec-websocket-extensions": [],
        }.items():
            expect.equal(f"its {name}", asked.all(name), value)
        answer = websocket.response
        expect.equal("101", answer.status, 101)
        expect.equal("the application's subprotocol", answer.all("sec-websocket-protocol"), ["two"])
        expect.equal("its fields", (answer.get("x-app"), answer.get("set-cookie")), ("1", "b=2"))
        expect.equal("no length", answer.all("content-length") + answer.all("transfer-encoding"), [])
        expect.that(
            "Upgrade",
            answer.get("upgrade").lower() == "websocket" and answer.get("connection").lower() == "upgrade",
            answer,
        )
        expect.that("not ended", not asked.ended)
        websocket.close()
        # The key's answer, and one that the agent makes up.
        with contextlib.closing(VisitorOne(tunnel)) as visitor:
            key = "dGhlIHNhbXBsZSBub25jZQ=="
            visitor.send(
                f"GET /ws HTTP/1.1\r\nHost: {tunnel.host}\r\nUpgrade: WebSocket\r\nConnection: keep-alive, UPGRADE\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            asked = peer.next(SOON)
            asked.head(200, ("sec-websocket-accept", "forged"), ("content-length", "5"))
            answer = visitor.head(SOON)
            expect.equal("the server answers the key", answer.all("sec-websocket-accept"), [accept(key)])
            expect.equal("a length is of no use", answer.all("content-length"), [])


def read_late(rig):
    """The end of a message is there, though nothing follows it that would push it."""
    tunnel = tunnel_of(rig.server, "ws-late")
    with attach(tunnel) as peer:
        for size in (100_000, 300_000, 1 << 20, 3 << 20):
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                opening = partial(WebSocket, rig.server, tunnel.host, receive_buffer=8192)
                future = pool.submit(opening)
                asked = peer.next(SOON)
                asked.head(200)
                websocket = future.result(SOON)
            message = os.urandom(size)
            with contextlib.closing(websocket):
                asked.send(b"\x82\x7f" + size.to_bytes(8, "big") + message)
                time.sleep(0.5)
                expect.that(f"a message of {size} comes whole", websocket.receive(10) == (2, message))


def octets_pass(rig):
    tunnel = tunnel_of(rig.server, "ws-octets")
    with attach(tunnel) as peer:
        websocket, asked = opened(rig, tunnel, peer)
        sent = b""
        pieces = [
            b"\x81\x85" + b"mask" + bytes(a ^ b for a, b in zip(b"hello", b"maskm", strict=True)),
            b"\x01\x83\0\0\0\0one",
            b"\x89\x80\0\0\0\0",
            b"\x00\x80\0\0\0\0",
            b"\x80\x83\0\0\0\0two",
            b"\xc1\x83\x01\x02\x03\x04abc",
            b"\x82\xfe\x00\x80" + os.urandom(132),
            b"\x82\xff" + (70_000).to_bytes(8, "big") + os.urandom(70_004),
            b"\x82",
            b"\x85\1\2",
            b"\3\4he",
            b"llo",
        ]
        for piece in pieces:
            websocket.http.send(piece)
            sent += piece
            expect.that(f"{piece[:8]} comes when it is sent, as it is", asked.holds(sent, SOON), asked)
        sent = b""
        for piece in [
            b"\x81\x05hello",
            b"\x01\x03one",
            b"\x89\x00",
            b"\x80\x03two",
            b"\xc2\x03abc",
            b"\x82\x7f" + (200_000).to_bytes(8, "big"),
            os.urandom(200_000),
            b"\x81",
            b"\x01x",
        ]:
            asked.send(piece)
            sent += piece
            got = bytes(websocket._buffer)
            while len(got) < len(sent):
                got += websocket.http.tls.receive(SOON)
            websocket._buffer = bytearray(got)
            expect.that(f"{piece[:8]} of the application, too", got == sent, got[:100])
        websocket.close()


def extensions(rig):
    tunnel = tunnel_of(rig.server, "ws-extensions")
    with attach(tunnel) as peer:
        chosen = "permessage-deflate; server_no_context_takeover"
        websocket, asked = opened(
            rig, tunnel, peer, ("sec-websocket-extensions", chosen), lines=(f"Sec-WebSocket-Extensions: {OFFER}",)
        )
        expect.equal("the visitor's offer", asked.all("sec-websocket-extensions"), [OFFER])
        expect.equal("the application's choice", websocket.response.all("sec-websocket-extensions"), [chosen])
        # RSV1: compressed.
        packed = b"\xf2\x48\xcd\xc9\xc9\x07\x00"
        websocket.http.send(b"\xc1" + bytes([0x80 | len(packed)]) + bytes(4) + packed)
        expect.that(
            "compressed frames pass",
            asked.holds(b"\xc1" + bytes([0x80 | len(packed)]) + bytes(4) + packed, SOON),
            asked,
        )
        asked.send(b"\xc1" + bytes([len(packed)]) + packed)
        frame_octets = websocket.http.tls.receive(SOON)
        expect.equal("both ways", bytes(websocket._buffer) + frame_octets, b"\xc1" + bytes([len(packed)]) + packed)
        websocket.close()
        websocket, asked = opened(
            rig, tunnel, peer, lines=(f"Sec-WebSocket-Extensions: {OFFER}", "Sec-WebSocket-Extensions: x-other")
        )
        expect.equal("several offers", ", ".join(asked.all("sec-websocket-extensions")), f"{OFFER}, x-other")
        expect.equal("none chosen", websocket.response.all("sec-websocket-extensions"), [])
        websocket.close()


def refusals(rig):
    tunnel = tunnel_of(rig.server, "ws-refusals")
    with attach(tunnel) as peer:
        for status in (302, 400, 401, 403, 404, 500, 503):
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                future = pool.submit(WebSocket, rig.server, tunnel.host)
                peer.next(SOON).answer(b"not for you", ("x-app", "1"), ("location", "/login"), status=status)
                websocket = future.result(SOON)
            answer = websocket.response
            expect.equal(
                f"the application's {status}",
                (answer.status, answer.body, answer.get("x-app")),
                (status, b"not for you", "1"),
            )
            expect.equal("is no acceptance", answer.all("sec-websocket-accept"), [])
            websocket.close()
        for code in (1, 2, 8):
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                future = pool.submit(WebSocket, rig.server, tunnel.host)
                peer.next(SOON).refuse(code)
                websocket = future.result(SOON)
            expect.equal(f"a reset {code}", websocket.response.status, 502)
            websocket.close()
        for status in (201, 204, 206):
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                future = pool.submit(WebSocket, rig.server, tunnel.host)
                peer.next(SOON).answer(b"", status=status)
                websocket = future.result(SOON)
            expect.that(f"{status} is no WebSocket", websocket.response.status in (502, status), websocket.response)
            websocket.close()


def ends(rig):
    tunnel = tunnel_of(rig.server, "ws-ends")
    with attach(tunnel) as peer:
        # A Close from each side.
        websocket, asked = opened(rig, tunnel, peer)
        websocket.send(8, b"\x10\xe1done")
        expect.that("the visitor's Close comes", asked.holds(ws_frame(8, b"\x10\xe1done"), SOON), asked)
        asked.send(ws_frame(8, b"\x10\xe1", masked=False), end=True)
        expect.equal("and its answer", websocket.close_code(SOON), 4321)
        expect.equal("and nothing else", websocket.receive(SOON), None)
        websocket.close()
        websocket, asked = opened(rig, tunnel, peer)
        asked.send(ws_frame(8, b"\x03\xf3why", masked=False))
        expect.equal("the application's Close", websocket.receive(SOON), (8, b"\x03\xf3why"))
        websocket.send(8, b"\x03\xf3")
        expect.that("its answer", asked.holds(ws_frame(8, b"\x03\xf3"), SOON), asked)
        asked.end()
        expect.equal("the end", websocket.receive(SOON), None)
        websocket.close()
        # A visitor who leaves without.
        for how in ("end", "reset"):
            websocket, asked = opened(rig, tunnel, peer)
            websocket.http.close() if how == "end" else websocket.http.tls.reset()
            expect.that(f"a visitor's {how} is told", peer.until(lambda asked=asked: asked.is_over, SOON), asked)
        # An application that leaves without.
        for how in ("end", "reset"):
            websocket, asked = opened(rig, tunnel, peer)
            asked.end() if how == "end" else asked.refuse(2)
            expect.one_of(f"an application's {how} ends it", websocket.close_code(SOON), None, 1011, 1006, 1012, 1001)
            websocket.close()
        # In the middle of a frame nothing else is put.
        websocket, asked = opened(rig, tunnel, peer)
        asked.send(b"\x82\x0ahalf")
        time.sleep(0.1)
        asked.refuse(2)
        came = b""
        with contextlib.suppress(TimeoutError):
            while octets := websocket.http.tls.receive(SOON):
                came += octets
        expect.equal("half a frame stays half", bytes(websocket._buffer) + came, b"\x82\x0ahalf")
        expect.that("the link lives", peer.ping())


def over_h2(rig):
    """RFC 8441 of the visitor: served, or not announced."""
    tunnel = tunnel_of(rig.server, "ws-h2")
    with attach(tunnel) as peer, contextlib.closing(VisitorTwo(tunnel)) as visitor:
        visitor.h2.until(lambda: visitor.h2.server_settings, SOON)
        enabled = visitor.h2.server_settings.get(8)
        print(f"        SETTINGS_ENABLE_CONNECT_PROTOCOL to visitors: {enabled}")
        head = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "https"),
            (":authority", tunnel.host),
            (":path", "/ws"),
        ]
        stream = visitor.h2.open([*head, ("sec-websocket-version", "13")], end=False)
        if enabled:
            asked = peer.next(SOON)
            expect.equal("the same CONNECT", asked.get(":protocol"), "websocket")
            asked.head(200)
            expect.that("is accepted", visitor.h2.until(lambda: stream.headers, SOON) and stream.status == 200, stream)
            visitor.h2.send(stream, b"\x81\x80\0\0\0\0")
            expect.that("octets pass", asked.holds(b"\x81\x80\0\0\0\0", SOON), asked)
            asked.send(b"\x81\x00", end=True)
            expect.that(
                "both ways", visitor.h2.until(lambda: stream.ended, SOON) and bytes(stream.body) == b"\x81\x00", stream
            )
        else:
            visitor.h2.until(lambda: stream.is_over or visitor.h2.ended_at, SOON)
            expect.that(
                "is refused", stream.status in (400, 404, 405, 501) or stream.reset or visitor.h2.ended_at, stream
            )
            expect.that("and the agent not asked", peer.asked.empty())


def no_handshakes(rig):
    tunnel = tunnel_of(rig.server, "ws-none")
    good = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    with attach(tunnel, lambda asked: asked.answer(b"plain", ("x-method", asked.method))):
        for what, changes in {
            "no key": {"Sec-WebSocket-Key": None},
            "a short key": {"Sec-WebSocket-Key": "c2hvcnQ="},
            "no version": {"Sec-WebSocket-Version": None},
            "version 8": {"Sec-WebSocket-Version": "8"},
            "no Connection": {"Connection": None},
        }.items():
            with contextlib.closing(VisitorOne(tunnel)) as visitor:
                fields = [(name, value) for name, value in (good | changes).items() if value]
                came = visitor.ask("/ws", *fields)
                expect.that(f"{what} is no WebSocket", came.status in (200, 400, 426), came)
                expect.that("and no CONNECT", came.get("x-method") in (None, "GET"), came)
        with contextlib.closing(VisitorOne(tunnel)) as visitor:
            came = visitor.ask("/ws", *good.items(), method="POST")
            expect.that(
                "a POST is none", came.status in (200, 400, 405) and came.get("x-method") in (None, "POST"), came
            )


def not_enabled(rig):
    tunnel = tunnel_of(rig.server, "ws-off")
    settings = tuple(each for each in SETTINGS_OF_AN_AGENT if each[0] != 8)
    with attach(tunnel, lambda asked: asked.answer(b"plain"), settings=settings) as peer:
        websocket = WebSocket(rig.server, tunnel.host)
        expect.that(
            "an agent that takes none is not asked",
            websocket.response.status in (400, 501, 502, 503),
            websocket.response,
        )
        expect.that("by no CONNECT", all(each.method != "CONNECT" for each in peer.streams.values()), peer.streams)
        websocket.close()
        with contextlib.closing(VisitorOne(tunnel)) as visitor:
            expect.equal("requests are served", visitor.ask().status, 200)
    with attach(tunnel, lambda asked: asked.answer(b"plain"), settings=(*settings, (8, 0))):
        websocket = WebSocket(rig.server, tunnel.host)
        expect.that("0 is the same", websocket.response.status in (400, 501, 502, 503), websocket.response)
        websocket.close()


def many(rig):
    tunnel = tunnel_of(rig.server, "ws-many")

    def handler(asked):
        asked.head(200)
        buffer, taken = bytearray(), 0
        while not asked.is_over:
            asked.holds(taken + 1, 20)
            buffer += asked.body[taken:]
            taken = len(asked.body)
            # Small ones, masked with zeros.
            while len(buffer) >= 6 and len(buffer) >= 6 + (length := buffer[1] & 0x7F):
                payload = bytes(buffer[6 : 6 + length])
                del buffer[: 6 + length]
                asked.send(ws_frame(1, asked.path.encode() + payload, masked=False))

    with attach(tunnel, handler):
        websockets = [WebSocket(rig.server, tunnel.host, f"/{number}") for number in range(20)]
        for round_ in range(3):
            for each in websockets:
                each.send(1, b" %d" % round_)
            came = [each.receive(SOON) for each in websockets]
            expect.equal("20 do not mix", came, [(1, b"/%d %d" % (number, round_)) for number in range(20)])
        for each in websockets:
            each.close()


def draining(rig):
    with rig.another(grace_period="4s") as server:
        tunnel = tunnel_of(server, "ws-drain")
        with attach(tunnel) as peer:

            def one():
                with concurrent.futures.ThreadPoolExecutor(1) as pool:
                    future = pool.submit(WebSocket, server, tunnel.host)
                    asked = peer.next(SOON)
                    asked.head(200)
                    return future.result(SOON), asked

            (idle, _), (inside, halfway) = one(), one()
            halfway.send(b"\x82\x0ahalf")
            time.sleep(0.1)
            server._process.terminate()
            expect.that("the agent is told", peer.hears("/drain"), peer.told)
            code = idle.close_code(15)
            expect.that("a visitor between two frames gets a Close", code in (1001, 1012), code)
            came = b""
            with contextlib.suppress(TimeoutError):
                while octets := inside.http.tls.receive(15):
                    came += octets
            expect.equal("within a frame there is nothing but the end", bytes(inside._buffer) + came, b"\x82\x0ahalf")
        expect.equal("the server ends", server._process.wait(20), 0)
