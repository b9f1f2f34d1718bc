//! Reads the targets of a command: from its arguments and from a file, one per line.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::Failure;
use banmesh_types::target::Target;

/// Characters of a refused target that the node's answer names.
const SHOWN: usize = 100;
/// Bytes of a line that are looked at. No target is as long, and a file without lines must not fill the memory.
const LINE: usize = 1024;

/// An address or network as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    named: Named,
    line: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Named {
    Target(Target),
    /// Something else, which the node refuses.
    Text(Box<str>),
}

impl Given {
    /// What `text` names, in this line of the file (1 = first).
    pub fn new(text: &str, line: Option<usize>) -> Self {
        let text = text.trim();
        let named = text.parse().map_or_else(|_| Named::Text(text.into()), Named::Target);
        Self { named, line }
    }

    /// The line of the file that it stands in.
    pub const fn line(&self) -> Option<usize> {
        self.line
    }

    /// As it is sent.
    pub fn text(&self) -> String {
        match &self.named {
            Named::Target(target) => target.to_string(),
            Named::Text(text) => text.to_string(),
        }
    }

    /// Whether `name`, which the node has cut to [`SHOWN`] characters, is it.
    pub fn is_named(&self, name: &str) -> bool {
        match &self.named {
            Named::Target(target) => name.parse() == Ok(*target),
            Named::Text(text) => text.chars().take(SHOWN).eq(name.chars()),
        }
    }

    /// The order of the journal's keys: by prefix, then by address. What is no target comes last.
    pub fn in_journal_order(&self, other: &Self) -> Ordering {
        let key = |given: &Self| match given.named {
            Named::Target(target) => (false, target.prefix128(), target.bits()),
            Named::Text(_) => (true, 0, 0),
        };
        key(self).cmp(&key(other))
    }
}

impl From<Target> for Given {
    fn from(target: Target) -> Self {
        Self { named: Named::Target(target), line: None }
    }
}

/// The targets that were given, and then those of the file (`-` is standard input), read as they are taken.
///
/// # Errors
/// [`Failure::Usage`] when the file cannot be read or there are no targets.
pub fn targets(
    given: Vec<String>,
    file: Option<&Path>,
) -> Result<impl Iterator<Item = Result<Given, Failure>> + use<>, Failure> {
    let lines = file.map(Lines::open).transpose()?;
    let given = given.into_iter().map(|text| Ok(Given::new(&text, None)));
    let mut all = given.chain(lines.into_iter().flatten()).peekable();
    if all.peek().is_none() {
        return Err(Failure::Usage("there are no targets".to_owned()));
    }
    Ok(all)
}

/// The targets of a file.
struct Lines {
    reader: Box<dyn BufRead>,
    path: PathBuf,
    number: usize,
    buffer: Vec<u8>,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, Failure> {
        let reader: Box<dyn BufRead> = if path == Path::new("-") {
            Box::new(BufReader::new(io::stdin()))
        } else {
            Box::new(BufReader::new(File::open(path).map_err(|error| unreadable(path, &error))?))
        };
        Ok(Self { reader, path: path.to_owned(), number: 0, buffer: Vec::new() })
    }

    /// Reads the next line, up to [`LINE`] bytes of it, and skips the rest. Whether there was one.
    fn read(&mut self) -> io::Result<bool> {
        self.buffer.clear();
        let mut found = false;
        loop {
            let bytes = self.reader.fill_buf()?;
            if bytes.is_empty() {
                return Ok(found);
            }
            found = true;
            let end = memchr::memchr(b'\n', bytes);
            let line = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
            let room = LINE.saturating_sub(self.buffer.len()).min(line.len());
            self.buffer.extend_from_slice(line.get(..room).unwrap_or_default());
            let used = line.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return Ok(true);
            }
        }
    }
}

impl Iterator for Lines {
    type Item = Result<Given, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.read() {
                Ok(true) => self.number += 1,
                Ok(false) => return None,
                Err(error) => return Some(Err(unreadable(&self.path, &error))),
            }
            // A comment may be in any encoding.
            let line = String::from_utf8_lossy(&self.buffer);
            let target = line.split('#').next().unwrap_or_default().trim();
            if !target.is_empty() {
                return Some(Ok(Given::new(target, Some(self.number))));
            }
        }
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::Usage(format!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &[&str], file: Option<&Path>) -> Result<Vec<Given>, Failure> {
        targets(given.iter().map(|text| (*text).to_owned()).collect(), file)?.collect()
    }

    #[test]
    fn a_file_holds_one_target_per_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("targets");
        std::fs::write(&path, b"# worst f\xfcr us\n192.0.2.1\n\n 2001:db8::/64  # a scanner\r\nnonsense").unwrap();
        let found = read(&["192.0.2.9"], Some(&path)).unwrap();
        let expected = [("192.0.2.9", None), ("192.0.2.1", Some(2)), ("2001:db8::/64", Some(4)), ("nonsense", Some(5))];
        assert_eq!(found, expected.map(|(text, line)| Given::new(text, line)));
        std::fs::write(&path, "# nothing\n").unwrap();
        assert!(matches!(read(&[], Some(&path)), Err(Failure::Usage(_))));
        assert!(matches!(read(&[], Some(&folder.path().join("missing"))), Err(Failure::Usage(_))));
        assert!(matches!(read(&[], Some(folder.path())), Err(Failure::Usage(_))), "a folder");
    }

    #[test]
    fn of_a_long_line_only_the_beginning_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("targets");
        std::fs::write(&path, format!("{}\n192.0.2.1\n", "x".repeat(1 << 20))).unwrap();
        let found = read(&[], Some(&path)).unwrap();
        assert_eq!(found, [Given::new(&"x".repeat(LINE), Some(1)), Given::new("192.0.2.1", Some(2))]);
    }

    #[test]
    fn targets_are_sorted_as_the_journal_is() {
        let mut all = ["nonsense", "192.0.2.9", "2001:db8::1", "192.0.2.0/24", "2001:db8::/64", "192.0.2.1"]
            .map(|text| Given::new(text, None));
        all.sort_by(Given::in_journal_order);
        let texts = all.map(|given| given.text());
        assert_eq!(texts, ["2001:db8::/64", "192.0.2.0/24", "192.0.2.1", "192.0.2.9", "2001:db8::1", "nonsense"]);
    }
}
