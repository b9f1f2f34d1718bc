//! Output for people and for programs.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::time::Duration;

use serde::Serialize;

use super::people::{Zone, fit};

use banmesh_core::visible::deceives;
use banmesh_types::time::Span;

/// The output of a command. A closed pipe ends the command without a message.
pub struct Output {
    out: BufWriter<Box<dyn Write>>,
    /// Whether to print JSON.
    pub json: bool,
    color: bool,
    terminal: bool,
    zone: Zone,
}

impl Output {
    /// Prints to standard output, with colours if it is a terminal and `NO_COLOR` is not set.
    pub fn stdout(json: bool) -> Self {
        let stdout = io::stdout();
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let color = stdout.is_terminal() && wanted && !json;
        let terminal = stdout.is_terminal() && !json;
        Self { out: BufWriter::new(Box::new(stdout)), json, color, terminal, zone: Zone::local() }
    }

    /// Prints times in UTC if `utc`.
    #[must_use]
    pub fn in_utc(self, utc: bool) -> Self {
        if utc { Self { zone: Zone::utc(), ..self } } else { self }
    }

    /// A time of the API as people read it: local time with its zone, or UTC.
    pub fn moment(&self, time: &str) -> String {
        self.zone.show(time)
    }

    /// Prints a line, cut to the width of the terminal if there is one.
    ///
    /// # Errors
    /// Same as [`Output::line`].
    pub fn row(&mut self, line: &str) -> io::Result<()> {
        match self.width() {
            Some(width) => self.line(&fit(line, width)),
            None => self.line(line),
        }
    }

    /// Prints a less important line, cut like [`Output::row`].
    ///
    /// # Errors
    /// Same as [`Output::line`].
    pub fn faint_row(&mut self, line: &str) -> io::Result<()> {
        match self.width() {
            Some(width) => self.colored(Tone::Faint, &fit(line, width)),
            None => self.colored(Tone::Faint, line),
        }
    }

    /// The width of the terminal in characters; `None` if the output is not a terminal.
    fn width(&self) -> Option<usize> {
        self.terminal.then(|| usize::from(console::Term::stdout().size().1)).filter(|width| *width > 0)
    }

    /// Clears the terminal, or separates what follows from what was printed before.
    ///
    /// # Errors
    /// Same as [`Output::line`].
    pub fn clear(&mut self) -> io::Result<()> {
        if self.terminal {
            return self.out.write_all(b"\x1b[H\x1b[2J");
        }
        if self.json { Ok(()) } else { self.out.write_all(b"\n") }
    }

    /// Prints a line. Characters that control the terminal, or hide or reorder others, become spaces, because a reason could hold them.
    ///
    /// # Errors
    /// When the line cannot be written.
    pub fn line(&mut self, line: &str) -> io::Result<()> {
        let plain = plain(line);
        writeln!(self.out, "{plain}")
    }

    /// Prints a line in the colour of `tone`.
    ///
    /// # Errors
    /// Same as [`Output::line`].
    pub fn colored(&mut self, tone: Tone, line: &str) -> io::Result<()> {
        if !self.color {
            return self.line(line);
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Heading => "1",
            Tone::Faint => "2",
        };
        write!(self.out, "\x1b[{code}m")?;
        let plain = plain(line);
        writeln!(self.out, "{plain}\x1b[0m")
    }

    /// Prints a value as JSON on one line.
    ///
    /// # Errors
    /// Same as [`Output::line`].
    pub fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, value)?;
        self.out.write_all(b"\n")
    }

    /// Prints bytes unchanged, and a line feed.
    ///
    /// # Errors
    /// Same as [`Output::line`].
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.out.write_all(b"\n")
    }

    /// Prints names and values in two columns.
    ///
    /// # Errors
    /// Same as [`Output::line`].
    pub fn pairs(&mut self, pairs: &[(&str, String)]) -> io::Result<()> {
        let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        for (name, value) in pairs {
            self.line(&format!("{name:width$}  {value}"))?;
        }
        Ok(())
    }

    /// Flushes the buffer.
    ///
    /// # Errors
    /// Same as [`Output::line`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The meaning of a line, which chooses its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Success.
    Good,
    /// Banned, dead, failed.
    Bad,
    /// The heading of a table.
    Heading,
    /// Less important.
    Faint,
}

/// `line` without characters that deceive.
fn plain(line: &str) -> String {
    line.chars().map(|c| if deceives(c) { ' ' } else { c }).collect()
}

/// `seconds` in its two largest units, such as `1h2m`.
pub fn brief(seconds: u64) -> String {
    let unit = match seconds {
        0..3600 => 1,
        3600..172_800 => 60,
        _ => 3600,
    };
    Span(Duration::from_secs(seconds / unit * unit)).to_string()
}

/// `bytes` in a binary unit, such as `1.5 KiB`.
pub fn size(bytes: u64) -> String {
    let (unit, step) = match bytes {
        0..1024 => return format!("{bytes} B"),
        1024..1_048_576 => ("KiB", 1024),
        1_048_576..1_073_741_824 => ("MiB", 1_048_576),
        _ => ("GiB", 1_073_741_824),
    };
    format!("{}.{} {unit}", bytes / step, bytes % step * 10 / step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_no_characters_that_deceive() {
        assert_eq!(plain("a\u{1b}[2J \u{202e}toor\u{200b}!"), "a [2J  toor !");
    }

    #[test]
    fn spans_and_sizes_are_rounded_for_people() {
        for (seconds, text) in [(0, "0s"), (75, "1m15s"), (3_725, "1h2m"), (90_061, "25h1m"), (200_000, "2d7h")] {
            assert_eq!(brief(seconds), text);
        }
        for (bytes, text) in [(5, "5 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5 << 30, "5.0 GiB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
