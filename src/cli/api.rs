//! `banmesh api`: generates password hashes and tokens for the API.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use super::output::Output;
use super::secret;
use crate::operation::api::credential::{self, TokenHash};
use crate::operation::api::login;

/// Arguments of `banmesh api`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  banmesh api hash-password
  banmesh api token")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Hash a password for `password_hash` in api.users
    #[command(after_help = "\
Asks for the password on a terminal, else reads it from standard input.

Examples:
  banmesh api hash-password
  pass show banmesh/ann | banmesh api hash-password")]
    HashPassword,
    /// Generate a token, and its hash for `token_hash` in api.tokens
    #[command(after_help = "\
Prints the token for the client and the hash for the node's configuration.

Examples:
  banmesh api token
  banmesh api token > grafana.token")]
    Token,
}

/// Runs `banmesh api`.
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
    if io::stdin().is_terminal() && secret::ask("Repeat the password: ")? != password {
        return Err(io::Error::other("the two passwords differ"));
    }
    let hash = login::hash(password.as_bytes()).map_err(|error| io::Error::other(format!("the password {error}")))?;
    print(&[hash.to_string()])
}

fn token() -> io::Result<()> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(format!("cannot generate a token: {error}")))?;
    let token = credential::token(random);
    let hash = TokenHash::of(token.as_bytes());
    print(&[format!("token: {token}"), format!("token_hash: \"{hash}\"")])
}

fn print(lines: &[String]) -> io::Result<()> {
    let mut output = Output::stdout(false);
    lines.iter().try_for_each(|line| output.line(line))?;
    output.flush()
}
