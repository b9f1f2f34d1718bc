//! Any stream yields the same lines however it is split; the lines respect the limit, and memory is bounded.
#![no_main]

use banmesh_syslog::Deframer;
use libfuzzer_sys::fuzz_target;

fn deframe(stream: &[u8], mut piece: impl FnMut() -> usize, max_line: usize) -> (Vec<Vec<u8>>, u64) {
    let (mut deframer, mut lines, mut rest) = (Deframer::new(max_line), Vec::new(), stream);
    while !rest.is_empty() {
        let space = deframer.space();
        assert!(!space.is_empty() && space.len() <= max_line + 10);
        let count = piece().clamp(1, space.len().min(rest.len()));
        space[..count].copy_from_slice(&rest[..count]);
        deframer.filled(count);
        rest = &rest[count..];
        while let Some(line) = deframer.frame() {
            lines.push(line.to_vec());
        }
    }
    lines.extend(deframer.finish().map(<[u8]>::to_vec));
    (lines, deframer.take_oversized())
}

fuzz_target!(|input: &[u8]| {
    let Some((&[max_line, cuts, ref sizes @ ..], stream)) = input.split_first_chunk::<6>() else { return };
    let max_line = usize::from(max_line) + 1;
    let mut turn = usize::from(cuts);
    let cut = || {
        turn += 1;
        usize::from(sizes[turn % sizes.len()])
    };
    let (lines, oversized) = deframe(stream, cut, max_line);
    for line in &lines {
        assert!(!line.is_empty() && line.len() <= max_line);
        assert!(!line.iter().any(|byte| matches!(byte, b'\n' | b'\r' | 0)));
    }
    assert_eq!((lines, oversized), deframe(stream, || usize::MAX, max_line));
});
