//! `banmesh completions`: what a shell needs to complete the command line.

use std::io::{self, Write};
use std::process::ExitCode;

use clap_complete::{Shell, generate};

/// Print the completions for a shell
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Prints the completions of `command`, the whole command line.
pub fn run(args: &Args, mut command: clap::Command) -> ExitCode {
    let mut text = Vec::new();
    generate(args.shell, &mut command, "banmesh", &mut text);
    match io::stdout().write_all(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("banmesh: cannot write: {error}");
            ExitCode::FAILURE
        }
    }
}
