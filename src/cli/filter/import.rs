//! `banmesh filter import`.

use std::io::Write;
use std::path::PathBuf;

use super::Failure;
use banmesh_filter::fail2ban;

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Prints the filter file to standard output, with a note for each part that could not be converted.

Examples:
  banmesh filter import /etc/fail2ban/filter.d/example.conf > example.yaml
  banmesh filter import sshd.conf --name my-sshd --service sshd --option mode=aggressive")]
pub(super) struct ImportArgs {
    /// Filter file of fail2ban; files that it includes must be in the same directory
    #[arg(value_name = "FILE.conf")]
    file: PathBuf,
    /// Program whose lines the filter matches; may be repeated [default: `_daemon` of the file]
    #[arg(long = "service", value_name = "PROGRAM")]
    services: Vec<String>,
    /// Name of the new filter [default: the name of the file]
    #[arg(long)]
    name: Option<String>,
    /// Option of the filter, such as mode=aggressive; may be repeated
    #[arg(long = "option", short = 'o', value_name = "KEY=VALUE")]
    options: Vec<String>,
}

pub(super) fn run(args: &ImportArgs, json: bool, out: &mut impl Write) -> Result<bool, Failure> {
    let mut options = Vec::new();
    for option in &args.options {
        let Some((key, value)) = option.split_once('=') else {
            return Err(Failure::one(format!("--option {option}: expected KEY=VALUE")));
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
    writeln!(out, "# Imported from fail2ban by `banmesh filter import`. Add test lines under `tests`.")?;
    for note in &imported.notes {
        writeln!(out, "# {}", note.replace('\n', " "))?;
    }
    write!(out, "{yaml}")?;
    for note in &imported.notes {
        eprintln!("note: {note}");
    }
    Ok(true)
}
