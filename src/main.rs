//! The `banmesh` binary. All code is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    banmesh::cli::run()
}
