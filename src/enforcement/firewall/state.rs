//! The firewall as `banmesh firewall` shows, checks and removes it, without a node.

use nix::errno::Errno;

use super::connections::{ConnectionsError, can_end};
use super::kernel;
use super::socket::{Denied, FirewallError, Socket};
use banmesh_nftables::batch::{Hook, OWNER, PERSIST, Question};
use banmesh_nftables::reply::Reply;
use banmesh_nftables::ruleset::SetName;

/// The table as it is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Whether a running process owns the table.
    pub owned: bool,
    /// Whether the table stays when its owner ends, and survives `nft flush ruleset` while it has an owner.
    pub persists: bool,
    /// The points at which it sees packets.
    pub hooks: Vec<Hook>,
    /// Every set: its name without generation, the number of elements if the kernel says it, and the packets that its rules matched.
    pub sets: Vec<(String, Option<u32>, u64)>,
}

/// What the kernel can do for the firewall.
#[derive(Debug)]
pub struct Check {
    /// Whether tables can have an owner and persist (Linux 6.9 and newer).
    pub persists: bool,
    /// Whether standing connections can be ended.
    pub ends_connections: Result<(), ConnectionsError>,
}

/// Reads the table; `None` if there is none.
///
/// # Errors
/// When the process may not, or the kernel has no nf_tables.
pub fn read(table: &str) -> Result<Option<State>, FirewallError> {
    let mut socket = Socket::open()?;
    let Some(facts) = kernel::table(&mut socket, table)? else { return Ok(None) };
    let mut rules = Vec::new();
    let mut hooks = Vec::new();
    for hook in Hook::ALL {
        let found = kernel::rules(&mut socket, table, hook)?;
        if !found.is_empty() {
            hooks.push(hook);
        }
        rules.extend(found);
    }
    let packets = |name: &str| -> u64 {
        rules.iter().filter(|rule| rule.set.as_deref() == Some(name)).map(|rule| rule.packets).sum()
    };
    let found = socket.ask(|number| Question::sets(number, table))?.unwrap_or_default();
    let set = |reply| match reply {
        Reply::Set(set) => {
            let name: SetName = set.name.parse().ok()?;
            Some((SetName { generation: 0, ..name }.to_string(), set.elements, packets(&set.name)))
        }
        _ => None,
    };
    let sets = found.into_iter().filter_map(set).collect();
    Ok(Some(State {
        owned: facts.owner.is_some_and(|owner| owner != 0),
        persists: facts.flags & PERSIST != 0,
        hooks,
        sets,
    }))
}

/// Tries out what the firewall needs, in a transaction that is undone.
///
/// # Errors
/// When the process may not, or the kernel has no nf_tables.
pub fn check() -> Result<Check, FirewallError> {
    let mut socket = Socket::open()?;
    let found = |persists| Check { persists, ends_connections: can_end() };
    match kernel::probe(&mut socket, OWNER | PERSIST)? {
        Ok(()) => return Ok(found(true)),
        Err(Denied { position: 0, .. }) => return Err(FirewallError::NotPermitted),
        Err(_) => {}
    }
    match kernel::probe(&mut socket, 0)? {
        Ok(()) => Ok(found(false)),
        Err(denied) => Err(FirewallError::Unsupported(denied.errno)),
    }
}

/// Removes the table with all its bans. Returns whether there was one.
///
/// # Errors
/// When the process may not, or a running node owns the table.
pub fn remove(table: &str) -> Result<bool, FirewallError> {
    let mut socket = Socket::open()?;
    if kernel::table(&mut socket, table)?.is_none() {
        return Ok(false);
    }
    match socket.commit(|batch| batch.delete_table(table))? {
        Ok(()) => Ok(true),
        Err(Denied { errno: Errno::ENOENT, .. }) => Ok(false),
        Err(Denied { position: 0, errno: Errno::EPERM }) => Err(FirewallError::NotPermitted),
        Err(Denied { errno: Errno::EPERM, .. }) => Err(FirewallError::Taken(table.to_owned())),
        Err(Denied { errno, .. }) => {
            Err(FirewallError::Refused { what: "remove the table", errno, table: table.to_owned() })
        }
    }
}
