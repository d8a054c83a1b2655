"""`ca-cli panel` and `ca-cli p12` against a panel.

    python panel_cli.py --server ../target/release/api-server --ca-cli ../target/release/ca-cli

The admin by its directory, by its bundle and by PEM files; the server's certificate named, unknown and not
looked at; every command, with text for people, JSON for programs, and errors that say what to do. OpenSSL and
pyca open what `p12 export` makes.
"""

import argparse
import json
import pathlib
import re
import subprocess

import expect
from panel_server import (
    Identity,
    Panel,
    an_error,
    csr_of,
    ec_key,
    from_p12,
    mode_of,
    opened,
    openssl,
    opens,
    pem_of_cert,
    try_openssl,
)

TOKEN = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True)
    parser.add_argument("--ca-cli", required=True)
    arguments = parser.parse_args()
    with Panel(arguments.server) as panel:
        cli = Cli(pathlib.Path(arguments.ca_cli).resolve(), panel)
        expect.each(
            [
                ("enrol, list, revoke", lambda: life_of_an_agent(cli, panel)),
                ("certificates", lambda: certificates(cli, panel)),
                ("every way to say who asks", lambda: ways_in(cli, panel)),
                ("bundles, capabilities, sites, tokens", lambda: agents(cli, panel)),
                ("rotation and download", lambda: rotation(cli, panel)),
                ("help has examples that can be parsed", lambda: help_texts(cli)),
                ("errors", lambda: errors(cli, panel)),
                ("p12", lambda: bundles(cli, panel)),
                ("an agent's upgrade", lambda: agent_upgrade(cli, panel)),
                # The last one: there is no bundle any more.
                ("the admin's upgrade", lambda: upgrade(cli, panel)),
            ]
        )


class Cli:
    def __init__(self, program, panel):
        self.program, self.panel = program, panel

    def run(self, *words, **named):
        command = [self.program, *words]
        return subprocess.run(list(map(str, command)), capture_output=True, timeout=60, **{"text": True, **named})

    def panel_run(self, *words, access=None, **named):
        access = ["--pki-dir", self.panel.pki] if access is None else access
        return self.run("panel", *words, "--url", self.panel.panel_url, *access, **named)

    def done(self, *words, **named):
        ended = self.panel_run(*words, **named)
        expect.equal(f"{words} ends well: {ended.stderr}", ended.returncode, 0)
        return ended

    def fails(self, *words, says, **named):
        ended = self.panel_run(*words, **named)
        expect.equal(f"{words} fails", ended.returncode, 1)
        expect.equal(f"{words} prints nothing", ended.stdout, "")
        expect.that(f"{words} says {says!r}", says in ended.stderr, ended.stderr)


def life_of_an_agent(cli, panel):
    made = cli.done("enroll", "laptop", "--capabilities", "tunnels:read,sites:read", "--sites", "blog,docs")
    token = made.stdout.strip()
    expect.equal("standard output has the token and nothing else", len(token), TOKEN)
    answer = panel.enrol(token, csr_of(ec_key()))
    expect.status("enrol with it", answer, 200)
    [agent] = json.loads(cli.done("agents", "--json").stdout)["agents"]
    expect.equal("its capabilities", agent["capabilities"], ["tunnels:read", "sites:read"])
    expect.equal("its sites", agent["allowedSites"], ["blog", "docs"])
    title, line = cli.done("agents").stdout.splitlines()
    expect.that("a table with titles", title.startswith("LABEL") and "STATUS" in title, title)
    expect.equal("its line", line.split()[:3], ["laptop", "active", "hardware-bound"])
    told = cli.done("revoke", "laptop")
    expect.equal("words go to standard error", (told.stdout, "revoked laptop" in told.stderr), ("", True))
    expect.equal("it is revoked", cli.done("agents").stdout.splitlines()[1].split()[1], "revoked")
    expect.equal("as JSON", json.loads(cli.done("enroll", "other", "--json").stdout)["label"], "other")


def certificates(cli, panel):
    listed = json.loads(cli.done("certs", "--json").stdout)["certs"]
    expect.equal("both of the panel", sorted(each["type"] for each in listed), ["mtls-ca", "mtls-client"])
    expect.equal("a line each", len(cli.done("certs").stdout.splitlines()), 3)


def ways_in(cli, panel):
    pki = panel.pki
    password = (pki / ".p12-password").read_text()
    server = ["--server-cert", pki / "self-signed.pem"]
    bundle = ["--cert", pki / "client.p12", "--password-file", pki / ".p12-password"]
    pem = ["--cert", pki / "client.crt", "--key", pki / "client.key"]
    for access in (bundle + server, pem + server, bundle + ["--insecure"], pem + ["-k"]):
        cli.done("agents", access=access)
    cli.done("agents", access=["--cert", pki / "client.p12", *server], env={"ADIT_P12_PASSWORD": password})
    # A certificate of version 1, as OpenSSL makes it of a request.
    key, csr, crt = (panel.work / f"v1.{kind}" for kind in ("key", "csr", "crt"))
    subject = ("-subj", "/CN=admin/O=Portlama")
    openssl("req", "-new", "-newkey", "rsa:2048", "-noenc", "-keyout", key, "-out", csr, *subject)
    authority = ("-CA", pki / "ca.crt", "-CAkey", pki / "ca.key", "-set_serial", "77")
    openssl("x509", "-req", "-in", csr, *authority, "-out", crt)
    cli.done("agents", access=["--cert", crt, "--key", key, *server])
    # Another key: told before anybody is asked.
    other = ["--cert", pki / "client.crt", "--key", pki / "ca.key"]
    cli.fails("agents", access=other, says="ca.key is not the key of the certificate")
    cli.fails("agents", access=bundle, says="--server-cert")
    cli.fails("agents", access=bundle[:2] + server, says="password")
    cli.fails("agents", access=[], says="--pki-dir")


def agents(cli, panel):
    work = panel.work
    out = work / "phone.p12"
    made = cli.done("bundle", "phone", "--sites", "blog", "--out", out)
    identity = from_p12(work, out.read_bytes(), made.stdout.strip())
    expect.status("the agent is let in", panel.call(identity, "GET", "/api/tunnels"), 200)
    expect.equal("its bundle is for its owner", mode_of(out), 0o600)
    cli.fails("bundle", "phone-2", "--out", out, says="is there already")
    cli.fails("bundle", "phone-2", "--out", "-", says="name a file", cwd=work)
    expect.that("nor is there a file with that name", not (work / "-").exists())
    expect.equal("nothing was made", [each["label"] for each in listed(cli)].count("phone-2"), 0)
    cli.fails("bundle", "phone", "--out", work / "again.p12", says="revoke LABEL")
    expect.that("no file is left", not (work / "again.p12").exists())
    told = json.loads(cli.done("bundle", "tablet", "--json", cwd=work).stdout)
    expect.equal("as JSON, with the file", (told["label"], told["bundle"]), ("tablet", "tablet.p12"))
    expect.that("its password opens it", opens((work / "tablet.p12").read_bytes(), told["p12Password"]))

    again = work / "phone-again.p12"
    cli.done("download", "phone", "--out", again)
    expect.equal("the same bundle", again.read_bytes(), out.read_bytes())
    piped = cli.panel_run("download", "phone", "--out", "-", text=False)
    expect.equal("to standard output", piped.stdout, out.read_bytes())
    cli.fails("download", "nobody", "--out", work / "nobody.p12", says="ca-cli panel agents")

    told = cli.done("capabilities", "phone", "tunnels:read,sites:read")
    expect.that("words on stderr", "phone may do: tunnels:read sites:read" in told.stderr, told.stderr)
    cli.done("sites", "phone", "blog,docs")
    phone = next(each for each in listed(cli) if each["label"] == "phone")
    expect.equal("both are changed", (phone["capabilities"], phone["allowedSites"]), (READS, ["blog", "docs"]))
    told = json.loads(cli.done("sites", "phone", "--none", "--json").stdout)
    expect.equal("none", told["allowedSites"], [])
    cli.fails("capabilities", "phone", "sites:read", says="tunnels:read is mandatory")
    cli.fails("capabilities", "nobody", "tunnels:read", says="ca-cli panel agents")
    expect.equal("no sites is no word", cli.panel_run("sites", "phone").returncode, 2)

    cli.done("enroll", "waits")
    cli.fails("enroll", "waits", says="drop-token")
    expect.that("dropped", "dropped" in cli.done("drop-token", "waits").stderr)
    expect.that("no more", "has no token" in cli.done("drop-token", "waits").stderr)
    cli.done("enroll", "waits")


READS = ["tunnels:read", "sites:read"]


def listed(cli):
    return json.loads(cli.done("agents", "--json").stdout)["agents"]


def rotation(cli, panel):
    work, server = panel.work, ["--server-cert", panel.pki / "self-signed.pem"]
    first = work / "first.p12"
    first.write_bytes((panel.pki / "client.p12").read_bytes())
    (work / "first.password").write_text((panel.pki / ".p12-password").read_text())
    old = ["--cert", first, "--password-file", work / "first.password", *server]
    new = work / "second.p12"
    made = cli.done("rotate", "--out", new, access=old)
    (work / "second.password").write_text(made.stdout)
    expect.that("the password opens the bundle", opens(new.read_bytes(), made.stdout.strip()))
    expect.equal("it is the panel's", new.read_bytes(), (panel.pki / "client.p12").read_bytes())
    cli.fails("agents", access=old, says="reset-admin")
    cli.done("download", "--out", work / "grace.p12", access=old)
    expect.equal("the old one may fetch it once more", (work / "grace.p12").read_bytes(), new.read_bytes())
    second = ["--cert", new, "--password-file", work / "second.password", *server]
    cli.done("agents", access=second)
    cli.fails("download", "--out", work / "late.p12", access=old, says="Certificate has been revoked")
    expect.that("no file is left", not (work / "late.p12").exists())
    for out, says in ((new, "is there already"), ("-", "name a file")):
        cli.fails("rotate", "--out", out, access=second, says=says, cwd=work)
    cli.done("agents", access=second)
    # On the host itself the directory has the new ones.
    told = cli.done("rotate")
    expect.equal("the password", told.stdout.strip(), (panel.pki / ".p12-password").read_text())
    expect.that("and where the bundle is", f"new bundle is {panel.pki / 'client.p12'}" in told.stderr, told.stderr)
    cli.done("agents")
    told = json.loads(cli.done("rotate", "--json").stdout)
    expect.equal("as JSON", told["ok"], True)
    cli.fails("renew", "nothing.example.com", says="Certificate not found")
    for name in ("../x", "a_b.example.com", "Upper.example.com"):
        cli.fails("renew", name, says="certbot renew --cert-name")


def agent_upgrade(cli, panel):
    work, server = panel.work, ["--server-cert", panel.pki / "self-signed.pem"]
    out = work / "mover.p12"
    password = work / "mover.password"
    password.write_text(cli.done("bundle", "mover", "--out", out).stdout)
    access = ["--cert", out, "--password-file", password, *server]
    files = ["--new-key", work / "mover.key", "--out", work / "mover.crt"]
    cli.fails("upgrade", "--agent", *files, says="leave --agent out")
    cli.done("upgrade", "--agent", *files, access=access)
    mover = Identity(work / "mover.crt", work / "mover.key")
    expect.status("with its own key", panel.call(mover, "GET", "/api/tunnels"), 200)
    cli.fails("upgrade", "--agent", *files[:2], "--out", work / "again.crt", access=access, says="revoked")


def upgrade(cli, panel):
    work, server = panel.work, ["--server-cert", panel.pki / "self-signed.pem"]
    key, out = work / "device.key", work / "device.crt"
    cli.fails("upgrade", "--new-key", key, "--out", panel.pki / "client.key", says="holds a private key")
    expect.that("no key is made", not key.exists())
    # What cannot be written is seen before what the admin has is revoked.
    cli.fails("upgrade", "--new-key", key, "--out", work / "none" / "device.crt", says="cannot write")
    cli.fails("upgrade", "--csr", work / "none.csr", "--out", out, says="cannot read")
    expect.that("no file is left", not out.exists() and not key.exists())
    cli.done("agents")
    # What is there is replaced, a longer one, too.
    out.write_text("x" * 65536)
    told = cli.done("upgrade", "--new-key", key, "--out", out)
    expect.that("a certificate and nothing else", out.read_text().strip().endswith("-----END CERTIFICATE-----"))
    expect.that("it says how to go on", f"--cert {out} --key {key}" in told.stderr, told.stderr)
    expect.equal("the key is for its owner", mode_of(key), 0o600)
    device = ["--cert", out, "--key", key, *server]
    cli.done("agents", access=device)
    cli.fails("agents", says="give --cert and --key")
    expect.equal("why", "hardware-bound" in cli.panel_run("agents").stderr, True)
    for words in (["rotate"], ["download", "--out", work / "none.p12"]):
        cli.fails(*words, access=device, says="api-server reset-admin")
    expect.that("no file is left", not (work / "none.p12").exists())
    cli.fails("upgrade", "--csr", csr_file(work), "--out", work / "x.crt", access=device, says="already")
    reset = panel.reset_admin()
    expect.equal(f"the reset: {reset.stderr}", reset.returncode, 0)
    cli.done("agents")
    # A request from elsewhere.
    cli.fails("upgrade", "--csr", csr_file(work), "--out", "-", "--json", says="leave one of")
    cli.done("upgrade", "--csr", csr_file(work), "--out", work / "elsewhere.crt", "--json")
    cli.fails("agents", access=["--pki-dir", work], says="DATA/pki")


def csr_file(work):
    path = work / "device.csr"
    path.write_text(csr_of(ec_key()))
    return path


def help_texts(cli):
    """Every example of `--help` has words that the program knows, though its files are not there."""
    commands = [line.split()[0] for line in cli.run("panel", "--help").stdout.splitlines() if is_command(line)]
    expect.that("all are listed", {"rotate", "download", "upgrade", "capabilities", "sites"} <= set(commands), commands)
    count = 0
    for command in ("", *(each for each in commands if each != "help")):
        text = cli.run("panel", *([command] if command else []), "--help").stdout
        for line in re.findall(r"^  ca-cli (panel .*)$", text, re.MULTILINE):
            words = re.split(r"\s{2,}| [>|] ", line)[0].split()
            ended = cli.run(*words, env={"ADIT_PANEL_URL": "https://127.0.0.1:1"}, cwd=cli.panel.work)
            expect.equal(f"{words} can be parsed: {ended.stderr}", ended.returncode, 1)
            count += 1
        expect.that(f"{command} has an example", "ca-cli panel" in text or command in ("agents", "certs"), text)
    expect.that("there were examples", count > 12, count)


def is_command(line):
    return re.match(r"  [a-z-]+ {2,}[A-Z]", line)


def errors(cli, panel):
    cli.fails("enroll", "Upper", says="Label must contain only lowercase letters")
    cli.fails("enroll", "laptop-2", "--capabilities", "sites:read", says="tunnels:read is mandatory")
    cli.fails("revoke", "nobody", says='Agent certificate "nobody" not found')
    cli.fails("revoke", "../../etc", says="is not a label")
    ended = cli.run("panel", "agents", "--url", "https://127.0.0.1:1", "--pki-dir", panel.pki)
    expect.equal("nobody answers", (ended.returncode, "cannot connect" in ended.stderr), (1, True))
    expect.equal("no command", cli.run("panel", "everything").returncode, 2)
    # An agent is no admin.
    identity, _ = panel.agent(panel.admin(), "small")
    server = ["--server-cert", panel.pki / "self-signed.pem"]
    access = ["--cert", identity.cert, "--key", pkcs8(panel.work, identity.key), *server]
    cli.fails("agents", access=access, says="Insufficient certificate scope")
    an_error("nor for the API", panel.call(identity, "GET", "/api/certs/agent"), 403)


def bundles(cli, panel):
    pki = panel.pki
    for encryption in ("legacy", "aes256"):
        out, password = panel.work / f"{encryption}.p12", panel.work / f"{encryption}.password"
        password.write_text("correct horse\n")
        files = ("--cert", pki / "client.crt", "--key", pki / "client.key", "--chain", pki / "ca.crt")
        kept = ("--password-file", password, "--out", out)
        made = cli.run("p12", "export", *files, *kept, "--encryption", encryption, "--name", "admin")
        expect.equal(f"{encryption}: made: {made.stderr}", made.returncode, 0)
        read = try_openssl("pkcs12", "-in", out, "-passin", f"file:{password}", "-nodes")
        expect.equal(f"{encryption}: OpenSSL opens it: {read.stderr}", read.returncode, 0)
        _, cert, others = opened(out.read_bytes(), "correct horse")
        expect.equal(f"{encryption}: its certificate", pem_of_cert(cert), (pki / "client.crt").read_text())
        expect.equal(f"{encryption}: its authority", len(others), 1)
        told = cli.run("p12", "inspect", out, "--password-file", password, "--json")
        expect.that(f"{encryption}: inspect tells no key", "PRIVATE" not in told.stdout and told.returncode == 0, told)
        again = cli.run("p12", "export", *files, *kept, "--encryption", encryption)
        expect.equal(f"{encryption}: nothing is overwritten", again.returncode, 1)
    told = cli.run("p12", "inspect", pki / "client.p12", "--password-file", pki / ".p12-password")
    expect.equal(f"the server's own: {told.stderr}", told.returncode, 0)
    told = cli.run("inspect", pki / "crl.pem", "--json")
    expect.equal("a list of revocations", json.loads(told.stdout)["version"], 2)


def pkcs8(work, key):
    out = work / "small.key"
    openssl("pkcs8", "-topk8", "-nocrypt", "-in", key, "-out", out)
    return out


if __name__ == "__main__":
    expect.run(main)
