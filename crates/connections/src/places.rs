//! How many connections there may be, of each kind and of each address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::{Budget, Lease};

/// What a connection is for. Kinds that are not [`Kind::shares`] with each other
/// cannot take each other's places.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Carries the requests of one tunnel's visitors: it has proved who it is.
    Agent,
    /// A client of an API.
    Client,
    /// A visitor whose TLS ends elsewhere; in places it is a visitor.
    Passthrough,
    /// Has not yet said what it wants.
    Stranger,
    /// Asks for what an agent serves.
    Visitor,
    /// A visitor with a WebSocket; in places it is a visitor.
    WebSocket,
}

impl Kind {
    /// All of them, in the order of [`Counts`].
    pub const ALL: [Self; 6] =
        [Self::Agent, Self::Client, Self::Passthrough, Self::Stranger, Self::Visitor, Self::WebSocket];

    /// The kind whose places it takes.
    #[must_use]
    pub const fn shares(self) -> Self {
        match self {
            Self::Passthrough | Self::WebSocket => Self::Visitor,
            other => other,
        }
    }

    /// As a word for programs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Client => "client",
            Self::Passthrough => "passthrough",
            Self::Stranger => "stranger",
            Self::Visitor => "visitor",
            Self::WebSocket => "websocket",
        }
    }
}

/// How many connections of each kind there are.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts([usize; Kind::ALL.len()]);

impl Counts {
    /// Of one kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> usize {
        self.0[kind as usize]
    }

    /// Of all kinds.
    #[must_use]
    pub fn total(&self) -> usize {
        self.0.iter().sum()
    }

    /// Of those that take each other's places.
    fn sharing(&self, kind: Kind) -> usize {
        Kind::ALL.into_iter().filter(|other| other.shares() == kind.shares()).map(|kind| self.of(kind)).sum()
    }
}

/// How much a port takes on.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once, for each of the kinds that do not share.
    pub connections: usize,
    /// Those of one address among them, agents apart. An IPv6 address is its /64.
    pub per_address: usize,
    /// Addresses that stand for many: the proxies in front. Loopback is one, too.
    pub exempt: Vec<IpAddr>,
    /// Octets that may be held of one address.
    pub octets_per_address: usize,
}

impl Limits {
    /// So many connections, of which an address may have a quarter.
    #[must_use]
    pub fn new(connections: usize) -> Self {
        let per_address = connections.div_ceil(4);
        Self { connections, per_address, exempt: Vec::new(), octets_per_address: usize::MAX }
    }
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Full {
    /// The peer's address has its share.
    #[error("the address has its share of the connections")]
    Address,
    /// All places of the kind are taken.
    #[error("all places are taken")]
    Kind,
}

/// The places of one port.
#[derive(Debug)]
pub struct Places {
    limits: Limits,
    state: Mutex<State>,
    freed: Notify,
    failures: AtomicU64,
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    addresses: HashMap<IpAddr, Address>,
}

/// What one address has.
#[derive(Debug)]
struct Address {
    counts: Counts,
    budget: Arc<Budget>,
}

impl Places {
    /// All free.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            state: Mutex::default(),
            freed: Notify::new(),
            failures: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// A place for a peer at this address; `None` if nobody knows it yet.
    ///
    /// # Errors
    ///
    /// [`Full`], and nothing has changed.
    pub fn take(self: &Arc<Self>, kind: Kind, ip: Option<IpAddr>) -> Result<Place, Full> {
        let held = Held { kind, address: ip.and_then(|ip| self.address(ip)) };
        let mut state = self.state();
        state.fits(held, None, &self.limits).inspect_err(|_| self.count_refusal())?;
        state.add(held, &self.limits);
        drop(state);
        Ok(Place(Arc::new(Inner { places: Arc::clone(self), held: Mutex::new(held) })))
    }

    /// Returns when a connection of this kind could be taken.
    pub async fn room(&self, kind: Kind) {
        self.wait(|counts| counts.sharing(kind) < self.limits.connections).await;
    }

    /// Returns when all are free, or after `grace`: then false.
    pub async fn emptied(&self, grace: Duration) -> bool {
        timeout(grace, self.wait(|counts| counts.total() == 0)).await.is_ok()
    }

    /// How many are taken.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// Connections that could not be accepted since the start.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Connections that found no place since the start.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn count_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    fn count_refusal(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    async fn wait(&self, is_so: impl Fn(&Counts) -> bool) {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // Heard from here on, so that nothing is missed between look and wait.
            freed.as_mut().enable();
            if is_so(&self.counts()) {
                return;
            }
            freed.await;
        }
    }

    /// What stands for the address in the count; nothing for those that are not counted.
    fn address(&self, ip: IpAddr) -> Option<IpAddr> {
        let ip = ip.to_canonical();
        if ip.is_loopback() || self.limits.exempt.contains(&ip) {
            return None;
        }
        Some(match ip {
            IpAddr::V4(_) => ip,
            // One customer of a network has at least this much (RFC 6177).
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, Debug)]
struct Held {
    kind: Kind,
    address: Option<IpAddr>,
}

impl State {
    /// Is there room for this one, if `besides` goes?
    fn fits(&self, held: Held, besides: Option<Held>, limits: &Limits) -> Result<(), Full> {
        let Held { kind, address } = held;
        let goes = |is_counted: bool| {
            usize::from(is_counted && besides.is_some_and(|besides| besides.kind.shares() == kind.shares()))
        };
        if self.counts.sharing(kind) - goes(true) >= limits.connections {
            return Err(Full::Kind);
        }
        let of_address = address.and_then(|address| self.addresses.get(&address));
        let is_same = besides.is_some_and(|besides| besides.address == address);
        let taken = of_address.map_or(0, |address| address.counts.sharing(kind) - goes(is_same));
        // Whoever has proved who it is may have many agents at one address.
        if kind != Kind::Agent && taken >= limits.per_address { Err(Full::Address) } else { Ok(()) }
    }

    fn add(&mut self, Held { kind, address }: Held, limits: &Limits) {
        self.counts.0[kind as usize] += 1;
        let Some(address) = address else { return };
        let new = || Address { counts: Counts::default(), budget: Arc::new(Budget::new(limits.octets_per_address)) };
        self.addresses.entry(address).or_insert_with(new).counts.0[kind as usize] += 1;
    }

    fn remove(&mut self, Held { kind, address }: Held) {
        self.counts.0[kind as usize] -= 1;
        let Some(address) = address else { return };
        let Some(of_address) = self.addresses.get_mut(&address) else { return };
        of_address.counts.0[kind as usize] -= 1;
        if of_address.counts.total() == 0 {
            self.addresses.remove(&address);
        }
    }
}

/// A peer's account. Clones are the same one; the last that goes frees the place.
#[derive(Clone, Debug)]
pub struct Place(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: Arc<Places>,
    held: Mutex<Held>,
}

impl Place {
    /// Becomes that of a connection of another kind, whose peer is now known to be
    /// at `ip`. It is never free in between.
    ///
    /// # Errors
    ///
    /// [`Full`]: it stays what it was.
    pub fn change(&self, kind: Kind, ip: IpAddr) -> Result<(), Full> {
        let places = &self.0.places;
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        let next = Held { kind, address: places.address(ip) };
        let mut state = places.state();
        state.fits(next, Some(*held), &places.limits).inspect_err(|_| places.count_refusal())?;
        state.add(next, &places.limits);
        state.remove(*held);
        *held = next;
        drop(state);
        places.freed.notify_waiters();
        Ok(())
    }

    /// A lease on these budgets and on what may be held of the peer's address. The
    /// account lasts as long as the lease.
    #[must_use]
    pub fn lease(&self, mut budgets: Vec<Arc<Budget>>) -> Lease {
        let address = self.0.held.lock().unwrap_or_else(PoisonError::into_inner).address;
        let state = self.0.places.state();
        let of_address = address.and_then(|address| state.addresses.get(&address));
        budgets.extend(of_address.map(|address| Arc::clone(&address.budget)));
        drop(state);
        Lease::new(budgets, Some(self.clone()))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let held = *self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.places.state().remove(held);
        self.places.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn places(connections: usize) -> Arc<Places> {
        Places::new(Limits::new(connections))
    }

    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_has_a_quarter_and_a_network_of_ipv6_is_one_address() {
        let places = places(8);
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(places.take(Kind::Visitor, Some(ip("192.0.2.7"))).expect("a place"));
            held.push(places.take(Kind::Visitor, Some(ip("2001:db8::1"))).expect("a place"));
        }
        let take = |address| places.take(Kind::Visitor, Some(ip(address))).map(drop);
        assert_eq!(take("192.0.2.7"), Err(Full::Address));
        assert_eq!(take("::ffff:192.0.2.7"), Err(Full::Address));
        assert_eq!(take("2001:db8::ffff:1"), Err(Full::Address));
        assert_eq!(take("2001:db8:0:1::1"), Ok(()));
        held.pop();
        assert_eq!(take("2001:db8::1"), Ok(()));
    }

    #[test]
    fn loopback_and_proxies_have_any_number() {
        let mut limits = Limits::new(8);
        limits.exempt.push(OTHER);
        let places = Places::new(limits);
        for (address, count) in [("127.0.0.1", 3), ("::1", 3), ("192.0.2.1", 2)] {
            let taken: Vec<_> =
                (0..count).map(|_| places.take(Kind::Visitor, Some(ip(address))).expect("a place")).collect();
            std::mem::forget(taken);
        }
        assert_eq!(places.take(Kind::Visitor, None).err(), Some(Full::Kind));
    }

    #[test]
    fn visitors_leave_the_places_of_agents_and_clients_alone() {
        let places = places(2);
        let visitors = [Kind::Visitor, Kind::WebSocket].map(|kind| places.take(kind, None).expect("a place"));
        assert_eq!(places.take(Kind::Passthrough, None).err(), Some(Full::Kind));
        let stranger = places.take(Kind::Stranger, None).expect("a place");
        assert_eq!(stranger.change(Kind::Visitor, OTHER), Err(Full::Kind));
        assert_eq!(places.counts().of(Kind::Stranger), 1, "it is what it was");
        assert_eq!(stranger.change(Kind::Client, OTHER), Ok(()));
        assert_eq!(stranger.change(Kind::Agent, OTHER), Ok(()));
        assert_eq!(visitors[0].change(Kind::WebSocket, OTHER), Ok(()), "in its own place");
        assert_eq!((places.counts().total(), places.counts().of(Kind::WebSocket)), (3, 2));
    }

    #[test]
    fn what_is_held_of_an_address_is_bounded_over_all_its_connections() {
        let places = Places::new(Limits { octets_per_address: 100, ..Limits::new(8) });
        let place = |address| places.take(Kind::Visitor, Some(ip(address))).expect("a place");
        let (one, another, elsewhere) = (place("192.0.2.7"), place("192.0.2.7"), place("192.0.2.8"));
        let [mut first, mut second, mut third] = [&one, &another, &elsewhere].map(|place| place.lease(Vec::new()));
        assert!(first.grow(80));
        assert!(!second.grow(30), "of the same address");
        assert!(third.grow(30), "of another one");
        drop(first);
        assert!(second.grow(30));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_clone_and_the_last_octet_free_a_place() {
        let places = places(1);
        let place = places.take(Kind::Client, Some(OTHER)).expect("a place");
        let mut lease = place.lease(Vec::new());
        assert!(lease.grow(1));
        let octets = lease.own(bytes::Bytes::from_static(b"."));
        drop(place);
        assert!(!places.emptied(Duration::from_secs(1)).await);
        drop(octets);
        assert!(places.emptied(Duration::from_secs(1)).await);
        places.room(Kind::Client).await;
    }

    proptest! {
        /// Takes, changes and drops in any order keep every limit, and end at nothing.
        #[test]
        fn limits_hold(steps in prop::collection::vec((0_usize..3, 0_usize..6, 0_u8..3, 0_usize..16), 1..200)) {
            let places = places(4);
            let mut held: Vec<Place> = Vec::new();
            for (step, kind, address, which) in steps {
                let (kind, ip) = (Kind::ALL[kind], IpAddr::from([192, 0, 2, address]));
                match step {
                    0 => held.extend(places.take(kind, Some(ip))),
                    1 if which < held.len() => drop(held[which].change(kind, ip)),
                    2 if which < held.len() => drop(held.swap_remove(which)),
                    _ => {}
                }
                let state = places.state();
                prop_assert_eq!(state.counts.total(), held.len());
                for kind in Kind::ALL {
                    prop_assert!(state.counts.sharing(kind) <= 4);
                    let shares = state.addresses.values().map(|address| address.counts.sharing(kind));
                    prop_assert!(kind == Kind::Agent || shares.into_iter().all(|share| share <= 1));
                }
            }
            held.clear();
            prop_assert!(places.state().addresses.is_empty());
        }
    }
}
