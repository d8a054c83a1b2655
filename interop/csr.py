"""Keys, requests and fingerprints for the scripts that bring their own CSRs (pyca/cryptography)."""

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def new_key():
    return ec.generate_private_key(ec.SECP256R1())


def new_csr(key, common_name, san=None):
    """A PEM request for `common_name`; `san` is the one DNS name of its SAN, the common name when left out."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(san or common_name)]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    )


def spki_of(key_or_certificate):
    """SHA-256 over the SubjectPublicKeyInfo: which key this is."""
    public_key = key_or_certificate.public_key()
    der = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def fingerprint_of(certificate):
    """SHA-256 over the DER, lower-case hex: what the API calls `cert_fingerprint_sha256`."""
    return certificate.fingerprint(hashes.SHA256()).hex()
