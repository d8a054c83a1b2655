"""Agents that are stopped, cut off and replaced, and servers that are replaced, under load: sections of `heavy.py`."""

import asyncio
import collections
import contextlib
import signal
import socket
import struct
import threading
import time

import expect
from costs import places
from heavy_application import PIECE, Failed, One, Sum, piece

# How long an agent may be silent until it is given up.
SILENCE = 35.0
# A machine that has other work, too, is late.
SLACK = 10.0


# --- load, while something happens ----------------------------------------------------


class Load:
    """Clients who ask one request after the other, each on its connection, until it is over."""

    def __init__(self, scene, name, clients=32, methods=("GET",), pause=0.0):
        self._scene, self._name, self._methods, self._pause = scene, name, methods, pause
        self._over, self._clients = False, clients
        # When each was asked, how long it took and what came.
        self.outcomes, self.raced = [], 0

    async def __aenter__(self):
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self._clients)]
        await self.more(self._clients)
        return self

    async def __aexit__(self, *_error):
        self._over = True
        await asyncio.gather(*self._tasks)

    async def _client(self, number):
        visitor = One(self._scene, self._name)
        method = self._methods[number % len(self._methods)]
        body = b"" if method == "GET" else piece(number)[:4096]
        # Some come anew each time.
        leaves = number % 8 == 7
        while not self._over:
            began = time.monotonic()
            try:
                came = (await asyncio.wait_for(visitor.ask("/small", method, body), 120))[0]
            except (OSError, EOFError, Failed, TimeoutError) as error:
                came = f"{type(error).__name__}: {error}"
            self.outcomes.append((began, time.monotonic() - began, came))
            if leaves:
                visitor.close()
            await asyncio.sleep(self._pause)
        self.raced += visitor.raced
        visitor.close()

    async def more(self, count):
        """So many more are asked."""
        wanted = len(self.outcomes) + count
        while len(self.outcomes) < wanted:
            await asyncio.sleep(0.01)

    @property
    def failed(self):
        return [outcome for outcome in self.outcomes if outcome[2] != 200]

    def told(self):
        counts = dict(collections.Counter(came for _, _, came in self.outcomes))
        slowest = max(took for _, took, _ in self.outcomes)
        return f"{counts}, the slowest after {slowest:.2f} s, {self.raced} sent again by the client"

    def all_well(self, what, least):
        print(f"        {what}: {self.told()}", flush=True)
        expect.that(f"{what}: at least {least} were asked", len(self.outcomes) >= least, self.told())
        expect.equal(f"{what}: none failed", self.failed[:5], [])


async def until(what, within, holds):
    await asyncio.to_thread(expect.until, what, within, holds)


# --- agents that are stopped ----------------------------------------------------------


def stopped(scene, app, options):
    """Nobody hangs while an agent is silent, and it comes back by itself; a short silence costs nothing."""
    silence = max(45, int(90 * options.scale))
    with contextlib.ExitStack() as stack:

        def agent(name, *flags, create=True):
            return stack.enter_context(scene.agent(name, app, "--quiet", *flags, create=create))

        alone, short = agent("alone"), agent("short")
        pairs = {"share": ("--share",), "patient": ("--share", "--response-deadline", "60")}
        firsts = {name: agent(name, *flags) for name, flags in pairs.items()}
        for name, flags in pairs.items():
            agent(name, *flags, create=False)
        asyncio.run(silences(scene, silence, alone, short, firsts))
        for each in (alone, *firsts.values()):
            expect.that("it is the same process, which came back", each.running and "reconnecting" in each.names)
        expect.that("after a short silence nothing was to be done", "reconnecting" not in short.names, short.names)


async def silences(scene, silence, alone, short, firsts):
    loads = {name: Load(scene, name, 16, pause=0.1) for name in ("alone", "short", *firsts)}
    loads["posts"] = Load(scene, "alone", 4, ("POST",), pause=0.1)
    streams = [asyncio.create_task(stream(scene, "alone")) for _ in range(4)]
    whole = [asyncio.create_task(stream(scene, "short")) for _ in range(4)]
    upload = asyncio.create_task(slow_upload(scene, "short"))
    async with contextlib.AsyncExitStack() as stack:
        for load in loads.values():
            await stack.enter_async_context(load)
        await asyncio.sleep(1)
        began = time.monotonic()
        for agent in (alone, short, *firsts.values()):
            agent.signal(signal.SIGSTOP)
        await asyncio.sleep(10)
        short.signal(signal.SIGCONT)
        await asyncio.sleep(silence - 10)
        for agent in (alone, *firsts.values()):
            agent.signal(signal.SIGCONT)
        woken = time.monotonic()
        await asyncio.sleep(15)
    ended = await asyncio.gather(*streams)
    for name in ("alone", "posts"):
        load = loads[name]
        silent = collections.Counter(came for at, _, came in load.outcomes if began + 0.2 < at < woken)
        back = min(at + took for at, took, came in load.outcomes if came == 200 and at > began + SILENCE) - woken
        print(f"        {name}: {load.told()}; {dict(silent)} in the silence; served {back:.1f} s after it", flush=True)
        hung = [outcome for outcome in load.outcomes if outcome[1] > SILENCE + SLACK / 2]
        expect.equal(f"{name}: nobody hangs", hung, [])
        expect.that(f"{name}: it is told as it is", set(silent) <= {502, 503, 504}, silent)
        late = [outcome for outcome in load.failed if outcome[0] > woken + SLACK]
        expect.that(f"{name}: it comes back by itself", back < SLACK and not late, (back, late[:3]))
    longest = max(at for at, _ in ended) - began
    expect.that(f"event streams end, too, after {longest:.1f} s", longest < SILENCE + SLACK / 2, ended)
    expect.equal("nobody takes them for whole", [came for _, came in ended if came == "whole"], [])
    print(f"        alone: streams ended after {longest:.1f} s: {ended[0][1]}", flush=True)
    loads["short"].all_well("ten seconds", 16)
    expect.equal("ten seconds: streams are whole", [came for _, came in await asyncio.gather(*whole)], ["whole"] * 4)
    sent, came = await upload
    expect.equal("ten seconds: an upload is whole", came, sent)
    loads["patient"].all_well("two that share, and time to wait", 16)
    load = loads["share"]
    print(f"        two that share: {load.told()}", flush=True)
    late = [outcome for outcome in load.failed if outcome[1] < SILENCE - 2 * SLACK or outcome[2] not in (502, 504)]
    expect.equal("two that share: only what waited for the one that is silent fails", late[:5], [])
    expect.that("two that share: each at most once", len(load.failed) <= 16, load.told())


async def stream(scene, name):
    """Thirty seconds of events: when it ended, and how."""
    visitor, count = One(scene, name), 0
    try:
        async for _ in visitor.lines("/ticks/300/0.1"):
            count += 1
        came = "whole" if count else "empty"
    except (OSError, EOFError, Failed) as error:
        came = f"{type(error).__name__}: {error}"
    visitor.close()
    return time.monotonic(), came


async def slow_upload(scene, name):
    visitor, sent = One(scene, name), Sum()

    async def body():
        for number in range(1000):
            sent.add(piece(number))
            yield piece(number)
            await asyncio.sleep(0.02)

    status, came = await visitor.ask("/sink", "PUT", body())
    visitor.close()
    return str(sent), came.decode() if status == 200 else status


# --- links that are cut ---------------------------------------------------------------


class Relay:
    """Between agents and the edge; each connection through it can be cut."""

    def __init__(self, port):
        self._edge = port

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.links = []
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_error):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        while self.links:
            self.cut()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                link = (near, socket.create_connection(("127.0.0.1", self._edge)))
                self.links.append(link)
                for source, sink in (link, link[::-1]):
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def cut(self, resets=True):
        """The oldest of them."""
        for end in self.links.pop(0):
            with contextlib.suppress(OSError):
                if resets:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
                end.close()


def cut(scene, app, options):
    least = max(1000, int(10_000 * options.scale))
    with Relay(scene.port) as relay:
        at = ["--server", scene.server.url, "--edge", f"127.0.0.1:{relay.port}"]
        with scene.agent("cut", app, "--quiet", "--connections", "2", at=at):
            asyncio.run(cuts(scene, relay, least))


async def cuts(scene, relay, least):
    def both():
        return len(relay.links) == 2 and places(scene.server, "agent") == 2

    await until("both links are there", SLACK, both)
    load, times = Load(scene, "cut"), 0
    async with load:
        while len(load.outcomes) < least:
            await load.more(least // 8)
            await asyncio.to_thread(relay.cut, times % 2 == 0)
            times += 1
            await load.more(32)
            await until("the agent dials again", 2 * SLACK, both)
    load.all_well(f"one of two links cut {times} times", least)


# --- agents and servers that are replaced -------------------------------------------------


def replaced(scene, app, options, flags, status):
    """A new process, and then the old one is told to stop, or stops because it has lost the tunnel."""
    least = max(1000, int(10_000 * options.scale))
    scene.create("upgraded")
    with contextlib.ExitStack() as stack:

        def start():
            agent = stack.enter_context(scene.start("upgraded", app, "--quiet", *flags))
            agent.reaches("connected", 2 * SLACK)
            return agent

        async def upgrades():
            agent, times = start(), 0
            async with Load(scene, "upgraded", methods=("GET", "GET", "GET", "POST")) as load:
                while len(load.outcomes) < least:
                    await load.more(least // 5)
                    old, agent = agent, await asyncio.to_thread(start)
                    if "--share" in flags:
                        await load.more(200)
                        old.signal(signal.SIGTERM)
                    await until("the old one ends", 2 * SLACK, lambda old=old: not old.running)
                    expect.equal("with its status", old.status, status)
                    times += 1
            load.all_well(f"{times} upgrades, a quarter of them POST", least)

        asyncio.run(upgrades())


def server_replaced(scene, app, options):
    """With a socket that outlives it (docs/operating.md), and connections of visitors that do not."""
    least = max(1000, int(10_000 * options.scale))

    async def drains():
        load = Load(scene, "drained")
        async with load:
            for _ in range(3):
                await load.more(least // 4)
                expect.equal("the server ends as told", await asyncio.to_thread(scene.server.stop), 0)
                await asyncio.to_thread(scene.server.start)
            await load.more(least // 4)
        load.all_well("three servers one after the other", least)

    with scene.agent("drained", app, "--quiet"):
        asyncio.run(drains())
