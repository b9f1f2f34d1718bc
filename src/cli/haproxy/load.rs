//! Reads the configuration files of a HAProxy, and the SPOE files that their filters name.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banmesh_haproxy::Version;
use banmesh_haproxy::document::{Dialect, Document, Source, parse};
use banmesh_haproxy::proxies::Configuration;
use banmesh_haproxy::spoe::{SpoeFile, scopes};

/// Larger files are refused.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// The files of one HAProxy.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// All named files together.
    pub configuration: Configuration,
    /// The SPOE files, by the paths in the filters.
    pub spoe: BTreeMap<String, SpoeFile>,
}

/// A named file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {reason}")]
pub struct LoadError {
    path: String,
    reason: io::Error,
}

/// Reads the files `named`, as `haproxy -f` does: a directory means all its `*.cfg` files, sorted by name, and `-` is standard input.
///
/// If `spoe` names files, each filter uses the one that has the same file name, or else the one that has its engine. Otherwise it uses
/// the file that it names, or a file of the same name in the directory of the configuration.
///
/// # Errors
/// When a named file cannot be read.
pub fn load(
    named: &[PathBuf],
    spoe: &[PathBuf],
    version: Version,
    mut environment: BTreeMap<String, String>,
) -> Result<Loaded, LoadError> {
    let mut documents = Vec::new();
    for path in named {
        for file in expand(path)? {
            documents.push(parse(&read(&file)?, Dialect::HaProxy, version, &mut environment));
        }
    }
    let given = spoe
        .iter()
        .map(|path| Ok((path.as_path(), parse(&read(path)?, Dialect::Spoe, version, &mut environment.clone()))))
        .collect::<Result<Vec<_>, LoadError>>()?;
    let configuration = Configuration::new(documents);
    let mut files = BTreeMap::new();
    for line in configuration.proxies.iter().flat_map(|proxy| proxy.spoe_filters()) {
        let Some(written) = line.after("config") else { continue };
        if files.contains_key(written) {
            continue;
        }
        let nearby = |name: &Path| Path::new(&*line.place.file).with_file_name(name);
        let file = if given.is_empty() {
            let path = resolve(written, &configuration, &line.place.file);
            from_disk(
                &path,
                &nearby(Path::new(Path::new(written).file_name().unwrap_or_default())),
                version,
                &environment,
            )
        } else {
            from_given(&given, written, line.after("engine"))
        };
        files.insert(written.to_owned(), file);
    }
    Ok(Loaded { configuration, spoe: files })
}

/// Where HAProxy looks for a relative path: from `default-path` in `global`, otherwise from its working directory.
fn resolve(written: &str, configuration: &Configuration, file: &str) -> PathBuf {
    let path = Path::new(written);
    if path.is_absolute() {
        return path.to_owned();
    }
    let directory = Path::new(file).parent().map(Path::to_owned).unwrap_or_default();
    let default = configuration.global.iter().rev().find(|line| line.word(0) == "default-path");
    let base = match default.map_or(("", ""), |line| (line.word(1), line.word(2))) {
        ("config", _) => directory,
        ("parent", _) => directory.join(".."),
        ("origin", origin) => PathBuf::from(origin),
        _ => PathBuf::new(),
    };
    base.join(path)
}

fn from_disk(path: &Path, nearby: &Path, version: Version, environment: &BTreeMap<String, String>) -> SpoeFile {
    let parsed = |source: &Source| parse(source, Dialect::Spoe, version, &mut environment.clone());
    match read(path) {
        Ok(source) => SpoeFile::Read(parsed(&source)),
        Err(error) => match read(nearby) {
            Ok(source) if nearby != path => SpoeFile::Elsewhere(parsed(&source), source.name),
            _ => SpoeFile::Missing(path.display().to_string().into(), error.reason.to_string()),
        },
    }
}

fn from_given(given: &[(&Path, Document)], written: &str, engine: Option<&str>) -> SpoeFile {
    let name = Path::new(written).file_name();
    let same_name = given.iter().find(|(path, _)| path.file_name() == name);
    let same_engine = || given.iter().find(|(_, document)| scopes(document).contains(&engine));
    match same_name.or_else(same_engine) {
        Some((_, document)) => SpoeFile::Read(document.clone()),
        None => SpoeFile::Missing(written.into(), "no --spoe file has this name or this engine".to_owned()),
    }
}

fn expand(path: &Path) -> Result<Vec<PathBuf>, LoadError> {
    if path == Path::new("-") || !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let failed = |reason| LoadError { path: path.display().to_string(), reason };
    let entries = std::fs::read_dir(path).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let is_hidden = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    let mut files: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "cfg") && path.is_file() && !is_hidden(path));
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Source, LoadError> {
    let failed = |reason| LoadError { path: path.display().to_string(), reason };
    let mut bytes = Vec::new();
    let name: Arc<str> = if path == Path::new("-") {
        io::stdin().lock().take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        "<stdin>".into()
    } else {
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        path.display().to_string().into()
    };
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
        return Err(failed(io::Error::other(format!("the file is larger than {MAX_BYTES} bytes"))));
    }
    Ok(Source { name, text: String::from_utf8_lossy(&bytes).into_owned() })
}
