//! The commands: files, exit codes, and output.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::haproxy_check::haproxy_traps::{CFG, SPOE};

fn banmesh(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_banmesh"));
    command.args(["haproxy"]).args(arguments).current_dir(folder).env("NO_COLOR", "1");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FAIL2BAN_")) {
        command.env_remove(name);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let output: Output = banmesh(folder, arguments).output().unwrap();
    (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
}

/// A folder with the correct configuration, and a configuration of banmesh.
fn site() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("haproxy.cfg"), CFG.replace("@spoe@", "spoe.conf")).unwrap();
    std::fs::write(folder.path().join("spoe.conf"), SPOE).unwrap();
    std::fs::write(folder.path().join("config.yaml"), "spoa:\n  address: 127.0.0.1\n").unwrap();
    folder
}

#[test]
fn the_exit_code_distinguishes_errors_warnings_and_unreadable_files() {
    let folder = site();
    let path = folder.path();
    let check = |arguments: &[&str]| run(path, &[&["check", "--haproxy", "3.2"], arguments].concat());
    let (code, said) = check(&["haproxy.cfg"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("0 errors, 0 warnings, 2 notes (HAProxy 3.2)"), "{said}");

    let cfg = CFG.replace("@spoe@", "spoe.conf");
    std::fs::write(path.join("warned.cfg"), cfg.replace("    option spop-check\n", "")).unwrap();
    assert_eq!(check(&["warned.cfg"]).0, 0);
    assert_eq!(check(&["--strict", "warned.cfg"]).0, 1);

    std::fs::write(path.join("wrong.cfg"), cfg.replace("txn.ip.banned", "txn.banned")).unwrap();
    let (code, said) = check(&["wrong.cfg"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("wrong.cfg:22: error: `txn.banned` is never set"), "{said}");
    assert!(said.contains("fix: var(txn.ip.banned)"), "{said}");

    for unreadable in [
        vec!["missing.cfg"],
        vec!["haproxy.cfg", "--spoe", "missing.conf"],
        vec!["--config", "missing.yaml", "haproxy.cfg"],
    ] {
        assert_eq!(check(&unreadable).0, 2, "{unreadable:?}");
    }
    assert_eq!(run(path, &["check", "--haproxy", "new", "haproxy.cfg"]).0, 2);
}

#[test]
fn json_output_has_the_same_findings_as_text() {
    let folder = site();
    let (code, said) = run(folder.path(), &["check", "--haproxy", "2.6", "--json", "haproxy.cfg"]);
    let answer: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &answer["ok"], &answer["haproxy"]), (0, &true.into(), &"2.6".into()));
    let first = &answer["findings"][0];
    assert_eq!((&first["code"], &first["severity"], &first["line"]), (&"fail-open".into(), &"note".into(), &22.into()));
}

#[test]
fn standard_input_directories_and_several_files_are_read() {
    let folder = site();
    let path = folder.path();
    let mut child = banmesh(path, &["check", "--haproxy", "3.0", "-", "--spoe", "spoe.conf"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(CFG.replace("txn.ip.banned", "txn.banned").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("<stdin>:22: error"), "{}", text(&output.stdout));

    // The same configuration in two files of a directory, which HAProxy reads in order.
    let parts = path.join("parts");
    std::fs::create_dir(&parts).unwrap();
    let cfg = CFG.replace("@spoe@", "spoe.conf");
    let at = cfg.find("backend agents").unwrap();
    std::fs::write(parts.join("10-front.cfg"), &cfg[..at]).unwrap();
    std::fs::write(parts.join("20-agents.cfg"), &cfg[at..]).unwrap();
    std::fs::write(parts.join("30-no.txt"), "frontend web\n").unwrap();
    for arguments in [vec!["parts"], vec!["-f", "parts/10-front.cfg", "-f", "parts/20-agents.cfg"]] {
        let (code, said) = run(path, &[vec!["check", "--haproxy", "3.2", "--strict"], arguments].concat());
        assert_eq!(code, 0, "{said}");
    }
    let (code, said) = run(path, &["check", "--haproxy", "3.2", "parts/10-front.cfg"]);
    assert_eq!(code, 1);
    assert!(said.contains("unknown-backend"), "{said}");
}

/// Relative names start at the working directory, at `default-path`, or else at the folder of the configuration.
#[test]
fn spoe_files_are_found_as_haproxy_finds_them() {
    let folder = site();
    let path = folder.path();
    let elsewhere = tempfile::tempdir().unwrap();
    let file = path.join("haproxy.cfg").display().to_string();
    let (code, said) = run(elsewhere.path(), &["check", "--haproxy", "3.2", &file]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("spoe-elsewhere"), "{said}");
    let cfg = CFG.replace("@spoe@", "spoe.conf").replace("global\n", "global\n    default-path config\n");
    std::fs::write(&file, &cfg).unwrap();
    let (code, said) = run(elsewhere.path(), &["check", "--haproxy", "3.2", &file]);
    assert!(code == 0 && !said.contains("spoe-elsewhere"), "{said}");
    std::fs::remove_file(path.join("spoe.conf")).unwrap();
    let (code, said) = run(path, &["check", "--haproxy", "3.2", &file]);
    assert!(code == 1 && said.contains("no-spoe-file"), "{said}");
}

#[test]
fn agents_are_recognised_by_the_port_of_the_node_s_configuration() {
    let folder = site();
    std::fs::write(folder.path().join("config.yaml"), "spoa:\n  port: 4711\n").unwrap();
    let (_, said) = run(folder.path(), &["check", "--haproxy", "3.2", "haproxy.cfg"]);
    assert!(said.contains("answers at 0.0.0.0:4711") && said.contains("config.yaml:2"), "{said}");
    assert!(said.contains("fix: server primary 127.0.0.1:4711"), "{said}");
}

#[test]
fn an_spoe_file_given_as_the_configuration_is_reported() {
    let folder = site();
    let (code, said) = run(folder.path(), &["check", "--haproxy", "3.2", "spoe.conf"]);
    assert!(code == 1 && said.contains("[spoe-file]"), "{said}");
}

#[test]
fn generated_files_are_never_overwritten_and_pass_the_check() {
    let folder = site();
    let path = folder.path();
    std::fs::write(path.join("config.yaml"), "spoa:\n  address: 127.0.0.1\n  port: 4711\n").unwrap();
    let make =
        |more: &[&str]| run(path, &[&["config", "--haproxy", "3.0", "--output", "made", "--retry"], more].concat());
    let (code, said) = make(&[]);
    assert_eq!(code, 0, "{said}");
    let cfg = std::fs::read_to_string(path.join("made/haproxy.cfg")).unwrap();
    let spoe_path = path.canonicalize().unwrap().join("made/spoe-ip-reputation.conf");
    assert!(cfg.contains(&format!("config {}", spoe_path.display())), "{cfg}");
    assert!(cfg.contains("server primary 127.0.0.1:4711") && cfg.contains("mode tcp"), "{cfg}");
    let (code, said) = run(path, &["check", "--haproxy", "3.0", "--strict", "made/haproxy.cfg"]);
    assert_eq!(code, 0, "{said}");

    std::fs::write(path.join("made/haproxy.cfg"), "mine").unwrap();
    std::fs::remove_file(&spoe_path).unwrap();
    let (code, said) = make(&[]);
    assert!(code == 1 && said.contains("--force"), "{said}");
    assert!(!spoe_path.exists(), "nothing is written where something is in the way");
    assert_eq!(std::fs::read_to_string(path.join("made/haproxy.cfg")).unwrap(), "mine");
    assert_eq!(make(&["--force"]).0, 0);
    assert_eq!(std::fs::read_to_string(path.join("made/haproxy.cfg")).unwrap(), cfg);
}

/// One haproxy.cfg can have frontends that query at an event and frontends whose rules query.
#[test]
fn files_generated_with_other_options_can_coexist() {
    let folder = site();
    let config = |part: &str, more: &[&str]| {
        run(folder.path(), &[&["config", "--haproxy", "3.2", "--retry", "--part", part], more].concat()).1
    };
    let etc = |text: &str| text.replace("/etc/haproxy/", &format!("{}/", folder.path().display()));
    let mail = config("frontend", &["--mode", "tcp"]).replace("mail-backend", "web-backend");
    let cfg = config("complete", &["--per-connection"]) + &mail;
    std::fs::write(folder.path().join("both.cfg"), etc(&cfg)).unwrap();
    for (name, options) in [
        ("spoe-ip-reputation-on-demand.conf", vec!["--per-connection"]),
        ("spoe-ip-reputation.conf", vec!["--mode", "tcp"]),
    ] {
        assert!(cfg.contains(name), "{cfg}");
        std::fs::write(folder.path().join(name), config("spoe", &options)).unwrap();
    }
    let (code, said) = run(folder.path(), &["check", "--haproxy", "3.2", "--strict", "both.cfg"]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn conflicting_options_are_refused() {
    let folder = site();
    for (arguments, word) in [
        (vec!["--mode", "tcp", "--per-connection"], "--mode http"),
        (vec!["--mode", "tcp", "--trusted-proxy", "10.0.0.0/8"], "--proxy-protocol"),
        (vec!["--per-connection", "--trusted-proxy", "10.0.0.0/8"], "many clients"),
        (vec!["--haproxy", "2.2"], "too old"),
        (vec!["--backup", "a b"], "--backup"),
        (vec!["--bind", ":80\nevil"], "--bind"),
    ] {
        let (code, said) = run(folder.path(), &[vec!["config"], arguments.clone()].concat());
        assert!(code == 1 && said.contains(word), "{arguments:?}: {said}");
    }
}

#[test]
fn parts_and_json_have_the_content_of_the_whole_output() {
    let folder = site();
    let part = |name: &str| run(folder.path(), &["config", "--part", name]).1;
    let whole = run(folder.path(), &["config"]).1;
    for name in ["spoe", "backend", "frontend", "complete"] {
        assert!(!part(name).is_empty() && whole.contains(&part(name)), "{name}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&run(folder.path(), &["config", "--json", "--haproxy", "3.4"]).1).unwrap();
    assert_eq!((&json["haproxy"], &json["written"]), (&"3.4".into(), &false.into()));
    assert_eq!(json["files"][0]["path"], "/etc/haproxy/spoe-ip-reputation.conf");
    assert!(json["files"][1]["text"].as_str().unwrap().contains("mode spop"), "{json:#}");
}

#[test]
fn addresses_without_a_port_are_refused() {
    let folder = site();
    for (option, value, example) in [
        ("--agent", "192.0.2.10", "`192.0.2.10:12345`"),
        ("--backup", "192.0.2.10:", "`192.0.2.10:12345`"),
        ("--agent", "2001:db8::1", "`[2001:db8::1]:12345`"),
        ("--server", "web.example.org", "`web.example.org:8080`"),
        ("--agent", "node:99999", "has no port"),
    ] {
        let (code, said) = run(folder.path(), &["config", option, value]);
        assert_eq!(code, 1, "{option} {value}: {said}");
        assert!(said.contains(&format!("{option}: `{value}` has no port")) && said.contains(example), "{said}");
    }
    for value in ["[2001:db8::1]:12345", "node.example.org:1", "unix@/run/banmesh.sock"] {
        let (code, said) = run(folder.path(), &["config", "--agent", value]);
        assert_eq!(code, 0, "{value}: {said}");
    }
}

#[test]
fn banned_clients_can_be_shown_a_page_with_a_contact() {
    let folder = site();
    let made = folder.path().join("made");
    let (code, said) = run(folder.path(), &["config", "--contact", "abuse@example.org", "--output", "made"]);
    assert_eq!(code, 0, "{said}");
    let page = std::fs::read_to_string(made.join("banned.html")).unwrap();
    assert!(page.contains("mailto:abuse@example.org") && page.contains("%[src]"), "{page}");
    let file = made.canonicalize().unwrap().join("banned.html");
    let cfg = std::fs::read_to_string(made.join("haproxy.cfg")).unwrap();
    assert!(cfg.contains(&format!("lf-file {} ", file.display())), "{cfg}");
    for (arguments, expected) in [
        (&["--contact", "a\"><script>@example.org"][..], "is not an email address or URL"),
        (&["--contact", "nobody"], "is not an email address or URL"),
        (&["--contact", "abuse@example.org", "--mode", "tcp"], "needs --mode http"),
        (&["--part", "page"], "--part page needs --contact"),
    ] {
        let (code, said) = run(folder.path(), &[&["config"], arguments].concat());
        assert_eq!(code, 1, "{arguments:?}");
        assert!(said.contains(expected), "{said}");
    }
}
