//! Routes, and what happens to every request on its way to a handler: an id,
//! a size limit, one spelling of the path, and one line in the log.

mod api_keys;
mod attach;
mod body;
mod certificates;
mod extract;
mod identities;
mod json;
mod openapi;
mod response;
mod tunnels;
mod whoami;
mod wire;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Uri, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use store::Observer;
use tower::ServiceExt as _;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::server::Limits;
use response::RequestId;

/// What handlers share.
#[derive(Clone)]
struct Shared {
    app: Arc<App>,
    metrics: Arc<Metrics>,
    limits: Limits,
}

/// The whole API as a service, which counts in `metrics`, and so do the events
/// of the store from now on.
pub fn router(app: Arc<App>, metrics: Arc<Metrics>, limits: &Limits) -> Router {
    let (routes, openapi) = routes().split_for_parts();
    let document = openapi_json(openapi);
    app.tell(Arc::clone(&metrics) as Arc<dyn Observer>);
    let shared = Shared { app, metrics, limits: *limits };
    let routes = routes
        // No operation of the API: what comes after its answer is another protocol.
        .route("/_system/attach", post(attach::attach))
        .route("/openapi.json", get(move || async move { ([(header::CONTENT_TYPE, "application/json")], document) }))
        .fallback(|| async { Error::UnknownPath.into_response() })
        .method_not_allowed_fallback(|| async { Error::MethodNotAllowed.into_response() })
        .layer(DefaultBodyLimit::max(limits.body))
        .layer(middleware::from_fn(require_host))
        .layer(middleware::from_fn_with_state(shared.clone(), body::read_to_its_end))
        .layer(middleware::from_fn_with_state(shared.clone(), observe))
        .with_state(shared);
    // The path must be rewritten before it is matched, so around the router, not in it.
    Router::new().fallback_service(routes.map_request(without_trailing_slash))
}

/// The OpenAPI 3.1 document that `/openapi.json` serves, with a final newline.
pub fn openapi() -> String {
    openapi_json(routes().split_for_parts().1)
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Adit control plane",
        description = "Tunnels, identities and API keys. Every path is served with and without a trailing slash. \
                       Bodies are JSON objects in which no key stands twice. \
                       Errors are RFC 9457 problem documents.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    security(("api_key" = []))
)]
struct Document;

fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(tunnels::list, tunnels::create))
        .routes(routes!(tunnels::show, tunnels::update, tunnels::delete))
        .routes(routes!(tunnels::sign_csr))
        .routes(routes!(tunnels::restore))
        .routes(routes!(tunnels::force_delete))
        .routes(routes!(tunnels::rotate_secret))
        .routes(routes!(identities::list, identities::create))
        .routes(routes!(identities::show, identities::update, identities::delete))
        .routes(routes!(certificates::list))
        .routes(routes!(api_keys::list, api_keys::create))
        .routes(routes!(api_keys::revoke))
        .routes(routes!(whoami::whoami))
}

fn openapi_json(mut document: utoipa::openapi::OpenApi) -> String {
    openapi::complete(&mut document);
    // Maps of strings and numbers: there is nothing in it that JSON cannot say.
    document.to_pretty_json().unwrap_or_default() + "\n"
}

/// `/tunnels/` is `/tunnels`: clients send both, and follow no redirect.
fn without_trailing_slash(mut request: Request) -> Request {
    let path = request.uri().path();
    if path.len() > 1 && path.ends_with('/') {
        let trimmed = path.strip_suffix('/').unwrap_or(path);
        let with_query = match request.uri().query() {
            Some(query) => format!("{trimmed}?{query}"),
            None => trimmed.to_owned(),
        };
        // What was a path before is one still; if not, the old spelling finds no route.
        if let Ok(path_and_query) = with_query.parse() {
            let mut parts = request.uri().clone().into_parts();
            parts.path_and_query = Some(path_and_query);
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
    }
    request
}

/// A request without a host, or with two, is read in one way here and in another
/// by whatever stands before us (RFC 9112 section 3.2).
async fn require_host(request: Request, next: Next) -> Response {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let is_one = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.is_empty() || Authority::try_from(host.as_bytes()).is_ok(),
        (None, _) => request.version() != Version::HTTP_11,
        _ => false,
    };
    if is_one { next.run(request).await } else { Error::WrongHost.into_response() }
}

/// Gives the request an id, counts it, and tells the log of it.
async fn observe(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = RequestId::next();
    let method = request.method().clone();
    // The pattern, not the path: paths hold names, and their number has no bound.
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    let mut response = response::finish(response, &id);
    let status = response.status();
    let took = started.elapsed();
    shared.metrics.observe(&method, &route, status, took);
    // Every request is more than an operator wants by default; failures are told apart.
    tracing::debug!(
        request_id = %id, %method, route, status = status.as_u16(), micros = took.as_micros(), "request"
    );
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}
