//! The counters of the last day and week on disk, so that the charts survive a restart. Nothing depends on them: a missing or damaged file
//! means charts that begin now.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Range, Rings, Totals};
use crate::private;
use banmesh_types::time::UnixMillis;

/// The file in `node.data_dir`.
pub const FILE_NAME: &str = "activity.json";
/// A longer file is not ours. A full one has 60 KiB.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    rings: Vec<SavedRing>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedRing {
    range: String,
    /// When the last step ended, in milliseconds since the epoch.
    until: u64,
    /// Offences, bans, unbans, queries of HAProxy and of others, refused queries, lines, dropped.
    steps: Vec<[u64; 8]>,
}

/// The rings that are worth keeping, as text. The last hour is over after most restarts.
pub fn to_text(rings: &Rings) -> serde_json::Result<String> {
    let kept = rings.rings.iter().filter(|ring| ring.range != Range::Hour);
    let saved = kept.filter_map(|ring| {
        let until = ring.last.map(|(_, at)| at).or(ring.resumed)?.0;
        let steps = ring.steps.iter().map(|step| numbers(*step)).collect();
        Some(SavedRing { range: ring.range.as_str().to_owned(), until, steps })
    });
    serde_json::to_string(&Saved { rings: saved.collect() })
}

/// Puts what `text` holds into `rings`, which have no samples yet.
pub fn restore(rings: &mut Rings, text: &str) {
    let Ok(saved) = serde_json::from_str::<Saved>(text) else { return };
    for ring in &mut rings.rings {
        let Some(saved) = saved.rings.iter().find(|saved| saved.range == ring.range.as_str()) else { continue };
        let surplus = saved.steps.len().saturating_sub(ring.range.steps());
        ring.steps = saved.steps.iter().skip(surplus).map(|step| totals(*step)).collect();
        ring.resumed = Some(UnixMillis(saved.until));
    }
}

/// Reads the file; empty if there is none, or if it is not ours.
pub fn read(path: &Path) -> String {
    match fs::metadata(path) {
        Ok(found) if found.is_file() && found.len() <= MAX_BYTES => fs::read_to_string(path).unwrap_or_default(),
        _ => String::new(),
    }
}

/// Replaces the file.
///
/// # Errors
/// When the disk refuses it. The old file is then still there.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    private::create(&new)?.write_all(text.as_bytes())?;
    fs::rename(&new, path)
}

const fn numbers(step: Totals) -> [u64; 8] {
    let Totals { offences, bans, unbans, haproxy, verdicts, refused, lines, dropped } = step;
    [offences, bans, unbans, haproxy, verdicts, refused, lines, dropped]
}

const fn totals([offences, bans, unbans, haproxy, verdicts, refused, lines, dropped]: [u64; 8]) -> Totals {
    Totals { offences, bans, unbans, haproxy, verdicts, refused, lines, dropped }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(n: u64) -> UnixMillis {
        UnixMillis(1_800_000_000_000 + n * 1000)
    }

    #[test]
    fn day_and_week_survive_a_restart_and_its_pause_is_empty() {
        let mut rings = Rings::default();
        for n in 0..=60 {
            rings.sample(Totals { bans: n, lines: n * 2, ..Totals::default() }, second(n * 300));
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        write(&path, &to_text(&rings).unwrap()).unwrap();

        let mut later = Rings::default();
        restore(&mut later, &read(&path));
        // Three steps of a day later. The counters of the new process begin at zero.
        later.sample(Totals::default(), second(63 * 300));
        later.sample(Totals { bans: 5, ..Totals::default() }, second(64 * 300));
        let day = later.rings.iter().find(|ring| ring.range == Range::Day).unwrap().view();
        assert_eq!(day.bans, [vec![1; 60], vec![0, 0, 0], vec![5]].concat());
        assert_eq!((day.lines[0], day.lines.len()), (2, 64));
    }

    #[test]
    fn a_damaged_file_means_empty_charts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        for text in ["", "{", "{\"rings\": 1}", "{\"rings\": [{\"range\": \"24h\", \"until\": 1, \"steps\": [[1]]}]}"] {
            fs::write(&path, text).unwrap();
            let mut rings = Rings::default();
            restore(&mut rings, &read(&path));
            assert!(rings.rings.iter().all(|ring| ring.steps.is_empty()), "{text}");
        }
        let long = format!(
            "{{\"rings\":[{{\"range\":\"24h\",\"until\":1,\"steps\":[{}]}}]}}",
            vec!["[0,0,0,0,0,0,0,0]"; 9999].join(",")
        );
        let mut rings = Rings::default();
        restore(&mut rings, &long);
        assert_eq!(rings.rings.iter().map(|ring| ring.steps.len()).max(), Some(288));
        assert_eq!(read(&directory.path().join("none")), "");
    }
}
