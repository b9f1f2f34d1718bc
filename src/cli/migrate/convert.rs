//! From the jails of fail2ban to a configuration, with a report of what was taken over.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use super::names::{NOT_NEEDED, ours};
use banmesh_filter::fail2ban::{self, Jail, Jails, seconds};
use banmesh_filter::library::FilterLibrary;
use banmesh_filter::{Filter, Mode};
use banmesh_types::target::Target;
use banmesh_types::time::Span;

/// The longest ban that a configuration can have: ten years.
const LONGEST: i64 = 3650 * 86_400;
/// Options of a jail that have no meaning here, because banmesh bans a source on all ports and everywhere.
const BY_FIREWALL: &str = "port, protocol, chain, banaction: banmesh bans a source on all ports, at HAProxy and, with firewall.enabled, in \
                           this host's firewall";

/// The outcome of a migration.
#[derive(Clone, Debug, Default)]
pub(super) struct Migration {
    /// The text of the configuration.
    pub config: String,
    /// Filters that banmesh does not have, converted. Their files belong into `filters.dirs`.
    pub filters: Vec<Filter>,
    /// What was taken over as it is.
    pub taken: Vec<String>,
    /// What was taken over with a change that you should know.
    pub changed: Vec<String>,
    /// What was not taken over.
    pub left: Vec<String>,
}

/// The limits of a jail. `None` means that it has no valid value.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Limits {
    max_attempts: Option<u32>,
    time_window: Option<i64>,
    ban_time: Option<i64>,
    max_ban_time: Option<i64>,
    grows: bool,
}

/// What one of our filters gets from all jails that use it.
#[derive(Debug, Default)]
struct Wanted {
    mode: Mode,
    limits: Option<Limits>,
    jails: Vec<String>,
}

/// Converts `jails`, whose filters are in `dir`. `filters_dir` is where converted filters will be. `exists` tells whether a log file, or a
/// file that a pattern matches, is there.
pub(super) fn convert(
    jails: &Jails,
    dir: &Path,
    filters_dir: &Path,
    library: &FilterLibrary,
    exists: impl Fn(&str) -> bool,
) -> Migration {
    let mut done = Migration::default();
    let general = limits(&jails.defaults, "[DEFAULT]", &mut done);
    let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
    let (mut files, mut units, mut matches) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    let mut allowed = BTreeSet::new();
    let mut allow_files = BTreeSet::new();
    allow(&jails.defaults, "[DEFAULT]", &mut allowed, &mut allow_files, &mut done);
    ignore_commands(&jails.defaults, None, "[DEFAULT]", &mut done);
    for jail in &jails.jails {
        let name = &jail.name;
        if let Some(reason) = NOT_NEEDED.iter().find(|(filter, _)| *filter == jail.filter).map(|(_, reason)| *reason) {
            done.left.push(format!("[{name}]: {reason}"));
            continue;
        }
        let Some((filter, mode)) = filter_of(jail, dir, library, &mut done) else { continue };
        if jail.values.get("ignoreip") != jails.defaults.get("ignoreip") {
            let before = allowed.len();
            allow(&jail.values, &format!("[{name}]"), &mut allowed, &mut allow_files, &mut done);
            if allowed.len() > before {
                done.changed.push(format!(
                    "[{name}] ignoreip: these addresses are now allowed for every filter, not for this jail alone"
                ));
            }
        }
        ignore_commands(&jail.values, Some(&jails.defaults), &format!("[{name}]"), &mut done);
        let own = limits(&jail.values, &format!("[{name}]"), &mut done);
        let entry = wanted.entry(filter.clone()).or_default();
        entry.mode = entry.mode.max(mode);
        entry.limits = Some(match entry.limits {
            None => own,
            Some(other) if other == own => own,
            Some(other) => {
                let jails = entry.jails.join(", ");
                done.changed.push(format!(
                    "[{name}]: the filter {filter} is also that of {jails}; the stricter limits of these jails were taken"
                ));
                stricter(other, own)
            }
        });
        entry.jails.push(name.clone());
        sources(
            jail,
            dir,
            &filter,
            library,
            &done.filters.clone(),
            (&mut files, &mut units, &mut matches),
            &mut done,
            &exists,
        );
        others(jail, &jails.defaults, &mut done);
        done.taken.push(format!("[{name}]: filter {filter}{}", mode_text(mode)));
    }
    if !jails.jails.is_empty() {
        done.left.push(BY_FIREWALL.to_owned());
    }
    done.config =
        text(jails, general, &wanted, filters_dir, (&files, &units, &matches), (&allowed, &allow_files), &done);
    done
}

fn mode_text(mode: Mode) -> String {
    if mode == Mode::Normal { String::new() } else { format!(", mode {mode}") }
}

/// Returns the filter here for a jail, and its mode. A filter that banmesh does not have is converted.
fn filter_of(jail: &Jail, dir: &Path, library: &FilterLibrary, done: &mut Migration) -> Option<(String, Mode)> {
    let name = &jail.name;
    let option = |key: &str| jail.options.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str());
    let written = option("mode").unwrap_or("normal");
    let mode = match written {
        "ddos" => Mode::Ddos,
        "aggressive" | "extra" | "crypto" => Mode::Aggressive,
        _ => Mode::Normal,
    };
    if let Some(known) = ours(&jail.filter).filter(|known| library.find(known).is_some()) {
        let local = dir.join("filter.d").join(format!("{}.local", jail.filter));
        if local.is_file() {
            done.left.push(format!(
                "[{name}]: {}: its changes were not taken over, because banmesh's own filter {known} is used; convert it with `banmesh \
                 filter import` if you need them",
                local.display()
            ));
        }
        if jail.values.contains_key("failregex") || jail.values.contains_key("ignoreregex") {
            done.left.push(format!(
                "[{name}]: failregex and ignoreregex in the jail itself; put them into a filter of your own"
            ));
        }
        if !["normal", "ddos", "aggressive", "more", "auth"].contains(&written) {
            done.changed
                .push(format!("[{name}] mode={written}: banmesh's filter {known} has no such mode; {mode} is used"));
        }
        return Some((known.to_owned(), mode));
    }
    if jail.filter.is_empty() {
        done.left.push(format!("[{name}]: it has no filter; write one for its failregex (docs/filters.md)"));
        return None;
    }
    let path = dir.join("filter.d").join(format!("{}.conf", jail.filter));
    match fail2ban::import(&path, &jail.options, &[]) {
        Ok(mut imported) => {
            let clean = |name: &str| {
                name.chars().map(|c| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '-' }).collect()
            };
            // Two jails may use one filter with different options.
            imported.filter.name = if jail.options.is_empty() { clean(&jail.filter) } else { clean(name) };
            let filter = imported.filter.name.clone();
            for note in imported.notes {
                done.changed.push(format!("[{name}] filter.d/{}.conf: {}", jail.filter, note.replace('\n', " ")));
            }
            if !done.filters.iter().any(|known| known.name == filter) {
                done.filters.push(imported.filter);
            }
            Some((filter, Mode::Normal))
        }
        Err(error) => {
            done.left.push(format!("[{name}]: {error}"));
            None
        }
    }
}

fn limits(values: &BTreeMap<String, String>, place: &str, done: &mut Migration) -> Limits {
    let mut span = |key: &str| -> Option<i64> {
        let text = values.get(key).filter(|text| !text.trim().is_empty())?;
        let read = seconds(text);
        if read.is_none() {
            done.left.push(format!("{place} {key}: `{text}` is not a duration"));
        }
        read
    };
    let is_on = |key: &str| {
        values.get(key).is_some_and(|value| ["true", "yes", "on", "1"].contains(&value.to_ascii_lowercase().as_str()))
    };
    let mut limits = Limits {
        max_attempts: values
            .get("maxretry")
            .and_then(|text| text.trim().parse().ok())
            .map(|attempts: u32| attempts.max(1)),
        time_window: span("findtime").map(|window| window.clamp(1, LONGEST)),
        ban_time: span("bantime"),
        max_ban_time: span("bantime.maxtime").filter(|_| is_on("bantime.increment")),
        grows: is_on("bantime.increment"),
    };
    if limits.ban_time.is_some_and(|time| !(0..=LONGEST).contains(&time)) {
        limits.ban_time = Some(LONGEST);
        done.changed.push(format!("{place} bantime: automatic bans always end; it is now ten years (3650d)"));
    }
    limits
}

fn stricter(one: Limits, other: Limits) -> Limits {
    fn pick<T>(one: Option<T>, other: Option<T>, choose: impl Fn(T, T) -> T) -> Option<T> {
        match (one, other) {
            (Some(one), Some(other)) => Some(choose(one, other)),
            (one, other) => one.or(other),
        }
    }
    Limits {
        max_attempts: pick(one.max_attempts, other.max_attempts, u32::min),
        time_window: pick(one.time_window, other.time_window, i64::max),
        ban_time: pick(one.ban_time, other.ban_time, i64::max),
        max_ban_time: pick(one.max_ban_time, other.max_ban_time, i64::max),
        grows: one.grows || other.grows,
    }
}

fn allow(
    values: &BTreeMap<String, String>,
    place: &str,
    allowed: &mut BTreeSet<String>,
    files: &mut BTreeSet<String>,
    done: &mut Migration,
) {
    for item in
        values.get("ignoreip").map_or("", String::as_str).split([' ', ',', '\n', '\t']).filter(|item| !item.is_empty())
    {
        if let Some(file) = item.strip_prefix("file:") {
            files.insert(file.to_owned());
        } else if let Some(target) = network(item) {
            allowed.insert(target.to_string());
        } else if item.contains('.') && item.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c)) {
            allowed.insert(item.to_owned());
            done.changed
                .push(format!("{place} ignoreip: the name {item} is resolved again every allowlist_resolve_interval"));
        } else {
            done.left.push(format!("{place} ignoreip: `{item}` is neither an address, nor a network, nor a name"));
        }
    }
}

/// Reports programs that decide who is ignored, if they are not those of `known`.
fn ignore_commands(
    values: &BTreeMap<String, String>,
    known: Option<&BTreeMap<String, String>>,
    place: &str,
    done: &mut Migration,
) {
    for key in ["ignorecommand", "ignorecache"] {
        let new = values.get(key).filter(|value| known.and_then(|known| known.get(key)) != Some(*value));
        if new.is_some_and(|value| !value.trim().is_empty()) {
            done.left.push(format!("{place} {key}: use `banmesh allow` from your program, or the allowlist"));
        }
    }
}

/// Reads an address or network. Host bits are allowed, as in `127.0.0.1/8`.
fn network(text: &str) -> Option<Target> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix.parse().ok()?)),
        None => (text, None),
    };
    let address: std::net::IpAddr = address.parse().ok()?;
    match prefix {
        None => Some(Target::host(banmesh_types::address::Address::new(address))),
        Some(prefix) => {
            let bits = banmesh_types::address::Address::new(address).bits();
            let prefix128: u8 = if address.is_ipv4() { 96_u8.checked_add(prefix)? } else { prefix };
            (prefix128 <= 128).then(|| Target::from_bits(bits, prefix128))
        }
    }
}

type Sources<'a> = (&'a mut BTreeMap<String, Option<String>>, &'a mut BTreeSet<String>, &'a mut BTreeSet<String>);

#[expect(clippy::too_many_arguments, reason = "what a jail reads depends on all of them")]
fn sources(
    jail: &Jail,
    dir: &Path,
    filter: &str,
    library: &FilterLibrary,
    converted: &[Filter],
    (files, units, matches): Sources<'_>,
    done: &mut Migration,
    exists: &impl Fn(&str) -> bool,
) {
    let name = &jail.name;
    let backend =
        jail.values.get("backend").map_or("auto", |backend| backend.split('[').next().unwrap_or_default().trim());
    let paths: Vec<&str> = jail
        .values
        .get("logpath")
        .map_or("", String::as_str)
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|path| path.starts_with('/'))
        .collect();
    let there = paths.iter().any(|path| exists(path));
    if backend == "systemd" || !there && backend == "auto" && journal_match(jail, dir).is_some() {
        let Some(found) = journal_match(jail, dir) else {
            done.left.push(format!(
                "[{name}] backend = systemd: it has no journalmatch; name the units in inputs.journal.units"
            ));
            return;
        };
        if backend == "auto" {
            done.changed
                .push(format!("[{name}] logpath: no such file is there, so the systemd journal is read instead"));
        }
        for part in found.split(['+', ' ', '\n']).filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("_SYSTEMD_UNIT", unit)) => _ = units.insert(unit.to_owned()),
                // The unit says it already, or the filter does by the name of the program.
                Some(("_COMM" | "SYSLOG_IDENTIFIER", _)) => {}
                Some(_) => _ = matches.insert(part.to_owned()),
                None => {}
            }
        }
        // Debian's unit has another name than fail2ban's filter says.
        if units.contains("sshd.service") {
            units.insert("ssh.service".to_owned());
        }
        return;
    }
    if paths.is_empty() {
        done.left.push(format!("[{name}]: it reads no file; name its log in inputs.files"));
    }
    let of_ours = library.find(filter).map(|loaded| &loaded.filter);
    let filter = of_ours.or_else(|| converted.iter().find(|known| known.name == filter));
    for path in paths {
        // Files of a syslog daemon name the program in each line.
        let file = path.rsplit('/').next().unwrap_or_default();
        let by_syslog = ["auth", "mail", "maillog", "secure", "syslog", "messages", "daemon", "user"];
        let named = path.starts_with("/var/log/")
            && path.matches('/').count() == 3
            && by_syslog.contains(&file.split('.').next().unwrap_or_default());
        let service = filter.and_then(|filter| filter.services.iter().find(|service| !service.contains('*')));
        let program = service.filter(|_| !named).cloned();
        if !exists(path) {
            done.changed
                .push(format!("[{name}] logpath {path}: no such file is there now; banmesh follows it once it is"));
        }
        // Filters of several programs can share a file only if its lines count as those of no program.
        let known = files.entry(path.to_owned()).or_insert_with(|| program.clone());
        if *known != program {
            *known = None;
        }
    }
}

/// Returns the `journalmatch` of a jail or of its filter.
fn journal_match(jail: &Jail, dir: &Path) -> Option<String> {
    if let Some(own) = jail.values.get("journalmatch").filter(|text| !text.trim().is_empty()) {
        return Some(own.clone());
    }
    let text = std::fs::read_to_string(dir.join("filter.d").join(format!("{}.conf", jail.filter))).ok()?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("journalmatch"))?;
    let value = line.trim_start().strip_prefix('=')?.trim();
    (!value.is_empty() && !value.contains('%') && !value.contains('<')).then(|| value.to_owned())
}

/// Reports options that were not taken over.
fn others(jail: &Jail, defaults: &BTreeMap<String, String>, done: &mut Migration) {
    let name = &jail.name;
    let set = |key: &str| jail.values.get(key).filter(|value| !value.trim().is_empty());
    let own = |key: &str| set(key).filter(|value| defaults.get(key) != Some(value));
    let actions = set("action").map_or("", String::as_str);
    let mut mentioned = BTreeSet::new();
    for action in actions
        .lines()
        .map(|line| line.split(['[', ' ']).next().unwrap_or_default())
        .filter(|action| !action.is_empty())
    {
        let reason = match action {
            _ if action.contains("mail") => "use a webhook (notifications.webhooks)",
            "abuseipdb" | "blocklist_de" | "complain" | "badips" | "dshield" | "xarf-login-attack" => {
                "banmesh reports to nobody; a webhook can (notifications.webhooks)"
            }
            _ if action.starts_with("cloudflare") => "banmesh bans at HAProxy; a webhook can call another firewall",
            _ => continue,
        };
        if mentioned.insert(action.to_owned()) {
            done.left.push(format!("[{name}] action {action}: {reason}"));
        }
    }
    for (key, reason) in [
        ("bantime.formula", "the next ban is escalation_factor times longer"),
        ("bantime.multipliers", "the next ban is escalation_factor times longer"),
        ("bantime.factor", "the next ban is escalation_factor times longer"),
        ("bantime.rndtime", "not needed: attackers do not see when a ban ends"),
        ("datepattern", "times are recognised in all usual formats"),
        ("maxlines", "each line is matched separately"),
    ] {
        if set(key).is_some_and(|value| !(key == "bantime.factor" && value.trim() == "1")) {
            done.left.push(format!("[{name}] {key}: {reason}"));
        }
    }
    if own("usedns").is_some_and(|value| value != "no") {
        done.left.push(format!("[{name}] usedns: names in log lines are never resolved"));
    }
}

fn text(
    jails: &Jails,
    general: Limits,
    wanted: &BTreeMap<String, Wanted>,
    filters_dir: &Path,
    (files, units, matches): (&BTreeMap<String, Option<String>>, &BTreeSet<String>, &BTreeSet<String>),
    (allowed, allow_files): (&BTreeSet<String>, &BTreeSet<String>),
    done: &Migration,
) -> String {
    let mut out = String::from(
        "# Made by `banmesh migrate fail2ban`. Check it with `banmesh check`; docs/migration.md says what to do next.\n",
    );
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let list = |items: &BTreeSet<String>| items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", ");
    out.push_str("\nfilters:\n");
    let name = |(filter, wanted): (&String, &Wanted)| match wanted.mode {
        Mode::Normal => quoted(filter),
        mode => quoted(&format!("{filter}:{mode}")),
    };
    let _ = writeln!(out, "  enabled: [{}]", wanted.iter().map(name).collect::<Vec<_>>().join(", "));
    if !done.filters.is_empty() {
        let _ = writeln!(out, "  dirs: [{}]", quoted(&filters_dir.to_string_lossy()));
    }
    for (filter, wanted) in wanted {
        let own = wanted.limits.unwrap_or_default();
        let limits = overrides(own, general);
        if !limits.is_empty() {
            let _ = writeln!(out, "  {filter}:\n    ban: {{ {} }}  # {}", limits.join(", "), wanted.jails.join(", "));
        }
    }
    out.push_str("\nban:\n");
    let mut all = vec![("max_attempts", general.max_attempts.unwrap_or(5).to_string())];
    let ban_time = general.ban_time.unwrap_or(600).max(1);
    let max = if general.grows {
        general.max_ban_time.unwrap_or(LONGEST.min(ban_time * 1024)).clamp(ban_time, LONGEST)
    } else {
        ban_time
    };
    all.push(("time_window", span(general.time_window.unwrap_or(600))));
    all.push(("initial_ban_time", span(ban_time)));
    all.push(("max_ban_time", span(max)));
    all.push(("escalation_factor", if general.grows { "2.0" } else { "1.0" }.to_owned()));
    let purge = jails.server.get("dbpurgeage").and_then(|text| seconds(text)).unwrap_or(86_400);
    let window = general.time_window.unwrap_or(600);
    all.push(("max_memory_ttl", span(purge.max(window).clamp(1, LONGEST))));
    for (key, value) in all {
        let _ = writeln!(out, "  {key}: {value}");
    }
    let ignores_self = jails.defaults.get("ignoreself").is_none_or(|value| value != "false");
    let _ = writeln!(out, "  ignore_self: {ignores_self}");
    let _ = writeln!(out, "\nallowlist: [{}]", list(allowed));
    if !allow_files.is_empty() {
        let _ = writeln!(out, "allowlist_files: [{}]", list(allow_files));
    }
    out.push_str("\ninputs:\n");
    if files.is_empty() {
        out.push_str("  files: []\n");
    } else {
        out.push_str("  files:\n");
        for (path, program) in files {
            let _ = match program {
                Some(program) => writeln!(out, "    - {{ path: {}, program: {} }}", quoted(path), quoted(program)),
                None => writeln!(out, "    - {}", quoted(path)),
            };
        }
    }
    if !units.is_empty() || !matches.is_empty() {
        let _ = writeln!(out, "  journal:\n    enabled: true\n    units: [{}]", list(units));
        if !matches.is_empty() {
            let _ = writeln!(out, "    matches: [{}]", list(matches));
        }
    }
    out.push_str(
        "\n# fail2ban bans in this host's firewall. So does banmesh with this; it needs the capability CAP_NET_ADMIN (docs/enforcement.md).\n\
         # firewall:\n#   enabled: true\n\n# The logs are read here, so nothing needs to be received.\nsyslog:\n  enabled: false\n",
    );
    out
}

/// The limits of a filter that differ from the general ones.
fn overrides(own: Limits, general: Limits) -> Vec<String> {
    let mut limits = Vec::new();
    if own.max_attempts != general.max_attempts {
        limits.extend(own.max_attempts.map(|attempts| format!("max_attempts: {attempts}")));
    }
    if own.time_window != general.time_window {
        limits.extend(own.time_window.map(|window| format!("time_window: {}", span(window))));
    }
    if (own.ban_time, own.max_ban_time, own.grows) != (general.ban_time, general.max_ban_time, general.grows) {
        let time = own.ban_time.or(general.ban_time).unwrap_or(600).max(1);
        let max =
            if own.grows { own.max_ban_time.unwrap_or(LONGEST.min(time * 1024)).clamp(time, LONGEST) } else { time };
        limits.push(format!("initial_ban_time: {}", span(time)));
        limits.push(format!("max_ban_time: {}", span(max)));
        if own.grows != general.grows {
            limits.push(format!("escalation_factor: {}", if own.grows { "2.0" } else { "1.0" }));
        }
    }
    limits
}

fn span(seconds: i64) -> String {
    Span(Duration::from_secs(u64::try_from(seconds).unwrap_or_default().max(1))).to_string()
}
