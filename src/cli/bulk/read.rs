//! Reads the targets of a command from its arguments and from a file with one target per line.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::MAX_TARGETS_PER_REQUEST;
use crate::cli::failure::Failure;
use crate::cli::people::count;
use banmesh_types::target::Target;
use banmesh_types::time::{Span, UnixMillis};

/// The node's answer cuts a refused target to this many characters.
const ECHOED_CHARS: usize = 100;
/// Bytes of a line that are kept. No target is as long, and a file without line feeds must not fill the memory.
const MAX_LINE: usize = 1024;

/// A target as the user gave it, valid or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputTarget {
    value: Value,
    line: Option<usize>,
    end: Option<End>,
}

/// The end of a ban, in a line that has one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// `permanently`.
    Never,
    /// `for 3h`.
    For(Duration),
    /// `until 2027-01-31T12:00:00Z`.
    Until(UnixMillis),
}

impl End {
    /// Reads what follows the target in a line.
    fn read(text: &str) -> Option<Self> {
        match text.split_once(char::is_whitespace) {
            None if text == "permanently" => Some(Self::Never),
            Some(("for", span)) => span.parse::<Span>().ok().map(|span| Self::For(span.0)),
            Some(("until", at)) => at.trim().parse().ok().map(Self::Until),
            _ => None,
        }
    }

    /// Returns an end that is the same for ends close to each other, so that few requests are needed: the time that is left at `now`, longer
    /// by at most one percent. `None` if the end has passed.
    pub fn rounded(self, now: UnixMillis) -> Option<Self> {
        let left = match self {
            Self::Never => return Some(Self::Never),
            Self::For(left) => left,
            Self::Until(at) => at.since(now),
        };
        let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        let step = ((seconds / 100).next_power_of_two() / 2).max(1);
        (seconds > 0).then(|| Self::For(Duration::from_secs(seconds.next_multiple_of(step))))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Target(Target),
    /// Not a target; the node refuses it.
    Invalid(Box<str>),
}

impl InputTarget {
    /// Parses `text`; `line` is its line in the file (1 = first), if it is from a file.
    pub fn new(text: &str, line: Option<usize>) -> Self {
        let text = text.trim();
        let value = text.parse().map_or_else(|_| Value::Invalid(text.into()), Value::Target);
        Self { value, line, end: None }
    }

    /// Parses a target and the end of its ban.
    fn with_end(text: &str, line: Option<usize>) -> Self {
        let (target, end) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        match End::read(end.trim()) {
            Some(end) => Self { end: Some(end), ..Self::new(target, line) },
            None => Self::new(text, line),
        }
    }

    /// Sets the end of the ban; `None` means never.
    #[must_use]
    pub fn ending(self, until: Option<UnixMillis>) -> Self {
        Self { end: Some(until.map_or(End::Never, End::Until)), ..self }
    }

    /// Replaces the end of the ban with [`End::rounded`]. `None` if it has passed.
    pub fn rounded(self, now: UnixMillis) -> Option<Self> {
        match self.end {
            None => Some(self),
            Some(end) => end.rounded(now).map(|end| Self { end: Some(end), ..self }),
        }
    }

    /// The end of its ban, if its line has one.
    pub const fn end(&self) -> Option<End> {
        self.end
    }

    /// The line in the file (1 = first); `None` for an argument.
    pub const fn line(&self) -> Option<usize> {
        self.line
    }

    /// The text to send: canonical if valid.
    pub fn text(&self) -> String {
        match &self.value {
            Value::Target(target) => target.to_string(),
            Value::Invalid(text) => text.to_string(),
        }
    }

    /// Whether the node means this target by `name`, which it cuts to [`ECHOED_CHARS`] characters.
    pub fn is_named(&self, name: &str) -> bool {
        match &self.value {
            Value::Target(target) => name.parse() == Ok(*target),
            Value::Invalid(text) => text.chars().take(ECHOED_CHARS).eq(name.chars()),
        }
    }

    /// The key order of the journal: by prefix length, then by address. Invalid targets come last.
    pub fn in_journal_order(&self, other: &Self) -> Ordering {
        let key = |target: &Self| match target.value {
            Value::Target(target) => (false, target.prefix128(), target.bits()),
            Value::Invalid(_) => (true, 0, 0),
        };
        key(self).cmp(&key(other))
    }
}

impl From<Target> for InputTarget {
    fn from(target: Target) -> Self {
        Self { value: Value::Target(target), line: None, end: None }
    }
}

/// The targets of the arguments, followed by those of the file (`-` is standard input), which is read lazily.
pub struct Targets {
    arguments: Vec<String>,
    /// The position of the next argument.
    next: usize,
    lines: Option<TargetLines>,
    first: Option<Result<InputTarget, Failure>>,
}

impl Targets {
    /// Checks the arguments and opens the file.
    ///
    /// # Errors
    /// [`Failure::Usage`] when an argument is not a target, when the file cannot be read, or when there are no targets. Then nothing must
    /// be done: an argument that is not a target is usually part of a mistyped option. Also when there are more arguments than one
    /// request takes, because they are changed together.
    pub fn read(arguments: Vec<String>, file: Option<PathBuf>) -> Result<Self, Failure> {
        arguments.iter().try_for_each(|text| parsed(text).map(|_| ()))?;
        if arguments.len() > MAX_TARGETS_PER_REQUEST {
            return Err(Failure::Usage(format!(
                "{} are too many for one command, which takes {MAX_TARGETS_PER_REQUEST}; give them in a file with --file",
                count(arguments.len() as u64, "target")
            )));
        }
        let mut lines = file.as_deref().map(TargetLines::open).transpose()?;
        let first = if arguments.is_empty() { lines.as_mut().and_then(Iterator::next) } else { None };
        if arguments.is_empty() && first.is_none() {
            return Err(Failure::Usage("no targets given".to_owned()));
        }
        Ok(Self { arguments, next: 0, lines, first })
    }

    /// Like [`Targets::read`]. A line of the file may have the end of its ban after the target.
    ///
    /// # Errors
    /// Same as [`Targets::read`].
    pub fn read_with_ends(arguments: Vec<String>, file: Option<PathBuf>) -> Result<Self, Failure> {
        let mut targets = Self::read(arguments, file)?;
        if let Some(lines) = &mut targets.lines {
            lines.ends = true;
        }
        // The first line was read as a target alone.
        if let Some(Ok(InputTarget { value: Value::Invalid(text), line, .. })) = &targets.first {
            targets.first = Some(Ok(InputTarget::with_end(text, *line)));
        }
        Ok(targets)
    }

    /// Returns the target if there is exactly one, as an argument.
    pub fn one(&self) -> Option<&str> {
        match (&self.lines, self.arguments.as_slice()) {
            (None, [target]) => Some(target),
            _ => None,
        }
    }

    /// Returns `true` if there is no file. Then all targets are changed, or none.
    pub const fn are_arguments(&self) -> bool {
        self.lines.is_none()
    }
}

impl Iterator for Targets {
    type Item = Result<InputTarget, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(text) = self.arguments.get(self.next) {
            self.next += 1;
            return Some(Ok(InputTarget::new(text, None)));
        }
        self.first.take().or_else(|| self.lines.as_mut()?.next())
    }
}

/// Parses a target of the command line.
///
/// # Errors
/// [`Failure::Usage`], which for host bits in a network shows the network.
pub fn parsed(text: &str) -> Result<Target, Failure> {
    let refused = |error| Failure::Usage(format!("{error}; nothing was changed"));
    text.trim().parse().map_err(refused)
}

/// Iterates over the targets of a file.
struct TargetLines {
    reader: Box<dyn BufRead>,
    path: PathBuf,
    /// The number of the current line (1 = first).
    number: usize,
    buffer: Vec<u8>,
    /// Whether lines may have the end of a ban.
    ends: bool,
}

impl TargetLines {
    fn open(path: &Path) -> Result<Self, Failure> {
        let reader: Box<dyn BufRead> = if path == Path::new("-") {
            Box::new(BufReader::new(io::stdin()))
        } else {
            Box::new(BufReader::new(File::open(path).map_err(|error| unreadable(path, &error))?))
        };
        Ok(Self { reader, path: path.to_owned(), number: 0, buffer: Vec::new(), ends: false })
    }

    /// Reads the next line, keeps up to [`MAX_LINE`] bytes of it, and skips the rest. Returns false at the end of the file.
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
            let room = MAX_LINE.saturating_sub(self.buffer.len()).min(line.len());
            self.buffer.extend_from_slice(line.get(..room).unwrap_or_default());
            let used = line.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return Ok(true);
            }
        }
    }
}

impl Iterator for TargetLines {
    type Item = Result<InputTarget, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.read() {
                Ok(true) => self.number += 1,
                Ok(false) => return None,
                Err(error) => return Some(Err(unreadable(&self.path, &error))),
            }
            // Comments may be in any encoding.
            let line = String::from_utf8_lossy(&self.buffer);
            // The first line of a file from Windows may begin with a byte order mark. Spamhaus marks comments with `;`.
            let line = line.strip_prefix('\u{feff}').unwrap_or(&line);
            let target = line.split(['#', ';']).next().unwrap_or_default().trim();
            if !target.is_empty() {
                let read = if self.ends { InputTarget::with_end } else { InputTarget::new };
                return Some(Ok(read(target, Some(self.number))));
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

    fn read(arguments: &[&str], file: Option<&Path>) -> Result<Vec<InputTarget>, Failure> {
        Targets::read(arguments.iter().map(|text| (*text).to_owned()).collect(), file.map(Path::to_owned))?.collect()
    }

    #[test]
    fn comments_and_blank_lines_of_a_file_are_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("targets");
        std::fs::write(&path, b"# worst f\xfcr us\n192.0.2.1\n\n 2001:db8::/64  # a scanner\r\nnonsense").unwrap();
        let found = read(&["192.0.2.9"], Some(&path)).unwrap();
        let expected = [("192.0.2.9", None), ("192.0.2.1", Some(2)), ("2001:db8::/64", Some(4)), ("nonsense", Some(5))];
        assert_eq!(found, expected.map(|(text, line)| InputTarget::new(text, line)));
        std::fs::write(&path, "# nothing\n").unwrap();
        assert!(matches!(read(&[], Some(&path)), Err(Failure::Usage(_))));
        assert!(matches!(read(&[], Some(&folder.path().join("missing"))), Err(Failure::Usage(_))));
        assert!(matches!(read(&[], Some(folder.path())), Err(Failure::Usage(_))), "a folder");
    }

    #[test]
    fn one_invalid_argument_refuses_all_targets() {
        for wrong in ["for", "1h", "192.0.2.1/8"] {
            let refused = read(&["192.0.2.1", wrong], None).unwrap_err();
            assert!(
                matches!(refused, Failure::Usage(_)) && refused.to_string().contains("nothing was changed"),
                "{refused}"
            );
        }
    }

    #[test]
    fn comments_of_blocklists_and_a_byte_order_mark_are_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("drop.txt");
        std::fs::write(&path, "\u{feff}192.0.2.0/24 ; SBL1\r\n; Spamhaus DROP List\n198.51.100.0/24;SBL2\n").unwrap();
        let expected = [("192.0.2.0/24", Some(1)), ("198.51.100.0/24", Some(3))];
        assert_eq!(read(&[], Some(&path)).unwrap(), expected.map(|(text, line)| InputTarget::new(text, line)));
    }

    #[test]
    fn lines_may_have_the_end_of_their_ban() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bans");
        let text = "192.0.2.1 until 2027-01-31T12:00:00Z  # sshd\n192.0.2.2 for 3h\n2001:db8::/64 permanently\n192.0.2.3\n192.0.2.4 for x\n";
        std::fs::write(&path, text).unwrap();
        let found: Vec<InputTarget> =
            Targets::read_with_ends(Vec::new(), Some(path.clone())).unwrap().collect::<Result<_, _>>().unwrap();
        let until: UnixMillis = "2027-01-31T12:00:00Z".parse().unwrap();
        let ends: Vec<Option<End>> = found.iter().map(InputTarget::end).collect();
        let hours = End::For(Duration::from_secs(3 * 3600));
        assert_eq!(ends, [Some(End::Until(until)), Some(hours), Some(End::Never), None, None]);
        assert_eq!(found[4], InputTarget::new("192.0.2.4 for x", Some(5)));
        // Other commands take targets alone.
        assert_eq!(read(&[], Some(&path)).unwrap()[1], InputTarget::new("192.0.2.2 for 3h", Some(2)));
    }

    #[test]
    fn ends_are_rounded_up_by_at_most_one_percent() {
        let now = UnixMillis(1_800_000_000_000);
        for seconds in [1, 99, 100, 1234, 86_399, 2_000_000] {
            let until = End::Until(now.plus(Duration::from_secs(seconds)));
            let Some(End::For(left)) = until.rounded(now) else { panic!() };
            assert!(left.as_secs() >= seconds && left.as_secs() <= seconds + seconds / 100, "{seconds} {left:?}");
        }
        assert_eq!(End::Until(now).rounded(now), None);
        assert_eq!(End::Never.rounded(now), Some(End::Never));
    }

    #[test]
    fn long_lines_are_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("targets");
        std::fs::write(&path, format!("{}\n192.0.2.1\n", "x".repeat(1 << 20))).unwrap();
        let found = read(&[], Some(&path)).unwrap();
        assert_eq!(found, [InputTarget::new(&"x".repeat(MAX_LINE), Some(1)), InputTarget::new("192.0.2.1", Some(2))]);
    }

    #[test]
    fn targets_sort_in_the_key_order_of_the_journal() {
        let mut all = ["nonsense", "192.0.2.9", "2001:db8::1", "192.0.2.0/24", "2001:db8::/64", "192.0.2.1"]
            .map(|text| InputTarget::new(text, None));
        all.sort_by(InputTarget::in_journal_order);
        let texts = all.map(|target| target.text());
        assert_eq!(texts, ["2001:db8::/64", "192.0.2.0/24", "192.0.2.1", "192.0.2.9", "2001:db8::1", "nonsense"]);
    }
}
