use std::net::IpAddr;

use super::*;
use crate::decisions::view::{Reader, View};
use banmesh_core::attempts::Recognised;
use banmesh_core::ban::By;
use banmesh_core::policy::BanPolicy;
use banmesh_types::time::UnixMillis;

const DAY: Duration = Duration::from_secs(86_400);

fn policy() -> Arc<BanPolicy> {
    Arc::new(BanPolicy {
        max_attempts: 5,
        time_window: Duration::from_secs(600),
        initial_ban_time: Duration::from_secs(300),
        max_ban_time: DAY,
        escalation_factor: 2.0,
        max_memory_ttl: 3 * DAY,
    })
}

fn start(node: &str) -> (StoreHandle, Reader, CancellationToken) {
    let limits = Limits { max_bans: 1000, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
    let ledger = Ledger::new(node.parse().unwrap(), limits, Hlc::default());
    let (view, writer) = View::new();
    let (store, handle) = Store::new(ledger, writer, None, Duration::from_secs(60), Metrics::default());
    let shutdown = CancellationToken::new();
    tokio::spawn(store.serve(shutdown.clone()));
    (handle, view.reader(), shutdown)
}

fn order(target: &str) -> BanOrder {
    let target = target.parse().unwrap();
    let by = Recognised { filter: "sshd".into(), rule: "failed-password".into() };
    BanOrder { target, by, attempts: 5, policy: policy() }
}

fn by_ann() -> Cause {
    Cause::new(By::Operator("ann".into()), "test")
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn acknowledged_changes_reach_readers_and_subscribers() {
    let (store, mut reader, _shutdown) = start("a");
    let mut changes = store.subscribe();
    store.offence(order("192.0.2.1")).await.unwrap();
    let change = store
        .ban("2001:db8::/64".parse().unwrap(), BanTerms::new(Expiry::NEVER, DAY), by_ann())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(change.after.ban_end(), Some(Expiry::NEVER));
    let now = clock::now();
    assert!(reader.banned_until(ip("192.0.2.1").into(), now).is_some());
    assert_eq!(reader.banned_until(ip("2001:db8::7").into(), now), Some(Expiry::NEVER));
    let mut received = 0;
    while received < 2 {
        let batch = changes.recv().await.unwrap();
        assert_eq!(batch.source, Source::Local);
        received += batch.changes.len();
    }
    store.unban("2001:db8::/64".parse().unwrap(), by_ann()).await.unwrap().unwrap();
    assert_eq!(reader.banned_until(ip("2001:db8::7").into(), now), None);
    assert!(matches!(
        store.unban("192.0.2.0/24".parse().unwrap(), by_ann()).await.unwrap(),
        Err(Refused::NotBanned { .. })
    ));
    assert_eq!(store.summary().await.unwrap().active, 1);
}

#[tokio::test]
async fn stores_that_exchange_all_entries_converge() {
    let (a, mut reader, _a) = start("a");
    let (b, _, _b) = start("b");
    for n in 0..50 {
        a.offence(order(&format!("192.0.2.{n}"))).await.unwrap();
        b.offence(order(&format!("192.0.2.{}", n + 25))).await.unwrap();
    }
    for (from, to) in [(&a, &b), (&b, &a)] {
        let mut below = usize::MAX;
        while below != 0 {
            let page = from.scan(below, 7, None).await.unwrap();
            below = page.below;
            to.merge(page.entries).await.unwrap();
        }
    }
    assert_eq!(a.digests().await.unwrap(), b.digests().await.unwrap());
    assert_eq!(a.summary().await.unwrap().active, 75);
    assert!(reader.banned_until(ip("192.0.2.74").into(), clock::now()).is_some());
}

#[tokio::test]
async fn a_scan_of_digests_changes_where_an_entry_does_and_entries_are_found_by_target() {
    let (store, _, _shutdown) = start("a");
    for n in 0..20 {
        store.offence(order(&format!("192.0.2.{n}"))).await.unwrap();
    }
    let (all, none) = (Arc::new([true; BUCKETS]), Arc::new([false; BUCKETS]));
    let scan = async |buckets: &Arc<[bool; BUCKETS]>| {
        let (mut found, mut below) = (std::collections::HashMap::new(), usize::MAX);
        while below != 0 {
            let page = store.scan_digests(below, 7, Arc::clone(buckets)).await.unwrap();
            below = page.below;
            found.extend(page.digests);
        }
        found
    };
    let before = scan(&all).await;
    assert_eq!((before.len(), scan(&none).await.len()), (20, 0));
    let (changed, absent): (Target, Target) = ("192.0.2.7".parse().unwrap(), "192.0.2.99".parse().unwrap());
    store.unban(changed, by_ann()).await.unwrap().unwrap();
    let after = scan(&all).await;
    let different: Vec<_> = before.iter().filter(|(target, digest)| after[*target] != **digest).collect();
    assert_eq!(different, [(&changed, &before[&changed])]);
    let found = store.entries(vec![changed, absent]).await.unwrap();
    assert_eq!(found, [(changed, store.entry(changed).await.unwrap().unwrap())]);
}

#[tokio::test]
async fn a_scan_by_time_returns_only_entries_written_in_the_range() {
    let (store, _, _shutdown) = start("a");
    for n in 0..100 {
        store.offence(order(&format!("192.0.2.{n}"))).await.unwrap();
    }
    let all = store.scan(usize::MAX, usize::MAX, None).await.unwrap().entries;
    let mut stamps: Vec<Hlc> = all.iter().map(|(_, entry)| entry.latest().hlc).collect();
    stamps.sort_unstable();
    let (from, to) = (stamps[20], stamps[29]);
    let (mut found, mut below) = (Vec::new(), usize::MAX);
    while below != 0 {
        let page = store.scan_written(below, 7, from..=to).await.unwrap();
        below = page.below;
        found.extend(page.entries.into_iter().map(|(_, entry)| entry.latest().hlc));
    }
    found.sort_unstable();
    assert_eq!(found, stamps[20..=29]);
}

#[tokio::test]
async fn queued_commands_are_applied_on_shutdown() {
    let (store, mut reader, shutdown) = start("a");
    for n in 0..20 {
        store.offence(order(&format!("192.0.2.{n}"))).await.unwrap();
    }
    shutdown.cancel();
    while store.summary().await.is_ok() {}
    assert!((0..20).all(|n| reader.banned_until(ip(&format!("192.0.2.{n}")).into(), UnixMillis(0)).is_some()));
}

/// Changes that are applied together must be published in order. Otherwise the view and the journal would end with an outdated one.
#[tokio::test]
async fn local_and_remote_changes_of_a_target_are_published_in_order() {
    let limits = Limits { max_bans: 1000, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
    let (other, _, _other) = start("b");
    let target: Target = "192.0.2.1".parse().unwrap();
    let ban = other.ban(target, BanTerms::new(Expiry::NEVER, DAY), by_ann()).await.unwrap().unwrap().after;
    let unban = other.unban(target, by_ann()).await.unwrap().unwrap().after;
    for (first, then, banned) in [(Some(ban), None, false), (None, Some(unban), false)] {
        let ledger = Ledger::new("a".parse().unwrap(), limits, Hlc::default());
        let (view, writer) = View::new();
        let (store, handle) = Store::new(ledger, writer, None, Duration::from_secs(60), Metrics::default());
        // Everything is queued before the store begins, so that it is applied together.
        let answer = match (first, then) {
            (Some(ban), _) => {
                handle.merge_later(vec![(target, ban)]).await.unwrap();
                let lifting = handle.clone();
                tokio::spawn(async move { lifting.unban(target, by_ann()).await })
            }
            (None, lift) => {
                handle.offence(order("192.0.2.1")).await.unwrap();
                let (merging, lift) = (handle.clone(), lift.unwrap());
                let operator = lift.operator().unwrap().clone();
                let hlc = Hlc::first_of(clock::now().plus(Duration::from_secs(5)));
                let stamp = banmesh_core::hlc::Stamp { hlc, ..operator.stamp };
                let lift = BanEntry::by_operator(stamp, operator.value, operator.cause, lift.bans, lift.keep);
                merging.merge_later(vec![(target, lift)]).await.unwrap();
                tokio::spawn(async move { merging.unban(target, by_ann()).await })
            }
        };
        tokio::task::yield_now().await;
        let shutdown = CancellationToken::new();
        let mut changes = handle.subscribe();
        tokio::spawn(store.serve(shutdown.clone()));
        drop(answer.await.unwrap());
        let mut last = None;
        while let Ok(batch) = changes.try_recv() {
            last = batch.changes.last().map(|change| change.after.clone()).or(last);
        }
        assert_eq!(last, handle.entry(target).await.unwrap(), "the last published change is the current entry");
        assert_eq!(view.reader().banned_until(ip("192.0.2.1").into(), clock::now()).is_some(), banned);
    }
}

#[tokio::test]
async fn a_filter_on_a_node_without_the_allowlist_entry_does_not_override_it() {
    let (a, mut reader, _a) = start("a");
    let (b, _, _b) = start("b");
    let target: Target = "192.0.2.1".parse().unwrap();
    let allowed = a.allow(target, Expiry::NEVER, by_ann()).await.unwrap().unwrap().after;
    b.offence(order("192.0.2.1")).await.unwrap();
    let ban = b.entry(target).await.unwrap().unwrap();
    a.merge(vec![(target, ban)]).await.unwrap();
    b.merge(vec![(target, allowed)]).await.unwrap();
    for store in [&a, &b] {
        assert!(store.exempt().load().contains(ip("192.0.2.1").into()));
        let entry = store.entry(target).await.unwrap().unwrap();
        assert!(entry.is_allowed(clock::now()) && entry.filter().is_some());
    }
    assert_eq!(a.digests().await.unwrap(), b.digests().await.unwrap());
    // The view contains the ban, and the allowlist overrides it. When the allowlist entry expires, the ban takes effect.
    assert!(reader.banned_until(ip("192.0.2.1").into(), clock::now()).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_under_constant_load_answers_and_shuts_down() {
    let limits = Limits { max_bans: 1000, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
    let ledger = Ledger::new("a".parse().unwrap(), limits, Hlc::default());
    let (_, writer) = View::new();
    let (store, handle) = Store::new(ledger, writer, None, Duration::from_secs(60), Metrics::default());
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(store.serve(shutdown.clone()));
    let soon = Duration::from_secs(60);
    let floods: Vec<_> = (0..4)
        .map(|_| {
            let handle = handle.clone();
            let target: Target = "192.0.2.1".parse().unwrap();
            tokio::spawn(async move { while handle.seen_again(target, DAY).await.is_ok() {} })
        })
        .collect();
    for _ in 0..20 {
        tokio::time::timeout(soon, handle.probe()).await.unwrap().unwrap();
    }
    shutdown.cancel();
    tokio::time::timeout(soon, serving).await.unwrap().unwrap();
    assert_eq!(handle.probe().await, Err(StoreGone));
    for flood in floods {
        tokio::time::timeout(soon, flood).await.unwrap().unwrap();
    }
}

/// A store with `limits` whose clock continues after `last`, and its metrics.
fn start_limited(limits: Limits, last: Hlc) -> (StoreHandle, Metrics) {
    let (_, writer) = View::new();
    let metrics = Metrics::default();
    let ledger = Ledger::new("a".parse().unwrap(), limits, last);
    let (store, handle) = Store::new(ledger, writer, None, Duration::from_secs(60), metrics.clone());
    tokio::spawn(store.serve(CancellationToken::new()));
    (handle, metrics)
}

/// The bans refused because the table was full, and because of the clock.
fn refusals(metrics: &Metrics) -> (u64, u64) {
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
    let value = |name: &str| page.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap();
    (value("banmesh_bans_refused_full_total "), value("banmesh_bans_failed_total{reason=\"clock\"} "))
}

#[tokio::test]
async fn only_bans_refused_by_a_full_table_count_as_refused_full() {
    let limits = Limits { max_bans: 0, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
    let (store, metrics) = start_limited(limits, Hlc::default());
    store.offence(order("192.0.2.1")).await.unwrap();
    store.summary().await.unwrap();
    assert_eq!(refusals(&metrics), (1, 0));

    // No stamp is left.
    let limits = Limits { max_bans: 10, max_clock_drift: Duration::MAX, max_ban_time: DAY };
    let (store, metrics) = start_limited(limits, Hlc(u64::MAX));
    store.offence(order("192.0.2.1")).await.unwrap();
    assert_eq!(store.summary().await.unwrap().entries, 0);
    assert_eq!(refusals(&metrics), (0, 1));
}
