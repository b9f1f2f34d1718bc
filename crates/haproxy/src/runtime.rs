//! HAProxy's runtime API (management.txt, section 9.3 "Unix Socket commands"): commands for a map, and their answers.
//!
//! In interactive mode (`prompt`) every line is a command, and every answer ends with `> ` at the beginning of a line. Commands
//! may be sent ahead. With `;` between commands HAProxy up to 3.0 prompts after each, later versions after the last; so there is
//! one command a line here. Up to 3.0, every line of a payload is answered with `+ `.

use std::fmt::Write as _;

use banmesh_types::target::Target;

/// Switches to interactive mode.
pub const PROMPT: &str = "prompt\n";
/// Asks for version, process and whether it is stopping; answered with [`Info`].
pub const SHOW_INFO: &str = "show info\n";
/// Lists the maps, with the number of their entries.
pub const SHOW_MAPS: &str = "show map\n";
/// The longest command that is made, in bytes: half of HAProxy's default `tune.bufsize`, which bounds a command with its payload.
pub const MAX_COMMAND: usize = 8 * 1024;
/// The longest line of an answer that is taken.
const MAX_LINE: usize = 64 * 1024;

/// How HAProxy calls a map: the name of its file, `virt@name` (from 3.0 on), or `#` and its number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MapName(Box<str>);

/// Why a text names no map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` names no map: write it as in haproxy.cfg, such as /etc/haproxy/banmesh.map, without spaces, quotes, `;` and `\\`"
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
    /// Opens a new version of the map, which holds nothing and is not looked at; answered with [`Reply::NewVersion`].
    pub fn prepare(&self) -> String {
        format!("prepare map {self}\n")
    }

    /// Puts a version in the place of the one in force, at once.
    pub fn commit(&self, version: u32) -> String {
        format!("commit map @{version} {self}\n")
    }

    /// Gives an entry that is there another value.
    pub fn set(&self, target: Target, value: u32) -> String {
        format!("set map {self} {target} {value}\n")
    }

    /// Takes an entry out.
    pub fn remove(&self, target: Target) -> String {
        format!("del map {self} {target}\n")
    }

    /// Shows all entries; each line of the answer is read by [`entry`].
    pub fn show(&self) -> String {
        format!("show map {self}\n")
    }

    /// Adds entries that are not there, to the version in force or to one that was opened: as few commands as may be, of at
    /// most [`MAX_COMMAND`] bytes each.
    pub fn add(&self, version: Option<u32>, entries: &[(Target, u32)]) -> Vec<String> {
        let head = match version {
            Some(version) => format!("add map @{version} {self} <<\n"),
            None => format!("add map {self} <<\n"),
        };
        let mut commands: Vec<String> = Vec::new();
        // An IPv6 network and a value are at most 55 bytes.
        let room = MAX_COMMAND - 64;
        for (target, value) in entries {
            if commands.last().is_none_or(|command| command.len() >= room) {
                let mut command = String::with_capacity(MAX_COMMAND);
                command.push_str(&head);
                commands.push(command);
            }
            if let Some(command) = commands.last_mut() {
                // Writing to a string cannot fail.
                let _ = writeln!(command, "{target} {value}");
            }
        }
        commands.iter_mut().for_each(|command| command.push('\n'));
        commands
    }

    /// The number of entries in this map according to one line of the answer to [`SHOW_MAPS`]; `None` for other maps.
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
    /// One line of it that is not empty.
    Line(std::borrow::Cow<'a, str>),
    /// It is complete.
    End,
}

/// An answer that is none: the other side is no HAProxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line of the answer is longer than {MAX_LINE} bytes; is this HAProxy's stats socket?")]
pub struct TooLong;

/// Takes answers apart as they arrive. Holds at most one incomplete line of 64 KiB beside what was fed last.
#[derive(Debug, Default)]
pub struct Answers {
    buffer: Vec<u8>,
    at: usize,
}

impl Answers {
    /// Takes bytes in.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next part; `None` when more bytes are needed.
    ///
    /// # Errors
    /// When a line does not end.
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

/// What a command that changes something was answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It was done.
    Done,
    /// A version was opened.
    NewVersion(u32),
    /// It was not done.
    Refused(Refusal),
}

impl Reply {
    /// Reads the lines of an answer.
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

/// Why HAProxy did not do a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No rule of its configuration uses the map.
    #[error(
        "HAProxy knows no such map; haproxy.map must be written as in a rule of haproxy.cfg, and HAProxy reloaded since \
         (`show map` on its socket lists them)"
    )]
    UnknownMap,
    /// The socket may only look.
    #[error("HAProxy denies it: its socket needs `level admin` in `stats socket`")]
    Denied,
    /// The entry is not there.
    #[error("HAProxy does not have the entry: somebody else writes to this map")]
    NotFound,
    /// It is older than 2.4.
    #[error("HAProxy does not know the command; 2.4 or later is needed")]
    UnknownCommand,
    /// Something else.
    #[error("HAProxy says: {0}")]
    Other(String),
}

impl Refusal {
    /// The kind as one word, for counters.
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

/// What [`SHOW_INFO`] says of interest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// `2.6.12-1+deb12u4`.
    pub version: String,
    /// The process that answers.
    pub pid: u32,
    /// Whether another one has taken its place.
    pub stopping: bool,
}

impl Info {
    /// Takes in one line of the answer.
    pub fn read(&mut self, line: &str) {
        let Some((name, value)) = line.split_once(": ") else { return };
        match name {
            "Version" => self.version = value.trim().chars().filter(|c| !c.is_control()).take(64).collect(),
            "Pid" => self.pid = value.trim().parse().unwrap_or_default(),
            "Stopping" => self.stopping = value.trim() != "0",
            _ => {}
        }
    }

    /// Whether it finds an entry of a map by its key only by looking at all of them: so before 2.9.
    pub fn finds_slowly(&self) -> bool {
        let mut numbers = self.version.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or_default());
        let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        (major, minor) < (2, 9)
    }
}

/// Reads one line of the answer to [`MapName::show`]; `None` when it is no entry that we could have told.
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
    fn answers_are_taken_apart_however_they_arrive() {
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
    fn refusals_are_told_apart() {
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
    fn what_haproxy_says_of_itself_is_read() {
        let mut info = Info::default();
        for line in ["Name: HAProxy", "Version: 2.6.12-1+deb12u4", "Pid: 19119", "Stopping: 1", "nonsense"] {
            info.read(line);
        }
        assert_eq!((info.pid, info.stopping, info.finds_slowly()), (19119, true, true));
        assert!(!Info { version: "3.5-dev5-1".to_owned(), ..Info::default() }.finds_slowly());
        let map: MapName = "/etc/b.map".parse().unwrap();
        let line = "0 (/etc/b.map) pattern loaded from file '/etc/b.map' used by map at file 'c' line 13. curr_ver=0 next_ver=1 \
            entry_cnt=8";
        assert_eq!(map.count(line), Some(8));
        assert_eq!("#0".parse::<MapName>().unwrap().count(line), Some(8));
        assert_eq!("/etc/b".parse::<MapName>().unwrap().count(line), None);
    }

    #[test]
    fn names_that_would_be_commands_are_refused() {
        for text in ["", "a b", "a;b", "a\nb", "@1", "a\\b", "<<", "'a'"] {
            assert!(text.parse::<MapName>().is_err(), "{text:?}");
        }
        assert!("virt@banmesh".parse::<MapName>().is_ok());
    }

    proptest! {
        #[test]
        fn commands_are_bounded_and_hold_every_entry(
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
        fn any_bytes_are_taken_apart_alike_however_they_arrive(bytes: Vec<u8>, step in 1usize..50) {
            prop_assert_eq!(read(&bytes, step), read(&bytes, bytes.len().max(1)));
        }
    }
}
