//! Queries as a resolver makes them, a zone to ask, and a server for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use name_server::{Limits, Listener, NameServer, Outcome, Settings, Transport, Zone};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub(crate) const ZONE: &str = "adit.example";

pub(crate) fn settings() -> Settings {
    let ip = |text: &str| text.parse().expect("an address");
    Settings::new(ZONE.parse().expect("a name"), vec![ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1")])
}

pub(crate) fn zone() -> Arc<Zone> {
    Zone::new(settings()).expect("a zone")
}

pub(crate) fn query(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    let mut name = Name::from_ascii(name).expect("a name");
    name.set_fqdn(true);
    message.add_query(Query::query(name, record_type));
    message
}

pub(crate) fn with_payload(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

pub(crate) fn octets(message: &Message) -> Vec<u8> {
    message.to_vec().expect("a message")
}

/// What the zone makes of these octets; the answer is read back, and must fit.
pub(crate) fn respond(zone: &Zone, octets: &[u8], transport: Transport) -> (Outcome, Option<Message>) {
    let mut out = Vec::new();
    let outcome = zone.respond(octets, transport, &mut out);
    assert_eq!(out.is_empty(), outcome == Outcome::Ignored);
    let answer = (!out.is_empty()).then(|| Message::from_vec(&out).expect("an answer that can be read"));
    (outcome, answer)
}

pub(crate) fn ask(zone: &Zone, message: &Message) -> Message {
    respond(zone, &octets(message), Transport::Udp).1.expect("an answer")
}

pub(crate) fn with_class(mut message: Message, class: DNSClass) -> Message {
    message.queries[0].query_class = class;
    message
}

/// A server on loopback, in a task that ends when `stop` is called.
pub(crate) struct Running {
    pub(crate) server: NameServer,
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn start(limits: Limits) -> Self {
        let server = NameServer::new(zone(), limits);
        let listener = Listener::bind("127.0.0.1:0".parse().expect("an address")).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel();
        let serving = server.clone();
        let task = tokio::spawn(async move {
            let stopped = async move { drop(stopped.await) };
            serving.serve(listener, stopped).await;
        });
        Self { server, address, stop, task }
    }

    pub(crate) async fn stop(self) {
        self.stop.send(()).expect("it runs");
        timeout(Duration::from_secs(2), self.task).await.expect("it ends at once").expect("no panic");
        assert_eq!(self.server.stats().connections, 0);
    }

    pub(crate) async fn udp(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        socket.connect(self.address).await.expect("connected");
        socket
    }

    pub(crate) async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connected")
    }

    pub(crate) async fn ask_udp(&self, message: &Message) -> Option<Message> {
        let socket = self.udp().await;
        socket.send(&octets(message)).await.expect("sent");
        receive(&socket).await
    }

    pub(crate) async fn ask_tcp(&self, message: &Message) -> Message {
        let mut stream = self.tcp().await;
        write(&mut stream, &octets(message)).await;
        read(&mut stream).await.expect("an answer")
    }
}

/// `None` after half a second of silence.
pub(crate) async fn receive(socket: &UdpSocket) -> Option<Message> {
    let mut answer = vec![0; 65_535];
    let length = timeout(Duration::from_millis(500), socket.recv(&mut answer)).await.ok()?.expect("received");
    Some(Message::from_vec(&answer[..length]).expect("an answer"))
}

pub(crate) async fn write(stream: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).expect("short").to_be_bytes();
    stream.write_all(&[&length, message].concat()).await.expect("written");
}

/// `None` when the server has closed the connection.
pub(crate) async fn read(stream: &mut TcpStream) -> Option<Message> {
    let read = async {
        let length = stream.read_u16().await.ok()?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await.ok()?;
        Some(Message::from_vec(&answer).expect("an answer"))
    };
    timeout(Duration::from_secs(5), read).await.expect("an answer or the end")
}
