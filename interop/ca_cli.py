"""Judges that `ca-cli sign` on the server's CA directory gives certificates of the shape that the API gives.

    python ca_cli.py --server target/release/api-server --ca-cli target/release/ca-cli

One request is signed by both; pyca/cryptography reads both certificates. Serial, times, signature and
fingerprint may differ, nothing else.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server import Server


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True)
    parser.add_argument("--ca-cli", required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, Server(arguments.server) as server:
        by_api, by_cli = sign_twice(server, arguments.ca_cli, pathlib.Path(scratch))
    checks = list(comparisons(by_api, by_cli))
    for what, one, other in checks:
        if one != other:
            sys.exit(f"FAILED: the same {what}\n  API: {one}\n  CLI: {other}")
    print(f"{len(checks)} passed, 0 failed")


def sign_twice(server, ca_cli, scratch):
    host = "my-agent.adit.localhost"
    run([ca_cli, "csr", host, "--key", scratch / "key", "--out", scratch / "csr"])
    created = server.ask("POST", "/api/v1/tunnels", {"tunnel_name": "my-agent", "tls_mode": "passthrough"})
    tunnel = created.json["tunnel"]["id"]
    signed = server.ask("POST", f"/api/v1/tunnels/{tunnel}/sign-csr", {"csr_pem": (scratch / "csr").read_text()})
    ca = pathlib.Path(server.data_dir) / "ca"
    run([ca_cli, "sign", scratch / "csr", "--ca", ca, "--out", scratch / "crt"])
    api_chain = (signed.json["cert_pem"] + signed.json["chain_pem"]).encode()
    return (
        x509.load_pem_x509_certificates(api_chain),
        x509.load_pem_x509_certificates((scratch / "crt").read_bytes()),
    )


def comparisons(by_api, by_cli):
    (api_leaf, api_issuer), (cli_leaf, cli_issuer) = by_api, by_cli
    yield "issuer's certificate", api_issuer, cli_issuer
    yield "issuer", api_leaf.issuer, cli_leaf.issuer
    yield "subject", api_leaf.subject, cli_leaf.subject
    yield "public key", key(api_leaf), key(cli_leaf)
    yield "signature algorithm", api_leaf.signature_algorithm_oid, cli_leaf.signature_algorithm_oid
    yield "extensions, in order", list(api_leaf.extensions), list(cli_leaf.extensions)
    yield "length of life", life(api_leaf), life(cli_leaf)
    yield "octets of serial", api_leaf.serial_number.bit_length(), cli_leaf.serial_number.bit_length()


def key(certificate):
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def life(certificate):
    return certificate.not_valid_after_utc - certificate.not_valid_before_utc


def run(command):
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=60)


if __name__ == "__main__":
    main()
