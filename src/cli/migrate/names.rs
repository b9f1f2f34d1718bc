//! fail2ban's names of filters, and ours.

/// Filters whose failures one of ours recognises too, where the names differ.
const NAMES: &[(&str, &str)] = &[
    ("apache-auth", "apache"),
    ("courier-auth", "courier"),
    ("courier-smtp", "courier"),
    ("cyrus-imap", "cyrus"),
    ("ejabberd-auth", "ejabberd"),
    ("lighttpd-auth", "lighttpd"),
    ("mongodb-auth", "mongodb"),
    ("mssql-auth", "mssql"),
    ("mysqld-auth", "mysql"),
    ("named-refused", "named"),
    ("nginx-http-auth", "nginx"),
    ("roundcube-auth", "roundcube"),
    ("sendmail-auth", "sendmail"),
    ("softethervpn", "softether"),
    ("sogo-auth", "sogo"),
    ("traefik-auth", "traefik"),
    ("webmin-auth", "webmin"),
];

/// Filters of fail2ban that have the same name here.
const SAME: &[&str] = &[
    "3proxy",
    "asterisk",
    "dovecot",
    "dropbear",
    "exim",
    "freeswitch",
    "gitlab",
    "grafana",
    "guacamole",
    "horde",
    "kerio",
    "monit",
    "murmur",
    "postfix",
    "proftpd",
    "pure-ftpd",
    "squid",
    "sshd",
    "vsftpd",
];

/// Filters that are not needed, and why.
pub(super) const NOT_NEEDED: &[(&str, &str)] =
    &[("recidive", "not needed: a ban is longer each time, over all filters (ban.escalation_factor)")];

/// The name of our filter for fail2ban's `filter`. `None`: there is none that recognises the same.
pub(super) fn ours(filter: &str) -> Option<&str> {
    NAMES
        .iter()
        .find(|(theirs, _)| *theirs == filter)
        .map(|(_, ours)| *ours)
        .or_else(|| SAME.iter().find(|name| **name == filter).copied())
}
