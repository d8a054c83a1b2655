//! How an order goes on, and how it ends: a certificate is on record before anybody has it, and what is
//! wrong is taken back.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use acme::{CertId, Chain, Error, Failures, Fault, Name, Remedy, RevocationReason, Solvers, Wrong};
use pki_core::{Certificate, Csr, Time};
use sha2::{Digest as _, Sha256};
use store::{ExecuteError, Holder, IssuedCertificate, Order, OrderState, StoreError};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tunnel_model::{Caller, Command, Issuer, Origin, Timestamp, check_signable};

use super::{ASK_AGAIN, Done, Failed, Key, Progress, Running, Shared, time};
use crate::Issued;
use crate::private::{renewal, timestamp};

/// How long an order may go on; what it has proved ends soon after.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Between two attempts, at first and at last.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(10 * 60);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

impl Shared {
    /// Works on an order until it has ended, whoever waits for it.
    pub(super) fn work_on(self: &Arc<Self>, order: Order, switches: u32, begun: Progress) -> Done {
        let (key, id) = (Key::of(&order.holder), order.id);
        let (tell, done) = watch::channel(begun);
        let shared = Arc::clone(self);
        let of = key.clone();
        // The task must be known before it can end.
        let mut running = self.running();
        let task = tokio::spawn(async move {
            let outcome = shared.work(order, &tell).await;
            shared.forget_running(&of, id);
            tell.send_replace(Progress::Ended(outcome));
        });
        running.insert(key, Running { order: id, done: done.clone(), task: task.abort_handle(), switches });
        done
    }

    /// Of an order that has ended. Whoever begins one sees it here as long as it is pending on record.
    fn forget_running(&self, key: &Key, id: [u8; 16]) {
        let mut running = self.running();
        if running.get(key).is_some_and(|running| running.order == id) {
            running.remove(key);
        }
    }

    async fn work(&self, mut order: Order, tell: &watch::Sender<Progress>) -> Result<Issued, Failed> {
        let names = order.names.join(" ");
        let (mut pause, mut is_forgiven) = (FIRST_PAUSE, false);
        let was_interrupted = order.url.is_some();
        let started_at = self.now();
        // What the authority has said counts for whoever takes the order over.
        let before = tell.borrow().clone();
        if let Progress::Waiting { until, .. } = before {
            sleep(until.since(self.now())).await;
        }
        loop {
            tell.send_replace(Progress::Asking);
            let error = match self.patient_step(&mut order, &names).await {
                Ok(chain) => return self.finish(order, chain).await,
                Err(error) => error,
            };
            let is_young = self.now().since(started_at) < LONGEST && self.is_wanted(&order).await;
            match &error {
                // An authority that has forgotten us, or the order, is asked anew, once; and so it is where it
                // has looked while this server was not there, or has issued for the key of another agent.
                Error::AccountGone { .. }
                | Error::OrderGone { .. }
                | Error::AuthorizationFailed { .. }
                | Error::Wrong { wrong: Wrong::Key, .. }
                    if !is_forgiven && (was_interrupted || !matches!(error, Error::AuthorizationFailed { .. })) =>
                {
                    tracing::warn!(error = &error as &dyn std::error::Error, names, "an order is begun anew");
                    is_forgiven = true;
                    order.url = None;
                    match &error {
                        Error::Wrong { leaf: Some(leaf), .. } => self.take_back(&order, leaf).await,
                        Error::AccountGone { .. } if !self.forget_account().await => {
                            return Err(self.fail(order, error).await);
                        }
                        _ => {}
                    }
                    continue;
                }
                // It is public already, whether or not it can be used.
                Error::NotNow { leaf, .. } if is_young => {
                    if let Err(error) = self.store.record_certificate(record_of(&order, leaf, self.now())).await {
                        tracing::error!(
                            error = &error as &dyn std::error::Error,
                            "a certificate cannot be put on record"
                        );
                    }
                }
                _ if error.remedy() == Remedy::Again && is_young => {}
                _ => return Err(self.fail(order, error).await),
            }
            let now = self.now();
            let told = error.not_before().map_or(now, timestamp).since(now).min(LONGEST);
            let wait = pause.max(told);
            pause = (pause * 2).min(LONGEST_PAUSE);
            let seconds = wait.as_secs();
            tracing::warn!(error = &error as &dyn std::error::Error, names, seconds, "an order goes on later");
            tell.send_replace(Progress::Waiting { words: in_words(&error), until: now.plus(wait) });
            sleep(wait).await;
        }
    }

    /// The authority does not know the account any more: there will be another one, but not often.
    async fn forget_account(&self) -> bool {
        let now = self.now();
        {
            let mut renewed_at = self.renewed_account_at.lock().unwrap_or_else(PoisonError::into_inner);
            match renewed_at.map(|at| now.since(at)) {
                // Another order was quicker.
                Some(since) if since < MINUTE => return true,
                Some(since) if since < HOUR => return false,
                _ => {}
            }
            *renewed_at = Some(now);
        }
        self.client.forget().await.inspect_err(|error: &Error| tracing::error!(%error, "the account stays")).is_ok()
    }

    /// Says that it takes long, now and then.
    async fn patient_step(&self, order: &mut Order, names: &str) -> Result<Chain, Error> {
        let step = self.step(order);
        let mut step = std::pin::pin!(step);
        loop {
            match timeout(MINUTE, &mut step).await {
                Ok(result) => return result,
                Err(_) => tracing::info!(names, "the authority has not issued a certificate yet: still asking"),
            }
        }
    }

    /// As far as it goes at once.
    async fn step(&self, order: &mut Order) -> Result<Chain, Error> {
        let broken = |words: &str| Error::Nonsense(words.to_owned());
        let is_wanted = self.is_wanted(order).await;
        if !is_wanted && order.url.is_none() {
            return Err(Error::Nonsense("nobody wants this certificate any more".to_owned()));
        }
        let account = self.client.account().await?;
        let names: Vec<Name> = order.names.iter().filter_map(|name| name.parse().ok()).collect();
        let url = match &order.url {
            Some(url) => url.clone(),
            None => {
                let replaces = order.replaces.as_ref().and_then(|id| id.parse::<CertId>().ok());
                let url = account.begin(&names, replaces.as_ref()).await?;
                order.url = Some(url.clone());
                // An order that nobody knows of would be lost; one that cannot be stored is begun again.
                self.store
                    .record_order(order.clone())
                    .await
                    .map_err(|error| Error::Unreachable(format!("this server cannot store the order: {error}")))?;
                url
            }
        };
        let csr = Csr::from_der(&order.csr).map_err(|_| broken("the stored request cannot be read"))?;
        let ordered = acme::Order { url: &url, names: &names, csr: &csr, failures: order.failures };
        if is_wanted {
            account.proceed(&ordered, &self.solvers).await
        } else {
            // What is issued already has to be known; nothing is proved for a name that may be another's now.
            account.proceed(&ordered, &Solvers::new()).await
        }
    }

    /// Has its tunnel still the name that it was ordered for?
    async fn is_wanted(&self, order: &Order) -> bool {
        let Holder::Tunnel { id, name, .. } = &order.holder else { return true };
        match self.store.tunnel(*id).await {
            Ok(tunnel) => {
                tunnel.is_some_and(|tunnel| tunnel.name == *name && check_signable(&tunnel, self.now()).is_ok())
            }
            // What cannot be read is looked at again when it ends.
            Err(_) => true,
        }
    }

    /// There is a certificate: it is recorded, whatever has become of its tunnel.
    async fn finish(&self, mut order: Order, chain: Chain) -> Result<Issued, Failed> {
        let mut pause = FIRST_PAUSE;
        loop {
            // Whoever begins an order sees it pending and worked on, or ended and not.
            let one = self.begins.lock().await;
            let recorded = self.record(&mut order, &chain).await;
            if !matches!(recorded, Err(ExecuteError::Store(_))) {
                self.forget_running(&Key::of(&order.holder), order.id);
            }
            drop(one);
            match recorded {
                Ok(issued) => {
                    let names = order.names.join(" ");
                    self.counted().issued += 1;
                    tracing::info!(names, until = %chain.not_after(), "a public authority has issued a certificate");
                    return Ok(issued);
                }
                Err(ExecuteError::Refused(refusal)) => {
                    // Nobody can use it: `tend` takes it back.
                    self.changed.notify_one();
                    return Err(Failed::Refused(refusal));
                }
                // A disk that is full may have room again, and the certificate cannot be had twice.
                Err(ExecuteError::Store(error)) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "a certificate cannot be put on record");
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn record(&self, order: &mut Order, chain: &Chain) -> Result<Issued, ExecuteError> {
        let (not_before, not_after) = (timestamp(chain.not_before()), timestamp(chain.not_after()));
        let renew_at = renewal(not_before, not_after);
        let Some(issued) = super::issued(&chain.pem(), renew_at) else {
            return Err(StoreError::Corrupt("certificate").into());
        };
        let now = self.now();
        let mut refused = None;
        if let Holder::Tunnel { id, name, .. } = &order.holder {
            let command = Command::FinishOrder {
                id: *id,
                name: name.clone(),
                certificate: issued.certificate.clone(),
                origin: Origin {
                    issuer: Issuer::Acme,
                    requested_by: order.requested_by,
                    key: order.key,
                    not_before,
                    profile: order.profile.clone(),
                },
            };
            match self.store.execute(Caller::System, command, &self.rules, now).await {
                Ok(_) => {}
                Err(ExecuteError::Refused(refusal)) => refused = Some(refusal),
                Err(error) => return Err(error),
            }
        }
        // What its tunnel has taken is on record already, and stays as it is.
        self.store.record_certificate(record_of(order, chain.leaf(), now)).await?;
        order.state = OrderState::Issued {
            at: now,
            fingerprint: issued.certificate.fingerprint,
            chain: chain.pem(),
            renew_at,
            is_told: false,
            ask_again_at: None,
        };
        self.store.record_order(order.clone()).await?;
        refused.map_or(Ok(issued), |refusal| Err(refusal.into()))
    }

    /// There is none: why, and when to try again, is kept for whoever asks.
    async fn fail(&self, mut order: Order, error: Error) -> Failed {
        let now = self.now();
        let (names, url) = (order.names.join(" "), order.url.clone().unwrap_or_default());
        tracing::error!(error = &error as &dyn std::error::Error, names, url, "an order has failed");
        *self.counted().failed.entry(error.label()).or_default() += 1;
        if let Error::Wrong { leaf: Some(leaf), .. } = &error {
            self.take_back(&order, leaf).await;
        }
        let first = time(order.failing_since.unwrap_or(now));
        let count = order.failures.saturating_add(1);
        let failures = Failures { count, first, latest: time(now), not_before: error.not_before() };
        let again = failures.try_again_at(getrandom::u64().unwrap_or_default()).map(timestamp);
        // It has been tried for a month: once a day is enough until somebody has looked.
        let not_before = again.unwrap_or(now.plus(LONGEST));
        let words = in_words(&error);
        let (cause, told) = (error.label().to_owned(), words.clone());
        order.state = OrderState::Failed { at: now, cause, words: told, not_before: Some(not_before) };
        let one = self.begins.lock().await;
        self.forget_running(&Key::of(&order.holder), order.id);
        let recorded = self.store.record_order(order).await;
        drop(one);
        if let Err(error) = recorded {
            // It is still on record as one that goes on, and will, at the next start.
            tracing::error!(error = &error as &dyn std::error::Error, names, "cannot record that an order has failed");
        }
        match error.fault() {
            Fault::Requester => Failed::Request(words),
            Fault::Authority | Fault::Operator => {
                Failed::Authority { words, retry_after: not_before.since(now).max(ASK_AGAIN) }
            }
        }
    }

    /// What is not what was asked for is recorded and revoked.
    async fn take_back(&self, order: &Order, leaf: &[u8]) {
        let now = self.now();
        let record = record_of(order, leaf, now);
        let (fingerprint, serial) = (record.fingerprint, record.serial.clone());
        if let Err(error) = self.store.record_certificate(record).await {
            tracing::error!(error = &error as &dyn std::error::Error, "a wrong certificate cannot be put on record");
        }
        let revoked = match self.client.account().await {
            Ok(account) => account.revoke(leaf, RevocationReason::Superseded).await,
            Err(error) => Err(error),
        };
        let noted = match revoked {
            Ok(()) => self.store.note_revocation(fingerprint, now).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = noted {
            let (names, serial) = (order.names.join(" "), hex(&serial));
            tracing::error!(error, names, serial, "a wrong certificate is not revoked: do it by hand");
        }
    }
}

/// As the record of what was issued has it. What cannot be read of a wrong one is empty.
fn record_of(order: &Order, leaf: &[u8], now: Timestamp) -> IssuedCertificate {
    let read = Certificate::from_der(leaf).ok();
    let end = read.as_ref().map_or(Time::MAX, Certificate::not_after);
    IssuedCertificate {
        holder: order.holder.clone(),
        serial: read.as_ref().map(|leaf| leaf.serial().to_vec()).unwrap_or_default(),
        fingerprint: *pki_core::Fingerprint::of(leaf).as_bytes(),
        issuer: Issuer::Acme,
        profile: order.profile.clone(),
        key: read.as_ref().map(|leaf| Sha256::digest(leaf.spki()).into()),
        requested_by: order.requested_by,
        not_before: read.as_ref().map(|leaf| timestamp(leaf.not_before())),
        not_after: timestamp(end),
        issued_at: Some(now),
        revoked_at: None,
    }
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// An error with its causes, in one line that is not too long, for whoever asks for a certificate: what
/// is the operator's alone is in the log.
fn in_words(error: &Error) -> String {
    match error {
        Error::AccountStore(_) | Error::Roots(_) | Error::Solver { .. } => {
            return format!("the operator of this server has to mend something ({}): its log says what", error.label());
        }
        Error::Unreachable(_) => return "the authority cannot be reached now".to_owned(),
        _ => {}
    }
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        words += &format!(": {error}");
        cause = error.source();
    }
    words.chars().take(500).collect()
}
