//! The listeners whose clients fetch bans: CrowdSec's bouncer API, and lists for appliances.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::access::{self, AccessError, FetchKey};
use super::settings;
use crate::clock;
use crate::config::Config;
use crate::decisions::store::StoreHandle;
use crate::enforcement::crowdsec::{self, BouncerApi};
use crate::enforcement::follower::{PlaceHealth, PlaceState};
use crate::enforcement::lists::{self, Lists};
use crate::enforcement::published::{ClientAddress, KeyCheck, PublishedBans};
use crate::net::listen::ListenError;
use crate::net::tls::{TlsError, TlsServer};
use crate::operation::Provider;
use crate::operation::api::credential::TokenHash;
use crate::operation::api::forwarded;
use crate::operation::http_server::{self, Peer, ServerSettings};
use banmesh_types::netset::NetSet;
use banmesh_types::time::Span;

/// The most open connections of a listener. At the limit, the client with the most gives way.
const CONNECTIONS: usize = 1024;
/// The longest wait for the next request on a connection. Bouncers keep theirs open and ask every 10 s to every few minutes.
const IDLE: Duration = Duration::from_secs(600);
/// When a bouncer counts as silent in a node without a cluster.
const SILENT: Duration = Duration::from_secs(600);

/// Why a listener cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The system refused the address.
    #[error("{0}")]
    Listen(#[from] ListenError),
    /// A key cannot be loaded.
    #[error("{0}")]
    Keys(#[from] AccessError),
    /// The files for TLS cannot be used.
    #[error("{0}")]
    Tls(#[from] TlsError),
}

/// The keys in force of one section; clones share them.
#[derive(Clone, Debug)]
pub struct Keys(Arc<ArcSwap<Vec<FetchKey>>>);

impl Keys {
    fn new(keys: Vec<FetchKey>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(keys)))
    }

    fn check(&self) -> KeyCheck {
        let keys = Arc::clone(&self.0);
        Arc::new(move |secret| {
            let (hash, now) = (TokenHash::of(secret), clock::now());
            let valid = |key: &&FetchKey| key.hash == hash && key.expires.is_none_or(|end| now < end);
            keys.load().iter().find(valid).map(|key| Arc::clone(&key.name))
        })
    }
}

/// The keys that a reload changes.
#[derive(Clone, Debug, Default)]
pub struct LiveKeys {
    crowdsec: Option<Keys>,
    lists: Option<Keys>,
}

/// Keys that were read and are not in force yet.
pub struct RenewedKeys(Vec<(Keys, Vec<FetchKey>)>);

impl LiveKeys {
    /// Reads the keys of `config`.
    ///
    /// # Errors
    /// When a key is invalid.
    pub fn read(&self, config: &Config) -> Result<RenewedKeys, AccessError> {
        let mut read = Vec::new();
        if let Some(keys) = &self.crowdsec {
            read.push((keys.clone(), access::fetch_keys("crowdsec.keys", &config.crowdsec.keys)?));
        }
        if let Some(keys) = &self.lists {
            read.push((keys.clone(), access::fetch_keys("lists.keys", &config.lists.keys)?));
        }
        Ok(RenewedKeys(read))
    }
}

impl RenewedKeys {
    /// Puts the keys in force.
    pub fn apply(self) {
        for (keys, read) in self.0 {
            keys.0.store(Arc::new(read));
        }
    }
}

/// A bound listener.
#[derive(Debug)]
pub(super) struct Fetching {
    /// The name of its part.
    pub(super) name: &'static str,
    listener: TcpListener,
    router: Router,
    proxies: NetSet,
    tls: Option<TlsServer>,
}

/// The bound listeners.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    pub(super) bound: Vec<Fetching>,
    pub(super) keys: LiveKeys,
    pub(super) tls: Vec<TlsServer>,
    api: Option<BouncerApi>,
    silent_after: Option<Duration>,
}

impl Listeners {
    /// Binds the listeners that `config` enables. They serve `bans`.
    pub(super) async fn bind(
        config: &Config,
        bans: &PublishedBans,
        store: &StoreHandle,
        registry: &mut Registry,
    ) -> Result<Self, FetchError> {
        let mut listeners = Self::default();
        let crowdsec = &config.crowdsec;
        if crowdsec.enabled {
            let keys = Keys::new(access::fetch_keys("crowdsec.keys", &crowdsec.keys)?);
            let metrics = crowdsec::Metrics::default();
            metrics.register(registry);
            let api = BouncerApi::new(bans.clone(), store.clone(), keys.check(), metrics);
            let tls = settings::crowdsec_tls(config).map(TlsServer::load).transpose()?;
            let router = api.router();
            let proxies = crowdsec.trusted_proxies.iter().copied().collect();
            listeners.add("crowdsec", crowdsec.listen(), router, proxies, tls).await?;
            listeners.keys.crowdsec = Some(keys);
            listeners.api = Some(api);
            let alone = (!config.cluster.enabled).then_some(SILENT);
            listeners.silent_after = crowdsec.silent_after.map(|span| span.0).or(alone);
        }
        let lists = &config.lists;
        if lists.enabled {
            let keys = Keys::new(access::fetch_keys("lists.keys", &lists.keys)?);
            let metrics = lists::Metrics::default();
            metrics.register(registry);
            let router = Lists::new(bans.clone(), keys.check(), metrics).router();
            let tls = settings::lists_tls(config).map(TlsServer::load).transpose()?;
            let proxies = lists.trusted_proxies.iter().copied().collect();
            listeners.add("lists", lists.listen(), router, proxies, tls).await?;
            listeners.keys.lists = Some(keys);
        }
        Ok(listeners)
    }

    async fn add(
        &mut self,
        name: &'static str,
        listen: SocketAddr,
        router: Router,
        proxies: NetSet,
        tls: Option<TlsServer>,
    ) -> Result<(), FetchError> {
        let bound = TcpListener::bind(listen).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) =
            bound.map_err(|source| ListenError::new(format!("{name}.address, {name}.port"), listen, source))?;
        info!(%address, tls = tls.is_some(), "serving {}", of(name));
        self.tls.extend(tls.clone());
        self.bound.push(Fetching { name, listener, router, proxies, tls });
        Ok(())
    }

    /// How the bouncers are that have asked this node. They are places where bans hold, too.
    pub(super) fn bouncers(&self) -> Option<Provider<Vec<PlaceHealth>>> {
        let (api, silent_after) = (self.api.clone()?, self.silent_after);
        Some(Arc::new(move || api.bouncers().into_iter().map(|bouncer| health(&bouncer, silent_after)).collect()))
    }
}

impl Fetching {
    /// Serves until `shutdown`.
    pub(super) async fn serve(self, shutdown: CancellationToken) {
        let proxies = Arc::new(self.proxies);
        let named = move |mut request: Request, next: Next| {
            let proxies = Arc::clone(&proxies);
            async move {
                if let Some(Peer::Remote(peer)) = request.extensions().get::<Peer>() {
                    let peer = peer.ip().into();
                    // A proxy that names nobody is the client itself: the key decides who may fetch.
                    let client = forwarded::client(peer, request.headers(), &proxies).unwrap_or(peer);
                    request.extensions_mut().insert(ClientAddress(client));
                }
                next.run(request).await
            }
        };
        let router = self.router.layer(middleware::from_fn(named));
        let settings =
            ServerSettings { tls: self.tls, head_time: IDLE, ..ServerSettings::new(of(self.name), CONNECTIONS) };
        http_server::serve(self.listener, router, settings, shutdown).await;
    }
}

/// What is served, for the log.
fn of(name: &str) -> &'static str {
    if name == "crowdsec" { "CrowdSec's bouncer API" } else { "lists" }
}

fn health(bouncer: &crowdsec::Bouncer, silent_after: Option<Duration>) -> PlaceHealth {
    let (identity, silent) = (&bouncer.identity, bouncer.silent);
    let late = silent_after.filter(|limit| silent >= *limit);
    let error = late.map(|_| {
        format!(
            "it has not asked for {}; check that it runs and reaches this node (crowdsec.silent_after)",
            Span(Duration::from_secs(silent.as_secs()))
        )
    });
    PlaceHealth {
        name: format!("bouncer {} ({} at {})", identity.key, identity.agent, identity.address),
        state: if late.is_some() { PlaceState::Failing } else { PlaceState::Polling },
        stale: if late.is_some() { silent } else { Duration::ZERO },
        entries: bouncer.entries,
        waiting: 0,
        lag: silent,
        error,
    }
}
