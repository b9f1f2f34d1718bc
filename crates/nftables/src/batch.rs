//! Requests to nf_tables: transactions, and questions outside of them.

use banmesh_types::target::Target;

use crate::ruleset::SetName;
use crate::wire::{ACK, APPEND, CREATE, DUMP, INET, NFTABLES, Open, Writer, kind};

/// The flags of a table that belongs to the socket that made it. Other processes cannot change it, and `nft flush ruleset` skips it.
pub const OWNER: u32 = 2;
/// With [`OWNER`]: the table stays when the socket is closed, and the next process can take it over (Linux 6.9 and newer).
pub const PERSIST: u32 = 4;
/// The most elements in one message: an attribute holds 64 KiB.
const ELEMENTS: usize = 1000;
/// The longest end that is written, a hundred years. The kernel refuses some longer ones.
const LONGEST_MS: u64 = 100 * 366 * 86_400_000;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BEGIN: u16 = 16;
const END: u16 = 17;

/// A target, and how long it stays in a set, in milliseconds. `None` means permanently.
pub type Element = (Target, Option<u64>);

/// A point at which a chain sees packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Every packet that arrives, also for containers and other hosts.
    Prerouting,
    /// Packets for this host.
    Input,
    /// Packets for other hosts and for containers.
    Forward,
}

impl Hook {
    /// All hooks.
    pub const ALL: [Self; 3] = [Self::Prerouting, Self::Input, Self::Forward];

    /// Its name in nftables, which is also that of the chain.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
        }
    }

    const fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
        }
    }
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// This table does not look at it further. Others still decide.
    Accept,
    /// It is dropped.
    Drop,
    /// If it is TCP, it is answered with a reset and dropped.
    Reset,
}

/// A transaction: the kernel applies it wholly or not at all.
///
/// The bytes must be sent with one `send`. The answers have the sequence numbers of the messages that they are about.
#[derive(Debug)]
pub struct Batch {
    writer: Writer,
    sequence: u32,
    sets: u32,
}

impl Batch {
    /// Begins a transaction, whose messages are numbered from `sequence`.
    pub fn new(sequence: u32) -> Self {
        let mut batch = Self { writer: Writer::default(), sequence, sets: 0 };
        let begin = batch.writer.message(BEGIN, 0, sequence, 0, NFTABLES >> 8);
        batch.writer.end_message(begin);
        batch
    }

    /// Makes a table, or takes it over.
    pub fn table(&mut self, table: &str, flags: u32) {
        let open = self.begin(kind::NEW_TABLE, CREATE);
        self.writer.text(1, table);
        if flags != 0 {
            self.writer.number(2, flags);
        }
        self.writer.end_message(open);
    }

    /// Removes a table with everything in it. It must exist.
    pub fn delete_table(&mut self, table: &str) {
        let open = self.begin(kind::DEL_TABLE, 0);
        self.writer.text(1, table);
        self.writer.end_message(open);
    }

    /// Makes a set, or leaves it as it is.
    pub fn set(&mut self, table: &str, set: &SetName) {
        self.sets += 1;
        let (key, length) = if set.ipv4 { (7, 4) } else { (8, 16) };
        let open = self.begin(kind::NEW_SET, CREATE);
        self.writer.text(1, table);
        self.writer.text(2, &set.to_string());
        if set.is_timed() {
            self.writer.number(3, 0x10);
        }
        self.writer.number(4, key);
        self.writer.number(5, length);
        self.writer.number(10, self.sets);
        self.writer.end_message(open);
    }

    /// Removes a set, which must exist and not be used by a rule at the end of the transaction.
    pub fn delete_set(&mut self, table: &str, set: &SetName) {
        let open = self.begin(kind::DEL_SET, 0);
        self.writer.text(1, table);
        self.writer.text(2, &set.to_string());
        self.writer.end_message(open);
    }

    /// Makes a chain that lets packets pass, or leaves it as it is.
    pub fn chain(&mut self, table: &str, hook: Hook, priority: i32) {
        let open = self.begin(kind::NEW_CHAIN, CREATE);
        self.writer.text(1, table);
        self.writer.text(3, hook.as_str());
        self.writer.nested(4, |nested| {
            nested.number(1, hook.number());
            nested.bytes(2, &priority.to_be_bytes());
        });
        self.writer.number(5, 1);
        self.writer.text(7, "filter");
        self.writer.end_message(open);
    }

    /// Removes a chain, whether it exists or not.
    pub fn remove_chain(&mut self, table: &str, hook: Hook, priority: i32) {
        self.chain(table, hook, priority);
        self.empty_chain(table, hook);
        let open = self.begin(kind::DEL_CHAIN, 0);
        self.writer.text(1, table);
        self.writer.text(3, hook.as_str());
        self.writer.end_message(open);
    }

    /// Removes all rules of a chain.
    pub fn empty_chain(&mut self, table: &str, hook: Hook) {
        let open = self.begin(kind::DEL_RULE, 0);
        self.writer.text(1, table);
        self.writer.text(2, hook.as_str());
        self.writer.end_message(open);
    }

    /// Adds a rule at the end of a chain: packets whose source, masked to the length of the sets, is in all of `sets` are counted and
    /// get `action`. The sets have one family and prefix length.
    pub fn rule(&mut self, table: &str, hook: Hook, sets: &[SetName], action: Action) {
        let Some(set) = sets.first() else { return };
        let open = self.begin(kind::NEW_RULE, CREATE | APPEND);
        self.writer.text(1, table);
        self.writer.text(2, hook.as_str());
        self.writer.nested(4, |list| {
            // The family, then the source address.
            expression(list, "meta", |meta| {
                meta.number(1, 1);
                meta.number(2, 15);
            });
            compare(list, &[if set.ipv4 { 2 } else { 10 }]);
            let (offset, length) = if set.ipv4 { (12, 4) } else { (8, 16) };
            expression(list, "payload", |payload| {
                payload.number(1, 1);
                payload.number(2, 1);
                payload.number(3, offset);
                payload.number(4, length);
            });
            if !set.is_of_hosts() {
                expression(list, "bitwise", |bitwise| {
                    bitwise.number(1, 1);
                    bitwise.number(2, 1);
                    bitwise.number(3, length);
                    bitwise.nested(4, |mask| mask.bytes(1, &set.mask()));
                    bitwise.nested(5, |zeros| zeros.bytes(1, &vec![0; set.mask().len()]));
                });
            }
            for set in sets {
                expression(list, "lookup", |lookup| {
                    lookup.text(1, &set.to_string());
                    lookup.number(2, 1);
                });
            }
            if action == Action::Reset {
                // Only TCP has resets.
                expression(list, "meta", |meta| {
                    meta.number(1, 1);
                    meta.number(2, 16);
                });
                compare(list, &[6]);
            }
            expression(list, "counter", |_| ());
            match action {
                Action::Reset => expression(list, "reject", |reject| reject.number(1, 1)),
                Action::Accept | Action::Drop => expression(list, "immediate", |immediate| {
                    immediate.number(1, 0);
                    let code = u32::from(action == Action::Accept);
                    immediate.nested(2, |data| data.nested(2, |verdict| verdict.number(1, code)));
                }),
            }
        });
        self.writer.end_message(open);
    }

    /// Adds elements to a set. They must not be in it, or have the same end.
    pub fn add(&mut self, table: &str, set: &SetName, elements: impl IntoIterator<Item = Element>) {
        self.elements(kind::NEW_ELEMENT, CREATE, table, set, elements);
    }

    /// Removes elements, which must be in the set and not have ended: otherwise the whole transaction fails. See [`Batch::put`].
    pub fn remove(&mut self, table: &str, set: &SetName, targets: impl IntoIterator<Item = Target>) {
        self.elements(kind::DEL_ELEMENT, 0, table, set, targets.into_iter().map(|target| (target, None)));
    }

    /// Gives elements an end, whether they are in the set or not and on every kernel. Adding an element again changes its end only from
    /// Linux 6.12 on, and removing one that has ended fails. So they are added, removed, and added with their end.
    pub fn put(&mut self, table: &str, set: &SetName, elements: &[Element]) {
        self.take(table, set, elements.iter().map(|(target, _)| *target));
        self.add(table, set, elements.iter().copied());
    }

    /// Removes elements, whether they are in the set or not.
    pub fn take(&mut self, table: &str, set: &SetName, targets: impl Iterator<Item = Target> + Clone) {
        self.add(table, set, targets.clone().map(|target| (target, None)));
        self.remove(table, set, targets);
    }

    /// The length so far.
    pub fn len(&self) -> usize {
        self.writer.len()
    }

    /// Whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        self.writer.len() <= crate::wire::HEADERS
    }

    /// Ends the transaction and asks for an acknowledgement. Returns the bytes to send and the number of its last message, which is the one
    /// that is acknowledged. The first has the number before that of the first request, and the kernel uses it for errors of the whole.
    pub fn finish(mut self) -> (Vec<u8>, u32) {
        self.writer.flag_last(ACK);
        let last = self.sequence;
        let end = self.writer.message(END, 0, last.wrapping_add(1), 0, NFTABLES >> 8);
        self.writer.end_message(end);
        (self.writer.into_bytes(), last)
    }

    fn begin(&mut self, kind: u16, flags: u16) -> Open {
        self.sequence = self.sequence.wrapping_add(1);
        self.writer.message(NFTABLES | kind, flags, self.sequence, INET, 0)
    }

    fn elements(
        &mut self,
        kind: u16,
        flags: u16,
        table: &str,
        set: &SetName,
        elements: impl IntoIterator<Item = Element>,
    ) {
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            let open = self.begin(kind, flags);
            write_elements(&mut self.writer, table, set, elements.by_ref().take(ELEMENTS));
            self.writer.end_message(open);
        }
    }
}

/// A question, to send on its own.
#[derive(Clone, Copy, Debug)]
pub struct Question;

impl Question {
    /// Asks for a table. The kernel answers with it, or with `ENOENT`.
    pub fn table(sequence: u32, table: &str) -> Vec<u8> {
        Self::ask(sequence, kind::GET_TABLE, 0, |writer| writer.text(1, table))
    }

    /// Asks for all sets of a table, without their elements.
    pub fn sets(sequence: u32, table: &str) -> Vec<u8> {
        Self::ask(sequence, kind::GET_SET, DUMP, |writer| writer.text(1, table))
    }

    /// Asks for one set, without its elements.
    pub fn set(sequence: u32, table: &str, set: &SetName) -> Vec<u8> {
        Self::ask(sequence, kind::GET_SET, 0, |writer| {
            writer.text(1, table);
            writer.text(2, &set.to_string());
        })
    }

    /// Asks for all rules of a chain.
    pub fn rules(sequence: u32, table: &str, hook: Hook) -> Vec<u8> {
        Self::ask(sequence, kind::GET_RULE, DUMP, |writer| {
            writer.text(1, table);
            writer.text(2, hook.as_str());
        })
    }

    /// Asks for an element. The kernel answers with it, or with `ENOENT`.
    pub fn element(sequence: u32, table: &str, set: &SetName, target: Target) -> Vec<u8> {
        Self::ask(sequence, kind::GET_ELEMENT, 0, |writer| write_elements(writer, table, set, [(target, None)]))
    }

    fn ask(sequence: u32, kind: u16, flags: u16, write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        let open = writer.message(NFTABLES | kind, flags, sequence, INET, 0);
        write(&mut writer);
        writer.end_message(open);
        writer.into_bytes()
    }
}

fn write_elements(writer: &mut Writer, table: &str, set: &SetName, elements: impl IntoIterator<Item = Element>) {
    writer.text(1, table);
    writer.text(2, &set.to_string());
    writer.nested(3, |list| {
        for (target, left) in elements {
            list.nested(1, |element| {
                element.nested(1, |key| {
                    let bits = target.bits().to_be_bytes();
                    key.bytes(1, if set.ipv4 { &bits[12..] } else { &bits });
                });
                if let Some(left) = left {
                    // Zero would mean permanently.
                    element.long(4, left.clamp(1, LONGEST_MS));
                }
            });
        }
    });
}

fn expression(list: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
    list.nested(1, |expression| {
        expression.text(1, name);
        expression.nested(2, data);
    });
}

fn compare(list: &mut Writer, bytes: &[u8]) {
    expression(list, "cmp", |compare| {
        compare.number(1, 1);
        compare.number(2, 0);
        compare.nested(3, |value| value.bytes(1, bytes));
    });
}
