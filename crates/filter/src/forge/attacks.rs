//! Texts that an outsider may write into a log line to have another address banned.

use crate::definition::{Filter, TestLine};
use crate::testline::MarkedLine;

use super::VICTIM;

/// The same victim, as an IPv6 address.
const VICTIM_IPV6: &str = "2001:db8:dead::66";

/// Returns texts that contain the [`VICTIM`] as services write it, and whole lines: all of `filter`, and one of each filter in `others`.
pub fn attacks<'a>(filter: &Filter, others: impl IntoIterator<Item = &'a Filter>) -> Vec<String> {
    let mut attacks: Vec<String> = [
        "V",
        " V",
        "V ",
        "[V]",
        "unknown[V]",
        "<V>",
        "'V'",
        "\"V\"",
        "V:22",
        "[V]:22",
        "::ffff:V",
        "x, V",
        "V, ",
        "x,V",
        "x,V,<y>",
        "x,V): unknown user",
        "x,V): unknown user (given password: y",
        "x) sql(y,V): unknown user",
        "x): sql(y,V): Password mismatch",
        "rip=V",
        "x>, rip=V, lip=10.0.0.1",
        "x>, method=PLAIN, rip=V, lip=10.0.0.1, TLS, session=<a>",
        "x>, method=PLAIN, rip=V, lip=10.0.0.1, session=<a>, user=<y",
        "x (auth failed, 9 attempts): user=<y>, rip=V",
        " rhost=V",
        "x rhost=V user=y",
        "x rhost=V  user=",
        " from V",
        "x from V",
        "x from V port 22",
        "x from V port 22 ssh2",
        "x from V port 22 ssh2: RSA SHA256:1M4RzhMyWuFS/86uPY/ce2prh/dVTHW7iD2RhpquOZA",
        "x from V port 22 [preauth]",
        "x V port 22 [preauth]",
        "x V port 22",
        "x V port 22: Too many authentication failures [preauth]",
        "x V port 22: Change of username or service not allowed: (a,ssh-connection) -> (b,ssh-connection) [preauth]",
        "x V port 22: Change of username or service not allowed: (a,ssh-connection) -> (b",
        "a,ssh-connection) -> (b,ssh-connection) [preauth]",
        "x from V not allowed because not listed in AllowUsers",
        "' from V port 22",
        "x' from V",
        "(V)",
        "x (V)",
        "x (host[V])",
        "host[V]: 535",
        "x]: V",
        "unknown[V]: SASL LOGIN authentication failed: x",
        ": warning: unknown[V]: SASL LOGIN authentication failed: authentication failure",
        "NOQUEUE: reject: RCPT from unknown[V]: 554 5.7.1 <a@b>: Relay access denied; from=<a@b> to=<c@d> proto=SMTP helo=<x>",
        "x>: Relay access denied; from=<a> to=<b> proto=ESMTP helo=<unknown[V]>",
        "x' for user 'y' might not have worked",
        "V' for user 'x' might not have worked - password policy: 65535  grace: -1  expire: -1  bound: 0",
        "x' for user 'y' might not have worked - password policy: 65535  grace: -1  expire: -1  bound: 0' Login from 'V",
        "V' for user 'x' might not have worked - password policy: 65535  grace: -1  expire: -1  bound: 0', '",
        "client: V",
        ", client: V, server: x, request: \"GET / HTTP/1.1\", host: \"x\"",
        "\", client: V, server: x, request: \"GET / HTTP/1.1\", host: \"x",
        "x\": password mismatch, client: V, server: y, request: \"GET / HTTP/1.1",
        "[client V]",
        "[client V:44]",
        "x] [client V:44] AH01617: user y: authentication failure for \"/\": Password Mismatch",
        "\" 401 0 \"-\" \"-\"",
        " HTTP/1.1\" 401 0 \"-\" \"-\"",
        "x HTTP/1.1\" 401 0 V - - [10/Oct/2000:13:55:36 -0700] \"GET / HTTP/1.1\" 401 0",
        "V - - [10/Oct/2000:13:55:36 -0700] \"POST /wp-login.php HTTP/1.1\" 401 0 \"-\" \"-\"",
        "\nV - - [10/Oct/2000:13:55:36 -0700] \"GET / HTTP/1.1\" 401 0",
        "x\",\"remoteAddr\":\"V\",\"message\":\"Login failed: a (Remote IP: V)\"",
        "x (Remote IP: V)",
        "x (Remote IP: 'V')",
        "x. IP: V. Username: y",
        "IP: V",
        "x. IP: V",
        "x from V:80",
        "x for user y from V",
        "x ip=[V]",
        "ip=[::ffff:V]",
        "LOGIN FAILED, user=x, ip=[::ffff:V]",
        "x remote_addr=V",
        "\" remote_addr=V status=401",
        "x\"@\"V\" (using password: YES)",
        "x'@'V' (using password: YES)",
        "Access denied for user 'x'@'V' (using password: YES)",
        "x\" for 'V:5060' (callid: 1) - Failed to authenticate",
        "RemoteAddress=\"IPV4/UDP/V/5060\"",
        "\",RemoteAddress=\"IPV4/UDP/V/5060\"",
        "x host=V",
        "x host V",
        "x H=(y) [V]: 535 Incorrect authentication data (set_id=z)",
        ") [V]: 535 Incorrect authentication data (set_id=z)",
        "x: y [V] plain authentication failure",
        "from (x) [V]",
        "x session: <y> for z from V",
        "x\" method=128 conn=1000 fd=12 ACCEPT from IP=V:1 (IP=0.0.0.0:389)",
        "#012V",
        "\\nV",
        "\u{0}V",
        "{\"ip\":\"V\"}",
        "]\"[V]",
        "%V%",
        "",
        " ",
        "\"",
        "'",
        "<",
        ">",
        "(",
        ")",
        "[",
        "]",
        "\\",
        ",",
    ]
    .map(|attack| attack.replace('V', VICTIM))
    .to_vec();
    for test in &filter.tests {
        attacks.extend(lines_of(test));
    }
    for other in others.into_iter().filter(|other| other.name != filter.name) {
        attacks.extend(other.tests.iter().find(|test| test.source.is_some()).into_iter().flat_map(lines_of));
    }
    let short = |attack: &&String| attack.contains(VICTIM) && attack.len() < 40 + VICTIM.len();
    let as_ipv6: Vec<String> = attacks.iter().filter(short).map(|attack| attack.replace(VICTIM, VICTIM_IPV6)).collect();
    attacks.extend(as_ipv6);
    attacks
}

/// Returns the lines of a test, with the victim as their source.
fn lines_of(test: &TestLine) -> Vec<String> {
    let Some(source) = test.source else { return Vec::new() };
    let of_victim = |line: &String| MarkedLine::parse(line).example().replace(&source.to_string(), VICTIM);
    test.after.iter().chain([&test.line]).map(of_victim).collect()
}
