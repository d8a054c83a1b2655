//! A small directory that is honest but for one thing. It checks no signatures: Pebble does.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use acme::{AccountFile, Client, Limits, Roots, Settings};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pki_core::Csr;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PublicKeyData,
    SanType, SignatureAlgorithm,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

/// Where the directory lies. The paths are `/dir`, `/nonce`, `/account`, `/order`, `/order/1`, `/authz`, `/challenge`,
/// `/finalize`, `/certificate`, `/ari/...`.
#[derive(Clone, Debug)]
pub(crate) enum Lie {
    None,
    /// A path has this answer: status, headers, body.
    Answer(&'static str, u16, Vec<(&'static str, &'static str)>, String),
    /// A path never ends: its body drips, or is not begun.
    Drips(&'static str),
    Hangs(&'static str),
    /// A path has more octets than anybody wants.
    Floods(&'static str),
    /// The document at a path has other members.
    Changed(&'static str, Value),
    /// Every answer has this date.
    Date(&'static str),
    /// What is issued is not what was asked for.
    Issues(Issued),
    /// Every nonce is refused.
    Nonces,
    /// `replaces` is refused.
    Replaced,
    /// The first so many questions for an order have a 500.
    Stumbles(u32),
    /// A first finalize is answered by 403 `orderNotReady`, and the order is processing.
    Quicker,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Issued {
    OtherKey,
    OtherName,
    OneMoreName,
    ForClients,
    Expired,
    FromTomorrow,
    OtherRoot,
    NoIntermediate,
}

pub(crate) struct Liar {
    pub(crate) url: String,
    pub(crate) settings: Settings,
    pub(crate) state: Arc<State>,
    work: TempDir,
}

pub(crate) struct State {
    lie: Lie,
    base: String,
    authority: Issuer<'static, KeyPair>,
    intermediate_pem: String,
    stranger: Issuer<'static, KeyPair>,
    asked: AtomicU32,
    accounts: AtomicU32,
    pub(crate) finalized: AtomicU32,
    order: Mutex<Stage>,
    pub(crate) new_orders: Mutex<Vec<Value>>,
    pub(crate) agents: Mutex<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Stage {
    Pending,
    Ready,
    Valid(Vec<u8>),
}

impl Liar {
    pub(crate) async fn start(lie: Lie) -> Self {
        let work = tempfile::tempdir().expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        let certificate = params.self_signed(&key).expect("signed");
        let (root, root_params) = authority("Root");
        let root_certificate = root_params.self_signed(&root).expect("signed");
        let root = Issuer::new(root_params, root);
        let (key_of_intermediate, params) = authority("Intermediate");
        let intermediate_pem = params.signed_by(&key_of_intermediate, &root).expect("signed").pem();
        let intermediate = Issuer::new(params, key_of_intermediate);
        let (stranger, params) = authority("Intermediate");
        let stranger = Issuer::new(params, stranger);

        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let base = format!("https://localhost:{}", listener.local_addr().expect("an address").port());
        let state = Arc::new(State {
            lie,
            base: base.clone(),
            authority: intermediate,
            intermediate_pem,
            stranger,
            asked: AtomicU32::new(0),
            accounts: AtomicU32::new(0),
            finalized: AtomicU32::new(0),
            order: Mutex::new(Stage::Pending),
            new_orders: Mutex::new(Vec::new()),
            agents: Mutex::new(Vec::new()),
        });
        let chain = vec![certificate.der().clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let serving = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&serving));
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(move |request| answer(Arc::clone(&state), request));
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
        let url = format!("{base}/dir");
        let mut settings = Settings::new(&url, Roots::from_file(certificate.der()).expect("a certificate"));
        settings.issuers = Roots::from_file(root_certificate.der()).expect("a certificate");
        settings.agree_terms = true;
        settings.limits = Limits {
            request: Duration::from_millis(300),
            patience: Duration::from_millis(700),
            order: Duration::from_millis(1500),
            first_look: Duration::from_millis(5),
            longest_look: Duration::from_millis(50),
            answer_octets: 256 * 1024,
            ..Limits::default()
        };
        Self { url, settings, state, work }
    }

    pub(crate) fn client(&self) -> Client {
        let file = AccountFile::new(self.work.path().join("account.json"));
        Client::new(self.settings.clone(), Arc::new(file)).expect("a client")
    }
}

impl Liar {
    /// How many accounts have been made.
    pub(crate) fn accounts(&self) -> u32 {
        self.state.accounts.load(Ordering::Relaxed)
    }
}

fn authority(name: &str) -> (KeyPair, CertificateParams) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    (KeyPair::generate().expect("a key"), params)
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn full(status: u16, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).boxed());
    *answer.status_mut() = StatusCode::from_u16(status).expect("a status");
    answer
}

fn json(status: u16, body: &Value) -> Answer {
    let mut answer = full(status, body.to_string());
    let kind = if status < 300 { "application/json" } else { "application/problem+json" };
    answer.headers_mut().insert("content-type", HeaderValue::from_static(kind));
    answer
}

fn problem(status: u16, kind: &str) -> Answer {
    json(status, &json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": "words", "status": status}))
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let (parts, body) = request.into_parts();
    let asked = state.asked.fetch_add(1, Ordering::Relaxed);
    let agent = parts.headers.get("user-agent").and_then(|agent| agent.to_str().ok()).unwrap_or_default().to_owned();
    state.agents.lock().expect("no panic").push(agent);
    let body = body.collect().await.expect("a body").to_bytes();
    let message: Value = serde_json::from_slice(&body).unwrap_or_default();
    let part = |name: &str| URL_SAFE_NO_PAD.decode(message[name].as_str().unwrap_or_default()).unwrap_or_default();
    let payload: Value = serde_json::from_slice(&part("payload")).unwrap_or_default();
    let path = parts.uri.path().to_owned();
    let mut answer = match &state.lie {
        Lie::Answer(at, status, headers, body) if *at == path => {
            let mut answer = full(*status, body.clone());
            for (name, value) in headers {
                answer.headers_mut().insert(*name, HeaderValue::from_static(value));
            }
            answer
        }
        Lie::Hangs(at) if *at == path => std::future::pending().await,
        Lie::Drips(at) if *at == path => streamed(b" ", Duration::from_millis(50)),
        Lie::Floods(at) if *at == path => streamed(&[b' '; 16 * 1024], Duration::ZERO),
        Lie::Nonces if parts.method == Method::POST => problem(400, "badNonce"),
        Lie::Stumbles(times) if path == "/order/1" && asked < *times + 8 => full(500, "<html>"),
        _ => honest(&state, &path, &payload),
    };
    if let Lie::Date(date) = &state.lie {
        answer.headers_mut().insert("date", HeaderValue::from_static(date));
    }
    answer.headers_mut().insert("replay-nonce", HeaderValue::from_str(&format!("n{asked}")).expect("a nonce"));
    Ok(answer)
}

/// JSON that goes on for ever.
fn streamed(chunk: &'static [u8], pause: Duration) -> Answer {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        while sender.send(Ok::<_, Infallible>(Frame::data(Bytes::from_static(chunk)))).await.is_ok() {
            tokio::time::sleep(pause).await;
        }
    });
    let mut answer = Response::new(Chunks(receiver).boxed());
    answer.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    answer
}

struct Chunks(tokio::sync::mpsc::Receiver<Result<Frame<Bytes>, Infallible>>);

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context)
    }
}

fn honest(state: &State, path: &str, payload: &Value) -> Answer {
    let at = |path: &str| format!("{}{path}", state.base);
    let mut stage = state.order.lock().expect("no panic");
    let names: Vec<Value> = vec![json!({"type": "dns", "value": "a.example.test"})];
    let order = |stage: &Stage| {
        let status = match stage {
            Stage::Pending => "pending",
            Stage::Ready => "ready",
            Stage::Valid(_) => "valid",
        };
        json!({"status": status, "identifiers": names, "authorizations": [at("/authz")], "finalize": at("/finalize"),
            "certificate": at("/certificate")})
    };
    let mut location = None;
    let (status, mut document) = match path {
        "/dir" => (
            200,
            json!({"newNonce": at("/nonce"), "newAccount": at("/account"), "newOrder": at("/order"),
                "revokeCert": at("/revoke"), "keyChange": at("/key"), "renewalInfo": at("/ari"),
                "meta": {"termsOfService": "https://ca.example/terms", "caaIdentities": ["ca.example"]}}),
        ),
        "/nonce" => return full(204, ""),
        "/account" => {
            state.accounts.fetch_add(1, Ordering::Relaxed);
            location = Some(at("/account/1"));
            (201, json!({"status": "valid"}))
        }
        "/order" => {
            state.new_orders.lock().expect("no panic").push(payload.clone());
            if matches!(state.lie, Lie::Replaced) && !payload["replaces"].is_null() {
                return problem(409, "alreadyReplaced");
            }
            location = Some(at("/order/1"));
            let mut document = order(&stage);
            document["replaces"] = payload["replaces"].clone();
            (201, document)
        }
        "/order/1" => (200, order(&stage)),
        "/authz" => {
            let status = if *stage == Stage::Pending { "pending" } else { "valid" };
            let challenge =
                |kind: &str| json!({"type": kind, "url": at("/challenge"), "token": "to-ken_1", "status": status});
            let all: Vec<_> = ["http-01", "tls-alpn-01", "dns-01", "dns-persist-01"].map(challenge).into();
            (200, json!({"status": status, "identifier": names[0], "challenges": all}))
        }
        "/challenge" => {
            if *stage == Stage::Pending {
                *stage = Stage::Ready;
            }
            (200, json!({"type": "http-01", "url": at("/challenge"), "token": "to-ken_1", "status": "processing"}))
        }
        "/finalize" => {
            let csr = URL_SAFE_NO_PAD.decode(payload["csr"].as_str().unwrap_or_default()).expect("base64");
            state.finalized.fetch_add(1, Ordering::Relaxed);
            *stage = Stage::Valid(csr);
            if matches!(state.lie, Lie::Quicker) {
                return problem(403, "orderNotReady");
            }
            (200, order(&stage))
        }
        "/certificate" => {
            let Stage::Valid(csr) = &*stage else { return problem(404, "malformed") };
            let mut answer = full(200, issue(state, csr));
            let kind = HeaderValue::from_static("application/pem-certificate-chain");
            answer.headers_mut().insert("content-type", kind);
            return answer;
        }
        "/revoke" => return full(200, ""),
        path if path.starts_with("/ari/") => {
            let window = json!({"start": "2026-11-22T13:30:00Z", "end": "2026-11-22T14:30:00Z"});
            let mut answer = json(200, &json!({"suggestedWindow": window}));
            answer.headers_mut().insert("retry-after", HeaderValue::from_static("7200"));
            return answer;
        }
        _ => return problem(404, "malformed"),
    };
    if let Lie::Changed(at, members) = &state.lie
        && *at == path
        && let (Some(document), Some(members)) = (document.as_object_mut(), members.as_object())
    {
        document.extend(members.clone());
    }
    let mut answer = json(status, &document);
    if let Some(location) = location {
        answer.headers_mut().insert("location", HeaderValue::from_str(&location).expect("a URL"));
    }
    answer
}

fn issue(state: &State, csr: &[u8]) -> String {
    let key = Requested(Csr::from_der(csr).expect("a request").spki().to_vec());
    let mut params = CertificateParams::new(vec!["a.example.test".to_owned()]).expect("parameters");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let now = std::time::SystemTime::now();
    let days = |days: u64| Duration::from_secs(days * 86_400);
    (params.not_before, params.not_after) = ((now - days(1)).into(), (now + days(7)).into());
    let name = |name: &str| SanType::DnsName(name.try_into().expect("a name"));
    let mut authority = &state.authority;
    let mut intermediate = state.intermediate_pem.as_str();
    match state.lie {
        Lie::Issues(Issued::OtherKey) => {
            let key = KeyPair::generate().expect("a key");
            return params.signed_by(&key, authority).expect("signed").pem() + intermediate;
        }
        Lie::Issues(Issued::OtherName) => params.subject_alt_names = vec![name("b.example.test")],
        Lie::Issues(Issued::OneMoreName) => params.subject_alt_names.push(name("b.example.test")),
        Lie::Issues(Issued::ForClients) => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
        Lie::Issues(Issued::Expired) => params.not_after = (now - Duration::from_secs(60)).into(),
        Lie::Issues(Issued::FromTomorrow) => params.not_before = (now + days(1)).into(),
        Lie::Issues(Issued::OtherRoot) => authority = &state.stranger,
        Lie::Issues(Issued::NoIntermediate) => intermediate = "",
        _ => {}
    }
    params.signed_by(&key, authority).expect("signed").pem() + intermediate
}

/// The key of a request, which is P-256 here.
struct Requested(Vec<u8>);

impl PublicKeyData for Requested {
    fn der_bytes(&self) -> &[u8] {
        &self.0[self.0.len() - 65..]
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// A request for the one name that the directory knows.
pub(crate) fn csr() -> Csr {
    crate::orders::csr(&crate::orders::names(&["a.example.test"]))
}
