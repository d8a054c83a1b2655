//! Certificates for keys that their owners made.

use std::time::Instant;

use axum::extract::{Request, State};
use serde_json::{Value, json};

use super::answer::{Answer, Failure};
use super::validation::{self, Label};
use super::{Admin, Anyone, Expects, Payload, Shared, client_address, parse_payload, read_body};
use crate::panel::NewCertificate;
use crate::state::milliseconds;

type Result<T> = std::result::Result<T, Failure>;

pub(super) async fn create_token(
    State(shared): State<Shared>,
    Admin(by): Admin,
    Payload(body): Payload,
) -> Result<Answer<Value>> {
    let grant = validation::grant(body, |capability| shared.panel.is_capability(capability))?;
    let label = grant.label.clone();
    let token = shared.panel.create_token(grant, by).await;
    let token = token.map_err(|error| Failure::of(&error, "Failed to create enrollment token"))?;
    Ok(Answer(json!({
        "ok": true,
        "token": token.token.expose(),
        "label": label,
        "expiresAt": milliseconds(token.expires_at),
    })))
}

pub(super) async fn drop_token(
    State(shared): State<Shared>,
    Admin(by): Admin,
    Label(label): Label,
) -> Result<Answer<Value>> {
    let dropped = shared.panel.drop_token(label, by).await;
    let dropped = dropped.map_err(|error| Failure::of(&error, "Failed to revoke enrollment token"))?;
    Ok(Answer(json!({"ok": true, "revoked": dropped})))
}

/// Public: the token is what counts, and a certificate is not looked at.
pub(super) async fn enroll(State(shared): State<Shared>, mut request: Request) -> Result<Answer<Value>> {
    const FAILED: &str = "Enrollment failed";
    let address = client_address(request.extensions().get(), request.headers());
    let admitted = shared.limiter.admit(address, Instant::now()).map_err(Failure::too_many);
    let octets = read_body(&mut request, admitted.is_ok(), shared.bounds.request).await;
    admitted?;
    let config = shared.panel.config().map_err(|error| Failure::of(&error, FAILED))?;
    if !config.is_completed() {
        return Err(Failure::not_set_up(&config.onboarding));
    }
    let Payload(body) = parse_payload(request.headers(), &octets?, Expects::Json)?;
    let (token, csr) = validation::enrollment(body)?;
    let enrolled = shared.panel.enroll(&token, csr).await;
    let (grant, certificate) = enrolled.map_err(|error| Failure::of(&error, FAILED))?;
    Ok(Answer(json!({
        "ok": true,
        "cert": certificate.pem,
        "caCert": shared.panel.ca_pem(),
        "label": grant.label,
        "serial": certificate.serial,
        "expiresAt": milliseconds(certificate.expires_at),
    })))
}

pub(super) async fn upgrade_admin(
    State(shared): State<Shared>,
    Admin(caller): Admin,
    Payload(body): Payload,
) -> Result<Answer<Value>> {
    let csr = validation::csr(body)?;
    let upgraded = shared.panel.upgrade_admin(csr, caller).await;
    let certificate = upgraded.map_err(|error| Failure::of(&error, "Admin upgrade failed"))?;
    Ok(Answer(certificate_answer(&shared, &certificate)))
}

pub(super) async fn upgrade_agent(
    State(shared): State<Shared>,
    Anyone(agent): Anyone,
    Payload(body): Payload,
) -> Result<Answer<Value>> {
    let csr = validation::csr(body)?;
    let agent = agent.ok_or(Failure::NO_AGENT_LABEL)?;
    if agent.is_delegated() {
        return Err(Failure::INVALID_AGENT_LABEL);
    }
    let upgraded = shared.panel.upgrade_agent(agent, csr).await;
    let certificate = upgraded.map_err(|error| Failure::of(&error, "Agent certificate upgrade failed"))?;
    Ok(Answer(certificate_answer(&shared, &certificate)))
}

fn certificate_answer(shared: &Shared, certificate: &NewCertificate) -> Value {
    json!({
        "ok": true,
        "cert": certificate.pem,
        "caCert": shared.panel.ca_pem(),
        "serial": certificate.serial,
        "expiresAt": milliseconds(certificate.expires_at),
    })
}
