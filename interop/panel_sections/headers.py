"""Who says who is asking: headers of strangers and of a proxy, and the origin of a page."""

import http.client
import socket

import expect
from panel_sections.rig import Checks
from panel_sections.texts import NO_SUCH_TOKEN, SCOPE, TOKEN_UNKNOWN
from panel_server import MTLS_REQUIRED, REVOKED, an_error, answers, csr_of, ec_key


def headers(report, rig):
    with rig.panel() as panel:
        admin = panel.admin()
        agent, made = panel.agent(admin, "speaker")
        checks = Checks()
        spoofed = said("SUCCESS", "CN=admin,O=Portlama", admin.serial)

        @checks("2 3.1 headers of strangers are ignored under TLS")
        def _():
            for headers in (spoofed, {**spoofed, "X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1"}):
                answers("no certificate", panel.call(None, "GET", "/api/certs", headers=headers), 403, MTLS_REQUIRED)
                answers("an agent", panel.call(agent, "GET", "/api/certs", headers=headers), 403, SCOPE)
            for headers in (said("NONE", "", ""), said("SUCCESS", "CN=agent:x", "00")):
                expect.status("an admin", panel.call(admin, "GET", "/api/certs", headers=headers), 200)

        @checks("2 3.1 the names of headers in other letters are no way in either")
        def _():
            for spelled in (str.lower, str.upper, lambda name: name.replace("-", "_")):
                headers = {spelled(name): value for name, value in spoofed.items()}
                answers("no certificate", panel.call(None, "GET", "/api/certs", headers=headers), 403, MTLS_REQUIRED)

        @checks("2 3.4 health needs no certificate, and every other path needs one")
        def _():
            expect.status("health", panel.call(None, "GET", "/api/health"), 200)
            for path in ("/", "/api/certs", "/api/tunnels", "/api/onboarding/status", "/api/health/", "/x.css"):
                expect.that(f"GET {path}", panel.call(None, "GET", path).status in (403, 404), path)

        origins(checks, panel, admin)
        report(checks)
    with rig.panel(panel_proxy="127.0.0.1", panel_enrollments_per_minute=6) as panel:
        behind_a_proxy(report, rig, panel)


def said(verify, subject, serial):
    named = {"X-SSL-Client-Verify": verify, "X-SSL-Client-DN": subject, "X-SSL-Client-Serial": serial}
    return {name: value for name, value in named.items() if value is not None}


def origins(checks, panel, admin):
    token = {"label": "csrf"}
    own = f"https://127.0.0.1:{panel.panel_port}"

    @checks("2 a page of another origin changes nothing")
    def _():
        for origin in ("https://evil.example", "http://127.0.0.1", f"http://127.0.0.1:{panel.panel_port}", "null", ""):
            for method, path, body in (
                ("POST", "/api/certs/agent/enroll", token),
                ("POST", "/api/certs/mtls/rotate", None),
                ("DELETE", "/api/certs/agent/speaker", None),
                ("PATCH", "/api/certs/agent/speaker/allowed-sites", {"allowedSites": []}),
            ):
                answer = panel.call(admin, method, path, body, {"Origin": origin})
                an_error(f"{method} {path} from {origin!r}", answer, 403)
        listed = panel.done(admin, "GET", "/api/certs/agent")["agents"]
        expect.equal(
            "the agent is still there", [(each["label"], each["revoked"]) for each in listed], [("speaker", False)]
        )

    @checks("2 a browser's word on whose page it is counts before the origin")
    def _():
        drop, port = "/api/certs/agent/enroll/nobody", panel.panel_port
        for headers, status in (
            ({"Sec-Fetch-Site": "same-origin"}, 200),
            ({"Sec-Fetch-Site": "none"}, 200),
            # Whatever a proxy has made of the host.
            ({"Sec-Fetch-Site": "same-origin", "Origin": "https://panel.example.com", "Host": "inside:3100"}, 200),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "same-site", "Origin": own}, 403),
            ({"Sec-Fetch-Site": "cross-site", "Origin": own}, 403),
            ({"Origin": f"https://localhost:{port}", "Host": "localhost"}, 200),
            ({"Origin": "https://localhost", "Host": f"localhost:{port}"}, 200),
            ({"Origin": "https://PANEL.example.com", "Host": "panel.EXAMPLE.com:443"}, 200),
            ({"Origin": "https://[::1]:9292", "Host": "[::1]"}, 200),
            ({"Origin": "https://example.com", "Host": "panel.example.com"}, 403),
            ({"Origin": f"https://localhost:{port}@evil.example", "Host": f"localhost:{port}"}, 403),
        ):
            expect.status(str(headers), panel.call(admin, "DELETE", drop, headers=headers), status)

    @checks("2 the panel's own pages may")
    def _():
        answer = panel.call(admin, "POST", "/api/certs/agent/enroll", token, {"Origin": own})
        expect.status("a token", answer, 200)
        expect.status(
            "reading", panel.call(admin, "GET", "/api/certs", headers={"Origin": "https://evil.example"}), 200
        )

    @checks("2 2.1 every answer varies by origin, and none allows another one to read it")
    def _():
        for origin in ("https://evil.example", own):
            answer = panel.call(admin, "GET", "/api/certs", headers={"Origin": origin})
            expect.equal("vary", answer.headers.get("vary", "").lower(), "origin")
            allowed = answer.headers.get("access-control-allow-origin")
            expect.that(f"access-control-allow-origin for {origin}", allowed in (None, own), allowed)


def behind_a_proxy(report, rig, panel):
    admin = panel.admin()
    as_admin = said("SUCCESS", "O=Portlama,CN=admin", admin.serial)

    def ask(method, path, headers=None, body=None, **named):
        with panel.caller(plain=True, **named) as caller:
            return caller.ask(method, path, body, headers)

    expect.status("the proxy is believed", ask("GET", "/api/certs", as_admin), 200)
    made = ask("POST", "/api/certs/agent", as_admin, {"label": "foo"}).json
    serial = made["serial"]
    checks = Checks()

    def tunnels(verify, subject, number, *statuses):
        def run():
            answer = ask("GET", "/api/tunnels", said(verify, subject, number))
            expect.status(f"{verify} {subject} {number}", answer, *statuses)
            if 200 not in statuses:
                an_error("it is refused", answer, *statuses)
            return answer

        return run

    def becomes_agent(subject, number=serial):
        def run():
            headers = said("SUCCESS", subject, number)
            answers("the tunnels", ask("GET", "/api/tunnels", headers), 200, {"tunnels": []})
            answers("an admin's path", ask("GET", "/api/certs", headers), 403, SCOPE)

        return run

    for verify in ("NONE", "FAILED:certificate has expired", "FAILED", "success", "Success", "SUCCESSFUL", "", None):

        def required(verify=verify):
            answers(
                "refused",
                ask("GET", "/api/certs", said(verify, "CN=admin,O=Portlama", admin.serial)),
                403,
                MTLS_REQUIRED,
            )

        checks.append((f"2 3.1 verify {verify!r} is refused", required))
    for subject in (
        "O=Portlama,CN=agent:foo",
        "CN=agent:foo,O=Portlama",
        "CN=agent:foo",
        "/CN=agent:foo/O=Portlama",
        "/O=Portlama/CN=agent:foo",
        "O=Port\\,CN=admin,CN=agent:foo",
        "O=Port\\, lama\\, Inc.,CN=agent:foo",
        "O=caf\\C3\\A9,CN=agent:foo",
    ):
        checks.append((f"2 3.1 an agent by {subject}", becomes_agent(subject)))
    for subject in (
        "O=Portlama,CN=admin\\,x",
        "O=Portlama,CN=admin\\2Cx",
        "O=Portlama,CN=x\\,CN=admin",
        "CN=admin,CN=agent:foo",
        "CN=agent:foo,CN=admin",
        "CN=admin+CN=agent:foo,O=Portlama",
        "/CN=admin/CN=agent:foo",
        "O=CN\\=admin",
        "O=Portlama",
        "CN=Admin",
        "CN=whatever,O=Portlama",
        "CN=agent:nobody,O=Portlama",
        "CN=plugin-agent:foo:x,O=Portlama",
        "emailAddress=admin",
        "CN=",
        "admin",
        "",
        None,
    ):
        checks.append((f"2 3.3 refused: {subject}", tunnels("SUCCESS", subject, serial, 403)))
    pairs = [serial[at : at + 2] for at in range(0, len(serial), 2)]
    for name, number in {
        "lower case": serial.lower(),
        "colons": ":".join(pairs),
        "blanks": " ".join(pairs),
        "0x": f"0x{serial}",
        "a padding octet": f"00{serial}",
        "no leading zero": serial.lstrip("0"),
    }.items():
        checks.append((f"2 3.2 the serial with {name}", becomes_agent("CN=agent:foo", number)))
    for number in (None, "", "00", "0", "xyz", serial[:-2], serial + "00", f"-{serial}", admin.serial):
        checks.append((f"2 3.2 refused: the serial {number!r}", tunnels("SUCCESS", "CN=agent:foo", number, 403)))

    @checks("2 3.2 an admin without a serial is refused")
    def _():
        for number in (None, "", "zz"):
            an_error("no serial", ask("GET", "/api/certs", said("SUCCESS", "CN=admin,O=Portlama", number)), 403)

    @checks("2 3.1 a header that comes twice is refused")
    def _():
        for name in as_admin:
            with socket.create_connection(("127.0.0.1", panel.panel_port), 10) as raw:
                lines = [*(f"{each}: {value}" for each, value in as_admin.items()), f"{name}: {as_admin[name]}x"]
                raw.sendall(
                    "\r\n".join(["GET /api/certs HTTP/1.1", "Host: x", "Connection: close", *lines, "", ""]).encode()
                )
                came = b"".join(iter(lambda: raw.recv(65536), b""))
            expect.that(f"two {name}", b" 403 " in came.splitlines()[0], came)

    @checks("2 3.2 a revoked serial in every spelling, and 2 before 3 of section 4")
    def _():
        gone = ask("POST", "/api/certs/agent", as_admin, {"label": "gone"}).json["serial"]
        ask("DELETE", "/api/certs/agent/gone", as_admin)
        for number in (gone, gone.lower(), f"00{gone}", f"0x{gone}"):
            answers(number, ask("GET", "/api/tunnels", said("SUCCESS", "CN=agent:gone", number)), 403, REVOKED)
        answers("NONE", ask("GET", "/api/tunnels", said("NONE", "CN=agent:gone", gone)), 403, MTLS_REQUIRED)
        answers("as an admin", ask("GET", "/api/certs", said("SUCCESS", "CN=admin", gone)), 403, REVOKED)

    @checks("2 3.1 no other address is believed")
    def _():
        for plain in (True, False):
            try:
                with panel.caller(source="127.0.0.2", plain=plain) as caller:
                    answer = caller.ask("GET", "/api/certs", headers=as_admin)
            except (OSError, http.client.HTTPException):
                continue
            expect.status(f"no admin from 127.0.0.2, plain: {plain}", answer, 400, 403)

    @checks("2 2.4 enrolments are counted for the address that the proxy names; over the limit 429 comes first")
    def _():
        def enrol(address, body):
            return ask("POST", "/api/enroll", {"X-Real-IP": address}, body)

        good = {"token": NO_SUCH_TOKEN, "csr": csr_of(ec_key())}
        for number in range(6):
            answers(f"number {number + 1}", enrol("198.51.100.1", good), 401, TOKEN_UNKNOWN)
        for body in (good, b"{", {}):
            over = enrol("198.51.100.1", body)
            an_error(f"one too many: {body}", over, 429)
            after = over.headers.get("retry-after", "")
            expect.that("Retry-After is a number of seconds", after.isdigit() and 1 <= int(after) <= 60, after)
        answers("another address", enrol("198.51.100.2", good), 401, TOKEN_UNKNOWN)
        answers("an address of IPv6", enrol("2001:db8::1", good), 401, TOKEN_UNKNOWN)

    report(checks)
