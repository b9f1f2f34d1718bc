//! Any bytes as a haproxy.cfg and its SPOE file, separated by a zero byte: nothing panics, and every finding is in a line that exists.
#![no_main]

use std::collections::BTreeMap;

use banmesh_haproxy::document::{Dialect, Source, parse};
use banmesh_haproxy::proxies::Configuration;
use banmesh_haproxy::spoe::SpoeFile;
use banmesh_haproxy::{Node, Version, check};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let (cfg, spoe) = text.split_once('\0').unwrap_or((&text, &text));
    let source = |name: &str, text: &str| Source { name: name.into(), text: text.to_owned() };
    let node = Node::default();
    for version in [Version::OLDEST, Version::NEWEST] {
        let mut environment = BTreeMap::from([("PORT".to_owned(), "1 2".to_owned())]);
        let document = parse(&source("cfg", cfg), Dialect::HaProxy, version, &mut environment);
        let configuration = Configuration::new(vec![document]);
        let spoe_file = SpoeFile::Read(parse(&source("spoe", spoe), Dialect::Spoe, version, &mut environment));
        let named = configuration.proxies.iter().flat_map(|proxy| proxy.spoe_filters());
        let files = named.filter_map(|line| line.after("config")).map(|name| (name.to_owned(), spoe_file.clone()));
        let files: BTreeMap<String, SpoeFile> = files.take(4).collect();
        let lines = cfg.lines().count().max(spoe.lines().count()).max(1);
        for finding in check(&configuration, &files, version, &node) {
            assert!((1..=lines).contains(&finding.place.line) && !finding.problem.is_empty());
        }
    }
});
