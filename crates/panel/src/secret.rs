//! Secrets that are handed out once.

use std::fmt;

use base16ct::lower::encode_string;
use zeroize::Zeroizing;

use crate::error::Error;

/// A token or a password. It shows itself to nobody who does not ask for it.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The text, to be handed to whom it was made for.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// 128 bits as 32 lower-case hex digits.
pub(crate) fn p12_password() -> Result<Secret, Error> {
    Ok(Secret(Zeroizing::new(encode_string(&random::<16>()?))))
}

/// 256 bits as 64 lower-case hex digits.
pub(crate) fn enrollment_token() -> Result<Secret, Error> {
    Ok(Secret(Zeroizing::new(encode_string(&random::<32>()?))))
}

/// Octets of the operating system's generator.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut octets = [0; N];
    getrandom::fill(&mut octets).map_err(|_| Error::internal("the operating system gives no random octets"))?;
    Ok(octets)
}
