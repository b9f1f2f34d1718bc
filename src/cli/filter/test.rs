//! `banmesh filter test`: runs filters over log lines, or over the test lines in the filter files.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

mod own_lines;

use own_lines::run_test_lines;

use super::lines::LogLines;
use super::{Failure, FilterContext};
use crate::cli::people::count;
use crate::clock;
use crate::config::AllowlistEntry;
use crate::inputs::journald::program_and_message;
use crate::replay::scan::{LineClock, time_of_line};
use banmesh_core::attempts::{Attempts, JailId, Recognised, Threshold};
use banmesh_core::repeats::Repeats;
use banmesh_core::visible::visible;
use banmesh_filter::library::{LoadedFilter, read_file};
use banmesh_filter::{Detector, LineView, Mode, Offence, OffenceKind, Scratch, Stop, Writer};
use banmesh_types::address::Address;
use banmesh_types::target::Target;
use banmesh_types::time::{Span, UnixMillis};

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Without lines, the test lines in the filter files are run, and your own files are attacked
with forged lines.

Examples:
  banmesh filter test /var/log/mail.log
  banmesh filter test sshd /var/log/auth.log
  banmesh filter test sshd --line 'Invalid user bob from 192.0.2.1 port 22' --explain
  journalctl -u ssh --since today | banmesh filter test sshd -
  banmesh filter test ./example.yaml")]
pub(super) struct TestArgs {
    /// Name of a filter, or path of a filter file [default: the filters and patterns of the configuration]
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
    /// Log file, in the format of syslog or journalctl; `-` is standard input
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Test this line
    #[arg(long, conflicts_with = "file", allow_hyphen_values = true)]
    line: Option<String>,
    /// Program that wrote the lines, for lines that do not name one [default: the first service of FILTER]
    #[arg(long)]
    program: Option<String>,
    /// Mode of the filters: normal, ddos or aggressive [default: filters.mode]
    #[arg(long)]
    mode: Option<Mode>,
    /// Show how each line was parsed, and where each rule stopped
    #[arg(long)]
    explain: bool,
    /// Show lines that no rule matches, too
    #[arg(long)]
    all: bool,
}

/// The filters under test.
struct Subject<'a> {
    detector: Detector,
    /// The program to assume for lines that do not name one: `--program`, or the first service of a single filter.
    assumed: Option<&'a [u8]>,
    /// Whether `assumed` is from `--program`. Otherwise lines without a program go to the filters for such lines, if there are any.
    given: bool,
}

impl<'a> Subject<'a> {
    /// Returns the program to assume for a line that names `program`, or none. `certain`: whether it comes from a complete header or
    /// the journal, so that it cannot be a part of the message.
    fn assume(&self, program: Option<&[u8]>, certain: bool) -> Option<&'a [u8]> {
        let as_is = match program {
            None => !self.given && self.detector.knows(None),
            Some(program) => certain || self.detector.knows(Some(program)),
        };
        if as_is { None } else { self.assumed }
    }
}

pub(super) fn run(args: &TestArgs, context: &FilterContext, json: bool, out: &mut impl Write) -> Result<bool, Failure> {
    let mut args = args.clone();
    // `filter test FILE`: the only argument may be a file instead of a filter.
    if let (Some(name), None, None) = (&args.filter, &args.file, &args.line) {
        let is_filter = context.library.find(name).is_some() || is_filter_file(name);
        if !is_filter && (name == "-" || PathBuf::from(name).is_file()) {
            args.file = args.filter.take().map(PathBuf::from);
        }
    }
    let mode = args.mode.unwrap_or(context.mode);
    let own: Option<LoadedFilter> = match &args.filter {
        None => None,
        Some(name) if is_filter_file(name) => {
            Some(read_file(&PathBuf::from(name)).map_err(|errors| Failure::of(&errors))?)
        }
        Some(name) => match context.find(name) {
            Ok(loaded) => Some(loaded.clone()),
            Err(_) if PathBuf::from(name).is_dir() => {
                return Err(Failure::one(format!("{name}: this is a directory; give a file in it, or use --dir")));
            }
            // The argument may have been meant as a file.
            Err(_) if name.contains(['/', '.']) => {
                return Err(Failure::one(format!(
                    "there is no file and no filter `{name}`{}",
                    context.library.nearest(name)
                )));
            }
            Err(failure) => return Err(failure),
        },
    };
    if args.line.is_none() && args.file.is_none() {
        return run_test_lines(own.as_ref(), context, json, out);
    }
    let detector = match &own {
        Some(own) => Detector::compile([(&own.filter, mode)], &[])
            .map_err(|errors| Failure::Reported(errors.iter().map(ToString::to_string).collect()))?,
        None => context
            .active()
            .detector(&context.config.filters.enabled, mode, &context.patterns)
            .map_err(|errors| Failure::of(&errors))?,
    };
    for warning in detector.warnings() {
        eprintln!("warning: {warning}");
    }
    let assumed = match (&args.program, &own) {
        (Some(program), _) => Some(program.as_bytes()),
        (None, Some(own)) => own.filter.services.first().map(String::as_bytes),
        (None, None) => None,
    };
    let subject = Subject { detector, assumed, given: args.program.is_some() };
    let mut run = TestRun::new(&subject, context, &args, json);
    if let Some(line) = &args.line {
        let mut line = line.clone().into_bytes();
        banmesh_syslog::flatten(&mut line);
        run.line(&line, out)?;
    } else if let Some(path) = &args.file {
        let mut lines =
            LogLines::open(path, context.config.syslog.max_line.0).map_err(|error| Failure::one(error.to_string()))?;
        while let Some(line) = lines.next().map_err(|error| Failure::one(error.to_string()))? {
            run.line(line, out)?;
            // With `journalctl --follow` the next line may take long to arrive.
            if lines.drained() {
                out.flush()?;
            }
        }
        run.too_long = lines.too_long;
    }
    run.summary(out)?;
    Ok(run.offences + run.repeats + run.logins > 0)
}

fn is_filter_file(name: &str) -> bool {
    let path = PathBuf::from(name);
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") && path.is_file()
}

/// The most sources that are counted at a time.
const MAX_TRACKED: usize = 262_144;
/// The time of lines before the first one that has a time: 1980, which is longer after 1970 than any time window.
const EARLIEST: UnixMillis = UnixMillis(315_532_800_000);

/// A run over lines. Offences count within the time window by the times in the lines. Lines without a time count at the time of the line
/// before them.
struct TestRun<'a> {
    subject: &'a Subject<'a>,
    context: &'a FilterContext,
    explain: bool,
    all: bool,
    json: bool,
    scratch: Scratch,
    repeat_filter: Repeats,
    attempts: Attempts,
    /// Converts the times of lines.
    clock: LineClock,
    /// The time of the last line that had one. It never goes back.
    now: UnixMillis,
    by_rule: BTreeMap<String, u64>,
    /// The number of the line that would ban each source.
    banned: BTreeMap<Address, u64>,
    lines: u64,
    offences: u64,
    repeats: u64,
    logins: u64,
    spent: Duration,
    too_long: u64,
    /// Lines of programs that none of the filters apply to.
    foreign: u64,
    /// Whether this is the one line of `--line`, which needs no summary.
    single: bool,
}

impl<'a> TestRun<'a> {
    fn new(subject: &'a Subject<'a>, context: &'a FilterContext, args: &TestArgs, json: bool) -> Self {
        Self {
            subject,
            context,
            explain: args.explain,
            all: args.all || args.explain || args.line.is_some(),
            json,
            scratch: Scratch::new(),
            repeat_filter: Repeats::new(),
            attempts: Attempts::new(MAX_TRACKED),
            clock: LineClock { written: i64::try_from(clock::now().0).unwrap_or(i64::MAX), zone: 0 },
            now: EARLIEST,
            by_rule: BTreeMap::new(),
            banned: BTreeMap::new(),
            lines: 0,
            offences: 0,
            repeats: 0,
            logins: 0,
            spent: Duration::ZERO,
            too_long: 0,
            foreign: 0,
            single: args.line.is_some(),
        }
    }

    fn line(&mut self, line: &[u8], out: &mut impl Write) -> Result<(), Failure> {
        self.lines += 1;
        if let Some(at) = time_of_line(line, self.clock).and_then(|at| u64::try_from(at).ok()) {
            self.now = self.now.max(UnixMillis(at));
        }
        let mut journal = program_and_message(line);
        if let Some((_, message)) = &mut journal {
            message.truncate(banmesh_syslog::trim_end(message).len());
            banmesh_syslog::flatten(message);
        }
        let start = Instant::now();
        let parsed = banmesh_syslog::parse(line);
        // As in a node, `message repeated N times: […]` counts N times.
        let quoted = parsed.repeat().and_then(|repeat| Some((repeat.message?, repeat.count)));
        let mut view = match &journal {
            Some((program, message)) => {
                LineView { program: program.as_deref(), message, raw: message, writer: Writer::default() }
            }
            None => LineView {
                program: parsed.program,
                message: quoted.map_or(parsed.message, |(message, _)| message),
                raw: line,
                writer: Writer { sender: None, hostname: parsed.hostname, pid: parsed.pid },
            },
        };
        let certain =
            journal.is_some() || parsed.priority.is_some() || parsed.timestamp.is_some() && parsed.hostname.is_some();
        let foreign = certain && view.program.is_some() && !self.subject.detector.knows(view.program);
        let mut assumed = false;
        if let Some(program) = self.subject.assume(view.program, certain) {
            assumed = true;
            // The apparent host and process id may be part of the message.
            view = LineView { raw: line, ..LineView::message(program, view.message) };
        }
        let mut offence = self.subject.detector.detect(view, &mut self.scratch);
        // What looks like a header may be the service's own format, in a file that is followed with a `program`.
        let is_whole = assumed || foreign && self.subject.given && journal.is_none() && parsed.priority.is_none();
        if is_whole
            && offence.is_none()
            && let Some(program) = self.subject.assumed
        {
            let whole = LineView::message(program, line);
            offence = self.subject.detector.detect(whole, &mut self.scratch);
            if offence.is_some() {
                view = whole;
                assumed = true;
            }
        }
        self.foreign += u64::from(foreign && offence.is_none());
        self.spent += start.elapsed();
        if self.explain {
            view = self.subject.detector.as_judged(view);
        }
        let times = quoted.filter(|_| journal.is_none()).map_or(1, |(_, times)| times);
        let verdict = offence.map(|offence| self.judge(&offence, times));
        if verdict.is_none() && !self.all && !self.json {
            return Ok(());
        }
        if self.json {
            self.line_json(line, view, verdict.as_ref(), out)
        } else {
            self.line_text(line, view, verdict.as_ref(), assumed, out)
        }
    }

    fn judge(&mut self, offence: &Offence<'_>, times: u32) -> Verdict {
        let rule = format!("{}/{}", offence.filter, offence.rule);
        *self.by_rule.entry(rule.clone()).or_default() += 1;
        let mut verdict = Verdict {
            rule,
            source: offence.source,
            severity: offence.severity,
            outcome: "login",
            attempts: None,
            ban: None,
            account: offence.account.map(visible),
            unknown: offence.unknown,
        };
        if offence.kind == OffenceKind::Success {
            self.logins += 1;
            return verdict;
        }
        let policy = offence.policy.and_then(|policy| self.subject.detector.overrides(policy));
        let max = policy.and_then(|policy| policy.max_attempts).unwrap_or(self.context.config.ban.max_attempts);
        let window = policy.and_then(|policy| policy.time_window).unwrap_or(self.context.config.ban.time_window.0);
        let threshold = Threshold { max_attempts: max, time_window: window };
        // Rules with the same policy are counted together.
        let jail = offence
            .policy
            .map_or(JailId::GENERAL, |policy| JailId(u32::try_from(policy.index() + 1).unwrap_or(u32::MAX)));
        let key = (jail, Target::host(offence.source));
        let by = Recognised { filter: Arc::clone(offence.filter), rule: Arc::clone(offence.rule) };
        let mut count = self.attempts.attempts(key, threshold, self.now);
        if self.repeat_filter.admits(offence.source, offence.echo, self.now) {
            self.offences += 1;
            count = self.attempts.record(key, times, &by, threshold, self.now).attempts;
            verdict.outcome = "offence";
        } else {
            self.repeats += 1;
            verdict.outcome = "repeat";
        }
        verdict.attempts = Some((count, max));
        if verdict.outcome == "offence" && count >= max {
            let first =
                policy.and_then(|policy| policy.initial_ban_time).unwrap_or(self.context.config.ban.initial_ban_time.0);
            let exempt = self
                .context
                .config
                .allowlist
                .iter()
                .filter_map(AllowlistEntry::target)
                .any(|target| target.contains(offence.source));
            verdict.ban =
                Some(if exempt { "no ban: in the allowlist".to_owned() } else { format!("ban, {}", Span(first)) });
            if !exempt {
                self.banned.entry(offence.source).or_insert(self.lines);
            }
        }
        verdict
    }

    fn line_json(
        &self,
        line: &[u8],
        view: LineView<'_>,
        verdict: Option<&Verdict>,
        out: &mut impl Write,
    ) -> Result<(), Failure> {
        let mut row = serde_json::json!({
            "line": String::from_utf8_lossy(line),
            "number": self.lines,
            "program": view.program.map(String::from_utf8_lossy),
            "verdict": verdict.map_or("nothing", |verdict| verdict.outcome),
        });
        if let Some(verdict) = verdict {
            row["rule"] = verdict.rule.clone().into();
            row["source"] = verdict.source.to_string().into();
            row["severity"] = verdict.severity.into();
            row["account"] = verdict.account.clone().into();
            row["unknown"] = verdict.unknown.into();
            row["attempts"] = verdict.attempts.map(|(count, _)| count).into();
            row["max_attempts"] = verdict.attempts.map(|(_, max)| max).into();
            row["would_ban"] = verdict.ban.as_ref().is_some_and(|ban| ban.starts_with("ban")).into();
        }
        if self.explain {
            let explanation = self.subject.detector.explain(view);
            let rules: Vec<serde_json::Value> = explanation
                .rules
                .iter()
                .map(|rule| serde_json::json!({ "rule": format!("{}/{}", rule.filter, rule.rule), "kind": rule.kind, "stop": stop_text(rule.kind, &rule.stop, view.message) }))
                .collect();
            row["message"] = String::from_utf8_lossy(view.message).into();
            row["rules"] = rules.into();
        }
        Ok(writeln!(out, "{row}")?)
    }

    fn line_text(
        &self,
        line: &[u8],
        view: LineView<'_>,
        verdict: Option<&Verdict>,
        assumed: bool,
        out: &mut impl Write,
    ) -> Result<(), Failure> {
        let line = visible(line);
        match verdict {
            None => writeln!(out, "nothing  | {line}")?,
            Some(verdict) => {
                let attempts =
                    verdict.attempts.map(|(count, max)| format!("  attempt {count} of {max}")).unwrap_or_default();
                let ban = verdict.ban.as_ref().map(|ban| format!(": {ban}")).unwrap_or_default();
                let account = match (&verdict.account, verdict.unknown) {
                    (None, _) => String::new(),
                    (Some(account), false) => format!("  account {account}"),
                    (Some(account), true) => format!("  unknown account {account}"),
                };
                let Verdict { outcome, source, rule, .. } = verdict;
                writeln!(out, "{outcome:<8} {source}  {rule}{attempts}{ban}{account}  | {line}")?;
            }
        }
        if !self.explain {
            return Ok(());
        }
        let program = view.program.map(visible);
        let note = if assumed { " (assumed: the line names no program)" } else { "" };
        writeln!(out, "  program  {}{note}", program.as_deref().unwrap_or("(none)"))?;
        writeln!(out, "  message  {}", visible(view.message))?;
        let explanation = self.subject.detector.explain(view);
        let mut without_literal = 0;
        for rule in &explanation.rules {
            if matches!(rule.stop, Stop::Literal(_)) {
                without_literal += 1;
            } else {
                let name = format!("{}/{}", rule.filter, rule.rule);
                writeln!(out, "  {:<8} {name:<32} {}", rule.kind, stop_text(rule.kind, &rule.stop, view.message))?;
            }
        }
        if explanation.rules.is_empty() {
            writeln!(out, "  no rule applies to this program")?;
        } else if without_literal > 0 {
            writeln!(out, "  {without_literal} other rules require text that is not in the line")?;
        }
        Ok(())
    }

    fn summary(&self, out: &mut impl Write) -> Result<(), Failure> {
        let unmatched = self.lines - self.offences - self.repeats - self.logins;
        let seconds = self.spent.as_secs_f64().max(1e-9);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people to read")]
        let rate = self.lines as f64 / seconds;
        if self.json {
            let banned: Vec<String> = self.banned.keys().map(ToString::to_string).collect();
            let summary = serde_json::json!({ "summary": {
                "lines": self.lines, "offences": self.offences, "repeats": self.repeats, "logins": self.logins,
                "nothing": unmatched, "by_rule": self.by_rule, "would_ban": banned, "lines_per_second": rate.round(), "too_long": self.too_long,
                "other_programs": self.foreign,
            }});
            return Ok(writeln!(out, "{summary}")?);
        }
        if self.single {
            return Ok(());
        }
        writeln!(
            out,
            "\n{}: {}, {}, {}, {unmatched} unmatched; {rate:.0} lines/s",
            count(self.lines, "line"),
            count(self.offences, "offence"),
            count(self.repeats, "repeat"),
            count(self.logins, "login")
        )?;
        if self.too_long > 0 {
            let longest = self.context.config.syslog.max_line;
            writeln!(
                out,
                "{} lines longer than syslog.max_line ({longest}) were skipped, as a node does",
                self.too_long
            )?;
        }
        if self.foreign > 0 {
            writeln!(out, "{} lines name a program that none of these filters applies to", self.foreign)?;
        }
        for (rule, count) in &self.by_rule {
            writeln!(out, "{count:>8}  {rule}")?;
        }
        if !self.banned.is_empty() {
            writeln!(out, "would be banned if all lines arrived within ban.time_window:")?;
        }
        for (source, line) in &self.banned {
            writeln!(out, "  {source} by line {line}")?;
        }
        Ok(())
    }
}

/// The result for one line that a rule matches.
struct Verdict {
    rule: String,
    source: Address,
    severity: u8,
    /// `offence`, `repeat` or `login`.
    outcome: &'static str,
    /// The attempts so far, and `max_attempts`.
    attempts: Option<(u32, u32)>,
    ban: Option<String>,
    /// The account that the line names, made printable.
    account: Option<String>,
    unknown: bool,
}

/// Describes where a rule stopped.
fn stop_text(kind: &str, stop: &Stop, message: &[u8]) -> String {
    match stop {
        Stop::Literal(texts) => {
            format!("requires {}", texts.iter().map(|text| format!("`{text}`")).collect::<Vec<_>>().join(" or "))
        }
        Stop::Expression(None) => "the expression does not match".to_owned(),
        Stop::Expression(Some(reached)) if *reached >= message.len() => "expects more text at the end".to_owned(),
        Stop::Expression(Some(reached)) => {
            let (before, after) = message.split_at((*reached).min(message.len()));
            let before = &before[before.len().saturating_sub(24)..];
            let after = &after[..after.len().min(24)];
            format!("stops at byte {reached}: …{}▮{}…", visible(before), visible(after))
        }
        Stop::Address(None) => "matches, but captures no address".to_owned(),
        Stop::Address(Some(text)) => format!("matches, but `{}` is not an address", visible(text.as_bytes())),
        Stop::Match(None) => "matches".to_owned(),
        Stop::Match(Some(source)) => format!("matches: {source}"),
        Stop::Session(session, Some(source)) => format!("matches: session `{session}` belongs to {source}"),
        Stop::Session(session, None) if matches!(kind, "session" | "end") => {
            format!("matches: session `{session}` has no address from here on")
        }
        Stop::Session(session, None) => {
            format!("matches: the source is the address of session `{session}`, if an earlier line gives it")
        }
    }
}
