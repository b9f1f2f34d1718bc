//! Builds the configuration from its sources: defaults, file, environment, then the checks across keys.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::consistency;
use super::environment;
use super::fail2ban;
use super::origin::{Origin, Origins};
use super::problem::{ConfigErrors, Faults, Problem, ProblemKind, nearest};
use super::sections::Config;
use super::setting::{EACH_NAME, Setting};
use super::table::settings_mut;
use super::yaml::{self, MAX_BYTES, Node, Value};

/// The files to try, in this order, if no file was given.
pub const DEFAULT_PATHS: [&str; 2] = ["./config.yaml", "/etc/banmesh/config.yaml"];

/// A configuration without errors.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// The file that was read; `None` if there is none.
    pub path: Option<PathBuf>,
    /// Where each value was set.
    pub origins: Origins,
    /// Problems that do not prevent a start.
    pub warnings: Vec<Problem>,
}

/// The result of reading the configuration, with or without errors.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// The values. A value with an error is replaced by that of the source before it.
    pub loaded: Loaded,
    /// All errors; empty if there are none.
    pub errors: Vec<Problem>,
}

impl Attempt {
    /// The configuration, if it has no errors.
    ///
    /// # Errors
    /// All errors at once.
    pub fn finish(self) -> Result<Loaded, ConfigErrors> {
        if self.errors.is_empty() {
            return Ok(self.loaded);
        }
        Err(ConfigErrors { errors: self.errors, warnings: self.loaded.warnings })
    }
}

/// Reads the configuration: the file `named`, else the first of [`DEFAULT_PATHS`] that exists, else none; then the variables of
/// `environment` whose names begin with `FAIL2BAN_`.
///
/// # Errors
/// All errors at once.
pub fn load(
    named: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded, ConfigErrors> {
    attempt(named, environment).finish()
}

/// Same as [`load`], but returns the values even if there are errors, so that a caller can check them further.
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
            attempt.errors.insert(0, Problem { origin: Origin::of_file(&path), key: String::new(), kind });
            attempt.loaded.path = Some(path);
            attempt
        }
    }
}

/// The environment of this process, for [`load`]. Bytes that are not UTF-8 become U+FFFD, which `load` reports as an error.
pub fn process_environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
}

/// Reads at most [`MAX_BYTES`] and one byte more, by which the parser notices that a file is too large.
fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Same as [`load`], but takes the content of the file and reads nothing from disk.
///
/// # Errors
/// All errors at once.
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
        let mut faults = Faults::new(&mut errors, Origin::of_file(path), "");
        match yaml::parse(bytes) {
            Ok(root) => apply(&mut config, &root, path, &mut origins, &mut faults),
            Err(error) => faults.add(error.line, ProblemKind::Syntax(error.message)),
        }
    }
    environment::apply(&mut config, environment, &mut origins, &mut errors, &mut warnings);
    // A value with an error still has its default here. A contradiction with it would only confuse, so it is not reported.
    let broken: BTreeSet<String> = errors.iter().map(|problem| problem.key.clone()).collect();
    consistency::check(&config, &origins, &broken, &mut errors, &mut warnings);
    let path = content.map(|(path, _)| path.to_owned());
    Attempt { loaded: Loaded { config, path, origins, warnings }, errors }
}

fn apply(config: &mut Config, root: &Node, path: &Path, origins: &mut Origins, faults: &mut Faults<'_>) {
    let mut settings = settings_mut(config);
    let sections: BTreeSet<String> = settings
        .keys()
        .flat_map(|key| key.match_indices('.').map(|(at, _)| key[..at].to_owned()).collect::<Vec<_>>())
        .collect();
    let origin = Origin::of_file(path);
    let mut reader = FileReader { settings: &mut settings, sections: &sections, origin, origins };
    reader.section("", root, faults);
}

/// Reads the file into the settings, section by section.
struct FileReader<'a, 'b> {
    settings: &'a mut BTreeMap<String, &'b mut dyn Setting>,
    sections: &'a BTreeSet<String>,
    origin: Origin,
    origins: &'a mut Origins,
}

impl FileReader<'_, '_> {
    /// Reads the section `prefix`. A section whose keys are all commented out is empty.
    fn section(&mut self, prefix: &str, node: &Node, faults: &mut Faults<'_>) {
        let pairs = match &node.value {
            Value::Map(pairs) => pairs,
            Value::Null => return,
            // Do not show the value: it may be a misplaced password.
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
                    self.origins.set(&path, self.origin.in_line(pair.line));
                } else if self.sections.contains(&path) {
                    self.section(&path, &pair.value, faults);
                } else if let Value::Map(_) = &pair.value.value
                    && let Some(each) = self.settings.get_mut(&format!("{prefix}{separator}{EACH_NAME}"))
                {
                    let node = Node { line: pair.line, value: Value::Map(vec![pair.clone()]) };
                    each.read(&node, faults);
                    self.origins.set(&format!("{prefix}{separator}{EACH_NAME}"), self.origin.in_line(pair.line));
                } else {
                    let unknown = || ProblemKind::UnknownKey { nearest: self.nearest(&path) };
                    faults.add(pair.line, fail2ban::word(&path).unwrap_or_else(unknown));
                }
            });
        }
    }

    /// The likely name for `wrong`: one with a similar spelling, else the only one with the same last part.
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
