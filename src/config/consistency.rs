//! Checks the ranges of values, and values that contradict each other. The syntax of a value is checked by its type.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::origin::{Origin, Origins};
use super::problem::{Problem, ProblemKind};
use super::sections::Config;
use crate::inputs::envelope::LineFormat;
use banmesh_cluster::datagram::{LEAST_MAX_DATAGRAM, MOST_MAX_DATAGRAM};
use banmesh_core::node::NodeId;
use banmesh_types::time::Span;

/// The lists that findings go to.
pub(super) struct Report<'a> {
    pub(super) origins: &'a Origins,
    /// The keys that already have an error.
    broken: &'a BTreeSet<String>,
    errors: &'a mut Vec<Problem>,
    warnings: &'a mut Vec<Problem>,
}

impl Report<'_> {
    /// Adds an error unless `good`. It names the first of `keys` that was set, else the first. If one of the keys already has an
    /// error, nothing is added.
    pub(super) fn require(&mut self, good: bool, keys: &[&str], message: impl FnOnce() -> String) {
        if good || keys.iter().any(|key| self.broken.contains(*key)) {
            return;
        }
        let problem = self.problem(keys, message());
        self.errors.push(problem);
    }

    pub(super) fn warn(&mut self, keys: &[&str], message: String) {
        let problem = self.problem(keys, message);
        self.warnings.push(problem);
    }

    fn problem(&self, keys: &[&str], message: String) -> Problem {
        let written = keys.iter().find(|key| self.origins.of(key) != Origin::Default);
        let key = written.or(keys.first()).copied().unwrap_or_default();
        Problem { origin: self.origins.of(key), key: key.to_owned(), kind: ProblemKind::Inconsistent(message) }
    }
}

/// Adds the errors and warnings about values that are out of range or contradict each other.
pub(super) fn check(
    config: &Config,
    origins: &Origins,
    broken: &BTreeSet<String>,
    errors: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) {
    let mut report = Report { origins, broken, errors, warnings };
    ban(config, &mut report);
    limits(config, &mut report);
    listeners(config, &mut report);
    cluster(config, &mut report);
    access(config, &mut report);
    inputs(config, &mut report);
    super::verdict::check(config, &mut report);
    mirror(config, &mut report);
    firewall(config, &mut report);
    super::mail::check(config, &mut report);
    super::peers::check(config, &mut report);
    super::fetching::check(config, &mut report);
    super::feeds::check(config, &mut report);
    super::exposure::check(config, &mut report);
    open_agent(config, &mut report);
}

fn ban(config: &Config, report: &mut Report<'_>) {
    let ban = &config.ban;
    report.require(ban.max_attempts >= 1, &["ban.max_attempts"], || "must be at least 1".to_owned());
    report.require(ban.escalation_factor >= 1.0, &["ban.escalation_factor"], || {
        format!("{} would make each ban shorter than the one before; it must be at least 1", ban.escalation_factor)
    });
    report.require(ban.max_ban_time >= ban.initial_ban_time, &["ban.max_ban_time", "ban.initial_ban_time"], || {
        format!(
            "ban.max_ban_time ({}) must not be shorter than ban.initial_ban_time ({})",
            ban.max_ban_time, ban.initial_ban_time
        )
    });
    for (key, span) in [
        ("ban.initial_ban_time", ban.initial_ban_time),
        ("ban.time_window", ban.time_window),
        ("ban.cleanup_interval", ban.cleanup_interval),
    ] {
        report.require(span.0 >= Span::default().0 + std::time::Duration::from_secs(1), &[key], || {
            format!("{span} is too short; it must be at least 1s")
        });
    }
    // The ends of bans are 32-bit seconds, which last until the year 2106.
    for (key, span) in [
        ("ban.max_ban_time", ban.max_ban_time),
        ("ban.time_window", ban.time_window),
        ("ban.cleanup_interval", ban.cleanup_interval),
        ("ban.max_memory_ttl", ban.max_memory_ttl),
    ] {
        report.require(span.0.as_secs() <= 10 * 365 * 86_400, &[key], || {
            format!("{span} is too long; at most 10 years (3650d)")
        });
    }
    report.require((0.0..=100.0).contains(&ban.alarm_ipv4_percent), &["ban.alarm_ipv4_percent"], || {
        format!("{} is out of range; it must be 0 to 100", ban.alarm_ipv4_percent)
    });
    report.require(ban.ipv4_prefix >= 8 && ban.ipv4_prefix <= 32, &["ban.ipv4_prefix"], || {
        format!("/{} is out of range; it must be 8 to 32", ban.ipv4_prefix)
    });
    report.require(ban.ipv6_prefix >= 16 && ban.ipv6_prefix <= 128, &["ban.ipv6_prefix"], || {
        format!("/{} is out of range; it must be 16 to 128", ban.ipv6_prefix)
    });
    if (8..16).contains(&ban.ipv4_prefix) {
        let (prefix, addresses) = (ban.ipv4_prefix, 1_u64 << (32 - u32::from(ban.ipv4_prefix)));
        report.warn(
            &["ban.ipv4_prefix"],
            format!("one offender bans {addresses} addresses with /{prefix}; use 24 to 32 unless you mean that"),
        );
    }
    if (65..=128).contains(&ban.ipv6_prefix) {
        let (prefix, networks) = (ban.ipv6_prefix, 1_u128 << (ban.ipv6_prefix - 64));
        report.warn(
            &["ban.ipv6_prefix"],
            format!(
                "a customer usually has a whole /64, which is {networks} networks of /{prefix}: an offender evades a ban by \
                 changing the address; use 64 unless your clients share a /64"
            ),
        );
    }
    report.require(config.allowlist_resolve_interval.0.as_secs() >= 10, &["allowlist_resolve_interval"], || {
        format!("{} is too short; it must be at least 10s", config.allowlist_resolve_interval)
    });
    for prefix in ban.nat64_prefixes.iter().filter(|prefix| !banmesh_types::nat64::is_prefix(**prefix)) {
        report.require(false, &["ban.nat64_prefixes"], || {
            format!("{prefix} is not the prefix of a translator; it must be an IPv6 network of length 32, 40, 48, 56, 64 or 96")
        });
    }
    if ban.max_memory_ttl < ban.time_window {
        report.warn(
            &["ban.max_memory_ttl", "ban.time_window"],
            format!(
                "ban.max_memory_ttl ({}) is shorter than ban.time_window ({}): offenders are removed while their \
                 offences are still counted",
                ban.max_memory_ttl, ban.time_window
            ),
        );
    }
}

fn limits(config: &Config, report: &mut Report<'_>) {
    let range = |report: &mut Report<'_>, key: &str, value: usize, low: usize, high: usize| {
        report.require((low..=high).contains(&value), &[key], || {
            format!("{value} is out of range; it must be {low} to {high}")
        });
    };
    let count = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
    if let Some(max_bans) = config.ban.max_bans {
        range(report, "ban.max_bans", max_bans, 1, 100_000_000);
    }
    range(report, "ban.max_tracked", config.ban.max_tracked, 1, 100_000_000);
    range(report, "api.history", config.api.history, 0, 1_000_000);
    range(report, "verdict.max_clients", count(config.verdict.max_clients), 1, 1_000_000);
    range(report, "spoa.max_clients", count(config.spoa.max_clients), 1, 1_000_000);
    range(report, "syslog.tcp_max_connections", count(config.syslog.tcp_max_connections), 1, 1_000_000);
    range(
        report,
        "api.rate_limiting.requests_per_minute",
        count(config.api.rate_limiting.requests_per_minute),
        1,
        1_000_000_000,
    );
    for (key, size, low, high) in [
        ("syslog.max_line", config.syslog.max_line.0, 480, 1 << 20),
        ("syslog.receive_buffer", config.syslog.receive_buffer.0, 4096, 1 << 30),
        ("cluster.max_datagram", config.cluster.max_datagram.0, LEAST_MAX_DATAGRAM, MOST_MAX_DATAGRAM),
    ] {
        report.require((low..=high).contains(&size), &[key], || {
            let show = super::value::Size;
            format!("{} is out of range; it must be {} to {}", show(size), show(low), show(high))
        });
    }
    for (key, span) in [
        ("spoa.read_timeout", Some(config.spoa.read_timeout)),
        ("cluster.max_clock_drift", Some(config.cluster.max_clock_drift)),
        ("cluster.gossip_interval", config.cluster.gossip_interval),
        ("cluster.repair_interval", config.cluster.repair_interval),
        ("cluster.dead_after", config.cluster.dead_after),
    ] {
        let positive = span.is_none_or(|span| span > Span::default());
        report.require(positive, &[key], || "must be more than 0".to_owned());
    }
    for (key, span) in [
        ("spoa.read_timeout", Some(config.spoa.read_timeout)),
        ("spoa.drain", Some(config.spoa.drain)),
        ("cluster.max_clock_drift", Some(config.cluster.max_clock_drift)),
        ("cluster.join_timeout", Some(config.cluster.join_timeout)),
        ("cluster.gossip_interval", config.cluster.gossip_interval),
        ("cluster.flush_interval", config.cluster.flush_interval),
        ("cluster.repair_interval", config.cluster.repair_interval),
        ("cluster.dead_after", config.cluster.dead_after),
    ] {
        let short = span.is_none_or(|span| span.0.as_secs() <= 86_400);
        report.require(short, &[key], || "is too long; at most 24h".to_owned());
    }
    let path = &config.prometheus.path;
    report.require(
        path.starts_with('/') && !path.contains(|c: char| c.is_whitespace() || c.is_control() || "?#{}*".contains(c)),
        &["prometheus.path"],
        || format!("{path:?} is not a path; it must begin with / and contain no blank, ?, #, *, {{ or }}"),
    );
    let id = &config.node.id;
    let wrong = id.parse::<NodeId>().err().filter(|_| !id.is_empty());
    report.require(wrong.is_none(), &["node.id"], || wrong.map_or_else(String::new, |error| error.to_string()));
}

/// A socket that the configuration opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The key that sets its port.
    pub key: &'static str,
    /// The address and port.
    pub address: SocketAddr,
    /// Whether it is UDP; otherwise TCP.
    pub udp: bool,
    /// Whether other processes may have the port at the same time (SO_REUSEPORT).
    pub shared: bool,
}

/// The sockets that `config` opens.
pub fn sockets(config: &Config) -> Vec<Listener> {
    let mut all = Vec::new();
    let mut add = |on: bool, key: &'static str, address: SocketAddr, udp: bool, shared: bool| {
        if on {
            all.push(Listener { key, address, udp, shared });
        }
    };
    let syslog = &config.syslog;
    add(syslog.enabled && syslog.protocol.udp(), "syslog.address", syslog.address, true, syslog.reuse_port);
    add(syslog.enabled && syslog.protocol.tcp(), "syslog.address", syslog.address, false, syslog.reuse_port);
    add(syslog.tls.enabled, "syslog.tls.address", syslog.tls.address, false, syslog.reuse_port);
    add(config.spoa.enabled, "spoa.port", config.spoa.listen(), false, false);
    add(config.spoa.tls.enabled, "spoa.tls.address", config.spoa.tls.address, false, false);
    add(config.cluster.enabled, "cluster.listen", config.cluster.listen, true, false);
    add(config.cluster.enabled, "cluster.listen", config.cluster.listen, false, false);
    add(config.api.enabled, "api.port", config.api.listen(), false, false);
    add(config.crowdsec.enabled, "crowdsec.port", config.crowdsec.listen(), false, false);
    add(config.lists.enabled, "lists.port", config.lists.listen(), false, false);
    add(config.prometheus.enabled, "prometheus.port", config.prometheus.listen(), false, false);
    add(config.dnsbl.enabled, "dnsbl.address", config.dnsbl.address, true, false);
    add(config.dnsbl.enabled, "dnsbl.address", config.dnsbl.address, false, false);
    if let Some(address) = config.policy.address {
        add(config.policy.enabled, "policy.address", address, false, false);
    }
    add(config.auth_policy.enabled, "auth_policy.address", config.auth_policy.address, false, false);
    if let Some(address) = config.haproxy.peers.listen {
        add(true, "haproxy.peers.listen", address, false, false);
    }
    for (key, address) in super::verdict::sockets(config) {
        add(true, key, address, false, false);
    }
    all
}

fn listeners(config: &Config, report: &mut Report<'_>) {
    let sockets = sockets(config);
    for (index, one) in sockets.iter().enumerate() {
        for other in sockets.iter().skip(index + 1) {
            // For port 0 the system chooses a free port, so two of them never collide.
            let port = one.address.port() == other.address.port() && one.address.port() != 0;
            if one.udp == other.udp && port && overlap(one.address.ip(), other.address.ip()) {
                report.require(false, &[other.key, one.key], || {
                    format!(
                        "port {} is also used by {}; each listener needs a port of its own",
                        other.address.port(),
                        one.key
                    )
                });
            }
        }
    }
}

/// Whether listeners on both addresses collide: they are equal, or one of them is the unspecified address.
fn overlap(one: IpAddr, other: IpAddr) -> bool {
    let all = |address: IpAddr, of: IpAddr| address.is_unspecified() && (address.is_ipv6() || of.is_ipv4());
    one == other || all(one, other) || all(other, one)
}

fn cluster(config: &Config, report: &mut Report<'_>) {
    let cluster = &config.cluster;
    let name = &cluster.name;
    report.require(super::value::is_cluster_name(name), &["cluster.name"], || {
        "must be 1 to 64 letters, digits or - _ .".to_owned()
    });
    report.require(cluster.sites.iter().all(|other| other.site != *name), &["cluster.sites", "cluster.name"], || {
        format!("{name} is this site: every site needs a cluster.name of its own; nodes of this site are found by cluster.seeds")
    });
    if let (Some(gossip), Some(dead)) = (cluster.gossip_interval, cluster.dead_after) {
        report.require(dead > gossip, &["cluster.dead_after", "cluster.gossip_interval"], || {
            format!("cluster.dead_after ({dead}) must be longer than cluster.gossip_interval ({gossip})")
        });
    }
    if !cluster.enabled {
        return;
    }
    report.require(
        cluster.secret_file.is_some() || cluster.insecure || cluster.listen.ip().is_loopback(),
        &["cluster.secret_file", "cluster.enabled"],
        || {
            format!(
                "anyone who can reach {} could ban and unban, because the cluster has no key: set cluster.secret_file, listen \
                 on loopback, or set cluster.insecure: true",
                cluster.listen
            )
        },
    );
    report.require(cluster.advertise.is_none_or(|to| !to.address.is_unspecified()), &["cluster.advertise"], || {
        "must be the address of one interface; other nodes cannot reach an unspecified address".to_owned()
    });
    if cluster.secret_file.is_none() && cluster.insecure && !cluster.listen.ip().is_loopback() {
        report.warn(
            &["cluster.insecure"],
            format!("anyone who can reach {} can ban and unban; set cluster.secret_file", cluster.listen),
        );
    }
    // With other sites, it may be the only node of its own.
    if cluster.seeds.is_empty() && cluster.sites.is_empty() {
        report.warn(
            &["cluster.seeds", "cluster.enabled"],
            "there are no seeds: this node waits until other nodes contact it".to_owned(),
        );
    }
}

fn access(config: &Config, report: &mut Report<'_>) {
    let auth = &config.api.basic_auth;
    report.require(
        !config.api.enabled || !auth.enabled || !auth.users.is_empty() || !auth.username.is_empty(),
        &["api.basic_auth.enabled"],
        || "there is no user to log in as: set api.basic_auth.username and password, or users".to_owned(),
    );
    report.require(
        !auth.enabled || auth.username.is_empty() || !auth.password.is_empty(),
        &["api.basic_auth.password", "api.basic_auth.username"],
        || "the password is empty".to_owned(),
    );
    report.require(
        !auth.enabled || auth.users.iter().all(|(name, password)| !name.is_empty() && !password.is_empty()),
        &["api.basic_auth.users"],
        || "a name or a password is empty".to_owned(),
    );
    let both =
        auth.users.keys().chain([&auth.username]).find(|name| config.api.users.iter().any(|(own, _)| own == *name));
    report.require(!auth.enabled || both.is_none(), &["api.users", "api.basic_auth.users"], || {
        format!("`{}` is also a user of api.basic_auth", both.map_or("", String::as_str))
    });
    api_tls(config, report);
    let syslog = &config.syslog;
    if syslog.enabled && !syslog.address.ip().is_loopback() && syslog.allowed_senders.is_empty() {
        report.warn(
            &["syslog.allowed_senders", "syslog.address"],
            format!("anyone who can send a line to {} can ban any address; set syslog.allowed_senders", syslog.address),
        );
    }
    let spoa = &config.spoa;
    let everybody = spoa.reports_from.iter().find(|from| from.prefix128() <= if from.is_ipv4() { 96 } else { 0 });
    if let Some(from) = everybody.filter(|_| spoa.allowed_clients.is_empty()) {
        report.warn(
            &["spoa.reports_from"],
            format!(
                "{from} includes every address: anyone who can reach the agent can ban any address; list only the hosts of your HAProxy"
            ),
        );
    }
    if config.filters.enabled.is_empty() && syslog.patterns.is_empty() && syslog.enabled {
        report.warn(
            &["filters.enabled", "syslog.patterns"],
            "no filter and no pattern is enabled, so no line leads to a ban".to_owned(),
        );
    }
}

fn api_tls(config: &Config, report: &mut Report<'_>) {
    let (api, tls) = (&config.api, &config.api.tls);
    for (key, file, what) in
        [("api.tls.certificate", &tls.certificate, "certificate"), ("api.tls.key", &tls.key, "key of its certificate")]
    {
        report.require(!tls.enabled || file.is_some(), &[key, "api.tls.enabled"], || {
            format!("{key} is missing: TLS needs the file with this node's {what}")
        });
    }
    if let Some(wide) = api.trusted_proxies.iter().find(|proxy| proxy.prefix() == 0) {
        report.warn(
            &["api.trusted_proxies"],
            format!("{wide} lets any client choose its address in X-Forwarded-For; list only the proxies"),
        );
    }
    report.require(
        !api.enabled || api.address.to_canonical().is_loopback() || api.asks_for_credentials(),
        &["api.address", "api.enabled"],
        || {
            format!(
                "the API must not listen on {} without authentication, because anyone who can reach it could read all bans: set \
                 api.users, api.tokens or api.basic_auth, or listen on loopback",
                api.listen()
            )
        },
    );
    if api.enabled && !tls.enabled && !api.address.is_loopback() && api.asks_for_credentials() {
        report.warn(
            &["api.tls.enabled", "api.address"],
            format!(
                "passwords and tokens cross the network to {} as plaintext; set api.tls, or listen on loopback behind a \
                 proxy with TLS",
                api.listen()
            ),
        );
    }
}

fn inputs(config: &Config, report: &mut Report<'_>) {
    let (tls, spoa) = (&config.syslog.tls, &config.spoa.tls);
    for (enabled, switch, key, file, what) in [
        (tls.enabled, "syslog.tls.enabled", "syslog.tls.certificate", &tls.certificate, "certificate"),
        (tls.enabled, "syslog.tls.enabled", "syslog.tls.key", &tls.key, "key of its certificate"),
        (spoa.enabled, "spoa.tls.enabled", "spoa.tls.certificate", &spoa.certificate, "certificate"),
        (spoa.enabled, "spoa.tls.enabled", "spoa.tls.key", &spoa.key, "key of its certificate"),
    ] {
        report.require(!enabled || file.is_some(), &[key, switch], || {
            format!("{key} is missing: TLS needs the file with this node's {what}")
        });
    }
    if tls.enabled
        && !tls.address.ip().is_loopback()
        && tls.client_ca.is_none()
        && config.syslog.allowed_senders.is_empty()
    {
        report.warn(
            &["syslog.tls.client_ca", "syslog.tls.address"],
            format!(
                "anyone who can send a line to {} can ban any address; set syslog.tls.client_ca, syslog.allowed_senders, or both",
                tls.address
            ),
        );
    }
    report.require(config.inputs.catch_up.0.as_secs() <= 7 * 86_400, &["inputs.catch_up"], || {
        format!("{} is too long; at most 7d", config.inputs.catch_up)
    });
    report.require(config.inputs.journal.format != LineFormat::Auto, &["inputs.journal.format"], || {
        "auto is not possible for the journal, whose messages may begin with a client's text; name the format"
            .to_owned()
    });
    for (key, what, words) in [
        ("inputs.journal.units", "unit", &config.inputs.journal.units),
        ("inputs.journal.matches", "match", &config.inputs.journal.matches),
    ] {
        let bad = words.iter().find(|word| word.is_empty() || word.starts_with('-') || word.contains('\0'));
        report.require(bad.is_none(), &[key], || format!("{:?} is not a {what}", bad.map_or("", String::as_str)));
    }
    let bad = config.inputs.journal.matches.iter().find(|word| !word.contains('=') && *word != "+");
    report.require(bad.is_none(), &["inputs.journal.matches"], || {
        format!("{:?} is not a match; write FIELD=value, such as _COMM=sshd", bad.map_or("", String::as_str))
    });
}

fn mirror(config: &Config, report: &mut Report<'_>) {
    let haproxy = &config.haproxy;
    report.require(haproxy.runtime.is_empty() || haproxy.map.is_some(), &["haproxy.map", "haproxy.runtime"], || {
        "haproxy.map is missing: name the map as haproxy.cfg does, such as /etc/haproxy/banmesh.map".to_owned()
    });
    report.require(haproxy.verify_interval.0.as_secs() >= 1, &["haproxy.verify_interval"], || {
        format!("{} is too short; it must be at least 1s", haproxy.verify_interval)
    });
    let twice = haproxy.runtime.iter().enumerate().find(|(at, one)| haproxy.runtime[..*at].contains(one));
    report.require(twice.is_none(), &["haproxy.runtime"], || "a socket is listed twice".to_owned());
    if haproxy.map.is_some() && haproxy.runtime.is_empty() {
        report.warn(&["haproxy.map"], "without effect, because haproxy.runtime is empty".to_owned());
    }
}

fn firewall(config: &Config, report: &mut Report<'_>) {
    let hooks = &config.firewall.hooks;
    report.require(!hooks.is_empty(), &["firewall.hooks"], || {
        "is empty, so nothing would be dropped; write [prerouting], or set firewall.enabled to false".to_owned()
    });
    let twice = hooks.iter().enumerate().find(|(at, hook)| hooks[..*at].contains(hook));
    report.require(twice.is_none(), &["firewall.hooks"], || "a hook is listed twice".to_owned());
}

/// Warns if every host on the network can query the agent.
fn open_agent(config: &Config, report: &mut Report<'_>) {
    let spoa = &config.spoa;
    // A client's certificate is accepted instead of its address.
    for (on, listen, key) in [
        (spoa.enabled, spoa.listen(), "spoa.address"),
        (spoa.tls.enabled && spoa.tls.client_ca.is_none(), spoa.tls.address, "spoa.tls.address"),
    ] {
        if on && !listen.ip().is_loopback() && spoa.allowed_clients.is_empty() {
            report.warn(
                &["spoa.allowed_clients", key],
                format!(
                    "anyone who can reach {listen} can query bans and take connections from HAProxy; list the hosts of your HAProxy in \
                     spoa.allowed_clients, or set {key} to a loopback address"
                ),
            );
        }
    }
}
