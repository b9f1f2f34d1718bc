use serde_json::Value;

use super::*;
use crate::clock;
use crate::decisions::store::{self, Store};
use crate::decisions::view::View;
use crate::enforcement::follower::Place as _;
use crate::enforcement::published::PublishedPlace;
use banmesh_core::ban::{By, Cause};
use banmesh_core::follow::Allowlist;
use banmesh_core::hlc::Hlc;
use banmesh_core::ledger::{BanTerms, Ledger, Limits};
use banmesh_types::target::Target;
use banmesh_types::time::Expiry;
use tokio_util::sync::CancellationToken;

const DAY: Duration = Duration::from_secs(86_400);

fn start() -> StoreHandle {
    let limits = Limits { max_bans: 1000, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
    let ledger = Ledger::new("a".parse().unwrap(), limits, Hlc::default());
    let (_, writer) = View::new();
    let (store, handle) = Store::new(ledger, writer, None, Duration::from_secs(60), store::Metrics::default());
    tokio::spawn(store.serve(CancellationToken::new()));
    handle
}

fn target(text: &str) -> Target {
    text.parse().unwrap()
}

async fn published(targets: &[&str], allowlist: &Allowlist) -> PublishedBans {
    let bans = PublishedBans::default();
    let mut place = PublishedPlace::new(bans.clone());
    let until = Expiry::at(clock::now().plus(DAY)).seconds();
    place.begin(allowlist).await.unwrap();
    place.fill(targets.iter().map(|text| (target(text), until)).collect()).await.unwrap();
    place.commit().await.unwrap();
    bans
}

async fn full(bans: &PublishedBans, store: &StoreHandle, query: &[(String, String)]) -> (Vec<String>, Vec<String>) {
    let snapshot = bans.snapshot().await;
    let filter = Filter::of_stream(query);
    let answer = Answer::full(snapshot, bans.clone(), store.clone(), filter, Metrics::default());
    let json: Value = serde_json::from_str(&answer.collect().await.unwrap()).unwrap();
    let values = |list: &str| {
        let decisions = json[list].as_array().unwrap().iter();
        decisions.map(|decision| decision["value"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    (values("new"), values("deleted"))
}

#[tokio::test]
async fn a_value_is_in_one_list_even_if_the_table_has_changed_meanwhile() {
    let store = start();
    let cause = || Cause::new(By::Operator("ann".into()), "test");
    for text in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        store.ban(target(text), BanTerms::new(Expiry::NEVER, DAY), cause()).await.unwrap().unwrap();
    }
    for text in ["192.0.2.1", "192.0.2.2"] {
        store.unban(target(text), cause()).await.unwrap().unwrap();
    }
    // The published bans have not received the unban of the first address yet.
    let bans = published(&["192.0.2.1", "192.0.2.3"], &Allowlist::default()).await;
    let (new, deleted) = full(&bans, &store, &[]).await;
    assert_eq!((new, deleted), (vec!["192.0.2.1".to_owned(), "192.0.2.3".to_owned()], vec!["192.0.2.2".to_owned()]));
}

#[tokio::test]
async fn a_network_around_an_exempt_address_is_deleted_as_a_whole() {
    let store = start();
    let cause = Cause::new(By::Filter("sshd".into()), "test");
    store.ban(target("192.0.2.0/30"), BanTerms::new(Expiry::NEVER, DAY), cause).await.unwrap().unwrap();
    let allowlist = Allowlist { configured: vec![target("192.0.2.1")], ..Allowlist::default() };
    let bans = published(&["192.0.2.0/30"], &allowlist).await;
    let (new, deleted) = full(&bans, &store, &[]).await;
    assert_eq!(
        (new, deleted),
        (vec!["192.0.2.0".to_owned(), "192.0.2.2/31".to_owned()], vec!["192.0.2.0/30".to_owned()])
    );
    let only_hosts = [("scopes".to_owned(), "ip".to_owned())];
    assert_eq!(full(&bans, &store, &only_hosts).await, (vec!["192.0.2.0".to_owned()], Vec::new()));
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_count_as_told() {
    let (store, bans) = (start(), published(&["192.0.2.1"], &Allowlist::default()).await);
    let answered = Arc::new(Mutex::new(0));
    let answer = || {
        let counted = Arc::clone(&answered);
        let changes = bans.read(|published, now| published.snapshot(now));
        let answer = Answer::changes(changes, store.clone(), Filter::of_stream(&[]), Metrics::default());
        answer.when_written(move || *counted.lock() += 1)
    };
    let mut parts = Box::pin(answer().into_stream());
    let _ = futures_util::StreamExt::next(&mut parts).await;
    drop(parts);
    assert_eq!(*answered.lock(), 0);
    answer().collect().await.unwrap();
    assert_eq!(*answered.lock(), 1);
}

#[tokio::test]
async fn a_lookup_without_a_result_is_null() {
    let (store, filter) = (start(), Filter::of_lookup(&[]));
    let answer = Answer::changes(Vec::new(), store, filter, Metrics::default()).in_form(Form::List);
    assert_eq!(answer.collect().await.unwrap(), "null");
}
