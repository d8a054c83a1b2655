"""Follows docs/operating.md as an operator of Debian would who sets up a panel with nginx and certbot.

    python panel_operator.py --server ../target/release/api-server

The commands of the page are run as they stand, on a throw-away copy of this machine (`operator_host.py`): the
unit and the rules of polkit are those of docs/samples, certbot has its real directories and permissions, nginx
stands in front, and the server is another user who cannot gain privileges. The ACME server is Pebble. Then the panel
lists and renews certificates, rotates the admin's, revokes, and shows a person without a certificate how to get in,
which Chromium judges. Needs root, `nginx`, `certbot`, `pebble`, `polkitd`, `dbus`, `chromium`, `python3-seccomp` and requirements.txt.
"""

import contextlib
import functools
import os
import pathlib
import re
import shutil
import ssl
import subprocess
import tempfile

import expect
from operator_host import Polkit, Systemd, enter, run, wait_for_port
from panel_server import (
    MTLS_REQUIRED,
    REVOKED,
    Caller,
    Identity,
    answers,
    crl_serials,
    csr_of,
    ec_key,
    end_of,
    from_p12,
    keep,
    openssl,
    pem_of,
    serial_of,
)
from server import arguments

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAME = "panel.example.com"
# As docs/samples/adit.toml has them.
ZONE = "tunnels.example.com"
CERTIFICATE, KEY = (pathlib.Path(f"/etc/ssl/{ZONE}.{kind}") for kind in ("crt", "key"))
SYSTEMD = "## systemd"
PKI = pathlib.Path("/var/lib/adit/pki")
LIVE = pathlib.Path("/etc/letsencrypt/live") / NAME
PORT = 9292
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
# In the place of what an operator answers when certbot asks; Pebble in the place of Let's Encrypt.
CLI_INI = """non-interactive = true
agree-tos = true
register-unsafely-without-email = true
server = https://localhost:14000/dir
no-verify-ssl = true
"""
PEBBLE = """{{"pebble": {{"listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000",
    "certificate": "{work}/pebble.crt", "privateKey": "{work}/pebble.key", "httpPort": 80, "tlsPort": 443,
    "ocspResponderURL": "", "externalAccountBindingRequired": false, "certificateValidityPeriod": 5184000}}}}"""


def main():
    options = arguments(__doc__).parse_args()
    server = pathlib.Path(options.server).resolve()
    enter()
    with tempfile.TemporaryDirectory(prefix="adit-operator-") as work:
        work = pathlib.Path(work)
        polkit = Polkit()
        systemd = Systemd(polkit)
        with contextlib.ExitStack() as stack:
            stack.callback(systemd.end)
            pebble = stack.enter_context(acme(work))
            shutil.copy(server, work / "api-server")
            try:
                follow(work)
                host = Host(work, systemd, polkit, pebble)
                expect.each([(name, functools.partial(check, host)) for name, check in CHECKS.items()])
            except BaseException:
                for log in ("/run/adit.service.log", "/var/log/nginx/error.log"):
                    with contextlib.suppress(OSError):
                        print(f"--- {log}\n{pathlib.Path(log).read_text()[-4000:]}---", flush=True)
                raise


def follow(work):
    """Does what the page says, in its order."""
    pathlib.Path("/etc/letsencrypt").mkdir(exist_ok=True)
    pathlib.Path("/etc/letsencrypt/cli.ini").write_text(CLI_INI)
    with open("/etc/hosts", "a") as hosts:
        hosts.write(f"127.0.0.1 {NAME} {ZONE} localhost\n")
    # The page's working directory has the program and the samples.
    (work / "docs").symlink_to(ROOT / "docs")
    expect.each(
        [
            ("a server with everything on port 443", functools.partial(everything_on_443, work)),
            ("its backup and restore", functools.partial(backup_and_restore, work)),
        ]
    )
    # Another server comes in its place, as on a host where one runs already.
    [stop] = re.findall(r"the first command is `(.*?)`", section(SYSTEMD))
    run(stop)
    shutil.rmtree("/var/lib/adit")
    # Debian's package starts it, with a page on port 80.
    run("systemctl start nginx.service")
    wait_for_port(80)
    for line in commands(SYSTEMD):
        # It is the other sample that the page asks for, and the names in it are the page's.
        run(line.replace("docs/samples/adit.toml", "docs/samples/adit-panel.toml"), cwd=work)
    # RSA keys take their time.
    expect.until("the first start", 60, lambda: (PKI / "crl.pem").exists())
    wait_for_port(3100)
    for line in commands("### A panel with nginx and certbot, on Debian"):
        run(line, cwd=work)
    wait_for_port(PORT)


def everything_on_443(work):
    for line in commands(SYSTEMD):
        run(line, cwd=work)
        if line == "systemd-sysusers":
            certificate_for_the_zone()
    served = functools.partial(ssl.get_server_certificate, (ZONE, 443), timeout=5)
    expect.until("the zone's own certificate", 30, lambda: attempt(served) == CERTIFICATE.read_text())


def certificate_for_the_zone():
    """Public, as far as the sample's settings know."""
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 2".split()
    openssl(*words, "-subj", f"/CN={ZONE}", "-addext", f"subjectAltName=DNS:{ZONE}", "-keyout", KEY, "-out", CERTIFICATE)
    for command in re.findall(r"`(chgrp adit|chmod 640)`", section(SYSTEMD)):
        run(f"{command} {KEY}")


def backup_and_restore(work):
    """What is there comes back, and what was made since is gone."""
    before = (PKI / "client.crt").read_text()
    backup, restore = blocks("### Backup and restore on such a host")
    for line in backup:
        run(line)
    (PKI / "since").touch()
    for line in restore:
        run(line)
    expect.equal("the admin's certificate", (PKI / "client.crt").read_text(), before)
    expect.that("what came since is not there", not (PKI / "since").exists())
    expect.equal("the user's", {path.owner() for path in PKI.rglob("*")}, {"adit"})
    expect.until("it serves", 30, lambda: attempt(lambda: ssl.get_server_certificate((ZONE, 443), timeout=5)))
    shutil.rmtree("/var/lib/adit.before")


def attempt(call):
    with contextlib.suppress(OSError):
        return call()


def commands(heading):
    [lines] = blocks(heading)
    return lines


def blocks(heading):
    found = re.findall(r"^```sh\n(.*?)^```$", section(heading), re.MULTILINE | re.DOTALL)
    return [block.splitlines() for block in found]


def section(heading):
    page = (ROOT / "docs" / "operating.md").read_text()
    return re.split(r"^##+ ", page.partition(f"\n{heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


class Host:
    """What the checks look at."""

    def __init__(self, work, systemd, polkit, pebble):
        self.work, self.systemd, self.polkit, self.pebble = work, systemd, polkit, pebble

    def admin(self):
        return keep(self.work, (PKI / "client.crt").read_bytes(), (PKI / "client.key").read_bytes())

    def ask(self, identity, method, path, body=None, headers=None):
        """Through nginx; a renewal takes a while."""
        with Caller(PORT, identity, timeout=100) as caller:
            return caller.ask(method, path, body, headers)

    def done(self, identity, method, path, body=None):
        answer = self.ask(identity, method, path, body)
        expect.status(f"{method} {path}", answer, 200)
        return answer.json

    def served(self):
        """The serial of the certificate that nginx shows."""
        pem = ssl.get_server_certificate(("127.0.0.1", PORT), timeout=5)
        return openssl("x509", "-noout", "-serial", input=pem).strip().partition("=")[2]

    def as_adit(self, *words):
        command = ["setpriv", "--reuid", "adit", "--regid", "adit", "--clear-groups", "--no-new-privs", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)


def units(host):
    samples, installed = ROOT / "docs" / "samples" / "systemd", pathlib.Path("/etc/systemd/system")
    names = sorted(path.name for path in samples.iterdir() if path.suffix != ".conf")
    expect.equal("all are known", len(names), 4)

    def verified(what, name):
        done = subprocess.run(["systemd-analyze", "verify", name], capture_output=True, text=True, timeout=30)
        expect.equal(f"systemd-analyze verify {name}{what}", (done.returncode, done.stdout, done.stderr), (0, "", ""))

    for name in names:
        # An instance, for a template alone cannot be started.
        verified("", str(installed / name.replace("@.", f"@{NAME}.")))
    drop_in = installed / "adit.service.d" / "ports.conf"
    drop_in.parent.mkdir()
    try:
        shutil.copy(samples / "ports.conf", drop_in)
        verified(" with its ports", str(installed / "adit.service"))
    finally:
        shutil.rmtree(drop_in.parent)


def rules(host):
    """Exactly what is meant, for that user alone; by the real polkit."""
    user, nobody = (int(run(["id", "-u", name])) for name in ("adit", "nobody"))
    for uid, verb, unit, may in (
        (user, "reload", "nginx.service", True),
        (user, "start", "adit-certbot-list.service", True),
        (user, "start", f"adit-certbot-renew@{NAME}.service", True),
        (user, "start", "adit-certbot-renew@a-b.example-0001.service", True),
        (user, "restart", "nginx.service", False),
        (user, "stop", "nginx.service", False),
        (user, "start", "nginx.service", False),
        (user, "start", "ssh.service", False),
        (user, "stop", f"adit-certbot-renew@{NAME}.service", False),
        (user, "start", "adit-certbot-renew@--deploy-hook.service", False),
        (user, "start", "adit-certbot-renew@a b.service", False),
        (user, "start", "adit-certbot-renew@a.service.d.mount", False),
        (user, "start", "adit-certbot-renew@.service", False),
        (user, "start", "x-adit-certbot-renew@a.service", False),
        (nobody, "reload", "nginx.service", False),
        (nobody, "start", "adit-certbot-list.service", False),
    ):
        with subprocess.Popen(["setpriv", "--reuid", str(uid), "--clear-groups", "sleep", "30"]) as process:
            came = host.polkit.check(process.pid, uid, unit, verb)
            process.kill()
        expect.equal(f"{uid} may {verb} {unit}", came == 0, may)


def no_privileges(host):
    pid = run(["pgrep", "-u", "adit", "-x", "api-server"]).strip()
    status = dict(re.findall(r"^(\w+):\s*(.*)$", pathlib.Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
    expect.equal("it cannot gain any", status["NoNewPrivs"], "1")
    # Families, memory, namespaces, and all that is not in the unit's group.
    expect.equal("its system calls are filtered", (status["Seccomp"], status["Seccomp_filters"]), ("2", "4"))
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        expect.equal(name, int(status[name], 16), 0)
    expect.equal("live is closed to it", host.as_adit("ls", "/etc/letsencrypt/live").returncode, 2)
    expect.equal("certbot is of no use to it", host.as_adit("certbot", "certificates").returncode, 1)
    expect.equal("nginx -t is, too", host.as_adit("/usr/sbin/nginx", "-t").returncode, 1)
    refused = host.as_adit("systemctl", "stop", "nginx.service")
    expect.equal("nor may it stop nginx", (refused.returncode, "Access denied" in refused.stderr), (1, True))


def listing(host):
    # As Debian has it, and with names that can be read and certificates that cannot.
    for mode in (0o755, 0o700):
        LIVE.parent.chmod(mode)
        certs = host.done(host.admin(), "GET", "/api/certs")["certs"]
        found = [(each["domain"], each["expiresAt"], each["path"]) for each in certs if each["type"] == "letsencrypt"]
        wanted = [(NAME, end_of(LIVE / "fullchain.pem"), str(LIVE / "fullchain.pem"))]
        expect.equal(f"certbot's, mode {mode:o}", found, wanted)
    listing_units = [asked for asked in host.systemd.asked if asked[1] == "adit-certbot-list.service"]
    expect.that("by its unit, for the user", all(uid != 0 for *_, uid in listing_units) and listing_units)


def renewal(host):
    admin, before = host.admin(), serial_of(LIVE / "fullchain.pem")
    expect.equal("nginx shows the certificate", host.served(), before)
    renewed = host.ask(admin, "POST", f"/api/certs/{NAME}/renew")
    wanted = {"ok": True, "domain": NAME, "newExpiry": end_of(LIVE / "fullchain.pem")}
    answers("it has a date and no warning", renewed, 200, wanted)
    after = serial_of(LIVE / "fullchain.pem")
    expect.that("it is another one", after != before)
    expect.until("nginx shows it", 5, lambda: host.served() == after)
    answers("another name", host.ask(admin, "POST", "/api/certs/other.example.com/renew"), 404, NOT_FOUND)


NOT_FOUND = {"error": "Certificate not found"}


def renewal_by_certbot_alone(host):
    """As its timer does: nobody tells the panel."""
    before = serial_of(LIVE / "fullchain.pem")
    expect.equal("nginx shows the one that there is", host.served(), before)
    run(f"certbot renew --cert-name {NAME} --force-renewal --no-random-sleep-on-renew --quiet")
    after = serial_of(LIVE / "fullchain.pem")
    expect.that("it is another one", after != before)
    expect.until("nginx shows it", 5, lambda: host.served() == after)


def renewal_that_fails(host):
    host.pebble.kill()
    host.pebble.wait()
    answer = host.ask(host.admin(), "POST", f"/api/certs/{NAME}/renew")
    expect.status("without an ACME server", answer, 500)
    expect.equal("why", answer.json["error"], "Certificate renewal failed")
    said = answer.json["details"]
    expect.that("in certbot's words", "renew failure" in said or "connect" in said.lower(), said)
    expect.that("in one line", "\n" not in said and len(said) <= 500, said)


def broken_nginx(host):
    """A configuration with an error: told, and what runs goes on."""
    wrong = pathlib.Path("/etc/nginx/conf.d/wrong.conf")
    wrong.write_text("no_such_directive on;\n")
    admin = host.admin()
    rotated = host.done(admin, "POST", "/api/certs/mtls/rotate")
    expect.that("the test fails, without rights, too", "config test failed" in rotated["warning"], rotated["warning"])
    wrong.unlink()
    expect.status("nginx goes on", host.ask(host.admin(), "GET", "/api/certs/admin/auth-mode"), 200)
    # The end of the grace tells it what it has missed.
    expect.until("nginx is told later", 10, lambda: not (PKI / ".nginx-reload").exists())


def rotation(host):
    """With `ssl_crl`: the old certificate fetches the new bundle, and then nothing."""
    old = host.admin()
    rotated = host.done(old, "POST", "/api/certs/mtls/rotate")
    # Though `nginx -t`, as the server calls it, may read neither keys nor logs.
    expect.that("no warning of nginx", "nginx" not in rotated["warning"], rotated["warning"])
    answers("the old one", host.ask(old, "GET", "/api/certs"), 403, REVOKED)
    bundle = host.ask(old, "GET", "/api/certs/mtls/download")
    expect.status("but for the bundle", bundle, 200)
    new = from_p12(host.work, bundle.body, rotated["p12Password"])
    host.done(new, "GET", "/api/certs/admin/auth-mode")
    expect.until("crl.pem names the old one", 5, lambda: old.serial in crl_serials(PKI / "crl.pem", PKI / "ca.crt"))

    def refused():
        # nginx has not verified it: the panel is told of no certificate.
        answer = host.ask(old, "GET", "/api/certs/mtls/download")
        return (answer.status, answer.json) == (403, MTLS_REQUIRED)

    expect.until("and nginx refuses it", 5, refused)
    host.done(new, "GET", "/api/certs")


def revocation(host):
    admin = host.admin()
    token = host.done(admin, "POST", "/api/certs/agent/enroll", {"label": "laptop"})["token"]
    key = ec_key()
    enrolled = host.done(None, "POST", "/api/enroll", {"token": token, "csr": csr_of(key)})
    agent = keep(host.work, enrolled["cert"], pem_of(key))
    host.done(agent, "GET", "/api/tunnels")
    host.done(admin, "DELETE", "/api/certs/agent/laptop")
    answers("at once", host.ask(agent, "GET", "/api/tunnels"), 403, REVOKED)
    run("systemctl reload nginx.service")

    def refused():
        answer = host.ask(agent, "GET", "/api/tunnels")
        return (answer.status, answer.json) == (403, MTLS_REQUIRED)

    expect.until("and by nginx", 5, refused)


def changes_from_pages(host):
    """nginx passes the host as it came; a browser's own word counts whatever the host is."""
    admin, path = host.admin(), "/api/certs/agent/enroll/nobody"
    for headers, status in (
        ({"Sec-Fetch-Site": "same-origin", "Origin": f"https://{NAME}:{PORT}"}, 200),
        ({"Origin": f"https://127.0.0.1:{PORT}"}, 200),
        ({"Origin": "https://127.0.0.1"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "https://evil.example.com"}, 403),
        ({"Origin": "https://evil.example"}, 403),
    ):
        expect.status(str(headers), host.ask(admin, "DELETE", path, headers=headers), status)


def page_for_people(host):
    foreign = another_certificate(host.work)
    for what, identity in (("no certificate", None), ("one of another authority", foreign)):
        page = host.ask(identity, "GET", "/", headers={"Accept": BROWSER})
        expect.equal(what, (page.status, page.headers["content-type"]), (403, "text/html; charset=utf-8"))
        answers(f"{what}, a program", host.ask(identity, "GET", "/"), 403, MTLS_REQUIRED)
    for path in ("/", "/api/certs"):
        seen = chromium(host.work, f"https://{NAME}:{PORT}{path}")
        for text in ("has shown no certificate", "client.p12", "reset-admin", f"{NAME}:{PORT}"):
            expect.that(f"Chromium shows {text!r} at {path}", text in seen, seen[:2000])


def chromium(work, url):
    """The page as Chromium has it after it was loaded."""
    switches = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    switches += " --disable-component-update --disable-sync --ignore-certificate-errors --dump-dom"
    profile = tempfile.mkdtemp(dir=work)
    command = ["chromium", *switches.split(), f"--user-data-dir={profile}", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env={**os.environ, "HOME": profile})
    expect.equal(f"chromium {url}: {done.stderr[-500:]}", done.returncode, 0)
    return done.stdout


def another_certificate(work):
    key, cert = work / "foreign.key", work / "foreign.crt"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 2 -subj /CN=admin/O=Portlama".split()
    openssl(*words, "-keyout", key, "-out", cert)
    return Identity(cert, key)


CHECKS = {
    "the units, by systemd-analyze": units,
    "the rules, by polkit": rules,
    "the server has no privileges": no_privileges,
    "certbot's list, though live is closed": listing,
    "a renewal": renewal,
    "a renewal by certbot's timer": renewal_by_certbot_alone,
    "a rotation with ssl_crl": rotation,
    "a revocation": revocation,
    "an nginx that refuses": broken_nginx,
    "changes that pages ask for": changes_from_pages,
    "the page for people, in Chromium": page_for_people,
    "a renewal that fails": renewal_that_fails,
}


@contextlib.contextmanager
def acme(work):
    """Pebble, and names that all are this machine."""
    openssl(
        *"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 2 -subj /CN=localhost".split(),
        *("-addext", "subjectAltName=DNS:localhost", "-keyout", work / "pebble.key", "-out", work / "pebble.crt"),
    )
    (work / "pebble.json").write_text(PEBBLE.format(work=work))
    names = "pebble-challtestsrv -defaultIPv4 127.0.0.1 -dns01 127.0.0.1:8053 -management 127.0.0.1:8055".split()
    names += ["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""]
    silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    quick = {**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
    pebble = ["pebble", "-config", work / "pebble.json", "-dnsserver", "127.0.0.1:8053"]
    with subprocess.Popen(names, **silent) as dns, subprocess.Popen(pebble, env=quick, **silent) as process:
        try:
            wait_for_port(8055)
            wait_for_port(14000)
            yield process
        finally:
            for each in (dns, process):
                each.kill()


if __name__ == "__main__":
    expect.run(main)
