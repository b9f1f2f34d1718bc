//! From a block of lines to offences with their times. Runs what the inputs of a node run on each line.

use std::sync::Arc;

use crate::inputs::detect::{Detection, view_of};
use crate::inputs::journald::timed_message;
use banmesh_core::judge::{Kind, Offence};
use banmesh_filter::{LineView, Scratch, Writer};
use banmesh_syslog::{Line, Written, flatten, parse, trim};
use banmesh_types::address::Address;

/// Half a year, in milliseconds. A time without a year is at most this much before or after the middle of the year before the file's end.
const HALF_A_YEAR: i64 = 182 * 86_400_000;
/// How far a line may be ahead of the time at which its file was last written, in milliseconds. A time further ahead is ignored.
const AHEAD: i64 = 86_400_000;
/// How many lines before an offence without a time are examined for one.
const LOOK_BACK: usize = 64;
/// Bytes of a line in which a time in the format of web servers is looked for.
const WEB_TIME: usize = 256;

/// Converts the times of one file's lines.
#[derive(Clone, Copy, Debug)]
pub struct LineClock {
    /// When the file was last written, in milliseconds since 1970.
    pub written: i64,
    /// The zone of times that name none, in milliseconds east of UTC.
    pub zone: i64,
}

impl LineClock {
    /// Returns milliseconds since 1970.
    fn at(self, written: Written) -> Option<i64> {
        let at = match written {
            Written::Exact(at) => at,
            Written::Local(at) => at.saturating_sub(self.zone),
            Written::Yearless { .. } => {
                let around = self.written.saturating_add(self.zone).saturating_sub(HALF_A_YEAR);
                written.millis(around).saturating_sub(self.zone)
            }
        };
        (at >= 0 && at <= self.written.saturating_add(AHEAD)).then_some(at)
    }
}

/// Filters, and how to read the lines.
#[derive(Clone, Debug)]
pub struct Scanner {
    /// The filters as a node uses them.
    pub detection: Arc<Detection>,
    /// The same with the rules for successful logins. `None` if a node uses these too.
    pub with_successes: Option<Arc<Detection>>,
    /// The program that wrote the lines, as `inputs.files` has it. `None`: the lines name it.
    pub program: Option<Arc<[u8]>>,
}

/// An offence or a login in a block.
#[derive(Clone, Debug)]
pub struct Found {
    /// The number of the scanner.
    pub scanner: usize,
    /// Milliseconds since 1970; `None` if neither the line nor one shortly before it has a time.
    pub at: Option<i64>,
    /// What was found.
    pub offence: Offence,
    /// Whether a node would find it too. Otherwise it is a login, which a node does not look for.
    pub real: bool,
}

/// What is in a block of lines.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// Lines that are not empty.
    pub lines: u64,
    /// Lines longer than `syslog.max_line`, which are skipped as in a node.
    pub too_long: u64,
    /// The time of the first and of the last line that has one.
    pub span: Option<(i64, i64)>,
    /// Offences and logins, in the order of the lines.
    pub found: Vec<Found>,
}

/// Examines the lines in `bytes`. Keep the scratches, one per scanner, for the next block of the same file if filters combine lines.
pub fn scan(
    bytes: &mut [u8],
    clock: LineClock,
    max_line: usize,
    scanners: &[Scanner],
    scratches: &mut [Scratch],
) -> Block {
    let mut block = Block::default();
    let mut start = 0;
    let ends: Vec<usize> = memchr::memchr_iter(b'\n', bytes).collect();
    let mut earlier: Vec<(usize, usize)> = Vec::with_capacity(ends.len() + 1);
    for end in ends.into_iter().chain([bytes.len()]) {
        let range = (start, end);
        start = end + 1;
        let Some(line) = bytes.get_mut(range.0..range.1) else { continue };
        if trim(line).is_empty() {
            continue;
        }
        let is_journal = line.starts_with(b"{\"");
        if line.len() > max_line && !is_journal {
            block.too_long += 1;
            continue;
        }
        flatten(line);
        block.lines += 1;
        earlier.push(range);
        let Some(line) = bytes.get(range.0..range.1) else { continue };
        let line = banmesh_syslog::trim_end(line);
        let before = block.found.len();
        if is_journal {
            scan_journal(line, scanners, scratches, &mut block.found);
        } else {
            scan_line(line, clock, scanners, scratches, &mut block.found);
        }
        for at in before..block.found.len() {
            if block.found.get(at).is_some_and(|found| found.at.is_none()) {
                let time = time_before(bytes, &earlier, clock);
                if let Some(found) = block.found.get_mut(at) {
                    found.at = time;
                }
            }
        }
    }
    let time = |range: &(usize, usize)| time_of_line(bytes.get(range.0..range.1)?, clock);
    let first = earlier.iter().take(LOOK_BACK).find_map(time);
    let last = earlier.iter().rev().take(LOOK_BACK).find_map(time);
    block.span = first.zip(last);
    block
}

fn scan_line(line: &[u8], clock: LineClock, scanners: &[Scanner], scratches: &mut [Scratch], out: &mut Vec<Found>) {
    let parsed = parse(line);
    for (number, (scanner, scratch)) in scanners.iter().zip(scratches).enumerate() {
        let (view, times) = match &scanner.program {
            Some(program) => (message_of(program, line), 1),
            None => view_of(line, &parsed, here()),
        };
        let at = || parsed.written().and_then(|written| clock.at(written)).or_else(|| web_time(line, clock));
        detect(number, scanner, view, times, scratch, at, out);
    }
}

fn scan_journal(line: &[u8], scanners: &[Scanner], scratches: &mut [Scratch], out: &mut Vec<Found>) {
    let Some((program, mut message, at)) = timed_message(line) else { return };
    message.truncate(banmesh_syslog::trim_end(&message).len());
    flatten(&mut message);
    let at = at.and_then(|at| i64::try_from(at.0).ok());
    for (number, (scanner, scratch)) in scanners.iter().zip(scratches).enumerate() {
        let program = scanner.program.as_deref().or(program.as_deref()).unwrap_or_default();
        detect(number, scanner, message_of(program, &message), 1, scratch, || at, out);
    }
}

fn message_of<'a>(program: &'a [u8], message: &'a [u8]) -> LineView<'a> {
    let writer = Writer { sender: Some(here()), ..Writer::default() };
    LineView { writer, ..LineView::message(program, message) }
}

fn detect(
    scanner: usize,
    filters: &Scanner,
    view: LineView<'_>,
    times: u32,
    scratch: &mut Scratch,
    at: impl Fn() -> Option<i64>,
    out: &mut Vec<Found>,
) {
    let Some(all) = &filters.with_successes else {
        let found = filters.detection.offence(view, times, scratch);
        out.extend(found.map(|(offence, _)| Found { scanner, at: at(), offence, real: true }));
        return;
    };
    let Some((offence, _)) = all.offence(view, times, scratch) else { return };
    let is_login = offence.kind == Kind::Success;
    if is_login {
        // A node without these rules may see an offence in the line.
        let found = filters.detection.offence(view, times, scratch);
        out.extend(found.map(|(offence, _)| Found { scanner, at: at(), offence, real: true }));
    }
    out.push(Found { scanner, at: at(), offence, real: !is_login });
}

/// The sender of lines in a file.
fn here() -> Address {
    Address::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST))
}

fn time_before(bytes: &[u8], earlier: &[(usize, usize)], clock: LineClock) -> Option<i64> {
    earlier.iter().rev().take(LOOK_BACK).find_map(|range| time_of_line(bytes.get(range.0..range.1)?, clock))
}

/// Returns the time of a line, in milliseconds since 1970.
pub fn time_of_line(line: &[u8], clock: LineClock) -> Option<i64> {
    if line.starts_with(b"{\"") {
        return timed_message(line)?.2.and_then(|at| i64::try_from(at.0).ok());
    }
    let parsed: Line<'_> = parse(line);
    parsed.written().and_then(|written| clock.at(written)).or_else(|| web_time(line, clock))
}

/// Reads the time of web servers: `[28/Nov/2026:10:00:00 +0100]` in access logs, and `2026/11/28 10:00:00` at the beginning of nginx's
/// error log. Both are written as a syslog header has them, and read as such.
fn web_time(line: &[u8], clock: LineClock) -> Option<i64> {
    let begin = line.get(..line.len().min(WEB_TIME))?;
    let header = |text: &[u8]| Written::read(text).and_then(|written| clock.at(written));
    if let Some([b'/', month @ .., b'/', _, _, b' ']) = begin.get(4..11).filter(|_| begin.len() >= 19)
        && begin.iter().take(4).all(u8::is_ascii_digit)
    {
        let day = begin.get(8..10)?;
        return header(&[begin.get(..4)?, b"-", month, b"-", day, b"T", begin.get(11..19)?].concat());
    }
    let open = memchr::memchr_iter(b'[', begin).find(|at| {
        let text = begin.get(at + 1..at + 21).unwrap_or_default();
        matches!(text, [_, _, b'/', _, _, _, b'/', _, _, _, _, b':', ..])
    })?;
    let text = begin.get(open + 1..open + 27)?;
    let months: [&[u8]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    let month = months.iter().position(|month| text.get(3..6) == Some(*month))? + 1;
    let month = format!("{month:02}");
    let zone = text.get(21..26)?;
    header(&[text.get(7..11)?, b"-", month.as_bytes(), b"-", text.get(..2)?, b"T", text.get(12..20)?, zone].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use banmesh_types::time::UnixMillis;

    fn time(line: &str, zone_hours: i64) -> Option<String> {
        let written = i64::try_from("2027-01-02T00:00:00Z".parse::<UnixMillis>().unwrap().0).unwrap();
        let clock = LineClock { written, zone: zone_hours * 3_600_000 };
        time_of_line(line.as_bytes(), clock).map(|at| UnixMillis(u64::try_from(at).unwrap()).to_string())
    }

    #[test]
    fn times_are_read_in_every_usual_format() {
        for (line, zone, expected) in [
            ("Dec 31 23:00:00 mx sshd[1]: x", 0, "2026-12-31T23:00:00Z"),
            ("Dec 31 23:00:00 mx sshd[1]: x", 2, "2026-12-31T21:00:00Z"),
            ("Jan  1 01:00:00 mx sshd[1]: x", 2, "2026-12-31T23:00:00Z"),
            ("Feb  1 01:00:00 mx sshd[1]: x", 0, "2026-02-01T01:00:00Z"),
            ("2026-11-28T10:00:00+01:00 mx sshd[1]: x", 5, "2026-11-28T09:00:00Z"),
            ("192.0.2.1 - bob [28/Nov/2026:10:00:00 +0100] \"GET / HTTP/1.1\" 401 0", 5, "2026-11-28T09:00:00Z"),
            ("2026/11/28 10:00:00 [error] 7#7: *1 x, client: 192.0.2.1", 1, "2026-11-28T09:00:00Z"),
            ("{\"MESSAGE\":\"x\",\"__REALTIME_TIMESTAMP\":\"1795000000123456\"}", 0, "2026-11-18T11:06:40Z"),
        ] {
            assert_eq!(time(line, zone).as_deref(), Some(expected), "{line}");
        }
        assert_eq!(time("no time at all", 0), None);
        assert_eq!(time("2028-01-01T00:00:00Z mx sshd[1]: a wrong clock", 0), None);
    }
}
