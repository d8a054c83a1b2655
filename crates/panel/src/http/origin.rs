//! Whose page is it that asks for a change?

use axum::http::uri::Authority;
use axum::http::{HeaderMap, header};

/// Is it a page of ours, or no page at all?
///
/// Browsers of today say it themselves in `Sec-Fetch-Site`, which no page can set and
/// no proxy touches. Older ones say the page's `Origin`, which must be of the host that
/// is asked: the port is left out, for proxies drop it from `Host`. Programs say
/// neither. `configured` is the panel's address and domain.
pub(super) fn is_own(headers: &HeaderMap, configured: Option<(&str, Option<&str>)>) -> bool {
    let mut sites = headers.get_all("sec-fetch-site").iter();
    match (sites.next(), sites.next()) {
        // `none` is a person, by the address bar.
        (Some(site), None) => return site == "same-origin" || site == "none",
        (Some(_), Some(_)) => return false,
        (None, _) => {}
    }
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let (Some(origin), None) = (origins.next(), origins.next()) else { return !headers.contains_key(header::ORIGIN) };
    let origin = origin.to_str().unwrap_or_default();
    let Some(page) = origin.strip_prefix("https://").and_then(host_of) else { return false };
    let asked = headers.get(header::HOST).and_then(|host| host.to_str().ok()).and_then(host_of);
    let is_configured = |(ip, domain): (&str, Option<&str>)| {
        origin == format!("https://{ip}:9292")
            || domain.is_some_and(|domain| origin == format!("https://panel.{domain}"))
    };
    asked.as_ref() == Some(&page) || configured.is_some_and(is_configured)
}

/// The host of `host:port`, in lower case and without the port.
fn host_of(authority: &str) -> Option<String> {
    // A user's name has no place in either header.
    let authority: Authority = authority.parse().ok().filter(|_| !authority.contains('@'))?;
    Some(authority.host().to_ascii_lowercase()).filter(|host| !host.is_empty())
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn check(fields: &[(&str, &str)], expected: bool) {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().expect("a name");
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        let configured = Some(("203.0.113.7", Some("example.test")));
        assert_eq!(is_own(&headers, configured), expected, "{fields:?}");
    }

    #[test]
    fn browsers_say_whose_page_it_is() {
        let site = "sec-fetch-site";
        for (value, expected) in [
            ("same-origin", true),
            ("none", true),
            ("same-site", false),
            ("cross-site", false),
            ("Same-Origin", false),
            ("", false),
            ("same-origin, cross-site", false),
        ] {
            check(&[(site, value)], expected);
            // Whatever a proxy has made of the host.
            check(&[(site, value), ("origin", "https://localhost:9292"), ("host", "panel:3100")], expected);
            check(&[(site, value), ("origin", "https://evil.example"), ("host", "evil.example")], expected);
        }
        check(&[(site, "cross-site"), ("origin", "https://panel.example.test")], false);
        check(&[(site, "same-origin"), (site, "same-origin")], false);
    }

    #[test]
    fn older_browsers_say_the_origin() {
        for (origin, host, expected) in [
            ("https://localhost:9292", "localhost:9292", true),
            ("https://localhost:9292", "localhost", true),
            ("https://localhost", "localhost:9292", true),
            ("https://Panel.Other.Test", "panel.other.test", true),
            ("https://panel.other.test:8443", "PANEL.other.test:443", true),
            ("https://[::1]:9292", "[::1]", true),
            ("https://[2001:DB8::1]", "[2001:db8::1]:9292", true),
            ("https://panel.example.test", "203.0.113.7:9292", true),
            ("https://203.0.113.7:9292", "panel.example.test", true),
            ("https://203.0.113.7:9293", "panel.example.test", false),
            ("https://example.test", "panel.example.test", false),
            ("http://localhost:9292", "localhost:9292", false),
            ("https://evil.example", "localhost:9292", false),
            ("https://localhost.evil.example", "localhost", false),
            ("https://localhost:9292@evil.example", "localhost:9292", false),
            ("https://evil@localhost:9292", "localhost:9292", false),
            ("https://localhost/", "localhost", false),
            ("https://", "", false),
            ("null", "localhost:9292", false),
            ("", "", false),
        ] {
            check(&[("origin", origin), ("host", host)], expected);
        }
        check(&[("origin", "https://localhost"), ("origin", "https://localhost"), ("host", "localhost")], false);
        check(&[("origin", "https://localhost")], false);
    }

    #[test]
    fn programs_say_nothing() {
        check(&[], true);
        check(&[("host", "localhost")], true);
    }
}
