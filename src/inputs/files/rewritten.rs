//! Finds the place in a rewritten file up to which its lines were read.
//!
//! `sed -i` and editors replace a file by a new one with almost the same lines. Its old lines must not count again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::followed::TAIL;

/// How far from its end a file is searched, in bytes.
const REACH: u64 = 64 * 1024 * 1024;

/// How much is searched at once.
const STEP: u64 = 1024 * 1024;

/// A shorter line may be in a new file by chance.
const SHORTEST_LINE: usize = 12;

/// A file of this size that was deleted, and replaced by one at least half as long, was rewritten. A service does not write that much
/// before the new file is noticed.
const LARGE: u64 = 64 * 1024;

/// The offset in `file` after the last line that was read of its predecessor, and the bytes before that offset. `None` if the file is new:
/// if it has no such line, or only near its beginning.
///
/// `offset` and `tail` say how far the predecessor was read, and what was there. If the predecessor was `deleted`, and not renamed as
/// by a rotation, the end of a long file is the place even if all its lines have changed.
pub(super) fn resume(file: &File, offset: u64, tail: &[u8], deleted: bool) -> io::Result<Option<(u64, Vec<u8>)>> {
    let length = file.metadata()?.len();
    let Some(end) = memchr::memrchr(b'\n', tail) else { return Ok(None) };
    // The first piece may be half a line.
    let whole = tail.get(..end).unwrap_or_default().split(|byte| *byte == b'\n').skip(1);
    let lines: Vec<&[u8]> = whole.filter(|line| line.len() >= SHORTEST_LINE).collect();
    let first = tail.get(..end).unwrap_or_default();
    let lines =
        if lines.is_empty() { vec![first.rsplit(|byte| *byte == b'\n').next().unwrap_or_default()] } else { lines };
    for line in lines.iter().rev().filter(|line| line.len() >= SHORTEST_LINE) {
        if let Some(at) = find_last(file, length, line)?.filter(|at| at.saturating_mul(2) >= offset) {
            return Ok(Some((at, before(file, at)?)));
        }
    }
    if deleted && offset >= LARGE && length.saturating_mul(2) >= offset {
        return Ok(Some((length, before(file, length)?)));
    }
    Ok(None)
}

/// The offset after the last occurrence of `line`, which begins and ends with a line end.
fn find_last(file: &File, length: u64, line: &[u8]) -> io::Result<Option<u64>> {
    let wanted = [line, b"\n"].concat();
    let finder = memchr::memmem::FinderRev::new(&wanted);
    let overlap = wanted.len() as u64 + 1;
    let (mut end, floor) = (length, length.saturating_sub(REACH));
    let mut buffer = Vec::new();
    while end > floor {
        let start = end.saturating_sub(STEP).max(floor);
        let size = usize::try_from((end + overlap).min(length) - start).unwrap_or_default();
        buffer.resize(size, 0);
        let count = file.read_at(&mut buffer, start)?;
        let mut piece = buffer.get(..count).unwrap_or_default();
        while let Some(at) = finder.rfind(piece) {
            let begins = if at == 0 { start == 0 } else { piece.get(at - 1) == Some(&b'\n') };
            // A tail may begin within a line, so its only line may have a beginning that is not known.
            if begins || line.len() >= TAIL - 1 {
                return Ok(Some(start + (at + wanted.len()) as u64));
            }
            piece = piece.get(..at + wanted.len() - 1).unwrap_or_default();
        }
        end = start;
    }
    Ok(None)
}

/// Up to [`TAIL`] bytes before `offset`.
fn before(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let start = offset.saturating_sub(TAIL as u64);
    let mut tail = vec![0; usize::try_from(offset - start).unwrap_or_default()];
    file.read_exact_at(&mut tail, start)?;
    Ok(tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn lines(range: std::ops::Range<usize>) -> String {
        range.map(|number| format!("Oct 12 03:00:00 host sshd[1]: line {number}\n")).collect()
    }

    fn resume_in(new: &str, old: &str, deleted: bool) -> Option<u64> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(new.as_bytes()).unwrap();
        let tail = &old.as_bytes()[old.len().saturating_sub(TAIL)..];
        let found = resume(&file, old.len() as u64, tail, deleted).unwrap();
        found.map(|(offset, tail)| {
            assert!(new.as_bytes()[..usize::try_from(offset).unwrap()].ends_with(&tail));
            offset
        })
    }

    #[test]
    fn reading_continues_after_the_last_line_that_is_known() {
        let old = lines(0..100);
        for (new, rest) in [
            (old.clone(), ""),
            (format!("{old}new\n"), "new\n"),
            (lines(3..100) + "new\n", "new\n"),
            // The last line was removed.
            (lines(0..99) + "new\n", "new\n"),
            (lines(0..97).replace("line 5", "changed") + &lines(98..99) + "new\nhalf", "new\nhalf"),
        ] {
            let offset = resume_in(&new, &old, false).unwrap();
            assert_eq!(&new[usize::try_from(offset).unwrap()..], rest);
        }
    }

    #[test]
    fn a_new_file_is_read_from_its_beginning() {
        let old = lines(0..100);
        for new in ["", "one\n", &lines(200..300), &lines(99..100), &format!("x{}", lines(99..100))] {
            assert_eq!(resume_in(new, &old, true), None, "{new}");
        }
        assert_eq!(resume_in(&lines(0..100), "a\nb\n", true), None);
    }

    #[test]
    fn a_long_file_whose_lines_all_changed_is_not_read_again_if_the_old_one_was_deleted() {
        let old = lines(0..3000);
        let new = old.replace("host", "xxxx");
        assert_eq!(resume_in(&new, &old, true), Some(new.len() as u64));
        assert_eq!(resume_in(&new, &old, false), None);
    }

    #[test]
    fn long_lines_and_long_files_are_searched() {
        let old = format!("{}{}\n", lines(0..50_000), "y".repeat(1000));
        let new = format!("{old}after\n");
        assert_eq!(resume_in(&new, &old, false), Some(old.len() as u64));
        let old = lines(0..50_000);
        let new = old.clone() + &"z".repeat(1_500_000);
        assert_eq!(resume_in(&new, &old, false), Some(old.len() as u64));
    }
}
