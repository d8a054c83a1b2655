//! Behaviour of the whole crate, judged from outside.

mod authority;
mod corpus;
mod issuing;
mod requests;
mod wycheproof;
