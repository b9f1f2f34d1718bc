//! From offences to bans.
//!
//! The [`judge`] counts offences and orders bans. The [`store`] owns the ban table and applies every change to it. The [`view`] answers
//! lookups without a lock. The [`journal`] keeps the table on disk. The [`history`] holds recent offences and changes in memory.

pub mod batch;
pub mod history;
pub mod journal;
pub mod judge;
pub mod store;
pub mod view;
