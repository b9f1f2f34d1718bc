//! How many entries the ban table may have: as many as fit into the memory limit of this process, unless `ban.max_bans` is set.

use std::fs;
use std::path::{Path, PathBuf};

/// The number of entries without a memory limit.
pub const DEFAULT_MAX_BANS: usize = 4_000_000;
/// The memory of an entry while the table grows, in bytes: rows and index are then copied. At rest it is 88.
const ENTRY: u64 = 256;
/// The memory of an entry in the kernel's firewall while everything is replaced, in bytes.
const FIREWALL_ENTRY: u64 = 280;
/// The memory of an entry that is published to clients that poll, with snapshots of it, in bytes.
const PUBLISHED_ENTRY: u64 = 280;
/// The memory of everything else, in bytes: counters, connections, the recent changes.
const BASE: u64 = 128 << 20;
/// The space of an entry in the journal, in bytes, while it grows.
const JOURNAL_ENTRY: u64 = 300;
/// The smallest derived number: a node with less memory than this needs is too small.
const LEAST: usize = 10_000;

/// Returns the number of entries: `set`, or as many as fit into `limit` bytes, at most [`DEFAULT_MAX_BANS`].
pub fn max_bans(set: Option<usize>, limit: Option<u64>) -> usize {
    set.unwrap_or_else(|| {
        let fit = limit.map_or(u64::MAX, |limit| limit.saturating_sub(BASE) / ENTRY);
        usize::try_from(fit).unwrap_or(usize::MAX).clamp(LEAST, DEFAULT_MAX_BANS)
    })
}

/// Returns the part of `limit` that is left for the table when the bans are also in the kernel's firewall, whose entries the kernel charges
/// to this process: up to 140 bytes each, and twice that while they are replaced.
pub const fn beside_firewall(limit: u64) -> u64 {
    let rest = limit.saturating_sub(BASE);
    BASE + rest / (ENTRY + FIREWALL_ENTRY) * ENTRY
}

/// Returns the part of `limit` that is left for the table when the bans are also published to clients that poll.
pub const fn beside_published(limit: u64) -> u64 {
    let rest = limit.saturating_sub(BASE);
    BASE + rest / (ENTRY + PUBLISHED_ENTRY) * ENTRY
}

/// Returns the memory that a node needs for a table of `max_bans` entries, in bytes.
pub const fn memory_for(max_bans: usize) -> u64 {
    BASE.saturating_add((max_bans as u64).saturating_mul(ENTRY))
}

/// Returns the disk space that a node needs for a table of `max_bans` entries, in bytes.
pub const fn disk_for(max_bans: usize) -> u64 {
    (max_bans as u64).saturating_mul(JOURNAL_ENTRY)
}

/// Returns the memory limit of this process in bytes (cgroup v2 or v1), or `None` if it has none.
pub fn memory_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_of(&groups, Path::new("/sys/fs/cgroup"))
}

/// Returns the lowest limit of the groups in `groups`, the content of `/proc/self/cgroup`, and of the groups around them.
fn limit_of(groups: &str, root: &Path) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        // In a container the mount may begin at the group itself, so groups that do not exist are skipped.
        let innermost: PathBuf = root.join(group.trim_start_matches('/'));
        let around = innermost.ancestors().take_while(|path| path.starts_with(&root));
        around.filter_map(|path| limit_in(&path.join(file))).min()
    });
    limits.min()
}

fn limit_in(file: &Path) -> Option<u64> {
    let limit = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    // cgroup v1 writes a number close to 2^63 for "no limit".
    (limit < 1 << 60).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_firewalls_entries_take_memory_from_the_table() {
        let limit = 1536 << 20;
        let entries = max_bans(None, Some(beside_firewall(limit)));
        assert!(entries < max_bans(None, Some(limit)));
        assert!(memory_for(entries) + entries as u64 * FIREWALL_ENTRY <= limit);
    }

    fn written(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn max_bans_fits_the_memory_limit_unless_it_is_set() {
        assert_eq!(max_bans(None, None), DEFAULT_MAX_BANS);
        assert_eq!(max_bans(Some(7), Some(1 << 20)), 7);
        assert_eq!(max_bans(None, Some(64 << 30)), DEFAULT_MAX_BANS);
        assert_eq!(max_bans(None, Some(64 << 20)), LEAST);
        let small = max_bans(None, Some(512 << 20));
        assert!((1_500_000..2_000_000).contains(&small) && memory_for(small) <= 512 << 20, "{small}");
    }

    #[test]
    fn the_lowest_limit_of_all_groups_around_the_process_counts() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let v2 = "0::/system.slice/banmesh.service\n";
        assert_eq!(limit_of(v2, root), None);
        written(root, "system.slice/banmesh.service/memory.max", "max\n");
        written(root, "system.slice/memory.max", "2147483648\n");
        assert_eq!(limit_of(v2, root), Some(2 << 30));
        written(root, "system.slice/banmesh.service/memory.max", "536870912\n");
        assert_eq!(limit_of(v2, root), Some(512 << 20));
        // A container sees its own group as the root.
        written(root, "memory.max", "1000\n");
        assert_eq!(limit_of("0::/\n", root), Some(1000));
    }

    #[test]
    fn limits_of_cgroup_v1_are_read_and_unlimited_groups_are_not() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let v1 = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/docker/abc\n";
        written(root, "memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit_of(v1, root), None);
        written(root, "memory/docker/abc/memory.limit_in_bytes", "268435456\n");
        assert_eq!(limit_of(v1, root), Some(256 << 20));
        assert_eq!(limit_of("nonsense\n\n4:memory\n", root), None);
    }
}
