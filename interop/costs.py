"""What one peer, one address, one agent can cost at most: docs/operating.md's list under attack.

Each check plays one row of the list and expects the stated bound. Then, with
`--minutes N`, all of them at once on one server, again and again for so long, where an
innocent agent and an innocent visitor must be served all the while and memory must
stay within the stated sum.

    python costs.py --server ../target/release/api-server --minutes 2
"""

import contextlib
import os
import queue
import re
import resource
import socket
import struct
import threading
import time
import urllib.request
import uuid

import expect
from hostile import MIB, Scene, came_of, later, never_panicked, open_websocket, resident
from scripted_agent import (
    Agent,
    Broken,
    Ended,
    Http1,
    Http2,
    Tls,
    WebSocket,
    client_context,
    fetch,
    get,
    new_tunnel,
    request,
    settings_frame,
    visit,
    visit_h2,
    ws_frame,
)
from server import ZONE, Server, arguments

BODY_MEMORY = 256 * MIB
# What docs/operating.md adds up for a server under attack, beside the bodies and the
# 64 MiB that one agent may send ahead.
STATED = BODY_MEMORY + 64 * MIB + 128 * MIB


def main():
    parser = arguments(__doc__)
    parser.add_argument("--only", default="", metavar="WORD")
    parser.add_argument("--minutes", type=float, default=0.0, metavar="N")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    checks = [
        ("a visitor's Pings", pings),
        ("a body that its agent does not take", unread_bodies),
        ("WebSockets keep their place", websockets_keep_their_place),
        ("visitors leave the zone alone", visitors_leave_the_zone_alone),
        ("an address has its share", shares),
        ("answers that nobody reads", unread_answers),
        ("no descriptors left", no_descriptors),
        ("a stranger's window", strangers_window),
        ("a stranger's streams", strangers_streams),
        ("small answers that nobody takes", untaken_answers),
    ]
    expect.each([(name, lambda check=check: check(options)) for name, check in checks if options.only in name])
    if options.minutes:
        expect.each([("all at once", lambda: all_at_once(options))])


@contextlib.contextmanager
def scene_of(options, **settings):
    with Server(options.server, **settings) as server:
        scene = Scene(server)
        yield scene
        scene.innocent.over.set()
        never_panicked(server)


def metric(server, name):
    text = urllib.request.urlopen(f"http://127.0.0.1:{server._metrics_port}/metrics", timeout=10).read().decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def places(server, kind):
    return metric(server, f'adit_edge_connections{{kind="{kind}"}}')


# --- one row each -------------------------------------------------------------------


def flood_pings(scene, seconds):
    """Sends Pings and reads nothing; answers agent and visitor, and how many were sent."""
    _, agent, _, websocket = open_websocket(scene)
    pings, over, sent = ws_frame(9, b"x" * 125) * 2000, time.monotonic() + seconds, 0
    # Closed under our hands is a way to end, too.
    with contextlib.suppress(OSError, Ended):
        websocket.http.tls.socket.settimeout(1.0)
        while time.monotonic() < over:
            websocket.send(9, b"first") if not sent else websocket.http.send(pings)
            sent += 2000
    return agent, websocket, sent


def pings(options):
    """RFC 6455 section 5.5.3: of several Pings the newest is answered."""
    with scene_of(options) as scene:
        with scene.bounded(48 * MIB):
            _, websocket, sent = flood_pings(scene, 8.0)
        expect.that("many were sent", sent >= 20_000, sent)
        websocket.close()
        _, _, _, websocket = open_websocket(scene)
        websocket.send(9, b"one")
        expect.equal("a Ping is answered", websocket.receive(), (10, b"one"))


class Deaf(Agent):
    """Takes no octet of a body, and answers as soon as it has seen a head."""

    def __init__(self, tunnel, pool):
        super().__init__(tunnel.server, tunnel.id, tunnel.credential, pool=0)
        self.write(settings_frame(((4, 0),)))
        for slot in range(pool):
            self.park(slot)
        threading.Thread(target=self._answer_heads, daemon=True).start()

    def _answer_heads(self):
        answered = set()
        while not self.ended_at:
            time.sleep(0.01)
            for stream in list(self.streams.values()):
                asked = stream.get("inkbox-request-id")
                if asked and asked not in answered:
                    answered.add(asked)
                    with contextlib.suppress(Ended):
                        self.reply(asked, b"early", waits=False)
                        self.park(len(answered))


def unread_bodies(options):
    """An agent with window 0 that answers early: what was not sent is let go of with the answer."""
    with scene_of(options, edge_body_memory=str(BODY_MEMORY)) as scene:
        tunnel = scene.tunnel()
        agent = Deaf(tunnel, 32)
        other = scene.tunnel()
        other.agent()
        with scene.bounded(BODY_MEMORY + 64 * MIB):
            statuses = []

            def upload():
                try:
                    connection = visit(scene.server, tunnel.host)
                    connection.send(get(tunnel.host, "/", f"Content-Length: {8 * MIB}", method="POST"))
                    connection.send(bytes(8 * MIB))
                    statuses.append(connection.answer(30.0).status)
                    connection.close()
                except (Broken, Ended, OSError, TimeoutError) as error:
                    statuses.append(repr(error))

            threads = [threading.Thread(target=upload, daemon=True) for _ in range(40)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60.0)
        expect.equal("answers", len(statuses), 40)
        expect.that("what fits is answered, the rest hears 503", set(statuses) <= {200, 503}, set(statuses))
        expect.that("the agent is there", not agent.ended_at, agent.error)
        # All of it is given back: another tunnel's visitors have the whole budget again.
        connection = visit(scene.server, other.host)
        connection.send(get(other.host, "/", f"Content-Length: {30 * MIB}", method="POST"))
        connection.send(bytes(30 * MIB))
        expect.equal("an upload through another tunnel", connection.answer(30.0).status, 200)


def websockets_keep_their_place(options):
    with scene_of(options, max_connections="6") as scene:
        scene.innocent.over.set()
        time.sleep(0.5)
        tunnel = scene.tunnel()

        def serve(agent, envelope):
            agent.reply(envelope.id)
            if envelope.kind == "ws-upgrade":
                agent.bridge(envelope)

        tunnel.agent(serve, pool=8)
        sockets = [WebSocket(scene.server, tunnel.host) for _ in range(6)]
        expect.equal("handshakes", [each.response.status for each in sockets], [101] * 6)
        expect.equal("places of WebSockets", places(scene.server, "websocket"), 6)
        expect.raises_any("a seventh visitor", lambda: fetch(scene.server, tunnel.host, timeout=3.0))
        expect.that("REST at the zone is there", rest_answers(scene.server))
        sockets[0].close()
        expect.until("its place is free", 5.0, lambda: places(scene.server, "websocket") == 5)
        expect.equal("another visitor is served", fetch(scene.server, tunnel.host).status, 200)


def rest_answers(server):
    connection = Http1(Tls(server.edge_port, client_context(server, "http/1.1"), ZONE).handshake())
    answer = connection.ask(get(ZONE, "/api/v1/tunnels", f"X-API-Key: {server.key}"))
    connection.close()
    return answer.status == 200


def visitors_leave_the_zone_alone(options):
    """Silent visitors take visitors' places, not those of agents and of REST."""
    with scene_of(options, max_connections="6") as scene:
        scene.innocent.over.set()
        time.sleep(0.5)
        tunnel = scene.tunnel()
        silent = [visit(scene.server, tunnel.host) for _ in range(6)]
        expect.equal("visitors", places(scene.server, "visitor"), 6)
        expect.that("REST at the zone is there", rest_answers(scene.server))
        agent = tunnel.agent()
        expect.that("an agent is let in", agent.ping())
        for connection in silent:
            connection.close()
        expect.until("visitors are served", 5.0, lambda: fetch(scene.server, tunnel.host).status == 200)


def proxied(address):
    """Sends a PROXY protocol header (version 2) before the ClientHello."""
    header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c" + socket.inet_aton(address) + bytes([127, 0, 0, 1, 0, 80, 1, 187])
    return lambda connection, hello: connection.sendall(header + hello)


def shares(options):
    """A quarter of the visitors' places for one address."""
    with Server(options.server, max_connections="8", edge_proxy_protocol="true") as server:
        tunnel = new_tunnel(server, "shares")

        def visitor(address):
            return visit(server, tunnel.host, proxied(address))

        first = [visitor("203.0.113.5") for _ in range(2)]
        expect.raises_any("a third one of the same address", lambda: visitor("203.0.113.5"))
        second = visitor("203.0.113.6")
        expect.equal("another address is served", second.ask(get(tunnel.host)).status, 503)
        first[0].close()
        expect.until("its place is free", 5.0, lambda: places(server, "visitor") == 2)
        visitor("203.0.113.5").close()
        # Counted from the header on, not from the ClientHello.
        silent = [socket.create_connection(("127.0.0.1", server.edge_port)) for _ in range(3)]
        for connection in silent:
            proxied("203.0.113.7")(connection, b"")
            connection.settimeout(1.0)
        # Which one is read last is the server's affair.
        expect.equal("a third silent one is closed", [closed(each) for each in silent].count(True), 1)
        expect.equal("places of strangers", places(server, "stranger"), 2)


def closed(connection):
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def unread_answers(options):
    """The API and the metrics: a client that reads nothing is cut off, and costs little till then."""
    with scene_of(options, request_timeout="5s") as scene:
        server = scene.server
        clients = []
        with scene.bounded(48 * MIB):
            for port, path in ((server.port, "/openapi.json"), (server._metrics_port, "/metrics")):
                for _ in range(25):
                    client = socket.socket()
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    client.connect(("127.0.0.1", port))
                    client.setblocking(False)
                    asked = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 2000
                    with contextlib.suppress(BlockingIOError):
                        client.send(asked)
                    clients.append((port, client))
            expect.until("all are served", 5.0, lambda: metric(server, "adit_connections") >= 50)
            # The one who asks is there, too.
            expect.until("all are cut off", 20.0, lambda: metric(server, "adit_connections") <= 2)
        for _, client in clients:
            client.close()


def no_descriptors(options):
    """One line a second, and a metric."""
    with Server(options.server) as server:
        tunnel = new_tunnel(server, "descriptors")
        agent = tunnel.agent()
        used = len(os.listdir(f"/proc/{server.pid}/fd"))
        soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        before = len(server.log.read_text(errors="replace").splitlines())
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used + 8, hard))
        clients = [socket.create_connection(("127.0.0.1", server.edge_port)) for _ in range(40)]
        time.sleep(5.0)
        lines = server.log.read_text(errors="replace").splitlines()[before:]
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (soft, hard))
        said = [line for line in lines if "cannot accept" in line]
        expect.that("it is said, about once a second", 1 <= len(said) <= 7, said)
        expect.that("and nothing else", len(lines) <= len(said) + 3, lines)
        for client in clients:
            client.close()
        expect.until("visitors are served again", 5.0, lambda: fetch(server, tunnel.host).status == 200)
        expect.that("it is counted", metric(server, "adit_edge_unaccepted_total") >= 10)
        expect.that("the agent was there all the while", not agent.ended_at)


def strangers_window(options):
    """Before its hello nobody may send more than HTTP/2 begins with; afterwards an agent may."""
    with scene_of(options) as scene:
        tls = Tls(scene.server.edge_port, client_context(scene.server, "h2"), ZONE).handshake()
        stranger = Http2(tls)
        expect.that("a PING is answered", stranger.ping())
        expect.that("64 KiB for all streams", stranger.window <= 65_535, stranger.window)
        expect.that("and for one", stranger.server_settings.get(4, 65_535) <= 65_535, stranger.server_settings)
        agent = scene.tunnel().agent()
        expect.until("an agent's window grows", 5.0, lambda: agent.ping() and agent.window > 32 * MIB)
        expect.equal("for each stream, too", agent.server_settings.get(4), 8 * MIB)


def strangers_streams(options):
    """Who has not said hello and opens what only agents open is shown out."""
    with scene_of(options) as scene:
        for path in ("response", "ws"):
            tls = Tls(scene.server.edge_port, client_context(scene.server, "h2"), ZONE).handshake()
            stranger = Http2(tls)
            fields = [("x-tunnel-id", str(uuid.uuid4())), ("x-api-key", "guessed")]
            with contextlib.suppress(Ended):
                for _ in range(40):
                    method = "POST" if path == "response" else "CONNECT"
                    head = request(ZONE, f"/_system/{path}/{uuid.uuid4()}", *fields, method=method)
                    if path == "ws":
                        head.insert(1, (":protocol", "inkbox-tunnel-ws"))
                    stranger.open(head, end=False)
            expect.that(f"{path}: the connection is ended", stranger.has_ended(3.0))


def untaken_answers(options):
    """Visitors over HTTP/2 whose windows stay shut: what is kept for them has a sum."""
    memory = 32 * MIB
    with scene_of(options, edge_body_memory=str(memory)) as scene:
        tunnel = scene.tunnel()
        tunnel.agent(lambda agent, envelope: agent.reply(envelope.id, bytes(60 * 1024)), pool=32)
        with scene.bounded(memory + 64 * MIB):
            visitors = [visit_h2(scene.server, tunnel.host, settings=((2, 0), (4, 0))) for _ in range(8)]
            streams = [visitor.open(request(tunnel.host)) for visitor in visitors for _ in range(120)]
            expect.until("all have a head", 30.0, lambda: all(stream.headers for stream in streams))
        statuses = [stream.status for stream in streams]
        expect.equal("what they are", set(statuses), {200, 503})
        # One that took its time, on a machine that has other work, counts among its agent's replies.
        expect.that("no more than fit", statuses.count(200) * 60 * 1024 <= memory + 16 * 60 * 1024, statuses.count(200))
        for visitor in visitors:
            visitor.close()
        expect.until("it is given back", 5.0, lambda: fetch_h2(scene.server, tunnel.host) == 200)


def fetch_h2(server, host):
    visitor = visit_h2(server, host)
    try:
        return visitor.answer(visitor.open(request(host))).status
    finally:
        visitor.close()


# --- all at once --------------------------------------------------------------------


def all_at_once(options):
    """Every kind again and again, while an innocent pair is served."""
    over = time.monotonic() + 60.0 * options.minutes
    counts, lock = {}, threading.Lock()
    with Server(options.server, edge_body_memory=str(BODY_MEMORY), header_timeout="5s") as server:
        scene = Scene(server)
        passthrough = new_tunnel(server, "passed", "edge")
        passthrough.agent()
        before, peak = resident(server), [0]

        def again(name, attack):
            while time.monotonic() < over:
                # An attacker may be thrown out at any moment.
                with contextlib.suppress(Broken, Ended, OSError, TimeoutError, queue.Empty, expect.Failed):
                    attack()
                with lock:
                    counts[name] = counts.get(name, 0) + 1
                peak[0] = max(peak[0], resident(server) - before)

        def hog():
            tunnel = scene.tunnel()
            agent = Deaf(tunnel, 8)
            for _ in range(4):
                connection = visit(server, tunnel.host)
                connection.send(get(tunnel.host, "/", f"Content-Length: {16 * MIB}", method="POST"))
                connection.send(bytes(16 * MIB))
                came_of(later(connection.answer, 5.0), 6.0)
                connection.close()
            agent.close()

        def silent():
            connections = [socket.create_connection(("127.0.0.1", server.edge_port)) for _ in range(200)]
            time.sleep(2.0)
            for connection in connections:
                connection.close()

        def half_hello():
            for _ in range(100):
                connection = socket.create_connection(("127.0.0.1", server.edge_port))
                connection.sendall(b"\x16\x03\x01\x02\x00\x01")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

        def resets():
            visitor = visit_h2(server, passthrough.host)
            for _ in range(300):
                visitor.reset(visitor.open(request(passthrough.host, "/reset")))
            visitor.close()

        def stalled():
            visitor = visit_h2(server, passthrough.host, settings=((2, 0), (4, 0)))
            for _ in range(50):
                visitor.open(request(passthrough.host, "/stalled"))
            time.sleep(1.0)
            visitor.close()

        def knocking():
            tunnel = scene.tunnel()
            for _ in range(20):
                stranger = Agent(server, tunnel.id, ("x-api-key", "wrong"), says_hello=False)
                stranger.hello()
                stranger.close()

        def pinging():
            agent, websocket, _ = flood_pings(scene, 2.0)
            websocket.close()
            # Its threads would be the script's own burden.
            agent.close()

        def churning():
            tunnel = scene.tunnel()
            for _ in range(10):
                tunnel.agent(pool=32).tls.reset()

        attacks = {
            "pings": pinging,
            "bodies": hog,
            "silent": silent,
            "half hellos": half_hello,
            "resets": resets,
            "stalled": stalled,
            "wrong keys": knocking,
            "agents come and go": churning,
        }
        threads = [threading.Thread(target=again, args=each, daemon=True) for each in attacks.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0 * options.minutes + 120.0)
        print(f"        {counts}, {peak[0] / MIB:.0f} MiB at most", flush=True)
        expect.equal("every attack was played", set(counts), set(attacks))
        expect.that(f"memory stays within {STATED // MIB} MiB", peak[0] <= STATED, f"{peak[0] / MIB:.0f} MiB")
        scene.innocent.judge()
        never_panicked(server)
        lines = len(server.log.read_text(errors="replace").splitlines())
        print(f"        {lines} log lines", flush=True)
        expect.equal("the exit status", server.stop(), 0)


if __name__ == "__main__":
    expect.run(main)
