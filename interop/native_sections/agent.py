"""The agent that docs/native-wire.md made: `native_agent.py`, by itself and from a shell."""

import contextlib
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import expect
from native_agent import REFUSED, SUPERSEDED, Background
from native_peer import MIB, VISITORS, VisitorOne, tunnel_of
from scripted_agent import WebSocket


def checks(long):
    return [
        ("requests and streams", serves),
        ("WebSockets", websockets),
        ("from a shell, by both ways in", shell),
        ("another instance takes over", superseded),
        ("a server that stops and comes back", server_restarts),
        ("who leaves says so", leaves),
    ]


def background(tunnel, way="zone", **named):
    server = tunnel.server
    url = server.url if way == "api" else f"https://adit.localhost:{server.edge_port}"
    return Background(url, server.root_certificate, tunnel.id, ("X-API-Key", server.key), **named)


def served(tunnel, timeout=10.0):
    def holds():
        with contextlib.suppress(OSError), contextlib.closing(VisitorOne(tunnel)) as visitor:
            return visitor.ask().status == 200
        return False

    expect.until("the tunnel is served", timeout, holds)


def serves(rig):
    for way in ("zone", "api"):
        tunnel = tunnel_of(rig.server, f"agent-{way}")
        with background(tunnel, way):
            served(tunnel)
            for kind in VISITORS:
                with contextlib.closing(kind(tunnel)) as visitor:
                    came = visitor.ask("/a?b", ("x-one", "1"), method="POST", body=b"abc" * MIB)
                    expect.equal(f"{kind.version}: a POST", (came.status, came.json["length"]), (200, 3 * MIB))
                    expect.equal("its path", came.json["pseudo"]["path"], "/a?b")
                    expect.that("its fields", ["x-one", "1"] in came.json["fields"], came.json)
                    came = visitor.ask("/ticks/5")
                    expect.equal(f"{kind.version}: a stream", (came.status, came.body.count(b"data: ")), (200, 5))


def websockets(rig):
    tunnel = tunnel_of(rig.server, "agent-ws")
    with background(tunnel):
        served(tunnel)
        websocket = WebSocket(rig.server, tunnel.host, "/ws")
        expect.equal("the WebSocket opens", websocket.response.status, 101)
        for message in (b"one", b"x" * 70_000, b""):
            websocket.send(2, message)
            expect.equal("a message comes back", websocket.receive(), (2, message))
        websocket.send(9, b"there?")
        expect.equal("a ping is answered", websocket.receive(), (10, b"there?"))
        websocket.send(8, b"\x03\xe8")
        expect.equal("the Close is answered", websocket.close_code(), 1000)
        websocket.close()


def command(tunnel, place, way):
    server = tunnel.server
    url = server.url if way == "api" else f"https://adit.localhost:{server.edge_port}"
    key = pathlib.Path(place) / "key"
    key.write_text(server.key)
    script = pathlib.Path(__file__).parent.parent / "native_agent.py"
    words = ["--url", url, "--root", server.root_certificate, "--tunnel", tunnel.handle, "--api-key-file", key]
    return subprocess.Popen([sys.executable, script, *words], stderr=subprocess.PIPE, text=True)


def shell(rig):
    for way in ("zone", "api"):
        tunnel = tunnel_of(rig.server, f"shell-{way}")
        with tempfile.TemporaryDirectory() as place:
            with command(tunnel, place, way) as process:
                expect.that("it says when it is attached", "attached" in process.stderr.readline())
                served(tunnel)
                process.send_signal(signal.SIGTERM)
                expect.equal("it ends when it is told to", process.wait(10), 0)
            expect.status(
                "the tunnel is deleted", rig.server.ask("DELETE", f"/api/v1/identities/{tunnel.handle}"), 200, 204
            )
            with command(tunnel, place, way) as process:
                expect.equal("what is refused for good has a status", process.wait(10), REFUSED)
                expect.that("and words", "403" in process.stderr.read())


def superseded(rig):
    tunnel = tunnel_of(rig.server, "agent-over")
    with background(tunnel) as first:
        served(tunnel)
        with background(tunnel) as second:
            expect.until("the first hears of it", 5, lambda: first.agent._status == SUPERSEDED)
            served(tunnel)
            first._thread.join(10)
            expect.that("and is gone", not first._thread.is_alive(), first.heard)
            time.sleep(0.5)
            expect.equal("the second stays", second.heard.count("superseded"), 0)


def server_restarts(rig):
    with rig.another(grace_period="5s") as server:
        tunnel = tunnel_of(server, "agent-restart")
        server._edge_port, port = server.edge_port, server.port
        with background(tunnel) as agent:
            served(tunnel)
            expect.equal("the server ends", server.stop(), 0)
            expect.that("and has said so", "drain" in agent.heard, agent.heard)
            server.start()
            served(tunnel, 40)
        assert port


def leaves(rig):
    tunnel = tunnel_of(rig.server, "agent-leaves")
    with background(tunnel) as agent:
        served(tunnel)
        visitor = VisitorOne(tunnel)
        visitor.send(f"GET /ticks/20 HTTP/1.1\r\nHost: {tunnel.host}\r\n\r\n".encode())
        head = visitor.head()
        agent._loop.call_soon_threadsafe(agent.agent.stop)
        rest = visitor._until(b"0\r\n\r\n", 10)
        expect.equal("what is open comes to its end", (head.status, rest.count(b"data: ")), (200, 20))
        agent._thread.join(5)
        expect.that("then the server closes", not agent._thread.is_alive(), agent.heard)
