//! Set reconciliation: two nodes find out which of their entries differ by sending about 17 bytes per difference.
//!
//! The method is that of rateless invertible Bloom lookup tables (Yang, Gilad and Alizadeh, "Practical Rateless Set
//! Reconciliation", SIGCOMM 2024). Each end has a set of 64-bit [`keys`], one for each entry in the buckets that differ. One end
//! sends [`symbols`], each of which is the XOR of a pseudo-random part of its keys. The other end removes its own keys from them,
//! so that only the differences remain, and takes these out one after the other ([`decoder`]). Any number of differences can be
//! found with about 1.4 times as many symbols, and more symbols can be added at any time. A [`sketch`] tells the ends beforehand
//! how many they need.
//!
//! All of it depends on random numbers of the session. An attacker who chooses which addresses are banned can therefore not choose keys
//! that collide, and a collision by chance lasts for one session.

pub mod decoder;
pub mod keys;
pub mod sketch;
pub mod symbols;

/// The finalizer of SplitMix64: a bijection of 64 bits whose output bits each depend on all input bits.
const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
