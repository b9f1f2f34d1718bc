//! banmesh as another build, to run in a cluster with the real one: `OTHER_BUILD=newer other_build run --config FILE`.
//!
//! | `OTHER_BUILD` | wire versions | and |
//! |---|---|---|
//! | `newer` | this build's, and one more | adds a record of a kind that this build does not know to everything it sends |
//! | `older` | only the oldest of this build's | repairs by exchanging whole buckets, and knows no records of evidence |
//! | `apart` | only the one after this build's | |
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use banmesh::app::{self, Build};
use banmesh::config;
use banmesh_core::wire::{Dialect, MIN_VERSION, VERSION, Versions};

/// A kind of record that no build knows, and its content.
const NEW_KIND: (u8, &[u8]) = (200, b"new");

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("other_build: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let ["run", "--config", file] = words.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
        return Err("usage: OTHER_BUILD=newer|older|apart other_build run --config FILE".into());
    };
    let newest = VERSION + 1;
    let wire = match std::env::var("OTHER_BUILD").as_deref() {
        Ok("newer") => Dialect { versions: Versions { oldest: MIN_VERSION, newest }, addition: Some(NEW_KIND) },
        Ok("older") => Dialect { versions: Versions::only(MIN_VERSION), addition: None },
        Ok("apart") => Dialect { versions: Versions::only(newest), addition: None },
        _ => return Err("OTHER_BUILD must be newer, older or apart".into()),
    };
    let named = Some(PathBuf::from(file));
    let loaded = config::load(named.as_deref(), config::process_environment())?;
    app::run_as(Build { version: "99.0.0".to_owned(), wire }, loaded, named, app::Options::default())?;
    Ok(())
}
