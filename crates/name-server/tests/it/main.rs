//! The zone over its sockets, and by octets.

mod limits;
mod matrix;
mod messages;
mod queries;
