//! The use cases. No HTTP here: a test, or another front end, calls them as
//! the handlers do.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use serde_json::Map;
use store::{ClientCertificate, Grace, Store};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::authority::{ClientAuthority, Identity, Issued, MAX_CSR, Making};
use crate::directory::{CLIENT_CERTIFICATE, CLIENT_KEY, CLIENT_P12, Directory, P12_PASSWORD, Paths};
use crate::error::Error;
use crate::files;
use crate::identity::{self, AgentCaller, Caller, Denied, Presented};
use crate::programs::{Nginx, Programs};
use crate::secret::{self, Secret};
use crate::state::{
    Admin, AdminAuthMode, Agent, BASE_CAPABILITY, Config, Edit, EnrollmentMethod, Grant, Mode, Revocation, Serial,
    State, Token, TokenHash, milliseconds,
};

/// How long a token can be used.
const TOKEN_LIFETIME: SignedDuration = SignedDuration::from_mins(10);
/// How long a token is remembered.
const TOKEN_MEMORY: SignedDuration = SignedDuration::from_mins(60);
/// How long after a rotation the old certificate may fetch the new bundle.
const GRACE: SignedDuration = SignedDuration::from_mins(10);
/// The admin's common name.
pub(crate) const ADMIN: &str = "admin";

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The certificates API of one directory.
pub struct Panel {
    directory: Directory,
    authority: Arc<ClientAuthority>,
    store: Arc<dyn Store>,
    making: Making,
    capabilities: Vec<String>,
    programs: Programs,
    clock: Clock,
    grace: Mutex<Option<Grace>>,
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

/// The admin's new bundle, and whether nginx took notice.
#[derive(Debug)]
pub struct Rotated {
    /// The bundle.
    pub bundle: NewBundle,
    /// What nginx said.
    pub nginx: Nginx,
}

/// A right to enrol.
#[derive(Debug)]
pub struct NewToken {
    /// Told once; a hash of it is kept.
    pub token: Secret,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// What a panel is made of.
pub struct Parts {
    /// The directory, which must be there.
    pub pki_dir: PathBuf,
    /// `panel.json`, which must be there.
    pub config: PathBuf,
    /// Where the rest is kept.
    pub store: Arc<dyn Store>,
    /// How keys and bundles are made.
    pub making: Making,
    /// Capabilities that may be granted beyond the seven.
    pub capabilities: Vec<String>,
    /// The programs around it.
    pub programs: Programs,
    /// The time.
    pub clock: Clock,
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
        let Parts { pki_dir, config, store, making, capabilities, programs, clock } = parts;
        let paths = Paths { root: pki_dir, config };
        let now = clock();
        store.forget_client_certificates(micros(now)).await.map_err(Error::internal)?;
        let certificates = store.client_certificates().await.map_err(Error::internal)?;
        let keys = certificates
            .into_iter()
            .filter_map(|certificate| Some((Serial::parse(&certificate.serial)?, certificate.key)))
            .collect();
        let grace = store.grace().await.map_err(Error::internal)?;
        let authority = Arc::new(ClientAuthority::open(&paths)?);
        let make_crl = {
            let (authority, clock) = (Arc::clone(&authority), Arc::clone(&clock));
            Box::new(move |revoked: &_| authority.revocation_list(revoked, clock()))
        };
        let directory = Directory::open(paths, keys, make_crl, step).map_err(Error::internal)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let panel = Self {
            directory,
            authority,
            store,
            making,
            capabilities,
            programs,
            clock,
            grace: Mutex::new(grace.filter(|grace| grace.until > micros(now))),
            makers: Arc::new(Semaphore::new(cores)),
        };
        if panel.config().is_ok_and(|config| config.two_factor) {
            tracing::warn!(
                "panel.json asks for two factors, which this server does not know: certificates alone count"
            );
        }
        panel.renew_crl().await;
        Ok(panel)
    }

    /// Signs `crl.pem` anew, though nothing was revoked, so that it does not
    /// run out. A missing key is told and no reason to stop.
    pub async fn renew_crl(&self) {
        if let Err(error) = self.directory.change(|_| Ok((vec![Edit::RenewCrl], ()))).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot renew crl.pem");
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
        let now = (self.clock)();
        let presented = presented.filter(|presented| presented.is_valid_at(now)).ok_or(Denied::NoCertificate)?;
        let state = self.directory.state();
        if state.revoked().map_err(Error::from)?.contains(&presented.serial) {
            let may_fetch = for_download && self.in_grace(&state, &presented.serial, now);
            return if may_fetch { Ok(Caller::Admin(presented.serial.clone())) } else { Err(Denied::Revoked) };
        }
        let caller = identity::recognize(presented, &state)?;
        if let Caller::Admin(serial) = &caller {
            self.end_grace_of(serial);
        }
        Ok(caller)
    }

    fn in_grace(&self, state: &State, serial: &Serial, now: Timestamp) -> bool {
        let grace = self.grace.lock().unwrap_or_else(PoisonError::into_inner);
        let current = state.admin.as_ref().map(|admin| admin.serial.to_string());
        grace.as_ref().is_some_and(|grace| {
            grace.until > micros(now)
                && Some(&grace.successor) == current.as_ref()
                && grace.serials.contains(&serial.to_string())
        })
    }

    /// For the certificate that counts now, which may not be the one of whoever
    /// comes last here.
    async fn begin_grace(&self, begun: Grace) {
        {
            let state = self.directory.state();
            let current = state.admin.as_ref().map(|admin| admin.serial.to_string());
            if current.as_ref() != Some(&begun.successor) {
                return;
            }
            *self.grace.lock().unwrap_or_else(PoisonError::into_inner) = Some(begun.clone());
        }
        if let Err(error) = self.store.set_grace(begun).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "a restart will end the old certificate's grace");
        }
    }

    /// The new certificate is in use: the old one needs no more of it.
    fn end_grace_of(&self, successor: &Serial) {
        let mut grace = self.grace.lock().unwrap_or_else(PoisonError::into_inner);
        if grace.as_ref().is_some_and(|grace| grace.successor == successor.to_string()) {
            *grace = None;
            let (store, successor) = (Arc::clone(&self.store), successor.to_string());
            tokio::spawn(async move {
                if let Err(error) = store.end_grace(successor).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot forget a superseded certificate");
                }
            });
        }
    }

    /// Makes the admin a new key and certificate; the old ones are revoked.
    ///
    /// `caller` is the certificate that asks, which need not be the one in the
    /// directory.
    ///
    /// # Errors
    ///
    /// [`Error::NoBundle`], [`Error::CaKeyMissing`], [`Error::Superseded`].
    pub async fn rotate(&self, caller: Serial) -> Result<Rotated, Error> {
        require_mode(&self.directory.state(), AdminAuthMode::P12, Error::NoBundle)?;
        let Identity { issued, key_pem, p12, password } = self.make(ADMIN).await?;
        self.remember(&issued).await?;
        let now = (self.clock)();
        let bundle = NewBundle { serial: issued.serial.clone(), expires_at: issued.not_after, password };
        let admin = Admin { serial: issued.serial, key: issued.key };
        let paths = self.directory.paths().clone();
        let kept = Zeroizing::new(bundle.password.expose().as_bytes().to_vec());
        let superseded = self
            .directory
            .change(move |state| {
                require_mode(state, AdminAuthMode::P12, Error::NoBundle)?;
                // Of rotations at once each has its turn, though the first revokes who asks for the
                // others. A reset or an upgrade ends them.
                if !state.superseded.contains(&caller) {
                    require_valid(state, &caller)?;
                }
                let mut superseded = vec![caller];
                superseded.extend(state.admin.as_ref().map(|admin| admin.serial.clone()));
                superseded.dedup();
                let mut edits = back_up(&paths)?;
                let revoke = |serial: &Serial| revocation(serial, "admin (rotated)", now);
                edits.extend(superseded.iter().map(revoke));
                edits.push(Edit::RotateAdmin(admin, superseded.clone()));
                edits.extend(identity_files(key_pem, issued.pem.into_bytes(), p12, kept));
                Ok((edits, superseded))
            })
            .await?;
        let grace = Grace {
            serials: superseded.iter().map(Serial::to_string).collect(),
            successor: bundle.serial.to_string(),
            until: micros(now + GRACE),
        };
        self.begin_grace(grace).await;
        tracing::info!(serial = %bundle.serial, "the admin's certificate was rotated");
        Ok(Rotated { bundle, nginx: self.programs.reload_nginx().await })
    }

    /// The admin's bundle.
    ///
    /// # Errors
    ///
    /// [`Error::NoBundle`], [`Error::NoClientCertificate`].
    pub async fn admin_bundle(&self) -> Result<Zeroizing<Vec<u8>>, Error> {
        require_mode(&self.directory.state(), AdminAuthMode::P12, Error::NoBundle)?;
        read_secret(self.directory.paths().at(CLIENT_P12)).await?.ok_or(Error::NoClientCertificate)
    }

    /// How the admin authenticates.
    ///
    /// # Errors
    ///
    /// When `panel.json` cannot be read.
    pub fn admin_auth_mode(&self) -> Result<AdminAuthMode, Error> {
        Ok(self.directory.state().config()?.admin_auth_mode)
    }

    /// Signs the admin's own key; from then on there is no bundle, and what
    /// could authenticate before is revoked and deleted.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyHardwareBound`] and those of a request that is not signed.
    pub async fn upgrade_admin(&self, csr: String, caller: Serial) -> Result<NewCertificate, Error> {
        require_mode(&self.directory.state(), AdminAuthMode::P12, Error::AlreadyHardwareBound)?;
        let issued = self.sign(csr, ADMIN.to_owned()).await?;
        self.remember(&issued).await?;
        let now = (self.clock)();
        let certificate = new_certificate(&issued);
        self.directory
            .change(move |state| {
                require_mode(state, AdminAuthMode::P12, Error::AlreadyHardwareBound)?;
                require_valid(state, &caller)?;
                require_free_key(state, &issued, None)?;
                let mut edits: Vec<_> = state
                    .admin
                    .iter()
                    .map(|admin| &admin.serial)
                    .chain([&caller])
                    .map(|serial| revocation(serial, "admin (upgraded to hardware-bound)", now))
                    .collect();
                edits.push(Edit::SetMode(AdminAuthMode::HardwareBound));
                edits.push(Edit::SetAdmin(Admin { serial: issued.serial, key: issued.key }));
                let pem = Zeroizing::new(issued.pem.into_bytes());
                edits.push(Edit::Put(CLIENT_CERTIFICATE.into(), pem, Mode::World));
                edits.extend(ADMIN_SECRETS.map(|name| Edit::Remove(name.into())));
                Ok((edits, ()))
            })
            .await?;
        tracing::info!(serial = %certificate.serial, "the admin's key is hardware-bound now");
        // That nginx takes no notice is no concern of who asked: the authority is the same.
        self.programs.reload_nginx().await;
        Ok(certificate)
    }

    /// Makes an agent's key and certificate.
    ///
    /// # Errors
    ///
    /// [`Error::AgentExists`], [`Error::CaKeyMissing`].
    pub async fn create_agent(&self, grant: Grant, by: Serial) -> Result<NewBundle, Error> {
        let directory = agent_directory(&grant.label)?;
        require_free_label(&self.directory.state(), &grant.label)?;
        let Identity { issued, key_pem, p12, password } = self.make(&common_name(&grant.label)).await?;
        self.remember(&issued).await?;
        let now = (self.clock)();
        let bundle = NewBundle { password, serial: issued.serial.clone(), expires_at: issued.not_after };
        self.directory
            .change(move |state| {
                require_valid(state, &by)?;
                require_free_label(state, &grant.label)?;
                let files = vec![
                    (CLIENT_KEY, key_pem, Mode::Owner),
                    (CLIENT_CERTIFICATE, Zeroizing::new(issued.pem.clone().into_bytes()), Mode::World),
                    (CLIENT_P12, p12, Mode::Owner),
                ];
                let label = grant.label.clone();
                let edits = vec![
                    Edit::RememberKey(issued.serial.clone(), issued.key),
                    Edit::AddAgent(agent(grant, EnrollmentMethod::P12, &issued, now)),
                    Edit::PutDirectory(directory, files),
                ];
                Ok((edits, label))
            })
            .await
            .map(|label| tracing::info!(label, serial = %bundle.serial, "made an agent's bundle"))?;
        Ok(bundle)
    }

    /// Every agent that ever was, in the order of issuance.
    ///
    /// # Errors
    ///
    /// When the registry cannot be read.
    pub fn agents(&self) -> Result<Vec<Agent>, Error> {
        Ok(self.directory.state().agents()?.to_vec())
    }

    /// An agent's bundle, as long as its certificate counts.
    ///
    /// # Errors
    ///
    /// [`Error::AgentNotFound`].
    pub async fn agent_bundle(&self, label: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        let not_found = || Error::AgentNotFound(label.to_owned());
        let method = self.directory.state().active(label)?.map(|agent| agent.enrollment_method.clone());
        if method != Some(EnrollmentMethod::P12) {
            return Err(not_found());
        }
        let bundle = self.directory.paths().at(agent_directory(label)?).join(CLIENT_P12);
        read_secret(bundle).await?.ok_or_else(not_found)
    }

    /// Changes what an agent may do, from its next request on.
    ///
    /// # Errors
    ///
    /// [`Error::AgentNotFound`].
    pub async fn set_capabilities(&self, label: String, capabilities: Vec<String>, by: Serial) -> Result<(), Error> {
        self.update_agent(label, by, |agent| agent.capabilities = capabilities).await
    }

    /// Changes the sites that an agent may use, from its next request on.
    ///
    /// # Errors
    ///
    /// [`Error::AgentNotFound`].
    pub async fn set_allowed_sites(&self, label: String, sites: Vec<String>, by: Serial) -> Result<(), Error> {
        self.update_agent(label, by, |agent| agent.allowed_sites = sites).await
    }

    async fn update_agent(
        &self,
        label: String,
        by: Serial,
        update: impl FnOnce(&mut Agent) + Send + 'static,
    ) -> Result<(), Error> {
        self.directory
            .change(move |state| {
                require_valid(state, &by)?;
                let mut agent = state.active(&label)?.ok_or(Error::AgentNotFound(label))?.clone();
                update(&mut agent);
                Ok((vec![Edit::UpdateAgent(agent.serial.clone(), agent)], ()))
            })
            .await
    }

    /// Revokes an agent's certificate, and those of agents that it vouched for.
    ///
    /// # Errors
    ///
    /// [`Error::AgentNotFound`].
    pub async fn revoke(&self, label: String, by: Serial) -> Result<(), Error> {
        let now = (self.clock)();
        self.directory
            .change(move |state| {
                require_valid(state, &by)?;
                if state.active(&label)?.is_none() {
                    return Err(Error::AgentNotFound(label));
                }
                let is_meant = |agent: &&Agent| {
                    !agent.revoked && (agent.label == label || agent.delegated_by.as_deref() == Some(&label))
                };
                let mut edits = Vec::new();
                for agent in state.agents()?.iter().filter(is_meant) {
                    edits.push(revocation(&agent.serial, &common_name(&agent.label), now));
                    let mut revoked = agent.clone();
                    (revoked.revoked, revoked.revoked_at) = (true, Some(milliseconds(now)));
                    edits.push(Edit::UpdateAgent(agent.serial.clone(), revoked));
                    // A label that others wrote and that is none has no directory of ours.
                    edits.extend(agent_directory(&agent.label).ok().map(Edit::Remove));
                }
                Ok((edits, label))
            })
            .await
            .map(|label| tracing::info!(label, "revoked an agent"))
    }

    /// Makes a token with which an agent may enrol once.
    ///
    /// # Errors
    ///
    /// [`Error::AgentExists`], then [`Error::TokenExists`].
    pub async fn create_token(&self, grant: Grant, by: Serial) -> Result<NewToken, Error> {
        let token = secret::enrollment_token()?;
        let hash = TokenHash::of(token.expose());
        let now = (self.clock)();
        let expires_at = now + TOKEN_LIFETIME;
        self.directory
            .change(move |state| {
                require_valid(state, &by)?;
                require_free_label(state, &grant.label)?;
                if state.has_pending_token(&grant.label, now)? {
                    return Err(Error::TokenExists(grant.label));
                }
                let forget = Edit::ForgetTokens(now - TOKEN_MEMORY);
                Ok((vec![forget, Edit::AddToken(Token::new(hash, grant, now, expires_at))], ()))
            })
            .await?;
        Ok(NewToken { token, expires_at })
    }

    /// Drops the token of a label; was there one that could be used?
    ///
    /// # Errors
    ///
    /// When the tokens cannot be read or written.
    pub async fn drop_token(&self, label: String, by: Serial) -> Result<bool, Error> {
        let now = (self.clock)();
        self.directory
            .change(move |state| {
                require_valid(state, &by)?;
                let was_there = state.has_pending_token(&label, now)?;
                let edits = if was_there { vec![Edit::DropTokens(label)] } else { Vec::new() };
                Ok((edits, was_there))
            })
            .await
    }

    /// Signs an agent's own key for a token. The token is used when the
    /// certificate is on record, and not before.
    ///
    /// # Errors
    ///
    /// Those of the token, then of the label, then of the request.
    pub async fn enroll(&self, token: &str, csr: String) -> Result<(Grant, NewCertificate), Error> {
        let hash = TokenHash::of(token);
        // Strangers learn nothing and cost nothing: the token is looked at before the request.
        let grant = {
            let state = self.directory.state();
            let grant = redeemable(&state, &hash, (self.clock)())?;
            if csr.len() > MAX_CSR {
                return Err(Error::CsrTooLarge);
            }
            require_free_label(&state, &grant.label)?;
            grant
        };
        let issued = self.sign(csr, common_name(&grant.label)).await?;
        self.remember(&issued).await?;
        let now = (self.clock)();
        let certificate = new_certificate(&issued);
        let grant = self
            .directory
            .change(move |state| {
                // Others may have been faster.
                let grant = redeemable(state, &hash, now)?;
                require_free_label(state, &grant.label)?;
                require_free_key(state, &issued, None)?;
                let edits = vec![
                    Edit::UseToken(hash, now),
                    Edit::ForgetTokens(now - TOKEN_MEMORY),
                    Edit::RememberKey(issued.serial.clone(), issued.key),
                    Edit::AddAgent(agent(grant.clone(), EnrollmentMethod::HardwareBound, &issued, now)),
                ];
                Ok((edits, grant))
            })
            .await?;
        tracing::info!(label = grant.label, serial = %certificate.serial, "an agent enrolled");
        Ok((grant, certificate))
    }

    /// Signs the key that an agent made itself, in place of what it has.
    ///
    /// # Errors
    ///
    /// [`Error::AgentNotFound`], [`Error::Superseded`] and those of a request
    /// that is not signed.
    pub async fn upgrade_agent(&self, caller: AgentCaller, csr: String) -> Result<NewCertificate, Error> {
        let AgentCaller { label, serial, .. } = caller;
        if csr.len() > MAX_CSR {
            return Err(Error::CsrTooLarge);
        }
        if self.directory.state().active(&label)?.is_none() {
            return Err(Error::AgentNotFound(label));
        }
        let issued = self.sign(csr, common_name(&label)).await?;
        self.remember(&issued).await?;
        let now = (self.clock)();
        let certificate = new_certificate(&issued);
        self.directory
            .change(move |state| {
                let mut agent = state.active(&label)?.ok_or(Error::AgentNotFound(label))?.clone();
                if agent.serial != serial {
                    return Err(Error::Superseded);
                }
                require_free_key(state, &issued, Some(&agent.serial))?;
                let before = std::mem::replace(&mut agent.serial, issued.serial.clone());
                agent.expires_at = Some(milliseconds(issued.not_after));
                agent.enrollment_method = EnrollmentMethod::HardwareBound;
                let whose = format!("{} (upgraded to hardware-bound)", common_name(&agent.label));
                let edits = vec![
                    revocation(&before, &whose, now),
                    Edit::RememberKey(issued.serial, issued.key),
                    Edit::Remove(agent_directory(&agent.label)?),
                    Edit::UpdateAgent(before, agent),
                ];
                Ok((edits, ()))
            })
            .await?;
        Ok(certificate)
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

    /// Now.
    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    pub(crate) fn config(&self) -> Result<Config, Error> {
        Ok(self.directory.state().config()?.clone())
    }

    pub(crate) fn paths(&self) -> &Paths {
        self.directory.paths()
    }

    async fn sign(&self, csr: String, common_name: String) -> Result<Issued, Error> {
        let (authority, now) = (Arc::clone(&self.authority), (self.clock)());
        self.at_work(move || authority.sign(&csr, &common_name, now)).await
    }

    async fn make(&self, common_name: &str) -> Result<Identity, Error> {
        self.authority.check()?;
        let (authority, making, now) = (Arc::clone(&self.authority), self.making, (self.clock)());
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

/// Files with which an admin could authenticate.
const ADMIN_SECRETS: [&str; 10] = [
    CLIENT_KEY,
    CLIENT_P12,
    P12_PASSWORD,
    "client.key.bak",
    "client.crt.bak",
    "client.p12.bak",
    "client.key.new",
    "client.crt.new",
    "client.p12.new",
    "client.csr",
];

/// The admin's key, certificate, bundle and password.
pub(crate) fn identity_files(
    key_pem: Zeroizing<Vec<u8>>,
    pem: Vec<u8>,
    p12: Zeroizing<Vec<u8>>,
    password: Zeroizing<Vec<u8>>,
) -> [Edit; 4] {
    [
        Edit::Put(CLIENT_KEY.into(), key_pem, Mode::Owner),
        Edit::Put(CLIENT_CERTIFICATE.into(), Zeroizing::new(pem), Mode::World),
        Edit::Put(CLIENT_P12.into(), p12, Mode::Owner),
        Edit::Put(P12_PASSWORD.into(), password, Mode::Owner),
    ]
}

/// The admin's present files, one generation of which is kept.
pub(crate) fn back_up(paths: &Paths) -> Result<Vec<Edit>, Error> {
    let mut edits = Vec::new();
    for (name, mode) in [(CLIENT_KEY, Mode::Owner), (CLIENT_CERTIFICATE, Mode::World), (CLIENT_P12, Mode::Owner)] {
        let backup = PathBuf::from(format!("{name}.bak"));
        match std::fs::read(paths.at(name)) {
            Ok(content) => edits.push(Edit::Put(backup, Zeroizing::new(content), mode)),
            // Nothing to keep; what was kept is of another generation.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => edits.push(Edit::Remove(backup)),
            Err(error) => return Err(Error::internal(error)),
        }
    }
    Ok(edits)
}

pub(crate) fn revocation(serial: &Serial, whose: &str, now: Timestamp) -> Edit {
    Edit::Revoke(Revocation::new(serial.clone(), whose.to_owned(), now))
}

fn require_mode(state: &State, mode: AdminAuthMode, otherwise: Error) -> Result<(), Error> {
    if state.config()?.admin_auth_mode == mode { Ok(()) } else { Err(otherwise) }
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

/// What a token grants, if it can be used now.
fn redeemable(state: &State, hash: &TokenHash, now: Timestamp) -> Result<Grant, Error> {
    // Nobody could use a certificate while revocations cannot be read.
    state.revoked()?;
    let token = state.token(hash)?.filter(|token| token.created_at + TOKEN_MEMORY > now);
    let token = token.filter(|token| !token.is_delegated()).ok_or(Error::TokenUnknown)?;
    if token.used {
        return Err(Error::TokenUsed);
    }
    if now >= token.expires_at {
        return Err(Error::TokenExpired);
    }
    agent_directory(&token.label)?;
    Ok(Grant {
        label: token.label.clone(),
        capabilities: token.capabilities.clone(),
        allowed_sites: token.allowed_sites.clone(),
    })
}

fn agent(grant: Grant, enrollment_method: EnrollmentMethod, issued: &Issued, now: Timestamp) -> Agent {
    let Grant { label, capabilities, allowed_sites } = grant;
    Agent {
        label,
        serial: issued.serial.clone(),
        capabilities,
        allowed_sites,
        enrollment_method,
        created_at: Some(milliseconds(now)),
        expires_at: Some(milliseconds(issued.not_after)),
        revoked: false,
        revoked_at: None,
        delegated_by: None,
        rest: Map::new(),
    }
}

fn new_certificate(issued: &Issued) -> NewCertificate {
    NewCertificate { pem: issued.pem.clone(), serial: issued.serial.clone(), expires_at: issued.not_after }
}

fn common_name(label: &str) -> String {
    format!("agent:{label}")
}

/// A label may come from a file that others write: what is none is no path.
fn agent_directory(label: &str) -> Result<PathBuf, Error> {
    if is_label(label) { Ok(Path::new("agents").join(label)) } else { Err(Error::InvalidLabel) }
}

/// How the label of an agent begins that another one vouched for.
pub(crate) const DELEGATED: &str = "plugin-agent:";

/// A label of an agent, or of an agent that another one vouched for.
pub(crate) fn is_label(text: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty()
            && word.bytes().all(|octet| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-')
    };
    match text.strip_prefix(DELEGATED) {
        Some(rest) => rest.split_once(':').is_some_and(|(delegator, name)| is_word(delegator) && is_word(name)),
        None => is_word(text),
    }
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
