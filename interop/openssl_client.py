"""Judges the server by the `openssl` and `curl` commands alone.

Keys of every accepted kind with requests as `openssl req` makes them, the
certificates checked by `openssl verify -x509_strict`; requests that must be
refused; and the endpoints that only the clients of the generation before use.
Needs no packages.

    python openssl_client.py --server ../target/release/api-server --out certs
    python judges.py --certs certs      # `--out` keeps what was issued
"""

import datetime
import json
import pathlib
import shutil
import subprocess
import tempfile
import time

import expect
from server import ZONE, Server, arguments

EC = "-algorithm EC -pkeyopt ec_param_enc:named_curve -pkeyopt ec_paramgen_curve:"
RSA = "-algorithm RSA -pkeyopt rsa_keygen_bits:"
GOOD_KEYS = {
    "p256": EC + "P-256",
    "p384": EC + "P-384",
    "rsa2048": RSA + "2048",
    "rsa3072": RSA + "3072",
    "rsa4096": RSA + "4096",
    "ed25519": "-algorithm ED25519",
}
BAD_KEYS = {
    "rsa1024": RSA + "1024",
    "rsa-exponent-3": RSA + "2048 -pkeyopt rsa_keygen_pubexp:3",
    "secp256k1": EC + "secp256k1",
    "explicit-curve": "-algorithm EC -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:explicit",
}


def main():
    parser = arguments(__doc__)
    parser.add_argument("--out", type=pathlib.Path, help="keep the certificates in this directory, for judges.py")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        # key=None: the server makes the admin key, this script reads it from the file.
        with Server(options.server, key=None, creates_per_day=100, signings_per_day=10) as server:
            api = Api(server, work)
            keeps_secrets(server)
            certifies_keys(server, api, work)
            ignores_asked_for_powers(api, work)
            refuses_requests(api, work)
            answers_both_spellings(api)
            serves_the_generation_before(api)
            restores_certificates(api, work)
            expect.equal("SIGTERM ends the server with 0", server.stop(), 0)
            limits_creates(server, work)
        forgets_after_the_window(options.server, work)
        if options.out:
            keep(work, options.out)


class Api:
    """curl, with the key and the base URL of a server."""

    def __init__(self, server, work, key=None):
        self.url, self.key, self.work = server.url + "/api/v1", key or server.key, work

    def __call__(self, method, path, body=None):
        """Returns (status, body, headers), the body parsed when it is JSON."""
        body_file, headers_file = self.work / "body", self.work / "headers"
        body_file.unlink(missing_ok=True)
        command = ["curl", "--silent", "--show-error", "--max-time", "30", "--request", method, "--output", body_file]
        command += ["--dump-header", headers_file, "--write-out", "%{http_code}", "--header", f"X-API-Key: {self.key}"]
        if body is not None:
            command += ["--header", "Content-Type: application/json", "--data-binary", "@-"]
        sent = None if body is None else json.dumps(body)
        done = subprocess.run([*command, self.url + path], input=sent, capture_output=True, text=True)
        expect.equal(f"curl {method} {path} gets an answer", (done.returncode, done.stderr), (0, ""))
        text = body_file.read_text() if body_file.exists() else ""
        headers = dict(line.lower().split(": ", 1) for line in headers_file.read_text().splitlines() if ": " in line)
        return int(done.stdout), json.loads(text) if "json" in headers.get("content-type", "") else text, headers

    def made(self, method, path, body=None):
        status, answer, _ = self(method, path, body)
        expect.that(f"{method} {path} is done: 200 or 201", status in (200, 201), (status, answer))
        return answer

    def refused(self, what, statuses, method, path, body=None):
        status, answer, headers = self(method, path, body)
        expect.that(f"{what} is refused with one of {statuses}", status in statuses, (status, answer))
        kind = headers.get("content-type", "").split(";")[0]
        expect.equal(f"{what} is refused with a problem document", kind, "application/problem+json")
        expect.equal(f"{what}: `status` repeats the status", answer.get("status"), status)
        return headers


def openssl(*words):
    """Runs `openssl`; returns what it prints."""
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True)
    what = " ".join(["openssl", *map(str, words)])
    expect.that(f"{what} succeeds", done.returncode == 0, done.stdout + done.stderr)
    return done.stdout


def keeps_secrets(server):
    expect.equal(
        "only the owner reads the admin key", (server.data_dir / "admin-api-key").stat().st_mode & 0o777, 0o600
    )
    expect.equal("only the owner enters the data directory", server.data_dir.stat().st_mode & 0o777, 0o700)


def certifies_keys(server, api, work):
    shutil.copy(server.root_certificate, work / "root.crt")
    openssl("verify", "-x509_strict", "-CAfile", work / "root.crt", work / "root.crt")
    for kind, keygen in GOOD_KEYS.items():
        host, csr = new_request(work, kind, keygen)
        tunnel = new_passthrough(api, kind)
        expect.equal("the host is as the request expects", tunnel["public_host"], host)
        signed = api.made("POST", f"/tunnels/{tunnel['id']}/sign-csr", {"csr_pem": csr})
        certificate_is(api, work, kind, host, tunnel, signed)


def new_request(work, kind, keygen, *more):
    """A key and a request with nothing but a common name, as a person would make it."""
    host = f"{kind}.{ZONE}"
    key, csr = work / f"{kind}.key", work / f"{kind}.csr"
    openssl("genpkey", *keygen.split(), "-quiet", "-out", key)
    openssl("req", "-new", "-key", key, "-subj", f"/CN={host}", *more, "-out", csr)
    return host, csr.read_text()


def new_passthrough(api, handle):
    identity = api.made(
        "POST", "/identities/", {"agent_handle": handle, "tunnel": {"tls_mode": "passthrough"}, "mailbox": {}}
    )
    expect.equal(f"{handle} waits for its certificate", identity["tunnel"]["status"], "awaiting_cert")
    return identity["tunnel"]


def certificate_is(api, work, kind, host, tunnel, signed):
    leaf, chain, root = work / f"{kind}.crt", work / "chain.pem", work / "root.crt"
    leaf.write_text(signed["cert_pem"])
    chain.write_text(signed["chain_pem"])
    openssl(
        "verify",
        "-x509_strict",
        "-purpose",
        "sslserver",
        "-verify_hostname",
        host,
        "-CAfile",
        root,
        "-untrusted",
        chain,
        leaf,
    )

    printed = openssl("x509", "-in", leaf, "-noout", "-fingerprint", "-sha256").strip().split("=")[1]
    fingerprint = printed.replace(":", "").lower()
    expect.equal(f"{kind}: the fingerprint is that of openssl", signed["cert_fingerprint_sha256"], fingerprint)
    public = openssl("pkey", "-in", work / f"{kind}.key", "-pubout")
    expect.equal(f"{kind}: the key is the requester's", openssl("x509", "-in", leaf, "-noout", "-pubkey"), public)
    san = openssl("x509", "-in", leaf, "-noout", "-ext", "subjectAltName").splitlines()[1].strip()
    expect.equal(f"{kind}: the host is the only alternative name", san, f"DNS:{host}")
    expect.that(
        f"{kind}: the host is the common name",
        openssl("x509", "-in", leaf, "-noout", "-subject").split("=")[-1].strip() == host,
    )
    end = openssl("x509", "-in", leaf, "-noout", "-enddate", "-dateopt", "iso_8601").strip().split("=")[1]
    expect.equal(f"{kind}: the expiry told is the certificate's", moment(signed["cert_expires_at"]), moment(end))

    now = api.made("GET", f"/tunnels/{tunnel['id']}")
    expect.equal(f"{kind}: the tunnel is active", now["status"], "active")
    for field in ("cert_pem", "cert_fingerprint_sha256", "cert_expires_at"):
        expect.equal(f"{kind}: the tunnel has the {field}", now[field], signed[field])


def ignores_asked_for_powers(api, work):
    """What a request asks for beyond its name is refused or left out, never granted."""
    wishes = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=keyCertSign,cRLSign"]
    _, csr = new_request(work, "wishful", GOOD_KEYS["p256"], *wishes)
    tunnel = new_passthrough(api, "wishful")
    status, signed, _ = api("POST", f"/tunnels/{tunnel['id']}/sign-csr", {"csr_pem": csr})
    expect.one_of("a request for a CA certificate is signed as a leaf, or refused", status, 200, 400)
    if status == 200:
        (work / "wishful.crt").write_text(signed["cert_pem"])
        expect.that(
            "it is no CA",
            "CA:FALSE" in openssl("x509", "-in", work / "wishful.crt", "-noout", "-ext", "basicConstraints"),
        )
        usage = openssl("x509", "-in", work / "wishful.crt", "-noout", "-ext", "keyUsage")
        expect.that("it signs no certificates", "Certificate Sign" not in usage and "CRL Sign" not in usage, usage)


def refuses_requests(api, work):
    tunnel = new_passthrough(api, "refusing")
    path = f"/tunnels/{tunnel['id']}/sign-csr"
    host = f"refusing.{ZONE}"
    p256 = GOOD_KEYS["p256"]
    requests = {f"a key of kind {kind}": (keygen, host, []) for kind, keygen in BAD_KEYS.items()}
    requests["a signature over SHA-1"] = (GOOD_KEYS["rsa2048"], host, ["-sha1"])
    requests["another common name"] = (p256, f"other.{ZONE}", [])
    requests["the zone itself"] = (p256, ZONE, [])
    requests["a wildcard"] = (p256, f"*.{ZONE}", [])
    requests["a second alternative name"] = (p256, host, ["-addext", f"subjectAltName=DNS:{host},DNS:other.{ZONE}"])
    requests["an address as alternative name"] = (p256, host, ["-addext", "subjectAltName=IP:127.0.0.1"])
    for what, (keygen, common_name, more) in requests.items():
        key, csr = work / "refused.key", work / "refused.csr"
        openssl("genpkey", *keygen.split(), "-quiet", "-out", key)
        openssl("req", "-new", "-key", key, "-subj", f"/CN={common_name}", *more, "-out", csr)
        api.refused(f"a request with {what}", (400,), "POST", path, {"csr_pem": csr.read_text()})
    expect.equal(
        "it still waits for a certificate", api.made("GET", f"/tunnels/{tunnel['id']}")["status"], "awaiting_cert"
    )
    # The label of older tools and the line ends of Windows are no reason to refuse.
    _, csr = new_request(work, "refusing", p256, "-newhdr", "-addext", f"subjectAltName=DNS:{host}")
    api.made("POST", path, {"csr_pem": csr.replace("\n", "\r\n")})


def answers_both_spellings(api):
    """Clients differ in the slash at the end and follow no redirect."""
    for path in ("/tunnels", "/identities"):
        expect.equal(f"GET {path} is {path}/", api.made("GET", path), api.made("GET", path + "/"))
    identity = api.made("GET", "/identities/p256")
    body = {"label": "slash", "scoped_identity_id": identity["id"]}
    for path in ("/api-keys", "/api-keys/"):
        expect.that(f"POST {path} makes a key", "api_key" in api.made("POST", path, body))


def serves_the_generation_before(api):
    made = api.made("POST", "/tunnels/", {"tunnel_name": "old-edge", "tls_mode": "edge", "description": "first"})
    tunnel, secret = made["tunnel"], made["connect_secret"]
    path = f"/tunnels/{tunnel['id']}"
    expect.equal("an edge tunnel is active at once", tunnel["status"], "active")
    expect.equal("it has its host and zone", (tunnel["public_host"], tunnel["zone"]), (f"old-edge.{ZONE}", ZONE))
    expect.equal("it has its description", tunnel["description"], "first")
    secret_is_a_header_value(secret)
    expect.equal("the tunnel is found", api.made("GET", path), tunnel)
    expect.that("the tunnel is listed", tunnel in api.made("GET", "/tunnels/")["tunnels"])
    api.refused("a name that is taken", (409,), "POST", "/tunnels/", {"tunnel_name": "old-edge", "tls_mode": "edge"})
    api.refused("a handle that is taken by a tunnel", (409,), "POST", "/identities/", {"agent_handle": "old-edge"})
    api.refused("a name that is reserved", (409,), "POST", "/tunnels/", {"tunnel_name": "www", "tls_mode": "edge"})
    api.refused("a name against the rules", (422,), "POST", "/tunnels/", {"tunnel_name": "-x-", "tls_mode": "edge"})
    expect.equal(
        "without a TLS mode it is edge",
        api.made("POST", "/tunnels/", {"tunnel_name": "old-default"})["tunnel"]["tls_mode"],
        "edge",
    )

    expect.equal(
        "the description is changed", api.made("PATCH", path, {"description": "second"})["description"], "second"
    )
    expect.equal("null clears it", api.made("PATCH", path, {"description": None})["description"], None)
    api.refused("a description too long", (422,), "PATCH", path, {"description": "x" * 1001})
    expect.equal("1000 characters fit", api.made("PATCH", path, {"description": "ü" * 1000})["description"], "ü" * 1000)

    rotated = api.made("POST", f"{path}/rotate-secret")["connect_secret"]
    secret_is_a_header_value(rotated)
    expect.that("rotation gives another secret", rotated != secret, rotated)

    api.refused("force on an active tunnel", (409,), "DELETE", f"{path}/force")
    api.refused("restore of an active tunnel", (409,), "POST", f"{path}/restore")
    deleted = api.made("DELETE", path)
    expect.equal("deletion is pending at first", deleted["status"], "delete_pending")
    left = moment(deleted["restore_deadline_at"]) - datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(hours=24)
    expect.that("it can be restored for 24 hours", day - datetime.timedelta(minutes=1) < left <= day, left)
    again = api.made("DELETE", path)
    expect.equal(
        "a second deletion does not prolong that", again["restore_deadline_at"], deleted["restore_deadline_at"]
    )
    expect.that(
        "it is still listed", "old-edge" in {each["tunnel_name"] for each in api.made("GET", "/tunnels/")["tunnels"]}
    )
    api.refused(
        "its name for another tunnel", (409,), "POST", "/tunnels/", {"tunnel_name": "old-edge", "tls_mode": "edge"}
    )

    restored = api.made("POST", f"{path}/restore")
    expect.equal("it is restored", (restored["status"], restored["restore_deadline_at"]), ("active", None))

    api.made("DELETE", path)
    expect.equal("force ends it", api.made("DELETE", f"{path}/force")["status"], "deleted")
    api.refused("it afterwards", (404,), "GET", path)
    api.refused("its restore afterwards", (404, 409), "POST", f"{path}/restore")
    api.refused("force afterwards", (404, 409), "DELETE", f"{path}/force")
    successor = api.made("POST", "/tunnels/", {"tunnel_name": "old-edge", "tls_mode": "edge"})["tunnel"]
    expect.that("the name is free at once, for another tunnel", successor["id"] != tunnel["id"], successor)


def secret_is_a_header_value(secret):
    expect.that(
        "the secret is printable ASCII without blanks",
        secret.isascii() and secret.isprintable() and " " not in secret,
        secret,
    )
    expect.that("the secret cannot be guessed", len(secret) >= 22, secret)


def restores_certificates(api, work):
    """A passthrough tunnel comes back as it went: with its certificate or waiting for one."""
    made = api.made("POST", "/tunnels/", {"tunnel_name": "old-pass", "tls_mode": "passthrough"})["tunnel"]
    path = f"/tunnels/{made['id']}"
    expect.equal("it waits for its certificate", made["status"], "awaiting_cert")
    api.made("DELETE", path)
    expect.equal("it waits again", api.made("POST", f"{path}/restore")["status"], "awaiting_cert")
    _, csr = new_request(work, "old-pass", GOOD_KEYS["p256"])
    signed = api.made("POST", f"{path}/sign-csr", {"csr_pem": csr})
    api.made("DELETE", path)
    api.refused("a certificate while deleted", (409,), "POST", f"{path}/sign-csr", {"csr_pem": csr})
    restored = api.made("POST", f"{path}/restore")
    expect.equal("it is active again", restored["status"], "active")
    expect.equal("with its certificate", restored["cert_pem"], signed["cert_pem"])


def limits_creates(server, work):
    server.settings["creates_per_day"] = 1
    server.start()
    headers = Api(server, work).refused(
        "one more than a day's creates", (429,), "POST", "/tunnels/", {"tunnel_name": "one-more"}
    )
    wait = headers.get("retry-after", "")
    expect.that("Retry-After is within the day", wait.isdecimal() and 0 < int(wait) <= 86400, wait)
    expect.equal("SIGTERM ends the server with 0", server.stop(), 0)


def forgets_after_the_window(binary, work):
    with Server(binary, restore_window="2s", sweep_interval="200ms") as server:
        api = Api(server, work)
        tunnel = api.made("POST", "/tunnels/", {"tunnel_name": "brief", "tls_mode": "edge"})["tunnel"]
        path = f"/tunnels/{tunnel['id']}"
        api.made("DELETE", path)
        expect.equal("it can be restored at first", api.made("POST", f"{path}/restore")["status"], "active")
        api.made("DELETE", path)
        time.sleep(3.5)
        api.refused("it after the window", (404,), "GET", path)
        api.refused("its restore after the window", (404, 409), "POST", f"{path}/restore")
        expect.equal("it is no longer listed", api.made("GET", "/tunnels/")["tunnels"], [])
        api.made("POST", "/tunnels/", {"tunnel_name": "brief", "tls_mode": "edge"})


def keep(work, out):
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(work / "root.crt", out)
    # The chain is the issuing certificate alone: the anchor is left out.
    shutil.copy(work / "chain.pem", out / "issuing.crt")
    for kind in GOOD_KEYS:
        shutil.copy(work / f"{kind}.crt", out)


def moment(text):
    return datetime.datetime.fromisoformat(text.replace(" ", "T")).replace(microsecond=0)


if __name__ == "__main__":
    expect.run(main)
