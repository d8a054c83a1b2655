//! `/api/v1/identities`: a handle, and the tunnel of the same name.

use axum::Json as JsonResponse;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};
use tunnel_model::{Refusal, TunnelName};
use utoipa::ToSchema;

use super::Shared;
use super::extract::{Caller, HandlePath, Json, PageQuery, cursor};
use super::tunnels::parse_optional;
use super::wire::{IdentityBody, TlsModeBody, nullable};
use crate::error::{Error, Problem};

#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct CreateIdentity {
    /// Handle and tunnel name; one leading `@` and upper case are forgiven.
    #[schema(example = "my-agent")]
    agent_handle: String,
    /// At most 255 characters.
    display_name: Option<String>,
    /// At most 1000 characters.
    description: Option<String>,
    /// `edge` if absent.
    tunnel: Option<TunnelOptions>,
    /// Mail, phone and other channels that this server does not have.
    #[serde(flatten)]
    #[schema(ignore)]
    channels: Map<String, Value>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct TunnelOptions {
    tls_mode: Option<TlsModeBody>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct UpdateIdentity {
    /// A new handle; the tunnel's name and public host follow, and a
    /// certificate for the old host is dropped.
    agent_handle: Option<String>,
    /// At most 255 characters; null clears it, absent leaves it.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    display_name: Option<Option<String>>,
    /// At most 1000 characters; null clears it, absent leaves it.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    description: Option<Option<String>>,
    /// Mail, phone and other channels that this server does not have.
    #[serde(flatten)]
    #[schema(ignore)]
    channels: Map<String, Value>,
}

/// List the identities that the key may see: all, or a page.
#[utoipa::path(
    get,
    path = "/api/v1/identities",
    params(
        ("limit" = Option<u32>, Query, description = "Records of a page; all if absent", minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query, description = "The `X-Next-Cursor` of the page before"),
    ),
    responses(
        (
            status = 200,
            body = Vec<IdentityBody>,
            headers(("X-Next-Cursor" = String, description = "The `cursor` of the next page, if there is one")),
        ),
        (status = 422, body = Problem),
    )
)]
pub(super) async fn list(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    PageQuery(page): PageQuery,
) -> Result<(HeaderMap, JsonResponse<Vec<IdentityBody>>), Error> {
    let identities = shared.app.identities(&caller, page).await?;
    let app = &shared.app;
    let body = |(identity, tunnel)| IdentityBody::new(identity, tunnel, app);
    // The clients know this list as a bare array, which has no room for a word beside it.
    let mut headers = HeaderMap::new();
    if let Some(next) = identities.next {
        headers.insert("x-next-cursor", cursor(next).parse().map_err(Error::internal)?);
    }
    Ok((headers, JsonResponse(identities.records.into_iter().map(body).collect())))
}

/// Create an identity with its tunnel. Needs an admin key.
#[utoipa::path(
    post,
    path = "/api/v1/identities",
    request_body = CreateIdentity,
    responses(
        (status = 201, body = IdentityBody),
        (status = 403, description = "A key that is bound to an identity", body = Problem),
        (status = 409, description = "The handle is taken or reserved", body = Problem),
        (status = 422, description = "A field breaks its rule", body = Problem),
        (status = 429, description = "Too many creations within 24 hours", body = Problem),
    )
)]
pub(super) async fn create(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    Json(body): Json<CreateIdentity>,
) -> Result<(StatusCode, JsonResponse<IdentityBody>), Error> {
    without_channels(&body.channels)?;
    let handle = parse_handle(&body.agent_handle)?;
    let display_name = parse_optional("display_name", body.display_name)?;
    let description = parse_optional("description", body.description)?;
    let mode = body.tunnel.and_then(|tunnel| tunnel.tls_mode).unwrap_or_default();
    let created = shared.app.create_identity(caller, handle, display_name, description, mode.into()).await;
    let (identity, tunnel) = created.map_err(handle_conflict)?;
    Ok((StatusCode::CREATED, JsonResponse(IdentityBody::new(identity, tunnel, &shared.app))))
}

/// Show one identity with its tunnel.
#[utoipa::path(
    get,
    path = "/api/v1/identities/{agent_handle}",
    params(("agent_handle" = String, Path, description = "The handle, with or without @")),
    responses((status = 200, body = IdentityBody), (status = 404, body = Problem))
)]
pub(super) async fn show(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    HandlePath(handle): HandlePath,
) -> Result<JsonResponse<IdentityBody>, Error> {
    let (identity, tunnel) = shared.app.identity(&caller, &handle).await?;
    Ok(JsonResponse(IdentityBody::new(identity, tunnel, &shared.app)))
}

/// Change names and words. A new handle needs an admin key.
#[utoipa::path(
    patch,
    path = "/api/v1/identities/{agent_handle}",
    params(("agent_handle" = String, Path, description = "The handle, with or without @")),
    request_body = UpdateIdentity,
    responses(
        (status = 200, body = IdentityBody),
        (status = 403, description = "A new handle, by a key that is bound to the identity", body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "The new handle is taken or reserved", body = Problem),
        (status = 422, description = "A field breaks its rule", body = Problem),
    )
)]
pub(super) async fn update(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    HandlePath(handle): HandlePath,
    Json(body): Json<UpdateIdentity>,
) -> Result<JsonResponse<IdentityBody>, Error> {
    without_channels(&body.channels)?;
    let rename = body.agent_handle.map(|handle| parse_handle(&handle)).transpose()?;
    let display_name = match body.display_name {
        None => None,
        Some(display_name) => Some(parse_optional("display_name", display_name)?),
    };
    let description = match body.description {
        None => None,
        Some(description) => Some(parse_optional("description", description)?),
    };
    let updated = shared.app.update_identity(caller, handle, rename, display_name, description).await;
    let (identity, tunnel) = updated.map_err(handle_conflict)?;
    Ok(JsonResponse(IdentityBody::new(identity, tunnel, &shared.app)))
}

/// Delete an identity, its tunnel and its keys at once. Needs an admin key.
#[utoipa::path(
    delete,
    path = "/api/v1/identities/{agent_handle}",
    params(("agent_handle" = String, Path, description = "The handle, with or without @")),
    responses((status = 204), (status = 403, body = Problem), (status = 404, body = Problem))
)]
pub(super) async fn delete(
    State(shared): State<Shared>,
    Caller(caller): Caller,
    HandlePath(handle): HandlePath,
) -> Result<StatusCode, Error> {
    shared.app.delete_identity(caller, handle).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn parse_handle(text: &str) -> Result<TunnelName, Error> {
    TunnelName::from_handle(text).map_err(|error| Error::invalid("agent_handle", &error))
}

/// Clients look for fields of their own in this one conflict.
fn handle_conflict(error: Error) -> Error {
    match error {
        Error::Refused(refusal @ (Refusal::NameTaken { .. } | Refusal::NameUnavailable(_))) => {
            Error::HandleUnavailable(refusal)
        }
        error => error,
    }
}

/// The clients' keys for channels that this server does not have. Values that
/// ask for nothing pass; anything else must not be promised by silence.
const CHANNELS: [(&str, &str); 17] = [
    ("claim_imessage_number", "imessage"),
    ("contact_sharing_enabled", "contact sharing"),
    ("imessage_enabled", "imessage"),
    ("imessage_filter_mode", "imessage"),
    ("imessage_number_id", "imessage"),
    ("mail_filter_mode", "mail"),
    ("mail_inbound_filter_mode", "mail"),
    ("mail_outbound_filter_mode", "mail"),
    ("mailbox", "mail"),
    ("phone_filter_mode", "phone"),
    ("phone_inbound_filter_mode", "phone"),
    ("phone_number", "phone"),
    ("phone_outbound_filter_mode", "phone"),
    ("slack_filter_mode", "slack"),
    ("slack_inbound_filter_mode", "slack"),
    ("slack_outbound_filter_mode", "slack"),
    ("vault_secret_ids", "vault"),
];

fn without_channels(channels: &Map<String, Value>) -> Result<(), Error> {
    for (key, channel) in CHANNELS {
        let asks = match channels.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Bool(true)) => key != "contact_sharing_enabled",
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(object)) => !object.is_empty(),
            // The mode that identities have by default.
            Some(Value::String(mode)) => mode != "blacklist" || channel == "slack",
            Some(Value::Number(_)) => true,
        };
        if asks {
            return Err(Error::invalid(key, &format!("this server has no {channel}: leave it out")));
        }
    }
    Ok(())
}
