//! What an operator can do about an automatic ban that failed.

use banmesh_core::hlc::ClockExhausted;
use banmesh_core::ledger::Refused;

/// Why an automatic ban that no policy refused was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// The value of the metric's label.
    pub(super) reason: &'static str,
    /// What an operator can do.
    pub(super) fix: &'static str,
}

impl Failure {
    /// Every reason, so that a metric can start at 0.
    pub(super) const REASONS: [&'static str; 3] = ["clock", "unchanged", "other"];

    pub(super) const fn of(refused: &Refused) -> Self {
        match refused {
            Refused::Clock(ClockExhausted::Node) => {
                Self { reason: "clock", fix: "this node can ban nobody until its clock is right" }
            }
            Refused::Clock(ClockExhausted::Entry) => {
                Self { reason: "clock", fix: "only this target is affected; find the node whose clock is far ahead" }
            }
            Refused::Unchanged { .. } => Self {
                reason: "unchanged",
                fix: "its ban would have ended already; check the system clock of this node (`timedatectl`)",
            },
            _ => Self { reason: "other", fix: "this is a bug in banmesh; report it with this line of the log" },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_a_registered_reason_and_none_suggests_max_bans() {
        let target = "192.0.2.1".parse().unwrap();
        for (refused, reason) in [
            (Refused::Clock(ClockExhausted::Node), "clock"),
            (Refused::Clock(ClockExhausted::Entry), "clock"),
            (Refused::Unchanged { target }, "unchanged"),
            (Refused::NotSaved { target }, "other"),
        ] {
            let failure = Failure::of(&refused);
            assert_eq!(failure.reason, reason);
            assert!(Failure::REASONS.contains(&reason));
            assert!(!failure.fix.contains("max_bans"), "{}", failure.fix);
        }
    }
}
