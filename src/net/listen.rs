//! Why a listener cannot be opened, and what to do about it.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, ErrorKind};

/// The system refused the address or the path of a listener.
#[derive(Debug, thiserror::Error)]
#[error("{key}: cannot listen on {at}: {source}; {}", fix(source))]
pub struct ListenError {
    /// The configuration key.
    pub key: Cow<'static, str>,
    /// The address or path.
    pub at: String,
    /// The error of the system.
    pub source: io::Error,
}

impl ListenError {
    /// The error of a listener `at` an address or path that `key` sets.
    pub fn new(key: impl Into<Cow<'static, str>>, at: impl Display, source: io::Error) -> Self {
        Self { key: key.into(), at: at.to_string(), source }
    }
}

fn fix(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::AddrInUse => "stop the program that has it, or choose another one",
        ErrorKind::AddrNotAvailable => "name an address that `ip address` shows",
        ErrorKind::PermissionDenied => "choose one that this user may open; ports below 1024 need CAP_NET_BIND_SERVICE",
        ErrorKind::AlreadyExists => "move the file away, or choose another path",
        _ => "choose another one",
    }
}
