//! Imports fail2ban's filters (`filter.d/*.conf`) and rewrites their expressions, so that they run in linear time.
//!
//! The import supports includes (`before`, `after`, `.local`), `%(name)s` and `<name>` interpolation, `<HOST>` and similar
//! tags, `<F-…>` tags, `prefregex`, `failregex` and `ignoreregex`. A filter here gets a message without the syslog header, so
//! `%(__prefix_line)s` is omitted. The [notes](Imported::notes) say which rules were not imported, or were changed.

mod alternatives;
mod dates;
mod jails;
mod lookaround;
mod python;
mod translate;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::Filter;
use alternatives::alternatives;
pub use jails::{Jail, Jails, read_jails, seconds, with_options};
use translate::rewrite;

/// An imported filter.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The filter. All its rules compile. It has no test lines.
    pub filter: Filter,
    /// The rules and options that were not imported, or were changed, one per entry.
    pub notes: Vec<String>,
}

/// Why a filter was not imported.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ImportError {
    /// A file cannot be read.
    #[error("{path}: {reason}")]
    Unreadable {
        /// The file: the filter, or one that it includes.
        path: PathBuf,
        /// The error from the operating system.
        reason: String,
    },
    /// Files include each other, or are nested too deeply.
    #[error("{0}: includes are nested too deeply")]
    Includes(PathBuf),
    /// The file has no `failregex`.
    #[error("{0}: there is no [Definition] with a failregex; is this a fail2ban filter?")]
    NoRules(PathBuf),
    /// None of the rules can be imported.
    #[error("{path}: none of the rules can be imported:\n{notes}")]
    Nothing {
        /// The file.
        path: PathBuf,
        /// The reason for each rule, one per line.
        notes: String,
    },
}

/// How deeply includes may be nested.
const MAX_INCLUDES: usize = 8;
/// The most references that are replaced in one option.
const MAX_EXPANSIONS: usize = 512;
/// The longest value of an option in bytes, with all references replaced.
const MAX_LENGTH: usize = 64 * 1024;

/// Imports the filter in `path`. `options` override those of the file (`mode=aggressive`). `services` are the program names;
/// if there are none, they come from the option `_daemon`.
///
/// # Errors
/// Fails if a file cannot be read, if it is not a filter, or if none of its rules can be imported.
pub fn import(path: &Path, options: &[(String, String)], services: &[String]) -> Result<Imported, ImportError> {
    let mut values = Values::default();
    read(path, &mut values, 0)?;
    for (key, value) in options {
        values.0.insert(key.clone(), value.clone());
    }
    let name: String = path
        .file_stem()
        .map(|stem| {
            stem.to_string_lossy()
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '-' })
                .collect()
        })
        .unwrap_or_default();
    let mut notes = Vec::new();
    let failregex = values.lines("failregex", &mut notes);
    if failregex.is_empty() {
        return Err(ImportError::NoRules(path.to_owned()));
    }
    if values.0.get("maxlines").is_some_and(|lines| lines.trim() != "1") {
        notes.push("maxlines: rules for several lines are not imported; each line is matched separately".to_owned());
    }
    if values.0.contains_key("journalmatch") {
        notes.push("journalmatch: omitted; give `services` instead".to_owned());
    }
    let prefix = values.lines("prefregex", &mut notes).into_iter().next();
    // A filter without `_daemon` is for a log file whose lines name no program.
    let without_program = services.is_empty() && !values.0.contains_key("_daemon");
    let services = if services.is_empty() { values.services(&mut notes, &name) } else { services.to_vec() };
    let mut filter = Filter {
        name,
        description: format!("Imported from fail2ban's {}", path.file_name().unwrap_or_default().to_string_lossy()),
        services,
        without_program,
        ..Filter::default()
    };
    for (index, regex) in values.lines("ignoreregex", &mut notes).iter().enumerate() {
        if let Some(rule) = rewrite(regex, None, &format!("ignoreregex-{}", index + 1), true, &mut notes) {
            filter.ignoreregex.push(rule);
        }
    }
    let mut seen = BTreeSet::new();
    for (index, regex) in failregex.iter().enumerate() {
        let label = format!("failregex-{}", index + 1);
        if let Some(rule) = rewrite(regex, prefix.as_deref(), &label, false, &mut notes)
            && seen.insert(rule.regex.clone())
        {
            filter.failregex.push(rule);
        }
    }
    if filter.failregex.iter().chain(&filter.ignoreregex).any(|rule| rule.regex.contains("<date>")) {
        filter.definitions.insert("date".to_owned(), values.date(&mut notes));
    }
    if filter.failregex.is_empty() {
        return Err(ImportError::Nothing { path: path.to_owned(), notes: notes.join("\n") });
    }
    Ok(Imported { filter, notes })
}

/// The options of all sections. Later values replace earlier ones.
#[derive(Debug, Default)]
struct Values(BTreeMap<String, String>);

fn read(path: &Path, values: &mut Values, depth: usize) -> Result<(), ImportError> {
    if depth > MAX_INCLUDES {
        return Err(ImportError::Includes(path.to_owned()));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| ImportError::Unreadable { path: path.to_owned(), reason: error.to_string() })?;
    let entries = entries(&text);
    let included = |key: &str| -> Vec<PathBuf> {
        let names = entries.iter().filter(|entry| entry.section == "INCLUDES" && entry.key == key);
        let dir = path.parent().unwrap_or_else(|| Path::new("."));
        names.flat_map(|entry| entry.value.split_whitespace()).map(|name| dir.join(name)).collect()
    };
    for file in included("before") {
        read(&file, values, depth + 1)?;
    }
    for entry in entries.iter().filter(|entry| entry.section != "INCLUDES") {
        // The earlier value is still available as `known/name`.
        if let Some(known) = values.0.get(&entry.key).cloned() {
            values.0.insert(format!("known/{}", entry.key), known);
        }
        values.0.insert(entry.key.clone(), entry.value.clone());
    }
    for file in included("after").into_iter().chain([path.with_extension("local")]) {
        if file != path && file.is_file() {
            read(&file, values, depth + 1)?;
        }
    }
    Ok(())
}

struct Entry {
    section: String,
    key: String,
    value: String,
}

/// Parses an INI file with continuation lines.
fn entries(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut section = String::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') || trimmed.starts_with(';') {
            continue;
        }
        if line.starts_with([' ', '\t'])
            && let Some(last) = entries.last_mut()
        {
            last.value.push('\n');
            last.value.push_str(trimmed);
            continue;
        }
        if let Some(name) = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if let Some((key, value)) = trimmed.split_once(['=', ':']) {
            entries.push(Entry {
                section: section.clone(),
                key: key.trim().to_owned(),
                value: value.trim().to_owned(),
            });
        }
    }
    entries
}

impl Values {
    /// Returns the lines of an option, with all references replaced.
    fn lines(&self, key: &str, notes: &mut Vec<String>) -> Vec<String> {
        let Some(text) = self.0.get(key) else { return Vec::new() };
        let text = self.expand(text, key, notes);
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// Returns the expression that replaces the syslog header. A service's own log file may have a time and the name here.
    fn header(&self) -> &'static str {
        match self.0.get("_daemon") {
            Some(daemon) if !daemon.contains(['*', '+', '{', '.']) => {
                r"(?:\[\])?\s*(?:(?:%(_daemon)s)(?:\[\d+\])?:\s+)?"
            }
            _ => r"(?:\[\])?\s*",
        }
    }

    /// Returns the expression for an optional time, in the format of `datepattern` or in a usual one.
    fn date(&self, notes: &mut Vec<String>) -> String {
        let patterns = self.lines("datepattern", &mut Vec::new());
        let mut dates: Vec<String> = Vec::new();
        for pattern in &patterns {
            match dates::of_pattern(pattern) {
                Some(date) if !dates.contains(&date) => dates.push(date),
                Some(_) => {}
                None => {
                    notes.push(format!("datepattern: not supported; the usual formats are used instead: {pattern}"))
                }
            }
        }
        if !dates.iter().any(|date| date == dates::DATE) {
            dates.push(dates::DATE.to_owned());
        }
        format!("(?:{})?", dates.join("|"))
    }

    /// Replaces `%(name)s` and `<name>` in `text` until none is left. `of` is the option's name, for the notes.
    fn expand(&self, text: &str, of: &str, notes: &mut Vec<String>) -> String {
        let mut text = text.to_owned();
        let mut unknown = BTreeSet::new();
        for _ in 0..MAX_EXPANSIONS {
            let Some((range, key)) = self.next_reference(&text, &unknown) else { break };
            // A message has no header, so the expression for it is replaced.
            let own = |key| self.0.get(key).filter(|value| value.contains("known/__prefix_line")).map(String::as_str);
            let value = match key.as_str() {
                "__prefix_line" if own("__prefix_line").is_some() => own("__prefix_line"),
                "__prefix_line" | "_prefix_line" | "known/__prefix_line" => Some(self.header()),
                "__prefix" => Some(""),
                "__date_ambit" | "__bsd_syslog_verbose" => Some(""),
                key => self.0.get(key).map(String::as_str),
            };
            match value {
                Some(value) if text.len() + value.len() < MAX_LENGTH => text.replace_range(range, value),
                _ => {
                    if text.get(range.clone()).is_some_and(|found| found.starts_with('%')) {
                        notes.push(format!("{of}: %({key})s is not defined and was omitted"));
                        text.replace_range(range, "");
                    } else {
                        unknown.insert(key);
                    }
                }
            }
        }
        text.replace("%%", "%")
    }

    /// Returns the first, innermost reference in `text` that is not in `unknown`.
    fn next_reference(&self, text: &str, unknown: &BTreeSet<String>) -> Option<(std::ops::Range<usize>, String)> {
        if let Some(start) = text.find("%(")
            && let Some(length) = text.get(start..)?.find(")s")
        {
            return Some((start..start + length + 2, text.get(start + 2..start + length)?.to_owned()));
        }
        // In `<mdre-<mode>>` the inner reference comes first.
        for (end, _) in text.match_indices('>') {
            let Some(start) = text.get(..end)?.rfind('<') else { continue };
            let key = text.get(start + 1..end)?;
            let named = text.get(..start)?.ends_with("(?P") || text.get(..start)?.ends_with("(?");
            if !named && !unknown.contains(key) && self.0.contains_key(key) {
                return Some((start..end + 1, key.to_owned()));
            }
        }
        None
    }

    /// Returns the program names in `_daemon`. If it is not a list of names, returns `name`, and adds a note.
    fn services(&self, notes: &mut Vec<String>, name: &str) -> Vec<String> {
        let Some(daemon) = self.0.get("_daemon").map(|daemon| self.expand(daemon, "_daemon", notes)) else {
            notes.push(format!("services: the filter names no program; `{name}` and lines without a program are used"));
            return vec![name.to_owned()];
        };
        let mut names = alternatives(&daemon).unwrap_or_default();
        for name in &mut names {
            // A service name may have only one `*`. The text between the first and the last is lost.
            if let (Some(first), Some(last)) = (name.find('*'), name.rfind('*')) {
                name.replace_range(first..=last, "*");
            }
        }
        names.sort();
        names.dedup();
        if names.is_empty() || names.iter().any(|name| name.is_empty() || name.matches('*').count() > 1) {
            notes.push(format!(
                "services: `{daemon}` is not a list of program names; `{name}` is used instead; check it"
            ));
            return vec![name.to_owned()];
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Detector, LineView, Mode, Scratch};

    fn import_text(files: &[(&str, &str)]) -> Result<Imported, ImportError> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        import(&dir.path().join(files[0].0), &[], &[])
    }

    fn source(imported: &Imported, line: &str) -> Option<String> {
        let detector = Detector::compile([(&imported.filter, Mode::Normal)], &[]).unwrap();
        let program = imported.filter.services[0].as_bytes();
        detector
            .detect(LineView::message(program, line.as_bytes()), &mut Scratch::new())
            .map(|found| found.source.to_string())
    }

    #[test]
    fn a_brace_that_is_not_a_repetition_is_literal() {
        let regex = "^FAILED LOGIN for \\S{1,9} \\[<HOST>\\] to (?:Demo|{[^}]+})(?: x{,2})?$";
        let imported = import_text(&[("demo.conf", &format!("[Definition]\nfailregex = {regex}\n"))]).unwrap();
        for line in ["FAILED LOGIN for bob [192.0.2.1] to {mail:143}", "FAILED LOGIN for bob [192.0.2.1] to Demo xx"] {
            assert_eq!(source(&imported, line).as_deref(), Some("192.0.2.1"), "{line}");
        }
        assert_eq!(source(&imported, "FAILED LOGIN for bob [192.0.2.1] to Demo xxx"), None);
    }

    #[test]
    fn an_imported_rule_matches_with_and_without_the_time() {
        let regex = "^ \\[error\\] \\[client <HOST>\\]\n ^<HOST> - \\S+ \\[\\] \"GET /x\"";
        let imported = import_text(&[("demo.conf", &format!("[Definition]\nfailregex = {regex}\n"))]).unwrap();
        for line in [
            "2024/01/24 16:33:06 [error] [client 192.0.2.1]",
            "Sat Jan 27 16:33:06 2024 [error] [client 192.0.2.1]",
            "[error] [client 192.0.2.1]",
            "192.0.2.1 - bob [08/Dec/2021:09:16:05 +0000] \"GET /x\"",
        ] {
            assert_eq!(source(&imported, line).as_deref(), Some("192.0.2.1"), "{line}");
        }
        assert_eq!(source(&imported, "forged [error] [client 192.0.2.1]"), None);
    }

    #[test]
    fn includes_interpolation_prefix_and_tags_are_resolved() {
        let imported = import_text(&[
            (
                "demo.conf",
                "[INCLUDES]\nbefore = common.conf\n[Definition]\n_daemon = demo(?:-session)?\nprefregex = ^%(__prefix_line)s<F-MLFID>\
                 </F-MLFID>(?:%(level)s: )?<F-CONTENT>.+</F-CONTENT>$\nmdre-normal =\nmdre-aggressive = ^Odd client <HOST>$\n\
                 failregex = ^Failed login for <F-USER>\\S+</F-USER> from <HOST>(?: port \\d{,5})?$\n            ^Bad [^[]*\\[<ADDR>\\]\n\
                 \x20           <mdre-<mode>>\nignoreregex = from 192\\.0\\.2\\.99\nmode = normal\n",
            ),
            ("common.conf", "[DEFAULT]\nlevel = (?:error|warning)\n__prefix_line = \\s*\\S+ %(_daemon)s:\n"),
        ])
        .unwrap();
        assert_eq!(imported.filter.services, ["demo", "demo-session"]);
        assert_eq!(imported.filter.failregex.len(), 2, "{:?}", imported);
        assert_eq!(
            source(&imported, "error: Failed login for bob from 192.0.2.1 port 22").as_deref(),
            Some("192.0.2.1")
        );
        assert_eq!(source(&imported, "Bad thing [::1] x").as_deref(), Some("::1"));
        assert_eq!(source(&imported, "demo[17]: Bad thing [::1] x").as_deref(), Some("::1"));
        assert_eq!(source(&imported, "Failed login for bob from 192.0.2.99"), None);
        assert_eq!(source(&imported, "x Failed login for bob from 192.0.2.1"), None);
    }

    #[test]
    fn the_notes_name_every_rule_that_is_not_imported() {
        let imported = import_text(&[(
            "demo.conf",
            "[Definition]\n_daemon = demo\nfailregex = ^good <HOST>\n  ^not (?!this+)x+ <HOST>\n  ^twice (?P<a>x+)(?P=a) <HOST>\n  \
             ^no address\n  ^name <DNS>\n  ^more<SKIPLINES>lines <HOST>\n  ^<F-NOFAIL>Connection</F-NOFAIL> from <HOST>\n  ^ahead (?=[a-z)]).* \
             <HOST>\n  ^if (?P<b>x)?(?(b)y|z) <HOST>\nmaxlines = 3\ndatepattern = %%Q\n",
        )])
        .unwrap();
        let notes = imported.notes.join("\n");
        for part in [
            "failregex-2: not imported: its negative look-ahead",
            "failregex-3: not imported: a back-reference before the address",
            "failregex-4: not imported: the expression has no address",
            "failregex-5: not imported: <DNS>",
            "failregex-6: not imported: it matches several lines",
            "failregex-7: not imported: it is not an offence",
            "failregex-8: the look-ahead (?=[a-z)]) was omitted",
            "failregex-9: not imported: a condition on another group",
            "maxlines",
            "datepattern",
        ] {
            assert!(notes.contains(part), "{part:?} is not in\n{notes}");
        }
        assert_eq!(imported.filter.failregex.len(), 2);
    }

    #[test]
    fn files_that_are_not_filters_are_rejected() {
        assert!(matches!(import_text(&[("x.conf", "[Definition]\n")]), Err(ImportError::NoRules(_))));
        assert!(matches!(
            import_text(&[("x.conf", "[Definition]\nfailregex = (\n")]),
            Err(ImportError::Nothing { .. })
        ));
        assert!(matches!(import_text(&[("x.conf", "[INCLUDES]\nbefore = x.conf\n")]), Err(ImportError::Includes(_))));
        assert!(matches!(
            import_text(&[("x.conf", "[INCLUDES]\nbefore = y.conf\n")]),
            Err(ImportError::Unreadable { .. })
        ));
    }
}
