//! Every configuration key mentioned in a document, an error or a log line exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use banmesh::config::{Config, settings};
use regex::Regex;

/// Keys whose entries are named by the operator: `api.users.ann`.
const NAMED: [&str; 5] = ["api.users", "api.tokens", "api.basic_auth.users", "crowdsec.keys", "lists.keys"];
/// Names that look like keys but are files, units or hosts: `haproxy.cfg`.
const FILES: [&str; 16] = [
    "cfg", "conf", "example", "html", "js", "json", "key", "local", "log", "md", "pem", "rs", "service", "sock",
    "yaml", "yml",
];

/// Names of Envoy that begin as keys of the section `envoy` do: `envoy.service.auth.v3`.
const OF_ENVOY: [&str; 5] =
    ["envoy.extensions.", "envoy.filters.", "envoy.retry_priorities.", "envoy.service.", "envoy.yaml"];

/// Deliberately misspelled names.
const EXAMPLES: [(&str, &str); 2] =
    [("docs/configuration.md", "ban.max_atempts"), ("docs/configuration.md", "FAIL2BAN_SPOA_PRT")];

/// The existing names: keys and sections with dots, and variables.
struct Known {
    paths: BTreeSet<String>,
    variables: BTreeSet<String>,
    path: Regex,
    variable: Regex,
}

impl Known {
    fn new() -> Self {
        let config = Config::default();
        let mut known = BTreeSet::new();
        let mut variables = BTreeSet::from(["FAIL2BAN".to_owned(), "FAIL2BAN_CONFIG".to_owned()]);
        for (key, _) in settings(&config) {
            // `FAIL2BAN_API_…` names a section.
            let whole = key.variable();
            variables.extend(whole.match_indices('_').map(|(at, _)| whole[..at].to_owned()));
            variables.insert(whole);
            known.extend(key.path.match_indices('.').map(|(at, _)| key.path[..at].to_owned()));
            known.insert(key.path);
        }
        let sections: Vec<&str> = known.iter().filter(|path| !path.contains('.')).map(String::as_str).collect();
        let path = Regex::new(&format!(r"\b(?:{})(?:\.[a-z_][a-z0-9_]*)+", sections.join("|"))).unwrap();
        Self { paths: known, variables, path, variable: Regex::new("FAIL2BAN(?:_[A-Z0-9]+)*").unwrap() }
    }

    /// The names in `text` that do not exist, and the number of names.
    fn missing<'t>(&self, text: &'t str) -> (Vec<&'t str>, usize) {
        let mut looked_at = 0;
        let mut missing = Vec::new();
        for found in self.path.find_iter(text) {
            let (before, after) = (text[..found.start()].chars().next_back(), &text[found.end()..]);
            // Skip parts of a path, an address or a longer name, and calls and paths in Rust.
            let part = before.is_some_and(|c| c.is_alphanumeric() || "_./$:@-<>{}".contains(c));
            if part || after.starts_with(|c: char| c.is_alphanumeric() || c == '(') || after.starts_with("::") {
                continue;
            }
            looked_at += 1;
            let name = found.as_str();
            let (parent, last) = name.rsplit_once('.').unwrap();
            if OF_ENVOY.iter().any(|begin| name.starts_with(begin)) {
                continue;
            }
            if !self.paths.contains(name) && !NAMED.contains(&parent) && !FILES.contains(&last) {
                missing.push(name);
            }
        }
        for found in self.variable.find_iter(text) {
            looked_at += 1;
            if !self.variables.contains(found.as_str()) {
                missing.push(found.as_str());
            }
        }
        (missing, looked_at)
    }
}

/// The comments and string literals of a Rust source file. The code between them becomes one line break.
fn comments_and_texts(source: &str) -> String {
    let token = r##"(?s)//[^\n]*|r#*"|b?"(?:[^"\\]|\\.)*"|'(?:[^'\\\n]|\\[^\n]{1,8})'"##;
    let token = Regex::new(token).unwrap();
    let (mut kept, mut from) = (String::new(), 0);
    while let Some(found) = token.find_at(source, from) {
        let mut end = found.end();
        if let Some(raw) = found.as_str().strip_prefix('r') {
            let close = format!("\"{}", "#".repeat(raw.len() - 1));
            end = source[end..].find(&close).map_or(source.len(), |at| end + at + close.len());
        }
        // A string that continues on the next line is one string.
        kept.push_str(&source[found.start()..end].replace("\\\n", " "));
        kept.push('\n');
        from = end;
    }
    kept
}

fn walk(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            walk(&entry.unwrap().path(), found);
        }
    } else {
        found.push(path.to_owned());
    }
}

/// The paths of the chart's own values. Those with the meaning of a key have its name.
fn values(value: &serde_yaml::Value, path: &str, found: &mut BTreeSet<String>) {
    found.insert(path.to_owned());
    for (key, value) in value.as_mapping().into_iter().flatten() {
        let below = if path.is_empty() { String::new() } else { format!("{path}.") };
        values(value, &format!("{below}{}", key.as_str().unwrap_or_default()), found);
    }
}

#[test]
fn every_mentioned_key_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let known = Known::new();
    let mut files = Vec::new();
    for name in
        ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs", "src", "config", "deploy", "helm/banmesh", "scripts"]
    {
        walk(&root.join(name), &mut files);
    }
    let mut of_chart = BTreeSet::new();
    let chart = std::fs::read_to_string(root.join("helm/banmesh/values.yaml")).unwrap();
    values(&serde_yaml::from_str(&chart).unwrap(), "", &mut of_chart);
    let (mut wrong, mut count) = (Vec::new(), 0);
    for file in files {
        let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        // In scripts and dashboards, names with dots are objects.
        if matches!(extension, "js" | "mjs" | "json" | "png" | "svg") {
            continue;
        }
        let Ok(mut text) = std::fs::read_to_string(&file) else { continue };
        if extension == "rs" {
            // Test modules are at the end of a file, and mention keys that do not exist.
            let end = text.find("\n#[cfg(test)]").unwrap_or(text.len());
            text = comments_and_texts(&text[..end]);
        }
        let (missing, looked_at) = known.missing(&text);
        count += looked_at;
        let about_chart = ["CHANGELOG.md", "docs/install.md", "docs/kubernetes.md", "docs/walkthrough-kubernetes.md"];
        let in_chart = file.starts_with(root.join("helm")) || about_chart.iter().any(|name| file == root.join(name));
        // The name of a value may have capitals, where the search for a key stops: `cluster.keyring.existingSecret`.
        let of_chart =
            |name: &str| in_chart && of_chart.iter().any(|value| value.strip_prefix(name).is_some_and(is_end));
        let example = |name: &str| EXAMPLES.iter().any(|(at, wrong)| file.ends_with(at) && *wrong == name);
        let missing = missing.into_iter().filter(|name| !of_chart(name) && !example(name));
        wrong.extend(missing.map(|name| format!("{}: there is no {name}", file.display())));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 500, "{count} names");
}

/// Whether a name may end before `rest`.
fn is_end(rest: &str) -> bool {
    !rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
}

#[test]
fn mentions_of_unknown_keys_are_found() {
    let known = Known::new();
    for (text, expected) in [
        (
            "#[error(\"syslog.tcp_max_connections_per_sender ({0}) is reached\")]",
            "syslog.tcp_max_connections_per_sender",
        ),
        ("warn!(\"set \\\n    ban.max_attempt\");", "ban.max_attempt"),
        ("/// Half of `spoa.clients`.", "spoa.clients"),
        ("let text = r#\"a \"quoted\" ban.attempts\"#;", "ban.attempts"),
        ("// FAIL2BAN_BAN_ATTEMPTS", "FAIL2BAN_BAN_ATTEMPTS"),
    ] {
        assert_eq!(known.missing(&comments_and_texts(text)).0, [expected], "{text}");
    }
    for text in [
        "node.identity.clone(); let quote = '\"'; ban.attempts",
        "\"haproxy.cfg and ban.max_attempts, api.tls and api.users.ann\"",
        "// see https://api.example.org/ban.gone and `cluster.leave()`",
    ] {
        assert_eq!(known.missing(&comments_and_texts(text)).0, <[&str; 0]>::default(), "{text}");
    }
}
