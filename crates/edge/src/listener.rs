//! Connections: accepted, and handed to their role by the name in the
//! ClientHello before any TLS ends.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tunnel_model::{Status, TlsMode, TunnelName};

use crate::client_hello::{ClientHello, INTERNAL_ERROR, MAX_HELLO, Reader, UNRECOGNIZED_NAME, alert_record};
use crate::proxy_protocol::{self, Parsed};
use crate::tunnels::Entry;
use crate::visitor::Visit;
use crate::{Shared, agent, passthrough, visitor};

/// Accepts until `stop` is done.
pub(crate) async fn accept(listener: TcpListener, shared: &Arc<Shared>, stop: impl Future<Output = ()>) {
    let places = Arc::new(Semaphore::new(shared.settings.connections));
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            let (stream, peer) = listener.accept().await?;
            Ok::<_, io::Error>((place, stream, peer))
        };
        let (place, stream, peer) = tokio::select! {
            () = &mut stop => return,
            accepted = accepted => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: others must close first.
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot accept");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let connection = shared.connection();
        tokio::spawn(async move {
            serve(stream, peer, &connection.shared).await;
            drop((connection, place));
        });
    }
}

/// Octets that are read of a ClientHello at once; most fit.
const FIRST_READ: usize = 2048;

async fn serve(mut stream: TcpStream, peer: SocketAddr, shared: &Arc<Shared>) {
    if let Err(error) = prepare(&stream) {
        tracing::debug!(error = &error as &dyn std::error::Error, "cannot set a socket's options");
    }
    let mut ip = peer.ip().to_canonical();
    let limit = shared.settings.hello_time;
    // Each step is boxed: a connection that idles keeps no room for those behind it.
    let greeted = Box::pin(timeout(limit, greet(&mut stream, shared.settings.proxy_protocol))).await;
    let Ok(Some((source, hello, reader))) = greeted else {
        tracing::debug!(%ip, "a connection ended before its ClientHello did");
        return;
    };
    ip = source.unwrap_or(ip);
    let Some(name) = hello.server_name else {
        refuse(stream, UNRECOGNIZED_NAME).await;
        return;
    };
    match Box::pin(Role::of(&name, shared)).await {
        Role::Zone => {
            let Some(tls) = Box::pin(terminate(stream, reader, &shared.zone_tls, limit)).await else { return };
            if tls.get_ref().1.alpn_protocol() == Some(b"h2") {
                Box::pin(agent::serve(tls, ip, Arc::clone(shared))).await;
            } else if let Some(rest) = shared.rest.get() {
                rest(Box::new(tls)).await;
            }
        }
        Role::Edge(label) => {
            let Some(tls) = Box::pin(terminate(stream, reader, &shared.visitor_tls, limit)).await else { return };
            let is_http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
            let visit = Arc::new(Visit::new(ip, name, label, Arc::clone(shared)));
            Box::pin(visitor::serve(tls, is_http2, visit)).await;
        }
        Role::Passthrough(entry) => {
            let first = Bytes::from(reader.into_raw());
            Box::pin(passthrough::serve(stream, first, ip, name, entry, Arc::clone(shared))).await;
        }
        // The name is one of ours, but nobody can be asked.
        Role::Unavailable => refuse(stream, INTERNAL_ERROR).await,
        Role::Unknown => refuse(stream, UNRECOGNIZED_NAME).await,
    }
}

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
                (TlsMode::Edge, _) => Self::Edge(label),
                (TlsMode::Passthrough, Status::Active) => Self::Passthrough(entry),
                (TlsMode::Passthrough, _) => Self::Unavailable,
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
async fn greet(stream: &mut TcpStream, has_proxy: bool) -> Option<(Option<IpAddr>, ClientHello, Reader)> {
    let mut buffer = BytesMut::with_capacity(FIRST_READ);
    let mut source = None;
    if has_proxy {
        loop {
            stream.read_buf(&mut buffer).await.ok().filter(|octets| *octets > 0)?;
            let length = match proxy_protocol::parse(&buffer) {
                Ok(Parsed::Incomplete) => continue,
                Ok(Parsed::Local { length } | Parsed::Unknown { length }) => length,
                Ok(Parsed::Proxied { length, source: from, .. }) => {
                    source = Some(from.ip().to_canonical());
                    length
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a connection without a PROXY header");
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
                        let _ = stream.shutdown().await;
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
    config: &Arc<ServerConfig>,
    limit: Duration,
) -> Option<TlsStream<Replay>> {
    let replay = Replay { first: Bytes::from(reader.into_coalesced()), stream };
    match timeout(limit, TlsAcceptor::from(Arc::clone(config)).accept(replay)).await {
        Ok(Ok(tls)) => Some(tls),
        Ok(Err(error)) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "a TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}

async fn refuse(mut stream: TcpStream, alert: u8) {
    // Said to whoever still listens.
    let _ = stream.write_all(&alert_record(alert)).await;
    let _ = stream.shutdown().await;
}

/// A peer that is gone without a word is noticed within two minutes.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let probes = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    let socket = SockRef::from(stream);
    // Probes are not sent while something waits to be acknowledged.
    socket.set_tcp_user_timeout(Some(Duration::from_secs(60)))?;
    socket.set_tcp_keepalive(&probes.with_retries(4))
}

/// A connection of which some bytes were read already.
pub(crate) struct Replay {
    first: Bytes,
    stream: TcpStream,
}

impl AsyncRead for Replay {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let octets = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first[..octets]);
        self.first.advance(octets);
        if self.first.is_empty() {
            // Its memory is not needed for the rest of the connection.
            self.first = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replay {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
