//! HAProxy's runtime API (management.txt, section 9.3 "Unix Socket commands"): commands that change a map, and their answers.
//!
//! In interactive mode ([`PROMPT`]) every line is a command, and every answer ends with `> ` at the beginning of a line. Commands can
//! be pipelined. Commands here are always one per line, because with `;` between commands HAProxy up to 3.0 prompts after each
//! command, but later versions only after the last one. Up to 3.0, HAProxy answers every line of a payload with `+ `.
//!
//! ```
//! use banmesh_haproxy::runtime::{Answers, MapName, Part, Reply};
//!
//! let map: MapName = "/etc/haproxy/banmesh.map".parse()?;
//! let commands = map.add(None, &[("192.0.2.0/24".parse()?, 1)]);
//! assert_eq!(commands, ["add map /etc/haproxy/banmesh.map <<\n192.0.2.0/24 1\n\n"]);
//!
//! let mut answers = Answers::default();
//! answers.feed(b"\n> New version created: 2\n\n> ");
//! assert_eq!(answers.next_part()?, Some(Part::End));
//! let Some(Part::Line(line)) = answers.next_part()? else { panic!("a line") };
//! assert_eq!(Reply::read(&[line.into_owned()]), Reply::NewVersion(2));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt::Write as _;

use banmesh_types::target::Target;

/// Switches to interactive mode.
pub const PROMPT: &str = "prompt\n";
/// Asks for the version and state of the process. [`Info::read`] reads the answer.
pub const SHOW_INFO: &str = "show info\n";
/// Lists the maps. [`MapName::count`] reads the number of entries from the answer.
pub const SHOW_MAPS: &str = "show map\n";
/// Upper bound for the length of a command with its payload, in bytes. It is half of HAProxy's default `tune.bufsize`, which is
/// HAProxy's own bound.
pub const MAX_COMMAND: usize = 8 * 1024;
/// Length of the longest line of an answer that is accepted, in bytes.
const MAX_LINE: usize = 64 * 1024;

/// HAProxy's name for a map: the path of its file, `virt@name` (from 3.0 on), or `#` and a number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MapName(Box<str>);

/// The text is not a valid name of a map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not the name of a map; write it as in haproxy.cfg, for example /etc/haproxy/banmesh.map, without spaces, quotes, `;`, `<` and `\\`"
)]
pub struct MapNameError(pub String);

impl std::str::FromStr for MapName {
    type Err = MapNameError;

    fn from_str(text: &str) -> Result<Self, MapNameError> {
        let plain = |c: char| !c.is_whitespace() && !c.is_control() && !";\\'\"<".contains(c);
        if text.is_empty() || text.len() > 1024 || text.starts_with('@') || !text.chars().all(plain) {
            return Err(MapNameError(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl std::fmt::Display for MapName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl MapName {
    /// Creates a new, empty version of the map, which is not yet used for lookups. The answer is [`Reply::NewVersion`].
    pub fn prepare(&self) -> String {
        format!("prepare map {self}\n")
    }

    /// Replaces the current version atomically.
    pub fn commit(&self, version: u32) -> String {
        format!("commit map @{version} {self}\n")
    }

    /// Changes the value of an existing entry.
    pub fn set(&self, target: Target, value: u32) -> String {
        format!("set map {self} {target} {value}\n")
    }

    /// Removes an entry.
    pub fn remove(&self, target: Target) -> String {
        format!("del map {self} {target}\n")
    }

    /// Lists all entries. [`entry`] reads each line of the answer.
    pub fn show(&self) -> String {
        format!("show map {self}\n")
    }

    /// Adds new entries to the current version (`None`) or to a version that was created with [`Self::prepare`]. Returns as few
    /// commands as possible, of at most [`MAX_COMMAND`] bytes each.
    pub fn add(&self, version: Option<u32>, entries: &[(Target, u32)]) -> Vec<String> {
        let head = match version {
            Some(version) => format!("add map @{version} {self} <<\n"),
            None => format!("add map {self} <<\n"),
        };
        let mut commands: Vec<String> = Vec::new();
        // An IPv6 network and a value take at most 55 bytes.
        let room = MAX_COMMAND - 64;
        for (target, value) in entries {
            if commands.last().is_none_or(|command| command.len() >= room) {
                let mut command = String::with_capacity(MAX_COMMAND);
                command.push_str(&head);
                commands.push(command);
            }
            if let Some(command) = commands.last_mut() {
                // Writing to a string never fails.
                let _ = writeln!(command, "{target} {value}");
            }
        }
        commands.iter_mut().for_each(|command| command.push('\n'));
        commands
    }

    /// Reads the number of entries in this map from one line of the answer to [`SHOW_MAPS`]. `None` for the lines of other maps.
    pub fn count(&self, line: &str) -> Option<u64> {
        let (id, rest) = line.split_once(' ')?;
        let by_number = self.0.strip_prefix('#').is_some_and(|number| number == id);
        let named = rest.strip_prefix('(').and_then(|rest| rest.strip_prefix(&*self.0));
        if !by_number && !named.is_some_and(|rest| rest.starts_with(')')) {
            return None;
        }
        line.rsplit_once("entry_cnt=")?.1.split(' ').next()?.parse().ok()
    }
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// A line that is not empty.
    Line(std::borrow::Cow<'a, str>),
    /// The end of the answer.
    End,
}

/// A line of an answer is too long, so the other side is probably not HAProxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line of the answer is longer than {MAX_LINE} bytes; check that this is HAProxy's stats socket")]
pub struct TooLong;

/// Splits the output of HAProxy into answers. It buffers the bytes of the last [`Self::feed`] and at most one incomplete line of
/// 64 KiB.
#[derive(Debug, Default)]
pub struct Answers {
    buffer: Vec<u8>,
    at: usize,
}

impl Answers {
    /// Adds bytes that were read from HAProxy. Call [`Self::next_part`] until it returns `None` before you add more.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next part. `None` when more bytes are needed.
    ///
    /// # Errors
    /// When a line is longer than 64 KiB.
    pub fn next_part(&mut self) -> Result<Option<Part<'_>>, TooLong> {
        loop {
            let rest = self.buffer.get(self.at..).unwrap_or_default();
            match rest {
                [b'>', b' ', ..] => {
                    self.at += 2;
                    return Ok(Some(Part::End));
                }
                [b'+', b' ', ..] => self.at += 2,
                [b'\n', ..] => self.at += 1,
                _ => {
                    let Some(end) = memchr::memchr(b'\n', rest) else {
                        return if rest.len() > MAX_LINE { Err(TooLong) } else { Ok(None) };
                    };
                    let start = self.at;
                    self.at += end + 1;
                    let line = self.buffer.get(start..start + end).unwrap_or_default();
                    return Ok(Some(Part::Line(String::from_utf8_lossy(line))));
                }
            }
        }
    }
}

/// The answer to a command that changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// HAProxy executed the command.
    Done,
    /// HAProxy created this version of the map.
    NewVersion(u32),
    /// HAProxy did not execute the command.
    Refused(Refusal),
}

impl Reply {
    /// Parses the lines of an answer.
    pub fn read(lines: &[String]) -> Self {
        let Some(first) = lines.first().map(|line| line.trim()).filter(|line| !line.is_empty()) else {
            return Self::Done;
        };
        if let Some(version) = first.strip_prefix("New version created: ").and_then(|rest| rest.parse().ok()) {
            return Self::NewVersion(version);
        }
        let lower = first.to_ascii_lowercase();
        Self::Refused(if lower.contains("unknown map identifier") {
            Refusal::UnknownMap
        } else if lower.contains("permission denied") {
            Refusal::Denied
        } else if lower.contains("not found") {
            Refusal::NotFound
        } else if lower.starts_with("unknown command") {
            Refusal::UnknownCommand
        } else {
            Refusal::Other(first.chars().filter(|c| !c.is_control()).take(200).collect())
        })
    }
}

/// Why HAProxy did not execute a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No rule in HAProxy's configuration uses the map.
    #[error(
        "HAProxy has no such map; write haproxy.map as in a rule of haproxy.cfg, and reload HAProxy after adding the rule \
         (`show map` on its socket lists all maps)"
    )]
    UnknownMap,
    /// The socket does not have level admin.
    #[error("HAProxy denies permission; the `stats socket` needs `level admin`")]
    Denied,
    /// The entry does not exist.
    #[error("HAProxy does not have the entry, so something else also writes to this map")]
    NotFound,
    /// HAProxy is older than 2.4.
    #[error("HAProxy does not support the command; version 2.4 or later is needed")]
    UnknownCommand,
    /// Any other answer: its first line, at most 200 characters, without control characters.
    #[error("HAProxy answers: {0}")]
    Other(String),
}

impl Refusal {
    /// The reason as a label for metrics.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::UnknownMap => "unknown_map",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::UnknownCommand => "unknown_command",
            Self::Other(_) => "other",
        }
    }
}

/// Selected fields of the answer to [`SHOW_INFO`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// The full version, such as `2.6.12-1+deb12u4`. Empty until it is read.
    pub version: String,
    /// The process id. 0 until it is read.
    pub pid: u32,
    /// Whether the process is stopping because a reload replaced it.
    pub stopping: bool,
}

impl Info {
    /// Reads one line of the answer. Other fields are ignored.
    pub fn read(&mut self, line: &str) {
        let Some((name, value)) = line.split_once(": ") else { return };
        match name {
            "Version" => self.version = value.trim().chars().filter(|c| !c.is_control()).take(64).collect(),
            "Pid" => self.pid = value.trim().parse().unwrap_or_default(),
            "Stopping" => self.stopping = value.trim() != "0",
            _ => {}
        }
    }

    /// Whether HAProxy scans the whole map to find an entry by its key, which versions before 2.9 do.
    pub fn scans_maps(&self) -> bool {
        let mut numbers = self.version.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or_default());
        let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        (major, minor) < (2, 9)
    }
}

/// Parses one line of the answer to [`MapName::show`]. `None` if the key is not an address or network, or the value is not a number.
pub fn entry(line: &str) -> Option<(Target, u32)> {
    let mut words = line.split(' ');
    let (_address, key, value) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    Some((key.parse().ok()?, value.trim_end().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8], step: usize) -> Vec<Vec<String>> {
        let mut answers = Answers::default();
        let (mut found, mut lines) = (Vec::new(), Vec::new());
        for chunk in bytes.chunks(step) {
            answers.feed(chunk);
            while let Some(part) = answers.next_part().unwrap() {
                match part {
                    Part::Line(line) => lines.push(line.into_owned()),
                    Part::End => found.push(std::mem::take(&mut lines)),
                }
            }
        }
        found
    }

    #[test]
    fn answers_are_split_independently_of_reads() {
        // Recorded from 2.6: prompt, a payload, an error, a list, two answers in one.
        let recorded = b"\n> + + + \n> Key not found.\n\n> 0x7f8a5c0465b0 1.2.3.4 5\n0x7f8a5c0466f0 2001:db8::/32 4294967295\n\n> \n> \
            New version created: 2\n\n> ";
        for step in 1..recorded.len() {
            let found = read(recorded, step);
            assert_eq!(found.len(), 6, "{found:?}");
            let replies: Vec<Reply> = found.iter().map(|lines| Reply::read(lines)).collect();
            assert_eq!(replies[..3], [Reply::Done, Reply::Done, Reply::Refused(Refusal::NotFound)]);
            assert_eq!(entry(&found[3][1]), Some(("2001:db8::/32".parse().unwrap(), u32::MAX)));
            assert_eq!(replies[4..], [Reply::Done, Reply::NewVersion(2)]);
        }
    }

    #[test]
    fn refusals_are_distinguished() {
        for (text, kind) in [
            ("Unknown map identifier. Please use #<id> or <file>.", "unknown_map"),
            ("Permission denied", "denied"),
            ("entry not found.", "not_found"),
            ("Unknown command, but maybe one of the following ones is a better match:", "unknown_command"),
            ("Version number in the future, please use 'prepare map' before.", "other"),
        ] {
            let Reply::Refused(refusal) = Reply::read(&[text.to_owned()]) else { panic!("{text}") };
            assert_eq!(refusal.kind(), kind);
        }
    }

    #[test]
    fn info_and_entry_counts_are_parsed() {
        let mut info = Info::default();
        for line in ["Name: HAProxy", "Version: 2.6.12-1+deb12u4", "Pid: 19119", "Stopping: 1", "nonsense"] {
            info.read(line);
        }
        assert_eq!((info.pid, info.stopping, info.scans_maps()), (19119, true, true));
        assert!(!Info { version: "3.5-dev5-1".to_owned(), ..Info::default() }.scans_maps());
        let map: MapName = "/etc/b.map".parse().unwrap();
        let line = "0 (/etc/b.map) pattern loaded from file '/etc/b.map' used by map at file 'c' line 13. curr_ver=0 next_ver=1 \
            entry_cnt=8";
        assert_eq!(map.count(line), Some(8));
        assert_eq!("#0".parse::<MapName>().unwrap().count(line), Some(8));
        assert_eq!("/etc/b".parse::<MapName>().unwrap().count(line), None);
    }

    #[test]
    fn map_names_cannot_contain_commands() {
        for text in ["", "a b", "a;b", "a\nb", "@1", "a\\b", "<<", "'a'"] {
            assert!(text.parse::<MapName>().is_err(), "{text:?}");
        }
        assert!("virt@banmesh".parse::<MapName>().is_ok());
    }

    proptest! {
        #[test]
        fn commands_are_bounded_and_contain_every_entry(
            entries in proptest::collection::vec((any::<u128>(), 0u8..=128, any::<u32>()), 0..2000),
        ) {
            let map: MapName = "/etc/haproxy/banmesh.map".parse().unwrap();
            let entries: Vec<_> = entries.into_iter().map(|(bits, p, value)| (Target::from_bits(bits, p), value)).collect();
            let commands = map.add(Some(7), &entries);
            let mut found = Vec::new();
            for command in &commands {
                prop_assert!(command.len() <= MAX_COMMAND && command.ends_with("\n\n"));
                found.extend(command.lines().skip(1).filter_map(|line| entry(&format!("0x0 {line}"))));
            }
            prop_assert_eq!(found, entries);
        }

        #[test]
        fn any_bytes_are_split_independently_of_reads(bytes: Vec<u8>, step in 1usize..50) {
            prop_assert_eq!(read(&bytes, step), read(&bytes, bytes.len().max(1)));
        }
    }
}
