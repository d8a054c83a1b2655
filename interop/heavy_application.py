"""The application of `heavy.py`, and its visitors: thousands at once, gigabytes, and little work for each.

As a program it is the application, a process of its own, so that those who measure do not wait for it. It
says its port and ends with its standard input.
"""

import asyncio
import socket
import ssl
import subprocess
import sys
import time
import zlib

import h2.config
import h2.connection
import h2.events
import h2.settings

KIB = 1024
# The pieces of endless bodies. Each begins with its number, so that none can be lost, come twice or out of turn.
PIECE = 64 * KIB
_REST = bytes(range(251)) * 261 + bytes(PIECE - 8 - 251 * 261)


def piece(number):
    return number.to_bytes(8, "big") + _REST


class Sum:
    """How many octets came, and which."""

    def __init__(self):
        self.octets, self._crc = 0, 0

    def add(self, data):
        self.octets += len(data)
        self._crc = zlib.crc32(data, self._crc)

    def __str__(self):
        return f"{self.octets} {self._crc:08x}"


# --- the application ----------------------------------------------------------------


class Process:
    """The application in a process of its own."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *_error):
        self._process.kill()
        self._process.communicate()


async def application():
    server = await asyncio.start_server(connection, "127.0.0.1", 0, limit=4 * PIECE, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    # Until whoever started it is gone, however it ended.
    await asyncio.to_thread(sys.stdin.read)


open_now = set()


async def connection(reader, writer):
    try:
        while head := await head_of(reader):
            request, fields = head
            _, target, _ = request.split(" ")
            mark = object()
            open_now.add(mark)
            try:
                await answer(target.split("/")[1:], Body(reader, fields), writer)
            finally:
                open_now.discard(mark)
    except (OSError, EOFError):
        # Whoever asked is gone.
        pass
    finally:
        writer.close()


async def answer(path, body, writer):
    match path:
        case ["sink"]:
            came = Sum()
            async for data in body:
                came.add(data)
            await whole(writer, str(came).encode())
        case ["source", octets]:
            begin(writer, "application/octet-stream")
            for number in range(int(octets) // PIECE):
                await chunk(writer, piece(number))
            writer.write(b"0\r\n\r\n")
        case ["echo"]:
            begin(writer, "application/octet-stream")
            async for data in body:
                await chunk(writer, data)
            writer.write(b"0\r\n\r\n")
        case ["ticks", count, pause]:
            begin(writer, "text/event-stream")
            began = time.monotonic()
            for number in range(int(count)):
                await asyncio.sleep(began + number * float(pause) - time.monotonic())
                await chunk(writer, b"data: %d %.6f\n\n" % (number, time.monotonic()))
            writer.write(b"0\r\n\r\n")
        case ["large", octets]:
            # The kernel's memory is for those who are measured, not for a thousand queues of the application.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % int(octets))
            for number in range(int(octets) // PIECE):
                writer.write(piece(number))
                await writer.drain()
        case ["slow", seconds]:
            await asyncio.sleep(float(seconds))
            await whole(writer, b"at last")
        case ["open"]:
            await whole(writer, str(len(open_now) - 1).encode())
        case _:
            came = Sum()
            async for data in body:
                came.add(data)
            await whole(writer, str(came).encode())


def begin(writer, kind):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n" % kind.encode())


async def chunk(writer, data):
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
    await writer.drain()


async def whole(writer, body):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await writer.drain()


# --- HTTP/1.1, as the application and its visitors read it -----------------------------


async def head_of(reader):
    """The first line and the fields of what comes; None at the end."""
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError as ended:
        if ended.partial:
            raise
        return None
    fields = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    return lines[0], fields


class Body:
    def __init__(self, reader, fields):
        self._reader, self._fields = reader, fields

    async def __aiter__(self):
        if self._fields.get("transfer-encoding") == "chunked":
            while (line := await self._reader.readline()) and (length := int(line, 16)):
                yield (await self._reader.readexactly(length + 2))[:-2]
            await self._reader.readexactly(2)
            return
        left = int(self._fields.get("content-length", 0))
        while left:
            data = await self._reader.read(min(left, PIECE))
            if not data:
                raise EOFError(f"{left} octets are missing")
            left -= len(data)
            yield data


# --- visitors -------------------------------------------------------------------------


class Failed(Exception):
    """Something else than an answer came."""


def context_of(root, protocol):
    context = ssl.create_default_context(cafile=root)
    context.set_alpn_protocols([protocol])
    return context


async def dial(scene, name, protocol):
    context = context_of(scene.root, protocol)
    return await asyncio.open_connection(
        "127.0.0.1",
        scene.port,
        ssl=context,
        server_hostname=scene.host(name),
        limit=4 * PIECE,
        ssl_handshake_timeout=60,
    )


class One:
    """Over HTTP/1.1: one request after the other, and a new connection where the old one has ended meanwhile."""

    def __init__(self, scene, name):
        self._scene, self._name = scene, name
        self._writer = None
        # Requests that met a connection's end, which may be sent again (RFC 9112 section 9.3.1).
        self.raced = 0

    async def begin(self, path, method="GET", body=b""):
        """The status, the fields and the body of the answer, which may still be coming."""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._scene.host(self._name)}:{self._scene.port}\r\n"
        if method == "PUT":
            head += "Transfer-Encoding: chunked\r\n"
        elif body:
            head += f"Content-Length: {len(body)}\r\n"
        while True:
            is_new = self._writer is None
            if is_new:
                self._reader, self._writer = await dial(self._scene, self._name, "http/1.1")
            try:
                if method == "PUT":
                    # As it is made.
                    self._writer.write(head.encode() + b"\r\n")
                    async for data in body:
                        await chunk(self._writer, data)
                    self._writer.write(b"0\r\n\r\n")
                else:
                    self._writer.write(head.encode() + b"\r\n" + body)
                came = await head_of(self._reader)
            except ConnectionError:
                came = None
            if came or is_new:
                break
            self.close()
            self.raced += 1
        if not came:
            self.close()
            raise Failed("the end instead of an answer")
        status, fields = came
        return int(status.split(" ")[1]), fields, Body(self._reader, fields)

    async def ask(self, path, method="GET", body=b""):
        """The status and the body."""
        try:
            status, fields, answer = await self.begin(path, method, body)
            came = b"".join([data async for data in answer])
        except BaseException:
            self.close()
            raise
        if fields.get("connection") == "close":
            self.close()
        return status, came

    async def lines(self, path):
        status, _, body = await self.begin(path)
        if status != 200:
            raise Failed(status)
        async for data in body:
            yield data

    def close(self):
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None


class Two:
    """Over HTTP/2: many requests at once."""

    async def dial(self, scene, name):
        self._authority = f"{scene.host(name)}:{scene.port}"
        self._reader, self._writer = await dial(scene, name, "h2")
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._streams = {}
        self._flush()
        self._task = asyncio.create_task(self._read())
        return self

    async def lines(self, path):
        """The pieces of an answer, as they come."""
        stream = self._h2.get_next_available_stream_id()
        events = self._streams[stream] = asyncio.Queue()
        fields = [(":method", "GET"), (":scheme", "https"), (":authority", self._authority), (":path", path)]
        self._h2.send_headers(stream, fields, end_stream=True)
        self._flush()
        while (came := await events.get()) is not None:
            if isinstance(came, Exception):
                raise came
            yield came

    async def _read(self):
        try:
            while data := await self._reader.read(PIECE):
                for event in self._h2.receive_data(data):
                    self._take(event)
                self._flush()
            ended = Failed("the end of the connection")
        except (OSError, h2.exceptions.ProtocolError) as error:
            ended = error
        for events in self._streams.values():
            events.put_nowait(ended)

    def _take(self, event):
        events = self._streams.get(getattr(event, "stream_id", None))
        match event:
            case h2.events.ResponseReceived() if (status := dict(event.headers)[":status"]) != "200":
                events.put_nowait(Failed(status))
            case h2.events.DataReceived():
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                events.put_nowait(event.data)
            case h2.events.StreamEnded():
                events.put_nowait(None)
            case h2.events.StreamReset():
                events.put_nowait(Failed(f"reset, {event.error_code}"))

    def _flush(self):
        self._writer.write(self._h2.data_to_send())

    def close(self):
        self._task.cancel()
        self._writer.transport.abort()


if __name__ == "__main__":
    asyncio.run(application())
