//! Certificates that take long are asked for as soon as their host exists, and not when somebody visits.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use store::Observer;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tunnel_model::{Event, TlsMode, Zone};

use crate::tls::Certificates;

/// Hosts that are to have a certificate before they are visited.
pub(crate) struct Ahead {
    certificates: Arc<Certificates>,
    zone: Zone,
    waiting: Mutex<BTreeSet<String>>,
    more: Notify,
}

/// Hosts that wait; beyond them, the first visitor asks.
const MAX_WAITING: usize = 16 * 1024;
/// Hosts for which is asked at once.
const AT_ONCE: usize = 64;

impl Ahead {
    pub(crate) fn new(certificates: Arc<Certificates>, zone: Zone) -> Self {
        Self { certificates, zone, waiting: Mutex::default(), more: Notify::new() }
    }

    fn add(&self, host: String) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < MAX_WAITING {
            waiting.insert(host);
            drop(waiting);
            self.more.notify_one();
        }
    }

    /// Asks until it is dropped; at first for the zone itself.
    pub(crate) async fn ask(&self) {
        if !self.certificates.are_slow() {
            return;
        }
        self.add(self.zone.as_str().to_owned());
        let mut asking = JoinSet::new();
        loop {
            let next = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_first();
            match next {
                Some(host) => {
                    if asking.len() >= AT_ONCE {
                        asking.join_next().await;
                    }
                    let certificates = Arc::clone(&self.certificates);
                    asking.spawn(async move { certificates.prepare(&host).await });
                }
                None => tokio::select! {
                    () = self.more.notified() => {}
                    Some(_) = asking.join_next() => {}
                },
            }
        }
    }
}

impl Observer for Ahead {
    fn committed(&self, events: &[Event]) {
        for event in events {
            if let Event::TunnelCreated(tunnel) | Event::TunnelRenamed(tunnel) | Event::TunnelRestored(tunnel) = event
                && tunnel.tls_mode == TlsMode::Edge
                && self.certificates.are_slow()
            {
                self.add(self.zone.host(&tunnel.name).to_string());
            }
        }
    }
}
