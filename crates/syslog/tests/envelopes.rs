//! Properties of envelopes that hold for every input.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use banmesh_syslog::envelope::{Content, Envelope, Joiner, LineFormat, Opened, Part};
use banmesh_syslog::{PROGRAM_MAX, parse};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// Text that resembles envelopes.
fn nearly_an_envelope() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just("<30>Nov 22 20:00:00 host mail[7]: ".to_owned()),
        Just("<30>1 2026-11-22T20:00:00Z host agent - - - ".to_owned()),
        Just("Nov 22 20:00:00 mail sshd[7]: ".to_owned()),
        Just("2026-11-22T20:00:00.5Z ".to_owned()),
        Just("stdout ".to_owned()),
        Just("stderr P ".to_owned()),
        Just("F ".to_owned()),
        Just(r#"{"log":"#.to_owned()),
        Just(r#"{"message":"a","program":"#.to_owned()),
        Just(r#""stream":"stdout","time":"2026-11-22T20:00:00Z""#.to_owned()),
        Just(r#""partial_message":true,"partial_id":"x""#.to_owned()),
        "\"[ -~]{0,8}\"",
        "[,:{}\\[\\]]",
        "[ -~]{0,12}",
        vec(any::<char>(), 0..4).prop_map(String::from_iter),
    ];
    vec(piece, 0..8).prop_map(|pieces| pieces.concat().into_bytes())
}

fn any_line() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![nearly_an_envelope(), vec(any::<u8>(), 0..200)]
}

fn empty() -> Envelope {
    Envelope { source: Vec::new(), part: Part::Last, written: None, program: None, text: Vec::new() }
}

fn part() -> impl Strategy<Value = (u8, Envelope)> {
    let parts = select(vec![Part::Last, Part::End, Part::More, Part::More, Part::Middle]);
    (any::<u8>(), parts, vec(any::<u8>(), 0..80)).prop_map(|(source, part, text)| {
        (source, Envelope { source: Vec::new(), part, written: None, program: None, text })
    })
}

proptest! {
    #[test]
    fn any_line_can_be_opened(line in any_line(), format in select(LineFormat::ALL.to_vec())) {
        match format.open_line(&line, |_| true) {
            Opened::Plain => {}
            Opened::Nested(header) => prop_assert_eq!(header, parse(&line)),
            Opened::Envelope(header, envelope) => {
                prop_assert!(header == parse(&line) || header == parse(b""));
                // Invalid UTF-8 is not JSON, so a text never grows.
                prop_assert!(envelope.text.len() <= line.len());
                if let Some(program) = envelope.program {
                    prop_assert!(!program.is_empty() && program.len() <= PROGRAM_MAX);
                    prop_assert!(!program.iter().any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control()));
                }
            }
        }
        let _ = format.open(&line);
    }

    #[test]
    fn nothing_behind_a_header_is_opened_unless_its_format_is_named(text in any_line()) {
        let line = [b"<30>Nov 22 20:00:00 host app[7]: ", text.as_slice()].concat();
        prop_assert_eq!(LineFormat::Auto.open_line(&line, |_| true), Opened::Plain);
        for format in LineFormat::ALL {
            prop_assert_eq!(format.open_line(&line, |_| false), Opened::Plain);
        }
    }

    #[test]
    fn the_memory_of_a_joiner_is_bounded(parts in vec(part(), 0..400), max_line in 1usize..100) {
        let mut joiner = Joiner::new(max_line);
        for (source, envelope) in parts {
            if let Content::Line(line) = joiner.add(&[source], envelope) {
                prop_assert!(line.text.len() <= max_line);
            }
            // A vector has at most twice the room that it needs.
            prop_assert!(joiner.held() <= 2 * 4 * max_line + 64 * 8 + 80, "{}", joiner.held());
        }
    }

    #[test]
    fn parts_of_several_sources_are_joined(lines in vec((0u8..4, "[ -~]{1,60}"), 1..20), cut in 1usize..20) {
        // The parts of the lines of all sources, in turn.
        let mut queues: Vec<Vec<(u8, Envelope)>> = vec![Vec::new(); 4];
        for (source, text) in &lines {
            let chunks: Vec<&[u8]> = text.as_bytes().chunks(cut).collect();
            for (at, chunk) in chunks.iter().enumerate() {
                let part = if at + 1 == chunks.len() { Part::Last } else { Part::More };
                let text = chunk.to_vec();
                let envelope = Envelope { source: Vec::new(), part, written: None, program: None, text };
                queues[usize::from(*source)].push((*source, envelope));
            }
        }
        let (mut joiner, mut joined) = (Joiner::new(60), Vec::new());
        let longest = queues.iter().map(Vec::len).max().unwrap();
        for turn in 0..longest {
            for queue in &queues {
                let Some((source, envelope)) = queue.get(turn).cloned() else { continue };
                if let Content::Line(line) = joiner.add(&[source], envelope) {
                    joined.push((source, String::from_utf8(line.text).unwrap()));
                }
            }
        }
        joined.sort_by_key(|(source, _)| *source);
        let mut wanted = lines;
        wanted.sort_by_key(|(source, _)| *source);
        prop_assert_eq!(joined, wanted);
        prop_assert_eq!(joiner.held(), 0);
    }
}

#[test]
fn the_rest_of_a_line_that_made_way_is_not_taken_for_a_line() {
    let part = |part, text: &str| Envelope {
        source: Vec::new(),
        part,
        written: None,
        program: None,
        text: text.as_bytes().to_vec(),
    };
    let mut joiner = Joiner::new(10);
    for source in 0..6 {
        assert_eq!(joiner.add(&[source], part(Part::More, "0123456789")), Content::Partial);
    }
    // Four lines of the greatest length fit. The first ones made way, and no others.
    assert_eq!(joiner.add(&[0], part(Part::Last, "Nov 22 h x: y")), Content::Oversized);
    assert_eq!(joiner.add(&[1], part(Part::Last, "")), Content::Oversized);
    assert!(matches!(joiner.add(&[2], part(Part::Last, "")), Content::Line(line) if line.text == b"0123456789"));
    assert!(matches!(joiner.add(&[5], part(Part::Last, "")), Content::Line(line) if line.text == b"0123456789"));
    assert_eq!(joiner.add(&[9], part(Part::End, "x")), Content::Incomplete);
}

#[test]
fn the_limit_on_a_line_counts_all_of_its_parts() {
    let part = |part, text: &str| Envelope { part, text: text.as_bytes().to_vec(), ..empty() };
    for (last, fits) in [("56789", true), ("56789x", false)] {
        for begun in [vec!["01234", last], vec!["01234"]] {
            let mut joiner = Joiner::new(10);
            for text in &begun {
                assert_eq!(joiner.add(b"", part(Part::More, text)), Content::Partial);
            }
            let joined = joiner.add(b"", part(Part::Last, if begun.len() == 1 { last } else { "" }));
            assert_eq!(matches!(joined, Content::Line(line) if line.text == b"0123456789"), fits, "{begun:?} {last}");
        }
    }
}

#[test]
fn a_line_that_does_not_end_holds_no_more_than_the_limit() {
    let mut joiner = Joiner::new(100);
    for _ in 0..1000 {
        let more = Envelope { part: Part::More, text: vec![b'x'; 30], ..empty() };
        assert_eq!(joiner.add(b"", more), Content::Partial);
        assert!(joiner.held() <= 2 * 100 + 16, "{}", joiner.held());
    }
    assert_eq!(joiner.add(b"", Envelope { text: b"end".to_vec(), ..empty() }), Content::Oversized);
}

#[test]
fn a_cleared_joiner_holds_nothing() {
    let mut joiner = Joiner::new(10);
    let first = Envelope { part: Part::More, text: b"01234".to_vec(), ..empty() };
    assert_eq!(joiner.add(b"source", first), Content::Partial);
    assert!(joiner.held() >= "source".len() + "01234".len());
    joiner.clear();
    assert_eq!(joiner.held(), 0);
    let end = Envelope { part: Part::End, text: b"5".to_vec(), ..empty() };
    assert_eq!(joiner.add(b"source", end), Content::Incomplete, "its beginning was dropped");
}
