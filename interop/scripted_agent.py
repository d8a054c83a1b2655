"""Agents and visitors whose every byte is the script's own.

`Tls` is TLS over a socket, with the pieces of the ClientHello in the script's
hand; `Http1` and `Http2` speak over it, the latter frame by frame, so that it can
also say what no library would. `Agent` is an agent of a tunnel on top of `Http2`:
hello, intakes, replies and bridges. `PassthroughSite` ends the TLS of a
passthrough tunnel's visitors behind such a bridge.
"""

import base64
import collections
import concurrent.futures
import contextlib
import json
import os
import pathlib
import queue
import select
import socket
import ssl
import struct
import tempfile
import threading
import time
from dataclasses import dataclass

import hpack
from cryptography.hazmat.primitives import serialization
from h2.windows import WindowManager

from csr import new_csr, new_key
from server import ZONE

PATIENCE = 20.0

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1

# What the Python SDK announces, in its order.
PYTHON_SETTINGS = ((1, 4096), (2, 1), (4, 65535), (5, 16384), (8, 0), (3, 100), (6, 65536))
LARGE_WINDOW = 1 << 24


class Ended(Exception):
    """The peer ended the connection."""


class Broken(Exception):
    """What came is no complete HTTP message."""


# --- TLS ------------------------------------------------------------------------


class Tls:
    """One reader and any number of writers at a time."""

    def __init__(self, port, context, name, receive_buffer=None, patience=PATIENCE, source=None):
        self.socket = socket.socket()
        if source:
            self.socket.bind((source, 0))
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(patience)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._state, self._order = threading.Lock(), threading.Lock()
        self._poll = select.poll()
        self._poll.register(self.socket, select.POLLIN)
        self.reads = 0

    def hello(self):
        """The ClientHello, as the TLS library has made it."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._outgoing.read()

    def handshake(self, send=None):
        """`send(socket, hello)` sends the ClientHello in its own way."""
        hello = self.hello()
        if send is None:
            self.socket.sendall(hello)
        else:
            send(self.socket, hello)
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                received = self.socket.recv(65536)
                if not received:
                    raise Ended("in the handshake") from None
                self._incoming.write(received)
        self._flush()
        return self

    def _flush(self):
        waiting = self._outgoing.read()
        if waiting:
            self.socket.sendall(waiting)

    def send(self, data):
        with self._order:
            view = memoryview(data)
            for start in range(0, len(view), 1 << 18):
                with self._state:
                    self.tls.write(view[start : start + (1 << 18)])
                    out = self._outgoing.read()
                self.socket.sendall(out)

    def receive(self, timeout=None):
        """What one read gives; b"" at the end of the connection; TimeoutError."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._state:
                try:
                    return self.tls.read(1 << 18)
                except ssl.SSLWantReadError:
                    pass
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    return b""
            left = None if until is None else max(0.0, until - time.monotonic()) * 1000
            if not self._poll.poll(left):
                raise TimeoutError
            try:
                received = self.socket.recv(1 << 18)
            except (ConnectionError, OSError):
                return b""
            self.reads += 1
            if not received:
                return b""
            with self._state:
                self._incoming.write(received)

    def reset(self):
        """Ends the connection with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def client_context(server, *protocols):
    context = ssl.create_default_context(cafile=server.root_certificate)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


# --- HTTP/1.1 -------------------------------------------------------------------


@dataclass
class Response:
    status: int
    headers: list  # of (name, value), names in lower case
    body: bytes

    def all(self, name):
        return [value for each, value in self.headers if each == name]

    def get(self, name):
        return next(iter(self.all(name)), None)

    def __repr__(self):
        return f"{self.status} {self.headers} {self.body[:200]!r}"


class Http1:
    """Takes answers strictly: what is not complete is `Broken`."""

    def __init__(self, tls):
        self.tls, self.rest = tls, b""

    def send(self, data):
        self.tls.send(data)

    def _more(self, timeout):
        received = self.tls.receive(timeout)
        if not received:
            raise Ended(f"with {len(self.rest)} octets unread")
        self.rest += received

    def _until(self, mark, timeout):
        while mark not in self.rest:
            self._more(timeout)
        found, self.rest = self.rest.split(mark, 1)
        return found

    def exactly(self, count, timeout=PATIENCE):
        while len(self.rest) < count:
            self._more(timeout)
        found, self.rest = self.rest[:count], self.rest[count:]
        return found

    def head(self, timeout=PATIENCE):
        lines = self._until(b"\r\n\r\n", timeout).decode("latin-1").split("\r\n")
        headers = [tuple(line.split(": ", 1)) for line in lines[1:]]
        return Response(int(lines[0].split(" ")[1]), [(name.lower(), value) for name, value in headers], b"")

    def answer(self, timeout=PATIENCE, is_head=False):
        response = self.head(timeout)
        if is_head or response.status in (101, 204, 304) or response.status < 200:
            return response
        try:
            if "chunked" in (response.get("transfer-encoding") or ""):
                while True:
                    size = int(self._until(b"\r\n", timeout), 16)
                    response.body += self.exactly(size + 2, timeout)[:-2]
                    if size == 0:
                        break
            elif response.get("content-length") is not None:
                response.body = self.exactly(int(response.get("content-length")), timeout)
            else:
                with contextlib.suppress(Ended):
                    while True:
                        self._more(timeout)
                response.body, self.rest = self.rest, b""
        except Ended as ended:
            raise Broken(f"{response.status}, then the end {ended}") from None
        return response

    def ask(self, data, timeout=PATIENCE):
        self.send(data)
        return self.answer(timeout)

    def close(self):
        self.tls.close()


def visit(server, host, send=None, **options):
    """An HTTP/1.1 connection to a public host."""
    return Http1(Tls(server.edge_port, client_context(server, "http/1.1"), host, **options).handshake(send))


def get(host, path="/", *lines, method="GET"):
    return "".join(f"{line}\r\n" for line in (f"{method} {path} HTTP/1.1", f"Host: {host}", *lines, "")).encode()


def fetch(server, host, path="/", timeout=PATIENCE, **options):
    """One GET on a connection of its own."""
    connection = visit(server, host, **options)
    try:
        return connection.ask(get(host, path), timeout)
    finally:
        connection.close()


# --- RFC 6455 -------------------------------------------------------------------


def ws_frame(opcode, payload, masked=True):
    """One frame with FIN; the mask of zeros leaves the payload as it is."""
    length = len(payload)
    bit = 0x80 if masked else 0
    if length < 126:
        head = struct.pack("!BB", 0x80 | opcode, bit | length)
    elif length < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, bit | 126, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, bit | 127, length)
    return head + (bytes(4) if masked else b"") + payload


def parse_ws(buffer):
    """Takes the first frame off a bytearray: (opcode, payload, octets), or None."""
    if len(buffer) < 2:
        return None
    length, start = buffer[1] & 0x7F, 2
    if length == 126:
        length, start = struct.unpack_from("!H", buffer, 2)[0] if len(buffer) >= 4 else 1 << 60, 4
    elif length == 127:
        length, start = struct.unpack_from("!Q", buffer, 2)[0] if len(buffer) >= 10 else 1 << 60, 10
    if len(buffer) < start + length:
        return None
    opcode, payload = buffer[0] & 0x0F, bytes(buffer[start : start + length])
    del buffer[: start + length]
    return opcode, payload, start + length


class WebSocket:
    """A visitor's WebSocket over HTTP/1.1."""

    def __init__(self, server, host, path="/ws", lines=(), **options):
        self.http = visit(server, host, **options)
        key = base64.b64encode(os.urandom(16)).decode()
        upgrade = (
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
        )
        self.response = self.http.ask(get(host, path, *upgrade, *lines))
        self._buffer = bytearray(self.http.rest)

    def send(self, opcode, payload):
        self.http.send(ws_frame(opcode, payload))

    def receive(self, timeout=PATIENCE):
        """The next (opcode, payload); None at the end of the connection."""
        until = time.monotonic() + timeout
        while True:
            frame = parse_ws(self._buffer)
            if frame:
                return frame[:2]
            received = self.http.tls.receive(max(0.0, until - time.monotonic()))
            if not received:
                return None
            self._buffer += received

    def close_code(self, timeout=PATIENCE):
        """The code of the Close that comes, None if the connection ends without."""
        while frame := self.receive(timeout):
            if frame[0] == 8:
                return struct.unpack("!H", frame[1][:2])[0] if len(frame[1]) >= 2 else 1005
        return None

    def close(self):
        self.http.close()


# --- HTTP/2 ---------------------------------------------------------------------


def frame(kind, flags, stream, payload=b""):
    return struct.pack("!I", len(payload))[1:] + bytes((kind, flags)) + struct.pack("!I", stream) + payload


def settings_frame(settings):
    return frame(SETTINGS, 0, 0, b"".join(struct.pack("!HI", *each) for each in settings))


@dataclass
class Seen:
    """A frame that came, and with which read."""

    at: float
    read: int
    kind: int
    flags: int
    stream: int
    payload: bytes


class Stream:
    def __init__(self, number, window):
        self.number, self.window = number, window
        self.headers, self.body = None, bytearray()
        self.interim, self.trailers = [], None
        self.ended, self.reset = False, None
        self.on_end = self.on_data = None
        self.receive_window = WindowManager(65535)

    @property
    def status(self):
        return int(self.get(":status")) if self.headers else None

    @property
    def is_over(self):
        return self.ended or self.reset is not None

    def all(self, name):
        return [value for each, value in self.headers or () if each == name]

    def get(self, name):
        return next(iter(self.all(name)), None)

    def __repr__(self):
        return f"stream {self.number}: {self.headers} {bytes(self.body[:200])!r} ended={self.ended} reset={self.reset}"


class Http2:
    """A client's end of a connection.

    With `late_credit` it counts and credits as the `h2` package does with windows of
    65535 octets; otherwise it opens large windows and credits at once.
    """

    def __init__(self, tls, settings=((2, 0), (4, LARGE_WINDOW)), late_credit=False, reads=True, answers_pings=True):
        self.tls, self.late_credit, self.answers_pings = tls, late_credit, answers_pings
        self.changed = threading.Condition()
        self.streams, self._next = {}, 1
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._decoder.max_header_list_size = 1 << 20
        self.window, self._initial_window, self.max_frame = 65535, 65535, 16384
        self._receive_window = WindowManager(65535)
        self.server_settings = {}
        self.frames = collections.deque(maxlen=4000)
        self.goaway = self.ended_at = self.error = None
        self.last_ping = 0
        self._fragments, self._has_acknowledged = b"", False
        opening = PREFACE + settings_frame(settings)
        if not late_credit:
            opening += frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", (1 << 30)))
        self.write(opening)
        if reads:
            threading.Thread(target=self._read, daemon=True).start()

    # What the script does.

    def write(self, data):
        try:
            self.tls.send(data)
        except (OSError, ssl.SSLError) as error:
            raise Ended(repr(error)) from None

    def open(self, headers, body=None, end=True, on_end=None, on_data=None):
        """Opens a stream; with a body it is sent too, and the stream ended."""
        with self.changed:
            stream = Stream(self._next, self._initial_window)
            stream.on_end, stream.on_data = on_end, on_data
            self._next += 2
            self.streams[stream.number] = stream
            block = self._encoder.encode(headers)
            flags = END_HEADERS | (END_STREAM if end and not body else 0)
            # Within the lock: blocks must leave in the order in which they were encoded.
            self.write(b"".join(_header_frames(stream.number, flags, block, self.max_frame)))
        if body:
            self.send(stream, body, end)
        return stream

    def send(self, stream, data, end=False, timeout=PATIENCE):
        """Sends within the windows."""
        view = memoryview(data)
        while view:
            with self.changed:
                holds = self.changed.wait_for(
                    lambda: min(self.window, stream.window) > 0 or stream.reset is not None or self.ended_at, timeout
                )
                if not holds or stream.reset is not None or self.ended_at:
                    raise Ended(f"no window for {len(view)} octets: {stream}, connection {self.window}")
                room = min(self.window, stream.window, self.max_frame, len(view))
                self.window -= room
                stream.window -= room
            part, view = view[:room], view[room:]
            self.write(frame(DATA, END_STREAM if end and not view else 0, stream.number, bytes(part)))
        if end and not data:
            self.write(frame(DATA, END_STREAM, stream.number))

    def send_small(self, stream, frames, octets):
        """Sends ready DATA frames of `octets` together; False if the windows have no room."""
        with self.changed:
            if min(self.window, stream.window) < octets or self.ended_at:
                return False
            self.window -= octets
            stream.window -= octets
        self.write(frames)
        return True

    def credit(self, stream, octets):
        """Gives octets back that were consumed."""
        out = b""
        with self.changed:
            for number, window in ((0, self._receive_window), (stream.number, stream.receive_window)):
                increment = window.process_bytes(octets) if self.late_credit else octets
                if increment and not (number and stream.ended):
                    out += frame(WINDOW_UPDATE, 0, number, struct.pack("!I", increment))
        if out:
            with contextlib.suppress(Ended):
                self.write(out)

    def reset(self, stream, code=8):
        self.write(frame(RST_STREAM, 0, stream.number, struct.pack("!I", code)))

    def until(self, condition, timeout=PATIENCE):
        """Waits for a condition; is it there?"""
        with self.changed:
            return bool(self.changed.wait_for(condition, timeout))

    def answer(self, stream, timeout=PATIENCE):
        """Waits for the end of a stream; answers it."""
        self.until(lambda: stream.is_over or self.ended_at, timeout)
        return stream

    def settle(self):
        """Waits until our SETTINGS ACK is out: nothing else may stand within a sequence of CONTINUATIONs."""
        until = time.monotonic() + 5.0
        while not self._has_acknowledged and not self.ended_at and time.monotonic() < until:
            time.sleep(0.01)

    def ping(self, timeout=PATIENCE):
        """Does the peer answer a PING?"""
        before = self.last_ping
        self.write(frame(PING, 0, 0, b"interop!"))
        return self.until(lambda: self.last_ping > before or self.ended_at, timeout) and not self.ended_at

    def has_ended(self, timeout):
        return self.until(lambda: self.ended_at, timeout)

    def close(self):
        self.tls.close()

    # What comes.

    def _read(self):
        buffer = bytearray()
        try:
            while data := self.tls.receive():
                read, now = self.tls.reads, time.monotonic()
                buffer += data
                while len(buffer) >= 9:
                    length = int.from_bytes(buffer[:3], "big")
                    if len(buffer) < 9 + length:
                        break
                    number = int.from_bytes(buffer[5:9], "big") & 0x7FFFFFFF
                    seen = Seen(now, read, buffer[3], buffer[4], number, bytes(buffer[9 : 9 + length]))
                    del buffer[: 9 + length]
                    self._take(seen)
        except Exception as error:  # the script asks `error` when the connection has ended
            self.error = error
        with self.changed:
            self.ended_at = time.monotonic()
            self.changed.notify_all()

    def _take(self, seen):
        out, call = b"", None
        with self.changed:
            kept = seen if seen.kind != DATA else Seen(*list(vars(seen).values())[:-1], b"")
            self.frames.append(kept)
            stream = self.streams.get(seen.stream)
            match seen.kind:
                case 0:
                    out, call = self._take_data(stream, seen)
                case 1 | 9:
                    call = self._take_headers(stream, seen)
                case 3 if stream:
                    stream.reset = int.from_bytes(seen.payload, "big")
                    call = stream.on_end
                case 4 if not seen.flags & ACK:
                    self._take_settings(seen.payload)
                    out = frame(SETTINGS, ACK, 0)
                case 6 if seen.flags & ACK:
                    self.last_ping += 1
                case 6 if self.answers_pings:
                    out = frame(PING, ACK, 0, seen.payload)
                case 7:
                    self.goaway = seen
                case 8:
                    increment = int.from_bytes(seen.payload, "big")
                    if seen.stream == 0:
                        self.window += increment
                    elif stream:
                        stream.window += increment
            self.changed.notify_all()
        if out:
            with contextlib.suppress(Ended):
                self.write(out)
            self._has_acknowledged |= seen.kind == SETTINGS
        if call:
            call(stream)
            with self.changed:
                self.changed.notify_all()

    def _take_data(self, stream, seen):
        length = len(seen.payload)
        if self.late_credit:
            # Raises when the server sends more than it may, and the connection is over.
            self._receive_window.window_consumed(length)
            if stream:
                stream.receive_window.window_consumed(length)
        if stream is None:
            return b"", None
        ended = bool(seen.flags & END_STREAM)
        stream.body += seen.payload
        stream.ended = ended
        if stream.on_data:
            return b"", stream.on_data
        out = b""
        for number, window in ((0, self._receive_window), (stream.number, stream.receive_window)):
            increment = window.process_bytes(length) if self.late_credit else length
            if increment and not (number and ended):
                out += frame(WINDOW_UPDATE, 0, number, struct.pack("!I", increment))
        return out, stream.on_end if ended else None

    def _take_headers(self, stream, seen):
        if seen.kind == HEADERS:
            self._block_ends_stream = bool(seen.flags & END_STREAM)
        self._fragments += seen.payload
        if not seen.flags & END_HEADERS:
            return None
        block, self._fragments = self._fragments, b""
        decoded = self._decoder.decode(block, raw=True)
        if stream is None:
            return None
        headers = [(name.decode(), value.decode("latin-1")) for name, value in (each[:2] for each in decoded)]
        if stream.headers is None:
            stream.headers = headers
        elif (stream.get(":status") or "").startswith("1"):
            stream.interim.append(stream.headers)
            stream.headers = headers
        else:
            stream.trailers = headers
        stream.ended = self._block_ends_stream
        return (stream.on_end if stream.ended else None) or (stream.on_data if stream.ended else None)

    def _take_settings(self, payload):
        for start in range(0, len(payload), 6):
            name, value = struct.unpack_from("!HI", payload, start)
            self.server_settings[name] = value
            if name == 4:
                for each in self.streams.values():
                    each.window += value - self._initial_window
                self._initial_window = value
            elif name == 5:
                self.max_frame = value


def _header_frames(stream, flags, block, max_frame):
    parts = [block[start : start + max_frame] for start in range(0, len(block), max_frame)] or [b""]
    for number, part in enumerate(parts):
        last = END_HEADERS if number == len(parts) - 1 else 0
        if number == 0:
            yield frame(HEADERS, flags & ~END_HEADERS | last, stream, part)
        else:
            yield frame(CONTINUATION, last, stream, part)


def visit_h2(server, host, **options):
    """An HTTP/2 connection to a public host."""
    tls = Tls(server.edge_port, client_context(server, "h2"), host)
    return Http2(tls.handshake(), **options)


def request(host, path="/", *fields, method="GET"):
    """The header list of a request over HTTP/2."""
    pseudo = ((":method", method), (":scheme", "https"), (":authority", host), (":path", path))
    return [*pseudo, *fields]


# --- agents ---------------------------------------------------------------------


@dataclass
class Envelope:
    stream: Stream
    body: bytes

    def get(self, name):
        return self.stream.get(name)

    @property
    def id(self):
        return self.get("inkbox-request-id")

    @property
    def kind(self):
        return self.get("inkbox-route-kind") or "webhook"

    @property
    def path(self):
        return self.get("inkbox-path")

    @property
    def fields(self):
        """The visitor's header fields, as the application would see them."""
        prefix = "inkbox-h-"
        return [(name[len(prefix) :], value) for name, value in self.stream.headers if name.startswith(prefix)]


class Agent(Http2):
    """Says hello, parks intakes, and hands every envelope to `handler(agent, envelope)`, on a thread."""

    def __init__(self, server, tunnel, credential, handler=None, pool=4, says_hello=True, **options):
        tls = Tls(server.edge_port, client_context(server, "h2"), ZONE).handshake()
        self.tunnel, self.credential, self.token = tunnel, credential, None
        self.handler = handler or answer_all
        self.envelopes = queue.SimpleQueue()
        self.parked, self.parks, self.failures = {}, True, []
        self.intake_answers = []
        super().__init__(tls, **options)
        if says_hello:
            stream = self.hello()
            if stream.status != 200:
                raise Ended(f"hello was answered {stream}, connection error {self.error}")
            self.token = json.loads(bytes(stream.body))["owner_token"]
            for _ in range(16):
                threading.Thread(target=self._work, daemon=True).start()
            for slot in range(pool):
                self.park(slot)

    def headers(self, method, path, *fields):
        return request(ZONE, path, *fields, ("x-tunnel-id", self.tunnel), method=method)

    def hello(self):
        return self.answer(
            self.open([*self.headers("POST", "/_system/hello"), self.credential, ("content-length", "0")])
        )

    def park(self, slot=0, token=None):
        fields = (("x-owner-token", token or self.token or "none"), ("x-pool-slot", str(slot)), ("content-length", "0"))
        stream = self.open(
            [*self.headers("POST", "/_system/intake"), *fields], on_end=lambda stream: self._delivered(stream, slot)
        )
        self.parked[slot] = stream
        return stream

    def _delivered(self, stream, slot):
        if stream.reset is not None or stream.get("inkbox-request-id") is None:
            self.intake_answers.append(stream)
            return
        if self.parks:
            with contextlib.suppress(Ended):
                self.park(slot)
        self.streams.pop(stream.number, None)
        self.envelopes.put(Envelope(stream, bytes(stream.body)))

    def _work(self):
        while not self.ended_at:
            with contextlib.suppress(queue.Empty):
                envelope = self.envelopes.get(timeout=0.5)
                try:
                    self.handler(self, envelope)
                except Exception as error:  # the script asks `failures`
                    self.failures.append(error)

    def start_reply(self, request_id, *fields, status="200", length=None, end=False):
        """The head of a reply only."""
        more = [("inkbox-status", status), ("inkbox-request-id", request_id)]
        more += [] if length is None else [("content-length", str(length))]
        head = [*self.headers("POST", f"/_system/response/{request_id}"), self.credential, *more, *fields]
        return self.open(head, end=end)

    def reply(self, request_id, body=b"", *fields, status="200", waits=True):
        """A whole reply; answers its stream."""
        stream = self.start_reply(request_id, *fields, status=status, length=len(body), end=not body)
        if body:
            self.send(stream, body, end=True)
        if waits:
            self.answer(stream)
            self.streams.pop(stream.number, None)
        return stream

    def bridge(self, envelope, kind="ws", on_message=None, on_data=None):
        """Opens the bridge that an envelope asks for."""
        return Bridge(self, envelope.get(f"inkbox-{kind}-id"), kind, on_message, on_data)


class Bridge:
    """The agent's end of one; `on_message` gets the JSON of a WebSocket, `on_data` the octets of TCP."""

    def __init__(self, agent, bridge_id, kind, on_message, on_data):
        self.agent, self._buffer, self._inner = agent, bytearray(), bytearray()
        self._on_message, self._on_data = on_message, on_data
        self.messages, self.ended = [], False
        fields = [("sec-websocket-version", "13"), agent.credential, (f"inkbox-{kind}-id", bridge_id)]
        fields += [("sec-websocket-protocol", "inkbox-tunnel-tcp")] if kind == "tcp" else []
        head = agent.headers("CONNECT", f"/_system/{kind}/{bridge_id}", *fields)
        head.insert(1, (":protocol", f"inkbox-tunnel-{kind}"))
        self._lock, self._kind = threading.Lock(), kind
        self.stream = agent.open(head, end=False, on_data=self._take)
        agent.until(lambda: self.stream.headers or self.stream.is_over or agent.ended_at)

    @property
    def status(self):
        return self.stream.status

    def _take(self, stream):
        with self._lock:
            self._buffer += stream.body
            stream.body.clear()
            while parsed := parse_ws(self._buffer):
                opcode, payload, octets = parsed
                # Only whole frames are consumed, like in the SDKs.
                self.agent.credit(stream, octets)
                if opcode in (1, 2):
                    self._take_payload(payload)
            self.ended = stream.ended

    def _take_payload(self, payload):
        if self._kind == "tcp":
            self._on_data(self, payload)
            return
        self._inner += payload
        while len(self._inner) >= 4:
            length = struct.unpack_from("!I", self._inner)[0]
            if len(self._inner) < 4 + length:
                return
            message = json.loads(bytes(self._inner[4 : 4 + length]))
            del self._inner[: 4 + length]
            self.messages.append(message)
            if self._on_message:
                self._on_message(self, message)

    def send(self, message):
        self.send_frame(2, inner(message))

    def send_frame(self, opcode, payload, end=False):
        self.agent.send(self.stream, ws_frame(opcode, payload), end)

    def close(self, code=1000, reason=b""):
        """The outer Close, which ends our half."""
        self.send_frame(8, struct.pack("!H", code) + reason, end=True)


def inner(message):
    """A message as it stands in the payloads of a WebSocket's bridge."""
    text = json.dumps(message, separators=(",", ":")).encode()
    return struct.pack("!I", len(text)) + text


def answer_all(agent, envelope):
    """200 to every request, with what was asked."""
    seen = {"path": envelope.path, "method": envelope.get("inkbox-method"), "headers": envelope.fields}
    seen["octets"] = len(envelope.body)
    agent.reply(envelope.id, json.dumps(seen).encode(), ("inkbox-h-content-type", "application/json"))


# --- tunnels --------------------------------------------------------------------


@dataclass
class Tunnel:
    """One that exists, with the ways to be its agent."""

    server: object
    handle: str
    id: str
    identity: str
    credential: tuple

    @property
    def host(self):
        return f"{self.handle}.{ZONE}"

    def agent(self, handler=None, **options):
        return Agent(self.server, self.id, self.credential, handler, **options)


def new_tunnel(server, handle, mode="edge"):
    answer = server.ask("POST", "/api/v1/identities/", {"agent_handle": handle, "tunnel": {"tls_mode": mode}})
    if answer.status not in (200, 201):
        raise RuntimeError(f"no tunnel: {answer}")
    identity = answer.json
    return Tunnel(server, handle, identity["tunnel"]["id"], identity["id"], ("x-api-key", server.key))


class PassthroughSite:
    """An agent of a passthrough tunnel with its certificate, which ends its visitors' TLS and answers them."""

    def __init__(self, server, handle):
        self.tunnel = new_tunnel(server, handle, "passthrough")
        key = new_key()
        signed = server.ask(
            "POST", f"/api/v1/tunnels/{self.tunnel.id}/sign-csr", {"csr_pem": new_csr(key, self.tunnel.host)}
        )
        if signed.status != 200:
            raise RuntimeError(f"no certificate: {signed}")
        self._context = _server_context(key, signed.json)
        self.errors = []
        self.agent = self.tunnel.agent(self._serve, **{"pool": 8})

    @property
    def host(self):
        return self.tunnel.host

    def _serve(self, agent, envelope):
        connection = _Terminated(self._context, self.errors)
        connection.bridge = agent.bridge(envelope, "tcp", on_data=connection.take)
        if connection.bridge.status != 200:
            self.errors.append(connection.bridge.stream)


class _Terminated:
    """One visitor's TLS, and a GET in it."""

    def __init__(self, context, errors):
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._request, self._errors, self._done = b"", errors, False

    def take(self, bridge, data):
        self._incoming.write(data)
        if self._done:
            return
        try:
            self._tls.do_handshake()
            while b"\r\n\r\n" not in self._request:
                self._request += self._tls.read(65536)
            line = self._request.split(b"\r\n")[0]
            body = b"passthrough " + line
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            self._tls.write(head.encode() + body)
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._done = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._errors.append(error)
            self._done = True
        out = self._outgoing.read()
        for start in range(0, len(out), 8192):
            bridge.send_frame(2, out[start : start + 8192])
        if self._done:
            bridge.close(1000, b"clean-eof")


def _server_context(key, signed):
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as place:
        file = pathlib.Path(place) / "site.pem"
        file.write_bytes(signed["cert_pem"].encode() + signed["chain_pem"].encode() + private)
        context.load_cert_chain(file)
    return context


def together(calls, workers=64):
    """Calls all at once; answers what they return, in their order."""
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
