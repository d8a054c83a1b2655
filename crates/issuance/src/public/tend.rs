//! What has to be done without being asked: orders that a restart has interrupted go on, certificates that
//! nobody may use any more are revoked, those of the edge are renewed, and the authority is asked when it
//! wants to be asked for the next one.

use std::collections::HashSet;
use std::time::Duration;

use acme::{Account, CertId, Error, RevocationReason};
use pki_core::Csr;
use store::{Ask, CertificateFilter, ExecuteError, Holder, Order, OrderState, Page, Placed as _, StoreError};
use tunnel_model::{Caller, Command, Timestamp, TlsMode};

use super::begin::Wanted;
use super::{Key, Progress, Public, Shared};
use crate::private::{renewal, timestamp};

/// Records that are looked at together.
const MANY: u32 = 500;
/// Between two looks, though something has happened.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Orders are on record for longer than any certificate lives.
const KEPT: Duration = Duration::from_secs(400 * 24 * 60 * 60);

impl Public {
    /// Tends the orders until it is dropped.
    pub async fn tend(&self) {
        if let Err(error) = self.0.replace_others().await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "cannot tell agents to ask for certificates of this authority");
        }
        loop {
            if let Err(error) = self.look().await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot look after the orders of certificates"
                );
            }
            tokio::time::sleep(PAUSE).await;
            let _ = tokio::time::timeout(LOOK, self.0.changed.notified()).await;
        }
    }

    async fn look(&self) -> Result<(), StoreError> {
        let shared = &self.0;
        let one = shared.begins.lock().await;
        for order in shared.store.pending_orders().await? {
            if !shared.is_ours(&order) {
                shared.give_up(order, shared.now()).await.unwrap_or_else(|error| {
                    tracing::error!(%error, "an order of another authority stays");
                });
            } else if !shared.running().contains_key(&Key::of(&order.holder)) {
                shared.work_on(order, 0, Progress::Asking);
            }
        }
        drop(one);
        let now = shared.now();
        let account = shared.account().await;
        let mut edge_ends_at: Option<Timestamp> = None;
        let mut after = None;
        loop {
            let issued = shared.store.issued_orders(now, after, MANY).await?;
            after = issued.last().map(|order| order.id);
            if after.is_none() {
                break;
            }
            // What another authority has issued is its own to look after.
            for order in issued.into_iter().filter(|order| shared.is_ours(order)) {
                let fate = shared.fate(&order).await?;
                match fate {
                    Fate::Gone => shared.revoke(&order, account.as_ref()).await?,
                    Fate::Past => {}
                    Fate::Current => {
                        if let (Holder::Edge(_), Some(end)) = (&order.holder, end_of(&order)) {
                            edge_ends_at = Some(edge_ends_at.map_or(end, |first| first.min(end)));
                        }
                        let order = shared.ask_when(order, account.as_ref(), now).await?;
                        self.renew(order, now).await;
                    }
                }
            }
        }
        shared.counted().edge_ends_at = edge_ends_at;
        shared.store.forget_orders(now.minus(KEPT)).await
    }

    /// The edge's own are renewed by us: the request is still at hand.
    async fn renew(&self, order: Order, now: Timestamp) {
        let OrderState::Issued { renew_at, .. } = order.state else { return };
        if now < renew_at || !matches!(order.holder, Holder::Edge(_)) {
            return;
        }
        let names = order.names.iter().map(|name| name.parse()).collect::<Result<_, _>>();
        let (Ok(names), Ok(csr)) = (names, Csr::from_der(&order.csr)) else { return };
        let wanted = Wanted { holder: order.holder, names, csr, key: order.key, caller: Caller::System };
        if let Err(error) = self.begin(wanted).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "a certificate of the edge is not renewed yet");
        }
    }
}

fn end_of(order: &Order) -> Option<Timestamp> {
    let OrderState::Issued { chain, renew_at, .. } = &order.state else { return None };
    Some(super::issued(chain, *renew_at)?.certificate.expires_at)
}

/// What has become of a certificate that is good.
enum Fate {
    /// It is in use, as far as we know.
    Current,
    /// Its tunnel, or its host, is another's or nobody's.
    Gone,
    /// There is a later one.
    Past,
}

impl Shared {
    /// Agents whose certificate is another issuer's are to ask for one of this authority: those of the
    /// deployment's own, and those of an authority that was only for trying.
    async fn replace_others(&self) -> Result<(), StoreError> {
        let now = self.now();
        let (mut ours, mut after) = (HashSet::new(), None);
        loop {
            let issued = self.store.issued_orders(now, after, MANY).await?;
            after = issued.last().map(|order| order.id);
            if after.is_none() {
                break;
            }
            for order in issued.into_iter().filter(|order| self.is_ours(order)) {
                if let OrderState::Issued { fingerprint, .. } = order.state {
                    ours.insert(fingerprint);
                }
            }
        }
        let filter = CertificateFilter { ends_from: Some(now), ..CertificateFilter::default() };
        let mut page = Page { after: None, limit: Some(MANY) };
        loop {
            let certificates = self.store.certificates(&filter, page).await?;
            for certificate in certificates.iter().filter(|one| !ours.contains(&one.fingerprint)) {
                let Holder::Tunnel { id, .. } = &certificate.holder else { continue };
                let command = Command::SetRenewal { id: *id, fingerprint: certificate.fingerprint, renew_at: now };
                match self.store.execute(Caller::System, command, &self.rules, now).await {
                    // Most are not what their tunnel has now.
                    Ok(_) | Err(ExecuteError::Refused(_)) => {}
                    Err(ExecuteError::Store(error)) => return Err(error),
                }
            }
            match certificates.last() {
                Some(last) if certificates.len() == MANY as usize => page.after = Some(last.place()),
                _ => return Ok(()),
            }
        }
    }

    async fn fate(&self, order: &Order) -> Result<Fate, StoreError> {
        let is_there = match &order.holder {
            Holder::Tunnel { id, name, .. } => self.store.tunnel(*id).await?.is_some_and(|tunnel| tunnel.name == *name),
            Holder::Edge(host) if *host == self.settings.zone.as_str() => true,
            // One for all has taken its place.
            Holder::Edge(_) if self.settings.wildcard => return Ok(Fate::Past),
            Holder::Edge(host) => {
                let label = host.strip_suffix(self.settings.zone.as_str()).and_then(|rest| rest.strip_suffix('.'));
                match label.and_then(|label| label.parse().ok()) {
                    Some(name) => {
                        let tunnel = self.store.tunnel_by_name(&name).await?;
                        tunnel.is_some_and(|tunnel| tunnel.tls_mode == TlsMode::Edge)
                    }
                    None => false,
                }
            }
        };
        if !is_there {
            return Ok(Fate::Gone);
        }
        // Agents may be several, with keys of their own.
        let key = matches!(order.holder, Holder::Tunnel { .. }).then_some(order.key);
        let latest = self.store.latest_issued_order(&order.holder, key).await?;
        let is_last = latest.is_none_or(|latest| latest.id == order.id);
        Ok(if is_last { Fate::Current } else { Fate::Past })
    }

    /// A name that is given up is nobody's to prove: its certificate is revoked, though browsers hardly look.
    async fn revoke(&self, order: &Order, account: Option<&Account>) -> Result<(), StoreError> {
        let OrderState::Issued { fingerprint, chain, .. } = &order.state else { return Ok(()) };
        let now = self.now();
        let tried = self.revocations().get(fingerprint).copied();
        if tried.is_some_and(|(_, again_at)| now < again_at) {
            return Ok(());
        }
        let names = order.names.join(" ");
        let leaf = pki_core::certificates_from_pem(chain.as_bytes()).unwrap_or_default().into_iter().next();
        let revoked = match (account, leaf) {
            (Some(account), Some(leaf)) => account.revoke(&leaf, RevocationReason::CessationOfOperation).await,
            _ => return Ok(()),
        };
        match revoked {
            Ok(()) => {
                tracing::info!(names, "revoked a certificate of a name that was given up");
                self.revocations().remove(fingerprint);
                self.store.note_revocation(*fingerprint, now).await
            }
            Err(error) => {
                // Some are never revoked: by an account that has not ordered them, for one.
                let attempts = tried.map_or(0, |(attempts, _)| attempts).saturating_add(1);
                let wait = LOOK.saturating_mul(1 << attempts.min(10)).min(DAY);
                self.revocations().insert(*fingerprint, (attempts, now.plus(wait)));
                tracing::warn!(error = &error as &dyn std::error::Error, names, "a certificate is not revoked yet");
                Ok(())
            }
        }
    }

    /// Asks the authority when it wants the certificate renewed (RFC 9773), if it is time to ask.
    async fn ask_when(&self, mut order: Order, account: Option<&Account>, now: Timestamp) -> Result<Order, StoreError> {
        let names = order.names.join(" ");
        let OrderState::Issued { at, fingerprint, chain, renew_at, is_told, ask_again_at } = &mut order.state else {
            return Ok(order);
        };
        if ask_again_at.is_some_and(|at| now < at) {
            return Ok(order);
        }
        let Some(issued) = super::issued(chain, *renew_at) else { return Ok(order) };
        let (Some(account), Some(id)) = (account, CertId::of(&issued.der)) else { return Ok(order) };
        if !account.directory().has_renewal_info() {
            return Ok(order);
        }
        match account.renewal(&id).await {
            Ok(told) => {
                // The same moment of the window each time, another one for each certificate.
                let random = u64::from_be_bytes(std::array::from_fn(|at| fingerprint[at]));
                // A window that lies where it would help nobody is none.
                let (begin, end) = (issued.not_before, issued.certificate.expires_at);
                let latest = begin.plus(end.since(begin) / 10 * 9);
                let chosen = timestamp(told.window.choose(random));
                let chosen = if chosen > latest {
                    tracing::warn!(
                        names,
                        "the authority would have a certificate renewed too late: it is renewed as others are"
                    );
                    renewal(begin, end)
                } else {
                    *is_told = true;
                    chosen.max(begin)
                };
                // One that was brought forward is not brought forward again at once, whatever it says.
                let soonest = if order.ask == Ask::RenewalInWindow { at.plus(DAY) } else { chosen };
                if chosen < soonest {
                    tracing::warn!(
                        names,
                        "the authority wants a certificate renewed again at once: it is not, for a day"
                    );
                }
                *renew_at = chosen.max(soonest);
                *ask_again_at = Some(now.plus(told.ask_again_after));
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "an authority does not say when to renew");
                *ask_again_at = Some(now.plus(DAY));
            }
        }
        let (fingerprint, renew_at) = (*fingerprint, *renew_at);
        if let Holder::Tunnel { id, .. } = &order.holder {
            let command = Command::SetRenewal { id: *id, fingerprint, renew_at };
            match self.store.execute(Caller::System, command, &self.rules, now).await {
                Ok(_) | Err(ExecuteError::Refused(_)) => {}
                Err(ExecuteError::Store(error)) => return Err(error),
            }
        }
        self.store.record_order(order.clone()).await?;
        Ok(order)
    }

    /// Nobody waits for it here: a failure is told by the order that needs it.
    async fn account(&self) -> Option<Account> {
        self.client.account().await.inspect_err(|error: &Error| tracing::debug!(%error, "no account")).ok()
    }
}
