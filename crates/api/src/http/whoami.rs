//! `/api/whoami`: what the presented key is.

use axum::Json as JsonResponse;
use serde::Serialize;
use tunnel_model::{Scope, key_id_text};
use utoipa::ToSchema;
use uuid::Uuid;

use super::extract::PresentedKey;
use super::wire::{CREATOR_TYPE, creator, rfc3339, scoped_identity};
use crate::error::{Error, Problem};

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Whoami {
    /// `api_key`.
    auth_type: &'static str,
    /// `api_key.admin_scoped` or `api_key.agent_scoped.claimed`.
    auth_subtype: &'static str,
    /// `admin` or `agent`.
    scope: &'static str,
    /// Whose key it is.
    organization_id: String,
    /// The key that created it, or `system`.
    created_by: String,
    /// `human`.
    creator_type: &'static str,
    /// `ApiKey_` and a UUID.
    key_id: String,
    /// The identity that the key is bound to.
    scoped_identity_id: Option<Uuid>,
    label: String,
    description: Option<String>,
    /// RFC 3339.
    created_at: String,
    /// RFC 3339.
    last_used_at: Option<String>,
    /// Always null: keys last until they are revoked.
    expires_at: Option<String>,
}

/// Tell what the presented key is.
#[utoipa::path(get, path = "/api/whoami", responses((status = 200, body = Whoami), (status = 401, body = Problem)))]
pub(super) async fn whoami(PresentedKey(key): PresentedKey) -> Result<JsonResponse<Whoami>, Error> {
    let (auth_subtype, scope) = match key.scope {
        Scope::Admin => ("api_key.admin_scoped", "admin"),
        Scope::Identity(_) => ("api_key.agent_scoped.claimed", "agent"),
    };
    Ok(JsonResponse(Whoami {
        auth_type: "api_key",
        auth_subtype,
        scope,
        organization_id: key.organization.to_string(),
        created_by: creator(&key.created_by),
        creator_type: CREATOR_TYPE,
        key_id: key_id_text(key.id),
        scoped_identity_id: scoped_identity(key.scope),
        label: key.label.as_str().to_owned(),
        description: key.description.map(|description| description.as_str().to_owned()),
        created_at: rfc3339(key.created_at),
        last_used_at: key.last_used_at.map(rfc3339),
        expires_at: None,
    }))
}
