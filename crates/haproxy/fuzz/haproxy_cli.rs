//! Answers of HAProxy's runtime API: any bytes are split without a panic, in bounded memory, and independently of how they arrive.
#![no_main]

use banmesh_haproxy::runtime::{Answers, Info, MapName, Part, Reply, entry};
use libfuzzer_sys::fuzz_target;

/// The answers in `bytes`, which arrive in chunks of `step` bytes. `None` when a line is too long.
fn answers(bytes: &[u8], step: usize) -> Option<Vec<Vec<String>>> {
    let mut answers = Answers::default();
    let (mut found, mut lines) = (Vec::new(), Vec::new());
    for chunk in bytes.chunks(step) {
        answers.feed(chunk);
        while let Some(part) = answers.next_part().ok()? {
            match part {
                Part::Line(line) => lines.push(line.into_owned()),
                Part::End => found.push(std::mem::take(&mut lines)),
            }
        }
    }
    Some(found)
}

fuzz_target!(|data: &[u8]| {
    let Some((&step, bytes)) = data.split_first() else { return };
    let found = answers(bytes, usize::from(step).max(1));
    if bytes.len() < 64 * 1024 {
        assert_eq!(found, answers(bytes, bytes.len().max(1)));
    }
    let map: MapName = "/etc/haproxy/banmesh.map".parse().expect("a name");
    let mut info = Info::default();
    for lines in found.unwrap_or_default() {
        let _ = Reply::read(&lines);
        for line in &lines {
            info.read(line);
            let _ = (map.count(line), info.scans_maps());
            if let Some((target, value)) = entry(line) {
                let commands = map.add(None, &[(target, value)]);
                assert!(commands.len() == 1 && commands[0].contains(&format!("{target} {value}\n")));
            }
        }
    }
});
