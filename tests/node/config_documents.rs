//! The commented file and the documentation match the table of keys.
//!
//! After a change of the table, update both with `BANMESH_UPDATE=1 cargo test --test node config_documents`.

use std::path::{Path, PathBuf};

use banmesh::config::{Config, document, resolve, settings};

const BEGIN: &str = "<!-- keys: made from the table in src/config/sections.rs -->\n";
const END: &str = "<!-- end of keys -->\n";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Compares the file with the expected content, or writes it.
fn current(name: &str, wanted: &str) {
    if std::env::var_os("BANMESH_UPDATE").is_some() {
        std::fs::write(path(name), wanted).unwrap();
    }
    let found = std::fs::read_to_string(path(name)).unwrap();
    let first = found.lines().zip(wanted.lines()).position(|(found, wanted)| found != wanted);
    assert!(
        found == wanted,
        "{name} is out of date from line {} on; BANMESH_UPDATE=1 cargo test --test node config_documents",
        first.map_or(0, |line| line + 1)
    );
}

#[test]
fn the_commented_file_has_every_key_with_its_default() {
    current("config/banmesh.yaml", &document::commented_file());
    let bytes = std::fs::read(path("config/banmesh.yaml")).unwrap();
    let loaded = resolve(Some((Path::new("config/banmesh.yaml"), &bytes)), []).unwrap();
    assert_eq!(loaded.config, Config::default());
    let warnings: Vec<&str> = loaded.warnings.iter().map(|warning| warning.key.as_str()).collect();
    assert_eq!(warnings, ["spoa.allowed_clients"]);
    for (key, _) in settings(&Config::default()) {
        let listed = !key.path.starts_with("nginx.") && !key.path.starts_with("envoy.");
        let written = loaded.origins.of(&key.path) != banmesh::config::Origin::Default;
        assert_eq!(listed, written, "{}", key.path);
    }
}

#[test]
fn the_documentation_has_every_key() {
    let page = std::fs::read_to_string(path("docs/configuration.md")).unwrap();
    let (head, rest) = page.split_once(BEGIN).expect("the mark where the tables begin");
    let (_, tail) = rest.split_once(END).expect("the mark where the tables end");
    current("docs/configuration.md", &format!("{head}{BEGIN}{}\n{END}{tail}", document::tables()));
}

#[test]
fn every_key_has_a_docstring_and_a_unique_variable() {
    let config = Config::default();
    let keys = settings(&config);
    let variables: std::collections::BTreeSet<String> = keys.iter().map(|(key, _)| key.variable()).collect();
    assert_eq!(variables.len(), keys.len());
    for (key, _) in &keys {
        assert!(key.doc.trim().ends_with(['.', '`']), "{}: {:?}", key.path, key.doc);
    }
}

#[test]
fn every_default_can_be_set_by_its_variable() {
    let config = Config::default();
    for (key, setting) in settings(&config) {
        let text = setting.text();
        let value = if text.starts_with('"') { text.trim_matches('"') } else { &text };
        let environment = [(key.variable(), value.to_owned())];
        let loaded = resolve(None, environment).unwrap_or_else(|error| panic!("{}={value}: {error}", key.variable()));
        assert_eq!(loaded.config, config, "{}={value}", key.variable());
    }
}
