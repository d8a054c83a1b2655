"""gRPC, by grpcio on both ends, through edge and passthrough tunnels of `tunnel-agent`.

All four kinds of calls, each message as it is said; deadlines, cancellations, errors that are
trailers only, metadata, compression, and messages of 4 MiB.

    judges/bin/python grpc_streams.py --server ../target/release/api-server --agent ../target/release/tunnel-agent
"""

import concurrent.futures
import contextlib
import pathlib
import queue
import tempfile
import threading
import time
from functools import partial

import grpc

import expect
from agent import Elsewhere, Scene
from expect import until
from server import arguments
from targets import Secure
from visitor import fetch, trust

MIB = 1 << 20
PATIENCE = 20.0
LATE = 0.5
SERVICE = "interop.Streams"
SIZES = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


def main():
    parser = arguments(__doc__)
    parser.add_argument("--agent", required=True, metavar="PATH", help="the tunnel-agent binary")
    parser.add_argument("--only", default="", metavar="WORD", help="run the checks that have it in their name")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        place = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adit-interop-")))
        scene = stack.enter_context(Scene(options, place))
        checks = []
        secure = Secure(scene.place, "localhost")
        trusting = ["--forward-ca", secure.root]
        for what, tls_mode, site, flags in (
            ("edge", "edge", Site(), []),
            ("passthrough", "passthrough", Site(), []),
            ("over-tls", "edge", Site(secure), trusting),
        ):
            stack.enter_context(site)
            stack.enter_context(scene.agent(f"grpc-{what}", site, *flags, tls_mode=tls_mode))
            for name, check in CHECKS.items():
                new = partial(channel, scene, f"grpc-{what}")
                checks.append((f"{what}: {name}", partial(check, site, new)))
        checks.append(("an application that does not speak HTTP/2", partial(not_http2, scene, secure)))
        checks.append(("an application that is gone", partial(gone, scene)))
        checks.append(("an agent that is gone", partial(offline, scene)))
        expect.each([check for check in checks if options.only in check[0]], at_once=2)


def channel(scene, name, *options):
    """A visitor's; its connection is its own."""
    credentials = grpc.ssl_channel_credentials(pathlib.Path(scene.root).read_bytes())
    host = scene.host(name)
    named = (("grpc.ssl_target_name_override", host), ("grpc.default_authority", f"{host}:{scene.port}"))
    alone = (("grpc.use_local_subchannel_pool", 1),)
    return grpc.secure_channel(f"127.0.0.1:{scene.port}", credentials, (*named, *alone, *SIZES, *options))


def call(on, kind, method):
    """`kind` is one of grpcio's four; messages are octets."""
    return getattr(on, kind)(f"/{SERVICE}/{method}")


class Site:
    """The application: a server of grpcio that speaks HTTP/2, with a certificate if there is one."""

    def __init__(self, secure=None):
        self._secure = secure
        self.said, self.left = queue.SimpleQueue(), queue.SimpleQueue()
        self.talk_ended, self.slow_ended = queue.SimpleQueue(), queue.SimpleQueue()

    def __enter__(self):
        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(80), options=SIZES)
        handlers = {
            "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "Count": grpc.unary_stream_rpc_method_handler(self.count),
            "Join": grpc.stream_unary_rpc_method_handler(self.join),
            "Talk": grpc.stream_stream_rpc_method_handler(self.talk),
            "Slow": grpc.unary_unary_rpc_method_handler(self.slow),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "FailLater": grpc.unary_stream_rpc_method_handler(self.fail_later),
        }
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        if self._secure is None:
            self.url = f"h2c://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        else:
            pair = (self._secure.key.read_bytes(), self._secure.root.read_bytes())
            port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
            self.url = f"h2://localhost:{port}"
        self._server.start()
        return self

    def __exit__(self, *_error):
        self._server.stop(0).wait()

    def echo(self, request, context):
        got = [each for each in context.invocation_metadata() if each.key in ("x-one", "x-two-bin")]
        back = {"x-one": "x-one-back", "x-two-bin": "x-two-back-bin"}
        context.send_initial_metadata([(back[each.key], each.value) for each in got])
        context.set_trailing_metadata([("x-octets", str(len(request))), ("x-last-bin", b"\x00\xff")])
        return request

    def count(self, request, context):
        """So many messages, which say when they were said."""
        for number in range(int(request)):
            yield b"%d %f" % (number, time.monotonic())
            time.sleep(0.02)

    def join(self, requests, _context):
        parts = []
        for each in requests:
            self.said.put((each, time.monotonic()))
            parts.append(each)
        return b"".join(parts)

    def talk(self, requests, context):
        context.add_callback(lambda: self.talk_ended.put("talk"))
        for each in requests:
            yield each.upper()

    def slow(self, request, context):
        ended = threading.Event()
        context.add_callback(ended.set)
        self.left.put(context.time_remaining())
        self.slow_ended.put(ended.wait(10) and not context.is_active())
        return request

    def fail(self, request, context):
        context.set_trailing_metadata([("x-why", "because")])
        context.abort(grpc.StatusCode[request.decode()], "not there: 100 % ü")

    def fail_later(self, request, context):
        for number in range(3):
            yield b"%d" % number
        context.abort(grpc.StatusCode.DATA_LOSS, "after three")


def unary(_site, new):
    with new() as on:
        sent = (("x-one", "1"), ("x-two-bin", bytes(range(256))), ("x-one", "again"))
        for size in (0, 1, 100_000):
            answer, told = call(on, "unary_unary", "Echo").with_call(bytes(size), metadata=sent, timeout=PATIENCE)
            expect.equal(f"{size} octets come back", answer, bytes(size))
            got = [tuple(each) for each in told.initial_metadata() if each.key.startswith("x-")]
            wanted = [("x-one-back", "1"), ("x-one-back", "again"), ("x-two-back-bin", bytes(range(256)))]
            expect.equal("so does the metadata", sorted(got), wanted)
            last = sorted(tuple(each) for each in told.trailing_metadata() if each.key.startswith("x-"))
            expect.equal(
                "and what stands in the trailers", last, [("x-last-bin", b"\x00\xff"), ("x-octets", str(size))]
            )
            expect.equal("OK", told.code(), grpc.StatusCode.OK)
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            packed = call(on, "unary_unary", "Echo")(b"packed " * 10_000, compression=compression, timeout=PATIENCE)
            expect.equal(f"{compression.name}: what was packed, too", packed, b"packed " * 10_000)


def server_streams(_site, new):
    with new() as on:
        late = []
        for number, each in enumerate(call(on, "unary_stream", "Count")(b"50", timeout=PATIENCE)):
            said, at = each.split()
            expect.equal("in order", int(said), number)
            late.append(time.monotonic() - float(at))
        expect.equal("all come", len(late), 50)
        expect.that("each as it is said", max(late) < LATE, max(late))
        expect.equal("none is some, too", list(call(on, "unary_stream", "Count")(b"0", timeout=PATIENCE)), [])


def client_streams(site, new):
    with new() as on:
        late = []

        def words():
            for number in range(20):
                yield b"word %d " % number
                said, at = site.said.get(timeout=5)
                late.append(said == b"word %d " % number)
                expect.that("each comes as it is said", time.monotonic() - at < LATE)

        answer = call(on, "stream_unary", "Join")(words(), timeout=PATIENCE)
        expect.equal("all of it", answer, b"".join(b"word %d " % number for number in range(20)))
        expect.equal("in order", late, [True] * 20)
        expect.equal("nothing at all", call(on, "stream_unary", "Join")(iter(()), timeout=PATIENCE), b"")


def both_stream(_site, new):
    with new() as on:
        said = queue.SimpleQueue()
        answers = call(on, "stream_stream", "Talk")(iter(said.get, None), timeout=PATIENCE)
        for number in range(100):
            said.put(b"word %d" % number)
            expect.equal("an answer to each", next(answers), b"WORD %d" % number)
        said.put(None)
        expect.equal("then the end", list(answers), [])
        expect.equal("OK", answers.code(), grpc.StatusCode.OK)


def deadline(site, new):
    with new() as on:
        began = time.monotonic()
        error = expect_error(partial(call(on, "unary_unary", "Slow"), b"x", timeout=1.0))
        took = time.monotonic() - began
        expect.equal("a deadline is exceeded", error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        expect.that("when it was", 0.9 < took < 2.5, took)
        left = site.left.get(timeout=5)
        expect.that("the application knows of it", left is not None and 0 < left <= 1.0, left)
        expect.equal("and stops", site.slow_ended.get(timeout=8), True)


def cancelled(site, new):
    with new() as on:
        said = queue.SimpleQueue()
        answers = call(on, "stream_stream", "Talk")(iter(said.get, None), timeout=PATIENCE)
        said.put(b"a")
        expect.equal("it has begun", next(answers), b"A")
        answers.cancel()
        expect.equal("the application is told", site.talk_ended.get(timeout=5), "talk")
        said.put(None)
        expect.equal("the connection goes on", call(on, "unary_unary", "Echo")(b"x", timeout=PATIENCE), b"x")


def errors(_site, new):
    with new() as on:
        for name in ("NOT_FOUND", "INVALID_ARGUMENT", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "INTERNAL"):
            error = expect_error(partial(call(on, "unary_unary", "Fail"), name.encode(), timeout=PATIENCE))
            expect.equal(f"{name}: trailers only", (error.code().name, error.details()), (name, "not there: 100 % ü"))
            why = [tuple(each) for each in error.trailing_metadata() if each.key == "x-why"]
            expect.equal("with their metadata", why, [("x-why", "because")])
        came = []

        def reads():
            for each in call(on, "unary_stream", "FailLater")(b"", timeout=PATIENCE):
                came.append(each)

        error = expect_error(reads)
        expect.equal("messages before an error", came, [b"0", b"1", b"2"])
        expect.equal("and the error", (error.code(), error.details()), (grpc.StatusCode.DATA_LOSS, "after three"))
        error = expect_error(partial(call(on, "unary_unary", "Nothing"), b"", timeout=PATIENCE))
        expect.equal("a method that is not there", error.code(), grpc.StatusCode.UNIMPLEMENTED)


def large(_site, new):
    message = bytes(range(256)) * (4 * MIB // 256)
    with new() as on:
        expect.that("4 MiB there and back", call(on, "unary_unary", "Echo")(message, timeout=PATIENCE) == message)
        answers = list(call(on, "stream_stream", "Talk")(iter([message] * 8), timeout=60))
        expect.that("eight of them in a stream", [each == message.upper() for each in answers] == [True] * 8)
        expect.that("up", call(on, "stream_unary", "Join")(iter([message] * 4), timeout=60) == message * 4)


def many(_site, new):
    with new() as on:
        talk = call(on, "stream_stream", "Talk")

        def one(number):
            return list(talk(iter([b"%d" % number] * 20), timeout=PATIENCE))

        with concurrent.futures.ThreadPoolExecutor(40) as pool:
            came = list(pool.map(one, range(40)))
        expect.equal("40 at once on one connection do not mix", came, [[b"%d" % number] * 20 for number in range(40)])


def not_http2(scene, secure):
    with secure as site:
        # TLS, but HTTP/1.1 only.
        port = site.url.rpartition(":")[2]
        elsewhere = Elsewhere(f"h2://localhost:{port}")
        with scene.agent("grpc-not", elsewhere, "--forward-ca", secure.root) as agent:
            page = fetch(trust(scene.root), scene.host("grpc-not"), port=scene.port)
            expect.equal("the visitor gets an error", page.status, 502)
            until("the agent says why", 5, lambda: "upstream-failed" in agent.names)
            expect.that("in words", "https://" in agent.event("upstream-failed")["error"], agent.events)


def gone(scene):
    with Site() as site:
        url = site.url
    site.url = url
    for tls_mode in ("edge", "passthrough"):
        name = f"grpc-gone-{tls_mode}"
        with scene.agent(name, site, tls_mode=tls_mode), channel(scene, name) as on:
            error = expect_error(partial(call(on, "unary_unary", "Echo"), b"", timeout=PATIENCE))
            expect.equal(f"{tls_mode}: UNAVAILABLE", error.code(), grpc.StatusCode.UNAVAILABLE)
    page = fetch(trust(scene.root), scene.host("grpc-gone-edge"), port=scene.port)
    expect.that("and no agent is no answer of ours", page.status in (502, 503), page)


def offline(scene):
    scene.create("grpc-offline")
    with channel(scene, "grpc-offline") as on:
        error = expect_error(partial(call(on, "unary_unary", "Echo"), b"", timeout=PATIENCE))
        expect.equal("UNAVAILABLE", error.code(), grpc.StatusCode.UNAVAILABLE)


def expect_error(does):
    try:
        came = does()
    except grpc.RpcError as error:
        return error
    raise expect.Failed(f"an error\n  came: {came!r}")


CHECKS = {
    "one message, one answer": unary,
    "an answer in many messages": server_streams,
    "a request in many messages": client_streams,
    "both": both_stream,
    "a deadline": deadline,
    "a cancellation": cancelled,
    "errors": errors,
    "4 MiB": large,
    "many at once": many,
}

if __name__ == "__main__":
    expect.run(main)
