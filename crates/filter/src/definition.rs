//! The content of a filter file, before it is compiled.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use banmesh_types::address::Address;
use banmesh_types::time::Span;

/// How strict a filter is (`filters.mode`). The names are those of fail2ban's modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Failed logins, and what only an attacker does.
    #[default]
    Normal,
    /// Also connections made only to use up resources: early disconnects, time-outs, floods.
    Ddos,
    /// Also what a misconfigured but honest client, or a monitoring system, may do.
    Aggressive,
}

/// All modes, from the mildest to the strictest.
pub const MODES: [Mode; 3] = [Mode::Normal, Mode::Ddos, Mode::Aggressive];

impl Mode {
    /// Returns the name of the mode in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Ddos => "ddos",
            Self::Aggressive => "aggressive",
        }
    }

    /// Whether a rule of mode `rule` is in force in this mode. Each mode includes the milder ones.
    pub fn includes(self, rule: Self) -> bool {
        rule <= self
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A filter: how a service logs failed logins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// The name: letters, digits, `-`, `_` and `.`. Built-in filters have the name of their service.
    pub name: String,
    /// One sentence for the operator.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The names of the programs that the filter applies to (the syslog tag without the pid), each with at most one `*`:
    /// `dovecot`, `postfix/*`, `*/smtpd`. `*` alone matches every program.
    #[serde(default)]
    pub services: Vec<String>,
    /// Whether the filter also applies to lines without a program name, such as those of a web server's access log.
    #[serde(default, skip_serializing_if = "is_false")]
    pub without_program: bool,
    /// Parts of expressions that the rules use as `<piece>`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub definitions: BTreeMap<String, String>,
    /// Lines that are offences.
    #[serde(default)]
    pub failregex: Vec<Rule>,
    /// Lines that are not offences, even if `failregex` matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignoreregex: Vec<Rule>,
    /// Successful logins. With `ban.success_clears` they clear the attempts of the source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub successregex: Vec<Rule>,
    /// Lines that assign a session to an address: expressions with the group `session` and an address. A rule with the group
    /// `session` and no address gets the address of the last such line of the same process.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sessionregex: Vec<Rule>,
    /// Lines that end a session: expressions with the group `session`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endregex: Vec<Rule>,
    /// Overrides of the `ban` section for offences of this filter.
    #[serde(default, skip_serializing_if = "Overrides::is_empty")]
    pub ban: Overrides,
    /// Lines with their expected results. [`selftest`](crate::selftest) runs them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<TestLine>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// One expression of a filter. In a file it is the expression alone, or a mapping.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Rule {
    /// The name within the filter. By default the list and number (`failregex-3`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The expression. The group `user` holds the account, if the line names one. It has `<HOST>` (an address), `<HOSTPORT>` (an address and a port), `<FORWARDED>` (an X-Forwarded-For
    /// list), the group that `ip_group` names, or the group `session`.
    pub regex: String,
    /// The group that holds the address, for expressions without `<HOST>`, `<HOSTPORT>` and `<FORWARDED>`. By default the
    /// group `ip`, `host`, `HOST`, `rip`, `source`, `src` or `client`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_group: Option<IpGroup>,
    /// From 1 (harmless) to 6 (grave). The default is 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<u8>,
    /// The mildest mode in which the rule is in force.
    #[serde(skip_serializing_if = "is_normal")]
    pub mode: Mode,
    /// The echo class. Rules that match different lines about the same attempt have different classes, and for each source
    /// only the class with the most lines counts. At most eight classes per filter. `None` if the service logs an attempt
    /// once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub echo: Option<String>,
    /// Whether the line says that the account in the group `user` does not exist.
    #[serde(skip_serializing_if = "is_false")]
    pub unknown: bool,
    /// One sentence for the operator.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Overrides of the `ban` section for offences of this rule. They take precedence over those of the filter.
    #[serde(skip_serializing_if = "Overrides::is_empty")]
    pub ban: Overrides,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_normal(mode: &Mode) -> bool {
    *mode == Mode::Normal
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            name: Option<String>,
            regex: String,
            ip_group: Option<IpGroup>,
            severity: Option<u8>,
            #[serde(default)]
            mode: Mode,
            echo: Option<String>,
            #[serde(default)]
            unknown: bool,
            #[serde(default)]
            description: String,
            #[serde(default)]
            ban: Overrides,
        }

        struct RuleVisitor;

        impl<'de> Visitor<'de> for RuleVisitor {
            type Value = Rule;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an expression, or a mapping with the key `regex`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Rule, E> {
                Ok(Rule { regex: text.to_owned(), ..Rule::default() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Rule, A::Error> {
                let Fields { name, regex, ip_group, severity, mode, echo, unknown, description, ban } =
                    Fields::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Rule { name, regex, ip_group, severity, mode, echo, unknown, description, ban })
            }
        }

        deserializer.deserialize_any(RuleVisitor)
    }
}

/// A group of an expression, by number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IpGroup {
    /// The number of the group. The first group is 1, and 0 is the whole match.
    Number(usize),
    /// The group `(?P<name>…)`.
    Name(String),
}

impl Serialize for IpGroup {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => serializer.collect_str(number),
            Self::Name(name) => serializer.serialize_str(name),
        }
    }
}

impl<'de> Deserialize<'de> for IpGroup {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct GroupVisitor;

        impl Visitor<'_> for GroupVisitor {
            type Value = IpGroup;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the number or the name of a group of the expression")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<IpGroup, E> {
                usize::try_from(number)
                    .map(IpGroup::Number)
                    .map_err(|_| E::custom("the expression has no group with this number"))
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<IpGroup, E> {
                usize::try_from(number)
                    .map(IpGroup::Number)
                    .map_err(|_| E::custom("the number of a group must be at least 0"))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<IpGroup, E> {
                Ok(text.parse().map_or_else(|_| IpGroup::Name(text.to_owned()), IpGroup::Number))
            }
        }

        deserializer.deserialize_any(GroupVisitor)
    }
}

/// One entry of `syslog.patterns`: an expression that is searched in the whole line, for every program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pattern {
    /// The name, which is shown in bans.
    pub name: String,
    /// The expression, which is searched in the line after its priority. It may use `<HOST>`.
    pub regex: String,
    /// The group that holds the address. By default `<HOST>`, or a group with a name such as `ip`, or the first group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_group: Option<IpGroup>,
    /// From 1 (harmless) to 6 (grave). The default is 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<u8>,
    /// One sentence for the operator.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
}

/// Overrides of the ban policy by a filter or a rule. `None` keeps the value of the `ban` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overrides {
    /// The number of offences within `time_window` that lead to a ban. At least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// The window in which offences are counted.
    #[serde(skip_serializing_if = "Option::is_none", with = "span")]
    pub time_window: Option<Duration>,
    /// The duration of the first ban.
    #[serde(skip_serializing_if = "Option::is_none", with = "span")]
    pub initial_ban_time: Option<Duration>,
    /// The longest duration of a ban.
    #[serde(skip_serializing_if = "Option::is_none", with = "span")]
    pub max_ban_time: Option<Duration>,
    /// The factor by which each further ban is longer than the one before. At least 1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub escalation_factor: Option<f64>,
    /// Whether offences lead to bans, or are only counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<BanMode>,
}

/// Whether offences lead to bans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BanMode {
    /// They do. This is the default.
    Enforce,
    /// They are counted separately, and show what would be banned.
    Shadow,
}

impl BanMode {
    /// Returns the name of the mode in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Shadow => "shadow",
        }
    }
}

impl std::str::FromStr for BanMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Enforce, Self::Shadow]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not a mode of `ban`; write enforce or shadow"))
    }
}

/// The overrides that an operator sets for a filter without copying it (`filters.<name>` in the configuration).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FilterLimits {
    /// For all rules of the filter. They take precedence over the `ban` of the filter's file.
    pub ban: Overrides,
    /// For single rules, by name. They take precedence over the `ban` of the rule in the file.
    pub rules: BTreeMap<String, Overrides>,
}

impl Overrides {
    /// Whether nothing is overridden.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns these overrides, with those of `base` where these have none.
    #[must_use]
    pub fn over(&self, base: &Self) -> Self {
        Self {
            max_attempts: self.max_attempts.or(base.max_attempts),
            time_window: self.time_window.or(base.time_window),
            initial_ban_time: self.initial_ban_time.or(base.initial_ban_time),
            max_ban_time: self.max_ban_time.or(base.max_ban_time),
            escalation_factor: self.escalation_factor.or(base.escalation_factor),
            mode: self.mode.or(base.mode),
        }
    }
}

/// Durations in the form `30s` or `5m`.
mod span {
    use super::{Duration, Span};
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(duration) => serializer.collect_str(&Span(*duration)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse::<Span>().map(|span| span.0).map_err(D::Error::custom)).transpose()
    }
}

/// A log line with the result that a filter must have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestLine {
    /// The message, without the syslog header. Text that an outsider can choose is marked, with an example: `{{user:root}}`.
    /// The injection tests replace it. See [`MarkedLine`](crate::MarkedLine).
    pub line: String,
    /// Earlier lines of the same process, marked in the same way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// The program that writes the line. By default the first service of the filter. `""` is a line without a program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// The source address of the offence or login. `None` if the line must not match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Address>,
    /// The expected verdict. By default `failure` if there is a source, and `none` otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// The name of the rule that must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The mildest mode in which the line matches.
    #[serde(default, skip_serializing_if = "is_normal")]
    pub mode: Mode,
}

impl TestLine {
    /// Returns the expected verdict, with the default applied.
    pub fn expected(&self) -> Verdict {
        self.verdict.unwrap_or(if self.source.is_some() { Verdict::Failure } else { Verdict::None })
    }
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// An offence.
    Failure,
    /// A successful login.
    Success,
    /// Neither.
    None,
}

impl Rule {
    /// Creates a rule that has only an expression.
    pub fn new(regex: impl Into<String>) -> Self {
        Self { regex: regex.into(), ..Self::default() }
    }
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        MODES
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not a mode; write normal, ddos or aggressive"))
    }
}
