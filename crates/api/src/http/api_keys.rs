//! `/api/v1/api-keys`. For admin keys only.

use axum::Json as JsonResponse;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tunnel_model::{IdentityId, Kind, Refusal};
use utoipa::ToSchema;

use super::Shared;
use super::extract::{Caller, Json, KeyPath, PageQuery, cursor};
use super::tunnels::parse_optional;
use super::wire::ApiKeyBody;
use crate::error::{Error, Problem};

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ApiKeyList {
    /// Oldest first, with revoked ones.
    api_keys: Vec<ApiKeyBody>,
    /// The `cursor` of the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct CreateApiKey {
    /// 1 to 255 characters.
    label: String,
    /// At most 1000 characters.
    description: Option<String>,
    /// The identity that the key is for. A key cannot make another admin key.
    scoped_identity_id: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct CreatedApiKey {
    /// The key. Shown this once.
    api_key: String,
    record: ApiKeyBody,
}

/// List the organization's keys.
#[utoipa::path(
    get,
    path = "/api/v1/api-keys",
    params(
        ("limit" = Option<u32>, Query, description = "Records of a page; all if absent", minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before"),
    ),
    responses((status = 200, body = ApiKeyList), (status = 403, body = Problem), (status = 422, body = Problem))
)]
pub(super) async fn list(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    PageQuery(page): PageQuery,
) -> Result<JsonResponse<ApiKeyList>, Error> {
    let keys = shared.app.api_keys(&caller, page).await?;
    Ok(JsonResponse(ApiKeyList {
        api_keys: keys.records.into_iter().map(ApiKeyBody::from).collect(),
        next_cursor: keys.next.map(cursor),
    }))
}

/// Create a key that is bound to one identity.
#[utoipa::path(
    post,
    path = "/api/v1/api-keys",
    request_body = CreateApiKey,
    responses(
        (status = 201, body = CreatedApiKey),
        (status = 403, description = "Not an admin key, or no identity named", body = Problem),
        (status = 404, description = "No such identity", body = Problem),
        (status = 422, body = Problem),
    )
)]
pub(super) async fn create(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    Json(body): Json<CreateApiKey>,
) -> Result<(StatusCode, JsonResponse<CreatedApiKey>), Error> {
    let label = body.label.parse().map_err(|error| Error::invalid("label", &error))?;
    let description = parse_optional("description", body.description)?;
    let identity: Option<IdentityId> = match body.scoped_identity_id {
        None => None,
        Some(id) => Some(id.parse().map_err(|_| Refusal::NotFound(Kind::Identity))?),
    };
    let (secret, key) = shared.app.create_api_key(caller, identity, label, description).await?;
    let created = CreatedApiKey { api_key: secret.expose().to_owned(), record: key.into() };
    Ok((StatusCode::CREATED, JsonResponse(created)))
}

/// Revoke a key for good.
#[utoipa::path(
    delete,
    path = "/api/v1/api-keys/{key_id}",
    params(("key_id" = String, Path, description = "`ApiKey_` and a UUID")),
    responses((status = 200, body = ApiKeyBody), (status = 403, body = Problem), (status = 404, body = Problem))
)]
pub(super) async fn revoke(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    KeyPath(id): KeyPath,
) -> Result<JsonResponse<ApiKeyBody>, Error> {
    let key = shared.app.revoke_api_key(caller, id).await?;
    Ok(JsonResponse(key.into()))
}
