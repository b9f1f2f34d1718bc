//! Every key: its section, name, type, default and meaning. This is the one place for each of them.
//!
//! The docstrings appear in `docs/configuration.md`; `@live` marks what a reload applies without a restart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::access::{ApiTokens, ApiUsers};
use super::setting::section;
use super::structured::{FileInput, PatternConfig, Users};
use super::value::{
    Advertise, FilterMode, HostPort, LogFormat, LogLevel, Profile, Protocol, RuntimeSocket, Secret, Size,
};
use super::webhooks::WebhookConfig;
use crate::config::role::Role;
use banmesh_haproxy::runtime::MapName;
use banmesh_types::target::Target;
use banmesh_types::time::Span;

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
    Target::from_bits(banmesh_types::target::bits_of(address), prefix128)
}

section! {
    /// The whole configuration, resolved: defaults, then the file, then the environment.
    Config {
        /// This node.
        node: NodeConfig = NodeConfig::default();
        /// Where log lines come in.
        syslog: SyslogConfig = SyslogConfig::default();
        /// Where else they come from.
        inputs: InputsConfig = InputsConfig::default();
        /// What recognises attacks in them.
        @live filters: FilterConfig = FilterConfig::default();
        /// When and for how long a source is banned.
        ban: BanConfig = BanConfig::default();
        /// Addresses and networks that are never banned, whatever they do and whoever bans them. Checked before an
        /// offence is counted and again at every answer to HAProxy.
        @live allowlist: Vec<Target> = vec![network(LOOPBACK, 104), Target::host(Ipv6Addr::LOCALHOST.into())];
        /// The agent that HAProxy asks.
        spoa: SpoaConfig = SpoaConfig::default();
        /// HAProxy itself, told over its runtime API.
        haproxy: HaproxyConfig = HaproxyConfig::default();
        /// The nodes that share bans.
        cluster: ClusterConfig = ClusterConfig::default();
        /// The HTTP API.
        api: ApiConfig = ApiConfig::default();
        /// Metrics.
        prometheus: PrometheusConfig = PrometheusConfig::default();
        /// Who is told what happens.
        notifications: NotificationsConfig = NotificationsConfig::default();
        /// The log that banmesh itself writes.
        log: LogConfig = LogConfig::default();
        /// The socket of the command line.
        admin: AdminConfig = AdminConfig::default();
        /// WebFail2Ban's server for nginx, which banmesh does not have.
        nginx: NginxConfig = NginxConfig::default();
        /// WebFail2Ban's server for Envoy, which banmesh does not have.
        envoy: EnvoyConfig = EnvoyConfig::default();
    }
}

section! {
    /// `node`: this node.
    NodeConfig {
        /// The name under which the others know this node; must be unique. Empty: a UUID, made once and kept in `data_dir`.
        id: String = String::new();
        /// The directory for the journal of bans and the node's identity. It must be writable.
        data_dir: PathBuf = PathBuf::from("/var/lib/banmesh");
    }
}

section! {
    /// `syslog`: where log lines come in.
    SyslogConfig {
        /// Whether this node listens for syslog by UDP or TCP; `syslog.tls` and `inputs` have switches of their own. Without
        /// any of them it still answers HAProxy from what its peers ban.
        enabled: bool = true;
        /// The address and port to listen on. With 127.0.0.1, `[::1]` is listened on as well, for `localhost` is either.
        /// Ports under 1024 need the capability CAP_NET_BIND_SERVICE.
        address: SocketAddr = SocketAddr::new(LOOPBACK, 514);
        /// `udp`, `tcp`, or `both` on the same port.
        protocol: Protocol = Protocol::Udp;
        /// Patterns of your own, beside the filters: each has `name`, `regex`, `ip_group` (which group of the regex
        /// captures the address; unless given `<HOST>`, else the first group), `severity` (1 to 6; 3 unless given) and
        /// `description`.
        @live patterns: Vec<PatternConfig> = Vec::new();
        /// Who may send lines, as addresses and networks; empty means everybody who reaches the port. Who can send a line
        /// can ban: set this wherever the port is open to others.
        allowed_senders: Vec<Target> = Vec::new();
        /// Whether several processes on one host may listen on the port together (SO_REUSEPORT), so that one may die.
        reuse_port: bool = false;
        /// The size of the socket's receive buffer, which holds the lines of a burst. The kernel's limit
        /// (net.core.rmem_max) may cut it.
        receive_buffer: Size = Size::mib(32);
        /// The longest line that is taken; a longer one is dropped, and counted.
        max_line: Size = Size::kib(64);
        /// How many TCP senders may be connected at once.
        tcp_max_connections: u32 = 1000;
        /// Syslog over TLS.
        tls: SyslogTlsConfig = SyslogTlsConfig::default();
    }
}

section! {
    /// `syslog.tls`: syslog over TLS (RFC 5425). `allowed_senders`, `max_line` and `tcp_max_connections` hold here as well.
    SyslogTlsConfig {
        /// Whether this node listens for syslog over TLS, beside UDP and TCP or without them.
        enabled: bool = false;
        /// The address and port to listen on.
        address: SocketAddr = SocketAddr::new(LOOPBACK, 6514);
        /// The file with this node's certificate and those between it and the root, in PEM. A reload reads it again.
        certificate: Option<PathBuf> = None;
        /// The file with the certificate's private key, in PEM. A reload reads it again.
        key: Option<PathBuf> = None;
        /// The file with the certificates, in PEM, by which senders must be signed. Empty: senders need none. A reload reads
        /// it again.
        client_ca: Option<PathBuf> = None;
    }
}

section! {
    /// `inputs`: where log lines come from beside syslog.
    InputsConfig {
        /// Log files to follow: paths or globs, or `{ path, program }` for files whose lines do not say which program
        /// wrote them. Rotated files that a glob also matches are not read twice.
        files: Vec<FileInput> = Vec::new();
        /// How far back files and the journal are read after a restart. Lines count as if they were written when they are
        /// read, so what is older than `ban.time_window` says nothing any more.
        catch_up: Span = minutes(10);
        /// The systemd journal.
        journal: JournalInputConfig = JournalInputConfig::default();
    }
}

section! {
    /// `inputs.journal`: the systemd journal.
    JournalInputConfig {
        /// Whether the journal of this host is followed. The user needs to be in the group `systemd-journal`.
        enabled: bool = false;
        /// Only the lines of these units; empty means of all.
        units: Vec<String> = Vec::new();
        /// Only lines with these fields, as journalctl takes them: `_COMM=sshd`.
        matches: Vec<String> = Vec::new();
        /// The program that reads the journal.
        command: PathBuf = PathBuf::from("journalctl");
    }
}

section! {
    /// `filters`: what recognises attacks.
    FilterConfig {
        /// Directories with filter files of your own (`*.yaml`), which add to the built-in ones and override them by name.
        dirs: Vec<PathBuf> = Vec::new();
        /// Which filters are in force, by name; `[all]` is every one there is, `[]` none, `name:mode` has
        /// a mode of its own.
        enabled: Vec<String> = ["dovecot", "postfix", "sogo", "sshd"].map(str::to_owned).to_vec();
        /// How strict they are: `normal`; `ddos`: also connections that are made only to cost something; `aggressive`:
        /// also what a misconfigured but honest client may do.
        mode: FilterMode = FilterMode::Normal;
    }
}

section! {
    /// `ban`: when and for how long a source is banned.
    BanConfig {
        /// How long the first ban lasts.
        @live initial_ban_time: Span = minutes(5);
        /// The longest that an automatic ban lasts.
        @live max_ban_time: Span = hours(24);
        /// By how much each further ban of the same source is longer than the one before it; at least 1.
        @live escalation_factor: f64 = 2.0;
        /// After how many offences within `time_window` a source is banned.
        @live max_attempts: u32 = 5;
        /// The time within which offences are counted together.
        @live time_window: Span = minutes(10);
        /// How often what is over is cleared away.
        @live cleanup_interval: Span = minutes(1);
        /// How long after it was last seen an offender is remembered, so that the next ban is longer.
        @live max_memory_ttl: Span = hours(72);
        /// How many bans the table holds. When it is full, new automatic bans are refused, with an alarm.
        max_bans: usize = 4_000_000;
        /// How many offenders are held while their offences are counted; a bound for floods of invented addresses.
        max_tracked: usize = 262_144;
        /// Do everything but ban, and log what would have been done.
        @live dry_run: bool = false;
        /// The prefix by which IPv4 sources are counted and banned: 32 is the single address.
        @live ipv4_prefix: u8 = 32;
        /// The prefix by which IPv6 sources are counted and banned: 64 is what one customer usually has.
        @live ipv6_prefix: u8 = 64;
        /// Whether a successful login clears the offences counted for its source, where a filter recognises one.
        @live success_clears: bool = false;
    }
}

section! {
    /// `spoa`: the agent that HAProxy asks.
    SpoaConfig {
        /// Whether this node answers HAProxy in the clear; `spoa.tls` has a switch of its own.
        enabled: bool = true;
        /// The address to listen on. Set 127.0.0.1 where HAProxy runs on the same host.
        address: IpAddr = ANY;
        /// The port to listen on.
        port: u16 = 12345;
        /// How many connections from HAProxy are held, over TLS or not. At the limit the one idle longest is closed; while
        /// none is idle, up to ten times as many are held.
        max_clients: u32 = 100;
        /// How long a client may take for its first frame and for the rest of a frame that it has begun. Idle
        /// connections stay.
        read_timeout: Span = seconds(30);
        /// Who may ask, as addresses and networks; empty means everybody who reaches the port.
        allowed_clients: Vec<Target> = Vec::new();
        /// Whose reports of offences (the SPOE message `report-offence`) are counted, as addresses and networks; empty means
        /// nobody's. Who can report can ban: beside the loopback, name only hosts with a HAProxy of yours.
        reports_from: Vec<Target> = vec![network(LOOPBACK, 104), Target::host(Ipv6Addr::LOCALHOST.into())];
        /// How long, on the way out, connections are still answered while HAProxy goes elsewhere.
        drain: Span = seconds(3);
        /// SPOP over TLS.
        tls: SpoaTlsConfig = SpoaTlsConfig::default();
    }
}

section! {
    /// `spoa.tls`: SPOP over TLS, for HAProxy on other hosts. The other keys of `spoa` hold here as well.
    SpoaTlsConfig {
        /// Whether this node answers HAProxy over TLS, beside `spoa.port` or without it (`spoa.enabled`).
        enabled: bool = false;
        /// The address and port to listen on.
        address: SocketAddr = SocketAddr::new(LOOPBACK, 12347);
        /// The file with this node's certificate and those between it and the root, in PEM. A reload reads it again.
        certificate: Option<PathBuf> = None;
        /// The file with the certificate's private key, in PEM. A reload reads it again.
        key: Option<PathBuf> = None;
        /// The file with the certificates, in PEM, by which HAProxy's own must be signed. Empty: HAProxy needs none. A reload
        /// reads it again.
        client_ca: Option<PathBuf> = None;
    }
}

section! {
    /// `haproxy`: mirror mode. The node keeps a map of each HAProxy in step with its bans, so that HAProxy decides by
    /// itself, also while the node is down (docs/haproxy.md).
    HaproxyConfig {
        /// Where each HAProxy takes commands: the path of its `stats socket`, or host:port. They need `level admin`. Empty:
        /// no map is kept.
        runtime: Vec<RuntimeSocket> = Vec::new();
        /// The map, written as in the rule of haproxy.cfg that uses it. It belongs to banmesh: whatever else is in it is
        /// taken out.
        map: Option<MapName> = None;
        /// How often the content of the maps is compared with the bans. The number of their entries is every second.
        verify_interval: Span = minutes(5);
    }
}

section! {
    /// `cluster`: the nodes that share bans.
    ClusterConfig {
        /// Whether this node shares bans with others.
        enabled: bool = false;
        /// The cluster's name; nodes with another name are not heard.
        name: String = "banmesh".to_owned();
        /// The address and port to listen on: gossip by UDP, repair by TCP.
        listen: SocketAddr = SocketAddr::new(ANY, 12350);
        /// The address under which the others reach this node, with or without a port. Empty: the address of the
        /// interface that reaches the seeds.
        advertise: Option<Advertise> = None;
        /// Some nodes to begin with, as host:port. Names are resolved again and again, to all their addresses.
        seeds: Vec<HostPort> = Vec::new();
        /// `lan`, `wan` or `local` (one host): sets the timers below.
        profile: Profile = Profile::Lan;
        /// The file with the cluster's keys: one base64 key of 32 bytes a line. The first one seals, all of them open.
        secret_file: Option<PathBuf> = None;
        /// Whether to listen beyond loopback without `secret_file`. Then whoever reaches the port can ban and unban.
        insecure: bool = false;
        /// How far ahead of this node's clock another's may be. What is further ahead waits.
        max_clock_drift: Span = seconds(10);
        /// Whether offences are counted across the cluster, so that spreading them over nodes gains nothing.
        count_attempts: bool = true;
        /// How long to look for peers at the start before the node is ready alone.
        join_timeout: Span = seconds(10);
        /// How often a node gossips. Empty: as the profile has it, as for the timers that follow.
        gossip_interval: Option<Span> = None;
        /// For how long a busy node collects changes before it sends them.
        flush_interval: Option<Span> = None;
        /// How often the table is compared with a random peer's.
        repair_interval: Option<Span> = None;
        /// After which silence a node counts as dead.
        dead_after: Option<Span> = None;
    }
}

section! {
    /// `api`: the HTTP API.
    ApiConfig {
        /// Whether the API is served.
        enabled: bool = true;
        /// The address to listen on.
        address: IpAddr = LOOPBACK;
        /// The port to listen on.
        port: u16 = 8888;
        /// Who may use it, as addresses and networks.
        @live allowed_ips: Vec<Target> = vec![Target::host(LOOPBACK), Target::host(Ipv6Addr::LOCALHOST.into())];
        /// People, by name. Each has a `role` (`read`; `operate`: also bans and lifts; `admin`: everything) and one of
        /// `password_hash` (`banmesh api hash-password` makes it), `password`, and `password_file`, whose first line is
        /// either. With users or tokens everybody has to say who they are.
        @live users: ApiUsers = ApiUsers::default();
        /// Programs, by name. Each has a `role` and one of `token_hash` (`banmesh api token` makes token and hash), `token`
        /// (at least 24 characters that nobody can guess), and `token_file`; and may have `expires`, such as `2027-01-31`.
        @live tokens: ApiTokens = ApiTokens::default();
        /// Proxies in front of the API, as addresses and networks. Only what comes from them may say by `X-Forwarded-For` who
        /// the client is.
        @live trusted_proxies: Vec<Target> = Vec::new();
        /// Names and passwords.
        @live basic_auth: BasicAuthConfig = BasicAuthConfig::default();
        /// How often one client may ask.
        rate_limiting: RateLimitingConfig = RateLimitingConfig::default();
        /// How many offences, with their lines, and how many decisions this node remembers to say why an address is banned; up
        /// to 1 KiB of memory each. 0 remembers none.
        history: usize = 10_000;
        /// The API over TLS.
        tls: ApiTlsConfig = ApiTlsConfig::default();
    }
}

section! {
    /// `api.tls`: the API over TLS. Set it wherever passwords and tokens cross a network.
    ApiTlsConfig {
        /// Whether the API is served over TLS alone.
        enabled: bool = false;
        /// The file with this node's certificate and those between it and the root, in PEM. A reload reads it again.
        certificate: Option<PathBuf> = None;
        /// The file with the certificate's private key, in PEM. A reload reads it again.
        key: Option<PathBuf> = None;
        /// The file with the certificates, in PEM, by which clients must be signed, beside what else they need. Empty:
        /// clients need none. A reload reads it again.
        client_ca: Option<PathBuf> = None;
    }
}

section! {
    /// `api.basic_auth`: names and passwords.
    BasicAuthConfig {
        /// Whether a name and a password are asked for.
        enabled: bool = false;
        /// The one user, unless there are `users`.
        username: String = String::new();
        /// The one user's password.
        password: Secret = Secret::default();
        /// Several users: a name and a password each.
        users: Users = Users::new();
        /// What these users may do: `read`, `operate` or `admin`. Users with roles of their own are in `api.users`.
        role: Role = Role::Admin;
    }
}

section! {
    /// `api.rate_limiting`: how often one client may ask.
    RateLimitingConfig {
        /// Whether there is a limit.
        enabled: bool = true;
        /// Requests a minute from one address.
        requests_per_minute: u32 = 60;
    }
}

section! {
    /// `prometheus`: metrics.
    PrometheusConfig {
        /// Whether metrics are served.
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
    /// `notifications`: who is told what happens.
    NotificationsConfig {
        /// HTTP servers that are told: each has `url`, and may have `name`, `events` (of `ban`, `lift`, `allow`,
        /// `cluster`, `alarm`; all unless given), `filters` (only bans by these), `template` (JSON with `{{summary}}` and others),
        /// `secret` (signs each body), `authorization` (that header's value), `ca` (a file with the certificates, in PEM,
        /// by which the server's must be signed), `timeout` (10s), `retries` (6) and `collect` (1s).
        webhooks: Vec<WebhookConfig> = Vec::new();
    }
}

section! {
    /// `log`: the log that banmesh itself writes, to standard error.
    LogConfig {
        /// How much: `error`, `warn`, `info`, `debug` or `trace`.
        @live level: LogLevel = LogLevel::Info;
        /// `human` or `json`, one object a line.
        format: LogFormat = LogFormat::Human;
    }
}

section! {
    /// `admin`: the socket of the command line.
    AdminConfig {
        /// The Unix socket by which `banmesh ban`, `list` and the others reach the running node. Empty:
        /// `banmesh.sock` in `node.data_dir`.
        socket: Option<PathBuf> = None;
    }
}

section! {
    /// `nginx`: accepted so that a configuration of WebFail2Ban can be taken over; banmesh does not serve auth_request.
    NginxConfig {
        /// Must stay false.
        enabled: bool = false;
        /// Without effect.
        address: IpAddr = ANY;
        /// Without effect.
        port: u16 = 8888;
        /// Without effect.
        read_timeout: Span = seconds(10);
        /// Without effect.
        write_timeout: Span = seconds(10);
        /// Without effect.
        return_json: bool = false;
    }
}

section! {
    /// `envoy`: accepted so that a configuration of WebFail2Ban can be taken over; banmesh does not serve ext_authz.
    EnvoyConfig {
        /// Must stay false.
        enabled: bool = false;
        /// Without effect.
        address: IpAddr = ANY;
        /// Without effect.
        port: u16 = 9001;
    }
}

impl Config {
    /// Where the command line reaches this node: `admin.socket`, or `banmesh.sock` in `node.data_dir`.
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

impl ApiConfig {
    /// Whether somebody has to say who they are.
    pub fn asks_for_credentials(&self) -> bool {
        self.basic_auth.enabled || !self.users.is_empty() || !self.tokens.is_empty()
    }

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
    /// The advertised address, with the listening port where none was given.
    pub fn advertised(&self) -> Option<SocketAddr> {
        self.advertise.map(|to| SocketAddr::new(to.address, to.port.unwrap_or(self.listen.port())))
    }
}
