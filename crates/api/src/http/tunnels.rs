//! `/api/v1/tunnels`.

use axum::Json as JsonResponse;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tunnel_model::{Metadata, TunnelName};
use utoipa::ToSchema;

use super::Shared;
use super::extract::{Caller, Json, NameQuery, PageQuery, TunnelPath, cursor};
use super::wire::{TlsModeBody, TunnelBody, nullable, rfc3339};
use crate::app::Listed;
use crate::error::{Error, Problem};

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TunnelList {
    /// Oldest first, without deleted ones.
    tunnels: Vec<TunnelBody>,
    /// The `cursor` of the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct CreateTunnel {
    /// 3 to 63 characters of `a`-`z`, `0`-`9` and single inner hyphens.
    #[schema(example = "my-agent")]
    tunnel_name: String,
    /// At most 1000 characters.
    description: Option<String>,
    /// `edge` if absent.
    tls_mode: Option<TlsModeBody>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct CreatedTunnel {
    tunnel: TunnelBody,
    /// What the agent presents. Shown this once.
    connect_secret: String,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct UpdateTunnel {
    /// At most 1000 characters; null clears it, absent leaves it.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    description: Option<Option<String>>,
    /// At most 4 KB as JSON; null clears it, absent leaves it.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Object>)]
    metadata: Option<Option<serde_json::Map<String, serde_json::Value>>>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct SignCsr {
    /// One PEM block. The common name is the tunnel's public host; a
    /// subjectAltName may be absent.
    csr_pem: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SignedCsr {
    /// The leaf, PEM with a final newline.
    cert_pem: String,
    /// The certificates between leaf and root, PEM. Present it after `cert_pem`.
    chain_pem: String,
    /// SHA-256 of the leaf's DER, lower-case hex.
    cert_fingerprint_sha256: String,
    /// The end of its validity, RFC 3339.
    cert_expires_at: String,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ConnectSecret {
    /// Counts from the agent's next hello on. Shown this once.
    connect_secret: String,
}

/// List the tunnels that the key may see: all, a page, or the one with a name.
#[utoipa::path(
    get,
    path = "/api/v1/tunnels",
    params(
        ("tunnel_name" = Option<String>, Query, description = "Only the tunnel with this name"),
        ("limit" = Option<u32>, Query, description = "Records of a page; all if absent", minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before"),
    ),
    responses((status = 200, body = TunnelList), (status = 422, body = Problem))
)]
pub(super) async fn list(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    NameQuery(name): NameQuery,
    PageQuery(page): PageQuery,
) -> Result<JsonResponse<TunnelList>, Error> {
    let app = &shared.app;
    let tunnels = match name {
        Some(name) => Listed { records: app.tunnel_by_name(&caller, &name).await?.into_iter().collect(), next: None },
        None => app.tunnels(&caller, page).await?,
    };
    Ok(JsonResponse(TunnelList {
        tunnels: tunnels.records.into_iter().map(|tunnel| TunnelBody::new(tunnel, app)).collect(),
        next_cursor: tunnels.next.map(cursor),
    }))
}

/// Create a tunnel without an identity. Needs an admin key.
#[utoipa::path(
    post,
    path = "/api/v1/tunnels",
    request_body = CreateTunnel,
    responses(
        (status = 201, body = CreatedTunnel),
        (status = 403, description = "A key that is bound to an identity", body = Problem),
        (status = 409, description = "The name is taken or reserved", body = Problem),
        (status = 422, description = "The name or the description breaks its rule", body = Problem),
        (status = 429, description = "Too many creations within 24 hours", body = Problem),
    )
)]
pub(super) async fn create(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    Json(body): Json<CreateTunnel>,
) -> Result<(StatusCode, JsonResponse<CreatedTunnel>), Error> {
    let name: TunnelName = body.tunnel_name.parse().map_err(|error| Error::invalid("tunnel_name", &error))?;
    let description = parse_optional("description", body.description)?;
    let mode = body.tls_mode.unwrap_or_default();
    let created = shared.app.create_tunnel(caller, name, mode.into(), description).await?;
    let tunnel = TunnelBody::new(created.tunnel, &shared.app);
    Ok((StatusCode::CREATED, JsonResponse(CreatedTunnel { tunnel, connect_secret: created.connect_secret })))
}

/// Show one tunnel.
#[utoipa::path(
    get,
    path = "/api/v1/tunnels/{tunnel_id}",
    params(("tunnel_id" = String, Path, description = "The tunnel's UUID")),
    responses((status = 200, body = TunnelBody), (status = 404, body = Problem))
)]
pub(super) async fn show(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    TunnelPath(id): TunnelPath,
) -> Result<JsonResponse<TunnelBody>, Error> {
    let tunnel = shared.app.tunnel(&caller, id).await?;
    Ok(JsonResponse(TunnelBody::new(tunnel, &shared.app)))
}

/// Change words and data. Name and TLS mode stay as they are.
#[utoipa::path(
    patch,
    path = "/api/v1/tunnels/{tunnel_id}",
    params(("tunnel_id" = String, Path, description = "The tunnel's UUID")),
    request_body = UpdateTunnel,
    responses((status = 200, body = TunnelBody), (status = 404, body = Problem), (status = 422, body = Problem))
)]
pub(super) async fn update(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    TunnelPath(id): TunnelPath,
    Json(body): Json<UpdateTunnel>,
) -> Result<JsonResponse<TunnelBody>, Error> {
    let description = match body.description {
        None => None,
        Some(description) => Some(parse_optional("description", description)?),
    };
    let metadata = match body.metadata {
        None => None,
        Some(metadata) => {
            let metadata = Metadata::try_from(metadata.unwrap_or_default());
            Some(metadata.map_err(|error| Error::invalid("metadata", &error))?)
        }
    };
    let tunnel = shared.app.update_tunnel(caller, id, description, metadata).await?;
    Ok(JsonResponse(TunnelBody::new(tunnel, &shared.app)))
}

/// Sign a certificate for a passthrough tunnel's public host.
#[utoipa::path(
    post,
    path = "/api/v1/tunnels/{tunnel_id}/sign-csr",
    params(("tunnel_id" = String, Path, description = "The tunnel's UUID")),
    request_body = SignCsr,
    responses(
        (status = 200, body = SignedCsr),
        (status = 400, description = "The request is malformed or its names are wrong", body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "Not a passthrough tunnel, or being deleted", body = Problem),
        (status = 429, description = "Too many signings within 24 hours", body = Problem),
    )
)]
pub(super) async fn sign_csr(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    TunnelPath(id): TunnelPath,
    Json(body): Json<SignCsr>,
) -> Result<JsonResponse<SignedCsr>, Error> {
    let signed = shared.app.sign_csr(caller, id, &body.csr_pem).await;
    let signed = signed.inspect_err(|error| shared.metrics.certificate_failed(error))?;
    Ok(JsonResponse(SignedCsr {
        cert_fingerprint_sha256: base16ct::lower::encode_string(&signed.certificate.fingerprint),
        cert_expires_at: rfc3339(signed.certificate.expires_at),
        cert_pem: signed.certificate.pem,
        chain_pem: signed.chain_pem,
    }))
}

/// Delete a tunnel; it can be restored until its deadline, 24 hours by default.
#[utoipa::path(
    delete,
    path = "/api/v1/tunnels/{tunnel_id}",
    params(("tunnel_id" = String, Path, description = "The tunnel's UUID")),
    responses(
        (status = 200, body = TunnelBody),
        (status = 404, body = Problem),
        (status = 409, description = "The tunnel belongs to an identity", body = Problem),
    )
)]
pub(super) async fn delete(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    TunnelPath(id): TunnelPath,
) -> Result<JsonResponse<TunnelBody>, Error> {
    let tunnel = shared.app.delete_tunnel(caller, id).await?;
    Ok(JsonResponse(TunnelBody::new(tunnel, &shared.app)))
}

/// Take a deletion back.
#[utoipa::path(
    post,
    path = "/api/v1/tunnels/{tunnel_id}/restore",
    params(("tunnel_id" = String, Path, description = "The tunnel's UUID")),
    responses(
        (status = 200, body = TunnelBody),
        (status = 404, body = Problem),
        (status = 409, description = "Not deleted, or too late", body = Problem),
    )
)]
pub(super) async fn restore(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    TunnelPath(id): TunnelPath,
) -> Result<JsonResponse<TunnelBody>, Error> {
    let tunnel = shared.app.restore_tunnel(caller, id).await?;
    Ok(JsonResponse(TunnelBody::new(tunnel, &shared.app)))
}

/// Delete a deleted tunnel for good and free its name. Needs an admin key.
#[utoipa::path(
    delete,
    path = "/api/v1/tunnels/{tunnel_id}/force",
    params(("tunnel_id" = String, Path, description = "The tunnel's UUID")),
    responses(
        (status = 200, body = TunnelBody),
        (status = 403, body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "Not deleted", body = Problem),
    )
)]
pub(super) async fn force_delete(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    TunnelPath(id): TunnelPath,
) -> Result<JsonResponse<TunnelBody>, Error> {
    let tunnel = shared.app.force_delete_tunnel(caller, id).await?;
    Ok(JsonResponse(TunnelBody::new(tunnel, &shared.app)))
}

/// Make a new connect secret.
#[utoipa::path(
    post,
    path = "/api/v1/tunnels/{tunnel_id}/rotate-secret",
    params(("tunnel_id" = String, Path, description = "The tunnel's UUID")),
    responses((status = 200, body = ConnectSecret), (status = 404, body = Problem))
)]
pub(super) async fn rotate_secret(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    TunnelPath(id): TunnelPath,
) -> Result<JsonResponse<ConnectSecret>, Error> {
    let connect_secret = shared.app.rotate_secret(caller, id).await?;
    Ok(JsonResponse(ConnectSecret { connect_secret }))
}

/// Text into the type that holds its rule.
pub(super) fn parse_optional<T>(field: &'static str, text: Option<String>) -> Result<Option<T>, Error>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.map(|text| text.parse().map_err(|error: T::Err| Error::invalid(field, &error))).transpose()
}
