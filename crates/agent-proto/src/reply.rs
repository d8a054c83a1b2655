//! The head of a reply, on its way from an agent.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::envelope::PREFIX;
use crate::stream::text;

/// Status and headers for a visitor.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReplyHead {
    /// 200 to 599. To a WebSocket, 200 is the acceptance.
    pub status: StatusCode,
    /// As the application gave them, repeats included.
    pub headers: HeaderMap,
    /// A word for programs, when the agent itself is the author.
    pub reason: Option<String>,
    /// Octets of the body, if the agent says.
    pub content_length: Option<u64>,
}

/// A reply that no visitor can be given.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplyError {
    /// `content-length` is there and no number.
    #[error("the reply's length is no number")]
    Length,
    /// `inkbox-status` is missing or not a number from 200 to 599.
    #[error("the reply has no status from 200 to 599")]
    Status,
}

const STATUS: HeaderName = HeaderName::from_static("inkbox-status");
const REASON: HeaderName = HeaderName::from_static("inkbox-reason");
const PREFIXED_REASON: HeaderName = HeaderName::from_static("inkbox-h-inkbox-reason");

impl ReplyHead {
    /// A head with a status and nothing else.
    pub fn new(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), reason: None, content_length: None }
    }

    /// Reads the head. Fields that are no HTTP fields without their prefix are
    /// left out.
    ///
    /// # Errors
    ///
    /// [`ReplyError`].
    pub fn decode(headers: &HeaderMap) -> Result<Self, ReplyError> {
        let status = text(headers, &STATUS).filter(|status| status.len() == 3).and_then(|status| status.parse().ok());
        let status = status.filter(|status| (200..=599).contains(status)).ok_or(ReplyError::Status)?;
        let content_length = match headers.get(header::CONTENT_LENGTH) {
            Some(length) => {
                let length = length.to_str().ok().and_then(|length| length.parse().ok());
                Some(length.ok_or(ReplyError::Length)?)
            }
            None => None,
        };
        let reason = text(headers, &REASON).or_else(|| text(headers, &PREFIXED_REASON)).map(str::to_owned);
        Ok(Self {
            status: StatusCode::from_u16(status).map_err(|_| ReplyError::Status)?,
            headers: unprefixed(headers),
            reason,
            content_length,
        })
    }

    /// HPACK size of the fields as they cross (RFC 7541 section 4.1).
    pub fn octets(&self) -> usize {
        self.headers.iter().map(|(name, value)| PREFIX.len() + name.as_str().len() + value.len() + 32).sum()
    }

    /// Adds the head to a request's headers.
    pub(crate) fn encode(&self, headers: &mut HeaderMap) -> Result<(), http::Error> {
        headers.insert(STATUS, HeaderValue::from(self.status.as_u16()));
        if let Some(reason) = &self.reason {
            headers.insert(REASON, HeaderValue::from_str(reason)?);
        }
        if let Some(length) = self.content_length {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        for (name, value) in &self.headers {
            headers.append(crate::envelope::prefixed(name)?, value.clone());
        }
        Ok(())
    }
}

/// The fields that have the prefix, without it.
pub(crate) fn unprefixed(headers: &HeaderMap) -> HeaderMap {
    let mut plain = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix(PREFIX) else { continue };
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
            plain.append(name, value.clone());
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(pairs: &[(&'static str, &'static str)]) -> Result<ReplyHead, ReplyError> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        ReplyHead::decode(&headers)
    }

    #[test]
    fn repeated_fields_stay_apart_and_the_prefix_goes() {
        let head = decode(&[
            ("inkbox-status", "201"),
            ("content-length", "5"),
            ("inkbox-h-set-cookie", "a=1"),
            ("inkbox-h-set-cookie", "b=2"),
            ("x-stray", "1"),
        ])
        .expect("a head");
        assert_eq!((head.status, head.content_length), (StatusCode::CREATED, Some(5)));
        assert_eq!(head.headers.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
        assert_eq!(head.headers.len(), 2);
    }

    #[test]
    fn the_reason_is_found_in_both_places() {
        for name in ["inkbox-reason", "inkbox-h-inkbox-reason"] {
            let head = decode(&[("inkbox-status", "502"), (name, "upstream-error")]).expect("a head");
            assert_eq!(head.reason.as_deref(), Some("upstream-error"));
        }
    }

    #[test]
    fn statuses_that_are_none_are_refused() {
        for status in ["", "20", "abc", "101", "199", "600", "0200", "+20", "200 OK"] {
            assert_eq!(decode(&[("inkbox-status", status)]), Err(ReplyError::Status), "{status}");
        }
        assert_eq!(decode(&[]), Err(ReplyError::Status));
        assert_eq!(decode(&[("inkbox-status", "200"), ("content-length", "five")]), Err(ReplyError::Length));
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut head = ReplyHead::new(StatusCode::NOT_FOUND);
        head.headers.append("x-app", HeaderValue::from_static("1"));
        head.headers.append("set-cookie", HeaderValue::from_static("a=1"));
        head.headers.append("set-cookie", HeaderValue::from_static("b=2"));
        head.content_length = Some(9);
        head.reason = Some("why".to_owned());
        let mut headers = HeaderMap::new();
        head.encode(&mut headers).expect("fields");
        assert_eq!(ReplyHead::decode(&headers), Ok(head));
    }
}
