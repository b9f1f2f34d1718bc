//! Feeds, countries and networks: made from the configuration, and run under the supervisor.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::shutdown::Stage;
use super::supervisor::{Part, Restart, Supervisor};
use crate::clock;
use crate::config::{Config, FeedConfig, FeedSource};
use crate::decisions::feeds::{FeedRule, Feeds, ForJudge, Homes, Metrics, Spare, Successes};
use crate::decisions::geo::Geo;
use crate::inputs::feeds::{Copies, FeedKeeper, FeedSettings, FeedsHandle, Source};
use crate::net::dial::{EndpointError, Trust, TrustError};
use banmesh_feeds::keeping::Progress;

/// How often the files of countries and networks are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Why a feed cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The URL is invalid.
    #[error("feeds, {feed}: url: {why}")]
    Url {
        /// The name of the feed.
        feed: String,
        /// What is wrong.
        why: EndpointError,
    },
    /// The file of CA certificates cannot be used.
    #[error("feeds, {feed}: ca: {why}")]
    Ca {
        /// The name of the feed.
        feed: String,
        /// What is wrong.
        why: TrustError,
    },
    /// The key cannot be used.
    #[error("feeds, {feed}: key_file: {why}; its first line must be the key")]
    Key {
        /// The name of the feed.
        feed: String,
        /// What is wrong.
        why: String,
    },
}

/// The feeds of a node, not running yet.
#[derive(Debug)]
pub(super) struct AllFeeds {
    /// For lookups and people.
    pub(super) feeds: Feeds,
    /// For operators' requests.
    pub(super) handle: FeedsHandle,
    keeper: FeedKeeper,
}

impl AllFeeds {
    /// The feeds of the configuration, and what the judge needs of them; `None` without any.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub(super) fn new(config: &Config, registry: &mut Registry) -> Result<Option<(Self, ForJudge)>, FeedError> {
        if config.feeds.is_empty() {
            return Ok(None);
        }
        let settings: Vec<FeedSettings> = config.feeds.iter().map(settings).collect::<Result<_, _>>()?;
        let metrics = Metrics::default();
        metrics.register(registry);
        let (successes, notes) = Successes::new();
        let homes = Homes::new(config.ban.ipv4_prefix, config.ban.ipv6_prefix);
        let spares: Vec<Arc<dyn Spare>> = vec![Arc::new(successes), Arc::new(homes.clone())];
        let now = clock::now();
        let progress = settings.iter().map(|feed| Progress::new(feed.pace, now)).collect();
        let feeds = Feeds::new(config.feeds.iter().map(rule).collect(), progress, spares, metrics.clone());
        feeds.set_dry_run(config.ban.dry_run);
        let reader = feeds.reader();
        let (keeper, handle) = FeedKeeper::new(settings, feeds.clone(), Copies::below(&config.node.data_dir), metrics);
        Ok(Some((Self { feeds, handle, keeper }, ForJudge { reader, notes, homes })))
    }

    /// Starts the task that keeps them.
    pub(super) fn start(self, supervisor: &mut Supervisor) {
        supervisor.run_again(Part::new("feeds", Stage::Judge), self.keeper);
    }
}

fn rule(feed: &FeedConfig) -> FeedRule {
    FeedRule {
        name: feed.name.as_str().into(),
        effect: feed.effect,
        weight: feed.weight,
        credit: feed.credit.as_str().into(),
    }
}

/// How a feed is asked.
///
/// # Errors
/// When the feed cannot be used.
pub fn settings(feed: &FeedConfig) -> Result<FeedSettings, FeedError> {
    let name = || feed.name.clone();
    let source = match &feed.source {
        FeedSource::File(path) => Source::File(path.clone()),
        FeedSource::Url(url) => Source::Server {
            endpoint: url.expose().parse().map_err(|why| FeedError::Url { feed: name(), why })?,
            trust: Trust::load(feed.ca.as_deref()).map_err(|why| FeedError::Ca { feed: name(), why })?,
            key: key(feed).map_err(|why| FeedError::Key { feed: name(), why })?,
            timeout: feed.timeout,
        },
    };
    Ok(FeedSettings { name: feed.name.as_str().into(), source, format: feed.format, pace: feed.pace })
}

fn key(feed: &FeedConfig) -> Result<Option<(HeaderName, HeaderValue)>, String> {
    let text = match &feed.key_file {
        Some(path) => std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?,
        None => feed.key.expose().to_owned(),
    };
    let text = text.lines().next().unwrap_or_default().trim();
    if text.is_empty() {
        return if feed.key_file.is_some() { Err("it is empty".to_owned()) } else { Ok(None) };
    }
    let header = HeaderName::from_bytes(feed.key_header.as_bytes()).map_err(|error| error.to_string())?;
    let mut value =
        HeaderValue::from_str(text).map_err(|_| "it holds characters that a header cannot have".to_owned())?;
    value.set_sensitive(true);
    Ok(Some((header, value)))
}

/// The files of countries and networks; `None` without any. Reads them, which blocks.
pub(super) fn geo(config: &Config) -> Option<Geo> {
    let files = &config.geo;
    let geo = Geo::new(files.country.clone(), files.network.clone(), files.rules.clone())?;
    for key in geo.look() {
        info!(key, "read");
    }
    Some(geo)
}

/// Reads the files of countries and networks again when they change.
#[derive(Debug)]
pub(super) struct GeoWatch(pub(super) Geo);

impl Restart for GeoWatch {
    async fn serve(&mut self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            let geo = self.0.clone();
            let read = tokio::task::spawn_blocking(move || geo.look()).await.unwrap_or_default();
            for key in read {
                info!(key, "read again, because the file changed");
            }
        }
    }
}

impl Restart for FeedKeeper {
    async fn serve(&mut self, shutdown: CancellationToken) {
        Self::serve(self, shutdown).await;
    }
}
