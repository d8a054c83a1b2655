"""Holds docs/certificates-api.md against the server: every route is in it, and what it shows is so.

    python panel_api.py --server ../target/release/api-server

The routes are those of the router's source. The lines of `curl` are run as they stand, in the order of the page,
with a certbot and a systemctl that stand in for the real ones; each answer must have the fields that are shown, in
their order and of their kinds. Needs `curl` 7.82, `jq` and `openssl`.
"""

import json
import os
import pathlib
import re
import subprocess
import tempfile

import expect
from panel_server import Panel, openssl
from server import arguments

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "certificates-api.md"
ROUTER = ROOT / "crates" / "panel" / "src" / "http.rs"
LINEAGE = "app.example.com"
TIMER = """case "$1" in
is-active) echo active ;;
show) echo "NextElapseUSecRealtime=Tue 2026-12-01 03:12:00 UTC"; echo "LastTriggerUSec=Mon 2026-11-30 15:04:05 UTC" ;;
esac"""


def main():
    options = arguments(__doc__).parse_args()
    sections = read(PAGE.read_text())
    with tempfile.TemporaryDirectory(prefix="adit-panel-api-") as work:
        work = pathlib.Path(work)
        with Panel(options.server, **stand_ins(work)) as panel:
            reader = Reader(panel, work, sections)
            checks = [("every route is in the page, and no other", lambda: every_route(sections))]
            checks += [(" and ".join(section.routes), lambda section=section: reader.try_out(section)) for section in
                       sections if section.routes]
            expect.each(checks)


class Section:
    """A part of the page: routes, commands, and the answer to the last of them."""

    def __init__(self, routes, text):
        self.routes = routes
        blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        self.commands = [block for kind, block in blocks if kind == "sh"]
        self.answers = [json.loads(block) for kind, block in blocks if kind == "json"]


def read(page):
    sections, routes = [], []
    for part in re.split(r"^(?=##)", page, flags=re.MULTILINE):
        title, _, text = part.partition("\n")
        routes += re.findall(r"`((?:GET|POST|PATCH|DELETE) /[^`]*)`", title) if title.startswith("###") else []
        if text.strip():
            sections.append(Section(routes, text))
            routes = []
    return sections


def every_route(sections):
    found = re.findall(r'\.route\("([^"]+)",\s*(get|post|patch|delete)\(', ROUTER.read_text())
    served = {f"{method.upper()} {path}" for path, method in found}
    expect.that("the router was read", len(served) > 20, served)
    written = [route for section in sections for route in section.routes]
    expect.equal("no route twice", sorted(set(written)), sorted(written))
    expect.equal("the page has the routes of the router", sorted(written), sorted(served))


class Reader:
    """Whoever tries out what the page says, from its top to its end."""

    def __init__(self, panel, work, sections):
        self.panel, self.work = panel, work
        # The first commands are the variables; those of this server come in the place of the page's.
        variables = next(section.commands[0] for section in sections if section.commands)
        own = {"PANEL": panel.panel_url, "PKI": panel.pki}
        for name, value in own.items():
            variables, count = re.subn(rf"^{name}=\S+", f"{name}={value}", variables, flags=re.MULTILINE)
            expect.equal(f"the page sets {name}", count, 1)
        self.variables = variables
        (work / ".curlrc").write_text('silent\nshow-error\nwrite-out = "\\n%{http_code}\\n"\n')
        self.token = ""

    def try_out(self, section):
        expect.that("there are commands", section.commands, section.routes)
        answer = None
        for block in section.commands:
            for line in block.splitlines():
                said = self.run(line)
                if "curl " not in line:
                    continue
                body, status = re.fullmatch(r"(.*)\n(\d{3})\n", said, re.DOTALL).groups()
                wanted = re.search(r"# (\d{3})$", line)
                expect.equal(f"{line}: {body}", status, wanted.group(1) if wanted else "200")
                answer = None if " -o " in line else json.loads(body)
        for shown in section.answers:
            same_shape(section.routes[0], answer, shown)
        if answer:
            self.keep(section.routes[0], answer)

    def run(self, line):
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.work), "CURL_HOME": str(self.work)}
        script = f"set -eu\n{self.variables}\nTOKEN={self.token}\n{line}\n"
        done = subprocess.run(
            ["sh", "-c", script], capture_output=True, text=True, timeout=60, env=environment, cwd=self.work
        )
        expect.equal(f"{line}: {done.stdout}{done.stderr}", done.returncode, 0)
        return done.stdout

    def keep(self, route, answer):
        """What a reader would put aside for the next lines."""
        if route == "POST /api/certs/agent/enroll":
            self.token = answer["token"]
        if route == "POST /api/enroll":
            (self.work / "agent.crt").write_text(answer["cert"])


def same_shape(where, came, shown):
    """The same fields in the same order, with values of the same kinds; a list is as its first entry."""
    if isinstance(shown, dict):
        expect.that(f"{where} is an object", isinstance(came, dict), came)
        expect.equal(f"the fields of {where}", list(came), list(shown))
        for name, value in shown.items():
            same_shape(f"{where} {name}", came[name], value)
    elif isinstance(shown, list):
        expect.that(f"{where} is a list", isinstance(came, list) and bool(came) == bool(shown), came)
        if shown:
            same_shape(f"{where}[0]", came[0], shown[0])
    else:
        expect.equal(f"the kind of {where}", type(came), type(shown))


def stand_ins(work):
    """A certbot that says nothing and has a certificate, and a systemctl that knows its timer."""
    live, renewal = (work / "letsencrypt" / name for name in (f"live/{LINEAGE}", "renewal"))
    for place in (live, renewal):
        place.mkdir(parents=True)
    (renewal / f"{LINEAGE}.conf").write_text("")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 89".split()
    openssl(*words, "-subj", f"/CN={LINEAGE}", "-keyout", live / "privkey.pem", "-out", live / "fullchain.pem")
    for name, script in (("certbot", "exit 0"), ("systemctl", TIMER)):
        (work / name).write_text(f"#!/bin/sh\n{script}\n")
        (work / name).chmod(0o755)
    return {
        "panel_letsencrypt_dir": work / "letsencrypt",
        "panel_certbot": work / "certbot",
        "panel_systemctl": work / "systemctl",
    }


if __name__ == "__main__":
    expect.run(main)
