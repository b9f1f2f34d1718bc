//! The state of one connection from HAProxy. The caller reads and writes, and says what time it is.
//!
//! ```text
//! HAProxy                                 this side
//!   hello ─────────────────────────────►
//!         ◄───────────────────────────── 200, resync request
//!   definitions, updates, finished ────►
//!         ◄───────────────────────────── confirm, acknowledgements
//!   resync request ────────────────────►
//!         ◄───────────────────────────── finished
//!   updates ───────────────────────────►
//!         ◄───────────────────────────── definitions, updates
//!   acknowledgements ──────────────────►
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::Malformed;
use crate::hello::{self, Hello};
use crate::message::{self, Kind, Message};
use crate::reader::Reader;
use crate::table::Definition;
use crate::update::{Update, Value};

/// The most updates that HAProxy has not acknowledged. With more, HAProxy's requests wait for tens of milliseconds.
pub const WINDOW: u32 = 1000;
/// The most tables of a session.
pub const MAX_TABLES: usize = 128;
/// The longest time until the hello is complete.
const HELLO: Duration = Duration::from_secs(5);
/// A heartbeat is sent after this much silence. HAProxy closes after 5 s.
const HEARTBEAT: Duration = Duration::from_millis(2500);
/// HAProxy sends a heartbeat every 3 s, but none while it waits for the end of a lesson, for up to 5 s.
const SILENCE: Duration = Duration::from_secs(12);
/// `output` is not filled beyond this length while input is read, in bytes. Everything that is written then is small.
const MAX_OUTPUT: usize = 65_536;

/// Why a session must be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// HAProxy, or something else, sent invalid bytes.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// HAProxy considers what this side sent invalid.
    #[error("HAProxy refused a message of this side as invalid; report this as a bug, with the version of HAProxy")]
    Refused,
    /// No hello in time.
    #[error("no hello of the peers protocol arrived within 5 s")]
    NoHello,
    /// Nothing arrived for too long.
    #[error("HAProxy sent nothing for 12 s, not even a heartbeat")]
    Silent,
    /// Too many tables.
    #[error("the peers section has more than {MAX_TABLES} tables; use fewer")]
    Tables,
}

/// What HAProxy said.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The session is open.
    Opened(&'a Hello),
    /// A table is known, or its definition has changed.
    Defined(&'a Definition),
    /// An entry has changed in HAProxy, or is taught.
    Updated {
        /// Its table.
        table: &'a Definition,
        /// The entry.
        update: Update<'a>,
    },
    /// HAProxy has sent everything that it has. `complete` is false if it is still being taught itself.
    Taught {
        /// Whether it has everything.
        complete: bool,
    },
}

/// The state of one connection.
#[derive(Debug)]
pub struct Session {
    hello: Option<Hello>,
    /// HAProxy's tables, by its numbers.
    tables: BTreeMap<u64, Table>,
    /// The number of HAProxy's current table.
    current: Option<u64>,
    /// The number of the table that this side defined last.
    defined: Option<u64>,
    /// Updates that HAProxy has not acknowledged.
    waiting: u32,
    values: Vec<Value>,
    began: Instant,
    received: Instant,
    written: Instant,
}

#[derive(Debug)]
struct Table {
    /// `None`: its keys have an unknown type, and its updates are skipped.
    definition: Option<Definition>,
    /// The number of the last update from HAProxy.
    last: u32,
    /// Whether updates were read that are not acknowledged.
    unacknowledged: bool,
    /// The number of the last update to HAProxy, and of the last that it acknowledged.
    sent: u32,
    acknowledged: u32,
}

impl Session {
    /// A connection that HAProxy opened at `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            hello: None,
            tables: BTreeMap::new(),
            current: None,
            defined: None,
            waiting: 0,
            values: Vec::new(),
            began: now,
            received: now,
            written: now,
        }
    }

    /// Reads complete messages from the front of `input`, reports them to `event` and appends what must be sent to `output`. Returns how
    /// many bytes were read. `input` must be able to hold [`message::MAX_PAYLOAD`] bytes and a frame.
    ///
    /// # Errors
    /// When the connection must be closed. `output` may hold a last message.
    pub fn receive(
        &mut self,
        input: &[u8],
        now: Instant,
        output: &mut Vec<u8>,
        event: &mut impl FnMut(Event<'_>),
    ) -> Result<usize, SessionError> {
        let mut consumed = 0;
        if self.hello.is_none() {
            let Some((hello, length)) = Hello::read(input)? else { return Ok(0) };
            consumed = length;
            output.extend_from_slice(hello::ACCEPTED);
            message::control(Kind::ResyncRequest, output);
            self.written = now;
            event(Event::Opened(&hello));
            self.hello = Some(hello);
        }
        let before = output.len();
        while output.len() - before < MAX_OUTPUT {
            let rest = input.get(consumed..).unwrap_or_default();
            let Some((message, length)) = Message::read(rest).inspect_err(|_| complain(output))? else { break };
            consumed += length;
            self.message(&message, output, event)?;
        }
        if consumed > 0 {
            self.received = now;
        }
        for (id, table) in &mut self.tables {
            if std::mem::take(&mut table.unacknowledged) {
                message::acknowledge(*id, table.last, output);
            }
        }
        if output.len() > before {
            self.written = now;
        }
        Ok(consumed)
    }

    fn message(
        &mut self,
        message: &Message<'_>,
        output: &mut Vec<u8>,
        event: &mut impl FnMut(Event<'_>),
    ) -> Result<(), SessionError> {
        match message.kind {
            // A finished resync that is not asked for would not count, so the answer follows the request. The entries go as updates.
            Kind::ResyncRequest => message::control(Kind::ResyncFinished, output),
            Kind::ResyncFinished | Kind::ResyncPartial => {
                message::control(Kind::ResyncConfirm, output);
                // HAProxy ignores acknowledgements before that.
                for table in self.tables.values_mut().filter(|table| table.last > 0) {
                    table.unacknowledged = true;
                }
                event(Event::Taught { complete: message.kind == Kind::ResyncFinished });
            }
            Kind::Define => {
                let read = Reader(message.payload).number().and_then(|id| Ok((id, Definition::read(message.payload)?)));
                let (id, definition) = read.inspect_err(|_| complain(output))?;
                if self.tables.len() >= MAX_TABLES && !self.tables.contains_key(&id) {
                    return Err(SessionError::Tables);
                }
                self.current = Some(id);
                let known = Table { definition: None, last: 0, unacknowledged: false, sent: 0, acknowledged: 0 };
                let table = self.tables.entry(id).or_insert(known);
                if table.definition != definition {
                    table.definition = definition;
                    table.definition.iter().for_each(|definition| event(Event::Defined(definition)));
                }
            }
            Kind::Switch => {
                self.current = Some(Reader(message.payload).number().inspect_err(|_| complain(output))?);
            }
            Kind::Update { numbered, timed } => {
                let Some(table) = self.current.and_then(|id| self.tables.get_mut(&id)) else { return Ok(()) };
                let Some(definition) = &table.definition else { return Ok(()) };
                let read = Update::read((numbered, timed), message.payload, definition, &mut self.values);
                let update = read.inspect_err(|_| complain(output))?;
                table.last = update.number.unwrap_or(table.last.wrapping_add(1));
                table.unacknowledged = true;
                event(Event::Updated { table: definition, update });
            }
            Kind::Ack => {
                let mut reader = Reader(message.payload);
                let (id, number) = (reader.number(), reader.fixed());
                let (Ok(id), Ok(number)) = (id, number) else {
                    complain(output);
                    return Err(Malformed("an acknowledgement is cut short").into());
                };
                if let Some(table) = self.tables.get_mut(&id) {
                    let newly = number.wrapping_sub(table.acknowledged);
                    // Anything else acknowledges what was never sent.
                    if newly <= table.sent.wrapping_sub(table.acknowledged) {
                        table.acknowledged = number;
                        self.waiting = self.waiting.saturating_sub(newly);
                    }
                }
            }
            Kind::ProtocolError | Kind::SizeError => return Err(SessionError::Refused),
            Kind::ResyncConfirm | Kind::Heartbeat | Kind::Unknown => {}
        }
        Ok(())
    }

    /// The hello; `None` until it has arrived.
    pub const fn hello(&self) -> Option<&Hello> {
        self.hello.as_ref()
    }

    /// The definition of the table with this name, without the `/` of tables of a peers section; `None` if HAProxy has not defined it.
    pub fn table(&self, short_name: &str) -> Option<&Definition> {
        self.tables
            .values()
            .filter_map(|table| table.definition.as_ref())
            .find(|table| table.short_name() == short_name)
    }

    /// The tables that HAProxy has defined.
    pub fn tables(&self) -> impl Iterator<Item = &Definition> {
        self.tables.values().filter_map(|table| table.definition.as_ref())
    }

    /// How many more updates may be sent before HAProxy acknowledges earlier ones.
    pub const fn room(&self) -> u32 {
        WINDOW.saturating_sub(self.waiting)
    }

    /// Appends an entry of HAProxy's table number `table` to `output`: its remaining life in milliseconds, its key, and its values in the
    /// order of the cells in HAProxy's definition. Returns whether the table is known. The caller respects [`Session::room`].
    pub fn push(
        &mut self,
        table: u64,
        expire: Option<u32>,
        key: &[u8],
        values: &[Value],
        now: Instant,
        output: &mut Vec<u8>,
    ) -> bool {
        let Some(state) = self.tables.get_mut(&table) else { return false };
        let Some(definition) = &state.definition else { return false };
        if self.defined != Some(table) {
            // With HAProxy's own columns, since HAProxy ignores a definition with another key.
            definition.encode(output);
            self.defined = Some(table);
        }
        state.sent = state.sent.wrapping_add(1);
        self.waiting = self.waiting.saturating_add(1);
        // Always with its number: HAProxy 3.4 acknowledges the others wrongly.
        Update { number: Some(state.sent), expire, key, values }.encode(definition, output);
        self.written = now;
        true
    }

    /// Appends a heartbeat to `output` if one is due. Call it when [`Session::next_wakeup`] has passed.
    ///
    /// # Errors
    /// When nothing arrived for too long.
    pub fn tick(&mut self, now: Instant, output: &mut Vec<u8>) -> Result<(), SessionError> {
        if self.hello.is_none() {
            return if now >= self.began + HELLO { Err(SessionError::NoHello) } else { Ok(()) };
        }
        if now >= self.received + SILENCE {
            return Err(SessionError::Silent);
        }
        if now >= self.written + HEARTBEAT {
            message::control(Kind::Heartbeat, output);
            self.written = now;
        }
        Ok(())
    }

    /// When [`Session::tick`] has something to do, if nothing arrives until then.
    pub fn next_wakeup(&self) -> Instant {
        if self.hello.is_none() { self.began + HELLO } else { (self.written + HEARTBEAT).min(self.received + SILENCE) }
    }
}

/// Tells HAProxy that what it sent is invalid.
fn complain(output: &mut Vec<u8>) {
    message::control(Kind::ProtocolError, output);
}

#[cfg(test)]
mod tests;
