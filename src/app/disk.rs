//! Opens what the node keeps on disk when it starts: the data directory and the journal.

use tracing::{error, info, warn};

use super::start_error::StartError;
use super::supervisor::policy::How;
use super::{capacity, panics, settings};
use crate::config::Config;
use crate::decisions::journal::{self, Journal};
use crate::private;
use banmesh_core::ledger::Ledger;
use banmesh_core::node::NodeId;
use banmesh_core::retention::DECISION_RETENTION;

/// The opened journal and its contents.
pub(super) struct OpenedJournal {
    pub(super) journal: Journal,
    pub(super) thread: journal::Thread,
    pub(super) identity: journal::Identity,
    pub(super) ledger: Ledger,
    pub(super) metrics: journal::Metrics,
}

/// Warns if this node has written and received nothing for longer than other nodes keep the unbans of permanent bans.
pub(super) fn warn_if_away(ledger: &Ledger) {
    let silent = crate::clock::now().since(ledger.last_stamp().millis());
    if silent > DECISION_RETENTION && !ledger.table().is_empty() {
        warn!(
            days = silent.as_secs() / 86_400,
            "the journal has no change of the last 90 days: if this node was disconnected, the other nodes may have removed unbans that it has \
             not received, and its permanent bans return; delete its data directory and start it again"
        );
    }
}

/// Logs how many entries the table can hold, and warns if the memory limit does not hold them.
fn say_capacity(max_bans: usize, config: &Config) {
    let limit = capacity::memory_limit();
    let limit = if config.firewall.enabled { limit.map(capacity::beside_firewall) } else { limit };
    let published = config.crowdsec.enabled || config.lists.enabled;
    let limit = if published { limit.map(capacity::beside_published) } else { limit };
    let needs = capacity::memory_for(max_bans);
    match limit {
        Some(limit) if limit < needs => warn!(
            max_bans,
            limit_mib = limit >> 20,
            needs_mib = needs >> 20,
            "the memory limit of this process does not hold ban.max_bans entries, so a full table would end it: raise the limit, or \
             remove ban.max_bans"
        ),
        _ => info!(max_bans, limit_mib = limit.map(|limit| limit >> 20), "the ban table can hold this many entries"),
    }
}

pub(super) async fn open_journal(config: &Config, may_start_without: bool) -> Result<OpenedJournal, StartError> {
    let node: Option<NodeId> = if config.node.id.is_empty() { None } else { Some(config.node.id.parse()?) };
    let settings = journal::Settings { path: config.node.data_dir.join(journal::FILE_NAME), node, may_start_without };
    let (limits, metrics) = (settings::limits(config), journal::Metrics::default());
    say_capacity(limits.max_bans, config);
    let counters = metrics.clone();
    let opened = tokio::task::spawn_blocking(move || Journal::open(&settings, limits, counters)).await;
    let opened = opened.map_err(|error| {
        let how = error.try_into_panic().map_or(How::Returned, |panic| How::Panicked(panics::message(panic.as_ref())));
        StartError::Ended { part: "journal".to_owned(), how }
    })??;
    let journal::Opened { journal, identity, ledger, thread } = opened;
    Ok(OpenedJournal { journal, thread, identity, ledger, metrics })
}

pub(super) fn make_data_dir(config: &Config, may_start_without: bool) -> Result<(), StartError> {
    let path = &config.node.data_dir;
    let rights = nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK;
    // Check now, because otherwise the admin socket would fail with a less clear error.
    let usable =
        private::create_directory(path).and_then(|()| nix::unistd::access(path, rights).map_err(std::io::Error::from));
    match usable {
        Ok(()) => Ok(()),
        Err(error) if may_start_without && is_of_the_disk(&error) => {
            error!(path = %path.display(), %error, "the data directory (node.data_dir) cannot be written; starting without it");
            Ok(())
        }
        Err(source) => Err(StartError::DataDir { path: path.clone(), source }),
    }
}

/// Whether a full, read-only or failing disk causes `error`.
pub(super) fn is_of_the_disk(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    let kind = matches!(
        error.kind(),
        ErrorKind::ReadOnlyFilesystem
            | ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::StaleNetworkFileHandle
    );
    kind || error.raw_os_error() == Some(nix::errno::Errno::EIO as i32)
}
