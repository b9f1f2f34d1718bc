//! Which files match the patterns of `inputs.files`.

use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Source;
use super::followed::Lines;
use super::positions::FileId;

/// The patterns with the programs that write their files.
#[derive(Debug)]
pub(super) struct Patterns(Vec<(String, Lines)>);

impl Patterns {
    pub(super) fn new(sources: &[Source]) -> Self {
        Self(
            sources
                .iter()
                .map(|one| {
                    let program = one.program.as_deref().map(Arc::from);
                    (one.path.clone(), Lines { program, format: one.format })
                })
                .collect(),
        )
    }

    /// The paths, other than globs, of files that do not exist.
    pub(super) fn missing(&self) -> impl Iterator<Item = &str> {
        let paths = self.0.iter().map(|(pattern, _)| pattern.as_str());
        paths.filter(|pattern| !is_glob(pattern) && !Path::new(pattern).exists())
    }

    /// The directories in which a new name may match a pattern. `None` if one of them does not exist, or if they cannot be listed.
    pub(super) fn directories(&self) -> Option<HashSet<PathBuf>> {
        let mut directories = HashSet::new();
        for (pattern, _) in &self.0 {
            // `/srv/*/log/*.log`: a directory may appear in /srv, `log` in each of those, and files in all of them.
            let parts: Vec<&str> = pattern.split('/').collect();
            if parts.contains(&"**") {
                return None;
            }
            let first = parts.iter().position(|part| is_glob(part)).unwrap_or(parts.len() - 1);
            for length in first..parts.len() {
                let parent = parts.get(..length).unwrap_or_default().join("/");
                let parent = if parent.is_empty() { "/".to_owned() } else { parent };
                let found = match is_glob(&parent) {
                    true => glob::glob(&parent).into_iter().flatten().filter_map(Result::ok).collect(),
                    false => vec![PathBuf::from(parent)],
                };
                for directory in found.into_iter().filter(|directory| !directory.is_file()) {
                    directories.insert(directory.canonicalize().ok()?);
                }
            }
        }
        Some(directories)
    }

    /// The files that match the patterns, each once, and those that cannot be examined.
    #[expect(clippy::type_complexity, reason = "two lists that the caller destructures")]
    pub(super) fn find(&self) -> (Vec<(PathBuf, FileId, Lines)>, Vec<(PathBuf, io::Error)>) {
        let (mut found, mut failures, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        let mut look = |path: PathBuf, program: &Lines| match id_of(&path) {
            Ok(Some(id)) => {
                if seen.insert(id) {
                    found.push((path, id, program.clone()));
                }
            }
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => failures.push((path, error)),
        };
        for (pattern, program) in &self.0 {
            if !is_glob(pattern) {
                look(PathBuf::from(pattern), program);
                continue;
            }
            let options = glob::MatchOptions {
                require_literal_leading_dot: true,
                require_literal_separator: true,
                ..glob::MatchOptions::default()
            };
            for path in glob::glob_with(pattern, options).into_iter().flatten().filter_map(Result::ok) {
                if !is_compressed(&path) {
                    look(path, program);
                }
            }
        }
        (found, failures)
    }
}

/// The id of `path`, if it is a regular file.
pub(super) fn id_of(path: &Path) -> io::Result<Option<FileId>> {
    let metadata = fs::metadata(path)?;
    Ok(metadata.is_file().then(|| FileId::of(&metadata)))
}

fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?', '['])
}

/// Whether it is a compressed rotated file.
fn is_compressed(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| ["gz", "bz2", "xz", "zst", "lz4", "Z"].iter().any(|known| extension == *known))
}
