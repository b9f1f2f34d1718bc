use std::time::Duration;

use super::*;
use banmesh_feeds::keeping::{Outcome, Pace};
use banmesh_feeds::list::{Format, Length, read};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

#[derive(Debug)]
struct Known(Address);

impl Spare for Known {
    fn spares(&self, source: Address, _: UnixMillis) -> Option<&'static str> {
        (source == self.0).then_some("somebody is at home there")
    }
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

/// Feeds with these effects, weights and lists, confirmed now.
fn feeds(all: &[(Effect, u32, &str)]) -> Feeds {
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let pace = Pace { interval: hours(1), floor: hours(0), keep: hours(24) };
    let rule = |(number, (effect, weight, _)): (usize, &(Effect, u32, &str))| FeedRule {
        name: format!("feed-{number}").into(),
        effect: *effect,
        weight: *weight,
        credit: "somebody".into(),
    };
    let rules: Vec<FeedRule> = all.iter().enumerate().map(rule).collect();
    let progress = vec![Progress::new(pace, NOW); rules.len()];
    let feeds = Feeds::new(rules, progress, vec![Arc::new(Known(address("11.0.0.9")))], Metrics::default());
    for (number, (_, _, text)) in all.iter().enumerate() {
        let list = read(text.as_bytes(), Format::Plain, Length::Announced).unwrap();
        let mut progress = feeds.status()[number].progress.clone();
        progress.after(Outcome::Changed { entries: list.entries, left_out: 0 }, NOW, 0);
        feeds.publish(number, Some(feeds.table().replaced(number, Some(&list))), progress);
    }
    feeds
}

#[test]
fn only_the_effect_ban_bans_until_its_list_ends_and_never_in_a_dry_run() {
    let feeds = feeds(&[
        (Effect::Ban, 3, "11.0.0.0/24"),
        (Effect::Weight, 3, "11.0.1.0/24"),
        (Effect::Observe, 3, "11.0.2.0/24"),
    ]);
    let mut reader = feeds.reader();
    let end = Expiry::at(NOW.plus(Duration::from_secs(24 * 3600)));
    assert_eq!(reader.banned_until(address("11.0.0.1"), NOW, || false), Some(end));
    for not in ["11.0.1.1", "11.0.2.1", "11.0.3.1"] {
        assert_eq!(reader.banned_until(address(not), NOW, || false), None, "{not}");
    }
    assert_eq!(reader.banned_until(address("11.0.0.1"), NOW.plus(Duration::from_secs(24 * 3600)), || false), None);
    assert_eq!(reader.banned_until(address("11.0.0.1"), NOW, || true), None);
    feeds.set_dry_run(true);
    assert_eq!(reader.banned_until(address("11.0.0.1"), NOW, || false), None);
    assert_eq!(feeds.status()[0].refusals, 1);
}

#[test]
fn a_first_failure_counts_what_the_heaviest_feed_says() {
    let feeds = feeds(&[
        (Effect::Weight, 2, "11.0.0.0/16"),
        (Effect::Weight, 4, "11.0.1.0/24"),
        (Effect::Observe, 9, "11.0.0.0/8"),
    ]);
    let mut reader = feeds.reader();
    let mut weigh = |source: &str, first| {
        let (weight, feed) = reader.weigh(address(source), first, NOW);
        (weight, feed.map(|feed| feed.to_string()))
    };
    assert_eq!(weigh("11.0.0.1", true), (2, Some("feed-0".to_owned())));
    assert_eq!(weigh("11.0.1.1", true), (4, Some("feed-1".to_owned())));
    assert_eq!(weigh("11.0.1.1", false), (1, None));
    assert_eq!(weigh("11.9.0.1", true), (1, None));
    assert_eq!(weigh("12.0.0.1", true), (1, None));
    let offences: Vec<u64> = feeds.status().iter().map(|feed| feed.offences).collect();
    assert_eq!(offences, [3, 2, 4]);
}

#[test]
fn known_sources_are_neither_banned_nor_weighed_and_why_says_so() {
    let feeds = feeds(&[(Effect::Ban, 5, "11.0.0.0/24")]);
    let mut reader = feeds.reader();
    assert_eq!(reader.banned_until(address("11.0.0.9"), NOW, || false), None);
    assert_eq!(reader.weigh(address("11.0.0.9"), true, NOW), (1, None));
    assert_eq!(feeds.about(address("11.0.0.9"), NOW)[0].spared, Some("somebody is at home there"));
    assert_eq!(feeds.about(address("11.0.0.8"), NOW)[0].spared, None);
    assert!(feeds.about(address("11.0.1.8"), NOW).is_empty());
}

#[test]
fn lists_are_swapped_while_readers_look() {
    let feeds = feeds(&[(Effect::Ban, 3, "11.0.0.1"), (Effect::Ban, 3, "11.1.0.0/16")]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reader = feeds.reader();
            while !done.load(Ordering::Relaxed) {
                assert!(reader.banned_until(address("11.0.0.1"), NOW, || false).is_some());
            }
        });
        for n in 0..200u32 {
            let text: String = (0..50).map(|m| format!("11.1.{}.{m}\n", n % 256)).collect();
            let list = read(text.as_bytes(), Format::Plain, Length::Unknown).unwrap();
            let progress = feeds.status()[1].progress.clone();
            feeds.publish(1, Some(feeds.table().replaced(1, Some(&list))), progress);
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}
