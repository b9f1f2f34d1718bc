//! Writes files in MaxMind's format for tests: a tree of 24-bit records over IPv6, with IPv4 below ::/96.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// A value in a file.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Text(&'static str),
    Number(u32),
    Map(Vec<(&'static str, Value)>),
}

/// The bytes of a file in which each network has a record, built at `epoch`. Networks must not overlap.
pub(crate) fn file(networks: &[(&str, Value)], epoch: u32) -> Vec<u8> {
    // Node by the bits above it; each child is a node, a record, or nothing.
    #[derive(Clone, Copy)]
    enum Child {
        Nothing,
        Node(usize),
        Data(usize),
    }
    let mut nodes = vec![[Child::Nothing; 2]];
    let (mut data, mut offsets) = (Vec::new(), BTreeMap::new());
    for (network, value) in networks {
        let (address, prefix) = network.split_once('/').unwrap();
        let (bits, prefix) = match address.parse().unwrap() {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()), 96 + prefix.parse::<u32>().unwrap()),
            IpAddr::V6(v6) => (v6.to_bits(), prefix.parse().unwrap()),
        };
        let offset = *offsets.entry(format!("{value:?}")).or_insert_with(|| {
            let offset = data.len();
            write(value, &mut data);
            offset
        });
        let mut node = 0;
        for depth in 0..prefix {
            let side = usize::from(bits >> (127 - depth) & 1 == 1);
            if depth + 1 == prefix {
                nodes[node][side] = Child::Data(offset);
            } else if let Child::Node(next) = nodes[node][side] {
                node = next;
            } else {
                nodes.push([Child::Nothing; 2]);
                let next = nodes.len() - 1;
                nodes[node][side] = Child::Node(next);
                node = next;
            }
        }
    }
    let count = nodes.len();
    let mut bytes = Vec::new();
    for child in nodes.into_iter().flatten() {
        let record = match child {
            Child::Nothing => count,
            Child::Node(node) => node,
            Child::Data(offset) => count + 16 + offset,
        };
        bytes.extend_from_slice(&u32::try_from(record).unwrap().to_be_bytes()[1..]);
    }
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend_from_slice(&data);
    bytes.extend_from_slice(b"\xab\xcd\xefMaxMind.com");
    let metadata = Value::Map(vec![
        ("node_count", Value::Number(u32::try_from(count).unwrap())),
        ("record_size", Value::Number(24)),
        ("ip_version", Value::Number(6)),
        ("database_type", Value::Text("Test")),
        ("binary_format_major_version", Value::Number(2)),
        ("binary_format_minor_version", Value::Number(0)),
        ("build_epoch", Value::Number(epoch)),
        ("languages", Value::Map(Vec::new())),
        ("description", Value::Map(Vec::new())),
    ]);
    write_metadata(&metadata, &mut bytes);
    bytes
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Text(text) => {
            control(2, text.len(), out);
            out.extend_from_slice(text.as_bytes());
        }
        Value::Number(number) => {
            control(6, 4, out);
            out.extend_from_slice(&number.to_be_bytes());
        }
        Value::Map(pairs) => {
            control(7, pairs.len(), out);
            for (key, value) in pairs {
                write(&Value::Text(key), out);
                write(value, out);
            }
        }
    }
}

/// The metadata has its own types: 16 bits, 64 bits, and an array.
fn write_metadata(metadata: &Value, out: &mut Vec<u8>) {
    let Value::Map(pairs) = metadata else { unreachable!() };
    control(7, pairs.len(), out);
    for (key, value) in pairs {
        write(&Value::Text(key), out);
        match (*key, value) {
            ("build_epoch", Value::Number(number)) => {
                out.extend_from_slice(&[8, 2]);
                out.extend_from_slice(&u64::from(*number).to_be_bytes());
            }
            ("languages", _) => out.extend_from_slice(&[0, 4]),
            ("node_count", _) | ("description" | "database_type", _) => write(value, out),
            (_, Value::Number(number)) => {
                control(5, 2, out);
                out.extend_from_slice(&u16::try_from(*number).unwrap().to_be_bytes());
            }
            _ => write(value, out),
        }
    }
}

/// The first bytes of a value of a basic type.
fn control(kind: u8, length: usize, out: &mut Vec<u8>) {
    match length {
        0..29 => out.push(kind << 5 | u8::try_from(length).unwrap()),
        _ => out.extend_from_slice(&[kind << 5 | 29, u8::try_from(length - 29).unwrap()]),
    }
}
