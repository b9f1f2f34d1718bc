//! Decisions of operators: longer bans, bans of networks, exceptions, and what the API answers.

use crate::api::node::{Node, start};
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

async fn ban(node: &Node, terms: Value) -> (u16, Value) {
    let (status, answer) = node.post("/api/v1/bans", terms).await;
    (status.as_u16(), answer)
}

async fn unban(node: &Node, target: &str) -> (u16, Value) {
    let (status, answer) = node.request(Method::DELETE, &format!("/api/v1/bans/{target}?by=ann"), None).await;
    (status.as_u16(), answer)
}

async fn why(node: &Node, address: &str) -> Value {
    let (status, why) = node.get(&format!("/api/v1/why/{address}")).await;
    assert_eq!(status, StatusCode::OK, "{why}");
    why
}

#[tokio::test]
async fn a_ban_never_shortens_a_longer_one_silently() {
    let node = start(&[]).await;
    ban(&node, json!({"target": "192.0.2.7", "permanent": true, "reason": "mine", "by": "ann"})).await;
    let shorter = json!({"target": "192.0.2.7", "by": "bob"});
    let (status, error) = ban(&node, shorter.clone()).await;
    assert_eq!((status, &error["code"]), (409, &json!("banned_longer")));
    assert_eq!(error["error"], "192.0.2.7 is already banned, permanently (by operator ann: mine)");
    assert!(error["hint"].as_str().unwrap().contains("`replace`"), "{error}");
    let bulk = json!({"targets": ["192.0.2.7", "192.0.2.8"], "duration": "1h"});
    let (_, answer) = node.post("/api/v1/bans/bulk", bulk).await;
    assert_eq!((&answer["done"], &answer["refused"][0]["code"]), (&json!(1), &json!("banned_longer")), "{answer}");
    let legacy = json!({"ip_address": "192.0.2.7", "duration": "1h"});
    let (status, answer) = node.post("/api/ban", legacy).await;
    assert_eq!((status, &answer["success"]), (StatusCode::CONFLICT, &json!(false)), "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("already banned, permanently"), "{answer}");
    let (_, entry) = node.get("/api/v1/bans/192.0.2.7").await;
    assert_eq!((&entry["permanent"], &entry["reason"], &entry["by"]), (&json!(true), &json!("mine"), &json!("ann")));

    // A filter's ban that lasts longer is in the way as well; an extension is not.
    node.ban_by_filter("192.0.2.9").await;
    let (status, error) = ban(&node, json!({"target": "192.0.2.9", "duration": "1s"})).await;
    assert_eq!((status, &error["code"]), (409, &json!("banned_longer")));
    assert!(error["error"].as_str().unwrap().contains("(by sshd: failed-password)"), "{error}");
    let (status, entry) = ban(&node, json!({"target": "192.0.2.9", "duration": "30d"})).await;
    assert_eq!((status, &entry["bans"]), (201, &json!(1)), "{entry}");

    let (status, entry) =
        ban(&node, json!({"target": "192.0.2.7", "duration": "1h", "by": "bob", "replace": true})).await;
    assert_eq!((status, &entry["permanent"], &entry["by"]), (201, &json!(false), &json!("bob")));
    let legacy = json!({"ip_address": "192.0.2.7", "duration": "1m", "replace": true});
    let (status, answer) = node.post("/api/ban", legacy).await;
    assert_eq!((status, &answer["success"]), (StatusCode::OK, &json!(true)), "{answer}");
    let (_, entry) = node.get("/api/v1/bans/192.0.2.7").await;
    assert!(entry["remaining_seconds"].as_u64().unwrap() <= 60, "{entry}");
}

#[tokio::test]
async fn a_repeated_ban_does_not_escalate() {
    let node = start(&[]).await;
    for terms in [
        json!({"target": "192.0.2.1"}),
        json!({"target": "192.0.2.2", "duration": "1h", "reason": "scan"}),
        json!({"target": "192.0.2.3", "permanent": true}),
    ] {
        let first = ban(&node, terms.clone()).await;
        for _ in 0..3 {
            let (status, entry) = ban(&node, terms.clone()).await;
            assert_eq!((status, &entry["bans"]), (201, &json!(1)), "{entry}");
            for same in ["target", "state", "permanent", "by", "reason"] {
                assert_eq!(entry[same], first.1[same], "{same}");
            }
            assert!(entry["until"].as_str() >= first.1["until"].as_str(), "{entry}");
        }
        let (_, answer) = node
            .post("/api/v1/bans/bulk", json!({"targets": [terms["target"], terms["target"]], "permanent": true}))
            .await;
        assert_eq!(answer["done"], 2, "{answer}");
        let (_, entry) = node.get(&format!("/api/v1/bans/{}", terms["target"].as_str().unwrap())).await;
        assert_eq!(entry["bans"], 1, "{entry}");
    }
}

#[tokio::test]
async fn unbanning_an_address_reports_a_banned_network() {
    let node = start(&[]).await;
    node.ban_by_filter("2001:db8:0:1::/64").await;
    let (status, error) = unban(&node, "2001:db8:0:1::7").await;
    assert_eq!((status, &error["code"]), (404, &json!("banned_with_network")));
    assert_eq!(error["banned_by"], "2001:db8:0:1::/64");
    let said = error["error"].as_str().unwrap();
    assert!(said.starts_with("2001:db8:0:1::7 has no ban of its own") && said.contains("2001:db8:0:1::/64"), "{said}");
    let (_, answer) = node.post("/api/v1/bans/unban", json!({"targets": ["2001:db8:0:1::7", "192.0.2.1"]})).await;
    let refused = &answer["refused"];
    assert_eq!(
        (&refused[0]["banned_by"], &refused[0]["target"]),
        (&json!("2001:db8:0:1::/64"), &json!("2001:db8:0:1::7"))
    );
    assert_eq!((&refused[1]["code"], &refused[1]["banned_by"]), (&json!("not_banned"), &Value::Null));
    let (status, answer) = node.post("/api/unban", json!({"ip_address": "2001:db8:0:1::7"})).await;
    assert_eq!((status, &answer["banned_by"]), (StatusCode::NOT_FOUND, &json!("2001:db8:0:1::/64")), "{answer}");

    // Its own ban is ended, that of the network is not.
    ban(&node, json!({"target": "2001:db8:0:1::7", "permanent": true})).await;
    let (status, entry) = unban(&node, "2001:db8:0:1::7").await;
    assert_eq!((status, &entry["state"], &entry["banned_by"]), (200, &json!("unbanned"), &json!("2001:db8:0:1::/64")));
    ban(&node, json!({"target": "2001:db8:0:1::7", "permanent": true})).await;
    let (_, answer) = node.post("/api/unban", json!({"ip_address": "2001:db8:0:1::7"})).await;
    assert!(answer["message"].as_str().unwrap().contains("still banned as part of 2001:db8:0:1::/64"), "{answer}");

    // Both ways out that the error names.
    node.post("/api/v1/allowlist", json!({"target": "2001:db8:0:1::7"})).await;
    assert_eq!(why(&node, "2001:db8:0:1::7").await["banned"], false);
    assert_eq!(why(&node, "2001:db8:0:1::8").await["banned"], true);
    assert_eq!(unban(&node, "2001:db8:0:1::7").await.1["code"], "not_banned", "what is allowed is not banned");
    assert_eq!(unban(&node, "2001:db8:0:1::/64").await.0, 200);
    assert_eq!(why(&node, "2001:db8:0:1::8").await["banned"], false);
}

#[tokio::test]
async fn an_exception_inside_an_allowed_network_is_in_force_and_explained() {
    let node = start(&[]).await;
    node.post("/api/v1/allowlist", json!({"target": "198.19.0.0/16"})).await;
    let terms = json!({"target": "198.19.7.0/24", "duration": "1h", "by": "ann"});
    assert_eq!(ban(&node, terms.clone()).await.1["code"], "allowlisted");
    let (status, exception) = ban(&node, json!({"target": "198.19.7.0/24", "duration": "1h", "force": true})).await;
    assert_eq!((status, &exception["exempt_by"]), (201, &Value::Null));
    let found = why(&node, "198.19.7.1").await;
    assert_eq!((&found["banned"], &found["by_target"]), (&json!(true), &json!("198.19.7.0/24")));
    assert_eq!((&found["exception_from"], &found["allowlisted_by"]), (&json!("198.19.0.0/16"), &Value::Null));
    assert_eq!(found["until"], exception["until"]);
    let found = why(&node, "198.19.8.1").await;
    assert_eq!((&found["banned"], &found["allowlisted_by"]), (&json!(false), &json!("198.19.0.0/16")));
    assert_eq!(found["exception_from"], Value::Null);

    // A longer ban around it does not lengthen the exception: after it the exemption holds again.
    let (status, _) = ban(&node, json!({"target": "198.0.0.0/8", "permanent": true, "force": true})).await;
    assert_eq!(status, 201);
    let found = why(&node, "198.19.7.1").await;
    assert_eq!((&found["until"], &found["by_target"]), (&exception["until"], &json!("198.19.7.0/24")));
    assert_eq!(why(&node, "198.20.0.1").await["until"], "never");

    // Who allows the network around it again is told of the exception.
    let (_, allowed) = node.post("/api/v1/allowlist", json!({"target": "198.19.0.0/16", "duration": "2h"})).await;
    assert_eq!(allowed["exceptions"], json!(["198.19.7.0/24"]));

    // An address within the exception that is allowed again, and the end of the exception.
    node.post("/api/v1/allowlist", json!({"target": "198.19.7.9"})).await;
    let found = why(&node, "198.19.7.9").await;
    assert_eq!((&found["banned"], &found["allowlisted_by"]), (&json!(false), &json!("198.19.7.9")));
    assert_eq!(unban(&node, "198.19.7.1").await.1["banned_by"], "198.19.7.0/24");
    assert_eq!(unban(&node, "198.19.7.0/24").await.0, 200);
    let found = why(&node, "198.19.7.1").await;
    assert_eq!((&found["banned"], &found["allowlisted_by"]), (&json!(false), &json!("198.19.0.0/16")));
}

#[tokio::test]
async fn a_ban_of_a_configured_allowlist_entry_reports_no_effect() {
    let node = start(&["10.1.0.0/16"]).await;
    let (status, entry) = ban(&node, json!({"target": "10.1.2.3", "force": true})).await;
    assert_eq!((status, &entry["state"], &entry["exempt_by"]), (201, &json!("active"), &json!("10.1.0.0/16")));
    let found = why(&node, "10.1.2.3").await;
    assert_eq!((&found["banned"], &found["allowlisted_in"]), (&json!(false), &json!("configuration")));
    assert_eq!(ban(&node, json!({"target": "10.2.0.1", "force": true})).await.1["exempt_by"], Value::Null);
    let bulk = json!({"targets": ["10.1.2.4", "10.2.0.2"], "force": true});
    let (_, answer) = node.post("/api/v1/bans/bulk", bulk).await;
    assert_eq!((&answer["done"], &answer["exempt"]), (&json!(2), &json!(1)), "{answer}");
    // An operator's exception from it has no effect either.
    node.post("/api/v1/allowlist", json!({"target": "10.0.0.0/8", "force": true})).await;
    let (_, entry) = ban(&node, json!({"target": "10.1.2.0/24", "force": true})).await;
    assert_eq!(entry["exempt_by"], "10.1.0.0/16");
    let found = why(&node, "10.1.2.9").await;
    assert_eq!((&found["banned"], &found["allowlisted_by"]), (&json!(false), &json!("10.1.0.0/16")));
}

#[tokio::test]
async fn both_decisions_about_a_target_are_shown() {
    let node = start(&[]).await;
    node.ban_by_filter("192.0.2.7").await;
    assert_eq!(node.get("/api/v1/bans/192.0.2.7").await.1["other"], Value::Null);
    let (_, allowed) =
        node.post("/api/v1/allowlist", json!({"target": "192.0.2.7", "reason": "a partner", "by": "ann"})).await;
    assert_eq!((&allowed["state"], &allowed["by"]), (&json!("allowed"), &json!("ann")));
    let (_, entry) = node.get("/api/v1/bans/192.0.2.7").await;
    assert_eq!(entry["other"], allowed["other"]);
    let other = &why(&node, "192.0.2.7").await["entries"][0]["other"];
    assert_eq!(other, &allowed["other"]);
    assert_eq!(
        (&other["state"], &other["in_force"], &other["by_kind"], &other["by"], &other["reason"], &other["node"]),
        (
            &json!("active"),
            &json!(false),
            &json!("filter"),
            &json!("sshd"),
            &json!("failed-password"),
            &json!("node-a")
        )
    );
    let (_, list) = node.get("/api/v1/bans?state=all").await;
    assert_eq!(list["bans"][0].get("other"), None, "lists are lean");

    // A filter's ban after the operator's decision decides, and that decision is the other one.
    let (_, removed) = node.request(Method::DELETE, "/api/v1/allowlist/192.0.2.7?by=bob", None).await;
    assert_eq!((&removed["state"], &removed["other"]["by"]), (&json!("unbanned"), &json!("sshd")));
    node.ban_by_filter("192.0.2.7").await;
    let (_, entry) = node.get("/api/v1/bans/192.0.2.7").await;
    assert_eq!((&entry["state"], &entry["by"]), (&json!("active"), &json!("sshd")));
    let other = &entry["other"];
    assert_eq!((&other["state"], &other["by"], &other["until"]), (&json!("unbanned"), &json!("bob"), &Value::Null));
}
