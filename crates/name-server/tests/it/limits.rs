//! What clients may cost, and what is left when the server stops.

use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use name_server::{Limits, Listener, NameServer, Rates};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::queries::{Running, ZONE, octets, query, read, receive, with_payload, write, zone};

fn limits() -> Limits {
    Limits {
        idle: Duration::from_millis(300),
        message: Duration::from_millis(300),
        lifetime: Duration::from_secs(3),
        ..Limits::default()
    }
}

#[tokio::test]
async fn a_network_gets_so_many_answers_and_then_is_told_to_come_by_tcp() {
    let rates = Rates { per_second: 1, burst: 10, slip: 2, exempts_loopback: false };
    let running = Running::start(Limits { rates, ..Limits::default() }).await;
    let message = with_payload(query(ZONE, RecordType::NS), 1232);
    let sent = octets(&message);
    let socket = running.udp().await;
    let (mut whole, mut slipped) = (0, 0);
    for _ in 0..50 {
        socket.send(&sent).await.expect("sent");
    }
    let mut answer = vec![0; 2048];
    while let Ok(came) = timeout(Duration::from_millis(300), socket.recv(&mut answer)).await {
        if answer[2] & 2 == 0 {
            whole += 1;
        } else {
            slipped += 1;
            assert!(came.expect("received") <= sent.len(), "no larger than the query");
        }
    }
    assert!((10..=12).contains(&whole), "{whole}");
    assert!((19..=20).contains(&slipped), "{slipped}");
    let stats = running.server.stats();
    assert_eq!((stats.udp, stats.answered, stats.slipped), (50, whole, slipped));
    assert_eq!(stats.limited, 50 - whole - slipped);
    // Who has really asked gets through.
    assert_eq!(running.ask_tcp(&message).await.answers.len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn what_is_no_query_gets_nothing_and_the_next_one_an_answer() {
    let running = Running::start(Limits::default()).await;
    let socket = running.udp().await;
    let mut answer = octets(&query(ZONE, RecordType::A));
    answer[2] |= 0x80;
    for octets in [&answer[..], &[], &[1, 2, 3], &vec![0xff; 5000], &vec![0; 60_000]] {
        socket.send(octets).await.expect("sent");
    }
    socket.send(&octets(&query("x.adit.example", RecordType::A))).await.expect("sent");
    // Two of them have the header of a query, if nothing else.
    let mut came = Vec::new();
    while let Some(answer) = receive(&socket).await {
        came.push((answer.metadata.id, answer.answers.len()));
    }
    assert_eq!(came, [(0, 0), (4711, 2)]);
    let stats = running.server.stats();
    assert_eq!((stats.udp, stats.ignored, stats.malformed, stats.answered), (6, 4, 1, 1));
    running.stop().await;
}

#[tokio::test]
async fn a_connection_carries_many_queries() {
    let running = Running::start(limits()).await;
    let mut stream = running.tcp().await;
    let mut octets_of_all = Vec::new();
    for number in 0..500_u16 {
        let mut message = query(&format!("n{number}.adit.example"), RecordType::A);
        message.metadata.id = number;
        let message = octets(&message);
        octets_of_all.extend(u16::try_from(message.len()).expect("short").to_be_bytes());
        octets_of_all.extend(message);
    }
    // In pieces that are not those of the queries.
    let (mut reading, mut writing) = stream.split();
    let write = async {
        for piece in octets_of_all.chunks(777) {
            writing.write_all(piece).await.expect("written");
        }
    };
    let read = async {
        for number in 0..500 {
            let length = reading.read_u16().await.expect("an answer");
            let mut answer = vec![0; usize::from(length)];
            reading.read_exact(&mut answer).await.expect("an answer");
            assert_eq!(answer[..2], u16::to_be_bytes(number));
        }
    };
    tokio::join!(write, read);
    running.stop().await;
}

#[tokio::test]
async fn a_connection_that_is_quiet_slow_or_talks_nonsense_ends() {
    let running = Running::start(limits()).await;
    let good = octets(&query(ZONE, RecordType::A));
    let mut answer = good.clone();
    answer[2] |= 0x80;
    let length = |message: &[u8]| u16::try_from(message.len()).expect("short").to_be_bytes().to_vec();
    for (what, sent) in [
        ("nothing", vec![]),
        ("half a length", vec![0]),
        ("a length", length(&good)),
        ("half a query", [&length(&good), &good[..20]].concat()),
        ("no octets", vec![0, 0]),
        ("too few octets", [&[0, 11], &[0; 11][..]].concat()),
        ("too many octets", vec![0xff, 0xff]),
        ("an answer", [length(&answer), answer].concat()),
        ("a request of HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ] {
        let mut stream = running.tcp().await;
        stream.write_all(&sent).await.expect("written");
        let mut came = Vec::new();
        let ended = timeout(Duration::from_secs(2), stream.read_to_end(&mut came)).await;
        assert!(ended.is_ok(), "{what}");
        assert!(came.is_empty(), "{what}");
    }
    // Octet by octet is too slow in the end, however steady it is.
    let mut stream = running.tcp().await;
    let begun = Instant::now();
    for octet in [length(&good), good].concat().iter().cycle() {
        if stream.write_all(&[*octet]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(2));
    running.stop().await;
}

#[tokio::test]
async fn a_connection_has_a_longest_life_and_a_client_who_does_not_read_goes() {
    let lifetime = Duration::from_millis(700);
    let running = Running::start(Limits { lifetime, ..limits() }).await;
    let mut stream = running.tcp().await;
    let message = octets(&query(ZONE, RecordType::A));
    let begun = Instant::now();
    let mut answers = 0;
    while begun.elapsed() < Duration::from_secs(3) {
        write(&mut stream, &message).await;
        if read(&mut stream).await.is_none() {
            break;
        }
        answers += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(answers > 3);
    assert!((lifetime..Duration::from_secs(2)).contains(&begun.elapsed()), "{:?}", begun.elapsed());

    let mut stream = running.tcp().await;
    let length = u16::try_from(message.len()).expect("short").to_be_bytes();
    let many = [&length[..], &message].concat().repeat(1000);
    let write_all = async { while stream.write_all(&many).await.is_ok() {} };
    timeout(Duration::from_secs(5), write_all).await.expect("it is not served for ever");
    running.stop().await;
}

#[tokio::test]
async fn connections_have_places_and_wait_for_them() {
    let idle = Duration::from_secs(60);
    let running = Running::start(Limits { connections: 8, idle, lifetime: idle, ..limits() }).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = running.tcp().await;
        write(&mut stream, &octets(&query(ZONE, RecordType::A))).await;
        read(&mut stream).await.expect("an answer");
        held.push(stream);
    }
    assert_eq!(running.server.stats().connections, 8);
    let mut waiting = running.tcp().await;
    write(&mut waiting, &octets(&query(ZONE, RecordType::A))).await;
    assert!(timeout(Duration::from_millis(300), waiting.read_u8()).await.is_err());
    held.pop();
    read_rest(&mut waiting).await;
    // Datagrams are answered all the while; and at the end the quiet ones do not hold it up.
    assert!(running.ask_udp(&query(ZONE, RecordType::A)).await.is_some());
    running.stop().await;
}

#[tokio::test]
async fn quiet_connections_go_sooner_when_places_are_few() {
    let idle = Duration::from_secs(5);
    let running = Running::start(Limits { connections: 8, idle, lifetime: idle, ..limits() }).await;
    let mut held = Vec::new();
    for taken in 1..=8 {
        held.push(running.tcp().await);
        while running.server.stats().connections < taken {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let begun = Instant::now();
    for quiet in held.iter_mut().skip(4) {
        assert_eq!(timeout(idle, quiet.read(&mut [0])).await.expect("its end").expect("an end"), 0);
    }
    assert!((idle / 20..idle / 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(running.server.stats().connections, 4);
    running.stop().await;
}

async fn read_rest(stream: &mut tokio::net::TcpStream) {
    timeout(Duration::from_secs(2), stream.read_u8()).await.expect("an answer").expect("an answer");
}

#[tokio::test]
async fn connections_end_with_the_future_that_serves() {
    let server = NameServer::new(zone(), Limits::default());
    let listener = Listener::bind("127.0.0.1:0".parse().expect("an address")).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let mut stream = {
        let serve = server.serve(listener, std::future::pending());
        let visit = async {
            let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
            write(&mut stream, &octets(&query(ZONE, RecordType::A))).await;
            read(&mut stream).await.expect("an answer");
            stream
        };
        tokio::select! {
            () = serve => panic!("nobody has stopped it"),
            stream = visit => stream,
        }
    };
    assert!(read(&mut stream).await.is_none());
    assert_eq!(server.stats().connections, 0);
}

#[tokio::test]
async fn several_listeners_serve_one_zone() {
    let server = NameServer::new(zone(), Limits::default());
    let bind = async |address: &str| Listener::bind(address.parse().expect("an address")).await.expect("a port");
    let listeners = (bind("127.0.0.1:0").await, bind("[::1]:0").await);
    let addresses = [&listeners.0, &listeners.1].map(|listener| listener.local_addr().expect("bound"));
    let visit = async {
        for address in addresses {
            let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
            write(&mut stream, &octets(&query(ZONE, RecordType::A))).await;
            read(&mut stream).await.expect("an answer");
        }
    };
    let forever = std::future::pending;
    tokio::select! {
        () = server.serve(listeners.0, forever()) => panic!("nobody has stopped it"),
        () = server.serve(listeners.1, forever()) => panic!("nobody has stopped it"),
        () = visit => {}
    }
    assert_eq!(server.stats().tcp, 2);
}
