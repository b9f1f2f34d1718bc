//! The roles of API users. Each role includes the ones before it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A role, ordered from the least to the most powerful.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// May see everything and change nothing.
    Read,
    /// May also report offences, ban single hosts for at most `ban.max_ban_time`, and end its own bans. For programs.
    Report,
    /// May also ban, unban, and allow single hosts.
    Operate,
    /// May also reload, purge, discard, use `force` and `wide`, and allow networks.
    Admin,
}

/// A text that is not a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a role; write read, report, operate or admin")]
pub struct RoleError;

impl Role {
    /// All roles, from the least to the most powerful.
    pub const ALL: [Self; 4] = [Self::Read, Self::Report, Self::Operate, Self::Admin];

    /// Whether this role includes `needed`.
    pub fn may(self, needed: Self) -> bool {
        self >= needed
    }

    /// The name in the configuration and the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Report => "report",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(RoleError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_includes_the_ones_before_it() {
        for (at, role) in Role::ALL.into_iter().enumerate() {
            assert_eq!(role.as_str().parse(), Ok(role));
            for (other, needed) in Role::ALL.into_iter().enumerate() {
                assert_eq!(role.may(needed), other <= at, "{role} {needed}");
            }
        }
        assert_eq!("root".parse::<Role>(), Err(RoleError));
    }
}
