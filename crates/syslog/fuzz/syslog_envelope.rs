//! Any lines can be taken out of any envelope: nothing panics, memory is bounded, and a header comes only from the beginning of a line.
#![no_main]

use banmesh_syslog::envelope::{Content, Joiner, LineFormat, Opened};
use banmesh_syslog::{PROGRAM_MAX, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&[format, max_line], rest)) = input.split_first_chunk::<2>() else { return };
    let format = LineFormat::ALL[usize::from(format) % LineFormat::ALL.len()];
    let max_line = usize::from(max_line) + 1;
    let mut joiner = Joiner::new(max_line);
    for line in rest.split(|byte| *byte == b'\n') {
        // A source and a line, so that several sources interleave.
        let (source, line) = line.split_at(line.len().min(1));
        if let Opened::Envelope(header, envelope) = format.open_line(line, |_| true) {
            assert!(envelope.text.len() <= 2 * line.len());
            assert!(envelope.program.iter().all(|program| !program.is_empty() && program.len() <= PROGRAM_MAX));
            assert!(header == parse(line) || header == parse(b""));
            if let Content::Line(line) = joiner.add(source, envelope) {
                assert!(line.text.len() <= max_line);
            }
        }
        assert!(joiner.held() <= 2 * (4 * max_line + 64 * 512) + 2 * line.len());
    }
    // Behind a header, only a format that is named is opened.
    let line = [b"<13>Nov 22 20:00:00 host program: ", rest].concat();
    assert_eq!(LineFormat::Auto.open_line(&line, |_| true), Opened::Plain);
    assert_eq!(format.open_line(&line, |_| false), Opened::Plain);
});
