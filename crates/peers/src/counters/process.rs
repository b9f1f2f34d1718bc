//! What is kept for one HAProxy process.

use super::*;

#[derive(Debug)]
pub(super) struct Process {
    pub(super) name: Arc<str>,
    pub(super) is_local: bool,
    /// Whether its connections are open.
    pub(super) is_live: bool,
    pub(super) heard: Instant,
    /// Counts the processes under this name. States of earlier ones are given back.
    pub(super) epoch: u32,
    /// Its tables, so that states of one table share their definition. At most [`MAX_TABLES`].
    pub(super) tables: Vec<Arc<Definition>>,
    /// The last definition that was passed in, and the known one that equals it. The next state mostly has the same.
    pub(super) last: Option<(Arc<Definition>, Arc<Definition>)>,
}

impl Process {
    /// Whether the connections in a state are still open: those of an earlier process are not.
    pub(super) fn has_connections_of(&self, share: &Share) -> bool {
        self.is_live && share.epoch == self.epoch
    }

    /// The known definition that equals `table`.
    pub(super) fn intern(&mut self, table: &Arc<Definition>) -> Arc<Definition> {
        if let Some(known) = self.tables.iter().find(|known| *known == table) {
            return Arc::clone(known);
        }
        if self.tables.len() >= MAX_TABLES {
            self.tables.remove(0);
        }
        self.tables.push(Arc::clone(table));
        Arc::clone(table)
    }
}
