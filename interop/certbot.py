"""Renews certificates through the panel with the real certbot, Pebble as the ACME server, and nginx.

Pebble asks pebble-challtestsrv for the name's address and fetches the challenge
from our nginx; certbot gets a first certificate, nginx serves it. Then the
panel lists it, renews it, and nginx shows the new one to the next visitor.
After that the failures, with stand-ins for certbot, nginx and systemctl: names
that do not exist, no certbot, one that hangs, one that shouts, a broken nginx,
a live directory that cannot be read; and the state of the timer in the forms
that systemctl has for it. Everything lives in temporary directories and on
loopback ports; nothing of the machine's own certbot or nginx is touched.

    python certbot.py --server ../target/release/api-server
    python certbot.py --rig-only            # certbot, Pebble and nginx without the server
"""

import contextlib
import datetime
import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import textwrap
import time

import expect
from panel_server import Panel, answers, compact, end_of, free_port, openssl, sections, serial_of, try_openssl
from server import arguments

NAME = "app.example.com"
OTHER = "panel.example.com"
VALID_SECONDS = 60 * 86400
GOES_WITHIN = 5.0  # seconds for a process to be gone, or for nginx to show a new certificate
TIMEOUT = 3.0  # instead of the 90 s of the server
NO_TIMER = {"active": False, "nextRun": None, "lastRun": None}


def main():
    parser = arguments(__doc__)
    parser.add_argument("--rig-only", action="store_true", help="only show that certbot, Pebble and nginx work")
    for action in parser._actions:
        if action.dest == "server":
            action.required = False
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="adit-certbot-") as work:
        work = pathlib.Path(work)
        if options.rig_only:
            with rig(work) as acme:
                rig_works(acme)
            return
        stand_ins = Commands(work / "stand-ins")
        sections(
            ("the real certbot, Pebble and nginx", lambda report: real(report, options.server, work)),
            ("renewals that fail", lambda report: failing(report, options.server, stand_ins)),
            ("the list without certbot's directory", lambda report: listing(report, options.server, stand_ins)),
            ("the renewal timer", lambda report: timer(report, options.server, stand_ins)),
        )


# --- certbot, Pebble, nginx ---------------------------------------------------


class Acme:
    """certbot on directories of its own, with an ACME server and a web server that it can use."""

    def __init__(self, work):
        self.work = work
        self.letsencrypt = work / "letsencrypt"
        self.webroot = work / "webroot"
        self.nginx_conf = work / "nginx" / "nginx.conf"
        self.http, self.https, self.directory, self.management, self.dns, self.dns_management = (
            free_port() for _ in range(6)
        )
        self.trust = work / "pebble.crt"
        # One command line, split at blanks by the server.
        self.certbot = (
            f"/usr/bin/env REQUESTS_CA_BUNDLE={self.trust} /usr/bin/certbot --config-dir {self.letsencrypt}"
            f" --work-dir {work / 'certbot-work'} --logs-dir {work / 'certbot-logs'}"
        )
        self.nginx = f"/usr/sbin/nginx -p {self.nginx_conf.parent} -c {self.nginx_conf}"

    def live(self, name):
        return self.letsencrypt / "live" / name / "fullchain.pem"

    def obtain(self, name):
        server = f"https://localhost:{self.directory}/dir"
        words = f"{self.certbot} certonly --non-interactive --agree-tos --register-unsafely-without-email"
        words += f" --server {server} --webroot --webroot-path {self.webroot} --key-type ecdsa -d {name}"
        done = subprocess.run(words.split(), capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
        expect.that(f"certbot gets a certificate for {name}", done.returncode == 0, done.stdout + done.stderr)

    def write_nginx(self, name=None, rest=""):
        """nginx for the challenges, and for TLS as soon as there is a certificate."""
        tls = "" if name is None else f"""
            server {{
                listen 127.0.0.1:{self.https} ssl;
                ssl_certificate {self.live(name)};
                ssl_certificate_key {self.live(name).with_name("privkey.pem")};
                ssl_session_tickets off;
                location / {{ return 200 "hello"; }}
            }}"""
        place = self.nginx_conf.parent
        self.nginx_conf.write_text(
            textwrap.dedent(f"""\
            {"user root;" if os.geteuid() == 0 else ""}
            worker_processes 1;
            pid {place}/nginx.pid;
            error_log {place}/error.log;
            events {{ worker_connections 64; }}
            http {{
                access_log off;
                client_body_temp_path {place}/body;
                proxy_temp_path {place}/proxy;
                fastcgi_temp_path {place}/fastcgi;
                uwsgi_temp_path {place}/uwsgi;
                scgi_temp_path {place}/scgi;
                server {{
                    listen 127.0.0.1:{self.http};
                    root {self.webroot};
                }}
                {tls}
            }}
            {rest}
            """)
        )

    def reload_nginx(self):
        done = subprocess.run([*self.nginx.split(), "-s", "reload"], capture_output=True, text=True)
        expect.that("nginx reloads", done.returncode == 0, done.stderr)

    def served_serial(self):
        """The serial of the certificate that a new visitor sees."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", self.https), 5) as raw, context.wrap_socket(raw) as tls:
            return openssl(
                "x509", "-inform", "DER", "-noout", "-serial", input=tls.getpeercert(True), text=False
            ).decode().strip().partition("=")[2]


@contextlib.contextmanager
def rig(work):
    acme = Acme(work)
    acme.webroot.mkdir()
    acme.nginx_conf.parent.mkdir()
    key, config = work / "pebble.key", work / "pebble.json"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    openssl(
        *"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost".split(),
        *("-addext", names, "-addext", "extendedKeyUsage=serverAuth", "-keyout", key, "-out", acme.trust),
    )
    settings = {
        "listenAddress": f"127.0.0.1:{acme.directory}",
        "managementListenAddress": f"127.0.0.1:{acme.management}",
        "certificate": str(acme.trust),
        "privateKey": str(key),
        "httpPort": acme.http,
        "tlsPort": acme.https,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": False,
        "certificateValidityPeriod": VALID_SECONDS,
    }
    config.write_text(json.dumps({"pebble": settings}))
    acme.write_nginx()
    with contextlib.ExitStack() as stack:
        dns = ["pebble-challtestsrv", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-http01", "", "-https01", ""]
        dns += ["-tlsalpn01", "", "-dns01", f"127.0.0.1:{acme.dns}", "-management", f"127.0.0.1:{acme.dns_management}"]
        stack.enter_context(background(dns, acme.dns_management, work / "challtestsrv.log"))
        # No sleep before a validation, no nonces refused for practice.
        quick = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
        pebble = ["pebble", "-config", config, "-dnsserver", f"127.0.0.1:{acme.dns}"]
        stack.enter_context(background(pebble, acme.directory, work / "pebble.log", **quick))
        nginx = [*acme.nginx.split(), "-g", "daemon off;"]
        stack.enter_context(background(nginx, acme.http, work / "nginx.log"))
        yield acme


@contextlib.contextmanager
def background(command, port, log, **environment):
    """Runs a command until the block ends; waits until it listens on `port`."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
            cwd=log.parent,
        )
    try:
        expect.until(f"{command[0]} listens", 15, lambda: listens(port) or process.poll() is not None)
        expect.that(f"{command[0]} runs", process.poll() is None, log.read_text(errors="replace"))
        yield process
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


def rig_works(acme):
    """What the panel will ask for, without the panel."""
    began = time.monotonic()
    acme.obtain(NAME)
    print(f"obtained in {time.monotonic() - began:.1f} s")
    acme.write_nginx(NAME)
    acme.reload_nginx()
    serial = serial_of(acme.live(NAME))
    expect.until("nginx shows the certificate", GOES_WITHIN, lambda: listens(acme.https))
    expect.equal("nginx shows the certificate", acme.served_serial(), serial)
    listed = subprocess.run([*acme.certbot.split(), "certificates"], capture_output=True, text=True)
    expect.that("certbot lists it", f"Certificate Name: {NAME}" in listed.stdout, listed.stdout + listed.stderr)
    began = time.monotonic()
    words = f"{acme.certbot} renew --cert-name {NAME} --force-renewal --non-interactive --no-random-sleep-on-renew"
    done = subprocess.run(words.split(), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
    expect.equal("certbot renews", done.returncode, 0)
    print(f"renewed in {time.monotonic() - began:.1f} s")
    acme.reload_nginx()
    renewed = serial_of(acme.live(NAME))
    expect.that("it is another certificate", renewed != serial, renewed)
    expect.until("nginx shows it", GOES_WITHIN, lambda: acme.served_serial() == renewed)


# --- the real thing -----------------------------------------------------------


def real(report, binary, work):
    place = work / "real"
    place.mkdir()
    with rig(place) as acme:
        acme.obtain(NAME)
        acme.write_nginx(NAME)
        acme.reload_nginx()
        expect.until("nginx serves TLS", GOES_WITHIN, lambda: listens(acme.https))
        settings = {
            "panel_letsencrypt_dir": acme.letsencrypt,
            "panel_certbot": acme.certbot,
            "panel_nginx_test": f"{acme.nginx} -t",
            "panel_nginx_reload": f"{acme.nginx} -s reload",
        }
        with Panel(binary, **settings) as panel:
            admin = panel.admin()
            report(
                [
                    ("7.1 the certificate of certbot is listed, first because it ends first", lambda: lists(panel, admin, acme)),
                    ("7.3 a renewal changes the certificate, and nginx shows it", lambda: renews(panel, admin, acme)),
                    ("7.3 a name that certbot does not know is 404", lambda: unknown(panel, admin)),
                    ("7.3 a renewal while another certbot runs is 500, the list stays", lambda: locked(panel, admin, acme)),
                    ("7.3 a broken nginx configuration is a warning", lambda: breaks_nginx(panel, admin, acme)),
                    ("7.3 an empty body that says it is JSON is no error", lambda: empty_body(panel, admin)),
                ]
            )


def lists(panel, admin, acme):
    certs = panel.done(admin, "GET", "/api/certs")["certs"]
    expect.equal("its type and name come first", [each["domain"] for each in certs], [NAME, None, None])
    entry = certs[0]
    end = end_of(acme.live(NAME))
    expect.equal(
        "the entry",
        entry,
        {
            "type": "letsencrypt",
            "domain": NAME,
            "expiresAt": end,
            "daysUntilExpiry": floor_days(end),
            "path": str(acme.live(NAME)),
            "expiringSoon": False,
        },
    )


def renews(panel, admin, acme):
    before = serial_of(acme.live(NAME))
    expect.equal("nginx shows the certificate so far", acme.served_serial(), before)
    began = time.monotonic()
    answer = panel.call(admin, "POST", f"/api/certs/{NAME}/renew", timeout=100)
    print(f"        renewed in {time.monotonic() - began:.1f} s")
    expect.status("the renewal", answer, 200)
    after = serial_of(acme.live(NAME))
    expect.that("the certificate on disk is another", after != before, after)
    wanted = {"ok": True, "domain": NAME, "newExpiry": end_of(acme.live(NAME))}
    answers("the renewal tells openssl's date and no warning", answer, 200, wanted)
    expect.until("a new visitor of nginx sees it", GOES_WITHIN, lambda: acme.served_serial() == after)


def unknown(panel, admin):
    answer = panel.call(admin, "POST", "/api/certs/unknown.example.com/renew", timeout=100)
    answers("an unknown name", answer, 404, {"error": "Certificate not found"})


def locked(panel, admin, acme):
    """certbot takes locks on its three directories; a stranger holds one."""
    import fcntl

    with open(acme.letsencrypt / ".certbot.lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        failed_with_details(panel.call(admin, "POST", f"/api/certs/{NAME}/renew", timeout=100))
        certs = panel.done(admin, "GET", "/api/certs")["certs"]
        expect.that("the certificate is still listed", NAME in [each["domain"] for each in certs], certs)


def breaks_nginx(panel, admin, acme):
    serial = acme.served_serial()
    acme.write_nginx(NAME, rest="this is no directive;")
    try:
        answer = panel.call(admin, "POST", f"/api/certs/{NAME}/renew", timeout=100)
    finally:
        acme.write_nginx(NAME)
    expect.status("the renewal", answer, 200)
    expect.equal(
        "it says so", answer.json.get("warning"), "Certificate renewed but nginx config test failed"
    )
    expect.equal("with the new date", answer.json.get("newExpiry"), end_of(acme.live(NAME)))
    expect.that("the certificate on disk is another", serial_of(acme.live(NAME)) != serial, serial)
    expect.equal("nginx goes on with the old one", acme.served_serial(), serial)


def empty_body(panel, admin):
    headers = {"Content-Type": "application/json"}
    answer = panel.call(admin, "POST", f"/api/certs/{NAME}/renew", b"", headers, timeout=100)
    expect.status("the renewal", answer, 200)


# --- stand-ins ----------------------------------------------------------------


class Commands:
    """Scripts in the place of certbot, nginx and systemctl; what they do is changed while the server runs."""

    def __init__(self, place):
        self.place = place
        place.mkdir()
        self.certbot, self.test, self.reload, self.systemctl = (
            place / name for name in ("certbot", "nginx-test", "nginx-reload", "systemctl")
        )
        self.letsencrypt = place / "letsencrypt"
        self.calls = place / "calls"
        self.calm()

    @property
    def settings(self):
        return {
            "panel_letsencrypt_dir": self.letsencrypt,
            "panel_certbot": f"{self.certbot} --config-dir {self.letsencrypt}",
            "panel_nginx_test": f"{self.test} -t",
            "panel_nginx_reload": f"{self.reload} now",
            "panel_systemctl": self.systemctl,
        }

    def calm(self):
        for path in (self.certbot, self.test, self.reload, self.systemctl):
            self.does(path, "exit 0")
        self.calls.unlink(missing_ok=True)

    def does(self, path, script, interpreter="/bin/sh"):
        # A script that is being written to cannot be run: put another in its place.
        fresh = path.with_name(f"{path.name}.new")
        note = f'echo "$(basename "$0") $*" >> {self.calls}\n' if interpreter == "/bin/sh" else ""
        fresh.write_text(f"#!{interpreter}\n{note}{script}\n")
        fresh.chmod(0o755)
        fresh.replace(path)

    def called(self):
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def lineage(self, name, days=60):
        """A certificate as certbot leaves it: archive, live links and renewal configuration."""
        archive, live = self.letsencrypt / "archive" / name, self.letsencrypt / "live" / name
        for each in (archive, live, self.letsencrypt / "renewal"):
            each.mkdir(parents=True, exist_ok=True)
        for kind in ("cert", "chain", "fullchain", "privkey"):
            link = live / f"{kind}.pem"
            link.unlink(missing_ok=True)
            link.symlink_to(f"../../archive/{name}/{kind}1.pem")
        openssl(
            *"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes".split(),
            *("-days", days, "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
            *("-keyout", archive / "privkey1.pem", "-out", archive / "fullchain1.pem"),
        )
        shutil.copy(archive / "fullchain1.pem", archive / "cert1.pem")
        (self.letsencrypt / "renewal" / f"{name}.conf").write_text(f"version = 2.1.0\narchive_dir = {archive}\n")
        return live / "fullchain.pem"


def failing(report, binary, commands):
    commands.lineage(NAME)
    with Panel(binary, panel_renewal_timeout=f"{TIMEOUT:.0f}s", **commands.settings) as panel:
        admin = panel.admin()

        def check(name, call):
            def run():
                commands.calm()
                call(panel, admin, commands)

            return name, run

        report(
            [
                check("12.2 certbot is called with the documented words", words_of_renewal),
                check("7.3 names that are none are 400 and reach no command", invalid_names),
                check("7.3 no renewal configuration is 404, without asking certbot for long", no_configuration),
                check("7.3 certbot says that it has no such certificate: 404", says_not_found),
                check("7.3 certbot is missing: 500, not 404", no_certbot),
                check("7.3 `certbot: command not found` is 500, not 404", command_not_found),
                check("7.3 a hanging certbot is 500 after the timeout, and leaves no process", hangs),
                check("7.3 a certbot that closes its output and hangs is ended too", hangs_silently),
                check("7.3 a noisy failure becomes one short clean line", shouts),
                check("7.3 a failure without words is still a text", says_nothing),
                check("7.3 a certificate that cannot be read afterwards: newExpiry null", unreadable),
                check("7.3 nginx's test fails: warning, no reload", test_fails),
                check("7.3 nginx's reload fails: warning", reload_fails),
                check("7.3 nginx's test is missing: warning", test_missing),
                check("7.4 rotation tells of nginx, too", rotation_warns),
                check("7.1 the list: ended, ending soon, unreadable and foreign things in `live`", odd_lineages),
            ]
        )


def renew(panel, admin, name=NAME):
    return panel.call(admin, "POST", f"/api/certs/{name}/renew")


def failed_with_details(answer):
    """500 as the seed has it, with one short printable line; returns the line."""
    expect.status("the renewal", answer, 500)
    body = answer.json
    expect.equal("its fields", list(body), ["error", "details"])
    expect.equal("its error", body["error"], "Certificate renewal failed")
    details = body["details"]
    expect.that("details is a text", isinstance(details, str), body)
    expect.that("details is at most 500 characters", len(details) <= 500, details)
    expect.that("details is one line of printable characters", details.isprintable(), details)
    for secret in ("privkey", "private_key", "BEGIN", "PRIVATE KEY"):
        expect.that(f"details does not name {secret}", secret not in details, details)
    return details


def words_of_renewal(panel, admin, commands):
    expect.status("the renewal", renew(panel, admin), 200)
    certbot, *nginx = commands.called()
    words = certbot.split()
    expect.equal("first the command line of the setting", words[:3], ["certbot", "--config-dir", str(commands.letsencrypt)])
    for wanted in ("renew", "--cert-name", NAME, "--force-renewal", "--non-interactive"):
        expect.that(f"then {wanted}", wanted in words, certbot)
    # Without a terminal certbot would wait up to eight minutes first.
    expect.that("and no random sleep", "--no-random-sleep-on-renew" in words, certbot)
    expect.equal("then nginx is tested and reloaded", nginx, ["nginx-test -t", "nginx-reload now"])


def invalid_names(panel, admin, commands):
    long = ".".join(["a" * 63] * 4)
    names = ["localhost", "UPPER.example.com", "a..b", "..", "...", "evil.com;inject", "-a.example.com", "a-.example.com"]
    names += [f"{'a' * 64}.example.com", long, "%24(id).example.com", "a.example.com%0A", "*.example.com", "a%2Fb.com"]
    names += ["--post-hook=id.example.com", "%C3%A9.example.com", ".example.com", "example.com."]
    wanted = {
        "error": "Validation failed",
        "details": {"issues": [{"path": ["domain"], "message": "Invalid domain name"}]},
    }
    for name in names:
        answers(f"the name {name}", renew(panel, admin, name), 400, wanted)
    expect.equal("no command was called", commands.called(), [])


def no_configuration(panel, admin, commands):
    answers("the renewal", renew(panel, admin, "absent.example.com"), 404, {"error": "Certificate not found"})


def says_not_found(panel, admin, commands):
    text = f"No certificate found with name {NAME} (expected {commands.letsencrypt}/renewal/{NAME}.conf)."
    commands.does(commands.certbot, f"echo '{text}' >&2; exit 1")
    answers("the renewal", renew(panel, admin), 404, {"error": "Certificate not found"})


def no_certbot(panel, admin, commands):
    commands.certbot.unlink()
    failed_with_details(renew(panel, admin))


def command_not_found(panel, admin, commands):
    commands.does(commands.certbot, "echo 'sudo: certbot: command not found' >&2; exit 127")
    failed_with_details(renew(panel, admin))


def hangs(panel, admin, commands):
    ends_in_time(panel, admin, commands, "")


def hangs_silently(panel, admin, commands):
    ends_in_time(panel, admin, commands, "exec >/dev/null 2>&1")


def ends_in_time(panel, admin, commands, first):
    """The command has a child of its own; both must be gone, also when they do not care about SIGTERM."""
    pids = commands.place / "pids"
    script = f"""
        {first}
        trap '' TERM INT HUP
        sleep 600 &
        echo "$$ $!" > {pids}
        wait
        sleep 600"""
    pids.unlink(missing_ok=True)
    commands.does(commands.certbot, script)
    began = time.monotonic()
    answer = renew(panel, admin)
    took = time.monotonic() - began
    failed_with_details(answer)
    expect.that(f"the answer comes after {TIMEOUT} s", TIMEOUT - 0.1 <= took < TIMEOUT + 5, took)
    started = pids.read_text().split()
    try:
        expect.until(
            "the command and its child are gone", GOES_WITHIN, lambda: not any(os.path.exists(f"/proc/{pid}") for pid in started)
        )
    finally:
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    expect.equal("nginx was not touched", [line for line in commands.called() if "nginx" in line], [])


def shouts(panel, admin, commands):
    """100 KB with colours, control characters, bytes that are no UTF-8, and the paths of keys."""
    noise = commands.place / "noise"
    line = (
        b"\x1b[31mAttempting\x1b[0m to read /etc/letsencrypt/live/app.example.com/privkey.pem\r\n"
        b"/etc/letsencrypt/archive/app.example.com/privkey1.pem \x00\x07\x08 \xff\xfe\r"
        b"/etc/letsencrypt/accounts/acme/directory/0/private_key.json\n"
        b"-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg\n\xe2\x80\xa8\xe2\x80\xae\n"
    )
    noise.write_bytes(line * (100_000 // len(line) + 1) + b"The last word: rate limited.\n")
    commands.does(commands.certbot, f"cat {noise}; cat {noise} >&2; exit 1")
    failed_with_details(renew(panel, admin))
    noise.write_bytes(b"An unexpected error occurred:\nError creating new order :: too many certificates\n")
    details = failed_with_details(renew(panel, admin))
    expect.that("details tells why", "too many certificates" in details, details)


def says_nothing(panel, admin, commands):
    commands.does(commands.certbot, "exit 1")
    failed_with_details(renew(panel, admin))


def unreadable(panel, admin, commands):
    path = commands.letsencrypt / "live" / NAME / "fullchain.pem"
    commands.does(commands.certbot, f"rm {path}; echo rubbish > {path}")
    try:
        answers("the renewal", renew(panel, admin), 200, {"ok": True, "domain": NAME, "newExpiry": None})
    finally:
        commands.lineage(NAME)


def test_fails(panel, admin, commands):
    commands.does(commands.test, "echo 'nginx: [emerg] unknown directive' >&2; exit 1")
    answer = renew(panel, admin)
    path = commands.letsencrypt / "live" / NAME / "fullchain.pem"
    warning = "Certificate renewed but nginx config test failed"
    wanted = {"ok": True, "domain": NAME, "newExpiry": end_of(path), "warning": warning}
    answers("the renewal", answer, 200, wanted)
    expect.that("nginx is not reloaded", "nginx-reload now" not in commands.called(), commands.called())


def reload_fails(panel, admin, commands):
    commands.does(commands.reload, "exit 1")
    warning = "Certificate renewed but nginx reload failed"
    expect.equal("the warning", renew(panel, admin).json.get("warning"), warning)


def test_missing(panel, admin, commands):
    commands.test.unlink()
    warning = "Certificate renewed but nginx config test failed"
    expect.equal("the warning", renew(panel, admin).json.get("warning"), warning)


def rotation_warns(panel, _admin, commands):
    """With the U+2014 dashes of the specification; the rotations change who the admin is."""
    first = (
        "Your current browser certificate is now invalid."
        " Download and import the new certificate before closing this page."
    )
    warning = panel.done(panel.admin(), "POST", "/api/certs/mtls/rotate")["warning"]
    expect.equal("nginx is well", warning, first)
    commands.does(commands.reload, "exit 1")
    warning = panel.done(panel.admin(), "POST", "/api/certs/mtls/rotate")["warning"]
    note = "Note: nginx reload failed \u2014 you may need to restart nginx manually."
    expect.equal("nginx does not reload", warning, f"{first} {note}")
    commands.does(commands.test, "exit 1")
    warning = panel.done(panel.admin(), "POST", "/api/certs/mtls/rotate")["warning"]
    note = "Note: nginx config test failed \u2014 you may need to fix nginx manually."
    expect.equal("nginx does not like its configuration", warning, f"{first} {note}")


def odd_lineages(panel, _admin, commands):
    admin = panel.admin()  # rotated by the check before
    live = commands.letsencrypt / "live"
    names = {"thirty.example.com": 31, "twenty.example.com": 20, "duplicate.example.com-0001": 40}
    for name, days in names.items():
        commands.lineage(name, days)
    (live / "README").write_text("This directory contains your keys and certificates.\n")
    (live / "empty.example.com").mkdir()
    (live / "dangling.example.com").mkdir()
    (live / "dangling.example.com" / "fullchain.pem").symlink_to("../../archive/nowhere/fullchain1.pem")
    (live / "rubbish.example.com").mkdir()
    (live / "rubbish.example.com" / "fullchain.pem").write_text("no certificate\n")
    certs = panel.done(admin, "GET", "/api/certs")["certs"]
    days = [each["daysUntilExpiry"] for each in certs]
    expect.equal("soonest first", days, sorted(days))
    by_name = {each["domain"]: each for each in certs if each["type"] == "letsencrypt"}
    expect.that("every lineage is listed", {NAME, *names} <= set(by_name), list(by_name))
    expect.that("README is none", "README" not in by_name, list(by_name))
    soon = {name: (entry["daysUntilExpiry"], entry["expiringSoon"]) for name, entry in by_name.items() if name in names}
    wanted = {
        "thirty.example.com": (30, True),
        "twenty.example.com": (19, True),
        "duplicate.example.com-0001": (39, False),
    }
    expect.equal("days and expiringSoon", soon, wanted)
    expect.equal("the two of our own are there", sum(each["type"].startswith("mtls-") for each in certs), 2)
    for name in ("rubbish.example.com", "dangling.example.com", "empty.example.com"):
        entry = by_name.get(name)
        if entry is not None:
            shown = (entry["expiresAt"], entry["daysUntilExpiry"], entry["expiringSoon"])
            expect.equal(f"{name} has no date", shown, (None, 0, True))


# --- the list -----------------------------------------------------------------


def listing(report, binary, commands):
    """`live` does not exist, or is no directory: then what `certbot certificates` prints counts."""
    commands.calm()
    absent = commands.place / "absent"
    broken = commands.place / "broken"
    broken.mkdir()
    (broken / "live").write_text("no directory")
    for what, place in (("absent", absent), ("unreadable", broken)):
        with Panel(binary, **{**commands.settings, "panel_letsencrypt_dir": place}) as panel:
            admin = panel.admin()
            report(
                [
                    (f"12.1 {what}: certbot's own list", lambda: prints_list(panel, admin, commands)),
                    (f"12.1 {what}: certbot 5 says Identifiers", lambda: prints_identifiers(panel, admin, commands)),
                    (f"12.1 {what}: a date without a time", lambda: prints_date(panel, admin, commands)),
                    (f"12.1 {what}: statuses", lambda: prints_statuses(panel, admin, commands)),
                    (f"12.1 {what}: no certificates", lambda: prints_none(panel, admin, commands)),
                    (f"7.1 {what}: certbot fails, is missing or hangs", lambda: lists_the_rest(panel, admin, commands)),
                ]
            )


BLOCK = """\
  Certificate Name: {name}
    Serial Number: 3a5a2a1b1c5d8f3e9c1b2a3d4e5f60718293
    Key Type: ECDSA
    {label}: {name} www.{name}
    Expiry Date: {date}
    Certificate Path: /etc/letsencrypt/live/{name}/fullchain.pem
    Private Key Path: /etc/letsencrypt/live/{name}/privkey.pem
"""
LINE = "- " * 40


def printed_by_certbot(commands, *blocks, label="Domains"):
    text = "".join(BLOCK.format(name=name, date=date, label=label) for name, date in blocks)
    text = f"\n{LINE}\nFound the following certs:\n{text}{LINE}\n" if blocks else f"\n{LINE}\nNo certificates found.\n{LINE}\n"
    (commands.place / "list").write_text(text)
    note = "Saving debug log to /var/log/letsencrypt/letsencrypt.log"
    commands.does(commands.certbot, f"echo '{note}' >&2; cat {commands.place / 'list'}")


def listed(panel, admin):
    certs = panel.done(admin, "GET", "/api/certs")["certs"]
    return [each for each in certs if each["type"] == "letsencrypt"]


def day(days, clock="10:11:12"):
    date = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=days)
    return f"{date.isoformat()} {clock}+00:00"


def prints_list(panel, admin, commands):
    later, sooner = day(80), day(12)
    printed_by_certbot(
        commands, (NAME, f"{later} (VALID: 79 days)"), (f"{OTHER}-0001", f"{sooner} (VALID: 11 days)")
    )
    commands.calls.unlink(missing_ok=True)
    entries = listed(panel, admin)
    wanted = [
        entry_of(f"{OTHER}-0001", sooner, True),
        entry_of(NAME, later, False),
    ]
    expect.equal("both, the sooner first", entries, wanted)
    called = commands.called()
    expect.that("certbot was asked", called and "certificates" in called[0].split(), called)
    expect.that("and may not ask back", "--non-interactive" in called[0].split(), called)


def entry_of(name, date, soon):
    iso = date.replace(" ", "T").replace("+00:00", ".000Z")
    return {
        "type": "letsencrypt",
        "domain": name,
        "expiresAt": iso,
        "daysUntilExpiry": floor_days(iso),
        "path": f"/etc/letsencrypt/live/{name}/fullchain.pem",
        "expiringSoon": soon,
    }


def floor_days(iso):
    left = datetime.datetime.fromisoformat(iso) - datetime.datetime.now(datetime.UTC)
    return left // datetime.timedelta(days=1)


def prints_identifiers(panel, admin, commands):
    date = day(50)
    printed_by_certbot(commands, (NAME, f"{date} (VALID: 49 days)"), label="Identifiers")
    expect.equal("the entry", listed(panel, admin), [entry_of(NAME, date, False)])


def prints_date(panel, admin, commands):
    date = day(89, "00:00:00")
    printed_by_certbot(commands, (NAME, f"{date.split()[0]} (VALID: 89 days)"))
    expect.equal("midnight in UTC", listed(panel, admin), [entry_of(NAME, date, False)])


def prints_statuses(panel, admin, commands):
    forms = {
        "a.example.com": (day(-3), "INVALID: EXPIRED", True),
        "b.example.com": (day(0, "23:59:59"), "VALID: 5 hour(s)", True),
        "c.example.com": (day(2), "VALID: 1 day", True),
        "d.example.com": (day(60), "INVALID: TEST_CERT", False),
        "e.example.com": (day(61), "INVALID: TEST_CERT, REVOKED", False),
    }
    printed_by_certbot(commands, *((name, f"{date} ({status})") for name, (date, status, _) in forms.items()))
    wanted = [entry_of(name, date, soon) for name, (date, _, soon) in forms.items()]
    expect.equal("all of them, the ended one with negative days", listed(panel, admin), wanted)
    expect.that("negative", listed(panel, admin)[0]["daysUntilExpiry"] < 0)
    printed_by_certbot(commands, (NAME, "someday (VALID: 5 days)"))
    shown = [(each["expiresAt"], each["daysUntilExpiry"], each["expiringSoon"]) for each in listed(panel, admin)]
    expect.equal("a date that is none", shown, [(None, 0, True)])


def prints_none(panel, admin, commands):
    printed_by_certbot(commands)
    expect.equal("nothing", listed(panel, admin), [])


def lists_the_rest(panel, admin, commands):
    for script in ("echo 'Another instance of Certbot is already running.' >&2; exit 1", "kill -9 $$"):
        commands.does(commands.certbot, script)
        own_two(panel, admin)
    commands.certbot.unlink()
    own_two(panel, admin)


def own_two(panel, admin):
    certs = panel.done(admin, "GET", "/api/certs")["certs"]
    expect.equal("only our own", [each["type"] for each in certs], ["mtls-client", "mtls-ca"])


# --- the timer ----------------------------------------------------------------

# Speaks as systemctl 252 does: one `Property=value` a line, unknown properties left out, dates in the zone of TZ,
# or as @seconds with --timestamp=unix. An older one does not know that option.
SYSTEMCTL = '''
import datetime, json, os, sys

state = json.loads(open({state!r}).read())
words, properties, options = [], [], {{}}
rest = iter(sys.argv[1:])
for word in rest:
    if word in ("-p", "--property"):
        properties += next(rest).split(",")
    elif word.startswith("--property="):
        properties += word.partition("=")[2].split(",")
    elif word.startswith("--timestamp"):
        options["timestamp"] = word.partition("=")[2] or next(rest)
    elif word.startswith("-"):
        options[word] = True
    else:
        words.append(word)
if "timestamp" in options and state["old"]:
    sys.exit("systemctl: unrecognized option '--timestamp'")
verb, units = words[0], words[1:]
values = [state["units"].get(unit) for unit in units]
if verb == "is-active":
    print("\\n".join("inactive" if value is None else value["ActiveState"] for value in values))
    sys.exit(0 if any(value and value["ActiveState"] == "active" for value in values) else 3)

def shown(text):
    try:
        moment = datetime.datetime.strptime(text, "%a %Y-%m-%d %H:%M:%S UTC").replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        return text
    if options.get("timestamp") == "unix":
        return f"@{{moment.timestamp():.0f}}"
    if options.get("timestamp") == "utc" or os.environ.get("TZ") in ("UTC", "UTC0", "Etc/UTC"):
        return text
    return (moment + datetime.timedelta(hours=1)).strftime("%a %Y-%m-%d %H:%M:%S CET")

blocks = []
for value in values:
    value = value or {{"ActiveState": "inactive", "NextElapseUSecRealtime": "", "LastTriggerUSec": "n/a"}}
    names = [name for name in value if not properties or name in properties]
    blocks.append("\\n".join(shown(value[name]) if "--value" in options else f"{{name}}={{shown(value[name])}}" for name in names))
print("\\n\\n".join(blocks))
'''


def timer(report, binary, commands):
    commands.calm()
    commands.lineage(NAME)
    with Panel(binary, **commands.settings) as panel:
        admin = panel.admin()
        state = commands.place / "timers"
        path = "/api/certs/auto-renew-status"

        def shows(name, wanted, units, old=False):
            def run():
                state.write_text(json.dumps({"units": units, "old": old}))
                commands.does(commands.systemctl, SYSTEMCTL.format(state=str(state)), sys.executable)
                answers("the status", panel.call(admin, "GET", path), 200, wanted)

            return f"12.3 {name}", run

        def prints(name, script):
            def run():
                commands.does(commands.systemctl, script)
                answers("the status", panel.call(admin, "GET", path), 200, NO_TIMER)

            return f"7.2 {name}", run

        def missing():
            commands.systemctl.unlink()
            answers("the status", panel.call(admin, "GET", path), 200, NO_TIMER)

        def hanging():
            commands.does(commands.systemctl, "exec sleep 600")
            began = time.monotonic()
            answers("the status", panel.call(admin, "GET", path, timeout=60), 200, NO_TIMER)
            print(f"        a hanging systemctl was given {time.monotonic() - began:.1f} s")

        dates = "Sat 2026-11-28 03:00:00 UTC", "Fri 2026-11-27 15:04:05 UTC"
        both = {"active": True, "nextRun": "2026-11-28T03:00:00.000Z", "lastRun": "2026-11-27T15:04:05.000Z"}
        nothing = {"active": True, "nextRun": None, "lastRun": None}
        report(
            [
                shows("certbot.timer with both dates", both, {"certbot.timer": unit(*dates)}),
                shows("an older systemctl, without --timestamp", both, {"certbot.timer": unit(*dates)}, old=True),
                shows("certbot-renew.timer with both dates", both, {"certbot-renew.timer": unit(*dates)}),
                shows(
                    "certbot.timer is inactive, certbot-renew.timer counts",
                    both,
                    {"certbot.timer": unit("", "n/a", "inactive"), "certbot-renew.timer": unit(*dates)},
                ),
                shows("it never ran", {**both, "lastRun": None}, {"certbot.timer": unit(dates[0], "n/a")}),
                shows("empty dates", nothing, {"certbot.timer": unit("", "")}),
                shows("dates n/a", nothing, {"certbot.timer": unit("n/a", "n/a")}),
                shows("dates 0", nothing, {"certbot.timer": unit("0", "0")}),
                shows("dates that are none", nothing, {"certbot.timer": unit("soon", "a while ago")}),
                shows("a failed timer is not active", NO_TIMER, {"certbot.timer": unit(*dates, "failed")}),
                shows("no timer", NO_TIMER, {}),
                prints("no systemd", "echo 'System has not been booted with systemd' >&2; exit 1"),
                prints("systemctl prints rubbish", "head -c 100000 /dev/urandom; exit 0"),
                ("7.2 systemctl is missing", missing),
                ("7.2 systemctl hangs", hanging),
            ]
        )


def unit(following, last, state="active"):
    return {"ActiveState": state, "NextElapseUSecRealtime": following, "LastTriggerUSec": last}


if __name__ == "__main__":
    expect.run(main)
