//! Frontends, backends and listens, with the settings that they inherit from `defaults` (configuration.txt, section 4).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::document::{Document, Fault, Line, Section, duration};

/// Kind of proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `frontend`: accepts clients.
    Frontend,
    /// `backend`: has servers.
    Backend,
    /// `listen`: both.
    Listen,
}

/// The `mode` of a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `tcp`, which is also the default.
    Tcp,
    /// `http`
    Http,
    /// `spop`, for the backends of agents, from HAProxy 3.1 on.
    Spop,
    /// Any other mode.
    Other(String),
}

/// A `frontend`, `backend` or `listen` section.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// From the keyword of the section.
    pub kind: Kind,
    /// The name; empty if there is none.
    pub name: String,
    /// The header line.
    pub head: Line,
    /// The lines of the section.
    pub own: Vec<Line>,
    /// The lines of the `defaults` sections that it inherits from, the nearest last.
    pub inherited: Vec<Line>,
}

/// The configuration of one HAProxy, from all its files.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// The proxies, in the order of the files.
    pub proxies: Vec<Proxy>,
    /// The lines of all `global` sections.
    pub global: Vec<Line>,
    /// The `defaults` sections.
    pub defaults: Vec<Section>,
    /// The `peers` sections.
    pub peers: Vec<Section>,
    /// Lines outside of sections.
    pub stray: Vec<Line>,
    /// Syntax errors.
    pub faults: Vec<Fault>,
}

impl Configuration {
    /// Combines the files of one HAProxy, in the order in which HAProxy reads them.
    pub fn new(documents: Vec<Document>) -> Self {
        let mut all = Self::default();
        // The lines of each `defaults` section including inherited ones, by position in `all.defaults`.
        let mut resolved: Vec<Vec<Line>> = Vec::new();
        let mut named: BTreeMap<String, usize> = BTreeMap::new();
        for document in documents {
            all.stray.extend(document.stray);
            all.faults.extend(document.faults);
            for section in document.sections {
                let kind = match section.kind() {
                    "frontend" => Kind::Frontend,
                    "backend" => Kind::Backend,
                    "listen" => Kind::Listen,
                    "global" => {
                        all.global.extend(section.lines);
                        continue;
                    }
                    "peers" => {
                        all.peers.push(section);
                        continue;
                    }
                    "defaults" => {
                        let base = section.head.after("from").and_then(|name| named.get(name));
                        let mut lines = base.and_then(|at| resolved.get(*at)).cloned().unwrap_or_default();
                        lines.extend(section.lines.iter().cloned());
                        if !matches!(section.name(), "" | "from") {
                            named.insert(section.name().to_owned(), resolved.len());
                        }
                        resolved.push(lines);
                        all.defaults.push(section);
                        continue;
                    }
                    _ => continue,
                };
                let inherited = match section.head.after("from") {
                    Some(name) => named.get(name).and_then(|at| resolved.get(*at)),
                    None => resolved.last(),
                };
                let inherited = inherited.cloned().unwrap_or_default();
                let name = section.name().to_owned();
                all.proxies.push(Proxy { kind, name, head: section.head, own: section.lines, inherited });
            }
        }
        all
    }

    /// The first backend or listen with this name.
    pub fn backend(&self, name: &str) -> Option<&Proxy> {
        self.proxies.iter().find(|proxy| proxy.name == name && proxy.kind != Kind::Frontend)
    }

    /// All lines of `global`, `defaults` sections and proxies.
    pub fn lines(&self) -> impl Iterator<Item = &Line> {
        let defaults = self.defaults.iter().flat_map(|section| &section.lines);
        self.global.iter().chain(defaults).chain(self.proxies.iter().flat_map(|proxy| &proxy.own))
    }
}

impl Proxy {
    /// Whether it accepts clients: a frontend or a listen.
    pub fn takes_clients(&self) -> bool {
        self.kind != Kind::Backend
    }

    /// Keyword and name, for messages.
    pub fn title(&self) -> String {
        format!("{} {}", self.head.word(0), self.name)
    }

    /// Inherited lines, then the proxy's own. If a setting occurs several times, the last one applies.
    pub fn lines(&self) -> impl DoubleEndedIterator<Item = &Line> {
        self.inherited.iter().chain(&self.own)
    }

    /// The lines that begin with these words.
    pub fn all<'a>(&'a self, words: &'a [&str]) -> impl DoubleEndedIterator<Item = &'a Line> {
        self.lines().filter(move |line| line.begins(words))
    }

    /// The last line that begins with these words, which is the one that applies.
    pub fn last(&self, words: &[&str]) -> Option<&Line> {
        self.lines().rev().find(|line| line.begins(words))
    }

    /// The mode that applies.
    pub fn mode(&self) -> Mode {
        match self.last(&["mode"]).map_or("tcp", |line| line.word(1)) {
            "tcp" => Mode::Tcp,
            "http" => Mode::Http,
            "spop" => Mode::Spop,
            other => Mode::Other(other.to_owned()),
        }
    }

    /// The line of an option, if the option is on.
    pub fn option(&self, name: &str) -> Option<&Line> {
        let named = |line: &&Line| line.begins(&["option", name]) || line.begins(&["no", "option", name]);
        self.lines().rev().find(named).filter(|line| line.word(0) == "option")
    }

    /// The line of a timeout, and its duration if it is valid.
    pub fn timeout(&self, name: &str) -> Option<(&Line, Option<Duration>)> {
        self.last(&["timeout", name]).map(|line| (line, duration(line.word(2))))
    }

    /// The servers, each with the `default-server` settings that apply to it.
    pub fn servers(&self) -> Vec<Server<'_>> {
        let mut defaults: Vec<&str> = Vec::new();
        let mut servers = Vec::new();
        for line in self.lines() {
            // server NAME ADDRESS …, server-template PREFIX COUNT ADDRESS …
            let at = match line.word(0) {
                "default-server" => {
                    defaults.extend(line.from(1).iter().map(String::as_str));
                    continue;
                }
                "server" => 2,
                "server-template" => 3,
                _ => continue,
            };
            let settings = defaults.iter().copied().chain(line.from(at + 1).iter().map(String::as_str)).collect();
            servers.push(Server { line, address: line.word(at), settings });
        }
        servers
    }

    /// The `bind` lines.
    pub fn binds(&self) -> impl Iterator<Item = &Line> {
        self.own.iter().filter(|line| line.word(0) == "bind")
    }

    /// The `filter spoe` lines.
    pub fn spoe_filters(&self) -> impl Iterator<Item = &Line> {
        self.lines().filter(|line| line.begins(&["filter", "spoe"]))
    }
}

/// A `server` or `server-template` line.
#[derive(Clone, Debug)]
pub struct Server<'a> {
    /// The line of the server.
    pub line: &'a Line,
    /// The address as written.
    pub address: &'a str,
    /// The settings of `default-server`, then the server's own.
    settings: Vec<&'a str>,
}

impl Server<'_> {
    /// Whether a setting such as `check` is on, and not turned off by its opposite (`no-check`).
    pub fn is(&self, word: &str) -> bool {
        let opposite = format!("no-{word}");
        self.settings.iter().rev().find(|setting| **setting == word || **setting == opposite) == Some(&word)
    }

    /// Whether it is used only while the other servers are down.
    pub fn is_backup(&self) -> bool {
        self.is("backup")
    }

    /// The value of a setting: the word after the last `word`.
    pub fn value(&self, word: &str) -> Option<&str> {
        let at = self.settings.iter().rposition(|setting| *setting == word)?;
        self.settings.get(at + 1).copied()
    }

    /// The value of `fastinter`: the interval between health checks while the state is changing. Not the `fastinter` in
    /// `on-error fastinter`.
    pub fn fast_interval(&self) -> Option<Duration> {
        self.settings.windows(2).rev().find_map(|pair| match pair {
            ["fastinter", time] => duration(time),
            _ => None,
        })
    }

    /// Host and port. `None` if the address has no numeric port.
    pub fn host_port(&self) -> Option<(&str, u16)> {
        let address = ["ipv4@", "ipv6@", "tcp4@", "tcp6@", "tcp@"]
            .iter()
            .find_map(|prefix| self.address.strip_prefix(prefix))
            .unwrap_or(self.address);
        let (host, port) = address.rsplit_once(':')?;
        Some((host.trim_start_matches('[').trim_end_matches(']'), port.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{Dialect, Source, parse};
    use crate::version::Version;

    fn configuration(text: &str) -> Configuration {
        let source = Source { name: "x".into(), text: text.to_owned() };
        let document = parse(&source, Dialect::HaProxy, Version::NEWEST, &mut BTreeMap::new());
        Configuration::new(vec![document])
    }

    #[test]
    fn defaults_are_inherited_by_name_or_by_position() {
        let all = configuration(
            "defaults base\n mode http\n timeout connect 1s\n option redispatch\ndefaults more from base\n timeout connect 2s\n\
             frontend a\nbackend b from base\n no option redispatch\n mode tcp\nbackend c from nowhere\n",
        );
        let [a, b, c] = all.proxies.as_slice() else { panic!("three proxies") };
        let connect = |proxy: &Proxy| proxy.timeout("connect").and_then(|(_, time)| time).map(|time| time.as_secs());
        assert_eq!((a.mode(), connect(a), a.option("redispatch").is_some()), (Mode::Http, Some(2), true));
        assert_eq!((b.mode(), connect(b), b.option("redispatch").is_some()), (Mode::Tcp, Some(1), false));
        assert_eq!((c.mode(), connect(c)), (Mode::Tcp, None));
    }

    #[test]
    fn on_error_fastinter_is_not_an_interval() {
        let fast = |line: &str| {
            let all = configuration(&format!("backend b\n default-server {line}\n server a 127.0.0.1:1\n"));
            all.proxies[0].servers()[0].fast_interval()
        };
        let quick = Some(Duration::from_millis(30));
        assert_eq!(fast("check fastinter 30ms on-error fastinter"), quick);
        assert_eq!(fast("check on-error fastinter fastinter 30ms"), quick);
        assert_eq!(fast("check on-error fastinter fall 2"), None);
    }

    #[test]
    fn servers_have_the_settings_of_default_server() {
        let all = configuration(
            "backend b\n server one [::1]:1 no-check\n default-server check inter 1s\n server two ipv4@127.0.0.1:2 inter 2s backup\n\
             server-template t 5 name.example:3\n server x unix@/run/x\n",
        );
        let servers = all.proxies[0].servers();
        let seen: Vec<_> =
            servers.iter().map(|s| (s.host_port(), s.is("check"), s.value("inter"), s.is_backup())).collect();
        assert_eq!(
            seen,
            [
                (Some(("::1", 1)), false, None, false),
                (Some(("127.0.0.1", 2)), true, Some("2s"), true),
                (Some(("name.example", 3)), true, Some("1s"), false),
                (None, true, Some("1s"), false),
            ]
        );
    }
}
