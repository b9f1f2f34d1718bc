//! One entry of a table: its key and the values of its cells.

use banmesh_spop::varint;

use crate::message::{Kind, Message};
use crate::reader::Reader;
use crate::table::{CellKind, Definition, KeyKind};
use crate::{Malformed, Rate};

/// The value of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(u64),
    /// A rate.
    Rate(Rate),
    /// A server, by the number that the sender gave its name in this session; 0: none.
    Server(u64),
}

impl Value {
    /// What a new entry has.
    pub fn zero(kind: CellKind) -> Self {
        match kind {
            CellKind::Number => Self::Number(0),
            CellKind::Rate(_) => Self::Rate(Rate::default()),
            CellKind::Server => Self::Server(0),
        }
    }
}

/// An entry as one side sends it. The values are in the order of the cells of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update<'a> {
    /// The number of the update; `None`: one more than the last.
    pub number: Option<u32>,
    /// The remaining life of the entry in milliseconds; `None`: that of the table.
    pub expire: Option<u32>,
    /// The key.
    pub key: &'a [u8],
    /// The values.
    pub values: &'a [Value],
}

impl<'a> Update<'a> {
    /// Reads the payload of an update of `table`. The values are put into `values`, which is emptied before.
    ///
    /// # Errors
    /// When it ends too early, or has a number of more than 64 bits. Further bytes are ignored, as in HAProxy.
    pub fn read(
        (numbered, timed): (bool, bool),
        payload: &'a [u8],
        table: &Definition,
        values: &'a mut Vec<Value>,
    ) -> Result<Self, Malformed> {
        let mut reader = Reader(payload);
        let number = if numbered { Some(reader.fixed()?) } else { None };
        let expire = if timed { Some(reader.fixed()?) } else { None };
        let key = match table.key {
            KeyKind::Integer | KeyKind::Ipv4 => reader.bytes(4)?,
            KeyKind::Ipv6 => reader.bytes(16)?,
            KeyKind::Binary(length) => reader.bytes(length)?,
            KeyKind::Text(most) => {
                let length = reader.length()?;
                let text = reader.bytes(length)?;
                text.get(..most).unwrap_or(text)
            }
        };
        values.clear();
        for cell in &table.cells {
            values.push(match cell.kind {
                CellKind::Number => Value::Number(reader.number()?),
                CellKind::Rate(_) => {
                    Value::Rate(Rate { age: reader.number()?, curr: reader.number()?, prev: reader.number()? })
                }
                CellKind::Server => Value::Server(server(&mut reader)?),
            });
        }
        Ok(Self { number, expire, key, values })
    }

    /// Appends the update of an entry of `table` as a message to `output`. Values that are missing or of another kind are sent as zero,
    /// and a server's name is never sent.
    pub fn encode(&self, table: &Definition, output: &mut Vec<u8>) {
        let mut payload = Vec::with_capacity(64);
        payload.extend(self.number.iter().flat_map(|number| number.to_be_bytes()));
        payload.extend(self.expire.iter().flat_map(|expire| expire.to_be_bytes()));
        match table.key {
            KeyKind::Text(most) => {
                let text = self.key.get(..most).unwrap_or(self.key);
                varint::encode(text.len() as u64, &mut payload);
                payload.extend_from_slice(text);
            }
            KeyKind::Integer | KeyKind::Ipv4 => fixed(self.key, 4, &mut payload),
            KeyKind::Ipv6 => fixed(self.key, 16, &mut payload),
            KeyKind::Binary(length) => fixed(self.key, length, &mut payload),
        }
        for (at, cell) in table.cells.iter().enumerate() {
            match (cell.kind, self.values.get(at)) {
                (CellKind::Number, Some(Value::Number(number))) => varint::encode(*number, &mut payload),
                (CellKind::Rate(_), Some(Value::Rate(Rate { age, curr, prev }))) => {
                    for number in [age, curr, prev] {
                        varint::encode(*number, &mut payload);
                    }
                }
                (CellKind::Rate(_), _) => payload.extend_from_slice(&[0, 0, 0]),
                _ => payload.push(0),
            }
        }
        let kind = Kind::Update { numbered: self.number.is_some(), timed: self.expire.is_some() };
        Message { kind, payload: &payload }.encode(output);
    }
}

/// Appends exactly `length` bytes of `key`, with zeros at the end if it is shorter.
fn fixed(key: &[u8], length: usize, payload: &mut Vec<u8>) {
    let end = payload.len() + length;
    payload.extend_from_slice(key.get(..length).unwrap_or(key));
    payload.resize(end, 0);
}

/// Reads a server: the length of what follows (0: no server), its number, and its name at its first use.
fn server(reader: &mut Reader<'_>) -> Result<u64, Malformed> {
    let length = reader.length()?;
    if length == 0 {
        return Ok(0);
    }
    Reader(reader.bytes(length)?).number()
}
