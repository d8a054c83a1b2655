//! Headers of the PROXY protocol: no panic, a verdict that more octets do not
//! change, and addresses that come back from what `encode` writes of them.
#![no_main]

#[path = "../../crates/edge/src/proxy_protocol.rs"]
mod proxy_protocol;

use libfuzzer_sys::fuzz_target;
use proxy_protocol::{MAX_HEADER, Parsed, encode, parse};

fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes);
    for end in 0..bytes.len().min(MAX_HEADER + 1) {
        match parse(&bytes[..end]) {
            Ok(Parsed::Incomplete) => {}
            verdict => assert_eq!(verdict, whole, "by {end} octets"),
        }
    }
    let (Parsed::Local { length } | Parsed::Unknown { length } | Parsed::Proxied { length, .. }) =
        whole.unwrap_or(Parsed::Incomplete)
    else {
        return;
    };
    assert!(length <= bytes.len().min(MAX_HEADER));
    assert_eq!(parse(&bytes[..length]), whole);
    assert_eq!(parse(&bytes[..length - 1]), Ok(Parsed::Incomplete));
    if let Ok(Parsed::Proxied { source, destination, .. }) = whole {
        let header = encode(source, destination);
        assert_eq!(parse(&header), Ok(Parsed::Proxied { length: header.len(), source, destination }));
    }
});
