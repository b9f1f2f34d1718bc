//! The composition root (being written).
pub mod logging;
pub mod rules;
pub mod verdicts;
