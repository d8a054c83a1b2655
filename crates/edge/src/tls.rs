//! The certificates and TLS settings of names that end here.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use issuance::{Issuance, IssuanceError};
use pki_core::DnsName;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{Ticketer, sign};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use store::Clock;
use tunnel_model::Timestamp;

use crate::Error;

/// Certificates of edge hosts and of the zone: the operator's where it covers
/// the name, else our own, asked for when the name is first asked for.
pub(crate) struct Certificates {
    issuance: Arc<dyn Issuance>,
    clock: Arc<dyn Clock>,
    /// One key for all names that end here: whoever reads this memory has them all anyway.
    key_pair: rcgen::KeyPair,
    configured: RwLock<Option<Arc<CertifiedKey>>>,
    issued: RwLock<Cache>,
    /// Names for which a certificate was asked for in vain, and until when nobody asks again.
    in_vain: Mutex<HashMap<String, Instant>>,
}

/// Certificates that were issued, by their first name, and the order in which the names came.
#[derive(Default)]
struct Cache {
    by_name: HashMap<String, Issued>,
    order: VecDeque<String>,
}

struct Issued {
    certified: Arc<CertifiedKey>,
    renew_at: Timestamp,
    expires_at: Timestamp,
}

/// Why there is no certificate.
enum NotIssued {
    /// There will be.
    Pending(IssuanceError),
    Failed(Error),
}

impl From<Error> for NotIssued {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Names whose certificate is kept; with one more, the one that came first is
/// asked for again when it is needed.
const MAX_CACHED: usize = 16 * 1024;
/// Before a name that has no certificate is asked for again, and told of.
const PAUSE: Duration = Duration::from_secs(10);
/// The same where one is on its way.
const SHORT_PAUSE: Duration = Duration::from_secs(2);
/// Before the next one is looked for again.
const LOOK: Duration = Duration::from_secs(60);

impl Certificates {
    /// No certificates yet.
    pub(crate) fn new(issuance: Arc<dyn Issuance>, clock: Arc<dyn Clock>, key_pair: rcgen::KeyPair) -> Self {
        Self {
            issuance,
            clock,
            key_pair,
            configured: RwLock::default(),
            issued: RwLock::default(),
            in_vain: Mutex::default(),
        }
    }

    /// Uses this chain, leaf first, for every name that its leaf covers.
    ///
    /// # Errors
    ///
    /// When chain and key do not belong together.
    pub(crate) fn configure(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), Error> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let certified = CertifiedKey::from_der(chain, key, &provider).map_err(Error::certificate)?;
        *self.configured.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(certified));
        Ok(())
    }

    /// Do they take so long that they are better asked for ahead?
    pub(crate) fn are_slow(&self) -> bool {
        self.issuance.is_slow()
    }

    /// Has a certificate ready for a name that is about to be shown one: it is on
    /// record before anybody sees it. A failure is logged.
    pub(crate) async fn prepare(self: &Arc<Self>, name: &str) {
        let now = self.clock.now();
        if self.for_name(name, |issued| now < issued.renew_at).is_some() {
            return;
        }
        if self.for_name(name, |issued| now < issued.expires_at).is_none() {
            return self.ask(name, now).await;
        }
        // Nobody waits for the next one while this one is good.
        if self.issuance.is_slow() {
            let (this, name) = (Arc::clone(self), name.to_owned());
            tokio::spawn(async move { this.ask(&name, now).await });
        } else {
            self.ask(name, now).await;
        }
    }

    /// Asks for a certificate, unless that was in vain a moment ago.
    async fn ask(&self, name: &str, now: Timestamp) {
        let first = self.first_name(name);
        if self.issuance.is_slow() && !self.may_ask(&first) {
            return;
        }
        let issued = self.issue(name, now).await;
        let mut in_vain = self.in_vain.lock().unwrap_or_else(PoisonError::into_inner);
        match issued {
            Ok(issued) => {
                in_vain.remove(&first);
                drop(in_vain);
                self.issued.write().unwrap_or_else(PoisonError::into_inner).keep(&first, issued);
            }
            Err(error) => {
                let is_pending = matches!(error, NotIssued::Pending(_));
                let until = Instant::now() + if is_pending { SHORT_PAUSE } else { PAUSE };
                let was_told = self.issuance.is_slow() && in_vain.insert(first, until).is_some();
                drop(in_vain);
                // Of all who have waited, one says so.
                match error {
                    _ if was_told => {}
                    NotIssued::Pending(error) => tracing::info!(%error, name, "no certificate yet"),
                    NotIssued::Failed(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(error, name, "no certificate for a name that ends here");
                    }
                }
            }
        }
    }

    /// Those who come while one is asked for wait for it, too: the issuer joins them.
    fn may_ask(&self, first: &str) -> bool {
        let now = Instant::now();
        let mut in_vain = self.in_vain.lock().unwrap_or_else(PoisonError::into_inner);
        in_vain.retain(|_, until| now < *until);
        !in_vain.contains_key(first)
    }

    /// Under which name the certificate for `name` is kept.
    fn first_name(&self, name: &str) -> String {
        self.issuance.names(name).into_iter().next().unwrap_or_default()
    }

    /// The certificate for a name, if there is one that is as it should be.
    fn for_name(&self, name: &str, is_good: impl Fn(&Issued) -> bool) -> Option<Arc<CertifiedKey>> {
        let configured = self.configured.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(certified) = configured.as_ref().filter(|certified| covers(certified, name)) {
            return Some(Arc::clone(certified));
        }
        drop(configured);
        let first = self.first_name(name);
        let issued = self.issued.read().unwrap_or_else(PoisonError::into_inner);
        let issued = issued.by_name.get(&first).filter(|issued| is_good(issued));
        issued.map(|issued| Arc::clone(&issued.certified))
    }

    async fn issue(&self, name: &str, now: Timestamp) -> Result<Issued, NotIssued> {
        let host: DnsName = name.parse().map_err(Error::certificate)?;
        let names = self.issuance.names(name);
        let mut params = rcgen::CertificateParams::new(names.clone()).map_err(Error::certificate)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        // ub-common-name (RFC 5280 appendix A.1): a longer name stands in the SAN alone.
        if let Some(first) = names.first().filter(|first| first.len() <= 64) {
            params.distinguished_name.push(rcgen::DnType::CommonName, first.as_str());
        }
        let request = params.serialize_request(&self.key_pair).and_then(|request| request.pem());
        let request = request.map_err(Error::certificate)?;
        let issued = match self.issuance.for_edge(&host, request.as_bytes()).await {
            Ok(issued) => issued,
            Err(error @ IssuanceError::Pending { .. }) => return Err(NotIssued::Pending(error)),
            Err(error) => return Err(Error::certificate(error).into()),
        };
        tracing::info!(name, serial = %base16ct::lower::encode_string(&issued.certificate.serial), "a certificate for a name that ends here");
        let chain = pki_core::certificates_from_pem(issued.chain_pem.as_bytes()).map_err(Error::certificate)?;
        let chain = std::iter::once(issued.der).chain(chain).map(CertificateDer::from).collect();
        let key = PrivateKeyDer::try_from(self.key_pair.serialize_der()).map_err(Error::certificate)?;
        let key = sign::any_supported_type(&key).map_err(Error::certificate)?;
        let expires_at = issued.certificate.expires_at;
        // One that is due is good until the next one comes; who takes long may have it at any time.
        let renew_at = match self.issuance.is_slow() {
            true => now.plus(LOOK),
            false => issued.certificate.renew_at.unwrap_or(expires_at).max(now.plus(LOOK)),
        };
        Ok(Issued { certified: Arc::new(CertifiedKey::new(chain, key)), renew_at, expires_at })
    }
}

impl Cache {
    fn keep(&mut self, name: &str, issued: Issued) {
        if self.by_name.insert(name.to_owned(), issued).is_some() {
            return;
        }
        self.order.push_back(name.to_owned());
        if self.order.len() > MAX_CACHED
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_name.remove(&oldest);
        }
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificates(..)")
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?.to_ascii_lowercase();
        // One that could not be renewed is as good as before, as long as it lives.
        let now = self.clock.now();
        self.for_name(name.trim_end_matches('.'), |issued| now < issued.expires_at)
    }
}

/// TLS 1.2 and 1.3 with these application protocols, most wanted first.
///
/// # Errors
///
/// When the backend has no ticket keys.
pub(crate) fn server_config(certificates: Arc<Certificates>, protocols: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(Error::certificate)?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config.ticketer = Ticketer::new().map_err(Error::certificate)?;
    // Resumption is by tickets alone; a cache would be memory for each visitor.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

fn covers(certified: &CertifiedKey, name: &str) -> bool {
    let (Some(leaf), Ok(name)) = (certified.cert.first(), ServerName::try_from(name)) else { return false };
    webpki::EndEntityCert::try_from(leaf).is_ok_and(|leaf| leaf.verify_is_valid_for_subject_name(&name).is_ok())
}
