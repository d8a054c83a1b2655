//! The control plane, as a client sees it.

use std::fmt;
use std::time::Duration;

use agent_proto::Credential;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use uuid::Uuid;

use crate::Error;
use crate::dial::{Address, Proxies, bare, is_localhost};
use crate::tls::Trust;

/// A client of the control plane.
#[derive(Clone)]
pub struct Rest {
    server: Uri,
    credential: Credential,
    trust: Option<Trust>,
    proxies: Proxies,
}

/// One tunnel, as the control plane shows it.
#[derive(Clone, Debug, Deserialize)]
pub struct Tunnel {
    /// Names it for ever.
    pub id: Uuid,
    /// The label before the zone.
    pub tunnel_name: String,
    /// The host that visitors call.
    pub public_host: String,
    /// The host that agents dial.
    pub zone: String,
    /// `edge` or `passthrough`.
    pub tls_mode: String,
    /// `active`, `awaiting_cert` or `delete_pending`.
    pub status: String,
    /// Is an agent connected now?
    #[serde(default)]
    pub currently_connected: bool,
}

/// Octets of an answer that are read.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// How long an answer may take.
const TIME: Duration = Duration::from_secs(30);

impl Rest {
    /// A client of the server at `server`, an `http` or `https` URL.
    ///
    /// # Errors
    ///
    /// When the URL is another one, or plain HTTP would carry the key over a
    /// network.
    pub fn new(server: Uri, credential: Credential, trust: Option<Trust>) -> Result<Self, Error> {
        let host = server.host().unwrap_or_default();
        let is_loopback = is_localhost(host) || host == "[::1]" || host.starts_with("127.");
        match server.scheme_str() {
            Some("https") if trust.is_some() && !host.is_empty() => {}
            Some("http") if is_loopback => {}
            Some("http") => return Err(Error::Server("plain HTTP would show the key to the network: use https")),
            _ => return Err(Error::Server("the server is an http or https URL such as https://tunnels.example")),
        }
        Ok(Self { server, credential, trust, proxies: Proxies::none() })
    }

    /// Dials through these, and so does an agent that has it.
    #[must_use]
    pub fn proxies(self, proxies: Proxies) -> Self {
        Self { proxies, ..self }
    }

    /// Where the data plane is, if the server's URL tells: over TLS both are at
    /// one address.
    pub(crate) fn edge_address(&self) -> Option<(String, u16)> {
        let is_https = self.server.scheme_str() == Some("https");
        let host = self.server.host().filter(|_| is_https)?;
        Some((bare(host).to_owned(), self.server.port_u16().unwrap_or(443)))
    }

    pub(crate) fn credential(&self) -> &Credential {
        &self.credential
    }

    pub(crate) fn through(&self) -> &Proxies {
        &self.proxies
    }

    pub(crate) fn trust(&self) -> Option<&Trust> {
        self.trust.as_ref()
    }

    /// The tunnel of a name, or with this id.
    ///
    /// # Errors
    ///
    /// [`Error::NoTunnel`], and those of [`Self::call`].
    pub async fn tunnel(&self, name: &str) -> Result<Tunnel, Error> {
        #[derive(Deserialize)]
        struct List {
            tunnels: Vec<Tunnel>,
        }
        if let Ok(id) = Uuid::try_parse(name) {
            match self.tunnel_of(id).await {
                // A name may look like an id.
                Err(error) if error.is_not_found() => {}
                found => return found,
            }
        }
        let none = || Error::NoTunnel(name.to_owned());
        // Nothing else is a name, and nothing of this means something in a query.
        if name.is_empty() || !name.bytes().all(|octet| matches!(octet, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return Err(none());
        }
        let list = self.call(Method::GET, &format!("/api/v1/tunnels?tunnel_name={name}"), None).await?;
        let list: List = serde_json::from_value(list).map_err(Error::Answer)?;
        // Servers that do not know the filter answer with every tunnel.
        list.tunnels.into_iter().find(|tunnel| tunnel.tunnel_name == name).ok_or_else(none)
    }

    /// The tunnel with this id.
    pub(crate) async fn tunnel_of(&self, id: Uuid) -> Result<Tunnel, Error> {
        let tunnel = self.call(Method::GET, &format!("/api/v1/tunnels/{id}"), None).await?;
        serde_json::from_value(tunnel).map_err(Error::Answer)
    }

    /// Has a certificate signed; answers leaf and chain as PEM.
    ///
    /// # Errors
    ///
    /// Those of [`Self::call`].
    pub async fn sign_csr(&self, tunnel: Uuid, csr_pem: &str) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Signed {
            cert_pem: String,
            #[serde(default)]
            chain_pem: String,
        }
        let path = format!("/api/v1/tunnels/{tunnel}/sign-csr");
        let signed = self.call(Method::POST, &path, Some(json!({ "csr_pem": csr_pem }))).await?;
        let signed: Signed = serde_json::from_value(signed).map_err(Error::Answer)?;
        Ok(signed.cert_pem + &signed.chain_pem)
    }

    /// One request with a JSON answer; an empty one is `null`.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] for any status but 2xx, with the server's words.
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Error> {
        timeout(TIME, self.exchange(method, path, body)).await.map_err(|_| Error::Slow("the server's answer"))?
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Error> {
        let host = bare(self.server.host().unwrap_or_default());
        let is_https = self.server.scheme_str() == Some("https");
        let port = self.server.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let address = Address { host, port, proxies: &self.proxies };
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|_| Error::Server("the path is no path"))?;
        let headers = request.headers_mut();
        let authority = self.server.authority().map_or(host, |authority| authority.as_str());
        headers.insert(HOST, HeaderValue::from_str(authority).map_err(http::Error::from)?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let (name, secret) = match &self.credential {
            Credential::ApiKey(key) => ("x-api-key", key),
            Credential::TunnelSecret(secret) => ("x-tunnel-secret", secret),
        };
        let mut secret = HeaderValue::from_str(secret).map_err(http::Error::from)?;
        secret.set_sensitive(true);
        headers.insert(name, secret);
        match &self.trust {
            Some(trust) if is_https => answer(trust.connect(host, address, b"http/1.1").await?, request).await,
            _ => answer(address.connect().await.map_err(Error::Connect)?, request).await,
        }
    }
}

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rest").field("server", &self.server).finish_non_exhaustive()
    }
}

async fn answer<IO>(io: IO, request: Request<Full<Bytes>>) -> Result<Value, Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(async move {
        // Its end is the answer's end.
        let _ = connection.await;
    });
    let response = sender.send_request(request).await?;
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|_| Error::Cut)?.to_bytes();
    if !status.is_success() {
        let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
        let is_ours = problem["type"].as_str().is_some_and(|kind| kind.starts_with("urn:adit:problem:"));
        return Err(Error::Refused { status, detail: detail(status, &problem), is_ours, retry_after });
    }
    if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&body).map_err(Error::Answer) }
}

/// When to ask again, if it is said in seconds (RFC 9110 section 10.2.3).
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The server's own words, where it has some (RFC 9457).
fn detail(status: StatusCode, problem: &Value) -> String {
    let detail = match &problem["detail"] {
        Value::String(detail) => Some(detail.clone()),
        Value::Object(detail) => detail.get("message").and_then(Value::as_str).map(str::to_owned),
        _ => None,
    };
    detail.unwrap_or_else(|| status.canonical_reason().unwrap_or("no reason given").to_owned())
}
