//! Builds the webhooks from `notifications`.

use std::time::Duration;

use hyper::header::HeaderValue;
use prometheus_client::registry::Registry;

use crate::config::{Config, WebhookConfig};
use crate::net::dial::{Endpoint, EndpointError, Trust, TrustError};
use crate::operation::webhooks::notice::Signer;
use crate::operation::webhooks::{self, Origin, Sources, WebhookSettings, Webhooks};
use banmesh_core::node::NodeId;

/// Why a webhook cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The URL is invalid.
    #[error("notifications.webhooks, {hook}: {why}")]
    Url {
        /// The name of the webhook.
        hook: String,
        /// What is wrong.
        why: EndpointError,
    },
    /// The file of CA certificates cannot be used.
    #[error("notifications.webhooks, {hook}: ca: {why}")]
    Ca {
        /// The name of the webhook.
        hook: String,
        /// What is wrong.
        why: TrustError,
    },
}

/// The configured webhooks; `None` if there are none.
///
/// # Errors
/// A URL is invalid, or a file of CA certificates cannot be used.
pub fn webhooks(
    config: &Config,
    node: NodeId,
    sources: Sources,
    registry: &mut Registry,
) -> Result<Option<Webhooks>, WebhookError> {
    let settings: Vec<_> = config.notifications.webhooks.iter().map(settings).collect::<Result<_, _>>()?;
    if settings.is_empty() {
        return Ok(None);
    }
    let metrics = webhooks::Metrics::default();
    metrics.register(registry);
    let sender = Origin { node, cluster: config.cluster.name.clone() };
    Ok(Some(Webhooks::new(settings, sender, sources, metrics)))
}

fn settings(hook: &WebhookConfig) -> Result<WebhookSettings, WebhookError> {
    let endpoint: Endpoint =
        hook.url.expose().parse().map_err(|why| WebhookError::Url { hook: hook.name.clone(), why })?;
    let trust = Trust::load(hook.ca.as_deref()).map_err(|why| WebhookError::Ca { hook: hook.name.clone(), why })?;
    let authorization = Some(hook.authorization.expose()).filter(|value| !value.is_empty());
    Ok(WebhookSettings {
        name: hook.name.clone(),
        endpoint,
        trust,
        topics: hook.events.clone(),
        filters: hook.filters.clone(),
        template: hook.template.clone(),
        signer: (!hook.secret.is_empty()).then(|| Signer::new(hook.secret.expose())),
        // The configuration accepts only valid header values.
        authorization: authorization.and_then(|value| value.parse().ok()).map(|mut value: HeaderValue| {
            value.set_sensitive(true);
            value
        }),
        timeout: hook.timeout.0,
        retries: hook.retries,
        collect: hook.collect.0,
        backoff: Duration::from_secs(1),
    })
}
