use std::path::Path;
use std::time::Duration;

use super::mmdb::{Value, file};
use super::*;
use banmesh_core::attempts::Recognised;

fn country(code: &'static str) -> Value {
    Value::Map(vec![("country", Value::Map(vec![("iso_code", Value::Text(code))]))])
}

fn network(number: u32, name: &'static str) -> Value {
    Value::Map(vec![
        ("autonomous_system_number", Value::Number(number)),
        ("autonomous_system_organization", Value::Text(name)),
    ])
}

fn at(geo: &Geo, address: &str) -> String {
    geo.origin(address.parse().unwrap()).to_string()
}

/// Replaces a file as a downloader should.
fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    std::fs::write(&new, bytes).unwrap();
    std::fs::rename(new, path).unwrap();
}

#[test]
fn countries_and_networks_are_found_in_the_words_of_every_publisher() {
    let folder = tempfile::tempdir().unwrap();
    let (countries, networks) = (folder.path().join("c.mmdb"), folder.path().join("n.mmdb"));
    let short = Value::Map(vec![("country_code", Value::Text("fr"))]);
    let flat = Value::Map(vec![("country", Value::Text("US"))]);
    let bytes = file(&[("198.51.100.0/24", country("DE")), ("203.0.113.0/25", short), ("2001:db8::/32", flat)], 7);
    std::fs::write(&countries, bytes).unwrap();
    let written = Value::Map(vec![("asn", Value::Text("AS64497")), ("name", Value::Text("Two\u{202e}"))]);
    std::fs::write(&networks, file(&[("198.51.100.0/25", network(64_496, "One")), ("203.0.113.0/24", written)], 7))
        .unwrap();
    let geo = Geo::new(Some(countries), Some(networks), Vec::new()).unwrap();
    assert_eq!(at(&geo, "198.51.100.1"), "");
    assert_eq!(geo.look(), ["geo.country", "geo.network"]);
    assert_eq!(geo.problem(), None);
    for (address, origin) in [
        ("198.51.100.1", "DE, AS64496, One"),
        ("198.51.100.200", "DE"),
        ("203.0.113.7", "FR, AS64497, Two\\u{202e}"),
        ("203.0.113.200", "AS64497, Two\\u{202e}"),
        ("2001:db8::1", "US"),
        ("192.0.2.1", ""),
    ] {
        assert_eq!(at(&geo, address), origin, "{address}");
    }
    assert_eq!(geo.look(), [""; 0]);
}

#[test]
fn a_file_that_changes_is_read_again_unless_it_is_damaged_or_older() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.mmdb");
    let made = |code, epoch| file(&[("198.51.100.0/24", country(code))], epoch);
    let geo = Geo::new(Some(path.clone()), None, Vec::new()).unwrap();
    geo.look();
    assert!(geo.problem().unwrap().contains("cannot be read"));
    let kept = |bytes: &[u8], part: &str| {
        replace(&path, bytes);
        geo.look();
        let problem = geo.problem().unwrap();
        assert!(problem.contains(part) && problem.contains("the old file stays in use"), "{problem}");
        assert_eq!(at(&geo, "198.51.100.1"), "DE");
    };
    replace(&path, &made("DE", 7));
    assert_eq!(geo.look(), ["geo.country"]);
    kept(&made("FR", 6), "is older");
    kept(b"<html>", "is not a file in MaxMind's format");
    let whole = made("FR", 8);
    kept(&whole[..whole.len() / 2], "is not a file in MaxMind's format");
    kept(b"", "is not a file in MaxMind's format");
    replace(&path, &whole);
    assert_eq!(geo.look(), ["geo.country"]);
    assert_eq!((at(&geo, "198.51.100.1"), geo.problem()), ("FR".to_owned(), None));
    std::fs::remove_file(&path).unwrap();
    geo.look();
    assert!(geo.problem().is_some() && at(&geo, "198.51.100.1") == "FR");
}

#[test]
fn rules_change_the_weight_and_the_first_ban_of_a_country_or_a_network() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("n.mmdb");
    let both = Value::Map(vec![("country_code", Value::Text("XX")), ("asn", Value::Number(64_496))]);
    std::fs::write(&path, file(&[("198.51.100.0/25", both), ("198.51.100.128/25", country("YY"))], 7)).unwrap();
    let rule = |countries: &[&str], networks: &[u32], weight, ban_time| GeoRule {
        countries: countries.iter().map(ToString::to_string).collect(),
        networks: networks.to_vec(),
        weight,
        ban_time,
    };
    let rules = vec![rule(&[], &[64_496], 3, 4.0), rule(&["XX", "YY"], &[], 2, 1e6)];
    let geo = Geo::new(Some(path), None, rules).unwrap();
    geo.look();
    let weight = |address: &str| geo.weight(address.parse().unwrap());
    assert_eq!((weight("198.51.100.1"), weight("198.51.100.200"), weight("192.0.2.1")), (3, 2, 1));
    let policy = Arc::new(BanPolicy {
        max_attempts: 5,
        time_window: Duration::from_secs(600),
        initial_ban_time: Duration::from_secs(300),
        max_ban_time: Duration::from_secs(86_400),
        escalation_factor: 2.0,
        max_memory_ttl: Duration::from_secs(3 * 86_400),
    });
    let first = |address: &str| {
        let by = Recognised { filter: "sshd".into(), rule: "r".into() };
        let order = BanOrder { target: address.parse().unwrap(), by, attempts: 5, policy: Arc::clone(&policy) };
        geo.adjusted(order).policy.initial_ban_time.as_secs()
    };
    assert_eq!((first("198.51.100.1"), first("198.51.100.200"), first("192.0.2.1")), (1200, 86_400, 300));
}
