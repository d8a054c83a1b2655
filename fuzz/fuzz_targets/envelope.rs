//! Header fields from anybody: reading them never panics, and what is read of an
//! envelope or a reply can be written and read again.
#![no_main]

use agent_proto::visitor::{check_path, handshake_headers, reply_headers, request_headers};
use agent_proto::{Envelope, ReplyHead, StreamRequest};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.split(|octet| *octet == b'\n');
    let first = lines.next().unwrap_or_default();
    let path = String::from_utf8_lossy(first);
    let mut headers = HeaderMap::new();
    for line in lines.take(200) {
        let mut parts = line.splitn(2, |octet| *octet == b':');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else { continue };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    for method in [Method::POST, Method::CONNECT] {
        for protocol in [None, Some("inkbox-tunnel-ws"), Some("inkbox-tunnel-tcp")] {
            let _ = StreamRequest::decode(&method, &path, protocol, &headers);
        }
    }
    let _ = check_path(&path);
    let _ = handshake_headers(&headers);
    let _ = reply_headers(headers.clone());
    for (_, value) in &request_headers(&headers, 5) {
        assert!(value.as_bytes().iter().all(|octet| (b' '..=b'~').contains(octet) || *octet == b'\t'));
    }
    let _ = ReplyHead::decode(&headers);
    if let Ok(envelope) = Envelope::decode(&headers)
        && let Ok(encoded) = envelope.encode()
    {
        assert_eq!(Envelope::decode(&encoded), Ok(envelope));
    }
});
