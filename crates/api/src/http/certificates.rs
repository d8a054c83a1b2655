//! `/api/v1/certificates`: what is on record of everything that was issued.

use axum::Json as JsonResponse;
use axum::extract::State;
use base16ct::lower;
use serde::Serialize;
use store::{Holder, IssuedCertificate};
use tunnel_model::{Issuer, key_id_text};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Shared;
use super::extract::{Caller, CertificateQuery, PageQuery, cursor};
use super::wire::rfc3339;
use crate::app::App;
use crate::error::{Error, Problem};

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CertificateList {
    /// In the order in which they were issued.
    certificates: Vec<CertificateBody>,
    /// The `cursor` of the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// A certificate of a public host. What an earlier version did not write down is null.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Certificate)]
struct CertificateBody {
    /// What it is for.
    host: String,
    /// The serial number, lower-case hex.
    serial: String,
    /// SHA-256 of its DER, lower-case hex.
    fingerprint_sha256: String,
    issuer: IssuerBody,
    /// The issuer's word for its kind, where it has several.
    profile: Option<String>,
    /// SHA-256 of its SubjectPublicKeyInfo, lower-case hex.
    key_sha256: Option<String>,
    /// The tunnel whose agent has the key; null where the server has it.
    tunnel_id: Option<Uuid>,
    /// Whose the tunnel is.
    organization_id: Option<String>,
    /// The API key of whoever asked; null for the server itself.
    requested_by: Option<String>,
    /// The beginning of its validity, RFC 3339.
    not_before: Option<String>,
    /// The end of its validity, RFC 3339.
    not_after: String,
    /// When it was put on record, RFC 3339.
    issued_at: Option<String>,
    /// When its issuer revoked it, RFC 3339; null while it has not.
    revoked_at: Option<String>,
}

/// Who signed it.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Issuer)]
enum IssuerBody {
    /// The deployment's own authority.
    Private,
    /// A public authority, by ACME.
    Acme,
}

impl CertificateBody {
    fn new(certificate: IssuedCertificate, app: &App) -> Self {
        let (host, tunnel_id, organization_id) = match certificate.holder {
            Holder::Tunnel { id, name, organization } => {
                (app.zone().host(&name).to_string(), Some(id.uuid()), organization.map(|owner| owner.to_string()))
            }
            Holder::Edge(host) => (host, None, None),
        };
        Self {
            host,
            serial: lower::encode_string(&certificate.serial),
            fingerprint_sha256: lower::encode_string(&certificate.fingerprint),
            issuer: match certificate.issuer {
                Issuer::Private => IssuerBody::Private,
                Issuer::Acme => IssuerBody::Acme,
            },
            profile: certificate.profile,
            key_sha256: certificate.key.map(|key| lower::encode_string(&key)),
            tunnel_id,
            organization_id,
            requested_by: certificate.requested_by.map(key_id_text),
            not_before: certificate.not_before.map(rfc3339),
            not_after: rfc3339(certificate.not_after),
            issued_at: certificate.issued_at.map(rfc3339),
            revoked_at: certificate.revoked_at.map(rfc3339),
        }
    }
}

/// List the certificates on record, until a year after their end: all that the key may see, or those
/// that fit every parameter.
#[utoipa::path(
    get,
    path = "/api/v1/certificates",
    params(
        ("host" = Option<String>, Query, description = "Only those for this host"),
        ("serial" = Option<String>, Query, description = "Only those with this serial number, hex, colons allowed"),
        ("fingerprint" = Option<String>, Query, description = "Only the one with this SHA-256, hex, colons allowed"),
        ("tunnel_id" = Option<String>, Query, description = "Only those of this tunnel, which may be gone"),
        ("issuer" = Option<String>, Query, description = "Only those of this issuer: `private` or `acme`"),
        ("revoked" = Option<bool>, Query, description = "Only those that were revoked, or were not"),
        ("expires_before" = Option<String>, Query, description = "Only those that end before, RFC 3339"),
        ("expires_after" = Option<String>, Query, description = "Only those that end then or later, RFC 3339"),
        ("limit" = Option<u32>, Query, description = "Records of a page; 100 if absent", minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before"),
    ),
    responses((status = 200, body = CertificateList), (status = 422, body = Problem))
)]
pub(super) async fn list(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    CertificateQuery(wanted): CertificateQuery,
    PageQuery(mut page): PageQuery,
) -> Result<JsonResponse<CertificateList>, Error> {
    // No client of before asks for all, and there may be very many.
    page.limit = page.limit.or(Some(100));
    let app = &shared.app;
    let found = app.certificates(&caller, wanted, page).await?;
    Ok(JsonResponse(CertificateList {
        certificates: found.records.into_iter().map(|certificate| CertificateBody::new(certificate, app)).collect(),
        next_cursor: found.next.map(cursor),
    }))
}
