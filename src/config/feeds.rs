//! `feeds`: lists of bad addresses that others publish.

use std::path::PathBuf;
use std::time::Duration;

use super::consistency::Report;
use super::problem::Faults;
use super::sections::Config;
use super::setting::{HIDDEN, Setting, comparable};
use super::structured::{fields, named_list, optional, read_variable, required};
use super::value::{Secret, scalar_words};
use super::yaml::{Node, Value};
use crate::net::dial::{Endpoint, without_path};
use banmesh_feeds::catalogue::{self, Effect, Known};
use banmesh_feeds::keeping::Pace;
use banmesh_feeds::list::Format;
use banmesh_feeds::table::MAX_FEEDS;
use banmesh_types::time::Span;

/// An element of `feeds`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedConfig {
    /// The name under which it is shown and counted; unique. That of a known feed gives its other keys their defaults.
    pub name: String,
    /// Where the list is.
    pub source: FeedSource,
    /// The format of the list.
    pub format: Format,
    /// What it does.
    pub effect: Effect,
    /// What a first failure from there counts, with the effect `weight`.
    pub weight: u32,
    /// How often it is asked for, and how long a list counts.
    pub pace: Pace,
    /// The header that carries `key`.
    pub key_header: String,
    /// The publisher's key; empty for none.
    pub key: Secret,
    /// The file whose first line is the key.
    pub key_file: Option<PathBuf>,
    /// The file with the CA certificates, in PEM, that must have signed the server's certificate. `None`: those that the system
    /// trusts.
    pub ca: Option<PathBuf>,
    /// The maximum duration of one question.
    pub timeout: Duration,
    /// The publisher and the terms, which `why` shows.
    pub credit: String,
}

/// Where a list is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedSource {
    /// On a server. A secret, because some publishers have the key in the URL.
    Url(Secret),
    /// In a file of this host.
    File(PathBuf),
}

scalar_words! { Effect, "one of weight, ban, observe", Effect::ALL }
scalar_words! { Format, "one of plain, spamhaus, dshield, tor", Format::ALL }

const KEYS: [&str; 14] = [
    "name",
    "url",
    "file",
    "format",
    "effect",
    "weight",
    "interval",
    "keep",
    "key",
    "key_file",
    "key_header",
    "ca",
    "timeout",
    "credit",
];
/// The interval of lists that are not in the catalogue.
const INTERVAL: Duration = Duration::from_secs(3600);
/// How often files of this host are looked at.
const FILE_INTERVAL: Duration = Duration::from_secs(60);
/// The shortest default of `keep`.
const KEEP: Duration = Duration::from_secs(24 * 3600);
/// The most that a first failure may count.
const MAX_WEIGHT: u32 = 100;
/// The longest name. It becomes part of a file name.
const MAX_NAME: usize = 40;

/// Reports a mistake in `key`, at its line.
fn wrong(node: &Node, found: &std::collections::BTreeMap<&str, &Node>, key: &str, message: String, f: &mut Faults<'_>) {
    let line = found.get(key).map_or(node.line, |node| node.line);
    f.within(&format!(".{key}"), |faults| faults.invalid(line, message));
}

impl FeedConfig {
    /// A known feed with its defaults.
    pub fn known(known: &Known) -> Self {
        Self {
            name: known.name.to_owned(),
            source: FeedSource::Url(Secret::new(known.url)),
            format: known.format,
            effect: known.effect,
            weight: 3,
            pace: Pace { interval: known.interval, floor: known.floor, keep: (known.interval * 3).max(KEEP) },
            key_header: known.key_header.unwrap_or_default().to_owned(),
            key: Secret::default(),
            key_file: None,
            ca: None,
            timeout: Duration::from_secs(60),
            credit: known.credit.to_owned(),
        }
    }

    fn read(node: &Node, faults: &mut Faults<'_>) -> Option<Self> {
        let pairs = match &node.value {
            // The name of a known feed alone.
            Value::Text(name) => {
                let known = catalogue::find(name).map(Self::known).filter(|feed| feed.key_header.is_empty());
                if known.is_none() {
                    faults.invalid(node.line, unknown(name));
                }
                return known;
            }
            Value::Map(pairs) => pairs,
            _ => {
                faults.invalid(node.line, format!("expected a feed (name, url …), found {}", node.describe()));
                return None;
            }
        };
        let (found, mut good) = fields(pairs, KEYS, faults);
        let name: String = required(&found, "name", node, faults)?;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) {
            let message = format!("{name:?} is not a name; use at most {MAX_NAME} of a-z, 0-9 and -");
            wrong(node, &found, "name", message, faults);
            good = false;
        }
        let known = catalogue::find(&name).map(Self::known);
        let url: Option<String> = optional(&found, "url", String::new(), faults);
        let file: Option<String> = optional(&found, "file", String::new(), faults);
        let source = match (url?, file?) {
            (url, file) if !url.is_empty() && !file.is_empty() => {
                wrong(node, &found, "file", "a feed has either `url` or `file`".to_owned(), faults);
                return None;
            }
            (url, file) if url.is_empty() && file.is_empty() => match &known {
                Some(known) => known.source.clone(),
                None => {
                    faults.invalid(node.line, unknown(&name));
                    return None;
                }
            },
            (url, file) if file.is_empty() => match url.parse::<Endpoint>() {
                Ok(_) => FeedSource::Url(Secret::new(url)),
                Err(error) => {
                    wrong(node, &found, "url", error.to_string(), faults);
                    return None;
                }
            },
            (_, file) => FeedSource::File(file.into()),
        };
        let is_file = matches!(source, FeedSource::File(_));
        let default = known.clone().map_or(INTERVAL, |known| known.pace.interval);
        let floor = known.as_ref().filter(|_| !is_file).map_or(Duration::ZERO, |known| known.pace.floor);
        let default = if is_file { FILE_INTERVAL } else { default };
        let Span(interval) = optional(&found, "interval", Span(default), faults)?;
        if interval < floor.max(Duration::from_secs(1)) {
            let message = format!(
                "{} is shorter than {}, which the publisher allows",
                Span(interval),
                Span(floor.max(Duration::from_secs(1)))
            );
            wrong(node, &found, "interval", message, faults);
            good = false;
        }
        let Span(keep) = optional(&found, "keep", Span((interval * 3).max(KEEP)), faults)?;
        if keep < interval {
            let message =
                format!("{} is shorter than `interval`, so the list would end before it is asked for", Span(keep));
            wrong(node, &found, "keep", message, faults);
            good = false;
        }
        let weight = optional(&found, "weight", known.as_ref().map_or(3, |known| known.weight), faults)?;
        if !(1..=MAX_WEIGHT).contains(&weight) {
            wrong(node, &found, "weight", format!("{weight} is not between 1 and {MAX_WEIGHT}"), faults);
            good = false;
        }
        let Span(timeout) = optional(&found, "timeout", Span(Duration::from_secs(60)), faults)?;
        if !(1..=600).contains(&timeout.as_secs()) {
            wrong(node, &found, "timeout", format!("{} is not between 1s and 10m", Span(timeout)), faults);
            good = false;
        }
        let header = known.as_ref().map_or_else(String::new, |known| known.key_header.clone());
        let needs_key = !header.is_empty() && !is_file;
        let key_header: String = optional(&found, "key_header", header, faults)?;
        let key: Secret = optional(&found, "key", Secret::default(), faults)?;
        let key_file: String = optional(&found, "key_file", String::new(), faults)?;
        let key_file = Some(key_file).filter(|file| !file.is_empty()).map(PathBuf::from);
        let has_key = !key.is_empty() || key_file.is_some();
        if needs_key && !has_key {
            faults.invalid(node.line, format!("{name} needs a key of its publisher; set `key` or `key_file`"));
            good = false;
        }
        if has_key && hyper::header::HeaderName::from_bytes(key_header.as_bytes()).is_err() {
            let message = "a key needs the name of the header that carries it, such as Authorization".to_owned();
            wrong(node, &found, "key_header", message, faults);
            good = false;
        }
        if hyper::header::HeaderValue::from_str(key.expose()).is_err() {
            wrong(node, &found, "key", "holds characters that a header cannot have".to_owned(), faults);
            good = false;
        }
        let ca: String = optional(&found, "ca", String::new(), faults)?;
        let feed = Self {
            source,
            format: optional(&found, "format", known.as_ref().map_or(Format::Plain, |known| known.format), faults)?,
            effect: optional(&found, "effect", known.as_ref().map_or(Effect::Weight, |known| known.effect), faults)?,
            weight,
            pace: Pace { interval, floor, keep },
            key_header,
            key,
            key_file,
            ca: Some(ca).filter(|ca| !ca.is_empty()).map(PathBuf::from),
            timeout,
            credit: optional(&found, "credit", known.map_or_else(|| name.clone(), |known| known.credit), faults)?,
            name,
        };
        good.then_some(feed)
    }
}

fn unknown(name: &str) -> String {
    let known: Vec<&str> = catalogue::KNOWN.iter().map(|known| known.name).collect();
    let name: String = name.chars().take(MAX_NAME).collect();
    match catalogue::find(&name) {
        Some(known) => {
            format!("{} needs a key of its publisher; write {{ name: {}, key_file: … }}", known.name, known.name)
        }
        None => format!("`{name}` is not a known feed ({}); give it a `url` or a `file`", known.join(", ")),
    }
}

impl Setting for Vec<FeedConfig> {
    comparable!();

    fn kind(&self) -> &'static str {
        "list of feeds"
    }

    fn read(&mut self, node: &Node, faults: &mut Faults<'_>) {
        if let Some(feeds) = named_list(node, "feed", FeedConfig::read, |feed| &feed.name, faults) {
            if feeds.len() > MAX_FEEDS {
                return faults.invalid(node.line, format!("{} feeds are too many; at most {MAX_FEEDS}", feeds.len()));
            }
            *self = feeds;
        }
    }

    fn read_text(&mut self, text: &str, faults: &mut Faults<'_>) {
        read_variable(self, text, faults);
    }

    fn json(&self) -> serde_json::Value {
        let path = |path: &Option<PathBuf>| path.as_ref().map_or_else(String::new, |path| path.display().to_string());
        let one = |feed: &FeedConfig| {
            let (url, file) = match &feed.source {
                FeedSource::Url(url) => (without_path(url.expose()), String::new()),
                FeedSource::File(file) => (String::new(), file.display().to_string()),
            };
            serde_json::json!({
                "name": feed.name, "url": url, "file": file, "format": feed.format.as_str(), "effect": feed.effect.as_str(),
                "weight": feed.weight, "interval": Span(feed.pace.interval).to_string(), "keep": Span(feed.pace.keep).to_string(),
                "key": if feed.key.is_empty() { "" } else { HIDDEN }, "key_file": path(&feed.key_file),
                "key_header": feed.key_header, "ca": path(&feed.ca), "timeout": Span(feed.timeout).to_string(),
                "credit": feed.credit,
            })
        };
        self.iter().map(one).collect()
    }
}

/// Adds the warnings about `feeds` and `geo`.
pub(super) fn check(config: &Config, report: &mut Report<'_>) {
    let bans: Vec<&str> =
        config.feeds.iter().filter(|feed| feed.effect == Effect::Ban).map(|feed| feed.name.as_str()).collect();
    let places = [
        (!config.haproxy.runtime.is_empty(), "haproxy.runtime"),
        (config.firewall.enabled, "firewall"),
        (config.crowdsec.enabled, "crowdsec"),
        (config.lists.enabled, "lists"),
    ];
    let places: Vec<&str> = places.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect();
    if !bans.is_empty() && !places.is_empty() {
        report.warn(
            &["feeds"],
            format!(
                "the bans of {} do not reach {}, but only those who ask this node (SPOP, verdict, mail servers). With `effect: weight` \
                 and a `weight` of ban.max_attempts, a first failure becomes a ban everywhere",
                bans.join(", "),
                places.join(", ")
            ),
        );
    }
    let no_files = config.geo.country.is_none() && config.geo.network.is_none();
    if !config.geo.rules.is_empty() && no_files {
        let message = "has no effect without a file in geo.country or geo.network".to_owned();
        report.warn(&["geo.rules"], message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resolve;
    use std::path::Path;

    fn feeds(yaml: &str) -> Result<Vec<FeedConfig>, String> {
        let text = format!("feeds:\n{yaml}");
        let loaded = resolve(Some((Path::new("c.yaml"), text.as_bytes())), []);
        loaded.map(|loaded| loaded.config.feeds).map_err(|errors| errors.to_string())
    }

    #[test]
    fn a_known_feed_needs_only_its_name() {
        let feeds = feeds("  - spamhaus-drop\n  - { name: tor-exits, effect: ban }\n").unwrap();
        assert_eq!((feeds[0].format, feeds[0].effect), (Format::Spamhaus, Effect::Weight));
        assert!(feeds[0].credit.contains("Spamhaus") && feeds[0].pace.floor == Duration::from_secs(3600));
        assert_eq!((feeds[1].format, feeds[1].effect), (Format::Tor, Effect::Ban));
    }

    #[test]
    fn own_feeds_have_a_url_or_a_file_and_their_secrets_stay_hidden() {
        let feeds = feeds(
            "  - name: ours\n    url: https://lists.example.org/a?key=s3cret\n    key: an0ther\n    key_header: Authorization\n  \
             - { name: local, file: /etc/banmesh/bad.txt }\n",
        )
        .unwrap();
        assert_eq!(feeds[1].pace.interval, Duration::from_secs(60));
        let shown = format!("{} {feeds:?}", feeds.json());
        assert!(!shown.contains("s3cret") && !shown.contains("an0ther"), "{shown}");
    }

    #[test]
    fn mistakes_are_explained() {
        for (yaml, part) in [
            ("  - spamhouse\n", "is not a known feed (abuseipdb, "),
            ("  - abuseipdb\n", "needs a key of its publisher"),
            ("  - { name: abuseipdb }\n", "needs a key of its publisher"),
            ("  - { name: ours }\n", "give it a `url` or a `file`"),
            ("  - { name: ours, url: \"ftp://x\" }\n", "is not a valid URL"),
            ("  - { name: ours, url: \"https://x/\", file: /x }\n", "either `url` or `file`"),
            ("  - { name: \"Ours/..\", file: /x }\n", "is not a name"),
            ("  - { name: spamhaus-drop, interval: 10m }\n", "is shorter than 1h, which the publisher allows"),
            ("  - { name: ours, file: /x, interval: 1h, keep: 5m }\n", "is shorter than `interval`"),
            ("  - { name: ours, file: /x, weight: 101 }\n", "is not between 1 and 100"),
            ("  - { name: ours, file: /x, effect: block }\n", "is not one of weight, ban, observe"),
            ("  - tor-exits\n  - tor-exits\n", "is also the name of the feed in line 2"),
        ] {
            let error = feeds(yaml).unwrap_err();
            assert!(error.contains(part), "{yaml}: {error}");
        }
    }

    #[test]
    fn bans_that_do_not_hold_everywhere_are_pointed_out() {
        let text = "feeds:\n  - { name: tor-exits, effect: ban }\nfirewall: { enabled: true }\n";
        let loaded = resolve(Some((Path::new("c.yaml"), text.as_bytes())), []).unwrap();
        let warning = loaded.warnings.iter().map(ToString::to_string).find(|warning| warning.contains("tor-exits"));
        assert!(warning.is_some_and(|warning| warning.contains("do not reach firewall")));
    }
}
