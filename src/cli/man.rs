//! `banmesh man`: prints manual pages, made from the text of `--help`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `banmesh man`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  banmesh man > banmesh.1
  banmesh man --dir /usr/local/share/man/man1")]
pub struct Args {
    /// Write one page per command into this directory
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
}

/// Prints or writes the manual pages; `command` is the root command.
pub fn run(args: &Args, command: clap::Command) -> ExitCode {
    let written = match &args.dir {
        Some(dir) => std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(command, dir)),
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page).and_then(|()| io::stdout().write_all(&page))
        }
    };
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("banmesh: cannot write the manual page: {error}");
            ExitCode::FAILURE
        }
    }
}
