//! From an [`Error`] to the answer: its problem document, the headers that go
//! with it, and for a 5xx the one line in the log that has the cause.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agent_proto::{Attach, WIRE_VERSION};
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::error::{Error, Problem};

/// An id that the answer and the log share: the process's start and a number.
pub(super) struct RequestId(String);

impl RequestId {
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(format!("req_{:08x}{number:08x}", process_tag()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Tells the requests of two runs apart; not a secret, so the clock will do.
fn process_tag() -> u32 {
    use std::sync::OnceLock;
    use std::time::SystemTime;

    static TAG: OnceLock<u32> = OnceLock::new();
    *TAG.get_or_init(|| {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        #[expect(clippy::cast_possible_truncation, reason = "136 years of seconds do")]
        let seconds = since_epoch.as_secs() as u32;
        seconds
    })
}

/// Rides on the response until [`finish`], which knows the request's id.
#[derive(Clone)]
struct Failure(Arc<Error>);

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(Failure(Arc::new(self)));
        response
    }
}

/// Writes the problem document of a failed request.
pub(super) fn finish(mut response: Response, id: &RequestId) -> Response {
    let Some(Failure(error)) = response.extensions_mut().remove::<Failure>() else { return response };
    let problem = error.problem();
    if error.is_the_authoritys() {
        // Whoever has ordered has told it, once.
        tracing::debug!(request_id = %id, error = &*error as &dyn std::error::Error, "no certificate");
    } else if problem.status >= 500 {
        tracing::error!(request_id = %id, error = &*error as &dyn std::error::Error, "request failed");
    }
    let mut answer = problem_response(Problem { request_id: Some(id.to_string()), ..problem });
    if let Some(allow) = response.headers_mut().remove(header::ALLOW) {
        answer.headers_mut().insert(header::ALLOW, allow);
    }
    answer
}

fn problem_response(problem: Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let retry_after = problem.retry_after;
    let mut response = (status, Json(problem)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Some(retry_after) = retry_after {
        // Whole seconds are the one form that the clients read; early is too early.
        let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status == StatusCode::UPGRADE_REQUIRED {
        headers.insert(header::UPGRADE, HeaderValue::from_static(Attach::PROTOCOL));
        headers.insert(Attach::VERSION, HeaderValue::from_static(WIRE_VERSION));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("ApiKey"));
    }
    response
}
