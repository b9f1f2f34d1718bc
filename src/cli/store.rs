//! `banmesh store`: looks at a stopped node's journal, writes it out as text, and takes text in.
//!
//! `check` and `export` never change the file, whatever its state.

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
use banmesh_core::ban::State;
use banmesh_core::table::{Merged, Table};
use banmesh_types::time::UnixMillis;

/// What `banmesh store` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum StoreCommand {
    /// Verify every page and entry of a journal and say what is in it
    Check {
        #[command(flatten)]
        common: Common,
    },
    /// Write every entry as a line of JSON
    Export {
        #[command(flatten)]
        common: Common,
        /// Where to; standard output without. A file that exists is left alone
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Take in what `export` wrote, all of it or nothing; what the journal knows better stays
    Import {
        #[command(flatten)]
        common: Common,
        /// Where from; standard input without
        #[arg(short, long, value_name = "FILE")]
        input: Option<PathBuf>,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct Common {
    /// The journal of a stopped node, or its directory (node.data_dir)
    path: PathBuf,
    /// Write the summary as JSON
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
    #[error("{}nothing was imported", .0.iter().map(|fault| format!("{fault}\n")).collect::<String>())]
    Lines(Vec<LineError>),
}

/// Faults in an import that are shown at once.
const FAULTS: usize = 20;

/// Does what `args` say: the summary goes to standard output (for an export to standard output, to standard error), errors
/// go to standard error. Fails when the file is not sound or the work was not done.
pub fn run(args: &StoreArgs) -> ExitCode {
    let (common, result) = match &args.command {
        StoreCommand::Check { common } => (common, check(&common.file())),
        StoreCommand::Export { common, output } => (common, export(&common.file(), output.as_deref())),
        StoreCommand::Import { common, input } => (common, import(&common.file(), input.as_deref())),
    };
    let beside = matches!(args.command, StoreCommand::Export { output: None, .. });
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
    if beside {
        eprintln!("{text}");
    } else {
        // Who closes the pipe early wants no more of it.
        let _ = writeln!(io::stdout().lock(), "{text}");
    }
    code
}

fn check(path: &Path) -> Result<Value, StoreError> {
    let mut file = open(path)?;
    let now = clock::now();
    let mut table = Table::default();
    let (mut lifted, mut allowed, mut over, mut bans) = (0u64, 0u64, 0u64, 0u64);
    let progress = bar(file.entries(), "entries");
    file.scan(|target, entry| {
        progress.inc(1);
        lifted += u64::from(entry.state(now) == State::Unbanned);
        allowed += u64::from(entry.is_allowed(now));
        over += u64::from(entry.keep.has_passed(now));
        bans += u64::from(entry.is_banned(now));
        table.merge(target, &entry, UnixMillis(0));
    })?;
    progress.finish_and_clear();
    let mut summary = described(path, &file);
    summary["entries"] = file.entries().into();
    summary["bans_in_force"] = bans.into();
    summary["lifted"] = lifted.into();
    summary["allowed"] = allowed.into();
    summary["to_be_forgotten"] = over.into();
    summary["digest"] = format!("{:016x}", table.digest()).into();
    Ok(summary)
}

fn export(path: &Path, output: Option<&Path>) -> Result<Value, StoreError> {
    let mut file = open(path)?;
    let entries = match output {
        None => written(&mut file, &mut io::stdout().lock(), Path::new("standard output"))?,
        Some(output) => {
            let failed = |source| StoreError::File { path: output.to_owned(), source };
            let mut out = File::create_new(output).map_err(failed)?;
            written(&mut file, &mut out, output)
                .and_then(|entries| out.sync_all().map(|()| entries).map_err(failed))
                .inspect_err(|_| {
                    // Half an export is no export.
                    let _ = fs::remove_file(output);
                })?
        }
    };
    let mut summary = described(path, &file);
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
    // All lines are understood before the journal is touched.
    let progress = bar(length, "bytes");
    let mut arrived = Vec::new();
    let read = read_entries(BufReader::with_capacity(1 << 16, from), FAULTS, |target, entry, bytes| {
        progress.inc(bytes as u64);
        arrived.push((target, entry));
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
    let (read, mut known, mut over) = (arrived.len(), 0u64, 0u64);
    let mut changed = Vec::new();
    for (target, entry) in arrived {
        match table.merge(target, &entry, now) {
            Merged::Changed { after, .. } => changed.push((target, after)),
            Merged::Unchanged => known += 1,
            Merged::Forgotten => over += 1,
        }
    }
    let imported = changed.len();
    let busy = spinner("writing");
    file.save(changed, now)?;
    busy.finish_and_clear();
    let mut summary = described(path, &file);
    summary["new_file"] = new.into();
    summary["read"] = read.into();
    summary["imported"] = imported.into();
    summary["known_already"] = known.into();
    summary["no_longer_remembered"] = over.into();
    summary["entries"] = file.entries().into();
    file.close()?;
    Ok(summary)
}

fn open(path: &Path) -> Result<StoreFile, JournalError> {
    let busy = spinner("verifying");
    let file = StoreFile::open(path);
    busy.finish_and_clear();
    file
}

fn described(path: &Path, file: &StoreFile) -> Value {
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

/// A summary as people read it: one line each, the names in one column.
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

/// A bar on standard error, if somebody looks at it.
fn bar(total: u64, unit: &str) -> ProgressBar {
    if total == 0 || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template(&format!("{{wide_bar}} {{percent}} % of {{human_len}} {unit}, {{eta}} left"));
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn spinner(doing: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message(doing);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
