//! The definition of a stick-table: its name, the type of its keys, and its columns.

use banmesh_spop::varint;

use crate::Malformed;
use crate::message::{Kind, Message};
use crate::reader::Reader;

/// The longest name of a table, in bytes.
pub const MAX_NAME: usize = 256;
/// The longest key, in bytes.
pub const MAX_KEY: usize = 4096;
/// The most elements of an array, as in HAProxy.
pub const MAX_ELEMENTS: u64 = 100;

/// The bit of `server_id`.
pub const SERVER_ID: u8 = 0;
/// The bit of `gpt0`.
pub const GPT0: u8 = 1;
/// The bit of `gpc0`.
pub const GPC0: u8 = 2;
/// The bit of `conn_cur`.
pub const CONN_CUR: u8 = 6;
/// The bit of `server_key`.
pub const SERVER_KEY: u8 = 19;
/// The bit of the array `gpt`.
pub const GPT: u8 = 22;
/// The bit of the array `gpc`.
pub const GPC: u8 = 23;
/// The bits of the arrays `gpt`, `gpc` and `gpc_rate`.
const ARRAYS: std::ops::RangeInclusive<u8> = 22..=24;
/// The bits whose columns are rates, without arrays.
const RATES: [u8; 11] = [3, 5, 8, 10, 12, 14, 16, 18, 21, 26, 24];
/// The highest bit that this build knows. What follows cannot be read, because its length is unknown.
const LAST: u8 = 26;
/// The names of the columns by their bits, as HAProxy's configuration writes them.
const NAMES: [&str; 27] = [
    "server_id",
    "gpt0",
    "gpc0",
    "gpc0_rate",
    "conn_cnt",
    "conn_rate",
    "conn_cur",
    "sess_cnt",
    "sess_rate",
    "http_req_cnt",
    "http_req_rate",
    "http_err_cnt",
    "http_err_rate",
    "bytes_in_cnt",
    "bytes_in_rate",
    "bytes_out_cnt",
    "bytes_out_rate",
    "gpc1",
    "gpc1_rate",
    "server_key",
    "http_fail_cnt",
    "http_fail_rate",
    "gpt",
    "gpc",
    "gpc_rate",
    "glitch_cnt",
    "glitch_rate",
];

/// The type of the keys of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// A number of 32 bits.
    Integer,
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address. IPv4 clients are mapped addresses.
    Ipv6,
    /// A text of at most this many bytes.
    Text(usize),
    /// Exactly this many bytes.
    Binary(usize),
}

/// What a cell of an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CellKind {
    /// A number.
    Number,
    /// A rate with this period in milliseconds.
    Rate(u64),
    /// The name of a server.
    Server,
}

/// A cell of every entry: a column, or one element of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cell {
    /// The column, by its bit in the definition.
    pub bit: u8,
    /// The index in an array; 0 otherwise.
    pub element: u8,
    /// What it holds.
    pub kind: CellKind,
}

impl Cell {
    /// The name in HAProxy's configuration, such as `http_req_rate` or `gpc(2)`.
    pub fn name(&self) -> String {
        let name = NAMES.get(usize::from(self.bit)).copied().unwrap_or("unknown");
        if ARRAYS.contains(&self.bit) { format!("{name}({})", self.element) } else { name.to_owned() }
    }

    /// Whether values of several processes add up. Tags and servers do not.
    pub const fn adds_up(&self) -> bool {
        !matches!(self.bit, SERVER_ID | GPT0 | SERVER_KEY | GPT)
    }
}

/// The definition of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// The sender's number of the table.
    pub id: u64,
    /// The name. A table of a peers section begins with `/`.
    pub name: String,
    /// The type of the keys.
    pub key: KeyKind,
    /// The life of an entry in milliseconds; 0: none.
    pub expire: u64,
    /// The cells of every entry, in the order of their bits.
    pub cells: Vec<Cell>,
}

impl Definition {
    /// Reads the payload of a definition. `Ok(None)`: the table has a type of keys that this build does not know.
    ///
    /// # Errors
    /// When it is malformed, or exceeds a limit.
    pub fn read(payload: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut reader = Reader(payload);
        let id = reader.number()?;
        let length = reader.length()?;
        if length > MAX_NAME {
            return Err(Malformed("the name of a table is too long"));
        }
        let name =
            std::str::from_utf8(reader.bytes(length)?).map_err(|_| Malformed("the name of a table is not UTF-8"))?;
        let (kind, length) = (reader.number()?, reader.length()?);
        if length > MAX_KEY {
            return Err(Malformed("the keys of a table are too long"));
        }
        let key = match (kind, length) {
            (2, 4) => KeyKind::Integer,
            (4, 4) => KeyKind::Ipv4,
            (5, 16) => KeyKind::Ipv6,
            // HAProxy counts the zero byte behind the text.
            (6, 1..) => KeyKind::Text(length - 1),
            (7, _) => KeyKind::Binary(length),
            _ => return Ok(None),
        };
        let (bits, expire) = (reader.number()?, reader.number()?);
        let mut cells = Vec::new();
        for bit in (0..=LAST).filter(|bit| bits >> bit & 1 == 1) {
            let is_rate = RATES.contains(&bit);
            let mut elements = 1;
            if ARRAYS.contains(&bit) || is_rate {
                if reader.number()? != u64::from(bit) {
                    return Err(Malformed("the details of a column belong to another one"));
                }
                if ARRAYS.contains(&bit) {
                    elements = reader.number()?;
                }
            }
            if elements > MAX_ELEMENTS {
                return Err(Malformed("an array has more than 100 elements"));
            }
            let kind = match bit {
                SERVER_KEY => CellKind::Server,
                _ if is_rate => CellKind::Rate(reader.number()?),
                _ => CellKind::Number,
            };
            let element = |element| Cell { bit, element: u8::try_from(element).unwrap_or(u8::MAX), kind };
            cells.extend((0..elements).map(element));
        }
        Ok(Some(Self { id, name: name.to_owned(), key, expire, cells }))
    }

    /// Appends the definition as a message to `output`.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let mut payload = Vec::with_capacity(64);
        varint::encode(self.id, &mut payload);
        varint::encode(self.name.len() as u64, &mut payload);
        payload.extend_from_slice(self.name.as_bytes());
        let (kind, length) = match self.key {
            KeyKind::Integer => (2, 4),
            KeyKind::Ipv4 => (4, 4),
            KeyKind::Ipv6 => (5, 16),
            KeyKind::Text(length) => (6, length as u64 + 1),
            KeyKind::Binary(length) => (7, length as u64),
        };
        varint::encode(kind, &mut payload);
        varint::encode(length, &mut payload);
        varint::encode(self.cells.iter().fold(0, |bits, cell| bits | 1 << cell.bit), &mut payload);
        varint::encode(self.expire, &mut payload);
        for cell in self.cells.iter().filter(|cell| cell.element == 0) {
            let is_array = ARRAYS.contains(&cell.bit);
            let period = if let CellKind::Rate(period) = cell.kind { Some(period) } else { None };
            if is_array || period.is_some() {
                varint::encode(u64::from(cell.bit), &mut payload);
            }
            if is_array {
                varint::encode(self.cells.iter().filter(|other| other.bit == cell.bit).count() as u64, &mut payload);
            }
            if let Some(period) = period {
                varint::encode(period, &mut payload);
            }
        }
        Message { kind: Kind::Define, payload: &payload }.encode(output);
    }

    /// The position of the cell of a column, of its first element in an array.
    pub fn position(&self, bit: u8) -> Option<usize> {
        self.cells.iter().position(|cell| cell.bit == bit)
    }

    /// The name without the `/` of tables of a peers section.
    pub fn short_name(&self) -> &str {
        self.name.strip_prefix('/').unwrap_or(&self.name)
    }
}
