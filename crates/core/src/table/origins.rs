//! The authors and causes of writes, which rows share.

use std::collections::HashSet;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use crate::ban::{By, Cause};
use crate::node::NodeId;

/// The author and the cause of a write, shared by all rows that have the same.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    pub(super) node: NodeId,
    pub(super) cause: Arc<Cause>,
    pub(super) digest: u64,
}

/// Interned origins, so that a million bans by one filter of one node share one.
#[derive(Debug, Default)]
pub(super) struct Origins {
    known: HashSet<Arc<Origin>, foldhash::fast::RandomState>,
    /// With this many, unused ones are removed.
    purge_at: usize,
}

impl Origins {
    pub(super) fn intern(&mut self, node: &NodeId, cause: &Arc<Cause>) -> Arc<Origin> {
        let origin = Origin { node: node.clone(), cause: Arc::clone(cause), digest: digest_of(node, cause) };
        if let Some(known) = self.known.get(&origin) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.purge_at {
            self.known.retain(|origin| Arc::strong_count(origin) > 1);
            self.purge_at = (self.known.len() * 2).max(1024);
        }
        let origin = Arc::new(origin);
        self.known.insert(Arc::clone(&origin));
        origin
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn bytes(&self) -> usize {
        let texts: usize = self.known.iter().map(|origin| origin.cause.reason.len() + 100).sum();
        texts + self.known.capacity() * size_of::<Arc<Origin>>()
    }
}

/// Returns the digest of an origin. It is the same on every node and in every version, which [`Hash`] does not guarantee.
fn digest_of(node: &NodeId, cause: &Cause) -> u64 {
    let (kind, name) = match &cause.by {
        By::Filter(name) => (b"f", name),
        By::Operator(name) => (b"o", name),
    };
    let mut hasher = Xxh3::new();
    for part in [node.as_str().as_bytes(), kind, name.as_bytes(), cause.reason.as_bytes()] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_in_use_stay_shared_and_unused_ones_are_removed() {
        let (mut origins, node) = (Origins::default(), "n1".parse().unwrap());
        let cause = |n: u32| Arc::new(Cause::new(By::Filter("sshd".into()), &n.to_string()));
        let used: Vec<_> = (0..3000).map(|n| origins.intern(&node, &cause(n))).collect();
        assert!((0..).zip(&used).all(|(n, origin)| Arc::ptr_eq(origin, &origins.intern(&node, &cause(n)))));
        // With more in use, they are looked through less often.
        assert_eq!((origins.len(), origins.purge_at), (3000, 4096));
        drop(used);
        (3000..5000).for_each(|n| drop(origins.intern(&node, &cause(n))));
        assert_eq!((origins.len(), origins.purge_at), (5000 - 4096, 1024));
        assert!(origins.bytes() > 100 * origins.len());
    }
}
