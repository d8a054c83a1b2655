//! Who may issue certificates for the zone ([RFC 8659](https://www.rfc-editor.org/rfc/rfc8659)), and does that let
//! our authority, our account and our challenges?

use std::fmt;
use std::sync::Arc;

use acme::ChallengeKind;
use hickory_proto::rr::{RData, RecordType};

use super::{Finding, Seen, list};
use crate::settings::acme::{CaaPolicy, Fallback};

/// Asks as the authority does, and judges.
pub(super) async fn check(seen: Arc<Seen>) -> Vec<Finding> {
    const NAME: &str = "dns.caa";
    if seen.client().is_none() {
        return Vec::new();
    }
    let acme = &seen.settings.acme;
    let mut found = None;
    for name in climb(seen.zone()) {
        match seen.resolver.records(name, RecordType::CAA).await {
            Ok(records) => {
                let properties: Vec<_> = records.iter().filter_map(Property::of).collect();
                if !properties.is_empty() {
                    found = Some((name, properties));
                    break;
                }
            }
            Err(error) => {
                let detail = format!("the CAA records of {name} are not seen: {error}");
                let remedy = "an authority that gets no answer issues nothing: see why there is none";
                return vec![Finding::warn(NAME, detail, remedy)];
            }
        }
    }
    let Some((name, properties)) = found else {
        if acme.caa == CaaPolicy::None {
            return vec![Finding::ok(NAME, "no record: every authority may issue, and any account there")];
        }
        let remedy = "the server says it as soon as it has an account: see its log, and check again";
        return vec![Finding::warn(NAME, "no record, though acme_caa is set", remedy)];
    };
    let shown = format!("{name} says {}", list(&properties));
    let Some(Ok(directory)) = seen.directory().await else {
        return vec![Finding::warn(NAME, format!("{shown}; who the authority is, is not known"), "see `acme` below")];
    };
    let identities = directory.caa_identities();
    if identities.is_empty() {
        let detail = format!("{shown}; the authority does not say which name it looks for");
        return vec![Finding::warn(NAME, detail, "compare it with the authority's documents")];
    }
    let account = seen.account().await.unwrap_or_default();
    let asker = Asker { identities, account, methods: &acme.challenges() };
    let has_wildcard =
        acme.issuer_fallback == Fallback::Refuse && asker.methods.iter().any(|one| one.proves_wildcards());
    let answer = asker.may_issue(&properties, false).and_then(|()| match has_wildcard {
        true => asker.may_issue(&properties, true),
        false => Ok(()),
    });
    let names_account = || properties.iter().any(|property| property.parameter("accounturi").is_some());
    let identity = identities.first().map_or("", String::as_str);
    vec![match answer {
        Ok(()) if acme.caa == CaaPolicy::Account && !names_account() => {
            Finding::warn(NAME, format!("{shown}, and no account, though acme_caa is account"), "see the server's log")
        }
        Ok(()) => Finding::ok(NAME, shown),
        Err(Refusal::NoAccountYet) => {
            let detail = format!("{shown}; this server has no account there yet");
            Finding::warn(NAME, detail, "start it, and check again")
        }
        Err(refusal) => {
            let remedy = format!("make the record {name} CAA 0 issue \"{identity}\", or change the one that is there");
            Finding::fail(NAME, format!("{shown}, which lets {identity} issue nothing: {refusal}"), remedy)
        }
    }]
}

/// The names whose records are looked for, until one has any (section 3). The root has none.
fn climb(zone: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(zone), |name| name.split_once('.').map(|(_, parent)| parent))
}

/// One record.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Property {
    is_critical: bool,
    tag: String,
    value: String,
}

impl Property {
    fn of(data: &RData) -> Option<Self> {
        let RData::CAA(record) = data else { return None };
        let (tag, value) = (record.tag.to_ascii_lowercase(), String::from_utf8_lossy(&record.value).into_owned());
        Some(Self { is_critical: record.issuer_critical, tag, value })
    }

    /// The issuer's name; empty if nobody is meant.
    fn issuer(&self) -> &str {
        self.value.split(';').next().unwrap_or_default().trim()
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        let mut parameters = self.value.split(';').skip(1).filter_map(|one| one.split_once('='));
        parameters.find(|(key, _)| key.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} \"{}\"", if self.is_critical { 128 } else { 0 }, self.tag, self.value.escape_debug())
    }
}

/// Who wants certificates.
struct Asker<'a> {
    /// The names of the authority.
    identities: &'a [String],
    /// Our account there.
    account: Option<&'a str>,
    /// How names are proved.
    methods: &'a [ChallengeKind],
}

/// Why there is no certificate, the nearer to one the greater.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Refusal {
    Critical,
    Issuer,
    Account,
    Method,
    NoAccountYet,
}

impl Asker<'_> {
    /// By all records of one name (sections 4.2 to 4.4, and RFC 8657 for accounts and methods).
    fn may_issue(&self, properties: &[Property], is_wildcard: bool) -> Result<(), Refusal> {
        const KNOWN: [&str; 3] = ["issue", "issuewild", "iodef"];
        if properties.iter().any(|property| property.is_critical && !KNOWN.contains(&property.tag.as_str())) {
            return Err(Refusal::Critical);
        }
        let with = |tag: &'static str| properties.iter().filter(move |property| property.tag == tag);
        let tag = if is_wildcard && with("issuewild").next().is_some() { "issuewild" } else { "issue" };
        let mut refused = None;
        for property in with(tag) {
            match self.fits(property, is_wildcard) {
                Ok(()) => return Ok(()),
                Err(refusal) => refused = refused.max(Some(refusal)),
            }
        }
        refused.map_or(Ok(()), Err)
    }

    fn fits(&self, property: &Property, is_wildcard: bool) -> Result<(), Refusal> {
        if !self.identities.iter().any(|name| name.eq_ignore_ascii_case(property.issuer())) {
            return Err(Refusal::Issuer);
        }
        if let Some(methods) = property.parameter("validationmethods") {
            let is_named = |kind: &ChallengeKind| methods.split(',').any(|method| method.trim() == kind.as_str());
            let mut able = self.methods.iter().filter(|kind| !is_wildcard || kind.proves_wildcards());
            if !able.any(is_named) {
                return Err(Refusal::Method);
            }
        }
        match (property.parameter("accounturi"), self.account) {
            (Some(_), None) => Err(Refusal::NoAccountYet),
            (Some(named), Some(ours)) if named != ours => Err(Refusal::Account),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Account => "another account is named",
            Self::Critical => "a record that is critical has a property that nobody knows",
            Self::Issuer => "others are named, or nobody",
            Self::Method => "none of acme_challenge is among the validation methods",
            Self::NoAccountYet => "an account is named, and there is none yet",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walk_ends_below_the_root() {
        assert_eq!(
            climb("a.b.example.org").collect::<Vec<_>>(),
            ["a.b.example.org", "b.example.org", "example.org", "org"]
        );
    }

    #[test]
    fn records_let_an_authority_issue_or_say_why_not() {
        let property = |text: &str| {
            let [flags, tag, value] = text.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{text}") };
            Property { is_critical: flags == "128", tag: tag.to_owned(), value: value.to_owned() }
        };
        let identities = ["letsencrypt.org".to_owned(), "ca.example".to_owned()];
        let methods = [ChallengeKind::Dns01, ChallengeKind::TlsAlpn01];
        let asker = Asker { identities: &identities, account: Some("https://ca/acct/1"), methods: &methods };
        use Refusal::{Account, Critical, Issuer, Method, NoAccountYet};
        for (records, hosts, wildcard) in [
            (&["0 iodef mailto:a@example.org"][..], Ok(()), Ok(())),
            (&["0 issue letsencrypt.org"], Ok(()), Ok(())),
            (&["0 issue LetsEncrypt.ORG ; x=y"], Ok(()), Ok(())),
            (&["0 issue ;"], Err(Issuer), Err(Issuer)),
            (&["0 issue "], Err(Issuer), Err(Issuer)),
            (&["0 issue other.example"], Err(Issuer), Err(Issuer)),
            (&["0 issue other.example", "0 issue ca.example"], Ok(()), Ok(())),
            (&["0 issue ca.example", "0 issuewild ;"], Ok(()), Err(Issuer)),
            (&["0 issuewild ca.example"], Ok(()), Ok(())),
            (&["0 issue ;", "0 issuewild ca.example"], Err(Issuer), Ok(())),
            (&["0 issue ca.example", "128 novelty x"], Err(Critical), Err(Critical)),
            (&["0 issue ca.example", "0 novelty x"], Ok(()), Ok(())),
            (&["128 issue ca.example"], Ok(()), Ok(())),
            (&["0 issue ca.example; accounturi=https://ca/acct/1"], Ok(()), Ok(())),
            (&["0 issue ca.example; accounturi=https://ca/acct/2"], Err(Account), Err(Account)),
            (&["0 issue ca.example; validationmethods=http-01"], Err(Method), Err(Method)),
            (&["0 issue ca.example; validationmethods=http-01,tls-alpn-01"], Ok(()), Err(Method)),
            (&["0 issue ca.example; validationmethods=dns-01; accounturi=https://ca/acct/1"], Ok(()), Ok(())),
            (
                &["0 issue other.example", "0 issue ca.example; accounturi=https://ca/acct/2"],
                Err(Account),
                Err(Account),
            ),
        ] {
            let properties: Vec<_> = records.iter().map(|text| property(text)).collect();
            assert_eq!(asker.may_issue(&properties, false), hosts, "{records:?}");
            assert_eq!(asker.may_issue(&properties, true), wildcard, "{records:?}, wildcard");
        }
        let new = Asker { account: None, ..asker };
        let named = [property("0 issue ca.example; accounturi=https://ca/acct/1")];
        assert_eq!(new.may_issue(&named, false), Err(NoAccountYet));
    }
}
