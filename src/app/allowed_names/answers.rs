//! What the names in `allowlist` stand for: the last good answer of each. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use banmesh_types::address::Address;
use banmesh_types::target::Target;
use banmesh_types::time::Span;

/// The limit on addresses of one name. Whoever answers for the name chooses them.
pub(super) const MAX_ADDRESSES: usize = 16;

/// How many names a message shows.
const SHOWN: usize = 3;

/// The names with their addresses.
#[derive(Debug, Default)]
pub(super) struct Answers {
    names: BTreeMap<String, Answer>,
}

#[derive(Debug, Default)]
struct Answer {
    /// Those of the last good answer; empty if there was none.
    addresses: BTreeSet<Address>,
    /// When the last good answer had more than the limit, how many there were.
    too_many: Option<usize>,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Failure {
    since: Instant,
    error: String,
}

impl Answers {
    /// Keeps `names`, with what is known about them, and deletes all others.
    pub(super) fn keep(&mut self, names: &BTreeSet<String>) {
        self.names.retain(|name, _| names.contains(name));
        for name in names {
            self.names.entry(name.clone()).or_default();
        }
    }

    /// The names.
    pub(super) fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    /// Takes the answer for `name`. Returns the new addresses if they changed. A failure changes nothing.
    pub(super) fn take(
        &mut self,
        name: &str,
        answer: Result<Vec<IpAddr>, String>,
        now: Instant,
    ) -> Option<BTreeSet<Address>> {
        let known = self.names.get_mut(name)?;
        let found: Result<BTreeSet<Address>, String> =
            answer.map(|found| found.into_iter().map(Address::new).filter(|address| address.is_unicast()).collect());
        let error = match found {
            Ok(found) if found.is_empty() => "it has no address".to_owned(),
            Ok(found) => {
                known.failure = None;
                known.too_many = (found.len() > MAX_ADDRESSES).then_some(found.len());
                // Addresses that were there before stay, so that a long list in changing order does not change.
                let (kept, new): (BTreeSet<Address>, BTreeSet<Address>) =
                    found.into_iter().partition(|address| known.addresses.contains(address));
                let room = MAX_ADDRESSES.saturating_sub(kept.len());
                let addresses: BTreeSet<Address> = kept.into_iter().chain(new.into_iter().take(room)).collect();
                if addresses == known.addresses {
                    return None;
                }
                known.addresses.clone_from(&addresses);
                return Some(addresses);
            }
            Err(error) => error,
        };
        let since = known.failure.as_ref().map_or(now, |failure| failure.since);
        known.failure = Some(Failure { since, error });
        None
    }

    /// The addresses of all names.
    pub(super) fn targets(&self) -> impl Iterator<Item = Target> {
        self.names.values().flat_map(|answer| &answer.addresses).map(|address| Target::host(*address))
    }

    /// How many names could not be resolved the last time.
    pub(super) fn unresolved(&self) -> usize {
        self.names.values().filter(|answer| answer.failure.is_some()).count()
    }

    /// What is wrong, for an operator.
    pub(super) fn problem(&self, now: Instant) -> Option<String> {
        let failed = self.names.iter().filter_map(|(name, answer)| Some((name, answer, answer.failure.as_ref()?)));
        let describe = |(name, answer, failure): (&String, &Answer, &Failure)| {
            let time = Span(Duration::from_secs(now.duration_since(failure.since).as_secs()));
            let addresses: Vec<String> = answer.addresses.iter().map(ToString::to_string).collect();
            let kept = if addresses.is_empty() {
                "it has never been resolved, so it is not allowed".to_owned()
            } else {
                format!("its last addresses stay allowed: {}", addresses.join(", "))
            };
            format!("{name} for {time} ({}; {kept})", failure.error)
        };
        let count = self.unresolved();
        let mut parts = Vec::new();
        if count > 0 {
            let shown: Vec<String> = failed.take(SHOWN).map(describe).collect();
            let more = if count > SHOWN { format!(", and {} more", count - SHOWN) } else { String::new() };
            parts.push(format!(
                "names in the allowlist cannot be resolved: {}{more}. Correct the name, or the DNS of this host (/etc/resolv.conf)",
                shown.join(", ")
            ));
        }
        let too_many = self.names.iter().filter_map(|(name, answer)| Some((name, answer.too_many?)));
        for (name, count) in too_many.take(SHOWN) {
            parts.push(format!(
                "{name} in the allowlist has {count} addresses, of which only {MAX_ADDRESSES} are allowed; list networks instead"
            ));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(names: &[&str]) -> Answers {
        let mut answers = Answers::default();
        answers.keep(&names.iter().map(|name| (*name).to_owned()).collect());
        answers
    }

    fn addresses(texts: &[&str]) -> Result<Vec<IpAddr>, String> {
        Ok(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn targets(answers: &Answers) -> Vec<String> {
        answers.targets().map(|target| target.to_string()).collect()
    }

    #[test]
    fn the_last_good_answer_is_kept() {
        let (mut answers, now) = (answers(&["a.example"]), Instant::now());
        assert!(answers.take("a.example", addresses(&["192.0.2.1", "2001:db8::1"]), now).is_some());
        assert_eq!(answers.take("a.example", addresses(&["2001:db8::1", "192.0.2.1"]), now), None, "the same");
        for failure in [Err("no answer".to_owned()), Ok(Vec::new())] {
            assert_eq!(answers.take("a.example", failure, now), None);
            assert_eq!(targets(&answers), ["192.0.2.1", "2001:db8::1"]);
            assert_eq!(answers.unresolved(), 1);
        }
        let problem = answers.problem(now + Duration::from_secs(720)).unwrap();
        assert!(problem.contains("a.example for 12m") && problem.contains("stay allowed: 192.0.2.1"), "{problem}");
        assert!(answers.take("a.example", addresses(&["192.0.2.7"]), now).is_some());
        assert_eq!((targets(&answers), answers.problem(now)), (vec!["192.0.2.7".to_owned()], None));
    }

    #[test]
    fn a_name_that_was_never_resolved_is_not_allowed() {
        let (mut answers, now) = (answers(&["a.example"]), Instant::now());
        assert_eq!(answers.problem(now), None, "it was not tried yet");
        answers.take("a.example", Err("no such host".to_owned()), now);
        let problem = answers.problem(now).unwrap();
        assert!(problem.contains("no such host") && problem.contains("it is not allowed"), "{problem}");
        assert_eq!(targets(&answers), [""; 0]);
    }

    #[test]
    fn the_addresses_of_a_name_are_bounded_and_stable() {
        let (mut answers, now) = (answers(&["a.example"]), Instant::now());
        let many = |from: u8| Ok((from..from + 100).map(|last| IpAddr::from([192, 0, 2, last])).collect());
        answers.take("a.example", many(0), now);
        let first = targets(&answers);
        assert_eq!(first.len(), MAX_ADDRESSES);
        assert!(answers.problem(now).unwrap().contains("has 100 addresses"));
        assert_eq!(answers.take("a.example", many(0), now), None);
        assert!(answers.take("a.example", many(10), now).is_some());
        assert_eq!(targets(&answers).len(), MAX_ADDRESSES);
    }

    #[test]
    fn addresses_that_no_client_has_are_left_out_and_mapped_ones_are_ipv4() {
        let (mut answers, now) = (answers(&["a.example"]), Instant::now());
        answers.take("a.example", addresses(&["0.0.0.0", "255.255.255.255", "ff02::1", "::ffff:192.0.2.1"]), now);
        assert_eq!(targets(&answers), ["192.0.2.1"]);
        answers.take("a.example", addresses(&["0.0.0.0"]), now);
        assert_eq!((targets(&answers).len(), answers.unresolved()), (1, 1));
    }

    #[test]
    fn names_that_are_removed_are_forgotten_and_others_kept() {
        let (mut answers, now) = (answers(&["a.example", "b.example"]), Instant::now());
        answers.take("a.example", addresses(&["192.0.2.1"]), now);
        answers.take("b.example", addresses(&["192.0.2.2"]), now);
        answers.keep(&["b.example".to_owned(), "c.example".to_owned()].into());
        assert_eq!(targets(&answers), ["192.0.2.2"]);
        assert_eq!(answers.take("a.example", addresses(&["192.0.2.1"]), now), None);
        assert_eq!(answers.names(), ["b.example", "c.example"]);
    }
}
