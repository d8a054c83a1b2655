//! The certificates API: its directory before a port is bound, its listener,
//! and the way back in for an admin who lost the key.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use panel::setup::{self, AdminReset, SERVER_CERTIFICATE, SERVER_KEY};
use panel::{Listener, Nginx, Panel, Parts};
use store::{Store, SystemClock};

use crate::pem::Pair;
use crate::reload::{PanelCertificate, warned};
use crate::settings::Settings;

/// A panel, and how connections to it come in.
pub(crate) struct Served {
    pub(crate) panel: Arc<Panel>,
    pub(crate) listener: Listener,
    pub(crate) address: SocketAddr,
    /// Of the listener, if TLS ends here.
    pub(crate) certificate: Option<PanelCertificate>,
}

/// Opens the panel, making its directory if there is none; `None` if it is not
/// to be served.
pub(crate) async fn open(settings: &Settings, store: &Arc<dyn Store>) -> anyhow::Result<Option<Served>> {
    let Some(address) = settings.panel.listen.0.0 else { return Ok(None) };
    let host = reachable(address.ip());
    let (directory, config) = (&settings.panel.pki_dir, &settings.panel.config);
    if let Some((user, _)) = other_owner(directory)? {
        bail!(
            "{} (pki_dir) belongs to the user with the number {user}, who could make root write elsewhere: \
             run the server as that user",
            directory.display()
        );
    }
    if !directory.exists() {
        tracing::info!(directory = %directory.display(), keys = %settings.panel.keys.0, "making the panel's authority and the admin's bundle");
    }
    let (zone, making) = (settings.general.zone.0.as_str(), settings.panel.making());
    let is_new = setup::ensure(directory, config, host, zone, making, Timestamp::now())
        .context("cannot make the panel's directory")?;
    if settings.panel.tls_cert.is_none() && settings.panel.proxy.is_none() {
        setup::ensure_server_certificate(directory, config, host, Timestamp::now())
            .context("cannot make the panel's server certificate")?;
    }
    let parts = Parts {
        pki_dir: directory.clone(),
        config: config.clone(),
        store: Arc::<dyn Store>::clone(store),
        making,
        capabilities: settings.panel.capabilities.clone(),
        programs: settings.panel.programs(),
        is_proxied: settings.panel.proxy.is_some(),
        clock: Arc::new(SystemClock),
    };
    let panel = Panel::open(parts).await.with_context(|| format!("cannot use {} (pki_dir)", directory.display()))?;
    if is_new {
        let bundle = directory.join("client.p12");
        tracing::info!(bundle = %bundle.display(), "the panel's admin authenticates with this; its password is in .p12-password beside it");
    }
    let (listener, certificate) = listener(settings, &panel)?;
    Ok(Some(Served { panel: Arc::new(panel), listener, address, certificate }))
}

fn listener(settings: &Settings, panel: &Panel) -> anyhow::Result<(Listener, Option<PanelCertificate>)> {
    if let Some(proxy) = settings.panel.proxy {
        return Ok((Listener::Proxied(proxy), None));
    }
    let pair = warned(pair(settings)?, &certificate_path(settings));
    let config = panel::tls(pair.chain.clone(), pair.key.clone_key(), panel.ca_der())?;
    let mut config = Arc::unwrap_or_clone(config);
    let certificate = PanelCertificate::new(&mut config, pair)?;
    let listener =
        Listener::Tls { config: Arc::new(config), authority: panel.ca_der().into(), clock: Arc::new(SystemClock) };
    Ok((listener, Some(certificate)))
}

fn certificate_path(settings: &Settings) -> PathBuf {
    settings.panel.tls_cert.clone().unwrap_or_else(|| settings.panel.pki_dir.join(SERVER_CERTIFICATE))
}

/// The certificate of the panel's port, and its key.
pub(crate) fn pair(settings: &Settings) -> anyhow::Result<Pair> {
    let key = settings.panel.tls_key.clone().unwrap_or_else(|| settings.panel.pki_dir.join(SERVER_KEY));
    Pair::read(("panel_tls_cert", &certificate_path(settings)), ("panel_tls_key", &key))
}

/// Makes the admin a new bundle and says where it is. Its password goes to a
/// file, not to a terminal that others may read back.
pub(crate) async fn reset_admin(settings: &Settings, files_only: bool) -> anyhow::Result<()> {
    let (directory, config) = (&settings.panel.pki_dir, &settings.panel.config);
    crate::backup::require_restored(&settings.general.data_dir)?;
    let done = match other_owner(directory)? {
        Some(owner) => reset_as(owner)?,
        None => {
            let reset = setup::reset_admin(directory, config, settings.panel.making(), Timestamp::now())
                .await
                .with_context(|| format!("cannot reset the admin of {} (pki_dir)", directory.display()))?;
            crate::print(&words(settings, &reset))?;
            true
        }
    };
    anyhow::ensure!(done, "the admin of {} (pki_dir) was not reset", directory.display());
    if files_only {
        return Ok(());
    }
    match settings.panel.programs().reload_nginx().await {
        Nginx::Reloaded if other_owner(directory)?.is_some() => {
            // Root writes nothing in another's directory; the server's next start tells nginx once more.
        }
        Nginx::Reloaded => setup::nginx_was_told(directory)
            .with_context(|| format!("cannot write in {} (pki_dir)", directory.display()))?,
        Nginx::TestFailed => eprintln!("api-server: warning: nginx was not reloaded: its configuration test failed"),
        Nginx::ReloadFailed => eprintln!("api-server: warning: nginx could not be reloaded"),
    }
    Ok(())
}

/// Whose directory it is, if root runs and it is another's. Links that its
/// owner lays there must not lead root elsewhere.
pub(crate) fn other_owner(directory: &Path) -> anyhow::Result<Option<(u32, u32)>> {
    let metadata = match std::fs::metadata(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.with_context(|| format!("cannot use {} (pki_dir)", directory.display()))?,
    };
    let is_others = rustix::process::geteuid().is_root() && metadata.uid() != 0;
    Ok(is_others.then(|| (metadata.uid(), metadata.gid())))
}

/// The same command as the directory's owner, with root's part left out.
fn reset_as((user, group): (u32, u32)) -> anyhow::Result<bool> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let status = Command::new(program)
        .args(std::env::args_os().skip(1))
        .arg("--files-only")
        .uid(user)
        .gid(group)
        .status()
        .with_context(|| format!("cannot run this program as the directory's owner, user {user}"))?;
    Ok(status.success())
}

fn words(settings: &Settings, reset: &AdminReset) -> String {
    let port = settings.panel.listen.0.0.map_or(9292, |address| address.port());
    let host = if reset.ip.is_empty() { "127.0.0.1" } else { &reset.ip };
    let before = match &reset.revoked {
        Some(serial) => format!("the one before is revoked, serial {serial}"),
        None => "there was none before to be revoked".to_owned(),
    };
    format!(
        "The admin has a new certificate; {before}.

  bundle:   {bundle}
  password: in {password}
  panel:    https://{host}:{port}

Copy both to the admin's device, import the bundle there, and delete the copies:
  macOS     double-click the bundle, or: security import client.p12
  Linux     browser settings, certificates, import
  curl      curl -k --cert-type P12 --cert client.p12:PASSWORD https://{host}:{port}/api/certs
",
        bundle = reset.bundle.display(),
        password = reset.password.display(),
    )
}

/// Where clients on this host reach a listener of all addresses.
pub(crate) fn reachable(address: IpAddr) -> IpAddr {
    if address.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address }
}
