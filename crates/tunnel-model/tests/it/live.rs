//! A tunnel's traffic: one table of promises, and the comparison with the
//! plain model.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tunnel_model::{
    Carrier, EndReason, ExchangeId, ExchangeKind, Failure, InstanceId, IntakeId, Live, LiveCommand, LiveEvent,
    LiveRefusal, LiveRules, SessionId, SessionKind,
};

use crate::live_harness;

#[test]
fn every_event_and_refusal_occurs_in_the_comparison() {
    let mut state = 0x1234_5678_9abc_def0_u64;
    let mut outcomes = BTreeSet::new();
    for _ in 0..400 {
        let bytes: Vec<u8> = (0..3000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state.to_be_bytes()[0]
            })
            .collect();
        outcomes.extend(live_harness::run(&bytes));
    }
    for outcome in [
        "BridgeLost",
        "BridgeOpened",
        "EnvelopeAssigned",
        "ExchangeOpened",
        "ExchangeFailed",
        "ExchangeQueued",
        "IntakesReleased",
        "TunnelAnnounced",
        "ReplyAccepted",
        "SessionAdmitted",
        "SessionAnnounced",
        "SessionDrained",
        "SessionEnded",
        "SessionSuperseded",
        "TunnelWentOffline",
        "BridgeTaken",
        "Draining",
        "Offline",
        "QueueFull",
        "Superseded",
        "TooManyIntakes",
        "UnknownExchange",
        "UnknownSession",
        "UnwantedBridge",
        "BesideOther",
        "BesideOwn",
    ] {
        assert!(outcomes.contains(outcome), "never seen: {outcome}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_model_and_the_plain_one_agree(bytes in proptest::collection::vec(any::<u8>(), 0..900)) {
        live_harness::run(&bytes);
    }
}

/// A tunnel with a clock that moves when it is told to.
struct World {
    live: Live,
    now: Instant,
}

const OLD: SessionId = SessionId(1);
const NEW: SessionId = SessionId(2);
const ONE: ExchangeId = ExchangeId(1);

impl World {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "an instant has no other beginning; only differences count")]
        let now = Instant::now();
        Self { live: Live::new(LiveRules::new(), None), now }
    }

    /// With a session and one parked intake.
    fn online() -> Self {
        let mut world = Self::new();
        world.tell(admit(OLD, PARKING)).expect("the first session");
        world.tell(park(OLD, 1)).expect("parked");
        world
    }

    fn tell(&mut self, command: LiveCommand) -> Result<Vec<LiveEvent>, LiveRefusal> {
        let told = self.live.handle(command, self.now);
        self.live.assert_invariants();
        told
    }

    fn pass(&mut self, time: Duration) -> Vec<LiveEvent> {
        self.now += time;
        self.live.handle_timeout(self.now)
    }
}

/// A session that parks, and open ones of two instances: by themselves, and sharing.
const PARKING: SessionKind = SessionKind::Parking;
const A: SessionKind = SessionKind::Open { instance: InstanceId(10), shares: false };
const A_SHARES: SessionKind = SessionKind::Open { instance: InstanceId(10), shares: true };
const B: SessionKind = SessionKind::Open { instance: InstanceId(11), shares: false };
const B_SHARES: SessionKind = SessionKind::Open { instance: InstanceId(11), shares: true };

fn admit(session: SessionId, kind: SessionKind) -> LiveCommand {
    LiveCommand::AdmitSession { session, kind }
}

fn park(session: SessionId, intake: u32) -> LiveCommand {
    LiveCommand::ParkIntake { session, intake: IntakeId(intake) }
}

fn start(kind: ExchangeKind) -> LiveCommand {
    LiveCommand::StartExchange { exchange: ONE, kind }
}

fn failed(failure: Failure) -> Vec<LiveEvent> {
    vec![LiveEvent::ExchangeFailed { exchange: ONE, failure }]
}

#[test]
fn without_an_agent_visitors_are_told_at_once() {
    assert_eq!(World::new().tell(start(ExchangeKind::Http)), Err(LiveRefusal::Offline));
}

#[test]
fn visitors_wait_for_an_agent_that_was_just_lost() {
    let mut world = World::online();
    world.tell(LiveCommand::CloseSession { session: OLD }).expect("it was there");
    assert_eq!(world.tell(start(ExchangeKind::Http)), Ok(vec![LiveEvent::ExchangeQueued(ONE)]));
    world.tell(admit(NEW, PARKING)).expect("it is back");
    let assigned = LiveEvent::EnvelopeAssigned { session: NEW, intake: IntakeId(7), exchange: ONE };
    assert_eq!(world.tell(park(NEW, 7)), Ok(vec![assigned]));
}

#[test]
fn a_newer_session_supersedes_the_older_once_it_has_nothing_to_finish() {
    let mut world = World::online();
    world.tell(start(ExchangeKind::Http)).expect("delivered");
    world.tell(admit(NEW, PARKING)).expect("newer");
    assert!(world.live.is_online());
    let replied =
        world.tell(LiveCommand::Reply { session: OLD, exchange: ONE, accepts: false }).expect("the old one replies");
    assert_eq!(replied, [LiveEvent::ReplyAccepted(ONE)], "the body is still coming");
    let ended = LiveEvent::SessionEnded { session: OLD, reason: EndReason::Superseded };
    assert_eq!(world.tell(LiveCommand::EndExchange { exchange: ONE }), Ok(vec![ended]));
    assert_eq!(world.tell(park(OLD, 2)), Err(LiveRefusal::Superseded));
}

#[test]
fn a_session_that_hangs_is_superseded_after_two_seconds() {
    let mut world = World::online();
    world.tell(start(ExchangeKind::Http)).expect("delivered");
    world.tell(admit(NEW, PARKING)).expect("newer");
    assert_eq!(world.pass(Duration::from_millis(1999)), []);
    let ended = LiveEvent::SessionEnded { session: OLD, reason: EndReason::Superseded };
    assert_eq!(world.pass(Duration::from_millis(1)), [ended]);
}

#[test]
fn an_older_hello_that_comes_late_does_not_win() {
    let mut world = World::new();
    world.tell(admit(NEW, PARKING)).expect("the newer one was faster");
    assert_eq!(world.tell(admit(OLD, PARKING)), Err(LiveRefusal::Superseded));
    assert!(world.live.is_online());
}

#[test]
fn the_first_reply_wins() {
    let mut world = World::online();
    world.tell(start(ExchangeKind::Http)).expect("delivered");
    let reply = LiveCommand::Reply { session: OLD, exchange: ONE, accepts: false };
    assert_eq!(world.tell(reply), Ok(vec![LiveEvent::ReplyAccepted(ONE)]));
    assert_eq!(world.tell(reply), Err(LiveRefusal::UnknownExchange));
}

#[test]
fn an_agent_that_is_slow_costs_35_seconds_and_one_that_is_lost_5() {
    let mut world = World::online();
    world.tell(start(ExchangeKind::Http)).expect("delivered");
    assert_eq!(world.pass(Duration::from_millis(34_999)), []);
    assert_eq!(world.pass(Duration::from_millis(1)), failed(Failure::AgentTimeout));

    let mut world = World::online();
    world.tell(start(ExchangeKind::Http)).expect("delivered");
    world.tell(LiveCommand::CloseSession { session: OLD }).expect("it was there");
    assert_eq!(world.pass(Duration::from_secs(5)), failed(Failure::AgentLost));
}

#[test]
fn a_busy_agent_costs_5_seconds() {
    let mut world = World::online();
    world.tell(start(ExchangeKind::Http)).expect("delivered");
    let two = ExchangeId(2);
    world.tell(LiveCommand::StartExchange { exchange: two, kind: ExchangeKind::Http }).expect("queued");
    let busy = LiveEvent::ExchangeFailed { exchange: two, failure: Failure::AgentBusy };
    assert_eq!(world.pass(Duration::from_secs(5)), [busy]);
}

#[test]
fn a_drained_session_has_half_a_second_and_then_its_intakes_end() {
    let mut world = World::online();
    let drained = world.tell(LiveCommand::Drain).expect("never refused");
    assert_eq!(drained, [LiveEvent::SessionDrained(OLD), LiveEvent::TunnelWentOffline(OLD)]);
    assert_eq!(world.pass(Duration::from_millis(499)), []);
    let released = world.pass(Duration::from_millis(1));
    let ended = LiveEvent::SessionEnded { session: OLD, reason: EndReason::Drained };
    assert_eq!(released, [LiveEvent::IntakesReleased(OLD), ended]);
}

#[test]
fn a_handoff_is_no_takeover() {
    let mut world = World::online();
    world.tell(start(ExchangeKind::WebSocket)).expect("delivered");
    world.tell(LiveCommand::Drain).expect("never refused");
    world.tell(admit(NEW, PARKING)).expect("the agent's next session");
    let told = world.pass(Duration::from_secs(3));
    assert_eq!(told, [LiveEvent::IntakesReleased(OLD)], "its WebSocket goes on");
}

#[test]
fn a_deleted_tunnel_has_no_traffic_at_once() {
    let mut world = World::online();
    world.tell(start(ExchangeKind::Http)).expect("delivered");
    let told = world.tell(LiveCommand::Revoke).expect("never refused");
    assert!(told.contains(&LiveEvent::SessionEnded { session: OLD, reason: EndReason::Revoked }), "{told:?}");
    assert!(told.contains(&failed(Failure::TunnelGone)[0]), "{told:?}");
    assert_eq!(world.tell(start(ExchangeKind::Http)), Err(LiveRefusal::Offline));
}

#[test]
fn an_envelope_that_found_its_intake_gone_goes_to_the_next_one() {
    let mut world = World::online();
    world.tell(start(ExchangeKind::Http)).expect("delivered");
    let returned = world.tell(LiveCommand::ReturnEnvelope { session: OLD, exchange: ONE }).expect("it was there");
    assert_eq!(returned, [LiveEvent::ExchangeQueued(ONE)]);
    let assigned = LiveEvent::EnvelopeAssigned { session: OLD, intake: IntakeId(2), exchange: ONE };
    assert_eq!(world.tell(park(OLD, 2)), Ok(vec![assigned]));
}

#[test]
fn a_bridge_is_opened_once_and_after_the_acceptance() {
    let mut world = World::online();
    world.tell(start(ExchangeKind::WebSocket)).expect("delivered");
    let open = LiveCommand::OpenBridge { session: OLD, exchange: ONE, kind: ExchangeKind::WebSocket };
    assert_eq!(world.tell(open), Err(LiveRefusal::UnwantedBridge));
    world.tell(LiveCommand::Reply { session: OLD, exchange: ONE, accepts: true }).expect("accepted");
    assert_eq!(world.tell(open), Ok(vec![LiveEvent::BridgeOpened(ONE)]));
    assert_eq!(world.tell(open), Err(LiveRefusal::BridgeTaken));
    assert_eq!(world.live.poll_timeout(), None, "an open bridge has no deadline");
}

#[test]
fn a_bridge_that_does_not_come_costs_10_seconds() {
    let mut world = World::online();
    world.tell(start(ExchangeKind::Tcp)).expect("delivered");
    assert_eq!(world.pass(Duration::from_secs(10)), failed(Failure::AgentTimeout));
}

impl World {
    /// With these sessions, numbered from 1.
    fn with(kinds: &[SessionKind]) -> Self {
        let mut world = Self::new();
        for (number, kind) in (1..).zip(kinds) {
            world.tell(admit(SessionId(number), *kind)).expect("a later hello");
        }
        world
    }

    fn open(&mut self, exchange: u64) -> Result<SessionId, LiveRefusal> {
        let exchange = ExchangeId(exchange);
        match self.tell(LiveCommand::OpenExchange { exchange })?[..] {
            [LiveEvent::ExchangeOpened { session, exchange: opened }] if opened == exchange => Ok(session),
            ref other => panic!("{other:?}"),
        }
    }

    fn end(&mut self, exchange: u64) -> Result<Vec<LiveEvent>, LiveRefusal> {
        self.tell(LiveCommand::EndExchange { exchange: ExchangeId(exchange) })
    }
}

fn ended(session: SessionId, reason: EndReason) -> LiveEvent {
    LiveEvent::SessionEnded { session, reason }
}

#[test]
fn two_sessions_stand_side_by_side_if_both_are_of_one_instance_or_both_share() {
    for (older, newer, both_stay) in [
        (A, A, true),
        (A, A_SHARES, true),
        (A_SHARES, A, true),
        (A_SHARES, B_SHARES, true),
        (A, B, false),
        (A, B_SHARES, false),
        (A_SHARES, B, false),
        (PARKING, PARKING, false),
        (PARKING, A_SHARES, false),
        (A_SHARES, PARKING, false),
    ] {
        let mut world = World::with(&[older]);
        let told = world.tell(admit(NEW, newer));
        let admitted = LiveEvent::SessionAdmitted(NEW);
        let expected = match both_stay {
            true => vec![admitted],
            false if older == PARKING => vec![ended(OLD, EndReason::Superseded), admitted],
            false => vec![LiveEvent::SessionSuperseded(OLD), ended(OLD, EndReason::Superseded), admitted],
        };
        assert_eq!(told, Ok(expected), "{older:?}, then {newer:?}");
        let carrier = if newer == PARKING { Carrier::Parking } else { Carrier::Open };
        assert_eq!(world.live.carrier(), Some(carrier), "{older:?}, then {newer:?}");

        // The other way round they come too late, or on time.
        let mut world = World::new();
        world.tell(admit(NEW, newer)).expect("the newer one was faster");
        let late = world.tell(admit(OLD, older));
        let expected = if both_stay { Ok(vec![LiveEvent::SessionAdmitted(OLD)]) } else { Err(LiveRefusal::Superseded) };
        assert_eq!(late, expected, "{newer:?}, then late {older:?}");
    }
}

#[test]
fn a_session_that_comes_late_is_judged_by_the_newest_and_by_those_that_are_there() {
    for (kinds, gone, late, is_let_in) in [
        // The newest has left, and still has won.
        (&[A, B][..], &[2][..], A, false),
        (&[A, B], &[2], B, true),
        // The newest would let it stand; one that is there, and later than it, would not.
        (&[A_SHARES, A, A_SHARES], &[], B_SHARES, false),
        (&[A_SHARES, A, A_SHARES], &[2], B_SHARES, true),
        // Whoever was taken over in between has no say.
        (&[B, A, B], &[], B, true),
    ] {
        let mut world = World::new();
        for (number, kind) in (11..).zip(kinds) {
            world.tell(admit(SessionId(number), *kind)).expect("a later hello");
        }
        for number in gone {
            world.tell(LiveCommand::CloseSession { session: SessionId(10 + number) }).expect("it was there");
        }
        let told = world.tell(admit(SessionId(5), late));
        assert_eq!(told.is_ok(), is_let_in, "{kinds:?} without {gone:?}, then {late:?}: {told:?}");
        let newest = SessionId(10 + kinds.len() as u64);
        assert_eq!(world.tell(admit(newest, late)), Err(LiveRefusal::Superseded), "a number counts once");
    }
}

#[test]
fn a_newcomer_supersedes_only_those_that_it_may_not_stand_beside() {
    let mut world = World::with(&[A_SHARES, B_SHARES]);
    let three = SessionId(3);
    let told = world.tell(admit(three, B)).expect("newer");
    let superseded = LiveEvent::SessionSuperseded(OLD);
    assert_eq!(told, [superseded, ended(OLD, EndReason::Superseded), LiveEvent::SessionAdmitted(three)]);
    assert_eq!((world.open(1), world.open(2), world.open(3)), (Ok(NEW), Ok(three), Ok(NEW)));
}

#[test]
fn an_agent_may_have_its_next_session_before_the_last_one_leaves() {
    let mut world = World::with(&[A]);
    assert_eq!(world.open(1), Ok(OLD));
    world.tell(admit(NEW, A)).expect("the next one");
    assert_eq!(world.tell(LiveCommand::LeaveSession { session: OLD }), Ok(vec![]), "it has something to finish");
    assert_eq!((world.open(2), world.open(3)), (Ok(NEW), Ok(NEW)));
    assert_eq!(world.end(1), Ok(vec![ended(OLD, EndReason::Drained)]));
    assert_eq!(world.live.expected_until(), None);
    assert_eq!(world.tell(LiveCommand::CloseSession { session: OLD }), Ok(vec![]), "the tunnel is online");
}

#[test]
fn an_exchange_goes_to_the_session_with_the_fewest_or_else_to_the_first() {
    let mut world = World::new();
    let (first, second) = (SessionId(9), SessionId(8));
    world.tell(admit(first, A)).expect("the first");
    world.tell(admit(second, A)).expect("late");
    assert_eq!((world.open(1), world.open(2), world.open(3)), (Ok(first), Ok(second), Ok(first)));
    world.end(1).expect("open");
    world.end(3).expect("open");
    assert_eq!((world.open(4), world.open(5)), (Ok(first), Ok(first)), "the second one has one as well by then");
    assert_eq!(world.open(6), Ok(second));
    assert_eq!(world.live.exchanges(), 4);
    assert_eq!(world.live.poll_timeout(), None, "an open exchange has no deadline");
}

#[test]
fn nothing_waits_for_an_open_session() {
    let mut world = World::new();
    assert_eq!(world.open(1), Err(LiveRefusal::Offline));
    let mut world = World::online();
    assert_eq!(world.open(1), Err(LiveRefusal::Offline), "only an intake is there");
    world.tell(LiveCommand::CloseSession { session: OLD }).expect("it was there");
    assert_eq!(world.open(1), Err(LiveRefusal::Offline));
    assert_eq!(world.live.expected_until(), Some(world.now + Duration::from_secs(5)));
}

#[test]
fn nobody_waits_for_an_intake_while_sessions_are_open() {
    let mut world = World::online();
    world.tell(start(ExchangeKind::Http)).expect("delivered");
    let (two, failure) = (ExchangeId(2), Failure::AgentBusy);
    world.tell(LiveCommand::StartExchange { exchange: two, kind: ExchangeKind::Http }).expect("queued");
    let told = world.tell(admit(NEW, A)).expect("newer");
    let failed_two = LiveEvent::ExchangeFailed { exchange: two, failure };
    assert_eq!(told, [failed_two, LiveEvent::SessionAdmitted(NEW)], "the first one may be answered");
    let returned = world.tell(LiveCommand::ReturnEnvelope { session: OLD, exchange: ONE });
    assert_eq!(returned, Ok(vec![ended(OLD, EndReason::Superseded), failed(failure)[0]]));
    assert_eq!(world.tell(start(ExchangeKind::Http)), Err(LiveRefusal::Offline));
}

#[test]
fn an_open_exchange_is_finished_after_a_takeover_within_ninety_seconds() {
    for newer in [PARKING, B] {
        let mut world = World::with(&[A]);
        world.open(1).expect("online");
        world.open(2).expect("online");
        let told = world.tell(admit(NEW, newer)).expect("newer");
        assert_eq!(told, [LiveEvent::SessionSuperseded(OLD), LiveEvent::SessionAdmitted(NEW)]);
        assert_eq!(world.end(1), Ok(vec![]));
        assert_eq!(world.pass(Duration::from_millis(89_999)), []);
        assert_eq!(world.pass(Duration::from_millis(1)), [ended(OLD, EndReason::Superseded)]);
        assert_eq!(world.end(2), Ok(vec![]));
    }
}

#[test]
fn an_open_session_knows_no_intakes_replies_or_bridges() {
    let mut world = World::online();
    world.tell(start(ExchangeKind::WebSocket)).expect("delivered");
    world.tell(admit(NEW, A)).expect("newer");
    world.open(2).expect("online");
    let (two, kind) = (ExchangeId(2), ExchangeKind::Http);
    for (command, refusal) in [
        (park(NEW, 1), LiveRefusal::UnknownSession),
        (LiveCommand::Reply { session: NEW, exchange: two, accepts: false }, LiveRefusal::UnknownSession),
        (LiveCommand::Reply { session: NEW, exchange: ONE, accepts: true }, LiveRefusal::UnknownSession),
        (LiveCommand::Reply { session: OLD, exchange: two, accepts: false }, LiveRefusal::UnknownExchange),
        (LiveCommand::OpenBridge { session: NEW, exchange: two, kind }, LiveRefusal::UnknownSession),
        (LiveCommand::OpenBridge { session: OLD, exchange: two, kind }, LiveRefusal::UnknownExchange),
        (LiveCommand::ReturnEnvelope { session: NEW, exchange: two }, LiveRefusal::UnknownExchange),
    ] {
        assert_eq!(world.tell(command), Err(refusal), "{command:?}");
    }
}

#[test]
fn the_tunnel_is_offline_when_the_last_session_has_gone() {
    let offline = LiveEvent::TunnelWentOffline;
    let back = Some(Duration::from_secs(5));
    for (leave, first, last, expected) in [
        (
            (|session| LiveCommand::CloseSession { session }) as fn(SessionId) -> LiveCommand,
            vec![],
            vec![offline(OLD)],
            back,
        ),
        (
            |session| LiveCommand::LeaveSession { session },
            vec![ended(NEW, EndReason::Drained)],
            vec![offline(OLD), ended(OLD, EndReason::Drained)],
            back,
        ),
        (
            |session| LiveCommand::RevokeSession { session },
            vec![ended(NEW, EndReason::Revoked)],
            vec![ended(OLD, EndReason::Revoked), offline(OLD)],
            None,
        ),
    ] {
        let mut world = World::with(&[A_SHARES, B_SHARES]);
        assert_eq!(world.tell(leave(NEW)), Ok(first));
        assert_eq!((world.live.is_online(), world.live.expected_until()), (true, None));
        assert_eq!(world.tell(leave(OLD)), Ok(last));
        assert_eq!((world.live.carrier(), world.live.is_online()), (None, false));
        assert_eq!(world.live.expected_until(), expected.map(|time| world.now + time));
    }
}

#[test]
fn a_session_that_closes_forgets_its_open_exchanges() {
    let mut world = World::with(&[A, A]);
    assert_eq!((world.open(1), world.open(2)), (Ok(OLD), Ok(NEW)));
    assert_eq!(world.tell(LiveCommand::CloseSession { session: OLD }), Ok(vec![]));
    assert_eq!(world.end(1), Err(LiveRefusal::UnknownExchange));
    assert_eq!(world.end(2), Ok(vec![]));
}

#[test]
fn a_session_that_leaves_has_ninety_seconds() {
    let mut world = World::with(&[A]);
    world.open(1).expect("online");
    let leave = LiveCommand::LeaveSession { session: OLD };
    assert_eq!(world.tell(leave), Ok(vec![LiveEvent::TunnelWentOffline(OLD)]));
    assert_eq!(world.tell(leave), Ok(vec![]), "once is enough");
    assert_eq!(world.open(2), Err(LiveRefusal::Offline));
    assert_eq!(world.pass(Duration::from_millis(89_999)), []);
    assert_eq!(world.pass(Duration::from_millis(1)), [ended(OLD, EndReason::Drained)]);
    assert_eq!(world.tell(LiveCommand::LeaveSession { session: NEW }), Err(LiveRefusal::UnknownSession));
}

#[test]
fn a_session_that_parks_may_leave_too() {
    let mut world = World::online();
    let told = world.tell(LiveCommand::LeaveSession { session: OLD }).expect("it was there");
    let drained = ended(OLD, EndReason::Drained);
    assert_eq!(told, [LiveEvent::TunnelWentOffline(OLD), LiveEvent::IntakesReleased(OLD), drained]);
    assert_eq!(world.tell(park(OLD, 2)), Err(LiveRefusal::Draining));
}

#[test]
fn every_open_session_drains() {
    let mut world = World::with(&[A_SHARES, B_SHARES]);
    assert_eq!(world.open(1), Ok(OLD));
    let drained = world.tell(LiveCommand::Drain).expect("never refused");
    let signals = [LiveEvent::SessionDrained(OLD), LiveEvent::SessionDrained(NEW)];
    assert_eq!(drained, [&signals[..], &[LiveEvent::TunnelWentOffline(NEW)]].concat());
    assert_eq!(world.live.expected_until(), Some(world.now + Duration::from_secs(5)));
    assert_eq!(world.pass(Duration::from_millis(500)), [ended(NEW, EndReason::Drained)], "no intakes to release");
    assert_eq!(world.pass(Duration::from_secs(89)), []);
    assert_eq!(world.pass(Duration::from_millis(500)), [ended(OLD, EndReason::Drained)]);

    let mut world = World::with(&[A]);
    world.tell(LiveCommand::Drain).expect("never refused");
    let left = world.tell(LiveCommand::LeaveSession { session: OLD });
    assert_eq!(left, Ok(vec![ended(OLD, EndReason::Drained)]), "the agent has moved already");
}

#[test]
fn a_revoked_session_or_tunnel_has_its_open_exchanges_cut() {
    let mut world = World::with(&[A, A]);
    assert_eq!((world.open(1), world.open(2)), (Ok(OLD), Ok(NEW)));
    let told = world.tell(LiveCommand::RevokeSession { session: OLD });
    assert_eq!(told, Ok(vec![ended(OLD, EndReason::Revoked), LiveEvent::BridgeLost(ONE)]));
    assert_eq!(world.end(1), Err(LiveRefusal::UnknownExchange));
    let told = world.tell(LiveCommand::Revoke).expect("never refused");
    let lost = LiveEvent::BridgeLost(ExchangeId(2));
    assert_eq!(told, [ended(NEW, EndReason::Revoked), LiveEvent::TunnelWentOffline(NEW), lost]);
    assert_eq!((world.live.exchanges(), world.live.expected_until()), (0, None));
}

#[test]
fn every_agent_is_told_that_its_tunnel_is_another() {
    let mut world = World::with(&[A_SHARES, B_SHARES]);
    let told = world.tell(LiveCommand::Announce);
    assert_eq!(told, Ok(vec![LiveEvent::SessionAnnounced(OLD), LiveEvent::SessionAnnounced(NEW)]));
    world.tell(LiveCommand::LeaveSession { session: OLD }).expect("it was there");
    assert_eq!(world.tell(LiveCommand::Announce), Ok(vec![LiveEvent::SessionAnnounced(NEW)]));
    world.tell(admit(SessionId(3), PARKING)).expect("newer");
    assert_eq!(world.tell(LiveCommand::Announce), Ok(vec![]), "with its next intake");
    let announced = LiveEvent::TunnelAnnounced { session: SessionId(3), intake: IntakeId(1) };
    assert_eq!(world.tell(park(SessionId(3), 1)), Ok(vec![announced]));
}
