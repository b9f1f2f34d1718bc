use super::*;

const FROM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 1);
const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 2);

fn id(name: &str, address: SocketAddr) -> Vec<u8> {
    let mut bytes = u16::try_from(name.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend(name.as_bytes());
    bytes.extend(7u64.to_le_bytes());
    match address.ip() {
        IpAddr::V4(ip) => bytes.extend([&[4][..], &ip.octets()].concat()),
        IpAddr::V6(ip) => bytes.extend([&[6][..], &ip.octets()].concat()),
    }
    bytes.extend(address.port().to_le_bytes());
    bytes
}

fn digest(names: &[String]) -> Vec<u8> {
    let mut bytes = u16::try_from(names.len()).unwrap().to_le_bytes().to_vec();
    for name in names {
        bytes.extend(id(name, ELSEWHERE));
        bytes.extend([1; 24]);
    }
    bytes
}

fn operations(names: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for name in names {
        bytes.push(0);
        bytes.extend(id(name, ELSEWHERE));
        bytes.extend([0; 16]);
        bytes.push(1);
        for text in ["key", "value"] {
            bytes.extend(u16::try_from(text.len()).unwrap().to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes.extend([0; 9]);
        bytes.push(2);
        bytes.extend([0; 8]);
    }
    bytes
}

fn syn(names: &[String]) -> Vec<u8> {
    [&[0x53, 0xb0, 0, 0][..], &digest(names), &[3, 0], b"lan"].concat()
}

fn ack(names: &[String]) -> Vec<u8> {
    let block = zstd::bulk::compress(&operations(names), 0).unwrap();
    let length = u16::try_from(block.len()).unwrap().to_le_bytes();
    [&[0x53, 0xb0, 0, 2, 1][..], &length, &block, &[0]].concat()
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n}")).collect()
}

#[test]
fn messages_about_few_members_are_unchanged() {
    let mut known = KnownMembers::default();
    let few = names("node", 50);
    let syn_ack = [&[0x53, 0xb0, 0, 1][..], &digest(&few), &ack(&few)[4..]].concat();
    for message in [syn(&few), ack(&few), syn_ack, vec![0x53, 0xb0, 0, 3]] {
        let (filtered, refused) = known.filter(&message, FROM, Instant::now()).unwrap();
        assert!(matches!(filtered, Cow::Borrowed(_)) && refused == 0);
    }
}

#[test]
fn invented_members_are_removed_and_known_ones_stay() {
    let (mut known, now) = (KnownMembers::default(), Instant::now());
    let real = names("node", 3);
    known.filter(&syn(&real), FROM, now).unwrap();
    let mut refused = 0;
    for datagram in 0..10 {
        // Names that sort before those of the real nodes.
        let invented = [names(&format!("a{datagram}"), 1100), real.clone()].concat();
        for message in [syn(&invented), ack(&invented[900..])] {
            let (filtered, removed) = known.filter(&message, FROM, now).unwrap();
            refused += removed;
            let filtered = filtered.into_owned();
            // A second pass finds nothing more to remove, and the real nodes are still there.
            assert_eq!(known.filter(&filtered, FROM, now).unwrap().1, 0);
            let plain = if message[3] == 0 { filtered } else { Reader(&filtered[4..]).blocks().unwrap() };
            let contains = |name: &String| plain.windows(name.len()).any(|part| part == name.as_bytes());
            assert!(real.iter().all(contains));
        }
    }
    assert!(refused >= 11_000 - MAX_MEMBERS && known.named.len() == MAX_MEMBERS);
    // Another node was told about other members, and this one still reads its messages.
    let other = [names("b", 397), real].concat();
    let (filtered, removed) = known.filter(&syn(&other), FROM, now).map(|(m, n)| (m.into_owned(), n)).unwrap();
    assert_eq!((removed, Reader(&filtered[4..]).u16()), (397, Ok(3)));
    assert!(filtered.ends_with(b"\x03\x00lan"));
}

#[test]
fn a_new_node_is_admitted_by_its_own_message_when_invented_members_fill_the_limit() {
    let (mut known, now) = (KnownMembers::default(), Instant::now());
    known.filter(&syn(&names("a", 1000)), FROM, now).unwrap();
    let own = [&[0x53, 0xb0, 0, 0, 1, 0][..], &id("new", FROM), &[1; 24], &[3, 0], b"lan"].concat();
    assert_eq!(known.filter(&own, ELSEWHERE, now).unwrap().1, 1);
    assert_eq!(known.filter(&own, FROM, now).unwrap().1, 0);
    // Once admitted, others may name it.
    assert_eq!(known.filter(&own, ELSEWHERE, now).unwrap().1, 0);
    // Members that nobody names any more make room.
    let later = now + KEEP;
    assert_eq!(known.filter(&syn(&names("c", 300)), FROM, later).unwrap().1, 0);
}

#[test]
fn a_digest_of_the_most_members_fits_into_a_message() {
    let longest: Vec<String> = (0..MAX_MEMBERS + RESERVE).map(|n| format!("{n:0>63}")).collect();
    assert!(syn(&longest).len() < 60_000);
}

#[test]
fn members_with_invalid_names_are_removed() {
    let mut known = KnownMembers::default();
    let invalid = ["x".repeat(64), String::new(), "a b".to_owned()];
    assert_eq!(known.filter(&syn(&invalid), FROM, Instant::now()).unwrap().1, 3);
}

#[test]
fn malformed_messages_are_refused_without_a_panic() {
    let mut known = KnownMembers::default();
    for message in [syn(&names("node", 3)), ack(&names("node", 3))] {
        for length in 0..message.len() - 5 {
            assert_eq!(known.filter(&message[..length], FROM, Instant::now()), Err(MalformedMessage), "{length}");
        }
    }
    // A block that decompresses to more than a block may hold.
    let bomb = zstd::bulk::compress(&vec![0; 1 << 20], 0).unwrap();
    let length = u16::try_from(bomb.len()).unwrap().to_le_bytes();
    let message = [&[0x53, 0xb0, 0, 2, 1][..], &length, &bomb, &[0]].concat();
    assert_eq!(known.filter(&message, FROM, Instant::now()), Err(MalformedMessage));
}
