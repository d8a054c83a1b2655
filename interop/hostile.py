"""Hostile visitors and hostile agents, and an innocent pair that must not notice.

Visitors that are slow, that flood, that smuggle; agents that answer twice, late,
wrongly or never, that die in the middle of everything, and that have the small
windows of the Python SDK. Each part has a server of its own, where an agent and a
visitor who do nothing wrong must be served all the while, and memory must stay
small. A line is printed for each check.

"trap N" counts the traps of the agents' protocol, "edge trap N" those of an edge in
the open. Takes about two minutes; `--only WORD` runs the checks that have the word
in their name.

    python hostile.py --server ../target/release/api-server
"""

import concurrent.futures
import contextlib
import json
import os
import queue
import resource
import struct
import threading
import time
import uuid

import hpack

import expect
from scripted_agent import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    PYTHON_SETTINGS,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Agent,
    Broken,
    Ended,
    Http2,
    PassthroughSite,
    Stream,
    Tls,
    WebSocket,
    answer_all,
    client_context,
    fetch,
    frame,
    get,
    inner,
    new_tunnel,
    request,
    visit,
    visit_h2,
    ws_frame,
)
from server import ZONE, Server, arguments

MIB = 1 << 20
GOOD_WITHIN = 5.0  # seconds for an innocent request meanwhile
WEBSOCKETS = 1000
STUCK = 15  # of them, with more than the kernel holds


def main():
    parser = arguments(__doc__)
    parser.add_argument("--only", default="", metavar="WORD")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    parts = (
        Part("slow peers", SLOW, at_once=len(SLOW)),
        Part("floods", FLOODS),
        Part("messages", MESSAGES),
        Part("agents", AGENTS),
        Part("windows", WINDOWS),
        Part("stalled visitors", STALLED, at_once=2),
        Part("many WebSockets", MANY),
        Part("drain", DRAIN, is_stopped=True),
    )
    with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
        running = [pool.submit(part.run, options) for part in parts]
        failed = [name for each in running for name in each.result() if name]
    expect.equal("the checks that do not hold", failed, [])


class Part:
    """Checks that share a server."""

    def __init__(self, name, checks, at_once=1, is_stopped=False):
        self.name, self.checks, self.at_once, self.is_stopped = name, checks, at_once, is_stopped

    def run(self, options):
        """Answers the names of the checks that failed."""
        checks = [check for check in self.checks if options.only in check[0]]
        if not checks:
            return []
        with Server(options.server, header_timeout="15s") as server:
            scene = Scene(server)
            calls = [(f"{self.name}: {name}", lambda check=check: check(scene)) for name, check in checks]
            failed = expect.together(calls, self.at_once)
            if self.is_stopped:
                return failed
            last = [
                ("the innocent pair was served all the while", scene.innocent.judge),
                ("nothing panicked", lambda: never_panicked(server)),
                ("SIGTERM ends the server with 0", lambda: expect.equal("exit status", server.stop(), 0)),
            ]
            return failed + expect.together([(f"{self.name}: {name}", call) for name, call in last], 1)


class Scene:
    """A server with an innocent pair; makes tunnels for whoever is not innocent."""

    def __init__(self, server):
        self.server = server
        self.innocent = Innocent(server)
        self._number, self._lock = 0, threading.Lock()

    def tunnel(self):
        with self._lock:
            self._number += 1
            return new_tunnel(self.server, f"subject-{self._number}")

    def held(self, **options):
        """A tunnel, its agent, and the queue in which envelopes wait for the check."""
        tunnel, envelopes = self.tunnel(), queue.Queue()
        agent = tunnel.agent(lambda _agent, envelope: envelopes.put(envelope), **options)
        return tunnel, agent, lambda: envelopes.get(timeout=10.0)

    @contextlib.contextmanager
    def bounded(self, most):
        """The server's resident memory grows by no more than this meanwhile."""
        before, peak, over = resident(self.server), [0], threading.Event()

        def watch():
            while not over.wait(0.05):
                peak[0] = max(peak[0], resident(self.server) - before)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
        expect.that(f"memory grows by at most {most // MIB} MiB", peak[0] <= most, f"{peak[0] / MIB:.0f} MiB")


class Innocent:
    """An agent and a visitor who asks, again and again."""

    def __init__(self, server):
        self.server, self.tunnel = server, new_tunnel(server, "innocent")
        self.agent = self.tunnel.agent()
        self.count, self.slowest, self.failures, self.over = 0, 0.0, [], threading.Event()
        threading.Thread(target=self._visit, daemon=True).start()

    def _visit(self):
        while not self.over.wait(0.25):
            began = time.monotonic()
            try:
                answer = fetch(self.server, self.tunnel.host, "/innocent", timeout=GOOD_WITHIN)
                if answer.status != 200:
                    self.failures.append(answer)
            except Exception as error:
                if not self.over.is_set():
                    self.failures.append(f"{error!r} after {time.monotonic() - began:.1f} s")
            self.count += 1
            self.slowest = max(self.slowest, time.monotonic() - began)

    def judge(self):
        self.over.set()
        print(f"        {self.count} innocent requests, the slowest took {self.slowest * 1000:.0f} ms", flush=True)
        expect.equal(f"of {self.count} innocent requests failed", self.failures, [])
        expect.that(f"the slowest took at most {GOOD_WITHIN} s", self.slowest <= GOOD_WITHIN, self.slowest)
        expect.that("the innocent agent's connection lives", not self.agent.ended_at, self.agent.error)


def resident(server):
    with open(f"/proc/{server.pid}/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["VmRSS"].split()[0]) * 1024


def never_panicked(server):
    panics = [line for line in server.log.read_text(errors="replace").splitlines() if "panicked at" in line]
    expect.equal("panics", panics, [])


def later(call, *values, **named):
    """Calls on a thread of its own; `result` of what comes back waits for it."""
    future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(call(*values, **named))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def came_of(future, timeout=15.0):
    """What the visitor has: a response, or `Broken` or `Ended`."""
    try:
        return future.result(timeout)
    except (Broken, Ended, TimeoutError) as error:
        return error


def serves(tunnel, agent=None, path="/after"):
    """The tunnel answers a request now, on the same agent connection."""
    answer = fetch(tunnel.server, tunnel.host, path, timeout=10.0)
    expect.equal("a request after it is answered", answer.status, 200)
    if agent:
        expect.that("the agent's connection lives", not agent.ended_at, agent.error)


def ends_within(connection, seconds, at_least=0.0):
    """An `Http2` or `Tls` that the server ends."""
    began = time.monotonic()
    if isinstance(connection, Http2):
        ended = connection.has_ended(seconds)
    else:
        ended = False
        with contextlib.suppress(TimeoutError):
            while connection.receive(max(0.0, began + seconds - time.monotonic())):
                pass
            ended = True
    took = time.monotonic() - began
    expect.that(f"the server ends the connection within {seconds} s", ended, f"nothing for {took:.1f} s")
    expect.that(f"but not before {at_least} s", took >= at_least, f"{took:.1f} s")


# --- slow peers, all at once --------------------------------------------------------


def slow_headers(scene):
    connection = visit(scene.server, scene.innocent.tunnel.host)
    connection.send(get(scene.innocent.tunnel.host)[:-2] + b"X-Slow: ")
    is_cut_off(lambda: connection.send(b"a"), connection.tls, 45.0)


def is_cut_off(drip, tls, seconds):
    """Drips once a second until the server has enough of it, in time."""
    began = time.monotonic()
    with contextlib.suppress(OSError, Ended):
        while time.monotonic() - began < seconds:
            drip()
            try:
                if not tls.receive(1.0):
                    return
            except TimeoutError:
                continue
    expect.that(f"cut off within {seconds} s", time.monotonic() - began < seconds, "it still listens")


def slow_headers_h2(scene):
    connection = visit_h2(scene.server, scene.innocent.tunnel.host, answers_pings=False)
    connection.settle()
    # A literal of 200 octets comes octet by octet, but not so many that their number tells.
    block = hpack.Encoder().encode(request(scene.innocent.tunnel.host)) + b"\x00\x06x-slow\x7f\x49"
    connection.write(frame(HEADERS, 0, 1, block))
    began = time.monotonic()
    with contextlib.suppress(Ended):
        while not connection.has_ended(25.0) and time.monotonic() - began < 95.0:
            connection.write(frame(CONTINUATION, 0, 1, b"a"))
    expect.that("cut off within 95 s", connection.ended_at, "it still listens")


def slow_body(scene):
    host = scene.innocent.tunnel.host
    connection = visit(scene.server, host)
    connection.send(get(host, "/slow", "Content-Length: 12", method="POST"))
    for _ in range(12):
        time.sleep(1.0)
        connection.send(b"x")
    answer = connection.answer()
    expect.equal("a slow body is taken as long as it moves", answer.status, 200)
    expect.equal("all of it", json.loads(answer.body)["octets"], 12)


def silent_body(scene):
    host = scene.innocent.tunnel.host
    connection = visit(scene.server, host)
    connection.send(get(host, "/silent", "Content-Length: 12", method="POST") + b"x")
    try:
        expect.equal("a body that stops is given up", connection.answer(45.0).status, 408)
    except Ended:
        pass


def idle_keep_alive(scene):
    connection = visit(scene.server, scene.innocent.tunnel.host)
    expect.equal("a request is answered", connection.ask(get(scene.innocent.tunnel.host)).status, 200)
    ends_within(connection.tls, 80.0, at_least=5.0)


def idle_h2(scene):
    ends_within(visit_h2(scene.server, scene.innocent.tunnel.host), 85.0, at_least=5.0)


def idle_h2_without_pings(scene):
    ends_within(visit_h2(scene.server, scene.innocent.tunnel.host, answers_pings=False), 95.0, at_least=5.0)


def deaf_to_pings(scene):
    agent = scene.tunnel().agent(answers_pings=False)
    ends_within(agent, 40.0, at_least=25.0)


def no_hello(scene):
    ends_within(scene.tunnel().agent(says_hello=False), 14.0, at_least=5.0)


def no_preface(scene):
    tls = Tls(scene.server.edge_port, client_context(scene.server, "h2"), ZONE).handshake()
    ends_within(tls, 14.0, at_least=5.0)


def quiet_intakes(scene):
    agent = scene.tunnel().agent(pool=4)
    time.sleep(6.0)
    answered = [stream for stream in agent.parked.values() if stream.headers or stream.is_over]
    expect.equal("parked streams that got an answer", answered, [])


def late_reply(scene):
    tunnel, agent, envelope = scene.held()
    visitor = later(fetch, scene.server, tunnel.host, timeout=60.0)
    asked = envelope()
    expect.equal("without a reply: 504", visitor.result(60.0).status, 504)
    expect.one_of("a late reply", agent.reply(asked.id, b"late").status, 404, 410)
    large = agent.reply(asked.id, bytes(3 * MIB))
    expect.one_of("a late, large reply is read and refused", large.status, 404, 410)
    expect.that("the agent's connection lives", agent.ping(), agent.error)


def no_bridge(scene):
    tunnel, agent, envelope = scene.held()
    visitor = later(WebSocket, scene.server, tunnel.host)
    began = time.monotonic()
    expect.equal("the reply is acknowledged", agent.reply(envelope().id).status, 200)
    expect.that("at once, before there is a bridge", time.monotonic() - began < 2.0)
    expect.equal("without the bridge: 504", visitor.result(30.0).response.status, 504)


def passthrough_without_bridge(scene):
    site = PassthroughSite(scene.server, "no-bridge")
    site.agent.handler = lambda agent, envelope: None
    tls = Tls(scene.server.edge_port, client_context(scene.server), site.host)
    tls.socket.sendall(tls.hello())
    ends_within(tls, 20.0)
    site.agent.handler = site._serve
    expect.equal("the next one is served", fetch(scene.server, site.host).status, 200)


# --- visitors who flood -------------------------------------------------------------


def large_head(scene):
    host = scene.innocent.tunnel.host
    for what, head in (
        ("one field of 1 MiB", b"X-Bomb: " + b"a" * MIB + b"\r\n"),
        (
            "10,000 fields",
            b"".join(b"X-Bomb-%d: abcdefghijklmnopqrstuvwxyz0123456789\r\n" % each for each in range(10_000)),
        ),
        ("a path of 1 MiB", None),
    ):
        data = get(host)[:-2] + head + b"\r\n" if head else get(host, "/" + "a" * MIB)
        with scene.bounded(32 * MIB):
            expect.that(f"{what} is refused", is_refusal(lambda: visit(scene.server, host).ask(data)))


def is_refusal(call):
    """A 4xx, or the end of the connection."""
    try:
        answer = call()
        return 400 <= answer.status < 600 and answer.status not in (500, 502, 504)
    except (Ended, Broken, OSError):
        return True


def many_fields_h2(scene):
    host = scene.innocent.tunnel.host
    connection = visit_h2(scene.server, host)
    with scene.bounded(32 * MIB):
        h2_refuses(connection, request(host, "/", *((f"x-bomb-{each}", "0123456789") for each in range(10_000))))


def h2_refuses(connection, headers):
    """431, or the end of stream or connection."""
    try:
        stream = connection.answer(connection.open(headers))
    except Ended:
        return
    refused = connection.ended_at or stream.reset is not None or stream.status == 431
    expect.that("it is refused", refused, stream)


def hpack_bomb(scene):
    host = scene.innocent.tunnel.host
    connection = visit_h2(scene.server, host)
    block = hpack.Encoder().encode(request(host))
    # A literal with incremental indexing, and then its index, once an octet.
    block += b"\x40\x06x-bomb\x7f" + bytes((3900 - 127 & 0x7F | 0x80, 3900 - 127 >> 7)) + b"a" * 3900
    block += b"\xbe" * 12_000
    with scene.bounded(64 * MIB):
        connection.write(frame(HEADERS, END_HEADERS | END_STREAM, 1, block[:16384]))
        connection.streams[1] = stream = Stream(1, 65535)
        connection.answer(stream)
    refused = connection.ended_at or stream.reset is not None or stream.status == 431
    expect.that("47 MB out of 16 KB are refused", refused, stream)


def flood(scene, frames, repeat, opening=b"", must_end=False, host=None, most=64 * MIB, seconds=15.0, reads=True):
    """Sends frames until they are all sent, the server has enough of it, or time is over."""
    host = host or scene.innocent.tunnel.host
    connection = visit_h2(scene.server, host, reads=reads)
    if reads:
        connection.settle()
    connection.tls.socket.settimeout(5.0)
    began, sent = time.monotonic(), 0
    with scene.bounded(most):
        with contextlib.suppress(Ended):
            connection.write(opening)
            for number in range(repeat):
                connection.write(frames(number) if callable(frames) else frames)
                sent += 1
                if connection.ended_at or time.monotonic() - began > seconds:
                    break
        if must_end:
            expect.that(
                f"the server ends the connection (after {sent} of {repeat} parts)",
                connection.has_ended(10.0),
                connection.goaway,
            )
    goaway = connection.goaway and int.from_bytes(connection.goaway.payload[4:8], "big")
    print(f"        {sent} of {repeat} parts sent, GOAWAY {goaway}, ended {bool(connection.ended_at)}", flush=True)
    connection.close()
    return connection


def head_block(host, path="/flood", *fields, method="GET"):
    return hpack.Encoder().encode(request(host, path, *fields, method=method))


def rapid_reset(scene):
    tunnel = scene.tunnel()
    reached = []
    agent = tunnel.agent(lambda agent, envelope: (reached.append(1), answer_all(agent, envelope)))
    block = head_block(tunnel.host)
    cancel = struct.pack("!I", 8)

    def burst(number):
        streams = range(1 + number * 200, 1 + number * 200 + 200, 2)
        return b"".join(
            frame(HEADERS, END_HEADERS | END_STREAM, each, block) + frame(RST_STREAM, 0, each, cancel)
            for each in streams
        )

    flood(scene, burst, 200, must_end=True, host=tunnel.host)
    time.sleep(1.0)
    expect.that("few of 20,000 requests reach the agent", len(reached) < 2000, len(reached))
    serves(tunnel, agent)


def patient_reset(scene):
    """Resets only when the requests have been taken: no limit of pending streams sees that."""
    tunnel = scene.tunnel()
    reached = []
    agent = tunnel.agent(lambda agent, envelope: reached.append(1))
    block = head_block(tunnel.host)

    def burst(number):
        time.sleep(0.02)
        streams = range(1 + number * 100, 1 + number * 100 + 100, 2)
        before = range(max(1, 1 + (number - 1) * 100), 1 + number * 100, 2)
        out = b"".join(frame(RST_STREAM, 0, each, struct.pack("!I", 8)) for each in before)
        return out + b"".join(frame(HEADERS, END_HEADERS | END_STREAM, each, block) for each in streams)

    connection = flood(scene, burst, 150, host=tunnel.host)
    print(f"        {len(reached)} of 7,500 requests reached the agent", flush=True)
    agent.handler = answer_all
    expect.that("the visitor is cut off, or the agent is not", connection.ended_at or not agent.ended_at)
    serves(tunnel, agent)


def made_you_reset(scene):
    tunnel = scene.tunnel()
    agent = tunnel.agent(lambda agent, envelope: None)
    block = head_block(tunnel.host)
    nothing = struct.pack("!I", 0)

    def burst(number):
        streams = range(1 + number * 100, 1 + number * 100 + 100, 2)
        return b"".join(
            frame(HEADERS, END_HEADERS | END_STREAM, each, block) + frame(WINDOW_UPDATE, 0, each, nothing)
            for each in streams
        )

    flood(scene, burst, 200, must_end=True, host=tunnel.host)
    agent.handler = answer_all
    serves(tunnel, agent)


def continuation_flood(scene):
    opening = frame(HEADERS, END_STREAM, 1, head_block(scene.innocent.tunnel.host))
    field = b"\x00\x06x-more\x7f\x81\x7b" + b"a" * 15_872
    flood(scene, frame(CONTINUATION, 0, 1, field), 2000, opening, must_end=True)


def empty_continuation_flood(scene):
    opening = frame(HEADERS, END_STREAM, 1, head_block(scene.innocent.tunnel.host))
    flood(scene, frame(CONTINUATION, 0, 1) * 1000, 200, opening, must_end=True)


def ping_flood(scene):
    flood(scene, frame(PING, 0, 0, b"floodyou") * 1000, 100)


def ping_flood_unread(scene):
    flood(scene, frame(PING, 0, 0, b"floodyou") * 1000, 400, reads=False)


def settings_flood(scene):
    flood(scene, frame(SETTINGS, 0, 0, struct.pack("!HI", 4, 65535)) * 500, 100)


def settings_flood_unread(scene):
    flood(scene, frame(SETTINGS, 0, 0, struct.pack("!HI", 4, 65535)) * 500, 400, reads=False)


def priority_flood(scene):
    flood(scene, lambda n: b"".join(frame(PRIORITY, 0, 2 * (n * 500 + i) + 1, bytes(5)) for i in range(500)), 100)


def empty_data_flood(scene):
    opening = frame(HEADERS, END_HEADERS, 1, head_block(scene.innocent.tunnel.host, method="POST"))
    flood(scene, frame(DATA, 0, 1) * 1000, 100, opening)


def window_update_flood(scene):
    opening = frame(HEADERS, END_HEADERS, 1, head_block(scene.innocent.tunnel.host, method="POST"))
    flood(scene, frame(WINDOW_UPDATE, 0, 1, struct.pack("!I", 1)) * 1000, 100, opening)


def many_bodies(scene):
    """128 streams, each with a body that never ends: nothing is held but windows."""
    host = scene.innocent.tunnel.host
    block = head_block(host, method="POST")
    opening = b"".join(frame(HEADERS, END_HEADERS, each, block) for each in range(1, 257, 2))
    flood(scene, lambda number: frame(DATA, 0, 2 * (number % 128) + 1, bytes(16_000)), 60, opening, most=96 * MIB)


# --- messages: what reaches an agent, and what does not -----------------------------

TARGET = "/smuggled"


def smuggling_cases(host):
    post = f"POST {TARGET} HTTP/1.1\r\nHost: {host}\r\n"
    plain = f"GET {TARGET} HTTP/1.1\r\nHost: {host}\r\n"
    more = f"GET {TARGET}-2 HTTP/1.1\r\nHost: {host}\r\n\r\n"
    length = "Content-Length: 5\r\n"
    chunked = "Transfer-Encoding: chunked\r\n"
    return {
        "content-length and chunked": f"{post}Content-Length: 6\r\n{chunked}\r\n0\r\n\r\n{more}",
        "chunked and content-length": f"{post}{chunked}Content-Length: 6\r\n\r\n0\r\n\r\n{more}",
        "content-length twice, the same": f"{post}{length}{length}\r\nhello",
        "content-length twice": f"{post}{length}Content-Length: 0\r\n\r\nhello",
        "a list of lengths": f"{post}Content-Length: 5, 5\r\n\r\nhello",
        "a list of different lengths": f"{post}Content-Length: 5, 0\r\n\r\nhello",
        "content-length +5": f"{post}Content-Length: +5\r\n\r\nhello",
        "content-length -1": f"{post}Content-Length: -1\r\n\r\nhello",
        "content-length 0x5": f"{post}Content-Length: 0x5\r\n\r\nhello",
        "content-length 5 5": f"{post}Content-Length: 5 5\r\n\r\nhello",
        "content-length of 2^64": f"{post}Content-Length: 18446744073709551616\r\n\r\nhello",
        "an empty content-length": f"{post}Content-Length:\r\n\r\nhello",
        "chunked in two fields": f"{post}{chunked}{chunked}\r\n0\r\n\r\n{more}",
        "chunked, chunked": f"{post}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n{more}",
        "xchunked": f"{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{more}",
        "chunked, identity": f"{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{more}",
        "identity": f"{post}Transfer-Encoding: identity\r\n{length}\r\nhello",
        "gzip, chunked": f"{post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{more}",
        "a vertical tab before chunked": f"{post}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n{more}",
        "quoted chunked": f'{post}Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n{more}',
        "a blank before the colon": f"{post}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{more}",
        "a tab before the colon": f"{post}Content-Length\t: 5\r\n\r\nhello",
        "chunked in HTTP/1.0": f"POST {TARGET} HTTP/1.0\r\nHost: {host}\r\n{chunked}\r\n0\r\n\r\n{more}",
        "a folded field": f"{plain}X-A: b\r\n c\r\n\r\n",
        "a folded first field": f"GET {TARGET} HTTP/1.1\r\n Host: {host}\r\n\r\n",
        "a folded transfer-encoding": f"{post}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{more}",
        "NUL in a value": f"{plain}X-A: a\0b\r\n\r\n",
        "NUL in a name": f"{plain}X\0A: b\r\n\r\n",
        "a bare CR in a value": f"{plain}X-A: a\rX-B: b\r\n\r\n",
        "a bare CR as line end": f"{plain}X-A: a\r\r\n\r\n",
        "a blank in a name": f"{plain}X A: b\r\n\r\n",
        "an empty name": f"{plain}: b\r\n\r\n",
        "no colon": f"{plain}nonsense\r\n\r\n",
        "a name in Latin-1": f"{plain}X-\xe9: b\r\n\r\n",
        "an absolute target and another Host": f"GET https://other.{ZONE}{TARGET} HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "an absolute target, another Host second": f"GET https://{host}{TARGET} HTTP/1.1\r\nHost: other.{ZONE}\r\n\r\n",
        "no Host": f"GET {TARGET} HTTP/1.1\r\n\r\n",
        "an empty Host": f"GET {TARGET} HTTP/1.1\r\nHost:\r\n\r\n",
        "two Hosts": f"{plain}Host: other.{ZONE}\r\n\r\n",
        "two equal Hosts": f"{plain}Host: {host}\r\n\r\n",
        "a list of Hosts": f"GET {TARGET} HTTP/1.1\r\nHost: {host}, other.{ZONE}\r\n\r\n",
        "a Host with a user": f"GET {TARGET} HTTP/1.1\r\nHost: user@{host}\r\n\r\n",
        "a Host with a path": f"GET {TARGET} HTTP/1.1\r\nHost: {host}/x\r\n\r\n",
        "a Host with a wrong port": f"GET {TARGET} HTTP/1.1\r\nHost: {host}:x\r\n\r\n",
        "a path without a slash": f"GET smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "two blanks before the path": f"GET  {TARGET} HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "a blank in the path": f"GET {TARGET} x HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "a NUL in the path": f"GET {TARGET}\0 HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "a CR in the path": f"GET {TARGET}\r HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "the asterisk": f"GET * HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "no version": f"GET {TARGET}\r\nHost: {host}\r\n\r\n",
        "HTTP/2.0": f"GET {TARGET} HTTP/2.0\r\nHost: {host}\r\n\r\n",
        "HTTP/1.2": f"GET {TARGET} HTTP/1.2\r\nHost: {host}\r\n\r\n",
        "http/1.1": f"GET {TARGET} http/1.1\r\nHost: {host}\r\n\r\n",
        "a method with a colon": f"GE:T {TARGET} HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "a blank before the method": f" GET {TARGET} HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "a chunk size of 0x5": f"{post}{chunked}\r\n0x5\r\nhello\r\n0\r\n\r\n",
        "a chunk size of -5": f"{post}{chunked}\r\n-5\r\nhello\r\n0\r\n\r\n",
        "a chunk size of 2^64 and 5": f"{post}{chunked}\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
        "a chunk without a size": f"{post}{chunked}\r\n\r\nhello\r\n0\r\n\r\n",
        "a chunk longer than its size": f"{post}{chunked}\r\n3\r\nhello\r\n0\r\n\r\n",
        "a chunk size with LF in its extension": f"{post}{chunked}\r\n5;a\nb\r\nhello\r\n0\r\n\r\n",
    }


def smuggling(scene):
    tunnel, agent, paths = recording(scene)
    wrong = []

    def one(what, data):
        connection = visit(scene.server, tunnel.host)
        try:
            answer = connection.ask(data.encode("latin-1"), timeout=3.0)
            if not 400 <= answer.status < 600 or answer.status in (502, 503, 504):
                wrong.append(f"{what}: {answer.status}")
        except (Ended, Broken, OSError):
            pass
        except TimeoutError:
            wrong.append(f"{what}: no answer and no end within 3 s")
        connection.close()

    cases = smuggling_cases(tunnel.host)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda case: one(*case), cases.items()))
    wrong.sort()
    expect.equal(f"of {len(cases)} ambiguous requests were not refused", wrong, [])
    expect.equal("of them reached the agent", [path for path in paths if "smuggled" in path], [])
    serves(tunnel, agent)


def recording(scene):
    tunnel, paths = scene.tunnel(), []
    agent = tunnel.agent(lambda agent, envelope: (paths.append(envelope.path), answer_all(agent, envelope)), pool=8)
    return tunnel, agent, paths


def bare_line_feeds(scene):
    """RFC 9112 section 2.2 allows to take them for line ends; what must not be is two opinions of one request."""
    tunnel, agent, paths = recording(scene)
    connection = visit(scene.server, tunnel.host)
    came = came_of(later(connection.ask, f"GET /lf HTTP/1.1\nHost: {tunnel.host}\nX-A: b\n\n".encode()))
    print(f"        bare LF as line end: {getattr(came, 'status', came)}, the agent saw {paths}", flush=True)
    if getattr(came, "status", None) == 200:
        fields = dict(map(tuple, json.loads(came.body)["headers"]))
        expect.equal("taken as line ends", fields.get("x-a"), "b")
    connection = visit(scene.server, tunnel.host)
    data = f"GET /mixed HTTP/1.1\r\nHost: {tunnel.host}\r\nX-A: b\nX-B: c\r\n\r\n"
    came = came_of(later(connection.ask, data.encode()))
    if getattr(came, "status", None) == 200:
        fields = dict(map(tuple, json.loads(came.body)["headers"]))
        expect.equal("no LF within a value", (fields.get("x-a"), fields.get("x-b")), ("b", "c"))
    else:
        expect.that("or it is refused", not hasattr(came, "status") or came.status == 400, came)


def smuggling_h2(scene):
    tunnel, agent, paths = recording(scene)
    host, wrong = tunnel.host, []
    pseudo = [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":authority", host.encode()),
        (b":path", TARGET.encode()),
    ]

    def replaced(name, value):
        return [(each, value if each == name else old) for each, old in pseudo]

    cases = {
        "a body longer than content-length": ([*pseudo, (b"content-length", b"2")], b"hello"),
        "a body shorter than content-length": ([*pseudo, (b"content-length", b"9")], b"hello"),
        "two lengths": ([*pseudo, (b"content-length", b"5"), (b"content-length", b"6")], b"hello"),
        "two equal lengths": ([*pseudo, (b"content-length", b"5"), (b"content-length", b"5")], b"hello"),
        "transfer-encoding": ([*pseudo, (b"transfer-encoding", b"chunked")], b"0\r\n\r\n"),
        "connection": ([*pseudo, (b"connection", b"close")], b""),
        "keep-alive": ([*pseudo, (b"keep-alive", b"1")], b""),
        "upgrade": ([*pseudo, (b"upgrade", b"h2c")], b""),
        "te: gzip": ([*pseudo, (b"te", b"gzip")], b""),
        "CR LF in a value": ([*pseudo, (b"x-a", b"b\r\nx-b: c")], b""),
        "LF in a value": ([*pseudo, (b"x-a", b"b\nx-b: c")], b""),
        "NUL in a value": ([*pseudo, (b"x-a", b"b\0c")], b""),
        "a blank in a name": ([*pseudo, (b"x a", b"b")], b""),
        "a colon in a name": ([*pseudo, (b"x:a", b"b")], b""),
        "CR LF in a name": ([*pseudo, (b"x-a: b\r\nx-c", b"d")], b""),
        "a name in upper case": ([*pseudo, (b"X-A", b"b")], b""),
        "a path without a slash": (replaced(b":path", b"smuggled"), b""),
        "an empty path": (replaced(b":path", b""), b""),
        "CR LF in the path": (replaced(b":path", b"/smuggled HTTP/1.1\r\nhost: x\r\n\r\n"), b""),
        "a blank in the path": (replaced(b":path", b"/smuggled x"), b""),
        "a method with blanks": (replaced(b":method", b"GET /smuggled HTTP/1.1\r\n"), b""),
        "an authority of another": (replaced(b":authority", b"other." + ZONE.encode()), b""),
        "an authority with a user": (replaced(b":authority", b"user@" + host.encode()), b""),
        "a Host that differs": ([*pseudo, (b"host", b"other." + ZONE.encode())], b""),
        "two paths": ([*pseudo, (b":path", b"/smuggled-2")], b""),
        "a pseudo field after the others": ([*pseudo[:3], (b"x-a", b"b"), pseudo[3]], b""),
        "an unknown pseudo field": ([*pseudo, (b":nonsense", b"x")], b""),
        "no path": (pseudo[:3], b""),
        "no method": (pseudo[1:], b""),
        "a response's pseudo field": ([*pseudo, (b":status", b"200")], b""),
    }
    for what, (headers, body) in cases.items():
        connection = visit_h2(scene.server, host)
        try:
            stream = connection.answer(connection.open(headers, body), 3.0)
            refused = stream.reset is not None or connection.ended_at or 400 <= (stream.status or 0) < 500
            if not refused:
                wrong.append(f"{what}: {stream}")
        except Ended:
            pass
        connection.close()
    expect.equal(f"of {len(cases)} malformed requests were not refused", wrong, [])
    expect.equal("of them reached the agent", paths, [])
    serves(tunnel, agent)


def raw_fields(answer):
    return [tuple(each) for each in json.loads(answer.body)["headers"]]


def strips_ours(scene):
    tunnel, agent, envelope = scene.held()
    lies = (
        "Inkbox-Status: 500",
        "inkbox-request-id: 1",
        "inkbox-h-x: y",
        "INKBOX-Route-Kind: tcp-stream",
        "inkbox-: z",
    )
    visitor = later(lambda: visit(scene.server, tunnel.host).ask(get(tunnel.host, "/", *lies, "X-Kept: 1")))
    check_ours(envelope(), agent)
    expect.equal("it is answered", visitor.result(10.0).status, 200)
    fields = [tuple(lie.lower().split(": ")) for lie in lies]
    connection = visit_h2(scene.server, tunnel.host)
    stream = connection.open(request(tunnel.host, "/", *fields, ("x-kept", "1")))
    check_ours(envelope(), agent)
    expect.equal("it is answered", connection.answer(stream).status, 200)


def check_ours(asked, agent):
    names = [name for name, _ in asked.stream.headers]
    expect.equal("one request id", names.count("inkbox-request-id"), 1)
    expect.equal("a webhook it is", asked.kind, "webhook")
    leaked = [name for name, _ in asked.fields if "inkbox" in name]
    expect.equal("of the visitor's inkbox fields reach the agent", leaked, [])
    expect.that("the others do", ("x-kept", "1") in asked.fields, asked.fields)
    agent.reply(asked.id)


def strips_connection(scene):
    tunnel = scene.tunnel()
    agent = tunnel.agent()
    lines = ("Connection: x-secret, X-Other", "X-Secret: 1", "X-Other: 2", "Keep-Alive: 5", "TE: trailers", "X-Kept: 3")
    answer = visit(scene.server, tunnel.host).ask(get(tunnel.host, "/", *lines, "Proxy-Authorization: x", "Trailer: x"))
    names = {name for name, _ in raw_fields(answer)}
    unwanted = {"connection", "x-secret", "x-other", "keep-alive", "te", "proxy-authorization", "trailer", "host"}
    expect.equal("fields of the connection that reach the agent", names & unwanted, set())
    expect.that("the others do", "x-kept" in names, names)
    expect.that("the agent's connection lives", agent.ping(), agent.error)


def refuses_methods(scene):
    host = scene.innocent.tunnel.host
    for line in (f"TRACE / HTTP/1.1\r\nHost: {host}", f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443"):
        answer = visit(scene.server, host).ask(f"{line}\r\n\r\n".encode())
        expect.equal(line.split()[0], answer.status, 405)
    connection = visit_h2(scene.server, host)
    expect.equal("TRACE", connection.answer(connection.open(request(host, method="TRACE"))).status, 405)
    stream = connection.answer(connection.open([(":method", "CONNECT"), (":authority", f"{host}:443")], end=False))
    expect.equal("CONNECT", stream.status, 405)


def cookies(scene):
    tunnel, agent, envelope = scene.held()
    connection = visit_h2(scene.server, tunnel.host)
    crumbs = (("cookie", "a=1"), ("x-between", "x"), ("cookie", "b=2"), ("cookie", "c=3"))
    stream = connection.open(request(tunnel.host, "/", *crumbs))
    asked = envelope()
    expect.equal("one cookie field", [v for n, v in asked.fields if n == "cookie"], ["a=1; b=2; c=3"])
    agent.reply(asked.id, b"ok", ("inkbox-h-set-cookie", "a=1; Path=/"), ("inkbox-h-set-cookie", "b=2, c=3"))
    expect.equal("two set-cookie fields", connection.answer(stream).all("set-cookie"), ["a=1; Path=/", "b=2, c=3"])
    visitor = later(
        lambda: visit(scene.server, tunnel.host).ask(
            get(tunnel.host, "/", "Cookie: a=1", "Cookie: b=2", "X-M: 1", "X-M: 2")
        )
    )
    asked = envelope()
    expect.equal("one cookie field over HTTP/1.1", [v for n, v in asked.fields if n == "cookie"], ["a=1; b=2"])
    expect.equal("other fields stay apart", [v for n, v in asked.fields if n == "x-m"], ["1", "2"])
    agent.reply(asked.id, b"ok", ("inkbox-h-set-cookie", "a=1"), ("inkbox-h-set-cookie", "b=2"))
    expect.equal("two set-cookie fields", visitor.result(10.0).all("set-cookie"), ["a=1", "b=2"])


def too_many_fields(scene):
    tunnel = scene.tunnel()
    agent = tunnel.agent()
    for count in (112, 127, 200):
        lines = [f"X-{each}: y" for each in range(count)]
        answer = came_of(later(lambda lines=lines: visit(scene.server, tunnel.host).ask(get(tunnel.host, "/", *lines))))
        expect.equal(f"{count} fields over HTTP/1.1", getattr(answer, "status", answer), 431)
        connection = visit_h2(scene.server, tunnel.host)
        fields = [(f"x-{each}", "y") for each in range(count)]
        expect.equal(
            f"{count} fields over HTTP/2",
            connection.answer(connection.open(request(tunnel.host, "/", *fields))).status,
            431,
        )
    lines = [f"X-{each}: {'y' * 8000}" for each in range(8)]
    answer = came_of(later(lambda: visit(scene.server, tunnel.host).ask(get(tunnel.host, "/", *lines))))
    expect.equal("64,000 octets", getattr(answer, "status", answer), 431)
    lines = [f"X-{each}: y" for each in range(100)]
    answer = visit(scene.server, tunnel.host).ask(get(tunnel.host, "/", *lines))
    expect.equal("100 fields fit", answer.status, 200)
    serves(tunnel, agent)


def odd_values(scene):
    tunnel = scene.tunnel()
    agent = tunnel.agent(settings=PYTHON_SETTINGS, late_credit=True)
    data = get(tunnel.host)[:-2] + b"X-Name: caf\xe9\r\nX-Utf8: \xc3\xa9\r\nX-Blank: \t a b \t\r\nX-Empty:\r\n\r\n"
    fields = raw_fields(visit(scene.server, tunnel.host).ask(data))
    for name, value in fields:
        plain = all(" " <= each <= "~" for each in value) and value == value.strip()
        expect.that("values are printable ASCII without outer blanks", plain, (name, value))
    expect.that(
        "the field is there", any(name == "x-name" and value.startswith("caf") for name, value in fields), fields
    )
    connection = visit_h2(scene.server, tunnel.host)
    stream = connection.open([*request(tunnel.host), (b"x-name", b"caf\xe9"), (b"x-tab", b"a\tb")])
    expect.equal("over HTTP/2 as well", connection.answer(stream).status, 200)
    for name, value in json.loads(bytes(stream.body))["headers"]:
        plain = all(" " <= each <= "~" or each == "\t" for each in value)
        expect.that("values are printable ASCII, or a tab within", plain, (name, value))
    came = came_of(
        later(
            lambda: visit(scene.server, tunnel.host).ask(
                b"GET /caf\xe9 HTTP/1.1\r\nHost: " + tunnel.host.encode() + b"\r\n\r\n"
            )
        )
    )
    expect.one_of("a path in Latin-1", getattr(came, "status", 400), 200, 400)
    serves(tunnel, agent)


def verbatim_paths(scene):
    tunnel = scene.tunnel()
    agent = tunnel.agent()
    for path in ("/a//b/../c/./d", "/%2e%2e/%2F?x=%00&y=a+b", "/a;b=c?d?e", "/_system/hello", "//x", "/?"):
        answer = visit(scene.server, tunnel.host).ask(get(tunnel.host, path))
        expect.equal(f"the path {path}", json.loads(answer.body)["path"], path)
    expect.that("the agent's connection lives", agent.ping(), agent.error)


def pipelined(scene):
    tunnel = scene.tunnel()
    agent = tunnel.agent()
    connection = visit(scene.server, tunnel.host)
    body = get(tunnel.host, "/first", "Content-Length: 5", method="POST") + b"GET /"
    connection.send(body + get(tunnel.host, "/second") + get(tunnel.host, "/third"))
    paths = [json.loads(connection.answer().body)["path"] for _ in range(3)]
    expect.equal("three answers, in order", paths, ["/first", "/second", "/third"])
    expect.that("the agent's connection lives", agent.ping(), agent.error)


# --- agents that do it wrong --------------------------------------------------------


def answers_twice(scene):
    tunnel, agent, envelope = scene.held()
    visitor = later(fetch, scene.server, tunnel.host)
    asked = envelope()
    expect.equal("the first reply", agent.reply(asked.id, b"first").status, 200)
    expect.one_of("the second reply", agent.reply(asked.id, b"second").status, 404, 410)
    expect.one_of("a third, large one", agent.reply(asked.id, bytes(MIB)).status, 404, 410)
    expect.equal("the visitor has the first", visitor.result(10.0).body, b"first")


def foreign_ids(scene):
    tunnel, agent, envelope = scene.held()
    foreign = scene.tunnel().agent()
    visitor = later(fetch, scene.server, tunnel.host)
    asked = envelope()
    for request_id in (asked.id, str(uuid.uuid4()), "nonsense", "0", "a" * 200, "%00"):
        status = foreign.reply(request_id, b"foreign").status
        expect.one_of(f"a reply of another tunnel to {request_id}", status, 400, 403, 404, 410)
    for request_id in (str(uuid.uuid4()), "nonsense"):
        expect.one_of(f"a reply to {request_id}", agent.reply(request_id, b"x").status, 400, 404, 410)
    agent.credential = ("x-api-key", "wrong")
    expect.equal("a reply with another key", agent.reply(asked.id, b"wrong").status, 401)
    agent.credential = tunnel.credential
    agent.tunnel, mine = foreign.tunnel, agent.tunnel
    expect.one_of("a reply for another tunnel", agent.reply(asked.id, b"wrong").status, 401, 403, 404)
    agent.tunnel = mine
    expect.equal("the right reply", agent.reply(asked.id, b"right").status, 200)
    expect.equal("is the visitor's", visitor.result(10.0).body, b"right")
    expect.that("the other agent's connection lives", foreign.ping(), foreign.error)


def foreign_bridges(scene):
    tunnel, agent, envelope = scene.held()
    foreign = scene.tunnel().agent()
    visitor = later(WebSocket, scene.server, tunnel.host)
    asked = envelope()
    expect.equal("the reply", agent.reply(asked.id).status, 200)
    expect.one_of("the bridge of another tunnel", foreign.bridge(asked).status, 403, 404, 409)
    bridge = agent.bridge(asked)
    expect.equal("the bridge", bridge.status, 200)
    expect.one_of("the same bridge again", agent.bridge(asked).status, 404, 409)
    websocket = visitor.result(10.0)
    expect.equal("the visitor's handshake", websocket.response.status, 101)
    websocket.send(1, b"hello")
    expect.that("its messages come", agent.until(lambda: bridge.messages, 10.0))
    expect.equal("as they are", bridge.messages, [{"type": "text", "data": "hello"}])
    bridge.send({"type": "binary", "data": "AAEC"})
    expect.equal("and go", websocket.receive(), (2, b"\0\1\2"))
    bridge.send({"type": "close", "code": 4123, "reason": "bye"})
    expect.equal("with the close", websocket.close_code(), 4123)


def malformed_status(scene):
    tunnel, agent, envelope = scene.held(pool=8)
    for status in (
        "abc",
        "",
        "99",
        "100",
        "101",
        "199",
        "600",
        "1000",
        "200 OK",
        "-1",
        "２００".encode().decode("latin-1"),
        None,
    ):
        visitor = later(fetch, scene.server, tunnel.host)
        asked = envelope()
        if status is None:
            head = [*agent.headers("POST", f"/_system/response/{asked.id}"), agent.credential, ("content-length", "0")]
            agent.answer(agent.open(head))
        else:
            agent.reply(asked.id, b"body", status=status)
        answer = visitor.result(10.0)
        expect.equal(f"the status {status!r}", answer.status, 502)
    expect.that("the agent's connection lives", agent.ping(), agent.error)


def malformed_headers(scene):
    tunnel, agent, envelope = scene.held(pool=8)
    fields = [
        ("inkbox-h-transfer-encoding", "chunked"),
        ("inkbox-h-connection", "close, x-kept"),
        ("inkbox-h-content-length", "1000"),
        ("inkbox-h-upgrade", "h2c"),
        ("inkbox-h-keep-alive", "1"),
        ("inkbox-h-inkbox-secret", "1"),
        ("inkbox-h-x-kept", "yes"),
        ("inkbox-h-", "empty"),
        ("content-type", "not-ours"),
    ]
    for version in ("HTTP/1.1", "HTTP/2"):
        if version == "HTTP/2":
            connection = visit_h2(scene.server, tunnel.host)
            visitor = later(lambda: connection.answer(connection.open(request(tunnel.host))))
        else:
            visitor = later(fetch, scene.server, tunnel.host)
        stream = agent.reply(envelope().id, b"hello", *fields)
        answer = visitor.result(10.0)
        expect.equal(f"{version}: the status", answer.status, 200)
        expect.equal(f"{version}: the body", bytes(answer.body), b"hello")
        expect.equal(f"{version}: one length, the true one", answer.all("content-length"), ["5"])
        for name in ("transfer-encoding", "connection", "upgrade", "keep-alive", "inkbox-secret"):
            expect.equal(f"{version}: {name}", answer.all(name), [])
        expect.equal("the agent is told that it went well", stream.status, 200)
    expect.that("the agent's connection lives", agent.ping(), agent.error)


def wrong_lengths(scene):
    tunnel, agent, envelope = scene.held(pool=8)
    wrong = []
    for promised, sent in ((10, 5), (10, 20), (0, 5), (200_000, 100_000), (100_000, 200_000), (3 * MIB, 3 * MIB - 1)):
        for over in ("HTTP/1.1", "HTTP/2"):
            if over == "HTTP/2":
                connection = visit_h2(scene.server, tunnel.host)
                visitor = later(lambda connection=connection: connection.answer(connection.open(request(tunnel.host))))
            else:
                visitor = later(fetch, scene.server, tunnel.host)
            asked = envelope()
            stream = agent.start_reply(asked.id, length=promised)
            with contextlib.suppress(Ended):
                agent.send(stream, bytes(sent), end=True)
            came = came_of(visitor)
            whole = getattr(came, "status", None) == 200 and not getattr(came, "reset", None)
            if whole and getattr(came, "ended", True):
                wrong.append(f"{sent} octets of {promised} over {over}: {len(came.body)} octets, as if complete")
            # A reset may overtake the head: that, too, is no reply that is whole.
            elif not whole and not getattr(came, "reset", None) and getattr(came, "status", 502) not in (200, 502):
                wrong.append(f"{sent} octets of {promised} over {over}: {came}")
            if agent.ended_at:
                wrong.append(f"{sent} octets of {promised} over {over}: the agent's connection ended, {agent.goaway}")
                tunnel, agent, envelope = scene.held(pool=8)
    expect.equal("replies of a wrong length that a visitor takes for whole", wrong, [])
    expect.that("the agent's connection lives", agent.ping(), agent.error)


def octet_by_octet(scene):
    """What the application has said, the visitor has; a reply is not held back until it is whole."""
    for length in (11, 60_000, 70_000, None):
        tunnel, agent, envelope = scene.held()
        visitor = visit(scene.server, tunnel.host)
        visitor.send(get(tunnel.host))
        stream = agent.start_reply(envelope().id, length=length)
        time.sleep(0.1)
        rest = (length or 11) - 5
        for said in (b"first", bytes(rest - 1)):
            agent.send(stream, said)
            if said == b"first":
                expect.equal(f"the head of a reply of {length}", visitor.head(2.0).status, 200)
            if length is None:
                expect.equal("a chunk", visitor.exactly(len(f"{len(said):X}") + 4 + len(said), 2.0)[-2:], b"\r\n")
            else:
                expect.equal(f"the octets of a reply of {length}", visitor.exactly(len(said), 2.0), said)
            time.sleep(0.1)
        agent.send(stream, b"!", end=True)
        expect.that("the last one", visitor.exactly(1 if length else 6, 2.0).endswith(b"!" if length else b"!\r\n"))
        expect.equal("the agent is told that it is taken", agent.answer(stream).status, 200)
        visitor.close()


def dies_in_body(scene):
    for how in ("closes", "resets TCP", "resets the stream"):
        for length in (1_000_000, None, 20_000):
            for over in ("HTTP/1.1", "HTTP/2"):
                what = f"{how} in a reply of {length} over {over}"
                tunnel, agent, envelope = scene.held()
                if over == "HTTP/2":
                    connection = visit_h2(scene.server, tunnel.host)
                    visitor = later(
                        lambda connection=connection: connection.answer(connection.open(request(tunnel.host)))
                    )
                else:
                    visitor = later(fetch, scene.server, tunnel.host)
                stream = agent.start_reply(envelope().id, length=length)
                agent.send(stream, bytes(10_000 if length == 20_000 else 300_000))
                time.sleep(0.1)
                if how == "closes":
                    agent.tls.close()
                elif how == "resets TCP":
                    agent.tls.reset()
                else:
                    agent.reset(stream)
                came = came_of(visitor)
                if isinstance(came, (Broken, Ended)) or came.status == 502:
                    continue
                expect.that(f"{what}: never a short, complete answer", getattr(came, "reset", None) is not None, came)
                if how == "resets the stream":
                    expect.that("the agent's connection lives", agent.ping(), agent.error)


def open_websocket(scene, **options):
    tunnel, agent, envelope = scene.held(**options)
    visitor = later(WebSocket, scene.server, tunnel.host)
    asked = envelope()
    expect.equal("the reply is acknowledged before there is a bridge", agent.reply(asked.id).status, 200)
    bridge = agent.bridge(asked)
    expect.equal("the bridge", bridge.status, 200)
    websocket = visitor.result(10.0)
    expect.equal("the handshake", websocket.response.status, 101)
    return tunnel, agent, bridge, websocket


def dies_in_frame(scene):
    for how in ("closes", "resets TCP", "resets the stream", "ends the stream"):
        _, agent, bridge, websocket = open_websocket(scene)
        whole = ws_frame(2, inner({"type": "text", "data": "x" * 5000}))
        agent.send(bridge.stream, whole + whole[:2000])
        expect.equal("the whole message comes", websocket.receive(), (1, b"x" * 5000))
        if how == "closes":
            agent.tls.close()
        elif how == "resets TCP":
            agent.tls.reset()
        elif how == "resets the stream":
            agent.reset(bridge.stream)
        else:
            agent.send(bridge.stream, b"", end=True)
        came = websocket.receive()
        expect.that(f"{how}: a Close and nothing of the half message", came and came[0] == 8, came)
        expect.one_of(f"{how}: its code", struct.unpack("!H", came[1][:2])[0], 1011, 1012)


def rubbish_on_bridge(scene):
    for what, rubbish in (
        ("an unknown opcode", b"\x83\x80" + bytes(4)),
        ("a reserved bit", b"\xc2\x80" + bytes(4)),
        ("a message of 4 GiB", ws_frame(2, b"\xff\xff\xff\xff" + bytes(100))),
        ("a frame of 2^63", b"\x82\xff" + b"\x7f" + b"\xff" * 7 + bytes(4)),
        ("broken JSON", ws_frame(2, struct.pack("!I", 5) + b"{nope")),
        ("no UTF-8", ws_frame(2, struct.pack("!I", 4) + b'"\xff\xfe"')),
        ("an unknown type", ws_frame(2, inner({"type": "nonsense", "data": "x"}))),
        ("base64 that is none", ws_frame(2, inner({"type": "binary", "data": "%%%"}))),
        ("a close code that is none", ws_frame(2, inner({"type": "close", "code": 1006, "reason": "x"}))),
    ):
        tunnel, agent, bridge, websocket = open_websocket(scene)
        agent.send(bridge.stream, rubbish)
        with contextlib.suppress(Ended):
            agent.send(bridge.stream, ws_frame(2, inner({"type": "text", "data": "after"})))
        came = websocket.receive()
        # Skipped, or the end of this WebSocket; never a message made of it.
        if came is not None and came[0] == 8:
            code = struct.unpack("!H", came[1][:2])[0]
            expect.that(f"{what}: the close code may stand on the wire", code not in (1004, 1005, 1006, 1015), code)
        else:
            expect.that(f"{what}: skipped", came in (None, (1, b"after")), came)
        expect.that(f"{what}: the agent's connection lives", agent.ping(), agent.error)


def much_before_the_close(scene):
    """A slow visitor gets all that an agent said before it went, and the Close."""
    tunnel, agent, envelope = scene.held()
    visitor = later(WebSocket, scene.server, tunnel.host, receive_buffer=16 * 1024)
    asked = envelope()
    agent.reply(asked.id)
    bridge = agent.bridge(asked)
    websocket = visitor.result(10.0)
    message = ws_frame(2, inner({"type": "text", "data": "x" * 24_000}))
    agent.send(bridge.stream, message * 250)
    bridge.send_frame(2, inner({"type": "close", "code": 4001, "reason": "done"}))
    agent.send(bridge.stream, b"", end=True)
    came = 0
    while (frame := websocket.receive()) and frame[0] == 1:
        came += len(frame[1])
        time.sleep(0.025)
    expect.equal("octets before the Close", came, 250 * 24_000)
    expect.that("the Close", frame and struct.unpack("!H", frame[1][:2])[0] == 4001, frame)
    websocket.close()


def closes_twice(scene):
    _, agent, bridge, websocket = open_websocket(scene)
    twice = (
        inner({"type": "close", "code": 4001, "reason": "app"}),
        inner({"type": "close", "code": 1000, "reason": ""}),
    )
    for each in twice:
        bridge.send_frame(2, each)
    bridge.close(1000)
    expect.equal("the first close counts", websocket.close_code(), 4001)
    websocket.send(8, struct.pack("!H", 4001))
    expect.that("our half of the stream ends too", agent.until(lambda: bridge.stream.is_over, 10.0), bridge.stream)
    expect.equal("without a reset", bridge.stream.reset, None)


def visitor_closes(scene):
    _, agent, bridge, websocket = open_websocket(scene)
    websocket.send(1, b"last")
    websocket.send(8, struct.pack("!H", 4123) + b"bye")
    expect.that("the bridge ends", agent.until(lambda: bridge.ended, 10.0), bridge.stream)
    expect.equal("with the close, as the last", bridge.messages[1:], [{"type": "close", "code": 4123, "reason": "bye"}])
    bridge.close()
    expect.equal("the Close is echoed", websocket.close_code(), 4123)
    _, agent, bridge, websocket = open_websocket(scene)
    websocket.http.tls.reset()
    expect.that("a lost visitor ends the bridge", agent.until(lambda: bridge.ended, 10.0), bridge.stream)
    expect.equal("with 1001", [(each["type"], each["code"]) for each in bridge.messages], [("close", 1001)])


def wrong_websocket_frames(scene):
    for what, data, code in (
        ("unmasked", ws_frame(1, b"hello", masked=False), 1002),
        ("no UTF-8", ws_frame(1, b"\xff\xfe"), 1007),
        ("a reserved bit", b"\xc1\x85" + bytes(4) + b"hello", 1002),
        ("a continuation of nothing", ws_frame(0, b"hello"), 1002),
        ("a long PING", ws_frame(9, bytes(126)), 1002),
        ("a fragmented PING", b"\x09\x80" + bytes(4), 1002),
        ("a close code of 1006", ws_frame(8, struct.pack("!H", 1006)), 1002),
        ("a frame of 2^62", b"\x82\xff\x3f" + b"\xff" * 7 + bytes(4), 1009),
    ):
        _, agent, bridge, websocket = open_websocket(scene)
        websocket.http.send(data)
        expect.equal(f"{what}: the close code", websocket.close_code(), code)
        expect.that("the bridge ends", agent.until(lambda bridge=bridge: bridge.ended, 10.0), bridge.stream)
        expect.that("the agent's connection lives", agent.ping(), agent.error)
        agent.close()


def resets_intakes(scene):
    tunnel = scene.tunnel()
    agent = tunnel.agent(pool=8)
    for slot in range(7):
        agent.reset(agent.parked[slot])
    for _ in range(5):
        serves(tunnel, agent)
    for slot in range(7):
        agent.park(slot)
    # All at once, then the next ones: what was on its way goes to those.
    agent.write(b"".join(frame(RST_STREAM, 0, stream.number, struct.pack("!I", 8)) for stream in agent.parked.values()))
    visitor = later(fetch, scene.server, tunnel.host)
    time.sleep(0.5)
    agent.park(0)
    expect.equal("a request waits for the next intake", visitor.result(10.0).status, 200)


def resets_while_served(scene):
    """Intakes that end in the moment in which an envelope would go there: none is lost."""
    tunnel = scene.tunnel()
    agent = tunnel.agent(pool=8)
    over = threading.Event()

    def churn():
        while not over.wait(0.002):
            with contextlib.suppress(Ended):
                stream = agent.park(7)
                agent.reset(stream)

    churning = later(churn)
    statuses = [fetch(scene.server, tunnel.host).status for _ in range(60)]
    over.set()
    churning.result(5.0)
    # An envelope that meets a reset on the wire is the agent's loss: it reset that stream.
    lost = sum(status != 200 for status in statuses)
    expect.that("most requests are served", lost <= 6, f"{lost} of 60 lost: {set(statuses)}")
    serves(tunnel, agent)


def unknown_streams(scene):
    tunnel = scene.tunnel()
    agent = tunnel.agent()
    streams = []
    with scene.bounded(64 * MIB):
        with contextlib.suppress(Ended):
            for number in range(5000):
                streams.append(agent.open(agent.headers("POST", f"/_system/nothing/{number}"), end=number % 2 == 0))
                if agent.ended_at:
                    break
        agent.until(lambda: agent.ended_at or all(stream.is_over for stream in streams[::2]), 10.0)
    answered = {stream.status for stream in streams if stream.headers}
    expect.equal("the answers", answered - {404}, set())
    print(f"        {len(streams)} streams opened, connection ended: {bool(agent.ended_at)}", flush=True)


def wrong_token(scene):
    agent = scene.tunnel().agent()
    stream = agent.park(9, token="wrong")
    agent.until(lambda: stream.is_over)
    expect.equal("a wrong owner token", stream.status, 401)
    expect.that(
        "with a reason that is not a takeover", stream.get("inkbox-reason") not in (None, "intake-superseded"), stream
    )
    other = scene.tunnel().agent()
    stream = agent.park(9, token=other.token)
    agent.until(lambda: stream.is_over)
    expect.equal("another connection's token", stream.status, 401)


def before_hello(scene):
    tunnel = scene.tunnel()
    agent = tunnel.agent(says_hello=False)
    stream = agent.park(0, token="guessed")
    agent.until(lambda: stream.is_over)
    expect.equal("an intake before hello", stream.status, 401)
    expect.equal("a reply before hello", agent.reply(str(uuid.uuid4()), b"x").status, 401)
    head = agent.headers("CONNECT", f"/_system/ws/{uuid.uuid4()}", agent.credential)
    head.insert(1, (":protocol", "inkbox-tunnel-ws"))
    expect.equal("a bridge before hello", agent.answer(agent.open(head, end=False)).status, 401)
    expect.equal("an unknown path", agent.answer(agent.open(agent.headers("GET", "/nothing"))).status, 421)
    expect.equal("hello is still possible", agent.hello().status, 200)


def hello_twice(scene):
    tunnel = scene.tunnel()
    agent = tunnel.agent()
    expect.that("a second hello is refused", agent.hello().status in (400, 409), agent.goaway)
    serves(tunnel, agent)


def garbage(scene):
    for data in (
        os.urandom(10_000),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 50,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(10_000),
    ):
        tls = Tls(scene.server.edge_port, client_context(scene.server, "h2"), ZONE).handshake()
        with contextlib.suppress(OSError):
            tls.send(data)
        ends_within(tls, 13.0)


def broken_frames(scene):
    for what, data in (
        ("a frame beyond the limit", struct.pack("!I", MIB)[1:] + bytes((DATA, 0)) + bytes(4)),
        ("DATA on stream 0", frame(DATA, 0, 0, b"x")),
        ("HEADERS on an even stream", frame(HEADERS, END_HEADERS, 2, b"\x82")),
        ("broken HPACK", frame(HEADERS, END_HEADERS | END_STREAM, 101, b"\xff\xff\xff\xff\xff\xff\xff")),
        ("SETTINGS of 5 octets", frame(SETTINGS, 0, 0, bytes(5))),
        ("a window beyond 2^31", frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", 0x7FFFFFFF))),
        ("PING of 7 octets", frame(PING, 0, 0, bytes(7))),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, b"")),
    ):
        tunnel = scene.tunnel()
        agent = tunnel.agent()
        agent.write(data)
        if what != "a window beyond 2^31" or not agent.has_ended(0.5):
            with contextlib.suppress(Ended):
                agent.write(data)
        expect.that(f"{what} ends the connection", agent.has_ended(10.0), agent.goaway)
        again = tunnel.agent()
        serves(tunnel, again)
        again.close()


def cancel_storm(scene):
    tunnel, agent, envelope = scene.held(pool=32)
    # Of ids that nobody has, opened and cancelled in one breath.
    streams = []
    for _ in range(1000):
        stream = agent.start_reply(str(uuid.uuid4()), length=1000)
        streams.append(stream)
    agent.write(b"".join(frame(RST_STREAM, 0, each.number, struct.pack("!I", 8)) for each in streams))
    expect.that("the connection lives after 1000 cancelled replies", agent.ping(), agent.goaway or agent.error)
    # Of requests that somebody waits for.
    visitors = [later(fetch, scene.server, tunnel.host) for _ in range(100)]
    streams = []
    for _ in visitors:
        stream = agent.start_reply(envelope().id, length=1000)
        agent.send(stream, bytes(10))
        streams.append(stream)
    agent.write(b"".join(frame(RST_STREAM, 0, each.number, struct.pack("!I", 8)) for each in streams))
    came = [came_of(visitor) for visitor in visitors]
    whole = [each for each in came if getattr(each, "status", 502) != 502]
    expect.equal("the visitors of cancelled replies have 502", whole, [])
    # HEADERS and RST_STREAM in one write: h2 knows them as reset before anybody has accepted them.
    block = agent._encoder
    with agent.changed:
        out, first = b"", agent._next
        for number in range(first, first + 2000, 2):
            head = agent.headers("POST", f"/_system/response/{uuid.uuid4()}", agent.credential, ("content-length", "9"))
            out += frame(HEADERS, END_HEADERS, number, block.encode(head)) + frame(
                RST_STREAM, 0, number, struct.pack("!I", 8)
            )
        agent._next += 2000
        agent.write(out)
    expect.that("the connection lives after 1000 more, in one write", agent.ping(), agent.goaway or agent.error)
    agent.handler = answer_all
    serves(tunnel, agent)


def acknowledged_early(scene):
    _, agent, bridge, websocket = open_websocket(scene)
    bridge.send({"type": "text", "data": "hi"})
    expect.equal("and it works", websocket.receive(), (1, b"hi"))
    # A visitor that takes nothing of a large reply does not delay the acknowledgement.
    tunnel, agent, envelope = scene.held()
    connection = visit(scene.server, tunnel.host, receive_buffer=4096)
    connection.send(get(tunnel.host))
    began = time.monotonic()
    stream = agent.reply(envelope().id, bytes(8 * MIB))
    expect.equal("a large reply is acknowledged", stream.status, 200)
    expect.that("though its visitor takes nothing", time.monotonic() - began < 10.0, time.monotonic() - began)
    connection.close()


def takeover(scene):
    tunnel = scene.tunnel()
    first = tunnel.agent(pool=4, settings=PYTHON_SETTINGS, late_credit=True)
    time.sleep(0.3)
    second = tunnel.agent(pool=4)
    expect.that("the older connection is ended", first.has_ended(5.0))
    parked = [stream.number for stream in first.parked.values()]
    expect.equal("every parked intake: 409", [first.streams[each].status for each in parked], [409] * 4)
    reasons = {first.streams[each].get("inkbox-reason") for each in parked}
    expect.equal("with the reason", reasons, {"intake-superseded"})
    goaway_is_last(first, 0x1201, b'{"reason":"superseded"}', 0.3)
    answers = [n for n, seen in enumerate(first.frames) if seen.kind == HEADERS and seen.stream in parked]
    expect.that("the 409s came before it", max(answers) < len(first.frames) - 1)
    serves(tunnel, second)


def goaway_is_last(agent, code, debug_data, silence):
    frames = list(agent.frames)
    goaways = [number for number, seen in enumerate(frames) if seen.kind == GOAWAY]
    expect.equal("one GOAWAY", len(goaways), 1)
    seen = frames[goaways[0]]
    expect.equal("its code", hex(int.from_bytes(seen.payload[4:8], "big")), hex(code))
    expect.equal("its debug data", seen.payload[8:], debug_data)
    after = frames[goaways[0] + 1 :]
    expect.equal("nothing follows it in the same read", [each for each in after if each.read == seen.read], [])
    following = after[0].at if after else agent.ended_at
    expect.that(
        f"nothing comes for {silence} s",
        following is None or following - seen.at >= silence,
        (following or 0) - seen.at,
    )


def takeover_under_load(scene):
    """Requests, WebSockets and uploads are under way when a newer agent comes."""
    tunnel = scene.tunnel()
    first = tunnel.agent(pool=8)
    over, statuses = threading.Event(), []

    def ask():
        while not over.is_set():
            try:
                statuses.append(fetch(scene.server, tunnel.host, timeout=10.0).status)
            except Exception as error:
                statuses.append(repr(error))

    asking = [later(ask) for _ in range(6)]
    time.sleep(0.5)
    second = tunnel.agent(pool=8)
    expect.that("the older connection is ended", first.has_ended(5.0))
    goaway_is_last(first, 0x1201, b'{"reason":"superseded"}', 0.3)
    time.sleep(0.5)
    over.set()
    for each in asking:
        each.result(15.0)
    print(f"        {len(statuses)} requests meanwhile, not 200: {[s for s in statuses if s != 200]}", flush=True)
    serves(tunnel, second)


def flapping(scene):
    """Two agents take the tunnel from each other forty times."""
    tunnel = scene.tunnel()
    with scene.bounded(48 * MIB):
        agents = [tunnel.agent(pool=2) for _ in range(40)]
        for agent in agents[:-1]:
            expect.that("every older connection is ended", agent.has_ended(10.0))
    serves(tunnel, agents[-1])


def revoked_key(scene):
    server, tunnel = scene.server, scene.tunnel()
    made = server.ask("POST", "/api/v1/api-keys", {"label": "hostile", "scoped_identity_id": tunnel.identity}).json
    tunnel.credential = ("x-api-key", made["api_key"])
    agent = tunnel.agent()
    serves(tunnel, agent)
    expect.status("the key is revoked", server.ask("DELETE", f"/api/v1/api-keys/{made['record']['id']}"), 200)
    expect.that("its agent's connection is ended at once", agent.has_ended(2.0))
    expect.equal("a new hello", tunnel.agent(says_hello=False).hello().status, 401)
    expect.equal("a visitor", fetch(server, tunnel.host).status, 503)


def rotated_secret(scene):
    server = scene.server
    made = server.ask("POST", "/api/v1/tunnels/", {"tunnel_name": "rotated", "tls_mode": "edge"}).json
    tunnel = scene.tunnel()
    tunnel.id, tunnel.handle = made["tunnel"]["id"], "rotated"
    tunnel.credential = ("x-tunnel-secret", made["connect_secret"])
    agent = tunnel.agent()
    serves(tunnel, agent)
    secret = server.ask("POST", f"/api/v1/tunnels/{tunnel.id}/rotate-secret").json["connect_secret"]
    for _ in range(6):
        serves(tunnel, agent)
    expect.equal("a new hello with the old secret", tunnel.agent(says_hello=False).hello().status, 401)
    serves(tunnel, agent)
    agent.credential = ("x-tunnel-secret", secret)
    status = agent.reply(str(uuid.uuid4())).status
    expect.one_of("the new secret on the old connection", status, 401, 404)
    tunnel.credential = ("x-tunnel-secret", secret)
    newer = tunnel.agent()
    expect.that("the new secret takes over", agent.has_ended(5.0))
    serves(tunnel, newer)


def wrong_hellos(scene):
    server, tunnel, other = scene.server, scene.tunnel(), scene.tunnel()
    scoped = server.ask("POST", "/api/v1/api-keys", {"label": "other", "scoped_identity_id": other.identity}).json
    nobody, mine = str(uuid.uuid4()), tunnel.id
    for what, tunnel_id, credential, statuses in (
        ("an unknown tunnel", nobody, tunnel.credential, (401, 403)),
        ("a wrong key", mine, ("x-api-key", "wrong"), (401,)),
        ("a wrong secret of a key", mine, ("x-api-key", server.key[:-1] + "x"), (401,)),
        ("an empty key", mine, ("x-api-key", ""), (401,)),
        ("the key of another identity", mine, ("x-api-key", scoped["api_key"]), (401, 403)),
        ("a secret, where there is none", mine, ("x-tunnel-secret", "wrong"), (401,)),
        ("an empty secret", mine, ("x-tunnel-secret", ""), (401,)),
        ("a tunnel that is no UUID", "nonsense", tunnel.credential, (400, 401, 403)),
        ("no credential", mine, ("x-nothing", "x"), (400, 401, 403)),
    ):
        agent = Agent(server, tunnel_id, credential, says_hello=False)
        stream = agent.hello()
        expect.one_of(f"hello with {what}", stream.status, *statuses)
        agent.close()
    expect.equal("and the right one", tunnel.agent(says_hello=False).hello().status, 200)


def deleted_tunnel(scene):
    server, tunnel = scene.server, scene.tunnel()
    agent = tunnel.agent()
    expect.one_of(
        "the identity is deleted", server.ask("DELETE", f"/api/v1/identities/{tunnel.handle}").status, 200, 204
    )
    expect.that("its agent's connection is ended at once", agent.has_ended(2.0))
    expect.one_of("a new hello", tunnel.agent(says_hello=False).hello().status, 401, 403)
    came = None
    with contextlib.suppress(Exception):
        came = fetch(server, tunnel.host).status
    expect.one_of("a visitor", came, 404, None)
    # The other way, with a request and a WebSocket under way.
    made = server.ask("POST", "/api/v1/tunnels/", {"tunnel_name": "doomed", "tls_mode": "edge"}).json
    doomed = scene.tunnel()
    doomed.id, doomed.handle, doomed.credential = (
        made["tunnel"]["id"],
        "doomed",
        ("x-tunnel-secret", made["connect_secret"]),
    )
    envelopes = queue.Queue()
    agent = doomed.agent(lambda _agent, asked: envelopes.put(asked))
    websocket = later(WebSocket, server, doomed.host)
    asked = envelopes.get(timeout=10.0)
    agent.reply(asked.id)
    agent.bridge(asked)
    websocket = websocket.result(10.0)
    visitor = later(fetch, server, doomed.host)
    envelopes.get(timeout=10.0)
    expect.status("the tunnel is deleted", server.ask("DELETE", f"/api/v1/tunnels/{doomed.id}"), 200)
    expect.that("its agent's connection is ended at once", agent.has_ended(2.0))
    came = came_of(visitor)
    expect.that("the request under way fails", getattr(came, "status", 404) in (404, 502, 503), came)
    with contextlib.suppress(TimeoutError):
        came = websocket.close_code(5.0)
        expect.one_of("the WebSocket is closed", came, 1001, 1011, 1012, None)
        return
    raise expect.Failed("the WebSocket of a deleted tunnel is still open after 5 s")


def passthrough_agent_dies(scene):
    site = PassthroughSite(scene.server, "dies")
    opened = queue.Queue()
    site.agent.handler = lambda agent, envelope: opened.put(agent.bridge(envelope, "tcp", on_data=lambda *_: None))
    tls = Tls(scene.server.edge_port, client_context(scene.server), site.host)
    tls.socket.sendall(tls.hello())
    bridge = opened.get(timeout=10.0)
    expect.equal("the bridge", bridge.status, 200)
    site.agent.send(bridge.stream, ws_frame(2, bytes(1000))[:500])
    site.agent.tls.reset()
    began = time.monotonic()
    tls.socket.settimeout(10.0)
    try:
        while tls.socket.recv(4096):
            pass
    except ConnectionError:
        pass
    expect.that("the visitor's connection ends with the agent's", time.monotonic() - began < 5.0)


# --- small windows ------------------------------------------------------------------


def small_windows(scene):
    tunnel, opened, total = scene.tunnel(), queue.Queue(), [0]
    lock = threading.Lock()

    def count(bridge, message):
        with lock:
            total[0] += len(message.get("data", ""))

    def serve(agent, envelope):
        if envelope.kind == "webhook":
            answer_all(agent, envelope)
            return
        agent.reply(envelope.id)
        opened.put(agent.bridge(envelope, on_message=count))

    agent = tunnel.agent(serve, settings=PYTHON_SETTINGS, late_credit=True)
    websockets = [WebSocket(scene.server, tunnel.host) for _ in range(3)]
    bridges = [opened.get(timeout=10.0) for _ in websockets]
    expect.equal("three handshakes", [each.response.status for each in websockets], [101] * 3)
    # 25 octets of JSON, 4 of length and 4 of the outer frame: exactly 32768 on the wire.
    sizes = [32_735, 32_700, 30_000, 17_000, 32_735, 100, 32_735]

    def send(websocket, first):
        sent = 0
        for number in range(first, 200, 3):
            size = sizes[number % len(sizes)]
            websocket.send(1, b"m" * size)
            sent += size
        return sent

    began = time.monotonic()
    sending = [later(send, websocket, number) for number, websocket in enumerate(websockets)]
    # Requests with bodies share the window with the bridges.
    statuses = [
        visit(scene.server, tunnel.host)
        .ask(get(tunnel.host, "/", "Content-Length: 50000", method="POST") + bytes(50_000))
        .status
        for _ in range(5)
    ]
    wanted = sum(each.result(30.0) for each in sending)
    arrived = agent.until(lambda: total[0] >= wanted or agent.ended_at, 30.0)
    expect.that(f"all {wanted} octets arrive", arrived and not agent.ended_at, (total[0], agent.error, agent.goaway))
    print(f"        200 messages, {wanted / MIB:.1f} MiB in {time.monotonic() - began:.1f} s", flush=True)
    expect.equal("requests in between", statuses, [200] * 5)
    expect.equal("not one octet too many", total[0], wanted)
    expect.equal("and in order", {message["type"] for bridge in bridges for message in bridge.messages}, {"text"})
    serves(tunnel, agent)


def message_above_cap(scene):
    for kind, size in (("text", 40_000), ("text", 32_736), ("binary", 30_000)):
        tunnel, agent, bridge, websocket = open_websocket(scene, settings=PYTHON_SETTINGS, late_credit=True)
        websocket.send(1 if kind == "text" else 2, b"m" * size)
        expect.equal(f"{size} octets of {kind}: the close code", websocket.close_code(), 1009)
        expect.that("the bridge ends", agent.until(lambda bridge=bridge: bridge.ended, 10.0), bridge.stream)
        closes = [(message["type"], message.get("code")) for message in bridge.messages]
        expect.equal("with an inner close and nothing else", closes, [("close", 1009)])
        agent.handler = answer_all
        serves(tunnel, agent)
    tunnel, agent, bridge, websocket = open_websocket(scene)
    websocket.send(1, b"m" * MIB)
    expect.that("an agent with large windows takes 1 MiB", agent.until(lambda: bridge.messages, 10.0))


def stuck_bridge(scene):
    """An agent whose application does not consume one bridge: others, and requests, go on."""
    tunnel, agent, bridge, websocket = open_websocket(scene, settings=PYTHON_SETTINGS, late_credit=True)
    bridge.agent.credit, credit = lambda stream, octets: None, bridge.agent.credit

    def send():
        with contextlib.suppress(OSError, Ended):
            for _ in range(10):
                websocket.send(1, b"m" * 20_000)

    later(send)
    time.sleep(1.0)
    agent.handler = answer_all
    serves(tunnel, agent)
    bridge.agent.credit = credit


def large_envelopes(scene):
    tunnel = scene.tunnel()
    agent = tunnel.agent(settings=PYTHON_SETTINGS, late_credit=True, pool=4)
    octets = 3 * MIB
    answers = []

    def post():
        data = get(tunnel.host, "/", f"Content-Length: {octets}", method="POST") + bytes(octets)
        answers.append(visit(scene.server, tunnel.host).ask(data, timeout=40.0))

    posting = [later(post) for _ in range(6)]
    for each in posting:
        each.result(50.0)
    expect.equal("bodies through small windows", [json.loads(each.body)["octets"] for each in answers], [octets] * 6)
    expect.that("the agent's connection lives", agent.ping(), agent.error)


def too_large_bodies(scene):
    tunnel = scene.tunnel()
    agent = tunnel.agent()
    limit = 32 * MIB
    connection = visit(scene.server, tunnel.host)
    answer = connection.ask(get(tunnel.host, "/", f"Content-Length: {limit + 1}", method="POST"))
    expect.equal("a body declared beyond 32 MiB", answer.status, 413)
    with scene.bounded(160 * MIB):
        connection = visit(scene.server, tunnel.host)
        connection.send(get(tunnel.host, "/", "Transfer-Encoding: chunked", method="POST"))
        with contextlib.suppress(OSError):
            for _ in range(40):
                connection.send(b"100000\r\n" + bytes(MIB) + b"\r\n")
        came = came_of(later(connection.answer))
        expect.that("a body beyond 32 MiB", getattr(came, "status", 413) == 413, came)
    serves(tunnel, agent)


# --- visitors that take nothing -----------------------------------------------------


def stalled_downloads(scene):
    tunnel = scene.tunnel()
    body = bytes(24 * MIB)
    giving = []

    def serve(agent, envelope):
        if envelope.path == "/large":
            giving.append(later(agent.reply, envelope.id, body))
        elif envelope.path == "/medium":
            agent.reply(envelope.id, bytes(MIB))
        else:
            answer_all(agent, envelope)

    tunnel.agent(serve, pool=32)
    connections = []
    with scene.bounded(220 * MIB):
        for _ in range(5):
            connection = visit(scene.server, tunnel.host, receive_buffer=4096)
            connection.send(get(tunnel.host, "/large"))
            connections.append(connection.tls)
        for _ in range(5):
            # A window that is never opened.
            connection = visit_h2(scene.server, tunnel.host, settings=((2, 0), (4, 0)))
            connection.open(request(tunnel.host, "/large"))
            connections.append(connection)
        time.sleep(3.0)
        began = time.monotonic()
        small = later(fetch, scene.server, tunnel.host, "/small", timeout=60.0)
        medium = later(fetch, scene.server, tunnel.host, "/medium", timeout=60.0)
        small, took_small = came_of(small, 65.0), time.monotonic() - began
        medium, took_medium = came_of(medium, 65.0), time.monotonic() - began
    print(f"        meanwhile a small reply took {took_small:.1f} s, one of 1 MiB {took_medium:.1f} s", flush=True)
    expect.equal("a small reply of the same agent comes", getattr(small, "status", small), 200)
    expect.that("soon", took_small < 5.0, f"{took_small:.1f} s")
    expect.equal("one of 1 MiB comes", len(getattr(medium, "body", b"")), MIB)
    # The stated limit for a visitor that takes nothing is 30 s.
    expect.that("when the stalled ones are cut off, if not sooner", took_medium < 45.0, f"{took_medium:.1f} s")
    for connection in connections:
        if isinstance(connection, Http2):
            cut_off = connection.has_ended(1.0) or any(each.is_over for each in connection.streams.values())
        else:
            cut_off = not is_held(scene, connection.socket)
        expect.that("a visitor that takes nothing is cut off", cut_off or took_medium < 10.0)


def is_held(scene, connection):
    """Does the server still have this connection? Seen in the kernel's table: a closed one has no inode."""
    ours = connection.getsockname()[1]
    with open("/proc/net/tcp") as table:
        for line in table.readlines()[1:]:
            fields = line.split()
            ports = [int(address.split(":")[1], 16) for address in fields[1:3]]
            if ports == [scene.server.edge_port, ours]:
                return fields[9] != "0"
    return False


def stalled_for_good(scene):
    """After the stated time, a visitor that takes nothing has no connection any more."""
    tunnel = scene.tunnel()
    tunnel.agent(lambda agent, envelope: later(agent.reply, envelope.id, bytes(24 * MIB)), pool=8)
    first = visit(scene.server, tunnel.host, receive_buffer=4096)
    first.send(get(tunnel.host))
    second = visit_h2(scene.server, tunnel.host, settings=((2, 0), (4, 0)))
    stream = second.open(request(tunnel.host))
    began = time.monotonic()
    open_ones = {"HTTP/1.1", "HTTP/2"}
    while open_ones and time.monotonic() - began < 70.0:
        time.sleep(1.0)
        if not is_held(scene, first.tls.socket):
            open_ones.discard("HTTP/1.1")
        if second.ended_at or stream.is_over:
            open_ones.discard("HTTP/2")
    expect.equal("connections that hold a reply after 70 s", open_ones, set())


# --- a thousand WebSockets ----------------------------------------------------------


def in_kernel(scene):
    """Octets that the kernel holds of the edge's connections, in both directions and at both ends."""
    octets = 0
    with open("/proc/net/tcp") as table:
        for line in table.readlines()[1:]:
            fields = line.split()
            if scene.server.edge_port in (int(address.split(":")[1], 16) for address in fields[1:3]):
                octets += sum(int(each, 16) for each in fields[4].split(":"))
    return octets


def slow_websockets(scene):
    tunnel, bridges = scene.tunnel(), []
    lock = threading.Lock()

    def serve(agent, envelope):
        if envelope.kind == "webhook":
            answer_all(agent, envelope)
            return
        agent.reply(envelope.id)
        bridge = agent.bridge(envelope)
        with lock:
            bridges.append(bridge)

    agent = tunnel.agent(serve, pool=32)
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        opening = [pool.submit(WebSocket, scene.server, tunnel.host, receive_buffer=2304) for _ in range(WEBSOCKETS)]
        websockets = [each.result() for each in opening]
    expect.equal("handshakes", {each.response.status for each in websockets}, {101})
    opened_after = time.monotonic() - began
    small = ws_frame(2, inner({"type": "text", "data": "x" * 90}))
    large = ws_frame(2, inner({"type": "text", "data": "y" * 15_000}))
    sent = 0
    with scene.bounded(400 * MIB):
        for _ in range(6):
            for bridge in bridges:
                frames = frame(DATA, 0, bridge.stream.number, small) * 60
                sent += 60 * 92 * agent.send_small(bridge.stream, frames, len(small) * 60)
        # The kernel holds all that; what these few have beyond it waits in the server.
        for bridge in bridges[:STUCK]:
            for _ in range(270):
                agent.send(bridge.stream, large, timeout=10.0)
            sent += 270 * 15_004
        for bridge in bridges[:STUCK]:
            for _ in range(10):
                frames = frame(DATA, 0, bridge.stream.number, small) * 200
                sent += 200 * 92 * agent.send_small(bridge.stream, frames, len(small) * 200)
        sent_after = time.monotonic() - began
        expect.that("the agent's connection lives", agent.ping(30.0), agent.goaway or agent.error)
        unread = sent - in_kernel(scene)
        expect.that("some of the backlog waits in the server, not in the kernel", unread > MIB, unread)
        answered = time.monotonic()
        serves(tunnel, agent)
        took = time.monotonic() - answered
    print(
        f"        {len(bridges)} open after {opened_after:.1f} s, {sent / MIB:.0f} MiB sent after {sent_after:.1f} s,"
        f" {unread / MIB:.0f} MiB wait in the server, then a request took {took:.2f} s",
        flush=True,
    )
    expect.that("a request is answered soon", took < 5.0, took)
    # One of them reads after all, and has every message.
    reader = websockets[0]
    expect.equal("the first message", reader.receive(), (1, b"x" * 90))
    for each in websockets:
        each.close()
    expect.that("bridges end with their visitors", agent.until(lambda: all(b.stream.is_over for b in bridges), 30.0))
    serves(tunnel, agent)


# --- the end ------------------------------------------------------------------------


def drain(scene):
    server = scene.server
    tunnel, agent, envelope = scene.held(settings=PYTHON_SETTINGS, late_credit=True, pool=4)
    visitor = later(fetch, server, tunnel.host, "/under-way")
    asked = envelope()
    _, agent_2, bridge, websocket = open_websocket(scene)
    idle = visit(server, tunnel.host)
    idle_h2 = visit_h2(server, tunnel.host)
    scene.innocent.over.set()
    stopped = later(server.stop)
    expect.that("the WebSocket ends with a Close: 1001 or 1012", websocket.close_code(15.0) in (1001, 1012))
    time.sleep(0.5)
    expect.equal("the request under way may be answered", agent.reply(asked.id, b"in time").status, 200)
    expect.equal("and its visitor has it", visitor.result(10.0).body, b"in time")
    bridge.close()
    for each in (agent, scene.innocent.agent, agent_2):
        expect.that("a GOAWAY comes", each.until(lambda each=each: each.goaway, 40.0))
    expect.that("parked intakes end", agent.until(lambda: all(s.is_over for s in agent.parked.values()), 10.0))
    expect.equal("with 503", {stream.status for stream in agent.parked.values()} - {503}, set())
    expect.that("the connection ends", agent.has_ended(40.0))
    for each in (agent, scene.innocent.agent):
        goaway_is_last(each, 0, b'{"reason":"drain"}', 0.3)
    expect.equal("SIGTERM ends the server with 0", stopped.result(60.0), 0)
    never_panicked(server)
    idle.close()
    idle_h2.close()


SLOW = [
    ("edge trap 7: headers of one octet a second are cut off", slow_headers),
    ("edge trap 7: HTTP/2 headers that never end are cut off", slow_headers_h2),
    ("edge trap 7: a slow body is taken", slow_body),
    ("edge trap 7: a silent body is not", silent_body),
    ("edge trap 7: idle HTTP/1.1 is closed", idle_keep_alive),
    ("edge trap 7: idle HTTP/2 is closed", idle_h2),
    ("edge trap 7: idle HTTP/2 that answers no PING is closed", idle_h2_without_pings),
    ("edge trap 11: an agent that answers no PING is closed", deaf_to_pings),
    ("edge trap 7: an agent without a hello is closed", no_hello),
    ("edge trap 7: an agent without a preface is closed", no_preface),
    ("trap 3: an idle intake stays open", quiet_intakes),
    ("trap 11: a late reply is refused, not reset", late_reply),
    ("trap 4: a reply is acknowledged though no bridge comes", no_bridge),
    ("trap 10: a passthrough visitor without a bridge is closed", passthrough_without_bridge),
]
FLOODS = [
    ("edge trap 6: 1 MiB of headers", large_head),
    ("edge trap 6: 10,000 fields over HTTP/2", many_fields_h2),
    ("edge trap 6: an HPACK bomb", hpack_bomb),
    ("edge trap 6: rapid reset (CVE-2023-44487)", rapid_reset),
    ("edge trap 6: resets of requests that were taken", patient_reset),
    ("edge trap 6: MadeYouReset (CVE-2025-8671)", made_you_reset),
    ("edge trap 6: CONTINUATION flood (CVE-2024-27316)", continuation_flood),
    ("edge trap 6: empty CONTINUATION flood", empty_continuation_flood),
    ("edge trap 6: PING flood", ping_flood),
    ("edge trap 6: PING flood, answers unread", ping_flood_unread),
    ("edge trap 6: SETTINGS flood", settings_flood),
    ("edge trap 6: SETTINGS flood, answers unread", settings_flood_unread),
    ("edge trap 6: PRIORITY flood", priority_flood),
    ("edge trap 6: empty DATA flood", empty_data_flood),
    ("edge trap 6: WINDOW_UPDATE flood", window_update_flood),
    ("edge trap 6: bodies that never end", many_bodies),
]
MESSAGES = [
    ("edge trap 8: request smuggling over HTTP/1.1", smuggling),
    ("edge trap 8: bare LF", bare_line_feeds),
    ("edge trap 8: request smuggling over HTTP/2", smuggling_h2),
    ("edge trap 8: a pipelined request stays one", pipelined),
    ("edge trap 8: a visitor's inkbox fields go no further", strips_ours),
    ("edge trap 8: fields that Connection lists go no further", strips_connection),
    ("edge trap 8: TRACE and CONNECT: 405", refuses_methods),
    ("edge trap 8: paths go on as they came", verbatim_paths),
    ("trap 2: cookies are merged, set-cookie is not", cookies),
    ("trap 1: too many or too large fields: 431", too_many_fields),
    ("trap 1: values become printable ASCII", odd_values),
]
AGENTS = [
    ("trap 11: the second reply is refused", answers_twice),
    ("trap 11: replies to foreign and unknown ids", foreign_ids),
    ("trap 5: bridges of others, and twice", foreign_bridges),
    ("trap 11: malformed status: 502", malformed_status),
    ("trap 11: headers that a reply must not have", malformed_headers),
    ("edge trap 8: replies of a wrong length", wrong_lengths),
    ("edge trap 8: an agent that dies in a reply", dies_in_body),
    ("a reply comes octet by octet", octet_by_octet),
    ("edge trap 10: an agent that dies in a frame", dies_in_frame),
    ("edge trap 10: rubbish on a bridge", rubbish_on_bridge),
    ("edge trap 10: a visitor's broken frames", wrong_websocket_frames),
    ("edge trap 10: a visitor's Close is the last", visitor_closes),
    ("a slow visitor gets all before the Close", much_before_the_close),
    ("trap 14: the second inner close is ignored", closes_twice),
    ("trap 3: reset intakes", resets_intakes),
    ("trap 3: intakes reset while requests come", resets_while_served),
    ("edge trap 6: 5,000 streams that nobody knows", unknown_streams),
    ("trap 3: a wrong owner token: 401", wrong_token),
    ("trap 8: streams before hello: 401", before_hello),
    ("trap 8: hello twice", hello_twice),
    ("edge trap 6: garbage after TLS", garbage),
    ("edge trap 6: broken frames", broken_frames),
    ("edge trap 2: a storm of cancelled replies", cancel_storm),
    ("trap 4: a reply is acknowledged at once", acknowledged_early),
    ("trap 7: 409s, GOAWAY 0x1201, nothing after it", takeover),
    ("trap 7: the same under load", takeover_under_load),
    ("trap 7: forty takeovers", flapping),
    ("trap 8: a revoked key ends its connections", revoked_key),
    ("trap 12: the old secret of a live connection", rotated_secret),
    ("trap 8: hellos with wrong credentials", wrong_hellos),
    ("trap 8: a deleted tunnel ends its connections", deleted_tunnel),
    ("trap 10: a passthrough agent that dies", passthrough_agent_dies),
]
WINDOWS = [
    ("trap 6: 200 messages over three bridges and small windows", small_windows),
    ("trap 6: a message above the cap: 1009", message_above_cap),
    ("trap 6: a bridge that is not consumed", stuck_bridge),
    ("trap 6: large bodies through small windows", large_envelopes),
    ("edge trap 4: bodies beyond 32 MiB", too_large_bodies),
]
STALLED = [
    ("edge trap 5: ten visitors that take nothing of their downloads", stalled_downloads),
    ("edge trap 7: a visitor that takes nothing loses its connection", stalled_for_good),
]
MANY = [(f"edge trap 1: {WEBSOCKETS} slow WebSockets", slow_websockets)]
DRAIN = [("trap 7: SIGTERM: GOAWAY 0, nothing after it", drain)]


if __name__ == "__main__":
    expect.run(main)
