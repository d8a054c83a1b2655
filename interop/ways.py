"""The ways to a server: `tunnel-agent connect` through nginx, tinyproxy and microsocks, over IPv6, to the wrong place.

Whatever the way, edge and passthrough tunnels serve as they do without; and where there is no way, the agent says
why, and tries again without haste.

    sudo judges/bin/python ways.py --server ../target/release/api-server --agent ../target/release/tunnel-agent
"""

import contextlib
import functools
import itertools
import json
import pathlib
import signal
import socket
import subprocess
import tempfile
import time

import between
import expect
import netns
from agent import REFUSED, SUPERSEDED, VISITOR_ADDRESS, Scene, seen_headers, still_connected
from application import MIB, Application, filler
from between import GATE, SIX, UPGRADES, Microsocks, Nginx, Tinyproxy, has_six
from expect import until
from server import ZONE, arguments
from visitor import curl, ends, fetch, trust

NOBODY, VISITOR_6 = "fd00::dead", "fd00::7"
HOSTS = {
    "127.0.0.1": [ZONE, GATE, between.DEAD],
    "::1": [SIX, f"over-six-edge.{SIX}", f"over-six-raw.{SIX}"],
    # The only address of IPv6 behind a name that has one of IPv4, too.
    NOBODY: [between.DEAD],
}
# A proxy that is back, or a server: as long as the delay that the agent tells of, and a little for the rest.
REST = 2.0
NUMBERS = itertools.count()


def main():
    parser = arguments(__doc__)
    parser.add_argument("--agent", required=True, metavar="PATH", help="the tunnel-agent binary")
    parser.add_argument("--sdk-agent", metavar="PATH", help="an agent that speaks the wire of the published SDKs")
    parser.add_argument("--stream-module", default=between.STREAM_MODULE, metavar="PATH", help="nginx's module for TCP")
    parser.add_argument("--long", action="store_true", help="links that say nothing for 70 s, and a silent proxy")
    parser.add_argument("--only", default="", metavar="WORD", help="run the checks that have it in their name")
    options = parser.parse_args()
    netns.enter(HOSTS)
    for address in (NOBODY, VISITOR_6):
        subprocess.run(["ip", "-6", "address", "add", f"{address}/128", "dev", "lo", "nodad"], check=False)
    with contextlib.ExitStack() as stack:
        place = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adit-interop-")))
        roots = between.Roots(place)
        scene = stack.enter_context(Scene(options, place))
        scene.file(MIB)
        app = stack.enter_context(Application())
        nginx = stack.enter_context(Nginx(place, scene, roots, options.stream_module))
        way = functools.partial
        checks = [
            ("nginx passes the upgrade", way(nginx_upgrades, scene, app, roots)),
            ("nginx passes TLS by its name", way(nginx_by_name, scene, app, nginx)),
            ("nginx that does not pass the upgrade", way(nginx_does_not, scene, app, roots)),
            ("nginx and the server behind it come back", way(nginx_comes_back, options, place, app, roots)),
            ("tinyproxy", way(through_tinyproxy, scene, app, roots, place)),
            ("microsocks", way(through_microsocks, scene, app, place)),
            ("proxies that refuse", way(proxies_refuse, scene, app, place)),
            ("proxies that come later", way(proxies_come, scene, app, place)),
            ("tinyproxy is killed", way(proxy_killed, scene, app, Tinyproxy(place, 9460))),
            ("microsocks is killed", way(proxy_killed, scene, app, Microsocks(place, 9461))),
            ("a long way", way(from_far, scene, app)),
            ("roots", way(roots_and_names, scene, app, roots)),
            ("servers of other kinds", way(other_servers, scene, app, roots)),
            ("an agent of tomorrow", way(tomorrow, scene, roots)),
        ]
        if has_six():
            checks.append(("over IPv6", way(over_six, scene, options, place, app, roots)))
            checks.append(("a dead address of IPv6", way(dead_address, scene, app, roots, place)))
        else:
            print("skipped: there is no IPv6 here")
        if options.sdk_agent:
            checks.append(("agents of the SDKs beside", way(sdk_beside, scene, app, options.sdk_agent)))
        if options.long:
            checks.insert(0, ("a minute of silence", way(silence, scene, app, roots, place)))
        expect.each([check for check in checks if options.only in check[0]], at_once=3)


# --- what every way must carry -------------------------------------------------------


def serves(scene, app, name, visitor=VISITOR_ADDRESS, streams=True):
    """A visitor gets from `name` what it would get without a tunnel."""
    for version in ("--http1.1", "--http2"):
        page = scene.curl(name, "/seen", version, "--interface", visitor)
        forwarded = f'for="[{visitor}]"' if ":" in visitor else f"for={visitor}"
        said = [seen_headers(page, field) for field in ("x-forwarded-for", "forwarded", "x-forwarded-host")]
        wanted = [[visitor], [forwarded], [f"{scene.host(name)}:{scene.port}"]]
        expect.equal(f"{name} {version}: who asked, and for what", said, wanted)
    page = scene.curl(name, "/echo", "--data-binary", f"@{scene.file(MIB)}")
    expect.equal(f"{name}: 1 MiB there and back", (page.status, page.body == filler(MIB)), (200, True))
    with scene.websocket(name, "/websocket") as websocket:
        websocket.send("hello")
        expect.equal(f"{name}: a WebSocket", websocket.receive(), "hello")
        websocket.send("seen")
        fields = json.loads(websocket.receive())["headers"]
        said = [value for field, value in fields if field == "x-forwarded-for"]
        expect.equal(f"{name}: its visitor", said, ["::1" if ":" in visitor else "127.0.0.1"])
    path = f"/events/{next(NUMBERS)}"
    # Made before two threads ask for it.
    seen_first = app.gates[path]
    with contextlib.ExitStack() as stack:
        if streams:
            events = stack.enter_context(scene.curl_process(name, path, "--no-buffer"))
            expect.equal(f"{name}: the first event, before the last", events.stdout.readline(), b"data: first\n")
            seen_first.set()
            expect.equal(f"{name}: the others", events.stdout.read(), b"\ndata: second\n\n")
            expect.equal(f"{name}: and the end", events.wait(), 0)


@contextlib.contextmanager
def both(scene, app, word, *flags, **more):
    """An agent of an edge tunnel, and one of a passthrough tunnel."""
    with (
        scene.agent(f"{word}-edge", app, *flags, **more) as edge,
        scene.agent(f"{word}-raw", app, *flags, tls_mode="passthrough", **more) as raw,
    ):
        yield edge, raw


def shown(scene, app, word, *flags, visitor=VISITOR_ADDRESS, **more):
    with both(scene, app, word, *flags, **more) as agents:
        for mode in ("edge", "raw"):
            serves(scene, app, f"{word}-{mode}", visitor)
        still_connected(*agents)


def errors(agent):
    return [event["error"] for event in agent.events if event["event"] == "reconnecting"]


def complains(agent, *words, what="", least=2):
    """It says these words, goes on to try, and not in a hurry; it hears when it is to stop."""
    until(f"{what}{words} is said", 12, lambda: any(says(each, words) for each in errors(agent)) or not agent.running)
    expect.that(f"{what}{words}: it goes on", agent.running, agent.words)
    until(f"{what}{words}: it tries again", 12, lambda: len(errors(agent)) >= least)
    delays = [event["delay_ms"] for event in agent.events if event["event"] == "reconnecting"]
    # A quarter more or less, and doubled each time.
    is_patient = all(delay >= 0.75 * 200 * 2**number for number, delay in enumerate(delays))
    expect.that(f"{what}{words}: it takes its time", is_patient, delays)
    agent.signal(signal.SIGTERM)
    agent.ends(0, "it is asked to")


def says(text, words):
    return all(word.lower() in text.lower() for word in words)


# --- nginx ---------------------------------------------------------------------------


def by_nginx(roots, port=UPGRADES, host=GATE):
    return {"at": ["--server", f"https://{host}:{port}"], "ca": roots.root}


def nginx_upgrades(scene, app, roots):
    shown(scene, app, "upgraded", **by_nginx(roots))
    # By the connect secret, by an id, with two links.
    made = scene.create("by-secret")
    flags = ["--connect-secret", made["connect_secret"], "--connections", "2"]
    with scene.agent(made["tunnel"]["id"], app, *flags, create=False, **by_nginx(roots)):
        serves(scene, app, "by-secret")


def nginx_by_name(scene, app, nginx):
    if not nginx.by_name:
        return print("        skipped: nginx has no module for TCP (libnginx-mod-stream)")
    at = ["--server", f"https://{ZONE}:{between.BY_NAME}"]
    with both(scene, app, "by-name", at=at) as agents:
        for mode in ("edge", "raw"):
            serves(scene, app, f"by-name-{mode}")
            # Visitors come the same way, and seem to come from nginx.
            host = scene.host(f"by-name-{mode}")
            there = ["--resolve", f"{host}:{between.BY_NAME}:127.0.0.1", "--interface", VISITOR_ADDRESS]
            page = curl(scene.root, f"https://{host}:{between.BY_NAME}/seen", *there)
            said = [seen_headers(page, name) for name in ("x-forwarded-for", "x-forwarded-host")]
            expect.equal("who asked, as nginx says", said, [["127.0.0.1"], [f"{host}:{between.BY_NAME}"]])
        still_connected(*agents)


def nginx_does_not(scene, app, roots):
    scene.create("not-upgraded")
    for port, words in (
        (between.OLD_HTTP, ["proxy", "does not pass upgrades on"]),
        (between.NO_UPGRADE, ["proxy", "does not pass upgrades on"]),
        (between.NO_PATH, ["404", "proxy", "/_system/attach"]),
    ):
        with scene.start("not-upgraded", app, **by_nginx(roots, port)) as agent:
            complains(agent, *words, what=f"{port}: ")


def nginx_comes_back(options, place, app, roots):
    """Another nginx before another server; a stop of either loses nobody for good."""
    place = pathlib.Path(tempfile.mkdtemp(dir=place))
    with Scene(options, place, grace_period="8s") as scene, Nginx(place, scene, roots, first=9471) as nginx:
        at = by_nginx(roots, nginx.port)
        with both(scene, app, "back", **at) as agents:
            # Old workers stay as long as what they carry.
            nginx.signal(signal.SIGHUP)
            serves(scene, app, "back-raw")
            still_connected(*agents)
            nginx.stop()
            for agent in agents:
                until("a link that nginx cut is missed", 5, lambda agent=agent: errors(agent))
            nginx.start()
            back(scene, app, agents, "back", 1)
            with scene.websocket("back-raw", "/websocket"):
                began = time.monotonic()
                expect.equal("the server stops as it is told to", scene.server.stop(), 0)
                took = time.monotonic() - began
            expect.that("a stop with agents at the API's port is as quick as at the edge's: 2.5 s", took < 5, took)
            scene.server.start()
            # It has another port now.
            nginx.stop()
            nginx.start()
            back(scene, app, agents, "back", 2)


def back(scene, app, agents, word, times):
    """Both are connected once more, as soon as they said, and serve."""
    for agent, mode in zip(agents, ("edge", "raw"), strict=True):
        told = [event["delay_ms"] for event in agent.events if event["event"] == "reconnecting"]
        within = told[-1] / 1000 + REST
        until(f"{word}-{mode} is connected again", within, lambda agent=agent: agent.names.count("connected") > times)
        serves(scene, app, f"{word}-{mode}")


# --- proxies -------------------------------------------------------------------------


def through_tinyproxy(scene, app, roots, place):
    with Tinyproxy(place, 9450) as proxy:
        shown(scene, app, "tiny", "--proxy", proxy.url())
        # As the environment says, for hosts that are not this machine.
        scene.create("tiny-variable")
        way = {"create": False, "variables": {"HTTPS_PROXY": proxy.url()}, **by_nginx(roots)}
        with scene.agent("tiny-variable", app, **way):
            serves(scene, app, "tiny-variable")
        expect.that("through the proxy", f"CONNECT {GATE}:{UPGRADES}" in proxy.log(), proxy.log())
    with Tinyproxy(place, 9451, "BasicAuth user pass.word") as proxy:
        shown(scene, app, "tiny-login", "--proxy", proxy.url("user:pass%2Eword@"))


def through_microsocks(scene, app, place):
    with Microsocks(place, 9452) as proxy:
        shown(scene, app, "socks", "--proxy", proxy.url())
        scene.create("socks-names")
        with scene.agent("socks-names", app, "--proxy", proxy.url().replace("socks5", "socks5h"), create=False):
            serves(scene, app, "socks-names")
    with Microsocks(place, 9453, "-u", "user", "-P", "p@ss:w%rd") as proxy:
        shown(scene, app, "socks-login", "--proxy", proxy.url("user:p%40ss:w%25rd@"))


def proxies_refuse(scene, app, place):
    scene.create("refused")
    to_nobody = ["--server", f"https://{ZONE}:9"]
    with contextlib.ExitStack() as stack:
        login = stack.enter_context(Tinyproxy(place, 9454, "BasicAuth user password"))
        narrow = stack.enter_context(Tinyproxy(place, 9455, "ConnectPort 443"))
        socks = stack.enter_context(Microsocks(place, 9456))
        socks_login = stack.enter_context(Microsocks(place, 9457, "-u", "user", "-P", "password"))
        rows = [
            (login, login.url(), None, "HTTP/1.0 407 Proxy Authentication Required"),
            (login, login.url("user:se%63ret@"), None, "HTTP/1.0 401 Unauthorized"),
            (narrow, narrow.url(), None, "HTTP/1.1 403 Access violation"),
            (socks_login, socks_login.url(), None, "user and password"),
            (socks_login, socks_login.url("user:se%63ret@"), None, "user or password are wrong"),
            (socks, socks.url(), to_nobody, "refuses the connection"),
            # Each is asked for what it does not speak; an HTTP proxy waits for the rest.
            (socks, socks.url().replace("socks5", "http"), None, "does not connect"),
            (login, login.url().replace("http", "socks5"), None, "does not answer"),
        ]
        agents = [stack.enter_context(scene.start("refused", app, "--proxy", url, at=at)) for _, url, at, _ in rows]
        for (proxy, url, _, words), agent in zip(rows, agents, strict=True):
            least = 1 if words == "does not answer" else 2
            complains(agent, f"the proxy 127.0.0.1:{proxy.port}", words, what=f"{url}: ", least=least)
            told = agent.words + json.dumps(agent.events)
            expect.that("passwords are not told", "secret" not in told and "se%63ret" not in told, told)


def proxies_come(scene, app, place):
    for word, proxy in (("later-tiny", Tinyproxy(place, 9458)), ("later-socks", Microsocks(place, 9459))):
        scene.create(word)
        with scene.start(word, app, "--proxy", proxy.url()) as agent:
            until("a proxy that is not there is told of", 5, lambda: len(errors(agent)) >= 3)
            words = ["proxy", f"127.0.0.1:{proxy.port}", "cannot be reached", "refused"]
            expect.that(f"with {words}", says(errors(agent)[0], words), errors(agent))
            with proxy:
                agent.reaches("connected", agent.events[-1]["delay_ms"] / 1000 + REST)
                serves(scene, app, word)


def proxy_killed(scene, app, proxy):
    """Nobody who had a stream waits for ever; the agents are there again as soon as they said."""
    word = f"killed-{proxy.port}"
    with proxy, both(scene, app, word, "--proxy", proxy.url()) as agents, contextlib.ExitStack() as stack:
        streams, sockets = [], []
        for mode in ("edge", "raw"):
            stream = stack.enter_context(scene.curl_process(f"{word}-{mode}", "/ticks/1000/0.05", "--no-buffer"))
            stream.stdout.readline()
            streams.append(stream)
            websocket = stack.enter_context(scene.websocket(f"{word}-{mode}", "/websocket"))
            websocket.send("hello")
            expect.equal("a WebSocket is open", websocket.receive(), "hello")
            sockets.append(websocket)
        proxy.stop()
        began = time.monotonic()
        for stream, websocket in zip(streams, sockets, strict=True):
            stream.stdout.read()
            expect.that("a stream that broke off is not taken for whole", stream.wait() != 0)
            expect.one_of("a WebSocket ends", ends(websocket), "lost", 1001, 1006, 1011, 1012, 1014)
        expect.that("at once", time.monotonic() - began < 3, time.monotonic() - began)
        for agent in agents:
            until("the agents miss the proxy", 5, lambda agent=agent: len(errors(agent)) >= 2)
        proxy.start()
        back(scene, app, agents, word, 1)


# --- roots, addresses ----------------------------------------------------------------


def from_far(scene, app):
    """At `connected` visitors are served, however long the way is."""
    with between.Far(scene.port, 0.3) as far:
        at = ["--server", scene.server.url, "--edge", f"127.0.0.1:{far.port}"]
        for name, mode in (("far-edge", "edge"), ("far-raw", "passthrough")):
            with scene.agent(name, app, at=at, tls_mode=mode):
                page = scene.curl(name, "/seen")
                expect.equal(f"{mode}: `connected` is true", page.status, 200)


def roots_and_names(scene, app, roots):
    scene.create("roots")
    gate = ["--server", f"https://{GATE}:{UPGRADES}"]
    for ca, at, words in (
        # Whoever signed the server's is not who signed nginx's, and the other way round.
        (scene.root, gate, ["cannot connect", "certificate", "UnknownIssuer"]),
        (roots.root, None, ["cannot connect", "certificate", "UnknownIssuer"]),
        (roots.root, ["--server", f"https://{GATE}:{between.OTHER_NAME}"], ["certificate", "not valid for name", ZONE]),
    ):
        with scene.start("roots", app, at=at, ca=ca) as agent:
            complains(agent, *words, what=f"{at}: ")
    with scene.start("roots", app, ca=str(roots.place / "gate.key")) as agent:
        agent.ends(1, "its root is no certificate")
    shown(scene, app, "direct", at=["--server", f"https://{ZONE}:{scene.port}"])


def over_six(main, options, place, app, roots):
    listener = socket.create_server(("::", 0), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
    with Six(options, place, listener, zone=SIX) as scene:
        scene.file(MIB)
        by_name = ["--server", f"https://{SIX}:{scene.port}"]
        by_address = ["--server", scene.server.url, "--edge", f"[::1]:{scene.port}"]
        with both(scene, app, "over-six", at=by_name) as agents:
            for mode in ("edge", "raw"):
                serves(scene, app, f"over-six-{mode}", visitor=VISITOR_6)
                serves(scene, app, f"over-six-{mode}", visitor="::1")
                # Of IPv4, on the same socket.
                host = scene.host(f"over-six-{mode}")
                there = ["--resolve", f"{host}:{scene.port}:127.0.0.1", "--interface", VISITOR_ADDRESS]
                page = curl(scene.root, f"https://{host}:{scene.port}/seen", *there)
                said = [seen_headers(page, name) for name in ("x-forwarded-for", "forwarded")]
                expect.equal("an address of IPv4 is one", said, [[VISITOR_ADDRESS], [f"for={VISITOR_ADDRESS}"]])
            still_connected(*agents)
        with scene.agent("over-six-edge", app, at=by_address, create=False):
            serves(scene, app, "over-six-edge", visitor=VISITOR_6)
        # Nobody is called `::1`.
        with scene.start("over-six-edge", app, at=["--server", f"https://[::1]:{scene.port}"]) as agent:
            complains(agent, "cannot connect", what="an address for a name: ")
    main.create("six-nginx")
    tiny, socks = Tinyproxy(place, 9466, host="::1"), Microsocks(place, 9467, host="::1")
    with tiny, socks:
        for flags in ([], ["--proxy", tiny.url()], ["--proxy", socks.url()]):
            with main.agent("six-nginx", app, *flags, create=False, **by_nginx(roots, host="[::1]")):
                serves(main, app, "six-nginx")
        expect.that("the proxy was asked for the address", f"CONNECT [::1]:{UPGRADES}" in tiny.log(), tiny.log())


class Six(Scene):
    """Visitors come over IPv6."""

    def resolve(self, name):
        return ["--resolve", f"{self.host(name)}:{self.port}:[::1]"]


def dead_address(scene, app, roots, place):
    with contextlib.ExitStack() as stack:
        for port in (scene.port, UPGRADES, 9462):
            nobody = stack.enter_context(socket.create_server((NOBODY, port), family=socket.AF_INET6, backlog=0))
            # Linux drops what comes when nobody accepts and the queue is full.
            for _ in range(4):
                filling = stack.enter_context(socket.socket(socket.AF_INET6))
                filling.setblocking(False)
                filling.connect_ex(nobody.getsockname())
        proxy = stack.enter_context(Tinyproxy(place, 9462))
        scene.create("dead")
        for what, flags, way in (
            ("the edge", [], {"at": ["--server", scene.server.url, "--edge", f"{between.DEAD}:{scene.port}"]}),
            ("the server", [], by_nginx(roots, host=between.DEAD)),
            ("the proxy", ["--proxy", f"http://{between.DEAD}:{proxy.port}"], {}),
        ):
            began = time.monotonic()
            with scene.agent("dead", app, *flags, create=False, **way) as agent:
                took = time.monotonic() - began
                expect.that(f"{what} has a dead address: it takes no longer than 3 s", 0.2 < took < 3, took)
                serves(scene, app, "dead")
                still_connected(agent)


# --- servers and agents of other times -----------------------------------------------


def other_servers(scene, app, roots):
    """What an agent says of each, in the words of docs/native-wire.md where it has some; only Adit's word is final."""
    with contextlib.ExitStack() as stack:

        def started(row):
            server = stack.enter_context(between.Other(roots, row[1]))
            at = ["--server", f"https://{GATE}:{server.port}"]
            return server, stack.enter_context(scene.start(f"other-{server.port}", app, at=at, ca=roots.root))

        running = [started(row) for row in between.OTHERS]
        ended = [started(row) for row in between.FINAL]
        time.sleep(3.5)
        for (what, _, words), (server, agent) in zip(between.OTHERS, running, strict=True):
            complains(agent, *words, what=f"{what}: ")
            if b"Retry-After: 2" in server.answer:
                waits(server, what, 2.0)
            expect.that(f"{what}: it is asked again, without haste", 2 <= len(server.attached) <= 7, server.attached)
            expect.that(f"{what}: nobody was served", "served" not in agent.names, agent.names)
        for (what, _, word), (server, agent) in zip(between.FINAL, ended, strict=True):
            agent.ends(REFUSED, what)
            expect.that(f"{what}: it says so", word in agent.words, agent.words)
            expect.equal(f"{what}: it has asked once", len(server.attached), 1)


def waits(server, what, seconds):
    first, second = server.attached[:2]
    expect.that(f"{what}: the next attempt comes after {seconds} s", second - first >= seconds, second - first)


def tomorrow(scene, roots):
    made = scene.create("tomorrow")
    fields = {"Connection": "Upgrade", "Upgrade": "adit-h2", "X-API-Key": scene.server.key, "Adit-Instance": "0" * 32}
    fields |= {"Adit-Tunnel": made["tunnel"]["id"], "Adit-Of-Tomorrow": "anything", "Content-Length": "0"}
    for what, context, host, port in (
        ("directly", trust(scene.root), ZONE, scene.port),
        ("through nginx", trust(roots.root), GATE, UPGRADES),
    ):
        for versions, status in (("7", 426), ("7, 8", 426), ("7, 1", 101), ("1", 101)):
            asked = {**fields, "Adit-Version": versions}
            came = fetch(context, host, "POST", "/_system/attach", headers=asked, port=port)
            told = (came.status, came.all("adit-version"))
            expect.equal(f"{what}: versions {versions}", told, (status, ["1"]))
            if status == 426:
                document = json.loads(came.body)
                expect.equal(f"{what}: the problem", document["type"], "urn:adit:problem:unsupported-version")
                expect.that(f"{what}: it says which", "Adit-Version: 1" in document["detail"], document)


def sdk_beside(scene, app, binary):
    """Agents of both wires at one server; of one tunnel, whoever came last has it."""
    key = scene.place / "sdk-key"
    key.write_text(scene.server.key)
    shared = ["--server", scene.server.url, "--api-key-file", key, "--ca", scene.root, "--edge-port", str(scene.port)]

    @contextlib.contextmanager
    def sdk_agent(name):
        command = [binary, name, "--forward-to", app.url, *shared, "--state-dir", scene.state(f"sdk-{name}")]
        with open(scene.place / f"{name}.log", "ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def connected(name):
        return scene.tunnel(name)["currently_connected"]

    with both(scene, app, "beside") as agents:
        for name, mode in (("sdk-edge", "edge"), ("sdk-raw", "passthrough")):
            scene.create(name, mode)
            with sdk_agent(name) as old:
                until(f"{name} is connected", 10, lambda name=name: connected(name))
                serves(scene, app, name, streams=mode == "passthrough")
                with scene.agent(name, app, create=False) as new:
                    until(f"{name}: the older one is superseded", 5, lambda old=old: old.poll() is not None)
                    serves(scene, app, name)
                    with sdk_agent(name):
                        new.ends(SUPERSEDED, "an agent of the SDKs takes over")
                        serves(scene, app, name, streams=mode == "passthrough")
        for mode in ("edge", "raw"):
            serves(scene, app, f"beside-{mode}")
        still_connected(*agents)


def silence(scene, app, roots, place):
    """nginx ends what is silent for 60 s; the PINGs keep it. A proxy that says nothing any more is found out."""
    with contextlib.ExitStack() as stack:
        tiny, stopped = (stack.enter_context(Tinyproxy(place, port)) for port in (9463, 9464))
        socks = stack.enter_context(Microsocks(place, 9465))
        ways = {
            "quiet-nginx": stack.enter_context(both(scene, app, "quiet-nginx", **by_nginx(roots))),
            "quiet-tiny": stack.enter_context(both(scene, app, "quiet-tiny", "--proxy", tiny.url())),
            "quiet-socks": stack.enter_context(both(scene, app, "quiet-socks", "--proxy", socks.url())),
        }
        silent = stack.enter_context(both(scene, app, "silent", "--proxy", stopped.url()))
        websockets = [
            stack.enter_context(scene.websocket(f"{word}-{mode}", "/websocket"))
            for word in ways
            for mode in ("edge", "raw")
        ]
        stopped.signal(signal.SIGSTOP)
        began = time.monotonic()
        for agent in silent:
            until("a proxy that says nothing is missed", 36, lambda agent=agent: errors(agent))
        stopped.signal(signal.SIGCONT)
        back(scene, app, silent, "silent", 1)
        time.sleep(began + 70 - time.monotonic())
        for websocket in websockets:
            websocket.send("still here")
            expect.equal("a WebSocket that was silent for 70 s", websocket.receive(), "still here")
        for word, agents in ways.items():
            still_connected(*agents)
            for mode in ("edge", "raw"):
                serves(scene, app, f"{word}-{mode}")


if __name__ == "__main__":
    expect.run(main)
