//! What a configuration decides, for `banmesh replay`: the filters, the policies and the limits, without a node.

use std::sync::Arc;

use super::allowed_names::AllowedNames;
use super::{accounts, settings};
use crate::config::{Config, allowlist};
use crate::inputs::detect::Detection;
use banmesh_core::evidence::AccountKey;
use banmesh_core::judge::Rules;
use banmesh_core::ledger::Limits;

/// The decisions of a configuration.
#[derive(Debug)]
pub struct Decisions {
    /// The filters as a node uses them.
    pub detection: Detection,
    /// The same with the rules for successful logins. `None` if a node uses these too.
    pub with_successes: Option<Detection>,
    /// The policies and the allowlist. Names in the allowlist are not resolved.
    pub rules: Rules,
    /// The limits of the ban table.
    pub limits: Limits,
}

/// Builds the decisions of `config`.
///
/// # Errors
/// One line per error in the filters or in the allowlist.
pub fn decisions(config: &Config) -> Result<Decisions, Vec<String>> {
    let filters = |config: &Config| {
        settings::detection(config).map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let detection = filters(config)?;
    let with_successes = match settings::uses_logins(config) {
        true => None,
        false => {
            let mut counting = config.clone();
            counting.ban.success_clears = true;
            Some(filters(&counting)?)
        }
    };
    let list = allowlist::read(config).map_err(|error| vec![error.to_string()])?;
    let allowed = AllowedNames::new(list, config.allowlist_resolve_interval.0);
    let evidence = accounts::evidence_with(config, AccountKey::new(*b"banmesh replay 1"))
        .map_err(|error| vec![error.to_string()])?;
    let rules = Rules { evidence: Arc::new(evidence), ..settings::judge(config, &detection, &allowed) };
    Ok(Decisions { detection, with_successes, rules, limits: settings::limits(config) })
}
