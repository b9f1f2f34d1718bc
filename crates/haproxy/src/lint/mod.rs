//! The traps: what HAProxy refuses, and what it accepts and does not do as it reads. Each finding names the line and the cure.
//!
//! | module | what it looks at |
//! |---|---|
//! | [`engines`] | filters, and the SPOE files that they name |
//! | [`agents`] | the backend with the agents |
//! | [`variables`] | names that are read, against those that are set |
//! | [`rules`] | what frontends do with the answer, and in which order |
//! | [`expressions`] | samples and keywords that do not exist, or do not compare as they read |
//! | [`exposure`] | what others can reach |

mod agents;
mod engines;
mod exposure;
mod expressions;
mod rules;
mod variables;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::document::{Line, Place};
use super::finding::{Finding, Findings, Severity};
use super::proxies::{Configuration, Proxy};
use super::spoe::{self, Agent, Message, Scope, SpoeFile};
use super::version::Version;

/// The variable that banmesh sets, without scope and prefix.
pub const VERDICT: &str = "banned";

/// The scopes in which banmesh sets it.
pub const SCOPES: [&str; 2] = ["txn", "sess"];

/// The variable that answers a report, without scope and prefix.
const REPORTED: &str = "reported";

/// The arguments by which banmesh knows the client's address.
const ADDRESS_ARGUMENTS: [&str; 3] = ["src_ip", "src", "ip"];

/// What this node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where its agent listens.
    pub agent: SocketAddr,
    /// Whether it has an agent at all.
    pub enabled: bool,
    /// The configuration that says so; nothing when there is none, and the defaults are meant.
    pub origin: Option<String>,
}

/// Looks for every trap. `spoe` holds the SPOE files by the names that the filters give them.
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
                Some(SpoeFile::Read(document) | SpoeFile::Beside(document, _)) => spoe::scope(document, name),
                _ => Scope::default(),
            };
            Engine { proxy, line, name, file, scope }
        })
    });
    let mut written: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
    let mut read = BTreeSet::new();
    for line in configuration.lines() {
        for name in super::rules::writes(&line.words) {
            written.entry(name).or_default().push(line);
        }
        read.extend(super::rules::reads(&line.words));
    }
    let context = Context { configuration, engines: engines.collect(), written, read, version, node };
    let mut findings = Findings::default();
    let documents = spoe.values().filter_map(|file| match file {
        SpoeFile::Read(document) | SpoeFile::Beside(document, _) => Some(document),
        SpoeFile::Missing(..) => None,
    });
    for fault in configuration.faults.iter().chain(documents.flat_map(|document| &document.faults)) {
        let (what, cure) = (fault.what.to_owned(), fault.cure.to_owned());
        findings.add(fault.place.clone(), Severity::Error, "unreadable-line", what, cure);
    }
    // A map that banmesh keeps needs no filter.
    let has_map = configuration.lines().any(|line| line.words.iter().any(|word| word.contains("map_ip")));
    let nobody_is_ours = !context.is_incomplete() && !context.engines.iter().any(|engine| context.is_ours(engine));
    if let (Some(engine), true, false) = (context.engines.first(), nobody_is_ours, has_map) {
        let what =
            "no filter here leads to banmesh: other agents are asked, and nobody asks it whether a client is banned";
        findings.warning(engine.line, "no-filter", what, "`banmesh haproxy config` prints the lines for a frontend");
    }
    if context.engines.is_empty() && !has_map {
        let first = configuration.proxies.first().map(|proxy| &proxy.head);
        let first = first.or_else(|| configuration.stray.iter().chain(configuration.lines()).next());
        let place = first.map_or_else(|| Place { file: "-".into(), line: 1 }, |line| line.place.clone());
        let what = "there is no `filter spoe`: HAProxy asks nobody whether a client is banned".to_owned();
        let cure = "`banmesh haproxy config` prints the lines for a frontend".to_owned();
        findings.add(place, Severity::Warning, "no-filter", what, cure);
    }
    if let Some(line) = configuration.stray.iter().find(|line| is_spoe(line)) {
        let what = "this is an SPOE file, and no haproxy.cfg";
        findings.error(line, "spoe-file", what, "banmesh haproxy check /etc/haproxy/haproxy.cfg --spoe THIS_FILE");
    }
    engines::check(&context, &mut findings);
    agents::check(&context, &mut findings);
    variables::check(&context, &mut findings);
    rules::check(&context, &mut findings);
    expressions::check(&context, &mut findings);
    exposure::check(&context, &mut findings);
    findings.finish()
}

fn is_spoe(line: &Line) -> bool {
    matches!(line.word(0), "spoe-agent" | "spoe-message" | "spoe-group") || line.word(0).starts_with('[')
}

/// What the checks look at.
struct Context<'a> {
    configuration: &'a Configuration,
    engines: Vec<Engine<'a>>,
    /// The lines that write a variable, by its name.
    written: BTreeMap<&'a str, Vec<&'a Line>>,
    /// The variables that are read anywhere.
    read: BTreeSet<&'a str>,
    version: Version,
    node: &'a Node,
}

/// A filter, with what its SPOE file says.
struct Engine<'a> {
    proxy: &'a Proxy,
    line: &'a Line,
    name: Option<&'a str>,
    file: Option<&'a SpoeFile>,
    scope: Scope,
}

impl Engine<'_> {
    fn agent(&self) -> Option<&Agent> {
        self.scope.agents.first()
    }

    /// The messages that are sent by themselves, with the names of their events.
    fn at_events(&self) -> Vec<(&Message, &str)> {
        let named = self.agent().map(Agent::messages).unwrap_or_default();
        let messages = self.scope.messages.iter().filter(|message| named.iter().any(|name| name.name == message.name));
        messages.filter_map(|message| message.event.as_ref().map(|event| (message, event.word(1)))).collect()
    }

    /// The messages that the agent sends, at an event or in a group.
    fn sent(&self) -> impl Iterator<Item = &Message> {
        let mut names = self.agent().map(Agent::messages).unwrap_or_default();
        let groups = self.agent().map(Agent::groups).unwrap_or_default();
        let groups = self.scope.groups.iter().filter(|group| groups.iter().any(|named| named.name == group.name));
        names.extend(groups.flat_map(|group| group.messages.iter().cloned()));
        self.scope.messages.iter().filter(move |message| names.iter().any(|named| named.name == message.name))
    }

    /// Whether the variable is this agent's verdict.
    fn sets_verdict(&self, variable: &str) -> bool {
        self.agent().is_some_and(|agent| SCOPES.iter().any(|scope| agent.variable(scope, VERDICT) == variable))
    }

    /// What stands behind scope and prefix in the name of a variable of this agent.
    fn own_name<'n>(&self, variable: &'n str) -> Option<&'n str> {
        let (_, rest) = variable.split_once('.')?;
        rest.strip_prefix(self.agent()?.prefix())?.strip_prefix('.')
    }

    /// Whether the variable is one that this agent alone can set, and that banmesh does not know.
    fn sets_what_banmesh_does_not(&self, variable: &str) -> bool {
        self.own_name(variable).is_some_and(|name| {
            name != VERDICT && name != REPORTED && !self.sets_error(variable) && !is_nearly_verdict(name)
        })
    }

    /// Whether the variable is what this agent's errors set.
    fn sets_error(&self, variable: &str) -> bool {
        let Some(agent) = self.agent() else { return false };
        let variables = ["set-on-error", "set-process-time", "set-total-time"];
        let mut names = variables.iter().filter_map(|option| agent.last(&["option", option]));
        names.any(|line| agent.variable("txn", line.word(2)) == variable)
    }
}

impl<'a> Context<'a> {
    fn engines_of(&self, proxy: &'a Proxy) -> impl Iterator<Item = &Engine<'a>> {
        self.engines.iter().filter(move |engine| std::ptr::eq(engine.proxy, proxy))
    }

    /// Each SPOE scope once, by the first filter that leads to it.
    fn distinct(&self) -> Vec<&Engine<'a>> {
        let mut seen: Vec<&Place> = Vec::new();
        let mut engines = Vec::new();
        for engine in &self.engines {
            let Some(agent) = engine.agent() else { continue };
            if !seen.contains(&&agent.head.place) {
                seen.push(&agent.head.place);
                engines.push(engine);
            }
        }
        engines
    }

    /// Whether an SPOE file could not be read, so that names in it are not known.
    fn is_incomplete(&self) -> bool {
        self.engines.iter().any(|engine| engine.agent().is_none())
    }

    /// Whether the agent is banmesh, as far as can be told: other agents set other variables from other arguments, and many
    /// listen on port 12345.
    fn is_ours(&self, engine: &Engine<'_>) -> bool {
        let alone = self.distinct().len() < 2;
        if self.read.iter().any(|name| engine.sets_verdict(name) || (alone && is_verdict_name(name))) {
            return true;
        }
        if self.read.iter().any(|name| engine.sets_what_banmesh_does_not(name)) {
            return false;
        }
        let named = |name: &str| name.contains("banmesh") || name.contains("ip-reputation");
        let backend = engine.agent().and_then(Agent::backend).map_or("", |line| line.word(1));
        let servers = self.configuration.backend(backend).map(Proxy::servers).unwrap_or_default();
        let ports = [self.node.agent.port(), 12345];
        let is_there =
            || servers.iter().any(|server| server.host_port().is_some_and(|(_, port)| ports.contains(&port)));
        named(engine.name.unwrap_or_default()) || (is_there() && engine.sent().any(is_about_somebody))
    }
}

/// Whether a message has an argument from which banmesh takes the address.
fn is_about_somebody(message: &Message) -> bool {
    message.arguments.iter().any(|(key, _)| ADDRESS_ARGUMENTS.contains(&key.as_str()))
}

/// Whether a name is the verdict's, misspelt.
fn is_nearly_verdict(name: &str) -> bool {
    name != VERDICT && name.len() < 40 && (name.contains("ban") || strsim::damerau_levenshtein(name, VERDICT) <= 2)
}

/// Whether a variable is called as the verdict is, whatever stands before.
fn is_verdict_name(variable: &str) -> bool {
    variable.rsplit('.').next() == Some(VERDICT)
}
