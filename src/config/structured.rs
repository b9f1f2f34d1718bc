//! Settings that are more than a scalar or a list of scalars: patterns, files, and names with passwords.

use std::collections::BTreeMap;

use super::problem::{Faults, ProblemKind, nearest};
use super::setting::{HIDDEN, Scalar, Setting, comparable, scalar};
use super::value::Secret;
use super::yaml::{self, Node, Value};
use crate::inputs::envelope::LineFormat;
use banmesh_filter::{IpGroup, Pattern};

/// An element of `syslog.patterns`: a regular expression that finds the source of an offence in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternConfig {
    /// The name under which its offences are counted and logged; unique.
    pub name: String,
    /// The expression, in the syntax of the `regex` crate. It has been compiled once as a check. `<HOST>` stands for a group that
    /// matches an address.
    pub regex: String,
    /// The number of the group that captures the address; `<HOST>` counts as one group. `None`: the first `<HOST>`, else the first
    /// group.
    pub ip_group: Option<usize>,
    /// The severity, 1 to 6; only logged.
    pub severity: u8,
    /// A description for people.
    pub description: String,
}

impl From<&PatternConfig> for Pattern {
    fn from(pattern: &PatternConfig) -> Self {
        Self {
            name: pattern.name.clone(),
            regex: pattern.regex.clone(),
            ip_group: pattern.ip_group.map(IpGroup::Number),
            severity: Some(pattern.severity),
            description: pattern.description.clone(),
        }
    }
}

const PATTERN_KEYS: [&str; 5] = ["name", "regex", "ip_group", "severity", "description"];

impl PatternConfig {
    /// Reads one element of the list; `None` if it has an error.
    fn read(node: &Node, faults: &mut Faults<'_>) -> Option<Self> {
        let Value::Map(pairs) = &node.value else {
            faults
                .invalid(node.line, format!("expected a pattern (name, regex, ip_group …), found {}", node.describe()));
            return None;
        };
        let (found, mut good) = fields(pairs, PATTERN_KEYS, faults);
        let name: Option<String> = required(&found, "name", node, faults);
        let regex: Option<String> = required(&found, "regex", node, faults);
        let severity: Option<u8> = optional(&found, "severity", 3, faults);
        let description: Option<String> = optional(&found, "description", String::new(), faults);
        if let Some(severity) = severity.filter(|severity| !(1..=6).contains(severity)) {
            let line = found.get("severity").map_or(node.line, |node| node.line);
            faults.within(".severity", |f| f.invalid(line, format!("{severity} is not a severity from 1 to 6")));
            good = false;
        }
        if name.as_ref().is_some_and(|name| name.trim().is_empty()) {
            let line = found.get("name").map_or(node.line, |node| node.line);
            faults.within(".name", |f| f.invalid(line, "is empty; give the pattern a name".to_owned()));
            good = false;
        }
        let compiled = regex.as_ref().and_then(|regex| {
            let line = found.get("regex").map_or(node.line, |node| node.line);
            // Filters replace each of these tags by one group, or two for an address with a port. Only the number matters here.
            let expanded =
                [("<HOSTPORT>", "(\\S+)(\\S+)"), ("<HOST>", "(\\S+)"), ("<ADDR>", "(\\S+)"), ("<FORWARDED>", "(\\S+)")]
                    .iter()
                    .fold(regex.clone(), |regex, (tag, groups)| regex.replace(tag, groups));
            faults.within(".regex", |faults| match regex::bytes::Regex::new(&expanded) {
                Ok(compiled) => Some(compiled),
                Err(error) => {
                    faults.invalid(line, format!("is not a valid regular expression: {}", first_cause(&error)));
                    None
                }
            })
        });
        let ip_group = match found.get("ip_group") {
            None => compiled.as_ref().and_then(|regex| Self::group(regex, "1", node.line, faults)).map(|_| None),
            Some(group) => {
                let text: Option<String> = match &group.value {
                    Value::Unsigned(number) => Some(number.to_string()),
                    Value::Text(text) => Some(text.clone()),
                    _ => {
                        let message = format!("expected the number of a group, found {}", group.describe());
                        faults.within(".ip_group", |faults| faults.invalid(group.line, message));
                        None
                    }
                };
                let found = text.zip(compiled.as_ref());
                found.and_then(|(text, regex)| Self::group(regex, &text, group.line, faults)).map(Some)
            }
        };
        let pattern =
            Self { name: name?, regex: regex?, ip_group: ip_group?, severity: severity?, description: description? };
        good.then_some(pattern)
    }

    /// The number of the group that `text` names by number or name.
    fn group(regex: &regex::bytes::Regex, text: &str, line: usize, faults: &mut Faults<'_>) -> Option<usize> {
        let by_name = || regex.capture_names().position(|name| name == Some(text));
        let number = text.parse().ok().filter(|number: &usize| *number < regex.captures_len()).or_else(by_name);
        if number.is_none() {
            let groups = regex.captures_len() - 1;
            let message =
                format!("there is no group {text:?} in the regex, which has {groups}; put ( ) around the address");
            faults.within(".ip_group", |faults| faults.invalid(line, message));
        }
        number
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "name": self.name, "regex": self.regex, "ip_group": self.ip_group, "severity": self.severity,
            "description": self.description,
        })
    }
}

/// The message of a regex error on one line, without the excerpt of the expression.
fn first_cause(error: &regex::Error) -> String {
    let text = error.to_string();
    let cause = text.lines().find_map(|line| line.strip_prefix("error: "));
    cause.map_or_else(|| text.lines().next().unwrap_or("too big").to_owned(), str::to_owned)
}

/// The values of `pairs` by key, and whether all keys are `known` and none is a duplicate.
pub(super) fn fields<'a, const N: usize>(
    pairs: &'a [yaml::Pair],
    known: [&'static str; N],
    faults: &mut Faults<'_>,
) -> (BTreeMap<&'static str, &'a Node>, bool) {
    let mut good = true;
    let mut found: BTreeMap<&'static str, &Node> = BTreeMap::new();
    for pair in pairs {
        good &= faults.within(&format!(".{}", pair.key), |faults| {
            let problem = match known.iter().find(|known| **known == pair.key) {
                None => ProblemKind::UnknownKey { nearest: nearest(&pair.key, known) },
                Some(known) => match found.insert(known, &pair.value) {
                    None => return true,
                    Some(first) => ProblemKind::DuplicateKey { first: first.line },
                },
            };
            faults.add(pair.line, problem);
            false
        });
    }
    (found, good)
}

pub(super) fn required<T: Scalar>(
    found: &BTreeMap<&str, &Node>,
    key: &str,
    at: &Node,
    faults: &mut Faults<'_>,
) -> Option<T> {
    faults.within(&format!(".{key}"), |faults| match found.get(key) {
        Some(node) => scalar(node, faults),
        None => {
            faults.invalid(at.line, "is missing".to_owned());
            None
        }
    })
}

pub(super) fn optional<T: Scalar>(
    found: &BTreeMap<&str, &Node>,
    key: &str,
    default: T,
    faults: &mut Faults<'_>,
) -> Option<T> {
    match found.get(key) {
        Some(node) => faults.within(&format!(".{key}"), |faults| scalar(node, faults)),
        None => Some(default),
    }
}

/// Reads a list of scalars; `default` if the key is missing.
pub(super) fn scalars<T: Scalar>(
    found: &BTreeMap<&str, &Node>,
    key: &str,
    default: Vec<T>,
    faults: &mut Faults<'_>,
) -> Option<Vec<T>> {
    let Some(node) = found.get(key) else { return Some(default) };
    faults.within(&format!(".{key}"), |faults| match &node.value {
        Value::List(items) => items.iter().map(|item| scalar(item, faults)).collect(),
        _ => {
            faults.invalid(node.line, format!("expected a {}, found {}; write [a, b]", T::KINDS, node.describe()));
            None
        }
    })
}

/// Reads `text`, the value of a variable, as YAML or JSON.
pub(super) fn structured(text: &str, faults: &mut Faults<'_>) -> Option<Node> {
    match yaml::parse(text.as_bytes()) {
        Ok(node) => Some(node),
        Err(error) => {
            faults.invalid(0, error.message);
            None
        }
    }
}

/// Sets `setting` from `text`, the value of a variable, in YAML or JSON. Empty text is an empty setting.
pub(super) fn read_variable<S: Setting + Default>(setting: &mut S, text: &str, faults: &mut Faults<'_>) {
    if text.trim().is_empty() {
        *setting = S::default();
    } else if let Some(node) = structured(text, faults) {
        setting.read(&node, faults);
    }
}

/// Reads a list of elements; `None` if there is an error.
pub(super) fn list<T>(
    node: &Node,
    what: &str,
    mut read: impl FnMut(&Node, &mut Faults<'_>) -> Option<T>,
    faults: &mut Faults<'_>,
) -> Option<Vec<T>> {
    let Value::List(items) = &node.value else {
        // Not the value, which may be a secret.
        let found = node.value.kind();
        faults.invalid(node.line, format!("expected a list of {what}s, found {found}; write [] for none"));
        return None;
    };
    let mut all = Vec::new();
    for (index, item) in items.iter().enumerate() {
        // Reading an element may compile an expression, so stop when no further problem can be added.
        if faults.is_full() {
            return None;
        }
        all.push(faults.within(&format!("[{index}]"), |faults| read(item, faults)));
    }
    all.into_iter().collect()
}

/// Reads a list of elements with unique names; `None` if there is an error.
pub(super) fn named_list<T>(
    node: &Node,
    what: &str,
    read: impl Fn(&Node, &mut Faults<'_>) -> Option<T>,
    name: impl Fn(&T) -> &str,
    faults: &mut Faults<'_>,
) -> Option<Vec<T>> {
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let one = |item: &Node, faults: &mut Faults<'_>| {
        let element = read(item, faults)?;
        if let Some(first) = names.insert(name(&element).to_owned(), item.line) {
            let message = format!("`{}` is also the name of the {what} in line {first}", name(&element));
            faults.within(".name", |faults| faults.invalid(item.line, message));
            return None;
        }
        Some(element)
    };
    list(node, what, one, faults)
}

impl Setting for Vec<PatternConfig> {
    comparable!();

    fn kind(&self) -> &'static str {
        "list of patterns"
    }

    fn read(&mut self, node: &Node, faults: &mut Faults<'_>) {
        if let Some(patterns) = named_list(node, "pattern", PatternConfig::read, |pattern| &pattern.name, faults) {
            *self = patterns;
        }
    }

    fn read_text(&mut self, text: &str, faults: &mut Faults<'_>) {
        read_variable(self, text, faults);
    }

    fn json(&self) -> serde_json::Value {
        self.iter().map(PatternConfig::to_json).collect()
    }
}

/// An element of `inputs.files`: log files to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInput {
    /// An absolute path, with `*`, `?`, `[…]` and `**` as in a shell.
    pub path: String,
    /// The program that writes the lines. `None`: the lines name it, or have a format that is recognised.
    pub program: Option<String>,
    /// What a container runtime or a log agent puts around the lines.
    pub format: LineFormat,
}

impl FileInput {
    fn new(path: String, program: Option<String>, format: LineFormat) -> Result<Self, String> {
        if !path.starts_with('/') {
            return Err(format!("`{path}` must be an absolute path, or a glob that begins with /"));
        }
        if path.contains('\0') {
            return Err(format!("{path:?} is not a path"));
        }
        if let Err(error) = glob::Pattern::new(&path) {
            return Err(format!("`{path}` is not a valid glob: {}", error.msg));
        }
        if program.as_ref().is_some_and(|program| program.is_empty() || program.contains(char::is_whitespace)) {
            return Err("the program must be a single word; omit it if the lines name it".to_owned());
        }
        if program.is_some() && format == LineFormat::Nested {
            return Err("with format nested, the lines name the program; omit it".to_owned());
        }
        Ok(Self { path, program, format })
    }

    fn read(node: &Node, faults: &mut Faults<'_>) -> Option<Self> {
        let (path, program, format) = match &node.value {
            Value::Text(path) => (path.clone(), None, LineFormat::Plain),
            Value::Map(pairs) => {
                let (found, good) = fields(pairs, ["path", "program", "format"], faults);
                let path: Option<String> = required(&found, "path", node, faults);
                let program: Option<String> = optional(&found, "program", String::new(), faults);
                let format: Option<LineFormat> = optional(&found, "format", LineFormat::Plain, faults);
                if !good {
                    return None;
                }
                (path?, Some(program?).filter(|program| !program.is_empty()), format?)
            }
            _ => {
                let found = node.describe();
                faults.invalid(
                    node.line,
                    format!("expected a path, or {{ path: …, program: …, format: … }}, found {found}"),
                );
                return None;
            }
        };
        Self::new(path, program, format).map_err(|message| faults.invalid(node.line, message)).ok()
    }
}

impl Setting for Vec<FileInput> {
    comparable!();

    fn kind(&self) -> &'static str {
        "list of paths, or of `{ path, program }`"
    }

    fn read(&mut self, node: &Node, faults: &mut Faults<'_>) {
        if let Some(files) = list(node, "path", FileInput::read, faults) {
            *self = files;
        }
    }

    fn read_text(&mut self, text: &str, faults: &mut Faults<'_>) {
        let text = text.trim();
        if text.is_empty() {
            self.clear();
        } else if text.starts_with('[') {
            if let Some(node) = structured(text, faults) {
                self.read(&node, faults);
            }
        } else {
            let one = |path: &str| FileInput::new(path.trim().to_owned(), None, LineFormat::Plain);
            match text.split(',').map(one).collect() {
                Ok(files) => *self = files,
                Err(message) => faults.invalid(0, message),
            }
        }
    }

    fn json(&self) -> serde_json::Value {
        let one = |file: &FileInput| -> serde_json::Value {
            match (&file.program, file.format) {
                (None, LineFormat::Plain) => file.path.clone().into(),
                (program, format) => {
                    let mut fields = serde_json::Map::from_iter([("path".to_owned(), file.path.clone().into())]);
                    fields.extend(program.clone().map(|program| ("program".to_owned(), program.into())));
                    if format != LineFormat::Plain {
                        fields.insert("format".to_owned(), format.as_str().into());
                    }
                    fields.into()
                }
            }
        };
        self.iter().map(one).collect()
    }
}

/// Passwords by name.
pub type Users = BTreeMap<String, Secret>;

impl Setting for Users {
    comparable!();

    fn kind(&self) -> &'static str {
        "map of name to password"
    }

    fn read(&mut self, node: &Node, faults: &mut Faults<'_>) {
        let Value::Map(pairs) = &node.value else {
            let found = node.value.kind();
            return faults
                .invalid(node.line, format!("expected names with passwords, found {found}; write {{}} for none"));
        };
        let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
        let mut users = Self::new();
        let mut good = true;
        for pair in pairs {
            let read = faults.within(&format!(".{}", pair.key), |faults| {
                if let Some(first) = lines.insert(&pair.key, pair.line) {
                    faults.add(pair.line, ProblemKind::DuplicateKey { first });
                    return None;
                }
                scalar(&pair.value, faults)
            });
            good &= read.is_some();
            users.extend(read.map(|password| (pair.key.clone(), password)));
        }
        if good {
            *self = users;
        }
    }

    fn read_text(&mut self, text: &str, faults: &mut Faults<'_>) {
        read_variable(self, text, faults);
    }

    fn json(&self) -> serde_json::Value {
        self.keys().map(|name| (name.clone(), HIDDEN.into())).collect::<serde_json::Map<_, _>>().into()
    }
}
