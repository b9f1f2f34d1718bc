//! What a filter file says, before it is compiled.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use banmesh_types::time::Span;

/// How much a filter takes for an offence (`filters.mode`). Named as fail2ban's modes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Failed logins and what nobody but an attacker does.
    #[default]
    Normal,
    /// Also connections that are made only to cost something: early disconnects, time-outs, floods.
    Ddos,
    /// Also what a misconfigured but honest client may do.
    Aggressive,
}

/// All modes, from the mildest on.
pub const MODES: [Mode; 3] = [Mode::Normal, Mode::Ddos, Mode::Aggressive];

impl Mode {
    /// The word that stands for it in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Ddos => "ddos",
            Self::Aggressive => "aggressive",
        }
    }

    /// Whether a rule of mode `rule` is in force when this mode is set: each mode includes the milder ones.
    pub fn includes(self, rule: Self) -> bool {
        rule <= self
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One filter: how a service writes failed logins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Its name; built-in filters are named as their service is.
    pub name: String,
    /// One sentence for the operator.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The program names to which it applies (the syslog tag without the pid), each with at most one `*`: `dovecot`,
    /// `postfix/*`, `*/smtpd`. `*` alone is every program.
    #[serde(default)]
    pub services: Vec<String>,
    /// Whether it also applies to a line that comes without a program name, as a web server's access log does.
    #[serde(default, skip_serializing_if = "is_false")]
    pub without_program: bool,
    /// Pieces of expression that the rules name as `<piece>`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub definitions: BTreeMap<String, String>,
    /// What is an offence.
    #[serde(default)]
    pub failregex: Vec<Rule>,
    /// What is none, whatever `failregex` says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignoreregex: Vec<Rule>,
    /// What proves that the source is who it says: `ban.success_clears` makes it forget the source's failures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub successregex: Vec<Rule>,
    /// What tells whose session it is: an expression with the group `session` and an address. A rule with the group
    /// `session` and no address is about the address that the last such line of the same process named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sessionregex: Vec<Rule>,
    /// What ends a session: an expression with the group `session`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endregex: Vec<Rule>,
    /// What this filter's offences change in the `ban` section.
    #[serde(default, skip_serializing_if = "Overrides::is_empty")]
    pub ban: Overrides,
    /// Lines that show what it does; `banmesh filter test` and the test suite run them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<TestLine>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// One expression of a filter. In a file either the expression alone or a mapping.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Rule {
    /// Its name within the filter; where none is given, its list and number (`failregex-3`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The expression, with `<HOST>` (an address), `<HOSTPORT>` (an address and a port), `<FORWARDED>` (an X-Forwarded-For
    /// list), a group that `ip_group` names, or the group `session`.
    pub regex: String,
    /// Which group holds the address, when none of `<HOST>`, `<HOSTPORT>` and `<FORWARDED>` does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_group: Option<IpGroup>,
    /// From 1 (harmless) to 6 (grave); 3 where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<u8>,
    /// The mildest mode in which it is in force.
    #[serde(skip_serializing_if = "is_normal")]
    pub mode: Mode,
    /// Lines of one filter that tell of the same deed in different words have an echo class each: within one filter and for
    /// one source, only the class with the most lines counts (see [`super::Repeats`]). At most eight classes a filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub echo: Option<String>,
    /// One sentence for the operator.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What this rule's offences change in the `ban` section, over the filter's own changes.
    #[serde(skip_serializing_if = "Overrides::is_empty")]
    pub ban: Overrides,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
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
                let Fields { name, regex, ip_group, severity, mode, echo, description, ban } =
                    Fields::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Rule { name, regex, ip_group, severity, mode, echo, description, ban })
            }
        }

        deserializer.deserialize_any(RuleVisitor)
    }
}

/// A group of an expression: by number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IpGroup {
    /// The n-th group; the first is 1, and 0 is the whole match.
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
                usize::try_from(number).map(IpGroup::Number).map_err(|_| E::custom("there is no such group"))
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<IpGroup, E> {
                usize::try_from(number).map(IpGroup::Number).map_err(|_| E::custom("a group's number is at least 0"))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<IpGroup, E> {
                Ok(text.parse().map_or_else(|_| IpGroup::Name(text.to_owned()), IpGroup::Number))
            }
        }

        deserializer.deserialize_any(GroupVisitor)
    }
}

/// One entry of `syslog.patterns`: an expression that is searched in the whole line, whatever program wrote it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pattern {
    /// Its name: what a ban by it is called.
    pub name: String,
    /// The expression, searched in what follows the priority; it may use `<HOST>`.
    pub regex: String,
    /// Which group holds the address; without it `<HOST>`, else the first group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_group: Option<IpGroup>,
    /// From 1 (harmless) to 6 (grave); 3 where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<u8>,
    /// One sentence for the operator.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
}

/// What a filter or a rule changes in the ban policy; what is not given stays as the `ban` section says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overrides {
    /// Offences within `time_window` that lead to a ban.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// The window in which offences are counted.
    #[serde(skip_serializing_if = "Option::is_none", with = "span")]
    pub time_window: Option<Duration>,
    /// How long the first ban lasts.
    #[serde(skip_serializing_if = "Option::is_none", with = "span")]
    pub initial_ban_time: Option<Duration>,
    /// How long a ban lasts at most.
    #[serde(skip_serializing_if = "Option::is_none", with = "span")]
    pub max_ban_time: Option<Duration>,
    /// By how much each further ban is longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub escalation_factor: Option<f64>,
}

impl Overrides {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// This where it says something, else `base`.
    #[must_use]
    pub fn over(&self, base: &Self) -> Self {
        Self {
            max_attempts: self.max_attempts.or(base.max_attempts),
            time_window: self.time_window.or(base.time_window),
            initial_ban_time: self.initial_ban_time.or(base.initial_ban_time),
            max_ban_time: self.max_ban_time.or(base.max_ban_time),
            escalation_factor: self.escalation_factor.or(base.escalation_factor),
        }
    }
}

/// Durations as people write them.
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

/// A line that shows what a filter does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestLine {
    /// The message as the service writes it, without the syslog header. What an outsider can choose freely is marked with
    /// an example, `{{user:root}}`: the injection tests put other text there.
    pub line: String,
    /// Lines that the same process has written before, marked likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// The program that writes it; without it the filter's first service. `""` is a line without a program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// The address that it accuses (or clears, when `verdict` is `success`); none, when it must not match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// What it is taken for; without it `failure` where there is a source, else `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// The rule that must match it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The mildest mode in which it matches.
    #[serde(default, skip_serializing_if = "is_normal")]
    pub mode: Mode,
}

impl TestLine {
    /// What the line must be taken for.
    pub fn expected(&self) -> Verdict {
        self.verdict.unwrap_or(if self.source.is_some() { Verdict::Failure } else { Verdict::None })
    }
}

/// What a line is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// An offence.
    Failure,
    /// A correct login.
    Success,
    /// Nothing.
    None,
}

impl Rule {
    /// A rule with nothing but an expression.
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
            .ok_or_else(|| format!("`{text}` is no mode: write normal, ddos or aggressive"))
    }
}
