//! One link to the edge (docs/native-wire.md): attached by an upgrade, then the edge sends
//! requests, and this is the HTTP/2 server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent_proto::limits::{PING_INTERVAL, PING_TIMEOUT};
use agent_proto::{Attach, CONNECTION_WINDOW, Notice, WIRE_VERSION, Windows};
use bytes::Bytes;
use connections::Rewound;
use h2::ext::Protocol;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Ping, PingPong, RecvStream};
use http::header::UPGRADE;
use http::uri::Authority;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::client::TlsStream;

use crate::rest::{refusal, retry_after};
use crate::{Error, InFlight, Shared, exchange, passthrough, websocket};

/// A link after its 101.
pub(crate) struct Session {
    connection: Connection<Link, Bytes>,
    pings: Option<PingPong>,
}

type Tls = TlsStream<TcpStream>;
type Link = Rewound<Tls>;

/// How a session ended, for whoever has to follow it with another one.
#[derive(Debug)]
pub(crate) enum End {
    /// The edge goes away for a planned restart.
    Drained,
    /// The connection broke; it may have served for a while.
    Lost(Option<Box<dyn std::error::Error + Send + Sync>>),
    /// This agent is to stop.
    Stopped,
    /// Somebody else has the tunnel now.
    Superseded,
}

/// Octets of a refusal that are read.
const MAX_REFUSAL: usize = 64 * 1024;
/// How long an attach may take, and then HTTP/2's preface.
const ATTACH: Duration = Duration::from_secs(15);
/// Streams at once.
const MAX_STREAMS: u32 = 4096;
const MAX_FRAME: u32 = 64 * 1024;
const MAX_HEADER_LIST: u32 = 96 * 1024;
/// Octets that the edge may send ahead of applications, on all streams together.
const BUDGET: u32 = 32 * 1024 * 1024;
/// Octets of bookkeeping for small frames that nobody has read yet.
const DATA_FRAME_BUDGET: usize = 64 * 1024 * 1024;
/// Octets of one stream that are taken before they are sent.
const SEND_BUFFER: usize = 256 * 1024;
/// Between two looks whether the window can be larger again.
const LOOK: Duration = Duration::from_secs(1);
/// How long what is open may take when the agent is to stop or has been told to leave.
const LEAVE: Duration = Duration::from_secs(90);

/// What all streams of a link share.
pub(crate) struct Streams {
    windows: Windows,
    crowded: Notify,
}

/// One stream that is open.
pub(crate) struct Open(Arc<Streams>);

impl Open {
    fn of(streams: &Arc<Streams>) -> Self {
        if streams.windows.opened() {
            streams.crowded.notify_one();
        }
        Self(Arc::clone(streams))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.windows.closed();
    }
}

impl Session {
    /// Attaches over a connection to the edge.
    pub(crate) async fn begin(shared: &Shared, tls: Tls) -> Result<Self, Error> {
        let begun = async {
            let link = attach(shared, tls).await?;
            let handshake = Builder::new()
                .enable_connect_protocol()
                .max_concurrent_streams(MAX_STREAMS)
                .initial_window_size(Windows::new(BUDGET).widest())
                .max_frame_size(MAX_FRAME)
                .max_header_list_size(MAX_HEADER_LIST)
                // Visitors leave in bursts.
                .max_pending_accept_reset_streams(MAX_STREAMS as usize)
                .max_concurrent_reset_streams(MAX_STREAMS as usize)
                .data_frame_budget(DATA_FRAME_BUDGET)
                .max_send_buffer_size(SEND_BUFFER)
                .handshake(link);
            let mut connection = handshake.await?;
            connection.set_target_window_size(CONNECTION_WINDOW);
            let pings = connection.ping_pong();
            Ok(Self { connection, pings })
        };
        timeout(ATTACH, begun).await.map_err(|_| Error::Slow("the edge's answer to the attach"))?
    }

    /// Serves until there is nothing new on this link. What was begun is finished in the
    /// background.
    pub(crate) async fn run(self, shared: Arc<Shared>) -> End {
        let (end, ended) = oneshot::channel();
        tokio::spawn(drive(self, shared, end));
        ended.await.unwrap_or(End::Lost(None))
    }
}

/// Asks for the upgrade.
async fn attach(shared: &Shared, tls: Tls) -> Result<Link, Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
    let driver = tokio::spawn(async move {
        // Its end is the answer's, or the link's beginning.
        let _ = connection.with_upgrades().await;
    });
    let tunnel = shared.tunnel();
    let attach = Attach {
        tunnel: tunnel.id.to_string(),
        credential: shared.credential.clone(),
        instance: shared.instance,
        shares: shared.settings.shares,
        own_certificate: shared.upstream.is_raw(),
        response_deadline: shared.settings.response_deadline,
    };
    let zone = tunnel.zone.parse::<Authority>().map_err(http::Error::from)?;
    let request = attach.to_request(&zone)?.map(|()| Empty::<Bytes>::new());
    let response = sender.send_request(request).await?;
    let is_ours = response.headers().get(UPGRADE).is_some_and(|protocol| protocol == Attach::PROTOCOL);
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && is_ours {
        let upgraded = hyper::upgrade::on(response).await?;
        let parts = upgraded.downcast::<TokioIo<Tls>>().map_err(|_| Error::Cut)?;
        // The edge speaks first: its preface may have come with the 101.
        return Ok(Rewound::new(parts.read_buf, parts.io.into_inner()));
    }
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_REFUSAL).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    driver.abort();
    Err(refused(&head, &body))
}

/// Why the edge, or what stands before it, does not let the agent in.
fn refused(head: &http::response::Parts, body: &[u8]) -> Error {
    let knows_our_version = head.headers.get(Attach::VERSION).is_some_and(|version| version == WIRE_VERSION);
    match refusal(head.status, &head.headers, body) {
        (Error::Refused { status, detail, is_ours: true, .. }, Some(kind)) => match (status, kind.as_str()) {
            // It has not seen what was asked for.
            (StatusCode::UPGRADE_REQUIRED, _) if knows_our_version => {
                Error::Attach("a proxy before the server does not pass upgrades on".to_owned())
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => Error::Denied { status, reason: kind },
            (StatusCode::NOT_FOUND, "unknown-path") => Error::TooOld,
            _ => Error::Refused { status, detail, is_ours: true, retry_after: retry_after(&head.headers) },
        },
        (Error::Refused { status, detail, retry_after, .. }, _) => {
            let is_passing = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
            let advice = if is_passing { "" } else { ", which has to pass /_system/attach and upgrades on" };
            let detail = format!("{detail}. A proxy says so{advice}");
            Error::Refused { status, detail, is_ours: false, retry_after }
        }
        (error, _) => error,
    }
}

/// Carries frames, and hands each stream to a task, until the link ends.
async fn drive(session: Session, shared: Arc<Shared>, end: oneshot::Sender<End>) {
    let Session { mut connection, pings } = session;
    let streams = Arc::new(Streams { windows: Windows::new(BUDGET), crowded: Notify::new() });
    let widest = streams.windows.widest();
    let mut window = widest;
    let mut look_at = Instant::now() + LOOK;
    let mut beat = std::pin::pin!(beat(pings));
    let mut end = Some(end);
    // An agent that is to stop waits for what is still to be written.
    let _in_flight = InFlight::of(&shared);
    let mut leave_by = None;
    let told = Arc::new(Told::default());
    let mut stop = shared.stop.subscribe();
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => serve(&shared, &streams, &told, request, respond),
                Some(Err(error)) => return report(&mut end, End::Lost(Some(error.into()))),
                None => return report(&mut end, End::Lost(None)),
            },
            () = told.heard.notified() => {
                // The other words are the edge's last ones, or need nothing of the link.
                if told.is_drained.load(Ordering::Relaxed) {
                    report(&mut end, End::Drained);
                    leave_by = leave_by.or(Some(Instant::now() + LEAVE));
                }
                if told.is_superseded.load(Ordering::Relaxed) {
                    report(&mut end, End::Superseded);
                }
            }
            // The sender lives as long as we do.
            _ = stop.wait_for(|stop| *stop), if end.is_some() => {
                connection.graceful_shutdown();
                report(&mut end, End::Stopped);
                leave_by = Some(Instant::now() + LEAVE);
            }
            // Whoever waited has been dropped: the agent ends at once.
            () = dropped(&mut end) => return,
            () = streams.crowded.notified() => {}
            () = sleep_until(look_at), if window < widest => look_at = Instant::now() + LOOK,
            () = async { sleep_until(leave_by.unwrap_or_else(Instant::now)).await }, if leave_by.is_some() => {
                return connection.abrupt_shutdown(h2::Reason::NO_ERROR);
            }
            () = beat.as_mut() => return report(&mut end, End::Lost(Some("the edge does not answer PINGs".into()))),
        }
        let wanted = streams.windows.wanted(window);
        // Refused until the edge has acknowledged the one before: then at the next look.
        if wanted != window && connection.set_initial_window_size(wanted).is_ok() {
            window = wanted;
        }
    }
}

/// Returns when nobody waits for the end any more, who has not been told of it.
async fn dropped(end: &mut Option<oneshot::Sender<End>>) {
    match end {
        Some(end) => end.closed().await,
        None => std::future::pending().await,
    }
}

/// Tells whoever waits how the session ended, once.
fn report(end: &mut Option<oneshot::Sender<End>>, how: End) {
    if let Some(end) = end.take() {
        // Nobody waits when the agent has been dropped.
        let _ = end.send(how);
    }
}

/// What the edge has said.
#[derive(Default)]
struct Told {
    heard: Notify,
    is_drained: AtomicBool,
    is_superseded: AtomicBool,
}

/// Hands a stream to whoever answers it.
fn serve(
    shared: &Arc<Shared>,
    streams: &Arc<Streams>,
    told: &Told,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    if let Some(notice) = Notice::decode(request.uri()) {
        return hear(shared, told, notice, respond);
    }
    let open = Open::of(streams);
    let shared = Arc::clone(shared);
    let is_websocket = request.extensions().get::<Protocol>().map(|protocol| protocol.as_str() == "websocket");
    match (request.method(), is_websocket) {
        (&Method::CONNECT, Some(true)) => drop(tokio::spawn(websocket::serve(shared, request, respond, open))),
        (&Method::CONNECT, Some(false)) => answer(respond, StatusCode::NOT_IMPLEMENTED),
        (&Method::CONNECT, None) => drop(tokio::spawn(passthrough::serve(shared, request, respond, open))),
        _ => drop(tokio::spawn(exchange::serve(shared, request, respond, open))),
    }
}

/// The edge's own words.
fn hear(shared: &Shared, told: &Told, notice: Option<Notice>, respond: SendResponse<Bytes>) {
    let status = if notice.is_some() { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND };
    match notice {
        Some(Notice::Drain) => told.is_drained.store(true, Ordering::Relaxed),
        Some(Notice::Superseded) => told.is_superseded.store(true, Ordering::Relaxed),
        Some(Notice::Renamed) => shared.changed.notify_one(),
        // The next attach tells what is gone. Other words are of later versions.
        Some(Notice::Revoked) | None => {}
    }
    answer(respond, status);
    told.heard.notify_one();
}

fn answer(mut respond: SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    // If the stream has gone, nobody waits.
    let _ = respond.send_response(response, true);
}

/// Returns when the edge has not answered a PING in time.
async fn beat(pings: Option<PingPong>) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        sleep(PING_INTERVAL).await;
        let due = Instant::now() + PING_TIMEOUT;
        if pings.send_ping(Ping::opaque()).is_err() {
            // The connection's own end says more.
            return std::future::pending().await;
        }
        tokio::select! {
            pong = std::future::poll_fn(|cx| pings.poll_pong(cx)) => if pong.is_err() {
                return std::future::pending().await;
            },
            () = sleep_until(due) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http::Uri;
    use rustls::ServerConfig;
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use serde_json::json as value;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::rest::tests::{json, server, tunnel};
    use crate::{Agent, Event, Trust, Upstream};

    /// An edge that answers each attach with what `script` says of how often one has come before; an
    /// empty answer lets the agent in.
    async fn edge(script: impl Fn(usize) -> String + Send + 'static) -> (u16, Trust) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["example".to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate").der().clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_no_client_auth();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let mut config = config.with_single_cert(vec![certificate.clone()], key).expect("a configuration");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            for attempt in 0.. {
                let (stream, _) = listener.accept().await.expect("an agent");
                let Ok(mut tls) = acceptor.accept(stream).await else { continue };
                let mut request = vec![0; 16 * 1024];
                let octets = tls.read(&mut request).await.expect("a request");
                let request = String::from_utf8_lossy(&request[..octets]).to_ascii_lowercase();
                assert!(request.starts_with("post /_system/attach http/1.1\r\n"), "{request}");
                let answer = script(attempt);
                if !answer.is_empty() {
                    tls.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await.expect("sent");
                    continue;
                }
                let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: adit-h2\r\n\r\n";
                tls.write_all(switching.as_bytes()).await.expect("sent");
                let (mut send, connection) = h2::client::handshake(tls).await.expect("HTTP/2");
                tokio::spawn(connection);
                let renamed = Request::post("https://_system/renamed").body(()).expect("a request");
                let answer = send.send_request(renamed, true).expect("sent").0.await.expect("an answer");
                assert_eq!(answer.status(), StatusCode::NO_CONTENT);
                std::future::pending::<()>().await;
            }
        });
        (port, Trust::only(vec![certificate]).expect("a root"))
    }

    fn problem(status: &str, kind: &str) -> String {
        json(status, &value!({ "type": format!("urn:adit:problem:{kind}"), "detail": "no" }))
    }

    /// An agent of the tunnel `shop` at this port, and what it tells.
    async fn agent(port: u16, trust: Trust) -> (impl Future<Output = Result<(), Error>>, Arc<Mutex<Vec<String>>>) {
        let (rest, _) = server(|path| match path.contains('?') {
            true => json("200 OK", &value!({ "tunnels": [tunnel(1, "shop")] })),
            // Looked at again, it has another name.
            false => json("200 OK", &tunnel(1, "renamed")),
        })
        .await;
        let upstream = Upstream::url(&Uri::from_static("http://127.0.0.1:1"), None).expect("a URL");
        let told = Arc::<Mutex<Vec<String>>>::default();
        let telling = Arc::clone(&told);
        let agent = Agent::new(rest.trusting(trust), "shop", upstream).edge("127.0.0.1", port);
        (agent.run(move |event: Event| telling.lock().expect("no panic").push(format!("{event:?}"))), told)
    }

    async fn tells(told: &Mutex<Vec<String>>, words: &str) {
        let tells = async {
            while !told.lock().expect("no panic").iter().any(|event| event.contains(words)) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(5), tells).await.expect(words);
    }

    #[tokio::test]
    async fn only_the_edges_own_words_end_an_agent() {
        let (port, trust) = edge(|attempt| match attempt {
            0 => "401 Unauthorized\r\nContent-Length: 4\r\n\r\nwho?".to_owned(),
            1 => problem("404 Not Found", "unknown-path"),
            2 => problem("503 Service Unavailable", "unavailable"),
            _ => problem("403 Forbidden", "tunnel-forbidden"),
        })
        .await;
        let (running, told) = agent(port, trust).await;
        let ended = timeout(Duration::from_secs(10), running).await.expect("in time");
        assert!(matches!(&ended, Err(Error::Denied { reason, .. }) if reason == "tunnel-forbidden"), "{ended:?}");
        let told = told.lock().expect("no panic");
        assert_eq!(told.iter().filter(|event| event.starts_with("Reconnecting")).count(), 3, "{told:?}");
        assert!(told.iter().any(|event| event.contains("update the server")), "{told:?}");
    }

    #[tokio::test]
    async fn a_tunnel_that_is_not_active_is_looked_at_again_before_the_agent_gives_up() {
        let (port, trust) = edge(|attempt| match attempt {
            0 => problem("403 Forbidden", "tunnel-not-active"),
            _ => String::new(),
        })
        .await;
        let (running, told) = agent(port, trust).await;
        let running = tokio::spawn(running);
        tells(&told, "Connected").await;
        running.abort();
        let (port, trust) = edge(|_| problem("403 Forbidden", "tunnel-not-active")).await;
        let (running, _) = agent(port, trust).await;
        let ended = timeout(Duration::from_secs(5), running).await.expect("in time");
        assert!(ended.is_err_and(|error| error.is_final() && error.is_not_active()));
    }

    #[tokio::test]
    async fn an_agent_that_is_told_of_a_new_name_looks_its_tunnel_up() {
        let (port, trust) = edge(|_| String::new()).await;
        let (running, told) = agent(port, trust).await;
        let running = tokio::spawn(running);
        tells(&told, &format!("https://renamed.example:{port}/")).await;
        let told = told.lock().expect("no panic");
        assert_eq!(told.iter().filter(|event| event.starts_with("Connecting")).count(), 1, "the session stays");
        running.abort();
    }
}
