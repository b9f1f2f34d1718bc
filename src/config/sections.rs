//! Every key: its section, name, type, default and meaning. This is the one place for each of them.
//!
//! The docstrings appear in `docs/configuration.md` and `config/banmesh.yaml`. `@live` marks keys that a reload applies without
//! a restart.

mod api;
mod evidence;
mod fetching;
mod geo;
mod inputs;
mod mail;
mod peers;
mod verdict;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::allowlist::AllowlistEntry;
use super::feeds::FeedConfig;
use super::filter_limits::Limits as FilterLimits;
use super::setting::section;
use super::value::{Advertise, FilterMode, HostPort, LogFormat, LogLevel, RuntimeSocket, SiteAddress, Size, TableName};
use super::webhooks::WebhookConfig;
pub use api::{ApiConfig, ApiTlsConfig, BasicAuthConfig, RateLimitingConfig};
use banmesh_cluster::timers::Profile;
use banmesh_haproxy::runtime::MapName;
use banmesh_nftables::batch::Hook;
use banmesh_types::target::Target;
use banmesh_types::time::Span;
pub use evidence::EvidenceConfig;
pub use fetching::{CrowdsecConfig, CrowdsecTlsConfig, ListsConfig, ListsTlsConfig};
pub use geo::GeoConfig;
pub use inputs::{InputsConfig, JournalInputConfig, SyslogConfig, SyslogTlsConfig};
pub use mail::{AuthPolicyConfig, DnsblConfig, PolicyConfig};
pub use peers::PeersConfig;
pub use verdict::{EnvoyConfig, NginxConfig, VerdictConfig};

const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

const fn seconds(count: u64) -> Span {
    Span(Duration::from_secs(count))
}

const fn minutes(count: u64) -> Span {
    seconds(count * 60)
}

const fn hours(count: u64) -> Span {
    minutes(count * 60)
}

/// `address` with a prefix in 128 bits.
fn network(address: IpAddr, prefix128: u8) -> Target {
    Target::from_bits(banmesh_types::address::Address::new(address).bits(), prefix128)
}

section! {
    /// The whole configuration, resolved: defaults, then the file, then the environment.
    Config {
        /// This node.
        node: NodeConfig = NodeConfig::default();
        /// Where log lines come in.
        syslog: SyslogConfig = SyslogConfig::default();
        /// Other sources of log lines.
        inputs: InputsConfig = InputsConfig::default();
        /// What recognises attacks in the lines.
        @live filters: FilterConfig = FilterConfig::default();
        /// When and for how long a source is banned.
        ban: BanConfig = BanConfig::default();
        /// Detection by accounts, names and networks.
        evidence: EvidenceConfig = EvidenceConfig::default();
        /// Addresses and networks that are never banned, whatever they do and whoever bans them. Checked before an
        /// offence is counted, and again at every answer to HAProxy. A name, such as one of dynamic DNS, stands for the addresses
        /// that it has at the time, 16 at most.
        @live allowlist: Vec<AllowlistEntry> = vec![
            AllowlistEntry::Target(network(LOOPBACK, 104)),
            AllowlistEntry::Target(Target::host(Ipv6Addr::LOCALHOST.into())),
        ];
        /// Files with more elements of `allowlist`, one per line. `#` and `;` begin a comment. A reload reads them again.
        @live allowlist_files: Vec<PathBuf> = Vec::new();
        /// How often the names in the allowlist are resolved. A name that cannot be resolved keeps its last addresses.
        @live allowlist_resolve_interval: Span = minutes(5);
        /// Lists of bad addresses that others publish (docs/feeds.md). Each is the name of a known feed (`banmesh feeds catalogue`),
        /// or has `name`, `url` or `file`, `format` (`plain`, `spamhaus`, `dshield` or `tor`), `effect` (`weight`, `ban` or
        /// `observe`), `weight` (3: what a first failure from there counts), `interval`, `keep` (how long a list counts that
        /// cannot be asked for again), `key` or `key_file` with `key_header`, `ca`, `timeout` (60s) and `credit`.
        feeds: Vec<FeedConfig> = Vec::new();
        /// Countries and networks.
        geo: GeoConfig = GeoConfig::default();
        /// The agent that HAProxy queries over SPOP.
        spoa: SpoaConfig = SpoaConfig::default();
        /// Mirror mode: bans in a map of HAProxy.
        haproxy: HaproxyConfig = HaproxyConfig::default();
        /// Bans in the kernel's firewall.
        firewall: FirewallConfig = FirewallConfig::default();
        /// Bans as a DNS block list.
        dnsbl: DnsblConfig = DnsblConfig::default();
        /// Postfix's policy delegation.
        policy: PolicyConfig = PolicyConfig::default();
        /// Dovecot's auth policy.
        auth_policy: AuthPolicyConfig = AuthPolicyConfig::default();
        /// CrowdSec's bouncers.
        crowdsec: CrowdsecConfig = CrowdsecConfig::default();
        /// Lists of bans for appliances.
        lists: ListsConfig = ListsConfig::default();
        /// The nodes that share bans.
        cluster: ClusterConfig = ClusterConfig::default();
        /// The HTTP API.
        api: ApiConfig = ApiConfig::default();
        /// Metrics.
        prometheus: PrometheusConfig = PrometheusConfig::default();
        /// Webhooks.
        notifications: NotificationsConfig = NotificationsConfig::default();
        /// The log that banmesh itself writes.
        log: LogConfig = LogConfig::default();
        /// The socket for the command line.
        admin: AdminConfig = AdminConfig::default();
        /// The endpoint that nginx, Traefik, Caddy and Envoy ask.
        verdict: VerdictConfig = VerdictConfig::default();
        /// The verdict endpoint at another address, as in configurations of WebFail2Ban.
        nginx: NginxConfig = NginxConfig::default();
        /// The verdict endpoint at another address, as in configurations of WebFail2Ban.
        envoy: EnvoyConfig = EnvoyConfig::default();
    }
}

section! {
    /// `node`: this node.
    NodeConfig {
        /// The name of this node in the cluster; must be unique. Empty: a UUID, generated once and stored in
        /// `data_dir`.
        id: String = String::new();
        /// The directory for the journal of bans and the node's id. It must be writable.
        data_dir: PathBuf = PathBuf::from("/var/lib/banmesh");
    }
}

section! {
    /// `filters`: what recognises attacks.
    FilterConfig {
        /// Directories with your own filter files (`*.yaml`). They add to the built-in filters and override them by
        /// name.
        dirs: Vec<PathBuf> = Vec::new();
        /// The names of the filters in force. `[all]` means every filter, `[]` none. `name:mode` sets the mode of one
        /// filter.
        enabled: Vec<String> = ["dovecot", "postfix", "sogo", "sshd"].map(str::to_owned).to_vec();
        /// How strict the filters are. `normal`: failed logins and clear attacks. `ddos`: also connections made only to
        /// use up resources. `aggressive`: also what a misconfigured but honest client may do.
        mode: FilterMode = FilterMode::Normal;
        /// Limits of one filter, instead of those in `ban` and in the filter's file: `ban` has `max_attempts`, `time_window`,
        /// `initial_ban_time`, `max_ban_time`, `escalation_factor` and `mode`; `rules` has the same for single rules, by name. A filter or
        /// a rule with `mode: shadow` counts separately and bans nobody. The variable takes all filters, as in `{ sshd: { ban: … } }`.
        each: FilterLimits = FilterLimits::new();
    }
}

section! {
    /// `ban`: when and for how long a source is banned.
    BanConfig {
        /// The duration of the first ban.
        @live initial_ban_time: Span = minutes(5);
        /// The longest duration of an automatic ban.
        @live max_ban_time: Span = hours(24);
        /// The factor by which each further ban of the same source is longer than the one before; at least 1.
        @live escalation_factor: f64 = 2.0;
        /// The number of offences within `time_window` that leads to a ban.
        @live max_attempts: u32 = 5;
        /// The time within which offences are counted together.
        @live time_window: Span = minutes(10);
        /// How often expired entries are removed.
        @live cleanup_interval: Span = minutes(1);
        /// How long the entry of a source is kept after its last offence, so that the next ban is longer.
        @live max_memory_ttl: Span = hours(72);
        /// How many entries the table can hold. Empty: 4,000,000, or as many as fit into the memory limit of the process
        /// (cgroup, `MemoryMax`): 256 bytes per entry after the first 128 MiB. A sixteenth is reserved for operators
        /// and for other nodes. When the rest is used, expired bans are dropped, those with the earliest end of retention
        /// first. If no expired ban is left, new automatic bans are refused. Set the same number on all nodes.
        max_bans: Option<usize> = None;
        /// The share of all IPv4 addresses, in percent. While more are banned, the node raises an alarm. A ban of one /8
        /// is 0.39 percent.
        alarm_ipv4_percent: f64 = 1.0;
        /// How many sources can be counted at once. This bounds the memory that a flood of invented addresses can use.
        /// Beyond it, the counts of the least active sources are dropped.
        max_tracked: usize = 262_144;
        /// Do everything except ban, and log what would have been banned.
        @live dry_run: bool = false;
        /// The prefix length by which IPv4 sources are counted and banned. 32 is a single address.
        @live ipv4_prefix: u8 = 32;
        /// The prefix length by which IPv6 sources are counted and banned. 64 is what one customer usually has.
        @live ipv6_prefix: u8 = 64;
        /// The prefixes of NAT64 and other translators (RFC 6052). An address inside one is counted, banned and answered as
        /// the IPv4 address that it stands for. The length of a prefix is 32, 40, 48, 56, 64 or 96.
        @live nat64_prefixes: Vec<Target> = vec![banmesh_types::nat64::well_known()];
        /// Never ban the addresses of this host's interfaces (of the loopback interface only 127.0.0.0/8 and ::1), of the
        /// cluster's members, and of the hosts and networks of at most a /24 (IPv6: /64) in `spoa.allowed_clients`,
        /// `syslog.allowed_senders`, and the `allowed_clients` of `dnsbl`, `policy` and `auth_policy`.
        ignore_self: bool = true;
        /// Whether a successful login clears the offences counted for its source, if a filter recognises the login.
        @live success_clears: bool = false;
    }
}

section! {
    /// `spoa`: the agent that HAProxy queries.
    SpoaConfig {
        /// Whether this node answers HAProxy over plaintext SPOP. `spoa.tls` has its own switch.
        enabled: bool = true;
        /// The address to listen on. Use 127.0.0.1 if HAProxy runs on the same host.
        address: IpAddr = ANY;
        /// The port to listen on.
        port: u16 = 12345;
        /// The maximum number of connections from HAProxy, with or without TLS. In a burst, up to ten times as many are
        /// accepted; idle ones are then closed one at a time until the limit holds again.
        max_clients: u32 = 100;
        /// How long a client may take for its first frame, and for the rest of a frame that it has begun. Idle
        /// connections stay open.
        read_timeout: Span = seconds(30);
        /// The addresses and networks of HAProxy, which may query; empty means anyone who can reach the port.
        allowed_clients: Vec<Target> = Vec::new();
        /// The addresses and networks whose reports of offences (the SPOE message `report-offence`) are counted; empty
        /// means none. Anyone who can report can ban, so list only hosts that run your HAProxy. The loopback lets every
        /// process on this host report.
        reports_from: Vec<Target> = Vec::new();
        /// How long a stopping node still answers existing connections while HAProxy moves to another agent.
        drain: Span = seconds(3);
        /// SPOP over TLS.
        tls: SpoaTlsConfig = SpoaTlsConfig::default();
    }
}

section! {
    /// `spoa.tls`: SPOP over TLS, for HAProxy on other hosts. The other keys of `spoa` apply here as well.
    SpoaTlsConfig {
        /// Whether this node answers HAProxy over TLS, with or without the plaintext port (`spoa.enabled`).
        enabled: bool = false;
        /// The address and port to listen on.
        address: SocketAddr = SocketAddr::new(LOOPBACK, 12347);
        /// The file with this node's certificate and any intermediate certificates, in PEM. A reload reads it again.
        certificate: Option<PathBuf> = None;
        /// The file with the certificate's private key, in PEM. A reload reads it again.
        key: Option<PathBuf> = None;
        /// The file with the CA certificates, in PEM, that must have signed HAProxy's certificate. Empty: HAProxy needs
        /// no certificate. A reload reads it again.
        client_ca: Option<PathBuf> = None;
    }
}

section! {
    /// `haproxy`: mirror mode. The node keeps a map in each HAProxy equal to its bans, so that HAProxy decides by
    /// itself, also while the node is down (docs/haproxy.md).
    HaproxyConfig {
        /// The runtime API of each HAProxy: the path of its `stats socket`, or host:port. The socket needs `level
        /// admin`. Empty: no map is kept.
        runtime: Vec<RuntimeSocket> = Vec::new();
        /// The name of the map, written as in the rule of haproxy.cfg that uses it. The map belongs to banmesh, which
        /// removes anything else from it.
        map: Option<MapName> = None;
        /// Also write the bans of IPv4 clients as addresses inside `ban.nat64_prefixes`, for a HAProxy that sees them
        /// through a translator. The map then has one more entry per prefix for each of these bans.
        nat64: bool = false;
        /// How often the content of the maps is compared with the bans. The number of entries is compared every second.
        verify_interval: Span = minutes(5);
        /// Bans and limits in HAProxy's own stick-tables.
        peers: PeersConfig = PeersConfig::default();
    }
}

section! {
    /// `firewall`: bans in the kernel's firewall (nftables), so that they hold for every port of this host, such as that of SSH, and also
    /// while the node is down (docs/enforcement.md).
    FirewallConfig {
        /// Whether the node keeps its bans in the firewall. It needs the capability CAP_NET_ADMIN.
        enabled: bool = false;
        /// The name of the table of the family inet. It belongs to banmesh, which removes anything else from it. Two nodes in one network
        /// namespace need two names.
        table: TableName = TableName::default();
        /// Where packets of banned sources are dropped. `prerouting`: everything that arrives, also for containers and other hosts.
        /// `input`: only what is for this host. `forward`: only what is for containers and other hosts.
        hooks: Vec<Hook> = vec![Hook::Prerouting];
        /// Answer TCP from banned sources with a reset instead of silence. Clients notice their ban at once, and so do attackers.
        reject: bool = false;
        /// When a ban begins, also end the TCP connections that its source has to this host. Otherwise they stay without traffic until
        /// their programs give up.
        end_connections: bool = false;
        /// Also drop the bans of IPv4 clients in the form of `ban.nat64_prefixes`, for a host that sees them through a translator. The
        /// firewall then has twice as many entries.
        nat64: bool = false;
    }
}

section! {
    /// `cluster`: the nodes that share bans.
    ClusterConfig {
        /// Whether this node shares bans with others.
        enabled: bool = false;
        /// The cluster's name. A node ignores nodes with another name.
        name: String = "banmesh".to_owned();
        /// The address and port to listen on: UDP for gossip, TCP for repair.
        listen: SocketAddr = SocketAddr::new(ANY, 12350);
        /// The address at which the other nodes reach this node, with or without a port. Empty: the address of the
        /// interface that reaches the seeds.
        advertise: Option<Advertise> = None;
        /// Nodes to contact first, as host:port. Names are resolved repeatedly, to all their addresses.
        seeds: Vec<HostPort> = Vec::new();
        /// Nodes of other sites with which this site shares its bans, as name@host:port. Each site is a cluster with a `name` of its own,
        /// and the same keys. Two of the nodes that name sites exchange bans with each of them.
        sites: Vec<SiteAddress> = Vec::new();
        /// `lan`, `wan` or `local` (one host): sets the timers below.
        profile: Profile = Profile::Lan;
        /// The file with the cluster's keys: one base64 key of 32 bytes per line. The first key encrypts, all of them
        /// decrypt.
        secret_file: Option<PathBuf> = None;
        /// Whether to listen beyond loopback without `secret_file`. Then anyone who can reach the port can ban and
        /// unban.
        insecure: bool = false;
        /// The longest datagram that the node sends, in bytes of payload, from 508 to 8900. Lower it if a tunnel between the
        /// nodes drops longer packets.
        max_datagram: Size = Size(1_200);
        /// How far another node's clock may be ahead of this node's clock. Entries that are further ahead take effect when
        /// this node's clock reaches them.
        max_clock_drift: Span = seconds(10);
        /// Whether offences are counted across the cluster, so that an attacker gains nothing by spreading them over
        /// nodes.
        count_attempts: bool = true;
        /// How long a starting node looks for peers before it is ready alone.
        join_timeout: Span = seconds(10);
        /// How often the node gossips. Empty: set by the profile, as for the timers that follow.
        gossip_interval: Option<Span> = None;
        /// How long a busy node collects changes before it sends them.
        flush_interval: Option<Span> = None;
        /// How often the table is compared with that of a random peer.
        repair_interval: Option<Span> = None;
        /// The time without a heartbeat after which a node counts as dead.
        dead_after: Option<Span> = None;
    }
}

section! {
    /// `prometheus`: metrics.
    PrometheusConfig {
        /// Whether to serve metrics on a port of their own, without authentication.
        enabled: bool = false;
        /// The address to listen on.
        address: IpAddr = ANY;
        /// The port to listen on.
        port: u16 = 2112;
        /// The path of the metrics.
        path: String = "/metrics".to_owned();
    }
}

section! {
    /// `notifications`: webhooks.
    NotificationsConfig {
        /// HTTP servers to notify. Each has `url`, and may have `name`, `events` (any of `ban`, `unban`, `allow`, `cluster`,
        /// `alarm`; default all), `filters` (only bans by these filters), `template` (JSON with `{{summary}}` and
        /// others), `secret` (signs each body), `authorization` (the value of that header), `ca` (the file with the CA
        /// certificates, in PEM, that must have signed the server's certificate), `timeout` (10s), `retries` (6) and
        /// `collect` (1s).
        webhooks: Vec<WebhookConfig> = Vec::new();
    }
}

section! {
    /// `log`: the log that banmesh itself writes, to standard error.
    LogConfig {
        /// The least severe messages to log: `error`, `warn`, `info`, `debug` or `trace`.
        @live level: LogLevel = LogLevel::Info;
        /// `human`, or `json` with one object per line.
        format: LogFormat = LogFormat::Human;
    }
}

section! {
    /// `admin`: the socket for the command line.
    AdminConfig {
        /// The Unix socket over which `banmesh ban`, `list` and the other commands reach the running node. Empty:
        /// `banmesh.sock` in `node.data_dir`.
        socket: Option<PathBuf> = None;
    }
}

impl Config {
    /// The admin socket of this node: `admin.socket`, or `banmesh.sock` in `node.data_dir`.
    pub fn admin_socket(&self) -> PathBuf {
        self.admin.socket.clone().unwrap_or_else(|| self.node.data_dir.join("banmesh.sock"))
    }
}

impl SpoaConfig {
    /// Address and port to listen on.
    pub const fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

impl PrometheusConfig {
    /// Address and port to listen on.
    pub const fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

impl ClusterConfig {
    /// The advertised address, with the listening port if it has none.
    pub fn advertised(&self) -> Option<SocketAddr> {
        self.advertise.map(|to| SocketAddr::new(to.address, to.port.unwrap_or(self.listen.port())))
    }
}
