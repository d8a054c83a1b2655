"""Streams through edge tunnels of `tunnel-agent`: what the application says, the visitor has when it is said.

    judges/bin/python streams.py --server ../target/release/api-server --agent ../target/release/tunnel-agent
"""

import concurrent.futures
import contextlib
import functools
import itertools
import pathlib
import signal
import tempfile
import time

import expect
from agent import VERSIONS, Scene
from application import Application
from server import arguments

# From the application's word to the visitor's ear; a machine that has other work too is late.
LATE = 0.5


def main():
    parser = arguments(__doc__)
    parser.add_argument("--agent", required=True, metavar="PATH", help="the tunnel-agent binary")
    parser.add_argument("--seconds", type=int, default=30, help="how long the streams last")
    parser.add_argument("--streams", type=int, default=20, help="how many there are at once")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        place = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adit-interop-")))
        scene = stack.enter_context(Scene(options, place))
        app = stack.enter_context(Application())
        stack.enter_context(scene.agent("events", app))
        expect.each(
            [
                ("many streams, each event as it comes", functools.partial(lasting, scene, options)),
                ("a visitor who leaves is not talked to", functools.partial(leaving, scene, app)),
                ("an application that breaks off", functools.partial(breaking, scene)),
            ]
        )
        stops(options, place, app)


def ticks(scene, version, count, pause, name="events"):
    """Runs to the end of a stream: how late each event was, and curl's exit status."""
    late = []
    path = f"/ticks/{count}/{pause}"
    with scene.curl_process(name, path, version, "--no-buffer", "--max-time", str(int(count * pause + 30))) as curl:
        for line in curl.stdout:
            if line.startswith(b"data: "):
                late.append(time.monotonic() - float(line[6:]))
        return late, curl.wait()


def lasting(scene, options):
    pause = 2.0
    count = max(2, int(options.seconds / pause))
    versions = [version for version in VERSIONS for _ in range(options.streams // 2)]
    with concurrent.futures.ThreadPoolExecutor(len(versions)) as pool:
        came = list(pool.map(lambda version: ticks(scene, version, count, pause), versions))
    for version, (late, status) in zip(versions, came, strict=True):
        expect.equal(f"{version}: every event came", len(late), count)
        expect.that(f"{version}: each when it was said", max(late) < LATE, late)
        expect.equal(f"{version}: and the end", status, 0)


def leaving(scene, app):
    # One that pauses, and one that never does.
    for version, path in itertools.product(VERSIONS, ("/ticks/1000/0.2", "/ticks/10000000/0.0001")):
        before = len(app.left)
        with scene.curl_process("events", path, version, "--no-buffer") as curl:
            curl.stdout.readline()
            curl.kill()
        within(10.0, f"{version} {path}: the application is let go", lambda before=before: len(app.left) > before)


def breaking(scene):
    for version in VERSIONS:
        with scene.curl_process("events", "/ticks-and-reset/3/0.2", version, "--no-buffer") as curl:
            said = curl.stdout.read()
            expect.equal(f"{version}: what was said before came", said.count(b"data: "), 3)
            expect.that(f"{version}: nobody takes it for whole", curl.wait() != 0)


def stops(options, place, app):
    """Who is told to stop does not wait for streams that have no end."""
    for who in ("the server", "the agent"):
        with Scene(options, place) as scene, scene.agent("events", app) as agent:
            with scene.curl_process("events", "/ticks/1000/0.2", "--http1.1", "--no-buffer") as curl:
                curl.stdout.readline()
                begun = time.monotonic()
                if who == "the server":
                    expect.equal("the server ends as told", scene.server.stop(), 0)
                else:
                    agent.signal(signal.SIGTERM)
                    within(20.0, "the agent ends", lambda agent=agent: not agent.running)
                took = time.monotonic() - begun
                expect.that(f"{who} does not wait for it", took < 16.0, took)
                curl.stdout.read()
                expect.that("nobody takes it for whole", curl.wait() != 0)
                print(f"        {who} was gone after {took:.1f} s")
            if agent.running:
                agent.signal(signal.SIGTERM)


def within(seconds, what, holds):
    until = time.monotonic() + seconds
    while not holds():
        expect.that(f"{what} within {seconds} s", time.monotonic() < until)
        time.sleep(0.05)
    expect.that(what, True)


if __name__ == "__main__":
    expect.run(main)
