use super::*;
use proptest::prelude::*;

fn traits(slow: bool) -> Traits {
    Traits { slow, ..Traits::default() }
}

fn target(text: &str) -> Target {
    text.parse().unwrap()
}

fn at(seconds: u32) -> Option<Expiry> {
    Some(Expiry::from_seconds(seconds))
}

/// A model of HAProxy: a map that follows the changes.
#[derive(Debug, Default)]
struct Map(BTreeMap<Target, u32>);

impl Map {
    fn whole(followers: &mut Followers, slow: bool) -> Self {
        followers.begin(0, traits(slow));
        let mut map = Self::default();
        while let Some(page) = followers.page(0, 3) {
            map.0.extend(page);
        }
        map
    }

    fn follow(&mut self, followers: &mut Followers) {
        for change in followers.changes(0, usize::MAX) {
            match change {
                Change::Add(target, value) => assert_eq!(self.0.insert(target, value), None),
                Change::Set(target, value) => assert!(self.0.insert(target, value).is_some()),
                Change::Remove(target) => assert!(self.0.remove(&target).is_some()),
            }
        }
    }

    fn digest(&self) -> Digest {
        let mut digest = Digest::default();
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
    let mut followers = Followers::new([Nat64::default()]);
    followers.apply(target("192.0.2.1"), at(100));
    let mut map = Map::whole(&mut followers, false);
    followers.apply(target("192.0.2.0/24"), at(500));
    map.follow(&mut followers);
    assert!(map.denies(target("192.0.2.1"), 300) && map.denies(target("192.0.2.2"), 300));
    followers.apply(target("192.0.2.0/24"), None);
    map.follow(&mut followers);
    assert!(map.denies(target("192.0.2.1"), 99) && !map.denies(target("192.0.2.1"), 300));
    assert!(!map.denies(target("192.0.2.2"), 99));
    assert_eq!(map.digest(), followers.sent(0));
}

#[test]
fn the_allowlist_wins_inside_a_banned_network_and_over_a_banned_host() {
    let mut followers = Followers::new([Nat64::default()]);
    followers.allow(vec![target("192.0.2.128/25"), target("10.0.0.1")], Vec::new(), BTreeMap::new());
    for (banned, until) in [("192.0.2.0/24", 900), ("192.0.2.200", 900), ("10.0.0.1", 900), ("10.0.0.2", 900)] {
        followers.apply(target(banned), at(until));
    }
    let map = Map::whole(&mut followers, false);
    for (client, denied) in
        [("192.0.2.1", true), ("192.0.2.129", false), ("192.0.2.200", false), ("10.0.0.1", false), ("10.0.0.2", true)]
    {
        assert_eq!(map.denies(target(client), 1), denied, "{client}");
    }
    assert_eq!(map.digest(), followers.sent(0));
    followers.allow(Vec::new(), Vec::new(), BTreeMap::new());
    assert!(followers.needs_full_sync(0));
}

#[test]
fn an_operators_ban_inside_an_allowed_network_is_an_exception() {
    let mut followers = Followers::new([Nat64::default()]);
    let exceptions = BTreeMap::from([(target("198.19.7.0/24"), Expiry::from_seconds(500))]);
    followers.allow(Vec::new(), vec![target("198.19.0.0/16"), target("198.19.7.9")], exceptions);
    for (banned, until) in
        [("198.19.7.0/24", 500), ("198.19.7.1", 900), ("198.19.8.1", 900), ("198.19.7.9", 900), ("198.0.0.0/8", 900)]
    {
        followers.apply(target(banned), at(until));
    }
    let map = Map::whole(&mut followers, false);
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
    assert_eq!(map.digest(), followers.sent(0));
    followers.allow(vec![target("198.19.0.0/16"), target("198.19.7.9")], Vec::new(), BTreeMap::new());
    assert!(followers.needs_full_sync(0));
}

#[test]
fn an_ipv6_network_that_contains_mapped_ipv4_is_not_sent() {
    for (text, contains_ipv4) in [("::/0", true), ("::/64", true), ("::fffe:0:0/95", false), ("2001:db8::/32", false)] {
        let target = target(text);
        assert_eq!(holds_ipv4(target), contains_ipv4 || text == "::fffe:0:0/95", "{text}");
    }
    assert!(!holds_ipv4(target("192.0.2.0/24")) && !holds_ipv4(target("0.0.0.0/0")));
    let mut followers = Followers::new([Nat64::default()]);
    followers.apply(target("::/0"), at(900));
    assert_eq!(Map::whole(&mut followers, false).0.len(), 0);
}

#[test]
fn a_follower_too_far_behind_is_sent_everything_again() {
    let mut followers = Followers::new([Nat64::default()]);
    let mut map = Map::whole(&mut followers, false);
    for n in 0..=u32::try_from(MAX_BACKLOG).unwrap() {
        followers.apply(Target::host(std::net::IpAddr::V4(n.into()).into()), at(900));
    }
    assert!(followers.needs_full_sync(0) && followers.changes(0, 10).is_empty());
    map.follow(&mut followers);
    assert!(map.0.is_empty());
    assert_eq!(Map::whole(&mut followers, false).0.len(), MAX_BACKLOG + 1);
}

#[test]
fn ended_bans_are_removed_one_by_one_or_together_if_a_follower_is_slow() {
    let host = |n: u32| Target::host(std::net::IpAddr::V4(n.into()).into());
    for slow in [false, true] {
        let mut followers = Followers::new([Nat64::default()]);
        for n in 0..2000 {
            followers.apply(host(n), at(if n < 500 { 5 } else { 900 }));
        }
        let mut map = Map::whole(&mut followers, slow);
        for _ in 0..30 {
            followers.sweep(UnixMillis(10_000), 100);
            map.follow(&mut followers);
        }
        assert_eq!((map.0.len(), followers.needs_full_sync(0)), (if slow { 2000 } else { 1500 }, false));
        for _ in 0..30 {
            followers.sweep(UnixMillis(1_000_000), 100);
        }
        assert_eq!((followers.needs_full_sync(0), followers.is_empty()), (slow, true));
    }
    let mut followers = Followers::new([Nat64::default()]);
    (0..100).for_each(|n| followers.apply(host(n), at(5)));
    Map::whole(&mut followers, true);
    (0..100).for_each(|n| followers.apply(host(n), at(6)));
    assert!(followers.needs_full_sync(0), "a hundred changes one by one are too slow");
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
        let mut followers = Followers::new([Nat64::default()]);
        let mut bans: BTreeMap<Target, u32> = BTreeMap::new();
        let mut change = |followers: &mut Followers, target: Target, until: Option<u32>| {
            followers.apply(target, until.map(Expiry::from_seconds));
            match until { Some(until) => bans.insert(target, until), None => bans.remove(&target) };
        };
        followers.allow(allowed.clone(), Vec::new(), BTreeMap::new());
        for (target, until) in before { change(&mut followers, target, until); }
        followers.begin(0, traits(false));
        let mut map = Map::default();
        let mut during = during.into_iter();
        while let Some(page) = followers.page(0, 2) {
            map.0.extend(page);
            for (target, until) in during.by_ref().take(3) { change(&mut followers, target, until); }
        }
        map.follow(&mut followers);
        for (target, until) in after { change(&mut followers, target, until); }
        map.follow(&mut followers);
        prop_assert_eq!(map.digest(), followers.sent(0));
        for n in 0..16u32 {
            let client = Target::host(std::net::IpAddr::V4(n.into()).into());
            let banned = bans.iter().any(|(target, until)| target.covers(client) && *until > now)
                && !allowed.iter().any(|target| target.covers(client));
            prop_assert_eq!(map.denies(client, now), banned, "{}", client);
        }
    }
}

/// A model of a place that holds each ban with its own end, and removes entries by itself when they end.
#[derive(Debug, Default)]
struct Sets(BTreeMap<Target, u32>);

impl Sets {
    fn follow(&mut self, followers: &mut Followers, budget: usize) {
        for change in followers.changes(0, budget) {
            match change {
                // An entry may have ended and gone before the change arrives, so neither insists on what was there.
                Change::Add(target, until) | Change::Set(target, until) => drop(self.0.insert(target, until)),
                Change::Remove(target) => drop(self.0.remove(&target)),
            }
        }
    }
}

const OWN: Traits = Traits { form: Form::Own, slow: false, expires: true };

#[test]
fn a_place_that_ends_bans_by_itself_is_sent_no_removal_of_ended_ones() {
    let mut followers = Followers::new([Nat64::default()]);
    followers.begin(0, OWN);
    while followers.page(0, 10).is_some() {}
    followers.apply(target("192.0.2.1"), at(5));
    followers.apply(target("192.0.2.2"), at(50));
    assert_eq!(followers.changes(0, 10).len(), 2);
    followers.sweep(UnixMillis(10_000), 100);
    assert_eq!((followers.waiting(0), followers.sent(0).entries, followers.len()), (0, 1, 1));
    followers.apply(target("192.0.2.2"), at(12));
    followers.sweep(UnixMillis(20_000), 100);
    assert_eq!(
        followers.changes(0, 10),
        [Change::Remove(target("192.0.2.2"))],
        "the place still has the later end, because the earlier one was never sent"
    );
}

#[test]
fn a_changed_allowlist_is_handed_over_without_sending_everything_again() {
    let mut followers = Followers::new([Nat64::default()]);
    followers.apply(target("192.0.2.1"), at(50));
    followers.begin(0, OWN);
    while followers.page(0, 10).is_some() {}
    let exceptions = BTreeMap::from([(target("198.19.7.0/24"), Expiry::from_seconds(500))]);
    followers.allow(vec![target("192.0.2.0/24")], vec![target("198.19.0.0/16")], exceptions);
    assert_eq!((followers.needs_full_sync(0), followers.waiting(0)), (false, 1));
    let allowlist = followers.take_allowlist(0).unwrap();
    assert_eq!(allowlist.configured, [target("192.0.2.0/24")]);
    let operators: Vec<_> = allowlist.operators.into_iter().collect();
    assert_eq!(operators, [(target("198.19.0.0/16"), true), (target("198.19.7.0/24"), false)]);
    assert_eq!((followers.take_allowlist(0), followers.waiting(0)), (None, 0));
}

#[test]
fn ipv4_bans_are_also_sent_in_their_form_behind_a_translator() {
    let nat64 = Nat64::new([banmesh_types::nat64::well_known()]);
    let mut followers = Followers::new([Nat64::default(), nat64]);
    for follower in 0..2 {
        followers.begin(follower, OWN);
        while followers.page(follower, 10).is_some() {}
    }
    followers.apply(target("192.0.2.1"), at(5));
    followers.apply(target("2001:db8::/64"), at(5));
    assert_eq!(followers.changes(0, 10).len(), 2);
    let sent = followers.changes(1, 10);
    assert!(sent.contains(&Change::Add(target("64:ff9b::192.0.2.1"), 5)) && sent.len() == 3, "{sent:?}");
}

#[test]
fn a_sample_goes_round_all_entries_and_leaves_out_waiting_changes() {
    let mut followers = Followers::new([Nat64::default()]);
    (0..10u32).for_each(|n| followers.apply(Target::host(std::net::IpAddr::V4(n.into()).into()), at(50)));
    followers.begin(0, OWN);
    while followers.page(0, 3).is_some() {}
    followers.apply(target("0.0.0.4"), at(60));
    let (first, last) = followers.sample(0, None, 6);
    assert_eq!((first.len(), last), (5, Some(target("0.0.0.5"))));
    let (second, last) = followers.sample(0, last, 6);
    assert_eq!((second.len(), last), (4, Some(target("0.0.0.9"))));
    assert_eq!(followers.sample(0, last, 6), (Vec::new(), None));
    assert!(followers.may_hold(0, target("0.0.0.4")) && !followers.may_hold(0, target("0.0.0.11")));
}

proptest! {
    /// Whatever changes, and whenever it is sent, a place with a set of entries bans exactly the banned clients, and its digest is the one
    /// of what was sent.
    #[test]
    fn a_place_with_own_ends_bans_exactly_the_banned_clients(
        steps in proptest::collection::vec((targets(), proptest::option::of(1u32..20), 0u32..3, any::<bool>()), 0..60),
    ) {
        let mut followers = Followers::new([Nat64::default()]);
        followers.begin(0, OWN);
        let (mut sets, mut now) = (Sets::default(), 0u32);
        let mut bans: BTreeMap<Target, u32> = BTreeMap::new();
        for (target, until, passes, sends) in steps {
            now += passes;
            let until = until.map(|until| now + until);
            followers.apply(target, until.map(Expiry::from_seconds));
            match until { Some(until) => bans.insert(target, until), None => bans.remove(&target) };
            followers.sweep(UnixMillis(u64::from(now) * 1000), 5);
            sets.0.retain(|_, until| *until > now);
            if sends {
                match followers.page(0, 2) {
                    Some(page) => sets.0.extend(page),
                    None => sets.follow(&mut followers, 3),
                }
            }
        }
        while let Some(page) = followers.page(0, 2) { sets.0.extend(page); }
        sets.follow(&mut followers, usize::MAX);
        for _ in 0..60 { followers.sweep(UnixMillis(u64::from(now) * 1000), 5); }
        sets.follow(&mut followers, usize::MAX);
        sets.0.retain(|_, until| *until > now);
        bans.retain(|_, until| *until > now);
        prop_assert_eq!(&sets.0, &bans);
        let mut digest = Digest::default();
        sets.0.iter().for_each(|(target, until)| digest.add(*target, *until));
        prop_assert_eq!(digest, followers.sent(0));
    }
}

#[test]
fn a_change_of_the_allowlist_is_passed_on_once_even_if_it_changes_no_value() {
    let (mut followers, network) = (Followers::new([Nat64::default()]), target("192.0.2.0/24"));
    followers.begin(0, traits(false));
    assert_eq!(followers.take_allowlist(0), None);
    followers.allow(vec![network], Vec::new(), BTreeMap::new());
    assert_eq!((followers.waiting(0), followers.take_allowlist(0).unwrap().configured), (1, vec![network]));
    followers.allow(vec![network], Vec::new(), BTreeMap::new());
    assert_eq!((followers.waiting(0), followers.take_allowlist(0)), (0, None));
    // An operator allows what the configuration allows already.
    followers.allow(vec![network], vec![network], BTreeMap::new());
    assert_eq!(followers.take_allowlist(0).unwrap().operators, BTreeMap::from([(network, true)]));
}

#[test]
fn a_place_that_does_not_hold_what_was_sent_is_sent_everything_again() {
    let mut followers = Followers::new([Nat64::default()]);
    assert!(followers.is_empty());
    followers.apply(target("192.0.2.1"), at(100));
    followers.apply(target("192.0.2.2"), at(100));
    assert_eq!((followers.len(), followers.is_empty()), (2, false));
    Map::whole(&mut followers, false);
    assert!(!followers.needs_full_sync(0));
    followers.invalidate(0);
    assert!(followers.needs_full_sync(0));
    assert_eq!(Map::whole(&mut followers, false).0.len(), 2);
}

#[test]
fn only_places_where_the_longest_prefix_counts_leave_networks_out() {
    let mut followers = Followers::new([Nat64::default()]);
    followers.begin(0, Traits { form: Form::LongestPrefix, ..Traits::default() });
    assert!(followers.is_left_out(target("::/0")) && !followers.is_left_out(target("2001:db8::/32")));
    followers.begin(0, Traits { form: Form::Own, ..Traits::default() });
    assert!(!followers.is_left_out(target("::/0")));
}

#[test]
fn a_place_may_hold_what_is_banned_or_waits_to_be_removed_and_anything_before_it_is_synced() {
    let mut followers = Followers::new([Nat64::default()]);
    followers.apply(target("192.0.2.1"), at(100));
    let mut map = Map::whole(&mut followers, false);
    let held = |followers: &Followers| ["192.0.2.1", "192.0.2.2"].map(|text| followers.may_hold(0, target(text)));
    assert_eq!(held(&followers), [true, false]);
    followers.apply(target("192.0.2.1"), None);
    assert_eq!(held(&followers), [true, false]);
    map.follow(&mut followers);
    assert_eq!(held(&followers), [false, false]);
    followers.invalidate(0);
    assert_eq!(held(&followers), [true, true]);
}

#[test]
fn the_configured_allowlist_has_no_exceptions() {
    let mut followers = Followers::new([Nat64::default()]);
    let exceptions = BTreeMap::from([(target("198.19.7.0/24"), Expiry::from_seconds(500))]);
    followers.allow(vec![target("198.19.0.0/16")], Vec::new(), exceptions);
    followers.apply(target("198.19.7.0/24"), at(500));
    assert!(!Map::whole(&mut followers, false).denies(target("198.19.7.1"), 300));
}

#[test]
fn after_a_reset_there_are_no_bans_and_everything_must_be_sent_again() {
    let mut followers = Followers::new([Nat64::default()]);
    followers.apply(target("192.0.2.0/24"), at(900));
    Map::whole(&mut followers, false);
    followers.reset();
    assert!(followers.is_empty() && followers.needs_full_sync(0));
    followers.apply(target("192.0.2.1"), at(100));
    assert!(!Map::whole(&mut followers, false).denies(target("192.0.2.1"), 300));
}

#[test]
fn ended_bans_are_removed_from_places_that_do_not_remove_them_by_themselves() {
    for (expires, removed) in [(false, vec![Change::Remove(target("192.0.2.1"))]), (true, Vec::new())] {
        let mut followers = Followers::new([Nat64::default()]);
        followers.apply(target("192.0.2.1"), at(100));
        followers.begin(0, Traits { form: Form::Own, expires, ..Traits::default() });
        while followers.page(0, 10).is_some() {}
        followers.sweep(UnixMillis(101_000), 10);
        assert_eq!(followers.changes(0, 10), removed);
        assert!(followers.is_empty() && followers.sent(0) == Digest::default());
    }
}

#[test]
fn digests_differ_if_a_target_or_a_value_does() {
    let digest = |text: &str, value| {
        let mut digest = Digest::default();
        digest.add(target(text), value);
        digest
    };
    let one = digest("192.0.2.0/32", 1);
    for other in [digest("192.0.2.1", 1), digest("192.0.2.0/31", 1), digest("192.0.2.0/32", 2)] {
        assert!(other != one && other.entries == one.entries);
    }
    let mut foreign = Digest::default();
    foreign.add_foreign();
    assert!(foreign != Digest::default() && foreign != one);
}
