//! A file with deferred writes: until [`DeferredFile::release`], what the database writes stays in memory.
//!
//! The database engine begins to repair a file before we can tell whether it is a journal at all. With deferred writes, a file that turns out
//! to be damaged or foreign stays exactly as it was.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use redb::{BackendError, StorageBackend};

/// Opens a file for the database; tests and the simulator inject faults here.
pub type Opener = Arc<dyn Fn(&Path) -> io::Result<Box<dyn StorageBackend>> + Send + Sync>;

const BLOCK: usize = 4096;

/// The file, and the writes that are deferred.
#[derive(Debug)]
pub(super) struct DeferredFile {
    file: Box<dyn StorageBackend>,
    /// `None` once writes go to the file.
    deferred: RwLock<Option<Overlay>>,
}

/// The deferred writes, laid over the contents of the file.
#[derive(Debug)]
struct Overlay {
    /// The file's length as the database sees it.
    len: u64,
    /// How many bytes of the file are still visible below the writes; truncation lowers it.
    visible: u64,
    blocks: BTreeMap<u64, Box<[u8]>>,
}

impl DeferredFile {
    /// Defers the writes to `file`.
    pub(super) fn deferring(file: Box<dyn StorageBackend>) -> io::Result<Arc<Self>> {
        let len = file.len()?;
        Ok(Arc::new(Self { file, deferred: RwLock::new(Some(Overlay { len, visible: len, blocks: BTreeMap::new() })) }))
    }

    /// Writes to `file` directly.
    pub(super) fn direct(file: Box<dyn StorageBackend>) -> Arc<Self> {
        Arc::new(Self { file, deferred: RwLock::new(None) })
    }

    /// Writes the deferred writes to the file. From then on, all writes go directly to it.
    ///
    /// The first block, which refers to all others, is written last. So a crash in between leaves either the old or the new
    /// state.
    pub(super) fn release(&self) -> io::Result<()> {
        let mut deferred = self.deferred.write();
        let Some(Overlay { len, visible, blocks }) = deferred.as_ref() else { return Ok(()) };
        let old = self.file.len()?;
        if *visible < old {
            self.file.set_len(*visible)?;
        }
        if *len != old || *visible < old {
            self.file.set_len(*len)?;
        }
        for first in [false, true] {
            for (number, block) in blocks.iter().filter(|(number, _)| (**number == 0) == first) {
                let start = number * BLOCK as u64;
                let end = (len.saturating_sub(start)).min(BLOCK as u64);
                self.file.write(start, block.get(..usize::try_from(end).unwrap_or(BLOCK)).unwrap_or_default())?;
            }
            self.file.sync_data()?;
        }
        *deferred = None;
        Ok(())
    }

    /// The file's length in bytes, including deferred writes.
    pub(super) fn len(&self) -> io::Result<u64> {
        match &*self.deferred.read() {
            Some(deferred) => Ok(deferred.len),
            None => self.file.len(),
        }
    }
}

impl Overlay {
    fn read(&self, file: &dyn StorageBackend, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(out.len() as u64);
        if end > self.len {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "read beyond the end of the file"));
        }
        let from_file_length =
            usize::try_from(self.visible.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        let (from_file, beyond) = out.split_at_mut(from_file_length);
        if !from_file.is_empty() {
            file.read(offset, from_file)?;
        }
        beyond.fill(0);
        for (number, block) in self.blocks.range(offset / BLOCK as u64..end.div_ceil(BLOCK as u64)) {
            let (at, from, length) = overlap(*number, offset, out.len());
            if let (Some(out), Some(block)) = (out.get_mut(at..at + length), block.get(from..from + length)) {
                out.copy_from_slice(block);
            }
        }
        Ok(())
    }

    fn write(&mut self, file: &dyn StorageBackend, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset.saturating_add(data.len() as u64);
        self.len = self.len.max(end);
        for number in offset / BLOCK as u64..end.div_ceil(BLOCK as u64) {
            let block = match self.blocks.entry(number) {
                std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::btree_map::Entry::Vacant(vacant) => {
                    let mut block = vec![0; BLOCK].into_boxed_slice();
                    let start = number * BLOCK as u64;
                    let from_file_length =
                        usize::try_from(self.visible.saturating_sub(start)).unwrap_or(BLOCK).min(BLOCK);
                    if let Some(from_file_length) =
                        block.get_mut(..from_file_length).filter(|from_file_length| !from_file_length.is_empty())
                    {
                        file.read(start, from_file_length)?;
                    }
                    vacant.insert(block)
                }
            };
            let (at, from, length) = overlap(number, offset, data.len());
            if let (Some(block), Some(data)) = (block.get_mut(from..from + length), data.get(at..at + length)) {
                block.copy_from_slice(data);
            }
        }
        Ok(())
    }

    fn set_len(&mut self, len: u64) {
        self.len = len;
        self.visible = self.visible.min(len);
        let kept = len.div_ceil(BLOCK as u64);
        self.blocks.split_off(&kept);
        let in_last = usize::try_from(len % BLOCK as u64).unwrap_or(0);
        if let Some(block) = self.blocks.get_mut(&(len / BLOCK as u64)) {
            block.iter_mut().skip(in_last).for_each(|byte| *byte = 0);
        }
    }
}

/// The overlap of block `number` with `length` bytes from `offset`: its start in the bytes, its start in the block, and its length.
fn overlap(number: u64, offset: u64, length: usize) -> (usize, usize, usize) {
    let start = number * BLOCK as u64;
    let from = usize::try_from(offset.saturating_sub(start)).unwrap_or(BLOCK).min(BLOCK);
    let at = usize::try_from(start.saturating_sub(offset)).unwrap_or(length).min(length);
    (at, from, (BLOCK - from).min(length - at))
}

/// A [`DeferredFile`] as the database's backend.
#[derive(Debug)]
pub(super) struct DeferredBackend(pub(super) Arc<DeferredFile>);

impl StorageBackend for DeferredBackend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match &*self.0.deferred.read() {
            Some(deferred) => deferred.read(&*self.0.file, offset, out),
            None => self.0.file.read(offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match &mut *self.0.deferred.write() {
            Some(deferred) => {
                deferred.set_len(len);
                Ok(())
            }
            None => self.0.file.set_len(len),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        match &*self.0.deferred.read() {
            Some(_) => Ok(()),
            None => self.0.file.sync_data(),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut deferred = self.0.deferred.write();
        match &mut *deferred {
            Some(deferred) => deferred.write(&*self.0.file, offset, data),
            None => self.0.file.write(offset, data),
        }
    }

    fn close(&self) -> io::Result<()> {
        self.0.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use redb::backends::InMemoryBackend;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        Resize(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let write =
            (0u64..20_000, proptest::collection::vec(any::<u8>(), 1..9000)).prop_map(|(at, d)| Step::Write(at, d));
        proptest::collection::vec(prop_oneof![3 => write, 1 => (0u64..30_000).prop_map(Step::Resize)], 0..12)
    }

    fn bytes(backend: &impl StorageBackend) -> Vec<u8> {
        let mut all = vec![0; usize::try_from(backend.len().unwrap()).unwrap()];
        backend.read(0, &mut all).unwrap();
        all
    }

    proptest! {
        /// The database sees its writes at once; the file changes only on release.
        #[test]
        fn deferred_writes_reach_the_file_only_on_release(start in proptest::collection::vec(any::<u8>(), 0..12_000), steps in steps()) {
            #[derive(Debug, Clone)]
            struct Shared(Arc<InMemoryBackend>);
            impl StorageBackend for Shared {
                fn len(&self) -> io::Result<u64> { self.0.len() }
                fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> { self.0.read(offset, out) }
                fn set_len(&self, len: u64) -> io::Result<()> { self.0.set_len(len) }
                fn sync_data(&self) -> io::Result<()> { Ok(()) }
                fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> { self.0.write(offset, data) }
            }
            let file = Shared(Arc::new(InMemoryBackend::new()));
            file.set_len(start.len() as u64).unwrap();
            file.write(0, &start).unwrap();
            let backend = DeferredBackend(DeferredFile::deferring(Box::new(file.clone())).unwrap());
            let mut oracle = start.clone();
            for step in steps {
                match step {
                    Step::Write(at, data) => {
                        let end = usize::try_from(at).unwrap() + data.len();
                        if oracle.len() < end {
                            oracle.resize(end, 0);
                            backend.set_len(end as u64).unwrap();
                        }
                        oracle[end - data.len()..end].copy_from_slice(&data);
                        backend.write(at, &data).unwrap();
                    }
                    Step::Resize(len) => {
                        oracle.resize(usize::try_from(len).unwrap(), 0);
                        backend.set_len(len).unwrap();
                    }
                }
                prop_assert!(bytes(&backend) == oracle);
                prop_assert!(bytes(&file) == start);
            }
            backend.0.release().unwrap();
            prop_assert!(bytes(&file) == oracle);
            prop_assert!(bytes(&backend) == oracle);
        }
    }
}
