//! The host's certificates and the admin's own.

use axum::extract::State;
use serde_json::{Map, Value, json};

use super::answer::{Answer, Download, Failure};
use super::validation::Domain;
use super::{Admin, Shared};
use crate::error::Error;
use crate::listing::{AutoRenewal, NotRenewed};
use crate::programs::Nginx;
use crate::state::milliseconds;

type Result<T> = std::result::Result<T, Failure>;

pub(super) async fn list(State(shared): State<Shared>, _: Admin) -> Answer<Value> {
    Answer(json!({"certs": shared.panel.certificates().await}))
}

pub(super) async fn auto_renew_status(State(shared): State<Shared>, _: Admin) -> Answer<AutoRenewal> {
    Answer(shared.panel.auto_renewal().await)
}

pub(super) async fn renew(
    State(shared): State<Shared>,
    _: Admin,
    Domain(domain): Domain,
) -> Result<Answer<Map<String, Value>>> {
    // A task of its own: certbot goes on when whoever asked has gone.
    let renewal = {
        let domain = domain.clone();
        tokio::spawn(async move { shared.panel.renew(&domain).await })
    };
    let renewed = match renewal.await {
        Ok(Ok(renewed)) => renewed,
        Ok(Err(NotRenewed::NotFound)) => return Err(Failure::CERTIFICATE_NOT_FOUND),
        Ok(Err(NotRenewed::Failed(reason))) => return Err(Failure::not_renewed(&reason)),
        Err(error) => return Err(Failure::of(&Error::internal(error), "Certificate renewal failed")),
    };
    let mut answer = Map::new();
    answer.insert("ok".to_owned(), true.into());
    answer.insert("domain".to_owned(), domain.into());
    answer.insert("newExpiry".to_owned(), renewed.expires_at.map(milliseconds).into());
    match renewed.nginx {
        Nginx::Reloaded => None,
        Nginx::ReloadFailed => Some("Certificate renewed but nginx reload failed"),
        Nginx::TestFailed => Some("Certificate renewed but nginx config test failed"),
    }
    .map(|warning| answer.insert("warning".to_owned(), warning.into()));
    Ok(Answer(answer))
}

pub(super) async fn rotate(State(shared): State<Shared>, Admin(caller): Admin) -> Result<Answer<Value>> {
    const WARNING: &str = "Your current browser certificate is now invalid. \
                           Download and import the new certificate before closing this page.";
    let rotated = shared.panel.rotate(caller).await.map_err(|error| match error {
        Error::NoBundle => Failure::gone("rotation"),
        Error::CaKeyMissing => Failure::of(&error, NO_CA_KEY),
        error => Failure::of(&error, "mTLS rotation failed: see the server's log"),
    })?;
    let note = match rotated.nginx {
        Nginx::Reloaded => "",
        Nginx::ReloadFailed => " Note: nginx reload failed — you may need to restart nginx manually.",
        Nginx::TestFailed => " Note: nginx config test failed — you may need to fix nginx manually.",
    };
    Ok(Answer(json!({
        "ok": true,
        "p12Password": rotated.bundle.password.expose(),
        "expiresAt": milliseconds(rotated.bundle.expires_at),
        "warning": format!("{WARNING}{note}"),
    })))
}

pub(super) async fn download(State(shared): State<Shared>, _: Admin) -> Result<Download> {
    let content = shared.panel.admin_bundle().await.map_err(|error| match error {
        Error::NoBundle => Failure::gone("download"),
        error => Failure::of(&error, "Failed to download certificate"),
    })?;
    Ok(Download { name: "client.p12".to_owned(), content })
}

pub(super) async fn auth_mode(State(shared): State<Shared>, _: Admin) -> Result<Answer<Value>> {
    let mode = shared.panel.admin_auth_mode().map_err(|error| Failure::internal(&error))?;
    Ok(Answer(json!({"adminAuthMode": mode})))
}

pub(super) const NO_CA_KEY: &str = "CA key not found — cannot sign new certificate";
