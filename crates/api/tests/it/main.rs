//! The REST interface, judged from outside.

mod bodies;
mod certificates;
mod clock;
mod departures;
mod lists;
mod openapi;
mod problems;
mod races;
mod secrets;
mod seed;
mod union;
mod world;
