//! The certificate of a passthrough tunnel: its key is made here and stays here.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use x509_cert::der::Decode as _;

use crate::Error;
use crate::rest::{Rest, Tunnel};

/// A certificate that is replaced while it is used.
pub(crate) struct Certificate {
    directory: PathBuf,
    current: Arc<Current>,
    config: Arc<ServerConfig>,
}

#[derive(Debug)]
struct Current(RwLock<Option<Held>>);

#[derive(Debug)]
struct Held {
    certified: Arc<CertifiedKey>,
    /// SHA-256 of the leaf, as the API writes it.
    fingerprint: String,
    not_before: SystemTime,
    not_after: SystemTime,
    /// When it was signed by the clock that nobody sets, if this process asked for it.
    signed: Option<Instant>,
    /// When it is to be renewed, as the server says.
    told: Option<SystemTime>,
}

const NEXT_KEY: &str = "next-key.pem";
const KEY: &str = "key.pem";
const CHAIN: &str = "cert.pem";
/// Between two questions when the certificate is to be renewed.
const ASK: Duration = Duration::from_secs(6 * 60 * 60);
/// A certificate is not that old when it is asked to be renewed.
const SOON: Duration = Duration::from_secs(5 * 60);
/// Between two attempts at a renewal that fails.
pub(crate) const RETRY: Duration = Duration::from_secs(60);

impl Certificate {
    /// The certificate in `directory` if it is for the tunnel and good, else a new one.
    pub(crate) async fn open(directory: PathBuf, rest: &Rest, tunnel: &Tunnel) -> Result<Self, Error> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|source| Error::State { path: directory.clone(), source })?;
        let current = Arc::new(Current(RwLock::default()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| Error::Certificate(error.into()))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), b"http/1.0".to_vec()];
        config.ticketer =
            rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|error| Error::Certificate(error.into()))?;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        let certificate = Self { directory, current, config: Arc::new(config) };
        // A certificate that cannot be used is replaced, whatever is wrong with it.
        let stored = certificate.load(&tunnel.public_host).ok().flatten();
        let stored = stored.map(|held| Held { told: tunnel.renew_at(&held.fingerprint), ..held });
        // One that is due is as good as before until the next one is there, see `keep_fresh`.
        match stored.filter(|held| held.not_after > SystemTime::now() && tunnel.status == "active") {
            Some(held) => certificate.current.set(held),
            None => certificate.renew(rest, tunnel).await?,
        }
        Ok(certificate)
    }

    /// TLS for visitors, with whatever certificate is the newest.
    pub(crate) fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Waits until the server, or else two thirds of the certificate's life, say that it is time, and
    /// replaces it, again and again. Connections that are open keep what they have.
    pub(crate) async fn keep_fresh(&self, rest: &Rest, tunnel: impl Fn() -> Arc<Tunnel>, tell: impl Fn(crate::Event)) {
        let mut has_told = false;
        let mut asked = self.current.was_told().then(Instant::now);
        loop {
            // Whoever has issued it may want it renewed earlier, or later.
            if asked.is_none_or(|asked| asked.elapsed() >= ASK) {
                asked = Some(Instant::now());
                if let Ok(found) = rest.tunnel_of(tunnel().id).await {
                    self.current.told(&found);
                }
            }
            let wait = self.current.renew_at().duration_since(SystemTime::now()).unwrap_or_default();
            // A clock that was set, or a machine that slept, is noticed within the hour.
            if wait > Duration::ZERO {
                tokio::time::sleep(wait.min(Duration::from_secs(3600))).await;
                continue;
            }
            if self.current.is_just_signed() {
                if self.current.was_told() {
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
                if !has_told {
                    tell(crate::Event::RenewalFailed {
                        error: clock_error(SystemTime::now(), self.current.not_after()),
                    });
                }
                has_told = true;
                tokio::time::sleep(Duration::from_secs(3600)).await;
                continue;
            }
            has_told = false;
            match self.renew(rest, &tunnel()).await {
                Ok(()) => {
                    // It has a time of its own.
                    asked = None;
                    tell(crate::Event::CertificateRenewed { not_after: self.current.not_after() });
                }
                Err(error) => {
                    tell(crate::Event::RenewalFailed { error: error.chain() });
                    tokio::time::sleep(RETRY.max(error.retry_after().unwrap_or_default())).await;
                }
            }
        }
    }

    /// Replaces the certificate, with a new key.
    pub(crate) async fn renew(&self, rest: &Rest, tunnel: &Tunnel) -> Result<(), Error> {
        let certificate = |error: rcgen::Error| Error::Certificate(error.into());
        let key = self.next_key()?;
        let mut params = rcgen::CertificateParams::new(vec![tunnel.public_host.clone()]).map_err(certificate)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        // A longer host stands in the SAN alone (RFC 5280 appendix A.1).
        if tunnel.public_host.len() <= 64 {
            params.distinguished_name.push(rcgen::DnType::CommonName, tunnel.public_host.as_str());
        }
        let request = params.serialize_request(&key).and_then(|request| request.pem()).map_err(certificate)?;
        let chain = rest.sign_csr(tunnel.id, &request).await?;
        let held = held(&chain, &key.serialize_pem(), &tunnel.public_host)?;
        // The key first: a chain without its key is of no use, and is replaced at the next start.
        self.write(KEY, key.serialize_pem().as_bytes())?;
        self.write(CHAIN, chain.as_bytes())?;
        // If it stays, the next one has the same key, which is no harm.
        let _ = fs::remove_file(self.directory.join(NEXT_KEY));
        self.current.set(Held { signed: Some(Instant::now()), ..held });
        Ok(())
    }

    /// A key that stays the same until there is a certificate for it: where that takes long, the server has
    /// ordered one, and with another key would have to begin anew.
    fn next_key(&self) -> Result<rcgen::KeyPair, Error> {
        let path = self.directory.join(NEXT_KEY);
        // One that cannot be read is replaced.
        if let Ok(text) = fs::read_to_string(&path)
            && let Ok(key) = rcgen::KeyPair::from_pem(&text)
        {
            return Ok(key);
        }
        let key = rcgen::KeyPair::generate().map_err(|error| Error::Certificate(error.into()))?;
        self.write(NEXT_KEY, key.serialize_pem().as_bytes())?;
        Ok(key)
    }

    fn load(&self, host: &str) -> Result<Option<Held>, Error> {
        let read = |name: &str| match fs::read_to_string(self.directory.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::State { path: self.directory.join(name), source }),
        };
        let (Some(chain), Some(key)) = (read(CHAIN)?, read(KEY)?) else { return Ok(None) };
        held(&chain, &key, host).map(Some)
    }

    /// Replaces a file at once: a crash leaves the old one or the new one.
    fn write(&self, name: &str, contents: &[u8]) -> Result<(), Error> {
        let path = self.directory.join(name);
        let temporary = self.directory.join(format!("{name}.new"));
        let written = || -> io::Result<()> {
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(contents)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            fs::File::open(&self.directory)?.sync_all()
        };
        written().map_err(|source| Error::State { path: path.clone(), source })
    }
}

impl Held {
    fn renew_at(&self) -> SystemTime {
        let lifetime = self.not_after.duration_since(self.not_before).unwrap_or_default();
        // Nobody may say that it is never.
        let latest = self.not_before + lifetime / 10 * 9;
        self.told.map_or(self.not_before + lifetime / 3 * 2, |told| told.min(latest))
    }

    /// Was it signed so short a time ago that it cannot be due, whatever the clock says?
    fn is_just_signed(&self, now: Instant) -> bool {
        // Unless its issuer wants it back: it has said so after it was signed.
        if self.told.is_some_and(|told| told <= SystemTime::now()) {
            return self.signed.is_some_and(|signed| now.duration_since(signed) < SOON);
        }
        let lifetime = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.signed.is_some_and(|signed| now.duration_since(signed) < lifetime / 3)
    }
}

impl Current {
    fn set(&self, held: Held) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }

    /// Has the server said when it is to be renewed?
    fn was_told(&self) -> bool {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().is_some_and(|held| held.told.is_some())
    }

    fn told(&self, tunnel: &Tunnel) {
        if let Some(held) = &mut *self.0.write().unwrap_or_else(PoisonError::into_inner) {
            held.told = tunnel.renew_at(&held.fingerprint);
        }
    }

    fn renew_at(&self) -> SystemTime {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map_or(SystemTime::UNIX_EPOCH, Held::renew_at)
    }

    fn is_just_signed(&self) -> bool {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().is_some_and(|held| held.is_just_signed(Instant::now()))
    }

    fn not_after(&self) -> SystemTime {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map_or(SystemTime::UNIX_EPOCH, |held| held.not_after)
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|held| Arc::clone(&held.certified))
    }
}

/// What to say when a certificate is due that was signed a moment ago.
fn clock_error(now: SystemTime, not_after: SystemTime) -> String {
    let days = now.duration_since(not_after).map(|time| time.as_secs() / 86_400);
    let days = days.map_or_else(|_| String::new(), |days| format!(", and has passed its end {days} days ago"));
    format!(
        "this machine's clock is wrong, or the server's: by it a certificate that was signed just now is due to be \
         renewed{days}; set the clock"
    )
}

/// Chain and key as they are presented, if they belong together and to `host`.
fn held(chain: &str, key: &str, host: &str) -> Result<Held, Error> {
    let wrong = |error: Box<dyn std::error::Error + Send + Sync>| Error::Certificate(error);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(error.into()))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| wrong(error.into()))?;
    let leaf = chain.first().ok_or_else(|| wrong("there is no certificate".into()))?;
    let name = ServerName::try_from(host).map_err(|error| wrong(error.into()))?;
    let parsed = webpki::EndEntityCert::try_from(leaf).map_err(|error| wrong(error.into()))?;
    parsed.verify_is_valid_for_subject_name(&name).map_err(|error| wrong(error.into()))?;
    let validity = x509_cert::Certificate::from_der(leaf).map_err(|error| wrong(error.into()))?;
    let validity = *validity.tbs_certificate().validity();
    let fingerprint = base16ct::lower::encode_string(&Sha256::digest(leaf));
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|error| wrong(error.into()))?;
    Ok(Held {
        certified: Arc::new(certified),
        fingerprint,
        not_before: validity.not_before.to_system_time(),
        not_after: validity.not_after.to_system_time(),
        signed: None,
        told: None,
    })
}

/// Where the state of a tunnel is, unless somebody says otherwise
/// (`$XDG_STATE_HOME`, else `~/.local/state`).
pub(crate) fn default_directory(name: &str) -> Option<PathBuf> {
    let directory = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = directory("XDG_STATE_HOME").or_else(|| Some(directory("HOME")?.join(".local/state")));
    Some(state?.join("adit").join(Path::new(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_certificate_that_was_just_signed_is_not_due_whatever_the_clock_says() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec!["bank.example".to_owned()]).expect("a name");
        // The server's time, 70 days behind this machine's.
        let now = SystemTime::now();
        (params.not_before, params.not_after) = ((now - 70 * DAY).into(), (now + 20 * DAY).into());
        let chain = params.self_signed(&key).expect("a certificate").pem();
        let stored = held(&chain, &key.serialize_pem(), "bank.example").expect("it fits");
        assert!(stored.renew_at() < now);
        let signed = Instant::now();
        assert!(!stored.is_just_signed(signed), "it was found, not signed");
        let held = Held { signed: Some(signed), ..stored };
        assert!(held.is_just_signed(signed) && held.is_just_signed(signed + 29 * DAY));
        assert!(!held.is_just_signed(signed + 31 * DAY));
        // Whoever has issued it may want it renewed soon: not at once, but no clock is wrong then.
        let held = Held { told: Some(now - Duration::from_secs(1)), ..held };
        assert!(held.renew_at() < now && held.is_just_signed(signed + Duration::from_secs(60)));
        assert!(!held.is_just_signed(signed + Duration::from_secs(600)));
        // And never after its end.
        let never = Held { told: Some(now + 1000 * DAY), ..held };
        assert!(never.renew_at() < never.not_after);
        let held = Held { told: None, ..never };
        let told = clock_error(now, held.not_after);
        assert!(told.contains("clock is wrong") && !told.contains("passed"), "{told}");
        assert!(clock_error(now + 23 * DAY, held.not_after).contains("passed its end 3 days ago"));
    }
    #[test]
    fn only_what_fits_together_is_presented() {
        let (key, other) = (rcgen::KeyPair::generate().expect("a key"), rcgen::KeyPair::generate().expect("a key"));
        let mut params = rcgen::CertificateParams::new(vec!["bank.example".to_owned()]).expect("a name");
        let begun = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        (params.not_before, params.not_after) = (begun.into(), (begun + 90 * DAY).into());
        let chain = params.self_signed(&key).expect("a certificate").pem();
        let fits = held(&chain, &key.serialize_pem(), "bank.example").expect("it fits");
        assert_eq!(fits.renew_at(), begun + 60 * DAY, "after two thirds of its life");
        for (chain, key, host) in [
            (chain.as_str(), key.serialize_pem(), "shop.example"),
            (&chain, other.serialize_pem(), "bank.example"),
            (&chain, "no key".to_owned(), "bank.example"),
            ("", key.serialize_pem(), "bank.example"),
            (&chain, key.serialize_pem(), "not a host"),
        ] {
            let refused = held(chain, &key, host);
            assert!(matches!(refused, Err(Error::Certificate(_))), "{host}");
        }
    }
}
