//! TCP to a host: every address that it has (RFC 8305), or through a proxy.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use connections::limit_unsent;
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
        let proxy = self.proxies.of(self.host, self.port);
        let stream = timeout(CONNECT, async {
            match proxy {
                Some(proxy) => proxy.connect(self.host, self.port).await,
                None => connect(self.host, self.port).await,
            }
        });
        let stream = match (stream.await, proxy) {
            (Ok(Ok(stream)), _) => stream,
            // It says who it is.
            (Ok(Err(error)), Some(_)) => return Err(error),
            (Ok(Err(error)), None) => return Err(self.named(&error)),
            (Err(_), Some(Proxy { host, port, .. })) => {
                let words = format!("the proxy {host}:{port} does not answer");
                return Err(io::Error::new(io::ErrorKind::TimedOut, words));
            }
            (Err(_), None) => return Err(self.silent()),
        };
        stream.set_nodelay(true)?;
        // Without it the connection is as good for all but others on it.
        let _ = limit_unsent(&stream);
        Ok(stream)
    }
}

impl Address<'_> {
    /// An error with the address that it is about.
    pub(crate) fn named(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}:{}: {error}", self.host, self.port))
    }

    pub(crate) fn silent(&self) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, format!("nobody answers at {}:{}", self.host, self.port))
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
    fn of(&self, host: &str, port: u16) -> Option<&Proxy> {
        let is_direct = self.direct.as_ref().is_some_and(|direct| is_loopback(host) || is_listed(host, port, direct));
        self.proxy.as_ref().filter(|_| !is_direct)
    }
}

/// `example.org` and `.example.org` stand for both the host and what is below it.
fn is_listed(host: &str, port: u16, direct: &[String]) -> bool {
    let host = host.to_ascii_lowercase();
    direct.iter().any(|entry| {
        // An IPv6 address has colons of its own, and a port only behind brackets.
        let (entry, is_port) = match entry.rsplit_once(':') {
            Some((name, digits)) if !bare(name).contains(':') || name.ends_with(']') => {
                (name, digits.parse() == Ok(port))
            }
            _ => (entry.as_str(), true),
        };
        let entry = entry.strip_prefix("*.").or_else(|| entry.strip_prefix('.')).unwrap_or(entry);
        let is_host =
            entry == "*" || host == bare(entry) || host.strip_suffix(entry).is_some_and(|rest| rest.ends_with('.'));
        is_port && is_host
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
            (None, _) => return Err(io::Error::other("it wants to know user and password")),
            (Some(_), _) => return Err(io::Error::other("it takes no user and password")),
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
            return Err(io::Error::other(socks_refusal(answer[1])));
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

/// RFC 1928 section 6.
fn socks_refusal(code: u8) -> &'static str {
    match code {
        1 => "it failed",
        2 => "its rules do not allow it",
        3 => "there is no way to the network",
        4 => "there is no way to the host",
        5 => "the host refuses the connection",
        6 => "the host is too far away",
        7 => "it knows no CONNECT",
        8 => "it does not know this kind of address",
        _ => "it says no, in no word that SOCKS has",
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn localhost_is_both_loopbacks() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(loopback).await.expect("a port");
            let port = listener.local_addr().expect("bound").port();
            connect("localhost", port).await.expect(loopback);
            connect("app.localhost", port).await.expect(loopback);
        }
    }

    #[tokio::test]
    async fn a_dead_address_beside_a_good_one_costs_a_quarter_of_a_second() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let good = listener.local_addr().expect("bound");
        // TEST-NET-1 and the documentation prefix: nobody answers, or there is no way.
        for dead in ["192.0.2.1:9", "[2001:db8::1]:9", "127.0.0.1:1"] {
            let begun = std::time::Instant::now();
            let stream = race(vec![dead.parse().expect("an address"), good]).await.expect("the other one");
            assert_eq!(stream.peer_addr().expect("connected"), good);
            assert!(begun.elapsed() < Duration::from_secs(2), "{dead}: {:?}", begun.elapsed());
        }
    }

    #[test]
    fn families_take_turns() {
        let parse = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let sorted = interleaved(["1.1.1.1:1", "2.2.2.2:1", "[::3]:1"].map(parse).into_iter());
        assert_eq!(sorted, ["[::3]:1", "1.1.1.1:1", "2.2.2.2:1"].map(parse));
    }

    #[test]
    fn the_environment_says_who_is_dialled_through_a_proxy() {
        let of = |pairs: &[(&str, &str)], host: &str| {
            let variable =
                |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            let proxies = Proxies::from_variables(variable).expect("good URLs");
            proxies.of(host, 443).map(|proxy| format!("{} {}:{}", proxy.is_socks, proxy.host, proxy.port))
        };
        let http = ("HTTPS_PROXY", "http://u:p@one:1");
        for (pairs, host, proxy) in [
            (&[http][..], "a.example", Some("false one:1")),
            (&[("https_proxy", "one")], "a.example", Some("false one:3128")),
            (&[("ALL_PROXY", "socks5://two")], "a.example", Some("true two:1080")),
            (&[http, ("all_proxy", "socks5h://[::1]:2")], "a.example", Some("false one:1")),
            (&[("all_proxy", "socks5h://[::1]:2")], "a.example", Some("true ::1:2")),
            (&[], "a.example", None),
            (&[("HTTPS_PROXY", "")], "a.example", None),
            (&[http], "localhost", None),
            (&[http], "127.0.0.9", None),
            (&[http], "::1", None),
            (&[http, ("NO_PROXY", "b.example, .example")], "a.example", None),
            (&[http, ("no_proxy", "a.example")], "deep.a.example", None),
            (&[http, ("no_proxy", "a.example")], "aa.example", Some("false one:1")),
            (&[http, ("no_proxy", "*")], "a.example", None),
            (&[http, ("no_proxy", "a.example:443")], "a.example", None),
            (&[http, ("no_proxy", "2001:db8::1, [2001:db8::2]:443")], "2001:db8::1", None),
            (&[http, ("no_proxy", "2001:db8::1, [2001:db8::2]:443")], "2001:db8::2", None),
            (&[http, ("no_proxy", "a.example:8443")], "a.example", Some("false one:1")),
        ] {
            assert_eq!(of(pairs, host).as_deref(), proxy, "{pairs:?} {host}");
        }
        assert!(Proxies::always("http://one:1").expect("a proxy").of("127.0.0.1", 443).is_some(), "who insists has it");
        for wrong in ["https://one:1", "ftp://one", "http://", "one two"] {
            assert!(Proxies::always(wrong).is_err(), "{wrong}");
        }
        assert!(!format!("{:?}", Proxies::always("http://u:secret@one:1")).contains("secret"));
    }

    #[test]
    fn credentials_of_a_url_are_read_without_their_escapes() {
        let user = |url: &str| Proxy::parse(url).expect(url).user;
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(user("http://one:1"), None);
        assert_eq!(user("http://u@one:1"), pair("u", ""));
        assert_eq!(user("http://u:p:q@one:1"), pair("u", "p:q"));
        assert_eq!(user("http://u%40b:%70%C3%A4ss@one:1"), pair("u@b", "päss"));
        // What is no escape stands for itself; a sign is no digit.
        assert_eq!(user("http://u:100%25%@one:1"), pair("u", "100%%"));
        assert_eq!(user("http://u:%+1%zz@one:1"), pair("u", "%+1%zz"));
        assert!(Proxy::parse(&format!("http://{}:p@one:1", "u".repeat(256))).is_err(), "SOCKS has no place for it");
    }

    /// A proxy that accepts one connection, checks what it is told and joins.
    async fn proxy(steps: Vec<(Vec<u8>, Vec<u8>)>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            for (told, said) in steps {
                let mut got = vec![0; told.len()];
                stream.read_exact(&mut got).await.expect("a request");
                assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&told));
                stream.write_all(&said).await.expect("sent");
            }
            // Now it is the server.
            stream.write_all(b"hello").await.expect("sent");
        });
        port
    }

    #[tokio::test]
    async fn proxies_are_asked_in_their_words() {
        let step = |told: &[u8], said: &[u8]| (told.to_vec(), said.to_vec());
        let connect = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n";
        let login = b"Proxy-Authorization: Basic dTpwQHNz\r\n";
        let target = b"\x05\x01\x00\x03\x09a.example\x01\xbb";
        for (url, steps) in [
            ("http://", vec![step(&[&connect[..], b"\r\n"].concat(), b"HTTP/1.1 200 Yes\r\nX: y\r\n\r\n")]),
            ("http://u:p%40ss@", vec![step(&[&connect[..], login, b"\r\n"].concat(), b"HTTP/1.0 200 OK\r\n\r\n")]),
            (
                "socks5://",
                vec![step(b"\x05\x01\x00", b"\x05\x00"), step(target, b"\x05\x00\x00\x01\x7f\0\0\x01\0\x01")],
            ),
            (
                "socks5://u:p%40ss@",
                vec![
                    step(b"\x05\x01\x02", b"\x05\x02"),
                    step(b"\x01\x01u\x04p@ss", b"\x01\x00"),
                    step(target, b"\x05\x00\x00\x03\x01a\0\x01"),
                ],
            ),
        ] {
            let port = proxy(steps).await;
            let proxies = Proxies::always(&format!("{url}127.0.0.1:{port}")).expect("a proxy");
            let address = Address { host: "a.example", port: 443, proxies: &proxies };
            let mut stream = address.connect().await.expect(url);
            let mut hello = [0; 5];
            stream.read_exact(&mut hello).await.expect("the server's words");
            assert_eq!(&hello, b"hello", "{url}: nothing of it is lost");
        }
        let steps = vec![step(&[&connect[..], b"\r\n"].concat(), b"HTTP/1.1 407 Who are you\r\n\r\n")];
        let proxies = Proxies::always(&format!("http://127.0.0.1:{}", proxy(steps).await)).expect("a proxy");
        let error = Address { host: "a.example", port: 443, proxies: &proxies }.connect().await.expect_err("a refusal");
        assert!(error.to_string().contains("407 Who are you"), "{error}");
    }

    #[tokio::test]
    async fn what_a_proxy_refuses_is_told_in_words() {
        let step = |told: &[u8], said: &[u8]| (told.to_vec(), said.to_vec());
        let target = b"\x05\x01\x00\x03\x09a.example\x01\xbb";
        for (user, steps, words) in [
            ("", vec![step(b"\x05\x01\x00", b"\x05\xff")], "it wants to know user and password"),
            ("u:p@", vec![step(b"\x05\x01\x02", b"\x05\xff")], "it takes no user and password"),
            (
                "u:p@",
                vec![step(b"\x05\x01\x02", b"\x05\x02"), step(b"\x01\x01u\x01p", b"\x01\x01")],
                "user or password are wrong",
            ),
            (
                "",
                vec![step(b"\x05\x01\x00", b"\x05\x00"), step(target, b"\x05\x05\x00\x01\0\0\0\0\0\0")],
                "the host refuses the connection",
            ),
        ] {
            let port = proxy(steps).await;
            let proxies = Proxies::always(&format!("socks5://{user}127.0.0.1:{port}")).expect("a proxy");
            let address = Address { host: "a.example", port: 443, proxies: &proxies };
            let error = address.connect().await.expect_err(words).to_string();
            assert!(error.contains(words) && error.contains(&format!("127.0.0.1:{port}")), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_named() {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = silent.local_addr().expect("bound").port();
        let proxies = Proxies::always(&format!("http://127.0.0.1:{port}")).expect("a proxy");
        let address = Address { host: "a.example", port: 443, proxies: &proxies };
        let error = address.connect().await.expect_err("silence").to_string();
        assert_eq!(error, format!("the proxy 127.0.0.1:{port} does not answer"));
    }
}
