//! Properties of the parser and the deframer that hold for every input.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use banmesh_syslog::deframe::MAX_LINE;
use banmesh_syslog::{Deframer, PROGRAM_MAX, flatten, parse};
use proptest::collection::vec;
use proptest::prelude::*;

/// Text that resembles syslog.
fn nearly_syslog() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        "<[0-9]{0,4}>?",
        Just("1 ".to_owned()),
        Just("Nov 22 20:00:00 ".to_owned()),
        Just("2026-11-22T20:00:00.5+01:00 ".to_owned()),
        Just("Sun 2026-11-22 20:00:00 UTC ".to_owned()),
        Just("29: *Mar  1 18:48:50.483 UTC: ".to_owned()),
        Just("host ".to_owned()),
        Just("dovecot: ".to_owned()),
        Just("rsyslogd: ".to_owned()),
        Just("sshd[12]: ".to_owned()),
        Just("[a b=\"c\\\"\"]".to_owned()),
        Just("- ".to_owned()),
        Just("\u{feff}".to_owned()),
        Just("message repeated 3 times: [".to_owned()),
        Just("]".to_owned()),
        "[ -~\\n\\r\\x00]{0,12}",
    ];
    vec(piece, 0..12).prop_map(|pieces| pieces.concat().into_bytes())
}

fn lies_within(part: &[u8], whole: &[u8]) -> bool {
    let (part, whole) = (part.as_ptr_range(), whole.as_ptr_range());
    part.is_empty() || (whole.start <= part.start && part.end <= whole.end)
}

fn check_parse(input: &[u8]) -> Result<(), TestCaseError> {
    let line = parse(input);
    let fields = [
        line.timestamp,
        line.hostname,
        line.program,
        line.pid,
        line.message_id,
        line.structured_data,
        Some(line.message),
        line.repeat().and_then(|repeat| repeat.message),
    ];
    for field in fields.into_iter().flatten() {
        prop_assert!(lies_within(field, input));
    }
    for field in fields[..6].iter().flatten() {
        prop_assert!(!field.is_empty());
        prop_assert!(
            lies_within(line.message, input) && (line.message.is_empty() || field.as_ptr() < line.message.as_ptr())
        );
    }
    if let Some(program) = line.program {
        prop_assert!(program.len() <= PROGRAM_MAX);
        prop_assert!(program.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_./+%()".contains(byte)));
        prop_assert!(line.priority.is_some() || line.timestamp.is_some());
    }
    Ok(())
}

/// The lines of a stream that arrives in pieces of these sizes (repeated as needed), and the number of lines that were too long.
fn deframe(stream: &[u8], pieces: &[usize], max_line: usize) -> (Vec<Vec<u8>>, u64) {
    let (mut deframer, mut lines, mut rest) = (Deframer::new(max_line), Vec::new(), stream);
    for piece in pieces.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let space = deframer.space();
        let count = rest.len().min(space.len()).min((*piece).max(1));
        space[..count].copy_from_slice(&rest[..count]);
        deframer.filled(count);
        rest = &rest[count..];
        while let Some(line) = deframer.frame() {
            lines.push(line.to_vec());
        }
        // There is always room for more, within the bound.
        let room = deframer.space().len();
        assert!(room > 0 && room <= (max_line + 10).max(16 * 1024));
    }
    lines.extend(deframer.finish().map(<[u8]>::to_vec));
    (lines, deframer.take_oversized())
}

/// A stream of frames of both kinds, line ends and garbage.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let frame = prop_oneof![
        "[ -~]{0,40}".prop_map(|text| format!("{} {text}", text.len()).into_bytes()),
        "<1>[ -~\\n]{0,40}".prop_map(|text| format!("{} {text}", text.len()).into_bytes()),
        "[0-9]{1,3} <[0-9]{1,3}>[ -~\\n]{0,40}".prop_map(String::into_bytes),
        "<[0-9]{1,3}>[ -~]{0,40}(\\n|\\r\\n|\\x00|\\r\\n\\x00)".prop_map(String::into_bytes),
        "[0-9]{1,12} ?".prop_map(String::into_bytes),
        vec(any::<u8>(), 0..40),
    ];
    vec(frame, 0..20).prop_map(|frames| frames.concat())
}

proptest! {
    #[test]
    fn any_bytes_can_be_parsed(input in vec(any::<u8>(), 0..300)) {
        check_parse(&input)?;
    }

    #[test]
    fn fields_of_syslog_like_text_are_slices_of_the_line(input in nearly_syslog()) {
        check_parse(&input)?;
    }

    #[test]
    fn the_message_cannot_change_the_header(message in "[ -;=-~][ -~]{0,60}") {
        let line = format!("<22>Nov 22 20:00:00 mail dovecot[7]: {message}");
        let read = parse(line.as_bytes());
        prop_assert_eq!((read.hostname, read.program, read.pid), (Some(&b"mail"[..]), Some(&b"dovecot"[..]), Some(&b"7"[..])));
        prop_assert_eq!(read.message, message.trim_start_matches(' ').as_bytes());
    }

    #[test]
    fn rfc_5424_round_trips(
        host in "[a-z][a-z0-9.-]{0,20}", program in "[a-z][a-z0-9/_-]{0,40}", pid in "[0-9]{1,7}",
        value in "[ -~]{0,20}", message in "[!-~][ -~]{0,60}",
    ) {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace(']', "\\]");
        let data = format!("[id@1 name=\"{value}\"]");
        let line = format!("<13>1 2026-11-22T20:00:00Z {host} {program} {pid} - {data} {message}");
        let read = parse(line.as_bytes());
        prop_assert_eq!(read.hostname, Some(host.as_bytes()));
        prop_assert_eq!(read.program, Some(program.as_bytes()));
        prop_assert_eq!(read.pid, Some(pid.as_bytes()));
        prop_assert_eq!(read.structured_data, Some(data.as_bytes()));
        prop_assert_eq!(read.message, message.as_bytes());
    }

    #[test]
    fn the_result_does_not_depend_on_how_a_stream_is_split(stream in stream(), pieces in vec(1usize..50, 1..20), max_line in 1usize..60) {
        prop_assert_eq!(deframe(&stream, &pieces, max_line), deframe(&stream, &[usize::MAX], max_line));
    }

    #[test]
    fn lines_contain_no_line_breaks_and_respect_the_limit(stream in stream(), max_line in 1usize..60) {
        for line in deframe(&stream, &[usize::MAX], max_line).0 {
            prop_assert!(!line.is_empty() && line.len() <= max_line);
            prop_assert!(!line.iter().any(|byte| matches!(byte, b'\n' | b'\r' | 0)));
        }
    }

    #[test]
    fn octet_counted_frames_round_trip(
        texts in vec(vec(any::<u8>(), 0..200), 0..20), pieces in vec(1usize..50, 1..20), line_ends: bool,
    ) {
        let lines: Vec<Vec<u8>> = texts.into_iter().map(|text| [b"<13>".as_slice(), &text].concat()).collect();
        let mut stream = Vec::new();
        for line in &lines {
            stream.extend_from_slice(format!("{} ", line.len()).as_bytes());
            stream.extend_from_slice(line);
            stream.extend_from_slice(if line_ends { b"\n" } else { b"" });
        }
        let sent: Vec<Vec<u8>> = lines.into_iter().map(one_line).filter(|line| !line.is_empty()).collect();
        prop_assert_eq!(deframe(&stream, &pieces, 1000), (sent, 0));
    }

    #[test]
    fn lines_with_line_ends_round_trip(lines in vec("<[0-9]{1,3}>[ -~]{0,80}", 0..20), pieces in vec(1usize..50, 1..20)) {
        let stream: Vec<u8> = lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect();
        let sent: Vec<Vec<u8>> = lines.into_iter().map(String::into_bytes).collect();
        prop_assert_eq!(deframe(&stream, &pieces, 1000), (sent, 0));
    }
}

/// The line that an octet-counted frame with this message yields.
fn one_line(mut message: Vec<u8>) -> Vec<u8> {
    let end = message.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r' | 0)).map_or(0, |last| last + 1);
    message.truncate(end);
    flatten(&mut message);
    message
}

#[test]
fn both_framings_can_be_mixed_in_one_stream() {
    let stream =
        b"<13>line\n11 <13>counted<13>again\r\n\n\x005 <13>x\n2026-11-22 no count\n1234567890 no count\n0 no count\n";
    let lines = deframe(stream, &[3], 100).0;
    let lines: Vec<_> = lines.iter().map(|line| str::from_utf8(line).unwrap()).collect();
    assert_eq!(
        lines,
        ["<13>line", "<13>counted", "<13>again", "<13>x", "2026-11-22 no count", "1234567890 no count", "0 no count"]
    );
}

/// The lines of a stream, whose pieces do not matter.
fn lines_of(stream: &[u8], max_line: usize) -> (Vec<String>, u64) {
    let (lines, oversized) = deframe(stream, &[usize::MAX], max_line);
    assert_eq!((lines.clone(), oversized), deframe(stream, &[1], max_line));
    (lines.into_iter().map(|line| String::from_utf8(line).unwrap()).collect(), oversized)
}

#[test]
fn the_stream_continues_after_a_frame_that_is_too_long() {
    let long = |length: usize| format!("{length} <1>{}", "x".repeat(length - 3));
    // The first frame of the connection, and a later one with line ends in it.
    let stream = [long(30), "7 <13>\n<a".to_owned(), "26 <1>xxx\n<1>forged\nxxxxxxxxx5 <13>b".to_owned()].concat();
    assert_eq!(lines_of(stream.as_bytes(), 20), (vec!["<13> <a".to_owned(), "<13>b".to_owned()], 2));
    // In a stream with line ends, the line is too long.
    let stream = format!("<13>a\n{}\n<13>b\n", long(500));
    assert_eq!(lines_of(stream.as_bytes(), 20), (vec!["<13>a".to_owned(), "<13>b".to_owned()], 1));
}

#[test]
fn a_number_at_the_beginning_of_a_line_hides_no_other_line() {
    let failures = "<38>sshd[1]: one\n<38>sshd[1]: two\n".repeat(100);
    for before in ["", "<13>first\n"] {
        for text in [
            "999999999 x",
            "999999999 <13>x",
            "60000 x",
            "300 text of a client",
            "65537 <13>longer than the limit",
            "1234567890 <13>ten digits",
        ] {
            let stream = format!("{before}{text}\n{failures}");
            let (lines, oversized) = lines_of(stream.as_bytes(), 65536);
            let wanted: Vec<&str> = stream.lines().collect();
            assert_eq!(
                (lines.iter().map(String::as_str).collect::<Vec<_>>(), oversized),
                (wanted, 0),
                "{before}{text}"
            );
        }
    }
    // A client that adds a priority to its number gains nothing once the sender has shown that it uses line ends.
    for text in ["60000 <13>x", "300 <13>x", "20 <13>x"] {
        let stream = format!("<13>first\n{text}\n{failures}");
        let (lines, oversized) = lines_of(stream.as_bytes(), 65536);
        assert_eq!((lines.len(), oversized), (202, 0), "{text}");
    }
}

#[test]
fn a_number_without_a_priority_after_it_is_text_unless_the_stream_counts() {
    for before in ["", "<13>first\n"] {
        let stream = format!("{before}5 hello world\n<13>next\n");
        assert_eq!(lines_of(stream.as_bytes(), 100).0.join("\n") + "\n", stream);
    }
}

#[test]
fn a_count_has_at_most_nine_digits() {
    let read = |stream: &[u8]| {
        let mut deframer = Deframer::new(usize::MAX);
        deframer.space()[..stream.len()].copy_from_slice(stream);
        deframer.filled(stream.len());
        deframer.frame().map(<[u8]>::to_vec)
    };
    let text = b"1234567890 <13>x\n";
    assert_eq!(read(text), Some(text.trim_ascii_end().to_vec()));
    // Waits for the rest of the frame.
    assert_eq!(read(b"123456789 <13>x\n"), None);
}

#[test]
fn a_counted_stream_skips_frames_of_up_to_16_mebibytes() {
    let read = |length: usize| lines_of(format!("5 <13>a{length} <13>b\n<13>c\n").as_bytes(), 100).0;
    for length in [10_000_000, 16 << 20] {
        assert_eq!(read(length), ["<13>a"], "{length}");
    }
    let text = (16 << 20) + 1;
    assert_eq!(read(text), ["<13>a".to_owned(), format!("{text} <13>b"), "<13>c".to_owned()]);
}

#[test]
fn a_stream_is_mid_line_until_its_frame_is_complete() {
    /// Whether the stream is in the middle of a line after each of these pieces.
    fn mid_line(max_line: usize, pieces: &[&[u8]]) -> Vec<bool> {
        let mut deframer = Deframer::new(max_line);
        let after = |piece: &&[u8]| {
            deframer.space()[..piece.len()].copy_from_slice(piece);
            deframer.filled(piece.len());
            while deframer.frame().is_some() {}
            deframer.is_mid_line()
        };
        pieces.iter().map(after).collect()
    }
    assert!(!Deframer::default().is_mid_line());
    assert_eq!(mid_line(100, &[b"<1", b"3>a", b"\n", b"<13>b\n"]), [true, true, false, false]);
    // In the digits of a count, in its frame, and after it.
    assert_eq!(mid_line(100, &[b"6", b" <13>", b"ab", b"6 <13>cd"]), [true, true, false, false]);
    // In lines that are too long, of which nothing is kept.
    assert_eq!(mid_line(5, &[b"<13>abcdef", b"ghi", b"\n"]), [true, true, false]);
    assert_eq!(mid_line(5, &[b"5 <13>a", b"9 <13>", b"abcd", b"e"]), [false, true, true, false]);
}

#[test]
fn line_breaks_become_spaces_wherever_they_are() {
    let mut text = *b"\na\r\nb\0\nc\n";
    flatten(&mut text);
    assert_eq!(&text, b" a  b  c ");
}

#[test]
fn a_counted_stream_is_read_on_after_a_frame_without_priority() {
    let stream = b"5 <13>a11 hello world5 <13>b8 x <13>y\n<13>c\n5 <13>d";
    assert_eq!(lines_of(stream, 100).0, ["<13>a", "hello world", "<13>b", "8 x <13>y", "<13>c", "<13>d"]);
}

#[test]
fn a_line_of_exactly_the_limit_fits_with_any_line_end() {
    for end in ["\n", "\r\n", "\0"] {
        let stream = format!("<134567>9{end}<1345678>90{end}");
        assert_eq!(deframe(stream.as_bytes(), &[1], 9), (vec![b"<134567>9".to_vec()], 1), "{end:?}");
    }
}

#[test]
fn several_carriage_returns_count_alike_however_they_arrive() {
    let stream = b"z\0\0\0\x0b\0\x000\r\r\x000\r";
    assert_eq!(deframe(stream, &[1], 1), deframe(stream, &[usize::MAX], 1));
}

#[test]
fn a_last_line_that_is_too_long_is_dropped() {
    assert_eq!(deframe(b"rip=192.0.2.123", &[usize::MAX], 14), (vec![], 1));
    assert_eq!(deframe(b"rip=192.0.2.123", &[1], 15), (vec![b"rip=192.0.2.123".to_vec()], 0));
    assert_eq!(deframe(b"rip=192.0.2.123\r", &[1], 15), (vec![b"rip=192.0.2.123".to_vec()], 0));
    assert_eq!(deframe(b"a\rb", &[1], 15), (vec![b"a b".to_vec()], 0), "line breaks inside it become spaces, too");
}

#[test]
fn any_limit_and_any_count_are_accepted() {
    let mut deframer = Deframer::new(usize::MAX);
    deframer.space()[..4].copy_from_slice(b"<1>x");
    deframer.filled(4);
    assert_eq!(deframer.frame(), None);
    deframer.filled(usize::MAX);
    assert_eq!(deframer.frame(), Some(&b"<1>x"[..]));
}

/// The lines of `stream`, which arrives in pieces as long as the buffer has room, and the longest piece that was asked for.
fn read_in_pieces(deframer: &mut Deframer, mut stream: &[u8]) -> (Vec<Vec<u8>>, usize) {
    let (mut lines, mut longest) = (Vec::new(), 0);
    while !stream.is_empty() {
        let space = deframer.space();
        longest = longest.max(space.len());
        let count = space.len().min(stream.len());
        space[..count].copy_from_slice(&stream[..count]);
        stream = &stream[count..];
        deframer.filled(count);
        while let Some(line) = deframer.frame() {
            lines.push(line.to_vec());
        }
    }
    (lines, longest)
}

#[test]
fn the_buffer_starts_small_and_grows_for_a_long_line_only() {
    assert_eq!(MAX_LINE, 65_536);
    let mut deframer = Deframer::new(MAX_LINE);
    assert_eq!(deframer.max_line(), MAX_LINE);
    let short = "<13>short\n".repeat(10_000);
    let (lines, longest) = read_in_pieces(&mut deframer, short.as_bytes());
    assert_eq!((lines.len(), longest), (10_000, 16_384));
    let long = format!("<13>{}\n<13>next\n", "x".repeat(MAX_LINE - 4));
    let (lines, longest) = read_in_pieces(&mut deframer, long.as_bytes());
    assert_eq!(lines.iter().map(Vec::len).collect::<Vec<_>>(), [MAX_LINE, 8]);
    assert!(longest > 16_384 && longest <= MAX_LINE + 10, "{longest}");
}
