//! Orders at Debian's Pebble, and at a directory that lies.

mod departures;
mod liar;
mod lies;
mod model;
mod orders;
mod pebble;
