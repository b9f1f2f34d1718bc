//! Feeds that are known by name.

use std::time::Duration;

use crate::list::Format;

/// What a feed does to the addresses in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A first failure of an address counts as several.
    Weight,
    /// Its addresses are banned.
    Ban,
    /// Nothing; what it would have done is counted.
    Observe,
}

impl Effect {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Weight, Self::Ban, Self::Observe];

    /// The name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Ban => "ban",
            Self::Observe => "observe",
        }
    }
}

/// A known feed.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The name in the configuration.
    pub name: &'static str,
    /// Where the list is.
    pub url: &'static str,
    /// The format of the list.
    pub format: Format,
    /// How often it is asked for, unless the configuration says otherwise.
    pub interval: Duration,
    /// The shortest interval that its publisher allows.
    pub floor: Duration,
    /// What it does, unless the configuration says otherwise.
    pub effect: Effect,
    /// The name of the header that carries a key; `None` if the feed needs no key.
    pub key_header: Option<&'static str>,
    /// The publisher and the terms of use, in one line. `why` shows it, because some publishers demand that.
    pub credit: &'static str,
}

const HOUR: Duration = Duration::from_secs(3600);

/// All known feeds, by name.
pub const KNOWN: [Known; 10] = [
    Known {
        name: "abuseipdb",
        url: "https://api.abuseipdb.com/api/v2/blacklist",
        format: Format::Plain,
        interval: Duration::from_secs(6 * 3600),
        // Free keys may ask five times a day.
        floor: Duration::from_secs(5 * 3600),
        effect: Effect::Weight,
        key_header: Some("key"),
        credit: "AbuseIPDB; needs a key, its terms apply",
    },
    Known {
        name: "blocklist-de",
        url: "https://lists.blocklist.de/lists/all.txt",
        format: Format::Plain,
        interval: HOUR,
        floor: Duration::from_secs(1800),
        effect: Effect::Weight,
        key_header: None,
        credit: "blocklist.de; no terms stated",
    },
    Known {
        name: "cins",
        url: "https://cinsscore.com/list/ci-badguys.txt",
        format: Format::Plain,
        interval: Duration::from_secs(3 * 3600),
        floor: HOUR,
        effect: Effect::Weight,
        key_header: None,
        credit: "CINS Army; free to use",
    },
    Known {
        name: "dshield",
        url: "https://www.dshield.org/block.txt",
        format: Format::Dshield,
        interval: HOUR,
        floor: HOUR,
        effect: Effect::Weight,
        key_header: None,
        credit: "DShield; CC BY-NC-SA 2.5, not for commercial use",
    },
    Known {
        name: "feodo",
        url: "https://feodotracker.abuse.ch/downloads/ipblocklist.txt",
        format: Format::Plain,
        interval: HOUR,
        floor: Duration::from_secs(300),
        effect: Effect::Weight,
        key_header: None,
        credit: "Feodo Tracker by abuse.ch; CC0",
    },
    Known {
        name: "firehol-level1",
        url: "https://iplists.firehol.org/files/firehol_level1.netset",
        format: Format::Plain,
        interval: HOUR,
        floor: Duration::from_secs(1800),
        effect: Effect::Weight,
        key_header: None,
        credit: "FireHOL IP Lists; the terms of its sources apply",
    },
    Known {
        name: "ipsum",
        url: "https://raw.githubusercontent.com/stamparm/ipsum/master/levels/3.txt",
        format: Format::Plain,
        interval: Duration::from_secs(12 * 3600),
        floor: HOUR,
        effect: Effect::Weight,
        key_header: None,
        credit: "ipsum (level 3); the terms of its sources apply",
    },
    Known {
        name: "spamhaus-drop",
        url: "https://www.spamhaus.org/drop/drop_v4.json",
        format: Format::Spamhaus,
        interval: Duration::from_secs(4 * 3600),
        floor: HOUR,
        effect: Effect::Weight,
        key_header: None,
        credit: "(c) The Spamhaus Project, DROP; https://www.spamhaus.org/drop/terms/",
    },
    Known {
        name: "spamhaus-drop-v6",
        url: "https://www.spamhaus.org/drop/drop_v6.json",
        format: Format::Spamhaus,
        interval: Duration::from_secs(4 * 3600),
        floor: HOUR,
        effect: Effect::Weight,
        key_header: None,
        credit: "(c) The Spamhaus Project, DROP; https://www.spamhaus.org/drop/terms/",
    },
    Known {
        name: "tor-exits",
        url: "https://check.torproject.org/torbulkexitlist",
        format: Format::Tor,
        interval: HOUR,
        floor: Duration::from_secs(1800),
        // Says who somebody is, not what he did.
        effect: Effect::Observe,
        key_header: None,
        credit: "The Tor Project; CC0",
    },
];

/// The known feed of this name.
pub fn find(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_intervals_are_not_below_the_floor() {
        assert!(KNOWN.is_sorted_by(|a, b| a.name < b.name));
        assert!(KNOWN.iter().all(|known| known.interval >= known.floor && known.url.starts_with("https://")));
        // A feed bans only where the operator says so.
        assert!(KNOWN.iter().all(|known| known.effect != Effect::Ban));
    }
}
