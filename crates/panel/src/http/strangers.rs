//! Who is not let in: programs are told in JSON, a person before a browser by a
//! page that says what this is and how to get in.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{Html, IntoResponse as _, Response};

use super::answer::Failure;
use crate::identity::Denied;

/// Nobody who may ask.
pub(super) struct Refused(pub(super) Denied);

impl Refused {
    /// 403, in the form that whoever asks can read.
    pub(super) fn answer(self, request: &Request) -> Response {
        let (failure, why) = match self.0 {
            Denied::Internal(error) => return Failure::internal(&error).into_response(),
            Denied::NoCertificate => (Failure::certificate_required(), Why::NONE),
            Denied::Revoked => (Failure::REVOKED, Why::REVOKED),
            Denied::Unknown => (Failure::UNKNOWN_CERTIFICATE, Why::UNKNOWN),
        };
        let is_reading = matches!(*request.method(), Method::GET | Method::HEAD);
        if is_reading && prefers_html(request.headers()) {
            page(&why, request.headers())
        } else {
            failure.into_response()
        }
    }
}

/// Does whoever asks want HTML rather than JSON, in so many words (RFC 9110 section
/// 12.5.1)? Whoever takes anything gets JSON, as all programs did before.
fn prefers_html(headers: &HeaderMap) -> bool {
    let (mut html, mut json) = (0, (0, 0));
    for field in headers.get_all(header::ACCEPT) {
        for range in field.to_str().unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            let weight = weight.map_or(1000, thousandths);
            // Of ranges that all take JSON, the one that says most counts.
            let detail = match media.as_str() {
                "text/html" => {
                    html = weight;
                    continue;
                }
                "application/json" => 3,
                "application/*" => 2,
                "*/*" => 1,
                _ => continue,
            };
            json = json.max((detail, weight));
        }
    }
    html > json.1
}

/// `0.8` in thousandths; what is none counts as nothing.
fn thousandths(weight: &str) -> u16 {
    let (whole, fraction) = weight.split_once('.').unwrap_or((weight, ""));
    let digits = format!("{fraction:0<3}");
    match (whole, digits.len(), digits.parse::<u16>()) {
        ("1", 3, Ok(0)) => 1000,
        ("0", 3, Ok(fraction)) => fraction,
        _ => 0,
    }
}

/// Why somebody is not let in, for people.
struct Why {
    title: &'static str,
    text: &'static str,
}

impl Why {
    const NONE: Self = Self {
        title: "Your browser has shown no certificate",
        text: "This panel lets in whoever has a certificate that it made, and your browser has shown none that counts: \
               none was chosen, it is of another authority, or its time is over.",
    };
    const REVOKED: Self = Self {
        title: "Your certificate has been revoked",
        text: "It was replaced by a new one, or taken back. Delete it from your browser, and import the one that \
               replaces it.",
    };
    const UNKNOWN: Self = Self {
        title: "Your certificate is not one that counts here",
        text: "This panel made it, but it is of no admin, and of no agent that is active with it.",
    };
}

fn page(why: &Why, headers: &HeaderMap) -> Response {
    // Nothing is loaded, nothing runs, and nobody frames it.
    const POLICY: HeaderValue = HeaderValue::from_static(
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    );
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).filter(|host| !host.is_empty());
    let host = host.unwrap_or("this address");
    let text = PAGE.replace("{title}", why.title).replace("{why}", why.text).replace("{host}", &escaped(host));
    let mut response = (StatusCode::FORBIDDEN, Html(text)).into_response();
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, POLICY);
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Origin, Accept"));
    response
}

/// Text in a page: none of it is taken for markup.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            character => safe.push(character),
        }
    }
    safe
}

const PAGE: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body { font: 1em/1.5 system-ui, sans-serif; max-width: 42em; margin: 2em auto; padding: 0 1em; color: #222; }
code { background: #eee; padding: 0 .2em; }
dt { font-weight: bold; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818; } code { background: #333; } }
</style>
</head>
<body>
<h1>{title}</h1>
<p>{why}</p>
<p>This is the panel of an Adit server, at <code>{host}</code>. Its admins make and revoke the certificates of
agents here. There is no password to type: the certificate in your browser says who you are.</p>
<h2>If you have the file <code>client.p12</code> and its password</h2>
<p>Import it, close every window of the browser, and open this address again. The browser then asks which certificate
to show.</p>
<dl>
<dt>Firefox, all systems</dt>
<dd>Settings, Privacy &amp; Security, Certificates, View Certificates, Your Certificates, Import.</dd>
<dt>Chrome, Chromium, Edge on Linux</dt>
<dd>Settings, Privacy and security, Security, Manage certificates, Your certificates, Import.</dd>
<dt>Chrome, Edge on Windows</dt>
<dd>Open the file and follow the wizard: the current user, the personal store.</dd>
<dt>Safari, Chrome on macOS</dt>
<dd>Open the file; Keychain Access asks for the password. Keep it in the login keychain.</dd>
<dt>Safari on iOS</dt>
<dd>Open the file, then Settings, Profile Downloaded, Install.</dd>
</dl>
<h2>If you have not</h2>
<p>Ask the administrator of this server for it, over a channel that others do not read, and for the password over
another one. Say the address above, and whether you are to be an admin or want an agent enrolled: an agent needs a token,
not a certificate of yours.</p>
<h2>If you are the administrator</h2>
<p>The bundle and its password lie on the server, in the panel's directory: <code>client.p12</code> and
<code>.p12-password</code>. <code>api-server reset-admin</code> makes new ones if they are lost, and revokes the old
one.</p>
</body>
</html>
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_is_for_those_who_ask_for_it() {
        for (accept, expected) in [
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"][..], true),
            (&["text/html"], true),
            (&["TEXT/HTML;q=0.5, */*;q=0.1"], true),
            (&["text/html", "*/*;q=0.8"], true),
            (&["text/html;charset=utf-8"], true),
            (&["*/*;q=0.9, application/json;q=0.1, text/html;q=0.5"], true),
            (&[], false),
            (&[""], false),
            (&["*/*"], false),
            (&["text/*"], false),
            (&["application/json"], false),
            (&["application/json, text/plain, */*"], false),
            (&["text/html, application/json"], false),
            (&["text/html;q=0.5, application/json"], false),
            (&["text/html, */*"], false),
            (&["text/html;q=0"], false),
            (&["text/html;q=2"], false),
            (&["text/html;q=rubbish"], false),
            (&["text/html;q=0.5, application/*;q=0.6"], false),
        ] {
            let mut headers = HeaderMap::new();
            for field in accept {
                headers.append(header::ACCEPT, HeaderValue::from_static(field));
            }
            assert_eq!(prefers_html(&headers), expected, "{accept:?}");
        }
    }

    #[test]
    fn a_page_says_what_was_asked_and_is_not_made_of_it() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("<script>alert('&\"')"));
        for why in [Why::NONE, Why::REVOKED, Why::UNKNOWN] {
            let response = page(&why, &headers);
            assert_eq!(response.status(), StatusCode::FORBIDDEN);
            assert_eq!(response.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
        }
        assert_eq!(escaped("<script>alert('&\"')"), "&lt;script&gt;alert(&#39;&amp;&quot;&#39;)");
        for outside in ["http:", "https:", "src=", "url(", "@import", "<script"] {
            assert!(!PAGE.contains(outside), "the page loads nothing: {outside}");
        }
    }
}
