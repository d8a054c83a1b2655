//! The use cases. No HTTP here: a test, or another front end, calls them as
//! the handlers do.

mod admin;
mod agents;
mod enrollment;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use store::{ClientCertificate, ClientCertificates, Clock};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::authority::{ClientAuthority, Identity, Issued, Making};
use crate::directory::{Directory, Paths};
use crate::error::Error;
use crate::files;
use crate::grace::{self, Graces};
use crate::identity::{self, Caller, Denied, Presented};
use crate::programs::{Nginx, Programs};
use crate::reload::{self, Reloads};
use crate::secret::Secret;
use crate::state::{BASE_CAPABILITY, Config, Edit, Revocation, Serial, State};

pub use admin::Rotated;
pub(crate) use admin::{ADMIN, back_up, identity_files};
pub(crate) use agents::{DELEGATED, is_label};
pub use enrollment::NewToken;

/// What a clock says, as the lists have it.
pub(crate) fn now(clock: &dyn Clock) -> Timestamp {
    // Beyond the year 9999 it stands still, as X.509 does.
    Timestamp::from_microsecond(clock.now().micros()).unwrap_or(Timestamp::MAX)
}

/// The certificates API of one directory.
pub struct Panel {
    directory: Directory,
    authority: Arc<ClientAuthority>,
    store: Arc<dyn ClientCertificates>,
    making: Making,
    capabilities: Vec<String>,
    programs: Arc<Programs>,
    reloads: Reloads,
    pub(crate) graces: Graces,
    is_proxied: bool,
    clock: Arc<dyn Clock>,
    /// The admin's newest certificate that was used: what it superseded fetches nothing more.
    arrived: Mutex<Option<Serial>>,
    /// Keys and signatures that are made at once: they take a processor each.
    makers: Arc<Semaphore>,
}

/// A bundle's password, and what the certificate in it says.
#[derive(Debug)]
pub struct NewBundle {
    /// Told once and not kept, but for the admin's.
    pub password: Secret,
    /// Of the certificate.
    pub serial: Serial,
    /// The certificate's notAfter.
    pub expires_at: Timestamp,
}

/// A certificate for a key that its owner made.
#[derive(Debug)]
pub struct NewCertificate {
    /// The certificate.
    pub pem: String,
    /// Of the certificate.
    pub serial: Serial,
    /// The certificate's notAfter.
    pub expires_at: Timestamp,
}

/// Why a panel cannot answer everybody.
#[derive(Debug, thiserror::Error)]
pub enum Unready {
    /// The authority's certificate has ended: nobody is let in.
    #[error("ca.crt expired on {0}: every certificate that it signed has ended with it")]
    Expired(Timestamp),
    /// A file cannot be used. The cause names it.
    #[error("the directory cannot be used")]
    Directory(#[source] Error),
}

impl Unready {
    /// What fails, for whoever may not know more of it.
    pub fn in_short(&self) -> &'static str {
        match self {
            Self::Expired(_) => "the panel's authority has expired",
            Self::Directory(_) => "the panel's directory cannot be read or written",
        }
    }
}

/// What a panel is made of.
pub struct Parts {
    /// The directory, which must be there.
    pub pki_dir: PathBuf,
    /// `panel.json`, which must be there.
    pub config: PathBuf,
    /// Where the rest is kept.
    pub store: Arc<dyn ClientCertificates>,
    /// How keys and bundles are made.
    pub making: Making,
    /// Capabilities that may be granted beyond the seven.
    pub capabilities: Vec<String>,
    /// The programs around it.
    pub programs: Programs,
    /// Does a proxy end TLS, which refuses whomever `crl.pem` names?
    pub is_proxied: bool,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// The capabilities that every panel knows.
const CAPABILITIES: [&str; 7] =
    [BASE_CAPABILITY, "tunnels:write", "services:read", "services:write", "system:read", "sites:read", "sites:write"];

impl Panel {
    /// Takes a directory over as it is.
    ///
    /// # Errors
    ///
    /// When `ca.crt` is missing or wrong, or the directory cannot be written.
    /// Lists that cannot be read fail the requests that need them.
    pub async fn open(parts: Parts) -> Result<Self, Error> {
        Self::open_stepwise(parts, files::go_on()).await
    }

    /// As [`Panel::open`], with a say in every step that touches the disk.
    pub(crate) async fn open_stepwise(parts: Parts, step: files::Step) -> Result<Self, Error> {
        let Parts { pki_dir, config, store, making, capabilities, programs, is_proxied, clock } = parts;
        let paths = Paths::new(&pki_dir, &config);
        let now = now(&*clock);
        store.forget_client_certificates(micros(now)).await.map_err(Error::internal)?;
        let certificates = store.client_certificates().await.map_err(Error::internal)?;
        let keys = certificates
            .into_iter()
            .filter_map(|certificate| Some((Serial::parse(&certificate.serial)?, certificate.key)))
            .collect();
        let authority = Arc::new(ClientAuthority::open(&paths)?);
        let make_crl = {
            let (authority, clock) = (Arc::clone(&authority), Arc::clone(&clock));
            Box::new(move |state: &State, before: Option<&[u8]>| {
                authority.revocation_list(
                    state.revoked()?,
                    grace::withheld(state, is_proxied),
                    before,
                    self::now(&*clock),
                )
            })
        };
        let directory = Directory::open(paths, keys, make_crl, step).map_err(Error::internal)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let programs = Arc::new(programs);
        let panel = Self {
            reloads: Reloads::start(&directory, Arc::clone(&programs)),
            graces: Graces::start(&directory, is_proxied, Arc::clone(&clock)),
            is_proxied,
            directory,
            authority,
            store,
            making,
            capabilities,
            programs,
            clock,
            arrived: Mutex::default(),
            makers: Arc::new(Semaphore::new(cores)),
        };
        if panel.config().is_ok_and(|config| config.two_factor) {
            tracing::warn!(
                "panel.json asks for two factors, which this server does not know: certificates alone count"
            );
        }
        if let Some(not_after) = panel.authority.expired(now) {
            let error = Unready::Expired(not_after);
            tracing::error!(error = &error as &dyn std::error::Error, "nobody is let in");
        }
        panel.renew_crl().await;
        Ok(panel)
    }

    /// Signs `crl.pem` anew, though nothing was revoked, so that it does not
    /// run out; a proxy hears of it now and then. A missing key is told and no reason to stop.
    pub async fn renew_crl(&self) {
        let (paths, now) = (self.paths().clone(), self.now());
        let is_proxied = self.is_proxied;
        let renewed = self.directory.change(move |_| {
            let mut edits = vec![Edit::RenewCrl];
            if is_proxied {
                edits.extend(reload::of_renewed_crl(&paths, now)?);
            }
            Ok((edits, ()))
        });
        if let Err(error) = renewed.await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot renew crl.pem");
        }
    }

    /// Waits until all that was begun is on disk, what nobody waits for among it: before the
    /// program ends.
    pub async fn finish(&self) {
        if let Err(error) = self.directory.change(|_| Ok((Vec::new(), ()))).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the last changes may not be written");
        }
    }

    /// Who is it that presents this?
    ///
    /// `for_download`: is it the admin's bundle that is asked for? A
    /// certificate that was just superseded may fetch it.
    ///
    /// # Errors
    ///
    /// [`Denied`] says why it is nobody.
    pub fn authenticate(&self, presented: Option<&Presented>, for_download: bool) -> Result<Caller, Denied> {
        let now = self.now();
        let presented = presented.filter(|presented| presented.is_valid_at(now)).ok_or(Denied::NoCertificate)?;
        let state = self.directory.state();
        if state.revoked().map_err(Error::from)?.contains(&presented.serial) {
            let may_fetch = for_download && self.in_grace(&state, &presented.serial, now);
            return if may_fetch { Ok(Caller::Admin(presented.serial.clone())) } else { Err(Denied::Revoked) };
        }
        let caller = identity::recognize(presented, &state)?;
        if let Caller::Admin(serial) = &caller {
            self.end_grace_of(&state, serial);
        }
        Ok(caller)
    }

    /// Can everybody be answered: is the directory readable and writable, and the authority's
    /// time not over?
    ///
    /// # Errors
    ///
    /// [`Unready`].
    pub async fn check(&self) -> Result<(), Unready> {
        let expired = self.authority.expired(self.now());
        self.directory.check().await.map_err(Unready::Directory)?;
        expired.map_or(Ok(()), |not_after| Err(Unready::Expired(not_after)))
    }

    /// May this capability be granted?
    pub fn is_capability(&self, capability: &str) -> bool {
        CAPABILITIES.contains(&capability) || self.capabilities.iter().any(|extra| extra == capability)
    }

    /// `ca.crt`, to the letter.
    pub fn ca_pem(&self) -> &str {
        self.authority.pem()
    }

    /// The authority's certificate in DER.
    pub fn ca_der(&self) -> &[u8] {
        self.authority.certificate()
    }

    /// The programs around the panel.
    pub(crate) fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Notes that nginx will have to load files again. Where that cannot be
    /// written a kill would leave it untold, which is no reason to stop.
    pub(crate) async fn mark_reload(&self) {
        let marked = async { self.directory.change(|_| Ok((vec![reload::mark()?], ()))).await };
        if let Err(error) = marked.await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot note that nginx is to be reloaded");
        }
    }

    /// Has nginx load files again; what does it say?
    pub(crate) async fn tell_nginx(&self) -> Nginx {
        match self.directory.change(|_| Ok((vec![Edit::TellNginx], ()))).await {
            Ok(()) => self.reloads.told().await,
            Err(_) => self.programs.reload_nginx().await,
        }
    }

    /// Now.
    pub(crate) fn now(&self) -> Timestamp {
        now(&*self.clock)
    }

    pub(crate) fn config(&self) -> Result<Config, Error> {
        Ok(self.directory.state().config()?.clone())
    }

    #[cfg(test)]
    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    pub(crate) fn paths(&self) -> &Paths {
        self.directory.paths()
    }

    async fn sign(&self, csr: String, common_name: String) -> Result<Issued, Error> {
        let (authority, now) = (Arc::clone(&self.authority), self.now());
        self.at_work(move || authority.sign(&csr, &common_name, now)).await
    }

    async fn make(&self, common_name: &str) -> Result<Identity, Error> {
        self.authority.check()?;
        let (authority, making, now) = (Arc::clone(&self.authority), self.making, self.now());
        let common_name = common_name.to_owned();
        self.at_work(move || authority.make(&common_name, making, now)).await
    }

    /// Runs what takes a processor for a while where it keeps nobody waiting.
    async fn at_work<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, Error> + Send + 'static,
    {
        let place = Arc::clone(&self.makers).acquire_owned().await.map_err(Error::internal)?;
        let work = move || {
            let _place = place;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
    }

    /// Puts a certificate on record before anything is made of it: who has
    /// which key must be known also after a restart.
    async fn remember(&self, issued: &Issued) -> Result<(), Error> {
        let certificate = ClientCertificate {
            serial: issued.serial.to_string(),
            key: issued.key,
            not_after: micros(issued.not_after),
        };
        self.store.record_client_certificate(certificate).await.map_err(Error::internal)
    }
}

pub(crate) fn revocation(serial: &Serial, whose: &str, now: Timestamp) -> Edit {
    Edit::Revoke(Revocation::new(serial.clone(), whose.to_owned(), now))
}

/// Whoever asked was let in a while ago: a key takes seconds to make.
fn require_valid(state: &State, by: &Serial) -> Result<(), Error> {
    if state.revoked()?.contains(by) { Err(Error::Superseded) } else { Ok(()) }
}

fn require_free_label(state: &State, label: &str) -> Result<(), Error> {
    match state.active(label)? {
        Some(_) => Err(Error::AgentExists(label.to_owned())),
        None => Ok(()),
    }
}

fn require_free_key(state: &State, issued: &Issued, besides: Option<&Serial>) -> Result<(), Error> {
    if state.is_key_bound(&issued.key, besides)? {
        return Err(Error::invalid_csr("the key is in another active certificate"));
    }
    Ok(())
}

fn new_certificate(issued: &Issued) -> NewCertificate {
    NewCertificate { pem: issued.pem.clone(), serial: issued.serial.clone(), expires_at: issued.not_after }
}

async fn read_secret(path: PathBuf) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    let read = move || match std::fs::read(&path) {
        Ok(content) => Ok(Some(Zeroizing::new(content))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::internal(error)),
    };
    tokio::task::spawn_blocking(read).await.map_err(Error::internal)?
}

fn micros(at: Timestamp) -> store::Timestamp {
    store::Timestamp::from_micros(at.as_microsecond())
}
