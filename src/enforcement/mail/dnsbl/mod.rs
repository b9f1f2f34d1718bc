//! The DNS block list, over UDP and TCP. [`banmesh_dnsbl`] makes the answers.
//!
//! It cannot be used to flood others. Only allowed clients get answers of more bytes than their query, and over UDP a client beyond this
//! host only so many per second; then the answer asks it to repeat the query over TCP, where its address cannot be forged.

mod batch;
mod rate;
mod tcp;
mod udp;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use self::rate::Rate;
use super::listener::{MailListener, is_allowed, listen_udp};
use super::queries::{Answer, Queries};
use crate::clock;
use crate::enforcement::agent::Verdicts;
use crate::net::listen::ListenError;
use banmesh_dnsbl::{Listings, Outcome, Zone};
use banmesh_types::address::Address;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// The most open TCP connections.
const CONNECTIONS: usize = 256;

/// The listener's settings.
#[derive(Clone, Debug)]
pub struct DnsblConfig {
    /// The address, for UDP and TCP; port 0 chooses a free port for each.
    pub listen: SocketAddr,
    /// The zone.
    pub zone: Zone,
    /// Clients that may ask; none when empty.
    pub allowed_clients: Vec<Target>,
    /// How many full answers per second a client beyond this host gets over UDP.
    pub udp_rate: u32,
    /// The reason in TXT records, before the end of the ban.
    pub text: String,
}

/// The listener.
pub struct Dnsbl<V> {
    udp: udp::Server<V>,
    tcp: tcp::Server<V>,
}

/// What both transports share.
struct Shared {
    zone: Zone,
    text: String,
    allowed: Vec<Target>,
    queries: Queries,
}

impl<V: Verdicts + Sync> Dnsbl<V> {
    /// Listens. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address is in use or is not an address of this machine.
    pub fn bind(config: DnsblConfig, verdicts: V, queries: Queries) -> Result<Self, ListenError> {
        const KEY: &str = "dnsbl.address";
        let DnsblConfig { listen, zone, allowed_clients, udp_rate, text } = config;
        let failed = |source| ListenError::new(KEY, format_args!("{listen} (udp)"), source);
        let socket = listen_udp(listen).map_err(failed)?;
        let listener = MailListener::open(
            (KEY, KEY),
            (Some(listen), None),
            allowed_clients.clone(),
            CONNECTIONS,
            queries.clone(),
        )?;
        let shared = Arc::new(Shared { zone, text, allowed: allowed_clients, queries });
        let udp =
            udp::Server { socket, verdicts: verdicts.clone(), shared: Arc::clone(&shared), rate: Rate::new(udp_rate) };
        Ok(Self { udp, tcp: tcp::Server { listener, verdicts, shared } })
    }

    /// The addresses for UDP and TCP.
    pub fn addresses(&self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        (self.udp.socket.local_addr().ok(), self.tcp.listener.address())
    }

    /// Answers until `shutdown`.
    pub async fn serve(&mut self, shutdown: CancellationToken) {
        tokio::join!(self.udp.serve(shutdown.clone()), self.tcp.serve(shutdown));
    }
}

impl Shared {
    /// Writes the answer to a query of an allowed client, and counts it.
    fn answer<V: Verdicts>(&self, query: &[u8], client: Address, now: UnixMillis, verdicts: &mut V, out: &mut Vec<u8>) {
        let mut listings = Banned { verdicts, text: &self.text, now };
        let answer = match self.zone.answer(query, &mut listings, out) {
            Outcome::Listed => Answer::Banned,
            Outcome::Clean => Answer::Clean,
            Outcome::Other => Answer::Other,
            Outcome::Refused => {
                let why = format!("it asks for a name outside of the zone {} (dnsbl.zone)", self.zone);
                return self.queries.complain(Answer::Unreadable, Some(client), &why);
            }
            Outcome::Malformed | Outcome::Silent => {
                return self.queries.complain(Answer::Unreadable, Some(client), "it sends what is not a DNS query");
            }
        };
        self.queries.count(answer);
    }
}

/// The banned addresses as listings.
struct Banned<'a, V> {
    verdicts: &'a mut V,
    text: &'a str,
    now: UnixMillis,
}

impl<V: Verdicts> Listings for Banned<'_, V> {
    fn left(&mut self, ip: IpAddr) -> Option<u32> {
        let until = self.verdicts.banned_until(ip.into())?;
        Some(until.remaining(self.now).map_or(u32::MAX, |left| u32::try_from(left.as_secs()).unwrap_or(u32::MAX)))
    }

    fn reason(&mut self, ip: IpAddr, text: &mut String) {
        text.push_str(self.text);
        if let Some(until) = self.verdicts.banned_until(ip.into()).filter(|until| *until != Expiry::NEVER) {
            text.push_str(&format!(" until {until}"));
        }
    }
}

#[cfg(test)]
mod tests;
