"""The HTTP application behind an agent that forwards to a URL, in the script's own process."""

import collections
import gzip
import hashlib
import http.client
import http.server
import json
import random
import socket
import struct
import threading
import time

from visitor import CLOSE, PING, PONG, TEXT, Ended, Frames, accept

MIB = 1024 * 1024
PLAIN = b"The same text over and over, which packs well. " * 200
# How long a part of an answer waits until the script has seen the part before.
GATE = 10.0

# Requests with as many header fields as an envelope carries are to be read here, too.
http.client._MAXHEADERS = 200


class Application:
    """`url` is where it listens; with a port it can come back after a stop."""

    def __init__(self, label="app", port=0):
        self._label = label.encode()
        self._port = port

    def __enter__(self):
        self._server = Listener(("127.0.0.1", self._port), Handler)
        self._server.label = self._label
        # Path, code and reason of each Close that a WebSocket got.
        self.closes = self._server.closes = []
        # Path to the events that `/events/..` waits for, and to the pieces that `/upload/..` got.
        self.gates = self._server.gates = collections.defaultdict(threading.Event)
        self.pieces = self._server.pieces = collections.defaultdict(list)
        # Paths of streams that nobody listened to any more.
        self.left = self._server.left = []
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_error):
        self._server.shutdown()
        self._server.server_close()


class Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address):
        """Agents that go away are part of the play."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        asked = "gzip" in self.headers.get("accept-encoding", "")
        match self.path.split("?")[0].split("/")[1:]:
            case ["websocket", *_]:
                self._websocket()
            case ["refuse", status]:
                self._answer(b"not for you", ("X-App", "1"), status=int(status))
            case ["seen", *_]:
                self._answer(self._view(self._body()), ("Content-Type", "application/json"))
            case ["echo"]:
                self._answer(self._body())
            case ["early"]:
                # Nothing more is read, and what is there resets the connection.
                self.close_connection = True
                self._answer(b"too much", status=413)
            case ["label"]:
                self._answer(self.server.label)
            case ["nothing"]:
                self._answer(b"", status=204)
            case ["status", status]:
                self._answer(b"as asked", status=int(status))
            case ["redirect"]:
                self._answer(b"", ("Location", self.headers["x-location"]), status=302)
            case ["slow", seconds]:
                time.sleep(float(seconds))
                self._answer(b"at last")
            case ["large", length]:
                self._answer(filler(int(length)))
            case ["cookies"]:
                self._answer(b"two", ("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2; Path=/"))
            case ["gzip-always"]:
                self._answer(gzip.compress(PLAIN), ("Content-Encoding", "gzip"))
            case ["gzip-if-asked"] if asked:
                self._answer(gzip.compress(PLAIN), ("Content-Encoding", "gzip"))
            case ["gzip-if-asked"]:
                self._answer(PLAIN)
            case ["events", *_]:
                self._events()
            case ["ticks", count, pause]:
                self._ticks(int(count), float(pause))
                self._chunk(b"")
            case ["ticks-and-reset", count, pause]:
                self._ticks(int(count), float(pause))
                self._reset()
            case ["upload", *_]:
                self._answer(b"".join(self._pieces()))
            case ["until-the-end"]:
                self._until_the_end()
            case ["breaks-off"]:
                self._answer(b"half of", length=100)
                self._reset()
            case ["hangs-up"]:
                self._reset()
            case _:
                self._answer(b"no such path", status=404)

    do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = do_POST = do_PURGE = do_PUT = do_GET

    def log_message(self, *_arguments):
        pass

    def _view(self, body):
        """What the application sees of a request."""
        return json.dumps(
            {
                "method": self.command,
                "target": self.path,
                "headers": [(name.lower(), value) for name, value in self.headers.items()],
                "length": len(body),
                "sha256": sha256(body),
            }
        ).encode()

    def _body(self):
        return b"".join(self._chunks())

    def _chunks(self):
        """The body's pieces, as they come."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while True:
                chunk = self.rfile.read(int(self.rfile.readline().split(b";")[0], 16))
                self.rfile.readline()
                if not chunk:
                    return
                yield chunk
        left = int(self.headers.get("content-length", 0))
        while left > 0 and (piece := self.rfile.read1(left)):
            left -= len(piece)
            yield piece

    def _pieces(self):
        for piece in self._chunks():
            self.server.pieces[self.path].append(piece)
            yield piece

    def _events(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._chunk(b"data: first\n\n")
        came = self.server.gates[self.path].wait(GATE)
        self._chunk(b"data: second\n\n" if came else b"data: nobody has seen the first\n\n")
        self._chunk(b"")

    def _ticks(self, count, pause):
        """Says what time it is, again and again; whoever leaves is noted."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for _ in range(count):
                self._chunk(b"data: %f\n\n" % time.monotonic())
                time.sleep(pause)
        except OSError:
            self.server.left.append(self.path)
            raise

    def _chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _until_the_end(self):
        """As HTTP/1.0 does it: the end of the connection is the end of the body."""
        self.close_connection = True
        self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n" + PLAIN)

    def _reset(self):
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _answer(self, body, *headers, status=200, length=None):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _websocket(self):
        self.close_connection = True
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accept(self.headers["sec-websocket-key"]))
        self.send_header("X-App", "1")
        if offered := self.headers.get("sec-websocket-protocol"):
            self.send_header("Sec-WebSocket-Protocol", offered.split(",")[0].strip())
        self.end_headers()
        frames = Frames(self.connection, self.rfile, is_client=False)
        try:
            while self._replied(frames, frames.receive()):
                pass
        except Ended:
            # Without a Close (RFC 6455 section 7.1.5).
            self.server.closes.append((self.path, 1006, ""))

    def _replied(self, frames, message):
        """Does what a visitor's message asks for; others come back. False at the end."""
        match message:
            case (opcode, payload) if opcode == CLOSE:
                self.server.closes.append((self.path, int.from_bytes(payload[:2], "big"), payload[2:].decode()))
                frames.send_frame(CLOSE, payload)
                return False
            case (opcode, payload) if opcode == PING:
                frames.send_frame(PONG, payload)
            case (_, _):
                pass
            case str() if message.startswith("close "):
                _, code, reason = message.split(" ", 2)
                frames.send_close(int(code), reason)
                return False
            case "end":
                return False
            case "reset":
                self._reset()
                return False
            case "seen":
                frames.send(self._view(b"").decode())
            case "large":
                frames.send("t" * MIB)
            case "fragments":
                frames.send_frame(TEXT, b"in ", final=False)
                frames.send_frame(PING, b"between")
                frames.send_frame(0, b"pieces", final=True)
                pong = frames.receive()
                frames.send("answered" if pong == (PONG, b"between") else f"{pong}")
            case _:
                frames.send(message)
        return True


def filler(length):
    """Octets without a pattern that a shorter or shifted copy could have, too."""
    return random.Random(length).randbytes(length)


def sha256(octets):
    return hashlib.sha256(octets).hexdigest()
