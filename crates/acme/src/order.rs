//! What to do next with an order: the pure part. No network, no clock, no randomness.
//!
//! The directory's answers come in as a [`View`], time as what has passed since the beginning, and
//! what is to be done goes out as a [`Step`]. A [`Progress`] may begin at any state of an order:
//! after a restart it is a new one, and the order goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::name::Name;
use crate::problem::Problem;

/// A way to prove control of a name.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum ChallengeKind {
    /// A TXT record for each order (RFC 8555 section 8.4); wildcards, too.
    Dns01,
    /// A TXT record that stays (draft-ietf-acme-dns-persist); wildcards, too.
    DnsPersist01,
    /// A file on port 80 (RFC 8555 section 8.3).
    Http01,
    /// A certificate on port 443 (RFC 8737).
    TlsAlpn01,
}

impl ChallengeKind {
    /// As ACME calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns01 => "dns-01",
            Self::DnsPersist01 => "dns-persist-01",
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        }
    }

    /// Can it prove a wildcard?
    pub fn proves_wildcards(self) -> bool {
        matches!(self, Self::Dns01 | Self::DnsPersist01)
    }
}

impl fmt::Display for ChallengeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no way that is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a challenge is one of tls-alpn-01, http-01, dns-01 and dns-persist-01")]
pub struct ChallengeKindError;

impl FromStr for ChallengeKind {
    type Err = ChallengeKindError;

    fn from_str(text: &str) -> Result<Self, ChallengeKindError> {
        let all = [Self::Dns01, Self::DnsPersist01, Self::Http01, Self::TlsAlpn01];
        all.into_iter().find(|kind| kind.as_str() == text).ok_or(ChallengeKindError)
    }
}

/// What the directory says of an order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct View {
    /// The order's status.
    pub status: OrderStatus,
    /// Why it failed, if the order says so itself.
    pub problem: Option<Problem>,
    /// What has to be proved; looked at while the order is pending or invalid.
    pub authorizations: Vec<Authorization>,
}

/// RFC 8555 section 7.1.6.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the words of RFC 8555")]
pub enum OrderStatus {
    Pending,
    Ready,
    Processing,
    Valid,
    Invalid,
}

/// One name of an order, and how its control may be proved.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Authorization {
    /// The name.
    pub name: Name,
    /// Its status.
    pub status: AuthorizationStatus,
    /// What the authority offers.
    pub challenges: Vec<Challenge>,
}

/// RFC 8555 section 7.1.6.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the words of RFC 8555")]
pub enum AuthorizationStatus {
    Pending,
    Valid,
    Invalid,
    Deactivated,
    Expired,
    Revoked,
}

/// A challenge that is offered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Challenge {
    /// Which, if it is known here.
    pub kind: Option<ChallengeKind>,
    /// Its status.
    pub status: ChallengeStatus,
    /// Why it failed.
    pub problem: Option<Problem>,
}

/// RFC 8555 section 7.1.6.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the words of RFC 8555")]
pub enum ChallengeStatus {
    Pending,
    Processing,
    Valid,
    Invalid,
}

/// What is to be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Fetch the certificate.
    Download,
    /// Send the request.
    Finalize,
    /// Nothing helps any more.
    GiveUp(Cause),
    /// Ask again after this time.
    Look {
        /// How long to wait.
        after: Duration,
    },
    /// Make a challenge's answer visible; then [`Progress::presented`], or [`Progress::not_presented`].
    Present {
        /// For which name.
        name: Name,
        /// By which challenge.
        kind: ChallengeKind,
    },
    /// Tell the authority that the answer is visible; then [`Progress::told`].
    Tell {
        /// For which name.
        name: Name,
        /// By which challenge.
        kind: ChallengeKind,
    },
}

/// Why an order comes to nothing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Cause {
    /// The authority could not convince itself.
    AuthorizationFailed {
        /// Of which name.
        name: Name,
        /// What it says.
        problem: Problem,
    },
    /// The order failed as a whole.
    OrderFailed {
        /// What the authority says.
        problem: Problem,
    },
    /// The authority takes the request, and the order stays as it was.
    NotTaken,
    /// None of the challenges can be answered.
    NoChallenge {
        /// For which name.
        name: Name,
        /// Those that are offered, as far as they are known here.
        offered: Vec<ChallengeKind>,
    },
    /// Too much time has passed. The order may still go on.
    Overdue,
    /// The authority has been away, or has said "later", for too long. The order goes on.
    Unreachable,
}

/// How long an order may take, and how often is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Patience {
    /// All together.
    pub order: Duration,
    /// With an authority that does not answer.
    pub unreachable: Duration,
    /// The first wait.
    pub first_look: Duration,
    /// The longest wait, if the authority does not ask for more.
    pub longest_look: Duration,
}

/// How often a request is sent. Some authorities answer finalize with an order that is still ready.
const FINALIZES: u32 = 4;

/// How far an order has come in this process.
#[derive(Clone, Debug)]
pub struct Progress {
    patience: Patience,
    /// In order of preference.
    kinds: Vec<ChallengeKind>,
    /// How many orders for these names have failed before.
    failures: u32,
    chosen: BTreeMap<Name, Chosen>,
    not_presented: BTreeSet<(Name, ChallengeKind)>,
    finalizes: u32,
    looks: u32,
    last: Option<OrderStatus>,
    /// Since when the authority does not answer.
    away: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Chosen {
    kind: ChallengeKind,
    presented: bool,
    told: bool,
}

impl Progress {
    /// An order of which this process has done nothing yet.
    ///
    /// `kinds` are the challenges that can be answered, in order of preference. Each of the
    /// `failures` before moves on to the next one.
    pub fn new(kinds: Vec<ChallengeKind>, failures: u32, patience: Patience) -> Self {
        Self {
            patience,
            kinds,
            failures,
            chosen: BTreeMap::new(),
            not_presented: BTreeSet::new(),
            finalizes: 0,
            looks: 0,
            last: None,
            away: None,
        }
    }

    /// What to do, now that the directory says this. Changes nothing but what is counted.
    ///
    /// `passed` is the time since the beginning, `later` what `Retry-After` asked for, and `random`
    /// any number: many who began at once do not ask at once.
    pub fn next(&mut self, view: &View, passed: Duration, later: Option<Duration>, random: u64) -> Step {
        self.away = None;
        if self.last != Some(view.status) {
            self.looks = 0;
            self.last = Some(view.status);
        }
        match view.status {
            OrderStatus::Valid => Step::Download,
            OrderStatus::Invalid => Step::GiveUp(failure_of(view)),
            _ if passed >= self.patience.order => Step::GiveUp(Cause::Overdue),
            OrderStatus::Processing => self.look(passed, later, random),
            OrderStatus::Ready if self.finalizes == 0 => self.finalize(),
            // The request has been taken, and the order shows nothing of it: not at once again.
            OrderStatus::Ready if self.looks < self.finalizes => self.look(passed, later, random),
            OrderStatus::Ready if self.finalizes < FINALIZES => self.finalize(),
            OrderStatus::Ready => Step::GiveUp(Cause::NotTaken),
            OrderStatus::Pending => self.prove(view, passed, later, random),
        }
    }

    /// The authority did not answer, or said "later".
    pub fn missed(&mut self, passed: Duration, later: Option<Duration>, random: u64) -> Step {
        let since = *self.away.get_or_insert(passed);
        if passed >= self.patience.order {
            return Step::GiveUp(Cause::Overdue);
        }
        let left = self.patience.unreachable.saturating_sub(passed.saturating_sub(since));
        if left.is_zero() || later.is_some_and(|later| later > left) {
            return Step::GiveUp(Cause::Unreachable);
        }
        self.look(passed, later, random)
    }

    /// The answer of a challenge is visible.
    pub fn presented(&mut self, name: &Name) {
        if let Some(chosen) = self.chosen.get_mut(name) {
            chosen.presented = true;
        }
    }

    /// The answer could not be made visible: another challenge may do.
    pub fn not_presented(&mut self, name: &Name) {
        if let Some(chosen) = self.chosen.remove(name) {
            self.not_presented.insert((name.clone(), chosen.kind));
        }
    }

    /// The authority knows that the answer is visible.
    pub fn told(&mut self, name: &Name) {
        if let Some(chosen) = self.chosen.get_mut(name) {
            chosen.told = true;
        }
    }

    fn finalize(&mut self) -> Step {
        self.finalizes += 1;
        self.looks = 0;
        Step::Finalize
    }

    fn prove(&mut self, view: &View, passed: Duration, later: Option<Duration>, random: u64) -> Step {
        // One that failed takes the order with it, as soon as the authority has noticed.
        if view
            .authorizations
            .iter()
            .any(|one| !matches!(one.status, AuthorizationStatus::Pending | AuthorizationStatus::Valid))
        {
            return Step::GiveUp(failure_of(view));
        }
        let pending = || view.authorizations.iter().filter(|one| one.status == AuthorizationStatus::Pending);
        // All are visible before the authority hears of one: a zone and its wildcard have two values
        // at one name, and a resolver that has seen the first alone would keep it.
        for authorization in pending() {
            let chosen = match self.chosen.get(&authorization.name) {
                Some(chosen) => *chosen,
                None => match self.choose(authorization) {
                    Some(chosen) => chosen,
                    None => {
                        let offered = authorization.challenges.iter().filter_map(|one| one.kind).collect();
                        return Step::GiveUp(Cause::NoChallenge { name: authorization.name.clone(), offered });
                    }
                },
            };
            self.chosen.insert(authorization.name.clone(), chosen);
            if !chosen.presented {
                return Step::Present { name: authorization.name.clone(), kind: chosen.kind };
            }
        }
        for authorization in pending() {
            if let Some(chosen) = self.chosen.get(&authorization.name).filter(|chosen| !chosen.told) {
                return Step::Tell { name: authorization.name.clone(), kind: chosen.kind };
            }
        }
        self.look(passed, later, random)
    }

    fn choose(&self, authorization: &Authorization) -> Option<Chosen> {
        let name = &authorization.name;
        let offered = |kind: ChallengeKind| authorization.challenges.iter().find(|one| one.kind == Some(kind));
        let able: Vec<_> = self
            .kinds
            .iter()
            .copied()
            .filter(|kind| !name.is_wildcard() || kind.proves_wildcards())
            .filter(|kind| !self.not_presented.contains(&(name.clone(), *kind)))
            .filter_map(|kind| offered(kind).map(|challenge| (kind, challenge.status)))
            .collect();
        // An earlier process has told the authority of this one: that cannot be taken back.
        let begun = able.iter().find(|(_, status)| *status == ChallengeStatus::Processing);
        let turn = usize::try_from(self.failures).unwrap_or_default() % able.len().max(1);
        let (kind, status) = begun.or_else(|| able.get(turn))?;
        Some(Chosen { kind: *kind, presented: false, told: *status != ChallengeStatus::Pending })
    }

    /// Longer each time, by a quarter more or less, and as long as the authority asks for.
    fn look(&mut self, passed: Duration, later: Option<Duration>, random: u64) -> Step {
        let Patience { order, first_look, longest_look, .. } = self.patience;
        let grown = first_look.saturating_mul(1 << self.looks.min(16)).min(longest_look);
        self.looks = self.looks.saturating_add(1);
        let quarter = u32::try_from(random % 513).unwrap_or_default();
        let spread = grown.saturating_mul(768 + quarter) / 1024;
        let after = later.map_or(spread, |later| later.max(spread));
        Step::Look { after: after.min(order.saturating_sub(passed)) }
    }
}

/// What is wrong with an order that failed: what is said of a name says more than what is said of the order.
fn failure_of(view: &View) -> Cause {
    let failed =
        |one: &&Authorization| !matches!(one.status, AuthorizationStatus::Pending | AuthorizationStatus::Valid);
    if let Some(authorization) = view.authorizations.iter().find(failed) {
        let problem = authorization.challenges.iter().find_map(|challenge| challenge.problem.clone());
        let problem = problem.or_else(|| view.problem.clone()).unwrap_or_else(|| Problem {
            detail: format!("the authorization is {:?}, and the authority gives no reason", authorization.status)
                .to_lowercase(),
            ..Problem::default()
        });
        return Cause::AuthorizationFailed { name: authorization.name.clone(), problem };
    }
    let problem = view.problem.clone().unwrap_or_else(|| Problem {
        detail: "the order failed, and the authority gives no reason".to_owned(),
        ..Problem::default()
    });
    Cause::OrderFailed { problem }
}
