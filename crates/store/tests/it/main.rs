//! Behaviour of the whole crate, judged from outside.

mod conformance;
mod sqlite;
mod world;
