//! What somebody may do with a node: each role may do what those before it may.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A role, from the least to the most powerful.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees everything and changes nothing.
    Read,
    /// Also bans, lifts, and allows single addresses.
    Operate,
    /// Everything: reload, purge, `force`, networks in the allowlist.
    Admin,
}

/// A word that is no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no role: write read, operate or admin")]
pub struct RoleError;

impl Role {
    /// All of them, from the least to the most powerful.
    pub const ALL: [Self; 3] = [Self::Read, Self::Operate, Self::Admin];

    /// Whether somebody with this role may do what `needed` is needed for.
    pub fn may(self, needed: Self) -> bool {
        self >= needed
    }

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
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
    fn each_role_may_what_those_before_it_may() {
        for (at, role) in Role::ALL.into_iter().enumerate() {
            assert_eq!(role.as_str().parse(), Ok(role));
            for (other, needed) in Role::ALL.into_iter().enumerate() {
                assert_eq!(role.may(needed), other <= at, "{role} {needed}");
            }
        }
        assert_eq!("root".parse::<Role>(), Err(RoleError));
    }
}
