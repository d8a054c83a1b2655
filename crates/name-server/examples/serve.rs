//! Serves a zone from a shell, to try it without anything around it.
//!
//! ```sh
//! cargo run -p name-server --example serve -- \
//!     --dns-listen 127.0.0.1:5353 --zone adit.example --public-address 192.0.2.1
//! dig @127.0.0.1 -p 5353 anything.adit.example
//! ```
//!
//! Lines on stdin change the zone: `present NAME TEXT`, `withdraw NAME TEXT`, `caa none|nobody`,
//! `caa ISSUER`, `caa ISSUER ACCOUNT-URI METHOD,METHOD`, `stats`. Each is answered with a line on
//! stdout. SIGINT and the end of stdin stop the server.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, bail};
use clap::Parser;
use name_server::{Caa, DomainName, Limits, Listener, NameServer, Rates, Settings, Zone};
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// Serves a zone over DNS.
#[derive(Parser)]
struct Flags {
    /// Where to listen, with UDP and TCP
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:5353")]
    dns_listen: SocketAddr,
    /// The zone
    #[arg(long, value_name = "NAME", default_value = "adit.example")]
    zone: DomainName,
    /// An address of the zone and of every name below it; may be repeated
    #[arg(long, value_name = "IP", required = true)]
    public_address: Vec<IpAddr>,
    /// A name server of the zone; may be repeated
    #[arg(long, value_name = "NAME")]
    dns_name: Vec<DomainName>,
    /// Answers a second to one network; 0 is no limit
    #[arg(long, value_name = "N", default_value_t = Rates::default().per_second)]
    dns_answers_per_second: u32,
    /// Count queries from this machine, too
    #[arg(long)]
    limit_loopback: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let mut settings = Settings::new(flags.zone, flags.public_address);
    settings.name_servers = flags.dns_name;
    let rates = Rates {
        per_second: flags.dns_answers_per_second,
        burst: flags.dns_answers_per_second.saturating_mul(5),
        exempts_loopback: !flags.limit_loopback,
        ..Rates::default()
    };
    let server = NameServer::new(Zone::new(settings)?, Limits { rates, ..Limits::default() });
    let listener = Listener::bind(flags.dns_listen).await.with_context(|| format!("at {}", flags.dns_listen))?;
    println!("listening at {}", listener.local_addr()?);
    server.serve(listener, commands(&server)).await;
    Ok(())
}

/// Ends with stdin.
async fn commands(server: &NameServer) {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match run(server, &line) {
            Ok(said) => println!("{said}"),
            Err(error) => println!("error: {error:#}"),
        }
    }
}

fn run(server: &NameServer, line: &str) -> anyhow::Result<String> {
    let challenges = server.challenges();
    match *line.split_whitespace().collect::<Vec<_>>() {
        ["present", name, text] => challenges.present(&name.parse()?, text)?.keep(),
        ["withdraw", name, text] => {
            if !challenges.withdraw(&name.parse()?, text) {
                bail!("it was not there");
            }
        }
        ["caa", "none"] => server.zone().set_caa(&Caa::none()),
        ["caa", "nobody"] => server.zone().set_caa(&Caa::nobody()),
        ["caa", issuer] => server.zone().set_caa(&Caa::authority(&[issuer.parse()?])?),
        ["caa", issuer, account, methods] => {
            let methods: Vec<_> = methods.split(',').collect();
            server.zone().set_caa(&Caa::account(&[issuer.parse()?], account, &methods)?);
        }
        ["stats"] => return Ok(format!("{:?}", server.stats())),
        _ => bail!("no such command"),
    }
    Ok("ok".to_owned())
}
