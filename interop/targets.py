"""What `tunnel-agent` forwards to, and what applications and visitors see of each other then.

The settings of `connect`, which hold for edge and passthrough tunnels alike; applications that end
TLS themselves, with certificates of their own.

    judges/bin/python targets.py --server ../target/release/api-server --agent ../target/release/tunnel-agent
"""

import contextlib
import http.client
import http.server
import json
import pathlib
import socket
import ssl
import struct
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

import expect
from agent import VERSIONS, Elsewhere, Scene, seen_headers
from application import MIB, Application, filler
from csr import new_key
from expect import until
from server import arguments
from visitor import dial, trust

MODES = ("edge", "passthrough")
PEM = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def main():
    parser = arguments(__doc__)
    parser.add_argument("--agent", required=True, metavar="PATH", help="the tunnel-agent binary")
    parser.add_argument("--only", default="", metavar="WORD", help="run the checks that have it in their name")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        place = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adit-interop-")))
        new_scene = partial(Scene, options, place)
        scene = stack.enter_context(new_scene())
        app = stack.enter_context(Application())
        checks = [
            *[(f"{mode}: Host", partial(hosts, scene, app, mode)) for mode in MODES],
            *[(f"{mode}: headers that are set", partial(headers, scene, app, mode)) for mode in MODES],
            *[(f"{mode}: redirects", partial(redirects, scene, app, mode)) for mode in MODES],
            ("its own certificate", partial(own_certificate, scene)),
            ("its own certificate: the server restarts", partial(restarted, new_scene)),
            ("its own certificate: ends and resets", partial(ends, scene)),
            ("its own certificate, and nobody there", partial(nobody, scene)),
            ("its own certificate: a new name", partial(renamed, scene)),
            ("its own certificate on an edge tunnel", partial(on_edge, scene)),
        ]
        expect.each([check for check in checks if options.only in check[0]], at_once=2)


def hosts(scene, app, mode):
    own = app.url.removeprefix("http://")
    for number, (flags, wanted) in enumerate(
        (
            ([], own),
            (["--host-header", "rewrite"], own),
            (["--host-header", "preserve"], None),
            (["--host-header", "intranet.example:81"], "intranet.example:81"),
        )
    ):
        name = f"host-{mode}-{number}"
        with scene.agent(name, app, *flags, tls_mode=mode):
            public = f"{scene.host(name)}:{scene.port}"
            for version in VERSIONS:
                page = scene.curl(name, "/seen", version)
                expect.equal(f"{version} {flags}: Host", seen_headers(page, "host"), [wanted or public])
                expect.equal(f"{version} {flags}: what was called", seen_headers(page, "x-forwarded-host"), [public])
            with scene.websocket(name, "/websocket") as websocket:
                websocket.send("seen")
                told = [value for each, value in json.loads(websocket.receive())["headers"] if each == "host"]
                # This visitor leaves the port out.
                expect.equal(f"{flags}: Host of a WebSocket", told, [wanted or scene.host(name)])


def headers(scene, app, mode):
    name = f"headers-{mode}"
    flags = ["--request-header", "X-Key: for the app", "--request-header", "User-Agent: agent"]
    flags += ["--response-header", "X-Frame-Options: DENY", "--response-header", "X-App: other"]
    with scene.agent(name, app, *flags, tls_mode=mode):
        for version in VERSIONS:
            page = scene.curl(name, "/seen", version, "--header", "x-key: forged")
            expect.equal(f"{version}: what is set is there once", seen_headers(page, "x-key"), ["for the app"])
            expect.equal(f"{version}: also over the visitor's", seen_headers(page, "user-agent"), ["agent"])
            expect.equal(f"{version}: answers have theirs", page.all("x-frame-options"), ["DENY"])
            page = scene.curl(name, "/refuse/403", version)
            expect.equal(f"{version}: also over the app's", page.all("x-app"), ["other"])


def redirects(scene, app, mode):
    own = app.url.removeprefix("http://")
    with scene.agent(f"redirects-{mode}", app, tls_mode=mode):
        public = f"https://{scene.host(f'redirects-{mode}')}:{scene.port}"
        for said, wanted in (
            (f"http://{own}/next?a=b", f"{public}/next?a=b"),
            (f"https://{own}", public),
            ("/next", "/next"),
            ("https://elsewhere.example/", "https://elsewhere.example/"),
        ):
            page = scene.curl(f"redirects-{mode}", "/redirect", "--header", f"x-location: {said}")
            expect.equal(f"a redirect to {said}", (page.status, page.all("location")), (302, [wanted]))
    with scene.agent(f"preserves-{mode}", app, "--host-header", "preserve", tls_mode=mode):
        page = scene.curl(f"preserves-{mode}", "/redirect", "--header", f"x-location: http://{own}/")
        expect.equal("who knows its name says what it means", page.all("location"), [f"http://{own}/"])


class Secure:
    """An application that ends TLS itself, with a certificate that nobody of ours has signed."""

    def __init__(self, place, host):
        key, now = new_key(), datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.root = place / f"{host}.pem"
        self.root.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.key = place / f"{host}.key"
        self.key.write_bytes(key.private_bytes(*PEM))
        self.fingerprint = certificate.fingerprint(hashes.SHA256())

    def context(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.root, self.key)
        return context

    def __enter__(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Host", self.headers["host"])
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_words):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = self.context().wrap_socket(self._server.socket, server_side=True)
        self.url = f"tls://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_error):
        self._server.shutdown()
        self._server.server_close()


def asked(scene, name, app, body):
    """A POST to an application that ends TLS; None where nobody answers."""
    connection = http.client.HTTPSConnection(scene.host(name), scene.port, context=trust(app.root), timeout=10)
    try:
        connection.sock = dial(trust(app.root), scene.host(name), port=scene.port)
        expect.equal("its certificate", connection.sock.getpeercert(binary_form=True), der(app.root))
        connection.request("POST", "/", body)
        answer = connection.getresponse()
        return answer.status, answer.headers["x-host"], answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def der(path):
    return ssl.PEM_cert_to_DER_cert(path.read_text())


def own_certificate(scene):
    name = "own"
    with Secure(scene.place, scene.host(name)) as app:
        with scene.agent(name, app, tls_mode="passthrough") as agent:
            tunnel = scene.tunnel(name)
            shown = {
                field: tunnel.get(field) for field in ("status", "status_reason", "cert_pem", "currently_connected")
            }
            wanted = {"status": "awaiting_cert", "status_reason": None, "cert_pem": None, "currently_connected": True}
            expect.equal("no certificate of ours is there, nor needed", shown, wanted)
            public = f"{scene.host(name)}:{scene.port}"
            for body in (b"", b"sent", filler(4 * MIB)):
                expect.equal("the app answers itself", asked(scene, name, app, body), (200, public, body))
            until("each connection is told of", 5, lambda: agent.names.count("relayed") == 3)
            expect.that("no key is made", not scene.state(name).joinpath("key.pem").exists())
        expect.equal("without the agent nobody answers", asked(scene, name, app, b"x"), None)
        with scene.agent(name, Elsewhere("http://127.0.0.1:1"), create=False):
            expect.equal("an agent that ends TLS has a certificate signed", scene.tunnel(name)["status"], "active")
        with scene.agent(name, app, create=False):
            expect.equal("over which the app's own goes", asked(scene, name, app, b"x")[0], 200)


def restarted(new_scene):
    with new_scene() as scene, Secure(scene.place, scene.host("again")) as app:
        with scene.agent("again", app, tls_mode="passthrough"):
            expect.equal("it serves", asked(scene, "again", app, b"x")[0], 200)
            scene.server.stop()
            scene.server.start()
            until("it serves after a restart", 20, lambda: asked(scene, "again", app, b"x") is not None)


@contextlib.contextmanager
def raw_application():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield Elsewhere(f"tls://127.0.0.1:{listener.getsockname()[1]}"), listener


def ends(scene):
    name = "own-ends"
    with raw_application() as (app, listener), scene.agent(name, app, tls_mode="passthrough"):
        hello = client_hello(scene.host(name))
        visitor, local = joined(scene, listener, hello)
        with visitor, local:
            visitor.sendall(b"more")
            visitor.shutdown(socket.SHUT_WR)
            expect.equal("the visitor's end arrives behind its octets", drained(local), hello + b"more")
            local.sendall(b"still here")
            local.close()
            expect.equal("the app may speak after it", drained(visitor), b"still here")
        visitor, local = joined(scene, listener, hello)
        with visitor, local:
            local.sendall(b"bye")
            local.shutdown(socket.SHUT_WR)
            expect.equal("the app's end arrives", drained(visitor), b"bye")
            visitor.sendall(b"last")
            visitor.close()
            expect.equal("the visitor may speak after it", drained(local), hello + b"last")
        for one, other in ((0, 1), (1, 0)):
            pair = joined(scene, listener, hello)
            pair[0].settimeout(5), pair[1].settimeout(5)
            expect.equal("the hello is there", pair[1].recv(1 << 16), hello)
            pair[one].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            pair[one].close()
            expect.raises("a reset is a reset", ConnectionResetError, pair[other].recv, 1)
            pair[other].close()


def client_hello(host):
    out = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname=host)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


def joined(scene, listener, hello):
    visitor = socket.create_connection(("127.0.0.1", scene.port))
    visitor.sendall(hello)
    return visitor, listener.accept()[0]


def drained(connection):
    connection.settimeout(5)
    came = b""
    while octets := connection.recv(1 << 16):
        came += octets
    return came


def nobody(scene):
    name = "own-nobody"
    with raw_application() as (app, _):
        pass
    with scene.agent(name, app, tls_mode="passthrough") as agent:
        with socket.create_connection(("127.0.0.1", scene.port)) as visitor:
            visitor.sendall(client_hello(scene.host(name)))
            with contextlib.suppress(ConnectionResetError):
                expect.equal("the visitor's connection ends", drained(visitor), b"")
        until("the agent says why", 5, lambda: "upstream-failed" in agent.names)


def renamed(scene):
    old, new = "own-old", "own-new"
    made = scene.ask("POST", "/api/v1/identities", {"agent_handle": old, "tunnel": {"tls_mode": "passthrough"}})
    expect.status("the identity is made", made, 201)
    with Secure(scene.place, scene.host(new)) as app, scene.agent(old, app, create=False) as agent:
        renamed = scene.ask("PATCH", f"/api/v1/identities/{old}", {"agent_handle": new})
        expect.status("it is renamed", renamed, 200)
        until("the new name is served", 10, lambda: asked(scene, new, app, b"x") is not None)
        tunnel = scene.tunnel(new)
        expect.equal("without a word of ours", (tunnel["status"], tunnel.get("status_reason")), ("awaiting_cert", None))
        expect.that("the agent goes on", agent.running)


def on_edge(scene):
    with Secure(scene.place, scene.host("own-edge")) as app:
        scene.create("own-edge")
        with scene.start("own-edge", app) as agent:
            until("the agent ends", 10, lambda: not agent.running)
            expect.that("it says why", "passthrough" in agent.words, agent.words)
            expect.equal("with a status", agent.status, 1)


if __name__ == "__main__":
    expect.run(main)
