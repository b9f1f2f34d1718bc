//! The atomics of the tables. The model test compiles the tables with others.

pub(super) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
