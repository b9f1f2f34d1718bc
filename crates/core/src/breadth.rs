//! How much of the IPv4 address space is banned. A mistake with a network, or a stolen key, shows here first.

use banmesh_types::target::Target;

/// Parts per million of all IPv4 addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(pub u32);

impl Share {
    /// Returns the share that `percent` is, at most all.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the cast saturates, which is what is wanted"
    )]
    pub fn of_percent(percent: f64) -> Self {
        Self(((percent * 10_000.0) as u32).min(1_000_000))
    }

    /// Returns the share in percent.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
}

/// Prefixes up to this length are compared with each other, so that overlapping networks count once. There are at most 131,071 of them.
const COMPARED: u8 = 16;

/// Adds up bans.
#[derive(Clone, Debug, Default)]
pub struct Breadth {
    wide: Vec<Target>,
    /// Addresses in the other networks.
    narrow: u64,
}

impl Breadth {
    /// Adds a banned target.
    pub fn add(&mut self, target: Target) {
        if !target.is_ipv4() {
            return;
        }
        if target.prefix() <= COMPARED {
            self.wide.push(target);
        } else {
            self.narrow += addresses(target);
        }
    }

    /// Returns the share of all that was added. Networks narrower than a /16 count even inside wider ones.
    pub fn share(mut self) -> Share {
        // Sorted, a network follows the one that covers it.
        self.wide.sort_unstable();
        let mut sum = self.narrow;
        let mut last: Option<Target> = None;
        for target in self.wide {
            if !last.is_some_and(|wider| wider.covers(target)) {
                sum += addresses(target);
                last = Some(target);
            }
        }
        let all = 1_u64 << 32;
        Share(u32::try_from(sum.min(all) * 1_000_000 / all).unwrap_or(u32::MAX))
    }
}

fn addresses(target: Target) -> u64 {
    1_u64.checked_shl(u32::from(32 - target.prefix().min(32))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(targets: &[&str]) -> u32 {
        let mut breadth = Breadth::default();
        targets.iter().for_each(|text| breadth.add(text.parse().unwrap()));
        breadth.share().0
    }

    #[test]
    fn networks_count_by_their_size_and_overlaps_once() {
        assert_eq!(share(&[]), 0);
        assert_eq!(share(&["192.0.2.1", "2000::/3"]), 0);
        assert_eq!(share(&["0.0.0.0/0"]), 1_000_000);
        assert_eq!(share(&["0.0.0.0/0", "1.0.0.0/8", "192.0.2.0/24"]), 1_000_000);
        assert_eq!(share(&["1.0.0.0/8"]), 3906);
        assert_eq!(share(&["1.2.0.0/16", "1.0.0.0/8", "1.0.0.0/9"]), 3906);
        assert_eq!(share(&["0.0.0.0/1", "128.0.0.0/2"]), 750_000);
    }

    #[test]
    fn a_share_is_read_from_percent() {
        assert_eq!((Share::of_percent(1.5), Share::of_percent(1e9)), (Share(15_000), Share(1_000_000)));
        assert_eq!(Share::of_percent(-1.0), Share(0));
        assert!((Share(15_000).percent() - 1.5).abs() < 1e-9);
    }
}
