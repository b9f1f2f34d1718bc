//! The section for evidence beyond the failures of one address.

use std::path::PathBuf;

use crate::config::setting::section;
use crate::config::value::EvidenceMode;

section! {
    /// `evidence`: detection by accounts, names and networks, in addition to counting (docs/detection.md). It needs filters that read the
    /// account and recognise logins.
    EvidenceConfig {
        /// Known addresses. `on`: the limit of an address grows with the accounts that are at home there, and an address that many
        /// share is banned briefly. It prevents bans and makes none. `observe`: log which bans it would prevent. `off`: treat all addresses alike.
        @live known: EvidenceMode = EvidenceMode::On;
        /// Strangers, which are addresses where nobody is at home, and the names that they try. `on`: ban strangers that try names
        /// which others also try and nobody uses, count a further name twice, and ban strangers that fail slowly.
        @live names: EvidenceMode = EvidenceMode::Observe;
        /// Networks. `on`: ban a /24, /56 or /48 for an hour in which many addresses failed and nobody is at home.
        @live networks: EvidenceMode = EvidenceMode::Observe;
        /// Filters that recognise failures but no logins, whose users also use other services. Without this, `networks` waits while such
        /// a filter has failures, because its users are invisible.
        @live blind: Vec<String> = Vec::new();
        /// Names that strangers may try without being banned at once, such as accounts of services without lines about logins.
        @live never: Vec<String> = Vec::new();
        /// Files with more names for `never`, one per line. `#` begins a comment. A reload reads them again.
        @live never_files: Vec<PathBuf> = Vec::new();
        /// For about how many accounts evidence is kept, 128 bytes or a little more each. Beyond it, the accounts that logged in least
        /// recently become strangers.
        max_accounts: usize = 262_144;
    }
}
