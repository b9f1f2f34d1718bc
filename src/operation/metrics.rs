//! The registry of all that the node counts, and the listener from which Prometheus fetches it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::operation::Provider;
use crate::operation::http_server::{self, ServerSettings};
use crate::operation::readiness::Readiness;
use banmesh_core::node::NodeId;
use banmesh_types::time::UnixMillis;

/// What the text format of OpenMetrics 1.0 calls itself; Prometheus reads it since 2.5.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Connections at a time.
const CONNECTIONS: usize = 16;

/// A registry with what is known of the process itself; the parts add theirs with their `register`.
pub fn registry(node: &NodeId, version: &str, started: UnixMillis) -> Registry {
    let mut registry = Registry::default();
    let build = Info::new(vec![("version", version.to_owned()), ("node", node.to_string())]);
    registry.register("banmesh_build", "The program's version and the node's name", build);
    let start: Gauge<f64, AtomicU64> = Gauge::default();
    start.set(started.0 as f64 / 1000.0);
    registry.register("process_start_time_seconds", "When the process started, in seconds since the epoch", start);
    registry
}

/// Whether the node does its work, asked when somebody fetches the metrics.
pub fn register_readiness(registry: &mut Registry, readiness: Provider<Readiness>) {
    registry.register_collector(Box::new(Ready(readiness)));
}

struct Ready(Provider<Readiness>);

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ready")
    }
}

impl Collector for Ready {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let ready = ConstGauge::new(i64::from((self.0)().ready));
        let kind = ready.metric_type();
        let metric =
            encoder.encode_descriptor("banmesh_ready", "Whether the node does its work: 1 or 0", None, kind)?;
        ready.encode(metric)
    }
}

/// All counters of `registry` as an answer.
pub fn answer(registry: &Registry) -> Response {
    let mut text = String::with_capacity(16 * 1024);
    match encode(&mut text, registry) {
        Ok(()) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the metrics: {error}\n")).into_response()
        }
    }
}

/// Where Prometheus fetches the metrics (`prometheus.*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsConfig {
    /// `prometheus.address` and `prometheus.port`.
    pub listen: SocketAddr,
    /// `prometheus.path`; begins with a slash.
    pub path: String,
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The system refused.
    #[error("cannot listen on {listen} (prometheus.address, prometheus.port): {source}")]
    Bind {
        /// The address.
        listen: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no path of plain characters.
    #[error("`{0}` is no path for prometheus.path: write one such as /metrics")]
    Path(String),
}

/// A bound listener.
#[derive(Debug)]
pub struct MetricsListener {
    listener: TcpListener,
    address: SocketAddr,
    path: String,
}

impl MetricsConfig {
    /// Binds the listener.
    ///
    /// # Errors
    /// When the port is taken or the path is none.
    pub async fn bind(self) -> Result<MetricsListener, MetricsError> {
        let Self { listen, path } = self;
        // Braces and stars would be patterns to the router.
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.');
        if !path.starts_with('/') || !path.bytes().all(plain) {
            return Err(MetricsError::Path(path));
        }
        let bound = TcpListener::bind(listen).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = bound.map_err(|source| MetricsError::Bind { listen, source })?;
        Ok(MetricsListener { listener, address, path })
    }
}

impl MetricsListener {
    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers `GET` on the path, and nothing else, until `shutdown`.
    pub async fn serve(self, registry: Arc<Registry>, shutdown: CancellationToken) {
        let metrics = get(|State(registry): State<Arc<Registry>>| async move { answer(&registry) });
        let router = Router::new().route(&self.path, metrics).with_state(registry);
        http_server::serve(self.listener, router, ServerSettings::new(CONNECTIONS), shutdown).await;
    }
}
