//! Queries an agent about an address like HAProxy: `ask_spop AGENT:PORT ADDRESS` prints `banned` or `not banned`.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr};

use cluster_tests::spop::Connection;

fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [agent, address] = words.as_slice() else { return Err(io::Error::other("usage: ask_spop AGENT:PORT ADDRESS")) };
    let agent: SocketAddr = agent.parse().map_err(io::Error::other)?;
    let address: IpAddr = address.parse().map_err(io::Error::other)?;
    let banned = Connection::open(agent)?.is_banned(address)?;
    println!("{}", if banned { "banned" } else { "not banned" });
    Ok(())
}
