//! The types that a value can have, each with the text it is written as.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::problem::Faults;
use super::setting::{HIDDEN, Scalar, Setting, Takes, comparable, scalar};
use super::yaml::{self, Node, Value};
use crate::domain::target::Target;
use crate::domain::time::Span;

/// A text that is never printed: a password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes `text` into custody.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, to compare with.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether none was given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// A number of bytes, written as people do: `64KiB`, `32MiB`, `1GB`, or plain bytes.
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
    /// `count` times 1024 bytes.
    pub const fn kib(count: usize) -> Self {
        Self(count << 10)
    }

    /// `count` times 1024 × 1024 bytes.
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

/// Defines an enum that is written as a word.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident, $kind:literal { $( $(#[$doc:meta])* $variant:ident = $word:literal, )* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $( $(#[$doc])* $variant, )* }

        impl $name {
            /// The word for it.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word, )* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Scalar for $name {
            const KIND: &'static str = $kind;

            fn parse(text: &str) -> Result<Self, String> {
                $( if text.eq_ignore_ascii_case($word) { return Ok(Self::$variant); } )*
                let meant = super::problem::nearest(text, [$($word),*]);
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

words! {
    /// By which transport syslog is taken.
    Protocol, "one of udp, tcp, both" {
        /// Datagrams.
        Udp = "udp",
        /// Streams.
        Tcp = "tcp",
        /// Both, on the same port.
        Both = "both",
    }
}

impl Protocol {
    /// Whether datagrams are taken.
    pub const fn udp(self) -> bool {
        matches!(self, Self::Udp | Self::Both)
    }

    /// Whether streams are taken.
    pub const fn tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::Both)
    }
}

words! {
    /// How much is logged.
    LogLevel, "one of error, warn, info, debug, trace" {
        /// Only what fails.
        Error = "error",
        /// Also what is doubtful.
        Warn = "warn",
        /// Also what happens: bans, peers.
        Info = "info",
        /// Also why.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

words! {
    /// How a log line looks.
    LogFormat, "one of human, json" {
        /// For people.
        Human = "human",
        /// One JSON object a line.
        Json = "json",
    }
}

words! {
    /// Where the cluster runs; sets its timers.
    Profile, "one of lan, wan, local" {
        /// One data centre.
        Lan = "lan",
        /// Several sites.
        Wan = "wan",
        /// One host, as in tests.
        Local = "local",
    }
}

words! {
    /// Which of a filter's rules are in force.
    FilterMode, "one of normal, ddos, aggressive" {
        /// Failed logins.
        Normal = "normal",
        /// Also connections that are made only to cost something.
        Ddos = "ddos",
        /// Also what a misconfigured but honest client may do.
        Aggressive = "aggressive",
    }
}

/// Where a peer is: a name or an address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// A name, to be resolved again and again, or an address (IPv6 without brackets).
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

/// The address under which others reach this node; without a port, the listening port counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// The address.
    pub address: IpAddr,
    /// The port, when it differs from the one listened on.
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

impl Scalar for bool {
    const KIND: &'static str = "true or false";
    const TAKES: Takes = Takes::Bool;

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(format!("`{text}` is neither true nor false")),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn to_json(&self) -> serde_json::Value {
        (*self).into()
    }
}

/// Whole numbers, each within its width.
macro_rules! whole {
    ($($kind:ty: $words:literal),*) => { $(
        impl Scalar for $kind {
            const KIND: &'static str = $words;
            const TAKES: Takes = Takes::Number;

            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| format!("`{text}` is not {} (0 to {})", $words, Self::MAX))
            }

            fn show(&self) -> String {
                self.to_string()
            }

            fn to_json(&self) -> serde_json::Value {
                (*self).into()
            }
        }
    )* };
}
whole!(u8: "a whole number", u16: "a port", u32: "a whole number", usize: "a whole number");

impl Scalar for f64 {
    const KIND: &'static str = "a number";
    const TAKES: Takes = Takes::Number;

    fn parse(text: &str) -> Result<Self, String> {
        let number: Option<Self> = text.parse().ok();
        number.filter(|number| number.is_finite()).ok_or_else(|| format!("`{text}` is not a number"))
    }

    fn show(&self) -> String {
        format!("{self:?}")
    }

    fn to_json(&self) -> serde_json::Value {
        (*self).into()
    }
}

impl Scalar for String {
    const KIND: &'static str = "text";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn show(&self) -> String {
        self.clone()
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

impl Scalar for PathBuf {
    const KIND: &'static str = "a path";
    const KINDS: &'static str = "list of paths";

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains('\0') {
            return Err(format!("{text:?} is not a path"));
        }
        Ok(Self::from(text))
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Scalar for Span {
    const KIND: &'static str = "a duration such as 30s, 5m or 24h";
    const TAKES: Takes = Takes::Both;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: crate::domain::time::SpanError| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Scalar for Target {
    const KIND: &'static str = "an address or network";
    const KINDS: &'static str = "list of addresses and networks";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: crate::domain::target::TargetError| error.to_string())
    }

    fn show(&self) -> String {
        // With its prefix also where it is a single address: so the seed's users write their lists.
        format!("{}/{}", self.address(), self.prefix())
    }
}

impl Scalar for IpAddr {
    const KIND: &'static str = "an IP address";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("`{text}` is not an IP address, such as 0.0.0.0, 127.0.0.1 or ::"))
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Scalar for SocketAddr {
    const KIND: &'static str = "address:port";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| {
            let cure = match text.strip_prefix(':').or_else(|| text.strip_prefix("*:")) {
                Some(port) => format!("; for every address write 0.0.0.0:{port} or [::]:{port}"),
                None => ", such as 127.0.0.1:514 or [::1]:514".to_owned(),
            };
            format!("`{text}` is not an IP address and a port{cure}")
        })
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// A pattern of `syslog.patterns`: a regular expression that finds the source of an offence in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternConfig {
    /// Under which name its offences are counted and logged; unique.
    pub name: String,
    /// The expression, in the syntax of the `regex` crate (RE2's); it compiles. `<HOST>` stands for a group that matches an
    /// address.
    pub regex: String,
    /// The number of the group that captures the address; it exists in `regex`, where `<HOST>` counts as one. `None`: the
    /// first `<HOST>`, else the first group.
    pub ip_group: Option<usize>,
    /// How grave it is, 1 to 6; logged.
    pub severity: u8,
    /// What it recognises, for people.
    pub description: String,
}

const PATTERN_KEYS: [&str; 5] = ["name", "regex", "ip_group", "severity", "description"];

impl PatternConfig {
    /// Reads one element of the list; `None` when something about it is wrong.
    fn read(node: &Node, faults: &mut Faults<'_>) -> Option<Self> {
        let Value::Map(pairs) = &node.value else {
            faults
                .invalid(node.line, format!("expected a pattern (name, regex, ip_group …), found {}", node.describe()));
            return None;
        };
        let mut good = true;
        let mut found: BTreeMap<&str, &Node> = BTreeMap::new();
        for pair in pairs {
            let known = PATTERN_KEYS.iter().find(|known| **known == pair.key);
            good &= faults.within(&format!(".{}", pair.key), |faults| {
                let problem = match known {
                    None => super::problem::ProblemKind::UnknownKey {
                        nearest: super::problem::nearest(&pair.key, PATTERN_KEYS),
                    },
                    Some(known) => match found.insert(known, &pair.value) {
                        None => return true,
                        Some(first) => super::problem::ProblemKind::DuplicateKey { first: first.line },
                    },
                };
                faults.add(pair.line, problem);
                false
            });
        }
        let name: Option<String> = required(&found, "name", node, faults);
        let regex: Option<String> = required(&found, "regex", node, faults);
        let severity: Option<u8> = optional(&found, "severity", 3, faults);
        let description: Option<String> = optional(&found, "description", String::new(), faults);
        if let Some(severity) = severity.filter(|severity| !(1..=6).contains(severity)) {
            let line = found.get("severity").map_or(node.line, |node| node.line);
            faults.within(".severity", |f| f.invalid(line, format!("{severity} is not a severity from 1 to 6")));
            good = false;
        }
        if name.as_ref().is_some_and(|name| name.trim().is_empty()) {
            let line = found.get("name").map_or(node.line, |node| node.line);
            faults.within(".name", |f| f.invalid(line, "is empty; give the pattern a name".to_owned()));
            good = false;
        }
        let compiled = regex.as_ref().and_then(|regex| {
            let line = found.get("regex").map_or(node.line, |node| node.line);
            // What filters put for these is one group too; here only the number of groups matters.
            let expanded =
                ["<HOST>", "<ADDR>", "<FORWARDED>"].iter().fold(regex.clone(), |r, tag| r.replace(tag, "(\\S+)"));
            faults.within(".regex", |faults| match regex::bytes::Regex::new(&expanded) {
                Ok(compiled) => Some(compiled),
                Err(error) => {
                    faults.invalid(line, format!("is no regular expression: {}", first_cause(&error)));
                    None
                }
            })
        });
        let ip_group = match found.get("ip_group") {
            None => compiled.as_ref().and_then(|regex| Self::group(regex, "1", node.line, faults)).map(|_| None),
            Some(group) => {
                let text: Option<String> = match &group.value {
                    Value::Unsigned(number) => Some(number.to_string()),
                    Value::Text(text) => Some(text.clone()),
                    _ => {
                        let message = format!("expected the number of a group, found {}", group.describe());
                        faults.within(".ip_group", |faults| faults.invalid(group.line, message));
                        None
                    }
                };
                let found = text.zip(compiled.as_ref());
                found.and_then(|(text, regex)| Self::group(regex, &text, group.line, faults)).map(Some)
            }
        };
        let pattern =
            Self { name: name?, regex: regex?, ip_group: ip_group?, severity: severity?, description: description? };
        good.then_some(pattern)
    }

    /// The number of the group that `text` names by number or name.
    fn group(regex: &regex::bytes::Regex, text: &str, line: usize, faults: &mut Faults<'_>) -> Option<usize> {
        let by_name = || regex.capture_names().position(|name| name == Some(text));
        let number = text.parse().ok().filter(|number: &usize| *number < regex.captures_len()).or_else(by_name);
        if number.is_none() {
            let groups = regex.captures_len() - 1;
            let message =
                format!("there is no group {text:?} in the regex, which has {groups}; put ( ) around the address");
            faults.within(".ip_group", |faults| faults.invalid(line, message));
        }
        number
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "name": self.name, "regex": self.regex, "ip_group": self.ip_group, "severity": self.severity,
            "description": self.description,
        })
    }
}

/// The message of a regex error without the picture around it, on one line.
fn first_cause(error: &regex::Error) -> String {
    let text = error.to_string();
    let cause = text.lines().find_map(|line| line.strip_prefix("error: "));
    cause.map_or_else(|| text.lines().next().unwrap_or("too big").to_owned(), str::to_owned)
}

fn required<T: Scalar>(found: &BTreeMap<&str, &Node>, key: &str, at: &Node, faults: &mut Faults<'_>) -> Option<T> {
    faults.within(&format!(".{key}"), |faults| match found.get(key) {
        Some(node) => scalar(node, faults),
        None => {
            faults.invalid(at.line, "is missing".to_owned());
            None
        }
    })
}

fn optional<T: Scalar>(found: &BTreeMap<&str, &Node>, key: &str, default: T, faults: &mut Faults<'_>) -> Option<T> {
    match found.get(key) {
        Some(node) => faults.within(&format!(".{key}"), |faults| scalar(node, faults)),
        None => Some(default),
    }
}

/// Reads `text`, the value of a variable, as YAML (of which JSON is a part).
fn structured(text: &str, faults: &mut Faults<'_>) -> Option<Node> {
    match yaml::parse(text.as_bytes()) {
        Ok(node) => Some(node),
        Err(error) => {
            faults.invalid(0, error.message);
            None
        }
    }
}

impl Setting for Vec<PatternConfig> {
    comparable!();

    fn kind(&self) -> &'static str {
        "list of patterns"
    }

    fn read(&mut self, node: &Node, faults: &mut Faults<'_>) {
        let Value::List(items) = &node.value else {
            let found = node.describe();
            return faults.invalid(node.line, format!("expected a list of patterns, found {found}; write [] for none"));
        };
        let mut names: BTreeMap<String, usize> = BTreeMap::new();
        let mut patterns = Vec::new();
        for (index, item) in items.iter().enumerate() {
            // A pattern costs a compilation, so a full list of problems ends the search.
            if faults.is_full() {
                return;
            }
            patterns.push(faults.within(&format!("[{index}]"), |faults| {
                let pattern = PatternConfig::read(item, faults)?;
                if let Some(first) = names.insert(pattern.name.clone(), item.line) {
                    let message = format!("`{}` is also the name of the pattern in line {first}", pattern.name);
                    faults.within(".name", |faults| faults.invalid(item.line, message));
                    return None;
                }
                Some(pattern)
            }));
        }
        if let Some(patterns) = patterns.into_iter().collect() {
            *self = patterns;
        }
    }

    fn read_text(&mut self, text: &str, faults: &mut Faults<'_>) {
        if text.trim().is_empty() {
            self.clear();
        } else if let Some(node) = structured(text, faults) {
            self.read(&node, faults);
        }
    }

    fn json(&self) -> serde_json::Value {
        self.iter().map(PatternConfig::to_json).collect()
    }
}

/// Names and passwords.
pub type Users = BTreeMap<String, Secret>;

impl Setting for Users {
    comparable!();

    fn kind(&self) -> &'static str {
        "map of name to password"
    }

    fn read(&mut self, node: &Node, faults: &mut Faults<'_>) {
        let Value::Map(pairs) = &node.value else {
            let found = node.value.kind();
            return faults
                .invalid(node.line, format!("expected names with passwords, found {found}; write {{}} for none"));
        };
        let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
        let mut users = Self::new();
        let mut good = true;
        for pair in pairs {
            let read = faults.within(&format!(".{}", pair.key), |faults| {
                if let Some(first) = lines.insert(&pair.key, pair.line) {
                    faults.add(pair.line, super::problem::ProblemKind::DuplicateKey { first });
                    return None;
                }
                scalar(&pair.value, faults)
            });
            good &= read.is_some();
            users.extend(read.map(|password| (pair.key.clone(), password)));
        }
        if good {
            *self = users;
        }
    }

    fn read_text(&mut self, text: &str, faults: &mut Faults<'_>) {
        if text.trim().is_empty() {
            self.clear();
        } else if let Some(node) = structured(text, faults) {
            self.read(&node, faults);
        }
    }

    fn json(&self) -> serde_json::Value {
        self.keys().map(|name| (name.clone(), HIDDEN.into())).collect::<serde_json::Map<_, _>>().into()
    }
}
