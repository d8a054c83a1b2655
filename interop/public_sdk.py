"""Certificates of a public authority for agents of the published, unmodified Inkbox SDK for Python.

Debian's Pebble issues; the agents' keys stay where the SDK made them; visitors trust Pebble's root and nothing else.
Runs with 0.4.6, the oldest published version, and with 0.7.20, in a network namespace of its own, as `sdk_agent.py`.

    sudo sdk-new/bin/python public_sdk.py --server ../target/release/api-server
"""

import contextlib
import pathlib
import tempfile
from functools import partial

import expect
import netns
from application import Application, sha256
from expect import until
from pebble import Pebble
from sdk_agent import ADDRESS, HOSTS, VERSION, ZONE, Agent, Scene, seen
from server import arguments
from visitor import NO_ANSWER, dial, trust

SETTINGS = {"issuer": "acme", "acme_agree_terms": "true", "acme_contact": "operator@example.org"}


def main():
    options = arguments(__doc__).parse_args()
    netns.enter(HOSTS)
    print(f"inkbox {'.'.join(map(str, VERSION))}", flush=True)
    with contextlib.ExitStack() as stack:
        place = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adit-interop-")))
        upstream = stack.enter_context(Application())
        expect.each(
            [
                ("agents of a zone that strangers trust", partial(served, options.server, place / "1", upstream)),
                ("an order slower than the patience of a call", partial(slow, options.server, place / "2", upstream)),
                ("an authority that is away", partial(away, options.server, place / "3", upstream)),
            ]
        )


class PublicScene(Scene):
    """A server that orders from a Pebble of its own; who visits it trusts that one's root."""

    def __init__(self, binary, place, environment=None, **settings):
        place.mkdir(parents=True)
        super().__init__(binary, place, ZONE, ADDRESS)
        self.authority = Pebble(place / "pebble", https=443, environment=environment)
        self._settings = settings

    def __enter__(self):
        self.authority.__enter__()
        trusted = {"acme_directory": self.authority.directory, "acme_ca": self.authority.trusted}
        self.server.settings |= {**SETTINGS, **trusted, **self._settings}
        super().__enter__()
        self.root = str(self.authority.root)
        self.trust = trust(self.root)
        until("the zone has its certificate", 30, lambda: self.records(host=ZONE))
        return self

    def __exit__(self, *error):
        super().__exit__(*error)
        self.authority.__exit__(*error)

    def records(self, **query):
        asked = "&".join(f"{name}={value}" for name, value in query.items())
        return self.server.ask("GET", f"/api/v1/certificates?{asked}").json["certificates"]

    def shown(self, name):
        """The fingerprint of what a stranger is shown and believes; the error if there is none."""
        try:
            with dial(self.trust, self.host(name)) as connection:
                return sha256(connection.getpeercert(binary_form=True))
        except NO_ANSWER as error:
            return error


def served(binary, place, upstream):
    with PublicScene(binary, place) as scene:
        tunnel = scene.create("pass", tls_mode="passthrough")
        with scene.agent("pass", upstream.url, create=False):
            [record] = scene.records(tunnel_id=tunnel["id"])
            told = record["fingerprint_sha256"].replace(":", "").lower()
            expect.equal("strangers believe the certificate of the SDK's key", scene.shown("pass"), told)
            expect.equal("it is the authority's", record["issuer"], "acme")
            page = scene.curl("pass", "/seen?a=1", "--http1.1")
            expect.equal("and get through to the application", seen(page)["target"], "/seen?a=1")
        with scene.agent("pass", upstream.url, create=False):
            until("it serves again", 15, lambda: scene.shown("pass") == told)
            expect.equal("by the certificate that it has", len(scene.records(tunnel_id=tunnel["id"])), 1)
        with scene.agent("callable"):
            host = scene.host("callable")
            until("a host of the edge has one, too", 30, lambda: scene.records(host=host))
            until("which strangers believe", 15, lambda: not isinstance(scene.shown("callable"), Exception))
            page = scene.curl("callable", "/seen?b=2")
            expect.equal("they get through to the app", seen(page)["target"], "/seen?b=2")


def slow(binary, place, upstream):
    """The first start gives up with a reason; the next one has the same key, joins the order and is served."""
    sleeps = {"PEBBLE_VA_NOSLEEP": "0", "PEBBLE_VA_SLEEPTIME": "8"}
    with PublicScene(binary, place, acme_wait="2s", environment=sleeps) as scene:
        tunnel = scene.create("pass", tls_mode="passthrough")
        starts = impatient(scene, upstream)
        print(f"    {starts} starts until there was a certificate", flush=True)
        expect.that("it takes a few starts", 2 <= starts <= 12, starts)
        expect.equal("all of them one order", len(scene.records(tunnel_id=tunnel["id"])), 1)


def away(binary, place, upstream):
    """As above, with an authority that does not answer and comes back."""
    with PublicScene(binary, place, acme_wait="2s") as scene:
        tunnel = scene.create("pass", tls_mode="passthrough")
        before = scene.authority.root.read_bytes()
        scene.authority.stop()
        agent = start(scene, upstream)
        expect.that(
            "without an authority the agent ends", agent is not None and "503" in said(agent), agent and said(agent)
        )
        scene.authority.start()
        scene.server.kill9()
        scene.server.start()  # with the new roots
        # The zone's own certificate is from before.
        roots = place / "roots.pem"
        roots.write_bytes(before + scene.authority.root.read_bytes())
        scene.root, scene.trust = str(roots), trust(str(roots))
        impatient(scene, upstream)
        expect.equal("one certificate", len(scene.records(tunnel_id=tunnel["id"])), 1)


def impatient(scene, upstream):
    """Starts agents until one is served. Answers how many it took."""
    for count in range(1, 20):
        agent = start(scene, upstream)
        if agent is None:
            return count
        expect.that(
            "it ends with what the server said", "503" in said(agent) and "ask again" in said(agent), said(agent)
        )
    raise expect.Failed("no agent is ever served")


def said(agent):
    """The last line of a process that `connect` has ended."""
    return (agent._log.read_text(errors="replace").strip().splitlines() or [""])[-1]


def start(scene, upstream):
    """The agent, if it has ended; None if it was served, and has been stopped."""
    with contextlib.ExitStack() as stack:
        agent = stack.enter_context(Agent(scene, "pass", upstream.url, scene.server.key, "agent"))
        until("the agent connects, or ends", 30, lambda: "connected" in agent.statuses or not agent.running)
        if not agent.running:
            agent.ended(1)
            return agent
        until("it is served", 15, lambda: not isinstance(scene.shown("pass"), Exception))
        page = scene.curl("pass", "/seen?c=3", "--http1.1")
        expect.equal("strangers get through", seen(page)["target"], "/seen?c=3")
    return None


if __name__ == "__main__":
    expect.run(main)
