//! What a node tells the others about its work, for people who look at one node and want to know about all.

use std::time::Duration;

/// How often a node publishes its report at most.
pub const PERIOD: Duration = Duration::from_secs(10);
/// The first field. Another format would have another one.
const FORMAT: &str = "1";
/// The most problems in a report.
const MAX_PROBLEMS: usize = 20;
/// The longest name of a problem, in bytes.
const MAX_NAME: usize = 32;

/// What a node says about its work. All counts are since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct NodeReport {
    /// Log lines received.
    pub lines: u64,
    /// When the last one arrived, in seconds since the epoch; 0 if none has.
    pub last_line: u64,
    /// Lines, datagrams and connections dropped.
    pub dropped: u64,
    /// Offences recognised.
    pub offences: u64,
    /// Open connections from proxies.
    pub connections: u64,
    /// Queries of proxies answered.
    pub checks: u64,
    /// Queries about banned clients among them.
    pub refused: u64,
    /// When the last query was answered, in seconds since the epoch; 0 if none was.
    pub last_check: u64,
    /// Changes that are not on its disk because of an error.
    pub unsaved: u64,
    /// The names of its problems.
    pub problems: Vec<String>,
    /// What people call it: `node.id`, or the name of its host if its id was generated; may be empty.
    pub name: String,
}

impl NodeReport {
    /// As published in the gossip state.
    pub fn to_text(&self) -> String {
        let numbers = self.numbers().map(|number| number.to_string()).join(":");
        let problems = self.problems.iter().filter(|name| is_name(name)).take(MAX_PROBLEMS).cloned();
        let name = if is_host(&self.name) { &*self.name } else { "" };
        format!("{FORMAT}:{numbers}:{}:{name}", problems.collect::<Vec<_>>().join(","))
    }

    /// The inverse of [`NodeReport::to_text`]. Other nodes choose `text`, so everything in it is bounded.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut fields = text.strip_prefix(FORMAT)?.strip_prefix(':')?.split(':');
        let mut number = || fields.next()?.parse::<u64>().ok();
        let report = Self {
            lines: number()?,
            last_line: number()?,
            dropped: number()?,
            offences: number()?,
            connections: number()?,
            checks: number()?,
            refused: number()?,
            last_check: number()?,
            unsaved: number()?,
            problems: Vec::new(),
            name: String::new(),
        };
        let names = fields.next()?.split(',').filter(|name| is_name(name)).take(MAX_PROBLEMS);
        let problems = names.map(str::to_owned).collect();
        let name = fields.next().filter(|name| is_host(name)).unwrap_or_default().to_owned();
        Some(Self { problems, name, ..report })
    }

    const fn numbers(&self) -> [u64; 9] {
        [
            self.lines,
            self.last_line,
            self.dropped,
            self.offences,
            self.connections,
            self.checks,
            self.refused,
            self.last_check,
            self.unsaved,
        ]
    }
}

/// The longest name of a node, in bytes.
const MAX_HOST: usize = 64;

fn is_host(name: &str) -> bool {
    let may = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (1..=MAX_HOST).contains(&name.len()) && name.bytes().all(may)
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_back() {
        let report = NodeReport {
            lines: 1,
            last_line: 2,
            dropped: 3,
            offences: 4,
            connections: 5,
            checks: 6,
            refused: 7,
            last_check: 8,
            unsaved: 9,
            problems: vec!["journal".to_owned(), "late_lines".to_owned()],
            name: "edge-1.example".to_owned(),
        };
        assert_eq!(report.to_text(), "1:1:2:3:4:5:6:7:8:9:journal,late_lines:edge-1.example");
        assert_eq!(NodeReport::from_text(&report.to_text()), Some(report));
        let quiet = NodeReport::default();
        assert_eq!(NodeReport::from_text(&quiet.to_text()), Some(quiet));
    }

    #[test]
    fn a_hostile_report_is_bounded() {
        for text in ["", "1", "2:1:2:3:4:5:6:7:8:9:", "1:1:2:3:4:5:6:7:8:9", "1:-1:2:3:4:5:6:7:8:9:"] {
            assert_eq!(NodeReport::from_text(text), None, "{text}");
        }
        let names = format!("{},<b>,{}", "x".repeat(33), vec!["journal"; 500].join(","));
        let report = NodeReport::from_text(&format!("1:1:2:3:4:5:6:7:8:9:{names}:<b>")).unwrap();
        assert_eq!(report.name, "");
        assert_eq!(report.problems, vec!["journal"; MAX_PROBLEMS]);
    }
}
