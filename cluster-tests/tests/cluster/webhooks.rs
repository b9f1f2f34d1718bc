//! Webhooks of real nodes: the node that made a ban sends it, and the others report a lost node.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use cluster_tests::mesh::{Mesh, address};
use cluster_tests::node::Node;
use serde_json::{Value, json};

/// The port of the webhook server on each node's host.
const PORT: u16 = 9099;

/// The notices that the webhook server of `node` receives.
fn notices(node: &Node) -> mpsc::Receiver<Value> {
    let listener = node.on_its_host(|| TcpListener::bind(("127.0.0.1", PORT)).expect("listen for notices"));
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accept");
            let mut request = Vec::new();
            let mut part = [0; 4096];
            let body = loop {
                let read = stream.read(&mut part).expect("read a request");
                request.extend_from_slice(&part[..read]);
                let text = String::from_utf8_lossy(&request);
                let complete = text.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok());
                if let Some(body) = complete {
                    let body: Value = body;
                    break body;
                }
                assert!(read > 0, "a request that ends early: {text}");
            };
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").expect("answer");
            for notice in body["notices"].as_array().expect("notices") {
                if sender.send(notice.clone()).is_err() {
                    return;
                }
            }
        }
    });
    receiver
}

/// Waits for a notice with these values, and returns those before it.
fn wait_for(notices: &mpsc::Receiver<Value>, wanted: &Value) -> Vec<Value> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut before = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let notice = notices.recv_timeout(left).unwrap_or_else(|_| panic!("no notice like {wanted}: {before:#?}"));
        if wanted.as_object().unwrap().iter().all(|(key, value)| &notice[key] == value) {
            return before;
        }
        before.push(notice);
    }
}

#[test]
fn the_deciding_node_sends_bans_and_the_others_report_a_lost_node() {
    let hook = json!([{ "url": format!("http://127.0.0.1:{PORT}/"), "collect": "0s", "retries": 20 }]);
    let change = |_, config: cluster_tests::node::NodeConfig| config.set("notifications.webhooks", hook.clone());
    let Some(mut mesh) = Mesh::start_with(3, change) else { return };
    let (first, second) = (notices(&mesh.nodes[0]), notices(&mesh.nodes[1]));
    wait_for(&first, &json!({ "event": "cluster", "member": "n3", "presence": "joined" }));

    let (one, two) = (address(1), address(2));
    mesh.nodes[0].cli(&["ban", "--force", &one.to_string(), "--for", "1h", "--reason", "by n1"]);
    mesh.nodes[1].wait_for(one, true);
    mesh.nodes[1].cli(&["ban", "--force", &two.to_string(), "--for", "1h", "--reason", "by n2"]);
    mesh.nodes[0].wait_for(two, true);
    wait_for(&first, &json!({ "event": "ban", "target": one.to_string(), "reason": "by n1" }));
    let before = wait_for(&second, &json!({ "event": "ban", "target": two.to_string(), "reason": "by n2" }));
    assert!(before.iter().all(|notice| notice["event"] != "ban"), "a node reports the ban of another: {before:#?}");

    mesh.nodes[2].kill();
    for notices in [&first, &second] {
        let before = wait_for(notices, &json!({ "event": "cluster", "member": "n3", "presence": "lost" }));
        assert!(before.iter().all(|notice| notice["event"] != "ban"), "a node reports the ban of another: {before:#?}");
    }
    mesh.nodes[2].restart();
    wait_for(&first, &json!({ "event": "cluster", "member": "n3", "presence": "joined" }));
    mesh.nodes[2].stop();
    wait_for(&first, &json!({ "event": "cluster", "member": "n3", "presence": "left" }));
}
