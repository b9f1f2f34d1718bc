//! The section about countries and networks.

use std::path::PathBuf;

use crate::config::setting::section;
use crate::decisions::geo::GeoRule;

section! {
    /// `geo`: the country and the network (AS) of an address, from files that you provide (docs/feeds.md).
    GeoConfig {
        /// A file in MaxMind's format (mmdb) with countries. Read again when it changes.
        country: Option<PathBuf> = None;
        /// A file in MaxMind's format (mmdb) with autonomous systems. Read again when it changes.
        network: Option<PathBuf> = None;
        /// What is different for some countries or networks. Each rule has `countries` (two letters) or `networks` (AS
        /// numbers) or both, and `weight` (what each failure counts, 1) or `ban_time` (a factor for the length of a first
        /// ban, 1; `ban.max_ban_time` still holds). The first rule that matches applies.
        rules: Vec<GeoRule> = Vec::new();
    }
}
