//! Finds mistakes in a configuration: what HAProxy rejects, and what it accepts but does not do as written. Each finding names the line
//! and a fix.
//!
//! | module | checks |
//! |---|---|
//! | `engines` | filters, and the SPOE files that they name |
//! | `agents` | the backend with the agents |
//! | `variables` | variables that are read but never set |
//! | `rules` | what frontends do with the answer, and the order of their rules |
//! | `peers` | peers sections, and tables that banmesh writes |
//! | `expressions` | samples and keywords that do not exist, and comparisons that do not mean what they seem to |
//! | `exposure` | pages and sockets that are open to others |
//! | `context` | what all checks look at |

mod agents;
mod context;
mod engines;
mod exposure;
mod expressions;
mod peers;
mod rules;
mod variables;

use std::collections::{BTreeMap, BTreeSet};

use crate::document::{Line, Place};
use crate::finding::{Finding, Findings, Severity};
use crate::proxies::Configuration;
use crate::spoe::{self, Scope, SpoeFile};
use crate::version::Version;

pub use context::{ADDRESS_ARGUMENTS, Node, SCOPES, VERDICT};
use context::{Context, Engine};

/// Runs all checks. `spoe` has the SPOE files, by the paths in the filters. The findings are sorted by file and line.
pub fn check(
    configuration: &Configuration,
    spoe: &BTreeMap<String, SpoeFile>,
    version: Version,
    node: &Node,
) -> Vec<Finding> {
    let engines = configuration.proxies.iter().flat_map(|proxy| {
        proxy.spoe_filters().map(move |line| {
            let name = line.after("engine");
            let file = line.after("config").and_then(|path| spoe.get(path));
            let scope = match file {
                Some(SpoeFile::Read(document) | SpoeFile::Elsewhere(document, _)) => spoe::scope(document, name),
                _ => Scope::default(),
            };
            Engine { proxy, line, name, file, scope }
        })
    });
    let mut written: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
    let mut read = BTreeSet::new();
    for line in configuration.lines() {
        for name in crate::rules::writes(&line.words) {
            written.entry(name).or_default().push(line);
        }
        read.extend(crate::rules::reads(&line.words));
    }
    let context = Context { configuration, engines: engines.collect(), written, read, version, node };
    let mut findings = Findings::default();
    let documents = spoe.values().filter_map(|file| match file {
        SpoeFile::Read(document) | SpoeFile::Elsewhere(document, _) => Some(document),
        SpoeFile::Missing(..) => None,
    });
    for fault in configuration.faults.iter().chain(documents.flat_map(|document| &document.faults)) {
        let (problem, fix) = (fault.problem.to_owned(), fault.fix.to_owned());
        findings.add(fault.place.clone(), Severity::Error, "unreadable-line", problem, fix);
    }
    // A map and a table that banmesh updates work without a filter.
    let looks_up = |word: &String| word.contains("map_ip") || word.contains("table_gpt") || word.contains("_get_gpt");
    let has_map = configuration.lines().any(|line| line.words.iter().any(looks_up));
    let none_is_ours = !context.is_incomplete() && !context.engines.iter().any(|engine| context.is_ours(engine));
    if let (Some(engine), true, false) = (context.engines.first(), none_is_ours, has_map) {
        let problem = "no filter here queries banmesh; all of them query other agents";
        findings.warning(engine.line, "no-filter", problem, "`banmesh haproxy config` prints the lines for a frontend");
    }
    if context.engines.is_empty() && !has_map {
        let first = configuration.proxies.first().map(|proxy| &proxy.head);
        let first = first.or_else(|| configuration.stray.iter().chain(configuration.lines()).next());
        let place = first.map_or_else(|| Place { file: "-".into(), line: 1 }, |line| line.place.clone());
        let problem = "there is no `filter spoe`, so HAProxy never asks whether a client is banned".to_owned();
        let fix = "`banmesh haproxy config` prints the lines for a frontend".to_owned();
        findings.add(place, Severity::Warning, "no-filter", problem, fix);
    }
    if let Some(line) = configuration.stray.iter().find(|line| is_spoe(line)) {
        let problem = "this is an SPOE file, not a haproxy.cfg";
        findings.error(line, "spoe-file", problem, "banmesh haproxy check /etc/haproxy/haproxy.cfg --spoe THIS_FILE");
    }
    engines::check(&context, &mut findings);
    agents::check(&context, &mut findings);
    variables::check(&context, &mut findings);
    rules::check(&context, &mut findings);
    expressions::check(&context, &mut findings);
    exposure::check(&context, &mut findings);
    peers::check(&context, &mut findings);
    findings.finish()
}

fn is_spoe(line: &Line) -> bool {
    matches!(line.word(0), "spoe-agent" | "spoe-message" | "spoe-group") || line.word(0).starts_with('[')
}
