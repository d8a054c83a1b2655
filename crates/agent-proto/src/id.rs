//! Identifiers and tokens on the wire.

use std::fmt;
use std::str::FromStr;

use subtle::ConstantTimeEq as _;
use uuid::Uuid;

/// A text that is no identifier.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not an identifier in the form of a UUID")]
pub struct IdError;

macro_rules! wire_id {
    ($(#[$docs:meta])* $name:ident) => {
        $(#[$docs])*
        ///
        /// Goes into paths as it is, so it is a UUID.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(Uuid);

        impl $name {
            /// From its 128 bits.
            pub const fn from_u128(bits: u128) -> Self {
                Self(Uuid::from_u128(bits))
            }

            /// Its 128 bits.
            pub const fn as_u128(self) -> u128 {
                self.0.as_u128()
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::try_parse(text).map(Self).map_err(|_| IdError)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

wire_id! {
    /// Names one envelope and its reply.
    RequestId
}

wire_id! {
    /// Names one bridge.
    BridgeId
}

/// The secret of one session, given at hello and presented with every intake.
#[derive(Clone)]
pub struct OwnerToken(String);

impl OwnerToken {
    /// From random octets.
    pub fn from_random(octets: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(octets).simple().to_string())
    }

    /// As an agent received it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The token itself, for the wire.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Is this the token? Takes the same time for every token of this length.
    pub fn matches(&self, presented: &str) -> bool {
        is_same(&self.0, presented)
    }
}

impl fmt::Debug for OwnerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnerToken(..)")
    }
}

/// Compares without telling by its time where the difference is.
pub(crate) fn is_same(left: &str, right: &str) -> bool {
    left.as_bytes().ct_eq(right.as_bytes()).into()
}
