//! An edge on loopback with its own authority, and agents for it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use agent::{Agent, Credential, Error, Event, Rest, Trust, Upstream};
use api::{App, DataPlane, Limits, Metrics, SystemRandom};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request};
use axum::response::Response;
use axum::routing::{any, get};
use bytes::Bytes;
use ca_dir::{CaDir, leaf_profile};
use edge::{Edge, Settings};
use http::StatusCode;
use issuance::{Issuance, Private};
use pki_core::crypto::aws_lc::AwsLc;
use pki_core::{Authority, KeyPolicy, Profile, Time, Usage};
use rustls::pki_types::CertificateDer;
use store::{MemoryStore, Store, SystemClock};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Sleep;
use tunnel_model::{ApiKeySecret, Caller, KeyId, OrganizationId, Rules, Scope, TlsMode, TunnelId};

pub(crate) const ZONE: &str = "adit.localhost";

pub(crate) struct World {
    pub(crate) edge: Edge,
    pub(crate) address: SocketAddr,
    pub(crate) root: CertificateDer<'static>,
    app: Arc<App>,
    api: SocketAddr,
    key: String,
    directory: tempfile::TempDir,
}

/// An agent of the published SDKs' wire, which runs until it is dropped.
pub(crate) struct Parked(JoinHandle<Result<(), sdk_agent::Error>>);

impl Drop for Parked {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An agent that runs until it is dropped.
pub(crate) struct Running {
    task: JoinHandle<Result<(), Error>>,
}

impl Running {
    /// How the agent ends by itself, and soon.
    pub(crate) async fn ended(mut self) -> Result<(), Error> {
        tokio::time::timeout(Duration::from_secs(10), &mut self.task).await.expect("in time").expect("no panic")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Joint(Edge);

impl DataPlane for Joint {
    fn is_connected(&self, tunnel: TunnelId) -> bool {
        self.0.is_connected(tunnel)
    }

    fn has_own_certificate(&self, tunnel: TunnelId) -> bool {
        self.0.has_own_certificate(tunnel)
    }

    fn attach(&self, agent: api::Agent) -> Result<api::Attached, api::Busy> {
        let api::Agent { tunnel, key, peer, instance, shares, own_certificate, response_deadline } = agent;
        let attach = edge::Attach { tunnel, key, peer, instance, shares, own_certificate, response_deadline };
        let attached = self.0.attach(attach).map_err(|busy| api::Busy(busy.in_short()))?;
        Ok(api::Attached { session: attached.session(), serve: Box::new(|link| Box::pin(attached.serve(link))) })
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock");
        let now = Time::from_unix(i64::try_from(since_epoch.as_secs()).expect("a time"));
        let ca = CaDir::create(&directory.path().join("ca"), &ZONE.parse().expect("a name"), None, now).expect("a CA");
        let profile = Profile::try_from(leaf_profile(Usage::ServerAuth, 90)).expect("a profile");
        let authority = Authority::new(&ca.issuing, Arc::new(ca.key), Arc::new(AwsLc), profile, KeyPolicy::new());
        let authority = authority.expect("an authority");
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let mut settings = Settings::new(ZONE.parse().expect("a zone"));
        change(&mut settings);
        let (clock, rules) = (Arc::new(SystemClock), Arc::new(Rules::new()));
        let issuance: Arc<dyn Issuance> =
            Arc::new(Private::new(authority, Arc::clone(&store), Arc::clone(&rules), clock.clone()));
        let edge = Edge::new(settings, Arc::clone(&store), Arc::clone(&issuance), clock.clone()).expect("an edge");
        let app = App::new(store, clock, Arc::new(SystemRandom), issuance, rules, ZONE.parse().expect("a zone"));
        let app = app.with_data_plane(Arc::new(Joint(edge.clone())));
        let key = app.bootstrap(&OrganizationId::new("org_test"), None).await.expect("a key").expect("the first key");

        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let api_listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, api) = (listener.local_addr().expect("bound"), api_listener.local_addr().expect("bound"));
        let serving = edge.clone();
        let (app, limits, metrics) = (Arc::new(app), Limits::default(), Arc::new(Metrics::new()));
        let router = api::router(Arc::clone(&app), Arc::clone(&metrics), &limits);
        let routes = router.clone();
        let rest: edge::Rest = Arc::new(move |arrival| {
            let routes = routes.clone();
            Box::pin(async move { api::serve_connection(arrival, routes, &limits, std::future::pending()).await })
        });
        tokio::spawn(async move { serving.serve(listener, Some(rest), std::future::pending()).await });
        tokio::spawn(async move { api::serve(api_listener, router, &limits, metrics, std::future::pending()).await });
        let root = CertificateDer::from(ca.root);
        Self { edge, address, root, app, api, key: key.expose().to_owned(), directory }
    }

    pub(crate) async fn tunnel(&self, name: &str, mode: TlsMode) -> TunnelId {
        let created = self.app.create_tunnel(admin(), name.parse().expect("a name"), mode, None).await;
        created.expect("a tunnel").tunnel.id
    }

    /// An identity with its tunnel, and a key of its own.
    pub(crate) async fn identity(&self, name: &str, mode: TlsMode) -> (TunnelId, ApiKeySecret) {
        let created = self.app.create_identity(admin(), name.parse().expect("a name"), None, None, mode).await;
        let (identity, tunnel) = created.expect("an identity");
        let label = "an agent's".parse().expect("a label");
        let key = self.app.create_api_key(admin(), Some(identity.id), label, None).await.expect("a key");
        (tunnel.id, key.0)
    }

    pub(crate) async fn rename(&self, from: &str, to: &str) {
        let (from, to) = (from.parse().expect("a name"), to.parse().expect("a name"));
        self.app.update_identity(admin(), from, Some(to), None, None).await.expect("renamed");
    }

    pub(crate) async fn revoke(&self, key: &ApiKeySecret) {
        self.app.revoke_api_key(admin(), key.id()).await.expect("revoked");
    }

    pub(crate) async fn delete(&self, tunnel: TunnelId) {
        self.app.delete_tunnel(admin(), tunnel).await.expect("it was there");
    }

    /// An agent with an application in its process, once it is connected.
    pub(crate) async fn agent(&self, name: &str) -> Running {
        self.agent_for(name, Upstream::service(application())).await
    }

    /// The same, with another application.
    pub(crate) async fn agent_for(&self, name: &str, upstream: Upstream) -> Running {
        self.agent_at(name, self.address.port(), upstream, &self.key).await
    }

    /// An agent of the published SDKs' wire with the application in its process.
    pub(crate) async fn sdk_agent(&self, name: &str, application: Router) -> Parked {
        let trust = sdk_agent::Trust::only(vec![self.root.clone()]).expect("a root");
        let server = format!("http://{}", self.api).parse().expect("a URL");
        let key = Credential::ApiKey(self.key.clone());
        let rest = sdk_agent::Rest::new(server, key, Some(trust)).expect("a client");
        let agent = sdk_agent::Agent::new(rest, name, sdk_agent::Upstream::service(application))
            .edge("127.0.0.1", self.address.port());
        let (connected, mut waiting) = tokio::sync::mpsc::unbounded_channel();
        let task = tokio::spawn(agent.run(move |event| {
            if let sdk_agent::Event::Connected { .. } = event {
                let _ = connected.send(());
            }
        }));
        tokio::time::timeout(Duration::from_secs(10), waiting.recv()).await.expect("in time").expect("it connects");
        // The intakes follow the hello.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Parked(task)
    }

    /// The same, with this key.
    pub(crate) async fn agent_with_key(&self, name: &str, upstream: Upstream, key: &ApiKeySecret) -> Running {
        self.agent_at(name, self.address.port(), upstream, key.expose()).await
    }

    /// The same, behind a balancer that begins each connection with `header`.
    pub(crate) async fn agent_after(&self, name: &str, header: Vec<u8>) -> Running {
        let balancer = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (port, target) = (balancer.local_addr().expect("bound").port(), self.address);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = balancer.accept().await {
                let header = header.clone();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(target).await.expect("the edge is there");
                    far.write_all(&header).await.expect("the header is sent");
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        self.agent_at(name, port, Upstream::service(application()), &self.key).await
    }

    async fn agent_at(&self, name: &str, port: u16, upstream: Upstream, key: &str) -> Running {
        let trust = Trust::only(vec![self.root.clone()]).expect("a root");
        let server = format!("http://{}", self.api).parse().expect("a URL");
        let rest = Rest::new(server, Credential::ApiKey(key.to_owned()), Some(trust)).expect("a client");
        let agent =
            Agent::new(rest, name, upstream).edge("127.0.0.1", port).state_directory(self.directory.path().join(name));
        let (connected, mut waiting) = tokio::sync::mpsc::unbounded_channel();
        let task = tokio::spawn(agent.run(move |event| {
            if let Event::Connected { .. } = event {
                let _ = connected.send(());
            }
        }));
        tokio::time::timeout(Duration::from_secs(10), waiting.recv()).await.expect("in time").expect("it connects");
        // The edge lets it in a PING later.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Running { task }
    }
}

fn admin() -> Caller {
    let organization = OrganizationId::new("org_test");
    Caller::Key { id: KeyId::from_bytes([1; 16]), organization, scope: Scope::Admin }
}

/// So many octets, no two pieces alike.
pub(crate) fn filler(count: usize) -> Bytes {
    (0..count).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1] ^ n.to_le_bytes()[2]).collect()
}

/// Bodies of [`Events`] that are there.
pub(crate) static EVENTS: AtomicUsize = AtomicUsize::new(0);

struct Events {
    left: u32,
    pause: Duration,
    breaks: bool,
    sleep: Pin<Box<Sleep>>,
}

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, std::io::Error>>> {
        std::task::ready!(self.sleep.as_mut().poll(cx));
        if self.left == 0 {
            let end = self.breaks.then(|| Err(std::io::Error::other("as told")));
            return Poll::Ready(end);
        }
        self.left -= 1;
        let next = tokio::time::Instant::now() + self.pause;
        self.sleep.as_mut().reset(next);
        Poll::Ready(Some(Ok(hyper::body::Frame::data(Bytes::from_static(b"data: said\n\n")))))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        EVENTS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Tells what it was asked, mirrors bodies, and echoes WebSocket octets.
pub(crate) fn application() -> Router {
    async fn echo(request: Request) -> String {
        let mut text = format!("{} {}\n", request.method(), request.uri());
        for (name, value) in request.headers() {
            text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
        }
        text
    }
    async fn octets(Path(count): Path<usize>) -> Bytes {
        filler(count)
    }
    async fn headers(Path((fields, octets)): Path<(usize, usize)>) -> Response {
        let builder = Response::builder();
        let builder = (0..fields).fold(builder, |builder, n| builder.header(format!("x-{n}"), "v".repeat(octets)));
        builder.body(Body::empty()).expect("a response")
    }
    // axum has no route for `*`.
    async fn asterisk(request: Request) -> Response {
        let status = if request.uri().path() == "*" { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND };
        let target = request.uri().path().to_owned();
        Response::builder().status(status).header("x-target", target).body(Body::empty()).expect("a response")
    }
    // Answers while the request is still coming.
    async fn early() -> StatusCode {
        StatusCode::PAYLOAD_TOO_LARGE
    }
    // Says something five times, with pauses, and then ends or breaks off.
    async fn events(Path((pause, breaks)): Path<(u64, bool)>) -> Body {
        EVENTS.fetch_add(1, Ordering::SeqCst);
        Body::new(Events {
            left: 5,
            pause: Duration::from_millis(pause),
            breaks,
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
        })
    }
    async fn mirror(request: Request) -> Body {
        Body::new(request.into_body())
    }
    async fn websocket(mut request: Request) -> Response {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let mut io = hyper_util::rt::TokioIo::new(upgraded);
            let mut frame = [0; 1024];
            // Frames here are short, and come whole: unmask, send back.
            while let Ok(octets @ 6..) = io.read(&mut frame).await {
                let mut payload = frame[6..octets].to_vec();
                payload.iter_mut().zip(frame[2..6].iter().cycle()).for_each(|(octet, key)| *octet ^= key);
                let length = u8::try_from(payload.len()).expect("short");
                let answer = [&[frame[0], length][..], &payload].concat();
                if io.write_all(&answer).await.is_err() || frame[0] & 0x0f == 8 {
                    return;
                }
            }
        });
        Response::builder()
            .status(101)
            .header("upgrade", "websocket")
            .header("connection", "upgrade")
            .body(Body::empty())
            .expect("a response")
    }
    Router::new()
        .route("/echo", any(echo))
        .route("/", get(echo))
        .route("/octets/{count}", any(octets))
        .route("/early", any(early))
        .route("/headers/{fields}/{octets}", any(headers))
        .fallback(asterisk)
        .route("/events/{pause}/{breaks}", get(events))
        .route("/mirror", any(mirror))
        .route("/ws", get(websocket))
}
