//! What begins a link, and what the server says on one: reading it never panics, what is
//! read can be written and read again, and nothing but the server's own authority is heard.
#![no_main]

use agent_proto::{Attach, Notice};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.split(|octet| *octet == b'\n');
    if let Ok(uri) = Uri::try_from(lines.next().unwrap_or_default())
        && let Some(heard) = Notice::decode(&uri)
    {
        // Names of hosts are compared without case.
        let authority = uri.authority().map(|authority| authority.as_str().to_ascii_lowercase());
        assert_eq!(authority.as_deref(), Some("_system"));
        if let Some(notice) = heard {
            assert_eq!(notice.to_request().uri().path(), uri.path());
        }
    }
    let mut headers = HeaderMap::new();
    for line in lines.take(200) {
        let mut parts = line.splitn(2, |octet| *octet == b':');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else { continue };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    let Ok(attach) = Attach::decode(&headers) else { return };
    let seconds = attach.response_deadline.map(|deadline| (deadline.as_secs(), deadline.subsec_nanos()));
    assert!(seconds.is_none_or(|(seconds, nanos)| (1..=3600).contains(&seconds) && nanos == 0));
    let request = attach.to_request(&"tunnels.example".parse().expect("an authority")).expect("what was read fits");
    assert_eq!(Attach::decode(request.headers()).as_ref(), Ok(&attach));
    // Said twice, it is nothing that two readers could understand differently.
    let once = ["adit-tunnel", "adit-instance", "adit-share", "adit-own-certificate", "adit-response-deadline"];
    for name in once.into_iter().chain(["x-api-key", "x-tunnel-secret"]) {
        if let Some(value) = headers.get(name).cloned() {
            let mut twice = headers.clone();
            twice.append(name, value);
            assert!(Attach::decode(&twice).is_err(), "{name}");
        }
    }
});
