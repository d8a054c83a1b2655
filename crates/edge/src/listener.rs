//! Connections: handed to their role by the name in the ClientHello before any
//! TLS ends.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf as _, Bytes, BytesMut};
use connections::{Arrival, Kind, LINGER, Place, Rewound, Socket, accept_tls, linger};
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tunnel_model::{TlsMode, TunnelName};

use crate::client_hello::{ClientHello, INTERNAL_ERROR, MAX_HELLO, Protocols, Reader, UNRECOGNIZED_NAME, alert_record};
use crate::proxy_protocol::{self, Parsed};
use crate::tunnels::Entry;
use crate::visitor::Visit;
use crate::{Shared, parked, passthrough, visitor};

/// Octets that are read of a ClientHello at once; most fit.
const FIRST_READ: usize = 2048;

/// Serves one connection until it ends.
pub(crate) async fn serve(socket: Socket, shared: Arc<Shared>) {
    let shared = &shared;
    let mut ip = socket.ip();
    let Socket { mut stream, place, .. } = socket;
    let limit = shared.settings.hello_time;
    // Each step is boxed: a connection that idles keeps no room for those behind it.
    let greeted = Box::pin(timeout(limit, greet(&mut stream, &place, shared))).await;
    let Ok(Some((source, hello, reader))) = greeted else {
        tracing::debug!(%ip, "a connection ended before its ClientHello did");
        return;
    };
    ip = source.unwrap_or(ip);
    let Some(name) = hello.server_name else {
        refuse(stream, UNRECOGNIZED_NAME).await;
        return;
    };
    // Before anybody else is asked, and only while it is for us: an agent may prove its host by itself.
    if let Some(config) = challenge(&hello.alpn, &name, shared) {
        let replay = Rewound::new(Bytes::from(reader.into_coalesced()), stream);
        if let Ok(mut tls) = Box::pin(accept_tls(replay, config, limit)).await {
            // Who verifies has seen the certificate, and asks nothing.
            let _ = timeout(LINGER, tls.shutdown()).await;
        }
        return;
    }
    let role = Box::pin(Role::of(&name, shared)).await;
    let kind = match role {
        // An agent proves who it is first, and a client says what it speaks.
        Role::Zone => Kind::Stranger,
        Role::Edge(_) => Kind::Visitor,
        Role::Passthrough(_) => Kind::Passthrough,
        // The name is one of ours, but nobody can be asked.
        Role::Unavailable => return refuse(stream, INTERNAL_ERROR).await,
        Role::Unknown => return refuse(stream, UNRECOGNIZED_NAME).await,
    };
    if let Err(full) = place.change(kind, ip) {
        shared.refused(ip, full);
        return refuse(stream, INTERNAL_ERROR).await;
    }
    match role {
        Role::Zone => {
            let Some(tls) = Box::pin(terminate(stream, reader, &name, &shared.zone_tls, shared)).await else { return };
            if tls.get_ref().1.alpn_protocol() == Some(b"h2") {
                Box::pin(parked::serve(tls, ip, place, Arc::clone(shared))).await;
            } else if let Some(rest) = shared.rest.get() {
                match place.change(Kind::Client, ip) {
                    Ok(()) => rest(Arrival { io: tls, ip, place }).await,
                    Err(full) => shared.refused(ip, full),
                }
            }
        }
        Role::Edge(label) => {
            let tls = Box::pin(terminate(stream, reader, &name, &shared.visitor_tls, shared)).await;
            let Some(tls) = tls else { return };
            let is_http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
            let visit = Arc::new(Visit::new(ip, name, label, place, Arc::clone(shared)));
            Box::pin(visitor::serve(tls, is_http2, visit)).await;
        }
        Role::Passthrough(entry) => {
            let first = Bytes::from(reader.into_raw());
            Box::pin(passthrough::serve(stream, first, ip, name, entry, Arc::clone(shared))).await;
            drop(place);
        }
        Role::Unavailable | Role::Unknown => {}
    }
}

/// What answers a connection that proves a host: one that speaks nothing else (RFC 8737 section 3).
fn challenge(alpn: &Protocols, name: &str, shared: &Shared) -> Option<Arc<ServerConfig>> {
    let challenges = shared.challenges.get()?;
    let mut offered = alpn.iter();
    let is_proof = offered.next() == Some(PROOF) && offered.next().is_none();
    is_proof.then(|| challenges(name)).flatten()
}

/// The application protocol of tls-alpn-01.
const PROOF: &[u8] = b"acme-tls/1";

/// Who a name means.
enum Role {
    Zone,
    Edge(TunnelName),
    Passthrough(Arc<Entry>),
    Unavailable,
    Unknown,
}

impl Role {
    async fn of(name: &str, shared: &Arc<Shared>) -> Self {
        let zone = shared.settings.zone.as_str();
        if name == zone {
            return Self::Zone;
        }
        let label = name.strip_suffix(zone).and_then(|rest| rest.strip_suffix('.'));
        let Some(label) = label.and_then(|label| label.parse::<TunnelName>().ok()) else { return Self::Unknown };
        if let Some(entry) = shared.tunnels.by_name(&label) {
            return match entry.mode() {
                TlsMode::Edge => Self::Edge(label),
                TlsMode::Passthrough if entry.is_routable() => Self::Passthrough(entry),
                TlsMode::Passthrough => Self::Unavailable,
            };
        }
        match shared.store.tunnel_by_name(&label).await {
            Ok(Some(tunnel)) if tunnel.tls_mode == TlsMode::Edge => Self::Edge(label),
            Ok(Some(tunnel)) => shared.tunnels.entry_for_visitor(&tunnel).map_or(Self::Unavailable, Self::Passthrough),
            Ok(None) => Self::Unknown,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot look up a visitor's tunnel");
                Self::Unavailable
            }
        }
    }
}

/// Reads up to the end of the ClientHello; before it, the header of a proxy.
async fn greet(
    stream: &mut TcpStream,
    place: &Place,
    shared: &Shared,
) -> Option<(Option<IpAddr>, ClientHello, Reader)> {
    // Until the first octets are here, a silent peer costs its socket.
    stream.readable().await.ok()?;
    let mut buffer = BytesMut::with_capacity(FIRST_READ);
    let mut source = None;
    if shared.settings.proxy_protocol {
        loop {
            stream.read_buf(&mut buffer).await.ok().filter(|octets| *octets > 0)?;
            let length = match proxy_protocol::parse(&buffer) {
                Ok(Parsed::Incomplete) => continue,
                Ok(Parsed::Local { length } | Parsed::Unknown { length }) => length,
                Ok(Parsed::Proxied { length, source: from, .. }) => {
                    let ip = from.ip().to_canonical();
                    // Counted from here on: the proxy stands for many.
                    place.change(Kind::Stranger, ip).inspect_err(|full| shared.refused(ip, *full)).ok()?;
                    source = Some(ip);
                    length
                }
                Err(error) => {
                    if let Some(held_back) = shared.told.headers.pass(Instant::now()) {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, held_back, "a connection without a PROXY header");
                    }
                    return None;
                }
            };
            buffer.advance(length);
            break;
        }
    }
    let mut reader = Reader::new(MAX_HELLO);
    loop {
        if !buffer.is_empty() {
            match reader.push(&buffer) {
                Ok(Some(hello)) => return Some((source, hello, reader)),
                Ok(None) => buffer.clear(),
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "no ClientHello");
                    if let Some(alert) = error.alert() {
                        // Said to whoever still listens.
                        let _ = stream.write_all(&alert).await;
                        linger(stream).await;
                    }
                    return None;
                }
            }
        }
        buffer.reserve(FIRST_READ);
        stream.read_buf(&mut buffer).await.ok().filter(|octets| *octets > 0)?;
    }
}

/// Ends TLS here. The ClientHello goes on in as few records as it fits: rustls
/// would refuse a large one that came in single octets.
async fn terminate(
    stream: TcpStream,
    reader: Reader,
    name: &str,
    config: &Arc<ServerConfig>,
    shared: &Shared,
) -> Option<Box<TlsStream<Rewound<TcpStream>>>> {
    let limit = shared.settings.hello_time;
    let prepared = async {
        shared.certificates.prepare(name).await;
        let replay = Rewound::new(Bytes::from(reader.into_coalesced()), stream);
        accept_tls(replay, Arc::clone(config), limit).await
    };
    match timeout(limit + LINGER, prepared).await {
        // Boxed, so that whoever hands it on has no room for it.
        Ok(Ok(tls)) => Some(Box::new(tls)),
        Ok(Err(error)) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "no TLS");
            None
        }
        Err(_) => None,
    }
}

async fn refuse(mut stream: TcpStream, alert: u8) {
    // Said to whoever still listens.
    let _ = stream.write_all(&alert_record(alert)).await;
    linger(stream).await;
}
