//! Reads fail2ban's jails: `jail.conf`, `jail.d`, the `.local` files, their includes and interpolation, as fail2ban itself does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{Entry, ImportError, MAX_EXPANSIONS, MAX_INCLUDES, MAX_LENGTH, entries};

/// A jail that is enabled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Jail {
    /// Its name.
    pub name: String,
    /// The filter's name, without options. Empty if the jail has no filter.
    pub filter: String,
    /// The options of the filter: `mode=aggressive`.
    pub options: Vec<(String, String)>,
    /// Every option of the jail, also those of `[DEFAULT]`, with references replaced.
    pub values: BTreeMap<String, String>,
}

/// The configuration of a fail2ban.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Jails {
    /// The enabled jails, by name.
    pub jails: Vec<Jail>,
    /// The options of `[DEFAULT]`, with references replaced.
    pub defaults: BTreeMap<String, String>,
    /// The options of the server: `dbfile`, `dbpurgeage`, `logtarget`.
    pub server: BTreeMap<String, String>,
}

/// The options by section. `[DEFAULT]` counts for every section.
#[derive(Debug, Default)]
struct Sections {
    values: BTreeMap<String, BTreeMap<String, String>>,
}

/// Reads the configuration in `dir`, such as `/etc/fail2ban`.
///
/// # Errors
/// When `jail.conf` and `jail.local` are both missing, when a file cannot be read, or when includes are nested too deeply.
pub fn read_jails(dir: &Path) -> Result<Jails, ImportError> {
    let mut jails = Sections::default();
    if !jails.read_all(dir, "jail")? {
        let reason =
            "there is neither jail.conf nor jail.local; is this the directory of fail2ban's configuration?".to_owned();
        return Err(ImportError::Unreadable { path: dir.to_owned(), reason });
    }
    let mut server = Sections::default();
    server.read_all(dir, "fail2ban")?;
    let mut found = Vec::new();
    for name in jails.values.keys().filter(|name| !["DEFAULT", "INCLUDES"].contains(&name.as_str())) {
        let values = jails.resolved(name);
        let is_on = |value: &String| ["true", "yes", "on", "1"].contains(&value.to_ascii_lowercase().as_str());
        if !values.get("enabled").is_some_and(is_on) {
            continue;
        }
        let (filter, options) = with_options(values.get("filter").map_or("", String::as_str));
        found.push(Jail { name: name.clone(), filter, options, values });
    }
    let mut options = server.resolved("DEFAULT");
    options.extend(server.resolved("Definition"));
    Ok(Jails { jails: found, defaults: jails.resolved("DEFAULT"), server: options })
}

impl Sections {
    /// Reads `NAME.conf`, `NAME.d/*.conf`, `NAME.local` and `NAME.d/*.local`, in this order. Returns whether a main file is there.
    fn read_all(&mut self, dir: &Path, name: &str) -> Result<bool, ImportError> {
        let mut any = false;
        for suffix in ["conf", "local"] {
            let main = dir.join(format!("{name}.{suffix}"));
            if main.is_file() {
                any = true;
                self.read(&main, 0)?;
            }
            let mut others: Vec<PathBuf> = std::fs::read_dir(dir.join(format!("{name}.d")))
                .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
                .unwrap_or_default();
            others.retain(|path| path.extension().is_some_and(|extension| extension == suffix));
            others.sort();
            for path in others {
                self.read(&path, 0)?;
            }
        }
        Ok(any)
    }

    fn read(&mut self, path: &Path, depth: usize) -> Result<(), ImportError> {
        if depth > MAX_INCLUDES {
            return Err(ImportError::Includes(path.to_owned()));
        }
        let text = std::fs::read_to_string(path)
            .map_err(|error| ImportError::Unreadable { path: path.to_owned(), reason: error.to_string() })?;
        let found = entries(&text);
        let included = |key: &str| -> Vec<PathBuf> {
            let names = found.iter().filter(|entry| entry.section == "INCLUDES" && entry.key == key);
            let dir = path.parent().unwrap_or_else(|| Path::new("."));
            names.flat_map(|entry| entry.value.split_whitespace()).map(|name| dir.join(name)).collect()
        };
        for file in included("before").into_iter().filter(|file| file.is_file()) {
            self.read(&file, depth + 1)?;
            let local = file.with_extension("local");
            if local.is_file() && local != file {
                self.read(&local, depth + 1)?;
            }
        }
        // A section may have no options, and is a jail even so.
        let headers = text.lines().filter_map(|line| line.trim_end().strip_prefix('[')?.strip_suffix(']'));
        for header in headers {
            self.values.entry(header.to_owned()).or_default();
        }
        for Entry { section, key, value } in found.iter().filter(|entry| entry.section != "INCLUDES") {
            let options = self.values.entry(section.clone()).or_default();
            let value = without_comment(value);
            let value = match options.get(key) {
                // The earlier value is still available.
                Some(known) => value.replace(&format!("%(known/{key})s"), known),
                None => value,
            };
            options.insert(key.clone(), value);
        }
        for file in included("after").into_iter().filter(|file| file.is_file()) {
            self.read(&file, depth + 1)?;
        }
        Ok(())
    }

    /// Returns the options of a section and those of `[DEFAULT]`, with references replaced.
    fn resolved(&self, section: &str) -> BTreeMap<String, String> {
        let mut keys: BTreeSet<&String> = self.values.get("DEFAULT").into_iter().flat_map(BTreeMap::keys).collect();
        keys.extend(self.values.get(section).into_iter().flat_map(BTreeMap::keys));
        keys.into_iter().map(|key| (key.clone(), self.expanded(section, key))).collect()
    }

    fn expanded(&self, section: &str, key: &str) -> String {
        let mut text = self.find(section, key).unwrap_or_default().to_owned();
        for _ in 0..MAX_EXPANSIONS {
            let Some(start) = text.find("%(") else { break };
            let Some(length) = text.get(start..).and_then(|rest| rest.find(")s")) else { break };
            let named = text.get(start + 2..start + length).unwrap_or_default().to_owned();
            let value = match named.split_once('/') {
                _ if named == "__name__" => section,
                Some(("known", key)) => {
                    self.values.get("DEFAULT").and_then(|all| all.get(key)).map_or("", String::as_str)
                }
                // `default/backend` is the value before any file: `auto`.
                Some(("default", "backend")) => "auto",
                Some((other, key)) => self.values.get(other).and_then(|all| all.get(key)).map_or("", String::as_str),
                None => self.find(section, &named).unwrap_or_default(),
            };
            if text.len() + value.len() > MAX_LENGTH {
                break;
            }
            let value = value.to_owned();
            text.replace_range(start..start + length + 2, &value);
        }
        text.replace("%%", "%")
    }

    fn find(&self, section: &str, key: &str) -> Option<&str> {
        let of = |section: &str| self.values.get(section).and_then(|options| options.get(key)).map(String::as_str);
        of(section).or_else(|| of("DEFAULT"))
    }
}

/// Removes a comment that begins with a semicolon after a blank, as Python's parser does.
fn without_comment(value: &str) -> String {
    let one = |line: &str| match line.find(" ;").or_else(|| line.find("\t;")) {
        Some(at) => line.get(..at).unwrap_or_default().trim_end().to_owned(),
        None => line.to_owned(),
    };
    value.lines().map(one).collect::<Vec<_>>().join("\n")
}

/// Splits `name[key=value, key2="a, b"]`.
pub fn with_options(text: &str) -> (String, Vec<(String, String)>) {
    let text = text.trim();
    let Some((name, rest)) = text.split_once('[') else { return (text.to_owned(), Vec::new()) };
    let rest = rest.trim_end().strip_suffix(']').unwrap_or(rest);
    let mut options = Vec::new();
    let (mut part, mut quote) = (String::new(), None);
    let mut add = |part: &mut String| {
        if let Some((key, value)) = part.split_once('=') {
            options.push((key.trim().to_owned(), value.trim().to_owned()));
        }
        part.clear();
    };
    for c in rest.chars() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None, ',') => add(&mut part),
            _ => part.push(c),
        }
    }
    add(&mut part);
    (name.trim().to_owned(), options)
}

/// Reads a duration of fail2ban in seconds: `600`, `10m`, `1h 30m`, `1d12h`, `5w`, `2mo`, `1y`. Negative numbers mean "permanently".
pub fn seconds(text: &str) -> Option<i64> {
    let text = text.trim().to_ascii_lowercase();
    if let Ok(number) = text.parse::<i64>() {
        return Some(number);
    }
    let mut rest = text.as_str();
    let mut total = 0.0;
    while !rest.is_empty() {
        rest = rest.trim_start();
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at_checked(digits)?;
        let number: f64 = number.parse().ok()?;
        let after = after.trim_start();
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(letters)?;
        let unit = match unit {
            "" | "s" | "sec" | "ss" | "secs" | "second" | "seconds" => 1.0,
            "m" | "mi" | "min" | "mm" | "minute" | "minutes" => 60.0,
            "h" | "ho" | "hour" | "hh" | "hours" => 3600.0,
            "d" | "da" | "day" | "dd" | "days" => 86_400.0,
            "w" | "we" | "week" | "ww" | "weeks" => 604_800.0,
            "mo" | "mon" | "month" | "months" => 2_629_800.0,
            "y" | "ye" | "year" | "yy" | "years" => 31_557_600.0,
            _ => return None,
        };
        total += number * unit;
        rest = after;
    }
    // More than this counts as permanent.
    #[expect(clippy::cast_possible_truncation, reason = "bounded by the line above")]
    let seconds = f64::min(total, 1e12) as i64;
    Some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn later_files_win_and_references_are_replaced() {
        let dir = written(&[
            (
                "jail.conf",
                "[INCLUDES]\nbefore = paths.conf\n[DEFAULT]\nbantime = 10m\nenabled = false\nmode = normal\nignoreip = 127.0.0.1/8 ::1\n\
                 filter = %(__name__)s[mode=%(mode)s]\nbackend = auto\n[sshd]\nlogpath = %(sshd_log)s\nbackend = %(sshd_backend)s\n[dovecot]\n[off]\n",
            ),
            (
                "paths.conf",
                "[INCLUDES]\nafter = paths-overrides.local\n[DEFAULT]\nsshd_log = /var/log/auth.log\nsshd_backend = %(default/backend)s\n",
            ),
            ("paths-overrides.local", "[DEFAULT]\nsshd_log = /var/log/secure\n"),
            ("jail.d/10.conf", "[sshd]\nenabled = true\nbantime = 1h ; comment\n"),
            (
                "jail.local",
                "[DEFAULT]\nignoreip = %(known/ignoreip)s 192.0.2.0/24\n[sshd]\nmode = aggressive\nbantime = 2h\n",
            ),
            ("jail.d/20.local", "[dovecot]\nenabled = yes\n[sshd]\nmaxretry = 3\n"),
            ("fail2ban.conf", "[DEFAULT]\ndbfile = /var/lib/fail2ban/fail2ban.sqlite3\ndbpurgeage = 1d\n"),
            ("fail2ban.local", "[DEFAULT]\ndbpurgeage = 7d\n"),
        ]);
        let read = read_jails(dir.path()).unwrap();
        let names: Vec<&str> = read.jails.iter().map(|jail| &*jail.name).collect();
        assert_eq!(names, ["dovecot", "sshd"]);
        let sshd = &read.jails[1];
        assert_eq!((&*sshd.filter, &*sshd.options), ("sshd", &[("mode".to_owned(), "aggressive".to_owned())][..]));
        for (key, value) in [
            ("logpath", "/var/log/secure"),
            ("bantime", "2h"),
            ("maxretry", "3"),
            ("ignoreip", "127.0.0.1/8 ::1 192.0.2.0/24"),
            ("backend", "auto"),
        ] {
            assert_eq!(sshd.values[key], value, "{key}");
        }
        assert_eq!(read.server["dbpurgeage"], "7d");
        assert!(read_jails(&dir.path().join("jail.d")).is_err());
    }

    #[test]
    fn durations_and_options_are_read_as_fail2ban_does() {
        for (text, expected) in [
            ("600", 600),
            ("10m", 600),
            ("1h 30m", 5400),
            ("1d12h", 129_600),
            ("1w", 604_800),
            ("-1", -1),
            ("1.5h", 5400),
            ("1y", 31_557_600),
        ] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        assert_eq!((seconds("soon"), seconds("5x")), (None, None));
        let (name, options) = with_options("postfix[mode=auth, lines=\"a, b\"]");
        assert_eq!((&*name, options.len(), &*options[1].1), ("postfix", 2, "a, b"));
    }
}
