//! Ports: who listens, who is reached from here, and which certificate is shown.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use acme::ChallengeKind;
use anyhow::Context as _;
use hickory_proto::rr::RecordType;
use pki_core::inspect_certificate;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::host::unsuitable;
use super::resolver::{Transport, ask};
use super::{Finding, SOON_DAYS, Seen, Status, days_until};
use crate::panel::reachable;
use crate::settings::Settings;
use crate::settings::acme::Issuer;

/// How long a connection may take.
const WAIT: Duration = Duration::from_secs(3);

/// A server that runs, by its own words.
pub(super) struct Server {
    status: u16,
    words: String,
}

/// Asks the metrics port: whoever is alive there, and says so as we do, is a server of ours.
pub(super) async fn ask_server(settings: &Settings) -> Option<Server> {
    let listen = settings.api.metrics;
    let address = SocketAddr::new(reachable(listen.ip()), listen.port());
    let alive = get(address, "/healthz").await?;
    if alive.words.trim() != "alive" {
        return None;
    }
    get(address, "/readyz").await
}

async fn get(address: SocketAddr, path: &str) -> Option<Server> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut octets = Vec::new();
        stream.take(16 * 1024).read_to_end(&mut octets).await?;
        std::io::Result::Ok(octets)
    };
    let octets = timeout(WAIT, asked).await.ok()?.ok()?;
    let text = String::from_utf8_lossy(&octets);
    let (head, words) = text.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some(Server { status, words: words.to_owned() })
}

/// Does a server run here, and is it well?
pub(super) async fn server(seen: Arc<Seen>) -> Vec<Finding> {
    const NAME: &str = "server.ready";
    vec![match seen.server().await {
        None => {
            Finding::ok(NAME, format!("no server runs here (nobody at {}, metrics_listen)", seen.settings.api.metrics))
        }
        Some(server) if server.status == 200 => {
            Finding::ok(NAME, format!("a server runs, and is ready, says {}", seen.settings.api.metrics))
        }
        Some(server) => Finding::fail(NAME, format!("a server runs, and says: {}", server.words.trim()), "see its log"),
    }]
}

/// Is somebody at each port that the settings name, or could a server listen there?
pub(super) async fn listeners(seen: Arc<Seen>) -> Vec<Finding> {
    let settings = &seen.settings;
    let is_running = seen.server().await.is_some();
    let ports = [
        ("edge_listen", Some(settings.edge.listen)),
        ("api_listen", Some(settings.api.listen)),
        ("metrics_listen", Some(settings.api.metrics)),
        ("panel_listen", settings.panel.listen.0.0),
        ("http_listen", settings.acme.http_address()),
        ("dns_listen", settings.acme.dns_address()),
    ];
    let mut findings = Vec::new();
    for (setting, address) in ports {
        let Some(address) = address else { continue };
        let mut bound = bind(address);
        if setting == "dns_listen" && bound.is_ok() {
            bound = UdpSocket::bind(address).await.map(drop);
        }
        if is_running && bound.as_ref().is_err_and(|error| error.kind() == ErrorKind::PermissionDenied) {
            // Ports below 1024 are refused before it is seen that somebody has them.
            let dialled = SocketAddr::new(reachable(address.ip()), address.port());
            let is_there = matches!(timeout(WAIT, TcpStream::connect(dialled)).await, Ok(Ok(_)));
            bound = if is_there { Err(ErrorKind::AddrInUse.into()) } else { Ok(()) };
        }
        findings.push(listener(setting, address, bound, is_running));
    }
    findings
}

/// Takes a port without listening: nobody who connects meanwhile is turned away, and a server that starts is not
/// in its way.
fn bind(address: SocketAddr) -> std::io::Result<()> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)
}

fn listener(setting: &str, address: SocketAddr, bound: std::io::Result<()>, is_running: bool) -> Finding {
    let name = format!("ports.{setting}");
    match bound {
        Ok(()) if is_running => {
            let detail = format!("nobody listens at {address}, though a server runs");
            Finding::warn(name, detail, "restart it, if this setting has changed since its start")
        }
        Ok(()) => Finding::ok(name, format!("{address} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_running => {
            Finding::ok(name, format!("{address} is listened at"))
        }
        Err(error) if error.kind() == ErrorKind::AddrInUse => Finding::fail(
            name,
            format!("{address} is taken, and not by this server"),
            "stop what has it (ss -lntup shows it), or use another one; a socket unit that holds it for the server is right",
        ),
        // What a unit allows the server, this command is not allowed.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Finding::warn(
            name,
            format!("{address} is for programs that may have ports below 1024, and this one may not"),
            "let the server: AmbientCapabilities=CAP_NET_BIND_SERVICE in its unit, or a socket unit",
        ),
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
            Finding::fail(name, format!("{address} is no address of this machine"), "use one that it has, or 0.0.0.0")
        }
        Err(error) => Finding::fail(name, format!("{address}: {error}"), "use another address"),
    }
}

/// Are the public addresses reached from here? Routers that do not lead back inside make it look worse than it is.
pub(super) async fn reach(seen: Arc<Seen>) -> Vec<Finding> {
    let Settings { acme, edge, .. } = &seen.settings;
    if seen.server().await.is_none() || (unsuitable(seen.zone()).is_some() && acme.addresses.is_empty()) {
        return Vec::new();
    }
    let mut addresses: Vec<IpAddr> = acme.addresses.clone();
    if addresses.is_empty() {
        addresses = seen.addresses().await[0].clone().unwrap_or_default();
    }
    let mut tasks = Vec::new();
    // Nobody has more of them than that.
    for address in addresses.into_iter().take(8) {
        let is_plain = !edge.proxy_protocol;
        let one = |port, what| (address, port, what);
        tasks.push(one(443, if is_plain { What::Certificate } else { What::Tcp }));
        tasks.extend(acme.http_address().map(|_| one(80, What::Tcp)));
        tasks.extend(acme.dns_address().map(|_| one(53, What::Dns)));
    }
    let tasks: Vec<_> = tasks
        .into_iter()
        .map(|(address, port, what)| {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move { reached(&seen, SocketAddr::new(address, port), what).await })
        })
        .collect();
    let mut findings = Vec::new();
    for task in tasks {
        findings.extend(task.await);
    }
    findings
}

/// What is to be at a port.
#[derive(Clone, Copy)]
enum What {
    Certificate,
    Dns,
    Tcp,
}

async fn reached(seen: &Seen, address: SocketAddr, what: What) -> Finding {
    let name = format!("reach.{address}");
    let answer = match what {
        What::Dns => {
            let answer = ask(address, Transport::Udp, seen.zone(), RecordType::SOA).await;
            answer.map(|_| ()).map_err(|error| format!("{error:#}"))
        }
        What::Certificate | What::Tcp => match timeout(WAIT, TcpStream::connect(address)).await {
            Ok(connected) => connected.map(drop).map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", WAIT.as_secs())),
        },
    };
    if let Err(error) = answer {
        let remedy = "try it from elsewhere: a router may not lead back inside (hairpin); otherwise let the port through to \
                      the one that listens";
        return Finding::warn(name, format!("not reached from here: {error}"), remedy);
    }
    match what {
        What::Certificate => {
            let finding = shown(seen, &name, address).await;
            if finding.status == Status::Ok && is_in_front(seen, address).await {
                let remedy = "have port 443 lead to edge_listen without ending TLS before it, or prove names otherwise";
                let detail =
                    format!("{}; another one than at edge_listen, where tls-alpn-01 is answered", finding.detail);
                return Finding::warn(name, detail, remedy);
            }
            finding
        }
        What::Dns | What::Tcp => Finding::ok(name, "reached from here"),
    }
}

/// Does something else end TLS at an address, while the authority looks for proofs of ours there?
async fn is_in_front(seen: &Seen, address: SocketAddr) -> bool {
    let Settings { acme, edge, .. } = &seen.settings;
    if acme.issuer == Issuer::Private || !acme.challenges().contains(&ChallengeKind::TlsAlpn01) {
        return false;
    }
    let here = SocketAddr::new(reachable(edge.listen.ip()), edge.listen.port());
    let both = async { tokio::join!(chain_of(address, seen.zone()), chain_of(here, seen.zone())) };
    match timeout(Duration::from_secs(1), both).await {
        Ok((Ok(there), Ok(here))) => there.first() != here.first(),
        _ => false,
    }
}

/// Which certificate the edge shows for the zone.
pub(super) async fn certificate(seen: Arc<Seen>) -> Vec<Finding> {
    const NAME: &str = "certificates.zone";
    let listen = seen.settings.edge.listen;
    if seen.server().await.is_none() {
        return Vec::new();
    }
    if seen.settings.edge.proxy_protocol {
        return vec![Finding::ok(NAME, "not asked for: the edge wants a PROXY protocol header")];
    }
    vec![shown(&seen, NAME, SocketAddr::new(reachable(listen.ip()), listen.port())).await]
}

async fn shown(seen: &Seen, name: &str, address: SocketAddr) -> Finding {
    let zone = seen.zone();
    let chain = match timeout(WAIT, chain_of(address, zone)).await {
        Ok(Ok(chain)) => chain,
        Ok(Err(error)) => {
            let remedy = "see the server's log: an order may still go on, or have failed";
            return Finding::fail(name, format!("no certificate is shown for {zone}: {error:#}"), remedy);
        }
        Err(_) => {
            let remedy = "see the server's log: an order may still go on; or something else listens there";
            let detail = format!("no certificate is shown for {zone} within {} s", WAIT.as_secs());
            return Finding::fail(name, detail, remedy);
        }
    };
    match judged(seen, &chain, zone) {
        Ok(finding) => Finding { name: name.to_owned(), ..finding },
        Err(error) => Finding::fail(name, format!("{error:#}"), "see what listens there"),
    }
}

/// Who vouches for a certificate, and for how long?
fn judged(seen: &Seen, chain: &[CertificateDer<'static>], zone: &str) -> anyhow::Result<Finding> {
    let settings = &seen.settings;
    let (leaf, intermediates) = chain.split_first().context("no certificate is shown")?;
    let summary = inspect_certificate(leaf).context("a certificate that cannot be read is shown")?;
    let days = days_until(summary.not_after);
    let issuer = summary.issuer;
    let detail = format!("a certificate for {zone} by {issuer}, good for {days} days");
    let trusted = |roots: anyhow::Result<Vec<CertificateDer<'static>>>| trusted(leaf, intermediates, zone, &roots?);
    let read = |path: &std::path::Path| acme::Roots::from_file(&std::fs::read(path)?).map_err(anyhow::Error::from);
    let owned = |roots: acme::Roots| roots.der().map(|der| CertificateDer::from(der.to_vec())).collect::<Vec<_>>();
    let public = match &settings.acme.ca {
        Some(path) => read(path).map(owned),
        None => acme::Roots::of_system().map(owned).map_err(anyhow::Error::from),
    };
    let own = read(&settings.general.data_dir.join("ca").join(ca_dir::ROOT_CERTIFICATE)).map(owned);
    let (public, own) = (trusted(public), trusted(own));
    let wrong_name = |error: &anyhow::Error| {
        matches!(
            error.downcast_ref(),
            Some(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
            ))
        )
    };
    Ok(match (public, own, settings.acme.issuer) {
        (Err(error), Err(_), _) if wrong_name(&error) => {
            let detail = format!("a certificate by {issuer} that is not for {zone}");
            Finding::fail("", detail, "see what listens there, and which certificate it is given")
        }
        (Ok(()), _, _) if days < SOON_DAYS => Finding::warn("", detail, "see in the log why it is not renewed"),
        (Ok(()), _, _) if settings.acme.ca.is_some() => Finding::ok("", format!("{detail}, trusted by acme_ca")),
        (Ok(()), _, _) => Finding::ok("", format!("{detail}, trusted by this system")),
        (Err(_), Ok(()), Issuer::Private) => {
            Finding::ok("", format!("{detail}; whoever trusts ca/root.crt trusts it, strangers do not"))
        }
        (Err(_), Ok(()), Issuer::Acme) => {
            let remedy = "see the server's log: the public authority has issued none";
            Finding::fail("", format!("{detail}, which strangers do not trust"), remedy)
        }
        (Err(error), Err(_), _) => {
            let remedy = "see what listens there, and whether the whole chain is shown";
            Finding::fail("", format!("{detail}, which is not trusted: {error:#}"), remedy)
        }
    })
}

fn trusted(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    host: &str,
    roots: &[CertificateDer<'static>],
) -> anyhow::Result<()> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots.iter().cloned());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider()).build()?;
    let (host, now) = (ServerName::try_from(host.to_owned())?, UnixTime::now());
    verifier.verify_server_cert(leaf, intermediates, &host, &[], now)?;
    Ok(())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The chain that is shown for a host, whoever signed it. Nothing is sent.
async fn chain_of(address: SocketAddr, host: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let witness = Arc::new(Witness { provider: provider(), chain: OnceLock::new() });
    let verifier: Arc<dyn ServerCertVerifier> = Arc::<Witness>::clone(&witness);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(host.to_owned())?, tcp).await?;
    witness.chain.get().cloned().context("no certificate is shown")
}

/// Keeps what is shown. It is judged later, by several roots.
#[derive(Debug)]
struct Witness {
    provider: Arc<CryptoProvider>,
    chain: OnceLock<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(leaf).chain(intermediates).map(|one| one.clone().into_owned()).collect();
        self.chain.get_or_init(|| chain);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_listened_at_free_or_in_the_way() {
        let address: SocketAddr = "127.0.0.1:4443".parse().expect("an address");
        for (error, is_running, wanted, words) in [
            (None, false, Status::Ok, "is free"),
            (None, true, Status::Warn, "nobody listens"),
            (Some(ErrorKind::AddrInUse), true, Status::Ok, "listened at"),
            (Some(ErrorKind::AddrInUse), false, Status::Fail, "taken"),
            (Some(ErrorKind::PermissionDenied), false, Status::Warn, "may not"),
            (Some(ErrorKind::AddrNotAvailable), true, Status::Fail, "no address of this machine"),
        ] {
            let bound = error.map_or(Ok(()), |kind| Err(kind.into()));
            let finding = listener("edge_listen", address, bound, is_running);
            assert_eq!(finding.status, wanted, "{finding:?}");
            assert!(finding.detail.contains(words), "{finding:?}");
        }
    }
}
