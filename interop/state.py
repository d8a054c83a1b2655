"""Reads back all the server shows and expects that nothing of it is half there."""

from cryptography import x509

import expect
from csr import fingerprint_of


def read_whole(server):
    """Returns (tunnels, identities), each a dict by name, after these expectations:

    every identity has its tunnel and every tunnel that names an identity has
    that one; a tunnel awaits its certificate if and only if it is a passthrough
    tunnel without one; a fingerprint is that of the certificate beside it.
    """
    answer = server.ask("GET", "/api/v1/tunnels/")
    expect.status("the tunnels are listed", answer, 200)
    listed = answer.json["tunnels"] if isinstance(answer.json, dict) else answer.json
    tunnels = {tunnel["tunnel_name"]: tunnel for tunnel in listed}
    expect.equal("no two tunnels have one name", len(tunnels), len(listed))

    answer = server.ask("GET", "/api/v1/identities/")
    expect.status("the identities are listed", answer, 200)
    identities = {identity["agent_handle"]: identity for identity in answer.json}
    expect.equal("no two identities have one handle", len(identities), len(answer.json))

    for tunnel in listed:
        _tunnel_is_whole(tunnel)
        owner = tunnel.get("agent_identity_id")
        if owner is not None:
            identity = identities.get(tunnel["tunnel_name"], {})
            expect.equal(f"tunnel {tunnel['tunnel_name']} has its identity", identity.get("id"), owner)
    for handle, identity in identities.items():
        nested = (identity.get("tunnel") or {}).get("id")
        expect.that(f"identity {handle} has its tunnel", nested is not None, identity)
        expect.equal(f"identity {handle} has the listed tunnel", nested, tunnels.get(handle, {}).get("id"))
    return tunnels, identities


def _tunnel_is_whole(tunnel):
    name, status = tunnel["tunnel_name"], tunnel["status"]
    expect.one_of(f"tunnel {name} has a status that is listed", status, "active", "awaiting_cert", "delete_pending")
    has = [tunnel[field] is not None for field in ("cert_pem", "cert_fingerprint_sha256", "cert_expires_at")]
    expect.that(f"tunnel {name} has all of its certificate or none of it", all(has) or not any(has), tunnel)
    if status != "delete_pending":
        awaits = tunnel["tls_mode"] == "passthrough" and not all(has)
        expect.equal(f"tunnel {name} awaits a certificate if it needs one", status == "awaiting_cert", awaits)
    if all(has):
        leaf = x509.load_pem_x509_certificate(tunnel["cert_pem"].encode())
        expect.equal(
            f"tunnel {name} has the fingerprint of its certificate",
            tunnel["cert_fingerprint_sha256"],
            fingerprint_of(leaf),
        )
