//! The evidence on disk: a file to which changed entries are appended once a minute, and which is rewritten when it has grown.
//!
//! ```text
//! file    "banmesh evidence 1\n" | fingerprint of the accounts' key 8 | batches …
//! batch   length of the payload 4 | checksum of the payload 8 | payload: facts, each with a length of 1 byte
//! ```
//!
//! A batch that is cut off or damaged ends the file: what follows is learned again. Losing the file costs a few days of learning and no
//! bans, so a node starts without it.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use crate::clock;
use crate::private;
use banmesh_core::evidence::{AccountKey, BUCKETS, Evidence, Fact, Hour};

/// The name of the file in the data directory.
const FILE_NAME: &str = "evidence.log";
const HEADER: &[u8] = b"banmesh evidence 1\n";
/// The longest payload of a batch, in bytes.
const MAX_BATCH: usize = 1 << 20;
/// The file is rewritten when it is longer than this and than four times what its contents need.
const MIN_REWRITE: u64 = 4 << 20;

/// The tables of a node, and the file that keeps them.
#[derive(Debug)]
pub struct EvidenceLog {
    pub(super) evidence: Evidence,
    pub(super) writer: Writer,
}

impl EvidenceLog {
    /// The fingerprint of the accounts' key; 0 while evidence is off.
    pub(super) const fn fingerprint(&self) -> u64 {
        self.writer.fingerprint
    }
}

/// Appends to the file.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    /// The fingerprint of the accounts' key.
    fingerprint: u64,
    /// Its length; `None` if it must be rewritten before anything is appended.
    length: Option<u64>,
    /// How many changes had been dropped when it was last looked at. The file lacks what is dropped, until it is rewritten.
    lost: u64,
}

impl EvidenceLog {
    /// Reads the file in `data_dir`, unless evidence is off, and so has no key. A file that cannot be read, or that was written with another key, is logged, and replaced.
    pub async fn open(data_dir: &Path, max_accounts: usize, key: Option<&AccountKey>) -> Self {
        let fingerprint = key.map_or(0, AccountKey::fingerprint);
        let path = data_dir.join(FILE_NAME);
        if key.is_none() {
            let writer = Writer { path, fingerprint, length: None, lost: 0 };
            return Self { evidence: Evidence::new(max_accounts), writer };
        }
        let reading = path.clone();
        let read =
            tokio::task::spawn_blocking(move || read(&reading, max_accounts, fingerprint, Hour::of(clock::now())))
                .await;
        let (mut evidence, length) = match read {
            Ok(Ok(read)) => read,
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => (Evidence::new(max_accounts), None),
            Ok(Err(error)) => {
                tracing::warn!(path = %path.display(), %error, "the evidence cannot be read: this node starts without it and collects it anew");
                (Evidence::new(max_accounts), None)
            }
            // Logged by the panic hook.
            Err(_) => (Evidence::new(max_accounts), None),
        };
        evidence.keep_changes();
        Self { evidence, writer: Writer { path, fingerprint, length, lost: 0 } }
    }
}

/// What is to be written.
#[derive(Debug)]
pub(super) enum Work {
    /// Append these entries.
    Append(Vec<Fact>),
    /// Replace the file by these entries.
    Rewrite(Vec<Fact>),
}

impl Writer {
    /// From now on the file is for evidence under another key.
    pub(super) fn rekey(&mut self, fingerprint: u64) {
        (self.fingerprint, self.length) = (fingerprint, None);
    }

    /// Returns what is to be written now, if anything has changed.
    pub(super) fn work(&mut self, evidence: &mut Evidence, now: Hour) -> Option<Work> {
        let changed = evidence.take_changed(usize::MAX);
        let needs = (evidence.size().entries() as u64).saturating_mul(25);
        let lost = evidence.size().lost;
        let complete = std::mem::replace(&mut self.lost, lost) == lost;
        match self.length {
            _ if changed.is_empty() => None,
            Some(length) if complete && length < MIN_REWRITE.max(4 * needs) => Some(Work::Append(changed)),
            _ => Some(Work::Rewrite(evidence.facts(&[true; BUCKETS], now).collect())),
        }
    }

    /// Writes to the file. Blocks.
    ///
    /// # Errors
    /// When the disk fails. The next write then replaces the whole file.
    pub(super) fn write(&mut self, work: &Work) -> io::Result<()> {
        let length = match work {
            Work::Append(facts) => {
                let mut file = std::fs::OpenOptions::new().append(true).open(&self.path);
                append(&mut file, facts).map(|bytes| self.length.unwrap_or(0) + bytes)
            }
            Work::Rewrite(facts) => rewrite(&self.path, self.fingerprint, facts),
        };
        self.length = length.as_ref().ok().copied();
        length.map(|_| ())
    }
}

fn append(file: &mut io::Result<File>, facts: &[Fact]) -> io::Result<u64> {
    let file = file.as_mut().map_err(|error| io::Error::from(error.kind()))?;
    let bytes = batches(facts);
    file.write_all(&bytes)?;
    file.sync_data()?;
    Ok(bytes.len() as u64)
}

fn rewrite(path: &Path, fingerprint: u64, facts: &[Fact]) -> io::Result<u64> {
    let new = path.with_extension("new");
    let mut file = private::create(&new)?;
    let bytes = batches(facts);
    file.write_all(HEADER)?;
    file.write_all(&fingerprint.to_le_bytes())?;
    file.write_all(&bytes)?;
    file.sync_data()?;
    std::fs::rename(&new, path)?;
    Ok((HEADER.len() + size_of_val(&fingerprint) + bytes.len()) as u64)
}

fn batches(facts: &[Fact]) -> Vec<u8> {
    let mut out = Vec::new();
    for some in facts.chunks(MAX_BATCH / (Fact::MAX_LEN + 1)) {
        let (mut payload, mut one) = (Vec::new(), Vec::new());
        for fact in some {
            one.clear();
            fact.encode(&mut one);
            payload.push(u8::try_from(one.len()).unwrap_or(u8::MAX));
            payload.extend_from_slice(&one);
        }
        out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&xxh3_64(&payload).to_le_bytes());
        out.append(&mut payload);
    }
    out
}

/// Reads the tables, and the length of the file if more can be appended to it.
fn read(path: &Path, max_accounts: usize, fingerprint: u64, now: Hour) -> io::Result<(Evidence, Option<u64>)> {
    let bytes = std::fs::read(path)?;
    let mut evidence = Evidence::new(max_accounts);
    let Some((written_with, mut rest)) = bytes.strip_prefix(HEADER).and_then(<[u8]>::split_first_chunk) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a file of this version of banmesh"));
    };
    if u64::from_le_bytes(*written_with) != fingerprint {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it was written with another key of the cluster"));
    }
    while let Some((batch, after)) = batch(rest) {
        for fact in batch {
            evidence.join(fact, now);
        }
        rest = after;
    }
    Ok((evidence, rest.is_empty().then_some(bytes.len() as u64)))
}

fn batch(rest: &[u8]) -> Option<(Vec<Fact>, &[u8])> {
    let (length, rest) = rest.split_first_chunk()?;
    let (checksum, rest) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|length| *length <= MAX_BATCH)?;
    let (mut payload, rest) = rest.split_at_checked(length)?;
    if xxh3_64(payload) != u64::from_le_bytes(*checksum) {
        return None;
    }
    let mut facts = Vec::new();
    while let Some((&length, after)) = payload.split_first() {
        let (fact, after) = after.split_at_checked(usize::from(length))?;
        // A newer build may write other facts.
        facts.extend(Fact::decode(fact));
        payload = after;
    }
    Some((facts, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use banmesh_core::evidence::{Account, CompactTarget, FilterId, Named};

    const NOW: Hour = Hour(500_000);

    fn evidence(logins: u32) -> Evidence {
        let mut evidence = Evidence::default();
        evidence.keep_changes();
        for n in 0..logins {
            let target = CompactTarget::of(banmesh_types::target::Target::host(n.to_be_bytes().into()));
            evidence.succeeded(target, Named { account: Account(u64::from(n)), local: None }, FilterId(1), NOW);
        }
        evidence
    }

    #[test]
    fn evidence_survives_a_restart_and_a_damaged_end_costs_only_what_follows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let mut writer = Writer { path: path.clone(), fingerprint: 9, length: None, lost: 0 };
        let mut known = evidence(1000);
        assert!(matches!(writer.work(&mut known, NOW), Some(Work::Rewrite(_))));
        writer.write(&Work::Rewrite(known.facts(&[true; BUCKETS], NOW).collect())).unwrap();
        known.succeeded(
            CompactTarget::of("192.0.2.1".parse().unwrap()),
            Named { account: Account(5), local: None },
            FilterId(1),
            NOW,
        );
        let work = writer.work(&mut known, NOW).unwrap();
        assert!(matches!(work, Work::Append(_)));
        writer.write(&work).unwrap();
        assert!(writer.work(&mut known, NOW).is_none(), "nothing has changed");
        let (read_back, length) = read(&path, 1, 9, NOW).unwrap();
        assert_eq!(read_back.digests(), known.digests());
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(length, Some(bytes.len() as u64));
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let (cut, length) = read(&path, 1, 9, NOW).unwrap();
        assert!(length.is_none() && cut.size().sources == 1000, "the file is rewritten before anything is appended");
        std::fs::write(&path, b"something else").unwrap();
        assert!(read(&path, 1, 9, NOW).is_err());
    }

    #[test]
    fn evidence_under_another_key_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let mut writer = Writer { path: path.clone(), fingerprint: 9, length: None, lost: 0 };
        let facts = |logins| Work::Rewrite(evidence(logins).facts(&[true; BUCKETS], NOW).collect());
        writer.write(&facts(10)).unwrap();
        assert!(read(&path, 1, 8, NOW).unwrap_err().to_string().contains("another key"));
        // A reload brings another key.
        writer.rekey(8);
        assert!(matches!(writer.work(&mut evidence(1), NOW), Some(Work::Rewrite(_))));
        writer.write(&facts(1)).unwrap();
        assert_eq!(read(&path, 1, 8, NOW).unwrap().0.size().sources, 1);
    }
}
