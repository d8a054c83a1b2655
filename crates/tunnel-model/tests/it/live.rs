//! A tunnel's traffic: one table of promises, and the comparison with the
//! plain model.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tunnel_model::{
    EndReason, ExchangeId, ExchangeKind, Failure, IntakeId, Live, LiveCommand, LiveEvent, LiveRefusal, LiveRules,
    SessionId, SessionKind,
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
        world.tell(LiveCommand::AdmitSession { session: OLD, kind: SessionKind::Parking }).expect("the first session");
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
    world.tell(LiveCommand::AdmitSession { session: NEW, kind: SessionKind::Parking }).expect("it is back");
    let assigned = LiveEvent::EnvelopeAssigned { session: NEW, intake: IntakeId(7), exchange: ONE };
    assert_eq!(world.tell(park(NEW, 7)), Ok(vec![assigned]));
}

#[test]
fn a_newer_session_supersedes_the_older_once_it_has_nothing_to_finish() {
    let mut world = World::online();
    world.tell(start(ExchangeKind::Http)).expect("delivered");
    world.tell(LiveCommand::AdmitSession { session: NEW, kind: SessionKind::Parking }).expect("newer");
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
    world.tell(LiveCommand::AdmitSession { session: NEW, kind: SessionKind::Parking }).expect("newer");
    assert_eq!(world.pass(Duration::from_millis(1999)), []);
    let ended = LiveEvent::SessionEnded { session: OLD, reason: EndReason::Superseded };
    assert_eq!(world.pass(Duration::from_millis(1)), [ended]);
}

#[test]
fn an_older_hello_that_comes_late_does_not_win() {
    let mut world = World::new();
    world
        .tell(LiveCommand::AdmitSession { session: NEW, kind: SessionKind::Parking })
        .expect("the newer one was faster");
    assert_eq!(
        world.tell(LiveCommand::AdmitSession { session: OLD, kind: SessionKind::Parking }),
        Err(LiveRefusal::Superseded)
    );
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
    world
        .tell(LiveCommand::AdmitSession { session: NEW, kind: SessionKind::Parking })
        .expect("the agent's next session");
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
