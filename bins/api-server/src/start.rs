//! What happens before a port is bound: the data directory with its lock,
//! database, certificate authority and first admin key.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use api::{App, DataPlane, SystemRandom};
use ca_dir::{CaDir, CaDirError, Passphrase, Validity, leaf_profile};
use edge::Edge;
use issuance::{Issuance, Private};
use pki_core::crypto::aws_lc::AwsLc;
use pki_core::{Authority, DnsName, KeyPolicy, Profile, Time, Usage};
use store::{SqliteStore, Store, SystemClock};
use tunnel_model::{ApiKeySecret, OrganizationId, TunnelId};

use crate::backup;
use crate::panel::Served;
use crate::public::{self, Proofs};
use crate::reload::{self, now};
use crate::settings::Settings;
use crate::settings::acme::{Fallback, Issuer};

/// All that is served, ready for it.
pub(crate) struct Started {
    pub(crate) app: Arc<App>,
    pub(crate) edge: Edge,
    /// `None` if it is not to be served.
    pub(crate) panel: Option<Served>,
    pub(crate) proofs: Proofs,
    /// `None` if all certificates are the deployment's own.
    pub(crate) public: Option<public::Authority>,
    pub(crate) issuer_not_after: Time,
    /// Of the authority that signs for tunnels.
    pub(crate) validity: Validity,
}

pub(crate) const ADMIN_KEY_FILE: &str = "admin-api-key";

/// Opens the data directory, making what is missing.
pub(crate) async fn start(settings: &Settings) -> anyhow::Result<Started> {
    let data = &settings.general.data_dir;
    let (passphrase, chosen_key) = (passphrase()?, chosen_key()?);
    backup::require_restored(data)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .with_context(|| format!("cannot create the data directory {}", data.display()))?;
    // The lock comes first: nothing below may be done by two servers at once.
    let store = SqliteStore::open(data)?;
    let zone: DnsName = settings.general.zone.0.as_str().parse().context("the zone is no host name")?;
    let ca = open_ca(&data.join("ca"), &zone, passphrase.as_ref())?;
    let validity = ca.validity()?;
    let authority = authority(settings, ca)?;
    let issuer_not_after = authority.not_after();
    warn_of_end(&validity, issuer_not_after, settings.tunnels.cert_days);
    let store: Arc<dyn Store> = Arc::new(store);
    let rules = Arc::new(settings.tunnels.rules());
    let proofs = Proofs::new(settings)?;
    let private: Arc<dyn Issuance> =
        Arc::new(Private::new(authority, Arc::clone(&store), Arc::clone(&rules), Arc::new(SystemClock)));
    let public = match settings.acme.issuer {
        Issuer::Acme => Some(public::Authority::new(settings, &proofs, &store, &rules, passphrase.clone())?),
        Issuer::Private => None,
    };
    let issuance: Arc<dyn Issuance> = match (&public, settings.acme.issuer_fallback) {
        (None, _) => private,
        (Some(public), Fallback::Refuse) => Arc::new(public.issuance.clone()),
        (Some(public), Fallback::Private) => {
            let public = Arc::new(public.issuance.clone());
            let clock = Arc::new(SystemClock);
            Arc::new(issuance::Fallback::new(public, private, Arc::clone(&store), Arc::clone(&rules), clock))
        }
    };
    let edge_settings = settings.edge.settings(settings.general.zone.0.clone(), &settings.connections);
    let (at_edge, clock) = (Arc::clone(&issuance), Arc::new(SystemClock));
    let edge = if public.is_some() {
        let key = public::edge_key(data, passphrase.as_ref())?;
        Edge::with_key(edge_settings, Arc::clone(&store), at_edge, clock, key)?
    } else {
        Edge::new(edge_settings, Arc::clone(&store), at_edge, clock)?
    };
    proofs.show_at(&edge)?;
    if let (Some(path), Some(pair)) = (&settings.edge.tls_cert, reload::edge_pair(settings)) {
        reload::use_at_edge(&edge, reload::warned(pair?, path))?;
    }
    let panel = crate::panel::open(settings, &store).await?;
    let zone = settings.general.zone.0.clone();
    let app = App::new(store, Arc::new(SystemClock), Arc::new(SystemRandom), issuance, rules, zone)
        .with_data_plane(Arc::new(Joint(edge.clone())));
    let organization = OrganizationId::new(settings.tunnels.organization.as_str());
    if let Some(key) = app.bootstrap(&organization, chosen_key).await.context("cannot make the first API key")? {
        hand_over(&key, &data.join(ADMIN_KEY_FILE))?;
    }
    Ok(Started { app: Arc::new(app), edge, panel, proofs, public, issuer_not_after, validity })
}

/// Where control plane and data plane meet: neither knows the other.
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

/// Who signs for the zone, if the settings are those that it was made for.
pub(crate) fn authority(settings: &Settings, ca: CaDir) -> anyhow::Result<Authority> {
    let zone: DnsName = settings.general.zone.0.as_str().parse().context("the zone is no host name")?;
    let profile = Profile::try_from(leaf_profile(Usage::ServerAuth, settings.tunnels.cert_days))?;
    let authority = Authority::new(&ca.issuing, Arc::new(ca.key), Arc::new(AwsLc), profile, KeyPolicy::new())?;
    if !authority.permits(&zone) {
        bail!(
            "the certificate authority in {} may not sign for the zone {zone}: \
             use the zone that it was made for, or another data directory",
            settings.general.data_dir.join("ca").display()
        );
    }
    Ok(authority)
}

fn open_ca(path: &Path, zone: &DnsName, passphrase: Option<&Passphrase>) -> anyhow::Result<CaDir> {
    if path.exists() {
        // What is there is opened at any time: tunnels that are served have to be served on. But
        // what would be recorded with a clock like that could not be told from what is to come.
        ca_dir::check_clock(now())?;
        return CaDir::open(path, passphrase).context("cannot use the certificate authority");
    }
    let ca = CaDir::create(path, zone, passphrase, now()).context("cannot make the certificate authority")?;
    tracing::info!(root = %path.join(ca_dir::ROOT_CERTIFICATE).display(), "made a certificate authority; clients must trust its root");
    Ok(ca)
}

/// No certificate may outlive its issuer, so signing ends before the issuer does. What is
/// out may be good for a while, so that an authority whose time is over is no reason to stop.
fn warn_of_end(validity: &Validity, issuer_not_after: Time, cert_days: u32) {
    let days_left = (issuer_not_after.unix() - now().unix()) / 86_400;
    match validity.check(now()) {
        Err(error @ CaDirError::Expired { .. }) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the certificate authority has expired: nothing is signed"
            );
        }
        Err(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the certificate authority cannot be used at this time"
            );
        }
        Ok(()) if days_left < 2 * i64::from(cert_days) => tracing::warn!(
            days_left,
            "the issuing certificate ends soon; {cert_days} days before its end nothing is signed any more: renew it"
        ),
        Ok(()) => {}
    }
}

/// `ADIT_CA_PASSPHRASE`, or the first line of the file that
/// `ADIT_CA_PASSPHRASE_FILE` names.
pub(crate) fn passphrase() -> anyhow::Result<Option<Passphrase>> {
    match (secret_variable("ADIT_CA_PASSPHRASE")?, std::env::var_os("ADIT_CA_PASSPHRASE_FILE")) {
        (Some(_), Some(_)) => bail!("ADIT_CA_PASSPHRASE and ADIT_CA_PASSPHRASE_FILE are both set: set one"),
        (Some(text), None) => Passphrase::new(text).map(Some).context("ADIT_CA_PASSPHRASE"),
        (None, Some(path)) => {
            let path = Path::new(&path);
            let text = fs::read_to_string(path)
                .with_context(|| format!("ADIT_CA_PASSPHRASE_FILE: cannot read {}", path.display()))?;
            let passphrase = Passphrase::from_file_text(&text);
            passphrase.map(Some).with_context(|| format!("ADIT_CA_PASSPHRASE_FILE: {}", path.display()))
        }
        (None, None) => Ok(None),
    }
}

fn chosen_key() -> anyhow::Result<Option<ApiKeySecret>> {
    let Some(text) = secret_variable("ADIT_BOOTSTRAP_API_KEY")? else { return Ok(None) };
    text.parse().map(Some).context("ADIT_BOOTSTRAP_API_KEY")
}

/// The secret in a variable, or in the file that the variable with `_FILE` at its end names.
pub(crate) fn secret(name: &str) -> anyhow::Result<Option<String>> {
    match (secret_variable(name)?, std::env::var_os(format!("{name}_FILE"))) {
        (Some(_), Some(_)) => bail!("{name} and {name}_FILE are both set: set one"),
        (Some(text), None) => Ok(Some(text)),
        (None, Some(path)) => {
            let path = Path::new(&path);
            let text = fs::read_to_string(path);
            text.map(Some).with_context(|| format!("{name}_FILE: cannot read {}", path.display()))
        }
        (None, None) => Ok(None),
    }
}

/// Its value is never part of an error.
fn secret_variable(name: &str) -> anyhow::Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) if value.is_empty() => bail!("{name} is empty: unset it, or set a value"),
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => bail!("{name} is not UTF-8"),
    }
}

/// Writes the first admin key where only the owner reads it, and shows it
/// once to whoever sits at the terminal.
fn hand_over(key: &ApiKeySecret, path: &Path) -> anyhow::Result<()> {
    let written = || -> std::io::Result<()> {
        let temporary = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        writeln!(file, "{}", key.expose())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    };
    written().with_context(|| format!("cannot write the admin API key to {}", path.display()))?;
    tracing::info!(file = %path.display(), "the first admin API key is in this file");
    // A log collector is no place for a secret; a person's terminal is.
    if std::io::stdout().is_terminal() {
        println!("admin API key (shown once): {}", key.expose());
    }
    Ok(())
}
