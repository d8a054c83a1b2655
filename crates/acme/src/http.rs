//! Requests to an authority, within limits: HTTPS only, no redirects, bounded answers and time.
//!
//! instant-acme reads no status but 400, no content type, and of `Retry-After` only that of orders
//! and ARI. So everything that is not a plain success ends here, as a [`Failure`] with all that
//! the authority said.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use pki_core::Time;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::problem::{Problem, cleaned};
use crate::roots::{Roots, RootsError};
use crate::settings::{Clock, Limits};

/// Why a request has no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The answer is none of ACME.
    #[error("{0}")]
    Nonsense(String),
    /// The authority refuses, and says why.
    #[error("{problem}")]
    Refused { status: u16, problem: Problem, retry_at: Option<Time> },
    /// No answer.
    #[error("{0}")]
    Unreachable(String),
}

impl Failure {
    pub(crate) fn of_library(error: instant_acme::Error) -> Self {
        use instant_acme::Error as Library;

        match error {
            Library::Other(inner) => match inner.downcast::<Self>() {
                Ok(failure) => *failure,
                Err(other) => Self::Nonsense(cleaned(&other.to_string(), 300)),
            },
            Library::Api(problem) => {
                Self::Refused { status: problem.status.unwrap_or(400), problem: problem_of(&problem), retry_at: None }
            }
            Library::Json(error) => Self::Nonsense(cleaned(&format!("JSON that does not fit: {error}"), 300)),
            other => Self::Nonsense(cleaned(&other.to_string(), 300)),
        }
    }

    /// A nonce that somebody else used, or that is too old: ask again.
    pub(crate) fn is_bad_nonce(&self) -> bool {
        matches!(self, Self::Refused { problem, .. } if problem.kind == BAD_NONCE)
    }
}

const BAD_NONCE: &str = "badNonce";

tokio::task_local! {
    /// `Retry-After` of the answers to the one who asks, the latest of them. instant-acme keeps it to itself.
    static RETRY_AT: Cell<Option<Time>>;
}

/// Runs requests so that [`retry_at`] tells what their answers said.
pub(crate) async fn with_retry_at<F: Future>(requests: F) -> F::Output {
    RETRY_AT.scope(Cell::new(None), requests).await
}

/// The latest `Retry-After` since it was last asked for.
pub(crate) fn take_retry_at() -> Option<Time> {
    RETRY_AT.try_with(Cell::take).ok().flatten()
}

/// A client of one authority. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Http(Arc<Inner>);

struct Inner {
    client: Client<Connector, BodyWrapper<Bytes>>,
    user_agent: HeaderValue,
    limits: Limits,
    clock: Clock,
    /// Seconds by which the authority's clock is ahead of ours, or [`UNKNOWN`].
    ahead: AtomicI64,
    /// Requests at once.
    places: Semaphore,
}

/// Requests that an authority has to answer at once; further ones wait.
const AT_ONCE: usize = 64;
const UNKNOWN: i64 = i64::MIN;

impl Http {
    pub(crate) fn new(roots: &Roots, user_agent: &str, limits: Limits, clock: Clock) -> Result<Self, RootsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|_| RootsError::None)?
            .with_root_certificates(roots.store()?)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let connector = Connector { tls: TlsConnector::from(Arc::new(config)), limit: limits.connect };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(16)
            .build(connector);
        Ok(Self(Arc::new(Inner {
            client,
            user_agent: HeaderValue::from_str(user_agent).unwrap_or(HeaderValue::from_static("adit")),
            limits,
            clock,
            ahead: AtomicI64::new(UNKNOWN),
            places: Semaphore::new(AT_ONCE),
        })))
    }

    /// Asks for a document without a signature.
    pub(crate) async fn get(&self, url: &str) -> Result<Bytes, Failure> {
        let request = Request::builder().method(Method::GET).uri(url).body(BodyWrapper::default());
        let request = request.map_err(|_| Failure::Nonsense(format!("\"{}\" is no URL", cleaned(url, 200))))?;
        Ok(self.ask(request).await?.1)
    }

    /// By how many seconds the authority's clock is ahead of ours, as its last answer said.
    pub(crate) fn ahead(&self) -> Option<i64> {
        Some(self.0.ahead.load(Ordering::Relaxed)).filter(|ahead| *ahead != UNKNOWN)
    }

    async fn ask(&self, mut request: Request<BodyWrapper<Bytes>>) -> Result<(http::response::Parts, Bytes), Failure> {
        let inner = &self.0;
        // The authority is asked by many orders; each waits its turn, and none while another one waits for its own.
        let _place = inner.places.acquire().await.map_err(|_| Failure::Unreachable("stopped".to_owned()))?;
        let url = cleaned(&request.uri().to_string(), 200);
        if request.uri().scheme_str() != Some("https") {
            return Err(Failure::Nonsense(format!("\"{url}\" is no https URL")));
        }
        request.headers_mut().insert(USER_AGENT, inner.user_agent.clone());
        let method = request.method().clone();
        let answer = async {
            let answer = inner.client.request(request).await.map_err(|error| unreachable(&url, &error))?;
            let (parts, body) = answer.into_parts();
            let limit = inner.limits.answer_octets;
            let body = Limited::new(body, limit).collect().await.map_err(|error| match error
                .downcast::<http_body_util::LengthLimitError>(
            ) {
                Ok(_) => Failure::Nonsense(format!("{url} has more than {limit} octets")),
                Err(error) => Failure::Unreachable(cleaned(&format!("{url} broke off: {error}"), 300)),
            })?;
            Ok((parts, body.to_bytes()))
        };
        let within = inner.limits.request;
        let (parts, body) = timeout(within, answer)
            .await
            .map_err(|_| Failure::Unreachable(format!("{url} did not answer within {} s", within.as_secs_f64())))??;
        self.judge(&method, &url, parts, body)
    }

    fn judge(
        &self,
        method: &Method,
        url: &str,
        mut parts: http::response::Parts,
        body: Bytes,
    ) -> Result<(http::response::Parts, Bytes), Failure> {
        let now = (self.0.clock)();
        if let Some(date) = parts.headers.get(DATE).and_then(|date| http_date(date.to_str().ok()?)) {
            self.0.ahead.store(date.unix() - now.unix(), Ordering::Relaxed);
        }
        let status = parts.status;
        let retry_at = retry_after(&parts.headers, now);
        let kind = content_type(&parts.headers);
        if status.is_success() && kind != "application/problem+json" {
            if let Some(at) = retry_at {
                let _ = RETRY_AT.try_with(|latest| latest.set(latest.get().max(Some(at))));
            }
            let fits = matches!(kind.as_str(), "application/json" | "application/pem-certificate-chain");
            if *method != Method::HEAD && !body.is_empty() && !fits {
                return Err(Failure::Nonsense(format!("{url} is of the type \"{kind}\"")));
            }
            // RFC 8555 section 7.2 has 200 for a nonce by HEAD and 204 by GET; some mix that up, and
            // instant-acme does not forgive it.
            if *method == Method::HEAD {
                parts.status = StatusCode::OK;
            }
            return Ok((parts, body));
        }
        if status.is_redirection() {
            let to = parts.headers.get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or_default();
            return Err(Failure::Nonsense(format!(
                "{url} redirects to \"{}\": redirects are not followed",
                cleaned(to, 200)
            )));
        }
        match Problem::parse(&body) {
            // instant-acme asks again itself, with the nonce of this answer.
            Some(problem) if status == StatusCode::BAD_REQUEST && problem.kind == BAD_NONCE => Ok((parts, body)),
            Some(problem) => Err(Failure::Refused { status: status.as_u16(), problem, retry_at }),
            None if status.is_success() => Err(Failure::Nonsense(format!("{url} is a problem document without one"))),
            // A proxy in between, or an authority that is down.
            None => {
                let problem = Problem::silent(status.as_u16());
                Err(Failure::Refused { status: status.as_u16(), problem, retry_at })
            }
        }
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let http = self.clone();
        Box::pin(async move {
            match http.ask(request).await {
                Ok((parts, body)) => Ok(BytesResponse { parts, body: Box::new(body) }),
                Err(failure) => Err(instant_acme::Error::Other(Box::new(failure))),
            }
        })
    }
}

/// The problem document that instant-acme has read.
pub(crate) fn problem_of(problem: &instant_acme::Problem) -> Problem {
    let parts = problem.subproblems.iter().map(|part| {
        let name = part.identifier.as_ref().map(|name| name.authorized(false).to_string());
        (name, part.r#type.clone(), part.detail.clone())
    });
    Problem::new(problem.r#type.clone(), problem.detail.as_deref().unwrap_or_default(), parts)
}

fn unreachable(url: &str, error: &ClientError) -> Failure {
    let mut words = format!("{url}: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    Failure::Unreachable(cleaned(&words, 300))
}

/// The media type without its parameters, in lower case.
fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    cleaned(value.split(';').next().unwrap_or_default().trim(), 100).to_ascii_lowercase()
}

/// RFC 9110 section 10.2.3: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: Time) -> Option<Time> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match value.parse() {
        Ok(seconds) => Some(now.plus(Duration::from_secs(seconds))),
        Err(_) => http_date(value),
    }
}

/// RFC 9110 section 5.6.7, in the one form that is still written.
fn http_date(value: &str) -> Option<Time> {
    let date = jiff::fmt::rfc2822::parse(value).ok()?;
    Some(Time::from_unix(date.timestamp().as_second()))
}

/// Makes TLS connections to the authority.
#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
    limit: Duration,
}

impl tower::Service<Uri> for Connector {
    type Response = Secure;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Secure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { tls, limit } = self.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default();
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
            let port = uri.port_u16().unwrap_or(443);
            let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
            let connected = async {
                let tcp = connect(&host, port, limit).await?;
                tcp.set_nodelay(true)?;
                tls.connect(name, tcp).await
            };
            match timeout(limit, connected).await {
                Ok(stream) => Ok(Secure(TokioIo::new(stream?))),
                Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no connection in time")),
            }
        })
    }
}

/// To the first address that answers. One that does not, such as IPv6 where that leads nowhere, leaves
/// time for the others.
async fn connect(host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let addresses: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    let each = limit / u32::try_from(addresses.len()).unwrap_or(u32::MAX).saturating_add(1);
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match timeout(each, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer")),
        }
    }
    Err(last)
}

/// A TLS connection, as hyper's pool wants it.
struct Secure(TokioIo<TlsStream<TcpStream>>);

impl Connection for Secure {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Secure {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Secure {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = Time::from_unix(1_795_354_200);
        for (value, wanted) in [
            ("120", Some(now.plus(Duration::from_secs(120)))),
            ("0", Some(now)),
            ("Sun, 22 Nov 2026 13:31:00 GMT", Some(Time::from_unix(1_795_354_260))),
            ("18446744073709551615", Some(Time::MAX)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(value))]);
            assert_eq!(retry_after(&headers, now), wanted, "{value}");
        }
    }
}
