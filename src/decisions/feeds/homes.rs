//! Sources where accounts of the cluster are at home. A feed alone does not act against them.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::Spare;
use banmesh_types::address::Address;
use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;

type Targets = HashSet<Target, foldhash::fast::RandomState>;

/// The sources; clones share them.
#[derive(Clone, Debug)]
pub struct Homes {
    targets: Arc<ArcSwap<Targets>>,
    ipv4_prefix: u8,
    ipv6_prefix: u8,
}

impl Homes {
    /// No sources yet. Evidence is kept by networks with these prefix lengths (`ban.ipv4_prefix`, `ban.ipv6_prefix`).
    pub fn new(ipv4_prefix: u8, ipv6_prefix: u8) -> Self {
        Self { targets: Arc::default(), ipv4_prefix, ipv6_prefix: ipv6_prefix.min(64) }
    }

    /// Replaces all of them. The judge does so once a minute.
    pub fn replace(&self, targets: impl Iterator<Item = Target>) {
        self.targets.store(Arc::new(targets.collect()));
    }
}

impl Spare for Homes {
    fn spares(&self, source: Address, _: UnixMillis) -> Option<&'static str> {
        let place = Target::of_source(source, self.ipv4_prefix, self.ipv6_prefix);
        self.targets.load().contains(&place).then_some("accounts are at home there")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_network_of_a_home_is_spared_until_it_is_replaced() {
        let (homes, now) = (Homes::new(32, 64), UnixMillis(1_800_000_000_000));
        let address = |text: &str| text.parse::<Address>().unwrap();
        assert_eq!(homes.spares(address("2001:db8::1"), now), None);
        homes.replace(["2001:db8::/64", "192.0.2.7"].into_iter().map(|text| text.parse().unwrap()));
        for spared in ["2001:db8::1", "2001:db8::2", "192.0.2.7"] {
            assert_eq!(homes.spares(address(spared), now), Some("accounts are at home there"), "{spared}");
        }
        assert_eq!(homes.spares(address("192.0.2.8"), now), None);
        let wide = Homes::new(24, 56);
        wide.replace(std::iter::once("192.0.2.0/24".parse().unwrap()));
        assert!(wide.spares(address("192.0.2.8"), now).is_some());
        homes.replace(std::iter::empty());
        assert_eq!(homes.spares(address("192.0.2.7"), now), None);
    }
}
