//! The filters that a node can use: the built-in set, and what the operator's directories add or replace.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::{Detector, Filter, FilterError, Mode, Pattern, Place, selftest};

/// The built-in filters: name, and the text of `config/filters/<name>.yaml`.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("apache", include_str!("../filters/apache.yaml")),
    ("asterisk", include_str!("../filters/asterisk.yaml")),
    ("authelia", include_str!("../filters/authelia.yaml")),
    ("authentik", include_str!("../filters/authentik.yaml")),
    ("banmesh", include_str!("../filters/banmesh.yaml")),
    ("caddy", include_str!("../filters/caddy.yaml")),
    ("courier", include_str!("../filters/courier.yaml")),
    ("cyrus", include_str!("../filters/cyrus.yaml")),
    ("dovecot", include_str!("../filters/dovecot.yaml")),
    ("dropbear", include_str!("../filters/dropbear.yaml")),
    ("ejabberd", include_str!("../filters/ejabberd.yaml")),
    ("exim", include_str!("../filters/exim.yaml")),
    ("freeswitch", include_str!("../filters/freeswitch.yaml")),
    ("gitea", include_str!("../filters/gitea.yaml")),
    ("gitlab", include_str!("../filters/gitlab.yaml")),
    ("grafana", include_str!("../filters/grafana.yaml")),
    ("guacamole", include_str!("../filters/guacamole.yaml")),
    ("haproxy", include_str!("../filters/haproxy.yaml")),
    ("home-assistant", include_str!("../filters/home-assistant.yaml")),
    ("horde", include_str!("../filters/horde.yaml")),
    ("hosting", include_str!("../filters/hosting.yaml")),
    ("immich", include_str!("../filters/immich.yaml")),
    ("jellyfin", include_str!("../filters/jellyfin.yaml")),
    ("keycloak", include_str!("../filters/keycloak.yaml")),
    ("lighttpd", include_str!("../filters/lighttpd.yaml")),
    ("mailcow", include_str!("../filters/mailcow.yaml")),
    ("mattermost", include_str!("../filters/mattermost.yaml")),
    ("mongodb", include_str!("../filters/mongodb.yaml")),
    ("monit", include_str!("../filters/monit.yaml")),
    ("mssql", include_str!("../filters/mssql.yaml")),
    ("murmur", include_str!("../filters/murmur.yaml")),
    ("mysql", include_str!("../filters/mysql.yaml")),
    ("named", include_str!("../filters/named.yaml")),
    ("nextcloud", include_str!("../filters/nextcloud.yaml")),
    ("nginx", include_str!("../filters/nginx.yaml")),
    ("openldap", include_str!("../filters/openldap.yaml")),
    ("opensmtpd", include_str!("../filters/opensmtpd.yaml")),
    ("openvpn", include_str!("../filters/openvpn.yaml")),
    ("pam", include_str!("../filters/pam.yaml")),
    ("paperless", include_str!("../filters/paperless.yaml")),
    ("postfix", include_str!("../filters/postfix.yaml")),
    ("postgresql", include_str!("../filters/postgresql.yaml")),
    ("proftpd", include_str!("../filters/proftpd.yaml")),
    ("prosody", include_str!("../filters/prosody.yaml")),
    ("proxmox", include_str!("../filters/proxmox.yaml")),
    ("pure-ftpd", include_str!("../filters/pure-ftpd.yaml")),
    ("roundcube", include_str!("../filters/roundcube.yaml")),
    ("self-hosted", include_str!("../filters/self-hosted.yaml")),
    ("sendmail", include_str!("../filters/sendmail.yaml")),
    ("snappymail", include_str!("../filters/snappymail.yaml")),
    ("sogo", include_str!("../filters/sogo.yaml")),
    ("squid", include_str!("../filters/squid.yaml")),
    ("sshd", include_str!("../filters/sshd.yaml")),
    ("stalwart", include_str!("../filters/stalwart.yaml")),
    ("traefik", include_str!("../filters/traefik.yaml")),
    ("vaultwarden", include_str!("../filters/vaultwarden.yaml")),
    ("vsftpd", include_str!("../filters/vsftpd.yaml")),
    ("web-login", include_str!("../filters/web-login.yaml")),
    ("webmin", include_str!("../filters/webmin.yaml")),
    ("wordpress", include_str!("../filters/wordpress.yaml")),
    ("zimbra", include_str!("../filters/zimbra.yaml")),
];

/// The filters that are in force when the configuration names none.
pub const DEFAULT_ENABLED: [&str; 4] = ["dovecot", "postfix", "sogo", "sshd"];

/// Where a filter comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// It is part of the binary.
    BuiltIn,
    /// It was read from this file.
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

/// Something that is wrong with a filter file, or with what the configuration says of filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterFileError {
    /// The file; `None` for what the configuration says.
    pub origin: Option<Origin>,
    /// The key of the configuration: `filters.enabled` or `syslog.patterns`.
    pub key: Option<&'static str>,
    /// The line in it, from 1, where that is known.
    pub line: Option<usize>,
    /// What is wrong and what to do.
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

/// All of them, a line each.
pub fn lines(errors: &[FilterFileError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A filter and where it comes from.
#[derive(Clone, Debug)]
pub struct LoadedFilter {
    /// The filter.
    pub filter: Filter,
    /// Where it comes from.
    pub origin: Origin,
    /// The file's text, to find the line of an error.
    text: String,
}

/// All filters by name.
#[derive(Clone, Debug, Default)]
pub struct FilterLibrary {
    filters: BTreeMap<String, LoadedFilter>,
}

impl FilterLibrary {
    /// The built-in set alone.
    ///
    /// # Errors
    /// Never with the set that is compiled in; the tests prove it.
    pub fn built_in() -> Result<Self, Vec<FilterFileError>> {
        Self::load(&[])
    }

    /// The built-in set and the files `*.yaml` and `*.yml` of `dirs`. A file's filter replaces the built-in one, and that of
    /// an earlier directory, of the same name.
    ///
    /// # Errors
    /// Everything that is wrong: a directory that cannot be read, a file that is no filter, two files of one directory with
    /// the same filter, a filter that does not compile or does not pass its own test lines.
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

    /// The same filters without the rules that recognise successes: for nodes that make no use of them, as most lines of a
    /// sound mail server tell of successes.
    #[must_use]
    pub fn without_successes(mut self) -> Self {
        self.filters.values_mut().for_each(|loaded| loaded.filter.successregex.clear());
        self
    }

    /// The filter of this name.
    pub fn find(&self, name: &str) -> Option<&LoadedFilter> {
        self.filters.get(name)
    }

    /// All filters, by name.
    pub fn iter(&self) -> impl Iterator<Item = &LoadedFilter> {
        self.filters.values()
    }

    /// The filters that `filters.enabled` names, in its order, each with its mode. `all` stands for every filter, and
    /// `name:mode` sets the mode of one filter.
    ///
    /// # Errors
    /// Names that no filter has, with the nearest one that exists.
    pub fn enabled(&self, names: &[String], mode: Mode) -> Result<Vec<(&LoadedFilter, Mode)>, Vec<FilterFileError>> {
        let mut enabled: Vec<(&LoadedFilter, Mode)> = Vec::new();
        let mut errors = Vec::new();
        for entry in names {
            let (name, mode) = match entry.split_once(':') {
                None => (entry.as_str(), Ok(mode)),
                Some((name, mode)) => (name.trim(), mode.trim().parse::<Mode>()),
            };
            let mode = mode.unwrap_or_else(|text| {
                errors.push(of_config("filters.enabled", format!("`{entry}`: {text}")));
                Mode::Normal
            });
            let chosen: Vec<&LoadedFilter> = match self.filters.get(name) {
                Some(loaded) => vec![loaded],
                None if name == "all" => self.filters.values().collect(),
                None => {
                    let text = format!("there is no filter `{name}`{}", self.nearest(name));
                    errors.push(of_config("filters.enabled", text));
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

    /// Compiles the enabled filters and the patterns of the configuration.
    ///
    /// # Errors
    /// All of them, each with its file, line and rule.
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

    fn locate(&self, error: &FilterError, patterns: &[Pattern]) -> FilterFileError {
        if patterns.iter().any(|pattern| pattern.name == error.place.filter) {
            let text = format!("pattern `{}`: {}", error.place.filter, error.problem);
            return of_config("syslog.patterns", text);
        }
        match self.filters.get(&error.place.filter) {
            Some(loaded) => loaded.locate(&error.place, error.to_string()),
            None => of_config("filters.enabled", error.to_string()),
        }
    }

    /// What to say of a name that no filter has, after the name: the nearest one that exists, or where to look.
    pub fn nearest(&self, name: &str) -> String {
        let distance = |known: &&String| strsim::damerau_levenshtein(known, name);
        match self.filters.keys().min_by_key(distance).filter(|known| distance(known) <= 3) {
            Some(known) => format!(", did you mean `{known}`?"),
            None => "; `banmesh filter list` shows all".to_owned(),
        }
    }
}

impl LoadedFilter {
    /// The file's text.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn locate(&self, place: &Place, text: String) -> FilterFileError {
        let line = place.rule.as_ref().and_then(|rule| line_of(&self.text, rule));
        FilterFileError { origin: Some(self.origin.clone()), key: None, line, text }
    }
}

/// Reads one filter file's text.
///
/// # Errors
/// When it is no filter.
pub fn parse(text: &str, origin: Origin) -> Result<LoadedFilter, FilterFileError> {
    match serde_yaml::from_str::<Filter>(text) {
        Ok(filter) => Ok(LoadedFilter { filter, origin, text: text.to_owned() }),
        Err(error) => {
            let line = error.location().map(|location| location.line());
            Err(FilterFileError { origin: Some(origin), key: None, line, text: error.to_string() })
        }
    }
}

/// Reads one filter file, compiles it and runs its test lines.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_file(path: &Path) -> Result<LoadedFilter, Vec<FilterFileError>> {
    let origin = Origin::File(path.to_owned());
    let text = std::fs::read_to_string(path).map_err(|error| {
        vec![FilterFileError { origin: Some(origin.clone()), key: None, line: None, text: error.to_string() }]
    })?;
    let loaded = parse(&text, origin).map_err(|error| vec![error])?;
    let errors = check(&loaded);
    if errors.is_empty() { Ok(loaded) } else { Err(errors) }
}

fn of_config(key: &'static str, text: String) -> FilterFileError {
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
        text: format!("cannot read this directory of filters.dirs: {error}"),
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
    let mut of_this_dir: BTreeMap<String, PathBuf> = BTreeMap::new();
    for path in paths {
        let loaded = match read_file(&path) {
            Ok(loaded) => loaded,
            Err(found) => {
                errors.extend(found);
                continue;
            }
        };
        let name = loaded.filter.name.clone();
        if let Some(first) = of_this_dir.insert(name.clone(), path.clone()) {
            let text = format!("filter `{name}` is also in {}: give one of them another name", first.display());
            errors.push(FilterFileError { origin: Some(Origin::File(path)), key: None, line: None, text });
        }
        filters.insert(name, loaded);
    }
}

/// The line of the rule with this name: its `name:`, or for `failregex-3` the third entry of the list.
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
