//! Sites, each a cluster of its own, that share their bans (docs/cluster.md, "Sites").

use std::net::{Ipv4Addr, SocketAddr};

use cluster_tests::mesh::{address, wait_until_equal};
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::ports::free_port;
use cluster_tests::wait;
use serde_json::Value;

/// The nodes of a site.
const NODES: usize = 3;

/// Where the nodes of a site listen.
type Places = [SocketAddr; NODES];

fn places() -> Places {
    std::array::from_fn(|_| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port()))
}

/// The configurations of a site, whose nodes name the other site.
fn site(name: &str, own: &Places, (other, others): (&str, &Places)) -> Vec<NodeConfig> {
    let sites: Vec<String> = others.iter().map(|address| format!("{other}@{address}")).collect();
    let node = |(number, place): (usize, &SocketAddr)| {
        let seeds: Vec<String> = own.iter().filter(|peer| *peer != place).map(ToString::to_string).collect();
        NodeConfig::new()
            .set("node.id", format!("{name}-{number}"))
            .set("ban.max_attempts", 3)
            .set("cluster.enabled", true)
            .set("cluster.name", name)
            .set("cluster.listen", place.to_string())
            .set("cluster.profile", "local")
            // A site is lost after one and a half times this.
            .set("cluster.repair_interval", "2s")
            .set("cluster.seeds", seeds)
            .set("cluster.sites", sites.clone())
    };
    own.iter().enumerate().map(node).collect()
}

fn start(site: Vec<NodeConfig>) -> Vec<Node> {
    site.into_iter().map(NodeConfig::start).collect()
}

/// What a node says about the only other site.
fn other_site(node: &Node) -> Value {
    node.admin().get("/cluster").unwrap()["sites"][0].clone()
}

#[test]
fn a_decision_of_any_node_holds_in_both_sites_also_after_a_bridge_has_died() {
    let (here, there) = (places(), places());
    let mut paris = start(site("paris", &here, ("rome", &there)));
    let rome = start(site("rome", &there, ("paris", &here)));
    wait::until("the first two nodes of each site are bridges", wait::SOON, || {
        [&paris, &rome].into_iter().flatten().enumerate().all(|(index, node)| {
            let site = other_site(node);
            site["bridge"] == (index % NODES < 2) && site["with"].is_null() == (index % NODES == 2)
        })
    });
    let hold = |nodes: &[Node], number: u32, banned: bool| {
        for node in nodes {
            node.wait_for(address(number), banned);
        }
    };
    // An operator's and a filter's decisions, of nodes that are no bridges.
    paris[2].admin().ban(address(1)).unwrap();
    rome[2].fail_logins(address(2), 3);
    for nodes in [&paris, &rome] {
        hold(nodes, 1, true);
        hold(nodes, 2, true);
    }
    rome[2].admin().unban(address(1)).unwrap();
    hold(&paris, 1, false);
    let allowed = paris[2].cli(&["allow", &address(2).to_string(), "--reason", "ours"]);
    assert!(allowed.contains(&address(2).to_string()), "{allowed}");
    hold(&rome, 2, false);
    let status = rome[0].cli(&["cluster", "status"]);
    assert!(status.contains("site paris: this node exchanges bans with paris-"), "{status}");
    assert!(rome[2].cli(&["cluster", "status"]).contains("site paris: other nodes of this site exchange bans with it"));

    paris[0].kill();
    drop(paris.remove(0));
    paris[1].admin().ban(address(3)).unwrap();
    rome[0].admin().ban(address(4)).unwrap();
    for nodes in [&paris, &rome] {
        hold(nodes, 3, true);
        hold(nodes, 4, true);
    }
    wait::until("the third node is a bridge now", wait::SOON, || other_site(&paris[1])["bridge"] == true);
    let all: Vec<&Node> = paris.iter().chain(&rome).collect();
    let (_, table) = wait_until_equal(&all, wait::SOON);
    assert_eq!(table.len(), 4);
}

#[test]
fn a_site_that_does_not_answer_is_shown_and_gets_everything_later() {
    let (here, there) = (places(), places());
    let paris = start(site("paris", &here, ("rome", &there)));
    let unreached = wait::until_some("the failure is shown", wait::SOON, || {
        let site = other_site(&paris[0]);
        (!site["message"].is_null()).then_some(site)
    });
    let message = unreached["message"].as_str().unwrap();
    for part in ["no node of the site rome exchanges bans", "refused", "cluster.sites", &there[0].to_string()] {
        assert!(message.contains(part), "{message}");
    }
    assert!(unreached["unreached_since"].is_string(), "{unreached}");
    let status = paris[0].cli(&["cluster", "status"]);
    assert!(status.contains(message), "{status}");
    wait::until("it is a problem, which the log and the metric show", wait::SOON, || {
        let problem = paris[0].admin().metric("banmesh_problem{problem=\"site\"}").unwrap_or_default();
        problem > 0.0 && paris[0].log().contains("problem=\"site\"")
    });
    paris[2].admin().ban(address(1)).unwrap();
    // Another cluster listens there, and then the right one.
    let wrong = site("naples", &there, ("paris", &here)).remove(0).start();
    wait::until("the other name is shown", wait::SOON, || {
        other_site(&paris[0])["message"].as_str().is_some_and(|message| message.contains("cluster"))
    });
    drop(wrong);
    let rome = start(site("rome", &there, ("paris", &here)));
    for node in &rome {
        node.wait_for(address(1), true);
    }
    wait::until("nothing is wrong any more", wait::SOON, || {
        let site = other_site(&paris[0]);
        site["message"].is_null() && site["with"].is_string()
    });
    wait::until("the log says that the problem is over", wait::SOON, || {
        paris[0].log().lines().rev().any(|line| line.contains("the problem is over") && line.contains("site"))
    });
}

#[test]
fn a_site_may_have_one_node() {
    let places = [free_port(), free_port()].map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    let node = |name: &str, own: SocketAddr, other: String| {
        let config = NodeConfig::new()
            .set("node.id", format!("{name}-0"))
            .set("cluster.enabled", true)
            .set("cluster.name", name)
            .set("cluster.listen", own.to_string())
            .set("cluster.join_timeout", "1s")
            .set("cluster.sites", vec![other]);
        config.start()
    };
    let paris = node("paris", places[0], format!("rome@{}", places[1]));
    let rome = node("rome", places[1], format!("paris@{}", places[0]));
    paris.admin().ban(address(1)).unwrap();
    rome.wait_for(address(1), true);
    rome.admin().unban(address(1)).unwrap();
    paris.wait_for(address(1), false);
    assert!(!paris.log().contains("there are no seeds"), "{}", paris.log());
}
