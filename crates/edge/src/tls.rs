//! The certificates and TLS settings of names that end here.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use pki_core::{Authority, DnsName, SerialNumber, Time};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{Ticketer, sign};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use store::{Clock, EdgeCertificate, Store};
use tunnel_model::Timestamp;

use crate::Error;

/// Certificates of edge hosts and of the zone: the operator's where it covers
/// the name, else our own, made when the name is first asked for.
pub(crate) struct Certificates {
    authority: Authority,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    /// One key for all names that end here: whoever reads this memory has them all anyway.
    key_pair: rcgen::KeyPair,
    configured: RwLock<Option<Arc<CertifiedKey>>>,
    issued: RwLock<Cache>,
}

/// Certificates that were issued, and the order in which their names came.
#[derive(Default)]
struct Cache {
    by_name: HashMap<String, Issued>,
    order: VecDeque<String>,
}

struct Issued {
    certified: Arc<CertifiedKey>,
    renew_at: Time,
    not_after: Time,
}

/// Names whose certificate is kept; with one more, the one that came first is
/// issued again when it is asked for.
const MAX_CACHED: usize = 16 * 1024;

impl Certificates {
    /// No certificates yet.
    ///
    /// # Errors
    ///
    /// When no key can be generated.
    pub(crate) fn new(authority: Authority, store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let key_pair = rcgen::KeyPair::generate().map_err(Error::certificate)?;
        Ok(Self { authority, store, clock, key_pair, configured: RwLock::default(), issued: RwLock::default() })
    }

    fn now(&self) -> Time {
        Time::from_unix(self.clock.now().micros().div_euclid(1_000_000))
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

    /// Has a certificate ready for a name that is about to be shown one: it is on
    /// record before anybody sees it. A failure is logged.
    pub(crate) async fn prepare(&self, name: &str) {
        let now = self.now();
        if self.for_name(name, |issued| now.unix() < issued.renew_at.unix()).is_some() {
            return;
        }
        let prepared = async {
            let (issued, record) = self.issue(name, now)?;
            self.store.record_edge_certificate(record).await.map_err(Error::certificate)?;
            self.issued.write().unwrap_or_else(PoisonError::into_inner).keep(name, issued);
            Ok::<_, Error>(())
        };
        if let Err(error) = prepared.await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, name, "no certificate for a name that ends here");
        }
    }

    /// The certificate for a name, if there is one that is as it should be.
    fn for_name(&self, name: &str, is_good: impl Fn(&Issued) -> bool) -> Option<Arc<CertifiedKey>> {
        let configured = self.configured.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(certified) = configured.as_ref().filter(|certified| covers(certified, name)) {
            return Some(Arc::clone(certified));
        }
        drop(configured);
        let issued = self.issued.read().unwrap_or_else(PoisonError::into_inner);
        let issued = issued.by_name.get(name).filter(|issued| is_good(issued));
        issued.map(|issued| Arc::clone(&issued.certified))
    }

    fn issue(&self, name: &str, now: Time) -> Result<(Issued, EdgeCertificate), Error> {
        let host: DnsName = name.parse().map_err(Error::certificate)?;
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).map_err(Error::certificate)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        // ub-common-name (RFC 5280 appendix A.1): a longer name stands in the SAN alone.
        if name.len() <= 64 {
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
        }
        let request = params.serialize_request(&self.key_pair).and_then(|request| request.pem());
        let mut octets = [0; 20];
        getrandom::fill(&mut octets).map_err(Error::certificate)?;
        let serial = SerialNumber::from_random(octets);
        let leaf = self.authority.issue(request.map_err(Error::certificate)?.as_bytes(), &host, serial, now);
        let leaf = leaf.map_err(Error::certificate)?;
        tracing::info!(name, serial = %base16ct::lower::encode_string(leaf.serial().as_bytes()), "issued a certificate for a name that ends here");
        let chain =
            pki_core::certificates_from_pem(self.authority.chain_pem().as_bytes()).map_err(Error::certificate)?;
        let chain = std::iter::once(leaf.der().to_vec()).chain(chain).map(CertificateDer::from).collect();
        let key = PrivateKeyDer::try_from(self.key_pair.serialize_der()).map_err(Error::certificate)?;
        let key = sign::any_supported_type(&key).map_err(Error::certificate)?;
        // A third of its life is left when a new one is made.
        let lifetime = leaf.not_after().unix() - now.unix();
        let renew_at = now.plus(Duration::from_secs(u64::try_from(lifetime).unwrap_or_default() / 3 * 2));
        let record = EdgeCertificate {
            name: name.to_owned(),
            serial: leaf.serial().as_bytes().to_vec(),
            fingerprint: *leaf.fingerprint().as_bytes(),
            not_after: Timestamp::from_micros(leaf.not_after().unix().saturating_mul(1_000_000)),
        };
        let certified = Arc::new(CertifiedKey::new(chain, key));
        Ok((Issued { certified, renew_at, not_after: leaf.not_after() }, record))
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
        let now = self.now();
        self.for_name(name.trim_end_matches('.'), |issued| now.unix() < issued.not_after.unix())
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
