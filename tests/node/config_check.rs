//! `banmesh check` as a process: its output and exit codes.

use std::path::Path;
use std::process::{Command, Output};

/// Runs banmesh in `dir` without the environment of this process.
fn banmesh(dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_banmesh"));
    command.current_dir(dir).args(arguments).env_clear().envs(environment.iter().copied()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn all_errors_are_printed_at_once_and_the_exit_code_is_1() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.yaml"), "ban:\n  max_atempts: 3\n  time_window: x\n").unwrap();
    for arguments in [&["check"][..], &["-t"], &["check", "--config", "config.yaml"]] {
        let output = banmesh(dir.path(), arguments, &[("FAIL2BAN_SPOA_PRT", "1")]);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let err = text(&output.stderr);
        for expected in [
            "config.yaml:2: ban.max_atempts: unknown key; did you mean ban.max_attempts?",
            "config.yaml:3: ban.time_window: `x` is not a duration",
            "FAIL2BAN_SPOA_PRT: unknown variable; did you mean FAIL2BAN_SPOA_PORT?",
        ] {
            assert!(err.contains(expected), "{arguments:?}: {err}");
        }
        assert_eq!(text(&output.stdout), "");
    }
}

#[test]
fn a_valid_configuration_exits_with_0_and_can_be_printed() {
    let dir = tempfile::tempdir().unwrap();
    let yaml = "api: {basic_auth: {enabled: true, username: a, password: hush}}\n";
    std::fs::write(dir.path().join("config.yaml"), yaml).unwrap();
    let environment = [("FAIL2BAN_BAN_MAX_ATTEMPTS", "9")];
    let output = banmesh(dir.path(), &["check", "--offline"], &environment);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "./config.yaml: the configuration is valid\n");

    let output = banmesh(dir.path(), &["check", "--offline", "--print"], &environment);
    let printed = text(&output.stdout);
    let line = |key: &str| printed.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
    assert!(line("ban.max_attempts: 9 ").ends_with("# FAIL2BAN_BAN_MAX_ATTEMPTS"), "{printed}");
    assert!(line("api.basic_auth.password: (hidden) ").ends_with("# ./config.yaml:1"), "{printed}");
    assert!(line("spoa.port: 12345 ").ends_with("# default"), "{printed}");
    assert!(!printed.contains("hush"));

    let output = banmesh(dir.path(), &["check", "--offline", "--print", "--json"], &environment);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["ok"], true);
    let settings = answer["configuration"]["settings"].as_array().unwrap();
    let attempts = settings.iter().find(|row| row["key"] == "ban.max_attempts").unwrap();
    assert_eq!((&attempts["value"], &attempts["reload"]), (&9.into(), &true.into()));
    assert!(!text(&output.stdout).contains("hush"));
}

#[test]
fn a_port_in_use_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let yaml = format!(
        "syslog: {{enabled: false}}\napi: {{enabled: false}}\nnode: {{data_dir: .}}\nspoa:\n  address: 127.0.0.1\n  port: {}\n",
        taken.local_addr().unwrap().port()
    );
    std::fs::write(dir.path().join("config.yaml"), yaml).unwrap();
    let output = banmesh(dir.path(), &["check"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("config.yaml:6: spoa.port: 127.0.0.1:"), "{}", text(&output.stderr));
}

#[test]
fn filters_that_recognise_no_logins_are_named_while_evidence_needs_them() {
    let dir = tempfile::tempdir().unwrap();
    let warnings = |yaml: &str| {
        std::fs::write(dir.path().join("config.yaml"), yaml).unwrap();
        let output = banmesh(dir.path(), &["check", "--offline"], &[]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    let shown = warnings("filters: {enabled: [sshd, gitea]}\n");
    assert!(shown.contains("filter `gitea` recognises no logins") && !shown.contains("`sshd`"), "{shown}");
    assert!(shown.contains("evidence.networks waits while it has failures"), "{shown}");
    let shown = warnings("filters: {enabled: [sshd, gitea]}\nevidence: {blind: [gitea]}\n");
    assert!(shown.contains("evidence.names does little") && !shown.contains("evidence.networks"), "{shown}");
    // Nothing needs them, or they read no accounts, or they recognise logins.
    for yaml in [
        "filters: {enabled: [sshd, gitea]}\nevidence: {names: off, networks: off}\n",
        "filters: {enabled: [sshd, nginx]}\n",
        "{}\n",
    ] {
        assert!(!warnings(yaml).contains("recognises no logins"), "{yaml}");
    }
}
