//! The country and the network (AS) of an address, from files of the operator.
//!
//! A file is read whole into memory and swapped in, so no lookup waits. Files that have changed are read again every few seconds.

mod database;

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

pub use self::database::DatabaseError;
use self::database::{Database, Version};
use banmesh_core::judge::BanOrder;
use banmesh_core::policy::BanPolicy;
use banmesh_types::address::Address;

/// Where an address is. Fields are `None` where no file says it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Origin {
    /// The country: two letters (ISO 3166).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
    /// The number of the network (AS).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asn: Option<u32>,
    /// The name of the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_name: Option<String>,
}

/// What is different for some countries or networks.
#[derive(Clone, Debug, PartialEq)]
pub struct GeoRule {
    /// Countries, two capital letters each.
    pub countries: Vec<String>,
    /// Numbers of networks.
    pub networks: Vec<u32>,
    /// What each failure counts.
    pub weight: u32,
    /// The factor for the length of a first ban.
    pub ban_time: f64,
}

/// The files in use; clones share them.
#[derive(Clone, Debug)]
pub struct Geo {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    files: Vec<File>,
    rules: Vec<GeoRule>,
}

#[derive(Debug)]
struct File {
    /// The key of the configuration.
    key: &'static str,
    path: PathBuf,
    database: ArcSwapOption<Database>,
    /// What is on the disk, whether it could be used or not.
    seen: Mutex<Option<Version>>,
    problem: Mutex<Option<DatabaseError>>,
}

impl Origin {
    /// Whether nothing is known.
    pub const fn is_empty(&self) -> bool {
        self.country.is_none() && self.asn.is_none() && self.as_name.is_none()
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let network = self.asn.map(|asn| format!("AS{asn}"));
        let parts = [self.country.clone(), network, self.as_name.clone()];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

impl GeoRule {
    fn applies(&self, origin: &Origin) -> bool {
        let country = origin.country.as_ref().is_some_and(|country| self.countries.contains(country));
        country || origin.asn.is_some_and(|asn| self.networks.contains(&asn))
    }
}

impl Geo {
    /// The files of `geo.country` and `geo.network`, not read yet; `None` without any.
    pub fn new(country: Option<PathBuf>, network: Option<PathBuf>, rules: Vec<GeoRule>) -> Option<Self> {
        let file = |key, path: Option<PathBuf>| {
            path.map(|path| File {
                key,
                path,
                database: ArcSwapOption::empty(),
                seen: Mutex::default(),
                problem: Mutex::default(),
            })
        };
        let files: Vec<File> =
            [file("geo.country", country), file("geo.network", network)].into_iter().flatten().collect();
        (!files.is_empty()).then(|| Self { shared: Arc::new(Shared { files, rules }) })
    }

    /// Where `address` is.
    pub fn origin(&self, address: Address) -> Origin {
        let mut origin = Origin::default();
        for file in &self.shared.files {
            if let Some(database) = &*file.database.load() {
                database.add(address.ip(), &mut origin);
            }
        }
        origin
    }

    /// What each failure of `source` counts; 1 unless a rule says otherwise.
    pub fn weight(&self, source: Address) -> u32 {
        self.rule(source).map_or(1, |rule| rule.weight)
    }

    /// The order with the length of the ban that its rule demands.
    pub fn adjusted(&self, order: BanOrder) -> BanOrder {
        let Some(rule) = self.rule(order.target.address().into()).filter(|rule| rule.ban_time != 1.0) else {
            return order;
        };
        let before = &order.policy;
        let first = before.initial_ban_time.as_secs_f64() * rule.ban_time;
        let initial_ban_time = std::time::Duration::try_from_secs_f64(first)
            .unwrap_or(before.max_ban_time)
            // A ban of no length would be none.
            .clamp(std::time::Duration::from_secs(1).min(before.max_ban_time), before.max_ban_time);
        let policy = Arc::new(BanPolicy { initial_ban_time, ..BanPolicy::clone(before) });
        BanOrder { policy, ..order }
    }

    fn rule(&self, address: Address) -> Option<&GeoRule> {
        if self.shared.rules.is_empty() {
            return None;
        }
        let origin = self.origin(address);
        self.shared.rules.iter().find(|rule| rule.applies(&origin))
    }

    /// Reads the files again that have changed. Blocks. Returns the keys of those that were read.
    pub fn look(&self) -> Vec<&'static str> {
        self.shared.files.iter().filter(|file| file.look()).map(|file| file.key).collect()
    }

    /// What is wrong with the files, for an operator.
    pub fn problem(&self) -> Option<String> {
        let one = |file: &File| {
            let problem = file.problem.lock();
            let old = if file.database.load().is_some() { "; the old file stays in use" } else { "" };
            problem.as_ref().map(|problem| format!("{} ({}): {problem}{old}", file.key, file.path.display()))
        };
        let all: Vec<String> = self.shared.files.iter().filter_map(one).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

impl File {
    /// Returns whether a new file is in use.
    fn look(&self) -> bool {
        let version = match Version::of(&self.path) {
            Ok(version) => version,
            Err(error) => {
                *self.problem.lock() = Some(error);
                *self.seen.lock() = None;
                return false;
            }
        };
        if self.seen.lock().as_ref() == Some(&version) {
            return false;
        }
        let read = Database::read(&self.path, self.database.load().as_deref());
        *self.seen.lock() = Some(version);
        match read {
            Ok(database) => {
                self.database.store(Some(Arc::new(database)));
                *self.problem.lock() = None;
                true
            }
            Err(error) => {
                *self.problem.lock() = Some(error);
                false
            }
        }
    }
}

#[cfg(test)]
mod mmdb;
#[cfg(test)]
mod tests;
