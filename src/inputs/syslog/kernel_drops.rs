//! The kernel's count of datagrams that it dropped because the receive buffer was full.

use std::net::SocketAddr;

/// The file that lists the UDP sockets of our network namespace (`proc_net(5)`).
///
/// It is the thread's file, because a process may have threads in several namespaces.
pub(super) const fn table_of(address: SocketAddr) -> &'static str {
    if address.is_ipv4() { "/proc/thread-self/net/udp" } else { "/proc/thread-self/net/udp6" }
}

/// The `drops` column of the socket `inode` in `table`: a 32-bit counter that wraps.
pub(super) fn find(table: &str, inode: u64) -> Option<u32> {
    table.lines().skip(1).find_map(|row| {
        // sl local rem st tx:rx tr:when retrnsmt uid timeout inode ref pointer drops
        let mut columns = row.split_ascii_whitespace().skip(9);
        (columns.next()?.parse() == Ok(inode)).then_some(())?;
        // Unsigned since Linux 5.8, signed before.
        let drops: i64 = columns.nth(2)?.parse().ok()?;
        u32::try_from(drops & 0xffff_ffff).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  171: 0100007F:0202 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 41017 2 0000000000000000 17
  398: 00000000:B8E5 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 9511 2 00000000f3ab4d10 0
  399: 00000000:B8E6 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 9512 2 00000000f3ab4d10 -2
";

    #[test]
    fn drops_are_found_by_the_inode_of_the_socket() {
        assert_eq!(find(TABLE, 41017), Some(17));
        assert_eq!(find(TABLE, 9511), Some(0));
        assert_eq!(find(TABLE, 9512), Some(u32::MAX - 1));
        assert_eq!(find(TABLE, 1), None);
        assert_eq!(find("", 1), None);
    }
}
