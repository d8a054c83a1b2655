//! http-01 (RFC 8555 section 8.3): a table that whoever serves port 80 looks into.

use std::sync::Arc;

use async_trait::async_trait;
use pki_core::DnsName;

use super::{Challenge, Solver, SolverError, Table};

/// Answers of http-01, by host and token. Cheap to clone.
///
/// Who serves port 80 answers `GET /.well-known/acme-challenge/TOKEN` of a host with
/// [`Http01::answer`], as `application/octet-stream`, or 404.
#[derive(Clone)]
pub struct Http01(Arc<Table<(DnsName, String), String>>);

impl Http01 {
    /// An empty table.
    pub fn new() -> Self {
        Self(Arc::new(Table::new()))
    }

    /// What to answer, if a challenge is pending.
    pub fn answer(&self, host: &DnsName, token: &str) -> Option<String> {
        self.0.latest(&(host.clone(), token.to_owned()))
    }

    /// As [`Http01::answer`], by the path of a request.
    pub fn answer_path(&self, host: &DnsName, path: &str) -> Option<String> {
        self.answer(host, path.strip_prefix(Self::PREFIX)?)
    }

    /// Is no challenge pending?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What stands before the token.
    pub const PREFIX: &'static str = "/.well-known/acme-challenge/";
}

impl Default for Http01 {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Solver for Http01 {
    async fn present(&self, challenge: &Challenge) -> Result<(), SolverError> {
        self.0.insert((challenge.host().clone(), challenge.token.clone()), challenge.key_authorization.clone());
        Ok(())
    }

    async fn withdraw(&self, challenge: &Challenge) -> Result<(), SolverError> {
        self.0.remove(&(challenge.host().clone(), challenge.token.clone()), |one| *one == challenge.key_authorization);
        Ok(())
    }
}
