//! Certificates from a public authority by ACME (RFC 8555): an account, orders that survive a
//! restart, solvers, a budget, and when to renew.
//!
//! The library knows nothing of tunnels, stores or HTTP servers: the caller keeps an order's URL and
//! request, and serves what the solvers have to show. What decides is pure, with time and
//! randomness as values: [`order`], [`Budget`], [`Failures`], [`RenewalWindow`].
//!
//! 1. [`Client::new`] with [`Settings`], and an [`AccountFile`]; asks nobody.
//! 2. [`acceptable`] and [`Budget::check`] before anything is spent.
//! 3. [`Client::account`], [`Account::begin`]: store the URL with names and request.
//! 4. [`Account::proceed`], as often as needed, until there is a [`Chain`]: store it, then hand it out.
//! 5. [`Account::renewal`] with [`CertId::of`] the leaf says when to begin again.

mod account;
mod ari;
mod backoff;
mod budget;
mod check;
mod error;
mod gate;
mod http;
mod name;
pub mod order;
mod problem;
mod proceed;
mod roots;
mod settings;
mod solver;
mod store;

pub use account::{Account, Client, Directory, Renewal, RevocationReason};
pub use ari::{CertId, NoCertId, RenewalWindow, RenewalWindowError, ask_again_after};
pub use backoff::Failures;
pub use budget::{Ask, Budget, Exhausted, Limit, Rate, Spent};
pub use check::{Chain, Wrong};
pub use error::{Error, Fault, Remedy};
pub use gate::{Habits, Unacceptable, acceptable};
pub use name::Name;
pub use order::{ChallengeKind, ChallengeKindError};
pub use problem::{Part, Problem};
pub use proceed::Order;
pub use roots::{Roots, RootsError};
pub use settings::{Clock, ExternalAccount, ExternalAccountError, Limits, Settings};
pub use solver::{
    ALPN, Challenge, Hook, HookError, Http01, Solver, SolverError, Solvers, Standing, TlsAlpn, persistent_record,
};
pub use store::{AccountFile, AccountStore};

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
