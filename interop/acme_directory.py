"""A small ACME authority (RFC 8555) that is honest until it is told to lie.

For what Debian's Pebble lacks (renewal information, profiles, dns-persist-01) and for what no honest
authority does. It checks signatures, nonces and URLs as strictly as others, proves control of names
by http-01, tls-alpn-01 and dns-01 on ports of this machine, and issues by a root and an intermediate
of its own. Used by other scripts:

    with acme_directory.Directory(work, http_port=5002, tls_port=5001) as directory:
        ... directory.url, directory.ca_file ...
        directory.lies["order"] = acme_directory.status(429, "rateLimited", {"Retry-After": "3600"})

Run by itself it judges itself by certbot, which gets, renews and revokes a certificate here:

    python acme_directory.py
"""

import base64
import contextlib
import datetime
import functools
import hashlib
import hmac
import http.client
import http.server
import itertools
import json
import pathlib
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time

import expect
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
# What counts of a key (RFC 7638 section 3.2).
THUMBPRINT = {"crv", "e", "kty", "n", "x", "y"}
PREFIX = "urn:ietf:params:acme:error:"


# --- lies: each takes the directory, the handler and the honest answer, and gives another ---------------


def status(code, kind=None, headers=None, body=None):
    """Another status, with a problem document or with `body`."""

    def lie(_directory, _handler, _answer):
        if body is not None:
            return Answer(code, {"Content-Type": "text/html", **(headers or {})}, body)
        return problem(code, kind or "serverInternal", "as it was told to", headers)

    return lie


def content_type(kind):
    def lie(_directory, _handler, answer):
        return Answer(answer.status, {**answer.headers, "Content-Type": kind}, answer.body)

    return lie


def members(**changed):
    """Other members of the document."""

    def lie(_directory, _handler, answer):
        return Answer(answer.status, answer.headers, json.dumps({**json.loads(answer.body), **changed}).encode())

    return lie


def problem_in_200(kind="serverInternal"):
    def lie(_directory, _handler, _answer):
        return Answer(200, *problem(200, kind, "with the wrong status")[1:])

    return lie


def redirect(to):
    return status(307, body=b"", headers={"Location": to})


def huge(octets=64 * 1024 * 1024):
    def lie(_directory, _handler, answer):
        return Answer(answer.status, answer.headers, b" " * octets)

    return lie


def slow(seconds):
    """Nothing for a while, then the honest answer."""

    def lie(directory, _handler, answer):
        directory.stopped.wait(seconds)
        return answer

    return lie


def rubbish(body=b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"):
    def lie(_directory, _handler, answer):
        return Answer(answer.status, answer.headers, body)

    return lie


# --- the authority --------------------------------------------------------------------------------------


class Answer(tuple):
    def __new__(cls, code, headers, body):
        return super().__new__(cls, (code, headers, body))

    status = property(lambda self: self[0])
    headers = property(lambda self: self[1])
    body = property(lambda self: self[2])


class Refused(Exception):
    def __init__(self, answer):
        super().__init__(answer)
        self.answer = answer


def document(code, value, headers=None):
    return Answer(code, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())


def problem(code, kind, detail, headers=None):
    value = {"type": PREFIX + kind, "detail": detail, "status": code}
    return Answer(code, {"Content-Type": "application/problem+json", **(headers or {})}, json.dumps(value).encode())


def encoded(octets):
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def decoded(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Directory:
    """The authority; it serves until the block ends.

    Attributes that change what it does, at any time:

    - `lies`: by resource (`directory`, `nonce`, `account`, `new-order`, `order`, `authorization`, `challenge`,
      `finalize`, `certificate`, `revoke`, `renewal`), what is done to its answer.
    - `issues`: one of None, "other key", "other name", "one more name", "for clients", "expired", "future",
      "other root".
    - `validates`: None proves nothing and is content, "never" leaves challenges pending for as long as it stands, "fails" refuses each.
    - `days`: how long certificates live; `renewal`: a function of a certificate to (start, end) as datetimes.
    - `shift`: a timedelta by which its clock is wrong, in certificates and in the header Date.
    """

    def __init__(self, work, http_port=None, tls_port=None, dns=None, profiles=None, external_accounts=None):
        self.work = pathlib.Path(work)
        self.ports = {"http-01": http_port, "tls-alpn-01": tls_port}
        self.dns = dns
        self.profiles, self.external_accounts = profiles or {}, external_accounts or {}
        self.lies, self.issues, self.validates, self.days = {}, None, "truly", 90
        self.shift = datetime.timedelta()
        self.renewal = self._two_thirds
        self.renewal_retry_after = 21600
        self.accounts, self.orders, self.authorizations = {}, {}, {}
        self.certificates, self.revoked, self.asked = {}, {}, []
        self.stopped = threading.Event()
        self._nonces, self._lock, self._ids = set(), threading.RLock(), itertools.count(1)

    def __enter__(self):
        self.work.mkdir(parents=True, exist_ok=True)
        self._root = _authority("Liar's root")
        self._intermediate = _authority("Liar's intermediate", self._root)
        self._stranger = _authority("Liar's intermediate", _authority("A stranger's root"))
        key = ec.generate_private_key(ec.SECP256R1())
        own = _signed(
            key.public_key(), "localhost", [x509.DNSName("localhost")], self._root, datetime.timedelta(days=7)
        )
        (self.work / "directory.crt").write_bytes(_pem(own))
        (self.work / "directory.key").write_bytes(_key_pem(key))
        # Trusted for the connection, and for what is issued.
        self.ca_file = self.work / "authority.pem"
        self.ca_file.write_bytes(_pem(self._root[0]))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.work / "directory.crt", self.work / "directory.key")
        self._server = _Server(("127.0.0.1", 0), functools.partial(_Handler, self))
        self._server.context = context
        self.base = f"https://localhost:{self._server.server_address[1]}"
        self.url = f"{self.base}/directory"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def now(self):
        return datetime.datetime.now(datetime.UTC) + self.shift

    def nonce(self):
        nonce = secrets.token_urlsafe(16)
        with self._lock:
            self._nonces.add(nonce)
        return nonce

    def at(self, *parts):
        return "/".join([self.base, *map(str, parts)])

    # --- requests: the resource, then the answer ---

    def answer(self, handler, method, path, body):
        resource, *rest = path.strip("/").split("/")
        call = getattr(self, "do_" + resource.replace("-", "_"), None)
        if call is None:
            return resource, problem(404, "malformed", "no such resource")
        if resource in ("directory", "nonce", "renewal"):
            self.asked.append((resource, None))
            return resource, call(*rest)
        if method != "POST":
            return resource, problem(405, "malformed", "POST only")
        try:
            with self._lock:
                account, payload = self._opened(resource, path, body)
                self.asked.append((resource, payload))
                return resource, call(account, payload, *rest)
        except Refused as refused:
            return resource, refused.answer
        except (KeyError, ValueError, TypeError) as error:
            return resource, problem(400, "malformed", f"{type(error).__name__}: {error}")

    def do_directory(self):
        resources = {"newNonce": "nonce", "newAccount": "account", "newOrder": "new-order"}
        resources |= {"revokeCert": "revoke", "renewalInfo": "renewal", "keyChange": "key"}
        meta = {"termsOfService": "https://ca.example/terms", "caaIdentities": ["ca.example"]}
        meta |= {"profiles": self.profiles} if self.profiles else {}
        meta |= {"externalAccountRequired": True} if self.external_accounts else {}
        return document(200, {name: self.at(path) for name, path in resources.items()} | {"meta": meta})

    def do_nonce(self):
        return Answer(200, {}, b"")

    def do_account(self, account, payload, *rest):
        if rest:
            return document(200, {"status": "valid"})
        known = next((each for each in self.accounts.values() if each["jwk"] == account["jwk"]), None)
        if known is not None:
            return document(200, {"status": "valid"}, {"Location": known["url"]})
        if payload.get("onlyReturnExisting"):
            raise Refused(problem(400, "accountDoesNotExist", "there is none"))
        if not payload.get("termsOfServiceAgreed"):
            raise Refused(problem(403, "userActionRequired", "the terms have to be agreed to"))
        if self.external_accounts:
            self._bound(payload, account["jwk"])
        account = account | {"url": self.at("account", next(self._ids)), "contact": payload.get("contact", [])}
        self.accounts[account["url"]] = account
        return document(201, {"status": "valid", "contact": account["contact"]}, {"Location": account["url"]})

    def do_new_order(self, account, payload):
        names = [each["value"] for each in payload["identifiers"] if each["type"] == "dns"]
        if not names or len(names) != len(payload["identifiers"]):
            raise Refused(problem(400, "unsupportedIdentifier", "host names only"))
        profile = payload.get("profile")
        if profile is not None and profile not in self.profiles:
            raise Refused(problem(400, "invalidProfile", "there is no such profile"))
        replaces = payload.get("replaces")
        taken = {each["replaces"] for each in self.orders.values() if each["status"] != "invalid"}
        if replaces is not None and replaces in taken:
            raise Refused(problem(409, "alreadyReplaced", "another order replaces it"))
        number = next(self._ids)
        order = {"id": number, "account": account["url"], "status": "pending", "names": names, "profile": profile}
        order |= {"replaces": replaces, "authorizations": [self._authorization(account, name) for name in names]}
        self.orders[number] = order
        return document(201, self._shown(order), {"Location": self.at("order", number)})

    def do_order(self, account, _payload, number):
        order = self._own(account, self.orders, number)
        return document(200, self._shown(order))

    def do_authorization(self, account, _payload, number):
        return document(200, self._own(account, self.authorizations, number)["document"])

    def do_challenge(self, account, _payload, number, kind):
        authorization = self._own(account, self.authorizations, number)
        challenge = next(each for each in authorization["document"]["challenges"] if each["type"] == kind)
        if challenge["status"] == "pending":
            challenge["status"] = "processing"
            threading.Thread(target=self._validate, args=(account, authorization, challenge), daemon=True).start()
        link = f'<{self.at("authorization", number)}>;rel="up"'
        return document(200, challenge, {"Link": link, "Retry-After": "1"})

    def do_finalize(self, account, payload, number):
        order = self._own(account, self.orders, number)
        if self._shown(order)["status"] != "ready":
            raise Refused(problem(403, "orderNotReady", f"the order is {order['status']}"))
        request = x509.load_der_x509_csr(decoded(payload["csr"]))
        try:
            names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            names = names.get_values_for_type(x509.DNSName)
        except x509.ExtensionNotFound:
            raise Refused(problem(400, "badCSR", "a subjectAltName is needed")) from None
        if not request.is_signature_valid or sorted(names) != sorted(order["names"]):
            raise Refused(problem(400, "badCSR", f"the order is for {order['names']}, the request for {names}"))
        chain = self._issued(request, order)
        order["status"], order["chain"] = "valid", chain
        leaf = chain[0]
        self.certificates[leaf.serial_number] = leaf
        return document(200, self._shown(order), {"Location": self.at("order", number)})

    def do_certificate(self, account, _payload, number):
        chain = b"".join(map(_pem, self._own(account, self.orders, number)["chain"]))
        return Answer(200, {"Content-Type": "application/pem-certificate-chain"}, chain)

    def do_revoke(self, _account, payload):
        certificate = x509.load_der_x509_certificate(decoded(payload["certificate"]))
        serial = certificate.serial_number
        if serial not in self.certificates:
            raise Refused(problem(404, "malformed", "it was not issued here"))
        if serial in self.revoked:
            raise Refused(problem(400, "alreadyRevoked", "it is revoked"))
        self.revoked[serial] = payload.get("reason", 0)
        return Answer(200, {}, b"")

    def do_renewal(self, name):
        for certificate in self.certificates.values():
            if certificate_id(certificate) == name:
                start, end = (at.strftime("%Y-%m-%dT%H:%M:%SZ") for at in self.renewal(certificate))
                window = {"suggestedWindow": {"start": start, "end": end}}
                return document(200, window, {"Retry-After": str(self.renewal_retry_after)})
        return problem(404, "malformed", "no such certificate")

    # --- what they need ---

    def _opened(self, resource, path, body):
        """The account and the payload of a signed request (RFC 8555 section 6)."""
        message = json.loads(body)
        header = json.loads(decoded(message["protected"]))
        if header["nonce"] not in self._nonces:
            raise Refused(problem(400, "badNonce", "it is used, or never was given"))
        self._nonces.remove(header["nonce"])
        if header["url"] != self.base + path:
            raise Refused(problem(403, "unauthorized", f"signed for {header['url']}"))
        if "jwk" in header and resource in ("account", "revoke"):
            account = {"jwk": {name: header["jwk"][name] for name in sorted(header["jwk"]) if name in THUMBPRINT}}
        else:
            account = self.accounts.get(header.get("kid"))
            if account is None:
                raise Refused(problem(400, "accountDoesNotExist", "no such account"))
        signed = f"{message['protected']}.{message['payload']}".encode()
        if not _is_signed(account["jwk"], header["alg"], signed, decoded(message["signature"])):
            raise Refused(problem(403, "unauthorized", "the signature does not fit"))
        payload = decoded(message["payload"])
        return account, json.loads(payload) if payload else None

    def _bound(self, payload, jwk):
        """External account binding (RFC 8555 section 7.3.4)."""
        if "externalAccountBinding" not in payload:
            raise Refused(problem(403, "externalAccountRequired", "an external account is needed"))
        binding = payload["externalAccountBinding"]
        header = json.loads(decoded(binding["protected"]))
        key = self.external_accounts.get(header["kid"])
        signed = f"{binding['protected']}.{binding['payload']}".encode()
        is_right = key is not None and hmac.compare_digest(
            hmac.digest(key, signed, "sha256"), decoded(binding["signature"])
        )
        bound = json.loads(decoded(binding["payload"]))
        if not is_right or any(bound.get(name) != value for name, value in jwk.items()):
            raise Refused(problem(403, "unauthorized", "the external account does not fit"))

    def _own(self, account, what, number):
        one = what.get(int(number))
        if one is None:
            raise Refused(problem(404, "malformed", "there is none"))
        if one["account"] != account["url"]:
            raise Refused(problem(403, "unauthorized", "another account's"))
        return one

    def _authorization(self, account, name):
        number = next(self._ids)
        is_wildcard = name.startswith("*.")
        kinds = ["dns-01", "dns-persist-01"] + ([] if is_wildcard else ["http-01", "tls-alpn-01"])
        token = secrets.token_urlsafe(24)
        challenges = [
            {"type": kind, "url": self.at("challenge", number, kind), "token": token, "status": "pending"}
            | ({"issuer-domain-names": ["ca.example"]} if kind == "dns-persist-01" else {})
            for kind in kinds
        ]
        shown = {"status": "pending", "identifier": {"type": "dns", "value": name.removeprefix("*.")}}
        shown |= {"challenges": challenges} | ({"wildcard": True} if is_wildcard else {})
        self.authorizations[number] = {"account": account["url"], "document": shown}
        return number

    def _shown(self, order):
        """An order's document; its status follows from its authorizations'."""
        statuses = {self.authorizations[number]["document"]["status"] for number in order["authorizations"]}
        if order["status"] == "pending" and statuses == {"valid"}:
            order["status"] = "ready"
        if order["status"] == "pending" and "invalid" in statuses:
            order["status"] = "invalid"
        shown = {"status": order["status"], "finalize": self.at("finalize", order["id"])}
        shown["identifiers"] = [{"type": "dns", "value": name} for name in order["names"]]
        shown["authorizations"] = [self.at("authorization", number) for number in order["authorizations"]]
        shown |= {name: order[name] for name in ("replaces", "profile") if order[name] is not None}
        if order["status"] == "valid":
            shown["certificate"] = self.at("certificate", order["id"])
        return shown

    def _validate(self, account, authorization, challenge):
        while self.validates == "never" and not self.stopped.wait(0.1):
            pass
        shown = authorization["document"]
        name, kind = shown["identifier"]["value"], challenge["type"]
        thumbprint = encoded(hashlib.sha256(_compact(account["jwk"])).digest())
        answer = f"{challenge['token']}.{thumbprint}"
        proofs = {"http-01": self._http, "tls-alpn-01": self._tls, "dns-01": self._txt}
        proofs["dns-persist-01"] = self._standing
        try:
            if self.validates == "fails":
                raise ValueError("as it was told to")
            if self.validates is not None:
                proofs[kind](name, challenge["token"], answer, account)
        except (OSError, ValueError, http.client.HTTPException) as error:
            with self._lock:
                detail = f"{kind} for {name}: {error}"
                challenge["error"] = {"type": PREFIX + "unauthorized", "detail": detail, "status": 403}
                shown["status"] = challenge["status"] = "invalid"
            return
        with self._lock:
            challenge["validated"] = self.now().strftime("%Y-%m-%dT%H:%M:%SZ")
            shown["status"] = challenge["status"] = "valid"
            shown["challenges"] = [challenge]

    def _http(self, name, token, answer, _account):
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["http-01"], timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", f"/.well-known/acme-challenge/{token}", headers={"Host": name})
            got = connection.getresponse()
            body = got.read(1000).decode(errors="replace").rstrip()
        if got.status != 200 or body != answer:
            raise ValueError(f"answered {got.status} {body[:100]!r}")

    def _tls(self, name, _token, answer, _account):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["acme-tls/1"])
        tcp = socket.create_connection(("127.0.0.1", self.ports["tls-alpn-01"]), 10)
        with tcp, context.wrap_socket(tcp, server_hostname=name) as tls:
            protocol, der = tls.selected_alpn_protocol(), tls.getpeercert(binary_form=True)
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        extension = certificate.extensions.get_extension_for_oid(ACME_IDENTIFIER)
        wanted = b"\x04\x20" + hashlib.sha256(answer.encode()).digest()
        if protocol != "acme-tls/1" or list(names) != [x509.DNSName(name)]:
            raise ValueError(f"protocol {protocol}, names {list(names)}")
        if not extension.critical or extension.value.value != wanted:
            raise ValueError("another digest")

    def _txt(self, name, _token, answer, _account):
        wanted = encoded(hashlib.sha256(answer.encode()).digest())
        self._has_record(f"_acme-challenge.{name}", lambda value: value == wanted)

    def _standing(self, name, _token, _answer, account):
        uri = f"accounturi={account['url']}"
        self._has_record(f"_validation-persist.{name}", lambda value: value.startswith("ca.example") and uri in value)

    def _has_record(self, name, is_right):
        if self.dns is None:
            raise ValueError("no name server was given")
        host, port = self.dns
        words = ["dig", f"@{host}", "-p", str(port), "+short", "+time=3", "+tries=2", name, "TXT"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=15)
        values = [line.replace('" "', "").strip('"') for line in done.stdout.splitlines()]
        if not any(map(is_right, values)):
            raise ValueError(f"{name} has {values}")

    def _issued(self, request, order):
        names, key, issuer = list(order["names"]), request.public_key(), self._intermediate
        usage, start, days = ExtendedKeyUsageOID.SERVER_AUTH, self.now(), self.days
        match self.issues:
            case "other key":
                key = ec.generate_private_key(ec.SECP256R1()).public_key()
            case "other name":
                names = ["other.example"]
            case "one more name":
                names.append("other.example")
            case "for clients":
                usage = ExtendedKeyUsageOID.CLIENT_AUTH
            case "expired":
                start -= datetime.timedelta(days=days + 2)
            case "future":
                start += datetime.timedelta(days=2)
            case "other root":
                issuer = self._stranger
        names = [x509.DNSName(name) for name in names]
        leaf = _signed(key, None, names, issuer, datetime.timedelta(days=days), usage=usage, start=start)
        return [leaf, self._intermediate[0]]

    def _two_thirds(self, certificate):
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        start = begin + (end - begin) * 2 / 3
        return start, start + datetime.timedelta(days=2)


def certificate_id(certificate):
    """RFC 9773 section 4.1."""
    issuer = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    serial = certificate.serial_number
    return f"{encoded(issuer)}.{encoded(serial.to_bytes(serial.bit_length() // 8 + 1, 'big'))}"


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    context = None

    def finish_request(self, request, client_address):
        # Here and not before: a peer that is slow with its hello holds nobody else.
        request.settimeout(60)
        with contextlib.suppress(OSError), self.context.wrap_socket(request, server_side=True) as tls:
            super().finish_request(tls, client_address)

    def handle_error(self, request, client_address):
        pass


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, directory, *values):
        self.directory = directory
        super().__init__(*values)

    def do_GET(self):
        self._answer("GET")

    def do_HEAD(self):
        self._answer("HEAD")

    def do_POST(self):
        self._answer("POST")

    def _answer(self, method):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        resource, answer = self.directory.answer(self, method, self.path, body)
        lie = self.directory.lies.get(resource)
        if lie is not None:
            answer = lie(self.directory, self, answer)
        self.send_response(answer.status)
        headers = {"Replay-Nonce": self.directory.nonce(), "Cache-Control": "no-store", **answer.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if method != "HEAD":
            self.wfile.write(answer.body)

    def date_time_string(self, timestamp=None):
        return super().date_time_string(self.directory.now().timestamp() if timestamp is None else timestamp)

    def log_message(self, *_):
        pass


def _compact(jwk):
    return json.dumps(jwk, sort_keys=True, separators=(",", ":")).encode()


def _is_signed(jwk, algorithm, signed, signature):
    number = lambda name: int.from_bytes(decoded(jwk[name]), "big")  # noqa: E731
    try:
        if algorithm == "ES256" and jwk["kty"] == "EC":
            key = ec.EllipticCurvePublicNumbers(number("x"), number("y"), ec.SECP256R1()).public_key()
            halves = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
            key.verify(utils.encode_dss_signature(*halves), signed, ec.ECDSA(hashes.SHA256()))
        elif algorithm == "RS256" and jwk["kty"] == "RSA":
            key = rsa.RSAPublicNumbers(number("e"), number("n")).public_key()
            key.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
        else:
            return False
    except InvalidSignature:
        return False
    return True


def _authority(name, issuer=None):
    """A certificate and the key of an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _signed(key.public_key(), name, None, issuer or (None, key), datetime.timedelta(days=3650))
    return certificate, key


def _signed(key, common_name, names, issuer, life, usage=ExtendedKeyUsageOID.SERVER_AUTH, start=None):
    """A leaf for `names`, or an authority if there are none."""
    certificate, signer = issuer
    start = (start or datetime.datetime.now(datetime.UTC)) - datetime.timedelta(hours=1)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(certificate.subject if certificate else subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + life)
        .add_extension(x509.BasicConstraints(names is None, None), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    bits = {name: False for name in ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")}
    bits |= {"encipher_only": False, "decipher_only": False, "crl_sign": names is None}
    bits |= {"key_cert_sign": names is None, "digital_signature": names is not None}
    builder = builder.add_extension(x509.KeyUsage(**bits), critical=True)
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not common_name)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key):
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


# --- judged by certbot ----------------------------------------------------------------------------------


def main():
    expect.that("certbot is installed", shutil.which("certbot") is not None)
    with tempfile.TemporaryDirectory(prefix="adit-acme-") as work, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        with Directory(work, http_port=port) as directory:
            certbot = functools.partial(_certbot, directory, pathlib.Path(work), port)
            done = certbot("certonly", "--standalone", "-d", "a.example.test")
            expect.equal("certbot gets a certificate", done.returncode, 0)
            live = pathlib.Path(work) / "config" / "live" / "a.example.test"
            words = ["openssl", "verify", "-CAfile", directory.ca_file, "-untrusted", live / "chain.pem"]
            words += ["-verify_hostname", "a.example.test", "-purpose", "sslserver", live / "cert.pem"]
            expect.equal("OpenSSL verifies it", subprocess.run(words, capture_output=True, timeout=10).returncode, 0)
            expect.equal("certbot renews it", certbot("renew", "--force-renewal").returncode, 0)
            expect.equal("two were issued", len(directory.certificates), 2)
            done = certbot("revoke", "--cert-path", str(live / "cert.pem"), "--no-delete-after-revoke")
            expect.equal("certbot revokes it", (done.returncode, len(directory.revoked)), (0, 1))
            first = next(iter(directory.certificates.values()))
            expect.equal("its window is told", directory.do_renewal(certificate_id(first)).status, 200)
            directory.lies["new-order"] = status(429, "rateLimited", {"Retry-After": "3600"})
            expect.that("a lie is a failure", certbot("renew", "--force-renewal").returncode != 0)
            directory.lies.clear()
            directory.validates = "fails"
            expect.that("so is a name that is not proved", certbot("renew", "--force-renewal").returncode != 0)
            expect.equal("and nothing is issued", len(directory.certificates), 2)


def _certbot(directory, work, port, verb, *words):
    places = [f"--{name}-dir={work / name}" for name in ("config", "work", "logs")]
    words = ["certbot", verb, *places, "--non-interactive", "--server", directory.url, *words]
    if verb != "revoke":
        words += ["--http-01-port", str(port), "--no-random-sleep-on-renew"]
    if verb == "certonly":
        words += ["--agree-tos", "--register-unsafely-without-email"]
    trust = {"REQUESTS_CA_BUNDLE": str(directory.ca_file), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, env=trust)
    if done.returncode:
        print("   ", (done.stderr.strip().splitlines() or ["nothing said"])[-1])
    return done


if __name__ == "__main__":
    began = time.monotonic()
    expect.run(main)
    print(f"{time.monotonic() - began:.1f} s")
