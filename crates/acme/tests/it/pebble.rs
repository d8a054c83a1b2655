//! Pebble with a resolver of its own, and servers that answer its validations.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use acme::{AccountFile, ChallengeKind, Client, Http01, Limits, Roots, Settings, Solvers, TlsAlpn};
use rustls_pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What is told to Pebble by its environment.
pub(crate) struct Habits {
    /// How many of a hundred nonces it refuses.
    pub(crate) refused_nonces: u32,
    /// Does it wait before it looks, as it does by itself?
    pub(crate) sleeps: bool,
    /// The key of the external account that it wants.
    pub(crate) external_account: Option<(&'static str, &'static str)>,
}

impl Default for Habits {
    fn default() -> Self {
        Self { refused_nonces: 5, sleeps: false, external_account: None }
    }
}

/// A running Pebble. It ends with this.
pub(crate) struct Pebble {
    pub(crate) work: TempDir,
    pub(crate) directory: String,
    pub(crate) roots: Roots,
    pub(crate) issuers: Roots,
    /// Where TXT records are set.
    pub(crate) dns_management: u16,
    pub(crate) tls_alpn: TlsAlpn,
    pub(crate) http: Http01,
    pub(crate) pebble: Child,
    names: Child,
}

impl Pebble {
    /// `None` where Pebble is not installed: then there is nothing to judge by.
    pub(crate) async fn start(habits: &Habits) -> Option<Self> {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join("pebble").exists()));
        if !found {
            eprintln!("SKIPPED: pebble is not installed (Debian: apt-get install pebble)");
            return None;
        }
        let work = tempfile::tempdir().expect("a directory");
        let [directory, management, http, tls, dns, dns_management] = free_ports();
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]);
        let certificate = params.expect("parameters").self_signed(&key).expect("signed");
        let path = |name: &str| work.path().join(name);
        std::fs::write(path("pebble.crt"), certificate.pem()).expect("written");
        std::fs::write(path("pebble.key"), key.serialize_pem()).expect("written");
        let config = serde_json::json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{directory}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": path("pebble.crt"), "privateKey": path("pebble.key"),
            "httpPort": http, "tlsPort": tls, "ocspResponderURL": "",
            "externalAccountBindingRequired": habits.external_account.is_some(),
            "externalAccountMACKeys": habits.external_account.into_iter().collect::<BTreeMap<_, _>>(),
        }});
        std::fs::write(path("pebble.json"), config.to_string()).expect("written");
        let mut names = Command::new("pebble-challtestsrv");
        names.args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", ""]);
        names.args(["-dns01", &format!("127.0.0.1:{dns}"), "-management", &format!("127.0.0.1:{dns_management}")]);
        let names = background(names, &path("names.log"));
        let mut pebble = Command::new("pebble");
        pebble.args(["-config", "pebble.json", "-dnsserver", &format!("127.0.0.1:{dns}")]).current_dir(work.path());
        pebble.env("PEBBLE_WFE_NONCEREJECT", habits.refused_nonces.to_string());
        pebble.env("PEBBLE_VA_ALWAYS_VALID", "0").env("PEBBLE_AUTHZREUSE", "0");
        pebble.env("PEBBLE_VA_NOSLEEP", if habits.sleeps { "0" } else { "1" });
        let pebble = background(pebble, &path("pebble.log"));
        for port in [dns_management, directory, management] {
            listens(port).await;
        }
        let roots = Roots::from_file(certificate.pem().as_bytes()).expect("a certificate");
        let root = get(management, "/roots/0", certificate.der()).await;
        let issuers = Roots::from_file(root.as_bytes()).expect("Pebble's root");
        let (tls_alpn, http_01) = (TlsAlpn::new(), Http01::new());
        serve_tls(tls, &tls_alpn).await;
        serve_http(http, http_01.clone()).await;
        let directory = format!("https://localhost:{directory}/dir");
        Some(Self { work, directory, roots, issuers, dns_management, tls_alpn, http: http_01, pebble, names })
    }

    pub(crate) fn settings(&self) -> Settings {
        let limits = Limits {
            request: Duration::from_secs(10),
            order: Duration::from_secs(60),
            linger: Duration::from_secs(2),
            first_look: Duration::from_millis(20),
            longest_look: Duration::from_millis(500),
            ..Limits::default()
        };
        let mut settings = Settings::new(self.directory.clone(), self.roots.clone());
        settings.issuers = self.issuers.clone();
        settings.agree_terms = true;
        settings.limits = limits;
        settings
    }

    /// A client as it is after a restart: all that it knows is in the file.
    pub(crate) fn client(&self) -> Client {
        let file = AccountFile::new(self.work.path().join("account.json"));
        Client::new(self.settings(), Arc::new(file)).expect("a client")
    }

    pub(crate) fn solvers(&self) -> Solvers {
        Solvers::new()
            .with(ChallengeKind::TlsAlpn01, Arc::new(self.tls_alpn.clone()))
            .with(ChallengeKind::Http01, Arc::new(self.http.clone()))
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for child in [&mut self.pebble, &mut self.names] {
            // Whatever has ended by itself is no harm.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn background(mut command: Command, log: &Path) -> Child {
    let file = std::fs::File::create(log).expect("a log");
    command.stdin(Stdio::null()).stderr(file.try_clone().expect("a log")).stdout(file);
    command.spawn().expect("started")
}

/// Ports that nobody listens on: bound together, so that they differ.
fn free_ports<const N: usize>() -> [u16; N] {
    let sockets = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"));
    sockets.map(|socket| socket.local_addr().expect("an address").port())
}

async fn listens(port: u16) {
    for _ in 0..600 {
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nobody listens on port {port}");
}

/// The body of an answer of Pebble's management.
pub(crate) async fn get(port: u16, path: &str, root: &CertificateDer<'static>) -> String {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("connected");
    let name = ServerName::try_from("localhost").expect("a name");
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("TLS");
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    tls.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await.expect("an answer");
    answer.split_once("\r\n\r\n").expect("a body").1.to_owned()
}

async fn serve_tls(port: u16, solver: &TlsAlpn) {
    let acceptor = TlsAcceptor::from(Arc::new(solver.server_config().expect("a configuration")));
    let listener = listen(port).await;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut tls) = acceptor.accept(tcp).await {
                    let _ = tls.shutdown().await;
                }
            });
        }
    });
}

async fn serve_http(port: u16, solver: Http01) {
    let listener = listen(port).await;
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let solver = solver.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut octet = [0];
                    if tcp.read(&mut octet).await.unwrap_or_default() == 0 {
                        return;
                    }
                    head.push(octet[0]);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default();
                let host = head.lines().find_map(|line| line.strip_prefix("Host: ")).unwrap_or_default();
                let host = host.split(':').next().unwrap_or_default();
                let answer = match host.parse().ok().and_then(|host| solver.answer_path(&host, path)) {
                    Some(answer) => format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len()),
                    None => "HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
                };
                let _ = tcp.write_all(answer.as_bytes()).await;
            });
        }
    });
}

async fn listen(port: u16) -> tokio::net::TcpListener {
    tokio::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.expect("a port")
}
