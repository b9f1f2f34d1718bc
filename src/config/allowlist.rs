//! The elements of `allowlist`, and the files that have more of them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::sections::Config;
use super::setting::Scalar;
use banmesh_types::target::Target;

/// The limit on names in all lists.
pub const MAX_NAMES: usize = 256;

/// The limit on elements of all lists.
pub const MAX_ENTRIES: usize = 100_000;

/// The largest file in bytes.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// An element of `allowlist`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowlistEntry {
    /// An address or network.
    Target(Target),
    /// A name in DNS, which stands for the addresses that it has at a time. In lower case, without a final dot.
    Name(String),
}

impl AllowlistEntry {
    /// The address or network; `None` for a name.
    pub const fn target(&self) -> Option<Target> {
        match self {
            Self::Target(target) => Some(*target),
            Self::Name(_) => None,
        }
    }
}

impl Scalar for AllowlistEntry {
    const KIND: &'static str = "an address, a network or a name";
    const KINDS: &'static str = "list of addresses, networks and names";

    fn parse(text: &str) -> Result<Self, String> {
        match (text.parse::<Target>(), name(text)) {
            (Ok(target), _) => Ok(Self::Target(target)),
            (Err(_), Some(name)) => Ok(Self::Name(name)),
            (Err(error), None) => Err(error.to_string()),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Target(target) => target.show(),
            Self::Name(name) => name.clone(),
        }
    }
}

/// `text` as a name in DNS. A misspelt address is not a name, and neither is a single word, except `localhost`.
fn name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_name = name.len() <= 253
        && name.split('.').all(is_label)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
        && (name.contains('.') || name == "localhost");
    is_name.then_some(name)
}

/// The allowlist of a node: what `allowlist` and `allowlist_files` have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowlist {
    /// The addresses and networks.
    pub targets: Vec<Target>,
    /// The names.
    pub names: BTreeSet<String>,
}

/// Why a file of `allowlist_files` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AllowlistError {
    /// It cannot be read.
    #[error("{}: cannot be read: {source}; make it readable for this user, or remove it from allowlist_files", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A line is invalid.
    #[error("{}:{line}: {message}; write one address, network or name per line, and comments after # or ;", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The number of the line.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The lists have too many elements.
    #[error(
        "the allowlist has {count} {what}, the limit is {limit}; list networks instead of single addresses, or fewer names"
    )]
    TooMany {
        /// The number of elements.
        count: usize,
        /// What they are.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
}

/// Reads the allowlist of `config` with its files.
///
/// # Errors
/// The first file that cannot be used, or that there are too many elements.
pub fn read(config: &Config) -> Result<Allowlist, AllowlistError> {
    let mut list = Allowlist::default();
    config.allowlist.iter().cloned().for_each(|entry| list.add(entry));
    for path in &config.allowlist_files {
        let text = read_bounded(path).map_err(|source| AllowlistError::Unreadable { path: path.clone(), source })?;
        parse(&text, path, &mut list)?;
        list.check()?;
    }
    list.check()?;
    Ok(list)
}

impl Allowlist {
    fn add(&mut self, entry: AllowlistEntry) {
        match entry {
            AllowlistEntry::Target(target) => self.targets.push(target),
            AllowlistEntry::Name(name) => _ = self.names.insert(name),
        }
    }

    fn check(&self) -> Result<(), AllowlistError> {
        for (count, what, limit) in
            [(self.names.len(), "names", MAX_NAMES), (self.targets.len(), "addresses and networks", MAX_ENTRIES)]
        {
            if count > limit {
                return Err(AllowlistError::TooMany { count, what, limit });
            }
        }
        Ok(())
    }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other("it is larger than 16 MiB"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Adds the elements in `text`, one per line. `#` and `;` begin a comment.
fn parse(text: &str, path: &Path, list: &mut Allowlist) -> Result<(), AllowlistError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (at, line) in text.lines().enumerate() {
        let element = line.split(['#', ';']).next().unwrap_or_default().trim();
        if element.is_empty() {
            continue;
        }
        let entry = AllowlistEntry::parse(element);
        let invalid = |message| AllowlistError::Invalid { path: path.to_owned(), line: at + 1, message };
        list.add(entry.map_err(invalid)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_addresses_networks_and_names() {
        for (text, shown) in [
            ("192.0.2.1", "192.0.2.1/32"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("Home.Example.org.", "home.example.org"),
            ("a_b.example.org", "a_b.example.org"),
            ("localhost", "localhost"),
            ("1.example", "1.example"),
        ] {
            assert_eq!(AllowlistEntry::parse(text).unwrap().show(), shown, "{text}");
        }
        let long = format!("{}.example", "x".repeat(64));
        for text in [
            "",
            "bogus",
            "192.0.2.300",
            "192.0.2",
            "192.0.2.1/33",
            "1.2.3.4/8",
            "a..b",
            "-a.example",
            "a b.c",
            "fe80::x",
            &long,
        ] {
            assert!(AllowlistEntry::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn files_have_comments_and_a_byte_order_mark() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        std::fs::write(&path, "\u{feff}192.0.2.0/24 # office\r\n; partners\n\nhome.example.org;ann\n  2001:db8::1\n")
            .unwrap();
        let mut config = Config { allowlist_files: vec![path.clone()], ..Config::default() };
        let list = read(&config).unwrap();
        assert_eq!(list.targets.len(), 2 + 2, "those of the default and those of the file");
        assert_eq!(list.names.into_iter().collect::<Vec<_>>(), ["home.example.org"]);
        std::fs::write(&path, "192.0.2.1\nbogus\n").unwrap();
        let error = read(&config).unwrap_err().to_string();
        assert!(error.contains("list:2: ") && error.contains("bogus") && error.contains("one address"), "{error}");
        let names: String = (0..=MAX_NAMES).map(|number| format!("h{number}.example.org\n")).collect();
        std::fs::write(&path, names).unwrap();
        assert!(read(&config).unwrap_err().to_string().contains("257 names, the limit is 256"));
        config.allowlist_files = vec![folder.path().join("none"), folder.path().to_owned()];
        assert!(read(&config).unwrap_err().to_string().contains("none: cannot be read"));
        config.allowlist_files.remove(0);
        assert!(read(&config).unwrap_err().to_string().contains("not a regular file"));
    }
}
