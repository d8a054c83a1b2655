//! Headers of the PROXY protocol, version 2: who is behind a load balancer.
//!
//! The header is the balancer's word. Anybody can write one, so it is read only
//! on connections from peers that the operator named, and there it is a duty:
//! a connection without it is refused, or a client that reaches us past the
//! balancer would choose its own address.
//!
//! The protocol is [HAProxy's](https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt),
//! section 2.2. Version 1, which is text, is not read. Additional fields (TLVs)
//! are passed over unread; among them is the CRC32c of the header (section
//! 2.2.3), which is *not* verified: TCP has a checksum of its own.

use std::net::{IpAddr, SocketAddr};

/// What the bytes of a connection start with. `length` is that of the header:
/// the connection proper begins behind it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Parsed {
    /// The header is not complete yet.
    Incomplete,
    /// The balancer speaks for itself, for example to see whether we live
    /// (command LOCAL): the addresses of the connection count.
    Local {
        /// Octets of the header.
        length: usize,
    },
    /// A TCP connection passed on. Addresses are as sent: one of IPv4 may
    /// stand as IPv4-mapped IPv6.
    Proxied {
        /// Octets of the header.
        length: usize,
        /// Where the client connects from.
        source: SocketAddr,
        /// Where the balancer took the connection.
        destination: SocketAddr,
    },
    /// A connection passed on whose addresses are not said, or are not of TCP:
    /// address family or transport UNSPEC, UNIX sockets, datagrams. The
    /// addresses of the connection may be used in their place.
    Unknown {
        /// Octets of the header.
        length: usize,
    },
}

/// Why there is no header. The balancer is at fault, or whoever connects is
/// none.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// The header ends amid its addresses.
    #[error("{found} octets of addresses where {expected} are needed")]
    AddressLength {
        /// What the family needs.
        expected: usize,
        /// What the header says.
        found: usize,
    },
    /// A command other than LOCAL and PROXY.
    #[error("unknown command {0}")]
    Command(u8),
    /// An address family or a transport that is not assigned.
    #[error("unknown address family and transport {0:#04x}")]
    Family(u8),
    /// The bytes do not start with the signature: no PROXY protocol at all, or
    /// version 1.
    #[error("no PROXY protocol header of version 2")]
    Signature,
    /// A header larger than [`MAX_HEADER`].
    #[error("a PROXY protocol header of {length} octets")]
    TooLarge {
        /// Octets of the header.
        length: usize,
    },
    /// The signature of version 2, and then another version.
    #[error("PROXY protocol version {0}")]
    Version(u8),
}

/// Reads the header at the start of the bytes of a connection.
///
/// It looks at nothing behind the fixed part before all of the header is
/// there. What is wrong in the fixed part is found at the first octet that
/// shows it, so a client that speaks TLS at once is refused at once.
///
/// # Errors
///
/// [`ProxyError::Signature`] for something else than this protocol, and the
/// others for a header that its receiver must refuse (section 2.2).
pub fn parse(bytes: &[u8]) -> Result<Parsed, ProxyError> {
    let compared = bytes.len().min(SIGNATURE.len());
    if bytes[..compared] != SIGNATURE[..compared] {
        return Err(ProxyError::Signature);
    }
    let rest = &bytes[compared..];
    if let [first, ..] = rest {
        match (first >> 4, first & 0x0f) {
            (2, LOCAL | PROXY) => {}
            (2, command) => return Err(ProxyError::Command(command)),
            (version, _) => return Err(ProxyError::Version(version)),
        }
    }
    let [first, family, high, low, rest @ ..] = rest else { return Ok(Parsed::Incomplete) };
    let found = usize::from(u16::from_be_bytes([*high, *low]));
    let length = FIXED + found;
    if length > MAX_HEADER {
        return Err(ProxyError::TooLarge { length });
    }
    let Some(content) = rest.get(..found) else { return Ok(Parsed::Incomplete) };
    if first & 0x0f == LOCAL {
        // The family is not looked at, and there may be fields all the same.
        return Ok(Parsed::Local { length });
    }
    let (source, destination) = match *family {
        TCP_OVER_IPV4 => read_addresses::<4>(content)?,
        TCP_OVER_IPV6 => read_addresses::<16>(content)?,
        family if family >> 4 <= UNIX && family & 0x0f <= DATAGRAM => return Ok(Parsed::Unknown { length }),
        family => return Err(ProxyError::Family(family)),
    };
    Ok(Parsed::Proxied { length, source, destination })
}

/// The header that a balancer sends for a TCP connection: what [`parse`] reads,
/// for those who test with it. If one address is of IPv6, both are sent so.
pub fn encode(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.push(2 << 4 | PROXY);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.extend_from_slice(&[TCP_OVER_IPV4, 0, 12]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
        }
        (from, to) => {
            let octets = |address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            header.extend_from_slice(&[TCP_OVER_IPV6, 0, 36]);
            header.extend_from_slice(&octets(from));
            header.extend_from_slice(&octets(to));
        }
    }
    header.extend_from_slice(&source.port().to_be_bytes());
    header.extend_from_slice(&destination.port().to_be_bytes());
    header
}

/// Source and destination at the start of the content; TLVs may follow.
fn read_addresses<const OCTETS: usize>(content: &[u8]) -> Result<(SocketAddr, SocketAddr), ProxyError>
where
    IpAddr: From<[u8; OCTETS]>,
{
    let read = || {
        let (source, rest) = content.split_first_chunk::<OCTETS>()?;
        let (destination, rest) = rest.split_first_chunk::<OCTETS>()?;
        let (source_port, rest) = rest.split_first_chunk()?;
        let (destination_port, _) = rest.split_first_chunk()?;
        let address = |ip: &[u8; OCTETS], port: &[u8; 2]| SocketAddr::new(IpAddr::from(*ip), u16::from_be_bytes(*port));
        Some((address(source, source_port), address(destination, destination_port)))
    };
    read().ok_or(ProxyError::AddressLength { expected: 2 * OCTETS + 4, found: content.len() })
}

/// The largest header that is read. Addresses take 216 octets at most; TLVs
/// with the details of a client certificate are the largest in use and stay
/// far below this.
pub const MAX_HEADER: usize = 4096;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version with command, family with transport, and length.
const FIXED: usize = 16;

const LOCAL: u8 = 0;
const PROXY: u8 = 1;

const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// The last address family that is assigned.
const UNIX: u8 = 3;
/// The last transport that is assigned.
const DATAGRAM: u8 = 2;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "bytes of the tests' own making")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLIENT_HELLO: &[u8] = &[22, 3, 1, 0, 200];

    fn header(first: u8, family: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[first, family], &length, content].concat()
    }

    fn proxied(length: usize, source: &str, destination: &str) -> Parsed {
        Parsed::Proxied { length, source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    /// The answer with and without bytes behind, and "more" for every prefix.
    #[track_caller]
    fn check(header: &[u8], expected: Parsed) {
        assert_eq!(parse(header), Ok(expected));
        assert_eq!(parse(&[header, CLIENT_HELLO].concat()), Ok(expected));
        for length in 0..header.len() {
            assert_eq!(parse(&header[..length]), Ok(Parsed::Incomplete), "{length} octets");
        }
    }

    #[test]
    fn tcp_addresses_are_read_and_tlvs_passed_over() {
        let ipv4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 2, 0xc0, 0, 1, 0xbb];
        let expected = |length| proxied(length, "192.0.2.1:49152", "198.51.100.2:443");
        check(&header(0x21, 0x11, ipv4), expected(28));
        let crc32c: &[u8] = &[3, 0, 4, 0xde, 0xad, 0xbe, 0xef];
        check(&header(0x21, 0x11, &[ipv4, crc32c].concat()), expected(35));
        check(&header(0x21, 0x11, &[ipv4, &[4, 0xff]].concat()), expected(30));
        check(&header(0x21, 0x11, &[ipv4, &[0; MAX_HEADER - 28]].concat()), expected(MAX_HEADER));

        let mut ipv6 = vec![0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        ipv6.extend_from_within(..);
        ipv6.extend_from_slice(&[0, 80, 1, 0xbb]);
        check(&header(0x21, 0x21, &ipv6), proxied(52, "[2001:db8::1]:80", "[2001:db8::1]:443"));
    }

    #[test]
    fn other_families_have_unknown_addresses() {
        for family in [0x00, 0x01, 0x02, 0x10, 0x12, 0x20, 0x22, 0x30, 0x31, 0x32] {
            check(&header(0x21, family, &[]), Parsed::Unknown { length: 16 });
            check(&header(0x21, family, &[7; 216]), Parsed::Unknown { length: 232 });
        }
        for family in [0x03, 0x13, 0x1f, 0x33, 0x40, 0x41, 0xff] {
            assert_eq!(parse(&header(0x21, family, &[7; 216])), Err(ProxyError::Family(family)));
        }
    }

    #[test]
    fn local_takes_any_family() {
        for family in [0x00, 0x11, 0x21, 0xff] {
            check(&header(0x20, family, &[]), Parsed::Local { length: 16 });
            check(&header(0x20, family, &[0; 5]), Parsed::Local { length: 21 });
        }
    }

    #[test]
    fn addresses_must_fit_the_header() {
        for (family, expected) in [(0x11, 12), (0x21, 36)] {
            for found in 0..expected {
                let error = ProxyError::AddressLength { expected, found };
                assert_eq!(parse(&header(0x21, family, &vec![0; found])), Err(error));
            }
        }
    }

    #[test]
    fn other_bytes_are_refused_at_the_first_octet_that_shows_it() {
        for (bytes, error) in [
            (CLIENT_HELLO, ProxyError::Signature),
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 49152 443\r\n", ProxyError::Signature),
            (b"P", ProxyError::Signature),
            (b"\r\n\r\n\0\r\nQUIT\r", ProxyError::Signature),
            (b"\r\n\r\n\0\r\nQUIT\n\x11", ProxyError::Version(1)),
            (b"\r\n\r\n\0\r\nQUIT\n\x31", ProxyError::Version(3)),
            (b"\r\n\r\n\0\r\nQUIT\n\x22", ProxyError::Command(2)),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x0f\xf1", ProxyError::TooLarge { length: MAX_HEADER + 1 }),
        ] {
            assert_eq!(parse(bytes), Err(error), "{bytes:?}");
            let (_, before) = bytes.split_last().unwrap();
            if error != ProxyError::Signature {
                assert_eq!(parse(before), Ok(Parsed::Incomplete), "{before:?}");
            }
        }
    }

    #[test]
    fn what_is_encoded_is_read() {
        for (source, destination, length) in [
            ("192.0.2.1:1", "198.51.100.2:443", 28),
            ("[2001:db8::1]:65535", "[2001:db8::2]:0", 52),
            ("[::ffff:192.0.2.1]:1", "[2001:db8::2]:443", 52),
        ] {
            check(&encode(source.parse().unwrap(), destination.parse().unwrap()), proxied(length, source, destination));
        }
        let mixed = encode("192.0.2.1:1".parse().unwrap(), "[2001:db8::2]:443".parse().unwrap());
        check(&mixed, proxied(52, "[::ffff:192.0.2.1]:1", "[2001:db8::2]:443"));
    }

    proptest! {
        #[test]
        fn header_is_its_own_prefix(
            first in any::<u8>(),
            family in any::<u8>(),
            content in proptest::collection::vec(any::<u8>(), 0..80),
            behind in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let header = header(first, family, &content);
            prop_assert_eq!(parse(&[&header[..], &behind].concat()), parse(&header));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&bytes);
        }
    }
}
