//! The configuration: reads the file and the environment, checks them, and documents every key.
//!
//! | module | content |
//! |---|---|
//! | [`sections`] | every key with its type, default and meaning |
//! | [`value`] | the types of scalar values |
//! | `primitive` | the syntax of numbers, texts, paths, durations and addresses |
//! | [`access`] | users and tokens of the API |
//! | `filter_limits` | the limits of single filters |
//! | [`structured`] | patterns, files and users |
//! | [`webhooks`] | `notifications.webhooks` |
//! | [`setting`] | the traits of settings and sections |
//! | [`table`] | all settings of a configuration |
//! | [`yaml`] | values with line numbers from YAML |
//! | [`load`](mod@load) | builds a [`Config`] from file and environment |
//! | [`environment`] | the environment variables |
//! | [`role`] | the roles of users and tokens |
//! | [`consistency`] | checks ranges, and values that contradict each other |
//! | [`diff`](mod@diff) | compares configurations, for a reload |
//! | [`document`] | generates the documentation and the commented file |
//! | [`problem`] | errors and warnings |
//! | [`origin`] | where a value was set |
//!
//! [`load()`] returns a [`Config`], or all errors at once.

pub mod access;
pub mod allowlist;
pub mod consistency;
pub mod diff;
pub mod document;
pub mod environment;
mod exposure;
mod fail2ban;
pub mod feeds;
mod fetching;
mod filter_limits;
mod geo;
pub mod load;
mod mail;
pub mod origin;
mod peers;
mod primitive;
pub mod problem;
pub mod program;
pub mod role;
pub mod sections;
pub mod setting;
pub mod structured;
pub mod table;
mod table_name;
pub mod value;
mod verdict;
pub mod webhooks;
pub mod yaml;

pub use access::{ApiTokens, ApiUsers, Credential, FetchKeys, SecretSource};
pub use allowlist::AllowlistEntry;
pub use diff::{Change, Changes, diff};
pub use feeds::{FeedConfig, FeedSource};
pub use load::{Attempt, Loaded, attempt, load, process_environment, resolve};
pub use origin::{Origin, Origins};
pub use problem::{ConfigErrors, Problem, ProblemKind};
pub use program::ProgramPattern;
pub use sections::{
    AdminConfig, ApiConfig, ApiTlsConfig, BanConfig, BasicAuthConfig, ClusterConfig, Config, CrowdsecConfig,
    CrowdsecTlsConfig, EnvoyConfig, FilterConfig, FirewallConfig, GeoConfig, HaproxyConfig, InputsConfig,
    JournalInputConfig, ListsConfig, ListsTlsConfig, LogConfig, NginxConfig, NodeConfig, NotificationsConfig,
    PrometheusConfig, RateLimitingConfig, SpoaConfig, SpoaTlsConfig, SyslogConfig, SyslogTlsConfig,
};
pub use structured::{FileInput, PatternConfig, Users};
pub use table::settings;
pub use value::{
    Advertise, EvidenceMode, FilterMode, HostPort, LogFormat, LogLevel, Protocol, RuntimeSocket, Secret, SiteAddress,
    Size, TableName,
};
pub use verdict::sockets as verdict_sockets;
pub use webhooks::WebhookConfig;
