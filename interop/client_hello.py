"""Greets the edge in every way that TLS allows, and in some that it does not.

A handshake and a GET for each ClientHello, through an edge tunnel and through a
passthrough tunnel: in segments of one octet, dripping, after a silence, in records
of one octet, up to 60 KB. Then names that nobody has, no name at all, greetings
that never end, and what is no TLS. A scripted agent answers behind each tunnel.

    python client_hello.py --server ../target/release/api-server
"""

import socket
import ssl
import time

import expect
from scripted_agent import Ended, Http1, PassthroughSite, Tls, client_context, get, new_tunnel, request, visit, visit_h2
from server import ZONE, Server, arguments

HELLO_LIMIT = 10.0  # seconds that the edge waits for a ClientHello
UNRECOGNIZED_NAME = 112
UNFINISHED = 300
MOST_GROWTH = 64 << 20


def main():
    options = arguments(__doc__).parse_args()
    with Server(options.server) as server:
        edge = new_tunnel(server, "hello-edge")
        other = new_tunnel(server, "hello-other")
        site = PassthroughSite(server, "hello-passthrough")
        agents = [edge.agent(pool=8), other.agent()]
        checks = [(f"edge: {name}", lambda case=case: through_edge(server, edge.host, case)) for name, case in CASES]
        checks += [
            (f"passthrough: {name}", lambda case=case: through_passthrough(server, site.host, case))
            for name, case in CASES
        ]
        checks += [
            ("a name that nobody has: alert unrecognized_name", lambda: refuses_unknown_names(server)),
            ("no name: an alert or the end", lambda: refuses_no_name(server)),
            ("edge trap 9: SNI a with Host b: 421", lambda: answers_421(server, edge, other, site)),
            ("no TLS: an alert or the end", lambda: refuses_what_is_no_tls(server)),
            ("a ClientHello of 70 KB is refused", lambda: refuses_giants(server)),
        ]
        try:
            expect.each(checks, at_once=12)
            # By itself: it measures memory.
            expect.each(
                [("edge trap 7: a ClientHello that never ends is cut off", lambda: cuts_off_unfinished(server))]
            )
        finally:
            for error in site.errors:
                print(f"the passthrough agent met: {error}")
        for agent in (*agents, site.agent):
            expect.that("the agent's connection lives", agent.ping(), agent.error)


# --- ways to say hello ----------------------------------------------------------


class Case:
    def __init__(self, send=None, size=0, version=None, spell=str):
        self.send, self.size, self.version, self.spell = send, size, version, spell

    def connect(self, server, host):
        context = client_context(server)
        if self.version:
            context.minimum_version = context.maximum_version = self.version
        # The only part of a ClientHello that OpenSSL lets its user make large.
        protocols, missing = [b"http/1.1"], self.size - 310
        while missing > 0:
            protocols.append(b"p" * max(1, min(255, missing - 1)))
            missing -= 256
        context.set_alpn_protocols([protocol.decode() for protocol in protocols])
        tls = Tls(server.edge_port, context, self.spell(host), patience=40.0)
        tls.handshake(lambda socket, hello: self._send(socket, hello))
        if self.version:
            expect.equal("the version is the one asked for", tls.tls.version(), VERSIONS[self.version])
        return Http1(tls)

    def _send(self, socket, hello):
        if self.size:
            expect.that(
                f"the ClientHello has about {self.size} octets",
                abs(len(hello) - self.size) < self.size / 10,
                len(hello),
            )
        if self.spell is str.upper:
            expect.that("the name goes out in upper case", ZONE.upper().encode() in hello)
        if self.send:
            self.send(socket, hello)
        else:
            socket.sendall(hello)


VERSIONS = {ssl.TLSVersion.TLSv1_2: "TLSv1.2", ssl.TLSVersion.TLSv1_3: "TLSv1.3"}


def segments(size, pause):
    def send(socket, data):
        for start in range(0, len(data), size):
            socket.sendall(data[start : start + size])
            time.sleep(pause)

    return send


def two_segments(socket, data):
    socket.sendall(data[: len(data) // 2])
    time.sleep(0.1)
    socket.sendall(data[len(data) // 2 :])


def after_a_silence(socket, data):
    time.sleep(4.0)
    socket.sendall(data)


def records(size, then=None):
    """The same handshake message in records of `size` octets."""

    def send(socket, data):
        out = reframed(data, size)
        if then:
            then(socket, out)
        else:
            socket.sendall(out)

    return send


def reframed(data, size):
    message, head = b"", data[:3]
    while data:
        length = int.from_bytes(data[3:5], "big")
        message, data = message + data[5 : 5 + length], data[5 + length :]
    parts = (message[start : start + size] for start in range(0, len(message), size))
    return b"".join(head + len(part).to_bytes(2, "big") + part for part in parts)


CASES = [
    ("TLS 1.3", Case(version=ssl.TLSVersion.TLSv1_3)),
    ("TLS 1.2", Case(version=ssl.TLSVersion.TLSv1_2)),
    ("two segments", Case(two_segments)),
    ("segments of one octet", Case(segments(1, 0.001))),
    ("64 octets every 200 ms", Case(segments(64, 0.2))),
    ("four seconds of silence", Case(after_a_silence)),
    ("records of 256 octets", Case(records(256))),
    ("records of 16 octets", Case(records(16))),
    ("records of 1 octet", Case(records(1))),
    ("records of 256 octets in segments of one", Case(records(256, segments(1, 0.0005)))),
    ("records of 16 octets in segments of one", Case(records(16, segments(1, 0.0005)))),
    ("records of 1 octet in segments of one", Case(records(1, segments(1, 0.0005)))),
    ("TLS 1.2 in records of 1 octet", Case(records(1), version=ssl.TLSVersion.TLSv1_2)),
    ("1.7 KB, as with a post-quantum share", Case(size=1_700)),
    ("1.7 KB in two segments", Case(two_segments, size=1_700)),
    ("5 KB", Case(size=5_000)),
    ("9 KB", Case(size=9_000)),
    ("15 KB", Case(size=15_000)),
    ("20 KB, more than one record", Case(size=20_000)),
    ("50 KB", Case(size=50_000)),
    ("60 KB", Case(size=60_000)),
    ("15 KB in records of 16 octets", Case(records(16), size=15_000)),
    ("SNI in upper case", Case(spell=str.upper)),
]


def through_edge(server, host, case):
    connection = case.connect(server, host)
    answer = connection.ask(get(host, "/through-edge"))
    expect.equal("the GET is answered", answer.status, 200)
    expect.that("by the agent", b"/through-edge" in answer.body, answer)
    connection.close()


def through_passthrough(server, host, case):
    connection = case.connect(server, host)
    answer = connection.ask(get(host, "/through-passthrough"))
    expect.equal("the GET is answered", answer.status, 200)
    expect.equal("by the agent", answer.body, b"passthrough GET /through-passthrough HTTP/1.1")
    connection.close()


# --- what is refused ------------------------------------------------------------


def refuses_unknown_names(server):
    for name in (f"nobody.{ZONE}", "example.com", f"a.b.{ZONE}", f"x{ZONE}", "localhost"):
        came = raw_answer(server, hello_for(server, name))
        expect.equal(f"the alert for {name}", came[:1] + came[5:], bytes((21, 2, UNRECOGNIZED_NAME)))


def refuses_no_name(server):
    context = ssl.create_default_context()
    context.check_hostname = False
    tls = Tls(server.edge_port, context, None)
    is_alert_or_end("no name", raw_answer(server, tls.hello()))
    tls.close()


def answers_421(server, edge, other, site):
    for host in (other.host, site.host, ZONE, "example.com"):
        connection = visit(server, edge.host)
        expect.equal(f"Host {host} over HTTP/1.1", connection.ask(get(host)).status, 421)
        connection.close()
        connection = visit_h2(server, edge.host)
        stream = connection.answer(connection.open(request(host)))
        expect.equal(f":authority {host} over HTTP/2", stream.status, 421)
        stream = connection.answer(connection.open(request(edge.host)))
        expect.equal("the same connection serves its own name", stream.status, 200)
        connection.close()


def refuses_what_is_no_tls(server):
    for what, data in (
        ("plain HTTP", get(f"hello-edge.{ZONE}")),
        ("plain HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)),
        ("SSLv2", bytes.fromhex("802e0100020015000000100100800200800300800400800500800600400700c0") + bytes(16)),
        ("zeros", bytes(4096)),
        ("noise", bytes(range(1, 256)) * 16),
        ("a record of alerts", bytes.fromhex("15030100020100")),
        ("application data first", bytes.fromhex("170303000568656c6c6f")),
        ("an empty record", bytes.fromhex("1603010000") * 50),
        ("a record too long", bytes.fromhex("160301ffff") + bytes(70_000)),
        ("a ServerHello", bytes.fromhex("160303000802000004") + bytes(4)),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n"),
    ):
        is_alert_or_end(what, raw_answer(server, data))


def refuses_giants(server):
    message = b"\x01" + (70_000).to_bytes(3, "big") + bytes(70_000)
    parts = [message[start : start + 16384] for start in range(0, len(message), 16384)]
    data = b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)
    is_alert_or_end("70 KB", raw_answer(server, data))


def cuts_off_unfinished(server):
    hello = hello_for(server, f"hello-edge.{ZONE}")
    giant = b"\x16\x03\x01\x40\x00\x01\x00\xff\x00" + bytes(16_380)
    beginnings = [b"", hello[:1], hello[:-1], reframed(hello, 1)[:-6], giant, giant + giant[:5] + bytes(16_384)]
    before, began = resident(server), time.monotonic()
    connections = []
    for number in range(UNFINISHED):
        connection = socket.create_connection(("127.0.0.1", server.edge_port))
        connection.sendall(beginnings[number % len(beginnings)])
        connections.append(connection)
    dripping = socket.create_connection(("127.0.0.1", server.edge_port))
    most, ended_after = 0, None
    while time.monotonic() - began < HELLO_LIMIT + 5.0 and ended_after is None:
        try:
            # One octet a second is no reason to wait longer.
            dripping.sendall(hello[:1])
            hello = hello[1:]
            dripping.settimeout(1.0)
            if dripping.recv(1) == b"":
                ended_after = time.monotonic() - began
        except TimeoutError:
            pass
        except OSError:
            ended_after = time.monotonic() - began
        most = max(most, resident(server) - before)
    expect.that("one that drips is cut off in time", ended_after is not None and ended_after > 5.0, ended_after)
    for connection in connections:
        connection.settimeout(5.0)
        try:
            expect.that("a silent one is cut off", len(connection.recv(100)) in (0, 7))
        except ConnectionError:
            pass
        connection.close()
    expect.that(
        f"{UNFINISHED} of them take at most {MOST_GROWTH >> 20} MiB", most <= MOST_GROWTH, f"{most / (1 << 20):.1f} MiB"
    )


def hello_for(server, name):
    tls = Tls(server.edge_port, client_context(server, "http/1.1"), name)
    hello = tls.hello()
    tls.close()
    return hello


def raw_answer(server, data):
    """All that comes before the end of the connection."""
    with socket.create_connection(("127.0.0.1", server.edge_port), HELLO_LIMIT + 3.0) as connection:
        came = b""
        try:
            connection.sendall(data)
            while received := connection.recv(4096):
                came += received
        except ConnectionError:
            pass
        except TimeoutError:
            raise Ended(f"no end of the connection, but {came!r}") from None
        return came


def is_alert_or_end(what, came):
    expect.that(f"{what}: an alert or the end", came == b"" or (len(came) == 7 and came[0] == 21), came)


def resident(server):
    with open(f"/proc/{server.pid}/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["VmRSS"].split()[0]) * 1024


if __name__ == "__main__":
    expect.run(main)
