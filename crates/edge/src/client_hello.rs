//! The ClientHello of a connection, read before any TLS is terminated.
//!
//! The server name decides who gets the connection, and for a passthrough
//! tunnel that is not us: the bytes must go on as they came. So [`Reader`]
//! keeps them, and reads beside them what routing needs.
//!
//! It is strict where two readers could disagree about the name, because the
//! TLS stack behind us reads the same bytes again: one server name, one list
//! of protocols, lengths that add up. What it does *not* check is what the
//! handshake is for: versions, cipher suites, key shares, signatures and every
//! extension other than those two. With Encrypted Client Hello the outer server
//! name counts, and an `encrypted_client_hello` extension, real or GREASE
//! (RFC 9849 section 6.2), is an extension like any other.

use std::net::IpAddr;

/// What a ClientHello (RFC 8446 section 4.1.2) asks for, as far as routing
/// needs it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientHello {
    /// The `host_name` of the `server_name` extension (RFC 6066 section 3), in
    /// lower case and without a trailing dot: labels of letters, digits, `-`
    /// and `_`.
    ///
    /// `None` without the extension, and for an IP address: RFC 6066 forbids
    /// those as names, but clients that were given a URL with an address send
    /// them and mean no name.
    pub server_name: Option<String>,
    /// What the `application_layer_protocol_negotiation` extension offers.
    pub alpn: Protocols,
}

impl ClientHello {
    /// Reads the body of the handshake message.
    fn parse(body: &[u8]) -> Result<Self, HelloError> {
        let mut body = Octets(body);
        body.take(2, "legacy_version")?;
        body.take(32, "random")?;
        if body.short_vector("legacy_session_id")?.0.len() > 32 {
            return Err(HelloError::Malformed("legacy_session_id"));
        }
        let cipher_suites = body.vector("cipher_suites")?.0.len();
        if cipher_suites == 0 || cipher_suites % 2 != 0 {
            return Err(HelloError::Malformed("cipher_suites"));
        }
        if body.short_vector("legacy_compression_methods")?.is_empty() {
            return Err(HelloError::Malformed("legacy_compression_methods"));
        }
        // A ClientHello may end here (RFC 5246 section 7.4.1.2).
        let mut extensions = if body.is_empty() { body } else { body.vector("extensions")? };
        body.end("extensions")?;

        let mut server_name = None;
        let mut alpn = None;
        while !extensions.is_empty() {
            let kind = extensions.u16("extension")?;
            let data = extensions.vector("extension")?;
            let is_repeated = match kind {
                SERVER_NAME => server_name.replace(read_server_name(data)?).is_some(),
                ALPN => alpn.replace(Protocols::parse(data)?).is_some(),
                _ => false,
            };
            if is_repeated {
                return Err(HelloError::Malformed("extension given twice"));
            }
        }
        Ok(Self { server_name: server_name.flatten(), alpn: alpn.unwrap_or_default() })
    }
}

/// The protocols that a client offers, in its order (RFC 7301 section 3.1).
///
/// Kept as they were sent, so that a hello full of one-octet names takes no
/// more memory here than on the wire.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Protocols(Box<[u8]>);

impl Protocols {
    /// Reads the data of the extension.
    fn parse(mut data: Octets<'_>) -> Result<Self, HelloError> {
        let mut names = data.vector("protocol_name_list")?;
        data.end("protocol_name_list")?;
        if names.is_empty() {
            return Err(HelloError::Malformed("protocol_name_list"));
        }
        let list = names.0.into();
        while !names.is_empty() {
            if names.short_vector("ProtocolName")?.is_empty() {
                return Err(HelloError::Malformed("ProtocolName"));
            }
        }
        Ok(Self(list))
    }

    /// Is this protocol among them?
    pub fn offers(&self, protocol: &[u8]) -> bool {
        self.iter().any(|offered| offered == protocol)
    }

    /// The names, GREASE values (RFC 8701) included.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = Octets(&self.0);
        std::iter::from_fn(move || rest.short_vector("ProtocolName").ok().map(|name| name.0))
    }
}

/// Collects the bytes of a connection until they hold a ClientHello.
///
/// The message may be spread over any number of TLS records and those over any
/// number of reads; each byte is looked at a bounded number of times, and the
/// answer does not depend on how the bytes were cut.
///
/// While the hello is incomplete, at most `6 * (max_hello + 4) + 5` bytes are
/// kept as raw bytes (a record takes a header of five octets and carries one or
/// more) and the message itself beside them. There is no limit in time: that is
/// the caller's.
#[derive(Debug)]
pub struct Reader {
    max_hello: usize,
    raw: Vec<u8>,
    /// How many octets of `raw` have been read. A record header is read once
    /// all of it is there.
    position: usize,
    /// What is still to be read of the current record.
    fragment: usize,
    records: usize,
    /// The handshake message without record headers.
    message: Vec<u8>,
    /// How long `message` must be for the next step: its type, its length, all.
    wanted: usize,
    state: State,
}

impl Reader {
    /// A reader of messages with up to `max_hello` octets, for which
    /// [`MAX_HELLO`] is a good value.
    pub fn new(max_hello: usize) -> Self {
        Self {
            max_hello,
            raw: Vec::new(),
            position: 0,
            fragment: 0,
            records: 0,
            message: Vec::new(),
            wanted: 1,
            state: State::Reading,
        }
    }

    /// Takes the next bytes of the connection. `None`: the hello is not
    /// complete yet.
    ///
    /// Bytes may follow the hello, such as early data (RFC 8446 section 4.2.10);
    /// they are kept. So are those of later calls, which answer `None`.
    ///
    /// # Errors
    ///
    /// [`HelloError::NotTls`] for a peer that speaks something else, and the
    /// others for one that has earned an alert. An error is final: later calls
    /// repeat it and keep nothing.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<ClientHello>, HelloError> {
        if let State::Failed(error) = self.state {
            return Err(error);
        }
        self.raw.extend_from_slice(bytes);
        if let State::Complete = self.state {
            return Ok(None);
        }
        let outcome = self.advance();
        match outcome {
            Ok(None) => {}
            Ok(Some(_)) => self.state = State::Complete,
            Err(error) => self.state = State::Failed(error),
        }
        outcome
    }

    /// Every byte given so far, as it came.
    pub fn into_raw(self) -> Vec<u8> {
        self.raw
    }

    /// Every byte given so far, with the ClientHello in as few records as hold
    /// it and what follows as it came.
    ///
    /// For a TLS stack that is not to be troubled with records of one octet:
    /// rustls 0.23 buffers 65,535 octets with the headers of records, so that
    /// in such records it takes no hello above 10,918 octets. The peer does not
    /// notice: the transcript hash covers handshake messages
    /// and not record headers (RFC 8446 section 4.4.1, RFC 5246 section 7.4.9).
    /// Later handshake messages pass as they are sent. An incomplete hello is
    /// left as it came.
    pub fn into_coalesced(self) -> Vec<u8> {
        let fewest = self.message.len().div_ceil(MAX_FRAGMENT);
        let is_complete = matches!(self.state, State::Complete);
        let [_, major, minor, ..] = self.raw[..] else { return self.raw };
        if !is_complete || self.records == fewest {
            return self.raw;
        }
        let rest = &self.raw[self.position..];
        let mut bytes = Vec::with_capacity(fewest * RECORD_HEADER + self.message.len() + rest.len());
        for fragment in self.message.chunks(MAX_FRAGMENT) {
            let [.., high, low] = fragment.len().to_be_bytes();
            bytes.extend_from_slice(&[HANDSHAKE, major, minor, high, low]);
            bytes.extend_from_slice(fragment);
        }
        bytes.extend_from_slice(rest);
        bytes
    }

    fn advance(&mut self) -> Result<Option<ClientHello>, HelloError> {
        while self.position < self.raw.len() {
            if self.fragment == 0 {
                let header = &self.raw[self.position..];
                let Some(length) = read_record_header(header, self.records == 0)? else { break };
                self.fragment = length;
                self.records += 1;
                self.position += RECORD_HEADER;
            }
            let missing = self.wanted - self.message.len();
            let count = missing.min(self.fragment).min(self.raw.len() - self.position);
            let end = self.position + count;
            self.message.extend_from_slice(&self.raw[self.position..end]);
            self.position = end;
            self.fragment -= count;
            if count < missing {
                continue;
            }
            match self.message[..] {
                [CLIENT_HELLO] => self.wanted = HANDSHAKE_HEADER,
                [_] => return Err(HelloError::Unexpected("handshake message")),
                [_, high, middle, low] => {
                    let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                    if length == 0 {
                        return Err(HelloError::Malformed("length"));
                    }
                    if length > self.max_hello {
                        return Err(HelloError::TooLarge { length, max: self.max_hello });
                    }
                    self.wanted = HANDSHAKE_HEADER + length;
                }
                // A ClientHello is sent in alignment with a record boundary,
                // because keys may change right behind it (RFC 8446 section 5.1).
                _ if self.fragment > 0 => return Err(HelloError::Unexpected("content behind the ClientHello")),
                [_, _, _, _, ref body @ ..] => return ClientHello::parse(body).map(Some),
                _ => return Err(HelloError::Malformed("length")),
            }
        }
        Ok(None)
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    Reading,
    Complete,
    Failed(HelloError),
}

/// Why there is no ClientHello. The visitor is at fault, and sending the same
/// again does not help.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// A record without content, which a handshake must not have (RFC 8446
    /// section 5.1) and which would be work without end.
    #[error("a handshake record without content")]
    EmptyRecord,
    /// A field whose length or content is not as RFC 8446 section 4.1.2,
    /// RFC 6066 section 3 or RFC 7301 section 3.1 have it.
    #[error("malformed ClientHello: {0}")]
    Malformed(&'static str),
    /// The first octets are not those of a handshake record: HTTP in clear, the
    /// ClientHello of SSL 2.0 (RFC 5246 appendix E.2), anything.
    #[error("not TLS")]
    NotTls,
    /// A record with more than 2^14 octets (RFC 8446 section 5.1).
    #[error("a record of {length} octets")]
    RecordTooLarge {
        /// What its header says.
        length: usize,
    },
    /// A message larger than the reader was told to take.
    #[error("a ClientHello of {length} octets where {max} are allowed")]
    TooLarge {
        /// What its header says.
        length: usize,
        /// What [`Reader::new`] was told.
        max: usize,
    },
    /// Something that may not stand there: another handshake message first, a
    /// record of another type amid the hello, or content behind the hello in
    /// its last record (RFC 8446 section 5.1).
    #[error("unexpected {0}")]
    Unexpected(&'static str),
}

impl HelloError {
    /// The alert record to send before closing (RFC 8446 section 6.2), if the
    /// peer speaks TLS.
    pub const fn alert(&self) -> Option<[u8; 7]> {
        match self {
            Self::NotTls => None,
            Self::EmptyRecord | Self::Unexpected(_) => Some(alert_record(UNEXPECTED_MESSAGE)),
            Self::Malformed(_) | Self::TooLarge { .. } => Some(alert_record(DECODE_ERROR)),
            Self::RecordTooLarge { .. } => Some(alert_record(RECORD_OVERFLOW)),
        }
    }
}

/// A record with a fatal alert, in clear (RFC 8446 sections 5.1 and 6).
///
/// For before the ServerHello only: afterwards the alert belongs to the TLS
/// stack. The version is that of TLS 1.2, as TLS 1.3 prescribes; clients of
/// older versions take it too.
pub const fn alert_record(description: u8) -> [u8; 7] {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    [ALERT, 3, 3, 0, 2, FATAL, description]
}

/// The content length of a record if its header is complete.
///
/// Versions are {3, any}, which RFC 5246 appendix E.1 makes a duty for the
/// first hello; RFC 8446 section 5.1 ignores them altogether, but then other
/// protocols would not be told apart.
fn read_record_header(header: &[u8], is_first: bool) -> Result<Option<usize>, HelloError> {
    match *header {
        [kind, ..] if kind != HANDSHAKE => {
            Err(if is_first { HelloError::NotTls } else { HelloError::Unexpected("record amid the ClientHello") })
        }
        [_, major, ..] if major != 3 => {
            Err(if is_first { HelloError::NotTls } else { HelloError::Malformed("version of a record") })
        }
        [_, _, _, high, low, ..] => match usize::from(u16::from_be_bytes([high, low])) {
            0 => Err(HelloError::EmptyRecord),
            length if length > MAX_FRAGMENT => Err(HelloError::RecordTooLarge { length }),
            length => Ok(Some(length)),
        },
        _ => Ok(None),
    }
}

/// The host name in the data of a `server_name` extension (RFC 6066 section 3).
///
/// Names of other types are passed over: each starts with its length, which
/// the RFC promises for types to come.
fn read_server_name(mut data: Octets<'_>) -> Result<Option<String>, HelloError> {
    let mut names = data.vector("server_name_list")?;
    data.end("server_name_list")?;
    if names.is_empty() {
        return Err(HelloError::Malformed("server_name_list"));
    }
    let mut host_name = None;
    while !names.is_empty() {
        let kind = names.take(1, "NameType")?;
        let name = names.vector("ServerName")?;
        if kind == HOST_NAME && host_name.replace(name.0).is_some() {
            return Err(HelloError::Malformed("more than one host_name"));
        }
    }
    host_name.map_or(Ok(None), normalize_host_name)
}

/// The name as names are compared here, `None` for an IP address.
fn normalize_host_name(name: &[u8]) -> Result<Option<String>, HelloError> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_'))
    };
    let name = str::from_utf8(name).map_err(|_| HelloError::Malformed("host_name"))?;
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.parse::<IpAddr>().is_ok() {
        return Ok(None);
    }
    if name.len() > MAX_NAME || !name.split('.').all(is_label) {
        return Err(HelloError::Malformed("host_name"));
    }
    Ok(Some(name.to_ascii_lowercase()))
}

/// What is left to read of a message, a vector or an extension.
#[derive(Clone, Copy, Debug)]
struct Octets<'a>(&'a [u8]);

impl<'a> Octets<'a> {
    fn take(&mut self, count: usize, expected: &'static str) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(HelloError::Malformed(expected))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self, expected: &'static str) -> Result<u16, HelloError> {
        let (octets, rest) = self.0.split_first_chunk().ok_or(HelloError::Malformed(expected))?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*octets))
    }

    /// A vector with a length of one octet (RFC 8446 section 3.4).
    fn short_vector(&mut self, expected: &'static str) -> Result<Self, HelloError> {
        let (length, rest) = self.0.split_first().ok_or(HelloError::Malformed(expected))?;
        self.0 = rest;
        self.take(usize::from(*length), expected).map(Self)
    }

    /// A vector with a length of two octets.
    fn vector(&mut self, expected: &'static str) -> Result<Self, HelloError> {
        let length = self.u16(expected)?;
        self.take(usize::from(length), expected).map(Self)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn end(&self, expected: &'static str) -> Result<(), HelloError> {
        if self.is_empty() { Ok(()) } else { Err(HelloError::Malformed(expected)) }
    }
}

/// The largest ClientHello worth reading, in octets without the handshake
/// header. Post-quantum key shares make hellos of 1.2 to 2 KB. rustls 0.23 takes
/// no larger handshake message from a stranger either, and after
/// [`Reader::into_coalesced`] hellos of up to 65,511 octets.
pub const MAX_HELLO: usize = 0xffff;

/// A field was out of range or a length was wrong (RFC 8446 section 6.2).
pub const DECODE_ERROR: u8 = 50;
/// We failed, for a reason that is not the peer's (RFC 8446 section 6.2).
pub const INTERNAL_ERROR: u8 = 80;
/// The peer offers no version that is spoken here (RFC 8446 section 6.2).
pub const PROTOCOL_VERSION: u8 = 70;
/// A record was too long (RFC 8446 section 6.2).
pub const RECORD_OVERFLOW: u8 = 22;
/// A message came where it may not come (RFC 8446 section 6.2).
pub const UNEXPECTED_MESSAGE: u8 = 10;
/// Nobody here has that name (RFC 6066 section 3).
pub const UNRECOGNIZED_NAME: u8 = 112;

/// Content of a TLSPlaintext (RFC 8446 section 5.1).
const MAX_FRAGMENT: usize = 1 << 14;
const RECORD_HEADER: usize = 5;
/// ContentType `handshake`.
const HANDSHAKE: u8 = 22;

/// Type and length of a message (RFC 8446 section 4).
const HANDSHAKE_HEADER: usize = 4;
/// HandshakeType `client_hello`.
const CLIENT_HELLO: u8 = 1;

/// ExtensionType `application_layer_protocol_negotiation` (RFC 7301 section 6).
const ALPN: u16 = 16;
/// ExtensionType `server_name` (RFC 6066 section 1.1).
const SERVER_NAME: u16 = 0;
/// NameType `host_name` (RFC 6066 section 3).
const HOST_NAME: &[u8] = &[0];
/// Of a domain name in text (RFC 1035 section 2.3.4: 255 octets on the wire).
const MAX_NAME: usize = 253;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "bytes of the tests' own making")]
mod tests {
    use proptest::prelude::*;
    use rustls::server::Acceptor;

    use super::*;

    const EARLY_DATA: &[u8] = &[23, 3, 3, 0, 3, 1, 2, 3];

    /// Bytes, server name and protocols.
    type Captured = (&'static [u8], Option<&'static str>, &'static [&'static [u8]]);

    /// Real hellos, and what their clients were told to ask for.
    const CAPTURED: &[Captured] = &[
        // OpenSSL 3.0.19: s_client -tls1_3 -servername My-Agent.Adit.Localhost -alpn h2,http/1.1
        (
            include_bytes!("../tests/data/client_hello/openssl-tls13.bin"),
            Some("my-agent.adit.localhost"),
            &[b"h2", b"http/1.1"],
        ),
        // OpenSSL 3.0.19: s_client -tls1_2 -servername my-agent.adit.localhost
        (include_bytes!("../tests/data/client_hello/openssl-tls12.bin"), Some("my-agent.adit.localhost"), &[]),
        // OpenSSL 3.0.19: s_client -noservername
        (include_bytes!("../tests/data/client_hello/openssl-no-name.bin"), None, &[]),
        // curl 7.88.1 https://my-agent.adit.localhost/
        (include_bytes!("../tests/data/client_hello/curl.bin"), Some("my-agent.adit.localhost"), &[b"h2", b"http/1.1"]),
        // rustls 0.23.46 with X25519MLKEM768 first
        (
            include_bytes!("../tests/data/client_hello/rustls-mlkem.bin"),
            Some("my-agent.adit.localhost"),
            &[b"h2", b"http/1.1"],
        ),
    ];

    /// The end of every vector that the builder opens.
    fn vector(content: &[u8]) -> Vec<u8> {
        [&u16::try_from(content.len()).unwrap().to_be_bytes()[..], content].concat()
    }

    fn message(body: &[u8]) -> Vec<u8> {
        let [.., high, middle, low] = body.len().to_be_bytes();
        [&[CLIENT_HELLO, high, middle, low], body].concat()
    }

    /// A ClientHello up to its extensions, with GREASE among its cipher suites.
    fn without_extensions() -> Vec<u8> {
        let session_id = [&[32][..], &[5; 32]].concat();
        [&[3, 3][..], &[7; 32], &session_id, &vector(&[0x1a, 0x1a, 0x13, 1]), &[1, 0]].concat()
    }

    fn hello(extensions: &[(u16, &[u8])]) -> Vec<u8> {
        let extensions: Vec<u8> =
            extensions.iter().flat_map(|(kind, data)| [&kind.to_be_bytes()[..], &vector(data)].concat()).collect();
        message(&[without_extensions(), vector(&extensions)].concat())
    }

    fn server_name(name: &[u8]) -> Vec<u8> {
        vector(&[HOST_NAME, &vector(name)].concat())
    }

    fn alpn(names: &[&[u8]]) -> Vec<u8> {
        let list = names.iter().flat_map(|name| [&[u8::try_from(name.len()).unwrap()], *name].concat());
        vector(&list.collect::<Vec<u8>>())
    }

    /// A hello that rustls takes too, with a body of this many octets.
    fn hello_of(octets: usize) -> Vec<u8> {
        const PADDING: u16 = 21;
        const SIGNATURE_ALGORITHMS: u16 = 13;
        let name = server_name(b"a.example");
        let with = |padding: &[u8]| {
            hello(&[(SIGNATURE_ALGORITHMS, &[0, 2, 4, 3]), (PADDING, padding), (SERVER_NAME, name.as_slice())])
        };
        let padding = octets + HANDSHAKE_HEADER - with(&[]).len();
        with(&vec![0; padding])
    }

    /// The message in records with at most this much content.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let record = |fragment: &[u8]| [&[HANDSHAKE, 3, 1], &vector(fragment)[..]].concat();
        message.chunks(size).flat_map(record).collect()
    }

    type Outcome = Result<Option<ClientHello>, HelloError>;

    /// The first answer that is not "more", and the reader.
    fn read<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Outcome, Reader) {
        let mut reader = Reader::new(MAX_HELLO);
        let mut outcome = Ok(None);
        for chunk in chunks {
            let answer = reader.push(chunk);
            if outcome == Ok(None) {
                outcome = answer;
            }
        }
        (outcome, reader)
    }

    #[track_caller]
    fn check(bytes: &[u8], server_name: Option<&str>, alpn: &[&[u8]]) {
        let (outcome, reader) = read([bytes]);
        let hello = outcome.unwrap().unwrap();
        assert_eq!(hello.server_name.as_deref(), server_name);
        assert_eq!(hello.alpn.iter().collect::<Vec<_>>(), alpn);
        assert_eq!(reader.into_raw(), bytes);
    }

    #[track_caller]
    fn check_error(bytes: &[u8], expected: HelloError) {
        assert_eq!(read([bytes]).0, Err(expected));
        assert_eq!(read(bytes.chunks(1)).0, Err(expected));
    }

    #[track_caller]
    fn check_malformed(message: &[u8], expected: &'static str) {
        check_error(&records(message, 1000), HelloError::Malformed(expected));
    }

    /// rustls finds the same in the same bytes.
    #[track_caller]
    fn check_with_rustls(mut bytes: &[u8], server_name: Option<&str>, alpn: &[&[u8]]) {
        let mut acceptor = Acceptor::default();
        let accepted = loop {
            assert!(!bytes.is_empty(), "rustls wants more");
            acceptor.read_tls(&mut bytes).unwrap();
            if let Some(accepted) = acceptor.accept().map_err(|(error, _)| error).unwrap() {
                break accepted;
            }
        };
        let hello = accepted.client_hello();
        assert_eq!(hello.server_name().map(str::to_ascii_lowercase).as_deref(), server_name);
        assert!(hello.alpn().into_iter().flatten().eq(alpn.iter().copied()));
    }

    #[test]
    fn captured_hellos_say_what_their_clients_were_told() {
        for (bytes, server_name, alpn) in CAPTURED {
            check(bytes, *server_name, alpn);
        }
    }

    #[test]
    fn example_of_rfc_8448_section_3_is_read() {
        let bytes = [
            b"\x16\x03\x01\x00\xc4\x01\x00\x00\xc0\x03\x03\xcb\x34\xec\xb1\xe7\x81\x63\xba\x1c\x38\xc6\xda\xcb\x19\x6a",
            &b"\x6d\xff\xa2\x1a\x8d\x99\x12\xec\x18\xa2\xef\x62\x83\x02\x4d\xec\xe7\x00\x00\x06\x13\x01\x13\x03\x13"[..],
            b"\x02\x01\x00\x00\x91\x00\x00\x00\x0b\x00\x09\x00\x00\x06\x73\x65\x72\x76\x65\x72\xff\x01\x00\x01\x00\x00",
            b"\x0a\x00\x14\x00\x12\x00\x1d\x00\x17\x00\x18\x00\x19\x01\x00\x01\x01\x01\x02\x01\x03\x01\x04\x00\x23\x00",
            b"\x00\x00\x33\x00\x26\x00\x24\x00\x1d\x00\x20\x99\x38\x1d\xe5\x60\xe4\xbd\x43\xd2\x3d\x8e\x43\x5a\x7d\xba",
            b"\xfe\xb3\xc0\x6e\x51\xc1\x3c\xae\x4d\x54\x13\x69\x1e\x52\x9a\xaf\x2c\x00\x2b\x00\x03\x02\x03\x04\x00\x0d",
            b"\x00\x20\x00\x1e\x04\x03\x05\x03\x06\x03\x02\x03\x08\x04\x08\x05\x08\x06\x04\x01\x05\x01\x06\x01\x02\x01",
            b"\x04\x02\x05\x02\x06\x02\x02\x02\x00\x2d\x00\x02\x01\x01\x00\x1c\x00\x02\x40\x01",
        ]
        .concat();
        check(&bytes, Some("server"), &[]);
    }

    #[test]
    fn names_are_normalized_and_addresses_are_none() {
        let longest = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        let cases: &[(&str, Option<&str>)] = &[
            ("a.example", Some("a.example")),
            ("A.eXample", Some("a.example")),
            ("a.example.", Some("a.example")),
            ("_a.b--c.example", Some("_a.b--c.example")),
            ("localhost", Some("localhost")),
            (&longest, Some(&longest)),
            ("192.0.2.1", None),
            ("192.0.2.1.", None),
            ("2001:db8::1", None),
        ];
        for (sent, expected) in cases {
            check(&records(&hello(&[(SERVER_NAME, &server_name(sent.as_bytes()))]), 1000), *expected, &[]);
        }
        let too_long = [longest.as_str(), "e"].join(".");
        let long_label = "a".repeat(64);
        for sent in ["", ".", "a..example", ".example", "a.example..", "a b", "a\0.example", "[::1]", "é.example"]
            .into_iter()
            .chain([too_long.as_str(), &long_label])
        {
            check_malformed(&hello(&[(SERVER_NAME, &server_name(sent.as_bytes()))]), "host_name");
        }
        check_malformed(&hello(&[(SERVER_NAME, &server_name(b"a\xff.example"))]), "host_name");
    }

    #[test]
    fn hello_may_end_before_its_extensions() {
        check(&records(&message(&without_extensions()), 1000), None, &[]);
        check(&records(&hello(&[]), 1000), None, &[]);
    }

    #[test]
    fn unknown_extensions_and_protocols_are_passed_over() {
        const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
        let extensions: &[(u16, &[u8])] = &[
            (0x2a2a, &[]),
            (ENCRYPTED_CLIENT_HELLO, &[0; 186]),
            (SERVER_NAME, &server_name(b"outer.example")),
            (ALPN, &alpn(&[b"\x3a\x3a", b"h2"])),
            (0xdada, &[0]),
        ];
        check(&records(&hello(extensions), 1000), Some("outer.example"), &[b"\x3a\x3a", b"h2"]);
    }

    #[test]
    fn alpn_offers_whole_names_only() {
        let bytes = records(&hello(&[(ALPN, &alpn(&[b"h2", b"http/1.1"]))]), 1000);
        let hello = read([&bytes[..]]).0.unwrap().unwrap();
        for (protocol, expected) in [(&b"h2"[..], true), (b"http/1.1", true), (b"h", false), (b"", false)] {
            assert_eq!(hello.alpn.offers(protocol), expected, "{protocol:?}");
        }
    }

    #[test]
    fn names_of_other_types_are_passed_over() {
        let list = [&[9][..], &vector(b"what"), HOST_NAME, &vector(b"a.example"), &[9], &vector(b"")].concat();
        check(&records(&hello(&[(SERVER_NAME, &vector(&list))]), 1000), Some("a.example"), &[]);
        let list = [&[9][..], &vector(b"what")].concat();
        check(&records(&hello(&[(SERVER_NAME, &vector(&list))]), 1000), None, &[]);
    }

    #[test]
    fn second_name_is_refused() {
        let name = server_name(b"a.example");
        let names = [HOST_NAME, &vector(b"a.example"), HOST_NAME, &vector(b"b.example")].concat();
        check_malformed(&hello(&[(SERVER_NAME, &vector(&names))]), "more than one host_name");
        check_malformed(&hello(&[(SERVER_NAME, &name), (SERVER_NAME, &name)]), "extension given twice");
        let address = server_name(b"192.0.2.1");
        check_malformed(&hello(&[(SERVER_NAME, &address), (SERVER_NAME, &name)]), "extension given twice");
        let protocols = alpn(&[b"h2"]);
        check_malformed(&hello(&[(ALPN, &protocols), (ALPN, &protocols)]), "extension given twice");
    }

    #[test]
    fn lengths_must_add_up() {
        let body =
            |session_id: &[u8], rest: &[&[u8]]| message(&[&[3, 3][..], &[7; 32], session_id, &rest.concat()].concat());
        let suites = vector(&[0x13, 1]);
        check_malformed(&message(&[3]), "legacy_version");
        check_malformed(&message(&[3; 33]), "random");
        check_malformed(&body(&[], &[]), "legacy_session_id");
        check_malformed(&body(&[33], &[&[0; 33]]), "legacy_session_id");
        check_malformed(&body(&[0], &[&[0]]), "cipher_suites");
        check_malformed(&body(&[0], &[&vector(&[])]), "cipher_suites");
        check_malformed(&body(&[0], &[&vector(&[0; 3])]), "cipher_suites");
        check_malformed(&body(&[0], &[&suites]), "legacy_compression_methods");
        check_malformed(&body(&[0], &[&suites, &[0]]), "legacy_compression_methods");
        check_malformed(&body(&[0], &[&suites, &[1, 0], &[0]]), "extensions");
        check_malformed(&body(&[0], &[&suites, &[1, 0], &[0, 1]]), "extensions");
        check_malformed(&body(&[0], &[&suites, &[1, 0], &vector(&[]), &[0]]), "extensions");
        check_malformed(&body(&[0], &[&suites, &[1, 0], &vector(&[0])]), "extension");
        check_malformed(&body(&[0], &[&suites, &[1, 0], &vector(&[0x2a, 0x2a, 0, 1])]), "extension");
        check_malformed(&hello(&[(SERVER_NAME, &[])]), "server_name_list");
        check_malformed(&hello(&[(SERVER_NAME, &vector(&[]))]), "server_name_list");
        check_malformed(&hello(&[(SERVER_NAME, &[&server_name(b"a")[..], &[0]].concat())]), "server_name_list");
        check_malformed(&hello(&[(SERVER_NAME, &vector(&[0, 0, 2, b'a']))]), "ServerName");
        check_malformed(&hello(&[(ALPN, &vector(&[]))]), "protocol_name_list");
        check_malformed(&hello(&[(ALPN, &[&alpn(&[b"h2"])[..], &[0]].concat())]), "protocol_name_list");
        check_malformed(&hello(&[(ALPN, &alpn(&[b""]))]), "ProtocolName");
        check_malformed(&hello(&[(ALPN, &vector(&[3, b'h', b'2']))]), "ProtocolName");
        check_malformed(&message(&[]), "length");
    }

    #[test]
    fn what_is_not_tls_is_known_by_its_first_bytes() {
        let sslv2: &[u8] = &[0x80, 0x2e, 1, 3, 1];
        for bytes in
            [b"GET / HTTP/1.1\r\n", &b"\0"[..], b"\r\n\r\n\0\r\nQUIT\n", sslv2, &[21, 3, 3], &[22, 2], &[22, b'x']]
        {
            check_error(bytes, HelloError::NotTls);
        }
        assert_eq!(read([&b"G"[..]]).0, Err(HelloError::NotTls));
        assert_eq!(HelloError::NotTls.alert(), None);
    }

    #[test]
    fn any_minor_version_of_a_record_will_do() {
        for minor in [0, 1, 3, 4, 255] {
            let mut bytes = records(&hello(&[(SERVER_NAME, &server_name(b"a.example"))]), 1000);
            bytes[2] = minor;
            check(&bytes, Some("a.example"), &[]);
        }
    }

    #[test]
    fn records_must_be_of_the_hello_and_of_lawful_size() {
        let whole = records(&hello(&[]), 20);
        let first = &whole[..25];
        let then = |record: &[u8]| [first, record].concat();
        check_error(&then(&[21, 3, 3, 0, 2, 2, 0]), HelloError::Unexpected("record amid the ClientHello"));
        check_error(&then(&[20, 3, 3, 0, 1, 1]), HelloError::Unexpected("record amid the ClientHello"));
        check_error(&then(&[22, 4, 3, 0, 1, 1]), HelloError::Malformed("version of a record"));
        check_error(&then(&[22, 3, 3, 0, 0]), HelloError::EmptyRecord);
        check_error(&[22, 3, 1, 0, 0], HelloError::EmptyRecord);
        check_error(&[22, 3, 1, 0x40, 1], HelloError::RecordTooLarge { length: 0x4001 });
        check_error(&[22, 3, 1, 0, 4, 2, 0, 0, 0], HelloError::Unexpected("handshake message"));
        assert_eq!(HelloError::EmptyRecord.alert(), Some([21, 3, 3, 0, 2, 2, 10]));
        assert_eq!(HelloError::Malformed("").alert(), Some([21, 3, 3, 0, 2, 2, 50]));
    }

    #[test]
    fn content_behind_the_hello_belongs_in_another_record() {
        let message = hello(&[(SERVER_NAME, &server_name(b"a.example"))]);
        let error = HelloError::Unexpected("content behind the ClientHello");
        check_error(&records(&[&message[..], &[0]].concat(), 1000), error);
        check_error(&records(&[&message[..], &message].concat(), 1000), error);

        let bytes = [&records(&message, 16)[..], EARLY_DATA].concat();
        check(&bytes, Some("a.example"), &[]);
        let (_, reader) = read(bytes.chunks(1));
        assert_eq!(reader.into_coalesced(), [&records(&message, 1000)[..], EARLY_DATA].concat());
    }

    #[test]
    fn hellos_are_read_up_to_the_limit() {
        for octets in [1_700, 5_000, 9_000, 15_000, 20_000, 50_000, 65_511, MAX_HELLO] {
            let message = hello_of(octets);
            for size in [1, 16, 256, MAX_FRAGMENT] {
                let bytes = records(&message, size);
                check(&bytes, Some("a.example"), &[]);
                let coalesced = read([&bytes[..]]).1.into_coalesced();
                assert_eq!(coalesced, records(&message, MAX_FRAGMENT), "{octets} octets in records of {size}");
                if octets <= 65_511 {
                    check_with_rustls(&coalesced, Some("a.example"), &[]);
                }
            }
        }
        let bytes = records(&hello_of(500), 1000);
        assert_eq!(Reader::new(499).push(&bytes), Err(HelloError::TooLarge { length: 500, max: 499 }));
        // Known before the content arrives.
        check_error(&[22, 3, 1, 0, 4, 1, 1, 0, 0], HelloError::TooLarge { length: 0x01_0000, max: MAX_HELLO });
    }

    #[test]
    fn incomplete_hello_is_kept_within_bounds() {
        let bytes = records(&hello_of(MAX_HELLO), 1);
        let (incomplete, _) = bytes.split_at(bytes.len() - 1);
        let (outcome, reader) = read(incomplete.chunks(1));
        assert_eq!(outcome, Ok(None));
        assert!(reader.raw.len() <= 6 * (MAX_HELLO + HANDSHAKE_HEADER) + RECORD_HEADER);
        assert_eq!(reader.into_coalesced(), incomplete);
    }

    #[test]
    fn every_cut_and_every_record_size_gives_the_same_answer() {
        for (bytes, _, _) in CAPTURED {
            let expected = read([*bytes]).0;
            for at in 0..=bytes.len() {
                let (head, tail) = bytes.split_at(at);
                let mut reader = Reader::new(MAX_HELLO);
                let first = reader.push(head);
                assert_eq!(first == Ok(None), at < bytes.len(), "cut at {at}");
                assert_eq!(if at < bytes.len() { reader.push(tail) } else { first }, expected, "cut at {at}");
                assert_eq!(reader.into_raw(), *bytes);
            }
            let message = &bytes[RECORD_HEADER..];
            for size in 1..=message.len() {
                let split = records(message, size);
                let (outcome, reader) = read(split.chunks(7));
                assert_eq!(outcome, expected, "records of {size}");
                assert_eq!(reader.into_coalesced(), *bytes, "records of {size}");
            }
        }
    }

    #[test]
    fn rustls_reads_the_same() {
        for (bytes, server_name, alpn) in CAPTURED {
            let (_, reader) = read([&records(&bytes[RECORD_HEADER..], 1)[..]]);
            check_with_rustls(&reader.into_coalesced(), *server_name, alpn);
        }
    }

    #[test]
    fn errors_are_final_and_bytes_behind_the_hello_are_kept() {
        let mut reader = Reader::new(MAX_HELLO);
        assert_eq!(reader.push(b"GET"), Err(HelloError::NotTls));
        assert_eq!(reader.push(CAPTURED[0].0), Err(HelloError::NotTls));
        assert_eq!(reader.into_raw(), b"GET");

        let mut reader = Reader::new(MAX_HELLO);
        assert!(matches!(reader.push(CAPTURED[0].0), Ok(Some(_))));
        assert_eq!(reader.push(EARLY_DATA), Ok(None));
        assert_eq!(reader.into_raw(), [CAPTURED[0].0, EARLY_DATA].concat());
    }

    /// Bytes that get past the record header and often past the lengths.
    fn nearly_a_hello() -> impl Strategy<Value = Vec<u8>> {
        let edits = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
        (0..CAPTURED.len(), 1..600_usize, edits).prop_map(|(which, size, edits)| {
            let mut bytes = [&records(&CAPTURED[which].0[RECORD_HEADER..], size)[..], EARLY_DATA].concat();
            for (at, octet) in edits {
                let at = at.index(bytes.len());
                bytes[at] = octet;
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn chunks_do_not_matter(
            bytes in prop_oneof![nearly_a_hello(), proptest::collection::vec(any::<u8>(), 0..200)],
            sizes in proptest::collection::vec(1..40_usize, 1..20),
        ) {
            let mut rest = &bytes[..];
            let chunks = sizes.iter().cycle().map_while(|size| {
                let (chunk, behind) = rest.split_at((*size).min(rest.len()));
                rest = behind;
                (!chunk.is_empty()).then_some(chunk)
            });
            let (in_chunks, reader) = read(chunks);
            let (at_once, _) = read([&bytes[..]]);
            prop_assert_eq!(&in_chunks, &at_once);
            if in_chunks.is_ok() {
                prop_assert_eq!(&reader.raw, &bytes);
                let coalesced = reader.into_coalesced();
                prop_assert_eq!(read([&coalesced[..]]).0, at_once);
            }
        }
    }
}
