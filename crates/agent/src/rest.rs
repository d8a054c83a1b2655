//! The control plane, as a client sees it.

use std::fmt;
use std::time::{Duration, SystemTime};

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
    /// SHA-256 of the certificate that the server has signed last, in lowercase hexadecimal, if there is one.
    #[serde(default)]
    pub cert_fingerprint_sha256: Option<String>,
    /// When that certificate is to be renewed, RFC 3339.
    #[serde(default)]
    pub renew_after: Option<String>,
}

impl Tunnel {
    /// When the certificate with this fingerprint is to be renewed, if the server says so.
    pub(crate) fn renew_at(&self, fingerprint: &str) -> Option<SystemTime> {
        if self.cert_fingerprint_sha256.as_deref() != Some(fingerprint) {
            return None;
        }
        let time: jiff::Timestamp = self.renew_after.as_ref()?.parse().ok()?;
        Some(SystemTime::from(time))
    }
}

/// Octets of an answer that are read.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// How long an answer may take.
const TIME: Duration = Duration::from_secs(30);
/// How long the answer with a certificate may take: servers wait for a public authority, up to 170 s.
const TIME_TO_SIGN: Duration = Duration::from_secs(190);

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
        let has_user = server.authority().is_some_and(|authority| authority.as_str().contains('@'));
        if has_user || !matches!(server.path(), "" | "/") || server.query().is_some() {
            return Err(Error::Server("the server's URL is a host and perhaps a port, without user, path or query"));
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
        let signed = self.exchange(Method::POST, &path, Some(json!({ "csr_pem": csr_pem })));
        let signed = timeout(TIME_TO_SIGN, signed).await.map_err(|_| Error::Slow("the certificate"))??;
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
    let headers = response.headers().clone();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|_| Error::Cut)?.to_bytes();
    if !status.is_success() {
        return Err(refusal(status, &headers, &body).0);
    }
    if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&body).map_err(Error::Answer) }
}

/// What a server says with a status that is no success; and if it is an Adit server, which
/// problem it is.
pub(crate) fn refusal(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> (Error, Option<String>) {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let kind = problem["type"].as_str().and_then(|kind| kind.strip_prefix("urn:adit:problem:")).map(str::to_owned);
    let detail = detail(status, &problem);
    let is_ours = kind.is_some();
    (Error::Refused { status, detail, is_ours, retry_after: retry_after(headers) }, kind)
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

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    impl Rest {
        pub(crate) fn trusting(self, trust: Trust) -> Self {
            Self { trust: Some(trust), ..self }
        }
    }

    pub(crate) type Asked = Arc<Mutex<Vec<String>>>;

    /// A server that answers each path as `answer` says: a status line's rest, fields, a body.
    pub(crate) async fn server(answer: impl Fn(&str) -> String + Send + 'static) -> (Rest, Asked) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound")).parse().expect("a URL");
        let asked = Asked::default();
        let noted = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 16 * 1024];
                let octets = stream.read(&mut request).await.expect("a request");
                let request = String::from_utf8_lossy(&request[..octets]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                let answer = format!("HTTP/1.1 {}", answer(&path));
                noted.lock().expect("no panic").push(path);
                stream.write_all(answer.as_bytes()).await.expect("sent");
            }
        });
        let key = rcgen::KeyPair::generate().expect("a key");
        let root = rcgen::CertificateParams::default().self_signed(&key).expect("a root").der().clone();
        let trust = Trust::only(vec![root]).expect("a root");
        (Rest::new(url, Credential::ApiKey("key".to_owned()), Some(trust)).expect("a client"), asked)
    }

    pub(crate) fn json(status: &str, body: &Value) -> String {
        format!("{status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.to_string().len())
    }

    pub(crate) fn tunnel(id: u128, name: &str) -> Value {
        json!({
            "id": Uuid::from_u128(id), "tunnel_name": name, "public_host": format!("{name}.example"),
            "zone": "example", "tls_mode": "edge", "status": "active",
        })
    }

    const NONE: &str = "urn:adit:problem:no-such-tunnel";

    #[test]
    fn a_key_is_not_sent_over_a_network_in_the_clear() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let root = rcgen::CertificateParams::default().self_signed(&key).expect("a root").der().clone();
        let trust = Trust::only(vec![root]).expect("a root");
        let rest = |url: &str, trust| Rest::new(url.parse().expect(url), Credential::ApiKey("k".to_owned()), trust);
        for url in [
            "http://localhost:1",
            "http://api.localhost",
            "http://127.0.0.1:8080",
            "http://127.9.9.9",
            "http://[::1]:1",
        ] {
            assert!(rest(url, None).is_ok(), "{url}");
        }
        for url in
            ["http://tunnels.example", "http://localhost.example", "http://10.0.0.1", "http://[::2]", "ftp://localhost"]
        {
            assert!(rest(url, Some(trust.clone())).is_err(), "{url}");
        }
        assert!(rest("https://tunnels.example", Some(trust)).is_ok());
        assert!(rest("https://tunnels.example", None).is_err(), "nobody is trusted");
        let debug = format!("{:?}", rest("http://127.0.0.1:1", None).expect("a client"));
        assert!(!debug.contains("ApiKey"), "{debug}");
    }

    #[test]
    fn a_servers_words_are_found_where_it_has_some() {
        let gone = StatusCode::GONE;
        for (problem, words) in [
            (json!({ "detail": "the name is taken" }), "the name is taken"),
            (
                json!({ "detail": { "error": "x", "message": "the handle is unavailable" } }),
                "the handle is unavailable",
            ),
            (json!({ "detail": { "error": "x" } }), "Gone"),
            (json!({ "detail": 7 }), "Gone"),
            (Value::Null, "Gone"),
        ] {
            assert_eq!(detail(gone, &problem), words, "{problem}");
        }
        assert_eq!(detail(StatusCode::from_u16(599).expect("a status"), &Value::Null), "no reason given");
    }

    #[test]
    fn retry_after_is_read_in_seconds_only() {
        let after = |value: &str| {
            let value = HeaderValue::from_str(value).expect("a value");
            retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value)]))
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after(" 7 "), Some(Duration::from_secs(7)));
        for other in ["-1", "7.5", "Wed, 21 Oct 2026 07:28:00 GMT", "", "99999999999999999999"] {
            assert_eq!(after(other), None, "{other}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn a_tunnel_is_looked_up_and_not_picked_from_a_list() {
        let (rest, asked) = server(|path| match path {
            "/api/v1/tunnels/00000000-0000-0000-0000-000000000001" => json("200 OK", &tunnel(1, "shop")),
            "/api/v1/tunnels?tunnel_name=shop" => json("200 OK", &json!({ "tunnels": [tunnel(1, "shop")] })),
            path if path.contains('?') => json("200 OK", &json!({ "tunnels": [] })),
            _ => json("404 Not Found", &json!({ "type": NONE, "detail": "no such tunnel" })),
        })
        .await;
        let id = Uuid::from_u128(1).to_string();
        for name in ["shop", &id] {
            assert_eq!(rest.tunnel(name).await.expect(name).tunnel_name, "shop");
        }
        let other = Uuid::from_u128(2).to_string();
        for name in ["nobody", &other, "Not_A_Name", "a&limit=1", ""] {
            let error = rest.tunnel(name).await.expect_err(name);
            assert!(matches!(error, Error::NoTunnel(_)) && error.is_final(), "{name}: {error:?}");
        }
        assert!(!asked.lock().expect("no panic").contains(&"/api/v1/tunnels".to_owned()), "nobody lists them");
    }

    #[tokio::test]
    async fn servers_that_do_not_know_the_filter_are_understood() {
        let list = json!({ "tunnels": [tunnel(1, "bank"), tunnel(2, "shop")] });
        let (rest, _) = server(move |_| json("200 OK", &list)).await;
        assert_eq!(rest.tunnel("shop").await.expect("it is in the list").id, Uuid::from_u128(2));
        assert!(matches!(rest.tunnel("nobody").await, Err(Error::NoTunnel(_))));
    }

    #[tokio::test]
    async fn only_an_adit_servers_401_and_403_are_final() {
        let ours = |status: &str| json(status, &json!({ "type": "urn:adit:problem:x", "detail": "no" }));
        let proxys = |status: &str| json(status, &json!({ "type": "about:blank", "detail": "no" }));
        for (answer, is_final) in [
            (ours("401 Unauthorized"), true),
            (ours("403 Forbidden"), true),
            (ours("409 Conflict"), false),
            (ours("429 Too Many Requests"), false),
            (ours("500 Internal Server Error"), false),
            (proxys("401 Unauthorized"), false),
            (proxys("403 Forbidden"), false),
            (proxys("404 Not Found"), false),
            (proxys("408 Request Timeout"), false),
            ("404 Not Found\r\nContent-Length: 4\r\n\r\nnone".to_owned(), false),
            ("425 Too Early\r\nContent-Length: 0\r\n\r\n".to_owned(), false),
            ("200 OK\r\nContent-Length: 400\r\n\r\n{".to_owned(), false),
            ("200 OK\r\nContent-Length: 9\r\n\r\n<welcome>".to_owned(), false),
        ] {
            let (rest, _) = server({
                let answer = answer.clone();
                move |_| answer.clone()
            })
            .await;
            for name in ["shop", "00000000-0000-0000-0000-000000000001"] {
                let error = rest.tunnel(name).await.expect_err("no tunnel");
                assert_eq!(error.is_final(), is_final, "{name} {answer}: {error:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_server_says_when_to_ask_again() {
        let (rest, _) = server(|path| {
            let seconds = if path.contains("shop") { 7 } else { 9_999_999 };
            format!("503 Busy\r\nRetry-After: {seconds}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        })
        .await;
        for (name, seconds) in [("shop", 7), ("bank", 3600)] {
            let error = rest.tunnel(name).await.expect_err("it is busy");
            assert_eq!(error.retry_after(), Some(Duration::from_secs(seconds)));
        }
    }
}
