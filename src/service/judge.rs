//! Counts offences and orders bans (being written).
