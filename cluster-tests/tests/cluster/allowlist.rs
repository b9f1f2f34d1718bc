//! An allowlist entry made on one node holds on every node, and every node explains it.

use std::net::IpAddr;
use std::time::Duration;

use cluster_tests::mesh::{Mesh, address};
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::wait;
use serde_json::{Value, json};

/// Within this all tables are equal after a cut heals.
const HEALED: Duration = Duration::from_secs(5);

/// A name that cannot be resolved is a problem after 30 s.
const REPORTED: Duration = Duration::from_secs(90);

fn why(node: &Node, address: IpAddr) -> Value {
    node.admin().get(&format!("/why/{address}")).unwrap()
}

fn allowed_by(node: &Node, address: IpAddr) -> Value {
    why(node, address)["allowlisted_by"].clone()
}

/// Waits until every node reports that `member` allowed `address`, or with null that no node did.
fn wait_until_allowed(mesh: &Mesh, address: IpAddr, member: &Value) {
    for node in &mesh.nodes {
        wait::until(&format!("{address} is allowed by {member}"), wait::SOON, || allowed_by(node, address) == *member);
    }
}

#[test]
fn an_allowlist_entry_holds_on_every_node_until_it_is_removed() {
    let Some(mut mesh) = Mesh::start_with(3, |_, config| config.set("ban.max_attempts", 5)) else { return };
    let (partner, neighbour, stranger) = (address(1), address(2), address(1 << 12));
    let (exception, listed) = (address(3), address(3).to_string());
    mesh.nodes[1].ban_by_log(partner);
    mesh.nodes[0].cli(&["ban", "--force", &listed, "--permanent"]);
    mesh.wait_for(partner, true);
    mesh.wait_for(exception, true);

    // The ban by a filter ends on every node, and further failures do not count. A ban by an operator is an exception.
    let said = mesh.nodes[0].cli(&["allow", "11.128.0.0/20", "--for", "1h", "--reason", "a partner"]);
    let still = format!("still banned by an operator: {listed}\n");
    assert_eq!(said, format!("allowed 11.128.0.0/20 for 1h\n{still}"));
    wait_until_allowed(&mesh, partner, &json!("11.128.0.0/20"));
    mesh.wait_for(partner, false);
    mesh.wait_for(exception, true);
    for node in &mesh.nodes {
        node.fail_logins(neighbour, 20);
        node.fail_logins(stranger, 2);
    }
    mesh.wait_for(stranger, true);
    for node in &mesh.nodes {
        let seen =
            || node.admin().metric("banmesh_verdicts_total{verdict=\"allowed\"}").is_ok_and(|count| count >= 20.0);
        wait::until("the allowed failures were seen", wait::SOON, seen);
        assert!(!node.is_banned(neighbour).unwrap());
        let list = node.cli(&["allowlist"]);
        assert!(list.contains("11.128.0.0/20") && list.contains("a partner") && list.contains("n1"), "{list}");
    }

    // A node that received the entry has it in its journal.
    mesh.nodes[2].kill();
    mesh.nodes[2].restart();
    assert_eq!(allowed_by(&mesh.nodes[2], neighbour), "11.128.0.0/20");
    assert!(!mesh.nodes[2].is_banned(partner).unwrap());
    mesh.wait_until_joined();

    // A node that has not received the entry bans. The entry wins when the nodes are connected again.
    let alone = address(1 << 13);
    mesh.partition(&[&[0, 1], &[2]]);
    mesh.wait_until_these_are_joined(&[0, 1]);
    mesh.nodes[0].cli(&["allow", &alone.to_string()]);
    std::thread::sleep(Duration::from_millis(3));
    mesh.nodes[2].fail_logins(alone, 6);
    mesh.nodes[2].wait_for(alone, true);
    mesh.heal();
    mesh.wait_until_joined();
    mesh.wait_for(alone, false);
    wait_until_allowed(&mesh, alone, &json!(alone));
    mesh.wait_until_equal(HEALED);

    // The entry is removed on a node that did not make it.
    mesh.nodes[1].cli(&["disallow", &alone.to_string()]);
    mesh.nodes[2].cli(&["allow", "--remove", "11.128.0.0/20"]);
    wait_until_allowed(&mesh, alone, &Value::Null);
    wait_until_allowed(&mesh, neighbour, &Value::Null);
    mesh.wait_until_equal(HEALED);
    mesh.nodes[0].fail_logins(neighbour, 6);
    mesh.wait_for(neighbour, true);
}

#[test]
fn every_node_explains_a_ban_with_cluster_attempts_and_its_own_lines() {
    let Some(mesh) = Mesh::start_with(3, |_, config| config.set("ban.max_attempts", 6)) else { return };
    let [first, second, third] = &mesh.nodes[..] else { unreachable!() };
    let source = address(1);
    first.fail_logins(source, 2);
    second.fail_logins(source, 1);
    let counted = |node: &Node| why(node, source)["attempts"][0]["attempts"] == 3;
    for node in &mesh.nodes {
        wait::until("the attempts of all are counted", wait::SOON, || counted(node));
    }
    let answer = why(first, source);
    let attempts = &answer["attempts"][0];
    assert_eq!((&attempts["own"], &attempts["of"], &attempts["policy"]), (&json!(2), &json!(6), &json!("general")));
    assert_eq!(attempts["others"], json!([{"node": "n2", "attempts": 1}]));
    let lines = answer["history"]["offences"].as_array().unwrap();
    assert_eq!((lines.len(), &lines[0]["outcome"], &lines[0]["filter"]), (2, &json!("counted"), &json!("dovecot")));
    assert!(lines[0]["line"].as_str().unwrap().contains(&source.to_string()), "{answer}");
    assert_eq!(why(third, source)["history"]["offences"], json!([]), "lines stay where they came in");

    third.fail_logins(source, 4);
    mesh.wait_for(source, true);
    mesh.wait_until_equal(HEALED);
    wait::until("the members agree", wait::SOON, || {
        let answer = why(first, source);
        let members = answer["members"].as_array().unwrap().clone();
        members.len() == 2 && members.iter().all(|member| member["alive"] == true && member["agrees"] == true)
    });
    let answer = first.admin().get(&format!("/bans/{source}")).unwrap();
    assert_eq!((&answer["state"], &answer["history"]["node"]), (&json!("active"), &json!("n1")));
    let decisions = answer["history"]["decisions"].as_array().unwrap();
    assert!(decisions.iter().any(|decision| decision["by"] == "dovecot" && decision["state"] == "active"), "{answer}");
    let elsewhere = answer["history"]["elsewhere"].as_array().unwrap();
    assert!(!elsewhere.is_empty() || answer["node"] == "n1", "{answer}");
    let printed = first.cli(&["why", &source.to_string()]);
    for part in ["is banned until", "OFFENCES RECORDED ON n1", "same table on n2, n3"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }

    // The offences, the decision by a filter, and the attempts that led to it.
    let filters = third.admin().get("/filters").unwrap();
    let dovecot = filters["filters"].as_array().unwrap().iter().find(|filter| filter["name"] == "dovecot").unwrap();
    assert_eq!((&dovecot["lines"], &dovecot["offences"], &dovecot["mode"]), (&json!(4), &json!(4), &json!("normal")));
    assert!(dovecot["rules"].as_u64().unwrap() > 3 && dovecot["bans"].as_u64().unwrap() <= 1, "{dovecot}");

    // A purge on one node unbans on every node.
    assert_eq!(second.cli(&["purge", "--filter", "dovecot", "--yes"]), "unbanned 1 of 1\n");
    mesh.wait_for(source, false);
}

#[test]
fn control_characters_in_log_lines_are_escaped() {
    let node = cluster_tests::node::NodeConfig::new().start();
    let source: IpAddr = [192, 0, 2, 7].into();
    let line = format!(
        "<22>Oct 11 22:14:15 mail dovecot: imap-login: Aborted login (auth failed, 1 attempts in 2 secs): \
         user=<\x1b[2J\u{202e}evil\x07>, method=PLAIN, rip={source}, lip=192.0.2.1, TLS"
    );
    cluster_tests::syslog::send_udp(node.syslog(), [line.as_str()]);
    wait::until("it was seen", wait::SOON, || {
        !why(&node, source)["history"]["offences"].as_array().unwrap().is_empty()
    });
    let answer = why(&node, source);
    let shown = answer["history"]["offences"][0]["line"].as_str().unwrap();
    assert!(shown.contains("user=<\\x1b[2J\\u{202e}evil\\x07>"), "{shown}");
    let printed = node.cli(&["why", &source.to_string()]);
    assert!(printed.contains("\\x1b[2J") && !printed.contains(['\x1b', '\x07', '\u{202e}']), "{printed}");
}

#[test]
fn the_configured_allowlist_has_names_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("partners");
    std::fs::write(&file, "\u{feff}203.0.113.1 ; a partner\n# another\n").unwrap();
    let node = NodeConfig::new()
        .set("allowlist_files", json!([file.to_string_lossy()]))
        .set("allowlist", json!(["192.0.2.255/32", "localhost", "no-such-name.invalid"]))
        .start();
    let partner = |last: u8| IpAddr::from([203, 0, 113, last]);
    let lists = |text: &str| node.cli(&["allowlist"]).contains(text);
    wait::until("localhost is resolved", wait::SOON, || lists("127.0.0.1") || lists("::1"));
    node.fail_logins(partner(1), 6);
    node.ban_by_log(partner(2));
    assert!(!node.is_banned(partner(1)).unwrap());
    // A mistake changes nothing.
    std::fs::write(&file, "203.0.113.3\nbogus\n").unwrap();
    node.signal(nix::sys::signal::Signal::SIGHUP);
    wait::until("the reload fails", wait::SOON, || node.log().contains("partners:2: "));
    assert!(lists("203.0.113.1") && !lists("203.0.113.3"));
    std::fs::write(&file, "203.0.113.3\n").unwrap();
    node.signal(nix::sys::signal::Signal::SIGHUP);
    wait::until("the file is read again", wait::SOON, || lists("203.0.113.3") && !lists("203.0.113.1"));
    node.ban_by_log(partner(1));
    wait::until("the status names the name that cannot be resolved", REPORTED, || {
        node.cli(&["status"]).contains("no-such-name.invalid")
    });
}
