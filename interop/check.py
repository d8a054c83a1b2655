"""`api-server check`: what an operator is told before the first visitor comes, and by which exit status.

A small internet of this machine: addresses of 127.77.0.0/16 with the ports that count outside (443, 80, 53), Unbound
as everybody's resolver, Debian's Pebble as the public authority.

    sudo judges/bin/python check.py --server ../target/release/api-server
"""

import contextlib
import datetime
import json
import os
import pathlib
import socket
import subprocess
import tempfile
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import acme_directory
import expect
from pebble import Pebble
from server import ZONE, Server, arguments, free_ports

PUBLIC_ZONE = "tunnels.example.org"
WITHIN = 20.0
STATUSES = ("ok", "warn", "fail")


def main():
    options = arguments(__doc__).parse_args()
    binary = str(pathlib.Path(options.server).resolve())
    checks = [
        ("before the first start", before),
        ("a private server on defaults", private),
        ("certificates that end soon", ending),
        ("a wrong zone, an authority for trying", wrong_zone),
        ("a port that is taken", taken),
        ("an authority that has expired, and wrong clocks", clocks),
        ("certificate files", files),
        ("what a public authority wants", wanted),
        ("who may issue", caa),
        ("names that lead elsewhere", elsewhere),
        ("a resolver that says nothing", silent),
        ("Pebble, and the zone's own name server: everything is ok", everything),
        ("flags and settings", flags),
    ]
    with tempfile.TemporaryDirectory(prefix="adit-interop-check-") as place:
        named = []
        for number, (name, call) in enumerate(checks):
            work = pathlib.Path(place) / str(number)
            work.mkdir()
            named.append((name, lambda call=call, work=work: call(binary, work)))
        expect.each(named)


def _run(command, **how):
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, **how)


class Told:
    """What the command says, as a document and for people."""

    def __init__(self, binary, data_dir, clock=None, resolver=None, environment=(), **settings):
        ports = iter(free_ports(3))
        settings = {
            "zone": ZONE,
            "edge_listen": f"127.0.0.1:{next(ports)}",
            "api_listen": f"127.0.0.1:{next(ports)}",
            "metrics_listen": f"127.0.0.1:{next(ports)}",
            "panel_listen": "none",
            **settings,
        }
        flags = ["--data-dir", data_dir]
        for name, value in settings.items():
            for each in value if isinstance(value, list) else [value]:
                flags += [f"--{name.replace('_', '-')}", str(each)]
        if resolver:
            flags += ["--resolver", resolver]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ADIT_")}
        environment = {**inherited, **dict(environment)}
        command = []
        if clock:
            command = ["faketime", "-m", "-f", clock]
            environment["DONT_FAKE_MONOTONIC"] = "1"

        def run(*more):
            begun = time.monotonic()
            done = _run([*command, binary, "check", *map(str, flags), *more], env=environment)
            if "sem_open" in done.stderr:
                # faketime trips over what a killed one of the same number has left.
                return run(*more)
            expect.that("it takes a few seconds at most", time.monotonic() - begun < WITHIN, time.monotonic() - begun)
            expect.equal("nothing on stderr", done.stderr, "")
            return done

        self.text, done = run().stdout, run("--json")
        self.status, document = done.returncode, json.loads(done.stdout)
        expect.equal("a document of two members", sorted(document), ["checks", "ok"])
        for one in document["checks"]:
            expect.equal("each with four members", sorted(one), ["detail", "name", "remedy", "status"])
            expect.that("of three statuses", one["status"] in STATUSES, one)
            expect.equal("a remedy for all that is not ok", one["remedy"] is not None, one["status"] != "ok")
        self.checks = {one["name"]: one for one in document["checks"]}
        expect.equal("a name is there once", len(self.checks), len(document["checks"]))
        expect.equal("`ok` is the exit status", document["ok"], self.status == 0)
        failed = [one for one in document["checks"] if one["status"] == "fail"]
        expect.equal("which is 1 if something failed", self.status, 1 if failed else 0)
        lines = [line for line in self.text.splitlines() if line.startswith("  ok  ") or line[2:6] in ("warn", "FAIL")]
        expect.equal("a line for each", len(lines), len(document["checks"]))

    def has(self, name, status, *words):
        one = self.checks.get(name)
        expect.that(f"{name} is there", one, self.text)
        expect.equal(f"{name}: {one}", one["status"], status)
        for word in words:
            expect.that(f"{name} says {word!r}", word in f"{one['detail']} {one['remedy']}", one)

    def only(self, *statuses):
        others = {name: one for name, one in self.checks.items() if one["status"] not in statuses}
        expect.equal(f"nothing but {statuses}", others, {})


def beside(server, **settings):
    """The settings of a server that runs."""
    return {
        "edge_listen": f"127.0.0.1:{server.edge_port}",
        "api_listen": f"127.0.0.1:{server.port}",
        "metrics_listen": f"127.0.0.1:{server._metrics_port}",
        **settings,
    }


def listing(directory, but=()):
    """Every file, with what a change of it changes; those that end in `but` left out."""
    files = [path for path in sorted(directory.rglob("*")) if not path.name.endswith(tuple(but))]
    return [(str(path), path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_mode) for path in files]


# --- private ------------------------------------------------------------------


def before(binary, work):
    told = Told(binary, work / "data")
    told.only("ok", "warn")
    told.has("data.directory", "ok", "the first start makes it")
    told.has("server.ready", "ok", "no server runs here")
    told.has("ports.edge_listen", "ok", "is free")
    expect.that("nothing is made", not (work / "data").exists(), listing(work))


def private(binary, work):
    with Server(binary, data_dir=work / "data") as server:
        # The server writes when it is asked whether it is ready, and makes the certificate that a visitor asks for.
        its_own = ("-shm", "-wal")
        before = listing(server.data_dir, its_own)
        told = Told(binary, server.data_dir, **beside(server))
        told.only("ok", "warn")
        told.has("settings.zone", "warn", ZONE, "--zone")
        told.has("server.ready", "ok", "is ready")
        told.has("data.directory", "ok", "mode 0700")
        told.has("data.authority", "ok", "days")
        told.has("ports.edge_listen", "ok", "is listened at")
        told.has("certificates.zone", "ok", "ca/root.crt", ZONE)
        told.has("certificates.record", "ok")
        expect.equal("nothing has changed", listing(server.data_dir, its_own), before)
        server.data_dir.chmod(0o755)
        Told(binary, server.data_dir, **beside(server)).has("data.directory", "warn", "mode 0755", "chmod 700")
        server.data_dir.chmod(0o700)
        told = Told(binary, server.data_dir, **beside(server, edge_listen="127.0.0.1:24999"))
        told.has("ports.edge_listen", "warn", "restart")
        server.stop()
        # SQLite's index of its log is made anew by whoever reads.
        before = listing(server.data_dir, ("-shm",))
        told = Told(binary, server.data_dir)
        told.only("ok", "warn")
        told.has("server.ready", "ok", "no server runs here")
        expect.equal("nor without a server", listing(server.data_dir, ("-shm",)), before)
        server.start()


def ending(binary, work):
    with Server(binary, data_dir=work / "data", cert_days=10) as server:
        Told(binary, server.data_dir, **beside(server)).has("certificates.zone", "ok", "days")
        told = Told(binary, server.data_dir, **beside(server))
        told.has("certificates.record", "warn", "within 14 days", ZONE)
        told.only("ok", "warn")


def silent(binary, work):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        asked = f"127.0.0.1:{nobody.getsockname()[1]}"
        told = Told(binary, work / "data", resolver=asked, zone=PUBLIC_ZONE, public_address="127.77.0.1")
        told.has("dns.zone", "fail", "cannot be looked up", "no answer from")
        told.has("dns.hosts", "fail", "no answer from")


def wrong_zone(binary, work):
    with Server(binary, data_dir=work / "data") as server:
        server.stop()
        told = Told(binary, server.data_dir, zone="other.example.org")
        told.has("data.authority", "fail", "may not sign for the zone other.example.org")
    told = Told(binary, work / "none", zone="a.test", issuer="acme", acme_directory="https://localhost:1/dir")
    told.has("settings.zone", "fail", "a.test", "reserved")
    told = Told(binary, work / "none", zone=PUBLIC_ZONE, issuer="acme", acme_directory="https://localhost:1/staging")
    told.has("settings.acme_ca", "warn", "--acme-ca")
    told.has("settings.zone", "ok")


def taken(binary, work):
    with socket.create_server(("127.0.0.1", 0)) as other, socket.create_server(("127.0.0.1", 0)) as silent:
        edge, metrics = (f"127.0.0.1:{one.getsockname()[1]}" for one in (other, silent))
        told = Told(binary, work / "data", edge_listen=edge, metrics_listen=metrics)
        told.has("ports.edge_listen", "fail", edge, "taken")
        told.has("ports.metrics_listen", "fail", "taken")
        told.has("ports.api_listen", "ok", "is free")
    told = Told(binary, work / "data", edge_listen="192.0.2.1:4443")
    told.has("ports.edge_listen", "fail", "no address of this machine")


def clocks(binary, work):
    with Server(binary, data_dir=work / "data") as server:
        server.stop()
        told = Told(binary, server.data_dir, clock="+4000d")
        told.has("data.authority", "fail", "issuing.crt expired on")
        told = Told(binary, server.data_dir, clock="+3600d")
        told.has("data.authority", "warn", "renew it")
        told = Told(binary, server.data_dir, clock="@2001-01-01 00:00:00")
        told.has("clock.itself", "fail", "2001-01-01", "NTP")


def files(binary, work):
    now = datetime.datetime.now(datetime.UTC)

    def pair(name, days, hosts):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([])
        names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
        certificate = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=30))
            .not_valid_after(now + datetime.timedelta(days=days, hours=12))
            .add_extension(names, critical=True)
            .sign(key, hashes.SHA256())
        )
        (work / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (work / f"{name}.key").write_bytes(key.private_bytes(*form))

    both = [ZONE, f"*.{ZONE}"]
    for name, days, hosts in [("good", 60, both), ("soon", 10, both), ("over", -2, both), ("else", 60, ["x.example"])]:
        pair(name, days, hosts)

    def told(certificate, key):
        settings = {"edge_tls_cert": work / f"{certificate}.crt", "edge_tls_key": work / f"{key}.key"}
        return Told(binary, work / "data", **settings)

    told("good", "good").has("certificates.edge", "ok", "for the zone and all hosts", "60 days")
    told("soon", "soon").has("certificates.edge", "warn", "10 days", "renew")
    told("over", "over").has("certificates.edge", "fail", "has expired")
    told("else", "else").has("certificates.edge", "warn", "neither for the zone")
    told("good", "soon").has("certificates.edge", "fail", "do not fit")
    told("good", "missing").has("certificates.edge", "fail", "edge_tls_key", "missing.key")


# --- public -------------------------------------------------------------------


@contextlib.contextmanager
def resolver(work, data=(), stub=None, is_one=False):
    """Unbound, which knows of the DNS what it is told, of all names in the zone the same if it `is_one`.

    It asks `stub` for the zone.
    """
    (port,) = free_ports(1)
    lines = "".join(f"    local-data: '{one}'\n" for one in data)
    asked = f'stub-zone:\n    name: "{PUBLIC_ZONE}."\n    stub-addr: {stub}\n' if stub else ""
    kind = "transparent" if stub else "redirect" if is_one else "static"
    settings = work / f"unbound-{port}.conf"
    settings.write_text(f"""
server:
    interface: 127.0.0.1
    port: {port}
    directory: "{work}"
    chroot: ""
    username: ""
    pidfile: ""
    use-syslog: no
    module-config: "iterator"
    do-not-query-localhost: no
    local-zone: "org." static
    local-zone: "{PUBLIC_ZONE}." {kind}
{lines}
remote-control:
    control-enable: no
{asked}
""")
    with open(work / f"unbound-{port}.log", "w") as log:
        process = subprocess.Popen(["/usr/sbin/unbound", "-d", "-c", settings], stdout=log, stderr=log)
    try:
        command = ["dig", "+short", "+tries=1", "+time=1", "-p", str(port), "@127.0.0.1", "org", "TXT"]
        expect.until("Unbound answers", 10, lambda: _run(command).returncode == 0)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def leads_to(work, address, *more):
    """A resolver for which all names of the zone lead there."""
    return resolver(work, [f"{PUBLIC_ZONE}. A {address}", *more], is_one=True)


def wanted(binary, work):
    with acme_directory.Directory(work / "ca", profiles={"classic": "as ever"}) as directory:
        settings = {
            "zone": PUBLIC_ZONE,
            "issuer": "acme",
            "acme_directory": directory.url,
            "acme_ca": directory.ca_file,
        }
        told = Told(binary, work / "data", **settings)
        told.has("acme.directory", "ok", "answers")
        told.has("acme.terms", "fail", "https://ca.example/terms", "--acme-agree-terms")
        told.has("acme.account", "ok", "none yet")
        told.has("acme.budget", "ok", "50 of 50")
        told.has("acme.challenges", "ok", "tls-alpn-01", "a certificate for each host", "port 443")
        told.has("clock.authority", "ok")
        expect.that("no account is made", not (work / "data").exists(), listing(work))
        settings["acme_agree_terms"] = "true"
        told = Told(binary, work / "data", acme_profile="novel", **settings)
        told.has("acme.terms", "ok")
        told.has("acme.profile", "fail", "novel", "classic")
        told = Told(binary, work / "data", acme_profile="classic", **settings)
        told.has("acme.profile", "ok", "classic")
        told = Told(binary, work / "data", acme_challenge="dns-01", acme_dns_hook=work / "hook", **settings)
        told.has("acme.hook", "fail", "no program")
        told = Told(binary, work / "data", issuer_fallback="private", **settings)
        told.has("settings.issuer_fallback", "warn", "strangers do not trust")
        told = Told(binary, work / "data", clock="+10m", **settings)
        told.has("clock.authority", "fail", "ahead of the public authority's", "NTP")
        told = Told(binary, work / "data", **{**settings, "acme_ca": work / "nowhere.pem"})
        told.has("acme.directory", "fail", "nowhere.pem")
        url = directory.url
    with acme_directory.Directory(work / "bound", external_accounts={"ours": "key"}) as directory:
        bound = {**settings, "acme_directory": directory.url, "acme_ca": directory.ca_file}
        told = Told(binary, work / "data", **bound)
        told.has("acme.external_account", "fail", "--acme-eab-key-id", "ADIT_ACME_EAB_KEY_FILE")
        (work / "key").write_text("a2V5\n")
        told = Told(
            binary, work / "data", environment={"ADIT_ACME_EAB_KEY_FILE": work / "key"}, acme_eab_key_id="ours", **bound
        )
        told.has("acme.external_account", "ok", "given")
    told = Told(binary, work / "data", **settings)
    told.has("acme.directory", "fail", url, "cannot be used", "HTTPS outwards")
    expect.that(
        "what the authority would say of the clock is left out", "clock.authority" not in told.checks, told.text
    )


def caa(binary, work):
    with acme_directory.Directory(work / "ca") as directory:
        settings = {
            "zone": PUBLIC_ZONE,
            "issuer": "acme",
            "acme_directory": directory.url,
            "acme_ca": directory.ca_file,
            "acme_agree_terms": "true",
            "public_address": "127.77.0.1",
        }
        for more, status, *words in [
            ([], "ok", "no record"),
            ([f'{PUBLIC_ZONE}. CAA 0 issue "ca.example"'], "ok", "ca.example"),
            (['example.org. CAA 0 issue "ca.example"'], "ok", "example.org says"),
            (['example.org. CAA 0 issue "other.example"'], "fail", "other.example", '0 issue "ca.example"'),
            ([f'{PUBLIC_ZONE}. CAA 0 issue ";"', 'example.org. CAA 0 issue "ca.example"'], "fail", "or nobody"),
            ([f'{PUBLIC_ZONE}. CAA 0 issue "ca.example; validationmethods=dns-01"'], "fail", "validation methods"),
            (
                [f'{PUBLIC_ZONE}. CAA 0 issue "ca.example; accounturi=https://ca.example/1"'],
                "warn",
                "no account there yet",
            ),
        ]:
            with leads_to(work, "127.77.0.1", *more) as address:
                told = Told(binary, work / "data", resolver=address, **settings)
                told.has("dns.caa", status, *words)
                told.has("dns.zone", "ok", "127.77.0.1")
                told.has("dns.hosts", "ok", "127.77.0.1")


def elsewhere(binary, work):
    settings = {"zone": PUBLIC_ZONE, "public_address": "127.77.0.1"}
    with leads_to(work, "192.0.2.9") as address:
        told = Told(binary, work / "data", resolver=address, **settings)
        told.has("dns.zone", "fail", "192.0.2.9", f"{PUBLIC_ZONE} A", "127.77.0.1")
        told.has("dns.hosts", "fail", f"*.{PUBLIC_ZONE} A")
        told = Told(binary, work / "data", resolver=address, zone=PUBLIC_ZONE)
        told.has("dns.zone", "warn", "--public-address")
    with resolver(work, [f"{PUBLIC_ZONE}. A 127.77.0.1"]) as address:
        told = Told(binary, work / "data", resolver=address, **settings)
        told.has("dns.zone", "ok")
        told.has("dns.hosts", "fail", "has no address", f"*.{PUBLIC_ZONE} A")
    told = Told(binary, work / "data", resolver="127.0.0.1:1", **settings)
    told.has("dns.zone", "fail", "cannot be looked up")


def everything(binary, work):
    address = "127.77.0.1"
    ports = {"http": 80, "https": 443}
    with contextlib.ExitStack() as world:
        edge = world.enter_context(socket.create_server((address, 443)))
        pebble = world.enter_context(Pebble(work / "pebble", dns=f"{address}:53", **ports))
        public = {
            "zone": PUBLIC_ZONE,
            "issuer": "acme",
            "acme_directory": pebble.directory,
            "acme_ca": pebble.trusted,
            "acme_agree_terms": "true",
            "acme_contact": "operator@example.org",
            "dns_listen": f"{address}:53",
            "http_listen": f"{address}:80",
            "public_address": address,
        }
        asked = world.enter_context(resolver(work, stub=f"{address}@53"))
        # systemd would hold the port, as we do.
        fresh = Told(binary, work / "data", resolver=asked, **public, edge_listen=f"{address}:4443")
        fresh.only("ok", "warn")
        fresh.has("dns.server", "warn", "start it")
        fresh.has("dns.delegation", "warn", f"{PUBLIC_ZONE} NS ns1.{PUBLIC_ZONE}", address)
        server = world.enter_context(Server(binary, data_dir=work / "data", edge_socket=edge, **public))
        here = beside(server, edge_listen=f"{address}:443", **public)
        # An order takes its time.
        told, since = None, time.monotonic()
        while not told or told.checks.get("certificates.zone", {}).get("status") != "ok":
            expect.that("a certificate within a minute", time.monotonic() - since < 60, server.output())
            told = Told(binary, server.data_dir, resolver=asked, **here)
        told.only("ok")
        told.has("dns.server", "ok", "UDP and TCP")
        told.has("dns.delegation", "ok", f"ns1.{PUBLIC_ZONE}", "leads here")
        told.has("dns.caa", "ok", "no record")
        told.has("acme.account", "ok", "https://localhost:")
        told.has("acme.budget", "ok", "49 of 50")
        told.has("acme.challenges", "ok", "one certificate for the zone and all hosts")
        told.has("certificates.zone", "ok", "Pebble", "trusted by acme_ca")
        told.has(f"reach.{address}:443", "ok", "Pebble")
        told.has(f"reach.{address}:80", "ok")
        told.has(f"reach.{address}:53", "ok")
        print(told.text)
        with leads_to(work, "192.0.2.9", f"{PUBLIC_ZONE}. NS ns.elsewhere.org.") as other:
            told = Told(binary, server.data_dir, resolver=other, **here)
            told.has("dns.delegation", "fail", "ns.elsewhere.org", "do not lead here", f"NS ns1.{PUBLIC_ZONE}")
            told.has("dns.zone", "fail", "192.0.2.9")
        pebble.stop()
        told = Told(binary, server.data_dir, resolver=asked, **here)
        told.has("acme.directory", "fail", "cannot be used")
        expect.equal(
            "nothing else has failed",
            [n for n, one in told.checks.items() if one["status"] == "fail"],
            ["acme.directory"],
        )


def flags(binary, work):
    done = _run([binary, "check", "--bogus"])
    expect.equal("a wrong flag", done.returncode, 2)
    told = Told(binary, work / "data", issuer="acme")
    told.has("settings.values", "fail", "acme_directory")
    done = _run([binary, "check", "--help"])
    expect.that("the exit status is documented", "Exit status: 0" in done.stdout, done.stdout)
    expect.that("--resolver is for tests", "--resolver" not in done.stdout, done.stdout)


if __name__ == "__main__":
    expect.run(main)
