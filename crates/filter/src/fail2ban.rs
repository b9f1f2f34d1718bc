//! fail2ban's filters (`filter.d/*.conf`) taken over: read, resolved, and rewritten for an engine that runs in linear time.
//!
//! What is read: the sections with their includes (`before`, `after`), `%(name)s` and `<name>` interpolation, `<HOST>` and
//! its kin, `<F-…>` tags, `prefregex`, `failregex`, `ignoreregex`. A message reaches our filters without the syslog header,
//! so `%(__prefix_line)s` is left out. What cannot be taken over is said, rule by rule.

mod dates;
mod lookaround;
mod translate;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::Filter;
use translate::rewrite;

/// A filter that was taken over, and what was not.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The filter; its rules all compile.
    pub filter: Filter,
    /// What could not be taken over, or only with a change.
    pub notes: Vec<String>,
}

/// Why nothing could be taken over.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be read.
    #[error("{path}: {reason}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Includes that include each other, or too many.
    #[error("{0}: includes nest too deep")]
    Includes(PathBuf),
    /// No section with rules.
    #[error("{0}: there is no [Definition] with a failregex: is it a filter of fail2ban?")]
    NoRules(PathBuf),
    /// Not one rule could be taken over.
    #[error("{path}: none of the rules can be taken over:\n{notes}")]
    Nothing {
        /// Which file.
        path: PathBuf,
        /// Why, a line each.
        notes: String,
    },
}

const MAX_INCLUDES: usize = 8;
const MAX_EXPANSIONS: usize = 512;
const MAX_LENGTH: usize = 64 * 1024;

/// Reads `path` and rewrites it. `options` stand over the file's own (`mode=aggressive`); `services` over what `_daemon` says.
///
/// # Errors
/// When it cannot be read, is no filter, or no rule of it can be taken over.
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
        notes.push("maxlines: rules over several lines are not taken over; each line is judged alone".to_owned());
    }
    if values.0.contains_key("journalmatch") {
        notes.push("journalmatch: left out, give `services` instead".to_owned());
    }
    let prefix = values.lines("prefregex", &mut notes).into_iter().next();
    // Without a program the filter is for a log file of its own, whose lines name none.
    let without_program = services.is_empty() && !values.0.contains_key("_daemon");
    let services = if services.is_empty() { values.services(&mut notes, &name) } else { services.to_vec() };
    let mut filter = Filter {
        name,
        description: format!("Taken over from fail2ban's {}", path.file_name().unwrap_or_default().to_string_lossy()),
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

/// The options of all sections, the later ones over the earlier.
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
        // What was there before can still be named.
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

/// The options of an INI file with continuation lines.
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
    /// The lines of an option with everything put in.
    fn lines(&self, key: &str, notes: &mut Vec<String>) -> Vec<String> {
        let Some(text) = self.0.get(key) else { return Vec::new() };
        let text = self.expand(text, key, notes);
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// What stands for the header of a line: its time and, in a log file of the service's own, its name.
    fn header(&self) -> &'static str {
        match self.0.get("_daemon") {
            Some(daemon) if !daemon.contains(['*', '+', '{', '.']) => {
                r"(?:\[\])?\s*(?:(?:%(_daemon)s)(?:\[\d+\])?:\s+)?"
            }
            _ => r"(?:\[\])?\s*",
        }
    }

    /// What the time in a line looks like: as `datepattern` says it, or in the usual forms. It may be missing.
    fn date(&self, notes: &mut Vec<String>) -> String {
        let patterns = self.lines("datepattern", &mut Vec::new());
        let mut dates: Vec<String> = Vec::new();
        for pattern in &patterns {
            match dates::of_pattern(pattern) {
                Some(date) if !dates.contains(&date) => dates.push(date),
                Some(_) => {}
                None => {
                    notes.push(format!("datepattern: not understood, the usual forms of time are taken: {pattern}"))
                }
            }
        }
        if !dates.iter().any(|date| date == dates::DATE) {
            dates.push(dates::DATE.to_owned());
        }
        format!("(?:{})?", dates.join("|"))
    }

    /// `text` with `%(name)s` and `<name>` replaced until nothing is left to replace.
    fn expand(&self, text: &str, of: &str, notes: &mut Vec<String>) -> String {
        let mut text = text.to_owned();
        let mut unknown = BTreeSet::new();
        for _ in 0..MAX_EXPANSIONS {
            let Some((range, key)) = self.next_reference(&text, &unknown) else { break };
            // Our messages come without the header that this matches.
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
                        notes.push(format!("{of}: %({key})s is not defined and was left out"));
                        text.replace_range(range, "");
                    } else {
                        unknown.insert(key);
                    }
                }
            }
        }
        text.replace("%%", "%")
    }

    /// The innermost, first reference in `text` that is not known to lead nowhere.
    fn next_reference(&self, text: &str, unknown: &BTreeSet<String>) -> Option<(std::ops::Range<usize>, String)> {
        if let Some(start) = text.find("%(")
            && let Some(length) = text.get(start..)?.find(")s")
        {
            return Some((start..start + length + 2, text.get(start + 2..start + length)?.to_owned()));
        }
        // `<mdre-<mode>>`: the inner one first.
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

    /// Program names from `_daemon`, where it is a plain name or a choice of such.
    fn services(&self, notes: &mut Vec<String>, name: &str) -> Vec<String> {
        let Some(daemon) = self.0.get("_daemon").map(|daemon| self.expand(daemon, "_daemon", notes)) else {
            notes.push(format!(
                "services: the filter names no program; `{name}` was taken, and lines without a program too"
            ));
            return vec![name.to_owned()];
        };
        let mut names = alternatives(&daemon).unwrap_or_default();
        for name in &mut names {
            // One `*` is what a service name may have: the text between the first and the last may be anything anyway.
            if let (Some(first), Some(last)) = (name.find('*'), name.rfind('*')) {
                name.replace_range(first..=last, "*");
            }
        }
        names.sort();
        names.dedup();
        if names.is_empty() || names.iter().any(|name| name.is_empty() || name.matches('*').count() > 1) {
            notes.push(format!("services: `{daemon}` is no list of program names; `{name}` was taken: see to it"));
            return vec![name.to_owned()];
        }
        names
    }
}

/// The names for which a simple expression stands: literals, `(?:a|b)`, `(…)?`, `\S*`.
fn alternatives(pattern: &str) -> Option<Vec<String>> {
    let hir = regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build().parse(pattern).ok()?;
    names(&hir)
}

fn names(hir: &regex_syntax::hir::Hir) -> Option<Vec<String>> {
    use regex_syntax::hir::{Class, HirKind};
    match hir.kind() {
        HirKind::Empty => Some(vec![String::new()]),
        HirKind::Literal(literal) => Some(vec![String::from_utf8(literal.0.to_vec()).ok()?]),
        HirKind::Class(Class::Bytes(class)) => {
            let bytes: Vec<u8> = class.ranges().iter().take(8).flat_map(|range| range.start()..=range.end()).collect();
            (bytes.len() <= 8).then(|| bytes.iter().map(|byte| char::from(*byte).to_string()).collect())
        }
        HirKind::Capture(capture) => names(&capture.sub),
        HirKind::Alternation(branches) => {
            let mut all = Vec::new();
            for branch in branches {
                all.extend(names(branch)?);
            }
            Some(all)
        }
        HirKind::Concat(parts) => {
            let mut all = vec![String::new()];
            for part in parts {
                let tails = names(part)?;
                all = all.iter().flat_map(|head| tails.iter().map(move |tail| format!("{head}{tail}"))).collect();
                if all.len() > 64 {
                    return None;
                }
            }
            Some(all)
        }
        HirKind::Repetition(repetition) if repetition.min == 0 && repetition.max == Some(1) => {
            let mut all = names(&repetition.sub)?;
            all.push(String::new());
            Some(all)
        }
        // Any text.
        HirKind::Repetition(repetition) if repetition.max.is_none() => Some(vec!["*".to_owned()]),
        _ => None,
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

    fn accused(imported: &Imported, line: &str) -> Option<String> {
        let detector = Detector::compile([(&imported.filter, Mode::Normal)], &[]).unwrap();
        let program = imported.filter.services[0].as_bytes();
        detector
            .detect(LineView::message(program, line.as_bytes()), &mut Scratch::new())
            .map(|found| found.source.to_string())
    }

    #[test]
    fn a_brace_that_counts_nothing_is_a_brace() {
        let regex = "^FAILED LOGIN for \\S{1,9} \\[<HOST>\\] to (?:Demo|{[^}]+})(?: x{,2})?$";
        let imported = import_text(&[("demo.conf", &format!("[Definition]\nfailregex = {regex}\n"))]).unwrap();
        for line in ["FAILED LOGIN for bob [192.0.2.1] to {mail:143}", "FAILED LOGIN for bob [192.0.2.1] to Demo xx"] {
            assert_eq!(accused(&imported, line).as_deref(), Some("192.0.2.1"), "{line}");
        }
        assert_eq!(accused(&imported, "FAILED LOGIN for bob [192.0.2.1] to Demo xxx"), None);
    }

    #[test]
    fn the_time_that_fail2ban_cuts_out_may_be_there() {
        let regex = "^ \\[error\\] \\[client <HOST>\\]\n ^<HOST> - \\S+ \\[\\] \"GET /x\"";
        let imported = import_text(&[("demo.conf", &format!("[Definition]\nfailregex = {regex}\n"))]).unwrap();
        for line in [
            "2024/01/24 16:33:06 [error] [client 192.0.2.1]",
            "Sat Jan 27 16:33:06 2024 [error] [client 192.0.2.1]",
            "[error] [client 192.0.2.1]",
            "192.0.2.1 - bob [08/Dec/2021:09:16:05 +0000] \"GET /x\"",
        ] {
            assert_eq!(accused(&imported, line).as_deref(), Some("192.0.2.1"), "{line}");
        }
        assert_eq!(accused(&imported, "forged [error] [client 192.0.2.1]"), None);
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
            accused(&imported, "error: Failed login for bob from 192.0.2.1 port 22").as_deref(),
            Some("192.0.2.1")
        );
        assert_eq!(accused(&imported, "Bad thing [::1] x").as_deref(), Some("::1"));
        assert_eq!(accused(&imported, "demo[17]: Bad thing [::1] x").as_deref(), Some("::1"));
        assert_eq!(accused(&imported, "Failed login for bob from 192.0.2.99"), None);
        assert_eq!(accused(&imported, "x Failed login for bob from 192.0.2.1"), None);
    }

    #[test]
    fn what_cannot_be_taken_over_is_said() {
        let imported = import_text(&[(
            "demo.conf",
            "[Definition]\n_daemon = demo\nfailregex = ^good <HOST>\n  ^not (?!this+)x+ <HOST>\n  ^twice (?P<a>x+)(?P=a) <HOST>\n  \
             ^no address\n  ^name <DNS>\n  ^more<SKIPLINES>lines <HOST>\n  ^<F-NOFAIL>Connection</F-NOFAIL> from <HOST>\n  ^ahead (?=[a-z)]).* \
             <HOST>\n  ^if (?P<b>x)?(?(b)y|z) <HOST>\nmaxlines = 3\ndatepattern = %%Q\n",
        )])
        .unwrap();
        let notes = imported.notes.join("\n");
        for part in [
            "failregex-2: not taken over: this look-ahead",
            "failregex-3: not taken over: a back-reference in front of the address",
            "failregex-4: not taken over: nothing says where the address is",
            "failregex-5: not taken over: <DNS>",
            "failregex-6: not taken over: it goes over several lines",
            "failregex-7: not taken over: it is no offence by itself",
            "failregex-8: the look-ahead (?=[a-z)]) was left out",
            "failregex-9: not taken over: a condition on another group",
            "maxlines",
            "datepattern",
        ] {
            assert!(notes.contains(part), "{part:?} is not in\n{notes}");
        }
        assert_eq!(imported.filter.failregex.len(), 2);
    }

    #[test]
    fn what_is_no_filter_is_refused() {
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
