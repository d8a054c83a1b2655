//! TCP to a host: every address that it has (RFC 8305), or through a proxy.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Error;

/// A host and its port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) proxies: &'a Proxies,
}

/// How long a connection may take, whatever becomes of its first packets. A visitor
/// waits for ten seconds, say, and is to be told.
const CONNECT: Duration = Duration::from_secs(8);
/// Before the next address is tried beside the ones before (RFC 8305 section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

impl Address<'_> {
    pub(crate) async fn connect(self) -> io::Result<TcpStream> {
        let stream = timeout(CONNECT, async {
            match self.proxies.of(self.host) {
                Some(proxy) => proxy.connect(self.host, self.port).await,
                None => connect(self.host, self.port).await,
            }
        });
        let stream = stream.await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "nobody answers"))??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    if is_localhost(host) {
        // RFC 6761 section 6.3: loopback, whether or not the resolver knows.
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        return race(loopback.map(|ip| (ip, port).into()).to_vec()).await;
    }
    race(interleaved(lookup_host((host, port)).await?)).await
}

/// IPv6 and IPv4 in turn, each in the resolver's order (RFC 8305 section 4).
fn interleaved(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let (six, four): (Vec<_>, Vec<_>) = addresses.partition(SocketAddr::is_ipv6);
    let longest = six.len().max(four.len());
    (0..longest).flat_map(|n| [six.get(n).copied(), four.get(n).copied()]).flatten().collect()
}

/// The first connection that comes; the next address is tried when one fails, or takes
/// its time.
async fn race(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    let mut rest = addresses.into_iter();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    loop {
        let next = rest.next();
        let is_last = next.is_none();
        if let Some(address) = next {
            attempts.spawn(TcpStream::connect(address));
        }
        let ended = match is_last {
            true => Ok(attempts.join_next().await),
            false => timeout(ATTEMPT_DELAY, attempts.join_next()).await,
        };
        match ended {
            Ok(Some(Ok(Ok(stream)))) => return Ok(stream),
            Ok(Some(Ok(Err(error)))) => last = error,
            Ok(Some(Err(_))) | Err(_) => {}
            Ok(None) => return Err(last),
        }
    }
}

/// Through which proxies servers are dialled, and which are not.
///
/// Applications behind the agent are always dialled directly.
#[derive(Clone, Debug)]
pub struct Proxies {
    proxy: Option<Proxy>,
    /// Those that are dialled directly, or none at all if somebody insists.
    direct: Option<Vec<String>>,
}

impl Proxies {
    /// None.
    pub const fn none() -> Self {
        Self { proxy: None, direct: None }
    }

    /// This one for every host: `http://[USER:PASSWORD@]HOST:PORT` (CONNECT) or
    /// `socks5://[USER:PASSWORD@]HOST:PORT`.
    ///
    /// # Errors
    ///
    /// When the URL is another one.
    pub fn always(url: &str) -> Result<Self, Error> {
        Ok(Self { proxy: Some(Proxy::parse(url)?), direct: None })
    }

    /// What `HTTPS_PROXY`, else `ALL_PROXY`, and `NO_PROXY` say, each in upper or lower
    /// case. Loopback is dialled directly.
    ///
    /// # Errors
    ///
    /// When a URL there is no proxy's.
    pub fn from_environment() -> Result<Self, Error> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let either = |name: &str| {
            let lower = name.to_ascii_lowercase();
            variable(&lower).or_else(|| variable(name)).filter(|value| !value.trim().is_empty())
        };
        let url = either("HTTPS_PROXY").or_else(|| either("ALL_PROXY"));
        let direct = either("NO_PROXY").unwrap_or_default();
        let direct = direct.split(',').map(|host| host.trim().to_ascii_lowercase()).filter(|host| !host.is_empty());
        Ok(Self { proxy: url.as_deref().map(Proxy::parse).transpose()?, direct: Some(direct.collect()) })
    }

    /// The proxy for a host, if there is to be one.
    fn of(&self, host: &str) -> Option<&Proxy> {
        let is_direct = self.direct.as_ref().is_some_and(|direct| is_loopback(host) || is_listed(host, direct));
        self.proxy.as_ref().filter(|_| !is_direct)
    }
}

/// `example.org` and `.example.org` stand for both the host and what is below it.
fn is_listed(host: &str, direct: &[String]) -> bool {
    let host = host.to_ascii_lowercase();
    direct.iter().any(|entry| {
        let entry = entry.strip_prefix("*.").or_else(|| entry.strip_prefix('.')).unwrap_or(entry);
        entry == "*" || host == bare(entry) || host.strip_suffix(entry).is_some_and(|rest| rest.ends_with('.'))
    })
}

#[derive(Clone)]
struct Proxy {
    is_socks: bool,
    host: String,
    port: u16,
    user: Option<(String, String)>,
}

impl Proxy {
    fn parse(url: &str) -> Result<Self, Error> {
        let usage =
            || Error::Server("a proxy is a URL such as http://proxy.example:3128 or socks5://proxy.example:1080");
        let with_scheme = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = with_scheme.trim().parse().map_err(|_| usage())?;
        let (is_socks, port) = match uri.scheme_str() {
            Some("http") => (false, 3128),
            Some("socks5" | "socks5h") => (true, 1080),
            _ => return Err(usage()),
        };
        let (authority, host) = (uri.authority().ok_or_else(usage)?, uri.host().ok_or_else(usage)?);
        let user = authority.as_str().rsplit_once('@').map(|(user, _)| {
            let (user, password) = user.split_once(':').unwrap_or((user, ""));
            (decoded(user), decoded(password))
        });
        if host.is_empty() || user.as_ref().is_some_and(|(user, password)| user.len() > 255 || password.len() > 255) {
            return Err(usage());
        }
        Ok(Self { is_socks, host: bare(host).to_owned(), port: uri.port_u16().unwrap_or(port), user })
    }

    async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let wrong = |what: String| io::Error::other(format!("the proxy {}:{} {what}", self.host, self.port));
        let stream = connect(&self.host, self.port).await;
        let mut stream = stream.map_err(|error| wrong(format!("cannot be reached: {error}")))?;
        let asked = match self.is_socks {
            true => self.socks5(&mut stream, host, port).await,
            false => self.http(&mut stream, host, port).await,
        };
        asked.map_err(|error| wrong(format!("does not connect: {error}")))?;
        Ok(stream)
    }

    /// CONNECT (RFC 9110 section 9.3.6).
    async fn http(&self, stream: &mut TcpStream, host: &str, port: u16) -> io::Result<()> {
        const MAX_HEAD: usize = 16 * 1024;
        let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some((user, password)) = &self.user {
            let credentials = STANDARD.encode(format!("{user}:{password}"));
            request.push_str(&format!("Proxy-Authorization: Basic {credentials}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await?;
        // Octet by octet: what follows the head is the server's.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() >= MAX_HEAD {
                return Err(io::Error::other("its answer is too long"));
            }
            head.push(stream.read_u8().await?);
        }
        let line = String::from_utf8_lossy(head.split(|octet| *octet == b'\r').next().unwrap_or_default()).into_owned();
        let mut words = line.split(' ');
        let is_http = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
        let is_done = words.next().is_some_and(|status| status.len() == 3 && status.starts_with('2'));
        if is_http && is_done { Ok(()) } else { Err(io::Error::other(line)) }
    }

    /// SOCKS5 (RFC 1928), with user and password (RFC 1929) if there are some. The proxy
    /// looks the host up.
    async fn socks5(&self, stream: &mut TcpStream, host: &str, port: u16) -> io::Result<()> {
        const NONE: u8 = 0;
        const PASSWORD: u8 = 2;
        let method = if self.user.is_some() { PASSWORD } else { NONE };
        stream.write_all(&[5, 1, method]).await?;
        let mut chosen = [0; 2];
        stream.read_exact(&mut chosen).await?;
        match (&self.user, chosen) {
            (Some((user, password)), [5, PASSWORD]) => {
                let mut login = vec![1];
                for word in [user, password] {
                    // At most 255, as `parse` sees to.
                    login.push(u8::try_from(word.len()).unwrap_or(u8::MAX));
                    login.extend_from_slice(word.as_bytes());
                }
                stream.write_all(&login).await?;
                stream.read_exact(&mut chosen).await?;
                if chosen[1] != 0 {
                    return Err(io::Error::other("user or password are wrong"));
                }
            }
            (_, [5, NONE]) => {}
            _ => return Err(io::Error::other("it wants another way to log in")),
        }
        let mut request = vec![5, 1, 0];
        match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => request.extend([&[1][..], &ip.octets()].concat()),
            Ok(IpAddr::V6(ip)) => request.extend([&[4][..], &ip.octets()].concat()),
            Err(_) => {
                let length = u8::try_from(host.len()).map_err(|_| io::Error::other("the host is too long"))?;
                request.extend([&[3, length][..], host.as_bytes()].concat());
            }
        }
        request.extend(port.to_be_bytes());
        stream.write_all(&request).await?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await?;
        if answer[1] != 0 {
            return Err(io::Error::other(format!("SOCKS error {}", answer[1])));
        }
        let address = match answer[3] {
            1 => 4,
            4 => 16,
            _ => usize::from(stream.read_u8().await?),
        };
        let mut bound = vec![0; address + 2];
        stream.read_exact(&mut bound).await.map(drop)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// A word of a URL without percent-encoding (RFC 3986 section 2.1).
fn decoded(word: &str) -> String {
    percent_decode_str(word).decode_utf8_lossy().into_owned()
}

/// A host of a URL as resolvers take it: an IPv6 address without its brackets.
pub(crate) fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

pub(crate) fn is_localhost(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost")
}

fn is_loopback(host: &str) -> bool {
    is_localhost(host) || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}
