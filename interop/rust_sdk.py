"""Judges the data plane by the published Inkbox SDK for Rust as an agent.

`rust-sdk/` is a program over the crate of the registry, unmodified but for the roots that
it trusts. It dials port 443 of its zone, so the script runs itself again in a network
namespace of its own. Needs root and `ip`.

    cargo build --manifest-path rust-sdk/Cargo.toml
    python rust_sdk.py --server ../target/release/api-server --agent rust-sdk/target/debug/rust-sdk-agent
"""

import contextlib
import os
import pathlib
import socket
import subprocess
import tempfile
import threading

import expect
import netns
from application import Application, filler, sha256
from server import Server, arguments
from visitor import curl, fetch, trust

ZONE, ADDRESS = "rust.test", "127.0.0.1"
SIZES = (0, 1, 2_031, 2_032, 16_384, 20_000, 65_536, 300_000, 1_000_000, 3_000_000)


def main():
    parser = arguments(__doc__)
    parser.add_argument("--agent", required=True, metavar="PATH", help="the rust-sdk-agent binary")
    options = parser.parse_args()
    netns.enter({ADDRESS: [ZONE, f"edge.{ZONE}", f"pass.{ZONE}"]})
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server((ADDRESS, 443), backlog=1024))
        server = stack.enter_context(Server(options.server, edge_socket=listening, zone=ZONE))
        place = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adit-interop-")))
        upstream = stack.enter_context(Application())
        for name, mode in (("edge", "edge"), ("pass", "passthrough")):
            asked = {"agent_handle": name, "tunnel": {"tls_mode": mode}}
            expect.status(f"the identity {name} is made", server.ask("POST", "/api/v1/identities/", asked), 201)
            stack.enter_context(agent(options.agent, server, place, name, upstream.url))
        checks = [
            (f"{name}: {what}", lambda name=name, check=check: check(server, place, f"{name}.{ZONE}"))
            for name in ("edge", "pass")
            for what, check in (("a request", a_request), ("uploads and downloads", both_ways))
        ]
        expect.each(checks)


@contextlib.contextmanager
def agent(binary, server, place, name, forward_to):
    """One that says that it is connected."""
    home = place / name
    home.mkdir()
    environment = {**os.environ, "ADIT_ROOT": str(server.root_certificate), "HOME": str(home)}
    command = [binary, server.url, server.key, name, forward_to]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    states, connected = [], threading.Event()

    def listen():
        for line in process.stdout:
            states.append(line.strip())
            if line.strip() == "connected":
                connected.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        expect.that(f"the agent of {name} connects", connected.wait(15.0), states)
        yield
    finally:
        process.kill()
        process.wait()


def a_request(server, _place, host):
    page = fetch(trust(str(server.root_certificate)), host, path="/seen?a=1")
    expect.equal("the status", page.status, 200)
    expect.that("what the application saw", b"/seen?a=1" in page.body, page.body)


def both_ways(server, place, host):
    """Every size, byte for byte, over HTTP/1.1 and HTTP/2."""
    root = str(server.root_certificate)
    for size in SIZES:
        sent = filler(size)
        path = place / f"{size}"
        path.write_bytes(sent)
        for version in ("--http1.1", "--http2"):
            page = curl(root, f"https://{host}/echo", version, "--data-binary", f"@{path}")
            expect.equal(f"{size} octets, {version}: the status", page.status, 200)
            expect.equal(f"{size} octets, {version}: what comes back", sha256(page.body), sha256(sent))


if __name__ == "__main__":
    expect.run(main)
