//! The native wire's own words: what an agent asks with, and what the server says on the link.

use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};

use crate::Credential;
use crate::stream::{API_KEY, TUNNEL_SECRET};

/// The version of the native wire that is spoken.
pub const WIRE_VERSION: &str = "1";
/// The authority of what the server says itself: no tunnel's name has an underscore.
const SYSTEM: &str = "_system";

const INSTANCE: HeaderName = HeaderName::from_static("adit-instance");
const OWN_CERTIFICATE: HeaderName = HeaderName::from_static("adit-own-certificate");
const RESPONSE_DEADLINE: HeaderName = HeaderName::from_static("adit-response-deadline");
const SHARE: HeaderName = HeaderName::from_static("adit-share");
const TUNNEL: HeaderName = HeaderName::from_static("adit-tunnel");

/// `POST /_system/attach`: an agent that wants its connection to become a link
/// (docs/native-wire.md, "Attaching").
///
/// ```
/// use agent_proto::{Attach, Credential};
///
/// let attach = Attach {
///     tunnel: "my-agent".to_owned(),
///     credential: Credential::ApiKey("adit_0123".to_owned()),
///     instance: 1,
///     shares: false,
///     own_certificate: false,
///     response_deadline: None,
/// };
/// let request = attach.to_request(&"tunnels.example".parse()?)?;
/// assert_eq!(Attach::decode(request.headers())?, attach);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attach {
    /// The tunnel's id or its name. What has the form of a UUID is an id.
    pub tunnel: String,
    /// The agent's proof.
    pub credential: Credential,
    /// Its process: random, and the same for as long as that lives.
    pub instance: u128,
    /// May other instances that say so, too, serve beside it?
    pub shares: bool,
    /// Does the application bring key and certificate, so that the tunnel needs none of ours?
    pub own_certificate: bool,
    /// How long the application may take to begin an answer; whole seconds, an hour at
    /// most. Left out, it is the server's setting.
    pub response_deadline: Option<Duration>,
}

/// Why a request is no attach.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// It breaks a rule of the wire.
    #[error("{0}")]
    Field(&'static str),
    /// It has no credential.
    #[error("there is no credential")]
    NoCredential,
    /// It asks for no upgrade to [`Attach::PROTOCOL`].
    #[error("this is no request for an upgrade")]
    NoUpgrade,
    /// The agent speaks other versions of the wire.
    #[error("the agent speaks other versions")]
    OtherVersion,
}

impl Attach {
    /// Where agents ask.
    pub const PATH: &'static str = "/_system/attach";
    /// What the connection becomes.
    pub const PROTOCOL: &'static str = "adit-h2";
    /// The field that says which versions of the wire are spoken.
    pub const VERSION: HeaderName = HeaderName::from_static("adit-version");
    /// The longest that an application may take to begin an answer.
    pub const LONGEST_DEADLINE: Duration = Duration::from_secs(3600);

    /// The request that asks for it.
    ///
    /// # Errors
    ///
    /// When tunnel or credential do not fit a header field.
    pub fn to_request(&self, zone: &Authority) -> Result<Request<()>, http::Error> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static(Self::PATH);
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_str(zone.as_str())?);
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(Self::PROTOCOL));
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        self.credential.put(headers)?;
        headers.insert(Self::VERSION, HeaderValue::from_static(WIRE_VERSION));
        headers.insert(TUNNEL, HeaderValue::from_str(&self.tunnel)?);
        headers.insert(INSTANCE, HeaderValue::from_str(&format!("{:032x}", self.instance))?);
        let word = |is| HeaderValue::from_static(if is { "true" } else { "false" });
        headers.insert(SHARE, word(self.shares));
        if self.own_certificate {
            headers.insert(OWN_CERTIFICATE, word(true));
        }
        if let Some(deadline) = self.response_deadline {
            headers.insert(RESPONSE_DEADLINE, HeaderValue::from(deadline.as_secs()));
        }
        Ok(request)
    }

    /// Reads the fields of a request to [`Attach::PATH`].
    ///
    /// # Errors
    ///
    /// The [`AttachError`] says what is wrong with it.
    pub fn decode(headers: &HeaderMap) -> Result<Self, AttachError> {
        check_upgrade(headers)?;
        let wrong = AttachError::Field;
        let credential = match (one(headers, &API_KEY)?, one(headers, &TUNNEL_SECRET)?) {
            (Some(key), None) => Credential::ApiKey(key.to_owned()),
            (None, Some(secret)) => Credential::TunnelSecret(secret.to_owned()),
            (None, None) => return Err(AttachError::NoCredential),
            (Some(_), Some(_)) => return Err(wrong("X-API-Key or X-Tunnel-Secret, not both")),
        };
        let tunnel = one(headers, &TUNNEL)?.ok_or(wrong("Adit-Tunnel is the tunnel's id or name"))?.to_owned();
        let instance = one(headers, &INSTANCE)?.and_then(instance);
        let instance = instance.ok_or(wrong("Adit-Instance is 32 hexadecimal digits"))?;
        let shares = word(one(headers, &SHARE)?).ok_or(wrong("Adit-Share is true or false"))?;
        let own_certificate = word(one(headers, &OWN_CERTIFICATE)?);
        let own_certificate = own_certificate.ok_or(wrong("Adit-Own-Certificate is true or false"))?;
        let response_deadline = one(headers, &RESPONSE_DEADLINE)?.map(deadline);
        let deadline_is_wrong = wrong("Adit-Response-Deadline is a number of seconds, 1 to 3600");
        let response_deadline = response_deadline.map(|found| found.ok_or(deadline_is_wrong)).transpose()?;
        Ok(Self { tunnel, credential, instance, shares, own_certificate, response_deadline })
    }
}

/// Is it a request for our protocol, in a version that is spoken, with nothing behind it?
fn check_upgrade(headers: &HeaderMap) -> Result<(), AttachError> {
    let has = |name: &HeaderName, token: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case(token))
    };
    if !has(&UPGRADE, Attach::PROTOCOL) || !has(&CONNECTION, "upgrade") {
        return Err(AttachError::NoUpgrade);
    }
    if !headers.contains_key(Attach::VERSION) {
        return Err(AttachError::Field("Adit-Version says which versions of the wire the agent speaks"));
    }
    if !has(&Attach::VERSION, WIRE_VERSION) {
        return Err(AttachError::OtherVersion);
    }
    let has_body = headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    if has_body { Err(AttachError::Field("the request has no body: Content-Length is 0")) } else { Ok(()) }
}

/// The value of a field that is there once, or not at all.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, AttachError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| AttachError::Field("a field's value is not ASCII")),
        (Some(_), Some(_)) => Err(AttachError::Field("a field is there twice")),
    }
}

/// Left out, it is `false`.
fn word(text: Option<&str>) -> Option<bool> {
    match text {
        Some("true") => Some(true),
        Some("false") | None => Some(false),
        Some(_) => None,
    }
}

/// Digits alone: a sign is none.
fn instance(text: &str) -> Option<u128> {
    let is_hex = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    u128::from_str_radix(text, 16).ok().filter(|_| is_hex)
}

/// Digits alone, again.
fn deadline(text: &str) -> Option<Duration> {
    let seconds = text.parse().ok().filter(|_| text.bytes().all(|digit| digit.is_ascii_digit()));
    let deadline = seconds.map(Duration::from_secs)?;
    (Duration::from_secs(1)..=Attach::LONGEST_DEADLINE).contains(&deadline).then_some(deadline)
}

/// What the server says itself, on a link (docs/native-wire.md, "What the server says").
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Notice {
    /// The server will stop: attach again, and serve there.
    Drain,
    /// The tunnel has another name.
    Renamed,
    /// The credential or the tunnel is gone.
    Revoked,
    /// Another instance has taken the tunnel over.
    Superseded,
}

impl Notice {
    const ALL: [Self; 4] = [Self::Drain, Self::Renamed, Self::Revoked, Self::Superseded];

    const fn path(self) -> &'static str {
        match self {
            Self::Drain => "/drain",
            Self::Renamed => "/renamed",
            Self::Revoked => "/revoked",
            Self::Superseded => "/superseded",
        }
    }

    /// The request that says it.
    pub fn to_request(self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        let uri = Uri::builder().scheme("https").authority(SYSTEM).path_and_query(self.path()).build();
        // Three constants that are one.
        *request.uri_mut() = uri.unwrap_or_default();
        request
    }

    /// Reads a request's target: `None` when it is not the server's own, and `Some(None)`
    /// for words of later versions.
    pub fn decode(uri: &Uri) -> Option<Option<Self>> {
        let is_own = uri.authority().is_some_and(|authority| authority == SYSTEM);
        is_own.then(|| Self::ALL.into_iter().find(|notice| notice.path() == uri.path()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attach() -> Attach {
        Attach {
            tunnel: "shop".to_owned(),
            credential: Credential::TunnelSecret("secret".to_owned()),
            instance: 255,
            shares: true,
            own_certificate: true,
            response_deadline: Some(Duration::from_secs(90)),
        }
    }

    /// A good request whose `field` has other values.
    fn decoded(field: &'static str, values: &[&'static str]) -> Result<Attach, AttachError> {
        let mut request = attach().to_request(&Authority::from_static("tunnels.example")).expect("it fits");
        let headers = request.headers_mut();
        headers.remove(field);
        for value in values {
            headers.append(field, HeaderValue::from_static(value));
        }
        Attach::decode(headers)
    }

    #[test]
    fn every_field_is_there_once_and_is_what_it_must_be() {
        assert_eq!(decoded("x-later", &["ignored"]), Ok(attach()));
        for (field, values, outcome) in [
            ("connection", &["keep-alive, upgrade"][..], Ok(())),
            ("connection", &["close"], Err(AttachError::NoUpgrade)),
            ("upgrade", &["websocket", "ADIT-H2"], Ok(())),
            ("upgrade", &["adit-h3"], Err(AttachError::NoUpgrade)),
            ("adit-version", &["2, 1"], Ok(())),
            ("adit-version", &["2", "1"], Ok(())),
            ("adit-version", &["2"], Err(AttachError::OtherVersion)),
            ("x-tunnel-secret", &[], Err(AttachError::NoCredential)),
            ("adit-share", &[], Ok(())),
        ] {
            assert_eq!(decoded(field, values).map(drop), outcome, "{field} {values:?}");
        }
        for (field, values) in [
            ("adit-version", &[][..]),
            ("content-length", &["1"]),
            ("transfer-encoding", &["chunked"]),
            ("x-api-key", &["key"]),
            ("x-tunnel-secret", &["one", "two"]),
            ("adit-tunnel", &[]),
            ("adit-tunnel", &["a", "a"]),
            ("adit-instance", &[]),
            ("adit-instance", &["ff"]),
            ("adit-instance", &["+00000000000000000000000000000ff"]),
            ("adit-instance", &["g00000000000000000000000000000ff"]),
            ("adit-share", &["yes"]),
            ("adit-share", &["true", "true"]),
            ("adit-own-certificate", &["True"]),
            ("adit-response-deadline", &["0"]),
            ("adit-response-deadline", &["3601"]),
            ("adit-response-deadline", &["+5"]),
            ("adit-response-deadline", &["5.0"]),
            ("adit-response-deadline", &[""]),
        ] {
            let changed = decoded(field, values);
            assert!(matches!(changed, Err(AttachError::Field(_))), "{field} {values:?}: {changed:?}");
        }
    }

    #[test]
    fn a_notice_is_read_again_and_visitors_cannot_say_one() {
        for notice in Notice::ALL {
            assert_eq!(Notice::decode(notice.to_request().uri()), Some(Some(notice)));
        }
        for (uri, heard) in [
            ("https://_system/later", Some(None)),
            ("https://_system/", Some(None)),
            ("https://_system:443/drain", None),
            ("https://shop.example/drain", None),
            ("/drain", None),
        ] {
            assert_eq!(Notice::decode(&Uri::from_static(uri)), heard, "{uri}");
        }
    }

    proptest! {
        #[test]
        fn what_is_asked_is_read(
            tunnel in "[!-~]{1,80}", key in "[!-~]{1,80}", has_key: bool, instance: u128, shares: bool,
            own_certificate: bool, seconds in proptest::option::of(1_u64..=3600),
        ) {
            let credential = if has_key { Credential::ApiKey(key) } else { Credential::TunnelSecret(key) };
            let response_deadline = seconds.map(Duration::from_secs);
            let attach = Attach { tunnel, credential, instance, shares, own_certificate, response_deadline };
            let request = attach.to_request(&Authority::from_static("tunnels.example")).expect("it fits");
            prop_assert_eq!(Attach::decode(request.headers()), Ok(attach));
        }
    }
}
