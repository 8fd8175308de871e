//! A short run of the fuzz targets, in every `make test`. `dev/fuzz` runs them for as long as you like.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

const TRIES: usize = 20_000;

/// Flips, cuts and repeats bytes, and inserts what tends to break parsers.
fn mutate(seed: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut data = seed.to_vec();
    for _ in 0..random.random_range(1..6) {
        if data.is_empty() {
            break;
        }
        let at = random.random_range(0..data.len());
        match random.random_range(0..6) {
            0 => data[at] ^= 1 << random.random_range(0..8),
            1 => data.truncate(at),
            2 => data[at] = random.random(),
            3 => drop(data.drain(at..(at + random.random_range(1..64)).min(data.len()))),
            4 => {
                let piece = data[at..(at + random.random_range(1..256)).min(data.len())].to_vec();
                data.splice(at..at, piece);
            }
            _ => {
                let odd: &[&[u8]] = &[b"null", b"\"0x\"", b"-1", b"0xffffffffffffffffff", b"{}", b"[]", &[0xff; 10], b"\n"];
                data.splice(at..at, odd.choose(random).unwrap().iter().copied());
            }
        }
    }
    data
}

fn walk(seeds: &[Vec<u8>], target: fn(&[u8])) {
    assert!(seeds.len() > 10, "only {} seeds: is the test data all there?", seeds.len());
    seeds.iter().for_each(|seed| target(seed));
    let mut random = StdRng::seed_from_u64(4);
    for _ in 0..TRIES {
        target(&mutate(seeds.choose(&mut random).unwrap(), &mut random));
    }
}

#[test]
fn no_answer_of_a_node_makes_the_reader_panic() {
    walk(&fuzz::seeds().unwrap().rpc, fuzz::rpc);
}

#[test]
fn no_record_makes_a_reader_panic() {
    walk(&fuzz::seeds().unwrap().record, fuzz::record);
}

#[test]
fn no_request_body_makes_a_reader_panic() {
    walk(&fuzz::seeds().unwrap().body, fuzz::body);
}
