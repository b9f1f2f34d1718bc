//! Frontends, backends and listens with what they inherit from `defaults` (configuration.txt, section 4).

use std::collections::BTreeMap;
use std::time::Duration;

use super::document::{Document, Fault, Line, Section, duration};

/// What a proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Clients come in.
    Frontend,
    /// Servers stand behind.
    Backend,
    /// Both.
    Listen,
}

/// How a proxy reads its traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bytes; what a proxy does that says nothing.
    Tcp,
    /// Requests.
    Http,
    /// SPOP, for agents; from HAProxy 3.1 on.
    Spop,
    /// Something else.
    Other(String),
}

/// A proxy.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its head line.
    pub head: Line,
    /// Its own lines.
    pub own: Vec<Line>,
    /// What it inherits, the nearest last.
    pub inherited: Vec<Line>,
}

/// The configuration: all files together, in order.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// The proxies, in order.
    pub proxies: Vec<Proxy>,
    /// The lines of `global`.
    pub global: Vec<Line>,
    /// The sections `defaults`.
    pub defaults: Vec<Section>,
    /// Lines that stand in no section.
    pub stray: Vec<Line>,
    /// Lines that cannot be read.
    pub faults: Vec<Fault>,
}

impl Configuration {
    /// Puts the files of one HAProxy together.
    pub fn new(documents: Vec<Document>) -> Self {
        let mut all = Self::default();
        // What the sections `defaults` come to, by position in `defaults`.
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

    /// The first backend or listen of this name.
    pub fn backend(&self, name: &str) -> Option<&Proxy> {
        self.proxies.iter().find(|proxy| proxy.name == name && proxy.kind != Kind::Frontend)
    }

    /// Every line of every proxy, those of `defaults` and of `global`.
    pub fn lines(&self) -> impl Iterator<Item = &Line> {
        let defaults = self.defaults.iter().flat_map(|section| &section.lines);
        self.global.iter().chain(defaults).chain(self.proxies.iter().flat_map(|proxy| &proxy.own))
    }
}

impl Proxy {
    /// Whether clients come in here.
    pub fn takes_clients(&self) -> bool {
        self.kind != Kind::Backend
    }

    /// What it is, and its name.
    pub fn title(&self) -> String {
        format!("{} {}", self.head.word(0), self.name)
    }

    /// Its lines: what it inherits, then its own, so that the last of a kind counts.
    pub fn lines(&self) -> impl DoubleEndedIterator<Item = &Line> {
        self.inherited.iter().chain(&self.own)
    }

    /// The lines that begin with these words.
    pub fn all<'a>(&'a self, words: &'a [&str]) -> impl DoubleEndedIterator<Item = &'a Line> {
        self.lines().filter(move |line| line.begins(words))
    }

    /// The line that counts for a setting.
    pub fn last(&self, words: &[&str]) -> Option<&Line> {
        self.lines().rev().find(|line| line.begins(words))
    }

    /// How it reads its traffic.
    pub fn mode(&self) -> Mode {
        match self.last(&["mode"]).map_or("tcp", |line| line.word(1)) {
            "tcp" => Mode::Tcp,
            "http" => Mode::Http,
            "spop" => Mode::Spop,
            other => Mode::Other(other.to_owned()),
        }
    }

    /// The line of an option that is on.
    pub fn option(&self, name: &str) -> Option<&Line> {
        let named = |line: &&Line| line.begins(&["option", name]) || line.begins(&["no", "option", name]);
        self.lines().rev().find(named).filter(|line| line.word(0) == "option")
    }

    /// The line of a timeout, and its length if that can be read.
    pub fn timeout(&self, name: &str) -> Option<(&Line, Option<Duration>)> {
        self.last(&["timeout", name]).map(|line| (line, duration(line.word(2))))
    }

    /// Its servers, with the settings of `default-server` that count for each.
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

    /// Its addresses to listen on, one a `bind` line.
    pub fn binds(&self) -> impl Iterator<Item = &Line> {
        self.own.iter().filter(|line| line.word(0) == "bind")
    }

    /// Its SPOE filters.
    pub fn spoe_filters(&self) -> impl Iterator<Item = &Line> {
        self.lines().filter(|line| line.begins(&["filter", "spoe"]))
    }
}

/// A server of a backend.
#[derive(Clone, Debug)]
pub struct Server<'a> {
    /// Its line.
    pub line: &'a Line,
    /// Its address, as it is written.
    pub address: &'a str,
    /// The settings of `default-server`, then its own.
    settings: Vec<&'a str>,
}

impl Server<'_> {
    /// Whether a word that has an opposite (`check`, `no-check`) is on.
    pub fn is(&self, word: &str) -> bool {
        let opposite = format!("no-{word}");
        self.settings.iter().rev().find(|setting| **setting == word || **setting == opposite) == Some(&word)
    }

    /// Whether it is for when the others are down.
    pub fn is_backup(&self) -> bool {
        self.is("backup")
    }

    /// The value after a word.
    pub fn value(&self, word: &str) -> Option<&str> {
        let at = self.settings.iter().rposition(|setting| *setting == word)?;
        self.settings.get(at + 1).copied()
    }

    /// The time between health checks while there is doubt. (`fastinter` is also what can happen on an error.)
    pub fn fast_interval(&self) -> Option<Duration> {
        self.settings.windows(2).rev().find_map(|pair| match pair {
            ["fastinter", time] => duration(time),
            _ => None,
        })
    }

    /// Host and port, where both are written plainly.
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
    use super::super::document::{Dialect, Source, parse};
    use super::super::version::Version;
    use super::*;

    fn configuration(text: &str) -> Configuration {
        let source = Source { name: "x".into(), text: text.to_owned() };
        let document = parse(&source, Dialect::HaProxy, Version::NEWEST, &mut BTreeMap::new());
        Configuration::new(vec![document])
    }

    #[test]
    fn defaults_are_inherited_by_name_or_by_place() {
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
    fn an_interval_is_not_what_happens_on_an_error() {
        let fast = |line: &str| {
            let all = configuration(&format!("backend b\n default-server {line}\n server a 127.0.0.1:1\n"));
            all.proxies[0].servers()[0].fast_interval()
        };
        let quick = Some(Duration::from_millis(50));
        assert_eq!(fast("check fastinter 50ms on-error fastinter"), quick);
        assert_eq!(fast("check on-error fastinter fastinter 50ms"), quick);
        assert_eq!(fast("check on-error fastinter fall 2"), None);
    }

    #[test]
    fn servers_have_what_default_server_says() {
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
