//! Behaviour of the whole crate, judged from outside.

mod cases;
mod harness;
mod reference;
mod table;
