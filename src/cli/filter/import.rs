//! `banmesh filter import`: a filter of fail2ban becomes a filter file.

use std::io::Write;
use std::path::PathBuf;

use super::Failure;
use banmesh_filter::fail2ban;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// fail2ban's file, such as /etc/fail2ban/filter.d/sshd.conf; what it includes is looked for beside it
    #[arg(value_name = "FILE.conf")]
    file: PathBuf,
    /// A program whose lines the filter is for; may be given several times. Without it what `_daemon` says
    #[arg(long = "service", value_name = "PROGRAM")]
    services: Vec<String>,
    /// The filter's name; without it the file's
    #[arg(long)]
    name: Option<String>,
    /// An option of the filter, as `mode=aggressive`; may be given several times
    #[arg(long = "option", short = 'o', value_name = "KEY=VALUE")]
    options: Vec<String>,
}

pub(super) fn run(args: &ImportArgs, json: bool, out: &mut impl Write) -> Result<bool, Failure> {
    let mut options = Vec::new();
    for option in &args.options {
        let Some((key, value)) = option.split_once('=') else {
            return Err(Failure::one(format!("--option {option}: write KEY=VALUE")));
        };
        options.push((key.trim().to_owned(), value.trim().to_owned()));
    }
    let mut imported =
        fail2ban::import(&args.file, &options, &args.services).map_err(|error| Failure::one(error.to_string()))?;
    if let Some(name) = &args.name {
        imported.filter.name.clone_from(name);
    }
    if json {
        let filter = serde_json::to_value(&imported.filter).map_err(|error| Failure::one(error.to_string()))?;
        writeln!(out, "{:#}", serde_json::json!({ "filter": filter, "notes": imported.notes }))?;
        return Ok(true);
    }
    let yaml = serde_yaml::to_string(&imported.filter).map_err(|error| Failure::one(error.to_string()))?;
    writeln!(out, "# Taken over by `banmesh filter import`. Add test lines under `tests`.")?;
    for note in &imported.notes {
        writeln!(out, "# {}", note.replace('\n', " "))?;
    }
    write!(out, "{yaml}")?;
    for note in &imported.notes {
        eprintln!("note: {note}");
    }
    Ok(true)
}
