"""Asks the panel for many things in the same moment: enrolments, rotations, upgrades, resets.

Of things that exclude each other one is done; of those that do not, all are; and
in the end the admin's files belong to each other. Then, without judging, it
prints how many enrolments a second there are and how soon a revocation counts.

    python panel_races.py --server ../target/release/api-server
"""

import contextlib
import functools
import itertools
import json
import socket
import statistics
import subprocess
import sys
import threading
import time

import expect
from panel_server import (
    ADMIN_ONLY,
    Panel,
    at_once,
    csr_of,
    ec_key,
    keep,
    opened,
    opens,
    pem_of,
    pem_of_cert,
    sections,
    serial_of,
    serial_text,
    sign_by_hand,
    tls_context,
)
from server import arguments

ROTATE = ("POST", "/api/certs/mtls/rotate")
UPGRADE = "/api/certs/admin/upgrade-to-hardware-bound"
ENROLMENTS = 16
ROTATIONS = 8
MEASURE_FOR = 5.0


def main():
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of each race")
    parser.add_argument("--without-numbers", action="store_true", help="leave the measurements out")
    options = parser.parse_args()
    named = [
        ("exclusive", functools.partial(exclusive, options)),
        ("rotations", functools.partial(rotations, options)),
        ("upgrades", functools.partial(upgrades, options)),
        ("resets", functools.partial(resets, options)),
    ]
    sections(*named)
    if not options.without_numbers:
        for keys in ("p256", "rsa4096"):
            numbers(options.server, keys)


def volley(panel, requests):
    """All (identity, method, path, body) in one moment, over connections that are there already."""
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(panel.caller(identity)) for identity, *_ in requests]
        for caller in callers:
            caller.connection.connect()
        start = threading.Barrier(len(callers))

        def ask(caller, method, path, body=None):
            start.wait()
            return caller.ask(method, path, body)

        return at_once(
            [functools.partial(ask, caller, *request) for caller, (_, *request) in zip(callers, requests, strict=True)]
        )


def statuses(answers):
    return sorted(answer.status for answer in answers)


def admins(panel, count):
    """Admins beside the one of the directory, so that a rotation by one of them refuses no other."""
    return [sign_by_hand(panel.work, panel.pki, "/CN=Portlama Client/O=Portlama") for _ in range(count)]


def entries(panel, label):
    return [each for each in panel.json_of("agents/registry.json")["agents"] if each["label"] == label]


# --- one of many --------------------------------------------------------------


def exclusive(options, report):
    with Panel(options.server) as panel:
        admin = panel.admin()

        def one_token(number, same_request):
            label = f"one-{number}-{same_request:d}"
            token, keys = panel.token(admin, label), [ec_key() for _ in range(ENROLMENTS)]
            csrs = [csr_of(keys[0 if same_request else at]) for at in range(ENROLMENTS)]
            came = volley(panel, [(None, "POST", "/api/enroll", {"token": token, "csr": csr}) for csr in csrs])
            won = [at for at, answer in enumerate(came) if answer.status == 200]
            expect.equal("one is enrolled", len(won), 1)
            expect.that("the others are refused", {*statuses(came)} <= {200, 401, 409}, statuses(came))
            answer = came[won[0]].json
            listed = [(each["serial"], each["revoked"]) for each in entries(panel, label)]
            expect.equal("one entry is made", listed, [(answer["serial"], False)])
            agent = keep(panel.work, answer["cert"], pem_of(keys[0 if same_request else won[0]]))
            expect.status("it is let in", panel.call(agent, "GET", "/api/onboarding/status"), 200)
            again = panel.enrol(token, csr_of(ec_key()))
            expect.equal("the token is used", (again.status, again.json["error"]), (401, USED))

        def one_label(number):
            label = f"label-{number}"
            came = volley(panel, [(admin, "POST", "/api/certs/agent", {"label": label})] * 8)
            expect.equal("one is made", statuses(came), [200] + [409] * 7)
            made = next(answer.json for answer in came if answer.status == 200)
            listed = [(each["serial"], each["revoked"]) for each in entries(panel, label)]
            expect.equal("one entry is made", listed, [(made["serial"], False)])
            bundle = panel.call(admin, "GET", f"/api/certs/agent/{label}/download").body
            expect.equal("its bundle has it", serial_in(bundle, made["p12Password"]), made["serial"])

        def token_or_bundle(number):
            """An enrolment and a bundle for one label: one of them has it."""
            label = f"both-{number}"
            token = panel.token(admin, label)
            enrolment = (None, "POST", "/api/enroll", {"token": token, "csr": csr_of(ec_key())})
            came = volley(panel, [enrolment, (admin, "POST", "/api/certs/agent", {"label": label})])
            expect.equal("one of the two", statuses(came), [200, 409])
            won = next(answer.json["serial"] for answer in came if answer.status == 200)
            expect.equal("it alone is active", [each["serial"] for each in entries(panel, label)], [won])
            has_files = (panel.pki / "agents" / label).exists()
            expect.equal("files are those of a bundle", has_files, came[1].status == 200)

        def enrol_or_revoke(number):
            """Whoever enrols while the label's certificate is revoked has one that counts, or none."""
            label = f"again-{number}"
            token = panel.token(admin, label)
            panel.agent(admin, label)
            key = ec_key()
            enrolment = (None, "POST", "/api/enroll", {"token": token, "csr": csr_of(key)})
            enrolled, revoked = volley(panel, [enrolment, (admin, "DELETE", f"/api/certs/agent/{label}")])
            expect.status("the revocation", revoked, 200)
            expect.status("the enrolment", enrolled, 200, 409)
            active = [each["serial"] for each in entries(panel, label) if not each["revoked"]]
            expect.equal("active", active, [enrolled.json["serial"]] if enrolled.status == 200 else [])
            if active:
                agent = keep(panel.work, enrolled.json["cert"], pem_of(key))
                expect.status("it is let in", panel.call(agent, "GET", "/api/onboarding/status"), 200)
            serials = set(panel.revoked_serials())
            for each in entries(panel, label):
                expect.equal("the lists agree", each["revoked"], each["serial"] in serials)

        rounds = range(options.rounds)
        report(
            [
                check(f"10.2 {ENROLMENTS} keys for one token", one_token, [(number, False) for number in rounds]),
                check(
                    f"10.2 {ENROLMENTS} times one key for one token", one_token, [(number, True) for number in rounds]
                ),
                check("7.6 eight bundles for one label", one_label, [(number,) for number in rounds]),
                check(
                    "7.14 a bundle and an enrolment for one label", token_or_bundle, [(number,) for number in rounds]
                ),
                check(
                    "7.11 an enrolment while the label is revoked", enrol_or_revoke, [(number,) for number in rounds]
                ),
            ]
        )


USED = "Enrollment token has already been used"


def check(name, call, values):
    def run():
        for each in values:
            call(*each)

    return name, run


def serial_in(bundle, password):
    return serial_text(opened(bundle, password)[1].serial_number)


# --- rotations ----------------------------------------------------------------

# A process of its own, for it must be quick: keeps every client.p12 there is by a hard link, which also keeps
# its inode number from being used again.
WATCH = """
import os, sys
path, place = sys.argv[1:]
last, count = None, 0
print("watching", flush=True)
while True:
    try:
        now = os.stat(path).st_ino
        if now != last:
            kept = f"{place}/{count:04}"
            os.link(path, kept)
            last, count = os.stat(kept).st_ino, count + 1
    except FileNotFoundError:
        pass
"""


@contextlib.contextmanager
def watched(panel):
    """A directory that gets every client.p12 of the time."""
    place = panel.work / f"watched-{time.monotonic_ns()}"
    place.mkdir()
    command = [sys.executable, "-c", WATCH, panel.pki / "client.p12", place]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            yield place
        finally:
            process.kill()


def rotations(options, report):
    caught = []
    with Panel(options.server) as panel:

        def by_many():
            rotate(panel, admins(panel, ROTATIONS), caught)

        def by_one():
            rotate(panel, admins(panel, 1) * ROTATIONS, caught)

        many = [
            (f"10.3 {ROTATIONS} rotations by as many admins", by_many),
            (f"10.3 {ROTATIONS} rotations by one admin beside the directory's", by_one),
            ("10.3 what was superseded may fetch the bundle that is there now", lambda: fetch(panel)),
        ]
        report([check(name, lambda call: call(), [(call,)] * options.rounds) for name, call in many])
    # Making such a key takes so long that all have been let in before the first is done.
    with Panel(options.server, keys="rsa4096") as panel:
        report(
            [
                (
                    f"10.3 {ROTATIONS} rotations by the admin, RSA-4096",
                    lambda: rotate(panel, [panel.admin()] * ROTATIONS, caught, must=True),
                )
            ]
        )
    print(f"        caught {sum(got for got, _ in caught)} of {sum(of for _, of in caught)} bundles")


def rotate(panel, identities, caught, must=None):
    """`must`: all have to be done. Otherwise one may come too late, when the others have revoked it."""
    must = must or len({each.cert for each in identities}) == len(identities)
    before = panel.one_generation()
    revoked_before = set(panel.revoked_serials())
    with watched(panel) as place:
        came = volley(panel, [(each, *ROTATE) for each in identities])
    wanted = {200} if must else {200, 403}
    expect.that(f"statuses are of {wanted}", {*statuses(came)} <= wanted, [came, statuses(came)])
    passwords = [answer.json["p12Password"] for answer in came if answer.status == 200]
    expect.equal("the passwords differ", len(set(passwords)), len(passwords))
    now = panel.one_generation()
    kept = (panel.pki / ".p12-password").read_text()
    expect.that("the password on file is one of the answers", kept in passwords, passwords.index(kept))

    made = {}
    for bundle in sorted(place.iterdir()):
        content = bundle.read_bytes()
        fitting = [password for password in passwords if opens(content, password)]
        if fitting:
            expect.equal(
                "one password opens a bundle, and no other bundle", [len(fitting), fitting[0] in made], [1, False]
            )
            made[fitting[0]] = opened(content, fitting[0])
        else:
            expect.equal("only what was there before opens with none", bundle.name, "0000")
    caught.append((len(made), len(passwords)))
    # A bundle may be replaced sooner than the watcher looks, but not most of them.
    expect.that("the watcher caught most", len(made) >= len(passwords) / 2, (len(made), len(passwords)))

    revoked = set(panel.revoked_serials())
    for password, (key, cert, _) in made.items():
        serial = serial_text(cert.serial_number)
        identity = keep(panel.work, pem_of_cert(cert), pem_of(key))
        expect.equal("all but the last are revoked", serial in revoked, password != kept)
        wanted = 200 if password == kept else 403
        expect.status("and refused", panel.call(identity, "GET", ADMIN_ONLY), wanted)
    # Every rotation revokes who asked for it and whoever was the admin.
    callers = {each.serial for each in identities}
    expect.that("what was superseded is revoked", callers | {before} <= revoked and now not in revoked, revoked)
    expect.equal("nothing else is", len(revoked - revoked_before), len(callers | {before}) + len(passwords) - 1)
    expect.equal("crl.pem agrees", set(panel.crl_serials()), revoked)
    expect.that("the backup is of the last but one", revoked > {serial_of(panel.pki / "client.crt.bak")})


def fetch(panel):
    """However many rotations the old certificate asked for at once: it may fetch what they ended in."""
    old = admins(panel, 1)[0]
    came = volley(panel, [(old, *ROTATE)] * ROTATIONS)
    expect.that("at least one is done", 200 in statuses(came), statuses(came))
    bundle = panel.call(old, "GET", "/api/certs/mtls/download")
    expect.status("the download with the old certificate", bundle, 200)
    fitting = [answer for answer in came if answer.status == 200 and opens(bundle.body, answer.json["p12Password"])]
    expect.equal("one of the passwords opens it", len(fitting), 1)
    expect.status("all else is refused", panel.call(old, "GET", ADMIN_ONLY), 403)
    panel.one_generation()
    expect.status("until the new one was used", panel.call(old, "GET", "/api/certs/mtls/download"), 403)


# --- upgrades and resets ------------------------------------------------------


def upgrades(options, report):
    with Panel(options.server) as panel:
        report(
            [
                check("10.1 two upgrades: one is done", lambda: upgrade(panel), [()] * options.rounds),
                check("10.1 an upgrade and a rotation", lambda: upgrade_and_rotate(panel), [()] * options.rounds),
            ]
        )


def upgrade(panel):
    keys, callers = [ec_key(), ec_key()], admins(panel, 2)
    before = panel.one_generation()
    requests = [(each, "POST", UPGRADE, {"csr": csr_of(key, "admin")}) for each, key in zip(callers, keys, strict=True)]
    came = volley(panel, requests)
    expect.equal("one is done and the other told", statuses(came), [200, 409])
    won = [answer.status for answer in came].index(200)
    bound = is_bound(panel, came[won].json, keys[won])
    revoked = panel.revoked_serials()
    expect.that("what was the admin is revoked", {before, callers[won].serial} <= set(revoked), revoked)
    expect.that("who came second is not", callers[1 - won].serial not in revoked, revoked)
    answer = panel.call(callers[1 - won], *ROTATE)
    expect.status("nobody rotates any more", answer, 410)
    back(panel, bound)


def is_bound(panel, answer, key):
    """The admin has a key of its own now, and nothing else gets in; the identity."""
    expect.equal("the mode", panel.json_of(panel.config)["adminAuthMode"], "hardware-bound")
    expect.equal("client.crt", (panel.pki / "client.crt").read_text(), answer["cert"])
    left = [name.name for name in panel.pki.iterdir() if name.name.startswith(("client.", ".p12"))]
    expect.equal("no key is left", left, ["client.crt"])
    bound = keep(panel.work, answer["cert"], pem_of(key))
    expect.status("the new key is let in", panel.call(bound, "GET", ADMIN_ONLY), 200)
    return bound


def back(panel, bound):
    done = panel.reset_admin()
    expect.equal("reset-admin", (done.returncode, done.stderr), (0, ""))
    panel.one_generation()
    expect.equal("the mode", panel.json_of(panel.config)["adminAuthMode"], "p12")
    expect.status("what was bound is refused", panel.call(bound, "GET", ADMIN_ONLY), 403)


def upgrade_and_rotate(panel):
    """The rotation comes first, or it is told that there are no bundles."""
    key, callers = ec_key(), admins(panel, 2)
    requests = [(callers[0], "POST", UPGRADE, {"csr": csr_of(key, "admin")}), (callers[1], *ROTATE)]
    upgraded, rotated = volley(panel, requests)
    expect.status("the upgrade", upgraded, 200)
    expect.status("the rotation", rotated, 200, 410)
    back(panel, is_bound(panel, upgraded.json, key))


def resets(options, report):
    with Panel(options.server) as panel:
        report(
            [
                check("11 reset-admin beside a rotation", lambda: reset_and_rotate(panel), [()] * options.rounds),
                check("11 two of reset-admin beside two rotations", lambda: reset_twice(panel), [()] * options.rounds),
                check("11 reset-admin beside an upgrade", lambda: reset_and_upgrade(panel), [()] * options.rounds),
            ]
        )


def beside(panel, requests, resets=1):
    """Requests while reset-admin runs, which takes a while to start: they are begun a little later, each."""

    def later(number, request):
        time.sleep(0.004 * number)
        return panel.call(*request)

    calls = [functools.partial(later, number, request) for number, request in enumerate(requests)]
    *done, answers = at_once([panel.reset_admin] * resets + [lambda: at_once(calls)])
    for each in done:
        expect.equal("reset-admin", (each.returncode, each.stderr), (0, ""))
    return answers


def reset_and_rotate(panel):
    before = panel.one_generation()
    callers = admins(panel, 4)
    came = beside(panel, [(each, *ROTATE) for each in callers])
    expect.equal("the rotations", statuses(came), [200] * 4)
    after(panel, before, callers)


def after(panel, before, callers):
    now = panel.one_generation()
    revoked = set(panel.revoked_serials())
    gone = {before, *(each.serial for each in callers)}
    expect.that("what was superseded is revoked, the rest is not", gone <= revoked and now not in revoked, revoked)
    expect.equal("crl.pem agrees", set(panel.crl_serials()), revoked)
    left = [
        str(each) for each in panel.pki.rglob("*") if each.name in (".staging", ".intent") or "adit-new" in each.name
    ]
    expect.equal("nothing is left over", left, [])
    expect.equal("the mode", panel.json_of(panel.config)["adminAuthMode"], "p12")


def reset_twice(panel):
    before = panel.one_generation()
    callers = admins(panel, 2)
    expect.equal("the rotations", statuses(beside(panel, [(each, *ROTATE) for each in callers], resets=2)), [200] * 2)
    after(panel, before, callers)


def reset_and_upgrade(panel):
    """Whichever is last has its way; both ways are whole."""
    before = panel.one_generation()
    key, caller = ec_key(), admins(panel, 1)[0]
    [came] = beside(panel, [(caller, "POST", UPGRADE, {"csr": csr_of(key, "admin")})])
    expect.status("the upgrade", came, 200)
    if panel.json_of(panel.config)["adminAuthMode"] == "hardware-bound":
        back(panel, is_bound(panel, came.json, key))
    else:
        after(panel, before, [caller])
        bound = keep(panel.work, came.json["cert"], pem_of(key))
        expect.status("what was bound is refused", panel.call(bound, "GET", ADMIN_ONLY), 403)


# --- numbers ------------------------------------------------------------------


class Pipe:
    """Requests made beforehand, over one TLS connection."""

    def __init__(self, panel):
        self._tls = tls_context().wrap_socket(socket.create_connection(("127.0.0.1", panel.panel_port), 30))

    def ask(self, request):
        self._tls.sendall(request)
        answer = self._tls.recv(65536)
        while b"\r\n\r\n" not in answer:
            answer += self._tls.recv(65536)
        head, _, body = answer.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += self._tls.recv(65536)
        return int(head.split(b" ", 2)[1])

    def close(self):
        self._tls.close()


def numbers(binary, keys):
    with Panel(binary, keys=keys) as panel:
        admin = panel.admin()
        # All tokens of the last hour lie in one file: their number counts.
        few, _, _ = prepare(panel, admin, enough=100)
        made, took = enrol(panel, few)
        print(f"{keys}: {made / took:.0f} enrolments/s of {made} tokens")
        many, count, took = prepare(panel, admin)
        print(f"{keys}: {count / took:.0f} tokens/s made, on {ENROLMENTS} connections")
        made, took = enrol(panel, many)
        print(f"{keys}: {made / took:.0f} enrolments/s, {made} in {took:.1f} s of {count} tokens")
        revocations(panel, admin, keys)


def prepare(panel, admin, enough=10_000):
    """Requests to enrol, each with a token and a key of its own; how many, and how long their tokens took."""
    requests, labels, stop = [], itertools.count(), threading.Event()

    def fill():
        with panel.caller(admin, keep_alive=True) as caller:
            while not stop.is_set() and (number := next(labels)) < enough:
                answer = caller.ask("POST", "/api/certs/agent/enroll", {"label": f"of-{enough}-{number}"})
                expect.status("a token", answer, 200)
                requests.append(answer.json["token"])

    took = for_a_while(fill, stop)
    return [enrolment(token) for token in requests], len(requests), took


def enrolment(token):
    body = json.dumps({"token": token, "csr": csr_of(ec_key())})
    head = "POST /api/enroll HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
    return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def enrol(panel, requests):
    made, stop = [], threading.Event()

    def send():
        with contextlib.closing(Pipe(panel)) as pipe, contextlib.suppress(IndexError):
            while not stop.is_set():
                expect.equal("an enrolment", pipe.ask(requests.pop()), 200)
                made.append(True)

    took = for_a_while(send, stop)
    return len(made), took


def for_a_while(call, stop):
    """Calls it in many threads, which are told to stop after a while; how long it took."""
    began = time.monotonic()
    timer = threading.Timer(MEASURE_FOR, stop.set)
    timer.start()
    try:
        at_once([call] * ENROLMENTS)
    finally:
        timer.cancel()
    return time.monotonic() - began


def revocations(panel, admin, keys, count=20):
    """From the answer to a revocation to the refusal of the agent, on connections that both are there already."""
    delays, durations = [], []
    with panel.caller(admin, keep_alive=True) as revoker:
        for number in range(count):
            agent, _ = panel.enrolled(admin, f"revoked-{number}")
            with panel.caller(agent, keep_alive=True) as caller:
                expect.status("before", caller.ask("GET", "/api/onboarding/status"), 200)
                began = time.monotonic()
                expect.status("the revocation", revoker.ask("DELETE", f"/api/certs/agent/revoked-{number}"), 200)
                answered = time.monotonic()
                # The very next request, or it is a failure: the answer means that it counts (10.4).
                expect.status("the next request", caller.ask("GET", "/api/onboarding/status"), 403)
                delays.append(1000 * (time.monotonic() - answered))
                durations.append(1000 * (answered - began))
    print(
        f"{keys}: a revocation is answered after {statistics.median(durations):.1f} ms (median of {count}),"
        f" and refused {statistics.median(delays):.2f} ms after the answer (at most {max(delays):.2f} ms)"
    )


if __name__ == "__main__":
    expect.run(main)
