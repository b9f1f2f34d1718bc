//! Sets keys from environment variables.

use std::collections::BTreeMap;

use super::origin::{Origin, Origins};
use super::problem::{Faults, Problem, ProblemKind, nearest};
use super::sections::Config;
use super::table::{settings, settings_mut};

/// The prefix of every variable for banmesh.
pub const PREFIX: &str = "FAIL2BAN_";

/// Applies the variables that begin with [`PREFIX`].
///
/// A variable without a key is an error, because a misspelled name must not silently mean the default. Variables that Kubernetes
/// sets for a Service of the same name are ignored with a warning.
pub(super) fn apply(
    config: &mut Config,
    environment: impl IntoIterator<Item = (String, String)>,
    origins: &mut Origins,
    errors: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) {
    let keys: BTreeMap<String, String> =
        settings(config).into_iter().map(|(key, _)| (key.variable(), key.path)).collect();
    // Sorted by name, so that the same environment always gives the same list of errors.
    let given: BTreeMap<String, String> =
        environment.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    let mut table = settings_mut(config);
    for (name, value) in given {
        let key = keys.get(&name);
        let origin = Origin::Variable(name.clone());
        if is_service_link(&name, &value, key.is_some()) {
            let key = key.cloned().unwrap_or_default();
            warnings.push(Problem { origin, key, kind: ProblemKind::ServiceLink });
            continue;
        }
        let mut faults = Faults::new(errors, origin.clone(), key.map_or("", String::as_str));
        match key.and_then(|key| table.get_mut(key).map(|setting| (key, setting))) {
            // It stands for bytes that are not UTF-8.
            Some(_) if value.contains(char::REPLACEMENT_CHARACTER) => {
                faults.invalid(0, "the value is not UTF-8".to_owned());
            }
            Some((key, setting)) => {
                setting.read_text(&value, &mut faults);
                origins.set(key, origin);
            }
            None => {
                let nearest = nearest(&name, keys.keys().map(String::as_str));
                faults.add(0, ProblemKind::UnknownVariable { nearest });
            }
        }
    }
}

/// Whether Kubernetes set this variable for a Service: `X_SERVICE_HOST`, `X_SERVICE_PORT[_NAME]`, and, in the format of old Docker
/// links, `X_PORT` and `X_PORT_n_TCP[_PROTO|_PORT|_ADDR]`.
fn is_service_link(name: &str, value: &str, known: bool) -> bool {
    let link = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    if link && name.contains("_PORT") {
        return true;
    }
    if known {
        return false;
    }
    let by_port = || {
        let (_, rest) = name.split_once("_PORT_")?;
        let (number, rest) = rest.split_once('_')?;
        let last =
            rest.strip_prefix("TCP").or_else(|| rest.strip_prefix("UDP")).or_else(|| rest.strip_prefix("SCTP"))?;
        Some(number.parse::<u16>().is_ok() && ["", "_PROTO", "_PORT", "_ADDR"].contains(&last))
    };
    (name.ends_with("_SERVICE_HOST") && value.parse::<std::net::IpAddr>().is_ok())
        || ((name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_")) && value.parse::<u16>().is_ok())
        || by_port().unwrap_or(false)
}
