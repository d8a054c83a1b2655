//! Orders at Debian's Pebble, and at a directory that lies.

mod orders;
mod pebble;
