"""Judges the server by the published, unmodified Inkbox SDK for Python.

Walks through an identity's life (create, look up, certificate, scoped key,
delete) and expects the values and the exception classes that the SDK makes of
the server's answers. Runs with 0.4.6, the oldest published version, and with
0.7.20; where they differ it says so.

    python -m venv new && new/bin/pip install -r requirements-sdk-new.txt
    new/bin/python sdk.py --server ../target/release/api-server
"""

import base64
import datetime
import importlib.metadata
import itertools
import pathlib
import tempfile
import uuid

import inkbox
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID
from inkbox.whoami.types import WhoamiApiKeyResponse

import expect
from csr import fingerprint_of, new_csr, new_key, spki_of
from server import ZONE, Server, arguments

VERSION = importlib.metadata.version("inkbox")
OLD = VERSION == "0.4.6"
SIGNINGS = 5


def main():
    options = arguments(__doc__).parse_args()
    print(f"inkbox {VERSION}")
    with Server(options.server, signings_per_day=SIGNINGS) as server:
        admin = inkbox.Inkbox(api_key=server.key, base_url=server.url)
        knows_the_admin(admin)
        creates_identities(admin)
        refuses_bad_handles(admin)
        finds_identities(admin)
        updates_metadata(admin)
        signs_certificates(server, admin)
        connects(admin)
        refuses_requests_for_certificates(server, admin)
        updates_identities(admin)
        created = creates_scoped_keys(server, admin)
        confines_the_scoped_key(server, admin, created)
        deletes_identities(server, admin, created)
        limits_creates(server)
        expect.equal("SIGTERM ends the server with 0", server.stop(), 0)


def knows_the_admin(admin):
    me = admin.whoami()
    expect.that("whoami answers for an API key", isinstance(me, WhoamiApiKeyResponse), me)
    expect.equal("whoami tells the kind of key", me.auth_subtype, "api_key.admin_scoped")
    expect.that("whoami tells the organization and the key", bool(me.organization_id and me.key_id), me)


def creates_identities(admin):
    edge = admin.create_identity("edge-one")
    expect.equal("the handle is as asked for", edge.agent_handle, "edge-one")
    expect.one_of("the display name is the handle until one is given", edge.display_name, "edge-one", None)
    expect.equal("there is no mailbox", edge.mailbox, None)
    tunnel_is(edge.tunnel, "edge-one", inkbox.TLSMode.EDGE, inkbox.TunnelStatus.ACTIVE)
    if OLD:
        # The whole tunnel is nested, with the fields this version requires.
        expect.that("the nested tunnel is whole", type(edge.tunnel) is inkbox.Tunnel, edge.tunnel)
        expect.equal("nobody is connected", edge.tunnel.currently_connected, False)
        expect.equal("metadata starts empty", edge.tunnel.metadata, {})
    else:
        # This version reads a summary of it, with the owner in it.
        expect.that("the nested tunnel is a summary", type(edge.tunnel) is inkbox.TunnelSummary, edge.tunnel)
        expect.equal("the tunnel names its identity", edge.tunnel.agent_identity_id, edge.id)

    mixed = admin.create_identity("@Mixed-Case")
    expect.equal("a leading @ and upper case are normalized", mixed.agent_handle, "mixed-case")
    tunnel_is(mixed.tunnel, "mixed-case", inkbox.TLSMode.EDGE, inkbox.TunnelStatus.ACTIVE)

    passthrough = admin.create_identity(
        "pass-one",
        display_name="Pass One",
        description="holds its own key",
        tunnel=inkbox.IdentityTunnelCreateOptions(tls_mode=inkbox.TLSMode.PASSTHROUGH),
    )
    expect.equal("the display name is kept", passthrough.display_name, "Pass One")
    expect.equal("the description is kept", passthrough.description, "holds its own key")
    tunnel_is(passthrough.tunnel, "pass-one", inkbox.TLSMode.PASSTHROUGH, inkbox.TunnelStatus.AWAITING_CERT)

    explicit = admin.create_identity("edge-two", tunnel=inkbox.IdentityTunnelCreateOptions())
    tunnel_is(explicit.tunnel, "edge-two", inkbox.TLSMode.EDGE, inkbox.TunnelStatus.ACTIVE)


def refuses_bad_handles(admin):
    for taken in ("edge-one", "@EDGE-ONE"):
        error = expect.raises(f"{taken!r} is taken", inkbox.HandleUnavailableError, admin.create_identity, taken)
        expect.equal("a taken handle is a conflict", error.status_code, 409)
        expect.one_of("it tells which namespace", error.blocking_namespace, "identities", "tunnels")
    for reserved in ("www", "api", "admin"):
        error = expect.raises(
            f"{reserved!r} is reserved", inkbox.HandleUnavailableError, admin.create_identity, reserved
        )
        expect.equal("a reserved handle is a conflict", error.status_code, 409)
    for bad in ("", "ab", "a" * 64, "-begins", "ends-", "two--hyphens", "under_score", "dot.ted", "späße", "@@twice"):
        refused(f"the handle {bad!r} breaks the rules", 422, admin.create_identity, bad)
    unknown_mode = inkbox.IdentityTunnelCreateOptions(tls_mode="quantum")
    refused("an unknown TLS mode", 422, admin.create_identity, "quantum", tunnel=unknown_mode)


def finds_identities(admin):
    handles = {"edge-one", "edge-two", "mixed-case", "pass-one"}
    listed = admin.list_identities()
    expect.equal("all identities are listed, refused ones are not", {each.agent_handle for each in listed}, handles)
    if not OLD:
        expect.equal("the list has their tunnels", {each.tunnel.tunnel_name for each in listed}, handles)
    found = admin.get_identity("edge-one")
    expect.equal(
        "an identity is found by its handle", found.id, {each.agent_handle: each.id for each in listed}["edge-one"]
    )
    expect.equal("and with an @", admin.get_identity("@edge-one").id, found.id)
    expect.equal("refresh finds the same tunnel", found.refresh().tunnel.id, found.tunnel.id)
    refused("an unknown handle", 404, admin.get_identity, "nobody-here")

    tunnels = admin.tunnels.list()
    expect.equal("all tunnels are listed", {each.tunnel_name for each in tunnels}, handles)
    for each in tunnels:
        expect.equal(f"the tunnel {each.tunnel_name} is found by its id", admin.tunnels.get(each.id), each)
    refused("an unknown tunnel id", 404, admin.tunnels.get, uuid.uuid4())
    refused("a malformed tunnel id", (400, 404, 422), admin.tunnels.get, "nonsense")


def updates_metadata(admin):
    tunnel_id = admin.get_identity("edge-one").tunnel.id
    metadata = {"team": "süd", "nested": {"list": [1, 2.5, None, True]}, "": ""}
    expect.equal("metadata is set", admin.tunnels.update(tunnel_id, metadata=metadata).metadata, metadata)
    expect.equal("metadata is kept", admin.tunnels.get(tunnel_id).metadata, metadata)
    expect.equal("an empty update changes nothing", admin.tunnels.update(tunnel_id).metadata, metadata)
    for empty in ({}, None):
        expect.equal(f"{empty} clears metadata", admin.tunnels.update(tunnel_id, metadata=empty).metadata, {})
        admin.tunnels.update(tunnel_id, metadata={"again": 1})
    expect.equal(
        "a little under 4 KB fits",
        admin.tunnels.update(tunnel_id, metadata={"x": "y" * 4000}).metadata,
        {"x": "y" * 4000},
    )
    refused("metadata over 4 KB", 422, admin.tunnels.update, tunnel_id, metadata={"x": "y" * 5000})
    expect.equal("a refused update changes nothing", admin.tunnels.get(tunnel_id).metadata, {"x": "y" * 4000})
    refused("an unknown tunnel", 404, admin.tunnels.update, uuid.uuid4(), metadata={})


def signs_certificates(server, admin):
    tunnel = admin.get_identity("pass-one").tunnel
    key, other_key = new_key(), new_key()
    seen = []
    for what, each in (("the first certificate", key), ("its renewal", key), ("a renewal with a new key", other_key)):
        signed = admin.tunnels.sign_csr(tunnel.id, csr_pem=new_csr(each, tunnel.public_host))
        certificate_is(what, signed, tunnel.public_host, each, server.root_certificate)
        now = admin.tunnels.get(tunnel.id)
        expect.equal(f"{what} makes the tunnel active", now.status, inkbox.TunnelStatus.ACTIVE)
        expect.equal(f"{what} is the tunnel's", now.cert_pem, signed.cert_pem)
        expect.equal(f"{what} has its fingerprint there", now.cert_fingerprint_sha256, signed.cert_fingerprint_sha256)
        expect.equal(f"{what} has its expiry there", now.cert_expires_at, signed.cert_expires_at)
        expect.that(f"{what} is a new one", signed.cert_fingerprint_sha256 not in seen, seen)
        seen.append(signed.cert_fingerprint_sha256)


def certificate_is(what, signed, host, key, root_path):
    expect.that(
        f"{what} ends with a newline", signed.cert_pem.endswith("-----END CERTIFICATE-----\n"), signed.cert_pem[-40:]
    )
    # The SDK writes both after one another and serves the file as it is.
    chain = x509.load_pem_x509_certificates((signed.cert_pem + signed.chain_pem).encode("ascii"))
    leaf, root = chain[0], x509.load_pem_x509_certificate(root_path.read_bytes())
    names = [each.value for each in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    expect.equal(f"{what} has the host as its common name", names, [host])
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    expect.equal(f"{what} has the host as its only alternative name", list(san), [x509.DNSName(host)])
    expect.equal(f"{what} has the requester's key", spki_of(leaf), spki_of(key))
    expect.equal(f"{what} has the fingerprint told", signed.cert_fingerprint_sha256, fingerprint_of(leaf))
    expect.equal(f"{what} expires when told", signed.cert_expires_at.replace(microsecond=0), leaf.not_valid_after_utc)
    remaining = leaf.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    expect.that(
        f"{what} lasts 90 days", abs(remaining - datetime.timedelta(days=90)) < datetime.timedelta(hours=1), remaining
    )
    expect.that(
        f"{what} comes with its issuer, without the root", len(chain) > 1 and root not in chain, signed.chain_pem
    )
    for subject, issuer in itertools.pairwise([*chain, root]):
        subject.verify_directly_issued_by(issuer)
    verifier = (
        x509.verification.PolicyBuilder()
        .store(x509.verification.Store([root]))
        .build_server_verifier(x509.DNSName(host))
    )
    expect.equal(f"{what} is trusted through root.crt", verifier.verify(leaf, chain[1:])[0], leaf)


def connects(admin):
    """`connect` makes key and request, has it signed and loads the chain; it dials out only later, in `wait`."""
    name = "pass-connect"
    admin.create_identity(name, tunnel=inkbox.IdentityTunnelCreateOptions(tls_mode="passthrough"))
    with tempfile.TemporaryDirectory() as state_dir:
        for attempt in ("first", "second"):
            listener = admin.tunnels.connect(name=name, forward_to="http://127.0.0.1:9", state_dir=state_dir)
            expect.equal("the listener knows its URL", listener.public_url, f"https://{name}.{ZONE}")
            expect.equal("the tunnel is active", listener.tunnel.status, inkbox.TunnelStatus.ACTIVE)
            written = (pathlib.Path(state_dir) / "cert_chain.pem").read_text()
            expect.that(
                f"the {attempt} connect uses the tunnel's certificate",
                written.startswith(listener.tunnel.cert_pem),
                written,
            )


def refuses_requests_for_certificates(server, admin):
    edge, passthrough = admin.get_identity("edge-one").tunnel, admin.get_identity("pass-one").tunnel
    before = admin.tunnels.get(passthrough.id)
    key = new_key()
    good = new_csr(key, passthrough.public_host)

    for what, csr in {
        "a request for another host": new_csr(key, edge.public_host),
        "a request with another SAN": new_csr(key, passthrough.public_host, san=edge.public_host),
        "a request with a broken signature": with_broken_signature(good),
        "a request that is none": "not a request",
        "an empty request": "",
        "a truncated request": good[: len(good) // 2],
    }.items():
        refused(what, 400, admin.tunnels.sign_csr, passthrough.id, csr_pem=csr)
    expect.equal("refused requests change nothing", admin.tunnels.get(passthrough.id), before)

    edge_csr = new_csr(key, edge.public_host)
    error = expect.raises(
        "an edge tunnel has no certificate of its own",
        inkbox.TunnelTLSModeMismatch,
        admin.tunnels.sign_csr,
        edge.id,
        csr_pem=edge_csr,
    )
    expect.equal("that is a conflict", error.status_code, 409)
    refused("an unknown tunnel", 404, admin.tunnels.sign_csr, uuid.uuid4(), csr_pem=good)

    # Only the REST API of the generation before can make a tunnel that is about to be deleted.
    made = server.ask("POST", "/api/v1/tunnels/", {"tunnel_name": "pass-going", "tls_mode": "passthrough"})
    expect.status("a tunnel without identity", made, 201, 200)
    going = made.json["tunnel"]
    expect.status("its deletion", server.ask("DELETE", f"/api/v1/tunnels/{going['id']}"), 200)
    going_csr = new_csr(key, going["public_host"])
    error = expect.raises(
        "a tunnel about to be deleted gets no certificate",
        inkbox.TunnelCSRStateConflict,
        admin.tunnels.sign_csr,
        going["id"],
        csr_pem=going_csr,
    )
    expect.equal("that is a conflict, too", error.status_code, 409)

    # Three were signed before and refused requests do not count.
    for _ in range(SIGNINGS - 3):
        admin.tunnels.sign_csr(passthrough.id, csr_pem=good)
    error = refused(f"signing {SIGNINGS + 1} of a day", 429, admin.tunnels.sign_csr, passthrough.id, csr_pem=good)
    if not OLD:
        # 0.4.6 does not read Retry-After.
        wait = error.retry_after_seconds
        expect.that("Retry-After is within the day", wait is not None and 0 < wait <= 86400, wait)


def with_broken_signature(pem):
    der = bytearray(x509.load_pem_x509_csr(pem.encode()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    body = base64.encodebytes(bytes(der)).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"


def updates_identities(admin):
    identity = admin.get_identity("edge-two")
    identity.update(display_name="Edge Two", description="first")
    expect.equal("both texts are set", texts(admin, "edge-two"), ("Edge Two", "first"))
    identity.update(description=None)
    expect.equal("null clears one, the other stays", texts(admin, "edge-two"), ("Edge Two", None))
    if OLD:
        # Renaming went away in later versions.
        identity.update(new_handle="@Edge-Renamed")
        expect.equal("the handle is the new one", identity.agent_handle, "edge-renamed")
        expect.equal("the tunnel follows", identity.tunnel.tunnel_name, "edge-renamed")
        expect.equal("and its host", identity.tunnel.public_host, f"edge-renamed.{ZONE}")
        refused("the handle before", 404, admin.get_identity, "edge-two")
        error = expect.raises("a taken handle", inkbox.HandleUnavailableError, identity.update, new_handle="edge-one")
        expect.equal("that is a conflict", error.status_code, 409)
        expect.raises("a reserved handle", inkbox.HandleUnavailableError, identity.update, new_handle="www")
        refused("a handle against the rules", 422, identity.update, new_handle="-bad-")
    else:
        # This version compares what it sent with what came back: a server refuses or repeats it.
        try:
            identity.update(slack_filter_mode="whitelist")
            expect.equal("a filter mode is repeated", str(identity.slack_filter_mode.value), "whitelist")
        except inkbox.InkboxAPIError as error:
            expect.that("a filter mode is refused", 400 <= error.status_code < 500, error)


def texts(admin, handle):
    identity = admin.get_identity(handle)
    return identity.display_name, identity.description


def creates_scoped_keys(server, admin):
    owner = admin.get_identity("pass-connect")
    created = admin.api_keys.create(label="agent", description="of pass-connect", scoped_identity_id=owner.id)
    record = created.record
    expect.equal("the key belongs to the identity", record.scoped_identity_id, owner.id)
    expect.equal("label and description are kept", (record.label, record.description), ("agent", "of pass-connect"))
    expect.equal("the key begins with its id", created.api_key.split(".")[0], record.id)
    expect.equal("the key ends with what is shown of it", created.api_key[-4:], record.last4)
    expect.that("the prefix is one", record.id.startswith(record.display_prefix), record)
    expect.equal("the key is active", record.status.value, "active")
    expect.one_of("somebody made it", record.creator_type, "human", "agent")
    expect.equal("it was not revoked", record.revoked_at, None)

    refused("a second admin key", 403, admin.api_keys.create, label="admin")
    refused("a key for nobody", 404, admin.api_keys.create, label="x", scoped_identity_id=uuid.uuid4())
    refused("an empty label", 422, admin.api_keys.create, label="", scoped_identity_id=owner.id)
    refused("a label too long", 422, admin.api_keys.create, label="x" * 256, scoped_identity_id=owner.id)

    for wrong in ("wrong", created.api_key[:-1], created.api_key + "x", record.id):
        stranger = inkbox.Inkbox(api_key=wrong, base_url=server.url)
        refused("a key that is none", 401, stranger.tunnels.list)
    return created


def confines_the_scoped_key(server, admin, created):
    scoped, record = inkbox.Inkbox(api_key=created.api_key, base_url=server.url), created.record
    me = scoped.whoami()
    expect.that("whoami tells the kind of key", (me.auth_subtype or "").startswith("api_key.agent_scoped."), me)
    expect.equal("whoami tells which key", (me.key_id, me.label), (record.id, record.label))

    own, foreign = admin.get_identity("pass-connect").tunnel, admin.get_identity("edge-one").tunnel
    expect.equal("only its own tunnel is listed", [each.id for each in scoped.tunnels.list()], [own.id])
    expect.equal("its own tunnel is found", scoped.tunnels.get(own.id).id, own.id)
    expect.equal(
        "its own tunnel is updated", scoped.tunnels.update(own.id, metadata={"by": "agent"}).metadata, {"by": "agent"}
    )
    scoped.tunnels.sign_csr(own.id, csr_pem=new_csr(new_key(), own.public_host))

    refused("a foreign tunnel", 404, scoped.tunnels.get, foreign.id)
    refused("a foreign tunnel's metadata", 404, scoped.tunnels.update, foreign.id, metadata={})
    foreign_csr = new_csr(new_key(), foreign.public_host)
    refused("a foreign tunnel's certificate", 404, scoped.tunnels.sign_csr, foreign.id, csr_pem=foreign_csr)
    refused("a new identity", 403, scoped.create_identity, "made-by-agent")
    refused("a new key", 403, scoped.api_keys.create, label="x", scoped_identity_id=record.scoped_identity_id)
    refused("a key without scope", 403, scoped.api_keys.create, label="x")
    deletion = server.client(created.api_key).ask("DELETE", "/api/v1/identities/edge-one")
    expect.problem("the deletion of another is refused", deletion, 403, 404)
    expect.equal("the other one is still there", admin.get_identity("edge-one").tunnel.id, foreign.id)


def deletes_identities(server, admin, created):
    scoped = inkbox.Inkbox(api_key=created.api_key, base_url=server.url)
    identity = admin.get_identity("pass-connect")
    identity.delete()
    refused("the identity is gone", 404, admin.get_identity, "pass-connect")
    refused("its tunnel is gone", 404, admin.tunnels.get, identity.tunnel.id)
    late_csr = new_csr(new_key(), identity.tunnel.public_host)
    refused("its tunnel gets no certificate", 404, admin.tunnels.sign_csr, identity.tunnel.id, csr_pem=late_csr)
    refused("its key lists nothing", 401, scoped.tunnels.list)
    refused("its key is nobody", 401, scoped.whoami)
    refused("it cannot be updated", 404, identity.update, description="too late")
    refused("it cannot be deleted twice", 404, identity.delete)
    expect.that("no list has it", "pass-connect" not in {each.agent_handle for each in admin.list_identities()})
    expect.that("no list has its tunnel", identity.tunnel.id not in {each.id for each in admin.tunnels.list()})

    handles = {each.agent_handle for each in admin.list_identities()}
    expect.equal("SIGTERM ends the server with 0", server.stop(), 0)
    server.start()
    again = inkbox.Inkbox(api_key=server.key, base_url=server.url)
    expect.equal("the identities outlive the server", {each.agent_handle for each in again.list_identities()}, handles)
    scoped = inkbox.Inkbox(api_key=created.api_key, base_url=server.url)
    refused("the key stays revoked", 401, scoped.tunnels.list)


def limits_creates(server):
    server.stop()
    server.settings["creates_per_day"] = 1
    server.start()
    admin = inkbox.Inkbox(api_key=server.key, base_url=server.url)
    error = refused("one more than a day's creates", 429, admin.create_identity, "one-more")
    if not OLD:
        wait = error.retry_after_seconds
        expect.that("Retry-After is within the day", wait is not None and 0 < wait <= 86400, wait)
    refused("and it was not created", 404, admin.get_identity, "one-more")


def tunnel_is(tunnel, name, tls_mode, status):
    expect.equal("the tunnel has the handle as its name", tunnel.tunnel_name, name)
    expect.equal(f"{name} has its TLS mode", tunnel.tls_mode, tls_mode)
    expect.equal(f"{name} has its status", tunnel.status, status)
    expect.equal(f"{name} has its host", tunnel.public_host, f"{name}.{ZONE}")
    expect.equal(f"{name} has its zone", tunnel.zone, ZONE)


def refused(what, statuses, call, *values, **named):
    """`call` raises the SDK's plain API error, none of its special ones, with one of the statuses."""
    error = expect.raises(f"{what} is refused", inkbox.InkboxAPIError, call, *values, **named)
    wanted = statuses if isinstance(statuses, tuple) else (statuses,)
    expect.one_of(f"{what} is refused with the right status", error.status_code, *wanted)
    expect.that(f"{what} is refused with a reason", bool(error.detail), error)
    return error


if __name__ == "__main__":
    expect.run(main)
