//! Reads passwords without echo.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// Reads a line from standard input. On a terminal, prints `prompt` and turns the echo off.
///
/// # Errors
/// When standard input is at its end or cannot be read.
pub fn ask(prompt: &str) -> io::Result<String> {
    let echo_off = if io::stdin().is_terminal() {
        let mut terminal = io::stderr();
        write!(terminal, "{prompt}")?;
        terminal.flush()?;
        Some(EchoOff::new()?)
    } else {
        None
    };
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    if echo_off.is_some() {
        drop(echo_off);
        eprintln!();
    }
    if read? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.truncate(line.trim_end_matches(['\n', '\r']).len());
    Ok(line)
}

/// Turns the echo of the terminal off until dropped.
struct EchoOff(Termios);

impl EchoOff {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &quiet)?;
        Ok(Self(before))
    }
}

impl Drop for EchoOff {
    fn drop(&mut self) {
        // Fails only if the terminal is gone.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}
