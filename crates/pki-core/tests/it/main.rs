//! Behaviour of the whole crate, judged from outside.
#![expect(clippy::disallowed_methods, reason = "tests read fixtures; the crate itself reads no file")]

mod authority;
mod corpus;
mod issuing;
mod requests;
mod wycheproof;
