"""Many requests at once, and kills."""

import contextlib
import functools
import http.client
import random
import re
import threading
import time

import expect
from panel_sections.judging import together
from panel_sections.rig import Checks
from panel_sections.texts import HARDWARE_BOUND, TOKEN_USED
from panel_server import answers, at_once, csr_of, ec_key, serial_of, sign_by_hand


def many(report, rig):
    with rig.panel() as panel:
        checks = Checks()

        def enrolments(name, requests, turns=12):
            def run():
                admin, wrong = panel.admin(), []
                for turn in range(turns):
                    label = f"{name}-{turn}"
                    token = panel.token(admin, label)
                    came = at_once([functools.partial(panel.enrol, token, csr) for csr in requests()])
                    entries = [
                        each for each in panel.json_of("agents/registry.json")["agents"] if each["label"] == label
                    ]
                    expect.equal("one entry", len(entries), 1)
                    expect.equal("one is done", [answer.status for answer in came].count(200), 1)
                    used = [answer for answer in came if (answer.status, answer.json) == (401, TOKEN_USED)]
                    wrong += [answer for answer in came if answer.status != 200 and answer not in used]
                expect.that(f"all the others, of {turns * 8}, hear that it is used", not wrong, wrong)

            return run

        several, one = "7 N enrolments with one token at once, {}: one is done, the others hear that it is used", csr_of
        checks.append(
            (several.format("each with its own key"), enrolments("own", lambda: [one(ec_key()) for _ in range(8)]))
        )
        checks.append((several.format("the same request"), enrolments("same", lambda: [one(ec_key())] * 8)))

        @checks("7 N creations of one label at once: one is done, the others are told that it exists")
        def _():
            call = functools.partial(panel.call, panel.admin(), "POST", "/api/certs/agent", {"label": "popular"})
            expect.equal("statuses", sorted(answer.status for answer in at_once([call] * 6)), [200] + [409] * 5)
            call = functools.partial(panel.call, panel.admin(), "POST", "/api/certs/agent/enroll", {"label": "wanted"})
            expect.equal("tokens", sorted(answer.status for answer in at_once([call] * 6)), [200] + [409] * 5)

        @checks("7 N creations of different labels at once: nothing is lost")
        def _():
            admin = panel.admin()
            calls = [
                functools.partial(panel.call, admin, "POST", "/api/certs/agent", {"label": f"n-{number}"})
                for number in range(8)
            ]
            expect.equal("statuses", {answer.status for answer in at_once(calls)}, {200})
            calls = [
                functools.partial(panel.call, admin, "DELETE", f"/api/certs/agent/n-{number}") for number in range(8)
            ]
            expect.equal("statuses", {answer.status for answer in at_once(calls)}, {200})
            listed = {
                each["serial"] for each in panel.done(admin, "GET", "/api/certs/agent")["agents"] if each["revoked"]
            }
            expect.that("all are revoked", listed <= set(panel.revoked_serials()) and len(listed) == 8, listed)
            expect.equal("crl.pem has them", set(panel.crl_serials()), set(panel.revoked_serials()))

        @checks("7 N rotations at once: every one is done, and the files are of one generation")
        def _():
            helpers = [sign_by_hand(rig.work, panel.pki, "/CN=Portlama Client/O=Portlama") for _ in range(5)]
            came = at_once([functools.partial(panel.call, each, "POST", "/api/certs/mtls/rotate") for each in helpers])
            expect.equal("statuses", [answer.status for answer in came], [200] * 5)
            together(panel)
            password = (panel.pki / ".p12-password").read_text()
            expect.equal("one of the passwords", [answer.json["p12Password"] for answer in came].count(password), 1)

        @checks("7 N rotations of one admin at once: the files are of one generation, the last is let in")
        def _():
            admin = panel.admin()
            came = at_once([functools.partial(panel.call, admin, "POST", "/api/certs/mtls/rotate") for _ in range(5)])
            expect.that("200, or 403 after the first", {answer.status for answer in came} <= {200, 403}, came)
            expect.that("at least one", any(answer.status == 200 for answer in came), came)
            together(panel)

        @checks("7 kill -9 while it rotates, makes agents and revokes: all is of one piece afterwards")
        def _():
            killed(rig, panel)

        @checks("7, 10 N upgrades at once: one is done, the others get 409 or are refused")
        def _():
            helpers = [sign_by_hand(rig.work, panel.pki, "/CN=Portlama Client/O=Portlama") for _ in range(4)]
            path, requests = "/api/certs/admin/upgrade-to-hardware-bound", [csr_of(ec_key()) for _ in range(4)]
            calls = [
                functools.partial(panel.call, each, "POST", path, {"csr": csr})
                for each, csr in zip(helpers, requests, strict=True)
            ]
            came = at_once(calls)
            expect.equal("statuses", sorted(answer.status for answer in came), [200, 409, 409, 409])
            for answer in came:
                if answer.status == 409:
                    answers("the others", answer, 409, HARDWARE_BOUND)
                else:
                    expect.equal("client.crt", (panel.pki / "client.crt").read_text(), answer.json["cert"])

        report(checks)


def killed(rig, panel, rounds=8):
    """Kills the server in the midst of work; `kill9.py` does that to the other API, for longer."""
    answered = 0
    for number in range(rounds):
        admin, done, over = panel.admin(), [], threading.Event()
        helper = sign_by_hand(rig.work, panel.pki, "/CN=admin/O=Portlama")

        def work(method, path, body=None, helper=helper, done=done):
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer = panel.call(helper, method, path, body, timeout=5)
                done.append((method, path, answer))

        def agents(number=number, over=over, work=work):
            for turn in range(100):
                if over.is_set():
                    return
                label = f"k-{number}-{turn}"
                work("POST", "/api/certs/agent", {"label": label})
                work("DELETE", f"/api/certs/agent/{label}")

        def rotations(over=over, work=work):
            while not over.is_set():
                work("POST", "/api/certs/mtls/rotate")

        threads = [threading.Thread(target=target) for target in (agents, rotations)]
        for thread in threads:
            thread.start()
        time.sleep(random.uniform(0.005, 0.08))
        panel.kill9()
        over.set()
        for thread in threads:
            thread.join()
        panel.start()
        now = together(panel)
        listed = {each["serial"]: each for each in panel.done(now, "GET", "/api/certs/agent")["agents"]}
        revoked = set(panel.revoked_serials())
        expect.equal("crl.pem and revoked.json agree", set(panel.crl_serials()), revoked)
        for method, path, answer in done:
            if method == "POST" and path.endswith("agent") and answer.status == 200:
                expect.that("an agent that was promised is there", answer.json["serial"] in listed, answer)
            if method == "DELETE" and answer.status == 200:
                entries = [each for each in listed.values() if each["label"] == answer.json["label"]]
                expect.that(
                    "a revocation that was promised is done",
                    entries and all(each["revoked"] and each["serial"] in revoked for each in entries),
                    entries,
                )
        for each in listed.values():
            expect.equal(f"{each['label']}: the lists agree", each["revoked"], each["serial"] in revoked)
            if not each["revoked"]:
                bundle = panel.pki / "agents" / each["label"]
                if each["enrollmentMethod"] == "p12":
                    expect.equal(
                        "its files",
                        sorted(file.name for file in bundle.iterdir()),
                        ["client.crt", "client.key", "client.p12"],
                    )
                    expect.equal("its certificate", serial_of(bundle / "client.crt"), each["serial"])
            else:
                expect.that("no files of the revoked", not (panel.pki / "agents" / each["label"]).exists(), each)
        expect.that(
            "rotated and answered means that the old one is refused",
            admin.serial == now.serial or panel.call(admin, "GET", "/api/certs").status == 403,
        )
        left = [str(file) for file in panel.pki.rglob("*") if re.search(r"\.(new|tmp)|adit-new|staging/.", str(file))]
        expect.equal("nothing is left over", left, [])
        answered += len(done)
    print(f"        {rounds} kills, {answered} requests that were answered before")
