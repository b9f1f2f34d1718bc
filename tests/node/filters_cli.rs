//! `banmesh filter`, as an operator runs it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs `banmesh filter …` in `dir` with `input`.
fn banmesh(dir: &Path, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_banmesh"))
        .arg("filter")
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn test_counts_repeats_and_says_when_it_would_ban() {
    let dir = tempfile::tempdir().unwrap();
    let mut lines = String::new();
    for attempt in 0..5 {
        for what in [
            "Invalid user bob from 192.0.2.7 port 4",
            "Failed password for invalid user bob from 192.0.2.7 port 4 ssh2",
        ] {
            lines.push_str(&format!("Nov 22 20:00:0{attempt} host sshd[12]: {what}\n"));
        }
    }
    let output = banmesh(dir.path(), &["test", "-", "--json"], &lines);
    assert!(output.status.success(), "{output:?}");
    let rows: Vec<serde_json::Value> = text(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let verdicts: Vec<&str> = rows.iter().filter_map(|row| row["verdict"].as_str()).collect();
    assert_eq!(verdicts, ["offence", "repeat"].repeat(5));
    let bans: Vec<u64> =
        rows.iter().filter(|row| row["would_ban"] == true).filter_map(|row| row["number"].as_u64()).collect();
    assert_eq!(bans, [9]);
    assert_eq!((&rows[0]["account"], &rows[0]["unknown"]), (&"bob".into(), &true.into()));
    let summary = &rows.last().unwrap()["summary"];
    assert_eq!((summary["offences"].as_u64(), summary["repeats"].as_u64()), (Some(5), Some(5)));
    assert_eq!(summary["would_ban"][0], "192.0.2.7");
}

#[test]
fn a_line_that_stands_for_several_counts_several_times() {
    let dir = tempfile::tempdir().unwrap();
    let line = |times: u32| {
        format!(
            "Dec 10 07:34:33 h sshd[1]: message repeated {times} times: [ Failed password for root from 192.0.2.7 port 4 ssh2]\n"
        )
    };
    let output = banmesh(dir.path(), &["test", "-"], &(line(3) + &line(4_000_000_000) + &line(4_000_000_000)));
    let shown = text(&output);
    let lines: Vec<&str> = shown.lines().collect();
    assert!(
        lines[0].starts_with("offence  192.0.2.7  sshd/failed-password  attempt 3 of 5  account root  |"),
        "{shown}"
    );
    assert!(lines[1].contains("attempt 5 of 5: ban, 5m"), "{shown}");
    assert!(lines[2].contains("attempt 5 of 5"), "{shown}");
}

#[test]
fn test_explains_a_single_line() {
    let dir = tempfile::tempdir().unwrap();
    let line = "Failed password for root from 6.6.6.6 port 22 ssh2 from 192.0.2.7 port 3 ssh9";
    let output = banmesh(dir.path(), &["test", "sshd", "--line", line, "--explain"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).starts_with("nothing"), "{}", text(&output));
    assert!(text(&output).contains("sshd/failed-password"), "{}", text(&output));
    assert!(text(&output).contains("expects more text at the end"), "{}", text(&output));
    let line = "Timeout before authentication for 192.0.2.7 by and by";
    let output = banmesh(dir.path(), &["test", "sshd", "--line", line, "--explain"], "");
    assert!(text(&output).contains("stops at byte 44: "), "{}", text(&output));
}

#[test]
fn test_reads_log_files_the_journal_and_filter_files() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("mail.log"),
        "Nov 22 20:00:00 h dovecot: auth failed, method=PLAIN, rip=192.168.1.100\nx\n",
    )
    .unwrap();
    let output = banmesh(dir.path(), &["test", "mail.log"], "");
    assert!(text(&output).starts_with("offence  192.168.1.100  dovecot/short  attempt 1 of 5"), "{output:?}");
    let entry = r#"{"SYSLOG_IDENTIFIER":"sshd-session","MESSAGE":"Invalid user a from 192.0.2.7 port 1"}"#;
    let output = banmesh(dir.path(), &["test", "-"], entry);
    assert!(text(&output).contains("192.0.2.7  sshd/invalid-user"), "{output:?}");
    assert!(text(&output).contains("  unknown account a  |"), "{output:?}");
    let entry = r#"{"__CURSOR":"s=1","_COMM":"sshd","MESSAGE":[73,110,118,97,108,105,100,32,117,115,101,114,32,252,10,32,102,114,111,109,32,49,57,50,46,48,46,50,46,56,32,112,111,114,116,32,49]}"#;
    let output = banmesh(dir.path(), &["test", "-"], entry);
    assert!(text(&output).contains("192.0.2.8  sshd/invalid-user"), "{output:?}");
    std::fs::write(dir.path().join("own.yaml"), "name: own\nservices: [own]\nfailregex: ['^refused: <HOST>$']\n")
        .unwrap();
    let output = banmesh(dir.path(), &["test", "own.yaml", "--line", "refused: ::1"], "");
    assert!(text(&output).contains("::1  own/failregex-1"), "{output:?}");
    std::fs::write(dir.path().join("bad.yaml"), "name: bad\nservices: [own]\nfailregex: ['^refused: (<HOST>$']\n")
        .unwrap();
    let output = banmesh(dir.path(), &["test", "bad.yaml", "--line", "refused: ::1"], "");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("bad.yaml"), "{output:?}");
}

#[test]
fn errors_are_explained_and_control_characters_are_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| std::fs::write(dir.path().join(name), content).unwrap();
    write("x.gz", b"\x1f\x8b\x08\x00");
    write("open.yaml", b"name: open\nservices: [own]\nfailregex:\n  - \"^a <HOST>\n");
    write("large.yaml", b"name: large\nservices: [own]\nfailregex: ['^abc(?:[a-z]{1,1000}){1,1000} <HOST>']\n");
    for (args, said) in [
        (&["test", "ngnix", "x.log"][..], "there is no filter `ngnix`, did you mean `nginx`?"),
        (&["show", "ngnix"], "there is no filter `ngnix`, did you mean `nginx`?"),
        (&["test", "nosuch.log"], "there is no file and no filter `nosuch.log`"),
        (&["test", "nginx", "nosuch.log"], "nosuch.log: No such file"),
        (&["test", "nginx", "."], ".: this is a directory"),
        (&["test", "."], ".: this is a directory"),
        (&["test", "x.gz"], "zcat x.gz | banmesh filter test"),
        (&["test", "open.yaml"], "open.yaml:5: "),
        (
            &["test", "large.yaml"],
            "large.yaml:3: filter `large`, rule `failregex-1`: the compiled expression is larger",
        ),
        (&["import", "nosuch.conf"], "nosuch.conf: No such file"),
        (&["import", "x.gz"], "x.gz: "),
    ] {
        let output = banmesh(dir.path(), args, "");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(said), "{args:?}: {output:?}");
    }
    let long = "a".repeat(200_000);
    let lines = format!("{long}\nInvalid user \x1b[2Jbob from 192.0.2.7 port 3\r\n\n");
    let output = banmesh(dir.path(), &["test", "sshd", "-", "--explain"], &lines);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output).contains("Invalid user \\x1b[2Jbob from"), "{}", text(&output));
    assert!(!text(&output).contains('\x1b'), "{}", text(&output));
    assert!(text(&output).contains("1 lines longer than syslog.max_line (64KiB) were skipped"), "{}", text(&output));
    let output = banmesh(dir.path(), &["test", "sshd", "-", "--json"], &lines);
    assert!(text(&output).contains("\"too_long\":1"), "{}", text(&output));
}

#[test]
fn without_a_log_a_filters_own_test_lines_are_run() {
    let dir = tempfile::tempdir().unwrap();
    let output = banmesh(dir.path(), &["test", "dovecot"], "");
    assert!(output.status.success());
    assert!(text(&output).contains("test lines passed"), "{output:?}");
}

#[test]
fn list_and_show_include_every_filter() {
    let dir = tempfile::tempdir().unwrap();
    let rows: serde_json::Value = serde_json::from_str(&text(&banmesh(dir.path(), &["list", "--json"], ""))).unwrap();
    let enabled: Vec<&str> = rows
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["enabled"] == true)
        .filter_map(|row| row["name"].as_str())
        .collect();
    assert_eq!(enabled, ["dovecot", "postfix", "sogo", "sshd"]);
    let output = banmesh(dir.path(), &["show", "sshd"], "");
    assert!(text(&output).starts_with("# built-in\n"), "{output:?}");
    assert_eq!(banmesh(dir.path(), &["show", "nothing"], "").status.code(), Some(2));
}

#[test]
fn an_imported_filter_is_a_valid_filter_file() {
    let dir = tempfile::tempdir().unwrap();
    let conf = "[Definition]\n_daemon = demo\nfailregex = ^%(__prefix_line)sbad login of <F-USER>\\S+</F-USER> from <HOST>$\n  ^no (?!way+)\\S+ <HOST>\n";
    std::fs::write(dir.path().join("demo.conf"), conf).unwrap();
    let output = banmesh(dir.path(), &["import", "demo.conf"], "");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("failregex-2: not imported"), "{output:?}");
    std::fs::write(dir.path().join("demo.yaml"), &output.stdout).unwrap();
    let line = "Nov 22 20:00:00 h demo[1]: bad login of bob from 192.0.2.7";
    let output = banmesh(dir.path(), &["test", "demo.yaml", "--line", line], "");
    assert!(text(&output).contains("192.0.2.7  demo/failregex-1"), "{output:?}");
}

#[test]
fn a_failure_that_names_only_its_session_takes_the_address_from_the_sessions_first_line() {
    let dir = tempfile::tempdir().unwrap();
    let lines = "\
Nov 22 20:00:00 ldap1 slapd[12]: conn=1000 fd=12 ACCEPT from IP=192.0.2.7:51234 (IP=0.0.0.0:389)
Nov 22 20:00:00 ldap2 slapd[12]: conn=1000 fd=12 ACCEPT from IP=192.0.2.8:51234 (IP=0.0.0.0:389)
Nov 22 20:00:00 ldap1 slapd[12]: conn=1000 op=0 BIND dn=\"cn=bob,dc=example,dc=org\" method=128
Nov 22 20:00:00 ldap1 slapd[12]: conn=1000 op=0 RESULT tag=97 err=49 text=
";
    let output = banmesh(dir.path(), &["test", "openldap", "-"], lines);
    assert!(text(&output).starts_with("offence  192.0.2.7  openldap/bind  attempt 1 of 5"), "{}", text(&output));
    let line = "conn=1000 op=0 RESULT tag=97 err=49 text=";
    let output = banmesh(dir.path(), &["test", "openldap", "--line", line, "--explain"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("the address of session `1000`"), "{}", text(&output));
}

/// A directory with a configuration of these filters, given as name, services, failregex and further lines.
fn configured(filters: &[(&str, &str, &str, &str)], more: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("filters");
    std::fs::create_dir(&own).unwrap();
    for (name, services, failregex, further) in filters {
        let text =
            format!("name: {name}\ndescription: a test\nservices: [{services}]\nfailregex: ['{failregex}']\n{further}");
        std::fs::write(own.join(format!("{name}.yaml")), text).unwrap();
    }
    let names: Vec<&str> = filters.iter().map(|(name, ..)| *name).collect();
    let config = format!("filters:\n  dirs: [{}]\n  enabled: [{}]\n{more}", own.display(), names.join(", "));
    std::fs::write(dir.path().join("config.yaml"), config).unwrap();
    dir
}

#[test]
fn every_filter_whose_service_matches_is_tried() {
    let filters = [
        ("any-smtpd", "'*/smtpd'", "^no such user from <HOST>$", ""),
        ("own-postfix", "'postfix/*'", "^failed from <HOST>$", ""),
    ];
    let dir = configured(&filters, "");
    for (program, says, expected) in [
        ("postfix/smtpd", "no such user", Some("any-smtpd/failregex-1")),
        ("postfix/smtpd", "failed", Some("own-postfix/failregex-1")),
        ("postfix/lmtp", "no such user", None),
        ("mail/smtpd", "failed", None),
    ] {
        let line = format!("Nov 22 20:00:00 h {program}[1]: {says} from 192.0.2.7");
        let output =
            banmesh(dir.path(), &["test", "--config", "config.yaml", "--line", &line, "--json", "--explain"], "");
        let row: serde_json::Value = serde_json::from_str(text(&output).lines().next().unwrap()).unwrap();
        assert_eq!(row["rule"].as_str(), expected, "{line}: {row}");
        let explained: Vec<&str> =
            row["rules"].as_array().unwrap().iter().filter_map(|rule| rule["rule"].as_str()).collect();
        assert_eq!(explained.len(), if program == "postfix/smtpd" { 2 } else { 1 }, "{line}: {explained:?}");
    }
}

#[test]
fn test_reports_logins_only_if_the_node_uses_them() {
    let filter = ("own", "own", "^user \\S+ from <HOST>", "successregex: ['^user \\S+ from <HOST> ok$']\n");
    let line = "Nov 22 20:00:00 h own[1]: user bob from 192.0.2.7 ok";
    let off = "evidence: { known: off, names: off, networks: off }\n";
    let clears = format!("{off}ban:\n  success_clears: true\n");
    for (more, verdict) in [(off, "offence"), (&clears, "login"), ("", "login")] {
        let dir = configured(&[filter], more);
        let output = banmesh(dir.path(), &["test", "--config", "config.yaml", "--line", line, "--json"], "");
        let row: serde_json::Value = serde_json::from_str(text(&output).lines().next().unwrap()).unwrap();
        assert_eq!(row["verdict"], verdict, "{row}");
    }
}

#[test]
fn a_given_program_selects_the_filters_for_lines_that_name_none() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.yaml"), "filters: { enabled: [all] }\n").unwrap();
    let rule = |args: &[&str], line: &str| {
        let args = [&["test", "--config", "config.yaml", "--json", "--line", line], args].concat();
        let output = banmesh(dir.path(), &args, "");
        let row: serde_json::Value = serde_json::from_str(text(&output).lines().next().unwrap()).unwrap();
        row["rule"].as_str().map(str::to_owned)
    };
    let line = "[INFO ] AUTHFAIL: user=bob ip=192.0.2.7 time=1649351466";
    assert_eq!(rule(&[], line), None);
    assert_eq!(rule(&["--program", "xrdp-sesman"], line).as_deref(), Some("xrdp/login"));
    assert_eq!(rule(&["--program", "sshd"], line), None);
    // The own file of a service may begin with what looks like a header.
    let line = "Mar 13 15:25:07 auth(bob,192.0.2.7,sasl:login)<a>: Info: sql: Password mismatch";
    assert_eq!(rule(&["--program", "dovecot"], line).as_deref(), Some("dovecot/passdb"));
    // A program in a complete header is that of the line.
    let line = "Nov 22 20:00:00 h sshd[1]: Invalid user bob from 192.0.2.7 port 4";
    assert_eq!(rule(&["--program", "xrdp-sesman"], line).as_deref(), Some("sshd/invalid-user"));
}

#[test]
fn a_filter_does_not_get_lines_of_programs_that_it_does_not_apply_to() {
    let dir = tempfile::tempdir().unwrap();
    let message = "Failed password for root from 192.0.2.7 port 4 ssh2";
    for (line, found) in [
        (message.to_owned(), true),
        (format!("Nov 22 20:00:00 h sshd[1]: {message}"), true),
        (format!("Nov 22 20:00:00 h app[1]: {message}"), false),
        (format!("<38>1 2026-11-22T20:00:00Z h app 1 - - {message}"), false),
        (format!(r#"{{"SYSLOG_IDENTIFIER":"app","MESSAGE":"{message}"}}"#), false),
    ] {
        for program in [&[][..], &["--program", "sshd"]] {
            let output = banmesh(dir.path(), &[&["test", "sshd", "-"], program].concat(), &line);
            assert_eq!(text(&output).contains("sshd/failed-password"), found, "{line}: {output:?}");
            let said = text(&output).contains("1 lines name a program that none of these filters applies to");
            assert_eq!(said, !found, "{line}: {output:?}");
        }
    }
}

#[test]
fn a_filter_that_can_be_made_to_ban_others_fails_its_test_and_the_check() {
    let dir = tempfile::tempdir().unwrap();
    let filters = dir.path().join("filters");
    std::fs::create_dir(&filters).unwrap();
    let write = |regex: &str| {
        let yaml = format!(
            "name: own\nservices: [own]\nfailregex:\n  - name: login\n    regex: '{regex}'\n\
             tests:\n  - {{line: 'bad password of {{{{user:bob}}}} from 192.0.2.1 port 4', source: 192.0.2.1}}\n"
        );
        std::fs::write(filters.join("own.yaml"), yaml).unwrap();
    };
    let config = format!(
        "filters: {{enabled: [own], dirs: ['{}']}}\nnode: {{data_dir: '{}'}}\n",
        filters.display(),
        dir.path().display()
    );
    std::fs::write(dir.path().join("config.yaml"), config).unwrap();
    let check = || {
        let args = ["check", "--offline", "--json", "--config", "config.yaml"];
        let output = Command::new(env!("CARGO_BIN_EXE_banmesh")).args(args).current_dir(dir.path()).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let of_filters = |problems: &serde_json::Value| -> Vec<String> {
        let problems = problems.as_array().unwrap().iter().filter(|problem| problem["key"] == "filters");
        problems.map(|problem| problem["message"].as_str().unwrap().to_owned()).collect()
    };

    write("^bad password of .*? from <HOST> port ");
    let output = banmesh(dir.path(), &["test", "filters/own.yaml"], "");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let shown = text(&output);
    assert!(
        shown.contains("filters/own.yaml:4: filter `own`, rule `login`: an outsider can have 66.66.66.66 banned"),
        "{shown}"
    );
    assert!(shown.contains("\n  forged line: bad password of ") && shown.contains("66.66.66.66"), "{shown}");
    let findings = check();
    let errors = of_filters(&findings["errors"]);
    assert!(errors.len() == 1 && errors[0].contains("\n  forged line: bad password of "), "{findings:#}");

    // Without ^ the rule works, but the reader of the report learns about it.
    write("bad password of [^ ]* from <HOST> port [0-9]+$");
    let findings = check();
    assert_eq!(of_filters(&findings["errors"]), [] as [&str; 0]);
    let warnings = of_filters(&findings["warnings"]);
    assert!(warnings.len() == 1 && warnings[0].contains("does not begin with ^"), "{findings:#}");

    write("^bad password of [^ ]* from <HOST> port [0-9]+$");
    let output = banmesh(dir.path(), &["test", "filters/own.yaml"], "");
    assert!(output.status.success() && text(&output).contains("1 test lines passed"), "{output:?}");
    let findings = check();
    assert_eq!((of_filters(&findings["errors"]), of_filters(&findings["warnings"])), (vec![], vec![]));
}
