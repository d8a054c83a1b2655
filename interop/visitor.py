"""Calls public hosts as strangers do: curl, plain sockets, and a WebSocket client of a hundred lines.

Hosts under `localhost` are this machine, whether or not the resolver knows (RFC 6761 section 6.3).
"""

import base64
import hashlib
import http.client
import os
import pathlib
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass

import expect

PATIENCE = 20.0
# A connection that cannot be made or ends without an answer.
NO_ANSWER = (OSError, http.client.HTTPException)

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


@dataclass
class Page:
    """What a visitor got. `headers` are pairs with lower-case names, repeats kept."""

    status: int
    headers: list
    body: bytes
    http_version: str = ""

    def all(self, name):
        return [value for each, value in self.headers if each == name]

    def first(self, name):
        return next(iter(self.all(name)), None)

    def __repr__(self):
        return f"{self.status} {self.headers} {self.body[:300]!r}"


class Unanswered(Exception):
    """curl ended without an answer; the text is its own."""


def curl(root, url, *options, timeout=PATIENCE):
    with tempfile.TemporaryDirectory() as place:
        heads, body = pathlib.Path(place) / "heads", pathlib.Path(place) / "body"
        # `--globoff` and `--path-as-is`: the URL is sent as it stands.
        command = ["curl", "--silent", "--show-error", "--globoff", "--path-as-is", "--max-time", str(timeout)]
        command += ["--cacert", root, "--dump-header", heads, "--output", body, "--write-out", "%{http_version}"]
        done = subprocess.run([*command, *options, url], capture_output=True, check=False)
        if done.returncode != 0:
            told = done.stderr.decode(errors="replace").strip()
            raise Unanswered(f"{told}, asked for {url} {' '.join(map(str, options))[:200]}")
        # Interim answers come before the last one.
        head = heads.read_bytes().decode("latin-1").split("\r\n\r\n")[-2].split("\r\n")
        headers = [_field(line) for line in head[1:]]
        read = body.read_bytes() if body.exists() else b""
        return Page(int(head[0].split(" ")[1]), headers, read, done.stdout.decode())


def fetch(context, host, method="GET", path="/", body=None, headers=None, timeout=PATIENCE, port=443):
    """One request on a connection of its own."""
    connection = http.client.HTTPSConnection(host, port, context=context)
    try:
        connection.sock = dial(context, host, timeout, port)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        fields = [(name.lower(), value) for name, value in answer.getheaders()]
        return Page(answer.status, fields, answer.read(), f"{answer.version / 10}")
    finally:
        connection.close()


def dial(context, host, timeout=PATIENCE, port=443):
    address = "127.0.0.1" if host.endswith(".localhost") else host
    tcp = socket.create_connection((address, port), timeout)
    try:
        return context.wrap_socket(tcp, server_hostname=host)
    except BaseException:
        tcp.close()
        raise


def raw(context, host, request, port=443):
    """Sends octets as they are and reads until the other side ends."""
    with dial(context, host, port=port) as connection:
        connection.sendall(request)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    return Page(int(lines[0].split(" ")[1]), [_field(line) for line in lines[1:]], body, lines[0][5:8])


class Calls:
    """Calls `fetch` again and again until the block ends, and notes what came."""

    def __init__(self, fetch):
        self.outcomes = []
        self._fetch = fetch
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._call)

    def __enter__(self):
        self._thread.start()
        expect.until("a request is answered", 10, lambda: self.outcomes)
        return self

    def __exit__(self, *_error):
        self.end()

    def end(self):
        self._over.set()
        self._thread.join()
        return self.outcomes

    def _call(self):
        while not self._over.is_set():
            begun = time.monotonic()
            try:
                page = self._fetch()
            except NO_ANSWER as error:
                self.outcomes.append(f"{type(error).__name__}: {error}, after {time.monotonic() - begun:.2f} s")
            else:
                failed = f"{page.status} {page.first('inkbox-reason')}"
                self.outcomes.append((200, page.body) if page.status == 200 else failed)
            time.sleep(0.005)


def trust(root):
    context = ssl.create_default_context(cafile=root)
    context.set_alpn_protocols(["http/1.1"])
    return context


class Ended(Exception):
    """The connection ended without a Close frame."""


class Frames:
    """RFC 6455 over a connection. A client masks what it sends, a server does not."""

    def __init__(self, connection, read, is_client=True):
        self._connection = connection
        self._read = read
        self._is_client = is_client
        self._parts, self._kind = [], None

    def send(self, message):
        """A text or octets, whole."""
        text = isinstance(message, str)
        self.send_frame(TEXT if text else BINARY, message.encode() if text else message)

    def send_frame(self, opcode, payload, final=True):
        masked = 0x80 if self._is_client else 0
        head = bytes([opcode | (0x80 if final else 0)])
        if len(payload) < 126:
            head += bytes([masked | len(payload)])
        elif len(payload) < 65536:
            head += struct.pack("!BH", masked | 126, len(payload))
        else:
            head += struct.pack("!BQ", masked | 127, len(payload))
        if masked:
            mask = os.urandom(4)
            head, payload = head + mask, _masked(payload, mask)
        self._connection.sendall(head + payload)

    def send_close(self, code, reason=""):
        self.send_frame(CLOSE, struct.pack("!H", code) + reason.encode())

    def receive(self):
        """The next message: a text, octets, or a tuple of opcode and payload for anything else."""
        while True:
            final, opcode, payload = self._frame()
            if opcode >= CLOSE:
                # May come between the fragments of a message, which goes on after it.
                return opcode, payload
            self._kind = opcode or self._kind
            self._parts.append(payload)
            if final:
                whole, self._parts = b"".join(self._parts), []
                return whole.decode() if self._kind == TEXT else whole

    def closed(self):
        """Reads on until the Close frame; its code and reason."""
        while True:
            message = self.receive()
            if isinstance(message, tuple) and message[0] == CLOSE:
                payload = message[1]
                code = struct.unpack("!H", payload[:2])[0] if payload else None
                return code, payload[2:].decode()

    def _frame(self):
        first, second = self._exactly(2)
        if first & 0x70 or bool(second & 0x80) == self._is_client:
            raise ValueError(f"a mask of the wrong side, or bits of an extension: {first:02x} {second:02x}")
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self._exactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._exactly(8))
        mask = None if self._is_client else self._exactly(4)
        payload = self._exactly(length)
        return bool(first & 0x80), first & 0x0F, _masked(payload, mask) if mask else payload

    def _exactly(self, count):
        try:
            octets = self._read.read(count)
        except TimeoutError:
            raise
        except OSError as error:
            raise Ended(f"{type(error).__name__}: {error}") from error
        if len(octets) < count:
            raise Ended("the end of the stream")
        return octets


class WebSocket(Frames):
    """Of a visitor. `status` is 101, or a refusal whose `headers` tell more."""

    def __init__(self, context, host, path, subprotocols=(), timeout=PATIENCE, port=443):
        connection = dial(context, host, timeout, port)
        super().__init__(connection, connection.makefile("rb"))
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
        if subprotocols:
            lines.append(f"Sec-WebSocket-Protocol: {', '.join(subprotocols)}")
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        self.status = int(self._read.readline().split(b" ")[1])
        fields = iter(lambda: self._read.readline().decode("latin-1").rstrip("\r\n"), "")
        self.headers = dict(_field(line) for line in fields)
        came = self.headers.get("sec-websocket-accept")
        if self.status == 101 and came != accept(key):
            raise ValueError(f"Sec-WebSocket-Accept is {came}, not {accept(key)}")

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self._read.close()
        self._connection.close()

    def body(self):
        """Of a refusal."""
        return self._exactly(int(self.headers["content-length"]))

    @property
    def subprotocol(self):
        return self.headers.get("sec-websocket-protocol")


def ends(websocket):
    """The code of the Close that comes, or "lost" when the connection ends without one."""
    try:
        return websocket.closed()[0]
    except Ended:
        return "lost"


def accept(key):
    """`Sec-WebSocket-Accept` for a key."""
    return base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()


def _masked(payload, mask):
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    number = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return number.to_bytes(len(payload), "big")


def _field(line):
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()
