//! `banmesh completions`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap_complete::{Shell, generate};

/// Arguments of `banmesh completions`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  banmesh completions bash > /etc/bash_completion.d/banmesh
  banmesh completions zsh > /usr/share/zsh/site-functions/_banmesh")]
pub struct Args {
    /// Shell to generate the script for
    shell: Shell,
}

/// Prints the completion script; `command` is the root command.
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
