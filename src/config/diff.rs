//! Compares two configurations, and separates what a reload applies from what needs a restart.

use super::sections::Config;
use super::setting::{Entry, Key};
use super::table::settings;

/// A key whose value differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key with dots.
    pub key: String,
    /// The old value in the syntax of the file, with secrets hidden.
    pub old: String,
    /// The new value, likewise.
    pub new: String,
}

/// The differences between two configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Changes that a reload applies.
    pub live: Vec<Change>,
    /// Changes that need a restart.
    pub restart: Vec<Change>,
}

impl Changes {
    /// Whether the configurations are equal.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.restart.is_empty()
    }

    /// Whether a reload applies a change at or below `key` (a key or section, with dots).
    pub fn touches(&self, key: &str) -> bool {
        let below =
            |change: &Change| change.key.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.live.iter().any(below)
    }
}

/// The changes from `old` to `new`, in the order of the table.
pub fn diff(old: &Config, new: &Config) -> Changes {
    let mut changes = Changes::default();
    for ((key, old), (_, new)) in settings(old).into_iter().zip(settings(new)) {
        if !old.equals(new) {
            let change = Change { key: key.path, old: old.text(), new: new.text() };
            if key.live { &mut changes.live } else { &mut changes.restart }.push(change);
        }
    }
    changes
}

/// The configuration in force after a reload: `new` where a reload applies it, `old` where a restart is needed.
///
/// The mixture is not checked for contradictions again: no check compares the two kinds of keys in a way that matters while the
/// node runs.
pub fn reloaded(old: &Config, new: &Config) -> Config {
    let mut mixed = old.clone();
    let mut all = Vec::new();
    mixed.walk_mut(Key::ROOT, &mut all);
    for ((key, setting), (_, new)) in all.into_iter().zip(settings(new)) {
        if key.live {
            setting.assign(new);
        }
    }
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::value::{LogLevel, Secret};

    #[test]
    fn a_reload_applies_policy_and_names_what_needs_a_restart() {
        let old = Config::default();
        let mut new = old.clone();
        assert!(diff(&old, &new).is_empty());
        new.ban.max_attempts = 3;
        new.log.level = LogLevel::Debug;
        new.allowlist.clear();
        new.filters.enabled.pop();
        new.spoa.port = 1;
        new.api.basic_auth.password = Secret::new("one");
        let changes = diff(&old, &new);
        let keys = |changes: &[Change]| changes.iter().map(|change| change.key.clone()).collect::<Vec<_>>();
        assert_eq!(
            keys(&changes.live),
            ["filters.enabled", "ban.max_attempts", "allowlist", "api.basic_auth.password", "log.level"]
        );
        assert_eq!(keys(&changes.restart), ["spoa.port"]);
        assert_eq!((changes.live[1].old.as_str(), changes.live[1].new.as_str()), ("5", "3"));
        assert!(changes.touches("filters") && changes.touches("allowlist") && !changes.touches("spoa"));

        let mixed = reloaded(&old, &new);
        assert_eq!(mixed.ban.max_attempts, 3);
        assert_eq!(mixed.spoa.port, old.spoa.port);
        assert_eq!(diff(&mixed, &new).live, []);
    }

    #[test]
    fn a_changed_secret_is_a_change_and_stays_hidden() {
        let mut old = Config::default();
        old.api.basic_auth.users.insert("a".to_owned(), Secret::new("one"));
        let mut new = old.clone();
        new.api.basic_auth.users.insert("a".to_owned(), Secret::new("two"));
        let changes = diff(&old, &new);
        assert_eq!(changes.live.len(), 1);
        assert!(!format!("{changes:?}").contains("two"));
    }
}
