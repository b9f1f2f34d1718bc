//! The main function of banmesh: log lines lead to a ban, and a real HAProxy refuses the client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cluster_tests::haproxy::{Binary, Config};
use cluster_tests::ports::{free_port, has_ipv6_loopback};
use cluster_tests::site::{GREETING, Site};
use cluster_tests::{client, syslog, wait, with_every_haproxy};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 67));

with_every_haproxy!(
    repeated_failures_turn_200_into_403,
    failures_over_tcp_are_counted,
    a_server_first_protocol_is_refused_before_the_banner,
    a_client_first_protocol_is_refused,
    ipv6_clients_are_refused,
    mapped_addresses_are_ipv4_clients,
    a_dual_stack_frontend_sees_ipv4_clients,
    a_dead_agent_delays_no_request_and_is_used_again_when_it_is_back,
    a_hanging_agent_delays_a_request_at_most_by_the_timeout,
);

fn repeated_failures_turn_200_into_403(binary: &Binary) {
    let site = Site::start(binary);
    let before = client::get(CLIENT, site.http, &["X-IP-Status: forged"]).unwrap();
    assert_eq!(before.status, 200);
    let seen: Vec<&str> =
        before.body.lines().filter(|line| line.to_ascii_lowercase().starts_with("x-ip-status")).collect();
    assert_eq!(seen.len(), 1, "the application sees one status: {seen:?}");
    assert!(seen[0].ends_with(": allowed"), "{seen:?}");

    site.node.ban_by_log(CLIENT);

    let after = client::get(CLIENT, site.http, &[]).unwrap();
    assert_eq!(after.status, 403);
    assert_eq!(after.header("x-ip-status"), Some("banned"));
    assert_eq!(client::status(OTHER, site.http), 200, "another client is accepted");
}

fn failures_over_tcp_are_counted(binary: &Binary) {
    let site = Site::start(binary);
    let mut kept_alive = client::Http::connect(CLIENT, site.http).unwrap();
    assert_eq!(kept_alive.get(&[]).unwrap().status, 200);
    let line = syslog::dovecot_failure(CLIENT);
    syslog::send_tcp(site.node.syslog(), [line.as_str(); 6]);
    site.node.wait_for(CLIENT, true);
    assert_eq!(kept_alive.get(&[]).unwrap().status, 403, "a connection that was open before the ban");
}

fn a_server_first_protocol_is_refused_before_the_banner(binary: &Binary) {
    let site = Site::start(binary);
    assert_eq!(client::banner(CLIENT, site.imap).unwrap().as_deref(), Some(GREETING));
    site.node.ban_by_log(CLIENT);
    assert_eq!(client::banner(CLIENT, site.imap).unwrap(), None);
    assert_eq!(client::banner(OTHER, site.imap).unwrap().as_deref(), Some(GREETING));
}

fn a_client_first_protocol_is_refused(binary: &Binary) {
    let site = Site::start(binary);
    assert_eq!(client::speak_first(CLIENT, site.smtp, "hello").unwrap().as_deref(), Some("hello"));
    site.node.ban_by_log(CLIENT);
    assert_eq!(client::speak_first(CLIENT, site.smtp, "hello").unwrap(), None);
    assert_eq!(client::speak_first(OTHER, site.smtp, "hello").unwrap().as_deref(), Some("hello"));
}

fn ipv6_clients_are_refused(binary: &Binary) {
    // The PROXY protocol gives the client's address, so the machine needs no IPv6.
    let address: Ipv6Addr = "2001:db8::7".parse().unwrap();
    let neighbour: Ipv6Addr = "2001:db8::8".parse().unwrap();
    let stranger: Ipv6Addr = "2001:db8:0:1::7".parse().unwrap();
    let site = Site::start_with(binary, |config| config.replace("bind :::80 v4v6", "bind :::80 v4v6 accept-proxy"));
    let status = |from| proxied(site.http, from);
    assert_eq!(status(address), 200);
    site.node.ban_by_log(address.into());
    assert_eq!(status(address), 403);
    assert_eq!(status(neighbour), 403, "the ban holds for the client's /64");
    assert_eq!(status(stranger), 200);
}

fn mapped_addresses_are_ipv4_clients(binary: &Binary) {
    let site = Site::start_with(binary, |config| config.replace("bind :::80 v4v6", "bind :::80 v4v6 accept-proxy"));
    let mapped = Ipv4Addr::new(203, 0, 113, 9);
    assert_eq!(proxied(site.http, mapped.to_ipv6_mapped()), 200);
    site.node.ban_by_log(mapped.into());
    assert_eq!(proxied(site.http, mapped.to_ipv6_mapped()), 403);
    assert_eq!(proxied(site.http, Ipv4Addr::new(203, 0, 113, 10).to_ipv6_mapped()), 200);
}

/// Sends one request with a PROXY protocol header (TCP6) for the client's address, and returns the status.
fn proxied(to: SocketAddr, from: Ipv6Addr) -> u16 {
    let octets = from.to_ipv4_mapped();
    let name = octets.map_or_else(|| from.to_string(), |v4| format!("::ffff:{v4}"));
    let header = format!("PROXY TCP6 {name} ::1 40000 80\r\n");
    let mut connection = client::Http::connect(OTHER, to).unwrap().preamble(header.as_bytes()).unwrap();
    connection.get(&[]).unwrap().status
}

fn a_dual_stack_frontend_sees_ipv4_clients(binary: &Binary) {
    if !has_ipv6_loopback() {
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    let port = free_port();
    let site = Site::start_with(binary, |config| {
        // One more listener, which differs from the shipped one only in the port.
        config.replace("bind :::80 v4v6", &format!("bind :::{port} v4v6\n    bind :::80 v4v6"))
    });
    let (v4, v6) =
        (SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port));
    let itself = IpAddr::V6(Ipv6Addr::LOCALHOST);
    assert_eq!(client::status(CLIENT, v4), 200);
    assert_eq!(client::status(itself, v6), 200);
    site.node.ban_by_log(CLIENT);
    assert_eq!(client::status(CLIENT, v4), 403, "seen by HAProxy as ::ffff:127.0.0.66");
    assert_eq!(client::status(OTHER, v4), 200);
    assert_eq!(client::status(itself, v6), 200, "a mapped ban must not reach ::1");
    site.node.ban_by_log(itself);
    assert_eq!(client::status(itself, v6), 403);
    assert_eq!(client::status(OTHER, v4), 200);
}

fn a_dead_agent_delays_no_request_and_is_used_again_when_it_is_back(binary: &Binary) {
    let mut site = Site::start(binary);
    // By command, because an acknowledged ban survives SIGKILL.
    site.node.cli(&["ban", "--force", &CLIENT.to_string()]);
    assert_eq!(client::status(CLIENT, site.http), 403);

    site.node.kill();
    site.haproxy.wait_for_agent("primary", "DOWN");
    let response = client::get(OTHER, site.http, &[]).unwrap();
    assert_eq!(response.status, 200, "HAProxy fails open");
    assert!(response.body.to_ascii_lowercase().contains("x-ip-status: unknown"), "{}", response.body);
    assert_eq!(client::status(CLIENT, site.http), 200, "no agent answers");

    site.node.restart();
    site.haproxy.wait_for_agent("primary", "UP");
    wait::until("HAProxy asks the agent again", wait::SOON, || client::status(CLIENT, site.http) == 403);
    assert_eq!(client::status(OTHER, site.http), 200);
}

fn a_hanging_agent_delays_a_request_at_most_by_the_timeout(binary: &Binary) {
    let site = Site::start_with(binary, Config::with_shipped_timeouts);
    assert_eq!(client::status(OTHER, site.http), 200);
    site.node.signal(nix::sys::signal::Signal::SIGSTOP);
    // Two tries of 200 ms. The client waits ten seconds: without the timeout it would take the 50 s of "timeout server".
    assert_eq!(client::status(OTHER, site.http), 200);
    site.haproxy.wait_for_agent("primary", "DOWN");
    site.node.signal(nix::sys::signal::Signal::SIGCONT);
    site.haproxy.wait_for_agent("primary", "UP");
    site.node.ban_by_log(CLIENT);
    wait::until("HAProxy asks the agent again", wait::SOON, || client::status(CLIENT, site.http) == 403);
}
