//! The set of available filters: the built-in ones, and those that your directories add or replace.

mod built_in;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::{Detector, Filter, FilterError, FilterLimits, Mode, Pattern, Place, Rule, forge, selftest};

pub use built_in::BUILT_IN;

/// The filters that banmesh enables if the configuration names none.
pub const DEFAULT_ENABLED: [&str; 4] = ["dovecot", "postfix", "sogo", "sshd"];

/// The origin of a filter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Compiled into the binary.
    BuiltIn,
    /// Read from this file.
    File(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// An error in a filter file, or in the configuration of filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterFileError {
    /// The file. `None` for an error in the configuration.
    pub origin: Option<Origin>,
    /// The key of the configuration: `filters.enabled` or `syslog.patterns`. `None` for an error in a file.
    pub key: Option<&'static str>,
    /// The number of the line in the file, from 1. `None` if it is not known.
    pub line: Option<usize>,
    /// What is wrong, and what to do.
    pub text: String,
}

impl fmt::Display for FilterFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}:")?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
            }
            f.write_str(" ")?;
        }
        if let Some(key) = self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.text)
    }
}

impl std::error::Error for FilterFileError {}

/// Formats the errors, one per line.
pub fn lines(errors: &[FilterFileError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A filter with its origin and its file's text.
#[derive(Clone, Debug)]
pub struct LoadedFilter {
    /// The parsed file.
    pub filter: Filter,
    /// The built-in set, or a file.
    pub origin: Origin,
    /// To find the line of an error.
    text: String,
}

/// The available filters, by name.
#[derive(Clone, Debug, Default)]
pub struct FilterLibrary {
    filters: BTreeMap<String, LoadedFilter>,
}

impl FilterLibrary {
    /// Loads only the built-in filters.
    ///
    /// # Errors
    /// Does not fail: the tests parse every built-in filter.
    pub fn built_in() -> Result<Self, Vec<FilterFileError>> {
        Self::load(&[])
    }

    /// Loads the built-in filters and the files `*.yaml` and `*.yml` in `dirs`. A filter in a file replaces the built-in one of
    /// the same name, and one from an earlier directory.
    ///
    /// # Errors
    /// Returns every error: a directory that cannot be read, a file that is not a filter, two files with the same filter in one
    /// directory, a filter that does not compile or does not pass its own test lines.
    pub fn load(dirs: &[PathBuf]) -> Result<Self, Vec<FilterFileError>> {
        let mut errors = Vec::new();
        let mut filters = BTreeMap::new();
        for (name, text) in BUILT_IN {
            match parse(text, Origin::BuiltIn) {
                Ok(loaded) => drop(filters.insert((*name).to_owned(), loaded)),
                Err(error) => errors.push(error),
            }
        }
        for dir in dirs {
            match read_dir(dir) {
                Ok(texts) => add_dir(&mut filters, texts, &mut errors),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(Self { filters }) } else { Err(errors) }
    }

    /// Removes the rules for successful logins. Use it if you ignore successful logins: on a mail server most lines are about
    /// them.
    #[must_use]
    pub fn without_successes(mut self) -> Self {
        self.filters.values_mut().for_each(|loaded| loaded.filter.successregex.clear());
        self
    }

    /// Sets the limits that the operator has for filters, by name. They replace those of the filter's file.
    ///
    /// # Errors
    /// Returns every name that no filter, or no rule of the filter, has.
    pub fn with_limits(mut self, limits: &BTreeMap<String, FilterLimits>) -> Result<Self, Vec<FilterFileError>> {
        let mut errors = Vec::new();
        for (name, FilterLimits { ban, rules }) in limits {
            let unknown = format!("there is no filter `{name}`{}", self.nearest(name));
            let Some(loaded) = self.filters.get_mut(name) else {
                errors.push(in_config("filters", unknown));
                continue;
            };
            let filter = &mut loaded.filter;
            filter.ban = ban.over(&filter.ban);
            for (rule, ban) in rules {
                let position = |rules: &[Rule]| {
                    let named = |(index, known): (usize, &Rule)| match &known.name {
                        Some(known) => known == rule,
                        None => *rule == format!("failregex-{}", index + 1),
                    };
                    rules.iter().enumerate().position(named)
                };
                match position(&filter.failregex).and_then(|at| filter.failregex.get_mut(at)) {
                    Some(found) => found.ban = ban.over(&found.ban),
                    None => {
                        let text = format!(
                            "the filter `{name}` has no rule `{rule}` in its failregex; `banmesh filter show {name}` lists them"
                        );
                        errors.push(in_config("filters", text));
                    }
                }
            }
        }
        if errors.is_empty() { Ok(self) } else { Err(errors) }
    }

    /// Returns the filter with this name.
    pub fn find(&self, name: &str) -> Option<&LoadedFilter> {
        self.filters.get(name)
    }

    /// Iterates over all filters, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = &LoadedFilter> {
        self.filters.values()
    }

    /// Returns the filters with these names, in this order, each with its mode. `all` stands for every filter, and
    /// `name:mode` sets the mode of one filter.
    ///
    /// # Errors
    /// Returns every name that no filter has, with a similar name if there is one, and every invalid mode.
    pub fn enabled(&self, names: &[String], mode: Mode) -> Result<Vec<(&LoadedFilter, Mode)>, Vec<FilterFileError>> {
        let mut enabled: Vec<(&LoadedFilter, Mode)> = Vec::new();
        let mut errors = Vec::new();
        for entry in names {
            let (name, mode) = match entry.split_once(':') {
                None => (entry.as_str(), Ok(mode)),
                Some((name, mode)) => (name.trim(), mode.trim().parse::<Mode>()),
            };
            let mode = mode.unwrap_or_else(|text| {
                errors.push(in_config("filters.enabled", format!("`{entry}`: {text}")));
                Mode::Normal
            });
            let chosen: Vec<&LoadedFilter> = match self.filters.get(name) {
                Some(loaded) => vec![loaded],
                None if name == "all" => self.filters.values().collect(),
                None => {
                    let text = format!("there is no filter `{name}`{}", self.nearest(name));
                    errors.push(in_config("filters.enabled", text));
                    continue;
                }
            };
            for loaded in chosen {
                match enabled.iter_mut().find(|(known, _)| known.filter.name == loaded.filter.name) {
                    Some(known) => known.1 = mode,
                    None => enabled.push((loaded, mode)),
                }
            }
        }
        if errors.is_empty() { Ok(enabled) } else { Err(errors) }
    }

    /// Compiles the `enabled` filters and the `patterns`. See [`FilterLibrary::enabled`] for the names.
    ///
    /// # Errors
    /// Returns every error, with its file, line and rule.
    pub fn detector(
        &self,
        enabled: &[String],
        mode: Mode,
        patterns: &[Pattern],
    ) -> Result<Detector, Vec<FilterFileError>> {
        let enabled = self.enabled(enabled, mode)?;
        Detector::compile(enabled.iter().map(|(loaded, mode)| (&loaded.filter, *mode)), patterns)
            .map_err(|errors| errors.into_iter().map(|error| self.locate(&error, patterns)).collect())
    }

    /// Attacks the filters that come from files, as [`LoadedFilter::forgeries`] does.
    pub fn forgeries(&self) -> Vec<FilterFileError> {
        self.iter().filter(|loaded| loaded.origin != Origin::BuiltIn).flat_map(LoadedFilter::forgeries).collect()
    }

    fn locate(&self, error: &FilterError, patterns: &[Pattern]) -> FilterFileError {
        if patterns.iter().any(|pattern| pattern.name == error.place.filter) {
            let text = format!("pattern `{}`: {}", error.place.filter, error.problem);
            return in_config("syslog.patterns", text);
        }
        match self.filters.get(&error.place.filter) {
            Some(loaded) => loaded.locate(&error.place, error.to_string()),
            None => in_config("filters.enabled", error.to_string()),
        }
    }

    /// Returns a hint to append to an error about the unknown filter `name`: a similar name, or the command that lists all.
    pub fn nearest(&self, name: &str) -> String {
        let distance = |known: &&String| strsim::damerau_levenshtein(known, name);
        match self.filters.keys().min_by_key(distance).filter(|known| distance(known) <= 3) {
            Some(known) => format!(", did you mean `{known}`?"),
            None => "; `banmesh filter list` lists all filters".to_owned(),
        }
    }
}

impl LoadedFilter {
    /// Returns the text of the file.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Attacks the filter with forged lines. Returns an error for each rule that an outsider can make accuse another address.
    pub fn forgeries(&self) -> Vec<FilterFileError> {
        match forge::attack(&self.filter) {
            Ok(found) => {
                let located = |forgery: forge::Forgery| {
                    let text = forgery.to_string();
                    self.locate(&Place { filter: forgery.filter, rule: Some(forgery.rule) }, text)
                };
                found.into_iter().map(located).collect()
            }
            Err(errors) => errors.into_iter().map(|error| self.locate(&error.place, error.to_string())).collect(),
        }
    }

    fn locate(&self, place: &Place, text: String) -> FilterFileError {
        let line = place.rule.as_ref().and_then(|rule| line_of(&self.text, rule));
        FilterFileError { origin: Some(self.origin.clone()), key: None, line, text }
    }
}

/// Parses the text of a filter file. Does not compile the filter.
///
/// # Errors
/// Fails if the text is not a filter in YAML.
pub fn parse(text: &str, origin: Origin) -> Result<LoadedFilter, FilterFileError> {
    match serde_yaml::from_str::<Filter>(text) {
        Ok(filter) => Ok(LoadedFilter { filter, origin, text: text.to_owned() }),
        Err(error) => {
            let line = error.location().map(|location| location.line());
            Err(FilterFileError { origin: Some(origin), key: None, line, text: error.to_string() })
        }
    }
}

/// Reads a filter file, compiles the filter and runs its test lines.
///
/// # Errors
/// Returns every error in the file.
pub fn read_file(path: &Path) -> Result<LoadedFilter, Vec<FilterFileError>> {
    let origin = Origin::File(path.to_owned());
    let text = std::fs::read_to_string(path).map_err(|error| {
        vec![FilterFileError { origin: Some(origin.clone()), key: None, line: None, text: error.to_string() }]
    })?;
    let loaded = parse(&text, origin).map_err(|error| vec![error])?;
    let errors = check(&loaded);
    if errors.is_empty() { Ok(loaded) } else { Err(errors) }
}

fn in_config(key: &'static str, text: String) -> FilterFileError {
    FilterFileError { origin: None, key: Some(key), line: None, text }
}

/// Compiles the filter and runs its test lines.
fn check(loaded: &LoadedFilter) -> Vec<FilterFileError> {
    match selftest(&loaded.filter) {
        Err(errors) => errors.into_iter().map(|error| loaded.locate(&error.place, error.to_string())).collect(),
        Ok(failures) => failures
            .into_iter()
            .map(|failure| FilterFileError {
                origin: Some(loaded.origin.clone()),
                key: None,
                line: None,
                text: failure.to_string(),
            })
            .collect(),
    }
}

fn read_dir(dir: &Path) -> Result<Vec<PathBuf>, FilterFileError> {
    let error = |error: std::io::Error| FilterFileError {
        origin: Some(Origin::File(dir.to_owned())),
        key: None,
        line: None,
        text: format!("cannot read this directory, which is in filters.dirs: {error}"),
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn add_dir(filters: &mut BTreeMap<String, LoadedFilter>, paths: Vec<PathBuf>, errors: &mut Vec<FilterFileError>) {
    let mut in_this_dir: BTreeMap<String, PathBuf> = BTreeMap::new();
    for path in paths {
        let loaded = match read_file(&path) {
            Ok(loaded) => loaded,
            Err(found) => {
                errors.extend(found);
                continue;
            }
        };
        let name = loaded.filter.name.clone();
        if let Some(first) = in_this_dir.insert(name.clone(), path.clone()) {
            let text = format!("filter `{name}` is also in {}; rename one of them", first.display());
            errors.push(FilterFileError { origin: Some(Origin::File(path)), key: None, line: None, text });
        }
        filters.insert(name, loaded);
    }
}

/// Returns the number of the line with this rule: that of its `name:`, or for `failregex-3` the third entry of the list.
fn line_of(text: &str, rule: &str) -> Option<usize> {
    let named =
        |line: &str| {
            line.trim_start().trim_start_matches("- ").trim_start_matches("{ ").strip_prefix("name:").is_some_and(
                |value| value.split(',').next().unwrap_or_default().trim().trim_matches(['"', '\'']) == rule,
            )
        };
    if let Some(index) = text.lines().position(named) {
        return Some(index + 1);
    }
    let (list, number) = rule.rsplit_once('-')?;
    let number: usize = number.parse().ok()?;
    if let Some(index) = text.lines().position(|line| line.starts_with(&format!("{list}: ["))) {
        return Some(index + 1);
    }
    let start = text.lines().position(|line| line.trim_end() == format!("{list}:"))?;
    let mut entries = text
        .lines()
        .enumerate()
        .skip(start + 1)
        .take_while(|(_, line)| line.is_empty() || line.starts_with([' ', '-', '#']));
    entries
        .by_ref()
        .filter(|(_, line)| line.trim_start().starts_with("- "))
        .nth(number.checked_sub(1)?)
        .map(|(index, _)| index + 1)
}
