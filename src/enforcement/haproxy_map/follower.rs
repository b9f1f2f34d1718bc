//! Follows one HAProxy: replaces its whole map after connecting, then sends changes, and verifies the map regularly.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::link::{Link, LinkError};
use super::metrics::OfSocket;
use super::{Shared, Socket};
use crate::net::throttle::LogThrottle;
use banmesh_core::mirror::{Instruction, MapDigest};
use banmesh_haproxy::runtime::{MapName, Refusal, Reply, SHOW_MAPS, entry};

/// How often to check that HAProxy is still the same process and has the expected number of entries.
const LOOK: Duration = Duration::from_secs(1);
/// The first and the longest pause before a reconnect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Entries that are read from the mirror at once when the whole map is sent.
const PAGE: usize = 4096;
/// Changes that are sent with one write.
const CHANGES: usize = 256;

/// Keeps one map current.
pub(super) struct Follower {
    index: usize,
    socket: Socket,
    map: MapName,
    verify_interval: Duration,
    shared: Arc<Shared>,
    metrics: OfSocket,
    failures: LogThrottle,
    repairs: LogThrottle,
    pause: Duration,
}

impl Follower {
    pub(super) fn new(
        index: usize,
        socket: Socket,
        map: MapName,
        verify_interval: Duration,
        shared: Arc<Shared>,
    ) -> Self {
        let metrics = shared.metrics.of(&socket.to_string());
        let minute = Duration::from_secs(60);
        let (failures, repairs) = (LogThrottle::new(minute), LogThrottle::new(minute));
        Self { index, socket, map, verify_interval, shared, metrics, failures, repairs, pause: PAUSES.0 }
    }

    /// Follows until `shutdown`, and reconnects after failures.
    pub(super) async fn serve(mut self, shutdown: CancellationToken) {
        // A follower that failed may have left another value.
        self.metrics.connected.set(0);
        let mut filled = self.shared.filled.subscribe();
        loop {
            let session = async {
                // Cannot fail: we share the sender.
                let _ = filled.wait_for(|filled| *filled).await;
                self.follow().await
            };
            let Some(ended) = shutdown.run_until_cancelled(session).await else { return };
            self.metrics.connected.set(0);
            if let Err(error) = ended {
                self.metrics.error(error.kind());
                if matches!(error, LinkError::Stopping) {
                    info!(socket = %self.socket, "HAProxy was reloaded; connecting to the new process");
                } else if let Some(more) = self.failures.permit(Instant::now()) {
                    warn!(socket = %self.socket, map = %self.map, %error, and_more = more, "the mirror is not current; trying again");
                }
            }
            if shutdown.run_until_cancelled(tokio::time::sleep(self.pause)).await.is_none() {
                return;
            }
            self.pause = (self.pause * 2).min(PAUSES.1);
        }
    }

    /// Follows over one connection, until it fails or the mirror starts over.
    async fn follow(&mut self) -> Result<(), LinkError> {
        let shared = Arc::clone(&self.shared);
        let Some(wake) = shared.wakes.get(self.index) else { return Ok(()) };
        let mut link = Link::open(&self.socket).await?;
        let process = link.info().await?;
        let slow = process.scans_maps();
        shared.mirror().begin(self.index, slow);
        // How many more entries HAProxy counts than were sent. Its count drifts when an addition by hand fails.
        let mut drift = self.replace(&mut link, slow).await?;
        let entries = shared.mirror().sent(self.index).entries;
        info!(socket = %self.socket, version = process.version, process = process.pid, entries, "mirror: HAProxy has all bans");
        let mut verified = Instant::now();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = wake.notify.notified() => {}
                _ = look.tick() => {
                    link.info().await?;
                    let counted = self.drift(&mut link).await?;
                    if counted != drift || verified.elapsed() >= self.verify_interval {
                        verified = Instant::now();
                        drift = counted;
                        self.verify(&mut link).await?;
                    }
                }
            }
            if !*shared.filled.borrow() {
                return Ok(());
            }
            if !shared.mirror().needs_full_sync(self.index) {
                self.send_changes(&mut link).await?;
            }
            if shared.mirror().needs_full_sync(self.index) {
                drift = self.replace(&mut link, slow).await?;
                verified = Instant::now();
            }
            self.pause = PAUSES.0;
        }
    }

    /// Replaces the whole map atomically: HAProxy uses the old content until the new one is complete. Returns the drift.
    async fn replace(&mut self, link: &mut Link, slow: bool) -> Result<i128, LinkError> {
        let begun = Instant::now();
        loop {
            self.shared.mirror().begin(self.index, slow);
            let version = match link.execute(&self.map.prepare()).await? {
                Reply::NewVersion(version) => version,
                other => return Err(Refusal::Other(format!("expected a version, got {other:?}")).into()),
            };
            loop {
                let Some(page) = self.shared.mirror().page(self.index, PAGE) else { break };
                for command in self.map.add(Some(version), &page) {
                    link.execute(&command).await?;
                }
            }
            // HAProxy discards a version that is never committed when a later one is.
            if !self.shared.mirror().needs_full_sync(self.index) {
                link.execute_slowly(&self.map.commit(version)).await?;
                break;
            }
        }
        self.send_changes(link).await?;
        self.metrics.syncs.inc();
        self.metrics.sync_seconds.set(begun.elapsed().as_secs_f64());
        self.metrics.connected.set(1);
        self.drift(link).await
    }

    /// Sends the changes.
    async fn send_changes(&mut self, link: &mut Link) -> Result<(), LinkError> {
        loop {
            let instructions = self.shared.mirror().changes(self.index, CHANGES);
            if instructions.is_empty() {
                break;
            }
            let mut added = Vec::new();
            let mut commands = Vec::new();
            for instruction in &instructions {
                match *instruction {
                    Instruction::Add(target, value) => added.push((target, value)),
                    Instruction::Set(target, value) => commands.push(self.map.set(target, value)),
                    Instruction::Remove(target) => commands.push(self.map.remove(target)),
                }
            }
            commands.extend(self.map.add(None, &added));
            link.send(&commands.concat()).await?;
            for _ in 0..commands.len() {
                if let Reply::Refused(refusal) = Reply::read(&link.answer().await?) {
                    return Err(refusal.into());
                }
            }
            self.metrics.changes.inc_by(instructions.len() as u64);
        }
        if let Some(wake) = self.shared.wakes.get(self.index) {
            let since = wake.since.lock().take();
            if let Some(since) = since {
                self.metrics.lag.set(since.elapsed().as_secs_f64());
            }
        }
        let sent = self.shared.mirror().sent(self.index).entries;
        self.metrics.entries.set(i64::try_from(sent).unwrap_or(i64::MAX));
        Ok(())
    }

    /// How many more entries HAProxy counts than were sent.
    async fn drift(&mut self, link: &mut Link) -> Result<i128, LinkError> {
        let sent = self.shared.mirror().sent(self.index).entries;
        let mut counted = None;
        link.send(SHOW_MAPS).await?;
        link.each_line(|line| counted = counted.or_else(|| self.map.count(line))).await?;
        let counted = counted.ok_or(Refusal::UnknownMap)?;
        Ok(i128::from(counted) - i128::from(sent))
    }

    /// Compares the map's content with what was sent. If they differ, marks the follower as lost, so that the map is replaced.
    async fn verify(&mut self, link: &mut Link) -> Result<(), LinkError> {
        // Changes from now on wait until the map is read.
        let sent = self.shared.mirror().sent(self.index);
        let mut found = MapDigest::default();
        link.send(&self.map.show()).await?;
        link.each_line(|line| match entry(line) {
            Some((target, value)) => found.add(target, value),
            None => found.add_foreign(),
        })
        .await?;
        self.metrics.verified.inc();
        if found != sent {
            self.metrics.repairs.inc();
            if let Some(more) = self.repairs.permit(Instant::now()) {
                warn!(
                    socket = %self.socket, map = %self.map, sent = sent.entries, found = found.entries, and_more = more,
                    "something else changed the map; replacing it"
                );
            }
            self.shared.mirror().invalidate(self.index);
        }
        Ok(())
    }
}
