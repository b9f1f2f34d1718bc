//! `banmesh api`: what lets people and programs use the API of a node.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use super::output::Output;
use super::secret;
use crate::operation::api::credential::{self, TokenHash};
use crate::operation::api::login;

/// Make passwords' hashes and tokens for the API
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Hash a password, typed or from standard input, for `password_hash` in api.users
    HashPassword,
    /// Make a token, and its hash for `token_hash` in api.tokens
    Token,
}

/// Does what is asked for.
pub fn run(args: &Args) -> ExitCode {
    let done = match args.command {
        Command::HashPassword => hash_password(),
        Command::Token => token(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("banmesh: {error}");
            ExitCode::FAILURE
        }
    }
}

fn hash_password() -> io::Result<()> {
    let password = secret::ask("Password: ")?;
    if io::stdin().is_terminal() && secret::ask("Again: ")? != password {
        return Err(io::Error::other("these were two different passwords"));
    }
    let hash = login::hash(password.as_bytes()).map_err(|error| io::Error::other(format!("this {error}")))?;
    print(&[hash.to_string()])
}

fn token() -> io::Result<()> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(format!("cannot make a token: {error}")))?;
    let token = credential::token(random);
    let hash = TokenHash::of(token.as_bytes());
    print(&[format!("token: {token}"), format!("token_hash: \"{hash}\"")])
}

fn print(lines: &[String]) -> io::Result<()> {
    let mut output = Output::stdout(false);
    lines.iter().try_for_each(|line| output.line(line))?;
    output.flush()
}
