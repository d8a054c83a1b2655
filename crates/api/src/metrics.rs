//! What the control plane counts, in the Prometheus text format.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use connections::{Counts, Kind};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use store::Observer;
use tunnel_model::Event;

use crate::error::Error;

/// Counters of requests, signings and connections.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    latency: Histogram,
    signed: Counter,
    connections: Gauge,
    certificate_failures: Family<CauseLabels, Counter>,
    certificate_refusals: Family<CertificateLabels, Counter>,
    issuer_expiry: Gauge<f64, AtomicU64>,
    expiry: Family<CertificateLabels, Gauge<f64, AtomicU64>>,
    orders: Orders,
    names: Family<OutcomeLabels, Counter>,
    traffic: Traffic,
}

#[derive(Default)]
struct Orders {
    pending: Gauge,
    issued: Counter,
    failed: Family<CauseLabels, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// What a data plane tells when it is asked.
#[derive(Debug, Default)]
pub struct TrafficStats {
    /// Connections now, by what they are for.
    pub connections: Counts,
    /// Connections that found no place, since the start.
    pub refused: u64,
    /// Connections that could not be accepted, since the start.
    pub unaccepted: u64,
    /// Agents now.
    pub agents: usize,
    /// Requests and bridges in flight.
    pub exchanges: usize,
    /// Requests that an application has answered, since the start.
    pub answered: u64,
    /// Requests that the data plane has answered, by its word for the reason.
    pub failed: BTreeMap<&'static str, u64>,
}

#[derive(Default)]
struct Traffic {
    connections: Family<KindLabels, Gauge>,
    refused: Counter,
    unaccepted: Counter,
    agents: Gauge,
    exchanges: Gauge,
    answered: Counter,
    failed: Family<FailureLabels, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct CauseLabels {
    cause: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct CertificateLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct FailureLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    method: &'static str,
    route: String,
    status: u16,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        // From a point look-up to a commit on a slow disk.
        let seconds = [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];
        let mut metrics = Self {
            registry: Registry::with_prefix("adit"),
            requests: Family::default(),
            latency: Histogram::new(seconds),
            signed: Counter::default(),
            connections: Gauge::default(),
            certificate_failures: Family::default(),
            certificate_refusals: Family::default(),
            issuer_expiry: Gauge::default(),
            expiry: Family::default(),
            orders: Orders::default(),
            names: Family::default(),
            traffic: Traffic::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("api_requests", "Requests answered", metrics.requests.clone());
        registry.register_with_unit("api_latency", "Time to the answer", Unit::Seconds, metrics.latency.clone());
        registry.register("certificates_signed", "Certificates signed and stored", metrics.signed.clone());
        registry.register(
            "certificate_failures",
            "Certificates of tunnels that were asked for and not issued",
            metrics.certificate_failures.clone(),
        );
        registry.register(
            "certificate_refusals",
            "Certificates in files that had changed and could not be used",
            metrics.certificate_refusals.clone(),
        );
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When the first certificate of this kind ends, seconds since the Unix epoch",
            metrics.expiry.clone(),
        );
        registry.register("connections", "Open HTTP connections", metrics.connections.clone());
        registry.register(
            "issuer_expiry_timestamp_seconds",
            "When the issuing certificate ends, seconds since the Unix epoch",
            metrics.issuer_expiry.clone(),
        );
        let orders = &metrics.orders;
        registry.register("orders_pending", "Orders at a public authority that go on", orders.pending.clone());
        registry.register("orders_issued", "Orders that came to a certificate", orders.issued.clone());
        registry.register("orders_failed", "Orders that failed", orders.failed.clone());
        registry.register("dns_queries", "Messages to the name server", metrics.names.clone());
        let traffic = &metrics.traffic;
        registry.register("edge_connections", "Open connections at the edge", traffic.connections.clone());
        registry.register("edge_refused", "Connections that found no place", traffic.refused.clone());
        registry.register("edge_unaccepted", "Connections that could not be accepted", traffic.unaccepted.clone());
        registry.register("edge_agents", "Agents that are connected", traffic.agents.clone());
        registry.register("edge_exchanges", "Visitors' requests and bridges in flight", traffic.exchanges.clone());
        registry.register("edge_answered", "Visitors' requests that an application answered", traffic.answered.clone());
        registry.register("edge_failed", "Visitors' requests that the edge answered", traffic.failed.clone());
        metrics
    }

    /// Takes over what has come of orders at a public authority since the start.
    pub fn set_orders(&self, pending: usize, issued: u64, failed: BTreeMap<&'static str, u64>) {
        self.orders.pending.set(i64::try_from(pending).unwrap_or(i64::MAX));
        raise(&self.orders.issued, issued);
        for (cause, value) in failed {
            raise(&self.orders.failed.get_or_create(&CauseLabels { cause: cause.to_owned() }), value);
        }
    }

    /// Takes over what a name server has counted since its start, by outcome.
    pub fn set_names<const N: usize>(&self, counts: [(&'static str, u64); N]) {
        for (outcome, value) in counts {
            raise(&self.names.get_or_create(&OutcomeLabels { outcome }), value);
        }
    }

    /// Takes over what a data plane has counted since its start.
    pub fn set_traffic(&self, stats: TrafficStats) {
        let gauge = |gauge: &Gauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        for kind in Kind::ALL {
            let labels = KindLabels { kind: kind.word() };
            gauge(&self.traffic.connections.get_or_create(&labels), stats.connections.of(kind));
        }
        gauge(&self.traffic.agents, stats.agents);
        gauge(&self.traffic.exchanges, stats.exchanges);
        raise(&self.traffic.refused, stats.refused);
        raise(&self.traffic.unaccepted, stats.unaccepted);
        raise(&self.traffic.answered, stats.answered);
        for (reason, value) in stats.failed {
            raise(&self.traffic.failed.get_or_create(&FailureLabels { reason }), value);
        }
    }

    /// Everything in the text format of Prometheus.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// When the issuing certificate ends, in seconds since the Unix epoch.
    pub fn set_issuer_expiry(&self, seconds: i64) {
        self.issuer_expiry.set(in_floating_point(seconds));
    }

    /// When the first certificate of a kind ends, in seconds since the Unix epoch, if there is one.
    pub fn set_certificate_expiry(&self, kind: &'static str, seconds: Option<i64>) {
        let labels = CertificateLabels { kind };
        match seconds {
            Some(seconds) => drop(self.expiry.get_or_create(&labels).set(in_floating_point(seconds))),
            None => drop(self.expiry.remove(&labels)),
        }
    }

    /// A tunnel's certificate was asked for in vain, for what the problem document says.
    pub(crate) fn certificate_failed(&self, error: &Error) {
        let cause = error.problem().kind;
        let cause = cause.rsplit(':').next().unwrap_or_default().to_owned();
        self.certificate_failures.get_or_create(&CauseLabels { cause }).inc();
    }

    /// A certificate of this kind was to take another's place, and cannot be used.
    pub fn certificate_refused(&self, kind: &'static str) {
        self.certificate_refusals.get_or_create(&CertificateLabels { kind }).inc();
    }

    pub(crate) fn observe(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        // Labels must have few values, whatever a client sends.
        let method = match *method {
            Method::DELETE => "DELETE",
            Method::GET => "GET",
            Method::PATCH => "PATCH",
            Method::POST => "POST",
            _ => "other",
        };
        let labels = RequestLabels { method, route: route.to_owned(), status: status.as_u16() };
        self.requests.get_or_create(&labels).inc();
        self.latency.observe(took.as_secs_f64());
    }

    pub(crate) fn connection_opened(&self) {
        self.connections.inc();
    }

    pub(crate) fn connection_closed(&self) {
        self.connections.dec();
    }
}

/// Counters only grow: what is new is added.
fn raise(counter: &Counter, value: u64) {
    counter.inc_by(value.saturating_sub(counter.get()));
}

#[expect(clippy::cast_precision_loss, reason = "seconds of the next millennia fit 52 bits")]
fn in_floating_point(seconds: i64) -> f64 {
    seconds as f64
}

impl Observer for Metrics {
    fn committed(&self, events: &[Event]) {
        let signed = events.iter().filter(|event| matches!(event, Event::CertificateIssued(..))).count();
        self.signed.inc_by(signed as u64);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
