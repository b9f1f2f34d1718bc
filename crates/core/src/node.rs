//! [`NodeId`]: the name of a node.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The name of a node in its cluster (`node.id`): 1 to 63 of the characters `A-Z a-z 0-9 . _ -`, for example a pod's name or a UUID.
///
/// It breaks ties between stamps, so no two nodes of a cluster may have the same one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

/// A text that is not a valid node id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a node id: use 1 to 63 letters, digits, dots, dashes or underscores, as in a host name")]
pub struct NodeIdError(pub String);

impl NodeId {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, NodeIdError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if (1..=63).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(NodeIdError(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for NodeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for NodeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_node_ids_are_refused() {
        let id: NodeId = "banmesh-0.banmesh".parse().unwrap();
        assert_eq!((id.as_str(), id.to_string().as_str()), ("banmesh-0.banmesh", "banmesh-0.banmesh"));
        for text in ["", "a b", "a/b", "ä", &"x".repeat(64)] {
            assert!(text.parse::<NodeId>().is_err(), "{text}");
        }
    }
}
