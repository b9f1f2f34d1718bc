//! `banmesh filter`: lists filters, tests them on log lines, and imports filters from fail2ban.

mod import;
mod lines;
mod test;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::app::uses_logins;
use crate::config::{self, Config};
use banmesh_filter::library::{FilterFileError, FilterLibrary, LoadedFilter};
use banmesh_filter::{Mode, Pattern};

/// Arguments of `banmesh filter`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  banmesh filter list
  banmesh filter test sshd /var/log/auth.log
  banmesh filter import /etc/fail2ban/filter.d/example.conf > example.yaml")]
pub struct FilterArgs {
    /// Directory with filter files, in addition to filters.dirs; may be repeated
    #[arg(long = "dir", global = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Test log lines: show the matching rule, the source address and whether it would be banned
    Test(test::TestArgs),
    /// List the filters
    #[command(after_help = "\
Examples:
  banmesh filter list
  banmesh filter list --dir ./filters.d --json")]
    List,
    /// Print a filter file
    #[command(after_help = "\
Examples:
  banmesh filter show sshd
  banmesh filter show sshd > /etc/banmesh/filters/my-sshd.yaml")]
    Show {
        /// Name of the filter
        name: String,
    },
    /// Convert a fail2ban filter (filter.d/*.conf) to a filter file
    Import(import::ImportArgs),
}

/// Runs `banmesh filter`; `path` is the configuration file given with `--config`.
pub fn run(args: &FilterArgs, path: Option<&Path>) -> ExitCode {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let done = match &args.command {
        Command::Import(import) => import::run(import, args.json, &mut out),
        Command::Test(test) => {
            FilterContext::load(args, path).and_then(|context| test::run(test, &context, args.json, &mut out))
        }
        Command::List => FilterContext::load(args, path).and_then(|context| context.list(args.json, &mut out)),
        Command::Show { name } => {
            FilterContext::load(args, path).and_then(|context| context.show(name, args.json, &mut out))
        }
    };
    // A closed pipe is not an error.
    let _ = out.flush();
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(Failure::Output) => ExitCode::SUCCESS,
        Err(Failure::Reported(errors)) => {
            for error in errors {
                eprintln!("error: {error}");
            }
            ExitCode::from(2)
        }
    }
}

/// Why a command failed.
enum Failure {
    /// The output was closed.
    Output,
    /// Errors to print.
    Reported(Vec<String>),
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::Output
    }
}

impl Failure {
    fn one(text: impl Into<String>) -> Self {
        Self::Reported(vec![text.into()])
    }

    fn of(errors: &[FilterFileError]) -> Self {
        Self::Reported(errors.iter().map(ToString::to_string).collect())
    }
}

/// The configuration and its filters.
struct FilterContext {
    config: Config,
    library: FilterLibrary,
    mode: Mode,
    patterns: Vec<Pattern>,
}

impl FilterContext {
    fn load(args: &FilterArgs, path: Option<&Path>) -> Result<Self, Failure> {
        let loaded = config::load(path, config::process_environment())
            .map_err(|errors| Failure::Reported(errors.to_string().lines().map(str::to_owned).collect()))?;
        let config = loaded.config;
        let dirs: Vec<PathBuf> = config.filters.dirs.iter().chain(&args.dirs).cloned().collect();
        let library = FilterLibrary::load(&dirs)
            .and_then(|library| library.with_limits(&config.filters.each))
            .map_err(|errors| Failure::of(&errors))?;
        let mode = config.filters.mode.into();
        let patterns = config.syslog.patterns.iter().map(Pattern::from).collect();
        Ok(Self { config, library, mode, patterns })
    }

    /// The filters as a node uses them: without `successregex` if nothing uses logins.
    fn active(&self) -> FilterLibrary {
        let library = self.library.clone();
        if uses_logins(&self.config) { library } else { library.without_successes() }
    }

    fn find(&self, name: &str) -> Result<&LoadedFilter, Failure> {
        let unknown = || Failure::one(format!("there is no filter `{name}`{}", self.library.nearest(name)));
        self.library.find(name).ok_or_else(unknown)
    }

    fn list(&self, json: bool, out: &mut impl Write) -> Result<bool, Failure> {
        let enabled =
            self.library.enabled(&self.config.filters.enabled, self.mode).map_err(|errors| Failure::of(&errors))?;
        let mode_of = |name: &str| enabled.iter().find(|(on, _)| on.filter.name == name).map(|(_, mode)| *mode);
        if json {
            let rows: Vec<serde_json::Value> = self
                .library
                .iter()
                .map(|loaded| {
                    let filter = &loaded.filter;
                    serde_json::json!({
                        "name": filter.name, "description": filter.description, "services": filter.services,
                        "rules": filter.failregex.len(), "origin": loaded.origin.to_string(),
                        "enabled": mode_of(&filter.name).is_some(),
                        "mode": mode_of(&filter.name).map(Mode::as_str),
                    })
                })
                .collect();
            writeln!(out, "{:#}", serde_json::Value::from(rows))?;
            return Ok(true);
        }
        writeln!(out, "{:<16} {:<11} {:>5}  {:<9} DESCRIPTION", "NAME", "MODE", "RULES", "ORIGIN")?;
        for loaded in self.library.iter() {
            let filter = &loaded.filter;
            let mode = mode_of(&filter.name).map_or("-", Mode::as_str);
            let (rules, origin) = (filter.failregex.len(), loaded.origin.to_string());
            writeln!(out, "{:<16} {mode:<11} {rules:>5}  {origin:<9} {}", filter.name, filter.description)?;
        }
        for pattern in &self.patterns {
            writeln!(out, "{:<16} {:<11} {:>5}  {:<9} {}", pattern.name, "pattern", 1, "syslog", pattern.description)?;
        }
        Ok(true)
    }

    fn show(&self, name: &str, json: bool, out: &mut impl Write) -> Result<bool, Failure> {
        let loaded = self.find(name)?;
        if json {
            let filter = serde_json::to_value(&loaded.filter).map_err(|error| Failure::one(error.to_string()))?;
            let shown = serde_json::json!({ "origin": loaded.origin.to_string(), "filter": filter });
            writeln!(out, "{shown:#}")?;
        } else {
            writeln!(out, "# {}\n{}", loaded.origin, loaded.text())?;
        }
        Ok(true)
    }
}
