//! The report of a replay, as text and as JSON.

use std::io;
use std::time::Duration;

use serde_json::{Value, json};

use super::difference::{Bans, Difference};
use crate::cli::output::{Output, Tone, brief};
use crate::operation::words::{count, number};
use crate::replay::pipeline::Totals;
use crate::replay::tally::{BanRecord, Tally};
use crate::replay::thresholds::Trial;
use crate::replay::virtual_node::Ban;
use banmesh_types::time::{Span, UnixMillis};

/// Rows of a list in the text, unless all are wanted.
const SHOWN: usize = 10;
/// Bans in the JSON.
const LISTED: usize = 100_000;

/// What was read.
pub(super) struct Summary<'a> {
    pub files: usize,
    pub totals: &'a Totals,
    pub elapsed: Duration,
}

/// What came of it under one configuration.
pub(super) struct Replayed<'a> {
    pub name: &'a str,
    pub tally: &'a Tally,
    /// Bans in force at the end.
    pub active: usize,
}

/// Other limits.
pub(super) struct Suggestion<'a> {
    pub trials: &'a [Trial],
    pub best: Option<&'a Trial>,
    /// `ban.max_attempts` and `ban.time_window` of the configuration.
    pub current: (u32, Duration),
    /// Whether there were too many offences to try all of them.
    pub partly: bool,
}

/// Prints the report.
pub(super) fn text(
    out: &mut Output,
    summary: &Summary<'_>,
    replayed: &[Replayed<'_>],
    difference: Option<&Difference>,
    suggestion: Option<&Suggestion<'_>>,
    all_bans: bool,
) -> io::Result<()> {
    let Totals { lines, too_long, untimed, span } = summary.totals;
    let seconds = summary.elapsed.as_secs_f64().max(0.001);
    let period = span.map_or_else(
        || "no line has a time".to_owned(),
        |(first, last)| format!("{first} to {last} ({})", brief(last.since(first).as_secs())),
    );
    out.line(&format!("{} in {}, {period}", count(*lines, "line"), count(summary.files as u64, "file")))?;
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate for people"
    )]
    let rate = (*lines as f64 / seconds) as u64;
    out.colored(Tone::Faint, &format!("replayed in {seconds:.1} s: {} lines per second", number(rate)))?;
    if *too_long > 0 {
        out.line(&format!("{} skipped, because they are longer than syslog.max_line", count(*too_long, "line")))?;
    }
    if *untimed > 0 {
        out.colored(
            Tone::Bad,
            &format!("{} without a time: they count at the time of the line before", count(*untimed, "offence")),
        )?;
    }
    for one in replayed {
        out.line("")?;
        configuration(out, one, all_bans)?;
    }
    if let Some(difference) = difference {
        out.line("")?;
        differences(out, replayed, difference, all_bans)?;
    }
    if let Some(suggestion) = suggestion {
        out.line("")?;
        suggest(out, suggestion)?;
    }
    Ok(())
}

fn configuration(out: &mut Output, Replayed { name, tally, active }: &Replayed<'_>, all_bans: bool) -> io::Result<()> {
    let sides = tally.sides();
    out.colored(Tone::Heading, &format!("With {name}"))?;
    let offenders = tally.offenders() as u64;
    let mut pairs = vec![(
        "offences",
        format!(
            "{} of {}: {} counted, {} refused by a ban, {} repeated, {} allowed",
            number(tally.offences),
            count(offenders, "source"),
            number(tally.counted),
            number(tally.refused),
            number(tally.repeated),
            number(tally.allowed)
        ),
    )];
    let again = tally.bans.iter().filter(|record| record.ban.step > 1).count() as u64;
    let longest = tally.bans.iter().map(|record| length(&record.ban)).max().unwrap_or_default();
    let bans = tally.bans.len() as u64 + tally.more_bans;
    pairs.push((
        "bans",
        format!(
            "{} of {}, {} of them again; the longest {}; {active} in force at the end",
            number(bans),
            count(tally.targets() as u64, "target"),
            number(again),
            brief(longest.as_secs())
        ),
    ));
    if tally.not_banned > 0 {
        pairs.push((
            "not banned",
            format!("{}, because the table was full (ban.max_bans)", count(tally.not_banned, "time")),
        ));
    }
    if !tally.shadow_bans.is_empty() || tally.shadow > 0 {
        let text = format!(
            "{} in shadow mode; they would have made {}",
            count(tally.shadow, "offence"),
            count(tally.shadow_bans.len() as u64, "ban")
        );
        pairs.push(("shadow", text));
    }
    for (mechanism, would) in &tally.would {
        let bans = count(would.bans, "ban");
        let text = if *mechanism == "known" {
            format!("evidence.known would have prevented {bans}")
        } else {
            let honest = count(tally.honest_in(would), "source");
            format!("evidence ({mechanism}) would have made {bans}; {honest} that logged in would have been affected")
        };
        pairs.push(("observed", text));
    }
    pairs.push((
        "attacks",
        format!(
            "{:.1} % of {} refused; {} of {} without a login were banned",
            100.0 * sides.refused_share(),
            count(sides.attacks, "offence"),
            number(sides.attackers_banned),
            count(sides.attackers, "source")
        ),
    ));
    pairs.push((
        "honest",
        match tally.logins {
            0 => "unknown: no enabled filter recognised a successful login".to_owned(),
            logins => format!(
                "{} of {} that logged in were banned ({})",
                number(sides.hurt),
                count(sides.honest, "source"),
                count(logins, "login")
            ),
        },
    ));
    out.pairs(&pairs)?;
    for (filter, counts) in &tally.filters {
        let shadow = if counts.shadow_bans > 0 { format!(", {} in shadow", counts.shadow_bans) } else { String::new() };
        out.line(&format!(
            "  {filter:<20} {}, {}{shadow}",
            count(counts.offences, "offence"),
            count(counts.bans, "ban")
        ))?;
    }
    let hurt: Vec<&BanRecord> = tally.hurt().collect();
    if !hurt.is_empty() {
        out.colored(Tone::Bad, "Bans of sources that logged in while banned, or within a day after")?;
        let shown = if all_bans { hurt.len() } else { SHOWN };
        for record in hurt.iter().take(shown) {
            out.line(&format!("  {}", ban_line(record)))?;
        }
        more(out, shown, hurt.len())?;
    }
    if all_bans {
        out.line("All bans")?;
        for record in &tally.bans {
            out.line(&format!("  {}", ban_line(record)))?;
        }
        for ban in &tally.shadow_bans {
            out.line(&format!("  {} {} would be banned by {}/{}", ban.at, ban.target, ban.filter, ban.rule))?;
        }
    }
    Ok(())
}

fn ban_line(record: &BanRecord) -> String {
    let ban = &record.ban;
    let login = match record.login {
        Some(at) if record.logins_refused > 0 => {
            format!(", {} refused, the first at {at}", count(record.logins_refused.into(), "login"))
        }
        Some(at) => format!(", logged in at {at}"),
        None => String::new(),
    };
    format!(
        "{} {} for {} by {}/{} ({}, ban {}), {} refused{login}",
        ban.at,
        ban.target,
        brief(length(ban).as_secs()),
        ban.filter,
        ban.rule,
        count(ban.attempts.into(), "attempt"),
        ban.step,
        count(record.refused, "offence"),
    )
}

fn differences(out: &mut Output, replayed: &[Replayed<'_>], difference: &Difference, all: bool) -> io::Result<()> {
    let names: Vec<&str> = replayed.iter().map(|one| one.name).collect();
    let (old, new) = (names.first().copied().unwrap_or_default(), names.get(1).copied().unwrap_or_default());
    let Difference { added, removed, changed, same } = difference;
    out.colored(Tone::Heading, "Difference")?;
    out.line(&format!("{} banned in the same way", count(*same as u64, "target")))?;
    let shown = if all { usize::MAX } else { SHOWN };
    for (list, config) in [(added, new), (removed, old)] {
        out.line(&format!("{} banned only with {config}", count(list.len() as u64, "target")))?;
        for (target, bans) in list.iter().take(shown) {
            out.line(&format!("  {target}  {}", bans_text(bans)))?;
        }
        more(out, shown, list.len())?;
    }
    out.line(&format!("{} banned differently", count(changed.len() as u64, "target")))?;
    for (target, before, after) in changed.iter().take(shown) {
        out.line(&format!("  {target}  {} instead of {}", bans_text(after), bans_text(before)))?;
    }
    more(out, shown, changed.len())
}

fn bans_text(bans: &Bans) -> String {
    let hurt = match bans.logins_refused {
        0 => String::new(),
        logins => format!(", {} refused", count(logins, "login")),
    };
    format!("{}, {}{hurt}", count(bans.bans, "ban"), brief(bans.length.as_secs()))
}

fn suggest(out: &mut Output, suggestion: &Suggestion<'_>) -> io::Result<()> {
    let Suggestion { trials, best, current, partly } = suggestion;
    out.colored(Tone::Heading, "Other limits (filters with limits of their own keep them)")?;
    if *partly {
        out.line("tried on the first 1,000,000 offences and logins")?;
    }
    out.line("  max_attempts  time_window  attacks refused  honest sources hurt     bans")?;
    for trial in *trials {
        let mark = if (trial.max_attempts, trial.time_window) == *current { "  now" } else { "" };
        out.line(&format!(
            "  {:>12}  {:>11}  {:>13.1} %  {:>12} of {:<4}  {:>7}{mark}",
            trial.max_attempts,
            Span(trial.time_window).to_string(),
            100.0 * trial.sides.refused_share(),
            trial.sides.hurt,
            trial.sides.honest,
            trial.bans
        ))?;
    }
    let Some(best) = best else { return Ok(()) };
    out.colored(
        Tone::Good,
        &format!(
            "suggested: ban.max_attempts: {}, ban.time_window: {} ({:.1} % of the attacks refused, {} of {} honest sources hurt)",
            best.max_attempts,
            Span(best.time_window),
            100.0 * best.sides.refused_share(),
            best.sides.hurt,
            best.sides.honest
        ),
    )?;
    if best.sides.honest == 0 {
        out.line("No filter recognised a successful login, so nothing is known about honest sources: check the bans with --bans.")?;
    }
    Ok(())
}

/// The report as JSON.
pub(super) fn json(
    summary: &Summary<'_>,
    replayed: &[Replayed<'_>],
    difference: Option<&Difference>,
    suggestion: Option<&Suggestion<'_>>,
) -> Value {
    let Totals { lines, too_long, untimed, span } = summary.totals;
    let time = |at: UnixMillis| Value::from(at.to_string());
    json!({
        "files": summary.files,
        "lines": lines,
        "too_long": too_long,
        "untimed": untimed,
        "from": span.map(|(first, _)| time(first)),
        "to": span.map(|(_, last)| time(last)),
        "elapsed_seconds": summary.elapsed.as_secs_f64(),
        "configurations": replayed.iter().map(configuration_json).collect::<Vec<_>>(),
        "difference": difference.map(difference_json),
        "suggestion": suggestion.map(suggestion_json),
    })
}

fn configuration_json(Replayed { name, tally, active }: &Replayed<'_>) -> Value {
    let sides = tally.sides();
    let filters: serde_json::Map<String, Value> = tally
        .filters
        .iter()
        .map(|(name, counts)| {
            let counts = json!({ "offences": counts.offences, "bans": counts.bans, "shadow_bans": counts.shadow_bans });
            (name.to_string(), counts)
        })
        .collect();
    let observed: serde_json::Map<String, Value> = tally
        .would
        .iter()
        .map(|(mechanism, would)| {
            ((*mechanism).to_owned(), json!({ "bans": would.bans, "honest": tally.honest_in(would) }))
        })
        .collect();
    json!({
        "name": name,
        "offences": tally.offences,
        "sources": tally.offenders(),
        "counted": tally.counted,
        "refused": tally.refused,
        "repeated": tally.repeated,
        "allowed": tally.allowed,
        "shadow": tally.shadow,
        "observed": observed,
        "logins": tally.logins,
        "bans_total": tally.bans.len() as u64 + tally.more_bans,
        "bans_in_force": active,
        "honest": sides.honest,
        "honest_hurt": sides.hurt,
        "attackers": sides.attackers,
        "attackers_banned": sides.attackers_banned,
        "attacks": sides.attacks,
        "attacks_refused": sides.attacks_refused,
        "filters": filters,
        "bans": tally.bans.iter().take(LISTED).map(record_json).collect::<Vec<_>>(),
        "shadow_bans": tally.shadow_bans.iter().take(LISTED).map(ban_json).collect::<Vec<_>>(),
    })
}

fn ban_json(ban: &Ban) -> Value {
    json!({
        "target": ban.target.to_string(),
        "filter": &*ban.filter,
        "rule": &*ban.rule,
        "attempts": ban.attempts,
        "at": ban.at.to_string(),
        "until": ban.until.to_string(),
        "step": ban.step,
    })
}

fn record_json(record: &BanRecord) -> Value {
    let mut row = ban_json(&record.ban);
    row["offences_refused"] = record.refused.into();
    row["logins_refused"] = record.logins_refused.into();
    row["login"] = record.login.map(|at| at.to_string()).into();
    row
}

fn bans_json(bans: &Bans) -> Value {
    json!({ "bans": bans.bans, "seconds": bans.length.as_secs(), "logins_refused": bans.logins_refused })
}

fn difference_json(difference: &Difference) -> Value {
    let one = |(target, bans): &(banmesh_types::target::Target, Bans)| json!({ "target": target.to_string(), "bans": bans_json(bans) });
    let changed: Vec<Value> = difference
        .changed
        .iter()
        .take(LISTED)
        .map(|(target, before, after)| json!({ "target": target.to_string(), "before": bans_json(before), "after": bans_json(after) }))
        .collect();
    json!({
        "same": difference.same,
        "added": difference.added.iter().take(LISTED).map(one).collect::<Vec<_>>(),
        "removed": difference.removed.iter().take(LISTED).map(one).collect::<Vec<_>>(),
        "changed": changed,
    })
}

fn suggestion_json(suggestion: &Suggestion<'_>) -> Value {
    let trial = |trial: &Trial| {
        json!({
            "max_attempts": trial.max_attempts,
            "time_window": Span(trial.time_window).to_string(),
            "attacks_refused_share": trial.sides.refused_share(),
            "honest": trial.sides.honest,
            "honest_hurt": trial.sides.hurt,
            "bans": trial.bans,
        })
    };
    json!({ "best": suggestion.best.map(trial), "trials": suggestion.trials.iter().map(trial).collect::<Vec<_>>() })
}

fn length(ban: &Ban) -> Duration {
    // Ends are rounded up to the second.
    Duration::from_secs(UnixMillis(u64::from(ban.until.seconds()) * 1000).since(ban.at).as_secs())
}

fn more(out: &mut Output, shown: usize, all: usize) -> io::Result<()> {
    if all > shown {
        out.line(&format!("  and {} more; --bans lists all", number((all - shown) as u64)))?;
    }
    Ok(())
}
