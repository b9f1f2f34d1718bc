//! `banmesh migrate`: takes over the configuration and the bans of another program.

mod convert;
mod database;
mod names;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use self::convert::{Migration, convert};
use self::database::{OldBan, OldBans};
use super::ban;
use super::bulk::InputTarget;
use super::client;
use super::failure::Failure;
use super::node_args::NodeArgs;
use super::output::{Output, Tone};
use super::people::{count, number};
use crate::operation::api::views::{BanRequest, Keep};
use crate::{app, clock, config};
use banmesh_filter::fail2ban::read_jails;
use banmesh_filter::library::{self, FilterLibrary};

/// Arguments of `banmesh migrate`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  banmesh migrate fail2ban
  banmesh migrate fail2ban /etc/fail2ban --output /etc/banmesh")]
pub struct Args {
    #[command(subcommand)]
    from: From,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum From {
    /// Take over fail2ban's jails, filters and bans
    #[command(after_help = "\
Without options, the configuration is printed to standard output, and to standard error what
was taken over and what was not. Nothing of fail2ban is changed.

Examples:
  banmesh migrate fail2ban > config.yaml
  banmesh migrate fail2ban /etc/fail2ban --output /etc/banmesh
  banmesh migrate fail2ban --bans bans.txt
  banmesh migrate fail2ban --import-bans")]
    Fail2ban(Fail2banArgs),
}

#[derive(Clone, Debug, clap::Args)]
struct Fail2banArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Directory of fail2ban's configuration
    #[arg(default_value = "/etc/fail2ban")]
    dir: PathBuf,
    /// Write config.yaml and the converted filters into this directory; files that are there are not replaced
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Only write the bans in force to this file, for `banmesh ban --file`; `-` is standard output
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "import_bans"])]
    bans: Option<PathBuf>,
    /// Only ban what fail2ban bans, with the running node, for the time that is left
    #[arg(long, conflicts_with = "output")]
    import_bans: bool,
    /// fail2ban's database [default: dbfile of fail2ban.conf]
    #[arg(long, value_name = "FILE")]
    database: Option<PathBuf>,
}

impl Args {
    /// The options for the node.
    pub const fn node(&mut self) -> Option<&mut NodeArgs> {
        let From::Fail2ban(args) = &mut self.from;
        Some(&mut args.node)
    }
}

/// Runs `banmesh migrate`.
pub fn run(args: Args) -> ExitCode {
    let From::Fail2ban(args) = args.from;
    let outcome = if args.import_bans {
        return import_bans(&args);
    } else if let Some(file) = &args.bans {
        old_bans(&args).and_then(|bans| write_bans(&bans, file))
    } else {
        migrate(&args)
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(args.node.json);
            failure.exit_code()
        }
    }
}

fn usage(error: impl ToString) -> Failure {
    Failure::Usage(error.to_string())
}

fn migrate(args: &Fail2banArgs) -> Result<(), Failure> {
    let jails = read_jails(&args.dir).map_err(usage)?;
    let library = FilterLibrary::built_in().map_err(|errors| Failure::Usage(library::lines(&errors)))?;
    let output_dir = args.output.as_deref().unwrap_or(Path::new("/etc/banmesh"));
    // A node may be started in another directory.
    let filters_dir = std::path::absolute(output_dir).map_err(usage)?.join("filters");
    let exists = |path: &str| glob::glob(path).is_ok_and(|mut found| found.any(|path| path.is_ok()));
    let mut done = convert(&jails, &args.dir, &filters_dir, &library, exists);
    if jails.jails.is_empty() {
        done.left.push(
            "no jail is enabled, so nothing is read yet: enable filters and inputs in the configuration".to_owned(),
        );
    }
    let rename = |error: serde_yaml::Error| usage(format!("a converted filter cannot be written as YAML: {error}"));
    let filters = done
        .filters
        .iter()
        .map(|filter| Ok((format!("{}.yaml", filter.name), serde_yaml::to_string(filter).map_err(rename)?)))
        .collect::<Result<Vec<_>, Failure>>()?;
    let mut output = Output::stdout(args.node.json);
    if let Some(dir) = &args.output {
        write_all(dir, &filters_dir, &done, &filters)?;
        check(&dir.join("config.yaml"), &mut done);
        if !args.node.json {
            output.line(&format!(
                "wrote {} and {}",
                dir.join("config.yaml").display(),
                count(filters.len() as u64, "filter")
            ))?;
        }
    }
    if args.node.json {
        let filters: serde_json::Map<_, _> = filters.into_iter().map(|(name, text)| (name, text.into())).collect();
        output.json(&serde_json::json!({
            "config": done.config, "filters": filters, "taken": done.taken, "changed": done.changed, "left": done.left,
        }))?;
        return Ok(output.flush()?);
    }
    if args.output.is_none() {
        output.raw(done.config.trim_end().as_bytes())?;
    }
    output.flush()?;
    report(&done, args.output.is_none() && !filters.is_empty());
    Ok(())
}

fn report(done: &Migration, unwritten: bool) {
    let parts = [("taken over", &done.taken), ("changed", &done.changed), ("not taken over", &done.left)];
    for (title, lines) in parts.into_iter().filter(|(_, lines)| !lines.is_empty()) {
        eprintln!("{title}:");
        for line in lines {
            eprintln!("  {line}");
        }
    }
    if unwritten {
        eprintln!("the converted filters are written only with --output");
    }
}

/// Writes the configuration and the filters. Replaces nothing.
fn write_all(dir: &Path, filters_dir: &Path, done: &Migration, filters: &[(String, String)]) -> Result<(), Failure> {
    let config = (dir.join("config.yaml"), &done.config);
    let files: Vec<(PathBuf, &String)> =
        filters.iter().map(|(name, text)| (filters_dir.join(name), text)).chain([config]).collect();
    if let Some((path, _)) = files.iter().find(|(path, _)| path.exists()) {
        return Err(usage(format!(
            "{} exists already, and nothing was written; move it away, or use another --output",
            path.display()
        )));
    }
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| usage(format!("cannot write {path}: {error}"))
    };
    std::fs::create_dir_all(dir).map_err(failed(dir))?;
    if !filters.is_empty() {
        std::fs::create_dir_all(filters_dir).map_err(failed(filters_dir))?;
    }
    for (path, text) in files {
        std::fs::write(&path, text).map_err(failed(&path))?;
    }
    Ok(())
}

/// Adds what is wrong with the new configuration to the report.
fn check(path: &Path, done: &mut Migration) {
    match config::load(Some(path), []) {
        Ok(loaded) => {
            let found = app::examine_filters(&loaded.config);
            done.left.extend(found.errors.iter().map(ToString::to_string));
        }
        Err(errors) => done.left.extend(errors.errors.iter().map(ToString::to_string)),
    }
}

fn old_bans(args: &Fail2banArgs) -> Result<OldBans, Failure> {
    let path = match &args.database {
        Some(path) => path.clone(),
        None => {
            // The database may be there without a configuration.
            let jails = read_jails(&args.dir).unwrap_or_default();
            let named = jails.server.get("dbfile").map_or("/var/lib/fail2ban/fail2ban.sqlite3", String::as_str);
            if !named.starts_with('/') {
                return Err(usage(format!(
                    "fail2ban keeps no bans on disk (dbfile = {named}); give a file with --database"
                )));
            }
            PathBuf::from(named)
        }
    };
    database::read(&path, clock::now()).map_err(usage)
}

fn write_bans(found: &OldBans, file: &Path) -> Result<(), Failure> {
    let mut text = String::from("# Bans of fail2ban, for `banmesh ban --file`\n");
    for OldBan { target, until, jails } in &found.bans {
        let end = until.map_or_else(|| "permanently".to_owned(), |until| format!("until {until}"));
        let jails: String = jails.join(" ").chars().filter(|c| !c.is_control()).collect();
        let _ = writeln!(text, "{target} {end}  # {jails}");
    }
    if file.as_os_str() == "-" {
        print!("{text}");
    } else {
        std::fs::write(file, text).map_err(|error| usage(format!("cannot write {}: {error}", file.display())))?;
    }
    print_bans(found);
    Ok(())
}

fn print_bans(found: &OldBans) {
    let had = if found.ended == 1 { "has" } else { "have" };
    eprintln!("{} in force; {} {had} ended", count(found.bans.len() as u64, "ban"), number(found.ended as u64));
    for row in &found.invalid {
        eprintln!("  not a ban of an address: {row}");
    }
}

fn import_bans(args: &Fail2banArgs) -> ExitCode {
    client::run_with(
        &args.node,
        || old_bans(args),
        async |client, output, found| {
            if !output.json {
                print_bans(&found);
            }
            if found.bans.is_empty() {
                return Ok(output.colored(Tone::Good, "there is nothing to import")?);
            }
            let request = BanRequest {
                target: None,
                targets: Vec::new(),
                duration: None,
                permanent: false,
                reason: "taken over from fail2ban".to_owned(),
                by: Some("fail2ban".to_owned()),
                force: false,
                wide: false,
                replace: false,
                keep: Some(Keep::Longer),
                all_or_none: false,
            };
            let targets = found.bans.iter().map(|ban| Ok(InputTarget::from(ban.target).ending(ban.until)));
            ban::send_each(client, output, &request, targets.collect::<Vec<_>>()).await
        },
    )
}
