//! The decisions of a node over archived logs, in virtual time: the lines' own times.
//!
//! | module | contents |
//! |---|---|
//! | [`archive`] | opens logs: plain, gzip, zstd |
//! | [`scan`] | from a block of lines to offences with their times |
//! | [`pipeline`] | reads and scans on all cores, and returns the offences of all files in order |
//! | [`virtual_node`] | judges offences as a node does: the judge, the ledger and the view |
//! | [`tally`] | what came of it: bans, refused offences, honest sources that were hurt |
//! | [`thresholds`] | the same offences under other limits |
//! | [`picture`] | the timeline as SVG |

pub mod archive;
pub mod picture;
pub mod pipeline;
pub mod scan;
pub mod tally;
pub mod thresholds;
pub mod virtual_node;
