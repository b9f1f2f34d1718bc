//! What every check looks at: the configuration, its engines and its variables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::document::{Line, Place};
use crate::proxies::{Configuration, Proxy};
use crate::spoe::{Agent, Message, Scope, SpoeFile};
use crate::version::Version;

/// The variable that banmesh sets to 0 or 1 in the answer to a check, without scope and prefix.
pub const VERDICT: &str = "banned";

/// The scopes in which banmesh sets [`VERDICT`].
pub const SCOPES: [&str; 2] = ["txn", "sess"];

/// The variable that banmesh sets in the answer to a report, without scope and prefix.
const REPORTED: &str = "reported";

/// The names of arguments from which banmesh reads the client's address. A test of the node compares them with what its agent reads.
pub const ADDRESS_ARGUMENTS: [&str; 24] = [
    "src_ip",
    "src",
    "ip",
    "src-ip",
    "srcip",
    "src_addr",
    "src-addr",
    "source",
    "source_ip",
    "source-ip",
    "client",
    "client_ip",
    "client-ip",
    "clientip",
    "client_addr",
    "client-addr",
    "remote",
    "remote_ip",
    "remote-ip",
    "remote_addr",
    "real_ip",
    "real-ip",
    "addr",
    "address",
];

/// Samples that HAProxy sends as an address. banmesh takes such an argument under any name, unless an argument has a known name.
const ADDRESS_SAMPLES: [&str; 6] = ["src", "fc_src", "hdr_ip(", "req.hdr_ip(", "capture.req.hdr_ip(", "src,"];

/// The agent that HAProxy should query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The address that the agent listens on.
    pub agent: SocketAddr,
    /// Whether the agent is enabled.
    pub enabled: bool,
    /// The file, and possibly line, that these settings come from. `None` means the defaults.
    pub origin: Option<String>,
    /// The name of the table of bans (`haproxy.peers.bans_table`). `None` means the default.
    pub bans_table: Option<String>,
    /// The tables whose `gpc0` counts offences (`haproxy.peers.report_tables`).
    pub report_tables: Vec<String>,
    /// The longest automatic ban (`ban.max_ban_time`), if it is known.
    pub longest_ban: Option<std::time::Duration>,
}

/// banmesh's defaults: an agent on port 12345 of this host.
impl Default for Node {
    fn default() -> Self {
        Self {
            agent: SocketAddr::from(([127, 0, 0, 1], 12345)),
            enabled: true,
            origin: None,
            bans_table: None,
            report_tables: Vec::new(),
            longest_ban: None,
        }
    }
}

/// What every check looks at.
pub(super) struct Context<'a> {
    pub(super) configuration: &'a Configuration,
    pub(super) engines: Vec<Engine<'a>>,
    /// The lines that write a variable, by its name.
    pub(super) written: BTreeMap<&'a str, Vec<&'a Line>>,
    /// The variables that are read anywhere.
    pub(super) read: BTreeSet<&'a str>,
    pub(super) version: Version,
    pub(super) node: &'a Node,
}

/// A filter, with its scope in the SPOE file.
pub(super) struct Engine<'a> {
    pub(super) proxy: &'a Proxy,
    pub(super) line: &'a Line,
    pub(super) name: Option<&'a str>,
    pub(super) file: Option<&'a SpoeFile>,
    pub(super) scope: Scope,
}

impl Engine<'_> {
    pub(super) fn agent(&self) -> Option<&Agent> {
        self.scope.agents.first()
    }

    /// The messages that HAProxy sends at an event, with the names of the events.
    pub(super) fn at_events(&self) -> Vec<(&Message, &str)> {
        let named = self.agent().map(Agent::messages).unwrap_or_default();
        let messages = self.scope.messages.iter().filter(|message| named.iter().any(|name| name.name == message.name));
        messages.filter_map(|message| message.event.as_ref().map(|event| (message, event.word(1)))).collect()
    }

    /// The messages that the agent sends, at an event or in a group.
    pub(super) fn sent(&self) -> impl Iterator<Item = &Message> {
        let mut names = self.agent().map(Agent::messages).unwrap_or_default();
        let groups = self.agent().map(Agent::groups).unwrap_or_default();
        let groups = self.scope.groups.iter().filter(|group| groups.iter().any(|named| named.name == group.name));
        names.extend(groups.flat_map(|group| group.messages.iter().cloned()));
        self.scope.messages.iter().filter(move |message| names.iter().any(|named| named.name == message.name))
    }

    /// Whether the variable is this agent's verdict.
    pub(super) fn sets_verdict(&self, variable: &str) -> bool {
        self.agent().is_some_and(|agent| SCOPES.iter().any(|scope| agent.variable(scope, VERDICT) == variable))
    }

    /// The part of a variable's name after the scope and this agent's prefix. `None` for other variables.
    pub(super) fn own_name<'n>(&self, variable: &'n str) -> Option<&'n str> {
        let (_, rest) = variable.split_once('.')?;
        rest.strip_prefix(self.agent()?.prefix())?.strip_prefix('.')
    }

    /// Whether the variable has this agent's prefix, but banmesh does not set it.
    pub(super) fn is_foreign_variable(&self, variable: &str) -> bool {
        self.own_name(variable).is_some_and(|name| {
            name != VERDICT && name != REPORTED && !self.sets_error(variable) && !is_nearly_verdict(name)
        })
    }

    /// Whether HAProxy sets the variable for an option of this agent, such as `set-on-error`.
    pub(super) fn sets_error(&self, variable: &str) -> bool {
        let Some(agent) = self.agent() else { return false };
        let variables = ["set-on-error", "set-process-time", "set-total-time"];
        let mut names = variables.iter().filter_map(|option| agent.last(&["option", option]));
        names.any(|line| agent.variable("txn", line.word(2)) == variable)
    }
}

impl<'a> Context<'a> {
    pub(super) fn engines_of(&self, proxy: &'a Proxy) -> impl Iterator<Item = &Engine<'a>> {
        self.engines.iter().filter(move |engine| std::ptr::eq(engine.proxy, proxy))
    }

    /// The engines, without those whose agent an earlier filter already uses.
    pub(super) fn distinct(&self) -> Vec<&Engine<'a>> {
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

    /// Whether an engine has no agent, for example because its SPOE file cannot be read. Then some names are unknown.
    pub(super) fn is_incomplete(&self) -> bool {
        self.engines.iter().any(|engine| engine.agent().is_none())
    }

    /// Whether the agent is probably banmesh. Other agents use other arguments and set other variables, but many also listen on
    /// port 12345.
    pub(super) fn is_ours(&self, engine: &Engine<'_>) -> bool {
        let alone = self.distinct().len() < 2;
        if self.read.iter().any(|name| engine.sets_verdict(name) || (alone && is_verdict_name(name))) {
            return true;
        }
        if self.read.iter().any(|name| engine.is_foreign_variable(name)) {
            return false;
        }
        let named = |name: &str| name.contains("banmesh") || name.contains("ip-reputation");
        let backend = engine.agent().and_then(Agent::backend).map_or("", |line| line.word(1));
        let servers = self.configuration.backend(backend).map(Proxy::servers).unwrap_or_default();
        let ports = [self.node.agent.port(), 12345];
        let is_there =
            || servers.iter().any(|server| server.host_port().is_some_and(|(_, port)| ports.contains(&port)));
        named(engine.name.unwrap_or_default()) || (is_there() && engine.sent().any(has_address_argument))
    }
}

/// Whether a message has an argument from which banmesh reads the address.
pub(super) fn has_address_argument(message: &Message) -> bool {
    message.arguments.iter().any(|(key, sample)| is_address_name(key) || is_address_sample(sample))
}

/// Whether banmesh reads an address from an argument with this name, whatever its sample.
pub(super) fn is_address_name(key: &str) -> bool {
    ADDRESS_ARGUMENTS.iter().any(|name| name.eq_ignore_ascii_case(key))
}

fn is_address_sample(sample: &str) -> bool {
    ADDRESS_SAMPLES.iter().any(|known| match known.ends_with(['(', ',']) {
        true => sample.starts_with(known),
        false => sample == *known,
    })
}

/// Whether a name is probably a misspelling of [`VERDICT`].
pub(super) fn is_nearly_verdict(name: &str) -> bool {
    name != VERDICT && name.len() < 40 && (name.contains("ban") || strsim::damerau_levenshtein(name, VERDICT) <= 2)
}

/// Whether the last part of a variable's name is [`VERDICT`].
pub(super) fn is_verdict_name(variable: &str) -> bool {
    variable.rsplit('.').next() == Some(VERDICT)
}
