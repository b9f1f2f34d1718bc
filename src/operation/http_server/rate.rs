//! A rate limit per client: token buckets.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use banmesh_types::address::Address;
use parking_lot::Mutex;

/// The most clients with a bucket. Full buckets are removed first.
const CLIENTS: usize = 10_000;

/// When there is no room, full buckets are looked for no more often than this: the search visits every bucket.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Limits the requests of every client. An IPv6 /64 counts as one client.
#[derive(Debug)]
pub struct RateLimiter {
    /// The size of a bucket: the largest burst.
    size: f64,
    /// Requests per second.
    flow: f64,
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    by_client: HashMap<Address, Bucket, foldhash::quality::RandomState>,
    swept: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl RateLimiter {
    /// Allows `requests_per_minute` per client; 0 counts as 1.
    pub fn new(requests_per_minute: u32) -> Self {
        let size = f64::from(requests_per_minute.max(1));
        Self { size, flow: size / 60.0, buckets: Mutex::default() }
    }

    /// Counts a request of `client`.
    ///
    /// # Errors
    /// When the client is over its limit: how long it must wait.
    pub fn take(&self, client: Address, now: Instant) -> Result<(), Duration> {
        let client = of_network(client);
        let mut guard = self.buckets.lock();
        let Buckets { by_client: buckets, swept } = &mut *guard;
        if buckets.len() >= CLIENTS && !buckets.contains_key(&client) {
            if swept.is_none_or(|last| now.saturating_duration_since(last) >= SWEEP_INTERVAL) {
                buckets.retain(|_, bucket| self.filled(*bucket, now) < self.size);
                *swept = Some(now);
            }
            if buckets.len() >= CLIENTS {
                return Err(Duration::from_secs(60));
            }
        }
        let bucket = buckets.entry(client).or_insert(Bucket { left: self.size, at: now });
        let left = self.filled(*bucket, now);
        if left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - left) / self.flow));
        }
        *bucket = Bucket { left: left - 1.0, at: now };
        Ok(())
    }

    /// Takes back one counted request of `client`.
    pub fn give_back(&self, client: Address) {
        let mut buckets = self.buckets.lock();
        if let Some(bucket) = buckets.by_client.get_mut(&of_network(client)) {
            bucket.left = (bucket.left + 1.0).min(self.size);
        }
    }

    fn filled(&self, bucket: Bucket, now: Instant) -> f64 {
        (bucket.left + now.saturating_duration_since(bucket.at).as_secs_f64() * self.flow).min(self.size)
    }
}

/// The key of a client: its IPv4 address, or its IPv6 /64.
pub fn of_network(client: Address) -> Address {
    match client.ip() {
        IpAddr::V4(_) => client,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_requests_per_client_and_minute() {
        let limiter = RateLimiter::new(60);
        let start = Instant::now();
        let client = |text: &str| text.parse::<Address>().unwrap();
        let burst = (0..100).filter(|_| limiter.take(client("192.0.2.1"), start).is_ok()).count();
        assert_eq!(burst, 60);
        assert_eq!(limiter.take(client("192.0.2.1"), start), Err(Duration::from_secs(1)));
        assert_eq!(limiter.take(client("192.0.2.2"), start), Ok(()));
        let later = start + Duration::from_secs(10);
        assert_eq!((0..100).filter(|_| limiter.take(client("192.0.2.1"), later).is_ok()).count(), 10);
        // An IPv6 /64 is one client.
        let burst = (0..100u16).filter(|n| limiter.take(client(&format!("2001:db8::{n}")), start).is_ok()).count();
        assert_eq!(burst, 60);
    }

    #[test]
    fn the_number_of_buckets_is_bounded() {
        let limiter = RateLimiter::new(1);
        let start = Instant::now();
        for n in 0..20_000u32 {
            let _ = limiter.take(IpAddr::V4(n.into()).into(), start);
        }
        assert_eq!(limiter.buckets.lock().by_client.len(), CLIENTS);
        assert_eq!(limiter.buckets.lock().swept, Some(start), "once, not for every client");
        let later = start + Duration::from_secs(61);
        assert_eq!(limiter.take(IpAddr::V4(30_000.into()).into(), later), Ok(()));
        assert_eq!(limiter.buckets.lock().by_client.len(), 1);
    }
}
