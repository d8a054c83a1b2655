//! Behaviour of the whole crate, judged from outside.
#![expect(clippy::disallowed_methods, reason = "tests read fixtures; the crate itself reads no file")]

mod authority;
mod corpus;
mod crl;
mod issuing;
mod limbo;
mod paths;
#[cfg(feature = "pkcs12")]
mod pkcs12;
mod requests;
mod wycheproof;
