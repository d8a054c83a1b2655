"""Lets others judge certificates: pkilint, pyca/cryptography and openssl.

Takes every `*.crt` of a directory: `root.crt`, `issuing.crt` and any number of
leafs that `issuing.crt` signed. The first finding at NOTICE or above, the
first broken signature or chain ends it.

    python -m venv judges && judges/bin/pip install -r requirements.txt
    judges/bin/python judges.py --certs certs
"""

import argparse
import pathlib
import subprocess
import sys

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed448, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

import expect

LINTER = pathlib.Path(sys.executable).parent / "lint_pkix_cert"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--certs", required=True, type=pathlib.Path, metavar="DIR")
    directory = parser.parse_args().certs
    root, issuing = directory / "root.crt", directory / "issuing.crt"
    leafs = sorted(set(directory.glob("*.crt")) - {root, issuing})
    expect.that(
        f"{directory} holds root.crt, issuing.crt and leafs", root.exists() and issuing.exists() and leafs, leafs
    )

    for path in (root, issuing, *leafs):
        has_no_findings(path)
    chain_holds_for_openssl(root, issuing, leafs)
    chain_holds_for_pyca(read(root), read(issuing), {path: read(path) for path in leafs})
    print(f"judged root.crt, issuing.crt and {len(leafs)} leafs")


def has_no_findings(path):
    """The linter's exit status is the number of findings; it prints one a line, below where it is."""
    done = subprocess.run([LINTER, "lint", "-s", "NOTICE", path], capture_output=True, text=True)
    expect.equal(
        f"pkilint finds nothing in {path.name}", (done.returncode, (done.stdout + done.stderr).strip()), (0, "")
    )


def chain_holds_for_openssl(root, issuing, leafs):
    openssl_verifies("-CAfile", root, root)
    openssl_verifies("-CAfile", root, issuing)
    for leaf in leafs:
        openssl_verifies("-CAfile", root, "-untrusted", issuing, leaf)


def openssl_verifies(*words):
    command = ["openssl", "verify", "-x509_strict", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    expect.that(f"{' '.join(command)} succeeds", done.returncode == 0, done.stdout + done.stderr)


def chain_holds_for_pyca(root, issuing, leafs):
    is_signed_by("root.crt", root, root)
    is_signed_by("issuing.crt", issuing, root)
    serials = {root.serial_number, issuing.serial_number}
    for path, leaf in leafs.items():
        is_signed_by(path.name, leaf, issuing)
        expect.that(f"{path.name} has a serial of its own", leaf.serial_number not in serials, leaf.serial_number)
        serials.add(leaf.serial_number)
        path_is_valid(path.name, leaf, issuing, root)


def is_signed_by(name, certificate, issuer):
    try:
        certificate.verify_directly_issued_by(issuer)
        error = None
    except (InvalidSignature, TypeError, ValueError) as raised:
        error = raised
    expect.that(f"{name} is signed by {issuer.subject.rfc4514_string()}", error is None, error)


def path_is_valid(name, leaf, issuing, root):
    """RFC 5280 path validation by pyca, after its web profile: no Edwards curves, and a subjectAltName always."""
    if isinstance(leaf.public_key(), (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
        return
    extensions = {extension.oid for extension in leaf.extensions}
    if ExtensionOID.SUBJECT_ALTERNATIVE_NAME not in extensions:
        return
    policy = PolicyBuilder().store(Store([root]))
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    try:
        if ExtendedKeyUsageOID.SERVER_AUTH in usages:
            host = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value[0]
            chain = policy.build_server_verifier(host).verify(leaf, [issuing])
        else:
            chain = policy.build_client_verifier().verify(leaf, [issuing]).chain
    except VerificationError as error:
        chain = [error]
    expect.equal(f"{name} leads through issuing.crt to root.crt", list(chain), [leaf, issuing, root])


def read(path):
    certificates = x509.load_pem_x509_certificates(path.read_bytes())
    expect.equal(f"{path.name} holds one certificate", len(certificates), 1)
    return certificates[0]


if __name__ == "__main__":
    expect.run(main)
