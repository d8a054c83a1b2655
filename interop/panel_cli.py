"""`ca-cli panel` and `ca-cli p12` against a panel.

    python panel_cli.py --server ../target/release/api-server --ca-cli ../target/release/ca-cli

The admin by its directory, by its bundle and by PEM files; the server's certificate named, unknown and not
looked at; text for people, JSON for programs, errors with an exit status. OpenSSL and pyca open what `p12
export` makes.
"""

import argparse
import json
import subprocess

import expect
from panel_server import Panel, an_error, csr_of, ec_key, opened, openssl, pem_of_cert, try_openssl

TOKEN = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True)
    parser.add_argument("--ca-cli", required=True)
    arguments = parser.parse_args()
    with Panel(arguments.server) as panel:
        cli = Cli(arguments.ca_cli, panel)
        expect.each(
            [
                ("enrol, list, revoke", lambda: life_of_an_agent(cli, panel)),
                ("certificates", lambda: certificates(cli, panel)),
                ("every way to say who asks", lambda: ways_in(cli, panel)),
                ("errors", lambda: errors(cli, panel)),
                ("p12", lambda: bundles(cli, panel)),
            ]
        )


class Cli:
    def __init__(self, program, panel):
        self.program, self.panel = program, panel

    def run(self, *words, **named):
        command = [self.program, *words]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, **named)

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
    cli.fails("agents", access=bundle, says="--server-cert")
    cli.fails("agents", access=bundle[:2] + server, says="password")
    cli.fails("agents", access=[], says="--pki-dir")


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
