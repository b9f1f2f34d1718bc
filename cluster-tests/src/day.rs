//! The logs of a day on a mail host: people who log in and mistype, a phone with an old password, and attackers, quick and slow.
//!
//! The same every time: 24 November 2026, in the format of Debian's rsyslog.

use std::fmt::Write as _;

use crate::hostile::Noise;

/// The logs of one day, by file.
#[derive(Debug)]
pub struct Day {
    /// What Dovecot writes to `mail.log`.
    pub mail: String,
    /// What sshd writes to `auth.log`.
    pub auth: String,
}

const DATE: &str = "2026-11-24";
const HOUR: u64 = 3600;
const USERS: u64 = 400;
/// The address of the phone that keeps trying an old password for twenty minutes before its owner notices.
pub const PHONE: &str = "198.18.250.7";

/// Makes the logs.
pub fn day() -> Day {
    let mut noise = Noise::new(24);
    let mut between = |least: u64, end: u64| least + noise.next() % (end - least);
    let (mut mail, mut auth) = (Vec::new(), Vec::new());
    for user in 0..USERS {
        let address = format!("198.18.{}.{}", user / 200, user % 200 + 1);
        let account = format!("user{user}@example.org");
        let mut at = between(6 * HOUR, 10 * HOUR);
        while at < 23 * HOUR {
            // One login in thirty begins with a wrong password.
            if between(0, 30) == 0 {
                mail.push((at, failed(&account, &address)));
                at += between(4, 20);
            }
            mail.push((at, login(&account, &address)));
            at += between(HOUR / 4, 2 * HOUR);
        }
    }
    mail.extend((0..15).map(|count| (9 * HOUR + count * 80, failed("user7@example.org", PHONE))));
    mail.push((9 * HOUR + 25 * 60, login("user7@example.org", PHONE)));

    for attacker in 0..40 {
        let address = format!("198.19.{}.{}", attacker, between(1, 255));
        let (tries, pause) = match attacker % 4 {
            // A dictionary, as fast as it goes.
            0 => (between(100, 400), 5),
            1 | 2 => (between(40, 120), 60),
            // Below five attempts in ten minutes.
            _ => (between(20, 40), 500),
        };
        let mut at = between(0, 12 * HOUR);
        for _ in 0..tries {
            mail.push((at, failed(&format!("user{}@example.org", between(0, USERS)), &address)));
            at += between(pause / 2 + 1, pause * 3 / 2 + 2);
        }
    }
    for attacker in 0..60 {
        let address = format!("198.19.{}.{}", 100 + attacker, between(1, 255));
        let mut at = between(0, 23 * HOUR);
        for _ in 0..between(3, 60) {
            let port = between(30_000, 60_000);
            auth.push((at, format!("sshd[{port}]: Failed password for root from {address} port {port} ssh2")));
            at += between(2, 40);
        }
    }
    for hour in [8, 11, 16] {
        let key = "SHA256:1nUe0k5Vq2m4ZsYw0JxqjP1bC8d7Vt3rE6yQm9aTgLo";
        let line =
            format!("sshd[{hour}01]: Accepted publickey for ann from 198.18.250.9 port 5{hour}00 ssh2: ED25519 {key}");
        auth.push((hour * HOUR, line));
    }
    Day { mail: text(mail), auth: text(auth) }
}

fn failed(account: &str, address: &str) -> String {
    format!(
        "dovecot: imap-login: Disconnected (auth failed, 1 attempts in 2 secs): user=<{account}>, method=PLAIN, rip={address}, lip=192.0.2.31, TLS"
    )
}

fn login(account: &str, address: &str) -> String {
    format!("dovecot: imap-login: Login: user=<{account}>, method=PLAIN, rip={address}, lip=192.0.2.31, mpid=4711, TLS")
}

/// The lines in the order of their times, which are seconds of the day.
fn text(mut lines: Vec<(u64, String)>) -> String {
    lines.retain(|(at, _)| *at < 24 * HOUR);
    lines.sort_by_key(|(at, _)| *at);
    let mut text = String::new();
    for (number, (at, line)) in lines.iter().enumerate() {
        let (hour, minute, second) = (at / HOUR, at / 60 % 60, at % 60);
        let _ = writeln!(text, "{DATE}T{hour:02}:{minute:02}:{second:02}.{:06}+00:00 mx-1 {line}", number % 1_000_000);
    }
    text
}
