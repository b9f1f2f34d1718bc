//! Words of fail2ban's `jail.conf`, and the key that does the same here, for people who come from there.

use super::problem::ProblemKind;

/// The words, with what banmesh has in their place.
const WORDS: [(&str, &str); 26] = [
    ("maxretry", "ban.max_attempts"),
    ("findtime", "ban.time_window"),
    ("bantime", "ban.initial_ban_time"),
    ("bantime.increment", "ban.escalation_factor (1 for equal bans)"),
    ("bantime.factor", "ban.escalation_factor"),
    ("bantime.multipliers", "ban.escalation_factor"),
    ("bantime.formula", "ban.escalation_factor"),
    ("bantime.maxtime", "ban.max_ban_time"),
    ("bantime.overalljails", "not needed: a target has one number of bans for all filters"),
    ("bantime.rndtime", "not needed: leave it out"),
    ("ignoreip", "allowlist"),
    ("ignoreself", "ban.ignore_self"),
    ("ignorecommand", "allowlist, or `banmesh allow` from a program"),
    ("ignorecache", "not needed: leave it out"),
    ("logpath", "inputs.files"),
    ("journalmatch", "inputs.journal"),
    ("backend", "inputs.files or inputs.journal"),
    ("failregex", "syslog.patterns, or a filter in filters.dirs"),
    ("ignoreregex", "`ignoreregex` in a filter of your own, in filters.dirs"),
    ("datepattern", "not needed: leave it out"),
    ("usedns", "not needed: names are never resolved"),
    ("dbpurgeage", "ban.max_memory_ttl"),
    ("dbfile", "node.data_dir"),
    ("maxmatches", "api.history"),
    ("banaction", "not needed: HAProxy refuses the client"),
    ("destemail", "notifications.webhooks"),
];

/// What to write for `key`, if its last part is a word of fail2ban's.
pub(super) fn word(key: &str) -> Option<ProblemKind> {
    let lower = key.to_ascii_lowercase();
    let is = |word: &str| lower.strip_suffix(word).is_some_and(|before| before.is_empty() || before.ends_with('.'));
    // The longest one, so that `bantime.increment` is not `increment`.
    let found = WORDS.iter().filter(|(word, _)| is(word)).max_by_key(|(word, _)| word.len());
    found.map(|&(word, ours)| ProblemKind::Fail2banWord { word, ours })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::resolve;
    use crate::config::table::settings;

    #[test]
    fn words_of_fail2ban_name_our_key() {
        let yaml = "maxretry: 5\nignoreip: [192.0.2.1]\nban:\n  findtime: 10m\n  bantime: 1h\n  bantime.increment: true\n  \
                    max_attempts: 3\n  Maxretry: 5\n";
        let errors = resolve(Some((std::path::Path::new("c.yaml"), yaml.as_bytes())), []).unwrap_err().to_string();
        let expected = [
            "c.yaml:1: maxretry: unknown key; fail2ban's `maxretry` is ban.max_attempts",
            "c.yaml:2: ignoreip: unknown key; fail2ban's `ignoreip` is allowlist",
            "c.yaml:4: ban.findtime: unknown key; fail2ban's `findtime` is ban.time_window",
            "c.yaml:5: ban.bantime: unknown key; fail2ban's `bantime` is ban.initial_ban_time",
            "c.yaml:6: ban.bantime.increment: unknown key; fail2ban's `bantime.increment` is ban.escalation_factor (1 for equal bans)",
            "c.yaml:8: ban.Maxretry: unknown key; fail2ban's `maxretry` is ban.max_attempts",
        ];
        assert_eq!(errors, expected.join("\n"));
    }

    #[test]
    fn every_named_key_exists() {
        let config = Config::default();
        let keys: Vec<String> = settings(&config).into_iter().map(|(key, _)| key.path).collect();
        for (word, ours) in WORDS {
            assert!(word_is_ours(&keys, word).is_none(), "{word} is a key of ours");
            for named in ours.split([' ', ',']).filter(|part| part.contains('.') && !part.starts_with('`')) {
                let named = named.trim_end_matches([':', '.']);
                let section = format!("{named}.");
                assert!(keys.iter().any(|key| key == named || key.starts_with(&section)), "{word}: {named}");
            }
        }
    }

    fn word_is_ours<'a>(keys: &'a [String], word: &str) -> Option<&'a String> {
        keys.iter().find(|key| *key == word || key.ends_with(&format!(".{word}")))
    }
}
