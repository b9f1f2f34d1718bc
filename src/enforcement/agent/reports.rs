//! Offences that HAProxy reports: which clients may report, and what is passed on.

use std::time::Instant;

use super::{Reported, Shared, Verdicts};
use banmesh_spop::Handler;
use banmesh_spop::data::Data;
use banmesh_spop::message::{Report, WithoutAddress};
use banmesh_types::address::Address;

/// The longest reason that is kept, in bytes. Longer ones are cut. Bans for the same reason share it in memory.
pub const MAX_REASON: usize = 64;

/// The reason of a report without one.
const NO_REASON: &str = "reported";

/// Handles the SPOP messages of one connection: queries, and reports if the client may send them.
pub(super) struct MessageHandler<'a, V> {
    pub verdicts: &'a mut V,
    pub shared: &'a Shared,
    pub peer: Address,
    pub may_report: bool,
}

impl<V: Verdicts> Handler for MessageHandler<'_, V> {
    #[inline]
    fn is_banned(&mut self, address: std::net::IpAddr) -> bool {
        self.verdicts.is_banned(address.into())
    }

    #[cold]
    fn report(&mut self, report: &Report<'_>) -> bool {
        let metrics = &self.shared.metrics;
        if !self.may_report {
            metrics.reports_forbidden.inc();
            if let Some(held_back) = self.shared.refusals.permit(Instant::now()) {
                let peer = self.peer;
                tracing::warn!(%peer, held_back, "an offence was reported from outside spoa.reports_from: not counted. Add the address there if it is your HAProxy");
            }
            return false;
        }
        let Some(source) = report.source else {
            metrics.reports_unknown.inc();
            return false;
        };
        let taken = self.verdicts.report(&Reported {
            source: source.into(),
            reason: &reason(&report.reason),
            attempts: report.attempts,
            account: match report.account {
                Data::String(account) | Data::Binary(account) => Some(account),
                _ => None,
            },
            unknown: report.unknown && !report.success,
            success: report.success,
        });
        if taken { &metrics.reports_taken } else { &metrics.reports_dropped }.inc();
        taken
    }

    #[cold]
    fn without_address(&mut self, message: WithoutAddress<'_>) {
        self.shared.metrics.unaddressed.record(self.peer, message, Instant::now());
    }
}

/// The reason of a report as one short line of printable ASCII. It goes to logs, metrics and the other nodes, and may quote
/// input from a client.
fn reason(data: &Data<'_>) -> String {
    let text = match *data {
        Data::String(bytes) | Data::Binary(bytes) => {
            let printable = |byte: &u8| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '?' };
            bytes.trim_ascii().iter().take(MAX_REASON).map(printable).collect()
        }
        Data::Null | Data::Bool(_) => String::new(),
        Data::Int32(number) => number.to_string(),
        Data::Uint32(number) => number.to_string(),
        Data::Int64(number) => number.to_string(),
        Data::Uint64(number) => number.to_string(),
        Data::Ipv4(address) => address.to_string(),
        Data::Ipv6(address) => address.to_string(),
    };
    if text.is_empty() { NO_REASON.to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_short_and_printable() {
        for (data, wanted) in [
            (Data::String(b"waf: sql injection"), "waf: sql injection"),
            (Data::String(b" 401\r\n"), "401"),
            (Data::String(b"a\nb\x1b[31m\xc3\xa4"), "a?b?[31m??"),
            (Data::String(b"  "), NO_REASON),
            (Data::Binary(&[0]), "?"),
            (Data::Int64(429), "429"),
            (Data::Null, NO_REASON),
            (Data::Bool(true), NO_REASON),
        ] {
            assert_eq!(reason(&data), wanted);
        }
        assert_eq!(reason(&Data::String(&[b'x'; 5000])).len(), MAX_REASON);
    }
}
