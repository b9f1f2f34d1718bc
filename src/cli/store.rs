//! `banmesh store`: checks, exports and imports the journal of a stopped node.
//!
//! `check` and `export` never change the file, even if it is damaged.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::clock;
use crate::decisions::journal::exchange::{LineError, read_entries, write_entry};
use crate::decisions::journal::{FILE_NAME, Header, JournalError, StoreFile};
use crate::private;
use banmesh_core::ban::State;
use banmesh_core::retention::Cut;
use banmesh_core::table::{Merged, Table};
use banmesh_types::time::UnixMillis;

/// Arguments of `banmesh store`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Stop the node first: a running node locks its journal.

Examples:
  banmesh store check /var/lib/banmesh
  banmesh store export /var/lib/banmesh --output bans.jsonl
  banmesh store import /var/lib/banmesh --input bans.jsonl")]
pub struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum StoreCommand {
    /// Verify every page and entry of a journal, and print a summary
    #[command(after_help = "\
Examples:
  banmesh store check /var/lib/banmesh
  banmesh store check /var/lib/banmesh --json")]
    Check {
        #[command(flatten)]
        common: Common,
    },
    /// Write every entry as a line of JSON
    #[command(after_help = "\
Examples:
  banmesh store export /var/lib/banmesh --output bans.jsonl
  banmesh store export /var/lib/banmesh | gzip > bans.jsonl.gz")]
    Export {
        #[command(flatten)]
        common: Common,
        /// File to write, which must not exist [default: standard output]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Merge exported entries into a journal; newer entries in the journal win
    #[command(after_help = "\
If a line is invalid, nothing is imported. If there is no journal, a new one is created.

Examples:
  banmesh store import /var/lib/banmesh --input bans.jsonl
  zcat bans.jsonl.gz | banmesh store import /var/lib/banmesh")]
    Import {
        #[command(flatten)]
        common: Common,
        /// File to read [default: standard input]
        #[arg(short, long, value_name = "FILE")]
        input: Option<PathBuf>,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct Common {
    /// Journal of a stopped node, or its directory (node.data_dir)
    path: PathBuf,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

impl Common {
    fn file(&self) -> PathBuf {
        if self.path.is_dir() { self.path.join(FILE_NAME) } else { self.path.clone() }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum StoreError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("{}: {source}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{}nothing was imported", .0.iter().map(|error| format!("{error}\n")).collect::<String>())]
    Lines(Vec<LineError>),
}

/// How many invalid lines of an import are reported.
const MAX_LINE_ERRORS: usize = 20;

/// Runs `banmesh store`. The summary goes to standard output, or to standard error if the export does; errors go to standard
/// error, or into the summary with `--json`. Fails when the journal is damaged or the command did not complete.
pub fn run(args: &StoreArgs) -> ExitCode {
    let (common, result) = match &args.command {
        StoreCommand::Check { common } => (common, check(&common.file())),
        StoreCommand::Export { common, output } => (common, export(&common.file(), output.as_deref())),
        StoreCommand::Import { common, input } => (common, import(&common.file(), input.as_deref())),
    };
    let summary_to_stderr = matches!(args.command, StoreCommand::Export { output: None, .. });
    let (text, code) = match result {
        Ok(summary) if common.json => (format!("{summary:#}"), ExitCode::SUCCESS),
        Ok(summary) => (readable(&summary), ExitCode::SUCCESS),
        Err(error) if common.json => {
            (format!("{:#}", json!({ "ok": false, "error": error.to_string() })), ExitCode::FAILURE)
        }
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    if summary_to_stderr {
        eprintln!("{text}");
    } else {
        // A closed pipe is not an error.
        let _ = writeln!(io::stdout().lock(), "{text}");
    }
    code
}

fn check(path: &Path) -> Result<Value, StoreError> {
    let mut file = open(path)?;
    let now = clock::now();
    let mut table = Table::default();
    let (mut unbanned, mut allowed, mut past_retention, mut bans) = (0u64, 0u64, 0u64, 0u64);
    let progress = bar(file.entries(), "entries");
    file.scan(|target, entry| {
        progress.inc(1);
        unbanned += u64::from(entry.state(now) == State::Unbanned);
        allowed += u64::from(entry.is_allowed(now));
        past_retention += u64::from(entry.retention(Cut::default()).has_passed(now));
        bans += u64::from(entry.is_banned(now));
        table.merge(target, &entry, UnixMillis(0));
    })?;
    progress.finish_and_clear();
    let mut summary = file_summary(path, &file);
    summary["entries"] = file.entries().into();
    summary["bans_in_force"] = bans.into();
    summary["unbanned"] = unbanned.into();
    summary["allowed"] = allowed.into();
    summary["past_retention"] = past_retention.into();
    summary["digest"] = format!("{:016x}", table.digest()).into();
    Ok(summary)
}

fn export(path: &Path, output: Option<&Path>) -> Result<Value, StoreError> {
    let mut file = open(path)?;
    let entries = match output {
        None => written(&mut file, &mut io::stdout().lock(), Path::new("standard output"))?,
        Some(output) => {
            let failed = |source| StoreError::File { path: output.to_owned(), source };
            let mut out = private::create_new(output).map_err(failed)?;
            written(&mut file, &mut out, output)
                .and_then(|entries| out.sync_all().map(|()| entries).map_err(failed))
                .inspect_err(|_| {
                    // An incomplete export must not look like a complete one.
                    let _ = fs::remove_file(output);
                })?
        }
    };
    let mut summary = file_summary(path, &file);
    summary["exported"] = entries.into();
    Ok(summary)
}

/// Writes every entry of `file` to `out`.
fn written(file: &mut StoreFile, out: &mut impl Write, name: &Path) -> Result<u64, StoreError> {
    let mut out = BufWriter::with_capacity(1 << 16, out);
    let progress = bar(file.entries(), "entries");
    let mut result = Ok(());
    file.scan(|target, entry| {
        progress.inc(1);
        if result.is_ok() {
            result = write_entry(&mut out, target, &entry);
        }
    })?;
    progress.finish_and_clear();
    result.and_then(|()| out.flush()).map_err(|source| StoreError::File { path: name.to_owned(), source })?;
    Ok(file.entries())
}

fn import(path: &Path, input: Option<&Path>) -> Result<Value, StoreError> {
    let (from, length): (Box<dyn Read>, u64) = match input {
        None => (Box::new(io::stdin().lock()), 0),
        Some(input) => {
            let failed = |source| StoreError::File { path: input.to_owned(), source };
            let from = File::open(input).map_err(failed)?;
            let length = from.metadata().map_err(failed)?.len();
            (Box::new(from), length)
        }
    };
    // Parse all lines before the journal is opened.
    let progress = bar(length, "bytes");
    let mut received = Vec::new();
    let read = read_entries(BufReader::with_capacity(1 << 16, from), MAX_LINE_ERRORS, |target, entry, bytes| {
        progress.inc(bytes as u64);
        received.push((target, entry));
    });
    progress.finish_and_clear();
    read.map_err(StoreError::Lines)?;
    let now = clock::now();
    let new = !path.try_exists().map_err(|source| StoreError::File { path: path.to_owned(), source })?;
    if new {
        StoreFile::create(path, None, now)?;
    }
    let mut file = open(path)?;
    let mut table = Table::default();
    let progress = bar(file.entries(), "entries");
    file.scan(|target, entry| {
        progress.inc(1);
        table.merge(target, &entry, UnixMillis(0));
    })?;
    progress.finish_and_clear();
    let (read, mut known, mut past_retention) = (received.len(), 0u64, 0u64);
    let mut changed = Vec::new();
    for (target, entry) in received {
        match table.merge(target, &entry, now) {
            Merged::Changed { after, .. } => changed.push((target, after)),
            Merged::Unchanged => known += 1,
            Merged::PastRetention => past_retention += 1,
        }
    }
    let imported = changed.len();
    let spinner = spinner("writing");
    file.save(changed, now)?;
    spinner.finish_and_clear();
    let mut summary = file_summary(path, &file);
    summary["new_file"] = new.into();
    summary["read"] = read.into();
    summary["imported"] = imported.into();
    summary["known_already"] = known.into();
    summary["past_retention"] = past_retention.into();
    summary["entries"] = file.entries().into();
    file.close()?;
    Ok(summary)
}

fn open(path: &Path) -> Result<StoreFile, JournalError> {
    let spinner = spinner("verifying");
    let file = StoreFile::open(path);
    spinner.finish_and_clear();
    file
}

fn file_summary(path: &Path, file: &StoreFile) -> Value {
    let Header { created, node, generation, clock } = file.header();
    json!({
        "ok": true,
        "path": path.display().to_string(),
        "node": node,
        "generation": generation,
        "created": created.to_string(),
        "clock": clock.millis().to_string(),
        "bytes": file.bytes(),
    })
}

/// A summary as text, with one field per line.
fn readable(summary: &Value) -> String {
    let fields = summary.as_object().into_iter().flatten().filter(|(name, _)| *name != "ok");
    let lines = fields.map(|(name, value)| {
        let name = name.replace('_', " ");
        match value {
            Value::String(text) => format!("{name:<21}{text}"),
            other => format!("{name:<21}{other}"),
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A progress bar on standard error, if that is a terminal.
fn bar(total: u64, unit: &str) -> ProgressBar {
    if total == 0 || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template(&format!("{{wide_bar}} {{percent}} % of {{human_len}} {unit}, {{eta}} left"));
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn spinner(message: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message(message);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
