//! Where the account's key is kept.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;

use zeroize::Zeroizing;

/// Keeps the octets of the accounts: one document, with the private key of each.
///
/// Called on a thread that may block.
pub trait AccountStore: Send + Sync + 'static {
    /// What was stored last, if anything.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    fn load(&self) -> io::Result<Option<Zeroizing<Vec<u8>>>>;

    /// Stores durably: all or nothing.
    ///
    /// # Errors
    ///
    /// When it cannot be stored.
    fn store(&self, octets: &[u8]) -> io::Result<()>;
}

/// A file that only its owner reads, replaced as a whole.
#[derive(Clone, Debug)]
pub struct AccountFile(PathBuf);

/// More than any number of accounts has.
const LIMIT: u64 = 1024 * 1024;

impl AccountFile {
    /// A file, which need not exist, in a directory that does.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

impl AccountStore for AccountFile {
    fn load(&self) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        let file = match std::fs::File::open(&self.0) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if metadata.permissions().mode() & 0o077 != 0 {
            let words = format!("{} can be read by others: chmod 600", self.0.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, words));
        }
        if metadata.len() > LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is too large", self.0.display())));
        }
        // Room for all of it at once: a vector that grows leaves copies behind.
        let mut octets = Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default() + 1));
        file.take(LIMIT).read_to_end(&mut octets)?;
        Ok(Some(octets))
    }

    fn store(&self, octets: &[u8]) -> io::Result<()> {
        let fresh = self.0.with_extension("new");
        // What an earlier attempt left there may have other rights.
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(octets)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.0)?;
        let directory = self.0.parent().filter(|parent| !parent.as_os_str().is_empty());
        std::fs::File::open(directory.unwrap_or_else(|| std::path::Path::new(".")))?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_read_by_its_owner_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("account.json");
        let file = AccountFile::new(&path);
        assert_eq!(file.load().expect("read"), None);
        for octets in [b"first".as_slice(), b"second"] {
            file.store(octets).expect("stored");
            assert_eq!(file.load().expect("read").expect("there").as_slice(), octets);
            assert_eq!(std::fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 1);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("changed");
        assert_eq!(file.load().expect_err("refused").kind(), io::ErrorKind::PermissionDenied);
    }
}
