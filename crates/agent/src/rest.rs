//! The control plane, as a client sees it.

use std::fmt;
use std::time::Duration;

use agent_proto::Credential;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use uuid::Uuid;

use crate::Error;
use crate::tls::{Address, Trust};

/// A client of the control plane.
#[derive(Clone)]
pub struct Rest {
    server: Uri,
    credential: Credential,
    trust: Option<Trust>,
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
        let is_loopback = crate::tls::is_localhost(host) || host == "[::1]" || host.starts_with("127.");
        match server.scheme_str() {
            Some("https") if trust.is_some() && !host.is_empty() => {}
            Some("http") if is_loopback => {}
            Some("http") => return Err(Error::Server("plain HTTP would show the key to the network: use https")),
            _ => return Err(Error::Server("the server is an http or https URL such as https://tunnels.example")),
        }
        Ok(Self { server, credential, trust })
    }

    /// Where the data plane is, if the server's URL tells: over TLS both are at
    /// one address.
    pub(crate) fn edge_address(&self) -> Option<(String, u16)> {
        let is_https = self.server.scheme_str() == Some("https");
        let host = self.server.host().filter(|_| is_https)?;
        Some((host.to_owned(), self.server.port_u16().unwrap_or(443)))
    }

    pub(crate) fn credential(&self) -> &Credential {
        &self.credential
    }

    pub(crate) fn trust(&self) -> Option<&Trust> {
        self.trust.as_ref()
    }

    /// The tunnel of a name.
    ///
    /// # Errors
    ///
    /// [`Error::NoTunnel`], and those of [`Self::call`].
    pub async fn tunnel(&self, name: &str) -> Result<Tunnel, Error> {
        #[derive(Deserialize)]
        struct List {
            tunnels: Vec<Tunnel>,
        }
        let list = self.call(Method::GET, "/api/v1/tunnels", None).await?;
        let list: List = serde_json::from_value(list).map_err(Error::Answer)?;
        let found = list.tunnels.into_iter().find(|tunnel| tunnel.tunnel_name == name || tunnel.id.to_string() == name);
        found.ok_or_else(|| Error::NoTunnel(name.to_owned()))
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
        let host = self.server.host().unwrap_or_default();
        let is_https = self.server.scheme_str() == Some("https");
        let port = self.server.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let address = Address(host, port);
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
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|_| Error::Server("the answer broke off, or is larger than 16 MiB"))?.to_bytes();
    if !status.is_success() {
        return Err(Error::Refused { status, detail: detail(status, &body) });
    }
    if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&body).map_err(Error::Answer) }
}

/// The server's own words, where it has some (RFC 9457).
fn detail(status: StatusCode, body: &[u8]) -> String {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let detail = match &problem["detail"] {
        Value::String(detail) => Some(detail.clone()),
        Value::Object(detail) => detail.get("message").and_then(Value::as_str).map(str::to_owned),
        _ => None,
    };
    detail.unwrap_or_else(|| status.canonical_reason().unwrap_or("no reason given").to_owned())
}
