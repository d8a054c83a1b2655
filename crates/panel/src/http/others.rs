//! What clients ask besides certificates: enough for them to go on.

use std::path::Path;

use axum::extract::{Request, State};
use axum::response::{Html, IntoResponse as _, Response};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use tower_http::services::{ServeDir, ServeFile};

use super::answer::{Answer, Failure};
use super::{Admin, Anyone, Shared, authenticate};
use crate::identity::AgentCaller;
use crate::state::BASE_CAPABILITY;

type Result<T> = std::result::Result<T, Failure>;

pub(super) async fn unknown() -> Failure {
    Failure::NOT_FOUND
}

/// For everybody: whoever is turned away learns that the panel is there.
pub(super) async fn health() -> Answer<Value> {
    Answer(json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}))
}

pub(super) async fn onboarding_status(State(shared): State<Shared>, _: Anyone) -> Result<Answer<Value>> {
    let config = shared.panel.config().map_err(|error| Failure::internal(&error))?;
    Ok(Answer(json!({"status": config.onboarding, "domain": config.domain, "ip": config.ip})))
}

/// Another program sets panels up; this one serves those that are.
pub(super) async fn onboarding_over(State(shared): State<Shared>, _: Admin) -> Failure {
    match shared.panel.config() {
        Ok(config) if config.is_completed() => Failure::ONBOARDING_OVER,
        Ok(config) => Failure::not_set_up(&config.onboarding),
        Err(error) => Failure::internal(&error),
    }
}

/// The agents' chisel configuration, without a tunnel: Adit's tunnels are not
/// chisel's.
pub(super) async fn agent_config(State(shared): State<Shared>, Anyone(agent): Anyone) -> Result<Answer<Value>> {
    require(&shared, agent.as_ref(), BASE_CAPABILITY)?;
    let config = shared.panel.config().map_err(|error| Failure::internal(&error))?;
    let domain = config.domain.unwrap_or(config.ip);
    let server = format!("https://tunnel.{domain}:443");
    Ok(Answer(json!({
        "domain": domain,
        "chiselServerUrl": server,
        "chiselArgs": ["client", "--tls-skip-verify", server],
        "tunnels": [],
    })))
}

pub(super) async fn tunnels(State(shared): State<Shared>, Anyone(agent): Anyone) -> Result<Answer<Value>> {
    require(&shared, agent.as_ref(), BASE_CAPABILITY)?;
    Ok(Answer(json!({"tunnels": []})))
}

pub(super) async fn sites(State(shared): State<Shared>, Anyone(agent): Anyone) -> Result<Answer<Value>> {
    require(&shared, agent.as_ref(), "sites:read")?;
    Ok(Answer(json!({"sites": []})))
}

pub(super) async fn plugins(_: Anyone) -> Answer<Value> {
    Answer(json!({"plugins": []}))
}

pub(super) async fn two_factor(_: Admin) -> Answer<Value> {
    Answer(json!({"enabled": false, "setupComplete": false}))
}

fn require(shared: &Shared, agent: Option<&AgentCaller>, capability: &str) -> Result<()> {
    let Some(agent) = agent else { return Ok(()) };
    // What is in the registry may not be valid any more.
    let granted: Vec<_> = agent.capabilities.iter().filter(|granted| shared.panel.is_capability(granted)).collect();
    if granted.iter().any(|granted| *granted == capability) {
        Ok(())
    } else {
        Err(Failure::capability(capability, &granted))
    }
}

/// The web panel of `staticDir`, or a page that says what this is. That a path
/// below `/api` is none is told to everybody; pages are for those who are let in.
pub(super) async fn page(State(shared): State<Shared>, request: Request) -> Result<Response> {
    let path = request.uri().path();
    if path == "/api" || path.starts_with("/api/") {
        return Err(Failure::NOT_FOUND);
    }
    if let Err(refused) = authenticate(&shared, &request, false) {
        return Ok(refused.answer(&request));
    }
    let config = shared.panel.config().map_err(|error| Failure::internal(&error))?;
    match config.static_dir {
        Some(directory) => Ok(serve_static(&directory, request).await),
        None => Ok(Html(PAGE).into_response()),
    }
}

/// A path without a file is one of the page's own.
async fn serve_static(directory: &Path, request: Request) -> Response {
    let files = ServeDir::new(directory).fallback(ServeFile::new(directory.join("index.html")));
    match files.oneshot(request).await {
        Ok(response) => response.into_response(),
        Err(never) => match never {},
    }
}

const PAGE: &str = "<!doctype html>
<html lang=\"en\">
<head><meta charset=\"utf-8\"><title>Adit</title></head>
<body>
<div id=\"root\">
<h1>Adit: certificates</h1>
<p>The certificates API is at <a href=\"/api/certs\"><code>/api/certs</code></a>. A web panel can be served from here:
name its directory as <code>staticDir</code> in <code>panel.json</code>.</p>
</div>
</body>
</html>
";
