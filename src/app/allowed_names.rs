//! The names in `allowlist`. They are resolved again and again, apart from everything else: a name server that does not answer delays
//! neither the start nor a reload. [`answers`] decides what a name stands for.

mod answers;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _};
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::answers::Answers;
use super::own_addresses;
use super::supervisor::Restart;
use crate::config::allowlist::Allowlist;
use banmesh_core::judge::Rules;
use banmesh_types::nat64::Nat64;
use banmesh_types::netset::NetSet;
use banmesh_types::target::Target;

/// How long the answer for one name may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How soon names are resolved again if one of them could not be.
const RETRY: Duration = Duration::from_secs(30);

/// How many names are resolved at once.
const AT_ONCE: usize = 8;

/// Resolves a name to its addresses.
pub type Resolve = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// The allowlist of the configuration, with the addresses of its names; clones share it.
#[derive(Clone, Debug, Default)]
pub struct AllowedNames {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    list: Mutex<(Vec<Target>, Duration)>,
    answers: Mutex<Answers>,
    replaced: Notify,
    unresolved: Gauge,
}

impl AllowedNames {
    /// The names of `list`, which are resolved at this interval.
    pub fn new(list: Allowlist, interval: Duration) -> Self {
        let this = Self::default();
        this.replace(list, interval);
        this
    }

    /// Registers the metric.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "banmesh_allowlist_names_unresolved",
            "Names in the allowlist that could not be resolved the last time",
            self.shared.unresolved.clone(),
        );
    }

    /// Replaces the list. Names that were in the old one keep their addresses.
    pub fn replace(&self, list: Allowlist, interval: Duration) {
        self.shared.answers.lock().keep(&list.names);
        *self.shared.list.lock() = (list.targets, interval);
        self.count();
        self.shared.replaced.notify_one();
    }

    /// All addresses and networks that are allowed now.
    pub fn targets(&self, nat64: &Nat64) -> NetSet {
        let mut targets = self.shared.list.lock().0.clone();
        targets.extend(self.shared.answers.lock().targets());
        targets.into_iter().map(|target| nat64.target(target)).collect()
    }

    /// What is wrong with the names, for an operator.
    pub fn problem(&self) -> Option<String> {
        self.shared.answers.lock().problem(Instant::now())
    }

    fn count(&self) {
        let unresolved = self.shared.answers.lock().unresolved();
        self.shared.unresolved.set(i64::try_from(unresolved).unwrap_or(i64::MAX));
    }
}

/// Keeps the addresses of the names current.
pub struct NameResolver {
    names: AllowedNames,
    rules: Arc<ArcSwap<Rules>>,
    /// What HAProxy's map must not have.
    mirrored: watch::Sender<Vec<Target>>,
    resolve: Resolve,
}

impl fmt::Debug for NameResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NameResolver").field("names", &self.names).finish_non_exhaustive()
    }
}

impl NameResolver {
    /// Resolves with this host's resolver.
    pub fn new(names: AllowedNames, rules: Arc<ArcSwap<Rules>>, mirrored: watch::Sender<Vec<Target>>) -> Self {
        Self { names, rules, mirrored, resolve: Arc::new(|name| Box::pin(system(name))) }
    }

    /// Resolves all names once. Returns when to do so again; `None` if there is no name.
    async fn round(&self) -> Option<Duration> {
        let shared = &self.names.shared;
        let names = shared.answers.lock().names();
        if names.is_empty() {
            return None;
        }
        let ask = |name: String| async {
            let answer = tokio::time::timeout(TIMEOUT, (self.resolve)(name.clone())).await;
            let answer = match answer {
                Ok(answer) => answer.map_err(|error| error.to_string()),
                Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
            };
            (name, answer)
        };
        let mut asked = stream::iter(names).map(ask).buffer_unordered(AT_ONCE);
        while let Some((name, answer)) = asked.next().await {
            let changed = shared.answers.lock().take(&name, answer, Instant::now());
            if let Some(addresses) = changed {
                info!(name, ?addresses, "the addresses of a name in the allowlist changed");
                self.publish();
            }
            self.names.count();
        }
        let interval = shared.list.lock().1;
        let unresolved = shared.answers.lock().unresolved();
        Some(if unresolved > 0 { interval.min(RETRY) } else { interval })
    }

    fn publish(&self) {
        self.rules.rcu(|rules| {
            let mut rules = Rules::clone(rules);
            let scope = Arc::make_mut(&mut rules.scope);
            scope.allowlist = self.names.targets(&scope.nat64);
            rules
        });
        self.mirrored.send_replace(own_addresses::mirrored(&self.rules.load()));
    }
}

impl Restart for NameResolver {
    async fn serve(&mut self, shutdown: CancellationToken) {
        let names = self.names.clone();
        let replaced = || names.shared.replaced.notified();
        while let Some(next) = shutdown.run_until_cancelled(self.round()).await {
            let wait = async {
                match next {
                    Some(next) => _ = tokio::time::timeout(next, replaced()).await,
                    None => replaced().await,
                }
            };
            if shutdown.run_until_cancelled(wait).await.is_none() {
                return;
            }
        }
    }
}

/// Asks this host's resolver (`getaddrinfo`).
async fn system(name: String) -> io::Result<Vec<IpAddr>> {
    Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::app::settings;
    use crate::config::Config;
    use crate::inputs::detect::Detection;

    type Zone = Arc<Mutex<BTreeMap<String, Vec<IpAddr>>>>;

    fn list(names: &[&str]) -> Allowlist {
        let targets = vec!["198.51.100.0/24".parse().unwrap()];
        Allowlist { targets, names: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    /// A resolver that answers from `zone`, and not at all for `silent.example`.
    fn resolver(names: &AllowedNames, zone: &Zone) -> NameResolver {
        let detection = Detection::new(banmesh_filter::Detector::default());
        let rules = settings::judge(&Config::default(), &detection, names);
        let zone = Arc::clone(zone);
        let resolve: Resolve = Arc::new(move |name| {
            let answer = zone.lock().get(&name).cloned();
            Box::pin(async move {
                if name == "silent.example" {
                    std::future::pending::<()>().await;
                }
                answer.ok_or_else(|| io::Error::other("no such host"))
            })
        });
        let rules = Arc::new(ArcSwap::from_pointee(rules));
        NameResolver { names: names.clone(), rules, mirrored: watch::Sender::new(Vec::new()), resolve }
    }

    fn allows(resolver: &NameResolver, address: &str) -> bool {
        resolver.rules.load().scope.allowlist.matching(address.parse().unwrap()).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_resolved_again_and_their_last_addresses_stay() {
        let zone = Zone::default();
        zone.lock().insert("home.example".to_owned(), vec!["192.0.2.1".parse().unwrap()]);
        let names = AllowedNames::new(list(&["home.example"]), Duration::from_secs(300));
        let resolver = resolver(&names, &zone);
        assert!(!allows(&resolver, "192.0.2.1") && allows(&resolver, "198.51.100.7"), "before the first answer");
        assert_eq!(resolver.round().await, Some(Duration::from_secs(300)));
        assert!(allows(&resolver, "192.0.2.1") && allows(&resolver, "198.51.100.7"));
        assert!(resolver.mirrored.borrow().contains(&"192.0.2.1".parse().unwrap()));
        zone.lock().clear();
        assert_eq!(resolver.round().await, Some(RETRY), "sooner, because it failed");
        assert!(allows(&resolver, "192.0.2.1") && names.problem().unwrap().contains("no such host"));
        assert_eq!(names.shared.unresolved.get(), 1);
        zone.lock().insert("home.example".to_owned(), vec!["192.0.2.9".parse().unwrap()]);
        resolver.round().await;
        assert!(allows(&resolver, "192.0.2.9") && !allows(&resolver, "192.0.2.1"));
        assert_eq!((names.problem(), names.shared.unresolved.get()), (None, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_server_that_does_not_answer_delays_no_other_name() {
        let zone = Zone::default();
        zone.lock().insert("home.example".to_owned(), vec!["192.0.2.1".parse().unwrap()]);
        let names = AllowedNames::new(list(&["silent.example", "home.example"]), Duration::from_secs(300));
        let resolver = resolver(&names, &zone);
        let first = tokio::time::timeout(Duration::from_secs(1), resolver.round()).await;
        assert!(first.is_err() && allows(&resolver, "192.0.2.1"), "the other name is resolved meanwhile");
        resolver.round().await;
        assert!(names.problem().unwrap().contains("silent.example for"), "{:?}", names.problem());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_resolves_new_names_at_once_and_drops_old_ones() {
        let zone = Zone::default();
        zone.lock().insert("a.example".to_owned(), vec!["192.0.2.1".parse().unwrap()]);
        zone.lock().insert("b.example".to_owned(), vec!["192.0.2.2".parse().unwrap()]);
        let names = AllowedNames::new(list(&["a.example"]), Duration::from_secs(86_400));
        let mut resolver = resolver(&names, &zone);
        let (rules, shutdown) = (Arc::clone(&resolver.rules), CancellationToken::new());
        let mut published = resolver.mirrored.subscribe();
        let end = shutdown.clone();
        let served = tokio::spawn(async move { resolver.serve(end).await });
        published.changed().await.unwrap();
        names.replace(list(&["b.example"]), Duration::from_secs(86_400));
        published.changed().await.unwrap();
        let allows = |address: &str| rules.load().scope.allowlist.matching(address.parse().unwrap()).is_some();
        assert!(allows("192.0.2.2") && !allows("192.0.2.1"));
        shutdown.cancel();
        served.await.unwrap();
    }

    #[tokio::test]
    async fn this_hosts_resolver_knows_localhost() {
        assert!(system("localhost".to_owned()).await.unwrap().iter().all(IpAddr::is_loopback));
    }
}
