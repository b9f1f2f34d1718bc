//! Netlink messages and attributes as bytes. Headers are in the byte order of the host, numbers of nf_tables in that of the network.

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_DUMP`, `NLM_F_CREATE`, `NLM_F_APPEND`.
pub(crate) const REQUEST: u16 = 0x001;
pub(crate) const ACK: u16 = 0x004;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;
/// The subsystem `NFNL_SUBSYS_NFTABLES` in the upper byte of a type.
pub(crate) const NFTABLES: u16 = 0x0a00;
/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`, which are not part of an attribute's type.
const NESTED: u16 = 0x8000;
const FLAGS: u16 = 0xc000;
/// `NFPROTO_INET`.
pub(crate) const INET: u8 = 1;
/// The length of a netlink header, and of it with that of nfnetlink.
const HEADER: usize = 16;
pub(crate) const HEADERS: usize = 20;

/// The message types of nf_tables that are used.
pub(crate) mod kind {
    pub(crate) const NEW_TABLE: u16 = 0;
    pub(crate) const GET_TABLE: u16 = 1;
    pub(crate) const DEL_TABLE: u16 = 2;
    pub(crate) const NEW_CHAIN: u16 = 3;
    pub(crate) const DEL_CHAIN: u16 = 5;
    pub(crate) const NEW_RULE: u16 = 6;
    pub(crate) const GET_RULE: u16 = 7;
    pub(crate) const DEL_RULE: u16 = 8;
    pub(crate) const NEW_SET: u16 = 9;
    pub(crate) const GET_SET: u16 = 10;
    pub(crate) const DEL_SET: u16 = 11;
    pub(crate) const NEW_ELEMENT: u16 = 12;
    pub(crate) const GET_ELEMENT: u16 = 13;
    pub(crate) const DEL_ELEMENT: u16 = 14;
}

/// Writes messages one after the other.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
}

/// Where something begins whose length is not known yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Open(usize);

impl Writer {
    /// Begins a message of nfnetlink.
    pub(crate) fn message(&mut self, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16) -> Open {
        let open = self.start(kind, flags, sequence);
        self.raw(&[family, 0]);
        self.raw(&resource.to_be_bytes());
        open
    }

    /// Begins a message with the header of netlink only.
    pub(crate) fn start(&mut self, kind: u16, flags: u16, sequence: u32) -> Open {
        self.last = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        Open(self.last)
    }

    /// Writes bytes that are not an attribute.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Ends a message.
    pub(crate) fn end_message(&mut self, Open(at): Open) {
        let length = u32::try_from(self.bytes.len() - at).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(at..at + 4) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// Adds flags to the last message.
    pub(crate) fn flag_last(&mut self, flags: u16) {
        if let Some(place) = self.bytes.get_mut(self.last + 6..self.last + 8) {
            let before = u16::from_ne_bytes([place[0], place[1]]);
            place.copy_from_slice(&(before | flags).to_ne_bytes());
        }
    }

    /// Writes an attribute. Longer payloads than an attribute can hold are cut; the callers have none.
    pub(crate) fn bytes(&mut self, kind: u16, payload: &[u8]) {
        let payload = payload.get(..payload.len().min(60_000)).unwrap_or_default();
        let length = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(crate) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn long(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    /// Writes an attribute that holds the attributes that `inner` writes.
    pub(crate) fn nested(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        inner(self);
        let length = u16::try_from(self.bytes.len() - at).unwrap_or(u16::MAX);
        if let Some(place) = self.bytes.get_mut(at..at + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// A received message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    /// Everything after the netlink header.
    pub(crate) body: &'a [u8],
}

/// The messages in a datagram. Ends at the first that is not complete.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(host_number(bytes, 0)?).ok()?;
        let message = bytes.get(..length).filter(|_| length >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([*message.get(4)?, *message.get(5)?]);
        Some(Message { kind, sequence: host_number(message, 8)?, body: message.get(HEADER..)? })
    })
}

/// The attributes in `bytes`, by type. Ends at the first that is not complete.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (bytes.get(..2)?, bytes.get(2..4)?);
        let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
        let kind = u16::from_ne_bytes([kind[0], kind[1]]) & !FLAGS;
        let payload = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The attribute of this type.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, payload)| payload)
}

pub(crate) fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

pub(crate) fn long(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// A number in the byte order of the host.
pub(crate) fn host_number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
