//! Lines as real senders write them, and the fields that must be found in them.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use banmesh_syslog::{Line, PROGRAM_MAX, Repeat, Written, parse};

/// A line, then its priority, hostname, program, process id and message. `-` means `None`.
type Row = (&'static str, &'static str, &'static str, &'static str, &'static str, &'static str);

const ROWS: &[Row] = &[
    // The format of the first users, byte for byte.
    (
        "<134>Nov 22 20:00:00 mail dovecot: auth failed, method=PLAIN, rip=192.0.2.1, lip=198.51.100.1",
        "134",
        "mail",
        "dovecot",
        "-",
        "auth failed, method=PLAIN, rip=192.0.2.1, lip=198.51.100.1",
    ),
    // RFC 3164 §5.4
    (
        "<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8",
        "34",
        "mymachine",
        "su",
        "-",
        "'su root' failed for lonvick on /dev/pts/8",
    ),
    ("Use the BFG!", "-", "-", "-", "-", "Use the BFG!"),
    ("<13>Feb  5 17:32:18 10.0.0.99 Use the BFG!", "13", "10.0.0.99", "-", "-", "Use the BFG!"),
    // dovecot
    (
        "<22>Nov 22 20:00:00 mail dovecot: imap-login: Disconnected: Connection closed (auth failed, 1 attempts in 2 secs): \
         user=<bob>, method=PLAIN, rip=192.0.2.1, lip=198.51.100.1, TLS, session=<abc>",
        "22",
        "mail",
        "dovecot",
        "-",
        "imap-login: Disconnected: Connection closed (auth failed, 1 attempts in 2 secs): user=<bob>, method=PLAIN, \
         rip=192.0.2.1, lip=198.51.100.1, TLS, session=<abc>",
    ),
    (
        "<22>Nov 22 20:00:00 dovecot[71]: auth: passwd-file(bob,192.0.2.1): unknown user",
        "22",
        "-",
        "dovecot",
        "71",
        "auth: passwd-file(bob,192.0.2.1): unknown user",
    ),
    // postfix
    (
        "<22>Nov  2 20:00:00 mx1.example.org postfix/smtps/smtpd[4711]: warning: unknown[2001:db8::1]: SASL LOGIN \
         authentication failed: UGFzc3dvcmQ6",
        "22",
        "mx1.example.org",
        "postfix/smtps/smtpd",
        "4711",
        "warning: unknown[2001:db8::1]: SASL LOGIN authentication failed: UGFzc3dvcmQ6",
    ),
    (
        "Nov 22 20:00:00 mx postfix/postscreen[9]: NOQUEUE: reject: RCPT from [192.0.2.1]:4711: 550 5.5.1",
        "-",
        "mx",
        "postfix/postscreen",
        "9",
        "NOQUEUE: reject: RCPT from [192.0.2.1]:4711: 550 5.5.1",
    ),
    // sshd, pam, cron
    (
        "<38>Nov 22 20:00:00 host sshd[123]: Failed password for invalid user admin from 192.0.2.1 port 22 ssh2",
        "38",
        "host",
        "sshd",
        "123",
        "Failed password for invalid user admin from 192.0.2.1 port 22 ssh2",
    ),
    ("<86>Nov 22 20:00:00 host sshd-session[1]: x", "86", "host", "sshd-session", "1", "x"),
    ("<86>Nov 22 20:00:00 host su(pam_unix)[77]: y", "86", "host", "su(pam_unix)", "77", "y"),
    (
        "<78>Nov 22 20:00:00 host /usr/sbin/cron[5]: (root) CMD (ls)",
        "78",
        "host",
        "/usr/sbin/cron",
        "5",
        "(root) CMD (ls)",
    ),
    // rsyslog: RSYSLOG_TraditionalForwardFormat, RSYSLOG_ForwardFormat, RSYSLOG_FileFormat, RSYSLOG_SyslogProtocol23Format
    ("<13>Nov 22 20:00:00 host root: hello", "13", "host", "root", "-", "hello"),
    ("<13>2026-11-22T20:00:00.123456+00:00 host root[9]: hello", "13", "host", "root", "9", "hello"),
    ("2026-11-22T20:00:00.123456+01:00 host dovecot: imap-login: x", "-", "host", "dovecot", "-", "imap-login: x"),
    ("<13>1 2026-11-22T20:00:00.123456+00:00 host root - - -  hello", "13", "host", "root", "-", "hello"),
    // syslog-ng: network(), syslog(), chain_hostnames(yes), flags(no-hostname)
    ("<13>Nov 22 20:00:00 host root[7]: hello", "13", "host", "root", "7", "hello"),
    ("<13>1 2026-11-22T20:00:00+00:00 host root 7 - - hello", "13", "host", "root", "7", "hello"),
    (
        "<13>1 2026-11-22T20:00:00+00:00 host root 7 - [timeQuality isSynced=\"0\"][meta sequenceId=\"1\"] \u{feff}hello",
        "13",
        "host",
        "root",
        "7",
        "hello",
    ),
    ("<13>Nov 22 20:00:00 src@host/relay root: hello", "13", "src@host/relay", "root", "-", "hello"),
    // util-linux logger: --rfc3164, --rfc5424, and to a local socket
    ("<13>Nov 22 20:00:00 host tag[12]: hello", "13", "host", "tag", "12", "hello"),
    (
        "<13>1 2026-11-22T20:00:00.123456+00:00 host tag - - [timeQuality tzKnown=\"1\" isSynced=\"1\"] hello",
        "13",
        "host",
        "tag",
        "-",
        "hello",
    ),
    ("<13>Nov 22 20:00:00 tag: hello", "13", "-", "tag", "-", "hello"),
    // systemd-journald forwarding to /dev/log, systemd-netlogd, and `journalctl -o short-iso|short-full|short-unix`
    ("<30>Nov 22 20:00:00 systemd[1]: Started x.", "30", "-", "systemd", "1", "Started x."),
    ("<30>1 2026-11-22T20:00:00.1+00:00 host systemd 1 - - Started x.", "30", "host", "systemd", "1", "Started x."),
    ("2026-11-22T20:00:00+0000 host sshd[9]: x", "-", "host", "sshd", "9", "x"),
    ("Sun 2026-11-22 20:00:00 UTC host sshd[9]: x", "-", "host", "sshd", "9", "x"),
    ("1793664000.123456 host sshd[9]: x", "-", "host", "sshd", "9", "x"),
    ("Nov 22 20:00:00.123456 host sshd[9]: x", "-", "host", "sshd", "9", "x"),
    // BusyBox's syslogd in its file, FreeBSD's with -v -v, OpenWrt's logread, socklog
    ("Nov 22 20:00:00 host auth.info sshd[9]: x", "-", "host", "sshd", "9", "x"),
    ("Nov 22 20:00:00 host mail.warn postfix/smtps/smtpd[9]: x", "-", "host", "postfix/smtps/smtpd", "9", "x"),
    ("Nov 22 20:00:00 <auth.info> host sshd[9]: x", "-", "host", "sshd", "9", "x"),
    ("Thu Jan  8 16:39:33 2026 authpriv.warn dropbear[9]: x", "-", "-", "dropbear", "9", "x"),
    ("2026-11-22T20:00:00.46667 auth.info: Nov 22 20:00:00 sshd[9]: x", "-", "-", "sshd", "9", "x"),
    (
        "Mon Jan 17 06:27:48 2022 [pid 1234] [bob] FAIL LOGIN: x",
        "-",
        "-",
        "-",
        "-",
        "Mon Jan 17 06:27:48 2022 [pid 1234] [bob] FAIL LOGIN: x",
    ),
    ("Nov 22 20:00:00 host auth.infos sshd[9]: x", "-", "host", "-", "-", "auth.infos sshd[9]: x"),
    // docker: no format (the space is docker's), rfc3164, rfc5424, rfc5424micro, and a long tag
    ("<30> 2026-11-22T20:00:00Z host 0123456789ab[811]: up", "30", "host", "0123456789ab", "811", "up"),
    ("<30>Nov 22 20:00:00 host 0123456789ab[811]: up", "30", "host", "0123456789ab", "811", "up"),
    ("<30>Nov 22 20:00:00 0123456789ab[811]: up", "30", "-", "0123456789ab", "811", "up"),
    ("<30>1 2026-11-22T20:00:00Z host 0123456789ab 811 0123456789ab - up", "30", "host", "0123456789ab", "811", "up"),
    (
        "<30>1 2026-11-22T20:00:00.123456Z host mail/dovecot-1/0123456789ab 811 mail/dovecot-1/0123456789ab - up",
        "30",
        "host",
        "mail/dovecot-1/0123456789ab",
        "811",
        "up",
    ),
    // busybox: syslogd -R, and logger
    ("<13>Nov 22 20:00:00 host root: hello", "13", "host", "root", "-", "hello"),
    ("<13>Nov 22 20:00:00 root: hello", "13", "-", "root", "-", "hello"),
    // HAProxy: format rfc3164 without and with hostname, rfc5424, short, timed, iso, raw
    (
        "<134>Nov 22 20:00:00 haproxy[8]: 192.0.2.1:5 [x] fe be/s 0",
        "134",
        "-",
        "haproxy",
        "8",
        "192.0.2.1:5 [x] fe be/s 0",
    ),
    ("<134>Nov 22 20:00:00 lb haproxy[8]: 192.0.2.1:5 up", "134", "lb", "haproxy", "8", "192.0.2.1:5 up"),
    (
        "<134>1 2026-11-22T20:00:00.123456+01:00 lb haproxy 8 - - 192.0.2.1:5 up",
        "134",
        "lb",
        "haproxy",
        "8",
        "192.0.2.1:5 up",
    ),
    ("<6>192.0.2.1:5 [x] fe be/s 0", "6", "-", "-", "-", "192.0.2.1:5 [x] fe be/s 0"),
    ("<6>2026-11-22T20:00:00.123456+01:00 192.0.2.1:5 fe", "6", "192.0.2.1:5", "-", "-", "fe"),
    // Cisco IOS, ASA and Nexus
    (
        "<189>29: *Mar  1 18:48:50.483 UTC: %SYS-5-CONFIG_I: Configured from console by vty2 (10.34.195.36)",
        "189",
        "-",
        "%SYS-5-CONFIG_I",
        "-",
        "Configured from console by vty2 (10.34.195.36)",
    ),
    (
        "<189>29: rtr1: Mar  1 18:48:50: %SEC_LOGIN-4-LOGIN_FAILED: x",
        "189",
        "rtr1",
        "%SEC_LOGIN-4-LOGIN_FAILED",
        "-",
        "x",
    ),
    ("<166>Nov 22 2026 20:00:00: %ASA-6-113015: x", "166", "-", "%ASA-6-113015", "-", "x"),
    ("<166>Nov 22 2026 20:00:00 fw1 : %ASA-6-113015: x", "166", "fw1", "%ASA-6-113015", "-", "x"),
    ("<166>%ASA-6-113015: x", "166", "-", "%ASA-6-113015", "-", "x"),
    ("<187>: 2026 Nov 22 20:00:00 UTC: %ETHPORT-5-IF_UP: x", "187", "-", "%ETHPORT-5-IF_UP", "-", "x"),
    // UniFi: access points and switches of three generations, and a console.
    (
        "<30>Nov 10 11:49:46 U7PG2,788a2056b181,v4.0.66.10832: logread[5495]: x",
        "30",
        "U7PG2,788a2056b181,v4.0.66.10832",
        "logread",
        "5495",
        "x",
    ),
    (
        "<30>Nov 10 11:49:46 (\"U7PG2,788a2056b181,v3.9.3.7537\") dropbear[9]: x",
        "30",
        "U7PG2,788a2056b181,v3.9.3.7537",
        "dropbear",
        "9",
        "x",
    ),
    (
        "<14>Aug  7 22:21:57 AP-3 aabbccddeeff,U7-Pro-XG-8.6.11+18870: dropbear[9]: x",
        "14",
        "AP-3",
        "dropbear",
        "9",
        "x",
    ),
    ("<14>Aug  7 22:21:57 AP-3 aabbccddeeff: dropbear[9]: x", "14", "AP-3", "aabbccddeeff", "-", "dropbear[9]: x"),
    ("<14>Aug  7 22:21:57 host app,bob,x: dropbear[9]: x", "14", "host", "-", "-", "app,bob,x: dropbear[9]: x"),
    // The year after the time.
    ("<13>Nov 22 20:00:00 2026 host root: hello", "13", "host", "root", "-", "hello"),
    // ISO 8601 without a zone, with a space, with a comma.
    ("<13>2026-11-22T20:00:00 host root: hello", "13", "host", "root", "-", "hello"),
    ("<13>2026-11-22 20:00:00,123 host root: hello", "13", "host", "root", "-", "hello"),
    // Addresses as hostnames. Their colons do not make them programs.
    ("<13>Nov 22 20:00:00 192.0.2.7 dovecot: x", "13", "192.0.2.7", "dovecot", "-", "x"),
    ("<13>Nov 22 20:00:00 2001:db8::7 dovecot: x", "13", "2001:db8::7", "dovecot", "-", "x"),
    ("<13>Nov 22 20:00:00 2001:db8:: dovecot: x", "13", "2001:db8::", "dovecot", "-", "x"),
    ("<13>Nov 22 20:00:00 ::ffff:192.0.2.7 dovecot: x", "13", "::ffff:192.0.2.7", "dovecot", "-", "x"),
    ("<13>Nov 22 20:00:00 fe80::1%eth0 dovecot[1]: x", "13", "fe80::1%eth0", "dovecot", "1", "x"),
    ("<13>1 2026-11-22T20:00:00Z 2001:db8::7 dovecot - - - x", "13", "2001:db8::7", "dovecot", "-", "x"),
    // Only a priority.
    ("<13>dovecot: x", "13", "-", "dovecot", "-", "x"),
    ("<13>dovecot[7]: x", "13", "-", "dovecot", "7", "x"),
    ("<13>hello world", "13", "-", "-", "-", "hello world"),
    ("<13>", "13", "-", "-", "-", ""),
    ("<0>x", "0", "-", "-", "-", "x"),
    ("<191>x", "191", "-", "-", "-", "x"),
    // Not a priority.
    ("<192>x", "-", "-", "-", "-", "<192>x"),
    ("<>x", "-", "-", "-", "-", "<>x"),
    ("<1234>x", "-", "-", "-", "-", "<1234>x"),
    ("<13x", "-", "-", "-", "-", "<13x"),
    ("< 13>x", "-", "-", "-", "-", "< 13>x"),
    // Whitespace, byte order marks and line ends.
    ("<13>Nov 22 20:00:00 host root: hello\r\n", "13", "host", "root", "-", "hello"),
    ("<13>Nov 22 20:00:00 host root: hello\n\0", "13", "host", "root", "-", "hello"),
    ("<13>Nov 22 20:00:00 host root: hello\0\n", "13", "host", "root", "-", "hello"),
    ("\u{feff}<13>Nov 22 20:00:00 host root: hello", "13", "host", "root", "-", "hello"),
    ("<13>\u{feff}Nov 22 20:00:00 host root: hello", "13", "host", "root", "-", "hello"),
    ("<13>Nov 22 20:00:00 host root: \u{feff}hello", "13", "host", "root", "-", "hello"),
    ("  <13>Nov 22 20:00:00  host  root:  hello", "13", "host", "root", "-", "hello"),
    ("<13>Nov 22 20:00:00 host root:", "13", "host", "root", "-", ""),
    ("<13>Nov 22 20:00:00 host root[1]:hello", "13", "host", "root", "1", "hello"),
    ("<13>Nov 22 20:00:00 host root[]: hello", "13", "host", "root", "-", "hello"),
    ("<13>Nov 22 20:00:00 host", "13", "host", "-", "-", ""),
    ("<13>Nov 22 20:00:00", "13", "-", "-", "-", ""),
    ("", "-", "-", "-", "-", ""),
    (" \r\n\0", "-", "-", "-", "-", ""),
    // RFC 5424 §6.5
    (
        "<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \u{feff}'su root' failed for lonvick on /dev/pts/8",
        "34",
        "mymachine.example.com",
        "su",
        "-",
        "'su root' failed for lonvick on /dev/pts/8",
    ),
    (
        "<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time to make the do-nuts.",
        "165",
        "192.0.2.1",
        "myproc",
        "8710",
        "%% It's time to make the do-nuts.",
    ),
    (
        "<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 [exampleSDID@32473 iut=\"3\" \
         eventSource=\"Application\" eventID=\"1011\"] \u{feff}An application event log entry...",
        "165",
        "mymachine.example.com",
        "evntslog",
        "-",
        "An application event log entry...",
    ),
    (
        "<165>1 2003-10-11T22:14:15.003Z h evntslog - ID47 [a@1 iut=\"3\"][b@1 class=\"high\"]",
        "165",
        "h",
        "evntslog",
        "-",
        "",
    ),
    // Escaped brackets and quotes.
    ("<13>1 - h p - - [a b=\"\\\"\\]\\\\\" c=\"] x [\"] the message", "13", "h", "p", "-", "the message"),
    ("<13>1 - - - - - -", "13", "-", "-", "-", ""),
    ("<13>1 - - - - - - x", "13", "-", "-", "-", "x"),
    ("<13>1 2026-11-22T20:00:00Z host", "13", "host", "-", "-", ""),
    // Malformed structured data belongs to the message.
    ("<13>1 - h p - - no data", "13", "h", "p", "-", "no data"),
    ("<13>1 - h p - - [unfinished x=\"", "13", "h", "p", "-", "[unfinished x=\""),
    ("<13>1 - h p - - [] x", "13", "h", "p", "-", "[] x"),
    ("<13>1 - h p - - [a b=\"c\"]x", "13", "h", "p", "-", "[a b=\"c\"]x"),
    ("<13>1 - h p - - [a[b] x", "13", "h", "p", "-", "[a[b] x"),
    // Only in a value is a backslash an escape.
    ("<13>1 - h p - - [a\\] x", "13", "h", "p", "-", "x"),
    // A number is not a version.
    ("1 - done by bob: x", "-", "-", "-", "-", "1 - done by bob: x"),
    ("<13>1 thing done", "13", "-", "-", "-", "1 thing done"),
    ("<13>1 item-7 done", "13", "-", "-", "-", "1 item-7 done"),
    ("<13>2 - h p - - - x", "13", "-", "-", "-", "2 - h p - - - x"),
    // A relay added a header: only one is removed, and only at the beginning of the message.
    ("<13>Nov 22 20:00:01 relay rsyslogd: <22>Nov 22 20:00:00 mail dovecot: x", "22", "mail", "dovecot", "-", "x"),
    ("<13>Nov 22 20:00:01 relay <22>Nov 22 20:00:00 mail dovecot: x", "22", "mail", "dovecot", "-", "x"),
    ("<13><22>Nov 22 20:00:00 mail dovecot: x", "22", "mail", "dovecot", "-", "x"),
    ("<13>Nov 22 20:00:01 relay <22>1 2026-11-22T20:00:00Z mail dovecot - - - x", "22", "mail", "dovecot", "-", "x"),
    ("<5><6><7>Nov 22 20:00:00 a b: x", "5", "-", "-", "-", "<6><7>Nov 22 20:00:00 a b: x"),
    (
        "<13>Nov 22 20:00:01 host app: <22>Nov 22 20:00:00 mail dovecot: x",
        "13",
        "host",
        "app",
        "-",
        "<22>Nov 22 20:00:00 mail dovecot: x",
    ),
    ("<13>Nov 22 20:00:01 host rsyslogd: <b> dovecot: x", "13", "host", "rsyslogd", "-", "<b> dovecot: x"),
    // The message cannot choose the program.
    ("dovecot: x", "-", "-", "-", "-", "dovecot: x"),
    ("sshd[1]: x", "-", "-", "-", "-", "sshd[1]: x"),
    ("<13>login of bob dovecot: x", "13", "-", "-", "-", "login of bob dovecot: x"),
    ("<13>Nov 22 20:00:00 host app: dovecot: x", "13", "host", "app", "-", "dovecot: x"),
    ("<13>Nov 22 20:00:00 host app x dovecot: y", "13", "host", "-", "-", "app x dovecot: y"),
    ("<13>Nov 22 20:00:00 host user@example.org: x", "13", "host", "-", "-", "user@example.org: x"),
    ("<13>Nov 22 20:00:00 host user=bob: x", "13", "host", "-", "-", "user=bob: x"),
    ("<13>Nov 22 20:00:00 host 'bob': x", "13", "host", "-", "-", "'bob': x"),
    ("<13>Nov 22 20:00:00 host dovecot:x", "13", "host", "-", "-", "dovecot:x"),
    ("<13>Nov 22 20:00:00 host dovecot[1 2]: x", "13", "host", "-", "-", "dovecot[1 2]: x"),
    ("<13>Nov 22 20:00:00 user=<bob> dovecot: x", "13", "-", "-", "-", "user=<bob> dovecot: x"),
    ("<13>1 - h user=bob - - - x", "13", "h", "-", "-", "x"),
    // What only resembles the identity of a UniFi device is not skipped.
    ("<13>Nov 22 20:00:00 one,two,three: bob[1]: x", "13", "-", "-", "-", "one,two,three: bob[1]: x"),
    ("<13>Nov 22 20:00:00 U7,788a2056,v4: bob[1]: x", "13", "-", "-", "-", "U7,788a2056,v4: bob[1]: x"),
    ("<13>Nov 22 20:00:00 U7,not-hex-here,v4: bob[1]: x", "13", "-", "-", "-", "U7,not-hex-here,v4: bob[1]: x"),
    ("<13>Nov 22 20:00:00 a=b,788a2056b181,v4: bob[1]: x", "13", "-", "-", "-", "a=b,788a2056b181,v4: bob[1]: x"),
    ("<13>Nov 22 20:00:00 U7,788a2056b181,: bob[1]: x", "13", "-", "-", "-", "U7,788a2056b181,: bob[1]: x"),
    ("<13>Nov 22 20:00:00 host U7,v4: bob[1]: x", "13", "host", "-", "-", "U7,v4: bob[1]: x"),
    ("<13>Nov 22 20:00:00 host 788a2056b181,: bob[1]: x", "13", "host", "-", "-", "788a2056b181,: bob[1]: x"),
    // Cisco's sequence number and origin need a priority before them.
    (
        "29: *Mar  1 18:48:50 UTC: %SYS-5-CONFIG_I: x",
        "-",
        "-",
        "-",
        "-",
        "29: *Mar  1 18:48:50 UTC: %SYS-5-CONFIG_I: x",
    ),
];

fn text(bytes: Option<&[u8]>) -> String {
    bytes.map_or_else(|| "-".to_owned(), |bytes| String::from_utf8_lossy(bytes).into_owned())
}

#[test]
fn every_format_is_parsed() {
    for (line, priority, hostname, program, pid, message) in ROWS {
        let read = parse(line.as_bytes());
        let found = (
            read.priority.map_or_else(|| "-".to_owned(), |priority| priority.value().to_string()),
            text(read.hostname),
            text(read.program),
            text(read.pid),
            String::from_utf8_lossy(read.message).into_owned(),
        );
        let wanted = [priority, hostname, program, pid, message].map(|field| (*field).to_owned());
        assert_eq!(<[String; 5]>::from(found), wanted, "{line}");
    }
}

#[test]
fn a_priority_has_a_facility_and_a_severity() {
    let priority = parse(b"<22>x").priority.unwrap();
    assert_eq!((priority.value(), priority.facility(), priority.severity()), (22, 2, 6));
}

#[test]
fn timestamp_message_id_and_structured_data_are_parsed() {
    let line = parse(b"<13>1 2026-11-22T20:00:00Z h p 7 ID [a b=\"c\\]\"][d] x");
    assert_eq!(line.timestamp, Some(&b"2026-11-22T20:00:00Z"[..]));
    assert_eq!(line.message_id, Some(&b"ID"[..]));
    assert_eq!(line.structured_data, Some(&b"[a b=\"c\\]\"][d]"[..]));
    assert_eq!(parse(b"<13>Nov 22 20:00:00 h p: x").timestamp, Some(&b"Nov 22 20:00:00"[..]));
}

#[test]
fn fields_without_a_value_are_absent() {
    let wanted = Line { priority: parse(b"<13>x").priority, ..Line::default() };
    assert_eq!(parse(b"<13>1 - - - - - -"), wanted);
    // The fields at the end may be missing, with and without the space before them.
    for line in ["<13>1 - ", "<13>1 - - - ", "<13>1 - - - - -", "<13>1 - - - - - "] {
        assert_eq!(parse(line.as_bytes()), wanted, "{line}");
    }
}

#[test]
fn the_time_of_a_line_is_that_of_its_timestamp() {
    let yearless = Written::Yearless { month: 11, day: 22, time: 72_000_000 };
    assert_eq!(parse(b"<13>Nov 22 20:00:00 h p: x").written(), Some(yearless));
    assert_eq!(parse(b"<13>1 1970-01-01T00:00:01Z h p - - - x").written(), Some(Written::Exact(1000)));
    assert_eq!(parse(b"<13>p: Nov 22 20:00:00 x").written(), None);
}

#[test]
fn a_program_name_has_a_maximum_length() {
    let named = |length: usize| format!("<13>Nov 22 20:00:00 h {}: x", "p".repeat(length));
    assert_eq!(parse(named(PROGRAM_MAX).as_bytes()).program.unwrap().len(), PROGRAM_MAX);
    let line = named(PROGRAM_MAX + 1);
    assert_eq!(parse(line.as_bytes()).program, None);
    assert!(parse(line.as_bytes()).message.ends_with(b"p: x"));
}

#[test]
fn repeated_messages_are_recognised() {
    let repeat = |line: &'static str| -> Option<Repeat<'static>> { parse(line.as_bytes()).repeat() };
    let folded = |count, message: &'static str| Some(Repeat { count, message: Some(message.as_bytes()) });
    // rsyslog's $RepeatedMsgReduction, sysklogd, macOS.
    assert_eq!(
        repeat("<38>Nov 22 20:00:00 h sshd[1]: message repeated 3 times: [ Failed password for root from 192.0.2.1]"),
        folded(3, "Failed password for root from 192.0.2.1")
    );
    assert_eq!(
        repeat("<38>Nov 22 20:00:00 h dovecot: message repeated 2 times: [ user=<a]b>, rip=192.0.2.1]\n"),
        folded(2, "user=<a]b>, rip=192.0.2.1")
    );
    for line in [
        "<38>Nov 22 20:00:00 h last message repeated 3 times",
        "<38>Nov 22 20:00:00 h syslogd: last message repeated 3 times",
        "<38>Nov 22 20:00:00 h --- last message repeated 3 times ---",
        "Nov 22 20:00:00 h last message repeated 3 times",
    ] {
        assert_eq!(repeat(line), Some(Repeat { count: 3, message: None }), "{line}");
    }
    assert_eq!(repeat("<38>Nov 22 20:00:00 h a: message repeated 99999999999 times: [x]"), folded(u32::MAX, "x"));
    for line in [
        "<38>Nov 22 20:00:00 h app: said: message repeated 3 times: [ x]",
        "<38>Nov 22 20:00:00 h app: message repeated times: [ x]",
        "<38>Nov 22 20:00:00 h app: message repeated 3 times: [ x",
        "<38>Nov 22 20:00:00 h app: message repeated 3 times",
        "<38>Nov 22 20:00:00 h app: last message repeated x times",
    ] {
        assert_eq!(repeat(line), None, "{line}");
    }
    assert_eq!(Line::default().repeat(), None);
}
