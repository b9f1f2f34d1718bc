//! Mistakes of new users: a clear message, the right exit code, and no process that keeps running.

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Output};

use cluster_tests::node::{NodeConfig, binary};

/// Runs `banmesh` with these arguments in its own folder.
fn banmesh(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FAIL2BAN_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).current_dir(folder).output().unwrap()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

/// Asserts that a node with this configuration exits with 1 and a message that contains `expected`.
fn refuses(configuration: &str, expected: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.yaml"), configuration).unwrap();
    let output = banmesh(folder.path(), &["run"]);
    assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
    for text in expected {
        assert!(printed(&output).contains(text), "`{text}` is not in:\n{}", printed(&output));
    }
}

#[test]
fn all_errors_in_a_file_are_reported_at_once_with_lines() {
    let folder = tempfile::tempdir().unwrap();
    let file = "ban:\n  max_atempts: 3\n  time_window: 5 minutes\nsyslog:\n  patterns:\n    - { name: x, regex: '(' }\nspoa:\n  port: 99999\n";
    std::fs::write(folder.path().join("config.yaml"), file).unwrap();
    for arguments in [&["check", "--offline"][..], &["run"]] {
        let output = banmesh(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(1));
        for text in [
            "config.yaml:2: ban.max_atempts: unknown key; did you mean ban.max_attempts?",
            "config.yaml:3: ban.time_window",
            "config.yaml:6: syslog.patterns",
            "config.yaml:8: spoa.port",
        ] {
            assert!(printed(&output).contains(text), "{arguments:?}: `{text}` is not in:\n{}", printed(&output));
        }
    }
}

#[test]
fn a_port_in_use_names_the_key() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let syslog = format!(
        "{{ node: {{ data_dir: data }}, api: {{ enabled: false }}, spoa: {{ enabled: false }}, syslog: {{ address: '{}' }} }}",
        taken.local_addr().unwrap()
    );
    refuses(&syslog, &["syslog.address", "syslog.reuse_port"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let spoa = format!(
        "{{ node: {{ data_dir: data }}, api: {{ enabled: false }}, syslog: {{ enabled: false }}, spoa: {{ address: 127.0.0.1, port: {} }} }}",
        taken.local_addr().unwrap().port()
    );
    refuses(&spoa, &["spoa.port"]);
}

#[test]
fn errors_about_unusable_files_say_what_to_do() {
    refuses("node: { data_dir: /proc/nowhere }", &["node.data_dir", "/proc/nowhere"]);
    refuses(
        "cluster: { enabled: true, listen: '0.0.0.0:0', seeds: ['127.0.0.1:1'] }\nnode: { data_dir: data }",
        &["secret_file"],
    );
    refuses(
        "api: { address: 0.0.0.0 }\nnode: { data_dir: data }\nspoa: { enabled: false }\nsyslog: { enabled: false }",
        &["api"],
    );
    let folder = tempfile::tempdir().unwrap();
    let output = banmesh(folder.path(), &["--config", "missing.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(printed(&output).contains("missing.yaml"), "{}", printed(&output));
}

#[test]
fn a_second_node_in_the_same_data_directory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let node = NodeConfig::new().set("node.data_dir", data.to_string_lossy().into_owned()).start();
    let second = format!(
        "{{ node: {{ data_dir: '{}' }}, api: {{ enabled: false }}, syslog: {{ enabled: false }}, spoa: {{ enabled: false }} }}",
        data.display()
    );
    refuses(&second, &["another node runs with this data directory"]);
    node.ban_by_log("198.51.100.1".parse().unwrap());
}

#[test]
fn invalid_targets_are_reported_without_a_running_node() {
    let folder = tempfile::tempdir().unwrap();
    for command in [
        &["ban", "1.2.3.4/8"][..],
        &["ban", "192.0.2.1", "1.2.3.4/8"],
        &["unban", "1.2.3.4/8"],
        &["allow", "1.2.3.4/8"],
        &["disallow", "1.2.3.4/8"],
        &["purge", "--network", "1.2.3.4/8", "--yes"],
    ] {
        let output = banmesh(folder.path(), &[command, &["--socket", "admin.sock"]].concat());
        assert_eq!(output.status.code(), Some(2), "{command:?}: {}", printed(&output));
        assert!(printed(&output).contains("write 1.0.0.0/8 for the network"), "{command:?}: {}", printed(&output));
    }
}

#[test]
fn commands_without_a_running_node_name_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    let output = banmesh(folder.path(), &["status", "--socket", socket.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3), "{}", printed(&output));
    assert!(printed(&output).contains("none.sock"), "{}", printed(&output));
    let output = banmesh(folder.path(), &["bann"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(printed(&output).contains("ban"), "{}", printed(&output));
}
