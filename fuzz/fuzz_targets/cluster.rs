//! Any bytes as what a peer sends after authentication: slots, fragments, acknowledgements, repair frames.
#![no_main]

use banmesh_cluster::compact::{Digest, Message, Naming, Received, Short};
use banmesh_cluster::datagram::{self, Acknowledgement, SlotMessage};
use banmesh_cluster::fragments::{Fragment, Reassembly};
use banmesh_cluster::incarnation::Incarnation;
use banmesh_cluster::members::TableDigest;
use banmesh_cluster::repair::exchange::{decode_buckets, decode_digests, decode_records, decode_result};
use banmesh_cluster::repair::frame::{Hello, split};
use banmesh_cluster::replication_lag::acknowledged;
use banmesh_cluster::ring::read_slot;
use banmesh_core::wire::{VERSION, Versions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = (SlotMessage::decode(bytes), Acknowledgement::decode(bytes), datagram::split(bytes));
    if let Ok(received) = Received::read(bytes, "banmesh") {
        let (message, _, _) = received.clone().resolve(&Digest::default());
        let own = message.digest().cloned().unwrap_or_default();
        let (message, left_out, unknown) = received.resolve(&own);
        let message = left_out.complete(message, &own);
        for room in [400, 1_090] {
            for short in [None, Some(Short { introduce: &unknown, ask: &unknown })] {
                let _ = message.cut(room, Naming { short, ..Naming::default() });
            }
            let _ = message.cut_for_earlier_builds(room);
        }
        assert_eq!(Message::parse(&message.encode()).map(|read| read.encode()), Ok(message.encode()));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = read_slot(Versions::default(), text);
        let _ = TableDigest::from_text(text);
        let author = Incarnation { node: "a".into(), generation: 1, address: ([127, 0, 0, 1], 1).into() };
        let _ = acknowledged(text, &author);
    }
    if let Some((fragment, rest)) = Fragment::decode(bytes) {
        assert_eq!([&fragment.encode()[..], rest].concat(), bytes);
        let whole = Reassembly::default().add(1, fragment, rest);
        assert_eq!(whole.is_some(), fragment.count == 1);
    }
    if let Ok(hello) = Hello::decode(bytes, &"a".parse().unwrap()) {
        assert_eq!(Hello::decode(&hello.encode(), &"a".parse().unwrap()), Ok(hello));
    }
    if let Ok(frame) = split(bytes) {
        let _ = (decode_digests(frame), decode_buckets(frame), decode_result(frame), decode_records(frame, VERSION));
    }
});
