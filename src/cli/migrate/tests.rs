use std::path::Path;

use super::*;
use crate::config::resolve;
use banmesh_types::time::UnixMillis;

/// A configuration as of fail2ban 1.0 and 1.1, with what is unusual in it.
fn written() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let files = [
        (
            "jail.conf",
            "[DEFAULT]\nignoreip = 127.0.0.1/8 ::1 home.example.org file:/etc/trusted\nbantime = 10m\nfindtime = 10m\nmaxretry = 5\nmode = normal\n\
             backend = auto\nfilter = %(__name__)s[mode=%(mode)s]\nenabled = false\nignoreself = true\naction = iptables[port=\"ssh\"]\n\
             [sshd]\nlogpath = /var/log/auth.log\n[nginx-http-auth]\nlogpath = /var/log/nginx/error.log\n\
             [postfix]\nlogpath = /var/log/mail.log\n[postfix-sasl]\nfilter = postfix[mode=auth]\nlogpath = /var/log/mail.log\nmaxretry = 3\n\
             [recidive]\nlogpath = /var/log/fail2ban.log\n[demo]\nlogpath = /srv/demo/log.txt\n[broken]\n",
        ),
        (
            "jail.local",
            "[sshd]\nenabled = true\nmode = aggressive\nmaxretry = 3\nbantime = -1\nignorecommand = /usr/local/bin/known\n[nginx-http-auth]\nenabled = true\n\
             [postfix]\nenabled = true\n[postfix-sasl]\nenabled = true\n[recidive]\nenabled = true\n\
             [demo]\nenabled = true\nbantime = 1h\nbantime.increment = true\nbantime.maxtime = 5w\nignoreip = 127.0.0.1/8 192.0.2.0/24\naction = sendmail-whois\n\
             [broken]\nenabled = true\nlogpath = /var/log/broken.log\n",
        ),
        ("fail2ban.conf", "[DEFAULT]\ndbpurgeage = 1d\n"),
        ("filter.d/demo.conf", "[Definition]\n_daemon = demo\nfailregex = ^Failed login from <HOST>$\n"),
        ("filter.d/broken.conf", "[Definition]\nfailregex = (\n"),
    ];
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

fn migration(dir: &Path) -> Migration {
    let library = FilterLibrary::built_in().unwrap();
    convert(&read_jails(dir).unwrap(), dir, Path::new("/etc/banmesh/filters"), &library, |_| true)
}

#[test]
fn jails_become_filters_with_their_own_limits() {
    let dir = written();
    let done = migration(dir.path());
    let config = resolve(Some((Path::new("c.yaml"), done.config.as_bytes())), [])
        .map_err(|error| error.to_string())
        .unwrap()
        .config;
    assert_eq!(config.filters.enabled, ["demo", "nginx", "postfix", "sshd:aggressive"]);
    let ban = |name: &str| config.filters.each[name].ban.clone();
    let days = |days: u64| Some(std::time::Duration::from_secs(days * 86_400));
    assert_eq!((ban("sshd").max_attempts, ban("sshd").initial_ban_time), (Some(3), days(3650)));
    // Two jails share this filter: the stricter one counts.
    assert_eq!(ban("postfix").max_attempts, Some(3));
    assert_eq!((ban("demo").max_ban_time, ban("demo").escalation_factor), (days(35), Some(2.0)));
    assert!(!config.filters.each.contains_key("nginx"));
    assert_eq!((config.ban.max_attempts, config.ban.escalation_factor), (5, 1.0));
    let allowed: Vec<String> = config.allowlist.iter().map(crate::config::setting::Scalar::show).collect();
    assert_eq!(allowed, ["127.0.0.0/8", "192.0.2.0/24", "::1/128", "home.example.org"]);
    assert_eq!(config.allowlist_files, [Path::new("/etc/trusted")]);
    let files: Vec<(&str, Option<&str>)> =
        config.inputs.files.iter().map(|file| (&*file.path, file.program.as_deref())).collect();
    assert_eq!(
        files,
        [
            ("/srv/demo/log.txt", Some("demo")),
            ("/var/log/auth.log", None),
            ("/var/log/mail.log", None),
            ("/var/log/nginx/error.log", Some("nginx"))
        ]
    );
    assert_eq!(done.filters.iter().map(|filter| &*filter.name).collect::<Vec<_>>(), ["demo"]);
}

#[test]
fn the_report_names_everything_that_is_not_taken_over() {
    let dir = written();
    let done = migration(dir.path());
    let (changed, left) = (done.changed.join("\n"), done.left.join("\n"));
    for part in [
        "[sshd] bantime: automatic bans always end",
        "[postfix-sasl]: the filter postfix is also that of postfix",
        "[demo] ignoreip",
        "home.example.org",
    ] {
        assert!(changed.contains(part), "{part}: {changed}");
    }
    for part in
        ["[recidive]: not needed", "[demo] action sendmail-whois", "[sshd] ignorecommand", "[broken]", "port, protocol"]
    {
        assert!(left.contains(part), "{part}: {left}");
    }
}

#[test]
fn files_that_are_there_are_not_replaced() {
    let dir = written();
    let out = tempfile::tempdir().unwrap();
    let done = migration(dir.path());
    let filters = [("demo.yaml".to_owned(), "x".to_owned())];
    write_all(out.path(), &out.path().join("filters"), &done, &filters).unwrap();
    let again = write_all(out.path(), &out.path().join("filters"), &done, &filters).unwrap_err();
    assert!(again.to_string().contains("exists already"), "{again}");
}

#[test]
fn bans_are_read_from_a_database_of_fail2ban() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fail2ban.sqlite3");
    // As fail2ban 1.0 creates it.
    let script = "import sqlite3, sys\ndb = sqlite3.connect(sys.argv[1])\n\
                  db.execute('CREATE TABLE bips(ip TEXT NOT NULL, jail TEXT NOT NULL, timeofban INTEGER NOT NULL, bantime INTEGER NOT NULL, bancount INTEGER NOT NULL default 1, data JSON, PRIMARY KEY(ip, jail))')\n\
                  db.execute(\"INSERT INTO bips VALUES ('192.0.2.1', 'sshd', 1800000000, 600, 1, '{}'), ('192.0.2.2', 'sshd', 1799990000, 600, 1, '{}'), ('2001:db8::1', 'sshd', 1799990000, -1, 3, NULL)\")\n\
                  db.commit()\n";
    let made = std::process::Command::new("python3").args(["-I", "-c", script]).arg(&path).status();
    assert!(made.unwrap().success());
    let found = database::read(&path, UnixMillis(1_800_000_100_000)).unwrap();
    assert_eq!((found.bans.len(), found.ended), (2, 1));
    let file = dir.path().join("bans");
    write_bans(&found, &file).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("192.0.2.1 until 2027-01-15T08:10:00Z  # sshd\n"), "{text}");
    assert!(text.contains("2001:db8::1 permanently  # sshd\n"), "{text}");
    std::fs::write(&path, "this is no database, but as long as a page of one would be").unwrap();
    assert!(database::read(&path, UnixMillis(0)).is_err());
}
