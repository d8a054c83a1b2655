//! Which header fields cross from visitors to agents and back, and how.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use percent_encoding::{AsciiSet, percent_decode, percent_decode_str, utf8_percent_encode};

use crate::stream::text;

/// The headers of a visitor's request as an agent may see them.
///
/// Left out are the fields of the connection (RFC 9110 section 7.6.1) and those
/// that it lists, `host`, `expect`, what proxies say about visitors (the application
/// believes the agent alone), and everything that looks like the protocol's own. Blanks
/// around values go, and so does every octet outside printable ASCII but the
/// tab: an agent loses its connection over one that is not UTF-8. Several
/// `cookie` fields become one (RFC 9113 section 8.2.3). `content-length` stays
/// only if it is `body_len`.
pub fn request_headers(headers: &HeaderMap, body_len: u64) -> HeaderMap {
    let listed = connection_options(headers);
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let is_listed = listed.iter().any(|option| option.eq_ignore_ascii_case(name.as_str()));
        if is_left_out(name) || is_listed || *name == header::COOKIE {
            continue;
        }
        if *name == header::CONTENT_LENGTH && text(headers, name).and_then(|len| len.parse().ok()) != Some(body_len) {
            continue;
        }
        kept.append(name.clone(), printable(value));
    }
    if let Some(cookie) = cookie(headers) {
        kept.insert(header::COOKIE, cookie);
    }
    kept
}

/// The headers of a visitor's request on the native wire, where octets pass as they are.
///
/// Left out are the fields of the connection (RFC 9110 section 7.6.1) and those that it
/// lists, but not `te: trailers` and `trailer`; `host`, `expect`, the key of a
/// WebSocket, what proxies say about visitors, and everything that looks like the
/// protocols' own. Several `cookie` fields become one (RFC 9113 section 8.2.3).
pub fn onward_headers(mut headers: HeaderMap) -> HeaderMap {
    headers.remove(header::HOST);
    let listed: Vec<HeaderName> = connection_options(&headers).iter().filter_map(|name| name.parse().ok()).collect();
    let takes_trailers = headers.get(header::TE).is_some_and(|te| {
        te.to_str().is_ok_and(|te| te.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers")))
    });
    let unwanted: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let is_of_connection = is_of_connection(name) && **name != header::TRAILER;
            is_of_connection
                || is_ours(name)
                || is_of_native(name)
                || is_said_by_proxies(name)
                || matches!(name.as_str(), "expect" | "http2-settings" | "sec-websocket-key" | "sec-websocket-accept")
        })
        .cloned()
        .collect();
    for name in unwanted.iter().chain(&listed) {
        headers.remove(name);
    }
    if takes_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if headers.get_all(header::COOKIE).iter().nth(1).is_some() {
        let cookies: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(cookie) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
            headers.insert(header::COOKIE, cookie);
        }
    }
    headers
}

/// The trailers of a visitor's request on the native wire: what may not be said before the
/// body may not be said behind it, nor what is about the message itself (RFC 9110 section 6.5.1).
pub fn onward_trailers(trailers: HeaderMap) -> HeaderMap {
    without_framing(onward_headers(trailers))
}

/// The trailers of an application's answer on the native wire.
pub fn answer_trailers(trailers: HeaderMap) -> HeaderMap {
    without_framing(answer_headers(trailers))
}

fn without_framing(mut trailers: HeaderMap) -> HeaderMap {
    for name in [header::CONTENT_LENGTH, header::TE, header::TRAILER, header::HOST, header::COOKIE] {
        trailers.remove(name);
    }
    trailers
}

/// The headers of a visitor's WebSocket handshake as an agent may see them:
/// those of [`request_headers`] without the handshake's own but the offered
/// subprotocols, which are one list.
pub fn handshake_headers(headers: &HeaderMap) -> HeaderMap {
    let mut kept = request_headers(headers, 0);
    kept.remove(header::CONTENT_LENGTH);
    let offers: Vec<&[u8]> =
        headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().map(HeaderValue::as_bytes).collect();
    if !offers.is_empty()
        && let Ok(offer) = HeaderValue::from_bytes(&offers.join(&b", "[..]))
    {
        kept.insert(header::SEC_WEBSOCKET_PROTOCOL, printable(&offer));
    }
    kept
}

/// The headers of an agent's reply as a visitor may see them: without those of
/// the connection, the protocol's own, and `content-length`, which the edge
/// makes from the body.
pub fn reply_headers(mut headers: HeaderMap) -> HeaderMap {
    let unwanted: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_of_connection(name) || **name == header::CONTENT_LENGTH || is_ours(name))
        .cloned()
        .collect();
    for name in unwanted {
        headers.remove(name);
    }
    headers
}

/// The headers of an application's answer on the native wire: without those of its
/// connection but `trailer`, and the protocols' own. `content-length` stays.
pub fn answer_headers(mut headers: HeaderMap) -> HeaderMap {
    let listed: Vec<HeaderName> = connection_options(&headers).iter().filter_map(|name| name.parse().ok()).collect();
    let unwanted: Vec<HeaderName> = headers
        .keys()
        .filter(|name| (is_of_connection(name) && **name != header::TRAILER) || is_ours(name) || is_of_native(name))
        .cloned()
        .collect();
    for name in unwanted.iter().chain(&listed) {
        headers.remove(name);
    }
    headers
}

/// The headers that an accepting reply adds to the 101: those of
/// [`reply_headers`] without the handshake's own but the chosen subprotocol.
pub fn acceptance_headers(headers: HeaderMap) -> HeaderMap {
    let mut kept = reply_headers(headers);
    for name in [
        header::SEC_WEBSOCKET_ACCEPT,
        header::SEC_WEBSOCKET_EXTENSIONS,
        header::SEC_WEBSOCKET_KEY,
        header::SEC_WEBSOCKET_VERSION,
    ] {
        kept.remove(name);
    }
    kept
}

/// A request target as it crosses: octets of 0x80 and above, which fit no header field,
/// are percent-encoded (RFC 3986 section 2.1), and the rest is as it came.
pub fn ascii_target(target: &str) -> Cow<'_, str> {
    utf8_percent_encode(target, &AsciiSet::EMPTY).into()
}

/// What an agent forwards no path for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the path could mean another one")]
pub struct PathError;

/// Could this path mean another one to the application than it says? Agents ask
/// so of the part before `?` and answer 400: an encoded slash or backslash,
/// octets that are encoded twice, `.` and `..`, a backslash, control octets.
///
/// # Errors
///
/// [`PathError`] if it could.
pub fn check_path(path_and_query: &str) -> Result<(), PathError> {
    let path = path_and_query.split('?').next().unwrap_or_default();
    let lower = path.to_ascii_lowercase();
    if lower.contains("%2f") || lower.contains("%5c") {
        return Err(PathError);
    }
    let once: Cow<'_, [u8]> = percent_decode_str(path).into();
    if percent_decode(&once).ne(once.iter().copied())
        || once.iter().any(|octet| octet.is_ascii_control() || *octet == b'\\')
    {
        return Err(PathError);
    }
    let is_dots = |segment: &[u8]| segment == b"." || segment == b"..";
    if once.split(|octet| *octet == b'/').any(is_dots) { Err(PathError) } else { Ok(()) }
}

fn connection_options(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|option| !option.is_empty()).collect()
}

fn is_left_out(name: &HeaderName) -> bool {
    is_of_connection(name)
        || is_ours(name)
        || is_said_by_proxies(name)
        || matches!(
            name.as_str(),
            "host"
                | "expect"
                | "sec-websocket-key"
                | "sec-websocket-version"
                | "sec-websocket-extensions"
                | "sec-websocket-protocol"
        )
}

/// What applications believe of proxies about who asked, and for what. Names are
/// compared as WSGI and PHP see them, to whom `X_Forwarded_For` and `X.Forwarded.For`
/// are `X-Forwarded-For`.
fn is_said_by_proxies(name: &HeaderName) -> bool {
    const NAMES: [&str; 8] = [
        "forwarded",
        "x-real-ip",
        "x-client-ip",
        "x-cluster-client-ip",
        "true-client-ip",
        "cf-connecting-ip",
        "fastly-client-ip",
        "x-rewrite-url",
    ];
    let name = name.as_str().as_bytes();
    // All of them begin so, and most others do not.
    if !matches!(name.first(), Some(b'c' | b'f' | b't' | b'x')) {
        return false;
    }
    let is_folded_onto = |octet: &u8, wanted: u8| match wanted {
        b'-' => !octet.is_ascii_alphanumeric(),
        _ => *octet == wanted,
    };
    let begins =
        |with: &str| name.len() >= with.len() && name.iter().zip(with.bytes()).all(|(o, w)| is_folded_onto(o, w));
    begins("x-forwarded-")
        || begins("x-original-")
        || NAMES.iter().any(|other| name.len() == other.len() && begins(other))
}

/// What is said to the next hop only (RFC 9110 section 7.6.1 and those of old).
fn is_of_connection(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "upgrade"
            | "keep-alive"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
    )
}

fn is_ours(name: &HeaderName) -> bool {
    name.as_str().starts_with("inkbox-")
}

/// What the native wire says itself, however it is spelt (see [`is_said_by_proxies`]).
fn is_of_native(name: &HeaderName) -> bool {
    let after = name.as_str().strip_prefix("adit").and_then(|rest| rest.bytes().next());
    after.is_some_and(|octet| !octet.is_ascii_alphanumeric())
}

fn cookie(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    let first = cookies.next()?;
    let mut joined = first.as_bytes().to_vec();
    for cookie in cookies {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    HeaderValue::from_bytes(&joined).ok().map(|joined| printable(&joined))
}

fn printable(value: &HeaderValue) -> HeaderValue {
    let octets = value.as_bytes();
    let is_fine = |octet: &u8| (b' '..=b'~').contains(octet) || *octet == b'\t';
    let trimmed = octets.trim_ascii();
    if trimmed.len() == octets.len() && octets.iter().all(is_fine) {
        return value.clone();
    }
    let clean: Vec<u8> = trimmed.iter().copied().filter(|octet| is_fine(octet)).collect();
    HeaderValue::from_bytes(clean.trim_ascii()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value).expect("a value"));
        }
        headers
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let line = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap_or("?"));
        headers.iter().map(line).collect()
    }

    #[test]
    fn what_belongs_to_the_connection_stays_behind() {
        let sent = headers(&[
            ("host", b"a.example"),
            ("connection", b"close, X-Hop"),
            ("x-hop", b"1"),
            ("keep-alive", b"5"),
            ("te", b"trailers"),
            ("transfer-encoding", b"chunked"),
            ("proxy-authorization", b"secret"),
            ("expect", b"100-continue"),
            ("x-forwarded-for", b"6.6.6.6"),
            ("forwarded", b"for=6.6.6.6"),
            ("inkbox-request-id", b"mine"),
            ("inkbox-h-x", b"mine"),
            ("sec-websocket-key", b"k"),
            ("accept", b"*/*"),
        ]);
        assert_eq!(lines(&request_headers(&sent, 0)), ["accept: */*"]);
    }

    #[test]
    fn on_the_native_wire_octets_pass_as_they_are_and_the_connections_own_do_not() {
        let sent = headers(&[
            ("host", b"a.example"),
            ("connection", b"upgrade, X-Hop"),
            ("x-hop", b"1"),
            ("te", b"gzip, trailers"),
            ("trailer", b"x-sum"),
            ("expect", b"100-continue"),
            ("adit-visitor", b"6.6.6.6"),
            ("adit_visitor", b"6.6.6.6"),
            ("inkbox-request-id", b"mine"),
            ("x_forwarded_for", b"6.6.6.6"),
            ("upgrade", b"h2c"),
            ("http2-settings", b"AAAA"),
            ("cookie", b"a=1"),
            ("cookie", b"b=caf\xe9"),
            ("content-length", b"7"),
            ("x-latin", b"caf\xe9"),
        ]);
        let mut kept = lines(&onward_headers(sent));
        kept.sort();
        assert_eq!(kept, ["content-length: 7", "cookie: ?", "te: trailers", "trailer: x-sum", "x-latin: ?"]);
    }

    #[test]
    fn nobody_but_the_agent_tells_of_the_visitor_however_it_is_spelt() {
        for name in [
            "forwarded",
            "x-real-ip",
            "x-forwarded-for",
            "x_forwarded_for",
            "x.forwarded~for",
            "x-forwarded-port",
            "x-forwarded-prefix",
            "x-forwarded-ssl",
            "x_forwarded-user",
            "x-original-url",
            "x_original_host",
            "x-client-ip",
            "x-cluster-client-ip",
            "true_client_ip",
            "cf-connecting-ip",
            "fastly-client-ip",
            "x-rewrite-url",
        ] {
            let sent = headers(&[(name, b"6.6.6.6")]);
            assert!(request_headers(&sent, 0).is_empty(), "{name}");
            assert!(handshake_headers(&sent).is_empty(), "{name}");
        }
        for name in ["x-client-info", "x-forwarded", "x-originals", "forwarded-by", "xforwardedfor", "x-real-ip-2"] {
            assert_eq!(request_headers(&headers(&[(name, b"1")]), 0).len(), 1, "{name}");
        }
    }

    #[test]
    fn a_target_is_ascii_and_otherwise_as_it_came() {
        assert_eq!(ascii_target("/a%20b?x=%C3%a9&y"), "/a%20b?x=%C3%a9&y");
        assert_eq!(ascii_target("/items?name=jos\u{e9}"), "/items?name=jos%C3%A9");
    }

    #[test]
    fn cookies_are_merged_and_other_repeats_are_not() {
        let sent = headers(&[("cookie", b"a=1"), ("x", b"1"), ("cookie", b"b=2"), ("x", b"2")]);
        assert_eq!(lines(&request_headers(&sent, 0)), ["x: 1", "x: 2", "cookie: a=1; b=2"]);
    }

    #[test]
    fn values_are_printable_ascii() {
        let sent = headers(&[("x-latin", b"caf\xe9"), ("x-utf8", "café".as_bytes()), ("x-blank", b"  a\tb \t")]);
        assert_eq!(lines(&request_headers(&sent, 0)), ["x-latin: caf", "x-utf8: caf", "x-blank: a\tb"]);
    }

    #[test]
    fn content_length_stays_only_if_it_is_true() {
        let sent = headers(&[("content-length", b"3")]);
        assert_eq!(lines(&request_headers(&sent, 3)), ["content-length: 3"]);
        assert!(request_headers(&sent, 4).is_empty());
    }

    #[test]
    fn a_handshake_keeps_its_offer_as_one_list() {
        let sent = headers(&[
            ("sec-websocket-protocol", b"chat"),
            ("sec-websocket-protocol", b"superchat"),
            ("sec-websocket-extensions", b"permessage-deflate"),
            ("upgrade", b"websocket"),
        ]);
        assert_eq!(lines(&handshake_headers(&sent)), ["sec-websocket-protocol: chat, superchat"]);
    }

    #[test]
    fn a_reply_keeps_its_repeats_and_loses_what_the_edge_makes() {
        let sent = headers(&[
            ("set-cookie", b"a=1"),
            ("set-cookie", b"b=2"),
            ("content-length", b"99"),
            ("connection", b"close"),
            ("transfer-encoding", b"chunked"),
            ("inkbox-reason", b"x"),
        ]);
        assert_eq!(lines(&reply_headers(sent)), ["set-cookie: a=1", "set-cookie: b=2"]);
        let sent = headers(&[("sec-websocket-accept", b"x"), ("sec-websocket-protocol", b"chat"), ("x-app", b"1")]);
        let mut kept = lines(&acceptance_headers(sent));
        kept.sort();
        assert_eq!(kept, ["sec-websocket-protocol: chat", "x-app: 1"]);
    }

    #[test]
    fn paths_that_could_mean_another_one_are_refused() {
        for fine in ["/", "/a/b?x=%2f..", "/a%20b", "/%E2%82%AC", "/a..b", "/...", "/100%", "/%zz"] {
            assert_eq!(check_path(fine), Ok(()), "{fine}");
        }
        for bad in ["/a%2Fb", "/a%5cb", "/../x", "/%2e%2e/x", "/a/.", "/%252e", "/a\\b", "/a%00", "/%0a", "/a/.."] {
            assert_eq!(check_path(bad), Err(PathError), "{bad}");
        }
    }
}
