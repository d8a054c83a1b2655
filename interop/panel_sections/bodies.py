"""Methods, paths and bodies that are not as they should be."""

import expect
from panel_sections.lineages import LINEAGE, renewals
from panel_sections.rig import Checks
from panel_sections.texts import EMPTY_JSON, FORM, TOO_LARGE
from panel_server import MTLS_REQUIRED, NOT_FOUND, an_error, answers, issues


def bodies(report, rig):
    """Section 2: methods, paths and bodies."""
    with rig.panel(**renewals(rig)) as panel:
        admin = panel.admin()
        checks = Checks()
        create, rotate = ("POST", "/api/certs/agent"), ("POST", "/api/certs/mtls/rotate")
        writes = (
            create,
            ("POST", "/api/certs/agent/enroll"),
            ("PATCH", "/api/certs/agent/x/capabilities"),
            ("PATCH", "/api/certs/agent/x/allowed-sites"),
            ("POST", "/api/certs/admin/upgrade-to-hardware-bound"),
            ("POST", "/api/certs/agent/upgrade-cert"),
            ("POST", "/api/enroll"),
        )

        def everywhere(name, status, body, sent, sent_headers=None):
            def run():
                for method, path in writes:
                    answer = panel.call(admin, method, path, sent, sent_headers)
                    if callable(body):
                        body(f"{method} {path}", answer)
                    else:
                        answers(f"{method} {path}", answer, status, body)

            checks.append((f"3 2.2 {name}", run))

        def object_expected(received):
            return issues(([], f"Expected object, received {received}"))

        nothing = {"Content-Type": None}
        everywhere("no body", 400, issues(([], "Required")), None)
        everywhere("no octets and no type", 400, issues(([], "Required")), b"", nothing)
        for sent in ("null", "[]", '"text"', "1", "1.5", "true", "[{}]"):
            kind = {"n": "null", "[": "array", '"': "string", "1": "number", "t": "boolean"}[sent[0]]
            everywhere(f"JSON that is {sent}", 400, object_expected(kind), sent.encode())
        everywhere("a form", 415, {"error": "Unsupported Media Type"}, b"label=x", FORM)
        everywhere("70,000 octets", 413, TOO_LARGE, b'{"x":"' + b"x" * 70_000 + b'"}')

        @checks("3 2.2 more than 1 MiB: the answer is not lost because nobody listens any more")
        def _():
            large = b'{"x":"' + b"x" * 1_048_576 + b'"}'
            for method, path in writes:
                for identity in (admin, None) if path == "/api/enroll" else (admin,):
                    try:
                        answer = panel.call(identity, method, path, large)
                    except OSError as error:
                        raise expect.Failed(f"{method} {path}: no answer, but {error!r}") from error
                    answers(f"{method} {path}", answer, 413, TOO_LARGE)

        everywhere(
            "text",
            None,
            lambda what, got: an_error(what, got, 400, 415),
            b'{"label":"x"}',
            {"Content-Type": "text/plain"},
        )
        everywhere("empty JSON", None, lambda what, got: an_error(what, got, 400), b"", EMPTY_JSON)
        for sent in (b"{", b'{"label":"x"', b"{'label':'x'}", b'{"label":"\xff"}', b"\x00", b'{"label":"x"} x', b"NaN"):
            everywhere(f"broken JSON: {sent!r}", None, lambda what, got: an_error(what, got, 400), sent)

        @checks("3 2.2 JSON that is very deep does no harm")
        def _():
            for sent in (b"[" * 30_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000):
                an_error("deep", panel.call(admin, *create, sent), 400)

        @checks("3 2.2 unknown fields, a charset and a twin are no harm")
        def _():
            for number, kind in enumerate(
                ("application/json; charset=utf-8", "application/json;charset=UTF-8", "Application/JSON")
            ):
                body = {"label": f"plain-{number}", "admin": True, "serial": "00", "revoked": True, "x": [{}]}
                made = panel.call(admin, *create, body, {"Content-Type": kind})
                expect.status(kind, made, 200)
            listed = panel.done(admin, "GET", "/api/certs/agent")["agents"]
            names = {name for agent in listed for name in agent}
            expect.that("nothing of it is stored", "admin" not in names and "x" not in names, names)

        @checks("3 2.2 paths that take no body accept an empty one of JSON, as the web page sends it")
        def _():
            for number, (sent, kind) in enumerate(((b"", EMPTY_JSON), (b"{}", None), (None, None), (b"", nothing))):
                caller = panel.admin()
                for method, path in (
                    rotate,
                    ("POST", f"/api/certs/{LINEAGE}/renew"),
                    ("DELETE", f"/api/certs/agent/gone-{number}"),
                ):
                    panel.done(caller, *create, {"label": f"gone-{number}"}) if method == "DELETE" else None
                    expect.status(
                        f"{method} {path} with {sent!r}, {kind}", panel.call(caller, method, path, sent, kind), 200
                    )
                    caller = panel.admin()

        checks.extend(paths(panel))
        report(checks)


def paths(panel):
    checks = Checks()
    for method, path in (
        *((method, "/api/certs") for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS")),
        ("GET", "/api/certs/"),
        ("GET", "/api//certs"),
        ("GET", "/api/certs/agent/"),
        ("GET", "/api/certs/mtls/download/"),
        ("GET", "/api/certs/mtls/rotate"),
        ("GET", "/api/Certs"),
        ("GET", "/api"),
        ("GET", "/api/"),
        ("GET", "/api/enroll"),
        ("PUT", "/api/enroll"),
        ("POST", "/api/enroll/"),
        ("DELETE", "/api/certs/agent/"),
        ("DELETE", "/api/certs/agent/x/"),
        ("DELETE", "/api/certs/agent/x/y"),
        ("GET", "/api/certs/agent/x"),
        ("PATCH", "/api/certs/agent/x"),
        ("POST", "/api/certs/a.b/renew/"),
        ("GET", "/api/certs/a.b/renew"),
        ("POST", "/api/certs/agent/enroll-delegated"),
        ("GET", "/api/certs/../certs"),
        ("GET", "/api/nothing"),
    ):

        def unknown(method=method, path=path):
            admin = panel.admin()
            for identity in (None, admin):
                answers(f"{method} {path}", panel.call(identity, method, path), 404, NOT_FOUND)

        checks.append((f"3 2.1 unknown: {method} {path}", unknown))

    @checks("3 2.1 HEAD is GET without the body")
    def _():
        admin = panel.admin()
        for path in (
            "/api/certs",
            "/api/certs/agent",
            "/api/certs/mtls/download",
            "/api/certs/admin/auth-mode",
            "/api/health",
        ):
            get, head = (panel.call(admin, method, path) for method in ("GET", "HEAD"))
            expect.equal(f"HEAD {path}", (head.status, head.body), (200, b""))
            expect.equal("its type", head.headers.get("content-type"), get.headers.get("content-type"))
        an_error("GET of a wrong label", panel.call(admin, "GET", "/api/certs/agent/X/download"), 400)
        expect.status("HEAD of a wrong label", panel.call(admin, "HEAD", "/api/certs/agent/X/download"), 400)

    @checks("3 2.1 percent-encoding is undone first, and a query changes nothing")
    def _():
        admin = panel.admin()
        bad = issues((["label"], "Invalid agent label"))
        for path in ("%2e%2e", "a%2Fb", "a%00b", "%41", "a%20b", "caf%C3%A9", "a;b", "..", "%FF"):
            got = panel.call(admin, "DELETE", f"/api/certs/agent/{path}")
            if path in ("%FF", ".."):
                an_error(path, got, 400, 404)
            else:
                answers(path, got, 400, bad)
        missing = {"error": 'Agent certificate "nobody" not found'}
        answers("%6eobody", panel.call(admin, "DELETE", "/api/certs/agent/%6eobody?x=y"), 404, missing)
        expect.status("a query", panel.call(admin, "GET", "/api/certs?x=/api/health"), 200)
        answers("a query for nobody", panel.call(None, "GET", "/api/certs?/api/health"), 403, MTLS_REQUIRED)

    return checks
