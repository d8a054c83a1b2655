//! Names: what parses is what it says, and parses again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pki_core::DnsName;
use tunnel_model::{TunnelName, Zone};

fuzz_target!(|text: &str| {
    if let Ok(name) = text.parse::<TunnelName>() {
        assert_eq!(name.as_str(), text);
        assert!((3..=63).contains(&text.len()) && text.is_ascii());
        let zone: Zone = "adit.localhost".parse().expect("a zone");
        let host: DnsName = zone.host(&name).as_str().parse().expect("every public host is a host name");
        assert!(host.is_within(&"adit.localhost".parse().expect("a host")));
    }
    if let Ok(name) = TunnelName::from_handle(text) {
        assert_eq!(TunnelName::from_handle(name.as_str()).as_ref(), Ok(&name));
    }
    if let Ok(zone) = text.parse::<Zone>() {
        assert!(zone.as_str().parse::<DnsName>().is_ok(), "every zone is a host name");
        assert_eq!(zone.as_str().parse::<Zone>(), Ok(zone));
    }
    if let Ok(name) = text.parse::<DnsName>() {
        assert_eq!(name.as_str().parse::<DnsName>(), Ok(name));
    }
});
