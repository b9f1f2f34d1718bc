//! The timeline of a replay as SVG, and the trials of other limits.

use std::fmt::Write as _;

use super::tally::{Minute, STEP, Tally};
use super::thresholds::Trial;
use banmesh_types::time::{Span, UnixMillis};

/// The most bars of the timeline.
const BARS: u64 = 180;
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;

/// Draws the timelines of the named replays below each other, and the trials below them.
pub fn svg(replays: &[(&str, &Tally)], trials: &[Trial]) -> String {
    let panel = HEIGHT + TOP + 40.0;
    let panels = replays.len() + usize::from(!trials.is_empty());
    #[expect(clippy::cast_precision_loss, reason = "a few panels")]
    let height = panel * panels as f64 + 10.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        WIDTH + LEFT + 20.0
    );
    let mut top = TOP;
    for (name, tally) in replays {
        timeline(&mut text, name, tally, top);
        top += panel;
    }
    if !trials.is_empty() {
        scatter(&mut text, trials, top);
    }
    text.push_str("</svg>\n");
    text
}

#[expect(clippy::cast_precision_loss, reason = "lengths of bars")]
fn timeline(text: &mut String, name: &str, tally: &Tally, top: f64) {
    let bounds = tally.minutes.keys().next().zip(tally.minutes.keys().next_back());
    let Some((first, last)) = bounds else { return };
    let minutes = (last - first + 1).div_ceil(BARS).max(1);
    let count = (last - first) / minutes + 1;
    let mut bars: Vec<Minute> = Vec::new();
    for (minute, counts) in &tally.minutes {
        let at = usize::try_from((minute - first) / minutes).unwrap_or(usize::MAX);
        if bars.len() <= at {
            bars.resize(at + 1, Minute::default());
        }
        if let Some(bar) = bars.get_mut(at) {
            bar.let_through += counts.let_through;
            bar.refused += counts.refused;
            bar.bans += counts.bans;
        }
    }
    let most = bars.iter().map(|bar| bar.let_through + bar.refused).max().unwrap_or(0).max(1);
    let width = WIDTH / count as f64;
    let span = Span(std::time::Duration::from_millis(minutes * STEP));
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"{}\" font-size=\"14\">{}: offences per {span}, <tspan fill=\"#c43\">let through</tspan> and <tspan \
         fill=\"#48a\">refused</tspan></text>",
        top - 14.0,
        escaped(name)
    );
    for (index, bar) in bars.iter().enumerate() {
        let x = LEFT + index as f64 * width;
        let tall = |count: u64| HEIGHT * count as f64 / most as f64;
        let (through, refused) = (tall(bar.let_through), tall(bar.refused));
        let at = UnixMillis((first + index as u64 * minutes) * STEP);
        let _ = writeln!(
            text,
            "<g><title>{at}: {} let through, {} refused, {} bans</title><rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" \
             height=\"{through:.1}\" fill=\"#c43\"/><rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{refused:.1}\" \
             fill=\"#48a\"/></g>",
            bar.let_through,
            bar.refused,
            bar.bans,
            top + HEIGHT - through,
            width.max(1.0) * 0.9,
            top + HEIGHT - through - refused,
            width.max(1.0) * 0.9,
        );
    }
    let bottom = top + HEIGHT;
    let _ = writeln!(
        text,
        "<path d=\"M{LEFT} {top}V{bottom}H{}\" fill=\"none\" stroke=\"#333\"/><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{most}</text>\
         <text x=\"{LEFT}\" y=\"{}\">{}</text><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
        LEFT + WIDTH,
        LEFT - 6.0,
        top + 10.0,
        bottom + 16.0,
        UnixMillis(first * STEP),
        LEFT + WIDTH,
        bottom + 16.0,
        UnixMillis((last + 1) * STEP),
    );
}

#[expect(clippy::cast_precision_loss, reason = "positions of points")]
fn scatter(text: &mut String, trials: &[Trial], top: f64) {
    let most = trials.iter().map(|trial| trial.sides.hurt).max().unwrap_or(0).max(1);
    let bottom = top + HEIGHT;
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"{}\" font-size=\"14\">Share of attacks refused (up) by honest sources hurt (right), for other \
         limits</text><path d=\"M{LEFT} {top}V{bottom}H{}\" fill=\"none\" stroke=\"#333\"/><text x=\"{}\" y=\"{}\" \
         text-anchor=\"end\">100 %</text><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{most}</text>",
        top - 14.0,
        LEFT + WIDTH,
        LEFT - 6.0,
        top + 10.0,
        LEFT + WIDTH,
        bottom + 16.0,
    );
    for trial in trials {
        let x = LEFT + 10.0 + (WIDTH - 20.0) * trial.sides.hurt as f64 / most as f64;
        let y = bottom - HEIGHT * trial.sides.refused_share();
        let _ = writeln!(
            text,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"#48a\" fill-opacity=\"0.6\"><title>{} attempts in {}: {:.1} % refused, \
             {} of {} honest sources hurt</title></circle>",
            trial.max_attempts,
            Span(trial.time_window),
            100.0 * trial.sides.refused_share(),
            trial.sides.hurt,
            trial.sides.honest,
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
