"""The agent's end of a native link, frame by frame, and what the scripts of `native_sections/` ask visitors with.

`attach` asks for the upgrade with every octet in the script's hand. `Peer` is what is then
at the agent's end: an HTTP/2 server on top of `scripted_agent.Http2` that hands every request
to a handler, on a thread of its own, and can say and leave out whatever the script likes.
"""

import collections
import contextlib
import json
import os
import pathlib
import queue
import select
import socket
import ssl
import struct
import threading
import time

import expect
from csr import new_csr, new_key
from scripted_agent import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PATIENCE,
    PING,
    PREFACE,
    RST_STREAM,
    Ended,
    Http1,
    Http2,
    Stream,
    Tls,
    _header_frames,
    _server_context,
    client_context,
    frame,
    new_tunnel,
    request,
    visit,
    visit_h2,
)
from server import ZONE

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL = 0, 1, 2, 7, 8
SETTINGS_OF_AN_AGENT = ((3, 10_000), (4, 1 << 24), (6, 96 * 1024), (8, 1))
WAYS = ("zone", "api")
MIB = 1 << 20


class Plain:
    """A connection without TLS, with the ways of `Tls`."""

    def __init__(self, port, patience=PATIENCE):
        self.socket = socket.create_connection(("127.0.0.1", port), patience)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._order, self._poll, self.reads = threading.Lock(), select.poll(), 0
        self._poll.register(self.socket, select.POLLIN)

    def send(self, data):
        with self._order:
            self.socket.sendall(data)

    def receive(self, timeout=None):
        if not self._poll.poll(None if timeout is None else timeout * 1000):
            raise TimeoutError
        try:
            self.reads += 1
            return self.socket.recv(1 << 18)
        except OSError:
            return b""

    reset = Tls.reset
    close = Tls.close


def dial(server, way="zone", **options):
    if way == "api":
        return Plain(server.port, **options)
    return Tls(server.edge_port, client_context(server, "http/1.1"), ZONE, **options).handshake()


# --- attaching ------------------------------------------------------------------


def instance():
    return os.urandom(16).hex()


def fields_of(tunnel, **changes):
    """The fields of a request to attach. A change to None leaves a field out, a list makes it several."""
    fields = {
        "Host": ZONE,
        "Connection": "Upgrade",
        "Upgrade": "adit-h2",
        "Content-Length": "0",
        "X-API-Key": tunnel.server.key,
        "Adit-Version": "1",
        "Adit-Tunnel": tunnel.id,
        "Adit-Instance": instance(),
        "Adit-Share": None,
        "Adit-Own-Certificate": None,
    }
    fields |= {name.replace("_", "-"): value for name, value in changes.items()}
    pairs = []
    for name, value in fields.items():
        values = value if isinstance(value, list) else [value]
        pairs += [(name, each) for each in values if each is not None]
    return pairs


def asked(pairs, line="POST /_system/attach HTTP/1.1"):
    lines = [line.encode()] + [b"%s: %s" % (octets(name), octets(value)) for name, value in pairs]
    return b"\r\n".join([*lines, b"", b""])


def octets(value):
    return value if isinstance(value, bytes) else str(value).encode("latin-1")


class NotAttached(Exception):
    def __init__(self, response):
        super().__init__(repr(response))
        self.response = response


def attach(tunnel, handler=None, way="zone", changes=None, behind=b"", **options):
    """A `Peer` whose session has begun, unless the options say that it does not take part in that."""
    connection = Http1(dial(tunnel.server, way))
    response = connection.ask(asked(fields_of(tunnel, **(changes or {}))) + behind)
    if response.status != 101:
        connection.close()
        raise NotAttached(response)
    peer = Peer(connection, handler, response, **options)
    if peer.answers_pings and not options.get("is_dumb"):
        peer.begins()
    return peer


# --- the peer -------------------------------------------------------------------


class _Link:
    """What `Http2` takes for its connection: the roles of the prefaces are turned."""

    def __init__(self, connection, is_dumb):
        self._tls, self._rest, self._is_dumb = connection.tls, connection.rest, is_dumb
        self._preface = b""

    def send(self, data):
        if not self._is_dumb:
            self._tls.send(data.removeprefix(PREFACE))

    def receive(self, timeout=None):
        data, self._rest = self._rest or self._tls.receive(timeout), b""
        if len(self._preface) < len(PREFACE):
            self._preface += data
            if data and len(self._preface) < len(PREFACE):
                return self.receive(timeout)
            data = self._preface[len(PREFACE) :]
            if not self._preface.startswith(PREFACE):
                raise Ended(f"without a preface: {self._preface!r}")
            if not data:
                return self.receive(timeout)
        return data

    @property
    def reads(self):
        return self._tls.reads

    def close(self):
        self._tls.close()

    def reset(self):
        self._tls.reset()


class Asked(Stream):
    """A stream that the server has opened, with the ways to answer it."""

    def __init__(self, peer, number, window):
        super().__init__(number, window)
        self.peer, self.at = peer, time.monotonic()

    path = property(lambda self: self.get(":path"))
    method = property(lambda self: self.get(":method"))
    authority = property(lambda self: self.get(":authority"))

    @property
    def fields(self):
        return [(name, value) for name, value in self.headers if not name.startswith(":")]

    def whole(self, timeout=PATIENCE):
        """The body, when it has ended."""
        if not self.peer.until(lambda: self.is_over or self.peer.ended_at, timeout) or not self.ended:
            raise Ended(f"no end of {self}")
        return bytes(self.body)

    def holds(self, wanted, timeout=5.0):
        """Waits until so much of the body is there: octets, or a number of them."""
        count = wanted if isinstance(wanted, int) else len(wanted)
        self.peer.until(lambda: len(self.body) >= count or self.is_over, timeout)
        return len(self.body) >= count if isinstance(wanted, int) else bytes(self.body) == wanted

    def is_left(self, timeout=5.0):
        """The code with which the server resets it."""
        self.peer.until(lambda: self.reset is not None or self.peer.ended_at, timeout)
        return self.reset

    def head(self, status=200, *fields, end=False):
        self.peer.headers_out(self, [(":status", str(status)), *fields], end)

    def send(self, data, end=False, timeout=PATIENCE):
        self.peer.send(self, data, end, timeout)

    def end(self, *trailers):
        if trailers:
            self.peer.headers_out(self, list(trailers), True)
        else:
            self.peer.write(frame(DATA, END_STREAM, self.number))

    def answer(self, body=b"", *fields, status=200):
        """A whole answer."""
        if body:
            self.head(status, ("content-length", str(len(body))), *fields)
            self.send(body, end=True)
        else:
            self.head(status, *fields, end=True)

    def refuse(self, code=REFUSED_STREAM):
        self.peer.write(frame(RST_STREAM, 0, self.number, struct.pack("!I", code)))


class Peer(Http2):
    """Hands every request to `handler(request)`; without one it is for the script to take from `asked`.

    A peer that `is_dumb` says nothing at all. One that does not `speaks_for_system` leaves the server's own
    requests unanswered. `credits=False` gives no window back but for what a handler takes.
    """

    def __init__(self, connection, handler, response, is_dumb=False, credits=True, answers_system=True, **options):
        self.response, self.handler, self._credits, self._answers_system = response, handler, credits, answers_system
        self.asked, self.told, self.failures, self.at_101 = queue.SimpleQueue(), [], [], time.monotonic()
        self.open_most = 0
        options.setdefault("settings", SETTINGS_OF_AN_AGENT)
        super().__init__(_Link(connection, is_dumb), **options)

    session = property(lambda self: self.response.get("adit-session"))

    def begins(self, timeout=PATIENCE):
        """Waits until the server has sent its PING, and thus has our acknowledgement."""
        holds = self.until(lambda: self.seen(PING) or self.ended_at, timeout)
        if not holds or self.ended_at:
            raise Ended(f"no session: {self.error!r}, {list(self.frames)}")
        # The acknowledgement is on its way; what is asked for next must not be faster.
        time.sleep(0.03)

    def seen(self, kind):
        return [each for each in self.frames if each.kind == kind]

    def next(self, timeout=PATIENCE):
        """The next request of a peer without a handler."""
        return self.asked.get(timeout=timeout)

    def hears(self, word, timeout=5.0):
        return self.until(lambda: word in self.told, timeout)

    def goes_away(self, last, code=NO_ERROR):
        self.write(frame(GOAWAY, 0, 0, struct.pack("!II", last, code)))

    def headers_out(self, stream, fields, end):
        with self.changed:
            block = self._encoder.encode([(octets(name), octets(value)) for name, value in fields])
            flags = END_HEADERS | (END_STREAM if end else 0)
            self.write(b"".join(_header_frames(stream.number, flags, block, self.max_frame)))

    @property
    def newest(self):
        return max(self.streams, default=0)

    def _take_headers(self, stream, seen):
        if seen.kind == HEADERS and stream is None and seen.stream % 2:
            stream = Asked(self, seen.stream, self._initial_window)
            if not self._credits:
                stream.on_data = lambda _stream: None
            self.streams[seen.stream] = stream
        had = stream and stream.headers
        call = super()._take_headers(stream, seen)
        if stream and stream.headers and not had:
            threading.Thread(target=self._serve, args=(stream,), daemon=True).start()
        return call

    def _serve(self, stream):
        try:
            if stream.authority == "_system":
                with self.changed:
                    self.told.append(stream.path)
                    self.changed.notify_all()
                if self._answers_system:
                    stream.head(204, end=True)
            elif self.handler is None:
                self.asked.put(stream)
            else:
                self.handler(stream)
        except Ended:
            pass
        except Exception as error:  # the script asks `failures`
            self.failures.append(error)

    def leave(self):
        """Ends the connection without a word."""
        self.tls.close()

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.close()


def echo(asked):
    """200 to every request, with what was asked for."""
    body = asked.whole()
    seen = {"pseudo": [each for each in asked.headers if each[0].startswith(":")], "fields": asked.fields}
    seen |= {"length": len(body), "trailers": asked.trailers, "session": asked.peer.session}
    if len(body) < 1000:
        seen["body"] = body.decode("latin-1")
    told = json.dumps(seen).encode()
    asked.answer(told if asked.method != "HEAD" else b"", ("content-type", "application/json"))


def says(word):
    """A handler that answers with one word."""
    return lambda asked: asked.answer(word.encode() if isinstance(word, str) else word)


# --- visitors -------------------------------------------------------------------


class Visited:
    """One answer, however it came: `status`, `headers`, `body`, `trailers`, and whether it came to its `end`."""

    def __init__(self, status, headers, body=b"", trailers=(), whole=True):
        self.status, self.headers, self.body, self.whole = status, headers, body, whole
        self.trailers = list(trailers)

    def all(self, name):
        return [value for each, value in self.headers if each == name]

    def get(self, name):
        return next(iter(self.all(name)), None)

    @property
    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.headers} {self.body[:200]!r} {self.trailers} whole={self.whole}"


NOTHING = Visited(None, [], whole=False)


class VisitorOne(Http1):
    """Over HTTP/1.1; knows trailers."""

    version = "HTTP/1.1"

    def __init__(self, tunnel, **options):
        self._tunnel = tunnel
        super().__init__(visit(tunnel.server, tunnel.host, **options).tls)

    def ask(self, path="/", *fields, method="GET", body=b"", timeout=PATIENCE, host=None):
        """One exchange. `body` with a length, or a list of pieces, which go as chunks."""
        lines = [b"%s %s HTTP/1.1" % (octets(method), octets(path)), b"Host: " + octets(host or self._tunnel.host)]
        lines += [octets(name) + b": " + octets(value) for name, value in fields]
        if isinstance(body, list):
            lines.append(b"Transfer-Encoding: chunked")
            pieces = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in body) + b"0\r\n\r\n"
        else:
            pieces = body
            lines += [b"Content-Length: %d" % len(body)] if body else []
        try:
            self.send(b"\r\n".join([*lines, b"", b""]) + pieces)
        except OSError:
            # What was answered before is still to be read.
            pass
        return self.visited(timeout, method == "HEAD")

    def visited(self, timeout=PATIENCE, is_head=False):
        try:
            response = self.head(timeout)
        except (Ended, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            return NOTHING
        taken = Visited(response.status, response.headers)
        if is_head or response.status in (101, 204, 304) or response.status < 200:
            return taken
        try:
            if "chunked" in (response.get("transfer-encoding") or ""):
                while size := int(self._until(b"\r\n", timeout), 16):
                    taken.body += self.exactly(size + 2, timeout)[:-2]
                while line := self._until(b"\r\n", timeout):
                    name, _, value = line.decode("latin-1").partition(":")
                    taken.trailers.append((name.lower(), value.strip()))
            elif response.get("content-length") is not None:
                length = int(response.get("content-length"))
                came = bytearray(self.rest)
                while len(came) < length and (more := self.tls.receive(timeout)):
                    came += more
                taken.body, self.rest, taken.whole = bytes(came[:length]), bytes(came[length:]), len(came) >= length
            else:
                with contextlib.suppress(Ended):
                    while True:
                        self._more(timeout)
                taken.body, self.rest = self.rest, b""
        except (Ended, ValueError):
            taken.body, taken.whole = taken.body or self.rest, False
        return taken


class VisitorTwo:
    """Over HTTP/2."""

    version = "HTTP/2"

    def __init__(self, tunnel, **options):
        self._tunnel = tunnel
        self.h2 = visit_h2(tunnel.server, tunnel.host, **options)

    def open(self, path="/", *fields, method="GET", body=b"", end=True, host=None):
        head = request(host or self._tunnel.host, path, *fields, method=method)
        head = [(octets(name), octets(value)) for name, value in head]
        stream = self.h2.open(head, end=end and not body)
        if body:
            pieces = body if isinstance(body, list) else [body]
            with contextlib.suppress(Ended):
                for number, piece in enumerate(pieces):
                    self.h2.send(stream, piece, end=end and number == len(pieces) - 1)
        return stream

    def ask(self, path="/", *fields, timeout=PATIENCE, **named):
        return self.visited(self.open(path, *fields, **named), timeout)

    def visited(self, stream, timeout=PATIENCE):
        if not self.h2.until(lambda: stream.is_over or self.h2.ended_at, timeout):
            raise TimeoutError(repr(stream))
        if stream.headers is None:
            return NOTHING
        headers = [each for each in stream.headers if not each[0].startswith(":")]
        return Visited(stream.status, headers, bytes(stream.body), stream.trailers or (), stream.ended)

    def close(self):
        self.h2.close()


VISITORS = (VisitorOne, VisitorTwo)


# --- tunnels --------------------------------------------------------------------

_names = collections.Counter()


def tunnel_of(server, word, mode="edge"):
    """A new tunnel; its name begins with the word."""
    _names[word] += 1
    return new_tunnel(server, f"{word}-{_names[word]}", mode)


def raw_tunnel(server, word):
    """A passthrough tunnel that is active, and the TLS context of its site."""
    tunnel = tunnel_of(server, word, "passthrough")
    key = new_key()
    signed = server.ask("POST", f"/api/v1/tunnels/{tunnel.id}/sign-csr", {"csr_pem": new_csr(key, tunnel.host)})
    expect.status(f"{word}: a certificate is signed", signed, 200)
    return tunnel, _server_context(key, signed.json)


def is_connected(tunnel):
    return tunnel.server.ask("GET", f"/api/v1/tunnels/{tunnel.id}").json["currently_connected"]


def resident(pid):
    """MiB in memory, and the most there ever were."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Vm")}
    return sizes["VmRSS"], sizes["VmHWM"]


class Site:
    """Ends a raw connection's TLS at the agent's end, by hand."""

    def __init__(self, asked, context):
        self.asked, self._incoming, self._outgoing = asked, ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls, self._taken = context.wrap_bio(self._incoming, self._outgoing, server_side=True), 0

    def _pump(self, timeout):
        if out := self._outgoing.read():
            self.asked.send(out)
        peer, taken = self.asked.peer, self._taken
        peer.until(lambda: len(self.asked.body) > taken or self.asked.is_over or peer.ended_at, timeout)
        came = bytes(self.asked.body[taken:])
        self._taken += len(came)
        self._incoming.write(came)
        if not came:
            if self.asked.ended:
                self._incoming.write_eof()
            else:
                raise Ended(f"nothing more of {self.asked}")

    def _does(self, what, *values, timeout=PATIENCE):
        while True:
            try:
                result = what(*values)
                if out := self._outgoing.read():
                    self.asked.send(out)
                return result
            except ssl.SSLWantReadError:
                self._pump(timeout)

    def handshake(self):
        return self._does(self.tls.do_handshake)

    def read(self, count=65536):
        """b"" at the visitor's end."""
        try:
            return self._does(self.tls.read, count)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def write(self, data):
        return self._does(self.tls.write, data)
