//! What can go wrong with an authority: whose fault it is, and what helps.

use pki_core::Time;

use crate::check::Wrong;
use crate::http::Failure;
use crate::name::Name;
use crate::order::ChallengeKind;
use crate::problem::Problem;
use crate::roots::RootsError;
use crate::solver::SolverError;

/// Why there is no account, no order or no certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The authority does not know the account, or no longer: [`Client::forget`](crate::Client::forget) it.
    #[error("the authority does not know this account (any more): {problem}")]
    AccountGone {
        /// What it says.
        problem: Problem,
    },
    /// The account cannot be read or stored.
    #[error("the account's key cannot be read or stored")]
    AccountStore(#[source] std::io::Error),
    /// The authority could not convince itself that a name is ours.
    #[error("the authority could not verify {name}: {problem}")]
    AuthorizationFailed {
        /// Which name.
        name: Name,
        /// What it says.
        problem: Problem,
    },
    /// A CAA record forbids it.
    #[error("a CAA record does not let this authority, account or challenge issue: {problem}")]
    Caa {
        /// What the authority says.
        problem: Problem,
    },
    /// The certificate signing request is refused.
    #[error("the authority does not accept the certificate signing request: {problem}")]
    Csr {
        /// What it says.
        problem: Problem,
    },
    /// The external account is refused, or needed and not set.
    #[error("the authority wants an external account (key id and key): {problem}")]
    ExternalAccount {
        /// What it says.
        problem: Problem,
    },
    /// A name for which the authority never issues.
    #[error("the authority does not issue for these names: {problem}")]
    Names {
        /// What it says.
        problem: Problem,
    },
    /// What the authority answers is not ACME.
    #[error("the authority's answer makes no sense: {0}")]
    Nonsense(String),
    /// A certificate that is right but for its time. That is more likely our clock's fault than the
    /// authority's, so it is not one to revoke: the order has it still when the clock is right.
    #[error("the certificate that was issued is not valid at this time: is the clock right?")]
    NotNow {
        /// What its time is.
        #[source]
        wrong: Wrong,
        /// The leaf in DER.
        leaf: Vec<u8>,
    },
    /// None of the challenges that it offers can be answered.
    #[error("none of the challenges for {name} that the authority offers ({offered}) can be answered here ({able})")]
    NoChallenge {
        /// For which name.
        name: Name,
        /// What is offered.
        offered: String,
        /// What can be answered.
        able: String,
    },
    /// The order does not exist any more, or belongs to another account.
    #[error("the authority does not know this order (any more): {problem}")]
    OrderGone {
        /// What it says.
        problem: Problem,
    },
    /// The order failed as a whole.
    #[error("the order failed: {problem}")]
    OrderFailed {
        /// What the authority says.
        problem: Problem,
    },
    /// The order took longer than it may. It may still go on.
    #[error("the order took longer than it may")]
    Overdue,
    /// Too much of something.
    #[error("the authority takes no more for now: {problem}")]
    RateLimited {
        /// From when on it does, if it says so.
        until: Option<Time>,
        /// What it says.
        problem: Problem,
    },
    /// Refused for another reason.
    #[error("the authority refuses ({status}): {problem}")]
    Refused {
        /// The status.
        status: u16,
        /// What it says.
        problem: Problem,
    },
    /// There is nobody whom one could trust.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// A challenge could not be answered.
    #[error("{kind} for {name} cannot be answered")]
    Solver {
        /// For which name.
        name: Name,
        /// By which challenge.
        kind: ChallengeKind,
        /// Why not.
        #[source]
        error: SolverError,
    },
    /// There are new terms.
    #[error("the authority has new terms, which somebody has to agree to: {problem}")]
    TermsChanged {
        /// What it says.
        problem: Problem,
    },
    /// The terms have not been agreed to.
    #[error("the authority's terms have to be agreed to: {url}")]
    TermsNotAgreed {
        /// Where they stand.
        url: String,
    },
    /// A profile that the authority does not have.
    #[error("the authority has no profile \"{profile}\"; it has: {known}")]
    UnknownProfile {
        /// The profile that is set.
        profile: String,
        /// Those that there are.
        known: String,
    },
    /// The authority does not answer.
    #[error("the authority cannot be reached: {0}")]
    Unreachable(String),
    /// The directory offers no such thing.
    #[error("the authority does not offer {0}")]
    Unsupported(&'static str),
    /// What was issued is not what was asked for: revoke it, and give it to nobody.
    #[error("the certificate that was issued is not the one that was asked for")]
    Wrong {
        /// What is wrong with it.
        #[source]
        wrong: Wrong,
        /// The leaf in DER, if there is one.
        leaf: Option<Vec<u8>>,
    },
}

/// Who can do something about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// The authority, or the way to it.
    Authority,
    /// Who runs this server: its settings, its DNS, its ports.
    Operator,
    /// Who sent the certificate signing request.
    Requester,
}

/// What may help.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Remedy {
    /// Something has to be changed first.
    Change,
    /// A new order, later; see [`Failures`](crate::Failures).
    NewOrder,
    /// The same call once more, later: an order goes on where it was.
    Again,
}

impl Error {
    /// Who can do something about it.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Nonsense(_)
            | Self::OrderFailed { .. }
            | Self::OrderGone { .. }
            | Self::Overdue
            | Self::RateLimited { .. }
            | Self::Refused { .. }
            | Self::Unreachable(_)
            | Self::Wrong { .. } => Fault::Authority,
            Self::AccountGone { .. }
            | Self::AccountStore(_)
            | Self::AuthorizationFailed { .. }
            | Self::Caa { .. }
            | Self::ExternalAccount { .. }
            | Self::Names { .. }
            | Self::NoChallenge { .. }
            | Self::NotNow { .. }
            | Self::Roots(_)
            | Self::Solver { .. }
            | Self::TermsChanged { .. }
            | Self::TermsNotAgreed { .. }
            | Self::UnknownProfile { .. }
            | Self::Unsupported(_) => Fault::Operator,
            Self::Csr { .. } => Fault::Requester,
        }
    }

    /// What may help.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Nonsense(_)
            | Self::NotNow { .. }
            | Self::Overdue
            | Self::RateLimited { .. }
            | Self::Refused { status: 500..=599, .. }
            | Self::Unreachable(_) => Remedy::Again,
            Self::AuthorizationFailed { .. }
            | Self::Caa { .. }
            | Self::OrderFailed { .. }
            | Self::OrderGone { .. }
            | Self::Refused { .. }
            | Self::Solver { .. }
            | Self::Wrong { .. } => Remedy::NewOrder,
            Self::AccountGone { .. }
            | Self::AccountStore(_)
            | Self::Csr { .. }
            | Self::ExternalAccount { .. }
            | Self::Names { .. }
            | Self::NoChallenge { .. }
            | Self::Roots(_)
            | Self::TermsChanged { .. }
            | Self::TermsNotAgreed { .. }
            | Self::UnknownProfile { .. }
            | Self::Unsupported(_) => Remedy::Change,
        }
    }

    /// From when on the authority would have it, if it says so.
    pub fn not_before(&self) -> Option<Time> {
        match self {
            Self::RateLimited { until, .. } => *until,
            _ => None,
        }
    }

    /// A short name that stays, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::AccountGone { .. } => "account_gone",
            Self::AccountStore(_) => "account_store",
            Self::AuthorizationFailed { .. } => "authorization_failed",
            Self::Caa { .. } => "caa",
            Self::Csr { .. } => "csr",
            Self::ExternalAccount { .. } => "external_account",
            Self::Names { .. } => "names",
            Self::Nonsense(_) => "nonsense",
            Self::NoChallenge { .. } => "no_challenge",
            Self::NotNow { .. } => "not_now",
            Self::OrderGone { .. } => "order_gone",
            Self::OrderFailed { .. } => "order_failed",
            Self::Overdue => "overdue",
            Self::RateLimited { .. } => "rate_limited",
            Self::Refused { .. } => "refused",
            Self::Roots(_) => "roots",
            Self::Solver { .. } => "solver",
            Self::TermsChanged { .. } => "terms_changed",
            Self::TermsNotAgreed { .. } => "terms_not_agreed",
            Self::UnknownProfile { .. } => "unknown_profile",
            Self::Unreachable(_) => "unreachable",
            Self::Unsupported(_) => "unsupported",
            Self::Wrong { .. } => "wrong_certificate",
        }
    }

    pub(crate) fn of_problem(problem: Problem, otherwise: impl FnOnce(Problem) -> Self) -> Self {
        // RFC 8555 section 6.7; a problem with several names is what its parts are.
        if problem.is("caa") {
            Self::Caa { problem }
        } else if problem.is("rejectedIdentifier") || problem.is("unsupportedIdentifier") {
            Self::Names { problem }
        } else {
            match problem.kind.as_str() {
                "accountDoesNotExist" => Self::AccountGone { problem },
                "badCSR" | "badPublicKey" => Self::Csr { problem },
                "externalAccountRequired" => Self::ExternalAccount { problem },
                "rateLimited" => Self::RateLimited { until: None, problem },
                "userActionRequired" => Self::TermsChanged { problem },
                _ => otherwise(problem),
            }
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Nonsense(words) => Self::Nonsense(words),
            Failure::Unreachable(words) => Self::Unreachable(words),
            Failure::Refused { status, problem, retry_at } => match status {
                429 => Self::RateLimited { until: retry_at, problem },
                503 if retry_at.is_some() => Self::RateLimited { until: retry_at, problem },
                // Boulder says so of an account that was deactivated.
                401 | 403 if problem.kind == "unauthorized" && problem.detail.contains("ccount is not valid") => {
                    Self::AccountGone { problem }
                }
                _ => match Self::of_problem(problem, |problem| Self::Refused { status, problem }) {
                    Self::RateLimited { problem, .. } => Self::RateLimited { until: retry_at, problem },
                    other => other,
                },
            },
        }
    }
}

impl From<instant_acme::Error> for Error {
    fn from(error: instant_acme::Error) -> Self {
        Failure::of_library(error).into()
    }
}
