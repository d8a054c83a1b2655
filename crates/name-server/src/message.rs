//! Messages: what a query must be, and how an answer is written.

use std::iter;

use hickory_proto::op::{
    Edns, Header, HeaderCounts, Message, MessageType, Metadata, OpCode, Query, ResponseCode, emit_message_parts,
};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder, BinEncodable as _, BinEncoder};

use crate::Zone;
use crate::zone::Sections;

/// Octets of a datagram that we send, and that we say we take
/// ([RFC 6891](https://www.rfc-editor.org/rfc/rfc6891) section 6.2.3): what passes every
/// network in one piece. Fragments can be forged, and get lost.
pub const PAYLOAD: u16 = 1232;

/// Octets of a datagram for somebody without EDNS (RFC 1035 section 4.2.1).
const PLAIN_PAYLOAD: u16 = 512;

/// Records that a query may have after its question: OPT, a signature, and the SOA of IXFR.
/// Each is decoded, and more of them would be there for nothing but the work.
const MAX_RECORDS: u16 = 4;

/// How a query came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transport {
    /// In a stream, with room for 65,535 octets.
    Tcp,
    /// In a datagram.
    Udp,
}

/// What became of a query.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// NOERROR, with what there is.
    Answered,
    /// No answer: it is not a query. Two servers that answer each other's answers never end.
    Ignored,
    /// FORMERR: it cannot be read, or BADVERS: it can be read by nobody yet.
    Malformed,
    /// NOTIMP: it wants something else than an answer.
    NotImplemented,
    /// REFUSED: it is not about our zone, or wants all of it.
    Refused,
    /// NOERROR, and TC: there is more than a datagram holds. It is to be asked for again by TCP.
    Truncated,
}

impl Zone {
    /// Answers a message, into `out`, which is emptied first.
    ///
    /// Never writes more than the transport and the client's EDNS take. The question is repeated
    /// octet by octet, so that resolvers find the mix of cases that they sent.
    pub fn respond(&self, message: &[u8], transport: Transport, out: &mut Vec<u8>) -> Outcome {
        self.reply(message, transport, false, out)
    }

    /// As [`Zone::respond`], but to somebody who gets too many answers: TC without records,
    /// which is not longer than the query. Whoever has really asked can come by TCP.
    pub(crate) fn slip(&self, message: &[u8], out: &mut Vec<u8>) -> Outcome {
        self.reply(message, Transport::Udp, true, out)
    }

    fn reply(&self, message: &[u8], transport: Transport, is_slip: bool, out: &mut Vec<u8>) -> Outcome {
        out.clear();
        let mut decoder = BinDecoder::new(message);
        let Ok(header) = Header::read(&mut decoder) else { return Outcome::Ignored };
        if header.message_type == MessageType::Response {
            return Outcome::Ignored;
        }
        let mut head = Metadata::response_from_request(&header.metadata);
        // RFC 4035 section 3.1.6
        head.checking_disabled = false;
        if header.op_code != OpCode::Query {
            head.response_code = ResponseCode::NotImp;
            write_header(head, out);
            return Outcome::NotImplemented;
        }
        let Some(request) = Request::read(message, &mut decoder, header.counts) else {
            head.response_code = ResponseCode::FormErr;
            write_header(head, out);
            return Outcome::Malformed;
        };
        let limit = request.limit(transport);
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            // The bit that asks for signatures comes back, though there are none (RFC 3225 section 3).
            edns.set_max_payload(PAYLOAD).set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        let write = |head, sections: &Sections, out: &mut Vec<u8>| {
            write_answer(head, &request.question, sections, edns.as_ref(), out);
        };
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            // RFC 6891 section 6.1.3
            head.response_code = ResponseCode::BADVERS;
            write(head, &Sections::default(), out);
            return Outcome::Malformed;
        }
        if is_slip {
            head.truncation = true;
            write(head, &Sections::default(), out);
            return Outcome::Truncated;
        }
        let Some(mut sections) = self.answer(&request.question) else {
            head.response_code = ResponseCode::Refused;
            write(head, &Sections::default(), out);
            return Outcome::Refused;
        };
        head.authoritative = true;
        write(head, &sections, out);
        if out.len() > limit && !sections.additionals.is_empty() {
            // What is left out of this section is asked for (RFC 2181 section 9).
            sections.additionals.clear();
            write(head, &sections, out);
        }
        if out.len() <= limit {
            return Outcome::Answered;
        }
        // Half of a set of records is of no use to anybody (same section).
        head.truncation = true;
        write(head, &Sections::default(), out);
        Outcome::Truncated
    }
}

/// A query that can be answered.
struct Request {
    question: Query,
    edns: Option<Edns>,
}

impl Request {
    /// One question, not compressed, with few records after it and nothing else; otherwise `None`.
    fn read(message: &[u8], decoder: &mut BinDecoder<'_>, counts: HeaderCounts) -> Option<Self> {
        // Only the first of several questions could have an answer (RFC 9619).
        let records = counts.authorities.checked_add(counts.additionals)?;
        if counts.queries != 1 || counts.answers != 0 || records > MAX_RECORDS {
            return None;
        }
        let begin = decoder.index();
        let question = Query::read(decoder).ok()?;
        // Nothing comes before it that a name could point to, but the header.
        if has_pointer(message.get(begin..decoder.index())?) {
            return None;
        }
        let read = |decoder: &mut BinDecoder<'_>, count: u16, is_additional| {
            Message::read_records(decoder, usize::from(count), is_additional, OpCode::Query).ok()
        };
        read(decoder, counts.authorities, false)?;
        let (_, edns, _) = read(decoder, counts.additionals, true)?;
        decoder.is_empty().then_some(Self { question, edns })
    }

    /// Octets that the answer may have.
    fn limit(&self, transport: Transport) -> usize {
        usize::from(match (transport, &self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => PLAIN_PAYLOAD,
            (Transport::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN_PAYLOAD, PAYLOAD),
        })
    }
}

/// Does this question, which can be read, have a pointer in its name (RFC 1035 section 4.1.4)?
fn has_pointer(question: &[u8]) -> bool {
    let mut rest = question;
    while let Some((&length, after)) = rest.split_first() {
        match length {
            0 => return false,
            1..=63 => rest = after.get(usize::from(length)..).unwrap_or_default(),
            64.. => return true,
        }
    }
    true
}

/// The whole answer, however long it is: a zone has few records, and the encoder needs room for a
/// name before it knows that a pointer will do.
fn write_answer(head: Metadata, question: &Query, sections: &Sections, edns: Option<&Edns>, out: &mut Vec<u8>) {
    out.clear();
    let mut encoder = BinEncoder::new(out);
    let Sections { answers, authorities, additionals } = sections;
    let (mut questions, mut answers) = (iter::once(question), answers.iter());
    let (mut authorities, mut additionals) = (authorities.iter(), additionals.iter());
    if let Err(error) = emit_message_parts(
        &head,
        &mut questions,
        &mut answers,
        &mut authorities,
        &mut additionals,
        edns,
        None,
        &mut encoder,
    ) {
        tracing::warn!(error = &error as &dyn std::error::Error, "an answer cannot be written");
        let mut head = head;
        head.response_code = ResponseCode::ServFail;
        write_header(head, out);
    }
}

/// An answer to something that is not understood: its header, with nothing counted.
fn write_header(metadata: Metadata, out: &mut Vec<u8>) {
    out.clear();
    let mut encoder = BinEncoder::new(out);
    let header = Header { metadata, counts: HeaderCounts::default() };
    if header.emit(&mut encoder).is_err() {
        // It has room: 12 octets. Nothing is better than half of it.
        out.clear();
    }
}
