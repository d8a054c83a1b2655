"""What only weight shows, through edge tunnels of `tunnel-agent`: gigabytes, a thousand streams, a thousand who
do not read, agents that are stopped, cut off and replaced under load.

    judges/bin/python heavy.py --server ../target/release/api-server --agent ../target/release/tunnel-agent

Ten minutes; `--scale 0.05` does less of everything, for a look.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import os
import pathlib
import re
import resource
import socket
import subprocess
import tempfile
import threading
import time

import expect
from agent import SUPERSEDED, VERSIONS, Scene
from costs import places
from heavy_application import PIECE, Failed, One, Process, Sum, Two, context_of, piece
from heavy_changes import SLACK, cut, replaced, server_replaced, stopped
from hostile import never_panicked
from server import arguments

MIB, GIB = 1024 * 1024, 1024 * 1024 * 1024
# What one tunnel can make the server hold for visitors who take nothing (docs/operating.md).
HELD = 256 * MIB
# And what a visitor costs beside it: idle, the head, and what is on its way to the socket.
A_VISITOR = 195 * 1024
# What is read ahead of a visitor in the agent, and what its sockets' buffers are copied to.
IN_THE_AGENT = 400 * 1024
# How long a visitor may take nothing.
PATIENCE = 30.0


def main():
    parser = arguments(__doc__)
    parser.add_argument("--agent", required=True, metavar="PATH", help="the tunnel-agent binary")
    parser.add_argument("--scale", type=float, default=1.0, help="how much of it")
    parser.add_argument("--only", default="", metavar="WORD", help="run the checks that have it in their name")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.ExitStack() as stack:
        place = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adit-interop-")))
        app = stack.enter_context(Process())
        checks = [
            ("gigabytes both ways", gigabytes),
            ("a thousand event streams", event_streams),
            ("a thousand who stopped reading", stalled),
            ("agents that are stopped", stopped),
            ("a link is cut", cut),
            ("agents that share are replaced", functools.partial(replaced, flags=["--share"], status=0)),
            ("an agent is taken over", functools.partial(replaced, flags=[], status=SUPERSEDED)),
            ("the server is replaced", server_replaced),
        ]

        def one(check):
            with Scene(options, place) as scene:
                check(scene, app, options)
                never_panicked(scene.server)

        expect.each([(name, functools.partial(one, check)) for name, check in checks if options.only in name])


class Memory:
    """What processes hold beyond what they held when it began."""

    def __init__(self, **pids):
        self._pids = pids
        for pid in pids.values():
            # VmHWM begins anew.
            pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._before = {name: self._read(name, "VmRSS") for name in pids}

    def _read(self, name, what):
        lines = pathlib.Path(f"/proc/{self._pids[name]}/status").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith(f"{what}:")]
        return int(line.split()[1]) * 1024

    def now(self, name):
        return self._read(name, "VmRSS") - self._before[name]

    def peak(self, name):
        return self._read(name, "VmHWM") - self._before[name]

    def within(self, what, **bounds):
        told = ", ".join(f"{name} {self.peak(name) / MIB:.1f} MiB at most" for name in bounds)
        print(f"        {what}: {told}", flush=True)
        for name, bound in bounds.items():
            expect.that(f"{what}: {name} holds no more than {bound / MIB:.0f} MiB", self.peak(name) <= bound, told)


def percentile(values, percent):
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


# --- gigabytes ------------------------------------------------------------------------


def gigabytes(scene, app, options):
    """Memory does not follow what passes."""
    with scene.agent("bulk", app, "--quiet") as agent:
        memory = Memory(server=scene.server.pid, agent=agent.pid)
        for version in VERSIONS:
            for path, size in (("/sink", 2 * GIB), ("/source", 2 * GIB), ("/echo", GIB // 2)):
                octets = int(size * options.scale) // PIECE * PIECE
                began = time.monotonic()
                sent, came = transfer(scene, version, path, octets)
                took = time.monotonic() - began
                what = f"{version}, {octets / MIB:.0f} MiB {path}, {octets / MIB / took:.0f} MiB/s"
                expect.equal(f"{what}: every octet in its place", came, sent)
                # A stream's window, and what is in the hands of both.
                memory.within(what, server=64 * MIB, agent=64 * MIB)


def transfer(scene, version, path, octets):
    """What the sender sent, and what the receiver got."""
    sends, sent, came = path != "/source", Sum(), Sum()
    words = ["--upload-file", "-", "--header", "expect:"] if sends else []
    target = path if sends else f"{path}/{octets}"
    stdin = subprocess.PIPE if sends else subprocess.DEVNULL
    with scene.curl_process("bulk", target, version, "--no-buffer", "--max-time", "600", *words, stdin=stdin) as curl:

        def send():
            for number in range(octets // PIECE):
                sent.add(piece(number))
                if sends:
                    curl.stdin.write(piece(number))
            if sends:
                curl.stdin.close()

        feeder = threading.Thread(target=send)
        feeder.start()
        said = []
        while data := os.read(curl.stdout.fileno(), MIB):
            came.add(data)
            said.append(data if path == "/sink" else b"")
        feeder.join()
        expect.equal(f"{version} {path}: curl's exit status", curl.wait(), 0)
    return str(sent), b"".join(said).decode() if path == "/sink" else str(came)


# --- event streams --------------------------------------------------------------------


def event_streams(scene, app, options):
    """An event a second on each of a thousand streams, most of them over connections of their own."""
    streams, seconds = max(20, int(1000 * options.scale)), max(5, int(60 * options.scale))
    with scene.agent("events", app, "--quiet") as agent:
        memory = Memory(server=scene.server.pid, agent=agent.pid)
        gc.freeze()
        took, delays = asyncio.run(listen(scene, streams, seconds, memory))
        gc.unfreeze()
    print(f"        {streams} were open after {took:.1f} s; {len(delays)} events came, late by", end=" ")
    print(", ".join(f"p{percent} {percentile(delays, percent) * 1000:.2f} ms" for percent in (50, 99, 100)), flush=True)
    expect.that("they are there when they are said", percentile(delays, 99) < 0.25, percentile(delays, 99))


async def listen(scene, streams, seconds, memory):
    twos = [await Two().dial(scene, "events") for _ in range(4)]
    ones, begun, came = [], [], []
    at_once, all_begun = asyncio.Semaphore(16), asyncio.Event()

    async def visitor(number):
        buffer, numbers = b"", []
        async with at_once:
            if number % 5 < 2:
                lines = twos[number % 4].lines(f"/ticks/{seconds}/1.0")
            else:
                ones.append(One(scene, "events"))
                lines = ones[-1].lines(f"/ticks/{seconds}/1.0")
            first = await anext(lines)
            begun.append(number)
            if len(begun) == streams:
                all_begun.set()
        async for data in chained(first, lines):
            buffer += data
            now = time.monotonic()
            while b"\n\n" in buffer:
                event, _, buffer = buffer.partition(b"\n\n")
                _, said, at = event.split()
                numbers.append(int(said))
                came.append((float(at), now - float(at)))
        return numbers

    began = time.monotonic()
    tasks = [asyncio.create_task(visitor(number)) for number in range(streams)]
    await asyncio.wait_for(all_begun.wait(), 120)
    all_open = time.monotonic()
    for name in ("server", "agent"):
        print(f"        {name}: {memory.now(name) / streams / 1024:.0f} KiB a stream", flush=True)
    lost = [numbers for numbers in await asyncio.gather(*tasks) if numbers != list(range(seconds))]
    expect.equal(f"of {streams} streams none lost an event", lost, [])
    for each in ones + twos:
        each.close()
    # Those that came while others were still shaking hands tell of the script.
    return all_open - began, [late for at, late in came if at > all_open]


async def chained(first, rest):
    yield first
    async for each in rest:
        yield each


# --- who does not read ----------------------------------------------------------------


def stalled(scene, app, options):
    """They cost what is stated, nobody waits for them, and they go."""
    count, wrong = max(40, int(1000 * options.scale)), []
    bounds = {"server": HELD + count * A_VISITOR + 64 * MIB, "agent": HELD + count * IN_THE_AGENT}
    with scene.agent("stalled", app, "--quiet") as agent:
        alone = asyncio.run(honest(scene, 5))
        memory = Memory(server=scene.server.pid, agent=agent.pid)
        for _ in range(2):
            began = time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                visitors = list(pool.map(lambda _: stall(scene, f"/large/{10 * MIB}"), range(count)))
            waited = time.monotonic() - began
            beside = asyncio.run(honest(scene, 15))
            told = ", ".join(f"{which} {quickness(took)}" for which, took in (("alone", alone), ("beside", beside)))
            print(f"        {count} after {waited:.1f} s; an honest one: {told}", flush=True)
            if percentile(beside, 99) > fair(alone):
                wrong.append(f"an honest one waits for those who do not read: {told}")
            kernel = queued(scene.port) / count
            print(f"        the kernel holds {kernel / 1024:.0f} KiB for each that the server has sent", flush=True)
            memory.within(f"{count} who take nothing", **bounds)
            expect.until("all of them are let go", 150, lambda: places(scene.server, "visitor") == 0)
            told = f"the last one was let go after {time.monotonic() - began:.1f} s"
            print(f"        {told}", flush=True)
            # What the kernel still takes counts as taken; then it takes no more.
            if time.monotonic() - began > waited + PATIENCE + 2 * SLACK:
                wrong.append(told)
            let_go = time.monotonic()
            expect.until("the application, too", 60, lambda: asyncio.run(one_answer(scene, "/open")) == b"0")
            print(f"        the application {time.monotonic() - let_go:.1f} s after it", flush=True)
            orphans = queued(scene.port)
            print(f"        then the kernel has {orphans / MIB:.0f} MiB for those who are gone", flush=True)
            for visitor in visitors:
                visitor.close()
            time.sleep(2)
            told = ", ".join(f"{name} {memory.now(name) / MIB:.1f} MiB" for name in bounds)
            print(f"        held afterwards: {told}", flush=True)
        memory.within("the second time, too", **bounds)
        after = asyncio.run(honest(scene, 5))
        print(f"        an honest one afterwards: {quickness(after)}", flush=True)
        expect.that("it is as before", percentile(after, 99) < fair(alone), quickness(after))
    expect.equal("nobody is in the way of another one", wrong, [])


def queued(port):
    """Octets of memory that the kernel has for what this port has sent and nobody has taken."""
    done = subprocess.run(["ss", "-Htanm", "sport", "=", f":{port}"], capture_output=True, text=True, check=True)
    return sum(int(size) for size in re.findall(r"skmem:\(\S*?,w(\d+),", done.stdout))


def quickness(took):
    median, slow, slowest = (percentile(took, percent) * 1000 for percent in (50, 99, 100))
    return f"p50 {median:.1f} ms, p99 {slow:.1f} ms, slowest {slowest:.0f} ms of {len(took)}"


def fair(alone):
    """The goal is twice as long; the script has two cores for five processes."""
    return max(5 * percentile(alone, 99), 0.025)


def stall(scene, path):
    """A visitor who asks, and then reads no octet."""
    tcp = socket.socket()
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    tcp.settimeout(60)
    tcp.connect(("127.0.0.1", scene.port))
    visitor = context_of(scene.root, "http/1.1").wrap_socket(tcp, server_hostname=scene.host("stalled"))
    visitor.sendall(f"GET {path} HTTP/1.1\r\nHost: {scene.host('stalled')}:{scene.port}\r\n\r\n".encode())
    return visitor


async def honest(scene, seconds):
    visitor, took, over = One(scene, "stalled"), [], time.monotonic() + seconds
    while time.monotonic() < over:
        began = time.monotonic()
        status, _ = await visitor.ask("/small")
        took.append(time.monotonic() - began)
        if status != 200:
            raise Failed(status)
        await asyncio.sleep(0.005)
    visitor.close()
    return took


async def one_answer(scene, path):
    visitor = One(scene, "stalled")
    _, came = await visitor.ask(path)
    visitor.close()
    return came


if __name__ == "__main__":
    expect.run(main)
