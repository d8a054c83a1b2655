//! What the zone says.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use hickory_proto::op::Query;
use hickory_proto::rr::rdata::{A, AAAA, HINFO, NS, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::challenges::Texts;
use crate::{Caa, DomainName};

/// Addresses of the zone: as many as fit an answer of 512 octets to a long name, most likely.
pub const MAX_ADDRESSES: usize = 8;

/// Name servers of the zone.
pub const MAX_NAME_SERVERS: usize = 8;

/// Seconds for which an address may be kept: it changes when the server moves, and then quickly.
const ADDRESS_TTL: u32 = 300;

/// Seconds for NS and SOA, which nearly never change.
const APEX_TTL: u32 = 3600;

/// Seconds for CAA, and for "there is no such record" (RFC 2308 section 5). CAA changes when the
/// authority's account is known, and an authority that has just looked must see that soon.
const SHORT_TTL: u32 = 60;

/// Seconds for TXT, there or not there. A second challenge at a name comes moments after the
/// first, and a resolver that has asked too early, or for the last order, must not say what it
/// has kept. Not 0, which resolvers treat in their own ways.
const TEXT_TTL: u32 = 1;

/// How a zone begins.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name of the zone.
    pub zone: DomainName,
    /// The addresses of the zone and of every name below it.
    pub addresses: Vec<IpAddr>,
    /// The names in NS, as the delegation above has them; the first stands in SOA, too. Without
    /// any it is `ns1` below the zone, which has the zone's addresses, as any name there.
    pub name_servers: Vec<DomainName>,
    /// Who may issue certificates.
    pub caa: Caa,
    /// The first serial number in SOA; it grows by one with every change. Nobody copies the
    /// zone, so that nothing hangs on it; people look at it.
    pub serial: u32,
}

/// Why there can be no such zone.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// Nobody can be reached at this address.
    #[error("{0} is not the address of a machine")]
    Address(IpAddr),
    /// No address, or too many.
    #[error("a zone has 1 to {MAX_ADDRESSES} addresses")]
    Addresses,
    /// The zone's name leaves no room for names below.
    #[error("the name {0} is too long for a zone")]
    Long(DomainName),
    /// Too many.
    #[error("a zone has at most {MAX_NAME_SERVERS} name servers")]
    NameServers,
}

impl Settings {
    /// No CAA, one name server, and the time as the first serial number.
    #[must_use]
    pub fn new(zone: DomainName, addresses: Vec<IpAddr>) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // Serial numbers wrap around (RFC 1982).
        let serial = (since & u64::from(u32::MAX)) as u32;
        Self { zone, addresses, name_servers: Vec::new(), caa: Caa::none(), serial }
    }
}

/// A zone in which every name leads to the same addresses.
///
/// No name below it is missing: a name has what was asked for, or it has no record of that
/// type, never NXDOMAIN. A resolver that has heard NXDOMAIN for a name believes it for all
/// types, and for all names below ([RFC 8020](https://www.rfc-editor.org/rfc/rfc8020)).
#[derive(Debug)]
pub struct Zone {
    origin: DomainName,
    version_4: Vec<RData>,
    version_6: Vec<RData>,
    name_servers: Vec<DomainName>,
    contact: DomainName,
    serial: AtomicU32,
    caa: RwLock<Vec<RData>>,
    texts: RwLock<Texts>,
}

/// The records of an answer.
#[derive(Debug, Default)]
pub(crate) struct Sections {
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

impl Zone {
    /// A zone without texts.
    ///
    /// # Errors
    ///
    /// [`SettingsError`] says what does not fit.
    pub fn new(settings: Settings) -> Result<Arc<Self>, SettingsError> {
        let Settings { zone: origin, addresses, mut name_servers, caa, serial } = settings;
        if !(1..=MAX_ADDRESSES).contains(&addresses.len()) {
            return Err(SettingsError::Addresses);
        }
        if let Some(address) = addresses.iter().find(|ip| ip.is_unspecified() || ip.is_multicast()) {
            return Err(SettingsError::Address(*address));
        }
        let below = |label| origin.below(label).map_err(|_| SettingsError::Long(origin.clone()));
        let contact = below("hostmaster")?;
        if name_servers.is_empty() {
            name_servers.push(below("ns1")?);
        }
        if name_servers.len() > MAX_NAME_SERVERS {
            return Err(SettingsError::NameServers);
        }
        let (mut version_4, mut version_6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address.to_canonical() {
                IpAddr::V4(ip) => version_4.push(RData::A(A(ip))),
                IpAddr::V6(ip) => version_6.push(RData::AAAA(AAAA(ip))),
            }
        }
        Ok(Arc::new(Self {
            origin,
            version_4,
            version_6,
            name_servers,
            contact,
            serial: AtomicU32::new(serial),
            caa: RwLock::new(caa.records()),
            texts: RwLock::default(),
        }))
    }

    /// From now on CAA says this.
    pub fn set_caa(&self, caa: &Caa) {
        *self.caa.write().unwrap_or_else(PoisonError::into_inner) = caa.records();
        self.count_change();
    }

    /// The name of the zone.
    #[must_use]
    pub fn origin(&self) -> &DomainName {
        &self.origin
    }

    /// The names in NS.
    #[must_use]
    pub fn name_servers(&self) -> &[DomainName] {
        &self.name_servers
    }

    pub(crate) fn change_texts(&self, change: impl FnOnce(&mut Texts) -> bool) -> bool {
        let is_changed = change(&mut self.texts.write().unwrap_or_else(PoisonError::into_inner));
        if is_changed {
            self.count_change();
        }
        is_changed
    }

    pub(crate) fn texts(&self, name: &DomainName) -> Vec<String> {
        self.texts.read().unwrap_or_else(PoisonError::into_inner).at(name.wire())
    }

    /// What the zone says to a question; `None` is a refusal: it is not ours to answer, or
    /// asks for the whole zone (RFC 5936 section 2.2.1, RFC 1995).
    pub(crate) fn answer(&self, question: &Query) -> Option<Sections> {
        let Query { name, query_type, query_class, .. } = question;
        let is_ours = *query_class == DNSClass::IN && self.origin.wire().zone_of(name);
        if !is_ours || matches!(query_type, RecordType::AXFR | RecordType::IXFR) {
            return None;
        }
        let is_apex = name.num_labels() == self.origin.wire().num_labels() && name == self.origin.wire();
        let mut sections = Sections::default();
        let answers = &mut sections.answers;
        let mut say = |ttl, data: &RData| answers.push(Record::from_rdata(name.clone(), ttl, data.clone()));
        match query_type {
            RecordType::A => self.version_4.iter().for_each(|data| say(ADDRESS_TTL, data)),
            RecordType::AAAA => self.version_6.iter().for_each(|data| say(ADDRESS_TTL, data)),
            RecordType::TXT => {
                let texts = self.texts.read().unwrap_or_else(PoisonError::into_inner);
                texts.records(name).for_each(|data| say(TEXT_TTL, data));
            }
            RecordType::CAA if is_apex => {
                let caa = self.caa.read().unwrap_or_else(PoisonError::into_inner);
                caa.iter().for_each(|data| say(SHORT_TTL, data));
            }
            RecordType::NS if is_apex => {
                for name_server in &self.name_servers {
                    say(APEX_TTL, &RData::NS(NS(name_server.wire().clone())));
                    sections.additionals.extend(self.addresses_of(name_server));
                }
            }
            RecordType::SOA if is_apex => say(APEX_TTL, &RData::SOA(self.start_of_authority())),
            // A small answer, so that nobody has it sent to somebody else (RFC 8482 section 4.2).
            RecordType::ANY => {
                say(APEX_TTL, &RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new())));
            }
            _ => {}
        }
        if sections.answers.is_empty() {
            // There is no such record (RFC 2308 section 2.2). It is kept for the SOA's own TTL or
            // its minimum, whichever is less (section 5).
            let ttl = if *query_type == RecordType::TXT { TEXT_TTL } else { SHORT_TTL };
            let data = RData::SOA(self.start_of_authority());
            sections.authorities.push(Record::from_rdata(self.origin.wire().clone(), ttl, data));
        }
        Some(sections)
    }

    /// What a resolver asks for next when it has an NS of ours.
    fn addresses_of(&self, name_server: &DomainName) -> impl Iterator<Item = Record> {
        let is_ours = name_server.is_within(&self.origin);
        let data = self.version_4.iter().chain(&self.version_6).filter(move |_| is_ours);
        let name = name_server.wire().clone();
        data.map(move |data| Record::from_rdata(name.clone(), ADDRESS_TTL, data.clone()))
    }

    fn start_of_authority(&self) -> SOA {
        let primary = self.name_servers.first().map_or_else(Name::root, |name| name.wire().clone());
        let serial = self.serial.load(Ordering::Relaxed);
        // Refresh, retry and expiry are for copies of the zone, of which there are none.
        SOA::new(primary, self.contact.wire().clone(), serial, 7200, 900, 1_209_600, SHORT_TTL)
    }

    fn count_change(&self) {
        self.serial.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_that_cannot_be_is_refused_with_a_reason() {
        let name = |text: &str| text.parse::<DomainName>().expect("a name");
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let long = name(&format!("{}b", "a.".repeat(124)));
        let refused = |settings| Zone::new(settings).expect_err("refused");
        let zone = name("adit.example");
        for (zone, addresses, wanted) in [
            (&zone, vec![], SettingsError::Addresses),
            (&zone, vec![ip("192.0.2.1"); MAX_ADDRESSES + 1], SettingsError::Addresses),
            (&zone, vec![ip("0.0.0.0")], SettingsError::Address(ip("0.0.0.0"))),
            (&zone, vec![ip("192.0.2.1"), ip("ff02::1")], SettingsError::Address(ip("ff02::1"))),
            (&long, vec![ip("192.0.2.1")], SettingsError::Long(long.clone())),
        ] {
            assert_eq!(refused(Settings::new(zone.clone(), addresses)), wanted);
        }
        let mut settings = Settings::new(zone.clone(), vec![ip("192.0.2.1")]);
        settings.name_servers = vec![zone; MAX_NAME_SERVERS + 1];
        assert_eq!(refused(settings), SettingsError::NameServers);
    }
}
