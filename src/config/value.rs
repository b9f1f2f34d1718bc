//! The types of scalar values, with their syntax.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::setting::{HIDDEN, Scalar, Takes};
use crate::inputs::envelope::LineFormat;
use banmesh_cluster::timers::Profile;
use banmesh_dnsbl::Zone;
use banmesh_filter::Mode;
use banmesh_haproxy::runtime::MapName;
use banmesh_mail::delegation::Action;
use banmesh_nftables::batch::Hook;

/// A text that is never printed, such as a password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Do not print it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether the text is empty, which means that none is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// A number of bytes, written as `64KiB`, `32MiB`, `1GB`, or a plain number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub usize);

const UNITS: [(&str, usize); 8] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("KB", 1000),
    ("B", 1),
];

impl Size {
    /// `count` KiB.
    pub const fn kib(count: usize) -> Self {
        Self(count << 10)
    }

    /// `count` MiB.
    pub const fn mib(count: usize) -> Self {
        Self(count << 20)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.iter().find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size));
        match whole {
            Some((unit, size)) if *size > 1 => write!(f, "{}{unit}", self.0 / size),
            _ => write!(f, "{}B", self.0),
        }
    }
}

impl Scalar for Size {
    const KIND: &'static str = "a size such as 64KiB";
    const TAKES: Takes = Takes::Both;

    fn parse(text: &str) -> Result<Self, String> {
        let error = || format!("`{text}` is not a size: write a number and a unit, such as 64KiB or 32MiB");
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: usize = number.parse().map_err(|_| error())?;
        let unit = unit.trim();
        let size = if unit.is_empty() {
            1
        } else {
            UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(error)?.1
        };
        number.checked_mul(size).map(Self).ok_or_else(error)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// Defines an enum whose variants are written as words.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident, $kind:literal { $( $(#[$doc:meta])* $variant:ident = $word:literal, )* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $( $(#[$doc])* $variant, )* }

        impl $name {
            /// The word in the configuration.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word, )* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        scalar_words! { $name, $kind, [$($name::$variant),*] }
    };
}

/// Makes an enum with `as_str` a scalar that is written as one of `$all`.
macro_rules! scalar_words {
    ($name:ident, $kind:literal, $all:expr) => {
        impl $crate::config::setting::Scalar for $name {
            const KIND: &'static str = $kind;

            fn parse(text: &str) -> Result<Self, String> {
                if let Some(value) = $all.into_iter().find(|value| text.eq_ignore_ascii_case(value.as_str())) {
                    return Ok(value);
                }
                let meant = $crate::config::problem::nearest(text, $all.map(Self::as_str));
                let meant = meant.map_or_else(String::new, |word| format!("; did you mean {word}?"));
                let short: String = text.chars().take(40).collect();
                Err(format!("`{short}` is not {}{meant}", $kind))
            }

            fn show(&self) -> String {
                self.as_str().to_owned()
            }
        }
    };
}
pub(super) use scalar_words;

words! {
    /// The transports of a syslog listener.
    Protocol, "one of udp, tcp, both" {
        /// UDP.
        Udp = "udp",
        /// TCP.
        Tcp = "tcp",
        /// Both, on the same port.
        Both = "both",
    }
}

impl Protocol {
    /// Whether UDP is on.
    pub const fn udp(self) -> bool {
        matches!(self, Self::Udp | Self::Both)
    }

    /// Whether TCP is on.
    pub const fn tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::Both)
    }
}

words! {
    /// The least severe messages that are logged.
    LogLevel, "one of error, warn, info, debug, trace" {
        /// Failures only.
        Error = "error",
        /// Also conditions that may need attention.
        Warn = "warn",
        /// Also normal events, such as bans and peers.
        Info = "info",
        /// Also the reasons for decisions.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

words! {
    /// The format of log lines.
    LogFormat, "one of human, json" {
        /// For people.
        Human = "human",
        /// One JSON object per line.
        Json = "json",
    }
}

scalar_words! { LineFormat, "one of plain, cri, docker, json, nested, auto", LineFormat::ALL }
scalar_words! { Hook, "one of prerouting, input, forward", Hook::ALL }
scalar_words! { Profile, "one of lan, wan, local", Profile::ALL }

words! {
    /// Which of a filter's rules are in force.
    FilterMode, "one of normal, ddos, aggressive" {
        /// Failed logins.
        Normal = "normal",
        /// Also connections made only to use up resources.
        Ddos = "ddos",
        /// Also what a misconfigured but honest client may do.
        Aggressive = "aggressive",
    }
}

/// What a mechanism that uses evidence does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EvidenceMode {
    /// Nothing.
    Off,
    /// Reports what it would have done.
    Observe,
    /// Acts.
    On,
}

impl Scalar for EvidenceMode {
    const KIND: &'static str = "one of off, observe, on";
    const TAKES: Takes = Takes::Switch;

    fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "off" | "false" => Ok(Self::Off),
            "observe" => Ok(Self::Observe),
            "on" | "true" => Ok(Self::On),
            _ => {
                let short: String = text.chars().take(40).collect();
                Err(format!("`{short}` is not {}", Self::KIND))
            }
        }
    }

    fn show(&self) -> String {
        banmesh_core::evidence::Mode::from(*self).as_str().to_owned()
    }
}

/// A name or an address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// A name, which is resolved repeatedly, or an address (IPv6 without brackets).
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Scalar for HostPort {
    const KIND: &'static str = "host:port";
    const KINDS: &'static str = "list of host:port";

    fn parse(text: &str) -> Result<Self, String> {
        let error = || format!("`{text}` is not host:port, such as node2.example.org:12350 or [2001:db8::2]:12350");
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or_else(error)?;
        let host = match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().map(|v6| v6.to_string()).map_err(|_| error())?,
            None => host.to_owned(),
        };
        let name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        let good = host.parse::<IpAddr>().is_ok() && (text.starts_with('[') || !host.contains(':'))
            || (!host.is_empty() && host.len() <= 253 && host.bytes().all(name));
        if good { Ok(Self { host, port }) } else { Err(error()) }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// A node of another site, written `name@host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteAddress {
    /// `cluster.name` of the site.
    pub site: String,
    /// The address of one of its nodes.
    pub address: HostPort,
}

impl Scalar for SiteAddress {
    const KIND: &'static str = "name@host:port";
    const KINDS: &'static str = "list of name@host:port";

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not name@host:port, such as paris@node1.paris.example.org:12350");
        let (site, address) = text.split_once('@').ok_or_else(wrong)?;
        if !is_cluster_name(site) {
            return Err(wrong());
        }
        Ok(Self { site: site.to_owned(), address: HostPort::parse(address)? })
    }

    fn show(&self) -> String {
        format!("{}@{}", self.site, self.address)
    }
}

/// Whether `cluster.name` may be `name`.
pub(super) fn is_cluster_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// The runtime API of a HAProxy process (`stats socket`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeSocket {
    /// The path of a Unix socket.
    Unix(std::path::PathBuf),
    /// A TCP address.
    Tcp(HostPort),
}

impl Scalar for RuntimeSocket {
    const KIND: &'static str = "the path of a socket, or host:port";
    const KINDS: &'static str = "list of paths or host:port";

    fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with('/') && text.len() > 1 && !text.contains('\0') {
            return Ok(Self::Unix(text.into()));
        }
        HostPort::parse(text).map(Self::Tcp).map_err(|_| {
            format!("`{text}` is neither the path of a socket, such as /run/haproxy/admin.sock, nor host:port")
        })
    }

    fn show(&self) -> String {
        match self {
            Self::Unix(path) => path.display().to_string(),
            Self::Tcp(address) => address.show(),
        }
    }
}

impl Scalar for MapName {
    const KIND: &'static str = "the name of a map";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: banmesh_haproxy::runtime::MapNameError| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Scalar for Zone {
    const KIND: &'static str = "the name of a zone";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: banmesh_dnsbl::ZoneError| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Scalar for Action {
    const KIND: &'static str = "an action for banned clients";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: banmesh_mail::delegation::ActionError| error.to_string())
    }

    fn show(&self) -> String {
        self.as_str().to_owned()
    }
}

/// The name of a table of nftables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableName(String);

impl TableName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TableName {
    fn default() -> Self {
        Self("banmesh".to_owned())
    }
}

impl Scalar for TableName {
    const KIND: &'static str = "the name of a table";

    fn parse(text: &str) -> Result<Self, String> {
        let letters = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if letters && text.len() <= 31 && text.starts_with(|first: char| first.is_ascii_alphabetic()) {
            return Ok(Self(text.to_owned()));
        }
        let short: String = text.chars().take(40).collect();
        Err(format!(
            "`{short}` is not the name of a table: write up to 31 letters, digits and _, beginning with a letter"
        ))
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

/// The address at which other nodes reach this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// The address.
    pub address: IpAddr,
    /// The port; `None` for the listening port.
    pub port: Option<u16>,
}

impl Scalar for Advertise {
    const KIND: &'static str = "an address, with or without a port";

    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self { address, port: None });
        }
        let both: SocketAddr = text.parse().map_err(|_| {
            format!("`{text}` is not an IP address, with or without a port, such as 192.0.2.1 or [::1]:12350")
        })?;
        Ok(Self { address: both.ip(), port: Some(both.port()) })
    }

    fn show(&self) -> String {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).to_string(),
            None => self.address.to_string(),
        }
    }
}

impl Scalar for Secret {
    const KIND: &'static str = "text";
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

impl From<EvidenceMode> for banmesh_core::evidence::Mode {
    fn from(mode: EvidenceMode) -> Self {
        match mode {
            EvidenceMode::Off => Self::Off,
            EvidenceMode::Observe => Self::Observe,
            EvidenceMode::On => Self::On,
        }
    }
}

impl From<FilterMode> for Mode {
    fn from(mode: FilterMode) -> Self {
        match mode {
            FilterMode::Normal => Self::Normal,
            FilterMode::Aggressive => Self::Aggressive,
            FilterMode::Ddos => Self::Ddos,
        }
    }
}
