//! Contacts the seeds. chitchat resolves names only once a minute; this does it twice a second while the node is alone.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Membership;
use crate::cluster::cipher::random;

/// Addresses of one name that are contacted at a time.
const MAX_SEED_ADDRESSES: usize = 64;

impl Membership {
    /// The addresses of all seeds that can be resolved.
    pub(in crate::cluster) async fn resolve_seeds(&self) -> BTreeSet<SocketAddr> {
        let mut resolved = BTreeSet::new();
        for seed in &self.settings.seeds {
            let addresses = tokio::time::timeout(Duration::from_secs(5), self.settings.network.resolve(seed)).await;
            if let Ok(Ok(addresses)) = addresses {
                resolved.extend(addresses.into_iter().take(MAX_SEED_ADDRESSES));
            }
        }
        resolved
    }

    /// Resolves and contacts the seeds until `shutdown`: every half second while there are no live peers, and otherwise every 30 s.
    pub(in crate::cluster) async fn find_seeds(&self, shutdown: CancellationToken) {
        let mut pause = Duration::ZERO;
        while shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            let known: Vec<SocketAddr> = {
                let members = self.members.borrow();
                members.live_peers().map(|member| member.address).collect()
            };
            let mut failed = None;
            for seed in &self.settings.seeds {
                match tokio::time::timeout(Duration::from_secs(5), self.settings.network.resolve(seed)).await {
                    Ok(Ok(addresses)) => addresses
                        .into_iter()
                        .filter(|address| *address != self.advertise && !known.contains(address))
                        .take(MAX_SEED_ADDRESSES)
                        .for_each(|address| self.gossip_with(address)),
                    Ok(Err(error)) => failed = Some((seed, error.to_string())),
                    Err(_) => failed = Some((seed, "no answer within 5 s".to_owned())),
                }
            }
            if let Some((seed, error)) = failed
                && known.is_empty()
            {
                tracing::debug!(seed, error, "a cluster seed cannot be resolved");
            }
            let jitter = Duration::from_millis(u64::from(random::<1>().map_or(0, |[byte]| byte)));
            pause = jitter + if known.is_empty() { Duration::from_millis(500) } else { Duration::from_secs(30) };
        }
    }
}
