"""Other implementations as visitors: nghttp2 (h2load) under load, OpenSSL's command line, curl.

    python3 peers.py --server ../target/release/api-server --agent ../target/release/tunnel-agent
"""

import os
import re
import subprocess
import time

import expect
from application import Application
from server import ZONE, Server, arguments

REQUESTS = 3000


def main():
    parser = arguments(__doc__)
    parser.add_argument("--agent", required=True, metavar="PATH", help="the tunnel-agent binary")
    options = parser.parse_args()
    with Application() as application, Server(options.server) as server:
        agents = [connect(options.agent, server, application, *each) for each in TUNNELS]
        try:
            for name, mode in TUNNELS:
                for protocol in ("h1", "h2"):
                    load(server, name, mode, protocol)
                openssl(server, name, mode)
        finally:
            for agent in agents:
                agent.kill()
                agent.wait()


TUNNELS = [("shop", "edge"), ("bank", "passthrough")]


def connect(binary, server, application, name, mode):
    answer = server.ask("POST", "/api/v1/tunnels", {"tunnel_name": name, "tls_mode": mode})
    expect.status(f"the tunnel {name} is made", answer, 201)
    agent = subprocess.Popen(
        [binary, "connect", name, "--quiet", "--forward-to", application.url, "--server", server.url]
        + ["--edge", f"127.0.0.1:{server.edge_port}", "--ca", server.root_certificate]
        + ["--state-dir", server.data_dir / f"agent-{name}"],
        env={**os.environ, "ADIT_API_KEY": server.key},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        tunnels = server.ask("GET", "/api/v1/tunnels").json["tunnels"]
        if any(each["tunnel_name"] == name and each["currently_connected"] for each in tunnels):
            return agent
        time.sleep(0.05)
    raise AssertionError(f"the agent of {name} did not connect")


def load(server, name, mode, protocol):
    """Twenty connections, and over HTTP/2 ten streams on each."""
    command = ["h2load", "-t1", "-c20", f"-n{REQUESTS}", f"--connect-to=127.0.0.1:{server.edge_port}"]
    command += ["--h1"] if protocol == "h1" else ["-m10"]
    command.append(f"https://{name}.{ZONE}:{server.edge_port}/seen")
    output = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    told = re.search(r"requests: .*? (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output)
    expect.that(f"{mode}: h2load says what it did over {protocol}", told is not None, output)
    expect.equal(f"{mode}: h2load over {protocol}", [int(each) for each in told.groups()], [REQUESTS, 0, 0, 0])


def openssl(server, name, mode):
    """The chain verifies up to the root, for the name, in both versions; ALPN is agreed on."""
    host = f"{name}.{ZONE}"
    for version in ("-tls1_2", "-tls1_3"):
        for alpn in ("h2", "http/1.1"):
            command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.edge_port}", "-servername", host, version]
            command += ["-alpn", alpn, "-CAfile", str(server.root_certificate), "-verify_hostname", host]
            command += ["-verify_return_error", "-x509_strict"]
            output = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding="latin-1", timeout=30).stdout
            what = f"{mode}: openssl s_client {version} {alpn}"
            expect.that(f"{what} verifies", "Verify return code: 0 (ok)" in output, output)
            expect.that(f"{what} is agreed on", f"ALPN protocol: {alpn}" in output, output)
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.edge_port}", "-servername", f"nobody.{ZONE}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding="latin-1", timeout=30)
    expect.that("an unknown name gets the alert for it", "unrecognized name" in done.stderr.lower(), done.stderr)


if __name__ == "__main__":
    expect.run(main)
