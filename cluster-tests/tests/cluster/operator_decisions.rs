//! Operators' decisions hold on every node, after restarts, and against concurrent bans by filters.

use std::net::IpAddr;
use std::process::{Command, Output};
use std::time::Duration;

use cluster_tests::mesh::{Mesh, address};
use cluster_tests::node::{Node, NodeConfig, binary};
use cluster_tests::wait;
use serde_json::{Value, json};

/// Within this all tables are equal after a node has joined.
const EQUAL: Duration = Duration::from_secs(20);

fn why(node: &Node, address: IpAddr) -> Value {
    node.admin().get(&format!("/why/{address}")).unwrap()
}

/// The entry of a node for exactly `target`; null if there is none.
fn entry(node: &Node, target: IpAddr) -> Value {
    node.admin().get(&format!("/bans/{target}")).unwrap_or_default()
}

/// Runs a command for `node`; it may fail.
fn run(node: &Node, arguments: &[&str]) -> Output {
    Command::new(binary()).arg("--config").arg(node.config_file()).args(arguments).output().unwrap()
}

/// The exit code, standard output and standard error.
fn outcome(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_ban_wins_over_an_allowlist_entry_that_was_removed_while_its_author_was_down() {
    let Some(mut mesh) = Mesh::start_with(2, |_, config| config.set("ban.max_attempts", 5)) else { return };
    let source = address(1);
    mesh.nodes[0].cli(&["allow", &source.to_string()]);
    wait::until("both allow it", wait::SOON, || {
        mesh.nodes.iter().all(|node| why(node, source)["allowlisted_by"] == json!(source))
    });
    mesh.nodes[0].stop();
    mesh.nodes[1].cli(&["disallow", &source.to_string()]);
    mesh.nodes[1].fail_logins(source, 5);
    mesh.nodes[1].wait_for(source, true);

    mesh.nodes[0].restart();
    mesh.wait_until_joined();
    mesh.wait_until_equal(EQUAL);
    mesh.wait_for(source, true);
    for node in &mesh.nodes {
        let found = why(node, source);
        assert_eq!((&found["banned"], &found["allowlisted_by"]), (&json!(true), &Value::Null), "{found}");
        assert_eq!((&found["entries"][0]["by"], &found["entries"][0]["node"]), (&json!("dovecot"), &json!("n2")));
        assert!(!node.cli(&["allowlist"]).contains(&source.to_string()));
    }
}

#[test]
fn a_permanent_ban_wins_over_a_concurrent_ban_by_a_filter() {
    let short = |_, config: NodeConfig| config.set("ban.max_attempts", 5).set("ban.initial_ban_time", "5s");
    let Some(mut mesh) = Mesh::start_with(2, short) else { return };
    let source = address(1);
    mesh.nodes[1].stop();
    mesh.nodes[0].cli(&["ban", "--force", &source.to_string(), "--permanent", "--reason", "mine", "--by", "ann"]);
    mesh.nodes[0].stop();
    mesh.nodes[1].restart();
    assert_eq!(entry(&mesh.nodes[1], source), Value::Null);
    mesh.nodes[1].fail_logins(source, 5);
    mesh.nodes[1].wait_for(source, true);
    assert_eq!(entry(&mesh.nodes[1], source)["by"], "dovecot");

    mesh.nodes[0].restart();
    mesh.wait_until_joined();
    mesh.wait_until_equal(EQUAL);
    let permanent = |node: &Node| {
        let entry = entry(node, source);
        let facts = ["state", "permanent", "by", "by_kind", "reason", "node"].map(|field| entry[field].clone());
        assert_eq!(json!(facts), json!(["active", true, "ann", "operator", "mine", "n1"]), "{entry}");
        entry
    };
    for node in &mesh.nodes {
        assert_eq!(permanent(node)["other"]["by"], "dovecot");
    }
    for node in &mesh.nodes {
        let ended = || permanent(node)["other"]["state"] == "expired";
        wait::until("the filter's ban has ended", wait::SOON, ended);
        assert!(node.is_banned(source).unwrap());
        let printed = node.cli(&["why", &source.to_string()]);
        assert!(
            printed.contains("is banned permanently") && printed.contains("also: a ban by filter dovecot"),
            "{printed}"
        );
    }
}

#[test]
fn an_exception_inside_an_allowed_network_is_banned_on_every_node() {
    let Some(mesh) = Mesh::start(2) else { return };
    let [first, second] = &mesh.nodes[..] else { unreachable!() };
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let (inside, spared, beside) = (address("198.19.7.1"), address("198.19.7.9"), address("198.19.8.1"));
    first.cli(&["allow", "198.19.0.0/16"]);
    wait::until("the other allows it", wait::SOON, || why(second, inside)["allowlisted_by"] == "198.19.0.0/16");
    let (code, _, error) = outcome(&run(second, &["ban", "198.19.7.0/24"]));
    assert!(code == 1 && error.contains("--force") && !error.contains('`'), "{error}");
    let said = second.cli(&["ban", "198.19.7.0/24", "--force", "--for", "1h"]);
    assert!(said.starts_with("banned 198.19.7.0/24 for "), "{said}");
    second.cli(&["ban", "198.19.8.1", "198.18.0.0/15", "--force", "--permanent"]);
    second.cli(&["allow", "198.19.8.1"]);
    mesh.wait_for(inside, true);
    mesh.wait_for(beside, false);
    for node in &mesh.nodes {
        wait::until("the exception is explained", wait::SOON, || {
            let found = why(node, inside);
            found["by_target"] == "198.19.7.0/24" && found["exception_from"] == "198.19.0.0/16"
        });
        assert!(why(node, inside)["until"] != "never", "the ban of 198.18.0.0/15 has no effect within 198.19.0.0/16");
        assert!(node.is_banned(address("198.18.0.1")).unwrap());
        let printed = node.cli(&["why", "198.19.7.1"]);
        assert!(printed.contains("as part of 198.19.7.0/24") && printed.contains("is an exception"), "{printed}");
    }
    // An exception to the exception, and its end.
    first.cli(&["allow", "198.19.7.9"]);
    mesh.wait_for(spared, false);
    mesh.wait_for(inside, true);
    first.cli(&["unban", "198.19.7.0/24"]);
    mesh.wait_for(inside, false);
    mesh.wait_until_equal(EQUAL);
}

#[test]
fn unban_inside_a_banned_network_suggests_the_commands_that_work() {
    let node = NodeConfig::new().start();
    let (source, neighbour): (IpAddr, IpAddr) =
        ("2001:db8:0:1::7".parse().unwrap(), "2001:db8:0:1::8".parse().unwrap());
    node.ban_by_log(source);
    let (code, out, error) = outcome(&run(&node, &["unban", "2001:db8:0:1::7"]));
    assert_eq!((code, out.as_str()), (1, ""), "{error}");
    assert!(error.contains("banned as part of 2001:db8:0:1::/64") && !error.contains("is not banned"), "{error}");
    let commands: Vec<Vec<&str>> = error
        .lines()
        .filter_map(|line| line.split_once("  banmesh "))
        .map(|(_, command)| command.split(' ').collect())
        .collect();
    assert_eq!(commands, [vec!["unban", "2001:db8:0:1::/64"], vec!["allow", "2001:db8:0:1::7"]], "{error}");
    // Run the suggested commands, the second one first.
    node.cli(&commands[1]);
    node.wait_for(source, false);
    assert!(node.is_banned(neighbour).unwrap());
    node.cli(&commands[0]);
    node.wait_for(neighbour, false);

    // A target that is not banned is an error, unless the command may be repeated.
    let (code, _, error) = outcome(&run(&node, &["unban", "2001:db8:0:1::8"]));
    assert!(code == 1 && error.contains("2001:db8:0:1::8 is not banned"), "{error}");
    let said: Value = serde_json::from_str(&node.cli(&["unban", "2001:db8:0:1::8", "--idempotent", "--json"])).unwrap();
    assert_eq!(said, json!({"changed": false, "target": "2001:db8:0:1::8"}));
    node.cli(&["ban", "192.0.2.1"]);
    let said: Value = serde_json::from_str(&node.cli(&["unban", "192.0.2.1", "--idempotent", "--json"])).unwrap();
    assert_eq!((&said["changed"], &said["state"]), (&json!(true), &json!("unbanned")));
    node.cli(&["ban", "192.0.2.1"]);
    let said = node.cli(&["unban", "192.0.2.1", "192.0.2.2", "192.0.2.3", "--idempotent"]);
    assert_eq!(said, "unbanned 1 of 3; 2 unchanged\n");
}

#[test]
fn a_shorter_ban_requires_replace_and_a_ban_without_effect_is_reported() {
    let node = NodeConfig::new().start();
    node.cli(&["ban", "192.0.2.7", "--permanent", "--reason", "mine", "--by", "ann"]);
    let (code, _, error) = outcome(&run(&node, &["ban", "192.0.2.7"]));
    let said = "192.0.2.7 is already banned, permanently (by operator ann: mine); use --replace to shorten it";
    assert_eq!((code, error), (1, format!("banmesh: {said}\n")));
    let (code, out, _) = outcome(&run(&node, &["ban", "192.0.2.7", "192.0.2.8", "--for", "1h"]));
    assert_eq!((code, out), (1, format!("{said}\nbanned 0 of 2\n")));
    assert!(!node.is_banned("192.0.2.8".parse().unwrap()).unwrap(), "all or none");
    assert_eq!(node.cli(&["ban", "192.0.2.7", "192.0.2.8", "--for", "1h", "--replace"]), "banned 2 of 2\n");
    let entry = node.admin().get("/bans/192.0.2.7").unwrap();
    assert_eq!((&entry["permanent"], &entry["bans"]), (&json!(false), &json!(1)), "{entry}");

    // A target in the configured allowlist of this node.
    let said = node.cli(&["ban", "192.0.2.255", "--force", "--for", "1h"]);
    assert!(said.contains("no effect here") && said.contains("configuration allows 192.0.2.255"), "{said}");
    assert!(!node.is_banned("192.0.2.255".parse().unwrap()).unwrap());
    let printed = node.cli(&["why", "192.0.2.255"]);
    assert!(printed.contains("192.0.2.255 is not banned"), "{printed}");
}
