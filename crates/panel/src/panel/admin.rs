//! The admin's own certificate: rotated, handed out, made hardware-bound.

use std::path::PathBuf;
use std::sync::PoisonError;

use jiff::Timestamp;
use zeroize::Zeroizing;

use super::{
    NewBundle, NewCertificate, Panel, new_certificate, read_secret, require_free_key, require_valid, revocation,
};
use crate::authority::Identity;
use crate::directory::{CLIENT_CERTIFICATE, CLIENT_KEY, CLIENT_P12, P12_PASSWORD, Paths};
use crate::error::Error;
use crate::grace;
use crate::programs::Nginx;
use crate::reload;
use crate::state::{Admin, AdminAuthMode, Edit, Grace, Mode, Serial, State};

/// The admin's common name.
pub(crate) const ADMIN: &str = "admin";

/// The admin's new bundle, and whether nginx took notice.
#[derive(Debug)]
pub struct Rotated {
    /// The bundle.
    pub bundle: NewBundle,
    /// What nginx said.
    pub nginx: Nginx,
}

impl Panel {
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
        let now = self.now();
        let bundle = NewBundle { serial: issued.serial.clone(), expires_at: issued.not_after, password };
        let admin = Admin { serial: issued.serial, key: issued.key };
        let paths = self.directory.paths().clone();
        let kept = Zeroizing::new(bundle.password.expose().as_bytes().to_vec());
        let mark = reload::mark()?;
        self.directory
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
                // What was revoked before, by whomever, has no grace: it was not this that replaced it.
                let revoked = state.revoked()?;
                let is_replaced = |serial: &Serial| state.superseded.contains(serial) || !revoked.contains(serial);
                let serials = superseded.into_iter().filter(is_replaced).collect();
                let grace = Grace { serials, successor: admin.serial.clone(), since: now };
                edits.push(Edit::RotateAdmin(admin, grace));
                edits.extend(identity_files(key_pem, issued.pem.into_bytes(), p12, kept));
                edits.extend([mark, Edit::TellNginx]);
                Ok((edits, ()))
            })
            .await?;
        self.graces.look();
        tracing::info!(serial = %bundle.serial, "the admin's certificate was rotated");
        Ok(Rotated { bundle, nginx: self.reloads.told().await })
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
        let now = self.now();
        let certificate = new_certificate(&issued);
        let mark = reload::mark()?;
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
                edits.extend([mark, Edit::TellNginx]);
                Ok((edits, ()))
            })
            .await?;
        tracing::info!(serial = %certificate.serial, "the admin's key is hardware-bound now");
        // That nginx takes no notice is no concern of who asked: the authority is the same.
        self.reloads.told().await;
        Ok(certificate)
    }

    pub(super) fn in_grace(&self, state: &State, serial: &Serial, now: Timestamp) -> bool {
        let arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        let current = state.admin.as_ref().map(|admin| &admin.serial);
        state.grace.as_ref().is_some_and(|grace| {
            grace::left(grace, now).is_some()
                && Some(&grace.successor) == current
                && Some(&grace.successor) != arrived.as_ref()
                && grace.serials.contains(serial)
        })
    }

    /// The new certificate is in use: the old one needs no more of it.
    pub(super) fn end_grace_of(&self, state: &State, successor: &Serial) {
        if state.grace.as_ref().is_none_or(|grace| grace.successor != *successor) {
            return;
        }
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        if arrived.replace(successor.clone()).as_ref() != Some(successor) {
            let (successor, is_proxied) = (successor.clone(), self.is_proxied);
            self.directory.try_change(move |state| {
                let is_meant = state.grace.as_ref().is_some_and(|grace| grace.successor == successor);
                // Without random octets the end of its time ends it, too.
                if is_meant { grace::end(is_proxied).unwrap_or_default() } else { Vec::new() }
            });
        }
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

fn require_mode(state: &State, mode: AdminAuthMode, otherwise: Error) -> Result<(), Error> {
    if state.config()?.admin_auth_mode == mode { Ok(()) } else { Err(otherwise) }
}
