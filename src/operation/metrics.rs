//! The metrics registry, and the listener for Prometheus.

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

use crate::net::listen::ListenError;
use crate::operation::Provider;
use crate::operation::http_server::{self, ServerSettings};
use crate::operation::readiness::Readiness;
use banmesh_core::node::NodeId;
use banmesh_types::time::UnixMillis;

/// The content type of OpenMetrics 1.0, which Prometheus supports since 2.5.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The most open connections. At the limit, the client with the most gives way, so one host cannot keep out Prometheus.
const CONNECTIONS: usize = 64;

/// A registry with metrics about the process. Each part of the node adds its own.
pub fn registry(node: &NodeId, version: &str, started: UnixMillis) -> Registry {
    let mut registry = Registry::default();
    let build = Info::new(vec![("version", version.to_owned()), ("node", node.to_string())]);
    registry.register("banmesh_build", "Version of banmesh and name of the node", build);
    let start: Gauge<f64, AtomicU64> = Gauge::default();
    start.set(started.0 as f64 / 1000.0);
    registry.register(
        "process_start_time_seconds",
        "Start time of the process, in seconds since the Unix epoch",
        start,
    );
    registry
}

/// Adds `banmesh_ready`, which calls `readiness` at each scrape.
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
        let metric = encoder.encode_descriptor("banmesh_ready", "Whether the node is ready: 1 or 0", None, kind)?;
        ready.encode(metric)
    }
}

/// The metrics of `registry` as an HTTP response.
pub fn answer(registry: &Registry) -> Response {
    let mut text = String::with_capacity(16 * 1024);
    match encode(&mut text, registry) {
        Ok(()) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the metrics: {error}\n")).into_response()
        }
    }
}

/// The address and path of the metrics (`prometheus.*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsConfig {
    /// `prometheus.address` and `prometheus.port`.
    pub listen: SocketAddr,
    /// `prometheus.path`; begins with a slash.
    pub path: String,
}

/// Why the metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The system refused the address.
    #[error("{0}")]
    Listen(#[from] ListenError),
    /// The path is invalid.
    #[error("prometheus.path: `{0}` is not a valid path; write for example /metrics")]
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
    /// When the port is taken or the path is invalid.
    pub async fn bind(self) -> Result<MetricsListener, MetricsError> {
        let Self { listen, path } = self;
        // The router would read braces and stars as placeholders.
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.');
        if !path.starts_with('/') || !path.bytes().all(plain) {
            return Err(MetricsError::Path(path));
        }
        let bound = TcpListener::bind(listen).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) =
            bound.map_err(|source| ListenError::new("prometheus.address, prometheus.port", listen, source))?;
        Ok(MetricsListener { listener, address, path })
    }
}

impl MetricsListener {
    /// The bound address.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `GET` on the path until `shutdown`.
    pub async fn serve(self, registry: Arc<Registry>, shutdown: CancellationToken) {
        let metrics = get(|State(registry): State<Arc<Registry>>| async move { answer(&registry) });
        let router = Router::new().route(&self.path, metrics).with_state(registry);
        http_server::serve(self.listener, router, ServerSettings::new("the metrics", CONNECTIONS), shutdown).await;
    }
}
