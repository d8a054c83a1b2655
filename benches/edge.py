"""Measures the data plane, each figure as a ratio to a reference of the same run.

    cargo build --release -p api-server -p tunnel-agent -p sdk-agent
    python3 benches/edge.py --server target/release/api-server --agent target/release/tunnel-agent \\
        --sdk-agent target/release/sdk-agent

Needs nginx, HAProxy and h2load (Debian: nginx-light haproxy nghttp2-client), curl, and
nobody else on the machine. Everything is on loopback; CPU is read from /proc.
`--sdk-agent` has the wire of the published SDKs measured in the same run. `--preload` gives the
server another allocator (Debian: libmimalloc2.0, libjemalloc2); `--haproxy` takes a newer one.
`--only NAME,..` runs a part: edge, passthrough, distance, memory, recovery, changes.
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "interop"))
from server import Server, ZONE, _free_ports as free_ports  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1024 * 1024


class Place:
    """The server, two agents, and the programs that we are compared with."""

    def __init__(self, options):
        self.options = options
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="adit-bench-"))
        os.chmod(self.directory, 0o755)
        self.processes = []
        self.plain, self.tls, self.haproxy, self.tls_edge, self.listening = free_ports(5)
        self.server = Server(options.server, edge_port=self.listening, grace_period="5s")

    def __enter__(self):
        self.server.start()
        for name, mode in (("shop", "edge"), ("bank", "passthrough")):
            answer = self.server.ask("POST", "/api/v1/tunnels", {"tunnel_name": name, "tls_mode": mode})
            assert answer.status == 201, answer
        self.agents = {name: self.agent(name) for name in ("shop", "bank")}
        self.references()
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()
        self.server.kill9()
        shutil.rmtree(self.directory, ignore_errors=True)

    def spawn(self, *command, **kwargs):
        process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **kwargs)
        self.processes.append(process)
        return process

    def agent(self, name, edge_port=None):
        log = open(self.directory / f"{name}.log", "ab")
        process = self.spawn(
            self.options.agent, "connect", name, "--quiet", "--forward-to", f"http://127.0.0.1:{self.plain}",
            "--server", self.server.url, "--edge", f"127.0.0.1:{edge_port or self.server.edge_port}",
            "--ca", self.server.root_certificate, "--state-dir", self.directory / f"state-{name}",
            env={**os.environ, "ADIT_API_KEY": self.server.key}, stderr=log,
        )
        self.wait_until_connected(name)
        return process

    def sdk_agent(self, name):
        """One that speaks the wire of the published SDKs."""
        key = self.directory / "key"
        key.write_text(self.server.key)
        process = self.spawn(
            self.options.sdk_agent, name, "--forward-to", f"http://127.0.0.1:{self.plain}",
            "--server", self.server.url, "--edge-port", self.server.edge_port, "--api-key-file", key,
            "--ca", self.server.root_certificate, "--state-dir", self.directory / f"state-{name}",
            stderr=subprocess.DEVNULL,
        )
        self.wait_until_connected(name)
        return process

    def wait_until_connected(self, name):
        for _ in range(200):
            tunnels = self.server.ask("GET", "/api/v1/tunnels").json["tunnels"]
            if any(tunnel["tunnel_name"] == name and tunnel["currently_connected"] for tunnel in tunnels):
                time.sleep(0.2)
                return
            time.sleep(0.05)
        raise RuntimeError(f"{name} did not connect: {(self.directory / f'{name}.log').read_text()}")

    def references(self):
        """nginx as the application, in clear and with TLS, and HAProxy before both: by SNI, and as an edge that ends TLS."""
        files = self.directory / "files"
        files.mkdir()
        (files / "large").write_bytes(os.urandom(30 * MIB))
        with open(files / "huge", "wb") as huge:
            huge.truncate(1024 * MIB)
        state = self.directory / "state-bank"
        (self.directory / "nginx.conf").write_text(f"""
            worker_processes 1; daemon off; pid {self.directory}/nginx.pid; error_log /dev/null;
            events {{ worker_connections 8192; }}
            http {{
                access_log off; keepalive_requests 100000000; keepalive_timeout 600; sendfile on;
                client_body_temp_path {self.directory}/b; proxy_temp_path {self.directory}/p;
                fastcgi_temp_path {self.directory}/f; uwsgi_temp_path {self.directory}/u; scgi_temp_path {self.directory}/s;
                ssl_certificate {state}/cert.pem; ssl_certificate_key {state}/key.pem; ssl_protocols TLSv1.3;
                server {{
                    listen 127.0.0.1:{self.plain}; listen 127.0.0.1:{self.tls} ssl;
                    location / {{ return 200 "hello from the application\\n"; }}
                    location /files/ {{ alias {files}/; }}
                }}
            }}""")
        pem = (state / "cert.pem").read_text() + (state / "key.pem").read_text()
        (self.directory / "bank.pem").write_text(pem)
        (self.directory / "haproxy.cfg").write_text(f"""
global
    nbthread 1
    maxconn 8192
defaults
    mode tcp
    timeout client 600s
    timeout server 600s
    timeout connect 5s
frontend in
    bind 127.0.0.1:{self.haproxy}
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    use_backend bank if {{ req.ssl_sni -i bank.{ZONE} }}
backend bank
    server bank 127.0.0.1:{self.tls}
frontend edge
    mode http
    bind 127.0.0.1:{self.tls_edge} ssl crt {self.directory}/bank.pem alpn http/1.1 ssl-min-ver TLSv1.3
    default_backend plain
backend plain
    mode http
    server plain 127.0.0.1:{self.plain}
""")
        self.spawn("nginx", "-c", self.directory / "nginx.conf", "-p", self.directory, stderr=subprocess.DEVNULL)
        self.spawn(self.options.haproxy, "-f", self.directory / "haproxy.cfg", "-db", stderr=subprocess.DEVNULL)
        time.sleep(0.7)

    def load(self, url, port, clients, seconds, *more):
        """h2load over HTTP/1.1 for a while."""
        where = [] if port is None else [f"--connect-to=127.0.0.1:{port}"]
        command = ["h2load", "--h1", "-t1", f"-c{clients}", f"-D{seconds}", *where, *more, url]
        return Load(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def handshakes(self, url, port, connections):
        command = ["h2load", "--h1", "-t1", f"-c{connections}", f"-n{connections}", f"--connect-to=127.0.0.1:{port}", url]
        begun = time.monotonic()
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert Load(output).succeeded == connections, output
        return connections / (time.monotonic() - begun)

    def download(self, name, path, port):
        """Bytes a second of one stream."""
        host = f"{name}.{ZONE}"
        command = ["curl", "-sS", "--http1.1", "-o", "/dev/null", "-w", "%{speed_download} %{http_code}", "--max-time", "60",
                   "--cacert", self.server.root_certificate, "--resolve", f"{host}:{port}:127.0.0.1", f"https://{host}:{port}{path}"]
        speed, status = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout.split()
        assert status == "200", status
        return float(speed)

    def time(self, name, port):
        """Seconds of one request on a connection of its own."""
        host = f"{name}.{ZONE}"
        command = ["curl", "-sS", "-o", "/dev/null", "-w", "%{time_total}", "--cacert", self.server.root_certificate,
                   "--resolve", f"{host}:{port}:127.0.0.1", f"https://{host}:{port}/"]
        return float(subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout)

    def cpu(self, *processes):
        return [Cpu(pid) for pid in processes]


class Load:
    """What h2load says."""

    def __init__(self, output):
        self.rate = float(re.search(r"([\d.]+) req/s", output).group(1))
        self.succeeded = int(re.search(r"(\d+) succeeded", output).group(1))
        self.failed = int(re.search(r"(\d+) failed", output).group(1))
        times = re.search(r"time for request:\s+(\S+)\s+(\S+)\s+(\S+)", output).groups()
        self.least, self.most, self.mean = map(seconds, times)


class Cpu:
    def __init__(self, pid):
        self.pid, self.before = pid, self.now(pid)

    @staticmethod
    def now(pid):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def micros_per(self, requests):
        return (self.now(self.pid) - self.before) * 1e6 / requests


def seconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()
    return float(number) * {"us": 1e-6, "ms": 1e-3, "s": 1}[unit]


def rss(pid):
    return int(re.search(r"VmRSS:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text()).group(1))


def say(what, measured, goal):
    print(f"{what:<58} {measured:<44} {goal}", flush=True)


def edge(place):
    duration = place.options.seconds
    direct = place.load(f"http://127.0.0.1:{place.plain}/", None, 32, duration)
    url = f"https://shop.{ZONE}:{place.server.edge_port}/"
    sdk = sdk_edge(place, url, duration) if place.options.sdk_agent else None
    cpus = place.cpu(place.server.pid, place.agents["shop"].pid)
    through = place.load(url, place.server.edge_port, 32, duration)
    server, agent = (cpu.micros_per(through.succeeded) for cpu in cpus)
    say("direct to nginx, 32 clients", f"{direct.rate:,.0f}/s", "")
    say("edge tunnel, 32 clients", f"{through.rate:,.0f}/s, {through.rate / direct.rate:.3f} x direct", ">= 0.12 x")
    say("  CPU of server and agent per request", f"{server:.1f} + {agent:.1f} us", "<= 30 + 30 us")
    if sdk:
        rate, cpu = through.rate / sdk[0], (server + agent) / sdk[1]
        say("  beside the wire of the SDKs in this run", f"{rate:.2f} x its rate, {cpu:.2f} x its CPU", ">= 1.35 x, <= 0.72 x")
    say("  latency, mean and worst", f"{through.mean * 1e3:.2f} / {through.most * 1e3:.2f} ms", "p99 <= 3 ms")
    alone_direct = place.load(f"http://127.0.0.1:{place.plain}/", None, 1, duration)
    alone = place.load(url, place.server.edge_port, 1, duration)
    added = (alone.mean - alone_direct.mean) * 1e3
    near = place.load(f"https://bank.{ZONE}:{place.tls_edge}/", place.tls_edge, 1, duration)
    more = (alone.mean - near.mean) * 1e3
    say("edge tunnel, one client, added latency (mean)", f"{added:.3f} ms", "<= 0.20 ms")
    say("  more than HAProxy's TLS edge, which has no tunnel", f"{more:.3f} ms", "<= 0.055 ms")
    one = place.download("bank", "/files/huge", place.tls_edge)
    other = place.download("shop", "/files/huge", place.server.edge_port)
    say("edge tunnel, one download", f"{other / 1e6:,.0f} MB/s, {other / one:.2f} x HAProxy's TLS edge ({one / 1e6:,.0f})", ">= 0.65 x")
    failed = through.failed + alone.failed
    say("  failed", str(failed), "0")


def sdk_edge(place, url, duration):
    """The same with an agent of the published SDKs' wire: requests a second, and microseconds for one."""
    kill(place.agents["shop"])
    agent = place.sdk_agent("shop")
    cpus = place.cpu(place.server.pid, agent.pid)
    through = place.load(url, place.server.edge_port, 32, duration)
    server, its = (cpu.micros_per(through.succeeded) for cpu in cpus)
    say("edge tunnel over the wire of the SDKs, 32 clients", f"{through.rate:,.0f}/s", "")
    say("  CPU of server and agent per request", f"{server:.1f} + {its:.1f} us", "")
    kill(agent)
    place.agents["shop"] = place.agent("shop")
    return through.rate, server + its


def kill(process):
    process.kill()
    process.wait()
    # The server has seen it leave.
    time.sleep(0.5)


def passthrough(place):
    duration = place.options.seconds
    url, port = f"https://bank.{ZONE}:{place.server.edge_port}", place.server.edge_port
    reference = place.load(f"https://bank.{ZONE}:{place.haproxy}/", place.haproxy, 32, duration)
    cpus = place.cpu(place.server.pid, place.agents["bank"].pid)
    through = place.load(f"{url}/", port, 32, duration)
    server, agent = (cpu.micros_per(through.succeeded) for cpu in cpus)
    say("HAProxy by SNI to nginx, no tunnel, 32 clients", f"{reference.rate:,.0f}/s", "")
    say("passthrough tunnel, 32 clients", f"{through.rate:,.0f}/s, {through.rate / reference.rate:.2f} x HAProxy", ">= 0.45 x")
    say("  CPU of server and agent per request", f"{server:.1f} + {agent:.1f} us", "")
    one, other = place.handshakes(f"https://bank.{ZONE}:{place.haproxy}/", place.haproxy, 3000), place.handshakes(f"{url}/", port, 3000)
    say("passthrough tunnel, new connections", f"{other:,.0f}/s, {other / one:.2f} x HAProxy ({one:,.0f}/s)", ">= 0.65 x")
    one, other = place.download("bank", "/files/huge", place.haproxy), place.download("bank", "/files/huge", port)
    say("passthrough tunnel, one download", f"{other / 1e6:,.0f} MB/s, {other / one:.2f} x HAProxy ({one / 1e6:,.0f})", ">= 0.6 x")


def distance(place):
    """An agent that is 80 ms away, behind a proxy that holds every octet for 40 ms."""
    for milliseconds in (0, 20, 80):
        with Delay(place.server.edge_port, milliseconds / 2000) as delay:
            agent = place.agent("bank", delay.port)
            place.agents["bank"] = agent
            before = rss(place.server.pid)
            most = Peak(place.server.pid)
            speed = place.download("bank", "/files/huge", place.server.edge_port)
            grown = most.stop() - before
            goal = ">= 60 MB/s, <= 64 MiB an agent" if milliseconds == 80 else ""
            say(f"one download, agent {milliseconds} ms away", f"{speed / 1e6:,.0f} MB/s, server grew {grown / 1024:.0f} MiB", goal)
            asked = sorted(place.time("bank", place.server.edge_port) for _ in range(9))[4]
            say("  a new request, median of 9", f"{asked * 1e3:.0f} ms", "<= 170 ms" if milliseconds == 80 else "")
            agent.kill()
    place.agents["bank"] = place.agent("bank")


class Peak:
    def __init__(self, pid):
        self.pid, self.most, self.done = pid, 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self):
        while not self.done.wait(0.02):
            self.most = max(self.most, rss(self.pid))

    def stop(self):
        self.done.set()
        self.thread.join()
        return self.most


class Delay:
    """A TCP proxy that passes octets on after a while; as many as come."""

    def __init__(self, target, delay):
        self.target, self.delay = target, delay
        self.loop = asyncio.new_event_loop()

    def __enter__(self):
        started = threading.Event()

        async def serve():
            server = await asyncio.start_server(self.connection, "127.0.0.1", 0, limit=8 * MIB)
            self.port = server.sockets[0].getsockname()[1]
            started.set()

        def run():
            self.loop.create_task(serve())
            self.loop.run_forever()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        started.wait()
        return self

    def __exit__(self, *_):
        async def end():
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.loop.call_soon(self.loop.stop)

        asyncio.run_coroutine_threadsafe(end(), self.loop)
        self.thread.join()
        self.loop.close()

    async def connection(self, reader, writer):
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self.target, limit=8 * MIB)
        with contextlib.suppress(asyncio.CancelledError):
            pumps = self.pump(reader, other_writer), self.pump(other_reader, writer)
            await asyncio.gather(*pumps, return_exceptions=True)

    async def pump(self, reader, writer):
        queue = asyncio.Queue()

        async def write():
            while (item := await queue.get()) is not None:
                due, data = item
                wait = due - self.loop.time()
                if wait > 0:
                    await asyncio.sleep(wait)
                writer.write(data)
                await writer.drain()
            writer.close()

        task = self.loop.create_task(write())
        while data := await reader.read(1024 * 1024):
            queue.put_nowait((self.loop.time() + self.delay, data))
        queue.put_nowait(None)
        await task


def memory(place):
    """Resident memory that each of many adds, on a server that has served nobody else: a heap
    that earlier work has grown takes hundreds of agents before it grows again."""
    say("memory of a fresh server", f"{fresh(place, lambda *_: 0)[1] / 1024:.1f} MiB", "<= 25 MiB")
    for count in (200, 1000):
        grown, _ = fresh(place, idle_agents, count)
        say(f"memory of an idle TLS agent (of {count})", f"{grown:.1f} KiB", "<= 60 KiB")
    grown, _ = fresh(place, idle_sdk_agents, 1000)
    say("memory of an idle TLS agent of the SDKs with 32 intakes (of 1000)", f"{grown:.1f} KiB", "<= 60 KiB")
    grown, _ = fresh(place, idle_visitors, 400)
    say("memory of an idle TLS visitor (of 400)", f"{grown:.1f} KiB", "<= 25 KiB")
    left(place)


def left(place, count=1000):
    """What a server keeps when many agents, each with visitors of its own, have come and gone."""
    with Server(place.options.server, grace_period="1s", edge_connections_per_address=20_000) as server:
        context = ssl.create_default_context(cafile=str(server.root_certificate))
        before = rss(server.pid)
        with contextlib.ExitStack() as peers:
            for peer in (*idle_agents(server, context, count), *idle_visitors(server, context, count)):
                peers.callback(peer.close)
            most = rss(server.pid)
        # The last entries of tunnels go after a few seconds, and allocators tidy up when they are used.
        for _ in range(30):
            time.sleep(1.0)
            server.ask("GET", "/api/v1/tunnels?limit=1")
        after = rss(server.pid)
        say(f"memory half a minute after {count} agents and visitors left", f"{after / before:.2f} x of before "
            f"({before / 1024:.0f}, {most / 1024:.0f}, {after / 1024:.0f} MiB)", "<= 1.5 x")


def fresh(place, come, count=1):
    """A new server, where `come` brings `count` peers: KiB for each but the first, and KiB before."""
    with Server(place.options.server, grace_period="1s") as server, contextlib.ExitStack() as peers:
        time.sleep(0.5)
        base = rss(server.pid)
        context = ssl.create_default_context(cafile=str(server.root_certificate))
        arrivals = come(server, context, count)
        if not arrivals:
            return 0, base
        # The first one has the certificate made, and the code read from disk.
        peers.callback(next(arrivals).close)
        time.sleep(0.5)
        before = rss(server.pid)
        for peer in arrivals:
            peers.callback(peer.close)
        time.sleep(2.0)
        return (rss(server.pid) - before) / (count - 1), base


def idle_agents(server, context, count):
    return idle(idle_agent, "http/1.1", server, context, count)


def idle_sdk_agents(server, context, count):
    return idle(idle_sdk_agent, "h2", server, context, count)


def idle(come, protocol, server, context, count):
    context.set_alpn_protocols([protocol])
    made = [server.ask("POST", "/api/v1/tunnels", {"tunnel_name": f"idle-{n:04}"}).json for n in range(count)]
    return (come(context, server.edge_port, each["tunnel"]["id"], each["connect_secret"]) for each in made)


def idle_visitors(server, context, count):
    server.ask("POST", "/api/v1/tunnels", {"tunnel_name": "shop"})
    return (idle_visitor(context, server.edge_port) for _ in range(count))


def idle_agent(context, port, tunnel, secret):
    """Attached, with SETTINGS and the first PING acknowledged by hand."""
    connection = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname=ZONE)
    connection.sendall(
        f"POST /_system/attach HTTP/1.1\r\nHost: {ZONE}\r\nConnection: Upgrade\r\nUpgrade: adit-h2\r\n"
        f"Content-Length: 0\r\nAdit-Version: 1\r\nAdit-Tunnel: {tunnel}\r\nAdit-Instance: {os.urandom(16).hex()}\r\n"
        f"X-Tunnel-Secret: {secret}\r\n\r\n".encode()
    )
    received = b""

    def wait_for(octets):
        nonlocal received
        while octets not in received:
            chunk = connection.recv(65536)
            assert chunk, received
            received += chunk
        return received.split(octets, 1)[1]

    frames = wait_for(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    # SETTINGS of our own, and theirs acknowledged.
    connection.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" b"\x00\x00\x00\x04\x01\x00\x00\x00\x00")
    ping = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00"
    if ping not in frames:
        wait_for(ping)
    while len(payload := received.split(ping, 1)[1][:8]) < 8:
        received += connection.recv(65536)
    connection.sendall(b"\x00\x00\x08\x06\x01\x00\x00\x00\x00" + payload)
    return connection


def idle_sdk_agent(context, port, tunnel, secret):
    """HTTP/2 by hand: literal header fields, and nothing that h2 would remember."""
    connection = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname=ZONE)

    def field(name, value):
        name, value = name.encode(), value.encode()
        assert len(name) < 127 and len(value) < 127
        return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value

    def headers(stream, path, *more):
        block = b"".join(field(*pair) for pair in (
            (":method", "POST"), (":scheme", "https"), (":authority", ZONE), (":path", path), ("x-tunnel-id", tunnel), *more))
        return len(block).to_bytes(3, "big") + b"\x01\x05" + stream.to_bytes(4, "big") + block

    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
                       + headers(1, "/_system/hello", ("x-tunnel-secret", secret), ("x-pool-size", "32")))
    received = b""
    while not (found := re.search(rb'"owner_token":"(\w+)"', received)):
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk
    token = found.group(1).decode()
    parked = b"".join(headers(3 + 2 * slot, "/_system/intake", ("x-owner-token", token), ("x-pool-slot", str(slot)))
                      for slot in range(32))
    connection.sendall(parked)
    return connection


def idle_visitor(context, port):
    host = f"shop.{ZONE}"
    connection = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname=host)
    connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert connection.recv(65536).startswith(b"HTTP/1.1 ")
    return connection


def recovery(place):
    server = place.server
    server.kill9()
    begun = time.monotonic()
    server.start()
    context = ssl.create_default_context(cafile=str(server.root_certificate))
    while True:
        try:
            if ask(context, server.edge_port) == 200:
                break
        except OSError:
            pass
        time.sleep(0.005)
    say("kill -9 and started again: until a visitor is served", f"{time.monotonic() - begun:.2f} s", "<= 1 s")


def ask(context, port, timeout=20):
    host = f"shop.{ZONE}"
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as plain:
        with context.wrap_socket(plain, server_hostname=host) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
    return int(answer.split(None, 2)[1]) if answer else 0


def changes(place):
    """Requests without a pause across planned restarts of the server, whose socket
    a supervisor holds, takeovers and upgrades of the agent."""
    options = place.options
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)
        supervised = Server(options.server, edge_socket=listener, grace_period="20s")
        supervised.start()
        place_server, place.server = place.server, supervised
        try:
            supervised.ask("POST", "/api/v1/tunnels", {"tunnel_name": "shop", "tls_mode": "edge"})
            agent = place.agent("shop")
            context = ssl.create_default_context(cafile=str(supervised.root_certificate))
            wanted, failures, done, lock = 10_000, [], [0], threading.Lock()

            def visitor():
                while True:
                    with lock:
                        if done[0] >= wanted:
                            return
                        done[0] += 1
                    try:
                        status = ask(context, supervised.edge_port)
                    except OSError as error:
                        status = repr(error)
                    if status != 200:
                        failures.append(status)

            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                visitors = [pool.submit(visitor) for _ in range(8)]
                happened = []
                for event in ("restart", "takeover", "upgrade", "restart"):
                    time.sleep(1.5)
                    if done[0] >= wanted:
                        break
                    happened.append(event)
                    if event == "restart":
                        supervised.stop()
                        supervised.start()
                    else:
                        # The newer one wins; an upgrade is the same, and the older is then stopped.
                        newer = place.agent("shop")
                        if event == "upgrade":
                            agent.send_signal(signal.SIGTERM)
                        agent = newer
                for future in visitors:
                    future.result()
            say(f"failed of {wanted:,} requests across {', '.join(happened)}", f"{len(failures)} {set(map(str, failures)) or ''}", "0")
        finally:
            supervised.kill9()
            place.server = place_server


def preloaded(server, library):
    """A script that becomes the server, with another allocator."""
    script = pathlib.Path(tempfile.mkdtemp(prefix="adit-bench-")) / "server"
    script.write_text(f'#!/bin/sh\nLD_PRELOAD={library} exec {pathlib.Path(server).resolve()} "$@"\n')
    script.chmod(0o755)
    return script


PARTS = {"edge": edge, "passthrough": passthrough, "distance": distance, "memory": memory, "recovery": recovery, "changes": changes}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, metavar="PATH")
    parser.add_argument("--agent", required=True, metavar="PATH")
    parser.add_argument("--sdk-agent", type=pathlib.Path, metavar="PATH", help="measure the SDKs' wire beside the native one")
    parser.add_argument("--preload", metavar="PATH", help="the server's allocator, a shared library")
    parser.add_argument("--haproxy", default="haproxy", metavar="PATH", help="the HAProxy beside which we are measured")
    parser.add_argument("--seconds", type=int, default=5, help="of each load [5]")
    parser.add_argument("--only", default=",".join(PARTS), metavar="PART,..")
    options = parser.parse_args()
    options.agent = pathlib.Path(options.agent).resolve()
    options.sdk_agent = options.sdk_agent and options.sdk_agent.resolve()
    if options.preload:
        options.server = preloaded(options.server, options.preload)
    with Place(options) as place:
        for part in options.only.split(","):
            PARTS[part](place)


if __name__ == "__main__":
    main()
