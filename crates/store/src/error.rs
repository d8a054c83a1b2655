//! What may go wrong, whichever the backend.

use tunnel_model::Refusal;

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The model says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The backend failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A backend that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store was shut down.
    #[error("the store is closed")]
    Closed,
    /// A row that no version of this program wrote.
    #[error("a stored {0} cannot be read")]
    Corrupt(&'static str),
    /// Pages or records are not as they were written.
    #[error("the database is damaged: {0}")]
    Damaged(String),
    /// No room is left to write.
    #[error("there is no space left for the database")]
    Full,
    /// The backend's library, disk or memory.
    #[error("the database failed")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The group that a command was written in was not committed.
    #[error("the database could not commit: {0}")]
    Uncommitted(String),
}

impl StoreError {
    /// What fails, for whoever may not know more of it.
    pub fn in_short(&self) -> &'static str {
        match self {
            Self::Closed => "the store is closed",
            Self::Corrupt(_) | Self::Damaged(_) => "the database is damaged",
            Self::Full => "there is no space left for the database",
            Self::Backend(_) | Self::Uncommitted(_) => "the database cannot be read or written",
        }
    }
}
