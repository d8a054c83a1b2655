//! What was issued.

use tunnel_model::{Issuer, KeyId, OrganizationId, Origin, Timestamp, Tunnel, TunnelId, TunnelName};

use crate::{Place, Placed};

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

/// A certificate of a public host that somebody may hold.
///
/// What records of earlier versions did not say is `None`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IssuedCertificate {
    /// For whom.
    pub holder: Holder,
    /// The serial number's octets.
    pub serial: Vec<u8>,
    /// SHA-256 of the DER.
    pub fingerprint: [u8; 32],
    /// Who signed it.
    pub issuer: Issuer,
    /// The issuer's word for its kind, where it has several.
    pub profile: Option<String>,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub key: Option<[u8; 32]>,
    /// The key of whoever asked; `None` for the server itself, too.
    pub requested_by: Option<KeyId>,
    /// The beginning of its validity.
    pub not_before: Option<Timestamp>,
    /// The last second of its life.
    pub not_after: Timestamp,
    /// When it was put on record.
    pub issued_at: Option<Timestamp>,
    /// When its issuer revoked it, if it has.
    pub revoked_at: Option<Timestamp>,
}

/// Whose a certificate is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Holder {
    /// The agent of a tunnel, which may be gone.
    Tunnel {
        /// Which tunnel.
        id: TunnelId,
        /// The name that it had.
        name: TunnelName,
        /// Who owns it; unknown of some that are older than this record.
        organization: Option<OrganizationId>,
    },
    /// The edge, which answers for this host.
    Edge(String),
}

impl IssuedCertificate {
    /// What [`Event::CertificateIssued`](tunnel_model::Event::CertificateIssued) says of a tunnel's
    /// certificate; `None` if the tunnel has none.
    pub(crate) fn of_tunnel(tunnel: &Tunnel, origin: &Origin, now: Timestamp) -> Option<Self> {
        let certificate = tunnel.certificate.as_ref()?;
        Some(Self {
            holder: Holder::Tunnel {
                id: tunnel.id,
                name: tunnel.name.clone(),
                organization: Some(tunnel.organization.clone()),
            },
            serial: certificate.serial.clone(),
            fingerprint: certificate.fingerprint,
            issuer: origin.issuer,
            profile: origin.profile.clone(),
            key: Some(origin.key),
            requested_by: origin.requested_by,
            not_before: Some(origin.not_before),
            not_after: certificate.expires_at,
            issued_at: Some(now),
            revoked_at: None,
        })
    }
}

impl Placed for IssuedCertificate {
    fn place(&self) -> Place {
        let mut id = [0; 16];
        id.copy_from_slice(&self.fingerprint[..16]);
        Place { created_at: self.issued_at.unwrap_or(UNKNOWN), id }
    }
}

/// Before everything that says when it was issued.
pub(crate) const UNKNOWN: Timestamp = Timestamp::from_micros(0);

/// Which certificates are wanted: those of which everything holds that is given.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CertificateFilter {
    /// Those of an organization's tunnels, and of nobody's: the edge's own.
    pub organization: Option<OrganizationId>,
    /// Those of one tunnel.
    pub tunnel: Option<TunnelId>,
    /// Those of tunnels that had this name, or of the edge for this host.
    pub host: Option<Host>,
    /// Those with these octets as serial number.
    pub serial: Option<Vec<u8>>,
    /// The one with this SHA-256.
    pub fingerprint: Option<[u8; 32]>,
    /// Those that this one signed.
    pub issuer: Option<Issuer>,
    /// Those that were revoked, or those that were not.
    pub revoked: Option<bool>,
    /// Those that end before.
    pub ends_before: Option<Timestamp>,
    /// Those that end then or later.
    pub ends_from: Option<Timestamp>,
}

/// A host as both kinds of records know it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Host {
    /// The whole name.
    pub host: String,
    /// The label before the zone, if it is in the zone.
    pub name: Option<TunnelName>,
}

impl CertificateFilter {
    /// Is this one wanted? The same that a database is asked.
    pub(crate) fn matches(&self, certificate: &IssuedCertificate) -> bool {
        let Self { organization, tunnel, host, serial, fingerprint, issuer, revoked, ends_before, ends_from } = self;
        let (of_tunnel, of_organization, of_host) = match &certificate.holder {
            Holder::Tunnel { id, name, organization: owner } => (
                tunnel.is_none_or(|tunnel| tunnel == *id),
                organization.is_none() || organization == owner,
                host.as_ref().is_none_or(|host| host.name.as_ref() == Some(name)),
            ),
            Holder::Edge(own) => (tunnel.is_none(), true, host.as_ref().is_none_or(|host| host.host == *own)),
        };
        of_tunnel
            && of_organization
            && of_host
            && serial.as_ref().is_none_or(|serial| *serial == certificate.serial)
            && fingerprint.is_none_or(|fingerprint| fingerprint == certificate.fingerprint)
            && issuer.is_none_or(|issuer| issuer == certificate.issuer)
            && revoked.is_none_or(|revoked| revoked == certificate.revoked_at.is_some())
            && ends_before.is_none_or(|end| certificate.not_after < end)
            && ends_from.is_none_or(|end| certificate.not_after >= end)
    }
}
