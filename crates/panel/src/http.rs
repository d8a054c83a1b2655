//! Routes, and what happens to every request on its way to a handler: who it
//! is, whether the panel is set up, what its body is, in this order.

mod agents;
mod answer;
mod certificates;
mod enrollment;
mod limiter;
mod origin;
mod others;
mod strangers;
mod validation;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, patch, post};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

use crate::identity::{AgentCaller, Caller, Presented};
use crate::panel::Panel;
use answer::Failure;
use limiter::Limiter;
use strangers::Refused;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The client's address.
    pub address: SocketAddr,
    /// The certificate that was presented in the handshake, verified.
    pub presented: Option<Arc<Presented>>,
    /// Is it the proxy, whose headers are believed?
    pub is_proxy: bool,
}

/// How much the panel takes on.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Enrolments that one address may try within a minute; 0 for any number.
    pub enrollments_per_minute: u32,
    /// How long a body may take to arrive.
    pub request: Duration,
}

impl Default for Bounds {
    /// 30 enrolments a minute, 30 s for a body.
    fn default() -> Self {
        Self { enrollments_per_minute: 30, request: Duration::from_secs(30) }
    }
}

/// Octets of a body that are read: a request of the largest size, escaped.
const MAX_BODY: usize = 64 * 1024;

#[derive(Clone)]
struct Shared {
    panel: Arc<Panel>,
    bounds: Bounds,
    limiter: Arc<Limiter>,
}

/// The whole panel as a service. Every request carries a [`Peer`] as an extension.
pub fn router(panel: Arc<Panel>, bounds: Bounds) -> Router {
    let limiter = Arc::new(Limiter::new(bounds.enrollments_per_minute));
    let shared = Shared { panel, bounds, limiter };
    let guard = |expects: Expects| middleware::from_fn_with_state((shared.clone(), expects), guard);

    // A method has its own paths: `enroll` may be an agent's label in one and
    // is a word of ours in another. A path that a method has not is unknown.
    let get_routes = Router::new()
        .route("/api/certs", get(certificates::list))
        .route("/api/certs/auto-renew-status", get(certificates::auto_renew_status))
        .route("/api/certs/mtls/download", get(certificates::download))
        .route("/api/certs/admin/auth-mode", get(certificates::auth_mode))
        .route("/api/certs/agent", get(agents::list))
        .route("/api/certs/agent/{label}/download", get(agents::download))
        .route("/api/tunnels", get(others::tunnels))
        .route("/api/tunnels/agent-config", get(others::agent_config))
        .route("/api/sites", get(others::sites))
        .route("/api/plugins", get(others::plugins))
        .route("/api/settings/2fa", get(others::two_factor))
        .route_layer(guard(Expects::Nothing))
        .merge(
            Router::new()
                .route("/api/onboarding/status", get(others::onboarding_status))
                .route_layer(guard(Expects::NothingNorSetup)),
        )
        .route("/api/health", get(others::health))
        .fallback(others::page);
    let post_routes = Router::new()
        .route("/api/certs/{domain}/renew", post(certificates::renew))
        .route("/api/certs/mtls/rotate", post(certificates::rotate))
        .route_layer(guard(Expects::Nothing))
        .merge(
            Router::new()
                .route("/api/certs/agent", post(agents::create))
                .route("/api/certs/agent/enroll", post(enrollment::create_token))
                .route("/api/certs/agent/upgrade-cert", post(enrollment::upgrade_agent))
                .route("/api/certs/admin/upgrade-to-hardware-bound", post(enrollment::upgrade_admin))
                .route_layer(guard(Expects::Json)),
        )
        .merge(
            Router::new()
                .route("/api/onboarding/domain", post(others::onboarding_over))
                .route("/api/onboarding/verify-dns", post(others::onboarding_over))
                .route("/api/onboarding/provision", post(others::onboarding_over))
                .route_layer(guard(Expects::NothingNorSetup)),
        )
        .route("/api/enroll", post(enrollment::enroll))
        .fallback(others::unknown);
    let patch_routes = Router::new()
        .route("/api/certs/agent/{label}/capabilities", patch(agents::set_capabilities))
        .route("/api/certs/agent/{label}/allowed-sites", patch(agents::set_allowed_sites))
        .route_layer(guard(Expects::Json))
        .fallback(others::unknown);
    let delete_routes = Router::new()
        .route("/api/certs/agent/{label}", delete(agents::revoke))
        .route("/api/certs/agent/enroll/{label}", delete(enrollment::drop_token))
        .route_layer(guard(Expects::Nothing))
        .fallback(others::unknown);

    let finished = |routes: Router<Shared>| routes.layer(middleware::from_fn(observe)).with_state(shared.clone());
    let [get_routes, post_routes, patch_routes, delete_routes] =
        [get_routes, post_routes, patch_routes, delete_routes].map(finished);
    Router::new().fallback(move |request: Request| async move {
        if !has_one_host(&request) {
            return with_headers(Failure::WRONG_HOST.into_response());
        }
        let routes = match *request.method() {
            Method::GET | Method::HEAD => get_routes,
            Method::POST => post_routes,
            Method::PATCH => patch_routes,
            Method::DELETE => delete_routes,
            _ => return with_headers(Failure::NOT_FOUND.into_response()),
        };
        routes.oneshot(request).await.into_response()
    })
}

/// Without a host, or with two, a request is read in one way here and in another by
/// whatever stands before us (RFC 9112 section 3.2).
fn has_one_host(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.is_empty() || Authority::try_from(host.as_bytes()).is_ok(),
        (None, _) => request.version() != Version::HTTP_11,
        _ => false,
    }
}

/// What a route makes of a request's body.
#[derive(Clone, Copy, PartialEq)]
enum Expects {
    /// JSON.
    Json,
    /// None; the web page sends an empty one that says it is JSON.
    Nothing,
    /// None, and the panel need not be set up.
    NothingNorSetup,
}

/// A body that was read.
#[derive(Clone)]
struct Payload(Option<Value>);

/// The order of the checks is what clients see, so that it stands in one place.
async fn guard(
    State((shared, expects)): State<(Shared, Expects)>,
    mut request: Request,
    next: Next,
) -> Result<Response, Failure> {
    let is_download = request.method() == Method::GET && request.uri().path() == "/api/certs/mtls/download";
    let caller = authenticate(&shared, &request, is_download);
    // Read before it is answered, for who is refused before all is sent does not hear why; kept for
    // those only who are let in.
    let octets = read_body(&mut request, caller.is_ok(), shared.bounds.request).await;
    let caller = match caller {
        Ok(caller) => caller,
        Err(refused) => return Ok(refused.answer(&request)),
    };
    require_same_origin(&shared, &request)?;
    if expects != Expects::NothingNorSetup {
        require_setup(&shared)?;
    }
    let payload = parse_payload(request.headers(), &octets?, expects)?;
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(payload);
    Ok(next.run(request).await)
}

fn authenticate(shared: &Shared, request: &Request, is_download: bool) -> Result<Caller, Refused> {
    let peer = request.extensions().get::<Peer>();
    let from_proxy = peer.filter(|peer| peer.is_proxy).and_then(|_| presented_to_proxy(request.headers()));
    let presented = match peer {
        Some(peer) if !peer.is_proxy => peer.presented.as_deref(),
        _ => from_proxy.as_ref(),
    };
    shared.panel.authenticate(presented, is_download).map_err(Refused)
}

fn presented_to_proxy(headers: &HeaderMap) -> Option<Presented> {
    // Two values of one name would be the proxy's and somebody else's.
    let one = |name: &str| {
        let mut values = headers.get_all(name).iter();
        let value = values.next()?.to_str().ok()?;
        values.next().is_none().then_some(value)
    };
    Presented::from_headers(one("x-ssl-client-verify")?, one("x-ssl-client-dn")?, one("x-ssl-client-serial")?)
}

/// A browser presents the certificate to this host whoever wrote the page that
/// asks (cross-site request forgery); it also says which page that was.
fn require_same_origin(shared: &Shared, request: &Request) -> Result<(), Failure> {
    if request.method().is_safe() {
        return Ok(());
    }
    let config = shared.panel.config().ok();
    let configured = config.as_ref().map(|config| (config.ip.as_str(), config.domain.as_deref()));
    if origin::is_own(request.headers(), configured) { Ok(()) } else { Err(Failure::CROSS_ORIGIN) }
}

fn require_setup(shared: &Shared) -> Result<(), Failure> {
    let config = shared.panel.config().map_err(|error| Failure::internal(&error))?;
    if config.is_completed() { Ok(()) } else { Err(Failure::not_set_up(&config.onboarding)) }
}

/// A body of at most [`MAX_BODY`] octets. Some more are read and dropped, so that
/// the answer gets through; all of them if it is not to be kept.
async fn read_body(request: &mut Request, is_kept: bool, patience: Duration) -> Result<Vec<u8>, Failure> {
    const MAX_DROPPED: usize = 8 * 1024 * 1024;

    let mut body = std::mem::replace(request.body_mut(), Body::empty());
    let read = async {
        let (mut octets, mut size) = (Vec::new(), 0);
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Failure::BROKEN_BODY)?.into_data() else { continue };
            size += data.len();
            if is_kept && size <= MAX_BODY {
                octets.extend_from_slice(&data);
            } else if size > MAX_DROPPED {
                break;
            }
        }
        if size <= MAX_BODY { Ok(octets) } else { Err(Failure::TOO_LARGE) }
    };
    tokio::time::timeout(patience, read).await.unwrap_or(Err(Failure::TOO_SLOW))
}

fn parse_payload(headers: &HeaderMap, octets: &[u8], expects: Expects) -> Result<Payload, Failure> {
    let media_type = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let media_type = media_type.map(|value| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    match media_type.as_deref() {
        Some("application/json") if octets.is_empty() && expects == Expects::Json => Err(Failure::EMPTY_JSON),
        Some("application/json") if octets.is_empty() => Ok(Payload(None)),
        Some("application/json") => match serde_json::from_slice(octets) {
            Ok(value) => Ok(Payload(Some(value))),
            Err(_) => Err(Failure::MALFORMED_JSON),
        },
        None if octets.is_empty() => Ok(Payload(None)),
        _ if octets.is_empty() && expects != Expects::Json => Ok(Payload(None)),
        _ => Err(Failure::UNSUPPORTED_MEDIA_TYPE),
    }
}

/// An admin, or 403.
struct Admin(crate::Serial);

impl FromRequestParts<Shared> for Admin {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Failure> {
        match caller(parts)? {
            Caller::Admin(serial) => Ok(Self(serial)),
            Caller::Agent(_) => Err(Failure::scope()),
        }
    }
}

/// Anybody who is let in: an admin is `None`.
struct Anyone(Option<AgentCaller>);

impl FromRequestParts<Shared> for Anyone {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Failure> {
        match caller(parts)? {
            Caller::Admin(_) => Ok(Self(None)),
            Caller::Agent(agent) => Ok(Self(Some(agent))),
        }
    }
}

fn caller(parts: &Parts) -> Result<Caller, Failure> {
    // The guard has put it there; without it nobody is let in.
    parts.extensions.get::<Caller>().cloned().ok_or_else(Failure::certificate_required)
}

impl FromRequestParts<Shared> for Payload {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Failure> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or(Self(None)))
    }
}

/// Whom the rate of enrolments is counted for.
fn client_address(peer: Option<&Peer>, headers: &HeaderMap) -> IpAddr {
    let Some(peer) = peer else { return IpAddr::from([0, 0, 0, 0]) };
    let said = headers.get("x-real-ip").and_then(|value| value.to_str().ok()?.parse().ok());
    said.filter(|_| peer.is_proxy).unwrap_or_else(|| peer.address.ip())
}

/// One line in the log; the pattern, not the path, for that has names.
async fn observe(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    let status = response.status();
    let micros = started.elapsed().as_micros();
    tracing::debug!(%method, route, status = status.as_u16(), micros, "panel request");
    with_headers(response)
}

/// What every answer says.
fn with_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.entry(header::VARY).or_insert(header::HeaderValue::from_static("Origin"));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}
