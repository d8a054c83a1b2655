//! A control plane in memory: a clock that stands, an authority of its own,
//! and requests without a network.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use api::{App, DataPlane, Limits, Metrics, SystemRandom, router};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, header};
use http_body_util::BodyExt as _;
use issuance::Private;
use pki_core::crypto::Signer as _;
use pki_core::crypto::aws_lc::{AwsLc, PrivateKey};
use pki_core::{Authority, DnsName, Issuer, KeyPolicy, Profile, ProfileConfig, SerialNumber, Subject, Time, Usage};
use serde_json::{Value, json};
use store::{Clock, MemoryStore, Store};
use tower::ServiceExt as _;
use tunnel_model::{OrganizationId, Rules, Timestamp, TunnelId};

pub(crate) const ZONE: &str = "adit.localhost";
pub(crate) const NOW: i64 = 1_795_354_200_000_000;
pub(crate) const SECOND: i64 = 1_000_000;
pub(crate) const DAY: i64 = 86_400 * SECOND;
pub(crate) const BODY_LIMIT: usize = 64 * 1024;
pub(crate) const NO_UUID: &str = "00000000-0000-4000-8000-000000000000";

/// A clock that moves when it is told to.
pub(crate) struct FakeClock(AtomicI64);

impl FakeClock {
    pub(crate) fn advance(&self, micros: i64) {
        self.0.fetch_add(micros, Ordering::SeqCst);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }
}

struct Agents(Arc<AtomicBool>);

impl DataPlane for Agents {
    fn is_connected(&self, _: TunnelId) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    fn attach(&self, _: api::Agent) -> Result<api::Attached, api::Busy> {
        Err(api::Busy("no traffic flows here"))
    }
}

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) app: Arc<App>,
    pub(crate) clock: Arc<FakeClock>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) metrics: Arc<Metrics>,
    /// Has every tunnel an agent?
    pub(crate) connected: Arc<AtomicBool>,
    /// An admin key of `org_own`.
    pub(crate) admin: String,
    /// An admin key of `org_other`.
    pub(crate) stranger: String,
    pub(crate) router: Router,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl World {
    /// In memory, with the rules that clients expect.
    pub(crate) async fn new() -> Self {
        Self::with(Arc::new(MemoryStore::new()), Rules::new()).await
    }

    pub(crate) async fn with(store: Arc<dyn Store>, rules: Rules) -> Self {
        let clock = Arc::new(FakeClock(AtomicI64::new(NOW)));
        let app = app(Arc::clone(&store), Arc::clone(&clock) as _, rules);
        let connected = Arc::new(AtomicBool::new(false));
        let app = Arc::new(app.with_data_plane(Arc::new(Agents(Arc::clone(&connected)))));
        let limits = Limits {
            body: BODY_LIMIT,
            connections: 16,
            per_address: 16,
            headers: Duration::from_secs(10),
            request: Duration::from_secs(60),
            stall: Duration::from_secs(30),
            grace: Duration::from_secs(1),
        };
        let metrics = Arc::new(Metrics::new());
        let router = router(Arc::clone(&app), Arc::clone(&metrics), &limits);
        let first_key = async |organization| {
            let made = app.bootstrap(&OrganizationId::new(organization), None).await.expect("a store");
            made.expect("the first key").expose().to_owned()
        };
        let (admin, stranger) = (first_key("org_own").await, first_key("org_other").await);
        Self { app, clock, store, metrics, connected, admin, stranger, router }
    }

    /// Sends a request to the host that the server has.
    pub(crate) async fn send(&self, mut request: Request<Body>) -> Answer {
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost:8080"));
        self.send_as_it_is(request).await
    }

    pub(crate) async fn send_as_it_is(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.expect("routers do not fail");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("bodies are JSON") };
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// A request with a key, and with a body unless it is null.
    pub(crate) async fn call(&self, key: &str, method: &str, path: &str, body: Value) -> Answer {
        let request = Request::builder().method(method).uri(path);
        let request = if key.is_empty() { request } else { request.header("x-api-key", key) };
        let request = if body.is_null() {
            request.body(Body::empty())
        } else {
            request.header(header::CONTENT_TYPE, "application/json").body(Body::from(body.to_string()))
        };
        self.send(request.expect("a request")).await
    }

    /// As [`Self::call`] by the admin.
    pub(crate) async fn admin(&self, method: &str, path: &str, body: Value) -> Answer {
        self.call(&self.admin, method, path, body).await
    }

    /// A tunnel by itself; answers its id.
    pub(crate) async fn tunnel(&self, name: &str, tls_mode: &str) -> String {
        let body = json!({"tunnel_name": name, "tls_mode": tls_mode});
        let answer = self.admin("POST", "/api/v1/tunnels/", body).await.expect(201);
        text(&answer.body["tunnel"]["id"])
    }

    /// An identity with its tunnel; answers both ids and a key that is bound to it.
    pub(crate) async fn identity(&self, handle: &str, tls_mode: &str) -> (String, String, String) {
        let body = json!({"agent_handle": handle, "tunnel": {"tls_mode": tls_mode}});
        let made = self.admin("POST", "/api/v1/identities/", body).await.expect(201).body;
        let body = json!({"label": "agent", "scoped_identity_id": made["id"]});
        let key = self.admin("POST", "/api/v1/api-keys", body).await.expect(201).body;
        (text(&made["id"]), text(&made["tunnel"]["id"]), text(&key["api_key"]))
    }

    /// Signs for a host with a fresh key.
    pub(crate) async fn sign(&self, key: &str, tunnel: &str, csr: &str) -> Answer {
        self.call(key, "POST", &format!("/api/v1/tunnels/{tunnel}/sign-csr"), json!({"csr_pem": csr})).await
    }
}

/// A control plane without a data plane.
pub(crate) fn app(store: Arc<dyn Store>, clock: Arc<dyn Clock>, rules: Rules) -> App {
    let rules = Arc::new(rules);
    let issuance = Private::new(authority(), Arc::clone(&store), Arc::clone(&rules), Arc::clone(&clock));
    let (random, issuance) = (Arc::new(SystemRandom), Arc::new(issuance));
    App::new(store, clock, random, issuance, rules, ZONE.parse().expect("a zone"))
}

impl Answer {
    /// Itself, if it has this status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:#}", self.body);
        self
    }

    /// Checks that it is a whole problem document.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, kind: &str) {
        let told = format!("{:#}", self.body);
        assert_eq!(self.status, status, "{told}");
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(self.body["type"], format!("urn:adit:problem:{kind}"), "{told}");
        assert_eq!(self.body["status"], status, "{told}");
        assert!(self.body["title"].as_str().is_some_and(|title| !title.is_empty()), "{told}");
        let detail = &self.body["detail"];
        assert!(detail.is_object() || detail.as_str().is_some_and(|detail| !detail.is_empty()), "{told}");
        let id = self.body["request_id"].as_str().expect("a request id");
        assert_eq!(self.headers["x-request-id"], id);
        let mut fields: Vec<_> = self.body.as_object().expect("an object").keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["detail", "request_id", "status", "title", "type"]);
        assert_eq!(self.headers.contains_key("retry-after"), status == 429, "{told}");
        assert_eq!(self.headers.contains_key("www-authenticate"), status == 401, "{told}");
    }

    #[track_caller]
    pub(crate) fn retry_after(&self) -> i64 {
        let seconds = self.headers["retry-after"].to_str().expect("ASCII");
        seconds.parse().expect("whole seconds")
    }
}

#[track_caller]
pub(crate) fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

/// A request for these names, by a fresh key of its own.
pub(crate) fn csr(common_name: &str, alternative_names: &[&str]) -> String {
    let names: Vec<String> = alternative_names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).expect("names");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    params.serialize_request(&key).expect("a request").pem().expect("PEM")
}

/// What the clients ask for: the host as common name and as subjectAltName.
pub(crate) fn csr_for(tunnel_name: &str) -> String {
    let host = format!("{tunnel_name}.{ZONE}");
    csr(&host, &[&host])
}

/// As [`csr_for`], with one bit of the signature changed.
pub(crate) fn csr_without_proof(tunnel_name: &str) -> String {
    let csr = csr_for(tunnel_name);
    let lines: Vec<_> = csr.lines().collect();
    let [begin, base64 @ .., end] = &lines[..] else { panic!("{csr}") };
    // The signature is at the end; the eighth letter from the end is within its second number.
    let mut base64 = base64.concat().into_bytes();
    let at = base64.len() - 8;
    base64[at] = if base64[at] == b'A' { b'B' } else { b'A' };
    let base64: Vec<_> = base64.chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    format!("{begin}\n{}\n{end}\n", base64.join("\n"))
}

fn authority() -> Authority {
    const YEAR: Duration = Duration::from_secs(365 * 86_400);

    let now = Time::from_unix(NOW / SECOND);
    let made = now.minus(Duration::from_secs(3600));
    let subject = |name| Subject::with_organization(name, "Adit Tests").expect("a subject");
    let serial = |number| SerialNumber::from_random([number; 20]);
    let key = || {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        PrivateKey::from_pkcs8_der(pair.serialized_der()).expect("PKCS #8")
    };
    let (root_key, signer) = (key(), key());
    let root = pki_core::root(&subject("Test Root"), &root_key, 20 * YEAR, serial(1), made).expect("a root");
    let root = root.sign(&root_key).expect("the key signs").der().to_vec();
    let zone: DnsName = ZONE.parse().expect("a zone");
    let issuing = Issuer::new(&root, &root_key)
        .expect("the root issues")
        .intermediate(&subject("Test Issuing"), signer.spki(), &zone, 10 * YEAR, serial(2), made)
        .expect("an intermediate")
        .sign(&root_key)
        .expect("the key signs");
    let profile = Profile::try_from(ProfileConfig {
        usage: Usage::ServerAuth,
        validity_seconds: 90 * 86_400,
        backdate_seconds: 60,
        crl_distribution_point: None,
        ca_issuers: None,
    })
    .expect("a profile");
    Authority::new(issuing.der(), Arc::new(signer), Arc::new(AwsLc), profile, KeyPolicy::new())
        .expect("the intermediate issues")
}
