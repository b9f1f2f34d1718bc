//! The section for HAProxy's peers protocol.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::network;
use crate::config::setting::section;
use crate::config::table_name::TableName;
use banmesh_types::target::Target;
use banmesh_types::time::Span;

section! {
    /// `haproxy.peers`: this node as a peer of HAProxy. It keeps its bans in a stick-table of each HAProxy, and adds up what all HAProxies of
    /// the cluster count, so that one limit holds over all of them (docs/rate-limits.md).
    PeersConfig {
        /// The address and port to listen on, which the peers section of HAProxy names. Empty: off. The protocol has no
        /// authentication, so use a loopback address.
        listen: Option<SocketAddr> = None;
        /// The addresses and networks of HAProxy.
        allowed_clients: Vec<Target> =
            vec![network(Ipv4Addr::LOCALHOST.into(), 104), Target::host(Ipv6Addr::LOCALHOST.into())];
        /// The name of the table of bans in the peers section. Empty: no bans, only counters.
        bans_table: String = "bans".to_owned();
        /// The tables in the peers section whose `gpc0` counts offences: each time HAProxy raises it, the client of the entry has one offence
        /// more, under the filter `haproxy` and the name of the table as its rule. They need `type ipv6` and `store gpc0`. Everyone
        /// who reaches the port can then ban.
        report_tables: Vec<TableName> = Vec::new();
        /// The most keys of counters in memory. When there are more, the heaviest are kept. With three HAProxies, a key takes up to
        /// 850 bytes.
        max_keys: usize = 200_000;
        /// How long changed counters are collected before they are sent. A client may exceed a limit by about what it sends in this time and
        /// the time on the network.
        interval: Span = Span(Duration::from_millis(10));
    }
}
