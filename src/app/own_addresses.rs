//! The addresses that are never banned: those of this host, of the cluster's members, and of the clients and senders that the
//! configuration names (`ban.ignore_self`). They follow changes of the interfaces and of the members.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::supervisor::Restart;
use crate::cluster::ClusterHandle;
use crate::config::Config;
use banmesh_core::judge::Rules;
use banmesh_types::address::Address;
use banmesh_types::target::Target;

/// How often the interfaces and the members are read.
const INTERVAL: Duration = Duration::from_secs(5);
/// Networks of clients and senders that are wider than this are not protected: they hold more than HAProxy and log servers.
const WIDEST_IPV4: u8 = 24;
const WIDEST_IPV6: u8 = 64;

/// Keeps the addresses current.
pub struct OwnAddresses {
    rules: Arc<ArcSwap<Rules>>,
    allowlist: watch::Sender<Vec<Target>>,
    cluster: Option<ClusterHandle>,
    named: Vec<Target>,
}

impl fmt::Debug for OwnAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnAddresses").field("named", &self.named).finish_non_exhaustive()
    }
}

impl OwnAddresses {
    /// Reads the addresses for the first time. `None` if `ban.ignore_self` is off.
    pub fn new(
        config: &Config,
        rules: Arc<ArcSwap<Rules>>,
        allowlist: watch::Sender<Vec<Target>>,
        cluster: Option<ClusterHandle>,
    ) -> Option<Self> {
        if !config.ban.ignore_self {
            return None;
        }
        let (dnsbl, policy, auth) = (&config.dnsbl, &config.policy, &config.auth_policy);
        let mail = [
            (dnsbl.enabled, &dnsbl.allowed_clients),
            (policy.enabled, &policy.allowed_clients),
            (auth.enabled, &auth.allowed_clients),
        ];
        let mail = mail.into_iter().filter(|(enabled, _)| *enabled).flat_map(|(_, clients)| clients);
        let lists = config.spoa.allowed_clients.iter().chain(&config.syslog.allowed_senders).chain(mail);
        let named = lists.copied().filter(|target| is_narrow(*target)).collect();
        let own = Self { rules, allowlist, cluster, named };
        own.update();
        Some(own)
    }

    fn update(&self) {
        let own: BTreeSet<Target> = self.read().collect();
        if own == self.rules.load().scope.own.members().collect() {
            return;
        }
        info!(addresses = ?own, "these addresses of this node and its cluster are never banned");
        self.rules.rcu(|rules| {
            let mut rules = Rules::clone(rules);
            Arc::make_mut(&mut rules.scope).own = own.iter().copied().collect();
            rules
        });
        self.allowlist.send_replace(mirrored(&self.rules.load()));
    }

    fn read(&self) -> impl Iterator<Item = Target> {
        let members = self.cluster.as_ref().map(ClusterHandle::members);
        let members: Vec<Target> = members
            .iter()
            .flat_map(|members| &members.nodes)
            .map(|member| Target::host(member.address.ip().into()))
            .collect();
        let all = interfaces().into_iter().chain(members).chain(self.named.iter().copied());
        all.filter(|target| Address::new(target.address()).is_unicast())
    }
}

/// The targets that must never be in HAProxy's map: the configured allowlist and the own addresses.
pub fn mirrored(rules: &Rules) -> Vec<Target> {
    rules.scope.allowlist.members().chain(rules.scope.own.members()).collect()
}

fn is_narrow(target: Target) -> bool {
    target.prefix() >= if target.is_ipv4() { WIDEST_IPV4 } else { WIDEST_IPV6 }
}

/// The addresses of the interfaces. Of the loopback interface only loopback addresses: other ones may be there to try out a ban, as in
/// docs/haproxy.md, or belong to a service that is shared with other hosts.
fn interfaces() -> Vec<Target> {
    let found = match nix::ifaddrs::getifaddrs() {
        Ok(found) => found,
        Err(error) => {
            warn!(%error, "cannot read the addresses of the interfaces, so they can be banned (ban.ignore_self)");
            return Vec::new();
        }
    };
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let storage = interface.address?;
        let v4 = storage.as_sockaddr_in().map(|address| Address::from(address.ip()));
        let address = v4.or_else(|| storage.as_sockaddr_in6().map(|address| Address::from(address.ip())))?;
        let is_loopback = interface.flags.contains(nix::net::if_::InterfaceFlags::IFF_LOOPBACK);
        (!is_loopback || address.is_loopback()).then(|| Target::host(address))
    };
    found.filter_map(address).collect()
}

impl Restart for OwnAddresses {
    async fn serve(&mut self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
            self.update();
        }
    }
}
