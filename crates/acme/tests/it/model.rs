//! The pure part of an order against a reference that only reads the log, in a world where
//! authorities dawdle, answers get lost and processes are killed.

use std::time::Duration;

use acme::order::{
    Authorization, AuthorizationStatus, Cause, Challenge, ChallengeKind, ChallengeStatus, OrderStatus, Patience,
    Progress, Step, View,
};
use acme::{Name, Problem};
use proptest::prelude::*;

const KINDS: [ChallengeKind; 3] = [ChallengeKind::TlsAlpn01, ChallengeKind::Http01, ChallengeKind::Dns01];

const PATIENCE: Patience = Patience {
    order: Duration::from_secs(600),
    unreachable: Duration::from_secs(60),
    first_look: Duration::from_millis(500),
    longest_look: Duration::from_secs(20),
};

/// What has happened in this process.
#[derive(Clone, Debug, PartialEq)]
enum Event {
    Seen(OrderStatus),
    Missed(Duration),
    Presented(Name, ChallengeKind),
    NotPresented(Name, ChallengeKind),
    Told(Name),
    Finalized,
    Looked,
}

/// What may come next.
#[derive(Debug)]
enum Expected {
    Step(Step),
    /// A wait between these.
    Look(Duration, Duration),
}

/// Says from the log alone what is to be done.
struct Reference<'a> {
    log: &'a [Event],
    preferences: &'a [ChallengeKind],
    failures: u32,
    passed: Duration,
    later: Option<Duration>,
}

impl Reference<'_> {
    fn after_view(&self, view: &View) -> Expected {
        if view.status == OrderStatus::Valid {
            return Expected::Step(Step::Download);
        }
        if view.status == OrderStatus::Invalid {
            return Expected::Step(Step::GiveUp(self.failure(view)));
        }
        if self.passed >= PATIENCE.order {
            return Expected::Step(Step::GiveUp(Cause::Overdue));
        }
        match view.status {
            OrderStatus::Ready => {
                let finalized = self.log.iter().filter(|event| **event == Event::Finalized).count();
                if finalized == 0 || self.looks() >= finalized {
                    let step = if finalized < 4 { Step::Finalize } else { Step::GiveUp(Cause::NotTaken) };
                    return Expected::Step(step);
                }
                self.wait()
            }
            OrderStatus::Pending => self.pending(view),
            _ => self.wait(),
        }
    }

    fn after_miss(&self) -> Expected {
        if self.passed >= PATIENCE.order {
            return Expected::Step(Step::GiveUp(Cause::Overdue));
        }
        let since_view = self.log.iter().rposition(|event| matches!(event, Event::Seen(_))).map_or(0, |at| at + 1);
        let first = self.log[since_view..].iter().find_map(|event| match event {
            Event::Missed(at) => Some(*at),
            _ => None,
        });
        let end = first.unwrap_or(self.passed) + PATIENCE.unreachable;
        if self.passed >= end || self.later.is_some_and(|later| self.passed + later > end) {
            return Expected::Step(Step::GiveUp(Cause::Unreachable));
        }
        self.wait()
    }

    fn pending(&self, view: &View) -> Expected {
        let is_failed = |one: &&Authorization| {
            one.status != AuthorizationStatus::Pending && one.status != AuthorizationStatus::Valid
        };
        if view.authorizations.iter().any(|one| is_failed(&one)) {
            return Expected::Step(Step::GiveUp(self.failure(view)));
        }
        let pending: Vec<_> =
            view.authorizations.iter().filter(|one| one.status == AuthorizationStatus::Pending).collect();
        for one in &pending {
            if self.presented(&one.name).is_none() {
                let name = one.name.clone();
                return Expected::Step(match self.choice(one) {
                    Some(kind) => Step::Present { name, kind },
                    None => {
                        let offered = one.challenges.iter().filter_map(|one| one.kind).collect();
                        Step::GiveUp(Cause::NoChallenge { name, offered })
                    }
                });
            }
        }
        for one in &pending {
            let Some(kind) = self.presented(&one.name) else { continue };
            if !self.log.contains(&Event::Told(one.name.clone())) {
                return Expected::Step(Step::Tell { name: one.name.clone(), kind });
            }
        }
        self.wait()
    }

    fn presented(&self, name: &Name) -> Option<ChallengeKind> {
        self.log.iter().find_map(|event| match event {
            Event::Presented(one, kind) if one == name => Some(*kind),
            _ => None,
        })
    }

    fn choice(&self, one: &Authorization) -> Option<ChallengeKind> {
        let mut able = Vec::new();
        for kind in self.preferences {
            let fits = !one.name.is_wildcard() || *kind == ChallengeKind::Dns01;
            let failed = self.log.contains(&Event::NotPresented(one.name.clone(), *kind));
            for challenge in one.challenges.iter().filter(|challenge| challenge.kind == Some(*kind)) {
                if fits && !failed {
                    able.push((*kind, challenge.status));
                }
            }
        }
        if let Some((kind, _)) = able.iter().find(|(_, status)| *status == ChallengeStatus::Processing) {
            return Some(*kind);
        }
        if able.is_empty() { None } else { Some(able[self.failures as usize % able.len()].0) }
    }

    fn failure(&self, view: &View) -> Cause {
        for one in &view.authorizations {
            if one.status == AuthorizationStatus::Invalid {
                let problem = one.challenges.iter().find_map(|challenge| challenge.problem.clone());
                return Cause::AuthorizationFailed { name: one.name.clone(), problem: problem.expect("a reason") };
            }
        }
        Cause::OrderFailed { problem: view.problem.clone().expect("a reason") }
    }

    /// Waits since the status changed or the request was sent.
    fn looks(&self) -> usize {
        let mut looks = 0;
        let mut status = None;
        for event in self.log {
            match event {
                Event::Seen(now) if Some(*now) != status => (status, looks) = (Some(*now), 0),
                Event::Finalized => looks = 0,
                Event::Looked => looks += 1,
                _ => {}
            }
        }
        looks
    }

    fn wait(&self) -> Expected {
        let mut nominal = PATIENCE.first_look;
        for _ in 0..self.looks() {
            nominal = (nominal * 2).min(PATIENCE.longest_look);
        }
        let left = PATIENCE.order - self.passed;
        let least = self.later.unwrap_or_default();
        Expected::Look((nominal * 3 / 4).max(least).min(left), (nominal * 5 / 4).max(least).min(left))
    }
}

/// An authority that does as it was drawn.
#[derive(Clone, Debug)]
struct World {
    view: View,
    /// For each authorization: does it come to a good end, and after how many questions?
    fates: Vec<(bool, u8)>,
    /// After how many questions a request is worked on, and then done.
    taken: u8,
    done: u8,
    finalized: bool,
    certificates: u32,
}

impl World {
    fn answer(&mut self) -> View {
        for (one, (good, wait)) in self.view.authorizations.iter_mut().zip(&mut self.fates) {
            let Some(challenge) =
                one.challenges.iter_mut().find(|challenge| challenge.status == ChallengeStatus::Processing)
            else {
                continue;
            };
            *wait = wait.saturating_sub(1);
            if *wait == 0 {
                (one.status, challenge.status) = match good {
                    true => (AuthorizationStatus::Valid, ChallengeStatus::Valid),
                    false => (AuthorizationStatus::Invalid, ChallengeStatus::Invalid),
                };
                challenge.problem = (!*good).then(|| problem("nobody is there"));
            }
        }
        let all = |status| self.view.authorizations.iter().all(|one| one.status == status);
        self.view.status = match self.view.status {
            OrderStatus::Pending if all(AuthorizationStatus::Valid) => OrderStatus::Ready,
            OrderStatus::Pending
                if self.view.authorizations.iter().any(|one| one.status == AuthorizationStatus::Invalid) =>
            {
                OrderStatus::Invalid
            }
            OrderStatus::Ready if self.finalized => {
                self.taken = self.taken.saturating_sub(1);
                if self.taken == 0 { OrderStatus::Processing } else { OrderStatus::Ready }
            }
            OrderStatus::Processing => {
                self.done = self.done.saturating_sub(1);
                if self.done == 0 {
                    self.certificates += 1;
                    OrderStatus::Valid
                } else {
                    OrderStatus::Processing
                }
            }
            other => other,
        };
        self.view.clone()
    }

    fn tell(&mut self, name: &Name, kind: ChallengeKind) {
        let one = self.view.authorizations.iter_mut().find(|one| one.name == *name).expect("an authorization");
        let challenge = one.challenges.iter_mut().find(|one| one.kind == Some(kind)).expect("a challenge");
        if challenge.status == ChallengeStatus::Pending {
            challenge.status = ChallengeStatus::Processing;
        }
    }
}

fn problem(detail: &str) -> Problem {
    Problem { detail: detail.to_owned(), ..Problem::default() }
}

fn worlds() -> impl Strategy<Value = World> {
    let offered = prop::sample::subsequence(KINDS.to_vec(), 0..=3);
    let one = (offered, any::<bool>(), prop::bool::weighted(0.8), 1..6_u8, prop::bool::weighted(0.2));
    (prop::collection::vec(one, 1..4), 1..7_u8, 1..8_u8).prop_map(|(all, taken, done)| {
        let mut fates = Vec::new();
        let mut authorizations = Vec::new();
        for (at, (kinds, wildcard, good, wait, valid)) in all.into_iter().enumerate() {
            let domain = format!("n{at}.example").parse().expect("a name");
            let kinds = kinds.into_iter().map(Some).chain([None]);
            let challenge = |kind| Challenge { kind, status: ChallengeStatus::Pending, problem: None };
            authorizations.push(Authorization {
                name: if wildcard { Name::wildcard(domain) } else { Name::host(domain) },
                status: if valid { AuthorizationStatus::Valid } else { AuthorizationStatus::Pending },
                challenges: kinds.map(challenge).collect(),
            });
            fates.push((good, wait));
        }
        let view = View { status: OrderStatus::Pending, problem: None, authorizations };
        World { view, fates, taken, done, finalized: false, certificates: 0 }
    })
}

/// What happens to the process and to its questions, one draw for each turn.
#[derive(Clone, Copy, Debug)]
struct Turn {
    missed: bool,
    killed: bool,
    fails_to_present: bool,
    later: Option<u64>,
    random: u64,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = (0..100_u8, 0..100_u8, 0..100_u8, prop::option::weighted(0.2, 0..90_u64), any::<u64>());
    let turn = turn.prop_map(|(missed, killed, fails, later, random)| Turn {
        missed: missed < 15,
        killed: killed < 5,
        fails_to_present: fails < 10,
        later,
        random,
    });
    prop::collection::vec(turn, 400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn an_order_does_what_the_reference_says(
        mut world in worlds(),
        turns in turns(),
        preferences in prop::sample::subsequence(KINDS.to_vec(), 0..=3).prop_shuffle(),
        failures in 0..5_u32,
    ) {
        let fresh = || Progress::new(preferences.clone(), failures, PATIENCE);
        let (mut progress, mut log, mut passed) = (fresh(), Vec::new(), Duration::ZERO);
        let mut ended = None;
        'turns: for turn in &turns {
            if turn.killed {
                (progress, log, passed) = (fresh(), Vec::new(), Duration::ZERO);
            }
            let later = turn.later.map(Duration::from_secs);
            let view = (!turn.missed).then(|| world.answer());
            // Steps until one needs another view.
            loop {
                match &view {
                    Some(view) => log.push(Event::Seen(view.status)),
                    None => log.push(Event::Missed(passed)),
                }
                let reference = Reference { log: &log, preferences: &preferences, failures, passed, later };
                let (step, expected) = match &view {
                    Some(view) => (progress.next(view, passed, later, turn.random), reference.after_view(view)),
                    None => (progress.missed(passed, later, turn.random), reference.after_miss()),
                };
                match (&expected, &step) {
                    (Expected::Step(wanted), step) => prop_assert_eq!(wanted, step, "{:?}", log),
                    (Expected::Look(least, most), Step::Look { after }) => {
                        prop_assert!((least..=most).contains(&after), "{:?}: {:?} {:?}", after, expected, log);
                    }
                    _ => prop_assert!(false, "{:?} instead of {:?}: {:?}", step, expected, log),
                }
                match step {
                    Step::Look { after } => {
                        log.push(Event::Looked);
                        passed += after;
                        prop_assert!(passed <= PATIENCE.order);
                        continue 'turns;
                    }
                    Step::Finalize => {
                        prop_assert_eq!(world.view.status, OrderStatus::Ready);
                        world.finalized = true;
                        log.push(Event::Finalized);
                        continue 'turns;
                    }
                    Step::Present { name, kind } if turn.fails_to_present => {
                        progress.not_presented(&name);
                        log.push(Event::NotPresented(name, kind));
                    }
                    Step::Present { name, kind } => {
                        progress.presented(&name);
                        // What had been told before a restart is not told again.
                        let is_told = view.iter().flat_map(|view| &view.authorizations).any(|one| {
                            let is_begun = |one: &Challenge| one.status != ChallengeStatus::Pending;
                            let mut same = one.challenges.iter().filter(|one| one.kind == Some(kind));
                            one.name == name && same.any(is_begun)
                        });
                        log.push(Event::Presented(name.clone(), kind));
                        if is_told {
                            log.push(Event::Told(name));
                        }
                    }
                    Step::Tell { name, kind } => {
                        world.tell(&name, kind);
                        progress.told(&name);
                        log.push(Event::Told(name));
                    }
                    Step::Download | Step::GiveUp(_) => {
                        ended = Some(step);
                        break 'turns;
                    }
                }
            }
        }
        prop_assert!(ended.is_some(), "400 turns are enough for every order: {:?}", log);
        prop_assert!(world.certificates <= 1);
        prop_assert_eq!(ended == Some(Step::Download), world.view.status == OrderStatus::Valid);
    }
}
