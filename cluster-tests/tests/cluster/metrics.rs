//! docs/operations.md lists exactly the metrics that a node exports.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use cluster_tests::mesh::{Mesh, address};
use cluster_tests::node::Node;
use cluster_tests::wait;

/// The metrics in the document, each with whether it has labels.
fn documented() -> BTreeSet<(String, bool)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, table) = text.split_once("### All metrics").unwrap();
    let table = table.split("\n## ").next().unwrap();
    let quoted = table.split('`').skip(1).step_by(2);
    let names = quoted.filter(|name| name.starts_with("banmesh_") || name.starts_with("process_"));
    names
        .map(|name| match name.split_once('{') {
            Some((name, _)) => (name.to_owned(), true),
            None => (name.to_owned(), false),
        })
        .collect()
}

/// The metrics that a node exports, by the names used in queries.
fn shown(node: &Node) -> BTreeSet<String> {
    let types = node.admin().metric_lines("# TYPE ").unwrap();
    let named = types.iter().map(|line| {
        let mut words = line.split(' ').skip(2);
        match (words.next().unwrap(), words.next().unwrap()) {
            (name, "counter") => format!("{name}_total"),
            (name, "info") => format!("{name}_info"),
            (name, _) => name.to_owned(),
        }
    });
    named.collect()
}

/// The text of all sources, to search for names.
fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else {
            text.push_str(&std::fs::read_to_string(path).unwrap_or_default());
        }
    }
}

#[test]
fn the_documentation_lists_exactly_the_metrics_of_a_node() {
    let Some(mesh) = Mesh::start_with(3, |_, config| {
        config
            .set("inputs.files", serde_json::json!([{"path": "/nowhere/*.log"}]))
            .set("ban.max_attempts", 2)
            .set("verdict.enabled", true)
            .set("haproxy.peers.listen", "127.0.0.1:0")
    }) else {
        return;
    };
    let [first, second, _] = &mesh.nodes[..] else { unreachable!() };
    first.fail_logins(address(1), 3);
    mesh.wait_for(address(1), true);
    second.fail_logins(address(2), 1);
    let acknowledged =
        |node: &Node| node.admin().metric("banmesh_cluster_spread_seconds_count").is_ok_and(|count| count > 0.0);
    wait::until("a ban was acknowledged by both peers", wait::SOON, || acknowledged(first));
    let count = first.admin().metric("banmesh_cluster_spread_seconds_count").unwrap();
    let sum = first.admin().metric("banmesh_cluster_spread_seconds_sum").unwrap();
    println!("mesh: {count} batches were on both peers after {:.4} s on average", sum / count);
    assert!(sum / count < Duration::from_secs(10).as_secs_f64(), "{sum} s for {count}");
    wait::until("lag and key are known", wait::SOON, || {
        let view = second.admin().get("/cluster").unwrap();
        let keys = &view["keys"];
        let author = view["members"].as_array().unwrap().iter().find(|member| member["id"] == "n1").unwrap().clone();
        author["lag_ms"].is_u64() && author["key"] == keys[0]
    });

    let shown: BTreeSet<String> = mesh.nodes.iter().flat_map(shown).collect();
    let documented = documented();
    let names: BTreeSet<String> = documented.iter().map(|(name, _)| name.clone()).collect();
    let missing: Vec<_> = shown.difference(&names).collect();
    assert!(missing.is_empty(), "add to \"All metrics\" in docs/operations.md: {missing:?}");
    let mut code = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../src"), &mut code);
    for (name, labelled) in documented {
        // A metric with labels is exported only after it has counted something. Its name must at least be registered.
        let registered = || {
            let name = name.trim_end_matches("_total");
            // Some parts register their metrics with a prefix.
            let prefixes = [
                "banmesh_spoa_",
                "banmesh_follower_",
                "banmesh_firewall_",
                "banmesh_crowdsec_",
                "banmesh_lists_",
                "banmesh_verdict_",
                "banmesh_peers_",
            ];
            let short = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
            let named = |name: &str| code.contains(&format!("\"{name}\""));
            named(name) || short.is_some_and(named)
        };
        let unused = ["banmesh_journal_reader", "banmesh_firewall_", "banmesh_crowdsec_", "banmesh_feed_"];
        let optional = labelled || unused.iter().any(|prefix| name.starts_with(prefix));
        assert!(shown.contains(&name) || (optional && registered()), "docs/operations.md names {name}: no node has it");
    }
}
