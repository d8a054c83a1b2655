"""The rate of enrolments."""

import functools

import expect
from panel_sections.rig import Checks
from panel_sections.texts import NO_SUCH_TOKEN
from panel_server import an_error, at_once, csr_of, ec_key


def limits(report, rig):
    with rig.panel(panel_enrollments_per_minute=6) as panel:
        checks = Checks()

        @checks("2 2.4 six enrolments at once may be; the next gets 429, whatever it says of its address")
        def _():
            body = {"token": NO_SUCH_TOKEN, "csr": csr_of(ec_key())}
            admin = panel.admin()
            came = at_once([functools.partial(panel.call, None, "POST", "/api/enroll", body)] * 6)
            expect.equal("statuses", [answer.status for answer in came], [401] * 6)
            for name, identity, headers in (
                ("no certificate", None, {}),
                ("an admin", admin, {}),
                ("X-Real-IP", None, {"X-Real-IP": "198.51.100.7"}),
                ("X-Forwarded-For", None, {"X-Forwarded-For": "198.51.100.7", "Forwarded": "for=198.51.100.7"}),
            ):
                answer = panel.call(identity, "POST", "/api/enroll", body, headers)
                an_error(name, answer, 429)
                after = answer.headers.get("retry-after", "")
                expect.that("Retry-After is a number of seconds", after.isdigit() and 1 <= int(after) <= 60, after)
            with panel.caller(source="127.0.0.9") as caller:
                expect.status("another address", caller.ask("POST", "/api/enroll", body), 401)
            expect.status("other paths have no limit", panel.call(admin, "GET", "/api/certs"), 200)
            expect.status("tokens neither", panel.call(admin, "POST", "/api/certs/agent/enroll", {"label": "x"}), 200)

        @checks("2 2.4 150 requests of one admin are no harm: there is no limit for all")
        def _():
            with panel.caller(panel.admin(), keep_alive=True) as caller:
                for _ in range(150):
                    expect.status("the mode", caller.ask("GET", "/api/certs/admin/auth-mode"), 200)

        report(checks)
    with rig.panel() as panel:
        checks = Checks()
        del panel.settings["panel_enrollments_per_minute"]

        @checks("2 2.4 thirty in a minute, if nothing else is said")
        def _():
            panel.stop()
            panel.start()
            with panel.caller(keep_alive=True) as caller:
                came = [caller.ask("POST", "/api/enroll", {}).status for _ in range(31)]
            expect.equal("statuses", came, [400] * 30 + [429])

        report(checks)
