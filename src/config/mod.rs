//! What the operator wrote, checked, and what it means.
//!
//! | module | what |
//! |---|---|
//! | [`sections`] | every key with type, default and meaning: the one place for them |
//! | [`value`] | the types that values have |
//! | [`structured`] | patterns and users, which are more than a scalar or a list |
//! | [`setting`] | how a section becomes rows of the table of keys |
//! | [`yaml`] | YAML with line numbers |
//! | [`load`](mod@load) | file and environment into a [`Config`] |
//! | [`environment`] | the variables |
//! | [`fail2ban`] | fail2ban's filters taken over |
//! | [`filters`] | the built-in filters and the operator's directories |
//! | [`consistency`] | ranges, and values that contradict each other |
//! | [`diff`](mod@diff) | what a reload can apply |
//! | [`document`] | the documentation and the commented file, from the table |
//! | [`problem`] | errors and warnings |
//!
//! [`load()`] gives a [`Config`] or every error at once.

pub mod consistency;
pub mod diff;
pub mod document;
pub mod environment;
pub mod fail2ban;
pub mod filters;
pub mod load;
pub mod problem;
pub mod sections;
pub mod setting;
pub mod structured;
pub mod value;
pub mod yaml;

pub use diff::{Change, Changes, diff};
pub use load::{Attempt, Loaded, Origins, attempt, load, process_environment, resolve, settings};
pub use problem::{ConfigErrors, Origin, Problem, ProblemKind};
pub use sections::{
    AdminConfig, ApiConfig, BanConfig, BasicAuthConfig, ClusterConfig, Config, EnvoyConfig, FilterConfig,
    HaproxyConfig, InputsConfig, JournalInputConfig, LogConfig, NginxConfig, NodeConfig, PrometheusConfig,
    RateLimitingConfig, SpoaConfig, SyslogConfig, SyslogTlsConfig,
};
pub use structured::{FileInput, PatternConfig, Users};
pub use value::{Advertise, FilterMode, HostPort, LogFormat, LogLevel, Profile, Protocol, RuntimeSocket, Secret, Size};
