//! Pages and sockets that let anyone change HAProxy without a password.

use std::net::IpAddr;

use super::context::Context;
use crate::document::Line;
use crate::finding::Findings;
use crate::rules::condition;

pub(super) fn check(context: &Context<'_>, found: &mut Findings) {
    for proxy in &context.configuration.proxies {
        let has_password =
            proxy.all(&["stats", "auth"]).next().is_some() || proxy.all(&["stats", "http-request"]).next().is_some();
        let Some(line) = proxy.last(&["stats", "admin"]).filter(|line| !has_password && admits_all(line)) else {
            continue;
        };
        let (problem, fix) = (
            "anyone who can reach this page can take servers down, without a password",
            "stats auth NAME:PASSWORD, and stats admin if { src 127.0.0.1 }",
        );
        let mut binds = proxy.binds().peekable();
        if binds.peek().is_some() && binds.all(|bind| is_loopback(bind.word(1))) {
            found.warning(line, "open-admin", format!("{problem}; here this means every user of this host"), fix);
        } else {
            found.error(line, "open-admin", problem, fix);
        }
    }
    for line in &context.configuration.global {
        let address = line.word(2);
        let local = address.starts_with(['/', '@'])
            || ["unix@", "abns@", "abnsz@", "fd@", "sockpair@"].iter().any(|kind| address.starts_with(kind));
        if line.begins(&["stats", "socket"]) && line.after("level") == Some("admin") && !local && address.contains(':')
        {
            let problem = "anyone who can reach this port can run all HAProxy commands, without a password";
            let fix = "stats socket /run/haproxy/admin.sock mode 660 level admin";
            if is_loopback(address) {
                found.warning(line, "open-admin", format!("{problem}; here this means every user of this host"), fix);
            } else {
                found.error(line, "open-admin", problem, fix);
            }
        }
    }
}

/// Whether the condition is true for all clients.
fn admits_all(line: &Line) -> bool {
    let Some(condition) = condition(&line.words).1 else { return true };
    let text = condition.words.join(" ");
    if condition.unless {
        text == "FALSE" || text == "{ always_false }"
    } else {
        text == "TRUE" || text == "{ always_true }"
    }
}

fn is_loopback(address: &str) -> bool {
    let address = ["ipv4@", "ipv6@"].iter().find_map(|prefix| address.strip_prefix(prefix)).unwrap_or(address);
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
