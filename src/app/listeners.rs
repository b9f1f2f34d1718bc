//! Binds the listeners that proxies and operators use.

use prometheus_client::registry::Registry;
use tracing::{info, warn};

use super::lookup::Lookup;
use super::start_error::StartError;
use super::{access, settings};
use crate::config::Config;
use crate::enforcement::agent::{self, Spoa, SpoaConfig};
use crate::enforcement::verdict::{self, VerdictEndpoint};
use crate::net::tls::TlsServer;
use crate::operation::api::{self, HttpConfig, HttpListener};
use crate::operation::metrics::{MetricsConfig, MetricsListener};

pub(super) fn bind_spoa(
    settings: SpoaConfig,
    lookup: Lookup,
    metrics: agent::Metrics,
    registry: &mut Registry,
) -> Result<Option<Spoa<Lookup>>, StartError> {
    if settings.listen.is_none() && settings.tls.is_none() {
        return Ok(None);
    }
    let client_certificates = settings.tls.as_ref().is_some_and(|(_, server)| server.asks_for_certificates());
    metrics.register(registry);
    let spoa = Spoa::bind(settings, lookup, metrics)?;
    if let Some(address) = spoa.local_addr() {
        info!(%address, "listening for HAProxy");
    }
    if let Some(address) = spoa.tls_addr() {
        info!(%address, client_certificates, "listening for HAProxy over TLS");
    }
    Ok(Some(spoa))
}

pub(super) fn bind_verdict(
    config: &Config,
    lookup: Lookup,
    metrics: verdict::Metrics,
    registry: &mut Registry,
) -> Result<Option<VerdictEndpoint<Lookup>>, StartError> {
    let Some(settings) = settings::verdict(config) else { return Ok(None) };
    metrics.register(registry);
    let endpoint = VerdictEndpoint::bind(settings, lookup, metrics)?;
    for address in endpoint.addresses() {
        info!(%address, "listening for nginx, Traefik, Caddy and Envoy");
    }
    Ok(Some(endpoint))
}

pub(super) async fn bind_metrics(config: &Config) -> Result<Option<MetricsListener>, StartError> {
    if !config.prometheus.enabled {
        return Ok(None);
    }
    let settings = MetricsConfig { listen: config.prometheus.listen(), path: config.prometheus.path.clone() };
    let listener = settings.bind().await?;
    info!(address = %listener.address(), path = config.prometheus.path, "serving metrics");
    Ok(Some(listener))
}

/// The API over TCP, with authentication and rate limit.
pub(super) async fn bind_api(
    config: &Config,
    tls: Option<TlsServer>,
    registry: &mut Registry,
) -> Result<Option<HttpListener>, StartError> {
    let api = &config.api;
    if !api.enabled {
        return Ok(None);
    }
    let metrics = api::http::Metrics::default();
    metrics.register(registry);
    let (encrypted, limits) = (tls.is_some(), &api.rate_limiting);
    let settings = HttpConfig {
        access: access::access(config)?,
        requests_per_minute: limits.enabled.then_some(limits.requests_per_minute),
        tls,
    };
    let listener = settings.bind(api.listen(), metrics).await?;
    info!(address = %listener.address(), tls = encrypted, "serving the API");
    if !encrypted && !listener.address().ip().is_loopback() {
        warn!(
            "passwords and tokens for the API cross the network as plaintext; set api.tls, or put a proxy with TLS in front of it"
        );
    }
    Ok(Some(listener))
}
