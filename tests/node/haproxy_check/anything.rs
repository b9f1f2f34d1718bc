//! Arbitrary text as a configuration.

use banmesh_haproxy::Version;
use proptest::prelude::*;

use crate::haproxy_check::haproxy_traps::{self, TRAPS, spring};
use crate::haproxy_check::{find, node, shown};

/// Pieces of a configuration, which are combined at random.
fn pieces() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "global",
        "defaults",
        "frontend f",
        "backend b",
        "listen l",
        "from",
        "filter spoe engine e config @spoe@",
        "http-request",
        "tcp-request content",
        "deny",
        "send-spoe-group e g",
        "if",
        "unless",
        "{",
        "}",
        "!{",
        "!",
        "||",
        "var(txn.ip.banned)",
        "-m",
        "int",
        "found",
        "eq",
        "lt",
        "99999",
        "acl a",
        "a",
        "set-var(txn.x)",
        "date,sub(txn.x)",
        "\"",
        "'",
        "\\",
        "#",
        "$",
        "\"${A-b}\"",
        ".if version_atleast(3.1)",
        ".else",
        ".endif",
        "spoe-agent x",
        "spoe-message m",
        "spoe-group g",
        "[e]",
        "messages m",
        "groups g",
        "option",
        "var-prefix",
        "ip",
        "timeout processing",
        "event",
        "use-backend b",
        "server s",
        "127.0.0.1:1",
        "check",
        "stats admin",
        "bind",
        ":::80",
        "ssl",
        "stick-table type ip",
        "mode",
        "tcp",
        "http",
        "spop",
        "set-src",
        "hdr_ip(x,1)",
        "\n",
        "\n",
        "\n",
        "\n ",
        " ",
    ]);
    let any = prop_oneof![9 => words.prop_map(str::to_owned), 1 => any::<String>()];
    prop::collection::vec(any, 0..80).prop_map(|pieces| pieces.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_configuration_is_too_strange(cfg in pieces(), spoe in pieces()) {
        for version in [Version::OLDEST, Version::NEWEST] {
            let findings = find(&cfg, &spoe, version, &node());
            let lines = cfg.lines().count().max(spoe.lines().count()).max(1);
            prop_assert!(findings.iter().all(|found| (1..=lines).contains(&found.place.line)), "{}", shown(&findings));
        }
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let text = String::from_utf8_lossy(&bytes);
        let findings = find(&text, &text, Version::NEWEST, &node());
        prop_assert!(!findings.is_empty(), "nobody is asked, and that is said");
    }

    /// A trap is reported whatever else is in the file: unrelated sections change nothing.
    #[test]
    fn other_sections_hide_nothing(index in 0..TRAPS.len(), name in "[a-z]{1,8}") {
        let trap = &TRAPS[index];
        let (cfg, spoe, line) = spring(trap);
        let line = if trap.file == haproxy_traps::File::Cfg { line + 2 } else { line };
        let findings = find(&format!("resolvers {name}\n  nameserver a 192.0.2.1:53\n{cfg}"), &spoe, Version::NEWEST, &node());
        prop_assert!(findings.iter().any(|found| found.code == trap.code && found.place.line == line));
    }
}
