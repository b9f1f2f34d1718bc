//! The table of all settings of a configuration.

use std::collections::BTreeMap;

use super::sections::Config;
use super::setting::{Entry, Key, Setting};

/// Every setting of `config`, in the order of [`sections`](super::sections).
pub fn settings(config: &Config) -> Vec<(Key, &dyn Setting)> {
    let mut all = Vec::new();
    config.walk(Key::ROOT, &mut all);
    all
}

/// Every setting of `config` by its full name.
pub(super) fn settings_mut(config: &mut Config) -> BTreeMap<String, &mut dyn Setting> {
    let mut all = Vec::new();
    config.walk_mut(Key::ROOT, &mut all);
    all.into_iter().map(|(key, setting)| (key.path, setting)).collect()
}
