//! Any bytes can be parsed: nothing panics, every field is a slice of the line, and the program has only allowed characters.
#![no_main]

use banmesh_syslog::{PROGRAM_MAX, flatten, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let line = parse(input);
    let range = input.as_ptr_range();
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
    for field in fields.into_iter().flatten().filter(|field| !field.is_empty()) {
        let field = field.as_ptr_range();
        assert!(range.start <= field.start && field.end <= range.end);
    }
    if let Some(program) = line.program {
        assert!(!program.is_empty() && program.len() <= PROGRAM_MAX);
        assert!(program.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_./+%()".contains(byte)));
        assert!(line.priority.is_some() || line.timestamp.is_some());
    }
    let mut flat = input.to_vec();
    flatten(&mut flat);
    assert!(!flat.iter().any(|byte| matches!(byte, b'\n' | b'\r' | 0)));
    let _ = parse(&flat);
});
