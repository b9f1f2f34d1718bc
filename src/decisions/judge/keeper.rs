//! Keeps the evidence: writes it to the disk, and finds and sends what other nodes lack.
//!
//! Once a minute, each node publishes the digests of its evidence. A node that has different ones publishes the entries in some of the
//! buckets that differ, a few thousand per minute, so the cost is bounded however much differs.

use std::sync::atomic::AtomicI64;
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::decisions::evidence_log::Writer;
use crate::net::throttle::LogThrottle;
use banmesh_core::evidence::{BUCKETS, Evidence, EvidenceRecord, Hour};

/// Entries that are published in one minute at most, except that one bucket is always published whole.
const MAX_FACTS: usize = 8192;

/// Keeps the evidence of one node.
#[derive(Debug)]
pub(super) struct Keeper {
    writer: Option<Writer>,
    writing: Option<JoinHandle<(Writer, std::io::Result<()>)>>,
    /// The buckets of which another node had a different digest.
    differ: Box<[bool; BUCKETS]>,
    /// The bucket after the last one that was published.
    next: usize,
    failed: LogThrottle,
}

impl Default for Keeper {
    fn default() -> Self {
        let failed = LogThrottle::new(Duration::from_secs(60));
        Self { writer: None, writing: None, differ: Box::new([false; BUCKETS]), next: 0, failed }
    }
}

impl Keeper {
    /// Keeps evidence with `writer`.
    pub(super) fn new(writer: Writer) -> Self {
        Self { writer: Some(writer), ..Self::default() }
    }

    /// Applies what another node published.
    pub(super) fn received(&mut self, evidence: &mut Evidence, record: EvidenceRecord, now: Hour) {
        match record {
            EvidenceRecord::Digests { from, values } => evidence.compare(from, &values, &mut self.differ),
            _ => {
                evidence.receive(record, now);
            }
        }
    }

    /// Returns what to publish: entries that other nodes may lack, and the digests.
    pub(super) fn repair(&mut self, evidence: &Evidence, now: Hour) -> Vec<EvidenceRecord> {
        let mut records: Vec<EvidenceRecord> = Vec::new();
        for step in 0..BUCKETS {
            let bucket = (self.next + step) % BUCKETS;
            if !std::mem::take(&mut self.differ[bucket]) {
                continue;
            }
            let mut wanted = [false; BUCKETS];
            wanted[bucket] = true;
            records.extend(evidence.facts(&wanted, now).map(EvidenceRecord::Fact));
            if records.len() >= MAX_FACTS {
                self.next = bucket + 1;
                break;
            }
        }
        // Buckets that are left are compared again: they may be equal by then.
        self.differ.fill(false);
        records.extend(evidence.digest_records());
        records
    }

    /// From now on keeps evidence under another key.
    pub(super) async fn rekey(&mut self, fingerprint: u64) {
        if let Some(writing) = self.writing.take() {
            self.writer = writing.await.ok().map(|(writer, _)| writer);
        }
        if let Some(writer) = &mut self.writer {
            writer.rekey(fingerprint);
        }
    }

    /// Begins to write what has changed, unless the last write still runs. `unsaved` becomes 1 while the disk fails.
    pub(super) fn write(&mut self, evidence: &mut Evidence, unsaved: &Gauge<i64, AtomicI64>) {
        if let Some(writing) = self.writing.take_if(|writing| writing.is_finished())
            && let Some(ended) = futures_util::FutureExt::now_or_never(writing)
        {
            let Ok((writer, outcome)) = ended else {
                // The writer is gone with its task, so this stays until the node restarts. The panic hook logged the rest.
                unsaved.set(1);
                return;
            };
            self.writer = Some(writer);
            unsaved.set(i64::from(outcome.is_err()));
            if let Err(error) = outcome
                && let Some(more) = self.failed.permit(Instant::now())
            {
                warn!(%error, and_more = more, "evidence cannot be written to node.data_dir: after a restart this node collects it anew; check the disk");
            }
        }
        let Some(mut writer) = self.writer.take() else { return };
        let Some(work) = writer.work(evidence, Hour::of(crate::clock::now())) else {
            self.writer = Some(writer);
            return;
        };
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let outcome = writer.write(&work);
            (writer, outcome)
        }));
    }

    /// Writes what has changed before the node stops.
    pub(super) async fn finish(&mut self, evidence: &mut Evidence) {
        if let Some(writing) = self.writing.take() {
            self.writer = writing.await.ok().map(|(writer, _)| writer);
        }
        self.write(evidence, &Gauge::default());
        if let Some(writing) = self.writing.take() {
            // A failure was logged before, or costs a minute of evidence.
            let _ = writing.await;
        }
    }
}
