"""Modes of files, and that no secret is seen anywhere."""

import os

import expect
from panel_sections.rig import Checks
from panel_server import Caller, csr_of, ec_key, mode_of

PRIVATE = (
    "ca.key",
    "client.key",
    "client.p12",
    ".p12-password",
    "client.key.bak",
    "client.p12.bak",
    "self-signed-key.pem",
)
LISTS = ("revoked.json", "enrollment-tokens.json", "agents/registry.json")


def modes(report, rig):
    """Section 5, the column that is ours, after everything that writes."""
    old = os.umask(0)
    try:
        with rig.panel() as panel:
            checks = Checks()

            def are(when):
                found = {each.relative_to(panel.pki): mode_of(each) for each in (panel.pki, *panel.pki.rglob("*"))}
                for path, mode in found.items():
                    name = str(path)
                    if (panel.pki / path).is_dir():
                        wanted = {0o700}
                    elif name.endswith((".crt", ".crt.bak")) or name in ("self-signed.pem", "crl.pem"):
                        wanted = {0o644}
                    else:
                        wanted = {0o600}
                    expect.that(f"{when}: {name} has mode {mode:o}", mode in wanted, oct(mode))
                wanted = [*LISTS, "ca.key", "ca.crt", "crl.pem", "client.crt", "self-signed.pem", "self-signed-key.pem"]
                names = [str(path) for path in found]
                expect.equal(f"{when}: all are there", [name for name in wanted if name not in names], [])
                expect.that(f"{when}: panel.json", mode_of(panel.config) in (0o600, 0o640), oct(mode_of(panel.config)))
                expect.that(f"{when}: no ca.srl", "ca.srl" not in names, names)
                return names

            @checks("§5 modes after everything that writes, with a umask of 0")
            def _():
                admin = panel.admin()
                panel.agent(admin, "filed")
                panel.agent(admin, "gone")
                panel.enrolled(admin, "own")
                panel.done(admin, "DELETE", "/api/certs/agent/gone")
                panel.token(admin, "waiting")
                are("after a while")
                panel.done(admin, "POST", "/api/certs/mtls/rotate")
                names = are("after a rotation")
                expect.that("the bundle", {*PRIVATE[:4]} <= {*names}, names)
                panel.look()
                expect.equal("reset", panel.reset_admin().returncode, 0)
                are("after a reset")
                upgraded = panel.call(
                    panel.admin(), "POST", "/api/certs/admin/upgrade-to-hardware-bound", {"csr": csr_of(ec_key())}
                )
                expect.status("upgrade", upgraded, 200)
                are("after an upgrade")

            report(checks)
    finally:
        os.umask(old)


def secrets(report, rig):
    """What all the sections have left, searched for every token, password and key there was."""
    checks = Checks()
    rig.secrets.listen()
    known = rig.secrets.known

    @checks("13 there are secrets to look for, and what holds some is found out")
    def _():
        kinds = {what.split(" of ")[0] for what in known.values()}
        print(f"        {len(known)} secrets: {', '.join(sorted(kinds))}")
        some = next(iter(known))
        expect.equal("one in a text", rig.secrets.found_in(f"x{some}x"), [known[some]])

    @checks("13 no secret in a log, at the level debug")
    def _():
        lines = sum(log.count("\n") for log in rig.logs)
        print(f"        {len(rig.logs)} logs of {lines} lines")
        for log in rig.logs:
            found = [line for line in log.splitlines() if rig.secrets.found_in(line)]
            expect.equal("lines with secrets", found, [])
            expect.equal("no PEM of keys", [line for line in log.splitlines() if "PRIVATE KEY-----" in line], [])

    @checks("13 no secret is an argument of any process")
    def _():
        # Others may start programs meanwhile.
        seen = list(rig.seen.all)
        print(f"        {len(seen)} command lines")
        found = [line for line in seen if rig.secrets.found_in(line)]
        expect.equal("command lines with secrets", found, [])

    @checks("13 no secret in an error, and each in the one answer that gives it")
    def _():
        errors = [each for each in Caller.heard if each[2].status >= 400]
        print(f"        {len(errors)} errors of {len(Caller.heard)} answers")
        for method, path, answer in errors:
            expect.equal(f"{method} {path}", rig.secrets.found_in(answer.body), [])
        bodies = [answer.body for _, _, answer in Caller.heard]
        for text, what in known.items():
            count = sum(text.encode() in body for body in bodies)
            expect.that(f"a {what} is in at most one answer", count <= 1, count)

    @checks("13 no secret in a file that others may read")
    def _():
        print(f"        {len(rig.readable)} files: {', '.join(sorted({path.name for path in rig.readable}))}")
        for path, content in rig.readable.items():
            expect.equal(str(path), rig.secrets.found_in(content), [])
            expect.that(f"{path} has no key", b"PRIVATE KEY" not in content)

    report(checks)
