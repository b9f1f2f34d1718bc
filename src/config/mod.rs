//! What the operator wrote, checked, and what it means.
//!
//! | module | what |
//! |---|---|
//! | [`sections`] | every key with type, default and meaning: the one place for them |
//! | [`value`] | the types that values have |
//! | [`access`] | users and tokens of the API, with their roles |
//! | [`structured`] | patterns and users, which are more than a scalar or a list |
//! | [`webhooks`] | `notifications.webhooks` |
//! | [`setting`] | how a section becomes rows of the table of keys |
//! | [`yaml`] | YAML with line numbers |
//! | [`load`](mod@load) | file and environment into a [`Config`] |
//! | [`environment`] | the variables |
//! | [`role`] | what somebody may do with a node |
//! | [`consistency`] | ranges, and values that contradict each other |
//! | [`diff`](mod@diff) | what a reload can apply |
//! | [`document`] | the documentation and the commented file, from the table |
//! | [`problem`] | errors and warnings |
//!
//! [`load()`] gives a [`Config`] or every error at once.

pub mod access;
pub mod consistency;
pub mod diff;
pub mod document;
pub mod environment;
pub mod load;
pub mod problem;
pub mod role;
pub mod sections;
pub mod setting;
pub mod structured;
pub mod value;
pub mod webhooks;
pub mod yaml;

pub use access::{ApiTokens, ApiUsers, Credential, Given};
pub use diff::{Change, Changes, diff};
pub use load::{Attempt, Loaded, Origins, attempt, load, process_environment, resolve, settings};
pub use problem::{ConfigErrors, Origin, Problem, ProblemKind};
pub use sections::{
    AdminConfig, ApiConfig, ApiTlsConfig, BanConfig, BasicAuthConfig, ClusterConfig, Config, EnvoyConfig, FilterConfig,
    HaproxyConfig, InputsConfig, JournalInputConfig, LogConfig, NginxConfig, NodeConfig, NotificationsConfig,
    PrometheusConfig, RateLimitingConfig, SpoaConfig, SpoaTlsConfig, SyslogConfig, SyslogTlsConfig,
};
pub use structured::{FileInput, PatternConfig, Users};
pub use value::{Advertise, FilterMode, HostPort, LogFormat, LogLevel, Protocol, RuntimeSocket, Secret, Size};
pub use webhooks::WebhookConfig;
