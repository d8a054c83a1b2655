//! How an order begins: joined, taken over, or decided and put on record.

use std::sync::Arc;
use std::time::Duration;

use acme::{CertId, Name, Spent};
use pki_core::{Csr, Time};
use store::{Ask, CertificateFilter, Holder, Order, OrderState, Ordered, Page, Place};
use tunnel_model::{Caller, Command, Issuer, Timestamp};

use super::{ASK_AGAIN, Done, Failed, Key, Progress, Public, Shared, time};
use crate::IssuanceError;

/// What is to be ordered.
pub(super) struct Wanted {
    pub(super) holder: Holder,
    pub(super) names: Vec<Name>,
    pub(super) csr: Csr,
    /// SHA-256 of the request's SubjectPublicKeyInfo.
    pub(super) key: [u8; 32],
    pub(super) caller: Caller,
}

/// The cause of a failure that another request may not have, as [`acme::Error::label`] calls it.
const REFUSED_REQUEST: &str = "csr";
/// How often another key may take an order over.
const MAX_SWITCHES: u32 = 3;
const ANOTHER: &str = "it is for the key of another agent of this tunnel, which is served first";
/// The longest time for which a limit counts.
const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl Public {
    /// Begins an order, unless there is one.
    pub(super) async fn begin(&self, wanted: Wanted) -> Result<Done, IssuanceError> {
        let shared = Arc::clone(&self.0);
        // Whoever asks may leave; what was decided is begun all the same.
        let begun = tokio::spawn(async move { shared.begin(wanted).await });
        begun.await.map_err(|error| IssuanceError::Failed(Box::new(error)))?
    }
}

impl Shared {
    async fn begin(self: &Arc<Self>, wanted: Wanted) -> Result<Done, IssuanceError> {
        let _one = self.begins.lock().await;
        let now = self.now();
        let latest = self.store.latest_order(&wanted.holder).await?;
        // Orders follow one another, whatever a clock that was ahead has left on record.
        let begun_at = latest.as_ref().map_or(now, |order| now.max(order.begun_at.plus(Duration::from_micros(1))));
        let (mut failures, mut failing_since) = (0, None);
        match latest {
            Some(order) if order.state == OrderState::Pending && order.names == texts(&wanted.names) => {
                if self.is_ours(&order) {
                    return self.join(order, wanted).await;
                }
                self.give_up(order, now).await?;
            }
            // One for the name that its tunnel had before goes on by itself: what comes of it is recorded and revoked.
            Some(order) if order.names == texts(&wanted.names) && self.is_ours(&order) => {
                if let OrderState::Failed { at, cause, words, not_before } = order.state {
                    // Another key helps where the request was what the authority did not like. And who
                    // starts the server anew has looked at what was wrong, or has put the clock right.
                    let is_of_request = cause == REFUSED_REQUEST;
                    let may_be_mended = is_of_request && order.key != wanted.key || at < self.started_at || now < at;
                    if let Some(until) = not_before.filter(|until| now < *until && !may_be_mended) {
                        let retry_after = until.since(now).max(Duration::from_secs(1));
                        let failed = match is_of_request {
                            true => Failed::Request(words),
                            false => Failed::Authority { words, retry_after },
                        };
                        return Err(failed.into());
                    }
                    failures = order.failures.saturating_add(1);
                    failing_since = order.failing_since.or(Some(at));
                }
            }
            _ => {}
        }
        let (ask, replaces) = self.what_kind(&wanted, now).await?;
        self.check_budget(ask, &wanted, now).await?;
        if let Holder::Tunnel { id, name, .. } = &wanted.holder {
            let command = Command::BeginOrder { id: *id, name: name.clone() };
            self.store.execute(wanted.caller.clone(), command, &self.rules, now).await?;
        }
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| IssuanceError::Failed(Box::new(error)))?;
        let order = Order {
            id,
            names: texts(&wanted.names),
            csr: wanted.csr.der().to_vec(),
            key: wanted.key,
            requested_by: wanted.caller.key(),
            holder: wanted.holder,
            directory: self.client.settings().directory.clone(),
            profile: self.client.settings().profile.clone(),
            ask,
            replaces,
            url: None,
            begun_at,
            failures,
            failing_since,
            state: OrderState::Pending,
        };
        self.store.record_order(order.clone()).await?;
        Ok(self.work_on(order, 0, Progress::Asking))
    }

    /// What an order is for the authority's limits, and the certificate that it follows.
    async fn what_kind(&self, wanted: &Wanted, now: Timestamp) -> Result<(Ask, Option<String>), IssuanceError> {
        let before = self.store.latest_issued_order(&wanted.holder, None).await?;
        let before = before.filter(|order| order.names == texts(&wanted.names) && self.is_ours(order));
        let before = before.map(|order| order.state);
        let Some(OrderState::Issued { chain, renew_at, is_told, .. }) = before else {
            return Ok((Ask::New, None));
        };
        // Where the authority says when, it is told which one is replaced, and asks nothing for it.
        let is_within = is_told && now >= renew_at;
        let certificates = pki_core::certificates_from_pem(chain.as_bytes()).unwrap_or_default();
        let replaces = certificates.first().and_then(|leaf| CertId::of(leaf)).map(|id| id.to_string());
        Ok((if is_within { Ask::RenewalInWindow } else { Ask::Renewal }, replaces))
    }

    /// An order that goes on is everybody's who wants the same. Another key takes its place: an agent
    /// without a memory makes a new one at each start, and nobody has the old one any more. But not for ever:
    /// of two agents that ask in turns, one has to be done before the other.
    async fn join(self: &Arc<Self>, mut order: Order, wanted: Wanted) -> Result<Done, IssuanceError> {
        let running =
            self.running().get(&Key::of(&order.holder)).map(|running| (running.done.clone(), running.switches));
        let switches = running.as_ref().map_or(0, |(_, switches)| *switches);
        if order.key == wanted.key {
            return Ok(running.map_or_else(|| self.work_on(order, 0, Progress::Asking), |(done, _)| done));
        }
        if switches >= MAX_SWITCHES {
            return Err(IssuanceError::Pending { words: Some(ANOTHER.to_owned()), retry_after: ASK_AGAIN });
        }
        order.csr = wanted.csr.der().to_vec();
        order.key = wanted.key;
        order.requested_by = wanted.caller.key();
        let begun = match running.map(|(done, _)| done.borrow().clone()) {
            Some(waiting @ Progress::Waiting { .. }) => waiting,
            _ => Progress::Asking,
        };
        self.stop(&order);
        self.store.record_order(order.clone()).await?;
        Ok(self.work_on(order, switches + 1, begun))
    }

    /// Was it begun at the authority that is asked now?
    pub(super) fn is_ours(&self, order: &Order) -> bool {
        order.directory == self.client.settings().directory
    }

    pub(super) async fn give_up(&self, mut order: Order, now: Timestamp) -> Result<(), IssuanceError> {
        self.stop(&order);
        let words = "the authority is another one now".to_owned();
        order.state = OrderState::Failed { at: now, cause: "given_up".to_owned(), words, not_before: None };
        Ok(self.store.record_order(order).await?)
    }

    fn stop(&self, order: &Order) {
        if let Some(running) = self.running().remove(&Key::of(&order.holder)) {
            running.task.abort();
        }
    }

    /// Is there room in the authority's limits for one more?
    async fn check_budget(&self, ask: Ask, wanted: &Wanted, now: Timestamp) -> Result<(), IssuanceError> {
        let since = now.minus(WEEK);
        let ordered = self.store.ordered_since(since).await?;
        let texts = texts(&wanted.names);
        // What has been issued counts, whatever has become of it, but for renewals that the authority has asked for.
        let directory = &self.client.settings().directory;
        let is_free = |one: &&Ordered| one.ask == Ask::RenewalInWindow || one.directory != *directory;
        let free: Vec<_> = ordered.iter().filter(is_free).filter_map(|one| Some(one.issued?.1)).collect();
        let filter = CertificateFilter { issuer: Some(Issuer::Acme), ..CertificateFilter::default() };
        let page = Page { after: Some(Place { created_at: since, id: [0; 16] }), limit: None };
        let issued = self.store.certificates(&filter, page).await?;
        let issued = issued.iter().filter(|one| !free.contains(&one.fingerprint));
        let issued = issued.map(|one| (is_for(&one.holder, &wanted.holder), one.issued_at.unwrap_or(now)));
        let pending = ordered.iter().filter(|one| one.issued.is_none() && one.failed.is_none() && !is_free(one));
        let pending = pending.map(|one| (one.names == texts, one.begun_at));
        let had: Vec<_> = issued.chain(pending).map(|(is_same, at)| (is_same, time(at))).collect();
        let domain: Vec<Time> = had.iter().map(|(_, at)| *at).collect();
        let same_names: Vec<Time> = had.iter().filter(|(is_same, _)| *is_same).map(|(_, at)| *at).collect();
        let ordered: Vec<_> = ordered.iter().filter(|one| one.directory == *directory).collect();
        let orders: Vec<Time> = ordered.iter().map(|one| time(one.begun_at)).collect();
        let is_failure = |one: &&&Ordered| one.names.iter().any(|name| texts.contains(name));
        let failures: Vec<Time> = ordered
            .iter()
            .filter(is_failure)
            .filter_map(|one| one.failed.as_ref())
            .filter(|(_, cause)| cause == "authorization_failed")
            .map(|(at, _)| time(*at))
            .collect();
        let spent = Spent { domain: &domain, same_names: &same_names, orders: &orders, failures: &failures };
        let ask = match ask {
            Ask::New => acme::Ask::New,
            Ask::Renewal => acme::Ask::Renewal,
            Ask::RenewalInWindow => acme::Ask::RenewalInWindow,
        };
        self.settings.budget.check(ask, &spent, time(now)).map_err(|exhausted| {
            let seconds = exhausted.free_at.unix().saturating_sub(time(now).unix()).max(1);
            IssuanceError::Exhausted {
                words: exhausted.to_string(),
                retry_after: Duration::from_secs(seconds.unsigned_abs()),
            }
        })
    }
}

/// Is it a certificate for the same host?
fn is_for(one: &Holder, other: &Holder) -> bool {
    match (one, other) {
        (Holder::Tunnel { name, .. }, Holder::Tunnel { name: other, .. }) => name == other,
        (Holder::Edge(host), Holder::Edge(other)) => host == other,
        _ => false,
    }
}

pub(super) fn texts(names: &[Name]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}
