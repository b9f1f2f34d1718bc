//! The places where bans hold besides the agent: made from the configuration, and run under the supervisor.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::lookup::Lookup;
use super::shutdown::Stage;
use super::supervisor::{Part, Restart, Supervisor};
use crate::cluster::ClusterHandle;
use crate::config::{Config, RuntimeSocket};
use crate::decisions::store::StoreHandle;
use crate::enforcement::firewall::{self, Ending, Firewall};
use crate::enforcement::follower::{Following, Metrics, NewPlace, Place, PlaceHealth};
use crate::enforcement::haproxy_map::{HaproxyMap, Socket};
use crate::enforcement::peers::BanPlace;
use crate::enforcement::published::{PublishedBans, PublishedPlace};
use crate::operation::Provider;
use banmesh_types::nat64::Nat64;
use banmesh_types::target::Target;

/// All places that follow the table.
#[derive(Debug)]
pub struct Places {
    following: Arc<Following>,
    store: StoreHandle,
    /// In the order of their numbers, before the firewall and the published bans.
    maps: Vec<HaproxyMap>,
    firewall: Option<Firewall>,
    ending: Option<Ending<Lookup>>,
    published: Option<PublishedPlace>,
    table: Option<BanPlace>,
}

impl Places {
    /// The places that the configuration names; `None` if it names none. `lookup` must say what the firewall holds.
    pub fn new(
        config: &Config,
        store: &StoreHandle,
        lookup: Lookup,
        allowlist: &watch::Sender<Vec<Target>>,
        bans: &PublishedBans,
        table: Option<BanPlace>,
        registry: &mut Registry,
    ) -> Option<Self> {
        let (mut new, mut maps) = (Vec::new(), Vec::new());
        let nat64 = |on: bool| {
            if on { Nat64::new(config.ban.nat64_prefixes.iter().copied()) } else { Nat64::default() }
        };
        let haproxy = &config.haproxy;
        for socket in haproxy.map.iter().flat_map(|map| haproxy.runtime.iter().map(move |socket| (map, socket))) {
            let (map, socket) = socket;
            let socket = match socket {
                RuntimeSocket::Unix(path) => Socket::Unix(path.clone()),
                RuntimeSocket::Tcp(address) => Socket::Tcp(address.to_string()),
            };
            new.push(NewPlace { name: format!("haproxy {socket}"), nat64: nat64(haproxy.nat64) });
            maps.push(HaproxyMap::new(socket, map.clone(), haproxy.verify_interval.0));
        }
        let firewall = config.firewall.enabled.then(|| {
            let config = &config.firewall;
            new.push(NewPlace { name: "firewall".to_owned(), nat64: nat64(config.nat64) });
            let metrics = firewall::Metrics::default();
            metrics.register(registry);
            let table = config.table.as_str().to_owned();
            let settings = firewall::FirewallConfig { table, hooks: config.hooks.clone(), reject: config.reject };
            Firewall::new(settings, metrics)
        });
        let ending = firewall.as_ref().filter(|_| config.firewall.end_connections).map(|firewall| {
            let metrics = firewall::ConnectionMetrics::default();
            metrics.register(registry);
            Ending::new(lookup, firewall.changed(), metrics)
        });
        // One copy for all clients that poll.
        let published = (config.crowdsec.enabled || config.lists.enabled).then(|| {
            new.push(NewPlace { name: "published bans".to_owned(), nat64: Nat64::default() });
            PublishedPlace::new(bans.clone())
        });
        if table.is_some() {
            let name = super::peers::TABLE.to_owned();
            new.push(NewPlace { name, nat64: nat64(haproxy.nat64) });
        }
        if new.is_empty() {
            return None;
        }
        let metrics = Metrics::default();
        metrics.register(registry);
        let following = Following::new(store.clone(), allowlist.subscribe(), new, &metrics);
        Some(Self { following: Arc::new(following), store: store.clone(), maps, firewall, ending, published, table })
    }

    /// The counters of the connections that are ended, if they are.
    pub fn connections(&self) -> Option<firewall::ConnectionMetrics> {
        self.ending.as_ref().map(Ending::metrics)
    }

    /// How all places are.
    pub fn health(&self) -> Provider<Vec<PlaceHealth>> {
        Arc::new(self.following.health())
    }

    /// Starts the feed and one part for each place.
    pub(super) fn start(self, supervisor: &mut Supervisor, cluster: Option<ClusterHandle>) {
        let feed = Feed { following: Arc::clone(&self.following), store: self.store, cluster };
        supervisor.run_again(Part::new("followers", Stage::Judge), feed);
        let mut index = 0;
        for map in self.maps {
            start(supervisor, &self.following, &mut index, map);
        }
        if let Some(firewall) = self.firewall {
            start(supervisor, &self.following, &mut index, firewall);
        }
        if let Some(ending) = self.ending {
            supervisor.run_again(Part::new("ending of connections", Stage::Judge), Ended(ending));
        }
        if let Some(published) = self.published {
            start(supervisor, &self.following, &mut index, published);
        }
        if let Some(table) = self.table {
            start(supervisor, &self.following, &mut index, table);
        }
    }
}

fn start<P: Place>(supervisor: &mut Supervisor, following: &Arc<Following>, index: &mut usize, place: P) {
    let name = following.name(*index);
    let part = Part::new(format!("follower {name}"), Stage::Judge);
    supervisor.run_again(part, Followed { following: Arc::clone(following), index: *index, place });
    *index += 1;
}

/// Feeds all places.
struct Feed {
    following: Arc<Following>,
    store: StoreHandle,
    cluster: Option<ClusterHandle>,
}

impl Restart for Feed {
    async fn serve(&mut self, shutdown: CancellationToken) {
        // A node that lost its disk must not empty the places before it has received the bans of the other nodes. One that has bans
        // fills them at once: after a reboot, the firewall has none.
        let knows_bans = self.store.summary().await.is_ok_and(|summary| summary.active > 0);
        if let Some(cluster) = self.cluster.as_ref().filter(|_| !knows_bans) {
            let _ = shutdown.run_until_cancelled(cluster.ready()).await;
        }
        self.following.feed(shutdown).await;
    }
}

/// Keeps one place current.
struct Followed<P> {
    following: Arc<Following>,
    index: usize,
    place: P,
}

impl<P: Place> Restart for Followed<P> {
    async fn serve(&mut self, shutdown: CancellationToken) {
        self.following.follow(self.index, &mut self.place, shutdown).await;
    }
}

/// Ends connections of banned sources.
struct Ended(Ending<Lookup>);

impl Restart for Ended {
    async fn serve(&mut self, shutdown: CancellationToken) {
        self.0.serve(shutdown).await;
    }
}
