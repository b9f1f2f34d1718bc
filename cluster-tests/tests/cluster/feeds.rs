//! Feeds, countries and networks on real nodes: what they do to answers and to counts, and who is spared.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::{syslog, wait};
use serde_json::{Value, json};

#[path = "../../../src/decisions/geo/mmdb.rs"]
mod mmdb;

const fn source(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(11, 7, 0, last))
}

/// One address per octet.
const BANNED: IpAddr = source(1);
const HEAVY: IpAddr = source(2);
const OBSERVED: IpAddr = source(3);
const ALLOWED: IpAddr = source(4);
const AT_HOME: IpAddr = source(5);
const ABROAD: IpAddr = IpAddr::V4(Ipv4Addr::new(12, 0, 0, 1));

fn feed(folder: &Path, name: &str, effect: &str, members: &[IpAddr]) -> Value {
    let path = folder.join(name);
    let list: String = members.iter().map(|member| format!("{member}\n")).collect();
    std::fs::write(&path, list).unwrap();
    json!({ "name": name, "file": path, "effect": effect, "weight": 4, "credit": "the test" })
}

fn start(folder: &Path) -> Node {
    let country = mmdb::Value::Map(vec![("country_code", mmdb::Value::Text("XX"))]);
    let network = mmdb::Value::Map(vec![
        ("autonomous_system_number", mmdb::Value::Number(64_496)),
        ("autonomous_system_organization", mmdb::Value::Text("Example")),
    ]);
    std::fs::write(folder.join("c.mmdb"), mmdb::file(&[("12.0.0.0/24", country)], 7)).unwrap();
    std::fs::write(folder.join("n.mmdb"), mmdb::file(&[("12.0.0.0/16", network)], 7)).unwrap();
    let feeds = vec![
        feed(folder, "bans", "ban", &[BANNED, ALLOWED, AT_HOME]),
        feed(folder, "heavy", "weight", &[HEAVY]),
        feed(folder, "watched", "observe", &[OBSERVED]),
    ];
    let config = NodeConfig::new()
        .set("ban.max_attempts", 5)
        .set("allowlist", vec![ALLOWED.to_string()])
        .set("feeds", feeds)
        // A place that follows the ban table.
        .set("lists.enabled", true)
        .set("lists.port", cluster_tests::ports::free_port())
        .set("lists.keys", json!({ "edge": { "key": "bm_lnmXbvjKxJmVh1Zq3bGg5pQe2tWyRfUo" } }))
        .set("geo.country", folder.join("c.mmdb").to_str().unwrap())
        .set("geo.network", folder.join("n.mmdb").to_str().unwrap())
        .set("geo.rules", vec![json!({ "countries": ["XX"], "weight": 5, "ban_time": 3 })]);
    config.start()
}

fn why(node: &Node, address: IpAddr) -> Value {
    node.admin().get(&format!("/why/{address}")).unwrap()
}

fn attempts(node: &Node, address: IpAddr) -> u64 {
    why(node, address)["attempts"][0]["attempts"].as_u64().unwrap_or(0)
}

#[test]
fn feeds_and_countries_change_answers_and_counts_and_spare_those_who_log_in() {
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path());
    node.wait_for(BANNED, true);
    for not in [HEAVY, OBSERVED, ALLOWED, ABROAD] {
        assert!(!node.is_banned(not).unwrap(), "{not}");
    }
    let shown = node.cli(&["why", &BANNED.to_string()]);
    for part in ["is banned until", "by feed bans", "in feed:bans", "list confirmed", "[the test]"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!why(&node, ALLOWED)["banned"].as_bool().unwrap());

    // A first failure counts four, and each further one counts one.
    node.fail_logins(HEAVY, 1);
    wait::until("it is counted", wait::SOON, || attempts(&node, HEAVY) == 4);
    node.fail_logins(HEAVY, 1);
    node.wait_for(HEAVY, true);
    node.fail_logins(OBSERVED, 2);
    wait::until("both are counted", wait::SOON, || attempts(&node, OBSERVED) == 2);

    // Everybody is banned by a feed until he logs in.
    assert!(node.is_banned(AT_HOME).unwrap());
    let login = format!(
        "<22>Nov 22 20:11:55 mail dovecot: imap-login: Login: user=<ann>, method=PLAIN, rip={AT_HOME}, lip=192.0.2.9, mpid=7, TLS, \
         session=<a>"
    );
    syslog::send_udp(node.syslog(), [login.as_str()]);
    node.wait_for(AT_HOME, false);
    let shown = node.cli(&["why", &AT_HOME.to_string()]);
    assert!(shown.contains("has no effect, because it logged in recently"), "{shown}");

    // Each failure from the country counts five, and the ban is three times as long.
    node.fail_logins(ABROAD, 1);
    node.wait_for(ABROAD, true);
    let entry = node.admin().get(&format!("/bans/{ABROAD}")).unwrap();
    assert_eq!(
        (&entry["country"], &entry["asn"], &entry["as_name"]),
        (&json!("XX"), &json!(64_496), &json!("Example"))
    );
    let left = entry["remaining_seconds"].as_u64().unwrap();
    assert!((850..=900).contains(&left), "{left}");
    assert!(node.cli(&["list"]).contains("XX, AS64496, Example"));
    assert!(node.cli(&["why", &ABROAD.to_string()]).contains("located in XX, AS64496, Example"));

    let status = node.cli(&["feeds", "status"]);
    assert!(status.contains("weight 4") && status.contains("observe"), "{status}");
    assert!(status.contains("and not at published bans: lists are not in the ban table"), "{status}");
    let top = node.cli(&["top", "sources"]);
    let row = top.lines().find(|line| line.contains(&ABROAD.to_string())).unwrap_or_else(|| panic!("{top}"));
    assert!(row.contains("banned") && row.contains("XX, AS64496, Example"), "{row}");
    let watched = node.admin().metric("banmesh_feed_offences_total{feed=\"watched\",effect=\"observe\"}").unwrap();
    assert!((watched - 2.0).abs() < 0.1, "{watched}");

    // A file that becomes a web page is a problem with a fix, and changes nothing.
    std::fs::write(folder.path().join("bans"), "<html>\n").unwrap();
    assert!(node.cli(&["feeds", "update", "bans"]).contains("it is a web page"));
    wait::until("status shows it", wait::SOON, || node.cli(&["status"]).contains("problem: feed bans: "));
    assert!(node.is_banned(BANNED).unwrap());
}
