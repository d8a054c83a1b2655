//! What was issued, but for the tunnels' own.

use tunnel_model::Timestamp;

/// A certificate that the certificates API issued. Its own directory does not
/// say which key is in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientCertificate {
    /// Upper-case hex.
    pub serial: String,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub key: [u8; 32],
    /// The last second of its life.
    pub not_after: Timestamp,
}

/// A certificate that the edge has issued for a host that it answers for itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EdgeCertificate {
    /// The host.
    pub name: String,
    /// The serial number's octets.
    pub serial: Vec<u8>,
    /// SHA-256 of the DER.
    pub fingerprint: [u8; 32],
    /// The last second of its life.
    pub not_after: Timestamp,
}
