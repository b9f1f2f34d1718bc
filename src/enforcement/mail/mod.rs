//! Mail servers ask whether a client is banned: over DNS (`dnsbl`), Postfix's policy delegation (`policy`, which Exim can speak too), and
//! Dovecot's auth policy (`auth_policy`), which also reports how logins ended. All three answer from the lock-free view.

pub mod auth_policy;
pub mod dnsbl;
mod listener;
pub mod policy;
mod queries;

pub use queries::{Answer, Metrics, Queries};
