use super::*;
use banmesh_core::attempts::{JailId, Recognised};
use banmesh_core::hlc::Hlc;
use banmesh_types::address::Address;
use banmesh_types::nat64::Nat64;
use banmesh_types::netset::NetSet;

use crate::decisions::store::{self, Store};
use crate::decisions::view::View;
use banmesh_core::ledger::{Ledger, Limits};
use banmesh_core::policy::{BanPolicy, Scope};

const DAY: Duration = Duration::from_secs(86_400);
/// A generous timeout for what takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(60);

fn rules() -> Rules {
    let general = BanPolicy {
        max_attempts: 5,
        time_window: Duration::from_secs(600),
        initial_ban_time: Duration::from_secs(300),
        max_ban_time: DAY,
        escalation_factor: 2.0,
        max_memory_ttl: 3 * DAY,
    };
    let scope = Scope {
        ipv4_prefix: 32,
        ipv6_prefix: 64,
        allowlist: NetSet::default(),
        own: NetSet::default(),
        nat64: Nat64::default(),
        dry_run: false,
    };
    Rules {
        scope: Arc::new(scope),
        general: Arc::new(general),
        own: std::collections::HashMap::new(),
        success_clears: true,
        evidence: Arc::default(),
    }
}

fn offence(source: u32) -> Offence {
    Offence {
        source: Address::new(std::net::IpAddr::V4(source.into())),
        by: Recognised { filter: "sshd".into(), rule: "failed-password".into() },
        jail: JailId::GENERAL,
        echo: None,
        kind: Kind::Failure,
        times: 1,
        account: None,
        unknown: false,
    }
}

/// A judge with its store, both not running yet.
fn judge() -> (JudgeTask, OffenceSender, Store) {
    let limits = Limits { max_bans: 1000, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
    let ledger = Ledger::new("a".parse().unwrap(), limits, Hlc::default());
    let (view, writer) = View::new();
    let (store, handle) = Store::new(ledger, writer, None, SOON, store::Metrics::default());
    let rules = Arc::new(ArcSwap::from_pointee(rules()));
    let (judge, offence_sender) = JudgeTask::new(1000, rules, handle, view.reader(), None, Metrics::default());
    (judge, offence_sender, store)
}

#[tokio::test]
async fn a_judge_without_inputs_keeps_answering() {
    let (judge, offence_sender, store) = judge();
    let (handle, shutdown) = (judge.handle(), CancellationToken::new());
    drop(offence_sender);
    let store = tokio::spawn(store.serve(CancellationToken::new()));
    let serving = tokio::spawn(judge.serve(shutdown.clone()));
    for _ in 0..100 {
        tokio::time::timeout(SOON, handle.probe()).await.unwrap().unwrap();
    }
    assert!(!serving.is_finished());
    shutdown.cancel();
    tokio::time::timeout(SOON, serving).await.unwrap().unwrap();
    drop(store);
}

#[tokio::test]
async fn a_judge_whose_store_is_gone_ends() {
    let (judge, _bench, store) = judge();
    let serving = tokio::spawn(judge.serve(CancellationToken::new()));
    drop(store);
    tokio::time::timeout(SOON, serving).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_judge_under_constant_load_answers_and_shuts_down() {
    let (judge, offence_sender, store) = judge();
    let (handle, shutdown) = (judge.handle(), CancellationToken::new());
    let _store = tokio::spawn(store.serve(CancellationToken::new()));
    let serving = tokio::spawn(judge.serve(shutdown.clone()));
    let enough = CancellationToken::new();
    let flood = std::thread::spawn({
        let enough = enough.clone();
        move || {
            for source in (0..u32::MAX).cycle() {
                offence_sender.send(offence(source % 50_000));
                if enough.is_cancelled() {
                    return;
                }
            }
        }
    });
    for _ in 0..20 {
        tokio::time::timeout(SOON, handle.probe()).await.unwrap().unwrap();
    }
    shutdown.cancel();
    let ended = tokio::time::timeout(SOON, serving).await;
    enough.cancel();
    flood.join().unwrap();
    ended.unwrap().unwrap();
}
