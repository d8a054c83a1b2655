//! Behaviour of the whole crate, judged from outside.

mod cases;
mod harness;
mod live;
mod live_harness;
mod reference;
mod table;
