//! From offences to bans: the judge counts, the store owns the table, the view answers, the journal keeps.

pub mod batch;
pub mod history;
pub mod journal;
pub mod judge;
pub mod store;
pub mod view;
