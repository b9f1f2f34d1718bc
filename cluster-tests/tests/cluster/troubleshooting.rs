//! Troubleshooting: every command in that section of the guide, the stats page, and HAProxy's metrics.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use cluster_tests::haproxy::{Binary, Config, loopback_port};
use cluster_tests::site::Site;
use cluster_tests::{client, wait, with_every_haproxy};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

with_every_haproxy!(
    the_stats_page_requires_a_password_and_metrics_are_exported,
    the_stats_socket_shows_the_state_of_the_agents,
    failed_checks_are_logged_with_the_error_code,
);

fn page(to: SocketAddr, path: &str, user: Option<&str>) -> (String, String) {
    let mut command = Command::new("curl");
    command.args(["--noproxy", "*", "-s", "-m", "10", "-w", "\n%{http_code}"]);
    if let Some(user) = user {
        command.args(["-u", user]);
    }
    let output = command.arg(format!("http://{to}{path}")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned())
}

fn the_stats_page_requires_a_password_and_metrics_are_exported(binary: &Binary) {
    let stats = loopback_port();
    let site = Site::start_with(binary, |config| {
        // Twice, so that the harness also finds the original.
        config.replace("    bind 127.0.0.1:8404\n", &format!("    bind {stats}\n    bind 127.0.0.1:8404\n"))
    });
    assert_eq!(client::status(CLIENT, site.http), 200);
    assert_eq!(page(stats, "/stats", None).0, "401");
    assert_eq!(page(stats, "/stats", Some("admin:wrong")).0, "401");
    let (status, body) = page(stats, "/stats", Some("admin:change-me"));
    assert_eq!(status, "200");
    assert!(body.contains("spoe-ip-reputation"));
    let (status, body) = page(stats, "/metrics", None);
    assert_eq!(status, "200");
    let up = body.lines().find(|line| {
        line.starts_with("haproxy_server_status{proxy=\"spoe-ip-reputation\",server=\"primary\"")
            && line.contains("state=\"UP\"")
    });
    assert!(up.is_some_and(|line| line.ends_with(" 1")), "{up:?}");
    assert_ne!(client::status(LOOPBACK, stats), 200, "nothing else is served there");
}

fn the_stats_socket_shows_the_state_of_the_agents(binary: &Binary) {
    let mut site = Site::start(binary);
    // As in the guide, with socat and cut.
    let socket = site.haproxy.folder().join("admin.sock");
    let ask = || {
        let script =
            format!("echo 'show stat' | socat stdio {} | cut -d, -f1,2,18 | grep '^spoe.*primary'", socket.display());
        String::from_utf8_lossy(&Command::new("bash").args(["-c", &script]).output().unwrap().stdout).trim().to_owned()
    };
    // "UP 1/2" until the second check.
    wait::until("the socket says UP", wait::SOON, || ask() == "spoe-ip-reputation,primary,UP");
    assert!(site.haproxy.command("show backend").unwrap().contains("spoe-ip-reputation"));
    for command in ["show info", "show errors", "show sess"] {
        let answer = site.haproxy.command(command).unwrap();
        assert!(!answer.starts_with("Unknown command"), "{command}: {answer}");
    }
    site.node.kill();
    site.haproxy.wait_for_agent("primary", "DOWN");
    assert_eq!(ask(), "spoe-ip-reputation,primary,DOWN");
}

fn failed_checks_are_logged_with_the_error_code(binary: &Binary) {
    let site = Site::start_with(binary, Config::with_shipped_timeouts);
    for _ in 0..5 {
        assert_eq!(client::status(CLIENT, site.http), 200);
    }
    assert!(!site.haproxy.log().contains(" st=0 "), "checks that succeed are not logged");
    site.node.signal(nix::sys::signal::Signal::SIGSTOP);
    // The signal may arrive late, so one request may not be enough.
    wait::until("the timeout is logged", wait::SOON, || {
        assert_eq!(client::status(CLIENT, site.http), 200);
        site.haproxy.log().contains("SPOE: [ip-reputation-agent] <EVENT:on-client-session>")
    });
    let log = site.haproxy.log();
    assert!(log.lines().any(|line| line.contains("<EVENT:on-client-session>") && line.contains(" st=1 ")), "{log}");
    site.node.signal(nix::sys::signal::Signal::SIGCONT);
}
