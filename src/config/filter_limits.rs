//! `filters.<name>`: limits of single filters and rules, without a copy of the filter.

use std::collections::BTreeMap;
use std::time::Duration;

use super::problem::Faults;
use super::setting::{Scalar, Setting, comparable, scalar};
use super::structured::{fields, structured};
use super::yaml::{Node, Value};
use banmesh_filter::{BanMode, FilterLimits, Overrides};
use banmesh_types::time::Span;

/// The limits of filters, by name.
pub type Limits = BTreeMap<String, FilterLimits>;

const OVERRIDES: [&str; 6] =
    ["max_attempts", "time_window", "initial_ban_time", "max_ban_time", "escalation_factor", "mode"];

impl Scalar for BanMode {
    const KIND: &'static str = "enforce or shadow";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }

    fn show(&self) -> String {
        self.as_str().to_owned()
    }
}

impl Setting for Limits {
    comparable!();

    fn kind(&self) -> &'static str {
        "`{ ban: { max_attempts: … }, rules: { RULE: { … } } }`"
    }

    /// Adds the filters of a mapping to those that were read before: each is a key of its own in the file.
    fn read(&mut self, node: &Node, faults: &mut Faults<'_>) {
        let Value::Map(pairs) = &node.value else {
            let found = node.describe();
            return faults.invalid(node.line, format!("expected names of filters, found {found}; write {{}} for none"));
        };
        for pair in pairs {
            if let Some(limits) = read_filter(&pair.value, faults) {
                self.insert(pair.key.clone(), limits);
            }
        }
    }

    fn read_text(&mut self, text: &str, faults: &mut Faults<'_>) {
        self.clear();
        if !text.trim().is_empty()
            && let Some(node) = structured(text, faults)
        {
            self.read(&node, faults);
        }
    }

    fn json(&self) -> serde_json::Value {
        let one = |(name, limits): (&String, &FilterLimits)| {
            let mut fields = serde_json::Map::new();
            if !limits.ban.is_empty() {
                fields.insert("ban".to_owned(), overrides_json(&limits.ban));
            }
            if !limits.rules.is_empty() {
                let rules = limits.rules.iter().map(|(rule, ban)| (rule.clone(), overrides_json(ban)));
                fields.insert("rules".to_owned(), rules.collect::<serde_json::Map<_, _>>().into());
            }
            (name.clone(), fields.into())
        };
        self.iter().map(one).collect::<serde_json::Map<_, _>>().into()
    }
}

fn overrides_json(overrides: &Overrides) -> serde_json::Value {
    serde_json::to_value(overrides).unwrap_or_default()
}

/// Reads the value of `filters.NAME`. `None` if it has an error.
fn read_filter(node: &Node, faults: &mut Faults<'_>) -> Option<FilterLimits> {
    let pairs = match &node.value {
        Value::Map(pairs) => pairs,
        Value::Null => return Some(FilterLimits::default()),
        _ => {
            let found = node.describe();
            faults.invalid(node.line, format!("expected {{ ban: {{ … }}, rules: {{ … }} }}, found {found}"));
            return None;
        }
    };
    let (found, mut good) = fields(pairs, ["ban", "rules"], faults);
    let mut limits = FilterLimits::default();
    if let Some(node) = found.get("ban") {
        match faults.within(".ban", |faults| read_overrides(node, faults)) {
            Some(ban) => limits.ban = ban,
            None => good = false,
        }
    }
    if let Some(node) = found.get("rules") {
        good &= faults.within(".rules", |faults| read_rules(node, &mut limits.rules, faults));
    }
    good.then_some(limits)
}

fn read_rules(node: &Node, rules: &mut BTreeMap<String, Overrides>, faults: &mut Faults<'_>) -> bool {
    let pairs = match &node.value {
        Value::Map(pairs) => pairs,
        Value::Null => return true,
        _ => {
            faults.invalid(node.line, format!("expected names of rules with limits, found {}", node.describe()));
            return false;
        }
    };
    let mut good = true;
    for pair in pairs {
        match faults.within(&format!(".{}", pair.key), |faults| read_overrides(&pair.value, faults)) {
            Some(ban) if !rules.contains_key(&pair.key) => _ = rules.insert(pair.key.clone(), ban),
            Some(_) => {
                faults.within(&format!(".{}", pair.key), |f| f.invalid(pair.line, "is set twice".to_owned()));
                good = false;
            }
            None => good = false,
        }
    }
    good
}

fn read_overrides(node: &Node, faults: &mut Faults<'_>) -> Option<Overrides> {
    let pairs = match &node.value {
        Value::Map(pairs) => pairs,
        Value::Null => return Some(Overrides::default()),
        _ => {
            let found = node.describe();
            faults.invalid(node.line, format!("expected limits such as {{ max_attempts: 3 }}, found {found}"));
            return None;
        }
    };
    let (found, mut good) = fields(pairs, OVERRIDES, faults);
    let mut overrides = Overrides::default();
    for (key, node) in found {
        let at = node.line;
        good &= faults.within(&format!(".{key}"), |faults| {
            let span = |faults: &mut Faults<'_>| match scalar::<Span>(node, faults) {
                Some(span) if (1..=10 * 365 * 86_400).contains(&span.0.as_secs()) => Some(span.0),
                Some(span) => {
                    faults.invalid(at, format!("{span} is out of range; it must be 1s to 10 years (3650d)"));
                    None::<Duration>
                }
                None => None,
            };
            match key {
                "max_attempts" => match scalar::<u32>(node, faults) {
                    Some(0) => faults.invalid(at, "must be at least 1".to_owned()),
                    attempts => overrides.max_attempts = attempts,
                },
                "escalation_factor" => match scalar::<f64>(node, faults) {
                    Some(factor) if !(factor.is_finite() && factor >= 1.0) => {
                        faults.invalid(at, format!("{factor} would make each ban shorter; it must be at least 1"));
                    }
                    factor => overrides.escalation_factor = factor,
                },
                "mode" => overrides.mode = scalar(node, faults),
                "time_window" => overrides.time_window = span(faults),
                "initial_ban_time" => overrides.initial_ban_time = span(faults),
                _ => overrides.max_ban_time = span(faults),
            }
            match key {
                "max_attempts" => overrides.max_attempts.is_some(),
                "escalation_factor" => overrides.escalation_factor.is_some(),
                "mode" => overrides.mode.is_some(),
                "time_window" => overrides.time_window.is_some(),
                "initial_ban_time" => overrides.initial_ban_time.is_some(),
                _ => overrides.max_ban_time.is_some(),
            }
        });
    }
    let too_short = overrides.initial_ban_time.zip(overrides.max_ban_time).filter(|(initial, max)| initial > max);
    if let Some((initial, max)) = too_short {
        let message =
            format!("max_ban_time ({}) must not be shorter than initial_ban_time ({})", Span(max), Span(initial));
        faults.invalid(node.line, message);
        return None;
    }
    good.then_some(overrides)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::resolve;

    fn read(yaml: &str) -> Result<Limits, String> {
        resolve(Some((Path::new("c.yaml"), yaml.as_bytes())), [])
            .map(|loaded| loaded.config.filters.each)
            .map_err(|errors| errors.to_string())
    }

    #[test]
    fn limits_of_filters_and_rules_are_keys_of_the_filters_section() {
        let yaml = "filters:\n  enabled: [sshd]\n  sshd:\n    ban: { max_attempts: 3, time_window: 1h, mode: shadow }\n    rules:\n      \
                    invalid-user: { max_attempts: 1 }\n  dovecot: { ban: { initial_ban_time: 1h } }\n";
        let limits = read(yaml).unwrap();
        let sshd = &limits["sshd"];
        assert_eq!((sshd.ban.max_attempts, sshd.ban.mode), (Some(3), Some(BanMode::Shadow)));
        assert_eq!(sshd.rules["invalid-user"].max_attempts, Some(1));
        assert_eq!(limits["dovecot"].ban.initial_ban_time, Some(Duration::from_secs(3600)));
        let json = r#"{"dovecot":{"ban":{"initial_ban_time":"1h"}},"sshd":{"ban":{"max_attempts":3,"mode":"shadow","time_window":"1h"},"rules":{"invalid-user":{"max_attempts":1}}}}"#;
        assert_eq!(limits.json().to_string(), json);
        let environment = [("FAIL2BAN_FILTERS_NAME".to_owned(), json.to_owned())];
        assert_eq!(resolve(None, environment).unwrap().config.filters.each, limits);
    }

    #[test]
    fn invalid_limits_name_the_key_and_the_line() {
        for (yaml, message) in [
            ("  sshd:\n    ban: { max_attempts: 0 }", "c.yaml:3: filters.sshd.ban.max_attempts: must be at least 1"),
            ("  sshd:\n    ban: { maxretry: 3 }", "c.yaml:3: filters.sshd.ban.maxretry: unknown key"),
            ("  sshd:\n    ban: { time_window: 0 }", "filters.sshd.ban.time_window: 0s is out of range"),
            ("  sshd:\n    ban: { mode: dry }", "filters.sshd.ban.mode: `dry` is not a mode"),
            (
                "  sshd:\n    rules: { a: { escalation_factor: 0.5 } }",
                "filters.sshd.rules.a.escalation_factor: 0.5 would",
            ),
            ("  sshd:\n    ban: { initial_ban_time: 2h, max_ban_time: 1h }", "max_ban_time (1h) must not be shorter"),
            ("  sshd: { max_attempts: 3 }", "c.yaml:2: filters.sshd.max_attempts: unknown key"),
            ("  enable: [sshd]", "c.yaml:2: filters.enable: unknown key; did you mean filters.enabled?"),
        ] {
            let errors = read(&format!("filters:\n{yaml}\n")).unwrap_err();
            assert!(errors.contains(message), "{yaml}: {errors}");
        }
    }
}
