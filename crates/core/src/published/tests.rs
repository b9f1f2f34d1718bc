use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

const START: u64 = 1_000_000_000;

fn target(text: &str) -> Target {
    text.parse().unwrap()
}

fn at(seconds: u64) -> UnixMillis {
    UnixMillis((START + seconds) * 1000)
}

fn steady(seconds: u64) -> Steady {
    Steady(seconds * 1000)
}

fn until(seconds: u64) -> Option<Expiry> {
    Some(Expiry::at(at(seconds)))
}

fn allow(configured: &[&str], operators: &[(&str, bool)]) -> Allowlist {
    let mut configured: Vec<Target> = configured.iter().map(|text| target(text)).collect();
    configured.sort_unstable();
    Allowlist { configured, operators: operators.iter().map(|(text, allowed)| (target(text), *allowed)).collect() }
}

fn published(bans: &[(&str, u64)]) -> Published {
    let mut published = Published::default();
    let bans = bans.iter().map(|(text, end)| (target(text), until(*end).unwrap()));
    published.replace(bans, &Allowlist::default(), at(0), steady(0));
    published
}

fn changes(published: &Published, from: u64, now: u64) -> BTreeMap<String, Option<u64>> {
    let decisions = published.since(steady(from), at(now)).unwrap();
    let end = |until: Expiry| u64::from(until.seconds()) - START;
    decisions.into_iter().map(|one| (one.value.to_string(), one.until.map(end))).collect()
}

fn values(published: &Published, now: u64) -> Vec<String> {
    published.snapshot(at(now)).iter().map(|one| one.value.to_string()).collect()
}

#[test]
fn a_value_is_told_as_it_is_now_and_only_once() {
    let mut published = published(&[("192.0.2.1", 100)]);
    published.apply(target("192.0.2.1"), None, at(1), steady(1));
    published.apply(target("192.0.2.1"), until(50), at(2), steady(2));
    published.apply(target("192.0.2.2"), until(50), at(2), steady(2));
    published.apply(target("192.0.2.2"), None, at(3), steady(3));
    let expected = BTreeMap::from([("192.0.2.1".to_owned(), Some(50)), ("192.0.2.2".to_owned(), None)]);
    assert_eq!(changes(&published, 1, 4), expected);
    assert_eq!(published.since(steady(1), at(4)).unwrap().len(), 2);
    assert_eq!(changes(&published, 3, 4).len(), 1, "only what changed in the window");
}

#[test]
fn a_ban_that_ends_is_told_as_deleted() {
    let mut published = published(&[("192.0.2.1", 10), ("192.0.2.2", 20)]);
    published.tick(at(10), steady(10));
    assert_eq!(changes(&published, 5, 10), BTreeMap::from([("192.0.2.1".to_owned(), None)]));
    assert_eq!(values(&published, 10), ["192.0.2.2"]);
}

#[test]
fn a_ban_with_less_than_a_second_left_is_in_neither_list() {
    let mut published = published(&[]);
    published.apply(target("192.0.2.1"), until(10), at(1), steady(1));
    let soon = UnixMillis(at(9).0 + 500);
    assert_eq!(published.since(steady(0), soon), Some(Vec::new()));
    assert_eq!(published.snapshot(soon), []);
    published.tick(at(10), steady(10));
    assert_eq!(changes(&published, 10, 10), BTreeMap::from([("192.0.2.1".to_owned(), None)]));
}

#[test]
fn an_extended_ban_is_told_again_when_the_earlier_end_passes() {
    let mut published = published(&[("192.0.2.1", 10)]);
    published.apply(target("192.0.2.1"), until(30), at(5), steady(5));
    published.tick(at(9), steady(9));
    assert_eq!(changes(&published, 6, 9), BTreeMap::new());
    published.tick(at(10), steady(10));
    assert_eq!(changes(&published, 6, 10), BTreeMap::from([("192.0.2.1".to_owned(), Some(30))]));
    // A shorter end needs no reminder at the longer one.
    published.apply(target("192.0.2.1"), until(20), at(11), steady(11));
    published.tick(at(20), steady(20));
    published.tick(at(40), steady(40));
    assert_eq!(changes(&published, 21, 40), BTreeMap::new());
}

#[test]
fn permanent_bans_are_told_again_before_ipset_ends_them() {
    let day = 86_400;
    let mut published = published(&[]);
    published.apply(target("192.0.2.1"), Some(Expiry::NEVER), at(0), steady(0));
    for days in [20, 40, 60] {
        published.tick(at(days * day), steady(days * day));
        let decisions = published.since(steady(days * day), at(days * day)).unwrap();
        assert_eq!(decisions, [Decision { value: target("192.0.2.1"), until: Some(Expiry::NEVER) }]);
    }
}

#[test]
fn a_banned_network_is_cut_around_exempt_addresses() {
    let mut published = published(&[("192.0.2.0/29", 100), ("198.51.100.7", 100)]);
    assert_eq!(values(&published, 0), ["192.0.2.0/29", "198.51.100.7"]);
    published.allow(&allow(&["192.0.2.3"], &[]), steady(1));
    let pieces = ["192.0.2.0/31", "192.0.2.2", "192.0.2.4/30"];
    assert_eq!(values(&published, 1), [&pieces[..], &["198.51.100.7"]].concat());
    let sent = changes(&published, 1, 1);
    assert_eq!(sent["192.0.2.0/29"], None);
    assert!(pieces.iter().all(|piece| sent[*piece] == Some(100)) && sent.len() == 4, "{sent:?}");
    // A ban of its own inside does not end with the network.
    published.apply(target("192.0.2.2"), until(200), at(2), steady(2));
    published.apply(target("192.0.2.0/29"), None, at(3), steady(3));
    assert_eq!(changes(&published, 3, 3)["192.0.2.2"], Some(200));
    published.apply(target("192.0.2.0/29"), until(300), at(4), steady(4));
    published.apply(target("192.0.2.2"), None, at(5), steady(5));
    assert_eq!(changes(&published, 5, 5)["192.0.2.2"], Some(300), "the network still holds");
}

#[test]
fn allowing_a_banned_address_deletes_it_and_disallowing_bans_it_again() {
    let mut published = published(&[("192.0.2.1", 100)]);
    published.allow(&allow(&[], &[("192.0.2.0/24", true)]), steady(1));
    assert_eq!(changes(&published, 1, 1), BTreeMap::from([("192.0.2.1".to_owned(), None)]));
    assert_eq!(published.covering(target("192.0.2.1"), at(1)), []);
    published.allow(&allow(&[], &[("192.0.2.0/24", true), ("192.0.2.1", false)]), steady(2));
    assert_eq!(changes(&published, 2, 2), BTreeMap::from([("192.0.2.1".to_owned(), Some(100))]));
    published.allow(&allow(&[], &[]), steady(3));
    assert_eq!(published.covering(target("192.0.2.1"), at(3)).len(), 1);
}

#[test]
fn a_ban_that_would_be_cut_into_too_many_pieces_is_left_out() {
    let members: Vec<String> = (0..5000).map(|n| format!("10.{}.{}.1", n / 250, n % 250)).collect();
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let mut published = published(&[("10.0.0.0/8", 100), ("10.200.0.1", 100)]);
    published.allow(&allow(&members, &[]), steady(1));
    assert_eq!(values(&published, 1), ["10.200.0.1"]);
    assert_eq!(published.state(target("10.128.0.0/9")), None);
}

#[test]
fn with_too_many_changes_a_client_is_told_everything() {
    let mut published = published(&[]);
    for number in 0..u32::try_from(MAX_LOG).unwrap() + 10 {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + number);
        published.apply(
            Target::host(std::net::IpAddr::V4(address).into()),
            until(100),
            at(1),
            steady(1 + u64::from(number > 9)),
        );
    }
    assert_eq!(published.since(steady(1), at(2)), None);
    assert_eq!(published.since(steady(2), at(2)).map(|all| all.len()), Some(MAX_LOG));
}

#[test]
fn a_replacement_tells_the_difference() {
    let mut published = published(&[("192.0.2.1", 100), ("192.0.2.2", 100)]);
    let next = [("192.0.2.2", 100), ("192.0.2.3", 100)].map(|(text, end)| (target(text), until(end).unwrap()));
    published.replace(next, &Allowlist::default(), at(5), steady(5));
    let expected = BTreeMap::from([("192.0.2.1".to_owned(), None), ("192.0.2.3".to_owned(), Some(100))]);
    assert_eq!(changes(&published, 5, 5), expected);
}

#[test]
fn digests_depend_on_values_and_not_on_history_or_ends() {
    let mut one = published(&[("192.0.2.1", 100), ("2001:db8::/64", 100)]);
    let other = published(&[("192.0.2.1", 900), ("2001:db8::/64", 100)]);
    let before = (one.digest(true), one.digest(false));
    assert_eq!(before, (other.digest(true), other.digest(false)));
    one.apply(target("192.0.2.9"), until(50), at(1), steady(1));
    assert!(one.digest(true) != before.0 && one.digest(false) == before.1);
    one.tick(at(50), steady(50));
    assert_eq!((one.digest(true), one.digest(false)), before);
    one.allow(&allow(&["192.0.2.1"], &[]), steady(60));
    assert_ne!(one.digest(true), before.0);
}

fn identity(number: u32) -> Identity {
    let address = std::net::IpAddr::from(std::net::Ipv4Addr::from(number)).into();
    Identity { key: "k".into(), address, agent: Arc::from("crowdsec-firewall-bouncer/-") }
}

#[test]
fn a_client_that_is_unknown_or_starts_or_was_away_is_told_everything() {
    let mut clients = Clients::default();
    assert_eq!(clients.poll(identity(1), false, steady(80)), Window::Full);
    assert_eq!(clients.poll(identity(1), false, steady(90)), Window::Full, "the answer broke off");
    clients.answered(&identity(1));
    assert_eq!(clients.poll(identity(1), false, steady(100)), Window::Full, "the answer may be lost");
    clients.answered(&identity(1));
    assert_eq!(clients.poll(identity(1), false, steady(110)), Window::Since(steady(70)));
    assert_eq!(
        clients.poll(identity(1), false, steady(111)),
        Window::Since(steady(80)),
        "the longest recent interval counts"
    );
    assert_eq!(clients.poll(identity(1), true, steady(112)), Window::Full);
    clients.answered(&identity(1));
    assert!(matches!(clients.poll(identity(1), false, steady(113)), Window::Since(_)));
    assert_eq!(clients.poll(identity(1), false, steady(113 + 601)), Window::Full);
    assert_eq!(clients.poll(identity(2), false, steady(800)), Window::Full);
    clients.remove_before(steady(790));
    assert_eq!(clients.all().len(), 1);
    assert!(clients.knows(&identity(2)) && !clients.knows(&identity(1)));
}

#[test]
fn the_number_of_clients_is_bounded() {
    let mut clients = Clients::default();
    for number in 0..u32::try_from(MAX_CLIENTS).unwrap() + 100 {
        clients.poll(identity(number), false, steady(u64::from(number)));
    }
    assert_eq!(clients.all().len(), MAX_CLIENTS);
    assert_eq!(clients.poll(identity(0), false, steady(5000)), Window::Full, "the oldest was removed");
}

#[test]
fn a_client_that_was_away_for_ten_minutes_is_told_the_changes_and_after_that_everything() {
    let mut clients = Clients::default();
    clients.poll(identity(1), true, steady(0));
    clients.answered(&identity(1));
    assert!(matches!(clients.poll(identity(1), false, steady(600)), Window::Since(_)));
    assert_eq!(clients.poll(identity(1), false, steady(1201)), Window::Full);
}

#[test]
fn the_values_inside_a_network_are_those_in_force_up_to_a_limit() {
    let bans = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "198.51.100.1"];
    let mut published = published(&bans.map(|text| (text, if text == "192.0.2.2" { 10 } else { 100 })));
    published.allow(&allow(&["192.0.2.3"], &[]), steady(1));
    assert_eq!(published.len(), 5);
    let within = |limit, now| -> Vec<String> {
        let found = published.within(target("192.0.2.0/24"), limit, now);
        assert!(found.iter().all(|one| one.until.is_some()), "{found:?}");
        found.iter().map(|one| one.value.to_string()).collect()
    };
    assert_eq!(within(10, at(1)), ["192.0.2.1", "192.0.2.2", "192.0.2.4"]);
    assert_eq!(within(2, at(1)), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(within(10, UnixMillis(at(9).0 + 500)), ["192.0.2.1", "192.0.2.4"], "less than a second is left");
    assert_eq!(within(10, at(10)), ["192.0.2.1", "192.0.2.4"], "it has ended");
}

#[test]
fn a_client_with_unknown_contents_deletes_what_a_ban_leaves_behind() {
    let mut published = published(&[("192.0.2.0/29", 100)]);
    published.allow(&allow(&["192.0.2.3", "10.0.0.0/8"], &[]), steady(1));
    let delete = |text: &str, in_force| -> Vec<String> {
        published.values_to_delete(target(text), in_force).iter().map(ToString::to_string).collect()
    };
    assert_eq!(delete("198.51.100.1", true), [""; 0]);
    assert_eq!(delete("198.51.100.1", false), ["198.51.100.1"]);
    assert_eq!(delete("10.1.1.1", true), ["10.1.1.1"], "it is exempt");
    assert_eq!(delete("192.0.2.0/29", true), ["192.0.2.0/29"], "only its pieces are blocked");
    assert_eq!(delete("192.0.2.0/29", false), ["192.0.2.0/29", "192.0.2.0/31", "192.0.2.2", "192.0.2.4/30"]);
}

#[test]
fn the_version_changes_with_every_change_of_a_value() {
    let (mut published, mut last) = (Published::default(), 0);
    let mut changed = |published: &Published| std::mem::replace(&mut last, published.version()) != published.version();
    published.replace([], &Allowlist::default(), at(0), steady(0));
    assert!(changed(&published), "the bans are complete now");
    published.apply(target("192.0.2.1"), until(10), at(1), steady(1));
    assert!(changed(&published) && published.len() == 1 && !published.is_empty());
    published.apply(target("192.0.2.1"), until(10), at(2), steady(2));
    published.tick(at(9), steady(9));
    assert!(!changed(&published));
    published.allow(&allow(&["192.0.2.1"], &[]), steady(9));
    assert!(changed(&published));
    published.allow(&allow(&["192.0.2.1"], &[]), steady(9));
    assert!(!changed(&published));
    published.tick(at(10), steady(10));
    assert!(changed(&published) && published.is_empty());
    published.allow(&allow(&["198.51.100.1"], &[]), steady(11));
    assert!(changed(&published), "the digests depend on the allowlist, too");
}

#[test]
fn an_end_that_was_brought_forward_is_not_announced() {
    let mut published = published(&[("192.0.2.1", 10)]);
    published.apply(target("192.0.2.1"), until(8), at(1), steady(1));
    published.tick(at(8), steady(8));
    published.apply(target("192.0.2.1"), until(50), at(9), steady(9));
    published.tick(at(10), steady(10));
    assert_eq!(changes(&published, 10, 10), BTreeMap::new());
}

#[test]
fn a_ban_that_is_extended_again_and_again_needs_bounded_memory() {
    let mut published = published(&[]);
    let extensions = 70_000;
    for n in 0..extensions {
        published.apply(target("192.0.2.1"), until(1000 + n), at(0), steady(0));
    }
    let waiting = published.agenda.len();
    assert!(waiting <= REMINDERS.0 + REMINDERS.1 + 2, "{waiting}");
    assert_eq!(published.reminders_dropped() + u64::try_from(waiting).unwrap(), extensions);
}

#[test]
fn different_bans_have_different_digests() {
    let digest = |text: &str| published(&[(text, 100)]).digest(true);
    let bans = ["192.0.2.1", "192.0.2.2", "192.0.2.0/31", "192.0.2.0/30"];
    assert_eq!(bans.map(digest).into_iter().collect::<BTreeSet<u64>>().len(), bans.len());
}

/// What happens in the model, each after this many seconds.
#[derive(Clone, Debug)]
enum Step {
    /// The ban of a target changes: it lasts this many seconds more, or ends.
    Change(u8, Option<u64>),
    /// The allowlist changes.
    Allow(u8, bool),
    /// A client asks this replica; its answer may be lost.
    Poll { client: usize, replica: usize, lost: bool },
    /// A replica restarts.
    Restart(usize),
    /// A client restarts and keeps what it had.
    Start(usize),
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let step = prop_oneof![
        4 => (0..12_u8, prop::option::of(2..120_u64)).prop_map(|(target, length)| Step::Change(target, length)),
        1 => (0..12_u8, any::<bool>()).prop_map(|(target, on)| Step::Allow(target, on)),
        8 => (0..2_usize, 0..3_usize, prop::bool::weighted(0.1))
            .prop_map(|(client, replica, lost)| Step::Poll { client, replica, lost }),
        1 => (0..3_usize).prop_map(Step::Restart),
        1 => (0..2_usize).prop_map(Step::Start),
    ];
    prop::collection::vec((0..8_u64, step), 1..120)
}

/// Targets that contain each other.
fn numbered(number: u8) -> Target {
    let all = [
        "192.0.2.0/28",
        "192.0.2.0/30",
        "192.0.2.1",
        "192.0.2.2",
        "192.0.2.9",
        "192.0.2.8/29",
        "198.51.100.1",
        "198.51.100.0/24",
        "2001:db8::/64",
        "2001:db8::1",
        "2001:db8::/32",
        "203.0.113.5",
    ];
    target(all[usize::from(number) % all.len()])
}

/// A client that applies each answer in its order, and ends no ban by itself.
#[derive(Default)]
struct Model {
    blocked: BTreeMap<Target, Expiry>,
    /// New values first, as Traefik does; otherwise deleted ones first.
    new_first: bool,
}

impl Model {
    fn take(&mut self, decisions: &[Decision]) {
        let (new, deleted): (Vec<&Decision>, Vec<&Decision>) = decisions.iter().partition(|one| one.until.is_some());
        let both = new.iter().any(|one| deleted.iter().any(|other| one.value == other.value));
        assert!(!both, "a value is in both lists: {decisions:?}");
        let order = if self.new_first { [new, deleted] } else { [deleted, new] };
        for one in order.into_iter().flatten() {
            match one.until {
                Some(until) => drop(self.blocked.insert(one.value, until)),
                None => drop(self.blocked.remove(&one.value)),
            }
        }
    }
}

proptest! {
    /// Clients that poll random replicas, lose answers, restart, and end nothing by themselves block exactly what the table says after
    /// they have asked any one replica for a while.
    #[test]
    fn clients_of_any_replicas_converge_to_the_table(steps in steps(), last in 0..3_usize) {
        let mut now = 1;
        let mut bans: BTreeMap<Target, Expiry> = BTreeMap::new();
        let mut ended: BTreeSet<Target> = BTreeSet::new();
        let mut allowed: BTreeSet<Target> = BTreeSet::new();
        let list = |allowed: &BTreeSet<Target>| Allowlist {
            configured: Vec::new(),
            operators: allowed.iter().map(|target| (*target, true)).collect(),
        };
        let mut replicas: Vec<(Published, Clients)> = (0..3).map(|_| (published(&[]), Clients::default())).collect();
        let mut models = [Model::default(), Model { new_first: true, ..Model::default() }];
        let mut before = [false; 2];
        let poll = |replica: &mut (Published, Clients), ended: &BTreeSet<Target>, client: usize, startup: bool, now: u64| {
            let (published, clients) = replica;
            published.tick(at(now), steady(now));
            let window = clients.poll(identity(u32::try_from(client).unwrap()), startup, steady(now));
            let changes = match window {
                Window::Full => None,
                Window::Since(from) => published.since(from, at(now)),
            };
            if changes.is_none() {
                // Written, whether it arrives or not.
                clients.answered(&identity(u32::try_from(client).unwrap()));
            }
            changes.unwrap_or_else(|| {
                let mut all = published.snapshot(at(now));
                let gone = ended.iter().filter(|value| all.binary_search_by_key(value, |one| &one.value).is_err());
                let gone: Vec<Decision> = gone.map(|value| Decision { value: *value, until: None }).collect();
                all.extend(gone);
                all
            })
        };
        for (pause, step) in steps {
            now += pause;
            match step {
                Step::Change(number, length) => {
                    let (target, end) = (numbered(number), length.and_then(|length| until(now + length)));
                    match end {
                        Some(end) => drop(bans.insert(target, end)),
                        None => drop(bans.remove(&target)),
                    }
                    for (published, _) in &mut replicas {
                        published.tick(at(now), steady(now));
                        published.apply(target, end, at(now), steady(now));
                    }
                }
                Step::Allow(number, on) => {
                    let target = numbered(number);
                    if on { allowed.insert(target); } else { allowed.remove(&target); }
                    for (published, _) in &mut replicas {
                        published.allow(&list(&allowed), steady(now));
                    }
                }
                Step::Poll { client, replica, lost } => {
                    let decisions = poll(&mut replicas[replica], &ended, client, false, now);
                    // Two answers in a row are not lost.
                    let lost = lost && !std::mem::replace(&mut before[client], lost);
                    before[client] = lost;
                    if !lost {
                        models[client].take(&decisions);
                    }
                }
                Step::Restart(replica) => {
                    let mut fresh = Published::default();
                    fresh.replace(bans.clone(), &list(&allowed), at(now), steady(now));
                    replicas[replica] = (fresh, Clients::default());
                }
                Step::Start(client) => {
                    let decisions = poll(&mut replicas[client % 3], &ended, client, true, now);
                    models[client].take(&decisions);
                }
            }
            // The table remembers what was ever banned, and what networks are cut into.
            let exempt = Exempt::new(&list(&allowed));
            for target in bans.keys() {
                ended.insert(*target);
                ended.extend(exempt.pieces(*target));
            }
        }
        // The others are gone: a balancer sends everybody to one replica, where an answer may be lost first.
        for round in 0..4 {
            now += 10;
            for (client, model) in models.iter_mut().enumerate() {
                let decisions = poll(&mut replicas[last], &ended, client, false, now);
                if round > 0 || before[client] {
                    model.take(&decisions);
                }
            }
        }
        bans.retain(|_, until| !until.has_passed(at(now)));
        let exempt = Exempt::new(&list(&allowed));
        let host = |model: &Model, address: Target| model.blocked.keys().any(|value| value.covers(address));
        for model in &models {
            for number in 0..12 {
                let network = numbered(number);
                for address in [network.bits(), network.bits() | !mask(network.prefix128())] {
                    let address = Target::from_bits(address, 128);
                    let banned = bans.keys().any(|ban| ban.covers(address)) && exempt.status(address) == Status::Clean;
                    prop_assert_eq!(host(model, address), banned, "{} at {}", address, now);
                }
            }
        }
        let snapshot: BTreeMap<Target, Option<Expiry>> =
            replicas[last].0.snapshot(at(now)).into_iter().map(|one| (one.value, one.until)).collect();
        for model in &models {
            let blocked: BTreeMap<Target, Option<Expiry>> =
                model.blocked.iter().map(|(value, until)| (*value, Some(*until))).collect();
            prop_assert_eq!(&blocked, &snapshot);
        }
    }
}

#[test]
fn an_allowed_network_with_an_allowed_address_inside_is_exempt() {
    let status = |inside| {
        Exempt::new(&allow(&[], &[("192.0.2.0/24", true), ("192.0.2.1", inside)])).status(target("192.0.2.0/24"))
    };
    assert_eq!((status(true), status(false)), (Status::Exempt, Status::Mixed));
}

#[test]
fn values_that_lately_lost_their_ban_are_listed() {
    let mut published = Published::default();
    assert!(!published.is_complete());
    published.replace([(target("192.0.2.1"), until(10).unwrap())], &Allowlist::default(), at(0), steady(0));
    assert!(published.is_complete() && published.recent_without_ban().is_empty());
    published.apply(target("192.0.2.2"), until(100), at(1), steady(1));
    published.tick(at(10), steady(10));
    assert_eq!(published.recent_without_ban(), [target("192.0.2.1")]);
}

#[test]
fn an_address_is_covered_by_its_network_or_by_itself_if_part_of_the_network_is_exempt() {
    let mut published = published(&[("192.0.2.0/24", 100)]);
    let covering = |published: &Published| -> Vec<String> {
        published.covering(target("192.0.2.1"), at(1)).iter().map(|one| one.value.to_string()).collect()
    };
    assert_eq!(covering(&published), ["192.0.2.0/24"]);
    published.allow(&allow(&["192.0.2.9"], &[]), steady(1));
    assert_eq!(covering(&published), ["192.0.2.1"]);
}
