//! Lists of bans, as appliances fetch them; and what publishing bans costs.

use std::process::Command;
use std::time::Instant;

use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::ports::free_port;
use cluster_tests::wait;
use serde_json::{Value, json};

const KEY: &str = "bm_lnmXbvjKxJmVh1Zq3bGg5pQe2tWyRfUo";

struct Served {
    node: Node,
    port: u16,
}

/// An answer that curl received.
struct Answer {
    status: String,
    head: String,
    body: String,
}

impl Served {
    fn start(section: &str, config: NodeConfig) -> Self {
        let port = free_port();
        let config = config
            .set(&format!("{section}.enabled"), true)
            .set(&format!("{section}.port"), port)
            .set(&format!("{section}.keys"), json!({ "edge": { "key": KEY } }));
        Self { node: config.start(), port }
    }

    fn curl(&self, path: &str, arguments: &[&str]) -> Answer {
        let mut command = Command::new("curl");
        command.args(["-s", "-m", "120", "-D", "-", "-w", "\n%{http_code}"]).args(arguments);
        let output = command.arg(format!("http://127.0.0.1:{}{path}", self.port)).output().expect("run curl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (text, status) = text.rsplit_once('\n').unwrap_or_default();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
        Answer { status: status.to_owned(), head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    fn list(&self, name: &str) -> Answer {
        self.curl(&format!("/{name}"), &["-u", &format!("any:{KEY}")])
    }
}

fn ban(node: &Node, target: &str, duration: &str) {
    let terms = json!({ "target": target, "duration": duration, "reason": "test", "by": "test" });
    node.admin().request("POST", "/api/v1/bans", Some(&terms)).unwrap().json().unwrap();
}

#[test]
fn lists_have_the_bans_of_each_family() {
    let served = Served::start("lists", NodeConfig::new());
    assert_eq!(served.list("ipv4.txt").body, "# no bans\n", "an empty answer may count as a failed download");
    ban(&served.node, "45.0.0.1", "1h");
    ban(&served.node, "45.2.0.0/16", "2h");
    ban(&served.node, "2a01:db8:1:2::/64", "1h");
    let becomes = |name: &str, body: &str| {
        wait::until(&format!("{name} is {body:?}"), wait::SOON, || served.list(name).body == body);
    };
    becomes("all.txt", "45.0.0.1\n45.2.0.0/16\n2a01:db8:1:2::/64\n");
    becomes("ipv4.txt", "45.0.0.1\n45.2.0.0/16\n");
    becomes("ipv6.txt", "2a01:db8:1:2::/64\n");
    becomes("ipv4.txt?limit=1", "45.2.0.0/16\n");
    let script = served.list("mikrotik.rsc").body;
    assert!(script.starts_with("/ip firewall address-list remove [find list=banmesh]\n"), "{script}");
    assert!(
        script.contains("/ipv6 firewall address-list add list=banmesh address=2a01:db8:1:2::/64 timeout="),
        "{script}"
    );
    assert!(served.list("ipv4.txt").head.contains("content-type: text/plain"));
}

#[test]
fn an_unchanged_list_is_not_sent_again() {
    let served = Served::start("lists", NodeConfig::new());
    let tag = || {
        let head = served.list("ipv4.txt").head;
        head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap_or_default().trim().to_owned()
    };
    let empty = tag();
    ban(&served.node, "45.0.0.1", "1h");
    wait::until("the tag changes", wait::SOON, || tag() != empty);
    let tag = tag();
    let again = |path: &str| {
        let condition = format!("If-None-Match: {tag}");
        served.curl(path, &["-u", &format!("any:{KEY}"), "-H", &condition]).status
    };
    assert_eq!(again("/ipv4.txt"), "304");
    assert_eq!(again("/ipv6.txt"), "200");
    ban(&served.node, "45.0.0.2", "1h");
    wait::until("the list is sent", wait::SOON, || again("/ipv4.txt") == "200");
    // The order of bans does not matter, so other nodes send the same tag.
    let other = Served::start("lists", NodeConfig::new());
    ban(&other.node, "45.0.0.2", "2h");
    ban(&other.node, "45.0.0.1", "3h");
    wait::until("another node has the same tag", wait::SOON, || {
        other
            .list("ipv4.txt")
            .head
            .lines()
            .any(|line| served.list("ipv4.txt").head.lines().any(|own| own == line && own.starts_with("etag")))
    });
}

#[test]
fn lists_need_a_key_in_the_login_or_the_path() {
    let served = Served::start("lists", NodeConfig::new());
    let status = |path: &str, arguments: &[&str]| served.curl(path, arguments).status;
    assert_eq!(status("/ipv4.txt", &[]), "401");
    assert_eq!(status("/ipv4.txt", &["-u", "any:wrong-wrong-wrong-wrong-wrong"]), "401");
    assert_eq!(status("/wrong-wrong-wrong-wrong-wrong/ipv4.txt", &[]), "401");
    assert_eq!(status("/ipv4.txt", &["-u", &format!("any:{KEY}")]), "200");
    assert_eq!(status("/ipv4.txt", &["-H", &format!("Authorization: Bearer {KEY}")]), "200");
    assert_eq!(status(&format!("/{KEY}/ipv4.txt"), &[]), "200");
    assert_eq!(status(&format!("/{KEY}/other.txt"), &[]), "404");
    assert!(!served.node.log().contains(KEY));
}

#[test]
fn nothing_is_served_before_the_bans_are_complete() {
    // Its peer does not exist, so it waits for it.
    let config = NodeConfig::cluster(2).swap_remove(0).set("cluster.join_timeout", "60s");
    let lists = Served::start("lists", config);
    assert_eq!(lists.list("ipv4.txt").status, "503", "an empty list would end all bans");
    assert_eq!(lists.curl("/health", &[]).status, "503");
    let config = NodeConfig::cluster(2).swap_remove(0).set("cluster.join_timeout", "60s");
    let crowdsec = Served::start("crowdsec", config);
    let key = format!("X-Api-Key: {KEY}");
    assert_eq!(crowdsec.curl("/v1/decisions/stream?startup=true", &["-H", &key]).status, "503");
}

#[test]
fn a_silent_bouncer_is_a_problem() {
    let served = Served::start("crowdsec", NodeConfig::new().set("crowdsec.silent_after", "10s"));
    let key = format!("X-Api-Key: {KEY}");
    assert_eq!(served.curl("/v1/decisions/stream?startup=true", &["-H", &key]).status, "200");
    let status = || served.node.admin().get("/status").unwrap();
    wait::until("the bouncer is listed", wait::SOON, || {
        status()["places"].as_array().is_some_and(|places| places.iter().any(|place| place["state"] == "polling"))
    });
    wait::until("its silence is a problem", wait::SOON + wait::SOON, || {
        let problems = status()["problems"].to_string();
        problems.contains("bouncer edge") && problems.contains("it has not asked for")
    });
    assert_eq!(served.curl("/v1/decisions/stream", &["-H", &key]).status, "200");
    wait::until("the problem is over", wait::SOON, || status()["problems"] == json!([]));
}

#[test]
fn a_reload_changes_the_keys() {
    let served = Served::start("crowdsec", NodeConfig::new());
    let with = |key: &str| {
        let header = format!("X-Api-Key: {key}");
        served.curl("/v1/decisions?ip=45.0.0.1", &["-H", &header]).status
    };
    let next = "bm_0nmXbvjKxJmVh1Zq3bGg5pQe2tWyRfUo";
    assert_eq!((with(KEY), with(next)), ("200".to_owned(), "403".to_owned()));
    let text = std::fs::read_to_string(served.node.config_file()).unwrap();
    std::fs::write(served.node.config_file(), text.replace(KEY, next)).unwrap();
    served.node.cli(&["reload"]);
    assert_eq!((with(KEY), with(next)), ("403".to_owned(), "200".to_owned()));
}

/// Prints the figures for docs/enforcement.md. `BANMESH_FETCHED_BANS` sets the number of bans.
#[test]
fn the_cost_of_publishing_bans() {
    let count: u32 = std::env::var("BANMESH_FETCHED_BANS").ok().and_then(|text| text.parse().ok()).unwrap_or(2000);
    let served = Served::start("crowdsec", NodeConfig::new());
    let key = format!("X-Api-Key: {KEY}");
    let memory = || {
        let pid = served.node.admin().get("/status").unwrap()["pid"].as_u64().unwrap();
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let processor = || {
        let pid = served.node.admin().get("/status").unwrap()["pid"].as_u64().unwrap();
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()
    };
    let stream = |startup: bool| {
        let path = format!("/v1/decisions/stream?startup={startup}");
        let (begun, spent) = (Instant::now(), processor());
        let answer = served.curl(&path, &["-H", &key]);
        let decisions: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        let new = decisions["new"].as_array().map_or(0, Vec::len);
        (new, answer.body.len(), begun.elapsed(), (processor() - spent) * 10.0)
    };
    stream(true);
    let before = memory();
    let addresses = (0..count).map(|number| std::net::Ipv4Addr::from(0x2d00_0000 + number * 3 + 1).into());
    served.node.admin().ban_many(addresses).unwrap();
    let wanted = usize::try_from(count).unwrap();
    wait::until("all are published", wait::SOON * 6, || {
        served
            .node
            .admin()
            .metric("banmesh_follower_entries{place=\"published bans\"}")
            .is_ok_and(|held| held >= f64::from(count))
    });
    let (new, bytes, took, cpu) = stream(true);
    assert_eq!(new, wanted);
    eprintln!(
        "everything: {new} bans, {bytes} bytes, {took:?}, {cpu} ms of processor time; memory {} KiB more",
        memory() - before
    );
    // A change is in the next answer.
    let begun = Instant::now();
    ban(&served.node, "45.250.0.1", "1h");
    let mut asked = 0;
    wait::until("the ban is in the stream", wait::SOON, || {
        asked += 1;
        served.curl("/v1/decisions?ip=45.250.0.1", &["-H", &key]).body != "null"
    });
    eprintln!("a ban is in the answers after {:?}, the request included ({asked} asked)", begun.elapsed());
}
