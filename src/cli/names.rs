//! What people call the nodes: their names instead of generated ids.

use std::collections::HashMap;

use super::client::Client;
use super::failure::Failure;
use crate::operation::api::views::{NodeView, StatusView};
use banmesh_core::node::NodeId;

/// The names of the nodes of a cluster.
#[derive(Debug, Default)]
pub struct Names(HashMap<NodeId, String>);

impl Names {
    /// The names that the node knows.
    ///
    /// # Errors
    /// Same as [`Client::get`].
    pub async fn of(client: &mut Client) -> Result<Self, Failure> {
        let status: StatusView = client.get("/api/v1/status").await?;
        Ok(Self::from_nodes(&status.nodes))
    }

    fn from_nodes(nodes: &[NodeView]) -> Self {
        Self(nodes.iter().map(|node| (node.id.clone(), node.shown())).collect())
    }

    /// The name of a node; its id if the name is unknown.
    pub fn show(&self, id: &NodeId) -> String {
        self.0.get(id).cloned().unwrap_or_else(|| id.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_the_names_of_their_hosts_and_unknown_ones_their_ids() {
        let nodes = serde_json::json!([
            {"id": "0f3c", "name": "edge-1", "this_node": true, "state": "ready", "left": false},
            {"id": "77ab", "this_node": false, "state": "dead", "left": false},
        ]);
        let nodes: Vec<NodeView> = serde_json::from_value(nodes).unwrap();
        let names = Names::from_nodes(&nodes);
        for (id, name) in [("0f3c", "edge-1"), ("77ab", "77ab"), ("gone", "gone")] {
            assert_eq!(names.show(&id.parse().unwrap()), name);
        }
    }
}
