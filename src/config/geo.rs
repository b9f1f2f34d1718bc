//! `geo.rules`: how much failures from a country or a network count, and how long their bans last.

use super::problem::Faults;
use super::setting::{Scalar, Setting, comparable};
use super::structured::{fields, list, optional, read_variable, scalars};
use super::yaml::{Node, Value};
use crate::decisions::geo::GeoRule;

const KEYS: [&str; 4] = ["countries", "networks", "weight", "ban_time"];
/// The most that a failure may count.
const MAX_WEIGHT: u32 = 100;
/// The longest factor of the length of a ban.
const MAX_FACTOR: f64 = 1000.0;

/// A country by its two letters (ISO 3166).
#[derive(Clone, PartialEq)]
struct CountryCode(String);

impl Scalar for CountryCode {
    const KIND: &'static str = "a country of two letters";
    const KINDS: &'static str = "list of countries";

    fn parse(text: &str) -> Result<Self, String> {
        let good = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_alphabetic());
        let short: String = text.chars().take(40).collect();
        if good {
            Ok(Self(text.to_ascii_uppercase()))
        } else {
            Err(format!("`{short}` is not a country of two letters, such as DE"))
        }
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

fn read(node: &Node, faults: &mut Faults<'_>) -> Option<GeoRule> {
    let Value::Map(pairs) = &node.value else {
        let found = node.describe();
        faults.invalid(node.line, format!("expected {{ countries: [DE], weight: 2, ban_time: 4 }}, found {found}"));
        return None;
    };
    let (found, good) = fields(pairs, KEYS, faults);
    let countries = scalars::<CountryCode>(&found, "countries", Vec::new(), faults);
    let networks = scalars::<u32>(&found, "networks", Vec::new(), faults);
    let weight: u32 = optional(&found, "weight", 1, faults)?;
    let ban_time: f64 = optional(&found, "ban_time", 1.0, faults)?;
    let rule = GeoRule {
        countries: countries?.into_iter().map(|CountryCode(code)| code).collect(),
        networks: networks?,
        weight,
        ban_time,
    };
    let mistake = if rule.countries.is_empty() && rule.networks.is_empty() {
        Some("needs `countries` or `networks`".to_owned())
    } else if !(1..=MAX_WEIGHT).contains(&weight) {
        Some(format!("`weight`: {weight} is not between 1 and {MAX_WEIGHT}"))
    } else if !(0.01..=MAX_FACTOR).contains(&ban_time) {
        Some(format!("`ban_time`: {ban_time} is not between 0.01 and {MAX_FACTOR}"))
    } else {
        None
    };
    match mistake {
        Some(mistake) => {
            faults.invalid(node.line, mistake);
            None
        }
        None => good.then_some(rule),
    }
}

impl Setting for Vec<GeoRule> {
    comparable!();

    fn kind(&self) -> &'static str {
        "list of rules"
    }

    fn read(&mut self, node: &Node, faults: &mut Faults<'_>) {
        if let Some(rules) = list(node, "rule", read, faults) {
            *self = rules;
        }
    }

    fn read_text(&mut self, text: &str, faults: &mut Faults<'_>) {
        read_variable(self, text, faults);
    }

    fn json(&self) -> serde_json::Value {
        let one = |rule: &GeoRule| {
            serde_json::json!({
                "countries": rule.countries, "networks": rule.networks, "weight": rule.weight, "ban_time": rule.ban_time,
            })
        };
        self.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resolve;
    use std::path::Path;

    fn rules(yaml: &str) -> Result<Vec<GeoRule>, String> {
        let text = format!("geo:\n  rules:\n{yaml}");
        let loaded = resolve(Some((Path::new("c.yaml"), text.as_bytes())), []);
        loaded.map(|loaded| loaded.config.geo.rules).map_err(|errors| errors.to_string())
    }

    #[test]
    fn rules_name_countries_and_networks() {
        let rules = rules("    - { countries: [xx, YY], networks: [64496], weight: 2, ban_time: 0.5 }\n").unwrap();
        assert_eq!(rules[0].countries, ["XX", "YY"]);
        assert_eq!((rules[0].networks[0], rules[0].weight, rules[0].ban_time), (64_496, 2, 0.5));
    }

    #[test]
    fn mistakes_are_explained() {
        for (yaml, part) in [
            ("    - { weight: 2 }\n", "needs `countries` or `networks`"),
            ("    - { countries: [Germany] }\n", "is not a country of two letters"),
            ("    - { countries: DE }\n", "expected a list of countries"),
            ("    - { countries: [DE], weight: 0 }\n", "0 is not between 1 and 100"),
            ("    - { countries: [DE], ban_time: 0 }\n", "0 is not between 0.01 and 1000"),
            ("    - { asns: [1], countries: [DE] }\n", "asns"),
        ] {
            let error = rules(yaml).unwrap_err();
            assert!(error.contains(part), "{yaml}: {error}");
        }
    }
}
