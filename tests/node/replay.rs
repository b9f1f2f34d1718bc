//! `banmesh replay` decides as a live node that is fed the same lines, and its reports.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use banmesh::app::{Decisions, decisions};
use banmesh::clock;
use banmesh::config::resolve;
use banmesh::decisions::judge::{JudgeTask, Metrics as JudgeMetrics};
use banmesh::decisions::store::{Metrics as StoreMetrics, Store};
use banmesh::decisions::view::View;
use banmesh::inputs::detect::{FilterSink, Metrics as DetectMetrics};
use banmesh::inputs::syslog::LineSink;
use banmesh_core::hlc::Hlc;
use banmesh_core::ledger::Ledger;
use banmesh_types::address::Address;
use banmesh_types::time::UnixMillis;
use tokio_util::sync::CancellationToken;

fn replay(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_banmesh"))
        .arg("replay")
        .args(args)
        .env_clear()
        .output()
        .expect("the program can be started")
}

fn json(args: &[&str]) -> serde_json::Value {
    let done = replay(&[args, &["--json"]].concat());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

fn write(folder: &Path, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn failed(at: &str, source: &str) -> String {
    format!("{at} mx sshd[7]: Failed password for root from {source} port 4711 ssh2\n")
}

const CONFIG: &str = "ban: { max_attempts: 3, time_window: 10m, initial_ban_time: 1s, max_ban_time: 1h, escalation_factor: 60 }\nallowlist: [198.51.100.0/24]\n";

/// The bans by target: for each its step, length in seconds and rule.
type Bans = BTreeMap<String, Vec<(u32, u64, String)>>;

#[tokio::test]
async fn a_replay_decides_as_a_live_node_that_is_fed_the_same_lines() {
    let config = resolve(Some((Path::new("c.yaml"), CONFIG.as_bytes())), []).unwrap().config;
    let Decisions { detection, rules, limits, .. } = decisions(&config).unwrap();
    let (view, writer) = View::new();
    let ledger = Ledger::new("live".parse().unwrap(), limits, Hlc::default());
    let (store, handle) = Store::new(ledger, writer, None, Duration::from_secs(60), StoreMetrics::default());
    let stop = CancellationToken::new();
    let running = tokio::spawn(store.serve(stop.clone()));
    let mut changes = handle.subscribe();
    let rules = Arc::new(ArcSwap::from_pointee(rules));
    let (judge, sender) = JudgeTask::new(1000, rules, handle.clone(), view.reader(), None, JudgeMetrics::default());
    let judging = tokio::spawn(judge.serve(stop.clone()));
    let mut sink = FilterSink::new(Arc::new(ArcSwap::from_pointee(detection)), sender, DetectMetrics::default());
    let here = Address::new(IpAddr::V4(Ipv4Addr::LOCALHOST));

    let mut log = String::new();
    let mut live = Bans::new();
    // The first bans last a second, the second ones a minute. IPv6 is banned by /64.
    let rounds: [&[&str]; 2] = [
        &[
            "192.0.2.1",
            "192.0.2.1",
            "192.0.2.2",
            "2001:db8::1",
            "2001:db8::2",
            "192.0.2.1",
            "2001:db8::3",
            "198.51.100.7",
            "198.51.100.7",
            "198.51.100.7",
        ],
        &["192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.1", "192.0.2.1", "198.51.100.7"],
    ];
    for (round, sources) in rounds.into_iter().enumerate() {
        let now = clock::now();
        for source in sources {
            let line = failed(&now.to_string(), source);
            sink.line(here, line.trim_end().as_bytes());
            log.push_str(&line);
        }
        let mut reader = view.reader();
        while live.values().map(Vec::len).sum::<usize>() < [2, 4][round] {
            let batch = tokio::time::timeout(Duration::from_secs(20), changes.recv()).await.expect("a ban").unwrap();
            for change in &batch.changes {
                let until = change.after.ban_end().unwrap();
                let length = UnixMillis(u64::from(until.seconds()) * 1000).since(now).as_secs();
                let cause = change.after.effective(now).cause.reason.to_string();
                live.entry(change.target.to_string()).or_default().push((change.after.bans, length, cause));
            }
        }
        // The next round begins when the bans of this one have ended, by the clock of the lines, which have whole seconds.
        if round == 0 {
            let first: Address = "192.0.2.1".parse().unwrap();
            while reader.banned_until(first, clock::now()).is_some() || clock::now().since(now) < Duration::from_secs(2)
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    stop.cancel();
    let _ = (running.await, judging.await);

    let folder = tempfile::tempdir().unwrap();
    let config = write(folder.path(), "c.yaml", CONFIG);
    let log = write(folder.path(), "log", log);
    let report = json(&[text(&log), "--config", text(&config)]);
    let mut replayed = Bans::new();
    for ban in report["configurations"][0]["bans"].as_array().unwrap() {
        let time = |key: &str| ban[key].as_str().unwrap().parse::<UnixMillis>().unwrap();
        let step = u32::try_from(ban["step"].as_u64().unwrap()).unwrap();
        let length = time("until").since(time("at")).as_secs();
        let target = ban["target"].as_str().unwrap().to_owned();
        replayed.entry(target).or_default().push((step, length, ban["rule"].as_str().unwrap().to_owned()));
    }
    // A live ban begins up to a second after the whole second in its line.
    let rounded = |bans: &Bans| -> Bans {
        let one = |(step, length, rule): &(u32, u64, String)| (*step, if *length < 60 { 1 } else { 60 }, rule.clone());
        bans.iter().map(|(target, bans)| (target.clone(), bans.iter().map(one).collect())).collect()
    };
    assert_eq!(rounded(&live), rounded(&replayed));
    assert_eq!(live["192.0.2.1"].iter().map(|ban| ban.0).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn compressed_files_are_replayed_together_in_the_order_of_time() {
    let folder = tempfile::tempdir().unwrap();
    let gzip = |text: &str| {
        use std::io::Write as _;
        let mut child = Command::new("gzip")
            .arg("-c")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait_with_output().unwrap().stdout
    };
    let day = |hour: u32| failed(&format!("2026-11-20T{hour:02}:00:00Z"), "192.0.2.1");
    // The newer file is named first, and the third offence is in the middle one.
    let newer = write(folder.path(), "auth.log", day(12));
    let older = write(folder.path(), "auth.log.2.gz", gzip(&day(10)));
    let middle = write(folder.path(), "auth.log.1", day(11));
    let config = write(folder.path(), "c.yaml", "ban: { max_attempts: 3, time_window: 3h }\n");
    let report = json(&[text(&newer), text(&older), text(&middle), "--config", text(&config)]);
    let bans = report["configurations"][0]["bans"].as_array().unwrap();
    assert_eq!((report["lines"].as_u64(), bans.len()), (Some(3), 1));
    assert_eq!(bans[0]["at"], "2026-11-20T12:00:00Z");
}

#[test]
fn honest_sources_that_were_banned_and_the_difference_of_two_configurations_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = String::new();
    for second in 0..20 {
        log.push_str(&failed(&format!("2026-11-20T10:00:{second:02}Z"), "203.0.113.9"));
    }
    for minute in 1..=3 {
        log.push_str(&failed(&format!("2026-11-20T10:0{minute}:00Z"), "192.0.2.7"));
    }
    log.push_str("2026-11-20T10:04:00Z mx sshd[8]: Accepted password for bob from 192.0.2.7 port 4711 ssh2\n");
    let log = write(folder.path(), "log", log);
    let strict = write(folder.path(), "strict.yaml", "ban: { max_attempts: 3 }\n");
    let mild = write(folder.path(), "mild.yaml", "ban: { max_attempts: 5 }\n");
    let svg = folder.path().join("replay.svg");
    let args = [text(&log), "--config", text(&strict), "--against", text(&mild), "--suggest", "--svg", text(&svg)];
    let report = json(&args);
    let [old, new] = [0, 1].map(|at| &report["configurations"][at]);
    assert_eq!(
        (old["honest_hurt"].as_u64(), new["honest_hurt"].as_u64(), new["honest"].as_u64()),
        (Some(0), Some(1), Some(1))
    );
    assert_eq!((old["attacks_refused"].as_u64(), new["attacks_refused"].as_u64()), (Some(15), Some(17)));
    let hurt = new["bans"].as_array().unwrap().iter().find(|ban| ban["target"] == "192.0.2.7").unwrap();
    assert_eq!((hurt["logins_refused"].as_u64(), hurt["login"].as_str()), (Some(1), Some("2026-11-20T10:04:00Z")));
    assert_eq!(report["difference"]["added"][0]["target"], "192.0.2.7");
    // Two attempts refuse more, but hurt.
    let best = &report["suggestion"]["best"];
    assert_eq!(best["honest_hurt"].as_u64(), Some(0));
    assert!(best["max_attempts"].as_u64() <= Some(5), "{best}");
    let picture = std::fs::read_to_string(&svg).unwrap();
    assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
    let done = replay(&args);
    let shown = String::from_utf8(done.stdout).unwrap();
    for part in [
        "24 lines in 1 file, 2026-11-20T10:00:00Z to 2026-11-20T10:04:00Z",
        "1 login refused",
        "1 target banned only with",
        "suggested: ",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn a_filter_in_shadow_mode_bans_nobody_and_shows_what_it_would_ban() {
    let folder = tempfile::tempdir().unwrap();
    let log: String = (0..9).map(|second| failed(&format!("2026-11-20T10:00:0{second}Z"), "203.0.113.9")).collect();
    let log = write(folder.path(), "log", log);
    let config = write(folder.path(), "c.yaml", "filters: { sshd: { ban: { max_attempts: 4, mode: shadow } } }\n");
    let report = json(&[text(&log), "--config", text(&config)]);
    let one = &report["configurations"][0];
    assert_eq!((one["bans"].as_array().unwrap().len(), one["shadow_bans"].as_array().unwrap().len()), (0, 1));
    assert_eq!(one["shadow_bans"][0]["at"], "2026-11-20T10:00:03Z");
    assert_eq!(one["shadow"].as_u64(), Some(9));
}

#[test]
fn the_report_says_what_observing_mechanisms_would_have_done() {
    let folder = tempfile::tempdir().unwrap();
    let login =
        |at: &str, source: &str| format!("{at} mx sshd[7]: Accepted password for anna from {source} port 4711 ssh2\n");
    let tried = |at: &str, source: &str| {
        format!("{at} mx sshd[7]: Failed password for invalid user oracle from {source} port 4711 ssh2\n")
    };
    // Three networks try a name that nobody uses, which makes it bait, and then a fourth, from which anna logs in later. The third and
    // the fourth would be banned.
    let mut log = login("2026-11-17T10:00:00Z", "198.51.101.7") + &login("2026-11-18T11:00:00Z", "198.51.101.7");
    for source in ["203.0.113.1", "203.0.112.1", "192.0.2.1", "45.0.0.1"] {
        log += &tried("2026-11-18T12:00:00Z", source);
    }
    log += &login("2026-11-18T13:00:00Z", "45.0.0.1");
    // Five failures where anna is at home.
    for second in 0..5 {
        log += &failed(&format!("2026-11-18T14:00:0{second}Z"), "198.51.101.7");
    }
    let log = write(folder.path(), "log", log);
    let config = write(folder.path(), "c.yaml", "evidence: { known: observe }\n");
    let args = [text(&log), "--config", text(&config)];
    let observed = json(&args)["configurations"][0]["observed"].clone();
    let expected = serde_json::json!({ "known": { "bans": 1, "honest": 1 }, "names": { "bans": 2, "honest": 1 } });
    assert_eq!(observed, expected);
    let shown = String::from_utf8(replay(&args).stdout).unwrap();
    for part in [
        "evidence.known would have prevented 1 ban",
        "evidence (names) would have made 2 bans; 1 source that logged in would have been affected",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn invalid_arguments_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let log = write(folder.path(), "log", "");
    let unknown = write(folder.path(), "c.yaml", "filters: { sshdd: { ban: { max_attempts: 4 } } }\n");
    for (args, message) in [
        (vec!["/no/such/file"], "/no/such/file: cannot be read"),
        (vec![text(folder.path())], "this is a directory"),
        (vec![text(&log), "--zone", "CET"], "write the offset from UTC"),
        (vec![text(&log), "--config", text(&unknown)], "there is no filter `sshdd`, did you mean `sshd`?"),
    ] {
        let done = replay(&args);
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(2), "{error}");
        assert!(error.contains(message), "{message}: {error}");
    }
}
