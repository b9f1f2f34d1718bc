use super::*;
use proptest::prelude::*;

fn target(text: &str) -> Target {
    text.parse().unwrap()
}

fn at(seconds: u32) -> Option<Expiry> {
    Some(Expiry::from_seconds(seconds))
}

/// A model of HAProxy: a map that follows the instructions.
#[derive(Debug, Default)]
struct Map(BTreeMap<Target, u32>);

impl Map {
    fn whole(mirror: &mut Mirror, slow: bool) -> Self {
        mirror.begin(0, slow);
        let mut map = Self::default();
        while let Some(page) = mirror.page(0, 3) {
            map.0.extend(page);
        }
        map
    }

    fn follow(&mut self, mirror: &mut Mirror) {
        for instruction in mirror.changes(0, usize::MAX) {
            match instruction {
                Instruction::Add(target, value) => assert_eq!(self.0.insert(target, value), None),
                Instruction::Set(target, value) => assert!(self.0.insert(target, value).is_some()),
                Instruction::Remove(target) => assert!(self.0.remove(&target).is_some()),
            }
        }
    }

    fn digest(&self) -> MapDigest {
        let mut digest = MapDigest::default();
        self.0.iter().for_each(|(target, value)| digest.add(*target, *value));
        digest
    }

    /// Decides as HAProxy does: the longest prefix counts, and its value is compared with the clock.
    fn denies(&self, client: Target, now: u32) -> bool {
        let holding = self.0.iter().filter(|(held, _)| held.covers(client));
        holding.max_by_key(|(held, _)| held.prefix128()).is_some_and(|(_, until)| *until > now)
    }
}

#[test]
fn the_latest_end_of_all_covering_bans_counts() {
    let mut mirror = Mirror::new(1);
    mirror.apply(target("192.0.2.1"), at(100));
    let mut map = Map::whole(&mut mirror, false);
    mirror.apply(target("192.0.2.0/24"), at(500));
    map.follow(&mut mirror);
    assert!(map.denies(target("192.0.2.1"), 300) && map.denies(target("192.0.2.2"), 300));
    mirror.apply(target("192.0.2.0/24"), None);
    map.follow(&mut mirror);
    assert!(map.denies(target("192.0.2.1"), 99) && !map.denies(target("192.0.2.1"), 300));
    assert!(!map.denies(target("192.0.2.2"), 99));
    assert_eq!(map.digest(), mirror.sent(0));
}

#[test]
fn the_allowlist_wins_inside_a_banned_network_and_over_a_banned_host() {
    let mut mirror = Mirror::new(1);
    mirror.allow(vec![target("192.0.2.128/25"), target("10.0.0.1")], BTreeMap::new());
    for (banned, until) in [("192.0.2.0/24", 900), ("192.0.2.200", 900), ("10.0.0.1", 900), ("10.0.0.2", 900)] {
        mirror.apply(target(banned), at(until));
    }
    let map = Map::whole(&mut mirror, false);
    for (client, denied) in
        [("192.0.2.1", true), ("192.0.2.129", false), ("192.0.2.200", false), ("10.0.0.1", false), ("10.0.0.2", true)]
    {
        assert_eq!(map.denies(target(client), 1), denied, "{client}");
    }
    assert_eq!(map.digest(), mirror.sent(0));
    mirror.allow(Vec::new(), BTreeMap::new());
    assert!(mirror.needs_full_sync(0));
}

#[test]
fn an_operators_ban_inside_an_allowed_network_is_an_exception() {
    let mut mirror = Mirror::new(1);
    let exceptions = BTreeMap::from([(target("198.19.7.0/24"), Expiry::from_seconds(500))]);
    mirror.allow(vec![target("198.19.0.0/16"), target("198.19.7.9")], exceptions);
    for (banned, until) in
        [("198.19.7.0/24", 500), ("198.19.7.1", 900), ("198.19.8.1", 900), ("198.19.7.9", 900), ("198.0.0.0/8", 900)]
    {
        mirror.apply(target(banned), at(until));
    }
    let map = Map::whole(&mut mirror, false);
    for (client, denied, later) in [
        ("198.19.7.1", true, false),
        ("198.19.7.2", true, false),
        ("198.19.7.9", false, false),
        ("198.19.8.1", false, false),
        ("198.18.0.1", true, true),
    ] {
        assert_eq!(map.denies(target(client), 300), denied, "{client}");
        assert_eq!(map.denies(target(client), 600), later, "{client} after the end of the exception");
    }
    assert_eq!(map.digest(), mirror.sent(0));
    mirror.allow(vec![target("198.19.0.0/16"), target("198.19.7.9")], BTreeMap::new());
    assert!(mirror.needs_full_sync(0));
}

#[test]
fn an_ipv6_network_that_contains_mapped_ipv4_is_not_sent() {
    for (text, contains_ipv4) in [("::/0", true), ("::/64", true), ("::fffe:0:0/95", false), ("2001:db8::/32", false)] {
        let target = target(text);
        assert_eq!(holds_ipv4(target), contains_ipv4 || text == "::fffe:0:0/95", "{text}");
    }
    assert!(!holds_ipv4(target("192.0.2.0/24")) && !holds_ipv4(target("0.0.0.0/0")));
    let mut mirror = Mirror::new(1);
    mirror.apply(target("::/0"), at(900));
    assert_eq!(Map::whole(&mut mirror, false).0.len(), 0);
}

#[test]
fn a_follower_too_far_behind_is_sent_everything_again() {
    let mut mirror = Mirror::new(1);
    let mut map = Map::whole(&mut mirror, false);
    for n in 0..=u32::try_from(MAX_BACKLOG).unwrap() {
        mirror.apply(Target::host(std::net::IpAddr::V4(n.into()).into()), at(900));
    }
    assert!(mirror.needs_full_sync(0) && mirror.changes(0, 10).is_empty());
    map.follow(&mut mirror);
    assert!(map.0.is_empty());
    assert_eq!(Map::whole(&mut mirror, false).0.len(), MAX_BACKLOG + 1);
}

#[test]
fn ended_bans_are_removed_one_by_one_or_together_if_a_follower_is_slow() {
    let host = |n: u32| Target::host(std::net::IpAddr::V4(n.into()).into());
    for slow in [false, true] {
        let mut mirror = Mirror::new(1);
        for n in 0..2000 {
            mirror.apply(host(n), at(if n < 500 { 5 } else { 900 }));
        }
        let mut map = Map::whole(&mut mirror, slow);
        for _ in 0..30 {
            mirror.sweep(UnixMillis(10_000), 100);
            map.follow(&mut mirror);
        }
        assert_eq!((map.0.len(), mirror.needs_full_sync(0)), (if slow { 2000 } else { 1500 }, false));
        for _ in 0..30 {
            mirror.sweep(UnixMillis(1_000_000), 100);
        }
        assert_eq!((mirror.needs_full_sync(0), mirror.is_empty()), (slow, true));
    }
    let mut mirror = Mirror::new(1);
    (0..100).for_each(|n| mirror.apply(host(n), at(5)));
    Map::whole(&mut mirror, true);
    (0..100).for_each(|n| mirror.apply(host(n), at(6)));
    assert!(mirror.needs_full_sync(0), "a hundred changes one by one are too slow");
}

fn targets() -> impl Strategy<Value = Target> {
    (0u32..16, 28u8..=32).prop_map(|(n, prefix)| Target::network(std::net::IpAddr::V4(n.into()), prefix).unwrap())
}

proptest! {
    /// Whatever changes, even while everything is being sent, the map denies exactly the banned clients.
    #[test]
    fn the_map_denies_exactly_the_banned_clients(
        before in proptest::collection::vec((targets(), proptest::option::of(1u32..9)), 0..20),
        during in proptest::collection::vec((targets(), proptest::option::of(1u32..9)), 0..20),
        after in proptest::collection::vec((targets(), proptest::option::of(1u32..9)), 0..20),
        allowed in proptest::collection::vec(targets(), 0..2),
        now in 0u32..9,
    ) {
        let mut mirror = Mirror::new(1);
        let mut bans: BTreeMap<Target, u32> = BTreeMap::new();
        let mut change = |mirror: &mut Mirror, target: Target, until: Option<u32>| {
            mirror.apply(target, until.map(Expiry::from_seconds));
            match until { Some(until) => bans.insert(target, until), None => bans.remove(&target) };
        };
        mirror.allow(allowed.clone(), BTreeMap::new());
        for (target, until) in before { change(&mut mirror, target, until); }
        mirror.begin(0, false);
        let mut map = Map::default();
        let mut during = during.into_iter();
        while let Some(page) = mirror.page(0, 2) {
            map.0.extend(page);
            for (target, until) in during.by_ref().take(3) { change(&mut mirror, target, until); }
        }
        map.follow(&mut mirror);
        for (target, until) in after { change(&mut mirror, target, until); }
        map.follow(&mut mirror);
        prop_assert_eq!(map.digest(), mirror.sent(0));
        for n in 0..16u32 {
            let client = Target::host(std::net::IpAddr::V4(n.into()).into());
            let banned = bans.iter().any(|(target, until)| target.covers(client) && *until > now)
                && !allowed.iter().any(|target| target.covers(client));
            prop_assert_eq!(map.denies(client, now), banned, "{}", client);
        }
    }
}
