//! Questions to resolvers and name servers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket, lookup_host};
use tokio::time::timeout;

use super::{PATIENCE, in_words};

/// How long one question waits for its answer, and how often it is sent.
const WAIT: Duration = Duration::from_millis(1_200);
const ATTEMPTS: usize = 2;

/// How a question goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// Asks one server once.
pub(super) async fn ask(
    server: SocketAddr,
    transport: Transport,
    name: &str,
    kind: RecordType,
) -> anyhow::Result<Message> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).context("no random octets")?;
    let name = Name::from_ascii(format!("{}.", name.trim_end_matches('.')))?;
    let question = Query::query(name, kind);
    let mut message = Message::new(u16::from_be_bytes(id), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(question.clone());
    let sent = message.to_vec()?;
    let asked = async {
        let octets = match transport {
            Transport::Tcp => exchange_tcp(server, &sent).await?,
            Transport::Udp => exchange_udp(server, &sent).await?,
        };
        let answer = Message::from_vec(&octets).context("an answer that is no DNS")?;
        let is_to_this = answer.metadata.id == message.metadata.id && answer.queries == [question];
        ensure!(is_to_this, "an answer to another question");
        anyhow::Ok(answer)
    };
    let answer = timeout(WAIT, asked).await.map_err(|_| anyhow::anyhow!("no answer from {server} by {transport:?}"))?;
    answer.with_context(|| format!("{server} by {transport:?}"))
}

async fn exchange_udp(server: SocketAddr, sent: &[u8]) -> anyhow::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(sent).await?;
    let mut octets = vec![0; 4096];
    let length = socket.recv(&mut octets).await?;
    octets.truncate(length);
    Ok(octets)
}

async fn exchange_tcp(server: SocketAddr, sent: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&[&u16::try_from(sent.len())?.to_be_bytes(), sent].concat()).await?;
    let length = stream.read_u16().await?;
    let mut octets = vec![0; length.into()];
    stream.read_exact(&mut octets).await?;
    Ok(octets)
}

/// The system's resolver, or another one.
pub(super) struct Resolver {
    given: Option<SocketAddr>,
}

impl Resolver {
    pub(super) fn new(given: Option<SocketAddr>) -> Self {
        Self { given }
    }

    /// The addresses of a host, sorted; an error in words if there is no answer. No address is no error.
    pub(super) async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        let mut addresses: Vec<IpAddr> = if self.given.is_some() {
            let (four, six) = tokio::join!(self.records(host, RecordType::A), self.records(host, RecordType::AAAA));
            let address = |data: RData| match data {
                RData::A(address) => Some(address.0.into()),
                RData::AAAA(address) => Some(address.0.into()),
                _ => None,
            };
            four?.into_iter().chain(six?).filter_map(address).collect()
        } else {
            // As programs of this machine do, with its hosts file.
            match timeout(PATIENCE, lookup_host((host, 0))).await {
                Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
                Ok(Err(error)) => return Err(in_words(&error)),
                Err(_) => return Err(format!("the resolver did not answer within {} s", PATIENCE.as_secs())),
            }
        };
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses)
    }

    /// The records of a name, with what aliases lead to. A name that there is not has none.
    pub(super) async fn records(&self, name: &str, kind: RecordType) -> Result<Vec<RData>, String> {
        let servers = match self.given {
            Some(server) => vec![server],
            None => configured(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        };
        let mut told = "no resolver is configured in /etc/resolv.conf".to_owned();
        let asked = async {
            for server in servers.iter().cycle().take(servers.len() * ATTEMPTS) {
                match records(*server, name, kind).await {
                    Ok(records) => return Some(records),
                    Err(error) => told = format!("{error:#}"),
                }
            }
            None
        };
        // Of several that are silent, the last ones are not asked again.
        let records = timeout(PATIENCE, asked).await.unwrap_or_default();
        records.ok_or(told)
    }
}

async fn records(server: SocketAddr, name: &str, kind: RecordType) -> anyhow::Result<Vec<RData>> {
    let mut answer = ask(server, Transport::Udp, name, kind).await?;
    if answer.metadata.truncation {
        answer = ask(server, Transport::Tcp, name, kind).await?;
    }
    match answer.metadata.response_code {
        ResponseCode::NoError => Ok(answer.answers.into_iter().map(|record| record.data).collect()),
        ResponseCode::NXDomain => Ok(Vec::new()),
        code => bail!("{server} answers {code} for {name} {kind}"),
    }
}

/// The servers of a resolv.conf, three at most, as the system's resolver takes them.
fn configured(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        Some(SocketAddr::new(address.parse().ok()?, 53))
    });
    servers.take(3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolvers_are_those_of_the_file() {
        let text = "# nameserver 192.0.2.9\nsearch example.org\nnameserver 192.0.2.1\nnameserver\t2001:db8::1\noptions edns0\n";
        assert_eq!(list_of(text), ["192.0.2.1:53", "[2001:db8::1]:53"]);
        assert_eq!(list_of("nameserver fe80::1%eth0\n"), [""; 0]);
        assert_eq!(list_of(&"nameserver 192.0.2.1\n".repeat(5)).len(), 3);
    }

    fn list_of(text: &str) -> Vec<String> {
        configured(text).iter().map(ToString::to_string).collect()
    }
}
