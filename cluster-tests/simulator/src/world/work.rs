//! What people and attackers do in a run.

use std::sync::Arc;
use std::time::Duration;

use banmesh_core::ban::{By, Cause};
use banmesh_core::ledger::{BanTerms, Refused};
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

use super::{TARGETS, World, target};
use crate::oracle::Wish;
use crate::platform;
use crate::process;

impl World {
    /// An operator asks a node for something.
    pub(super) fn ask(&mut self, node: usize) {
        if self.nodes[node].process.is_none() {
            return;
        }
        let target = self.any_target();
        let wish = *self.rng.pick(&[Wish::Ban, Wish::Ban, Wish::Unban, Wish::Unban, Wish::Allow, Wish::Disallow]);
        let seconds = *self.rng.pick(&[None, Some(3), Some(20), Some(90), Some(600)]);
        let replace = self.rng.one_in(3);
        self.request(node, target, wish, seconds, replace);
    }

    /// An operator exempts a source at a node while lines about it reach another node, which bans it before it knows.
    pub(super) fn race(&mut self, node: usize) {
        let other = (node + 1 + self.rng.below(self.count - 1)) % self.count;
        let source = self.any_target();
        self.counts.add("an operator exempts a source while a filter bans it");
        for _ in 0..process::policy().max_attempts {
            self.log_line(other, source);
        }
        self.request(node, source, Wish::Allow, Some(90), false);
    }

    fn any_target(&mut self) -> Target {
        target(u8::try_from(self.rng.below(TARGETS.into())).unwrap_or_default())
    }

    fn request(&self, node: usize, target: Target, wish: Wish, seconds: Option<u64>, replace: bool) {
        let Some(process) = &self.nodes[node].process else { return };
        let store = process.store.clone();
        let end = move || {
            let now = UnixMillis(platform::wall(node));
            seconds.map_or(Expiry::NEVER, |seconds| Expiry::at(now.plus(Duration::from_secs(seconds))))
        };
        let oracle = Arc::clone(&self.oracle);
        let (request, disk) = {
            let mut oracle = oracle.lock();
            (oracle.requested(target, wish), oracle.disk(node))
        };
        self.trace.event(format_args!("asks {node} {request} {wish:?} {target}"));
        let (trace, counts) = (self.trace.clone(), self.counts.clone());
        let cause = Cause::new(By::Operator("ann".into()), &request.to_string());
        tokio::spawn(platform::on(node, async move {
            let answer = match wish {
                Wish::Ban => {
                    let terms = BanTerms { until: end(), remember: Duration::from_secs(300), replace };
                    store.ban(target, terms, cause).await
                }
                Wish::Unban => store.unban(target, cause).await,
                Wish::Allow => store.allow(target, end(), cause).await,
                Wish::Disallow => store.disallow(target, cause).await,
            };
            match answer {
                Ok(Ok(change)) => {
                    trace.event(format_args!("acknowledged {node} {request} {:?}", change.after));
                    oracle.lock().acknowledged(request, node, disk, &change);
                }
                Ok(Err(Refused::NotSaved { .. })) => counts.add("decision made but not saved"),
                Ok(Err(_)) => counts.add("decision refused"),
                Err(_) => counts.add("decision not answered"),
            }
        }));
    }

    /// Lines about a source reach a node, or several.
    pub(super) fn offend(&mut self, node: usize) {
        let source = self.any_target();
        let spread = self.rng.one_in(3);
        for _ in 0..self.rng.range(1, 4) {
            let node = if spread { self.rng.below(self.count) } else { node };
            self.log_line(node, source);
        }
    }

    fn log_line(&mut self, node: usize, source: Target) {
        self.attempts += 1;
        let Some(process) = &mut self.nodes[node].process else { return };
        self.oracle.lock().offence(source);
        self.trace.event(format_args!("logs {node} {source}"));
        if !self.common.evidence {
            process.failed_login(source.address(), process::ACCOUNTS[0], self.attempts);
            return;
        }
        let at = usize::try_from(self.attempts).unwrap_or_default();
        process.failed_login(source.address(), process::ACCOUNTS[at % 4], self.attempts);
        // Two accounts log in, each from few addresses.
        if at.is_multiple_of(3) {
            self.counts.add("login");
            process.login(
                target(u8::try_from(at % 6).unwrap_or_default()).address(),
                process::ACCOUNTS[at % 2],
                self.attempts,
            );
        }
    }
}
