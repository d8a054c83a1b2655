"""The messages of validation, word for word."""

import expect
from panel_sections.rig import Checks
from panel_sections.texts import EMPTY_CSR, NO_CSR
from panel_server import answers, issues


def catalogue(report, rig):
    """Section 13: requests, and the issues that they must get."""
    with rig.panel(panel_capabilities="identity:read,panel:expose") as panel:
        admin = panel.admin()
        checks = Checks()
        create, capabilities, sites = (
            "/api/certs/agent",
            "/api/certs/agent/x/capabilities",
            "/api/certs/agent/x/allowed-sites",
        )
        token, upgrade = "/api/certs/agent/enroll", "/api/certs/admin/upgrade-to-hardware-bound"

        def least(length):
            return f"String must contain at least {length} character(s)"

        def most(length):
            return f"String must contain at most {length} character(s)"

        charset = "Label must contain only lowercase letters, numbers, and hyphens"
        in_path, site = "Invalid agent label", "Site name must contain only lowercase letters, numbers, and hyphens"
        mandatory = "tunnels:read is mandatory and cannot be removed"
        kinds = {"null": None, "number": 1.5, "boolean": True, "array": [], "object": {}, "string": "x"}

        def wrong(type_, received):
            return f"Expected {type_}, received {received}"

        rows = []

        def row(path, body, *found):
            rows.append((path, body, found))

        for path in (create, token):
            row(path, {}, (["label"], "Required"))
            row(path, {"label": ""}, (["label"], least(1)), (["label"], charset))
            row(path, {"label": "a" * 51}, (["label"], most(50)))
            row(path, {"label": "A" * 51}, (["label"], most(50)), (["label"], charset))
            for label in ("A", "a b", "a_b", "a.b", "a/b", "ä", "a\n", "\n", "a\u0000", "😀", "plugin-agent:a:b"):
                row(path, {"label": label}, (["label"], charset))
            for kind in ("null", "number", "boolean", "array", "object"):
                row(path, {"label": kinds[kind]}, (["label"], wrong("string", kind)))
            for kind in ("null", "number", "boolean", "string", "object"):
                row(path, {"label": "x", "capabilities": kinds[kind]}, (["capabilities"], wrong("array", kind)))
                row(path, {"label": "x", "allowedSites": kinds[kind]}, (["allowedSites"], wrong("array", kind)))
            row(path, {"label": "x", "capabilities": []}, (["capabilities"], mandatory))
            row(path, {"label": "x", "capabilities": ["sites:read"]}, (["capabilities"], mandatory))
            row(
                path,
                {
                    "label": "B",
                    "capabilities": ["bogus", "sites:read", "Tunnels:read"],
                    "allowedSites": ["ok", "", "-x"],
                },
                (["label"], charset),
                (["capabilities"], mandatory),
                (["capabilities"], "Invalid capability: bogus"),
                (["capabilities"], "Invalid capability: Tunnels:read"),
                (["allowedSites", 1], least(1)),
                (["allowedSites", 1], site),
                (["allowedSites", 2], site),
            )
            row(
                path,
                {"capabilities": 1, "allowedSites": False},
                (["label"], "Required"),
                (["capabilities"], wrong("array", "number")),
                (["allowedSites"], wrong("array", "boolean")),
            )
        for path, more in ((create, {"label": "x"}), (capabilities, {})):
            row(
                path,
                {**more, "capabilities": ["bogus", 1, None, {}]},
                (["capabilities", 1], wrong("string", "number")),
                (["capabilities", 2], wrong("string", "null")),
                (["capabilities", 3], wrong("string", "object")),
            )
            row(path, {**more, "capabilities": ["tunnels:read", ""]}, (["capabilities"], "Invalid capability: "))
            row(
                path,
                {**more, "capabilities": ["tunnels:read", "a", "b", "a"]},
                *[(["capabilities"], f"Invalid capability: {name}") for name in "aba"],
            )
        for path, more in ((create, {"label": "x"}), (sites, {})):
            row(path, {**more, "allowedSites": ["a" * 100, "a" * 101]}, (["allowedSites", 1], most(100)))
            row(
                path,
                {**more, "allowedSites": ["A" * 101]},
                (["allowedSites", 0], most(100)),
                (["allowedSites", 0], site),
            )
            for name in ("A", "a-", "-", "a.b", "a b", "a/b", "..", "ä", "a\n"):
                row(path, {**more, "allowedSites": [name]}, (["allowedSites", 0], site))
            row(
                path,
                {**more, "allowedSites": [1, "ok", None, [], "A"]},
                (["allowedSites", 0], wrong("string", "number")),
                (["allowedSites", 2], wrong("string", "null")),
                (["allowedSites", 3], wrong("string", "array")),
                (["allowedSites", 4], site),
            )
        row(capabilities, {}, (["capabilities"], "Required"))
        row(capabilities, {"capabilities": []}, (["capabilities"], mandatory))
        row(capabilities, {"capabilities": None}, (["capabilities"], wrong("array", "null")))
        row(sites, {}, (["allowedSites"], "Required"))
        row(sites, {"allowedSites": "blog"}, (["allowedSites"], wrong("array", "string")))
        for path in (upgrade, "/api/enroll", "/api/certs/agent/upgrade-cert"):
            more = {"token": "t"} if path == "/api/enroll" else {}
            row(path, more, (["csr"], "Required"))
            row(path, {**more, "csr": ""}, *EMPTY_CSR)
            row(path, {**more, "csr": "x"}, EMPTY_CSR[1])
            row(path, {**more, "csr": NO_CSR.replace("CERT", "NEW CERT")}, EMPTY_CSR[1])
            for kind in ("null", "number", "boolean", "array", "object"):
                row(path, {**more, "csr": kinds[kind]}, (["csr"], wrong("string", kind)))
        enroll = "/api/enroll"
        row(enroll, {}, (["token"], "Required"), (["csr"], "Required"))
        row(enroll, {"token": "", "csr": NO_CSR}, (["token"], "Enrollment token is required"))
        row(enroll, {"token": 7, "csr": ""}, (["token"], wrong("string", "number")), *EMPTY_CSR)
        for label, *messages in (
            ("A", in_path),
            ("a_b", in_path),
            ("a" * 51, most(50)),
            ("A" * 51, most(50), in_path),
        ):
            of_label, found = f"/api/certs/agent/{label}", [(["label"], message) for message in messages]
            for method, path, body in (
                ("DELETE", of_label, None),
                ("GET", f"{of_label}/download", None),
                ("PATCH", f"{of_label}/capabilities", {"capabilities": []}),
                ("PATCH", f"{of_label}/allowed-sites", {}),
                ("DELETE", f"/api/certs/agent/enroll/{label}", None),
            ):
                rows.append(((method, path), body, found))

        def all_rows():
            failed = []
            with panel.caller(admin, keep_alive=True) as caller:
                for path, body, found in rows:
                    method, path = path if isinstance(path, tuple) else ("PATCH" if "/x/" in path else "POST", path)
                    answer = caller.ask(method, path, body)
                    try:
                        answers(f"{method} {path} {body}", answer, 400, issues(*found))
                    except expect.Failed as failure:
                        failed.append(str(failure))
            expect.that(f"all of {len(rows)} requests get their issues", not failed, "\n".join(failed))
            print(f"        {len(rows)} requests")

        checks.append(("3 §13 the catalogue", all_rows))

        @checks("3 §13 what is at the edge of valid")
        def _():
            for body in (
                {"label": "a" * 50, "allowedSites": ["a" * 100, "a", "0", "a-b", "a--b"]},
                {"label": "more", "capabilities": ["identity:read", "tunnels:read", "panel:expose"]},
                {"label": "twice", "capabilities": ["tunnels:read", "tunnels:read"], "allowedSites": ["a", "a"]},
            ):
                panel.done(admin, "POST", create, body)
                panel.done(admin, "DELETE", f"{create}/{body['label']}")

        report(checks)
