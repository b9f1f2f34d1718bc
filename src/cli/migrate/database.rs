//! Reads the bans of fail2ban's SQLite database.
//!
//! A program reads the file, not a library: SQLite's own code knows its locks and its journal, and fail2ban may be writing at this moment.
//! Python with its module is on every host that runs fail2ban, because fail2ban is written in it. The program `sqlite3` does as well.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;

const QUERY: &str = "select ip, jail, timeofban, bantime from bips";
const PYTHON: &str = "import sqlite3, sys, urllib.parse\n\
    db = sqlite3.connect('file:' + urllib.parse.quote(sys.argv[1]) + '?mode=ro', uri=True, timeout=10)\n\
    for row in db.execute(sys.argv[2]): print('|'.join(str(field) for field in row))\n";
/// More bans than this are not taken over.
const MAX_ROWS: usize = 2_000_000;

/// Why the database was not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum DatabaseError {
    /// There is no program that can read it.
    #[error(
        "cannot read {path}: neither python3 nor sqlite3 can be started; install one of them, or copy the file to a host that has it"
    )]
    NoProgram {
        /// The database.
        path: String,
    },
    /// The programs failed.
    #[error("cannot read {path}: {reason}")]
    Failed {
        /// The database.
        path: String,
        /// What the programs said.
        reason: String,
    },
}

/// A ban of fail2ban that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OldBan {
    /// What is banned.
    pub target: Target,
    /// Its end; `None` means never.
    pub until: Option<UnixMillis>,
    /// The jails that banned it.
    pub jails: Vec<String>,
}

/// The bans in force at `now`, by target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OldBans {
    /// The bans.
    pub bans: Vec<OldBan>,
    /// Rows whose ban has ended.
    pub ended: usize,
    /// Rows that name no address.
    pub invalid: Vec<String>,
}

/// Reads the database at `path`.
pub(super) fn read(path: &Path, now: UnixMillis) -> Result<OldBans, DatabaseError> {
    let named = path.display().to_string();
    if let Err(error) = std::fs::File::open(path) {
        return Err(DatabaseError::Failed { path: named, reason: error.to_string() });
    }
    let mut python = Command::new("python3");
    python.args(["-I", "-c", PYTHON]).arg(path).arg(QUERY);
    let mut sqlite = Command::new("sqlite3");
    sqlite.arg("-readonly").args(["-separator", "|"]).arg(path).arg(QUERY);
    let mut reasons = Vec::new();
    for mut command in [python, sqlite] {
        match command.stdin(Stdio::null()).output() {
            Ok(done) if done.status.success() => return Ok(bans(&String::from_utf8_lossy(&done.stdout), now)),
            Ok(done) => {
                let text = String::from_utf8_lossy(&done.stderr);
                reasons.push(text.lines().last().unwrap_or("it failed without a message").trim().to_owned());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(match reasons.is_empty() {
        true => DatabaseError::NoProgram { path: named },
        false => DatabaseError::Failed { path: named, reason: reasons.join("; ") },
    })
}

/// Reads rows of `ip|jail|timeofban|bantime`.
fn bans(rows: &str, now: UnixMillis) -> OldBans {
    let mut all: BTreeMap<Target, OldBan> = BTreeMap::new();
    let mut found = OldBans::default();
    for row in rows.lines().take(MAX_ROWS) {
        let mut fields = row.splitn(4, '|');
        let mut field = || fields.next().unwrap_or_default().trim().to_owned();
        let (ip, jail, begin, length) = (field(), field(), field(), field());
        let times = begin.parse::<i64>().ok().zip(length.parse::<i64>().ok());
        let Some((target, (begin, length))) = ip.parse::<Target>().ok().zip(times) else {
            found.invalid.push(row.chars().take(100).collect());
            continue;
        };
        let until = (length >= 0).then(|| {
            let seconds = u64::try_from(begin.saturating_add(length)).unwrap_or_default();
            UnixMillis(seconds.saturating_mul(1000))
        });
        if until.is_some_and(|until| until <= now) {
            found.ended += 1;
            continue;
        }
        let ban = all.entry(target).or_insert_with(|| OldBan { target, until, jails: Vec::new() });
        ban.until = ban.until.zip(until).map(|(one, other)| one.max(other));
        ban.jails.push(jail);
    }
    found.bans = all.into_values().collect();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_end_of_all_jails_counts_and_ended_bans_are_left_out() {
        let now = UnixMillis(1_800_000_000_000);
        let rows = "192.0.2.1|sshd|1799999000|1600\n192.0.2.1|dovecot|1799999900|3600\n192.0.2.2|sshd|1799990000|600\n\
                    2001:db8::7|sshd|1700000000|-1\n999.1.1.1|sshd|1800000000|600\nnonsense\n";
        let found = bans(rows, now);
        assert_eq!((found.bans.len(), found.ended, found.invalid.len()), (2, 1, 2));
        let ban = |at: usize| {
            (
                found.bans[at].target.to_string(),
                found.bans[at].until.map(|until| until.0 / 1000),
                found.bans[at].jails.len(),
            )
        };
        let mut all = [ban(0), ban(1)];
        all.sort();
        assert_eq!(all, [("192.0.2.1".to_owned(), Some(1_800_003_500), 2), ("2001:db8::7".to_owned(), None, 1)]);
    }
}
