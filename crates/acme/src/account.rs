//! An account at an authority: made or restored, and what it is asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    AccountCredentials, CertificateIdentifier, ExternalAccountKey, Identifier, NewAccount, NewOrder, RevocationRequest,
};
use pki_core::Time;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::ari::{CertId, RenewalWindow, ask_again_after};
use crate::error::Error;
use crate::http::{Failure, Http, take_retry_at, with_retry_at};
use crate::name::Name;
use crate::problem::{Problem, cleaned};
use crate::settings::Settings;
use crate::store::AccountStore;

/// An authority, as we know it: settings, connections, and an account as soon as one is needed.
///
/// Making one asks nobody, so a server starts while its authority is away. Cheap to clone.
#[derive(Clone)]
pub struct Client(Arc<ClientInner>);

struct ClientInner {
    settings: Settings,
    http: Http,
    store: Arc<dyn AccountStore>,
    account: Arc<Mutex<Option<Account>>>,
}

impl Client {
    /// An authority, and where the account's key is kept.
    ///
    /// # Errors
    ///
    /// [`Error::Roots`] when there is nobody to trust.
    pub fn new(settings: Settings, store: Arc<dyn AccountStore>) -> Result<Self, Error> {
        let http = Http::new(&settings.roots, &settings.user_agent, settings.limits, Arc::clone(&settings.clock))?;
        Ok(Self(Arc::new(ClientInner { settings, http, store, account: Arc::default() })))
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// By how many seconds the authority's clock is ahead of ours, by its latest answer.
    pub fn clock_ahead(&self) -> Option<i64> {
        self.0.http.ahead()
    }

    /// The directory, read anew.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`], [`Error::Nonsense`] and others of a request.
    pub async fn directory(&self) -> Result<Directory, Error> {
        let document = self.0.http.get(&self.0.settings.directory).await?;
        serde_json::from_slice(&document).map_err(|error| {
            let url = cleaned(&self.0.settings.directory, 200);
            Error::Nonsense(cleaned(&format!("{url} is no ACME directory: {error}"), 300))
        })
    }

    /// The account: as it was stored, or a new one, which is stored before this returns.
    ///
    /// Asks the authority once, and never again while this is alive.
    ///
    /// # Errors
    ///
    /// [`Error::TermsNotAgreed`], [`Error::ExternalAccount`], [`Error::UnknownProfile`],
    /// [`Error::AccountStore`], and those of a request.
    pub async fn account(&self) -> Result<Account, Error> {
        let mut known = Arc::clone(&self.0.account).lock_owned().await;
        if let Some(account) = &*known {
            return Ok(account.clone());
        }
        let client = self.clone();
        to_the_end(async move {
            let account = client.open().await?;
            *known = Some(account.clone());
            Ok(account)
        })
        .await
    }

    /// Forgets the account, after [`Error::AccountGone`]: the next one is new.
    ///
    /// # Errors
    ///
    /// [`Error::AccountStore`].
    pub async fn forget(&self) -> Result<(), Error> {
        let mut known = Arc::clone(&self.0.account).lock_owned().await;
        let client = self.clone();
        to_the_end(async move {
            let mut stored = client.load().await?;
            if stored.accounts.remove(&client.0.settings.directory).is_some() {
                client.save(&stored).await?;
            }
            *known = None;
            Ok(())
        })
        .await
    }

    /// The URI of the account that is stored for this authority, if there is one. Asks nobody, and makes none.
    ///
    /// # Errors
    ///
    /// [`Error::AccountStore`].
    pub async fn stored_account(&self) -> Result<Option<String>, Error> {
        let stored = self.load().await?;
        let credentials = stored.accounts.get(&self.0.settings.directory);
        Ok(credentials.and_then(|one| one.get("id")?.as_str()).map(str::to_owned))
    }

    async fn open(&self) -> Result<Account, Error> {
        let settings = &self.0.settings;
        let directory = self.directory().await?;
        let known = &directory.meta.profiles;
        if let Some(profile) = settings.profile.as_ref().filter(|profile| !known.contains_key(*profile)) {
            let known = match known.is_empty() {
                true => "none, so leave it out".to_owned(),
                false => known.keys().map(|name| cleaned(name, 60)).collect::<Vec<_>>().join(", "),
            };
            return Err(Error::UnknownProfile { profile: profile.clone(), known: cleaned(&known, 500) });
        }
        let mut stored = self.load().await?;
        if let Some(credentials) = stored.accounts.get(&settings.directory) {
            let (id, thumbprint, inner) = self.restore(credentials).await?;
            return Ok(Account(Arc::new(AccountInner { client: self.clone(), directory, id, thumbprint, inner })));
        }
        let (inner, credentials) = self.create(&directory).await?;
        stored.accounts.insert(settings.directory.clone(), credentials);
        self.save(&stored).await?;
        let (id, thumbprint) = (inner.id().to_owned(), inner.key_thumbprint().to_owned());
        tracing::info!(account = id, directory = settings.directory, "an account has been made");
        Ok(Account(Arc::new(AccountInner { client: self.clone(), directory, id, thumbprint, inner })))
    }

    async fn restore(&self, credentials: &serde_json::Value) -> Result<(String, String, instant_acme::Account), Error> {
        let credentials: AccountCredentials = serde_json::from_value(credentials.clone())
            .map_err(|_| Error::AccountStore(std::io::Error::other("what is stored is no account")))?;
        let builder = instant_acme::Account::builder_with_http(Box::new(self.0.http.clone()));
        let inner = builder.from_credentials(credentials).await?;
        Ok((inner.id().to_owned(), inner.key_thumbprint().to_owned(), inner))
    }

    async fn create(&self, directory: &Directory) -> Result<(instant_acme::Account, serde_json::Value), Error> {
        let settings = &self.0.settings;
        if let Some(terms) = directory.meta.terms.as_ref().filter(|_| !settings.agree_terms) {
            return Err(Error::TermsNotAgreed { url: cleaned(terms, 500) });
        }
        if directory.meta.external_account_required && settings.external_account.is_none() {
            let detail = "no account is made without one".to_owned();
            let problem = Problem { kind: "externalAccountRequired".to_owned(), detail, parts: Vec::new() };
            return Err(Error::ExternalAccount { problem });
        }
        let contacts: Vec<_> = settings
            .contacts
            .iter()
            .map(|one| if one.starts_with("mailto:") { one.clone() } else { format!("mailto:{one}") })
            .collect();
        let contacts: Vec<_> = contacts.iter().map(String::as_str).collect();
        let wanted = NewAccount {
            contact: &contacts,
            terms_of_service_agreed: settings.agree_terms,
            only_return_existing: false,
        };
        let external =
            settings.external_account.as_ref().map(|one| ExternalAccountKey::new(one.key_id.clone(), &one.key));
        let mut attempts = 0;
        loop {
            let builder = instant_acme::Account::builder_with_http(Box::new(self.0.http.clone()));
            let made = builder.create(&wanted, settings.directory.clone(), external.as_ref()).await;
            match made.map_err(Failure::of_library) {
                Ok((account, credentials)) => {
                    let credentials = serde_json::to_value(&credentials)
                        .map_err(|error| Error::AccountStore(std::io::Error::other(error)))?;
                    return Ok((account, credentials));
                }
                Err(failure) if failure.is_bad_nonce() && attempts < NONCES => attempts += 1,
                Err(Failure::Refused { status: 401 | 403, problem, .. }) if external.is_some() => {
                    return Err(Error::ExternalAccount { problem });
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    async fn load(&self) -> Result<Stored, Error> {
        let store = Arc::clone(&self.0.store);
        let octets = blocking(move || store.load()).await?;
        let Some(octets) = octets else { return Ok(Stored::default()) };
        serde_json::from_slice(&octets)
            .map_err(|_| Error::AccountStore(std::io::Error::other("what is stored are no accounts")))
    }

    async fn save(&self, stored: &Stored) -> Result<(), Error> {
        let octets = serde_json::to_vec(stored).map_err(|error| Error::AccountStore(std::io::Error::other(error)))?;
        let (octets, store) = (Zeroizing::new(octets), Arc::clone(&self.0.store));
        blocking(move || store.store(&octets)).await
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("directory", &self.0.settings.directory).finish_non_exhaustive()
    }
}

/// Whoever asks may leave: an account that the authority has made is stored all the same, by one at a time.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::AccountStore(std::io::Error::other(error))),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Error::AccountStore),
        Err(error) => Err(Error::AccountStore(std::io::Error::other(error))),
    }
}

/// How often a request is repeated beyond the two times of instant-acme, when nonces are refused.
const NONCES: u32 = 4;

/// The accounts by directory: whoever goes from staging to production and back finds both.
#[derive(Default, Deserialize, Serialize)]
struct Stored {
    accounts: BTreeMap<String, serde_json::Value>,
}

/// What an authority offers (RFC 8555 section 7.1.1).
#[derive(Clone, Debug, Deserialize)]
pub struct Directory {
    #[serde(rename = "newNonce")]
    _nonce: String,
    #[serde(rename = "newAccount")]
    _account: String,
    #[serde(rename = "newOrder")]
    _order: String,
    #[serde(default, rename = "renewalInfo")]
    renewal_info: Option<String>,
    #[serde(default)]
    meta: Meta,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Meta {
    #[serde(default, rename = "termsOfService")]
    terms: Option<String>,
    #[serde(default, rename = "caaIdentities")]
    caa_identities: Vec<String>,
    #[serde(default, rename = "externalAccountRequired")]
    external_account_required: bool,
    #[serde(default)]
    profiles: BTreeMap<String, String>,
}

impl Directory {
    /// Where the terms stand, if there are any.
    pub fn terms(&self) -> Option<&str> {
        self.meta.terms.as_deref()
    }

    /// Does the authority say when to renew (RFC 9773)?
    pub fn has_renewal_info(&self) -> bool {
        self.renewal_info.is_some()
    }

    /// The profiles and what they are for.
    pub fn profiles(&self) -> &BTreeMap<String, String> {
        &self.meta.profiles
    }

    /// The names that the authority looks for in CAA records.
    pub fn caa_identities(&self) -> &[String] {
        &self.meta.caa_identities
    }

    /// Does the authority want an external account?
    pub fn wants_external_account(&self) -> bool {
        self.meta.external_account_required
    }
}

/// An account at an authority. Cheap to clone.
#[derive(Clone)]
pub struct Account(pub(crate) Arc<AccountInner>);

pub(crate) struct AccountInner {
    pub(crate) client: Client,
    directory: Directory,
    id: String,
    pub(crate) thumbprint: String,
    pub(crate) inner: instant_acme::Account,
}

/// A window within which to renew, and when to ask for it again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Renewal {
    /// The window.
    pub window: RenewalWindow,
    /// How long from now to ask again.
    pub ask_again_after: Duration,
}

/// Why a certificate is revoked (RFC 5280 section 5.3.1); the reasons that public authorities take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum RevocationReason {
    /// The name is not ours any more, or the tunnel is gone.
    CessationOfOperation,
    /// Somebody else has the key.
    KeyCompromise,
    /// Another one has taken its place.
    Superseded,
    /// None is given.
    Unspecified,
}

impl Account {
    /// The account's URI: what a CAA record names as `accounturi` (RFC 8657).
    pub fn uri(&self) -> &str {
        &self.0.id
    }

    /// What the authority offers, as it was when the account was opened.
    pub fn directory(&self) -> &Directory {
        &self.0.directory
    }

    /// The names that the authority looks for in CAA records.
    pub fn caa_identities(&self) -> &[String] {
        self.0.directory.caa_identities()
    }

    /// Begins an order. Store the URL before going on: an order that nobody knows of is lost.
    ///
    /// `replaces` is the certificate that this one follows; authorities without ARI, and those to whom
    /// it has been said before, are not told.
    ///
    /// # Errors
    ///
    /// Those of a request, [`Error::RateLimited`] and [`Error::Names`] among them.
    pub async fn begin(&self, names: &[Name], replaces: Option<&CertId>) -> Result<String, Error> {
        let identifiers: Vec<_> = names.iter().map(|name| Identifier::Dns(name.to_string())).collect();
        let mut replaces = replaces.filter(|_| self.0.directory.has_renewal_info());
        let mut attempts = 0;
        loop {
            let mut wanted = NewOrder::new(&identifiers);
            if let Some(id) = replaces {
                wanted = wanted.replaces(CertificateIdentifier {
                    authority_key_identifier: id.issuer.as_str().into(),
                    serial: id.serial.as_str().into(),
                });
            }
            if let Some(profile) = &self.0.client.0.settings.profile {
                wanted = wanted.profile(profile);
            }
            match self.0.inner.new_order(&wanted).await.map_err(Failure::of_library) {
                Ok(order) => return Ok(order.url().to_owned()),
                Err(failure) if failure.is_bad_nonce() && attempts < NONCES => attempts += 1,
                // RFC 9773 section 5: an order has said so before, perhaps one that came to nothing.
                // And others do not know the certificate, or know it as another account's.
                Err(Failure::Refused { status, problem, .. })
                    if replaces.is_some() && (problem.kind == "alreadyReplaced" || matches!(status, 400..=428)) =>
                {
                    replaces = None;
                }
                // RFC 9773 section 5 asks authorities to repeat it. One that does not has not understood.
                Err(Failure::Nonsense(words)) if words.contains("replaces field mismatch") && replaces.is_some() => {
                    replaces = None;
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    /// Revokes a certificate. One that is revoked already is no error.
    ///
    /// # Errors
    ///
    /// Those of a request.
    pub async fn revoke(&self, leaf: &[u8], reason: RevocationReason) -> Result<(), Error> {
        use instant_acme::RevocationReason as Library;

        let certificate = CertificateDer::from_slice(leaf);
        let reason = match reason {
            RevocationReason::CessationOfOperation => Some(Library::CessationOfOperation),
            RevocationReason::KeyCompromise => Some(Library::KeyCompromise),
            RevocationReason::Superseded => Some(Library::Superseded),
            RevocationReason::Unspecified => None,
        };
        let request = RevocationRequest { certificate: &certificate, reason };
        let mut attempts = 0;
        loop {
            match self.0.inner.revoke(&request).await.map_err(Failure::of_library) {
                Ok(()) => return Ok(()),
                Err(failure) if failure.is_bad_nonce() && attempts < NONCES => attempts += 1,
                Err(Failure::Refused { problem, .. }) if problem.kind == "alreadyRevoked" => return Ok(()),
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    /// When the authority wants a certificate to be renewed (RFC 9773).
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when it does not say, and those of a request.
    pub async fn renewal(&self, certificate: &CertId) -> Result<Renewal, Error> {
        const WHAT: &str = "renewal information (ARI)";
        let base = self.0.directory.renewal_info.as_deref().ok_or(Error::Unsupported(WHAT))?;
        let client = &self.0.client.0;
        let url = format!("{}/{certificate}", base.trim_end_matches('/'));
        let (document, retry_at) = with_retry_at(async { (client.http.get(&url).await, take_retry_at()) }).await;
        let window =
            RenewalWindow::parse(&document?).map_err(|error| Error::Nonsense(cleaned(&error.to_string(), 300)))?;
        let later = retry_at.map(|at| until(at, client.settings.now()));
        Ok(Renewal { window, ask_again_after: ask_again_after(later) })
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("uri", &self.0.id).finish_non_exhaustive()
    }
}

/// How long from `now` until `at`.
pub(crate) fn until(at: Time, now: Time) -> Duration {
    Duration::from_secs(u64::try_from(at.unix().saturating_sub(now.unix())).unwrap_or_default())
}
