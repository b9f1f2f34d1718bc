//! From offences to bans.
//!
//! The [`judge`] counts offences and orders bans. The [`store`] owns the ban table and applies every change to it. The [`view`] answers
//! lookups without a lock. The [`journal`] keeps the table on disk. The [`history`] holds recent offences and changes in memory,
//! and the [`rankings`] what was most frequent. [`feeds`] and [`geo`] say what others know about an address.

pub mod batch;
pub mod evidence_log;
pub mod feeds;
pub mod geo;
pub mod history;
pub mod journal;
pub mod judge;
pub mod rankings;
pub mod store;
pub mod view;
