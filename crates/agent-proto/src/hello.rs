//! The answer to a hello.

use serde::{Deserialize, Serialize};

use crate::id::OwnerToken;
use crate::limits::{INTAKE_IDLE, MAX_POOL_SIZE, RESPONSE_DEADLINE};

/// What an agent is told when it is let in.
#[derive(Clone, Debug)]
pub struct HelloAnswer {
    /// The session's secret.
    pub owner_token: OwnerToken,
    /// Intakes that the agent is to park; none means as many as it likes.
    pub pool_size: Option<u8>,
    /// Seconds that a reply may take; none means no limit.
    pub response_deadline_seconds: Option<f64>,
}

/// An answer that no session can begin with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelloAnswerError {
    /// Not JSON of this shape.
    #[error("the answer to the hello is not the expected JSON")]
    Json(#[from] serde_json::Error),
    /// Nothing could be parked without one.
    #[error("the answer to the hello has no owner token")]
    NoToken,
}

#[derive(Deserialize, Serialize)]
struct Body {
    #[serde(default)]
    owner_token: String,
    #[serde(default)]
    default_pool_size: Option<u64>,
    #[serde(default)]
    intake_idle_seconds: Option<f64>,
    #[serde(default)]
    response_deadline_seconds: Option<f64>,
}

impl HelloAnswer {
    /// As JSON; numbers are integers, which agents insist on for the pool size.
    pub fn to_json(&self) -> Vec<u8> {
        let body = serde_json::json!({
            "owner_token": self.owner_token.expose(),
            "default_pool_size": self.pool_size.unwrap_or(1),
            "intake_idle_seconds": INTAKE_IDLE.as_secs(),
            "response_deadline_seconds": self.response_deadline_seconds.map_or(RESPONSE_DEADLINE.as_secs(), |s| s as u64),
        });
        body.to_string().into_bytes()
    }

    /// Reads an answer as agents do: a pool size of 0 is none, a deadline that
    /// is not positive is none.
    ///
    /// # Errors
    ///
    /// For anything without an owner token.
    pub fn from_json(json: &[u8]) -> Result<Self, HelloAnswerError> {
        let body: Body = serde_json::from_slice(json)?;
        if body.owner_token.is_empty() || !body.owner_token.bytes().all(|octet| octet.is_ascii_graphic()) {
            return Err(HelloAnswerError::NoToken);
        }
        let pool_size = body.default_pool_size.filter(|size| *size > 0).map(|size| size.min(u64::from(MAX_POOL_SIZE)));
        Ok(Self {
            owner_token: OwnerToken::new(body.owner_token),
            pool_size: pool_size.and_then(|size| u8::try_from(size).ok()),
            response_deadline_seconds: body.response_deadline_seconds.filter(|seconds| *seconds > 0.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_read_back_and_the_pool_size_is_an_integer() {
        let answer = HelloAnswer {
            owner_token: OwnerToken::from_random([7; 16]),
            pool_size: Some(8),
            response_deadline_seconds: Some(30.0),
        };
        let json = String::from_utf8(answer.to_json()).expect("JSON is UTF-8");
        assert!(
            json.contains(r#""default_pool_size":8"#) && json.contains(r#""response_deadline_seconds":30"#),
            "{json}"
        );
        let read = HelloAnswer::from_json(json.as_bytes()).expect("our own answer");
        assert_eq!((read.pool_size, read.response_deadline_seconds), (Some(8), Some(30.0)));
        assert!(read.owner_token.matches(answer.owner_token.expose()));
    }

    #[test]
    fn agents_are_tolerant_but_need_a_token() {
        let read =
            HelloAnswer::from_json(br#"{"owner_token":"t","default_pool_size":0,"response_deadline_seconds":0}"#);
        let read = read.expect("a token is there");
        assert_eq!((read.pool_size, read.response_deadline_seconds), (None, None));
        for bad in [&b"{}"[..], b"[]", b"", br#"{"owner_token":""}"#, br#"{"owner_token":"a\nb"}"#] {
            assert!(HelloAnswer::from_json(bad).is_err());
        }
    }
}
