//! `banmesh migrate fail2ban` on the configuration of Debian's package, compared with what fail2ban itself reads.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use banmesh::config::resolve;

/// Where `scripts/install-test-tools` unpacks fail2ban 1.0 and 1.1, or where it is installed. Empty skips the tests, except in CI.
fn packages() -> Vec<PathBuf> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join(".fail2ban");
    let found = [unpacked.clone(), unpacked.join("1.1"), PathBuf::from("/")];
    let mut found: Vec<PathBuf> =
        found.into_iter().filter(|root| root.join("usr/bin/fail2ban-client").is_file()).collect();
    found.truncate(2);
    if found.is_empty() {
        assert!(std::env::var_os("CI").is_none(), "fail2ban is missing; scripts/install-test-tools unpacks it");
        eprintln!("skipped: fail2ban is missing; scripts/install-test-tools unpacks it");
    }
    found
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, target) = {
            let entry = entry.unwrap();
            (entry.path(), to.join(entry.file_name()))
        };
        if path.is_dir() { copy(&path, &target) } else { _ = std::fs::copy(&path, &target).unwrap() }
    }
}

/// What fail2ban reads itself: jail, option and value of `set` lines.
fn by_fail2ban(root: &Path, dir: &Path) -> Vec<(String, String, String)> {
    let done = Command::new("/usr/bin/python3")
        .arg(root.join("usr/bin/fail2ban-client"))
        .args(["-c", dir.to_str().unwrap(), "-d"])
        .env("PYTHONPATH", root.join("usr/lib/python3/dist-packages"))
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let text = String::from_utf8(done.stdout).unwrap();
    let word = |part: &str| part.trim_matches(|c| " '\"[]".contains(c)).to_owned();
    let row = |line: &str| {
        let mut parts = line.strip_prefix("['set', ")?.splitn(3, ", ").map(word);
        Some((parts.next()?, parts.next()?, parts.next()?))
    };
    text.lines().filter_map(row).collect()
}

#[test]
fn the_configuration_of_debian_gives_the_limits_that_fail2ban_reads() {
    for root in packages() {
        takes_over_the_limits(&root);
    }
}

fn takes_over_the_limits(root: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("fail2ban");
    copy(&root.join("etc/fail2ban"), &dir);
    let logs: Vec<PathBuf> =
        ["auth.log", "mail.log", "error.log", "access.log"].map(|name| folder.path().join(name)).into();
    logs.iter().for_each(|log| std::fs::write(log, "").unwrap());
    let log = |at: usize| logs[at].display();
    let local = format!(
        "[DEFAULT]\nbantime = 1h\nignoreip = 127.0.0.1/8 ::1 192.0.2.0/24\n[sshd]\nmode = aggressive\nmaxretry = 3\nlogpath = {}\n\
         [dovecot]\nenabled = true\nfindtime = 1d\nlogpath = {}\n[postfix]\nenabled = true\nlogpath = {}\n\
         [nginx-http-auth]\nenabled = true\nlogpath = {}\n[nginx-botsearch]\nenabled = true\nmaxretry = 2\nlogpath = {}\n",
        log(0),
        log(1),
        log(1),
        log(2),
        log(3)
    );
    std::fs::write(dir.join("jail.local"), local).unwrap();
    let out = folder.path().join("banmesh");
    let done = Command::new(env!("CARGO_BIN_EXE_banmesh"))
        .args(["migrate", "fail2ban", dir.to_str().unwrap(), "--output", out.to_str().unwrap()])
        .env_clear()
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{report}");
    let bytes = std::fs::read(out.join("config.yaml")).unwrap();
    let config =
        resolve(Some((Path::new("config.yaml"), &bytes)), []).map_err(|error| error.to_string()).unwrap().config;
    assert_eq!(
        config.filters.enabled,
        ["dovecot", "nginx", "nginx-botsearch", "postfix", "sshd:aggressive"],
        "{report}"
    );
    let theirs = by_fail2ban(root, &dir);
    let value = |jail: &str, key: &str| {
        let found = theirs.iter().find(|(of, option, _)| of == jail && option == key);
        found
            .map(|(_, _, value)| banmesh_filter::fail2ban::seconds(value).unwrap())
            .unwrap_or_else(|| panic!("{jail} {key}"))
    };
    for (jail, filter) in [
        ("sshd", "sshd"),
        ("dovecot", "dovecot"),
        ("postfix", "postfix"),
        ("nginx-http-auth", "nginx"),
        ("nginx-botsearch", "nginx-botsearch"),
    ] {
        let own = config.filters.each.get(filter).map(|limits| limits.ban.clone()).unwrap_or_default();
        let seconds = |span: std::time::Duration| i64::try_from(span.as_secs()).unwrap();
        assert_eq!(i64::from(own.max_attempts.unwrap_or(config.ban.max_attempts)), value(jail, "maxretry"), "{jail}");
        assert_eq!(seconds(own.time_window.unwrap_or(config.ban.time_window.0)), value(jail, "findtime"), "{jail}");
        assert_eq!(
            seconds(own.initial_ban_time.unwrap_or(config.ban.initial_ban_time.0)),
            value(jail, "bantime"),
            "{jail}"
        );
    }
    let followed: BTreeSet<&String> =
        theirs.iter().filter(|(_, option, _)| option == "addlogpath").map(|(_, _, path)| path).collect();
    assert_eq!(config.inputs.files.len(), followed.len(), "{report}");
    // fail2ban prints the match of a jail that reads files too.
    let reads_files = |jail: &str| theirs.iter().any(|(of, option, _)| of == jail && option == "addlogpath");
    let journal = theirs.iter().any(|(jail, option, _)| option == "addjournalmatch" && !reads_files(jail));
    assert_eq!(config.inputs.journal.enabled, journal, "{report}");
    // The whole result is a configuration that a node starts with.
    let checked = Command::new(env!("CARGO_BIN_EXE_banmesh"))
        .args(["check", "--offline", "--config", out.join("config.yaml").to_str().unwrap()])
        .env_clear()
        .output()
        .unwrap();
    assert!(checked.status.success(), "{report}\n{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn a_directory_without_jails_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_banmesh"))
        .args(["migrate", "fail2ban", folder.path().to_str().unwrap()])
        .env_clear()
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&done.stderr).contains("neither jail.conf nor jail.local"));
}
