//! `rust-sdk-agent URL KEY NAME FORWARD_TO`: serves a tunnel until it is killed, and
//! prints each state on a line.

use std::error::Error;

use inkbox::Inkbox;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: rust-sdk-agent URL KEY NAME FORWARD_TO");
    let (url, key, name, forward_to) = (next()?, next()?, next()?, next()?);
    let client = Inkbox::builder(key).base_url(url).build()?;
    client.tunnels().connect_with_status(&name, &forward_to, Box::new(|state| println!("{state}")))?;
    Ok(())
}
