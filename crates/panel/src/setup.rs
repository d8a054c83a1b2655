//! A panel's directory: made when there is none, and the admin's identity made
//! anew when it is lost.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ca_dir::CaDirError;
use jiff::Timestamp;
use pki_core::crypto::aws_lc::PrivateKey;
use pki_core::{Subject, certificate_to_pem};
use rcgen::{CertificateParams, DnType, SanType};
use zeroize::Zeroizing;

use crate::authority::{ClientAuthority, Identity, Making, seconds};
use crate::directory::{self, CA_CERTIFICATE, CA_KEY, CLIENT_CERTIFICATE, CLIENT_P12, P12_PASSWORD, Paths};
use crate::error::Error;
use crate::files;
use crate::panel::{ADMIN, back_up, identity_files, revocation};
use crate::reload;
use crate::state::{Admin, AdminAuthMode, COMPLETED, Edit, Serial, State, Touched};

/// The server certificate of the panel's port.
pub const SERVER_CERTIFICATE: &str = "self-signed.pem";
/// Its private key.
pub const SERVER_KEY: &str = "self-signed-key.pem";

/// What people see when a browser asks which certificate to show. No client reads it: they compare
/// the subjects of what it signs, which are as they always were.
const CA_NAME: &str = "Adit Panel CA";
const MAKER: &str = "Adit";
const CA_VALIDITY: Duration = Duration::from_secs(3650 * 86_400);
const SERVER_DAYS: i64 = 3650;

/// Why there is no directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// One of the two is there. Which mode the admin is in, and whom the other
    /// one knows, must not be made up.
    #[error(
        "{} is there and {} is not: name the panel.json that belongs to the directory (panel_config)",
        directory.display(), config.display()
    )]
    ConfigMissing {
        /// The directory.
        directory: PathBuf,
        /// The missing file.
        config: PathBuf,
    },
    /// One of the port's two files. It may be another program's.
    #[error(
        "in {} there is only one of {SERVER_CERTIFICATE} and {SERVER_KEY}: name a certificate with \
         panel_tls_cert and its key with panel_tls_key, or move the one away",
        directory.display()
    )]
    HalfCertificate {
        /// The directory.
        directory: PathBuf,
    },
    /// Another program changes it, or has stopped while it did.
    #[error("another program has held the lock of {} for long: end it, or try again", directory.display())]
    Busy {
        /// The directory.
        directory: PathBuf,
    },
    /// A file or directory.
    #[error("cannot write {}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A key or certificate.
    #[error("cannot make the panel's certificates")]
    Make(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<CaDirError> for SetupError {
    fn from(error: CaDirError) -> Self {
        Self::make(error)
    }
}

impl SetupError {
    fn make(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Make(error.into())
    }
}

/// Makes the directory and its `panel.json` if neither is there; says whether
/// it did. What is there is taken as it is.
///
/// RSA keys take seconds.
///
/// # Errors
///
/// [`SetupError`]; no directory is left then, though a `panel.json` may be.
pub fn ensure(
    directory: &Path,
    config: &Path,
    address: IpAddr,
    domain: &str,
    making: Making,
    now: Timestamp,
) -> Result<bool, SetupError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| SetupError::Io { path, source }
    };
    let is_there = |path: &Path| path.try_exists().map_err(io(path));
    if is_there(directory)? {
        if !is_there(config)? {
            return Err(SetupError::ConfigMissing { directory: directory.to_owned(), config: config.to_owned() });
        }
        return Ok(false);
    }
    if !is_there(config)? {
        // Nothing is left to be set up.
        let document = serde_json::json!({
            "ip": address, "domain": domain, "email": null,
            "adminAuthMode": "p12", "onboarding": {"status": COMPLETED},
        });
        let text = serde_json::to_string_pretty(&document).map_err(SetupError::make)? + "\n";
        let root = config.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut change = files::Change::default();
        change.write(config.to_owned(), Zeroizing::new(text.into_bytes()), 0o640);
        files::Files::new(root.to_owned(), Vec::new(), files::go_on()).commit(&change).map_err(io(config))?;
    }
    ca_dir::make_directory(directory, |building| fill(building, config, making, now))?;
    Ok(true)
}

fn fill(root: &Path, config: &Path, making: Making, now: Timestamp) -> Result<(), SetupError> {
    let key = ca_dir::generate_key(making.keys).map_err(SetupError::make)?;
    let signer = PrivateKey::from_pkcs8_der(&Zeroizing::new(key.serialize_der())).map_err(SetupError::make)?;
    let subject = Subject::with_organization(CA_NAME, MAKER).map_err(SetupError::make)?;
    // Clocks of those who verify may be late.
    let since = seconds(now).minus(Duration::from_secs(300));
    let certificate = pki_core::root(&subject, &signer, CA_VALIDITY, ca_dir::random_serial()?, since)
        .map_err(SetupError::make)?
        .sign(&signer)
        .map_err(SetupError::make)?;
    let agents = root.join("agents");
    let made = fs::DirBuilder::new().mode(0o700).create(&agents);
    made.map_err(|source| SetupError::Io { path: agents, source })?;
    ca_dir::write_private_key(&root.join(CA_KEY), &key, None)?;
    ca_dir::write_new(&root.join(CA_CERTIFICATE), certificate_to_pem(certificate.der()).as_bytes(), 0o644)?;

    let paths = Paths::new(root, config);
    let authority = ClientAuthority::open(&paths).map_err(SetupError::make)?;
    let Identity { issued, key_pem, p12, password } = authority.make(ADMIN, making, now).map_err(SetupError::make)?;
    let password = Zeroizing::new(password.expose().as_bytes().to_vec());
    for edit in identity_files(key_pem, issued.pem.into_bytes(), p12, password) {
        if let Edit::Put(path, content, mode) = edit {
            ca_dir::write_new(&root.join(path), &content, directory::bits(mode))?;
        }
    }
    Ok(())
}

/// Makes `self-signed.pem` with its key, unless both are there.
///
/// # Errors
///
/// [`SetupError`].
pub fn ensure_server_certificate(
    directory: &Path,
    config: &Path,
    address: IpAddr,
    now: Timestamp,
) -> Result<(), SetupError> {
    // All of the directory's: what was promised may be a change of any of them, and of `panel.json`.
    let paths = Paths::new(directory, config);
    let (certificate_path, key_path) = (paths.at(SERVER_CERTIFICATE), paths.at(SERVER_KEY));
    let files = directory::files(&paths, files::go_on());
    let io = |source| SetupError::Io { path: certificate_path.clone(), source };
    let _lock = files.lock().map_err(io)?;
    // The one that is missing may be about to come.
    files.recover().map_err(io)?;
    match (certificate_path.exists(), key_path.exists()) {
        (false, false) => {}
        (true, true) => return Ok(()),
        _ => return Err(SetupError::HalfCertificate { directory: directory.to_owned() }),
    }
    let key = ca_dir::generate_key(ca_dir::KeyAlgorithm::P256).map_err(SetupError::make)?;
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).map_err(SetupError::make)?;
    params.subject_alt_names.push(SanType::IpAddress(address));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, address.to_string());
    params.distinguished_name.push(DnType::OrganizationName, MAKER);
    let date = |at: Timestamp| {
        let date = at.to_zoned(jiff::tz::TimeZone::UTC).date();
        rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    params.not_before = date(now);
    params.not_after = date(now + jiff::SignedDuration::from_hours(24 * SERVER_DAYS));
    let certificate = params.self_signed(&key).map_err(SetupError::make)?;
    let mut change = files::Change::default();
    change.write(certificate_path.clone(), Zeroizing::new(certificate.pem().into_bytes()), 0o644);
    change.write(key_path, Zeroizing::new(key.serialize_pem().into_bytes()), 0o600);
    files.commit(&change).map_err(io)
}

/// Keeps a directory as it is: whoever wants to change it waits until this is dropped.
#[derive(Debug)]
pub struct HeldStill {
    _lock: fs::File,
}

/// Holds a directory still, having finished what was interrupted: its files fit each other.
///
/// Whoever holds it is waited for, which is a moment as a rule.
///
/// # Errors
///
/// [`SetupError::Busy`] after `patience`, and [`SetupError::Io`].
pub fn hold_still(directory: &Path, config: &Path, patience: Duration) -> Result<HeldStill, SetupError> {
    /// Between two looks.
    const PAUSE: Duration = Duration::from_millis(50);
    let paths = Paths::new(directory, config);
    let files = directory::files(&paths, files::go_on());
    let io = |source| SetupError::Io { path: directory.to_owned(), source };
    let until = Instant::now() + patience;
    let lock = loop {
        match files.try_lock().map_err(io)? {
            Some(lock) => break lock,
            None if Instant::now() < until => std::thread::sleep(PAUSE),
            None => return Err(SetupError::Busy { directory: directory.to_owned() }),
        }
    };
    files.recover().map_err(io)?;
    Ok(HeldStill { _lock: lock })
}

/// What `reset_admin` has done.
#[derive(Debug)]
pub struct AdminReset {
    /// The new bundle.
    pub bundle: PathBuf,
    /// The file with its password.
    pub password: PathBuf,
    /// The panel's address, as `panel.json` has it.
    pub ip: String,
    /// The serial number that `client.crt` had, if there was one. Other
    /// certificates of admins are as valid as before.
    pub revoked: Option<Serial>,
}

/// Makes the admin a new bundle when the old one is lost, whichever mode the
/// panel is in. Works beside a server that runs: it takes notice. nginx is the
/// caller's to tell, and then [`nginx_was_told`]; else the next start tells it.
///
/// # Errors
///
/// When a file cannot be read: none is changed then, and above all no list of
/// revocations is begun anew.
pub async fn reset_admin(directory: &Path, config: &Path, making: Making, now: Timestamp) -> Result<AdminReset, Error> {
    let paths = Paths::new(directory, config);
    let reset = {
        let paths = paths.clone();
        move || {
            let authority = ClientAuthority::open(&paths)?;
            // It takes seconds, in which others may want the lock.
            let Identity { issued, key_pem, p12, password } = authority.make(ADMIN, making, now)?;
            let files = directory::files(&paths, files::go_on());
            let _lock = files.lock().map_err(Error::internal)?;
            files.recover().map_err(Error::internal)?;
            let mut state = directory::read_state(&paths, Vec::new());
            let ip = state.config()?.ip.clone();
            state.revoked()?;
            if state.admin.is_none() && paths.at(CLIENT_CERTIFICATE).exists() {
                let reason = "client.crt cannot be read, so that it cannot be revoked: mend it, or move it away";
                return Err(Error::internal(reason));
            }
            let password = Zeroizing::new(password.expose().as_bytes().to_vec());
            let mut edits = back_up(&paths)?;
            let revoked = state.admin.as_ref().map(|admin| admin.serial.clone());
            edits.extend(revoked.iter().map(|serial| revocation(serial, "admin (reset from hardware-bound)", now)));
            edits.push(Edit::SetMode(AdminAuthMode::P12));
            edits.push(Edit::SetAdmin(Admin { serial: issued.serial, key: issued.key }));
            edits.extend(identity_files(key_pem, issued.pem.into_bytes(), p12, password));
            edits.push(reload::mark()?);
            let mut touched = Touched::default();
            edits.iter().try_for_each(|edit| state.apply(edit, &mut touched))?;
            // The reset has ended every grace: nothing is withheld.
            let make_crl = move |state: &State, before: Option<&[u8]>| {
                authority.revocation_list(state.revoked()?, &[], before, now)
            };
            directory::write(&files, &paths, &make_crl, &state, &edits, touched)?;
            Ok::<_, Error>((ip, revoked))
        }
    };
    let (ip, revoked) = tokio::task::spawn_blocking(reset).await.map_err(Error::internal)??;
    Ok(AdminReset { bundle: paths.at(CLIENT_P12), password: paths.at(P12_PASSWORD), ip, revoked })
}

/// nginx has loaded what [`reset_admin`] has made.
///
/// # Errors
///
/// When the mark that says otherwise cannot be removed.
pub fn nginx_was_told(directory: &Path) -> io::Result<()> {
    let paths = Paths { root: directory.to_owned(), config: PathBuf::new() };
    match fs::remove_file(reload::path(&paths)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
