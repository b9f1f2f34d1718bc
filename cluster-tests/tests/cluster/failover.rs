//! What clients notice when the primary agent fails, at 200 requests per second. Every run prints its figures.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use cluster_tests::backend::Backend;
use cluster_tests::haproxy::{Binary, Config, loopback_port};
use cluster_tests::load::{Load, Outcome};
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::site::{GREETING, WebSite};
use cluster_tests::{client, wait, with_every_haproxy};
use nix::sys::signal::Signal;

const BANNED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const CLEAN: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 67));
const RATE: u32 = 200;
const LENGTH: Duration = Duration::from_secs(4);

with_every_haproxy!(
    clients_do_not_notice_a_killed_primary,
    clients_do_not_notice_a_stopping_primary,
    a_hanging_primary_delays_answers_but_loses_none,
    clients_do_not_notice_a_returning_primary,
    the_plain_retry_survives_a_killed_primary,
    health_checks_move_traffic_from_a_hanging_primary_to_the_backup,
    clients_do_not_notice_a_reload_of_haproxy,
    tcp_frontends_query_the_backup,
);

/// Two agents with the same ban.
fn agents() -> (Node, Node) {
    let (primary, backup) = (NodeConfig::new().start(), NodeConfig::new().start());
    // By command, because an acknowledged ban survives SIGKILL.
    primary.cli(&["ban", "--force", &BANNED.to_string()]);
    backup.cli(&["ban", "--force", &BANNED.to_string()]);
    (primary, backup)
}

fn site(binary: &Binary, primary: &Node, backup: &Node) -> WebSite {
    let imap = loopback_port();
    WebSite::start(binary, "primary-backup", primary.spoa(), Some(backup.spoa()), |config| {
        // If the second agent answers late, the machine is busy.
        config.with_shipped_timeouts().listen(143, &imap.to_string()).replace_in(
            "spoe-ip-reputation-second.conf",
            "processing 200ms",
            "processing 5s",
        )
    })
}

/// Runs the load, calls `event` after a second, and prints the outcome.
fn measure(binary: &Binary, what: &str, site: &WebSite, event: impl FnOnce()) -> Outcome {
    assert_eq!(client::status(BANNED, site.http), 403);
    assert_eq!(client::status(CLEAN, site.http), 200);
    let load = Load::start(site.http, BANNED, CLEAN, RATE, LENGTH);
    std::thread::sleep(Duration::from_secs(1));
    event();
    let outcome = load.finish();
    println!(
        "failover: HAProxy {}, {what}: {} requests, {} wrong ({} let in, {} kept out, {} cut off), slowest {} ms",
        binary.series(),
        outcome.requests,
        outcome.wrong(),
        outcome.let_in,
        outcome.kept_out,
        outcome.unanswered,
        outcome.slowest.as_millis()
    );
    outcome
}

fn clients_do_not_notice_a_killed_primary(binary: &Binary) {
    let (mut primary, backup) = agents();
    let site = site(binary, &primary, &backup);
    let outcome = measure(binary, "kill -9, second opinion", &site, || primary.kill());
    assert_eq!(outcome.wrong(), 0, "{outcome:?}");
}

fn clients_do_not_notice_a_stopping_primary(binary: &Binary) {
    let (primary, backup) = agents();
    let site = site(binary, &primary, &backup);
    let outcome = measure(binary, "SIGTERM, second opinion", &site, || primary.signal(Signal::SIGTERM));
    assert_eq!(outcome.wrong(), 0, "{outcome:?}");
}

fn a_hanging_primary_delays_answers_but_loses_none(binary: &Binary) {
    let (primary, backup) = agents();
    let site = site(binary, &primary, &backup);
    let outcome = measure(binary, "SIGSTOP, second opinion", &site, || primary.signal(Signal::SIGSTOP));
    assert_eq!(outcome.wrong(), 0, "{outcome:?}");
    site.haproxy.wait_for_agent("primary", "DOWN");
    primary.signal(Signal::SIGCONT);
    site.haproxy.wait_for_agent("primary", "UP");
}

fn clients_do_not_notice_a_returning_primary(binary: &Binary) {
    let (mut primary, backup) = agents();
    let site = site(binary, &primary, &backup);
    primary.kill();
    site.haproxy.wait_for_agent("primary", "DOWN");
    let outcome = measure(binary, "primary restarts", &site, || primary.restart());
    assert_eq!(outcome.wrong(), 0, "a node that restarts has kept its bans: {outcome:?}");
    site.haproxy.wait_for_agent("primary", "UP");
    assert_eq!(client::status(BANNED, site.http), 403);
}

fn the_plain_retry_survives_a_killed_primary(binary: &Binary) {
    let (mut primary, backup) = agents();
    // The rate-limit recipe has the plain retry. No client is fast enough to reach the limit.
    let site = WebSite::start(binary, "rate-limit", primary.spoa(), Some(backup.spoa()), |config| {
        config.with_shipped_timeouts().replace("gt 20", "gt 100000")
    });
    let outcome = measure(binary, "kill -9, plain retry", &site, || primary.kill());
    // HAProxy 3.0 takes a closed connection for idle a little longer, so the checks of two timeouts may wait for it.
    let most = if binary.series() == "3.0" { 40 } else { 4 };
    assert!(outcome.wrong() <= most, "{outcome:?}");
}

/// Without a second engine: queries before the health checks notice get no answer, and all later ones do.
/// Up to HAProxy 3.0, open connections would be used permanently.
fn health_checks_move_traffic_from_a_hanging_primary_to_the_backup(binary: &Binary) {
    let (primary, backup) = agents();
    let site = WebSite::start(binary, "rate-limit", primary.spoa(), Some(backup.spoa()), |config| {
        config.with_shipped_timeouts().replace("gt 20", "gt 100000")
    });
    let outcome = measure(binary, "SIGSTOP, plain retry", &site, || primary.signal(Signal::SIGSTOP));
    assert_eq!(outcome.kept_out + outcome.unanswered, 0, "{outcome:?}");
    site.haproxy.wait_for_agent("primary", "DOWN");
    let all_right =
        || (0..20).all(|_| (client::status(BANNED, site.http), client::status(CLEAN, site.http)) == (403, 200));
    wait::until("the backup is asked", wait::SOON, all_right);
    let outcome = measure(binary, "SIGSTOP, plain retry, found out", &site, || {});
    assert_eq!(outcome.wrong(), 0, "{outcome:?}");
    primary.signal(Signal::SIGCONT);
}

fn clients_do_not_notice_a_reload_of_haproxy(binary: &Binary) {
    let (primary, backup) = agents();
    let (web, http, imap) = (Backend::http(), loopback_port(), loopback_port());
    let config = Config::shipped("recipes/primary-backup.cfg")
        .with_shipped_timeouts()
        .listen(80, &http.to_string())
        .listen(143, &imap.to_string())
        .server(8080, web.address)
        .agents(primary.spoa(), Some(backup.spoa()));
    let haproxy = binary.start_master_worker(config);
    haproxy.wait_for_agent("primary", "UP");
    let site = WebSite { haproxy, http, web };
    let outcome = measure(binary, "reload (SIGUSR2)", &site, || site.haproxy.reload());
    // A wrong answer is a failed check. A client whose connection the kernel gave to the ending worker does not count.
    assert_eq!((outcome.let_in, outcome.kept_out), (0, 0), "{outcome:?}");
    assert!(outcome.unanswered <= 2, "{outcome:?}");
}

fn tcp_frontends_query_the_backup(binary: &Binary) {
    let (primary, backup) = agents();
    let (imap, imap_server) = (loopback_port(), Backend::mail(GREETING));
    let site = WebSite::start(binary, "primary-backup", primary.spoa(), Some(backup.spoa()), |config| {
        config.with_shipped_timeouts().listen(143, &imap.to_string()).server(10143, imap_server.address)
    });
    assert_eq!(client::banner(BANNED, imap).unwrap(), None);
    primary.signal(Signal::SIGSTOP);
    assert_eq!(client::banner(BANNED, imap).unwrap(), None, "the backup says so");
    assert_eq!(client::banner(CLEAN, imap).unwrap().as_deref(), Some(GREETING));
    site.haproxy.wait_for_agent("primary", "DOWN");
    wait::until("the backup alone answers", wait::SOON, || {
        client::banner(BANNED, imap).is_ok_and(|line| line.is_none())
    });
}
