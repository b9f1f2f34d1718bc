//! Injects faults, so that tests can see what a node does when a part breaks. Only debug builds have this module.
//!
//! `BANMESH_FAULT=panic:store` chooses the fault and the part. The fault happens when the file `BANMESH_FAULT_FILE` appears.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use crate::decisions::journal::ThreadHandle;

/// How often to check for the file.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The part panics.
    Panic,
    /// The part blocks its thread forever.
    Hang,
    /// The part waits forever without blocking its thread.
    Stall,
    /// The part returns.
    End,
}

/// The fault to inject, if any. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Fault(Option<Arc<Plan>>);

#[derive(Debug)]
struct Plan {
    kind: Kind,
    part: String,
    file: PathBuf,
}

impl Fault {
    /// Reads the fault from the environment.
    pub fn from_environment() -> Self {
        let (Ok(what), Some(file)) = (std::env::var("BANMESH_FAULT"), std::env::var_os("BANMESH_FAULT_FILE")) else {
            return Self(None);
        };
        let plan = what.split_once(':').and_then(|(kind, part)| {
            let kind = match kind {
                "panic" => Kind::Panic,
                "hang" => Kind::Hang,
                "stall" => Kind::Stall,
                "end" => Kind::End,
                _ => return None,
            };
            Some(Plan { kind, part: part.to_owned(), file: file.into() })
        });
        match &plan {
            Some(plan) => warn!(fault = what, file = %plan.file.display(), "this node will break on purpose"),
            None => {
                warn!(fault = what, "BANMESH_FAULT is not valid; expected panic:, hang:, stall: or end: and a part")
            }
        }
        Self(plan.map(Arc::new))
    }

    fn of(&self, part: &str) -> Option<Arc<Plan>> {
        self.0.clone().filter(|plan| plan.part == part)
    }

    /// Runs the `work` of `part` until the fault happens.
    pub async fn strike(self, part: Arc<str>, work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
        let mut work = pin!(work);
        let Some(plan) = self.of(&part) else { return work.await };
        tokio::select! {
            biased;
            () = appears(&plan.file) => {}
            output = &mut work => return output,
        }
        match plan.kind {
            Kind::Stall => std::future::pending().await,
            Kind::End => Ok(()),
            kind => {
                happen(kind);
                Ok(())
            }
        }
    }

    /// Injects the fault into the thread of `part` instead of its task.
    pub fn strike_thread(&self, part: &str, thread: ThreadHandle, runtime: &tokio::runtime::Handle) {
        let Some(plan) = self.of(part) else { return };
        runtime.spawn(async move {
            appears(&plan.file).await;
            let kind = plan.kind;
            thread.run(move || happen(kind));
        });
    }
}

async fn appears(file: &Path) {
    while !file.exists() {
        tokio::time::sleep(LOOK).await;
    }
}

#[expect(clippy::panic, reason = "the fault is a panic")]
fn happen(kind: Kind) {
    match kind {
        Kind::Panic => panic!("a fault on purpose"),
        Kind::End => {}
        Kind::Hang | Kind::Stall => loop {
            std::thread::park();
        },
    }
}
