//! The sizes in the chart, the units and the documentation fit each other.

use std::path::Path;

use banmesh::app::capacity::{DEFAULT_MAX_BANS, disk_for, max_bans, memory_for};

fn text(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Reads a size such as `512Mi` or `1G`; systemd's letters mean powers of 1024 too.
fn bytes(size: &str) -> u64 {
    let digits = size.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &size[digits.len()..] {
        "Mi" | "M" => 1 << 20,
        "Gi" | "G" => 1 << 30,
        other => panic!("{size}: unit {other:?}"),
    };
    digits.parse::<u64>().unwrap() * unit
}

#[test]
fn the_charts_memory_and_volume_hold_its_max_bans() {
    let values: serde_yaml::Value = serde_yaml::from_str(&text("helm/banmesh/values.yaml")).unwrap();
    let set = values["config"]["ban"]["max_bans"].as_u64().expect("the chart sets ban.max_bans");
    let set = usize::try_from(set).unwrap();
    let memory = bytes(values["resources"]["limits"]["memory"].as_str().unwrap());
    let volume = bytes(values["persistence"]["size"].as_str().unwrap());
    assert!(memory_for(set) <= memory, "{set} entries need {} bytes of memory", memory_for(set));
    assert!(disk_for(set) <= volume, "{set} entries need {} bytes of disk", disk_for(set));
    // The value that the node itself would derive is not far away.
    assert!(max_bans(None, Some(memory)) >= set);
}

#[test]
fn the_units_memory_holds_the_default_max_bans() {
    for unit in ["deploy/systemd/banmesh.service", "deploy/systemd/banmesh@.service"] {
        let unit_text = text(unit);
        let limit = unit_text.lines().find_map(|line| line.strip_prefix("MemoryMax=")).expect(unit);
        assert!(memory_for(DEFAULT_MAX_BANS) <= bytes(limit), "{unit}: {limit}");
        assert_eq!(max_bans(None, Some(bytes(limit))), DEFAULT_MAX_BANS, "{unit}");
    }
}

#[test]
fn the_documentation_names_the_disk_space_of_the_default_max_bans() {
    let gigabytes = format!("{:.1} GB", disk_for(DEFAULT_MAX_BANS) as f64 / 1e9);
    assert!(text("docs/storage.md").contains(&gigabytes), "{gigabytes}");
}
