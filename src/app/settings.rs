//! Converts the configuration to the settings of each part.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::allowed_names::AllowedNames;
use super::capacity;
use crate::cluster::{ClusterSettings, OtherSite, Timers};
use crate::config::{self, Config, SiteAddress};
use crate::enforcement::agent::SpoaConfig;
use crate::enforcement::verdict::VerdictConfig;
use crate::inputs::detect::{Detection, InForce};
use crate::inputs::envelope::{LineFormat, Wrapping};
use crate::inputs::files::{self, FilesConfig, Source};
use crate::inputs::journald::{self, JournaldConfig};
use crate::inputs::syslog::{Protocol, SyslogConfig};
use crate::net::tls::TlsFiles;
use banmesh_core::evidence::Mode;
use banmesh_core::judge::Rules;
use banmesh_core::ledger::Limits;
use banmesh_core::node::NodeId;
use banmesh_core::policy::{BanPolicy, Scope};
use banmesh_core::seal::Keyring;
use banmesh_filter::library::{FilterFileError, FilterLibrary};
use banmesh_filter::{Filter, Pattern};
use banmesh_types::nat64::Nat64;
use banmesh_types::netset::NetSet;

/// The general ban policy.
pub fn policy(config: &Config) -> BanPolicy {
    let ban = &config.ban;
    BanPolicy {
        max_attempts: ban.max_attempts,
        time_window: ban.time_window.0,
        initial_ban_time: ban.initial_ban_time.0,
        max_ban_time: ban.max_ban_time.0,
        escalation_factor: ban.escalation_factor,
        max_memory_ttl: ban.max_memory_ttl.0,
    }
}

/// The settings of the judge. `detection` has the policies of filters that are jails, and `allowed` the allowlist.
pub fn judge(config: &Config, detection: &Detection, allowed: &AllowedNames) -> Rules {
    let general = policy(config);
    let own = detection.policies(&general);
    let nat64 = Nat64::new(config.ban.nat64_prefixes.iter().copied());
    Rules {
        scope: Arc::new(Scope {
            ipv4_prefix: config.ban.ipv4_prefix,
            ipv6_prefix: config.ban.ipv6_prefix,
            allowlist: allowed.targets(&nat64),
            own: NetSet::default(),
            nat64,
            dry_run: config.ban.dry_run,
        }),
        general: Arc::new(general),
        own,
        success_clears: config.ban.success_clears,
        evidence: Arc::default(),
    }
}

/// The limits of the ban table.
pub fn limits(config: &Config) -> Limits {
    let memory = capacity::memory_limit();
    let memory = if config.firewall.enabled { memory.map(capacity::beside_firewall) } else { memory };
    let published = config.crowdsec.enabled || config.lists.enabled;
    let memory = if published { memory.map(capacity::beside_published) } else { memory };
    Limits {
        max_bans: capacity::max_bans(config.ban.max_bans, memory),
        max_clock_drift: config.cluster.max_clock_drift.0,
        max_ban_time: config.ban.max_ban_time.0,
    }
}

/// The agent's settings without TLS, which [`spoa_tls`] returns.
pub fn spoa(config: &Config) -> SpoaConfig {
    let spoa = &config.spoa;
    SpoaConfig {
        listen: spoa.enabled.then(|| spoa.listen()),
        tls: None,
        max_clients: spoa.max_clients as usize,
        read_timeout: spoa.read_timeout.0,
        allowed_clients: spoa.allowed_clients.clone(),
        reports_from: spoa.reports_from.clone(),
        drain: spoa.drain.0,
    }
}

/// The address and the files of the agent's TLS listener; `None` if it is disabled.
pub fn spoa_tls(config: &Config) -> Option<(SocketAddr, TlsFiles)> {
    let tls = &config.spoa.tls;
    let files = files_of("spoa.tls", tls.enabled, [&tls.certificate, &tls.key, &tls.client_ca]);
    files.map(|files| (tls.address, files))
}

/// The TLS files of the listener that `section` configures: certificate, key, CA of client certificates.
fn files_of(section: &'static str, enabled: bool, paths: [&Option<PathBuf>; 3]) -> Option<TlsFiles> {
    let [certificate, key, client_ca] = paths.map(Clone::clone);
    Some(TlsFiles { section, certificate: certificate?, key: key?, client_ca }).filter(|_| enabled)
}

/// The settings of the verdict endpoint; `None` if it is disabled.
pub fn verdict(config: &Config) -> Option<VerdictConfig> {
    let listen = config::verdict_sockets(config);
    (!listen.is_empty()).then(|| VerdictConfig {
        listen,
        trusted_proxies: config.verdict.trusted_proxies.iter().copied().collect(),
        max_clients: config.verdict.max_clients as usize,
        drain: config.spoa.drain.0,
    })
}

/// The files of every TLS listener.
pub fn tls_files(config: &Config) -> Vec<TlsFiles> {
    let syslog = syslog_tls(config).map(|(_, files)| files);
    let spoa = spoa_tls(config).map(|(_, files)| files);
    let fetching = crowdsec_tls(config).into_iter().chain(lists_tls(config));
    syslog.into_iter().chain(spoa).chain(api_tls(config)).chain(fetching).collect()
}

/// The TLS files of the API; `None` if it is served without TLS.
pub fn api_tls(config: &Config) -> Option<TlsFiles> {
    let (api, tls) = (&config.api, &config.api.tls);
    files_of("api.tls", api.enabled && tls.enabled, [&tls.certificate, &tls.key, &tls.client_ca])
}

/// The TLS files of the bouncer API; `None` if it is served without TLS.
pub fn crowdsec_tls(config: &Config) -> Option<TlsFiles> {
    let (crowdsec, tls) = (&config.crowdsec, &config.crowdsec.tls);
    files_of("crowdsec.tls", crowdsec.enabled && tls.enabled, [&tls.certificate, &tls.key, &None])
}

/// The TLS files of the lists; `None` if they are served without TLS.
pub fn lists_tls(config: &Config) -> Option<TlsFiles> {
    let (lists, tls) = (&config.lists, &config.lists.tls);
    files_of("lists.tls", lists.enabled && tls.enabled, [&tls.certificate, &tls.key, &None])
}

/// The settings of the plaintext syslog listener.
pub fn syslog(config: &Config) -> SyslogConfig {
    let syslog = &config.syslog;
    let connections = syslog.tcp_max_connections as usize;
    SyslogConfig {
        address: syslog.address,
        protocol: match syslog.protocol {
            config::Protocol::Udp => Protocol::Udp,
            config::Protocol::Tcp => Protocol::Tcp,
            config::Protocol::Both => Protocol::Both,
        },
        allowed_senders: syslog.allowed_senders.clone(),
        reuse_port: syslog.reuse_port,
        receive_buffer: syslog.receive_buffer.0,
        max_line: syslog.max_line.0,
        wrapping: wrapping(syslog.format, &syslog.format_programs),
        tcp_max_connections: connections,
        // One sender may use a quarter, so that it cannot block the others.
        tcp_max_connections_per_sender: (connections / 4).max(1),
        ..SyslogConfig::default()
    }
}

/// The settings and the files of the syslog listener over TLS; `None` if it is disabled.
pub fn syslog_tls(config: &Config) -> Option<(SyslogConfig, TlsFiles)> {
    let tls = &config.syslog.tls;
    let files = files_of("syslog.tls", tls.enabled, [&tls.certificate, &tls.key, &tls.client_ca]);
    files.map(|files| (SyslogConfig { address: tls.address, ..syslog(config) }, files))
}

/// The settings for the files to follow.
pub fn files(config: &Config) -> FilesConfig {
    let pattern = |file: &config::FileInput| Source {
        path: file.path.clone(),
        program: file.program.clone(),
        format: file.format,
    };
    FilesConfig {
        patterns: config.inputs.files.iter().map(pattern).collect(),
        positions: config.node.data_dir.join(files::POSITIONS),
        catch_up: config.inputs.catch_up.0,
        max_line: config.syslog.max_line.0,
    }
}

/// The settings for the systemd journal.
pub fn journald(config: &Config) -> JournaldConfig {
    let journal = &config.inputs.journal;
    JournaldConfig {
        units: journal.units.clone(),
        matches: journal.matches.clone(),
        command: journal.command.clone(),
        cursor: config.node.data_dir.join(journald::CURSOR),
        catch_up: config.inputs.catch_up.0,
        max_line: config.syslog.max_line.0,
        wrapping: wrapping(journal.format, &journal.format_programs),
    }
}

/// Which lines of an input have envelopes.
fn wrapping(format: LineFormat, programs: &[config::ProgramPattern]) -> Wrapping {
    Wrapping { format, programs: programs.iter().map(|pattern| pattern.0.clone()).collect() }
}

/// What is wrong with the filters of a configuration.
#[derive(Clone, Debug, Default)]
pub struct FilterFindings {
    /// Filters that do not compile, fail their test lines, or can be made to accuse another address.
    pub errors: Vec<FilterFileError>,
    /// Rules that work, but not as well as they could. Each names the filter and the rule.
    pub warnings: Vec<String>,
}

/// Compiles the filters that `config` enables, and attacks those in the operator's own files with forged lines.
pub fn examine_filters(config: &Config) -> FilterFindings {
    match detection(config) {
        Err(errors) => FilterFindings { errors, warnings: Vec::new() },
        Ok(detection) => {
            let mut warnings: Vec<String> = detection.detector().warnings().iter().map(ToString::to_string).collect();
            let errors = match FilterLibrary::load(&config.filters.dirs) {
                Err(errors) => errors,
                Ok(library) => {
                    warnings.extend(without_logins(config, &library));
                    library.forgeries()
                }
            };
            FilterFindings { errors, warnings }
        }
    }
}

/// What the evidence cannot do because an enabled filter recognises failures of accounts and no logins.
fn without_logins(config: &Config, library: &FilterLibrary) -> Vec<String> {
    let evidence = &config.evidence;
    let [names, networks]: [Mode; 2] = [evidence.names.into(), evidence.networks.into()];
    if !names.looks() && !networks.looks() {
        return Vec::new();
    }
    let Ok(enabled) = library.enabled(&config.filters.enabled, config.filters.mode.into()) else { return Vec::new() };
    let filters = enabled.iter().map(|(loaded, _)| &loaded.filter);
    let has_account = |filter: &Filter| filter.failregex.iter().any(|rule| rule.regex.contains("(?P<user>"));
    let blind = filters.filter(|filter| filter.successregex.is_empty() && has_account(filter));
    let text = |filter: &Filter| {
        let name = &filter.name;
        let mut said = format!("filter `{name}` recognises no logins, so ");
        match (names.looks(), networks.looks() && !evidence.blind.contains(name)) {
            (true, true) => {
                said += "evidence.names does little for its lines, and evidence.networks waits while it has failures"
            }
            (true, false) => said += "evidence.names does little for its lines",
            (false, true) => said += "evidence.networks waits while it has failures",
            (false, false) => return None,
        }
        if networks.looks() && !evidence.blind.contains(name) {
            said += "; if its users also log in to other services, name it in evidence.blind";
        }
        Some(said)
    };
    blind.filter_map(text).collect()
}

/// Whether a node looks for successful logins: to clear attempts, for the evidence, or because feeds spare those who logged in.
pub fn uses_logins(config: &Config) -> bool {
    let evidence = &config.evidence;
    let modes: [Mode; 3] = [evidence.known.into(), evidence.names.into(), evidence.networks.into()];
    config.ban.success_clears || !config.feeds.is_empty() || modes.into_iter().any(Mode::looks)
}

/// Compiles the filters that `config` enables.
///
/// # Errors
/// All errors in the filters.
pub fn detection(config: &Config) -> Result<Detection, Vec<FilterFileError>> {
    let patterns: Vec<Pattern> = config.syslog.patterns.iter().map(Pattern::from).collect();
    let mode = config.filters.mode.into();
    let in_use = |library: FilterLibrary| {
        if uses_logins(config) { library } else { library.without_successes() }
    };
    let limited = |library: FilterLibrary| library.with_limits(&config.filters.each);
    FilterLibrary::load(&config.filters.dirs).map(in_use).and_then(limited).and_then(|library| {
        let filters = library.enabled(&config.filters.enabled, mode)?;
        let filters = filters.iter().map(|(loaded, mode)| InForce {
            name: loaded.filter.name.clone(),
            mode: mode.as_str(),
            rules: loaded.filter.failregex.len(),
        });
        let pattern = |pattern: &Pattern| InForce { name: pattern.name.clone(), mode: "pattern", rules: 1 };
        let in_force = filters.chain(patterns.iter().map(pattern)).collect();
        let detector = library.detector(&config.filters.enabled, mode, &patterns)?;
        Ok(Detection::new(detector).made_of(in_force).within(config.ban.time_window.0))
    })
}

/// The other sites, with the addresses of each, in the order in which they are named.
fn sites(named: &[SiteAddress]) -> Vec<OtherSite> {
    let mut sites: Vec<OtherSite> = Vec::new();
    for SiteAddress { site, address } in named {
        match sites.iter_mut().find(|known| known.name == *site) {
            Some(known) => known.addresses.push(address.to_string()),
            None => sites.push(OtherSite { name: site.clone(), addresses: vec![address.to_string()] }),
        }
    }
    sites
}

/// The cluster's settings for `node` in the start with this `generation`.
pub fn cluster(config: &Config, node: NodeId, generation: u64, keyring: Option<Keyring>) -> ClusterSettings {
    let cluster = &config.cluster;
    let mut timers = Timers::of(cluster.profile);
    let set = |timer: &mut std::time::Duration, value: Option<banmesh_types::time::Span>| {
        if let Some(value) = value {
            *timer = value.0;
        }
    };
    set(&mut timers.gossip_interval, cluster.gossip_interval);
    set(&mut timers.min_pace, cluster.flush_interval);
    set(&mut timers.repair_interval, cluster.repair_interval);
    set(&mut timers.failure_timeout, cluster.dead_after);
    ClusterSettings {
        name: cluster.name.clone(),
        listen: cluster.listen,
        advertise: cluster.advertised(),
        seeds: cluster.seeds.iter().map(ToString::to_string).collect(),
        sites: sites(&cluster.sites),
        timers,
        max_datagram: cluster.max_datagram.0,
        keyring,
        insecure: cluster.insecure,
        count_attempts: cluster.count_attempts,
        max_clock_drift: cluster.max_clock_drift.0,
        join_timeout: cluster.join_timeout.0,
        ..ClusterSettings::new(node, generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HostPort;

    #[test]
    fn the_addresses_of_a_site_are_together() {
        let named = |site: &str, host: &str| {
            let address = HostPort { host: host.to_owned(), port: 12350 };
            SiteAddress { site: site.to_owned(), address }
        };
        let sites = sites(&[named("paris", "node1"), named("rome", "2001:db8::1"), named("paris", "node2")]);
        let site = |name: &str, addresses: &[&str]| OtherSite {
            name: name.to_owned(),
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
        };
        assert_eq!(sites, [site("paris", &["node1:12350", "node2:12350"]), site("rome", &["[2001:db8::1]:12350"])]);
    }
}
