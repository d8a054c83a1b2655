"""Renews certificates through the panel with the real certbot, Pebble as the ACME server, and nginx.

Pebble asks pebble-challtestsrv for the name's address and fetches the challenge
from our nginx; certbot gets a first certificate, nginx serves it. Then the
panel lists it, renews it, and nginx shows the new one to the next visitor.
After that the failures, with stand-ins for certbot, nginx and systemctl.
Everything lives in temporary directories and on loopback ports; nothing of the
machine's own certbot or nginx is touched.

    python certbot.py --server ../target/release/api-server
"""

import contextlib
import datetime
import fcntl
import functools
import os
import pathlib
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time

import expect
from panel_server import Panel, answers, end_of, free_port, openssl, sections, serial_of
from server import arguments

NAME = "app.example.com"
GOES_WITHIN = 5.0  # seconds for a process to be gone, or for nginx to show a new certificate
TIMEOUT = 2.0  # instead of the 90 s of the server
NOT_FOUND = {"error": "Certificate not found"}
TEST_FAILED = "Certificate renewed but nginx config test failed"
NO_TIMER = {"active": False, "nextRun": None, "lastRun": None}


def main():
    options = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="adit-certbot-") as work:
        work = pathlib.Path(work)
        stand_ins = StandIns(work / "stand-ins")
        sections(
            ("the real certbot, Pebble and nginx", functools.partial(real, options.server, work / "real")),
            ("renewals that fail", functools.partial(failing, options.server, stand_ins)),
            ("the list without certbot's directory", functools.partial(listing, options.server, stand_ins)),
            ("the renewal timer", functools.partial(timer, options.server, stand_ins)),
        )


# --- certbot, Pebble, nginx ---------------------------------------------------

PEBBLE = """{{"pebble": {{
    "listenAddress": "127.0.0.1:{directory}", "managementListenAddress": "127.0.0.1:{management}",
    "certificate": "{work}/pebble.crt", "privateKey": "{work}/pebble.key", "httpPort": {http}, "tlsPort": {https},
    "ocspResponderURL": "", "externalAccountBindingRequired": false, "certificateValidityPeriod": 5184000
}}}}"""

NGINX = """
worker_processes 1; pid {work}/nginx.pid; error_log {work}/nginx-error.log;
events {{ worker_connections 64; }}
http {{
    access_log off; client_body_temp_path {work}/body; proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi; uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
    server {{ listen 127.0.0.1:{http}; root {work}/webroot; }}
    {tls}
}}
"""

NGINX_TLS = """server {{
    listen 127.0.0.1:{https} ssl; ssl_session_tickets off;
    ssl_certificate {live}/fullchain.pem; ssl_certificate_key {live}/privkey.pem;
    location / {{ return 200 "hello"; }}
}}"""


class Acme:
    """certbot on directories of its own, with an ACME server and a web server that it can use."""

    def __init__(self, work):
        self.work = work
        self.letsencrypt = work / "letsencrypt"
        self.live = self.letsencrypt / "live" / NAME
        names = ("http", "https", "directory", "management", "dns", "dns_management")
        self.ports = {name: free_port() for name in names}
        # A command line of the settings: it is split at blanks.
        places = f"--config-dir {self.letsencrypt} --work-dir {work}/certbot --logs-dir {work}/logs"
        self.certbot = f"/usr/bin/env REQUESTS_CA_BUNDLE={work}/pebble.crt /usr/bin/certbot {places}"
        self.nginx = f"/usr/sbin/nginx -p {work} -c {work}/nginx.conf"

    @property
    def fullchain(self):
        return self.live / "fullchain.pem"

    def obtain(self):
        words = f"certonly --non-interactive --agree-tos --register-unsafely-without-email -d {NAME}"
        words += f" --server https://localhost:{self.ports['directory']}/dir"
        words += f" --webroot --webroot-path {self.work}/webroot"
        done = subprocess.run(
            f"{self.certbot} {words}".split(), capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
        expect.that("certbot gets a certificate", done.returncode == 0, done.stdout + done.stderr)

    def configure_nginx(self, with_tls, more=""):
        tls = NGINX_TLS.format(live=self.live, **self.ports) if with_tls else ""
        user = "user root;" if os.geteuid() == 0 else ""
        (self.work / "nginx.conf").write_text(user + NGINX.format(work=self.work, tls=tls, **self.ports) + more)

    def served(self):
        """The serial of the certificate that a new visitor of nginx sees."""
        pem = ssl.get_server_certificate(("127.0.0.1", self.ports["https"]), timeout=5)
        return openssl("x509", "-noout", "-serial", input=pem).strip().partition("=")[2]


@contextlib.contextmanager
def rig(work):
    acme = Acme(work)
    (work / "webroot").mkdir(parents=True)
    openssl(
        *"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost".split(),
        *("-addext", "subjectAltName=DNS:localhost", "-addext", "extendedKeyUsage=serverAuth"),
        *("-keyout", work / "pebble.key", "-out", work / "pebble.crt"),
    )
    (work / "pebble.json").write_text(PEBBLE.format(work=work, **acme.ports))
    acme.configure_nginx(with_tls=False)
    dns, management = (f"127.0.0.1:{acme.ports[name]}" for name in ("dns", "dns_management"))
    names = ["pebble-challtestsrv", "-defaultIPv4", "127.0.0.1", "-dns01", dns, "-management", management]
    names += ["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""]
    with (
        background(names, acme.ports["dns_management"], work),
        # No sleep before a validation, no nonces refused for practice.
        background(
            ["pebble", "-config", work / "pebble.json", "-dnsserver", dns],
            acme.ports["directory"],
            work,
            {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"},
        ),
        background([*acme.nginx.split(), "-g", "daemon off;"], acme.ports["http"], work),
    ):
        acme.obtain()
        acme.configure_nginx(with_tls=True)
        subprocess.run([*acme.nginx.split(), "-s", "reload"], check=True, timeout=10, capture_output=True)
        expect.until("nginx serves TLS", GOES_WITHIN, lambda: listens(acme.ports["https"]))
        yield acme


@contextlib.contextmanager
def background(command, port, work, environment=None):
    """Runs a command until the block ends; begins when it listens on `port`."""
    log = work / f"{pathlib.Path(command[0]).name}.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            cwd=work,
        )
    try:
        expect.until(f"{command[0]} listens", 15, lambda: listens(port) or process.poll() is not None)
        expect.that(f"{command[0]} runs", process.poll() is None, log.read_text(errors="replace"))
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# --- the real thing -----------------------------------------------------------


def real(binary, work, report):
    with rig(work) as acme:
        settings = {
            "panel_letsencrypt_dir": acme.letsencrypt,
            "panel_certbot": acme.certbot,
            "panel_nginx_test": f"{acme.nginx} -t",
            "panel_nginx_reload": f"{acme.nginx} -s reload",
            "panel_renewal_timeout": "20s",
        }
        with Panel(binary, **settings) as panel:
            admin = panel.admin()
            checks = {
                "7.1 certbot's certificate is listed, before those that end later": lists,
                "7.3 a renewal changes it, and nginx shows it": renews,
                "7.3 a name that certbot does not know is 404": unknown,
                "7.3 while another certbot runs it is 500, and the list stays": locked,
                "7.3 a broken configuration of nginx is a warning": breaks_nginx,
            }
            report([(name, functools.partial(call, panel, admin, acme)) for name, call in checks.items()])


def renew(panel, admin, name=NAME, **named):
    return panel.call(admin, "POST", f"/api/certs/{name}/renew", timeout=60, **named)


def lists(panel, admin, acme):
    entry, *others = panel.done(admin, "GET", "/api/certs")["certs"]
    expect.equal("the entry", entry, entry_of(NAME, end_of(acme.fullchain), acme.fullchain, soon=False))
    expect.equal("the others", [each["type"] for each in others], ["mtls-client", "mtls-ca"])


def entry_of(name, end, path, soon):
    left = datetime.datetime.fromisoformat(end) - datetime.datetime.now(datetime.UTC)
    days = left // datetime.timedelta(days=1)
    entry = {"type": "letsencrypt", "domain": name, "expiresAt": end, "daysUntilExpiry": days}
    return {**entry, "path": str(path), "expiringSoon": soon}


def renews(panel, admin, acme):
    before = serial_of(acme.fullchain)
    expect.equal("nginx shows the certificate so far", acme.served(), before)
    began = time.monotonic()
    # As the web panel sends it: no body, of a kind (2.2).
    answer = renew(panel, admin, body=b"", headers={"Content-Type": "application/json"})
    print(f"        answered after {time.monotonic() - began:.1f} s")
    expect.status("the renewal", answer, 200)
    after = serial_of(acme.fullchain)
    expect.that("the certificate on disk is another", after != before, after)
    wanted = {"ok": True, "domain": NAME, "newExpiry": end_of(acme.fullchain)}
    answers("the renewal tells openssl's date and no warning", answer, 200, wanted)
    expect.until("a new visitor of nginx sees it", GOES_WITHIN, lambda: acme.served() == after)


def unknown(panel, admin, _acme):
    answers("an unknown name", renew(panel, admin, "unknown.example.com"), 404, NOT_FOUND)


def locked(panel, admin, acme):
    with open(acme.letsencrypt / ".certbot.lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        failed_with_details(renew(panel, admin))
        lists(panel, admin, acme)


def breaks_nginx(panel, admin, acme):
    before = acme.served()
    acme.configure_nginx(with_tls=True, more="this is no directive;")
    try:
        answer = renew(panel, admin)
    finally:
        acme.configure_nginx(with_tls=True)
    wanted = {"ok": True, "domain": NAME, "newExpiry": end_of(acme.fullchain), "warning": TEST_FAILED}
    answers("the renewal", answer, 200, wanted)
    expect.that("the certificate on disk is another", serial_of(acme.fullchain) != before, before)
    expect.equal("nginx goes on with the old one", acme.served(), before)


# --- stand-ins ----------------------------------------------------------------


class StandIns:
    """Scripts in the place of certbot, nginx and systemctl; what they do is changed while the server runs."""

    def __init__(self, place):
        self.place = place
        place.mkdir()
        self.letsencrypt, self.calls = place / "letsencrypt", place / "calls"
        names = ("certbot", "nginx-test", "nginx-reload", "systemctl")
        self.certbot, self.test, self.reload, self.systemctl = (place / name for name in names)
        self.settings = {
            "panel_letsencrypt_dir": self.letsencrypt,
            "panel_certbot": f"{self.certbot} --some option",
            "panel_nginx_test": f"{self.test} -t",
            "panel_nginx_reload": f"{self.reload} now",
            "panel_systemctl": self.systemctl,
            "panel_renewal_timeout": f"{TIMEOUT:.0f}s",
        }
        self.calm()

    def calm(self):
        for path in (self.certbot, self.test, self.reload, self.systemctl):
            self.does(path, "exit 0")
        self.calls.unlink(missing_ok=True)
        self.lineage(NAME)

    def does(self, path, script, interpreter="/bin/sh"):
        # A script that is being written to cannot be run: put another in its place.
        fresh = path.with_suffix(".fresh")
        note = f'echo "$(basename "$0") $*" >> {self.calls}\n' if interpreter == "/bin/sh" else ""
        fresh.write_text(f"#!{interpreter}\n{note}{script}\n")
        fresh.chmod(0o755)
        fresh.replace(path)

    def called(self):
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def lineage(self, name):
        """A certificate as certbot leaves it."""
        live, renewal = self.letsencrypt / "live" / name, self.letsencrypt / "renewal"
        for each in (live, renewal):
            each.mkdir(parents=True, exist_ok=True)
        (renewal / f"{name}.conf").write_text("version = 2.1.0\n")
        if not hasattr(self, "_pem"):
            words = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 60 -subj /CN={name}"
            self._pem = openssl(*words.split(), "-keyout", "/dev/null")
        (live / "fullchain.pem").write_text(self._pem)
        return live / "fullchain.pem"


def failing(binary, stand_ins, report):
    with Panel(binary, **stand_ins.settings) as panel:
        admin = panel.admin()

        def run(call):
            stand_ins.calm()
            call(panel, admin, stand_ins)

        checks = {
            "12.2 certbot is called with the documented words": words_of_renewal,
            "7.3 without a renewal configuration it is 404, and certbot is not asked": no_configuration,
            "7.3 certbot says that it has no such certificate: 404": says_not_found,
            "7.3 no certbot, or no command of its: 500, not 404": no_certbot,
            "7.3 a hanging certbot is 500 in time, and leaves no process": hangs,
            "7.3 a noisy failure becomes one short clean line": shouts,
            "7.3 a failure without words has a text": says_nothing,
            "7.3 a certificate that cannot be read afterwards: newExpiry null": unreadable,
            "7.3 nginx's test fails or is missing: a warning, and no reload": no_test,
            "7.1 foreign things in `live` are no harm": odd_lineages,
        }
        report([(name, functools.partial(run, call)) for name, call in checks.items()])


def failed_with_details(answer):
    """500 as the documentation has it, with one short printable line; returns the line."""
    expect.status("the renewal", answer, 500)
    body = answer.json
    expect.equal("its fields", list(body), ["error", "details"])
    expect.equal("its error", body["error"], "Certificate renewal failed")
    details = body["details"]
    expect.that("details is a text of at most 500 characters", isinstance(details, str) and len(details) <= 500, body)
    expect.equal("details has no key and no path of a key", re.findall("privkey|private_key|MIGHAgEA", details), [])
    expect.that("details is one line of printable characters", details.isprintable(), ascii(details))
    return details


def words_of_renewal(panel, admin, stand_ins):
    wanted = {"ok": True, "domain": NAME, "newExpiry": end_of(stand_ins.lineage(NAME))}
    answers("the renewal", renew(panel, admin), 200, wanted)
    certbot, *nginx = stand_ins.called()
    words = certbot.split()
    expect.equal("first those of the setting", words[:4], ["certbot", "--some", "option", "renew"])
    for wanted in (f"--cert-name {NAME}", "--force-renewal", "--non-interactive"):
        expect.that(f"then {wanted}", wanted in certbot, certbot)
    expect.equal("then nginx is tested and reloaded", nginx, ["nginx-test -t", "nginx-reload now"])
    # Without a terminal certbot waits up to eight minutes first, more than the 90 s that it is given.
    expect.that("and no random sleep", "--no-random-sleep-on-renew" in words, certbot)


def no_configuration(panel, admin, stand_ins):
    answers("the renewal", renew(panel, admin, "absent.example.com"), 404, NOT_FOUND)
    expect.equal("calls", stand_ins.called(), [])


def says_not_found(panel, admin, stand_ins):
    text = f"No certificate found with name {NAME} (expected /etc/letsencrypt/renewal/{NAME}.conf)."
    stand_ins.does(stand_ins.certbot, f"echo '{text}' >&2; exit 1")
    answers("the renewal", renew(panel, admin), 404, NOT_FOUND)


def no_certbot(panel, admin, stand_ins):
    stand_ins.does(stand_ins.certbot, "echo 'sudo: certbot: command not found' >&2; exit 127")
    failed_with_details(renew(panel, admin))
    stand_ins.certbot.unlink()
    failed_with_details(renew(panel, admin))


def hangs(panel, admin, stand_ins):
    """It has a child, and neither cares about SIGTERM; with its output open, then closed."""
    for first in ("", "exec >/dev/null 2>&1"):
        pids = stand_ins.place / "pids"
        script = f"trap '' TERM INT HUP\n{first}\nsleep 600 &\necho $$ $! > {pids}\nwait\nsleep 600"
        stand_ins.does(stand_ins.certbot, script)
        began = time.monotonic()
        answer = renew(panel, admin)
        took = time.monotonic() - began
        failed_with_details(answer)
        expect.that(f"the answer comes after {TIMEOUT} s", TIMEOUT - 0.1 <= took < TIMEOUT + 5, took)
        started = pids.read_text().split()
        try:
            expect.until("both are gone", GOES_WITHIN, lambda started=started: not any(map(runs, started)))
        finally:
            for pid in filter(runs, started):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        expect.equal("nginx was not touched", len(stand_ins.called()), 1)
        stand_ins.calm()


def runs(pid):
    """A process that ended, but that nobody waited for, does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def shouts(panel, admin, stand_ins):
    """200 KB with colours, control and format characters, bytes that are no UTF-8, keys and their paths."""
    line = (
        b"\x1b[31mAttempting\x1b[0m to read /etc/letsencrypt/live/app.example.com/privkey.pem\r\n"
        b"/etc/letsencrypt/archive/app.example.com/privkey1.pem \x00\x07\x08 \xff\xfe\r"
        b"/etc/letsencrypt/accounts/acme/directory/0/private_key.json\n"
        b"-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg\n\xe2\x80\xa8\xe2\x80\xae\n"
    )
    noise = stand_ins.place / "noise"
    for text in (b"Error creating new order :: too many certificates\n", line * 700 + b"too many certificates\n"):
        noise.write_bytes(text)
        stand_ins.does(stand_ins.certbot, f"cat {noise}; cat {noise} >&2; exit 1")
        details = failed_with_details(renew(panel, admin))
        # Of much noise the server may keep the beginning or the end.
        expect.that("a short text is told", "too many certificates" in details or len(text) > 500, details)


def says_nothing(panel, admin, stand_ins):
    stand_ins.does(stand_ins.certbot, "exit 1")
    failed_with_details(renew(panel, admin))


def unreadable(panel, admin, stand_ins):
    stand_ins.does(stand_ins.certbot, f"echo rubbish > {stand_ins.lineage(NAME)}")
    answers("the renewal", renew(panel, admin), 200, {"ok": True, "domain": NAME, "newExpiry": None})


def no_test(panel, admin, stand_ins):
    wanted = {"ok": True, "domain": NAME, "newExpiry": end_of(stand_ins.lineage(NAME)), "warning": TEST_FAILED}
    stand_ins.does(stand_ins.test, "echo 'nginx: [emerg] unknown directive' >&2; exit 1")
    answers("the test fails", renew(panel, admin), 200, wanted)
    stand_ins.test.unlink()
    answers("there is none", renew(panel, admin), 200, wanted)
    expect.that("nginx is not reloaded", "nginx-reload now" not in stand_ins.called(), stand_ins.called())


def odd_lineages(panel, admin, stand_ins):
    live = stand_ins.letsencrypt / "live"
    (live / "README").write_text("This directory contains your keys and certificates.\n")
    for name in ("empty", "dangling", "rubbish"):
        (live / name).mkdir()
    (live / "dangling" / "fullchain.pem").symlink_to("../../archive/nowhere/fullchain1.pem")
    (live / "rubbish" / "fullchain.pem").write_text("no certificate\n")
    certs = panel.done(admin, "GET", "/api/certs")["certs"]
    dates = {each["domain"] or each["type"]: (each["expiresAt"], each["expiringSoon"]) for each in certs}
    expect.that("those of before are listed", {NAME, "mtls-ca", "mtls-client"} <= set(dates), dates)
    for name in dates.keys() - {NAME, "mtls-ca", "mtls-client"}:
        expect.that(f"{name} has been put there", name in ("empty", "dangling", "rubbish"), dates)
        expect.equal(f"{name} has no date", dates[name], (None, True))


# --- the list -----------------------------------------------------------------

FOUND = """Found the following certs:
  Certificate Name: {name}
    Serial Number: 3a5a2a1b1c5d8f3e9c1b2a3d4e5f60718293
    Key Type: ECDSA
    {label}: {name} www.{name}
    Expiry Date: {date}
    Certificate Path: /etc/letsencrypt/live/{name}/fullchain.pem
    Private Key Path: /etc/letsencrypt/live/{name}/privkey.pem
"""


def listing(binary, stand_ins, report):
    """`live` does not exist, or is no directory: then what `certbot certificates` prints counts."""
    stand_ins.calm()
    broken = stand_ins.place / "broken"
    broken.mkdir()
    (broken / "live").write_text("no directory")
    for what, place in (("absent", stand_ins.place / "absent"), ("no directory", broken)):
        with Panel(binary, **{**stand_ins.settings, "panel_letsencrypt_dir": place}) as panel:
            admin = panel.admin()
            checks = {"12.1 certbot's own list": prints, "7.1 certbot fails or is missing": no_list}
            report(
                [
                    (f"{name}, `live` is {what}", functools.partial(call, panel, admin, stand_ins))
                    for name, call in checks.items()
                ]
            )


def day(days, clock="10:11:12"):
    return f"{datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=days)} {clock}"


def prints(panel, admin, stand_ins):
    """Each form of the list, with certificates in the order in which the panel has them."""
    text = stand_ins.place / "list"
    statuses = [
        ("a.example.com", day(-3), "INVALID: EXPIRED", True),
        ("b.example.com", day(0, "23:59:59"), "VALID: 5 hour(s)", True),
        ("c.example.com-0001", day(12), "VALID: 11 days", True),
        ("d.example.com", day(60), "INVALID: TEST_CERT, REVOKED", False),
    ]
    for label, shown in (
        ("Domains", statuses),
        ("Identifiers", [(NAME, day(50), "VALID: 49 days", False)]),
        ("Domains", []),
    ):
        found = [FOUND.format(name=name, label=label, date=f"{at}+00:00 ({status})") for name, at, status, _ in shown]
        # The last one first: the order is the panel's.
        text.write_text("".join(reversed(found)) or "No certificates found.\n")
        stand_ins.calls.unlink(missing_ok=True)
        stand_ins.does(stand_ins.certbot, f"echo 'Saving debug log to /var/log' >&2; cat {text}")
        wanted = [
            entry_of(name, at.replace(" ", "T") + ".000Z", f"/etc/letsencrypt/live/{name}/fullchain.pem", soon)
            for name, at, _, soon in shown
        ]
        expect.equal(f"certbot's, {label}", listed(panel, admin), wanted)
        called = ["certbot --some option certificates --non-interactive"]
        expect.equal("certbot is asked, and may not ask back", stand_ins.called(), called)
    for date, wanted in ((f"{day(89)[:10]} (VALID: 89 days)", f"{day(89)[:10]}T00:00:00.000Z"), ("someday", None)):
        text.write_text(FOUND.format(name=NAME, label="Domains", date=date))
        shown = [(each["expiresAt"], each["expiringSoon"]) for each in listed(panel, admin)]
        expect.equal(f"the date {date}", shown, [(wanted, wanted is None)])


def listed(panel, admin):
    *others, client, ca = panel.done(admin, "GET", "/api/certs")["certs"]
    expect.equal("our own are there", (client["type"], ca["type"]), ("mtls-client", "mtls-ca"))
    return others


def no_list(panel, admin, stand_ins):
    for script in ("echo 'Another instance of Certbot is already running.' >&2; exit 1", "kill -9 $$"):
        stand_ins.does(stand_ins.certbot, script)
        expect.equal("certbot's", listed(panel, admin), [])
    stand_ins.certbot.unlink()
    expect.equal("certbot's", listed(panel, admin), [])


# --- the timer ----------------------------------------------------------------

# Speaks as systemctl 252 does: a line for each property that it knows, dates in the zone of TZ or as @seconds with
# --timestamp=unix. An older one does not know that option.
SYSTEMCTL = """
import datetime, os, sys

units, is_old = {state!r}
words = [word for word in sys.argv[1:] if not word.startswith("-")]
options = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:] if word.startswith("-"))
unit = units.get(words[1], {{"ActiveState": "inactive", "NextElapseUSecRealtime": "", "LastTriggerUSec": "n/a"}})
if "timestamp" in options and is_old:
    sys.exit("systemctl: unrecognized option '--timestamp'")
if words[0] == "is-active":
    print(unit["ActiveState"])
    sys.exit(0 if unit["ActiveState"] == "active" else 3)
for name, value in unit.items():
    if name not in options.get("property", name).split(","):
        continue
    if value.endswith(" UTC"):
        at = datetime.datetime.strptime(value, "%a %Y-%m-%d %H:%M:%S UTC").replace(tzinfo=datetime.UTC)
        if options.get("timestamp") == "unix":
            value = f"@{{at.timestamp():.0f}}"
        elif os.environ.get("TZ") != "UTC":
            value = (at + datetime.timedelta(hours=1)).strftime("%a %Y-%m-%d %H:%M:%S CET")
    print(f"{{name}}={{value}}")
"""


def timer(binary, stand_ins, report):
    stand_ins.calm()
    with Panel(binary, **stand_ins.settings) as panel:
        admin = panel.admin()

        def asks(wanted):
            answers("the status", panel.call(admin, "GET", "/api/certs/auto-renew-status"), 200, wanted)

        def shows(name, wanted, units, is_old=False):
            def run():
                script = SYSTEMCTL.format(state=(units, is_old))
                stand_ins.does(stand_ins.systemctl, script, sys.executable)
                asks(wanted)

            return f"12.3 {name}", run

        def fails(name, script):
            def run():
                stand_ins.does(stand_ins.systemctl, script)
                asks(NO_TIMER)

            return f"7.2 {name}", run

        def missing():
            stand_ins.systemctl.unlink()
            asks(NO_TIMER)

        dates = "Sat 2026-11-28 03:00:00 UTC", "Fri 2026-11-27 15:04:05 UTC"
        both = {"active": True, "nextRun": "2026-11-28T03:00:00.000Z", "lastRun": "2026-11-27T15:04:05.000Z"}
        neither = {"active": True, "nextRun": None, "lastRun": None}
        second = {"certbot.timer": unit("", "n/a", "inactive"), "certbot-renew.timer": unit(*dates)}
        report(
            [
                shows("certbot.timer with both dates", both, {"certbot.timer": unit(*dates)}),
                shows("an older systemctl, without --timestamp", both, {"certbot.timer": unit(*dates)}, is_old=True),
                shows("certbot.timer is inactive, certbot-renew.timer counts", both, second),
                shows("it never ran", {**both, "lastRun": None}, {"certbot.timer": unit(dates[0], "n/a")}),
                *(
                    shows(f"dates {date!r}", neither, {"certbot.timer": unit(date, date)})
                    for date in ("", "n/a", "0", "a while ago")
                ),
                shows("a failed timer is not active", NO_TIMER, {"certbot.timer": unit(*dates, "failed")}),
                shows("no timer", NO_TIMER, {}),
                fails("no systemd", "echo 'System has not been booted with systemd' >&2; exit 1"),
                fails("systemctl prints rubbish", "head -c 100000 /dev/urandom"),
                ("7.2 systemctl is missing", missing),
            ]
        )


def unit(following, last, state="active"):
    return {"ActiveState": state, "NextElapseUSecRealtime": following, "LastTriggerUSec": last}


if __name__ == "__main__":
    expect.run(main)
