//! Carries out what [`Progress`](crate::order::Progress) says, with the authority and the solvers.

use std::sync::Arc;
use std::time::Duration;

use pki_core::{Csr, Time};
use tokio::time::{Instant, sleep};

use crate::account::{Account, until};
use crate::check::{Chain, leaf_of};
use crate::error::Error;
use crate::http::{Failure, problem_of, take_retry_at, with_retry_at};
use crate::name::Name;
use crate::order::{self, Authorization, Cause, ChallengeKind, OrderStatus, Patience, Progress, Step, View};
use crate::solver::{Challenge, Solver, Solvers, is_token};

/// An order that has begun, as the caller has stored it.
#[derive(Clone, Debug)]
pub struct Order<'a> {
    /// What [`Account::begin`] gave.
    pub url: &'a str,
    /// The names that it was begun with.
    pub names: &'a [Name],
    /// The request; always the same for one order.
    pub csr: &'a Csr,
    /// How many orders for these names have failed before: each moves on to the next challenge.
    pub failures: u32,
}

/// Nonces that may be refused in one call before each counts as an answer that did not come; each is the
/// last of several that were tried.
const BAD_NONCES: u32 = 50;
/// The most authorizations of an order that are looked at, beyond those that were asked for.
const AUTHORIZATIONS: usize = 8;

impl Account {
    /// Goes on with an order until there is a certificate.
    ///
    /// May be dropped at any point and called again with the same order, in another process too:
    /// it asks the authority how far the order is. Answers to challenges are withdrawn when this
    /// ends, however it ends; when it is dropped while the authority looks for one, after
    /// [`Limits::linger`](crate::Limits::linger). A process that ends there may find that the order has failed.
    ///
    /// # Errors
    ///
    /// Whether to call again, to begin anew, or to change something first says [`Error::remedy`].
    /// [`Error::Wrong`] for a certificate that is not what was asked for; revoke it.
    pub async fn proceed(&self, order: &Order<'_>, solvers: &Solvers) -> Result<Chain, Error> {
        let mut shown = Shown { answers: Vec::new(), linger: self.0.client.settings().limits.linger };
        let result = with_retry_at(self.drive(order, solvers, &mut shown)).await;
        shown.withdraw_all().await;
        result
    }

    async fn drive(&self, order: &Order<'_>, solvers: &Solvers, shown: &mut Shown) -> Result<Chain, Error> {
        let settings = self.0.client.settings();
        let limits = settings.limits;
        let patience = Patience {
            order: limits.order,
            unreachable: limits.patience,
            first_look: limits.first_look,
            longest_look: limits.longest_look,
        };
        let began = Instant::now();
        let mut progress = Progress::new(solvers.kinds(), order.failures, patience);
        let mut handle = None;
        // What is kept for the error, when a solver fails and no other challenge is left, or time is over.
        let mut last_solver = None;
        let mut last_failure = None;
        let mut bad_nonces = 0;
        loop {
            let step = match self.look(order, &mut handle).await {
                Ok(view) => {
                    // Steps without a wait in between need no new view.
                    let later = take_retry_at().map(|at| until(at, settings.now()));
                    self.act(order, &view, later, solvers, shown, &mut progress, &mut handle, began, &mut last_solver)
                        .await
                }
                Err(failure) => Err(failure),
            };
            let step = match step {
                Ok(Step::Download) => match self.download(&mut handle).await {
                    Ok(pem) => return self.checked(order, &pem),
                    Err(failure) => Err(failure),
                },
                other => other,
            };
            let step = match step {
                Ok(step) => step,
                // Chance, and no reason to wait; an authority that likes none is another matter.
                Err(failure) if failure.is_bad_nonce() && bad_nonces < BAD_NONCES => {
                    bad_nonces += 1;
                    continue;
                }
                Err(failure) => {
                    let (retry_at, is_over) = transient(&failure);
                    if is_over {
                        return Err(of_order(failure, handle.is_none()));
                    }
                    let later = retry_at.map(|at| until(at, settings.now()));
                    last_failure = Some(failure);
                    progress.missed(began.elapsed(), later, random())
                }
            };
            match step {
                Step::Look { after } => sleep(after).await,
                Step::GiveUp(cause) => return Err(given_up(cause, solvers, last_solver, last_failure)),
                // The others have been carried out.
                _ => {}
            }
        }
    }

    /// What the directory says.
    async fn look(&self, order: &Order<'_>, handle: &mut Option<instant_acme::Order>) -> Result<View, Failure> {
        match handle {
            Some(known) => {
                known.refresh().await.map_err(Failure::of_library)?;
            }
            None => {
                let found = self.0.inner.order(order.url.to_owned()).await.map_err(Failure::of_library)?;
                *handle = Some(found);
            }
        }
        let Some(known) = handle else { return Err(Failure::Nonsense("no order".to_owned())) };
        let state = known.state();
        let mut view = View {
            status: status(state.status),
            problem: state.error.as_ref().map(problem_of),
            authorizations: Vec::new(),
        };
        if !matches!(view.status, OrderStatus::Pending | OrderStatus::Invalid) {
            return Ok(view);
        }
        let (found, limit) = (state.authorizations.len(), order.names.len() + AUTHORIZATIONS);
        if found > limit {
            return Err(Failure::Nonsense(format!("the order has {found} authorizations, more than {limit}")));
        }
        let mut authorizations = known.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let authorization = authorization.map_err(Failure::of_library)?;
            view.authorizations.push(authorization_of(&authorization, order.names)?);
        }
        if view.status == OrderStatus::Pending && view.authorizations.is_empty() {
            return Err(Failure::Nonsense("the order is pending, and there is nothing to prove".to_owned()));
        }
        Ok(view)
    }

    /// Carries out steps until one needs a new view.
    #[expect(clippy::too_many_arguments, reason = "the state of one loop")]
    async fn act(
        &self,
        order: &Order<'_>,
        view: &View,
        later: Option<Duration>,
        solvers: &Solvers,
        shown: &mut Shown,
        progress: &mut Progress,
        handle: &mut Option<instant_acme::Order>,
        began: Instant,
        last_solver: &mut Option<Error>,
    ) -> Result<Step, Failure> {
        let Some(known) = handle else { return Err(Failure::Nonsense("no order".to_owned())) };
        loop {
            let step = progress.next(view, began.elapsed(), later, random());
            match &step {
                Step::Present { name, kind } => {
                    let Some(solver) = solvers.of(*kind) else {
                        progress.not_presented(name);
                        continue;
                    };
                    let challenge = self.challenge(known, name, *kind).await?;
                    match shown.present(solver, challenge).await {
                        Ok(()) => {
                            progress.presented(name);
                            if is_told(view, name, *kind) {
                                shown.told(name);
                            }
                        }
                        Err(error) => {
                            tracing::warn!(%name, %kind, error, "a challenge cannot be answered");
                            progress.not_presented(name);
                            let error = Error::Solver { name: name.clone(), kind: *kind, error };
                            *last_solver = Some(error);
                        }
                    }
                }
                Step::Tell { name, kind } => {
                    // Before it hears of it, since it may look at once.
                    shown.told(name);
                    match self.tell(known, name, *kind).await {
                        // What is wrong stands in the authorization.
                        Ok(()) | Err(Failure::Refused { status: 400..=428, .. }) => progress.told(name),
                        Err(failure) => return Err(failure),
                    }
                }
                Step::Finalize => {
                    match known.finalize_csr(order.csr.der()).await.map_err(Failure::of_library) {
                        Ok(()) => {}
                        // Another call was quicker, or is being worked on.
                        Err(Failure::Refused { problem, .. }) if problem.kind == "orderNotReady" => {}
                        Err(failure) => return Err(refused_csr(failure)),
                    }
                    // Boulder answers "processing" with Retry-After, and may be done at the next look.
                    return Ok(step);
                }
                Step::Download | Step::GiveUp(_) | Step::Look { .. } => return Ok(step),
            }
        }
    }

    async fn download(&self, handle: &mut Option<instant_acme::Order>) -> Result<String, Failure> {
        let Some(known) = handle else { return Err(Failure::Nonsense("no order".to_owned())) };
        match known.certificate().await.map_err(Failure::of_library)? {
            Some(pem) => Ok(pem),
            None => Err(Failure::Unreachable("the certificate is not there yet".to_owned())),
        }
    }

    fn checked(&self, order: &Order<'_>, pem: &str) -> Result<Chain, Error> {
        let settings = self.0.client.settings();
        Chain::check(pem.as_bytes(), order.csr.spki(), order.names, &settings.issuers, settings.now()).map_err(
            |wrong| match leaf_of(pem.as_bytes()) {
                Some(leaf) if wrong.may_be_our_clock() => Error::NotNow { wrong, leaf },
                leaf => Error::Wrong { wrong, leaf },
            },
        )
    }

    async fn challenge(
        &self,
        order: &mut instant_acme::Order,
        name: &Name,
        kind: ChallengeKind,
    ) -> Result<Challenge, Failure> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let authorization = authorization.map_err(Failure::of_library)?;
            if authorization.identifier().to_string().parse().ok().as_ref() != Some(name) {
                continue;
            }
            if let Some(found) = authorization.challenges.iter().find(|one| kind_of(&one.r#type) == Some(kind)) {
                if kind != ChallengeKind::DnsPersist01 && !is_token(&found.token) {
                    return Err(Failure::Nonsense(format!("the token of {kind} for {name} is none")));
                }
                return Ok(Challenge::new(name.clone(), kind, &found.token, &self.0.thumbprint));
            }
        }
        Err(Failure::Nonsense(format!("{kind} for {name} is not offered any more")))
    }

    async fn tell(&self, order: &mut instant_acme::Order, name: &Name, kind: ChallengeKind) -> Result<(), Failure> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(Failure::of_library)?;
            if authorization.identifier().to_string().parse().ok().as_ref() != Some(name) {
                continue;
            }
            let mut library = authorization.challenges.iter().map(|one| &one.r#type);
            let Some(found) = library.find(|one| kind_of(one) == Some(kind)).cloned() else { break };
            let Some(mut challenge) = authorization.challenge(found) else { break };
            return challenge.set_ready().await.map_err(Failure::of_library);
        }
        Err(Failure::Nonsense(format!("{kind} for {name} is not offered any more")))
    }
}

/// The answers that are visible.
struct Shown {
    answers: Vec<One>,
    linger: Duration,
}

struct One {
    solver: Arc<dyn Solver>,
    challenge: Challenge,
    /// How long it stays when nobody waits for the order any more: the authority may be looking for it.
    linger: Duration,
    withdrawn: bool,
}

impl Shown {
    /// On the list before it is visible: whoever leaves in between leaves nothing behind. One that
    /// failed is withdrawn with the others, since a program may have been ended half-way.
    async fn present(
        &mut self,
        solver: Arc<dyn Solver>,
        challenge: Challenge,
    ) -> Result<(), crate::solver::SolverError> {
        let one =
            One { solver: Arc::clone(&solver), challenge: challenge.clone(), linger: Duration::ZERO, withdrawn: false };
        self.answers.push(one);
        solver.present(&challenge).await
    }

    fn told(&mut self, name: &Name) {
        for one in self.answers.iter_mut().filter(|one| one.challenge.name == *name) {
            one.linger = self.linger;
        }
    }

    /// On tasks of their own: a hook that has begun to take a record away is not ended with who waits for it.
    async fn withdraw_all(&mut self) {
        let answers = std::mem::take(&mut self.answers);
        let tasks: Vec<_> = answers
            .into_iter()
            .map(|mut one| {
                one.withdrawn = true;
                let (solver, challenge) = (Arc::clone(&one.solver), one.challenge.clone());
                tokio::spawn(async move { withdraw(&solver, &challenge).await })
            })
            .collect();
        for task in tasks {
            if let Err(error) = task.await {
                tracing::warn!(error = &error as &dyn std::error::Error, "a challenge's answer may stay");
            }
        }
    }
}

impl Drop for One {
    fn drop(&mut self) {
        if self.withdrawn {
            return;
        }
        let (solver, challenge) = (Arc::clone(&self.solver), self.challenge.clone());
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                let linger = self.linger;
                runtime.spawn(async move {
                    sleep(linger).await;
                    withdraw(&solver, &challenge).await;
                });
            }
            Err(_) => tracing::warn!(name = %challenge.name(), "a challenge's answer stays: the runtime has ended"),
        }
    }
}

async fn withdraw(solver: &Arc<dyn Solver>, challenge: &Challenge) {
    if let Err(error) = solver.withdraw(challenge).await {
        tracing::warn!(name = %challenge.name(), kind = %challenge.kind(), error, "a challenge's answer stays");
    }
}

/// Has an earlier process told the authority to look?
fn is_told(view: &View, name: &Name, kind: ChallengeKind) -> bool {
    let begun = |one: &order::Challenge| one.kind == Some(kind) && one.status != order::ChallengeStatus::Pending;
    view.authorizations.iter().any(|one| one.name == *name && one.challenges.iter().any(begun))
}

fn random() -> u64 {
    // Only spreads questions over time; without randomness they come together.
    getrandom::u64().unwrap_or_default()
}

fn status(status: instant_acme::OrderStatus) -> OrderStatus {
    match status {
        instant_acme::OrderStatus::Pending => OrderStatus::Pending,
        instant_acme::OrderStatus::Ready => OrderStatus::Ready,
        instant_acme::OrderStatus::Processing => OrderStatus::Processing,
        instant_acme::OrderStatus::Valid => OrderStatus::Valid,
        instant_acme::OrderStatus::Invalid => OrderStatus::Invalid,
    }
}

fn authorization_of(state: &instant_acme::AuthorizationState, names: &[Name]) -> Result<Authorization, Failure> {
    use instant_acme::{AuthorizationStatus as Library, ChallengeStatus};

    let found = state.identifier().to_string();
    // Nobody proves a name for somebody else.
    let name = found.parse().ok().filter(|name| names.contains(name)).ok_or_else(|| {
        let found = crate::problem::cleaned(&found, 253);
        Failure::Nonsense(format!("an authorization is for \"{found}\", which was not asked for"))
    })?;
    Ok(Authorization {
        name,
        status: match state.status {
            Library::Pending => order::AuthorizationStatus::Pending,
            Library::Valid => order::AuthorizationStatus::Valid,
            Library::Invalid => order::AuthorizationStatus::Invalid,
            Library::Revoked => order::AuthorizationStatus::Revoked,
            Library::Expired => order::AuthorizationStatus::Expired,
            Library::Deactivated => order::AuthorizationStatus::Deactivated,
        },
        challenges: state
            .challenges
            .iter()
            .map(|challenge| order::Challenge {
                kind: kind_of(&challenge.r#type),
                status: match challenge.status {
                    ChallengeStatus::Pending => order::ChallengeStatus::Pending,
                    ChallengeStatus::Processing => order::ChallengeStatus::Processing,
                    ChallengeStatus::Valid => order::ChallengeStatus::Valid,
                    ChallengeStatus::Invalid => order::ChallengeStatus::Invalid,
                },
                problem: challenge.error.as_ref().map(problem_of),
            })
            .collect(),
    })
}

fn kind_of(kind: &instant_acme::ChallengeType) -> Option<ChallengeKind> {
    use instant_acme::ChallengeType;

    match kind {
        ChallengeType::Http01 => Some(ChallengeKind::Http01),
        ChallengeType::Dns01 => Some(ChallengeKind::Dns01),
        ChallengeType::TlsAlpn01 => Some(ChallengeKind::TlsAlpn01),
        ChallengeType::Unknown(kind) => kind.parse().ok(),
        _ => None,
    }
}

/// When to try again what failed, and is there no use in it?
fn transient(failure: &Failure) -> (Option<Time>, bool) {
    match failure {
        Failure::Nonsense(_) => (None, true),
        Failure::Refused { retry_at, .. } if failure.is_bad_nonce() => (*retry_at, false),
        Failure::Refused { status: 429 | 500..=599, retry_at, .. } => (*retry_at, false),
        Failure::Refused { .. } => (None, true),
        Failure::Unreachable(_) => (None, false),
    }
}

/// What a refusal means where an order is asked for, of which nothing is known yet.
fn of_order(failure: Failure, is_first: bool) -> Error {
    match failure {
        Failure::Refused { status: 401 | 403 | 404, problem, .. }
            if is_first && matches!(problem.kind.as_str(), "malformed" | "unauthorized" | "") =>
        {
            match Error::from(Failure::Refused { status: 403, problem: problem.clone(), retry_at: None }) {
                Error::AccountGone { problem } => Error::AccountGone { problem },
                _ => Error::OrderGone { problem },
            }
        }
        other => other.into(),
    }
}

/// Authorities have several words for a request that they do not like.
fn refused_csr(failure: Failure) -> Failure {
    match failure {
        Failure::Refused { status: status @ (400 | 401 | 403), mut problem, retry_at }
            if matches!(problem.kind.as_str(), "malformed" | "unauthorized" | "badSignatureAlgorithm") =>
        {
            problem.kind = "badCSR".to_owned();
            Failure::Refused { status, problem, retry_at }
        }
        other => other,
    }
}

fn given_up(cause: Cause, solvers: &Solvers, solver: Option<Error>, failure: Option<Failure>) -> Error {
    match cause {
        Cause::AuthorizationFailed { name, problem } => {
            Error::of_problem(problem, |problem| Error::AuthorizationFailed { name, problem })
        }
        Cause::NoChallenge { name, offered } => solver.unwrap_or_else(|| {
            let words = |kinds: &[ChallengeKind]| match kinds {
                [] => "none".to_owned(),
                kinds => kinds.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", "),
            };
            Error::NoChallenge { name, offered: words(&offered), able: words(&solvers.kinds()) }
        }),
        Cause::NotTaken => Error::Nonsense("the request is taken, and the order stays as it was".to_owned()),
        Cause::OrderFailed { problem } => Error::of_problem(problem, |problem| Error::OrderFailed { problem }),
        Cause::Overdue => Error::Overdue,
        Cause::Unreachable => failure.map_or_else(|| Error::Unreachable("no answer".to_owned()), Error::from),
    }
}
