//! Sockets, and who serves them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use connections::{Kind, Places};
use socket2::SockRef;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

use crate::rates::Limiter;
use crate::stats::Counters;
use crate::{Challenges, Rates, Stats, Zone, tcp, udp};

/// What clients may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Answers over UDP.
    pub rates: Rates,
    /// TCP connections at once, of which an address may have a quarter.
    pub connections: usize,
    /// How long a connection may be quiet between two queries
    /// ([RFC 7766](https://www.rfc-editor.org/rfc/rfc7766) section 6.2.3 wants seconds); a
    /// tenth of it beyond half of the connections.
    pub idle: Duration,
    /// How long the octets of one query may take, and those of one answer.
    pub message: Duration,
    /// How long a connection may last.
    pub lifetime: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rates: Rates::default(),
            connections: 256,
            idle: Duration::from_secs(10),
            message: Duration::from_secs(5),
            lifetime: Duration::from_secs(120),
        }
    }
}

/// A UDP and a TCP socket with the same address.
#[derive(Debug)]
pub struct Listener {
    pub(crate) udp: UdpSocket,
    pub(crate) tcp: TcpListener,
}

/// Octets of queries that wait in the kernel while others are answered. They are answered one
/// after the other, so that this is the bound on datagrams in work; what does not fit is lost,
/// and asked again. Not more than `net.core.rmem_max` comes of it.
const WAITING: usize = 1 << 20;

/// How often a free port for both is looked for, if any will do.
const ATTEMPTS: usize = 16;

impl Listener {
    /// Listens at an address; port 0 is any that is free for both.
    ///
    /// On a machine with several addresses, name the one that the delegation has: with the
    /// unspecified address the system may answer from another one than was asked, which
    /// resolvers ignore.
    ///
    /// # Errors
    ///
    /// When the address cannot be had: somebody else has it, or ports below 1024 are not
    /// for this process.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let mut attempt = 1;
        loop {
            let udp = UdpSocket::bind(address).await?;
            match TcpListener::bind(udp.local_addr()?).await {
                Ok(tcp) => return Self::new(udp, tcp),
                Err(error) if address.port() != 0 || attempt == ATTEMPTS => return Err(error),
                Err(_) => attempt += 1,
            }
        }
    }

    /// Listens with sockets that are there, such as those of systemd.
    ///
    /// # Errors
    ///
    /// When the UDP socket is none.
    pub fn new(udp: UdpSocket, tcp: TcpListener) -> io::Result<Self> {
        SockRef::from(&udp).set_recv_buffer_size(WAITING)?;
        Ok(Self { udp, tcp })
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

/// Serves a zone; clones are the same one.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use name_server::{Limits, Listener, NameServer, Settings, Zone};
/// let zone = Zone::new(Settings::new("adit.example".parse()?, vec!["192.0.2.1".parse()?]))?;
/// let server = NameServer::new(zone, Limits::default());
/// let listener = Listener::bind("127.0.0.1:0".parse()?).await?;
/// server.serve(listener, async { /* until somebody wants it to stop */ }).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct NameServer(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) zone: Arc<Zone>,
    pub(crate) limits: Limits,
    pub(crate) limiter: Limiter,
    pub(crate) counters: Counters,
    pub(crate) places: Arc<Places>,
}

impl NameServer {
    /// A server that serves nothing yet.
    #[must_use]
    pub fn new(zone: Arc<Zone>, limits: Limits) -> Self {
        let limiter = Limiter::new(limits.rates, Instant::now());
        let places = Places::new(connections::Limits::new(limits.connections));
        Self(Arc::new(Inner { zone, limits, limiter, counters: Counters::default(), places }))
    }

    /// Serves until `stop` is done, and returns when the last connection has ended, which is at
    /// once: an answer that is on its way is finished by the kernel.
    ///
    /// May be called for several listeners, whose limits are the same ones. When the future is
    /// dropped, its connections end, too.
    pub async fn serve(&self, listener: Listener, stop: impl Future<Output = ()>) {
        let Listener { udp, tcp } = listener;
        let (stopper, stopping) = watch::channel(());
        let serve_udp = udp::serve(&self.0, &udp, stopped(stopping.clone()));
        let serve_tcp = tcp::serve(&self.0, &tcp, stopping);
        let wait = async move {
            stop.await;
            drop(stopper);
        };
        tokio::join!(wait, serve_udp, serve_tcp);
    }

    /// The zone that is served.
    #[must_use]
    pub fn zone(&self) -> &Arc<Zone> {
        &self.0.zone
    }

    /// Puts TXT records into the zone.
    #[must_use]
    pub fn challenges(&self) -> Challenges {
        Challenges::of(&self.0.zone)
    }

    /// What has been done since the start.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let connections = self.0.places.counts().of(Kind::Client) as u64;
        Stats { connections, connections_refused: self.0.places.refused(), ..self.0.counters.stats() }
    }
}

/// Returns when the other end of the channel is gone, with or without a word.
pub(crate) async fn stopped(mut stopping: watch::Receiver<()>) {
    while stopping.changed().await.is_ok() {}
}
