//! Agents: made, listed, changed, revoked.

use axum::extract::State;
use serde::Serialize;
use serde_json::{Value, json};

use super::answer::{Answer, Download, Failure};
use super::certificates::NO_CA_KEY;
use super::validation::{self, Label};
use super::{Admin, Payload, Shared};
use crate::error::Error;
use crate::listing::{days_until, is_soon};
use crate::state::{Agent, milliseconds};

type Result<T> = std::result::Result<T, Failure>;

pub(super) async fn create(
    State(shared): State<Shared>,
    Admin(by): Admin,
    Payload(body): Payload,
) -> Result<Answer<Value>> {
    let grant = validation::grant(body, |capability| shared.panel.is_capability(capability))?;
    let label = grant.label.clone();
    let bundle = shared.panel.create_agent(grant, by).await.map_err(|error| match error {
        Error::CaKeyMissing => Failure::of(&error, NO_CA_KEY),
        error => Failure::of(&error, "Agent certificate generation failed: see the server's log"),
    })?;
    Ok(Answer(json!({
        "ok": true,
        "label": label,
        "p12Password": bundle.password.expose(),
        "serial": bundle.serial,
        "expiresAt": milliseconds(bundle.expires_at),
    })))
}

/// An agent as the list has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    #[serde(flatten)]
    agent: Agent,
    expiring_soon: bool,
    status: &'static str,
}

pub(super) async fn list(State(shared): State<Shared>, _: Admin) -> Result<Answer<Value>> {
    let agents = shared.panel.agents().map_err(|error| Failure::internal(&error))?;
    let now = shared.panel.now();
    let listed = agents.into_iter().map(|agent| {
        let expires_at = agent.expires_at.as_ref().and_then(|at| at.parse().ok());
        let expiring_soon = !agent.revoked && expires_at.is_some_and(|at| is_soon(days_until(at, now)));
        let status = match (agent.revoked, expiring_soon) {
            (true, _) => "revoked",
            (_, true) => "expiring-soon",
            _ => "active",
        };
        Listed { agent, expiring_soon, status }
    });
    Ok(Answer(json!({"agents": listed.collect::<Vec<_>>()})))
}

pub(super) async fn download(State(shared): State<Shared>, _: Admin, Label(label): Label) -> Result<Download> {
    let bundle = shared.panel.agent_bundle(&label).await;
    let content = bundle.map_err(|error| Failure::of(&error, "Failed to download agent certificate"))?;
    Ok(Download { name: format!("{label}.p12"), content })
}

pub(super) async fn set_capabilities(
    State(shared): State<Shared>,
    Admin(by): Admin,
    Label(label): Label,
    Payload(body): Payload,
) -> Result<Answer<Value>> {
    let is_valid = |capability: &str| shared.panel.is_capability(capability);
    let capabilities = validation::capabilities(body, &label, is_valid)?;
    let changed = shared.panel.set_capabilities(label.clone(), capabilities.clone(), by).await;
    changed.map_err(|error| Failure::of(&error, "Failed to update capabilities"))?;
    Ok(Answer(json!({"ok": true, "label": label, "capabilities": capabilities})))
}

pub(super) async fn set_allowed_sites(
    State(shared): State<Shared>,
    Admin(by): Admin,
    Label(label): Label,
    Payload(body): Payload,
) -> Result<Answer<Value>> {
    let sites = validation::allowed_sites(body)?;
    let changed = shared.panel.set_allowed_sites(label.clone(), sites.clone(), by).await;
    changed.map_err(|error| Failure::of(&error, "Failed to update allowed sites"))?;
    Ok(Answer(json!({"ok": true, "label": label, "allowedSites": sites})))
}

pub(super) async fn revoke(
    State(shared): State<Shared>,
    Admin(by): Admin,
    Label(label): Label,
) -> Result<Answer<Value>> {
    let revoked = shared.panel.revoke(label.clone(), by).await;
    revoked.map_err(|error| Failure::of(&error, "Failed to revoke agent certificate"))?;
    Ok(Answer(json!({"ok": true, "label": label})))
}
