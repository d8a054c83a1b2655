//! TXT records that come and go while the zone is served.

use std::collections::HashMap;
use std::sync::Arc;

use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{Name, RData};

use crate::{DomainName, Zone};

/// Texts in the whole zone: a challenge for each of a thousand orders at once, and room.
pub const MAX_TEXTS: usize = 4096;

/// Texts at one name. The zone and its wildcard in one order need two
/// ([RFC 8555](https://www.rfc-editor.org/rfc/rfc8555) section 8.4), and orders may overlap.
pub const MAX_TEXTS_AT_NAME: usize = 16;

/// Octets of a text: four strings of a TXT record.
const MAX_TEXT: usize = 1020;

/// A handle that puts TXT records into a zone; clones are the same one.
///
/// ```
/// use name_server::{Challenges, Settings, Zone};
/// let zone = Zone::new(Settings::new("adit.example".parse()?, vec!["192.0.2.1".parse()?]))?;
/// let challenges = Challenges::of(&zone);
/// let name = "_acme-challenge.adit.example".parse()?;
/// let first = challenges.present(&name, "of the zone")?;
/// let second = challenges.present(&name, "of its wildcard")?;
/// assert_eq!(challenges.texts(&name), ["of the zone", "of its wildcard"]);
/// drop(first);
/// assert_eq!(challenges.texts(&name), ["of its wildcard"]);
/// # drop(second);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Challenges(Arc<Zone>);

/// Why a text cannot be presented.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ChallengeError {
    /// The zone, or the name, has as many texts as it may.
    #[error("there are too many TXT records at {name}, or in its zone")]
    Full {
        /// Where the text was to be.
        name: DomainName,
    },
    /// The name is not within the zone.
    #[error("{name} is not within the zone")]
    OutOfZone {
        /// Where the text was to be.
        name: DomainName,
    },
    /// The text is empty or too long.
    #[error("a TXT record has 1 to {MAX_TEXT} octets")]
    Text,
}

impl Challenges {
    /// The handle of this zone.
    #[must_use]
    pub fn of(zone: &Arc<Zone>) -> Self {
        Self(Arc::clone(zone))
    }

    /// Puts a text at a name. When it has returned, the next query finds it; it goes when
    /// what is answered is dropped.
    ///
    /// Who presents the same text twice sees it once, until both are gone.
    ///
    /// # Errors
    ///
    /// [`ChallengeError`], and nothing has changed.
    pub fn present(&self, name: &DomainName, text: &str) -> Result<Presented, ChallengeError> {
        if !name.is_within(self.0.origin()) {
            return Err(ChallengeError::OutOfZone { name: name.clone() });
        }
        if !(1..=MAX_TEXT).contains(&text.len()) {
            return Err(ChallengeError::Text);
        }
        if !self.0.change_texts(|texts| texts.add(name.wire(), text)) {
            return Err(ChallengeError::Full { name: name.clone() });
        }
        Ok(Presented { challenges: self.clone(), name: name.clone(), text: text.to_owned() })
    }

    /// Takes a text away that was presented and [kept](Presented::keep), once. Was it there?
    pub fn withdraw(&self, name: &DomainName, text: &str) -> bool {
        self.0.change_texts(|texts| texts.remove(name.wire(), text))
    }

    /// What is presented at a name now.
    #[must_use]
    pub fn texts(&self, name: &DomainName) -> Vec<String> {
        self.0.texts(name)
    }
}

/// A text that is there; when this is dropped, the text goes.
#[derive(Debug)]
#[must_use = "the text goes with it"]
pub struct Presented {
    challenges: Challenges,
    name: DomainName,
    text: String,
}

impl Presented {
    /// Leaves the text where it is, until [`Challenges::withdraw`].
    pub fn keep(mut self) {
        // No text is empty: there is nothing left to withdraw.
        self.text.clear();
    }
}

impl Drop for Presented {
    fn drop(&mut self) {
        if !self.text.is_empty() {
            self.challenges.withdraw(&self.name, &self.text);
        }
    }
}

/// The texts of a zone.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    names: HashMap<Name, Vec<Text>>,
    count: usize,
}

#[derive(Debug)]
struct Text {
    text: String,
    record: RData,
    presented: usize,
}

impl Texts {
    /// Is there room, and is it there now?
    fn add(&mut self, name: &Name, text: &str) -> bool {
        let at_name = self.names.get_mut(name);
        let taken = at_name.as_ref().map_or(0, |texts| texts.len());
        if let Some(known) = at_name.and_then(|texts| texts.iter_mut().find(|known| known.text == text)) {
            known.presented += 1;
            return true;
        }
        if taken >= MAX_TEXTS_AT_NAME || self.count >= MAX_TEXTS {
            return false;
        }
        // A text may be longer than one character-string (RFC 1035 section 3.3.14).
        let record = RData::TXT(TXT::from_bytes(text.as_bytes().chunks(255).collect()));
        let text = Text { text: text.to_owned(), record, presented: 1 };
        self.names.entry(name.clone()).or_default().push(text);
        self.count += 1;
        true
    }

    /// Was it there?
    fn remove(&mut self, name: &Name, text: &str) -> bool {
        let Some(texts) = self.names.get_mut(name) else { return false };
        let Some(at) = texts.iter().position(|known| known.text == text) else { return false };
        texts[at].presented -= 1;
        if texts[at].presented == 0 {
            texts.remove(at);
            self.count -= 1;
            if texts.is_empty() {
                self.names.remove(name);
            }
        }
        true
    }

    pub(crate) fn records(&self, name: &Name) -> impl Iterator<Item = &RData> {
        self.names.get(name).into_iter().flatten().map(|text| &text.record)
    }

    pub(crate) fn at(&self, name: &Name) -> Vec<String> {
        self.names.get(name).into_iter().flatten().map(|text| text.text.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;

    fn challenges() -> Challenges {
        let address = "192.0.2.1".parse().expect("an address");
        let zone = Zone::new(Settings::new(name("adit.example"), vec![address])).expect("a zone");
        Challenges::of(&zone)
    }

    fn name(text: &str) -> DomainName {
        text.parse().expect("a name")
    }

    #[test]
    fn a_text_goes_with_the_last_who_presented_it() {
        let (challenges, at) = (challenges(), name("_acme-challenge.adit.example"));
        let first = challenges.present(&at, "text").expect("room");
        let second = challenges.present(&at, "text").expect("room");
        assert_eq!(challenges.texts(&at), ["text"]);
        drop(first);
        assert_eq!(challenges.texts(&at), ["text"]);
        second.keep();
        assert_eq!(challenges.texts(&at), ["text"]);
        assert!(challenges.withdraw(&at, "text"));
        assert!(!challenges.withdraw(&at, "text"));
        assert_eq!(challenges.texts(&at), [""; 0]);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let (challenges, at) = (challenges(), name("x.adit.example"));
        let refused = |name: &DomainName, text: &str| challenges.present(name, text).expect_err("refused");
        let out = ChallengeError::OutOfZone { name: name("adit.test") };
        assert_eq!(refused(&name("adit.test"), "text"), out);
        assert_eq!(refused(&at, ""), ChallengeError::Text);
        assert_eq!(refused(&at, &"a".repeat(MAX_TEXT + 1)), ChallengeError::Text);
        for number in 0..MAX_TEXTS_AT_NAME {
            challenges.present(&at, &number.to_string()).expect("room").keep();
        }
        assert_eq!(refused(&at, "one more"), ChallengeError::Full { name: at.clone() });
        challenges.present(&at, "0").expect("it is there already").keep();
    }

    #[test]
    fn a_zone_has_a_bounded_number_of_texts() {
        let challenges = challenges();
        for number in 0..MAX_TEXTS {
            challenges.present(&name(&format!("n{number}.adit.example")), "text").expect("room").keep();
        }
        let more = name("more.adit.example");
        assert_eq!(challenges.present(&more, "text").expect_err("full"), ChallengeError::Full { name: more.clone() });
        assert!(challenges.withdraw(&name("n7.adit.example"), "text"));
        challenges.present(&more, "text").expect("room").keep();
    }
}
