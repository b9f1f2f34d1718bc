//! From the sources to the configuration: defaults, file, environment, then the checks across keys.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::consistency;
use super::environment;
use super::problem::{ConfigErrors, Faults, Origin, Problem, ProblemKind, file, nearest};
use super::sections::Config;
use super::setting::{Entry, Key, Setting};
use super::yaml::{self, MAX_BYTES, Node, Value};

/// Where to look when no file was named, in this order.
pub const DEFAULT_PATHS: [&str; 2] = ["./config.yaml", "/etc/banmesh/config.yaml"];

/// Where each value was written; a key that is missing has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// Where the value of `key` (with dots) was written.
    pub fn of(&self, key: &str) -> Origin {
        self.0.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// Whether any key of `section` was written somewhere; returns the first such place.
    pub fn first_of_section(&self, section: &str) -> Option<(&str, &Origin)> {
        self.0
            .iter()
            .find(|(key, _)| key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.')))
            .map(|(key, origin)| (key.as_str(), origin))
    }

    pub(super) fn set(&mut self, key: &str, origin: Origin) {
        self.0.insert(key.to_owned(), origin);
    }
}

/// A configuration without errors.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// What it says.
    pub config: Config,
    /// The file that was read, if any.
    pub path: Option<PathBuf>,
    /// Where each value comes from.
    pub origins: Origins,
    /// What the operator should know.
    pub warnings: Vec<Problem>,
}

/// What came of reading the configuration, with or without errors.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// What could be resolved; where there is an error, the value is that of the source before it.
    pub loaded: Loaded,
    /// All that is wrong, at once.
    pub errors: Vec<Problem>,
}

impl Attempt {
    /// The configuration, if nothing is wrong.
    ///
    /// # Errors
    /// All that is wrong, at once.
    pub fn finish(self) -> Result<Loaded, ConfigErrors> {
        if self.errors.is_empty() {
            return Ok(self.loaded);
        }
        Err(ConfigErrors { errors: self.errors, warnings: self.loaded.warnings })
    }
}

/// Reads the configuration: the file named, else the first of [`DEFAULT_PATHS`] that exists, else none; then
/// `environment`, of which only variables beginning with `FAIL2BAN_` count.
///
/// # Errors
/// All that is wrong, at once.
pub fn load(
    named: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded, ConfigErrors> {
    attempt(named, environment).finish()
}

/// As [`load`], for one who wants to go on in spite of errors, to find more of them.
pub fn attempt(named: Option<&Path>, environment: impl IntoIterator<Item = (String, String)>) -> Attempt {
    let path = match named {
        Some(path) => Some(path.to_owned()),
        None => DEFAULT_PATHS.iter().map(PathBuf::from).find(|path| path.exists()),
    };
    let Some(path) = path else { return attempt_content(None, environment) };
    match read_bounded(&path) {
        Ok(bytes) => attempt_content(Some((&path, &bytes)), environment),
        Err(error) => {
            let mut attempt = attempt_content(None, environment);
            let kind = ProblemKind::Unreadable(error.to_string());
            attempt.errors.insert(0, Problem { origin: file(&path), key: String::new(), kind });
            attempt.loaded.path = Some(path);
            attempt
        }
    }
}

/// The environment of this process, for [`load`]; bytes that are no UTF-8 are replaced by
/// U+FFFD, which is then an error.
pub fn process_environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
}

/// No more than is taken, and one byte, so that too large a file is noticed.
fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// As [`load`], from the file's content; reads nothing.
///
/// # Errors
/// All that is wrong, at once.
pub fn resolve(
    content: Option<(&Path, &[u8])>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded, ConfigErrors> {
    attempt_content(content, environment).finish()
}

fn attempt_content(
    content: Option<(&Path, &[u8])>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Attempt {
    let mut config = Config::default();
    let mut origins = Origins::default();
    let mut errors = Vec::new();
    let mut warnings = Vec::new();
    if let Some((path, bytes)) = content {
        let mut faults = Faults::new(&mut errors, file(path), "");
        match yaml::parse(bytes) {
            Ok(root) => apply(&mut config, &root, path, &mut origins, &mut faults),
            Err(error) => faults.add(error.line, ProblemKind::Syntax(error.message)),
        }
    }
    environment::apply(&mut config, environment, &mut origins, &mut errors, &mut warnings);
    // What was not taken is still the default here. The values that were taken are checked against each other anyway, but
    // a contradiction with a value that has an error of its own would only confuse.
    let broken: BTreeSet<String> = errors.iter().map(|problem| problem.key.clone()).collect();
    consistency::check(&config, &origins, &broken, &mut errors, &mut warnings);
    let path = content.map(|(path, _)| path.to_owned());
    Attempt { loaded: Loaded { config, path, origins, warnings }, errors }
}

/// Every setting of `config` by its full name.
pub(super) fn settings_mut(config: &mut Config) -> BTreeMap<String, &mut dyn Setting> {
    let mut all = Vec::new();
    config.walk_mut(Key::ROOT, &mut all);
    all.into_iter().map(|(key, setting)| (key.path, setting)).collect()
}

/// Every setting of `config`, in the order of the table.
pub fn settings(config: &Config) -> Vec<(Key, &dyn Setting)> {
    let mut all = Vec::new();
    config.walk(Key::ROOT, &mut all);
    all
}

fn apply(config: &mut Config, root: &Node, path: &Path, origins: &mut Origins, faults: &mut Faults<'_>) {
    let mut settings = settings_mut(config);
    let sections: BTreeSet<String> = settings
        .keys()
        .flat_map(|key| key.match_indices('.').map(|(at, _)| key[..at].to_owned()).collect::<Vec<_>>())
        .collect();
    let origin = file(path);
    let mut reader = FileReader { settings: &mut settings, sections: &sections, origin, origins };
    reader.section("", root, faults);
}

/// Goes through the file, section by section.
struct FileReader<'a, 'b> {
    settings: &'a mut BTreeMap<String, &'b mut dyn Setting>,
    sections: &'a BTreeSet<String>,
    origin: Origin,
    origins: &'a mut Origins,
}

impl FileReader<'_, '_> {
    /// Reads the section `prefix`. Nothing at all under a section's name (all keys commented out) is an empty section.
    fn section(&mut self, prefix: &str, node: &Node, faults: &mut Faults<'_>) {
        let pairs = match &node.value {
            Value::Map(pairs) => pairs,
            Value::Null => return,
            // What was found may be a password in the wrong place.
            _ => {
                return faults.invalid(node.line, format!("expected a section with keys, found {}", node.value.kind()));
            }
        };
        let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
        for pair in pairs {
            if faults.is_full() {
                return;
            }
            let separator = if prefix.is_empty() { "" } else { "." };
            let path = format!("{prefix}{separator}{}", pair.key);
            faults.within(&format!("{separator}{}", pair.key), |faults| {
                if let Some(first) = lines.insert(&pair.key, pair.line) {
                    return faults.add(pair.line, ProblemKind::DuplicateKey { first });
                }
                if let Some(setting) = self.settings.get_mut(&path) {
                    setting.read(&pair.value, faults);
                    let line = pair.line;
                    let origin = match &self.origin {
                        Origin::File { path, .. } => Origin::File { path: path.clone(), line },
                        other => other.clone(),
                    };
                    self.origins.set(&path, origin);
                } else if self.sections.contains(&path) {
                    self.section(&path, &pair.value, faults);
                } else {
                    let nearest = self.nearest(&path);
                    faults.add(pair.line, ProblemKind::UnknownKey { nearest });
                }
            });
        }
    }

    /// The right name for `wrong`: one that is spelled alike, else one of the same last name elsewhere.
    fn nearest(&self, wrong: &str) -> Option<String> {
        let names = || self.settings.keys().chain(self.sections).map(String::as_str);
        let last = |name: &str| name.rsplit('.').next().map(str::to_owned);
        let depth = |name: &str| name.matches('.').count();
        nearest(wrong, names().filter(|name| depth(name) == depth(wrong))).or_else(|| {
            let mut same = names().filter(|name| last(name) == last(wrong));
            let first = same.next()?;
            same.next().is_none().then(|| first.to_owned())
        })
    }
}
