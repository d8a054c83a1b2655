//! Values whose text has a rule.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use panel::CommandLine;
use serde::{Deserialize, Serialize};

/// A value whose text has a rule, the same for flags and file.
#[derive(Clone, Debug)]
pub(crate) struct Text<T>(pub(crate) T);

impl<T: FromStr> FromStr for Text<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        text.parse().map(Self)
    }
}

impl<'de, T: FromStr<Err: std::fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(|error| serde::de::Error::custom(format!("{text:?}: {error}")))
    }
}

impl<T: std::fmt::Display> Serialize for Text<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// A length of time as people write it: `24h`, `90s`, `1h 30m`, `200ms`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || "use a positive length of time such as 24h, 90s or 200ms".to_owned();
        let span: jiff::SignedDuration = text.parse().map_err(|_| usage())?;
        let duration = Duration::try_from(span).map_err(|_| usage())?;
        if duration.is_zero() { Err(usage()) } else { Ok(Self(duration)) }
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let span = jiff::SignedDuration::try_from(self.0).unwrap_or(jiff::SignedDuration::MAX);
        write!(f, "{span:#}")
    }
}

/// An address, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listen(pub(crate) Option<SocketAddr>);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = "use an address such as 127.0.0.1:9292, or none";
        if text == NONE {
            Ok(Self(None))
        } else {
            text.parse().map(|address| Self(Some(address))).map_err(|_| usage.to_owned())
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str(NONE),
        }
    }
}

/// A program, or none.
#[derive(Clone, Debug)]
pub(crate) struct Program(pub(crate) Option<CommandLine>);

impl FromStr for Program {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == NONE { Ok(Self(None)) } else { text.parse().map(|command| Self(Some(command))) }
    }
}

impl std::fmt::Display for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(command) => command.fmt(f),
            None => f.write_str(NONE),
        }
    }
}

const NONE: &str = "none";
