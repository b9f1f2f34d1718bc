//! The listeners that mail servers ask: made from the configuration, and run under the supervisor.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::access;
use super::lookup::Lookup;
use super::shutdown::Stage;
use super::start_error::StartError;
use super::supervisor::{Part, Restart, Supervisor};
use crate::config::Config;
use crate::decisions::judge::OffenceSender;
use crate::enforcement::mail::auth_policy::{AuthPolicy, AuthPolicyConfig, SecretCheck};
use crate::enforcement::mail::dnsbl::{Dnsbl, DnsblConfig};
use crate::enforcement::mail::policy::{Policy, PolicyConfig};
use crate::enforcement::mail::{Metrics, Queries};
use crate::operation::api::credential::TokenHash;

/// The listeners that the configuration enables.
pub(super) struct MailListeners {
    dnsbl: Option<Dnsbl<Lookup>>,
    policy: Option<Policy<Lookup>>,
    auth_policy: Option<AuthPolicy<Lookup>>,
    queries: Vec<Queries>,
}

impl MailListeners {
    /// Opens them.
    pub(super) fn bind(
        config: &Config,
        lookup: &Lookup,
        offences: &OffenceSender,
        registry: &mut Registry,
    ) -> Result<Self, StartError> {
        let mut all = Self { dnsbl: None, policy: None, auth_policy: None, queries: Vec::new() };
        let (dnsbl, policy, auth) = (&config.dnsbl, &config.policy, &config.auth_policy);
        if !(dnsbl.enabled || policy.enabled || auth.enabled) {
            return Ok(all);
        }
        let metrics = Metrics::default();
        metrics.register(registry);
        if dnsbl.enabled {
            let settings = DnsblConfig {
                listen: dnsbl.address,
                zone: dnsbl.zone.clone(),
                allowed_clients: dnsbl.allowed_clients.clone(),
                udp_rate: dnsbl.udp_rate,
                text: dnsbl.text.clone(),
            };
            let bound = Dnsbl::bind(settings, lookup.clone(), all.count("dnsbl", &metrics))?;
            info!(address = %dnsbl.address, zone = %dnsbl.zone, "serving the bans as a DNS block list");
            all.dnsbl = Some(bound);
        }
        if policy.enabled {
            let settings = PolicyConfig {
                listen: policy.address,
                socket: policy.socket.clone(),
                allowed_clients: policy.allowed_clients.clone(),
                max_clients: places(policy.max_clients),
                action: policy.action.clone(),
            };
            let bound = Policy::bind(settings, lookup.clone(), all.count("policy", &metrics))?;
            info!(
                address = policy.address.map(tracing::field::display), socket = ?policy.socket, "listening for the policy requests of mail servers");
            all.policy = Some(bound);
        }
        if auth.enabled {
            let secret = access::auth_policy(config)?;
            let settings = AuthPolicyConfig {
                listen: auth.address,
                allowed_clients: auth.allowed_clients.clone(),
                max_clients: places(auth.max_clients),
                secret: secret.map(|secret| -> SecretCheck { Arc::new(move |given| TokenHash::of(given) == secret) }),
                text: auth.text.clone(),
            };
            let queries = all.count("auth_policy", &metrics);
            let bound = AuthPolicy::bind(settings, lookup.clone(), offences.clone(), queries)?;
            info!(address = %auth.address, "listening for Dovecot's auth policy");
            all.auth_policy = Some(bound);
        }
        Ok(all)
    }

    fn count(&mut self, section: &'static str, metrics: &Metrics) -> Queries {
        let queries = metrics.of(section);
        self.queries.push(queries.clone());
        queries
    }

    /// What each listener was asked.
    pub(super) fn queries(&self) -> Vec<Queries> {
        self.queries.clone()
    }

    /// Starts them.
    pub(super) fn start(self, supervisor: &mut Supervisor) {
        if let Some(dnsbl) = self.dnsbl {
            supervisor.run_again(Part::new("dnsbl", Stage::Agent), dnsbl);
        }
        if let Some(policy) = self.policy {
            supervisor.run_again(Part::new("policy", Stage::Agent), policy);
        }
        if let Some(auth_policy) = self.auth_policy {
            supervisor.run_again(Part::new("auth policy", Stage::Agent), auth_policy);
        }
    }
}

impl std::fmt::Debug for MailListeners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MailListeners").field("queries", &self.queries).finish_non_exhaustive()
    }
}

fn places(most: u32) -> usize {
    usize::try_from(most).unwrap_or(usize::MAX)
}

impl Restart for Dnsbl<Lookup> {
    async fn serve(&mut self, shutdown: CancellationToken) {
        Self::serve(self, shutdown).await;
    }
}

impl Restart for Policy<Lookup> {
    async fn serve(&mut self, shutdown: CancellationToken) {
        Self::serve(self, shutdown).await;
    }
}

impl Restart for AuthPolicy<Lookup> {
    async fn serve(&mut self, shutdown: CancellationToken) {
        Self::serve(self, shutdown).await;
    }
}
