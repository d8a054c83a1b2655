"""Sends the server rubbish: what no client sends, and what an attacker does.

Random bytes, bodies of 10 MiB, JSON 10,000 levels deep, NUL and broken UTF-8
wherever a text may stand, absurd headers, wrong ids, methods and paths, and
10,000 connections that never finish their request. Expects that well-formed
HTTP is refused with a 4xx problem document and anything else with a 4xx or the
end of the connection; never a 5xx, never more than 200 MiB of memory, and that
good requests are answered all the while. Needs no packages.

    python rubbish.py --server ../target/release/api-server
"""

import concurrent.futures
import contextlib
import http.client
import itertools
import json
import random
import resource
import socket
import time
import uuid

import expect
from server import Answer, Server, arguments

MIB = 1 << 20
MOST_MEMORY = 200 * MIB
HALF_OPEN = 10_000
HELD_FOR = 5.0  # seconds
GOOD_WITHIN = 5.0  # seconds for a good request meanwhile
PATIENCE = 60.0  # seconds for any answer to rubbish


def main():
    parser = arguments(__doc__)
    parser.add_argument("--seed", type=int, default=20)
    options = parser.parse_args()
    print(f"seed {options.seed}")
    chance = random.Random(options.seed)
    with Server(options.server) as server:
        subject = Subject(server)
        for section in (
            random_bytes,
            broken_framing,
            absurd_headers,
            large_bodies,
            wrong_content_types,
            broken_json,
            rubbish_in_fields,
            rubbish_in_paths,
            wrong_keys,
            wrong_methods,
            unknown_paths,
            half_open_connections,
        ):
            began = time.monotonic()
            section(server, subject, chance)
            peak = memory_stays_small(server, section.__name__)
            serves_good_requests(server)
            print(
                f"{section.__name__}: {time.monotonic() - began:.1f} s, peak memory so far {peak / MIB:.0f} MiB",
                flush=True,
            )
        never_panicked(server)
        stops_in_spite_of_open_connections(server)


class Subject:
    """What the rubbish is aimed at: an identity and a passthrough tunnel that exist."""

    def __init__(self, server):
        body = {"agent_handle": "subject", "tunnel": {"tls_mode": "passthrough"}}
        identity = server.ask("POST", "/api/v1/identities/", body)
        expect.status("an identity", identity, 200, 201)
        self.identity_id = identity.json["id"]
        self.tunnel = f"/api/v1/tunnels/{identity.json['tunnel']['id']}"
        self.identity = "/api/v1/identities/subject"
        # Every path with the methods it knows.
        self.paths = {
            "/api/v1/tunnels/": {"GET", "POST"},
            self.tunnel: {"GET", "PATCH", "DELETE"},
            f"{self.tunnel}/sign-csr": {"POST"},
            f"{self.tunnel}/restore": {"POST"},
            f"{self.tunnel}/rotate-secret": {"POST"},
            f"{self.tunnel}/force": {"DELETE"},
            "/api/v1/identities/": {"GET", "POST"},
            self.identity: {"GET", "PATCH", "DELETE"},
            "/api/v1/api-keys": {"POST"},
            "/api/whoami": {"GET"},
        }


# --- bytes that are no HTTP, or broken HTTP -----------------------------------


def random_bytes(server, subject, chance):
    samples = [chance.randbytes(chance.randrange(1, 4096)) for _ in range(300)]
    samples += [b"GET /" + chance.randbytes(chance.randrange(1, 512)) + b"\r\n\r\n" for _ in range(100)]
    samples += [b"GET / HTTP/1.1\r\n" + chance.randbytes(chance.randrange(1, 512)) + b"\r\n\r\n" for _ in range(100)]
    samples += [
        b"\0" * 65536,
        b"\r\n" * 65536,
        b"A" * MIB,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        bytes.fromhex("16030100c8010000c40303") + chance.randbytes(200),
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for sample, answer in zip(samples, pool.map(lambda each: speak(server, each, unfinished=True), samples)):
            refused_or_closed(f"{sample[:60]!r}", answer)


def broken_framing(server, subject, chance):
    post = request_head("POST", "/api/v1/tunnels/", server.key, "Content-Type: application/json")
    for what, data in {
        "a negative length": post + b"Content-Length: -1\r\n\r\n{}",
        "a length that is no number": post + b"Content-Length: abc\r\n\r\n{}",
        "a length of 20 digits": post + b"Content-Length: 99999999999999999999\r\n\r\n{}",
        "two lengths": post + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
        "a chunk size that is none": post + b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\n{}\r\n0\r\n\r\n",
        "a chunk size beyond 64 bits": post + b"Transfer-Encoding: chunked\r\n\r\n11111111111111111\r\n{}\r\n0\r\n\r\n",
        "a chunk extension of 1 MiB": post
        + b"Transfer-Encoding: chunked\r\n\r\n2;"
        + b"x" * MIB
        + b"\r\n{}\r\n0\r\n\r\n",
        "trailers of 1 MiB": post + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: " + b"x" * MIB + b"\r\n\r\n",
        "a coding that is not chunked": post + b"Transfer-Encoding: gzip\r\n\r\n{}",
        "a length and chunks": post + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "a body that ends early": post + b"Content-Length: 1000\r\n\r\n{",
        "chunks that end early": post + b"Transfer-Encoding: chunked\r\n\r\n3E8\r\n{",
    }.items():
        refused_or_closed(what, speak(server, data, unfinished=True))


def absurd_headers(server, subject, chance):
    get = request_head("GET", "/api/v1/tunnels/", server.key)
    for what, data in {
        "NUL in a value": get + b"X-Rubbish: a\0b\r\n\r\n",
        "NUL in a name": get + b"X-Rub\0bish: a\r\n\r\n",
        "a blank in a name": get + b"X Rubbish: a\r\n\r\n",
        "no colon": get + b"X-Rubbish\r\n\r\n",
        "an empty name": get + b": a\r\n\r\n",
        "a name beyond ASCII": get + "X-Rübbish: a\r\n\r\n".encode(),
        "10,000 headers": get + b"".join(b"X-%d: a\r\n" % number for number in range(10_000)) + b"\r\n",
        "a header of 10 MiB": get + b"X-Rubbish: " + b"a" * (10 * MIB) + b"\r\n\r\n",
        "a name of 10 MiB": get + b"a" * (10 * MIB) + b": a\r\n\r\n",
        "a path of 10 MiB": request_head("GET", "/" + "a" * (10 * MIB), server.key) + b"\r\n",
        "a method of 1 MiB": request_head("A" * MIB, "/api/v1/tunnels/", server.key) + b"\r\n",
    }.items():
        refused_or_closed(what, speak(server, data))
    # These a server may take: HTTP allows them, or is silent.
    for what, data in {
        "150 headers": get + b"".join(b"X-%d: a\r\n" % number for number in range(150)) + b"\r\n",
        "a header of 64 KiB": get + b"X-Rubbish: " + b"a" * 65536 + b"\r\n\r\n",
        "bytes beyond ASCII in a value": get + b"X-Rubbish: \xff\xfe\r\n\r\n",
        "a folded header": get + b"X-Rubbish: a\r\n b\r\n\r\n",
        "two keys": get + b"X-API-Key: another\r\n\r\n",
        "two hosts": get + b"Host: another\r\n\r\n",
        "no host": request_head("GET", "/api/v1/tunnels/", server.key).replace(b"Host: 127.0.0.1\r\n", b"") + b"\r\n",
        "an upgrade": get.replace(b"Connection: close", b"Connection: upgrade")
        + b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
        "an expectation": get + b"Expect: rubbish\r\n\r\n",
        "another origin": request_head("GET", "http://another/api/v1/tunnels/", server.key) + b"\r\n",
    }.items():
        no_server_error(what, speak(server, data, unfinished=what == "an upgrade"))


# --- HTTP that says nothing sensible ------------------------------------------


def large_bodies(server, subject, chance):
    text = b'{"tunnel_name": "' + b"a" * (10 * MIB) + b'"}'
    paths = ["/api/v1/tunnels/", "/api/v1/identities/", f"{subject.tunnel}/sign-csr", "/api/v1/api-keys"]

    def send(path, key, chunked):
        head = request_head("POST", path, key, "Content-Type: application/json")
        if not chunked:
            return speak(server, head + b"Content-Length: %d\r\n\r\n" % len(text) + text)
        chunks = (
            b"%x\r\n%b\r\n" % (len(part), part) for part in (text[at : at + 65536] for at in range(0, len(text), 65536))
        )
        return speak(server, head + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks) + b"0\r\n\r\n")

    jobs = list(itertools.product(paths, (server.key, "nobody"), (False, True)))
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        for job, answer in zip(jobs, pool.map(lambda job: send(*job), jobs)):
            refused_or_closed(f"10 MiB to {job[0]}, chunked: {job[2]}", answer)


def wrong_content_types(server, subject, chance):
    types = ["text/plain", "application/xml", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"]
    types += ["application/octet-stream", "rubbish", "/", "", "application/json; charset=utf-16", "a" * 5000]
    # Not even as JSON are these good, so a server may look at the type or not.
    for path, kind in itertools.product(
        ["/api/v1/tunnels/", "/api/v1/identities/", f"{subject.tunnel}/sign-csr", "/api/v1/api-keys"], types
    ):
        refused(
            f"{kind!r} to {path}",
            server.ask("POST", path, b'{"agent_handle": "www", "tunnel_name": "www"}', {"Content-Type": kind}),
        )


def broken_json(server, subject, chance):
    bodies = [
        b"",
        b"{",
        b"}",
        b"[]",
        b"null",
        b"7",
        b'"text"',
        b'{"tunnel_name":}',
        b'{"tunnel_name": NaN}',
        b"{'tunnel_name': 'x'}",
    ]
    bodies += [b"\xff\xfe", b"\0", b"\xef\xbb\xbf{}", '{"tunnel_name": "x"}'.encode("utf-16"), b'{"csr_pem": "x"} more']
    bodies += [b"[" * 10_000 + b"]" * 10_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b"[" * 10_000]
    bodies += [
        b'{"tunnel_name": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"agent_handle": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001,
    ]
    bodies += [b"{" + b",".join(b'"%d": 0' % number for number in range(5_000)) + b"}"]
    bodies += [b'{"tunnel_name": "-", "tunnel_name": "-", "agent_handle": "-", "agent_handle": "-"}']
    bodies += [chance.randbytes(200) for _ in range(20)]
    for path in ("/api/v1/tunnels/", "/api/v1/identities/", f"{subject.tunnel}/sign-csr", "/api/v1/api-keys"):
        for body in bodies:
            refused_or_closed(f"{body[:40]!r} to {path}", ask(server, "POST", path, body))
    deep = b"[" * 10_000 + b"]" * 10_000
    for path, field in (
        (subject.tunnel, b"metadata"),
        (subject.tunnel, b"description"),
        (subject.identity, b"display_name"),
    ):
        refused_or_closed(f"a deep {field.decode()}", ask(server, "PATCH", path, b'{"%b": {"a": %b}}' % (field, deep)))


# As they stand in JSON. None of them is a name, an id, a TLS mode or a request.
RUBBISH = {
    "NUL": rb'"a\u0000b"',
    "only NUL": rb'"\u0000"',
    "a control character": rb'"a\u0007b"',
    "half a surrogate pair": rb'"\ud800"',
    "a raw NUL": b'"a\0b"',
    "no UTF-8": b'"\xff\xfe"',
    "overlong UTF-8": b'"\xc0\x80"',
    "emoji": '"🦀🦀🦀"'.encode(),
    "right to left": '"\u202eabc"'.encode(),
    "100,000 characters": b'"' + b"a" * 100_000 + b'"',
    "an injection": b'"\' OR 1=1; DROP TABLE tunnels; --"',
    "a path": b'"../../etc/passwd"',
    "a number": b"7",
    "a number beyond doubles": b"1e999",
    "a truth": b"true",
    "a list": b'["a"]',
    "an object": b'{"a": 1}',
}


def rubbish_in_fields(server, subject, chance):
    new_handle = (f"rubbish-{number}" for number in itertools.count())
    # Method, path, body with the rubbish in place of "?", and for free texts where the answer repeats it.
    for method, path, body, repeated in (
        ("POST", "/api/v1/tunnels/", {"tunnel_name": "?", "tls_mode": "edge"}, None),
        ("POST", "/api/v1/tunnels/", {"tunnel_name": "HANDLE", "tls_mode": "?"}, None),
        ("POST", "/api/v1/tunnels/", {"tunnel_name": "HANDLE", "description": "?"}, ["tunnel", "description"]),
        ("POST", "/api/v1/identities/", {"agent_handle": "?"}, None),
        ("POST", "/api/v1/identities/", {"agent_handle": "HANDLE", "tunnel": {"tls_mode": "?"}}, None),
        ("POST", "/api/v1/identities/", {"agent_handle": "HANDLE", "display_name": "?"}, ["display_name"]),
        ("POST", "/api/v1/identities/", {"agent_handle": "HANDLE", "description": "?"}, ["description"]),
        ("PATCH", subject.identity, {"display_name": "?"}, ["display_name"]),
        ("PATCH", subject.identity, {"description": "?"}, ["description"]),
        ("PATCH", subject.identity, {"agent_handle": "?"}, None),
        ("PATCH", subject.tunnel, {"description": "?"}, ["description"]),
        ("PATCH", subject.tunnel, {"metadata": {"key": "?"}}, ["metadata", "key"]),
        ("POST", f"{subject.tunnel}/sign-csr", {"csr_pem": "?"}, None),
        ("POST", "/api/v1/api-keys", {"label": "x", "scoped_identity_id": "?"}, None),
        ("POST", "/api/v1/api-keys", {"label": "?", "scoped_identity_id": subject.identity_id}, ["record", "label"]),
        (
            "POST",
            "/api/v1/api-keys",
            {"label": "x", "description": "?", "scoped_identity_id": subject.identity_id},
            ["record", "description"],
        ),
    ):
        for what, rubbish in RUBBISH.items():
            sent = json.dumps(body).replace("HANDLE", next(new_handle)).encode().replace(b'"?"', rubbish)
            answer = ask(server, method, path, sent)
            what = f"{what} in {body} to {method} {path}"
            if repeated and answer is not None and answer.status < 300:
                came = answer.json
                for member in repeated:
                    came = came[member]
                expect.equal(f"{what} is refused or kept as it is", came, json.loads(rubbish))
            else:
                refused_or_closed(what, answer)
    for what, rubbish in RUBBISH.items():
        if not rubbish.startswith(b"{"):
            refused_or_closed(
                f"{what} as metadata", ask(server, "PATCH", subject.tunnel, b'{"metadata": %b}' % rubbish)
            )


def rubbish_in_paths(server, subject, chance):
    ids = [
        "nonsense",
        "0",
        "-1",
        "%00",
        "a%00b",
        "%ff%fe",
        "%c0%80",
        "%F0%9F%A6%80",
        "..%2f..%2fetc%2fpasswd",
        "%27%20OR%201=1",
        "%",
        "%zz",
    ]
    ids += [
        "a" * 5000,
        "%00" * 1000,
        f"{uuid.uuid4()}%00",
        f"{uuid.uuid4()}",
        f"{{{uuid.uuid4()}}}".replace("{", "%7B").replace("}", "%7D"),
    ]
    for each in ids:
        for method, path in (
            ("GET", f"/api/v1/tunnels/{each}"),
            ("PATCH", f"/api/v1/tunnels/{each}"),
            ("DELETE", f"/api/v1/tunnels/{each}"),
            ("POST", f"/api/v1/tunnels/{each}/sign-csr"),
            ("POST", f"/api/v1/tunnels/{each}/restore"),
            ("POST", f"/api/v1/tunnels/{each}/rotate-secret"),
            ("DELETE", f"/api/v1/tunnels/{each}/force"),
            ("GET", f"/api/v1/identities/{each}"),
            ("PATCH", f"/api/v1/identities/{each}"),
            ("DELETE", f"/api/v1/identities/{each}"),
        ):
            refused(f"{method} {path[:80]}", server.ask(method, path, {} if method == "PATCH" else None))
    for raw in (
        b"/api/v1/tunnels/\xff",
        b"/api/v1/tunnels/\0",
        b"/api/v1/tunnels/a b",
        b"api",
        b"*",
        b"",
        b"/" * 5000,
        b"/../../etc/passwd",
    ):
        data = request_head("GET", "PATH", server.key).replace(b"PATH", raw) + b"\r\n"
        refused_or_closed(f"the path {raw[:40]!r}", speak(server, data))
    for query in ("?", "?a=b", "?%00=%ff", "?" + "a=b&" * 1000, "#fragment"):
        no_server_error(f"the path with {query[:20]}", server.ask("GET", f"/api/v1/tunnels/{query}"))


def wrong_keys(server, subject, chance):
    keys = [
        b"",
        b"x",
        server.key[:-1].encode(),
        server.key.encode() + b"x",
        server.key.upper().encode(),
        b"\xff\xfe",
        b"a\tb",
        b"a" * 8000,
    ]
    for path, methods in subject.paths.items():
        for method in methods:
            answer = server.client().ask(method, path, headers={"X-API-Key": "nobody"})
            expect.problem(f"{method} {path} with an unknown key", answer, 401)
    for key in keys:
        answer = speak(server, request_head("GET", "/api/v1/tunnels/", None) + b"X-API-Key: " + key + b"\r\n\r\n")
        expect.that(f"the key {key[:40]!r} gets an answer", answer is not None)
        expect.problem(f"the key {key[:40]!r}", answer, 400, 401)
    expect.problem("no key at all", speak(server, request_head("GET", "/api/v1/tunnels/", None) + b"\r\n"), 401)


def wrong_methods(server, subject, chance):
    for path, known in subject.paths.items():
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"):
            # Listing the keys is an extension that a server may have.
            if method not in known and (method, path) != ("GET", "/api/v1/api-keys"):
                answer = server.ask(method, path)
                expect.problem(f"{method} {path}", answer, 405)
                expect.that(
                    f"{method} {path} is told what would do", answer.headers.get("allow"), answer.headers.items()
                )


def unknown_paths(server, subject, chance):
    paths = [
        "/api",
        "/api/",
        "/api/v1",
        "/api/v1/",
        "/api/v1/nothing",
        "/api/v2/tunnels/",
        "/api/v1/whoami",
        "/tunnels/",
        "/favicon.ico",
    ]
    paths += [
        f"{subject.tunnel}/nothing",
        f"{subject.tunnel}/sign-csr/more",
        f"{subject.identity}/nothing",
        "/API/V1/TUNNELS/",
        "//api/v1/tunnels/",
    ]
    for path, method in itertools.product(paths, ("GET", "POST", "BREW")):
        expect.problem(f"{method} {path}", server.ask(method, path), 404)


# --- many connections ---------------------------------------------------------


def half_open_connections(server, subject, chance):
    """Each sends a part of a request and falls silent; good requests must get through all the same."""
    count = min(HALF_OPEN, raise_open_files(HALF_OPEN + 200) - 200)
    post = request_head("POST", "/api/v1/tunnels/", server.key, "Content-Type: application/json")
    beginnings = [
        b"",
        b"G",
        b"GET /api/v1/tunnels/ HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        post + b"Content-Length: 1000\r\n\r\n{",
    ]
    connections = []
    try:
        began = time.monotonic()
        for number in range(count):
            # A few thousand ports of each loopback address: one alone might not have so many free.
            connection = socket.create_connection(
                ("127.0.0.1", server.port), 10.0, (f"127.0.0.{2 + number // 4000}", 0)
            )
            connections.append(connection)
            with contextlib.suppress(ConnectionError):  # a server may close what it has too many of
                connection.sendall(beginnings[number % len(beginnings)])
        print(f"  {count} half-open connections after {time.monotonic() - began:.1f} s", flush=True)
        slowest, until = 0.0, time.monotonic() + HELD_FOR
        while time.monotonic() < until:
            slowest = max(slowest, serves_good_requests(server))
            time.sleep(0.1)
        print(f"  the slowest good request took {slowest * 1000:.0f} ms", flush=True)
    finally:
        for connection in connections:
            connection.close()


def stops_in_spite_of_open_connections(server):
    beginnings = [b"", b"GET /api/v1/tunnels/ HTTP/1.1\r\nHost: x\r\nX-Slow: "]
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
    for number, connection in enumerate(connections):
        connection.sendall(beginnings[number % 2])
    expect.equal("SIGTERM ends the server with 0", server.stop(), 0)


def raise_open_files(wanted):
    """The server was started before, with the limit as it is; it is not helped by this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
        except (ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft


# --- sending and judging ------------------------------------------------------


def request_head(method, path, key, *headers):
    """Everything but the last header and the empty line."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *headers]
    lines += [] if key is None else [f"X-API-Key: {key}"]
    return "".join(f"{line}\r\n" for line in lines).encode()


def ask(server, method, path, body):
    """Like `server.ask`; None when the server closed the connection instead of reading a large body."""
    try:
        return server.ask(method, path, body)
    except (ConnectionError, http.client.HTTPException):
        if len(body) < 16384:
            raise
        return None


def speak(server, data, unfinished=False):
    """Sends bytes; returns the answer, or None when the connection ended without one.

    `unfinished` bytes may leave the server waiting for more, so it is told that no more come.
    """
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # Refused before all was read? There may be an answer all the same.
                connection.sendall(data)
            if unfinished:
                connection.shutdown(socket.SHUT_WR)
            response = http.client.HTTPResponse(connection, method="GET")
            response.begin()
            return Answer(response.status, response.headers, response.read())
        except TimeoutError:
            what = f"{data[:60]!r} gets an answer or the end of the connection"
            raise expect.Failed(f"{what}\n  came: nothing for {PATIENCE:.0f} s") from None
        except (OSError, http.client.HTTPException):
            return None


def refused(what, answer):
    expect.problem(f"{what} is refused", answer, *range(400, 500))


def refused_or_closed(what, answer):
    """What the HTTP parser itself refuses may have no problem document; what gets further has one."""
    if answer is None:
        expect.that(f"{what} ends the connection", True)
    elif answer.body:
        refused(what, answer)
    else:
        expect.status(f"{what} is refused", answer, *range(400, 500))


def no_server_error(what, answer):
    expect.that(f"{what} is no error of the server", answer is None or answer.status < 500, answer)


def serves_good_requests(server):
    """Returns how long a good request took."""
    began = time.monotonic()
    try:
        answer = server.client(timeout=GOOD_WITHIN).ask("GET", "/api/v1/tunnels/")
    except (OSError, http.client.HTTPException) as error:
        raise expect.Failed(f"a good request is answered within {GOOD_WITHIN:.0f} s\n  came: {error!r}") from None
    expect.status("a good request is answered", answer, 200)
    return time.monotonic() - began


def memory_stays_small(server, what):
    """The highest resident size there ever was, as the kernel kept it."""
    with open(f"/proc/{server.pid}/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    peak = int(lines["VmHWM"].split()[0]) * 1024
    expect.that(
        f"{what} takes at most {MOST_MEMORY // MIB} MiB of memory", peak <= MOST_MEMORY, f"{peak / MIB:.0f} MiB"
    )
    return peak


def never_panicked(server):
    panics = [line for line in server.log.read_text(errors="replace").splitlines() if "panicked at" in line]
    expect.equal("nothing panicked", panics, [])


if __name__ == "__main__":
    expect.run(main)
