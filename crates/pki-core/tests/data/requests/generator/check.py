"""What OpenSSL and pyca/cryptography say about the fixtures."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from .fixture import Fixture

# Rows of the gate that a request can fail although its signature is valid.
_PROVEN = {
    "Version",
    "KeyAlgorithm",
    "KeyParameters",
    "Curve",
    "ExplicitCurve",
    "PointForm",
    "PointNotOnCurve",
    "Ed25519Point",
    "RsaModulusSize",
    "RsaExponent",
    "RsaSmallFactor",
    "RsaRoca",
    "RsaClosePrimes",
    "WeakDigest",
    "SignatureAlgorithm",
    "SignatureKeyMismatch",
    "SignatureParameters",
    "CommonNameMissing",
    "CommonNameRepeated",
    "CommonNameType",
    "CommonNameCharacter",
    "CommonNameWildcard",
    "CommonNameTooLong",
    "CommonNameMismatch",
    "CommonNameUnexpected",
    "SubjectAltNameMissing",
    "SubjectAltNameEmpty",
    "SubjectAltNameType",
    "SubjectAltNameCharacter",
    "SubjectAltNameWildcard",
    "SubjectAltNameMismatch",
    "ExtensionRequestCount",
    "DuplicateExtension",
    "CriticalExtension",
    "MalformedExtension",
}


def findings(fixtures: list[Fixture], directory: Path) -> Iterator[str]:
    """One line for each verdict that is not the expected one."""
    for fixture in fixtures:
        if fixture.others_disagree:
            continue
        for program, wanted in expectations(fixture).items():
            verdict = openssl(directory / fixture.file, fixture.is_der) if program == "OpenSSL" else pyca(fixture)
            if verdict != wanted:
                yield f"{fixture.file}: {program} {'verifies' if verdict else 'does not verify'} it"


def expectations(fixture: Fixture) -> dict[str, bool]:
    """Who must find the signature valid, and who must not; the others may say what they like."""
    if fixture.is_accepted:
        return {"OpenSSL": True, "pyca/cryptography": True}
    if fixture.expected in _PROVEN:
        return {"OpenSSL": True}
    if fixture.expected == "ProofOfPossession":
        return {"OpenSSL": False, "pyca/cryptography": False}
    if fixture.expected in ("Der", "TrailingData"):
        # OpenSSL reads BER.
        return {"pyca/cryptography": False}
    return {}


def openssl(file: Path, is_der: bool) -> bool:
    form = "DER" if is_der else "PEM"
    run = subprocess.run(
        ["openssl", "req", "-verify", "-noout", "-in", file, "-inform", form], capture_output=True, text=True
    )
    return run.returncode == 0 and "verify OK" in run.stdout + run.stderr


def pyca(fixture: Fixture) -> bool:
    load = x509.load_der_x509_csr if fixture.is_der else x509.load_pem_x509_csr
    try:
        request = load(fixture.data)
        return request.is_signature_valid and request.extensions is not None
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        return False
