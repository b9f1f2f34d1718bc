//! The allowlist of operators, the reasons of a verdict, and the log lines behind it.

use crate::api::node::{Node, start};
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

async fn delete(node: &Node, path: &str) -> (StatusCode, Value) {
    node.request(Method::DELETE, path, None).await
}

/// The targets of an allowlist answer, in order.
fn targets(list: &Value) -> Vec<&str> {
    list["allowlist"].as_array().unwrap().iter().map(|member| member["target"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_allowlist_entry_is_made_respected_explained_listed_and_removed() {
    let node = start(&["127.0.0.0/8", "10.1.2.3"]).await;
    node.post("/api/v1/bans", json!({"target": "192.0.2.7", "permanent": true})).await;
    let request = json!({"target": "192.0.2.7", "duration": "2h", "reason": "a partner", "by": "ann"});
    let (status, allowed) = node.post("/api/v1/allowlist", request).await;
    assert_eq!((status, &allowed["state"], &allowed["by"]), (StatusCode::CREATED, &json!("allowed"), &json!("ann")));
    assert!((7190..=7200).contains(&allowed["remaining_seconds"].as_u64().unwrap()), "{allowed}");
    let (status, _) = node.post("/api/v1/allowlist", json!({"target": "198.51.100.0/24"})).await;
    assert_eq!(status, StatusCode::CREATED);

    let (_, why) = node.get("/api/v1/why/192.0.2.7").await;
    assert_eq!((&why["banned"], &why["allowlisted_by"]), (&json!(false), &json!("192.0.2.7")));
    assert_eq!((&why["allowlisted_in"], &why["entries"][0]["state"]), (&json!("operator"), &json!("allowed")));
    let (_, why) = node.get("/api/v1/why/127.0.0.1").await;
    assert_eq!(why["allowlisted_in"], "configuration");

    let (_, list) = node.get("/api/v1/allowlist").await;
    assert_eq!(targets(&list), ["10.1.2.3", "127.0.0.0/8", "192.0.2.7", "198.51.100.0/24"]);
    assert_eq!((&list["allowlist"][0]["source"], &list["next"]), (&json!("configuration"), &Value::Null));
    let partner = &list["allowlist"][2];
    assert_eq!(
        (&partner["source"], &partner["by"], &partner["reason"]),
        (&json!("operator"), &json!("ann"), &json!("a partner"))
    );
    assert_eq!(list["allowlist"][3]["until"], "never");
    let (_, list) = node.get("/api/v1/allowlist?limit=1").await;
    assert_eq!((targets(&list).len(), &list["next"]), (3, &json!("192.0.2.7")));
    let (_, list) = node.get("/api/v1/allowlist?limit=1&after=192.0.2.7").await;
    assert_eq!((targets(&list), &list["next"]), (vec!["198.51.100.0/24"], &Value::Null));
    let (_, bans) = node.get("/api/v1/bans").await;
    assert!(bans["bans"].as_array().unwrap().is_empty(), "an allowlist entry is not a ban: {bans}");
    let (_, bans) = node.get("/api/v1/bans?state=allowed").await;
    assert_eq!(bans["bans"].as_array().unwrap().len(), 2);

    for (target, code) in
        [("192.0.2.7", "allowlisted"), ("198.51.100.9", "allowlisted"), ("198.51.0.0/16", "allowlisted")]
    {
        let (status, error) = node.post("/api/v1/bans", json!({"target": target})).await;
        assert_eq!((status, &error["code"]), (StatusCode::CONFLICT, &json!(code)), "{target}");
    }
    // Within an allowed network a forced ban is an exception; a ban of exactly the allowed target ends the allowlist entry.
    node.post("/api/v1/bans", json!({"target": "198.51.100.9", "permanent": true, "force": true})).await;
    let (_, why) = node.get("/api/v1/why/198.51.100.9").await;
    assert_eq!((&why["banned"], &why["exception_from"]), (&json!(true), &json!("198.51.100.0/24")));
    let (_, why) = node.get("/api/v1/why/198.51.100.8").await;
    assert_eq!((&why["banned"], &why["allowlisted_by"]), (&json!(false), &json!("198.51.100.0/24")));
    let (status, removed) = delete(&node, "/api/v1/allowlist/198.51.100.0/24?by=bob").await;
    assert_eq!((status, &removed["state"], &removed["by"]), (StatusCode::OK, &json!("unbanned"), &json!("bob")));
    let (_, why) = node.get("/api/v1/why/198.51.100.9").await;
    assert_eq!(why["banned"], true);
    node.post("/api/v1/bans", json!({"target": "192.0.2.7", "force": true})).await;
    let (_, why) = node.get("/api/v1/why/192.0.2.7").await;
    assert_eq!((&why["banned"], &why["allowlisted_by"]), (&json!(true), &Value::Null));
}

#[tokio::test]
async fn invalid_allowlist_entries_are_refused() {
    let node = start(&["127.0.0.0/8"]).await;
    for (body, status, code) in [
        (json!({}), 400, "bad_request"),
        (json!({"target": "here"}), 400, "bad_target"),
        (json!({"target": "192.0.2.1", "duration": "soon"}), 400, "bad_request"),
        (json!({"target": "192.0.2.1", "duration": "0s"}), 400, "bad_request"),
        (json!({"target": "192.0.2.1", "for": "ever"}), 400, "bad_request"),
        (json!({"target": "0.0.0.0/0"}), 409, "too_wide"),
    ] {
        let (got, error) = node.post("/api/v1/allowlist", body.clone()).await;
        assert_eq!((got.as_u16(), &error["code"]), (status, &json!(code)), "{body}");
    }
    for (path, status, code) in [
        ("/api/v1/allowlist/192.0.2.1", 404, "not_allowed"),
        ("/api/v1/allowlist/127.0.0.0/8", 409, "configured"),
        ("/api/v1/allowlist/here", 400, "bad_target"),
    ] {
        let (got, error) = delete(&node, path).await;
        assert_eq!((got.as_u16(), &error["code"]), (status, &json!(code)), "{path}");
    }
    for path in ["/api/v1/allowlist?limit=0", "/api/v1/allowlist?limit=10001", "/api/v1/allowlist?after=x"] {
        assert_eq!(node.get(path).await.0, StatusCode::BAD_REQUEST, "{path}");
    }
    assert_eq!(node.get("/api/v1/allowlist/192.0.2.1").await.0, StatusCode::NOT_FOUND);
    let (status, member) = node.get("/api/v1/allowlist/127.0.0.0/8").await;
    assert_eq!((status, &member["source"]), (StatusCode::OK, &json!("configuration")));
}

#[tokio::test]
async fn the_whitelist_endpoints_of_webfail2ban_work() {
    let node = start(&[]).await;
    let (status, answer) =
        node.post("/api/whitelist", json!({"ip_address": "192.0.2.7", "reason": "ours", "created_by": "ann"})).await;
    assert_eq!((status, &answer["success"]), (StatusCode::OK, &json!(true)), "{answer}");
    let (_, list) = node.get("/api/whitelist").await;
    let member = &list["whitelist"][0];
    assert_eq!((&list["count"], &member["ip_address"]), (&json!(1), &json!("192.0.2.7")));
    assert_eq!((&member["created_by"], &member["reason"]), (&json!("ann"), &json!("ours")));
    let (_, list) = node.get("/api/v1/allowlist").await;
    assert_eq!(list["allowlist"][0]["by"], "ann");
    let body = Some(json!({"ip_address": "192.0.2.7"}));
    let (status, answer) = node.request(Method::DELETE, "/api/whitelist", body.clone()).await;
    assert_eq!((status, &answer["success"]), (StatusCode::OK, &json!(true)), "{answer}");
    let (status, answer) = node.request(Method::DELETE, "/api/whitelist", body).await;
    assert_eq!((status, &answer["success"]), (StatusCode::NOT_FOUND, &json!(false)), "{answer}");
    assert_eq!(answer["ip_address"], "192.0.2.7");
}

#[tokio::test]
async fn allowed_targets_are_not_banned_by_filters() {
    let node = start(&[]).await;
    node.post("/api/v1/allowlist", json!({"target": "2001:db8::/48"})).await;
    assert!(node.store.exempt().load().contains("2001:db8::7".parse().unwrap()), "before the answer");
    for target in ["2001:db8::/64", "2001:db8:1::/64"] {
        node.ban_by_filter(target).await;
    }
    let (_, bans) = node.get("/api/v1/bans").await;
    let banned: Vec<_> = bans["bans"].as_array().unwrap().iter().map(|ban| ban["target"].clone()).collect();
    assert_eq!(banned, ["2001:db8:1::/64"]);
    let (_, metrics) = node.send(Method::GET, "/metrics", "", "").await;
    assert!(metrics.contains("banmesh_bans_refused_allowed_total 1"), "{metrics}");
}
