//! The kernel's answers. Any bytes are read without a panic; what is not understood is left out.

use crate::wire::{self, Message, NFTABLES, attribute, attributes, kind, messages};

/// `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// An answer to the message with the number `sequence`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The transaction or the question was carried out.
    Acknowledged {
        /// The message.
        sequence: u32,
    },
    /// The message was refused, and with it the whole transaction.
    Refused {
        /// The message.
        sequence: u32,
        /// The error number, such as 1 for `EPERM`.
        errno: i32,
    },
    /// The end of a list.
    Done {
        /// The question.
        sequence: u32,
    },
    /// A table.
    Table(TableFacts),
    /// A set.
    Set(SetFacts),
    /// An element.
    Element(ElementFacts),
    /// A rule.
    Rule(RuleFacts),
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableFacts {
    /// Its name.
    pub name: String,
    /// [`OWNER`](crate::batch::OWNER) and [`PERSIST`](crate::batch::PERSIST), and others.
    pub flags: u32,
    /// A number that no other table has had: a table that was removed and made again has another one.
    pub handle: u64,
    /// The port of the socket that owns it, if any does.
    pub owner: Option<u32>,
}

/// A set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetFacts {
    /// Its name.
    pub name: String,
    /// The number of its elements, with those that have ended and were not collected yet; `None` on kernels that do not say.
    pub elements: Option<u32>,
}

/// An element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ElementFacts {
    /// The address, in 4 or 16 bytes.
    pub key: Vec<u8>,
    /// How long it still stays in the set, in milliseconds; `None` if permanently.
    pub left: Option<u64>,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleFacts {
    /// The last set in which it looks up the source.
    pub set: Option<String>,
    /// How many packets matched.
    pub packets: u64,
    /// How many bytes they had.
    pub bytes: u64,
}

/// The answers in a datagram.
pub fn replies(datagram: &[u8]) -> impl Iterator<Item = Reply> {
    messages(datagram).flat_map(|message| {
        let elements = if message.kind == NFTABLES | kind::NEW_ELEMENT { elements(message.body) } else { Vec::new() };
        elements.into_iter().map(Reply::Element).chain(reply(message))
    })
}

fn reply(message: Message<'_>) -> Option<Reply> {
    let Message { kind, sequence, body } = message;
    match kind {
        ERROR => {
            let errno = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
            let errno = errno.checked_neg().unwrap_or(i32::MAX);
            Some(if errno == 0 { Reply::Acknowledged { sequence } } else { Reply::Refused { sequence, errno } })
        }
        DONE => Some(Reply::Done { sequence }),
        _ => {
            // After the family, version and resource of nfnetlink.
            let body = body.get(4..)?;
            match kind.checked_sub(NFTABLES)? {
                kind::NEW_TABLE => Some(Reply::Table(TableFacts {
                    name: text(attribute(body, 1)?),
                    flags: attribute(body, 2).and_then(wire::number).unwrap_or_default(),
                    handle: attribute(body, 4).and_then(wire::long).unwrap_or_default(),
                    owner: attribute(body, 7).and_then(wire::number),
                })),
                kind::NEW_SET => Some(Reply::Set(SetFacts {
                    name: text(attribute(body, 2)?),
                    elements: attribute(body, 20).and_then(wire::number),
                })),
                kind::NEW_RULE => Some(Reply::Rule(rule(attribute(body, 4).unwrap_or_default()))),
                _ => None,
            }
        }
    }
}

fn elements(body: &[u8]) -> Vec<ElementFacts> {
    let list = body.get(4..).and_then(|body| attribute(body, 3)).unwrap_or_default();
    let element = |bytes| {
        let key = attribute(attribute(bytes, 1)?, 1)?.to_vec();
        // An entry without a timeout has no remaining time.
        let left = attribute(bytes, 4).and_then(wire::long).filter(|timeout| *timeout > 0);
        let left = left.map(|timeout| attribute(bytes, 5).and_then(wire::long).unwrap_or(timeout));
        Some(ElementFacts { key, left })
    };
    attributes(list).filter_map(|(_, bytes)| element(bytes)).collect()
}

fn rule(expressions: &[u8]) -> RuleFacts {
    let mut facts = RuleFacts::default();
    for (_, expression) in attributes(expressions) {
        let data = attribute(expression, 2).unwrap_or_default();
        match attribute(expression, 1).map(text).as_deref() {
            Some("lookup") => facts.set = attribute(data, 1).map(text),
            Some("counter") => {
                facts.bytes = attribute(data, 1).and_then(wire::long).unwrap_or_default();
                facts.packets = attribute(data, 2).and_then(wire::long).unwrap_or_default();
            }
            _ => {}
        }
    }
    facts
}

/// A text with a final NUL.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Action, Batch, Hook, Question};
    use crate::ruleset::{Kind, SetName};
    use banmesh_types::target::Target;
    use proptest::prelude::*;

    fn host(text: &str) -> Target {
        text.parse().unwrap()
    }

    /// The kernel's answers have the layout of the requests, so they can be made with the same writer.
    #[test]
    fn elements_sets_and_tables_are_read_from_their_own_layout() {
        let set = SetName { kind: Kind::Ban, ipv4: false, prefix: 64, generation: 0 };
        let mut batch = Batch::new(7);
        batch.table("banmesh", 6);
        batch.set("banmesh", &set);
        batch.add("banmesh", &set, [(host("2001:db8::/64"), Some(1500)), (host("2001:db8:1::/64"), None)]);
        batch.rule("banmesh", Hook::Prerouting, &[set], Action::Drop);
        let (bytes, last) = batch.finish();
        assert_eq!((bytes.len() % 4, last), (0, 11));
        let found: Vec<Reply> = replies(&bytes).collect();
        assert_eq!(found[0], Reply::Table(TableFacts { name: "banmesh".into(), flags: 6, handle: 0, owner: None }));
        assert_eq!(found[1], Reply::Set(SetFacts { name: "nets6_64".into(), elements: None }));
        let Reply::Element(timed) = &found[2] else { panic!("{found:?}") };
        assert_eq!((timed.left, timed.key.len(), &timed.key[..4]), (Some(1500), 16, &[0x20, 1, 0xd, 0xb8][..]));
        assert!(matches!(&found[3], Reply::Element(ElementFacts { left: None, .. })));
        assert_eq!(found[4], Reply::Rule(RuleFacts { set: Some("nets6_64".into()), packets: 0, bytes: 0 }));
    }

    #[test]
    fn errors_and_acknowledgements_carry_the_number_of_the_request() {
        let error = |errno: i32| {
            let mut bytes = [36u32.to_ne_bytes(), [2, 0, 0, 0], 9u32.to_ne_bytes(), [0; 4]].concat();
            bytes.extend(errno.to_ne_bytes());
            bytes.resize(36, 0);
            bytes
        };
        let both = [error(-1), error(0)].concat();
        let found: Vec<Reply> = replies(&both).collect();
        assert_eq!(found, [Reply::Refused { sequence: 9, errno: 1 }, Reply::Acknowledged { sequence: 9 }]);
    }

    #[test]
    fn many_elements_are_split_into_messages_that_an_attribute_can_hold() {
        let set = SetName { kind: Kind::Ban, ipv4: true, prefix: 32, generation: 0 };
        let mut batch = Batch::new(1);
        let elements = (0..5000u32).map(|n| (Target::host(std::net::IpAddr::V4(n.into()).into()), Some(5)));
        batch.add("banmesh", &set, elements);
        let (bytes, last) = batch.finish();
        assert_eq!((replies(&bytes).count(), last), (5000, 6));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = replies(&bytes).count();
        }

        /// Bytes that were a request and then damaged, so that they are read further than random ones.
        #[test]
        fn damaged_messages_are_read(at in 0usize..400, value: u8, cut in 0usize..400) {
            let set = SetName { kind: Kind::Ban, ipv4: true, prefix: 24, generation: 0 };
            let mut batch = Batch::new(1);
            batch.put("banmesh", &set, &[(host("192.0.2.0/24"), Some(5))]);
            batch.rule("banmesh", Hook::Input, &[set], Action::Reset);
            let mut bytes = batch.finish().0;
            bytes.extend(Question::element(3, "banmesh", &set, host("192.0.2.0/24")));
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
            bytes.truncate(bytes.len().saturating_sub(cut));
            let _ = replies(&bytes).count();
        }
    }
}
