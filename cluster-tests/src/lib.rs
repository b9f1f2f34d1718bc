//! The harness (being written).
