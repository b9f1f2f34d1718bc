//! The configuration through its public interface: file and environment in, values or all errors out.

use std::path::Path;

use banmesh::config::{Config, ConfigErrors, Loaded, Origin, load, resolve};

fn read(yaml: &str) -> Result<Loaded, ConfigErrors> {
    read_with(yaml, &[])
}

fn read_with(yaml: &str, environment: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    resolve(Some((Path::new("config.yaml"), yaml.as_bytes())), environment)
}

/// The errors of `yaml`, one per element.
fn errors(yaml: &str) -> Vec<String> {
    errors_with(yaml, &[])
}

fn errors_with(yaml: &str, environment: &[(&str, &str)]) -> Vec<String> {
    match read_with(yaml, environment) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.errors.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn an_empty_file_means_the_defaults() {
    for text in ["", "# nothing\n", "---\n", "ban:\nsyslog:\n  # address: x\n"] {
        let loaded = read(text).unwrap();
        assert_eq!(loaded.config, Config::default(), "{text:?}");
        let warnings: Vec<&str> = loaded.warnings.iter().map(|warning| warning.key.as_str()).collect();
        assert_eq!(warnings, ["spoa.allowed_clients"], "{text:?}");
    }
}

/// YAML 1.1, which Helm and others write, makes `true` of `on`.
#[test]
fn truth_values_switch_evidence_on_and_off() {
    let written = read("evidence: { known: true, names: false, networks: on }\n").unwrap().config;
    let meant = read("evidence: { known: on, names: 'off', networks: 'on' }\n").unwrap().config;
    assert_eq!(written, meant);
    assert_eq!(errors("evidence: { known: 1 }\n").len(), 1);
}

#[test]
fn a_configuration_of_webfail2ban_is_accepted() {
    let loaded = read(
        r#"
syslog:
  address: "0.0.0.0:5514"
  protocol: tcp
  allowed_senders: [10.0.0.0/8]
  patterns:
    - name: dovecot
      regex: 'dovecot: auth failed.*rip=([0-9a-fA-F.:]+)'
      ip_group: 1
      severity: 4
      description: failed login
spoa: { address: 127.0.0.1, port: 12346, max_clients: 7, read_timeout: 1m30s, enabled: true }
ban:
  initial_ban_time: 10m
  escalation_factor: 3
api:
  basic_auth:
    users: { alice: s3cret }
    enabled: true
"#,
    )
    .unwrap();
    let config = loaded.config;
    assert_eq!(config.syslog.address, "0.0.0.0:5514".parse().unwrap());
    assert!(config.syslog.protocol.tcp() && !config.syslog.protocol.udp());
    assert_eq!(config.syslog.patterns[0].ip_group, Some(1));
    assert_eq!(config.spoa.listen(), "127.0.0.1:12346".parse().unwrap());
    assert_eq!(config.spoa.read_timeout.0.as_secs(), 90);
    assert_eq!(config.ban.escalation_factor, 3.0);
    assert_eq!(config.ban.max_attempts, 5);
    assert_eq!(config.api.basic_auth.users["alice"].expose(), "s3cret");
    assert_eq!(loaded.origins.of("spoa.port"), Origin::File { path: Path::new("config.yaml").into(), line: 12 });
    assert_eq!(loaded.origins.of("ban.max_attempts"), Origin::Default);
    assert!(!format!("{:?}", config.api).contains("s3cret"));
}

#[test]
fn all_errors_are_reported_at_once_with_lines() {
    let found = errors(
        "ban:\n  max_atempts: 3\n  time_window: 10\n  ipv4_prefix: 300\nspoa:\n  port: '12345'\n  port: 1\n  enabled: yes\nsylog: {}\nallowlist: [10.0.0.0/8, banana]\n",
    );
    assert_eq!(
        found,
        [
            "config.yaml:2: ban.max_atempts: unknown key; did you mean ban.max_attempts?",
            "config.yaml:3: ban.time_window: `10` is not a duration: write a number and a unit, such as 500ms, 30s, 5m, 24h, 3d, or a sum such as 1h30m",
            "config.yaml:4: ban.ipv4_prefix: `300` is not a whole number (0 to 255)",
            "config.yaml:6: spoa.port: expected a port, found text \"12345\"; remove the quotes",
            "config.yaml:7: spoa.port: duplicate key; it is already set in line 6",
            "config.yaml:8: spoa.enabled: expected true or false, found text \"yes\"",
            "config.yaml:9: sylog: unknown key; did you mean syslog?",
            "config.yaml:10: allowlist[1]: `banana` is neither an IP address nor a network such as 192.0.2.0/24 or 2001:db8::/32",
        ]
    );
}

#[test]
fn errors_in_patterns_are_reported_with_lines() {
    let found = errors(
        "syslog:\n  patterns:\n    - {name: a, regex: '(', ip_group: 1}\n    - name: b\n      regex: 'x (\\S+)'\n      ip_group: 2\n    - {name: b, regex: '(x)', ip_grup: 1, severity: 9}\n    - {regex: '(?P<ip>x)', ip_group: ip}\n",
    );
    assert_eq!(
        found,
        [
            "config.yaml:3: syslog.patterns[0].regex: is not a valid regular expression: unclosed group",
            "config.yaml:6: syslog.patterns[1].ip_group: there is no group \"2\" in the regex, which has 1; put ( ) around the address",
            "config.yaml:7: syslog.patterns[2].ip_grup: unknown key; did you mean ip_group?",
            "config.yaml:7: syslog.patterns[2].severity: 9 is not a severity from 1 to 6",
            "config.yaml:8: syslog.patterns[3].name: is missing",
        ]
    );
    let loaded = read("syslog: {patterns: [{name: n, regex: '(a)(?P<ip>x)', ip_group: ip}]}").unwrap();
    assert_eq!(loaded.config.syslog.patterns[0].ip_group, Some(2));
    let loaded = read("syslog: {patterns: [{name: n, regex: 'user (\\S+) from <HOST>$'}]}").unwrap();
    assert_eq!(loaded.config.syslog.patterns[0].ip_group, None);
}

#[test]
fn variables_override_the_file() {
    let environment = [
        ("FAIL2BAN_SPOA_PORT", "4000"),
        ("FAIL2BAN_ALLOWLIST", "10.0.0.0/8, 192.0.2.1"),
        ("FAIL2BAN_API_BASIC_AUTH_USERS", r#"{"bob": "pw, with comma"}"#),
        ("FAIL2BAN_SYSLOG_PATTERNS", "[{name: p, regex: 'from (.+)'}]"),
        ("FAIL2BAN_CLUSTER_SEEDS", "a:1,[::1]:2"),
        ("HOME", "/"),
    ];
    let loaded = read_with("spoa: {port: 3000}", &environment).unwrap();
    assert_eq!(loaded.config.spoa.port, 4000);
    assert_eq!(loaded.config.allowlist.len(), 2);
    assert_eq!(loaded.config.api.basic_auth.users["bob"].expose(), "pw, with comma");
    assert_eq!(loaded.config.syslog.patterns[0].name, "p");
    assert_eq!(loaded.config.cluster.seeds[1].to_string(), "[::1]:2");
    assert_eq!(loaded.origins.of("spoa.port"), Origin::Variable("FAIL2BAN_SPOA_PORT".to_owned()));
}

#[test]
fn misspelled_variables_are_errors_and_service_links_are_ignored() {
    assert_eq!(
        errors_with("", &[("FAIL2BAN_BAN_MAX_ATEMPTS", "3"), ("FAIL2BAN_SPOA_PORT", "x")]),
        [
            "FAIL2BAN_BAN_MAX_ATEMPTS: unknown variable; did you mean FAIL2BAN_BAN_MAX_ATTEMPTS?",
            "FAIL2BAN_SPOA_PORT: spoa.port: `x` is not a port (0 to 65535)",
        ]
    );
    let links = [
        ("FAIL2BAN_SPOA_PORT", "tcp://10.0.0.1:12345"),
        ("FAIL2BAN_SPOA_PORT_12345_TCP_ADDR", "10.0.0.1"),
        ("FAIL2BAN_SPOA_SERVICE_HOST", "10.0.0.1"),
        ("FAIL2BAN_SPOA_SERVICE_PORT_SPOP", "12345"),
    ];
    let loaded = read_with("", &links).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.warnings.len(), 5);
    assert!(loaded.warnings[0].to_string().contains("enableServiceLinks: false"), "{}", loaded.warnings[0]);
}

#[test]
fn contradictions_are_errors() {
    let found = errors(
        "ban: {initial_ban_time: 2h, max_ban_time: 1h, escalation_factor: 0.5, max_attempts: 0, time_window: 0}\napi: {port: 12345}\ncluster: {enabled: true, listen: '0.0.0.0:1'}\nnginx: {enabled: true, port: 1}\n",
    );
    let has = |key: &str, words: &str| {
        let hit = found.iter().any(|line| line.contains(key) && line.contains(words));
        assert!(hit, "{key} {words}: {found:#?}");
    };
    has("config.yaml:1: ban.max_attempts", "at least 1");
    has("ban.escalation_factor", "at least 1");
    has("ban.max_ban_time", "(1h) must not be shorter");
    has("ban.time_window", "at least 1s");
    has("config.yaml:2: api.port", "port 12345 is also used by spoa.port");
    has("config.yaml:3: cluster.enabled", "set cluster.secret_file");
    has("config.yaml:4: nginx.port", "port 1 is also used by cluster.listen");
    assert_eq!(found.len(), 7, "{found:#?}");
    assert!(errors("node: {id: 'a b'}")[0].starts_with("config.yaml:1: node.id: `a b` is not a node id"));
}

#[test]
fn other_sites_are_named_with_an_address_and_none_is_this_one() {
    for (sites, expected) in [
        ("paris", "`paris` is not name@host:port, such as paris@node1.paris.example.org:12350"),
        ("'a b@node:1'", "`a b@node:1` is not name@host:port"),
        ("'@node:1'", "`@node:1` is not name@host:port"),
        ("paris@node", "`node` is not host:port"),
        ("banmesh@node:1", "banmesh is this site: every site needs a cluster.name of its own"),
    ] {
        let found = errors(&format!("cluster: {{sites: [{sites}]}}"));
        assert!(found.len() == 1 && found[0].contains(expected), "{sites}: {found:#?}");
    }
    let loaded = read("cluster: {sites: ['paris@node1:1', 'rome@[2001:db8::1]:2', 'paris@node2:1']}").unwrap();
    let named: Vec<String> =
        loaded.config.cluster.sites.iter().map(|one| format!("{}@{}", one.site, one.address)).collect();
    assert_eq!(named, ["paris@node1:1", "rome@[2001:db8::1]:2", "paris@node2:1"]);
}

#[test]
fn a_section_without_effect_is_a_warning() {
    let loaded = read("envoy: {port: 9001}").unwrap();
    assert_eq!(
        loaded.warnings[0].to_string(),
        "config.yaml:1: envoy.port: without effect, because envoy.enabled is false; remove the section"
    );
}

#[test]
fn unsupported_yaml_is_refused_with_its_line() {
    for (text, expected) in [
        ("ban: &a {}\nspoa: *a\n", "config.yaml:2: aliases"),
        ("ban: !x {}\n", "config.yaml:1: tags"),
        ("ban: {}\n---\nspoa: {}\n", "config.yaml:2: a second document"),
        ("ban: [\n", "not valid YAML"),
        ("ban: {}\n  x: 1\n", "not valid YAML"),
        ("[a]: b\n", "cannot be a key"),
        ("- a\n", "expected a section"),
        (&"[".repeat(20), "nested too deeply"),
        (&"[".repeat(100_000), "not valid YAML"),
    ] {
        let found = errors(text);
        assert!(found[0].contains(expected), "{text:.40?}: {found:?}");
    }
    let found = resolve(Some((Path::new("c"), b"ban: {}\nx\xff")), []).unwrap_err();
    assert_eq!(found.to_string(), "c:2: not UTF-8; save the file as UTF-8");
}

#[test]
fn an_unreadable_file_is_reported_together_with_other_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("missing.yaml");
    let environment = [("FAIL2BAN_SPOA_PRT".to_owned(), "1".to_owned())];
    let found = load(Some(&path), environment.clone()).unwrap_err();
    assert!(found.errors[0].to_string().starts_with(&format!("{}: cannot be read: ", path.display())), "{found}");
    assert_eq!(found.errors[1].to_string(), "FAIL2BAN_SPOA_PRT: unknown variable; did you mean FAIL2BAN_SPOA_PORT?");
    assert!(load(Some(dir.path()), []).is_err(), "a directory");

    std::fs::write(&path, "spoa: {port: 7}\n").unwrap();
    let loaded = load(Some(&path), []).unwrap();
    assert_eq!((loaded.config.spoa.port, loaded.path), (7, Some(path)));
}

#[test]
fn errors_never_show_secrets() {
    for yaml in [
        "api: {basic_auth: {password: [hunter2]}}",
        "api: {basic_auth: {password: {a: hunter2}}}",
        "api: {basic_auth: hunter2}",
        "api: {basic_auth: {users: hunter2}}",
        "api: {basic_auth: {users: {alice: [hunter2]}}}",
        "api: {basic_auth: {enabled: true, password: hunter2}}",
        "api: {basic_auth: {password: 31337, users: {alice: 31337}}}",
    ] {
        let found = errors(yaml).join("\n");
        assert!(!found.is_empty(), "{yaml}");
        assert!(!found.contains("hunter2") && !found.contains("31337"), "{found}");
    }
}
