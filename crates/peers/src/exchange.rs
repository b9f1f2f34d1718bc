//! The states of one process in datagrams, for programs that exchange them: the name of the process, then messages of the peers
//! protocol. Every datagram has the definitions of its tables, so losing one loses no other.
//!
//! ```text
//! length of the name 1 | name | definition, update, update, … definition, …
//! ```

use std::sync::Arc;

use crate::Malformed;
use crate::message::{Kind, Message};
use crate::table::{Definition, MAX_NAME};
use crate::update::{Update, Value};

/// The longest name of a process, in bytes.
pub const MAX_PROCESS: usize = 200;

/// Collects states of one process into datagrams of bounded length.
#[derive(Debug)]
pub struct Writer {
    room: usize,
    head: Vec<u8>,
    body: Vec<u8>,
    current: Option<Arc<Definition>>,
    full: Vec<Vec<u8>>,
}

impl Writer {
    /// Datagrams of at most `room` bytes about `process`.
    pub fn new(process: &str, room: usize) -> Self {
        let end = (0..=process.len().min(MAX_PROCESS)).rev().find(|at| process.is_char_boundary(*at)).unwrap_or(0);
        let name = process.get(..end).unwrap_or_default().as_bytes();
        let mut head = vec![u8::try_from(name.len()).unwrap_or(0)];
        head.extend_from_slice(name);
        Self { room, head, body: Vec::new(), current: None, full: Vec::new() }
    }

    /// Adds a state. Returns false if it alone is too long for a datagram.
    pub fn push(&mut self, table: &Arc<Definition>, key: &[u8], values: &[Value]) -> bool {
        let mut update = Vec::with_capacity(64);
        Update { number: None, expire: None, key, values }.encode(table, &mut update);
        let mut definition = Vec::new();
        if self.current.as_ref() != Some(table) {
            table.encode(&mut definition);
        }
        if self.head.len() + self.body.len() + definition.len() + update.len() > self.room && !self.body.is_empty() {
            self.finish();
            definition.clear();
            table.encode(&mut definition);
        }
        if self.head.len() + definition.len() + update.len() > self.room {
            return false;
        }
        self.body.extend_from_slice(&definition);
        self.body.extend_from_slice(&update);
        self.current = Some(Arc::clone(table));
        true
    }

    /// The datagrams: at least one, which may say only that the process is there.
    pub fn take(mut self) -> Vec<Vec<u8>> {
        if self.full.is_empty() || !self.body.is_empty() {
            self.finish();
        }
        self.full
    }

    fn finish(&mut self) {
        self.full.push([&self.head[..], &self.body].concat());
        self.body.clear();
        self.current = None;
    }
}

/// The name of the process that a datagram is about.
///
/// # Errors
/// When it is malformed.
pub fn process(bytes: &[u8]) -> Result<&str, Malformed> {
    split(bytes).map(|(name, _)| name)
}

fn split(bytes: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let (length, rest) = bytes.split_first().ok_or(Malformed("a datagram of counters is empty"))?;
    let (name, rest) =
        rest.split_at_checked(usize::from(*length)).ok_or(Malformed("the name of a process is cut short"))?;
    let name = std::str::from_utf8(name).map_err(|_| Malformed("the name of a process is not UTF-8"))?;
    if name.len() > MAX_PROCESS {
        return Err(Malformed("the name of a process is too long"));
    }
    Ok((name, rest))
}

/// Reads a datagram: reports its states to `state` and returns the name of the process.
///
/// # Errors
/// When it is malformed. States before the error were reported.
pub fn read(bytes: &[u8], mut state: impl FnMut(&Arc<Definition>, &[u8], &[Value])) -> Result<&str, Malformed> {
    let (name, mut rest) = split(bytes)?;
    let mut current: Option<Arc<Definition>> = None;
    let mut values = Vec::new();
    while !rest.is_empty() {
        let (message, length) = Message::read(rest)?.ok_or(Malformed("a datagram of counters is cut short"))?;
        rest = rest.get(length..).unwrap_or_default();
        match message.kind {
            Kind::Define => {
                current = Definition::read(message.payload)?.filter(|table| table.name.len() <= MAX_NAME).map(Arc::new);
            }
            Kind::Update { numbered, timed } => {
                let Some(table) = &current else { continue };
                let update = Update::read((numbered, timed), message.payload, table, &mut values)?;
                state(table, update.key, update.values);
            }
            // Of a later build.
            _ => {}
        }
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Cell, CellKind, GPC0, KeyKind};
    use proptest::prelude::*;

    fn table(name: &str) -> Arc<Definition> {
        let cells = vec![Cell { bit: GPC0, element: 0, kind: CellKind::Number }];
        Arc::new(Definition { id: 1, name: name.to_owned(), key: KeyKind::Integer, expire: 1000, cells })
    }

    #[test]
    fn a_process_without_states_is_named() {
        let datagrams = Writer::new("lb1", 100).take();
        assert_eq!(datagrams.len(), 1);
        assert_eq!(read(&datagrams[0], |_, _, _| panic!("a state")), Ok("lb1"));
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let long = "ä".repeat(MAX_PROCESS);
        for process in [long.clone(), format!("x{long}")] {
            let datagrams = Writer::new(&process, 1000).take();
            let name = read(&datagrams[0], |_, _, _| panic!("a state")).unwrap();
            assert!(process.starts_with(name) && (MAX_PROCESS - 1..=MAX_PROCESS).contains(&name.len()), "{name}");
        }
    }

    proptest! {
        #[test]
        fn states_are_read_as_written(states in prop::collection::vec((0usize..3, any::<u32>(), any::<u64>()), 1..100), room in 60usize..300) {
            let tables = ["/a", "/b", "/c"].map(table);
            let mut writer = Writer::new("lb1", room);
            for (table, key, value) in &states {
                prop_assert!(writer.push(&tables[*table], &key.to_be_bytes(), &[Value::Number(*value)]));
            }
            let mut seen = Vec::new();
            for datagram in writer.take() {
                prop_assert!(datagram.len() <= room);
                let name = read(&datagram, |table, key, values| {
                    let [Value::Number(value)] = values else { panic!("{values:?}") };
                    let at = tables.iter().position(|known| known == table).unwrap();
                    seen.push((at, u32::from_be_bytes(key.try_into().unwrap()), *value));
                });
                prop_assert_eq!(name, Ok("lb1"));
                prop_assert_eq!(process(&datagram), name);
            }
            prop_assert_eq!(seen, states);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = read(&bytes, |_, _, _| {});
        }
    }
}
