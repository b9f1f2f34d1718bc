use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::decisions::store::{self, Store};
use crate::decisions::view::View;
use banmesh_core::ban::{BanEntry, By, Cause, Decision};
use banmesh_core::follow::{Allowlist, Change, Form, MAX_BACKLOG, Traits};
use banmesh_core::hlc::{Hlc, Stamp};
use banmesh_core::ledger::{BanTerms, Ledger, Limits};
use banmesh_types::time::Expiry;

const DAY: Duration = Duration::from_secs(86_400);

/// What a fake place holds, and how it is to behave.
#[derive(Debug, Default)]
struct Held {
    entries: BTreeMap<Target, u32>,
    allowed: Vec<Target>,
    /// How often everything was replaced.
    replaced: usize,
    /// Every change fails.
    broken: bool,
    /// Something else changed the place.
    differs: bool,
}

#[derive(Debug, Default)]
struct Fake {
    held: Arc<Mutex<Held>>,
    next: BTreeMap<Target, u32>,
}

#[derive(Debug, thiserror::Error)]
#[error("the place is broken; mend it")]
struct Broken;

impl PlaceError for Broken {
    fn kind(&self) -> &'static str {
        "broken"
    }
}

impl Place for Fake {
    type Error = Broken;

    async fn open(&mut self) -> Result<Traits, Broken> {
        Ok(Traits { form: Form::Own, slow: false, expires: true })
    }

    async fn begin(&mut self, allowlist: &Allowlist) -> Result<(), Broken> {
        self.next.clear();
        self.allow(allowlist).await
    }

    async fn fill(&mut self, page: Vec<(Target, u32)>) -> Result<(), Broken> {
        self.next.extend(page);
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Broken> {
        let mut held = self.held.lock();
        held.entries = std::mem::take(&mut self.next);
        held.replaced += 1;
        held.differs = false;
        Ok(())
    }

    async fn change(&mut self, changes: Vec<Change>) -> Result<(), Broken> {
        let mut held = self.held.lock();
        if held.broken {
            return Err(Broken);
        }
        for change in changes {
            match change {
                Change::Add(target, until) | Change::Set(target, until) => drop(held.entries.insert(target, until)),
                Change::Remove(target) => drop(held.entries.remove(&target)),
            }
        }
        Ok(())
    }

    async fn allow(&mut self, allowlist: &Allowlist) -> Result<(), Broken> {
        self.held.lock().allowed.clone_from(&allowlist.configured);
        Ok(())
    }

    async fn look(&mut self, _: Sent<'_>) -> Result<Comparison, Broken> {
        Ok(if self.held.lock().differs {
            Comparison::Differs("a test changed it".to_owned())
        } else {
            Comparison::Unchanged
        })
    }
}

/// A store and a fake place that follows it.
struct Setting {
    store: StoreHandle,
    held: Arc<Mutex<Held>>,
    allowlist: watch::Sender<Vec<Target>>,
    health: Box<dyn Fn() -> Vec<PlaceHealth>>,
    _stop: tokio_util::sync::DropGuard,
}

fn start() -> Setting {
    let limits = Limits { max_bans: 200_000, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
    let ledger = Ledger::new("a".parse().unwrap(), limits, Hlc::default());
    let (_, writer) = View::new();
    let (store, handle) = Store::new(ledger, writer, None, Duration::from_secs(60), store::Metrics::default());
    let shutdown = CancellationToken::new();
    tokio::spawn(store.serve(shutdown.clone()));
    let allowlist = watch::Sender::new(Vec::new());
    let place = NewPlace { name: "fake".to_owned(), nat64: Nat64::default() };
    let following = Following::new(handle.clone(), allowlist.subscribe(), vec![place], &Metrics::default());
    let health = Box::new(following.health());
    let following = Arc::new(following);
    let held = Arc::new(Mutex::new(Held::default()));
    let mut fake = Fake { held: Arc::clone(&held), next: BTreeMap::new() };
    let (feeder, end) = (Arc::clone(&following), shutdown.clone());
    tokio::spawn(async move { feeder.feed(end).await });
    let end = shutdown.clone();
    tokio::spawn(async move { following.follow(0, &mut fake, end).await });
    Setting { store: handle, held, allowlist, health, _stop: shutdown.drop_guard() }
}

impl Setting {
    async fn ban(&self, target: Target) {
        let cause = Cause::new(By::Operator("ann".into()), "test");
        self.store.ban(target, BanTerms::new(Expiry::NEVER, DAY), cause).await.unwrap().unwrap();
    }

    /// Waits until `holds`.
    async fn until(&self, what: &str, holds: impl Fn(&Held) -> bool) {
        for _ in 0..2000 {
            if holds(&self.held.lock()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}: {:?}", (self.health)());
    }
}

fn target(n: u32) -> Target {
    Target::host(std::net::IpAddr::V4(n.into()).into())
}

#[tokio::test]
async fn a_place_has_the_bans_from_before_and_receives_changes() {
    let setting = start();
    setting.ban(target(0x0a00_0001)).await;
    setting.until("the first ban", |held| held.entries.len() == 1).await;
    setting.ban(target(0x0a00_0002)).await;
    setting.until("the second ban", |held| held.entries.len() == 2).await;
    setting.allowlist.send_replace(vec![target(0x0a00_0009)]);
    setting.until("the allowlist", |held| held.allowed == [target(0x0a00_0009)]).await;
    assert_eq!(setting.held.lock().replaced, 1, "a changed allowlist does not send everything again");
    let health = (setting.health)();
    assert_eq!((health[0].state, health[0].entries, health[0].error.as_ref()), (PlaceState::Current, 2, None));
}

#[tokio::test]
async fn a_failing_place_says_why_and_is_sent_everything_once_it_works() {
    let setting = start();
    setting.until("the first replacement", |held| held.replaced == 1).await;
    setting.held.lock().broken = true;
    setting.ban(target(0x0a00_0001)).await;
    while (setting.health)()[0].state != PlaceState::Failing {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!((setting.health)()[0].error.as_ref().is_some_and(|error| error.contains("mend it")));
    setting.held.lock().broken = false;
    setting.until("everything", |held| held.entries.len() == 1).await;
}

#[tokio::test]
async fn a_place_that_something_else_changed_is_sent_everything_again() {
    let setting = start();
    setting.ban(target(0x0a00_0001)).await;
    setting.until("the ban", |held| held.entries.len() == 1).await;
    let before = {
        let mut held = setting.held.lock();
        held.entries.clear();
        held.differs = true;
        held.replaced
    };
    setting.until("the repair", |held| held.entries.len() == 1 && held.replaced > before).await;
}

#[tokio::test]
async fn a_place_that_is_overrun_by_changes_is_sent_everything_again() {
    let setting = start();
    setting.until("the first replacement", |held| held.replaced == 1).await;
    setting.held.lock().broken = true;
    let targets: Vec<Target> = (0..=u32::try_from(MAX_BACKLOG).unwrap()).map(|n| target(0x0b00_0000 + n)).collect();
    let stamp = Stamp { hlc: Hlc(1), node: "b".parse().unwrap() };
    let cause = Arc::new(Cause::new(By::Operator("ann".into()), "test"));
    let banned = Decision::Banned { until: Expiry::NEVER };
    let entry = BanEntry::by_operator(stamp, banned, cause, 1, Expiry::NEVER);
    setting.store.merge(targets.iter().map(|target| (*target, entry.clone())).collect()).await.unwrap();
    setting.held.lock().broken = false;
    setting.until("everything", |held| held.entries.len() == targets.len()).await;
}
