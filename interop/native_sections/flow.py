"""Windows, and who does not read: nobody is in the way of another one, and the server's memory is bounded."""

import contextlib
import hashlib
import statistics
import struct
import time

import expect
from native_peer import MIB, SETTINGS_OF_AN_AGENT, VisitorOne, VisitorTwo, attach, raw_tunnel, resident, says, tunnel_of
from scripted_agent import PING, SETTINGS, WINDOW_UPDATE, Tls, client_context, frame, settings_frame

SOON = 3.0
STALLED, SIZE = 16, 10 * MIB


def checks(long):
    return [
        ("the server's windows", windows),
        ("windows follow the open streams", follow),
        ("16 visitors who stop reading, over HTTP/1.1", stalled_one),
        ("16 visitors who stop reading, over HTTP/2", stalled_two),
        ("16 raw visitors who stop reading", stalled_raw),
        ("16 uploads that the agent does not read", unread),
        ("small windows of an agent", small_windows),
        ("windows that open late", late_windows),
        ("sizes of frames", frame_sizes),
        ("floods of an agent", floods),
    ]


def windows(rig):
    tunnel = tunnel_of(rig.server, "windows")
    with attach(tunnel, says("here")) as peer:
        expect.that("SETTINGS", peer.until(lambda: peer.server_settings, SOON))
        settings = peer.server_settings
        expect.equal("nothing is pushed", settings.get(2), 0)
        expect.that("header lists of 96 KiB", settings.get(6) == 96 * 1024, settings)
        expect.that("a stream's window", 64 * 1024 <= settings.get(4, 65_535) <= 32 * MIB, settings)
        expect.that(
            "the connection's is as wide as it can be",
            peer.until(lambda: peer.window >= (1 << 31) - 65_536, SOON),
            peer.window,
        )
        print(f"        {settings}, connection {peer.window}")


def follow(rig):
    tunnel = tunnel_of(rig.server, "follow")
    with attach(tunnel) as peer:
        alone = peer.server_settings[4]
        visitors, streams = [VisitorTwo(tunnel) for _ in range(8)], []
        for visitor in visitors:
            streams += [(visitor, visitor.open(f"/{number}")) for number in range(50)]
        expect.until("all are asked", 10, lambda: len(peer.streams) == 400)
        expect.that("many streams have smaller windows", peer.until(lambda: peer.server_settings[4] < alone, 5), alone)
        # One step waits for the acknowledgement of the one before.
        bounded = peer.until(lambda: peer.server_settings[4] * 400 <= 512 * MIB, 3)
        time.sleep(0.2)
        crowded = peer.server_settings[4]
        expect.that("not too small", crowded >= 16 * 1024, crowded)
        expect.that("together they are bounded", bounded, crowded)
        for stream in list(peer.streams.values()):
            stream.answer(b"done")
        for visitor, stream in streams:
            expect.equal("each is answered", visitor.visited(stream).body, b"done")
        came = peer.until(lambda: peer.server_settings[4] > crowded, 3)
        # It may wait for the next request.
        with contextlib.closing(VisitorOne(tunnel)) as visitor:
            visitor.send(f"GET / HTTP/1.1\r\nHost: {tunnel.host}\r\n\r\n".encode())
            expect.until("one more", SOON, lambda: len(peer.streams) == 401)
            expect.that(
                "few have larger ones again", peer.until(lambda: peer.server_settings[4] > crowded, 15), crowded
            )
        print(f"        alone {alone}, of 400 {crowded}, then {peer.server_settings[4]}, at once: {came}")
        for visitor in visitors:
            visitor.close()


def large(asked):
    """As much as was asked for, as fast as it goes."""
    if asked.path == "/small":
        asked.answer(b"small")
        return
    asked.head(200, ("content-length", str(SIZE)))
    asked.send(pattern(), end=True, timeout=90)


def pattern():
    return bytes(range(256)) * (SIZE // 256)


def small_replies(tunnel, count=60, kind=VisitorOne):
    took = []
    for _ in range(count // 20):
        with contextlib.closing(kind(tunnel)) as visitor:
            for _ in range(20):
                began = time.monotonic()
                came = visitor.ask("/small", timeout=10)
                took.append(time.monotonic() - began)
                expect.equal("a small reply", came.body, b"small")
    return took


def judged(what, before, after):
    slowest, median = max(after), statistics.median(after)
    alone = statistics.median(before) * 1000
    print(
        f"        {what}: small replies {alone:.1f} ms alone, {median * 1000:.1f} beside, slowest {slowest * 1000:.0f}"
    )
    expect.that(f"{what}: small replies stay quick", median < 0.1 and slowest < 1.0, after)


def stalled(rig, what, stall, go_on):
    with rig.another() as server:
        tunnel = tunnel_of(server, "stalled")
        with attach(tunnel, large) as peer:
            alone = small_replies(tunnel)
            memory, _ = resident(server.pid)
            waiting = stall(tunnel)
            expect.until("all have begun", 10, lambda: len(peer.streams) >= STALLED)
            time.sleep(1.5)
            judged(what, alone, small_replies(tunnel) + small_replies(tunnel, kind=VisitorTwo))
            held = resident(server.pid)[0] - memory
            print(f"        the server holds {held:.0f} MiB for {STALLED} times {SIZE // MIB} MiB")
            expect.that("within bounds", held < 200, held)
            expect.equal("who goes on has all of it", go_on(waiting), hashlib.sha256(pattern()).hexdigest())
            for each in waiting:
                each.close()
            expect.until("the others are given up", 5, lambda: all(each.is_over for each in peer.streams.values()))
            judged(f"{what}, afterwards", alone, small_replies(tunnel))
        expect.equal("nothing failed", [each for each in peer.failures if "no window" not in str(each)], [])


def stalled_one(rig):
    def stall(tunnel):
        visitors = [VisitorOne(tunnel, receive_buffer=16_384) for _ in range(STALLED)]
        for visitor in visitors:
            visitor.send(f"GET /large HTTP/1.1\r\nHost: {tunnel.host}\r\n\r\n".encode())
        return visitors

    stalled(rig, "HTTP/1.1", stall, lambda visitors: hashlib.sha256(visitors[3].visited(60).body).hexdigest())


def stalled_two(rig):
    def stall(tunnel):
        visitors = []
        for _ in range(STALLED):
            visitor = VisitorTwo(tunnel, settings=((2, 0), (4, 65_535)))
            visitor.large = visitor.open("/large")
            visitor.large.on_data = lambda _stream: None
            visitors.append(visitor)
        return visitors

    def go_on(visitors):
        visitor = visitors[3]
        visitor.large.on_data = None
        visitor.h2.write(frame(WINDOW_UPDATE, 0, visitor.large.number, struct.pack("!I", SIZE)))
        came = visitor.visited(visitor.large, 60)
        return hashlib.sha256(came.body).hexdigest()

    stalled(rig, "HTTP/2", stall, go_on)


def stalled_raw(rig):
    with rig.another() as server:
        tunnel, _ = raw_tunnel(server, "stalled-raw")

        def handler(asked):
            asked.head(200)
            if asked.get("adit-visitor") == "127.0.0.7":
                asked.send(b"small", end=True)
            else:
                asked.send(pattern(), end=True, timeout=90)

        def dial(**options):
            tls = Tls(server.edge_port, client_context(server), tunnel.host, **options)
            tls.socket.sendall(tls.hello())
            return tls.socket

        def small():
            took = []
            for _ in range(20):
                began = time.monotonic()
                with contextlib.closing(dial(source="127.0.0.7")) as visitor:
                    expect.equal("a small answer", visitor.recv(100), b"small")
                took.append(time.monotonic() - began)
            return took

        with attach(tunnel, handler) as peer:
            alone, memory = small(), resident(server.pid)[0]
            waiting = [dial(receive_buffer=16_384) for _ in range(STALLED)]
            time.sleep(2)
            judged("raw", alone, small())
            held = resident(server.pid)[0] - memory
            print(f"        the server holds {held:.0f} MiB")
            expect.that("within bounds", held < 200, held)
            came, digest = 0, hashlib.sha256()
            waiting[3].settimeout(20)
            while octets := waiting[3].recv(1 << 18):
                digest.update(octets)
                came += len(octets)
            expect.equal(
                "who goes on has all of it", (came, digest.hexdigest()), (SIZE, hashlib.sha256(pattern()).hexdigest())
            )
            for each in waiting:
                each.close()
            expect.that("the link lives", peer.ping())


def unread(rig):
    """The same the other way: what the application does not read is not in the way of what it reads."""
    with rig.another() as server:
        tunnel = tunnel_of(server, "unread-many")

        def handler(asked):
            if asked.path != "/upload":
                peer.credit(asked, len(asked.body))
                asked.answer(b"small")

        with attach(tunnel, handler, credits=False, settings=((3, 1000), (4, 65_535), (8, 1))) as peer:
            alone, memory = small_replies(tunnel), resident(server.pid)[0]
            uploads = [VisitorOne(tunnel) for _ in range(STALLED)]
            for visitor in uploads:
                visitor.send(f"POST /upload HTTP/1.1\r\nHost: {tunnel.host}\r\nContent-Length: {SIZE}\r\n\r\n".encode())
                visitor.tls.socket.settimeout(0.3)
                with contextlib.suppress(TimeoutError, OSError):
                    for _ in range(SIZE // MIB):
                        visitor.send(bytes(MIB))
            judged("unread uploads", alone, small_replies(tunnel))
            held = resident(server.pid)[0] - memory
            print(f"        the server holds {held:.0f} MiB")
            expect.that("within bounds", held < 100, held)
            for visitor in uploads:
                visitor.close()
            expect.that("the link lives", peer.ping())


def small_windows(rig):
    tunnel = tunnel_of(rig.server, "small-windows")
    for window in (1, 10, 1000):
        body = bytes(range(256)) * (1 if window == 1 else 8)

        def handler(asked):
            asked.answer(hashlib.sha256(asked.whole()).hexdigest().encode())

        with attach(tunnel, handler, settings=((3, 100), (4, window), (8, 1))):
            for kind in (VisitorOne, VisitorTwo):
                with contextlib.closing(kind(tunnel)) as visitor:
                    came = visitor.ask("/", method="POST", body=body)
                    expect.equal(
                        f"{kind.version}: through a window of {window}",
                        came.body.decode(),
                        hashlib.sha256(body).hexdigest(),
                    )


def late_windows(rig):
    tunnel = tunnel_of(rig.server, "late-windows")
    with attach(tunnel, settings=((3, 100), (4, 0), (8, 1))) as peer:
        for kind in (VisitorOne, VisitorTwo):
            with contextlib.closing(kind(tunnel)) as visitor:
                if kind is VisitorOne:
                    visitor.send(f"POST / HTTP/1.1\r\nHost: {tunnel.host}\r\nContent-Length: 4\r\n\r\nbody".encode())
                else:
                    stream = visitor.open("/", method="POST", body=b"body")
                asked = peer.next(SOON)
                time.sleep(0.5)
                expect.equal("nothing without a window", bytes(asked.body), b"")
                peer.write(frame(WINDOW_UPDATE, 0, asked.number, struct.pack("!I", 2)))
                expect.that("then as much as there is", asked.holds(b"bo", SOON), asked)
                peer.write(settings_frame(((4, 10),)))
                expect.equal("and with SETTINGS, too", asked.whole(SOON), b"body")
                peer.write(settings_frame(((4, 0),)))
                asked.answer(b"thanks")
                came = visitor.visited() if kind is VisitorOne else visitor.visited(stream)
                expect.equal(f"{kind.version}: it is answered", came.body, b"thanks")


def noted(peer):
    """The lengths of frames that come from now on, of DATA too."""
    lengths, take = [], peer._take

    def noting(seen):
        lengths.append(len(seen.payload))
        take(seen)

    peer._take = noting
    return lengths


def frame_sizes(rig):
    tunnel = tunnel_of(rig.server, "frames")

    def handler(asked):
        asked.whole()
        asked.answer(b"thanks")

    for size in (None, 16_384, 65_536, (1 << 24) - 1):
        settings = SETTINGS_OF_AN_AGENT if size is None else (*SETTINGS_OF_AN_AGENT, (5, size))
        with attach(tunnel, handler, settings=settings) as peer, contextlib.closing(VisitorOne(tunnel)) as visitor:
            lengths = noted(peer)
            came = visitor.ask("/", ("x-large", "v" * 25_000), method="POST", body=bytes(2 * MIB))
            expect.equal("it is answered", came.body, b"thanks")
            expect.that(f"frames of at most {size}", max(lengths) <= (size or 16_384), max(lengths))
    with (
        attach(tunnel, lambda asked: asked.answer(b"x" * 3 * MIB)) as peer,
        contextlib.closing(VisitorOne(tunnel)) as visitor,
    ):
        largest = peer.server_settings.get(5, 16_384)
        expect.equal(f"frames of {largest} to the server", len(visitor.ask().body), 3 * MIB)


def floods(rig):
    with rig.another() as server:
        tunnel, other = tunnel_of(server, "floods"), tunnel_of(server, "floods")
        with attach(other, says("small")) as honest:
            memory, _ = resident(server.pid)
            for what, make in {
                "PING": lambda: frame(PING, 0, 0, bytes(8)) * 2000,
                "SETTINGS": lambda: frame(SETTINGS, 0, 0) * 2000,
                "WINDOW_UPDATE": lambda: frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", 1)) * 2000,
                "PRIORITY": lambda: frame(2, 0, 1, bytes(5)) * 2000,
                "unknown frames": lambda: frame(99, 0, 0, bytes(8)) * 2000,
            }.items():
                peer = attach(tunnel, lambda _asked: None)
                began, sent = time.monotonic(), 0
                peer.tls._tls.socket.settimeout(1)
                with contextlib.suppress(Exception):
                    while time.monotonic() - began < 1.5 and sent < 400_000:
                        peer.tls._tls.send(make())
                        sent += 2000
                took = small_replies(other, 20)
                grown = resident(server.pid)[0] - memory
                link = "ended" if peer.ended_at else "lives"
                print(f"        {sent} of {what}: link {link}, {grown:.0f} MiB more, replies {max(took) * 1000:.0f} ms")
                expect.that(f"{what}: others are served", max(took) < 1.0, took)
                expect.that("the memory is bounded", grown < 64, grown)
                peer.close()
            expect.that("the honest link lives", honest.ping())
