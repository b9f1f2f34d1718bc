//! The API with a real store: the router in process, the Unix socket with the real client, and the commands.

use std::process::ExitCode;

use crate::api::node::{Node, start};
use axum::http::{Method, StatusCode};
use banmesh::cli;
use banmesh::operation::api::views::*;
use clap::Parser;
use serde_json::{Value, json};

#[tokio::test]
async fn a_ban_is_made_listed_explained_and_removed() {
    let node = start(&["127.0.0.0/8"]).await;
    let (status, ban) = node
        .post("/api/v1/bans", json!({"target": "192.0.2.7", "duration": "30m", "reason": "scan", "by": "ann"}))
        .await;
    assert_eq!(status, StatusCode::CREATED, "{ban}");
    assert_eq!(
        (&ban["target"], &ban["state"], &ban["by"], &ban["by_kind"]),
        (&json!("192.0.2.7"), &json!("active"), &json!("ann"), &json!("operator"))
    );
    assert!((1790..=1800).contains(&ban["remaining_seconds"].as_u64().unwrap()), "{ban}");
    let (status, _) = node.post("/api/v1/bans", json!({"target": "192.0.2.0/24", "permanent": true})).await;
    assert_eq!(status, StatusCode::CREATED);

    let (_, page) = node.get("/api/v1/bans").await;
    assert_eq!(page["bans"].as_array().unwrap().len(), 2);
    assert_eq!(page["next"], Value::Null);
    let (_, page) = node.get("/api/v1/bans?network=192.0.2.7").await;
    assert_eq!(page["bans"].as_array().unwrap().len(), 1);

    let (_, why) = node.get("/api/v1/why/::ffff:192.0.2.7").await;
    assert_eq!((&why["address"], &why["banned"], &why["until"]), (&json!("192.0.2.7"), &json!(true), &json!("never")));
    assert_eq!(why["by_target"], "192.0.2.0/24");
    assert_eq!(why["entries"].as_array().unwrap().len(), 2);

    // A network's slash, escaped and not.
    for path in ["/api/v1/bans/192.0.2.0%2F24", "/api/v1/bans/192.0.2.0/24"] {
        let (status, entry) = node.get(path).await;
        assert_eq!((status, &entry["permanent"]), (StatusCode::OK, &json!(true)));
    }
    let (status, unbanned) = node.request(Method::DELETE, "/api/v1/bans/192.0.2.0/24?by=bob&reason=ours", None).await;
    assert_eq!((status, &unbanned["state"], &unbanned["by"]), (StatusCode::OK, &json!("unbanned"), &json!("bob")));
    let (status, error) = node.request(Method::DELETE, "/api/v1/bans/192.0.2.0/24", None).await;
    assert_eq!((status, &error["code"]), (StatusCode::NOT_FOUND, &json!("not_banned")));
    let (_, why) = node.get("/api/v1/why/192.0.2.7").await;
    assert_eq!((&why["banned"], &why["by_target"]), (&json!(true), &json!("192.0.2.7")));
    let (_, status) = node.get("/api/v1/status").await;
    assert_eq!(
        (&status["active_bans"], &status["entries"], &status["cluster"]),
        (&json!(1), &json!(2), &json!("standalone"))
    );
}

#[tokio::test]
async fn likely_mistakes_need_force() {
    let node = start(&["127.0.0.0/8", "10.1.2.3"]).await;
    for (target, code) in [
        ("127.0.0.1", "allowlisted"),
        ("10.1.0.0/16", "allowlisted"),
        ("96.0.0.0/4", "too_wide"),
        ("2600::/12", "too_wide"),
    ] {
        let (status, error) = node.post("/api/v1/bans", json!({"target": target})).await;
        assert_eq!((status, &error["code"]), (StatusCode::CONFLICT, &json!(code)), "{target}");
        assert!(error["error"].as_str().unwrap().contains(target), "{error}");
        let (status, _) = node.post("/api/v1/bans", json!({"target": target, "force": true})).await;
        assert_eq!(status, StatusCode::CREATED, "{target}");
    }
    let (_, why) = node.get("/api/v1/why/127.0.0.1").await;
    assert_eq!((&why["banned"], &why["allowlisted_by"]), (&json!(false), &json!("127.0.0.0/8")));
    let (_, list) = node.get("/api/v1/allowlist").await;
    let members = list["allowlist"].as_array().unwrap().iter().map(|member| &member["target"]);
    assert_eq!(members.collect::<Vec<_>>(), ["10.1.2.3", "127.0.0.0/8"]);
}

#[tokio::test]
async fn wide_networks_and_ranges_that_are_not_public_need_force() {
    let node = start(&[]).await;
    let all_slash_8: Vec<String> = (0..256).map(|n| format!("{n}.0.0.0/8")).collect();
    let (status, answer) = node.post("/api/v1/bans/bulk", json!({"targets": all_slash_8})).await;
    assert_eq!((status.as_u16(), &answer["done"]), (200, &json!(0)), "{answer}");
    // Networks that may be banned one by one are too much together.
    let some_slash_16: Vec<String> = (0..256).map(|n| format!("11.{n}.0.0/16")).collect();
    let (status, error) = node.post("/api/v1/bans/bulk", json!({"targets": some_slash_16})).await;
    assert_eq!((status.as_u16(), &error["code"]), (409, &json!("too_wide")), "{error}");
    assert!(error["error"].as_str().unwrap().contains("0.3906 % of all IPv4 addresses"), "{error}");
    // A blocklist with private ranges: `wide` bans only what is public.
    let blocklist =
        json!({"targets": ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "11.0.0.0/8"]});
    let mut wide = blocklist.clone();
    wide["wide"] = json!(true);
    let (_, answer) = node.post("/api/v1/bans/bulk", wide).await;
    let codes: Vec<_> = answer["refused"].as_array().unwrap().iter().map(|one| &one["code"]).collect();
    assert_eq!((&answer["done"], codes), (&json!(1), vec![&json!("not_public"); 4]), "{answer}");
    for target in
        ["10.1.2.3", "100.64.0.1", "169.254.0.0/16", "224.0.0.1", "255.255.255.255", "fd00::1", "fe80::1", "ff02::1"]
    {
        let (status, error) = node.post("/api/v1/bans", json!({"target": target})).await;
        assert_eq!((status.as_u16(), &error["code"]), (409, &json!("not_public")), "{target}");
        let (status, _) = node.post("/api/v1/bans", json!({"target": target, "force": true})).await;
        assert_eq!(status.as_u16(), 201, "{target}");
    }
}

#[tokio::test]
async fn host_bits_in_a_network_are_an_error_that_shows_the_network() {
    let node = start(&[]).await;
    let says = |error: &Value| error["error"].as_str().unwrap().contains("write 1.0.0.0/8 for the network");
    let (status, error) = node.post("/api/v1/bans", json!({"target": "1.2.3.4/8", "force": true})).await;
    assert!(status.as_u16() == 400 && says(&error), "{error}");
    let (status, error) = node.post("/api/v1/allowlist", json!({"target": "1.2.3.4/8"})).await;
    assert!(status.as_u16() == 400 && says(&error), "{error}");
    let (status, error) = node.request(Method::DELETE, "/api/v1/bans/1.2.3.4%2F8", None).await;
    assert!(status.as_u16() == 400 && says(&error), "{error}");
    let (_, answer) = node.post("/api/v1/bans/bulk", json!({"targets": ["1.2.3.4/8", "192.0.2.1"]})).await;
    assert!(answer["done"] == 1 && says(&answer["refused"][0]), "{answer}");
    let (status, error) = node.post("/api/ban", json!({"ip_address": "1.2.3.4/8"})).await;
    assert!(status.as_u16() == 400 && error["message"].as_str().unwrap().contains("1.0.0.0/8"), "{error}");
}

#[tokio::test]
async fn all_or_none_changes_nothing_if_one_target_is_refused() {
    let node = start(&["203.0.113.1"]).await;
    for wrong in ["for", "203.0.113.1", "10.0.0.1", "192.0.2.1/8"] {
        let body = json!({"targets": ["192.0.2.1", wrong], "all_or_none": true});
        let (status, answer) = node.post("/api/v1/bans/bulk", body).await;
        assert_eq!(
            (status.as_u16(), &answer["done"], &answer["refused"][0]["target"]),
            (200, &json!(0), &json!(wrong))
        );
    }
    assert_eq!(node.store.summary().await.unwrap().entries, 0);
    let body = json!({"targets": ["192.0.2.1", "192.0.2.2"], "all_or_none": true});
    assert_eq!(node.post("/api/v1/bans/bulk", body).await.1["done"], 2);
}

#[tokio::test]
async fn all_or_none_changes_nothing_if_the_ledger_refuses_one_target() {
    let node = start(&[]).await;
    let body = json!({"targets": ["192.0.2.1"], "duration": "7d", "by": "ann"});
    node.post("/api/v1/bans/bulk", body).await;
    let mut body = json!({"targets": ["192.0.2.1", "192.0.2.2"], "duration": "1h", "all_or_none": true});
    let (_, answer) = node.post("/api/v1/bans/bulk", body.clone()).await;
    assert_eq!((&answer["done"], &answer["refused"][0]["code"]), (&json!(0), &json!("banned_longer")), "{answer}");
    assert_eq!(node.store.summary().await.unwrap().entries, 1);
    let unban = json!({"targets": ["192.0.2.1", "192.0.2.2"], "all_or_none": true});
    let (_, answer) = node.post("/api/v1/bans/unban", unban).await;
    assert_eq!((&answer["done"], &answer["refused"][0]["target"]), (&json!(0), &json!("192.0.2.2")), "{answer}");
    assert_eq!(node.store.summary().await.unwrap().active, 1);
    // A program keeps the longer ban, and the rest is banned.
    body["keep"] = json!("longer");
    let (_, answer) = node.post("/api/v1/bans/bulk", body).await;
    assert_eq!((&answer["done"], &answer["kept"]), (&json!(1), &json!(1)), "{answer}");
    let unban = json!({
        "targets": ["192.0.2.1", "192.0.2.3", "192.0.2.2", "192.0.2.1"], "all_or_none": true, "idempotent": true
    });
    let (_, answer) = node.post("/api/v1/bans/unban", unban).await;
    assert_eq!((&answer["done"], &answer["refused"][0]["target"]), (&json!(3), &json!("192.0.2.3")), "{answer}");
    assert_eq!(node.store.summary().await.unwrap().active, 0);
}

#[tokio::test]
async fn networks_that_other_nodes_refuse_cannot_be_forced() {
    let node = start(&[]).await;
    for target in ["0.0.0.0/0", "192.0.0.0/3", "2000::/11"] {
        for route in ["/api/v1/bans", "/api/v1/allowlist"] {
            let (status, error) = node.post(route, json!({"target": target, "force": true})).await;
            assert_eq!((status.as_u16(), &error["code"]), (409, &json!("too_wide")), "{target} {error}");
        }
    }
    assert_eq!(node.store.summary().await.unwrap().entries, 0);
}

#[tokio::test]
async fn programs_on_the_socket_can_keep_longer_bans_and_end_only_their_own() {
    let node = start(&[]).await;
    let ban = |by: &str, duration: &str| json!({"target": "192.0.2.1", "duration": duration, "by": by});
    node.post("/api/v1/bans", ban("ann", "7d")).await;
    let mut short = ban("fail2ban", "20s");
    short["keep"] = json!("longer");
    let (status, entry) = node.post("/api/v1/bans", short.clone()).await;
    assert_eq!((status.as_u16(), &entry["by"]), (200, &json!("ann")), "{entry}");
    let path = "/api/v1/bans/192.0.2.1?own=true&by=fail2ban";
    let (status, error) = node.request(Method::DELETE, path, None).await;
    assert_eq!((status.as_u16(), &error["code"]), (409, &json!("other_author")), "{error}");
    let (_, entry) = node.get("/api/v1/bans/192.0.2.1").await;
    assert!(entry["state"] == "active" && entry["remaining_seconds"].as_u64().unwrap() > 6 * 86_400, "{entry}");
    short["replace"] = json!(true);
    assert_eq!(node.post("/api/v1/bans", short).await.0.as_u16(), 400);
}

#[tokio::test]
async fn invalid_requests_get_the_right_status() {
    let node = start(&[]).await;
    for (body, status) in [
        (json!({"target": "banana"}), 400),
        (json!({"target": "192.0.2.1/33"}), 400),
        (json!({"target": "192.0.2.1", "duration": "soon"}), 400),
        (json!({"target": "192.0.2.1", "duration": "0"}), 400),
        (json!({"target": "192.0.2.1", "duration": "1h", "permanent": true}), 400),
        (json!({"target": "192.0.2.1", "durration": "1h"}), 400),
        (json!({"target": 7}), 400),
        (json!({"targets": ["192.0.2.1"]}), 400),
        (json!({}), 400),
        (json!([]), 400),
        (json!({"target": "192.0.2.1", "reason": "x".repeat(100_000)}), 413),
    ] {
        let (answer, error) = node.post("/api/v1/bans", body.clone()).await;
        assert_eq!(answer.as_u16(), status, "{body} {error}");
        let told = error["error"].as_str().unwrap();
        // In the words of the API, not of the program.
        assert!(!told.is_empty() && !told.contains("deserialize") && !told.contains("struct"), "{told}");
    }
    for (body, status) in [
        (json!({"targets": []}), 400),
        (json!({"target": "192.0.2.1"}), 400),
        (json!({"targets": vec!["192.0.2.1"; 10_001]}), 413),
        (json!({"targets": vec!["x".repeat(1000); 3000]}), 413),
    ] {
        for path in ["/api/v1/bans/bulk", "/api/v1/allowlist/bulk"] {
            let (answer, _) = node.post(path, body.clone()).await;
            assert_eq!(answer.as_u16(), status, "{path}");
        }
    }
    for (method, path, status) in [
        (Method::GET, "/nothing", 404),
        (Method::GET, "/api/v1/nothing", 404),
        (Method::GET, "/api/v1/bans/192.0.2.9", 404),
        (Method::GET, "/api/v1/bans/banana", 400),
        (Method::GET, "/api/v1/why/192.0.2.0%2F24", 400),
        (Method::GET, "/api/v1/bans?limit=0", 400),
        (Method::GET, "/api/v1/bans?stat=all", 400),
        (Method::GET, "/api/v1/bans?cursor=zz", 400),
        (Method::PUT, "/api/v1/bans", 405),
        (Method::POST, "/api/v1/status", 405),
        (Method::DELETE, "/metrics", 405),
        (Method::GET, "/api/v1/reload", 405),
        (Method::POST, "/api/v1/reload", 409),
    ] {
        let (answer, error) = node.request(method.clone(), path, None).await;
        assert_eq!(answer.as_u16(), status, "{method} {path} {error}");
        let told = error["error"].as_str().unwrap();
        assert!(!told.contains("deserialize"), "{method} {path} {told}");
        if matches!(status, 404 | 405) && error["code"] != "unknown" {
            assert!(told.contains(path), "{told} names the path as it was asked for: {path}");
        }
    }
    for (body, told) in [
        (r#"{"target": "#, "the body is not JSON: "),
        (r#"{"target": "192.0.2.1", "duration": 3600}"#, "duration: invalid type: integer `3600`, expected a string"),
        ("null", "invalid type: null, expected an object"),
    ] {
        let (status, text) = node.send(Method::POST, "/api/v1/bans", "application/json", body).await;
        assert!(status == StatusCode::BAD_REQUEST && text.contains(told), "{body}: {text}");
    }
    // A form that a browser sends without asking is no command.
    let (status, _) = node.send(Method::POST, "/api/v1/bans", "text/plain", r#"{"target": "192.0.2.1"}"#).await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(node.store.summary().await.unwrap().entries, 0);
}

#[tokio::test]
async fn a_refused_target_does_not_stop_the_others() {
    let node = start(&["127.0.0.0/8"]).await;
    let targets = json!({"targets": ["192.0.2.1", "banana", "127.0.0.1", "2001:db8::/64"], "duration": "1h"});
    let (status, answer) = node.post("/api/v1/bans/bulk", targets).await;
    assert_eq!((status, &answer["done"]), (StatusCode::OK, &json!(2)));
    let refused: Vec<_> = answer["refused"].as_array().unwrap().iter().map(|one| &one["code"]).collect();
    assert_eq!(refused, ["bad_target", "allowlisted"]);
    let (_, answer) = node.post("/api/v1/bans/unban", json!({"targets": ["192.0.2.1", "192.0.2.2"]})).await;
    assert_eq!((&answer["done"], &answer["refused"][0]["code"]), (&json!(1), &json!("not_banned")));
    let targets = json!({"targets": ["0.0.0.0/1", "192.0.2.1", "banana", "192.0.2.64/26"], "duration": "1h"});
    let (status, answer) = node.post("/api/v1/allowlist/bulk", targets).await;
    assert_eq!((status, &answer["done"]), (StatusCode::OK, &json!(2)));
    let refused: Vec<_> = answer["refused"].as_array().unwrap().iter().map(|one| &one["code"]).collect();
    assert_eq!(refused, ["too_wide", "bad_target"]);
}

/// A bulk request is applied in steps, but its refusals come in the order of the request.
#[tokio::test]
async fn refusals_keep_the_order_of_the_request() {
    let node = start(&["127.0.0.0/8"]).await;
    let address = |n: u32| match n % 1000 {
        7 => "banana".to_owned(),
        9 => "127.0.0.1".to_owned(),
        _ => std::net::Ipv4Addr::from(0x0b00_0000 + n).to_string(),
    };
    let odd: Vec<String> = (0..5000).filter(|n| n % 2 == 1).map(address).collect();
    let (_, answer) = node.post("/api/v1/bans/bulk", json!({"targets": odd, "duration": "1h"})).await;
    assert_eq!(answer["done"], 2490);
    // Half of them are not banned, in all steps.
    let all: Vec<String> = (0..5000).map(address).collect();
    let (_, answer) = node.post("/api/v1/bans/unban", json!({"targets": all})).await;
    assert_eq!(answer["done"], 2490);
    let refused: Vec<&str> =
        answer["refused"].as_array().unwrap().iter().map(|one| one["target"].as_str().unwrap()).collect();
    let expected: Vec<String> = (0..5000).filter(|n| n % 2 == 0 || [7, 9].contains(&(n % 1000))).map(address).collect();
    assert_eq!(refused, expected);
}

#[tokio::test]
async fn health_shows_what_the_node_waits_for() {
    let node = start(&[]).await;
    assert_eq!(node.get("/health/ready").await.0, StatusCode::OK);
    node.set_ready(false);
    let (status, readiness) = node.get("/health/ready").await;
    assert_eq!((status, &readiness["waiting_for"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(["the journal"])));
    assert_eq!(node.send(Method::GET, "/health/live", "", "").await.0, StatusCode::OK);
    let (_, metrics) = node.send(Method::GET, "/metrics", "", "").await;
    assert!(metrics.contains("banmesh_active_bans") && metrics.ends_with("# EOF\n"), "{metrics}");
    node.shutdown.cancel();
    while node.store.summary().await.is_ok() {}
    assert_eq!(node.send(Method::GET, "/health/live", "", "").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[derive(Debug, Parser)]
struct Line {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Debug, clap::Subcommand)]
enum Commands {
    Status(cli::status::Args),
    List(cli::list::Args),
    Ban(cli::ban::Args),
    Unban(cli::unban::Args),
    Allow(cli::allow::AllowArgs),
    Disallow(cli::allow::DisallowArgs),
    Allowlist(cli::allow::ListArgs),
    Purge(cli::purge::Args),
    Why(cli::why::Args),
    Cluster(cli::cluster::Args),
    Reload(cli::reload::Args),
    Ping(cli::ping::Args),
}

/// Runs a command line like the binary.
async fn command(node: &Node, line: &str) -> ExitCode {
    let socket = node.socket.to_str().unwrap().to_owned();
    let words = ["banmesh"].into_iter().chain(line.split(' ')).chain(["--socket", &socket]);
    let line = Line::try_parse_from(words).unwrap();
    tokio::task::spawn_blocking(|| match line.command {
        Commands::Status(args) => cli::status::run(args),
        Commands::List(args) => cli::list::run(args),
        Commands::Ban(args) => cli::ban::run(args),
        Commands::Unban(args) => cli::unban::run(args),
        Commands::Allow(args) => cli::allow::allow(args),
        Commands::Disallow(args) => cli::allow::disallow(args),
        Commands::Allowlist(args) => cli::allow::list(args),
        Commands::Purge(args) => cli::purge::run(args),
        Commands::Why(args) => cli::why::run(args),
        Commands::Cluster(args) => cli::cluster::run(args),
        Commands::Reload(args) => cli::reload::run(args),
        Commands::Ping(args) => cli::ping::run(args),
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_have_the_documented_exit_codes() {
    let node = start(&["127.0.0.0/8"]).await;
    let file = node.dir.path().join("targets");
    let targets: Vec<String> = (0..2500).map(|n| format!("11.{}.{}.1", n / 250, n % 250)).collect();
    std::fs::write(&file, targets.join("\n")).unwrap();
    let bulk = format!("--file {}", file.display());
    let (ok, refused, usage) = (ExitCode::SUCCESS, ExitCode::from(1), ExitCode::from(2));
    for (line, expected) in [
        ("ping".to_owned(), ok),
        ("ping --ready".to_owned(), ok),
        ("status".to_owned(), ok),
        ("status --json".to_owned(), ok),
        ("ban 192.0.2.1 --for 1h --reason scan".to_owned(), ok),
        ("ban 192.0.2.2 2001:db8::/64 --permanent --json".to_owned(), ok),
        ("ban 127.0.0.1".to_owned(), refused),
        ("ban 192.0.2.3 127.0.0.1".to_owned(), refused),
        ("ban banana".to_owned(), usage),
        ("ban 192.0.2.77 for 1h".to_owned(), usage),
        ("why 192.0.2.77".to_owned(), ok),
        ("ban --file /nowhere".to_owned(), usage),
        (format!("ban {bulk} --for 1d"), ok),
        ("list -n 3".to_owned(), ok),
        ("list --json --all --sort none -n 3".to_owned(), ok),
        ("list --csv --network 11.0.0.0/8 --sort target -n 3".to_owned(), ok),
        ("unban 192.0.2.1".to_owned(), ok),
        ("unban 192.0.2.1".to_owned(), refused),
        ("unban 192.0.2.1 --idempotent".to_owned(), ok),
        ("unban 192.0.2.1 192.0.2.9".to_owned(), refused),
        ("unban 192.0.2.1 192.0.2.9 --idempotent --json".to_owned(), ok),
        ("unban 192.0.2.1 banana --idempotent".to_owned(), usage),
        ("unban 2001:db8::7 --idempotent".to_owned(), refused),
        ("ban 2001:db8::/64".to_owned(), refused),
        ("ban 2001:db8::/64 192.0.2.2 --for 1h".to_owned(), refused),
        ("ban 2001:db8::/64 --for 1h --replace".to_owned(), ok),
        ("ban 2001:db8::/64 --permanent".to_owned(), ok),
        ("unban 2001:db8::/64 --json".to_owned(), ok),
        (format!("unban {bulk} --reason mistake"), ok),
        ("allow 198.51.100.0/24 --for 1h --reason partner".to_owned(), ok),
        ("allow 0.0.0.0/0".to_owned(), refused),
        ("ban 198.51.100.1".to_owned(), refused),
        ("ban 127.0.0.1 --force".to_owned(), ok),
        ("unban 127.0.0.1".to_owned(), ok),
        ("why 198.51.100.1".to_owned(), ok),
        ("allowlist".to_owned(), ok),
        ("allowlist --json".to_owned(), ok),
        ("allow --remove 198.51.100.0/24".to_owned(), ok),
        ("disallow 198.51.100.0/24".to_owned(), refused),
        ("disallow 127.0.0.0/8".to_owned(), refused),
        (format!("ban {bulk} --for 1d"), ok),
        ("purge --network 11.0.0.0/8".to_owned(), usage),
        ("purge --network 11.0.0.0/8 --yes".to_owned(), ok),
        ("purge --network 11.0.0.0/8 --yes --json".to_owned(), ok),
        ("purge --filter sshd --yes".to_owned(), ok),
        // What the action for fail2ban runs.
        ("ban 192.0.2.50 --for 7d --by ann".to_owned(), ok),
        ("ban 192.0.2.50 --for 20s --by fail2ban --reason sshd --keep-longer".to_owned(), ok),
        ("unban 192.0.2.50 --by fail2ban --own".to_owned(), refused),
        ("unban 192.0.2.50 --by fail2ban --own --idempotent".to_owned(), ok),
        ("unban 192.0.2.50".to_owned(), ok),
        ("cluster status".to_owned(), ok),
        ("reload".to_owned(), refused),
    ] {
        assert_eq!(command(&node, &line).await, expected, "{line}");
    }
    // Of `ban 192.0.2.3 127.0.0.1`, which the allowlist refuses, nothing was done.
    assert_eq!(node.store.summary().await.unwrap().active, 1);
    node.set_ready(false);
    assert_eq!(command(&node, "ping --ready").await, refused);
    assert_eq!(command(&node, "ping").await, ok);
    node.shutdown.cancel();
    node.stopped().await;
    assert_eq!(command(&node, "status").await, ExitCode::from(3));
}

#[tokio::test]
async fn the_author_defaults_to_the_peer_of_the_socket() {
    let node = start(&[]).await;
    let mut client = cli::client::Client::connect(&node.socket).await.unwrap();
    let request = BanRequest { target: Some("192.0.2.1".to_owned()), ..Default::default() };
    let entry: EntryView = client.post("/api/v1/bans", &request).await.unwrap();
    let uid = std::fs::metadata(&node.socket).map(|found| std::os::unix::fs::MetadataExt::uid(&found)).unwrap();
    assert_eq!(entry.by, if uid == 0 { "root".to_owned() } else { format!("uid {uid}") });
    // Every view survives the way through the socket.
    let why: WhyView = client.get("/api/v1/why/192.0.2.1").await.unwrap();
    assert_eq!(why.entries.len(), 1);
    let cluster: ClusterView = client.get("/api/v1/cluster").await.unwrap();
    assert_eq!(cluster, ClusterView::standalone());
    let missing = client.get::<EntryView>("/api/v1/bans/192.0.2.2").await.unwrap_err();
    assert!(matches!(missing, cli::failure::Failure::Refused(ErrorView { code, .. }) if code == "unknown"));
}
