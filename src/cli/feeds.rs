//! `banmesh feeds`: shows the feeds of a node, asks them now, and tries lists without a node.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use super::client;
use super::columns::Columns;
use super::failure::Failure;
use super::node_args::NodeArgs;
use super::output::{Output, Tone, brief, size};
use super::people::count;
use crate::app::feed_settings;
use crate::config::{self, FeedConfig, FeedSource};
use crate::inputs::feeds::{Answer, FeedSettings, Source, UpdateOutcome, Updated, Validators, fetch};
use crate::net::dial::Trust;
use crate::operation::api::views::{FeedView, FeedsView, UpdateRequest, UpdateView};
use banmesh_feeds::catalogue::{self, KNOWN};
use banmesh_feeds::keeping::Pace;
use banmesh_feeds::list::{self, Format};

/// Arguments of `banmesh feeds`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  banmesh feeds catalogue
  banmesh feeds test spamhaus-drop
  banmesh feeds status
  banmesh feeds update tor-exits")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Show the feeds of a node: entries, age, effect, and what is wrong
    #[command(after_help = "\
Examples:
  banmesh feeds status
  banmesh feeds status --json")]
    Status(NodeArgs),
    /// Ask for the lists now
    #[command(after_help = "\
A feed is not asked before its publisher allows it.

Examples:
  banmesh feeds update
  banmesh feeds update blocklist-de --accept")]
    Update(UpdateArgs),
    /// Get a list and say what a node would do with it; needs no node and changes nothing
    #[command(after_help = "\
Examples:
  banmesh feeds test spamhaus-drop
  banmesh feeds test ./bad.txt
  banmesh feeds test https://lists.example.org/bad.txt --format plain")]
    Test(TestArgs),
    /// List the known feeds with their publishers and terms
    #[command(after_help = "\
Examples:
  banmesh feeds catalogue
  banmesh feeds catalogue | grep tor")]
    Catalogue,
}

#[derive(Clone, Debug, clap::Args)]
struct UpdateArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The feed; all if omitted
    feed: Option<String>,
    /// Use a list even if it changed too much at once; this asks once more even if the publisher wants you to wait
    #[arg(long)]
    accept: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct TestArgs {
    /// A feed of the configuration, a known feed, a URL or a file
    list: String,
    /// The format of a URL or a file
    #[arg(long, value_parser = ["plain", "spamhaus", "dshield", "tor"], default_value = "plain")]
    format: String,
}

impl Args {
    /// The options for the node; `None` if the command needs no running node.
    pub const fn node(&mut self) -> Option<&mut NodeArgs> {
        match &mut self.command {
            Command::Status(node) => Some(node),
            Command::Update(args) => Some(&mut args.node),
            Command::Test(_) | Command::Catalogue => None,
        }
    }
}

/// Runs `banmesh feeds`.
pub fn run(args: Args, config_file: Option<&Path>) -> ExitCode {
    match args.command {
        Command::Status(node) => client::run(&node, async |client, output| {
            let view: FeedsView = client.get("/api/v1/feeds").await?;
            if output.json { Ok(output.json(&view)?) } else { status(&view, output) }
        }),
        Command::Update(args) => client::run(&args.node, async |client, output| {
            let request = UpdateRequest { feed: args.feed.clone(), accept: args.accept };
            let done: UpdateView = client.post("/api/v1/feeds/update", &request).await?;
            if output.json {
                return Ok(output.json(&done)?);
            }
            done.feeds.iter().try_for_each(|updated| print_update(updated, output))
        }),
        Command::Test(args) => test(&args, config_file),
        Command::Catalogue => finished(known(&mut Output::stdout(false))),
    }
}

fn status(view: &FeedsView, output: &mut Output) -> Result<(), Failure> {
    if view.feeds.is_empty() {
        return Ok(output.colored(Tone::Faint, "no feeds; `banmesh feeds catalogue` lists known ones")?);
    }
    let mut table =
        Columns::new(&["FEED", "EFFECT", "ENTRIES", "LEFT OUT", "CONFIRMED", "ENDS", "OFFENCES", "REFUSALS"]);
    for feed in &view.feeds {
        let FeedView { name, effect, weight, entries, left_out, confirmed, ends, offences, refusals, .. } = feed;
        let effect = if effect == "weight" { format!("weight {weight}") } else { effect.clone() };
        let never = || "no list".to_owned();
        let [confirmed, ends] = [confirmed, ends].map(|at| at.clone().unwrap_or_else(never));
        let numbers = [*entries as u64, *left_out as u64].map(|number| number.to_string());
        let [entries, left_out] = numbers;
        table.row([
            name.clone(),
            effect,
            entries,
            left_out,
            confirmed,
            ends,
            offences.to_string(),
            refusals.to_string(),
        ]);
    }
    output.colored(Tone::Heading, &table.heading())?;
    for (line, feed) in table.lines().zip(&view.feeds) {
        output.line(&line)?;
        if let Some(error) = &feed.error {
            output.colored(Tone::Bad, &format!("  {error}"))?;
        }
    }
    output.line(&format!("all lists use {} of memory", size(view.table_bytes as u64)))?;
    if !view.not_at.is_empty() {
        let text = format!(
            "bans by feeds hold where this node is asked about each client, and not at {}: lists are not in the ban table that these follow",
            view.not_at.join(", ")
        );
        output.colored(Tone::Faint, &text)?;
    }
    Ok(())
}

fn print_update(updated: &Updated, output: &mut Output) -> Result<(), Failure> {
    let Updated { feed, outcome, entries, message } = updated;
    let entries = count(*entries as u64, "entry");
    let (tone, text) = match outcome {
        UpdateOutcome::Changed => (Tone::Good, format!("{feed}: a new list with {entries} is in use")),
        UpdateOutcome::Unchanged => (Tone::Good, format!("{feed}: unchanged, {entries}")),
        UpdateOutcome::Early => (Tone::Faint, format!("{feed}: not asked, because {message}")),
        UpdateOutcome::Failed => (Tone::Bad, format!("{feed}: {message}; {entries} in use")),
    };
    Ok(output.colored(tone, &text)?)
}

fn known(output: &mut Output) -> std::io::Result<()> {
    let mut table = Columns::new(&["FEED", "EFFECT", "EVERY", "KEY", "PUBLISHER AND TERMS"]);
    for feed in &KNOWN {
        let key = if feed.key_header.is_some() { "needed" } else { "" };
        let every = brief(feed.interval.as_secs());
        table.row([feed.name, feed.effect.as_str(), &every, key, feed.credit].map(str::to_owned));
    }
    output.colored(Tone::Heading, &table.heading())?;
    table.lines().try_for_each(|line| output.line(&line))
}

fn test(args: &TestArgs, config_file: Option<&Path>) -> ExitCode {
    let settings = match settings(args, config_file) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("banmesh: {error}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("banmesh: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let answer = runtime.block_on(fetch(&settings, &Validators::default()));
    let read = answer.map_err(|failure| failure.message).and_then(|answer| match answer {
        Answer::New { bytes, length, .. } => {
            let read = list::read(&bytes, settings.format, length).map_err(|refusal| refusal.to_string());
            read.map(|list| (list, bytes.len() as u64))
        }
        Answer::Unchanged => Err("the server says that nothing changed, although nothing is known".to_owned()),
    });
    match read {
        Ok((list, bytes)) => {
            let text = format!(
                "{}: {} in {}; {} left out, {} not understood",
                settings.name,
                count(list.entries as u64, "entry"),
                size(bytes),
                count(list.left_out as u64, "private or reserved network"),
                count(list.unknown as u64, "line")
            );
            finished(Output::stdout(false).colored(Tone::Good, &text))
        }
        Err(error) => {
            eprintln!("banmesh: {}: {error}", settings.name);
            ExitCode::FAILURE
        }
    }
}

/// The feed that an operator names: one of the configuration, a known one, a URL or a file.
fn settings(args: &TestArgs, config_file: Option<&Path>) -> Result<FeedSettings, String> {
    let name = args.list.as_str();
    let is_path = name.contains('/') || name.contains('.');
    if !is_path {
        let configured = match config::load(config_file, config::process_environment()) {
            Ok(loaded) => loaded.config.feeds.into_iter().find(|feed| feed.name == name),
            Err(errors) if config_file.is_some() => return Err(errors.to_string()),
            Err(_) => None,
        };
        let feed = configured.or_else(|| catalogue::find(name).map(FeedConfig::known)).ok_or_else(|| {
            format!(
                "`{name}` is neither a feed of the configuration nor a known one; `banmesh feeds catalogue` lists these"
            )
        })?;
        if !feed.key_header.is_empty()
            && feed.key.is_empty()
            && feed.key_file.is_none()
            && matches!(feed.source, FeedSource::Url(_))
        {
            return Err(format!(
                "{name} needs a key of its publisher; add it to `feeds` in the configuration with `key_file`"
            ));
        }
        return feed_settings(&feed).map_err(|error| error.to_string());
    }
    let format = Format::ALL.into_iter().find(|format| format.as_str() == args.format).unwrap_or(Format::Plain);
    let source = if name.contains("://") {
        Source::Server {
            endpoint: name.parse().map_err(|error: crate::net::dial::EndpointError| error.to_string())?,
            trust: Trust::load(None).map_err(|error| error.to_string())?,
            key: None,
            timeout: Duration::from_secs(60),
        }
    } else {
        Source::File(name.into())
    };
    let pace = Pace { interval: Duration::ZERO, floor: Duration::ZERO, keep: Duration::ZERO };
    Ok(FeedSettings { name: Arc::from(name), source, format, pace })
}

fn finished(written: std::io::Result<()>) -> ExitCode {
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
