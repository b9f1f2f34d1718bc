//! `banmesh man`: the manual page, from the same text as `--help`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Print the manual page
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Write a page for every command into this directory instead
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
}

/// Prints or writes the pages of `command`, the whole command line.
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
            eprintln!("banmesh: cannot write the manual: {error}");
            ExitCode::FAILURE
        }
    }
}
