"""An agent for the native wire, written from docs/native-wire.md alone.

    judges/bin/python native_agent.py --url https://tunnels.example --root root.crt --tunnel my-agent \\
        --api-key-file key

What it serves is in itself: `/ticks/COUNT` tells the time COUNT times, a WebSocket
gets its messages back, everything else is answered with what was asked, as JSON.
Exit status 0 after SIGTERM, 3 when another instance has taken over, 4 when the
server refuses for good, with its words on stderr.

Scripts take `Session` and `attach` from here, or all of it on a thread: `Background`.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import pathlib
import signal
import ssl
import sys
import threading
import time
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from hyperframe.frame import GoAwayFrame

PING_EVERY, PING_WITHIN, SLOWEST_RETRY = 20.0, 15.0, 30.0
WIDEST, OF_A_STREAM = (1 << 31) - 1, 1 << 20
PROBLEM = "urn:adit:problem:"
SUPERSEDED, REFUSED = 3, 4


class Refused(Exception):
    """The answer was another one than 101. `problem` is the server's document, or None: then it was a proxy's."""

    def __init__(self, status, fields, body):
        self.status, self.fields, self.problem = status, fields, None
        with contextlib.suppress(ValueError):
            document = json.loads(body)
            if isinstance(document, dict) and str(document.get("type")).startswith(PROBLEM):
                self.problem = document
        super().__init__(f"{status}: {self.problem['detail'] if self.problem else 'no answer of the server itself'}")

    @property
    def is_final(self):
        return self.problem is not None and self.status in (401, 403)


class Left(Exception):
    """The visitor, or the link, is gone."""


async def attach(url, root, tunnel, credential, instance, share=False, deadline=None):
    """Asks for the upgrade. Answers the connection's two halves and the fields of the 101."""
    to = urlsplit(url)
    context = None
    if to.scheme == "https":
        context = ssl.create_default_context(cafile=root)
        context.set_alpn_protocols(["http/1.1"])
    # Hosts under `localhost` are this machine, whether or not the resolver knows (RFC 6761 section 6.3).
    at = "127.0.0.1" if to.hostname.endswith(".localhost") else to.hostname
    named = {"ssl": context, "server_hostname": to.hostname} if context else {}
    reader, writer = await asyncio.open_connection(at, to.port or (443 if context else 80), **named)
    lines = ["POST /_system/attach HTTP/1.1", f"Host: {to.netloc}", "Connection: Upgrade", "Upgrade: adit-h2"]
    lines += ["Content-Length: 0", ": ".join(credential), "Adit-Version: 1", f"Adit-Tunnel: {tunnel}"]
    lines += [f"Adit-Instance: {instance}", f"Adit-Share: {'true' if share else 'false'}"]
    lines += [] if deadline is None else [f"Adit-Response-Deadline: {deadline}"]
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        status = int(head[0].split(" ")[1])
        if status != 101:
            raise Refused(status, fields, await reader.readexactly(int(fields.get("content-length", 0))))
    except BaseException:
        writer.close()
        raise
    return reader, writer, fields


class Exchange:
    """A visitor's request, WebSocket or raw connection. `pseudo` has the fields with a colon, without it."""

    def __init__(self, session, event):
        self._session, self.stream = session, event.stream_id
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers]
        self.pseudo = {name[1:]: value for name, value in fields if name.startswith(":")}
        self.fields = [each for each in fields if not each[0].startswith(":")]
        self.trailers, self.came, self.room = [], asyncio.Queue(), asyncio.Event()

    async def read(self):
        """The next piece of the body, b"" at its end."""
        octets, credit = await self.came.get()
        if octets is None:
            raise Left
        if credit:
            self._session.h2.acknowledge_received_data(credit, self.stream)
            self._session.flush()
        return octets

    def respond(self, status, *fields, end=False):
        head = [(b":status", b"%d" % status)] + [(n.encode("latin-1"), v.encode("latin-1")) for n, v in fields]
        self._session.h2.send_headers(self.stream, head, end)
        self._session.flush()

    async def send(self, octets, end=False):
        while octets:
            self.room.clear()
            window = self._session.h2.local_flow_control_window(self.stream)
            count = min(len(octets), window, self._session.h2.max_outbound_frame_size)
            if count > 0:
                self._session.h2.send_data(self.stream, octets[:count])
                octets = octets[count:]
                self._session.flush()
                await self._session.writer.drain()
            else:
                await self.room.wait()
        if end:
            self.end()

    def end(self, *trailers):
        if trailers:
            self._session.h2.send_headers(self.stream, trailers, end_stream=True)
        else:
            self._session.h2.end_stream(self.stream)
        self._session.flush()


class Session:
    """Serves one link by `application(exchange)`; what the server says goes to `told(word)`."""

    def __init__(self, reader, writer, application, told):
        self._reader, self.writer, self._application, self._told = reader, writer, application, told
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        codes = h2.settings.SettingCodes
        wanted = {
            codes.ENABLE_CONNECT_PROTOCOL: 1,
            codes.INITIAL_WINDOW_SIZE: OF_A_STREAM,
            codes.HEADER_TABLE_SIZE: 4096,
        }
        wanted |= {codes.MAX_CONCURRENT_STREAMS: 10_000, codes.MAX_HEADER_LIST_SIZE: 96 * 1024}
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=wanted)
        self.open, self._tasks, self._acknowledged = {}, set(), asyncio.Event()
        self.last = WIDEST

    def flush(self):
        self.writer.write(self.h2.data_to_send())

    async def serve(self):
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(WIDEST - 65_535)
        self.flush()
        beat = asyncio.create_task(self._beat())
        try:
            while octets := await self._reader.read(1 << 16):
                for event in self.h2.receive_data(octets):
                    self._take(event)
                self.flush()
        except (OSError, h2.exceptions.ProtocolError) as error:
            self._told(f"broken: {error}")
        finally:
            beat.cancel()
            for exchange in self.open.values():
                exchange.came.put_nowait((None, 0))
            self.writer.close()

    def leave(self):
        """Takes nothing new; the server closes when what is open has ended."""
        self.last = self.h2.highest_inbound_stream_id
        # Not by `close_connection`, after which the package sends no more on streams that are open.
        self.writer.write(self.h2.data_to_send() + GoAwayFrame(0, last_stream_id=self.last).serialize())

    async def _beat(self):
        while True:
            await asyncio.sleep(PING_EVERY)
            self._acknowledged.clear()
            self.h2.ping(os.urandom(8))
            self.flush()
            try:
                await asyncio.wait_for(self._acknowledged.wait(), PING_WITHIN)
            except TimeoutError:
                self._told("silent")
                self.writer.transport.abort()

    def _take(self, event):
        exchange = self.open.get(getattr(event, "stream_id", None))
        match event:
            case h2.events.RequestReceived() if event.stream_id <= self.last:
                exchange = self.open[event.stream_id] = Exchange(self, event)
                task = asyncio.create_task(self._answer(exchange))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case h2.events.DataReceived() if exchange:
                exchange.came.put_nowait((event.data, event.flow_controlled_length))
            case h2.events.TrailersReceived() if exchange:
                exchange.trailers = event.headers
            case h2.events.StreamEnded() if exchange:
                exchange.came.put_nowait((b"", 0))
            case h2.events.StreamReset() if exchange:
                exchange.came.put_nowait((None, 0))
                exchange.room.set()
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                for each in self.open.values():
                    each.room.set()
            case h2.events.PingAckReceived():
                self._acknowledged.set()

    async def _answer(self, exchange):
        try:
            if exchange.pseudo.get("authority") == "_system":
                known = exchange.pseudo["path"] in ("/drain", "/superseded", "/renamed", "/revoked")
                exchange.respond(204 if known else 404, end=True)
                self._told(exchange.pseudo["path"][1:])
            else:
                await self._application(exchange)
        except (Left, OSError, h2.exceptions.ProtocolError):
            # A reset while the application wrote.
            pass
        finally:
            del self.open[exchange.stream]


# --- the application ------------------------------------------------------------


async def application(exchange):
    match exchange.pseudo["path"].split("?")[0].split("/") if "path" in exchange.pseudo else None:
        case None:
            exchange.respond(501, ("adit-reason", "raw-connections-are-not-served"), end=True)
        case _ if exchange.pseudo.get("protocol") == "websocket":
            exchange.respond(200)
            await websocket(exchange)
        case ["", "ticks", count]:
            exchange.respond(200, ("content-type", "text/event-stream"))
            for _ in range(int(count)):
                await exchange.send(b"data: %f\n\n" % time.monotonic())
                await asyncio.sleep(0.1)
            exchange.end()
        case _:
            digest, length = hashlib.sha256(), 0
            while octets := await exchange.read():
                digest.update(octets)
                length += len(octets)
            seen = {
                "pseudo": exchange.pseudo,
                "fields": exchange.fields,
                "sha256": digest.hexdigest(),
                "length": length,
            }
            exchange.respond(200, ("content-type", "application/json"))
            await exchange.send(b"" if exchange.pseudo["method"] == "HEAD" else json.dumps(seen).encode(), end=True)


async def websocket(exchange):
    """Sends back whatever frames come, without their masks; RFC 6455's handshake has been the server's."""
    came = bytearray()

    async def exactly(count):
        while len(came) < count:
            octets = await exchange.read()
            if not octets:
                raise Left
            came.extend(octets)
        taken = bytes(came[:count])
        del came[:count]
        return taken

    opcode = None
    while opcode != 0x8:
        first, second = await exactly(2)
        opcode, length, extended = first & 0xF, second & 0x7F, b""
        if length >= 126:
            extended = await exactly(2 if length == 126 else 8)
            length = int.from_bytes(extended, "big")
        mask = await exactly(4)
        payload = bytes(octet ^ mask[at % 4] for at, octet in enumerate(await exactly(length)))
        first = first ^ 0x3 if opcode == 0x9 else first
        await exchange.send(bytes((first, second & 0x7F)) + extended + payload)
    exchange.end()


# --- the program ----------------------------------------------------------------


class Agent:
    """Keeps a tunnel served: attaches, comes back, moves to another link when told to."""

    def __init__(self, url, root, tunnel, credential, share=False, serves=application, says=lambda words: None):
        self._how = (url, root, tunnel, credential, os.urandom(16).hex(), share)
        self._serves, self._says = serves, says
        self._sessions, self._again, self._status = set(), asyncio.Event(), None
        self.attached = threading.Event()

    async def run(self):
        """Until `stop`, or until there is no use in going on; answers the exit status."""
        pause = 1.0
        while self._status is None:
            self._again.clear()
            try:
                reader, writer, fields = await attach(*self._how)
            except Refused as refused:
                self._says(str(refused))
                if refused.is_final:
                    self._status = REFUSED
                    break
                pause = max(pause, float(refused.fields.get("retry-after", 0)))
            except (OSError, asyncio.IncompleteReadError) as error:
                self._says(f"no connection: {error!r}")
            else:
                self._says(f"attached: {fields['adit-session']}")
                pause = 1.0
                session = Session(reader, writer, self._serves, self._heard)
                task = asyncio.create_task(session.serve())
                self._sessions.add(session)
                self.attached.set()
                again = asyncio.create_task(self._again.wait())
                await asyncio.wait({task, again}, return_when=asyncio.FIRST_COMPLETED)
                task.add_done_callback(lambda _, session=session: self._sessions.discard(session))
                if self._again.is_set():
                    continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._again.wait(), pause)
            pause = min(2 * pause, SLOWEST_RETRY)
        while self._sessions:
            await asyncio.sleep(0.05)
        return self._status

    def stop(self, status=0):
        self._status = status
        self._again.set()
        for session in self._sessions:
            session.leave()

    def _heard(self, word):
        self._says(word)
        if word == "superseded":
            self._status = SUPERSEDED
        if word in ("drain", "superseded"):
            self._again.set()


class Background:
    """An `Agent` on a thread of its own, for as long as the block lasts."""

    def __init__(self, *values, **named):
        self.heard = []
        self.agent = Agent(*values, says=self.heard.append, **named)

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self.agent.run()), daemon=True)
        self._thread.start()
        if not self.agent.attached.wait(10):
            raise TimeoutError(f"not attached: {self.heard}")
        return self

    def __exit__(self, *_error):
        self._loop.call_soon_threadsafe(self.agent.stop)
        self._thread.join(10)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--url", required=True, help="https://ZONE, or http://127.0.0.1:PORT of the API on this machine"
    )
    parser.add_argument("--root", metavar="FILE", help="the authority to trust instead of the system's")
    parser.add_argument("--tunnel", required=True, metavar="ID_OR_NAME")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--api-key-file", metavar="FILE")
    who.add_argument("--secret-file", metavar="FILE", help="has the tunnel's secret")
    parser.add_argument("--share", action="store_true", help="serve beside other instances that say so, too")
    options = parser.parse_args()
    name, file = (
        ("X-API-Key", options.api_key_file) if options.api_key_file else ("X-Tunnel-Secret", options.secret_file)
    )
    credential = (name, pathlib.Path(file).read_text().strip())

    async def run():
        says = lambda words: print(words, file=sys.stderr, flush=True)  # noqa: E731
        agent = Agent(options.url, options.root, options.tunnel, credential, options.share, says=says)
        for each in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(each, agent.stop)
        return await agent.run()

    sys.exit(asyncio.run(run()))


if __name__ == "__main__":
    main()
