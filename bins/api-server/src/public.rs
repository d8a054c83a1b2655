//! A public authority: who we are there, how names are proved, and the ports that prove them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use acme::{
    AccountFile, AccountStore, Budget, Challenge, ChallengeKind, Client, ExternalAccount, Habits, Hook, Http01, Rate,
    Roots, Solver, SolverError, Solvers, Standing, TlsAlpn,
};
use anyhow::{Context as _, bail};
use api::App;
use async_trait::async_trait;
use axum::Router;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header, uri};
use axum::response::{IntoResponse as _, Response};
use ca_dir::Passphrase;
use edge::Edge;
use issuance::{Public, PublicSettings};
use name_server::{Caa, Challenges, DomainName, NameServer, Zone};
use pki_core::DnsName;
use store::{Store, SystemClock};
use tokio::time::sleep;
use tunnel_model::{Rules, TunnelName};
use zeroize::Zeroizing;

use crate::settings::Settings;
use crate::settings::acme::{CaaPolicy, Fallback, Issuer};
use crate::start::secret;

/// Where the account's key is, in the data directory.
pub(crate) const ACCOUNT_FILE: &str = "acme-account.json";
/// Where the key of the edge's own certificates is.
pub(crate) const EDGE_KEY_FILE: &str = "edge.key";

/// What proves names.
#[derive(Clone)]
pub(crate) struct Proofs {
    pub(crate) http: Http01,
    tls: TlsAlpn,
    /// The zone's own name server, if it is served here.
    pub(crate) dns: Option<NameServer>,
}

/// A public authority that is asked for certificates.
#[derive(Clone)]
pub(crate) struct Authority {
    pub(crate) issuance: Public,
    client: Client,
    caa: CaaPolicy,
    methods: Vec<&'static str>,
    zone: Option<Arc<Zone>>,
    /// The zone's wildcard.
    everything: acme::Name,
}

impl Proofs {
    /// Nothing is proved yet.
    pub(crate) fn new(settings: &Settings) -> anyhow::Result<Self> {
        let dns = match settings.acme.dns_address() {
            Some(_) => Some(name_server(settings)?),
            None => None,
        };
        Ok(Self { http: Http01::new(), tls: TlsAlpn::new(), dns })
    }

    /// Has the edge show what proves a host by tls-alpn-01.
    pub(crate) fn show_at(&self, edge: &Edge) -> anyhow::Result<()> {
        let config = Arc::new(self.tls.server_config().context("no TLS")?);
        let table = self.tls.clone();
        edge.answer_challenges(Arc::new(move |host| {
            let host: DnsName = host.parse().ok()?;
            table.is_pending(&host).then(|| Arc::clone(&config))
        }));
        Ok(())
    }
}

fn name_server(settings: &Settings) -> anyhow::Result<NameServer> {
    let zone: DomainName = settings.general.zone.0.as_str().parse().context("the zone is no name for DNS")?;
    let mut about = name_server::Settings::new(zone, settings.acme.addresses.clone());
    for name in &settings.acme.name_servers {
        about.name_servers.push(name.parse().with_context(|| format!("dns_name_server: {name:?}"))?);
    }
    // Until the account is known, nobody is it.
    if settings.acme.issuer == Issuer::Acme && settings.acme.caa == CaaPolicy::Account {
        about.caa = Caa::nobody();
    }
    let zone = Zone::new(about).context("public_address or dns_name_server")?;
    Ok(NameServer::new(zone, name_server::Limits::default()))
}

impl Authority {
    /// As the settings say. Nobody is asked yet: a server starts while its authority is away.
    pub(crate) fn new(
        settings: &Settings,
        proofs: &Proofs,
        store: &Arc<dyn Store>,
        rules: &Arc<Rules>,
        passphrase: Option<Passphrase>,
    ) -> anyhow::Result<Self> {
        let client = client(settings, passphrase)?;
        let acme = &settings.acme;
        let kinds = acme.challenges();
        let mut solvers = Solvers::new();
        for kind in &kinds {
            let solver: Arc<dyn Solver> = match kind {
                ChallengeKind::TlsAlpn01 => Arc::new(proofs.tls.clone()),
                ChallengeKind::Http01 => Arc::new(proofs.http.clone()),
                ChallengeKind::DnsPersist01 => Arc::new(Standing),
                ChallengeKind::Dns01 => match (&acme.dns_hook, &proofs.dns) {
                    (Some(hook), _) => Arc::new(Hook::new(hook, HOOK_TIME).context("acme_dns_hook")?),
                    (None, Some(dns)) => Arc::new(OwnZone(dns.challenges())),
                    (None, None) => bail!("acme_challenge dns-01 needs dns_listen or acme_dns_hook"),
                },
                kind => bail!("acme_challenge: {kind} is not answered by this version"),
            };
            solvers = solvers.with(*kind, solver);
        }
        let zone: DnsName = settings.general.zone.0.as_str().parse().context("the zone is no host name")?;
        let everything = acme::Name::wildcard(zone.clone());
        let mut about = PublicSettings::new(zone);
        about.wait = acme.wait.0.0;
        about.budget = Budget {
            domain: Rate { count: acme.certificates_per_week, ..Budget::default().domain },
            ..Budget::default()
        };
        about.habits = Habits { common_name_suffices: acme.takes_common_names(), ..Habits::default() };
        // A private certificate could take the place of one for all hosts at none.
        about.wildcard = acme.issuer_fallback == Fallback::Refuse && kinds.iter().any(|kind| kind.proves_wildcards());
        let clock = Arc::new(SystemClock);
        let issuance = Public::new(client.clone(), solvers, Arc::clone(store), Arc::clone(rules), clock, about);
        let methods = kinds.iter().map(|kind| kind.as_str()).collect();
        let zone = proofs.dns.as_ref().map(|dns| Arc::clone(dns.zone()));
        Ok(Self { issuance, client, caa: acme.caa, methods, zone, everything })
    }

    /// Keeps everything going that nobody asks for, until it is dropped.
    pub(crate) async fn keep(self) {
        tokio::join!(self.issuance.tend(), self.keep_caa(), self.keep_standing());
    }

    /// CAA names an authority, and perhaps an account, that have to be asked who they are.
    async fn keep_caa(&self) {
        /// The account is known, or it is one question; an authority that has lost it gets another one.
        const LOOK: Duration = Duration::from_secs(5);

        let Some(zone) = self.zone.as_ref().filter(|_| self.caa != CaaPolicy::None) else { return };
        const LONGEST: Duration = Duration::from_secs(10 * 60);

        let (mut said, mut pause) = (Vec::new(), LOOK);
        loop {
            match self.caa().await {
                Ok(caa) if caa.values() != said => {
                    pause = LOOK;
                    tracing::info!(caa = ?caa.values(), "the zone says who may issue certificates");
                    zone.set_caa(&caa);
                    said = caa.values().to_vec();
                }
                Ok(_) => pause = LOOK,
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the zone does not say yet who may issue");
                    pause = (pause * 2).min(LONGEST);
                }
            }
            sleep(pause).await;
        }
    }

    /// For dns-persist-01 there is a record that stays: in the own zone, or it is said which.
    async fn keep_standing(&self) {
        const PAUSE: Duration = Duration::from_secs(60);

        if !self.methods.contains(&ChallengeKind::DnsPersist01.as_str()) {
            return;
        }
        let account = loop {
            match self.client.account().await {
                Ok(account) => break account,
                Err(_) => sleep(PAUSE).await,
            }
        };
        let Some(issuer) = account.caa_identities().first() else {
            tracing::error!("the authority does not say by which name dns-persist-01 is to name it");
            return;
        };
        let (name, value) = acme::persistent_record(&self.everything, issuer, account.uri());
        match &self.zone {
            Some(zone) => {
                let presented = || -> anyhow::Result<()> {
                    Challenges::of(zone).present(&name.parse()?, &value)?.keep();
                    Ok(())
                };
                if let Err(error) = presented() {
                    tracing::error!(error = format!("{error:#}"), "the record of dns-persist-01 cannot be shown");
                }
            }
            None => tracing::info!(name, value, "dns-persist-01 needs this TXT record, which stays"),
        }
    }

    async fn caa(&self) -> anyhow::Result<Caa> {
        let account = self.client.account().await?;
        let issuers = account.caa_identities().iter().map(|name| name.parse()).collect::<Result<Vec<_>, _>>();
        let issuers = issuers.context("the authority's names for CAA")?;
        Ok(match self.caa {
            CaaPolicy::Account => Caa::account(&issuers, account.uri(), &self.methods)?,
            CaaPolicy::Authority | CaaPolicy::None => Caa::authority(&issuers)?,
        })
    }
}

/// How long a hook may take: records have to reach every name server of the zone.
const HOOK_TIME: Duration = Duration::from_secs(120);

/// Who we are at the authority.
pub(crate) fn client(settings: &Settings, passphrase: Option<Passphrase>) -> anyhow::Result<Client> {
    let acme = &settings.acme;
    let Some(directory) = &acme.directory else { bail!("acme_directory is not set") };
    let roots = match &acme.ca {
        Some(path) => {
            let text = std::fs::read(path).with_context(|| format!("acme_ca: cannot read {}", path.display()))?;
            let named = Roots::from_file(&text).with_context(|| format!("acme_ca: {}", path.display()))?;
            // An authority for trying has a root of its own, and a directory that the system trusts.
            match Roots::of_system() {
                Ok(of_system) => named.and(of_system),
                Err(_) => named,
            }
        }
        None => Roots::of_system()?,
    };
    let mut about = acme::Settings::new(directory.as_str(), roots);
    about.contacts.clone_from(&acme.contacts);
    about.agree_terms = acme.agree_terms;
    about.profile.clone_from(&acme.profile);
    about.external_account = external_account(acme.eab_key_id.as_deref())?;
    about.clock = Arc::new(crate::reload::now);
    let path = settings.general.data_dir.join(ACCOUNT_FILE);
    let file = Sealed { file: AccountFile::new(&path), path, passphrase };
    Ok(Client::new(about, Arc::new(file))?)
}

/// The account's key, encrypted like that of the authority, if that is.
struct Sealed {
    file: AccountFile,
    path: PathBuf,
    passphrase: Option<Passphrase>,
}

impl AccountStore for Sealed {
    fn load(&self) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        let Some(octets) = self.file.load()? else { return Ok(None) };
        ca_dir::unseal(&octets, &self.path, self.passphrase.as_ref()).map(Some).map_err(io::Error::other)
    }

    fn store(&self, octets: &[u8]) -> io::Result<()> {
        match &self.passphrase {
            Some(passphrase) => self.file.store(ca_dir::seal(octets, passphrase).map_err(io::Error::other)?.as_bytes()),
            None => self.file.store(octets),
        }
    }
}

fn external_account(key_id: Option<&str>) -> anyhow::Result<Option<ExternalAccount>> {
    const VARIABLE: &str = "ADIT_ACME_EAB_KEY";
    match (key_id, secret(VARIABLE)?) {
        (None, None) => Ok(None),
        (None, Some(_)) => bail!("{VARIABLE} is set and acme_eab_key_id is not: they belong together"),
        (Some(_), None) => bail!("acme_eab_key_id needs {VARIABLE}, or {VARIABLE}_FILE"),
        (Some(key_id), Some(text)) => ExternalAccount::new(key_id, &text).map(Some).context(VARIABLE),
    }
}

/// The key of the edge's own certificates, made at the first start: those of a public authority are rare.
pub(crate) fn edge_key(data: &Path, passphrase: Option<&Passphrase>) -> anyhow::Result<rcgen::KeyPair> {
    let path = data.join(EDGE_KEY_FILE);
    if !path.exists() {
        let key = ca_dir::generate_key(ca_dir::KeyAlgorithm::P256)?;
        ca_dir::write_private_key(&path, &key, passphrase)?;
    }
    let text = Zeroizing::new(std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    let der = ca_dir::pkcs8_from_text(&text, &path, passphrase)?;
    let der = rustls::pki_types::PrivatePkcs8KeyDer::from(der.as_slice());
    rcgen::KeyPair::try_from(&der).with_context(|| format!("cannot use {}", path.display()))
}

/// dns-01 by the zone's own name server.
struct OwnZone(Challenges);

#[async_trait]
impl Solver for OwnZone {
    async fn present(&self, challenge: &Challenge) -> Result<(), SolverError> {
        self.0.present(&challenge.dns_name().parse()?, &challenge.dns_value())?.keep();
        Ok(())
    }

    async fn withdraw(&self, challenge: &Challenge) -> Result<(), SolverError> {
        self.0.withdraw(&challenge.dns_name().parse()?, &challenge.dns_value());
        Ok(())
    }
}

/// The host that a request is for: its target's, if it has one, else the one in Host (RFC 9112 section 3.2).
fn authority(request: &Parts) -> Option<uri::Authority> {
    let mut hosts = request.headers.get_all(header::HOST).iter();
    let authority = match (request.uri.authority(), hosts.next(), hosts.next()) {
        (_, _, Some(_)) => None,
        (Some(authority), _, None) => Some(authority.clone()),
        (None, Some(host), None) => uri::Authority::try_from(host.as_bytes()).ok(),
        (None, None, None) => None,
    };
    authority.filter(|authority| !authority.as_str().contains('@'))
}

/// Port 80: proofs by http-01, and for hosts that there are the way to https. Nothing else is known here.
pub(crate) fn plain_routes(app: Arc<App>, http: Http01, https_port: u16) -> Router {
    let answer = move |request: Request| {
        let (app, http) = (Arc::clone(&app), http.clone());
        async move { answer_plain(&request.into_parts().0, &app, &http, https_port).await }
    };
    Router::new().fallback(answer)
}

async fn answer_plain(request: &Parts, app: &App, http: &Http01, https_port: u16) -> Response {
    let Some(authority) = authority(request) else { return StatusCode::BAD_REQUEST.into_response() };
    if !request.uri.path().starts_with('/') {
        return StatusCode::NOT_FOUND.into_response();
    }
    let host: Result<DnsName, _> = authority.host().trim_end_matches('.').parse();
    let Ok(host) = host else { return StatusCode::NOT_FOUND.into_response() };
    let is_read = matches!(request.method, Method::GET | Method::HEAD);
    if let Some(answer) = http.answer_path(&host, request.uri.path()).filter(|_| is_read) {
        const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
        return ([(header::CONTENT_TYPE, OCTETS)], answer).into_response();
    }
    let zone = app.zone().as_str();
    let label = host.as_str().strip_suffix(zone).and_then(|rest| rest.strip_suffix('.'));
    let name = label.and_then(|label| label.parse::<TunnelName>().ok());
    let is_known = match name {
        Some(name) => app.has_tunnel(&name).await.unwrap_or(false),
        None => host.as_str() == zone,
    };
    if !is_known {
        return StatusCode::NOT_FOUND.into_response();
    }
    // Whoever came by HTTP's own port finds HTTPS at its own, whatever stands between them and these listeners.
    let port = match authority.port_u16() {
        None | Some(80) => String::new(),
        Some(_) => format!(":{https_port}"),
    };
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    match HeaderValue::try_from(format!("https://{host}{port}{path}")) {
        Ok(location) => (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, location)]).into_response(),
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}
