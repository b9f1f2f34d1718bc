//! The names of local users, for the audit log.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};

const PASSWD: &str = "/etc/passwd";
/// Bytes of the file that are read.
const MAX_FILE: u64 = 1024 * 1024;

/// The name of the user `uid` in `/etc/passwd`. Other sources of users are not asked, because their answers may take long.
pub fn name(uid: u32) -> Option<String> {
    name_in(BufReader::new(File::open(PASSWD).ok()?.take(MAX_FILE)), uid)
}

fn name_in(passwd: impl BufRead, uid: u32) -> Option<String> {
    passwd.lines().map_while(Result::ok).find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.contains(char::is_control))?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_user_id() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\n\nbroken\n+::::::\nann:x:1000:1000:Ann:/home/ann:/bin/sh\n";
        assert_eq!(name_in(passwd.as_bytes(), 1000).as_deref(), Some("ann"));
        assert_eq!(name_in(passwd.as_bytes(), 0).as_deref(), Some("root"));
        assert_eq!(name_in(passwd.as_bytes(), 1), None);
    }
}
